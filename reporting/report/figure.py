"""The map of pairs as Bokeh draws it; the page fills it with points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bokeh
from bokeh.embed import json_item
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    HoverTool,
    LassoSelectTool,
    PanTool,
    Range1d,
    ResetTool,
    TapTool,
    WheelZoomTool,
)
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

PALETTE = tuple(Viridis256[::3])
SCRIPTS = Path(bokeh.__file__).parent / "server" / "static" / "js"


def library() -> str:
    """Bokeh's script, from the installed package."""
    return (SCRIPTS / "bokeh.min.js").read_text(encoding="utf-8")


def map_item() -> dict[str, Any]:
    """The empty map, as `Bokeh.embed.embed_item` takes it.

    What is pointed at, clicked and lassoed is told to the page's `influencespace`, as the rows of
    the points; the page answers.
    """
    source = ColumnDataSource({"x": [], "y": [], "colour": [], "alpha": []})
    plot = figure(
        x_range=Range1d(-1, 1),
        y_range=Range1d(-1, 1),
        sizing_mode="stretch_both",
        toolbar_location="above",
        tools=[],
        x_axis_label="agreement of image and caption",
        y_axis_label="influence",
    )
    points = plot.scatter(
        "x", "y", source=source, size=6, color="colour", alpha="alpha", line_color=None
    )
    points.nonselection_glyph = points.selection_glyph = None  # the page says what is pale
    hover = HoverTool(
        renderers=[points],
        limit=1,
        tooltips=None,
        callback=CustomJS(
            code="influencespace.hovered(cb_data.index.indices, cb_data.geometry.sx,"
            " cb_data.geometry.sy)"
        ),
    )
    tap = TapTool(
        behavior="inspect",
        callback=CustomJS(code="influencespace.tapped(cb_data.source.inspected.indices)"),
    )
    # The wheel alone scrolls the page, which would else be caught by a map as wide as it.
    lasso, wheel, pan = (
        LassoSelectTool(continuous=False),
        WheelZoomTool(modifiers="ctrl"),
        PanTool(),
    )
    plot.add_tools(lasso, pan, wheel, hover, tap, ResetTool())
    plot.toolbar.active_drag, plot.toolbar.active_scroll = lasso, wheel
    plot.toolbar.logo = None
    source.selected.js_on_change("indices", CustomJS(code="influencespace.lassoed(cb_obj.indices)"))
    plot.grid.visible = False
    plot.axis.visible = False
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.outline_line_color = None
    item: dict[str, Any] = json_item(plot, "plot")
    return item

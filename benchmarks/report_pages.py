"""The pages that `report_libraries.py` opens: maps by Bokeh and Plotly, tables by Bokeh and HTML.

A page is one file with the library's script from its installed package. Whatever draws it offers
the same to the benchmark: `ready`, a promise; of maps `pixel(x, y)`, `recolour()`, `hovered()` and
`count`; of tables `labels()`, the first cells from top to bottom.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from bokeh.embed import json_item
from bokeh.models import (
    ColumnDataSource,
    CustomJSHover,
    DataTable,
    HoverTool,
    LassoSelectTool,
    TableColumn,
)
from bokeh.palettes import Category10
from bokeh.plotting import figure
from bokeh.resources import Resources
from bokeh.transform import linear_cmap
from PIL import Image

PALETTE = Category10[10]
WIDTH, HEIGHT, MARKER = 900, 700, 6  # pixels
COLUMNS = ("cluster", "terms", "size", "influence", "kept")

SHARED = """
let released = 0, counted = 0, count = null;
addEventListener('pointerup', () => { released = performance.now(); }, true);
function report(n) { count = n; counted = performance.now(); }
function* elements(root) {
  for (const element of root.querySelectorAll('*')) {
    yield element;
    if (element.shadowRoot) yield* elements(element.shadowRoot);
  }
}
function hovered() {
  const seen = [...elements(document)].filter(e => e.getBoundingClientRect().width > 0);
  const image = seen.find(e => e.localName === 'img' && e.naturalWidth > 0 && e.width > 0);
  const caption = seen.find(e => e.className === 'caption');
  return image && caption ? [image.src, caption.textContent] : null;
}
"""

BOKEH_MAP = """
const source = () => Bokeh.documents[0].get_model_by_name('source');
let view;
const ready = Bokeh.embed.embed_item(ITEM, 'map').then(views => {
  view = [...views][0];
  const selected = source().selected;
  selected.properties.indices.change.connect(() => report(selected.indices.length));
});
function pixel(x, y) {
  const box = view.canvas_view.el.getBoundingClientRect();
  return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)];
}
function recolour() {
  source().data.group = source().data.group.map(group => (group + 1) % 10);
  source().change.emit();
}
"""

# Its hover labels show no image, so the page has a card of its own.
PLOTLY_MAP = """
const map = document.getElementById('map'), card = document.getElementById('card');
const ready = Plotly.newPlot(map, ITEM.data, ITEM.layout, {displaylogo: false}).then(() => {
  map.on('plotly_selected', event => report(event ? event.points.length : 0));
  map.on('plotly_unhover', () => { card.hidden = true; });
  map.on('plotly_hover', ({points: [point]}) => {
    const [x, y] = pixel(point.x, point.y);
    card.style.cssText = `position: fixed; left: ${x + 9}px; top: ${y}px; background: white`;
    card.firstChild.src = PHOTOGRAPHS[map._fullData[0].marker.color[point.pointIndex]];
    card.lastChild.textContent = point.customdata;
    card.hidden = false;
  });
});
function pixel(x, y) {
  const box = map.getBoundingClientRect(), {xaxis, yaxis} = map._fullLayout;
  return [box.x + xaxis._offset + xaxis.l2p(x), box.y + yaxis._offset + yaxis.l2p(y)];
}
function recolour() {
  const colours = map._fullData[0].marker.color;
  return Plotly.restyle(map, {'marker.color': [colours.map(group => (group + 1) % 10)]});
}
"""

LABELS = """
function labels() {
  return [...elements(document)]
    .filter(e => !e.childElementCount && /^row-\\d+$/.test(e.textContent))
    .sort((a, b) => a.getBoundingClientRect().y - b.getBoundingClientRect().y)
    .map(e => e.textContent);
}
"""

HTML_TABLE = """
const ready = Promise.resolve(), body = document.querySelector('tbody');
document.querySelectorAll('th').forEach((head, column) => {
  head.firstChild.onclick = () => {
    const sign = head.ariaSort === 'ascending' ? -1 : 1;
    document.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.ariaSort = sign > 0 ? 'ascending' : 'descending';
    const text = row => row.cells[column].textContent;
    body.append(...[...body.rows].sort((a, b) =>
      sign * text(a).localeCompare(text(b), 'en', {numeric: true})));
  };
});
"""

BOKEH_TABLE = "const ready = Bokeh.embed.embed_item(ITEM, 'map').then(() => null);"


class Points(NamedTuple):
    """Points of a map: (n,) positions in the unit square, a colour's number, a caption."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    caption: list[str]


class Case(NamedTuple):
    """A way to draw, under the name that the table has for it.

    Attributes:
        scripts: the library's scripts, from its installed package.
        item: from the data, what the page's script hands to the library.
        script: the page's own.
        body: what the page holds beside the script.
    """

    scripts: list[str]
    item: Callable[[Any], str]
    script: str
    body: Callable[[Any], str] = lambda _: "<div id=map></div>"


def draw_points(n: int, rng: np.random.Generator) -> Points:
    """Random points."""
    x, y = rng.random((2, n), dtype=np.float32)
    captions = [f'no. {i} <b>of</b> "many" & more' for i in range(n)]
    return Points(x, y, rng.integers(10, size=n).astype(np.uint8), captions)


def draw_rows(n: int, rng: np.random.Generator) -> dict[str, list]:
    """The columns of a table of clusters, in no order."""
    order = rng.permutation(n)
    return {
        "cluster": [f"row-{i:04d}" for i in order],
        "terms": [f"dog, beach, ball, {i % 37}" for i in order],
        "size": rng.integers(10, 500, n).tolist(),
        "influence": rng.normal(size=n).round(4).tolist(),
        "kept": rng.random(n).round(2).tolist(),
    }


def photographs(rng: np.random.Generator) -> list[str]:
    """One small photograph a colour, as data: addresses."""
    addresses = []
    for _ in PALETTE:
        file = io.BytesIO()
        pixels = rng.integers(256, size=(12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(file, "JPEG")
        addresses.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return addresses


def page(case: Case, data: Any, images: Sequence[str]) -> str:
    """The page, in one file."""
    scripts = "".join(f"<script>{script}</script>\n" for script in case.scripts)
    constants = f"const PHOTOGRAPHS = {json.dumps(images)};\nconst ITEM = {case.item(data)};\n"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Pairs</title>"
        f"<body style='margin: 0; font: 14px sans-serif'>{case.body(data)}\n{scripts}"
        f"<script>{constants}{SHARED}{LABELS}{case.script}</script>"
    )


def script_json(text: str) -> str:
    """JSON as it may stand in a script: no caption ends it."""
    return text.replace("<", "\\u003c")


def bokeh_scripts(*components: str) -> list[str]:
    """Bokeh's scripts as its package has them."""
    return list(Resources(mode="inline", components=list(components)).js_raw)


def bokeh_map(backend: str, *, on_the_way: bool = False) -> Callable[[Points], str]:
    """A scatter as Bokeh draws it by `canvas` or `webgl`; its lasso counts at its end or always."""

    def item(points: Points) -> str:
        plot = figure(width=WIDTH, height=HEIGHT, output_backend=backend, tools="pan,wheel_zoom")
        lasso = LassoSelectTool(continuous=on_the_way)
        plot.add_tools(lasso)
        plot.toolbar.active_drag = lasso
        source = ColumnDataSource(points._asdict(), name="source")
        colour = linear_cmap("group", PALETTE, -0.5, 9.5)
        plot.scatter("x", "y", source=source, size=MARKER, line_color=None, fill_color=colour)
        look_up = CustomJSHover(code="return PHOTOGRAPHS[value]")
        tip = "<img src='@group{photograph}' width=96 height=96><p class='caption'>@caption</p>"
        plot.add_tools(HoverTool(tooltips=tip, formatters={"@group": look_up}, limit=1))
        return script_json(json.dumps(json_item(plot)))

    return item


def plotly_map(kind: str) -> Callable[[Points], str]:
    """A scatter as Plotly draws it by `Scatter` or `Scattergl`."""
    import plotly.graph_objects as plotly_objects

    def item(points: Points) -> str:
        # Ten steps: each colour from one end to the other of its tenth.
        scale = [(i / 10, c) for place, c in enumerate(PALETTE) for i in (place, place + 1)]
        trace = getattr(plotly_objects, kind)(
            x=points.x,
            y=points.y,
            customdata=points.caption,
            mode="markers",
            hoverinfo="none",
            marker={"size": MARKER, "opacity": 1, "color": points.group}
            | {"colorscale": scale, "cmin": -0.5, "cmax": 9.5},
        )
        layout = {"width": WIDTH, "height": HEIGHT, "dragmode": "lasso", "hovermode": "closest"}
        layout |= {"template": "plotly_white", "margin": {"l": 30, "r": 30, "t": 5, "b": 20}}
        return script_json(plotly_objects.Figure(trace, layout).to_json())

    return item


def bokeh_table(*, whole: bool) -> Callable[[Mapping[str, list]], str]:
    """A DataTable that scrolls, or one as high as all its rows."""

    def item(columns: Mapping[str, list]) -> str:
        heads = [TableColumn(field=name, title=name) for name in COLUMNS]
        height = 25 * (len(columns["size"]) + 2) if whole else 600
        source = ColumnDataSource(dict(columns))
        table = DataTable(source=source, columns=heads, width=WIDTH, height=height)
        return script_json(json.dumps(json_item(table)))

    return item


def html_table(columns: Mapping[str, list]) -> str:
    """A plain table whose heads hold buttons."""
    heads = "".join(f"<th scope=col><button>{name}</button></th>" for name in COLUMNS)
    rows = zip(*(columns[name] for name in COLUMNS), strict=True)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def map_cases() -> dict[str, Case]:
    """Libraries for the map by name."""
    from plotly.offline import get_plotlyjs

    plotly, bokeh = [get_plotlyjs()], bokeh_scripts("bokeh")
    with_gl = bokeh_scripts("bokeh", "bokeh-gl")

    def with_card(_: Any) -> str:
        return "<div id=map></div><div id=card hidden><img width=96><p class=caption></p></div>"

    return {
        "Bokeh canvas": Case(bokeh, bokeh_map("canvas"), BOKEH_MAP),
        "Bokeh canvas, counts on the way": Case(
            bokeh, bokeh_map("canvas", on_the_way=True), BOKEH_MAP
        ),
        "Bokeh webgl": Case(with_gl, bokeh_map("webgl"), BOKEH_MAP),
        "Plotly scatter": Case(plotly, plotly_map("Scatter"), PLOTLY_MAP, with_card),
        "Plotly scattergl": Case(plotly, plotly_map("Scattergl"), PLOTLY_MAP, with_card),
    }


def table_cases() -> dict[str, Case]:
    """Ways to show a table by name."""
    scripts = bokeh_scripts("bokeh", "bokeh-widgets", "bokeh-tables")
    return {
        "HTML table": Case([], lambda _: "null", HTML_TABLE, html_table),
        "Bokeh DataTable": Case(scripts, bokeh_table(whole=False), BOKEH_TABLE),
        "Bokeh DataTable, full height": Case(scripts, bokeh_table(whole=True), BOKEH_TABLE),
    }

"""Bokeh beside Plotly for the report's map, and Bokeh's DataTable beside a plain HTML table.

    pip install plotly==7.1.0
    python benchmarks/report_libraries.py

Each page is one file with the library's script from the installed package: random points in ten
colours, a lasso that counts, a hover with a photograph and a caption that holds markup. Headless
Chromium opens it from disk with the network off; a page that asks for anything, or says an error,
stops the benchmark. Pages take turns in five rounds, so that what else the machine does hits all
alike; given are medians, in brackets the lowest and the highest. A page counts as drawn when a
screenshot shows all ten colours; an empty page tells what opening, the screenshot and the mouse
take by themselves. There is no graphics card: WebGL is drawn by the processor here, as in a remote
desktop, and would be faster on most laptops.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
from matplotlib.path import Path as Polygon
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from artifacts.provenance import hardware
from tests.reporting.report.browser import Browser, missing_programs, open_browser, wait_until

try:
    import plotly.graph_objects as plotly_objects
    from plotly.offline import get_plotlyjs
except ModuleNotFoundError:
    sys.exit("plotly is not installed: pip install plotly==7.1.0")

RESULTS = ROOT / "benchmarks/results/report_libraries.json"
SIZES, ROWS, REPEATS = (5_000, 100_000), (100, 800), 5
PALETTE = Category10[10]
WIDTH, HEIGHT, MARKER = 900, 700, 6  # pixels
PATIENCE = 100.0  # seconds that a page may take
LASSO_LIMIT = 50.0  # seconds after which a lasso is given up, and not tried again
LASSO_STEPS = 24  # moves of the mouse around a circle of a quarter of the map's side
NEAR = 8  # pixels from the mouse within which the hovered point lies
COLUMNS = ("cluster", "terms", "size", "influence", "kept")

# What every map's page offers the benchmark, whatever draws it.
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


# --- Pages ----------------------------------------------------------------------------------------


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


# --- Measurements ---------------------------------------------------------------------------------


def shot(browser: Browser) -> np.ndarray:
    """What the window shows, (height, width, 3)."""
    data = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB"))


def shows_palette(pixels: np.ndarray) -> bool:
    """Whether every colour of the palette is there, up to rounding."""
    wanted = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in PALETTE])
    colours = np.unique(pixels.reshape(-1, 3), axis=0).astype(int)
    return bool((np.abs(colours[:, None] - wanted).max(axis=2).min(axis=0) <= 2).all())


def seconds_until(browser: Browser, started: float, seen: Callable[[np.ndarray], bool]) -> float:
    """Seconds from the start to the end of the first screenshot that shows it."""
    seconds: list[float] = []

    def look() -> bool:
        pixels = shot(browser)
        seconds.append(time.perf_counter() - started)
        return seen(pixels)

    wait_until(look, lambda: "the page does not show what it should", PATIENCE)
    return seconds[-1]


def checked(browser: Browser) -> None:
    """Stop if the page asked for anything or said an error."""
    if found := browser.requests() + browser.console_errors():
        raise SystemExit(f"a page is not on its own: {found}")


def heap_megabytes(browser: Browser) -> float:
    """What scripts hold, arrays included, after what is unused is gone."""
    browser.driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    use = browser.driver.execute_cdp_cmd("Runtime.getHeapUsage", {})
    return (use["usedSize"] + use["backingStorageSize"]) / 1e6


def measure_map(
    browser: Browser, file: Path, points: Points, *, lasso: bool = True
) -> dict[str, float]:
    """One visit: seconds until drawn, recoloured, hovered, counted; megabytes; what it showed."""
    started = time.perf_counter()
    browser.open(file)
    browser.run("return ready")
    row = {"drawn_seconds": seconds_until(browser, started, shows_palette)}
    row["heap_megabytes"] = heap_megabytes(browser)
    row |= measure_hover(browser, points)
    browser.hover((WIDTH + 50, HEIGHT + 50))
    before = shot(browser)
    started = time.perf_counter()
    browser.run("return recolour()")
    row["recoloured_seconds"] = seconds_until(
        browser, started, lambda now: not np.array_equal(now, before) and shows_palette(now)
    )
    if lasso:
        row |= measure_lasso(browser, points)
    checked(browser)
    return row


def measure_hover(browser: Browser, points: Points) -> dict[str, float]:
    """Seconds until the photograph is there, and whether it is that of a point at the mouse."""
    x, y = browser.run("return pixel(...arguments)", float(points.x[7]), float(points.y[7]))
    started = time.perf_counter()
    browser.hover((x, y))
    address, caption = browser.wait_for("return hovered()")
    seconds = time.perf_counter() - started
    number = int(caption.split()[1])
    at = browser.run(
        "return pixel(...arguments)", *map(float, (points.x[number], points.y[number]))
    )
    wanted = browser.run("return PHOTOGRAPHS[arguments[0]]", int(points.group[number]))
    right = np.hypot(at[0] - x, at[1] - y) <= NEAR and address == wanted
    return {
        "hover_seconds": seconds,
        "hover_right_image": float(right),
        "hover_caption_as_text": float(caption == points.caption[number]),
    }


def measure_lasso(browser: Browser, points: Points) -> dict[str, float]:
    """Seconds of a drag around the middle, from its end to the count, and the count's error."""
    angles = np.linspace(0, 2 * np.pi, LASSO_STEPS + 1)
    corners = 0.5 + 0.25 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    path = browser.run("return arguments[0].map(corner => pixel(...corner))", corners.tolist())
    started = time.perf_counter()
    if not drag_within_limit(browser, path):
        return {"lasso_seconds": np.inf}
    browser.wait_for("return count")
    seconds = time.perf_counter() - started
    painted = seconds_until(browser, started, lambda _: True)
    count, milliseconds = browser.run("return [count, counted - released]")
    inside = Polygon(corners).contains_points(np.stack([points.x, points.y], axis=1)).sum()
    return {
        "lasso_seconds": seconds,
        "lasso_painted_seconds": painted,
        "lasso_count_seconds": max(milliseconds, 0) / 1000,  # 0 where the last move had told
        "lasso_count_error": abs(count - inside) / inside,
    }


def drag_within_limit(browser: Browser, path: Sequence[Sequence[float]]) -> bool:
    """Drag the mouse move by move; false, and the drag left there, if it takes too long."""

    def send(kind: str, place: Sequence[float], buttons: int = 1) -> None:
        event = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event | {"buttons": buttons})

    started = time.perf_counter()
    send("mousePressed", path[0])
    for place in path[1:]:
        send("mouseMoved", place)
        if time.perf_counter() - started > LASSO_LIMIT:
            return False
    send("mouseReleased", path[-1], 0)
    return True


def measure_empty(browser: Browser, file: Path) -> dict[str, float]:
    """What opening, a screenshot and the lasso's drag take where there is nothing."""
    started = time.perf_counter()
    browser.open(file)
    row = {"drawn_seconds": seconds_until(browser, started, lambda _: True)}
    started = time.perf_counter()
    drag_within_limit(browser, [(300 + 5 * step, 300) for step in range(LASSO_STEPS + 1)])
    row["lasso_seconds"] = time.perf_counter() - started
    return row | {"heap_megabytes": heap_megabytes(browser)}


def measure_table(browser: Browser, file: Path) -> dict[str, float]:
    """One visit: seconds until drawn and sorted by a click, and what is there for whom."""
    started = time.perf_counter()
    browser.open(file)
    browser.run("return ready")
    browser.wait_for("return labels().length")
    row = {"drawn_seconds": seconds_until(browser, started, lambda _: True)}
    row |= accessible_roles(browser)
    head = browser.run(
        "const heads = [...elements(document)].filter(e => e.textContent === 'cluster');"
        "const box = heads.at(-1).getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]"
    )
    started = time.perf_counter()
    browser.click(tuple(head))
    browser.wait_for("return labels()[0] === 'row-0000'")
    row["sorted_seconds"] = seconds_until(browser, started, lambda _: True)
    browser.open(file)
    browser.run("return ready")
    browser.wait_for("return labels().length")
    row["sorted_by_keyboard"] = float(sorts_by_keyboard(browser))
    browser.open(file, media="print")
    browser.run("return ready")
    browser.wait_for("return labels().length")
    row["rows_to_print"] = browser.run("return labels().length")
    checked(browser)
    return row


def accessible_roles(browser: Browser) -> dict[str, float]:
    """How many of each the browser tells a screen reader of."""
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    return {
        "told_tables": sum(role in ("table", "grid") for role in roles),
        "told_heads": roles.count("columnheader"),
        "told_rows": roles.count("row"),
    }


def sorts_by_keyboard(browser: Browser) -> bool:
    """Whether Tab, arrows, Enter and the space bar alone ever bring the first row to the top."""
    for _ in range(2 * len(COLUMNS)):
        browser.press("Tab")
        for key in ("Enter", "Space", "ArrowUp", "Enter"):
            browser.press(key)
            if browser.run("return labels()[0]") == "row-0000":
                return True
    return False


# --- The table ------------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float] | str]:
    """Median, lowest and highest of each measure, or that it took too long."""
    summary: dict[str, list[float] | str] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [float(row[name]) for row in rows if name in row]
        summary[name] = [round(float(f(values)), 4) for f in (np.median, np.min, np.max)]
        if np.inf in values:
            summary[name] = f"given up after {LASSO_LIMIT:.0f} seconds"
    return summary


def print_table(summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Bytes without data of each page, then its medians with their range."""
    for name, row in summary.items():
        print(f"\n{name}")
        for measure, value in row.items():
            text = f"{value:9,}" if isinstance(value, int) else value
            if isinstance(value, list):
                text = f"{value[0]:9.3f}  ({value[1]:.3f} to {value[2]:.3f})"
            print(f"  {measure:22} {text}")


class Job(NamedTuple):
    """A page on the disk, what measures it, and what that has to know of its data."""

    measure: Callable[..., dict[str, float]]
    file: Path
    known: tuple[Any, ...] = ()


def write_pages(folder: Path, rng: np.random.Generator, images: Sequence[str]) -> dict[str, Job]:
    """Every page, by its name in the results."""
    jobs: dict[str, Job] = {}

    def write(name: str, case: Case, data: Any, measure: Callable[..., Any], *known: Any) -> None:
        file = folder / f"{len(jobs)}.html"
        file.write_text(page(case, data, images), encoding="utf-8")
        jobs[name] = Job(measure, file, known)

    for n in SIZES:
        points = draw_points(n, rng)
        for name, case in map_cases().items():
            write(f"{name}, {n} points", case, points, measure_map, points)
    for n in ROWS:
        rows = draw_rows(n, rng)
        for name, case in table_cases().items():
            write(f"{name}, {n} rows", case, rows, measure_table)
    write("empty page", Case([], lambda _: "null", "", lambda _: ""), None, measure_empty)
    return jobs


def measure_all(folder: Path, repeats: int) -> tuple[dict[str, Any], str]:
    """Every page's measures, and what draws WebGL.

    Before the first round each small page is opened once: the browser reads its own files.
    """
    rng = np.random.default_rng(0)
    images = photographs(rng)
    jobs = write_pages(folder, rng, images)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    turns = [(name, turn) for turn in range(repeats) for name in order(jobs, turn)]
    with open_browser(folder / "downloads", patience=PATIENCE) as browser:
        for name in jobs:
            if str(max(SIZES)) not in name:
                browser.open(jobs[name].file)
        for name, _ in tqdm(turns, disable=None):
            job = jobs[name]
            hopeless = any(row.get("lasso_seconds") == np.inf for row in rows[name])
            options = {"lasso": False} if hopeless else {}
            rows[name].append(job.measure(browser, job.file, *job.known, **options))
        renderer = browser.run(
            "const gl = document.createElement('canvas').getContext('webgl');"
            "const names = gl && gl.getExtension('WEBGL_debug_renderer_info');"
            "return names ? gl.getParameter(names.UNMASKED_RENDERER_WEBGL) : 'no WebGL'"
        )
    sizes = bytes_without_data(rng, images)
    return {
        name: {"bytes_without_data": sizes.get(name.rpartition(", ")[0], 0), **summarise(of)}
        for name, of in rows.items()
    }, renderer


def order(names: Mapping[str, Any], turn: int) -> list[str]:
    """Whose turn it is, one after another: each round the other way round."""
    return list(reversed(names)) if turn % 2 else list(names)


def bytes_without_data(rng: np.random.Generator, images: Sequence[str]) -> dict[str, int]:
    """Bytes of each page with no point, no row and no photograph."""
    sizes = {}
    for cases, data in ((map_cases(), draw_points(0, rng)), (table_cases(), draw_rows(0, rng))):
        for name, case in cases.items():
            sizes[name] = len(page(case, data, [""] * len(images)).encode())
    return sizes


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds that count")
    parser.add_argument("--result_file", type=Path, default=RESULTS)
    args = parser.parse_args()
    if missing := missing_programs():
        sys.exit(missing)
    with tempfile.TemporaryDirectory() as folder:
        summary, renderer = measure_all(Path(folder), args.repeats)
    results = {
        "command": "python benchmarks/report_libraries.py",
        "hardware": hardware() | {"webgl": renderer},
        "versions": {name: importlib.metadata.version(name) for name in ("bokeh", "plotly")},
        "repeats": args.repeats,
        "values": "median, lowest, highest",
        "pages": summary,
    }
    args.result_file.write_text(json.dumps(results, indent=2) + "\n")
    print_table(summary)


if __name__ == "__main__":
    main()

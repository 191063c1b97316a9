"""Bokeh beside Plotly for the report's map, and Bokeh's DataTable beside a plain HTML table.

    pip install plotly==7.1.0
    python benchmarks/report_libraries.py

Each page is one file with the library's script from the installed package: random points in ten
colours, a lasso that counts, a hover with a photograph and a caption that holds markup. Headless
Chromium opens it from disk with the network off; a page that asks for anything, or says an error,
stops the benchmark. Pages take turns in five rounds, so that what else the machine does hits all
alike, each visit in a browser of its own; given are medians, in brackets the lowest and the
highest, with the load of the machine that the visits met. A page counts as drawn when a screenshot
shows all ten colours; an empty page tells what opening, the screenshot and the mouse take by
themselves. The results were made without a graphics card: WebGL is drawn by the processor, as in a
remote desktop, and would be faster on most laptops.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.path import Path as Polygon
from PIL import Image
from selenium.common.exceptions import TimeoutException
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from report_pages import (
    COLUMNS,
    HEIGHT,
    PALETTE,
    WIDTH,
    Case,
    Points,
    draw_points,
    draw_rows,
    map_cases,
    page,
    photographs,
    table_cases,
)

from artifacts.provenance import hardware
from tests.reporting.report.browser import Browser, missing_programs, open_browser, wait_until

RESULTS = ROOT / "benchmarks/results/report_libraries.json"
SIZES, ROWS, REPEATS = (5_000, 100_000), (100, 800), 5
PATIENCE = 60.0  # seconds that a page may take
LASSO_LIMIT = 50.0  # seconds after which a lasso is given up, and not tried again
LASSO_STEPS = 24  # moves of the mouse around a circle of a quarter of the map's side
NEAR = 8  # pixels from the mouse within which the hovered point lies

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
    checked(browser)
    if lasso:
        row |= measure_lasso(browser, points)
    if row.get("lasso_seconds") != np.inf:  # a page that hangs answers nothing more
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
    """Drag the mouse move by move; false, and the drag is left there, if it takes too long."""

    def send(kind: str, place: Sequence[float], buttons: int = 1) -> None:
        event = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event | {"buttons": buttons})

    started = time.perf_counter()
    send("mousePressed", path[0])
    for place in path[1:]:
        try:
            send("mouseMoved", place)
        except TimeoutException:  # one move alone took longer than PATIENCE
            return False
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
    """One visit: seconds until drawn and sorted by a click, and what is there for whom.

    Rows that the page does not hold when it is printed cannot come out of the printer.
    """
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
    """Every page's measures, and what draws WebGL; each visit has a browser of its own."""
    rng = np.random.default_rng(0)
    images = photographs(rng)
    jobs = write_pages(folder, rng, images)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    turns = [(name, turn) for turn in range(repeats) for name in order(jobs, turn)]
    renderer = ""
    for visit, (name, _) in enumerate(tqdm(turns, disable=None)):
        job = jobs[name]
        hopeless = any(row.get("lasso_seconds") == np.inf for row in rows[name])
        options = {"lasso": False} if hopeless else {}
        with open_browser(folder / f"downloads_{visit}", patience=PATIENCE) as browser:
            renderer = renderer or webgl_renderer(browser)
            row = job.measure(browser, job.file, *job.known, **options)
        rows[name].append(row | {"load": os.getloadavg()[0]})
    sizes = bytes_without_data(rng, images)
    return {
        name: {"bytes_without_data": sizes.get(name.rpartition(", ")[0], 0), **summarise(of)}
        for name, of in rows.items()
    }, renderer


def webgl_renderer(browser: Browser) -> str:
    """What draws WebGL, as the browser names it."""
    return browser.run(
        "const gl = document.createElement('canvas').getContext('webgl');"
        "const names = gl && gl.getExtension('WEBGL_debug_renderer_info');"
        "return names ? gl.getParameter(names.UNMASKED_RENDERER_WEBGL) : 'no WebGL'"
    )


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
    if find_spec("plotly") is None:
        sys.exit("plotly is not installed: pip install plotly==7.1.0")
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

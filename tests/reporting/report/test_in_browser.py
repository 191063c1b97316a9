"""The report as a reader has it: opened from disk, in a real browser, with the network off."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from selenium.webdriver.remote.webelement import WebElement

from reporting.report import within, write
from tests.reporting.report import runs
from tests.reporting.report.browser import Browser
from tests.small_models import narrow

READY = "return document.documentElement.dataset.ready"
# Where a point of the map is on the screen.
PLACE = """
const plot = Bokeh.documents[0].roots()[0], view = Bokeh.index.find_one_by_id(plot.id);
const data = plot.renderers[0].data_source.data, area = document.querySelector('#plot');
area.scrollIntoView({block: 'center', behavior: 'instant'});
const box = area.getBoundingClientRect(), frame = view.frame;
return [box.x + frame.x_scale.compute(data.x[arguments[0]]),
        box.y + frame.y_scale.compute(data.y[arguments[0]])];
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.data_of(tmp_path_factory.mktemp("data") / "photographs")


@pytest.fixture(scope="module")
def output(
    data: Path, tmp_path_factory: pytest.TempPathFactory, browser: Browser
) -> Iterator[Path]:
    """A finished run; without a browser none is made."""
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        folder = tmp_path_factory.mktemp("run") / "out"
        assert runs.run(data, folder) == 0
        yield folder


@pytest.fixture(scope="module")
def ledger(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "stage3" / "ledger.parquet")


@pytest.fixture
def page(browser: Browser, output: Path) -> Browser:
    return opened(browser, output)


def opened(browser: Browser, output: Path, **how: object) -> Browser:
    browser.open(output / "results" / "report.html", **how)  # type: ignore[arg-type]
    browser.wait_for(READY)
    return browser


def captions(page: Browser, selector: str) -> list[str]:
    return [str(text) for text in page.run(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
    )]  # fmt: skip


def count(page: Browser) -> int:
    return int(page.find("#count").text.split(" of ")[0].replace(",", ""))


def listed(ledger: pd.DataFrame) -> pd.DataFrame:
    """What the page lists at first: the training split, the caption with a NUL among it."""
    return ledger[ledger["split"] == "train"]


def trained(ledger: pd.DataFrame) -> pd.DataFrame:
    return ledger[(ledger["split"] == "train") & (ledger["status"] == "read")]


def test_it_opens_without_an_error_or_a_request(page: Browser) -> None:
    assert page.console_errors() == []
    assert page.requests() == []


def test_what_strangers_wrote_is_shown_and_not_obeyed(page: Browser, ledger: pd.DataFrame) -> None:
    page.run("for (const b of document.querySelectorAll('.cards + button')) b.click()")
    shown = captions(page, "#gallery .card .caption")
    assert sorted(shown) == sorted(listed(ledger)["caption"])
    for sign in ("onerror", "</script>", "\u202e", "NUL \ufffd"):
        assert any(sign in text for text in shown)
    assert page.run("return window.hacked") is None
    assert page.run("return document.querySelectorAll('#gallery b, #gallery script').length") == 0
    odd = trained(ledger)[trained(ledger)["key"].str.contains("<i>", regex=False)].iloc[0]
    opened(page, Path(page.run("return location.pathname")).parents[1], fragment=odd["id"])
    assert page.find("#told .key").text == odd["key"]
    assert page.console_errors() == []


def test_the_map_shows_a_photograph_under_the_mouse_and_a_story_at_a_click(
    page: Browser, ledger: pd.DataFrame
) -> None:
    assert not page.find("#card").is_displayed()
    x, y = page.run(PLACE, 7)
    page.hover((x, y))
    page.wait_for("return !document.querySelector('#card').hidden")
    hovered = page.find("#card .caption").text
    assert hovered in trained(ledger)["caption"].tolist()
    assert page.wait_for("return document.querySelector('#card img').naturalWidth") > 30
    page.click((x, y))
    page.wait_for("return document.querySelector('#story').open")
    told = trained(ledger).set_index("id").loc[page.find("#told code").text]
    assert told["caption"] in captions(page, "#told .caption")
    assert page.run("return location.hash") == f"#{told.name}"


def test_a_card_tells_what_explain_tells_and_its_address_can_be_sent(
    page: Browser, ledger: pd.DataFrame, output: Path
) -> None:
    page.click(page.find("#gallery .dropped .card"))
    pair = trained(ledger).set_index("id").loc[page.find("#told code").text]
    assert pair["decision"] == "dropped"
    lines = dict(zip(captions(page, "#told dt"), captions(page, "#told dd"), strict=True))
    assert lines["decision"] == f"dropped: {pair['decision_reason']}"
    assert lines["value"].startswith(f"{pair['value']:+.2f} = influence ")
    assert f"CLIP score {pair['clip_score']:.3f}" in lines["agreement"]
    assert page.wait_for("return document.querySelectorAll('#told .row .card').length") >= 8
    page.press("Escape")
    page.wait_for("return location.hash === ''")
    colleague = opened(page, output, fragment=str(pair.name)[:8].upper())
    assert colleague.find("#told code").text == pair.name


def test_a_lasso_counts_and_lists_the_ids(page: Browser, ledger: pd.DataFrame) -> None:
    page.run(PLACE, 0)
    left, top, width, height = page.run(
        "const box = document.querySelector('#plot').getBoundingClientRect();"
        "return [box.x, box.y, box.width, box.height]"
    )
    corners = [(left + 8, top + 40), (left + width - 8, top + 40)]
    corners += [(left + width - 8, top + height - 8), (left + 8, top + height - 8)]
    page.drag([*corners, corners[0]])
    assert count(page) == len(trained(ledger))
    middle = left + width / 2
    page.drag([(middle, y) if x > middle else (x, y) for x, y in [*corners, corners[0]]])
    page.wait_for(
        "return Number(document.querySelector('#count').textContent.split(' ')[0]) < arguments[0]",
        len(trained(ledger)),
    )
    ids = page.run("return document.querySelector('#ids textarea').value").split("\n")
    assert 0 < len(ids) == count(page)
    assert set(ids) < set(trained(ledger)["id"])
    kept = int((trained(ledger).set_index("id").loc[ids]["decision"] == "kept").sum())
    assert f"{kept} kept" in page.find("#count").text


def test_held_out_pairs_are_shown_by_trust_and_cannot_be_marked(
    page: Browser, ledger: pd.DataFrame
) -> None:
    page.click(view(page, "Held out"))
    held_out = ledger[ledger["split"] == "validation"]
    n_trusted = int(held_out["trusted"].sum())
    heads = [f"Trusted ({n_trusted})", f"Not trusted ({len(held_out) - n_trusted})"]
    assert captions(page, "#gallery h3") == heads
    page.click(page.find("#gallery .card"))
    page.press("k", "Escape")
    assert page.find("#marks").text == "0 marked keep, 0 marked drop."


def test_search_and_filters_find(page: Browser, ledger: pd.DataFrame) -> None:
    field = page.find("[name=search]")
    page.press("/")
    page.press(*"BICYCLE")
    wanted = trained(ledger)["caption"].str.contains("bicycle")
    assert count(page) == int(wanted.sum())
    assert field.get_attribute("value") == "BICYCLE"
    page.press(*" the")
    both = wanted & trained(ledger)["caption"].str.contains("the")
    assert count(page) == int(both.sum()) < int(wanted.sum())
    page.press(*(["Backspace"] * 4))
    page.run(
        "const form = document.querySelector('#filters'); form.decision.value = 'dropped';"
        "form.dispatchEvent(new Event('input'))"
    )
    assert count(page) == int((wanted & (trained(ledger)["decision"] == "dropped")).sum())
    page.click(page.find("#filters button"))
    assert count(page) == len(listed(ledger))


def test_views_sort_group_and_compare(page: Browser, ledger: pd.DataFrame) -> None:
    page.click(view(page, "Most harmful"))
    dropped = trained(ledger)[trained(ledger)["decision"] == "dropped"]
    harmful = dropped.sort_values("influence")["caption"].tolist()
    assert captions(page, "#gallery .dropped .caption")[: len(harmful)] == harmful
    page.click(view(page, "By reason"))
    counts = trained(ledger)["decision_reason"].value_counts()
    assert captions(page, "#gallery > div > h3")[0] == f"{counts.index[0]} ({counts.iloc[0]})"
    page.click(page.find(".matrix tbody button"))
    kept, other = captions(page, "#gallery h3")
    assert re.fullmatch(r"InfluenceSpace keeps, Random does not \(\d+\)", kept)
    assert re.fullmatch(r"Random keeps, InfluenceSpace does not \(\d+\)", other)


def view(page: Browser, name: str) -> WebElement:
    return next(b for b in page.find_all("#views button") if b.text == name)


def test_tables_sort_and_filter_and_a_row_opens_the_cluster(
    page: Browser, ledger: pd.DataFrame
) -> None:
    sizes = trained(ledger)["cluster"].value_counts()
    header = next(b for b in page.find_all("table.sortable thead button") if b.text == "pairs")
    page.click(header)
    column = "table.sortable[data-what=cluster] tbody td:nth-child(4)"
    assert [int(text) for text in captions(page, column)] == sorted(sizes)
    assert page.run("return arguments[0].parentElement.ariaSort", header) == "ascending"
    page.click(header)
    assert [int(text) for text in captions(page, column)] == sorted(sizes, reverse=True)
    page.click(page.find(".tools input"))
    page.press(*"neutral")
    rows = page.run(
        "return [...document.querySelectorAll('[data-what=cluster] tbody tr')]"
        ".map((row) => [row.hidden, row.cells[2].textContent])"
    )
    assert all(hidden == (category != "neutral") for hidden, category in rows)
    page.run("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))",
             page.find(".tools input"))  # fmt: skip
    row = page.find("table.sortable tbody button")
    page.click(row)
    assert count(page) == sizes[int(row.get_attribute("textContent") or "")]
    page.click(page.find_all("#clusters summary")[1])
    cell = page.find("table[data-what=cell] tbody button")
    page.click(cell)
    number = int(cell.get_attribute("textContent") or "")
    assert count(page) == (trained(ledger)["cell"] == number).sum() > 0
    assert f"in cell {number}" in page.find("#count").text


def test_the_keyboard_alone_reaches_everything(page: Browser, ledger: pd.DataFrame) -> None:
    wanted = page.run(
        "const all = [...document.querySelectorAll('a, button, input, select, summary, textarea')]"
        ".filter((e) => e.checkVisibility()); all.forEach((e, i) => { e.dataset.stop = i; });"
        "return all.length"
    )
    stops, reached = {str(i) for i in range(wanted)}, set[str]()
    for _ in range(3 * wanted):  # photographs come into tables as these come into sight
        page.press("Tab")
        reached.add(page.run("return document.activeElement.dataset.stop"))
        if reached >= stops:
            break
    assert reached >= stops
    page.run("document.querySelector('#gallery .kept .card').focus()")
    page.press("Enter")
    first = page.find("#told code").text
    page.press("ArrowRight")
    page.wait_for("return document.querySelector('#told code').textContent !== arguments[0]", first)
    page.press("ArrowLeft", "d")
    assert page.find("[data-mark=drop]").get_attribute("aria-pressed") == "true"
    page.press("u", "Escape")
    assert page.run("return document.querySelector('#story').open") is False
    assert first in trained(ledger)["id"].tolist()


def test_marks_go_out_and_come_back_in(
    page: Browser, ledger: pd.DataFrame, data: Path, output: Path, tmp_path: Path
) -> None:
    chosen = {}
    for side, key, word in ((".dropped", "k", "keep"), (".kept", "d", "drop")):
        page.click(page.find(f"#gallery {side} .card"))
        chosen[page.find("#told code").text] = word
        page.press(key, "Escape")
    assert page.find("#marks").text == "1 marked keep, 1 marked drop."
    page.reload()
    page.wait_for(READY)
    assert page.find("#marks").text == "1 marked keep, 1 marked drop."  # they are still there
    page.click(page.find("#download"))
    file = page.wait_for_download("overrides.csv")
    with open(file, encoding="utf-8", newline="") as opened_file:
        rows = list(csv.DictReader(opened_file))
    assert {row["id"]: row["decision"] for row in rows} == chosen
    again = tmp_path / "again"
    shutil.copytree(output, again)
    assert runs.run(data, again, "--load_saved", "--overrides", str(file)) == 0
    after = pd.read_parquet(again / "stage3" / "ledger.parquet").set_index("id")
    fate = {"keep": "kept", "drop": "dropped"}
    assert {i: after.loc[i, "decision"] for i in chosen} == {i: fate[w] for i, w in chosen.items()}
    assert (after["decision"] == "kept").sum() == (ledger["decision"] == "kept").sum()
    opened(page, again)  # whose reviewer goes on where they stopped
    assert page.find("#marks").text == "1 marked keep, 1 marked drop."
    assert sum("by the reviewer's say" in text for text in captions(page, "[name=reason] *")) == 2


def test_colours_follow_the_system_and_paper_has_no_buttons(browser: Browser, output: Path) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened(browser, output).run(paper)
    dark = opened(browser, output, dark=True).run(paper)
    assert [sum(map(int, re.findall(r"\d+", c))) > 380 for c in (light, dark)] == [True, False]
    opened(browser, output, media="print")
    assert not browser.find("#filters").is_displayed()
    assert browser.find("#answer table").is_displayed()


@pytest.mark.parametrize("width", [400, 900, 1440])
def test_nothing_is_wider_than_the_page(browser: Browser, output: Path, width: int) -> None:
    opened(browser, output, width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_without_photographs_none_are_in_it(
    browser: Browser, data: Path, output: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(output, folder)
    assert runs.run(data, folder, "--load_saved", "--report_images", "0") == 0
    opened(browser, folder)
    assert browser.run("return document.querySelectorAll('#gallery img').length") == 0
    assert captions(browser, "#gallery .photo")[0] == "no photograph"
    assert browser.console_errors() == []


def test_what_is_too_much_for_a_page_lies_beside_it(
    browser: Browser,
    ledger: pd.DataFrame,
    data: Path,
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"N_TRAINING": 20, "N_OTHERS": 6, "N_EXTREMES": 1, "N_IN_FAMILIES": 4}
    for name, value in limits.items():
        monkeypatch.setattr(within, name, value)
    monkeypatch.setattr(write, "CHUNK", 16)
    monkeypatch.setattr(write, "EMBEDDED_BYTES", 8000)
    folder = tmp_path / "out"
    shutil.copytree(output, folder)
    assert runs.run(data, folder, "--load_saved") == 0
    opened(browser, folder)
    here = browser.run("return document.querySelector('#ids textarea').value").split("\n")
    assert len(here) == 20
    assert "26 of 96 pairs are in this page" in browser.find("#rest").text
    away = trained(ledger)[~trained(ledger)["id"].isin(here)].iloc[0]
    opened(browser, folder, fragment=away["id"])
    assert browser.wait_for("return document.querySelector('#told code').textContent") == away["id"]
    assert browser.wait_for("return document.querySelector('#told img').naturalWidth") > 30
    browser.press("Escape")
    browser.click(browser.find("#rest button"))
    browser.wait_for("return document.querySelector('#rest').textContent === ''")
    assert count(browser) == len(listed(ledger))
    beside = (folder / "results" / "report_files").as_uri()
    asked = browser.requests()
    assert len(asked) > 6
    assert all(address.startswith(beside) for address in asked)
    assert browser.console_errors() == []
    assert runs.run(data, folder, "--load_saved", "--no_report") == 0  # nothing of it is left
    assert not list((folder / "results").glob("report*"))

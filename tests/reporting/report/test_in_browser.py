"""The report as a reader has it: opened from disk, in a real browser, with the network off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from selenium.webdriver.remote.webelement import WebElement

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


def trained(ledger: pd.DataFrame) -> pd.DataFrame:
    return ledger[(ledger["split"] == "train") & (ledger["status"] == "read")]


def test_it_opens_without_an_error_or_a_request(page: Browser) -> None:
    assert page.console_errors() == []
    assert page.requests() == []


def test_what_strangers_wrote_is_shown_and_not_obeyed(page: Browser, ledger: pd.DataFrame) -> None:
    page.run("for (const b of document.querySelectorAll('.cards + button')) b.click()")
    shown = captions(page, "#gallery .card .caption")
    assert sorted(shown) == sorted(trained(ledger)["caption"])
    assert any("onerror" in text for text in shown)
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
    page.click(page.find("#gallery .right .card"))
    pair = trained(ledger).set_index("id").loc[page.find("#told code").text]
    assert pair["decision"] == "dropped"
    lines = dict(zip(captions(page, "#told dt"), captions(page, "#told dd"), strict=True))
    assert lines["decision"] == f"dropped: {pair['decision_reason']}"
    assert lines["value"].startswith(f"{pair['value']:+.2f} = influence ")
    assert f"CLIP score {pair['clip_score']:.3f}" in lines["agreement"]
    assert page.wait_for("return document.querySelectorAll('#told .row .card').length") >= 8
    page.press("Escape")
    assert page.run("return location.hash") == ""
    colleague = opened(page, output, fragment=str(pair.name))
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


def test_search_and_filters_find(page: Browser, ledger: pd.DataFrame) -> None:
    field = page.find("[name=search]")
    page.press("/")
    page.press(*"BICYCLE")
    wanted = trained(ledger)["caption"].str.contains("bicycle")
    assert count(page) == int(wanted.sum())
    assert field.get_attribute("value") == "BICYCLE"
    page.run(
        "const form = document.querySelector('#filters'); form.decision.value = 'dropped';"
        "form.dispatchEvent(new Event('input'))"
    )
    assert count(page) == int((wanted & (trained(ledger)["decision"] == "dropped")).sum())
    page.click(page.find("#filters button"))
    assert count(page) == len(trained(ledger))


def test_views_sort_group_and_compare(page: Browser, ledger: pd.DataFrame) -> None:
    page.click(view(page, "Most harmful"))
    first = page.find("#gallery .right .card").get_attribute("aria-label")
    dropped = trained(ledger)[trained(ledger)["decision"] == "dropped"]
    assert str(first).startswith(dropped.sort_values("influence").iloc[0]["caption"])
    page.click(view(page, "By reason"))
    counts = trained(ledger)["decision_reason"].value_counts()
    assert captions(page, "#gallery h3")[0] == f"{counts.index[0]} ({counts.iloc[0]})"
    page.click(page.find(".matrix tbody button"))
    kept, other = captions(page, "#gallery h4")
    assert re.fullmatch(r"Kept by InfluenceSpace, not by Random \(\d+\)", kept)
    assert re.fullmatch(r"Kept by Random, not by InfluenceSpace \(\d+\)", other)


def view(page: Browser, name: str) -> WebElement:
    return next(b for b in page.find_all("#views button") if b.text == name)

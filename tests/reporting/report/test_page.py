"""The page as HTML: what stands on it, what strangers wrote, and what it asks of a reader."""

from __future__ import annotations

import base64
import io
import math
import posixpath
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import PIL.Image
import pytest

from reporting.report.page import PageData, figure_address, html, overlaps, render, standings
from reporting.report.pairs import INFLUENCE_ALONE
from reporting.summary import Summary
from tests.helpers import encode
from tests.reporting.test_summary import NO_STAGE_3, SUMMARIES, make_summary

NOTHING = PageData({}, [], [], {})
FIGURE = encode(PIL.Image.new("RGB", (40, 20), "white"))
VOID = {"meta", "link", "input", "img", "br", "hr"}


class Reader(HTMLParser):
    """Elements in their order, open ones closed; text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(summary: Summary, data: PageData = NOTHING) -> Reader:
    return Reader(render(summary, data, {}))


def figures_of(summary: Summary) -> dict[str, bytes]:
    """The summary's figures, as they are linked from `results/`."""
    return {posixpath.relpath(path, "results"): FIGURE for path in summary.figures}


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_page_is_whole(name: str) -> None:
    summary = SUMMARIES[name]
    page = page_of(summary)
    text = " ".join(page.text)
    assert not re.search(r"\b(nan|None|inf|undefined)\b", text)
    for warning in summary.run["warnings"]:
        told = "training pairs kept" if summary.is_curated else summary.run["encoder"]
        assert text.index(warning[:30]) < text.index(told)
    assert ("training pairs kept" in text) == summary.is_curated
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        target = str(link["href"])
        assert target[1:] in ids if target.startswith("#") else "://" not in target


def test_a_run_that_has_not_curated_claims_no_pairs() -> None:
    page = page_of(make_summary(3, ("full", "random"), **NO_STAGE_3))
    text = " ".join(page.text)
    assert text.count("No training pairs were chosen: stage 3 was not run or loaded.") == 1
    assert not [a for a in page.all("div") if a.get("class") == "bar"]


def test_the_answer_by_hand() -> None:
    summary = make_summary(mean_recall={"influencespace": 40.0, "random": 30.0})
    for row in standings(summary):
        own = summary.metrics["same_epochs" if "epochs" in row["comparison"] else "same_steps"]
        other = "random" if row["other"] == "Random" else None
        if other:
            a, b = (own[m]["mean_recall"] for m in ("influencespace", other))
            error = math.sqrt((a["std"] ** 2 + b["std"] ** 2) / 3)
            assert row["difference"] == f"{a['mean'] - b['mean']:+.2f} ± {2 * error:.2f}"
            assert row["verdict"] == "beats it"
    rivals = [row["other"] for row in standings(summary)]
    assert sum("the best rival" in name for name in rivals) == len(rivals) / 3
    assert "Full data" in rivals
    assert standings(replace(summary, metrics={})) == []
    alone = make_summary(methods=("full", "influencespace", "random"))
    assert {row["other"] for row in standings(alone)} == {"Random", "Full data"}


def test_what_strangers_wrote_is_text() -> None:
    evil = "</script><img src=x onerror=alert(1)> & \"'"
    summary = make_summary(nasty=True)
    run = {**summary.run, "dataset": evil, "encoder": evil, "command": evil, "warnings": [evil]}
    row: dict[str, Any] = {
        **{"number": 0, "terms": evil, "category": "neutral", "size": 3, "influence": 0.5},
        **{"stderr": 0.1, "kept_share": 0.5, "weight": "1.00", "strip": [], "cluster": 0},
        **{"agreement": evil, "copies": "", "clip_score": "0.25"},
    }
    page = page_of(replace(summary, run=run), PageData({}, [row], [row], {}))
    assert not [a for a in page.all("img") if a.get("src") == "x"]
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert len(page.all("script")) == 1
    assert sum(evil in text for text in page.text) >= 5


def test_nothing_may_be_loaded_from_elsewhere() -> None:
    page = Reader(render(make_summary(), NOTHING, figures_of(make_summary())))
    policy = next(a for a in page.all("meta") if a.get("http-equiv"))["content"] or ""
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert {"connect-src", "font-src", "frame-src"}.isdisjoint(rules)  # the default holds
    assert "http" not in policy
    addresses = [a.get("src") or "" for tag, a in page.elements if tag in ("img", "script")]
    assert all(not address or address.startswith("data:") for address in addresses)


def test_figures_are_in_the_page_and_described() -> None:
    page = Reader(render(make_summary(), NOTHING, figures_of(make_summary())))
    assert len(page.all("img")) > 8
    for image in page.all("img"):
        assert str(image["src"]).startswith("data:image/webp")
        assert len(str(image["alt"])) > 20
        assert str(image["alt"]) != str(image.get("title"))


def test_a_figure_keeps_its_look_in_fewer_bytes() -> None:
    pixels = np.full((200, 300, 3), 255, dtype=np.uint8)
    pixels[50:60], pixels[:, 100:103] = (0, 114, 178), (40, 40, 40)
    png = encode(PIL.Image.fromarray(pixels))
    kind, text = figure_address(png).split(",")
    assert kind == "data:image/webp;base64"
    with PIL.Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert np.abs(np.asarray(image.convert("RGB"), dtype=int) - pixels).max() <= 3


def test_markdown_becomes_html_a_level_lower() -> None:
    made = html("## Title\n\n> [!WARNING]\n> **Beware**\n\n| a |\n| --: |\n| <b> |\n", {})
    assert "<h3>Title</h3>" in made
    assert "[!WARNING]" not in made
    assert "<strong>Beware</strong>" in made
    assert '<div class="wide"><table>' in made
    assert "&lt;b&gt;" in made


def test_who_keeps_what_others_drop() -> None:
    keeps = {
        "influencespace": np.array([1, 1, 0, 0], bool),
        "random": np.array([0, 1, 1, 0], bool),
        INFLUENCE_ALONE: np.array([1, 1, 1, 1], bool),
    }
    rows = overlaps(keeps)
    assert [[cell["n"] for cell in row["cells"]] for row in rows] == [
        [0, 1, 0],
        [1, 0, 0],
        [2, 2, 0],
    ]
    assert [row["label"] for row in rows] == ["InfluenceSpace", "Random", "influence alone"]


def test_doubts_about_influence_and_a_review_stand_in_the_answer() -> None:
    def answer_of(summary: Summary) -> str:
        return " ".join(" ".join(page_of(summary).text).split()).split("Data ")[0]

    summary = make_summary()
    quality = {**(summary.pair_quality or {}), "explained": -0.1}
    assert "explains nothing" in answer_of(replace(summary, pair_quality=quality))
    assert "explains nothing" not in answer_of(summary)
    reviewed = np.zeros(summary.n_train, dtype=np.int8)
    reviewed[:3] = (1, 1, -1)
    settings = {**summary.run["settings"], "overrides": "mine.csv"}
    after = replace(
        summary,
        pairs=replace(summary.pairs, reviewed=reviewed, n_overruled=1),
        run={**summary.run, "settings": settings},
    )
    told = "2 pairs kept and 1 dropped by the reviewer's say (--overrides mine.csv)"
    assert told in answer_of(after)
    assert "reviewer" not in answer_of(summary)

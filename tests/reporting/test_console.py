"""The end of a run on the terminal."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from baselines import METHODS
from reporting import console as console_module
from tests.reporting.test_figures import NASTY
from tests.reporting.test_summary import NO_STAGE_3, SUMMARIES, make_summary


@pytest.mark.parametrize("name", SUMMARIES)
def test_console_summary(name: str) -> None:
    text = console_module.console_summary(SUMMARIES[name])
    lines = text.splitlines()
    assert len(lines) <= 28
    assert not re.search(r"\b(nan|None)\b", text)
    assert any(line.startswith("Kept ") for line in lines) == SUMMARIES[name].is_curated
    assert "./output/results/results.md" in text


@pytest.mark.parametrize("methods", [("full", "random"), ()])
def test_a_run_that_has_not_curated_claims_no_pairs(methods: tuple[str, ...]) -> None:
    changes: dict[str, Any] = {} if methods else {"metrics": {}, "histories": {}}
    summary = make_summary(3, methods, **NO_STAGE_3, **changes)
    lines = console_module.console_summary(summary).splitlines()
    assert "No training pairs were chosen: stage 3 was not run or loaded." in lines
    assert lines[-1] == "Report: ./output/results/report.html"
    assert not any("kept" in line.lower() or "stage3/" in line for line in lines)


def test_console_summary_stays_short() -> None:
    summary = make_summary(methods=[f"method_{i}" for i in range(30)])
    summary.run["warnings"] = [NASTY] * 30
    lines = console_module.console_summary(summary).splitlines()
    assert len(lines) <= 28
    assert "! and 26 more warnings" in lines


def test_console_summary_says_who_lost() -> None:
    text = console_module.console_summary(make_summary(mean_recall={"influencespace": 25.0}))
    assert "Same number of epochs: InfluenceSpace loses to random by 3.20 points" in text


def test_what_methods_are_compared_with_is_always_shown() -> None:
    worst = {"influencespace": 1.0, "full": 0.5, "random": 0.1}
    text = console_module.console_summary(make_summary(methods=tuple(METHODS), mean_recall=worst))
    rows = [line for line in text.splitlines() if "±" in line]
    assert len(rows) == console_module.MAX_CONSOLE_METHODS < len(METHODS)
    for name in worst:
        assert any(row.startswith(METHODS[name].label) for row in rows)


def test_the_page_to_look_at_is_named_where_there_is_one() -> None:
    summary = make_summary()
    last = console_module.console_summary(summary).splitlines()[-3:]
    assert last == [
        "Results: ./output/results/results.md",
        "Look at the pairs: ./output/results/report.html",
        "Curated pairs: ./output/stage3/curated_indices.npy",
    ]
    settings = {**summary.run["settings"], "no_report": True}
    without = dataclasses.replace(summary, run={**summary.run, "settings": settings})
    assert "report.html" not in console_module.console_summary(without)

"""The end of a run on the terminal."""

from __future__ import annotations

import re

import pytest

from reporting import console as console_module
from tests.reporting.test_figures import (
    NASTY,
)
from tests.reporting.test_summary import SUMMARIES, make_summary


@pytest.mark.parametrize("name", SUMMARIES)
def test_console_summary(name: str) -> None:
    text = console_module.console_summary(SUMMARIES[name])
    lines = text.splitlines()
    assert len(lines) <= 28
    assert not re.search(r"\b(nan|None)\b", text)
    assert any(line.startswith("Kept ") for line in lines)
    assert "./output/results/results.md" in text


def test_console_summary_stays_short() -> None:
    summary = make_summary(methods=[f"method_{i}" for i in range(30)])
    summary.run["warnings"] = [NASTY] * 30
    lines = console_module.console_summary(summary).splitlines()
    assert len(lines) <= 28
    assert "! and 26 more warnings" in lines


def test_console_summary_says_who_lost() -> None:
    text = console_module.console_summary(make_summary(mean_recall={"influencespace": 25.0}))
    assert "Same number of epochs: InfluenceSpace loses to random by 3.20 points" in text

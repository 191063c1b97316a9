"""The section on what changed: its tables parsed, its warnings seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reporting.report.changes_page import changes_markdown
from tests.reporting.report.test_changes import OURS, THEIRS, cell, compared
from tests.reporting.report.test_other_run import pair
from tests.reporting.test_page import parsed_tables, table_with

RECALL: dict[str, Any] = {
    "same_epochs": {"influencespace": cell(32.0, 0.3), "random": cell(30.0, 0.3)},
    "same_steps": {"influencespace": cell(32.5, 0.3)},
}
THEIR_RECALL: dict[str, Any] = {
    "same_epochs": {"influencespace": cell(31.0, 0.3), "random": cell(29.9, 0.3)},
}


def test_settings_recall_and_pairs_are_tables(tmp_path: Path) -> None:
    page = changes_markdown(
        compared(
            tmp_path,
            settings={"rho": 0.5},
            their_settings={"rho": None},
            their_run={"encoder": "some/clip"},
            metrics=RECALL,
            their_metrics=THEIR_RECALL,
        )
    )
    assert page.startswith("## Changes against ")
    assert "WARNING" not in page
    assert table_with(page, "what differs") == [
        {"what differs": "encoder", "there": "some/clip", "here": "embedded"},
        {"what differs": "`--rho`", "there": "not set", "here": "0.5"},
    ]
    own, rival = table_with(page, "mean recall")
    assert own["same epochs: there"] == "31.00 ± 0.30"
    # sqrt(2 x 0.3^2 / 3) = 0.245
    assert own["same epochs: difference"] == "**+1.00 (4.1)**"
    assert rival["same epochs: difference"] == "+0.10 (0.4)"
    assert (own["same steps: there"], own["same steps: difference"]) == ("–", "–")
    assert rival["same steps: here"] == "–"
    kept, dropped, new = table_with(page, "training pairs")
    assert list(kept.values()) == ["kept there", "4", "1", "2"]
    assert list(dropped.values()) == ["dropped there", "3", "1", "0"]
    assert list(new.values()) == ["no training pair there", "1", "1", "–"]
    assert "9 training pairs in both runs: 3 moved in (dropped there, kept here), 1 moved" in page
    assert "dropped pair is -0.50 there and -0.50 here" in page
    assert "The weight of 2 pairs that both keep" in page
    assert "Training pairs there alone are here: 1 held out, 1 not seen." in page
    assert table_with(page, "moved")[0]["pairs"] == "2"
    assert table_with(page, "moved in")[1]["cluster (the most moved)"] == "0: dog, beach"


def test_other_test_pairs_are_a_warning_before_any_number(tmp_path: Path) -> None:
    ours = [*OURS, pair("test 3", "held out", split="test")]
    page = changes_markdown(
        compared(tmp_path, ours=ours, metrics=RECALL, their_metrics=THEIR_RECALL)
    )
    warning = "> [!WARNING]\n> **RECALL IS NOT COMPARABLE: the test pairs are not the same (2 there"
    assert page.index(warning) < page.index("|")
    assert "difference" not in page.lower()
    assert table_with(page, "mean recall")[0]["same epochs: here"] == "32.00 ± 0.30"


def test_nothing_that_differs_is_said(tmp_path: Path) -> None:
    page = changes_markdown(compared(tmp_path, ours=THEIRS))
    assert "No setting that can change a result differs." in page
    assert "11 training pairs in both runs: 0 moved in" in page
    assert "alone" not in page
    assert [t[0][0] for t in parsed_tables(page)] == ["training pairs"]


def test_parts_that_are_missing(tmp_path: Path) -> None:
    alone = changes_markdown(compared(tmp_path / "a", ours=None, metrics=RECALL))
    assert "is not known: this run has no ledger" in alone
    assert "training pairs" not in alone.split("|")[-1]
    nothing = changes_markdown(compared(tmp_path / "b", ours=[pair("x", "kept", "", 1.0, 1.0, 0)]))
    assert "No training pair is in both runs" in nothing


def test_names_from_the_other_folder_stay_in_their_cells(tmp_path: Path) -> None:
    nasty = "a|b </script> <b>`*_x_*`"
    page = changes_markdown(
        compared(
            tmp_path,
            [pair("in 1", "dropped", nasty, -1.0, 0.0, 5)],
            their_settings={nasty: nasty},
            their_run={"dataset": nasty},
            their_metrics={nasty: {nasty: cell(1.0, None)}},
            metrics=RECALL,
        )
    )
    for header, _, *rows in parsed_tables(page):
        assert {len(row) for row in rows} == {len(header)}
    assert r"\</script\>" in page
    assert "<b>" not in page

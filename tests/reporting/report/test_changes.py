"""Two runs compared, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from artifacts.settings import InputError
from reporting.report.changes import (
    Changes,
    MovedCluster,
    MovedPair,
    MovedReason,
    PairChanges,
    Reweighted,
    SettingChange,
    read_changes,
)
from tests.reporting.report.test_other_run import (
    ledger_of,
    pair,
    pair_id,
    run_of,
    save_run,
)

CUT, COPY, LOW = "its value is above the cut", "near copy of a better pair", "its influence is low"
THEIRS = [
    pair("stays", "kept", CUT, 1.0, 1.0, 5),
    pair("in 1", "dropped", COPY, -1.0, 0.0, 5),
    pair("in 2", "dropped", LOW, -3.0, 0.0, 5),
    pair("in 3", "dropped", COPY, -0.5, 0.0, 6),
    pair("out", "kept", CUT, 0.5, 1.0, 6),
    pair("never", "dropped", LOW, -4.0, 0.0, 6),
    pair("heavier", "kept", CUT, 1.0, 0.8, 7),
    pair("lighter", "kept", CUT, 1.0, 2.0, 7),
    pair("a little", "kept", CUT, 1.0, 1.0, 7),
    pair("left", "kept", CUT, 1.0, 1.0, 7),
    pair("held out here", "kept", CUT, 1.0, 1.0, 7),
    pair("held out there", "held out", "asked what helps", split="validation"),
    pair("", "skipped", "broken image"),
    pair("test 1", "held out", "measures", split="test"),
    pair("test 2", "held out", "measures", split="test"),
]
OURS = [
    pair("stays", "kept", CUT, 1.0, 1.0, 0),
    pair("in 1", "kept", CUT, 0.5, 1.0, 0),  # +1.5
    pair("in 2", "kept", CUT, 0.25, 1.0, 1),  # +3.25
    pair("in 3", "kept", CUT, math.nan, 1.0, 1),
    pair("out", "dropped", LOW, -0.75, 0.0, 1),  # -1.25
    pair("never", "dropped", LOW, -4.0, 0.0, 1),
    pair("heavier", "kept", CUT, 1.0, 2.0, 2),  # 2.5 times
    pair("lighter", "kept", CUT, 1.0, 1.0, 2),  # 1 / 2
    pair("a little", "kept", CUT, 1.0, 1.4, 2),
    pair("held out here", "held out", "asked what helps", split="validation"),
    pair("held out there", "kept", CUT, 1.0, 1.0, 2),
    pair("new", "dropped", COPY, -0.5, 0.0, 2),
    pair("", "skipped", "broken image"),
    pair("", "skipped", "empty caption"),
    pair("test 1", "held out", "measures", split="test"),
    pair("test 2", "held out", "measures", split="test"),
]
CLUSTERS = [{"cluster": 0, "terms": ["dog", "beach"]}, {"cluster": 1, "terms": []}]


def cell(mean: float, std: float | None) -> dict[str, Any]:
    return {"mean_recall": {"mean": mean, "std": std}}


def compared(
    folder: Path,
    theirs: list[dict[str, Any]] | pd.DataFrame = THEIRS,
    ours: list[dict[str, Any]] | None = OURS,
    **given: Any,
) -> Changes:
    """Two runs as they are compared; `given` has their settings and metrics."""
    saved = theirs if isinstance(theirs, pd.DataFrame) else ledger_of(theirs)
    run = run_of(**given.get("their_settings", {})) | given.get("their_run", {})
    other = save_run(folder / "other", saved, run, given.get("their_metrics", {}))
    return read_changes(
        other,
        None if ours is None else ledger_of(ours),
        run_of(**{"output_dir": "here"} | given.get("settings", {})),
        given.get("metrics", {}),
        CLUSTERS,
    )


def pairs_of(changes: Changes) -> PairChanges:
    assert changes.pairs is not None
    return changes.pairs


def test_pairs_are_joined_by_their_ids(tmp_path: Path) -> None:
    pairs = pairs_of(compared(tmp_path))
    assert pairs.counts == ((4, 1, 2), (3, 1, 0), (1, 1, 0))
    assert (pairs.n_shared, pairs.n_only_there, pairs.n_only_here) == (9, 2, 2)
    assert (pairs.n_kept_in_both, pairs.n_dropped_in_both) == (4, 1)
    assert pairs.only_there == (("held out", 1), ("not seen", 1))
    assert pairs.only_here == (("held out", 1), ("not seen", 1))


def test_what_moved_comes_by_the_change_of_its_value(tmp_path: Path) -> None:
    pairs = pairs_of(compared(tmp_path))
    assert pairs.moved_in == (
        MovedPair(pair_id("in 2"), LOW, CUT, -3.0, 0.25, 3.25),
        MovedPair(pair_id("in 1"), COPY, CUT, -1.0, 0.5, 1.5),
        MovedPair(pair_id("in 3"), COPY, CUT, -0.5, None, None),
    )
    assert pairs.moved_out == (MovedPair(pair_id("out"), CUT, LOW, 0.5, -0.75, -1.25),)
    assert pairs.reasons == (
        MovedReason("in", COPY, CUT, 2),
        MovedReason("in", LOW, CUT, 1),
        MovedReason("out", CUT, LOW, 1),
    )
    assert pairs.clusters == (
        MovedCluster(1, (), pairs=4, moved_in=2, moved_out=1),
        MovedCluster(0, ("dog", "beach"), pairs=2, moved_in=1, moved_out=0),
    )
    assert pairs.reweighted == (
        Reweighted(pair_id("heavier"), 0.8, 2.0),
        Reweighted(pair_id("lighter"), 2.0, 1.0),
    )


def test_the_sides(tmp_path: Path) -> None:
    changes = compared(tmp_path, their_run={"encoder": "some/clip"})
    theirs, ours = changes.theirs, changes.ours
    assert theirs.folder == str(tmp_path / "other")
    assert (theirs.encoder, ours.encoder, ours.folder) == ("some/clip", "embedded", "here")
    assert (theirs.n_train, theirs.n_kept, theirs.cut) == (11, 7, -0.5)
    assert (ours.n_train, ours.n_kept, ours.cut) == (11, 8, -0.5)
    assert (changes.same_test, changes.n_shared_test) == (True, 2)


def test_settings_that_differ(tmp_path: Path) -> None:
    changes = compared(
        tmp_path,
        settings={"rank": 10, "rho": None, "seed": 1, "weights": ("a", "b"), "new": None},
        their_settings={"rank": 10.0, "rho": 0.5, "old": True, "weights": ["a", "b"], "debug": 1},
    )
    assert changes.settings == (
        SettingChange("rho", "0.5", "not set"),
        SettingChange("seed", "no such flag", "1"),
        SettingChange("old", "True", "no such flag"),
    )


def test_recalls_are_told_apart_by_the_errors_of_both_means(tmp_path: Path) -> None:
    changes = compared(
        tmp_path,
        settings={"n_seeds": 4},
        metrics={
            "same_epochs": {
                "full": cell(40.0, 0.0),
                "random": cell(31.0, 0.8),
                "influencespace": cell(32.0, 0.8),
                "semdedup": cell(29.0, 0.2),
                "coreset_selection": cell(28.0, None),
            }
        },
        their_metrics={
            "same_epochs": {
                "full": cell(40.0, 0.0),
                "random": cell(30.5, 0.3 * math.sqrt(3)),
                "influencespace": cell(30.5, 0.3 * math.sqrt(3)),
                "semdedup": cell(31.0, 0.2),
                "coreset_selection": cell(27.0, 1.0),
                "diversity_sampling": cell(35.0, 1.0),
            },
            "same_steps": {"random": cell(30.0, 1.0)},
        },
    )
    found = {(r.comparison, r.method): r for r in changes.recall}
    assert [r.method for r in changes.recall] == [
        *("influencespace", "random", "semdedup", "coreset_selection", "diversity_sampling"),
        *("full", "random"),
    ]
    own = found["same_epochs", "influencespace"]
    # 0.8 / 2 and 0.3: an error of 0.5, so 1.5 points are three of them and 0.5 points one
    assert own.difference == pytest.approx(1.5)
    assert own.standard_error == pytest.approx(0.5)
    assert own.outcome == "higher"
    assert found["same_epochs", "random"].outcome == "undecided"
    assert found["same_epochs", "semdedup"].outcome == "lower"
    assert found["same_epochs", "full"].outcome == "undecided"
    one_seed = found["same_epochs", "coreset_selection"]
    assert (one_seed.difference, one_seed.standard_error, one_seed.outcome) == (1.0, None, "")
    for name in (("same_epochs", "diversity_sampling"), ("same_steps", "random")):
        gone = found[name]
        assert gone.ours_mean is gone.difference is None
        assert gone.theirs_std == 1.0


def test_other_test_pairs_make_recall_incomparable(tmp_path: Path) -> None:
    recall = {"same_epochs": {"random": cell(30.0, 0.5)}}
    ours = [*OURS[:-1], pair("test 3", "held out", split="test")]
    changes = compared(tmp_path, ours=ours, metrics=recall, their_metrics=recall)
    assert (changes.same_test, changes.n_shared_test) == (False, 1)
    (row,) = changes.recall
    assert (row.theirs_mean, row.ours_mean) == (30.0, 30.0)
    assert (row.difference, row.outcome) == (None, "")


def test_skipped_test_pairs_are_none(tmp_path: Path) -> None:
    ours = [*OURS, pair("broken", "skipped", "broken image", split="test")]
    assert compared(tmp_path, ours=ours).same_test is True


def test_a_run_without_stage_3_compares_settings_and_recall(tmp_path: Path) -> None:
    recall = {"same_epochs": {"random": cell(30.0, 0.5)}}
    changes = compared(tmp_path, ours=None, metrics=recall, their_metrics=recall)
    assert (changes.pairs, changes.same_test, changes.ours.n_train) == (None, None, None)
    assert changes.recall[0].difference == 0.0
    assert changes.theirs.n_train == 11


def test_runs_that_share_nothing(tmp_path: Path) -> None:
    pairs = pairs_of(compared(tmp_path, ours=[pair("x", "kept", CUT, 1.0, 1.0, 0)]))
    assert (pairs.n_shared, pairs.n_only_there, pairs.n_only_here) == (0, 11, 1)
    assert not any((pairs.moved_in, pairs.moved_out, pairs.reasons, pairs.clusters))


def test_an_earlier_ledger_without_values(tmp_path: Path) -> None:
    old = ledger_of(THEIRS).drop(columns=["value", "weight", "cluster"])
    changes = compared(tmp_path, old)
    assert changes.theirs.cut is None
    pairs = pairs_of(changes)
    assert sorted(p.id for p in pairs.moved_in) == sorted(map(pair_id, ("in 1", "in 2", "in 3")))
    assert {p.change for p in pairs.moved_in} == {None}
    assert pairs.reweighted == ()


def test_a_pair_that_stands_twice_counts_once(tmp_path: Path) -> None:
    pairs = pairs_of(compared(tmp_path, [*THEIRS, THEIRS[0]], [*OURS, OURS[0]]))
    assert (pairs.n_shared, pairs.n_kept_in_both) == (9, 4)


def test_a_folder_without_a_run_is_refused() -> None:
    with pytest.raises(InputError, match="--compare nowhere does not exist"):
        read_changes("nowhere", None, run_of(), {})

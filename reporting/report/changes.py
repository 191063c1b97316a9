"""What differs between this run and another run's output folder (`--compare`).

Training pairs are joined by their ids, which hash image and caption. The folder may be of an
earlier program: columns that its ledger lacks are taken as unknown. Recall is compared where both
runs rank the same test pairs, by the rule of `verdicts`: two means are told apart from `CLEAR`
standard errors of their difference on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from baselines import FULL
from reporting.ledger import DROPPED, DROPPED_BY_REVIEW, HELD_OUT, KEPT
from reporting.report.other_run import OtherRun, narrowed, read_other
from reporting.verdicts import clear_outcome, verdict
from reporting.words import setting_text

MUCH = 1.5  # a weight that was multiplied or divided by at least this has changed much
UNSEEN = "not seen"  # what a pair was in a run whose ledger does not have its id
NOT_KNOWN = "no such flag"
# Settings that change where a run writes, what it prints or how fast it is, and those that only
# stand for others; which methods were trained shows in the rows of their recall.
IRRELEVANT = frozenset(
    {
        *("output_dir", "log_file", "explain", "dry_run", "debug", "methods"),
        *("load_saved", "skip_stage", "save_checkpoints", "visualize", "export"),
        *("export_shard_size", "num_workers", "encoder_batch_size"),
        *("no_report", "report_images", "compare"),
        *("engine", "workers", "ray_address", "ray_timeout"),
    }
)


@dataclass(frozen=True)
class Side:
    """One of two runs; a number is None where the run has no ledger."""

    folder: str  # as it was given
    dataset: str
    encoder: str
    n_train: int | None
    n_kept: int | None
    cut: float | None  # the highest value of a dropped pair, those of a reviewer aside
    n_test: int | None  # test pairs


@dataclass(frozen=True)
class SettingChange:
    """A flag whose value differs."""

    flag: str
    theirs: str
    ours: str


@dataclass(frozen=True)
class RecallChange:
    """A method's mean recall in both runs; None where a run has not trained it."""

    comparison: str
    method: str
    theirs_mean: float | None
    theirs_std: float | None
    ours_mean: float | None
    ours_std: float | None
    difference: float | None  # ours less theirs, points; None where they cannot be compared
    standard_error: float | None  # of the difference; None where a run has one seed
    outcome: str  # "higher", "lower", "undecided", or "" where nothing can be told


@dataclass(frozen=True)
class MovedPair:
    """A training pair of both runs that one keeps and the other drops."""

    id: str
    theirs_reason: str
    ours_reason: str
    theirs_value: float | None
    ours_value: float | None
    change: float | None  # of the value, ours less theirs


@dataclass(frozen=True)
class Reweighted:
    """A pair that both runs keep, with weights that differ much."""

    id: str
    theirs_weight: float
    ours_weight: float


@dataclass(frozen=True)
class MovedReason:
    """How many pairs moved with these reasons."""

    moved: str  # "in" or "out"
    theirs_reason: str
    ours_reason: str
    pairs: int


@dataclass(frozen=True)
class MovedCluster:
    """How many pairs of one of our clusters moved."""

    cluster: int
    terms: tuple[str, ...]
    pairs: int  # of the cluster that are training pairs of both runs
    moved_in: int
    moved_out: int


@dataclass(frozen=True)
class PairChanges:
    """What became of the training pairs of two runs.

    `counts[a][b]`: pairs that are `a` there and `b` here; `a` and `b` are 0 (kept), 1 (dropped) or
    2 (no training pair).
    """

    counts: tuple[tuple[int, int, int], ...]  # (3, 3)
    only_there: tuple[tuple[str, int], ...]  # what training pairs of theirs alone are here
    only_here: tuple[tuple[str, int], ...]  # what training pairs of ours alone are there
    moved_in: tuple[MovedPair, ...]  # dropped there, kept here; largest change of value first
    moved_out: tuple[MovedPair, ...]
    reasons: tuple[MovedReason, ...]  # most pairs first
    clusters: tuple[MovedCluster, ...]  # most moved pairs first
    reweighted: tuple[Reweighted, ...]  # largest ratio of the weights first

    @property
    def n_shared(self) -> int:
        """Training pairs of both runs."""
        return sum(sum(row[:2]) for row in self.counts[:2])

    @property
    def n_only_there(self) -> int:
        """Training pairs of the other run alone."""
        return sum(row[2] for row in self.counts[:2])

    @property
    def n_only_here(self) -> int:
        """Training pairs of this run alone."""
        return sum(self.counts[2][:2])

    @property
    def n_kept_in_both(self) -> int:
        """Of the shared pairs."""
        return self.counts[0][0]

    @property
    def n_dropped_in_both(self) -> int:
        """Of the shared pairs."""
        return self.counts[1][1]


@dataclass(frozen=True)
class Changes:
    """What differs between this run (ours) and another (theirs)."""

    theirs: Side
    ours: Side
    settings: tuple[SettingChange, ...]
    recall: tuple[RecallChange, ...]
    same_test: bool | None  # whether both rank the same test pairs; None: this run has no ledger
    n_shared_test: int | None
    pairs: PairChanges | None  # None where this run has no ledger

    @property
    def moved(self) -> frozenset[str]:
        """Ids of the pairs that moved in or out."""
        if self.pairs is None:
            return frozenset()
        return frozenset(pair.id for pair in (*self.pairs.moved_in, *self.pairs.moved_out))


def read_changes(
    other: str,
    ledger: pd.DataFrame | None,
    run: Mapping[str, Any],
    metrics: Mapping[str, Any],
    clusters: Sequence[Mapping[str, Any]] = (),
) -> Changes:
    """What differs between this run and that in another folder.

    Args:
        other: the output folder of the other run.
        ledger: this run's; None where stage 3 was left out.
        run: what `run.json` says of this run.
        metrics: this run's recall: comparison -> method -> metric -> mean and std.
        clusters: this run's, for their terms.

    Raises:
        InputError: there is no whole run in the folder.
    """
    theirs = read_other(other)
    our_ledger = None if ledger is None else narrowed(ledger)
    there, here = _test_ids(theirs.ledger), None
    if our_ledger is not None:
        here = _test_ids(our_ledger)
    same_test = None if here is None else here == there
    terms = {int(c["cluster"]): tuple(map(str, c.get("terms", ()))) for c in clusters}
    return Changes(
        theirs=_side(other, theirs.run, theirs.ledger),
        ours=_side(str(run["settings"].get("output_dir", "")), run, our_ledger),
        settings=_setting_changes(theirs.run["settings"], run["settings"]),
        recall=_recall_changes(theirs, run, metrics, comparable=same_test is not False),
        same_test=same_test,
        n_shared_test=None if here is None else len(here & there),
        pairs=None if our_ledger is None else _pair_changes(theirs.ledger, our_ledger, terms),
    )


# --- Comparing --------------------------------------------------------------------------------


def _side(folder: str, run: Mapping[str, Any], ledger: pd.DataFrame | None) -> Side:
    dataset, encoder = (str(run.get(name, "not known")) for name in ("dataset", "encoder"))
    if ledger is None:
        return Side(folder, dataset, encoder, None, None, None, None)
    train = ledger[ledger["split"] == "train"]
    by_value = (train["decision"] == DROPPED) & (train["decision_reason"] != DROPPED_BY_REVIEW)
    dropped = train.loc[by_value, "value"].max()
    return Side(
        folder,
        dataset,
        encoder,
        n_train=int(train["decision"].isin([KEPT, DROPPED]).sum()),
        n_kept=int((train["decision"] == KEPT).sum()),
        cut=_known(dropped),
        n_test=len(_test_ids(ledger)),
    )


def _test_ids(ledger: pd.DataFrame) -> set[str]:
    is_test = (ledger["split"] == "test") & (ledger["decision"] == HELD_OUT)
    return set(ledger.loc[is_test, "id"])


def _setting_changes(
    theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[SettingChange, ...]:
    """Every setting that may matter and differs, in the order of this run's flags.

    A flag that one run does not know and the other leaves unset is none.
    """
    names = [n for n in dict.fromkeys((*ours, *theirs)) if n not in IRRELEVANT]
    return tuple(
        SettingChange(str(name), *(_setting_of(side, name) for side in (theirs, ours)))
        for name in names
        if _as_saved(theirs.get(name)) != _as_saved(ours.get(name))
    )


def _setting_of(settings: Mapping[str, Any], name: str) -> str:
    return setting_text(settings[name]) if name in settings else NOT_KNOWN


def _as_saved(value: Any) -> Any:
    """A setting as JSON keeps it."""
    return list(value) if isinstance(value, tuple) else value


def _recall_changes(
    theirs: OtherRun, run: Mapping[str, Any], metrics: Mapping[str, Any], *, comparable: bool
) -> tuple[RecallChange, ...]:
    """Every method of either run, by falling mean recall here, the full data last."""
    seeds = [_n_seeds(side) for side in (theirs.run, run)]
    rows = []
    for comparison in dict.fromkeys((*metrics, *theirs.metrics)):
        there, here = (side.get(comparison, {}) for side in (theirs.metrics, metrics))
        for method in _ordered(here, there):
            cells = [side.get(method, {}).get("mean_recall") for side in (there, here)]
            rows.append(_recall_change(comparison, method, cells, seeds, comparable=comparable))
    return tuple(rows)


def _ordered(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """The methods of either run by falling mean recall here, or else there; the full data last."""

    def place(method: str) -> tuple[bool, bool, float, str]:
        cells = here.get(method) or there[method]
        return method == FULL, method not in here, -float(cells["mean_recall"]["mean"]), method

    return sorted({*here, *there}, key=place)


def _n_seeds(run: Mapping[str, Any]) -> int:
    n = run["settings"].get("n_seeds")
    return n if isinstance(n, int) and n > 0 else 1


def _recall_change(
    comparison: str,
    method: str,
    cells: Sequence[Mapping[str, Any] | None],
    seeds: Sequence[int],
    *,
    comparable: bool,
) -> RecallChange:
    """One method under one comparison, theirs first."""
    means = [None if cell is None else float(cell["mean"]) for cell in cells]
    stds = [None if cell is None else cell["std"] for cell in cells]
    theirs, ours = means
    difference, error, outcome = None, None, ""
    if theirs is not None and ours is not None and comparable:
        # The runs may differ in their seeds, so each brings the error of its own mean.
        errors = [None if s is None else s / math.sqrt(n) for s, n in zip(stds, seeds, strict=True)]
        v = verdict(ours, theirs, errors[1], errors[0], 1)
        difference, error = v.difference, v.standard_error
        if error is not None:
            words = {"wins": "higher", "loses": "lower"}
            outcome = words.get(clear_outcome(v), "undecided")
    return RecallChange(
        *(comparison, method, theirs, stds[0], ours, stds[1], difference, error, outcome)
    )


def _pair_changes(
    theirs: pd.DataFrame, ours: pd.DataFrame, terms: Mapping[int, tuple[str, ...]]
) -> PairChanges:
    there, here = _training(theirs), _training(ours)
    both = there.join(here, how="outer", lsuffix="_there", rsuffix="_here")
    fates = [
        both[f"decision_{side}"].map({KEPT: 0, DROPPED: 1}).fillna(2).astype(int)
        for side in ("there", "here")
    ]
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, tuple(fates), 1)
    moved = {
        "in": both[(fates[0] == 1) & (fates[1] == 0)],
        "out": both[(fates[0] == 0) & (fates[1] == 1)],
    }
    shared = both[(fates[0] < 2) & (fates[1] < 2)]
    return PairChanges(
        counts=tuple((int(a), int(b), int(c)) for a, b, c in counts),
        only_there=_what_they_are(both.index[(fates[1] == 2)], ours),
        only_here=_what_they_are(both.index[(fates[0] == 2)], theirs),
        moved_in=_moved_pairs(moved["in"]),
        moved_out=_moved_pairs(moved["out"]),
        reasons=_moved_reasons(moved),
        clusters=_moved_clusters(moved, shared, terms),
        reweighted=_reweighted(both[(fates[0] == 0) & (fates[1] == 0)]),
    )


def _training(ledger: pd.DataFrame) -> pd.DataFrame:
    """The training pairs by id; one that a damaged ledger has twice counts once."""
    is_pair = (ledger["split"] == "train") & ledger["decision"].isin([KEPT, DROPPED])
    rows = ledger[is_pair & (ledger["id"] != "")]
    return rows.drop_duplicates("id").set_index("id").drop(columns="split")


def _what_they_are(ids: pd.Index, ledger: pd.DataFrame) -> tuple[tuple[str, int], ...]:
    """What a run that does not train on these pairs did with them, most first."""
    known = ledger[ledger["id"].isin(ids)].drop_duplicates("id")
    counts = {str(k): int(n) for k, n in known["decision"].value_counts().items()}
    if unseen := len(ids) - len(known):
        counts[UNSEEN] = unseen
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _moved_pairs(rows: pd.DataFrame) -> tuple[MovedPair, ...]:
    """Pairs by falling size of the change of their values, those without one last."""
    change = rows["value_here"] - rows["value_there"]
    order = np.lexsort((rows.index.to_numpy(dtype=str), -change.abs().fillna(-1).to_numpy()))
    columns = ("decision_reason_there", "decision_reason_here", "value_there", "value_here")
    return tuple(
        MovedPair(str(name), why_there, why_here, _known(a), _known(b), _known(b - a))
        for name, why_there, why_here, a, b in rows.iloc[order][list(columns)].itertuples()
    )


def _moved_reasons(moved: Mapping[str, pd.DataFrame]) -> tuple[MovedReason, ...]:
    columns = ["decision_reason_there", "decision_reason_here"]
    found = [
        MovedReason(direction, str(there), str(here), int(n))
        for direction, rows in moved.items()
        for there, here, n in rows.groupby(columns).size().reset_index().itertuples(index=False)
    ]
    return tuple(sorted(found, key=lambda r: -r.pairs))


def _moved_clusters(
    moved: Mapping[str, pd.DataFrame], shared: pd.DataFrame, terms: Mapping[int, tuple[str, ...]]
) -> tuple[MovedCluster, ...]:
    counts = [
        rows["cluster_here"].dropna().astype(int).value_counts().rename(name)
        for name, rows in (("pairs", shared), ("came", moved["in"]), ("went", moved["out"]))
    ]
    sizes = pd.concat(counts, axis=1).fillna(0).astype(int)
    found = [
        MovedCluster(int(k), terms.get(int(k), ()), int(n), int(came), int(went))
        for k, n, came, went in sizes.itertuples()
        if came or went
    ]
    return tuple(sorted(found, key=lambda c: (-c.moved_in - c.moved_out, c.cluster)))


def _reweighted(rows: pd.DataFrame) -> tuple[Reweighted, ...]:
    there, here = (rows[f"weight_{side}"].to_numpy() for side in ("there", "here"))
    with np.errstate(divide="ignore", invalid="ignore"):  # weights of a damaged ledger
        ratios = np.nan_to_num(np.maximum(here / there, there / here), nan=1.0)
    names = rows.index.to_numpy(dtype=str)
    order = np.lexsort((names, -ratios))
    return tuple(
        Reweighted(str(names[row]), float(there[row]), float(here[row]))
        for row in order[ratios[order] >= MUCH]
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

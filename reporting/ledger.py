"""The ledger: what happened to every single pair that was seen, and why, one row a pair.

Every count of the results page about pairs is a sum over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int8, Int64

from attribution.results import PairInfluence
from attribution.scores import standardised
from attribution.trust import PairTrust
from curation import DROP, KEEP, CurationResult, ValueParts
from learner.pairs import TrainingPairs

KEPT, DROPPED, HELD_OUT, SKIPPED = "kept", "dropped", "held out", "skipped"

# Why a training pair is kept or dropped; what weighs most against a dropped one.
VALUABLE = "its value is above the cut"
PROTECTED = "protected: one of the best of its cluster or group"
RAISED = "weight raised: a beneficial cell of a rare topic"
UNCUT = "nothing was to be dropped"
LOWERED = "although it looks faulty, with a lower weight"
LOW_INFLUENCE = "its influence is low beside that of others"
DISAGREES = "image and caption disagree"
NEAR_COPY = "near copy of a better pair"
FAR_FROM_TARGET = "far from what the held-out pairs show"
OTHER_GROUPS = "it helps the worst-served group less than others"
KEPT_BY_REVIEW = "kept by the reviewer's say"
DROPPED_BY_REVIEW = "dropped by the reviewer's say"
OUTBID = "nothing weighs against it, but others are worth more"

# What a held-out pair does; the last three say it of validation pairs that were judged.
MEASURES = "measures, does not train"
ASKED = "asked what helps"
NOT_ASKED = "not asked: image and caption may not belong together"
NOT_ASKED_COPY = "not asked: near copy of another held-out pair"

COLUMNS = [
    *("position", "id", "key", "shard", "member", "row", "uid", "caption", "split", "status"),
    *("reason", "detail", "duplicate_of", "cluster", "cell", "clip_score", "influence"),
    *("evaluated", "better_copies", "influence_part", "agreement_part", "relevance_part"),
    *("value", "category", "group", "log_odds", "trusted"),
    *("decision", "decision_reason", "weight", "image_sha256"),
]
FAIRNESS = "fairness_part"  # a column after the other parts, where groups count
# What `exporting.formats.export_curated` takes.
EXPORTED = [
    *("position", "id", "uid", "key", "caption", "image_sha256", "weight", "cluster", "cell"),
    *("clip_score", "influence", "evaluated", "group"),
]
TYPES = (
    dict.fromkeys(["cluster", "cell", "better_copies"], "Int64")
    | dict.fromkeys(["evaluated", "trusted"], "boolean")
    | dict.fromkeys(["position", "row", "duplicate_of"], "int64")
)


@dataclass(frozen=True)
class Ledger:
    """One row a pair seen, in the order of the source."""

    ledger: pd.DataFrame
    # The highest value of a dropped pair, those of a reviewer aside; None where none was dropped
    cut: float | None


def make_ledger(
    table: pd.DataFrame,
    skipped: pd.DataFrame,
    pairs: TrainingPairs,
    influence: PairInfluence,
    curated: CurationResult,
    parts: ValueParts,
    trust: PairTrust | None,
) -> Ledger:
    """The ledger of a run.

    Columns: position, id, key, shard, member, row (-1: in no table), uid, caption, split; status
    (read or skipped), reason and detail of what was skipped, duplicate_of (the position of the
    pair that stayed in its place, -1 for none). Of training pairs also cluster, cell, clip_score,
    influence (n times the relative change of the validation loss without the pair; positive is
    helpful), evaluated (or inferred), better_copies, what influence, agreement and nearness to the
    held-out pairs add to the value, value, category (of the cluster), group; decision (kept,
    dropped, held out, skipped), decision_reason, weight (0 where dropped); where groups count also
    fairness_part, what helping the worst-served one adds to the value. Of pairs that were judged
    log_odds (that image and caption belong together), of held-out ones also trusted. What
    does not apply is null.

    Args:
        table: every pair that was read, with its split; see `PairReader.pairs`.
        skipped: every pair that was not; see `PairReader.skipped`.
        pairs: the n training pairs, in rows of the stages' arrays.
        influence: what stage 2 says of them.
        curated: what stage 3 does with them.
        parts: what adds up to their values.
        trust: which held-out pairs are trusted; None where none was judged.
    """
    train = np.flatnonzero((table["split"] == "train").to_numpy())
    weights = curated.training_weights(len(train))
    faulty = influence.looks_faulty
    reasons, cut = _decisions(curated.pair_values, weights, faulty, parts, curated.reviewed)
    n_read = len(table)
    told: dict[str, Any] = {
        "status": np.full(n_read, "read", dtype=object),
        "reason": np.full(n_read, "", dtype=object),
        "detail": np.full(n_read, "", dtype=object),
        "duplicate_of": np.full(n_read, -1),
        "decision": np.full(n_read, HELD_OUT, dtype=object),
        "decision_reason": np.full(n_read, MEASURES, dtype=object),
        "log_odds": np.full(n_read, np.nan),
        "trusted": pd.array(np.full(n_read, None), "boolean"),
    }
    told["decision"][train] = _named(np.array([DROPPED, KEPT], dtype=object), weights > 0)
    told["decision_reason"][train] = reasons
    told["log_odds"][train] = influence.agreement
    if trust is not None:
        _judge_held_out(told, table["split"].to_numpy(), trust)
    facts = _training_facts(pairs, influence, curated, parts, weights)
    return Ledger(_in_order_of_source(table, skipped, told, facts, train), cut)


def _in_order_of_source(
    table: pd.DataFrame,
    skipped: pd.DataFrame,
    told: dict[str, Any],
    facts: dict[str, Any],
    train: Int64[np.ndarray, " n"],
) -> pd.DataFrame:
    """All columns, one after the other, so that no more than one is held twice.

    Args:
        table: what was read.
        skipped: what was not.
        told: of every pair that was read.
        facts: of training pairs alone.
        train: their rows in `table`.
    """
    n = len(table) + len(skipped)
    places = np.append(*(rows["position"].to_numpy(np.int64) for rows in (table, skipped)))
    order = np.argsort(places, kind="stable")
    of_skipped = {"status": SKIPPED, "decision": SKIPPED, "uid": ""}
    columns: dict[str, Any] = {}
    after = COLUMNS.index("relevance_part") + 1
    groups_count = [FAIRNESS] if FAIRNESS in facts else []
    for name in [*COLUMNS[:after], *groups_count, *COLUMNS[after:]]:
        if name in facts:
            known = pd.Series(facts.pop(name))
            spread = np.full(n, -1)
            spread[train] = np.arange(len(train))
            column = _typed(name, known).reindex(spread[order])
        else:
            column = pd.Series(told.pop(name)) if name in told else table[name]
            if name == "decision_reason":
                rest = skipped["reason"]
            elif name in skipped and name not in of_skipped:
                rest = skipped[name]
            else:
                rest = pd.Series(np.full(len(skipped), of_skipped.get(name, np.nan)), dtype=object)
            parts = [column, rest.astype(column.dtype)] if len(skipped) else [column]
            column = pd.concat(parts, ignore_index=True).iloc[order]
        columns[name] = _typed(name, column).array
    return pd.DataFrame(columns, copy=False)


def _typed(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    return column.astype(pd.api.types.pandas_dtype(TYPES[name])) if name in TYPES else column


def _named(names: np.ndarray, index: np.ndarray) -> np.ndarray:
    """One of few names of each row; all rows of a name share it."""
    named: np.ndarray = names[index.astype(np.intp)]
    return named


def _training_facts(
    pairs: TrainingPairs,
    influence: PairInfluence,
    curated: CurationResult,
    parts: ValueParts,
    weights: Float[np.ndarray, " n"],
) -> dict[str, Any]:
    """What is known of the training pairs alone, a value each."""
    categories = np.empty(len(curated.categorization), dtype=object)
    for entry in curated.categorization:
        categories[int(entry["cluster"])] = entry["category"]
    return {
        "cluster": pairs.cluster_assignments,
        "cell": influence.cell_assignments,
        "clip_score": pairs.clip_scores.astype(np.float64),
        "influence": influence.pair_influence / influence.validation_loss,
        "evaluated": influence.pair_influence_evaluated,
        "better_copies": pairs.better_copies,
        "influence_part": parts.influence,
        "agreement_part": parts.agreement,
        "relevance_part": parts.relevance,
        **({} if parts.fairness is None else {FAIRNESS: parts.fairness}),
        "value": curated.pair_values,
        "category": _named(categories, pairs.cluster_assignments),
        "group": _group_names(pairs.groups, len(pairs.indices)),
        "weight": weights,
    }


def _judge_held_out(told: dict[str, Any], splits: np.ndarray, trust: PairTrust) -> None:
    """Writes into the rows of held-out pairs whether they are trusted, and what that means."""
    validation, test = (np.flatnonzero(splits == split) for split in ("validation", "test"))
    told["log_odds"][validation] = trust.validation_log_odds
    told["trusted"][validation] = trust.validation_trusted
    told["log_odds"][test] = trust.test_log_odds
    told["trusted"][test] = trust.test_trusted
    not_asked = np.where(trust.validation_copies > 0, NOT_ASKED_COPY, NOT_ASKED)
    told["decision_reason"][validation] = np.where(trust.validation_trusted, ASKED, not_asked)


def _decisions(
    values: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    faulty: Bool[np.ndarray, " n"],
    parts: ValueParts,
    reviewed: Int8[np.ndarray, " n"] | None,
) -> tuple[np.ndarray, float | None]:
    """Why every training pair is kept or dropped, and the value at which pairs are cut."""
    kept = weights > 0
    said = np.zeros(len(values), dtype=np.int8) if reviewed is None else reviewed
    outbid = values[~kept & (said == 0)]
    cut = float(outbid.max()) if len(outbid) else None
    reasons = _against(parts)
    if cut is None:
        reasons[kept] = UNCUT
    else:
        reasons[kept] = np.where(values[kept] >= cut, VALUABLE, PROTECTED)
    if kept.any():
        # What those weigh that were neither raised nor lowered.
        sound = kept & ~faulty if (kept & ~faulty).any() else kept
        common = weights[sound].min()
        raised = weights > common * (1 + 1e-9)
        reasons[raised & (reasons != PROTECTED)] = RAISED
        reasons[kept & (weights < common * (1 - 1e-9))] = LOWERED
    reasons[said == KEEP], reasons[said == DROP] = KEPT_BY_REVIEW, DROPPED_BY_REVIEW
    return reasons, cut


def _against(parts: ValueParts) -> np.ndarray:
    """What weighs most against each pair: the least part of its value that is below the mean.

    A part that is the same for all pairs, such as influence that does not count, tells none from
    another. Near copies are a charge: who has one bears it, however many others do.
    """
    weighs = {
        LOW_INFLUENCE: standardised(parts.influence) < 0,
        DISAGREES: standardised(parts.agreement) < 0,
        NEAR_COPY: standardised(parts.copies).any() & (parts.copies < 0),
        FAR_FROM_TARGET: standardised(parts.relevance) < 0,
    }
    ordered = [parts.influence, parts.agreement, parts.copies, parts.relevance]
    if parts.fairness is not None:
        weighs[OTHER_GROUPS] = standardised(parts.fairness) < 0
        ordered.append(parts.fairness)
    against = np.where(list(weighs.values()), ordered, np.inf)
    reasons: np.ndarray = np.array([*weighs], dtype=object)[np.argmin(against, axis=0)]
    reasons[np.isinf(against).all(axis=0)] = OUTBID
    return reasons


def _group_names(groups: Mapping[str, Bool[np.ndarray, " n"]], n: int) -> np.ndarray:
    """The names of each row's groups, joined by commas: one text for all rows of the same."""
    found = np.zeros(n, dtype=np.int64)
    for bit, member in enumerate(groups.values()):
        found |= member.astype(np.int64) << bit
    kinds, index = np.unique(found, return_inverse=True)
    names = [",".join(g for bit, g in enumerate(groups) if kind >> bit & 1) for kind in kinds]
    return _named(np.array(names, dtype=object), index)


# --- Reading it -----------------------------------------------------------------------------------


def count_decisions(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """Pairs by split, decision and reason, in that order, most first."""
    counts = ledger.groupby(["split", "decision", "decision_reason"]).size()
    rows: list[dict[str, Any]] = [
        {**dict(zip(("split", "decision", "reason"), names, strict=True)), "pairs": int(n)}
        for names, n in zip(counts.index, counts, strict=True)
    ]
    splits = ("train", "validation", "test")
    order = (KEPT, DROPPED, HELD_OUT, SKIPPED)
    return sorted(
        rows,
        key=lambda r: (
            splits.index(str(r["split"])),
            order.index(str(r["decision"])),
            -int(r["pairs"]),
            str(r["reason"]),
        ),
    )


def curated_pairs(ledger: pd.DataFrame) -> pd.DataFrame:
    """The kept pairs as exports take them, by position."""
    kept = np.flatnonzero(ledger["decision"] == KEPT)
    return ledger[EXPORTED].iloc[kept].reset_index(drop=True)

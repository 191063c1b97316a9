"""The ledger: what happened to every single pair that was seen, and why, one row a pair.

Every count of the results page about pairs is a sum over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int8

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
LOW_INFLUENCE = "its influence is low beside that of others"
DISAGREES = "image and caption disagree"
NEAR_COPY = "near copy of a better pair"
FAR_FROM_TARGET = "far from what the held-out pairs show"
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
    dropped, held out, skipped), decision_reason, weight (0 where dropped). Of pairs that were
    judged log_odds (that image and caption belong together), of held-out ones also trusted. What
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
    read = table.drop(columns=["image_row", "fault"]).assign(
        status="read", reason="", detail="", duplicate_of=-1, decision=HELD_OUT
    )
    read["decision_reason"] = MEASURES
    read["log_odds"], read["trusted"] = np.nan, pd.array([pd.NA] * len(read), "boolean")
    skipped = skipped.assign(
        status=SKIPPED, decision=SKIPPED, decision_reason=skipped["reason"], uid=""
    )
    train = read.index[read["split"] == "train"]
    weights = curated.training_weights(len(train))
    reasons, cut = _decisions(curated.pair_values, weights, parts, curated.reviewed)
    read.loc[train, "decision"] = np.where(weights > 0, KEPT, DROPPED)
    read.loc[train, "decision_reason"] = reasons
    read.loc[train, "log_odds"] = influence.agreement
    if trust is not None:
        _judge_held_out(read, trust)
    facts = _training_facts(pairs, influence, curated, parts).set_index(train)
    rows = pd.concat([read.drop(columns="group").join(facts), skipped], ignore_index=True)
    rows = rows.sort_values("position", kind="stable").reset_index(drop=True)
    return Ledger(rows.astype(TYPES)[COLUMNS], cut)


def _training_facts(
    pairs: TrainingPairs, influence: PairInfluence, curated: CurationResult, parts: ValueParts
) -> pd.DataFrame:
    """What is known of the training pairs alone, one row each."""
    categories = {int(entry["cluster"]): entry["category"] for entry in curated.categorization}
    return pd.DataFrame(
        {
            "cluster": pairs.cluster_assignments,
            "cell": influence.cell_assignments,
            "clip_score": pairs.clip_scores.astype(np.float64),
            "influence": influence.pair_influence / influence.validation_loss,
            "evaluated": influence.pair_influence_evaluated,
            "better_copies": pairs.better_copies,
            "influence_part": parts.influence,
            "agreement_part": parts.agreement,
            "relevance_part": parts.relevance,
            "value": curated.pair_values,
            "category": [categories[int(k)] for k in pairs.cluster_assignments],
            "group": _group_names(pairs.groups, len(pairs.indices)),
            "weight": curated.training_weights(len(pairs.indices)),
        }
    )


def _judge_held_out(read: pd.DataFrame, trust: PairTrust) -> None:
    """Writes into the rows of held-out pairs whether they are trusted, and what that means."""
    validation, test = (read.index[read["split"] == split] for split in ("validation", "test"))
    read.loc[validation, "log_odds"] = trust.validation_log_odds
    read.loc[validation, "trusted"] = trust.validation_trusted
    read.loc[test, "log_odds"] = trust.test_log_odds
    read.loc[test, "trusted"] = trust.test_trusted
    not_asked = np.where(trust.validation_copies > 0, NOT_ASKED_COPY, NOT_ASKED)
    read.loc[validation, "decision_reason"] = np.where(trust.validation_trusted, ASKED, not_asked)


def _decisions(
    values: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
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
    if kept.any():  # a weight above the least one of the kept was raised
        raised = weights > weights[kept].min() * (1 + 1e-9)
        reasons[raised & (reasons != PROTECTED)] = RAISED
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
    ordered = (parts.influence, parts.agreement, parts.copies, parts.relevance)
    against = np.where(list(weighs.values()), ordered, np.inf)
    reasons: np.ndarray = np.array([*weighs], dtype=object)[np.argmin(against, axis=0)]
    reasons[np.isinf(against).all(axis=0)] = OUTBID
    return reasons


def _group_names(groups: Mapping[str, Bool[np.ndarray, " n"]], n: int) -> list[str]:
    names: list[list[str]] = [[] for _ in range(n)]
    for name, member in groups.items():
        for row in np.flatnonzero(member):
            names[row].append(name)
    return [",".join(found) for found in names]


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
    return ledger[ledger["decision"] == KEPT].reset_index(drop=True)

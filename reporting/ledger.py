"""The ledger: what happened to every single pair that was seen, and why, one row a pair.

Every count of the results page about pairs is a sum over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int64

from attribution.trust import PairTrust

KEPT, DROPPED, HELD_OUT, SKIPPED = "kept", "dropped", "held out", "skipped"

# Why a training pair is kept or dropped; what weighs most against a dropped one.
VALUABLE = "its value is above the cut"
PROTECTED = "protected: one of the best of its cluster or group"
RAISED = "weight raised: a beneficial cell of a rare topic"
UNCUT = "nothing was to be dropped"
HARMFUL = "its influence is low beside that of others"
DISAGREES = "image and caption disagree"
NEAR_COPY = "near copy of a better pair"
FAR_FROM_TARGET = "far from what the held-out pairs show"

# What a held-out pair does; the last three say it of validation pairs that were judged.
MEASURES = "measures, does not train"
ASKED = "asked what helps"
NOT_ASKED = "not asked: image and caption may not belong together"
NOT_ASKED_COPY = "not asked: near copy of another held-out pair"


@dataclass(frozen=True)
class LedgerInputs:
    """What the stages say of every pair: of n training pairs, in rows of the stages' arrays.

    Attributes:
        pairs: every pair that was read, with its split; see `data.PairReader.pairs`.
        skipped: every pair that was not; see `data.PairReader.skipped`.
        clusters: what each cluster is about, see `stage3/cluster_categorization.json`.
        influence_parts: what influence adds to a pair's value, standard deviations.
        agreement_parts: what image-text agreement adds to it, standard deviations.
        groups: which training pairs name which demographic group.
        relevance_parts: what nearness to the held-out pairs adds to a value; None adds nothing.
        agreement: log odds that image and caption belong together, where stage 2 has said so.
        trust: which held-out pairs are trusted; None where none was judged.
    """

    pairs: pd.DataFrame
    skipped: pd.DataFrame
    clip_scores: Float[np.ndarray, " n"]
    cluster_assignments: Int64[np.ndarray, " n"]
    cell_assignments: Int64[np.ndarray, " n"]
    better_copies: Int64[np.ndarray, " n"]
    relative_influence: Float[np.ndarray, " n"]  # n times the relative change of the loss
    evaluated: Bool[np.ndarray, " n"]
    influence_parts: Float[np.ndarray, " n"]
    agreement_parts: Float[np.ndarray, " n"]
    pair_values: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]  # 0 where dropped
    clusters: Sequence[Mapping[str, Any]]
    groups: Mapping[str, Bool[np.ndarray, " n"]]
    relevance_parts: Float[np.ndarray, " n"] | None = None
    agreement: Float[np.ndarray, " n"] | None = None
    trust: PairTrust | None = None

    @property
    def nearness(self) -> Float[np.ndarray, " n"]:
        """What nearness to the held-out pairs adds to every value, zero where it does not count."""
        return np.zeros(len(self.weights)) if self.relevance_parts is None else self.relevance_parts


@dataclass(frozen=True)
class Ledger:
    """One row a pair seen, in the order of the source."""

    ledger: pd.DataFrame
    cut: float | None  # the highest value of a dropped pair; None where none was dropped


def make_ledger(inputs: LedgerInputs) -> Ledger:
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
    """
    read = inputs.pairs.drop(columns=["image_row", "fault"]).assign(
        status="read", reason="", detail="", duplicate_of=-1, decision=HELD_OUT
    )
    read["decision_reason"] = MEASURES
    read["log_odds"], read["trusted"] = np.nan, pd.array([pd.NA] * len(read), "boolean")
    skipped = inputs.skipped.assign(
        status=SKIPPED, decision=SKIPPED, decision_reason=inputs.skipped["reason"], uid=""
    )
    train = read.index[read["split"] == "train"]
    decisions, cut = _decisions(inputs)
    categories = {int(entry["cluster"]): entry["category"] for entry in inputs.clusters}
    facts = pd.DataFrame(
        {
            "cluster": inputs.cluster_assignments,
            "cell": inputs.cell_assignments,
            "clip_score": inputs.clip_scores.astype(np.float64),
            "influence": inputs.relative_influence,
            "evaluated": inputs.evaluated,
            "better_copies": inputs.better_copies,
            "influence_part": inputs.influence_parts,
            "agreement_part": inputs.agreement_parts,
            "relevance_part": inputs.nearness,
            "value": inputs.pair_values,
            "category": [categories[int(k)] for k in inputs.cluster_assignments],
            "group": _group_names(inputs.groups, len(inputs.weights)),
            "weight": inputs.weights,
        },
        index=train,
    )
    read.loc[train, "decision"] = np.where(inputs.weights > 0, KEPT, DROPPED)
    read.loc[train, "decision_reason"] = decisions
    if inputs.agreement is not None:
        read.loc[train, "log_odds"] = inputs.agreement
    if inputs.trust is not None:
        _judge_held_out(read, inputs.trust)
    rows = pd.concat([read.drop(columns="group").join(facts), skipped], ignore_index=True)
    rows = rows.sort_values("position", kind="stable").reset_index(drop=True)
    whole = ["cluster", "cell", "better_copies"]
    types = dict.fromkeys(whole, "Int64") | dict.fromkeys(["evaluated", "trusted"], "boolean")
    types |= dict.fromkeys(["position", "row", "duplicate_of"], "int64")
    columns = [
        *("position", "id", "key", "shard", "member", "row", "uid", "caption", "split", "status"),
        *("reason", "detail", "duplicate_of", "cluster", "cell", "clip_score", "influence"),
        *("evaluated", "better_copies", "influence_part", "agreement_part", "relevance_part"),
        *("value", "category", "group", "log_odds", "trusted"),
        *("decision", "decision_reason", "weight", "image_sha256"),
    ]
    return Ledger(rows.astype(types)[columns], cut)


def _judge_held_out(read: pd.DataFrame, trust: PairTrust) -> None:
    """Writes into the rows of held-out pairs whether they are trusted, and what that means."""
    validation, test = (read.index[read["split"] == split] for split in ("validation", "test"))
    read.loc[validation, "log_odds"] = trust.validation_log_odds
    read.loc[validation, "trusted"] = trust.validation_trusted
    read.loc[test, "log_odds"] = trust.test_log_odds
    read.loc[test, "trusted"] = trust.test_trusted
    not_asked = np.where(trust.validation_copies > 0, NOT_ASKED_COPY, NOT_ASKED)
    read.loc[validation, "decision_reason"] = np.where(trust.validation_trusted, ASKED, not_asked)


def _decisions(inputs: LedgerInputs) -> tuple[np.ndarray, float | None]:
    """Why every training pair is kept or dropped, and the value at which pairs are cut."""
    kept = inputs.weights > 0
    cut = None if kept.all() else float(inputs.pair_values[~kept].max())
    copies = inputs.pair_values - inputs.influence_parts - inputs.agreement_parts - inputs.nearness
    copies = np.where(inputs.better_copies > 0, copies, np.inf)  # what is not there weighs nothing
    nearness = inputs.nearness if inputs.nearness.any() else np.full(len(copies), np.inf)
    parts = [inputs.influence_parts, inputs.agreement_parts, copies, nearness]
    worst = np.argmin(parts, axis=0)
    reasons = np.array([HARMFUL, DISAGREES, NEAR_COPY, FAR_FROM_TARGET], dtype=object)[worst]
    if cut is None:
        reasons[kept] = UNCUT
    else:
        reasons[kept] = np.where(inputs.pair_values[kept] >= cut, VALUABLE, PROTECTED)
    if kept.any():  # a weight above the least one of the kept was raised
        raised = inputs.weights > inputs.weights[kept].min() * (1 + 1e-9)
        reasons[raised & (reasons != PROTECTED)] = RAISED
    return reasons, cut


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

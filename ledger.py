"""The ledger: what happened to every single pair that was seen, and why, one row a pair.

Every count of the results page about pairs is a sum over it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int64

from settings import InputError
from trust import PairTrust

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
ID_DIGITS = 32


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


def find_pairs(ledger: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a key, of an id, of the beginning of an id or of a uid of the data.

    A file name stands for the key it ends, where that is the only one: a key may name the folder,
    and that of a file that is missing cannot.

    Raises:
        InputError: there is none; names that look like it are given.
    """
    columns = ["key", "id", "member", "uid"]
    found = ledger[(ledger[columns] == name).any(axis=1)]
    if found.empty and 6 <= len(name) <= ID_DIGITS:
        found = ledger[ledger["id"].str.startswith(name.lower())]
    if found.empty:
        ends = ledger["key"].str.rpartition("/")[2] == name.rpartition("/")[2]
        is_whole = ledger["key"].str.contains("/") & ("/" in name)  # then their folders differ
        found = ledger[ends & ~is_whole]
        found = found if found["key"].nunique() == 1 else found.iloc[:0]
    if not found.empty:
        return found
    keys = ledger["key"].drop_duplicates()
    near = keys[keys.str.contains(name, regex=False, case=False)].head(3).tolist()
    near = near or difflib.get_close_matches(name, keys.head(100_000).tolist(), 3, 0.5)
    hint = f"; did you mean {', '.join(near)}" if near else ""
    raise InputError(
        f"--explain {name}: no pair of that key, uid or id (its first six digits or more) was seen "
        f"in this run{hint}; "
        "stage3/ledger.parquet lists them all (what --max_train_samples leaves out is not read)"
    )


def explain(
    ledger: Ledger,
    name: str,
    clusters: Sequence[Mapping[str, Any]],
    target_size_ratio: float,
    caution: str = "",
    guard: str = "",
) -> str:
    """The story of the pairs of a key or an id, for people.

    Args:
        ledger: of a run.
        name: see `find_pairs`.
        clusters: stage3/cluster_categorization.json.
        target_size_ratio: the share that was to be kept.
        caution: why inferred influence says little, where it does; "" where it can be believed.
        guard: how much influence counts in a value and why not in full; "" where it does.

    Raises:
        InputError: there is no such pair.
    """
    rows = find_pairs(ledger.ledger, name)
    doubts = (caution, guard)
    return "\n\n".join(
        _story({str(k): v for k, v in row.items()}, ledger, clusters, target_size_ratio, doubts)
        for row in rows.to_dict("records")
    )


def _story(
    row: Mapping[str, Any],
    ledger: Ledger,
    clusters: Sequence[Mapping[str, Any]],
    target_size_ratio: float,
    doubts: tuple[str, str],
) -> str:
    place = [str(row["shard"])] if row["shard"] else []
    place += [str(row["member"])] if row["member"] else []
    place += [f"row {row['row']}"] if row["row"] >= 0 else []
    lines = [
        ("key", row["key"]),
        ("id", row["id"] or "none: its image or caption cannot be used"),
        ("caption", row["caption"] or "none"),
        ("source", ", ".join(place) or "drawn"),
    ]
    if row["status"] == SKIPPED:
        detail = f" ({row['detail']})" if row["detail"] else ""
        lines.append(
            ("skipped", f"{row['reason']}{detail}, while reading the {row['split']} split")
        )
        if row["duplicate_of"] >= 0:
            first = ledger.ledger[ledger.ledger["position"] == row["duplicate_of"]].iloc[0]
            lines.append(("instead", f"{first['key']}: {first['caption']}"))
    elif row["split"] != "train":
        lines += _held_out_story(row)
    else:
        lines += _training_story(row, ledger.cut, clusters, target_size_ratio, doubts)
    return "\n".join(f"{name:<12}{text}" for name, text in lines)


def _log_odds(row: Mapping[str, Any]) -> str:
    """How likely the pair is right; empty where it was not judged, as in an earlier ledger."""
    log_odds = row.get("log_odds")
    if pd.isna(log_odds):
        return ""
    return f"log odds {log_odds:+.2f} that image and caption belong together"


def _held_out_story(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("decision", f"held out in the {row['split']} split: {row['decision_reason']}")]
    if log_odds := _log_odds(row):
        judged = "trusted" if row["trusted"] else "not trusted"
        lines.insert(0, ("agreement", f"{log_odds}: {judged}"))
    return lines


def _value_parts(row: Mapping[str, Any]) -> str:
    """What adds up to a value; ledgers of earlier runs know no nearness to held-out pairs."""
    nearness = row.get("relevance_part")
    nearness = 0.0 if pd.isna(nearness) else float(nearness)
    copies = row["value"] - row["influence_part"] - row["agreement_part"] - nearness
    parts = {"influence": row["influence_part"], "agreement": row["agreement_part"]}
    parts |= {"nearness to held-out pairs": nearness} if nearness else {}
    parts["near copies"] = copies
    return ", ".join(f"{name} {part:+.2f}" for name, part in parts.items())


def _training_story(
    row: Mapping[str, Any],
    cut: float | None,
    clusters: Sequence[Mapping[str, Any]],
    target_size_ratio: float,
    doubts: tuple[str, str],
) -> list[tuple[str, str]]:
    cluster = next(entry for entry in clusters if entry["cluster"] == row["cluster"])
    cell = next(cell for cell in cluster["cells"] if cell["cell"] == row["cell"])
    how = "evaluated" if row["evaluated"] else "inferred from pairs like it"
    judged = f"it {'helps' if row['influence'] > 0 else 'hurts'} held-out data"
    caution, guard = doubts
    if caution and not row["evaluated"]:
        judged = caution
    weighed = f"; {guard}" if guard else ""
    copies = int(row["better_copies"])
    agreement = ", ".join(filter(None, (f"CLIP score {row['clip_score']:.3f}", _log_odds(row))))
    where = "" if cut is None else f"; the cut that keeps {target_size_ratio:.0%} is at {cut:+.2f}"
    fate = f", weight {row['weight']:.3f}" if row["decision"] == KEPT else ""
    return [
        (
            "topic",
            f"cluster {row['cluster']}: {', '.join(cluster['terms'][:5])}; {cluster['size']} pairs,"
            f" {cluster['category']}, influence {cluster['influence_percent']:+.3f} %"
            f" +/- {cluster['stderr_percent']:.3f}",
        ),
        ("cell", f"{row['cell']}: {cell['meaning']}"),
        ("agreement", agreement),
        ("influence", f"{row['influence']:+.4f}: {judged} ({how}){weighed}"),
        ("near copies", f"{copies} with a better caption" if copies else "none that is better"),
        *([("groups", str(row["group"]))] if row["group"] else []),
        ("value", f"{row['value']:+.2f} = {_value_parts(row)} (standard deviations){where}"),
        ("decision", f"{row['decision']}{fate}: {row['decision_reason']}"),
    ]

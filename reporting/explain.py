"""What happened to one pair and why, from the ledger."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from artifacts.provenance import CURATION, LEDGER, PAIR_INFLUENCE, StaleError
from artifacts.settings import InputError
from artifacts.store import Store
from attribution.results import PairInfluence
from curation import CurationResult
from reporting.estimate import caution
from reporting.ledger import DROPPED_BY_REVIEW, FAIRNESS, KEPT, KEPT_BY_REVIEW, SKIPPED, Ledger
from reporting.standing import guard

ID_DIGITS = 32


def explain_pair(store: Store, name: str) -> str:
    """What happened to the pairs of a key or an id in the run that a folder holds.

    Raises:
        InputError: there is no whole run in it, or no such pair.
    """
    try:
        ledger = store.read(LEDGER, Ledger)
        curated = store.read(CURATION, CurationResult)
        ratio = store.manifest(CURATION)["settings"]["target_size_ratio"]
    except StaleError as error:
        raise InputError(
            f"--explain: {store.root / LEDGER.folder} {error}; run the pipeline first"
        ) from error
    try:
        quality = store.read(PAIR_INFLUENCE, PairInfluence).quality
    except StaleError:  # the story can be told without stage 2
        quality = None
    doubts = {"caution": caution(quality), "guard": guard(quality)}
    return explain(ledger, name, curated.categorization, float(ratio), **doubts)


def find_pairs(ledger: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a key, of an id, of the beginning of an id or of a uid of the data.

    A file name stands for the key it ends, where that is the only one: a key may name the folder,
    and that of a file that is missing cannot.

    Raises:
        InputError: there is none; names that look like it are given.
    """
    if not name.strip():
        raise InputError("--explain takes the key, uid or id of a pair; got nothing")
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
    told = Told(ledger.cut, topics(clusters), target_size_ratio, (caution, guard))
    instead = stayed(ledger.ledger)
    stories = []
    for found in rows.to_dict("records"):
        row = {str(k): v for k, v in found.items()}
        lines = [
            ("key", row["key"]),
            ("id", row["id"] or "none: its image or caption cannot be used"),
            ("caption", row["caption"] or "none"),
            *story(row, told, instead),
        ]
        stories.append("\n".join(f"{name:<12}{text}" for name, text in lines))
    return "\n\n".join(stories)


class Told(NamedTuple):
    """What the stories of all pairs of a run share."""

    cut: float | None  # the highest value of a dropped pair
    topics: Mapping[int, Mapping[str, Any]]  # see `topics`
    target_size_ratio: float
    doubts: tuple[str, str]  # caution and guard


def topics(clusters: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """The clusters of stage3/cluster_categorization.json by their numbers, cells by theirs."""
    return {
        int(cluster["cluster"]): {
            **cluster,
            "cells": {int(cell["cell"]): cell for cell in cluster["cells"]},
        }
        for cluster in clusters
    }


def stayed(ledger: pd.DataFrame) -> dict[int, str]:
    """Key and caption of the pairs that stayed in the place of duplicates, by their positions."""
    found = ledger[ledger["position"].isin(ledger["duplicate_of"])]
    rows = zip(found["position"], found["key"], found["caption"], strict=True)
    return {int(position): f"{key}: {caption}" for position, key, caption in rows}


def story(row: Mapping[str, Any], told: Told, instead: Mapping[int, str]) -> list[tuple[str, str]]:
    """What happened to a pair and by what it was judged: (name, text) each.

    Args:
        row: of the ledger.
        told: what the stories of all pairs share.
        instead: see `stayed`.
    """
    place = [str(row["shard"])] if row["shard"] else []
    place += [str(row["member"])] if row["member"] else []
    place += [f"row {row['row']}"] if row["row"] >= 0 else []
    lines = [("source", ", ".join(place) or "drawn")]
    if row["status"] != SKIPPED:
        return lines + (
            _training_story(row, told) if row["split"] == "train" else _held_out_story(row)
        )
    detail = f" ({row['detail']})" if row["detail"] else ""
    lines.append(("skipped", f"{row['reason']}{detail}, while reading the {row['split']} split"))
    if row["duplicate_of"] in instead:
        lines.append(("instead", instead[row["duplicate_of"]]))
    return lines


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
    nearness, fairness = (
        0.0 if pd.isna(part) else float(part)
        for part in (row.get("relevance_part"), row.get(FAIRNESS))
    )
    copies = row["value"] - row["influence_part"] - row["agreement_part"] - nearness - fairness
    copies = round(copies, 6) + 0.0  # a zero without a sign
    parts = {"influence": row["influence_part"], "agreement": row["agreement_part"]}
    parts |= {"nearness to held-out pairs": nearness} if nearness else {}
    parts |= {"help for the worst-served group": fairness} if fairness else {}
    parts["near copies"] = copies
    return ", ".join(f"{name} {part:+.2f}" for name, part in parts.items())


def _training_story(row: Mapping[str, Any], told: Told) -> list[tuple[str, str]]:
    cluster, cut = told.topics[int(row["cluster"])], told.cut
    cell = cluster["cells"][int(row["cell"])]
    how = "evaluated" if row["evaluated"] else "inferred from pairs like it"
    judged = f"it {'helps' if row['influence'] > 0 else 'hurts'} held-out data"
    caution, guard = told.doubts
    if caution and not row["evaluated"]:
        judged = caution
    weighed = f"; {guard}" if guard else ""
    copies = int(row["better_copies"])
    agreement = ", ".join(filter(None, (f"CLIP score {row['clip_score']:.3f}", _log_odds(row))))
    where = (
        "" if cut is None else f"; the cut that keeps {told.target_size_ratio:.0%} is at {cut:+.2f}"
    )
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
        ("decision", f"{row['decision']}{fate}: {row['decision_reason']}{_beside(row, cut)}"),
    ]


def _beside(row: Mapping[str, Any], cut: float | None) -> str:
    """Where the value of a pair stands that a reviewer has decided on; empty for other pairs."""
    if cut is None or row["decision_reason"] not in (KEPT_BY_REVIEW, DROPPED_BY_REVIEW):
        return ""
    return f"; its value is {'above' if row['value'] >= cut else 'below'} the cut of the others"

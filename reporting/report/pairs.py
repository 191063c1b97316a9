"""What the report knows of every pair: numbers, who keeps it, its copies, its story.

Pairs are numbered by the order of their ids, so that a page finds the file that holds any of them
by its id or its number alone.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from reporting.explain import Told, stayed, story
from reporting.report.pair_map import PairMap

NOT_KNOWN = -1
CODED = ("split", "decision", "reason", "fault")  # columns of few words
# After the decimal point of numbers.
DIGITS = {"value": 3, "influence": 4, "agreement": 2, "weight": 3, "x": 4, "y": 4}
# Who keeps pairs, beside methods.
INFLUENCE_ALONE, AGREEMENT_ALONE = "influence_alone", "agreement_alone"
THIS_RUN, OTHER_RUN = "this_run", "other_run"


class TrainingFacts(NamedTuple):
    """What stages say of the n training pairs beside the ledger, in the order of its rows."""

    pair_map: PairMap
    faults: Sequence[str]  # as planted; "" where there is none
    keeps: Mapping[str, Bool[np.ndarray, " n"]]  # who keeps them: methods, other runs
    copies: Int64[np.ndarray, "m 2"]  # (pair, near copy with a better caption)


def pair_table(ledger: pd.DataFrame, facts: TrainingFacts, told: Told) -> pd.DataFrame:
    """One row a pair of the ledger, numbered by the order of their ids.

    Args:
        ledger: of the run; its training pairs in the order of `facts`.
        facts: of the n training pairs.
        told: what their stories share.
    """
    ids = ledger["id"].fillna("").to_numpy(str)
    number = np.argsort(np.argsort(ids, kind="stable"), kind="stable")
    is_train = ((ledger["split"] == "train") & (ledger["status"] == "read")).to_numpy()
    rows, n = np.flatnonzero(is_train), len(facts.faults)
    assert len(rows) == n, "the ledger is of other training pairs"
    numbers, instead = number[rows], stayed(ledger)
    pairs = ledger.assign(id=ids)
    table = pd.DataFrame(
        {
            "number": number,
            **{name: pairs[name] for name in ("id", "key", "caption", "split", "decision")},
            "reason": pairs["decision_reason"].astype(str),
            "cluster": pairs["cluster"].astype("Int64").fillna(NOT_KNOWN).astype(int),
            "cell": pairs["cell"].astype("Int64").fillna(NOT_KNOWN).astype(int),
            **{name: pairs[name] for name in ("value", "influence", "weight")},
            "agreement": pairs["log_odds"].fillna(pairs["clip_score"]),
            "trusted": pairs["trusted"].astype("boolean").fillna(False).astype(bool),
            "image_sha256": pairs["image_sha256"].fillna("").astype(str),
            "story": [story(row, told, instead) for row in _rows(ledger)],
        }
    )
    table["fault"], table["keeps"], table["family"] = "", 0, NOT_KNOWN
    table.loc[is_train, "fault"] = list(facts.faults)
    table.loc[is_train, "keeps"] = sum(
        kept.astype(np.int64) << bit for bit, kept in enumerate(facts.keeps.values())
    )
    table.loc[is_train, "family"] = families(facts.copies, n)
    table[["x", "y"]] = np.nan
    table.loc[is_train, ["x", "y"]] = facts.pair_map.places.astype(np.float64)
    table["near"] = _scattered(len(table), rows, numbers[facts.pair_map.neighbours].tolist())
    table["copies"] = _scattered(len(table), rows, _better_copies(facts.copies, numbers))
    return table.sort_values("number").reset_index(drop=True)


def _rows(ledger: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of a ledger, by name."""
    names = ledger.columns.tolist()
    return (dict(zip(names, row, strict=True)) for row in ledger.itertuples(index=False, name=None))


def _scattered(n: int, rows: Int64[np.ndarray, " m"], values: Sequence[Any]) -> list[Any]:
    """Values at their rows, empty lists elsewhere."""
    found: list[Any] = [[]] * n
    for row, value in zip(rows, values, strict=True):
        found[row] = value
    return found


def _better_copies(
    copies: Int64[np.ndarray, "m 2"], numbers: Int64[np.ndarray, " n"]
) -> list[list[int]]:
    """The numbers of the better copies of each of n pairs."""
    better: list[list[int]] = [[] for _ in numbers]
    for pair, copy in copies:
        better[pair].append(int(numbers[copy]))
    return better


def families(copies: Int64[np.ndarray, "m 2"], n: int) -> Int64[np.ndarray, " n"]:
    """The family of near copies that each of n pairs belongs to; -1 for those without copies."""
    links = coo_matrix((np.ones(len(copies)), (copies[:, 0], copies[:, 1])), shape=(n, n))
    _, family = connected_components(links, directed=False)
    alone = np.bincount(family, minlength=n)[family] == 1
    return np.where(alone, NOT_KNOWN, family).astype(np.int64)


def kept_by_one_alone(
    influence: np.ndarray, agreement: np.ndarray, n_kept: int
) -> dict[str, Bool[np.ndarray, " n"]]:
    """The pairs that influence, or agreement, would keep if it alone decided.

    Args:
        influence: (n,) parts of the pairs' values; so is `agreement`.
        agreement: see there.
        n_kept: size of the curated set.
    """
    keeps = {}
    for name, part in ((INFLUENCE_ALONE, influence), (AGREEMENT_ALONE, agreement)):
        kept = np.zeros(len(part), dtype=bool)
        kept[np.argsort(-part, kind="stable")[:n_kept]] = True
        keeps[name] = kept
    return keeps


# --- How they travel ------------------------------------------------------------------------------


def packed(content: Any) -> str:
    """JSON, compressed, as text that needs no escape in HTML, attributes or scripts."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), 9, mtime=0)).decode("ascii")


def columns(table: pd.DataFrame, words: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    """Rows of `pair_table` as the page reads them, a list a column; words as their numbers."""
    found: dict[str, list[Any]] = {}
    for name in table.columns:
        column = table[name]
        if name in CODED:
            found[name] = pd.Categorical(column, categories=list(words[name])).codes.tolist()
        elif name in DIGITS:
            rounded = column.astype(float).round(DIGITS[name])
            found[name] = [None if np.isnan(value) else value for value in rounded]
        else:
            found[name] = column.tolist()
    return found


def vocabularies(table: pd.DataFrame) -> dict[str, list[str]]:
    """The words of the coded columns, the most frequent first."""
    return {name: table[name].value_counts().index.tolist() for name in CODED}

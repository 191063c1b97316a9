"""Which pairs lie within the page, and which in the report, where there are too many for either.

A report of a million pairs would take minutes and gigabytes, and nobody looks at them all.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from reporting.report.pairs import NOT_KNOWN, families

N_TRAINING, N_OTHERS = 5_000, 3_000  # pairs within the page; the others are held out or skipped
# Pairs that the report holds at most, within the page and beside it: as many take 60 seconds.
MOST_TRAINING, MOST_OTHERS = 100_000, 20_000
N_EXTREMES = 48  # of every order, that are in the page whatever the draw
N_IN_FAMILIES = 400  # near copies, whole families of them


def in_report(
    ledger: pd.DataFrame,
    copies: Int64[np.ndarray, "m 2"] | None,
    cut: float | None,
    rng: np.random.Generator,
) -> Bool[np.ndarray, " n"]:
    """The rows of a ledger that the report shows: all, or of very many a choice as for the page.

    Args:
        ledger: of the run.
        copies: (pair, near copy with a better caption) among the training pairs; None: not known.
        cut: the highest value of a dropped pair.
        rng: the draw; not used where all are shown.
    """
    is_train = ledger["value"].notna().to_numpy()
    n = int(is_train.sum())
    if n <= MOST_TRAINING and len(ledger) - n <= MOST_OTHERS:
        return np.ones(len(ledger), dtype=bool)
    family = np.full(len(ledger), NOT_KNOWN)
    if copies is not None:
        family[is_train] = families(copies, n)
    columns = {name: ledger[name] for name in ("split", "decision", "value", "influence")}
    columns |= {
        "reason": ledger["decision_reason"].astype(str),
        "cell": ledger["cell"].astype("Int64").fillna(NOT_KNOWN).astype(int),
        "agreement": ledger["log_odds"].fillna(ledger["clip_score"]),
        "family": pd.Series(family, index=ledger.index),
    }
    return within_page(pd.DataFrame(columns), cut, rng, (MOST_TRAINING, MOST_OTHERS))


def within_page(
    table: pd.DataFrame,
    cut: float | None,
    rng: np.random.Generator,
    most: tuple[int, int] | None = None,
) -> Bool[np.ndarray, " n"]:
    """The pairs within the page: all, or extremes, families and a draw from every stratum.

    Args:
        table: see `pair_table`.
        cut: the highest value of a dropped pair.
        rng: the draw.
        most: training pairs, and others; None: as many as lie within the page.
    """
    inside = np.zeros(len(table), dtype=bool)
    is_train = table["value"].notna().to_numpy()
    train, others = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    for rows, room in zip((train, others), most or (N_TRAINING, N_OTHERS), strict=True):
        part = table.iloc[rows]
        if len(rows) <= room:
            inside[rows] = True
            continue
        strata = part.groupby(["split", "reason", "cell", "decision"], sort=True).ngroup()
        if rows is train:
            inside[rows[_worth_seeing(part, cut)]] = True
        room -= int(inside[rows].sum())
        rest = np.flatnonzero(~inside[rows])
        inside[rows[rest[stratified(strata.to_numpy()[rest], room, rng)]]] = True
    return inside


def _worth_seeing(part: pd.DataFrame, cut: float | None) -> Int64[np.ndarray, " m"]:
    """Rows at the ends of every order, on both sides of the cut, and whole families of copies."""
    rows = set[int]()
    orders = [part[name] for name in ("value", "influence", "agreement")]
    orders += [-order for order in orders] + [(part["value"] - (cut or 0.0)).abs()]
    for decision in part["decision"].unique():
        of_side = np.flatnonzero(part["decision"] == decision)
        for order in orders:
            best = np.argsort(order.to_numpy()[of_side], kind="stable")[:N_EXTREMES]
            rows.update(of_side[best].tolist())
    family = part["family"].to_numpy()
    members = np.flatnonzero(family != NOT_KNOWN)
    members = members[np.argsort(family[members], kind="stable")]
    some = members[:N_IN_FAMILIES]
    if len(members) > len(some):  # the last family would be cut
        some = some[family[some] != family[members[len(some)]]]
    return np.array(sorted({*rows, *some.tolist()}), dtype=np.int64)


def stratified(
    strata: Int64[np.ndarray, " n"], size: int, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Rows drawn at random from every stratum by its size, one at least as far as they reach.

    Args:
        strata: of each row, any numbers.
        size: rows drawn, at most.
        rng: the draw.
    """
    order = rng.permutation(len(strata))
    _, index, sizes = np.unique(strata[order], return_inverse=True, return_counts=True)
    by_stratum = np.argsort(index, kind="stable")
    rank = np.empty(len(order))
    rank[by_stratum] = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[index[by_stratum]]
    turn = np.where(rank == 0, 0, (rank + 0.5) / sizes[index])  # the first of each come first
    drawn: np.ndarray = order[np.lexsort((-sizes[index], turn))][:size]
    return np.sort(drawn)

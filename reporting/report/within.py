"""Which pairs lie within the page where there are more than one should hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from reporting.report.pairs import NOT_KNOWN

N_TRAINING, N_OTHERS = 5_000, 3_000  # pairs within the page; the others are held out or skipped
N_EXTREMES = 48  # of every order, that are in the page whatever the draw
N_IN_FAMILIES = 400  # near copies, whole families of them


def within_page(
    table: pd.DataFrame, cut: float | None, rng: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    """The pairs within the page: all, or extremes, families and a draw from every stratum.

    Args:
        table: see `pair_table`.
        cut: the highest value of a dropped pair.
        rng: the draw.
    """
    inside = np.zeros(len(table), dtype=bool)
    is_train = table["value"].notna().to_numpy()
    train, others = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    for rows, most in ((train, N_TRAINING), (others, N_OTHERS)):
        part = table.iloc[rows]
        if len(rows) <= most:
            inside[rows] = True
            continue
        strata = part.groupby(["split", "reason", "cell", "decision"], sort=True).ngroup()
        if rows is train:
            inside[rows[_worth_seeing(part, cut)]] = True
        room = most - int(inside[rows].sum())
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

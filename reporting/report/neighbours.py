"""The nearest other pairs of each pair, by the cosine of their joint embeddings.

Up to `EXACT_UP_TO` pairs all are compared. Beyond, pairs are split into groups that lie close
together, by repeated two-means, and each group is compared with the groups around it: the time then
grows with the number of pairs, not with its square, and some of the nearest are missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int32, Int64
from tqdm import tqdm

# Comparing all of 20,000 takes a few seconds. Beyond, 96 % of the nearest eight of 100,000 pairs
# are found, 94 % of those of a million (benchmarks/results/pair_map.json).
EXACT_UP_TO = 20_000
GROUP_SIZE = 500  # pairs of a group at most
LOOKED_THROUGH = 8_000  # pairs that a group is compared with, itself among them
SMALLER_SIDE = 0.1  # least share of a group that is split off: no more than log(n) splits in a row
SAMPLE = 2_000  # pairs that say where a group is split
TWO_MEANS_ROUNDS = 10
ROWS_AT_ONCE = 8192
SIMILARITIES_AT_ONCE = 2**23  # of a similarity matrix: 32 MB
# Cosines are compared in steps of a millionth: what rounding makes of equal ones is a tie.
STEPS = 2**20
ITSELF = -2 * STEPS  # farther than anything else


def nearest_neighbours(
    embeddings: Float32[np.ndarray, "n d2"], k: int, *, rng: np.random.Generator
) -> tuple[Int32[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """Rows of the k nearest other pairs of each, nearest first, and their cosines.

    Copies of a pair are its neighbours as any other pair; ties go to the earlier row. Exact up to
    20,000 pairs, then at a cost that is linear but for a logarithm.

    Args:
        embeddings: of any norm.
        k: 0 <= k < n.
        rng: draws the pairs that say where groups are split; not used where all are compared.
    """
    n = len(embeddings)
    rows = np.empty((n, k), dtype=np.int32)
    cosines = np.empty((n, k), dtype=np.float32)
    if k == 0:
        return rows, cosines
    everything = np.arange(n)
    if n <= EXACT_UP_TO:
        searches = iter([(everything, everything)])
    else:
        searches = _with_surroundings(embeddings, split_into_groups(embeddings, rng), k)
    with tqdm(total=n, desc="neighbours", unit="pair", disable=None) as progress:
        for members, candidates in searches:
            others = unit_rows(embeddings[candidates])
            step = max(1, SIMILARITIES_AT_ONCE // len(candidates))
            for start in range(0, len(members), step):
                block = members[start : start + step]
                # (rows of the block, candidates)
                similar = whole_steps(unit_rows(embeddings[block]) @ others.T)
                similar[np.arange(len(block)), np.searchsorted(candidates, block)] = ITSELF
                columns, cosines[block] = most_similar(similar, k)
                rows[block] = candidates[columns]
                progress.update(len(block))
    return rows, cosines


def unit_rows(rows: Float32[np.ndarray, "m d2"]) -> Float32[np.ndarray, "m d2"]:
    """The rows at norm one; a zero row stays zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = rows / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


def whole_steps(cosines: Float32[np.ndarray, "q m"]) -> Int32[np.ndarray, "q m"]:
    """Cosines in steps of about a millionth, so that equal ones are equal."""
    steps: np.ndarray = np.rint(cosines * np.float32(STEPS)).astype(np.int32)
    return steps


def most_similar(
    similar: Int32[np.ndarray, "q m"], k: int
) -> tuple[Int64[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """Columns of each row's k most similar, best first, ties by column; and their cosines.

    Args:
        similar: cosines in whole steps.
        k: 1 <= k <= m.
    """
    place = similar.shape[1] - k
    least = np.partition(similar, place, axis=1)[:, place, None]  # (q, 1), the k-th best
    chosen = similar >= least
    crowded = np.flatnonzero(np.count_nonzero(chosen, axis=1) > k)
    if len(crowded):  # more are tied than there is room for
        tied = similar[crowded] == least[crowded]
        room = k - np.count_nonzero(similar[crowded] > least[crowded], axis=1)
        chosen[crowded] &= ~(tied & (np.cumsum(tied, axis=1) > room[:, None]))
    columns = np.nonzero(chosen)[1].reshape(-1, k)
    best = np.take_along_axis(similar, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    cosines = np.clip(best.astype(np.float32) / STEPS, -1, 1)
    return np.take_along_axis(columns, order, axis=1), cosines


def split_into_groups(
    embeddings: Float32[np.ndarray, "n d2"], rng: np.random.Generator
) -> list[Int64[np.ndarray, " _"]]:
    """Rows of groups of at most `GROUP_SIZE` pairs that lie close together; each pair is in one.

    A group that is too large is split between the two means of a sample of it; a smaller side than
    a tenth gets the pairs next to it. So groups of equal pairs are split too.
    """
    groups: list[np.ndarray] = []
    too_large: list[np.ndarray] = [np.arange(len(embeddings))]
    while too_large:
        rows = too_large.pop()
        if len(rows) <= GROUP_SIZE:
            groups.append(np.sort(rows))
            continue
        sample = rng.choice(rows, min(len(rows), SAMPLE), replace=False)
        direction, middle = _two_means(unit_rows(embeddings[sample]))
        along = np.concatenate(
            [unit_rows(embeddings[block]) @ direction for block in _blocks(rows, ROWS_AT_ONCE)]
        )
        nearer = np.count_nonzero(along <= middle)
        if nearer in (0, len(rows)):  # all are equal, but for rounding
            nearer = len(rows) // 2
        smaller = max(1, int(len(rows) * SMALLER_SIDE))
        cut = int(np.clip(nearer, smaller, len(rows) - smaller))
        order = np.argsort(along, kind="stable")
        too_large += [rows[order[:cut]], rows[order[cut:]]]
    return groups


def _two_means(
    points: Float32[np.ndarray, "s d2"],
) -> tuple[Float32[np.ndarray, " d2"], np.float32]:
    """From the one mean to the other, and where along that direction the middle lies."""
    first, second = points[0], points[1]
    for _ in range(TWO_MEANS_ROUNDS):
        beyond = points @ (second - first) > (second @ second - first @ first) / 2
        if beyond.all() or not beyond.any():
            break
        first, second = points[~beyond].mean(axis=0), points[beyond].mean(axis=0)
    return second - first, (second @ second - first @ first) / 2


def _with_surroundings(
    embeddings: Float32[np.ndarray, "n d2"], groups: list[Int64[np.ndarray, " _"]], k: int
) -> Iterator[tuple[Int64[np.ndarray, " g"], Int64[np.ndarray, " m"]]]:
    """Each group with the sorted rows that it is compared with: its own and the next groups'."""
    centers = np.stack([unit_rows(embeddings[rows]).mean(axis=0) for rows in groups])
    half_squares = (centers**2).sum(axis=1) / 2
    sizes = np.array([len(rows) for rows in groups])
    for g, rows in enumerate(groups):
        nearness = centers @ centers[g] - half_squares
        nearness[g] = np.inf  # equal to another group's where pairs are
        order = np.argsort(-nearness, kind="stable")
        enough = np.searchsorted(np.cumsum(sizes[order]), max(LOOKED_THROUGH, k + 1)) + 1
        yield rows, np.sort(np.concatenate([groups[other] for other in order[:enough]]))


def _blocks(rows: Int64[np.ndarray, " m"], size: int) -> Iterator[Int64[np.ndarray, " b"]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]

"""Groups of rows that lie close together, so that neighbours are looked for within groups only.

About sqrt(n) groups of about sqrt(n) rows each: comparing within groups costs n^1.5 instead of n^2,
and so does finding them, which is Lloyd's algorithm (1982) on a sample, and then one look at every
row. They stand for closeness alone: topics are fewer, and told apart with more care.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Int64
from tqdm import tqdm

from learner.kmeans import moved, sum_up

SAMPLED_PER_GROUP = 32  # rows that the centres are fitted to
MOST_SAMPLED = 32_768  # of them; bounds memory
LLOYD_STEPS = 4
LARGEST = 4  # times its share of the rows that a group may hold
ROWS_AT_ONCE = 4096


def nearby_groups(
    embeddings: Float[np.ndarray, "n d"], n_groups: int, rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """The group of each row, rows of high centred cosine mostly in the same; 0 to their number - 1.

    No group holds more than four times its share, n / n_groups: a larger one is grouped once more,
    and what then is too large still (equal rows, say) is cut at random. So there may be up to about
    twice as many groups as were asked for, or fewer, where rows are equal. Equal rows are in one
    group unless there are more of them than a group may hold.

    Args:
        embeddings: any features, such as a memory map: read in blocks of rows, in order.
        n_groups: about how many groups, such as sqrt(n).
        rng: draws the sample and its centres, and cuts.
    """
    n = len(embeddings)
    n_groups = max(1, min(n_groups, n))
    largest = LARGEST * -(-n // n_groups)
    groups = _grouped(embeddings, np.arange(n), n_groups, rng)
    for rows in _too_large(groups, largest):
        parts = _grouped(embeddings, rows, -(-len(rows) * LARGEST // largest), rng)
        groups[rows] = int(groups.max()) + 1 + parts
    for rows in _too_large(groups, largest):
        shuffled = rng.permutation(rows)
        for part in np.array_split(shuffled, -(-len(rows) // largest)):
            groups[part] = int(groups.max()) + 1
    return np.asarray(np.unique(groups, return_inverse=True)[1].reshape(n), dtype=np.int64)


def members_of(groups: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, " m"]]:
    """The rows of every group that has any, in rising order."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []


def _too_large(groups: Int64[np.ndarray, " n"], largest: int) -> list[Int64[np.ndarray, " m"]]:
    sizes = np.bincount(groups)
    return [np.flatnonzero(groups == k) for k in np.flatnonzero(sizes > largest)]


def _grouped(
    embeddings: Float[np.ndarray, "n d"],
    rows: Int64[np.ndarray, " m"],
    n_groups: int,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " m"]:
    """The nearest of so many centres for each of some rows, which are in rising order."""
    n_sampled = min(len(rows), max(n_groups, min(SAMPLED_PER_GROUP * n_groups, MOST_SAMPLED)))
    sampled = np.sort(rng.choice(len(rows), n_sampled, replace=False))
    sample = np.concatenate(list(_blocks(embeddings, rows[sampled])))
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    sample = centred_unit(sample, mean)
    centres = sample[np.sort(rng.choice(n_sampled, n_groups, replace=False))]
    for _ in range(LLOYD_STEPS):
        centres = moved(sample, centres, sum_up(sample, centres))
    found = np.empty(len(rows), dtype=np.int64)
    with tqdm(total=len(rows), desc="groups", unit="row", disable=None, leave=False) as bar:
        for start, block in zip(_starts(len(rows)), _blocks(embeddings, rows), strict=True):
            found[start : start + len(block)] = nearest(centred_unit(block, mean), centres)
            bar.update(len(block))
    return found


def _starts(n: int) -> range:
    return range(0, n, ROWS_AT_ONCE)


def _blocks(
    embeddings: Float[np.ndarray, "n d"], rows: Int64[np.ndarray, " m"]
) -> Iterator[Float32[np.ndarray, "b d"]]:
    """These rows, so many at a time."""
    for start in _starts(len(rows)):
        chosen = rows[start : start + ROWS_AT_ONCE]
        if chosen[-1] - chosen[0] == len(chosen) - 1:  # without gaps: a view, not a gathering
            yield np.asarray(embeddings[chosen[0] : chosen[-1] + 1], dtype=np.float32)
        else:
            yield np.asarray(embeddings[chosen], dtype=np.float32)


def centred_unit(
    block: Float[np.ndarray, "b d"], mean: Float32[np.ndarray, " d"]
) -> Float[np.ndarray, "b d"]:
    """Unit rows after centring; a row that is the mean stays zero."""
    centred = block - mean
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(norms, np.finfo(np.float32).tiny))


def nearest(
    block: Float[np.ndarray, "b d"], centres: Float[np.ndarray, "k d"]
) -> Int64[np.ndarray, " b"]:
    """The centre of least distance to each row; of equal ones the first."""
    closeness = block @ centres.T - (centres**2).sum(axis=1) / 2
    return np.asarray(closeness.argmax(axis=1), dtype=np.int64)

"""Near copies: pairs whose images show the same, up to a crop or a compression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

# A pair is a near copy of another where their images are this much closer than its surroundings:
# photographs of one scene are alike without being copies (drawn ones more so).
CLOSER = 0.3  # cosine distance to a copy, as a share of that to the `SURROUNDINGS`-th nearest
SURROUNDINGS = 20
IDENTICAL = 1e-5  # cosine distance of equal images, but for rounding, whatever their surroundings
MOST_LINKS = 8  # that are kept of a pair, however large its family
SIMILARITIES_AT_ONCE = 1024  # of a similarity matrix


class NearCopies(NamedTuple):
    """The near copies of n pairs that have a better caption."""

    better: Int64[np.ndarray, " n"]  # how many each has
    links: Int64[np.ndarray, "m 2"]  # (pair, near copy), the best `MOST_LINKS` of each pair


def better_copies(
    image_features: Float[np.ndarray, "n d_i"],
    groups: Int64[np.ndarray, " n"],
    agreement: Float[np.ndarray, " n"],
    similarity: float,
) -> Int64[np.ndarray, " n"]:
    """How many near copies of its image each pair has whose own caption agrees better.

    See `near_copies`.
    """
    return near_copies(image_features, groups, agreement, similarity).better


def near_copies(
    image_features: Float[np.ndarray, "n d_i"],
    groups: Int64[np.ndarray, " n"],
    agreement: Float[np.ndarray, " n"],
    similarity: float,
) -> NearCopies:
    """The near copies of its image that each pair has whose own caption agrees better.

    Images i and j are near copies where their centred cosine s_ij is at least `similarity` and

        1 - s_ij < 0.3 (1 - s_i)        s_i: that of i's 20th nearest image

    or the same with i and j exchanged, and where they are equal. The best of a family of copies has
    none better, its second best has one. A family larger than the surroundings hides its members,
    unless they are equal. Only pairs of one group are compared, in blocks of rows, never n x n at
    once.

    Args:
        image_features: of any encoder; copies lie close together in all of them.
        groups: pairs whose images may be copies of each other, such as image clusters.
        agreement: of image and caption, on any scale; ties go to the earlier row.
        similarity: least centred cosine of a near copy.
    """
    better, links = np.zeros(len(image_features), dtype=np.int64), [np.zeros((0, 2), np.int64)]
    for rows, near in _near_and_better(image_features, groups, agreement, similarity):
        better[rows.of_block] = near.sum(axis=1)
        pair, other = np.nonzero(near)  # of each pair the best first
        first = np.flatnonzero(np.diff(pair, prepend=-1))
        rank = np.arange(len(pair)) - np.repeat(first, np.diff(first, append=len(pair)))
        pair, other = pair[rank < MOST_LINKS], other[rank < MOST_LINKS]
        links.append(np.stack([rows.of_block[pair], rows.of_group[other]], axis=1))
    return NearCopies(better, np.concatenate(links))


class _Rows(NamedTuple):
    of_block: Int64[np.ndarray, " b"]
    of_group: Int64[np.ndarray, " g"]


def _near_and_better(
    image_features: Float[np.ndarray, "n d_i"],
    groups: Int64[np.ndarray, " n"],
    agreement: Float[np.ndarray, " n"],
    similarity: float,
) -> Iterator[tuple[_Rows, Bool[np.ndarray, "b g"]]]:
    """Block by block: whose near copy with a better caption which pair of the group is."""
    centred = image_features - image_features.mean(axis=0, dtype=np.float64).astype(np.float32)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.maximum(norms, np.finfo(np.float32).tiny)
    order = np.lexsort((np.arange(len(unit)), -agreement, groups))  # best first in each group
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        points = unit[members]
        reach = _reach(points)
        for start in range(0, len(points), SIMILARITIES_AT_ONCE):
            rows = slice(start, start + SIMILARITIES_AT_ONCE)
            cosines = points[rows] @ points.T
            near = 1 - cosines < np.maximum(reach[rows, None], reach[None, :])
            near &= cosines >= similarity
            earlier = np.arange(len(points))[None, :] < np.arange(len(points))[rows, None]
            yield _Rows(members[rows], members), near & earlier


def _reach(points: Float[np.ndarray, "g d_i"]) -> Float[np.ndarray, " g"]:
    """Cosine distance within which another image is much closer than the surroundings."""
    if len(points) < 2:
        return np.zeros(len(points), dtype=np.float32)
    k = min(SURROUNDINGS, len(points) - 1)
    reach = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), SIMILARITIES_AT_ONCE):
        rows = slice(start, start + SIMILARITIES_AT_ONCE)
        cosines = points[rows] @ points.T  # the image itself is the first of the nearest
        reach[rows] = CLOSER * (1 - np.partition(cosines, -(k + 1), axis=1)[:, -(k + 1)])
    return np.maximum(reach, np.float32(IDENTICAL))

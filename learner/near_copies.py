"""Near copies: pairs whose images show the same, up to a crop or a compression."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy import sparse
from tqdm import tqdm

from engine.room import StageRoom
from engine.shards import ShardFiles, Summary
from learner.groups import centred_unit
from learner.lending import Lent, lend

CPU = torch.device("cpu")

# A pair is a near copy of another where their images are this much closer than its surroundings:
# photographs of one scene are alike without being copies (drawn ones more so).
CLOSER = 0.3  # cosine distance to a copy, as a share of that to the `SURROUNDINGS`-th nearest
SURROUNDINGS = 20
IDENTICAL = 1e-5  # cosine distance of equal images, but for rounding, whatever their surroundings
MOST_LINKS = 8  # that are kept of a pair, however large its family
SIMILARITIES_AT_ONCE = 1024  # of a similarity matrix
GROUPS_A_JOB = 32
CANDIDATES_AT_ONCE = 2**22
ROWS_AT_ONCE = 4096
BORDER = 0.14  # squared distance that a group may be farther than a pair's own to be searched too,
OTHERS = 3  # and how many of these at most


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
    *,
    other_groups: Int64[np.ndarray, "n m"] | None = None,
    room: StageRoom | None = None,
) -> NearCopies:
    """The near copies of its image that each pair has whose own caption agrees better.

    Images i and j are near copies where their centred cosine s_ij is at least `similarity` and

        1 - s_ij < 0.3 (1 - s_i)        s_i: that of i's 20th nearest image

    or the same with i and j exchanged, and where they are equal. The best of a family of copies has
    none better, its second best has one. A family larger than the surroundings hides its members,
    unless they are equal. Each pair is compared with those of its group, and with those of which
    it is another group, in blocks of rows, never n x n at once. Features are read group by group.

    Args:
        image_features: of any encoder; copies lie close together in all of them.
        groups: pairs whose images may be copies of each other, such as image clusters.
        agreement: of image and caption, on any scale; ties go to the earlier row.
        similarity: least centred cosine of a near copy.
        other_groups: groups beside its own in which a pair may have copies, -1 for none; see
            `nearest_other_groups`.
        room: where groups are looked at; None: here, one after the other.
    """
    n = len(image_features)
    mean = image_features.mean(axis=0, dtype=np.float64).astype(np.float32)
    look = _Look(image_features, mean, similarity)
    grouped = _members(groups, other_groups, agreement)
    jobs = [_GroupsJob(some) for some in _hands(grouped, 1 if room is None else GROUPS_A_JOB)]
    over = (
        partial(_here, look)
        if room is None
        else partial(_side_by_side, lend(room, "images", look, CPU))
    )
    reach, better = np.zeros(n, dtype=np.float32), np.zeros(n, dtype=np.int64)
    for job, found in zip(jobs, over("surroundings", jobs), strict=True):
        reach[np.concatenate([g.rows[g.own] for g in job.groups])] = found
    jobs = [job._replace(reach=[reach[g.rows] for g in job.groups]) for job in jobs]
    links = list(over("near copies", jobs))
    for found in links:
        first = np.flatnonzero(np.diff(found[:, 0], prepend=-1))
        better[found[first, 0]] = found[first, 2]
    joined = np.concatenate([np.zeros((0, 3), np.int64), *links])
    return NearCopies(better, joined[:, :2])


class _Look(NamedTuple):
    """What every group is looked at by."""

    image_features: Float[np.ndarray, "n d_i"]
    mean: Float32[np.ndarray, " d_i"]
    similarity: float  # least cosine


class _Group(NamedTuple):
    """The rows that one group's pairs are compared with, those of best agreement first."""

    rows: Int64[np.ndarray, " g"]
    own: slice | Int64[np.ndarray, " m"]  # which of them are the group's own

    @property
    def n_own(self) -> int:
        return len(self.rows) if isinstance(self.own, slice) else len(self.own)


class _GroupsJob(NamedTuple):
    """Some groups."""

    groups: list[_Group]
    reach: list[Float32[np.ndarray, " g"]] | None = None  # of their rows, once it is known

    @property
    def n_own(self) -> int:
        return sum(group.n_own for group in self.groups)


def _hands(groups: Iterator[_Group], size: int) -> Iterator[list[_Group]]:
    """The groups, so many at a time."""
    while hand := list(islice(groups, size)):
        yield hand


def _here(look: _Look, what: str, jobs: list[_GroupsJob]) -> Iterator[np.ndarray]:
    """What is found of each job, one after the other."""
    n_pairs = sum(job.n_own for job in jobs)
    with tqdm(
        total=n_pairs, desc=what, unit="pair", unit_scale=True, disable=None, leave=False
    ) as bar:
        for job in jobs:
            yield find_in_groups(job, look)
            bar.update(job.n_own)


def _side_by_side(lent: Lent[_Look], what: str, jobs: list[_GroupsJob]) -> Iterator[np.ndarray]:
    """The same by whatever workers there are: products as small as a group's want one thread."""
    sizes = [job.n_own for job in jobs]
    for made in lent.run(what, write_found, jobs, unit="pair", sizes=sizes):
        yield np.array(made.load(".npy"))


def write_found(job: _GroupsJob, files: ShardFiles, look: _Look) -> Summary:
    """Write what `find_in_groups` finds."""
    files.write_npy(".npy", find_in_groups(job, look))
    return {}


def find_in_groups(job: _GroupsJob, look: _Look) -> np.ndarray:
    """The reach of the groups' own images, or once it is known their near copies."""
    return _reaches(job, look) if job.reach is None else _links(job, look)


def _reaches(job: _GroupsJob, look: _Look) -> Float32[np.ndarray, " m"]:
    """See `_reach`; of the groups' own rows."""
    return np.concatenate(
        [_reach(_unit(look.image_features, g.rows, look.mean), g.own) for g in job.groups]
    )


def _links(job: _GroupsJob, look: _Look) -> Int64[np.ndarray, "m 3"]:
    """(pair, near copy, how many it has), the best `MOST_LINKS` of each pair, best first."""
    found: list[np.ndarray] = [np.zeros((0, 3), np.int64)]
    for group, reach in zip(job.groups, job.reach or (), strict=True):
        points = _unit(look.image_features, group.rows, look.mean)
        for pair, other in _near_and_better(points, group, reach, look.similarity):
            pair, other = group.rows[pair], group.rows[other]
            first = np.flatnonzero(np.diff(pair, prepend=-1))
            counts = np.diff(first, append=len(pair))
            rank = np.arange(len(pair)) - np.repeat(first, counts)
            rows = np.stack([pair, other, np.repeat(counts, counts)], axis=1)
            found.append(rows[rank < MOST_LINKS])
    return np.concatenate(found)


def _members(
    groups: Int64[np.ndarray, " n"],
    other_groups: Int64[np.ndarray, "n m"] | None,
    agreement: Float[np.ndarray, " n"],
) -> Iterator[_Group]:
    """Group by group the rows in it, and the guests for whom it is another group."""
    n = len(groups)
    rows: np.ndarray = np.arange(n)
    if other_groups is not None:
        guests, places = np.nonzero(other_groups >= 0)
        rows = np.append(rows, guests)
        groups = np.append(groups, other_groups[guests, places])
    order = np.lexsort((rows, -agreement[rows], groups))  # best first in each group
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        own = np.flatnonzero(members < n)
        if len(own):
            yield _Group(rows[members], slice(None) if len(own) == len(members) else own)


def _unit(
    image_features: Float[np.ndarray, "n d_i"],
    rows: slice | Int64[np.ndarray, " g"],
    mean: Float32[np.ndarray, " d_i"],
) -> Float[np.ndarray, "g d_i"]:
    """Some rows less the mean, of unit length."""
    return centred_unit(np.asarray(image_features[rows]), mean)


def _near_and_better(
    points: Float[np.ndarray, "g d_i"],
    group: _Group,
    reach: Float32[np.ndarray, " g"],
    similarity: float,
) -> Iterator[tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]]:
    """Block by block the near copies among the rows of a group: a pair, and a better one.

    A better copy stands before its pair; the pairs come in order, and of each the best first.
    """
    own, place = points[group.own], np.arange(len(points))[group.own]
    for start in range(0, len(own), SIMILARITIES_AT_ONCE):
        block, at = own[start : start + SIMILARITIES_AT_ONCE], place[start:]
        cosines = block @ points.T
        step = max(1, CANDIDATES_AT_ONCE // len(points))  # where all images are alike, all are
        for first in range(0, len(block), step):
            pair, other = np.nonzero(cosines[first : first + step] >= similarity)
            pair += first
            near = other < at[pair]
            pair, other = pair[near], other[near]
            near = 1 - cosines[pair, other] < np.maximum(reach[at[pair]], reach[other])
            yield at[pair[near]], other[near]


def _reach(
    points: Float[np.ndarray, "g d_i"], own: slice | Int64[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Cosine distance within which another image is much closer than the surroundings."""
    blocks = points[own]
    if len(points) < 2:
        return np.zeros(len(points), dtype=np.float32)
    k = min(SURROUNDINGS, len(points) - 1)
    reach = np.empty(len(blocks), dtype=np.float32)
    for start in range(0, len(blocks), SIMILARITIES_AT_ONCE):
        rows = slice(start, start + SIMILARITIES_AT_ONCE)
        cosines = blocks[rows] @ points.T  # the image itself is the first of the nearest
        reach[rows] = CLOSER * (1 - np.partition(cosines, -(k + 1), axis=1)[:, -(k + 1)])
    return np.maximum(reach, np.float32(IDENTICAL))


# --- Across the borders of groups -----------------------------------------------------------------


def nearest_other_groups(
    images: Float[np.ndarray, "n d"], groups: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, "n m"]:
    """The groups beside its own that each image is nearest to, as far as it is near; else -1.

    Copies on the two sides of a border are so found from either. A group is near whose mean is at
    most `BORDER` farther than that of the own group, in squared distance of unit rows.

    Args:
        images: embeddings, such as a memory map: read in blocks of rows, in order.
        groups: of the images, 0 to their number - 1.
    """
    mean = images.mean(axis=0, dtype=np.float64).astype(np.float32)
    centers = _mean_images(images, groups, mean)
    half_squares = (centers**2).sum(axis=1) / 2
    found = np.full((len(images), min(OTHERS, len(centers) - 1)), -1, dtype=np.int64)
    for start, block in _blocks(images, mean, "other groups"):
        closeness = block @ centers.T - half_squares
        rows, own = np.arange(len(block)), groups[start : start + len(block)]
        to_own = closeness[rows, own]
        closeness[rows, own] = -np.inf
        for place in found[start : start + len(block)].T:
            other = closeness.argmax(axis=1)
            is_near = 2 * (to_own - closeness[rows, other]) <= BORDER
            place[is_near] = other[is_near]
            closeness[rows, other] = -np.inf
    return found


def _mean_images(
    images: Float[np.ndarray, "n d"],
    groups: Int64[np.ndarray, " n"],
    mean: Float32[np.ndarray, " d"],
) -> Float32[np.ndarray, "G d"]:
    """The mean of the centred unit rows of each group."""
    counts = np.bincount(groups)
    totals = np.zeros((len(counts), images.shape[1]))
    for start, block in _blocks(images, mean, "means of groups"):
        ones, rows = np.ones(len(block), dtype=np.float32), np.arange(len(block))
        where = (groups[start : start + len(block)], rows)
        totals += sparse.csr_matrix((ones, where), (len(counts), len(block))) @ block
    means: np.ndarray = (totals / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return means


def _blocks(
    images: Float[np.ndarray, "n d"], mean: Float32[np.ndarray, " d"], what: str
) -> Iterator[tuple[int, Float32[np.ndarray, "b d"]]]:
    """The first row of every block of images, and the block, centred and of unit length."""
    with tqdm(
        total=len(images), desc=what, unit="row", unit_scale=True, disable=None, leave=False
    ) as bar:
        for start in range(0, len(images), ROWS_AT_ONCE):
            block = _unit(images, slice(start, start + ROWS_AT_ONCE), mean)
            yield start, block
            bar.update(len(block))

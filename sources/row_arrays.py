"""Large arrays of the rows that were kept: filled in stretches, in files that exist already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from artifacts.arrays import Filled
from sources.vectors import Vectors, is_usable, row_lengths, unit_rows

ROWS_AT_ONCE = 2**12
ROWS_A_JOB = 2**16


@dataclass(frozen=True)
class FillJob:
    """Some of the kept pairs.

    Attributes:
        images: embeddings of all files.
        texts: the same.
        targets: `image_embeddings`, `text_embeddings` and `concatenated_embeddings`.
        first: row of the first of these pairs.
        positions: of the pairs in the files.
        owners: of the rows whose images they show.
    """

    images: Vectors
    texts: Vectors
    targets: Mapping[str, Filled]
    first: int
    positions: Int64[np.ndarray, " m"]
    owners: Int64[np.ndarray, " m"]


def fill_rows(job: FillJob) -> Float32[np.ndarray, " m"]:
    """Write the unit embeddings of some pairs where they belong; the cosines of each pair's two.

    Raises:
        InputError: an embedding cannot be read any more, or has no direction.
        OSError: a file cannot be written.
    """
    cosines = []
    for start in range(0, len(job.positions), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        images = unit_rows(job.images.at(job.owners[block]))
        texts = unit_texts(job.texts, job.positions[block])
        first = job.first + start
        job.targets["image_embeddings"].write(first, images)
        job.targets["text_embeddings"].write(first, texts)
        both = np.concatenate([images, texts], axis=1)
        job.targets["concatenated_embeddings"].write(first, both)
        cosines.append((images * texts).sum(axis=1))
    for target in job.targets.values():
        target.finish()
    return np.concatenate(cosines)


def unit_texts(texts: Vectors, positions: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
    """The rows at these positions at unit length.

    Raises:
        InputError: one is not finite or all zero, or a file cannot be read any more.
    """
    rows = texts.at(positions)
    unusable = np.flatnonzero(~is_usable(row_lengths(rows)))
    if len(unusable):
        place = texts.place(int(positions[unusable[0]]))
        raise texts.error(f"{place} is not finite or all zero; leave this pair out")
    return unit_rows(rows)


def fill_jobs(
    vectors: tuple[Vectors, Vectors],
    targets: Mapping[str, Filled],
    positions: Int64[np.ndarray, " n"],
    owners: Int64[np.ndarray, " n"],
) -> Iterator[FillJob]:
    """All kept pairs, in jobs of `ROWS_A_JOB`; see `FillJob`."""
    for first in range(0, len(positions), ROWS_A_JOB):
        rows = slice(first, first + ROWS_A_JOB)
        yield FillJob(*vectors, targets, first, positions[rows], owners[rows])

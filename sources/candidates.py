"""In which order candidate pairs are tried, as rows of numbers; see `splits.order_candidates`.

A candidate is a caption and the image that it is of. Captions are named by their positions, an
image by its first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sources.splits import SPARE_HANDS


class CaptionsOfImages(NamedTuple):
    """The captions of every image, one image after the other."""

    positions: Int64[np.ndarray, " c"]  # those of one image together, rising
    starts: Int64[np.ndarray, " i"]  # where the captions of an image begin
    counts: Int64[np.ndarray, " i"]  # and how many they are

    @classmethod
    def of(
        cls, images: Int64[np.ndarray, " i"], owners: Int64[np.ndarray, " n"]
    ) -> CaptionsOfImages:
        """Those of some images.

        Args:
            images: each named by the first position of its captions.
            owners: the image of every position.
        """
        order = np.argsort(owners, kind="stable")
        sorted_owners = owners[order]
        starts = np.searchsorted(sorted_owners, images, side="left")
        ends = np.searchsorted(sorted_owners, images, side="right")
        return cls(order, starts, ends - starts)


def order_rows(
    images: Int64[np.ndarray, " i"],
    owners: Int64[np.ndarray, " n"],
    split: str,
    limit: int,
    rng: np.random.Generator,
) -> Iterator[Int64[np.ndarray, " m"]]:
    """Positions in the order in which they are tried, in hands, as `order_candidates` deals them.

    The captions of an image within a hand stand together.

    Args:
        images: of the split, each named by the first position of its captions.
        owners: the image of every position of the source.
        split: whose candidates they are.
        limit: how many are wanted.
        rng: draws the order.
    """
    order = images[rng.permutation(len(images))]
    captions = CaptionsOfImages.of(order, owners)
    dealt = _dealt(order, captions, split, rng)
    n_units = len(order) if split == "test" else len(dealt)
    ends = np.cumsum(captions.counts) if split == "test" else np.arange(1, n_units + 1)
    start, size = 0, limit
    while start < n_units:
        stop = min(start + size, n_units)
        yield _in_source_order(dealt[ends[start - 1] if start else 0 : ends[stop - 1]], owners)
        start, size = stop, max(1, limit // SPARE_HANDS)


def _dealt(
    order: Int64[np.ndarray, " i"],
    captions: CaptionsOfImages,
    split: str,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " m"]:
    """Positions as they are dealt: whole images of the test split, else one caption a round."""
    positions, starts, counts = captions
    first = np.cumsum(counts) - counts
    places = np.arange(counts.sum()) - np.repeat(first, counts)  # of a caption in its image
    dealt: np.ndarray = positions[np.repeat(starts, counts) + places]
    if split == "test":
        return dealt
    # An image of one caption draws nothing, so only the others need to be gone through.
    for image in np.flatnonzero(counts > 1).tolist():
        hand = slice(first[image], first[image] + counts[image])
        dealt[hand] = dealt[hand][rng.permutation(int(counts[image]))]
    chosen = places == 0 if split == "validation" else np.argsort(places, kind="stable")
    return np.asarray(dealt[chosen])


def _in_source_order(
    dealt: Int64[np.ndarray, " m"], owners: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " m"]:
    """A hand with the captions of an image joined, the images by their first caption in it."""
    _, image = np.unique(owners[dealt], return_inverse=True)
    lowest = np.full(image.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(lowest, image, dealt)
    return np.asarray(dealt[np.argsort(lowest[image], kind="stable")])

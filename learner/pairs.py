"""Pairs as everything after stage 1 takes them in.

Features scaled the same for all methods, on the device or, where they are large, in the files that
they lie in; and `TrainingPairs`: what stage 1 knows of every training pair, in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from tqdm import tqdm

# Memory-mapped features of more bytes a side, as float32, stay in their files.
MOST_BYTES_HELD = 2**27
ROWS_AT_ONCE = 8192  # of features, where all are gone through


class PairTensors(NamedTuple):
    """Aligned features of pairs on a device: row i of both is pair i."""

    images: Tensor  # (n, d_i)
    texts: Tensor  # (n, d_t)

    @property
    def n_pairs(self) -> int:
        """How many there are."""
        return len(self.images)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the image features and of the text features."""
        return self.images.shape[-1], self.texts.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.images.device

    @property
    def in_memory(self) -> bool:
        """Whether taking some reads no file: of these it never does."""
        return True

    def whole(self) -> PairTensors:
        """All pairs on the device: these."""
        return self

    def subset(self, rows: Int64[np.ndarray, " m"]) -> PairTensors:
        """A copy of these pairs."""
        return self.take(torch.from_numpy(rows).to(self.device))

    def take(self, index: Tensor) -> PairTensors:
        """The pairs at `index`, whose shape replaces the first axis; of halves in single precision.

        Raises:
            IndexError: there is no such pair.
        """
        places = index.reshape(-1)
        # Twice as fast as indexing, of which training does much.
        images, texts = (
            _single(side.index_select(0, places)).reshape(*index.shape, side.shape[-1])
            for side in self
        )
        return PairTensors(images, texts)


class FeatureScaling(NamedTuple):
    """Fixed affine map in front of the model: centre, then divide by the mean distance.

    Fitted once on all training pairs and shared by every model, so that methods differ in the
    pairs they train on and in nothing else.
    """

    image_mean: np.ndarray  # (d_i,)
    image_scale: float
    text_mean: np.ndarray  # (d_t,)
    text_scale: float

    def images(self, features: np.ndarray, device: torch.device) -> Tensor:
        """Scaled image features as a float32 tensor, (m, d_i)."""
        return _scaled(features, self.image_mean, self.image_scale, device)

    def texts(self, features: np.ndarray, device: torch.device) -> Tensor:
        """Scaled text features as a float32 tensor, (m, d_t)."""
        return _scaled(features, self.text_mean, self.text_scale, device)

    def pairs(
        self, image_features: np.ndarray, text_features: np.ndarray, device: torch.device
    ) -> PairTensors:
        """Both sides of aligned pairs."""
        return PairTensors(self.images(image_features, device), self.texts(text_features, device))

    def stored(
        self, image_features: np.ndarray, text_features: np.ndarray, device: torch.device
    ) -> PairFeatures:
        """Both sides of aligned pairs; large ones that are memory-mapped stay in their files.

        On a GPU that has room, halves of these are in its memory, too.
        """
        sides = (image_features, text_features)
        if all(isinstance(side, np.memmap) for side in sides) and any(map(_is_large, sides)):
            return resident(StoredPairs(image_features, text_features, self, device))
        return self.pairs(*sides, device)


@dataclass(frozen=True)
class StoredPairs:
    """Aligned features of pairs in the files that they lie in, scaled as they are taken out.

    What is taken out is bit for bit what `FeatureScaling.pairs` makes of all of them. Pickled, it
    is the files' paths and the rows.

    Attributes:
        image_features: (N, d_i) memory map of a whole `.npy` file.
        text_features: (N, d_t) another.
        scaling: by which features are.
        device: that pairs are put on.
        rows: which of the N pairs these are; None is all.
    """

    image_features: np.ndarray
    text_features: np.ndarray
    scaling: FeatureScaling
    device: torch.device
    rows: Int64[np.ndarray, " n"] | None = None

    @property
    def n_pairs(self) -> int:
        """How many there are."""
        return len(self.image_features if self.rows is None else self.rows)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the image features and of the text features."""
        return self.image_features.shape[1], self.text_features.shape[1]

    def take(self, index: Tensor) -> PairTensors:
        """The pairs at `index`, whose shape replaces the first axis, on the device."""
        places = index.cpu().numpy().reshape(-1)
        rows = places if self.rows is None else self.rows[places]
        sides = (
            (self.image_features, self.scaling.image_mean, self.scaling.image_scale),
            (self.text_features, self.scaling.text_mean, self.scaling.text_scale),
        )
        taken = (_scaled_rows(*side, rows, self.device) for side in sides)
        return PairTensors(*(side.reshape(*index.shape, -1) for side in taken))

    def subset(self, rows: Int64[np.ndarray, " m"]) -> StoredPairs:
        """A view of these pairs."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def whole(self) -> PairTensors:
        """All pairs on the device, which has to hold them."""
        return self.take(torch.arange(self.n_pairs))

    @property
    def in_memory(self) -> bool:
        """Whether taking some reads no file."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle paths in the place of arrays."""
        paths = [_path_of_whole(side) for side in (self.image_features, self.text_features)]
        return _stored_pairs, (*paths, self.scaling, self.device, self.rows)


@dataclass(frozen=True)
class ResidentPairs(StoredPairs):
    """Pairs in files of which all features are in the device's memory too, in half precision.

    What is taken out differs from what the files say by half a unit in the eleventh binary digit.

    Attributes:
        halves: all N pairs of the files, scaled, float16.
    """

    halves: PairTensors | None = None

    @property
    def in_memory(self) -> bool:
        """Whether taking some reads no file."""
        return True

    def take(self, index: Tensor) -> PairTensors:
        """The pairs at `index`, whose shape replaces the first axis, in single precision."""
        assert self.halves is not None
        places = index.to(self.device)
        return self.halves.take(places if self.rows is None else self._places[places])

    @cached_property
    def _places(self) -> Tensor:
        return torch.from_numpy(np.asarray(self.rows)).to(self.device)


def resident(stored: StoredPairs) -> StoredPairs:
    """The same with all features in the memory of their GPU, where at most half of it is taken."""
    n_bytes = 2 * (stored.image_features.size + stored.text_features.size)
    if stored.device.type != "cuda" or n_bytes > torch.cuda.mem_get_info(stored.device)[0] // 2:
        return stored
    return in_halves(stored)


def in_halves(stored: StoredPairs) -> ResidentPairs:
    """The same with all features in the memory of their device, which has to hold them."""
    files = replace(stored, rows=None)
    n, device = files.n_pairs, files.device
    halves = PairTensors(
        *(torch.empty(n, width, dtype=torch.float16, device=device) for width in files.widths)
    )
    blocks = range(0, n, ROWS_AT_ONCE)
    for start in tqdm(blocks, desc="features", unit="block", disable=None, leave=False):
        block = slice(start, min(start + ROWS_AT_ONCE, n))
        for side, part in zip(
            halves, files.take(torch.arange(block.start, block.stop)), strict=True
        ):
            side[block] = part
    return ResidentPairs(
        stored.image_features, stored.text_features, stored.scaling, device, stored.rows, halves
    )


PairFeatures = PairTensors | StoredPairs


def _single(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype == torch.float16 else rows


def blocks_of_pairs(pairs: PairFeatures) -> Iterator[tuple[slice, PairTensors]]:
    """All pairs in order, some thousand at a time, and where they are."""
    for start in range(0, pairs.n_pairs, ROWS_AT_ONCE):
        block = slice(start, min(start + ROWS_AT_ONCE, pairs.n_pairs))
        yield block, pairs.take(torch.arange(block.start, block.stop, device=pairs.device))


def _stored_pairs(
    image_path: str, text_path: str, scaling: FeatureScaling, device: torch.device, rows: Any
) -> StoredPairs:
    images, texts = (np.load(path, mmap_mode="r") for path in (image_path, text_path))
    return resident(StoredPairs(images, texts, scaling, device, rows))


def _path_of_whole(features: np.ndarray) -> str:
    """The `.npy` file that a memory map is the whole of.

    Raises:
        ValueError: it is not.
    """
    path = getattr(features, "filename", None)
    if path is not None:
        file = np.load(path, mmap_mode="r")
        if (file.shape, file.dtype) == (features.shape, features.dtype):
            return str(path)
    raise ValueError("features travel as the path of a whole .npy file; these are none")


def fit_feature_scaling(
    image_features: Float[np.ndarray, "n d_i"], text_features: Float[np.ndarray, "n d_t"]
) -> FeatureScaling:
    """The scaling that centres these features and gives them a root mean square norm of one."""
    image_mean, image_scale = _mean_and_scale(image_features)
    text_mean, text_scale = _mean_and_scale(text_features)
    return FeatureScaling(image_mean, image_scale, text_mean, text_scale)


def _is_large(features: np.ndarray) -> bool:
    return 4 * features.size > MOST_BYTES_HELD


def _mean_and_scale(features: np.ndarray) -> tuple[np.ndarray, float]:
    if _is_large(features):
        return _mean_and_scale_by_blocks(features)
    mean = features.mean(axis=0, dtype=np.float64)
    variance = features.var(axis=0, dtype=np.float64).sum()
    return mean.astype(np.float32), float(np.sqrt(variance)) or 1.0


def _mean_and_scale_by_blocks(features: np.ndarray) -> tuple[np.ndarray, float]:
    """The same in one pass over blocks of rows, joined in their order (Chan et al. 1983)."""
    mean, squares, n_seen = np.zeros(features.shape[1]), 0.0, 0
    for start in range(0, len(features), ROWS_AT_ONCE):
        block = np.array(features[start : start + ROWS_AT_ONCE], dtype=np.float64)
        own = block.mean(axis=0)
        block -= own
        n_all = n_seen + len(block)
        apart = own - mean
        squares += float(np.vdot(block, block) + apart @ apart * n_seen * len(block) / n_all)
        mean += apart * len(block) / n_all
        n_seen = n_all
    return mean.astype(np.float32), float(np.sqrt(squares / n_seen)) or 1.0


def _scaled(features: np.ndarray, mean: np.ndarray, scale: float, device: torch.device) -> Tensor:
    return torch.from_numpy((features - mean) / np.float32(scale)).to(device)


def _scaled_rows(
    features: np.ndarray, mean: np.ndarray, scale: float, rows: np.ndarray, device: torch.device
) -> Tensor:
    """`_scaled` of some rows, in place."""
    taken = np.asarray(features)[rows].astype(mean.dtype, copy=False)
    taken -= mean
    taken /= np.float32(scale)
    return torch.from_numpy(taken).to(device)


@dataclass(frozen=True)
class TrainingPairs:
    """What stage 1 knows of n training pairs, and the V held-out pairs that say what helps them.

    Made once, after stage 1; row i of everything is training pair i. There are K clusters.
    """

    indices: Int64[np.ndarray, " n"]  # positions in the source
    tensors: PairFeatures  # scaled features
    scaling: FeatureScaling  # by which they were, and all other features are
    image_embeddings: Float[np.ndarray, "n d"]  # unit rows, as are the texts'
    text_embeddings: Float[np.ndarray, "n d"]
    concatenated_embeddings: Float[np.ndarray, "n d2"]
    clip_scores: Float[np.ndarray, " n"]
    image_ids: Int64[np.ndarray, " n"]  # 0 to the number of images - 1
    captions: Sequence[str]
    groups: Mapping[str, Bool[np.ndarray, " n"]]  # demographic groups, by name
    cluster_assignments: Int64[np.ndarray, " n"]  # every cluster has a pair
    cell_assignments: Int64[np.ndarray, " n"]  # every cell has a pair, all of one cluster
    better_copies: Int64[np.ndarray, " n"]
    clusters: Sequence[Mapping[str, Any]]  # descriptions: `terms`, `cells`
    validation: PairTensors  # scaled features
    validation_image_embeddings: Float[np.ndarray, "V d"] | None  # None where none were saved
    represented: Float64[np.ndarray, " K"]  # see `representation`
    # Of many pairs those whose images lie together, about sqrt(n) groups.
    image_groups: Int64[np.ndarray, " n"] | None = None
    # Demographic groups of the held-out pairs by attribute and name; None: not known.
    validation_groups: Mapping[str, Mapping[str, Bool[np.ndarray, " V"]]] | None = None

    def asking(self, rows: Int64[np.ndarray, " k"]) -> TrainingPairs:
        """The same with those of the held-out pairs that are trusted to say what helps."""
        embeddings, groups = self.validation_image_embeddings, self.validation_groups
        asked = self.validation.take(torch.from_numpy(rows).to(self.validation.images.device))
        held_out = nearest_clusters(self.tensors, self.cluster_assignments, asked)
        return replace(
            self,
            validation=asked,
            validation_image_embeddings=None if embeddings is None else embeddings[rows],
            represented=representation(self.cluster_assignments, held_out),
            validation_groups=None
            if groups is None
            else {a: {g: member[rows] for g, member in of.items()} for a, of in groups.items()},
        )


def nearest_clusters(
    pairs: PairFeatures, cluster_assignments: Int64[np.ndarray, " n"], others: PairTensors
) -> Int64[np.ndarray, " m"]:
    """The cluster whose mean features, both sides joined, are nearest to each other pair."""
    index = torch.from_numpy(cluster_assignments).to(pairs.device)
    n_clusters = int(cluster_assignments.max()) + 1
    targets = torch.cat(others, dim=1)
    counts = torch.bincount(index, minlength=n_clusters).clamp(min=1)[:, None]
    centres = torch.zeros(n_clusters, sum(pairs.widths), device=pairs.device)
    for block, part in blocks_of_pairs(pairs):
        centres.index_add_(0, index[block], torch.cat(part, dim=1))
    return torch.cdist(targets, centres / counts).argmin(dim=1).cpu().numpy()


def representation(
    cluster_assignments: Int64[np.ndarray, " n"], held_out_clusters: Int64[np.ndarray, " m"]
) -> Float64[np.ndarray, " K"]:
    """Each cluster's share of held-out pairs over its share of training pairs; one if in doubt.

    In doubt where the held-out count is within two standard deviations (Poisson) of the expected.
    """
    sizes = np.bincount(cluster_assignments)
    found = np.bincount(held_out_clusters, minlength=len(sizes))
    expected = sizes / sizes.sum() * len(held_out_clusters)
    certain = np.abs(found - expected) > 2 * np.sqrt(expected)
    return np.where(certain, found / np.maximum(expected, np.finfo(float).tiny), 1.0)

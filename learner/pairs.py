"""Pairs as everything after stage 1 takes them in.

Features on the device, scaled once for all methods, and `TrainingPairs`: what stage 1 knows of
every training pair, in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


class PairTensors(NamedTuple):
    """Aligned features of pairs on a device: row i of both is pair i."""

    images: Tensor  # (n, d_i)
    texts: Tensor  # (n, d_t)

    def take(self, index: Tensor) -> PairTensors:
        """The pairs at `index`, whose shape replaces the first axis."""
        return PairTensors(self.images[index], self.texts[index])


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


def fit_feature_scaling(
    image_features: Float[np.ndarray, "n d_i"], text_features: Float[np.ndarray, "n d_t"]
) -> FeatureScaling:
    """The scaling that centres these features and gives them a root mean square norm of one."""
    image_mean, image_scale = _mean_and_scale(image_features)
    text_mean, text_scale = _mean_and_scale(text_features)
    return FeatureScaling(image_mean, image_scale, text_mean, text_scale)


def _mean_and_scale(features: np.ndarray) -> tuple[np.ndarray, float]:
    mean = features.mean(axis=0, dtype=np.float64)
    variance = features.var(axis=0, dtype=np.float64).sum()
    return mean.astype(np.float32), float(np.sqrt(variance)) or 1.0


def _scaled(features: np.ndarray, mean: np.ndarray, scale: float, device: torch.device) -> Tensor:
    return torch.from_numpy((features - mean) / np.float32(scale)).to(device)


@dataclass(frozen=True)
class TrainingPairs:
    """What stage 1 knows of n training pairs, and the V held-out pairs that say what helps them.

    Made once, after stage 1; row i of everything is training pair i. There are K clusters.
    """

    indices: Int64[np.ndarray, " n"]  # positions in the source
    tensors: PairTensors  # scaled features
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

    def asking(self, rows: Int64[np.ndarray, " k"]) -> TrainingPairs:
        """The same with those of the held-out pairs that are trusted to say what helps."""
        embeddings = self.validation_image_embeddings
        asked = self.validation.take(torch.from_numpy(rows).to(self.validation.images.device))
        held_out = nearest_clusters(self.tensors, self.cluster_assignments, asked)
        return replace(
            self,
            validation=asked,
            validation_image_embeddings=None if embeddings is None else embeddings[rows],
            represented=representation(self.cluster_assignments, held_out),
        )


def nearest_clusters(
    pairs: PairTensors, cluster_assignments: Int64[np.ndarray, " n"], others: PairTensors
) -> Int64[np.ndarray, " m"]:
    """The cluster whose mean features, both sides joined, are nearest to each other pair."""
    index = torch.from_numpy(cluster_assignments).to(pairs.images.device)
    n_clusters = int(cluster_assignments.max()) + 1
    joined, targets = torch.cat(pairs, dim=1), torch.cat(others, dim=1)
    counts = torch.bincount(index, minlength=n_clusters).clamp(min=1)[:, None]
    centres = torch.zeros(n_clusters, joined.shape[1], device=joined.device)
    centres.index_add_(0, index, joined)
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

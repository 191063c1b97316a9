"""Pairs as the trained model takes them in: features on the device, scaled once for all methods."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


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

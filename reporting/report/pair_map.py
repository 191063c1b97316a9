"""Where pairs lie on a map, and which are nearest to each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32
from sklearn.decomposition import PCA

N_NEIGHBOURS = 8


@dataclass(frozen=True)
class PairMap:
    """n pairs on a map, and the k nearest others of each, nearest first."""

    places: Float32[np.ndarray, "n 2"]  # within -1 and 1
    neighbours: Int32[np.ndarray, "n k"]
    similarities: Float32[np.ndarray, "n k"]


def map_pairs(embeddings: Float32[np.ndarray, "n d"], *, rng: np.random.Generator) -> PairMap:
    """The first two principal components of joint embeddings."""
    pca = PCA(2, random_state=int(rng.integers(2**31)))
    places = pca.fit_transform(embeddings)
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    near = np.argsort(-cosines, axis=1, kind="stable")[:, :N_NEIGHBOURS].astype(np.int32)
    return PairMap(
        (places / np.abs(places).max()).astype(np.float32),
        near,
        np.take_along_axis(cosines, near, axis=1),
    )

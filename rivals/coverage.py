"""Selectors that cover the space of pairs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from tqdm import tqdm


def k_center_greedy(
    embeddings: Float[np.ndarray, "n d2"], size: int, *, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Rows chosen one by one, each the farthest from those chosen before: Sener & Savarese (2018).

    The first one is drawn at random. At most twice the optimal covering radius. O(n m d) time,
    O(n) memory beside the embeddings.
    """
    points = np.ascontiguousarray(embeddings, dtype=np.float32)
    squared_norms = np.einsum("nd,nd->n", points, points)
    chosen = np.empty(size, dtype=np.int64)
    chosen[0] = rng.integers(len(points))
    nearest = np.full(len(points), np.inf, dtype=np.float32)  # squared distance to the chosen
    for i in tqdm(range(1, size), desc="k-centre greedy", unit="pair", disable=None, leave=False):
        last = chosen[i - 1]
        distance = squared_norms + squared_norms[last] - 2 * (points @ points[last])
        np.minimum(nearest, distance, out=nearest)
        nearest[last] = -np.inf  # never again, whatever duplicates and rounding do
        chosen[i] = nearest.argmax()
    return chosen

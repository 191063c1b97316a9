"""Whether a caption says what the captions of similar images say, and the other way round."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64

N_NEIGHBOURS = 20
MAX_WITNESSES = 20_000  # pairs that others are compared with; bounds the time
ROWS_AT_ONCE = 1024


def neighbour_agreement(
    embeddings: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "n d2"],
    may_witness: Bool[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
) -> Float[np.ndarray, " n"]:
    """Mean cosine of a pair's other side with that of its 20 nearest pairs on this side.

    With image embeddings first and text embeddings second: is this caption like the captions of
    the most similar images? It errs on other pairs than the CLIP score, which compares a pair with
    itself alone.

    Args:
        embeddings: unit rows in which neighbours are looked for.
        others: unit rows, compared between neighbours.
        may_witness: pairs that are asked; 20,000 of them at random where there are more.
        rng: draws those.
    """
    witnesses: Int64[np.ndarray, " w"] = np.flatnonzero(may_witness)
    if len(witnesses) > MAX_WITNESSES:
        witnesses = np.sort(rng.permutation(witnesses)[:MAX_WITNESSES])
    k = min(N_NEIGHBOURS, len(witnesses) - 1)
    if k < 1:
        return np.zeros(len(embeddings))
    agreement = np.empty(len(embeddings))
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(embeddings)))
        cosines = embeddings[rows] @ embeddings[witnesses].T
        cosines[rows[:, None] == witnesses[None, :]] = -np.inf  # nobody is their own witness
        nearest = witnesses[np.argpartition(cosines, -k, axis=1)[:, -k:]]
        agreement[rows] = np.einsum("rd,rkd->r", others[rows], others[nearest]) / k
    return agreement

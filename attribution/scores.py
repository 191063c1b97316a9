"""Scores of different kinds beside each other: in standard deviations, and by how they separate."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Shaped


def standardised(values: Shaped[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Values in standard deviations from their mean; zeros where only rounding tells them apart."""
    rounding = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    values = values.astype(np.float64)
    spread = values.std()
    if spread <= max(1e-12, float(rounding)) * max(1.0, float(np.abs(values).max())):
        return np.zeros(len(values))
    return np.asarray((values - values.mean()) / spread)


def auc(
    scores: Float[np.ndarray, " n"],
    above: Shaped[np.ndarray, " n"],
    below: Shaped[np.ndarray, " n"],
) -> float:
    """Probability that a score drawn by weight `above` is higher than one drawn by `below`.

    Weights of zero and one are two kinds of things; ties count half.

    Args:
        scores: of n things.
        above: weights >= 0, not all zero.
        below: weights >= 0, not all zero.
    """
    _, place = np.unique(scores, return_inverse=True)
    a, b = np.bincount(place, above), np.bincount(place, below)
    lower = np.cumsum(b) - b / 2
    return float((a * lower).sum() / (a.sum() * b.sum()))

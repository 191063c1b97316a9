"""What leaving a whole cluster out for good costs beyond the first order, from retraining.

First-order influence is blind to what a model loses with a topic that nobody else teaches it,
because a topic's weight can fall far before anything is lost and then everything is. Retraining
without a few folds of clusters shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64


class RemovalEffects(NamedTuple):
    """What retraining without folds of clusters showed, nats."""

    own: Float[np.ndarray, " K"]  # on the validation pairs nearest to the cluster
    variance: Float[np.ndarray, " K"]  # of `own`
    total: float  # over all folds and all validation pairs


def factors_without_folds(folds: Int64[np.ndarray, " K"]) -> Float[np.ndarray, "n_folds K"]:
    """By what the weights of each cluster's pairs are multiplied without each fold: one or zero."""
    kept: np.ndarray = folds != np.arange(folds.max() + 1)[:, None]
    return kept.astype(np.float64)


def removal_effects(
    losses: Float[np.ndarray, " m"],
    left_out: Float[np.ndarray, "n_folds m"],
    folds: Int64[np.ndarray, " K"],
    validation_clusters: Int64[np.ndarray, " m"],
) -> RemovalEffects:
    """What leaving every cluster out once, a fold of them at a time, does to one reference model.

    With d(v) the change that leaving a fold out makes to the loss of validation pair v, a cluster
    k of that fold gets

        own_k = (1/m) sum over v nearest to k of [ d(v) - mean d over v nearest to other folds ]

    Args:
        losses: of the reference model, pair by pair; NaN where no batch holds the pair.
        left_out: the same after the reference training without each fold.
        folds: fold of each cluster.
        validation_clusters: nearest cluster of each validation pair.
    """
    held = ~np.isnan(losses)  # the last pairs of every shuffling may be in no batch
    validation_clusters, n_clusters, m = validation_clusters[held], len(folds), int(held.sum())
    own, variance, total = np.zeros(n_clusters), np.zeros(n_clusters), 0.0
    for fold, change in enumerate(left_out[:, held] - losses[held]):
        total += float(change.mean())
        inside = folds[validation_clusters] == fold
        if not inside.any():
            continue
        background = float(change[~inside].mean()) if not inside.all() else 0.0
        excess = np.where(inside, change - background, 0.0)
        own += np.bincount(validation_clusters, excess, minlength=n_clusters) / m
        counts = np.bincount(validation_clusters[inside], minlength=n_clusters)
        variance += counts * excess[inside].var() / m**2
    return RemovalEffects(own, variance, total)


def removal_corrections(
    effects: Sequence[RemovalEffects], sizes: Int64[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """What leaving each cluster out for good costs beyond the first order, and its standard error.

        e_k = own_k + (n_k / n) (total - sum_j own_j)

    `own` is the mean over the reference models, shrunk towards its proportional share by its
    variance (empirical Bayes); what the folds cost elsewhere is spread by size. First-order
    influences sum to zero over all pairs, so the folds' total holds none of them.

    Args:
        effects: one a reference model.
        sizes: pairs of each cluster.

    Returns:
        Both (K,) nats.
    """
    own = np.mean([e.own for e in effects], axis=0)
    variance = np.mean([e.variance for e in effects], axis=0) / len(effects)
    total = float(np.mean([e.total for e in effects]))
    share = sizes / sizes.sum()
    proportional = own.sum() * share
    spread = max(float(((own - proportional) ** 2 - variance).mean()), 0.0)
    trust = spread / np.maximum(spread + variance, np.finfo(float).tiny)
    shrunk = proportional + trust * (own - proportional)
    return shrunk + (total - shrunk.sum()) * share, np.sqrt(trust * variance)

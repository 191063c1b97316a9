"""What leaving a whole cluster out does, beyond the first order.

Two ways. A Newton step: leave the cluster out of the training loss, take the damped step to the
new minimum and evaluate the true validation loss there. And retraining without a few folds of
clusters: first-order influence is blind to what a model loses with a topic that nobody else
teaches it, because a topic's weight can fall far before anything is lost and then everything is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from curvature import flatten, unflatten
from model import PairTensors, Parameters, contrastive_loss, mean_loss, projected_similarities
from retraining import Retraining

CLUSTERS_AT_ONCE = 16  # vectors of all parameters that are alive at a time


# --- The step that leaves a cluster out ------------------------------------------------------


def leave_out_steps(
    parameters: Parameters,
    pairs: PairTensors,
    weights: Float[np.ndarray, " n"],
    cluster_assignments: Int64[np.ndarray, " n"],
    batches: Int64[np.ndarray, "n_batches b"],
    solve: Callable[[Tensor], Tensor],
    validation: tuple[PairTensors, Int64[np.ndarray, "m vb"]],
) -> Float[np.ndarray, " K"]:
    """Change of the validation loss when each cluster is left out, by one damped Newton step.

        theta_k = theta - (H + damping I)^-1 (grad L without k - grad L)       design 4
        effect_k = L_val(theta_k) - L_val(theta)

    Gradients are exact over the pairs of the batches; only batches that hold a pair of the cluster
    are evaluated again, so that all clusters together cost at most b full gradients. A cluster that
    no batch holds has no effect.

    Args:
        parameters: the reference model.
        pairs: training pairs.
        weights: of the pairs in the training loss.
        cluster_assignments: cluster of each pair, 0 to K - 1.
        batches: of the training loss.
        solve: rows (B, p) -> (B, p), the damped inverse curvature.
        validation: pairs and their fixed batches.

    Returns:
        (K,) nats.
    """
    changes = _GradientChanges(parameters, pairs, weights, cluster_assignments, batches)
    loss = mean_loss(parameters, *validation)
    theta = flatten(parameters)
    n_clusters = int(cluster_assignments.max()) + 1
    effects = np.empty(n_clusters)
    with tqdm(total=n_clusters, desc="leave-out steps", disable=None, leave=False) as progress:
        for start in range(0, n_clusters, CLUSTERS_AT_ONCE):
            clusters = range(start, min(start + CLUSTERS_AT_ONCE, n_clusters))
            steps = solve(torch.stack([changes.without(k) for k in clusters]))
            for k, step in zip(clusters, steps, strict=True):
                stepped = unflatten(theta - step, parameters)
                effects[k] = mean_loss(stepped, *validation) - loss
                progress.update()
    return effects


class _GradientChanges:
    """grad L without a cluster minus grad L, from the batches that hold it."""

    def __init__(
        self,
        parameters: Parameters,
        pairs: PairTensors,
        weights: np.ndarray,
        cluster_assignments: np.ndarray,
        batches: np.ndarray,
    ) -> None:
        self.parameters, self.pairs = parameters, pairs
        device = pairs.images.device
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        self.clusters = torch.from_numpy(cluster_assignments).to(device)
        self.batches = torch.from_numpy(batches).to(device)
        self.images = pairs.images @ parameters.image_map
        self.texts = pairs.texts @ parameters.text_map
        self.full = self._gradient_sum(self.batches, self.weights[self.batches])

    def without(self, cluster: int) -> Tensor:
        """(p,). A batch that holds nothing but the cluster drops out of the mean."""
        held = (self.clusters[self.batches] == cluster).any(dim=1)
        batches = self.batches[held]
        weights = self.weights[batches]
        reduced = torch.where(self.clusters[batches] == cluster, 0.0, weights)
        left = reduced.sum(dim=1) > 0
        n_left = len(self.batches) - int((~left).sum())
        changed = self._gradient_sum(batches[left], reduced[left])
        before = self._gradient_sum(batches, weights)
        return (self.full - before + changed) / max(n_left, 1) - self.full / len(self.batches)

    def _gradient_sum(self, batches: Tensor, weights: Tensor) -> Tensor:
        """Sum of the gradients of these batches with respect to all parameters, (p,)."""
        images = self.images[batches].requires_grad_()
        texts = self.texts[batches].requires_grad_()
        log_scale = self.parameters.log_scale.detach().clone().requires_grad_()
        loss = contrastive_loss(projected_similarities(images, texts, log_scale), weights).sum()
        by_images, by_texts, by_scale = torch.autograd.grad(loss, (images, texts, log_scale))
        batch = self.pairs.take(batches.reshape(-1))
        return flatten(
            Parameters(
                batch.images.T @ by_images.flatten(0, 1),
                batch.texts.T @ by_texts.flatten(0, 1),
                by_scale,
            )
        )


# --- The finite-removal correction, from retraining without folds of clusters ----------------


class RemovalEffects(NamedTuple):
    """What retraining without folds of clusters showed, nats."""

    own: Float[np.ndarray, " K"]  # on the validation pairs nearest to the cluster
    variance: Float[np.ndarray, " K"]  # of `own`
    total: float  # over all folds and all validation pairs


def removal_effects(
    retraining: Retraining,
    seed: int,
    weights: Float[np.ndarray, " n"],
    cluster_assignments: Int64[np.ndarray, " n"],
    validation_clusters: Int64[np.ndarray, " m"],
    n_folds: int,
    *,
    rng: np.random.Generator,
) -> RemovalEffects:
    """Leave every cluster out once, a fold of them at a time, in `n_folds` retrainings.

    With d(v) the change that leaving a fold out makes to the loss of validation pair v, a cluster
    k of that fold gets

        own_k = (1/m) sum over v nearest to k of [ d(v) - mean d over v nearest to other folds ]

    Args:
        retraining: the reference training, repeatable.
        seed: of the reference training.
        weights: (n,) of the pairs in the reference training.
        cluster_assignments: cluster of each pair, 0 to K - 1.
        validation_clusters: nearest cluster of each validation pair.
        n_folds: retrainings, at least 2 and at most the number of clusters.
        rng: deals the clusters into folds.
    """
    n_clusters, m = int(cluster_assignments.max()) + 1, len(validation_clusters)
    folds = rng.permutation(np.arange(n_clusters) % n_folds)
    weightings = [weights, *(weights * (folds[cluster_assignments] != f) for f in range(n_folds))]
    losses = retraining.losses(weightings, [seed] * len(weightings), "leaving folds out")
    held = np.isin(
        np.arange(m), retraining.validation_batches
    )  # the last of a shuffling may not be
    losses, validation_clusters, m = losses[:, held], validation_clusters[held], int(held.sum())
    own, variance, total = np.zeros(n_clusters), np.zeros(n_clusters), 0.0
    for fold, left_out in enumerate(losses[1:]):
        change = left_out - losses[0]
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


def finite_removal(
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

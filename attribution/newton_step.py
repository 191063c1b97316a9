"""What leaving a whole cluster out does, by a Newton step.

Leave the cluster out of the training loss, take the damped step to the new minimum and evaluate
the true validation loss there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from attribution.derivatives import flatten, unflatten
from learner.model import Parameters, contrastive_loss, mean_loss, projected_similarities
from learner.pairs import PairFeatures, PairTensors, StoredPairs

CLUSTERS_AT_ONCE = 16  # vectors of all parameters that are alive at a time


def newton_step_effects(
    parameters: Parameters,
    pairs: PairFeatures,
    weights: Float[np.ndarray, " n"],
    cluster_assignments: Int64[np.ndarray, " n"],
    batches: Int64[np.ndarray, "n_batches b"],
    solve: Callable[[Tensor], Tensor],
    validation: tuple[PairTensors, Int64[np.ndarray, "m vb"]],
) -> Float[np.ndarray, " K"]:
    """Change of the validation loss when each cluster is left out, by one damped Newton step.

        theta_k = theta - (H + damping I)^-1 (grad L without k - grad L)
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
    n_clusters = int(cluster_assignments.max()) + 1
    if isinstance(pairs, StoredPairs):
        held, places = np.unique(batches, return_inverse=True)
        pairs, batches = pairs.subset(held), places.reshape(batches.shape)
        weights, cluster_assignments = weights[held], cluster_assignments[held]
    changes = _GradientChanges(parameters, pairs.whole(), weights, cluster_assignments, batches)
    loss = mean_loss(parameters, *validation)
    theta = flatten(parameters)
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
        device = pairs.device
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

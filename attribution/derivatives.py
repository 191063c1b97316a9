"""Derivatives of the contrastive loss by parameters and by pairs' weights.

First-order influence of pairs takes one forward and one reverse sweep a batch for all of them: a
contrastive loss has no per-pair gradient until its batch is fixed, and a pair acts in it as a
positive and as a negative, so its influence is a mixed derivative of the weighted loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.func import grad

from learner.model import Parameters, batch_blocks, contrastive_loss, pair_losses, similarities
from learner.pairs import PairFeatures

N_SHUFFLES = 8  # batch compositions that a pair's influence is averaged over


# torch.func types its results as unions; these say what they are.


def jvp(function: Callable[..., Any], primal: Any, tangent: Any) -> tuple[Any, Any]:
    """The function's value and its derivative along `tangent`, by forward mode."""
    value, derivative = torch.func.jvp(function, (primal,), (tangent,))  # type: ignore[misc]
    return value, derivative


def vjp(function: Callable[..., Any], primal: Any) -> Callable[[Any], Any]:
    """The map from a cotangent of the function's value to one of its argument."""
    _, pull_back = torch.func.vjp(function, primal)  # type: ignore[misc]
    return lambda cotangent: pull_back(cotangent)[0]


def flatten(parameters: Parameters) -> Tensor:
    """All parameters in one vector, (p,)."""
    return torch.cat([p.reshape(-1) for p in parameters])


def unflatten(vector: Tensor, like: Parameters) -> Parameters:
    """The inverse of `flatten`."""
    parts = torch.split(vector, [p.numel() for p in like])
    return Parameters(*(v.reshape(p.shape) for v, p in zip(parts, like, strict=True)))


def loss_gradient(parameters: Parameters, pairs: PairFeatures, batches: np.ndarray) -> Tensor:
    """Gradient of the mean contrastive loss over fixed batches, (p,)."""
    total = torch.zeros_like(flatten(parameters))
    for block in batch_blocks(batches, pairs.device):
        batch = pairs.take(block)
        total += flatten(
            grad(lambda p, batch=batch: contrastive_loss(similarities(p, batch)).sum())(parameters)
        )
    return total / len(batches)


def group_loss_gradients(
    parameters: Parameters,
    pairs: PairFeatures,
    batches: np.ndarray,
    members: Bool[np.ndarray, "G n"],
) -> Tensor:
    """Gradient of each group's mean loss over fixed batches of all pairs, (G, p).

        L_g = sum_B sum_{i in B and g} l_i / (how often a batch holds one of g)

    Negatives are the others of the batch, of whatever group. Weighted by these counts, the
    gradients of groups that part the pairs have the mean `loss_gradient`. A group that no batch
    holds has a gradient of zero.
    """
    totals = torch.zeros_like(flatten(parameters)).repeat(len(members), 1)
    belongs = torch.from_numpy(members).to(pairs.device)
    for block in batch_blocks(batches, pairs.device):
        batch = pairs.take(block)
        pull_back = vjp(lambda p, batch=batch: pair_losses(similarities(p, batch)), parameters)
        for g, member in enumerate(belongs):
            totals[g] += flatten(pull_back(member[block].to(totals.dtype)))
    counts = belongs[:, torch.from_numpy(batches).to(pairs.device).reshape(-1)].sum(dim=1)
    return totals / counts.clamp(min=1)[:, None]


def batch_loss_influences(
    parameters: Parameters,
    pairs: PairFeatures,
    direction: Tensor,
    index: Int64[np.ndarray, " m"],
    base_weights: Float[np.ndarray, " m"],
    *,
    batch_size: int,
    rng: np.random.Generator,
    n_shuffles: int = N_SHUFFLES,
) -> Float[np.ndarray, " m"]:
    """u_i of the pairs at `index`, nats, by one forward and one reverse sweep a batch.

        u_i = W_B * d/dw_i [ v . dL_B/dtheta ](w),    W_B = sum of the weights in i's batch B

    The forward sweep carries the logits and their derivative along v; the reverse sweep takes the
    gradient with respect to the pair weights, so the cost does not depend on the number of
    parameters and no per-pair gradient is stored. In every batch sum_i w_i u_i = 0: scaling all
    weights changes nothing.

    Args:
        parameters: the reference model.
        pairs: training pairs.
        direction: (p,) v = (H + damping)^-1 grad L_val.
        index: the pairs to evaluate; they are each other's negatives.
        base_weights: > 0, the weights at which the derivative is taken; how much of the training
            distribution each evaluated pair stands for.
        batch_size: of the training objective.
        rng: draws the shufflings.
        n_shuffles: batch compositions averaged over.
    """
    device = pairs.device
    tangent = unflatten(direction, parameters)
    weights = torch.from_numpy(base_weights.astype(np.float32)).to(device)
    pair_index = torch.from_numpy(index).to(device)
    totals = torch.zeros(len(index), dtype=torch.float64, device=device)
    counts = torch.zeros_like(totals)
    b = min(batch_size, len(index))
    for _ in range(n_shuffles):
        order = rng.permutation(len(index))
        n_batches = -(-len(order) // b)
        batches = np.resize(order, n_batches * b).reshape(n_batches, b)  # the last one wraps round
        for block in batch_blocks(batches, device):
            batch = pairs.take(pair_index[block])
            logits, logits_tangent = jvp(
                lambda p, batch=batch: similarities(p, batch), parameters, tangent
            )

            def slope(
                w: Tensor, logits: Tensor = logits, tangent: Tensor = logits_tangent
            ) -> Tensor:
                derivative: Tensor = jvp(lambda s: contrastive_loss(s, w), logits, tangent)[1]
                return derivative.sum()

            w = weights[block]
            u = w.sum(-1, keepdim=True) * grad(slope)(w)
            totals.index_add_(0, block.reshape(-1), u.reshape(-1).double())
            counts.index_add_(0, block.reshape(-1), torch.ones_like(u).reshape(-1).double())
    return (totals / counts).cpu().numpy()


def own_loss_influences(
    parameters: Parameters, pairs: PairFeatures, direction: Tensor, batches: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Classical influence of every pair of fixed batches: v . grad l_i, with l_i its own loss.

    What influence libraries compute; it overlooks the pair's role as a negative. Pairs that no
    batch holds get NaN.
    """
    tangent = unflatten(direction, parameters)
    result = np.full(pairs.n_pairs, np.nan)
    for block in batch_blocks(batches, pairs.device):
        batch = pairs.take(block)
        _, slopes = jvp(
            lambda p, batch=batch: pair_losses(similarities(p, batch)), parameters, tangent
        )
        result[block.cpu().numpy()] = slopes.double().cpu().numpy()
    return result

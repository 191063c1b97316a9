"""Derivatives of the contrastive loss by parameters and by pairs' weights.

A contrastive loss has no per-pair gradient until its batch is fixed, and a pair acts in it as a
positive and as a negative, so its influence is a mixed derivative of the weighted loss. The maps
are linear, so that all of it follows from what they make of each pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from learner.model import (
    ROWS_AT_ONCE,
    Parameters,
    batch_blocks,
    loss_and_gradient,
    pair_losses,
    similarities,
    unit_rows,
    whole_batches,
)
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
        _, gradient = loss_and_gradient(
            batch.images @ parameters.image_map,
            batch.texts @ parameters.text_map,
            parameters.log_scale,
        )
        by_images, by_texts = (
            side.flatten(0, 1).T @ by_side.flatten(0, 1)
            for side, by_side in zip(batch, gradient[:2], strict=True)
        )
        total += flatten(Parameters(by_images, by_texts, gradient.by_scale.sum()))
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
    """u_i of the pairs at `index`, nats, from what the model makes of each pair.

        u_i = W_B * d/dw_i [ v . dL_B/dtheta ](w),    W_B = sum of the weights in i's batch B

    With T the derivative of the logits s along v, E_ij = exp(s_ij) / sum_k w_k exp(s_ik) and F
    likewise down the columns, a_i = sum_j w_j E_ij T_ij and c_j = sum_i w_i F_ij T_ij,

        m_i = (a_i + c_i) / 2 - T_ii
        u_i = m_i - sum_k w_k m_k / W_B
              + 1/2 sum_k w_k [ E_ki (T_ki - a_k) + F_ik (T_ik - c_k) ]

    Pairs go through the maps once; their batches are small products of what comes out. In every
    batch sum_i w_i u_i = 0: scaling all weights changes nothing.

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
    along = unflatten(direction, parameters)
    seen = _seen_along(parameters, along, pairs, index)
    log_weights = torch.from_numpy(base_weights.astype(np.float32)).to(device).log()
    scale = parameters.log_scale.exp()
    totals = torch.zeros(len(index), dtype=torch.float64, device=device)
    counts = torch.zeros_like(totals)
    b = min(batch_size, len(index))
    for _ in range(n_shuffles):
        for block in batch_blocks(whole_batches(len(index), b, rng), device):
            images, texts, images_along, texts_along = (part[block] for part in seen)
            texts, texts_along = texts.transpose(-1, -2), texts_along.transpose(-1, -2)
            logits = scale * (images @ texts)
            slopes = scale * (images_along @ texts + images @ texts_along)
            slopes += along.log_scale * logits
            u = _weight_slopes(logits, slopes, log_weights[block])
            totals.index_add_(0, block.reshape(-1), u.reshape(-1).double())
            counts.index_add_(0, block.reshape(-1), torch.ones_like(u).reshape(-1).double())
    return (totals / counts).cpu().numpy()


class _Seen(NamedTuple):
    """Unit joint embeddings of m pairs, and their derivatives along a change of the model."""

    images: Tensor  # (m, e)
    texts: Tensor
    images_along: Tensor
    texts_along: Tensor


def _seen_along(
    parameters: Parameters,
    along: Parameters,
    pairs: PairFeatures,
    index: Int64[np.ndarray, " m"],
) -> _Seen:
    parts: list[_Seen] = []
    for rows in np.split(index, range(ROWS_AT_ONCE, len(index), ROWS_AT_ONCE)):
        batch = pairs.take(torch.from_numpy(rows).to(pairs.device))
        images, by_images = unit_rows(batch.images @ parameters.image_map)
        texts, by_texts = unit_rows(batch.texts @ parameters.text_map)
        images_along = by_images(batch.images @ along.image_map)
        texts_along = by_texts(batch.texts @ along.text_map)
        parts.append(_Seen(images, texts, images_along, texts_along))
    return _Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _weight_slopes(logits: Tensor, slopes: Tensor, log_weights: Tensor) -> Tensor:
    """U of `batch_loss_influences`, (..., b), from s, T and log w of its batches."""
    weights = log_weights.exp()
    of_rows = (logits + log_weights[..., None, :]).logsumexp(-1, keepdim=True)
    of_columns = (logits + log_weights[..., :, None]).logsumexp(-2, keepdim=True)
    rows, columns = (logits - of_rows).exp(), (logits - of_columns).exp()  # E and F
    a = (rows * slopes * weights[..., None, :]).sum(-1)
    c = (columns * slopes * weights[..., :, None]).sum(-2)
    mean = (a + c) / 2 - slopes.diagonal(dim1=-2, dim2=-1)
    as_negative = (weights[..., :, None] * rows * (slopes - a[..., :, None])).sum(-2)
    as_negative = as_negative + (weights[..., None, :] * columns * (slopes - c[..., None, :])).sum(
        -1
    )
    share = weights / weights.sum(-1, keepdim=True)
    return mean - (share * mean).sum(-1, keepdim=True) + as_negative / 2


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

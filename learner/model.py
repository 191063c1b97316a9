"""The dual encoder that is trained and its weighted contrastive loss.

Two linear maps take frozen tower features to a joint space of unit vectors; a learned logit
scale turns their cosines into logits. The loss is CLIP's (Radford et al. 2021, arXiv 2103.00020)
with a weight per pair that acts on the pair both as a positive and as a negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Float32, Int64
from torch import Tensor

from learner.pairs import PairFeatures, PairTensors

INITIAL_LOGIT_SCALE = 1 / 0.07  # CLIP's
MAX_LOG_SCALE = math.log(100.0)  # CLIP's cap on the logit scale
MAX_EXPONENT = 80.0  # exp of it is finite in float32
LEAST_NORM = 1e-12  # of a row that is made a unit one, as in `F.normalize`
ROWS_AT_ONCE = 8192  # pairs per vectorised block of batches; bounds memory


class Parameters(NamedTuple):
    """Everything that is trained; a pytree, so `torch.func` transforms take it as it is.

    Runs side by side have a leading dimension more.
    """

    image_map: Tensor  # (d_i, e)
    text_map: Tensor  # (d_t, e)
    log_scale: Tensor  # ()


def initial_parameters(
    d_image: int, d_text: int, embed_dim: int, *, seed: int, device: torch.device
) -> Parameters:
    """Gaussian maps of unit gain and CLIP's initial logit scale; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    image_map = torch.randn(d_image, embed_dim, generator=generator) / math.sqrt(d_image)
    text_map = torch.randn(d_text, embed_dim, generator=generator) / math.sqrt(d_text)
    log_scale = torch.tensor(math.log(INITIAL_LOGIT_SCALE))
    return Parameters(image_map.to(device), text_map.to(device), log_scale.to(device))


def to_vector(parameters: Parameters) -> Float32[np.ndarray, " p"]:
    """All parameters one after the other, as they are kept in a file."""
    return torch.cat([part.reshape(-1) for part in parameters]).numpy(force=True)


def from_vector(
    vector: Float32[np.ndarray, " p"], widths: tuple[int, int], device: torch.device
) -> Parameters:
    """What `to_vector` was given, for features of these widths."""
    whole = torch.from_numpy(np.array(vector)).to(device)
    embed_dim = (len(vector) - 1) // sum(widths)
    images, texts, log_scale = whole.split([*(d * embed_dim for d in widths), 1])
    return Parameters(
        images.reshape(widths[0], -1), texts.reshape(widths[1], -1), log_scale.reshape(())
    )


def embed_images(parameters: Parameters, images: Tensor) -> Tensor:
    """Unit joint embeddings of scaled image features, (..., d_i) -> (..., e)."""
    return F.normalize(images @ parameters.image_map, dim=-1)


def embed_texts(parameters: Parameters, texts: Tensor) -> Tensor:
    """Unit joint embeddings of scaled text features, (..., d_t) -> (..., e)."""
    return F.normalize(texts @ parameters.text_map, dim=-1)


def similarities(parameters: Parameters, batch: PairTensors) -> Tensor:
    """Logits s_ij = scale * <f(v_i), g(t_j)> of batches of pairs, (..., b, b)."""
    return projected_similarities(
        batch.images @ parameters.image_map, batch.texts @ parameters.text_map, parameters.log_scale
    )


def projected_similarities(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Logits of pairs whose features have been through the maps already, (..., b, b).

    The log scale is one for all batches, (), or one for each run, (R,).
    """
    scale = log_scale.exp()[..., None, None]
    return scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).transpose(-1, -2)


def pair_losses(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Symmetric contrastive loss of every pair among the others of its batch.

        l_i = 1/2 [ log sum_j w_j exp(s_ij) + log sum_j w_j exp(s_ji) - 2 s_ii ]

    No reduction. Negatives: the other pairs of the batch, each counted `weights` times; a weight
    of zero removes the pair from every denominator exactly, and the derivative with respect to
    that weight exists: it says what adding the pair would do.

    Args:
        logits: (..., b, b).
        weights: (..., b), >= 0 and not all zero in a batch; None is all ones.

    Returns:
        (..., b) nats.
    """
    if weights is None:
        image_to_text = torch.logsumexp(logits, dim=-1)
        text_to_image = torch.logsumexp(logits, dim=-2)
    else:
        image_to_text = _weighted_logsumexp(logits, weights)
        text_to_image = _weighted_logsumexp(logits.transpose(-1, -2), weights)
    return (image_to_text + text_to_image) / 2 - logits.diagonal(dim1=-2, dim2=-1)


def _weighted_logsumexp(logits: Tensor, weights: Tensor) -> Tensor:
    """Log sum_j w_j exp(s_ij), (..., b), differentiable in w at zero, unlike its use of log w."""
    weights = weights.unsqueeze(-2)
    largest = logits.detach().masked_fill(weights <= 0, -math.inf).amax(-1, keepdim=True)
    # Columns of weight zero may lie far above the largest that counts; 0 * inf would be NaN.
    shifted = (logits - largest).clamp(max=MAX_EXPONENT)
    return largest.squeeze(-1) + (weights * shifted.exp()).sum(-1).log()


def contrastive_loss(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of `pair_losses` over each batch: sum_i w_i l_i / sum_i w_i, (...) nats.

    A batch whose weights are all zero has nothing to say: its loss is zero and has no gradient.
    """
    if weights is None:
        return pair_losses(logits).mean(dim=-1)
    empty = weights.detach().sum(-1) == 0
    weights = torch.where(empty.unsqueeze(-1), torch.ones_like(weights), weights)
    mean = (weights * pair_losses(logits, weights)).sum(-1) / weights.sum(-1)
    return torch.where(empty, torch.zeros_like(mean), mean)


class ProjectedGradient(NamedTuple):
    """Gradient of batches' losses with respect to what the maps make of the batches.

    The maps are linear, so that their own gradient is a product with the batch's features.
    """

    by_images: Tensor  # (R, b, e)
    by_texts: Tensor  # (R, b, e)
    by_scale: Tensor  # (R,)

    def by_parameters(self, batch: PairTensors, out: Parameters) -> None:
        """Write the gradient with respect to the parameters into `out`."""
        torch.bmm(batch.images.transpose(1, 2), self.by_images, out=out.image_map)
        torch.bmm(batch.texts.transpose(1, 2), self.by_texts, out=out.text_map)
        out.log_scale.copy_(self.by_scale)


def loss_and_gradient(
    images: Tensor, texts: Tensor, log_scale: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, ProjectedGradient]:
    """`contrastive_loss` of projected batches and its gradient, written out.

    In a third of the time that recording and going back takes: a training does little else. With
    P the row-wise and Q the column-wise softmax of s + log w, and W = sum_i w_i,

        dL / ds_ij = (w_i P_ij + w_j Q_ij) / 2 W - [i = j] w_i / W

    Args:
        images: (R, b, e) what the maps make of the batches.
        texts: (R, b, e) likewise.
        log_scale: (R,).
        weights: (R, b), >= 0; None is all ones.

    Returns:
        (R,) nats, and their gradient.
    """
    (u, by_u), (v, by_v) = unit_rows(images), unit_rows(texts)
    scale = log_scale.exp()[..., None, None]
    logits = scale * (u @ v.transpose(-1, -2))
    if weights is None:
        rows, columns = logits.log_softmax(-1), logits.log_softmax(-2)
        share = torch.full_like(logits[..., 0], 1 / logits.shape[-1])
        own_losses = -(rows + columns).diagonal(dim1=-2, dim2=-1) / 2
    else:
        total = weights.sum(-1, keepdim=True)
        share = weights / total.clamp(min=torch.finfo(total.dtype).tiny)
        # A batch whose weights are all zero has nothing to say: its shares are zero.
        log_weights = torch.where(total > 0, weights, 1.0).log()
        rows = (logits + log_weights[..., None, :]).log_softmax(-1)
        columns = (logits + log_weights[..., :, None]).log_softmax(-2)
        own_losses = log_weights - (rows + columns).diagonal(dim1=-2, dim2=-1) / 2
        own_losses = own_losses.masked_fill(weights <= 0, 0.0)
    by_logits = (share[..., :, None] * rows.exp() + share[..., None, :] * columns.exp()) / 2
    by_logits.diagonal(dim1=-2, dim2=-1).sub_(share)
    by_cosines = scale * by_logits
    return (share * own_losses).sum(-1), ProjectedGradient(
        by_u(by_cosines @ v),
        by_v(by_cosines.transpose(-1, -2) @ u),
        (by_logits * logits).sum((-2, -1)),
    )


def unit_rows(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows of unit length, and the derivative of that: a map of rows, which is symmetric.

    So it takes a change of the rows given to one of the unit rows, and a gradient by the unit rows
    to one by those given.
    """
    inverse_norms = 1 / rows.norm(dim=-1, keepdim=True).clamp(min=LEAST_NORM)
    unit = rows * inverse_norms

    def derivative(other: Tensor) -> Tensor:
        along = (unit * other).sum(-1, keepdim=True)
        return torch.mul(other - unit * along, inverse_norms)

    return unit, derivative


def shuffled_batches(
    n: int, batch_size: int, rng: np.random.Generator
) -> Int64[np.ndarray, "n_batches b"]:
    """One epoch: a permutation of the pairs cut into full batches, the remainder left out.

    A set smaller than a batch is one batch of all its pairs.
    """
    b = min(batch_size, n)
    n_batches = n // b
    return rng.permutation(n)[: n_batches * b].reshape(n_batches, b)


def whole_batches(
    n: int, batch_size: int, rng: np.random.Generator
) -> Int64[np.ndarray, "n_batches b"]:
    """Random batches that hold every pair, the last one filled up from the first."""
    b = min(batch_size, n)
    return np.resize(rng.permutation(n), -(-n // b) * b).reshape(-1, b)


def batch_blocks(batches: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """The batches in blocks of at most `ROWS_AT_ONCE` pairs, each (n_batches, b) on `device`."""
    per_block = max(1, ROWS_AT_ONCE // batches.shape[1])
    for start in range(0, len(batches), per_block):
        yield torch.from_numpy(batches[start : start + per_block]).to(device)


def mean_loss(parameters: Parameters, pairs: PairFeatures, batches: np.ndarray) -> float:
    """Mean contrastive loss over fixed batches, nats."""
    total = 0.0
    with torch.no_grad():
        for block in batch_blocks(batches, pairs.device):
            total += float(contrastive_loss(similarities(parameters, pairs.take(block))).sum())
    return total / len(batches)

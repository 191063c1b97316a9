"""Curvature of the training loss at the reference model: Hessian-vector products, matrix-free.

The Gauss-Newton matrix of the weighted contrastive loss plus weight decay (Schraudolph 2002), or
the whole Hessian.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from attribution.derivatives import flatten, jvp, vjp
from learner.model import (
    Parameters,
    batch_blocks,
    contrastive_loss,
    projected_similarities,
    shuffled_batches,
)
from learner.pairs import PairFeatures, PairTensors

CURVATURES = ("gauss_newton", "hessian")
VECTORS_AT_ONCE = 4  # Hessian products taken side by side
MAX_CURVATURE_PAIRS = 20_000  # a larger training set's curvature is taken on a sample of this size


class Block(NamedTuple):
    """Some batches of the objective, with what every product needs of them."""

    batch: PairTensors  # (m, b, d_i), (m, b, d_t)
    weights: Tensor  # (m, b)
    images: Tensor  # (m, b, e), through the image map
    texts: Tensor  # (m, b, e), through the text map


class Objective:
    """The training loss around the reference parameters, over one fixed epoch of batches.

    At most `MAX_CURVATURE_PAIRS` pairs, drawn at random; their features and projections stay in
    memory.
    """

    def __init__(
        self,
        pairs: PairFeatures,
        parameters: Parameters,
        kept: np.ndarray,
        weights: np.ndarray,
        batch_size: int,
        weight_decay: float,
        *,
        rng: np.random.Generator,
        curvature: str = "gauss_newton",
    ) -> None:
        self.pairs = pairs
        self.parameters = parameters
        self.curvature = curvature
        sample = rng.permutation(kept)[:MAX_CURVATURE_PAIRS]
        self.batches = sample[shuffled_batches(len(sample), batch_size, rng)]
        device = pairs.device
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        decay = [torch.full_like(p, weight_decay) for p in parameters]
        decay[-1].zero_()  # the logit scale is not decayed
        self.decay = flatten(Parameters(*decay))
        self.blocks = []
        for index in batch_blocks(self.batches, device):
            batch = pairs.take(index)
            images, texts = batch.images @ parameters.image_map, batch.texts @ parameters.text_map
            self.blocks.append(Block(batch, self.weights[index], images, texts))

    def product(self, vector: Tensor) -> Tensor:
        """(C + weight decay) v, (p,); see `products`."""
        return self.products(vector[None])[0]

    def products(self, vectors: Tensor) -> Tensor:
        """(C + weight decay) v for several vectors, matrix-free, rows (B, p)."""
        return torch.cat([self._products(some) for some in vectors.split(VECTORS_AT_ONCE)])

    def _products(self, vectors: Tensor) -> Tensor:
        """The products with at most `VECTORS_AT_ONCE` vectors, side by side.

        C is the Gauss-Newton matrix J^T (d2L / dS2) J, with J the derivative of the logits S, or
        the exact Hessian, which adds the curvature of the logits and can be indefinite. The maps
        are linear, so only the small function behind them is differentiated twice. A few
        times `VECTORS_AT_ONCE` * `ROWS_AT_ONCE` * e floats are alive at a time.
        """
        image_maps, text_maps, log_scales = torch.split(
            vectors, [p.numel() for p in self.parameters], dim=1
        )
        image_maps = image_maps.unflatten(1, self.parameters.image_map.shape)
        text_maps = text_maps.unflatten(1, self.parameters.text_map.shape)
        curved_product = {
            "gauss_newton": _gauss_newton_product,
            "hessian": _hessian_product,
        }[self.curvature]
        totals = [torch.zeros_like(t) for t in (image_maps, text_maps, log_scales[:, 0])]
        for block in self.blocks:
            point = (block.images, block.texts, self.parameters.log_scale)
            along = (
                block.batch.images @ image_maps[:, None],
                block.batch.texts @ text_maps[:, None],
                log_scales[:, 0],
            )
            curved = vmap(
                lambda *tangents, point=point, w=block.weights: curved_product(point, tangents, w)
            )(*along)
            totals[0] += block.batch.images.flatten(0, 1).T @ curved[0].flatten(1, 2)
            totals[1] += block.batch.texts.flatten(0, 1).T @ curved[1].flatten(1, 2)
            totals[2] += curved[2]
        summed = torch.cat([t.flatten(1) if t.ndim > 1 else t[:, None] for t in totals], dim=1)
        return summed / len(self.batches) + self.decay * vectors


Projected = tuple[Tensor, Tensor, Tensor]  # image projections, text projections, log scale


def _hessian_product(point: Projected, along: Projected, weights: Tensor) -> Projected:
    def gradient(point: Projected) -> Projected:
        result: Projected = grad(
            lambda p: contrastive_loss(projected_similarities(*p), weights).sum()
        )(point)
        return result

    curved: Projected = jvp(gradient, point, along)[1]
    return curved


def _gauss_newton_product(point: Projected, along: Projected, weights: Tensor) -> Projected:
    def logit_gradient(logits: Tensor) -> Tensor:
        gradient: Tensor = grad(lambda s: contrastive_loss(s, weights).sum())(logits)
        return gradient

    logits, logits_tangent = jvp(lambda p: projected_similarities(*p), point, along)
    _, curved = jvp(logit_gradient, logits, logits_tangent)
    back: Projected = vjp(lambda p: projected_similarities(*p), point)(curved)
    return back

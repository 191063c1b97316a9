"""Curvature of the training loss at the reference model, and its inverse times a vector.

The Gauss-Newton matrix of the weighted contrastive loss plus weight decay, matrix-free (Schraudolph
2002), and four ways to (H + damping I)^-1 g: a low-rank Lanczos factor, conjugate gradients
preconditioned by it, DataInf (Kwon et al. 2024, arXiv 2310.00902), a multiple of the identity.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Tensor
from torch.func import grad, jacrev, vmap
from tqdm import tqdm

from model import (
    PairTensors,
    Parameters,
    batch_blocks,
    contrastive_loss,
    pair_losses,
    shuffled_batches,
    similarities,
)

logger = logging.getLogger(__name__)

HESSIANS = ("lanczos", "cg", "datainf", "identity")
MAX_CURVATURE_PAIRS = 20_000  # a larger training set's curvature is taken on a sample of this size
CG_TOLERANCE = 1e-4
CG_MAX_STEPS = 200
DATAINF_BATCHES_AT_ONCE = 16  # (16, b, b, e) floats are alive at a time


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


def loss_gradient(parameters: Parameters, pairs: PairTensors, batches: np.ndarray) -> Tensor:
    """Gradient of the mean contrastive loss over fixed batches, (p,)."""
    total = torch.zeros_like(flatten(parameters))
    for block in batch_blocks(batches, pairs.images.device):
        batch = pairs.take(block)
        total += flatten(
            grad(lambda p, batch=batch: contrastive_loss(similarities(p, batch)).sum())(parameters)
        )
    return total / len(batches)


class Objective:
    """The training loss around the reference parameters, over one fixed epoch of batches."""

    def __init__(
        self,
        pairs: PairTensors,
        parameters: Parameters,
        kept: np.ndarray,
        weights: np.ndarray,
        batch_size: int,
        weight_decay: float,
        *,
        rng: np.random.Generator,
    ) -> None:
        self.pairs = pairs
        self.parameters = parameters
        sample = rng.permutation(kept)[:MAX_CURVATURE_PAIRS]
        self.batches = sample[shuffled_batches(len(sample), batch_size, rng)]
        device = pairs.images.device
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        decay = [torch.full_like(p, weight_decay) for p in parameters]
        decay[-1].zero_()  # the logit scale is not decayed
        self.decay = flatten(Parameters(*decay))

    def gauss_newton_product(self, vector: Tensor) -> Tensor:
        """(G + weight decay) v, matrix-free: forward to the logits, loss curvature, back. (p,)."""
        tangent = unflatten(vector, self.parameters)
        total = torch.zeros_like(vector)
        for block in batch_blocks(self.batches, vector.device):
            batch, weights = self.pairs.take(block), self.weights[block]

            def logits_of(p: Parameters, batch: PairTensors = batch) -> Tensor:
                return similarities(p, batch)

            def logit_gradient(s: Tensor, weights: Tensor = weights) -> Tensor:
                gradient: Tensor = grad(lambda s: contrastive_loss(s, weights).sum())(s)
                return gradient

            logits, logits_tangent = jvp(logits_of, self.parameters, tangent)
            _, curved = jvp(logit_gradient, logits, logits_tangent)
            pull_back = vjp(logits_of, self.parameters)
            total += flatten(pull_back(curved))
        return total / len(self.batches) + self.decay * vector


@dataclass(frozen=True)
class InverseProduct:
    """v = (H + damping)^-1 g and what was learnt of H on the way."""

    direction: Tensor  # (p,)
    damping: float
    eigenvalues: Float[np.ndarray, " r"]
    residuals: Float[np.ndarray, " r"]


def inverse_product(
    objective: Objective,
    gradient: Tensor,
    hessian: str,
    *,
    rank: int,
    damping: float | None,
    rng: np.random.Generator,
) -> InverseProduct:
    """The inverse Hessian times the validation gradient, by the method named `hessian`."""
    hvp = objective.gauss_newton_product
    if hessian in ("datainf", "identity"):
        direction = gradient
        if hessian == "datainf":
            direction = datainf_direction(
                objective.parameters, objective.pairs, gradient, objective.batches
            )
        return _scaled_to_minimum(direction, gradient, hvp(direction), damping)
    # One eigenpair more than the rank: its value stands for all the remaining ones.
    spectrum = lanczos(
        hvp, len(gradient), rank + 1, device=gradient.device, rng=rng, dtype=gradient.dtype
    )
    leading = spectrum.eigenvalues[:rank]
    damping_used = float(leading.mean()) if damping is None else damping

    def low_rank(g: Tensor) -> Tensor:
        return low_rank_inverse(spectrum, g, damping_used, rank=rank)

    direction = low_rank(gradient)
    if hessian == "cg":
        direction = conjugate_gradients(
            lambda x: hvp(x) + damping_used * x, gradient, preconditioner=low_rank
        )
    return InverseProduct(direction, damping_used, leading, spectrum.residuals[:rank])


def _scaled_to_minimum(
    direction: Tensor, gradient: Tensor, product: Tensor, damping: float | None
) -> InverseProduct:
    """The multiple of a direction that the quadratic model likes best: ranks stay, units are right.

        c = (d . g) / (d . (H + damping) d)

    For the gradient itself this is the best multiple of the identity in H's place.
    """
    squared = float(direction @ direction)
    curvature = float(direction @ product) / squared
    damping = curvature if damping is None else damping
    multiple = float(direction @ gradient) / (squared * (curvature + damping))
    residual = float((product - curvature * direction).norm()) / math.sqrt(squared)
    return InverseProduct(
        multiple * direction, damping, np.array([curvature]), np.array([residual])
    )


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenpairs, by falling magnitude."""

    eigenvalues: Float[np.ndarray, " r"]
    eigenvectors: Tensor  # (r, p), orthonormal rows
    residuals: Float[np.ndarray, " r"]  # || H q - lambda q ||


def lanczos(
    hvp: Callable[[Tensor], Tensor],
    dimension: int,
    n_eigenpairs: int,
    *,
    device: torch.device,
    rng: np.random.Generator,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-2,
    max_steps: int | None = None,
) -> Spectrum:
    """The eigenpairs of largest magnitude of a symmetric operator.

    Lanczos iteration from a random vector, every new vector orthogonalised twice against all
    earlier ones, which keeps ghost copies out (Golub & Van Loan, section 10.3). Where the Krylov
    space is exhausted it goes on from a new random vector, so repeated eigenvalues are all found.
    Holds `max_steps` vectors of the operator's dimension.

    Args:
        hvp: (p,) -> (p,), symmetric.
        dimension: p.
        n_eigenpairs: how many, at most p.
        device: of the vectors.
        rng: draws the starting vectors.
        dtype: of the vectors; the small tridiagonal problem is solved in float64.
        tolerance: stop when every wanted residual is below this share of the largest eigenvalue.
        max_steps: products allowed; by default four times the pairs asked for, plus twenty.
    """
    wanted = min(n_eigenpairs, dimension)
    steps = min(dimension, max_steps or 4 * n_eigenpairs + 20)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
    basis = torch.zeros(steps, dimension, dtype=dtype, device=device)
    alphas: list[float] = []
    betas: list[float] = []  # betas[j] couples basis j and j + 1

    def orthogonal_to_basis(vector: Tensor, count: int) -> Tensor:
        for _ in range(2):
            vector = vector - basis[:count].T @ (basis[:count] @ vector)
        return vector

    def fresh_direction(count: int) -> Tensor:
        start = torch.randn(dimension, generator=generator, dtype=dtype).to(device)
        vector = orthogonal_to_basis(start, count)
        return F.normalize(vector, dim=0)

    basis[0] = fresh_direction(0)
    progress = tqdm(range(steps), desc="Lanczos", unit="product", disable=None, leave=False)
    for j in progress:
        product = hvp(basis[j])
        alphas.append(float(basis[j] @ product))
        rest = orthogonal_to_basis(product, j + 1)
        beta = float(rest.norm())
        scale = max(abs(a) for a in alphas + betas)
        exhausted = beta <= 100 * torch.finfo(dtype).eps * scale
        values, vectors = eigh_tridiagonal(np.array(alphas), np.array(betas))
        order = np.argsort(-np.abs(values), kind="stable")[:wanted]
        residuals = (0.0 if exhausted else beta) * np.abs(vectors[-1, order])
        converged = len(alphas) >= wanted and np.all(
            residuals <= tolerance * np.abs(values[order[0]])
        )
        # An exhausted Krylov space can hide further copies of an eigenvalue, whatever the residuals
        # of the vectors so far: go on to the last step.
        if j + 1 == steps or (converged and not exhausted and 0.0 not in betas):
            break
        betas.append(0.0 if exhausted else beta)
        basis[j + 1] = fresh_direction(j + 1) if exhausted else rest / beta
    progress.close()
    rotation = torch.from_numpy(vectors[:, order].T.copy()).to(device=device, dtype=dtype)
    return Spectrum(values[order], rotation @ basis[: len(alphas)], residuals)


def low_rank_inverse(spectrum: Spectrum, gradient: Tensor, damping: float, *, rank: int) -> Tensor:
    """(H + damping)^-1 g with H known on its leading eigenvectors only.

        sum_i q_i (q_i . g) / (lambda_i + damping) + (g - Q^T Q g) / (lambda_rest + damping)

    The rest of the spectrum is taken to be the next eigenvalue, `eigenvalues[rank]` (0 if none).

    Raises:
        ValueError: an eigenvalue plus damping is not positive.
    """
    values = torch.from_numpy(spectrum.eigenvalues).to(gradient)
    leading, rest = values[:rank], values[rank] if len(values) > rank else values.new_zeros(())
    if bool((leading + damping <= 0).any()) or float(rest) + damping <= 0:
        raise ValueError(f"every eigenvalue plus damping must be > 0; damping is {damping:g}")
    vectors = spectrum.eigenvectors[:rank]
    coordinates = vectors @ gradient
    outside = gradient - vectors.T @ coordinates
    return vectors.T @ (coordinates / (leading + damping)) + outside / (rest + damping)


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor],
    right_side: Tensor,
    *,
    preconditioner: Callable[[Tensor], Tensor],
    tolerance: float = CG_TOLERANCE,
    max_steps: int = CG_MAX_STEPS,
) -> Tensor:
    """Solve A x = b for a symmetric positive definite A, preconditioned (Golub & Van Loan 11.5).

    Stops at a relative residual of `tolerance`, or after `max_steps` with a warning.
    """
    solution = torch.zeros_like(right_side)
    residual = right_side.clone()
    conditioned = preconditioner(residual)
    step_direction = conditioned.clone()
    energy = residual @ conditioned
    goal = tolerance * float(right_side.norm())
    if goal == 0:
        return solution
    for _ in tqdm(range(max_steps), desc="CG", unit="product", disable=None, leave=False):
        product = operator(step_direction)
        step = energy / (step_direction @ product)
        solution = solution + step * step_direction
        residual = residual - step * product
        if float(residual.norm()) <= goal:
            return solution
        conditioned = preconditioner(residual)
        new_energy = residual @ conditioned
        step_direction = conditioned + (new_energy / energy) * step_direction
        energy = new_energy
    logger.warning(
        "conjugate gradients stopped after %d steps at a relative residual of %.1e",
        max_steps,
        float(residual.norm() / right_side.norm()),
    )
    return solution


def datainf_direction(
    parameters: Parameters, pairs: PairTensors, gradient: Tensor, batches: np.ndarray
) -> Tensor:
    """DataInf's approximation of H^-1 g, layer by layer: Kwon et al. (2024), equation 5.

        v_l = (1 / lambda_l) [ g_l - (1/n) sum_i (g_il . g_l) / (lambda_l + |g_il|^2) g_il ]

    with g_il the gradient of pair i's own loss in its batch with respect to layer l and lambda_l
    a tenth of the mean squared gradient per parameter. Inner products come from forward mode,
    norms from Gram matrices, the sum from reverse mode: no per-pair gradient is stored.

    Returns:
        (p,)
    """
    n_pairs = batches.size
    layers = unflatten(gradient, parameters)
    norms, products = [], []
    for block in _small_blocks(batches, pairs.images.device):
        batch = pairs.take(block)
        norms.append(_squared_gradient_norms(parameters, batch))
        products.append(_layer_inner_products(parameters, batch, layers))
    squared = torch.cat(norms)  # (n_batches, b, 3)
    inner = torch.cat(products)
    sizes = torch.tensor([p.numel() for p in parameters], device=squared.device)
    damping = 0.1 * squared.mean(dim=(0, 1)) / sizes  # (3,)
    coefficients = inner / (damping + squared)
    sums = [torch.zeros_like(p) for p in parameters]
    start = 0
    for block in _small_blocks(batches, pairs.images.device):
        batch = pairs.take(block)
        pull_back = vjp(lambda p, batch=batch: pair_losses(similarities(p, batch)), parameters)
        for layer in range(len(parameters)):
            sums[layer] += pull_back(coefficients[start : start + len(block), :, layer])[layer]
        start += len(block)
    return flatten(
        Parameters(*((g - s / n_pairs) / d for g, s, d in zip(layers, sums, damping, strict=True)))
    )


def _small_blocks(batches: np.ndarray, device: torch.device) -> list[Tensor]:
    return list(torch.from_numpy(batches).to(device).split(DATAINF_BATCHES_AT_ONCE))


def _layer_inner_products(
    parameters: Parameters, batch: PairTensors, direction: Parameters
) -> Tensor:
    """g_il . direction_l of every pair and layer, (n_batches, b, 3)."""
    zeros = [torch.zeros_like(p) for p in parameters]
    products = []
    for layer, part in enumerate(direction):
        tangent = Parameters(*(part if m == layer else z for m, z in enumerate(zeros)))
        _, slopes = jvp(lambda p: pair_losses(similarities(p, batch)), parameters, tangent)
        products.append(slopes)
    return torch.stack(products, dim=-1)


def _squared_gradient_norms(parameters: Parameters, batch: PairTensors) -> Tensor:
    """|g_il|^2 of every pair and layer, (n_batches, b, 3).

    The gradient of l_i with respect to a map is X^T D_i, with X the batch's features and D_i the
    gradient with respect to the batch's projections, so its squared norm is <D_i D_i^T, X X^T>.
    """
    identity_maps = (batch.images @ parameters.image_map, batch.texts @ parameters.text_map)

    def losses(image_rows: Tensor, text_rows: Tensor, log_scale: Tensor) -> Tensor:
        images = F.normalize(image_rows, dim=-1)
        texts = F.normalize(text_rows, dim=-1)
        return pair_losses(log_scale.exp() * images @ texts.T)

    jacobian = vmap(jacrev(losses, argnums=(0, 1, 2)), in_dims=(0, 0, None))
    by_image, by_text, by_scale = jacobian(*identity_maps, parameters.log_scale)
    return torch.stack(
        [
            _gram_norms(by_image, batch.images),
            _gram_norms(by_text, batch.texts),
            by_scale**2,
        ],
        dim=-1,
    )


def _gram_norms(rows: Tensor, features: Tensor) -> Tensor:
    """<D_i D_i^T, X X^T> for D (n_batches, b, b, e) and X (n_batches, b, d), (n_batches, b)."""
    gram = features @ features.transpose(-1, -2)
    mixed = torch.einsum("njk,nike->nije", gram, rows)
    return (rows * mixed).sum(dim=(-1, -2))

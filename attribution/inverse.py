"""The inverse of the curvature times a vector, (H + damping I)^-1 g, in four ways.

lanczos    H on its leading eigenvectors, one value for all the others
cg         conjugate gradients, preconditioned by that
datainf    DataInf (Kwon et al. 2024, arXiv 2310.00902), at the best multiple
identity   the best multiple of the gradient itself
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

from attribution.curvature import Objective
from attribution.derivatives import flatten, jvp, unflatten, vjp
from attribution.spectrum import Spectrum, lanczos, trace_estimate
from learner.model import Parameters, pair_losses, similarities
from learner.pairs import PairFeatures, PairTensors

logger = logging.getLogger(__name__)
HESSIANS = ("lanczos", "cg", "datainf", "identity")
CG_TOLERANCE = 1e-4
STEP_TOLERANCE = 1e-2  # of the many systems that cluster steps solve
CG_MAX_STEPS = 200
DATAINF_BATCHES_AT_ONCE = 16  # (16, b, b, e) floats are alive at a time


@dataclass(frozen=True)
class InverseProduct:
    """The inverse of the damped curvature, its product v with the gradient, and its quality."""

    solve: Callable[[Tensor], Tensor]  # (p,) -> (p,)
    direction: Tensor  # (p,)
    damping: float
    eigenvalues: Float[np.ndarray, " r"]
    residuals: Float[np.ndarray, " r"]
    trace: float  # of the curvature, by Hutchinson's estimator
    trace_stderr: float
    cosine: float  # between the approximate product and that of conjugate gradients

    @property
    def trace_share(self) -> float:
        """The share of the trace that the reported eigenvalues hold."""
        return float(self.eigenvalues.sum()) / self.trace


class _Approximation(NamedTuple):
    """What a method puts in the place of the inverse."""

    solve: Callable[[Tensor], Tensor]  # (p,) -> (p,), or rows
    direction: Tensor  # (p,)
    eigenvalues: Float[np.ndarray, " r"]
    residuals: Float[np.ndarray, " r"]
    cosine: float


def inverse_product(
    objective: Objective,
    gradient: Tensor,
    hessian: str,
    *,
    rank: int,
    damping: float,
    rng: np.random.Generator,
) -> InverseProduct:
    """The inverse curvature times the validation gradient, by the method named `hessian`.

    Whatever the method, the damped system is also solved by conjugate gradients, so that the
    cosine between the two tells what the approximation loses.
    """
    trace, trace_stderr = trace_estimate(
        objective.product, len(gradient), device=gradient.device, rng=rng, dtype=gradient.dtype
    )
    if hessian in ("lanczos", "cg"):
        found = _by_eigenpairs(objective, gradient, hessian, rank=rank, damping=damping, rng=rng)
    else:
        found = _by_direction(objective, gradient, hessian, damping)
    return InverseProduct(
        found.solve,
        found.direction,
        damping,
        found.eigenvalues,
        found.residuals,
        trace,
        trace_stderr,
        found.cosine,
    )


def _damped(objective: Objective, damping: float) -> Callable[[Tensor], Tensor]:
    return lambda vectors: objective.products(vectors) + damping * vectors


def _by_eigenpairs(
    objective: Objective,
    gradient: Tensor,
    hessian: str,
    *,
    rank: int,
    damping: float,
    rng: np.random.Generator,
) -> _Approximation:
    """By the leading eigenpairs alone, or by conjugate gradients that they precondition."""
    # One eigenpair more than the rank: its value stands for all the remaining ones.
    spectrum = lanczos(
        objective.product,
        len(gradient),
        rank + 1,
        device=gradient.device,
        rng=rng,
        dtype=gradient.dtype,
    )
    if float(spectrum.eigenvalues.min()) < 0:
        _warn_of_negative_curvature(float(spectrum.eigenvalues.min()))
    magnitudes = Spectrum(np.abs(spectrum.eigenvalues), spectrum.eigenvectors, spectrum.residuals)
    damped = _damped(objective, damping)

    def low_rank(g: Tensor) -> Tensor:
        return low_rank_inverse(magnitudes, g, damping, rank=rank)

    def solved(g: Tensor, tolerance: float = STEP_TOLERANCE) -> Tensor:
        return conjugate_gradients(damped, g, preconditioner=low_rank, tolerance=tolerance)

    approximate, exact = low_rank(gradient), solved(gradient, CG_TOLERANCE)
    return _Approximation(
        solved if hessian == "cg" else low_rank,
        exact if hessian == "cg" else approximate,
        spectrum.eigenvalues[:rank],
        spectrum.residuals[:rank],
        float(F.cosine_similarity(approximate, exact, dim=0)),
    )


def _by_direction(
    objective: Objective, gradient: Tensor, hessian: str, damping: float
) -> _Approximation:
    """By the best multiple of the gradient, or of its direction by DataInf."""

    def direction_of(vector: Tensor) -> Tensor:
        if hessian == "identity":
            return vector
        o = objective
        return datainf_direction(o.parameters, o.pairs, vector, o.batches)

    direction = direction_of(gradient)
    multiple, curvature, residual = _multiple_at_minimum(
        direction, gradient, objective.product(direction), damping
    )
    exact = conjugate_gradients(_damped(objective, damping), gradient, preconditioner=lambda r: r)

    def scaled(rows: Tensor) -> Tensor:
        directions = [direction_of(row) for row in rows.reshape(-1, rows.shape[-1])]
        return multiple * torch.stack(directions).reshape(rows.shape)

    return _Approximation(
        scaled,
        multiple * direction,
        np.array([curvature]),
        np.array([residual]),
        float(F.cosine_similarity(direction, exact, dim=0)),
    )


def _warn_of_negative_curvature(value: float) -> None:
    logger.warning(
        "the exact Hessian has negative curvature here (%.2e): its magnitude is used, which turns "
        "saddle directions into stable ones (saddle-free Newton)",
        value,
    )


def _multiple_at_minimum(
    direction: Tensor, gradient: Tensor, product: Tensor, damping: float
) -> tuple[float, float, float]:
    """The multiple of a direction that the quadratic model likes best: ranks stay, units are right.

        c = (d . g) / (d . (H + damping) d)

    For the gradient itself this is the best multiple of the identity in H's place. Negative
    curvature along d counts by its magnitude, and a warning says so.

    Returns:
        c, the curvature along d, and the residual of d as an eigenvector.
    """
    squared = float(direction @ direction)
    curvature = float(direction @ product) / squared
    if curvature < 0:
        _warn_of_negative_curvature(curvature)
    multiple = float(direction @ gradient) / (squared * (abs(curvature) + damping))
    residual = float((product - curvature * direction).norm()) / math.sqrt(squared)
    return multiple, curvature, residual


def low_rank_inverse(spectrum: Spectrum, gradient: Tensor, damping: float, *, rank: int) -> Tensor:
    """(H + damping)^-1 g with H known on its leading eigenvectors only; g is (p,) or rows (B, p).

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
    coordinates = gradient @ vectors.T
    outside = gradient - coordinates @ vectors
    return (coordinates / (leading + damping)) @ vectors + outside / (rest + damping)


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor],
    right_sides: Tensor,
    *,
    preconditioner: Callable[[Tensor], Tensor],
    tolerance: float = CG_TOLERANCE,
    max_steps: int = CG_MAX_STEPS,
) -> Tensor:
    """Solve A x = b for a symmetric positive definite A, preconditioned (Golub & Van Loan 11.5).

    Several right sides are solved side by side, each with its own steps. One is finished at a
    relative residual of `tolerance`; after `max_steps` a warning gives the largest that is left.
    Where A turns out not to be positive definite along a direction, the solution so far is kept,
    in the first step the preconditioned right side, and a warning says so (Steihaug 1983).

    Args:
        operator: rows (B, p) -> (B, p).
        right_sides: (p,) or rows (B, p).
        preconditioner: rows (B, p) -> (B, p), an approximate inverse of the operator.
        tolerance: relative residual to reach.
        max_steps: products allowed a right side.
    """
    b = right_sides.reshape(-1, right_sides.shape[-1])
    solution, residual = torch.zeros_like(b), b.clone()
    active = torch.nonzero(b.norm(dim=1) > 0)[:, 0]
    goals = tolerance * b.norm(dim=1)
    direction = preconditioner(residual).clone()  # the residual changes in place
    energy = (residual * direction).sum(dim=1)
    n_indefinite = 0
    for _ in tqdm(range(max_steps), desc="CG", unit="product", disable=None, leave=False):
        if len(active) == 0:
            break
        product = operator(direction[active])
        curvature = (direction[active] * product).sum(dim=1)
        definite = curvature > 0
        n_indefinite += int((~definite).sum())
        untouched = active[~definite & (solution[active] == 0).all(dim=1)]
        solution[untouched] = direction[untouched]
        active, product, curvature = active[definite], product[definite], curvature[definite]
        step = (energy[active] / curvature)[:, None]
        solution[active] += step * direction[active]
        residual[active] -= step * product
        active = active[residual[active].norm(dim=1) > goals[active]]
        conditioned = preconditioner(residual[active])
        new_energy = (residual[active] * conditioned).sum(dim=1)
        direction[active] = conditioned + (new_energy / energy[active])[:, None] * direction[active]
        energy[active] = new_energy
    _warn_of_what_is_left(max_steps, residual[active].norm(dim=1) / b[active].norm(dim=1))
    if n_indefinite:
        logger.warning(
            "conjugate gradients met negative curvature in %d of %d systems and kept what they "
            "had: raise --damping, or use --curvature gauss_newton",
            n_indefinite,
            len(b),
        )
    return solution.reshape(right_sides.shape)


def _warn_of_what_is_left(max_steps: int, relative_residuals: Tensor) -> None:
    if len(relative_residuals):
        logger.warning(
            "conjugate gradients stopped after %d steps at a relative residual of %.1e",
            max_steps,
            float(relative_residuals.max()),
        )


def datainf_direction(
    parameters: Parameters, pairs: PairFeatures, gradient: Tensor, batches: np.ndarray
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
    for block in _small_blocks(batches, pairs.device):
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
    for block in _small_blocks(batches, pairs.device):
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

"""Matrices that are small enough to be spelled out, and operators that hide them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attribution.curvature import Objective
from tests import reference
from tests.reference import Problem

# Central differences of the reference in float64 are good to 1e-9; ten times that.
DIFFERENCED = 1e-8


def make_objective(
    problem: Problem,
    *,
    batch_size: int,
    weight_decay: float,
    dtype: torch.dtype = torch.float64,
    kind: str = "gauss_newton",
) -> tuple[Objective, np.ndarray]:
    """The objective over weighted pairs, and its dense matrix from plain NumPy."""
    rng = np.random.default_rng(5)
    # Multiples of 1/8: float32, which the objective keeps weights in, holds them exactly.
    weights = rng.integers(2, 20, size=len(problem.images)) / 8
    objective = Objective(
        problem.pairs(dtype),
        problem.parameters(dtype),
        np.arange(len(problem.images)),
        weights,
        batch_size,
        weight_decay,
        rng=rng,
        curvature=kind,
    )
    decay = np.full(len(problem.theta), weight_decay)
    decay[-1] = 0  # a temperature has no size to shrink
    dense = {"gauss_newton": reference.gauss_newton, "hessian": reference.hessian}[kind]
    return objective, dense(problem, objective.batches, weights) + np.diag(decay)


def materialised(product: Callable[[Tensor], Tensor], p: int) -> np.ndarray:
    """The matrix of a linear map, column by column."""
    columns = [product(row) for row in torch.eye(p, dtype=torch.float64)]
    return torch.stack(columns, dim=1).numpy()


def symmetric(eigenvalues: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """A dense matrix with these eigenvalues."""
    p = len(eigenvalues)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(p, p)))[0]
    matrix = rotation @ np.diag(eigenvalues) @ rotation.T
    return np.asarray((matrix + matrix.T) / 2)


def operator(matrix: np.ndarray, dtype: torch.dtype = torch.float64) -> Callable[[Tensor], Tensor]:
    """Times a vector (p,) or rows (B, p); the matrix is symmetric."""
    tensor = torch.from_numpy(matrix).to(dtype)
    return lambda v: v @ tensor

"""What products with a symmetric operator tell of it: its leading eigenpairs and its trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from tqdm import tqdm

TRACE_PROBES = 8


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
    """The eigenpairs of largest magnitude of a symmetric operator, by `scipy.sparse.linalg.eigsh`.

    ARPACK orthogonalises every new vector against all earlier ones, which keeps ghost copies out,
    and goes on at random where the Krylov space is exhausted, so that repeated eigenvalues are all
    found. What it has found is looked at after half, three quarters and all of the products. A
    small operator is spelled out and solved densely: ARPACK never finds every eigenpair. Holds
    `max_steps` vectors of the operator's dimension twice, and once more in float64 on the CPU.

    Args:
        hvp: (p,) -> (p,), symmetric.
        dimension: p.
        n_eigenpairs: how many, at most p.
        device: of the products and eigenvectors.
        rng: draws the starting vector.
        dtype: of the products and eigenvectors; what is between them is float64.
        tolerance: stop when every wanted residual is below this share of the largest eigenvalue.
        max_steps: products allowed, at least two more than eigenpairs; by default four times the
            pairs asked for, plus twenty.
    """
    wanted, steps = min(n_eigenpairs, dimension), max_steps or 4 * n_eigenpairs + 20
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
    start = torch.randn(dimension, generator=generator, dtype=dtype).to(device)
    n_products = min(steps, dimension)
    with tqdm(
        total=n_products, desc="Lanczos", unit="product", disable=None, leave=False
    ) as progress:
        products = _Products(hvp, n_products, start, progress)
        if dimension <= steps:
            return _dense_spectrum(products, dimension, wanted)
        return _iterated_spectrum(products, start, wanted, tolerance)


class _Products(LinearOperator):
    """Products with the operator, remembered in the order in which they are asked for.

    An iteration that starts where a shorter one did asks for the same products first, and these are
    not taken again.
    """

    def __init__(
        self, hvp: Callable[[Tensor], Tensor], n_products: int, start: Tensor, progress: tqdm
    ) -> None:
        super().__init__(np.float64, (len(start), len(start)))
        self.hvp, self.progress = hvp, progress
        self.vectors = start.new_empty(n_products, len(start))
        self.products = torch.empty_like(self.vectors)
        self.n_asked = self.n_known = 0

    def _matvec(self, array: np.ndarray) -> np.ndarray:
        """(p,) float64, of a product at the operator's precision; ValueError where it diverged."""
        place, vector = self.n_asked, torch.from_numpy(array.reshape(-1)).to(self.vectors)
        if place >= self.n_known or not torch.equal(vector, self.vectors[place]):
            self.vectors[place], self.products[place] = vector, self.hvp(vector)
            self.n_known = place + 1
            self.progress.update()
        self.n_asked += 1
        return np.asarray_chkfinite(self.products[place].double().cpu().numpy())

    def least_coupling(self, count: int) -> float:
        """Of the vectors of a basis with the next: zero where they span what H makes of them."""
        coupling = (self.vectors[2:count] * self.products[1 : count - 1]).sum(dim=1)
        return float(coupling.abs().min())

    def spectrum(
        self, values: np.ndarray, columns: np.ndarray, wanted: int, basis: slice
    ) -> Spectrum:
        """The leading of these eigenpairs, which lie in the span of an orthonormal basis.

        Their residuals take no further product: H q is put together from those of the basis.
        """
        order = np.argsort(-np.abs(values), kind="stable")[:wanted]
        eigenvalues, q = values[order], torch.from_numpy(columns.T[order]).to(self.vectors)
        images = (q @ self.vectors[basis].T) @ self.products[basis]
        residuals = images - torch.from_numpy(eigenvalues).to(q)[:, None] * q
        return Spectrum(eigenvalues, q, residuals.norm(dim=1).double().cpu().numpy())


def _dense_spectrum(products: _Products, dimension: int, wanted: int) -> Spectrum:
    matrix = np.stack([products.matvec(row) for row in np.eye(dimension)])
    values, columns = eigh((matrix + matrix.T) / 2)
    return products.spectrum(values, columns, wanted, slice(None))


def _iterated_spectrum(
    products: _Products, start: Tensor, wanted: int, tolerance: float
) -> Spectrum:
    first, steps = start.double().cpu().numpy(), len(products.vectors)
    if not products.matvec(first).any():  # the operator is zero, and ARPACK has nowhere to go
        unit = torch.eye(wanted, len(start)).to(start)
        return Spectrum(np.zeros(wanted), unit, np.zeros(wanted))
    rounding = 100 * torch.finfo(start.dtype).eps
    for count in sorted({max(share * steps // 4, wanted + 2) for share in (2, 3, 4)}):
        products.n_asked = 0
        # The first product is that of the start, the others those of an orthonormal basis. ARPACK
        # keeps back what it does not call converged: to get all there is, everything is.
        values, columns = eigsh(products, wanted, which="LM", v0=first, ncv=count - 1, tol=np.inf)
        spectrum = products.spectrum(values, columns, wanted, slice(1, count))
        scale = float(np.abs(spectrum.eigenvalues[0]))
        # An exhausted Krylov space can hide further copies of an eigenvalue, whatever the residuals
        # of the vectors so far: go on to the last product.
        exhausted = products.least_coupling(count) <= rounding * scale
        if not exhausted and spectrum.residuals.max() <= tolerance * scale:
            break
    return spectrum


def trace_estimate(
    hvp: Callable[[Tensor], Tensor],
    dimension: int,
    *,
    device: torch.device,
    rng: np.random.Generator,
    dtype: torch.dtype = torch.float32,
    n_probes: int = TRACE_PROBES,
) -> tuple[float, float]:
    """Trace of a symmetric operator and its standard error, by Hutchinson's random signs (1990)."""
    values = []
    for _ in range(n_probes):
        signs = torch.from_numpy(rng.integers(0, 2, dimension) * 2 - 1).to(device, dtype)
        values.append(float(signs @ hvp(signs)))
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n_probes))

"""Eigenpairs and traces against known spectra, `numpy.linalg.eigh` and another library."""

from __future__ import annotations

import math
from typing import Any

import hessian_eigenthings  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.curvature import Objective
from attribution.spectrum import Spectrum, lanczos, trace_estimate
from tests.attribution.dense import operator, symmetric
from tests.reference import Problem, random_problem

CPU = torch.device("cpu")


# --- Eigenpairs -------------------------------------------------------------------------------

SPECTRA = {
    "decaying": (2.0 ** -np.arange(30), 6),
    "negative": (np.r_[-9, 7, -5, 3, np.linspace(-1, 0.9, 26)], 5),  # no two of one magnitude
    "repeated": (np.r_[4, 4, 4, 2, 2, np.linspace(0, 1, 15)], 6),
    "few distinct": (np.repeat([5.0, 1.0, 0.0], [2, 13, 15]), 2),
    "zeros": (np.r_[3, 1, np.zeros(28)], 4),
    "all zero": (np.zeros(6), 3),
    "identity": (np.ones(12), 3),
    "one dominates": (np.r_[1e6, np.linspace(1, 2, 29)], 4),
    "every one": (np.linspace(-1, 2.1, 13), 13),
    "more than there are": (np.linspace(1, 2, 5), 9),
    "one by one": (np.array([-3.0]), 1),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_against_eigh(name: str) -> None:
    eigenvalues, wanted = SPECTRA[name]
    matrix = symmetric(eigenvalues)
    p = len(eigenvalues)
    spectrum = lanczos(
        operator(matrix),
        p,
        wanted,
        device=CPU,
        rng=np.random.default_rng(1),
        dtype=torch.float64,
        tolerance=1e-11,
    )
    values, vectors = spectrum.eigenvalues, spectrum.eigenvectors.numpy()
    truth = np.linalg.eigvalsh(matrix)
    expected = truth[np.argsort(-np.abs(truth), kind="stable")][:wanted]
    size = max(np.abs(truth).max(), 1e-300)
    assert values.dtype == np.float64
    # Residuals below 1e-11 of the largest bound the error of an eigenvalue; 100 times rounding.
    np.testing.assert_allclose(values, expected, atol=2e-11 * size)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=1e-12)
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    assert np.all(residuals <= 2e-11 * size)
    np.testing.assert_allclose(spectrum.residuals, residuals, atol=1e-12 * size)


def test_lanczos_stops_early_within_its_tolerance() -> None:
    eigenvalues = np.r_[100.0, 60.0, 30.0, np.linspace(0, 1, 197)]
    matrix = symmetric(eigenvalues)
    calls = []

    def counted(v: Tensor) -> Tensor:
        calls.append(v.dtype)
        return operator(matrix, torch.float32)(v)

    spectrum = lanczos(counted, 200, 3, device=CPU, rng=np.random.default_rng(0))
    assert 3 <= len(calls) < 32  # of 4 * 3 + 20 permitted
    assert set(calls) == {torch.float32}
    # Within the residual of a true eigenvalue (Weyl), and float32 products of size 100.
    errors = np.abs(spectrum.eigenvalues - eigenvalues[:3])
    assert np.all(spectrum.residuals <= 1e-2 * 100)
    assert np.all(errors <= spectrum.residuals + 1e-4)
    gram = spectrum.eigenvectors @ spectrum.eigenvectors.T
    np.testing.assert_allclose(gram.numpy(), np.eye(3), atol=1e-5)  # float32


def test_lanczos_shows_no_ghost_copies_in_float32() -> None:
    # Without reorthogonalisation a converged large eigenvalue comes back as a copy.
    eigenvalues = np.r_[1e4, 5e3, np.linspace(0, 100, 98)]
    spectrum = lanczos(
        operator(symmetric(eigenvalues), torch.float32),
        100,
        10,
        device=CPU,
        rng=np.random.default_rng(0),
        tolerance=1e-9,
        max_steps=100,
    )
    expected = np.sort(eigenvalues)[::-1][:10]
    np.testing.assert_allclose(spectrum.eigenvalues, expected, atol=1e-6 * 1e4)  # float32


def test_lanczos_keeps_to_its_limit_of_products() -> None:
    calls = []
    matrix = symmetric(np.linspace(1, 2, 50))

    def counted(v: Tensor) -> Tensor:
        calls.append(1)
        return operator(matrix)(v)

    spectrum = lanczos(
        counted,
        50,
        3,
        device=CPU,
        rng=np.random.default_rng(0),
        dtype=torch.float64,
        tolerance=1e-15,
        max_steps=7,
    )
    assert len(calls) == 7
    # Ritz values from seven products: unconverged, and said so by residuals that are true.
    vectors = spectrum.eigenvectors.numpy()
    residuals = np.linalg.norm(vectors @ matrix - spectrum.eigenvalues[:, None] * vectors, axis=1)
    np.testing.assert_allclose(spectrum.residuals, residuals, atol=1e-12)
    assert residuals.max() > 1e-3


LARGE_SPECTRA = {  # of more dimensions than products are allowed, so that none is spelled out
    "decaying": (2.0 ** -np.arange(150), 6),
    "negative": (np.r_[-9, 7, -5, 3, np.linspace(-1, 0.9, 146)], 4),
    "repeated": (np.r_[4, 4, 4, 2, 2, np.zeros(145)], 6),
    "many copies": (np.repeat([5.0, 1.0, 0.0], [11, 20, 169]), 11),
    "zeros": (np.r_[3, 1, np.zeros(98)], 4),
    "all zero": (np.zeros(100), 3),
    "identity": (np.ones(100), 3),
}


@pytest.mark.parametrize("name", LARGE_SPECTRA)
def test_the_iteration_against_known_spectra(name: str) -> None:
    eigenvalues, wanted = LARGE_SPECTRA[name]
    matrix, p, asked = symmetric(eigenvalues), len(eigenvalues), []

    def recorded(v: Tensor) -> Tensor:
        asked.append(v.numpy().copy())
        return operator(matrix)(v)

    def found() -> Spectrum:
        return lanczos(
            recorded,
            p,
            wanted,
            device=CPU,
            rng=np.random.default_rng(1),
            dtype=torch.float64,
            tolerance=1e-11,
        )

    spectrum = found()
    assert len(asked) <= 4 * wanted + 20 < p
    # No product is taken twice, although the iteration is begun anew for more of them.
    assert len(np.unique(asked, axis=0)) == len(asked)
    values, vectors = spectrum.eigenvalues, spectrum.eigenvectors.numpy()
    expected = eigenvalues[np.argsort(-np.abs(eigenvalues), kind="stable")][:wanted]
    size = max(np.abs(eigenvalues).max(), 1e-300)
    # Residuals below 1e-11 of the largest bound the error of an eigenvalue; 100 times rounding.
    np.testing.assert_allclose(values, expected, atol=2e-11 * size)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(wanted), atol=1e-12)
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    assert np.all(residuals <= 2e-11 * size)
    np.testing.assert_allclose(spectrum.residuals, residuals, atol=1e-12 * size)
    np.testing.assert_allclose(found().eigenvalues, values, atol=1e-13 * size)


def test_copies_that_residuals_do_not_tell_of_are_looked_for() -> None:
    # Three distinct values exhaust a Krylov space after every third vector: half of the 84 products
    # shows fourteen copies, and two of the next value, whose residuals are within the tolerance.
    matrix = symmetric(np.repeat([5.0, 1.0, 0.0], [18, 90, 90]))
    spectrum = lanczos(
        operator(matrix), 198, 16, device=CPU, rng=np.random.default_rng(1), dtype=torch.float64
    )
    np.testing.assert_allclose(spectrum.eigenvalues, 5, atol=1e-9)


def test_an_operator_that_diverged_is_refused() -> None:
    for p in (5, 100):
        with pytest.raises(ValueError, match="infs or NaNs"):
            lanczos(lambda v: v * torch.nan, p, 2, device=CPU, rng=np.random.default_rng(0))


# --- Against another library ------------------------------------------------------------------


class DualEncoder(torch.nn.Module):
    """The model once more, for a library that differentiates modules twice."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        parameters = problem.parameters()
        self.image_map = torch.nn.Parameter(parameters.image_map.clone())
        self.text_map = torch.nn.Parameter(parameters.text_map.clone())
        self.log_scale = torch.nn.Parameter(parameters.log_scale.clone())

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        image_rows, text_rows = images @ self.image_map, texts @ self.text_map
        cosines = torch.nn.functional.cosine_similarity(image_rows[:, None], text_rows[None], dim=2)
        return self.log_scale.exp() * cosines


def cross_entropies(encoder: torch.nn.Module, batch: Any) -> Tensor:
    """CLIP's own formula for the loss, without weights."""
    logits = encoder(*batch)
    labels = torch.arange(len(logits))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, labels) + entropy(logits.T, labels)) / 2


def test_leading_eigenpairs_of_the_exact_hessian_against_hessian_eigenthings() -> None:
    problem = random_problem(24, seed=11, d_image=6, d_text=5, embed_dim=4)
    objective = Objective(
        problem.pairs(),
        problem.parameters(),
        np.arange(24),
        np.ones(24),
        8,
        0.0,
        rng=np.random.default_rng(0),
        curvature="hessian",
    )
    batches = [tuple(problem.pairs().take(torch.from_numpy(rows))) for rows in objective.batches]
    theirs = hessian_eigenthings.HessianOperator(DualEncoder(problem), batches, cross_entropies)
    p = len(problem.theta)
    vector = torch.from_numpy(np.random.default_rng(1).normal(size=p))
    np.testing.assert_allclose(  # float64 rounding of entries of size one
        objective.product(vector).numpy(), theirs.matvec(vector).detach().numpy(), atol=1e-12
    )

    expected = hessian_eigenthings.lanczos(theirs, k=6, max_iter=p, tol=1e-10, seed=0)
    spectrum = lanczos(
        objective.product,
        p,
        6,
        device=CPU,
        rng=np.random.default_rng(2),
        dtype=torch.float64,
        tolerance=1e-10,
        max_steps=p,
    )
    assert bool(expected.converged.all())
    assert spectrum.eigenvalues.min() < 0 < spectrum.eigenvalues.max()
    # Residuals below 1e-10 bound the errors of eigenvalues of size one, in both.
    np.testing.assert_allclose(spectrum.eigenvalues, expected.eigenvalues.numpy(), atol=1e-9)
    overlaps = (spectrum.eigenvectors * expected.eigenvectors).sum(dim=1).abs()
    np.testing.assert_allclose(overlaps.numpy(), 1, atol=1e-9)

    trace, stderr = trace_estimate(
        objective.product, p, device=CPU, rng=np.random.default_rng(3), dtype=torch.float64
    )
    found = hessian_eigenthings.hutchinson(theirs, num_samples=400, seed=0)
    # Eight of our probes against 400 of theirs, four standard errors.
    assert trace == pytest.approx(float(found.estimate), abs=4 * math.hypot(stderr, found.stderr))


# --- Trace ------------------------------------------------------------------------------------


def test_the_trace_lies_within_its_standard_error() -> None:
    matrix = symmetric(np.r_[np.geomspace(0.01, 5, 20), -1.0])
    trace, stderr = trace_estimate(
        operator(matrix),
        21,
        device=CPU,
        rng=np.random.default_rng(0),
        dtype=torch.float64,
        n_probes=1000,
    )
    assert abs(trace - np.trace(matrix)) < 3 * stderr
    # Random signs s: the variance of s . A s is twice the sum of squares off the diagonal.
    off_diagonal = matrix - np.diag(np.diag(matrix))
    expected = math.sqrt(2 * float((off_diagonal**2).sum()) / 1000)
    # The deviation of a deviation over 1,000 probes: 2 to 5 %, four of them.
    assert stderr == pytest.approx(expected, rel=0.15)


def test_standard_errors_of_few_probes_are_honest() -> None:
    matrix = symmetric(np.geomspace(0.01, 5, 20))
    rng = np.random.default_rng(0)
    runs = np.array(
        [
            trace_estimate(operator(matrix), 20, device=CPU, rng=rng, dtype=torch.float64)
            for _ in range(300)
        ]
    )
    errors = runs[:, 0] - np.trace(matrix)
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(300)  # unbiased
    # The mean of 300 variances from eight probes each: good to 3 %, four of them.
    assert math.sqrt(float((runs[:, 1] ** 2).mean())) == pytest.approx(errors.std(), rel=0.15)


def test_the_trace_of_a_diagonal_operator_is_exact() -> None:
    diagonal = np.array([3.0, -1.0, 0.5, 0.0, 2.25])
    trace, stderr = trace_estimate(
        operator(np.diag(diagonal), torch.float32), 5, device=CPU, rng=np.random.default_rng(0)
    )
    assert (trace, stderr) == (4.75, 0.0)

"""Curvature products, Lanczos, traces, conjugate gradients and DataInf against dense algebra."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import hessian_eigenthings  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from attribution import curvature
from attribution import inverse as inverse_module
from attribution.curvature import CURVATURES, Objective
from attribution.derivatives import flatten, loss_gradient, unflatten
from attribution.inverse import (
    HESSIANS,
    conjugate_gradients,
    datainf_direction,
    inverse_product,
    low_rank_inverse,
)
from attribution.spectrum import Spectrum, lanczos, trace_estimate
from learner import model
from tests import reference
from tests.reference import Problem, random_problem

CPU = torch.device("cpu")
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


# --- Gradient and Gauss-Newton ----------------------------------------------------------------


def test_flatten_and_unflatten_are_inverse() -> None:
    problem = random_problem(3, seed=0)
    parameters = problem.parameters()
    vector = flatten(parameters)
    np.testing.assert_array_equal(vector.numpy(), problem.theta)
    for a, b in zip(unflatten(vector, parameters), parameters, strict=True):
        assert torch.equal(a, b)


def test_the_loss_gradient_is_the_slope_of_the_mean_loss() -> None:
    problem = random_problem(12, seed=1)
    batches = np.random.default_rng(0).permutation(12).reshape(3, 4)
    expected = reference.central_difference(
        lambda theta: float(np.mean([problem.loss(theta, rows) for rows in batches])),
        problem.theta,
    )
    gradient = loss_gradient(problem.parameters(), problem.pairs(), batches)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=DIFFERENCED)


@pytest.mark.parametrize("rows_at_once", [4, 8192])
@pytest.mark.parametrize(("kind", "tolerance"), [("gauss_newton", 1e-8), ("hessian", 1e-6)])
def test_products_match_the_dense_matrix(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int, kind: str, tolerance: float
) -> None:
    monkeypatch.setattr(model, "ROWS_AT_ONCE", rows_at_once)
    objective, dense = make_objective(
        random_problem(12, seed=2), batch_size=4, weight_decay=0.3, kind=kind
    )
    assert objective.batches.shape == (3, 4)
    assert len(objective.blocks) == (3 if rows_at_once == 4 else 1)
    matrix = materialised(objective.product, len(dense))
    # Ten times what the reference's differences are good to.
    np.testing.assert_allclose(matrix, dense, atol=tolerance)


@pytest.mark.parametrize("kind", CURVATURES)
def test_products_of_several_vectors_are_those_of_each(kind: str) -> None:
    problem = random_problem(12, seed=2)
    objective, dense = make_objective(problem, batch_size=4, weight_decay=0.3, kind=kind)
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(5, len(dense))))
    vectors[3] = 0
    together = objective.products(vectors)
    assert together.shape == vectors.shape
    for row, vector in zip(together, vectors, strict=True):
        # Float64 sums in another order.
        np.testing.assert_allclose(row.numpy(), objective.product(vector).numpy(), atol=1e-13)
    assert float(together[3].abs().max()) == 0


def test_the_two_curvatures_differ_by_the_curvature_of_the_logits() -> None:
    problem = random_problem(12, seed=2)
    matrices = {
        kind: materialised(
            make_objective(problem, batch_size=4, weight_decay=0.0, kind=kind)[0].product, 15
        )
        for kind in CURVATURES
    }
    exact = matrices["hessian"]
    np.testing.assert_allclose(exact, exact.T, atol=1e-14)  # float64 rounding of entries < 1
    assert np.linalg.eigvalsh(exact).min() < -1e-2  # away from a minimum it is indefinite
    assert np.linalg.eigvalsh(matrices["gauss_newton"]).min() > -1e-13
    # exp bends: the logits have a second derivative in the log scale too, s itself.
    assert abs(exact[-1, -1] - matrices["gauss_newton"][-1, -1]) > 1e-3


def test_gauss_newton_is_symmetric_and_positive_semi_definite() -> None:
    problem = random_problem(12, seed=3)
    objective, _ = make_objective(problem, batch_size=4, weight_decay=0.0)
    matrix = materialised(objective.product, len(problem.theta))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)  # float64 rounding of entries < 1
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues.min() > -1e-13
    assert eigenvalues.max() > 1e-3
    # The length of a map does not reach the unit embeddings: the map itself is a flat direction.
    flat = torch.from_numpy(np.where(np.arange(len(matrix)) < 6, problem.theta, 0))
    assert float(objective.product(flat).norm()) < 1e-13


def test_weight_decay_does_not_reach_the_logit_scale() -> None:
    problem = random_problem(8, seed=4)
    with_decay, _ = make_objective(problem, batch_size=4, weight_decay=0.7)
    without, _ = make_objective(problem, batch_size=4, weight_decay=0.0)
    vector = torch.ones(len(problem.theta), dtype=torch.float64)
    added = with_decay.product(vector) - without.product(vector)
    # 0.7 * 1 on every entry of the maps, nothing on the last; float64 rounding.
    np.testing.assert_allclose(added[:-1].numpy(), 0.7, atol=1e-13)
    assert float(added[-1]) == 0


def test_the_objective_holds_kept_pairs_only_and_samples_large_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = random_problem(20, seed=5)
    kept = np.arange(0, 20, 2)

    def batches() -> np.ndarray:
        objective = Objective(
            problem.pairs(),
            problem.parameters(),
            kept,
            np.ones(20),
            3,
            0.0,
            rng=np.random.default_rng(0),
        )
        batches: np.ndarray = objective.batches
        return batches

    assert batches().shape == (3, 3)
    assert len(set(batches().ravel().tolist())) == 9
    assert set(batches().ravel().tolist()) <= set(kept.tolist())
    monkeypatch.setattr(curvature, "MAX_CURVATURE_PAIRS", 6)
    assert batches().shape == (2, 3)


# --- Lanczos ----------------------------------------------------------------------------------

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


# --- Inverses ---------------------------------------------------------------------------------


def spectrum_of(matrix: np.ndarray, count: int) -> Spectrum:
    """Leading eigenpairs from `numpy.linalg.eigh`."""
    values, vectors = np.linalg.eigh(matrix)
    order = np.argsort(-np.abs(values))[:count]
    return Spectrum(
        values[order], torch.from_numpy(vectors[:, order].T.copy()), np.zeros(len(order))
    )


def test_the_low_rank_inverse_of_full_rank_is_a_dense_solve() -> None:
    matrix = symmetric(np.r_[-0.5, np.linspace(0, 3, 11)])
    gradient = np.random.default_rng(0).normal(size=12)
    solution = low_rank_inverse(spectrum_of(matrix, 12), torch.from_numpy(gradient), 0.8, rank=12)
    expected = np.linalg.solve(matrix + 0.8 * np.eye(12), gradient)
    np.testing.assert_allclose(solution.numpy(), expected, atol=1e-12)  # condition number 13


def test_the_low_rank_inverse_replaces_the_rest_by_the_next_eigenvalue() -> None:
    matrix = symmetric(np.array([5.0, 3.0, 2.0, 0.5, 0.1]))
    values, vectors = np.linalg.eigh(matrix)
    flattened = np.where(values > 2.5, values, 2.0)  # rank 2; the third stands for the rest
    gradient = np.random.default_rng(0).normal(size=5)
    expected = vectors @ ((vectors.T @ gradient) / (flattened + 0.3))
    solution = low_rank_inverse(spectrum_of(matrix, 3), torch.from_numpy(gradient), 0.3, rank=2)
    np.testing.assert_allclose(solution.numpy(), expected, atol=1e-13)
    # Without a next eigenvalue the rest counts as zero.
    expected = vectors @ ((vectors.T @ gradient) / (np.where(values > 2.5, values, 0) + 0.3))
    solution = low_rank_inverse(spectrum_of(matrix, 2), torch.from_numpy(gradient), 0.3, rank=2)
    np.testing.assert_allclose(solution.numpy(), expected, atol=1e-13)


def test_the_low_rank_inverse_takes_rows_too() -> None:
    spectrum = spectrum_of(symmetric(np.linspace(0, 3, 9)), 4)
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 9)))
    together = low_rank_inverse(spectrum, rows, 0.3, rank=3)
    for row, found in zip(rows, together, strict=True):
        alone = low_rank_inverse(spectrum, row, 0.3, rank=3)
        np.testing.assert_allclose(found.numpy(), alone.numpy(), atol=1e-13)


@pytest.mark.parametrize(
    ("eigenvalues", "rank", "damping"),
    [([3.0, -2.0, 1.0], 3, 2.0), ([3.0, -2.0, 1.0], 1, 1.0), ([3.0, 1.0], 2, 0.0)],
    ids=["leading", "rest", "nothing for the rest"],
)
def test_an_indefinite_inverse_is_refused(
    eigenvalues: list[float], rank: int, damping: float
) -> None:
    matrix = np.diag(np.r_[eigenvalues, 0.0])
    with pytest.raises(ValueError, match=f"plus damping must be > 0; damping is {damping:g}"):
        low_rank_inverse(
            spectrum_of(matrix, len(eigenvalues)),
            torch.ones(len(matrix), dtype=torch.float64),
            damping,
            rank=rank,
        )


@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradients_against_a_dense_solve(preconditioned: bool) -> None:
    matrix = symmetric(np.geomspace(1e-3, 10, 25)) + 0.01 * np.eye(25)
    right_side = np.random.default_rng(0).normal(size=25)
    inverse = np.diag(1 / np.diag(matrix)) if preconditioned else np.eye(25)
    solution = conjugate_gradients(
        operator(matrix),
        torch.from_numpy(right_side),
        preconditioner=operator(inverse),
        tolerance=1e-12,
    )
    # Condition number 1,000 times a relative residual of 1e-12, on a solution of size 100.
    expected = np.linalg.solve(matrix, right_side)
    np.testing.assert_allclose(solution.numpy(), expected, rtol=0, atol=1e-7)


def test_conjugate_gradients_stop_at_their_tolerance() -> None:
    matrix = symmetric(np.geomspace(0.01, 10, 40))
    right_side = torch.from_numpy(np.random.default_rng(0).normal(size=40))
    solution = conjugate_gradients(
        operator(matrix), right_side, preconditioner=lambda v: v, tolerance=1e-2
    )
    residual = float((operator(matrix)(solution) - right_side).norm() / right_side.norm())
    assert 1e-6 < residual <= 1e-2 * (1 + 1e-9)


def test_the_exact_inverse_as_preconditioner_needs_one_step() -> None:
    matrix = symmetric(np.geomspace(0.1, 10, 12))
    calls = []

    def counted(v: Tensor) -> Tensor:
        calls.append(1)
        return operator(matrix)(v)

    conjugate_gradients(
        counted,
        torch.ones(12, dtype=torch.float64),
        preconditioner=operator(np.linalg.inv(matrix)),
    )
    assert len(calls) == 1


def test_conjugate_gradients_say_when_they_give_up(caplog: pytest.LogCaptureFixture) -> None:
    matrix = symmetric(np.geomspace(1e-4, 10, 40))
    right_side = torch.ones(40, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        conjugate_gradients(
            operator(matrix), right_side, preconditioner=lambda v: v, tolerance=1e-12, max_steps=3
        )
    assert "conjugate gradients stopped after 3 steps at a relative residual of" in caplog.text


def test_several_right_sides_take_their_own_numbers_of_steps() -> None:
    matrix = symmetric(np.geomspace(0.1, 10, 12))
    vectors = np.linalg.eigh(matrix)[1].T
    rng = np.random.default_rng(0)
    right_sides = np.stack(
        [vectors[3], vectors[1] + vectors[5] - 2 * vectors[9], np.zeros(12), rng.normal(size=12)]
    )
    rows = []

    def counted(v: Tensor) -> Tensor:
        rows.append(len(v))
        return operator(matrix)(v)

    solutions = conjugate_gradients(
        counted, torch.from_numpy(right_sides), preconditioner=torch.clone, tolerance=1e-11
    )
    # An eigenvector takes one step, a sum of three takes three, zeros take none, noise at most
    # twelve in exact arithmetic and a few more in float64.
    assert rows[:4] == [3, 2, 2, 1]
    assert set(rows[4:]) == {1}
    assert len(rows) <= 16
    # Condition number 100 times a relative residual of 1e-11, on solutions of size ten.
    expected = np.linalg.solve(matrix, right_sides.T).T
    np.testing.assert_allclose(solutions.numpy(), expected, atol=1e-8)
    for right_side, solution in zip(right_sides, solutions, strict=True):
        alone = conjugate_gradients(
            operator(matrix),
            torch.from_numpy(right_side),
            preconditioner=torch.clone,
            tolerance=1e-11,
        )
        np.testing.assert_allclose(alone.numpy(), solution.numpy(), atol=1e-12)


@pytest.mark.parametrize("preconditioner", [lambda r: r, torch.clone], ids=["itself", "copy"])
def test_a_preconditioner_that_returns_its_argument_is_none(
    preconditioner: Callable[[Tensor], Tensor],
) -> None:
    matrix = symmetric(np.geomspace(0.1, 10, 12))
    right_sides = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 12)))
    kept = right_sides.clone()
    solutions = conjugate_gradients(
        operator(matrix), right_sides, preconditioner=preconditioner, tolerance=1e-11
    )
    expected = np.linalg.solve(matrix, right_sides.numpy().T).T
    np.testing.assert_allclose(solutions.numpy(), expected, atol=1e-8)  # as above
    assert torch.equal(right_sides, kept)


def test_negative_curvature_is_said_and_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    matrix = np.diag([4.0, 2.0, 1.0, -0.5])
    right_sides = torch.tensor(
        [
            [1.0, 1.0, 1.0, 0.0],  # never sees the negative direction
            [0.0, 0.0, 0.0, 1.0],  # nothing else
            [1.0, 1.0, 1.0, 0.3],  # meets it after some steps
        ],
        dtype=torch.float64,
    )
    with caplog.at_level(logging.WARNING):
        solutions = conjugate_gradients(
            operator(matrix), right_sides, preconditioner=torch.clone, tolerance=1e-12
        )
    assert "met negative curvature in 2 of 3 systems" in caplog.text
    assert bool(torch.isfinite(solutions).all())
    np.testing.assert_allclose(solutions[0].numpy(), [0.25, 0.5, 1, 0], atol=1e-12)
    assert torch.equal(solutions[1], right_sides[1])  # the first direction is all there is
    # What the steps along positive curvature found lowers the quadratic model.
    x, b = solutions[2].numpy(), right_sides[2].numpy()
    assert np.linalg.norm(x) > 0.1
    assert x @ matrix @ x / 2 - b @ x < -0.1


def test_positive_systems_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        conjugate_gradients(
            operator(symmetric(np.geomspace(0.1, 10, 12))),
            torch.ones(2, 12, dtype=torch.float64),
            preconditioner=torch.clone,
        )
    assert not caplog.records


# --- DataInf ----------------------------------------------------------------------------------


def test_datainf_against_its_formula_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(12, seed=6)
    batches = np.random.default_rng(0).permutation(12).reshape(4, 3)
    gradient = np.random.default_rng(1).normal(size=len(problem.theta))
    per_pair = np.concatenate(  # (n, p) gradients of every pair's own loss
        [problem.loss_gradients(rows) for rows in batches]
    )
    expected = []
    for layer in (slice(0, 6), slice(6, 14), slice(14, 15)):
        g = per_pair[:, layer]
        size = g.shape[1]
        damping = 0.1 * np.mean(g**2)
        inverses = [np.linalg.inv(np.outer(row, row) + damping * np.eye(size)) for row in g]
        expected.append(np.mean(inverses, axis=0) @ gradient[layer])
    for at_once in (1, 3, 16):
        monkeypatch.setattr(inverse_module, "DATAINF_BATCHES_AT_ONCE", at_once)
        direction = datainf_direction(
            problem.parameters(), problem.pairs(), torch.from_numpy(gradient), batches
        )
        # Differences are good to 1e-9; the inverses multiply by up to 1 / damping, about 100.
        np.testing.assert_allclose(direction.numpy(), np.concatenate(expected), rtol=1e-6)


# --- All four together ------------------------------------------------------------------------


def solve_with(
    hessian: str, *, rank: int, damping: float, kind: str = "gauss_newton"
) -> tuple[inverse_module.InverseProduct, np.ndarray, np.ndarray, Objective]:
    problem = random_problem(12, seed=7)
    objective, dense = make_objective(problem, batch_size=4, weight_decay=0.05, kind=kind)
    gradient = np.random.default_rng(2).normal(size=len(dense))
    result = inverse_product(
        objective,
        torch.from_numpy(gradient),
        hessian,
        rank=rank,
        damping=damping,
        rng=np.random.default_rng(3),
    )
    return result, dense, gradient, objective


@pytest.mark.parametrize("hessian", ["lanczos", "cg"])
@pytest.mark.parametrize("rank", [15, 40])
def test_inverse_products_of_full_rank_are_a_dense_solve(hessian: str, rank: int) -> None:
    result, dense, gradient, _ = solve_with(hessian, rank=rank, damping=0.2)
    damped = dense + 0.2 * np.eye(len(dense))
    # Fifteen products exhaust the space, so the reference's differences set the error.
    np.testing.assert_allclose(
        result.direction.numpy(), np.linalg.solve(damped, gradient), atol=1e-6
    )
    assert result.damping == 0.2
    np.testing.assert_allclose(
        result.eigenvalues, np.linalg.eigvalsh(dense)[::-1], atol=DIFFERENCED
    )
    assert result.residuals.shape == result.eigenvalues.shape
    assert result.cosine == pytest.approx(1, abs=1e-12)
    # The same inverse for other right sides, several at once.
    others = np.random.default_rng(4).normal(size=(3, len(dense)))
    np.testing.assert_allclose(
        result.solve(torch.from_numpy(others)).numpy(),
        np.linalg.solve(damped, others.T).T,
        atol=1e-6,
    )


def test_conjugate_gradients_undo_the_low_rank_error() -> None:
    result, dense, gradient, _ = solve_with("cg", rank=3, damping=0.02)
    damped = dense + 0.02 * np.eye(len(dense))
    residual = np.linalg.norm(damped @ result.direction.numpy() - gradient)
    assert residual <= 1.01 * inverse_module.CG_TOLERANCE * np.linalg.norm(gradient)
    low_rank, *_ = solve_with("lanczos", rank=3, damping=0.02)
    low_rank_residual = np.linalg.norm(damped @ low_rank.direction.numpy() - gradient)
    assert low_rank_residual > 100 * residual  # so the test above can tell


@pytest.mark.parametrize("hessian", HESSIANS)
def test_the_quality_of_an_inverse_product(hessian: str) -> None:
    result, dense, gradient, _ = solve_with(hessian, rank=3, damping=0.02)
    exact = np.linalg.solve(dense + 0.02 * np.eye(len(dense)), gradient)
    approximate = result.direction.numpy()
    if hessian == "cg":  # the cosine is that of its low-rank preconditioner
        approximate = solve_with("lanczos", rank=3, damping=0.02)[0].direction.numpy()
    cosine = approximate @ exact / np.linalg.norm(approximate) / np.linalg.norm(exact)
    assert 0 < cosine < 0.999
    # Conjugate gradients stop at a relative residual of 1e-4; the condition number is 50.
    assert result.cosine == pytest.approx(cosine, abs=5e-3)
    # Eight probes: four standard errors of them.
    assert abs(result.trace - np.trace(dense)) < 4 * result.trace_stderr
    assert 0 < result.trace_stderr < 0.5 * np.trace(dense)
    assert result.trace_share == pytest.approx(result.eigenvalues.sum() / result.trace)
    assert len(result.eigenvalues) == (3 if hessian in ("lanczos", "cg") else 1)


@pytest.mark.parametrize("hessian", ["lanczos", "cg"])
def test_an_indefinite_hessian_is_said(hessian: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result, dense, gradient, _ = solve_with(hessian, rank=15, damping=0.02, kind="hessian")
    assert np.linalg.eigvalsh(dense).min() < -0.02
    assert "the exact Hessian has negative curvature here" in caplog.text
    assert result.eigenvalues.min() == pytest.approx(np.linalg.eigvalsh(dense).min(), abs=1e-5)
    assert bool(torch.isfinite(result.direction).all())
    if hessian == "lanczos":  # saddle-free: |H| in H's place
        values, vectors = np.linalg.eigh(dense)
        expected = vectors @ (vectors.T @ gradient / (np.abs(values) + 0.02))
        np.testing.assert_allclose(result.direction.numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("hessian", HESSIANS)
def test_an_indefinite_hessian_does_not_turn_the_direction_round(hessian: str) -> None:
    problem = random_problem(12, seed=7)
    objective, dense = make_objective(problem, batch_size=4, weight_decay=0.05, kind="hessian")
    values, vectors = np.linalg.eigh(dense)
    assert values[0] < -0.1
    gradient = torch.from_numpy(vectors[:, 0].copy())  # along the most negative curvature
    result = inverse_product(
        objective, gradient, hessian, rank=3, damping=0.02, rng=np.random.default_rng(3)
    )
    # A negative product would turn the sign of every influence round.
    assert float(result.direction @ gradient) >= 0


@pytest.mark.parametrize("hessian", ["lanczos", "cg"])
def test_a_definite_hessian_is_a_dense_solve_without_a_warning(
    hessian: str, caplog: pytest.LogCaptureFixture
) -> None:
    problem = random_problem(12, seed=7)
    objective, dense = make_objective(problem, batch_size=4, weight_decay=2.0, kind="hessian")
    assert np.linalg.eigvalsh(dense).min() > 0
    gradient = np.random.default_rng(2).normal(size=len(dense))
    with caplog.at_level(logging.WARNING):
        result = inverse_product(
            objective,
            torch.from_numpy(gradient),
            hessian,
            rank=15,
            damping=0.2,
            rng=np.random.default_rng(3),
        )
    assert not caplog.records
    expected = np.linalg.solve(dense + 0.2 * np.eye(len(dense)), gradient)
    np.testing.assert_allclose(result.direction.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("damping", [0.02, 0.3])
@pytest.mark.parametrize("hessian", ["identity", "datainf"])
def test_directions_are_scaled_to_the_minimum_of_the_quadratic(
    hessian: str, damping: float
) -> None:
    result, dense, gradient, objective = solve_with(hessian, rank=3, damping=damping)
    unscaled = gradient
    if hessian == "datainf":
        unscaled = datainf_direction(
            objective.parameters, objective.pairs, torch.from_numpy(gradient), objective.batches
        ).numpy()
    squared = unscaled @ unscaled
    rayleigh = unscaled @ dense @ unscaled / squared
    assert result.eigenvalues.tolist() == pytest.approx([rayleigh], rel=1e-7)
    residual = np.linalg.norm(dense @ unscaled - rayleigh * unscaled) / np.sqrt(squared)
    assert result.residuals.tolist() == pytest.approx([residual], rel=1e-6)
    damped = dense + damping * np.eye(len(dense))

    def quadratic(c: float) -> float:
        return float(c**2 * unscaled @ damped @ unscaled / 2 - c * unscaled @ gradient)

    best = minimize_scalar(quadratic).x  # good to the root of float64's precision
    np.testing.assert_allclose(result.direction.numpy(), best * unscaled, rtol=1e-5)
    if hessian == "identity":
        other = torch.ones(2, len(dense), dtype=torch.float64)
        np.testing.assert_allclose(result.solve(other).numpy(), best * other.numpy(), rtol=1e-5)


@pytest.mark.parametrize("hessian", HESSIANS)
def test_solving_for_the_gradient_gives_the_direction(hessian: str) -> None:
    result, dense, gradient, _ = solve_with(hessian, rank=3, damping=0.02)
    for right_side in (torch.from_numpy(gradient), torch.from_numpy(gradient[None])):
        solution = result.solve(right_side)
        assert solution.shape == right_side.shape
        found = solution.numpy().ravel()
        if hessian == "cg":  # leave-out steps need less accuracy than the direction
            residual = dense @ found + 0.02 * found - gradient
            limit = 1.01 * inverse_module.STEP_TOLERANCE
            assert np.linalg.norm(residual) <= limit * np.linalg.norm(gradient)
        else:  # float64 rounding
            np.testing.assert_allclose(found, result.direction.numpy(), rtol=1e-9, atol=1e-9)

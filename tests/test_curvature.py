"""Gauss-Newton products, Lanczos, conjugate gradients and DataInf against dense linear algebra."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

import curvature
import model
from curvature import (
    Objective,
    Spectrum,
    conjugate_gradients,
    datainf_direction,
    flatten,
    inverse_product,
    lanczos,
    loss_gradient,
    low_rank_inverse,
    unflatten,
)
from tests import reference
from tests.reference import Problem, random_problem

CPU = torch.device("cpu")
# Central differences of the reference in float64 are good to 1e-9; ten times that.
DIFFERENCED = 1e-8


def make_objective(
    problem: Problem, *, batch_size: int, weight_decay: float, dtype: torch.dtype = torch.float64
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
    )
    decay = np.full(len(problem.theta), weight_decay)
    decay[-1] = 0  # a temperature has no size to shrink
    dense = reference.gauss_newton(problem, objective.batches, weights) + np.diag(decay)
    return objective, dense


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
    tensor = torch.from_numpy(matrix).to(dtype)
    return lambda v: tensor @ v


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
def test_gauss_newton_products_match_the_dense_matrix(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(model, "ROWS_AT_ONCE", rows_at_once)
    objective, dense = make_objective(random_problem(12, seed=2), batch_size=4, weight_decay=0.3)
    assert objective.batches.shape == (3, 4)
    matrix = materialised(objective.gauss_newton_product, len(dense))
    np.testing.assert_allclose(matrix, dense, atol=DIFFERENCED)


def test_gauss_newton_is_symmetric_and_positive_semi_definite() -> None:
    problem = random_problem(12, seed=3)
    objective, _ = make_objective(problem, batch_size=4, weight_decay=0.0)
    matrix = materialised(objective.gauss_newton_product, len(problem.theta))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)  # float64 rounding of entries < 1
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues.min() > -1e-13
    assert eigenvalues.max() > 1e-3
    # The length of a map does not reach the unit embeddings: the map itself is a flat direction.
    flat = torch.from_numpy(np.where(np.arange(len(matrix)) < 6, problem.theta, 0))
    assert float(objective.gauss_newton_product(flat).norm()) < 1e-13


def test_weight_decay_does_not_reach_the_logit_scale() -> None:
    problem = random_problem(8, seed=4)
    with_decay, _ = make_objective(problem, batch_size=4, weight_decay=0.7)
    without, _ = make_objective(problem, batch_size=4, weight_decay=0.0)
    vector = torch.ones(len(problem.theta), dtype=torch.float64)
    added = with_decay.gauss_newton_product(vector) - without.gauss_newton_product(vector)
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
    "negative": (np.r_[-9, 7, -5, 3, np.linspace(-1, 1, 26)], 5),
    "repeated": (np.r_[4, 4, 4, 2, 2, np.linspace(0, 1, 15)], 6),
    "few distinct": (np.repeat([5.0, 1.0, 0.0], [2, 13, 15]), 2),
    "zeros": (np.r_[3, 1, np.zeros(28)], 4),
    "all zero": (np.zeros(6), 3),
    "identity": (np.ones(12), 3),
    "one dominates": (np.r_[1e6, np.linspace(1, 2, 29)], 4),
    "every one": (np.linspace(-1, 2, 13), 13),
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
        monkeypatch.setattr(curvature, "DATAINF_BATCHES_AT_ONCE", at_once)
        direction = datainf_direction(
            problem.parameters(), problem.pairs(), torch.from_numpy(gradient), batches
        )
        # Differences are good to 1e-9; the inverses multiply by up to 1 / damping, about 100.
        np.testing.assert_allclose(direction.numpy(), np.concatenate(expected), rtol=1e-6)


# --- All four together ------------------------------------------------------------------------


def solve_with(
    hessian: str, *, rank: int, damping: float | None
) -> tuple[curvature.InverseProduct, np.ndarray, np.ndarray, Objective]:
    problem = random_problem(12, seed=7)
    objective, dense = make_objective(problem, batch_size=4, weight_decay=0.05)
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
    expected = np.linalg.solve(dense + 0.2 * np.eye(len(dense)), gradient)
    # Fifteen products exhaust the space, so the reference's differences set the error.
    np.testing.assert_allclose(result.direction.numpy(), expected, atol=1e-6)
    assert result.damping == 0.2
    np.testing.assert_allclose(
        result.eigenvalues, np.linalg.eigvalsh(dense)[::-1], atol=DIFFERENCED
    )
    assert result.residuals.shape == result.eigenvalues.shape


def test_conjugate_gradients_undo_the_low_rank_error() -> None:
    result, dense, gradient, _ = solve_with("cg", rank=3, damping=0.02)
    damped = dense + 0.02 * np.eye(len(dense))
    residual = np.linalg.norm(damped @ result.direction.numpy() - gradient)
    assert residual <= 1.01 * curvature.CG_TOLERANCE * np.linalg.norm(gradient)
    low_rank, *_ = solve_with("lanczos", rank=3, damping=0.02)
    low_rank_residual = np.linalg.norm(damped @ low_rank.direction.numpy() - gradient)
    assert low_rank_residual > 100 * residual  # so the test above can tell


@pytest.mark.parametrize("hessian", ["lanczos", "cg"])
def test_damping_is_by_default_the_mean_of_the_leading_eigenvalues(hessian: str) -> None:
    result, dense, _, _ = solve_with(hessian, rank=4, damping=None)
    leading = np.linalg.eigvalsh(dense)[::-1][:4]
    assert len(result.eigenvalues) == 4
    # Lanczos stops at residuals of 1 % of the largest eigenvalue.
    assert result.damping == pytest.approx(leading.mean(), abs=1e-2 * leading[0])
    np.testing.assert_allclose(result.eigenvalues, leading, atol=1e-2 * leading[0])


@pytest.mark.parametrize("damping", [None, 0.3])
@pytest.mark.parametrize("hessian", ["identity", "datainf"])
def test_directions_are_scaled_to_the_minimum_of_the_quadratic(
    hessian: str, damping: float | None
) -> None:
    result, dense, gradient, objective = solve_with(hessian, rank=3, damping=damping)
    unscaled = gradient
    if hessian == "datainf":
        unscaled = datainf_direction(
            objective.parameters, objective.pairs, torch.from_numpy(gradient), objective.batches
        ).numpy()
    rayleigh = unscaled @ dense @ unscaled / (unscaled @ unscaled)
    assert result.eigenvalues.tolist() == pytest.approx([rayleigh], rel=1e-7)
    assert result.damping == pytest.approx(rayleigh if damping is None else damping, rel=1e-7)
    damped = dense + (rayleigh if damping is None else damping) * np.eye(len(dense))

    def quadratic(c: float) -> float:
        return float(c**2 * unscaled @ damped @ unscaled / 2 - c * unscaled @ gradient)

    best = minimize_scalar(quadratic).x  # good to the root of float64's precision
    np.testing.assert_allclose(result.direction.numpy(), best * unscaled, rtol=1e-5)

"""Low-rank inverses, conjugate gradients and DataInf against dense solves."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from attribution import inverse as inverse_module
from attribution.curvature import Objective
from attribution.inverse import (
    HESSIANS,
    conjugate_gradients,
    datainf_direction,
    inverse_product,
    low_rank_inverse,
)
from attribution.spectrum import Spectrum
from tests.attribution.dense import DIFFERENCED, make_objective, operator, symmetric
from tests.reference import random_problem

# --- Of low rank ------------------------------------------------------------------------------


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


# --- Conjugate gradients ----------------------------------------------------------------------


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

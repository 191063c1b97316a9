"""Leave-out steps against dense solves one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution import newton_step
from attribution.newton_step import newton_step_effects
from tests import reference
from tests.reference import Problem, random_problem

VALIDATION = np.array([[12, 13, 14], [15, 16, 17]])
BATCHES = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
CLUSTERS = {
    "spread": np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]),
    "a batch of one cluster": np.array([0, 1, 2, 3, 4, 4, 4, 4, 0, 1, 4, 2]),
    "a cluster that is a batch": np.array([0, 1, 2, 3, 4, 4, 4, 4, 0, 1, 2, 3]),
}


def mean_gradient(problem: Problem, weights: np.ndarray) -> np.ndarray:
    """Gradient of the mean loss over those batches that hold any weight."""
    batches = [rows for rows in BATCHES if weights[rows].any()]
    return reference.central_difference(
        lambda theta: float(np.mean([problem.loss(theta, r, weights[r]) for r in batches])),
        problem.theta,
    )


@pytest.mark.parametrize("clusters_at_once", [2, 16])
@pytest.mark.parametrize("name", CLUSTERS)
def test_effects_are_newton_steps_one_by_one(
    monkeypatch: pytest.MonkeyPatch, name: str, clusters_at_once: int
) -> None:
    monkeypatch.setattr(newton_step, "CLUSTERS_AT_ONCE", clusters_at_once)
    problem, clusters = random_problem(18, seed=40), CLUSTERS[name]
    rng = np.random.default_rng(0)
    weights = rng.integers(2, 20, size=12) / 8  # exact in float32, which weights are kept in
    root = rng.normal(size=(len(problem.theta), len(problem.theta)))
    damped = root @ root.T / 4 + np.eye(len(root))  # any positive matrix will do
    n_rows = []

    def solve(rows: Tensor) -> Tensor:
        n_rows.append(len(rows))
        return torch.from_numpy(np.linalg.solve(damped, rows.numpy().T).T)

    effects = newton_step_effects(
        problem.parameters(),
        problem.pairs(),
        weights,
        clusters,
        BATCHES,
        solve,
        (problem.pairs(), VALIDATION),
    )

    def validation_loss(theta: np.ndarray) -> float:
        return float(np.mean([problem.loss(theta, rows) for rows in VALIDATION]))

    expected = []
    for k in range(5):
        left = np.where(clusters == k, 0.0, weights)
        change = mean_gradient(problem, left) - mean_gradient(problem, weights)
        stepped = problem.theta - np.linalg.solve(damped, change)
        expected.append(validation_loss(stepped) - validation_loss(problem.theta))
    assert n_rows == ([2, 2, 1] if clusters_at_once == 2 else [5])
    assert effects.dtype == np.float64
    assert np.abs(expected).min() > 1e-4
    # The reference's differences are good to 1e-9; the step has a size of about one.
    np.testing.assert_allclose(effects, expected, atol=1e-7)


def test_a_cluster_that_no_batch_holds_has_no_effect() -> None:
    problem = random_problem(18, seed=41)
    effects = newton_step_effects(
        problem.parameters(),
        problem.pairs(),
        np.ones(12),
        np.array([0, 1] * 4 + [2] * 4),
        BATCHES[:2],
        lambda rows: rows,
        (problem.pairs(), VALIDATION),
    )
    assert np.abs(effects[:2]).min() > 1e-4
    assert float(effects[2]) == pytest.approx(0, abs=1e-14)  # float64 rounding

"""Curvature products against dense matrices from plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution import curvature
from attribution.curvature import CURVATURES, Objective
from learner import model
from tests.attribution.dense import make_objective, materialised
from tests.reference import random_problem


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

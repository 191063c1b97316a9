"""Leave-out steps against dense solves one by one; the finite-removal correction by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import leave_out
from leave_out import (
    RemovalEffects,
    finite_removal,
    leave_out_steps,
    nearest_clusters,
    removal_effects,
)
from model import PairTensors
from retraining import Retraining
from tests import reference
from tests.reference import Problem, random_problem, rotated_pairs
from training import TrainingConfig

# --- The step that leaves a cluster out -------------------------------------------------------

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
def test_leave_out_steps_are_newton_steps_one_by_one(
    monkeypatch: pytest.MonkeyPatch, name: str, clusters_at_once: int
) -> None:
    monkeypatch.setattr(leave_out, "CLUSTERS_AT_ONCE", clusters_at_once)
    problem, clusters = random_problem(18, seed=40), CLUSTERS[name]
    rng = np.random.default_rng(0)
    weights = rng.integers(2, 20, size=12) / 8  # exact in float32, which weights are kept in
    root = rng.normal(size=(len(problem.theta), len(problem.theta)))
    damped = root @ root.T / 4 + np.eye(len(root))  # any positive matrix will do
    n_rows = []

    def solve(rows: Tensor) -> Tensor:
        n_rows.append(len(rows))
        return torch.from_numpy(np.linalg.solve(damped, rows.numpy().T).T)

    effects = leave_out_steps(
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
    effects = leave_out_steps(
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


# --- Retraining without folds -----------------------------------------------------------------


@dataclass(frozen=True)
class Told(Retraining):
    """A retraining whose losses are told: a table by the clusters that are left out."""

    change: dict[tuple[int, ...], np.ndarray]
    clusters: np.ndarray
    asked: list[Any]

    def losses(
        self, weightings: Sequence[np.ndarray], seeds: Sequence[int], description: str
    ) -> np.ndarray:
        self.asked.append((weightings, seeds))
        return np.stack([self._told(w) for w in weightings])

    def _told(self, weights: np.ndarray) -> np.ndarray:
        left_out = tuple(sorted(set(self.clusters[weights == 0].tolist())))
        return 1 + self.change[left_out]


def told(change: dict[tuple[int, ...], list[float]], clusters: np.ndarray) -> Told:
    return Told(
        pairs=rotated_pairs(len(clusters)),
        training=TrainingConfig(),
        n_steps=1,
        stop_after=1,
        validation=rotated_pairs(6),
        validation_batches=np.arange(6)[None],
        change={k: np.array(v) for k, v in change.items()},
        clusters=clusters,
        asked=[],
    )


class Dealt(np.random.Generator):
    """Deals clusters 0, 1, 2, 3 into folds 0, 1, 1, 0."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def permutation(self, x: Any, axis: int = 0) -> Any:
        assert x.tolist() == [0, 1, 0, 1]
        return np.array([0, 1, 1, 0])


def test_removal_effects_by_hand() -> None:
    clusters = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    weights = np.array([1, 2, 1, 1, 0.5, 1, 1, 1])
    nearest = np.array([0, 0, 1, 2, 3, 3])  # of six validation pairs
    retraining = told(
        {
            (): [0, 0, 0, 0, 0, 0],
            (0, 3): [0.6, 0.8, 0.1, 0.3, 0.4, 0.2],
            (1, 2): [-0.1, 0.1, 0.5, 0.7, 0.2, 0.2],
        },
        clusters,
    )
    effects = removal_effects(retraining, 9, weights, clusters, nearest, 2, rng=Dealt())
    # Without 0 and 3 validation pairs 2 and 3, which are nearest to other folds, lose 0.2.
    # Without 1 and 2 pairs 0, 1, 4 and 5 lose 0.1.
    own = [(0.4 + 0.6) / 6, 0.4 / 6, 0.6 / 6, (0.2 + 0.0) / 6]
    np.testing.assert_allclose(effects.own, own, rtol=1e-12, atol=1e-15)
    first, second = np.var([0.4, 0.6, 0.2, 0.0]), np.var([0.4, 0.6])  # within the fold
    np.testing.assert_allclose(
        effects.variance,
        [2 * first / 36, 1 * second / 36, 1 * second / 36, 2 * first / 36],
        rtol=1e-12,
    )
    assert effects.total == pytest.approx(2.4 / 6 + 1.6 / 6, rel=1e-12)
    ((weightings, seeds),) = retraining.asked
    assert seeds == [9, 9, 9]  # paired with the reference training
    np.testing.assert_array_equal(weightings[0], weights)
    np.testing.assert_array_equal(weightings[1], weights * np.isin(clusters, [1, 2]))
    np.testing.assert_array_equal(weightings[2], weights * np.isin(clusters, [0, 3]))


def test_a_fold_without_validation_pairs_counts_in_the_total_only() -> None:
    clusters = np.array([0, 1, 2, 3])
    retraining = told({(): [0] * 6, (0, 3): [0.1] * 5 + [0.7], (1, 2): [0.3] * 6}, clusters)
    nearest = np.array([1, 1, 1, 2, 2, 2])  # none nearest to 0 or 3, all to the other fold
    effects = removal_effects(retraining, 0, np.ones(4), clusters, nearest, 2, rng=Dealt())
    # No pair is far from the second fold: no background to take off.
    np.testing.assert_allclose(effects.own, [0, 0.15, 0.15, 0], atol=1e-15)
    np.testing.assert_allclose(effects.variance, 0, atol=1e-15)
    assert effects.total == pytest.approx(0.2 + 0.3, rel=1e-12)


def test_every_cluster_is_left_out_once() -> None:
    clusters = np.arange(21) % 7

    class Asked(Told):
        def _told(self, weights: np.ndarray) -> np.ndarray:
            return np.zeros(6)

    plain = told({}, clusters)
    retraining = Asked(**{f: getattr(plain, f) for f in plain.__dataclass_fields__})
    removal_effects(
        retraining, 0, np.ones(21), clusters, np.arange(6), 3, rng=np.random.default_rng(0)
    )
    ((weightings, _),) = retraining.asked
    assert len(weightings) == 4
    left_out = [set(clusters[w == 0].tolist()) for w in weightings[1:]]
    assert sorted(len(k) for k in left_out) == [2, 2, 3]
    assert set.union(*left_out) == set(range(7))
    for k, weights in zip(left_out, weightings[1:], strict=True):
        np.testing.assert_array_equal(weights == 0, np.isin(clusters, list(k)))


# --- The correction ---------------------------------------------------------------------------

SIZES = np.array([10, 20, 30, 40])
OWN = np.array([0.4, 0.1, 0.05, 0.15])


def effects_of(variance: float | np.ndarray, total: float = 1.0) -> RemovalEffects:
    return RemovalEffects(OWN, np.broadcast_to(np.asarray(variance, dtype=float), 4), total)


def test_own_effects_without_variance_are_trusted_fully() -> None:
    effects, stderr = finite_removal([effects_of(0.0)], SIZES)
    # 0.3 of the total are seen nowhere in particular and spread by size.
    np.testing.assert_allclose(effects, OWN + 0.3 * SIZES / 100, rtol=1e-12)
    np.testing.assert_allclose(stderr, 0, atol=1e-15)


def test_own_effects_of_huge_variance_are_spread_by_size() -> None:
    effects, stderr = finite_removal([effects_of(1e3)], SIZES)
    np.testing.assert_allclose(effects, 1.0 * SIZES / 100, rtol=1e-12)
    np.testing.assert_allclose(stderr, 0, atol=1e-15)  # nothing of `own` is used


def test_shrinkage_by_hand() -> None:
    variance = np.array([0.01, 0.0, 0.02, 0.01])
    effects, stderr = finite_removal([effects_of(variance)], SIZES)
    proportional = 0.7 * SIZES / 100  # 0.07, 0.14, 0.21, 0.28
    squares = [0.33**2, 0.04**2, 0.16**2, 0.13**2]
    spread = sum(s - v for s, v in zip(squares, variance, strict=True)) / 4
    assert spread > 0
    trust = spread / (spread + variance)
    assert trust[1] == 1
    shrunk = proportional + trust * (OWN - proportional)
    expected = shrunk + (1.0 - shrunk.sum()) * SIZES / 100
    np.testing.assert_allclose(effects, expected, rtol=1e-12)
    np.testing.assert_allclose(stderr, np.sqrt(trust * variance), rtol=1e-12)


def test_several_reference_models_are_averaged() -> None:
    one = RemovalEffects(np.array([0.5, 0.1]), np.array([0.02, 0.06]), 0.9)
    other = RemovalEffects(np.array([0.1, 0.3]), np.array([0.04, 0.02]), 1.1)
    mean = RemovalEffects(np.array([0.3, 0.2]), np.array([0.03, 0.04]) / 2, 1.0)
    sizes = np.array([10, 30])
    found, expected = finite_removal([one, other], sizes), finite_removal([mean], sizes)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("variance", [0.0, 1e-3, 1e-2, 0.1, 10.0])
@pytest.mark.parametrize("total", [1.0, -0.2, 0.0])
def test_effects_sum_to_the_total_of_the_folds(variance: float, total: float) -> None:
    effects, stderr = finite_removal([effects_of(variance, total)], SIZES)
    assert float(effects.sum()) == pytest.approx(total, abs=1e-14)
    assert np.all(stderr <= np.sqrt(variance) + 1e-15)


# --- Nearest clusters -------------------------------------------------------------------------


def test_nearest_clusters_by_hand() -> None:
    pairs = PairTensors(
        torch.tensor([[0.0, 0], [2, 0], [10, 0], [10, 2]]), torch.tensor([[0.0], [0], [5], [5]])
    )
    clusters = np.array([1, 1, 0, 0])  # centres (10, 1, 5) and (1, 0, 0)
    others = PairTensors(
        torch.tensor([[1.0, 0], [9, 1], [7, 0], [7, 0]]), torch.tensor([[0.0], [5], [5], [-5]])
    )
    # The last two share an image: the text decides. Squared distances 10 and 61, 110 and 61.
    assert nearest_clusters(pairs, clusters, others).tolist() == [1, 0, 0, 1]

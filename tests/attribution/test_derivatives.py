"""Gradients against differences, influence of pairs against one-by-one mixed derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution.derivatives import (
    batch_loss_influences,
    flatten,
    group_loss_gradients,
    loss_gradient,
    own_loss_influences,
    unflatten,
)
from tests import reference
from tests.attribution.dense import DIFFERENCED
from tests.reference import Problem, random_problem

# --- Gradients --------------------------------------------------------------------------------


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


def test_a_groups_gradient_is_the_slope_of_its_mean_loss_among_all_pairs() -> None:
    problem = random_problem(12, seed=1)
    batches = np.random.default_rng(0).permutation(12).reshape(3, 4)
    member = np.arange(12) % 3 == 0
    members = np.stack([member, ~member, np.zeros(12, dtype=bool)])

    def mean_loss_of_the_group(theta: np.ndarray) -> float:
        losses = np.concatenate([problem.losses(theta, rows) for rows in batches])
        return float(losses[member[batches.reshape(-1)]].mean())

    expected = reference.central_difference(mean_loss_of_the_group, problem.theta)
    one, other, nobody = group_loss_gradients(
        problem.parameters(), problem.pairs(), batches, members
    ).numpy()
    np.testing.assert_allclose(one, expected, atol=DIFFERENCED)
    assert nobody.tolist() == [0.0] * len(problem.theta)
    whole = loss_gradient(problem.parameters(), problem.pairs(), batches).numpy()
    np.testing.assert_allclose((4 * one + 8 * other) / 12, whole, rtol=1e-9, atol=1e-12)
    assert np.abs(one - other).max() > 0.01  # or the means would say nothing


def test_groups_count_as_often_as_batches_hold_them() -> None:
    problem = random_problem(9, seed=2)
    batches = np.array([[0, 1, 2, 3], [3, 0, 5, 6]])  # two pairs twice, three never
    member = np.arange(9) < 3
    one, other = group_loss_gradients(
        problem.parameters(), problem.pairs(), batches, np.stack([member, ~member])
    ).numpy()
    whole = loss_gradient(problem.parameters(), problem.pairs(), batches).numpy()
    np.testing.assert_allclose((4 * one + 4 * other) / 8, whole, rtol=1e-9, atol=1e-12)


# --- The one-pass sweep -----------------------------------------------------------------------


def mixed_derivatives(
    problem: Problem, rows: np.ndarray, weights: np.ndarray, direction: np.ndarray
) -> np.ndarray:
    """u_i = W_B d/dw_i d/dt L_B(theta + t v; w), pair by pair by central differences, (b,)."""
    step = 1e-4

    def slope(w: np.ndarray) -> float:
        ahead = problem.loss(problem.theta + step * direction, rows, w)
        behind = problem.loss(problem.theta - step * direction, rows, w)
        return (ahead - behind) / (2 * step)

    return float(weights.sum()) * reference.central_difference(slope, weights, step=step)


# Weights are float32 inside: their gradients carry 6e-8, sums over a batch some times that.
FLOAT32 = 3e-6


@pytest.mark.parametrize("weighted", [False, True])
def test_one_pass_matches_one_by_one_mixed_derivatives(weighted: bool) -> None:
    problem = random_problem(9, seed=20)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=len(problem.theta))
    index = np.array([1, 2, 4, 5, 6, 8])
    weights = rng.integers(2, 20, size=6) / 8 if weighted else np.ones(6)
    influence = batch_loss_influences(
        problem.parameters(),
        problem.pairs(),
        torch.from_numpy(direction),
        index,
        weights,
        batch_size=32,  # larger than the six pairs: one batch
        rng=rng,
    )
    expected = mixed_derivatives(problem, index, weights, direction)
    assert influence.dtype == np.float64
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(influence, expected, atol=FLOAT32)


@pytest.mark.parametrize("n_shuffles", [1, 3])
def test_influence_is_the_mean_over_the_batches_that_hold_the_pair(n_shuffles: int) -> None:
    problem = random_problem(7, seed=21)
    direction = np.random.default_rng(1).normal(size=len(problem.theta))
    weights = np.array([1, 0.5, 2, 1.25, 0.75, 1, 3])
    influence = batch_loss_influences(
        problem.parameters(),
        problem.pairs(),
        torch.from_numpy(direction),
        np.arange(7),
        weights,
        batch_size=3,
        rng=np.random.default_rng(2),
        n_shuffles=n_shuffles,
    )
    rng = np.random.default_rng(2)
    values: list[list[float]] = [[] for _ in range(7)]
    for _ in range(n_shuffles):
        order = rng.permutation(7).tolist()
        for rows in (order[:3], order[3:6], [order[6], *order[:2]]):  # the last one wraps round
            batch = np.array(rows)
            found = mixed_derivatives(problem, batch, weights[batch], direction)
            for row, u in zip(rows, found, strict=True):
                values[row].append(u)
    np.testing.assert_allclose(influence, [np.mean(v) for v in values], atol=FLOAT32)


def test_weighted_influences_of_every_batch_sum_to_zero() -> None:
    problem = random_problem(12, seed=22)
    weights = np.random.default_rng(0).uniform(0.1, 3, size=12)
    influence = batch_loss_influences(
        problem.parameters(),
        problem.pairs(),
        torch.from_numpy(np.random.default_rng(1).normal(size=len(problem.theta))),
        np.arange(12),
        weights,
        batch_size=4,
        rng=np.random.default_rng(2),
        n_shuffles=1,
    )
    for batch in np.random.default_rng(2).permutation(12).reshape(3, 4):
        assert np.abs(influence[batch]).max() > 0.05
        assert float(weights[batch] @ influence[batch]) == pytest.approx(0, abs=10 * FLOAT32)


def test_influence_is_linear_in_the_direction_and_the_weights_have_no_scale() -> None:
    problem = random_problem(6, seed=23)
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=len(problem.theta)))
    weights = np.array([1, 0.5, 2, 1.25, 0.75, 1])

    def influence(v: torch.Tensor, w: np.ndarray) -> np.ndarray:
        return batch_loss_influences(
            problem.parameters(),
            problem.pairs(),
            v,
            np.arange(6),
            w,
            batch_size=6,
            rng=np.random.default_rng(0),
        )

    once = influence(direction, weights)
    np.testing.assert_allclose(influence(-2 * direction, weights), -2 * once, atol=FLOAT32)
    np.testing.assert_allclose(influence(direction, 4 * weights), once, atol=FLOAT32)


def test_own_loss_influences_are_slopes_of_the_pairs_own_losses() -> None:
    problem = random_problem(10, seed=24)
    direction = np.random.default_rng(1).normal(size=len(problem.theta))
    batches = np.array([[0, 3, 5], [7, 1, 2]])
    expected = np.full(10, np.nan)
    for rows in batches:
        expected[rows] = problem.loss_gradients(rows) @ direction
    influence = own_loss_influences(
        problem.parameters(), problem.pairs(), torch.from_numpy(direction), batches
    )
    np.testing.assert_allclose(influence, expected, atol=1e-8)  # the reference's differences
    assert np.isnan(influence).tolist() == [i in (4, 6, 8, 9) for i in range(10)]

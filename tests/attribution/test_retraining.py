"""Retraining under other weights: paired with the reference, the same on any number of workers."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from attribution.retraining import Data, Retraining, mean_pair_losses
from engine.base import Engine
from engine.local import LocalEngine
from learner.config import TrainingConfig
from learner.lending import lend
from learner.model import mean_loss, shuffled_batches
from learner.pairs import PairTensors
from learner.training import Training
from tests.reference import random_problem, rotated_pairs
from tests.rooms import new_room


class Again(NamedTuple):
    """A retraining and its data, every pair a cluster of its own to be weighted as one likes."""

    data: Data
    retraining: Retraining

    def losses(
        self, weightings: list[np.ndarray], seeds: list[int], engine: Engine | None = None
    ) -> np.ndarray:
        lent = lend(new_room(engine), "pairs", self.data, torch.device("cpu"))
        return self.retraining.losses(lent, np.stack(weightings), seeds, "retraining")


def make_retraining(pairs: PairTensors, batch_size: int = 64, stop_after: int = 6) -> Again:
    rng = np.random.default_rng(0)
    batches = np.concatenate([shuffled_batches(20, 5, rng) for _ in range(2)])
    config = TrainingConfig(
        embed_dim=6, batch_size=batch_size, learning_rate=3e-2, weight_decay=1e-4
    )
    n, validation = pairs.n_pairs, rotated_pairs(20, seed=7)
    data = Data(pairs, np.arange(n), validation, batches, np.ones(n))
    return Again(data, Retraining(config, 9, stop_after))


def test_weight_zero_is_a_deleted_pair() -> None:
    pairs = rotated_pairs(24)
    weights = np.where(np.arange(24) % 3 == 0, 0.0, 1.0)
    kept = np.flatnonzero(weights)
    # All pairs fit into one batch, so that both trainings see the same pairs in every step.
    zeroed = make_retraining(pairs).losses([weights], [4])[0]
    deleted = make_retraining(pairs.take(torch.from_numpy(kept))).losses([weights[kept]], [4])
    full = make_retraining(pairs).losses([np.ones(24)], [4])[0]
    # Float32 sums in another order, enlarged by Adam's division by the gradient's size.
    np.testing.assert_allclose(zeroed, deleted[0], atol=1e-3)
    assert np.abs(zeroed - full).max() > 0.1


def test_trainings_are_plain_trainings_to_the_bit_on_any_number_of_workers() -> None:
    again = make_retraining(rotated_pairs(40), batch_size=16)
    data, config = again.data, again.retraining.training
    rng = np.random.default_rng(1)
    weightings = [rng.uniform(0.5, 2, size=40) for _ in range(5)]
    seeds = [3, 3, 4, 5, 3]
    expected = []
    for weights, seed in zip(weightings, seeds, strict=True):
        run = Training(data.pairs, config, n_steps=9, seed=seed, sample_weights=weights)
        run.advance_to(6)  # the schedule of nine steps, left after six
        expected.append(mean_pair_losses(run.parameters, data.validation, data.validation_batches))
    for n_workers in (1, 2, 8, None):
        losses = again.losses(weightings, seeds, LocalEngine(n_workers))
        assert losses.shape == (5, 20)
        assert losses.dtype == np.float64
        np.testing.assert_array_equal(losses, expected)
    assert len({row.tobytes() for row in losses}) == 5  # weights and seeds both matter


def test_factors_multiply_the_weights_of_the_clusters() -> None:
    plain = make_retraining(rotated_pairs(24), batch_size=16)
    clusters, weights = np.arange(24) // 8, np.random.default_rng(2).uniform(0.5, 2, size=24)
    whole = plain._replace(data=plain.data._replace(clusters=clusters, weights=weights))
    factors = np.array([[1.0, 0.0, 0.9], [1.0, 1.0, 1.0]])
    found = whole.losses([*factors], [3, 3])
    by_pair = [weights * of_clusters[clusters] for of_clusters in factors]
    np.testing.assert_array_equal(found, plain.losses(by_pair, [3, 3]))
    assert not np.array_equal(*found)


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_retraining(rotated_pairs(24)).losses([np.ones(24)] * 2, [0, 1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_batch_whose_pairs_are_all_left_out_is_no_catastrophe() -> None:
    # Small batches and a large fold: some step finds nothing to learn from.
    weights = np.where(np.arange(24) < 18, 0.0, 1.0)
    again = make_retraining(rotated_pairs(24), batch_size=3)
    run = Training(again.data.pairs, again.retraining.training, n_steps=9, seed=4)
    assert any((weights[rows] == 0).all() for rows in run.batches[:6])
    assert np.all(np.isfinite(again.losses([weights], [4])))


def test_validation_losses_pair_by_pair() -> None:
    problem = random_problem(9, seed=30)
    batches = np.array([[0, 3, 5], [7, 1, 2], [3, 1, 8]])  # 3 and 1 twice, 4 and 6 never
    values: list[list[float]] = [[] for _ in range(9)]
    for rows in batches:
        for row, loss in zip(rows, problem.losses(problem.theta, rows), strict=True):
            values[row].append(float(loss))
    expected = np.array([np.mean(v) if v else math.nan for v in values])
    losses = mean_pair_losses(problem.parameters(), problem.pairs(), batches)
    assert losses.dtype == np.float64
    np.testing.assert_allclose(losses, expected, atol=1e-13)  # float64 in another order
    assert np.isnan(losses).tolist() == [i in (4, 6) for i in range(9)]


@pytest.mark.parametrize("n", [20, 22])
def test_their_mean_is_the_validation_loss(n: int) -> None:
    problem = random_problem(n, seed=31)
    rng = np.random.default_rng(0)
    batches = np.concatenate([shuffled_batches(n, 5, rng) for _ in range(4)])
    losses = mean_pair_losses(problem.parameters(), problem.pairs(), batches)
    held = np.bincount(batches.ravel(), minlength=n)
    expected = mean_loss(problem.parameters(), problem.pairs(), batches)
    assert float(held @ losses / held.sum()) == pytest.approx(expected, abs=1e-13)
    if n % 5 == 0:  # each pair is held equally often
        assert set(held.tolist()) == {4}
        assert float(losses.mean()) == pytest.approx(expected, abs=1e-13)

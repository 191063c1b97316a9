"""Runs side by side against the same runs alone, and the gradient that is written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.metagradient import pair_weight_gradient, pair_weight_gradients
from learner.config import SAMPLE, TrainingConfig
from learner.model import (
    Parameters,
    contrastive_loss,
    loss_and_gradient,
    projected_similarities,
    shuffled_batches,
)
from learner.pairs import PairTensors
from learner.stacked import Run, StackedTraining
from learner.training import Training, train, train_side_by_side

SMALL = TrainingConfig(embed_dim=5, batch_size=8, learning_rate=0.01, weight_decay=0.1)
WEIGHTS = np.arange(1, 31) % 5 / 2  # some are zero


def some_pairs(n: int = 40) -> PairTensors:
    generator = torch.Generator().manual_seed(2)
    return PairTensors(
        torch.randn(n, 6, generator=generator), torch.randn(n, 7, generator=generator)
    )


RUNS = [
    Run(3),
    Run(4, np.arange(10, 40)),
    Run(4, np.arange(10, 40), WEIGHTS),
    Run(5, np.array([7, 3, 9, 39, 0, 1, 2, 30, 31, 32, 33])),
]


def alone(pairs: PairTensors, run: Run, n_steps: int = 12, weighting: str = "loss") -> Training:
    rows = np.arange(pairs.n_pairs) if run.rows is None else run.rows
    return Training(
        pairs.subset(rows),
        SMALL,
        n_steps=n_steps,
        seed=run.seed,
        sample_weights=run.weights,
        weighting=weighting,
    )


def assert_close(found: Parameters, expected: Parameters) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("weighting", ["loss", SAMPLE])
def test_runs_side_by_side_are_as_each_is_alone(weighting: str) -> None:
    pairs = some_pairs()
    runs = StackedTraining(pairs, SMALL, RUNS, n_steps=12, weighting=weighting)
    singles = [alone(pairs, run, weighting=weighting) for run in RUNS]
    for _ in range(9):
        losses = runs.advance()
        for loss, single in zip(losses, singles, strict=True):
            assert float(loss) == pytest.approx(float(single.advance()), rel=1e-4)
    for r, single in enumerate(singles):
        np.testing.assert_array_equal(runs.batches[r], single.batches)
        np.testing.assert_array_equal(runs.seen(r), single.runs.seen(0))
        assert_close(runs.parameters_of(r), single.parameters)
        assert not torch.equal(runs.parameters_of(r).image_map, runs.parameters_of(r - 1).image_map)


def test_trained_side_by_side_with_their_losses() -> None:
    pairs = some_pairs()
    batches = shuffled_batches(16, 8, np.random.default_rng(1))
    validation = (pairs.take(torch.arange(16)), batches)
    found = train_side_by_side(pairs, SMALL, RUNS, n_steps=10, validation=validation, n_reports=3)
    assert len(found) == len(RUNS)
    for (parameters, history), run in zip(found, RUNS, strict=True):
        rows = np.arange(40) if run.rows is None else run.rows
        expected, losses = train(
            pairs.subset(rows),
            SMALL,
            n_steps=10,
            seed=run.seed,
            sample_weights=run.weights,
            validation=validation,
            n_reports=3,
        )
        assert_close(parameters, expected)
        assert history.step == losses.step == [4, 7, 10]
        assert history.train_loss == pytest.approx(losses.train_loss, rel=1e-4)
        assert history.validation_loss == pytest.approx(losses.validation_loss, rel=1e-4)


def test_the_way_back_through_runs_side_by_side() -> None:
    pairs = some_pairs()

    def size_of_maps(parameters: Parameters) -> Parameters:
        return Parameters(*(p.clone() for p in parameters))

    runs = StackedTraining(pairs, SMALL, RUNS, n_steps=12)
    found = pair_weight_gradients(runs, 9, size_of_maps, checkpoints=(4, 9))
    assert runs.n_done == 9
    for r, run in enumerate(RUNS):
        single = alone(pairs, run)
        expected = pair_weight_gradient(single, 9, size_of_maps, checkpoints=(4, 9))
        assert len(found[r]) == len(expected)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found[r], expected, rtol=2e-3, atol=2e-5)
        assert_close(runs.parameters_of(r), single.parameters)


def test_batches_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        StackedTraining(some_pairs(), SMALL, [Run(1), Run(1, np.arange(6))], n_steps=2)


# --- The gradient -----------------------------------------------------------------------------


def recorded(
    images: Tensor, texts: Tensor, log_scale: Tensor, weights: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """By automatic differentiation."""
    given = [part.clone().requires_grad_() for part in (images, texts, log_scale)]
    losses = contrastive_loss(projected_similarities(*given), weights)
    return losses.detach(), torch.autograd.grad(losses.sum(), given)


@pytest.mark.parametrize("kind", ["none", "uneven", "zeros", "one alone", "nothing"])
def test_the_gradient_is_that_of_the_loss(kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    images, texts = (
        torch.randn(3, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    texts += images
    log_scale = torch.tensor([0.3, 2.0, math.log(100)], dtype=torch.float64)
    weights: Tensor | None = torch.rand(3, 6, generator=generator, dtype=torch.float64) + 0.1
    assert weights is not None
    if kind == "none":
        weights = None
    elif kind == "zeros":
        weights[:, ::2] = 0
    elif kind == "one alone":
        weights[1, 1:] = 0
    elif kind == "nothing":
        weights[1] = 0
    expected_losses, expected = recorded(images, texts, log_scale, weights)
    losses, gradient = loss_and_gradient(images, texts, log_scale, weights)
    assert float(losses.max()) > 0.1
    torch.testing.assert_close(losses, expected_losses, rtol=1e-10, atol=1e-12)
    for found, truth in zip(gradient, expected, strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def test_a_row_of_zeros_has_a_finite_gradient() -> None:
    images, texts = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    images[0, 2] = 0
    _, gradient = loss_and_gradient(images, texts, torch.zeros(1))
    _, expected = recorded(images, texts, torch.zeros(1), None)
    assert all(torch.isfinite(part).all() for part in gradient)
    torch.testing.assert_close(gradient.by_texts, expected[1])

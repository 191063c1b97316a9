"""The derivative by pair weights against finite differences of whole trainings."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from attribution import metagradient
from attribution.derivatives import unflatten
from attribution.metagradient import pair_weight_gradient
from learner import stacked
from learner.config import TrainingConfig
from learner.model import Parameters, initial_parameters
from learner.pairs import PairTensors
from learner.stacked import StackedTraining, TrainingState
from learner.training import Training
from tests import reference
from tests.reference import Problem

N, N_VALIDATION = 10, 6
# Decay strong enough to be seen; batches of 4 leave 2 of 10 pairs out of every epoch.
CONFIG = TrainingConfig(embed_dim=2, batch_size=4, learning_rate=0.03, weight_decay=1.0)
ONES = np.ones(N)
UNEVEN = np.array([1, 0.5, 2, 1.25, 0.75, 1, 3, 0.25, 1, 1.5])
# Fourth-order differences of runs in float64. Adam divides by a gradient plus 1e-4, so the loss
# bends within weights of some 1e-2: steps of 1e-5 leave 1e-10 of truncation, and 1e-15 of
# rounding in the run over 1e-5 another 1e-10; a hundred times both.
DIFFERENCED = 2e-8
RELATIVE = 1e-6


def tiny_data() -> Problem:
    """Training pairs, then validation pairs; the last image feature is always zero."""
    rng = np.random.default_rng(3)
    images = rng.normal(size=(N + N_VALIDATION, 3))
    texts = images @ rng.normal(size=(3, 4)) + 0.5 * rng.normal(size=(N + N_VALIDATION, 4))
    images[:, -1] = 0  # parameters without any gradient, ever: 0 / 0 in Adam's derivative
    return Problem(images, texts, np.zeros(15), 2)


DATA = tiny_data()
VALIDATION = np.arange(N, N + N_VALIDATION)


START_SCALE = 3.0  # at CLIP's 14 a negative of weight zero can count e^28 times its weight


def float64_start(d_image: int, d_text: int, embed_dim: int, **options: Any) -> Parameters:
    drawn = initial_parameters(d_image, d_text, embed_dim, **options)
    log_scale = torch.tensor(math.log(START_SCALE), dtype=torch.float64)
    return Parameters(drawn.image_map.double(), drawn.text_map.double(), log_scale)


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take their precision from the pairs and the initial parameters."""
    monkeypatch.setattr(stacked, "initial_parameters", float64_start)


@dataclass(frozen=True)
class Case:
    n_steps: int
    schedule: int
    weights: np.ndarray
    checkpoints: tuple[int, ...] = ()

    def run(self, weights: np.ndarray | None = None) -> Training:
        """A run whose weights are float64 too."""
        pairs = PairTensors(*(side[:N] for side in DATA.pairs()))
        run = Training(pairs, CONFIG, n_steps=self.schedule, seed=1)
        run.weights = torch.from_numpy(self.weights if weights is None else weights)
        return run

    def loss(self, weights: np.ndarray) -> float:
        """Validation loss, by NumPy, of a training from scratch with these weights."""
        run, losses = self.run(weights), []
        for step in sorted(self.checkpoints) or [self.n_steps]:
            run.advance_to(step)
            losses.append(DATA.loss(theta_of(run.parameters), VALIDATION))
        return float(np.mean(losses))

    def difference(self, pair: int) -> float:
        """dL_val / dw of one pair by whole trainings; one-sided where the weight is zero."""
        step = 1e-5
        unit = np.eye(N)[pair] * step
        if self.weights[pair] == 0:  # fourth order, to the right only
            values = [self.loss(self.weights + k * unit) for k in range(5)]
            return float(np.dot([-25, 48, -36, 16, -3], values) / (12 * step))
        values = [self.loss(self.weights + k * unit) for k in (-2, -1, 1, 2)]
        return float(np.dot([1, -8, 8, -1], values) / (12 * step))

    def gradient(self) -> np.ndarray:
        return pair_weight_gradient(
            self.run(), self.n_steps, validation_gradient, checkpoints=self.checkpoints
        )


def theta_of(parameters: Parameters) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in parameters]).double().numpy()


def validation_gradient(parameters: Parameters) -> Parameters:
    """By differences of the NumPy loss, good to 1e-9."""
    gradient = reference.central_difference(
        lambda theta: DATA.loss(theta, VALIDATION), theta_of(parameters)
    )
    return unflatten(torch.from_numpy(gradient).to(parameters.image_map), parameters)


CASES = {
    "one step": Case(1, 1, ONES),
    "whole schedule": Case(9, 9, ONES),
    "stopped early": Case(9, 30, ONES),
    "uneven weights": Case(12, 16, UNEVEN),
    "zero weights": Case(12, 16, UNEVEN * (np.arange(N) % 9 > 0)),  # two pairs
    "several losses": Case(12, 16, UNEVEN, (4, 7, 12)),
    "no loss at the end": Case(12, 16, UNEVEN, (11, 5)),
}


def differences(case: Case) -> np.ndarray:
    return np.array([case.difference(i) for i in range(N)])


@pytest.mark.parametrize("name", CASES)
def test_against_differences_of_whole_trainings(name: str) -> None:
    gradient = CASES[name].gradient()
    expected = differences(CASES[name])
    assert gradient.dtype == np.float64
    # Adam's first step is nearly the gradient's sign, which no weight changes.
    size = 5e-6 if name == "one step" else 1e-4
    assert (np.abs(expected) > size).sum() >= (4 if name == "one step" else 8)
    np.testing.assert_allclose(gradient, expected, rtol=RELATIVE, atol=DIFFERENCED)


@pytest.mark.parametrize("checkpoints", [(), (3, 10, 18, 25)], ids=["final", "several"])
def test_replays_of_several_levels_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, checkpoints: tuple[int, ...]
) -> None:
    case = Case(25, 30, UNEVEN, checkpoints)
    at_once = case.gradient()
    is_fresh: list[bool] = []
    n_steps = 0
    state, advance = StackedTraining.state, StackedTraining._advance

    def copied(run: StackedTraining, into: TrainingState | None = None) -> TrainingState:
        is_fresh.append(into is None)
        return state(run, into)

    def advanced(run: StackedTraining) -> Any:
        nonlocal n_steps
        n_steps += 1
        return advance(run)

    monkeypatch.setattr(StackedTraining, "state", copied)
    monkeypatch.setattr(StackedTraining, "_advance", advanced)
    # The start, the end and every step once; with 3 at once also two checkpoints nine steps apart
    # and, in each of the three parts between, two that are three steps apart. What leads to the
    # last checkpoint of a part is not run again, and the memory of a checkpoint that is done with
    # serves for the next copies.
    for states, n_copies, most_alive, n_run in (
        (1000, 27, 27, 25),
        (3, 25 + 2 + 2 + 3 * 2, 2 + 2 + 2 + 2, 18 + 6 + 1 + 2 * 3 + 2 * (6 + 3 + 2 * 3)),
    ):
        monkeypatch.setattr(metagradient, "STATES_AT_ONCE", states)
        is_fresh.clear()
        n_steps = 0
        np.testing.assert_array_equal(case.gradient(), at_once)
        assert len(is_fresh) == n_copies
        assert sum(is_fresh) == most_alive
        assert n_steps == n_run
    np.testing.assert_allclose(at_once, differences(case), rtol=RELATIVE, atol=DIFFERENCED)


@pytest.mark.parametrize(
    ("start", "cap"), [(1.0, 1.02), (0.5, 0.5237)], ids=["in the first step", "late and again"]
)
def test_a_logit_scale_at_its_cap_forgets_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, start: float, cap: float
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "START_SCALE", start)
    case = Case(12, 16, UNEVEN)
    free = case.gradient()
    for module in (stacked, metagradient):
        monkeypatch.setattr(module, "MAX_LOG_SCALE", math.log(cap))
    run, at_cap = case.run(), []
    for _ in range(case.n_steps):
        run.advance()
        at_cap.append(float(run.parameters.log_scale) == math.log(cap))
    assert 0 < sum(at_cap) < len(at_cap)
    capped = case.gradient()
    assert np.abs(capped - free).max() > 1e-4
    np.testing.assert_allclose(capped, differences(case), rtol=RELATIVE, atol=DIFFERENCED)


@pytest.mark.parametrize("name", CASES)
def test_scaling_all_weights_changes_nothing(name: str) -> None:
    case = CASES[name]
    gradient = case.gradient()
    # Float64 rounding, over terms of size one to ten.
    assert float(case.weights @ gradient) == pytest.approx(0, abs=1e-12)
    assert np.abs(gradient).max() > 1e-4


def test_pairs_that_no_batch_held_get_nothing() -> None:
    case = Case(2, 9, ONES)  # an epoch of two batches of four
    gradient = case.gradient()
    seen = np.unique(case.run().batches[:2])
    assert len(seen) == 8
    assert np.all(gradient[np.setdiff1d(np.arange(N), seen)] == 0)
    assert np.all(gradient[seen] != 0)


def test_the_run_is_left_where_a_plain_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metagradient, "STATES_AT_ONCE", 3)
    case = Case(11, 16, UNEVEN)
    run, plain = case.run(), case.run()
    plain.advance_to(11)
    pair_weight_gradient(run, 11, validation_gradient)
    assert run.n_done == 11
    for _ in range(2):  # and it goes on like one
        for ours, theirs in zip(run.state(), plain.state(), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b)
        run.advance()
        plain.advance()


def test_a_run_without_weights_has_weights_of_one() -> None:
    pairs = PairTensors(*(side[:N] for side in DATA.pairs()))
    run = Training(pairs, CONFIG, n_steps=9, seed=1)
    gradient = pair_weight_gradient(run, 9, validation_gradient)
    # Its weights are float32: so is each step's share of the derivative.
    np.testing.assert_allclose(gradient, CASES["whole schedule"].gradient(), rtol=0, atol=1e-5)


def test_float32_runs_give_the_same_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    def float32_start(*sizes: int, **options: Any) -> Parameters:
        return Parameters(*(p.float() for p in float64_start(*sizes, **options)))

    case = CASES["uneven weights"]
    exact = case.gradient()
    monkeypatch.setattr(stacked, "initial_parameters", float32_start)
    pairs = PairTensors(*(side[:N].float() for side in DATA.pairs()))
    run = Training(pairs, CONFIG, n_steps=case.schedule, seed=1, sample_weights=case.weights)
    assert run.parameters.image_map.dtype == torch.float32
    gradient = pair_weight_gradient(run, case.n_steps, validation_gradient)
    # Gradients to 1e-7 beside Adam's 1e-4: 1e-3 at worst, of a few coordinates.
    assert np.linalg.norm(gradient - exact) < 1e-3 * np.linalg.norm(exact)

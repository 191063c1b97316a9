"""The look ahead against differences of losses, and scores that are mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution.derivatives import flatten
from learner.config import TrainingConfig
from learner.model import to_vector
from learner.training import train
from rivals import look_ahead as module
from rivals.look_ahead import look_ahead, mixed_scores, signal_cosines, signals
from tests import reference
from tests.reference import planted_problem, random_problem
from tests.rivals.cases import at_angles, case_of, select, unit


def test_the_gradient_by_the_mix_against_differences() -> None:
    problem, validation = random_problem(6, seed=3), random_problem(8, seed=4)
    rng = np.random.default_rng(0)
    scores, mix = rng.normal(size=(6, 3)), rng.normal(size=3)
    step, rows, others = 0.2, np.arange(6), np.arange(8)

    def ahead(mix: np.ndarray) -> np.ndarray:
        weights = np.exp(scores @ mix) / np.exp(scores @ mix).sum()
        gradient = reference.central_difference(
            lambda theta: problem.loss(theta, rows, weights), problem.theta
        )
        return np.asarray(problem.theta - step * gradient)

    expected = reference.central_difference(
        lambda mix: validation.loss(ahead(mix), others), mix, step=1e-3
    )
    found, model = look_ahead(
        problem.parameters(),
        torch.from_numpy(mix),
        torch.from_numpy(scores),
        problem.pairs(),
        validation.pairs(),
        step,
    )
    assert np.abs(expected).max() > 1e-3
    # Differences of differences: 1e-9 / 1e-3 from the inner ones, squares of 1e-3 from the outer.
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=3e-6)
    np.testing.assert_allclose(flatten(model).numpy(), ahead(mix), atol=1e-8)


def test_signals_are_what_their_names_say() -> None:
    # Of two clusters the first has a pair of copies; the hardest pair of each has no harder one.
    images = at_angles(0, 10, 40, 41, 100, 103, 104, 10)
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    case = case_of(8, image_embeddings=images, text_embeddings=images, cluster_assignments=clusters)
    found = signals(case.pairs, np.random.default_rng(0))
    assert found.shape == (8, 5)
    assert np.isfinite(found).all()
    copies = found[:, 3]
    # To the nearest harder image 10, 1, 41, 1 and 4 degrees; the others have the least of these.
    assert np.argsort(-copies, kind="stable")[:5].tolist() == [2, 5, 6, 1, 0]
    assert copies[[0, 3, 4, 7]].tolist() == [copies.min()] * 4
    scores = case.pairs.clip_scores.astype(float)
    np.testing.assert_allclose(found[:, 0], (scores - scores.mean()) / scores.std(), atol=1e-5)


def test_one_score_far_away_does_not_decide() -> None:
    scores = np.r_[np.linspace(0, 1, 99), 1e6].astype(np.float32)
    case = case_of(100, clip_scores=scores)
    assert signals(case.pairs, np.random.default_rng(0))[:, 0].max() == 3.0


def test_a_score_that_tells_right_from_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = planted_problem(seed=2)
    config = TrainingConfig(embed_dim=6, batch_size=16, learning_rate=2e-2)
    parameters, _ = train(planted.pairs, config, n_steps=80, seed=0)
    rng = np.random.default_rng(0)
    useless = rng.normal(size=(96, 2))
    telling = np.where(planted.wrong, 1.0, -1.0) + 0.3 * rng.normal(size=96)  # high where wrong
    given = np.column_stack([useless[:, 0], telling, useless[:, 1]]).astype(np.float32)
    monkeypatch.setattr(module, "signals", lambda *_: given)
    monkeypatch.setattr(module, "N_STEPS", 60)
    case = case_of(96, tensors=planted.pairs, validation=planted.validation, reference=parameters)
    kept = select("m_flyt", case, 0.75, rng=np.random.default_rng(0)).rows
    assert planted.wrong[kept].mean() < 0.05  # 25 % of all pairs
    mixed = mixed_scores(*case, rng=np.random.default_rng(0))
    assert np.corrcoef(mixed, telling)[0, 1] < -0.9


def test_the_reference_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_STEPS", 5)
    case = case_of(20)
    assert case.reference is not None
    before = to_vector(case.reference.parameters).copy()
    mixed_scores(*case, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(to_vector(case.reference.parameters), before)


def test_the_cosines_that_are_counted() -> None:
    rng = np.random.default_rng(0)
    images = unit(rng.normal(size=(10, 3)))
    assert len(images) == 10
    # Beside agreement, 10 pairs with 4 held-out ones, 5 of a cluster and 10 that may be neighbours.
    assert signal_cosines(10, 4, 2) - signal_cosines(10, 0, 2) == 40
    assert signal_cosines(10, 4, 1) - signal_cosines(10, 4, 2) == 50

"""Reducible losses against loops, and the model of the held-out pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner.config import TrainingConfig
from learner.model import initial_parameters, mean_loss
from learner.pairs import PairTensors
from learner.training import Training, train
from rivals import held_out
from rivals.given import Reference
from rivals.held_out import held_out_loss, held_out_model
from tests import reference
from tests.reference import planted_problem, random_problem
from tests.rivals.cases import case_of, select


def test_losses_against_their_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, other = random_problem(7, seed=3), random_problem(7, seed=4)
    monkeypatch.setattr(held_out, "held_out_model", lambda *_, **__: other.parameters())
    case = case_of(
        7, tensors=learner.pairs(), reference=learner.parameters(), batch_size=7
    )  # one batch of all, in whatever order
    found = held_out_loss(*case, rng=np.random.default_rng(0))
    rows = np.arange(7)
    expected = learner.losses(learner.theta, rows) - learner.losses(other.theta, rows)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_both_models_see_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(10, seed=3)
    monkeypatch.setattr(held_out, "held_out_model", lambda *_, **__: problem.parameters())
    monkeypatch.setattr(held_out, "N_SHUFFLES", 2)
    case = case_of(10, tensors=problem.pairs(), reference=problem.parameters(), batch_size=4)
    assert held_out_loss(*case, rng=np.random.default_rng(0)).tolist() == [0.0] * 10
    other = random_problem(10, seed=5)
    monkeypatch.setattr(held_out, "held_out_model", lambda *_, **__: other.parameters())
    found = held_out_loss(*case, rng=np.random.default_rng(2))
    rng, expected = np.random.default_rng(2), np.zeros(10)
    for _ in range(2):
        order, seen = rng.permutation(10), [list[float]() for _ in range(10)]
        for rows in (order[:4], order[4:8], np.r_[order[8:], order[:2]]):
            logits = (problem.logits(theta, rows) for theta in (problem.theta, other.theta))
            one, two = (reference.pair_losses(of_model) for of_model in logits)
            for row, difference in zip(rows, one - two, strict=True):
                seen[row].append(difference)
        expected += [np.mean(s) / 2 for s in seen]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def known(embed_dim: int, batch_size: int = 16) -> Reference:
    start = initial_parameters(8, 6, embed_dim, seed=1, device=torch.device("cpu"))
    return Reference(start, batch_size)


def test_the_model_has_learnt_the_held_out_pairs() -> None:
    validation = planted_problem(seed=2).validation
    model = held_out_model(validation, known(5), rng=np.random.default_rng(0))
    assert model.image_map.shape == (8, 5)
    unseen = planted_problem(seed=2, n_validation=128).validation.subset(np.arange(64, 128))
    batch = np.arange(64)[None]
    start = mean_loss(known(5).parameters, unseen, batch)
    assert mean_loss(model, validation, batch) < 0.8 * start


def test_captions_of_an_image_are_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    one = planted_problem(seed=2).validation
    twice = PairTensors(one.images.repeat(2, 1), torch.cat([one.texts, one.texts + 0.1]))
    trained: list[PairTensors] = []
    made = Training

    def training(pairs: PairTensors, *given: Any, **settings: Any) -> Any:
        trained.append(pairs)
        return made(pairs, *given, **settings)

    monkeypatch.setattr(held_out, "Training", training)
    held_out_model(twice, known(3), rng=np.random.default_rng(0))
    searched, final = trained
    counts = np.unique(searched.images.numpy(), axis=0, return_counts=True)[1]
    assert counts.tolist() == [2] * 51  # of 64 images 13 are held back, with both captions
    assert final.n_pairs == 128


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_few_held_out_pairs_are_enough(n: int) -> None:
    few = planted_problem(seed=2).validation.subset(np.arange(n))
    model = held_out_model(few, known(3), rng=np.random.default_rng(0))
    assert all(bool(torch.isfinite(p).all()) for p in model)


def test_wrong_captions_are_dropped() -> None:
    planted = planted_problem(seed=2, n_validation=128)
    config = TrainingConfig(embed_dim=6, batch_size=16, learning_rate=2e-2)
    parameters, _ = train(planted.pairs, config, n_steps=80, seed=0)
    case = case_of(
        96,
        tensors=planted.pairs,
        validation=planted.validation,
        reference=parameters,
        batch_size=16,
    )
    kept = select("held_out_loss", case, 0.75, rng=np.random.default_rng(0)).rows
    assert planted.wrong[kept].mean() < 0.15  # 25 % of all pairs

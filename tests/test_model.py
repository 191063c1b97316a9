"""The weighted contrastive loss by hand, batches, feature scaling and the training loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

import model
from model import (
    INITIAL_LOGIT_SCALE,
    PairTensors,
    Parameters,
    TrainingConfig,
    contrastive_loss,
    embed_images,
    embed_texts,
    fit_feature_scaling,
    initial_parameters,
    mean_loss,
    pair_losses,
    shuffled_batches,
    similarities,
    steps_per_epoch,
    train,
)
from tests import reference

CPU = torch.device("cpu")
# Float64 arithmetic in another order: a few units in the last place of numbers of order ten.
EXACT = 1e-13


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(3 * np.random.default_rng(seed).normal(size=shape))


def random_pairs(n: int, *, seed: int = 0) -> PairTensors:
    """Float32 pairs whose text is a rotated image, so that they can be learnt."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 8)) / math.sqrt(8)
    rotation = np.linalg.qr(np.random.default_rng(99).normal(size=(8, 8)))[0]
    return PairTensors(
        torch.from_numpy(images).float(), torch.from_numpy(images @ rotation).float()
    )


# --- Loss -------------------------------------------------------------------------------------


def test_two_pairs_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    first = (
        math.log(math.exp(2) + math.exp(1)) + math.log(math.exp(2) + math.exp(0.5)) - 2 * 2
    ) / 2
    second = (
        math.log(math.exp(0.5) + math.exp(3)) + math.log(math.exp(1) + math.exp(3)) - 2 * 3
    ) / 2
    assert pair_losses(logits).tolist() == pytest.approx([first, second], abs=EXACT)
    assert float(contrastive_loss(logits)) == pytest.approx((first + second) / 2, abs=EXACT)


def test_three_weighted_pairs_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.5, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    e = math.exp
    losses = [
        (math.log(e(1) + 2 * e(0) + 0.5 * e(-1)) + math.log(e(1) + 2 * e(2) + 0.5 * e(0))) / 2 - 1,
        (math.log(e(2) + 2 * e(0.5) + 0.5 * e(0)) + math.log(e(0) + 2 * e(0.5) + 0.5 * e(1))) / 2
        - 0.5,
        (math.log(e(0) + 2 * e(1) + 0.5 * e(2)) + math.log(e(-1) + 2 * e(0) + 0.5 * e(2))) / 2 - 2,
    ]
    mean = (losses[0] + 2 * losses[1] + 0.5 * losses[2]) / 3.5
    assert pair_losses(logits, weights).tolist() == pytest.approx(losses, abs=EXACT)
    assert float(contrastive_loss(logits, weights)) == pytest.approx(mean, abs=EXACT)


def test_equal_logits_give_the_log_of_the_batch_size() -> None:
    assert float(contrastive_loss(torch.zeros(7, 7))) == pytest.approx(math.log(7), abs=1e-6)


def test_a_single_pair_has_no_loss() -> None:
    assert float(contrastive_loss(torch.full((1, 1), 4.0))) == 0.0


def test_large_logits_do_not_overflow() -> None:
    logits = 1e4 * torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert float(contrastive_loss(logits)) == 0.0
    assert float(contrastive_loss(logits.flip(0))) == pytest.approx(1e4, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_weight_zero_is_a_deleted_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = np.array([0, 2, 3, 6])
    weights = np.zeros(8)
    weights[kept] = rng.uniform(0.2, 3, size=4)
    full = random_logits(8, 8, seed=seed).requires_grad_()
    deleted = full.detach()[kept][:, kept].requires_grad_()

    full_loss = contrastive_loss(full, torch.from_numpy(weights))
    deleted_loss = contrastive_loss(deleted, torch.from_numpy(weights[kept]))
    (full_gradient,) = torch.autograd.grad(full_loss, full)
    (deleted_gradient,) = torch.autograd.grad(deleted_loss, deleted)

    assert float(full_loss.detach()) == pytest.approx(float(deleted_loss.detach()), abs=EXACT)
    expected = np.zeros((8, 8))  # nothing at all flows through a deleted pair
    expected[np.ix_(kept, kept)] = deleted_gradient.numpy()
    gone = expected == 0
    assert np.all(full_gradient.numpy()[gone] == 0)
    np.testing.assert_allclose(full_gradient.numpy(), expected, atol=EXACT)
    np.testing.assert_allclose(
        pair_losses(full, torch.from_numpy(weights)).detach().numpy()[kept],
        reference.pair_losses(deleted.detach().numpy(), weights[kept]),
        atol=EXACT,
    )


def test_weights_of_one_are_no_weights() -> None:
    logits = random_logits(5, 5)
    ones = torch.ones(5, dtype=torch.float64)
    assert torch.equal(pair_losses(logits, ones), pair_losses(logits))
    assert float(contrastive_loss(logits, ones)) == pytest.approx(
        float(contrastive_loss(logits)), abs=EXACT
    )


@given(
    scale=st.floats(1e-3, 1e3),
    weights=st.lists(st.one_of(st.just(0.0), st.floats(0.01, 10)), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
)
@hypothesis_settings(deadline=None, derandomize=True, max_examples=40)
def test_scaling_all_weights_moves_every_pair_alike(
    scale: float, weights: list[float], seed: int
) -> None:
    weights[0] = 1.0  # not all zero
    logits = random_logits(len(weights), len(weights), seed=seed)
    w = torch.tensor(weights, dtype=torch.float64)
    # Every denominator grows by the same factor: the loss by its logarithm, gradients not at all.
    difference = contrastive_loss(logits, scale * w) - contrastive_loss(logits, w)
    assert float(difference) == pytest.approx(math.log(scale), abs=1e-11)


def test_batch_dimensions_are_independent_batches() -> None:
    logits = random_logits(2, 3, 4, 4)
    weights = torch.from_numpy(np.random.default_rng(1).uniform(0.1, 2, size=(2, 3, 4)))
    losses = pair_losses(logits, weights)
    means = contrastive_loss(logits, weights)
    assert losses.shape == (2, 3, 4)
    assert means.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            w = weights[i, j].numpy()
            expected = reference.pair_losses(logits[i, j].numpy(), w)
            np.testing.assert_allclose(losses[i, j].numpy(), expected, atol=EXACT)
            assert float(means[i, j]) == pytest.approx(float(w @ expected / w.sum()), abs=EXACT)


def test_similarities_are_scaled_cosines() -> None:
    problem = reference.random_problem(6, seed=3)
    rows = np.array([[0, 1, 2], [5, 4, 3]])
    logits = similarities(problem.parameters(), problem.pairs().take(torch.from_numpy(rows)))
    assert logits.shape == (2, 3, 3)
    for batch, index in zip(logits, rows, strict=True):
        np.testing.assert_allclose(batch.numpy(), problem.logits(problem.theta, index), atol=EXACT)


def test_embeddings_are_unit_rows() -> None:
    parameters = initial_parameters(8, 8, 5, seed=0, device=CPU)
    pairs = random_pairs(9)
    for embeddings in (
        embed_images(parameters, pairs.images),
        embed_texts(parameters, pairs.texts),
    ):
        assert embeddings.shape == (9, 5)
        # Float32 rounding of a norm over five entries.
        np.testing.assert_allclose(embeddings.norm(dim=1).numpy(), 1, atol=1e-6)


# --- Batches ----------------------------------------------------------------------------------


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 9))
@hypothesis_settings(deadline=None, derandomize=True)
def test_an_epoch_holds_every_pair_at_most_once(n: int, batch_size: int, seed: int) -> None:
    batches = shuffled_batches(n, batch_size, np.random.default_rng(seed))
    b = min(n, batch_size)
    assert batches.shape == (n // b, b)
    assert len(set(batches.ravel().tolist())) == batches.size
    assert set(batches.ravel().tolist()) <= set(range(n))
    assert len(batches) == steps_per_epoch(n, batch_size)


def test_epochs_are_shuffled_anew() -> None:
    rng = np.random.default_rng(0)
    first, second = shuffled_batches(40, 8, rng), shuffled_batches(40, 8, rng)
    assert not np.array_equal(first, second)


def test_mean_loss_is_the_mean_over_batches_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = reference.random_problem(12, seed=4)
    batches = np.random.default_rng(0).permutation(12).reshape(4, 3)
    expected = float(np.mean([problem.loss(problem.theta, rows) for rows in batches]))
    for rows_at_once in (1, 7, 8192):
        monkeypatch.setattr(model, "ROWS_AT_ONCE", rows_at_once)
        loss = mean_loss(problem.parameters(), problem.pairs(), batches)
        assert loss == pytest.approx(expected, abs=EXACT)


# --- Scaling ----------------------------------------------------------------------------------


def test_scaling_centres_and_gives_unit_mean_square_norm() -> None:
    rng = np.random.default_rng(0)
    images = (5 + 3 * rng.normal(size=(50, 4))).astype(np.float32)
    texts = (-2 + 0.1 * rng.normal(size=(50, 6))).astype(np.float32)
    scaling = fit_feature_scaling(images, texts)
    for scaled in scaling.pairs(images, texts, CPU):
        assert scaled.dtype == torch.float32
        # Float32 features of size five carry 5e-7, divided by a scale of 0.1 and more.
        np.testing.assert_allclose(scaled.mean(dim=0).numpy(), 0, atol=1e-5)
        assert float(scaled.square().sum(dim=1).mean()) == pytest.approx(1, abs=1e-5)


def test_scaling_is_one_affine_map_for_unseen_features_too() -> None:
    images = np.array([[0, 0], [2, 0]], dtype=np.float32)  # mean (1, 0), mean square norm 1
    texts = np.array([[1], [5]], dtype=np.float32)  # mean 3, mean square norm 4
    scaling = fit_feature_scaling(images, texts)
    unseen = np.array([[4, 3]], dtype=np.float32)
    assert scaling.images(unseen, CPU).tolist() == [[3, 3]]
    assert scaling.texts(np.array([[9]], dtype=np.float32), CPU).tolist() == [[3]]


def test_constant_features_are_not_divided_by_zero() -> None:
    constant = np.full((5, 3), 2.0, dtype=np.float32)
    scaling = fit_feature_scaling(constant, constant)
    assert torch.equal(scaling.images(constant, CPU), torch.zeros(5, 3))


# --- Training ---------------------------------------------------------------------------------

SMALL = TrainingConfig(embed_dim=6, batch_size=16, learning_rate=3e-2, weight_decay=1e-4)


def top_one(parameters: Parameters, pairs: PairTensors) -> float:
    logits = similarities(parameters, pairs)
    return float((logits.argmax(dim=1) == torch.arange(len(logits))).float().mean())


def test_initial_parameters_follow_the_seed() -> None:
    first, again, other = (initial_parameters(400, 5, 6, seed=s, device=CPU) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.image_map, other.image_map)
    assert float(first.log_scale.exp()) == pytest.approx(INITIAL_LOGIT_SCALE, rel=1e-6)
    # Unit gain: entries of variance 1 / d_i; 2,400 draws give it to 3 %, four deviations 12 %.
    assert float(first.image_map.square().mean() * 400) == pytest.approx(1, abs=0.12)


def test_the_same_seed_trains_the_same_model_and_another_another() -> None:
    pairs = random_pairs(40)
    first, again, other = (train(pairs, SMALL, n_steps=6, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert first[1] == again[1]
    assert not torch.equal(first[0].image_map, other[0].image_map)


def test_training_leaves_global_random_state_alone() -> None:
    before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    train(random_pairs(20), SMALL, n_steps=2, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert repr(np.random.get_state()) == numpy_before  # noqa: NPY002


def test_training_learns_pairs_it_has_not_seen() -> None:
    pairs = random_pairs(160)
    parameters, history = train(
        pairs.take(torch.arange(128)), SMALL, n_steps=200, seed=0, n_reports=4
    )
    assert history.train_loss[-1] < history.train_loss[0]
    unseen = pairs.take(torch.arange(128, 160))
    untrained = initial_parameters(8, 8, 6, seed=0, device=CPU)
    assert top_one(untrained, unseen) < 0.3  # chance is 1 / 32
    assert top_one(parameters, unseen) > 0.9


def test_the_first_step_is_adamw_by_hand() -> None:
    # After one step Adam's moments are g and g^2, so every entry moves by the learning rate
    # against the sign of its gradient; decay shrinks the maps and leaves the logit scale alone.
    pairs = random_pairs(7)
    config = TrainingConfig(embed_dim=3, batch_size=16, learning_rate=0.01, weight_decay=2.0)
    start = initial_parameters(8, 8, 3, seed=5, device=CPU)
    theta = torch.cat([p.reshape(-1) for p in start]).double().numpy()
    problem = reference.Problem(
        pairs.images.double().numpy(), pairs.texts.double().numpy(), theta, 3
    )
    gradient = reference.central_difference(lambda t: problem.loss(t, np.arange(7)), problem.theta)
    shrunk = theta * (1 - 0.01 * 2.0)
    shrunk[-1] = theta[-1]

    parameters, history = train(pairs, config, n_steps=1, seed=5)
    after = torch.cat([p.reshape(-1) for p in parameters]).double().numpy()
    # Adam's 1e-8 beside gradients above 1e-4 changes a step by 1e-4 of itself; float32 rounds.
    clear = np.abs(gradient) > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_allclose(after[clear], (shrunk - 0.01 * np.sign(gradient))[clear], atol=3e-6)
    assert history.step == [1]
    assert history.train_loss[0] == pytest.approx(problem.loss(theta, np.arange(7)), rel=1e-5)


@pytest.mark.parametrize(
    ("n_steps", "n_reports", "steps"),
    [(20, 4, [5, 10, 15, 20]), (3, 10, [1, 2, 3]), (7, 3, [3, 5, 7]), (5, 1, [5])],
)
def test_steps_and_reports_are_as_many_as_asked(
    monkeypatch: pytest.MonkeyPatch, n_steps: int, n_reports: int, steps: list[int]
) -> None:
    calls = []

    def counted(parameters: Parameters, batch: PairTensors) -> Tensor:
        calls.append(len(batch.images))
        return similarities(parameters, batch)

    monkeypatch.setattr(model, "similarities", counted)
    _, history = train(random_pairs(40), SMALL, n_steps=n_steps, seed=0, n_reports=n_reports)
    assert calls == [16] * n_steps  # two full batches an epoch, the remainder left out
    assert history.step == steps
    assert len(history.train_loss) == len(steps)
    assert history.validation_loss == []


def test_keep_best_returns_the_model_of_the_lowest_validation_loss() -> None:
    # Wrong captions are memorised, so that the validation loss rises again.
    pairs = random_pairs(32)
    wrong = PairTensors(pairs.images, pairs.texts[torch.arange(32).roll(1)])
    mixed = PairTensors(
        torch.cat([pairs.images, wrong.images]), torch.cat([pairs.texts, wrong.texts])
    )
    validation = random_pairs(32, seed=7)
    batches = shuffled_batches(32, 16, np.random.default_rng(0))
    kept, history = train(
        mixed,
        SMALL,
        n_steps=80,
        seed=1,
        validation=(validation, batches),
        n_reports=20,
        keep_best=True,
    )
    last, same_history = train(
        mixed, SMALL, n_steps=80, seed=1, validation=(validation, batches), n_reports=20
    )
    assert history == same_history
    assert history.validation_loss[-1] > min(history.validation_loss)
    assert mean_loss(kept, validation, batches) == min(history.validation_loss)
    assert mean_loss(last, validation, batches) == history.validation_loss[-1]
    assert not any(p.requires_grad for p in (*kept, *last))


def test_keep_best_without_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_best needs validation pairs"):
        train(random_pairs(4), SMALL, n_steps=1, seed=0, keep_best=True)


@pytest.mark.parametrize("value", [1.0, 3.0])
def test_equal_sample_weights_train_the_unweighted_model(value: float) -> None:
    pairs = random_pairs(40)
    plain, _ = train(pairs, SMALL, n_steps=8, seed=2)
    weighted, _ = train(pairs, SMALL, n_steps=8, seed=2, sample_weights=np.full(40, value))
    # Rounding differs, and Adam's division by the gradient's size enlarges it a thousandfold.
    for a, b in zip(plain, weighted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4)


def test_pairs_of_weight_zero_are_not_trained_on() -> None:
    pairs = random_pairs(10)
    weights = np.array([1, 0, 2, 1, 0, 1, 0.5, 1, 0, 1])
    kept = np.flatnonzero(weights)
    # All pairs fit in one batch, so that both trainings see the same pairs in every step.
    zeroed, _ = train(pairs, SMALL, n_steps=8, seed=2, sample_weights=weights)
    deleted, _ = train(
        pairs.take(torch.from_numpy(kept)), SMALL, n_steps=8, seed=2, sample_weights=weights[kept]
    )
    plain, _ = train(pairs, SMALL, n_steps=8, seed=2)
    for a, b in zip(zeroed, deleted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4)  # as above
    assert float((zeroed.image_map - plain.image_map).abs().max()) > 1e-2


def test_the_logit_scale_stays_below_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert math.exp(model.MAX_LOG_SCALE) == pytest.approx(100)
    monkeypatch.setattr(model, "MAX_LOG_SCALE", math.log(9.0))  # below where training begins
    parameters, _ = train(random_pairs(32), SMALL, n_steps=1, seed=0)
    assert float(parameters.log_scale.exp()) == pytest.approx(9, rel=1e-6)  # float32


def test_the_learning_rate_falls_along_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Recording(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    train(random_pairs(32), SMALL, n_steps=4, seed=0)
    halves = [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2]
    np.testing.assert_allclose(rates, [[SMALL.learning_rate * h] * 2 for h in halves], rtol=1e-12)

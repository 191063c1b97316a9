"""The weighted contrastive loss by hand, its derivative by weights, batches, feature scaling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from learner import model
from learner.model import (
    INITIAL_LOGIT_SCALE,
    contrastive_loss,
    embed_images,
    embed_texts,
    initial_parameters,
    mean_loss,
    pair_losses,
    shuffled_batches,
    similarities,
)
from learner.pairs import fit_feature_scaling
from tests import reference
from tests.reference import rotated_pairs

CPU = torch.device("cpu")
# Float64 arithmetic in another order: a few units in the last place of numbers of order ten.
EXACT = 1e-13


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(3 * np.random.default_rng(seed).normal(size=shape))


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


@pytest.mark.parametrize("seed", range(3))
def test_weighted_losses_of_all_pairs_against_the_reference(seed: int) -> None:
    # Pairs of weight zero have a loss too, that of being added to the batch: only their column
    # is missing from the denominators.
    rng = np.random.default_rng(seed)
    logits = random_logits(7, 7, seed=seed)
    weights = rng.uniform(0.1, 3, size=7) * (rng.permutation(7) > 2)
    assert (weights == 0).sum() == 3
    losses = pair_losses(logits, torch.from_numpy(weights))
    expected = reference.pair_losses(logits.numpy(), weights)
    np.testing.assert_allclose(losses.numpy(), expected, atol=EXACT)
    assert float(contrastive_loss(logits, torch.from_numpy(weights))) == pytest.approx(
        float(weights @ expected / weights.sum()), abs=EXACT
    )


def weighted_mean(logits: np.ndarray, weights: np.ndarray) -> float:
    """The reference's contrastive loss."""
    return float(weights @ reference.pair_losses(logits, weights) / weights.sum())


@pytest.mark.parametrize("above", [0, 20])
def test_the_derivative_at_weight_zero_is_what_adding_the_pair_does(above: float) -> None:
    logits = random_logits(5, 5, seed=1)
    logits[:, 2] += above  # a column of weight zero may be the largest of every row
    weights = np.array([1, 0.5, 0, 2, 0])
    w = torch.from_numpy(weights).requires_grad_()
    (gradient,) = torch.autograd.grad(contrastive_loss(logits, w), w)
    for i in (2, 4):
        # Steps below the weight at which the added column matters, and far above rounding.
        step = 1e-5 * math.exp(-above)
        unit = np.eye(5)[i] * step
        values = [weighted_mean(logits.numpy(), weights + k * unit) for k in range(3)]
        one_sided = (-3 * values[0] + 4 * values[1] - values[2]) / (2 * step)
        # Truncation of about 1e-9 of the derivative; rounding 1e-15 / step.
        assert float(gradient[i]) == pytest.approx(one_sided, rel=1e-6, abs=1e-14 / step)
    for i in (0, 1, 3):
        unit = 1e-5 * np.eye(5)[i]
        ahead, behind = (weighted_mean(logits.numpy(), weights + sign * unit) for sign in (1, -1))
        assert float(gradient[i]) == pytest.approx((ahead - behind) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_column_of_weight_zero_far_above_the_others_stays_finite(dtype: torch.dtype) -> None:
    logits = random_logits(4, 4, seed=2).to(dtype)
    logits[:, 1] += 300  # exp(300) overflows float32, and 0 * inf is no number
    logits[3] += 500
    logits.requires_grad_()
    w = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=dtype, requires_grad=True)
    loss = contrastive_loss(logits, w)
    by_logits, by_weight = torch.autograd.grad(loss, (logits, w), create_graph=True)
    (mixed,) = torch.autograd.grad(by_logits.sum(), w)
    kept = logits.detach().double().numpy()[np.ix_([0, 2], [0, 2])]
    # Float32 rounding of logits of size ten; the deleted pairs do not reach the value at all.
    assert float(loss.detach()) == pytest.approx(
        weighted_mean(kept, np.array([1.0, 2.0])), abs=1e-5
    )
    for derivative in (by_logits, by_weight, mixed):
        assert bool(torch.isfinite(derivative).all())
    assert float(by_weight[1].detach()) > 1e20  # adding it would be a catastrophe, and that is said


def test_weights_of_one_are_no_weights() -> None:
    logits = random_logits(5, 5)
    ones = torch.ones(5, dtype=torch.float64)
    np.testing.assert_allclose(
        pair_losses(logits, ones).numpy(), pair_losses(logits).numpy(), atol=EXACT
    )
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
    pairs = rotated_pairs(9)
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


# --- Initial parameters -------------------------------------------------------------------------


def test_initial_parameters_follow_the_seed() -> None:
    first, again, other = (initial_parameters(400, 5, 6, seed=s, device=CPU) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.image_map, other.image_map)
    assert float(first.log_scale.exp()) == pytest.approx(INITIAL_LOGIT_SCALE, rel=1e-6)
    # Unit gain: entries of variance 1 / d_i; 2,400 draws give it to 3 %, four deviations 12 %.
    assert float(first.image_map.square().mean() * 400) == pytest.approx(1, abs=0.12)

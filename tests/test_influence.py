"""Influence against exact retraining and finite differences, and the statistics over clusters.

Positive influence is helpful: leaving the pair out raises the validation loss. The retraining
tests hold that sign, the unit and the scale to models retrained exactly with the pair left out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import linregress, spearmanr

import influence as influence_module
from attribution import cluster_scores as cluster_scores_module
from attribution import sampling as sampling_module
from attribution.cluster_scores import ESTIMATORS, InfluenceConfig, cluster_scores, training_damping
from attribution.curvature import Objective
from attribution.derivatives import batch_loss_influences, loss_gradient
from attribution.inverse import (
    HESSIANS,
    InverseProduct,
    conjugate_gradients,
    inverse_product,
    low_rank_inverse,
)
from attribution.results import InfluenceResult
from attribution.retraining import Data, Retraining
from attribution.sampling import representation_weights, sample_pairs
from attribution.spectrum import lanczos
from engine.local import LocalEngine
from influence import score_clusters
from learner.config import TrainingConfig
from learner.lending import lend
from learner.pairs import PairTensors
from learner.training import Training, train
from tests import reference
from tests.knowing import planted_pairs
from tests.reference import Planted, Problem, planted_problem, rotated_pairs
from tests.rooms import new_room

CPU = torch.device("cpu")


# --- Exact retraining -------------------------------------------------------------------------

RIDGE = 0.3
WRONG = (2, 9, 17)  # training pairs with each other's captions


class Retrained:
    """A dual encoder with a ridge around its start, retrained exactly for any pair weights.

    The training objective is L(theta; w) + ridge / 2 |theta - start|^2 with all n pairs in one
    batch. It is minimised to the rounding of float64, so that retrained models differ by the
    pairs left out and by nothing else.
    """

    def __init__(self, n: int = 32, n_validation: int = 12) -> None:
        rng = np.random.default_rng(0)
        self.n = n
        self.train_rows = np.arange(n)
        self.validation_rows = np.arange(n, n + n_validation)
        images = rng.normal(size=(n + n_validation, 3))
        to_text = rng.normal(size=(3, 4))
        texts = images @ to_text + 0.5 * rng.normal(size=(n + n_validation, 4))
        texts[list(WRONG)] = texts[np.roll(WRONG, 1)]
        # A start that is roughly right: from a wrong one the way leads through maps of length
        # zero, where unit embeddings have no derivative.
        image_map = 2 * np.linalg.qr(rng.normal(size=(3, 3)))[0]
        text_map = np.linalg.pinv(to_text) @ image_map + 0.1 * rng.normal(size=(4, 3))
        self.start = np.concatenate([image_map.ravel(), text_map.ravel(), [np.log(3.0)]])
        self.problem = Problem(images, texts, self.start, 3)
        self.problem = self.problem._replace(theta=self.minimiser(np.ones(n)))
        self.loss = self.validation_loss(self.problem.theta)

    def objective(self, theta: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient, written out apart from model.py; PyTorch only differentiates it."""
        pairs = self.problem.pairs()
        w, start = torch.from_numpy(weights), torch.from_numpy(self.start)
        t = torch.tensor(theta, requires_grad=True)
        f = pairs.images[: self.n] @ t[:9].reshape(3, 3)
        g = pairs.texts[: self.n] @ t[9:21].reshape(4, 3)
        cosines = (f / f.norm(dim=1, keepdim=True)) @ (g / g.norm(dim=1, keepdim=True)).T
        s = t[21].exp() * cosines
        rows, columns = (w * s.exp()).sum(1).log(), (w[:, None] * s.exp()).sum(0).log()
        loss = (w * ((rows + columns) / 2 - s.diagonal())).sum() / w.sum()
        total = loss + RIDGE / 2 * (t - start).square().sum()
        (gradient,) = torch.autograd.grad(total, t)
        return float(total.detach()), gradient.numpy()

    def minimiser(self, weights: np.ndarray) -> np.ndarray:
        result = minimize(
            self.objective,
            self.problem.theta,  # of the full data, once that is known
            args=(weights,),
            jac=True,
            method="L-BFGS-B",
            options={"gtol": 1e-9, "ftol": 0},
        )
        assert np.abs(result.jac).max() < 1e-6
        return np.asarray(result.x)

    def validation_loss(self, theta: np.ndarray) -> float:
        return self.problem.loss(theta, self.validation_rows)

    def left_out(self, pairs: list[int]) -> float:
        """How much the validation loss rises when the model is retrained without these pairs."""
        weights = np.ones(self.n)
        weights[pairs] = 0
        return self.validation_loss(self.minimiser(weights)) - self.loss

    def gradient(self) -> torch.Tensor:
        return loss_gradient(
            self.problem.parameters(), self.problem.pairs(), self.validation_rows[None]
        )

    def exact_hessian(self) -> np.ndarray:
        """Of the training objective, the ridge included, by differences of its gradient."""
        hessian = reference.central_difference(
            lambda theta: self.objective(theta, np.ones(self.n))[1], self.problem.theta
        )
        return np.asarray((hessian + hessian.T) / 2)

    def predicted(self, direction: torch.Tensor) -> np.ndarray:
        """u_i of every training pair."""
        return batch_loss_influences(
            self.problem.parameters(),
            self.problem.pairs(),
            direction,
            self.train_rows,
            np.ones(self.n),
            batch_size=self.n,
            rng=np.random.default_rng(0),
            n_shuffles=1,
        )


@pytest.fixture(scope="module")
def retrained() -> Retrained:
    return Retrained()


@pytest.fixture(scope="module")
def actual(retrained: Retrained) -> np.ndarray:
    return np.array([retrained.left_out([i]) for i in range(retrained.n)])


def exact_direction(retrained: Retrained) -> torch.Tensor:
    hessian = torch.from_numpy(retrained.exact_hessian())
    direction: torch.Tensor = torch.linalg.solve(hessian, retrained.gradient())
    return direction


def test_the_sign_positive_means_leaving_it_out_raises_the_validation_loss(
    retrained: Retrained, actual: np.ndarray
) -> None:
    predicted = retrained.predicted(exact_direction(retrained)) / retrained.n
    most_helpful, most_harmful = int(np.argmax(predicted)), int(np.argmin(predicted))
    assert predicted[most_helpful] > 0
    assert actual[most_helpful] > 0
    assert predicted[most_harmful] < 0
    assert actual[most_harmful] < 0
    assert most_harmful in WRONG


def test_leave_one_out_retraining_agrees_in_sign_unit_and_rank(
    retrained: Retrained, actual: np.ndarray
) -> None:
    predicted = retrained.predicted(exact_direction(retrained)) / retrained.n
    # A pair is a step of 1 / n = 3 %; what first order leaves out is some such per cent of the
    # largest change, so small changes may have either sign.
    assert spearmanr(predicted, actual).statistic > 0.95
    assert linregress(predicted, actual).slope == pytest.approx(1, abs=0.15)
    assert linregress(predicted, actual).rvalue > 0.99
    clear = np.abs(actual) > 0.1 * np.abs(actual).max()
    assert clear.sum() >= 10
    assert np.all(np.sign(predicted[clear]) == np.sign(actual[clear]))


def test_the_gauss_newton_matrix_ranks_leave_one_out_retraining_too(
    retrained: Retrained, actual: np.ndarray
) -> None:
    problem = retrained.problem
    objective = Objective(
        problem.pairs(),
        problem.parameters(),
        retrained.train_rows,
        np.ones(retrained.n),
        retrained.n,
        0.0,
        rng=np.random.default_rng(0),
    )
    direction = conjugate_gradients(
        lambda v: objective.products(v) + RIDGE * v,
        retrained.gradient(),
        preconditioner=lambda v: v,
        tolerance=1e-10,
    )
    predicted = retrained.predicted(direction) / retrained.n
    # Wrong captions leave residuals, which this matrix leaves out: ranks stay, the scale roughly.
    assert spearmanr(predicted, actual).statistic > 0.9
    assert linregress(predicted, actual).slope == pytest.approx(1, abs=0.4)


def test_cluster_scores_agree_with_leave_cluster_out_retraining(retrained: Retrained) -> None:
    clusters = np.arange(retrained.n) % 8
    clusters[list(WRONG)] = 1  # the wrong captions are together
    influence = retrained.predicted(exact_direction(retrained))
    scores, stderr, _ = cluster_scores(influence / retrained.loss, clusters, np.bincount(clusters))
    actual = np.array(
        [retrained.left_out(np.flatnonzero(clusters == k).tolist()) for k in range(8)]
    )
    relative = actual / retrained.loss
    # Leaving out an eighth of the data is no small step: looser than for one pair.
    assert spearmanr(scores, relative).statistic > 0.85
    assert linregress(scores, relative).slope == pytest.approx(1, abs=0.3)
    assert np.argmin(scores) == np.argmin(relative) == 1
    assert scores[1] < 0
    assert relative[1] < 0
    assert np.all(stderr == 0)  # every pair was evaluated


@pytest.mark.parametrize("solver", ["lanczos", "cg"])
def test_ridge_regression_left_out_in_closed_form(solver: str) -> None:
    # L(beta) = 1/n sum_i (x_i . beta - y_i)^2 / 2 + ridge |beta|^2 / 2 with pair i's term deleted.
    rng = np.random.default_rng(4)
    n, d, ridge = 120, 6, 0.1
    x = rng.normal(size=(n, d))
    y = x @ rng.normal(size=d) + rng.normal(size=n)
    x_val = rng.normal(size=(30, d))
    y_val = x_val @ rng.normal(size=d)
    beta = np.linalg.solve(x.T @ x / n + ridge * np.eye(d), x.T @ y / n)
    hessian = torch.from_numpy(x.T @ x / n)
    g_val = torch.from_numpy(x_val.T @ (x_val @ beta - y_val) / 30)
    if solver == "lanczos":
        spectrum = lanczos(
            lambda v: hessian @ v, d, d, device=CPU, rng=rng, dtype=torch.float64, tolerance=1e-12
        )
        direction = low_rank_inverse(spectrum, g_val, ridge, rank=d)
    else:
        direction = conjugate_gradients(
            lambda v: v @ hessian + ridge * v, g_val, preconditioner=lambda v: v, tolerance=1e-12
        )
    gradients = x * (x @ beta - y)[:, None]
    influence = gradients @ direction.numpy()  # u_i

    retrained = []
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        matrix = x[rest].T @ x[rest] / n + ridge * np.eye(d)
        retrained.append(np.linalg.solve(matrix, x[rest].T @ y[rest] / n))
    change = np.array(retrained) - beta
    # Sherman and Morrison: the exact step is the first-order one over 1 - leverage.
    inverse = np.linalg.inv(x.T @ x / n + ridge * np.eye(d))
    leverage = np.einsum("ni,ij,nj->n", x, inverse, x) / n
    np.testing.assert_allclose(
        influence / n / (1 - leverage), change @ g_val.numpy(), rtol=1e-9, atol=1e-12
    )
    losses = ((np.array(retrained) @ x_val.T - y_val) ** 2).mean(axis=1) / 2
    rise = losses - ((x_val @ beta - y_val) ** 2).mean() / 2
    assert spearmanr(influence, rise).statistic > 0.95
    # First order leaves out a leverage of 5 % on average and the curvature of the loss.
    assert linregress(influence / n, rise).slope == pytest.approx(1, abs=0.15)


def test_ridge_regression_without_whole_clusters_in_closed_form() -> None:
    # As above, clusters of 10 of 600 rows deleted; the last two hold wrong targets.
    rng = np.random.default_rng(5)
    n, d, ridge = 600, 6, 0.1
    clusters = np.arange(n) % 60
    x = rng.normal(size=(n, d)) + 0.7 * rng.normal(size=(60, d))[clusters]
    truth = rng.normal(size=d)
    y = x @ truth + rng.normal(size=n) + 0.5 * rng.normal(size=60)[clusters]
    y[clusters >= 58] += 3
    x_val = rng.normal(size=(40, d))
    y_val = x_val @ truth
    matrix = x.T @ x / n + ridge * np.eye(d)
    beta = np.linalg.solve(matrix, x.T @ y / n)
    direction = conjugate_gradients(
        operator_of(matrix),
        torch.from_numpy(x_val.T @ (x_val @ beta - y_val) / 40),
        preconditioner=torch.clone,
        tolerance=1e-12,
    )
    loss = float(((x_val @ beta - y_val) ** 2).mean() / 2)
    influence = (x * (x @ beta - y)[:, None]) @ direction.numpy()
    scores = cluster_scores(influence / loss, clusters, np.bincount(clusters)).scores

    rise = []
    for k in range(60):
        rest = clusters != k
        without = x[rest].T @ x[rest] / n + ridge * np.eye(d)
        left = np.linalg.solve(without, x[rest].T @ y[rest] / n)
        rise.append(((x_val @ left - y_val) ** 2).mean() / 2 / loss - 1)
    # A cluster is a step of 1 / 60 along which the loss bends.
    assert spearmanr(scores, rise).statistic > 0.95
    assert linregress(scores, rise).slope == pytest.approx(1, abs=0.15)
    assert linregress(scores, rise).rvalue > 0.98
    assert np.max(np.abs(rise)) > 0.05


def operator_of(matrix: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
    tensor = torch.from_numpy(matrix)
    return lambda v: v @ tensor


# --- Scores of clusters -----------------------------------------------------------------------


def test_cluster_scores_by_hand() -> None:
    # Cluster 0: 1, 3, 5 of 6 pairs; cluster 1: 2, 4 of 4; cluster 2: -1, -1 of 2, evaluated whole.
    influence = np.array([1, 2, 3, 4, 5, -1, -1], dtype=np.float64)
    clusters = np.array([0, 1, 0, 1, 0, 2, 2])
    scores, stderr, within = cluster_scores(influence, clusters, np.array([6, 4, 2]))
    np.testing.assert_allclose(scores, [6 / 12 * 3, 4 / 12 * 3, 2 / 12 * -1], rtol=1e-14)
    pooled = (8 + 2 + 0) / (2 + 1 + 1)  # squares within clusters over their degrees of freedom
    first = (8 + 4 * pooled) / (2 + 4)  # shrunk as if by four further pairs
    second = (2 + 4 * pooled) / (1 + 4)
    np.testing.assert_allclose(within, [first, second, 4 * pooled / (1 + 4)], rtol=1e-14)
    expected = [
        6 / 12 * np.sqrt(first / 3 * (1 - 3 / 6)),  # finite population of 6
        4 / 12 * np.sqrt(second / 2 * (1 - 2 / 4)),
        0,
    ]
    np.testing.assert_allclose(stderr, expected, rtol=1e-14)


def test_a_cluster_without_an_evaluated_pair_has_the_mean_and_the_spread_of_all() -> None:
    influence, clusters = np.array([1.0, 3.0, 5.0, 5.0]), np.array([0, 0, 2, 2])
    scores, stderr, _ = cluster_scores(influence, clusters, np.array([2, 6, 2]))
    np.testing.assert_allclose(scores, [0.2 * 2, 0.6 * 3.5, 0.2 * 5], rtol=1e-14)
    spread = influence.var() + (2 + 0) / (1 + 1)  # and the variance within clusters
    np.testing.assert_allclose(stderr, [0, 0.6 * np.sqrt(spread), 0], rtol=1e-14, atol=1e-14)


def test_one_pair_a_cluster_takes_the_spread_between_clusters() -> None:
    influence = np.array([1.0, 2.0, 6.0])
    scores, stderr, within = cluster_scores(influence, np.arange(3), np.array([2, 4, 4]))
    variance = 7.0  # of 1, 2, 6: squares 4 + 1 + 9 over two
    np.testing.assert_allclose(within, variance, rtol=1e-14)
    np.testing.assert_allclose(scores, [0.2 * 1, 0.4 * 2, 0.4 * 6], rtol=1e-14)
    np.testing.assert_allclose(
        stderr,
        [
            0.2 * np.sqrt(variance / 2),
            0.4 * np.sqrt(variance * 3 / 4),
            0.4 * np.sqrt(variance * 3 / 4),
        ],
        rtol=1e-14,
    )


def test_a_single_pair_has_a_score_and_no_known_error() -> None:
    scores, stderr, within = cluster_scores(np.array([2.0]), np.array([0]), np.array([5]))
    assert (scores.tolist(), stderr.tolist(), within.tolist()) == ([2.0], [0.0], [0.0])


@pytest.mark.parametrize("n_samples", [3, 8])
def test_scores_are_unbiased_and_intervals_cover(n_samples: int) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(12, 60, size=25)
    clusters = np.repeat(np.arange(25), sizes)
    influence = rng.normal(size=25)[clusters] + rng.normal(size=len(clusters))
    truth = np.bincount(clusters, influence) / sizes.sum()
    draws, covered = [], []
    for _ in range(300):
        chosen = sample_pairs(clusters, n_samples, rng=rng)
        scores, stderr, _ = cluster_scores(influence[chosen], clusters[chosen], sizes)
        draws.append(scores)
        covered.append(np.abs(scores - truth) < 1.96 * stderr)
    deviations = np.std(draws, axis=0) / np.sqrt(300)
    # Four standard errors over 25 clusters: one in 600 would fail by chance.
    assert np.all(np.abs(np.mean(draws, axis=0) - truth) < 4 * deviations)
    # The shrunk variance is an estimate: about 95 %, a little off with three pairs.
    assert 0.92 < np.mean(covered) < 0.98


# --- End to end -------------------------------------------------------------------------------

TRAINING = TrainingConfig(
    embed_dim=6, num_epochs=8, batch_size=16, learning_rate=3e-2, weight_decay=1e-4
)
SCHEDULE = 8 * 6  # epochs of 96 // 16 batches
# Of weights, in trainings by hand. The loss of a run of Adam is far from straight: with steps of
# 1 % the slopes below come out up to 0.1 off, from 0.2 % on they agree.
STEP = 1e-3
COMBINATIONS = [("metagradient", "lanczos")] + [
    (estimator, hessian) for estimator in ("step", "first_order") for hessian in HESSIANS
]


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_problem(seed=0)


def estimate(planted: Planted, *, seed: int = 0, **changes: Any) -> InfluenceResult:
    """By the metagradient's first order alone, unless told otherwise."""
    settings: dict[str, Any] = {
        "removal_folds": 0,
        "samples_per_cluster": 8,
        "rank": 5,
    }
    clusters = changes.pop("clusters", planted.clusters)
    training, engine = changes.pop("training", TRAINING), changes.pop("engine", None)
    return score_clusters(
        planted_pairs(planted, clusters, "term"),
        InfluenceConfig(**{"influence_seeds": 1, "removal_folds": 5} | settings | changes),
        training,
        new_room(engine),
        rng=np.random.default_rng(seed),
    )


@pytest.fixture(scope="module")
def plain(planted: Planted) -> InfluenceResult:
    return estimate(planted)


@pytest.fixture(scope="module")
def sampled(planted: Planted) -> InfluenceResult:
    return estimate(planted, estimator="first_order")


def losses_of_retraining(
    planted: Planted, result: InfluenceResult, weightings: list[np.ndarray], seeds: list[int]
) -> np.ndarray:
    """Validation losses after the reference training under these weights."""
    n = len(planted.clusters)
    data = Data(  # every pair a cluster of its own, to be weighted as one likes
        *(planted.pairs, np.arange(n), planted.validation, result.validation_batches, np.ones(n))
    )
    retraining = Retraining(TRAINING, result.reference_schedule, result.reference_steps)
    lent = lend(new_room(), "pairs", data, CPU)
    return np.asarray(retraining.losses(lent, np.stack(weightings), seeds, "retraining"))


def test_the_combinations_are_all_there_are() -> None:
    assert {estimator for estimator, _ in COMBINATIONS} == set(ESTIMATORS)


@pytest.mark.parametrize(("estimator", "hessian"), COMBINATIONS)
def test_wrong_captions_have_a_negative_score(
    planted: Planted, estimator: str, hessian: str
) -> None:
    result = estimate(planted, estimator=estimator, hessian=hessian)
    scores = result.influence_scores
    assert np.all(scores[:3] > 0)  # leaving them out raises the validation loss
    assert scores[3] < 0  # leaving wrong captions out lowers it
    assert abs(scores[3]) > 0.02  # by more than 2 per cent
    assert result.estimator == estimator
    assert result.eigenvalue_residuals.shape == result.eigenvalues.shape
    if estimator == "metagradient":
        assert result.eigenvalues.size == 0
        assert result.curvature_quality == {}
    else:
        assert result.eigenvalues.dtype == np.float64
        assert result.eigenvalues.max() > 0
        assert result.curvature_quality["hessian"] == hessian
        assert result.curvature_quality["damping"] > 0
        assert 0 < result.curvature_quality["cosine_to_exact_solution"] <= 1 + 1e-6


def test_wrong_captions_are_clearly_harmful_with_every_default(planted: Planted) -> None:
    result = score_clusters(
        planted_pairs(planted, planted.clusters, "term"),
        InfluenceConfig(influence_seeds=1, removal_folds=5),
        TRAINING,
        new_room(),
        rng=np.random.default_rng(0),
    )
    assert result.estimator == "metagradient"
    assert int(np.argmin(result.influence_scores)) == 3
    assert result.influence_scores[3] + 2 * result.influence_stderr[3] < 0
    assert np.abs(result.removal_corrections).max() > 0


def test_the_metagradient_is_the_slope_of_real_retraining(planted: Planted) -> None:
    # The final loss alone, as retraining measures it.
    result = estimate(planted, influence_checkpoints=1)
    weightings = [
        1 + change * (planted.clusters == k) for k in range(4) for change in (STEP, -STEP)
    ]
    seeds = [int(result.reference_seeds[0])] * 8
    losses = losses_of_retraining(planted, result, weightings, seeds).mean(axis=1)
    slopes = (losses[1::2] - losses[0::2]) / (2 * STEP) / result.validation_loss  # leaving out
    assert np.abs(slopes).min() > 0.02
    # Float32: 1e-6 of a loss of size one over twice the step, two deviations.
    np.testing.assert_allclose(result.influence_scores, slopes, rtol=0.01, atol=1e-3)


def test_first_order_influences_sum_to_zero(planted: Planted, plain: InfluenceResult) -> None:
    # Weighting all pairs alike changes nothing. Float32 sums over all steps.
    size = float(np.abs(plain.first_order_influence).sum())
    assert abs(float(plain.first_order_influence.sum())) < 1e-5 * size
    assert abs(float(plain.influence_scores.sum())) < 1e-5 * np.abs(plain.influence_scores).sum()


def test_the_result_says_how_to_repeat_the_reference_training(
    planted: Planted, plain: InfluenceResult
) -> None:
    assert plain.reference_schedule == SCHEDULE
    assert 0 < plain.reference_steps <= plain.reference_schedule
    assert plain.validation_batches.shape == (16, 16)  # four shufflings of 64 pairs
    assert set(np.bincount(plain.validation_batches.ravel()).tolist()) == {4}
    seed = int(plain.reference_seeds[0])
    losses = losses_of_retraining(planted, plain, [np.ones(96)], [seed])
    # The same training to the bit; the mean runs over pairs instead of batches, in float32.
    assert float(losses.mean()) == pytest.approx(plain.validation_loss, rel=1e-6)
    run = Training(planted.pairs, TRAINING, n_steps=SCHEDULE, seed=seed, sample_weights=np.ones(96))
    run.advance_to(plain.reference_steps)
    for ours, theirs in zip(plain.reference(CPU), run.parameters, strict=True):
        assert torch.equal(ours, theirs)
    assert plain.quality()["validation_loss"] == plain.validation_loss
    assert plain.quality()["n_evaluated"] == 96
    assert plain.quality()["reference_steps"] == plain.reference_steps


def seen_by(result: InfluenceResult, pairs: PairTensors, batch_size: int) -> np.ndarray:
    """Which pairs were in a batch of one of the reference trainings, one run again a seed."""
    training = dataclasses.replace(TRAINING, batch_size=batch_size)
    held = np.zeros(pairs.n_pairs, dtype=bool)
    for seed in result.reference_seeds.tolist():
        run = Training(
            pairs,
            training,
            n_steps=result.reference_schedule,
            seed=seed,
            carry_over=batch_size > TRAINING.batch_size,
        )
        held[run.batches[: result.reference_steps].ravel()] = True
    return held


def test_batches_grow_where_few_steps_would_leave_pairs_out(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(influence_module, "early_stop", lambda *_: 5)
    result = estimate(planted, max_reference_steps=5)  # 96 pairs: five steps hold 80 of them
    assert result.reference_batch_size == 20
    assert result.reference_schedule == result.reference_steps == 5
    assert result.first_order_evaluated.all()
    assert result.reference_rows is None
    assert np.count_nonzero(result.first_order_influence) == 96
    assert "96 of 96 pairs: 5 steps of 20 pairs" in caplog.text
    assert all(c["pairs_evaluated"] == c["size"] for c in result.clusters)


def test_pairs_that_no_batch_held_are_not_evaluated(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(influence_module, "early_stop", lambda *_: 3)
    result = estimate(planted, max_reference_steps=6)
    held = seen_by(result, planted.pairs, 16)
    assert held.sum() == 48
    np.testing.assert_array_equal(result.first_order_evaluated, held)
    assert "48 of 96 pairs: 3 steps of 16 pairs" in caplog.text
    for k in range(4):
        inside = planted.clusters == k
        mean = result.first_order_influence[inside & held].mean()
        np.testing.assert_allclose(result.first_order_influence[inside & ~held], mean, rtol=1e-12)
        entry = next(c for c in result.clusters if c["cluster"] == k)
        assert entry["pairs_evaluated"] == (inside & held).sum() < entry["size"]
    assert result.quality()["n_evaluated"] == 48
    assert np.all(result.influence_stderr > 0)  # of the pairs that are not evaluated
    # Weighting all pairs alike changes nothing, whichever of them were seen.
    size = np.abs(result.first_order_influence[held]).sum()
    assert abs(result.first_order_influence[held].sum()) < 1e-5 * size


def test_three_models_see_more_pairs_than_one(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influence_module, "early_stop", lambda *_: 3)
    result = estimate(planted, max_reference_steps=6, influence_seeds=3)
    held = seen_by(result, planted.pairs, 16)
    assert 48 < held.sum() <= 96
    np.testing.assert_array_equal(result.first_order_evaluated, held)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_sample_stands_for_pairs_that_no_batch_can_hold(
    planted: Planted,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    estimator: str,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(sampling_module, "MOST_BATCH", 16)
    monkeypatch.setattr(influence_module, "early_stop", lambda *_: 4)
    result = estimate(planted, max_reference_steps=4, estimator=estimator)
    rows = result.reference_rows
    assert rows is not None
    assert len(rows) == 64
    assert np.all(np.bincount(planted.clusters[rows]) >= 5)
    evaluated = np.flatnonzero(result.first_order_evaluated)
    assert set(evaluated.tolist()) <= set(rows.tolist())
    if estimator == "metagradient":
        np.testing.assert_array_equal(evaluated, rows)
        assert "64 of 96 pairs, a random sample of every cluster: 4 steps" in caplog.text
        assert np.all(result.influence_stderr > 0)
    assert np.isfinite(result.influence_scores).all()
    # The reference model has trained on nothing else.
    run = Training(
        planted.pairs.subset(rows),
        TRAINING,
        n_steps=4,
        seed=int(result.reference_seeds[0]),
        sample_weights=representation_weights(planted.clusters, rows),
    )
    run.advance_to(4)
    assert torch.equal(result.reference(CPU).image_map, run.parameters.image_map)


def test_the_validation_loss_by_another_channel(planted: Planted, plain: InfluenceResult) -> None:
    theta = torch.cat([p.reshape(-1) for p in plain.reference(CPU)]).double().numpy()
    images, texts = (side.double().numpy() for side in planted.validation)
    problem = Problem(images, texts, theta, 6)
    losses = [problem.loss(theta, rows) for rows in plain.validation_batches]
    # Float32 against float64.
    assert plain.validation_loss == pytest.approx(float(np.mean(losses)), rel=1e-5)


def test_the_reference_model_is_the_one_of_lowest_validation_loss() -> None:
    # Every image has a right and a wrong caption: learning both soon spoils the model.
    right = rotated_pairs(32)
    wrong = right.texts[torch.arange(32).roll(1)]
    clusters = np.repeat([0, 1], 32)
    pairs = PairTensors(right.images.repeat(2, 1), torch.cat([right.texts, wrong]))
    planted = Planted(pairs, rotated_pairs(32, seed=7), clusters, clusters == 1)
    training = dataclasses.replace(TRAINING, embed_dim=8, num_epochs=20, learning_rate=0.1)
    result = estimate(planted, training=training, estimator="first_order", seed=1)
    assert result.reference_schedule == 20 * 4
    _, history = train(
        pairs,
        training,
        n_steps=20 * 4,
        seed=int(result.reference_seeds[0]),
        sample_weights=np.ones(64),
        validation=(planted.validation, result.validation_batches[:2]),  # the first shuffling
        n_reports=cluster_scores_module.REFERENCE_REPORTS,
    )
    looked_at = history.step.index(result.reference_steps)
    seen = history.validation_loss[: looked_at + cluster_scores_module.PATIENCE + 1]
    assert np.argmin(seen) == looked_at
    assert 0 < looked_at < len(history.step) - 1
    assert seen[-1] > 1.02 * seen[looked_at]  # where the search gave up


# --- Sampled pairs ----------------------------------------------------------------------------


def test_the_result_says_what_was_evaluated_and_infers_the_rest(
    planted: Planted, sampled: InfluenceResult
) -> None:
    evaluated, influence = sampled.first_order_evaluated, sampled.first_order_influence
    assert np.bincount(planted.clusters[evaluated]).tolist() == [8, 8, 8, 8]
    for k in range(4):
        members = planted.clusters == k
        mean = influence[members & evaluated].mean()
        # Means times the loss over the loss again: rounding of float64.
        np.testing.assert_allclose(influence[members & ~evaluated], mean, rtol=1e-12)
        expected = 24 / 96 * mean / sampled.validation_loss
        assert sampled.influence_scores[k] == pytest.approx(expected, rel=1e-12)
    assert len(set(influence[evaluated])) == 32


def test_the_other_estimators_evaluate_every_pair(planted: Planted, plain: InfluenceResult) -> None:
    for result in (plain, estimate(planted, estimator="step")):
        assert result.first_order_evaluated.all()
        assert len(set(result.first_order_influence)) == 96


def test_intervals_of_sampled_pairs_hold_the_value_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = planted_problem(seed=0, n_clusters=8)
    training = dataclasses.replace(TRAINING, learning_rate=2e-2)
    monkeypatch.setattr(
        influence_module, "early_stop", lambda *_: 50
    )  # this and the next save time
    inverses: list[InverseProduct] = []

    def inverse_once(*args: Any, **options: Any) -> InverseProduct:
        if not inverses:
            inverses.append(inverse_product(*args, **options))
        return inverses[0]

    monkeypatch.setattr(cluster_scores_module, "inverse_product", inverse_once)

    def drawn(sampling_seed: int, n_samples: int) -> InfluenceResult:
        """One reference training whatever is drawn."""

        def draw(clusters: np.ndarray, n: int, *, rng: object) -> np.ndarray:
            return sample_pairs(clusters, n, rng=np.random.default_rng(sampling_seed))

        monkeypatch.setattr(influence_module, "sample_pairs", draw)
        return estimate(
            planted, training=training, estimator="first_order", samples_per_cluster=n_samples
        )

    every = drawn(0, 1000)
    assert every.first_order_evaluated.all()
    distances = []
    for sampling_seed in range(10):
        result = drawn(sampling_seed, 8)
        assert result.first_order_evaluated.sum() == 64
        np.testing.assert_array_equal(result.reference_image_map, every.reference_image_map)
        errors = result.influence_scores - every.influence_scores
        distances.append(errors / result.influence_stderr)
    # 80 intervals: 95 % of them, less two standard errors of 2.5 %.
    assert np.mean(np.abs(distances) < 1.96) >= 0.9
    # And they are no wider than they need be: a deviation of one, roughly.
    assert 0.6 < np.std(distances) < 1.3


def test_the_damping_given_is_used(planted: Planted) -> None:
    result = estimate(planted, estimator="first_order", damping=0.5)
    assert result.curvature_quality["damping"] == 0.5


def test_the_damping_comes_from_the_reference_training(
    planted: Planted, sampled: InfluenceResult
) -> None:
    run = Training(
        planted.pairs,
        TRAINING,
        n_steps=SCHEDULE,
        seed=int(sampled.reference_seeds[0]),
        sample_weights=np.ones(96),
    )
    run.advance_to(sampled.reference_steps)
    squared = np.concatenate([v.double().numpy().ravel() for v in run.state().second_moment])
    rates = 3e-2 * (1 + np.cos(np.pi * np.arange(sampled.reference_steps) / SCHEDULE)) / 2
    typical = np.sqrt(squared.mean() / (1 - 0.999**sampled.reference_steps))
    expected = cluster_scores_module.DAMPING_MULTIPLE * typical / rates.sum()
    assert training_damping(run) == pytest.approx(expected, rel=1e-5)  # float32 mean
    assert sampled.curvature_quality["damping"] == pytest.approx(expected, rel=1e-5)


# --- The finite-removal correction ------------------------------------------------------------


def test_without_folds_nothing_is_corrected(
    plain: InfluenceResult, sampled: InfluenceResult
) -> None:
    for result in (plain, sampled):
        np.testing.assert_array_equal(result.removal_corrections, np.zeros(4))
        np.testing.assert_array_equal(
            result.influence_scores, result.first_order_scores.mean(axis=0)
        )
        assert result.quality()["removal_correction"] is False


def test_corrections_add_up_to_what_retraining_without_the_folds_costs(
    planted: Planted, plain: InfluenceResult
) -> None:
    result = estimate(planted, removal_folds=4)  # every cluster a fold of its own
    np.testing.assert_array_equal(result.first_order_scores, plain.first_order_scores)
    np.testing.assert_allclose(
        result.influence_scores,
        result.first_order_scores[0] + result.removal_corrections,
        rtol=1e-12,
    )
    assert np.all(result.influence_stderr >= plain.influence_stderr)
    weightings = [np.ones(96), *(1.0 * (planted.clusters != k) for k in range(4))]
    seeds = [int(result.reference_seeds[0])] * 5
    losses = losses_of_retraining(planted, result, weightings, seeds).mean(axis=1)
    total = float((losses[1:] - losses[0]).sum())
    # Float32 losses of size one.
    assert result.removal_corrections.sum() * result.validation_loss == pytest.approx(
        total, abs=1e-5
    )
    assert abs(total) > 1e-3


def test_folds_beyond_the_clusters_are_said(
    planted: Planted, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "attribution.cluster_scores"):
        result = estimate(planted, removal_folds=1000)
        told = [r.getMessage() for r in caplog.records if "--removal_folds" in r.getMessage()]
    assert told == ["--removal_folds 1,000: there are 4 clusters, so 4 folds of one each are used"]
    np.testing.assert_array_equal(
        result.influence_scores, estimate(planted, removal_folds=4).influence_scores
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "attribution.cluster_scores"):
        one = estimate(planted, removal_folds=2, clusters=np.zeros(96, dtype=np.int64))
    assert "--removal_folds 2: there is one cluster, and a fold of it would be all" in caplog.text
    assert one.removal_corrections.tolist() == [0.0]


def test_the_correction_brings_scores_nearer_to_real_removal() -> None:
    errors = []
    for seed in range(3):
        # Two clusters a fold, so that their shares of it are inferred.
        planted = planted_problem(seed=seed, n_clusters=8, per_cluster=12)
        result = estimate(planted, removal_folds=4)
        weightings = [np.ones(96), *(1.0 * (planted.clusters != k) for k in range(8))]
        seeds = [int(result.reference_seeds[0])] * 9
        losses = losses_of_retraining(planted, result, weightings, seeds).mean(axis=1)
        real = losses[1:] / losses[0] - 1
        assert np.argmin(real) == np.argmin(result.influence_scores) == 7  # the wrong captions
        scores = (result.influence_scores, result.first_order_scores[0])
        errors.append([np.abs(s - real).mean() for s in scores])
    corrected, first_order = np.mean(errors, axis=0)
    assert corrected < 0.5 * first_order


def test_validation_pairs_that_no_batch_holds_do_not_spoil_the_correction() -> None:
    # 31 pairs in batches of 16: every shuffling leaves 15 of them out, and some are always out.
    planted = planted_problem(seed=0, n_validation=31)
    result = estimate(planted, removal_folds=4)
    assert len(np.unique(result.validation_batches)) < 31
    assert np.all(np.isfinite(result.removal_corrections))
    assert np.all(np.isfinite(result.influence_scores))
    assert np.all(np.isfinite(result.influence_stderr))


# --- Several reference models -----------------------------------------------------------------


def test_an_ensemble_averages_the_scores_of_its_models(
    planted: Planted, plain: InfluenceResult
) -> None:
    result = estimate(planted, influence_seeds=3)
    seeds = [int(seed) for seed in result.reference_seeds]
    assert len(set(seeds)) == 3
    assert result.first_order_scores.shape == (3, 4)
    np.testing.assert_allclose(
        result.influence_scores, result.first_order_scores.mean(axis=0), rtol=1e-12
    )
    assert result.first_order_scores.std(axis=0).min() > 0
    # The loss is the mean of theirs.
    losses = losses_of_retraining(planted, result, [np.ones(96)] * 3, seeds).mean(axis=1)
    assert result.validation_loss == pytest.approx(float(losses.mean()), rel=1e-6)  # float32
    # The first of them is the one that stands alone without an ensemble, in nats.
    assert seeds[0] == int(plain.reference_seeds[0])
    np.testing.assert_allclose(
        result.first_order_scores[0] * result.validation_loss,
        plain.first_order_scores[0] * plain.validation_loss,
        rtol=1e-12,
    )
    for k in range(4):
        mean = result.first_order_influence[planted.clusters == k].mean()
        expected = 24 / 96 * mean / result.validation_loss
        assert result.influence_scores[k] == pytest.approx(expected, rel=1e-9)


def test_the_standard_error_of_an_ensemble_by_hand(planted: Planted) -> None:
    result = estimate(planted, influence_seeds=3)
    between = result.first_order_scores.var(axis=0, ddof=1)
    shrunk = (2 * between + 4 * between.mean()) / (2 + 4)
    # Every pair is evaluated: the models alone differ.
    np.testing.assert_allclose(result.influence_stderr, np.sqrt(shrunk / 3), rtol=1e-9)


# --- What must not matter ---------------------------------------------------------------------


def same_bits(first: InfluenceResult, second: InfluenceResult) -> bool:
    values = [(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first)]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in values)


def test_side_by_side_is_one_after_the_other_to_the_bit(
    planted: Planted,
) -> None:
    found = [
        estimate(planted, influence_seeds=3, removal_folds=2, engine=LocalEngine(n_workers))
        for n_workers in (1, 2, 16)
    ]
    assert found[0].removal_corrections.any()
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


def test_the_cap_shortens_the_schedule_and_nothing_that_is_shorter(
    planted: Planted, plain: InfluenceResult
) -> None:
    assert same_bits(plain, estimate(planted, max_reference_steps=SCHEDULE))
    capped = estimate(planted, max_reference_steps=20)
    assert capped.reference_schedule == 20
    assert 0 < capped.reference_steps <= 20
    # A schedule of 20 steps whose learning rates fall to zero, not the first 20 of more.
    seed = int(capped.reference_seeds[0])
    run = Training(planted.pairs, TRAINING, n_steps=20, seed=seed, sample_weights=np.ones(96))
    run.advance_to(capped.reference_steps)
    for ours, theirs in zip(capped.reference(CPU), run.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_the_default_cap_leaves_the_defaults_on_5000_pairs_alone() -> None:
    training = TrainingConfig()
    schedule = training.num_epochs * (5000 // training.batch_size)
    assert schedule <= InfluenceConfig().max_reference_steps


@pytest.mark.parametrize(
    ("estimator", "folds"), [("metagradient", 4), ("step", 0), ("first_order", 0)]
)
def test_relabelling_the_clusters_permutes_the_scores(
    planted: Planted, estimator: str, folds: int
) -> None:
    renamed = np.array([2, 0, 3, 1])
    before = estimate(planted, estimator=estimator, removal_folds=folds)
    after = estimate(
        planted, estimator=estimator, removal_folds=folds, clusters=renamed[planted.clusters]
    )
    # The same pairs are drawn; sums over clusters run in another order, in float32 for the
    # centres of clusters and for the gradients of steps that are solved together.
    rtol, atol = (1e-12, 0) if estimator != "step" else (1e-3, 1e-5)
    for name in ("influence_scores", "influence_stderr", "removal_corrections"):
        ours, theirs = getattr(after, name)[renamed], getattr(before, name)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)
    np.testing.assert_allclose(
        after.first_order_influence, before.first_order_influence, rtol=1e-12
    )
    np.testing.assert_array_equal(after.first_order_evaluated, before.first_order_evaluated)


@pytest.mark.parametrize("estimator", ["metagradient", "first_order"])
def test_the_seed_decides(planted: Planted, estimator: str) -> None:
    first, again, other = (
        estimate(planted, estimator=estimator, removal_folds=2, seed=s) for s in (1, 1, 2)
    )
    assert same_bits(first, again)
    assert not np.array_equal(first.influence_scores, other.influence_scores)


@pytest.mark.parametrize("estimator", ["metagradient", "first_order"])
def test_the_readable_scores_are_sorted_and_say_what_they_mean(
    plain: InfluenceResult, sampled: InfluenceResult, estimator: str
) -> None:
    result = plain if estimator == "metagradient" else sampled
    entries = result.clusters
    assert [e["cluster"] for e in entries] == np.argsort(result.influence_scores).tolist()
    worst = entries[0]
    assert worst["terms"] == ["term3"]
    assert worst["size"] == 24
    assert worst["pairs_evaluated"] == (24 if estimator == "metagradient" else 8)
    percent = 100 * result.influence_scores[3]
    assert worst["influence_percent"] == pytest.approx(percent, abs=1e-5)
    assert worst["stderr_percent"] == pytest.approx(100 * result.influence_stderr[3], abs=1e-5)
    assert worst["meaning"].startswith(
        f"leaving it out lowers the validation loss by {-percent:.3f} %"
    )
    assert entries[-1]["meaning"].startswith("leaving it out raises the validation loss by ")

"""Influence against exact retraining and finite differences, and the statistics over clusters.

Positive influence is helpful: leaving the pair out raises the validation loss. The retraining
tests hold that sign, the unit and the scale to models retrained exactly with the pair left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import linregress, spearmanr

import influence
from curvature import (
    HESSIANS,
    Objective,
    conjugate_gradients,
    lanczos,
    loss_gradient,
    low_rank_inverse,
)
from influence import (
    InfluenceConfig,
    InfluenceResult,
    cluster_scores,
    estimate_influence,
    own_loss_influences,
    pair_influences,
    representation_weights,
    sample_pairs,
)
from model import PairTensors, Parameters, TrainingConfig
from settings import InputError
from tests import reference
from tests.reference import Planted, Problem, planted_problem, random_problem

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
        return pair_influences(
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
        lambda v: objective.gauss_newton_product(v) + RIDGE * v,
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
            lambda v: hessian @ v + ridge * v, g_val, preconditioner=lambda v: v, tolerance=1e-12
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
    influence = pair_influences(
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
    influence = pair_influences(
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
    influence = pair_influences(
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
        return pair_influences(
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


# --- Which pairs ------------------------------------------------------------------------------


def test_sampled_pairs_are_so_many_of_every_cluster() -> None:
    clusters = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [30, 3, 12]))
    chosen = sample_pairs(clusters, 5, 1.0, rng=np.random.default_rng(1))
    assert chosen.dtype == np.int64
    assert np.bincount(clusters[chosen]).tolist() == [5, 3, 5]
    assert np.all(np.diff(chosen) > 0)


@pytest.mark.parametrize(
    ("budget", "counts"),
    [(1.0, [9, 3, 9]), (0.4, [7, 3, 7]), (0.25, [4, 3, 4]), (0.1, [1, 1, 1]), (3 / 45, [1, 1, 1])],
)
def test_the_budget_caps_the_pairs_evenly(budget: float, counts: list[int]) -> None:
    clusters = np.repeat([0, 1, 2], [30, 3, 12])
    chosen = sample_pairs(clusters, 9, budget, rng=np.random.default_rng(1))
    assert np.bincount(clusters[chosen]).tolist() == counts
    assert len(chosen) <= budget * 45 + 1e-9


def test_a_budget_below_one_pair_a_cluster_is_an_input_error() -> None:
    clusters = np.repeat([0, 1, 2], [30, 3, 12])
    with pytest.raises(
        InputError,
        match=r"--influence_budget 0\.05 of 45 training pairs allows 2 influences, fewer than one "
        r"for each of 3 clusters; raise it or lower --n_clusters",
    ):
        sample_pairs(clusters, 5, 0.05, rng=np.random.default_rng(0))


def test_every_pair_of_a_cluster_is_as_likely() -> None:
    clusters = np.repeat([0, 1], [8, 4])
    rng = np.random.default_rng(0)
    counts = np.zeros(12)
    for _ in range(2000):
        counts[sample_pairs(clusters, 2, 1.0, rng=rng)] += 1
    # Binomial shares of 1/4 and 1/2 over 2,000 draws: deviations below 0.0112, four of them.
    np.testing.assert_allclose(counts / 2000, np.r_[[0.25] * 8, [0.5] * 4], atol=0.045)


def test_representation_weights_by_hand() -> None:
    clusters = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    evaluated = np.array([0, 1, 4, 6])
    # Two pairs stand for 2 each, one for 2, one for 3: a mean of 9 / 4.
    expected = np.array([2, 2, 2, 3]) / 2.25
    np.testing.assert_allclose(representation_weights(clusters, evaluated), expected, rtol=1e-14)


# --- Scores of clusters -----------------------------------------------------------------------


def test_cluster_scores_by_hand() -> None:
    # Cluster 0: 1, 3, 5 of 6 pairs; cluster 1: 2, 4 of 4; cluster 2: -1, -1 of 2, evaluated whole.
    influence = np.array([1, 2, 3, 4, 5, -1, -1], dtype=np.float64)
    clusters = np.array([0, 1, 0, 1, 0, 2, 2])
    scores, stderr, means = cluster_scores(influence, clusters, np.array([6, 4, 2]))
    assert means.tolist() == [3, 3, -1]
    np.testing.assert_allclose(scores, [6 / 12 * 3, 4 / 12 * 3, 2 / 12 * -1], rtol=1e-14)
    pooled = (8 + 2 + 0) / (2 + 1 + 1)  # squares within clusters over their degrees of freedom
    first = (8 + 4 * pooled) / (2 + 4)  # shrunk as if by four further pairs
    second = (2 + 4 * pooled) / (1 + 4)
    expected = [
        6 / 12 * np.sqrt(first / 3 * (1 - 3 / 6)),  # finite population of 6
        4 / 12 * np.sqrt(second / 2 * (1 - 2 / 4)),
        0,
    ]
    np.testing.assert_allclose(stderr, expected, rtol=1e-14)


def test_one_pair_a_cluster_takes_the_spread_between_clusters() -> None:
    influence = np.array([1.0, 2.0, 6.0])
    scores, stderr, means = cluster_scores(influence, np.arange(3), np.array([2, 4, 4]))
    variance = 7.0  # of 1, 2, 6: squares 4 + 1 + 9 over two
    np.testing.assert_allclose(means, influence)
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
    scores, stderr, means = cluster_scores(np.array([2.0]), np.array([0]), np.array([5]))
    assert (scores.tolist(), stderr.tolist(), means.tolist()) == ([2.0], [0.0], [2.0])


@pytest.mark.parametrize("n_samples", [3, 8])
def test_scores_are_unbiased_and_intervals_cover(n_samples: int) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(12, 60, size=25)
    clusters = np.repeat(np.arange(25), sizes)
    influence = rng.normal(size=25)[clusters] + rng.normal(size=len(clusters))
    truth = np.bincount(clusters, influence) / sizes.sum()
    draws, covered = [], []
    for _ in range(300):
        chosen = sample_pairs(clusters, n_samples, 1.0, rng=rng)
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
    embed_dim=6, num_epochs=15, batch_size=16, learning_rate=2e-2, weight_decay=1e-4
)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_problem(seed=0)


def estimate(planted: Planted, *, seed: int = 0, **changes: Any) -> InfluenceResult:
    settings: dict[str, Any] = {"samples_per_cluster": 8, "influence_budget": 1.0, "rank": 5}
    clusters = changes.pop("clusters", planted.clusters)
    sample_weights = changes.pop("sample_weights", None)
    training = changes.pop("training", TRAINING)
    return estimate_influence(
        planted.pairs,
        planted.validation,
        clusters,
        [[f"term{k}"] for k in range(clusters.max() + 1)],
        InfluenceConfig(**settings | changes),
        training,
        rng=np.random.default_rng(seed),
        sample_weights=sample_weights,
    )


@pytest.mark.parametrize("hessian", HESSIANS)
def test_the_cluster_of_wrong_captions_is_the_harmful_one(planted: Planted, hessian: str) -> None:
    result = estimate(planted, hessian=hessian)
    scores, stderr = result.influence_scores, result.influence_stderr
    assert int(np.argmin(scores)) == 3
    assert scores[3] + 2 * stderr[3] < 0
    assert np.all(scores[:3] > 0)
    assert result.hessian == hessian
    assert result.damping > 0
    assert result.eigenvalues.dtype == np.float64
    assert result.eigenvalue_residuals.shape == result.eigenvalues.shape


def test_the_result_says_what_was_evaluated_and_infers_the_rest(planted: Planted) -> None:
    result = estimate(planted)
    evaluated, influence = result.pair_influence_evaluated, result.pair_influence
    assert np.bincount(planted.clusters[evaluated]).tolist() == [8, 8, 8, 8]
    for k in range(4):
        members = planted.clusters == k
        mean = influence[members & evaluated].mean()
        # Means times the loss over the loss again: rounding of float64.
        np.testing.assert_allclose(influence[members & ~evaluated], mean, rtol=1e-12)
        expected = 24 / 96 * mean / result.validation_loss
        assert result.influence_scores[k] == pytest.approx(expected, rel=1e-12)
    assert len(set(influence[evaluated])) == 32


def test_the_reference_model_is_the_one_of_lowest_validation_loss(planted: Planted) -> None:
    training = dataclasses.replace(TRAINING, num_epochs=60)  # until wrong captions are memorised
    result = estimate(planted, training=training)
    assert 0 < result.reference_steps < 60 * 6
    theta = torch.cat([p.reshape(-1) for p in result.reference(CPU)]).double().numpy()
    images, texts = (side.double().numpy() for side in planted.validation)
    problem = Problem(images, texts, theta, 6)
    rng = np.random.default_rng(0)
    rng.permutation(96)  # the draw of the pairs comes before that of the validation batches
    losses = [problem.loss(theta, rows) for rows in rng.permutation(64).reshape(4, 16)]
    # Float32 against float64.
    assert result.validation_loss == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert result.quality()["validation_loss"] == result.validation_loss
    assert result.quality()["n_evaluated"] == 32


def test_the_readable_scores_are_sorted_and_say_what_they_mean(planted: Planted) -> None:
    result = estimate(planted)
    entries = result.clusters
    assert [e["cluster"] for e in entries] == np.argsort(result.influence_scores).tolist()
    worst = entries[0]
    assert worst["terms"] == ["term3"]
    assert worst["size"] == 24
    assert worst["pairs_evaluated"] == 8
    percent = 100 * result.influence_scores[3]
    assert worst["influence_percent"] == pytest.approx(percent, abs=1e-5)
    assert worst["stderr_percent"] == pytest.approx(100 * result.influence_stderr[3], abs=1e-5)
    assert worst["meaning"].startswith(
        f"leaving it out lowers the validation loss by {-percent:.3f} %"
    )
    assert entries[-1]["meaning"].startswith("leaving it out raises the validation loss by ")


@pytest.mark.parametrize("samples_per_cluster", [8, 100])
def test_relabelling_the_clusters_permutes_the_scores(
    planted: Planted, samples_per_cluster: int
) -> None:
    renamed = np.array([2, 0, 3, 1])
    plain = estimate(planted, samples_per_cluster=samples_per_cluster)
    permuted = estimate(
        planted, samples_per_cluster=samples_per_cluster, clusters=renamed[planted.clusters]
    )
    # The same pairs are drawn; sums over clusters run in another order.
    for name in ("influence_scores", "influence_stderr"):
        np.testing.assert_allclose(
            getattr(permuted, name)[renamed], getattr(plain, name), rtol=1e-12
        )
    np.testing.assert_allclose(permuted.pair_influence, plain.pair_influence, rtol=1e-12)
    np.testing.assert_array_equal(permuted.pair_influence_evaluated, plain.pair_influence_evaluated)


def test_the_seed_decides(planted: Planted) -> None:
    first, again, other = (estimate(planted, seed=s) for s in (1, 1, 2))
    for name in ("influence_scores", "pair_influence", "eigenvalues", "reference_image_map"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.influence_scores, other.influence_scores)


def test_a_later_round_trains_on_the_curated_set_and_still_scores_what_it_dropped(
    planted: Planted,
) -> None:
    weights = np.where(planted.wrong, 0.0, 4 / 3)
    result = estimate(planted, sample_weights=weights)
    assert result.pair_influence_evaluated[planted.wrong].any()
    assert np.all(np.isfinite(result.pair_influence))
    # A model that never saw the wrong captions does better than one that did.
    assert result.validation_loss < estimate(planted).validation_loss
    # Taking them in again would hurt.
    assert int(np.argmin(result.influence_scores)) == 3
    assert result.influence_scores[3] < 0


def test_the_dropped_pairs_of_a_later_round_do_not_reach_the_reference(planted: Planted) -> None:
    weights = np.where(planted.wrong, 0.0, 1.0)
    spoilt = PairTensors(planted.pairs.images, planted.pairs.texts.clone())
    spoilt.texts[torch.from_numpy(planted.wrong)] = 7.0
    clean = estimate(planted, sample_weights=weights)
    same = estimate(planted._replace(pairs=spoilt), sample_weights=weights)
    np.testing.assert_array_equal(same.reference_image_map, clean.reference_image_map)
    np.testing.assert_array_equal(same.eigenvalues, clean.eigenvalues)


def test_the_weights_of_a_later_round_reach_training_and_influence(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.where(planted.wrong, 0.0, np.where(np.arange(96) % 8 < 4, 0.5, 2.0))
    seen: dict[str, np.ndarray] = {}

    def watched(
        parameters: Parameters,
        pairs: PairTensors,
        direction: torch.Tensor,
        index: np.ndarray,
        base_weights: np.ndarray,
        **options: Any,
    ) -> np.ndarray:
        seen.update(index=index, base_weights=base_weights)
        return pair_influences(parameters, pairs, direction, index, base_weights, **options)

    monkeypatch.setattr(influence, "pair_influences", watched)
    result = estimate(planted, sample_weights=weights)
    # Every cluster has 8 of its 24 pairs evaluated, so all stand for equally many.
    np.testing.assert_allclose(
        seen["base_weights"], np.maximum(weights[seen["index"]], 0.01), rtol=1e-12
    )
    even = estimate(planted, sample_weights=(weights > 0).astype(np.float64))
    assert not np.array_equal(result.reference_image_map, even.reference_image_map)


def test_the_budget_reaches_the_estimate(planted: Planted) -> None:
    result = estimate(planted, influence_budget=0.1)  # 9 of 96 pairs: two a cluster
    assert result.pair_influence_evaluated.sum() == 8
    with pytest.raises(InputError, match="allows 2 influences"):
        estimate(planted, influence_budget=0.03)


def test_the_damping_given_is_used(planted: Planted) -> None:
    assert estimate(planted, damping=0.5).damping == 0.5

"""The additive model against brute force, and against the truth that the data were made from."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest

from attribution import additive_model
from attribution.additive_model import (
    PENALTIES,
    PooledInfluence,
    pool_influence,
    smooth_basis,
)


class Simulated(NamedTuple):
    """Pairs whose mean influence is a smooth function of two quantities and a topic's own."""

    quantities: list[np.ndarray]
    topics: np.ndarray
    truth: np.ndarray
    influence: np.ndarray
    rows: np.ndarray


def simulated(
    seed: int, *, n: int = 600, m: int = 120, noise: float = 0.5, topic: float = 0.5
) -> Simulated:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=n), rng.random(n)
    topics = rng.integers(0, 12, size=n)
    truth = 1 + np.tanh(2 * first) + (2 * second - 1) ** 2 + topic * rng.normal(size=12)[topics]
    influence = truth + noise * rng.normal(size=n)
    return Simulated([first, second], topics, truth, influence, np.sort(rng.permutation(n)[:m]))


def pooled_of(data: Simulated, scale: float = 1.0) -> PooledInfluence:
    return pool_influence(
        scale * data.influence[data.rows], data.rows, data.quantities, data.topics
    )


def rest_of(data: Simulated) -> np.ndarray:
    """The pairs that were not evaluated."""
    return np.setdiff1d(np.arange(len(data.truth)), data.rows)


# --- The basis --------------------------------------------------------------------------------


def test_the_basis_is_free_of_units_and_of_the_order() -> None:
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=50), 1)  # with ties
    basis = smooth_basis(values)
    np.testing.assert_allclose(smooth_basis(1e-6 * values + 5), basis, atol=1e-6)
    order = rng.permutation(50)
    np.testing.assert_allclose(smooth_basis(values[order]), basis[order], atol=1e-12)
    assert len({tuple(row) for row in basis.round(9)}) == len(set(values.tolist()))


def test_the_basis_by_hand() -> None:
    basis = smooth_basis(np.array([3.0, 1.0, 1.0, 7.0]))
    rank = np.array([0.625, 0.25, 0.25, 0.875])  # middle of a value's places
    np.testing.assert_allclose(basis[:, 0], rank)
    knots = np.array([1, 2, 3, 4, 5]) / 6
    np.testing.assert_allclose(basis[:, 1:6], np.maximum(rank[:, None] - knots, 0))
    standard = np.array([0.0, -2, -2, 4]) / np.sqrt(6)
    np.testing.assert_allclose(basis[:, 6], standard, atol=1e-15)
    np.testing.assert_allclose(basis[:, 7], standard**2, atol=1e-15)


def test_a_far_value_does_not_bend_the_basis() -> None:
    values = np.append(np.linspace(0, 1, 99), 1e6)
    assert smooth_basis(values).max() == pytest.approx(16)  # the square of four deviations


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_a_constant_quantity_says_nothing(value: float) -> None:
    constant = np.full(9, value) * (1 + 1e-16 * np.arange(9))
    basis = smooth_basis(constant)
    assert basis.shape[0] == 9
    assert not basis.any()


# --- What it recovers -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_effect_is_recovered_in_pairs_that_were_not_evaluated(seed: int) -> None:
    data = simulated(seed)
    pooled, rest = pooled_of(data), rest_of(data)
    error = float(((pooled.predicted - data.truth)[rest] ** 2).mean())
    of_mean = float(((data.influence[data.rows].mean() - data.truth)[rest] ** 2).mean())
    assert error < 0.25 * of_mean
    assert pooled.noise_variance == pytest.approx(0.25, rel=0.5)  # and the error of the fit
    assert 0.5 < pooled.explained < 1


def test_pure_noise_is_not_explained() -> None:
    data = simulated(0)._replace(influence=np.random.default_rng(1).normal(size=600))
    pooled = pooled_of(data)
    assert pooled.explained < 0.1
    assert pooled.predicted.std() < 0.3
    assert pooled.noise_variance == pytest.approx(1, rel=0.3)


def test_every_unit_gives_the_same_answer() -> None:
    data = simulated(1)
    plain = pooled_of(data)
    for scale in (1e-7, 1e7):
        other = pooled_of(data, scale)
        np.testing.assert_allclose(other.predicted / scale, plain.predicted, rtol=1e-6)
        np.testing.assert_allclose(other.stderr / scale, plain.stderr, rtol=1e-6)
        rows = np.arange(40)
        assert other.mean_stderr(rows) / scale == pytest.approx(plain.mean_stderr(rows))
        assert other.explained == pytest.approx(plain.explained)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pooled_of(simulated(2))
    monkeypatch.setattr(additive_model, "ROWS_AT_ONCE", 7)
    blocks = pooled_of(simulated(2))
    # Block by block, sums round elsewhere: the absolute term is for predictions near zero.
    np.testing.assert_allclose(blocks.predicted, whole.predicted, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(blocks.stderr, whole.stderr, rtol=1e-12)


# --- Leave one out ----------------------------------------------------------------------------


def design_matrix(data: Simulated) -> tuple[np.ndarray, int]:
    """Standardised smooth columns, a column a topic, the intercept; how many are smooth."""
    smooth = np.concatenate([smooth_basis(q) for q in data.quantities], axis=1)
    smooth = (smooth - smooth.mean(axis=0)) / smooth.std(axis=0)
    topics = data.topics[:, None] == np.arange(data.topics.max() + 1)
    return np.concatenate([smooth, topics, np.ones((len(smooth), 1))], axis=1), smooth.shape[1]


def test_the_chosen_penalty_is_that_of_least_error_in_refits_without_each_pair() -> None:
    data = simulated(3, n=80, m=24)
    pooled = pooled_of(data)
    x, n_smooth = design_matrix(data)
    x_index, y = x[data.rows], data.influence[data.rows]
    assert np.abs(y - np.median(y)).max() < 5 * np.median(np.abs(y - np.median(y)))  # none drawn in
    refits = {}
    for smooth_penalty in PENALTIES:
        for topic_penalty in PENALTIES:
            penalty = np.full(x.shape[1], topic_penalty)
            penalty[:n_smooth], penalty[-1] = smooth_penalty, 1e-9
            errors = []
            for i in range(len(y)):
                others = np.arange(len(y)) != i
                a, b = x_index[others], y[others]
                coefficients = np.linalg.solve(a.T @ a + np.diag(penalty), a.T @ b)
                errors.append(y[i] - x_index[i] @ coefficients)
            refits[smooth_penalty, topic_penalty] = float(np.mean(np.square(errors)))
    best = min(refits, key=lambda p: refits[p])
    # The intercept's penalty of 1e-9 leaves about half of the digits.
    assert pooled.noise_variance == pytest.approx(refits[best], rel=1e-5)
    assert pooled.explained == pytest.approx(1 - refits[best] / y.var(), rel=1e-5)
    penalty = np.full(x.shape[1], best[1])
    penalty[:n_smooth], penalty[-1] = best[0], 1e-9
    gram = x_index.T @ x_index + np.diag(penalty)
    np.testing.assert_allclose(
        pooled.predicted, x @ np.linalg.solve(gram, x_index.T @ y), atol=1e-6
    )
    covariance = refits[best] * np.linalg.inv(gram)
    np.testing.assert_allclose(
        pooled.stderr, np.sqrt(np.einsum("ij,jk,ik->i", x, covariance, x)), rtol=1e-4
    )
    rows = np.array([3, 5, 8, 40])
    mean = x[rows].mean(axis=0)
    assert pooled.mean_stderr(rows) == pytest.approx(np.sqrt(mean @ covariance @ mean), rel=1e-4)


# --- Topics -----------------------------------------------------------------------------------


def test_topic_effects_shrink_the_more_the_fewer_pairs_tell_of_them() -> None:
    # Nothing but topics, their effects and the noise of one deviation: forty topics with two pairs
    # evaluated, ten with forty, one with none. The best penalty is one: shares 2 / 3 and 40 / 41.
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(51), 50)
    influence = rng.normal(size=51)[topics] + rng.normal(size=len(topics))
    n_evaluated = np.repeat([2, 40, 0], [40, 10, 1])
    index = np.flatnonzero(np.arange(len(topics)) % 50 < n_evaluated[topics])
    pooled = pool_influence(influence[index], index, [np.zeros(len(topics))], topics)
    found = pooled.predicted[::50] - pooled.predicted[-1]  # the last one is at the intercept
    plain = np.array([influence[index][topics[index] == k].mean() for k in range(50)])
    shares = found[:50] / (plain - pooled.predicted[-1])
    assert np.all((shares[:40] > 0.25) & (shares[:40] < 0.95))
    np.testing.assert_allclose(shares[40:], 1, atol=0.12)
    assert shares[:40].max() < shares[40:].min()
    errors = pooled.stderr[::50]
    assert errors[40:50].max() < errors[:40].min()
    assert errors[:40].max() < errors[50]


def test_topics_that_do_not_differ_are_not_told_apart() -> None:
    # Over seeds: a single set may by chance look as if they did.
    spreads = []
    for seed in range(5):
        data = simulated(seed, topic=0.0)
        constant = [np.zeros(len(data.truth))]
        noise = np.random.default_rng(seed).normal(size=len(data.rows))
        pooled = pool_influence(noise, data.rows, constant, data.topics)
        means = [noise[data.topics[data.rows] == k].mean() for k in range(12)]
        spreads.append(pooled.predicted.std() / np.std(means))
    assert np.median(spreads) < 0.35


def test_a_topic_that_was_never_evaluated_gets_what_its_kind_gets() -> None:
    data = simulated(4)
    unseen = data._replace(rows=data.rows[data.topics[data.rows] != 5])
    pooled = pooled_of(unseen)
    rows = data.topics == 5
    assert np.corrcoef(pooled.predicted[rows], data.truth[rows])[0, 1] > 0.8
    assert pooled.stderr[rows].mean() > pooled.stderr[~rows].mean()


# --- Degenerate data --------------------------------------------------------------------------


def test_with_nothing_to_explain_everybody_gets_the_mean() -> None:
    data = simulated(5)
    constant = pool_influence(np.full(120, 0.3), data.rows, data.quantities, data.topics)
    np.testing.assert_allclose(constant.predicted, 0.3, atol=1e-6)
    np.testing.assert_allclose(constant.stderr, 0, atol=1e-6)
    assert constant.explained == 0
    topics = np.zeros(600, dtype=np.int64)
    measured = data.influence[data.rows]
    nothing_known = pool_influence(measured, data.rows, [np.full(600, 7.0)], topics)
    np.testing.assert_allclose(nothing_known.predicted, measured.mean(), atol=1e-6)
    # The error of a mean, by its textbook formula, but for the degree of freedom.
    error = measured.std() / np.sqrt(120)
    assert nothing_known.mean_stderr(np.arange(600)) == pytest.approx(error, rel=0.02)


def test_two_pairs_are_enough() -> None:
    pooled = pool_influence(
        np.array([1.0, 2.0]),
        np.array([0, 3]),
        [np.array([0.1, 0.2, 0.3, 0.4])],
        np.array([0, 1, 0, 1]),
    )
    assert np.isfinite(pooled.predicted).all()
    assert (pooled.predicted >= 1).all()
    assert (pooled.predicted <= 2).all()


def test_outliers_are_drawn_in() -> None:
    data = simulated(6)
    clean = pooled_of(data)
    spoilt = data.influence.copy()
    spoilt[data.rows[7]] = 1e6
    found = pooled_of(data._replace(influence=spoilt))
    assert np.abs(found.predicted - clean.predicted).max() < 1
    # To five robust deviations of the median, so that any further does not matter.
    spoilt[data.rows[7]] = 1e9
    farther = pooled_of(data._replace(influence=spoilt))
    np.testing.assert_array_equal(farther.predicted, found.predicted)
    measured = data.influence[data.rows]
    middle = np.median(spoilt[data.rows])
    spread = np.median(np.abs(spoilt[data.rows] - middle)) / 0.6744898  # the normal's quartile
    measured[7] = middle + 5 * spread
    at_the_bound = pool_influence(measured, data.rows, data.quantities, data.topics)
    np.testing.assert_allclose(found.predicted, at_the_bound.predicted, atol=1e-3)


def test_outliers_count_where_most_values_are_equal() -> None:
    # The median deviation is zero then: nothing could be told from an outlier.
    influence = np.zeros(30)
    influence[:10] = 1.0
    topics = np.repeat([0, 1], [10, 20])
    pooled = pool_influence(influence, np.arange(30), [np.zeros(30)], topics)
    np.testing.assert_allclose(pooled.predicted, influence, atol=0.01)


# --- Standard errors --------------------------------------------------------------------------


def test_standard_errors_cover_the_truth() -> None:
    covered, of_means = [], []
    for seed in range(20):
        data = simulated(100 + seed, n=400, m=100)
        pooled, rest = pooled_of(data), rest_of(data)
        off = np.abs(pooled.predicted - data.truth)[rest]
        covered.append((off < 1.96 * pooled.stderr[rest]).mean())
        for k in range(12):
            rows = np.flatnonzero(data.topics == k)
            error = abs(float((pooled.predicted - data.truth)[rows].mean()))
            of_means.append(error < 1.96 * pooled.mean_stderr(rows))
    # Ninety-five percent; errors within a data set go together, and the penalties are estimated.
    assert 0.9 < np.mean(covered) < 0.99
    assert 0.9 < np.mean(of_means) < 0.99


def test_the_error_of_a_mean_minds_correlations() -> None:
    data = simulated(7)
    pooled = pooled_of(data)
    for row in (0, 5):
        assert pooled.mean_stderr(np.array([row])) == pytest.approx(pooled.stderr[row])
        assert pooled.mean_stderr(np.array([row] * 9)) == pytest.approx(pooled.stderr[row])
    topic = np.flatnonzero(data.topics == 2)
    mean = pooled.mean_stderr(topic)
    root_n = np.sqrt((pooled.stderr[topic] ** 2).sum()) / len(topic)
    assert root_n < mean < pooled.stderr[topic].mean()  # one topic effect for all of them


def test_many_means_at_once_are_those_one_by_one() -> None:
    data = simulated(8)
    pooled = pooled_of(data)
    rng = np.random.default_rng(0)
    sizes = np.array([1, 7, 300, 2, 5])
    rows = rng.integers(600, size=sizes.sum())  # over topics, and some pairs more than once
    x, n_smooth = design_matrix(data)
    # The penalties are those at which the model's own error of every pair comes out.
    fits = []
    for smooth_penalty in PENALTIES:
        for topic_penalty in PENALTIES:
            penalty = np.full(x.shape[1], topic_penalty)
            penalty[:n_smooth], penalty[-1] = smooth_penalty, 1e-9
            covariance = np.linalg.inv(x[data.rows].T @ x[data.rows] + np.diag(penalty))
            covariance *= pooled.noise_variance
            stderr = np.sqrt(np.einsum("ij,jk,ik->i", x, covariance, x))
            fits.append((float(np.abs(stderr / pooled.stderr - 1).max()), covariance))
    off, covariance = min(fits, key=lambda fit: fit[0])
    assert off < 1e-4
    means = [x[part].mean(axis=0) for part in np.split(rows, np.cumsum(sizes)[:-1])]
    expected = [float(np.sqrt(mean @ covariance @ mean)) for mean in means]
    np.testing.assert_allclose(pooled.mean_stderrs(rows, sizes), expected, rtol=1e-4)


@pytest.mark.parametrize("factor", [4.0, 1.5])
def test_standard_errors_may_be_widened(factor: float) -> None:
    data = simulated(9)
    pooled, topic = pooled_of(data), np.flatnonzero(data.topics == 2)
    variance = factor**2 * float((pooled.stderr**2).mean())
    wide = pooled.widened(variance)
    assert float((wide.stderr**2).mean()) == pytest.approx(variance)
    np.testing.assert_allclose(wide.stderr, factor * pooled.stderr)
    # So are those of means, of one pair as of many; what is predicted stays.
    rows, sizes = np.r_[topic, 0], np.array([len(topic), 1])
    np.testing.assert_allclose(
        wide.mean_stderrs(rows, sizes), factor * pooled.mean_stderrs(rows, sizes)
    )
    np.testing.assert_array_equal(wide.predicted, pooled.predicted)


def test_standard_errors_are_never_narrowed() -> None:
    pooled = pooled_of(simulated(9))
    now = float((pooled.stderr**2).mean())
    for variance in (0.0, 0.5 * now, now):
        np.testing.assert_array_equal(pooled.widened(variance).stderr, pooled.stderr)


def test_where_nothing_was_thought_uncertain_all_becomes_equally_so() -> None:
    data = simulated(9)
    certain = dataclasses.replace(pooled_of(data), stderr=np.zeros(600))
    np.testing.assert_allclose(certain.widened(0.25).stderr, 0.5)

"""Influence of every pair from that of a few: an additive model pooled over topics.

    u_i = a + sum_f h_f(x_if) + t_k(i) + noise

with smooth effects h_f of what is known of every pair (agreement, held-out loss, ...) and a topic
effect t_k shrunk towards zero: ridge regression with two penalties, both chosen by exact
leave-one-out error (Hastie, Tibshirani & Friedman 2009, eq. 7.64), read as a Bayesian linear model
for its standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.linalg import cholesky, solve_triangular
from scipy.sparse import csr_array

from artifacts.algebra import one_blas_thread

N_KNOTS = 5
ROWS_AT_ONCE = 8192
OUTLIER = 5.0  # robust standard deviations beyond which a measured influence is drawn in
PENALTIES = np.logspace(-2, 4, 9)
FREE = 1e-9  # penalty of the intercept
MAD_TO_STD = 1.4826  # of a normal distribution
CONSTANT = 1e-12  # spread of a column that is only rounding


@dataclass(frozen=True)
class PooledInfluence:
    """The model's word on every pair."""

    predicted: Float[np.ndarray, " n"]
    stderr: Float[np.ndarray, " n"]  # of the predicted mean of pairs like this one
    noise_variance: float  # of a single pair around it
    explained: float  # share of the evaluated pairs' variance, leave-one-out
    _design: _Design
    _effects: _Effects

    def widened(self, variance: float) -> PooledInfluence:
        """The same with standard errors of at least this mean square, nats squared."""
        now = float((self.stderr**2).mean())
        if variance <= now:
            return self
        if now == 0:
            return replace(self, stderr=np.full_like(self.stderr, math.sqrt(variance)))
        return replace(
            self,
            stderr=self.stderr * math.sqrt(variance / now),
            _effects=self._effects.widened(variance / now),
        )

    def mean_stderr(self, rows: Int64[np.ndarray, " c"]) -> float:
        """Standard error of the mean influence of these pairs, correlations included."""
        return float(self.mean_stderrs(rows, np.array([len(rows)]))[0])

    def mean_stderrs(
        self, rows: Int64[np.ndarray, " m"], sizes: Int64[np.ndarray, " c"]
    ) -> Float64[np.ndarray, " c"]:
        """Those of many sets of pairs: of the first `sizes[0]` rows, of the next `sizes[1]`, ...

        Args:
            rows: the sets' pairs, set after set.
            sizes: how many pairs each set has, at least one.
        """
        of_set = np.repeat(np.arange(len(sizes)), sizes)
        topics = self._design.topics[rows]
        projected = np.zeros((len(sizes), len(self._effects.root)))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            sets, which = np.unique(of_set[block], return_inverse=True)
            member = csr_array((np.ones(len(which)), (which, np.arange(len(which)))))
            x = self._effects.projected(self._design.rows(rows[block]), topics[block])
            projected[sets] += member @ x
        # Of each topic's own effect: the square of its share of the set.
        pair_of, counts = np.unique(of_set * self._design.n_topics + topics, return_counts=True)
        sets, topic = np.divmod(pair_of, self._design.n_topics)
        own = np.bincount(sets, (counts / sizes[sets]) ** 2 * self._effects.topic_variances[topic])
        return np.asarray(np.sqrt(((projected / sizes[:, None]) ** 2).sum(axis=1) + own))


class _Quantity(NamedTuple):
    """What is known of every pair, and what its smooth basis is made from."""

    values: Float[np.ndarray, " n"]
    rank: Float[np.ndarray, " n"]  # 0 to 1, ties share theirs
    mean: float
    spread: float  # 0 of constant values

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> _Quantity:
        """With the ranks, mean and spread of all values."""
        spread = float(values.std())
        if spread <= CONSTANT * max(1.0, float(np.abs(values).max())):
            return cls(values, values, 0.0, 0.0)
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = ((np.cumsum(counts) - counts / 2) / len(values))[inverse]
        return cls(values, rank, float(values.mean()), spread)

    def basis(self, index: slice | Int64[np.ndarray, " m"]) -> Float[np.ndarray, "m q"]:
        """The smooth columns of some rows."""
        values, rank = self.values[index], self.rank[index]
        found = np.zeros((len(values), N_KNOTS + 3))
        if self.spread > 0:
            standard = (values - self.mean) / self.spread
            found[:, 0] = rank
            found[:, 1:-2] = np.maximum(rank[:, None] - np.linspace(0, 1, N_KNOTS + 2)[1:-1], 0)
            found[:, -2] = standard
            found[:, -1] = np.clip(standard, -4, 4) ** 2
        return found


class _Design(NamedTuple):
    """Standardised columns of the smooth effects, made when they are asked for, and the topics.

    What is held is a few numbers a pair, not its row.
    """

    quantities: Sequence[_Quantity]
    middle: Float[np.ndarray, " s"]  # of all columns
    scale: Float[np.ndarray, " s"]
    varies: Bool[np.ndarray, " s"]  # columns that are in the model
    topics: Int64[np.ndarray, " n"]
    n_topics: int

    @classmethod
    def of(
        cls, values: Sequence[Float[np.ndarray, " n"]], topics: Int64[np.ndarray, " n"]
    ) -> _Design:
        """In two passes over blocks of rows, for the columns' means and spreads."""
        quantities, n = [_Quantity.of(v) for v in values], len(topics)
        middle = sum(_basis(quantities, rows).sum(axis=0) for rows in _blocks(n)) / n
        squares = sum(((_basis(quantities, rows) - middle) ** 2).sum(axis=0) for rows in _blocks(n))
        scale = np.sqrt(squares / n)
        varies = scale > CONSTANT * np.maximum(1, np.abs(middle))
        return cls(quantities, middle, scale, varies, topics, int(topics.max()) + 1)

    def rows(self, index: slice | Int64[np.ndarray, " m"]) -> Float[np.ndarray, "m q"]:
        """Some rows: smooth columns, and the intercept's last."""
        smooth = _basis(self.quantities, index)[:, self.varies]
        smooth = (smooth - self.middle[self.varies]) / self.scale[self.varies]
        return np.concatenate([smooth, np.ones((len(smooth), 1))], axis=1)


def _basis(
    quantities: Sequence[_Quantity], index: slice | Int64[np.ndarray, " m"]
) -> Float[np.ndarray, "m s"]:
    return np.concatenate([quantity.basis(index) for quantity in quantities], axis=1)


def _blocks(n: int) -> Iterator[slice]:
    """All rows, so many at a time."""
    for start in range(0, n, ROWS_AT_ONCE):
        yield slice(start, start + ROWS_AT_ONCE)


def smooth_basis(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n q"]:
    """Columns whose sums are smooth functions of a quantity: hinges in its rank, and its square.

    Constant values give columns of zeros.
    """
    return _Quantity.of(values).basis(slice(None))


class _Measured(NamedTuple):
    """The evaluated pairs: their rows, and sums within and between topics.

    All that a fit asks of m pairs, whatever the penalties: with n_k of them in topic k, means x_k
    and y_k, and W the products of deviations from these,

        X'X - sum_k n_k^2 x_k x_k' / (n_k + p) = W + sum_k n_k p / (n_k + p) x_k x_k'
    """

    x: Float[np.ndarray, "m q"]
    y: Float[np.ndarray, " m"]
    topics: Int64[np.ndarray, " m"]
    counts: Float[np.ndarray, " K"]
    means: Float[np.ndarray, "K q"]
    y_means: Float[np.ndarray, " K"]
    within: Float[np.ndarray, "q q"]
    y_within: Float[np.ndarray, " q"]

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, "m q"],
        y: Float[np.ndarray, " m"],
        topics: Int64[np.ndarray, " m"],
        n_topics: int,
    ) -> _Measured:
        """The sums of these pairs."""
        counts = np.bincount(topics, minlength=n_topics).astype(np.float64)
        at_least = np.maximum(counts, 1)
        of_topic = csr_array(
            (np.ones(len(y)), (topics, np.arange(len(y)))), shape=(n_topics, len(y))
        )
        means, y_means = (of_topic @ x) / at_least[:, None], (of_topic @ y) / at_least
        x_off, y_off = x - means[topics], y - y_means[topics]
        return cls(x, y, topics, counts, means, y_means, x_off.T @ x_off, x_off.T @ y_off)

    def without_topics(
        self, penalty: float
    ) -> tuple[Float[np.ndarray, "q q"], Float[np.ndarray, " q"]]:
        """Gram matrix and moment of what is left when topic effects of this penalty are taken out.

        The Schur complement of the topics' block, which is diagonal, in the normal equations.
        """
        left = self.counts * penalty / (self.counts + penalty)
        gram = self.within + self.means.T @ (left[:, None] * self.means)
        return gram, self.y_within + self.means.T @ (left * self.y_means)

    def errors(self, topic_penalty: float) -> Float[np.ndarray, " p"]:
        """Mean squared leave-one-out error at each of `PENALTIES` of the smooth effects.

        Their penalties differ by a multiple of the identity, once the intercept is taken out too:
        one decomposition serves them all.
        """
        gram, moment = self.without_topics(topic_penalty)
        shrunk = self.counts / (self.counts + topic_penalty)
        x = self.x - (shrunk[:, None] * self.means)[self.topics]
        y = self.y - (shrunk * self.y_means)[self.topics]
        pivot, ones = gram[-1, -1] + FREE, x[:, -1]
        slopes = gram[:-1, -1] / pivot
        values, vectors = np.linalg.eigh(gram[:-1, :-1] - pivot * np.outer(slopes, slopes))
        turned = (x[:, :-1] - np.outer(ones, slopes)) @ vectors
        turned_moment = (moment[:-1] - slopes * moment[-1]) @ vectors
        y = y - ones * (moment[-1] / pivot)
        alone = 1 / (self.counts + topic_penalty)[self.topics] + ones**2 / pivot
        found = []
        for penalty in PENALTIES:
            inverse = 1 / (np.maximum(values, 0) + penalty)
            leverage = alone + turned**2 @ inverse
            residuals = y - turned @ (turned_moment * inverse)
            found.append(float(((residuals / np.maximum(1 - leverage, 1e-9)) ** 2).mean()))
        return np.array(found)


class _Effects(NamedTuple):
    """Fitted effects and their covariance, the topics' taken out of the others'."""

    coefficients: Float[np.ndarray, " q"]  # of the smooth columns and the intercept
    of_topics: Float[np.ndarray, " K"]
    middles: Float[np.ndarray, "K q"]  # x is told apart from its topic's mean, as far as known
    root: Float[np.ndarray, "q q"]  # covariance of the coefficients = root @ root.T
    topic_variances: Float[np.ndarray, " K"]  # of a topic's effect, the coefficients known

    @classmethod
    def fitted(
        cls, measured: _Measured, smooth_penalty: float, topic_penalty: float, noise: float
    ) -> _Effects:
        """At given penalties and variance of the noise."""
        gram, moment = measured.without_topics(topic_penalty)
        penalty = np.full(len(gram), smooth_penalty)
        penalty[-1] = FREE
        lower = cholesky(gram + np.diag(penalty), lower=True)
        root = solve_triangular(lower, np.eye(len(lower)), lower=True).T
        coefficients = root @ (root.T @ moment)
        shrunk = measured.counts / (measured.counts + topic_penalty)
        return cls(
            coefficients,
            shrunk * (measured.y_means - measured.means @ coefficients),
            shrunk[:, None] * measured.means,
            root * np.sqrt(noise),
            noise / (measured.counts + topic_penalty),
        )

    def widened(self, factor: float) -> _Effects:
        """The same with variances of this multiple."""
        return self._replace(
            root=self.root * math.sqrt(factor), topic_variances=self.topic_variances * factor
        )

    def projected(
        self, x: Float[np.ndarray, "m q"], topics: Int64[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m q"]:
        """Rows of which a mean has the variance |mean|^2, but for the topics' own."""
        return np.asarray((x - self.middles[topics]) @ self.root)

    def of_rows(
        self, x: Float[np.ndarray, "m q"], topics: Int64[np.ndarray, " m"]
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """The predicted mean of pairs like each, and its standard error."""
        variance = (self.projected(x, topics) ** 2).sum(axis=1) + self.topic_variances[topics]
        return x @ self.coefficients + self.of_topics[topics], np.sqrt(variance)


@one_blas_thread()
def pool_influence(
    influence: Float[np.ndarray, " m"],
    index: Int64[np.ndarray, " m"],
    quantities: Sequence[Float[np.ndarray, " n"]],
    cluster_assignments: Int64[np.ndarray, " n"],
) -> PooledInfluence:
    """Fit the additive model to the evaluated pairs and ask it about all n.

    Measured influences beyond five robust standard deviations of their median are drawn in to
    there. With no variance to explain, every pair gets the mean. Topic effects are eliminated
    exactly, so that the cost is that of the smooth columns, however many topics there are.

    Args:
        influence: of the evaluated pairs.
        index: their rows, at least two.
        quantities: what is known of every pair, each (n,).
        cluster_assignments: topic of every pair.
    """
    design = _Design.of(quantities, cluster_assignments)
    y = _drawn_in(influence)
    measured = _Measured.of(design.rows(index), y, cluster_assignments[index], design.n_topics)
    errors = np.stack([measured.errors(penalty) for penalty in PENALTIES], axis=1)
    smooth, topic = np.unravel_index(errors.argmin(), errors.shape)
    error = float(errors[smooth, topic])
    effects = _Effects.fitted(measured, PENALTIES[smooth], PENALTIES[topic], error)
    predicted, stderr = np.empty((2, len(cluster_assignments)))
    for rows in _blocks(len(predicted)):
        predicted[rows], stderr[rows] = effects.of_rows(
            design.rows(rows), cluster_assignments[rows]
        )
    return PooledInfluence(
        predicted=predicted,
        stderr=stderr,
        noise_variance=error,
        explained=1 - error / float(y.var()) if y.min() < y.max() else 0.0,
        _design=design,
        _effects=effects,
    )


def _drawn_in(influence: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    middle = np.median(influence)
    spread = MAD_TO_STD * np.median(np.abs(influence - middle))
    if spread == 0:
        return influence.copy()
    return np.clip(influence, middle - OUTLIER * spread, middle + OUTLIER * spread)

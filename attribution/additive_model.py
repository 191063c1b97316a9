"""Influence of every pair from that of a few: an additive model pooled over topics.

    u_i = a + sum_f h_f(x_if) + t_k(i) + noise

with smooth effects h_f of what is known of every pair (agreement, held-out loss, ...) and a topic
effect t_k shrunk towards zero: ridge regression with two penalties, both chosen by exact
leave-one-out error (Hastie, Tibshirani & Friedman 2009, eq. 7.64), read as a Bayesian linear model
for its standard errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy.linalg import cho_factor, cho_solve, solve_triangular

N_KNOTS = 5
ROWS_AT_ONCE = 8192
OUTLIER = 5.0  # robust standard deviations beyond which a measured influence is drawn in
PENALTIES = np.logspace(-2, 4, 9)
MAD_TO_STD = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class PooledInfluence:
    """The model's word on every pair."""

    predicted: Float[np.ndarray, " n"]
    stderr: Float[np.ndarray, " n"]  # of the predicted mean of pairs like this one
    noise_variance: float  # of a single pair around it
    explained: float  # share of the evaluated pairs' variance, leave-one-out
    _design: _Design
    _root: Float[np.ndarray, "q q"]  # covariance of the coefficients = root @ root.T

    def mean_stderr(self, rows: Int64[np.ndarray, " c"]) -> float:
        """Standard error of the mean influence of these pairs, correlations included."""
        projected = self._design.rows(rows).mean(axis=0) @ self._root
        return float(np.sqrt(projected @ projected))


class _Design(NamedTuple):
    """Columns of the smooth effects, one a topic, and the intercept; topics are not spelled out."""

    smooth: Float[np.ndarray, "n s"]
    topics: Int64[np.ndarray, " n"]
    n_topics: int

    def rows(self, index: Int64[np.ndarray, " m"]) -> Float[np.ndarray, "m q"]:
        """Some rows, in full."""
        topics = np.zeros((len(index), self.n_topics))
        topics[np.arange(len(index)), self.topics[index]] = 1.0
        return np.concatenate([self.smooth[index], topics, np.ones((len(index), 1))], axis=1)

    def blocks(self) -> Iterator[Float[np.ndarray, "m q"]]:
        """All rows, so many at a time."""
        for start in range(0, len(self.topics), ROWS_AT_ONCE):
            yield self.rows(np.arange(start, min(start + ROWS_AT_ONCE, len(self.topics))))


def smooth_basis(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n q"]:
    """Columns whose sums are smooth functions of a quantity: hinges in its rank, and its square.

    Constant values give columns of zeros.
    """
    spread = values.std()
    if spread <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return np.zeros((len(values), N_KNOTS + 3))
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    del distinct
    rank = ((np.cumsum(counts) - counts / 2) / len(values))[inverse]  # ties share their rank
    standard = (values - values.mean()) / spread
    hinges = [np.maximum(rank - q, 0) for q in np.linspace(0, 1, N_KNOTS + 2)[1:-1]]
    return np.stack([rank, *hinges, standard, np.clip(standard, -4, 4) ** 2], axis=1)


def pool_influence(
    influence: Float[np.ndarray, " m"],
    index: Int64[np.ndarray, " m"],
    quantities: Sequence[Float[np.ndarray, " n"]],
    cluster_assignments: Int64[np.ndarray, " n"],
) -> PooledInfluence:
    """Fit the additive model to the evaluated pairs and ask it about all n.

    Measured influences beyond five robust standard deviations of their median are drawn in to
    there. With no variance to explain, every pair gets the mean.

    Args:
        influence: of the evaluated pairs.
        index: their rows, at least two.
        quantities: what is known of every pair, each (n,).
        cluster_assignments: topic of every pair.
    """
    measured = _drawn_in(influence)
    smooth = np.concatenate([smooth_basis(q) for q in quantities], axis=1)
    smooth -= smooth.mean(axis=0)
    spread = smooth.std(axis=0)
    smooth = smooth[:, spread > 0] / spread[spread > 0]
    n_topics = int(cluster_assignments.max()) + 1
    design = _Design(smooth, cluster_assignments, n_topics)
    is_topic = np.r_[np.zeros(smooth.shape[1]), np.ones(n_topics), 0.0].astype(bool)

    x = design.rows(index)
    gram, moment = x.T @ x, x.T @ measured
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for smooth_penalty in PENALTIES:
        for topic_penalty in PENALTIES:
            penalty = np.where(is_topic, topic_penalty, smooth_penalty)
            penalty[-1] = 1e-9  # the intercept is free
            factor = cho_factor(gram + np.diag(penalty), lower=True)
            coefficients = cho_solve(factor, moment)
            leverage = np.einsum("ij,ji->i", x, cho_solve(factor, x.T))
            errors = (measured - x @ coefficients) / np.maximum(1 - leverage, 1e-9)
            error = float((errors**2).mean())
            if best is None or error < best[0]:
                best = error, coefficients, penalty
    assert best is not None, "there is a penalty to choose"
    error, coefficients, penalty = best
    lower = np.linalg.cholesky(gram + np.diag(penalty))
    root = solve_triangular(lower, np.eye(len(lower)), lower=True).T * np.sqrt(error)
    variance = float(measured.var())
    return PooledInfluence(
        predicted=np.concatenate([block @ coefficients for block in design.blocks()]),
        stderr=np.concatenate(
            [np.sqrt(((block @ root) ** 2).sum(axis=1)) for block in design.blocks()]
        ),
        noise_variance=error,
        explained=1 - error / variance if measured.min() < measured.max() else 0.0,
        _design=design,
        _root=root,
    )


def _drawn_in(influence: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    middle = np.median(influence)
    spread = MAD_TO_STD * np.median(np.abs(influence - middle))
    if spread == 0:
        return influence.copy()
    return np.clip(influence, middle - OUTLIER * spread, middle + OUTLIER * spread)


def own_share(per_repeat: Float[np.ndarray, "R m"], pooled: Float[np.ndarray, " m"]) -> float:
    """How far a measured influence is to be believed beyond what the model says of its like.

        share = max(0, 1 - noise / residual)

    with the variance of the residuals of the mean over repeats and, from their spread, the part of
    it that is noise (empirical Bayes). One repeat has no spread and counts half.
    """
    residual = float(((per_repeat.mean(axis=0) - pooled) ** 2).mean())
    if residual == 0:
        return 0.0
    if len(per_repeat) == 1:
        return 0.5
    noise = float(per_repeat.var(axis=0, ddof=1).mean()) / len(per_repeat)
    return max(0.0, 1 - noise / residual)

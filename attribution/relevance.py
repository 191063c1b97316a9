"""How near each training pair is to what the held-out pairs show.

Where the held-out pairs are about something narrower than the pool, a pair is worth more the nearer
it is to them: by the log density ratio

    r(x) = log p_held_out(x) / p_training(x)

of which a logistic regression that tells held-out pairs from training pairs is an estimate
(Sugiyama, Suzuki & Kanamori 2012, chapter 4). Where the held-out pairs are like the pool it cannot
tell them apart, and nearness counts for nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from sklearn.linear_model import LogisticRegression

from artifacts.algebra import one_blas_thread
from attribution.scores import auc
from encoders.joint_map import Rows

PENALTIES = (1e-4, 1e-3, 1e-2)  # scikit-learn's C: the inverse of the penalty
N_FOLDS = 3
MOST_FITTED = 20_000  # training pairs that a classifier is fitted to; bounds the time
CLEAR = 3.0  # standard errors of the AUC that are taken off before nearness counts
NARROW_AUC = 0.6  # below it held-out pairs are of the pool's kind, if not quite in its proportions
MAX_STEPS = 300
ROWS_AT_ONCE = 16_384  # pairs that are scored at once; bounds memory


class BothSides(NamedTuple):
    """Images and texts side by side, rows made when they are asked for."""

    images: Rows
    texts: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return self.images.shape[0], self.images.shape[1] + self.texts.shape[1]

    def __getitem__(self, rows: Any) -> Any:
        """Some rows."""
        return np.concatenate([self.images[rows], self.texts[rows]], axis=1)


class Relevance(NamedTuple):
    """What tells held-out pairs from training pairs."""

    log_ratio: Float64[np.ndarray, " n"]  # of the training pairs, out of fold
    auc: float  # of the classifier, out of fold; 0.5: held-out pairs are like the pool
    weight: float  # how much nearness counts, 0 to 1


@one_blas_thread()
def held_out_relevance(
    training: Rows,
    held_out: Float[np.ndarray, "m d"],
    image_ids: Int64[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
) -> Relevance:
    """The log density ratio of the training pairs, and how much it tells.

        weight = max(0, 2 (auc - 3 se) - 1)        se: of the AUC of a classifier that knows nothing

    Below an AUC of 0.6 the weight is zero: a pool half of which are copies, or that lacks women,
    differs from right held-out pairs by so much, and nearness does not help there.

    Args:
        training: (n, d) features of both sides of the training pairs; read in blocks.
        held_out: of the held-out pairs.
        image_ids: pairs of one image are in one fold.
        rng: deals the folds, and draws the 20,000 training pairs that features are standardised
            by and classifiers fitted to, where there are more.

    Returns:
        Zeros and a weight of zero where there are too few pairs for folds, or no features.
    """
    n, m, n_images = len(image_ids), len(held_out), int(image_ids.max()) + 1
    if min(m, n_images) < 2 * N_FOLDS:
        return Relevance(np.zeros(n), 0.5, 0.0)
    y: np.ndarray = np.arange(n + m) >= n
    folds = np.concatenate(
        [(rng.permutation(n_images) % N_FOLDS)[image_ids], rng.permutation(m) % N_FOLDS]
    )
    drawn = np.ones(n + m, dtype=bool)
    if n > MOST_FITTED:
        drawn[rng.permutation(n)[MOST_FITTED:]] = False
    x = _Pairs.standardised_by(training, held_out, drawn)
    if x is None:
        return Relevance(np.zeros(n), 0.5, 0.0)
    best = max((_scores(x, y, folds, drawn, c) for c in PENALTIES), key=lambda s: auc(s, y, ~y))
    found = auc(best, y, ~y)
    error = math.sqrt((n + m + 1) / (12 * n * m))
    weight = max(0.0, 2 * (found - CLEAR * error) - 1) if found >= NARROW_AUC else 0.0
    return Relevance(best[~y], found, weight)


class _Pairs(NamedTuple):
    """n training pairs and then m held-out ones, standardised when they are asked for."""

    training: Rows
    held_out: Float[np.ndarray, "m d"]
    middle: Float64[np.ndarray, " d"]
    scale: float  # one for all features

    @classmethod
    def standardised_by(
        cls, training: Rows, held_out: Float[np.ndarray, "m d"], drawn: np.ndarray
    ) -> _Pairs | None:
        """By the mean and spread of those that are drawn; None where all features are zero."""
        width = held_out.shape[1]
        x = cls(training, held_out, np.zeros(width), 1.0).take(np.flatnonzero(drawn))
        if not x.any():
            return None
        scale = max(float(x.std()), np.finfo(float).tiny)
        return cls(training, held_out, x.mean(axis=0), scale)

    def take(self, rows: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, "k d"]:
        """Some pairs; rows are in rising order."""
        n_training = np.searchsorted(rows, self.training.shape[0])
        ours, theirs = rows[:n_training], rows[n_training:] - self.training.shape[0]
        x = np.concatenate([self.training[ours], self.held_out[theirs]]).astype(np.float64)
        return np.asarray((x - self.middle) / self.scale)


def _scores(
    x: _Pairs,
    y: np.ndarray,
    folds: Int64[np.ndarray, " k"],
    drawn: np.ndarray,
    c: float,
) -> Float64[np.ndarray, " k"]:
    """Log odds of being held out, each pair's by a classifier that has not seen its image."""
    scores = np.empty(len(y))
    for fold in range(N_FOLDS):
        fitted, asked = np.flatnonzero(drawn & (folds != fold)), np.flatnonzero(folds == fold)
        classifier = LogisticRegression(C=c, class_weight="balanced", max_iter=MAX_STEPS)
        classifier.fit(x.take(fitted), y[fitted])
        for start in range(0, len(asked), ROWS_AT_ONCE):
            rows = asked[start : start + ROWS_AT_ONCE]
            scores[rows] = classifier.decision_function(x.take(rows))
    return scores

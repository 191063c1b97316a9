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
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from sklearn.linear_model import LogisticRegression

from attribution.scores import auc

PENALTIES = (1e-4, 1e-3, 1e-2)  # scikit-learn's C: the inverse of the penalty
N_FOLDS = 3
MOST_FITTED = 20_000  # training pairs that a classifier is fitted to; bounds the time
CLEAR = 3.0  # standard errors of the AUC that are taken off before nearness counts
NARROW_AUC = 0.6  # below it held-out pairs are of the pool's kind, if not quite in its proportions
MAX_STEPS = 300


class Relevance(NamedTuple):
    """What tells held-out pairs from training pairs."""

    log_ratio: Float64[np.ndarray, " n"]  # of the training pairs, out of fold
    auc: float  # of the classifier, out of fold; 0.5: held-out pairs are like the pool
    weight: float  # how much nearness counts, 0 to 1


def held_out_relevance(
    training: Float[np.ndarray, "n d"],
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
        training: features of both sides of the training pairs.
        held_out: of the held-out pairs.
        image_ids: pairs of one image are in one fold.
        rng: deals the folds.

    Returns:
        Zeros and a weight of zero where there are too few pairs for folds, or no features.
    """
    n, m = len(training), len(held_out)
    x = np.concatenate([training, held_out]).astype(np.float64)
    if min(m, int(image_ids.max()) + 1) < 2 * N_FOLDS or not x.any():
        return Relevance(np.zeros(n), 0.5, 0.0)
    x = (x - x.mean(axis=0)) / max(float(x.std()), np.finfo(float).tiny)
    y: np.ndarray = np.arange(n + m) >= n
    n_images = int(image_ids.max()) + 1
    folds = np.concatenate(
        [(rng.permutation(n_images) % N_FOLDS)[image_ids], rng.permutation(m) % N_FOLDS]
    )
    drawn = np.ones(n + m, dtype=bool)
    if n > MOST_FITTED:
        drawn[rng.permutation(n)[MOST_FITTED:]] = False
    best = max((_scores(x, y, folds, drawn, c) for c in PENALTIES), key=lambda s: auc(s, y, ~y))
    found = auc(best, y, ~y)
    error = math.sqrt((n + m + 1) / (12 * n * m))
    weight = max(0.0, 2 * (found - CLEAR * error) - 1) if found >= NARROW_AUC else 0.0
    return Relevance(best[~y], found, weight)


def _scores(
    x: Float[np.ndarray, "k d"],
    y: np.ndarray,
    folds: Int64[np.ndarray, " k"],
    drawn: np.ndarray,
    c: float,
) -> Float64[np.ndarray, " k"]:
    """Log odds of being held out, each pair's by a classifier that has not seen its image."""
    scores = np.empty(len(x))
    for fold in range(N_FOLDS):
        fitted, asked = drawn & (folds != fold), folds == fold
        classifier = LogisticRegression(C=c, class_weight="balanced", max_iter=MAX_STEPS)
        scores[asked] = classifier.fit(x[fitted], y[fitted]).decision_function(x[asked])
    return scores

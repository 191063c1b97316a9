"""Several views of how well image and caption agree, joined to log odds on one calibrated scale.

    P(pair | x) = q / (q + 1),    q = (1 - w) exp(a + b . x) + w

with x what the views say of a pair or of an image with the caption of another, both equally
frequent, and w the share of wrong captions among the pairs, which agree like chance: a logistic
regression whose positives are contaminated (case-control with contaminated cases, Lancaster &
Imbens 1996; positive and unlabelled, Ward et al. 2009). So a + b . x is the log density ratio of
right pairs to wrong ones. Fitting it to those pairs alone that look right by one of the views would
cut them off along that view, which then seems to tell nearly all.

Not all wrong captions are as if drawn by lot: boilerplate is told better by another mixture than
exchanged captions are. So no view counts less than a quarter of what it would count alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit

MOST_JOINED = 50_000  # pairs that a scale is fitted to; bounds the time
LEAST_SHARE = 0.25  # of what a view would count alone
RIDGE = 1e-4  # on the coefficients of views that are joined; keeps them finite
LEAST_WRONG, MOST_WRONG = 0.005, 0.95  # shares of wrong captions that are reckoned with


class Agreement(NamedTuple):
    """How well the images and captions of n pairs agree, and what chance would give."""

    own: Float[np.ndarray, " n"]
    by_chance: Float[np.ndarray, " c"]  # of each image with the caption of another pair
    # Share of the other images that its caption suits better than its own; None: not looked at.
    outranked: Float[np.ndarray, " n"] | None = None


class JoinedAgreement(NamedTuple):
    """Log odds that image and caption belong together, right and wrong equally often."""

    log_odds: Float[np.ndarray, " n"]
    by_chance: Float[np.ndarray, " n"]  # of each image with the caption of another pair


class JoinedViews(NamedTuple):
    """Several views of agreement on one calibrated scale."""

    middle: Float[np.ndarray, " v"]
    coefficients: Float[np.ndarray, " v"]  # log odds per unit of each view, none negative
    intercept: float

    def log_odds(self, views: Sequence[Float[np.ndarray, " m"]]) -> Float[np.ndarray, " m"]:
        """That image and caption belong together, where right and wrong are equally frequent."""
        centred = np.stack(views, axis=1) - self.middle
        return np.asarray(centred @ self.coefficients + self.intercept)


def joined_agreement(
    views: Sequence[Agreement], wrong_share: float, rng: np.random.Generator | None = None
) -> JoinedAgreement:
    """Log odds that image and caption belong together, of pairs and by chance: `join_views`."""
    joined = join_views(views, wrong_share, rng)
    return JoinedAgreement(
        joined.log_odds([view.own for view in views]),
        joined.log_odds([view.by_chance for view in views]),
    )


def join_views(
    views: Sequence[Agreement], wrong_share: float, rng: np.random.Generator | None = None
) -> JoinedViews:
    """The scale on which views of the same n pairs add up: log odds.

    Each view counts for what it adds; one that tells nothing, or the contrary, counts for nothing.

    Args:
        views: of the same n pairs, with as many by chance.
        wrong_share: of the pairs, whose captions are as if drawn by chance.
        rng: draws 50,000 of them to fit to, where there are more; None: all are fitted to.
    """
    n = len(views[0].own)
    rows: np.ndarray = np.arange(n)
    if rng is not None and n > MOST_JOINED:
        rows = np.sort(rng.choice(n, MOST_JOINED, replace=False))
    own = np.stack([view.own[rows] for view in views], axis=1)
    by_chance = np.stack([view.by_chance[rows] for view in views], axis=1)
    examples = np.concatenate([own, by_chance])
    scale = np.maximum(examples.std(axis=0), np.finfo(np.float64).tiny)
    scale[np.ptp(examples, axis=0) <= 1e-12 * np.abs(examples).max(axis=0)] = np.inf  # constant
    middle = examples.mean(axis=0)
    wrong = float(np.clip(wrong_share, LEAST_WRONG, MOST_WRONG))
    own, by_chance = (own - middle) / scale, (by_chance - middle) / scale
    least: np.ndarray = np.zeros(len(views))
    if len(views) > 1:
        columns = [slice(view, view + 1) for view in range(len(views))]
        alone = [_contaminated_logistic(own[:, c], by_chance[:, c], wrong) for c in columns]
        least = LEAST_SHARE * np.array([fitted[0] for fitted in alone])
    fitted = _contaminated_logistic(own, by_chance, wrong, least)
    return JoinedViews(middle, fitted[:-1] / scale, float(fitted[-1]))


def _contaminated_logistic(
    own: Float[np.ndarray, "m v"],
    by_chance: Float[np.ndarray, "m v"],
    wrong: float,
    least: Float[np.ndarray, " v"] | None = None,
) -> Float[np.ndarray, " v1"]:
    """Coefficients b, none negative nor below `least`, and intercept a of highest likelihood."""
    log_wrong, log_right = np.log(wrong), np.log1p(-wrong)

    def loss(solution: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients, intercept = solution[:-1], solution[-1]
        value = RIDGE / 2 * float((coefficients**2).sum())
        gradient = np.append(RIDGE * coefficients, 0.0)
        for rows, sign in ((own, 1.0), (by_chance, -1.0)):
            log_ratio = rows @ coefficients + intercept + log_right
            log_q = np.logaddexp(log_ratio, log_wrong)
            value += float(np.logaddexp(0, -sign * log_q).mean()) / 2
            slopes = -sign * expit(-sign * log_q) * expit(log_ratio - log_wrong) / (2 * len(rows))
            gradient += np.append(rows.T @ slopes, slopes.sum())
        return value, gradient

    n_views = own.shape[1]
    start = np.append(np.ones(n_views), 0.0)
    lowest = np.zeros(n_views) if least is None else least
    bounds = [*((float(bound), None) for bound in lowest), (None, None)]
    return np.asarray(minimize(loss, start, jac=True, bounds=bounds).x)

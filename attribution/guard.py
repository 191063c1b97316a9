"""How much influence counts beside agreement: less where the two contradict each other.

Influence is the word of held-out pairs. Where these are wrong, or have nothing to say about what is
wrong in the pool, pairs that look wrong have the higher influence, and what it says is not to be
followed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from attribution.fault_share import WrongShare
from attribution.scores import auc, standardised

FEWEST_WRONG = 0.02  # share of wrong captions, surely, from which influence has to tell them
TELLS, MISLEADS = 0.5, 0.35  # AUC at which influence counts fully and not at all


class Guard(NamedTuple):
    """How much influence counts, and why not fully."""

    weight: float  # 0 to 1
    correlation: float  # of influence and agreement over the pairs; 0 where one is constant
    tells_right: float | None  # AUC of influence; None where too few captions look wrong
    reason: str  # "" where it counts fully


def guard_influence(
    influence: Float[np.ndarray, " n"],
    agreement: Float[np.ndarray, " n"],
    wrong: WrongShare | None,
) -> Guard:
    """What influence is worth beside agreement.

    Asked is how often, of a pair that is right and one that is wrong, the right one has the higher
    influence: the AUC, with every pair counted as right and as wrong by its odds. A correlation
    alone does not show it: where nearly all pairs are right, hard ones may help most.

    Args:
        influence: of every training pair.
        agreement: log odds that image and caption belong together, right and wrong equally often.
        wrong: share of wrong captions among the pairs.
    """
    both_vary = all(standardised(values).any() for values in (influence, agreement))
    correlation = float(np.corrcoef(influence, agreement)[0, 1]) if both_vary else 0.0
    if wrong is None or wrong.low < FEWEST_WRONG or not both_vary:
        return Guard(1.0, correlation, None, "")
    right = np.exp(log_probability_right(agreement, wrong.share))
    tells = auc(influence, right, 1 - right)
    weight = float(np.clip((tells - MISLEADS) / (TELLS - MISLEADS), 0, 1))
    reason = (
        ""
        if weight == 1
        else "influence and agreement contradict each other: of a right and a wrong pair the right "
        f"one has the higher influence only {100 * tells:.0f} % of the time (correlation "
        f"{correlation:+.2f})"
    )
    return Guard(weight, correlation, tells, reason)


def log_probability_right(
    log_odds: Float[np.ndarray, " n"], wrong_share: float
) -> Float[np.ndarray, " n"]:
    """Log probability that a pair is right where this share is wrong, nats."""
    share = np.clip(wrong_share, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(expit(np.clip(log_odds + np.log((1 - share) / share), -500, None))))

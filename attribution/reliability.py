"""How well influence is known: two halves of what it is made from, beside each other.

One half of the validation pairs, by every other repeat of the models and every other evaluated
pair, and the rest of all three: nothing but the truth makes both say the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from attribution.additive_model import pool_influence

FEWEST_EACH = 10  # evaluated pairs that a half can be inferred from


class Reliability(NamedTuple):
    """What the inferred influence of n pairs is worth.

    Attributes:
        reliability: share of its variance that is truth; split-half, stepped up by Spearman and
            Brown. None where there are no two halves.
        squared_difference: of the halves' word on every pair, nats squared, of their mean; zero
            where there are no two halves.
    """

    reliability: float | None
    squared_difference: float

    @property
    def weight(self) -> float:
        """What a standard deviation of influence counts: the truth that is expected of it.

            E[true | inferred] = sqrt(reliability) inferred        both standardised; Kelley (1947)

        Where nothing tells, it is taken as it is.
        """
        return 1.0 if self.reliability is None else math.sqrt(self.reliability)


class Measured(NamedTuple):
    """Influence of m evaluated pairs, nats."""

    influence: Float[np.ndarray, " m"]  # the mean over all
    halves: list[Float[np.ndarray, " m"]]  # by one half of what it is made from, and by the other
    noise: float | None  # variance of the first; None of one repeat


def measured(influences: Float[np.ndarray, "q R m"]) -> Measured:
    """What the parts of the validation pairs say together, by all repeats of the models.

    Args:
        influences: of m pairs, nats, by each part and repeat.
    """
    per_repeat, per_part = influences.mean(axis=0), influences.mean(axis=1)
    if len(per_repeat) == 1:
        return Measured(per_repeat[0], [], None)
    noise = float(per_repeat.var(axis=0, ddof=1).mean()) / len(per_repeat)
    if len(per_part) == 2:  # what they differ by beyond their models is the validation pairs'
        noise += float(((per_part[0] - per_part[1]) ** 2).mean()) / 4
    one, other = influences[0, ::2].mean(axis=0), influences[-1, 1::2].mean(axis=0)
    return Measured(per_repeat.mean(axis=0), [one, other], noise)


def own_share(found: Measured, pooled: Float[np.ndarray, " m"]) -> float:
    """How far a measured influence is to be believed beyond what the model says of its like.

        share = max(0, 1 - noise / residual)

    with the mean square of the residuals and the part of it that is noise, the sampling of the
    validation pairs included (empirical Bayes). One repeat has no spread and counts half.
    """
    residual = float(((found.influence - pooled) ** 2).mean())
    if residual == 0:
        return 0.0
    return 0.5 if found.noise is None else max(0.0, 1 - found.noise / residual)


def split_half(
    found: Measured,
    index: Int64[np.ndarray, " m"],
    quantities: Sequence[Float[np.ndarray, " n"]],
    cluster_assignments: Int64[np.ndarray, " n"],
) -> Reliability:
    """What the inferred influence of n pairs is worth, see the top.

        reliability = 2 r / (1 + r),    r: correlation of both halves' word on all pairs

    Args:
        found: influence of the evaluated pairs.
        index: their rows.
        quantities: what is known of every pair, as `pool_influence` is given it.
        cluster_assignments: topic of every pair.
    """
    if not found.halves or len(index) < 2 * FEWEST_EACH:
        return Reliability(None, 0.0)
    one, other = (
        pool_influence(
            influence[half::2], index[half::2], quantities, cluster_assignments
        ).predicted
        for half, influence in enumerate(found.halves)
    )
    difference = float(((one - other) ** 2).mean()) / 4
    if min(one.std(), other.std()) == 0:
        return Reliability(0.0, difference)
    r = max(0.0, float(np.corrcoef(one, other)[0, 1]))
    return Reliability(2 * r / (1 + r), difference)

"""How well influence is known: two halves of what it is made from, beside each other.

The one half are some validation pairs, the models that these are asked of and every other
evaluated pair; the other half the rest. Nothing but the truth makes both say the same.
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
    """Influence of m evaluated pairs."""

    influence: Float[np.ndarray, " m"]  # the mean over the parts of the validation pairs
    by_part: list[Float[np.ndarray, " m"]]  # the mean over the repeats that ask it
    noise: float | None  # variance of the first, by how the parts differ; None of one repeat


def measured(per_repeat: Float[np.ndarray, "R m"], asked: Int64[np.ndarray, " R"]) -> Measured:
    """What all repeats say together.

    Args:
        per_repeat: influence of m pairs, nats.
        asked: which part of the validation pairs each repeat asks.
    """
    by_part = [per_repeat[asked == part].mean(axis=0) for part in np.unique(asked)]
    influence = np.mean(by_part, axis=0)
    if len(by_part) == 2:
        noise = float(((by_part[0] - by_part[1]) ** 2).mean()) / 4
    elif len(per_repeat) > 1:
        noise = float(per_repeat.var(axis=0, ddof=1).mean()) / len(per_repeat)
    else:
        noise = None
    return Measured(np.asarray(influence), by_part, noise)


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
    if len(found.by_part) < 2 or len(index) < 2 * FEWEST_EACH:
        return Reliability(None, 0.0)
    one, other = (
        pool_influence(
            influence[half::2], index[half::2], quantities, cluster_assignments
        ).predicted
        for half, influence in enumerate(found.by_part)
    )
    difference = float(((one - other) ** 2).mean()) / 4
    if min(one.std(), other.std()) == 0:
        return Reliability(0.0, difference)
    r = max(0.0, float(np.corrcoef(one, other)[0, 1]))
    return Reliability(2 * r / (1 + r), difference)

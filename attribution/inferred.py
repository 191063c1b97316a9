"""Influence of every pair from that of the evaluated ones, and how well it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from attribution.additive_model import PooledInfluence, pool_influence
from attribution.reliability import Reliability, measured, own_share, split_half


class ExplainedBy(NamedTuple):
    """What influence is inferred from."""

    rows: Int64[np.ndarray, " m"]  # the evaluated pairs
    quantities: Sequence[Float[np.ndarray, " n"]]  # known of every pair
    topics: Int64[np.ndarray, " n"]


class Inferred(NamedTuple):
    """Influence of n pairs, nats."""

    influence: Float[np.ndarray, " n"]
    per_repeat: Float[np.ndarray, "R m"]  # of the evaluated pairs
    own_share: float  # of the way that these were moved to their own measurement
    pooled: PooledInfluence  # its standard errors hold the sampling of the validation pairs
    reliability: Reliability


def infer(influences: Float[np.ndarray, "q R m"], by: ExplainedBy) -> Inferred:
    """What is inferred of all pairs, the evaluated ones moved towards their own measurement.

    Args:
        influences: of the evaluated pairs, nats, by part of the validation pairs and repeat.
        by: what is known of every pair.
    """
    found = measured(influences)
    reliability = split_half(found, by.rows, by.quantities, by.topics)
    pooled = pool_influence(found.influence, by.rows, by.quantities, by.topics)
    pooled = pooled.widened(reliability.squared_difference)
    influence, of_evaluated = pooled.predicted.copy(), pooled.predicted[by.rows]
    share = own_share(found, of_evaluated)
    influence[by.rows] += share * (found.influence - of_evaluated)
    return Inferred(influence, influences.mean(axis=0), share, pooled, reliability)

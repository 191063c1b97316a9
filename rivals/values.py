"""What stage 3 would choose if it knew less."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from attribution.results import PairInfluence
from curation import NEUTRAL, chosen_rows, counted_weights, estimated_parts
from learner.pairs import TrainingPairs
from rivals.given import Reference


def without_influence(
    pairs: TrainingPairs, size: int, reference: Reference | None
) -> Int64[np.ndarray, " m"]:
    """Rows that stage 3 would keep if influence counted nothing: the control of influence.

    The same values less their part of influence, from the same estimate and settings; no cluster
    is known to be harmful and no pair is raised, and a reviewer's say is not obeyed. The agreement
    is stage 2's, whose held-out models it asks.
    """
    reference, influence = _known(reference)
    parts = estimated_parts(pairs, influence, reference.curation)
    clusters = pairs.cluster_assignments
    categories = np.full(int(clusters.max()) + 1, NEUTRAL, dtype=object)
    values = parts._replace(influence=np.zeros_like(parts.influence)).total
    given = categories, pairs.groups, influence.looks_faulty, size, reference.curation
    return chosen_rows(clusters, *given, values)


def weights_without_influence(
    rows: Int64[np.ndarray, " m"], reference: Reference | None
) -> Float64[np.ndarray, " m"]:
    """What stage 3 would have these rows count, mean one: pairs that look faulty little."""
    reference, influence = _known(reference)
    weights = counted_weights(np.ones(len(rows)), influence.looks_faulty[rows], reference.curation)
    return np.asarray(weights / weights.mean())


def _known(reference: Reference | None) -> tuple[Reference, PairInfluence]:
    assert reference is not None, "select_baseline sees to it"
    assert reference.pair_influence is not None, "select_baseline sees to it"
    return reference, reference.pair_influence

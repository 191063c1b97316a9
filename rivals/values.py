"""What stage 3 would choose if it knew less."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from curation import NEUTRAL, chosen_rows, estimated_parts
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
    assert reference is not None, "select_baseline sees to it"
    assert reference.pair_influence is not None, "select_baseline sees to it"
    parts = estimated_parts(pairs, reference.pair_influence, reference.curation)
    clusters = pairs.cluster_assignments
    categories = np.full(int(clusters.max()) + 1, NEUTRAL, dtype=object)
    values = parts._replace(influence=np.zeros_like(parts.influence)).total
    junk = np.zeros(len(values), dtype=bool)
    if reference.pair_influence.unfaulty is not None:
        junk = ~reference.pair_influence.unfaulty
    return chosen_rows(clusters, categories, pairs.groups, junk, size, reference.curation, values)

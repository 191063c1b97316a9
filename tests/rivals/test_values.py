"""Stage 3 without influence, beside stage 3 with an influence of zero."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from baselines import select_baseline
from curation import CurationConfig, curate
from rivals.values import without_influence
from tests.knowing import cluster_influence, pair_influence
from tests.rivals.cases import Case, case_of

N, K = 40, 3


def case(**said: np.ndarray) -> Case:
    rng = np.random.default_rng(0)
    case = case_of(
        N, better_copies=rng.integers(0, 2, size=N), groups={"female": rng.random(N) < 0.3}
    )
    estimate = pair_influence(100 * rng.normal(size=N), np.arange(N) % K, **said)
    config = CurationConfig(agreement_weight=0.7, copy_price=0.4, min_group_retention=0.5)
    assert case.reference is not None
    return Case(case.pairs, case.reference._replace(pair_influence=estimate, curation=config))


def test_it_is_what_stage_3_keeps_of_pairs_without_influence() -> None:
    rng = np.random.default_rng(1)
    pairs, known = case(agreement=rng.normal(size=N), relevance_part=rng.normal(size=N))
    assert known is not None
    assert known.pair_influence is not None
    nothing = dataclasses.replace(known.pair_influence, pair_influence=np.zeros(N))
    config = dataclasses.replace(known.curation, target_size_ratio=0.5)
    expected = curate(pairs, cluster_influence(np.zeros(K)), nothing, config).curated_rows
    found = without_influence(pairs, 20, known)
    assert found.tolist() == expected.tolist()
    loud = curate(pairs, cluster_influence(np.zeros(K)), known.pair_influence, config)
    assert loud.curated_rows.tolist() != found.tolist()


def test_agreement_and_copies_by_hand() -> None:
    agreement = np.arange(N, dtype=float)
    pairs, known = case(agreement=agreement)
    assert known is not None
    free = known._replace(curation=CurationConfig(copy_price=0.0))
    # The highest agreement; of 13 or 14 pairs a cluster protects one, which is among them.
    assert without_influence(pairs, 10, free).tolist() == list(range(30, 40))
    dear = known._replace(curation=CurationConfig(copy_price=100.0))
    originals = np.flatnonzero(pairs.better_copies == 0)
    assert without_influence(pairs, 10, dear).tolist() == originals[-10:].tolist()


def test_pairs_that_look_faulty_weigh_as_in_stage_3() -> None:
    name, rng = "influencespace_without_influence", np.random.default_rng(2)
    agreement = rng.normal(size=N)
    pairs, known = case(agreement=agreement, unfaulty=agreement > -0.2)
    assert known is not None
    assert known.pair_influence is not None
    nothing = dataclasses.replace(known.pair_influence, pair_influence=np.zeros(N))
    config = dataclasses.replace(known.curation, target_size_ratio=0.8)
    expected = curate(pairs, cluster_influence(np.zeros(K)), nothing, config)
    found = select_baseline(name, pairs, known, 0.8, rng)
    assert found.rows.tolist() == expected.curated_rows.tolist()
    assert found.weights is not None
    np.testing.assert_allclose(found.weights, expected.sample_weights, rtol=1e-12)
    assert found.weights.min() < 0.02 < 1 < found.weights.max()
    assert select_baseline("random", pairs, None, 0.8, rng).weights is None


def test_without_the_influence_of_pairs_it_says_so() -> None:
    pairs, known = case()
    assert known is not None
    name = "influencespace_without_influence"
    with pytest.raises(ValueError, match=f"{name} needs the pair influence of stage 2"):
        select_baseline(
            name, pairs, known._replace(pair_influence=None), 0.5, np.random.default_rng(0)
        )

"""The exact programme against a generic solver, what is kept and raised, and what people read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, minimize

from artifacts.settings import InputError
from attribution.keep_curve import KeepCurve
from attribution.results import PairInfluence
from curation import (
    BENEFICIAL,
    DEFAULT_SHARE,
    DROP,
    HARMFUL,
    KEEP,
    NEUTRAL,
    SORTS_DIFFICULTY,
    CurationConfig,
    CurationResult,
    categorize,
    categorize_cells,
    curated_size,
    curve_settings,
    default_rho,
    estimated_parts,
    faults_alone,
    group_retention,
    protected_rows,
    share_with_room,
    solve_weights,
    value_parts,
)
from curation import curate as curate_pairs
from learner.pairs import TrainingPairs, representation
from reporting.summary import drop_examples, faults_dropped
from tests.knowing import cluster_influence, pair_influence, replaced, training_pairs

Z95 = 1.6448536  # the normal distribution's 95th percentile, from a table


@dataclasses.dataclass(frozen=True)
class Case:
    """What is known of n training pairs in C cells and K clusters when they are chosen."""

    indices: np.ndarray
    cluster_assignments: np.ndarray
    cell_assignments: np.ndarray
    clip_scores: np.ndarray
    better_copies: np.ndarray
    pair_influence: np.ndarray
    cell_influence_stderr: np.ndarray
    influence_scores: np.ndarray
    influence_stderr: np.ndarray
    represented: np.ndarray
    groups: Mapping[str, np.ndarray]
    clusters: list[dict[str, Any]]
    agreement: np.ndarray | None = None  # or else the CLIP score
    counts: bool = True  # whether influence does
    influence_weight: float = 1.0
    relevance: np.ndarray | None = None
    unfaulty: np.ndarray | None = None  # or else nothing is known of faults

    @property
    def pairs(self) -> TrainingPairs:
        n = len(self.cluster_assignments)
        return replaced(training_pairs(n), dataclasses.asdict(self))  # type: ignore[no-any-return]

    @property
    def influence(self) -> PairInfluence:
        n = len(self.pair_influence)
        return pair_influence(
            self.pair_influence,
            self.cell_assignments,
            agreement=self.clip_scores if self.agreement is None else self.agreement,
            cell_influence_stderr=self.cell_influence_stderr,
            influence_weight=self.influence_weight,
            relevance_part=np.zeros(n) if self.relevance is None else self.relevance,
            quality={"explained": float(self.counts)},
            unfaulty=self.unfaulty,
        )


def pair_values(*given: Any, **more: Any) -> np.ndarray:
    return value_parts(*given, **more).total


def curate(
    case: Case,
    config: CurationConfig,
    reviewed: np.ndarray | None = None,
    *,
    must_fit: bool = True,
) -> CurationResult:
    scores = cluster_influence(case.influence_scores, case.influence_stderr)
    return curate_pairs(case.pairs, scores, case.influence, config, reviewed, must_fit=must_fit)


def inputs_of(
    influence: Any,
    clusters: Any,
    *,
    cells: Any = None,
    clip_scores: Any = None,
    copies: Any = None,
    cell_stderr: Any = None,
    scores: Any = None,
    stderr: Any = None,
    represented: Any = None,
    groups: Mapping[str, np.ndarray] | None = None,
) -> Case:
    """Cells are clusters, all else is equal and certain, unless it is given."""
    influence, clusters = np.array(influence, dtype=np.float64), np.array(clusters)
    cells = clusters if cells is None else np.array(cells)
    n, n_clusters, n_cells = len(clusters), int(clusters.max()) + 1, int(cells.max()) + 1
    if scores is None:  # share of a validation loss of two nats
        scores = np.bincount(clusters, influence) / n / 2
    return Case(
        indices=10 * np.arange(n) + 3,
        cluster_assignments=clusters,
        cell_assignments=cells,
        clip_scores=np.full(n, 0.25) if clip_scores is None else np.array(clip_scores),
        better_copies=np.zeros(n, dtype=np.int64) if copies is None else np.array(copies),
        pair_influence=influence,
        cell_influence_stderr=np.zeros(n_cells) if cell_stderr is None else np.array(cell_stderr),
        influence_scores=np.array(scores, dtype=np.float64),
        influence_stderr=np.zeros(n_clusters) if stderr is None else np.array(stderr),
        represented=np.ones(n_clusters)
        if represented is None
        else np.array(represented, dtype=np.float64),
        groups={} if groups is None else groups,
        clusters=[{"terms": [f"term{k}", "b", "c", "d"]} for k in range(n_clusters)],
    )


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """What `inputs_of` takes: up to forty pairs in up to five clusters of up to three cells each.

    Many values are equal.
    """
    pairs = draw(
        st.lists(
            st.tuples(
                st.integers(0, 4),  # cluster
                st.integers(0, 2),  # cell within it
                st.integers(-4, 4),  # influence
                st.integers(0, 5),  # CLIP score
                st.sampled_from([0, 0, 0, 1, 3]),  # better copies
                st.booleans(),  # of a demographic group
            ),
            min_size=1,
            max_size=40,
        )
    )
    table = np.array(pairs, dtype=np.int64)
    clusters = np.unique(table[:, 0], return_inverse=True)[1].reshape(-1)
    cells = np.unique(table[:, :2], axis=0, return_inverse=True)[1].reshape(-1)
    n_clusters, n_cells = int(clusters.max()) + 1, int(cells.max()) + 1

    def one_each(values: list[float], n: int) -> list[float]:
        return draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))

    return {
        "influence": table[:, 2],
        "clusters": clusters,
        "cells": cells,
        "clip_scores": table[:, 3] / 20,
        "copies": table[:, 4],
        "cell_stderr": one_each([0.0, 0.3, 2.0], n_cells),
        "scores": one_each([-0.05, -0.0005, 0.0, 0.03], n_clusters),
        "stderr": one_each([0.0, 0.02], n_clusters),
        "represented": one_each([0.3, 1.0, 1.8, 9.0], n_clusters),
        "groups": {"women": table[:, 5] > 0, "nobody": np.zeros(len(table), dtype=bool)},
    }


RATIOS = st.floats(0.01, 1)
property_test = hypothesis_settings(deadline=None, derandomize=True, max_examples=60)


def said(*words: int) -> np.ndarray:
    """What a reviewer says of each pair."""
    return np.array(words, dtype=np.int8)


# --- Settings and categories ------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.01), (0.02, 0.01), (-0.001, -0.5)])
def test_contradictory_thresholds_are_an_input_error(low: float, high: float) -> None:
    with pytest.raises(
        InputError,
        match=rf"--harmful_threshold \({low:g}\) must be below --beneficial_threshold \({high:g}\)",
    ):
        CurationConfig(harmful_threshold=low, beneficial_threshold=high)


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("target_size_ratio", 0.0, "> 0"),
        ("target_size_ratio", 1.1, "<= 1"),
        ("confidence", 0.4, ">= 0.5"),
        ("confidence", 1.0, "< 1"),
        ("max_weight", 0.5, ">= 1"),
        ("agreement_weight", -0.1, ">= 0"),
        ("copy_price", -1.0, ">= 0"),
        ("faulty_weight", 0.0, "> 0"),
        ("faulty_weight", 1.1, "<= 1"),
        ("rho", 0.0, "> 0"),
        ("min_group_retention", -0.1, ">= 0"),
        ("min_group_retention", 1.1, "<= 1"),
    ],
)
def test_wrong_settings_are_input_errors(setting: str, value: Any, rule: str) -> None:
    with pytest.raises(InputError, match=f"--{setting} must be {rule}; got {value:g}"):
        CurationConfig(**{setting: value})


def test_categories_by_threshold() -> None:
    config = CurationConfig(harmful_threshold=-0.01, beneficial_threshold=0.02)
    scores = np.array([-0.05, -0.01, -0.005, 0.0, 0.02, 0.03])
    assert categorize(scores, np.zeros(6), config).tolist() == [
        HARMFUL,
        NEUTRAL,  # at the threshold is not beyond it
        NEUTRAL,
        NEUTRAL,
        NEUTRAL,
        BENEFICIAL,
    ]


@pytest.mark.parametrize(
    ("confidence", "certain"),
    [(0.5, True), (0.9, True), (0.95, True), (0.96, False), (0.99, False)],
)
def test_a_sign_must_be_certain_enough(confidence: float, certain: bool) -> None:
    # 1.70 standard errors: one-sided, a normal is below them with a probability of 0.955.
    config = CurationConfig(confidence=confidence)
    influence, stderr = np.array([-0.17, 0.17]), np.array([0.1, 0.1])
    expected = [HARMFUL, BENEFICIAL] if certain else [NEUTRAL, NEUTRAL]
    assert categorize(influence, stderr, config).tolist() == expected
    assert categorize_cells(influence, stderr, config).tolist() == expected


def test_a_cell_needs_a_certain_sign_and_no_threshold() -> None:
    config = CurationConfig(harmful_threshold=-10.0, beneficial_threshold=10.0)
    influence, stderr = np.array([-1e-6, 0.0, 1e-6, 1e-6]), np.array([0.0, 0.0, 0.0, 1.0])
    categories = categorize_cells(influence, stderr, config)
    assert categories.tolist() == [HARMFUL, NEUTRAL, BENEFICIAL, NEUTRAL]


# --- The programme ----------------------------------------------------------------------------


def generic_solution(
    gains: np.ndarray, caps: np.ndarray, total: float, least: np.ndarray | float = 0.0
) -> np.ndarray:
    """The programme by SciPy's SLSQP: sum_i w_i = total, least_i <= w_i <= cap_i."""

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        return float(((w - 1) ** 2 / 2 - w * gains).sum()), w - 1 - gains

    result = minimize(
        objective,
        np.minimum(caps, 1) * total / caps.clip(max=1).sum(),
        jac=True,
        bounds=Bounds(np.zeros(len(caps)) + least, caps),
        constraints=LinearConstraint(np.ones(len(caps)), total, total),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return np.asarray(result.x)


def random_programme(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Gains and caps of 3 to 12 pairs; at no price the first stays whole and the second goes."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 13))
    gains, caps = rng.normal(size=n), rng.choice([1.0, 1.0, 1.3, 3.0], size=n)
    gains[:3] = [0.3, -1.5, 1.6]
    return rng, gains, caps


@pytest.mark.parametrize("seed", range(12))
def test_weights_solve_the_programme_exactly(seed: int) -> None:
    rng, gains, caps = random_programme(seed)
    at_no_price = float(np.clip(1 + gains, 0, 1).sum())
    target = int(rng.integers(1, int(at_no_price) + 1))
    weights = solve_weights(gains, caps, target)
    assert np.all((weights >= 0) & (weights <= caps))
    # Pairs cannot be kept more than whole: the budget counts no weight above one. Root to 1e-12.
    assert np.minimum(weights, 1).sum() == pytest.approx(target, abs=1e-9)
    # With the total weight that goes with it, the plain programme has the same solution.
    expected = generic_solution(gains, caps, float(weights.sum()))
    # SLSQP stops at 1e-14 of the objective, so about its root in the weights.
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_weights_at_a_negative_price(seed: int) -> None:
    rng, gains, caps = random_programme(seed)
    at_no_price = float(np.clip(1 + gains, 0, 1).sum())
    target = int(rng.integers(int(np.ceil(at_no_price)), len(gains) + 1))
    weights = solve_weights(gains, caps, target)
    shares = np.minimum(weights, 1)
    assert shares.sum() == pytest.approx(target, abs=1e-9)
    # What is kept solves the programme with no weight above one; tolerances as above.
    expected = generic_solution(gains, np.ones(len(gains)), target)
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    # What is raised is what it would be at no price at all.
    unpriced = np.clip(1 + gains, 0, caps)
    above = unpriced > 1
    np.testing.assert_array_equal(weights > 1, above)
    np.testing.assert_allclose(weights[above], unpriced[above], rtol=1e-14)


def test_weights_by_hand() -> None:
    # Price 0.25: (0.5 - 0.25) + (1 - 0.25) + 1 + 1 = 3.
    gains = np.array([-0.5, 0.0, 0.5, 1.0])
    for caps, expected in (
        ([1, 1, 5, 5], [0.25, 0.75, 1.25, 1.75]),
        ([1, 1, 1, 5], [0.25, 0.75, 1, 1.75]),  # a cap does not move the price
        ([5, 5, 1.1, 1.5], [0.25, 0.75, 1.1, 1.5]),
    ):
        weights = solve_weights(gains, np.array(caps, dtype=np.float64), 3)
        np.testing.assert_allclose(weights, expected, atol=1e-10)
    # All four: the price falls to -0.5, below zero, and raises nothing.
    np.testing.assert_allclose(solve_weights(gains, np.full(4, 5.0), 4), [1, 1, 1.5, 2])


def test_equal_pairs_are_kept_in_equal_shares() -> None:
    np.testing.assert_allclose(solve_weights(np.zeros(8), np.full(8, 3.0), 2), 0.25, atol=1e-10)
    assert solve_weights(np.zeros(1), np.ones(1), 1).tolist() == [1]


@given(
    gains=st.lists(st.floats(-5, 5), min_size=1, max_size=30),
    cap=st.floats(1, 6),
    data=st.data(),
)
@property_test
def test_weights_of_any_programme(gains: list[float], cap: float, data: st.DataObject) -> None:
    g, n = np.array(gains), len(gains)
    target = data.draw(st.integers(1, n))
    weights = solve_weights(g, np.full(n, cap), target)
    assert np.all((weights >= 0) & (weights <= cap))
    assert np.minimum(weights, 1).sum() == pytest.approx(target, abs=1e-9)
    # No pair of less gain weighs more, and what is raised is earned by the gain.
    assert np.all(np.diff(weights[np.argsort(g)]) >= -1e-12)
    assert np.all(weights <= np.maximum(1, 1 + g - min(g.min(), 0)) + 1e-9)
    fewer = solve_weights(g, np.full(n, 1.0), max(1, target - 1))
    assert np.all(fewer <= np.minimum(weights, 1) + 1e-9)


# --- Values, sharpness, representation --------------------------------------------------------


def test_values_by_hand() -> None:
    config = CurationConfig(agreement_weight=0.5, copy_price=0.25)
    influence = np.array([0.0, 4.0, 4.0, 8.0])  # deviation sqrt(8)
    agreement = np.array([0.3, 0.1, 0.3, 0.1])  # deviation 0.1
    values = pair_values(influence, agreement, np.array([0, 1, 2, 0]), config)
    z = 4 / np.sqrt(8)
    np.testing.assert_allclose(values, [-z + 0.5, -0.75, 0, z - 0.5], atol=1e-12)


def test_values_with_a_guard_and_a_target_by_hand() -> None:
    config = CurationConfig(agreement_weight=0.5, copy_price=0.25)
    influence = np.array([0.0, 4.0, 4.0, 8.0])  # z: -sqrt 2, 0, 0, sqrt 2
    agreement = np.array([0.3, 0.1, 0.3, 0.1])  # z: 1, -1, 1, -1
    copies, relevance = np.array([0, 1, 2, 0]), np.array([0.7, -3.0, 0.0, 0.1])
    z = np.sqrt(2)
    for weight, near, expected in (
        (0.25, relevance, [-z / 4 + 0.5 + 0.7, -0.5 - 0.25 - 3.0, 0.5 - 0.5, z / 4 - 0.5 + 0.1]),
        (0.0, relevance, [0.5 + 0.7, -0.5 - 0.25 - 3.0, 0.5 - 0.5, -0.5 + 0.1]),
        (0.25, None, [-z / 4 + 0.5, -0.5 - 0.25, 0.5 - 0.5, z / 4 - 0.5]),
        (1.0, None, [-z + 0.5, -0.5 - 0.25, 0.5 - 0.5, z - 0.5]),
    ):
        more: dict[str, Any] = {"influence_weight": weight, "relevance": near}
        values = pair_values(influence, agreement, copies, config, **more)
        np.testing.assert_allclose(values, expected, atol=1e-12)
        parts = value_parts(influence, agreement, copies, config, **more)
        np.testing.assert_allclose(parts.influence, weight * np.array([-z, 0, 0, z]), atol=1e-12)
        np.testing.assert_allclose(parts.agreement, [0.5, -0.5, 0.5, -0.5], atol=1e-12)
        assert parts.copies.tolist() == [0, -0.25, -0.5, 0]
        assert parts.relevance.tolist() == ([0.0] * 4 if near is None else relevance.tolist())


def test_what_helps_the_worst_served_group_is_a_part_of_the_value() -> None:
    on_all = np.array([0.0, 1.0, 2.0, 3.0, 0.0])
    beyond = np.array([-1.0, -1.0, 1.0, 1.0, 99.0])
    estimate = pair_influence(
        on_all,
        np.zeros(5, dtype=np.int64),
        group_influence=on_all + beyond,
        unfaulty=np.array([True] * 4 + [False]),
        quality={"explained": 1.0, "fairness": {"weight": 0.5}},
    )
    # Of the pairs that look right by hand; what looks wrong gets nothing, whatever it is said of.
    assert estimate.fairness_part is not None
    np.testing.assert_allclose(estimate.fairness_part, [-0.5, -0.5, 0.5, 0.5, 0.0], atol=1e-12)
    parts = estimated_parts(training_pairs(5), estimate, CurationConfig())
    without = estimated_parts(
        training_pairs(5), dataclasses.replace(estimate, group_influence=None), CurationConfig()
    )
    assert without.fairness is None
    np.testing.assert_allclose(parts.total - without.total, [-0.5, -0.5, 0.5, 0.5, 0.0], atol=1e-12)


def test_guard_and_target_decide_who_is_kept() -> None:
    plain = inputs_of([5.0, 4, 3, 2, 1, 0], [0] * 6, clip_scores=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    config = CurationConfig(target_size_ratio=0.5, agreement_weight=0.5)
    assert curate(plain, config).curated_rows.tolist() == [0, 1, 2]
    misled = dataclasses.replace(plain, influence_weight=0.25)
    assert curate(misled, config).curated_rows.tolist() == [3, 4, 5]
    aimed = dataclasses.replace(plain, relevance=np.array([0.0, 9, 0, 9, 0, 9]))
    result = curate(aimed, config)
    assert result.curated_rows.tolist() == [1, 3, 5]
    np.testing.assert_allclose(
        result.pair_values - curate(plain, config).pair_values, [0, 9, 0, 9, 0, 9], atol=1e-12
    )


def test_values_are_free_of_units() -> None:
    rng = np.random.default_rng(0)
    influence, agreement, copies = rng.normal(size=9), rng.normal(size=9), np.arange(9) % 3
    plain = pair_values(influence, agreement, copies, CurationConfig())
    other = pair_values(1e-5 * influence + 3e-5, 40 * agreement - 7, copies, CurationConfig())
    np.testing.assert_allclose(other, plain, atol=1e-9)


def test_what_does_not_vary_counts_nothing() -> None:
    n, agreement = 5, np.array([1.0, 2, 3, 4, 5])
    # Equal but for rounding: 0.1 * 3 / 3 need not be 0.1.
    equal = np.array([0.1, 0.1 * 3 / 3, 0.1 * 7 / 7, 0.1, 0.1 * 49 / 49]) + 1e-17
    values = pair_values(equal, agreement, np.zeros(n, dtype=np.int64), CurationConfig())
    np.testing.assert_allclose(values, (agreement - 3) / np.sqrt(2), atol=1e-12)
    alone = pair_values(np.ones(1), np.ones(1), np.array([2]), CurationConfig(copy_price=1.5))
    assert alone.tolist() == [-3]


def test_default_rho_is_one_over_the_mean_error_within_bounds() -> None:
    assert default_rho(np.array([0.1, 0.4]), np.array([2, 1])) == pytest.approx(5)  # mean 0.2
    assert default_rho(np.zeros(2), np.array([1, 1])) == 20
    assert default_rho(np.full(2, 30.0), np.array([1, 1])) == 1


def test_representation_by_hand() -> None:
    # 100 training pairs, 50 held-out: 25, 20 and 5 expected; two deviations are 10, 8.9 and 4.5.
    clusters, held_out = np.repeat([0, 1, 2], [50, 40, 10]), np.repeat([0, 1, 2], [14, 26, 10])
    np.testing.assert_allclose(representation(clusters, held_out), [14 / 25, 1, 2])
    held_out = np.repeat([0, 1], [15, 35])  # exactly two deviations, and none at all
    np.testing.assert_allclose(representation(clusters, held_out), [1, 35 / 20, 0])
    assert representation(clusters, held_out[:0]).tolist() == [1, 1, 1]


# --- What is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "ratio", "size"),
    [(10, 0.8, 8), (11, 0.8, 9), (3, 0.01, 1), (7, 1.0, 7), (1000, 0.333, 333), (1, 0.1, 1)],
)
def test_the_curated_size(n: int, ratio: float, size: int) -> None:
    assert curated_size(n, ratio) == size


def quotas(inputs: Case) -> dict[int, int]:
    """Pairs that each cluster may not fall below, from what the settings promise."""
    promised = {}
    for k in range(len(inputs.influence_scores)):
        size = sum(c == k for c in inputs.cluster_assignments.tolist())
        score, error = inputs.influence_scores[k], inputs.influence_stderr[k]
        harm_is_certain = score < -0.001 and -score > Z95 * error
        promised[k] = 0 if harm_is_certain else max(1, size // 20)
    return promised


@given(problem=problems(), ratio=RATIOS, max_weight=st.floats(1, 6))
@property_test
def test_any_ratio_is_met_exactly_with_a_mean_weight_of_one(
    problem: dict[str, Any], ratio: float, max_weight: float
) -> None:
    inputs = inputs_of(**problem)
    config = CurationConfig(target_size_ratio=ratio, max_weight=max_weight)
    result, n = curate(inputs, config), len(inputs.indices)
    rows, weights = result.curated_rows, result.sample_weights
    assert len(rows) == len(weights) == max(1, round(ratio * n))
    assert np.all(np.diff(rows) > 0)
    assert result.curated_indices.tolist() == [10 * row + 3 for row in rows]
    assert np.all(weights > 0)
    assert weights.mean() == pytest.approx(1, abs=1e-12)  # rounding of float64
    assert weights.max() / weights.min() <= max_weight * (1 + 1e-12)
    spread = result.training_weights(n)
    assert np.flatnonzero(spread).tolist() == rows.tolist()
    assert spread[rows].tolist() == weights.tolist()


@given(problem=problems(), ratio=RATIOS, share=st.sampled_from([0.0, 0.3]))
@property_test
def test_only_protected_pairs_stay_below_a_dropped_one(
    problem: dict[str, Any], ratio: float, share: float
) -> None:
    inputs = inputs_of(**problem)
    women = np.flatnonzero(inputs.groups["women"])
    ratio = max(ratio, (0.3 * len(women) + 1) / len(inputs.indices))  # room for them
    config = CurationConfig(target_size_ratio=min(ratio, 1.0), min_group_retention=share)
    result = curate(inputs, config)
    values = result.pair_values
    kept = set(result.curated_rows.tolist())

    def best(members: np.ndarray, count: int) -> set[int]:
        return set(sorted(members.tolist(), key=lambda row: (-values[row], row))[:count])

    protected = best(women, int(np.ceil(round(share * len(women), 9))))
    assert protected <= kept
    for k, quota in quotas(inputs).items():
        protected |= best(np.flatnonzero(inputs.cluster_assignments == k), quota)
    assert protected <= kept or kept <= protected  # all of them unless the target is too small
    free = kept - protected
    dropped = [row for row in range(len(values)) if row not in kept]
    if free and dropped:
        assert min(values[list(free)]) >= max(values[dropped])


@given(problem=problems(), ratios=st.tuples(RATIOS, RATIOS), share=st.sampled_from([0.0, 0.4]))
@property_test
def test_subsets_are_nested_as_the_ratio_grows(
    problem: dict[str, Any], ratios: tuple[float, float], share: float
) -> None:
    inputs = inputs_of(**problem)
    n, women = len(inputs.indices), int(inputs.groups["women"].sum())
    least = (share * women + 1.5) / n if share else 0.0  # room for the group
    small, large = (
        curate(
            inputs,
            CurationConfig(
                target_size_ratio=min(1.0, max(ratio, least)), min_group_retention=share
            ),
        ).curated_rows
        for ratio in sorted(ratios)
    )
    assert set(small.tolist()) <= set(large.tolist())


def test_harmful_clusters_vanish_and_the_others_do_not() -> None:
    # Influence falls from cluster to cluster; the last two are the worst by far.
    clusters = np.repeat([0, 1, 2, 3], [50, 60, 60, 10])
    influence = np.select([clusters == 0, clusters == 1], [3.0, 2.0], -5.0)
    influence[-10:] = -6.0
    scores, stderr = [0.02, 0.0, -0.05, -0.05], [0.0, 0.0, 0.001, 0.1]
    inputs = inputs_of(influence, clusters, scores=scores, stderr=stderr)
    result = curate(inputs, CurationConfig(target_size_ratio=0.5))
    # Of the uncertain one a pair, of the neutral one the rest; of sixty a twentieth is three.
    assert np.bincount(clusters[result.curated_rows], minlength=4).tolist() == [50, 39, 0, 1]
    inputs = dataclasses.replace(inputs, influence_scores=np.array([0.02, 0.0, -0.0005, 0.0]))
    result = curate(inputs, CurationConfig(target_size_ratio=0.5))
    assert np.bincount(clusters[result.curated_rows], minlength=4).tolist() == [50, 36, 3, 1]
    # Too small a target for all that is to stay, 2 + 3 + 3 + 1: the best of it.
    result = curate(inputs, CurationConfig(target_size_ratio=5 / 180))
    assert np.bincount(clusters[result.curated_rows], minlength=4).tolist() == [2, 3, 0, 0]


@given(problem=problems(), ratio=RATIOS)
@property_test
def test_a_cluster_keeps_a_twentieth_unless_its_harm_is_certain(
    problem: dict[str, Any], ratio: float
) -> None:
    inputs = inputs_of(**problem)
    promised, n = quotas(inputs), len(inputs.indices)
    target = max(sum(promised.values()), 1, round(ratio * n))
    result = curate(inputs, CurationConfig(target_size_ratio=target / n))
    kept = np.bincount(inputs.cluster_assignments[result.curated_rows], minlength=len(promised))
    assert len(result.curated_rows) == target
    for k, quota in promised.items():
        assert kept[k] >= quota


def test_a_demographic_group_keeps_its_share() -> None:
    influence = np.arange(20, dtype=np.float64)
    women = np.isin(np.arange(20), [0, 2, 3, 5, 19])
    inputs = inputs_of(influence, np.zeros(20, dtype=np.int64), groups={"women": women})

    def kept(share: float) -> list[int]:
        config = CurationConfig(target_size_ratio=0.3, min_group_retention=share)
        rows: list[int] = curate(inputs, config).curated_rows.tolist()
        return rows

    assert kept(0.0) == [14, 15, 16, 17, 18, 19]
    assert kept(0.2) == kept(0.0)  # one of five is there anyway
    assert kept(0.21) == [5, 15, 16, 17, 18, 19]  # rounded up to two
    assert kept(0.6) == [3, 5, 16, 17, 18, 19]
    assert kept(1.0) == [0, 2, 3, 5, 18, 19]


def test_groups_that_need_more_than_is_kept_are_an_input_error() -> None:
    women = np.arange(20) < 10
    inputs = inputs_of(
        np.arange(20), np.zeros(20, dtype=np.int64), groups={"women": women, "men": ~women}
    )
    config = CurationConfig(target_size_ratio=0.5, min_group_retention=0.6)
    with pytest.raises(
        InputError,
        match=r"--min_group_retention 0.6 keeps 12 pairs for the demographic groups, "
        r"--target_size_ratio 0.5 only 10 in all; lower the one or raise the other",
    ):
        curate(inputs, config)
    squeezed = curate(inputs, config, must_fit=False)
    assert len(squeezed.curated_rows) == 10
    fits = curate(inputs, dataclasses.replace(config, min_group_retention=0.5))
    assert fits.curated_rows.tolist() == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]


def test_one_who_is_in_two_groups_counts_for_both() -> None:
    n, values = 6, np.array([5.0, 4, 3, 2, 1, 0])
    groups = {"women": np.array([0, 0, 0, 1, 1, 0]) > 0, "old": np.array([0, 0, 0, 1, 0, 1]) > 0}
    protected = protected_rows(
        values,
        np.zeros(n, dtype=np.int64),
        np.array([HARMFUL], dtype=object),
        groups,
        np.zeros(n, dtype=bool),
        1,
        CurationConfig(min_group_retention=0.5),
    )
    assert np.flatnonzero(protected).tolist() == [3]


def protected_of(
    values: list[float], clusters: list[int], junk: list[int], **more: Any
) -> list[int]:
    is_junk = np.isin(np.arange(len(values)), junk)
    found = protected_rows(
        np.array(values),
        np.array(clusters),
        np.array([NEUTRAL] * (max(clusters) + 1), dtype=object),
        more.get("groups", {}),
        is_junk,
        more.get("target", len(values)),
        CurationConfig(min_group_retention=more.get("least", 0.0)),
    )
    rows: list[int] = np.flatnonzero(found).tolist()
    return rows


def test_a_topic_is_protected_but_not_its_faulty_pairs() -> None:
    values, clusters = [9.0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1]
    assert protected_of(values, clusters, []) == [0, 5]
    # The best of each that is not faulty, even where a faulty one has the higher value.
    assert protected_of(values, clusters, [0]) == [2, 5]
    assert protected_of(values, clusters, [3, 4, 5]) == [0]  # nothing in it is worth protecting
    assert protected_of(values, clusters, list(range(6))) == []


def test_of_a_large_cluster_as_many_are_protected_whatever_is_faulty() -> None:
    # A twentieth of sixty is three: those of rows 59, 58, 57, or the next that are not faulty.
    values, clusters = [float(i) for i in range(60)], [0] * 60
    assert protected_of(values, clusters, []) == [57, 58, 59]
    assert protected_of(values, clusters, [59, 57]) == [55, 56, 58]


def test_a_reviewer_may_protect_what_looks_faulty() -> None:
    # It counts for its cluster, which protects no other pair besides.
    assert protected_of([np.inf, 1.0, 2.0], [0, 0, 0], [0]) == [0]
    assert protected_of([-np.inf, 1.0, 2.0], [0, 0, 0], [2]) == [1]


def test_groups_are_kept_whatever_looks_faulty() -> None:
    groups = {"women": np.array([True, True, False, False])}
    kept = protected_of([4.0, 3, 2, 1], [0, 0, 1, 1], [0, 1, 2], groups=groups, least=0.5)
    assert kept == [0, 3]


def test_what_looks_faulty_goes_where_topics_are_protected() -> None:
    # Of a cluster of faulty pairs none is kept; a cluster of low value keeps its best right one.
    case = dataclasses.replace(
        inputs_of(
            [5.0, 4, 3, 2, 1, 0, -1, -2, -3, -4], [0, 0, 0, 0, 0, 0, 1, 1, 2, 2], scores=[0.0] * 3
        ),
        unfaulty=np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 1]) > 0,
    )
    config = CurationConfig(target_size_ratio=0.5)
    assert curate(case, config).curated_rows.tolist() == [0, 1, 2, 3, 9]
    unknown = dataclasses.replace(case, unfaulty=None)
    assert curate(unknown, config).curated_rows.tolist() == [0, 1, 2, 6, 8]


# --- Shares, and faults alone -------------------------------------------------------------------


def test_the_share_of_auto_is_the_default_until_it_is_found() -> None:
    assert CurationConfig(target_size_ratio="auto").share == DEFAULT_SHARE == CurationConfig().share
    assert CurationConfig(target_size_ratio=0.3).share == 0.3


def test_all_but_the_share_decides_what_is_kept_at_any_share() -> None:
    for ratio in (0.3, 1.0, "auto"):
        at = CurationConfig(target_size_ratio=ratio)
        assert curve_settings(at) == curve_settings(CurationConfig())
    assert "target_size_ratio" not in curve_settings(CurationConfig())
    assert curve_settings(CurationConfig(faulty_weight=0.5)) == curve_settings(CurationConfig())
    assert curve_settings(CurationConfig(max_weight=3.0)) != curve_settings(CurationConfig())


def curve(*, sorts_difficulty: bool) -> KeepCurve:
    one, best = np.zeros(1), {"share": 0.5, "sorts_difficulty": sorts_difficulty}
    return KeepCurve(one, one, one, one, one, one, one, one, best)


def known_faults() -> PairInfluence:
    """Six pairs: the first two look faulty; the higher the agreement, the surer it is right."""
    return pair_influence(
        np.array([9.0, 8, 7, 6, 5, 4]),
        np.zeros(6, dtype=np.int64),
        agreement=np.array([-3.0, -1.0, -0.5, 1.0, 2.0, 9.0]),
        unfaulty=np.array([False, False, True, True, True, True]),
    )


def test_where_values_sort_difficulty_they_drop_faults_alone() -> None:
    told = faults_alone(known_faults(), curve(sorts_difficulty=True), np.random.default_rng(0))
    assert told.influence_weight == told.quality["influence_weight"] == 0
    assert told.quality["guard"] == SORTS_DIFFICULTY
    assert told.quality["explained"] == 1.0
    # Pairs that look right are worth the same, but for the lot; the surer a fault, the less.
    np.testing.assert_allclose(told.agreement, [-3, -1, 0, 0, 0, 0], atol=1.1e-6)
    assert len(set(told.agreement.tolist())) == 6
    firsts = {
        int(
            faults_alone(
                known_faults(), curve(sorts_difficulty=True), np.random.default_rng(seed)
            ).agreement.argmax()
        )
        for seed in range(30)
    }
    assert firsts == {2, 3, 4, 5}


def test_faults_that_agree_are_worth_no_more_than_what_looks_right() -> None:
    # Where most is faulty a pair may agree better than chance and yet be faulty, more likely.
    mostly = dataclasses.replace(known_faults(), unfaulty=np.arange(6) == 5)
    told = faults_alone(mostly, curve(sorts_difficulty=True), np.random.default_rng(0))
    np.testing.assert_allclose(told.agreement, [-3, -1, -0.5, 0, 0, 0], atol=1.1e-6)


def test_where_values_do_not_sort_difficulty_all_of_them_counts() -> None:
    rng = np.random.default_rng(0)
    known = known_faults()
    assert faults_alone(known, curve(sorts_difficulty=False), rng) is known
    unknown = dataclasses.replace(known, unfaulty=None)
    assert faults_alone(unknown, curve(sorts_difficulty=True), rng) is unknown


def test_near_copies_go_before_their_originals_and_agreement_takes_part() -> None:
    clusters, copies = np.zeros(6, dtype=np.int64), np.array([0, 1, 2, 0, 0, 0])
    inputs = inputs_of(np.zeros(6), clusters, copies=copies)
    assert curate(inputs, CurationConfig(target_size_ratio=4 / 6)).curated_rows.tolist() == [
        0,
        3,
        4,
        5,
    ]
    plain = inputs_of(np.zeros(6), clusters, clip_scores=[0.1, 0.6, 0.5, 0.4, 0.3, 0.2])
    normalised = dataclasses.replace(plain, agreement=np.array([6.0, 5, 4, 3, 2, 1]))
    for inputs, expected in ((plain, [1, 2, 3]), (normalised, [0, 1, 2])):
        config = CurationConfig(target_size_ratio=0.5)
        assert curate(inputs, config).curated_rows.tolist() == expected


def test_influence_that_explains_nothing_does_not_count() -> None:
    plain = inputs_of([5.0, 4, 3, 2, 1, 0], [0] * 6, clip_scores=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    uncounted = dataclasses.replace(plain, counts=False)
    config = CurationConfig(target_size_ratio=0.5, agreement_weight=0.5)
    assert curate(plain, config).curated_rows.tolist() == [0, 1, 2]
    assert curate(uncounted, config).curated_rows.tolist() == [3, 4, 5]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_equal_pairs_and_a_single_pair(ratio: float) -> None:
    config = CurationConfig(target_size_ratio=ratio)
    equal = curate(inputs_of(np.full(10, 0.1), np.arange(10) % 2), config)
    assert len(equal.curated_rows) == 10 * ratio
    assert set(equal.sample_weights.tolist()) == {1.0}
    assert set(equal.pair_values.tolist()) == {0.0}
    single = curate(inputs_of([0.3], [0]), config)
    assert single.curated_rows.tolist() == [0]
    assert single.sample_weights.tolist() == [1.0]
    assert single.categorization[0]["cells"][0]["pairs_kept"] == 1


# --- What is lowered --------------------------------------------------------------------------


def faulty_inputs(faulty: list[int]) -> Case:
    """Ten pairs of rising value, some of which look faulty."""
    looks_right = ~np.isin(np.arange(10), faulty)
    inputs = inputs_of(np.arange(10.0), np.zeros(10, dtype=int))
    return dataclasses.replace(inputs, unfaulty=looks_right)


def test_kept_pairs_that_look_faulty_hardly_count() -> None:
    config = CurationConfig(target_size_ratio=0.8)
    result = curate(faulty_inputs([0, 1, 2, 5]), config)  # the first two are dropped
    assert result.curated_rows.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    counted = np.array([0.01, 1, 1, 0.01, 1, 1, 1, 1])
    np.testing.assert_allclose(result.sample_weights, counted / counted.mean(), rtol=1e-12)
    assert result.cluster_weights == {"0": pytest.approx(1.0)}
    half = curate(faulty_inputs([0, 1, 2, 5]), dataclasses.replace(config, faulty_weight=0.5))
    counted = np.array([0.5, 1, 1, 0.5, 1, 1, 1, 1])
    np.testing.assert_allclose(half.sample_weights, counted / counted.mean(), rtol=1e-12)
    assert half.curated_rows.tolist() == result.curated_rows.tolist()


def test_nothing_is_lowered_where_nothing_that_is_kept_looks_faulty() -> None:
    config = CurationConfig(target_size_ratio=0.8)
    for inputs in (
        faulty_inputs([0, 1]),  # both are dropped
        faulty_inputs([]),
        faulty_inputs(list(range(10))),  # beside what?
        dataclasses.replace(faulty_inputs([5]), unfaulty=None),  # nothing is known
    ):
        assert curate(inputs, config).sample_weights.tolist() == [1.0] * 8
    same = curate(faulty_inputs([5]), dataclasses.replace(config, faulty_weight=1.0))
    assert same.sample_weights.tolist() == [1.0] * 8


def test_a_faulty_pair_that_a_reviewer_keeps_counts_like_others() -> None:
    reviewed = np.array([KEEP, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=np.int8)
    result = curate(faulty_inputs([0, 5]), CurationConfig(target_size_ratio=0.8), reviewed)
    assert result.curated_rows.tolist() == [0, 3, 4, 5, 6, 7, 8, 9]
    counted = np.array([1, 1, 1, 0.01, 1, 1, 1, 1])
    np.testing.assert_allclose(result.sample_weights, counted / counted.mean(), rtol=1e-12)


def test_what_is_raised_and_looks_faulty_is_lowered_from_there() -> None:
    influence = np.array([-2.0, -1, 0, 0, 0, 0, 1, 2])
    inputs = inputs_of(influence, [0, 0, 0, 0, 0, 0, 1, 1], represented=[1, 9])
    plain = curate(inputs, RAISING).sample_weights
    assert plain[-1] > plain[-2] > plain[0]
    faulty = dataclasses.replace(inputs, unfaulty=np.arange(8) != 7)
    lowered = curate(faulty, RAISING).sample_weights
    assert lowered[-1] / lowered[0] == pytest.approx(0.01 * plain[-1] / plain[0])
    assert lowered[-2] / lowered[0] == pytest.approx(plain[-2] / plain[0])


# --- What is raised ---------------------------------------------------------------------------

RAISING = CurationConfig(target_size_ratio=0.75, rho=1.0, max_weight=5.0)


def test_raised_weights_by_hand() -> None:
    # Values -2, -1, 0, 0, 0, 0, 1, 2 over sqrt(1.25); the least two go. With u = 1 / sqrt(1.25)
    # = 0.894 and price p in (0.1, 0.2): 0 + (1 - u - p) + 4 (1 - p) + 2 = 6.
    influence = np.array([-2.0, -1, 0, 0, 0, 0, 1, 2])
    u = 1 / np.sqrt(1.25)
    price = (1 - u) / 5
    assert 1 - 2 * u - price < 0 < 1 - u - price
    clusters = [0, 0, 0, 0, 0, 0, 1, 1]
    inputs = inputs_of(influence, clusters, represented=[1, 9])
    raised = np.array([1, 1, 1, 1, 1 + u - price, 1 + 2 * u - price])
    result = curate(inputs, RAISING)
    assert result.curated_rows.tolist() == [2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(result.sample_weights, raised / raised.mean(), rtol=1e-9)
    weight = {
        k: float(raised[rows].mean() / raised.mean())
        for k, rows in (("0", slice(4)), ("1", slice(4, 6)))
    }
    assert result.cluster_weights == pytest.approx(weight)
    # No more than the cluster is under-represented, and no more than the largest weight.
    for represented, largest, cap in ((1.5, 5.0, 1.5), (9.0, 1.25, 1.25), (0.2, 5.0, 1.0)):
        limited = curate(
            dataclasses.replace(inputs, represented=np.array([1.0, represented])),
            dataclasses.replace(RAISING, max_weight=largest),
        )
        expected = np.minimum(raised, cap)
        np.testing.assert_allclose(limited.sample_weights, expected / expected.mean(), rtol=1e-9)
    # Nothing where the cell's sign is uncertain (its mean is 1.5), or the cluster harmful.
    for changed in (
        dataclasses.replace(inputs, cell_influence_stderr=np.array([0.0, 1.0])),
        dataclasses.replace(inputs, influence_scores=np.array([0.0, -0.05])),
    ):
        assert set(curate(changed, RAISING).sample_weights.tolist()) == {1.0}


@given(problem=problems(), ratio=RATIOS, max_weight=st.floats(1, 6))
@property_test
def test_only_certain_benefit_that_is_under_represented_is_raised(
    problem: dict[str, Any], ratio: float, max_weight: float
) -> None:
    inputs = inputs_of(**problem)
    config = CurationConfig(target_size_ratio=ratio, max_weight=max_weight)
    result = curate(inputs, config)
    limits = []
    for row in result.curated_rows:
        k, c = inputs.cluster_assignments[row], inputs.cell_assignments[row]
        mean = np.mean(
            [
                u
                for u, d in zip(inputs.pair_influence, inputs.cell_assignments, strict=True)
                if d == c
            ]
        )
        score, error = inputs.influence_scores[k], inputs.influence_stderr[k]
        harmful = score < -0.001 and -score > Z95 * error
        beneficial = mean > Z95 * inputs.cell_influence_stderr[c]
        may = beneficial and not harmful
        limits.append(min(max(inputs.represented[k], 1.0), max_weight) if may else 1.0)
    weights = result.sample_weights
    if min(limits) == 1:  # somebody has the weight of one before scaling
        base = weights[np.array(limits) == 1]
        np.testing.assert_allclose(base, weights.min(), rtol=1e-12)
        assert np.all(weights / weights.min() <= np.array(limits) * (1 + 1e-12))


# --- Names do not matter ----------------------------------------------------------------------


@given(problem=problems(), ratio=RATIOS, data=st.data())
@property_test
def test_relabelling_clusters_and_cells_changes_nothing(
    problem: dict[str, Any], ratio: float, data: st.DataObject
) -> None:
    inputs = inputs_of(**problem)
    n_clusters, n_cells = len(inputs.influence_scores), len(inputs.cell_influence_stderr)
    to_cluster = np.array(data.draw(st.permutations(range(n_clusters))))
    to_cell = np.array(data.draw(st.permutations(range(n_cells))))
    old_cluster, old_cell = np.argsort(to_cluster), np.argsort(to_cell)
    renamed = dataclasses.replace(
        inputs,
        cluster_assignments=to_cluster[inputs.cluster_assignments],
        cell_assignments=to_cell[inputs.cell_assignments],
        cell_influence_stderr=inputs.cell_influence_stderr[old_cell],
        influence_scores=inputs.influence_scores[old_cluster],
        influence_stderr=inputs.influence_stderr[old_cluster],
        represented=inputs.represented[old_cluster],
        clusters=[inputs.clusters[k] for k in old_cluster],
    )
    config = CurationConfig(target_size_ratio=ratio)
    plain, other = curate(inputs, config), curate(renamed, config)
    assert other.curated_rows.tolist() == plain.curated_rows.tolist()
    # The mean error over cells is summed in another order.
    np.testing.assert_allclose(other.sample_weights, plain.sample_weights, rtol=1e-9)
    for k in range(n_clusters):
        assert other.cluster_weights[str(to_cluster[k])] == pytest.approx(
            plain.cluster_weights[str(k)], rel=1e-9
        )
    assert other.group_retention == plain.group_retention


def test_equal_values_are_kept_in_the_order_of_the_rows_whatever_the_clusters_are_called() -> None:
    for clusters in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]):
        for target, rows in ((1, [0]), (2, [0, 3]), (3, [0, 1, 3])):
            config = CurationConfig(target_size_ratio=target / 6)
            assert curate(inputs_of(np.zeros(6), clusters), config).curated_rows.tolist() == rows


# --- For people -------------------------------------------------------------------------------


@given(problem=problems(), ratio=RATIOS)
@property_test
def test_the_cells_of_a_cluster_add_up(problem: dict[str, Any], ratio: float) -> None:
    inputs = inputs_of(**problem)
    result = curate(inputs, CurationConfig(target_size_ratio=ratio))
    clusters, cells = inputs.cluster_assignments.tolist(), inputs.cell_assignments.tolist()
    kept = result.curated_rows.tolist()
    assert sorted(e["cluster"] for e in result.categorization) == sorted(set(clusters))
    influences = [e["influence_percent"] for e in result.categorization]
    assert influences == sorted(influences)
    seen = []
    for entry in result.categorization:
        k = entry["cluster"]
        assert entry["size"] == clusters.count(k)
        assert entry["pairs_kept"] == sum(clusters[row] == k for row in kept)
        assert entry["pairs_dropped"] == entry["size"] - entry["pairs_kept"]
        for total in ("size", "pairs_kept"):
            assert sum(cell[total] for cell in entry["cells"]) == entry[total]
        influences = [cell["influence_percent"] for cell in entry["cells"]]
        assert influences == sorted(influences)
        for cell in entry["cells"]:
            members = [row for row, c in enumerate(cells) if c == cell["cell"]]
            assert {clusters[row] for row in members} == {k}
            assert cell["size"] == len(members)
            assert cell["pairs_kept"] == len(set(members) & set(kept))
            seen.append(cell["cell"])
    assert sorted(seen) == sorted(set(cells))


def test_readable_entries_by_hand() -> None:
    # Two nats of validation loss; a cell of two of eight pairs at -0.4 nats each: -5 %.
    inputs = inputs_of(
        [0.4, 0.8, -0.4, -0.4, 0.1, -0.1, 0.0, 0.2],
        [0, 0, 1, 1, 1, 1, 1, 1],
        cells=[2, 2, 0, 0, 1, 1, 1, 1],
        clip_scores=[0.3, 0.32, 0.1, 0.14, 0.2, 0.2, 0.24, 0.24],
        copies=[0, 0, 1, 2, 0, 0, 0, 0],
        cell_stderr=[0.08, 0.1, 0.04],
        scores=[0.075, -0.0375],
        stderr=[0.01, 0.05],
    )
    config = CurationConfig(target_size_ratio=0.625)  # five of eight
    result = curate(inputs, config)
    assert result.curated_rows.tolist() == [0, 1, 4, 6, 7]
    first, second = result.categorization
    cells = first.pop("cells")
    assert first == {
        "cluster": 1,
        "terms": ["term1", "b", "c", "d"],
        "category": NEUTRAL,  # 0.75 standard errors below zero
        "influence_percent": -3.75,
        "stderr_percent": 5.0,
        "size": 6,
        "pairs_kept": 3,
        "pairs_dropped": 3,
    }
    assert cells[0] == {
        "cell": 0,
        "category": HARMFUL,
        "mean_clip_score": 0.12,
        "near_copies": True,
        "influence_percent": -5.0,
        "stderr_percent": 1.0,
        "size": 2,
        "pairs_kept": 0,
        "meaning": "topic: term1, b, c; CLIP score 0.12; copies of better pairs; 2 pairs; "
        "influence -5.000 % +/- 1.000; pruned",
    }
    assert cells[1]["category"] == NEUTRAL
    assert cells[1]["meaning"] == (
        "topic: term1, b, c; CLIP score 0.22; 4 pairs; influence +1.250 % +/- 2.500; kept in part"
    )
    assert second["category"] == second["cells"][0]["category"] == BENEFICIAL
    assert second["cells"][0]["meaning"] == (
        "topic: term0, b, c; CLIP score 0.31; 2 pairs; influence +7.500 % +/- 0.500; kept"
    )


# --- A reviewer's say ---------------------------------------------------------------------------


@st.composite
def reviews(draw: st.DrawFn, n: int, target: int) -> np.ndarray:
    """A say on some of n pairs that a set of this size can do."""
    order = draw(st.permutations(range(n)))
    n_keep, n_drop = draw(st.integers(0, target)), draw(st.integers(0, n - target))
    reviewed = np.zeros(n, dtype=np.int8)
    reviewed[order[:n_keep]], reviewed[order[n_keep : n_keep + n_drop]] = KEEP, DROP
    return reviewed


@given(problem=problems(), ratio=RATIOS, data=st.data())
@property_test
def test_a_reviewer_is_obeyed_and_the_other_places_go_by_value(
    problem: dict[str, Any], ratio: float, data: st.DataObject
) -> None:
    inputs, config = inputs_of(**problem), CurationConfig(target_size_ratio=ratio)
    n, target = len(inputs.indices), curated_size(len(inputs.indices), ratio)
    reviewed = data.draw(reviews(n, target))
    result, unreviewed = curate(inputs, config, reviewed), curate(inputs, config)
    kept, values = set(result.curated_rows.tolist()), result.pair_values
    keep, drop = (set(np.flatnonzero(reviewed == word).tolist()) for word in (KEEP, DROP))
    assert keep <= kept
    assert not kept & drop
    assert len(kept) == len(result.sample_weights) == target
    assert values.tolist() == unreviewed.pair_values.tolist()
    before = set(unreviewed.curated_rows.tolist())
    assert result.n_overruled == len(keep - before) + len(drop & before)
    # Of the others, those of highest value, after the best of clusters as far as there is room.
    protected = set[int]()
    for k, quota in quotas(inputs).items():
        members = set(np.flatnonzero(inputs.cluster_assignments == k).tolist())
        others = sorted(members - keep - drop, key=lambda row: (-values[row], row))
        protected |= set(others[: max(0, quota - len(members & keep))])
    assert protected <= kept or kept <= protected | keep
    free, left = kept - protected - keep, set(range(n)) - kept - drop
    if free and left:
        assert min(values[list(free)]) >= max(values[list(left)])


@given(problem=problems(), ratio=RATIOS, data=st.data())
@property_test
def test_reviewed_pairs_are_weighed_as_others_are(
    problem: dict[str, Any], ratio: float, data: st.DataObject
) -> None:
    inputs = inputs_of(**problem)
    config = CurationConfig(target_size_ratio=ratio, max_weight=3.0)
    reviewed = data.draw(reviews(len(inputs.indices), curated_size(len(inputs.indices), ratio)))
    result = curate(inputs, config, reviewed)
    weights = result.sample_weights
    assert weights.min() > 0
    assert weights.mean() == pytest.approx(1, abs=1e-12)  # rounding of float64
    assert weights.max() / weights.min() <= 3 * (1 + 1e-12)
    # Pairs of one cell and one value weigh the same, whoever has kept them.
    rows = result.curated_rows
    kinds: dict[tuple[int, float], float] = {}
    for row, weight in zip(rows.tolist(), weights.tolist(), strict=True):
        kind = int(inputs.cell_assignments[row]), float(result.pair_values[row])
        assert kinds.setdefault(kind, weight) == pytest.approx(weight, rel=1e-9)


@given(problem=problems(), ratio=RATIOS)
@property_test
def test_a_reviewer_who_says_nothing_changes_nothing(problem: dict[str, Any], ratio: float) -> None:
    inputs, config = inputs_of(**problem), CurationConfig(target_size_ratio=ratio)
    silent = curate(inputs, config, np.zeros(len(inputs.indices), dtype=np.int8))
    nobody = curate(inputs, config)
    assert nobody.reviewed is None
    for name in ("curated_rows", "sample_weights", "pair_values"):
        assert getattr(silent, name).tobytes() == getattr(nobody, name).tobytes()
    assert (silent.cluster_weights, silent.n_overruled) == (nobody.cluster_weights, 0)


def test_a_reviewer_goes_before_clusters_and_groups() -> None:
    influence = np.arange(20, dtype=np.float64)
    clusters, women = np.repeat([0, 1], 10), np.arange(20) < 3
    inputs = inputs_of(influence, clusters, scores=[0.0, 0.0], groups={"women": women})
    config = CurationConfig(target_size_ratio=0.25, min_group_retention=0.3)
    assert curate(inputs, config).curated_rows.tolist() == [2, 9, 17, 18, 19]
    reviewed = np.zeros(20, dtype=np.int8)
    reviewed[[2, 19]] = DROP
    # The next of the group and of the values come in their places.
    assert curate(inputs, config, reviewed).curated_rows.tolist() == [1, 9, 16, 17, 18]
    reviewed[0], reviewed[3] = KEEP, KEEP  # one of the group, one of the cluster
    result = curate(inputs, config, reviewed)
    assert result.curated_rows.tolist() == [0, 3, 16, 17, 18]
    assert result.n_overruled == 4
    assert result.reviewed is reviewed
    reviewed[:3] = DROP  # then nothing can be kept of it
    assert curate(inputs, config, reviewed).group_retention["women"]["kept"] == 0
    reviewed[:] = 0
    reviewed[:10] = DROP
    assert curate(inputs, config, reviewed).curated_rows.tolist() == [15, 16, 17, 18, 19]


def test_a_reviewer_who_wants_what_does_not_fit_is_told_the_numbers() -> None:
    women = np.arange(6) < 2
    inputs = inputs_of(np.arange(6), np.zeros(6, dtype=np.int64), groups={"women": women})
    config = CurationConfig(target_size_ratio=0.5)
    with pytest.raises(
        InputError,
        match=r"--overrides marks 4 training pairs keep, but --target_size_ratio 0.5 has room for "
        r"3 of 6; raise it to 0.666667 or mark fewer",
    ):
        curate(inputs, config, said(1, 1, 1, 1, 0, 0))
    with pytest.raises(
        InputError,
        match=r"--overrides marks 4 of 6 training pairs drop, which leaves 2, but "
        r"--target_size_ratio 0.5 keeps 3; lower it to 0.333333 or mark fewer",
    ):
        curate(inputs, config, said(-1, -1, -1, -1, 0, 0))
    with pytest.raises(InputError, match=r"which leaves 0, but .* keeps 3; mark fewer$"):
        curate(inputs, config, np.full(6, DROP, dtype=np.int8))
    for ratio, reviewed in (
        (0.666667, said(1, 1, 1, 1, 0, 0)),
        (0.333333, said(-1, -1, -1, -1, 0, 0)),
    ):
        fits = curate(inputs, CurationConfig(target_size_ratio=ratio), reviewed)
        assert len(fits.curated_rows) == round(6 * ratio)
    grouped = dataclasses.replace(config, min_group_retention=1.0)
    with pytest.raises(
        InputError,
        match=r"keeps 4 pairs for the demographic groups and the 2 that --overrides marks, "
        r"--target_size_ratio 0.5 only 3 in all",
    ):
        curate(inputs, grouped, said(0, 0, 1, 1, 0, 0))


def test_weights_of_reviewed_pairs_by_hand() -> None:
    gains, caps = np.array([-0.5, 0.0, 0.5, 1.0]), np.full(4, 5.0)

    def weights(target: int, *words: int) -> list[float]:
        solved: list[float] = solve_weights(gains, caps, target, said(*words)).tolist()
        return solved

    # One of three places is taken; price 0.75: (0 + 1 - 0.75) + (1.5 - 0.75) + 1 = 2.
    assert weights(3, 1, 0, 0, 0) == pytest.approx([1, 0.25, 0.75, 1.25], abs=1e-10)
    # Without the best, all others stay: nothing is paid, and what is raised is at no price.
    assert weights(3, 0, 0, 0, -1) == pytest.approx([1, 1, 1.5, 0], abs=1e-10)
    # One that is kept by say and by value weighs as if nothing was said. Price 0.25, as above.
    assert weights(3, 0, 0, 0, 1) == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=1e-10)
    assert weights(2, 1, -1, -1, 1) == pytest.approx([1, 0, 0, 2], abs=1e-10)  # all is decided
    # No place is left: none of the others is worth one, and nothing is raised.
    assert weights(1, 1, 0, 0, 0) == pytest.approx([1, 0, 0, 0], abs=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_weights_with_a_review_solve_the_programme_within_it(seed: int) -> None:
    rng, gains, caps = random_programme(seed)
    reviewed = rng.choice(said(0, 0, 0, 1, -1), size=len(gains))
    reviewed[:3] = 0
    n_keep = int((reviewed == KEEP).sum())
    at_no_price = float(np.clip(1 + gains, reviewed == KEEP, reviewed != DROP).sum())
    target = int(rng.integers(n_keep + 1, max(n_keep + 2, int(at_no_price) + 1)))
    weights = solve_weights(gains, caps, target, reviewed)
    assert np.minimum(weights, 1).sum() == pytest.approx(target, abs=1e-9)
    least, most = (reviewed == KEEP).astype(float), np.where(reviewed == DROP, 0, caps)
    # SLSQP stops at 1e-14 of the objective, so about its root in the weights.
    asked = reviewed != DROP
    expected = generic_solution(gains[asked], most[asked], float(weights.sum()), least[asked])
    np.testing.assert_allclose(weights[asked], expected, atol=1e-6)
    assert not weights[~asked].any()


def test_group_retention_by_hand() -> None:
    groups = {
        "women": np.array([1, 1, 0, 1, 0]) > 0,
        "men": np.array([0, 0, 1, 0, 0]) > 0,
        "nobody": np.zeros(5, dtype=bool),
    }
    assert group_retention(groups, np.array([0, 3, 4])) == {
        "women": {"pairs": 3, "kept": 2, "retention": 2 / 3},
        "men": {"pairs": 1, "kept": 0, "retention": 0.0},
        "nobody": {"pairs": 0, "kept": 0, "retention": None},
    }


def test_faults_dropped_by_hand() -> None:
    faults = ["", "wrong_caption", "", "boilerplate", "wrong_caption", "", ""]
    groups = ["", "", "rare", "", "rare", "rare", ""]
    counts = faults_dropped(faults, groups, np.array([0, 1, 2]))
    assert counts == {
        "boilerplate": {"in_data": 1, "dropped": 1},
        "wrong_caption": {"in_data": 2, "dropped": 1},
        "good": {"in_data": 4, "dropped": 2},
        "rare group": {"in_data": 2, "dropped": 1},  # of the good ones
    }
    assert list(counts) == ["boilerplate", "wrong_caption", "good", "rare group"]
    assert "rare group" not in faults_dropped(faults, [""] * 7, np.array([0]))


def test_examples_of_dropped_pairs_are_the_worst_of_each_cluster() -> None:
    influence = np.array([1.0, -1, -1, 1, -1, 1])  # deviations of one
    clip_scores = np.array([0.3, 0.3, 0.1, 0.3, 0.1, 0.1])
    copies, clusters = np.array([0, 2, 0, 0, 1, 0]), np.array([0, 0, 1, 1, 1, 2])
    inputs = inputs_of(
        influence, clusters, clip_scores=clip_scores, copies=copies, scores=[0.0, 0.0, -0.05]
    )
    result: CurationResult = curate(inputs, CurationConfig(target_size_ratio=1 / 3))
    assert result.curated_rows.tolist() == [0, 3]

    def examples(n: int) -> list[tuple[int, str]]:
        return drop_examples(result, influence, clip_scores, copies, clusters, n)

    # Values 2, -2, -2, 2, -3, 0: of cluster 1 the fifth pair comes before the third.
    assert examples(5) == [
        (4, "influence -1.0, agreement -1.0, 1 near copy with a better caption"),
        (1, "influence -1.0, agreement +1.0, 2 near copies with a better caption"),
        (5, "influence +1.0, agreement -1.0"),
    ]
    assert examples(1) == examples(5)[:1]
    assert examples(0) == []
    result = curate(inputs, CurationConfig(target_size_ratio=1 / 3), said(0, 0, 0, 0, 0, -1))
    assert examples(5)[-1] == (5, "by the reviewer's say, influence +1.0, agreement -1.0")
    assert examples(5)[0] == (
        4,
        "influence -1.0, agreement -1.0, 1 near copy with a better caption",
    )


def test_a_share_that_is_found_leaves_room_for_groups_and_reviewer() -> None:
    groups = {"female": np.arange(10) < 4, "male": np.arange(10) >= 4}
    said = np.zeros(10, dtype=np.int8)
    plain = CurationConfig(target_size_ratio="auto")
    values = np.arange(10.0)
    assert share_with_room(0.3, values, groups, None, plain) == 0.3
    fair = CurationConfig(target_size_ratio="auto", min_group_retention=0.5)
    assert share_with_room(0.3, values, groups, None, fair) == 0.5  # two women and three men
    both = groups | {"adult": np.ones(10, dtype=bool)}  # the best five: all men but one
    assert share_with_room(0.3, values, both, None, fair) == 0.7
    said[:6] = KEEP
    assert share_with_room(0.3, values, {}, said, plain) == 0.6
    assert share_with_room(0.3, values, groups, said, fair) == 0.7  # one man more
    said[:6] = DROP
    assert share_with_room(0.7, values, {}, said, plain) == 0.4
    with pytest.raises(InputError, match="--overrides marks all 10 training pairs drop"):
        share_with_room(0.7, values, {}, np.full(10, DROP, dtype=np.int8), plain)

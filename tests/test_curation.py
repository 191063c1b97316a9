"""Categories, the exact programme against a generic solver, budgets, and which pairs are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, minimize

from curation import (
    BENEFICIAL,
    HARMFUL,
    NEUTRAL,
    CurationConfig,
    CurationResult,
    categorize,
    curate,
    curated_size,
    drop_examples,
    faults_dropped,
    pairs_kept,
    select_rows,
    shrunken_gains,
    solve_weights,
    weight_caps,
)
from settings import InputError

EVERYTHING_NEUTRAL: dict[str, Any] = {"harmful_threshold": -1e9, "beneficial_threshold": 1e9}


def run(
    scores: np.ndarray,
    sizes: np.ndarray,
    ratio: float,
    *,
    stderr: np.ndarray | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[CurationResult, np.ndarray]:
    """The curated set of shuffled clusters of these sizes, and the pairs' clusters."""
    rng = np.random.default_rng(seed)
    clusters = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    result = curate(
        scores,
        np.zeros(len(sizes)) if stderr is None else stderr,
        clusters,
        rng.permutation(len(clusters)) / len(clusters),
        10 * np.arange(len(clusters)) + 3,
        [{"terms": [f"term{k}"]} for k in range(len(sizes))],
        CurationConfig(target_size_ratio=ratio, **settings),
    )
    return result, clusters


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two to eight clusters and their sizes."""
    n_clusters = draw(st.integers(2, 8))
    sizes = draw(st.lists(st.integers(1, 30), min_size=n_clusters, max_size=n_clusters))
    influence = st.floats(-0.05, 0.05).map(lambda x: round(x, 5))
    scores = draw(st.lists(influence, min_size=n_clusters, max_size=n_clusters))
    return np.array(scores), np.array(sizes)


# --- Categories -------------------------------------------------------------------------------


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
    categories = categorize(np.array([-0.17, 0.17]), np.array([0.1, 0.1]), config)
    expected = [HARMFUL, BENEFICIAL] if certain else [NEUTRAL, NEUTRAL]
    assert categories.tolist() == expected


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
    ],
)
def test_wrong_settings_are_input_errors(setting: str, value: float, rule: str) -> None:
    with pytest.raises(InputError, match=f"--{setting} must be {rule}; got {value:g}"):
        CurationConfig(**{setting: value})


# --- The programme ----------------------------------------------------------------------------


def generic_solution(
    gains: np.ndarray, sizes: np.ndarray, caps: np.ndarray, total: float
) -> np.ndarray:
    """The programme by SciPy's SLSQP: sum_c n_c w_c = total, 0 <= w_c <= cap_c."""
    share = sizes / sizes.sum()

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        return float(share @ ((w - 1) ** 2 / 2 - w * gains)), share * (w - 1 - gains)

    result = minimize(
        objective,
        np.minimum(caps, 1) * total / (sizes @ np.minimum(caps, 1)),
        jac=True,
        bounds=Bounds(np.zeros(len(caps)), caps),
        constraints=LinearConstraint(share, total / sizes.sum(), total / sizes.sum()),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return np.asarray(result.x)


@pytest.mark.parametrize("seed", range(12))
def test_weights_solve_the_programme_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_clusters = int(rng.integers(2, 9))
    sizes = rng.integers(1, 40, size=n_clusters)
    gains = rng.normal(size=n_clusters)
    caps = rng.choice([0.0, 1.0, 1.0, 3.0], size=n_clusters)
    caps[0] = 1.0
    reachable = int(sizes[caps > 0].sum())
    target = int(rng.integers(1, reachable)) if reachable > 1 else 1
    weights = solve_weights(gains, sizes, caps, target)
    assert np.all(weights >= 0)
    assert np.all(weights <= caps)
    # Pairs cannot be kept more than whole: the budget counts no weight above one. Root to 1e-12.
    assert sizes @ np.minimum(weights, 1) == pytest.approx(target, abs=1e-8)
    if target < reachable:
        # With the total weight that goes with it, the plain programme has the same solution.
        expected = generic_solution(gains, sizes, caps, float(sizes @ weights))
        # SLSQP stops at 1e-14 of the objective, so about its root in the weights.
        np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_weights_by_hand() -> None:
    # Price 0.5: weights 1 - 1 - 0.5 < 0, 1 + 0 - 0.5, 1 + 2 - 0.5 keep 0 + 10 + 10 pairs.
    gains, sizes = np.array([-1.0, 0.0, 2.0]), np.array([10, 20, 10])
    caps = np.array([1.0, 1.0, 5.0])
    np.testing.assert_allclose(solve_weights(gains, sizes, caps, 20), [0, 0.5, 2.5], atol=1e-10)
    # A cap cuts what is above it and does not move the price.
    caps = np.array([1.0, 1.0, 2.0])
    np.testing.assert_allclose(solve_weights(gains, sizes, caps, 20), [0, 0.5, 2.0], atol=1e-10)


def test_weights_without_anything_to_drop() -> None:
    gains, sizes = np.array([-1.5, 0.25, 2.0]), np.array([10, 20, 10])
    assert solve_weights(gains, sizes, np.array([1.0, 5.0, 5.0]), 40).tolist() == [1, 1.25, 3]
    # Nor with a cluster pruned that is exactly what had to go.
    assert solve_weights(gains, sizes, np.array([0.0, 5.0, 5.0]), 30).tolist() == [0, 1.25, 3]


def test_equal_clusters_are_kept_in_equal_shares() -> None:
    sizes = np.array([10, 30])
    weights = solve_weights(np.zeros(2), sizes, np.ones(2), 10)
    np.testing.assert_allclose(weights, 0.25, atol=1e-10)


def test_gains_by_hand() -> None:
    influence, sizes = np.array([0.0, 1.0, 5.0]), np.array([2.0, 1.0, 1.0])
    mean, variance = 1.5, (2 * 1.5**2 + 0.5**2 + 3.5**2) / 4
    plain = (influence - mean) / np.sqrt(variance)
    np.testing.assert_allclose(shrunken_gains(influence, np.zeros(3), sizes), plain, rtol=1e-14)
    stderr = np.array([0.0, 1.0, 2.0])
    between = variance - (1 + 4) / 4
    shrunk = plain * [1, between / (between + 1), between / (between + 4)]
    np.testing.assert_allclose(shrunken_gains(influence, stderr, sizes), shrunk, rtol=1e-14)


def test_gains_vanish_where_clusters_differ_by_noise_alone() -> None:
    influence, sizes = np.array([0.0, 1.0, 5.0]), np.array([2.0, 1.0, 1.0])
    assert shrunken_gains(influence, np.full(3, 9.0), sizes).tolist() == [0, 0, 0]
    assert shrunken_gains(np.ones(3), np.zeros(3), sizes).tolist() == [0, 0, 0]


def test_caps_follow_the_categories() -> None:
    categories = np.array([HARMFUL, NEUTRAL, BENEFICIAL, HARMFUL], dtype=object)
    influence = np.array([-2.0, 0.0, 3.0, -1.0])
    caps = weight_caps(categories, influence, np.array([5, 50, 40, 5]), 80, 4.0)
    assert caps.tolist() == [0, 1, 4, 0]


def test_harmful_clusters_that_hold_more_than_may_be_dropped() -> None:
    categories = np.array([HARMFUL, HARMFUL, NEUTRAL], dtype=object)
    sizes = np.array([10, 10, 20])
    # Fifteen may go: the more harmful one is pruned, the other retained as if neutral.
    assert weight_caps(categories, np.array([-1.0, -2.0, 0.0]), sizes, 25, 5.0).tolist() == [
        1,
        0,
        1,
    ]
    assert weight_caps(categories, np.array([-2.0, -1.0, 0.0]), sizes, 25, 5.0).tolist() == [
        0,
        1,
        1,
    ]
    assert weight_caps(categories, np.array([-2.0, -1.0, 0.0]), sizes, 40, 5.0).tolist() == [
        1,
        1,
        1,
    ]


# --- Whole pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "ratio", "size"),
    [(10, 0.8, 8), (11, 0.8, 9), (3, 0.01, 1), (7, 1.0, 7), (1000, 0.333, 333)],
)
def test_the_curated_size(n: int, ratio: float, size: int) -> None:
    assert curated_size(n, ratio) == size
    assert abs(size - ratio * n) <= 1


def test_pairs_kept_by_largest_remainders() -> None:
    sizes = np.array([10, 10, 10])
    assert pairs_kept(np.array([0.27, 0.55, 5.0]), sizes, 18).tolist() == [3, 5, 10]
    assert pairs_kept(np.array([0.23, 0.57, 1.0]), sizes, 18).tolist() == [2, 6, 10]


@given(problem=problems(), ratio=st.floats(0.01, 1))
@hypothesis_settings(deadline=None, derandomize=True)
def test_pairs_kept_sum_to_the_target(problem: tuple[np.ndarray, np.ndarray], ratio: float) -> None:
    gains, sizes = problem
    target = curated_size(int(sizes.sum()), ratio)
    weights = solve_weights(100 * gains, sizes, np.ones(len(sizes)), target)
    kept = pairs_kept(weights, sizes, target)
    assert kept.sum() == target
    assert np.all((kept >= 0) & (kept <= sizes))
    assert np.all(np.abs(kept - sizes * np.minimum(weights, 1)) < 1 + 1e-6)


def test_the_pairs_of_highest_clip_score_are_kept() -> None:
    clusters = np.array([0, 1, 0, 1, 0, 1])
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.3, 0.4])
    assert select_rows(clusters, scores, np.array([2, 1])).tolist() == [1, 2, 4]
    assert select_rows(clusters, scores, np.array([0, 3])).tolist() == [1, 3, 5]
    tied = np.zeros(6)
    assert select_rows(clusters, tied, np.array([1, 1])).tolist() == [0, 1]


# --- All of it --------------------------------------------------------------------------------


@given(problem=problems(), ratio=st.floats(0.05, 1), max_weight=st.floats(1, 6))
@hypothesis_settings(deadline=None, derandomize=True)
def test_sizes_and_weights_of_any_curated_set(
    problem: tuple[np.ndarray, np.ndarray], ratio: float, max_weight: float
) -> None:
    scores, sizes = problem
    result, clusters = run(scores, sizes, ratio, max_weight=max_weight)
    n, rows, weights = int(sizes.sum()), result.curated_rows, result.sample_weights
    assert len(rows) == len(weights) == curated_size(n, ratio)
    assert np.all(np.diff(rows) > 0)
    assert result.curated_indices.tolist() == [10 * r + 3 for r in rows]
    assert np.all(weights > 0)
    assert weights.mean() == pytest.approx(1, abs=1e-12)  # rounding of float64
    assert weights.max() / weights.min() <= max_weight * (1 + 1e-12)
    kept = np.bincount(clusters[rows], minlength=len(sizes))
    for entry in result.categorization:
        k = entry["cluster"]
        assert (entry["size"], entry["pairs_kept"]) == (sizes[k], kept[k])
        assert entry["pairs_dropped"] == sizes[k] - kept[k]
        expected = set(weights[clusters[rows] == k]) or {0.0}
        assert {result.cluster_weights[str(k)]} == expected


@given(problem=problems(), max_weight=st.floats(1, 6))
@hypothesis_settings(deadline=None, derandomize=True, max_examples=30)
def test_a_ratio_of_one_keeps_everything(
    problem: tuple[np.ndarray, np.ndarray], max_weight: float
) -> None:
    scores, sizes = problem
    result, _ = run(scores, sizes, 1.0, max_weight=max_weight)
    assert result.curated_rows.tolist() == list(range(sizes.sum()))


def test_harmful_clusters_go_and_beneficial_ones_are_raised() -> None:
    scores = np.array([-0.04, 0.001, 0.06, -0.0005])
    result, clusters = run(scores, np.array([20, 30, 20, 30]), 0.8)
    weights = {
        k: set(result.sample_weights[clusters[result.curated_rows] == k].tolist()) for k in range(4)
    }
    assert weights[0] == set()  # twenty of a hundred: exactly the harmful ones
    assert result.cluster_weights["0"] == 0
    assert max(weights[2]) > 1 > max(weights[1])
    assert weights[1] == weights[3]
    assert {e["cluster"]: e["category"] for e in result.categorization} == {
        0: HARMFUL,
        1: NEUTRAL,
        2: BENEFICIAL,
        3: NEUTRAL,
    }


def test_the_readable_categories_are_sorted_by_influence() -> None:
    scores, stderr = np.array([0.03, -0.02, 0.0]), np.array([0.001, 0.002, 0.003])
    result, _ = run(scores, np.array([10, 10, 10]), 0.6, stderr=stderr)
    first = result.categorization[0]
    assert [e["cluster"] for e in result.categorization] == [1, 2, 0]
    assert first == {
        "cluster": 1,
        "terms": ["term1"],
        "category": HARMFUL,
        "influence_percent": -2.0,
        "stderr_percent": 0.2,
        "size": 10,
        "pairs_kept": 0,
        "pairs_dropped": 10,
    }


@given(problem=problems(), ratio=st.floats(0.05, 1), data=st.data())
@hypothesis_settings(deadline=None, derandomize=True, max_examples=50)
def test_relabelling_the_clusters_changes_no_weight(
    problem: tuple[np.ndarray, np.ndarray], ratio: float, data: st.DataObject
) -> None:
    scores, sizes = problem
    renamed = np.array(data.draw(st.permutations(range(len(sizes)))))
    influence, counts = np.empty(len(sizes)), np.empty(len(sizes), dtype=np.int64)
    influence[renamed], counts[renamed] = scores, sizes
    target = curated_size(int(sizes.sum()), ratio)

    def weights(scores: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        mean = scores * sizes.sum() / sizes
        gains = shrunken_gains(mean, np.zeros(len(sizes)), sizes.astype(np.float64))
        return solve_weights(gains, sizes, np.ones(len(sizes)), target)

    # Sums run in another order; the variance of nearly equal influences amplifies the rounding.
    np.testing.assert_allclose(
        weights(influence, counts)[renamed], weights(scores, sizes), atol=1e-6
    )


def test_relabelling_the_clusters_keeps_the_same_pairs() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(5, 40, size=7)
    clusters = rng.permutation(np.repeat(np.arange(7), sizes))
    scores, stderr = rng.normal(0, 0.02, size=7), rng.uniform(0, 0.005, size=7)
    clip_scores, renamed = rng.random(len(clusters)), rng.permutation(7)

    def curated(scores: np.ndarray, stderr: np.ndarray, clusters: np.ndarray) -> CurationResult:
        return curate(
            scores,
            stderr,
            clusters,
            clip_scores,
            np.arange(len(clusters)),
            [{"terms": []}] * 7,
            CurationConfig(target_size_ratio=0.6),
        )

    back = np.argsort(renamed)
    plain = curated(scores, stderr, clusters)
    permuted = curated(scores[back], stderr[back], renamed[clusters])
    np.testing.assert_array_equal(permuted.curated_rows, plain.curated_rows)
    np.testing.assert_allclose(permuted.sample_weights, plain.sample_weights, rtol=1e-9)
    for k in range(7):
        assert permuted.cluster_weights[str(renamed[k])] == pytest.approx(
            plain.cluster_weights[str(k)], rel=1e-9
        )


@given(problem=problems(), ratios=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)))
@hypothesis_settings(deadline=None, derandomize=True)
def test_shares_grow_with_the_ratio(
    problem: tuple[np.ndarray, np.ndarray], ratios: tuple[float, float]
) -> None:
    # Where the same clusters are pruned; whole pairs follow the shares to less than one.
    scores, sizes = problem
    smaller, larger = sorted(ratios)
    low, clusters = run(scores, sizes, smaller, **EVERYTHING_NEUTRAL)
    high, _ = run(scores, sizes, larger, **EVERYTHING_NEUTRAL)
    lost = np.setdiff1d(low.curated_rows, high.curated_rows)
    assert np.bincount(clusters[lost], minlength=len(sizes)).max(initial=0) <= 1


def test_training_weights_are_zero_where_dropped() -> None:
    result, clusters = run(np.array([-0.04, 0.0, 0.06]), np.array([4, 8, 8]), 0.8)
    weights = result.training_weights(20)
    assert np.flatnonzero(weights).tolist() == result.curated_rows.tolist()
    assert weights[result.curated_rows].tolist() == result.sample_weights.tolist()
    assert np.all(weights[clusters == 0] == 0)


# --- What was dropped -------------------------------------------------------------------------


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


def test_examples_of_dropped_pairs() -> None:
    clusters = np.repeat([0, 1, 2], [4, 4, 4])
    clip_scores = np.array([0.4, 0.1, 0.3, 0.2, 0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.3, 0.2])
    result = curate(
        np.array([-0.05, 0.05, -0.0001]),
        np.zeros(3),
        clusters,
        clip_scores,
        np.arange(12),
        [{"terms": []}] * 3,
        CurationConfig(target_size_ratio=0.5),
    )
    kept = {e["cluster"]: e["pairs_kept"] for e in result.categorization}
    assert (kept[0], kept[1]) == (0, 4)  # so the rest comes from cluster 2, the worst pairs first
    examples = drop_examples(result, clusters, clip_scores, 5)
    assert [row for row, _ in examples] == [1, 9]
    assert examples[0][1] == "its cluster is harmful and pruned whole"
    assert examples[1][1] == (
        "least agreement of image and text in a neutral cluster that keeps 2 of 4"
    )
    assert drop_examples(result, clusters, clip_scores, 1) == examples[:1]


def test_a_neutral_cluster_that_keeps_nothing_is_not_called_harmful() -> None:
    clusters, clip_scores = np.repeat([0, 1], [5, 5]), np.linspace(0, 1, 10)
    result = curate(
        np.array([0.001, 0.004]),
        np.zeros(2),
        clusters,
        clip_scores,
        np.arange(10),
        [{"terms": []}] * 2,
        CurationConfig(target_size_ratio=0.3),
    )
    assert result.curated_rows.tolist() == [7, 8, 9]
    assert result.categorization[0]["category"] == NEUTRAL
    assert result.categorization[0]["pairs_kept"] == 0
    (first, second) = drop_examples(result, clusters, clip_scores, 5)
    assert first == (0, "its cluster is neutral and pruned whole")
    assert second[0] == 5

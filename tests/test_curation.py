"""Categories, the exact programme against a generic solver, budgets, and which pairs are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
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
    cluster_values,
    curate,
    curated_size,
    drop_examples,
    faults_dropped,
    select_rows,
    shrunken_gains,
    solve_weights,
)
from settings import InputError


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


def gains_of(scores: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The gains of clusters of known influence: centred, one standard deviation over pairs."""
    return shrunken_gains(scores * sizes.sum() / sizes, np.zeros(len(sizes)), sizes)


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


def random_programme(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray, np.ndarray]:
    """Gains, sizes and caps; unpriced, the first cluster stays whole and the second goes."""
    rng = np.random.default_rng(seed)
    n_clusters = int(rng.integers(2, 9))
    sizes = rng.integers(2, 40, size=n_clusters)
    gains = rng.normal(size=n_clusters)
    caps = rng.choice([0.0, 1.0, 1.0, 3.0], size=n_clusters)
    gains[:2], caps[:2] = [0.0, -1.5], 1.0
    return rng, gains, sizes, caps


def unpriced_size(gains: np.ndarray, sizes: np.ndarray, caps: np.ndarray) -> float:
    """How many pairs the programme keeps at a price of zero: with fewer the price is positive."""
    return float(sizes @ np.clip(1 + gains, 0, np.minimum(caps, 1)))


@pytest.mark.parametrize("seed", range(12))
def test_weights_solve_the_programme_exactly(seed: int) -> None:
    rng, gains, sizes, caps = random_programme(seed)
    target = int(rng.integers(1, int(unpriced_size(gains, sizes, caps)) + 1))
    weights = solve_weights(gains, sizes, caps, target)
    assert np.all(weights >= 0)
    assert np.all(weights <= caps)
    # Pairs cannot be kept more than whole: the budget counts no weight above one. Root to 1e-12.
    assert sizes @ np.minimum(weights, 1) == pytest.approx(target, abs=1e-8)
    # With the total weight that goes with it, the plain programme has the same solution.
    expected = generic_solution(gains, sizes, caps, float(sizes @ weights))
    # SLSQP stops at 1e-14 of the objective, so about its root in the weights.
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_weights_at_a_negative_price(seed: int) -> None:
    rng, gains, sizes, caps = random_programme(seed)
    fewest, most = unpriced_size(gains, sizes, caps), int(sizes[caps > 0].sum())
    target = int(rng.integers(int(np.ceil(fewest)), most))
    weights = solve_weights(gains, sizes, caps, target)
    shares = np.minimum(weights, 1)
    assert sizes @ shares == pytest.approx(target, abs=1e-8)
    # What is kept solves the programme with no weight above one; tolerances as above.
    expected = generic_solution(gains, sizes, np.minimum(caps, 1), target)
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    # What is raised is what it would be at no price at all.
    unpriced = np.clip(1 + gains, 0, caps)
    above = unpriced > 1
    np.testing.assert_array_equal(weights > 1, above)
    np.testing.assert_allclose(weights[above], unpriced[above], rtol=1e-14)


def test_weights_by_hand() -> None:
    # Price 0.5: weights 1 - 1 - 0.5 < 0, 1 + 0 - 0.5, 1 + 2 - 0.5 keep 0 + 10 + 10 pairs.
    gains, sizes = np.array([-1.0, 0.0, 2.0]), np.array([10, 20, 10])
    caps = np.array([1.0, 1.0, 5.0])
    np.testing.assert_allclose(solve_weights(gains, sizes, caps, 20), [0, 0.5, 2.5], atol=1e-10)
    # A cap cuts what is above it and does not move the price.
    caps = np.array([1.0, 1.0, 2.0])
    np.testing.assert_allclose(solve_weights(gains, sizes, caps, 20), [0, 0.5, 2.0], atol=1e-10)


@pytest.mark.parametrize(
    ("target", "lowest"),
    [(40, 1.0), (39, 0.9), (32, 0.2)],  # prices -1.5, -1.4, -0.7
)
def test_a_negative_price_raises_no_weight(target: int, lowest: float) -> None:
    gains, sizes = np.array([-1.5, 0.25, 2.0]), np.array([10, 20, 10])
    weights = solve_weights(gains, sizes, np.array([1.0, 5.0, 5.0]), target)
    np.testing.assert_allclose(weights, [lowest, 1.25, 3], atol=1e-10)


@pytest.mark.parametrize("target", [30, 35, 40])
def test_weights_where_the_pruned_cluster_had_to_go_or_must_be_retained(target: int) -> None:
    # Price 0.25, from which on the second cluster would lose pairs: no jump where it starts to.
    gains, sizes, caps = np.array([-1.5, 0.25, 2]), np.array([10, 20, 10]), np.array([0.0, 5, 5])
    assert solve_weights(gains, sizes, caps, target).tolist() == [0, 1, 2.75]
    # One pair fewer of the second cluster: price 0.25 + 1 / 20.
    np.testing.assert_allclose(solve_weights(gains, sizes, caps, 29), [0, 0.95, 2.7], atol=1e-10)


def test_weights_where_every_cluster_is_pruned() -> None:
    gains, sizes = np.array([-1.0, 0.5, 2.0]), np.array([10, 20, 10])
    assert solve_weights(gains, sizes, np.zeros(3), 25).tolist() == [0, 0, 0]


@given(problem=problems(), max_weight=st.floats(1, 6), data=st.data())
@hypothesis_settings(deadline=None, derandomize=True)
def test_no_weight_falls_as_the_target_grows(
    problem: tuple[np.ndarray, np.ndarray], max_weight: float, data: st.DataObject
) -> None:
    scores, sizes = problem
    gains, caps = gains_of(scores, sizes), np.full(len(sizes), max_weight)
    target = data.draw(st.integers(1, int(sizes.sum())))
    weights = solve_weights(gains, sizes, caps, target)
    larger = solve_weights(gains, sizes, caps, min(target + 1, int(sizes.sum())))
    assert np.all(larger >= weights - 1e-10)  # roots to 1e-12
    # A weight above one is earned by the gain alone.
    assert np.all(weights <= np.maximum(1, 1 + gains) + 1e-10)


@given(problem=problems(), max_weight=st.floats(1, 6))
@hypothesis_settings(deadline=None, derandomize=True)
def test_weights_do_not_jump_just_below_everything(
    problem: tuple[np.ndarray, np.ndarray], max_weight: float
) -> None:
    scores, sizes = problem
    gains, caps = gains_of(scores, sizes), np.full(len(sizes), max_weight)
    n = int(sizes.sum())
    whole, but_one = (solve_weights(gains, sizes, caps, target) for target in (n, n - 1))
    np.testing.assert_allclose(whole, np.clip(1 + gains, 1, max_weight), rtol=1e-12)
    # One pair fewer moves the price by at most the share of a pair in the cluster of least gain.
    step = 1 / sizes[np.flatnonzero(gains == gains.min())].sum()
    assert np.all(whole - but_one <= step + 1e-10)


def test_equal_clusters_are_kept_in_equal_shares() -> None:
    sizes = np.array([10, 30])
    weights = solve_weights(np.zeros(2), sizes, np.ones(2), 10)
    np.testing.assert_allclose(weights, 0.25, atol=1e-10)


def test_gains_by_hand() -> None:
    influence, sizes = np.array([0.0, 1.0, 5.0]), np.array([2, 1, 1])
    mean, variance = 1.5, (2 * 1.5**2 + 0.5**2 + 3.5**2) / 4
    plain = (influence - mean) / np.sqrt(variance)
    np.testing.assert_allclose(shrunken_gains(influence, np.zeros(3), sizes), plain, rtol=1e-14)
    stderr = np.array([0.0, 1.0, 2.0])
    between = variance - (1 + 4) / 4
    shrunk = plain * [1, between / (between + 1), between / (between + 4)]
    np.testing.assert_allclose(shrunken_gains(influence, stderr, sizes), shrunk, rtol=1e-14)


def test_gains_vanish_where_clusters_differ_by_noise_alone() -> None:
    influence, sizes = np.array([0.0, 1.0, 5.0]), np.array([2, 1, 1])
    assert shrunken_gains(influence, np.full(3, 9.0), sizes).tolist() == [0, 0, 0]
    assert shrunken_gains(np.ones(3), np.zeros(3), sizes).tolist() == [0, 0, 0]


def test_gains_vanish_where_influences_are_equal_but_for_rounding() -> None:
    sizes = np.array([3, 7, 11, 19])
    influence = 0.1 * (sizes / 3) * (3 / sizes)
    assert len(set(influence.tolist())) > 1
    assert shrunken_gains(influence, np.zeros(4), sizes).tolist() == [0, 0, 0, 0]
    # Relative to their size: the smallest of real differences still counts.
    gains = shrunken_gains(1e-9 * np.array([1.0, 3.0]), np.zeros(2), np.array([4, 4]))
    np.testing.assert_allclose(gains, [-1, 1], rtol=1e-12)
    close = shrunken_gains(np.array([1 - 1e-6, 1 + 1e-6]), np.zeros(2), np.array([4, 4]))
    np.testing.assert_allclose(close, [-1, 1], rtol=1e-9)  # 1e-6 less its rounding of 1e-16


# --- Whole pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "ratio", "size"),
    [(10, 0.8, 8), (11, 0.8, 9), (3, 0.01, 1), (7, 1.0, 7), (1000, 0.333, 333)],
)
def test_the_curated_size(n: int, ratio: float, size: int) -> None:
    assert curated_size(n, ratio) == size
    assert abs(size - ratio * n) <= 1


def test_values_by_hand() -> None:
    categories = np.array([NEUTRAL, HARMFUL, BENEFICIAL, HARMFUL, HARMFUL], dtype=object)
    gains = np.array([-0.5, 0.1, 2.0, -0.9, -3.0])
    influence = np.array([0.0, -0.2, 3.0, -0.1, -0.3])
    # The lowest of the others is -0.5; from there two lower for each more harmful cluster.
    values = cluster_values(gains, categories, influence)
    assert values.tolist() == [-0.5, -4.5, 2.0, -2.5, -6.5]
    assert gains.tolist() == [-0.5, 0.1, 2.0, -0.9, -3.0]  # its argument is left alone
    every = np.full(5, HARMFUL, dtype=object)
    assert cluster_values(gains, every, influence).tolist() == [-4, -8, -2, -6, -10]
    none = np.full(5, NEUTRAL, dtype=object)
    assert cluster_values(gains, none, influence).tolist() == gains.tolist()


def test_rows_by_hand() -> None:
    clusters = np.array([0, 1, 0, 1, 0, 1, 1])
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.3, 0.4, 0.7])
    # Priorities, best score first: 0.5 - (1, 3, 5) / 6 and 0.25 - (1, 3, 5, 7) / 8.
    values, order = np.array([0.5, 0.25]), [2, 1, 4, 6, 0, 5, 3]
    for target in range(8):
        assert select_rows(values, clusters, scores, target).tolist() == sorted(order[:target])
    apart = np.array([0.0, 2.0])
    assert select_rows(apart, clusters, scores, 5).tolist() == [1, 2, 3, 5, 6]
    tied = np.zeros(7)
    assert select_rows(apart, clusters, tied, 2).tolist() == [1, 3]


@given(
    values=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40),
)
@hypothesis_settings(deadline=None, derandomize=True)
def test_any_target_is_met_by_the_best_pairs_and_one_more(
    values: list[float], pairs: list[tuple[int, int]]
) -> None:
    # Tied scores and clusters without pairs included.
    clusters = np.array([k % len(values) for k, _ in pairs])
    scores = np.array([score for _, score in pairs], dtype=np.float64)
    smaller: set[int] = set()
    for target in range(1, len(pairs) + 1):
        rows = select_rows(np.array(values), clusters, scores, target)
        assert np.all(np.diff(rows) > 0)
        assert len(rows) == target
        assert smaller < set(rows.tolist())
        smaller = set(rows.tolist())
        dropped = np.setdiff1d(np.arange(len(pairs)), rows)
        for k in set(clusters[dropped]) & set(clusters[rows]):
            best_dropped = scores[dropped[clusters[dropped] == k]].max()
            assert scores[rows[clusters[rows] == k]].min() >= best_dropped


@given(problem=problems(), ratio=st.floats(0.01, 1), data=st.data())
@hypothesis_settings(deadline=None, derandomize=True, max_examples=300)
def test_pairs_kept_follow_the_shares_of_the_programme(
    problem: tuple[np.ndarray, np.ndarray], ratio: float, data: st.DataObject
) -> None:
    scores, sizes = problem
    harmful = np.array(data.draw(st.lists(st.booleans(), min_size=8, max_size=8)))[: len(sizes)]
    target = curated_size(int(sizes.sum()), ratio)
    assume(sizes[harmful].sum() <= sizes.sum() - target)
    gains = gains_of(scores, sizes)
    weights = solve_weights(gains, sizes, np.where(harmful, 0.0, 1.0), target)
    values = cluster_values(gains, np.where(harmful, HARMFUL, NEUTRAL).astype(object), scores)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    rows = select_rows(values, clusters, np.linspace(0, 1, len(clusters)), target)
    kept = np.bincount(clusters[rows], minlength=len(sizes))
    assert kept.sum() == target
    assert np.all(kept[harmful] == 0)
    # To the nearest pair at the price of the programme; the others kept in part may then round
    # the same way, by half a pair each, and this cluster makes up for them. Roots to 1e-12.
    partly = (weights > 0) & (weights < 1)
    bound = np.maximum(0.5, 0.5 * (partly.sum() - partly))
    assert np.all(np.abs(kept - sizes * weights) <= bound + 1e-8)


def test_a_large_cluster_makes_up_for_the_rounding_of_single_pairs() -> None:
    # Equal gains: every cluster owes the share 64 / 107, and the seven single pairs round up.
    sizes = np.array([100, 1, 1, 1, 1, 1, 1, 1])
    clusters = np.repeat(np.arange(8), sizes)
    rows = select_rows(np.zeros(8), clusters, np.linspace(0, 1, 107), 64)
    assert np.bincount(clusters[rows]).tolist() == [57, 1, 1, 1, 1, 1, 1, 1]


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
        gains = shrunken_gains(mean, np.zeros(len(sizes)), sizes)
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


@given(problem=problems(), ratios=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
@hypothesis_settings(deadline=None, derandomize=True, max_examples=200)
def test_subsets_are_nested_as_the_ratio_grows(
    problem: tuple[np.ndarray, np.ndarray], ratios: tuple[float, float]
) -> None:
    # With harmful and beneficial clusters, whether the harmful ones fit or not.
    scores, sizes = problem
    smaller, larger = (run(scores, sizes, ratio)[0].curated_rows for ratio in sorted(ratios))
    assert set(smaller.tolist()) <= set(larger.tolist())


@given(problem=problems(), ratio=st.floats(0.01, 1), all_harmful=st.booleans())
@hypothesis_settings(deadline=None, derandomize=True, max_examples=200)
def test_harmful_clusters_are_dropped_whole_the_most_harmful_first(
    problem: tuple[np.ndarray, np.ndarray], ratio: float, all_harmful: bool
) -> None:
    scores, sizes = problem
    if all_harmful:
        scores = -np.abs(scores) - 0.01
    result, clusters = run(scores, sizes, ratio)
    n = int(sizes.sum())
    dropped = sizes - np.bincount(clusters[result.curated_rows], minlength=len(sizes))
    categories = {e["cluster"]: e["category"] for e in result.categorization}
    harmful = [k for k in np.argsort(scores / sizes) if categories[k] == HARMFUL]
    # Equal influence leaves the order open.
    assume(np.all(np.diff((scores / sizes)[harmful]) > 1e-12))
    left = n - curated_size(n, ratio)
    for k in harmful:
        assert dropped[k] == min(left, sizes[k])
        left -= dropped[k]
    neutral = np.setdiff1d(np.arange(len(sizes)), harmful)
    assert dropped[neutral].sum() == left  # none of these before all of those


def test_harmful_clusters_that_hold_more_than_may_be_dropped() -> None:
    # Fifteen may go: of the second cluster all, of the first half; both neutral ones stay whole.
    scores, sizes = np.array([-0.02, -0.03, 0.0, 0.06]), np.array([10, 10, 10, 10])
    result, _ = run(scores, sizes, 25 / 40)
    entries = {e["cluster"]: e for e in result.categorization}
    assert [entries[k]["category"] for k in range(4)] == [HARMFUL, HARMFUL, NEUTRAL, BENEFICIAL]
    assert [entries[k]["pairs_kept"] for k in range(4)] == [5, 0, 10, 10]
    # What is retained has the weight of a neutral cluster.
    weights = result.cluster_weights
    assert weights["1"] == 0
    assert weights["0"] == weights["2"] < 1 < weights["3"]


@pytest.mark.parametrize(("ratio", "kept"), [(0.2, [6, 0, 0]), (0.5, [10, 0, 5]), (1.0, [10] * 3)])
def test_where_every_cluster_is_harmful(ratio: float, kept: list[int]) -> None:
    result, clusters = run(np.array([-0.01, -0.05, -0.02]), np.array([10, 10, 10]), ratio)
    assert {e["category"] for e in result.categorization} == {HARMFUL}
    assert np.bincount(clusters[result.curated_rows], minlength=3).tolist() == kept
    assert set(result.sample_weights.tolist()) == {1.0}


def test_raised_weights_do_not_jump_just_below_a_ratio_of_one() -> None:
    # Influence a pair: 0, 0 and 0.2, of mean 0.06 and deviation sqrt(0.3 0.7) 0.2 = 0.0917.
    scores, sizes = np.array([0.0, 0.0, 0.06]), np.array([400, 300, 300])
    gain = 0.7 / np.sqrt(0.3 * 0.7)
    for ratio in (1.0, 0.999, 0.98, 0.9):
        weights = run(scores, sizes, ratio)[0].cluster_weights
        assert weights["0"] == weights["1"]
        assert weights["2"] / weights["1"] == pytest.approx(1 + gain, rel=1e-9)


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

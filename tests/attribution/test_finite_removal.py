"""The finite-removal correction by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution.finite_removal import (
    RemovalEffects,
    factors_without_folds,
    removal_corrections,
    removal_effects,
)
from learner.pairs import PairTensors, nearest_clusters

# --- Retraining without folds -----------------------------------------------------------------


def test_weights_without_folds_by_hand() -> None:
    clusters = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    weights = np.array([1, 2, 1, 1, 0.5, 1, 1, 1])
    first, second = (weights * f[clusters] for f in factors_without_folds(np.array([0, 1, 1, 0])))
    np.testing.assert_array_equal(first, [0, 2, 1, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(second, [1, 0, 0, 1, 0.5, 0, 0, 1])


def test_every_cluster_is_left_out_once() -> None:
    clusters = np.arange(21) % 7
    folds = np.random.default_rng(0).permutation(np.arange(7) % 3)
    left_out = [clusters[f[clusters] == 0] for f in factors_without_folds(folds)]
    assert sorted(len(k) for k in left_out) == [6, 6, 9]  # three pairs a cluster
    assert sorted(np.concatenate(left_out)) == sorted(clusters)


def test_removal_effects_by_hand() -> None:
    nearest = np.array([0, 0, 1, 2, 3, 3])  # of six validation pairs
    left_out = [[0.6, 0.8, 0.1, 0.3, 0.4, 0.2], [-0.1, 0.1, 0.5, 0.7, 0.2, 0.2]]
    losses = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    effects = removal_effects(losses, losses + left_out, np.array([0, 1, 1, 0]), nearest)
    # Without 0 and 3 validation pairs 2 and 3, which are nearest to other folds, lose 0.2.
    # Without 1 and 2 pairs 0, 1, 4 and 5 lose 0.1.
    own = [(0.4 + 0.6) / 6, 0.4 / 6, 0.6 / 6, (0.2 + 0.0) / 6]
    np.testing.assert_allclose(effects.own, own, rtol=1e-12, atol=1e-15)
    first, second = np.var([0.4, 0.6, 0.2, 0.0]), np.var([0.4, 0.6])  # within the fold
    np.testing.assert_allclose(
        effects.variance,
        [2 * first / 36, 1 * second / 36, 1 * second / 36, 2 * first / 36],
        rtol=1e-12,
    )
    assert effects.total == pytest.approx(2.4 / 6 + 1.6 / 6, rel=1e-12)


def test_validation_pairs_that_no_batch_holds_do_not_count() -> None:
    folds, nearest = np.array([0, 1, 1, 0]), np.array([0, 3, 0, 1, 2, 2, 3])
    losses = np.linspace(1, 2, 7)
    left_out = losses + np.random.default_rng(0).normal(size=(2, 7))
    held = np.array([True, True, False, True, True, True, False])
    expected = removal_effects(losses[held], left_out[:, held], folds, nearest[held])
    losses[~held] = left_out[:, ~held] = np.nan
    for ours, theirs in zip(
        removal_effects(losses, left_out, folds, nearest), expected, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_fold_without_validation_pairs_counts_in_the_total_only() -> None:
    left_out = np.array([[0.1] * 5 + [0.7], [0.3] * 6])
    nearest = np.array([1, 1, 1, 2, 2, 2])  # none nearest to 0 or 3, all to the other fold
    effects = removal_effects(np.zeros(6), left_out, np.array([0, 1, 1, 0]), nearest)
    # No pair is far from the second fold: no background to take off.
    np.testing.assert_allclose(effects.own, [0, 0.15, 0.15, 0], atol=1e-15)
    np.testing.assert_allclose(effects.variance, 0, atol=1e-15)
    assert effects.total == pytest.approx(0.2 + 0.3, rel=1e-12)


# --- The correction ---------------------------------------------------------------------------

SIZES = np.array([10, 20, 30, 40])
OWN = np.array([0.4, 0.1, 0.05, 0.15])


def effects_of(variance: float | np.ndarray, total: float = 1.0) -> RemovalEffects:
    return RemovalEffects(OWN, np.broadcast_to(np.asarray(variance, dtype=float), 4), total)


def test_own_effects_without_variance_are_trusted_fully() -> None:
    effects, stderr = removal_corrections([effects_of(0.0)], SIZES)
    # 0.3 of the total are seen nowhere in particular and spread by size.
    np.testing.assert_allclose(effects, OWN + 0.3 * SIZES / 100, rtol=1e-12)
    np.testing.assert_allclose(stderr, 0, atol=1e-15)


def test_own_effects_of_huge_variance_are_spread_by_size() -> None:
    effects, stderr = removal_corrections([effects_of(1e3)], SIZES)
    np.testing.assert_allclose(effects, 1.0 * SIZES / 100, rtol=1e-12)
    np.testing.assert_allclose(stderr, 0, atol=1e-15)  # nothing of `own` is used


def test_shrinkage_by_hand() -> None:
    variance = np.array([0.01, 0.0, 0.02, 0.01])
    effects, stderr = removal_corrections([effects_of(variance)], SIZES)
    proportional = 0.7 * SIZES / 100  # 0.07, 0.14, 0.21, 0.28
    squares = [0.33**2, 0.04**2, 0.16**2, 0.13**2]
    spread = sum(s - v for s, v in zip(squares, variance, strict=True)) / 4
    assert spread > 0
    trust = spread / (spread + variance)
    assert trust[1] == 1
    shrunk = proportional + trust * (OWN - proportional)
    expected = shrunk + (1.0 - shrunk.sum()) * SIZES / 100
    np.testing.assert_allclose(effects, expected, rtol=1e-12)
    np.testing.assert_allclose(stderr, np.sqrt(trust * variance), rtol=1e-12)


def test_several_reference_models_are_averaged() -> None:
    one = RemovalEffects(np.array([0.5, 0.1]), np.array([0.02, 0.06]), 0.9)
    other = RemovalEffects(np.array([0.1, 0.3]), np.array([0.04, 0.02]), 1.1)
    mean = RemovalEffects(np.array([0.3, 0.2]), np.array([0.03, 0.04]) / 2, 1.0)
    sizes = np.array([10, 30])
    found, expected = removal_corrections([one, other], sizes), removal_corrections([mean], sizes)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("variance", [0.0, 1e-3, 1e-2, 0.1, 10.0])
@pytest.mark.parametrize("total", [1.0, -0.2, 0.0])
def test_effects_sum_to_the_total_of_the_folds(variance: float, total: float) -> None:
    effects, stderr = removal_corrections([effects_of(variance, total)], SIZES)
    assert float(effects.sum()) == pytest.approx(total, abs=1e-14)
    assert np.all(stderr <= np.sqrt(variance) + 1e-15)


# --- Nearest clusters -------------------------------------------------------------------------


def test_nearest_clusters_by_hand() -> None:
    pairs = PairTensors(
        torch.tensor([[0.0, 0], [2, 0], [10, 0], [10, 2]]), torch.tensor([[0.0], [0], [5], [5]])
    )
    clusters = np.array([1, 1, 0, 0])  # centres (10, 1, 5) and (1, 0, 0)
    others = PairTensors(
        torch.tensor([[1.0, 0], [9, 1], [7, 0], [7, 0]]), torch.tensor([[0.0], [5], [5], [-5]])
    )
    # The last two share an image: the text decides. Squared distances 10 and 61, 110 and 61.
    assert nearest_clusters(pairs, clusters, others).tolist() == [1, 0, 0, 1]

"""Which pairs are evaluated, and how many others each of them stands for."""

from __future__ import annotations

import numpy as np
import pytest

from attribution import sampling
from attribution.sampling import (
    grown_batch_size,
    proportional_counts,
    representation_weights,
    sample_pairs,
    trained_pairs,
)


def test_sampled_pairs_are_so_many_of_every_cluster() -> None:
    clusters = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [30, 3, 12]))
    chosen = sample_pairs(clusters, 5, rng=np.random.default_rng(1))
    assert chosen.dtype == np.int64
    assert np.bincount(clusters[chosen]).tolist() == [5, 3, 5]
    assert np.all(np.diff(chosen) > 0)


def test_every_pair_of_a_cluster_is_as_likely() -> None:
    clusters = np.repeat([0, 1], [8, 4])
    rng = np.random.default_rng(0)
    counts = np.zeros(12)
    for _ in range(2000):
        counts[sample_pairs(clusters, 2, rng=rng)] += 1
    # Binomial shares of 1/4 and 1/2 over 2,000 draws: deviations below 0.0112, four of them.
    np.testing.assert_allclose(counts / 2000, np.r_[[0.25] * 8, [0.5] * 4], atol=0.045)


def test_representation_weights_by_hand() -> None:
    clusters = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    evaluated = np.array([0, 1, 4, 6])
    # Two pairs stand for 2 each, one for 2, one for 3: a mean of 9 / 4.
    expected = np.array([2, 2, 2, 3]) / 2.25
    np.testing.assert_allclose(representation_weights(clusters, evaluated), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("n", "batch_size", "n_steps", "expected"),
    [
        (5_000, 32, 1_600, 32),
        (51_200, 32, 1_600, 32),  # just all of them
        (51_201, 32, 1_600, 33),
        (100_000, 32, 1_600, 63),
        (204_800, 32, 1_600, 128),
        (1_000_000, 32, 1_600, 128),
        (1_000_000, 512, 1_600, 512),  # as it was asked for
    ],
)
def test_batches_grow_until_the_steps_hold_all_pairs(
    n: int, batch_size: int, n_steps: int, expected: int
) -> None:
    assert grown_batch_size(n, batch_size, n_steps) == expected


def test_what_the_steps_hold_is_trained_on_without_a_draw() -> None:
    clusters, rng = np.arange(1000) % 7, np.random.default_rng(3)
    before = rng.bit_generator.state
    small = trained_pairs(clusters, 32, 32, rng=rng)
    grown = trained_pairs(clusters, 32, 10, rng=rng)
    assert rng.bit_generator.state == before
    assert (small.rows, small.batch_size, small.grown) == (None, 32, False)
    assert (grown.rows, grown.batch_size, grown.grown) == (None, 100, True)
    assert small.weights.tolist() == grown.weights.tolist() == [1.0] * 1000


def test_beyond_the_largest_batch_a_sample_of_every_cluster_is_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "MOST_BATCH", 20)
    clusters = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [900, 88, 9, 3]))
    trained = trained_pairs(clusters, 8, 10, rng=np.random.default_rng(1))
    rows = trained.rows
    assert rows is not None
    assert (trained.batch_size, trained.grown, len(rows)) == (20, True, 200)
    assert np.all(np.diff(rows) > 0)
    # Five of every cluster or all of it; the other 182 in proportion to the other 982.
    counts = np.bincount(clusters[rows])
    assert counts.tolist() == [171, 20, 6, 3]
    assert trained.weights.mean() == pytest.approx(1)
    shares = np.bincount(clusters[rows], trained.weights) / 200
    np.testing.assert_allclose(shares, [0.9, 0.088, 0.009, 0.003], rtol=1e-12)
    other = trained_pairs(clusters, 8, 10, rng=np.random.default_rng(2)).rows
    assert other is not None
    assert not np.array_equal(rows, other)


def test_every_cluster_has_a_pair_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_BATCH", 4)
    clusters = np.arange(100) % 50
    trained = trained_pairs(clusters, 2, 10, rng=np.random.default_rng(0))
    assert trained.batch_size == 5
    assert trained.rows is not None
    assert np.bincount(clusters[trained.rows]).tolist() == [1] * 50


def test_counts_add_up_and_are_within_the_clusters() -> None:
    rng = np.random.default_rng(8)
    for _ in range(50):
        sizes = rng.integers(1, 40, size=12)
        total = int(rng.integers(12, sizes.sum() + 1))
        counts = proportional_counts(sizes, total)
        assert counts.sum() == total
        assert np.all((counts >= 1) & (counts <= sizes))
    assert proportional_counts(np.array([3, 4]), 7).tolist() == [3, 4]

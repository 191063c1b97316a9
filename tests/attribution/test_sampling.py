"""Which pairs are evaluated, and how many others each of them stands for."""

from __future__ import annotations

import numpy as np

from attribution.sampling import representation_weights, sample_pairs


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

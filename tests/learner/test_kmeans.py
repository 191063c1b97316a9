"""K-means on a sample beside Lloyd's algorithm of scikit-learn on every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from learner import kmeans
from learner.kmeans import sampled_kmeans


def topical_points(n: int, n_topics: int, *, width: int = 24, seed: int = 0) -> np.ndarray:
    """Unit rows around topics, as far from their own as topics are from each other."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(n_topics, width))
    points = topics[rng.integers(n_topics, size=n)] + rng.normal(size=(n, width))
    unit: np.ndarray = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit.astype(np.float32)


def inertia(points: np.ndarray, labels: np.ndarray) -> float:
    """The sum of squared distances to the means of the labels' points, in float64."""
    total = 0.0
    for k in np.unique(labels):
        members = points[labels == k].astype(np.float64)
        total += float(((members - members.mean(axis=0)) ** 2).sum())
    return total


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "SAMPLED", 3000)
    monkeypatch.setattr(kmeans, "DRAWN_FROM_LEAST", 500)


@pytest.mark.parametrize(("n_topics", "n_clusters"), [(60, 20), (150, 100)])
def test_the_inertia_is_within_a_percent_of_lloyds_on_all_rows(
    n_topics: int, n_clusters: int, small_sample: None
) -> None:
    # Means of three seeds: Lloyd's own results differ by half a percent.
    points = topical_points(12_000, n_topics)
    found = [
        inertia(points, sampled_kmeans(points, n_clusters, np.random.default_rng(seed)).labels)
        for seed in range(3)
    ]
    lloyd = [KMeans(n_clusters, n_init=1, random_state=s).fit(points).inertia_ for s in range(3)]
    assert np.mean(found) < 1.01 * np.mean(lloyd)
    # Chance alone is far worse: the bound tells something.
    drawn = points[np.random.default_rng(1).choice(len(points), n_clusters, replace=False)]
    by_chance = ((points[:, None] - drawn[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert inertia(points, by_chance) > 1.03 * np.mean(lloyd)


def test_every_point_has_the_nearest_centre(small_sample: None) -> None:
    points = topical_points(3000, 30)
    found = sampled_kmeans(points, 25, np.random.default_rng(0))
    distances = ((points[:, None].astype(np.float64) - found.centers[None]) ** 2).sum(axis=2)
    own = distances[np.arange(len(points)), found.labels]
    np.testing.assert_allclose(own, distances.min(axis=1), atol=1e-6)  # float32
    assert found.labels.dtype == np.int64
    assert found.centers.dtype == np.float32
    assert len(np.unique(found.labels)) == len(found.centers) == 25


def test_rows_are_read_from_a_memory_map_in_blocks(
    tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "ROWS_AT_ONCE", 700)
    points = topical_points(3000, 10)
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    held = sampled_kmeans(points, 10, np.random.default_rng(0))
    read = sampled_kmeans(mapped, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(read.labels, held.labels)
    np.testing.assert_array_equal(read.centers, held.centers)


def test_the_seed_decides(small_sample: None) -> None:
    points = topical_points(3000, 100)
    first, again, other = (sampled_kmeans(points, 20, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


def test_a_rare_point_that_no_sample_holds_gets_a_centre(small_sample: None) -> None:
    # Three places, of which a sample of 3,000 in 30,000 mostly misses the third.
    points = np.repeat(np.eye(3, dtype=np.float32), [15_000, 14_999, 1], axis=0)
    found = sampled_kmeans(points, 3, np.random.default_rng(0))
    places = [set(found.labels[points[:, axis] == 1].tolist()) for axis in range(3)]
    assert [len(place) for place in places] == [1, 1, 1]
    assert len(set.union(*places)) == 3


def test_a_wide_sample_is_projected_for_the_first_centres_only() -> None:
    points = topical_points(1200, 12, width=kmeans.PROJECTED + 40)
    found = sampled_kmeans(points, 12, np.random.default_rng(0))
    assert found.centers.shape == (12, kmeans.PROJECTED + 40)
    lloyd = KMeans(12, n_init=3, random_state=0).fit(points)
    assert inertia(points, found.labels) < 1.01 * float(lloyd.inertia_)

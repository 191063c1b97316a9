"""Clusters of points placed by hand, and what their descriptions say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import clustering
from artifacts.settings import InputError
from clustering import (
    N_NEAREST,
    ClusterAssignment,
    ClusteringConfig,
    cluster_embeddings,
    describe_clusters,
    split_into_cells,
)
from learner.kmeans import Fitted, sampled_kmeans


def run(
    points: np.ndarray, n_clusters: int, *, seed: int = 0, captions: list[str] | None = None
) -> ClusterAssignment:
    n = len(points)
    return cluster_embeddings(
        points.astype(np.float32),
        np.linspace(0, 1, n).astype(np.float32),
        captions or [f"caption {i}" for i in range(n)],
        ClusteringConfig(n_clusters=n_clusters),
        rng=np.random.default_rng(seed),
    )


def same_grouping(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two labellings are equal up to the names of the labels."""
    return len(set(zip(first, second, strict=True))) == len(set(first)) == len(set(second))


def blobs(per_blob: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four blobs of deviation 0.1 at distances of 10 and more, and which point is of which."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(4), per_blob))
    centers = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    return centers[truth] + 0.1 * rng.normal(size=(len(truth), 2)), truth


def test_points_by_hand() -> None:
    points = np.array([[0, 0], [0, 2], [9, 0], [9, 4], [0, 1]])
    result = run(points, 2)
    assert same_grouping(result.cluster_assignments, np.array([0, 0, 1, 1, 0]))
    assert result.cluster_assignments.dtype == np.int64
    assert result.centers.dtype == np.float32
    np.testing.assert_array_equal(result.centers[result.cluster_assignments[0]], [0, 1])
    np.testing.assert_array_equal(result.centers[result.cluster_assignments[2]], [9, 2])


@pytest.mark.parametrize("seed", range(3))
def test_separated_blobs_are_found(seed: int) -> None:
    points, truth = blobs(20, seed=seed)
    assert same_grouping(run(points, 4, seed=seed).cluster_assignments, truth)


def test_large_sets_begin_with_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def watched(points: np.ndarray, n_clusters: int, rng: np.random.Generator) -> Fitted:
        used.append(len(points))
        return sampled_kmeans(points, n_clusters, rng)

    monkeypatch.setattr(clustering, "sampled_kmeans", watched)
    points, truth = blobs(30)
    monkeypatch.setattr(clustering, "SAMPLED_ABOVE", 120)
    assert run(points, 4).image_groups is None
    assert used == []  # as many as the limit are not above it
    monkeypatch.setattr(clustering, "SAMPLED_ABOVE", 119)
    result = run(points, 4)
    assert same_grouping(result.cluster_assignments, truth)
    assert used == [120]
    # Groups of images, by the first of the two columns, in which all copies lie.
    assert result.image_groups is not None
    assert result.image_groups.shape == (120,)
    assert 4 <= len(set(result.image_groups)) <= 22  # about sqrt(120), up to twice as many


def test_copies_of_large_sets_are_found_whatever_their_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clustering, "SAMPLED_ABOVE", 199)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 30))
    images[7] = images[4]
    points = np.concatenate([images, np.zeros((200, 30))], axis=1)
    points[:, 30] = 40.0 * (np.arange(200) % 2)  # captions put the two into two topics
    result = run(points, 2)
    assert same_grouping(result.cluster_assignments, np.arange(200) % 2)
    assert np.flatnonzero(result.better_copies).tolist() == [4]  # agreement grows with the row
    assert result.copy_links is not None
    assert result.copy_links.tolist() == [[4, 7]]


def test_cells_are_numbered_by_cluster_band_and_copies() -> None:
    rng = np.random.default_rng(0)
    clusters, bands, copies = (
        rng.integers(0, 5, 300),
        rng.integers(0, 4, 300),
        rng.integers(0, 3, 300),
    )
    kinds = list(zip(clusters, bands, np.minimum(copies, 1), strict=True))
    numbers = {kind: i for i, kind in enumerate(sorted(set(kinds)))}
    assert split_into_cells(clusters, bands, copies).tolist() == [numbers[kind] for kind in kinds]


def test_the_seed_decides() -> None:
    points = np.random.default_rng(0).normal(size=(80, 3))  # no structure to agree on
    first, again, other = (run(points, 8, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.cluster_assignments, again.cluster_assignments)
    np.testing.assert_array_equal(first.centers, again.centers)
    assert first.clusters == again.clusters
    assert not np.array_equal(first.cluster_assignments, other.cluster_assignments)


def test_one_cluster_holds_everything() -> None:
    points = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    result = run(points, 1)
    assert result.cluster_assignments.tolist() == [0] * 9
    np.testing.assert_allclose(result.centers[0], points.mean(axis=0), atol=1e-6)  # float32


def test_as_many_clusters_as_points() -> None:
    points = np.array([[0, 0], [1, 5], [7, 2], [3, 3]])
    result = run(points, 4)
    assert sorted(result.cluster_assignments) == [0, 1, 2, 3]
    np.testing.assert_array_equal(result.centers[result.cluster_assignments], points)


def test_duplicates_share_a_cluster_and_no_cluster_is_empty() -> None:
    points = np.repeat([[0.0, 0.0], [5.0, 5.0], [9.0, 0.0]], [4, 3, 2], axis=0)
    result = run(points, 5)
    assert same_grouping(result.cluster_assignments, np.repeat([0, 1, 2], [4, 3, 2]))
    assert sorted(set(result.cluster_assignments)) == [0, 1, 2]
    assert len(result.centers) == len(result.clusters) == 3
    np.testing.assert_array_equal(result.centers[result.cluster_assignments], points)
    assert Counter(c["size"] for c in result.clusters) == Counter([4, 3, 2])


def test_more_clusters_than_pairs_is_an_input_error() -> None:
    points = np.random.default_rng(0).normal(size=(12, 2))
    with pytest.raises(
        InputError,
        match=r"--n_clusters asks for 13 clusters but there are only 12 training pairs; "
        "pass --n_clusters 1 or more data",
    ):
        run(points, 13)


def test_few_pairs_are_put_into_fewer_clusters_by_default() -> None:
    assert [ClusteringConfig().n_clusters_of(n) for n in (9, 18, 99, 100, 5000)] == [
        *(1, 1, 9, 100, 100)
    ]
    assert ClusteringConfig(n_clusters=20).n_clusters_of(12) == 20  # as asked for
    points = np.random.default_rng(0).normal(size=(30, 2))
    assert len(run(points, ClusteringConfig().n_clusters).clusters) == 3


def test_copies_are_told_from_their_surroundings_where_clusters_are_families() -> None:
    # Twelve images seen nine times each, in as many clusters: all but the best are copies.
    rng = np.random.default_rng(0)
    images = np.repeat(rng.normal(size=(12, 16)), 9, axis=0) + 0.02 * rng.normal(size=(108, 16))
    found = run(np.concatenate([images, rng.normal(size=(108, 16))], axis=1), 12)
    assert (found.better_copies > 0).sum() == 12 * 8


def test_fewer_than_one_cluster_is_an_input_error() -> None:
    with pytest.raises(InputError, match="--n_clusters must be >= 1; got 0"):
        ClusteringConfig(n_clusters=0)


@pytest.mark.parametrize(
    ("setting", "value"), [("agreement_bands", 0), ("near_copy_similarity", 2.0)]
)
def test_wrong_settings_are_input_errors(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"--{setting} must be"):
        ClusteringConfig(**{setting: value})


def test_clusters_are_split_into_cells_by_agreement_and_copies() -> None:
    # Images far apart but for two that are one; captions put them into two topics all the same.
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 30))
    images[7] = images[3]
    points = np.concatenate([images, np.zeros((40, 30))], axis=1)
    points[:, 30] = 40.0 * (np.arange(40) % 2)
    result = run(points, 2)
    assert same_grouping(result.cluster_assignments, np.arange(40) % 2)
    assert np.flatnonzero(result.better_copies).tolist() == [3]  # agreement grows with the row
    # Four bands of ten rows in each of two topics, and a cell for the copy.
    kinds = np.arange(40) // 10 * 2 + np.arange(40) % 2
    kinds[3] = 99
    assert same_grouping(result.cell_assignments, kinds)
    told = [(cell["cell"], cell["size"]) for c in result.clusters for cell in c["cells"]]
    assert sorted(told) == list(enumerate(np.bincount(result.cell_assignments).tolist()))
    for c in result.clusters:
        assert sum(cell["size"] for cell in c["cells"]) == c["size"]
    # Copies are looked for in other features where they are given.
    apart = cluster_embeddings(
        points.astype(np.float32),
        np.linspace(0, 1, 40).astype(np.float32),
        ["caption"] * 40,
        ClusteringConfig(n_clusters=2),
        rng=np.random.default_rng(0),
        image_features=rng.normal(size=(40, 30)).astype(np.float32),
    )
    assert not apart.better_copies.any()


def test_descriptions_by_hand() -> None:
    assignments = np.array([1, 0, 1, 1, 0, 1, 1, 1])
    # Distances to their centres: 0 and 0.5 in cluster 0; 5, 3, 1, 4, 2, 0 in cluster 1.
    embeddings = np.array([15, 0, 13, 11, 0.5, 14, 12, 10], dtype=np.float32)[:, None]
    scores = np.array([0.1, 0.3, 0.2, 0.3, 0.5, 0.4, 0.5, 0.6], dtype=np.float32)
    captions = ["dog five", "cat", "dog", "dog one", "cat", "dog four", "dog two", "dog nil"]
    centers = np.array([[0], [10]], dtype=np.float32)
    first, second = describe_clusters(assignments, centers, embeddings, scores, captions)
    assert first == {
        "cluster": 0,
        "size": 2,
        "mean_clip_score": 0.4,
        "terms": ["cat"],
        "nearest_captions": ["cat", "cat"],
    }
    assert second["cluster"] == 1
    assert second["size"] == 6
    assert second["mean_clip_score"] == 0.35
    assert second["terms"][0] == "dog"
    assert second["nearest_captions"] == ["dog nil", "dog one", "dog two", "dog", "dog four"]
    assert len(second["nearest_captions"]) == N_NEAREST

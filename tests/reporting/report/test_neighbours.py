"""The nearest other pairs against scikit-learn's and by hand, ties, copies, large sets."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from reporting.report import neighbours
from reporting.report.neighbours import most_similar, nearest_neighbours, split_into_groups


def topics(n: int, *, n_topics: int = 40, seed: int = 0) -> np.ndarray:
    """Points around topics, of many norms."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n_topics, 24))
    points = centers[rng.integers(n_topics, size=n)] + 0.4 * rng.normal(size=(n, 24))
    return (points * rng.uniform(0.5, 2, size=(n, 1))).astype(np.float32)


def by_scikit_learn(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
    distances, rows = found.fit(points.astype(np.float64)).kneighbors()
    return rows, 1 - distances


def test_all_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SIMILARITIES_AT_ONCE", 7 * 300)  # 7 rows, then 6
    points = topics(300)
    rows, cosines = nearest_neighbours(points, 8, rng=np.random.default_rng(0))
    expected, expected_cosines = by_scikit_learn(points, 8)
    # Cosines are compared in steps of a millionth: rows may change places within one.
    np.testing.assert_allclose(cosines, expected_cosines, atol=2e-6)
    assert (rows == expected).mean() > 0.99
    assert (np.sort(rows, axis=1) == np.sort(expected, axis=1)).mean() > 0.99


def test_ties_go_to_the_earlier_row_and_copies_are_neighbours() -> None:
    points = np.array([[1, 0], [0, 1], [2, 0], [0, 3], [1, 0], [1, 0]], dtype=np.float32)
    rows, cosines = nearest_neighbours(points, 4, rng=np.random.default_rng(0))
    assert rows.tolist() == [
        [2, 4, 5, 1],
        [3, 0, 2, 4],
        [0, 4, 5, 1],
        [1, 0, 2, 4],
        [0, 2, 5, 1],
        [0, 2, 4, 1],
    ]
    assert cosines[0].tolist() == [1, 1, 1, 0]
    assert cosines[1].tolist() == [1, 0, 0, 0]


def test_more_ties_than_there_is_room_for() -> None:
    similar = np.array([[5, 9, 5, 5, 9], [1, 1, 1, 1, 1], [4, 3, 2, 1, 0]], dtype=np.int32)
    columns, cosines = most_similar(similar, 3)
    assert columns.tolist() == [[1, 4, 0], [0, 1, 2], [0, 1, 2]]
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_a_zero_row_is_like_nothing() -> None:
    points = np.array([[0, 0], [1, 0], [1, 0.1]], dtype=np.float32)
    rows, cosines = nearest_neighbours(points, 2, rng=np.random.default_rng(0))
    assert rows.tolist() == [[1, 2], [2, 0], [1, 0]]
    assert cosines[0].tolist() == [0, 0]


def test_a_single_pair_has_no_neighbours() -> None:
    rows, cosines = nearest_neighbours(
        np.ones((1, 4), dtype=np.float32), 0, rng=np.random.default_rng(0)
    )
    assert rows.shape == cosines.shape == (1, 0)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups as of a large set, in one of thousands."""
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(neighbours, "GROUP_SIZE", 50)
    monkeypatch.setattr(neighbours, "LOOKED_THROUGH", 800)


@pytest.mark.usefixtures("small_groups")
def test_groups_find_most_of_the_nearest() -> None:
    points = topics(4000)
    rows, cosines = nearest_neighbours(points, 8, rng=np.random.default_rng(0))
    expected, _ = by_scikit_learn(points, 8)
    found = np.mean([len(np.intersect1d(a, b)) / 8 for a, b in zip(rows, expected, strict=True)])
    assert found > 0.9  # a fifth of all is looked through: by chance 0.2
    assert (rows != np.arange(4000)[:, None]).all()
    assert all(len(set(row)) == 8 for row in rows.tolist())
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, np.einsum("nd,nkd->nk", unit, unit[rows]), atol=2e-6)
    assert (np.diff(cosines, axis=1) <= 0).all()

    again, _ = nearest_neighbours(points, 8, rng=np.random.default_rng(0))
    assert np.array_equal(again, rows)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("equal", [1.0, 0.5])
def test_groups_hold_each_pair_once_and_are_never_too_large(equal: float) -> None:
    points = topics(3000)
    points[: int(equal * 3000)] = points[0]
    groups = split_into_groups(points, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate(groups)), np.arange(3000))
    assert min(map(len, groups)) >= 1
    assert max(map(len, groups)) <= 50
    rows, cosines = nearest_neighbours(points, 8, rng=np.random.default_rng(0))
    assert (rows[0] != 0).all()
    assert (cosines[0] == 1).all()

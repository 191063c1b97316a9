"""Groups: blobs stay together, no group is too large, equal rows share one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learner import groups
from learner.groups import members_of, nearby_groups


def blobs(n_blobs: int, size: int, *, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """Unit rows around random directions, blob after blob."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_blobs, 16))
    points = np.repeat(centres, size, axis=0) + spread * rng.normal(size=(n_blobs * size, 16))
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), dtype=np.float32)


def test_rows_that_lie_close_together_are_in_one_group() -> None:
    points = blobs(10, 50)
    found = nearby_groups(points, 10, np.random.default_rng(0))
    # Random centres may leave two blobs in one group or part a blob; neighbours stay together.
    cosines = points @ points.T - 2 * np.eye(len(points))
    shared = (found == found[cosines.argmax(axis=1)]).mean()
    by_chance = ((np.bincount(found) / len(points)) ** 2).sum()
    assert shared > 0.85
    assert by_chance < 0.3


def test_numbers_have_no_gap_and_members_are_all_rows() -> None:
    found = nearby_groups(blobs(7, 30), 12, np.random.default_rng(1))
    assert np.unique(found).tolist() == list(range(found.max() + 1))
    members = members_of(found)
    assert len(members) == found.max() + 1
    assert sorted(np.concatenate(members).tolist()) == list(range(210))
    for k, rows in enumerate(members):
        assert (found[rows] == k).all()
        assert (np.diff(rows) > 0).all()


def test_a_group_that_is_too_large_is_split_by_closeness() -> None:
    # 900 of 1,000 rows in one narrow direction: the centres, drawn from all, may not cut it up.
    narrow = blobs(1, 900, spread=0.3)
    points = np.concatenate([narrow, -blobs(1, 100, spread=0.3)])
    found = nearby_groups(points, 10, np.random.default_rng(2))
    assert np.bincount(found).max() <= 4 * 100
    assert len(set(found[:900].tolist()) & set(found[900:].tolist())) == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rows_are_cut_where_they_are_more_than_a_group_may_hold(value: float) -> None:
    points = np.full((1000, 4), value, dtype=np.float32)
    found = nearby_groups(points, 20, np.random.default_rng(3))
    assert np.bincount(found).tolist() == [200] * 5  # four times the share of fifty


def test_equal_rows_share_a_group() -> None:
    rng = np.random.default_rng(4)
    points = rng.normal(size=(400, 8)).astype(np.float32)
    points[200:] = points[:200]
    found = nearby_groups(points, 20, np.random.default_rng(5))
    np.testing.assert_array_equal(found[:200], found[200:])
    assert found.max() > 5


def test_a_memory_map_and_blocks_give_the_same_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = blobs(9, 40)
    np.save(tmp_path / "points.npy", points)
    stored = np.load(tmp_path / "points.npy", mmap_mode="r")
    whole = nearby_groups(points, 9, np.random.default_rng(6))
    monkeypatch.setattr(groups, "ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(nearby_groups(stored, 9, np.random.default_rng(6)), whole)


@pytest.mark.parametrize(("n", "n_groups"), [(1, 1), (1, 9), (3, 0), (5, 5)])
def test_few_rows(n: int, n_groups: int) -> None:
    points = np.random.default_rng(7).normal(size=(n, 3)).astype(np.float32)
    found = nearby_groups(points, n_groups, np.random.default_rng(8))
    assert found.shape == (n,)
    assert len(members_of(found)) == found.max() + 1 <= max(1, n_groups)


def test_no_rows_are_no_groups() -> None:
    assert members_of(np.zeros(0, dtype=np.int64)) == []

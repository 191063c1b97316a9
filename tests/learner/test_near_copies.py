"""Planted families of near copies, and the definition pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from learner import near_copies
from learner.groups import nearby_groups
from learner.near_copies import better_copies
from tests.rooms import new_room

SIMILARITY = 0.85


def pictures(n: int, *, seed: int, scene: float = 0.0) -> np.ndarray:
    """Features of n pictures that share a scene to some extent, on either side of the mean."""
    rng = np.random.default_rng(seed)
    shared = scene * rng.normal(size=(2, 48))[np.arange(n) % 2]
    return np.asarray(shared + rng.normal(size=(n, 48)), dtype=np.float32)


def with_copies(
    images: np.ndarray, families: list[list[int]], *, noise: float, seed: int = 1
) -> np.ndarray:
    """The images, those of each family replaced by their first with some noise."""
    rng, images = np.random.default_rng(seed), images.copy()
    for first, *others in families:
        images[others] = images[first] + noise * rng.normal(size=(len(others), images.shape[1]))
    return images


def one_group(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.int64)


def slow_better_copies(
    images: np.ndarray,
    groups: np.ndarray,
    scores: np.ndarray,
    similarity: float,
    *,
    surroundings: int = 20,
    either: Callable[..., float] = max,
) -> list[int]:
    """The definition, pair by pair in float64, with other surroundings or another choice of two."""
    centred = images.astype(np.float64) - images.astype(np.float64).mean(axis=0)
    unit = centred / np.sqrt((centred**2).sum(axis=1, keepdims=True))
    cosine = unit @ unit.T
    n, counts = len(images), []
    nearby = {}
    for i in range(n):
        others = sorted(cosine[i, j] for j in range(n) if j != i and groups[j] == groups[i])
        nearby[i] = 1 - others[-surroundings:][0] if others else 0.0
    for i in range(n):
        count = 0
        for j in range(n):
            distance = 1 - cosine[i, j]
            is_copy = distance < max(either(0.3 * nearby[i], 0.3 * nearby[j]), 1e-5)
            if i != j and groups[i] == groups[j] and is_copy and cosine[i, j] >= similarity:
                count += scores[j] > scores[i] or (scores[j] == scores[i] and j < i)
        counts.append(count)
    return counts


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_best_of_a_family_has_none_better_and_every_other_counts_them(noise: float) -> None:
    families = [[3, 17, 40, 41, 59], [8, 9], [20, 2, 30]]
    images = with_copies(pictures(60, seed=0), families, noise=noise)
    scores = np.random.default_rng(2).random(60)
    scores[[20, 2, 30]] = 0.5  # ties go to the earlier row
    found = better_copies(images, one_group(60), scores, SIMILARITY)
    expected = np.zeros(60, dtype=np.int64)
    for family in families:
        for place, row in enumerate(sorted(family, key=lambda row: (-scores[row], row))):
            expected[row] = place
    assert found.tolist() == expected.tolist()


def test_images_of_one_scene_are_no_copies_but_a_closer_one_is() -> None:
    images, scores = pictures(80, seed=3, scene=4.0), np.linspace(0, 1, 80)
    centred = images - images.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    alike = (unit[::2] @ unit[::2].T)[np.triu_indices(40, 1)]
    assert (alike >= SIMILARITY).mean() > 0.9  # so their cosine alone would tell copies
    assert not better_copies(images, one_group(80), scores, SIMILARITY).any()
    images = with_copies(images, [[10, 30]], noise=0.1)
    found = better_copies(images, one_group(80), scores, SIMILARITY)
    assert np.flatnonzero(found).tolist() == [10]  # the other one's caption agrees better


def test_copies_must_be_as_similar_as_is_asked() -> None:
    images = with_copies(pictures(60, seed=0), [[5, 6]], noise=0.35)  # cosine 0.94
    scores = np.linspace(0, 1, 60)
    for similarity, n_copies in ((0.85, 1), (0.9, 1), (0.98, 0)):
        found = better_copies(images, one_group(60), scores, similarity)
        assert found.sum() == n_copies


def test_groups_never_mix() -> None:
    images = with_copies(pictures(60, seed=0), [[0, 1, 2, 3]], noise=0.05)
    scores, groups = np.linspace(1, 0, 60), one_group(60)
    groups[[1, 3]] = 7
    groups[30:50] = 7
    found = better_copies(images, groups, scores, SIMILARITY)
    assert found[:4].tolist() == [0, 0, 1, 1]
    assert not found[4:].any()


@pytest.mark.parametrize("size", [2, 5, 20, 21, 40])
def test_a_family_of_equal_images_is_found_however_large(size: int) -> None:
    # Above twenty all of an image's surroundings are its copies.
    images = pictures(60, seed=0)
    images[:size] = images[0]
    found = better_copies(images, one_group(60), np.linspace(0, 1, 60), SIMILARITY)
    assert found[:size].tolist() == list(range(size))[::-1]
    assert not found[size:].any()


def test_tiny_groups() -> None:
    images = pictures(8, seed=0)
    images[7] = images[6]
    groups, scores = np.array([0, 1, 1, 2, 2, 2, 3, 3]), np.linspace(0, 1, 8)
    found = better_copies(images, groups, scores, SIMILARITY)
    assert found.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    alone = better_copies(images[:1], groups[:1], scores[:1], SIMILARITY)
    assert alone.tolist() == [0]


@pytest.mark.parametrize("rows_at_once", [1, 7, 1024])
def test_blocks_give_what_the_definition_says(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_copies, "SIMILARITIES_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(4)
    families = [rng.choice(90, size=3, replace=False).tolist() for _ in range(12)]
    images = with_copies(pictures(90, seed=5, scene=0.7), families, noise=0.3)
    groups, scores = rng.integers(0, 3, size=90), rng.integers(0, 6, size=90) / 6
    found = better_copies(images, groups, scores, SIMILARITY)
    assert found.tolist() == slow_better_copies(images, groups, scores, SIMILARITY)
    assert found.sum() > 5


def test_the_wider_surroundings_of_two_decide_and_reach_to_the_twentieth() -> None:
    # In three dimensions, where many images are between copies and others.
    images = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    case = (images, one_group(120), np.linspace(0, 1, 120), SIMILARITY)
    found = better_copies(*case).tolist()
    assert found == slow_better_copies(*case)
    for other in (
        slow_better_copies(*case, either=min),
        slow_better_copies(*case, surroundings=19),
        slow_better_copies(*case, surroundings=21),
    ):
        assert sum(a != b for a, b in zip(found, other, strict=True)) > 3


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    images = with_copies(pictures(60, seed=0), [[1, 2, 3], [4, 5]], noise=0.1)
    groups, scores, order = rng.integers(0, 2, size=60), rng.random(60), rng.permutation(60)
    groups[:6] = 1
    found = better_copies(images, groups, scores, SIMILARITY)
    assert found.sum() == 0 + 1 + 2 + 1
    again = better_copies(images[order], groups[order], scores[order], SIMILARITY)
    assert again.tolist() == found[order].tolist()


def test_links_name_the_copies_that_are_counted_the_best_of_them_first() -> None:
    images = pictures(60, seed=0)
    images[:12] = images[0]
    images[[20, 30]] = images[40]
    scores = np.linspace(0, 1, 60)
    found = near_copies.near_copies(images, one_group(60), scores, SIMILARITY)
    links: dict[int, list[int]] = {}
    for pair, copy in found.links.tolist():
        links.setdefault(pair, []).append(copy)
    assert {pair: len(copies) for pair, copies in links.items()} == {
        pair: min(n, 8) for pair, n in enumerate(found.better.tolist()) if n
    }
    assert links[0] == [11, 10, 9, 8, 7, 6, 5, 4]
    assert (links[20], links[30]) == ([40, 30], [40])


# --- Across the borders of groups -----------------------------------------------------------------


def test_a_copy_in_another_group_is_found_where_that_group_is_searched_too() -> None:
    images = with_copies(pictures(60, seed=0), [[3, 40], [8, 9]], noise=0.05)
    groups, scores = np.arange(60) // 30, np.linspace(0, 1, 60)
    found = near_copies.near_copies(images, groups, scores, SIMILARITY)
    assert found.links.tolist() == [[8, 9]]
    # Row 40 is a guest in the group of row 3, and so is one that is a copy of nothing.
    others = np.full((60, 1), -1)
    others[[40, 50], 0] = 0
    found = near_copies.near_copies(images, groups, scores, SIMILARITY, other_groups=others)
    assert sorted(found.links.tolist()) == [[3, 40], [8, 9]]
    assert np.flatnonzero(found.better).tolist() == [3, 8]
    # The pair of best caption has none better, whichever of the two is the guest.
    others = np.full((60, 1), -1)
    others[3, 0] = 1
    found = near_copies.near_copies(images, groups, scores, SIMILARITY, other_groups=others)
    assert found.links.tolist() == [[8, 9]]


def test_a_pair_is_counted_once_however_many_groups_two_copies_share() -> None:
    images = with_copies(pictures(60, seed=0), [[3, 40, 41]], noise=0.05)
    groups = np.arange(60) // 20
    others = np.stack([(groups + 1) % 3, (groups + 2) % 3], axis=1)  # all guests everywhere
    scores = np.linspace(0, 1, 60)
    found = near_copies.near_copies(images, groups, scores, SIMILARITY, other_groups=others)
    whole = near_copies.near_copies(images, one_group(60), scores, SIMILARITY)
    assert found.better.tolist() == whole.better.tolist()
    assert sorted(found.links.tolist()) == sorted(whole.links.tolist())
    assert whole.better[3] == 2


def test_other_groups_are_the_nearest_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "ROWS_AT_ONCE", 13)
    images = pictures(80, seed=0, scene=0.5)
    groups = np.random.default_rng(1).integers(0, 6, size=80)
    centred = images.astype(np.float64) - images.astype(np.float64).mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    means = np.stack([unit[groups == k].mean(axis=0) for k in range(6)])
    squares = ((unit[:, None] - means[None]) ** 2).sum(axis=2)
    found = near_copies.nearest_other_groups(images, groups)
    assert found.shape == (80, near_copies.OTHERS)
    n_near = 0
    for row in range(80):
        ranked = [int(k) for k in np.argsort(squares[row]) if k != groups[row]]
        farther = squares[row] - squares[row, groups[row]]
        near = [k for k in ranked if farther[k] <= near_copies.BORDER][: near_copies.OTHERS]
        assert found[row].tolist() == near + [-1] * (near_copies.OTHERS - len(near))
        n_near += len(near)
    assert 0 < n_near < 80 * near_copies.OTHERS


def test_one_group_has_no_others() -> None:
    assert near_copies.nearest_other_groups(pictures(9, seed=0), one_group(9)).shape == (9, 0)


def test_most_planted_copies_are_found_in_groups_of_their_own() -> None:
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(200, 48))[rng.integers(200, size=4000)] / 2).astype(np.float32)
    images += rng.normal(size=images.shape)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    families = rng.permutation(4000)[:400].reshape(200, 2).tolist()
    images = with_copies(images, families, noise=0.01)
    scores, groups = rng.random(4000), nearby_groups(images, 63, rng)
    exact = near_copies.near_copies(images, one_group(4000), scores, SIMILARITY)
    others = near_copies.nearest_other_groups(images, groups)
    found = near_copies.near_copies(images, groups, scores, SIMILARITY, other_groups=others)
    every, some = (set(map(tuple, links.tolist())) for links in (exact.links, found.links))
    assert len(every) > 150
    assert len(every & some) > 0.95 * len(every)
    shared = near_copies.near_copies(
        images, groups, scores, SIMILARITY, other_groups=others, room=new_room()
    )
    assert shared.better.tolist() == found.better.tolist()
    assert sorted(shared.links.tolist()) == sorted(found.links.tolist())


def test_images_that_are_all_alike_cost_no_square_of_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared, reach = [], near_copies._reach

    def watched(points: np.ndarray, own: Any) -> np.ndarray:
        compared.append(len(points) * len(points[own]))
        return reach(points, own)

    monkeypatch.setattr(near_copies, "_reach", watched)
    images = np.ones((6000, 3), dtype=np.float32)
    images[:2] = [[1, 0, 0], [0, 1, 0]]
    groups = nearby_groups(images, 77, np.random.default_rng(0))
    others = near_copies.nearest_other_groups(images, groups)
    scores = np.linspace(0, 1, 6000)
    found = near_copies.near_copies(images, groups, scores, SIMILARITY, other_groups=others)
    assert sum(compared) < 6000**2 / 3  # groups of at most four times 78, guests in three others
    assert (found.better > 0).mean() > 0.95  # all but the best of every group

"""The rival selectors on cases worked by hand, and wrong captions planted for influence."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import agreement
from attribution.agreement import fit_log_scale
from attribution.scores import standardised
from baselines import BASELINES, CONTROLS, FULL, INFLUENCESPACE, METHODS, TRAINED_BY_DEFAULT
from learner.config import TrainingConfig
from learner.model import MAX_LOG_SCALE, Parameters
from learner.pairs import PairTensors
from learner.training import train
from rivals import agreement as rivals_agreement
from rivals import clusters as rivals_clusters
from rivals.agreement import (
    neg_clip_loss,
    neg_clip_loss_normsim,
    neg_clip_loss_then_normsim,
    norm_sim,
)
from rivals.clusters import (
    alpha_sampling,
    capped_shares,
    center_distances,
    density_pruning,
    equal_shares,
    similarity_to_harder,
    text_clusters,
)
from rivals.coverage import k_center_greedy
from rivals.influence import gradient_similarity, individual_influence
from rivals.ranking import highest
from tests import reference
from tests.reference import planted_problem, random_problem
from tests.rivals.cases import at_angles, case_of, select, unit

SELECTORS = (*BASELINES, *CONTROLS)
NEED_CLUSTERS = [name for name in SELECTORS if "clustering" in METHODS[name].needs]
NEED_REFERENCE = [name for name in SELECTORS if "influence" in METHODS[name].needs]


# --- All of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(("ratio", "size"), [(0.5, 6), (0.3, 4), (1.0, 13), (0.01, 1)])
def test_every_subset_has_the_size_asked_for(name: str, ratio: float, size: int) -> None:
    selection = select(name, case_of(13), ratio, rng=np.random.default_rng(1))
    assert len(selection.rows) == size
    assert selection.rows.dtype == selection.indices.dtype == np.int64
    assert np.all(np.diff(selection.rows) > 0)
    assert 0 <= selection.rows[0] <= selection.rows[-1] < 13
    assert selection.indices.tolist() == [10 * r + 3 for r in selection.rows]


@pytest.mark.parametrize("name", SELECTORS)
def test_the_generator_decides(name: str) -> None:
    case = case_of(40)
    first, again = (select(name, case, 0.5, rng=np.random.default_rng(5)) for _ in "ab")
    assert first.rows.tolist() == again.rows.tolist()


@pytest.mark.parametrize("name", ["random", "diversity_sampling", "text_alpha_sampling"])
def test_another_generator_draws_other_pairs(name: str) -> None:
    case = case_of(40)
    first, other = (select(name, case, 0.5, rng=np.random.default_rng(seed)) for seed in (1, 2))
    assert first.rows.tolist() != other.rows.tolist()


@pytest.mark.parametrize("name", SELECTORS)
def test_copies_of_one_pair_can_be_selected_too(name: str) -> None:
    one = random_problem(1, seed=0)
    pairs = PairTensors(
        torch.from_numpy(one.images).float().repeat(9, 1),
        torch.from_numpy(one.texts).float().repeat(9, 1),
    )
    case = case_of(
        9,
        concatenated_embeddings=np.full((9, 4), 0.3, dtype=np.float32),
        image_embeddings=np.full((9, 4), 0.5, dtype=np.float32),
        text_embeddings=np.full((9, 4), 0.5, dtype=np.float32),
        clip_scores=np.full(9, 0.5, dtype=np.float32),
        tensors=pairs,
    )
    rows = select(name, case, 0.7, rng=np.random.default_rng(0)).rows
    assert len(set(rows.tolist())) == 6


def test_only_those_that_say_so_need_the_reference() -> None:
    case = case_of(9, reference=None)
    for name in set(SELECTORS) - set(NEED_REFERENCE):
        assert len(select(name, case, 0.5, rng=np.random.default_rng(0)).rows) == 4
    for name in NEED_REFERENCE:
        with pytest.raises(ValueError, match=f"{name} needs the reference model"):
            select(name, case, 0.5, rng=np.random.default_rng(0))


def test_only_those_that_say_so_look_at_the_clusters() -> None:
    copies = {"better_copies": (np.arange(30) < 10).astype(np.int64)}
    one = case_of(30, **copies)
    other = case_of(30, cluster_assignments=np.arange(30) // 2, **copies)
    changed = set()
    for name in SELECTORS:
        kept = [select(name, i, 0.5, rng=np.random.default_rng(3)) for i in (one, other)]
        if kept[0].rows.tolist() != kept[1].rows.tolist():
            changed.add(name)
    assert changed == set(NEED_CLUSTERS)


def test_every_baseline_is_a_method() -> None:
    assert (FULL, INFLUENCESPACE, *BASELINES, *CONTROLS) == tuple(METHODS)
    assert (FULL, INFLUENCESPACE, *BASELINES) == TRAINED_BY_DEFAULT
    assert CONTROLS == ("refined_agreement", "influencespace_without_influence")


def test_methods_are_told_apart_by_name_colour_and_marker() -> None:
    for part in ("label", "colour", "marker"):
        assert len({getattr(method, part) for method in METHODS.values()}) == len(METHODS)


# --- One by one -------------------------------------------------------------------------------


def test_random_is_uniform() -> None:
    case, rng = case_of(10), np.random.default_rng(0)
    counts = np.zeros(10)
    for _ in range(2000):
        counts[select("random", case, 0.3, rng=rng).rows] += 1
    # Binomial shares of 0.3 over 2,000 draws have a deviation of 0.0102: four of them.
    np.testing.assert_allclose(counts / 2000, 0.3, atol=0.041)


def test_the_highest_scores_and_ties_to_the_earlier_row() -> None:
    scores = np.array([0.2, 0.9, 0.5, 0.5, 0.1, 0.5])
    assert highest(scores, 1).tolist() == [1]
    assert highest(scores, 3).tolist() == [1, 2, 3]
    assert highest(scores, 6).tolist() == [1, 2, 3, 5, 0, 4]


def test_clip_score_filtering_keeps_the_best_agreement() -> None:
    case = case_of(5, clip_scores=np.array([0.3, -0.1, 0.9, 0.3, 0.2], dtype=np.float32))
    rows = select("clip_score_filtering", case, 0.4, rng=np.random.default_rng(0)).rows
    assert rows.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("size", "counts"),
    [(3, [1, 1, 1]), (9, [4, 1, 4]), (13, [6, 1, 6]), (15, [8, 1, 6]), (27, [20, 1, 6])],
)
def test_shares_are_equal_as_far_as_clusters_reach(size: int, counts: list[int]) -> None:
    clusters = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20, 1, 6]))
    rows = equal_shares(clusters, size, rng=np.random.default_rng(1))
    assert len(set(rows.tolist())) == size
    assert np.bincount(clusters[rows]).tolist() == counts


def test_the_last_round_is_dealt_out_at_random() -> None:
    clusters, rng = np.repeat([0, 1, 2, 3], 5), np.random.default_rng(0)
    extra, members = np.zeros(4), np.zeros(20)
    for _ in range(1000):
        rows = equal_shares(clusters, 9, rng=rng)  # two each, and one more
        counts = np.bincount(clusters[rows], minlength=4)
        assert sorted(counts) == [2, 2, 2, 3]
        extra[counts == 3] += 1
        members[rows] += 1
    # Binomial over 1,000 draws: deviations of 0.0137 and 0.0157, four of them.
    np.testing.assert_allclose(extra / 1000, 1 / 4, atol=0.055)
    np.testing.assert_allclose(members / 1000, 9 / 20, atol=0.063)


def test_k_centres_on_a_line() -> None:
    points = np.array([0, 1, 2, 10, 11, 30], dtype=np.float32)[:, None]

    def expected(first: int) -> list[int]:
        # Written out: the farthest point from those chosen, the earlier one where two are as far.
        chosen = [first]
        while len(chosen) < 4:
            nearest = [min(abs(p - points[c, 0]) for c in chosen) for p in points[:, 0]]
            chosen.append(int(np.argmax(nearest)))
        return chosen

    assert expected(0) == [0, 5, 4, 2]  # 30 from 0, then 11 from 0 and 19 from 30, then 2
    starts = set()
    for seed in range(12):
        chosen = k_center_greedy(points, 4, rng=np.random.default_rng(seed)).tolist()
        assert chosen == expected(chosen[0])
        starts.add(chosen[0])
    assert len(starts) > 3


def test_k_centres_cover_within_twice_the_optimum() -> None:
    rng = np.random.default_rng(0)
    centers = 10 * rng.normal(size=(6, 3))
    points = (np.repeat(centers, 15, axis=0) + rng.uniform(-0.2, 0.2, size=(90, 3))).astype(
        np.float32
    )
    for seed in range(5):
        chosen = k_center_greedy(points, 6, rng=np.random.default_rng(seed))
        assert sorted(chosen // 15) == [0, 1, 2, 3, 4, 5]


def test_k_centres_take_every_distinct_point_before_a_copy() -> None:
    points = np.repeat(np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]], dtype=np.float32), 4, axis=0)
    for seed in range(5):
        chosen = k_center_greedy(points, 12, rng=np.random.default_rng(seed))
        assert sorted(chosen) == list(range(12))
        assert {c // 4 for c in chosen[:3]} == {0, 1, 2}


# --- By clusters of images ----------------------------------------------------------------------


def test_similarity_to_harder_pairs_by_hand() -> None:
    # The first cluster's centroid is at 22.7 degrees: from it 0, 41, 40 and 10 come in this order.
    # The second one's is at 102.3, and the order is 100, 104, 103. The third repeats the first.
    images = at_angles(0, 10, 40, 41, 100, 103, 104, 10)
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    angles = [10, 1, 41, 1, 4]  # to the nearest harder one, for rows 1, 2, 3, 5, 6
    similarity = similarity_to_harder(images, clusters)
    assert np.isneginf(similarity).tolist() == [r in (0, 4, 7) for r in range(8)]
    # Float32 cosines.
    np.testing.assert_allclose(
        similarity[[1, 2, 3, 5, 6]], np.cos(np.radians(angles)), rtol=0, atol=3e-7
    )
    case = case_of(8, image_embeddings=images, text_embeddings=images, cluster_assignments=clusters)
    for size, dropped in ((6, {2, 5}), (5, {2, 5, 6}), (4, {1, 2, 5, 6}), (3, {1, 2, 3, 5, 6})):
        rows = select("semdedup", case, size / 8, rng=np.random.default_rng(0)).rows
        assert set(range(8)) - set(rows.tolist()) == dropped


@pytest.mark.parametrize("n_similarities", [1, 40, 10**6])
def test_blocks_of_rows_change_nothing(
    n_similarities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals_clusters, "N_SIMILARITIES", n_similarities)
    rng = np.random.default_rng(0)
    images, clusters = unit(rng.normal(size=(60, 5))), rng.integers(4, size=60)
    expected = np.full(60, -np.inf)
    for k in range(4):
        members = np.flatnonzero(clusters == k)
        center = images[members].mean(axis=0)
        hardest_first = sorted(members, key=lambda i: float(images[i] @ center))
        for i, j in itertools.combinations(hardest_first, 2):  # j after i
            expected[j] = max(expected[j], images[i] @ images[j])
    # Float32 cosines, summed in another order.
    np.testing.assert_allclose(similarity_to_harder(images, clusters), expected, atol=1e-6)


def test_one_pair_of_every_copy_is_kept_first() -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(unit(rng.normal(size=(10, 6))), 3, axis=0)
    clusters = np.repeat(np.arange(10) % 2, 3)
    case = case_of(
        30, image_embeddings=images, text_embeddings=images, cluster_assignments=clusters
    )
    rows = select("semdedup", case, 1 / 3, rng=rng).rows
    assert sorted(rows // 3) == list(range(10))


def test_shares_under_caps_by_hand() -> None:
    # The capped one's surplus of 3 is shared equally: 2, 4.7, 3.3.
    assert capped_shares(np.array([5.0, 3.2, 1.8]), np.array([2, 9, 9]), 10).tolist() == [2, 5, 3]
    # One each at least: 8, 1, 1.
    assert capped_shares(np.array([9.0, 1.0, 0.0]), np.array([9, 9, 9]), 10).tolist() == [8, 1, 1]
    # Not enough for one each.
    assert capped_shares(np.array([1.8, 0.1, 0.1]), np.array([9, 9, 9]), 2).tolist() == [2, 0, 0]
    assert capped_shares(np.array([9.0, 0.5, 0.5]), np.array([4, 3, 3]), 10).tolist() == [4, 3, 3]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_shares_are_the_best_whole_numbers(data: st.DataObject) -> None:
    caps = np.array(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    size = data.draw(st.integers(1, int(caps.sum())))
    wanted = np.array([data.draw(st.floats(0.01, 1)) for _ in caps])
    targets = size * wanted / wanted.sum()
    counts = capped_shares(targets, caps, size)
    lowest = 1 if size >= len(caps) else 0
    assert counts.sum() == size
    assert np.all((counts >= lowest) & (counts <= caps))
    best = min(
        float(((np.array(x) - targets) ** 2).sum())
        for x in itertools.product(*(range(lowest, cap + 1) for cap in caps))
        if sum(x) == size
    )
    # Sums of at most four squares up to 400.
    assert ((counts - targets) ** 2).sum() == pytest.approx(best, abs=1e-9)


def test_density_pruning_by_hand() -> None:
    # Centroids about at 0 and 90 degrees; the second cluster is the more complex one.
    images = at_angles(-2, -1, 1, 3, 50, 82, 100, 130)
    clusters = np.repeat([0, 1], 4)
    middles = [0.25, math.degrees(math.atan2(*images[4:].mean(axis=0)[::-1]))]
    intra = [
        1 - np.mean(np.cos(np.radians(np.array(angles) - middle)))
        for angles, middle in zip(((-2, -1, 1, 3), (50, 82, 100, 130)), middles, strict=True)
    ]
    inter = 1 - math.cos(math.radians(middles[1] - middles[0]))
    ratio = math.exp(inter * (intra[1] - intra[0]) / 0.1)
    assert round(4 * ratio / (1 + ratio)) == 3  # of four pairs, three of the complex cluster
    assert sorted(density_pruning(images, clusters, 4)) == [3, 4, 6, 7]  # the farthest from theirs
    assert sorted(density_pruning(images, clusters, 7)) == [0, 1, 3, 4, 5, 6, 7]  # four at most


def test_distances_to_the_nearest_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals_clusters, "N_NEAREST_CENTERS", 2)
    found = center_distances(at_angles(0, 10, 30, 90))
    nearest = [(10, 30), (10, 20), (20, 30), (60, 80)]
    expected = [1 - np.mean(np.cos(np.radians(angles))) for angles in nearest]
    np.testing.assert_allclose(found, expected, atol=1e-6)  # centres are float32
    assert center_distances(at_angles(50)).tolist() == [0.0]


# --- By agreement of image and text -------------------------------------------------------------


def test_agreement_less_that_with_others_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_scale_that_suits", lambda *_: torch.tensor(math.log(10)))
    images = np.eye(4, dtype=np.float32)[:3]
    texts = np.zeros((3, 4), dtype=np.float32)
    texts[0, :3] = 1 / math.sqrt(3)  # suits every image
    texts[1, [1, 3]] = 0.55, math.sqrt(1 - 0.55**2)
    texts[2, [2, 3]] = 0.9, math.sqrt(1 - 0.9**2)
    scores = neg_clip_loss(
        case_of(3, image_embeddings=images, text_embeddings=texts).pairs,
        rng=np.random.default_rng(0),
    )
    generic = 10 / math.sqrt(3)

    def score(own: float, row: list[float], column: list[float]) -> float:
        rows, columns = (math.log(sum(map(math.exp, x))) for x in (row, column))
        return (own - (rows + columns) / 2) / 10

    expected = [
        score(generic, [generic, 0, 0], [generic] * 3),
        score(5.5, [generic, 5.5, 0], [0, 5.5, 0]),
        score(9.0, [generic, 0, 9.0], [0, 0, 9.0]),
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-6)  # float32
    assert scores[0] < scores[1] < scores[2]  # by cosine the first is before the second


def test_normalisation_over_random_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "NORMALISATION_BATCH", 4)
    monkeypatch.setattr(agreement, "N_NORMALISATIONS", 3)
    monkeypatch.setattr(agreement, "_scale_that_suits", lambda *_: torch.tensor(math.log(5)))
    case = case_of(10)
    logits = 5 * case.pairs.image_embeddings.astype(float) @ case.pairs.text_embeddings.T
    rng = np.random.default_rng(2)
    seen: list[list[float]] = [[] for _ in range(10)]
    for _ in range(3):
        order = rng.permutation(10)
        for rows in (order[:4], order[4:8], np.r_[order[8:], order[:2]]):
            for row, loss in zip(
                rows, reference.pair_losses(logits[np.ix_(rows, rows)]), strict=True
            ):
                seen[row].append(-loss / 5)
    found = neg_clip_loss(case.pairs, rng=np.random.default_rng(2))
    np.testing.assert_allclose(found, [np.mean(s) for s in seen], atol=1e-6)  # float32


def test_the_temperature_is_that_of_least_loss() -> None:
    rng = np.random.default_rng(0)
    images = unit(rng.normal(size=(40, 6)))
    texts = unit(images + 0.4 * unit(rng.normal(size=(40, 6))))
    found = float(fit_log_scale(torch.from_numpy(images), torch.from_numpy(texts), rng=rng))
    cosines = images.astype(float) @ texts.T.astype(float)
    grid = np.arange(0, MAX_LOG_SCALE, 0.01)
    losses = [np.mean(reference.pair_losses(math.exp(s) * cosines)) for s in grid]
    assert 1 < grid[np.argmin(losses)] < 4
    assert found == pytest.approx(grid[np.argmin(losses)], abs=0.11)  # steps of 0.1


# --- By agreement, and by likeness to the target ------------------------------------------------


def by_numbers(scores: list[float]) -> list[float]:
    """In standard deviations from the mean, one by one."""
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    return [(s - mean) / spread for s in scores]


@pytest.mark.parametrize("n_similarities", [1, 25, 10**6])
def test_likeness_to_the_target_one_by_one(
    n_similarities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals_agreement, "N_SIMILARITIES", n_similarities)
    case = case_of(23)
    targets = case.pairs.validation_image_embeddings
    assert targets is not None
    expected = [
        max(
            sum(float(a) * float(b) for a, b in zip(image, target, strict=True))
            for target in targets
        )
        for image in case.pairs.image_embeddings
    ]
    np.testing.assert_allclose(norm_sim(case.pairs), expected, atol=1e-6)  # float32


def test_the_sum_of_both_in_standard_deviations() -> None:
    case = case_of(23)
    found = neg_clip_loss_normsim(case.pairs, rng=np.random.default_rng(4))
    parts = neg_clip_loss(case.pairs, rng=np.random.default_rng(4)), norm_sim(case.pairs)
    expected = [sum(both) for both in zip(*(by_numbers(p.tolist()) for p in parts), strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    rows = select("neg_clip_loss_normsim", case, 0.4, rng=np.random.default_rng(4)).rows
    assert rows.tolist() == sorted(sorted(range(23), key=lambda i: -expected[i])[:9])


def test_pairs_like_a_held_out_image_are_kept_whatever_its_captions_say() -> None:
    # Captions agree with their images equally well; only likeness tells the pairs apart.
    images = at_angles(*range(0, 360, 36))
    held_out = at_angles(35, 110)
    case = case_of(
        10, image_embeddings=images, text_embeddings=images, validation_image_embeddings=held_out
    )
    angles = [min(abs(i - j) for j in (35, 110)) for i in range(0, 360, 36)]
    np.testing.assert_allclose(norm_sim(case.pairs)[:5], np.cos(np.radians(angles[:5])), atol=1e-6)
    rows = select("neg_clip_loss_normsim", case, 0.2, rng=np.random.default_rng(0)).rows
    assert rows.tolist() == [1, 3]
    held_out_pairs = case.pairs.validation
    other = dataclasses.replace(
        case.pairs, validation=PairTensors(held_out_pairs.images, -held_out_pairs.texts)
    )
    np.testing.assert_array_equal(norm_sim(other), norm_sim(case.pairs))


def test_scores_that_do_not_vary_decide_nothing() -> None:
    assert standardised(np.full(5, 0.3, dtype=np.float32)).tolist() == [0.0] * 5
    almost = np.float32(0.3) * np.array([1, 1 + 1e-7, 1], dtype=np.float32)
    assert standardised(almost).tolist() == [0.0] * 3
    np.testing.assert_allclose(standardised(np.array([1.0, 3.0])), [-1, 1])
    same = np.repeat(at_angles(20), 6, axis=0)
    case = case_of(6, image_embeddings=same, text_embeddings=same)
    rows = select("neg_clip_loss_normsim", case, 0.5, rng=np.random.default_rng(0)).rows
    assert rows.tolist() == [0, 1, 2]  # ties go to the earlier row


@pytest.mark.parametrize(("size", "n_left"), [(20, 30), (50, 59), (80, 85), (100, 100), (1, 3)])
def test_two_cuts_one_after_the_other(size: int, n_left: int) -> None:
    case = case_of(100)
    rows = neg_clip_loss_then_normsim(case.pairs, size, rng=np.random.default_rng(2))
    agreement_of = neg_clip_loss(case.pairs, rng=np.random.default_rng(2))
    likeness = norm_sim(case.pairs)
    left = sorted(range(100), key=lambda i: -agreement_of[i])[:n_left]
    assert set(rows.tolist()) == set(sorted(left, key=lambda i: -likeness[i])[:size])
    assert len(rows) == size


def test_two_cuts_choose_among_copies_too() -> None:
    same = np.repeat(at_angles(20), 10, axis=0)
    case = case_of(10, image_embeddings=same, text_embeddings=same)
    rows = neg_clip_loss_then_normsim(case.pairs, 4, rng=np.random.default_rng(0))
    assert len(set(rows.tolist())) == 4


def test_without_joint_embeddings_features_tell_the_likeness(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "rivals.agreement")
    case = case_of(9, validation_image_embeddings=None)
    found = norm_sim(case.pairs)
    assert "no joint embeddings of the held-out images are saved" in caplog.text
    sides = (
        side.images.double().numpy() for side in (case.pairs.tensors.whole(), case.pairs.validation)
    )
    images, targets = ([row / np.linalg.norm(row) for row in side] for side in sides)
    expected = [max(float(image @ target) for target in targets) for image in images]
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32


# --- By kinds of captions -----------------------------------------------------------------------


def test_frequent_clusters_are_drawn_by_the_root_of_their_share() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1], [16, 4])
    counts = np.zeros(20)
    for _ in range(3000):
        counts[alpha_sampling(clusters, 1, rng=rng)] += 1
    # Shares 16 : 4 become 4 : 2. A binomial share of 1/3 over 3,000 draws has a deviation of
    # 0.0086, one of 1/12 of 0.0050: four of them.
    assert counts[16:].sum() / 3000 == pytest.approx(1 / 3, abs=0.035)
    np.testing.assert_allclose(counts[16:] / 3000, 1 / 12, atol=0.02)


def test_draws_are_one_after_another_without_replacement() -> None:
    rng = np.random.default_rng(0)
    clusters = np.array([0, 0, 0, 0, 1])  # weights 1/2, 1/2, 1/2, 1/2, 1
    hits = sum(4 in alpha_sampling(clusters, 2, rng=rng) for _ in range(3000))
    # 1/3 at once, and 1 / (1 + 3/2) of the other 2/3; deviation 0.0089, four of them.
    assert hits / 3000 == pytest.approx(1 / 3 + 2 / 3 * 0.4, abs=0.036)


def test_clusters_of_captions() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    texts = unit(np.eye(4)[labels] + 0.05 * rng.normal(size=(48, 4)))
    found = text_clusters(texts, n_clusters=4, rng=rng)
    assert len(set(zip(labels.tolist(), found.tolist(), strict=True))) == len(set(found)) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = text_clusters(np.eye(4, dtype=np.float32)[labels], n_clusters=9, rng=rng)
    assert len(set(few.tolist())) == 4


# --- By influence -------------------------------------------------------------------------------


def test_gradient_similarity_against_its_formula() -> None:
    problem, validation = random_problem(8, seed=3), random_problem(8, seed=4)
    case = case_of(
        8,
        tensors=problem.pairs(),
        validation=validation.pairs(),
        reference=problem.parameters(),
        batch_size=8,
    )
    found = gradient_similarity(*case, rng=np.random.default_rng(6))
    rows = np.arange(8)  # one batch of all, in whatever order
    direction = reference.central_difference(
        lambda t: validation._replace(theta=t).loss(t, rows), problem.theta
    )
    step = 1e-4 / np.linalg.norm(direction)

    def slope(weights: np.ndarray) -> float:
        """Derivative of the weighted loss along the validation gradient."""
        ahead, behind = (
            problem.loss(problem.theta + s * direction, rows, weights) for s in (step, -step)
        )
        return float((ahead - behind) / (2 * step))

    expected = 8 * reference.central_difference(slope, np.ones(8), step=1e-4)
    # Differences of differences: 1e-15 / 1e-8 from rounding; weights pass through float32.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.sum() == pytest.approx(0, abs=1e-4)  # scaling all weights changes nothing


def test_individual_influence_against_its_formula() -> None:
    problem = random_problem(10, seed=3)
    parameters = problem.parameters()
    validation = random_problem(8, seed=4)
    case = case_of(
        10,
        tensors=problem.pairs(),
        validation=validation.pairs(),
        reference=parameters,
        batch_size=4,
    )
    influence = individual_influence(*case, rng=np.random.default_rng(6))

    rng = np.random.default_rng(6)  # the batches that it draws, the last one wrapped round
    order = rng.permutation(10)
    batches = [order[:4], order[4:8], np.r_[order[8:], order[:2]]]
    validation_batches = rng.permutation(8).reshape(2, 4)
    other = validation._replace(theta=problem.theta)
    gradient = reference.central_difference(
        lambda t: float(np.mean([other.loss(t, rows) for rows in validation_batches])),
        problem.theta,
    )
    own = np.concatenate([problem.loss_gradients(rows) for rows in batches])
    direction = np.empty(15)
    for layer in (slice(0, 6), slice(6, 14), slice(14, 15)):
        g = own[:, layer]
        damping = 0.1 * np.mean(g**2) * np.eye(g.shape[1])
        inverses = [np.linalg.inv(np.outer(row, row) + damping) for row in g]
        direction[layer] = np.mean(inverses, axis=0) @ gradient[layer]
    expected = np.empty(10)
    for row, u in zip(np.concatenate(batches), own @ direction, strict=True):
        expected[row] = u  # of the last batch that holds the pair
    # Differences are good to 1e-9; the inverses multiply by up to 1 / damping, about 100.
    np.testing.assert_allclose(influence, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scorer", [individual_influence, gradient_similarity])
def test_influence_finds_wrong_captions(scorer: Callable[..., np.ndarray]) -> None:
    planted = planted_problem(seed=2)
    config = TrainingConfig(embed_dim=6, batch_size=16, learning_rate=2e-2)
    parameters, _ = train(planted.pairs, config, n_steps=80, seed=0)
    case = case_of(
        96,
        tensors=planted.pairs,
        validation=planted.validation,
        reference=Parameters(*parameters),
        batch_size=16,
    )
    influence = scorer(*case, rng=np.random.default_rng(0))
    right, wrong = influence[~planted.wrong], influence[planted.wrong]
    # AUC; chance is 0.5. Over draws of this problem and steps of training it is 0.7 to 0.96.
    assert np.mean(right[:, None] > wrong) > 0.85
    kept = select(scorer.__name__, case, 0.75, rng=np.random.default_rng(0)).rows
    assert planted.wrong[kept].mean() < 0.15  # 25 % of all pairs

"""The rival selectors on cases worked by hand, and wrong captions planted for influence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from baselines import (
    BASELINES,
    BaselineInputs,
    equal_shares,
    highest,
    individual_influence,
    k_center_greedy,
    select_baseline,
)
from model import PairTensors, Parameters
from tests import reference
from tests.reference import planted_problem, random_problem
from training import TrainingConfig, train


def inputs_for(n: int, **changes: Any) -> BaselineInputs:
    """Any n pairs, sources at 3, 13, 23 and so on."""
    problem, rng = random_problem(n, seed=0), np.random.default_rng(0)
    pairs = problem.pairs(torch.float32)
    given: dict[str, Any] = {
        "indices": 10 * np.arange(n) + 3,
        "embeddings": rng.normal(size=(n, 4)).astype(np.float32),
        "clip_scores": rng.random(n).astype(np.float32),
        "cluster_assignments": np.arange(n) % 3,
        "pairs": pairs,
        "validation": pairs,
        "reference": problem.parameters(torch.float32),
        "batch_size": 4,
    }
    return BaselineInputs(**given | changes)


# --- All of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(("ratio", "size"), [(0.5, 6), (0.3, 4), (1.0, 13), (0.01, 1)])
def test_every_subset_has_the_size_asked_for(name: str, ratio: float, size: int) -> None:
    selection = select_baseline(name, inputs_for(13), ratio, rng=np.random.default_rng(1))
    assert len(selection.rows) == size
    assert selection.rows.dtype == selection.indices.dtype == np.int64
    assert np.all(np.diff(selection.rows) > 0)
    assert 0 <= selection.rows[0] <= selection.rows[-1] < 13
    assert selection.indices.tolist() == [10 * r + 3 for r in selection.rows]


@pytest.mark.parametrize("name", BASELINES)
def test_the_generator_decides(name: str) -> None:
    inputs = inputs_for(40)
    first, again = (select_baseline(name, inputs, 0.5, rng=np.random.default_rng(5)) for _ in "ab")
    assert first.rows.tolist() == again.rows.tolist()


@pytest.mark.parametrize("name", ["random", "diversity_sampling"])
def test_another_generator_draws_other_pairs(name: str) -> None:
    inputs = inputs_for(40)
    first, other = (
        select_baseline(name, inputs, 0.5, rng=np.random.default_rng(seed)) for seed in (1, 2)
    )
    assert first.rows.tolist() != other.rows.tolist()


@pytest.mark.parametrize("name", BASELINES)
def test_copies_of_one_pair_can_be_selected_too(name: str) -> None:
    one = random_problem(1, seed=0)
    pairs = PairTensors(
        torch.from_numpy(one.images).float().repeat(9, 1),
        torch.from_numpy(one.texts).float().repeat(9, 1),
    )
    inputs = inputs_for(
        9,
        embeddings=np.full((9, 4), 0.3, dtype=np.float32),
        clip_scores=np.full(9, 0.5, dtype=np.float32),
        pairs=pairs,
    )
    rows = select_baseline(name, inputs, 0.7, rng=np.random.default_rng(0)).rows
    assert len(set(rows.tolist())) == 6


def test_only_individual_influence_needs_the_reference() -> None:
    inputs = inputs_for(9, reference=None)
    for name in BASELINES[:-1]:
        assert len(select_baseline(name, inputs, 0.5, rng=np.random.default_rng(0)).rows) == 4
    with pytest.raises(ValueError, match="individual_influence needs the reference model"):
        select_baseline("individual_influence", inputs, 0.5, rng=np.random.default_rng(0))


# --- One by one -------------------------------------------------------------------------------


def test_random_is_uniform() -> None:
    inputs, rng = inputs_for(10), np.random.default_rng(0)
    counts = np.zeros(10)
    for _ in range(2000):
        counts[select_baseline("random", inputs, 0.3, rng=rng).rows] += 1
    # Binomial shares of 0.3 over 2,000 draws have a deviation of 0.0102: four of them.
    np.testing.assert_allclose(counts / 2000, 0.3, atol=0.041)


def test_the_highest_scores_and_ties_to_the_earlier_row() -> None:
    scores = np.array([0.2, 0.9, 0.5, 0.5, 0.1, 0.5])
    assert highest(scores, 1).tolist() == [1]
    assert highest(scores, 3).tolist() == [1, 2, 3]
    assert highest(scores, 6).tolist() == [1, 2, 3, 5, 0, 4]


def test_clip_score_filtering_keeps_the_best_agreement() -> None:
    inputs = inputs_for(5, clip_scores=np.array([0.3, -0.1, 0.9, 0.3, 0.2], dtype=np.float32))
    rows = select_baseline("clip_score_filtering", inputs, 0.4, rng=np.random.default_rng(0)).rows
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


# --- Individual influence ---------------------------------------------------------------------


def test_individual_influence_against_its_formula() -> None:
    problem = random_problem(10, seed=3)
    parameters = problem.parameters()
    validation = random_problem(8, seed=4)
    inputs = inputs_for(
        10,
        pairs=problem.pairs(),
        validation=validation.pairs(),
        reference=parameters,
        batch_size=4,
    )
    influence = individual_influence(inputs, rng=np.random.default_rng(6))

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


def test_individual_influence_finds_wrong_captions() -> None:
    planted = planted_problem(seed=2)
    config = TrainingConfig(embed_dim=6, batch_size=16, learning_rate=2e-2)
    parameters, _ = train(planted.pairs, config, n_steps=80, seed=0)
    inputs = inputs_for(
        96,
        pairs=planted.pairs,
        validation=planted.validation,
        reference=Parameters(*parameters),
        batch_size=16,
    )
    influence = individual_influence(inputs, rng=np.random.default_rng(0))
    right, wrong = influence[~planted.wrong], influence[planted.wrong]
    # AUC; chance is 0.5. Over draws of this problem and steps of training it is 0.7 to 0.96.
    assert np.mean(right[:, None] > wrong) > 0.85
    kept = select_baseline("individual_influence", inputs, 0.75, rng=np.random.default_rng(0)).rows
    assert planted.wrong[kept].mean() < 0.15  # 25 % of all pairs

"""Recall and gaps worked by hand, and the runs of a small comparison."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

import train_eval
from artifacts.settings import InputError
from baselines import FULL, METHODS, TRAINED_BY_DEFAULT
from engine.room import StageRoom
from learner.config import LOSS, WEIGHTINGS, TrainingConfig
from learner.model import Parameters, similarities
from learner.training import train
from sources.captions import caption_groups
from tests.knowing import planted_pairs
from tests.reference import Planted, planted_problem
from tests.rooms import new_room
from train_eval import (
    COMPARISONS,
    EvaluationConfig,
    EvaluationResult,
    RetrievalSet,
    Subset,
    demographic_gaps,
    efficiency_metrics,
    evaluate_methods,
    histories,
    mean_and_std,
    method_metrics,
    methods_of,
    on_trusted_queries,
    recall_metrics,
    retrieval_ranks,
    run_rows,
)


def ranks_of(scores: list[list[float]], owner: list[int]) -> tuple[list[int], list[int]]:
    """Ranks from a (captions, images) table of scores: images are then the unit vectors."""
    texts = torch.tensor(scores)
    images = torch.eye(texts.shape[1])
    image_ranks, caption_ranks = retrieval_ranks(images, texts, np.array(owner))
    return image_ranks.tolist(), caption_ranks.tolist()


def result_with(
    ranks: dict[tuple[str, str, int], tuple[list[int], list[int]]], **run: Any
) -> EvaluationResult:
    """A result whose runs, (method, comparison, seed), have these image and caption ranks."""
    runs = [
        {"method": method, "comparison": comparison, "seed_index": seed} | run
        for method, comparison, seed in ranks
    ]
    images, captions = zip(*ranks.values(), strict=True)
    return EvaluationResult(
        np.array(images), np.array(captions), np.array(images[0]), np.array(captions[0]), runs
    )


# --- Retrieval --------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    image_ranks, caption_ranks = ranks_of(
        [
            [0.9, 0.1, 0.2],  # caption of image 0, which is first
            [0.8, 0.5, 0.6],  # of image 1, behind 0 and 2
            [0.1, 0.7, 0.3],  # of image 2, behind 1
        ],
        [0, 1, 2],
    )
    assert caption_ranks == [0, 2, 1]
    # Columns: image 0 scores its own 0.9 over 0.8, 0.1; image 1 has 0.5 behind 0.7; image 2 has
    # 0.3 behind 0.6.
    assert image_ranks == [0, 1, 1]


def test_an_image_is_found_by_any_of_its_captions() -> None:
    image_ranks, caption_ranks = ranks_of(
        [
            [0.2, 0.6],  # image 0
            [0.9, 0.3],  # image 0: its best one
            [0.5, 0.1],  # image 0: better than a wrong one, but no wrong answer itself
            [0.7, 0.8],  # image 1
            [0.1, 0.4],  # image 1
        ],
        [0, 0, 0, 1, 1],
    )
    assert caption_ranks == [1, 0, 0, 0, 0]
    assert image_ranks == [0, 0]  # 0.9 over 0.7, 0.1; 0.8 over 0.6, 0.3, 0.1
    worse, _ = ranks_of([[0.2, 0.6], [0.3, 0.9], [0.4, 0.1], [0.5, 0.2]], [0, 0, 1, 1])
    assert worse == [2, 2]  # both captions of the other image come first


def test_captions_need_no_order() -> None:
    rng = np.random.default_rng(0)
    images, texts = (torch.from_numpy(rng.normal(size=(n, 5))).float() for n in (12, 40))
    owner = np.r_[np.arange(12), rng.integers(12, size=28)]
    image_ranks, caption_ranks = retrieval_ranks(images, texts, owner)
    order = rng.permutation(40)
    shuffled = retrieval_ranks(images, texts[torch.from_numpy(order)], owner[order])
    np.testing.assert_array_equal(shuffled[0], image_ranks)
    np.testing.assert_array_equal(shuffled[1], caption_ranks[order])


def test_ties_count_against_the_query() -> None:
    image_ranks, caption_ranks = ranks_of(
        [[0.5, 0.5, 0.1], [0.3, 0.5, 0.5], [0.5, 0.2, 0.5]], [0, 1, 2]
    )
    assert caption_ranks == [1, 1, 1]
    assert image_ranks == [1, 1, 1]


@pytest.mark.parametrize(("lower", "rank"), [(5e-7, 1), (5e-6, 0)])
def test_a_cosine_lower_by_rounding_ties(lower: float, rank: int) -> None:
    other = 0.5 - lower
    image_ranks, caption_ranks = ranks_of([[0.5, other], [other, 0.5]], [0, 1])
    assert caption_ranks == [rank, rank]
    assert image_ranks == [rank, rank]


@pytest.mark.parametrize("n_images", [11, 37])
def test_constant_embeddings_find_nothing(n_images: int) -> None:
    # Equal products are rounded apart where they stand in the matrix; that tells nothing.
    one = F.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=19)).float(), dim=0)
    owner = np.repeat(np.arange(n_images), 3)
    ranks = retrieval_ranks(one.repeat(n_images, 1), one.repeat(3 * n_images, 1), owner)
    assert ranks[0].tolist() == [3 * (n_images - 1)] * n_images
    assert ranks[1].tolist() == [n_images - 1] * 3 * n_images
    assert set(recall_metrics(*ranks).values()) == {0.0}


def test_a_model_that_diverged_finds_nothing() -> None:
    images, texts = torch.full((12, 4), torch.nan), torch.full((24, 4), torch.nan)
    ranks = retrieval_ranks(images, texts, np.repeat(np.arange(12), 2))
    assert ranks[0].tolist() == [22] * 12
    assert ranks[1].tolist() == [11] * 24


def test_perfect_embeddings_find_everything() -> None:
    images = torch.eye(15)
    ranks = retrieval_ranks(images, images.repeat(2, 1), np.tile(np.arange(15), 2))
    assert set(recall_metrics(*ranks).values()) == {100.0}


@pytest.mark.parametrize("at_once", [1, 7, 40, 41])
def test_blocks_of_any_size_rank_alike(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    # Small whole numbers: products are exact, so that ties are the same in every block.
    rng = np.random.default_rng(1)
    images, texts = (torch.from_numpy(rng.integers(-2, 3, size=(n, 4))).float() for n in (10, 41))
    owner = np.r_[np.arange(10), rng.integers(10, size=31)]
    scores = texts.numpy() @ images.numpy().T
    caption_ranks = [
        sum(scores[q, e] >= scores[q, owner[q]] for e in range(10) if e != owner[q])
        for q in range(41)
    ]
    best = [max(scores[q, e] for q in range(41) if owner[q] == e) for e in range(10)]
    image_ranks = [
        sum(scores[q, e] >= best[e] for q in range(41) if owner[q] != e) for e in range(10)
    ]
    monkeypatch.setattr(train_eval, "QUERIES_AT_ONCE", at_once)
    found = retrieval_ranks(images, texts, owner)
    assert found[0].tolist() == image_ranks
    assert found[1].tolist() == caption_ranks


def test_recall_by_hand() -> None:
    metrics = recall_metrics(np.array([0, 4, 5, 20]), np.array([0, 0, 1, 9, 10]))
    assert metrics == pytest.approx(
        {
            "image_to_text_recall@1": 25,
            "image_to_text_recall@5": 50,
            "image_to_text_recall@10": 75,
            "text_to_image_recall@1": 40,
            "text_to_image_recall@5": 60,
            "text_to_image_recall@10": 80,
            "avg_recall@1": 32.5,
            "avg_recall@5": 55,
            "avg_recall@10": 77.5,
            "mean_recall": 55,
        },
        rel=1e-12,
    )


# --- Runs -------------------------------------------------------------------------------------

TRAINING = TrainingConfig(embed_dim=4, num_epochs=2, batch_size=16, learning_rate=2e-2)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_problem(seed=0)


def retrieval_set(planted: Planted) -> RetrievalSet:
    validation = planted.validation
    images, texts = validation.images[:30], validation.texts[:30]
    rng = np.random.default_rng(0)
    frozen = [torch.from_numpy(rng.normal(size=(30, 5))).float() for _ in range(2)]
    return RetrievalSet(images, texts, np.arange(30), frozen[0], frozen[1])


def evaluate(
    planted: Planted,
    subsets: dict[str, Subset],
    *,
    n_seeds: int = 2,
    seed: int = 0,
    weighting: str = LOSS,
    room: StageRoom | None = None,
) -> tuple[EvaluationResult, dict[str, Parameters]]:
    models: dict[str, Parameters] = {}
    result = evaluate_methods(
        subsets,
        planted_pairs(planted, planted.clusters, "term"),
        retrieval_set(planted),
        TRAINING,
        EvaluationConfig(n_seeds=n_seeds, weighting=weighting),
        room or new_room(),
        rng=np.random.default_rng(seed),
        on_model=models.__setitem__,
    )
    return result, models


@pytest.fixture(scope="module")
def compared(planted: Planted) -> tuple[EvaluationResult, dict[str, Parameters]]:
    half = np.arange(0, 96, 2)
    weights = np.where(np.arange(48) % 2, 1.5, 0.5)
    subsets = {
        FULL: Subset(np.arange(96), None),
        "random": Subset(half, None),
        "diversity_sampling": Subset(half, None),
        "influencespace": Subset(half, weights),
        "coreset_selection": Subset(np.arange(50), None),
    }
    return evaluate(planted, subsets)


Compared = tuple[EvaluationResult, dict[str, Parameters]]


def test_every_method_is_trained_in_both_comparisons_over_all_seeds(compared: Compared) -> None:
    result, models = compared
    trained = [(r["method"], r["comparison"], r["seed_index"]) for r in result.runs]
    expected = [(FULL, "same_epochs", 0), (FULL, "same_epochs", 1)]  # one and the same for both
    for method in ("random", "diversity_sampling", "influencespace", "coreset_selection"):
        expected += [(method, comparison, s) for comparison in COMPARISONS for s in (0, 1)]
    assert trained == expected
    assert result.image_ranks.shape == result.caption_ranks.shape == (18, 30)
    assert list(models) == [f"{m}_{c}_seed{s}" for m, c, s in expected]
    assert methods_of(result) == [
        FULL, "random", "diversity_sampling", "influencespace", "coreset_selection"
    ]  # fmt: skip


def test_steps_are_those_of_the_comparison(compared: Compared) -> None:
    # Full: 96 / 16 = 6 batches an epoch, 12 steps; 48 pairs: 3 an epoch; 50 pairs: 3, two left.
    for run in compared[0].runs:
        n_pairs = {FULL: 96, "coreset_selection": 50}.get(run["method"], 48)
        same_steps = run["comparison"] == "same_steps" or run["method"] == FULL
        assert run["n_pairs"] == n_pairs
        assert run["n_steps"] == (12 if same_steps else 6)
        assert run["relative_training_cost"] == (1.0 if same_steps else 0.5)
        assert run["training_seconds"] > 0
        assert run["history"]["step"][-1] == run["n_steps"]
        assert len(run["history"]["validation_loss"]) == len(run["history"]["step"])


def test_seeds_are_paired(compared: Compared) -> None:
    result, _ = compared
    for comparison in COMPARISONS:
        random, same = (run_rows(result, comparison, m) for m in ("random", "diversity_sampling"))
        np.testing.assert_array_equal(result.image_ranks[random], result.image_ranks[same])
        np.testing.assert_array_equal(result.caption_ranks[random], result.caption_ranks[same])
        first, second = random
        assert not np.array_equal(result.caption_ranks[first], result.caption_ranks[second])


def test_sample_weights_reach_the_training(compared: Compared) -> None:
    result, _ = compared
    weighted, plain = (run_rows(result, "same_steps", m) for m in ("influencespace", "random"))
    assert not np.array_equal(result.caption_ranks[weighted], result.caption_ranks[plain])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_count_as_the_setting_says(planted: Planted, weighting: str) -> None:
    half, weights = np.arange(0, 96, 2), np.where(np.arange(48) % 2, 1.5, 0.5)
    subsets = {FULL: Subset(np.arange(96), None), "influencespace": Subset(half, weights)}
    _, models = evaluate(planted, subsets, n_seeds=1, weighting=weighting)
    seed = int(np.random.default_rng(0).integers(2**31, size=1)[0])
    expected, _ = train(
        planted.pairs.take(torch.from_numpy(half)),
        TRAINING,
        n_steps=12,
        seed=seed,
        sample_weights=weights,
        weighting=weighting,
    )
    found = models["influencespace_same_steps_seed0"]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    full, _ = train(planted.pairs, TRAINING, n_steps=12, seed=seed)
    assert torch.equal(models["full_same_epochs_seed0"].image_map, full.image_map)


def test_the_weighting_is_part_of_the_fingerprint() -> None:
    assert EvaluationConfig().fingerprint_settings()["weighting"] == LOSS


def test_a_run_is_a_training_on_the_subset_and_its_ranks_those_of_the_model(
    compared: Compared, planted: Planted
) -> None:
    result, models = compared
    test = retrieval_set(planted)
    for row, run in enumerate(result.runs):
        name = f"{run['method']}_{run['comparison']}_seed{run['seed_index']}"
        scores = similarities(models[name], planted.validation.take(torch.arange(30)))
        own = scores.diagonal()
        np.testing.assert_array_equal(
            result.image_ranks[row], ((scores >= own[:, None]).sum(1) - 1).numpy()
        )
        np.testing.assert_array_equal(
            result.caption_ranks[row], ((scores >= own).sum(0) - 1).numpy()
        )
    assert len(test.images) == result.image_ranks.shape[1]
    seed = int(np.random.default_rng(0).integers(2**31, size=2)[1])
    half = planted.pairs.take(torch.arange(0, 96, 2))
    expected, _ = train(half, TRAINING, n_steps=6, seed=seed)
    assert torch.equal(models["random_same_epochs_seed1"].image_map, expected.image_map)


def test_the_frozen_encoder_is_ranked_too(compared: Compared, planted: Planted) -> None:
    test = retrieval_set(planted)
    scores = (test.text_embeddings @ test.image_embeddings.T).numpy()
    expected = [sum(row >= row[q]) - 1 for q, row in enumerate(scores)]
    assert compared[0].encoder_caption_ranks.tolist() == expected


def test_the_generator_decides(planted: Planted) -> None:
    subsets = {"random": Subset(np.arange(48), None)}
    first, again, other = (
        evaluate(planted, subsets, n_seeds=1, seed=s)[0].caption_ranks for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_histories_are_those_of_the_same_epochs(compared: Compared) -> None:
    found = histories(compared[0])
    assert list(found) == methods_of(compared[0])
    assert [h["step"][-1] for h in found["random"]] == [6, 6]
    assert [h["step"][-1] for h in found[FULL]] == [12, 12]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_seeds": 0}, "--n_seeds must be >= 1; got 0"),
        ({"methods": ("full", "best")}, "--methods must be one of full, .*; got 'best'"),
    ],
)
def test_wrong_settings_are_input_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvaluationConfig(**values)
    assert EvaluationConfig().methods == TRAINED_BY_DEFAULT
    assert EvaluationConfig(methods=tuple(METHODS)).methods == tuple(METHODS)


# --- Metrics ----------------------------------------------------------------------------------


def test_mean_and_sample_deviation() -> None:
    assert mean_and_std([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": pytest.approx(math.sqrt(7))}
    assert mean_and_std([4.0]) == {"mean": 4.0, "std": None}


def test_metrics_of_methods_by_hand() -> None:
    result = result_with(
        {
            (FULL, "same_epochs", 0): ([0, 0], [0, 0]),
            (FULL, "same_epochs", 1): ([0, 7], [0, 7]),
            ("random", "same_epochs", 0): ([7, 7], [7, 7]),
            ("random", "same_epochs", 1): ([7, 7], [7, 7]),
            ("random", "same_steps", 0): ([0, 7], [7, 7]),
            ("random", "same_steps", 1): ([0, 7], [0, 7]),
        }
    )
    metrics = method_metrics(result)
    assert list(metrics) == list(COMPARISONS)
    full = {"mean": 75.0, "std": pytest.approx(50 / math.sqrt(2))}
    for comparison in COMPARISONS:  # the full data's runs serve both
        assert metrics[comparison][FULL]["image_to_text_recall@1"] == full
    assert metrics["same_epochs"]["random"]["text_to_image_recall@5"] == {"mean": 0, "std": 0}
    assert metrics["same_epochs"]["random"]["text_to_image_recall@10"]["mean"] == 100
    same_steps = metrics["same_steps"]["random"]
    assert same_steps["image_to_text_recall@1"] == {"mean": 50, "std": 0}
    assert same_steps["text_to_image_recall@1"]["mean"] == 25
    assert same_steps["avg_recall@1"]["mean"] == 37.5


def test_metrics_on_trusted_queries_by_hand() -> None:
    result = result_with(
        {
            (FULL, "same_epochs", 0): ([0, 20, 3], [0, 9, 20, 20, 0]),
            ("random", "same_epochs", 0): ([20, 0, 20], [20, 0, 0, 0, 20]),
            ("random", "same_steps", 0): ([0, 0, 0], [0, 0, 0, 0, 0]),
        }
    )
    owner = np.array([0, 0, 1, 2, 2])  # the second image has no trusted caption
    trusted = np.array([True, True, False, False, True])
    asked = on_trusted_queries(result, trusted, owner)
    assert asked.image_ranks.tolist()[:2] == [[0, 3], [20, 20]]
    assert asked.caption_ranks.tolist()[:2] == [[0, 9, 0], [20, 0, 20]]
    assert asked.encoder_image_ranks.tolist() == [0, 3]
    assert asked.encoder_caption_ranks.tolist() == [0, 9, 0]
    full = method_metrics(asked)["same_epochs"][FULL]
    assert full["image_to_text_recall@1"]["mean"] == 50
    assert full["text_to_image_recall@10"]["mean"] == 100
    assert method_metrics(on_trusted_queries(result, np.ones(5, dtype=bool), owner)) == (
        method_metrics(result)
    )


def test_one_seed_has_no_deviation() -> None:
    result = result_with({(FULL, "same_epochs", 0): ([0, 3], [0, 3])})
    assert method_metrics(result)["same_steps"][FULL]["mean_recall"] == {
        "mean": pytest.approx((50 + 100 + 100) / 3),
        "std": None,
    }


def test_efficiency_by_hand() -> None:
    runs = [
        {"method": FULL, "comparison": "same_epochs", "n_pairs": 200, "n_steps": 60,
         "relative_training_cost": 1.0, "training_seconds": 8.0},
        {"method": FULL, "comparison": "same_epochs", "n_pairs": 200, "n_steps": 60,
         "relative_training_cost": 1.0, "training_seconds": 10.0},
        {"method": "random", "comparison": "same_epochs", "n_pairs": 150, "n_steps": 45,
         "relative_training_cost": 0.75, "training_seconds": 6.0},
        {"method": "random", "comparison": "same_epochs", "n_pairs": 150, "n_steps": 45,
         "relative_training_cost": 0.75, "training_seconds": 7.0},
        {"method": "random", "comparison": "same_steps", "n_pairs": 150, "n_steps": 60,
         "relative_training_cost": 1.0, "training_seconds": 9.0},
    ]  # fmt: skip
    ranks = np.zeros((5, 2), dtype=np.int64)
    result = EvaluationResult(ranks, ranks, ranks[0], ranks[0], runs)
    metrics = efficiency_metrics(result, 200, {FULL: 0.0, "random": 0.25})
    deviation = pytest.approx(math.sqrt(0.5))
    assert metrics == {
        FULL: {
            "n_pairs": 200,
            "data_reduction": 0.0,
            "curation_seconds": 0.0,
            "same_epochs": {
                "n_steps": 60,
                "relative_training_cost": 1.0,
                "training_seconds": {"mean": 9.0, "std": pytest.approx(math.sqrt(2))},
            },
            "same_steps": {
                "n_steps": 60,
                "relative_training_cost": 1.0,
                "training_seconds": {"mean": 9.0, "std": pytest.approx(math.sqrt(2))},
            },
        },
        "random": {
            "n_pairs": 150,
            "data_reduction": 0.25,
            "curation_seconds": 0.25,
            "same_epochs": {
                "n_steps": 45,
                "relative_training_cost": 0.75,
                "training_seconds": {"mean": 6.5, "std": deviation},
            },
            "same_steps": {
                "n_steps": 60,
                "relative_training_cost": 1.0,
                "training_seconds": {"mean": 9.0, "std": None},
            },
        },
    }


# --- Gaps -------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    captions = [
        "A woman rides a horse.",
        "Two MEN at a table",
        "a man and a woman",  # two groups of an attribute: neither
        "A boy's dog",  # a boy is male and a child
        "An actor mends a mannequin",  # no man in it
        "the girl, with her mother",  # a child and an adult
        "A dog",
    ]
    groups = caption_groups(captions)
    members = {
        (attribute, group): np.flatnonzero(member).tolist()
        for attribute, by_group in groups.items()
        for group, member in by_group.items()
    }
    assert members == {
        ("gender", "female"): [0, 5],
        ("gender", "male"): [1, 3, 4],
        ("age", "child"): [3],
        ("age", "adult"): [0, 1, 2],
    }


def gap_result(
    female_hits: list[bool], male_hits: list[bool]
) -> tuple[EvaluationResult, list[str]]:
    """One run; captions of women, then of men, each of its own image."""
    ranks = [0 if hit else 10 for hit in (*female_hits, *male_hits)]
    captions = ["a woman"] * len(female_hits) + ["a man"] * len(male_hits)
    return result_with({(FULL, "same_epochs", 0): (ranks, ranks)}), captions


def test_a_known_gap_and_its_interval() -> None:
    result, captions = gap_result([True] * 90 + [False] * 30, [True] * 30 + [False] * 90)
    gaps = demographic_gaps(result, captions, np.arange(240), rng=np.random.default_rng(0))
    report = gaps["same_epochs"][FULL]["gender"]
    assert report["groups"]["female"] == {
        "n_queries": 120,
        "too_small": False,
        "text_to_image_recall@1": 75.0,
        "text_to_image_recall@5": 75.0,
        "text_to_image_recall@10": 75.0,
    }
    assert report["groups"]["male"]["text_to_image_recall@1"] == 25.0
    gap = report["gap"]["recall@1"]
    assert gap["gap"] == pytest.approx(50, abs=1e-9)
    # Two shares of 3/4 and 1/4 over 120 each: a deviation of sqrt(2 * 0.1875 / 120) = 5.6 points.
    # The 2.5 % quantiles of 1,000 resamples are good to about a third of that.
    half = 196 * math.sqrt(2 * 0.1875 / 120)
    signed = report["signed"]["recall@1"]
    assert (signed["of"], signed["gap"]) == (["female", "male"], pytest.approx(50, abs=1e-9))
    assert signed["interval_95"] == pytest.approx(gap["interval_95"])  # zero is far off
    low, high = gap["interval_95"]
    assert low == pytest.approx(50 - half, abs=2)
    assert high == pytest.approx(50 + half, abs=2)
    # Both quantiles together are good to 0.7 points; a 90 % interval is narrower by 3.5.
    assert high - low == pytest.approx(2 * half, abs=2)
    assert gaps["same_steps"] == gaps["same_epochs"]  # the full data's runs serve both


def test_a_signed_gap_says_which_group_is_served_worse() -> None:
    result, captions = gap_result([True] * 30 + [False] * 90, [True] * 90 + [False] * 30)
    gaps = demographic_gaps(result, captions, np.arange(240), rng=np.random.default_rng(0))
    report = gaps["same_epochs"][FULL]["gender"]
    low, high = report["gap"]["recall@1"]["interval_95"]
    signed = report["signed"]["recall@1"]
    assert signed["gap"] == pytest.approx(-50, abs=1e-9)
    assert signed["interval_95"] == pytest.approx([-high, -low])
    even, captions = gap_result([True, False] * 30, [True, False] * 30)
    even_gaps = demographic_gaps(even, captions, np.arange(120), rng=np.random.default_rng(0))
    low, high = even_gaps["same_epochs"][FULL]["gender"]["signed"]["recall@1"]["interval_95"]
    assert low < 0 < high  # unlike the gap's
    assert even_gaps["same_epochs"][FULL]["age"]["signed"] is None


def test_hits_are_averaged_over_seeds() -> None:
    captions = ["a woman"] * 20 + ["a man"] * 20
    first, second = [0] * 40, [0] * 20 + [10] * 20
    ranks = {("random", "same_epochs", 0): first, ("random", "same_epochs", 1): second}
    ranks |= {("random", "same_steps", 0): first, ("random", "same_steps", 1): first}
    result = result_with({run: (r, r) for run, r in ranks.items()})
    gaps = demographic_gaps(result, captions, np.arange(40), rng=np.random.default_rng(0))
    report = gaps["same_epochs"]["random"]["gender"]
    assert report["groups"]["male"]["text_to_image_recall@1"] == 50.0
    assert report["gap"]["recall@1"] == {"gap": 50.0, "interval_95": [50.0, 50.0]}
    assert gaps["same_steps"]["random"]["gender"]["gap"]["recall@1"]["gap"] == 0


def test_images_are_resampled_and_not_captions() -> None:
    # Five captions an image rise and fall together: the interval of 24 images, not of 120 captions.
    hits = [True] * 60 + [False] * 60
    result, captions = gap_result(hits, [False] * 120)
    image = np.repeat(np.arange(48), 5)
    together = demographic_gaps(result, captions, image, rng=np.random.default_rng(0))
    alone = demographic_gaps(result, captions, np.arange(240), rng=np.random.default_rng(0))
    widths = [
        np.diff(g["same_epochs"][FULL]["gender"]["gap"]["recall@1"]["interval_95"])[0]
        for g in (together, alone)
    ]
    # Deviations of sqrt(0.25 / 24) and sqrt(0.25 / 120): a factor of 2.2.
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(5), rel=0.15)


def test_resamples_without_a_group_do_not_count() -> None:
    # The women are on 2 of 40 images: a seventh of the resamples have none of them.
    result, captions = gap_result([True] * 20, [True] * 38)
    image = np.r_[np.repeat([0, 1], 10), np.arange(2, 40)]
    gaps = demographic_gaps(result, captions, image, rng=np.random.default_rng(0))
    gap = gaps["same_epochs"][FULL]["gender"]["gap"]["recall@1"]
    assert gap == {"gap": 0.0, "interval_95": [0.0, 0.0]}


def test_small_groups_are_not_scored() -> None:
    result, captions = gap_result([True] * 19, [True] * 20)
    report = demographic_gaps(result, captions, np.arange(39), rng=np.random.default_rng(0))
    gender = report["same_epochs"][FULL]["gender"]
    assert gender["gap"] is None
    assert gender["groups"]["female"] == {"n_queries": 19, "too_small": True}
    assert gender["groups"]["male"]["too_small"] is False
    assert gender["groups"]["male"]["text_to_image_recall@1"] == 100.0
    age = report["same_epochs"][FULL]["age"]
    assert age["groups"]["child"] == {"n_queries": 0, "too_small": True}
    assert age["gap"] is None


def test_the_same_hits_have_no_gap() -> None:
    hits = [True, False] * 30
    result, captions = gap_result(hits, hits)
    gaps = demographic_gaps(result, captions, np.arange(120), rng=np.random.default_rng(0))
    gap = gaps["same_epochs"][FULL]["gender"]["gap"]["recall@5"]
    assert gap["gap"] == 0
    low, high = gap["interval_95"]
    assert 0 <= low < 2  # max minus min is never negative, so the interval begins near zero
    assert 10 < high < 30  # about 2.24 deviations of sqrt(2 * 0.25 / 60) = 9.1 points

"""Budgets, planted wrong captions found from a tenth of the pairs, and how cells are refined."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import influence as influence_module
from artifacts.settings import InputError
from attribution import inferred, pair_scores
from attribution.additive_model import PooledInfluence, pool_influence
from attribution.agreement import normalised_agreement
from attribution.fault_share import WrongShare
from attribution.guard import Guard
from attribution.pair_scores import (
    SMALLEST_CELL,
    PairInfluenceConfig,
    n_evaluated,
    refine_cells,
    relevance_part,
    spread_evenly,
    worth,
)
from attribution.reliability import Reliability
from attribution.results import PairInfluence
from attribution.topic_faults import looks_right
from attribution.trust import PairTrust
from curation import CurationConfig, curate
from influence import Round, score_pairs
from learner.config import TrainingConfig
from learner.pairs import PairTensors, TrainingPairs
from tests.knowing import cluster_influence, training_pairs
from tests.reference import Scattered, auc, scattered_problem
from tests.rooms import new_room
from tests.trusting import pair_trust, trust_of_view

TRAINING = TrainingConfig(embed_dim=6, num_epochs=30, batch_size=32, learning_rate=0.02)
N_REPEATS = 3


@pytest.fixture(scope="module")
def problem() -> Scattered:
    return scattered_problem(seed=0, n_images=300, n_validation=150)


@pytest.fixture(scope="module")
def small() -> Scattered:
    """Where it does not matter how much is found."""
    return scattered_problem(seed=0)


QUICK: dict[str, Any] = {"held_out_repeats": 1, "held_out_steps": 12}


@pytest.fixture(scope="module")
def once(small: Scattered) -> PairInfluence:
    return estimate(small, **QUICK)


def known_pairs(problem: Scattered, **given: Any) -> TrainingPairs:
    """A cell for the lower and the upper half of agreement of each topic."""
    scores = (problem.image_embeddings * problem.text_embeddings).sum(axis=1)
    lower = (scores < np.median(scores)).astype(np.int64)
    known: dict[str, Any] = {
        "tensors": problem.pairs,
        "validation": problem.validation,
        "image_embeddings": problem.image_embeddings,
        "text_embeddings": problem.text_embeddings,
        "clip_scores": scores,
        "image_ids": problem.image_ids,
        "cluster_assignments": problem.topics,
        "cell_assignments": 2 * problem.topics + lower,
        "groups": {"women": np.arange(len(scores)) % 3 == 0},
    }
    return training_pairs(len(scores), **known | given)


def trust_in(problem: Scattered) -> PairTrust:
    """The encoder's view of the training pairs, and nothing else."""
    return trust_of_view(
        normalised_agreement(
            problem.image_embeddings,
            problem.text_embeddings,
            problem.pairs.images.device,
            rng=np.random.default_rng(0),
        )
    )


def estimate(problem: Scattered, *, seed: int = 0, **changes: Any) -> PairInfluence:
    before = changes.pop("before", None)
    return score_pairs(
        known_pairs(problem),
        trust_in(problem),
        PairInfluenceConfig(**{"held_out_repeats": N_REPEATS, "held_out_steps": 120} | changes),
        TRAINING,
        new_room(),
        max_steps=120,
        rng=np.random.default_rng(seed),
        before=before,
    )


@pytest.fixture(scope="module")
def tenth(problem: Scattered) -> PairInfluence:
    return estimate(problem)


# --- The budget -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(0.1, 30), (0.0999, 29), (0.07, 21), (1.0, 300), (0.0666, 20), (0.001, 20)],
)
def test_exactly_so_many_pairs_are_evaluated_as_the_budget_allows(
    small: Scattered, budget: float, expected: int
) -> None:
    # Of 300, but never fewer than the additive model needs.
    found = estimate(small, influence_budget=budget, **QUICK)
    assert int(found.pair_influence_evaluated.sum()) == expected
    assert found.quality["pairs_evaluated"] == expected


def test_no_more_pairs_are_evaluated_than_help(
    small: Scattered, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pair_scores, "MOST_EVALUATED", 40)
    monkeypatch.setattr(influence_module, "MOST_EVALUATED", 40)
    with caplog.at_level("INFO"):
        found = estimate(small, influence_budget=0.5, **QUICK)
    assert int(found.pair_influence_evaluated.sum()) == 40
    assert "the influence of 40 pairs is evaluated, not of 50 % of all" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        estimate(small, influence_budget=0.1, **QUICK)
    assert "is evaluated, not of" not in caplog.text


def test_the_most_that_are_evaluated() -> None:
    config = PairInfluenceConfig()
    sizes = {19: 19, 100: 20, 5000: 500, 100_000: 10_000, 1_000_000: 10_000}
    assert {n: n_evaluated(config, n) for n in sizes} == sizes


def test_of_a_few_pairs_all_are_evaluated() -> None:
    few = scattered_problem(seed=1, n_images=8)
    found = estimate(few, influence_budget=0.01, **QUICK)
    assert found.pair_influence_evaluated.all()
    assert np.isfinite(found.pair_influence).all()


@given(n=st.integers(1, 60), n_chosen=st.integers(1, 60), seed=st.integers(0, 9))
@hypothesis_settings(deadline=None, derandomize=True)
def test_evaluated_pairs_are_spread_over_agreement(n: int, n_chosen: int, seed: int) -> None:
    n_chosen = min(n, n_chosen)
    rng = np.random.default_rng(seed)
    scores = rng.permutation(n).astype(np.float64)  # its own rank
    chosen = spread_evenly(scores, n_chosen, rng)
    assert np.all(np.diff(chosen) > 0)
    small, n_larger = divmod(n, n_chosen)
    strata = [small + 1] * n_larger + [small] * (n_chosen - n_larger)
    ends = np.cumsum(strata)
    assert np.searchsorted(ends, np.sort(scores[chosen]), side="right").tolist() == list(
        range(n_chosen)
    )


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("influence_budget", 0.0, "> 0"),
        ("influence_budget", 1.5, "<= 1"),
        ("held_out_repeats", 0, ">= 1"),
        ("held_out_steps", 0, ">= 1"),
        ("rounds", 0, ">= 1"),
    ],
)
def test_wrong_settings_are_input_errors(setting: str, value: Any, rule: str) -> None:
    with pytest.raises(InputError, match=f"--{setting} must be {rule}; got {value:g}"):
        PairInfluenceConfig(**{setting: value})


def test_pairs_of_one_image_are_an_input_error(small: Scattered) -> None:
    one = known_pairs(small, image_ids=np.zeros(len(small.wrong), dtype=np.int64))
    with pytest.raises(InputError, match="all training pairs show one image"):
        score_pairs(
            one,
            trust_in(small),
            PairInfluenceConfig(**QUICK),
            TRAINING,
            new_room(),
            max_steps=12,
            rng=np.random.default_rng(0),
        )


# --- What is found ----------------------------------------------------------------------------


def test_a_tenth_tells_wrong_captions_from_right_ones(
    problem: Scattered, tenth: PairInfluence
) -> None:
    inferred = ~tenth.pair_influence_evaluated
    assert auc(-tenth.pair_influence[inferred], problem.wrong[inferred]) > 0.9
    assert tenth.pair_influence[problem.wrong].mean() < 0
    assert tenth.pair_influence[~problem.wrong].mean() > 0
    # The worst cells are those of low agreement.
    worst = tenth.cell_assignments == int(tenth.cell_influence.argmin())
    assert problem.wrong[worst].mean() > 2 * problem.wrong.mean()


def test_inferred_influence_is_like_that_of_every_pair_evaluated(
    problem: Scattered, tenth: PairInfluence
) -> None:
    everything = estimate(problem, influence_budget=1.0)
    inferred = ~tenth.pair_influence_evaluated
    alike = np.corrcoef(tenth.pair_influence[inferred], everything.pair_influence[inferred])[0, 1]
    assert alike > 0.6
    assert everything.pair_influence_evaluated.all()
    # What is inferred from all is surer than what is inferred from a tenth.
    assert everything.pair_influence_stderr.mean() < tenth.pair_influence_stderr.mean()


def test_shuffled_features_leave_nothing_to_tell(problem: Scattered) -> None:
    # Influence of features that say nothing, in the same places: no wrong caption is found.
    order = np.random.default_rng(0).permutation(len(problem.wrong))
    shuffled = problem._replace(
        pairs=problem.pairs._replace(texts=problem.pairs.texts[order]),
        text_embeddings=problem.text_embeddings[order],
    )
    assert abs(auc(-estimate(shuffled).pair_influence, problem.wrong) - 0.5) < 0.12


def test_the_arrays_fit_together(problem: Scattered, tenth: PairInfluence) -> None:
    n, cells = len(problem.wrong), tenth.cell_assignments
    n_cells = len(tenth.cell_influence)
    assert sorted(set(cells.tolist())) == list(range(n_cells))
    assert len(tenth.cell_influence_stderr) == n_cells == tenth.quality["cells"]
    for c in range(n_cells):
        members = tenth.pair_influence[cells == c]
        assert tenth.cell_influence[c] == pytest.approx(sum(members) / len(members), abs=1e-12)
        assert len(set(known_pairs(problem).cell_assignments[cells == c])) == 1
        # A mean over pairs is no less certain than they are on average.
        errors = tenth.pair_influence_stderr[cells == c]
        assert 0 < tenth.cell_influence_stderr[c] <= errors.mean() * (1 + 1e-9)
    for array in (tenth.pair_influence_stderr, tenth.held_out_losses, tenth.agreement):
        assert array.shape == (n,)
        assert np.isfinite(array).all()
    assert np.all(tenth.pair_influence_stderr > 0)
    quality = tenth.quality
    assert quality["validation_loss"] == tenth.validation_loss > 0
    assert quality["held_out_models"] == 2 * N_REPEATS
    assert 1 <= quality["steps"] <= 120
    assert 0 <= quality["own_share"] <= 1
    assert quality["explained"] <= 1
    assert 0 < quality["repeats_agree"] <= 1


@pytest.mark.parametrize(("explained", "counts"), [(0.01, True), (0.0, False), (-0.2, False)])
def test_influence_counts_where_it_explains_anything(
    tenth: PairInfluence, explained: float, counts: bool
) -> None:
    found = dataclasses.replace(tenth, quality={**tenth.quality, "explained": explained})
    assert (found.counted == (tenth.pair_influence if counts else 0)).all()


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_measurement_counts_for_its_share(
    small: Scattered, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def pooled(measured: np.ndarray, index: np.ndarray, *args: Any) -> PooledInfluence:
        fits.append((measured, index, pool_influence(measured, index, *args)))
        return fits[-1][-1]

    monkeypatch.setattr(inferred, "pool_influence", pooled)
    monkeypatch.setattr(inferred, "own_share", lambda per_repeat, predicted: share)
    found = estimate(small, **QUICK)
    ((measured, index, fit),) = fits
    assert not np.allclose(measured, fit.predicted[index])
    expected = fit.predicted.copy()
    expected[index] = (1 - share) * fit.predicted[index] + share * measured
    np.testing.assert_allclose(found.pair_influence, expected, rtol=1e-12, atol=1e-15)


def test_the_same_generator_gives_the_same_bits(small: Scattered, once: PairInfluence) -> None:
    again, other = (estimate(small, seed=seed, **QUICK) for seed in (0, 1))
    for field in dataclasses.fields(PairInfluence):
        np.testing.assert_equal(getattr(again, field.name), getattr(once, field.name))
    assert not np.array_equal(other.pair_influence_evaluated, once.pair_influence_evaluated)


# --- Whom it believes, and what is near -------------------------------------------------------


def test_nearness_by_hand() -> None:
    # z: -1, 1. A fifth is wrong: P = 4 e^s / (4 e^s + 1), of which s = 0 and s = log(1/4) give
    # 4/5 and 1/2.
    agreement = np.array([0.0, np.log(0.25)])
    trust = pair_trust(
        2,
        relevance=np.array([3.0, 7.0]),
        relevance_weight=0.3,
        faults={"train": {"share": 0.2, "low": 0.1, "high": 0.3}},
    )
    expected = 0.3 * np.array([-1 + np.log(0.8), 1 + np.log(0.5)])
    np.testing.assert_allclose(relevance_part(trust, agreement), expected, rtol=1e-12)
    # Of a share that is not known, one in a thousand is reckoned with: P = 999 e^s / (999 e^s + 1).
    unknown = dataclasses.replace(trust, faults=pair_trust(2).faults)
    expected = 0.3 * np.array([-1 + np.log(999 / 1000), 1 + np.log(249.75 / 250.75)])
    np.testing.assert_allclose(relevance_part(unknown, agreement), expected, rtol=1e-9)
    like_the_pool = dataclasses.replace(trust, relevance_weight=0.0)
    assert relevance_part(like_the_pool, agreement).tolist() == [0.0, 0.0]


def test_nearness_brings_no_wrong_pair_back() -> None:
    # However near it is: four deviations of nearness do not outweigh log odds of -10.
    relevance = np.append(np.zeros(99), 1.0)
    trust = pair_trust(
        100,
        relevance=relevance,
        relevance_weight=1.0,
        faults={"train": {"share": 0.2, "low": 0.1, "high": 0.3}},
    )
    near = relevance_part(trust, np.full(100, 10.0))
    assert near.argmax() == 99
    assert near[99] > 4
    wrong = relevance_part(trust, np.append(np.full(99, 10.0), -15.0))
    assert wrong.argmin() == 99


@pytest.mark.parametrize(
    ("weight", "tells", "reason"), [(1.0, 0.9, ""), (0.25, 0.39, "they contradict each other")]
)
def test_the_guard_reaches_the_result(
    small: Scattered, monkeypatch: pytest.MonkeyPatch, weight: float, tells: float, reason: str
) -> None:
    asked = []

    def guard(*arguments: Any) -> Guard:
        asked.append(arguments)
        return Guard(weight, -0.123456, tells, reason)

    monkeypatch.setattr(influence_module, "guard_influence", guard)
    found = estimate(small, **QUICK)
    ((influence, agreement, wrong),) = asked
    np.testing.assert_array_equal(influence, found.pair_influence)
    np.testing.assert_array_equal(agreement, found.agreement)
    assert wrong is not None
    assert [wrong.share, wrong.low, wrong.high] == found.fault_share
    assert found.influence_weight == weight  # of one repeat, whose halves nobody has compared
    assert found.quality["reliability"] is None
    assert found.quality["influence_weight"] == weight
    assert found.quality["agreement_correlation"] == -0.1235
    assert found.quality["guard"] == reason


def test_influence_by_misleading_pairs_is_not_followed(problem: Scattered) -> None:
    # Held-out pairs of which each has the caption of another: what pleases them is to be wrong.
    texts = problem.validation.texts
    misleading = problem._replace(
        validation=problem.validation._replace(texts=texts.roll(1, dims=0))
    )
    share = {"share": 0.2, "low": 0.15, "high": 0.25}
    trust = dataclasses.replace(
        trust_in(problem),
        faults={"train": share},
        relevance=problem.wrong.astype(np.float64),
        relevance_auc=0.71239,
        relevance_weight=0.31239,
    )
    told, misled = (
        score_pairs(
            known_pairs(p),
            trust,
            PairInfluenceConfig(held_out_repeats=1, held_out_steps=120),
            TRAINING,
            new_room(),
            max_steps=120,
            rng=np.random.default_rng(0),
        )
        for p in (problem, misleading)
    )
    assert told.influence_weight == 1
    assert told.quality["guard"] == ""
    assert misled.influence_weight < told.influence_weight
    assert "contradict each other" in misled.quality["guard"]
    assert misled.quality["agreement_correlation"] < told.quality["agreement_correlation"]
    for found in (told, misled):
        # Nearness to held-out pairs counts as far as these are believed.
        believed, full = found.influence_weight, relevance_part(trust, found.agreement)
        np.testing.assert_array_equal(found.relevance_part, believed * full)
        assert found.quality["relevance_auc"] == 0.7124
        assert found.quality["relevance_weight"] == round(believed * 0.31239, 4)


def test_influence_counts_by_the_guard_and_by_how_well_it_is_known(
    small: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influence_module, "guard_influence", lambda *_: Guard(0.5, 0.0, 0.4, "x"))
    monkeypatch.setattr(inferred, "split_half", lambda *_: Reliability(0.64, 1e6))
    found = estimate(small, **QUICK)
    assert found.quality["reliability"] == 0.64
    assert found.influence_weight == pytest.approx(0.5 * 0.8)  # E[true | inferred], by Kelley
    # Standard errors hold what the halves differ by.
    assert float((found.pair_influence_stderr**2).mean()) == pytest.approx(1e6)


def test_halves_of_the_validation_pairs_are_compared(tenth: PairInfluence) -> None:
    reliability = tenth.quality["reliability"]
    assert 0 < reliability <= 1
    assert tenth.influence_weight == pytest.approx(np.sqrt(reliability), abs=1e-3)
    assert tenth.quality["guard"] == ""


def worth_of(explained: float, reliability: float = 0.25, guard: float = 0.5) -> dict[str, Any]:
    pooled = pool_influence(np.arange(20.0), np.arange(20), [np.arange(20.0)], np.zeros(20, int))
    return worth(
        Guard(guard, -0.123456, 0.4, "they contradict each other"),
        Reliability(reliability, 0.0),
        dataclasses.replace(pooled, explained=explained),
        WrongShare(0.3, 0.2, 0.4),
    )


def test_worth_by_hand() -> None:
    assert worth_of(0.1) == {
        "reliability": 0.25,
        "influence_weight": 0.25,
        "agreement_correlation": -0.1235,
        "guard": "they contradict each other",
        "guard_weight": 0.5,
        "wrong_share": [0.3, 0.2, 0.4],
    }
    contradicted = worth_of(0.1, reliability=0.0, guard=0.0)
    assert contradicted["guard"] == "they contradict each other"
    unreliable = worth_of(0.1, reliability=0.0)
    assert unreliable["influence_weight"] == 0
    assert unreliable["guard"].endswith("has nothing in common (reliability 0)")
    assert worth_of(0.0) == {**worth_of(0.1), "influence_weight": 0.0, "guard": ""}


# --- Which pairs look faulty --------------------------------------------------------------------


def test_as_many_pairs_look_faulty_as_are(problem: Scattered, tenth: PairInfluence) -> None:
    assert tenth.unfaulty is not None
    assert tenth.fault_share is not None
    share, low, high = tenth.fault_share
    assert low <= share <= high
    assert share == pytest.approx(problem.wrong.mean(), abs=0.1)
    # Log odds at equal shares, against as many wrong as are estimated: the bar that Bayes sets.
    found = looks_right(tenth.agreement, problem.topics, share)
    np.testing.assert_array_equal(tenth.unfaulty, found)
    assert auc(tenth.unfaulty.astype(np.float64), ~problem.wrong) > 0.7


def test_the_share_of_faults_is_that_of_both_estimates(problem: Scattered) -> None:
    trust = trust_in(problem)
    by_rank = {"by_rank": [0.9, 0.8, 1.0]}
    told = dataclasses.replace(trust, faults={"train": {**trust.faults["train"], **by_rank}})
    alone, both = (
        score_pairs(
            known_pairs(problem),
            judged,
            PairInfluenceConfig(**QUICK),
            TRAINING,
            new_room(),
            max_steps=12,
            rng=np.random.default_rng(0),
        ).fault_share
        for judged in (trust, told)
    )
    assert alone is not None
    assert both == pytest.approx([(alone[0] + 0.9) / 2, alone[1], 1.0])


# --- Settings and rounds ----------------------------------------------------------------------


# --- Groups -----------------------------------------------------------------------------------


def thinned_group(seed: int) -> tuple[TrainingPairs, PairTrust]:
    """Women in a tenth of the training pairs and a third of the held-out ones.

    What images and captions of them share lies in other directions than what those of men share,
    so that nothing but pairs about women helps women.
    """
    rng = np.random.default_rng(seed)
    n, m = 300, 120
    women = np.append(np.arange(n) % 10 == 0, np.arange(m) % 3 == 0)
    latent = rng.normal(size=(n + m, 6))
    latent *= np.where(women[:, None], np.arange(6) < 3, np.arange(6) >= 3)
    images, texts = (
        (latent @ rng.normal(size=(6, d)) / np.sqrt(6) + rng.normal(0, 0.05, (n + m, d))) / d**0.5
        for d in (10, 8)
    )
    training, held_out = (
        PairTensors(torch.from_numpy(images[part]).float(), torch.from_numpy(texts[part]).float())
        for part in (slice(n), slice(n, None))
    )
    to_joint = rng.normal(size=(6, 12))
    joint = [latent[:n] @ to_joint + 3 * rng.normal(size=(n, 12)) for _ in range(2)]
    embeddings = [
        (side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in joint
    ]
    pairs = training_pairs(
        n,
        tensors=training,
        validation=held_out,
        image_embeddings=embeddings[0],
        text_embeddings=embeddings[1],
        clip_scores=(embeddings[0] * embeddings[1]).sum(axis=1),
        groups={"female": women[:n], "male": ~women[:n]},
        validation_groups={"gender": {"female": women[n:], "male": ~women[n:]}},
    )
    images_seen, texts_seen = embeddings
    view = normalised_agreement(
        *(images_seen, texts_seen, torch.device("cpu")), rng=np.random.default_rng(0)
    )
    return pairs, trust_of_view(view)


def test_fairness_keeps_more_of_a_thinned_group_and_is_off_by_default() -> None:
    pairs, trust = thinned_group(seed=4)
    women = pairs.groups["female"]

    def scored(known: TrainingPairs, **more: Any) -> PairInfluence:
        config = PairInfluenceConfig(held_out_repeats=2, held_out_steps=60, **more)
        rng = np.random.default_rng(0)
        return score_pairs(known, trust, config, TRAINING, new_room(), max_steps=60, rng=rng)

    def share_kept(estimate: PairInfluence) -> float:
        config = CurationConfig(target_size_ratio=0.5)
        curated = curate(pairs, cluster_influence(np.zeros(1)), estimate, config)
        return float(women[curated.curated_rows].mean())

    plain, fair = scored(pairs), scored(pairs, fairness=1.0)
    told = fair.quality["fairness"]
    assert (told["attribute"], told["group"]) == ("gender", "female")
    assert told["losses"]["female"] > told["losses"]["male"] > 0
    assert told["weight"] == pytest.approx(np.sqrt(told["reliability"]), abs=1e-3)
    assert told["adding"]["female"] > max(told["adding"]["male"], 0)
    assert share_kept(fair) > 1.2 * share_kept(plain)
    # Off by default, and nothing else is changed by it.
    assert plain.group_influence is None
    assert "fairness" not in plain.quality
    for field in dataclasses.fields(PairInfluence):
        values = [getattr(estimate, field.name) for estimate in (plain, fair)]
        if field.name == "quality":
            assert values[0] == {k: v for k, v in values[1].items() if k != "fairness"}
        elif field.name != "group_influence":
            assert np.asarray(values[0]).tobytes() == np.asarray(values[1]).tobytes(), field.name


def test_a_setting_that_is_off_leaves_saved_results_current() -> None:
    assert "fairness" not in PairInfluenceConfig().fingerprint_settings()
    assert PairInfluenceConfig(fairness=0.5).fingerprint_settings()["fairness"] == 0.5


def test_cells_may_be_kept_whole(small: Scattered) -> None:
    quick = QUICK | {"held_out_repeats": 2}
    split, whole = (estimate(small, keep_cells_whole=keep, **quick) for keep in (False, True))
    np.testing.assert_array_equal(whole.cell_assignments, known_pairs(small).cell_assignments)
    np.testing.assert_array_equal(whole.pair_influence, split.pair_influence)
    means = [whole.pair_influence[whole.cell_assignments == c].mean() for c in range(6)]
    np.testing.assert_allclose(whole.cell_influence, means, rtol=1e-9, atol=1e-12)


def test_one_repeat_counts_half_and_cannot_agree_with_others(once: PairInfluence) -> None:
    assert once.quality["own_share"] == 0.5
    assert once.quality["repeats_agree"] is None


def test_topics_may_be_ignored(small: Scattered, once: PairInfluence) -> None:
    # Pairs of equal kind, as far as is known, are then told apart by no topic of theirs.
    ignored = estimate(small, ignore_topics=True, **QUICK)
    assert not np.array_equal(ignored.pair_influence, once.pair_influence)
    np.testing.assert_array_equal(ignored.pair_influence_evaluated, once.pair_influence_evaluated)
    # Cells stay those of the topics all the same.
    for c in range(len(ignored.cell_influence)):
        assert len(set(small.topics[ignored.cell_assignments == c].tolist())) == 1


def test_a_second_round_evaluates_the_same_pairs_on_other_models(
    problem: Scattered, tenth: PairInfluence
) -> None:
    kept = tenth.pair_influence > np.quantile(tenth.pair_influence, 0.2)
    second = estimate(problem, seed=1, before=Round(kept, tenth))
    np.testing.assert_array_equal(second.pair_influence_evaluated, tenth.pair_influence_evaluated)
    assert not np.array_equal(second.pair_influence, tenth.pair_influence)
    # Trained on the cleaner set, models expect less of validation pairs and more of wrong ones.
    assert problem.wrong[kept].mean() < 0.5 * problem.wrong.mean()
    fresh = estimate(problem, seed=1)
    assert second.validation_loss < fresh.validation_loss
    assert auc(-second.pair_influence, problem.wrong) > 0.85


# --- Refined cells ----------------------------------------------------------------------------


def pooled_with_error(n: int, error: float) -> PooledInfluence:
    """A model that knows nothing of pairs: each has this error, and so has every mean of them."""
    measured = np.tile([1.0, -1.0], 50)
    pooled = pool_influence(
        measured, np.arange(100), [np.zeros(max(n, 100))], np.zeros(max(n, 100), dtype=np.int64)
    )
    found = pooled.mean_stderr(np.arange(n))
    assert found == pytest.approx(pooled.stderr[0])
    effects, scale = pooled._effects, error / found
    scaled = effects._replace(
        root=effects.root * scale, topic_variances=effects.topic_variances * scale**2
    )
    return dataclasses.replace(pooled, _effects=scaled)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    error=st.sampled_from([1e-3, 0.1, 0.5, 3.0]),
    seed=st.integers(0, 99),
)
@hypothesis_settings(deadline=None, derandomize=True)
def test_refined_cells_are_parts_of_no_less_than_the_smallest_size(
    sizes: list[int], error: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    influence = rng.normal(size=len(cells))
    refined = refine_cells(cells, influence, pooled_with_error(len(cells), error))
    parts = sorted(set(refined.tolist()))
    assert parts == list(range(len(parts)))
    for part in parts:
        (cell,) = set(cells[refined == part])
        assert (refined == part).sum() >= min(SMALLEST_CELL, sizes[cell])
        # It is settled: small, its sign decided, or its pairs alike.
        values, bar = influence[refined == part], 1.6448536 * error
        settled = abs(values.mean()) >= bar or values.std() <= bar
        assert settled or len(values) < 2 * SMALLEST_CELL
    for cell in range(len(sizes)):
        # Parts follow one another in influence: none lies within another.
        values = influence[cells == cell]
        in_order = refined[cells == cell][np.argsort(values)]
        assert (np.diff(in_order) != 0).sum() + 1 == len(set(in_order.tolist()))


def test_refinement_by_hand() -> None:
    # Errors of 0.1, so a bar of 0.164. Undecided and spread: halved. Decided: whole. Alike: whole.
    # Too small: whole.
    undecided = np.array([1.0, -1, 1, -1, 1, -1, 1, -1])
    for values, n_parts in (
        (undecided, 2),
        (undecided + 0.17, 1),
        (undecided + 0.16, 2),
        (undecided * 0.16, 1),
        (undecided * 0.17, 2),
        (undecided[:7] - undecided[:7].mean(), 1),
    ):
        cells = np.zeros(len(values), dtype=np.int64)
        refined = refine_cells(cells, values, pooled_with_error(len(values), 0.1))
        assert len(set(refined.tolist())) == n_parts
        if n_parts == 2:
            assert len(set(refined[values > np.median(values)].tolist())) == 1
            assert np.bincount(refined).tolist() == [4, 4]


def test_cells_are_halved_until_they_are_settled() -> None:
    values = np.linspace(-1, 1, 64)
    for error in (1e-3, 0.05, 0.2):
        refined = refine_cells(np.zeros(64, dtype=np.int64), values, pooled_with_error(64, error))
        bar, todo, settled = 1.6448536 * error, [values], []
        while todo:
            part = todo.pop()
            if len(part) >= 8 and abs(part.mean()) < bar < part.std():
                todo += [part[: len(part) // 2], part[len(part) // 2 :]]
            else:
                settled.append(part.tolist())
        found = [values[refined == c].tolist() for c in range(int(refined.max()) + 1)]
        assert sorted(found) == sorted(settled)
        assert len(found) == 2  # both halves have a sign

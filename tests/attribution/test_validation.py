"""The estimate against retraining: statistics by hand, effects against plain trainings."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from artifacts.settings import InputError
from attribution.cluster_scores import InfluenceConfig
from attribution.results import CHECKS, LDS, LOCO, SMALL, InfluenceResult, InfluenceValidation
from attribution.validation import (
    ESTIMATOR,
    SMALL_WEIGHT,
    Effects,
    InfluenceValidationConfig,
    compared_with_real,
    correlations,
    noise_ceiling,
    spread_over_scores,
    validate_influence,
)
from influence import score_clusters
from learner.config import TrainingConfig
from learner.model import mean_loss
from learner.training import Training, train
from tests.knowing import planted_pairs
from tests.reference import Planted, planted_problem
from tests.rooms import new_room

TRAINING = TrainingConfig(embed_dim=4, batch_size=16, num_epochs=5, learning_rate=0.02)
N_STEPS = 24  # of the retrainings
PREDICTORS = {ESTIMATOR, "size", "clip_score", "gradient_similarity"}


# --- Which clusters ---------------------------------------------------------------------------


def test_clusters_are_spread_over_the_scores() -> None:
    scores = np.array([3.0, -1.0, 0.0, 7.0, 2.0])  # rising: 1, 2, 4, 0, 3
    assert spread_over_scores(scores, 5).tolist() == [1, 2, 4, 0, 3]
    assert spread_over_scores(scores, 99).tolist() == [1, 2, 4, 0, 3]
    assert spread_over_scores(scores, 3).tolist() == [1, 4, 3]
    assert spread_over_scores(scores, 2).tolist() == [1, 3]
    assert spread_over_scores(scores, 1).tolist() == [1]
    assert spread_over_scores(np.zeros(4), 2).tolist() == [0, 3]  # ties by number


# --- Correlations and the ceiling, by hand ------------------------------------------------------


def test_correlations_by_hand() -> None:
    # Deviations (-1, 0, 1) and (-1, 2, -1), (1, 2, 3) being ranks already: no linear relation;
    # ranks 1, 2, 3 against 1.5, 3, 1.5 neither.
    flat = correlations(np.array([1.0, 2.0, 3.0]), np.array([0.0, 3.0, 0.0]))
    assert flat == pytest.approx({"spearman": 0, "pearson": 0, "slope": 0}, abs=1e-12)
    # Deviations (-3, -1, 1, 3) / 2 and (-7, -3, 1, 9): products sum to 42 / 2, squares to 5 and
    # 140. Both rise, so the ranks agree.
    rising = correlations(np.array([1.0, 2.0, 3.0, 4.0]), np.array([-6.0, -2.0, 2.0, 10.0]))
    expected = {"spearman": 1.0, "pearson": 26 / np.sqrt(5 * 140), "slope": 26 / 5}
    assert rising == pytest.approx(expected, abs=1e-12)
    # Ranks 1, 2, 3 against 3, 1, 2: 1 - 6 (4 + 1 + 1) / (3 * 8) = -1/2.
    mixed = correlations(np.array([0.0, 1.0, 5.0]), np.array([9.0, 1.0, 2.0]))
    assert mixed["spearman"] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("predicted", "real"),
    [
        ([1.0, 2.0], [1.0, 2.0]),  # two points always agree or disagree
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
    ],
)
def test_what_says_nothing_has_no_correlation(predicted: list[float], real: list[float]) -> None:
    found = correlations(np.array(predicted), np.array(real))
    assert found == {"spearman": None, "pearson": None, "slope": None}


def test_noise_ceiling_by_hand() -> None:
    assert noise_ceiling(np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 9.0]])) == pytest.approx((1, 1))
    # Rank correlations 1, -1/2 and -1/2 have mean 0: nothing is reliable.
    cancelling = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [3.0, 1.0, 2.0]])
    assert noise_ceiling(cancelling) == pytest.approx((0, 0), abs=1e-12)
    # Two seeds with r = 1/2: R = 2 (1/2) / (1 + 1/2) = 2/3.
    half = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    assert noise_ceiling(half) == pytest.approx((np.sqrt(2 / 3), 0.5))
    opposite = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert noise_ceiling(opposite) == pytest.approx((0, -1))


@pytest.mark.parametrize(
    "real",
    [
        [[1.0, 2.0, 3.0]],  # one seed
        [[1.0, 2.0], [1.0, 2.0]],  # two points
        [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]],  # a seed without spread has no ranks
    ],
)
def test_no_ceiling(real: list[list[float]]) -> None:
    assert noise_ceiling(np.array(real)) == (None, None)


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("n_seeds", [2, 5])
def test_the_ceiling_is_what_the_truth_reaches(noise: float, n_seeds: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    real = truth + noise * rng.normal(size=(n_seeds, 4000))
    ceiling, between = noise_ceiling(real)
    # Sampling errors of 1 / sqrt(4000) = 0.016; the formula is exact for linear correlations,
    # and rank correlations of normal numbers are within 0.02 of those.
    assert ceiling == pytest.approx(spearmanr(truth, real.mean(axis=0)).statistic, abs=0.03)
    assert between == pytest.approx(1 / (1 + noise**2), abs=0.05)


def test_perfect_predictions_agree_perfectly() -> None:
    real = np.random.default_rng(0).normal(size=(3, 8))
    mean = real.mean(axis=0)
    found = compared_with_real(Effects({ESTIMATOR: mean, "size": -2 * mean}, np.zeros(8), real))
    assert found[ESTIMATOR] == pytest.approx({"spearman": 1, "pearson": 1, "slope": 1})
    assert found["size"] == pytest.approx({"spearman": -1, "pearson": -1, "slope": -0.5})


# --- Against plain trainings --------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_problem(seed=0)


def estimate(planted: Planted, *, n_clusters: int = 4, **changes: Any) -> InfluenceResult:
    """An estimate whose reference takes every step of its schedule, so that `train` repeats it."""
    config = InfluenceConfig(**{"removal_folds": 2, "influence_seeds": 2} | changes)
    clusters = planted.clusters % n_clusters
    result = score_clusters(
        planted_pairs(planted, clusters, "topic "),
        config,
        TRAINING,
        new_room(),
        rng=np.random.default_rng(5),
    )
    return dataclasses.replace(result, reference_steps=N_STEPS, reference_schedule=N_STEPS)


def validated(
    planted: Planted,
    influence: InfluenceResult,
    count: int = 4,
    *,
    n_clusters: int = 4,
    n_seeds: int = 3,
) -> InfluenceValidation:
    pairs = planted_pairs(planted, planted.clusters % n_clusters, "topic ")
    return validate_influence(
        influence,
        dataclasses.replace(pairs, clip_scores=clip_scores(planted)),
        InfluenceValidationConfig(count, n_seeds),
        TRAINING,
        new_room(),
        rng=np.random.default_rng(6),
    )


def clip_scores(planted: Planted) -> np.ndarray:
    n = len(planted.wrong)
    return np.asarray(np.where(planted.wrong, 0.1, 0.3) + 0.001 * np.arange(n))


@pytest.fixture(scope="module")
def result(planted: Planted) -> InfluenceResult:
    return estimate(planted)


@pytest.fixture(scope="module")
def checks(planted: Planted, result: InfluenceResult) -> dict[str, Any]:
    return validated(planted, result).checks


def real_change(
    planted: Planted, influence: InfluenceResult, seed: int, weights: np.ndarray
) -> float:
    """Percent by which these weights change the validation loss, by plain trainings."""
    losses = []
    for w in (np.ones(len(weights)), weights):
        parameters, _ = train(planted.pairs, TRAINING, n_steps=N_STEPS, seed=seed, sample_weights=w)
        losses.append(mean_loss(parameters, planted.validation, influence.validation_batches))
    return 100 * (losses[1] / losses[0] - 1)


def column(checks: dict[str, Any], check: str, name: str) -> np.ndarray:
    return np.array([point[name] for point in checks["points"][check]])


@pytest.mark.parametrize("batch_size", [16, 24])
def test_a_sample_that_was_trained_on_is_retrained_on(planted: Planted, batch_size: int) -> None:
    n = len(planted.clusters)
    rows = np.sort(np.random.default_rng(3).permutation(n)[: n - 24])
    influence = dataclasses.replace(
        estimate(planted, influence_seeds=1, removal_folds=0),
        reference_batch_size=batch_size,
        reference_rows=rows,
    )
    checks = validated(planted, influence, n_seeds=1).checks
    sizes, sampled = np.bincount(planted.clusters), np.bincount(planted.clusters[rows])
    weights = (sizes / sampled)[planted.clusters[rows]]
    weights /= weights.mean()
    inside = planted.clusters[rows] == checks["clusters"][0]
    losses = []
    for w in (weights, np.where(inside, 0, weights)):
        run = Training(
            planted.pairs.subset(rows),
            dataclasses.replace(TRAINING, batch_size=batch_size),
            n_steps=N_STEPS,
            seed=int(influence.reference_seeds[0]),
            sample_weights=w,
            carry_over=batch_size > TRAINING.batch_size,
        )
        run.advance_to(N_STEPS)
        losses.append(mean_loss(run.parameters, planted.validation, influence.validation_batches))
    expected = 100 * (losses[1] / losses[0] - 1)
    assert abs(expected) > 0.01
    # Means over pairs and over batches, in float32.
    assert column(checks, LOCO, "real")[0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("check", "weight"), [(LOCO, 0.0), (SMALL, SMALL_WEIGHT)])
def test_real_effects_are_those_of_plain_trainings(
    planted: Planted, result: InfluenceResult, checks: dict[str, Any], check: str, weight: float
) -> None:
    by_seed = np.array(
        [
            [
                real_change(planted, result, seed, np.where(planted.clusters == k, weight, 1.0))
                for k in checks["clusters"]
            ]
            for seed in checks["seeds"]
        ]
    )
    # The losses are float32 sums in another order: 1e-6 of them, in percent.
    np.testing.assert_allclose(column(checks, check, "real"), by_seed.mean(axis=0), atol=2e-4)
    stderr = by_seed.std(axis=0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(column(checks, check, "real_stderr"), stderr, atol=2e-4)
    assert np.abs(by_seed).max() > 0.1  # percent: there is something to compare


def test_predictions_are_the_scores_in_percent(
    planted: Planted, result: InfluenceResult, checks: dict[str, Any]
) -> None:
    chosen = checks["clusters"]
    assert chosen == np.argsort(result.influence_scores).tolist()
    assert result.removal_corrections.any()
    scores, stderr = 100 * result.influence_scores[chosen], 100 * result.influence_stderr[chosen]
    np.testing.assert_allclose(column(checks, LOCO, "predicted"), scores)
    np.testing.assert_allclose(column(checks, LOCO, "predicted_stderr"), stderr)
    # A tenth of the weight away from one: a tenth of the first-order effect.
    first_order = 100 * result.first_order_scores.mean(axis=0)[chosen]
    np.testing.assert_allclose(column(checks, SMALL, "predicted"), 0.1 * first_order)
    np.testing.assert_allclose(column(checks, SMALL, "predicted_stderr"), 0.1 * stderr)
    assert column(checks, LOCO, "size").tolist() == [24.0] * 4
    means = [clip_scores(planted)[planted.clusters == k].mean() for k in chosen]
    np.testing.assert_allclose(column(checks, LOCO, "clip_score"), means)


def test_correlations_follow_from_the_points(checks: dict[str, Any]) -> None:
    for check in CHECKS:
        real = column(checks, check, "real")
        for predictor in PREDICTORS:
            name = "predicted" if predictor == ESTIMATOR else predictor
            assert checks[check][predictor] == correlations(column(checks, check, name), real)
    assert checks[LOCO]["size"]["spearman"] is None  # all clusters have one size
    # The wrong captions hurt, and both the estimate and retraining say so.
    assert checks["clusters"][0] == 3
    assert column(checks, LOCO, "real")[0] < 0
    assert column(checks, LOCO, "real")[1:].min() > 0
    assert checks[LOCO][ESTIMATOR]["pearson"] > 0.9  # 0.99 when this was written


def test_the_keys_of_the_file(result: InfluenceResult, checks: dict[str, Any]) -> None:
    assert json.loads(json.dumps(checks, allow_nan=False)) == checks
    extra = {"clusters", "seeds", "reference_seeds", "unit", "points", "halves_left_out"}
    assert set(checks) == {*CHECKS, *extra}
    assert checks["unit"] == "percent of the validation loss"
    assert checks["reference_seeds"] == result.reference_seeds.tolist()
    assert checks["seeds"][:2] == checks["reference_seeds"]
    assert len(set(checks["seeds"])) == 3
    for check in CHECKS:
        assert set(checks[check]) == {*PREDICTORS, "ceiling", "seed_agreement"}
        for point in checks["points"][check]:
            columns = {"predicted", "predicted_stderr", "real", "real_stderr"}
            assert set(point) == columns | (PREDICTORS - {ESTIMATOR})
        assert len(checks["points"][check]) == 4


def test_halves_of_two_clusters_are_single_clusters(planted: Planted) -> None:
    influence = estimate(planted, n_clusters=2, influence_seeds=1)
    found = validated(planted, influence, 2, n_clusters=2, n_seeds=2)
    single = {p["predicted"]: p for p in found.loco_points}
    assert len(single) == 2
    for half in found.checks["points"][LDS]:
        same = single[half["predicted"]]
        for name in ("predicted_stderr", "real", "real_stderr", "size", "gradient_similarity"):
            assert half[name] == pytest.approx(same[name], rel=1e-12)
        # What is kept is the other cluster; a low mean score of it is a high effect.
        (other,) = [p for p in found.loco_points if p is not same]
        assert half["clip_score"] == pytest.approx(-other["clip_score"])


def test_one_cluster_cannot_be_left_out(planted: Planted) -> None:
    influence = estimate(planted, n_clusters=1, influence_seeds=1)
    with pytest.raises(InputError, match="--validate_influence needs at least two clusters"):
        validated(planted, influence, n_clusters=1)


def test_one_seed_has_no_spread(planted: Planted, result: InfluenceResult) -> None:
    found = validated(planted, result, 3, n_seeds=1)
    assert found.checks["seeds"] == found.checks["reference_seeds"][:1]
    assert column(found.checks, LOCO, "real_stderr").tolist() == [0.0] * 3
    assert found.checks[LOCO]["ceiling"] is None
    assert found.checks[LOCO]["seed_agreement"] is None


def test_the_same_seed_gives_the_same_checks(
    planted: Planted, result: InfluenceResult, checks: dict[str, Any]
) -> None:
    assert validated(planted, result).checks == checks

"""How well predicted influence matches real retraining.

Three checks, each against retraining with the same seeds and batches: single clusters left out
(Koh & Liang 2017), single clusters at nine tenths of their weight, and random halves of the
clusters left out together (linear datamodelling score, Park et al. 2023, arXiv 2303.14186).
Beside the estimator stand three predictions that cost nothing, since a check that they pass too
shows little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import pearsonr, spearmanr

from artifacts.settings import InputError, Settings, setting
from attribution.derivatives import batch_loss_influences, loss_gradient
from attribution.results import CHECKS, LDS, LOCO, SMALL, InfluenceResult, InfluenceValidation
from attribution.retraining import Data, Retraining
from attribution.sampling import TrainedPairs
from engine.room import StageRoom
from learner.config import TrainingConfig
from learner.lending import Lent, lend
from learner.pairs import TrainingPairs

ESTIMATOR = "estimator"
SMALL_WEIGHT = 0.9


@dataclass(frozen=True)
class InfluenceValidationConfig(Settings):
    """Whether the influence estimate is compared with real retraining."""

    validate_influence: int = setting(
        0,
        "clusters whose predicted effect is compared with real retraining, spread over the range "
        "of scores; 0 = none",
        at_least=0,
    )
    validation_seeds: int = setting(
        3, "retrainings of each kind that real effects are averaged over", at_least=1
    )


class Effects(NamedTuple):
    """Change of the validation loss, in percent of it, of `c` changes of the training weights."""

    predicted: Mapping[str, Float[np.ndarray, " c"]]  # by predictor
    stderr: Float[np.ndarray, " c"]  # of the estimator
    real: Float[np.ndarray, "s c"]  # one row a retraining seed


def validate_influence(
    influence: InfluenceResult,
    pairs: TrainingPairs,
    config: InfluenceValidationConfig,
    training: TrainingConfig,
    room: StageRoom,
    *,
    rng: np.random.Generator,
) -> InfluenceValidation:
    """Retrain without clusters and compare with what was predicted.

    The retraining is the reference training: its schedule, its number of steps, its first seeds.
    Costs (3 N + 1) trainings a seed.

    Args:
        influence: the estimate.
        pairs: the training pairs, and the held-out ones that are asked.
        config: how many clusters and seeds.
        training: settings of the reference training.
        room: where models are trained.
        rng: draws the halves and further seeds.

    Raises:
        InputError: there are fewer than two clusters to leave out.
    """
    clusters, n_clusters = pairs.cluster_assignments, len(influence.influence_scores)
    if n_clusters < 2:
        raise InputError("--validate_influence needs at least two clusters; raise --n_clusters")
    chosen = spread_over_scores(influence.influence_scores, config.validate_influence)
    extra = rng.integers(2**31, size=config.validation_seeds)
    seeds = [*influence.reference_seeds.tolist(), *extra.tolist()][: config.validation_seeds]
    halves = np.array([rng.permutation(np.arange(n_clusters) % 2) for _ in chosen], dtype=bool)
    trained = _trained_pairs(influence, clusters, training)
    data = Data(
        *trained.among(pairs.tensors, clusters),
        pairs.validation,
        influence.validation_batches,
        trained.weights,
    )
    lent = lend(room, "pairs", data, pairs.tensors.device)
    retraining = Retraining(
        replace(training, batch_size=trained.batch_size),
        influence.reference_schedule,
        influence.reference_steps,
        carry_over=trained.grown,
    )
    real = real_effects(lent, retraining, _factors(n_clusters, chosen, halves), seeds)
    similarity = gradient_similarity(influence, pairs, training, rng=rng)
    sums = _ClusterSums(
        np.bincount(clusters),
        np.bincount(clusters, pairs.clip_scores),
        np.bincount(clusters, similarity) / len(clusters),
    )
    effects = _effects(influence, sums, chosen, halves, real)
    return InfluenceValidation(
        {
            **{check: compared_with_real(effects[check]) for check in CHECKS},
            "clusters": chosen.tolist(),
            "seeds": seeds,
            "reference_seeds": influence.reference_seeds.tolist(),
            "unit": "percent of the validation loss",
            "halves_left_out": [np.flatnonzero(half).tolist() for half in halves],
            "points": {check: _points(effects[check]) for check in CHECKS},
        }
    )


class _ClusterSums(NamedTuple):
    """Predictions that cost nothing, as sums over the pairs of each cluster."""

    sizes: Int64[np.ndarray, " K"]
    clip_scores: Float[np.ndarray, " K"]
    gradient_similarity: Float[np.ndarray, " K"]


def _trained_pairs(
    influence: InfluenceResult,
    cluster_assignments: Int64[np.ndarray, " n"],
    training: TrainingConfig,
) -> TrainedPairs:
    """What the reference models were trained on."""
    b = influence.reference_batch_size or training.batch_size
    grown = b > training.batch_size
    return TrainedPairs.of(cluster_assignments, influence.reference_rows, b, grown=grown)


def _factors(
    n_clusters: int, chosen: Int64[np.ndarray, " c"], halves: Bool[np.ndarray, "c K"]
) -> dict[str, Float64[np.ndarray, "c K"]]:
    """By what the weights of the clusters' pairs are multiplied in every retraining."""
    changed = chosen[:, None] == np.arange(n_clusters)
    return {
        LOCO: np.where(changed, 0.0, 1.0),
        SMALL: np.where(changed, SMALL_WEIGHT, 1.0),
        LDS: np.where(halves, 0.0, 1.0),
    }


def _effects(
    influence: InfluenceResult,
    sums: _ClusterSums,
    chosen: Int64[np.ndarray, " c"],
    halves: Bool[np.ndarray, "c K"],
    real: Mapping[str, Float[np.ndarray, "s c"]],
) -> dict[str, Effects]:
    """What the estimator and its rivals foretell of each check, beside what came true."""
    percent = 100 * influence.influence_scores
    first_order = 100 * influence.first_order_scores.mean(axis=0)
    stderr = 100 * influence.influence_stderr
    single = {
        "size": sums.sizes[chosen].astype(float),
        "clip_score": (sums.clip_scores / sums.sizes)[chosen],
        "gradient_similarity": sums.gradient_similarity[chosen],
    }
    return {
        LOCO: Effects({ESTIMATOR: percent[chosen], **single}, stderr[chosen], real[LOCO]),
        SMALL: Effects(
            # The finite-removal correction is of second order: nothing of it is left near 1.
            {ESTIMATOR: first_order[chosen] * (1 - SMALL_WEIGHT), **single},
            100 * influence.first_order_stderr[chosen] * (1 - SMALL_WEIGHT),
            real[SMALL],
        ),
        LDS: Effects(
            {
                ESTIMATOR: halves @ percent,
                "size": (halves @ sums.sizes).astype(float),
                "clip_score": -(~halves @ sums.clip_scores) / (~halves @ sums.sizes),
                "gradient_similarity": halves @ sums.gradient_similarity,
            },
            np.sqrt(halves @ stderr**2),
            real[LDS],
        ),
    }


def spread_over_scores(scores: Float[np.ndarray, " K"], count: int) -> Int64[np.ndarray, " c"]:
    """Clusters at evenly spaced ranks of their scores, the extremes included; all if count >= K."""
    order = np.argsort(scores, kind="stable")
    places = np.linspace(0, len(scores) - 1, min(count, len(scores)))
    return order[np.unique(np.round(places).astype(np.int64))]


def real_effects(
    lent: Lent[Data],
    retraining: Retraining,
    factors: Mapping[str, Float[np.ndarray, "c K"]],
    seeds: Sequence[int],
) -> dict[str, Float[np.ndarray, "s c"]]:
    """Change of the validation loss in percent of it, seed by seed.

    Args:
        lent: what is trained on, and where.
        retraining: the reference training.
        factors: by which the weights of the clusters' pairs are multiplied, check by check.
        seeds: of the trainings.
    """
    n_clusters = int(lent.context.clusters.max()) + 1
    everything = np.concatenate([np.ones((1, n_clusters)), *factors.values()])
    losses = retraining.losses(
        lent,
        np.tile(everything, (len(seeds), 1)),
        [seed for seed in seeds for _ in everything],
        "validating influence",
    )
    # Every validation pair counts as often as batches hold it.
    batches = lent.context.validation_batches
    held = np.bincount(batches.reshape(-1), minlength=losses.shape[1])
    means = losses[:, held > 0] @ held[held > 0] / held.sum()
    by_seed = means.reshape(len(seeds), len(everything))
    change = 100 * (by_seed[:, 1:] / by_seed[:, :1] - 1)
    cuts = np.cumsum([len(many) for many in factors.values()])[:-1]
    return dict(zip(factors, np.split(change, cuts, axis=1), strict=True))


def gradient_similarity(
    influence: InfluenceResult,
    pairs: TrainingPairs,
    training: TrainingConfig,
    *,
    rng: np.random.Generator,
) -> Float[np.ndarray, " n"]:
    """Influence with the identity in the Hessian's place, of every pair."""
    reference = influence.reference(pairs.tensors.device)
    n = pairs.tensors.n_pairs
    return batch_loss_influences(
        reference,
        pairs.tensors,
        loss_gradient(reference, pairs.validation, influence.validation_batches),
        np.arange(n),
        np.ones(n),
        batch_size=training.batch_size,
        rng=rng,
    )


def compared_with_real(effects: Effects) -> dict[str, Any]:
    """Correlations and slope of real on predicted effects for every predictor, and the ceiling."""
    real = effects.real.mean(axis=0)
    result: dict[str, Any] = {
        name: correlations(predicted, real) for name, predicted in effects.predicted.items()
    }
    result["ceiling"], result["seed_agreement"] = noise_ceiling(effects.real)
    return result


def correlations(
    predicted: Float[np.ndarray, " c"], real: Float[np.ndarray, " c"]
) -> dict[str, float | None]:
    """Spearman, Pearson, and the slope of the least-squares line of real on predicted.

    All None where fewer than three points, or no spread, say nothing.
    """
    if len(real) < 3 or np.ptp(predicted) == 0 or np.ptp(real) == 0:
        return {"spearman": None, "pearson": None, "slope": None}
    return {
        "spearman": float(spearmanr(predicted, real).statistic),
        "pearson": float(pearsonr(predicted, real).statistic),
        "slope": float(np.polyfit(predicted, real, 1)[0]),
    }


def noise_ceiling(real: Float[np.ndarray, "s c"]) -> tuple[float | None, float | None]:
    """The rank correlation that a perfect prediction could reach with the mean over seeds.

    With r the mean rank correlation between retrainings of two seeds, the mean over s of them is
    reliable to R = s r / (1 + (s - 1) r) (Spearman-Brown), and the truth correlates with it by
    sqrt(R).

    Returns:
        The ceiling and r; both None with a single seed or fewer than three points.
    """
    s, c = real.shape
    if s < 2 or c < 3 or (np.ptp(real, axis=1) == 0).any():
        return None, None
    pairs = [(i, j) for i in range(s) for j in range(i)]
    r = float(np.mean([spearmanr(real[i], real[j]).statistic for i, j in pairs]))
    reliability = s * r / (1 + (s - 1) * r) if r > 0 else 0.0
    return float(np.sqrt(reliability)), r


def _points(effects: Effects) -> list[dict[str, float]]:
    s = len(effects.real)
    spread = (
        effects.real.std(axis=0, ddof=1) / np.sqrt(s) if s > 1 else np.zeros_like(effects.stderr)
    )
    columns = {
        "predicted": effects.predicted[ESTIMATOR],
        "predicted_stderr": effects.stderr,
        "real": effects.real.mean(axis=0),
        "real_stderr": spread,
        **{name: p for name, p in effects.predicted.items() if name != ESTIMATOR},
    }
    return [
        {name: float(values[i]) for name, values in columns.items()}
        for i in range(len(effects.stderr))
    ]

"""The influence of clusters by each estimator, and their scores with a standard error.

`influence.py` tells what the estimators compute and calls them one after another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from artifacts.settings import InputError, Settings, setting
from attribution.curvature import CURVATURES, Objective
from attribution.derivatives import (
    batch_loss_influences,
    loss_gradient,
    unflatten,
)
from attribution.finite_removal import (
    RemovalEffects,
    factors_without_folds,
    removal_corrections,
    removal_effects,
)
from attribution.inverse import HESSIANS, InverseProduct, inverse_product
from attribution.metagradient import pair_weight_gradients
from attribution.newton_step import newton_step_effects
from attribution.retraining import (
    Data,
    Retraining,
    RetrainingJob,
    start_together,
    validation_losses,
)
from attribution.sampling import representation_weights
from engine.room import Made
from engine.shards import ShardFiles, Summary
from learner.lending import Lent
from learner.model import Parameters, from_vector, mean_loss, to_vector
from learner.pairs import nearest_clusters
from learner.side_by_side import train_in_groups
from learner.stacked import ADAM_BETAS, TrainingState
from learner.training import Training, train_until_best

logger = logging.getLogger(__name__)
METAGRADIENT, STEP, FIRST_ORDER = ESTIMATORS = ("metagradient", "step", "first_order")
HEEDED_BY = {  # settings that only some estimators heed
    **dict.fromkeys(("removal_folds", "influence_checkpoints"), (METAGRADIENT,)),
    **dict.fromkeys(("hessian", "curvature", "rank", "damping"), (STEP, FIRST_ORDER)),
    "samples_per_cluster": (FIRST_ORDER,),
}
REFERENCE_REPORTS = 40  # early stopping looks at the validation loss this often
PATIENCE = 10  # reports without a lower validation loss after which the search ends
MOST_AT_ONCE = 16  # trainings side by side on a GPU, which for the way back keep many states each
SWEEP_STEPS = 5  # steps of training that take as long as one with the way back through it
VALIDATION_SHUFFLES = 4  # batch compositions that the validation loss is averaged over
DAMPING_MULTIPLE = 5.0
PRIOR_PAIRS = 4.0  # what the variance pooled over clusters counts beside a cluster's own


@dataclass(frozen=True)
class InfluenceConfig(Settings):
    """How influence is estimated."""

    estimator: str = setting(METAGRADIENT, "how cluster scores are estimated", choices=ESTIMATORS)
    removal_folds: int = setting(
        5,
        "retrainings without a fold of the clusters, for the finite-removal correction of "
        "`metagradient`; 0 = none",
        at_least=0,
    )
    influence_checkpoints: int = setting(
        6,
        "points in the second half of the reference training whose validation losses "
        "`metagradient` averages; 1 = the final loss alone",
        at_least=1,
    )
    influence_seeds: int = setting(
        1, "independently trained reference models that scores are averaged over", at_least=1
    )
    max_reference_steps: int = setting(
        1600,
        "most optimiser steps of a reference training, where `--num_epochs` would take more: its "
        "learning rates fall to zero within them",
        at_least=1,
    )
    hessian: str = setting(
        "lanczos",
        "inverse Hessian of the estimators `step` and `first_order`",
        choices=HESSIANS,
    )
    curvature: str = setting(
        "gauss_newton", "the matrix that is inverted, or the exact Hessian", choices=CURVATURES
    )
    rank: int = setting(10, "rank of the low-rank Hessian approximation", at_least=1)
    damping: float | None = setting(
        None,
        "added to the Hessian's eigenvalues; by default from the reference training: 5 times a "
        "typical gradient over the sum of the learning rates",
        above=0,
        type=float,
    )
    samples_per_cluster: int = setting(
        5, "pairs of each cluster whose influence `first_order` evaluates", at_least=1
    )

    def __post_init__(self) -> None:
        """Check the fields, and that a fold is not everything.

        Raises:
            InputError: a wrong value.
        """
        super().__post_init__()
        if self.removal_folds == 1:
            raise InputError("--removal_folds must be 0 or at least 2; one fold is all clusters")


class Estimate(NamedTuple):
    """What one reference model says. Influences are in nats."""

    pair_influence: Float[np.ndarray, " m"]  # u_i of the evaluated pairs
    cluster_effects: Float[np.ndarray, " K"] | None  # of the step estimator
    removal: RemovalEffects | None
    curvature: InverseProduct | None
    reference: Parameters
    validation_loss: float


def early_stop(lent: Lent[Data], retraining: Retraining, seed: int) -> int:
    """After how many steps of the schedule the validation loss is lowest.

    A model that has memorised its pairs, wrong ones too, has no gradient left to tell them apart
    by. One shuffling of the validation pairs is enough to see it.
    """
    (found,) = lent.run("early stopping", _find_stop, [RetrainingJob(retraining, seed)], unit="run")
    return int(found.summary["steps"])


def _find_stop(job: RetrainingJob, files: ShardFiles, data: Data) -> Summary:
    first_shuffle = data.validation_batches[: len(data.validation_batches) // VALIDATION_SHUFFLES]
    run = job.retraining.start(data, job.seed)
    train_until_best(
        run, (data.validation, first_shuffle), n_reports=REFERENCE_REPORTS, patience=PATIENCE
    )
    return {"steps": run.n_done}


def metagradients(
    lent: Lent[Data],
    config: InfluenceConfig,
    retraining: Retraining,
    seeds: Sequence[int],
    *,
    rng: np.random.Generator,
) -> tuple[Int64[np.ndarray, " m"], list[Estimate]]:
    """Ask every reference model, and retrain it without folds of clusters, all side by side.

    Returns:
        The pairs that a batch of one of the models' trainings held: no other is evaluated. And
        what each model says.
    """
    data = lent.context
    n_clusters = int(data.clusters.max()) + 1
    n_folds = _n_folds(config.removal_folds, n_clusters)
    # The folds of each seed; none without the correction.
    dealt = [rng.permutation(np.arange(n_clusters) % n_folds) for _ in seeds if n_folds > 1]
    swept, left_out = _trained(lent, config, retraining, seeds, dealt)
    nearest = nearest_clusters(data.pairs, data.clusters, data.validation)
    removals: list[RemovalEffects | None] = [
        removal_effects(s.losses, losses, folds, nearest)
        for s, losses, folds in zip(swept, left_out, dealt, strict=False)
    ]
    evaluated = np.flatnonzero(np.any([s.seen for s in swept], axis=0))
    return evaluated, [
        Estimate(
            # Of the pairs that were seen: these stand for the others too.
            -len(evaluated) * s.by_weight[evaluated],
            None,
            removal,
            None,
            s.reference,
            mean_loss(s.reference, data.validation, data.validation_batches),
        )
        for s, removal in zip(swept, removals or [None] * len(swept), strict=True)
    ]


def _n_folds(asked: int, n_clusters: int) -> int:
    """How many folds the clusters are dealt into, none of them empty; fewer than asked is said."""
    if asked <= n_clusters:
        return asked
    if n_clusters == 1:
        why = "there is one cluster, and a fold of it would be all pairs, so none is left out"
    else:
        why = f"there are {n_clusters:,} clusters, so {n_clusters:,} folds of one each are used"
    logger.info("--removal_folds %s: %s", f"{asked:,}", why)
    return n_clusters


class Swept(NamedTuple):
    """What the reverse sweep over one reference training says."""

    by_weight: Float[np.ndarray, " n"]  # dL_val / dw_i
    seen: Bool[np.ndarray, " n"]  # which pairs were in a batch
    reference: Parameters
    losses: Float[np.ndarray, " m"]  # of the validation pairs; NaN where no batch holds one


class _ReferenceJob(NamedTuple):
    """A reference training that is gone back through, or one without a fold of the clusters."""

    training: RetrainingJob
    checkpoints: list[int] | None  # of the sweep


def _trained(
    lent: Lent[Data],
    config: InfluenceConfig,
    retraining: Retraining,
    seeds: Sequence[int],
    dealt: Sequence[Int64[np.ndarray, " K"]],
) -> tuple[list[Swept], list[Float[np.ndarray, "n_folds m"]]]:
    """All reference models, and the validation losses of each without its folds."""
    stop, data = retraining.stop_after, lent.context
    checkpoints = _checkpoints(stop, config.influence_checkpoints)
    sweeps = [_ReferenceJob(RetrainingJob(retraining, seed), checkpoints) for seed in seeds]
    without = [
        _ReferenceJob(RetrainingJob(retraining, seed, factors), None)
        for folds, seed in zip(dealt, seeds, strict=False)
        for factors in factors_without_folds(folds)
    ]
    # The longest first, so that no core is idle while another finishes.
    made = train_in_groups(
        lent,
        "reference trainings",
        _train_references,
        [*sweeps, *without],
        unit="step",
        sizes=[SWEEP_STEPS * stop] * len(sweeps) + [stop] * len(without),
        alike=lambda job: job.checkpoints is None,
        at_once=MOST_AT_ONCE,
    )
    swept = [_read_sweep(one, data) for one in made[: len(sweeps)]]
    losses = [np.array(one.load(".losses.npy")) for one in made[len(sweeps) :]]
    n_folds = len(losses) // max(len(dealt), 1)
    return swept, [np.stack(losses[i * n_folds : (i + 1) * n_folds]) for i in range(len(dealt))]


def _train_references(
    jobs: Sequence[_ReferenceJob], files: Sequence[ShardFiles], data: Data
) -> list[Summary]:
    """Train reference models, and go back through their trainings where that is asked for."""
    stop, checkpoints = jobs[0].training.retraining.stop_after, jobs[0].checkpoints
    runs = start_together([job.training for job in jobs], data)
    if checkpoints is None:
        runs.advance_to(stop)
    else:
        by_weight = pair_weight_gradients(
            runs,
            stop,
            lambda p: unflatten(loss_gradient(p, data.validation, data.validation_batches), p),
            checkpoints=checkpoints,
        )
        for r, own in enumerate(files):
            own.write_npy(".by_weight.npy", by_weight[r])
            own.write_npy(".seen.npy", runs.seen(r))
            own.write_npy(".parameters.npy", to_vector(runs.parameters_of(r)))
    for r, own in enumerate(files):
        own.write_npy(".losses.npy", validation_losses(runs.parameters_of(r), data))
    return [{} for _ in jobs]


def _read_sweep(made: Made, data: Data) -> Swept:
    vector = made.load(".parameters.npy")
    return Swept(
        np.array(made.load(".by_weight.npy")),
        np.array(made.load(".seen.npy")),
        from_vector(vector, data.pairs.widths, data.pairs.device),
        np.array(made.load(".losses.npy")),
    )


def _checkpoints(stop: int, count: int) -> list[int]:
    """Evenly spaced steps in the second half of a training of `stop` steps, the last included."""
    return sorted({round(stop * (1 - k / (2 * count))) for k in range(count)} - {0})


def trained_references(
    lent: Lent[Data], retraining: Retraining, seeds: Sequence[int]
) -> Iterator[Training]:
    """The reference models' trainings, one after the other, as early stopping leaves them."""
    jobs, data = [RetrainingJob(retraining, seed) for seed in seeds], lent.context
    trained = train_in_groups(lent, "reference trainings", _write_states, jobs, unit="training")
    for job, made in zip(jobs, trained, strict=True):
        run, device = job.retraining.start(data, job.seed), data.pairs.device
        vectors = made.load(".state.npy")
        parts = (from_vector(vector, data.pairs.widths, device) for vector in vectors)
        run.restore(TrainingState(*parts), retraining.stop_after)
        yield run


def _write_states(
    jobs: Sequence[RetrainingJob], files: Sequence[ShardFiles], data: Data
) -> list[Summary]:
    runs = start_together(jobs, data)
    runs.advance_to(jobs[0].retraining.stop_after)
    state = runs.state()
    for r, own in enumerate(files):
        parts = [to_vector(Parameters(*(p[r] for p in part))) for part in state]
        own.write_npy(".state.npy", np.stack(parts))
    return [{} for _ in jobs]


def by_curvature(
    data: Data,
    evaluated: Int64[np.ndarray, " m"],
    config: InfluenceConfig,
    run: Training,
    *,
    rng: np.random.Generator,
) -> Estimate:
    """Ask one reference model by the inverse of its curvature."""
    training, n = run.config, len(data.weights)
    validation = (data.validation, data.validation_batches)
    objective = Objective(
        data.pairs,
        run.parameters,
        np.arange(n),
        data.weights,
        training.batch_size,
        training.weight_decay,
        rng=rng,
        curvature=config.curvature,
    )
    curvature = inverse_product(
        objective,
        loss_gradient(run.parameters, *validation),
        config.hessian,
        rank=config.rank,
        damping=config.damping or training_damping(run),
        rng=rng,
    )
    base_weights = data.weights[evaluated]
    if len(evaluated) < n:
        base_weights = base_weights * representation_weights(data.clusters, evaluated)
    influence = batch_loss_influences(
        run.parameters,
        data.pairs,
        curvature.direction,
        evaluated,
        base_weights,
        batch_size=training.batch_size,
        rng=rng,
    )
    effects = None
    if config.estimator == STEP:
        effects = newton_step_effects(
            run.parameters,
            data.pairs,
            data.weights,
            data.clusters,
            objective.batches,
            curvature.solve,
            validation,
        )
    loss = mean_loss(run.parameters, *validation)
    return Estimate(influence, effects, None, curvature, run.parameters, loss)


def training_damping(run: Training) -> float:
    """The damping that a training run of this length amounts to.

    Gradient descent for a time t = sum of the learning rates inverts H + I / t, roughly: what it
    has had no time to learn counts as flat. Adam divides the gradient by its typical size s, so
    that its t is shorter by s; the multiple is fitted to retraining (benchmarks/influence.py).
    """
    squared = torch.cat([v.reshape(-1) for v in run.state().second_moment])
    corrected = squared.mean() / (1 - ADAM_BETAS[1] ** run.n_done)
    typical = float(corrected.sqrt())
    return DAMPING_MULTIPLE * typical / float(run.learning_rates[: run.n_done].sum())


def curvature_quality(config: InfluenceConfig, curvature: InverseProduct | None) -> dict[str, Any]:
    """How well the inverse of the curvature stands for it; empty where none was needed."""
    if curvature is None:
        return {}
    return {
        "hessian": config.hessian,
        "curvature": config.curvature,
        "damping": curvature.damping,
        "trace": curvature.trace,
        "trace_stderr": curvature.trace_stderr,
        "trace_share": curvature.trace_share,
        "cosine_to_exact_solution": curvature.cosine,
    }


class Scores(NamedTuple):
    """Cluster scores as shares of the validation loss."""

    scores: Float[np.ndarray, " K"]
    stderr: Float[np.ndarray, " K"]
    first_order: Float[np.ndarray, "S K"]
    first_order_stderr: Float[np.ndarray, " K"]
    corrections: Float[np.ndarray, " K"]


def combine_estimates(
    estimates: Sequence[Estimate],
    clusters: Int64[np.ndarray, " n"],
    evaluated: Int64[np.ndarray, " m"],
    loss: float,
) -> Scores:
    """Scores and standard errors from the sampled pairs, the reference models and the folds."""
    sizes, of_pair = np.bincount(clusters), clusters[evaluated]
    per_seed = np.array(
        [
            cluster_scores(e.pair_influence / loss, of_pair, sizes).scores
            if e.cluster_effects is None
            else e.cluster_effects / loss
            for e in estimates
        ]
    )
    sampled = cluster_scores(
        np.mean([e.pair_influence for e in estimates], axis=0) / loss, of_pair, sizes
    )
    variance = sampled.stderr**2
    if len(estimates) > 1:
        between = per_seed.var(axis=0, ddof=1)
        freedom = len(estimates) - 1
        shrunk = (freedom * between + PRIOR_PAIRS * between.mean()) / (freedom + PRIOR_PAIRS)
        variance += shrunk / len(estimates)
    else:
        # One model's noise is independent from pair to pair, so that it is part of their spread.
        variance += (sizes / sizes.sum()) ** 2 * sampled.within_variance / sizes
    scores = per_seed.mean(axis=0)
    first_order_stderr = np.sqrt(variance)
    corrections = np.zeros_like(scores)
    removals = [e.removal for e in estimates if e.removal is not None]
    if removals:
        effects, error = removal_corrections(removals, sizes)
        corrections = effects / loss
        variance = variance + (error / loss) ** 2
    return Scores(
        scores + corrections, np.sqrt(variance), per_seed, first_order_stderr, corrections
    )


class SampledScores(NamedTuple):
    """First-order scores from sampled pairs, as shares of the validation loss."""

    scores: Float[np.ndarray, " K"]
    stderr: Float[np.ndarray, " K"]  # of sampling alone
    within_variance: Float[np.ndarray, " K"]  # of the pairs of each cluster, shrunk


def cluster_scores(
    relative_influence: Float[np.ndarray, " m"],
    clusters: Int64[np.ndarray, " m"],
    sizes: Int64[np.ndarray, " K"],
) -> SampledScores:
    """Scores and standard errors of all clusters from their sampled pairs.

    The variance within a cluster is shrunk towards the one pooled over clusters, which counts as
    much as four further pairs; a cluster evaluated whole has no sampling error. Of a cluster
    without an evaluated pair nothing is known but what pairs are like: its score is that of the
    mean pair, its error the spread of all.

    Args:
        relative_influence: u_i / L_val of the evaluated pairs.
        clusters: the cluster of each evaluated pair.
        sizes: pairs of each cluster in the training set.
    """
    counts = np.bincount(clusters, minlength=len(sizes))
    known = counts > 0
    sums = np.bincount(clusters, relative_influence, minlength=len(sizes))
    means = np.where(known, sums / np.maximum(counts, 1), relative_influence.mean())
    squares = (relative_influence - means[clusters]) ** 2
    within = np.bincount(clusters, squares, minlength=len(sizes))
    freedom = np.maximum(counts - 1, 0)
    if freedom.sum() > 0:
        pooled = within.sum() / freedom.sum()
    else:  # one pair a cluster: the spread over clusters bounds the one within them
        pooled = relative_influence.var(ddof=1) if len(relative_influence) > 1 else 0.0
    variance = (within + PRIOR_PAIRS * pooled) / (freedom + PRIOR_PAIRS)
    unseen = 1 - counts / sizes
    share = sizes / sizes.sum()
    of_mean = np.where(
        known, variance / np.maximum(counts, 1) * unseen, relative_influence.var() + pooled
    )
    return SampledScores(share * means, share * np.sqrt(of_mean), variance)

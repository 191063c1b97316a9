"""Stage 2: how much each cluster, cell and pair helps or hurts the validation loss.

Influence functions (Koh & Liang 2017, arXiv 1703.04730) of a contrastive loss in which a pair
acts as a positive and as a negative, so that a pair's influence is a mixed derivative of the
weighted loss and not the gradient of the pair's own loss. With u_i / n the first-order change of
the validation loss when pair i is left out,

    I_k = (1/n) sum_{i in C_k} u_i / L_val  +  e_k / L_val      relative change without cluster k

and u_i from one of three estimators:

    metagradient   u_i = -n dL_val / dw_i at w = 1, back through the whole training run: exact
    first_order    u_i = n v . d2L / dtheta dw_i,   v = (H + damping I)^-1 grad L_val
    step           the damped Newton step that leaves the cluster out, the true loss taken there

e_k is the finite-removal correction: what leaving a cluster out for good costs beyond the first
order, from retraining without a few folds of clusters.

For pairs, influence is evaluated for a few on models that have not trained on them
(`attribution.cross_fitting`), explained by what is known of every pair and pooled over topics
(`attribution.additive_model`), and so inferred for the rest. A cell whose sign is undecided
although its pairs differ is refined.

**Sign: positive means helpful, leaving it out raises the validation loss.**
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from artifacts.settings import InputError
from attribution.additive_model import own_share, pool_influence
from attribution.agreement import refine_agreement
from attribution.cluster_scores import (
    FIRST_ORDER,
    METAGRADIENT,
    VALIDATION_SHUFFLES,
    Data,
    InfluenceConfig,
    by_curvature,
    combine_estimates,
    curvature_quality,
    early_stop,
    metagradients,
)
from attribution.cross_fitting import cross_fit, held_out_influences
from attribution.derivatives import sample_pairs
from attribution.guard import guard_influence
from attribution.pair_scores import (
    MIN_EVALUATED,
    CellInfluenceConfig,
    KnownPairs,
    agreement_of_repeats,
    quantities,
    refine_cells,
    relevance_part,
    spread_evenly,
)
from attribution.results import InfluenceResult, PairInfluence
from attribution.retraining import Retraining
from learner.model import shuffled_batches
from learner.pairs import PairTensors
from learner.training import TrainingConfig, steps_per_epoch


def estimate_influence(
    pairs: PairTensors,
    validation: PairTensors,
    cluster_assignments: Int64[np.ndarray, " n"],
    cluster_terms: Sequence[Sequence[str]],
    config: InfluenceConfig,
    training: TrainingConfig,
    *,
    rng: np.random.Generator,
) -> InfluenceResult:
    """Train the reference models, then score every cluster.

    Args:
        pairs: n training pairs, scaled features.
        validation: held-out pairs, scaled features.
        cluster_assignments: cluster of each training pair; every cluster has a pair.
        cluster_terms: K lists of words, for the readable result.
        config: settings of the estimate.
        training: settings of the reference model, and the batch size of the objective.
        rng: the stage's generator.
    """
    n, b, clusters = len(cluster_assignments), training.batch_size, cluster_assignments
    data = Data(
        pairs,
        clusters,
        validation,
        np.concatenate(
            [shuffled_batches(len(validation.images), b, rng) for _ in range(VALIDATION_SHUFFLES)]
        ),
    )
    seeds = rng.integers(2**31, size=config.influence_seeds)
    if config.estimator == FIRST_ORDER:
        evaluated = sample_pairs(clusters, config.samples_per_cluster, rng=rng)
    else:
        evaluated = np.arange(n)
    schedule = min(training.num_epochs * steps_per_epoch(n, b), config.max_reference_steps)
    stop = early_stop(data, training, schedule, int(seeds[0]))
    retraining = Retraining(pairs, training, schedule, stop, validation, data.validation_batches)
    if config.estimator == METAGRADIENT:
        estimates = metagradients(data, config, retraining, seeds.tolist(), rng=rng)
    else:
        estimates = [
            by_curvature(data, evaluated, config, retraining, seed, rng=rng)
            for seed in seeds.tolist()
        ]
    loss = float(np.mean([e.validation_loss for e in estimates]))
    scores = combine_estimates(estimates, clusters, evaluated, loss)
    influence = np.mean([e.pair_influence for e in estimates], axis=0)
    cluster_means = np.bincount(clusters[evaluated], influence) / np.bincount(clusters[evaluated])

    pair_influence = cluster_means[clusters]
    pair_influence[evaluated] = influence
    is_evaluated = np.zeros(n, dtype=bool)
    is_evaluated[evaluated] = True
    first = estimates[0]
    curvature = first.curvature
    return InfluenceResult(
        influence_scores=scores.scores,
        influence_stderr=scores.stderr,
        first_order_scores=scores.first_order,
        first_order_stderr=scores.first_order_stderr,
        removal_corrections=scores.corrections,
        first_order_influence=pair_influence,
        first_order_evaluated=is_evaluated,
        eigenvalues=curvature.eigenvalues if curvature else np.zeros(0),
        eigenvalue_residuals=curvature.residuals if curvature else np.zeros(0),
        reference_image_map=first.reference.image_map.cpu().numpy(),
        reference_text_map=first.reference.text_map.cpu().numpy(),
        reference_log_scale=first.reference.log_scale.cpu().numpy(),
        reference_seeds=seeds.astype(np.int64),
        reference_steps=stop,
        reference_schedule=schedule,
        validation_batches=data.validation_batches,
        validation_loss=loss,
        estimator=config.estimator,
        curvature_quality=curvature_quality(config, curvature),
        clusters=_readable_scores(
            scores.scores, scores.stderr, clusters, is_evaluated, cluster_terms
        ),
    )


def _readable_scores(
    scores: np.ndarray,
    stderr: np.ndarray,
    assignments: np.ndarray,
    is_evaluated: np.ndarray,
    terms: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """One entry a cluster, most harmful first; influence in percent of the validation loss."""
    sizes = np.bincount(assignments)
    n_evaluated = np.bincount(assignments, weights=is_evaluated, minlength=len(sizes))
    return [
        {
            "cluster": int(k),
            "terms": list(terms[k]),
            "size": int(sizes[k]),
            "pairs_evaluated": int(n_evaluated[k]),
            "influence_percent": round(100 * float(scores[k]), 5),
            "stderr_percent": round(100 * float(stderr[k]), 5),
            "meaning": "leaving it out "
            + ("raises" if scores[k] > 0 else "lowers")
            + f" the validation loss by {abs(100 * scores[k]):.3f} % "
            + f"(+/- {100 * stderr[k]:.3f})",
        }
        for k in np.argsort(scores, kind="stable")
    ]


def estimate_pair_influence(
    known: KnownPairs,
    validation: PairTensors,
    config: CellInfluenceConfig,
    training: TrainingConfig,
    *,
    max_steps: int,
    rng: np.random.Generator,
    kept: Bool[np.ndarray, " n"] | None = None,
    previous: PairInfluence | None = None,
) -> PairInfluence:
    """Evaluate the influence of a few pairs, infer that of the others, and settle the cells.

    Args:
        known: the training pairs.
        validation: held-out pairs, scaled features.
        config: settings of the estimate.
        training: settings of the models.
        max_steps: of the models' learning-rate schedule.
        rng: the stage's generator.
        kept: an earlier round's curated set, which the models are trained on; all by default.
        previous: that round's result, whose evaluated pairs are evaluated again.

    Raises:
        InputError: all pairs show one image.
    """
    n = len(known.clip_scores)
    if known.image_ids.min() == known.image_ids.max():
        raise InputError(
            "all training pairs show one image, so that no model can be asked about an image it "
            "has not seen; add data or raise --max_train_samples"
        )
    allowed = max(int(config.influence_budget * n + 1e-9), min(MIN_EVALUATED, n))
    trained_on = np.ones(n, dtype=bool) if kept is None else kept
    cross = cross_fit(
        known.pairs,
        trained_on,
        known.image_ids,
        validation,
        training,
        n_repeats=config.held_out_repeats,
        max_steps=max_steps,
        stop_by=config.held_out_steps,
        rng=rng,
    )
    first, trust = known.trust.encoder_view, known.trust
    agreement = refine_agreement(
        *(first, cross.held_out_losses, known.pairs, known.image_ids, validation),
        others=trust.strangers,
        rng=rng,
        encoder_alone=config.encoder_agreement_only,
    )
    known_quantities = [agreement, first.own, *quantities(known, cross, trained_on, rng)]
    topics = np.zeros(n, dtype=np.int64) if config.ignore_topics else known.cluster_assignments

    if previous is not None:
        index = np.flatnonzero(previous.pair_influence_evaluated)
    else:
        index = spread_evenly(known.clip_scores, allowed, rng)
    per_repeat = held_out_influences(
        cross, known.pairs, index, np.ones(len(index)), batch_size=training.batch_size, rng=rng
    )
    pooled = pool_influence(per_repeat.mean(axis=0), index, known_quantities, topics)

    influence = pooled.predicted.copy()
    share = own_share(per_repeat, pooled.predicted[index])
    influence[index] += share * (per_repeat.mean(axis=0) - pooled.predicted[index])
    evaluated = np.zeros(n, dtype=bool)
    evaluated[index] = True
    guard = guard_influence(influence, agreement, trust.wrong_share)
    weight = guard.weight if pooled.explained > 0 else 0.0  # see `PairInfluence.counted`
    cells = known.cell_assignments
    if not config.keep_cells_whole:
        cells = refine_cells(cells, influence, pooled)
    n_cells = int(cells.max()) + 1
    sizes = np.bincount(cells, minlength=n_cells)
    members = np.split(np.argsort(cells, kind="stable"), np.cumsum(sizes)[:-1])
    return PairInfluence(
        pair_influence=influence,
        pair_influence_stderr=pooled.stderr,
        pair_influence_evaluated=evaluated,
        held_out_losses=cross.held_out_losses,
        agreement=agreement,
        cell_assignments=cells,
        cell_influence=np.bincount(cells, influence) / sizes,
        cell_influence_stderr=np.array([pooled.mean_stderr(rows) for rows in members]),
        validation_loss=cross.validation_loss,
        influence_weight=weight,
        relevance_part=guard.weight * relevance_part(trust, agreement),
        quality={
            "pairs_evaluated": len(index),
            "explained": round(pooled.explained, 4),
            "own_share": round(share, 4),
            "repeats_agree": agreement_of_repeats(per_repeat),
            "held_out_models": 2 * config.held_out_repeats,
            "steps": cross.n_steps,
            "validation_loss": cross.validation_loss,
            "cells": n_cells,
            "influence_weight": round(weight, 4),
            "agreement_correlation": round(guard.correlation, 4),
            "guard": guard.reason if pooled.explained > 0 else "",
            "relevance_auc": round(trust.relevance_auc, 4),
            "relevance_weight": round(guard.weight * trust.relevance_weight, 4),
        },
    )

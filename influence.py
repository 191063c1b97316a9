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

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64

from artifacts.settings import InputError
from attribution.agreement import refine_agreement
from attribution.cluster_scores import (
    FIRST_ORDER,
    METAGRADIENT,
    VALIDATION_SHUFFLES,
    Estimate,
    InfluenceConfig,
    by_curvature,
    combine_estimates,
    curvature_quality,
    early_stop,
    metagradients,
    trained_references,
)
from attribution.cross_fitting import CrossFit, cross_fit, held_out_influences
from attribution.fault_share import WrongShare, both_shares, wrong_share
from attribution.group_influence import gain_of_adding, told_of_groups, worst_group
from attribution.guard import guard_influence
from attribution.inferred import ExplainedBy, Inferred, infer
from attribution.pair_scores import (
    MOST_EVALUATED,
    PairInfluenceConfig,
    estimate_quality,
    n_evaluated,
    quantities,
    refine_cells,
    relevance_part,
    spread_evenly,
    worth,
)
from attribution.results import InfluenceResult, PairInfluence
from attribution.retraining import Data, Retraining
from attribution.sampling import TrainedPairs, sample_pairs, trained_pairs
from attribution.topic_faults import looks_right
from attribution.trust import PairsInSpace, PairTrust, TrustConfig, judge_pairs
from curation import CurationResult
from embedding import EmbeddingResult
from engine.room import StageRoom
from learner.batches import steps_per_epoch
from learner.config import TrainingConfig
from learner.lending import lend
from learner.model import shuffled_batches
from learner.pairs import PairFeatures, PairTensors, TrainingPairs
from learner.sides import sides_of

logger = logging.getLogger(__name__)


def judge_held_out(
    embedding: EmbeddingResult,
    pairs: TrainingPairs,
    config: TrustConfig,
    near_copy_similarity: float,
    *,
    rng: np.random.Generator,
) -> PairTrust:
    """Which held-out pairs can be trusted to say what helps, and which test pairs to measure.

    Args:
        embedding: pairs of all splits.
        pairs: the training pairs, and all held-out ones.
        config: whether these are taken at their word.
        near_copy_similarity: least centred cosine of near copies, of which the best is asked.
        rng: the stage's generator.
    """
    device = pairs.tensors.device
    result = judge_pairs(
        *_pairs_in_space(embedding, pairs),
        config,
        device=device,
        near_copy_similarity=near_copy_similarity,
        rng=rng,
    )
    logger.info(
        "%s of %s validation pairs are asked what helps",
        f"{len(result.asked):,}",
        f"{len(result.validation_trusted):,}",
    )
    return result


def _pairs_in_space(
    embedding: EmbeddingResult, pairs: TrainingPairs
) -> tuple[PairsInSpace, PairsInSpace, PairsInSpace]:
    """Training, validation and test pairs with their embeddings, one row a caption."""
    e, owner = embedding, embedding.test_caption_image

    def of(
        split: str,
        tensors: PairFeatures,
        image_embeddings: np.ndarray | None,
        text_embeddings: np.ndarray | None,
    ) -> PairsInSpace:
        images, texts = sides_of(tensors)
        ids = pd.factorize(e.split_pairs(split)["image_sha256"])[0].astype(np.int64)
        return PairsInSpace(images, texts, image_embeddings, text_embeddings, ids)

    test = pairs.scaling.pairs(e.test_image_features, e.test_text_features, pairs.tensors.device)
    rows = torch.from_numpy(owner).to(test.images.device)
    return (
        of("train", pairs.tensors, e.image_embeddings, e.text_embeddings),
        of(
            *("validation", pairs.validation),
            *(e.validation_image_embeddings, e.validation_text_embeddings),
        ),
        of(
            *("test", PairTensors(test.images[rows], test.texts)),
            *(e.test_image_embeddings[owner], e.test_text_embeddings),
        ),
    )


def score_clusters(
    pairs: TrainingPairs,
    config: InfluenceConfig,
    training: TrainingConfig,
    room: StageRoom,
    *,
    rng: np.random.Generator,
) -> InfluenceResult:
    """Train the reference models, then score every cluster.

    Their batches grow with the number of pairs, so that the steps that are taken hold every pair,
    or a random sample of every cluster stands for the rest.

    Args:
        pairs: the training pairs, and the held-out ones that are asked.
        config: settings of the estimate.
        training: settings of the reference model, and the batch size of the objective.
        room: where the models are trained.
        rng: the stage's generator.
    """
    n_held_out, b = pairs.validation.n_pairs, training.batch_size
    shuffles = [shuffled_batches(n_held_out, b, rng) for _ in range(VALIDATION_SHUFFLES)]
    seeds = rng.integers(2**31, size=config.influence_seeds)
    trained = trained_pairs(pairs.cluster_assignments, b, config.max_reference_steps, rng=rng)
    data = Data(
        *trained.among(pairs.tensors, pairs.cluster_assignments),
        pairs.validation,
        np.concatenate(shuffles),
        trained.weights,
    )
    n = len(data.clusters)
    evaluated = np.arange(n)
    if config.estimator == FIRST_ORDER:
        evaluated = sample_pairs(data.clusters, config.samples_per_cluster, rng=rng)
    training = replace(training, batch_size=trained.batch_size)
    schedule = min(
        training.num_epochs * steps_per_epoch(n, trained.batch_size), config.max_reference_steps
    )
    lent = lend(room, "pairs", data, pairs.tensors.device)
    whole = Retraining(training, schedule, schedule, carry_over=trained.grown)
    retraining = replace(whole, stop_after=early_stop(lent, whole, int(seeds[0])))
    if config.estimator == METAGRADIENT:
        evaluated, estimates = metagradients(lent, config, retraining, seeds.tolist(), rng=rng)
    else:
        estimates = [
            by_curvature(data, evaluated, config, run, rng=rng)
            for run in trained_references(lent, retraining, seeds.tolist())
        ]
    batches = data.validation_batches
    rows = evaluated if trained.rows is None else trained.rows[evaluated]
    result = _result(pairs, config, estimates, rows, retraining, seeds, batches, trained)
    logger.info("validation loss of the reference models %.4f", result.validation_loss)
    return result


def _result(
    pairs: TrainingPairs,
    config: InfluenceConfig,
    estimates: Sequence[Estimate],
    evaluated: Int64[np.ndarray, " m"],
    retraining: Retraining,
    seeds: Int64[np.ndarray, " s"],
    validation_batches: Int64[np.ndarray, "v b"],
    trained: TrainedPairs,
) -> InfluenceResult:
    """The estimates of all reference models together, with what they stand on."""
    clusters = pairs.cluster_assignments
    loss = float(np.mean([e.validation_loss for e in estimates]))
    scores = combine_estimates(estimates, clusters, evaluated, loss)
    first, curvature = estimates[0].reference, estimates[0].curvature
    is_evaluated = np.zeros(len(clusters), dtype=bool)
    is_evaluated[evaluated] = True
    _say_what_was_seen(trained, evaluated, retraining.stop_after, len(clusters))
    terms = [cluster["terms"] for cluster in pairs.clusters]
    return InfluenceResult(
        influence_scores=scores.scores,
        influence_stderr=scores.stderr,
        first_order_scores=scores.first_order,
        first_order_stderr=scores.first_order_stderr,
        removal_corrections=scores.corrections,
        first_order_influence=_of_every_pair(estimates, clusters, evaluated),
        first_order_evaluated=is_evaluated,
        eigenvalues=curvature.eigenvalues if curvature else np.zeros(0),
        eigenvalue_residuals=curvature.residuals if curvature else np.zeros(0),
        reference_image_map=first.image_map.cpu().numpy(),
        reference_text_map=first.text_map.cpu().numpy(),
        reference_log_scale=first.log_scale.cpu().numpy(),
        reference_seeds=seeds.astype(np.int64),
        reference_steps=retraining.stop_after,
        reference_schedule=retraining.n_steps,
        validation_batches=validation_batches,
        validation_loss=loss,
        estimator=config.estimator,
        curvature_quality=curvature_quality(config, curvature),
        clusters=_readable_scores(scores.scores, scores.stderr, clusters, is_evaluated, terms),
        reference_batch_size=trained.batch_size,
        reference_rows=trained.rows,
    )


def _say_what_was_seen(
    trained: TrainedPairs, evaluated: Int64[np.ndarray, " m"], n_steps: int, n: int
) -> None:
    """How many pairs the clusters' scores are taken from, where it is not as usual."""
    if trained.grown or len(evaluated) < n:
        logger.info(
            "clusters' influence from %s of %s pairs%s: %s of %d pairs a reference training",
            f"{len(evaluated):,}",
            f"{n:,}",
            "" if trained.rows is None else ", a random sample of every cluster",
            f"{n_steps:,} step{'' if n_steps == 1 else 's'}",
            trained.batch_size,
        )


def _of_every_pair(
    estimates: Sequence[Estimate],
    clusters: Int64[np.ndarray, " n"],
    evaluated: Int64[np.ndarray, " m"],
) -> Float[np.ndarray, " n"]:
    """The mean influence of every pair, that of its cluster where it was not evaluated.

    That of all where nothing of its cluster was.
    """
    influence = np.mean([e.pair_influence for e in estimates], axis=0)
    counts = np.bincount(clusters[evaluated], minlength=int(clusters.max()) + 1)
    sums = np.bincount(clusters[evaluated], influence, minlength=len(counts))
    means = np.where(counts > 0, sums / np.maximum(counts, 1), influence.mean())
    of_every_pair: np.ndarray = means[clusters]
    of_every_pair[evaluated] = influence
    return of_every_pair


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


def score_pairs_in_rounds(
    pairs: TrainingPairs,
    trust: PairTrust,
    config: PairInfluenceConfig,
    training: TrainingConfig,
    room: StageRoom,
    *,
    max_steps: int,
    curate: Callable[[PairInfluence], CurationResult],
    rng: np.random.Generator,
) -> PairInfluence:
    """The influence of pairs and cells, each round by models of what the round before kept.

    Args:
        pairs: the training pairs, and the held-out ones that are asked.
        trust: what is said of them before any influence is.
        config: settings of the estimate, among them the number of rounds.
        training: settings of the models.
        room: where they are trained.
        max_steps: of the models' learning-rate schedule.
        curate: what is kept by an estimate.
        rng: the stage's generator.
    """
    before: Round | None = None
    history: list[dict[str, Any]] = []
    for round_number in range(1, config.rounds + 1):
        result = score_pairs(
            *(pairs, trust, config, training, room.of(f"round {round_number}")),
            max_steps=max_steps,
            rng=rng,
            before=before,
        )
        now = curate(result).training_weights(len(pairs.indices)) > 0
        history.append(
            {
                "round": round_number,
                "validation_loss": round(result.validation_loss, 5),
                "kept": int(now.sum()),
                "kept_before_too": None if before is None else int((now & before.kept).sum()),
                "explained": result.quality["explained"],
            }
        )
        logger.info(
            "round %d: validation loss %.4f, %s pairs kept; the inference explains %.0f %%",
            round_number,
            result.validation_loss,
            f"{now.sum():,}",
            100 * float(result.quality["explained"]),
        )
        before = Round(now, result)
    assert before is not None, "there is at least one round"
    estimate = before.estimate
    return replace(estimate, quality={**estimate.quality, "rounds": history})


class Round(NamedTuple):
    """An earlier round of curation."""

    kept: Bool[np.ndarray, " n"]  # which pairs were curated, and the next models are trained on
    estimate: PairInfluence  # whose evaluated pairs are evaluated again


def score_pairs(
    pairs: TrainingPairs,
    trust: PairTrust,
    config: PairInfluenceConfig,
    training: TrainingConfig,
    room: StageRoom,
    *,
    max_steps: int,
    rng: np.random.Generator,
    before: Round | None = None,
) -> PairInfluence:
    """Evaluate the influence of a few pairs, infer that of the others, and settle the cells.

    Args:
        pairs: the training pairs, and the held-out ones that are asked.
        trust: what is said of them before any influence is.
        config: settings of the estimate.
        training: settings of the models.
        room: where they are trained.
        max_steps: of the models' learning-rate schedule.
        rng: the stage's generator.
        before: the round before; without one, the models are trained on all pairs.

    Raises:
        InputError: all pairs show one image.
    """
    trained_on = np.ones(len(pairs.indices), dtype=bool) if before is None else before.kept
    cross = _held_out_models(
        pairs, trained_on, config, training, room, max_steps=max_steps, rng=rng
    )
    agreement = refine_agreement(
        *(trust.encoder_view, cross.held_out_losses, pairs.tensors, pairs.image_ids),
        pairs.validation,
        others=trust.strangers,
        wrong_share=trust.wrong_share.share if trust.wrong_share else 0.0,
        rng=rng,
        encoder_alone=config.encoder_agreement_only,
    )
    first = trust.encoder_view.own
    known = [agreement.log_odds, first, *quantities(pairs, cross, trained_on, rng)]
    if before is not None:
        index = np.flatnonzero(before.estimate.pair_influence_evaluated)
    else:
        index = _few_pairs(pairs, config, rng)
    influences = held_out_influences(
        cross, pairs.tensors, index, np.ones(len(index)), batch_size=training.batch_size, rng=rng
    )
    topics = pairs.cluster_assignments
    if config.ignore_topics:
        topics = np.zeros_like(topics)
    by = ExplainedBy(index, known, topics)
    inferred = infer(influences, by)
    wrong = both_shares(
        wrong_share(*agreement, rng=rng) or trust.wrong_share, trust.wrong_share_by_rank
    )
    evaluated = np.isin(np.arange(len(topics)), index)
    result = _settled(pairs, trust, config, cross, agreement.log_odds, wrong, inferred, evaluated)
    return _with_groups(pairs, cross, result, by, config, training, rng=rng)


def _with_groups(
    pairs: TrainingPairs,
    cross: CrossFit,
    result: PairInfluence,
    by: ExplainedBy,
    config: PairInfluenceConfig,
    training: TrainingConfig,
    *,
    rng: np.random.Generator,
) -> PairInfluence:
    """The result with influence on the worst-served group, where groups are asked apart.

    What is found of the group beyond all counts for what it is known by, as influence does.
    """
    worst = worst_group(cross.groups)
    if worst is None:
        return result
    influences = held_out_influences(
        *(cross.beyond_all(worst), pairs.tensors, by.rows, np.ones(len(by.rows))),
        batch_size=training.batch_size,
        rng=rng,
    )
    beyond = infer(influences, by)
    on_group = result.pair_influence + beyond.influence
    weight = config.fairness * beyond.reliability.weight if beyond.pooled.explained > 0 else 0.0
    right = np.ones(len(on_group), dtype=bool) if result.unfaulty is None else result.unfaulty
    told = told_of_groups(
        *(cross.groups, worst, weight, beyond.reliability),
        gain_of_adding(on_group, right, pairs.groups),
    )
    logger.info("the worst-served group of the held-out pairs: %s", told["group"])
    if not weight:
        logger.warning(
            "--fairness %g has no effect: how pairs differ in what they do for %s could not be "
            "inferred",
            *(config.fairness, told["group"]),
        )
    return replace(result, group_influence=on_group, quality={**result.quality, "fairness": told})


def _settled(
    pairs: TrainingPairs,
    trust: PairTrust,
    config: PairInfluenceConfig,
    cross: CrossFit,
    agreement: Float[np.ndarray, " n"],
    wrong: WrongShare | None,
    inferred: Inferred,
    evaluated: Bool[np.ndarray, " n"],
) -> PairInfluence:
    """What was evaluated and what was inferred, put together; how much of it counts; the cells."""
    influence, pooled = inferred.influence, inferred.pooled
    guard = guard_influence(influence, agreement, wrong)
    cells = pairs.cell_assignments
    if not config.keep_cells_whole:
        cells = refine_cells(cells, influence, pooled)
    sizes = np.bincount(cells)
    known = worth(guard, inferred.reliability, pooled, wrong)
    return PairInfluence(
        pair_influence=influence,
        pair_influence_stderr=pooled.stderr,
        pair_influence_evaluated=evaluated,
        held_out_losses=cross.held_out_losses,
        agreement=agreement,
        cell_assignments=cells,
        cell_influence=np.bincount(cells, influence) / sizes,
        cell_influence_stderr=pooled.mean_stderrs(np.argsort(cells, kind="stable"), sizes),
        validation_loss=cross.validation_loss,
        influence_weight=known["influence_weight"],
        unfaulty=looks_right(agreement, pairs.cluster_assignments, wrong.share if wrong else 0.0),
        relevance_part=guard.weight * relevance_part(trust, agreement),
        quality={
            **estimate_quality(config, trust, cross, inferred.per_repeat, pooled),
            **{"own_share": round(inferred.own_share, 4), "cells": len(sizes)},
            "relevance_weight": round(guard.weight * trust.relevance_weight, 4),
            **known,
        },
    )


def _few_pairs(
    pairs: TrainingPairs, config: PairInfluenceConfig, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """The pairs whose own influence is evaluated."""
    allowed = n_evaluated(config, len(pairs.indices))
    if allowed == MOST_EVALUATED < config.influence_budget * len(pairs.indices):
        logger.info(
            "the influence of %s pairs is evaluated, not of %g %% of all: more would hardly help",
            f"{allowed:,}",
            100 * config.influence_budget,
        )
    return spread_evenly(pairs.clip_scores, allowed, rng)


def _held_out_models(
    pairs: TrainingPairs,
    trained_on: Bool[np.ndarray, " n"],
    config: PairInfluenceConfig,
    training: TrainingConfig,
    room: StageRoom,
    *,
    max_steps: int,
    rng: np.random.Generator,
) -> CrossFit:
    """Models that have not trained on the image of the pair that they are asked about.

    Raises:
        InputError: all pairs show one image.
    """
    if pairs.image_ids.min() == pairs.image_ids.max():
        raise InputError(
            "all training pairs show one image, so that no model can be asked about an image it "
            "has not seen; add data or raise --max_train_samples"
        )
    if config.fairness == 0:
        pairs = replace(pairs, validation_groups=None)  # not asked apart
    return cross_fit(
        *(pairs, trained_on, training, room),
        n_repeats=config.held_out_repeats,
        max_steps=max_steps,
        stop_by=config.held_out_steps,
        rng=rng,
    )

"""Influence of every pair and every cell, from a tenth of the pairs.

Influence is evaluated for a few pairs on models that have not trained on them
(cross_fitting.py), explained by what is known of every pair and pooled over topics (pooling.py),
and so inferred for the rest. A cell whose sign is undecided although its pairs differ is refined.

**Sign: positive means helpful, leaving it out raises the validation loss.**
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import norm

from agreement import neighbour_agreement
from cross_fitting import CrossFit, cross_fit, held_out_influences
from guard import guard_influence, log_probability_right
from model import PairTensors
from pooling import PooledInfluence, own_share, pool_influence
from refined_agreement import refine_agreement
from scores import standardised
from settings import InputError, Settings, setting
from training import TrainingConfig
from trust import PairTrust

SMALLEST_CELL = 4  # pairs that a refined cell keeps at least
UNDECIDED = 0.95  # one-sided confidence below which a cell's sign is undecided
MIN_EVALUATED = 20  # pairs from which the additive model can be fitted


@dataclass(frozen=True)
class CellInfluenceConfig(Settings):
    """How the influence of pairs and cells is estimated."""

    influence_budget: float = setting(
        0.1,
        "most pairs whose own influence is evaluated, as a share of the training pairs, but at "
        "least 20 pairs; that of the others is inferred",
        above=0,
        at_most=1,
    )
    held_out_repeats: int = setting(
        5,
        "times the pairs are dealt into halves, for models that have not trained on them",
        at_least=1,
    )
    held_out_steps: int = setting(
        600, "most optimiser steps of those models, which stop early anyway", at_least=1
    )
    ignore_topics: bool = setting(
        False, "infer influence from the kind of pair alone, the same in every topic"
    )
    encoder_agreement_only: bool = setting(
        False,
        "judge image-text agreement by the encoder alone, without a joint map fitted to the pairs "
        "that look right and to the held-out ones",
    )
    keep_cells_whole: bool = setting(False, "do not split cells whose sign is undecided")
    rounds: int = setting(
        1, "curation rounds: train on the curated set, re-estimate, curate again", at_least=1
    )


class KnownPairs(NamedTuple):
    """What is known of n training pairs before any influence is."""

    pairs: PairTensors
    image_embeddings: Float[np.ndarray, "n d"]
    text_embeddings: Float[np.ndarray, "n d"]
    clip_scores: Float[np.ndarray, " n"]
    image_ids: Int64[np.ndarray, " n"]  # 0 to the number of images - 1
    cluster_assignments: Int64[np.ndarray, " n"]
    cell_assignments: Int64[np.ndarray, " n"]
    better_copies: Int64[np.ndarray, " n"]
    groups: Mapping[str, Bool[np.ndarray, " n"]]  # demographic groups, by name
    trust: PairTrust


@dataclass(frozen=True)
class PairInfluence:
    """Influence of n pairs in C cells, in nats: leaving pair i out changes the loss by u_i / n."""

    pair_influence: Float[np.ndarray, " n"]
    pair_influence_stderr: Float[np.ndarray, " n"]
    pair_influence_evaluated: Bool[np.ndarray, " n"]  # or inferred
    held_out_losses: Float[np.ndarray, " n"]
    agreement: Float[np.ndarray, " n"]  # log odds that image and caption belong together
    cell_assignments: Int64[np.ndarray, " n"]
    cell_influence: Float[np.ndarray, " C"]  # mean of its pairs
    cell_influence_stderr: Float[np.ndarray, " C"]
    validation_loss: float
    influence_weight: float  # how much influence counts beside agreement, 0 to 1; see guard.py
    # What nearness to the held-out pairs adds to values, as far as these are believed at all.
    relevance_part: Float[np.ndarray, " n"]
    quality: dict[str, Any] = field(metadata={"file": "pair_influence_quality.json"})

    @property
    def counted(self) -> Float[np.ndarray, " n"]:
        """The influence that pairs are chosen by: none of it where the inference explains nothing.

        Leave-one-out, the mean of all evaluated pairs then foretells one better than the model.
        """
        explains = self.quality["explained"] > 0
        return self.pair_influence if explains else np.zeros_like(self.pair_influence)


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
    quantities = [agreement, first.own, *_quantities(known, cross, trained_on, rng)]
    topics = np.zeros(n, dtype=np.int64) if config.ignore_topics else known.cluster_assignments

    if previous is not None:
        index = np.flatnonzero(previous.pair_influence_evaluated)
    else:
        index = _spread_evenly(known.clip_scores, allowed, rng)
    per_repeat = held_out_influences(
        cross, known.pairs, index, np.ones(len(index)), batch_size=training.batch_size, rng=rng
    )
    pooled = pool_influence(per_repeat.mean(axis=0), index, quantities, topics)

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
            "repeats_agree": _agreement_of_repeats(per_repeat),
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


def relevance_part(trust: PairTrust, agreement: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """What being near the held-out pairs adds to each pair's value, standard deviations.

        relevance_weight ( z(log density ratio) + log P(right) )

    Zero where the held-out pairs are like the pool. Nearness must not bring wrong pairs back that
    agreement has sorted out, so the log probability that a pair is right, nearly zero for most, is
    counted with it.
    """
    if trust.relevance_weight == 0:
        return np.zeros(len(agreement))
    wrong = trust.wrong_share
    right = log_probability_right(agreement, wrong.share if wrong else 0.0)
    return np.asarray(trust.relevance_weight * (standardised(trust.relevance) + right))


def _quantities(
    known: KnownPairs, cross: CrossFit, trained_on: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """What explains influence: agreement in several views, redundancy, topic means, groups."""
    z = known.cluster_assignments
    sizes = np.bincount(z)

    def topic_mean(values: np.ndarray) -> np.ndarray:
        return np.asarray((np.bincount(z, values) / np.maximum(sizes, 1))[z])

    clip_scores = known.clip_scores.astype(np.float64)
    images, texts = known.image_embeddings, known.text_embeddings
    return [
        clip_scores,
        cross.held_out_losses,
        cross.memorised,
        topic_mean(clip_scores),
        topic_mean(cross.held_out_losses),
        neighbour_agreement(images, texts, trained_on, rng=rng),
        neighbour_agreement(texts, images, trained_on, rng=rng),
        np.minimum(known.better_copies, 3).astype(np.float64),
        *(member.astype(np.float64) for member in known.groups.values()),
    ]


def _spread_evenly(
    clip_scores: np.ndarray, n_chosen: int, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """One pair at random of each of equally large ranges of agreement.

    Drawing a second wave where the sign is in doubt explained less of the rest: pairs in doubt are
    the noisiest to learn from.
    """
    order = np.argsort(clip_scores, kind="stable")
    strata = np.array_split(order, n_chosen)
    return np.sort(np.array([rng.choice(stratum) for stratum in strata]))


def refine_cells(
    cells: Int64[np.ndarray, " n"], influence: Float[np.ndarray, " n"], pooled: PooledInfluence
) -> Int64[np.ndarray, " n"]:
    """Split cells whose sign is undecided although their pairs clearly differ, again and again.

    A cell is split in two at its median influence where its mean is within 1.64 standard errors of
    zero and its pairs spread wider than that; clear cells stay whole.
    """
    bar = norm.ppf(UNDECIDED)
    refined = np.empty_like(cells)
    sizes = np.bincount(cells)
    pending = np.split(np.argsort(cells, kind="stable"), np.cumsum(sizes)[:-1])
    pending = [rows for rows in pending if len(rows)]
    n_cells = 0
    while pending:
        rows = pending.pop()
        if len(rows) >= 2 * SMALLEST_CELL:
            error = bar * pooled.mean_stderr(rows)
            values = influence[rows]
            if abs(values.mean()) < error < values.std():
                rows = rows[np.argsort(values, kind="stable")]
                pending += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                continue
        refined[rows] = n_cells
        n_cells += 1
    return refined


def _agreement_of_repeats(per_repeat: Float[np.ndarray, "R m"]) -> float | None:
    """Mean correlation between the repeats' influences of the same pairs."""
    if len(per_repeat) < 2 or (per_repeat.std(axis=1) == 0).any():
        return None
    matrix = np.corrcoef(per_repeat)
    return round(float(matrix[np.triu_indices(len(matrix), 1)].mean()), 4)

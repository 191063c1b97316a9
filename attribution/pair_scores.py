"""The parts of pair influence that `influence.py` puts together: quantities, cells, checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import norm

from artifacts.settings import Settings, setting
from attribution.additive_model import PooledInfluence
from attribution.agreement import neighbour_agreement
from attribution.cross_fitting import CrossFit
from attribution.fault_share import WrongShare
from attribution.guard import Guard, log_probability_right
from attribution.reliability import Reliability
from attribution.scores import standardised
from attribution.trust import PairTrust
from learner.pairs import TrainingPairs

SMALLEST_CELL = 4  # pairs that a refined cell keeps at least
UNDECIDED = 0.95  # one-sided confidence below which a cell's sign is undecided
MIN_EVALUATED = 20  # pairs from which the additive model can be fitted
# About a hundred for each smooth column of the model, of which there are a hundred at most, and ten
# for each of 1,000 topics. Of 100,000 simulated pairs with 1,000 topics whose influence is a fifth
# signal, the inferred mean correlates with the true one (Spearman) by 0.90, 0.91, 0.93 and 0.95
# from 2,000, 5,000, 10,000 and 20,000 evaluated pairs.
MOST_EVALUATED = 10_000


@dataclass(frozen=True)
class PairInfluenceConfig(Settings):
    """How the influence of pairs and cells is estimated."""

    influence_budget: float = setting(
        0.1,
        "most pairs whose own influence is evaluated, as a share of the training pairs, but at "
        "least 20 pairs and no more than 10,000, beyond which the inference gains little; that of "
        "the others is inferred",
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
    # Here and not with the curation: the groups' gradients are taken where it is not zero alone.
    fairness: float = setting(
        0.0,
        "what a standard deviation of influence on the worst-served demographic group, beyond that "
        "on all held-out pairs, counts in a pair's value; 0: groups are not asked apart",
        at_least=0,
        added_later=True,
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


def quantities(
    pairs: TrainingPairs, cross: CrossFit, trained_on: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """What explains influence: agreement in several views, redundancy, topic means, groups."""
    z = pairs.cluster_assignments
    sizes = np.bincount(z)

    def topic_mean(values: np.ndarray) -> np.ndarray:
        return np.asarray((np.bincount(z, values) / np.maximum(sizes, 1))[z])

    clip_scores = pairs.clip_scores.astype(np.float64)
    images, texts = pairs.image_embeddings, pairs.text_embeddings
    return [
        clip_scores,
        cross.held_out_losses,
        cross.memorised,
        topic_mean(clip_scores),
        topic_mean(cross.held_out_losses),
        neighbour_agreement(images, texts, trained_on, rng=rng, groups=pairs.image_groups),
        neighbour_agreement(texts, images, trained_on, rng=rng),
        np.minimum(pairs.better_copies, 3).astype(np.float64),
        *(member.astype(np.float64) for member in pairs.groups.values()),
    ]


def n_evaluated(config: PairInfluenceConfig, n_pairs: int) -> int:
    """How many pairs' own influence is evaluated: their share, within bounds."""
    share = int(config.influence_budget * n_pairs + 1e-9)
    return max(min(share, MOST_EVALUATED), min(MIN_EVALUATED, n_pairs))


def spread_evenly(
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
    order = np.lexsort((influence, cells))  # a cell's pairs together, those of low influence first
    sizes: np.ndarray = np.bincount(cells)
    sizes = sizes[sizes > 0][::-1]  # the last cell first, as parts come off a stack
    starts: np.ndarray = len(order) - np.cumsum(sizes)
    settled: np.ndarray = np.zeros(len(sizes), dtype=bool)
    while not settled.all():
        pending = np.flatnonzero(~settled & (sizes >= 2 * SMALLEST_CELL))
        splits: np.ndarray = np.zeros(len(sizes), dtype=bool)
        if len(pending):
            at = _ranges(starts[pending], sizes[pending])
            error = bar * pooled.mean_stderrs(order[at], sizes[pending])
            mean, spread = _means_and_spreads(influence[order[at]], sizes[pending])
            splits[pending] = (np.abs(mean) < error) & (error < spread)
        # A cell that is split is followed by its lower half, after its upper.
        lower = sizes // 2
        again = np.repeat(np.arange(len(sizes)), 1 + splits)
        second = np.r_[False, again[1:] == again[:-1]]
        upper = splits[again] & ~second
        starts = np.where(upper, starts[again] + lower[again], starts[again])
        sizes = np.where(
            upper, sizes[again] - lower[again], np.where(second, lower[again], sizes[again])
        )
        settled = ~splits[again]
    refined = np.empty_like(cells)
    refined[order[_ranges(starts, sizes)]] = np.repeat(np.arange(len(sizes)), sizes)
    return refined


def _ranges(
    starts: Int64[np.ndarray, " c"], sizes: Int64[np.ndarray, " c"]
) -> Int64[np.ndarray, " m"]:
    """The numbers of several ranges, one after the other."""
    firsts = np.cumsum(sizes) - sizes
    return np.asarray(np.arange(sizes.sum()) + np.repeat(starts - firsts, sizes))


def _means_and_spreads(
    values: Float[np.ndarray, " m"], sizes: Int64[np.ndarray, " c"]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Of the first `sizes[0]` values, of the next `sizes[1]`, ..."""
    firsts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(values, firsts) / sizes
    squares = np.add.reduceat((values - np.repeat(means, sizes)) ** 2, firsts)
    return means, np.sqrt(squares / sizes)


def estimate_quality(
    config: PairInfluenceConfig,
    trust: PairTrust,
    cross: CrossFit,
    per_repeat: Float[np.ndarray, "R m"],
    pooled: PooledInfluence,
) -> dict[str, Any]:
    """How the influence of pairs was estimated, for people and for what is made of it later."""
    return {
        "pairs_evaluated": per_repeat.shape[1],
        "explained": round(pooled.explained, 4),
        "repeats_agree": correlation_of_repeats(per_repeat),
        "held_out_models": 2 * config.held_out_repeats,
        "steps": cross.n_steps,
        "validation_loss": cross.validation_loss,
        "relevance_auc": round(trust.relevance_auc, 4),
    }


def worth(
    guard: Guard, reliability: Reliability, pooled: PooledInfluence, wrong: WrongShare | None
) -> dict[str, Any]:
    """How much influence counts and why, and how many pairs are faulty.

    Where nothing is explained nothing is counted, see `PairInfluence.counted`.
    """
    counts = pooled.explained > 0
    reason = guard.reason
    if reliability.reliability == 0 and guard.weight > 0:  # else the guard alone sees to it
        reason = (
            "what two halves of the held-out pairs and of the models say of it has nothing in "
            "common (reliability 0)"
        )
    return {
        "reliability": None
        if reliability.reliability is None
        else round(reliability.reliability, 4),
        "influence_weight": round(guard.weight * reliability.weight if counts else 0.0, 4),
        "agreement_correlation": round(guard.correlation, 4),
        "guard": reason if counts else "",
        "guard_weight": round(guard.weight, 4),
        "wrong_share": None if wrong is None else [wrong.share, wrong.low, wrong.high],
    }


def correlation_of_repeats(per_repeat: Float[np.ndarray, "R m"]) -> float | None:
    """Mean correlation between the repeats' influences of the same pairs."""
    if len(per_repeat) < 2 or (per_repeat.std(axis=1) == 0).any():
        return None
    matrix = np.corrcoef(per_repeat)
    return round(float(matrix[np.triu_indices(len(matrix), 1)].mean()), 4)

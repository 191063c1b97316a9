"""Selectors that go by agreement of image and text, alone or beside what else a pair is like."""

from __future__ import annotations

import logging

import numpy as np
import torch
from jaxtyping import Float, Int64

from attribution.agreement import (
    ALL_NORMALISED,
    FEWEST_NORMALISATIONS,
    FIT_BATCH,
    N_NORMALISATIONS,
    NORMALISATION_BATCH,
    REFINED_FOLDS,
    normalised_agreement,
    strangers,
    trusted_pairs,
)
from attribution.fault_share import wrong_share
from attribution.scores import standardised
from encoders.joint_map import MIN_IMAGES, Moments, embed_across_folds
from learner.pairs import PairTensors, TrainingPairs, blocks_of_pairs
from learner.sides import sides_of
from rivals.clusters import similarity_to_harder
from rivals.ranking import highest

logger = logging.getLogger(__name__)
N_SIMILARITIES = 2**22  # in one block; 16 MiB
FIRST_CUT_POWER = 0.75  # of the share kept: 30 % where 20 % are kept in the end; Wang et al. (2024)
FIT_SCALES = 48  # temperatures that agreement is fitted with


def neg_clip_loss(pairs: TrainingPairs, *, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    """Agreement of image and text less that with other pairs: Wang et al. (2024)."""
    device = pairs.tensors.device
    return normalised_agreement(pairs.image_embeddings, pairs.text_embeddings, device, rng=rng).own


def agreement_cosines(n: int) -> int:
    """How many embeddings `normalised_agreement` of n pairs compares; of many, at least."""
    n_shuffles = N_NORMALISATIONS if n > NORMALISATION_BATCH else 1
    if n > ALL_NORMALISED:
        n_shuffles = FEWEST_NORMALISATIONS
    fitting = FIT_SCALES * min(n, FIT_BATCH) ** 2
    return fitting + n_shuffles * n * min(n, NORMALISATION_BATCH)


def neg_clip_loss_semdedup(
    pairs: TrainingPairs, size: int, *, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Rows of the highest negCLIPLoss among those that SemDeDup leaves.

    The composite of Abbas et al. (2023, arXiv 2303.09540) and Wang et al. (2024). SemDeDup drops
    the pairs whose image is most similar to a harder one of its cluster: as many as have a better
    near copy by the clustering's own threshold, but no more than are to be dropped in all. What is
    then still above the size goes by negCLIPLoss. So each cut drops what it is made for, and the
    size is met exactly: without near copies this is `neg_clip_loss`, with more of them than may
    be dropped it is `semdedup`.
    """
    similarity = similarity_to_harder(pairs.image_embeddings, pairs.cluster_assignments)
    n_copies = int((pairs.better_copies > 0).sum())
    left = np.sort(highest(-similarity, max(size, len(similarity) - n_copies)))
    rows: np.ndarray = left[highest(neg_clip_loss(pairs, rng=rng)[left], size)]
    return rows


def refined_agreement(pairs: TrainingPairs, *, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    """Agreement in a joint space fitted to the pairs that look right: stage 2's second view alone.

    A control. Joint maps are fitted in folds, so that no pair is judged by one that saw its image,
    to the pairs of highest negCLIPLoss and to all held-out pairs; see `attribution.agreement`.
    Stage 2 also asks losses of held-out models which pairs look right, and then joins this view
    with the encoder's own. Of fewer than three images no map can be fitted, and negCLIPLoss stands.
    """
    others = strangers(pairs.image_ids, rng)
    first = normalised_agreement(
        pairs.image_embeddings, pairs.text_embeddings, pairs.tensors.device, rng=rng, others=others
    )
    if int(pairs.image_ids.max()) + 1 < MIN_IMAGES:
        return first.own
    wrong = wrong_share(first.own, first.by_chance, rng=rng)
    share = 1 - wrong.share if wrong else 1.0
    images, texts, _ = embed_across_folds(
        *sides_of(pairs.tensors),
        pairs.image_ids,
        rng=rng,
        n_folds=REFINED_FOLDS,
        trusted=trusted_pairs(first.own, -first.own, share),
        further=Moments.of(*sides_of(pairs.validation)),
    )
    return normalised_agreement(images, texts, pairs.tensors.device, rng=rng).own


# --- And by likeness to the target --------------------------------------------------------------


def neg_clip_loss_normsim(
    pairs: TrainingPairs, *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Sum of negCLIPLoss and NormSim, each in standard deviations: Wang et al. (2024).

    The rival that sees the target. The paper intersects two thresholds, which leaves open how
    strict each is where only the size is given; in the sum neither counts more. The two-stage form
    (the share r^(3/4) by negCLIPLoss, of these the share wanted by NormSim, the paper's 30 % then
    20 %) is offered by the benchmark of regimes as `neg_clip_loss_then_normsim`.
    """
    parts = standardised(neg_clip_loss(pairs, rng=rng)), standardised(norm_sim(pairs))
    return np.asarray(parts[0] + parts[1])


def neg_clip_loss_then_normsim(
    pairs: TrainingPairs, size: int, *, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Rows of the highest NormSim among those of the highest negCLIPLoss: Wang et al. (2024).

    Where the share r is kept in the end, negCLIPLoss leaves r^(3/4): the paper's 30 % of all
    pairs where 20 % are kept.
    """
    n = len(pairs.clip_scores)
    n_left = max(size, round(n * (size / n) ** FIRST_CUT_POWER))
    left = np.sort(highest(neg_clip_loss(pairs, rng=rng), n_left))
    rows: np.ndarray = left[highest(norm_sim(pairs)[left], size)]
    return rows


def norm_sim(pairs: TrainingPairs) -> Float[np.ndarray, " n"]:
    """Highest cosine of every image with a held-out one, in the encoder's joint space.

        NormSim_inf(x) = max_t <f(t), f(x)>        arXiv 2405.19547

    over all held-out images t; their captions play no role. Where a run was saved without their
    joint embeddings, the cosines are those of the scaled features that the models take in.
    """
    if pairs.validation_image_embeddings is not None:
        return highest_cosine(pairs.image_embeddings, pairs.validation_image_embeddings)
    logger.info(
        "NormSim: no joint embeddings of the held-out images are saved; the cosines are those of "
        "the image features"
    )
    targets = _unit_images(pairs.validation)
    blocks = blocks_of_pairs(pairs.tensors)
    return np.concatenate([highest_cosine(_unit_images(block), targets) for _, block in blocks])


def _unit_images(pairs: PairTensors) -> Float[np.ndarray, "m d"]:
    unit: np.ndarray = torch.nn.functional.normalize(pairs.images, dim=1).cpu().numpy()
    return unit


def highest_cosine(
    images: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "V d"]
) -> Float[np.ndarray, " n"]:
    """Of each unit row with any of the targets, in blocks of rows."""
    step = max(1, N_SIMILARITIES // len(targets))
    blocks = [
        (images[start : start + step] @ targets.T).max(axis=1)
        for start in range(0, len(images), step)
    ]
    return np.concatenate(blocks)

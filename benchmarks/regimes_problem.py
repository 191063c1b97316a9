"""One regime as one seed draws it, clustered and scaled: what every method is shown."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from flickr8k_regimes import Pool, Regime, about, load_pool

from artifacts.provenance import stage_rng
from attribution.trust import PairTrust
from clustering import ClusterAssignment, ClusteringConfig, cluster_embeddings
from learner.batches import steps_per_epoch
from learner.config import TrainingConfig
from learner.model import shuffled_batches
from learner.pairs import (
    FeatureScaling,
    PairTensors,
    TrainingPairs,
    fit_feature_scaling,
    nearest_clusters,
    representation,
)
from sources.captions import caption_groups

TRAINING = TrainingConfig()
_device = [torch.device("cpu")]


def use_device(name: str) -> None:
    """Let this process train on such a device."""
    _device[0] = torch.device(name)


def device() -> torch.device:
    """Where this process trains."""
    return _device[0]


class TestSet(NamedTuple):
    """The unseen images with all their captions."""

    image_features: np.ndarray  # (E, d_i)
    text_features: np.ndarray  # (Q, d_t)
    caption_image: np.ndarray  # (Q,)
    groups: dict[str, dict[str, np.ndarray]]  # attribute -> group -> (Q,) bool


class Problem(NamedTuple):
    """One regime as one seed draws it, ready to be selected from and trained on.

    Of the validation pairs everybody sees all there are; InfluenceSpace asks those it trusts.
    """

    regime: Regime
    seed: int
    clusters: ClusterAssignment
    clustering_seconds: float
    pairs: PairTensors
    validation: PairTensors
    validation_batches: np.ndarray
    scaling: FeatureScaling
    test: TestSet
    asked: np.ndarray | None = None  # rows of the validation pairs that are; None: all of them


Result = TypeVar("Result")


def remembered(function: Callable[..., Result]) -> Callable[..., Result]:
    """The last result once more where all arguments are the very same objects.

    What is expensive and the same for all shares kept is computed once a set of pairs.
    """
    last: list[Any] = []

    @functools.wraps(function)
    def call(*arguments: Any) -> Result:
        if not last or [id(a) for a in last[0]] != [id(a) for a in arguments]:
            last[:] = [arguments, function(*arguments)]
        result: Result = last[1]
        return result

    return call


@functools.cache
def test_set_of(pool_file: Path, target: str) -> TestSet:
    """The images of Flickr8k's `validation` split, or those about the target, all captions each."""
    pool, unseen = pool_of(pool_file), np.flatnonzero(~pool_of(pool_file).is_train)
    if target:
        unseen = unseen[about(pool.captions[unseen], target)]
    n_captions = pool.captions.shape[1]
    return TestSet(
        pool.images[unseen],
        pool.texts[unseen].reshape(-1, pool.texts.shape[-1]),
        np.repeat(np.arange(len(unseen)), n_captions),
        caption_groups(pool.captions[unseen].reshape(-1).tolist()),
    )


@functools.cache
def pool_of(pool_file: Path) -> Pool:
    """The embedded pool, which is there by now."""
    return load_pool(Path(), pool_file, _no_encoder)


def _no_encoder() -> Any:
    raise FileNotFoundError("the pool has not been embedded")


@remembered
def scaled(regime: Regime) -> tuple[FeatureScaling, PairTensors, PairTensors]:
    """Training and validation pairs as the models take them in."""
    r = regime
    scaling = fit_feature_scaling(r.image_features, r.text_features)
    return (
        scaling,
        scaling.pairs(r.image_features, r.text_features, device()),
        scaling.pairs(r.validation_image_features, r.validation_text_features, device()),
    )


def clustered(regime: Regime, seed: int, n_clusters: int) -> tuple[ClusterAssignment, float]:
    """The clusters of a regime's pairs, and the seconds they took."""
    started = time.perf_counter()
    clusters = cluster_embeddings(
        both_embeddings(regime),
        regime.clip_scores,
        regime.captions,
        ClusteringConfig(n_clusters=n_clusters),
        rng=stage_rng(seed, "clustering"),
        image_features=regime.image_features,
    )
    return clusters, time.perf_counter() - started


def make_problem(regime: Regime, seed: int, test: TestSet) -> Problem:
    """Cluster the pairs with the defaults and scale their features."""
    clusters, seconds = clustered(regime, seed, ClusteringConfig().n_clusters)
    scaling, pairs, validation = scaled(regime)
    batches = shuffled_batches(
        len(validation.images), TRAINING.batch_size, stage_rng(seed, "validation")
    )
    return Problem(regime, seed, clusters, seconds, pairs, validation, batches, scaling, test)


def both_embeddings(regime: Regime) -> np.ndarray:
    """Image and text embedding of every pair, side by side."""
    return np.concatenate([regime.image_embeddings, regime.text_embeddings], axis=1)


def full_steps(problem: Problem) -> int:
    """Steps of a training on all pairs."""
    return training_steps(len(problem.pairs.images))


def training_steps(n: int) -> int:
    """Steps of a training of the usual epochs over n pairs."""
    return TRAINING.num_epochs * steps_per_epoch(n, TRAINING.batch_size)


@remembered
def known(problem: Problem) -> TrainingPairs:
    """What stage 1 knows of every pair, with the problem's validation pairs to say what helps."""
    regime, clusters = problem.regime, problem.clusters
    assigned = clusters.cluster_assignments
    everyone = regime.joint_map.embed_images(regime.validation_image_features)
    held_out = nearest_clusters(problem.pairs, assigned, problem.validation)
    return TrainingPairs(
        indices=np.arange(len(regime.faults)),
        tensors=problem.pairs,
        scaling=problem.scaling,
        image_embeddings=regime.image_embeddings,
        text_embeddings=regime.text_embeddings,
        concatenated_embeddings=both_embeddings(regime),
        clip_scores=regime.clip_scores,
        image_ids=image_ids_of(regime),
        captions=regime.captions,
        groups=groups_of(regime),
        cluster_assignments=assigned,
        cell_assignments=clusters.cell_assignments,
        better_copies=clusters.better_copies,
        clusters=clusters.clusters,
        validation=problem.validation,
        validation_image_embeddings=everyone if problem.asked is None else everyone[problem.asked],
        represented=representation(assigned, held_out),
        validation_groups=_asked_groups(problem),
    )


def _asked_groups(problem: Problem) -> dict[str, dict[str, np.ndarray]]:
    """Demographic groups of the validation pairs that are asked."""
    groups = caption_groups(problem.regime.validation_captions)
    rows = slice(None) if problem.asked is None else problem.asked
    return {a: {g: member[rows] for g, member in of.items()} for a, of in groups.items()}


@remembered
def asking(problem: Problem, trust: PairTrust) -> Problem:
    """The same with the trusted validation pairs alone."""
    rows = trust.asked
    batches = shuffled_batches(
        len(rows), TRAINING.batch_size, stage_rng(problem.seed, "validation")
    )
    validation = problem.validation.subset(rows)
    return problem._replace(validation=validation, validation_batches=batches, asked=rows)


def image_ids_of(regime: Regime) -> np.ndarray:
    """Which image each training pair shows."""
    return np.unique(regime.image_features, axis=0, return_inverse=True)[1].reshape(-1)


def groups_of(regime: Regime) -> dict[str, np.ndarray]:
    """Which captions name which demographic group."""
    memberships = caption_groups(regime.captions)
    return {name: member for groups in memberships.values() for name, member in groups.items()}

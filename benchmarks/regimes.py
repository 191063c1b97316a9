"""Who wins where: every curation method on seven kinds of good and bad data made from Flickr8k.

    python benchmarks/regimes.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

Held-out pairs are a second dimension: `--validation noisy` makes them as faulty as the training
pairs, `noisy-100` a hundred of these, and `--target dog` takes those about dogs alone, of the test
images too. One training is one row of `regimes.csv`, and a row that is there is not computed again:
a run that was stopped goes on where it was, and a method whose `version` was raised is computed
anew. A seed decides the pairs, their faults, the selections and the trainings, so that methods are
compared in pairs. `--plot_only` draws tables and figure from the rows alone; `--estimate` computes
one set of pairs and tells how long the rest would take. `regimes_report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import multiprocessing
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TextIO, TypeVar

# The cores are shared by processes, not by threads; read when the libraries are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flickr8k_regimes import (
    N_TRAINING,
    N_VALIDATION,
    REGIMES,
    HeldOut,
    Pool,
    Regime,
    about,
    load_pool,
    make_regime,
)
from regimes_report import (
    BOTH,
    METRICS,
    ORACLE,
    RANDOM,
    RECALLS,
    RESULTS,
    SAME_EPOCHS,
    TWO_CUTS,
    write_summary,
)
from validation_report import CLEAN, write_validation

from artifacts.provenance import (
    CLUSTERING,
    INFLUENCE,
    PAIR_INFLUENCE,
    hardware,
    package_versions,
    stage_rng,
)
from attribution.additive_model import smooth_basis
from attribution.agreement import neighbour_agreement
from attribution.cluster_scores import InfluenceConfig
from attribution.pair_scores import PairInfluenceConfig
from attribution.results import InfluenceResult, PairInfluence
from attribution.trust import PairsInSpace, PairTrust, TrustConfig, judge_pairs
from baselines import (
    BASELINES,
    CONTROLS,
    FULL,
    INFLUENCESPACE,
    select_baseline,
)
from baselines import (
    METHODS as METHODS_OF_RUNS,
)
from benchmarks.rooms import temporary_room
from clustering import ClusterAssignment, ClusteringConfig, cluster_embeddings
from curation import (
    CurationConfig,
    CurationResult,
    curate,
    curated_size,
)
from encoders.base import EmbeddingConfig
from encoders.pretrained import load_encoder
from influence import Round, score_clusters, score_pairs
from learner.model import Parameters, embed_images, embed_texts, mean_loss, shuffled_batches
from learner.pairs import (
    FeatureScaling,
    PairTensors,
    TrainingPairs,
    fit_feature_scaling,
    nearest_clusters,
    representation,
)
from learner.training import (
    LOSS,
    SAMPLE,
    Training,
    TrainingConfig,
    steps_per_epoch,
    train,
    train_until_best,
)
from rivals.agreement import neg_clip_loss_then_normsim
from rivals.given import Reference
from sources.captions import caption_groups
from train_eval import COMPARISONS, recall_metrics, retrieval_ranks

CPU = torch.device("cpu")
TRAINING = TrainingConfig()
RULES = "1"  # to be raised where the data, the training or a metric changes
KEEP, N_SEEDS = (0.4, 0.6, 0.8), 5
# Seeds from here on were run for the first time once the method was fixed; what is said of noisy
# validation pairs and of targets rests on them (`--first_seed 7`). Those below were looked at.
FIRST_FRESH_SEED = 7
REFERENCE_REPORTS, PATIENCE = 40, 10  # early stopping of the rivals' reference model, as ours

KEYS = ("regime", "validation", "keep", "method", "seed", "comparison", "version")
COLUMNS = (*KEYS, *METRICS, "n_pairs", "n_steps", "training_seconds")


# --- What a method sees -----------------------------------------------------------------------


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


class Chosen(NamedTuple):
    """What a method trains on, and what choosing it cost."""

    rows: np.ndarray  # (m,) sorted
    weights: np.ndarray | None  # (m,) mean one; None is all ones
    seconds: float
    pairs_evaluated: int  # whose influence was computed
    validation_loss_estimate: float | None = None  # after training on it, as the method foresees
    weighting: str = LOSS  # how the weights reach training


class Method(NamedTuple):
    """A way to choose; raising `version` invalidates its rows and no others."""

    choose: Callable[[Problem, float, int], Chosen]
    version: str = "1"
    is_default: bool = True  # False: computed where it is asked for, as the ablations are


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
        scaling.pairs(r.image_features, r.text_features, CPU),
        scaling.pairs(r.validation_image_features, r.validation_text_features, CPU),
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


# --- Methods ----------------------------------------------------------------------------------


def full(problem: Problem, keep: float, seed: int) -> Chosen:
    """Every pair."""
    return Chosen(np.arange(len(problem.pairs.images)), None, 0.0, 0)


def oracle(problem: Problem, keep: float, seed: int) -> Chosen:
    """Faulty pairs go first, in the order in which `random` drops pairs; then others as there."""
    order = stage_rng(seed, RANDOM).permutation(len(problem.regime.faults))
    faulty = problem.regime.faults[order] != ""
    kept = order[np.argsort(faulty, kind="stable")][: curated_size(len(order), keep)]
    return Chosen(np.sort(kept), None, 0.0, 0)


def baseline(name: str) -> Callable[[Problem, float, int], Chosen]:
    """The rival or control of this name."""
    method = METHODS_OF_RUNS[name]

    def choose(problem: Problem, keep: float, seed: int) -> Chosen:
        needs_reference = INFLUENCE.name in method.needs
        reference, seconds = reference_model(problem) if needs_reference else (None, 0.0)
        given = Reference(reference, TRAINING.batch_size) if reference is not None else None
        if given is not None and PAIR_INFLUENCE.name in method.needs:
            trust, judging = trust_of(problem)
            problem = asking(problem, trust)
            estimate, estimating = pair_influence_of(problem, trust, Variant().cells)
            given = given._replace(
                pair_influence=estimate, curation=CurationConfig(target_size_ratio=keep)
            )
            seconds = judging + estimating  # it is no reference model that it asks
        pairs, started = known(problem), time.perf_counter()
        rows = select_baseline(name, pairs, given, keep, stage_rng(seed, name)).rows
        seconds += time.perf_counter() - started
        if CLUSTERING.name in method.pays_for:
            seconds += problem.clustering_seconds
        return Chosen(rows, None, seconds, len(pairs.indices) if needs_reference else 0)

    return choose


def two_cuts(problem: Problem, keep: float, seed: int) -> Chosen:
    """Cuts by negCLIPLoss and by NormSim, one after the other, as their paper has them."""
    pairs, started = known(problem), time.perf_counter()
    size = curated_size(len(pairs.indices), keep)
    rows = neg_clip_loss_then_normsim(pairs, size, rng=stage_rng(seed, TWO_CUTS))
    return Chosen(np.sort(rows), None, time.perf_counter() - started, 0)


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
    )


@remembered
def trust_of(problem: Problem) -> tuple[PairTrust, float]:
    """Which validation pairs InfluenceSpace asks, and the seconds that judging them took."""
    started = time.perf_counter()
    regime, m = problem.regime, len(problem.regime.validation_faults)
    training = PairsInSpace(
        *(side.numpy() for side in problem.pairs),
        *(regime.image_embeddings, regime.text_embeddings),
        image_ids_of(regime),
    )
    validation = PairsInSpace(
        *(side.numpy() for side in problem.validation),
        regime.joint_map.embed_images(regime.validation_image_features),
        regime.joint_map.embed_texts(regime.validation_text_features),
        np.arange(m),
    )
    judged = judge_pairs(
        training,
        validation,
        validation,  # no test pair has a say
        TrustConfig(),
        device=CPU,
        near_copy_similarity=ClusteringConfig().near_copy_similarity,
        rng=stage_rng(problem.seed, "trust"),
    )
    return judged, time.perf_counter() - started


@remembered
def asking(problem: Problem, trust: PairTrust) -> Problem:
    """The same with the trusted validation pairs alone."""
    rows = trust.asked
    batches = shuffled_batches(
        len(rows), TRAINING.batch_size, stage_rng(problem.seed, "validation")
    )
    validation = problem.validation.take(torch.from_numpy(rows))
    return problem._replace(validation=validation, validation_batches=batches, asked=rows)


def image_ids_of(regime: Regime) -> np.ndarray:
    """Which image each training pair shows."""
    return np.unique(regime.image_features, axis=0, return_inverse=True)[1].reshape(-1)


@remembered
def reference_model(problem: Problem) -> tuple[Parameters, float]:
    """The early-stopped model that rivals take gradients at, and its seconds."""
    started = time.perf_counter()
    seed = int(stage_rng(problem.seed, "reference").integers(2**31))
    run = Training(problem.pairs, TRAINING, n_steps=full_steps(problem), seed=seed)
    validation = (problem.validation, problem.validation_batches)
    train_until_best(run, validation, n_reports=REFERENCE_REPORTS, patience=PATIENCE)
    return run.parameters, time.perf_counter() - started


class Variant(NamedTuple):
    """InfluenceSpace with other settings than the defaults: what each part is worth."""

    label: str = ""  # what is different, in tables
    cells: Mapping[str, Any] = MappingProxyType({})  # of `PairInfluenceConfig`
    curation: Mapping[str, Any] = MappingProxyType({})  # of `CurationConfig`
    rounds: int = PairInfluenceConfig().rounds
    equal_weights: bool = False
    women: float = 1.0  # times the weight of captions about women and girls
    weighting: str = LOSS
    n_clusters: int = ClusteringConfig().n_clusters
    labels_known: bool = False  # pairs are dropped by `judged_by_labels`
    taken_at_word: bool = False  # all validation pairs are asked
    parts: Mapping[str, Any] = MappingProxyType({})  # of `PairInfluence`, set to this
    relevance: bool = True  # whether nearness to the held-out pairs counts


def influencespace(variant: Variant) -> Callable[[Problem, float, int], Chosen]:
    """InfluenceSpace, with the defaults or others."""

    def choose(problem: Problem, keep: float, _: int) -> Chosen:
        if variant.n_clusters != ClusteringConfig().n_clusters:
            problem = with_clusters(problem, variant.n_clusters)
        curated, estimate, seconds = curate_with_influencespace(problem, keep, variant)
        n = len(problem.regime.faults)
        if variant.labels_known:
            rows = judged_by_labels(problem, estimate, len(curated.curated_rows))
            evaluated = int(estimate.pair_influence_evaluated.sum())
            return Chosen(rows, None, problem.clustering_seconds + seconds, evaluated)
        dropped = np.ones(n)
        dropped[curated.curated_rows] = 0.0
        foreseen = float(np.mean(dropped * estimate.pair_influence))  # nats, to first order
        weights = curated.sample_weights
        if variant.women != 1.0:
            about_women = groups_of(problem.regime)["female"][curated.curated_rows]
            weights = weights * np.where(about_women, variant.women, 1.0)
            weights = weights / weights.mean()
        return Chosen(
            curated.curated_rows,
            None if variant.equal_weights else weights,
            problem.clustering_seconds + seconds,
            int(estimate.pair_influence_evaluated.sum()),
            estimate.validation_loss + foreseen,
            variant.weighting,
        )

    return choose


def curate_with_influencespace(
    problem: Problem, keep: float, variant: Variant
) -> tuple[CurationResult, PairInfluence, float]:
    """The curated set, the last round's pair influence, and the seconds without the clustering."""
    trust, judging = trust_of(problem)
    if variant.taken_at_word:
        trust = at_word(trust)
    problem = asking(problem, trust)
    scores, seconds = influence_of(problem)
    seconds += judging
    started = time.perf_counter()
    config = CurationConfig(**{"target_size_ratio": keep, **variant.curation})
    if variant.rounds == 1:
        pair_influence, pair_seconds = pair_influence_of(problem, trust, variant.cells)
        pair_influence = replace(pair_influence, **variant.parts)
        if not variant.relevance:
            nothing = np.zeros_like(pair_influence.relevance_part)
            pair_influence = replace(pair_influence, relevance_part=nothing)
        curated = curate(known(problem), scores, pair_influence, config)
        return curated, pair_influence, seconds + pair_seconds + time.perf_counter() - started
    before: Round | None = None
    rng = stage_rng(problem.seed, "pair_influence")
    for _ in range(variant.rounds):
        estimate = estimate_pairs(problem, trust, variant.cells, rng, before)
        curated = curate(known(problem), scores, estimate, config)
        before = Round(curated.training_weights(len(problem.regime.faults)) > 0, estimate)
    assert before is not None, "there is a round"
    return curated, before.estimate, seconds + time.perf_counter() - started


def judged_by_labels(problem: Problem, estimate: PairInfluence, n_kept: int) -> np.ndarray:
    """The pairs least likely to be faulty, told by all that InfluenceSpace knows and the truth.

    A logistic regression on smooth functions of its quantities, fitted to the true labels of the
    other four fifths of the pairs: what a better way of joining these quantities could reach.
    """
    faulty, pairs = problem.regime.faults != "", known(problem)
    if not faulty.any():
        raise SystemExit(f"--methods labels_known: {problem.regime.name} has no faulty pairs")
    rng, everyone = stage_rng(problem.seed, "labels_known"), np.ones(len(faulty), dtype=bool)
    images, texts = pairs.image_embeddings, pairs.text_embeddings
    quantities = (
        estimate.pair_influence,
        estimate.agreement,
        estimate.held_out_losses,
        pairs.clip_scores,
        neighbour_agreement(images, texts, everyone, rng=rng),
        neighbour_agreement(texts, images, everyone, rng=rng),
        np.minimum(pairs.better_copies, 3).astype(np.float64),
    )
    smooth = np.concatenate([smooth_basis(q) for q in quantities], axis=1)
    probabilities = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        smooth,
        faulty,
        cv=StratifiedKFold(5, shuffle=True, random_state=problem.seed),
        method="predict_proba",
    )[:, 1]
    return np.sort(np.argsort(probabilities, kind="stable")[:n_kept])


def estimate_pairs(
    problem: Problem,
    trust: PairTrust,
    settings: Mapping[str, Any],
    rng: np.random.Generator,
    before: Round | None = None,
) -> PairInfluence:
    """The influence of pairs and cells, as stage 2 estimates it."""
    with temporary_room(_workers) as room:
        return score_pairs(
            known(problem),
            trust,
            PairInfluenceConfig(**settings),
            TRAINING,
            room,
            max_steps=InfluenceConfig().max_reference_steps,
            rng=rng,
            before=before,
        )


def groups_of(regime: Regime) -> dict[str, np.ndarray]:
    """Which captions name which demographic group."""
    memberships = caption_groups(regime.captions)
    return {name: member for groups in memberships.values() for name, member in groups.items()}


ABLATION = {
    "every_pair_evaluated": Variant("every pair evaluated", cells={"influence_budget": 1.0}),
    "budget_0.03": Variant("3 % of the pairs evaluated", cells={"influence_budget": 0.03}),
    "ten_repeats": Variant("ten repeats instead of five", cells={"held_out_repeats": 10}),
    "one_repeat": Variant("one repeat instead of five", cells={"held_out_repeats": 1}),
    "topics_ignored": Variant("topics ignored", cells={"ignore_topics": True}),
    "cells_kept_whole": Variant("cells kept whole", cells={"keep_cells_whole": True}),
    "encoder_agreement": Variant(
        "agreement by the encoder alone", cells={"encoder_agreement_only": True}
    ),
    "influence_alone": Variant("influence alone", curation={"agreement_weight": 0.0}),
    "agreement_half": Variant("agreement counts half", curation={"agreement_weight": 0.5}),
    "copies_free": Variant("near copies not charged for", curation={"copy_price": 0.0}),
    "equal_weights": Variant("equal weights", equal_weights=True),
    "weights_drawn": Variant("weights drawn (sampling)", weighting=SAMPLE),
    "no_raising": Variant("no cluster raised", curation={"max_weight": 1.0}),
    "20_clusters": Variant("20 clusters", n_clusters=20),
    "400_clusters": Variant("400 clusters", n_clusters=400),
    "two_rounds": Variant("two rounds", rounds=2),
    "labels_known": Variant("pairs judged by the true labels (a ceiling)", labels_known=True),
    "taken_at_word": Variant("validation pairs taken at their word", taken_at_word=True),
    "taken_at_word_no_guard": Variant(
        "taken at their word, and no guard", taken_at_word=True, parts={"influence_weight": 1.0}
    ),
    "no_influence": Variant("agreement without influence", parts={"influence_weight": 0.0}),
    "no_relevance": Variant("nearness to the held-out pairs ignored", relevance=False),
    "women_twice": Variant("captions about women weigh twice", women=2.0),
    "women_five_times": Variant("captions about women weigh five times", women=5.0),
}


@remembered
def pair_influence_of(
    problem: Problem, trust: PairTrust, settings: Mapping[str, Any]
) -> tuple[PairInfluence, float]:
    """The estimate with these settings, one for all shares kept, and its seconds."""
    started = time.perf_counter()
    rng = stage_rng(problem.seed, "pair_influence")
    return estimate_pairs(problem, trust, settings, rng), time.perf_counter() - started


@remembered
def at_word(trust: PairTrust) -> PairTrust:
    """All validation pairs asked, as with `--trust_validation`."""
    everyone = np.ones(len(trust.validation_trusted), dtype=bool)
    return replace(trust, validation_trusted=everyone, taken_at_word=True)


@remembered
def with_clusters(problem: Problem, n_clusters: int) -> Problem:
    """The same pairs in another number of clusters."""
    clusters, seconds = clustered(problem.regime, problem.seed, n_clusters)
    return problem._replace(clusters=clusters, clustering_seconds=seconds)


@remembered
def influence_of(problem: Problem) -> tuple[InfluenceResult, float]:
    """The clusters' scores, one for all shares kept, and their seconds.

    They decide only which clusters may be wiped out and raised: one reference model and five
    folds are enough.
    """
    started = time.perf_counter()
    with temporary_room(_workers) as room:
        result = score_clusters(
            known(problem),
            InfluenceConfig(influence_seeds=1, removal_folds=5),
            TRAINING,
            room,
            rng=stage_rng(problem.seed, "influence"),
        )
    return result, time.perf_counter() - started


METHODS: dict[str, Method] = {
    FULL: Method(full),
    ORACLE: Method(oracle),
    INFLUENCESPACE: Method(influencespace(Variant()), version="5"),
    **{name: Method(baseline(name)) for name in BASELINES},
    **{name: Method(baseline(name), is_default=False) for name in CONTROLS},
    TWO_CUTS: Method(two_cuts, is_default=False),
    **{
        name: Method(influencespace(variant), version="3", is_default=False)
        for name, variant in ABLATION.items()
    },
}


def version_of(method: str) -> str:
    """What a row of this method must say to count."""
    return f"{RULES}.{METHODS[method].version}"


# --- One set of pairs -------------------------------------------------------------------------


class Job(NamedTuple):
    """One training: one row of the CSV."""

    method: str
    keep: float
    comparison: str


class Unit(NamedTuple):
    """The trainings that share a set of pairs, and so a process."""

    regime: str
    held_out: HeldOut
    seed: int
    jobs: tuple[Job, ...]  # those of one method and share kept follow one another


def rows_of(unit: Unit, problem: Problem) -> Iterator[dict[str, Any]]:
    """Choose and train; a row as soon as it is measured. A training done before is not repeated."""
    seen: dict[tuple[bytes, bytes, int], dict[str, float]] = {}
    faulty = problem.regime.faults != ""
    last: tuple[str, float] | None = None
    for job in unit.jobs:
        if last != (job.method, job.keep):
            chosen = METHODS[job.method].choose(problem, job.keep, unit.seed)
            last = (job.method, job.keep)
        rows, weights = chosen.rows, chosen.weights
        same_epochs = job.comparison == SAME_EPOCHS
        n_steps = training_steps(len(rows)) if same_epochs else full_steps(problem)
        given = b"" if weights is None else chosen.weighting.encode() + weights.tobytes()
        key = (rows.tobytes(), given, n_steps)
        if key not in seen:
            seen[key] = measured(problem, chosen, n_steps)
        yield {
            "regime": unit.regime,
            "validation": unit.held_out.name,
            "keep": job.keep,
            "method": job.method,
            "seed": unit.seed,
            "comparison": job.comparison,
            "version": version_of(job.method),
            **seen[key],
            "faults_left": float(faulty[rows].mean()),
            "validation_loss_estimate": chosen.validation_loss_estimate,
            "seconds": chosen.seconds,
            "pairs_evaluated": chosen.pairs_evaluated,
            "n_pairs": len(rows),
            "n_steps": n_steps,
        }


def measured(problem: Problem, chosen: Chosen, n_steps: int) -> dict[str, float]:
    """Train on these pairs and measure the model on the validation pairs and the test images."""
    started = time.perf_counter()
    parameters, _ = train(
        problem.pairs.take(torch.from_numpy(chosen.rows)),
        TRAINING,
        n_steps=n_steps,
        seed=int(stage_rng(problem.seed, "training").integers(2**31)),
        sample_weights=chosen.weights,
        weighting=chosen.weighting,
    )
    seconds = time.perf_counter() - started
    test = problem.test
    images = problem.scaling.images(test.image_features, CPU)
    texts = problem.scaling.texts(test.text_features, CPU)
    image_ranks, caption_ranks = retrieval_ranks(
        embed_images(parameters, images), embed_texts(parameters, texts), test.caption_image
    )
    recalls = recall_metrics(image_ranks, caption_ranks)
    # One caption an image, as in the validation pairs: no other of the batch describes it.
    first = torch.from_numpy(np.unique(test.caption_image, return_index=True)[1])
    batches = shuffled_batches(len(images), TRAINING.batch_size, stage_rng(problem.seed, "test"))
    return {
        "mean_recall": recalls["mean_recall"],
        **{name: recalls[name] for name in RECALLS},
        **group_recalls(caption_ranks, test.groups),
        "validation_loss": mean_loss(parameters, problem.validation, problem.validation_batches),
        "test_loss": mean_loss(parameters, PairTensors(images, texts[first]), batches),
        "training_seconds": seconds,
    }


def group_recalls(
    caption_ranks: np.ndarray, groups: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Text-to-image recall@10 of captions about each group alone, and the gaps, percentage points.

    `gap` is between captions about women and about men, `age_gap` about children and adults.
    """
    metrics: dict[str, float] = {}
    for attribute, name in (("gender", "gap"), ("age", "age_gap")):
        recalls = [
            100 * float((caption_ranks[member] < 10).mean())
            for member in groups[attribute].values()
        ]
        metrics |= {f"{g}_recall@10": r for g, r in zip(groups[attribute], recalls, strict=True)}
        metrics[name] = max(recalls) - min(recalls)
    return metrics


# --- All of them, in processes ----------------------------------------------------------------


def units_of(args: argparse.Namespace, done: set[tuple[Any, ...]]) -> list[Unit]:
    """What is still to be computed: one seed of all regimes, then the next."""
    jobs = [
        Job(method, keep, comparison)
        for method in args.methods
        for keep in ((1.0,) if method == FULL else args.keep)
        for comparison in ((BOTH,) if method == FULL else args.comparisons)
    ]
    units = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for regime in args.regimes:
            for held_out in held_outs(args):
                known = (regime, held_out.name)
                left = tuple(
                    j
                    for j in jobs
                    if (*known, j.keep, j.method, seed, j.comparison, version_of(j.method))
                    not in done
                )
                if left:
                    units.append(Unit(regime, held_out, seed, left))
    return units


def held_outs(args: argparse.Namespace) -> list[HeldOut]:
    """The held-out pairs asked for: `clean`, `noisy`, or either with a number of pairs."""
    found = []
    for name in args.validation:
        kind, _, size = name.partition("-")
        if kind not in ("clean", "noisy") or not (size.isdecimal() or not size):
            raise SystemExit(f"--validation {name}: clean, noisy, clean-100, noisy-30, ...")
        found.append(HeldOut(kind == "noisy", int(size or N_VALIDATION), args.target))
    return found


class _NoTerminal(io.TextIOWrapper):
    """Standard error of a worker: messages pass, progress bars stay silent."""

    def isatty(self) -> bool:
        return False


_rows: Any = None  # the worker's end of the queue of rows
_workers: int | None = None  # trainings at once; None: one a processor core


def _start_worker(rows: Any) -> None:
    global _rows, _workers
    _rows = rows
    torch.set_num_threads(1)
    _workers = 1  # it has one core
    sys.stderr = _NoTerminal(sys.stderr.buffer, line_buffering=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(unit: Unit, pool_file: Path) -> None:
    regime = make_regime(unit.regime, pool_of(pool_file), unit.seed, unit.held_out)
    problem = make_problem(regime, unit.seed, test_set_of(pool_file, unit.held_out.target))
    for row in rows_of(unit, problem):
        _rows.put(row)


def compute(units: Sequence[Unit], pool_file: Path, file: Path, n_jobs: int) -> None:
    """Compute the units in processes of one thread; this process alone writes the CSV."""
    left = Counter({(u.regime, u.held_out.name, u.seed): len(u.jobs) for u in units})
    n_steps = sum(steps_of(job) for unit in units for job in unit.jobs)
    started, n_done = time.perf_counter(), 0
    context = multiprocessing.get_context("spawn")
    rows = context.Queue()
    pool = ProcessPoolExecutor(
        min(n_jobs, len(units)), context, initializer=_start_worker, initargs=(rows,)
    )
    with appending(file) as write, tqdm(total=n_steps, unit="step", disable=None) as bar:
        try:
            futures = [pool.submit(_work, unit, pool_file) for unit in units]
            for row in received(rows, futures, sum(left.values())):
                write(row)
                taken = steps_of(Job(row["method"], row["keep"], row["comparison"]))
                bar.update(taken)
                n_done += taken
                unit = (row["regime"], row["validation"], row["seed"])
                left[unit] -= 1
                if left[unit] == 0:
                    minutes = (time.perf_counter() - started) / 60
                    tqdm.write(
                        f"{unit[0]}, {unit[1]}, seed {unit[2]}: done; {minutes:.1f} min, about "
                        f"{minutes * (n_steps / n_done - 1):.0f} min to go"
                    )
        finally:
            pool.shutdown(cancel_futures=True)


def steps_of(job: Job) -> int:
    """Optimiser steps of a training."""
    n = N_TRAINING
    return training_steps(curated_size(n, job.keep) if job.comparison == SAME_EPOCHS else n)


def received(rows: Any, futures: Sequence[Future[None]], n_rows: int) -> Iterator[dict[str, Any]]:
    """The rows as they come; raises what a worker raised."""
    n_received = 0
    while n_received < n_rows:
        try:
            row = rows.get(timeout=1.0)
        except queue.Empty:
            for future in futures:
                if future.done():
                    future.result()
            continue
        n_received += 1
        yield row


class appending:  # noqa: N801 - reads as a verb
    """Appends whole rows to the CSV, which is made where there is none."""

    def __init__(self, file: Path) -> None:
        self._path = file

    def __enter__(self) -> Callable[[Mapping[str, Any]], None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        self._file: TextIO = self._path.open("a", newline="")
        if is_new:
            self._append(COLUMNS)
        return lambda row: self._append([_cell(row[column]) for column in COLUMNS])

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _append(self, cells: Sequence[Any]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self._file.write(line.getvalue())
        self._file.flush()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def read_rows(file: Path) -> pd.DataFrame:
    """The rows that count: of methods that there are, in their present version.

    A last line without an end, of a run that was killed as it wrote, is cut off.

    Raises:
        SystemExit: the file has other columns.
    """
    if not file.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    if not whole:
        return pd.DataFrame(columns=list(COLUMNS))
    frame = pd.read_csv(io.BytesIO(whole), dtype={"version": str})
    if tuple(frame.columns) != COLUMNS:
        raise SystemExit(f"{file} has other columns than this benchmark writes; move it away")
    current = {method: version_of(method) for method in METHODS}
    counts = frame["version"] == frame["method"].map(current)
    if not counts.all():
        print(f"{(~counts).sum()} rows of other versions are passed over", file=sys.stderr)
    return frame[counts].drop_duplicates(list(KEYS), keep="last").reset_index(drop=True)


def keys_of(frame: pd.DataFrame) -> set[tuple[Any, ...]]:
    """What has been computed."""
    return set(frame[list(KEYS)].itertuples(index=False, name=None))


def hours_left(frame: pd.DataFrame, units: Sequence[Unit], n_jobs: int) -> float:
    """Foreseen from the rows that there are, all methods of one set of pairs at least."""
    per_step = frame["training_seconds"].sum() / frame["n_steps"].sum()
    choosing = frame.groupby("method")["seconds"].mean()
    total = 0.0
    for unit in units:
        total += per_step * sum(map(steps_of, unit.jobs))
        once = {j.method for j in unit.jobs if j.method not in BASELINES}
        total += sum(choosing.get(method, 0.0) for method in once)
        each = {(j.method, j.keep) for j in unit.jobs if j.method in BASELINES}
        total += sum(choosing.get(method, 0.0) for method, _ in each)
    return total / n_jobs / 3600


# --- Everything -------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, help="Flickr8k: Images, captions.txt, splits.csv")
    parser.add_argument("--work_dir", type=Path, help="where the embedded pool is kept")
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--keep", nargs="+", type=float, default=list(KEEP), help="shares kept")
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them")
    parser.add_argument(
        "--validation", nargs="+", default=["clean"], help="clean, noisy, clean-100, noisy-30, ..."
    )
    parser.add_argument("--target", default="", help="held-out and test images about this word")
    usual = [name for name, method in METHODS.items() if method.is_default]
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=usual)
    parser.add_argument("--comparisons", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--plot_only", action="store_true", help="tables and figure, no training")
    parser.add_argument(
        "--estimate", action="store_true", help="compute one set of pairs, foresee the rest, stop"
    )
    args = parser.parse_args()
    if not args.plot_only and not (args.data_dir and args.work_dir):
        parser.error("--data_dir and --work_dir are needed")
    return args


def main() -> None:
    """Compute what is missing, then tables and figure."""
    args = arguments()
    file = args.out / "regimes.csv"
    labels = {name: variant.label for name, variant in ABLATION.items()}
    about = {
        "command": "python benchmarks/regimes.py --data_dir path/to/flickr8k --work_dir WORK",
        "hardware": hardware(),
        "packages": package_versions(),
    }
    if args.plot_only:
        saved = args.out / "regimes.json"
        if saved.exists():  # where the rows come from
            old = json.loads(saved.read_text())
            about = {key: old[key] for key in about}
        write_reports(read_rows(file), args.out, about, labels)
        return
    pool_file = args.work_dir / "pool.npz"
    load_pool(
        args.data_dir, pool_file, lambda: load_encoder(EmbeddingConfig("embedded"), device=CPU)
    )
    if args.estimate:
        one = argparse.Namespace(
            **vars(args)
            | {
                "regimes": args.regimes[:1],
                "keep": args.keep[-1:],
                "seeds": 1,
                "validation": args.validation[:1],
            }
        )
        units = units_of(one, keys_of(read_rows(file)))
        if units:
            compute(units, pool_file, file, 1)
        frame = read_rows(file)
        whole, left = units_of(args, set()), units_of(args, keys_of(frame))
        for name, some in (("all", whole), ("what is left", left)):
            hours = hours_left(frame, some, args.jobs)
            n_trainings = sum(len(u.jobs) for u in some)
            print(f"{name}: {n_trainings} trainings, {hours:.2f} h with {args.jobs} processes")
        return
    units = units_of(args, keys_of(read_rows(file)))
    if units:
        compute(units, pool_file, file, args.jobs)
    write_reports(read_rows(file), args.out, about, labels)


def write_reports(
    frame: pd.DataFrame, out: Path, about: Mapping[str, Any], labels: Mapping[str, str]
) -> None:
    """The page of clean held-out pairs and seeds of old, and the page of all others."""
    known = (frame["validation"] == CLEAN) & (frame["seed"] < FIRST_FRESH_SEED)
    if known.any():
        write_summary(frame[known], out, about, labels)
    write_validation(frame, out, about, labels, first_seed=FIRST_FRESH_SEED)


if __name__ == "__main__":
    main()

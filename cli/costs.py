"""Expected seconds of every stage: a few steps are timed, the rest is counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from attribution.agreement import ALL_NORMALISED, MAX_WITNESSES, NORMALISATION_BATCH
from attribution.cluster_scores import FIRST_ORDER, METAGRADIENT, REFERENCE_REPORTS, STEP
from attribution.cross_fitting import (
    CHECKPOINTS,
    INFLUENCE_SHUFFLES,
    LOSS_SHUFFLES,
    VALIDATION_SHUFFLES,
)
from attribution.curvature import MAX_CURVATURE_PAIRS
from attribution.keep_curve import MOST_RANKED, MOST_STEPS, N_SEEDS, SHARES
from attribution.pair_scores import n_evaluated
from attribution.sampling import grown_batch_size
from attribution.trust import JUDGING_FOLDS
from baselines import FULL, METHODS, Counts
from cli.config import Config
from cli.sizes import (
    Sample,
    Sizes,
    n_folds,
    n_photographs,
    n_trained,
    reference_steps,
)
from curation import curated_size
from encoders.joint_map import N_FOLDS, Moments, fit_joint_map
from engine.base import Setup
from engine.local import LocalEngine
from exporting.formats import NEED_IMAGES
from learner.batches import steps_per_epoch
from learner.config import TrainingConfig
from learner.kmeans import FULL_STEPS, SAMPLE_STEPS, SAMPLED_ABOVE, sample_size
from learner.pairs import PairTensors
from learner.side_by_side import RUNS_ON_GPU
from learner.stacked import Run
from learner.training import train, train_side_by_side
from rivals.agreement import agreement_cosines
from sources.captions import GROUP_WORDS

# --- What is counted in training steps: measured beside them, one CPU thread each -----------------
STEPS_TIMED = 30
ROWS_TIMED = 2048  # of random features; more make a step no slower
SWEEP = 5.5  # training and going back through it, for each step of the training
FORWARD = 0.25  # the loss of a batch
TRAINING_REPORTS = 10  # of the validation loss, in every compared training
GRADIENT = 0.8  # and its gradient, without an optimiser
PAIR_DERIVATIVE = 1.0  # the influence of a batch's pairs on a model
CURVATURE_PASSES = {FIRST_ORDER: 40.0, STEP: 65.0}  # likewise, for each reference model

# --- What is counted in cosines, and what in seconds ----------------------------------------------
CLUSTERING_PASSES = 180  # over all pairs and clusters; with mini-batches a tenth
DESCRIBING_SECONDS = 4e-4  # a pair, for the words of clusters and cells
CURATION_SECONDS = 1e-4  # a pair, the ledger included
CHOOSING_SECONDS = 2e-6  # a pair, without ledger and tables, each time that a share is tried
RESULTS_SECONDS = 10.0  # figures and tables
N_LANDMARKS = 5_000  # of the report's map, at most
LANDMARK_SECONDS = 2.3e-3  # whose place is looked for
NEIGHBOURS_SECONDS = 3e-4  # a pair, for its neighbours and its place among the landmarks
PHOTOGRAPH_SECONDS = 5e-3  # a small photograph, from reading the large one to the page


# --- Time -----------------------------------------------------------------------------------------


class Speed(NamedTuple):
    """How fast this machine is at present.

    Attributes:
        images_per_second: read, decoded and encoded.
        captions_per_second: encoded.
        joint_seconds: of one fit of the joint space; 0 where the encoder has its own.
        joint_pair_seconds: of a pair's part in it.
        step_seconds: a training step, alone.
        shared_step_seconds: the same where every core trains, divided by the cores.
        cosine_seconds: the cosine of two embeddings and what is done with it.
    """

    images_per_second: float
    captions_per_second: float
    joint_seconds: float
    joint_pair_seconds: float
    step_seconds: float
    shared_step_seconds: float
    cosine_seconds: float


def measure_speed(
    sample: Sample, sizes: Sizes, config: TrainingConfig, device: torch.device
) -> Speed:
    """The sample's speed and that of training and comparing random features as wide as its own."""
    widths, rng = sample.widths, np.random.default_rng(0)
    n = min(sizes.train, ROWS_TIMED)
    images, texts = (
        rng.standard_normal((n, d), dtype=np.float32) / np.float32(math.sqrt(d))
        for d in (widths.image, widths.text)
    )
    pairs = PairTensors(torch.from_numpy(images).to(device), torch.from_numpy(texts).to(device))
    joint, joint_pair = (0.0, 0.0)
    if widths.joint is None:
        joint, joint_pair = _time_joint_map(images, texts, widths.embedding(n))
    return Speed(
        sample.images_per_second,
        sample.captions_per_second,
        joint,
        joint_pair,
        *_time_steps(pairs, config),
        _time_cosines(rng, widths.embedding(n)),
    )


def _time_steps(pairs: PairTensors, config: TrainingConfig) -> tuple[float, float]:
    """Seconds of a training step alone, and side by side with others, after warming up."""
    timed = pairs, config
    _train_some(0, timed)
    alone = _timed(lambda: _train_some(0, timed)) / STEPS_TIMED
    if pairs.device.type != "cpu":
        runs = [Run(seed) for seed in range(RUNS_ON_GPU)]
        seconds = _timed(lambda: train_side_by_side(*timed, runs, n_steps=STEPS_TIMED))
        return alone, seconds / (len(runs) * STEPS_TIMED)
    engine, setup = LocalEngine(), Setup(_already_there, None)
    engine.offer(setup, timed)

    def side_by_side() -> None:
        jobs = range(engine.workers)
        list(engine.map(_train_some, jobs, setup=setup, description="timing", unit="training"))

    return alone, _timed(side_by_side) / (engine.workers * STEPS_TIMED)


def _already_there(_: None) -> tuple[PairTensors, TrainingConfig]:
    raise AssertionError("it is offered")


def _train_some(seed: int, timed: tuple[PairTensors, TrainingConfig]) -> None:
    train(*timed, n_steps=STEPS_TIMED, seed=seed)


def _time_joint_map(images: np.ndarray, texts: np.ndarray, width: int) -> tuple[float, float]:
    """Seconds of one fit of the joint space, and of a pair's part in it."""
    moments = Moments.of(images, texts)
    per_pair = _timed(lambda: Moments.of(images, texts)) / len(images)
    return _timed(lambda: fit_joint_map(moments, width)), per_pair


def _time_cosines(rng: np.random.Generator, width: int) -> float:
    """Seconds of one cosine in a block of many, with an exponential of it."""
    few, many = (rng.standard_normal((n, width), dtype=np.float32) for n in (512, 4096))
    few, many = (
        few / np.linalg.norm(few, axis=1)[:, None],
        many / np.linalg.norm(many, axis=1)[:, None],
    )

    def block() -> None:
        np.exp(few @ many.T).sum(axis=1)

    block()
    return _timed(block) / (len(few) * len(many))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


STAGES = (  # as `expected_seconds` names them, with the number that `--skip_stage` knows them by
    ("embedding", 1),
    ("clustering", 1),
    ("trust", 2),
    ("cluster influence", 2),
    ("validation of it", 2),
    ("pair influence", 2),
    ("keep curve", 3),
    ("curation", 3),
    ("baselines", None),
    ("evaluation", None),
    ("export", None),
    ("results", None),
    ("report", None),
)


def expected_seconds(config: Config, sizes: Sizes, speed: Speed) -> dict[str, float]:
    """How long each stage takes, by the names in `STAGES`; those of `--skip_stage` take none.

    Trainings are counted as if early stopping did not stop them, so that data which is soon
    learnt by heart takes less. Beside a run of 1,500 synthetic pairs with the embedded encoder, on
    two CPU cores that other work kept busy, each stage of more than ten seconds was foretold
    within a factor of two by a dry run made while it ran; larger data and other encoders were not
    measured.
    """
    estimates = (
        _embedding_seconds(sizes, speed),
        _clustering_seconds(config, sizes, speed),
        _trust_seconds(sizes, speed),
        _influence_seconds(config, sizes, speed),
        _validation_seconds(config, sizes, speed),
        _pair_influence_seconds(config, sizes, speed),
        _keep_curve_seconds(config, sizes, speed),
        CURATION_SECONDS * sizes.train,
        _baseline_seconds(config, sizes, speed),
        _evaluation_seconds(config, sizes, speed),
        _export_seconds(config, sizes, speed),
        RESULTS_SECONDS,
        _report_seconds(config, sizes),
    )
    skipped = config.execution.skip_stage
    return {
        name: 0.0 if number in skipped else seconds
        for (name, number), seconds in zip(STAGES, estimates, strict=True)
    }


def _embedding_seconds(sizes: Sizes, speed: Speed) -> float:
    n_images = sizes.train + sizes.validation + sizes.test_images
    n_captions = sizes.train + sizes.validation + sizes.test_captions
    joint = (N_FOLDS + 1) * speed.joint_seconds + sizes.train * speed.joint_pair_seconds
    return n_images / speed.images_per_second + n_captions / speed.captions_per_second + joint


def _clustering_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    n, n_clusters = sizes.train, config.clustering.n_clusters_of(sizes.train)
    n_rows = CLUSTERING_PASSES * n
    if n > SAMPLED_ABOVE:
        n_rows = SAMPLE_STEPS * sample_size(n, n_clusters) + (FULL_STEPS + 1) * n
    n_cosines = n_rows * n_clusters
    return n_cosines * speed.cosine_seconds + DESCRIBING_SECONDS * sizes.train


def _trust_seconds(sizes: Sizes, speed: Speed) -> float:
    """Agreement in the encoder's space and in that of a map, of held-out pairs beside others."""
    n, held_out = sizes.train, sizes.validation + sizes.test_captions
    n_cosines = 2 * agreement_cosines(n) + 4 * held_out * min(n, NORMALISATION_BATCH)
    joint = (JUDGING_FOLDS + 1) * speed.joint_seconds + n * speed.joint_pair_seconds
    return n_cosines * speed.cosine_seconds + joint


def _influence_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """Early stopping, then the reference models, with `METAGRADIENT` side by side."""
    n_steps, n_models = reference_steps(config, sizes), config.influence.influence_seeds
    batches = sizes.validation / config.training.batch_size
    grown = _growth(config, sizes.train, n_steps)
    search = n_steps + REFERENCE_REPORTS * FORWARD * batches
    if config.influence.estimator == METAGRADIENT:
        shared = n_models * (SWEEP + n_folds(config, sizes)) * n_steps * speed.shared_step_seconds
        # One sweep is not shared among cores.
        alone = max(shared, SWEEP * n_steps * speed.step_seconds)
        return grown * (search * speed.step_seconds + alone)
    n_batches = min(sizes.train, MAX_CURVATURE_PAIRS) / config.training.batch_size
    asked = CURVATURE_PASSES[config.influence.estimator] * n_batches
    return (search + n_models * (n_steps + asked)) * speed.step_seconds


def _growth(config: Config, n_trained: float, n_steps: int) -> float:
    """How much larger than `--batch_size` batches are of which so many steps hold all pairs."""
    b = config.training.batch_size
    return grown_batch_size(round(n_trained), b, max(1, n_steps)) / b


def _validation_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    c = config.influence_validation
    if c.validate_influence == 0:
        return 0.0
    n_trainings = (3 * c.validate_influence + 1) * c.validation_seeds
    return n_trainings * reference_steps(config, sizes) * speed.shared_step_seconds


def _pair_influence_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """Two models a repeat and what they are asked, then what agreement there is; each round."""
    c, b, n = config.pair_influence, config.training.batch_size, sizes.train
    n_steps = min(reference_steps(config, sizes), c.held_out_steps)
    validation_batches = sizes.validation / b
    n_gradients = 1 + (sum(map(len, GROUP_WORDS.values())) if c.fairness else 0)
    asked = len(CHECKPOINTS) * (
        VALIDATION_SHUFFLES * n_gradients * GRADIENT * validation_batches
        + LOSS_SHUFFLES * FORWARD * n / b
    )
    n_models = 2 * c.held_out_repeats
    search = n_steps + REFERENCE_REPORTS * FORWARD * validation_batches
    derivatives = INFLUENCE_SHUFFLES * math.ceil(n_evaluated(c, n) / 2 / b) * PAIR_DERIVATIVE
    derivatives *= 2 if c.fairness else 1
    alone = search + n_models * len(CHECKPOINTS) * derivatives
    n_witnesses = min(n, MAX_WITNESSES) if n <= ALL_NORMALISED else math.isqrt(n)
    n_views = 0 if c.encoder_agreement_only else 1  # fitting its maps takes seconds
    n_cosines = n_views * agreement_cosines(n) + 2 * n * n_witnesses
    return c.rounds * (
        alone * speed.step_seconds
        + n_models * (_growth(config, n / 2, n_steps) * n_steps + asked) * speed.shared_step_seconds
        + n_cosines * speed.cosine_seconds
    )


def keep_curve_trainings(config: Config, sizes: Sizes) -> tuple[int, int]:
    """How many short trainings tell how much to keep, and the steps of each."""
    per_epoch = steps_per_epoch(sizes.train, config.training.batch_size)
    return N_SEEDS * (len(SHARES) + 1), min(config.training.num_epochs * per_epoch, MOST_STEPS)


def _keep_curve_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """Short trainings side by side, what each is asked, and the choice at each share."""
    n_trainings, n_steps = keep_curve_trainings(config, sizes)
    n_asked = min(sizes.validation, MOST_RANKED)
    grown = _growth(config, sizes.train, 4 * n_steps)
    steps = grown * n_steps + FORWARD * n_asked / config.training.batch_size
    # One training is not shared among cores.
    trained = max(n_trainings * speed.shared_step_seconds, speed.step_seconds) * steps
    ranked = n_trainings * 2 * n_asked**2 * speed.cosine_seconds
    return trained + ranked + CHOOSING_SECONDS * (len(SHARES) + 1) * sizes.train


def _baseline_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    n = sizes.train
    kept = curated_size(n, config.curation.share)
    n_clusters = config.clustering.n_clusters_of(n)
    counts = Counts(n, kept, sizes.validation, n_clusters)
    chosen = [METHODS[name] for name in config.evaluation.methods]
    n_steps = sum(method.steps_a_batch for method in chosen) * n / config.training.batch_size
    n_steps += sum(method.steps for method in chosen)
    n_cosines = sum(method.cosines(counts) for method in chosen)
    return n_steps * speed.step_seconds + n_cosines * speed.cosine_seconds


def _evaluation_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """Every training, side by side, with its reports and the ranks of the test queries."""
    training, c, n = config.training, config.evaluation, sizes.train
    if not c.methods:
        return 0.0
    full, part = (
        training.num_epochs * steps_per_epoch(m, training.batch_size)
        for m in (n, curated_size(n, config.curation.share))
    )
    n_others = len(set(c.methods) - {FULL})
    n_steps = c.n_seeds * (n_others * (full + part) + (FULL in c.methods) * full)
    reports = TRAINING_REPORTS * FORWARD * sizes.validation / training.batch_size
    n_cosines = 2 * sizes.test_images * sizes.test_captions
    trainings = max(
        (n_steps + n_trained(config) * reports) * speed.shared_step_seconds,
        (full + reports) * speed.step_seconds,
    )
    return trainings + n_trained(config) * n_cosines * speed.cosine_seconds


def _export_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """At most: images are read again, once a format, but not encoded."""
    n_formats = len(set(config.export.export) & set(NEED_IMAGES))
    kept = curated_size(sizes.train, config.curation.share)
    return n_formats * kept / speed.images_per_second


def _report_seconds(config: Config, sizes: Sizes) -> float:
    if config.report.no_report:
        return 0.0
    n = sizes.train
    mapped = LANDMARK_SECONDS * min(n, N_LANDMARKS) + NEIGHBOURS_SECONDS * n
    return mapped + PHOTOGRAPH_SECONDS * n_photographs(config, sizes)

"""What a run would do, before it does it: a few pairs, counts, expected times and disk space.

A sample is read and encoded as the run would do it, and a few training steps are timed. The rest
is counted: how many steps, images and comparisons each stage takes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL.Image
import torch

import artifacts
from agreement import FIT_BATCH, MAX_WITNESSES, N_NORMALISATIONS, NORMALISATION_BATCH
from artifacts import Mode, StaleError
from baselines import BASELINES
from cell_influence import MIN_EVALUATED
from clustering import MINI_BATCH_ABOVE
from config import Config
from cross_fitting import CHECKPOINTS, INFLUENCE_SHUFFLES, LOSS_SHUFFLES, VALIDATION_SHUFFLES
from curation import curated_size
from curvature import MAX_CURVATURE_PAIRS
from data import (
    SPLITS,
    DataConfig,
    PairReader,
    PairSource,
    UnusableImage,
    decode_pixels,
)
from embedding import READ_ORDER
from encoders import EMBEDDED_WARNING, Encoded, Encoder, GivenEmbeddings, load_encoder
from influence import FIRST_ORDER, METAGRADIENT, REFERENCE_REPORTS, STEP
from joint import JOINT_DIMENSIONS, N_FOLDS, Moments, fit_joint_map
from model import PairTensors
from sources import SYNTHETIC_WARNING
from stages import Run
from train_eval import COMPARISONS, FULL
from training import TrainingConfig, side_by_side, steps_per_epoch, train
from trust import JUDGING_FOLDS

logger = logging.getLogger(__name__)

SAMPLE_LIMITS = {"train": 64, "validation": 8, "test": 8}
IMAGES_AT_ONCE = 16  # so that reading and encoding overlap in a small sample as they do in a run
N_SHOWN_PAIRS = 5
N_SHOWN_SKIPPED = 3
MAX_SHOWN_KEY = 32
N_PHOTOGRAPHS = 8  # whose size is looked up where embeddings stand for images

# --- What is counted in training steps: measured beside them, one CPU thread each -----------------
STEPS_TIMED = 30
ROWS_TIMED = 2048  # of random features; more make a step no slower
SWEEP = 5.5  # training and going back through it, for each step of the training
FORWARD = 0.25  # the loss of a batch
TRAINING_REPORTS = 10  # of the validation loss, in every compared training
GRADIENT = 0.8  # and its gradient, without an optimiser
PAIR_DERIVATIVE = 1.0  # the influence of a batch's pairs on a model
DATAINF = 5.0  # of `individual_influence`, for each batch of the training pairs
PLAIN_GRADIENT = 4.0  # of `gradient_similarity`, likewise
CURVATURE_PASSES = {FIRST_ORDER: 40.0, STEP: 65.0}  # likewise, for each reference model
# --- What is counted in cosines, and what in seconds ----------------------------------------------
CLUSTERING_PASSES = 180  # over all pairs and clusters; with mini-batches a tenth
FIT_SCALES = 48  # temperatures that agreement is fitted with
K_CENTER = 3  # a product with one vector uses no cache
DESCRIBING_SECONDS = 4e-4  # a pair, for the words of clusters and cells
CURATION_SECONDS = 1e-4  # a pair, the ledger included
RESULTS_SECONDS = 10.0  # figures and tables
# --- What is counted in bytes ---------------------------------------------------------------------
NPY_HEADER = 128
TABLE_ROW = 110  # of a kept pair in stage 1, beside its caption and key: hashes, positions
LATER_ROW = 560  # of a training pair in all later stages, a third of it the rivals'
CLUSTER_BYTES = 5500  # of words, captions and cells
TRAINING_BYTES = 1100  # of losses on the way
FIGURE_BYTES = 2_600_000  # all figures and pages
PHOTOGRAPH_BYTES = 100_000  # on a contact sheet
PHOTOGRAPHS = 108  # on the contact sheets, at most
EXPORTED_ROW = {  # beside the image, the caption and the key
    "webdataset": 2900,  # three headers, padding to 512 bytes, what is known of the pair
    "datacomp": 16,
    "parquet": 80,
    "hf": 150,
    "list": 82,
}
WITHOUT_IMAGES = ("datacomp", "list")


def preview(run: Run) -> str:
    """What the run would read, take and write, as text for a terminal. Nothing is written.

    Args:
        run: its output folder need not exist.

    Raises:
        InputError: the data set or the encoder cannot be had, or a split has no usable pair.
    """
    config = run.config
    data = open_data(run)
    sample = read_sample(data, config)
    counts = count_splits(data.source, sample, config.data)
    sizes = sizes_of(counts)
    speed = measure_speed(sample, sizes, config.training, run.device)
    seconds = expected_seconds(config, sizes, speed)
    needed = expected_bytes(config, sizes, sample)
    columns = shutil.get_terminal_size().columns
    parts = [
        _origin_lines(data),
        _counts_lines(counts),
        [_cut(line, columns) for line in _skipped_lines(sample)],
        [_cut(line, columns) for line in _pair_lines(sample)],
        _time_lines(config, sizes, speed, seconds),
        _disk_lines(needed, Path(config.run.output_dir)),
        ["Nothing was written."],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


# --- Reading --------------------------------------------------------------------------------------


class OpenData(NamedTuple):
    """A data set, what embeds it and what makes the embedder's input of an image file."""

    source: PairSource
    encoder: Encoder
    decode: Callable[[bytes], np.ndarray]


def open_data(run: Run) -> OpenData:
    """The data set and the encoder that stage 1 would take, with its warnings.

    Raises:
        InputError: one of them cannot be had.
    """
    config = run.config
    if config.data.embeddings_dir is not None:
        from precomputed import open_embeddings

        given = open_embeddings(config.data, rng=run.rng("data"))
        encoder = GivenEmbeddings(given.name, given.texts_at)
        return OpenData(given.source, encoder, given.decode)
    dataset, encoder_model = _meant_before(run)
    source = run.open_source(dataset)
    chosen = replace(config.embedding, encoder_model=encoder_model)
    used = load_encoder(chosen, device=run.device)
    return OpenData(source, used, decode_pixels(used.preprocess, config.data.max_image_pixels))


def _meant_before(run: Run) -> tuple[str, str]:
    """Data set and encoder; `auto` is what it was when it was saved, if saved results count."""
    config, stage = run.config, artifacts.EMBEDDING
    wanted = {"dataset": config.data.dataset, "encoder_model": config.embedding.encoder_model}
    earlier: Mapping[str, str] = {}
    if run.mode(stage) is not Mode.RUN:
        try:
            earlier = run.store.manifest(stage)["settings"]
        except StaleError:
            logger.debug("no earlier embedding")
    if earlier.get("embeddings_dir") is not None:
        earlier = {}  # of other data: it says nothing about what `auto` means
    for name, fallback, warning in (
        ("dataset", "synthetic", SYNTHETIC_WARNING),
        ("encoder_model", "embedded", EMBEDDED_WARNING),
    ):
        if wanted[name] == "auto" and name in earlier:
            wanted[name] = earlier[name]
            if wanted[name] == fallback:
                logger.warning(warning)
    return wanted["dataset"], wanted["encoder_model"]


class ImageFile(NamedTuple):
    """The size of an image file and of its picture."""

    n_bytes: int
    width: int
    height: int


@dataclass(frozen=True)
class Widths:
    """Of what stage 1 saves: the towers' features and the joint space."""

    image: int
    text: int
    joint: int | None  # None where the joint space is fitted to the training pairs

    def embedding(self, n_train: int) -> int:
        """Width of the joint space for a number of training pairs."""
        if self.joint is not None:
            return self.joint
        n_fitted = n_train - math.ceil(n_train / N_FOLDS)
        return max(1, min(JOINT_DIMENSIONS, self.image, self.text, n_fitted - 1))


@dataclass(frozen=True)
class Sample:
    """The first pairs of every split, read and encoded.

    Attributes:
        limits: the most of each split that was asked for; see `DataConfig.limits`.
        pairs: what is kept, see `PairReader.pairs`.
        skipped: what is not, see `PairReader.skipped`.
        files: image files by their SHA-256; none where embeddings stand for the images.
        image_bytes: mean size of an image file; None where there is none.
        widths: of the features.
        images_per_second: read, decoded and encoded.
        captions_per_second: encoded.
    """

    limits: Mapping[str, int]
    pairs: pd.DataFrame
    skipped: pd.DataFrame
    files: Mapping[str, ImageFile]
    image_bytes: float | None
    widths: Widths
    images_per_second: float
    captions_per_second: float

    def n_kept(self, split: str) -> int:
        """In the unit of the limits: test images, pairs of the other splits."""
        pairs = self.pairs[self.pairs["split"] == split]
        return pairs["image_row"].nunique() if split == "test" else len(pairs)


def sample_config(config: DataConfig) -> DataConfig:
    """The same data, a few of each split."""
    few = {split: min(limit, SAMPLE_LIMITS[split]) for split, limit in config.limits().items()}
    return replace(
        config,
        max_train_samples=few["train"],
        max_val_samples=few["validation"],
        max_test_samples=few["test"],
    )


def read_sample(data: OpenData, config: Config) -> Sample:
    """Read and encode a few pairs; held-out ones first and untimed, to warm up.

    Raises:
        InputError: a split has no usable pair.
    """
    small = sample_config(config.data)
    files: dict[str, ImageFile] = {}
    has_files = config.data.embeddings_dir is None
    decode = _noting_files(data.encoder, small, files) if has_files else data.decode
    reader = PairReader(data.source, small, decode=decode)
    at_once = min(config.embedding.encoder_batch_size, IMAGES_AT_ONCE)
    for split in READ_ORDER[:-1]:
        _encode_images(reader, split, data.encoder, at_once)
    started = time.perf_counter()
    n_images, images = _encode_images(reader, "train", data.encoder, at_once)
    image_seconds = time.perf_counter() - started

    pairs = reader.pairs()
    in_training = pairs["split"] == "train"
    _encode_captions(pairs[~in_training], data.encoder)
    started = time.perf_counter()
    texts = _encode_captions(pairs[in_training], data.encoder)
    caption_seconds = time.perf_counter() - started

    joint = None if images.projections is None else images.projections.shape[1]
    return Sample(
        limits=small.limits(),
        pairs=pairs,
        skipped=reader.skipped(),
        files=files,
        image_bytes=_mean_image_bytes(files, data.source, pairs["key"].unique()),
        widths=Widths(images.features.shape[1], texts.features.shape[1], joint),
        images_per_second=n_images / image_seconds,
        captions_per_second=int(in_training.sum()) / caption_seconds,
    )


def _noting_files(
    encoder: Encoder, config: DataConfig, files: dict[str, ImageFile]
) -> Callable[[bytes], np.ndarray]:
    """`decode_pixels` that also enters the sizes of what it decodes into `files`."""

    def decode(data: bytes) -> np.ndarray:
        sizes: list[tuple[int, int]] = []

        def preprocess(image: PIL.Image.Image) -> np.ndarray:
            sizes.append(image.size)
            return encoder.preprocess(image)

        pixels = decode_pixels(preprocess, config.max_image_pixels)(data)
        files[hashlib.sha256(data).hexdigest()] = ImageFile(len(data), *sizes[0])
        return pixels

    return decode


def _encode_images(
    reader: PairReader, split: str, encoder: Encoder, at_once: int
) -> tuple[int, Encoded]:
    """Read and encode a split; the number of images and the last batch of features."""
    n_images, images = 0, reader.images(split)
    while batch := list(islice(images, at_once)):
        encoded = encoder.encode_images(np.stack([image.pixels for image in batch]))
        n_images += len(batch)
    return n_images, encoded


def _encode_captions(pairs: pd.DataFrame, encoder: Encoder) -> Encoded:
    if isinstance(encoder, GivenEmbeddings):
        return encoder.texts_at(pairs["position"].to_numpy(np.int64))
    return encoder.encode_texts(pairs["caption"].tolist())


def _mean_image_bytes(
    files: Mapping[str, ImageFile], source: PairSource, keys: Sequence[str] | np.ndarray
) -> float | None:
    """Mean size of the image files; looked up in the source where none was read."""
    sizes = [file.n_bytes for file in files.values()]
    for key in [] if sizes else keys[:N_PHOTOGRAPHS]:
        try:
            sizes.append(len(source.read_image(key)))
        except (KeyError, OSError, UnusableImage) as error:
            logger.debug("no photograph %s: %s", key, error)
    return float(np.mean(sizes)) if sizes else None


# --- Counting -------------------------------------------------------------------------------------


class SplitCount(NamedTuple):
    """How much of a split there is, and how much of it the run takes.

    Attributes:
        images: candidates; None where that is not known without reading them.
        captions: candidates, one an image for validation; None likewise.
        limit: the most that the run takes: test images, pairs of the other splits.
        used: what it takes, in the same unit.
        used_captions: of those.
        is_exact: nothing is left to be read that could change `used`; else it is the most.
    """

    images: int | None
    captions: int | None
    limit: int
    used: int
    used_captions: int
    is_exact: bool


class Sizes(NamedTuple):
    """Pairs, and images and captions of the test set."""

    train: int
    validation: int
    test_images: int
    test_captions: int


def count_splits(source: PairSource, sample: Sample, config: DataConfig) -> dict[str, SplitCount]:
    """What there is of every split, and what of it the run takes."""
    counts: dict[str, SplitCount] = {}
    is_exact = True
    for split in READ_ORDER:
        limit, kept = config.limits()[split], sample.n_kept(split)
        images, captions = source.n_images(split), None
        if images is not None:  # then it can be gone through twice
            captions = sum(len(record.captions) for record in source.records(split))
        # An image in an earlier split is skipped, so that what is exact begins with the first.
        is_exact = is_exact and (kept < sample.limits[split] or sample.limits[split] == limit)
        available = images if split == "test" else captions
        used = kept if is_exact else min(limit, limit if available is None else available)
        n_captions = int((sample.pairs["split"] == split).sum())
        counts[split] = SplitCount(
            images, captions, limit, used, round(used * n_captions / kept), is_exact
        )
    return {split: counts[split] for split in SPLITS}


def sizes_of(counts: Mapping[str, SplitCount]) -> Sizes:
    """What the stages work on."""
    test = counts["test"]
    return Sizes(counts["train"].used, counts["validation"].used, test.used, test.used_captions)


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

    def train_some(seed: int) -> None:
        train(pairs, config, n_steps=STEPS_TIMED, seed=seed)

    train_some(0)
    alone = _timed(lambda: train_some(0)) / STEPS_TIMED
    device = pairs.images.device
    if device.type != "cpu":
        return alone, alone
    n_trainings = os.cpu_count() or 1
    with side_by_side(device) as pool:
        together = _timed(lambda: list(pool.map(train_some, range(n_trainings))))
    return alone, together / (n_trainings * STEPS_TIMED)


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
    ("curation", 3),
    ("baselines", None),
    ("evaluation", None),
    ("export", None),
    ("results", None),
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
        CURATION_SECONDS * sizes.train,
        _baseline_seconds(config, sizes, speed),
        _evaluation_seconds(config, sizes, speed),
        _export_seconds(config, sizes, speed),
        RESULTS_SECONDS,
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
    passes = CLUSTERING_PASSES if sizes.train <= MINI_BATCH_ABOVE else CLUSTERING_PASSES / 10
    n_cosines = passes * sizes.train * config.clustering.n_clusters
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
    search = n_steps + REFERENCE_REPORTS * FORWARD * batches
    if config.influence.estimator == METAGRADIENT:
        shared = n_models * (SWEEP + n_folds(config)) * n_steps * speed.shared_step_seconds
        # One sweep is not shared among cores.
        return search * speed.step_seconds + max(shared, SWEEP * n_steps * speed.step_seconds)
    n_batches = min(sizes.train, MAX_CURVATURE_PAIRS) / config.training.batch_size
    asked = CURVATURE_PASSES[config.influence.estimator] * n_batches
    return (search + n_models * (n_steps + asked)) * speed.step_seconds


def _validation_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    c = config.influence_validation
    if c.validate_influence == 0:
        return 0.0
    n_trainings = (3 * c.validate_influence + 1) * c.validation_seeds
    return n_trainings * reference_steps(config, sizes) * speed.shared_step_seconds


def _pair_influence_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """Two models a repeat and what they are asked, then what agreement there is; each round."""
    c, b, n = config.cell_influence, config.training.batch_size, sizes.train
    n_steps = min(reference_steps(config, sizes), c.held_out_steps)
    validation_batches = sizes.validation / b
    asked = len(CHECKPOINTS) * (
        VALIDATION_SHUFFLES * GRADIENT * validation_batches + LOSS_SHUFFLES * FORWARD * n / b
    )
    n_models = 2 * c.held_out_repeats
    search = n_steps + REFERENCE_REPORTS * FORWARD * validation_batches
    n_evaluated = min(n, max(c.influence_budget * n, MIN_EVALUATED))
    derivatives = INFLUENCE_SHUFFLES * math.ceil(n_evaluated / 2 / b) * PAIR_DERIVATIVE
    alone = search + n_models * len(CHECKPOINTS) * derivatives
    n_views = 0 if c.encoder_agreement_only else 1  # fitting its maps takes seconds
    n_cosines = n_views * agreement_cosines(n) + 2 * n * min(n, MAX_WITNESSES)
    return c.rounds * (
        alone * speed.step_seconds
        + n_models * (n_steps + asked) * speed.shared_step_seconds
        + n_cosines * speed.cosine_seconds
    )


def _baseline_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    n, methods = sizes.train, set(config.evaluation.methods)
    n_batches = n / config.training.batch_size
    n_steps = {
        "individual_influence": DATAINF * n_batches,
        "gradient_similarity": PLAIN_GRADIENT * n_batches,
    }
    n_cosines = {
        "coreset_selection": K_CENTER * n * curated_size(n, config.curation.target_size_ratio),
        "neg_clip_loss": agreement_cosines(n),
        "neg_clip_loss_normsim": agreement_cosines(n) + n * sizes.validation,
        "semdedup": n * n / config.clustering.n_clusters,
        "text_alpha_sampling": CLUSTERING_PASSES / 3 * n * config.clustering.n_clusters,
    }
    return (
        sum(steps for name, steps in n_steps.items() if name in methods) * speed.step_seconds
        + sum(count for name, count in n_cosines.items() if name in methods) * speed.cosine_seconds
    )


def _evaluation_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """Every training, one after the other, with its reports and the ranks of the test queries."""
    training, c, n = config.training, config.evaluation, sizes.train
    full, part = (
        training.num_epochs * steps_per_epoch(m, training.batch_size)
        for m in (n, curated_size(n, config.curation.target_size_ratio))
    )
    n_others = len(set(c.methods) - {FULL})
    n_steps = c.n_seeds * (n_others * (full + part) + (FULL in c.methods) * full)
    reports = TRAINING_REPORTS * FORWARD * sizes.validation / training.batch_size
    n_cosines = 2 * sizes.test_images * sizes.test_captions
    return (n_steps + n_trained(config) * reports) * speed.step_seconds + (
        n_trained(config) * n_cosines * speed.cosine_seconds
    )


def _export_seconds(config: Config, sizes: Sizes, speed: Speed) -> float:
    """At most: images are read again, once a format, but not encoded."""
    n_formats = len(set(config.export.export) - set(WITHOUT_IMAGES))
    kept = curated_size(sizes.train, config.curation.target_size_ratio)
    return n_formats * kept / speed.images_per_second


def reference_steps(config: Config, sizes: Sizes) -> int:
    """Steps of a reference training's schedule."""
    per_epoch = steps_per_epoch(sizes.train, config.training.batch_size)
    return min(config.training.num_epochs * per_epoch, config.influence.max_reference_steps)


def n_folds(config: Config) -> int:
    """Retrainings of a reference model for the finite-removal correction."""
    folds = min(config.influence.removal_folds, config.clustering.n_clusters)
    return folds if folds > 1 else 0


def n_trained(config: Config) -> int:
    """Trainings of the evaluation; the full data's serve both comparisons."""
    methods = config.evaluation.methods
    n_runs = len(COMPARISONS) * len(methods) - (len(COMPARISONS) - 1) * (FULL in methods)
    return config.evaluation.n_seeds * n_runs


def agreement_cosines(n: int) -> int:
    """What `agreement.normalised_agreement` of n pairs compares."""
    n_shuffles = N_NORMALISATIONS if n > NORMALISATION_BATCH else 1
    fitting = FIT_SCALES * min(n, FIT_BATCH) ** 2
    return fitting + n_shuffles * n * min(n, NORMALISATION_BATCH)


# --- Disk -----------------------------------------------------------------------------------------


def stage1_arrays(sizes: Sizes, widths: Widths, n_clusters: int) -> dict[str, int]:
    """Bytes of every array file of stage 1, by name.

    Exact, given the sizes; k-means finds fewer clusters where there are fewer distinct pairs.
    """
    n, v, e, q = sizes
    d = widths.embedding(n)
    floats = {
        "image_embeddings": n * d,
        "text_embeddings": n * d,
        "concatenated_embeddings": n * 2 * d,
        "image_features": n * widths.image,
        "text_features": n * widths.text,
        "clip_scores": n,
        "validation_image_features": v * widths.image,
        "validation_text_features": v * widths.text,
        "validation_image_embeddings": v * d,
        "validation_text_embeddings": v * d,
        "test_image_features": e * widths.image,
        "test_text_features": q * widths.text,
        "test_image_embeddings": e * d,
        "test_text_embeddings": q * d,
        "centers": n_clusters * 2 * d,
    }
    integers = {
        "indices": n,
        "test_caption_image": q,
        "cluster_assignments": n,
        "cell_assignments": n,
        "better_copies": n,
    }
    return {f"{name}.npy": NPY_HEADER + 4 * count for name, count in floats.items()} | {
        f"{name}.npy": NPY_HEADER + 8 * count for name, count in integers.items()
    }


def expected_bytes(config: Config, sizes: Sizes, sample: Sample) -> dict[str, int | None]:
    """What the run leaves on disk, by part; None where the photographs' size is not known.

    In a new folder it is also the most that there is on the way: a file is written under another
    name and renamed.

    Args:
        config: settings of the run.
        sizes: of the splits.
        sample: whose files, captions and widths stand for all.
    """
    n, v, e, q = sizes
    n_clusters, n_trainings = config.clustering.n_clusters, n_trained(config)
    text = _mean_text_bytes(sample.pairs)
    model = 4 * (sample.widths.image + sample.widths.text) * config.training.embed_dim
    needed: dict[str, int | None] = {
        "stage 1, arrays": sum(stage1_arrays(sizes, sample.widths, n_clusters).values()),
        "stage 1, tables": round((n + v + q) * (text + TABLE_ROW)) + n_clusters * CLUSTER_BYTES,
        "later stages": round(n * (LATER_ROW + text))
        + model
        + n_trainings * (8 * (e + q) + TRAINING_BYTES),
        "figures, pages": FIGURE_BYTES
        + (PHOTOGRAPHS * PHOTOGRAPH_BYTES if config.execution.visualize else 0),
    }
    if config.execution.save_checkpoints:
        needed["trained models"] = n_trainings * model
    kept = curated_size(n, config.curation.target_size_ratio)
    return needed | export_bytes(config.export.export, kept, sample.image_bytes, text)


def export_bytes(
    formats: Sequence[str], n_pairs: int, image_bytes: float | None, text_bytes: float
) -> dict[str, int | None]:
    """What the exports of the kept pairs take, by format.

    Args:
        formats: of `--export`.
        n_pairs: that are kept; each is written with its image.
        image_bytes: mean size of an image file; None where there are none.
        text_bytes: mean size of a caption and a key.

    Returns:
        None for a format with images whose size is not known.
    """
    needed: dict[str, int | None] = {}
    for name in formats:
        row = EXPORTED_ROW[name] + (0 if name == "datacomp" else text_bytes)
        image = 0.0 if name in WITHOUT_IMAGES else image_bytes
        needed[f"export, {name}"] = None if image is None else round(n_pairs * (image + row))
    return needed


def _mean_text_bytes(pairs: pd.DataFrame) -> float:
    lengths = [len(text.encode()) for name in ("caption", "key") for text in pairs[name]]
    return sum(lengths) / len(pairs)


# --- Text -----------------------------------------------------------------------------------------


def _origin_lines(data: OpenData) -> list[str]:
    """Where the pairs come from, what held-out ones do, and what embeds them."""
    pool, *others = data.source.origins
    held_out = [f"Held out  {origin}" for origin in others]
    return [f"Data set  {pool}", *held_out, f"Encoder   {data.encoder.name}"]


def _counts_lines(counts: Mapping[str, SplitCount]) -> list[str]:
    rows = [("Split", "images", "captions", "limit", "used")]
    for split, c in counts.items():
        limit = f"{c.limit:,} {'images' if split == 'test' else 'pairs'}"
        used = f"{c.used:,}" if c.is_exact else f"at most {c.used:,}"
        rows.append((split, _known(c.images), _known(c.captions), limit, used))
    return _table(rows)


def _known(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _skipped_lines(sample: Sample) -> list[str]:
    """Counts by reason, then a few examples, of different reasons first."""
    skipped = sample.skipped
    heading = f"Sample    {len(sample.pairs):,} pairs read, {len(skipped):,} skipped"
    if skipped.empty:
        return [heading]
    counts = [(f"  {n:,}", str(reason)) for reason, n in skipped["reason"].value_counts().items()]
    repeated = skipped["reason"].duplicated()
    examples = pd.concat([skipped[~repeated], skipped[repeated]])[:N_SHOWN_SKIPPED]
    keys = dict(zip(sample.pairs["position"], sample.pairs["key"], strict=True))
    named = [
        (f"  {_end(_printable(key))}", reason, _detail(detail, keys.get(first)))
        for key, reason, detail, first in zip(
            *(examples[name] for name in ("key", "reason", "detail", "duplicate_of")), strict=True
        )
    ]
    return [heading, *_table(counts, left=True), "such as", *_table(named, left=True)]


def _detail(detail: str, first_key: str | None) -> str:
    """What is wrong with a pair, with the key of the one that stayed in its place."""
    same = f": {_end(_printable(first_key))}" if first_key is not None else ""
    return _printable(detail) + same


def _pair_lines(sample: Sample) -> list[str]:
    """A few training pairs: key, picture, file, caption."""
    pairs = sample.pairs[sample.pairs["split"] == "train"][:N_SHOWN_PAIRS]
    rows = []
    for key, sha256, caption in zip(
        pairs["key"], pairs["image_sha256"], pairs["caption"], strict=True
    ):
        file = sample.files.get(sha256)
        picture = f"{file.width} x {file.height}" if file else ""
        size = _bytes(file.n_bytes) if file else ""
        rows.append((f"  {_end(_printable(key))}", picture, size, _printable(caption)))
    return ["Pairs", *_table(rows, left=True)]


def _time_lines(
    config: Config, sizes: Sizes, speed: Speed, seconds: Mapping[str, float]
) -> list[str]:
    work = _work(config, sizes)
    skipped = {name for name, number in STAGES if number in config.execution.skip_stage}
    rows = [
        (f"  {name}", "skipped" if name in skipped else _duration(s), work.get(name, ""))
        for name, s in seconds.items()
        if s > 0 or name in skipped
    ]
    rows.append(("  in all", _duration(sum(seconds.values())), ""))
    if config.execution.load_saved:
        rows.append(("", "", "less where --load_saved finds what is current"))
    return [
        f"Speed     {speed.images_per_second:,.1f} images and {speed.captions_per_second:,.0f} "
        f"captions a second; {1000 * speed.step_seconds:.2g} ms a training step, "
        f"{1000 * speed.shared_step_seconds:.2g} ms side by side",
        "",
        "Expected time",
        *_table(rows, left=True),
    ]


def _work(config: Config, sizes: Sizes) -> dict[str, str]:
    """What each stage does, in a few words."""
    n_images = sizes.train + sizes.validation + sizes.test_images
    n_captions = sizes.train + sizes.validation + sizes.test_captions
    n_models, n_steps = config.influence.influence_seeds, reference_steps(config, sizes)
    repeats, methods = config.cell_influence.held_out_repeats, len(config.evaluation.methods)
    return {
        "embedding": f"{n_images:,} images, {n_captions:,} captions",
        "clustering": f"{config.clustering.n_clusters:,} clusters",
        "cluster influence": f"{n_models} reference models of up to {n_steps:,} steps, "
        f"{config.influence.estimator}",
        "pair influence": f"{2 * repeats} held-out models of up to "
        f"{min(n_steps, config.cell_influence.held_out_steps):,} steps, "
        f"rounds: {config.cell_influence.rounds}",
        "baselines": f"{len(set(BASELINES) & set(config.evaluation.methods))} subsets",
        "evaluation": f"{methods} methods x {config.evaluation.n_seeds} seeds x "
        f"{len(COMPARISONS)} comparisons: {n_trained(config)} trainings",
        "export": f"{', '.join(config.export.export)}, at most",
    }


def _disk_lines(needed: Mapping[str, int | None], output_dir: Path) -> list[str]:
    rows = [(f"  {n}", "unknown" if b is None else _bytes(b)) for n, b in needed.items()]
    rows.append(("  in all", _bytes(sum(b for b in needed.values() if b is not None))))
    rows.append(("  free there", _bytes(free_bytes(output_dir))))
    return ["Expected disk space", *_table(rows)]


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or would be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def _table(rows: Sequence[Sequence[str]], left: bool = False) -> list[str]:
    """Aligned columns: the first left, the others right unless `left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if left or i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _printable(text: str) -> str:
    """On one line, without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def _end(key: str) -> str:
    """The end of a long key, which tells more than its beginning."""
    return key if len(key) <= MAX_SHOWN_KEY else "…" + key[1 - MAX_SHOWN_KEY :]


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 99.5:
        return f"{minutes:.1f} min" if minutes < 9.95 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def _bytes(count: int) -> str:
    """With two or three digits that count."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 9.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

"""How many pairs, steps and bytes a run has, from its settings and a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from baselines import FULL
from cli.config import Config
from curation import curated_size
from encoders.joint_map import JOINT_DIMENSIONS, N_FOLDS
from exporting.formats import FORMATS, NEED_IMAGES
from learner.batches import steps_per_epoch
from sources.accounting import Account
from train_eval import COMPARISONS

# --- What is counted in bytes ---------------------------------------------------------------------
NPY_HEADER = 128
TABLE_ROW = 110  # of a kept pair in stage 1, beside its caption and key: hashes, positions
LATER_ROW = 560  # of a training pair in all later stages, a third of it the rivals'
CLUSTER_BYTES = 5500  # of words, captions and cells
TRAINING_BYTES = 1100  # of losses on the way
FIGURE_BYTES = 2_600_000  # all figures and pages
PHOTOGRAPH_BYTES = 100_000  # on a contact sheet
PHOTOGRAPHS = 108  # on the contact sheets, at most
REPORT_BYTES = 1_500_000  # the library that draws, and figures again
REPORT_ROW = 400  # of a training pair: its story, its place and its neighbours, twice
SMALL_PHOTOGRAPH_BYTES = 3500  # saved, in the page and in the atlas


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
        n_cut_off: pairs with a caption longer than what the encoder reads.
        account: what became of every caption of the source, where all of it was read.
    """

    limits: Mapping[str, int]
    pairs: pd.DataFrame
    skipped: pd.DataFrame
    files: Mapping[str, ImageFile]
    image_bytes: float | None
    widths: Widths
    images_per_second: float
    captions_per_second: float
    n_cut_off: int = 0
    account: Account | None = None

    def n_kept(self, split: str) -> int:
        """In the unit of the limits: test images, pairs of the other splits."""
        pairs = self.pairs[self.pairs["split"] == split]
        return pairs["image_row"].nunique() if split == "test" else len(pairs)


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
        is_open: neither a limit nor a count bounds `used`, which is then what was read so far.
    """

    images: int | None
    captions: int | None
    limit: int
    used: int
    used_captions: int
    is_exact: bool
    is_open: bool = False


class Sizes(NamedTuple):
    """Pairs, and images and captions of the test set."""

    train: int
    validation: int
    test_images: int
    test_captions: int


def reference_steps(config: Config, sizes: Sizes) -> int:
    """Steps of a reference training's schedule."""
    per_epoch = steps_per_epoch(sizes.train, config.training.batch_size)
    return min(config.training.num_epochs * per_epoch, config.influence.max_reference_steps)


def n_folds(config: Config, sizes: Sizes) -> int:
    """Retrainings of a reference model for the finite-removal correction."""
    n_clusters = config.clustering.n_clusters_of(sizes.train)
    folds = min(config.influence.removal_folds, n_clusters)
    return folds if folds > 1 else 0


def n_trained(config: Config) -> int:
    """Trainings of the evaluation; the full data's serve both comparisons."""
    methods = config.evaluation.methods
    n_runs = len(COMPARISONS) * len(methods) - (len(COMPARISONS) - 1) * (FULL in methods)
    return config.evaluation.n_seeds * n_runs


# --- Disk -----------------------------------------------------------------------------------------


def n_photographs(config: Config, sizes: Sizes) -> int:
    """How many photographs the report shows."""
    n_images = sizes.train + sizes.validation + sizes.test_images
    return min(n_images, config.report.report_images)


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
    n_clusters, n_trainings = config.clustering.n_clusters_of(sizes.train), n_trained(config)
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
    if not config.report.no_report:
        small = SMALL_PHOTOGRAPH_BYTES * n_photographs(config, sizes)
        needed["report"] = REPORT_BYTES + small + round(n * (REPORT_ROW + text))
    if config.execution.save_checkpoints:
        needed["trained models"] = n_trainings * model
    kept = curated_size(n, config.curation.share)
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
        kind = FORMATS[name]
        row = kind.row_bytes + (text_bytes if kind.has_text else 0)
        image = image_bytes if name in NEED_IMAGES else 0.0
        needed[f"export, {name}"] = None if image is None else round(n_pairs * (image + row))
    return needed


def _mean_text_bytes(pairs: pd.DataFrame) -> float:
    lengths = [len(text.encode()) for name in ("caption", "key") for text in pairs[name]]
    return sum(lengths) / len(pairs)

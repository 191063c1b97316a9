"""Where pairs come from: `open_source` makes the `data.PairSource` that the settings ask for.

How each kind of data is found and understood is in `folders`, `hub`, `shards`, `parquet_files`
and `precomputed`; the splits and the order of candidates are in `candidates`.
"""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

import synthetic
from candidates import IndexedSource, digest
from data import SPLITS, Caption, DataConfig, ImageRecord, PairSource
from folders import open_coco_files, open_folder
from hub import open_hf
from parquet_files import open_parquet
from settings import InputError
from shards import open_shards

logger = logging.getLogger(__name__)

COLUMN_FLAGS = ("image_column", "caption_column", "id_column")
SYNTHETIC_WARNING = (
    "SYNTHETIC DATA: no COCO could be had, so this run uses drawn scenes and says nothing about "
    "photographs. Give --data_dir a folder with annotations/ and train2017/, or use "
    "--dataset folder with images and captions of your own."
)


def open_source(config: DataConfig, *, rng: np.random.Generator) -> PairSource:
    """The source that the settings ask for.

    Args:
        config: `dataset` chooses; an explicit choice never falls back.
        rng: decides carved splits, the order of candidates and the synthetic scenes.

    Raises:
        InputError: the data cannot be had or understood.
    """
    is_local_coco = config.dataset in ("auto", "coco") and config.data_dir is not None
    if config.dataset in ("folder", "webdataset", "synthetic") or is_local_coco:
        files = " with --data_dir" if is_local_coco else ""
        config.warn_of_unused((), f"--dataset {config.dataset}{files}")
    elif config.dataset == "parquet":
        config.warn_of_unused(COLUMN_FLAGS, "--dataset parquet")
    if config.dataset == "folder":
        return open_folder(config, rng)
    if config.dataset == "webdataset":
        return open_shards(config, rng)
    if config.dataset == "parquet":
        return open_parquet(config, rng)
    if config.dataset == "hf":
        return open_hf("hf", config, rng)
    if config.dataset == "synthetic":
        return open_synthetic(config, rng)
    if config.data_dir is not None:
        return open_coco_files(config.data_dir, config, rng)
    try:
        return open_hf("coco", config, rng)
    except InputError as error:
        if config.dataset == "coco":
            raise
        logger.warning("%s (%s)", SYNTHETIC_WARNING, error)
        return open_synthetic(config, rng)


def open_synthetic(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """Drawn scenes, as many as asked for; see `synthetic`."""
    seed = int(rng.integers(2**63))
    limits = config.limits()
    official: dict[str, list[ImageRecord]] = {}
    position = 0
    for split in SPLITS:
        official[split] = []
        for i, example in enumerate(synthetic.make_examples(split, limits[split], seed)):
            captions = tuple(
                Caption(position + j, text, example.fault)
                for j, text in enumerate(example.captions)
            )
            position += len(captions)
            read = partial(synthetic.render, example)
            official[split].append(ImageRecord(f"{split}/{i:06d}", read, captions, example.group))
    fingerprint = digest("synthetic", synthetic.DRAWING_VERSION, seed, limits)
    return IndexedSource("synthetic", "drawn scenes", fingerprint, official, limits, rng)

"""Where pairs come from: `open_source` makes the `data.PairSource` that the settings ask for.

How each kind of data is found and understood is in `folders`, `hub`, `shards`, `parquet_files`
and `precomputed`; the splits and the order of candidates are in `candidates`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np

import synthetic
from candidates import IndexedSource, digest
from combined import CombinedSource, HeldOut, held_out_sets, open_parts, restrict_stream
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
    held_out = held_out_sets(config)
    _warn_of_unused(config, held_out.values())
    if not held_out:
        return _open_one(config, rng)
    if config.dataset == "synthetic":
        flag = next(iter(held_out.values())).flag
        raise InputError(
            f"{flag}: drawn scenes bring their own held-out scenes; leave it out, or give "
            "--data_dir the pairs that are to be curated"
        )
    if config.dataset == "auto":  # which then falls back to nothing
        config = replace(config, dataset="coco")
    pool, others = open_parts(config, held_out, rng, _open_one)
    return CombinedSource(pool, held_out, others)


def _warn_of_unused(config: DataConfig, held_out: Iterable[HeldOut]) -> None:
    """Say which flags about a source were given although no data set has a use for them."""
    is_coco = config.dataset in ("auto", "coco")
    used: set[str] = set()
    if config.dataset == "hf" or (is_coco and config.data_dir is None):
        used = {*COLUMN_FLAGS, "hf_dataset"}
    elif config.dataset == "parquet":
        used = {*COLUMN_FLAGS}
    names = [f"--dataset {config.dataset}"]
    if is_coco and config.data_dir is not None:
        names = [f"{names[0]} with --data_dir"]
    for part in held_out:
        used |= {*COLUMN_FLAGS} if part.layout in ("hf", "parquet") else set()
        names.append(part.flag)
    config.warn_of_unused(sorted(used), " and ".join(names))


def _open_one(config: DataConfig, rng: np.random.Generator) -> PairSource:
    """One data set, whatever it is."""
    if config.dataset == "folder":
        return open_folder(config, rng)
    if config.dataset == "webdataset":
        return open_shards(config, rng)
    if config.dataset == "parquet":
        return open_parquet(config, rng)
    if config.dataset == "hf":
        return restrict_stream(open_hf("hf", config, rng), config)
    if config.dataset == "synthetic":
        return open_synthetic(config, rng)
    if config.data_dir is not None:
        return open_coco_files(config.data_dir, config, rng)
    try:
        return restrict_stream(open_hf("coco", config, rng), config)
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

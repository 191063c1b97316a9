"""The arrays of many training pairs, filled on the disk and never held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64
from tqdm import tqdm

from artifacts.arrays import Filled
from encoders.base import Encoded
from encoders.joint_map import unit_rows
from engine.room import StageRoom
from intake.joint import JointEmbeddings, joint_embeddings
from intake.rows import fill_shard
from sources.row_arrays import fill_jobs
from sources.row_reader import RowReader

ROWS_AT_ONCE = 8192


class TrainingArrays(NamedTuple):
    """Of n training pairs, as in `EmbeddingResult`."""

    image_embeddings: Float32[np.ndarray, "n d"]
    text_embeddings: Float32[np.ndarray, "n d"]
    concatenated_embeddings: Float32[np.ndarray, "n 2*d"]
    image_features: Float32[np.ndarray, "n d_i"]
    text_features: Float32[np.ndarray, "n d_t"]
    clip_scores: Float32[np.ndarray, " n"]


def fill_given(reader: RowReader, pairs: pd.DataFrame, room: StageRoom) -> TrainingArrays:
    """The arrays of many training pairs whose embeddings exist, filled by any workers."""
    n, d = int((pairs["split"] == "train").sum()), reader.files.texts.width
    shapes = {"image_embeddings": (n, d), "text_embeddings": (n, d)}
    shapes["concatenated_embeddings"] = (n, 2 * d)
    if not all(room.has_begun(name) for name in shapes):
        room.forget("unit embeddings")  # what was filled is gone with the arrays
    arrays = {name: room.allocate(name, shape, np.float32) for name, shape in shapes.items()}
    targets = {name: Filled.of(array) for name, array in arrays.items()}
    source = reader.files.part("train").source
    positions = pairs["position"].to_numpy(np.int64)[pairs["split"] == "train"]
    vectors, owners = (source.images, source.texts), source.rows.owners[positions]
    jobs = list(fill_jobs(vectors, targets, positions, owners))
    sizes = [len(job.positions) for job in jobs]
    cosines = room.run("unit embeddings", fill_shard, jobs, sizes=sizes, unit="pair")
    images, texts = arrays["image_embeddings"], arrays["text_embeddings"]
    return TrainingArrays(
        *(images, texts, arrays["concatenated_embeddings"], images, texts),
        np.concatenate([made.load(".npy") for made in cosines]),
    )


def fill_pairs(
    block: Callable[[Int64[np.ndarray, " m"]], tuple[Encoded, Encoded]],
    held_out: Sequence[Encoded],
    image_ids: Int64[np.ndarray, " n"],
    room: StageRoom,
    *,
    rng: np.random.Generator,
) -> tuple[TrainingArrays, JointEmbeddings]:
    """The arrays of many training pairs, filled block by block, and the joint embeddings.

    Args:
        block: images and texts of some pairs.
        held_out: images and texts, of validation, then of test.
        image_ids: which image each pair shows.
        room: where the arrays lie.
        rng: assigns the folds.
    """
    n, first = len(image_ids), block(np.arange(1))
    features = [
        room.allocate(name, (n, side.features.shape[1]), np.float32)
        for name, side in zip(("image_features", "text_features"), first, strict=True)
    ]
    d = None if first[0].projections is None else first[0].projections.shape[1]
    names = ("image_embeddings", "text_embeddings")
    unit = [] if d is None else [room.allocate(name, (n, d), np.float32) for name in names]
    starts = range(0, n, ROWS_AT_ONCE)
    for start in tqdm(starts, desc="features", unit="block", disable=None, leave=False):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, n))
        for i, side in enumerate(block(rows)):
            features[i][rows] = side.features
            if side.projections is not None:
                unit[i][rows] = unit_rows(side.projections)
    sides = [Encoded(values, None) for values in features]
    if unit:
        rest = [unit_rows(side.projections) for side in held_out if side.projections is not None]
        joint = JointEmbeddings(unit[0], unit[1], *rest)
    else:
        joint = joint_embeddings([*sides, *held_out], image_ids, rng=rng)
    both = room.allocate("concatenated_embeddings", (n, 2 * joint.images.shape[1]), np.float32)
    cosines = np.empty(n, np.float32)
    for start in starts:
        at = slice(start, start + ROWS_AT_ONCE)
        one, other = joint.images[at], joint.texts[at]
        both[at] = np.concatenate([one, other], axis=1)
        cosines[at] = (one * other).sum(axis=1)
    train = TrainingArrays(joint.images, joint.texts, both, features[0], features[1], cosines)
    return train, joint

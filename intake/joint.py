"""Embeddings of the joint space for the pairs of all splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from encoders.base import Encoded
from encoders.joint_map import embed_across_folds, unit_rows


class JointEmbeddings(NamedTuple):
    """Unit rows of the joint space for the pairs of each split; for test, images and captions."""

    images: Float32[np.ndarray, "n d"]
    texts: Float32[np.ndarray, "n d"]
    validation_images: Float32[np.ndarray, "V d"]
    validation_texts: Float32[np.ndarray, "V d"]
    test_images: Float32[np.ndarray, "E d"]
    test_texts: Float32[np.ndarray, "Q d"]


def joint_embeddings(
    sides: Sequence[Encoded], image_ids: Int64[np.ndarray, " n"], *, rng: np.random.Generator
) -> JointEmbeddings:
    """The encoder's own projections at unit length, or those of a map fitted to the pairs.

    Args:
        sides: images and texts of training pairs, of validation, of test, as the fields are.
        image_ids: which image each training pair shows.
        rng: assigns the folds.
    """
    own = [side.projections for side in sides if side.projections is not None]
    if own:
        return JointEmbeddings(*map(unit_rows, own))
    images, texts, *others = (side.features for side in sides)
    image_embeddings, text_embeddings, joint_map = embed_across_folds(
        images, texts, image_ids, rng=rng
    )
    embed = (joint_map.embed_images, joint_map.embed_texts) * 2
    return JointEmbeddings(
        *(image_embeddings, text_embeddings),
        *(embed_side(rows) for embed_side, rows in zip(embed, others, strict=True)),
    )

"""Embeddings of the joint space for the pairs of all splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from encoders.base import Encoded
from encoders.joint_map import embed_across_folds, unit_rows
from sources.base import SPLITS


class JointEmbeddings(NamedTuple):
    """Unit rows of the joint space for the pairs of each split; for test, images and captions."""

    images: Float32[np.ndarray, "n d"]
    texts: Float32[np.ndarray, "n d"]
    validation_images: Float32[np.ndarray, "V d"]
    validation_texts: Float32[np.ndarray, "V d"]
    test_images: Float32[np.ndarray, "E d"]
    test_texts: Float32[np.ndarray, "Q d"]


def joint_embeddings(
    images: Mapping[str, Encoded],
    texts: Mapping[str, Encoded],
    image_ids: Int64[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
) -> JointEmbeddings:
    """The encoder's own projections at unit length, or those of a map fitted to the pairs."""
    parts = [side[split] for split in SPLITS for side in (images, texts)]  # as the fields are
    own = [part.projections for part in parts if part.projections is not None]
    if own:
        return JointEmbeddings(*map(unit_rows, own))
    image_embeddings, text_embeddings, joint_map = embed_across_folds(
        images["train"].features, texts["train"].features, image_ids, rng=rng
    )
    return JointEmbeddings(
        image_embeddings,
        text_embeddings,
        joint_map.embed_images(images["validation"].features),
        joint_map.embed_texts(texts["validation"].features),
        joint_map.embed_images(images["test"].features),
        joint_map.embed_texts(texts["test"].features),
    )

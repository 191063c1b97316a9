"""What a worker opens to read and encode: the data set and the encoder, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from platform import node

import numpy as np
import torch

from artifacts.provenance import stage_rng
from artifacts.settings import InputError
from data import open_source
from encoders.base import EmbeddingConfig, Encoder
from encoders.pretrained import load_encoder
from sources.base import DataConfig, PairSource
from sources.images import decode_pixels


@dataclass(frozen=True)
class ReadingJob:
    """How to open them; nothing in it is `auto` any more.

    Attributes:
        data: which pairs.
        embedding: which encoder.
        seed: of the run.
        device: that the encoder works on.
        fingerprint: of the data set as it was opened first; None: whatever is there.
    """

    data: DataConfig
    embedding: EmbeddingConfig
    seed: int
    device: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class Reading:
    """A data set and what encodes it, opened.

    Attributes:
        source: images are read from it by their keys.
        encoder: of images and captions.
        decode: the encoder's input from an image file, see `decode_pixels`.
    """

    source: PairSource
    encoder: Encoder
    decode: Callable[[bytes], np.ndarray]


def open_reading(job: ReadingJob) -> Reading:
    """The data set and the encoder.

    Raises:
        InputError: one of them cannot be had here, or the data are others.
    """
    encoder = load_encoder(job.embedding, device=torch.device(job.device))
    source = open_source(job.data, rng=stage_rng(job.seed, "data"))
    if job.fingerprint not in (None, source.fingerprint):
        place = job.data.data_dir or job.data.dataset
        raise InputError(
            f"--data_dir: {place} holds other files on {node()} than where the run was started, or "
            "they were changed since; all workers need the same data under the same path"
        )
    return Reading(source, encoder, decode_pixels(encoder.preprocess, job.data.max_image_pixels))

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
from sources.embeddings import open_embeddings
from sources.images import SmallCopies, decode_pixels
from sources.processes import ImageProcesses


@dataclass(frozen=True)
class SourceJob:
    """A data set with the choices that a seed makes; nothing in it is `auto` any more.

    Attributes:
        data: which pairs.
        seed: of the run.
        fingerprint: of the data set as it was opened first; None: whatever is there.
    """

    data: DataConfig
    seed: int
    fingerprint: str | None = None


def open_again(job: SourceJob) -> PairSource:
    """A data set, in whatever process.

    Raises:
        InputError: it cannot be had here, or it is another.
    """
    rng, is_given = stage_rng(job.seed, "data"), job.data.embeddings_dir is not None
    source: PairSource
    if is_given:
        source = open_embeddings(job.data, rng=rng).source
    else:
        source = open_source(job.data, rng=rng)
    if job.fingerprint not in (None, source.fingerprint):
        flag = "embeddings_dir" if is_given else "data_dir"
        raise InputError(
            f"--{flag}: {getattr(job.data, flag) or job.data.dataset} holds other files on "
            f"{node()} than where the run was started, or they were changed since; all workers "
            "need the same data under the same path"
        )
    return source


@dataclass(frozen=True)
class ReadingJob:
    """How to open a data set and its encoder.

    Attributes:
        source: the data set.
        embedding: which encoder.
        device: that the encoder works on.
    """

    source: SourceJob
    embedding: EmbeddingConfig
    device: str


@dataclass(frozen=True)
class Reading:
    """A data set and what encodes it, opened.

    Attributes:
        source: images are read from it by their keys.
        encoder: of images and captions.
        decode: the encoder's input from an image file, see `decode_pixels`.
        processes: that make the same of it; None: they cannot.
    """

    source: PairSource
    encoder: Encoder
    decode: Callable[[bytes], np.ndarray]
    processes: ImageProcesses | None = None


def open_reading(job: ReadingJob) -> Reading:
    """The data set and the encoder.

    Raises:
        InputError: one of them cannot be had here, or the data are others.
    """
    encoder = load_encoder(job.embedding, device=torch.device(job.device))
    most = job.source.data.max_image_pixels
    decode = decode_pixels(encoder.prepare, most)
    return Reading(open_again(job.source), encoder, decode, processes_for(encoder, most))


def processes_for(
    encoder: Encoder, max_pixels: int, copies: SmallCopies | None = None
) -> ImageProcesses | None:
    """Processes that make an encoder's input, none of them started; None where only it can."""
    if encoder.resizing is None:
        return None
    return ImageProcesses(encoder.resizing, max_pixels, copies)

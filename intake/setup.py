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
from intake.device_jpegs import DeviceJpegs, can_resize, torchvision_decode
from sources.base import DataConfig, PairSource
from sources.embeddings import open_embeddings
from sources.images import SmallCopies, decode_pixels
from sources.processes import ImageProcesses, ImageReaders


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
    processes: ImageReaders | None = None


def open_reading(job: ReadingJob) -> Reading:
    """The data set and the encoder.

    Raises:
        InputError: one of them cannot be had here, or the data are others.
    """
    encoder = load_encoder(job.embedding, device=torch.device(job.device))
    most = job.source.data.max_image_pixels
    decode = decode_pixels(encoder.prepare, most)
    processes = processes_for(encoder, job.embedding, job.source.data)
    return Reading(open_again(job.source), encoder, decode, processes)


def processes_for(
    encoder: Encoder,
    embedding: EmbeddingConfig,
    data: DataConfig,
    copies: SmallCopies | None = None,
) -> ImageReaders | None:
    """What makes an encoder's input beside it, nothing started; None where only it can.

    Args:
        encoder: whose input.
        embedding: whether JPEGs are decoded on its GPU.
        data: which images are too large.
        copies: kept of the first images.

    Raises:
        InputError: JPEGs cannot be decoded on a GPU here.
    """
    resizing, most = encoder.resizing, data.max_image_pixels
    on_gpu = embedding.jpeg_decoding == "gpu"
    if on_gpu and not data.n_workers():
        raise InputError(
            "--jpeg_decoding gpu: threads hand images to it; give --num_workers 1 or more"
        )
    if on_gpu and not can_resize(resizing):
        raise InputError(
            f"--jpeg_decoding gpu: what {encoder.name} makes of an image is not known well enough "
            "to be done on a GPU; use --jpeg_decoding reduced"
        )
    if resizing is None:
        return None
    processes = ImageProcesses(resizing, most, copies, most=max(1, data.n_workers()))
    if not on_gpu:
        return processes
    decode = torchvision_decode(encoder.device)
    return DeviceJpegs(resizing, most, encoder.device, processes, decode=decode, copies=copies)

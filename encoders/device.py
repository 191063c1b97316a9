"""Encoders of torch: pixels normalised on the device, batches copied while the last is encoded."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from encoders.base import Encoded, Encoder, to_numpy
from encoders.batches import BatchSize, in_batches


@dataclass(frozen=True)
class Normalisation:
    """What an encoder's processor makes of pixels from 0 to 255: (x * scale - mean) / std.

    Attributes:
        scale: usually 1 / 255.
        mean: of each channel.
        std: of each channel.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self, pixels: torch.Tensor, dtype: torch.dtype, room: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalised pixels, (m, 3, h, w), of (m, h, w, 3) in uint8, rounded as float32 first.

        Channels stay the last in memory on a GPU. On the processor they come first, as convolutions
        there round and run as they did with them; and three numbers in a row are no vector.

        Args:
            pixels: on any device.
            dtype: of the normalised ones.
            room: on the processor float32 of the result's shape, which then is in it: memory that
                was used before is written far sooner than new one. None: new memory.
        """
        planes = pixels.permute(0, 3, 1, 2)
        if pixels.device.type == "cpu":
            normal = torch.empty(planes.shape) if room is None else room
            normal.copy_(planes)
        else:
            normal = planes.to(torch.float32)
        mean, std = (
            torch.tensor(x, device=pixels.device).view(-1, 1, 1) for x in (self.mean, self.std)
        )
        return normal.mul_(self.scale).sub_(mean).div_(std).to(dtype)


class Room(threading.local):
    """Memory for a batch of normalised pixels, used again for the next; a thread has its own."""

    def __init__(self) -> None:
        self._values = torch.empty(0)

    def of(self, pixels: torch.Tensor) -> torch.Tensor:
        """For those of (m, h, w, 3), whose batch before is of no use any more; (m, 3, h, w)."""
        if self._values.numel() < pixels.numel():
            self._values = torch.empty(pixels.numel())
        n, height, width, n_channels = pixels.shape
        return self._values[: pixels.numel()].view(n, n_channels, height, width)


class Rows(NamedTuple):
    """What a tower gives, on the device."""

    features: torch.Tensor
    projections: torch.Tensor | None


class DeviceEncoder(Encoder):
    """An encoder whose towers work on a device.

    `resizing` and `normalisation` together make what `preprocess` makes, within rounding; where
    the one cannot be had from a model's processor, neither is there, and the processor itself does.
    """

    normalisation: Normalisation | None = None

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self._dtype = device, dtype
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._room = Room()

    @abstractmethod
    def image_rows(self, batch: torch.Tensor) -> Rows:
        """Features and projections of normalised images on the device."""

    @abstractmethod
    def tokens(self, captions: Sequence[str]) -> Any:
        """What `text_rows` takes, on the host; for any thread."""

    @abstractmethod
    def text_rows(self, tokens: Any) -> Rows:
        """Features and projections of captions."""

    @property
    def is_beside(self) -> bool:
        """Whether the device works while the processor does something else."""
        return self.device.type == "cuda"

    def encode_images(self, inputs: np.ndarray) -> Encoded:
        """Features and projections of (m, h, w, 3) in uint8, or of normalised (m, 3, h, w)."""
        return self.start_images(torch.from_numpy(np.ascontiguousarray(inputs)))()

    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        """Features and projections of captions, in one pass."""
        return self.start_texts(self.tokens(captions))()

    def stack(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """A batch on the host, in memory that the device copies from by itself."""
        if not self.is_beside:
            return torch.from_numpy(np.stack(images))
        first = torch.from_numpy(images[0])
        batch = torch.empty((len(images), *first.shape), dtype=first.dtype, pin_memory=True)
        np.stack(images, out=batch.numpy())
        return batch

    def image_batches(self, images: Iterable[np.ndarray], size: BatchSize) -> Iterator[Encoded]:
        """See `Features`; on a GPU the next batch is gathered and copied while one is encoded."""
        if not self.is_beside:
            return super().image_batches(images, size)
        return in_batches(images, size, self.stack, self.start_images, beside=True)

    def text_batches(self, captions: Iterable[str], size: BatchSize) -> Iterator[Encoded]:
        """See `Encoder`; on a GPU the next batch is tokenised while one is encoded."""
        if not self.is_beside:
            return super().text_batches(captions, size)
        return in_batches(captions, size, self.tokens, self.start_texts, beside=True)

    def start_images(self, batch: torch.Tensor) -> Callable[[], Encoded]:
        """Have the device encode a batch of the host; what is returned waits for it."""
        with torch.inference_mode():
            pixels = self._copied(batch)
            if pixels.dtype != torch.uint8:
                return self._waiting(self.image_rows(pixels.to(self._dtype)))
            assert self.normalisation is not None, "bytes are given to who can normalise them"
            room = self._room.of(pixels) if pixels.device.type == "cpu" else None
            return self._waiting(self.image_rows(self.normalisation(pixels, self._dtype, room)))

    def start_texts(self, tokens: Any) -> Callable[[], Encoded]:
        """The same of tokens."""
        with torch.inference_mode():
            return self._waiting(self.text_rows(tokens))

    def _copied(self, batch: torch.Tensor) -> torch.Tensor:
        """A batch on the device, copied beside what it works on."""
        if self._copies is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._copies):
            copied = batch.to(self.device, non_blocking=True)
        working = torch.cuda.current_stream(self.device)
        working.wait_stream(self._copies)
        copied.record_stream(working)
        return copied

    def _waiting(self, rows: Rows) -> Callable[[], Encoded]:
        """What waits for rows, whose copy to the host stands behind them on the device."""
        if not self.is_beside:
            encoded = Encoded(*(None if r is None else to_numpy(r) for r in rows))  # type: ignore[arg-type]
            return lambda: encoded
        hosts = [None if r is None else r.float().to("cpu", non_blocking=True) for r in rows]
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> Encoded:
            done.synchronize()
            return Encoded(*(None if host is None else host.numpy().copy() for host in hosts))  # type: ignore[arg-type]

        return wait


def as_channels_last(model: Any, device: torch.device) -> Any:
    """A model on a device, its convolutions laid out as a GPU takes them fastest."""
    if device.type != "cuda":
        return model.to(device)
    return model.to(device, memory_format=torch.channels_last)

"""JPEGs decoded and resized on a GPU, by torchvision where it is there; an option, never needed.

What a GPU decodes differs by a few of 255 from what Pillow makes of it, so that only plain files
are given to it: whole, in colour, upright, of ordinary size. All others, and whatever it refuses,
are read as they are without it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch

from artifacts.settings import InputError
from sources.base import UnusableImage
from sources.images import SmallCopies, decode_resized, is_plain_jpeg, pair_ids, read_file_of
from sources.pixels import Resizing
from sources.processes import AskedImage, ImageProcesses, SentImage

logger = logging.getLogger(__name__)
# Decodes several files on a device: (3, height, width) in uint8 of each, or none and an error.
Decode = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
IMAGES_A_HAND = 64  # decoded at once: a GPU's decoder works on many
CHECKED = 64  # one image of so many is decoded by Pillow, too
# Mean difference of 255 to Pillow's pixels: decoders round and enlarge colours in several ways. A
# picture that was not decoded at all, or with other colours, differs by tens.
MOST_DIFFERENT = 8.0
MODES = {
    int(PIL.Image.Resampling.BILINEAR): "bilinear",
    int(PIL.Image.Resampling.BICUBIC): "bicubic",
}


class DeviceJpegs:
    """Reads images as `ImageProcesses` does, plain JPEGs on a GPU."""

    images_a_hand = IMAGES_A_HAND
    least_images = 0  # how images are decoded does not depend on how many they are

    def __init__(
        self,
        resizing: Resizing,
        max_pixels: int,
        device: torch.device,
        others: ImageProcesses,
        *,
        decode: Decode,
        copies: SmallCopies | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            resizing: what is made of an image; `can_resize` it.
            max_pixels: see `decode_image`.
            device: that decodes.
            others: read what is not plain.
            decode: several plain files; see `torchvision_decode`.
            copies: kept of the first images, which `others` make.

        Raises:
            InputError: the device decodes nothing, or wrongly.
        """
        self._resizing, self._max_pixels, self._device = resizing, max_pixels, device
        self._others, self._decode, self._copies = others, decode, copies
        self._n_read, self._is_told = 0, False
        self._lock = threading.Lock()
        self._streams = threading.local()
        self._try_out()

    def read(self, asked: Sequence[AskedImage]) -> list[SentImage | UnusableImage]:
        """What becomes of some images, in their order; for any number of threads.

        Raises:
            InputError: an image is decoded wrongly, or as `ImageProcesses.read` does.
            StorageGoneError: the place of the data is gone.
        """
        found: dict[int, SentImage | UnusableImage] = {}
        plain: dict[int, bytes] = {}
        rest: dict[int, AskedImage] = {}
        for number, image in enumerate(asked):
            try:
                data = read_file_of(image.key, image.read)
            except UnusableImage as unusable:
                found[number] = unusable
                continue
            if is_plain_jpeg(data, self._max_pixels):
                plain[number] = data
            else:
                rest[number] = _had(image, data)
        pixels = self._pixels(list(plain.values()))
        wants_copies = self._copies is not None and self._copies.wants_more()
        if pixels is None or wants_copies:
            rest |= {number: _had(asked[number], data) for number, data in plain.items()}
        if rest:
            found |= dict(zip(rest, self._others.read(list(rest.values())), strict=True))
        # Whoever wanted copies has them now; the pixels are the device's all the same.
        for (number, data), rows in zip(plain.items(), pixels or (), strict=pixels is not None):
            self._check(asked[number].key, data, rows)
            seen = hashlib.sha256(data)
            captions = asked[number].captions
            ids = dict(zip(captions, pair_ids(seen, captions), strict=True))
            found[number] = SentImage(seen.hexdigest(), ids, rows)
        return [found[number] for number in range(len(asked))]

    def start(self, n: int) -> None:
        """Have one process start, for what is not plain; more do where they are needed."""
        self._others.start(min(n, 1))

    def close(self) -> None:
        """End the processes."""
        self._others.close()

    def _pixels(self, files: Sequence[bytes]) -> list[np.ndarray] | None:
        """What is made of plain files; None where the device refuses one of them."""
        try:
            return self._decoded(files)
        except RuntimeError as error:  # of CUDA, of a decoder, of memory: all of them are this
            with self._lock:
                is_told, self._is_told = self._is_told, True
            logger.log(
                logging.DEBUG if is_told else logging.WARNING,
                "--jpeg_decoding gpu: %s JPEGs are decoded by the processor, as %s refuses one of "
                "them (%s); so are others like them",
                *(f"{len(files):,}", self._device, str(error).partition("\n")[0]),
            )
            return None

    def _decoded(self, files: Sequence[bytes]) -> list[np.ndarray]:
        """Decoded, resized and on the host again.

        Raises:
            RuntimeError: the device refuses one of them.
        """
        if not files:
            return []
        with self._stream(), torch.inference_mode():
            coded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
            made = [resized(image, self._resizing) for image in self._decode(coded)]
            return list(torch.stack(made).cpu().numpy())

    def _stream(self) -> Any:
        """One of the calling thread's own: copies wait for what it does, not for the encoder."""
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self._device)
        return torch.cuda.stream(self._streams.own)

    def _check(self, key: str, data: bytes, pixels: np.ndarray) -> None:
        """Compare some images with what Pillow makes of them.

        Raises:
            InputError: they differ by more than decoders do.
        """
        with self._lock:
            number, self._n_read = self._n_read, self._n_read + 1
        if number % CHECKED:
            return
        try:
            expected, _ = decode_resized(data, self._max_pixels, self._resizing)
        except UnusableImage:  # Pillow is stricter with some damage
            return
        difference = float(np.abs(pixels.astype(np.int16) - expected).mean())
        if difference > MOST_DIFFERENT:
            raise InputError(
                f"--jpeg_decoding gpu: {key} differs by {difference:.1f} of 255 in the mean from "
                f"what Pillow decodes, more than {MOST_DIFFERENT:g}: {self._device} or its "
                "libraries decode wrongly; use --jpeg_decoding reduced"
            )

    def _try_out(self) -> None:
        """Decode a picture whose pixels are known.

        Raises:
            InputError: it cannot be, or comes out otherwise.
        """
        rows, columns = np.mgrid[:96, :128]
        picture = np.stack([rows * 2, columns, 255 - rows], axis=2).astype(np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(picture).save(buffer, "JPEG", quality=95)
        try:
            (pixels,) = self._decoded([buffer.getvalue()])
        except RuntimeError as error:
            raise InputError(
                f"--jpeg_decoding gpu: torchvision decodes nothing on {self._device} "
                f"({str(error).partition(chr(10))[0]}); use --jpeg_decoding reduced"
            ) from error
        self._check("a test picture", buffer.getvalue(), pixels)


def can_resize(resizing: Resizing | None) -> bool:
    """Whether a device can do what is to be done with an image."""
    return resizing is not None and resizing.resample in MODES


def resized(image: torch.Tensor, resizing: Resizing) -> torch.Tensor:
    """What `resizing` makes of an image, (height, width, 3) in uint8, within rounding.

    Args:
        image: (3, height, width), uint8, on any device.
        resizing: that `can_resize`.
    """
    height, width = image.shape[1:]
    new_width, new_height = resizing.resized((width, height))
    scaled = torch.nn.functional.interpolate(
        image[None].float(),
        size=(new_height, new_width),
        mode=MODES[resizing.resample],
        antialias=True,
    )[0]
    top, left, rows, columns = resizing.window(new_height, new_width)
    cut = scaled[:, top : top + rows, left : left + columns]
    return cut.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def torchvision_decode(device: torch.device) -> Decode:
    """Decoding on a CUDA device, by torchvision.

    Raises:
        InputError: it is no such device, or torchvision is not there.
    """
    if device.type != "cuda":
        raise InputError(
            f"--jpeg_decoding gpu: the encoder works on {device.type}; give --device cuda, or use "
            "--jpeg_decoding reduced"
        )
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-not-found]
    except (ImportError, RuntimeError) as error:  # another build than that of torch raises either
        raise InputError(
            "--jpeg_decoding gpu needs torchvision, of the release that belongs to PyTorch "
            f"{torch.__version__} ({error}); install it, or use --jpeg_decoding reduced"
        ) from error
    decoded: Decode = partial(decode_jpeg, mode=ImageReadMode.RGB, device=device)
    return lambda files: decoded(list(files))


def _had(image: AskedImage, data: bytes) -> AskedImage:
    """An image whose file was read."""
    return AskedImage(image.key, lambda: data, image.captions)

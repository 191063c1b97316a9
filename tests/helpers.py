"""What the tests of `data` and of `sources` share: small pictures, records and a full read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image

from data import Caption, DataConfig, ImageRecord, PairReader, PairSource, decode_pixels

SMALL: dict[str, Any] = {"max_train_samples": 100, "max_val_samples": 10, "max_test_samples": 10}


def picture(number: int, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002
    """An image file of 6 x 4 pixels whose colour tells its number."""
    image = PIL.Image.new("RGB", (6, 4), (number % 256, number // 256, 7))
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def encode(image: PIL.Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def record(number: int, *texts: str, data: bytes | None = None) -> ImageRecord:
    content = picture(number) if data is None else data
    captions = tuple(Caption(10 * number + i, text) for i, text in enumerate(texts))
    return ImageRecord(f"{number:03d}", lambda: content, captions)


def read_all(source: PairSource, **settings: Any) -> tuple[PairReader, dict[str, np.ndarray]]:
    config = DataConfig(**SMALL | {"num_workers": 2} | settings)
    decode = decode_pixels(lambda image: np.asarray(image)[0, 0], config.max_image_pixels)
    reader = PairReader(source, config, decode=decode)
    pixels = {}
    for split in ("test", "validation", "train"):
        images = list(reader.images(split))
        assert [image.row for image in images] == list(range(len(images)))
        assert len(images) <= reader.n_expected(split)
        pixels[split] = np.stack([image.pixels for image in images])
    return reader, pixels

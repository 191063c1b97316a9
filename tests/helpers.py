"""What the tests of data and its sources share: small pictures, files, records and a full read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data import PairReader, open_source
from sources import hub
from sources.base import SPLITS, Caption, DataConfig, ImageRecord, PairSource
from sources.images import decode_pixels

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


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def photographs(n: int, folder: str = "") -> dict[str, bytes | str]:
    return {f"{folder}{i:03d}.png": picture(i) for i in range(n)}


def open_folder(root: Path, seed: int = 0, **settings: Any) -> PairSource:
    config = DataConfig(dataset="folder", data_dir=str(root), **SMALL | settings)
    return open_source(config, rng=np.random.default_rng(seed))


def open_hf(path: Path | str, **settings: Any) -> PairSource:
    config = DataConfig(dataset="hf", hf_dataset=str(path), **SMALL | settings)
    return open_source(config, rng=np.random.default_rng(0))


def image_splits(source: PairSource) -> dict[str, list[str]]:
    return {split: [record.key for record in source.records(split)] for split in SPLITS}


def offline_datasets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `datasets` library with an empty cache in a folder, and the Hub switched off."""
    datasets = hub._import_datasets()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return datasets

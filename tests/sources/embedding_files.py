"""Files of embeddings for tests, in clip-retrieval's layout, and a trap for whoever unpickles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.settings import InputError
from sources.base import DataConfig
from sources.embeddings import EmbeddingFiles, open_embeddings
from tests.helpers import SMALL

WIDTH = 6


def unit(rows: np.ndarray) -> np.ndarray:
    units: np.ndarray = rows / np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return units


def draw(n: int, seed: int, dtype: type = np.float16) -> np.ndarray:
    """Rows of lengths from 0.1 to 10 or so; none is a multiple of another."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, WIDTH)) * rng.uniform(0.1, 5, size=(n, 1))).astype(dtype)


def save_part(
    root: Path,
    number: int | str,
    images: np.ndarray,
    texts: np.ndarray,
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    plain: bool = False,
) -> None:
    """The files of one number; the default captions name the row."""
    for folder, rows in (("img_emb", images), ("text_emb", texts)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        np.save(root / folder / (f"{number}.npy" if plain else f"{folder}_{number}.npy"), rows)
    (root / "metadata").mkdir(exist_ok=True)
    given = columns or {"caption": [f"{number}, row {i}" for i in range(len(images))]}
    name = f"{number}.parquet" if plain else f"metadata_{number}.parquet"
    pq.write_table(pa.table(dict(given)), root / "metadata" / name)


def save_one(
    root: Path,
    n: int = 40,
    columns: Mapping[str, Sequence[Any]] | None = None,
    dtype: type = np.float16,
) -> tuple[np.ndarray, np.ndarray]:
    images, texts = draw(n, 1, dtype), draw(n, 2, dtype)
    save_part(root, 0, images, texts, columns)
    return images, texts


class Trap:
    """Unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def settings_of(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(embeddings_dir=str(root), **SMALL | {"num_workers": 2} | changes)


def open_files(root: Path, seed: int = 0, **changes: Any) -> EmbeddingFiles:
    return open_embeddings(settings_of(root, **changes), np.random.default_rng(seed))


def problem(root: Path, **changes: Any) -> str:
    """The one line that refuses a folder."""
    with pytest.raises(InputError) as caught:
        open_files(root, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert f"--embeddings_dir {root}: " in message
    return message

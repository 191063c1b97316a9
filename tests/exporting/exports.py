"""What the tests of the exports share: pairs, stand-ins for the data set, readers of the output."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from webdataset.tariterators import (  # type: ignore[import-untyped]
    group_by_keys,
    tar_file_expander,
)

from artifacts.settings import InputError
from artifacts.store import Store
from engine.base import Setup
from engine.local import LocalEngine
from exporting.folder import Workers
from exporting.formats import ExportConfig, ExportReport, export_curated
from sources.base import ImageRecord, PairSource
from tests.helpers import offline_datasets, picture

WITH_IMAGES = ("webdataset", "parquet", "hf")
ABOUT = {"dataset": "a | b\nc", "encoder": "none", "command": "python main.py --export list"}


class Fake(PairSource):
    """Images in memory; an exception in the place of one is raised."""

    def __init__(self, images: Mapping[str, bytes | Exception]) -> None:
        super().__init__("fake", "in memory", "0")
        self.images, self.keys_read = images, list[str]()

    def records(self, split: str) -> Iterator[ImageRecord]:
        return iter(())

    def read_image(self, key: str) -> bytes:
        self.keys_read.append(key)
        image = self.images[key]
        if isinstance(image, Exception):
            raise image
        return image


class Reachable(Fake):
    """The same where several workers may ask."""

    can_go_back = True


class Interrupted(Fake):
    """Ends the run at its n-th image, as a stream that breaks off does."""

    def __init__(self, images: Mapping[str, bytes | Exception], n: int) -> None:
        super().__init__(images)
        self.n = n

    def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        for number, (key, read) in enumerate(super().read_again(keys)):
            if number == self.n:
                raise InputError("the stream broke off")
            yield key, read


@dataclass(frozen=True)
class Case:
    """Pairs to export, and the images they have in the data set."""

    images: dict[str, bytes]
    table: pd.DataFrame

    def changed(self, **columns: Any) -> Case:
        return replace(self, table=self.table.assign(**columns))

    def without(self, key: str, problem: bytes | Exception) -> dict[str, bytes | Exception]:
        return {**self.images, key: problem}


def make_case(n: int = 14, images: Mapping[str, bytes] | None = None) -> Case:
    """A pair an image; captions hold what breaks careless formats; weights 0.5, 1 and 2."""
    images = {f"k/{i}.jpg": picture(i, "JPEG") for i in range(n)} if images is None else images
    n, keys = len(images), list(images)
    captions = [f'say "{i}", ünï 日本\nline' for i in range(n)]
    ids = [
        hashlib.sha256(images[key] + caption.encode()).hexdigest()[:32]
        for key, caption in zip(keys, captions, strict=True)
    ]
    weights = np.resize([0.5, 1.0, 2.0, 1.0], n)
    return Case(
        dict(images),
        pd.DataFrame(
            {
                "position": np.arange(n) * 7,
                "id": ids,
                "uid": "",
                "key": keys,
                "caption": captions,
                "image_sha256": [hashlib.sha256(images[key]).hexdigest() for key in keys],
                "weight": weights / weights.mean(),
                "cluster": np.arange(n) % 3,
                "cell": np.arange(n) % 5,
                "clip_score": np.linspace(-1, 1, n, dtype=np.float32),
                "influence": [np.nan if i % 4 == 0 else -0.1 * i for i in range(n)],
                "evaluated": [i % 4 != 0 for i in range(n)],
                "group": ["rare" if i == 2 else "" for i in range(n)],
            }
        ),
    )


CASE = make_case()


def run_export(
    root: Path,
    case: Case = CASE,
    *formats: str,
    source: PairSource | None = None,
    size: int = 3,
    fingerprint: str = "f",
    n_workers: int = 2,
    workers: Workers | None = None,
) -> ExportReport:
    return export_curated(
        case.table,
        lambda: Fake(case.images) if source is None else source,
        Store.open(str(root)),
        ExportConfig(export=formats, export_shard_size=size),
        fingerprint=fingerprint,
        about=ABOUT,
        n_workers=n_workers,
        workers=workers,
    )


def threads(source: PairSource, n: int = 2) -> Workers:
    """Workers that share a data set."""
    engine, setup = LocalEngine(n), Setup(not_opened, None)
    engine.offer(setup, source)
    return Workers(engine, setup)


def not_opened(job: None) -> PairSource:
    raise AssertionError("the data set is open already")


def same_image(table: pd.DataFrame, first: int, *rows: int) -> pd.DataFrame:
    """The pairs with the image of the first in `rows` too."""
    index = np.arange(len(table))
    index[list(rows)] = first
    images = {name: table[name].to_numpy()[index] for name in ("key", "image_sha256")}
    return table.assign(**images)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def shards(root: Path) -> list[str]:
    return sorted(map(str, (root / "curated/webdataset").glob("weight-*/*.tar")))


def read_tars(paths: list[str]) -> list[dict[str, Any]]:
    """Samples as webdataset gives them, nothing decoded."""
    with ExitStack() as stack:
        files = [{"url": path, "stream": stack.enter_context(open(path, "rb"))} for path in paths]
        return list(group_by_keys(tar_file_expander(files)))


def read_rows(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The table that `datasets` reads."""
    datasets = offline_datasets(root, monkeypatch)
    if name == "hf":
        return datasets.load_from_disk(str(root / "curated/hf"))
    return datasets.load_dataset(str(root / "curated/parquet"), split="train")


def left_out(root: Path, name: str) -> list[dict[str, str]]:
    with open(root / f"curated/{name}/not_exported.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

"""The source that the settings ask for, and synthetic scenes with their ground truth."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import SYNTHETIC_WARNING, open_source
from sources.base import SPLITS, DataConfig
from tests.helpers import SMALL, offline_datasets, picture, read_all, write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return offline_datasets(tmp_path, monkeypatch)


def test_auto_falls_back_to_synthetic_with_a_warning(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(DataConfig(**SMALL), rng=np.random.default_rng(0))
    assert source.name == "synthetic"
    assert SYNTHETIC_WARNING.startswith("SYNTHETIC DATA:")
    [message] = [record.getMessage() for record in caplog.records if record.name == "data"]
    assert message.startswith(f"{SYNTHETIC_WARNING} (--hf_dataset ")
    assert message.endswith(")")


UNUSED: dict[str, tuple[dict[str, Any], str]] = {
    "webdataset": (
        {"caption_column": "text", "id_column": "n"},
        "--caption_column, --id_column: not used by --dataset webdataset; leave them out",
    ),
    "folder": ({"image_column": "png"}, "--image_column: not used by --dataset folder; leave it"),
    "parquet": ({"hf_dataset": "a/b"}, "--hf_dataset: not used by --dataset parquet; leave it out"),
    "synthetic": ({"id_column": "n"}, "--id_column: not used by --dataset synthetic; leave it out"),
}


@pytest.mark.parametrize("dataset", UNUSED)
def test_flags_that_a_source_does_not_use(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writers = {"folder": as_folder, "webdataset": as_shards, "parquet": as_parquet}
    place = None
    if dataset != "synthetic":
        place = str(writers[dataset](tmp_path / "in", SPLIT_SIZES["train alone"]))
    flags, message = UNUSED[dataset]
    config = DataConfig(dataset, place, **SMALL)
    open_source(config, rng=np.random.default_rng(0))
    assert not caplog.messages
    open_source(replace(config, **flags), rng=np.random.default_rng(0))
    [warning] = caplog.messages
    assert warning.startswith(message)


def test_local_coco_uses_no_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    for i in range(8):
        content["images"].append({"id": i, "file_name": f"{i}.png"})
        content["annotations"].append({"image_id": i, "caption": f"caption {i}"})
    write(tmp_path, {"annotations/captions_train2017.json": json.dumps(content)})
    config = DataConfig("coco", str(tmp_path), caption_column="text", **SMALL)
    open_source(config, rng=np.random.default_rng(0))
    assert caplog.messages == [
        "--caption_column: not used by --dataset coco with --data_dir; leave it out"
    ]


def test_synthetic_source_and_its_ground_truth() -> None:
    config = DataConfig(dataset="synthetic", **SMALL)
    source = open_source(config, rng=np.random.default_rng(0))
    pairs = read_all(source)[0].pairs()
    assert pairs["split"].value_counts().to_dict() == {"train": 100, "validation": 10, "test": 20}
    train = pairs[pairs["split"] == "train"]
    assert train["image_row"].is_unique
    assert train["fault"].value_counts()[
        ["wrong_caption", "boilerplate", "near_copy"]
    ].tolist() == [10, 5, 10]
    assert set(train["group"]) == {"", "rare"}
    held_out = {
        split: pairs.loc[pairs["split"] == split, "fault"].tolist()
        for split in ("validation", "test")
    }
    assert sorted(held_out["validation"]) == [""] * 8 + ["near_copy", "wrong_caption"]
    assert set(held_out["test"]) == {""}
    assert source.read_image("test/000000").startswith(b"\x89PNG")
    again = open_source(config, rng=np.random.default_rng(0))
    other = open_source(config, rng=np.random.default_rng(1))
    assert again.fingerprint == source.fingerprint != other.fingerprint


# --- One data set in three layouts ----------------------------------------------------------------

N_PICTURES = 40
SPLIT_SIZES = {  # images; at most a fifth of the training images are carved out for another split
    "official": {"train": 24, "validation": 8, "test": 8},
    "no test": {"train": 30, "validation": 10},
    "train alone": {"train": N_PICTURES},
}
N_READ = {"official": (8, 8), "no test": (6, 10), "train alone": (8, 8)}  # validation, test


def captions_of(number: int) -> list[str]:
    return [f"picture {number}", f"a caption, and another of {number}"]


def numbers_by_split(sizes: Mapping[str, int]) -> dict[str, range]:
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return {split: range(ends[i], ends[i + 1]) for i, split in enumerate(sizes)}


def as_folder(root: Path, sizes: Mapping[str, int]) -> Path:
    captions, splits = ["image,caption"], ["image,split"]
    for split, numbers in numbers_by_split(sizes).items():
        for i in numbers:
            write(root, {f"{i:03d}.png": picture(i)})
            captions += [f'{i:03d}.png,"{text}"' for text in captions_of(i)]
            splits.append(f"{i:03d}.png,{split}")
    tables = {"captions.txt": "\n".join(captions), "splits.csv": "\n".join(splits)}
    return write(root, tables)


def as_shards(root: Path, sizes: Mapping[str, int]) -> Path:
    root.mkdir()
    for split, numbers in numbers_by_split(sizes).items():
        for start in numbers[::5]:
            with tarfile.open(root / f"{split}-{start}.tar", "w") as archive:
                for i in numbers[start - numbers[0] :][:5]:
                    labels = json.dumps({"captions": captions_of(i)}).encode()
                    for name, content in ((f"{i}.png", picture(i)), (f"{i}.json", labels)):
                        header = tarfile.TarInfo(name)
                        header.size = len(content)
                        archive.addfile(header, io.BytesIO(content))
    return root


def as_parquet(root: Path, sizes: Mapping[str, int]) -> Path:
    root.mkdir()
    for split, numbers in numbers_by_split(sizes).items():
        images = [{"bytes": picture(i), "path": f"{i}.png"} for i in numbers]
        table = pa.table({"image": images, "caption": [captions_of(i) for i in numbers]})
        pq.write_table(table, root / f"{split}.parquet", row_group_size=7)
    return root


@pytest.mark.parametrize("layout", SPLIT_SIZES)
def test_the_layout_of_the_data_changes_no_pair(layout: str, tmp_path: Path) -> None:
    sizes = SPLIT_SIZES[layout]
    places = {
        "folder": as_folder(tmp_path / "folder", sizes),
        "webdataset": as_shards(tmp_path / "shards", sizes),
        "parquet": as_parquet(tmp_path / "parquet", sizes),
    }
    ids: dict[str, dict[str, list[str]]] = {}
    for dataset, place in places.items():
        config = DataConfig(dataset, str(place), **SMALL | {"max_train_samples": 30})
        source = open_source(config, rng=np.random.default_rng(3))
        pairs = read_all(source, max_train_samples=30)[0].pairs()
        ids[dataset] = {
            split: pairs.loc[pairs["split"] == split, "id"].tolist() for split in SPLITS
        }
    assert ids["folder"] == ids["webdataset"] == ids["parquet"]

    number_of = {
        hashlib.sha256(picture(i) + text.encode()).hexdigest()[:32]: i
        for i in range(N_PICTURES)
        for text in captions_of(i)
    }
    numbers = {split: [number_of[name] for name in ids["folder"][split]] for split in SPLITS}
    assert len(numbers["train"]) == 30
    n_validation, n_test = N_READ[layout]
    assert len(set(numbers["validation"])) == len(numbers["validation"]) == n_validation
    assert len(set(numbers["test"])) == n_test
    assert len(numbers["test"]) == 2 * n_test
    if layout == "official":
        given = numbers_by_split(sizes)
        assert all(set(numbers[split]) <= set(given[split]) for split in SPLITS)

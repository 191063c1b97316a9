"""Tables and streams through `datasets`; the truth is what the tests put into them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from artifacts.settings import InputError
from data import open_source
from sources import hub
from sources.base import (
    BROKEN_IMAGE,
    MISSING_CAPTION,
    MISSING_FILE,
    OUTSIDE_FOLDER,
    SEVERAL_IMAGES,
    SPLITS,
    DataConfig,
    UnusableImage,
)
from tests.helpers import SMALL, offline_datasets, open_hf, photographs, picture, read_all, write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return offline_datasets(tmp_path, monkeypatch)


def rows(numbers: Sequence[int], n_captions: int = 2) -> dict[str, list[Any]]:
    each = [i for i in numbers for _ in range(n_captions)]
    return {
        "image": [picture(i) for i in each],
        "caption": [f"image {i} caption {row % n_captions}" for row, i in enumerate(each)],
        "cocoid": each,
    }


def taken(*names: str) -> hub._Taken:
    return hub._check_columns(names, DataConfig())


@pytest.mark.parametrize("shape", ["Dataset", "DatasetDict"])
def test_save_to_disk(tmp_path: Path, cache: Any, shape: str) -> None:
    train = cache.Dataset.from_dict(rows(range(20)))
    folder = tmp_path / "saved"
    if shape == "Dataset":
        train.save_to_disk(folder)
    else:
        test = cache.Dataset.from_dict(rows(range(30, 34)))
        cache.DatasetDict({"train": train, "val": test}).save_to_disk(folder)
    reader, pixels = read_all(open_hf(folder))
    pairs = reader.pairs()
    assert pairs["position"].is_unique
    for row in pairs.itertuples():
        number = int(str(row.key).split("/")[1])
        assert str(row.caption).startswith(f"image {number} ")
        assert pixels[str(row.split)][int(str(row.image_row)), 0] == number
    if shape == "DatasetDict":
        assert set(pairs.loc[pairs["split"] == "test", "key"]) == {
            f"validation/{i}" for i in range(30, 34)
        }


def test_lists_of_captions_stay_with_their_image(tmp_path: Path, cache: Any) -> None:
    numbers = [1, 2, 1, *range(3, 20)]
    cells: list[list[str]] = [[], ["of 2"], ["of 1"], *([f"of {i}"] for i in range(3, 20))]
    content = {"image": [picture(i) for i in numbers], "caption": cells, "cocoid": numbers}
    others = {"image": [picture(50)], "caption": [["of 50"]], "cocoid": [50]}
    tables = {"train": content, "validation": others}
    tables["test"] = others | {"image": [picture(51)]}
    parts = {split: cache.Dataset.from_dict(table) for split, table in tables.items()}
    cache.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    reader, _ = read_all(open_hf(tmp_path / "saved"))
    pairs = reader.pairs()
    assert (pairs["caption"] == "of " + pairs["key"].str.split("/").str[1]).all()
    assert (pairs["shard"] == pairs["split"]).all()
    train = pairs[pairs["split"] == "train"].set_index("key")["row"].to_dict()
    assert train == {"train/2": 1, "train/1": 2} | {f"train/{i}": i for i in range(3, 20)}
    assert reader.skipped()[["key", "reason", "shard", "row"]].values.tolist() == [
        ["train/1", MISSING_CAPTION, "train", 0]
    ]


def test_parquet_folder(tmp_path: Path, cache: Any) -> None:
    folder = tmp_path / "parquet"
    path = write(folder, {"on_disk.png": picture(77)}) / "on_disk.png"
    cells: list[dict[str, Any]] = [{"bytes": picture(i), "path": None} for i in range(20)]
    cells[3], cells[4] = {"bytes": b"not an image", "path": "x"}, {"bytes": None, "path": str(path)}
    cells[5] = {"bytes": None, "path": None}
    for split, part in (
        ("train", cells),
        ("val", cells[:0]),
        ("test", [{"bytes": picture(90), "path": ""}]),
    ):
        table = pd.DataFrame(
            {"photo": part, "texts": [[f"{split} {i}", "again"] for i in range(len(part))]}
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        if part:
            table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    columns = {"image_column": "photo", "caption_column": "texts"}
    reader, pixels = read_all(open_hf(folder, **columns))
    assert pixels["test"].tolist() == [[90, 0, 7]]
    skipped = reader.skipped()
    assert dict(zip(skipped["key"], skipped["reason"], strict=True)) == {
        "train/3": BROKEN_IMAGE,
        "train/5": MISSING_FILE,
    }
    assert 77 in np.concatenate([pixels["train"], pixels["validation"]])[:, 0]
    with pytest.raises(InputError, match=r"--image_column image: no such column .* photo, texts"):
        open_hf(folder)
    with pytest.raises(InputError, match="--caption_column photo holds dict, not text"):
        open_hf(folder, image_column="photo", caption_column="photo")


@pytest.mark.parametrize(
    "names",
    [
        ("train/a/0", "val/a/0", "test/a/0"),
        ("data/train/en/0", "data/dev/en/0", "data/test/en/0"),
        ("train-0", "validation-0", "test-0"),
        ("test/train/0", "a/valid-0", "train/test"),
    ],
)
def test_official_splits_are_those_of_the_parquet_reader(
    tmp_path: Path, cache: Any, names: Sequence[str]
) -> None:
    root = tmp_path / "test"  # the folder that is given has no say
    for part, name in enumerate(names):
        path = root / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows(range(10 * part, 10 * part + 9), 1)).to_parquet(path)
    config = DataConfig(dataset="parquet", data_dir=str(root), **SMALL)
    for source in (open_hf(root), open_source(config, rng=np.random.default_rng(0))):
        _, pixels = read_all(source)
        for part, split in enumerate(SPLITS):
            assert sorted(pixels[split][:, 0]) == [*range(10 * part, 10 * part + 9)]


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_paths_in_cells_lead_nowhere_else(
    tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "in"
    write(tmp_path, {"secret.png": picture(70), "cache/hub.png": picture(71)})
    write(
        folder, {f"{name}.png": picture(72 + i) for i, name in enumerate(("own", "sub/own", "b"))}
    )
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    outside = [str(tmp_path / "secret.png"), "../secret.png", f"file://{tmp_path}/secret.png"]
    outside += ["http://localhost:1/a.png", str(folder / "link.png"), "/dev/zero", "link.png"]
    inside = [str(folder / "own.png"), "sub/own.png", str(tmp_path / "cache/hub.png"), "in/b.png"]
    paths = [*outside, *inside]
    captions = [f"caption {i}" for i in range(len(paths) + 20)]
    if kind == "parquet":
        cells: list[dict[str, Any]] = [{"bytes": None, "path": path} for path in paths]
        cells += [{"bytes": picture(i), "path": None} for i in range(20)]
        pd.DataFrame({"image": cells, "caption": captions}).to_parquet(folder / "train.parquet")
    else:
        write(folder, photographs(20))
        names = [*paths, *photographs(20)]
        cache.Dataset.from_dict({"image": names, "caption": captions}).save_to_disk(folder)
    monkeypatch.chdir(tmp_path)
    reader, _ = read_all(open_hf(folder))
    skipped = reader.skipped()
    refused = [f"train/{i}" for i in range(len(outside))]
    assert sorted(skipped.loc[skipped["reason"] == OUTSIDE_FOLDER, "key"]) == refused
    assert set(skipped["reason"]) == {OUTSIDE_FOLDER}
    assert len(reader.pairs()) == len(inside) + 20


def test_a_stream_opens_what_is_on_the_hub_alone(
    tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def xopen(path: str, _: str) -> io.BytesIO:
        opened.append(path)
        return io.BytesIO(b"from the Hub")

    monkeypatch.setattr("datasets.utils.file_utils.xopen", xopen)
    secret = write(tmp_path, {"secret.png": b"secret"}) / "secret.png"
    paths = ["hf://datasets/a/b/1.png", "zip://1.png::hf://datasets/a/b/1.zip"]
    for path in (str(secret), f"zip://1.png::{secret}", "https://localhost:1/1.png", *paths):
        table = [{"caption": "a", "image": {"bytes": None, "path": path}}]
        [record] = hub._stream_records(table, taken("caption", "image"), "train", 0)
        if path in paths:
            assert record.read() == b"from the Hub"
            continue
        with pytest.raises(UnusableImage, match=OUTSIDE_FOLDER):
            record.read()
    assert opened == paths


def test_folder_without_tables(tmp_path: Path, cache: Any) -> None:
    with pytest.raises(InputError, match="no save_to_disk folder or folder of parquet"):
        open_hf(tmp_path)


@pytest.mark.parametrize("splits", [("train",), ("train", "validation", "test"), ("all",)])
def test_hub_stream(
    tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch, splits: tuple[str, ...]
) -> None:
    files = {}
    for offset, split in enumerate(splits):
        table = cache.Dataset.from_dict(rows(range(50 * offset, 50 * offset + 50)))
        files[split] = str(tmp_path / f"{split}.parquet")
        table.to_parquet(files[split])
    builder = cache.load_dataset_builder("parquet", data_files=files)
    monkeypatch.setattr(cache, "load_dataset_builder", lambda _: builder)
    monkeypatch.setattr(hub, "hub_answers", lambda *_: True)
    settings = {"max_train_samples": 30, "max_val_samples": 5, "max_test_samples": 5}
    source = open_hf("someone/something", **settings)
    assert source.name == "hf"
    reader, pixels = read_all(source, **settings)
    taken = {split: list(pixels[split][:, 0]) for split in SPLITS}
    if len(splits) == 1:
        assert taken == {
            "test": [*range(5)],
            "validation": [*range(5, 10)],
            "train": [*range(10, 25)],
        }
    else:
        assert taken == {
            "train": [*range(15)],
            "validation": [*range(50, 55)],
            "test": [*range(100, 105)],
        }
    pairs = reader.pairs()
    assert pairs["position"].is_unique
    assert pairs["split"].value_counts().to_dict() == {"train": 30, "validation": 5, "test": 10}
    with pytest.raises(KeyError):
        source.read_image("train/0")


def test_a_stream_that_breaks_off() -> None:
    def broken() -> Iterator[Mapping[str, Any]]:
        yield {"caption": "a", "image": {"bytes": picture(0), "path": None}}
        raise ConnectionError("the line is dead")

    records = hub._stream_records(broken(), taken("caption", "image"), "train", 0)
    with pytest.raises(InputError, match="the stream of train broke off: the line is dead"):
        list(records)


def test_consecutive_rows_of_a_stream_are_one_image() -> None:
    cells: list[tuple[int, object]] = [(7, "a"), (7, ["b", None]), (8, []), (7, "c")]
    table = [
        {"cocoid": key, "caption": cell, "image": {"bytes": picture(number), "path": None}}
        for number, (key, cell) in enumerate(cells)
    ]
    columns = taken("caption", "cocoid", "image")
    records = list(hub._stream_records(table, columns, "train", 100))
    assert [(record.key, record.shard) for record in records] == [
        ("train/7", "train"),
        ("train/8", "train"),
        ("train/7", "train"),
    ]
    captions = [[(c.position, c.text, c.row) for c in record.captions] for record in records]
    assert captions == [
        [(100, "a", 0), (101, "b", 1), (102, None, 1)],
        [(103, None, 2)],
        [(104, "c", 3)],
    ]
    assert [record.read() for record in records] == [picture(0), picture(2), picture(3)]


def test_hub_cache(cache: Any, tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    cache.Dataset.from_dict(rows(range(20))).to_parquet(tmp_path / "something" / "train.parquet")
    builder = cache.load_dataset_builder(str(tmp_path / "something"))
    builder.download_and_prepare(str(tmp_path / "cache/someone___something/default/0.0.0/abc"))
    source = open_hf("someone/something")
    assert "from the local cache: 20 images, 40 captions" in source.description


def test_hub_that_is_switched_off(cache: Any) -> None:
    with pytest.raises(InputError, match="--hf_dataset someone/something is no folder, not in"):
        open_hf("someone/something")
    with pytest.raises(InputError, match="--dataset coco --data_dir"):
        open_source(DataConfig(dataset="coco"), rng=np.random.default_rng(0))


def test_a_snapshot_of_the_hubs_cache_is_read_and_no_other_link(tmp_path: Path, cache: Any) -> None:
    repository = tmp_path / "hub/datasets--me--pairs"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots/1").mkdir(parents=True)
    for name in ("hub/datasets--me--pairs/blobs/" + "ab" * 20, "outside.parquet"):
        cache.Dataset.from_dict(rows(range(20))).to_parquet(str(tmp_path / name))
    (repository / "snapshots/1/a.parquet").symlink_to("../../blobs/" + "ab" * 20)
    reader, _ = read_all(open_hf(repository / "snapshots/1"))
    assert reader.account().used == len(reader.pairs()) >= 20
    (repository / "snapshots/1/b.parquet").symlink_to(tmp_path / "outside.parquet")
    with pytest.raises(InputError, match=r"b\.parquet leads out of the folder; put a copy"):
        open_hf(repository / "snapshots/1")


# --- Columns and splits ---------------------------------------------------------------------------


def karpathy(n: int = 30) -> dict[str, list[Any]]:
    """Rows as in the Hub's Flickr30k: one part called test, splits in a column."""
    names = ["train", "train", "val", "test", "restval", "mars"]
    return {
        "image": [{"bytes": picture(i), "path": None} for i in range(n)],
        "caption": [[f"{i} a", f"{i} b"] for i in range(n)],
        "split": [names[i % 6] for i in range(n)],
    }


def expected_split(number: int) -> str:
    return {2: "validation", 3: "test"}.get(number % 6, "train")


def test_a_column_of_splits_goes_before_the_name_of_the_part(tmp_path: Path, cache: Any) -> None:
    cache.DatasetDict({"test": cache.Dataset.from_dict(karpathy())}).save_to_disk(tmp_path / "a")
    source = open_hf(tmp_path / "a")
    split_of = {r.key: split for split in SPLITS for r in source.records(split)}
    # What names no split that is known is of the part's own.
    own = {i: "test" if i % 6 == 5 else expected_split(i) for i in range(30)}
    assert split_of == {f"test/{i}": split for i, split in own.items()}
    assert source.notes == (
        "columns image, caption, split",
        "splits from the column split: train 15, validation 5, test 5; 5 images name none",
        "names in the column split that are no split: 'mars' 5",
    )


def test_a_stream_with_a_column_of_splits(
    tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "test.parquet")
    cache.Dataset.from_dict(karpathy(60)).to_parquet(path)
    builder = cache.load_dataset_builder("parquet", data_files={"test": path})
    monkeypatch.setattr(cache, "load_dataset_builder", lambda _: builder)
    monkeypatch.setattr(hub, "hub_answers", lambda *_: True)
    reader, _ = read_all(open_hf("someone/something"))
    pairs = reader.pairs()
    numbers = pairs["caption"].str.split().str[0].astype(int)
    expected = ["test" if i % 6 == 5 else expected_split(i) for i in numbers]
    assert pairs["split"].tolist() == expected
    assert pairs["position"].tolist() == [
        2 * i + (caption[-1] == "b") for i, caption in zip(numbers, pairs["caption"], strict=True)
    ]
    assert set(pairs["row"]) == set(numbers)


@pytest.mark.parametrize("kind", ["base64", "list", "side by side", "classes"])
def test_other_columns(tmp_path: Path, cache: Any, kind: str) -> None:
    n, features = 24, None
    columns: dict[str, list[Any]] = {"img": [picture(i) for i in range(n)]}
    columns["text"] = [f"text {i}" for i in range(n)]
    if kind == "base64":
        columns["img"] = [base64.b64encode(picture(i)).decode() for i in range(n)]
    elif kind == "list":
        columns["img"] = [[{"bytes": picture(i), "path": None}] for i in range(n)]
        columns["img"][3] = columns["img"][3] * 2
        columns["img"][4] = []
    elif kind == "side by side":
        del columns["text"]
        columns |= {f"caption_{k}": [f"{k} of {i}" for i in range(n)] for k in range(3)}
        columns["caption_1"][5] = None
    else:
        columns["split"] = [int(i >= 20) for i in range(n)]
        features = cache.Features(
            {
                "img": cache.Value("binary"),
                "text": cache.Value("string"),
                "split": cache.ClassLabel(names=["train", "test"]),
            }
        )
    cache.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "a")
    reader, pixels = read_all(open_hf(tmp_path / "a"))
    lost = {3, 4} if kind == "list" else set()
    seen = {int(p[0]) for split in SPLITS for p in pixels[split]}
    assert seen == {*range(n)} - lost
    assert dict(reader.skipped()[["key", "reason"]].values.tolist()) == (
        {"train/3": SEVERAL_IMAGES, "train/4": MISSING_FILE} if lost else {}
    )
    if kind == "classes":
        assert {int(p[0]) for p in pixels["test"]} == {20, 21, 22, 23}
    if kind == "side by side":
        texts = reader.pairs().query("split == 'train' or split == 'test'")["caption"]
        assert "1 of 5" not in set(texts)
        assert texts.str.startswith("2 of ").any()

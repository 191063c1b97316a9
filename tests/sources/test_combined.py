"""Held-out pairs from other data sets than the pool; the truth is which pictures were written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import main
from artifacts import provenance
from artifacts.settings import InputError
from artifacts.store import Store
from cli import auto
from cli.config import parse_arguments
from cli.preview import count_splits, open_data, preview, read_sample
from cli.run import Run
from data import PairReader, open_source
from sources import hub
from sources.base import (
    BROKEN_IMAGE,
    EMPTY_CAPTION,
    IMAGE_IN_ANOTHER_SPLIT,
    SPLITS,
    DataConfig,
    ImageRecord,
    PairSource,
    PartConfig,
)
from sources.combined import FIRST_POSITIONS, CombinedSource, find_layout, held_out_sets, naming
from sources.embeddings import open_embeddings
from sources.splits import IndexedSource, StreamSource, complete_splits
from sources.vectors import EMBEDDING_NOT_USABLE
from tests.helpers import SMALL, offline_datasets, picture, read_all, record, write
from tests.small_models import narrow
from tests.sources.embedding_files import draw, save_part, unit
from tests.sources.layouts import as_folder, as_parquet, as_shards

HELD_OUT = ("validation", "test")
LIMITS = {"train": 100, "validation": 10, "test": 10}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return offline_datasets(tmp_path, monkeypatch)


def album(root: Path, numbers: Sequence[int], splits: dict[int, str] | None = None) -> Path:
    """A folder of pictures with two captions each, and perhaps a split for every one."""
    rows = [f"{i:03d}.png,{text} {i}" for i in numbers for text in ("picture", "it shows")]
    files: dict[str, bytes | str] = {f"{i:03d}.png": picture(i) for i in numbers}
    files["captions.txt"] = "\n".join(["image,caption", *rows])
    if splits:
        named = [f"{i:03d}.png,{split}" for i, split in splits.items()]
        files["splits.csv"] = "\n".join(["image,split", *named])
    return write(root, files)


def open_pool(pool: Path, **settings: Any) -> PairSource:
    seed = settings.pop("seed", 0)
    config = DataConfig(**SMALL | {"dataset": "folder", "data_dir": str(pool)} | settings)
    return open_source(config, rng=np.random.default_rng(seed))


def read_pool(pool: Path, **settings: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pairs that are read, with the number of their picture, and those that are skipped."""
    reader, pixels = read_all(open_pool(pool, **settings))
    pairs = reader.pairs()
    places = zip(pairs["split"], pairs["image_row"], strict=True)
    numbers = [int(pixels[s][row] @ np.array([1, 256, 0])) for s, row in places]
    return pairs.assign(number=numbers), reader.skipped()


def of_split(reader: PairReader, split: str) -> pd.DataFrame:
    """The pairs of a split that were read."""
    pairs = reader.pairs()
    return pairs[pairs["split"] == split].reset_index(drop=True)


def numbers_of(pairs: pd.DataFrame, split: str) -> set[int]:
    return set(pairs.loc[pairs["split"] == split, "number"])


def as_saved(root: Path, numbers: Sequence[int], datasets: Any) -> Path:
    cells = {"image": [picture(i) for i in numbers], "caption": [f"saved {i}" for i in numbers]}
    datasets.Dataset.from_dict(cells).save_to_disk(root)
    return root


def as_coco(root: Path, numbers: Sequence[int]) -> Path:
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in numbers],
        "annotations": [{"image_id": i, "caption": f"coco {i}"} for i in numbers],
    }
    files: dict[str, bytes | str] = {f"val2017/{i}.png": picture(i) for i in numbers}
    return write(root, files | {"annotations/captions_val2017.json": json.dumps(content)})


# --- Which layout ---------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Path, Any], Path]] = {
    "folder": lambda root, _: as_folder(root, {"train": 12}),
    "webdataset": lambda root, _: as_shards(root, {"train": 12}),
    "parquet": lambda root, _: as_parquet(root, {"train": 12}),
    "coco": lambda root, _: as_coco(root, range(12)),
    "hf": lambda root, datasets: as_saved(root, range(12), datasets),
}


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("split", HELD_OUT)
@pytest.mark.parametrize("layout", MAKERS)
def test_held_out_pairs_of_every_layout(
    layout: str, split: str, prefix: bool, tmp_path: Path, cache: Any
) -> None:
    pool = album(tmp_path / "pool", range(100, 130))
    place = str(MAKERS[layout](tmp_path / "held_out", cache))
    flag = {"validation": "val_data", "test": "test_data"}[split]
    given = f"{layout}:{place}" if prefix else place
    source = open_pool(pool, **{flag: given})
    pairs, skipped = read_pool(pool, **{flag: given})
    assert skipped.empty
    assert numbers_of(pairs, split) <= set(range(12))
    assert len(numbers_of(pairs, split)) == 10  # the limit
    assert numbers_of(pairs, "train") <= set(range(100, 130))
    n_captions = 2 if layout in ("folder", "webdataset", "parquet") and split == "test" else 1
    assert (pairs["split"] == split).sum() == 10 * n_captions
    assert f"; {split} from --{flag} as {layout}: " in source.description
    assert source.name == "folder"
    held_out = pairs[pairs["split"] == split]
    assert held_out["key"].str.startswith(f"{flag}/").all()
    for key, number in zip(held_out["key"], held_out["number"], strict=True):
        assert source.read_image(key) == picture(number)


def test_a_pattern_one_shard_and_one_table(tmp_path: Path) -> None:
    shards = as_shards(tmp_path / "shards", {"train": 12})
    table = as_parquet(tmp_path / "tables", {"train": 12}) / "train.parquet"
    assert find_layout(f"{shards}/train-{{0,5}}.tar", "--val_data")[0] == "webdataset"
    assert find_layout(f"{shards}/train-0.tar", "--val_data")[0] == "webdataset"
    assert find_layout(str(table), "--val_data") == ("parquet", str(table))
    pool = album(tmp_path / "pool", range(100, 130))
    pairs, _ = read_pool(pool, val_data=f"{shards}/train-{{0,5}}.tar", test_data=str(table))
    assert numbers_of(pairs, "validation") <= set(range(10)) - numbers_of(pairs, "test")


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        ("00000.tar 00000.parquet 00000_stats.json", "webdataset"),  # img2dataset's
        ("a/00000.tar a/00000.parquet b/00001.tar", "webdataset"),
        ("data/train-0.parquet README.md dataset_info.json", "parquet"),
        ("data/train-0.parquet 0.png", "parquet"),  # which may name the images by their paths
        ("dataset_dict.json train/data-0.arrow", "hf"),
        ("state.json data-0.arrow", "hf"),
        ("annotations/captions_train2014.json more.tar more.parquet", "coco"),
        ("captions.txt 0.png", "folder"),
        ("0.png 0.txt", "folder"),
        (".cache/0.parquet .0.tar 0.png 0.txt", "folder"),
        ("", "folder"),
    ],
)
def test_what_files_say(files: str, layout: str, tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(files.split(), b""))
    assert find_layout(str(tmp_path), "--val_data") == (layout, str(tmp_path))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            "0.tar 1.parquet",
            "1 .tar files and 1 .parquet files; say which: .* webdataset:.* or par",
        ),
        ("0.tar captions.txt", "1 .tar files and captions.txt; say which: .* webdataset:.* or fol"),
        ("0.parquet a/metadata.csv", "1 .parquet files and a/metadata.csv; say which: --val_data "),
    ],
)
def test_a_folder_that_could_be_several_things(files: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(files.split(), b""))
    with pytest.raises(InputError, match=f"^--val_data {tmp_path} could be .*{words}") as caught:
        find_layout(str(tmp_path), "--val_data")
    prefix = str(caught.value).rpartition("--val_data ")[2].partition(" or ")[0]
    assert find_layout(prefix, "--val_data") == (prefix.partition(":")[0], str(tmp_path))


def test_names_that_are_no_path(tmp_path: Path) -> None:
    assert find_layout("someone/some-thing.v2", "--val_data") == ("hf", "someone/some-thing.v2")
    assert find_layout("hf:squad", "--val_data") == ("hf", "squad")
    for missing in ("nowhere", "/no/such", "./no", "a/b/c", "a/b.tar", "../x", "squad:x"):
        with pytest.raises(InputError, match=rf"^--test_data {missing} does not exist; give a fol"):
            find_layout(missing, "--test_data")
    with pytest.raises(InputError, match=r"--val_data coco: names no data; .* as in coco:DIR"):
        find_layout("coco:", "--val_data")
    write(tmp_path, {"notes.txt": ""})
    with pytest.raises(InputError, match=r"notes.txt is no folder, tar shard or parquet file"):
        find_layout(str(tmp_path / "notes.txt"), "--val_data")


# --- Which of its pairs ---------------------------------------------------------------------------

SPLIT_NUMBERS = {"train": range(20), "validation": range(20, 25), "test": range(25, 32)}


@pytest.mark.parametrize(
    ("there", "validation", "test"),
    [
        (("train", "validation", "test"), "validation", "test"),
        (("train", "validation"), "validation", "validation"),
        (("train", "test"), "test", "test"),
        (("validation", "test"), "validation", "test"),
        (("train",), "all", "all"),
    ],
)
def test_the_official_split_of_that_name(
    there: tuple[str, ...], validation: str, test: str, tmp_path: Path
) -> None:
    splits = {i: split for split in there for i in SPLIT_NUMBERS[split]}
    place = album(tmp_path / "held_out", list(splits), splits)
    pool = album(tmp_path / "pool", range(100, 130))
    for name, split, taken in (
        ("val_data", "validation", validation),
        ("test_data", "test", test),
    ):
        limits = {"max_val_samples": 50, "max_test_samples": 50}
        reader, pixels = read_all(open_pool(pool, **{name: str(place)}, **limits), **limits)
        expected = set(splits) if taken == "all" else set(SPLIT_NUMBERS[taken])
        assert set(pixels[split][:, 0].tolist()) == expected
        said = "all of it" if taken == "all" else f"its official {taken} split, {len(expected)} of "
        assert said in reader.source.description
        n_captions = 2 if split == "test" else 1
        assert len(of_split(reader, split)) == len(expected) * n_captions


# --- The pool -------------------------------------------------------------------------------------


def test_nothing_is_carved_for_what_comes_from_elsewhere() -> None:
    official = {"train": range(50)}
    without, _ = complete_splits(official, LIMITS, np.random.default_rng(0))
    for missing in HELD_OUT:
        limits = {split: n for split, n in LIMITS.items() if split != missing}
        splits, note = complete_splits(official, limits, np.random.default_rng(0))
        other = HELD_OUT[1 - HELD_OUT.index(missing)]
        assert splits[missing] == []
        assert (len(splits["train"]), len(splits[other])) == (40, 10)
        assert note.startswith(f"images: train 40, {other} 10; {other} drawn at random")
    assert splits["validation"] != without["validation"]  # it is drawn first now
    limits = {"train": 100, "test": 10}
    splits, _ = complete_splits(official, limits, np.random.default_rng(0))
    assert splits["test"] == without["test"]
    splits, note = complete_splits(official, {"train": 100}, np.random.default_rng(0))
    assert splits == {"train": list(range(50)), "validation": [], "test": []}
    assert note == "images: train 50"


@pytest.mark.parametrize(
    ("there", "given", "expected", "note"),
    [
        ("train validation test", "validation", {"test": "test"}, "5 official validation images"),
        ("train validation test", "test", {"validation": "validation"}, "7 official test images"),
        ("train validation", "validation", {"test": "validation"}, "test is the official valid"),
        ("train validation", "test", {"validation": "validation"}, "images: train 20, valid"),
        ("train test", "test", {"validation": "train"}, "7 official test images left out; valid"),
        ("train validation test", "validation test", {}, "left out; 7 official test images left"),
    ],
)
def test_official_splits_of_the_pool(
    there: str, given: str, expected: dict[str, str], note: str
) -> None:
    official = {split: SPLIT_NUMBERS[split] for split in there.split()}
    limits = {split: 4 for split in SPLITS if split not in given.split()}
    splits, said = complete_splits(official, limits, np.random.default_rng(0))
    assert note in said
    assert set(splits["train"]) <= set(SPLIT_NUMBERS["train"])
    for split in HELD_OUT:
        source = expected.get(split)
        if source is None:
            assert splits[split] == []
        elif source == "train":
            assert len(splits[split]) == 4
            assert set(splits[split]) <= set(SPLIT_NUMBERS["train"])
        else:
            assert splits[split] == list(SPLIT_NUMBERS[source])


def test_a_replaced_split_is_not_read(tmp_path: Path) -> None:
    splits = {i: split for split in SPLITS for i in SPLIT_NUMBERS[split]}
    pool = album(tmp_path / "pool", list(splits), splits)
    held_out = album(tmp_path / "held_out", range(200, 210))
    for number in SPLIT_NUMBERS["validation"]:
        (pool / f"{number:03d}.png").write_bytes(b"must not be looked at")
    pairs, skipped = read_pool(pool, val_data=str(held_out))
    assert skipped.empty
    assert numbers_of(pairs, "train") == set(SPLIT_NUMBERS["train"])
    assert numbers_of(pairs, "validation") == set(range(200, 210))
    assert numbers_of(pairs, "test") == set(SPLIT_NUMBERS["test"])
    description = open_pool(pool, val_data=str(held_out)).description
    assert "images: train 20, test 7; 5 official validation images left out" in description


@pytest.mark.parametrize("given", [("val_data",), ("test_data",), ("val_data", "test_data")])
@pytest.mark.parametrize("limit", [15, 100])
def test_training_is_what_it_is_without(given: tuple[str, ...], limit: int, tmp_path: Path) -> None:
    splits = {i: split for split in SPLITS for i in SPLIT_NUMBERS[split]}
    pool = album(tmp_path / "pool", list(splits), splits)
    flags = {}
    for i, name in enumerate(given):
        flags[name] = str(album(tmp_path / name, range(200 + 20 * i, 210 + 20 * i)))
    few = {"max_train_samples": limit}
    alone, _ = read_all(open_pool(pool, seed=7, **few), **few)
    beside, _ = read_all(open_pool(pool, seed=7, **few, **flags), **few)
    train, same = (of_split(reader, "train") for reader in (alone, beside))
    pd.testing.assert_frame_equal(train, same)
    for split in HELD_OUT:  # what is not given stays too
        if {"validation": "val_data", "test": "test_data"}[split] not in given:
            one, other = (of_split(reader, split) for reader in (alone, beside))
            pd.testing.assert_frame_equal(one, other)


def test_what_is_drawn_from_held_out_data_depends_on_them_alone(tmp_path: Path) -> None:
    held_out = str(album(tmp_path / "held_out", range(200, 260)))
    drawn = []
    for size in (20, 30):
        pool = album(tmp_path / f"pool{size}", range(size))
        for others in ({}, {"test_data": str(album(tmp_path / "t", range(90, 99)))}):
            source = open_pool(pool, val_data=held_out, **others)
            drawn.append([(r.key, r.captions) for r in source.records("validation")])
    assert all(other == drawn[0] for other in drawn)
    other_seed = open_pool(pool, seed=1, val_data=held_out)
    assert [(r.key, r.captions) for r in other_seed.records("validation")] != drawn[0]


# --- Images in several data sets ------------------------------------------------------------------


def test_an_image_in_several_data_sets_stays_in_test(tmp_path: Path) -> None:
    pool = album(tmp_path / "pool", range(30))
    val_data = album(tmp_path / "val", [*range(200, 204), 5, 6, 300])
    test_data = album(tmp_path / "test", [*range(210, 214), 6, 7, 300])
    pairs, skipped = read_pool(pool, val_data=str(val_data), test_data=str(test_data))
    assert numbers_of(pairs, "test") == {210, 211, 212, 213, 6, 7, 300}
    assert numbers_of(pairs, "validation") == {200, 201, 202, 203, 5}
    assert numbers_of(pairs, "train") == set(range(30)) - {5, 6, 7}
    assert set(skipped["reason"]) == {IMAGE_IN_ANOTHER_SPLIT}
    counted = skipped.groupby("split")["key"].apply(sorted).to_dict()
    assert counted == {
        "validation": ["val_data/006.png", "val_data/300.png"],
        "train": sorted(["005.png", "006.png", "007.png"] * 2),
    }
    stays = pairs.set_index("position")
    for split, detail, first in zip(
        skipped["split"], skipped["detail"], skipped["duplicate_of"], strict=True
    ):
        assert stays.loc[first, "split"] == detail
        assert SPLITS.index(detail) > SPLITS.index(split)


def test_bad_held_out_pairs_are_skipped_and_counted(tmp_path: Path) -> None:
    pool = album(tmp_path / "pool", range(30))
    held_out = album(tmp_path / "val", range(200, 206))
    (held_out / "200.png").write_bytes(b"no picture")
    table = held_out / "captions.txt"
    table.write_text(table.read_text().replace("picture 201", " ").replace("it shows 201", ""))
    pairs, skipped = read_pool(pool, val_data=str(held_out))
    assert numbers_of(pairs, "validation") == {202, 203, 204, 205}
    assert sorted(zip(skipped["key"], skipped["reason"], strict=True)) == [
        ("val_data/200.png", BROKEN_IMAGE),
        ("val_data/201.png", EMPTY_CAPTION),
    ]
    for number in range(200, 206):
        (held_out / f"{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no usable pair for the validation split: .*--val_data"):
        read_pool(pool, val_data=str(held_out))


def test_a_pool_that_holds_the_held_out_folder(tmp_path: Path) -> None:
    pool = album(tmp_path / "pool", range(30))
    held_out = album(pool / "val_data", range(5))
    rows = "".join(f"val_data/{i:03d}.png,deep {i}\n" for i in range(5))
    (pool / "captions.txt").write_text((pool / "captions.txt").read_text() + "\n" + rows)
    splits = "".join(f"val_data/{i:03d}.png,train\n" for i in range(5))
    (pool / "splits.csv").write_text(f"image,split\n{splits}")  # whatever the folder's name says
    source = open_pool(pool, val_data=str(held_out))
    keys = [r.key for split in SPLITS for r in source.records(split)]
    assert len({*keys}) == 30 + 5 + 5
    assert "val_data/003.png" in keys
    assert "val_data#2/003.png" in keys
    pairs, skipped = read_pool(pool, val_data=str(held_out))
    in_training = numbers_of(pairs, "train") | numbers_of(pairs, "test")
    assert not numbers_of(pairs, "validation") & in_training
    assert set(skipped["reason"]) <= {IMAGE_IN_ANOTHER_SPLIT}


# --- Names ----------------------------------------------------------------------------------------


def test_positions_and_keys_are_unique(tmp_path: Path) -> None:
    places = [album(tmp_path / name, range(30)) for name in ("pool", "val", "test")]
    source = open_pool(places[0], val_data=str(places[1]), test_data=str(places[2]))
    records = [each for split in SPLITS for each in source.records(split)]
    keys = [r.key for r in records]
    positions = [c.position for r in records for c in r.captions]
    assert len({*keys}) == 90
    assert len({*positions}) == len(positions) == 60 * 2 + 30  # one a validation image
    for own in source.records("train"):
        assert all(caption.position < 60 for caption in own.captions)
    for split in HELD_OUT:
        first = FIRST_POSITIONS[split]
        for own in source.records(split):
            assert all(first <= caption.position < first + 60 for caption in own.captions)
    wanted = [f"val_data/{3:03d}.png", "004.png", f"test_data/{5:03d}.png", "006.png"]
    readers = dict(source.read_again(wanted))
    assert sorted(readers) == sorted(wanted)
    assert {key: read() for key, read in readers.items()} == {
        key: picture(int(Path(key).stem)) for key in wanted
    }
    assert [key for key, _ in source.read_again(["006.png", "004.png"])] == ["006.png", "004.png"]
    for key in ("val_data/900.png", "900.png"):
        with pytest.raises(KeyError):
            source.read_image(key)
    assert source.has_keys_below("test_data/")
    assert not source.has_keys_below("nothing/")


def test_the_fingerprint_follows_every_part(tmp_path: Path) -> None:
    pool, *others = (album(tmp_path / name, range(12)) for name in ("pool", "val", "test"))
    flags = {"val_data": str(others[0]), "test_data": str(others[1])}
    found = [open_pool(pool, **flags).fingerprint, open_pool(pool).fingerprint]
    found.append(open_pool(pool, val_data=flags["val_data"]).fingerprint)
    found.append(open_pool(pool, test_data=flags["val_data"]).fingerprint)
    for root in (pool, *others):
        table = root / "captions.txt"
        table.write_text(table.read_text().replace("picture 3", "painting 3"))
        found.append(open_pool(pool, **flags).fingerprint)
        assert open_pool(pool, **flags).fingerprint == found[-1]
    assert len({*found}) == len(found)


def test_streams(tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:

    files = {}
    for first, split in ((0, "train"), (50, "validation"), (100, "test")):
        numbers = range(first, first + 20)
        cells = {"image": [picture(i) for i in numbers], "caption": [f"n {i}" for i in numbers]}
        files[split] = str(tmp_path / f"{split}.parquet")
        cache.Dataset.from_dict(cells).to_parquet(files[split])
    builder = cache.load_dataset_builder("parquet", data_files=files)
    monkeypatch.setattr(cache, "load_dataset_builder", lambda _: builder)
    monkeypatch.setattr(hub, "hub_answers", lambda *_: True)
    settings = {"dataset": "hf", "data_dir": None, "hf_dataset": "someone/something"}
    val_data = str(album(tmp_path / "val", [*range(200, 205), 3]))
    alone, beside = (
        read_all(open_pool(tmp_path, **settings, **flags)) for flags in ({}, {"val_data": val_data})
    )
    assert set(beside[1]["validation"][:, 0].tolist()) == {*range(200, 205), 3}
    assert beside[1]["test"].tolist() == alone[1]["test"].tolist()
    train, same = (of_split(r[0], "train") for r in (alone, beside))
    assert same["position"].tolist() == [p for p in train["position"] if p != 3]
    source = open_pool(tmp_path, **settings, val_data=val_data)
    assert "official validation not read; validation from --val_data as folder" in (
        source.description
    )
    again = [k for k, _ in source.read_again(["val_data/200.png", "train/3", "train/7"])]
    assert again == ["train/3", "train/7", "val_data/200.png"]
    assert (source.n_images("train"), source.n_images("validation")) == (None, 6)
    assert (source.n_captions("train"), source.n_captions("validation")) == (None, 12)

    pool = album(tmp_path / "pool", range(300, 330))
    source = open_pool(pool, test_data="someone/something")
    assert "test from --test_data as hf: someone/something, streamed" in source.description
    assert source.description.endswith("its official test split")
    reader, pixels = read_all(source)
    assert pixels["test"][:, 0].tolist() == [*range(100, 110)]
    first = FIRST_POSITIONS["test"]
    assert of_split(reader, "test")["position"].min() >= first
    assert reader.pairs()["position"].is_unique


def _stream(first: int, n: int = 10) -> list[ImageRecord]:
    return [record(i, "a", "b") for i in range(first, first + n)]


@pytest.mark.parametrize(
    ("there", "wanted", "firsts", "note"),
    [
        ("train", "validation", {"validation": 0}, "all of it"),
        ("train test", "validation", {"validation": 20}, "its official test split"),
        ("train validation test", "test", {"test": 20}, "its official test split"),
        ("train validation", "train test", {"train": 0, "test": 10}, ""),
        ("train validation", "train validation", {"train": 0, "validation": 10}, ""),
        ("train validation", "train", {"train": 0}, "official validation not read"),
        ("train validation test", "train", {"train": 0}, "official validation and test not read"),
        ("all", "train", {"train": 0}, ""),
        ("all", "test", {"test": 0}, "all of it"),
    ],
)
def test_a_stream_gives_the_splits_that_are_asked_for(
    there: str, wanted: str, firsts: dict[str, int], note: str
) -> None:
    starts = {"train": 0, "validation": 10, "test": 20, "all": 0}
    streams = {name: iter(_stream(starts[name])) for name in there.split()}
    source = StreamSource("hf", "a test", "0", streams, None)
    source.restrict(wanted.split())
    assert source.description == "a test" + (f"; {note}" if note else "")
    for split, first in firsts.items():
        records = list(source.records(split))
        assert [r.key for r in records] == [f"{i:03d}" for i in range(first, first + 10)]
        assert {len(r.captions) for r in records} == {1 if split == "validation" else 2}


# --- Embeddings -----------------------------------------------------------------------------------


def save_rows(root: Path, images: np.ndarray, texts: np.ndarray, name: str) -> str:
    columns = {
        "caption": [f"{name} {i}" for i in range(len(images))],
        "image_path": [f"{i:03d}.png" for i in range(len(images))],
    }
    save_part(root, 0, images, texts, columns)
    return str(root)


def open_all(tmp_path: Path, **flags: Any) -> tuple[Any, DataConfig]:
    config = DataConfig(embeddings_dir=str(tmp_path / "pool"), **SMALL | flags)
    return open_embeddings(config, np.random.default_rng(0)), config


def read_files(files: Any, config: DataConfig) -> tuple[PairReader, np.ndarray]:
    reader = PairReader(files.source, config, decode=files.decode)
    images = {split: list(reader.images(split)) for split in ("test", "validation", "train")}
    pairs = reader.pairs()
    rows = zip(pairs["split"], pairs["image_row"], strict=True)
    return reader, np.stack([images[split][row].pixels for split, row in rows])


def test_embeddings_of_several_data_sets(tmp_path: Path) -> None:
    names = ("pool", "val", "test")
    images = {name: draw(n, i) for i, (name, n) in enumerate(zip(names, (40, 8, 6), strict=True))}
    texts = {name: draw(len(images[name]), 10 + i) for i, name in enumerate(names)}
    images["pool"][3] = images["val"][2] = images["test"][4]
    images["pool"][5] = images["val"][1]
    images["val"][0] = np.nan
    places = {name: save_rows(tmp_path / name, images[name], texts[name], name) for name in names}
    flags = {"val_embeddings_dir": places["val"], "test_embeddings_dir": places["test"]}
    files, config = open_all(tmp_path, **flags)
    assert files.name == f"embeddings in {places['pool']}"
    assert files.source.name == "embeddings"
    for split, name in (("validation", "val"), ("test", "test")):
        said = f"; {split} from --{name}_embeddings_dir: embeddings in {places[name]}: "
        assert said in files.source.description
    reader, given = read_files(files, config)
    pairs, skipped = reader.pairs(), reader.skipped()
    assert pairs["split"].value_counts().to_dict() == {"train": 38, "test": 6, "validation": 6}
    assert set(skipped["key"]) == {"val_data/002.png", "val_data/000.png", "003.png", "005.png"}
    assert sorted(skipped["reason"]) == [EMBEDDING_NOT_USABLE, *[IMAGE_IN_ANOTHER_SPLIT] * 3]
    owner = pairs["caption"].str.split().str[0]
    assert (
        owner == pairs["split"].map({"train": "pool", "validation": "val"}).fillna("test")
    ).all()
    for rows, found in (
        (images, given),
        (texts, files.texts_at(pairs["position"].to_numpy(np.int64))),
    ):
        expected = np.stack([rows[o][r] for o, r in zip(owner, pairs["row"], strict=True)])
        # One rounding to float32 of a value of at most 1: 6e-8.
        np.testing.assert_allclose(found, unit(expected), rtol=0, atol=1e-7)
    alone, config = open_all(tmp_path)
    assert alone.source.fingerprint != files.source.fingerprint
    one_less, _ = open_all(tmp_path, val_embeddings_dir=places["val"])
    assert one_less.source.fingerprint not in (alone.source.fingerprint, files.source.fingerprint)


def test_photographs_behind_embeddings_of_several_data_sets(tmp_path: Path) -> None:
    for i, name in enumerate(("pool", "val")):
        save_rows(tmp_path / name, draw(20, i), draw(20, 10 + i), name)
    photographs = write(tmp_path / "photographs", {f"{i:03d}.png": picture(i) for i in range(20)})
    flags = {"val_embeddings_dir": str(tmp_path / "val"), "data_dir": str(photographs)}
    source = open_all(tmp_path, **flags)[0].source
    assert source.read_image("004.png") == source.read_image("val_data/004.png") == picture(4)
    (photographs / "004.png").unlink()
    for key in ("004.png", "val_data/004.png"):
        with pytest.raises(FileNotFoundError):
            source.read_image(key)


def test_embeddings_of_different_widths(tmp_path: Path) -> None:
    save_rows(tmp_path / "pool", draw(20, 0), draw(20, 1), "pool")
    narrow = save_rows(tmp_path / "test", draw(20, 0)[:, :4], draw(20, 1)[:, :4], "test")
    words = f"--test_embeddings_dir {narrow} has rows of 4 values, --embeddings_dir .*pool of 6; "
    with pytest.raises(InputError, match=words):
        open_all(tmp_path, test_embeddings_dir=narrow)


def test_errors_of_held_out_embeddings_name_their_flag(tmp_path: Path) -> None:
    pool = save_rows(tmp_path / "pool", draw(20, 0), draw(20, 1), "pool")
    with pytest.raises(InputError, match="--val_embeddings_dir nowhere is not a folder; give one"):
        open_all(tmp_path, val_embeddings_dir="nowhere")
    with pytest.raises(
        InputError, match=r"^--val_embeddings_dir .*pool is --embeddings_dir itself"
    ):
        open_all(tmp_path, val_embeddings_dir=f"{pool}/../pool")
    (tmp_path / "val/img_emb").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^--test_embeddings_dir .*val: img_emb holds no .npy"):
        open_all(tmp_path, test_embeddings_dir=str(tmp_path / "val"))


def test_columns_of_embeddings_are_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, name in enumerate(("pool", "val")):
        save_rows(tmp_path / name, draw(20, i), draw(20, 10 + i), name)
    val = str(tmp_path / "val")
    open_all(tmp_path, val_embeddings_dir=val, caption_column="caption", image_column="png")
    assert caplog.messages == ["--image_column: not used by --embeddings_dir; leave it out"]


# --- Flags ----------------------------------------------------------------------------------------


def test_columns_that_only_held_out_data_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = album(tmp_path / "pool", range(100, 130))
    (tmp_path / "val").mkdir()
    cells = [{"bytes": picture(i), "path": None} for i in range(8)]
    table = pa.table({"photo": cells, "words": [f"table {i}" for i in range(8)]})
    pq.write_table(table, tmp_path / "val/0.parquet")
    columns = {"image_column": "photo", "caption_column": "words"}
    pairs, _ = read_pool(pool, val_data=str(tmp_path / "val"), **columns)
    assert not caplog.messages
    assert set(pairs.query("split == 'validation'")["caption"]) == {f"table {i}" for i in range(8)}
    open_pool(pool, val_data=str(tmp_path / "val"), hf_dataset="a/b", **columns)
    assert caplog.messages == [
        "--hf_dataset: not used by --dataset folder and --val_data; leave it out"
    ]
    caplog.clear()
    album(tmp_path / "test", range(5))
    open_pool(pool, test_data=str(tmp_path / "test"), id_column="n")
    assert caplog.messages == [
        "--id_column: not used by --dataset folder and --test_data; leave it out"
    ]


def test_errors_name_the_flag(tmp_path: Path, cache: Any) -> None:
    pool = album(tmp_path / "pool", range(30))

    def problem(**flags: Any) -> str:
        with pytest.raises(InputError) as caught:
            open_pool(pool, **flags)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    empty = str(tmp_path / "empty")
    assert problem(val_data="nowhere").startswith(
        "--val_data nowhere does not exist; give a folder"
    )
    assert problem(test_data=empty).startswith(f"--test_data {empty} holds no captions; understood")
    assert problem(val_data=f"coco:{empty}") == (
        f"--val_data {empty} holds no COCO (annotations/captions_train2017.json, train2017/, "
        "val2017/); for images and captions of your own use --val_data folder:DIR, webdataset or "
        "parquet"
    )
    missing = problem(val_data="some/one")
    assert missing.startswith("--val_data some/one is no folder, not in the local cache")
    assert missing.endswith("local data: --val_data coco:DIR or --val_data folder:DIR")
    assert "--val_data" in problem(val_data=f"parquet:{empty}")
    itself = problem(val_data=f"{pool}/../pool")
    assert itself.startswith(f"--val_data {pool}/../pool is --data_dir itself, whose images would")
    assert "leave --val_data out" in itself
    assert "is --hf_dataset itself" in problem(
        dataset="hf", data_dir=None, hf_dataset="a/b", test_data="hf:a/b"
    )
    assert "drawn scenes bring their own" in problem(
        dataset="synthetic", data_dir=None, val_data=str(pool)
    )
    for dataset in ("auto", "coco"):  # no scenes are drawn for photographs
        assert problem(dataset=dataset, data_dir=None, val_data=str(pool)).startswith(
            "--hf_dataset jxie/coco_captions is no folder"
        )


def test_errors_keep_their_words() -> None:
    with pytest.raises(InputError, match=r"^--val_data x: 3 files$"), naming("--val_data"):
        raise InputError("--data_dir x: 3 files")
    words = r"^--val_data webdataset:DIR reads such; --image_column$"
    with pytest.raises(InputError, match=words), naming("--val_data"):
        raise InputError("--dataset webdataset reads such; --image_column")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--val_data a --embeddings_dir b", "--val_data holds images, .* use --val_embeddings_dir"),
        ("--test_data a --embeddings_dir b", "--test_data holds .* use --test_embeddings_dir"),
        (
            "--val_embeddings_dir a",
            "--val_embeddings_dir goes with --embeddings_dir; .* --val_data",
        ),
        (
            "--test_embeddings_dir a --dataset folder --data_dir b",
            "--test_embeddings_dir goes with",
        ),
        ("--test_data a --dataset synthetic", "--test_data: synthetic brings its own held-out"),
    ],
)
def test_flags_that_do_not_go_together(flags: str, words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        parse_arguments(flags.split())


def test_without_the_flags_nothing_is_new(tmp_path: Path) -> None:
    before = {
        *("dataset", "data_dir", "embeddings_dir", "hf_dataset", "image_column", "caption_column"),
        *("id_column", "max_train_samples", "max_val_samples", "max_test_samples"),
        "max_image_pixels",
    }
    assert DataConfig().fingerprint_settings().keys() == before
    given = DataConfig(val_data="a", test_embeddings_dir="b").fingerprint_settings()
    assert given.keys() == before | {"val_data", "test_embeddings_dir"}
    assert held_out_sets(DataConfig()) == {}
    source = open_pool(album(tmp_path / "pool", range(30)))
    assert isinstance(source, IndexedSource)
    assert source.origins == (source.description,)


def test_a_part_has_the_limits_of_its_splits() -> None:
    part = PartConfig(splits=("test",), max_test_samples=7)
    assert part.limits() == {"test": 7}
    assert PartConfig().limits() == DataConfig().limits()


# --- Runs -----------------------------------------------------------------------------------------

TINY = (
    "--dataset folder --encoder_model embedded --max_train_samples 40 --max_val_samples 8 "
    "--max_test_samples 8 --n_clusters 4 --samples_per_cluster 3 --influence_budget 0.5 "
    "--influence_seeds 1 --removal_folds 2 --held_out_repeats 1 --num_epochs 2 --n_seeds 1 "
    "--batch_size 8 --embed_dim 16 --methods full influencespace random --device cpu "
    "--num_workers 0"
).split()


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """A pool of 60 pictures, 2 of them in the held-out sets, 1 broken; captions are unlike."""
    pool = album(tmp_path / "pool", range(60))
    (pool / "059.png").write_bytes(b"no picture")
    val_data = album(tmp_path / "val", [*range(200, 208), 1])
    (val_data / "207.png").write_bytes(b"")
    as_test = tmp_path / "test"
    as_test.mkdir()
    numbers = [*range(300, 307), 2, 200]
    cells = {
        "image": [{"bytes": picture(i), "path": ""} for i in numbers],
        "caption": [[f"test {i}", f"tested {i}"] for i in numbers],
    }
    pq.write_table(pa.table(cells), as_test / "0.parquet")
    return {"pool": str(pool), "val": str(val_data), "test": str(as_test)}


def flags_of(data: dict[str, str], *flags: str) -> list[str]:
    held_out = ["--val_data", data["val"], "--test_data", data["test"]]
    return [*TINY, "--data_dir", data["pool"], *held_out, *flags]


def test_a_run_accounts_for_every_pair(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch)
    limits = ["--max_train_samples", "200", "--max_val_samples", "20", "--max_test_samples", "20"]
    flags = flags_of(data, *limits, "--output_dir", str(tmp_path / "out"))
    assert main.main([*flags, "--export", "list,webdataset", "--visualize"]) == 0
    ledger = pd.read_parquet(tmp_path / "out/stage3/ledger.parquet")
    # 60 x 2 of the pool, one a picture of 9, 9 x 2 of the test set.
    assert len(ledger) == 120 + 9 + 18
    assert ledger["position"].is_monotonic_increasing
    assert ledger["position"].is_unique
    counts = ledger.groupby(["split", "status"]).size().to_dict()
    assert counts == {
        ("train", "read"): 120 - 2 * 3,
        ("train", "skipped"): 2 * 3,  # two pictures are held out, one is broken
        ("validation", "read"): 7,  # without 200, which is in test, and 207, which is empty
        ("validation", "skipped"): 2,
        ("test", "read"): 18,
    }
    reasons = ledger.query("status == 'skipped'").groupby(["split", "reason"]).size().to_dict()
    assert reasons == {
        ("train", IMAGE_IN_ANOTHER_SPLIT): 4,
        ("train", BROKEN_IMAGE): 2,
        ("validation", IMAGE_IN_ANOTHER_SPLIT): 1,
        ("validation", "empty file"): 1,
    }
    kept = ledger.query("decision == 'kept'")
    assert not kept["key"].str.contains("_data/").any()
    listed = pd.read_csv(tmp_path / "out/curated/list/curated.csv")
    assert sorted(listed["key"]) == sorted(kept["key"])
    sizes = json.loads((tmp_path / "out/curated/webdataset/sizes.json").read_text())
    assert sum(sizes.values()) == len(kept)
    page = (tmp_path / "out/results/results.md").read_text()
    assert "validation from --val_data as folder" in page
    assert "test from --test_data as parquet" in page


def run_of(folder: Path, flags: Sequence[str]) -> Run:
    return Run(parse_arguments(flags), Store.open(str(folder)), torch.device("cpu"))


def test_saved_results_follow_the_held_out_data(
    data: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = [*TINY, "--data_dir", data["pool"]]
    out = tmp_path / "out"
    first = main.embed(run_of(out, plain))
    settings = run_of(out, plain).store.manifest(provenance.EMBEDDING)["settings"]
    assert not {"val_data", "test_data"} & settings.keys()
    caplog.set_level(logging.INFO)
    assert main.embed(run_of(out, [*plain, "--load_saved"])).fingerprint == first.fingerprint
    assert f"reuse from {out / 'stage1'}" in caplog.text

    given = [*plain, "--val_data", data["val"]]
    caplog.clear()
    auto.warn_of_replacing(run_of(out, given))
    assert f"made with --val_data not set (now {data['val']}); this run" in caplog.messages[0]
    words = f"was made with --val_data not set .now {data['val']}."
    with pytest.raises(InputError, match=f"--skip_stage 1: .* {words}"):
        main.embed(run_of(out, [*given, "--skip_stage", "1"]))
    caplog.clear()
    second = main.embed(run_of(out, [*given, "--load_saved"]))
    assert "recomputed: " in caplog.text
    assert "--val_data not set (now " in caplog.text
    assert second.fingerprint != first.fingerprint
    train, same = (saved.value.split_pairs("train") for saved in (first, second))
    shared = set(train["id"]) & set(same["id"])
    columns = ["position", "key", "caption"]
    one, other = (frame[frame["id"].isin(shared)][columns] for frame in (train, same))
    assert sorted(one.itertuples(index=False)) == sorted(other.itertuples(index=False))

    caplog.clear()
    auto.warn_of_replacing(run_of(out, plain))
    assert f"made with --val_data {data['val']} (now not set); this run" in caplog.messages[0]
    with pytest.raises(InputError, match=f"--val_data {data['val']} .now not set."):
        main.embed(run_of(out, [*plain, "--skip_stage", "1"]))
    flags = [*plain, "--val_data", data["test"], "--skip_stage", "1"]
    with pytest.raises(InputError, match=f"--val_data {data['val']} .now {data['test']}."):
        main.embed(run_of(out, flags))
    caplog.clear()
    assert main.embed(run_of(out, [*given, "--skip_stage", "1"])).value is not None
    auto.warn_of_replacing(run_of(out, given))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_dry_run_shows_where_held_out_pairs_come_from(
    data: dict[str, str], tmp_path: Path
) -> None:
    run = Run(parse_arguments(flags_of(data)), Store(tmp_path / "no"), torch.device("cpu"))
    text = preview(run)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith(f"Data set folder {data['pool']}, captions.txt: 60 images")
    assert lines[0].endswith("images: train 60")
    assert lines[1] == (
        f"Held out validation from --val_data as folder: folder {data['val']}, captions.txt: "
        "9 images, 18 captions; all of it"
    )
    assert lines[2].startswith("Held out test from --test_data as parquet: 1 parquet files in ")
    assert lines[3] == "Encoder embedded"
    assert "train 60 120 40 pairs 40" in lines
    assert "validation 9 9 8 pairs 7" in lines
    assert "test 9 18 8 images 8" in lines
    assert not (tmp_path / "no").exists()


def test_a_dry_run_of_embeddings(tmp_path: Path) -> None:
    for i, name in enumerate(("pool", "val")):
        save_rows(tmp_path / name, draw(30, i), draw(30, 10 + i), name)
    flags = ["--embeddings_dir", str(tmp_path / "pool"), "--n_clusters", "2"]
    flags += ["--val_embeddings_dir", str(tmp_path / "val"), "--max_val_samples", "7"]
    run = Run(parse_arguments(flags), Store(tmp_path / "no"), torch.device("cpu"))
    opened = open_data(run)
    counts = count_splits(opened.source, read_sample(opened, run.config), run.config.data)
    assert {split: count.used for split, count in counts.items()} == {
        "train": 24,
        "validation": 7,
        "test": 6,
    }


def test_records_are_otherwise_those_of_the_data_set() -> None:
    own = replace(record(3, "a", "b"), shard="s", member="m", uid="0" * 32, group="rare")
    limits = {"validation": 5}
    rng = np.random.default_rng(0)
    val = IndexedSource("folder", "v", "1", {"train": [own]}, limits, rng)
    pool = IndexedSource("folder", "p", "0", {"train": [record(1, "a")]}, {"train": 5}, rng)
    config = DataConfig("folder", "here", val_data="folder:there")
    source = CombinedSource(pool, held_out_sets(config), {"validation": val})
    [renamed] = source.records("validation")
    [caption] = renamed.captions
    back = replace(caption, position=caption.position - FIRST_POSITIONS["validation"])
    assert back in own.captions
    assert replace(renamed, key=own.key, captions=own.captions) == own
    assert list(source.records("train")) == list(pool.records("train"))

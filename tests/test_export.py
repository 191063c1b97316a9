"""Exports, read back by the libraries that trainers use; the truth is what the tests wrote."""

from __future__ import annotations

import csv
import errno
import gc
import hashlib
import io
import json
import logging
import os
import shlex
import subprocess
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import braceexpand
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow.parquet as pq
import pytest
import webdataset  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import (  # type: ignore[import-untyped]
    group_by_keys,
    tar_file_expander,
)

import export
from artifacts import Store
from candidates import StreamSource
from data import Caption, ImageRecord, PairSource, UnusableImage
from export import FORMATS, ExportConfig, ExportReport, export_curated, weight_buckets
from settings import InputError
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
) -> ExportReport:
    return export_curated(
        case.table,
        lambda: Fake(case.images) if source is None else source,
        Store.open(str(root)),
        ExportConfig(export=formats, export_shard_size=size),
        fingerprint=fingerprint,
        about=ABOUT,
        n_workers=n_workers,
    )


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


# --- Each format, read back -----------------------------------------------------------------------


def test_webdataset_reads_every_pair_as_it_was(tmp_path: Path) -> None:
    report = run_export(tmp_path, CASE, "webdataset")
    samples = {sample["__key__"]: sample for sample in read_tars(shards(tmp_path))}
    assert len(samples) == len(CASE.table)
    for row in CASE.table.to_dict("records"):
        sample = samples[row["id"]]
        assert sample["jpg"] == CASE.images[row["key"]]
        assert sample["txt"].decode() == row["caption"]
        facts = json.loads(sample["json"])
        for name in ("id", "key", "caption", "cluster", "cell", "weight", "evaluated", "group"):
            assert facts[name] == row[name], name
        assert facts["uid"] == row["id"]
        assert facts["clip_score"] == float(row["clip_score"])
        assert facts["influence"] == (None if np.isnan(row["influence"]) else row["influence"])
        assert facts["sha256"] == row["image_sha256"]
        assert f"weight-{row['weight']:.2f}" in sample["__url__"]
    assert report.formats[0].pairs == len(samples)
    assert report.formats[0].not_exported == report.formats[0].converted == 0


def test_open_clips_own_steps_take_every_sample(tmp_path: Path) -> None:
    """Its filter, decoder and renaming, see open_clip_train/data.py."""
    formats = {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "d.gif": "GIF", "e.tif": "TIFF"}
    images = {key: picture(i, kind) for i, (key, kind) in enumerate(formats.items())}
    run_export(tmp_path, make_case(images=images), "webdataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the files open that it reads
        rows = webdataset.WebDataset(shards(tmp_path), shardshuffle=False, empty_check=False)
        samples = list(rows.decode("pilrgb").rename(image="jpg;png;jpeg;webp", text="txt"))
        del rows
        gc.collect()
    assert len(samples) == len(images)
    for sample in samples:
        assert sample["image"].size == (6, 4)
        assert sample["image"].mode == "RGB"
        assert sample["text"].startswith("say")


def test_images_that_open_clip_would_drop_become_png(tmp_path: Path) -> None:
    kinds = {"a.jpg": "GIF", "b.png": "BMP", "c.gif": "TIFF", "d.bmp": "JPEG"}  # names that lie
    images = {key: picture(i, kind) for i, (key, kind) in enumerate(kinds.items())}
    report = run_export(tmp_path, make_case(images=images), "webdataset")
    samples = {json.loads(s["json"])["key"]: s for s in read_tars(shards(tmp_path))}
    assert samples["d.bmp"]["jpg"] == images["d.bmp"]
    assert "converted_from" not in json.loads(samples["d.bmp"]["json"])
    for key, kind in list(kinds.items())[:3]:
        facts = json.loads(samples[key]["json"])
        png = samples[key]["png"]
        assert facts["converted_from"] == kind.lower()
        assert facts["sha256"] == hashlib.sha256(png).hexdigest()
        assert facts["original_sha256"] == hashlib.sha256(images[key]).hexdigest()
        original = PIL.Image.open(io.BytesIO(images[key])).convert("RGB")
        assert PIL.Image.open(io.BytesIO(png)).tobytes() == original.tobytes()
    assert report.formats[0].converted == 3
    assert any("1 bmp, 1 gif, 1 tiff" in line for line in report.lines())


def test_tars_carry_no_times_and_no_owners(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "webdataset")
    for path in shards(tmp_path):
        assert os.path.getsize(path) % tarfile.RECORDSIZE == 0
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


@pytest.mark.parametrize("name", ["parquet", "hf"])
def test_tables_are_read_by_datasets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_export(tmp_path, CASE, name, size=5)
    table = read_rows(name, tmp_path, monkeypatch)
    assert len(table) == len(CASE.table)
    assert table[3]["image"].getpixel((0, 0))[0] == pytest.approx(3, abs=4)  # JPEG is lossy
    raw = table.with_format("arrow")[:].to_pylist()
    for row, expected in zip(raw, CASE.table.to_dict("records"), strict=True):
        assert row["image"]["bytes"] == CASE.images[expected["key"]]
        assert row["image"]["path"] == f"{expected['id']}.jpg"
        for column in ("caption", "id", "key", "weight", "cluster", "cell", "group"):
            assert row[column] == expected[column]
        assert row["clip_score"] == float(expected["clip_score"])
        missing = np.isnan(expected["influence"])
        assert row["influence"] == (None if missing else expected["influence"])
    card = (tmp_path / f"curated/{name}/README.md").read_text(encoding="utf-8")
    assert "| dataset | a \\| b c |" in card
    assert f"{len(CASE.table)} |" in card


def test_parquet_has_small_row_groups(tmp_path: Path) -> None:
    case = make_case(230)
    run_export(tmp_path, case, "parquet", size=1000)
    file = pq.ParquetFile(tmp_path / "curated/parquet/data/train-00000-of-00001.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [100, 100, 30]
    assert file.read(["id"]).column("id").to_pylist() == case.table["id"].tolist()


def test_large_images_make_smaller_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "GROUP_BYTES", 2 * len(CASE.images["k/0.jpg"]) - 20)
    run_export(tmp_path, CASE, "parquet", size=100)
    file = pq.ParquetFile(tmp_path / "curated/parquet/data/train-00000-of-00001.parquet")
    assert file.num_row_groups == len(CASE.table) / 2


def test_datacomp_subset_is_searched_as_datacomp_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    uids = [rng.bytes(16).hex() for _ in CASE.table.index]
    report = run_export(tmp_path, CASE.changed(uid=uids), "datacomp")
    subset = np.load(tmp_path / "curated/datacomp/subset.npy", mmap_mode="r", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    for uid, count in [*((uid, 1) for uid in uids), (rng.bytes(16).hex(), 0)]:
        name = np.array([divmod(int(uid, 16), 2**64)], np.dtype("u8,u8"))[0]
        left, right = (np.searchsorted(subset, name, side) for side in ("left", "right"))
        assert right - left == count
    assert any("own names" in line for line in report.lines())


def test_datacomp_falls_back_to_ids_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def names() -> list[str]:
        subset = np.load(tmp_path / "curated/datacomp/subset.npy", allow_pickle=False)
        return [f"{high:016x}{low:016x}" for high, low in subset.tolist()]

    report = run_export(tmp_path, CASE, "datacomp")
    assert names() == sorted(CASE.table["id"])
    assert any("ids" in line for line in report.lines())
    assert not caplog.records
    uids = ["f" * 32, "f" * 32, *([""] * (len(CASE.table) - 2))]
    report = run_export(tmp_path, CASE.changed(uid=uids), "datacomp", fingerprint="g")
    assert names() == sorted([*CASE.table["id"][2:], "f" * 32])  # once: it stands for a count
    assert f"{len(CASE.table) - 2} of {len(CASE.table)} pairs have no uid" in caplog.text


def test_list_is_quoted_csv_by_position(tmp_path: Path) -> None:
    table = same_image(CASE.table, 0, 13)  # far apart: elsewhere they stand together
    run_export(tmp_path, replace(CASE, table=table), "list")
    path = tmp_path / "curated/list/curated.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, quoting=csv.QUOTE_NONNUMERIC))
    assert rows[0] == ["id", "uid", "key", "caption", "weight"]
    assert rows[1:] == table[["id", "uid", "key", "caption", "weight"]].to_numpy().tolist()


# --- Pairs and images -----------------------------------------------------------------------------


def test_an_image_of_several_captions_is_read_once(tmp_path: Path) -> None:
    table = same_image(CASE.table, 1, 5, 12)
    source = Fake(CASE.images)
    run_export(tmp_path, replace(CASE, table=table), "webdataset", source=source)
    assert sorted(source.keys_read) == sorted(set(table["key"]))
    samples = {s["__key__"]: s for s in read_tars(shards(tmp_path))}
    for row in (1, 5, 12):
        assert samples[table["id"][row]]["jpg"] == CASE.images["k/1.jpg"]
        assert samples[table["id"][row]]["txt"].decode() == table["caption"][row]


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_pairs_of_one_id_get_names_of_their_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASE.changed(id="a" * 32)
    run_export(tmp_path, case, name)
    if name == "webdataset":
        names = [sample["__key__"] for sample in read_tars(shards(tmp_path))]
    else:
        names = read_rows(name, tmp_path, monkeypatch)["id"][:]
    assert sorted(names) == sorted(
        ["a" * 32, *(f"{'a' * 32}-{i}" for i in range(2, len(case.table) + 1))]
    )


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_images_that_are_not_the_same_any_more_are_left_out_and_listed(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: dict[str, tuple[bytes | Exception, str]] = {
        "k/1.jpg": (picture(99), "image changed"),
        "k/4.jpg": (FileNotFoundError("k/4.jpg"), "missing file"),
        "k/5.jpg": (PermissionError("no"), "unreadable file"),
        "k/9.jpg": (UnusableImage("path outside the folder"), "path outside the folder"),
        "k/10.jpg": (KeyError("k/10.jpg"), "no image in the data set"),
        "k/11.jpg": (b"", "image changed"),
    }
    source = Fake({**CASE.images, **{key: problem for key, (problem, _) in problems.items()}})
    [report] = run_export(tmp_path, CASE, name, source=source, size=1).formats
    listed = {row["key"]: (row["id"], row["reason"]) for row in left_out(tmp_path, name)}
    ids = dict(zip(CASE.table["key"], CASE.table["id"], strict=True))
    assert listed == {key: (ids[key], reason) for key, (_, reason) in problems.items()}
    if name == "webdataset":
        exported = {sample["__key__"] for sample in read_tars(shards(tmp_path))}
    else:
        exported = set(read_rows(name, tmp_path, monkeypatch)["id"][:])
    assert exported == {id_ for key, id_ in ids.items() if key not in problems}
    assert (report.pairs, report.not_exported) == (8, 6)
    assert "6 of 14 pairs are left out" in caplog.text
    manifest = json.loads((tmp_path / f"curated/{name}/export.json").read_bytes())
    assert (manifest["pairs"], manifest["not_exported"]) == (8, 6)


def test_an_image_that_cannot_be_converted_is_left_out(tmp_path: Path) -> None:
    broken = picture(1, "GIF")[:20]
    case = make_case(images={"a": picture(0), "b": broken})
    run_export(tmp_path, case, "webdataset")
    assert [row["reason"] for row in left_out(tmp_path, "webdataset")] == ["broken image"]


def test_a_stream_is_read_in_one_pass_and_may_lack_images(tmp_path: Path) -> None:
    n_opened = 0
    skipped = {"k/0.jpg", "k/6.jpg", "k/13.jpg"}

    def stream() -> PairSource:
        nonlocal n_opened
        n_opened += 1
        records = [
            ImageRecord(key, partial(bytes, image), (Caption(7 * i, "words"),))
            for i, (key, image) in enumerate(CASE.images.items())
            if key not in skipped
        ]
        return StreamSource("stream", "", "0", {"train": iter(records)}, None)

    config = ExportConfig(export=("webdataset",), export_shard_size=3)
    export_curated(
        *(CASE.table, stream, Store.open(str(tmp_path)), config), fingerprint="f", about=ABOUT
    )
    assert n_opened == 1
    samples = {json.loads(s["json"])["key"]: s["jpg"] for s in read_tars(shards(tmp_path))}
    assert samples == {key: data for key, data in CASE.images.items() if key not in skipped}
    listed = left_out(tmp_path, "webdataset")
    assert {(r["key"], r["reason"]) for r in listed} == {
        (key, "no longer in the data set") for key in skipped
    }


@pytest.mark.parametrize("name", WITH_IMAGES)
@pytest.mark.parametrize("n_workers", [0, 3])
def test_few_images_are_held_at_a_time(
    name: str, n_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(bytes):
        n_alive: ClassVar[int] = 0
        most: ClassVar[int] = 0

        def __new__(cls, data: bytes) -> Counted:
            cls.n_alive += 1
            cls.most = max(cls.most, cls.n_alive)
            return super().__new__(cls, data)

        def __del__(self) -> None:
            Counted.n_alive -= 1

    class Counting(Fake):
        def read_image(self, key: str) -> bytes:
            return Counted(super().read_image(key))

    monkeypatch.setattr(export, "GROUP_ROWS", 10)
    case = make_case(300)
    run_export(*(tmp_path, case, name), source=Counting(case.images), size=60, n_workers=n_workers)
    gc.collect()
    rows = 0 if name == "webdataset" else 10
    assert 0 < Counted.most <= 4 * max(1, n_workers) + n_workers + rows + 3
    assert Counted.n_alive == 0


def test_workers_do_not_change_what_is_written(tmp_path: Path) -> None:
    for n_workers in (0, 1, 5):
        run_export(tmp_path / str(n_workers), CASE, *FORMATS, n_workers=n_workers)
    trees = [tree(tmp_path / str(n)) for n in (0, 1, 5)]
    assert trees[0] == trees[1] == trees[2]


# --- Weights --------------------------------------------------------------------------------------

positive = st.floats(0.01, 100.0)


@given(st.lists(positive, min_size=1, max_size=40))
@example([1.0] * 5)
@example([float(2**i) for i in range(-10, 10)])
def test_buckets_hold_like_weights(values: list[float]) -> None:
    weights = np.array(values)
    buckets, factors = weight_buckets(weights)
    assert len(factors) <= 8
    assert set(buckets.tolist()) == set(range(len(factors)))  # none empty
    assert factors[buckets].sum() == pytest.approx(weights.sum(), rel=1e-9)
    order = np.argsort(weights, kind="stable")
    assert (np.diff(buckets[order]) >= 0).all()  # a bucket is an interval of weights
    for number, factor in enumerate(factors):
        own = weights[buckets == number]
        assert own.min() <= factor * (1 + 1e-12)
        assert factor <= own.max() * (1 + 1e-12)
        assert factor == pytest.approx(own.mean(), rel=1e-12)
    low, high = weights.min(), weights.max()
    if high / low <= 1.1**8 * (1 - 1e-9):  # eight intervals of 10 % reach so far
        assert (np.abs(factors[buckets] - weights) <= 0.1 * weights * (1 + 1e-9)).all()
    spread = max(weights[buckets == b].max() / weights[buckets == b].min() for b in set(buckets))
    assert spread <= max(1.1, narrowest(sorted(set(values)), 8)) * (1 + 1e-6)


def narrowest(values: list[float], n_buckets: int) -> float:
    """The least of the largest ratio within a bucket, over all ways to cut sorted values."""
    best = [values[i] / values[0] for i in range(len(values))]  # of the first i + 1, in one
    for _ in range(n_buckets - 1):
        best = [
            min(max(best[j - 1] if j else 1.0, values[i] / values[j]) for j in range(i + 1))
            for i in range(len(values))
        ]
    return best[-1]


def test_buckets_by_hand() -> None:
    buckets, factors = weight_buckets(np.array([1.0, 0.5, 1.05, 2.0, 0.5]))
    assert buckets.tolist() == [1, 0, 1, 2, 0]
    assert factors.tolist() == pytest.approx([0.5, 1.025, 2.0])
    buckets, factors = weight_buckets(np.full(4, 1.0))
    assert (buckets.tolist(), factors.tolist()) == ([0] * 4, [1.0])
    buckets, factors = weight_buckets(np.array([0.0, 2.0, 0.0, 1.0]))  # zero has no neighbours
    assert (buckets.tolist(), factors.tolist()) == ([0, 2, 0, 1], [0.0, 1.0, 2.0])
    # Few weights far apart need no more than a bucket each, however wide their range.
    _, factors = weight_buckets(np.array([0.001, 0.1, 1.0, 50.0]))
    assert factors.tolist() == [0.001, 0.1, 1.0, 50.0]


def test_tiny_weights_have_folders_of_their_own(tmp_path: Path) -> None:
    weights = np.resize([0.001, 0.002, 2.0], len(CASE.table))
    run_export(tmp_path, CASE.changed(weight=weights), "webdataset")
    folders = {Path(path).parent.name for path in shards(tmp_path)}
    assert folders == {"weight-0.001", "weight-0.002", "weight-2.000"}
    assert len(read_tars(shards(tmp_path))) == len(CASE.table)


def test_shards_of_a_weight_are_even(tmp_path: Path) -> None:
    case = make_case(28)
    run_export(tmp_path, case, "webdataset", size=5)
    sizes = json.loads((tmp_path / "curated/webdataset/sizes.json").read_bytes())
    found = {
        str(Path(path).relative_to(tmp_path / "curated/webdataset")): len(read_tars([path]))
        for path in shards(tmp_path)
    }
    assert sizes == found
    groups: dict[str, list[int]] = {}
    for name, n in sizes.items():
        groups.setdefault(name.split("/")[0], []).append(n)
    assert sorted(map(tuple, groups.values())) == [(4, 3), (4, 3), (5, 5, 4)]
    for folder, own in groups.items():
        beside = json.loads((tmp_path / f"curated/webdataset/{folder}/sizes.json").read_bytes())
        assert list(beside.values()) == own


# --- The training command -------------------------------------------------------------------------


def training_command(root: Path, *flags: str) -> list[str]:
    """What the script runs, told by a program that stands in for Python."""
    program = root / "say"
    program.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
    program.chmod(0o755)
    said = subprocess.run(
        ["/bin/sh", str(root / "curated/webdataset/train_open_clip.sh"), *flags],
        env={**os.environ, "PYTHON": str(program)},
        cwd="/",
        check=True,
        capture_output=True,
    )
    assert not said.stderr
    return said.stdout.decode().split("\0")[:-1]


def value_of(flag: str, words: list[str]) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("folder", ["plain", "a b, {c} 'd' $e \\f"])
def test_the_script_trains_on_all_shards_by_their_weight(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder
    run_export(root, CASE, "webdataset")
    words = training_command(root, "--model", "ViT-B-32", "--name", "a b")
    assert words[:2] == ["-m", "open_clip_train.main"]
    assert words[-4:] == ["--model", "ViT-B-32", "--name", "a b"]
    assert value_of("--dataset-type", words) == "webdataset"
    assert value_of("--train-num-samples", words) == str(len(CASE.table))
    assert "--dataset-resampled" in words
    groups = value_of("--train-data", words).split("::")
    factors = value_of("--train-data-upsampling-factors", words).split("::")
    assert len(groups) == len(factors) == 3
    # As open_clip's expand_urls does: the factor of a group belongs to each of its shards.
    weighted = [
        (path, float(factor))
        for group, factor in zip(groups, factors, strict=True)
        for path in braceexpand.braceexpand(group)
    ]
    assert sorted(path for path, _ in weighted) == shards(root)
    exposure = {s["__key__"]: factor for path, factor in weighted for s in read_tars([path])}
    expected = dict(zip(CASE.table["id"], CASE.table["weight"], strict=True))
    assert exposure == pytest.approx(expected, rel=1e-5)


def test_equal_weights_need_no_factors(tmp_path: Path) -> None:
    report = run_export(tmp_path, CASE.changed(weight=1.0), "webdataset", size=7)
    words = training_command(tmp_path)
    assert "--dataset-resampled" not in words
    assert "--train-data-upsampling-factors" not in words
    paths = webdataset.shardlists.expand_urls(value_of("--train-data", words))
    assert sorted(paths) == shards(tmp_path)
    # open_clip wants a shard for every worker.
    assert int(value_of("--workers", words)) == len(paths) == 2
    sizes = json.loads((Path(paths[0]).parent / "sizes.json").read_bytes())
    assert sum(sizes[Path(path).name] for path in paths) == len(CASE.table)
    [line] = [line for line in report.lines() if "train open_clip" in line]
    script = shlex.split(line.partition("open_clip: ")[2])[1]
    assert Path(script) == tmp_path / "curated/webdataset/train_open_clip.sh"


def test_a_path_that_open_clip_cannot_take_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "a::b"
    run_export(root, CASE, "webdataset")
    with pytest.raises(subprocess.CalledProcessError) as error:
        training_command(root)
    assert b"rename it" in error.value.stderr


def test_a_weight_without_images_is_not_trained_on(tmp_path: Path) -> None:
    weights = np.where(np.arange(len(CASE.table)) == 3, 5.0, 1.0)
    source = Fake(CASE.without("k/3.jpg", FileNotFoundError()))
    run_export(tmp_path, CASE.changed(weight=weights), "webdataset", source=source)
    words = training_command(tmp_path)
    assert "weight-5.00" not in value_of("--train-data", words)
    assert "--dataset-resampled" not in words
    assert value_of("--train-num-samples", words) == "13"


# --- Interruption, staleness, damage --------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_an_interrupted_export_goes_on_and_ends_the_same(name: str, tmp_path: Path) -> None:
    images = CASE.without("k/2.jpg", FileNotFoundError())
    run_export(tmp_path / "whole", CASE, name, source=Fake(images))
    expected = tree(tmp_path / "whole")
    suffixes = (".tar", ".parquet", ".arrow")
    n_kept = []
    for n in range(len(CASE.table)):
        root = tmp_path / str(n)
        with pytest.raises(InputError, match="broke off"):
            run_export(root, CASE, name, source=Interrupted(images, n), n_workers=0)
        folder = root / "curated" / name
        assert not json.loads((folder / "export.json").read_bytes())["complete"]
        assert not list(folder.rglob("*.tmp"))
        kept = {p: p.stat().st_ino for p in folder.rglob("*") if p.suffix in suffixes}
        n_kept.append(len(kept))
        source = Fake(images)
        run_export(root, CASE, name, source=source)
        assert {p: p.stat().st_ino for p in kept} == kept  # not written again
        assert len(source.keys_read) <= len(CASE.table) - len(kept)
        assert {k: v for k, v in tree(root).items() if "README" not in k} == {
            k: v
            for k, v in expected.items()
            if "README" not in k  # it names its folder
        }
    assert n_kept == sorted(n_kept)
    assert n_kept[0] == 0
    assert n_kept[-1] >= 3


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_a_complete_export_is_not_read_again(name: str, tmp_path: Path) -> None:
    first = run_export(tmp_path, CASE, name)
    expected = tree(tmp_path)
    source = Fake(CASE.images)
    assert run_export(tmp_path, CASE, name, source=source) == first
    assert source.keys_read == []
    assert tree(tmp_path) == expected


def test_a_shard_that_was_lost_or_cut_off_is_written_again(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "webdataset")
    expected = tree(tmp_path)
    lost, cut, *_ = map(Path, shards(tmp_path))
    n_lost = len(read_tars([str(lost)])) + len(read_tars([str(cut)]))
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    source = Fake(CASE.images)
    run_export(tmp_path, CASE, "webdataset", source=source)
    assert tree(tmp_path) == expected
    assert len(source.keys_read) == n_lost


@pytest.mark.parametrize("name", FORMATS)
def test_another_fingerprint_replaces_what_the_first_wrote(name: str, tmp_path: Path) -> None:
    run_export(tmp_path, CASE, name, size=2)
    (tmp_path / "curated" / name / "notes.txt").write_text("mine")
    smaller = replace(CASE, table=CASE.table.iloc[:5])
    run_export(tmp_path, smaller, name, size=2, fingerprint="g")
    run_export(tmp_path / "fresh", smaller, name, size=2, fingerprint="g")
    found, fresh = tree(tmp_path / "curated"), tree(tmp_path / "fresh/curated")
    assert found.pop(f"{name}/notes.txt") == b"mine"
    assert found == fresh


def test_the_shard_size_is_part_of_what_is_compared(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "webdataset", size=2)
    n_before = len(shards(tmp_path))
    run_export(tmp_path, CASE, "webdataset", size=100)
    assert n_before > len(shards(tmp_path)) == 3
    assert len(read_tars(shards(tmp_path))) == len(CASE.table)


def test_another_format_leaves_the_others_alone(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "webdataset")
    source = Fake(CASE.images)
    run_export(tmp_path, CASE, "webdataset", "list", source=source)
    assert source.keys_read == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_that_no_export_wrote_is_left_alone(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "curated" / name / "mine.tar"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"precious")
    with pytest.raises(InputError, match="was not written by an export"):
        run_export(tmp_path, CASE, name)
    assert tree(tmp_path) == {f"curated/{name}/mine.tar": b"precious"}


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "list")
    (tmp_path / "curated/list/export.json").write_text("{}")
    with pytest.raises(InputError, match=r"export\.json is damaged .* delete the folder"):
        run_export(tmp_path, CASE, "list")


def test_a_manifest_cannot_make_it_remove_other_files(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "list")
    path = tmp_path / "curated/list/export.json"
    precious = tmp_path / "precious"
    precious.write_text("")
    path.write_text(json.dumps({"files": ["../../precious"], "fingerprint": "other"}))
    with pytest.raises(InputError, match="not inside"):
        run_export(tmp_path, CASE, "list")
    assert precious.exists()


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run_export(tmp_path, CASE, "webdataset", source=Interrupted(CASE.images, 8))
    left = tmp_path / "curated/webdataset/weight-2.00/.00000.tar.123.tmp"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    run_export(tmp_path, CASE, "webdataset")
    assert not left.exists()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n_calls", [2, 3, 4])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    name: str, n_calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, list[int]()

    def full_disk(number: int) -> None:
        calls.append(number)
        if len(calls) >= n_calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left on device") as error:
        run_export(tmp_path, CASE, name)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "curated").rglob("*.tmp"))
    monkeypatch.undo()
    run_export(tmp_path, CASE, name)
    run_export(tmp_path / "fresh", CASE, name)
    assert tree(tmp_path / "curated") == tree(tmp_path / "fresh/curated")


@pytest.mark.parametrize("name", WITH_IMAGES)
@pytest.mark.parametrize("n_bytes", [0, 700])
def test_a_disk_that_fills_in_the_middle_of_a_shard(
    name: str, n_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open

    class Limited(io.FileIO):
        n_left = n_bytes

        def write(self, data: Any) -> int:
            self.n_left -= len(memoryview(data).cast("B"))
            if self.n_left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def limited(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb" and any(kind in str(path) for kind in (".tar.", ".parquet.", ".arrow.")):
            return Limited(path, "wb")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", limited)
    with pytest.raises(InputError, match="No space left on device"):
        run_export(tmp_path, CASE, name)
    monkeypatch.undo()
    gc.collect()  # what was given up must not complain when it goes
    files = tree(tmp_path)
    assert not [path for path in files if not path.endswith("export.json")]


# --- What cannot be exported ----------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_embeddings_without_images_can_only_be_listed(name: str, tmp_path: Path) -> None:
    source = Fake({})
    with pytest.raises(InputError, match=f"--export {name}: images are needed"):
        run_export(tmp_path, CASE, name, "list", "datacomp", source=source)
    assert (tmp_path / "curated/list/curated.csv").exists()
    assert (tmp_path / "curated/datacomp/subset.npy").exists()
    assert tree(tmp_path / "curated" / name) == {}
    report = run_export(tmp_path, CASE, "list", "datacomp", source=source)
    assert [r.pairs for r in report.formats] == [len(CASE.table)] * 2


def test_a_data_set_that_is_gone_is_one_error(tmp_path: Path) -> None:
    source = Fake(dict.fromkeys(CASE.images, FileNotFoundError()))
    with pytest.raises(InputError, match=r"none of the 14 images .* \(14 missing file\)"):
        run_export(tmp_path, CASE, "parquet", source=source)


def test_a_data_set_that_breaks_off_is_no_full_disk(tmp_path: Path) -> None:
    class Broken(Fake):
        def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
            yield from list(super().read_again(keys))[:5]
            raise ConnectionResetError("the network is gone")

    with pytest.raises(InputError, match="cannot be read again: the network is gone"):
        run_export(tmp_path, CASE, "webdataset", source=Broken(CASE.images))


def test_nothing_asked_for_nothing_written(tmp_path: Path) -> None:
    report = run_export(tmp_path, CASE)
    assert report == ExportReport(())
    assert not (tmp_path / "curated").exists()


def test_an_empty_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pair was kept"):
        run_export(tmp_path, replace(CASE, table=CASE.table.iloc[:0]), "list")


def test_settings() -> None:
    with pytest.raises(InputError, match="--export must be one of"):
        ExportConfig(export=("zip",))
    with pytest.raises(InputError, match="--export_shard_size must be >= 1"):
        ExportConfig(export_shard_size=0)


def test_the_report_counts_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        report = run_export(tmp_path, CASE, *FORMATS)
    assert [r.name for r in report.formats] == list(FORMATS)
    for r in report.formats:
        folder = tmp_path / "curated" / r.name
        files = [p for p in folder.rglob("*") if p.is_file() and ".shards" not in p.parts]
        assert r.folder == str(folder)
        assert r.files == len(files)
        assert r.bytes == sum(p.stat().st_size for p in files)
        assert r.pairs == len(CASE.table)
        assert f"{r.name}: {r.pairs} pairs, {r.files} files" in caplog.text
        assert json.loads((folder / "export.json").read_bytes())["complete"]

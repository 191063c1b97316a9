"""Images read again: once, in bounded memory, compared with what they were."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from artifacts.settings import InputError
from artifacts.store import Store
from exporting import tables
from exporting.formats import ExportConfig, export_curated
from sources.base import Caption, ImageRecord, PairSource, UnusableImage
from sources.splits import StreamSource
from tests.exporting.exports import (
    ABOUT,
    CASE,
    WITH_IMAGES,
    Fake,
    left_out,
    make_case,
    read_rows,
    read_tars,
    run_export,
    same_image,
    shards,
)
from tests.helpers import picture


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


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_an_image_of_unknown_hash_is_exported_without_comparing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"k/2.jpg": picture(92, "JPEG"), "k/3.jpg": picture(93, "JPEG")}
    # Pair 2 alone has no hash; of the two pairs that share image 3, pair 3 has one, pair 6 none.
    table = same_image(CASE.table, 3, 6)
    hashes = ["" if row in (2, 6) else sha256 for row, sha256 in enumerate(table["image_sha256"])]
    case = replace(CASE, table=table).changed(image_sha256=hashes)
    run_export(tmp_path, case, name, source=Fake({**CASE.images, **other}))
    if name == "webdataset":
        samples = read_tars(shards(tmp_path))
        exported = {sample["__key__"]: sample["jpg"] for sample in samples}
        facts = {sample["__key__"]: json.loads(sample["json"]) for sample in samples}
        sha256 = hashlib.sha256(other["k/2.jpg"]).hexdigest()
        assert facts[table["id"][2]]["sha256"] == sha256
    else:
        rows = read_rows(name, tmp_path, monkeypatch).with_format("arrow")[:].to_pylist()
        exported = {row["id"]: row["image"]["bytes"] for row in rows}
    expected = {
        id_: {**CASE.images, **other}[key]
        for id_, key in zip(table["id"], table["key"], strict=True)
    }
    changed = table["id"][3]
    del expected[changed]
    assert exported == expected
    assert left_out(tmp_path, name) == [
        {"id": changed, "key": "k/3.jpg", "reason": "image changed"}
    ]


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

    monkeypatch.setattr(tables, "GROUP_ROWS", 10)
    case = make_case(300)
    run_export(*(tmp_path, case, name), source=Counting(case.images), size=60, n_workers=n_workers)
    gc.collect()
    rows = 0 if name == "webdataset" else 10
    assert 0 < Counted.most <= 4 * max(1, n_workers) + n_workers + rows + 3
    assert Counted.n_alive == 0


def test_a_data_set_that_is_gone_is_one_error(tmp_path: Path) -> None:
    source = Fake(dict.fromkeys(CASE.images, FileNotFoundError()))
    with pytest.raises(InputError, match=r"none of the 14 images .* \(14 missing file\)"):
        run_export(tmp_path, CASE, "parquet", source=source)


def test_a_data_set_that_breaks_off_is_no_full_disk(tmp_path: Path) -> None:
    class Broken(Fake):
        def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
            yield from list(super().read_again(keys))[:5]
            raise ConnectionResetError("the network is gone")

    with pytest.raises(
        InputError, match="cannot be read again: the network is gone; mend that and run"
    ):
        run_export(tmp_path, CASE, "webdataset", source=Broken(CASE.images))

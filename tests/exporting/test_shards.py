"""Shards interrupted, lost, cut off, on a full disk; the truth is an undisturbed export."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.settings import InputError
from artifacts.store import Store
from exporting.formats import FORMATS
from exporting.images import for_open_clip
from exporting.shards import _ShardJob, write_shard
from exporting.webdataset import _TarWriter
from sources.places import StorageGoneError
from tests.exporting.exports import (
    CASE,
    WITH_IMAGES,
    Fake,
    Interrupted,
    Reachable,
    read_tars,
    run_export,
    same_image,
    shards,
    threads,
    tree,
)

SUFFIXES = (".tar", ".parquet", ".arrow")


def test_workers_do_not_change_what_is_written(tmp_path: Path) -> None:
    for n_workers in (0, 1, 5):
        run_export(tmp_path / str(n_workers), CASE, *FORMATS, n_workers=n_workers)
    trees = [tree(tmp_path / str(n)) for n in (0, 1, 5)]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("n_threads", [0, 3])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_shards_that_are_written_side_by_side_are_the_same(
    n_threads: int, n_workers: int, tmp_path: Path
) -> None:
    case = replace(CASE, table=same_image(CASE.table, 1, 4, 9))  # in shards of several weights
    images = {**case.without("k/2.jpg", FileNotFoundError()), "k/5.jpg": b"another"}
    one = run_export(tmp_path / "one", case, *WITH_IMAGES, source=Fake(images))
    source = Reachable(images)
    two = run_export(
        *(tmp_path / "two", case, *WITH_IMAGES),
        source=source,
        n_workers=n_threads,
        workers=threads(source, n_workers),
    )
    assert set(source.keys_read) == set(case.table["key"])
    found, expected = tree(tmp_path / "two"), tree(tmp_path / "one")
    cards = {name for name in expected if "README" in name}  # they name their folder
    assert found.keys() == expected.keys()
    assert len(found) - len(cards) > 20
    assert all(found[name] == expected[name] for name in expected.keys() - cards)
    assert [r.not_exported for r in two.formats] == [r.not_exported for r in one.formats]
    assert one.formats[0].not_exported == 2


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_shards_side_by_side_go_on_after_an_error(name: str, tmp_path: Path) -> None:
    gone = StorageGoneError("s3://pool: 20 reads in a row have failed")
    expected = run_export(tmp_path / "whole", CASE, name)
    source = Reachable(CASE.without("k/13.jpg", gone))
    with pytest.raises(InputError, match="reads in a row have failed"):
        run_export(tmp_path / "x", CASE, name, source=source, workers=threads(source, 1))
    folder = tmp_path / "x" / "curated" / name
    kept = {p: p.stat().st_ino for p in folder.rglob("*") if p.suffix in SUFFIXES}
    assert len(kept) >= 2
    assert not json.loads((folder / "export.json").read_bytes())["complete"]
    source = Reachable(CASE.images)
    report = run_export(tmp_path / "x", CASE, name, source=source, workers=threads(source))
    assert {p: p.stat().st_ino for p in kept} == kept, "not written again"
    assert len(source.keys_read) < len(CASE.table)
    assert report.formats[0].pairs == expected.formats[0].pairs
    assert not list(folder.rglob(".*.tmp"))


def test_a_worker_that_does_not_see_the_output_folder(tmp_path: Path) -> None:
    job = _ShardJob((Store(tmp_path), "x"), "0.tar", 0, _TarWriter, for_open_clip, 0)
    with pytest.raises(InputError, match=r"pairs.tmp cannot be read on .* on shared storage"):
        write_shard(job, Reachable({}))


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_an_interrupted_export_goes_on_and_ends_the_same(name: str, tmp_path: Path) -> None:
    images = CASE.without("k/2.jpg", FileNotFoundError())
    run_export(tmp_path / "whole", CASE, name, source=Fake(images))
    expected = tree(tmp_path / "whole")
    n_kept = []
    for n in range(len(CASE.table)):
        root = tmp_path / str(n)
        with pytest.raises(InputError, match="broke off"):
            run_export(root, CASE, name, source=Interrupted(images, n), n_workers=0)
        folder = root / "curated" / name
        assert not json.loads((folder / "export.json").read_bytes())["complete"]
        assert not list(folder.rglob("*.tmp"))
        kept = {p: p.stat().st_ino for p in folder.rglob("*") if p.suffix in SUFFIXES}
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

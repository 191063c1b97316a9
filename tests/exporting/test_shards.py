"""Shards interrupted, lost, cut off, on a full disk; the truth is an undisturbed export."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from artifacts.settings import InputError
from exporting.formats import FORMATS
from tests.exporting.exports import (
    CASE,
    WITH_IMAGES,
    Fake,
    Interrupted,
    read_tars,
    run_export,
    shards,
    tree,
)


def test_workers_do_not_change_what_is_written(tmp_path: Path) -> None:
    for n_workers in (0, 1, 5):
        run_export(tmp_path / str(n_workers), CASE, *FORMATS, n_workers=n_workers)
    trees = [tree(tmp_path / str(n)) for n in (0, 1, 5)]
    assert trees[0] == trees[1] == trees[2]


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

"""Folders of exports: what an earlier one left, what is not theirs, damaged manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.settings import InputError
from exporting.formats import FORMATS
from tests.exporting.exports import (
    CASE,
    Interrupted,
    read_tars,
    run_export,
    shards,
    tree,
)


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
    with pytest.raises(
        InputError, match=r"export\.json is damaged .* delete .*curated/\w+ and run again"
    ):
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

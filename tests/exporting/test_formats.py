"""Exports as a whole, and those without images; the truth is what the tests wrote."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts.settings import InputError
from artifacts.store import Store
from exporting.formats import FORMATS, ExportConfig, ExportReport, outdated_exports
from tests.exporting.exports import (
    CASE,
    WITH_IMAGES,
    Fake,
    read_rows,
    read_tars,
    run_export,
    same_image,
    shards,
    tree,
)


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


def test_another_format_leaves_the_others_alone(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "webdataset")
    source = Fake(CASE.images)
    run_export(tmp_path, CASE, "webdataset", "list", source=source)
    assert source.keys_read == []


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
def test_embeddings_without_images_can_only_be_listed(name: str, tmp_path: Path) -> None:
    source = Fake({})
    with pytest.raises(InputError, match=f"--export {name}: images are needed"):
        run_export(tmp_path, CASE, name, "list", "datacomp", source=source)
    assert (tmp_path / "curated/list/curated.csv").exists()
    assert (tmp_path / "curated/datacomp/subset.npy").exists()
    assert tree(tmp_path / "curated" / name) == {}
    report = run_export(tmp_path, CASE, "list", "datacomp", source=source)
    assert [r.pairs for r in report.formats] == [len(CASE.table)] * 2


# --- Without images -------------------------------------------------------------------------------


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


def test_datacomp_says_that_pairs_would_count_that_hardly_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = np.where(np.arange(len(CASE.table)) < 3, 0.0125, 1.25)
    run_export(tmp_path, CASE.changed(weight=weights), "datacomp")
    assert "subset.npy has no weights; 3 pairs that hardly count would count like" in caplog.text
    assert "--target_size_ratio auto keeps few that look faulty" in caplog.text


def test_list_is_quoted_csv_by_position(tmp_path: Path) -> None:
    table = same_image(CASE.table, 0, 13)  # far apart: elsewhere they stand together
    run_export(tmp_path, replace(CASE, table=table), "list")
    path = tmp_path / "curated/list/curated.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, quoting=csv.QUOTE_NONNUMERIC))
    assert rows[0] == ["id", "uid", "key", "caption", "weight"]
    assert rows[1:] == table[["id", "id", "key", "caption", "weight"]].to_numpy().tolist()


def test_list_gives_the_data_sets_own_uids_where_there_are_any(tmp_path: Path) -> None:
    uids = ["f" * 32, *([""] * (len(CASE.table) - 1))]
    run_export(tmp_path, CASE.changed(uid=uids), "list")
    with open(tmp_path / "curated/list/curated.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["uid"] for row in rows] == ["f" * 32, *CASE.table["id"][1:]]


def test_exports_of_another_curation_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert outdated_exports(store, ExportConfig(), "first") == []
    run_export(tmp_path, CASE, "list", "datacomp", fingerprint="first")
    assert outdated_exports(store, ExportConfig(), "first") == []
    assert outdated_exports(store, ExportConfig(), "second") == ["datacomp", "list"]
    assert outdated_exports(store, ExportConfig(export=("list",)), "second") == ["datacomp"]

"""Tables, read back by `datasets` and pyarrow; the truth is what the tests wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from exporting import tables
from tests.exporting.exports import (
    CASE,
    make_case,
    read_rows,
    run_export,
)
from tests.helpers import offline_datasets


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
        assert row["uid"] == (expected["uid"] or expected["id"])
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
    monkeypatch.setattr(tables, "GROUP_BYTES", 2 * len(CASE.images["k/0.jpg"]) - 20)
    run_export(tmp_path, CASE, "parquet", size=100)
    file = pq.ParquetFile(tmp_path / "curated/parquet/data/train-00000-of-00001.parquet")
    assert file.num_row_groups == len(CASE.table) / 2


def test_datasets_reads_a_second_export_and_not_the_first_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = offline_datasets(tmp_path, monkeypatch)
    folder = str(tmp_path / "curated/parquet")
    for n in (len(CASE.table), 3):  # in one cache, under one name
        case = dataclasses.replace(CASE, table=CASE.table.head(n))
        run_export(tmp_path, case, "parquet", fingerprint=f"{n} pairs")
        assert len(datasets.load_dataset(folder, split="train")) == n

"""The atlas against the columns that Embedding Atlas documents, and the viewer itself.

The viewer is asked only where INFLUENCESPACE_ATLAS_PYTHON names a Python that has it
(`pip install embedding-atlas`, Python 3.11 or later).
"""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reporting.ledger import COLUMNS, TYPES
from reporting.report import atlas
from reporting.report.atlas import write_atlas
from reporting.report.pair_map import PairMap

PYTHON_VARIABLE = "INFLUENCESPACE_ATLAS_PYTHON"
N = 5
MAX_SECONDS = 300
HOSTILE = [
    "</script><script>alert(1)</script>",
    "\u202eright to left\u202c",
    "a\x00b",
    "\"quoted\" 'twice' & `thrice`",
    "",
]
RED, BLUE = (200, 30, 30), (30, 30, 200)

# As the command in the README has them.
FLAGS = "--x x --y y --neighbors neighbors --text caption --image image".split()


def picture(colour: tuple[int, int, int], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(buffer, kind)
    return buffer.getvalue()


PHOTOGRAPHS = {0: picture(RED, "AVIF"), 1: picture(BLUE, "WEBP"), 3: picture(BLUE, "JPEG")}


def ledger_rows() -> pd.DataFrame:
    """Rows of training pairs with the ledger's columns and types."""
    rows = pd.DataFrame({name: [f"{name} {row}" for row in range(N)] for name in COLUMNS})
    rows = rows.assign(caption=HOSTILE, key=HOSTILE, position=range(10, 10 + N), row=-1)
    rows = rows.assign(duplicate_of=-1, cluster=[0, 1, 2, 0, 1], cell=7, better_copies=0)
    rows = rows.assign(evaluated=[True, False] * 2 + [True], trusted=None)
    for number, name in enumerate(["clip_score", "influence", "value", "weight", "log_odds"]):
        rows[name] = np.arange(N) + number / 8
    for name in ("influence_part", "agreement_part", "relevance_part"):
        rows[name] = np.linspace(-1, 1, N)
    return rows.astype(TYPES)


def a_map() -> PairMap:
    places = np.linspace(-1, 1, 2 * N, dtype=np.float32).reshape(N, 2)
    neighbours = np.array([[1, 2], [0, 2], [3, 4], [4, 2], [3, 0]], dtype=np.int32)
    similarities = np.tile(np.array([[0.75, 0.5]], dtype=np.float32), (N, 1))
    return PairMap(places, neighbours, similarities)


def written(path: Path, photographs: dict[int, bytes] | None = None) -> Path:
    with path.open("wb") as file:
        write_atlas(
            file, ledger_rows(), a_map(), PHOTOGRAPHS if photographs is None else photographs
        )
    return path


def test_columns_are_those_that_the_viewer_documents(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path / "atlas.parquet"))
    assert table.column_names[:5] == ["x", "y", "neighbors", "image", "caption"]
    assert sorted(table.column_names[4:]) == sorted(COLUMNS)
    assert pa.types.is_floating(table.schema.field("x").type)
    assert table["y"].to_pylist() == a_map().places[:, 1].tolist()
    assert table["neighbors"].to_pylist() == [
        {"ids": ids, "distances": [0.25, 0.5]} for ids in [[1, 2], [0, 2], [3, 4], [4, 2], [3, 0]]
    ]
    image = table.schema.field("image").type
    assert {field.name: field.type for field in image} == {
        "bytes": pa.binary(),
        "path": pa.string(),
    }


def test_the_ledger_comes_back_as_it_was(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path / "atlas.parquet"))
    rows = ledger_rows()
    for name in COLUMNS:
        expected = [None if value is pd.NA else value for value in rows[name].tolist()]
        assert table[name].to_pylist() == expected, name
    assert table["caption"].to_pylist() == HOSTILE
    assert table.schema.field("cluster").type == pa.int64()
    assert table.schema.field("evaluated").type == pa.bool_()


def test_photographs_are_of_a_kind_that_the_viewer_tells_from_sound(tmp_path: Path) -> None:
    images = pq.read_table(written(tmp_path / "atlas.parquet"))["image"].to_pylist()
    assert [image is None for image in images] == [False, False, True, False, True]
    assert images[3]["bytes"] == PHOTOGRAPHS[3]  # JPEG stays as it is
    for row, colour in ((0, RED), (1, BLUE)):
        with Image.open(io.BytesIO(images[row]["bytes"])) as shown:
            assert (shown.format, shown.size) == ("JPEG", (24, 16))
            assert np.abs(np.array(shown).mean(axis=(0, 1)) - colour).max() < 12  # lossy, twice


def test_blocks_of_rows_make_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pq.read_table(written(tmp_path / "whole.parquet"))
    monkeypatch.setattr(atlas, "ROWS_AT_ONCE", 2)
    in_blocks = written(tmp_path / "blocks.parquet")
    assert pq.ParquetFile(in_blocks).num_row_groups == 3
    assert pq.read_table(in_blocks).equals(whole)


def test_without_photographs_and_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "atlas.parquet"
    alone = PairMap(
        np.zeros((1, 2), np.float32), np.empty((1, 0), np.int32), np.empty((1, 0), np.float32)
    )
    with path.open("wb") as file:
        write_atlas(file, ledger_rows().iloc[:1], alone, {})
    table = pq.read_table(path)
    assert table["image"].to_pylist() == [None]
    assert table["neighbors"].to_pylist() == [{"ids": [], "distances": []}]


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has the viewer."""
    given = os.environ.get(PYTHON_VARIABLE)
    if not given:
        pytest.skip(f"{PYTHON_VARIABLE} names no Python that has embedding-atlas")
    probed = subprocess.run([given, "-c", "import embedding_atlas"], capture_output=True, text=True)
    if probed.returncode:
        pytest.skip(f"{given} has no embedding-atlas: {probed.stderr.splitlines()[-1]}")
    return given


@pytest.mark.slow
@pytest.mark.parametrize("with_photographs", [True, False])
def test_the_viewer_takes_the_file(tmp_path: Path, python: str, with_photographs: bool) -> None:
    path = written(tmp_path / "atlas.parquet", PHOTOGRAPHS if with_photographs else {})
    flags = FLAGS if with_photographs else FLAGS[:-2]
    application = tmp_path / "application"  # what the viewer serves, written to disk
    finished = subprocess.run(
        [python, "-m", "embedding_atlas.cli", path, *flags, "--export-application", application],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr

    shown = json.loads((application / "data/metadata.json").read_text())["props"]["data"]
    assert shown["projection"] == {"x": "x", "y": "y"}
    assert (shown["text"], shown["neighbors"]) == ("caption", "neighbors")
    assert shown.get("image") == ("image" if with_photographs else None)
    served = pq.read_table(application / "data/dataset.parquet")
    assert served[shown["id"]].to_pylist() == list(range(N))  # what the neighbours' ids are
    for name in ("x", "y", "neighbors", "caption", "key", "cluster", "decision", "evaluated"):
        assert served[name].to_pylist() == pq.read_table(path)[name].to_pylist(), name
    if with_photographs:
        images = [image and image["bytes"] for image in served["image"].to_pylist()]
        assert images[3] == PHOTOGRAPHS[3]
        assert [image is None for image in images] == [False, False, True, False, True]

"""The GPU benchmark: what it reads, what it keeps of its rows, and its rates, by hand."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import open_source
from encoders.base import EmbeddingConfig
from encoders.pretrained import load_encoder
from sources.base import DataConfig
from tests.helpers import read_all

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
CPU = torch.device("cpu")
MACHINE = {"gpu": None, "cores_allowed": 2, "torch": "2", "python": "3"}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield {name: importlib.import_module(name) for name in ("gpu", "gpu_data", "gpu_report")}
    sys.path.remove(BENCHMARKS)


def test_shards_hold_the_pairs_and_are_the_same_when_drawn_again(
    modules: dict[str, Any], tmp_path: Path
) -> None:
    made = modules["gpu_data"]
    pictures = made.Pictures(30, side=24, shard_size=12)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for number in range(pictures.n_shards):
            made.write_shard(pictures, tmp_path / name, number)
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("first", "second")
    ]
    assert files[0] == files[1]
    assert sorted(files[0]) == ["00000.tar", "00001.tar", "00002.tar"]
    few: dict[str, Any] = {"max_val_samples": 3, "max_test_samples": 3}
    config = DataConfig("webdataset", str(tmp_path / "first"), **few)
    reader, pixels = read_all(open_source(config, rng=np.random.default_rng(0)), **few)
    assert sum(map(len, pixels.values())) == 30
    captions = reader.pairs()["caption"]
    assert captions.nunique() == 30
    assert captions.str.split().str.len().between(6, 16).all()


def test_pictures_are_compressed_as_photographs_are(modules: dict[str, Any]) -> None:
    """A photograph at this quality takes one to three bits a pixel; noise would take ten."""
    import io

    buffer = io.BytesIO()
    made = modules["gpu_data"]
    made.draw_picture(336, np.random.default_rng(0)).save(buffer, "JPEG", quality=made.QUALITY)
    assert 1 < 8 * len(buffer.getvalue()) / 336**2 < 4


def test_the_model_is_one_that_the_program_loads(modules: dict[str, Any], tmp_path: Path) -> None:
    made = modules["gpu_data"]
    folder = made.save_clip(tmp_path / "clip", small=True)
    encoder = load_encoder(EmbeddingConfig(str(folder)), device=CPU)
    assert encoder.max_tokens == modules["gpu"].CONTEXT
    words = "dog street children"
    # Words of the captions are one token each, or nearly; the two at the ends are marks.
    assert encoder.count_tokens([words])[0] <= 2 * len(words.split()) + 2
    features = encoder.encode_texts(["a dog", "two children"]).features
    assert np.abs(features[0] - features[1]).max() > 0.01


def test_a_rate_is_what_a_step_takes(modules: dict[str, Any]) -> None:
    found = modules["gpu"].rate(lambda: time.sleep(0.02), 10, CPU, 0.2)
    assert 200 < found <= 500


def test_fewer_cores_are_given_back(modules: dict[str, Any]) -> None:
    count = modules["gpu"].n_cores
    before = count()
    with modules["gpu"].only_cores(1):
        assert count() == 1
    assert count() == before


def test_rows_take_the_place_of_those_of_their_name(
    modules: dict[str, Any], tmp_path: Path
) -> None:
    report, path = modules["gpu_report"], tmp_path / "gpu.json"
    missing = {"name": "cuda", "not_run": report.NOT_RUN}

    def add(block: str, *rows: dict[str, Any]) -> str:
        report.add_rows(path, block, rows, MACHINE)
        return path.with_suffix(".md").read_text()

    def row(cores: int, speed: float) -> dict[str, Any]:
        of = {"name": f"{cores} cores", "cores": cores, "device": "cuda"}
        return {**of, "pairs_a_second": speed}

    assert "| cuda | not run: no CUDA device |" in add("decoding", missing)
    add("decoding", row(1, 200.0), row(4, 100.0))
    table = add("decoding", row(4, 600.0), missing)
    assert "not run" not in table
    assert "| 1 cores | 200 | 100% |" in table
    assert "| 4 cores | 600 | 75% |" in table
    for what, speed in (("images on the device", 2000.0), ("captions of 77 tokens", 500.0)):
        add("encoder", {"name": what, "what": what, "device": "cuda", "a_second": speed})
    told = add("together", {"name": "cuda", "device": "cuda", "pairs_a_second": 320.0})
    # Both towers one after the other: 1 / (1 / 2000 + 1 / 500) = 400, less than decoding's 600.
    assert "320 pairs a second, 0.80 of the slower of decoding alone (600)" in told
    assert "the encoder alone (400)" in told
    kept = json.loads(path.read_text())
    assert [r["name"] for r in kept["decoding"]] == ["1 cores", "4 cores"]
    assert kept["decoding"][0]["machine"] == MACHINE


def test_the_reader_is_measured_by_stage_1_itself(modules: dict[str, Any], tmp_path: Path) -> None:
    """Every pair that is asked for passes it, although the encoder does nothing."""
    bench, made = modules["gpu"], modules["gpu_data"]
    pictures = made.Pictures(160, side=24, shard_size=80)
    (tmp_path / "shards").mkdir()
    for number in range(2):
        made.write_shard(pictures, tmp_path / "shards", number)
    flags = f"--work_dir {tmp_path} --small --cores 1 --pairs 160 --decode_pairs 20"
    args = bench.parse([*flags.split(), "--flags", "--num_workers 0"])
    (row,) = bench.measure_decoding(args, CPU)
    assert row["pairs"] == 20 + 32 + 32  # validation and test have a fifth each, at most
    assert row["pairs_a_second"] == pytest.approx(row["pairs"] / row["seconds"], rel=0.2)
    assert row["seconds"] <= row["whole_stage_seconds"]

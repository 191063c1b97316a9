"""The GPU benchmark: what it reads, what it keeps of its rows, and its rates, by hand."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import PairReader, open_source
from embedding import _tell_speed
from encoders.base import EmbeddingConfig
from encoders.pretrained import load_encoder
from sources.base import DataConfig
from sources.pixels import Resizing
from sources.processes import ImageProcesses
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
    assert row["decoded_by"] == "the main thread"


def test_the_seconds_are_those_that_stage_1_tells(modules: dict[str, Any]) -> None:
    told, logger = modules["gpu"].Told(), logging.getLogger("embedding")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(told)
    try:
        _tell_speed("an encoder", 10, 50, time.perf_counter() - 3.0)
    finally:
        logger.removeHandler(told)
        logger.setLevel(level)
    assert told.seconds == pytest.approx(3.0, abs=0.5)


def test_who_decodes_is_what_the_reader_says(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, made = modules["gpu"], modules["gpu_data"]
    made.write_shard(made.Pictures(30, side=24), tmp_path, 0)
    config = DataConfig("webdataset", str(tmp_path), num_workers=2)
    source = open_source(config, rng=np.random.default_rng(0))
    with bench.watching_decoders() as found:
        processes = ImageProcesses(Resizing((2, 2), None, 0), 1000)
        reader = PairReader(source, config, decode=lambda data: np.zeros(1), processes=processes)
        reader.is_in_processes()
        monkeypatch.setattr(processes, "least_images", 30)
        reader.is_in_processes()
    reader.is_in_processes()
    assert found == [False, True]
    assert bench.decoders(in_processes=True, n_workers=2) == "processes"
    assert bench.decoders(in_processes=False, n_workers=2) == "threads"
    assert bench.decoders(in_processes=False, n_workers=0) == "the main thread"
    assert bench.decoders(in_processes=True, n_workers=2, how="gpu") == "the GPU"


def test_few_images_are_said_to_be_decoded_by_threads(
    modules: dict[str, Any], tmp_path: Path
) -> None:
    report, path = modules["gpu_report"], tmp_path / "gpu.json"

    def add(cores: int, speed: float, by: str) -> str:
        of = {"name": f"{cores} cores", "cores": cores, "device": "cpu", "decoded_by": by}
        report.add_rows(path, "decoding", [{**of, "pairs_a_second": speed}], MACHINE)
        return path.with_suffix(".md").read_text()

    assert "by threads" not in add(2, 400.0, "processes")
    table = add(1, 50.0, "threads")
    assert "Fewer than 1,000 images are decoded by threads, others by processes" in table
    # Neither is a share of the other.
    assert "| 1 cores | 50 | threads | 100% |" in table
    assert "| 2 cores | 400 | processes | 100% |" in table
    assert "| 4 cores | 400 | processes | 50% |" in add(4, 400.0, "processes")


def test_small_rows_say_so_and_stay_away_from_others(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = modules["gpu"]
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "gpu.json")
    monkeypatch.setitem(
        bench.MEASURE, "encoder", lambda args, device: [{"name": "all", "device": "cpu"}]
    )
    flags = f"--work_dir {tmp_path / 'work'} --blocks encoder --devices cpu".split()
    bench.main([*flags, "--small"])
    small = tmp_path / "work" / "gpu_small.json"
    (row,) = json.loads(small.read_text())["encoder"]
    assert row["small"] is True
    table = small.with_suffix(".md").read_text()
    assert "| all, small |" in table
    assert "Tried out with `--small`, a narrow encoder" in table
    assert not bench.RESULTS.exists()
    bench.main(flags)
    (row,) = json.loads(bench.RESULTS.read_text())["encoder"]
    assert "small" not in row
    assert "small" not in bench.RESULTS.with_suffix(".md").read_text()


def test_where_results_went_is_said(
    modules: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = modules["gpu"]
    monkeypatch.setitem(
        bench.MEASURE, "encoder", lambda args, device: [{"name": "all", "device": "cpu"}]
    )
    bench.main(f"--work_dir {tmp_path} --blocks encoder --devices cpu --small".split())
    file, tables = tmp_path / "gpu_small.json", tmp_path / "gpu_small.md"
    assert capsys.readouterr().out.endswith(f"written to {file} and, as tables, {tables}\n")


WRONG = {
    "--pairs 149": "argument --pairs: give a whole number of at least 150; got 149",
    "--cores 1 0": "argument --cores: give a whole number of at least 1; got 0",
    "--cores 3 5": "--cores 3 5: only 2 can be used here; give 2 or fewer",
    "--decode_pairs 1": "argument --decode_pairs: give a whole number of at least 2; got 1",
    "--batch_sizes 64 0": "argument --batch_sizes: give a whole number of at least 1; got 0",
    "--seconds 0": "argument --seconds: give a number of seconds above 0; got 0",
    "--stage2 0": "argument --stage2: give a whole number of at least 2; got 0",
    "--work_dir FILE": "argument --work_dir: FILE is a file; give a folder",
    "--results FILE/a.json": "argument --results: FILE is a file; give a folder",
    "--results a.md": "argument --results: give a file whose name ends in .json; got a.md",
    "--devices cuda": "--devices cuda: there is no CUDA device; give cpu, or leave the flag out",
    "--flags=--unknown": "--flags: unrecognized arguments: --unknown; see python main.py --help",
    "--flags=--num_workers=-1": "--flags: --num_workers must be >= 0; got -1",
    "--flags=--n_clusters=6000": (
        "--flags: --n_clusters 6000 is more than --max_train_samples 5000; change one"
    ),
    "--flags=--device=cpu": "--flags: --device is given by this program itself; leave it out",
    "--flags='": "--flags: No closing quotation",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_are_one_line_before_any_work(
    modules: dict[str, Any],
    tmp_path: Path,
    flags: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, file = modules["gpu"], tmp_path / "file"
    file.touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "n_cores", lambda: 2)
    monkeypatch.setattr(bench, "draw", lambda args: pytest.fail("worked"))
    with pytest.raises(SystemExit) as ended:
        bench.main(["--work_dir", str(tmp_path), *flags.replace("FILE", str(file)).split()])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f": error: {WRONG[flags].replace('FILE', str(file))}")


@pytest.mark.parametrize(
    ("content", "flags", "told"),
    [
        ({"encoder": [{"name": "a"}]}, ["--small"], "holds results without --small; give another"),
        ({"encoder": [{"name": "a", "small": True}]}, [], "holds results of --small; give another"),
        (["else"], [], "holds no results of this program; give another"),
    ],
)
def test_results_of_another_kind_are_not_added_to(
    modules: dict[str, Any],
    tmp_path: Path,
    content: Any,
    flags: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file := tmp_path / "a.json").write_text(json.dumps(content))
    places = ["--work_dir", str(tmp_path), "--devices", "cpu", "--results", str(file)]
    with pytest.raises(SystemExit) as ended:
        modules["gpu"].parse([*places, *flags])
    assert ended.value.code == 2
    assert f"error: --results: {file} {told}" in capsys.readouterr().err


def test_cores_that_are_not_there_are_named(
    modules: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = modules["gpu"]
    monkeypatch.setattr(bench, "n_cores", lambda: 6)
    given = ["--work_dir", str(tmp_path), "--devices", "cpu"]
    assert bench.parse(given).cores == [1, 2, 4, 6]
    assert capsys.readouterr().err == ""
    assert bench.parse([*given, "--cores", "2", "8", "16"]).cores == [2]
    assert capsys.readouterr().err == "--cores 8 16: only 6 can be used here; left out\n"


def test_what_main_does_not_take_is_one_line(
    modules: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = modules["gpu"]

    def refuse(*given: object) -> Iterator[dict[str, Any]]:
        raise bench.InputError("--encoder_model none is not there")

    monkeypatch.setitem(bench.MEASURE, "encoder", refuse)
    given = f"--work_dir {tmp_path} --blocks encoder --devices cpu --small".split()
    assert bench.main(given) == 2
    assert capsys.readouterr().err == "gpu.py: error: --encoder_model none is not there\n"


def test_shards_of_other_pairs_are_one_line(
    modules: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "about.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        modules["gpu"].main(f"--work_dir {tmp_path} --devices cpu --small".split())
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"{tmp_path} holds other pairs; give another --work_dir, or delete it"

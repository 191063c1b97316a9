"""The benchmark of reading: three layouts of the same pairs, readers, and what is said of them."""

from __future__ import annotations

import csv
import gc
import hashlib
import importlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from data import open_source
from sources.base import DataConfig
from tests.helpers import offline_datasets, picture, read_all

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
SPLITS_OF_PICTURES = ["validation", "train", "train", "test"] * 4
CAPTIONS = ("of {}", 'it is "{}", red', "a, b and {}")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield importlib.import_module("reading")
    sys.path.remove(BENCHMARKS)


def image_file(number: int) -> bytes:
    return picture(16 * number, format="JPEG")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Pictures as Flickr8k is downloaded."""
    root = tmp_path / "download"
    (root / "Images").mkdir(parents=True)
    captions = [("image", "caption")]
    for i in range(len(SPLITS_OF_PICTURES)):
        (root / "Images" / f"{i}.jpg").write_bytes(image_file(i))
        captions += [(f"{i}.jpg", text.format(i)) for text in CAPTIONS]
    with open(root / "captions.txt", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(captions)
    splits = [f"{i}.jpg,{split}" for i, split in enumerate(SPLITS_OF_PICTURES)]
    (root / "splits.csv").write_text("\n".join(["image,split", *splits]))
    return root


@pytest.fixture
def layouts(bench: Any, download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "SHARD_SIZE", 3)
    bench.write_layouts(download, 16, tmp_path / "layouts")
    return tmp_path / "layouts"


def test_every_layout_holds_the_same_pairs(bench: Any, layouts: Path) -> None:
    names = {
        sha256(image_file(i) + text.format(i).encode())[:32]: (split, f"{i}.jpg")
        for i, split in enumerate(SPLITS_OF_PICTURES)
        for text in CAPTIONS
    }
    orders = []
    for layout, dataset in bench.LAYOUTS.items():
        config = DataConfig(dataset, str(layouts / layout))
        pairs = read_all(open_source(config, rng=np.random.default_rng(0)))[0].pairs()
        assert [names[name][0] for name in pairs["id"]] == pairs["split"].tolist()
        counts = pairs["split"].value_counts().to_dict()
        assert counts == {"train": 24, "validation": 4, "test": 12}, layout
        orders.append(pairs["id"].tolist())
    assert orders[0] == orders[1] == orders[2]


def test_layouts_are_written_once(bench: Any, download: Path, layouts: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in layouts.rglob("*.*")}
    bench.write_layouts(download, 16, layouts)
    assert {path: path.stat().st_mtime_ns for path in layouts.rglob("*.*")} == files
    with pytest.raises(SystemExit, match="holds other photographs; give another"):
        bench.write_layouts(download, 15, layouts)


def test_the_photographs_are_described(bench: Any, layouts: Path) -> None:
    kib = float(np.median([len(image_file(i)) for i in range(16)])) / 1024
    described = {"images": 16, "width": 6, "height": 4, "kib": pytest.approx(kib, abs=0.05)}
    assert bench.describe(layouts) == described


def test_fewer_photographs_are_the_first(bench: Any, download: Path) -> None:
    photographs = bench.load_photographs(download, 3)
    assert [photograph.file for photograph in photographs] == ["0.jpg", "1.jpg", "2.jpg"]
    assert photographs[1] == ("1.jpg", tuple(text.format(1) for text in CAPTIONS), "train", 0)


def test_more_photographs_are_other_files_of_the_same_pictures(
    bench: Any, download: Path, tmp_path: Path
) -> None:
    n = len(SPLITS_OF_PICTURES)
    photographs = bench.load_photographs(download, 2 * n + 1)
    assert [p.name for p in photographs[n : n + 2]] == ["1-0.jpg", "1-1.jpg"]
    assert photographs[2 * n].name == "2-0.jpg"
    contents = [photographs[i * n].content(download / "Images") for i in range(3)]
    assert len({sha256(content) for content in contents}) == 3
    pictures = [PIL.Image.open(io.BytesIO(content)).tobytes() for content in contents]
    assert pictures[0] == pictures[1] == pictures[2]
    bench.write_layouts(download, 2 * n, tmp_path / "twice")
    for layout, dataset in bench.LAYOUTS.items():
        config = DataConfig(dataset, str(tmp_path / "twice" / layout))
        reader = read_all(open_source(config, rng=np.random.default_rng(0)))[0]
        assert reader.pairs()["image_sha256"].nunique() == 2 * n


# webdataset closes no shard.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_reader_reads_every_image(
    bench: Any, layouts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline_datasets(layouts, monkeypatch)
    expected = sorted(sha256(image_file(i)) for i in range(16))
    alone = [name for name in bench.READERS if "workers" not in name]
    assert len(alone) == 5
    for name in alone:
        row = bench.measure(name, bench.DECODED, layouts)
        assert row["images"] == 16
        assert row["images_sha256"] == sha256("".join(expected).encode()), name
        assert row["reading_seconds"] > 0
        assert row["peak_mib"] > 10
    gc.collect()  # so that open files are noticed here, and in no other test


def measurement(name: str, task: str, reading: float) -> dict[str, Any]:
    numbers = {"cpu_seconds": 3.0, "peak_mib": 100.0, "worker_peak_mib": 0.0, "load_average": 1.0}
    times = {"opening_seconds": 1.0, "reading_seconds": reading}
    return {"reader": name, "task": task, "images": 100, **times, **numbers}


def test_ratios_are_to_ours_of_the_same_files_and_repeat(bench: Any) -> None:
    seconds: dict[str, Sequence[float]] = {
        "InfluenceSpace, shards": (2, 4),
        "InfluenceSpace, parquet": (5, 10),
        "webdataset": (4, 4),
        "datasets": (5, 20),
    }  # of opening and reading
    rows = [
        measurement(name, task, factor * seconds[name][repeat] - 1.0)
        for repeat in range(2)
        for task, factor in ((bench.PREPARED, 1), (bench.DECODED, 2))
        for name in seconds
    ]
    summary = {(r["task"], r["reader"]): r for r in bench.summarise(pd.DataFrame(rows))}
    assert len(summary) == 8
    for task in bench.TASKS:
        ratios = {name: summary[task, name]["mean"]["ratio"] for name in seconds}
        assert ratios == {
            "InfluenceSpace, shards": 1,
            "InfluenceSpace, parquet": 1,
            "webdataset": pytest.approx((2 / 4 + 4 / 4) / 2),
            "datasets": pytest.approx((5 / 5 + 10 / 20) / 2),
        }
    webdataset = summary[bench.DECODED, "webdataset"]
    assert webdataset["mean"]["images_per_second"] == pytest.approx(100 / 8)
    assert webdataset["mean"]["cpu_ms_per_image"] == pytest.approx(30)
    assert webdataset["mean"]["busy_cores"] == pytest.approx(3 / 8)
    assert webdataset["std"]["images_per_second"] == 0


@pytest.mark.parametrize("change", ["none", "pairs", "weights"])
def test_curations_are_compared_by_id_and_weight(bench: Any, tmp_path: Path, change: str) -> None:
    outputs = []
    for i, layout in enumerate(bench.LAYOUTS):
        is_changed = i == 2
        ids = ["c", "d", "b"] if is_changed and change == "pairs" else ["a", "d", "b"]
        weights = [0.5, 1.5] if is_changed and change == "weights" else [1.5, 0.5]
        ledger = {"id": ids, "decision": ["kept", "dropped", "kept"], "position": [i, i + 1, i + 2]}
        output = tmp_path / layout / "stage3"
        output.mkdir(parents=True)
        pd.DataFrame(ledger).to_parquet(output / "ledger.parquet")
        np.save(output / "sample_weights.npy", np.array(weights))
        outputs.append(output.parent)
    assert bench.compare_curations(outputs) == {
        "kept_pairs": [2, 2, 2],
        "same_pairs": change != "pairs",
        "same_weights": change != "weights",
    }


def test_the_page_says_what_the_numbers_say(bench: Any) -> None:
    rows = [
        measurement(name, task, seconds)
        for seconds in (2.0, 4.0)
        for task in bench.TASKS
        for name in ("InfluenceSpace, shards", "webdataset")
    ]
    results = {
        "command": "it",
        "hardware": {"cpu_cores": 2},
        "packages": {"pillow": "1.2"},
        "data": {"images": 100, "width": 6, "height": 4, "kib": 0.65},
        "speed": {
            "summary": bench.summarise(pd.DataFrame(rows)),
            "datasets_first_opening_seconds": 7.25,
            "rows": rows,
        },
        "curation": {
            "flags": "--x",
            "kept_pairs": [5, 5, 4],
            "same_pairs": False,
            "same_weights": True,
        },
    }
    page = bench.render(json.loads(json.dumps(results)))
    assert "`it`, 2 CPU cores, pillow 1.2." in page
    assert "100 images a reading, by the median 6 x 4 pixels and 0.7 KiB" in page
    line = "| webdataset | 27 ± 9 | 1.00 ± 0.00 | 30.00 ± 0.00 | 0.80 ± 0.28 | 1.00 ± 0.00 | 100 |"
    assert page.count(line) == 2
    assert "takes 7.2 s" in page
    assert "5 (folder), 5 (shards), 4 (parquet); their ids are not the same" in page
    assert "their weights the same." in page
    note = "Images being fewer than 1,000, InfluenceSpace decodes them in threads"
    assert note in page
    results["data"] = {"images": 1000, "width": 6, "height": 4, "kib": 0.65}
    assert note not in bench.render(results)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--n 0", "argument --n: give a whole number of at least 3; got 0"),
        ("--n -5", "argument --n: give a whole number of at least 3; got -5"),
        ("--repeats 1", "--repeats must be 0 or at least 2, for a deviation; got 1"),
        ("--work_dir FILE", "argument --work_dir: FILE is a file; give a folder"),
        ("--result_dir FILE", "argument --result_dir: FILE is a file; give a folder"),
        ("--data_dir FILE", "argument --data_dir: FILE is a file; give a folder"),
    ],
)
def test_wrong_flags_are_one_line(
    bench: Any, download: Path, flags: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(download / "captions.txt")
    places = ["--data_dir", str(download), "--work_dir", str(download.parent / "work")]
    with pytest.raises(SystemExit) as ended:
        bench.main([*places, *flags.replace("FILE", file).split()])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f": error: {told.replace('FILE', file)}")


@pytest.mark.parametrize("name", ["captions.txt", "splits.csv", "Images"])
def test_what_a_download_lacks_is_said_before_any_work(
    bench: Any, download: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (download / name).rename(download / "elsewhere")
    work = download.parent / "work"
    with pytest.raises(SystemExit) as ended:
        bench.main(["--data_dir", str(download), "--work_dir", str(work)])
    assert ended.value.code == 2
    assert f"--data_dir {download} holds no {name}; give a" in capsys.readouterr().err
    assert not work.exists()


def test_a_curation_that_fails_is_one_line(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "CURATION", "--n_clusters 0")
    with pytest.raises(SystemExit, match=r"--curate: main\.py failed on curated_folder; what"):
        bench.curate_all(tmp_path)

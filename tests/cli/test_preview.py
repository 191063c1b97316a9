"""The dry run: what it shows, that it writes nothing, and that it counts what a run will do."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import main
from artifacts import provenance
from artifacts.settings import InputError
from artifacts.store import Store
from attribution.agreement import ALL_NORMALISED
from baselines import TRAINED_BY_DEFAULT
from cli import auto
from cli import preview as preview_module
from cli.auto import OpenData
from cli.config import Config, parse_arguments
from cli.costs import CHOOSING_SECONDS, PHOTOGRAPH_SECONDS, STAGES, Speed, expected_seconds
from cli.preview import (
    _account_lines,
    _counts_lines,
    count_splits,
    open_data,
    preview,
    read_sample,
    sample_config,
    sizes_of,
)
from cli.run import Run
from cli.sizes import Sizes, Widths, expected_bytes, export_bytes, stage1_arrays
from encoders import pretrained
from encoders.base import Encoded, Encoder
from exporting.formats import FORMATS, ExportConfig, export_curated
from main import stage_1
from sources.base import SPLITS, DataConfig, pair_id
from sources.images import decode_pixels
from sources.splits import IndexedSource, StreamSource
from tests.helpers import offline_datasets, photographs, picture, record, write

ROOT = Path(__file__).parents[2]
TINY = (
    "--dataset synthetic --encoder_model embedded --max_train_samples 60 --max_val_samples 8 "
    "--max_test_samples 6 --n_clusters 5 --batch_size 8 --embed_dim 16 --device cpu --num_workers 0"
).split()
# One second a training step and nothing else, so that seconds are steps.
STEPS_ALONE = Speed(math.inf, math.inf, 0.0, 0.0, 1.0, 1.0, 0.0)


class Colours(Encoder):
    """A pixel for a feature, the length of a caption for another."""

    name = "colours"

    def preprocess(self, image: PIL.Image.Image) -> Any:
        return np.asarray(image, np.float32)[:1, :1].transpose(2, 0, 1)

    def encode_images(self, pixels: Any) -> Encoded:
        return Encoded(pixels.reshape(len(pixels), 3), pixels.reshape(len(pixels), 3)[:, :2])

    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        lengths = np.array([[len(c), 1, 0, 0] for c in captions], np.float32)
        return Encoded(lengths, lengths[:, :2])


def run_of(folder: Path, *flags: str) -> Run:
    return Run(parse_arguments(flags), Store(folder), torch.device("cpu"))


def tiny(*flags: str) -> Config:
    return parse_arguments([*TINY, *flags])


def lines_of(text: str) -> list[str]:
    """Lines with their columns one space apart."""
    return [" ".join(line.split()) for line in text.splitlines()]


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()} | {
        str(p): b"" for p in folder.rglob("*") if p.is_dir()
    }


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "load_encoder", lambda config, *, device: Colours())


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Train 7 images of 2 captions, 2 of them broken and one caption empty; 3 and 2 held out."""
    names = {
        "train": [f"a{i}.png" for i in range(7)],
        "validation": [f"v{i}.png" for i in range(3)],
        "test": [f"t{i}.png" for i in range(2)],
    }
    each = {"train": 2, "validation": 1, "test": 3}
    rows = [
        f"{name},{'' if (name, i) == ('a6.png', 1) else f'number {i} of {name[:2]}'}"
        for split, files in names.items()
        for name in files
        for i in range(each[split])
    ]
    files: dict[str, bytes | str] = {
        name: picture(number, "PNG") for number, name in enumerate(chain(*names.values()))
    }
    files |= {"a0.png": b"no picture at all", "a1.png": b""}
    files["captions.csv"] = "\n".join(["image,caption", *rows])
    splits = [f"{name},{split}" for split in SPLITS for name in names[split]]
    files["splits.csv"] = "\n".join(["image,split", *splits])
    return write(tmp_path / "album", files)


def test_a_slow_precision_is_said_once_before_it_is_used(
    tmp_path: Path, colours: None, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [f for f in TINY if f not in ("--encoder_model", "embedded")]
    with caplog.at_level("WARNING"):
        preview(run_of(tmp_path, *flags, "--precision", "fp16"))
    told = [record.message for record in caplog.records if "--precision" in record.message]
    assert len(told) == 1
    assert told[0].startswith("--precision fp16 is several times slower than fp32 on most CPUs")
    caplog.clear()
    with caplog.at_level("WARNING"):
        preview(run_of(tmp_path, *flags))
    assert "--precision" not in caplog.text


# --- What is shown --------------------------------------------------------------------------------


def test_synthetic_pairs_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "not" / "there"
    assert main.main([*TINY, "--output_dir", str(folder), "--dry_run"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert lines[0].startswith("Data set drawn scenes; images: train 60, validation 8, test 6")
    assert lines[1] == "Encoder embedded"
    assert "validation 8 8 8 pairs 8" in lines
    assert "test 6 12 6 images 6" in lines
    shown = [line for line in lines if line.startswith("train/0000")]
    assert len(shown) == 5
    assert all(" 224 x 224 " in line for line in shown)
    times = lines[lines.index("Expected time") + 1 :]
    assert [line.split()[0] for line in times[:4]] == [
        *("embedding", "clustering", "trust", "cluster")
    ]
    n = len(TRAINED_BY_DEFAULT)
    n_trained = 3 * (2 * n - 1)
    work = f"{n} methods x 3 seeds x 2 comparisons: {n_trained} trainings"
    assert any(line.endswith(work) for line in times)
    assert lines[-1] == "Nothing was written."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("colours")
def test_counts_and_what_is_skipped_of_a_folder(album: Path, tmp_path: Path) -> None:
    flags = ("--dataset", "folder", "--data_dir", str(album), "--n_clusters", "2")
    before = everything_below(tmp_path)
    text = preview(run_of(tmp_path / "out", *flags))
    lines = lines_of(text)
    assert lines[0].endswith("images: train 7, validation 3, test 2")
    # 7 x 2 less two broken images of 2 captions and an empty caption; the sample holds all of it.
    assert "train 7 14 5,000 pairs 9" in lines
    assert "validation 3 3 1,000 pairs 3" in lines
    assert "test 2 6 1,000 images 2" in lines
    assert "Sample 18 pairs read, 5 skipped" in lines
    assert "In all Of 23 captions of the source 18 are used, 5 skipped and 0 not read" in lines
    assert "Reading columns image, caption" in lines
    assert {"2 broken image", "2 empty file", "1 empty caption"} <= set(lines)
    examples = lines[lines.index("such as") + 1 :][:3]
    assert sorted(line.split()[0] for line in examples) == ["a0.png", "a1.png", "a6.png"]
    broken = next(line for line in examples if line.startswith("a0.png"))
    assert "broken image UnidentifiedImageError" in broken
    size = (album / "a2.png").stat().st_size
    assert any(line.startswith(f"a2.png 6 x 4 {size} B number") for line in lines)
    assert lines[-1] == "Nothing was written."
    assert everything_below(tmp_path) == before


@pytest.mark.usefixtures("colours")
def test_a_duplicate_is_shown_with_the_pair_that_stays(tmp_path: Path) -> None:
    rows = [f"{i:02d}.png,number {i}" for i in range(20)]
    rows += ["again.png,Number 3.", "00.png,other words"]
    files: dict[str, bytes | str] = {f"{i:02d}.png": picture(i) for i in range(20)}
    files |= {"again.png": picture(3), "captions.txt": "\n".join(["image,caption", *rows])}
    files["splits.csv"] = (
        "\n".join(
            ["image,split", *(f"{i:02d}.png,{'test' if i > 17 else 'train'}" for i in range(20))]
        )
        + "\nagain.png,train\n"
    )
    flags = ("--dataset", "folder", "--data_dir", str(write(tmp_path / "in", files)))
    text = preview(run_of(tmp_path / "out", *flags, "--n_clusters", "2"))
    assert "again.png duplicate pair same as position 3: 03.png" in lines_of(text)


@pytest.mark.usefixtures("colours")
def test_more_than_the_sample_is_at_most(tmp_path: Path) -> None:
    names = [f"{i:03d}.png" for i in range(200)]
    captions = "\n".join(["image,caption", *(f"{name},see {name}" for name in names)])
    write(tmp_path / "album", photographs(200) | {"captions.csv": captions})
    flags = ("--dataset", "folder", "--data_dir", str(tmp_path / "album"))
    lines = lines_of(preview(run_of(tmp_path / "out", *flags, "--max_train_samples", "130")))
    assert "train 120 120 130 pairs at most 120" in lines
    assert "validation 40 40 1,000 pairs at most 40" in lines
    lines = lines_of(preview(run_of(tmp_path / "out", *flags, "--max_train_samples", "110")))
    assert "train 120 120 110 pairs at most 110" in lines
    account = "about 190 are read, to be used or skipped, about 10 are not"
    assert f"In all 200 captions: {account}" in lines
    assert "Sample 80 pairs read, 0 skipped" in lines


@pytest.mark.usefixtures("colours")
def test_captions_fit_the_terminal_and_cannot_command_it(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = album / "captions.csv"
    table.write_text(
        table.read_text().replace("number 0 of a2", "red \x1b[31m and " + "long " * 60)
    )
    monkeypatch.setenv("COLUMNS", "60")
    text = preview(run_of(tmp_path, "--dataset", "folder", "--data_dir", str(album)))
    assert "\x1b" not in text
    shown = next(line for line in text.splitlines() if "red ?[31m and long" in line)
    assert len(shown) == 60
    assert shown.endswith("…")


class Brief(Colours):
    """Reads three words of a caption."""

    max_tokens = 3

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        return [len(caption.split()) for caption in captions]


def test_captions_that_will_be_cut_off_are_counted_in_the_sample(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--dataset", "folder", "--data_dir", str(album))
    monkeypatch.setattr(auto, "load_encoder", lambda config, *, device: Brief())
    lines = lines_of(preview(run_of(tmp_path / "out", *flags)))
    assert (
        "Cut off --encoder_model colours reads 3 tokens: 18 of 18 captions are longer and were "
        "cut off"
    ) in lines
    monkeypatch.setattr(auto, "load_encoder", lambda config, *, device: Colours())
    assert "Cut off" not in preview(run_of(tmp_path / "out", *flags))


def test_a_fallback_is_said_on_the_terminal(tmp_path: Path) -> None:
    flags = [*TINY, "--output_dir", str(tmp_path / "out"), "--dry_run"]
    flags[flags.index("synthetic")] = "auto"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "main.py", *flags],
        cwd=ROOT,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC DATA" in done.stderr
    assert "Nothing was written." in done.stdout
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_falls_back_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offline_datasets(tmp_path, monkeypatch)

    def unavailable(*_: object) -> None:
        raise InputError("no CLIP")

    monkeypatch.setattr(pretrained, "load_pretrained", unavailable)
    data = open_data(run_of(tmp_path, "--dataset", "auto", "--max_train_samples", "100"))
    assert data.source.name == "synthetic"
    assert data.encoder.name == "embedded"
    assert [message.split(":")[0] for message in caplog.messages] == [
        "SYNTHETIC DATA",
        "EMBEDDED ENCODER",
    ]


def test_errors_of_the_data_come_through(
    album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", "folder", "--encoder_model", "embedded", "--dry_run"]
    flags += ["--output_dir", str(tmp_path / "out")]
    assert main.main([*flags, "--data_dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    for name in ("t0.png", "t1.png"):
        (album / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"no usable pair for the test split.*6 empty file"):
        preview(run_of(tmp_path / "out", *flags, "--data_dir", str(album)))
    assert not (tmp_path / "out").exists()


# --- What is opened -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stage 1 as a run saves it."""
    run = Run(tiny(), Store.open(str(tmp_path_factory.mktemp("out"))), torch.device("cpu"))
    stage_1(run)
    return run


def test_auto_means_what_was_saved(
    embedded: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [flag.replace("synthetic", "auto").replace("embedded", "auto") for flag in TINY]
    with monkeypatch.context() as context:
        context.setattr(Run, "open_source", lambda run, dataset: pytest.fail(dataset))
        with pytest.raises(pytest.fail.Exception, match=r"^auto$"):
            open_data(run_of(embedded.store.root, *flags))
    data = open_data(run_of(embedded.store.root, *flags, "--load_saved"))
    assert (data.source.name, data.encoder.name) == ("synthetic", "embedded")
    assert [message.split(":")[0] for message in caplog.messages] == [
        "SYNTHETIC DATA",
        "EMBEDDED ENCODER",
    ]


@pytest.fixture
def given_embeddings(tmp_path: Path) -> Path:
    """30 rows of 6 floats, the photographs of which lie in another folder."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "embeddings"
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for name in ("img_emb", "text_emb"):
        np.save(folder / name / f"{name}_0.npy", rng.standard_normal((30, 6)).astype(np.float32))
    table = pd.DataFrame(
        {
            "image_path": [f"{i:03d}.png" for i in range(30)],
            "caption": [f"it is {i}" for i in range(30)],
        }
    )
    table.to_parquet(folder / "metadata" / "metadata_0.parquet")
    write(tmp_path / "album", photographs(30))
    return folder


def test_given_embeddings_need_no_encoder(given_embeddings: Path, tmp_path: Path) -> None:
    flags = ("--embeddings_dir", str(given_embeddings), "--n_clusters", "3")
    run = run_of(tmp_path / "out", *flags)
    sample = read_sample(open_data(run), run.config)
    assert sample.widths == Widths(6, 6, 6)
    assert sample.image_bytes is None
    lines = lines_of(preview(run))
    assert lines[1] == f"Encoder embeddings in {given_embeddings}"
    assert "train 18 18 5,000 pairs 18" in lines
    assert export_bytes(("hf",), 10, sample.image_bytes, 9.0) == {"export, hf": None}

    run = run_of(tmp_path / "out", *flags, "--data_dir", str(tmp_path / "album"))
    sample = read_sample(open_data(run), run.config)
    assert sample.image_bytes == pytest.approx(len(picture(0)), abs=3)


def test_too_little_room_is_said(
    given_embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--embeddings_dir", str(given_embeddings), "--n_clusters", "3")
    for free, is_short in ((10**12, False), (1000, True)):
        monkeypatch.setattr("cli.preview.free_bytes", lambda _, free=free: free)
        lines = lines_of(preview(run_of(tmp_path / "out", *flags)))
        assert any(line.startswith("free there") for line in lines)
        assert any(line.startswith("TOO LITTLE BY") for line in lines) == is_short


def test_a_stream_does_not_tell_its_length() -> None:
    def stream(first: int, n: int) -> Any:
        return (record(i, f"it is {i}") for i in range(first, first + n))

    streams = {"train": stream(0, 500), "validation": stream(500, 50), "test": stream(600, 3)}
    source = StreamSource("hf", "a stream", "0", streams, None)
    config = tiny("--max_train_samples", "400", "--max_val_samples", "30")
    encoder = Colours()
    data = OpenData(source, encoder, decode_pixels(encoder.preprocess, 1000))
    counts = count_splits(source, read_sample(data, config), config.data)
    assert {split: (c.images, c.used, c.is_exact) for split, c in counts.items()} == {
        "test": (None, 3, True),
        "validation": (None, 30, False),
        "train": (None, 400, False),
    }
    # No more was taken from the streams than the sample needs.
    assert next(streams["train"]).key == "064"
    assert next(streams["validation"]).key == "508"


def test_all_of_a_stream_is_at_least_what_the_sample_holds() -> None:
    streams = {
        split: (record(1000 * i + j, f"it is {j}") for j in range(500))
        for i, split in enumerate(SPLITS)
    }
    source = StreamSource("hf", "a stream", "0", streams, None)
    config = tiny("--max_train_samples", "all", "--max_val_samples", "30")
    encoder = Colours()
    data = OpenData(source, encoder, decode_pixels(encoder.preprocess, 1000))
    sample = read_sample(data, config)
    counts = count_splits(source, sample, config.data)
    assert {split: (c.used, c.is_open) for split, c in counts.items()} == {
        "train": (64, True),
        "validation": (30, False),
        "test": (6, False),
    }
    lines = lines_of("\n".join([*_counts_lines(counts), *_account_lines(source, sample, counts)]))
    assert "train unknown unknown all pairs at least 64" in lines
    assert lines[-1].endswith("expected times and sizes leave out what is not counted")


def test_all_of_a_folder_is_counted(album: Path, colours: None, tmp_path: Path) -> None:
    flags = ("--dataset", "folder", "--data_dir", str(album), "--n_clusters", "2")
    all_of = ("--max_train_samples", "all", "--max_val_samples", "all", "--max_test_samples", "all")
    lines = lines_of(preview(run_of(tmp_path / "out", *flags, *all_of)))
    bounded = lines_of(preview(run_of(tmp_path / "out", *flags)))
    table = [line for line in lines if line.startswith(("train ", "validation ", "test "))]
    assert table == [
        line.replace("5,000 pairs", "all pairs")
        .replace("1,000 pairs", "all pairs")
        .replace("1,000 images", "all images")
        for line in bounded
        if line.startswith(("train ", "validation ", "test "))
    ]
    assert len(table) == 3


@given(
    st.tuples(st.integers(2, 200), st.integers(2, 200), st.integers(2, 200)),
)
def test_the_sample_is_within_the_limits(most: tuple[int, int, int]) -> None:
    config = DataConfig(
        max_train_samples=most[0], max_val_samples=most[1], max_test_samples=most[2]
    )
    limits = sample_config(config).limits()
    assert limits == {
        "train": min(64, most[0]),
        "validation": min(8, most[1]),
        "test": min(8, most[2]),
    }


# --- Disk -----------------------------------------------------------------------------------------


def test_stage_1_takes_the_bytes_that_are_foretold(embedded: Run) -> None:
    saved = {p.name: p.stat().st_size for p in (embedded.store.root / "stage1").glob("*.npy")}
    saved.pop("copy_links.npy")  # which copies there are is not known before they are looked for
    data = open_data(embedded)
    sample = read_sample(data, embedded.config)
    sizes = sizes_of(count_splits(data.source, sample, embedded.config.data))
    assert sizes == Sizes(60, 8, 6, 12)
    assert stage1_arrays(sizes, sample.widths, 5) == saved
    needed = expected_bytes(embedded.config, sizes, sample)
    assert needed["stage 1, arrays"] == sum(saved.values())


def test_images_of_an_export_count_once_a_kept_pair() -> None:
    formats = ("webdataset", "parquet", "hf")
    small = export_bytes((*formats, "datacomp", "list"), 100, 1000.0, 50.0)
    large = export_bytes((*formats, "datacomp", "list"), 100, 6000.0, 50.0)
    grown = {name: (large[name] or 0) - (small[name] or 0) for name in small}
    with_images = {f"export, {name}": 500_000 for name in formats}
    assert grown == with_images | {"export, datacomp": 0, "export, list": 0}
    assert small["export, datacomp"] == 100 * np.dtype("u8,u8").itemsize


def test_exports_take_about_the_bytes_that_are_foretold(tmp_path: Path) -> None:
    images = {f"{i:03d}": np.random.default_rng(i).bytes(5000 + 20 * i) for i in range(200)}
    images = {key: b"\xff\xd8\xff" + noise for key, noise in images.items()}  # as a JPEG begins
    curated = pd.DataFrame(
        {
            "position": range(200),
            "id": [pair_id(data, f"a picture of {key}") for key, data in images.items()],
            "uid": "",
            "key": list(images),
            "caption": [f"a picture of {key}" for key in images],
            "image_sha256": [hashlib.sha256(data).hexdigest() for data in images.values()],
            "weight": 1.0,
            "cluster": 3,
            "cell": 7,
            "clip_score": np.linspace(0, 1, 200, dtype=np.float32),
            "influence": np.linspace(-0.1, 0.1, 200),
            "evaluated": False,
            "group": "",
        }
    )
    records = {"train": [record(i, "", data=data) for i, data in enumerate(images.values())]}
    source = IndexedSource(
        "folder", "", "0", records, dict.fromkeys(SPLITS, 1), np.random.default_rng(0)
    )
    store, config = Store.open(str(tmp_path)), ExportConfig(export=tuple(FORMATS))
    export_curated(curated, lambda: source, store, config, fingerprint="0", about={})
    mean = float(np.mean([len(data) for data in images.values()]))
    foretold = export_bytes(tuple(FORMATS), 200, mean, 19.0)
    for name in FORMATS:
        files = [p for p in (tmp_path / "curated" / name).rglob("*") if p.is_file()]
        taken = sum(p.stat().st_size for p in files)
        # Beside the pairs there is a manifest; a card and a script beside images.
        assert foretold[f"export, {name}"] == pytest.approx(taken, rel=0.1, abs=1000), name


@pytest.mark.usefixtures("colours")
def test_exports_and_models_add_to_the_total(album: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "folder", "--data_dir", str(album), "--methods", "full", "random"]
    run = run_of(tmp_path, *flags, "--n_seeds", "2")
    sizes = Sizes(100, 10, 10, 10)
    without = expected_bytes(run.config, sizes, read_sample(open_data(run), run.config))
    flags += ["--save_checkpoints", "--export", "webdataset", "--embed_dim", "10"]
    run = run_of(tmp_path, *flags, "--n_seeds", "2")
    sample = read_sample(open_data(run), run.config)
    needed = expected_bytes(run.config, sizes, sample)
    # Full once, random in two comparisons, two seeds; maps of 3 and 4 features to 10.
    assert needed["trained models"] == 3 * 2 * (3 + 4) * 10 * 4
    assert set(needed) - set(without) == {"export, webdataset", "trained models"}
    assert sample.image_bytes is not None
    assert (needed["export, webdataset"] or 0) > 80 * sample.image_bytes


# --- Time -----------------------------------------------------------------------------------------


def test_evaluation_counts_every_training() -> None:
    config = tiny("--methods", "full", "random", "--n_seeds", "3", "--num_epochs", "2")
    seconds = expected_seconds(config, Sizes(100, 0, 0, 0), STEPS_ALONE)
    # Two epochs of 12 batches of 8; of 80 pairs 10 batches. Random trains in both comparisons.
    assert seconds["evaluation"] == 3 * (2 * 12 + 2 * 10 + 2 * 12)
    # On many cores the longest of them, which is on all pairs.
    many = STEPS_ALONE._replace(shared_step_seconds=0.01)
    assert expected_seconds(config, Sizes(100, 0, 0, 0), many)["evaluation"] == 2 * 12
    nothing = expected_seconds(tiny("--methods", "none"), Sizes(100, 0, 0, 0), many)
    assert nothing["evaluation"] == 0


def test_influence_counts_sweeps_folds_and_the_search() -> None:
    flags = ("--influence_seeds", "2", "--removal_folds", "3", "--num_epochs", "10")
    sizes = Sizes(800, 0, 0, 0)
    seconds = expected_seconds(tiny(*flags, "--max_reference_steps", "50"), sizes, STEPS_ALONE)
    # In 50 steps batches of 16 hold the 800 pairs, twice the 8 that are asked for.
    assert seconds["cluster influence"] == 2 * (50 + 2 * (5.5 + 3) * 50)
    more = expected_seconds(tiny(*flags), sizes, STEPS_ALONE)
    assert more["cluster influence"] == 1000 / 50 * seconds["cluster influence"] / 2
    shared = STEPS_ALONE._replace(shared_step_seconds=0.01)
    longest = expected_seconds(tiny(*flags), sizes, shared)["cluster influence"]
    assert longest == 1000 + 5.5 * 1000  # one core goes back through one training


def test_pair_influence_counts_its_models() -> None:
    flags = ("--held_out_repeats", "3", "--held_out_steps", "40", "--num_epochs", "10")
    speed = STEPS_ALONE._replace(step_seconds=0.0)
    sizes = Sizes(800, 0, 0, 0)
    once = expected_seconds(tiny(*flags), sizes, speed)["pair influence"]
    # Each model takes 40 steps of batches of 10, which hold a half, where 8 are asked for, and is
    # asked twice about 4 shuffles of 100 batches, a quarter each.
    assert once == 6 * (40 * 10 / 8 + 2 * 4 * 100 / 4)
    twice = expected_seconds(tiny(*flags, "--rounds", "2"), sizes, speed)["pair influence"]
    assert twice == 2 * once


def test_how_much_to_keep_counts_its_short_trainings() -> None:
    speed, flags = STEPS_ALONE, ("--num_epochs", "2")
    per_pair = 7 * CHOOSING_SECONDS
    seconds = expected_seconds(tiny(*flags), Sizes(100, 16, 0, 0), speed)["keep curve"]
    # Six shares and a draw at random, two seeds each: two epochs of 12 batches of 8, and a
    # quarter of a step for each of 2 batches of those that are asked.
    assert seconds == pytest.approx(14 * (24 + 2 / 4) + 100 * per_pair)
    # On many cores the longest of them; of many epochs 400 steps.
    many = speed._replace(shared_step_seconds=0.01)
    alone = expected_seconds(tiny("--num_epochs", "99"), Sizes(100, 0, 0, 0), many)["keep curve"]
    assert alone == pytest.approx(400 + 100 * per_pair)
    # Batches grow until four times as many steps would hold all: 32,000 pairs in 1,600.
    grown = expected_seconds(tiny("--num_epochs", "1"), Sizes(32_000, 0, 0, 0), speed)
    assert grown["keep curve"] == pytest.approx(14 * 400 * 20 / 8 + 32_000 * per_pair)
    ranked = Speed(math.inf, math.inf, 0.0, 0.0, 0.0, 0.0, 1.0)
    asked = expected_seconds(tiny(*flags), Sizes(100, 5000, 0, 0), ranked)["keep curve"]
    assert asked == pytest.approx(14 * 2 * 2000**2 + 100 * per_pair)


def test_a_share_that_is_to_be_found_is_reckoned_with_as_80_percent(tmp_path: Path) -> None:
    lines = lines_of(preview(run_of(tmp_path, *TINY, "--target_size_ratio", "auto")))
    assert (
        "Kept 80% is reckoned with in times and bytes; --target_size_ratio auto finds the share in "
        "the run"
    ) in lines
    short = next(line for line in lines if line.startswith("keep curve"))
    assert short.endswith("14 trainings of 70 steps")  # ten epochs of 7 batches
    auto = expected_seconds(tiny("--target_size_ratio", "auto"), Sizes(600, 9, 9, 9), STEPS_ALONE)
    assert auto == expected_seconds(tiny(), Sizes(600, 9, 9, 9), STEPS_ALONE)
    assert "reckoned" not in preview(run_of(tmp_path, *TINY, "--target_size_ratio", "0.8"))


def test_embedding_is_the_sample_scaled_up() -> None:
    speed = Speed(10.0, 100.0, 2.0, 0.01, 0.0, 0.0, 0.0)
    seconds = expected_seconds(tiny(), Sizes(600, 200, 200, 1000), speed)["embedding"]
    assert seconds == 1000 / 10 + 1800 / 100 + 6 * 2 + 600 * 0.01


def test_stages_that_are_skipped_take_no_time() -> None:
    sizes = Sizes(800, 100, 100, 500)
    seconds = expected_seconds(tiny("--skip_stage", "1", "2"), sizes, STEPS_ALONE)
    taken = {name for name, s in seconds.items() if s > 0}
    of_stage_3 = {"keep curve", "curation"}
    assert taken == of_stage_3 | {"baselines", "evaluation", "results", "report"}
    without = expected_seconds(tiny("--no_report"), sizes, STEPS_ALONE)
    assert without["report"] == 0
    few = expected_seconds(tiny("--report_images", "100"), sizes, STEPS_ALONE)["report"]
    many = expected_seconds(tiny(), sizes, STEPS_ALONE)["report"]
    assert many - few == pytest.approx(900 * PHOTOGRAPH_SECONDS)  # of a thousand images


def test_a_dry_run_says_what_decoding_on_a_gpu_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--dry_run --debug --encoder_model embedded --device cpu --dataset synthetic"
    given = [*flags.split(), "--jpeg_decoding", "gpu", "--output_dir", str(tmp_path / "out")]
    assert main.main(given) == 2
    assert "--jpeg_decoding gpu: the encoder works on cpu" in capsys.readouterr().err


@settings(max_examples=50, deadline=None)
@given(
    st.integers(20, 100_000),
    st.integers(1, 20_000),
    st.integers(1, 10),
    st.integers(1, 10),
    st.sampled_from(["metagradient", "step", "first_order"]),
)
def test_more_pairs_and_more_seeds_never_take_less(
    n: int, more: int, seeds: int, more_seeds: int, estimator: str
) -> None:
    speed = Speed(20.0, 5000.0, 2.0, 1e-4, 3e-3, 2e-3, 2e-8)

    def total(n: int, seeds: int) -> dict[str, float]:
        flags = ("--n_seeds", str(seeds), "--influence_seeds", str(seeds))
        config = tiny(*flags, "--estimator", estimator, "--validate_influence", "2")
        return expected_seconds(config, Sizes(n, 100, 100, 500), speed)

    base, pairs, repeats = total(n, seeds), total(n + more, seeds), total(n, seeds + more_seeds)
    cheaper = {"clustering"}  # where mini-batches take over
    if n <= ALL_NORMALISED < n + more:  # and agreement is normalised by some of the pairs
        cheaper |= {"trust", "pair influence"}
    for name in base:
        if name not in cheaper:
            assert pairs[name] >= base[name]
        assert repeats[name] >= base[name]
    assert pairs["embedding"] > base["embedding"]
    assert repeats["evaluation"] > base["evaluation"]
    assert repeats["cluster influence"] > base["cluster influence"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (99.4, "99 s"), (150.0, "2.5 min"), (7200.0, "2.0 h")],
)
def test_durations_have_the_digits_that_count(seconds: float, shown: str) -> None:
    assert preview_module._duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_900, "1.0 MB"),
        (5_200_000_000_000, "5.2 TB"),
    ],
)
def test_sizes_are_decimal(count: int, shown: str) -> None:
    assert preview_module._bytes(count) == shown


def test_exports_read_the_images_once_a_format() -> None:
    speed = Speed(10.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    flags = ("--export", "webdataset", "hf", "list", "--target_size_ratio", "0.5")
    assert expected_seconds(tiny(*flags), Sizes(600, 0, 0, 0), speed)["export"] == 2 * 300 / 10
    assert expected_seconds(tiny(), Sizes(600, 0, 0, 0), speed)["export"] == 0


def test_stage_names_are_those_of_the_stages() -> None:
    numbers = {s.name: s.number for s in (provenance.EMBEDDING, provenance.CLUSTERING)}
    assert numbers.items() <= dict(STAGES).items()
    assert dict(STAGES)["curation"] == provenance.CURATION.number
    assert dict(STAGES)["keep curve"] == provenance.KEEP_CURVE.number
    assert dict(STAGES)["cluster influence"] == provenance.INFLUENCE.number

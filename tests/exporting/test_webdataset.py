"""Tar shards, read back by webdataset and by open_clip's own steps; the script, run by a shell."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import shlex
import subprocess
import tarfile
import warnings
from pathlib import Path

import braceexpand
import numpy as np
import PIL.Image
import pytest
import webdataset  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st

from exporting.webdataset import open_clip_script, weight_buckets
from tests.exporting.exports import (
    CASE,
    Fake,
    make_case,
    read_tars,
    run_export,
    shards,
)
from tests.helpers import picture


def test_webdataset_reads_every_pair_as_it_was(tmp_path: Path) -> None:
    report = run_export(tmp_path, CASE, "webdataset")
    samples = {sample["__key__"]: sample for sample in read_tars(shards(tmp_path))}
    assert len(samples) == len(CASE.table)
    for row in CASE.table.to_dict("records"):
        sample = samples[row["id"]]
        assert sample["jpg"] == CASE.images[row["key"]]
        assert sample["txt"].decode() == row["caption"]
        facts = json.loads(sample["json"])
        for name in ("id", "key", "caption", "cluster", "cell", "weight", "evaluated", "group"):
            assert facts[name] == row[name], name
        assert facts["uid"] == row["id"]
        assert facts["clip_score"] == float(row["clip_score"])
        assert facts["influence"] == (None if np.isnan(row["influence"]) else row["influence"])
        assert facts["sha256"] == row["image_sha256"]
        assert f"weight-{row['weight']:.2f}" in sample["__url__"]
    assert report.formats[0].pairs == len(samples)
    assert report.formats[0].not_exported == report.formats[0].converted == 0


def test_open_clips_own_steps_take_every_sample(tmp_path: Path) -> None:
    """Its filter, decoder and renaming, see open_clip_train/data.py."""
    formats = {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "d.gif": "GIF", "e.tif": "TIFF"}
    images = {key: picture(i, kind) for i, (key, kind) in enumerate(formats.items())}
    run_export(tmp_path, make_case(images=images), "webdataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the files open that it reads
        rows = webdataset.WebDataset(shards(tmp_path), shardshuffle=False, empty_check=False)
        samples = list(rows.decode("pilrgb").rename(image="jpg;png;jpeg;webp", text="txt"))
        del rows
        gc.collect()
    assert len(samples) == len(images)
    for sample in samples:
        assert sample["image"].size == (6, 4)
        assert sample["image"].mode == "RGB"
        assert sample["text"].startswith("say")


def test_images_that_open_clip_would_drop_become_png(tmp_path: Path) -> None:
    kinds = {"a.jpg": "GIF", "b.png": "BMP", "c.gif": "TIFF", "d.bmp": "JPEG"}  # names that lie
    images = {key: picture(i, kind) for i, (key, kind) in enumerate(kinds.items())}
    report = run_export(tmp_path, make_case(images=images), "webdataset")
    samples = {json.loads(s["json"])["key"]: s for s in read_tars(shards(tmp_path))}
    assert samples["d.bmp"]["jpg"] == images["d.bmp"]
    assert "converted_from" not in json.loads(samples["d.bmp"]["json"])
    for key, kind in list(kinds.items())[:3]:
        facts = json.loads(samples[key]["json"])
        png = samples[key]["png"]
        assert facts["converted_from"] == kind.lower()
        assert facts["sha256"] == hashlib.sha256(png).hexdigest()
        assert facts["original_sha256"] == hashlib.sha256(images[key]).hexdigest()
        original = PIL.Image.open(io.BytesIO(images[key])).convert("RGB")
        assert PIL.Image.open(io.BytesIO(png)).tobytes() == original.tobytes()
    assert report.formats[0].converted == 3
    assert any("1 bmp, 1 gif, 1 tiff" in line for line in report.lines())


def test_tars_carry_no_times_and_no_owners(tmp_path: Path) -> None:
    run_export(tmp_path, CASE, "webdataset")
    for path in shards(tmp_path):
        assert os.path.getsize(path) % tarfile.RECORDSIZE == 0
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


# --- Weights --------------------------------------------------------------------------------------

positive = st.floats(0.01, 100.0)


@given(st.lists(positive, min_size=1, max_size=40))
@example([1.0] * 5)
@example([float(2**i) for i in range(-10, 10)])
def test_buckets_hold_like_weights(values: list[float]) -> None:
    weights = np.array(values)
    buckets, factors = weight_buckets(weights)
    assert len(factors) <= 8
    assert set(buckets.tolist()) == set(range(len(factors)))  # none empty
    assert factors[buckets].sum() == pytest.approx(weights.sum(), rel=1e-9)
    order = np.argsort(weights, kind="stable")
    assert (np.diff(buckets[order]) >= 0).all()  # a bucket is an interval of weights
    for number, factor in enumerate(factors):
        own = weights[buckets == number]
        assert own.min() <= factor * (1 + 1e-12)
        assert factor <= own.max() * (1 + 1e-12)
        assert factor == pytest.approx(own.mean(), rel=1e-12)
    low, high = weights.min(), weights.max()
    if high / low <= 1.1**8 * (1 - 1e-9):  # eight intervals of 10 % reach so far
        assert (np.abs(factors[buckets] - weights) <= 0.1 * weights * (1 + 1e-9)).all()
    spread = max(weights[buckets == b].max() / weights[buckets == b].min() for b in set(buckets))
    assert spread <= max(1.1, narrowest(sorted(set(values)), 8)) * (1 + 1e-6)


def narrowest(values: list[float], n_buckets: int) -> float:
    """The least of the largest ratio within a bucket, over all ways to cut sorted values."""
    best = [values[i] / values[0] for i in range(len(values))]  # of the first i + 1, in one
    for _ in range(n_buckets - 1):
        best = [
            min(max(best[j - 1] if j else 1.0, values[i] / values[j]) for j in range(i + 1))
            for i in range(len(values))
        ]
    return best[-1]


def test_buckets_by_hand() -> None:
    buckets, factors = weight_buckets(np.array([1.0, 0.5, 1.05, 2.0, 0.5]))
    assert buckets.tolist() == [1, 0, 1, 2, 0]
    assert factors.tolist() == pytest.approx([0.5, 1.025, 2.0])
    buckets, factors = weight_buckets(np.full(4, 1.0))
    assert (buckets.tolist(), factors.tolist()) == ([0] * 4, [1.0])
    buckets, factors = weight_buckets(np.array([0.0, 2.0, 0.0, 1.0]))  # zero has no neighbours
    assert (buckets.tolist(), factors.tolist()) == ([0, 2, 0, 1], [0.0, 1.0, 2.0])
    # Few weights far apart need no more than a bucket each, however wide their range.
    _, factors = weight_buckets(np.array([0.001, 0.1, 1.0, 50.0]))
    assert factors.tolist() == [0.001, 0.1, 1.0, 50.0]


def test_tiny_weights_have_folders_of_their_own(tmp_path: Path) -> None:
    weights = np.resize([0.001, 0.002, 2.0], len(CASE.table))
    run_export(tmp_path, CASE.changed(weight=weights), "webdataset")
    folders = {Path(path).parent.name for path in shards(tmp_path)}
    assert folders == {"weight-0.001", "weight-0.002", "weight-2.000"}
    assert len(read_tars(shards(tmp_path))) == len(CASE.table)


def test_shards_of_a_weight_are_even(tmp_path: Path) -> None:
    case = make_case(28)
    run_export(tmp_path, case, "webdataset", size=5)
    sizes = json.loads((tmp_path / "curated/webdataset/sizes.json").read_bytes())
    found = {
        str(Path(path).relative_to(tmp_path / "curated/webdataset")): len(read_tars([path]))
        for path in shards(tmp_path)
    }
    assert sizes == found
    groups: dict[str, list[int]] = {}
    for name, n in sizes.items():
        groups.setdefault(name.split("/")[0], []).append(n)
    assert sorted(map(tuple, groups.values())) == [(4, 3), (4, 3), (5, 5, 4)]
    for folder, own in groups.items():
        beside = json.loads((tmp_path / f"curated/webdataset/{folder}/sizes.json").read_bytes())
        assert list(beside.values()) == own


# --- The training command -------------------------------------------------------------------------


def training_command(root: Path, *flags: str) -> list[str]:
    """What the script runs, told by a program that stands in for Python."""
    program = root / "say"
    program.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
    program.chmod(0o755)
    said = subprocess.run(
        ["/bin/sh", str(root / "curated/webdataset/train_open_clip.sh"), *flags],
        env={**os.environ, "PYTHON": str(program)},
        cwd="/",
        check=True,
        capture_output=True,
    )
    assert not said.stderr
    return said.stdout.decode().split("\0")[:-1]


def value_of(flag: str, words: list[str]) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("folder", ["plain", "a b, {c} 'd' $e \\f"])
def test_the_script_trains_on_all_shards_by_their_weight(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder
    run_export(root, CASE, "webdataset")
    words = training_command(root, "--model", "ViT-B-32", "--name", "a b")
    assert words[:2] == ["-m", "open_clip_train.main"]
    assert words[-4:] == ["--model", "ViT-B-32", "--name", "a b"]
    assert value_of("--dataset-type", words) == "webdataset"
    assert value_of("--train-num-samples", words) == str(len(CASE.table))
    assert "--dataset-resampled" in words
    groups = value_of("--train-data", words).split("::")
    factors = value_of("--train-data-upsampling-factors", words).split("::")
    assert len(groups) == len(factors) == 3
    # As open_clip's expand_urls does: the factor of a group belongs to each of its shards.
    weighted = [
        (path, float(factor))
        for group, factor in zip(groups, factors, strict=True)
        for path in braceexpand.braceexpand(group)
    ]
    assert sorted(path for path, _ in weighted) == shards(root)
    exposure = {s["__key__"]: factor for path, factor in weighted for s in read_tars([path])}
    expected = dict(zip(CASE.table["id"], CASE.table["weight"], strict=True))
    assert exposure == pytest.approx(expected, rel=1e-5)


def test_equal_weights_need_no_factors(tmp_path: Path) -> None:
    report = run_export(tmp_path, CASE.changed(weight=1.0), "webdataset", size=7)
    words = training_command(tmp_path)
    assert "--dataset-resampled" not in words
    assert "--train-data-upsampling-factors" not in words
    paths = webdataset.shardlists.expand_urls(value_of("--train-data", words))
    assert sorted(paths) == shards(tmp_path)
    # open_clip wants a shard for every worker, and a batch of pairs, or it waits for ever.
    assert len(paths) == 2
    assert int(value_of("--workers", words)) == 1
    sizes = json.loads((Path(paths[0]).parent / "sizes.json").read_bytes())
    assert sum(sizes[Path(path).name] for path in paths) == len(CASE.table)
    [line] = [line for line in report.lines() if "train open_clip" in line]
    script = shlex.split(line.partition("open_clip: ")[2])[1]
    assert Path(script) == tmp_path / "curated/webdataset/train_open_clip.sh"


def test_a_path_that_open_clip_cannot_take_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "a::b"
    run_export(root, CASE, "webdataset")
    with pytest.raises(subprocess.CalledProcessError) as error:
        training_command(root)
    assert b"rename it" in error.value.stderr


def test_a_weight_without_images_is_not_trained_on(tmp_path: Path) -> None:
    weights = np.where(np.arange(len(CASE.table)) == 3, 5.0, 1.0)
    source = Fake(CASE.without("k/3.jpg", FileNotFoundError()))
    run_export(tmp_path, CASE.changed(weight=weights), "webdataset", source=source)
    words = training_command(tmp_path)
    assert "weight-5.00" not in value_of("--train-data", words)
    assert "--dataset-resampled" not in words
    assert value_of("--train-num-samples", words) == "13"


@pytest.mark.parametrize(
    ("n_pairs", "n_shards", "workers"), [(3, 1, 1), (4000, 1, 1), (4000, 8, 3), (10**6, 100, 4)]
)
def test_every_worker_has_a_shard_and_pairs_enough(
    n_pairs: int, n_shards: int, workers: int
) -> None:
    script = open_clip_script(["weight-1.00/x.tar"], [1.0], n_pairs, n_shards)
    assert f"--workers {workers} " in script

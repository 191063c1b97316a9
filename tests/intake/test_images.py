"""Images encoded shard by shard: the pairs and rows that one reader after the other would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from artifacts.provenance import EMBEDDING, Mode, Provenance
from artifacts.settings import InputError
from artifacts.store import Store
from data import PairReader
from embedding import EmbeddingResult, embed_in_shards, embed_pairs
from encoders.base import EmbeddingConfig, Encoded, Encoder
from engine.base import Setup
from engine.local import LocalEngine
from engine.room import StageRoom
from intake import images as intake_images
from intake.images import ShardReader
from intake.setup import Reading, ReadingJob, SourceJob, open_reading, processes_for
from sources.base import DataConfig, ImageRecord
from sources.images import decode_pixels
from sources.pixels import Resizing
from sources.processes import ImageProcesses
from sources.splits import IndexedSource
from tests.helpers import SMALL, record

PROVENANCE = Provenance(1, {}, {"data set": "x"})
DATA = DataConfig(**{**SMALL, "max_train_samples": 40}, num_workers=2)


class Colours(Encoder):
    """Means of an image's channels, and of a caption's letters, rounded alike in every batch."""

    name = "colours"

    def __init__(self, *, projects: bool = True) -> None:
        self.projects = projects

    def preprocess(self, image: PIL.Image.Image) -> np.ndarray:
        return np.asarray(image.resize((4, 4)), np.float32).transpose(2, 0, 1)

    def encode_images(self, inputs: np.ndarray) -> Encoded:
        return self._encoded(np.stack([x.mean(axis=1).ravel() for x in inputs])[:, :9] / 255)

    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        rows = [np.bincount([ord(c) % 9 for c in text], minlength=9)[:9] for text in captions]
        return self._encoded(np.stack(rows) + 0.1)

    def _encoded(self, rows: np.ndarray) -> Encoded:
        rows = rows.astype(np.float32)
        return Encoded(rows, rows[:, :5] + 0.5 if self.projects else None)


class Bytes(Colours):
    """The same of pixels that a process can make."""

    resizing = Resizing((4, 4), None, int(PIL.Image.Resampling.BICUBIC))

    def encode_images(self, inputs: np.ndarray) -> Encoded:
        assert inputs.dtype == np.uint8
        return super().encode_images(inputs.transpose(0, 3, 1, 2).astype(np.float32))


def hostile_source() -> IndexedSource:
    """Images of every kind: broken, shared between splits, with faulty and repeated captions."""
    records = [record(i, f"picture {i}", f"number {i % 7} again", f"x {i}!") for i in range(40)]
    records[3] = record(3, "broken", data=b"no image")
    records[5] = record(5, " ", "")
    records[7], records[8] = record(8, "picture 8"), record(8, "Picture  8.")
    records[9] = ImageRecord("gone", _gone, records[9].captions)
    validation = [record(100 + i, f"held out {i}", "second") for i in range(4)]
    test = [record(200 + i, f"test {i}", f"other {i}") for i in range(4)]
    test.append(record(11, "an image of training"))
    official = {"train": records, "validation": validation, "test": test}
    limits = {"train": 40, "validation": 4, "test": 5}
    unique = {
        split: [_renamed(r, f"{split}/{i}", 100 * i) for i, r in enumerate(those)]
        for split, those in official.items()
    }
    firsts = {"train": 0, "validation": 10_000, "test": 20_000}
    placed = {split: [_moved(r, firsts[split]) for r in those] for split, those in unique.items()}
    return IndexedSource("made", "made up", "print", placed, limits, np.random.default_rng(0))


def _gone() -> bytes:
    raise FileNotFoundError("gone.jpg is not there")


def _renamed(image: ImageRecord, key: str, first: int) -> ImageRecord:
    captions = tuple(
        type(c)(first + i, c.text, c.fault, c.row) for i, c in enumerate(image.captions)
    )
    return ImageRecord(key, image.read, captions)


def _moved(image: ImageRecord, by: int) -> ImageRecord:
    captions = tuple(type(c)(by + c.position, c.text, c.fault, c.row) for c in image.captions)
    return ImageRecord(image.key, image.read, captions)


def embedded(
    store: Store,
    encoder: Encoder,
    *,
    batch_size: int = 3,
    workers: int = 2,
    data: DataConfig = DATA,
) -> EmbeddingResult:
    """The saved result of stage 1a, shard by shard."""
    source, config = hostile_source(), EmbeddingConfig("colours", encoder_batch_size=batch_size)
    engine = LocalEngine(workers)
    room = StageRoom(engine, store, EMBEDDING, PROVENANCE.fingerprint(EMBEDDING))
    setup = Setup(open_reading, ReadingJob(SourceJob(data, 1), config, "cpu"))
    decode = decode_pixels(encoder.prepare, data.max_image_pixels)
    processes = processes_for(encoder, config, data)
    engine.offer(setup, Reading(source, encoder, decode, processes))

    def compute() -> EmbeddingResult:
        reader = ShardReader(source, data, room, setup, batch_size, processes)
        rng = np.random.default_rng(4)
        return embed_in_shards(reader, encoder, config, rng=rng, room=room, setup=setup)

    result = store.stage(EMBEDDING, Mode.RUN, PROVENANCE, EmbeddingResult, compute).value
    if processes is not None:
        processes.close()
    return result


def one_by_one(encoder: Encoder, processes: ImageProcesses | None = None) -> EmbeddingResult:
    decode = decode_pixels(encoder.prepare, DATA.max_image_pixels)
    reader = PairReader(hostile_source(), DATA, decode=decode, processes=processes)
    return embed_pairs(reader, encoder, EmbeddingConfig("colours"), rng=np.random.default_rng(4))


def assert_same(one: EmbeddingResult, other: EmbeddingResult, tolerance: float = 0) -> None:
    for f in fields(EmbeddingResult):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=f.name)
        elif isinstance(a, pd.DataFrame):
            pd.testing.assert_frame_equal(a, b)
        else:
            assert a == b, f.name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


@pytest.fixture(autouse=True)
def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_images, "IMAGES_A_SHARD", 4)
    monkeypatch.setattr("intake.captions.CAPTIONS_A_SHARD", 6)


@pytest.mark.parametrize("projects", [True, False])
def test_shards_give_the_pairs_and_rows_of_one_reader(store: Store, projects: bool) -> None:
    result = embedded(store, Colours(projects=projects))
    assert_same(result, one_by_one(Colours(projects=projects)))
    reasons = Counter(result.skipped["reason"])
    assert reasons["broken image"] == 1
    assert reasons["missing file"] >= 1
    assert reasons["duplicate pair"] >= 1
    assert reasons["image in another split"] >= 1


def asks_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images processes are asked for, from now on; for few they are asked, too."""
    monkeypatch.setattr(ImageProcesses, "least_images", 1)
    plain, asked = ImageProcesses.read, list[int]()

    def read(processes: ImageProcesses, images: Any) -> Any:
        asked.append(len(images))
        return plain(processes, images)

    monkeypatch.setattr(ImageProcesses, "read", read)
    return asked


@pytest.mark.parametrize("in_shards", [True, False])
def test_processes_give_what_threads_give(
    store: Store, monkeypatch: pytest.MonkeyPatch, in_shards: bool
) -> None:
    expected = one_by_one(Bytes())
    asked = asks_counted(monkeypatch)
    if in_shards:
        result = embedded(store, Bytes())
        assert max(asked) == 4  # a whole shard at once
    else:
        processes = ImageProcesses(Bytes.resizing, DATA.max_image_pixels)
        result = one_by_one(Bytes(), processes)
        processes.close()
        assert max(asked) > 4
    assert sum(asked) >= len(set(expected.pairs["image_sha256"]))
    assert_same(result, expected)
    reasons = Counter(result.skipped["reason"])
    assert reasons["broken image"] == 1
    assert reasons["missing file"] >= 1
    assert_same(result, one_by_one(Colours()), 1e-6)  # whose own processor makes the same


@pytest.mark.parametrize("n_workers", [0, 2])
def test_few_images_and_no_workers_need_no_process(
    store: Store, monkeypatch: pytest.MonkeyPatch, n_workers: int
) -> None:
    asked = asks_counted(monkeypatch)
    if n_workers:
        monkeypatch.setattr(ImageProcesses, "least_images", 1000)
    result = embedded(store, Bytes(), data=replace(DATA, num_workers=n_workers))
    assert not asked
    assert_same(result, one_by_one(Bytes()))


@pytest.mark.parametrize("projects", [True, False])
def test_many_pairs_are_filled_block_by_block(
    store: Store, monkeypatch: pytest.MonkeyPatch, projects: bool
) -> None:
    for name in ("embedding", "artifacts.store"):
        monkeypatch.setattr(f"{name}.HELD_BYTES", 100)
    monkeypatch.setattr("intake.arrays.ROWS_AT_ONCE", 7)
    result = embedded(store, Colours(projects=projects))
    assert isinstance(result.image_features, np.memmap)
    assert_same(result, one_by_one(Colours(projects=projects)), 1e-6)


def test_a_run_that_broke_off_encodes_only_what_is_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = Colours.encode_images

    def counted(breaks_at: int) -> Callable[[Colours, np.ndarray], Encoded]:
        def encode(encoder: Colours, inputs: np.ndarray) -> Encoded:
            if len(calls) == breaks_at:
                raise InputError("--output_dir: the disk is full")
            calls.append(len(inputs))
            return plain(encoder, inputs)

        return encode

    monkeypatch.setattr(Colours, "encode_images", counted(6))
    with pytest.raises(InputError, match="the disk is full"):
        embedded(store, Colours())
    n_before = sum(calls)
    calls.clear()
    monkeypatch.setattr(Colours, "encode_images", counted(-1))
    result = embedded(store, Colours())
    monkeypatch.setattr(Colours, "encode_images", plain)
    n_again = sum(calls)
    expected = one_by_one(Colours())
    assert_same(result, expected)
    n_images = len(set(expected.pairs["image_sha256"]))
    n_repeated = n_before + n_again - n_images
    # What was read in vain, of images in two splits, and two shards that two threads were at.
    assert n_repeated <= 1 + 2 * 4
    assert n_again < n_images


def test_a_later_caption_of_an_image_gets_its_name(store: Store) -> None:
    result = embedded(store, Colours())
    kept = result.pairs[result.pairs["split"] == "train"]
    assert kept["image_sha256"].duplicated().any()  # a second round of captions was needed
    assert (kept["id"].str.len() == 32).all()
    assert kept["id"].is_unique


@pytest.mark.parametrize(("workers", "num_workers"), [(1, 1), (1, 4), (2, 3), (4, 1), (30, 24)])
def test_neither_workers_nor_threads_that_read_change_a_byte(
    tmp_path: Path, workers: int, num_workers: int
) -> None:
    """The truth: one worker, which reads in its own thread."""
    saved = []
    for name, n_workers, n_threads in (("one", 1, 0), ("many", workers, num_workers)):
        store = Store.open(str(tmp_path / name))
        data = replace(DATA, num_workers=n_threads)
        embedded(store, Colours(), workers=n_workers, data=data)
        files = sorted(f for f in store.root.rglob("*") if f.is_file() and f.suffix != ".json")
        saved.append({str(f.relative_to(store.root)): f.read_bytes() for f in files})
    one, many = saved
    assert {"image_features.npy", "text_features.npy"} <= {Path(name).name for name in one}
    assert many == one


@pytest.mark.parametrize(
    ("workers", "num_workers", "n_shards", "on_gpu", "expected"),
    [
        (1, 4, 9, False, 4),
        (2, 4, 9, False, 2),
        (2, 3, 9, False, 2),
        (2, 4, 1, False, 4),  # a worker that has all the work has all the threads
        (64, 4, 100, False, 1),
        (64, 4, 100, True, 4),  # then one works
        (2, 0, 9, False, 0),
    ],
)
def test_workers_share_the_threads_that_read(
    store: Store, workers: int, num_workers: int, n_shards: int, on_gpu: bool, expected: int
) -> None:
    data = replace(DATA, num_workers=num_workers)
    room = StageRoom(LocalEngine(workers), store, EMBEDDING, "print")
    job = ReadingJob(SourceJob(data, 1), EmbeddingConfig("colours"), "cpu")
    setup = Setup(open_reading, job, on_gpu=on_gpu)
    reader = ShardReader(hostile_source(), data, room, setup, 3)
    assert reader.threads_a_worker(n_shards) == expected

"""Opening and reading pairs: cleaning, duplicates, reasons; the truth is what the tests make up."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.settings import InputError
from data import SYNTHETIC_WARNING, PairReader, open_source
from sources.base import (
    BROKEN_IMAGE,
    DAMAGED_CAPTION,
    DUPLICATE_PAIR,
    EMPTY_CAPTION,
    IMAGE_IN_ANOTHER_SPLIT,
    MISSING_CAPTION,
    SAMPLE_FLAGS,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
)
from sources.captions import normalize_caption
from sources.images import decode_pixels
from sources.splits import IndexedSource, StreamSource
from tests.helpers import (
    SMALL,
    encode,
    offline_datasets,
    open_folder,
    photographs,
    picture,
    read_all,
    record,
    write,
)
from tests.sources.layouts import (
    N_PICTURES,
    SPLIT_SIZES,
    as_folder,
    as_parquet,
    as_shards,
    captions_of,
    numbers_by_split,
)
from tests.sources.test_base import half_sha256
from tests.sources.test_captions import FAULTS, LONGEST

# --- Opening --------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return offline_datasets(tmp_path, monkeypatch)


def test_auto_falls_back_to_synthetic_with_a_warning(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(DataConfig(**SMALL), rng=np.random.default_rng(0))
    assert source.name == "synthetic"
    assert SYNTHETIC_WARNING.startswith("SYNTHETIC DATA:")
    [message] = [record.getMessage() for record in caplog.records if record.name == "data"]
    assert message.startswith(f"{SYNTHETIC_WARNING} (--hf_dataset ")
    assert message.endswith(")")


UNUSED: dict[str, tuple[dict[str, Any], str]] = {
    "webdataset": (
        {"hf_dataset": "a/b", "id_column": "n"},
        "--hf_dataset, --id_column: not used by --dataset webdataset; leave them out",
    ),
    "folder": ({"id_column": "n"}, "--id_column: not used by --dataset folder; leave it"),
    "parquet": ({"hf_dataset": "a/b"}, "--hf_dataset: not used by --dataset parquet; leave it out"),
    "synthetic": ({"id_column": "n"}, "--id_column: not used by --dataset synthetic; leave it out"),
}


@pytest.mark.parametrize("dataset", UNUSED)
def test_flags_that_a_source_does_not_use(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writers = {"folder": as_folder, "webdataset": as_shards, "parquet": as_parquet}
    place = None
    if dataset != "synthetic":
        place = str(writers[dataset](tmp_path / "in", SPLIT_SIZES["train alone"]))
    flags, message = UNUSED[dataset]
    config = DataConfig(dataset, place, **SMALL)
    open_source(config, rng=np.random.default_rng(0))
    assert not caplog.messages
    open_source(replace(config, **flags), rng=np.random.default_rng(0))
    [warning] = caplog.messages
    assert warning.startswith(message)


def test_local_coco_uses_no_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    for i in range(8):
        content["images"].append({"id": i, "file_name": f"{i}.png"})
        content["annotations"].append({"image_id": i, "caption": f"caption {i}"})
    write(tmp_path, {"annotations/captions_train2017.json": json.dumps(content)})
    config = DataConfig("coco", str(tmp_path), caption_column="text", **SMALL)
    open_source(config, rng=np.random.default_rng(0))
    assert caplog.messages == [
        "--caption_column: not used by --dataset coco with --data_dir; leave it out"
    ]


N_READ = {"official": (8, 8), "no test": (6, 10), "train alone": (8, 8)}  # validation, test


@pytest.mark.parametrize("layout", SPLIT_SIZES)
def test_the_layout_of_the_data_changes_no_pair(layout: str, tmp_path: Path) -> None:
    sizes = SPLIT_SIZES[layout]
    places = {
        "folder": as_folder(tmp_path / "folder", sizes),
        "webdataset": as_shards(tmp_path / "shards", sizes),
        "parquet": as_parquet(tmp_path / "parquet", sizes),
    }
    ids: dict[str, dict[str, list[str]]] = {}
    for dataset, place in places.items():
        config = DataConfig(dataset, str(place), **SMALL | {"max_train_samples": 30})
        source = open_source(config, rng=np.random.default_rng(3))
        pairs = read_all(source, max_train_samples=30)[0].pairs()
        ids[dataset] = {
            split: pairs.loc[pairs["split"] == split, "id"].tolist() for split in SPLITS
        }
    assert ids["folder"] == ids["webdataset"] == ids["parquet"]

    number_of = {
        hashlib.sha256(picture(i) + text.encode()).hexdigest()[:32]: i
        for i in range(N_PICTURES)
        for text in captions_of(i)
    }
    numbers = {split: [number_of[name] for name in ids["folder"][split]] for split in SPLITS}
    assert len(numbers["train"]) == 30
    n_validation, n_test = N_READ[layout]
    assert len(set(numbers["validation"])) == len(numbers["validation"]) == n_validation
    assert len(set(numbers["test"])) == n_test
    assert len(numbers["test"]) == 2 * n_test
    if layout == "official":
        given = numbers_by_split(sizes)
        assert all(set(numbers[split]) <= set(given[split]) for split in SPLITS)


# --- Reading --------------------------------------------------------------------------------------


def source_of(**official: Sequence[ImageRecord]) -> IndexedSource:
    limits = DataConfig(**SMALL).limits()
    return IndexedSource("folder", "a test", "0", official, limits, np.random.default_rng(0))


EVALUATION = {
    "test": [record(90, "a test image", "seen twice")],
    "validation": [record(91, "a validation image")],
}


def counting(reads: Counter[str], image: ImageRecord) -> ImageRecord:
    """The image, whose readings are counted by its key."""

    def read() -> bytes:
        reads[image.key] += 1
        return image.read()

    return replace(image, read=read)


def test_spare_pairs_replace_unusable_ones() -> None:
    broken = [record(i, f"broken {i}", f"too {i}", data=b"junk") for i in range(4)]
    good = [record(i, f"one {i}", f"two {i}") for i in range(4, 10)]
    limits = {"train": 10, "validation": 10, "test": 10}
    official = {"train": broken + good, **EVALUATION}
    source = IndexedSource("folder", "", "0", official, limits, np.random.default_rng(0))
    reader, pixels = read_all(source, max_train_samples=10)
    pairs = reader.pairs().query("split == 'train'")
    assert len(pairs) == 10
    assert set(pixels["train"][:, 0]) == set(range(4, 10))
    shown = [pixels["train"][row][0] for row in pairs["image_row"]]
    assert shown == [int(key) for key in pairs["key"]]
    assert set(reader.skipped()["key"]) == {"000", "001", "002", "003"}


def test_what_the_limits_leave_out_is_counted() -> None:
    train = [record(i, f"one {i}", f"two {i}") for i in range(10)]
    train[0] = record(0, "broken", "too", data=b"junk")
    evaluation = {
        "test": [record(50, "a", "b"), record(51, "c", "d"), record(52, "e", "f")],
        "validation": [record(53, "g", "h")],
    }
    limits: dict[str, Any] = {
        "max_train_samples": 7,
        "max_val_samples": 9,
        "max_test_samples": 2,
    }
    config = DataConfig(**limits)
    rng = np.random.default_rng(0)
    source = IndexedSource("folder", "", "0", {"train": train, **evaluation}, config.limits(), rng)
    reader, _ = read_all(source, **limits)
    n_train = 20 - sum(sum(t["split"] == "train") for t in (reader.pairs(), reader.skipped()))
    assert n_train >= 11
    assert reader.left_out() == (
        f"{n_train + 3} further captions of the source were not read: {n_train} of train "
        "(--max_train_samples 7), 1 of validation (--max_val_samples 9, one caption an image), "
        "2 of test (--max_test_samples 2)"
    )
    source = source_of(train=train, **EVALUATION)
    assert read_all(source)[0].left_out() == ""


@pytest.mark.parametrize("limit", [5, 100])
def test_what_follows_in_a_stream_is_not_counted(limit: int) -> None:
    official = {"train": [record(i, f"one {i}") for i in range(10)], **EVALUATION}
    streams = {split: iter(images) for split, images in official.items()}
    reader, _ = read_all(StreamSource("hf", "", "0", streams, None), max_train_samples=limit)
    assert reader.left_out() == ("the rest of the source was not read" if limit == 5 else "")


def test_every_image_is_read_once() -> None:
    reads: Counter[str] = Counter()
    images = [counting(reads, record(i, "a", "b", "c")) for i in range(9)]
    images.append(counting(reads, record(9, "a", "b", "c", data=b"junk")))
    limits = {"train": 2, "validation": 10, "test": 10}
    official = {"train": images, **EVALUATION}
    source = IndexedSource("folder", "", "0", official, limits, np.random.default_rng(0))
    reader, _ = read_all(source)
    assert (reader.pairs()["split"] == "train").sum() == 27
    assert set(reads.values()) == {1}
    assert len(reads) == 10


def test_reasons_for_skipping() -> None:
    def missing() -> bytes:
        raise FileNotFoundError

    def denied() -> bytes:
        raise PermissionError("denied")

    same = picture(40)
    train = [
        replace(record(1, "gone"), read=missing),
        replace(record(2, "closed"), read=denied),
        record(3, "nothing", data=b""),
        record(4, "junk", data=b"GIF89a"),
        record(5, "huge", data=encode(PIL.Image.new("L", (50, 50)))),
        record(6, "  ", "kept", "Kept !"),
        record(7, "leaks", data=picture(90)),
        record(8, "first", data=same),
        record(9, "First.", "second", data=same),
    ]
    source = source_of(train=train, **EVALUATION)
    reader, _ = read_all(source, max_image_pixels=1000)
    skipped = reader.skipped().drop_duplicates("key").set_index("key")
    assert skipped["reason"].drop(["006", "008", "009"], errors="ignore").to_dict() == {
        "001": "missing file",
        "002": "unreadable file",
        "003": "empty file",
        "004": "broken image",
        "005": "image too large",
        "007": "image in another split",
    }
    # Which of two equal captions comes first is drawn, of one image and of two alike.
    of_6, of_8_and_9 = (
        reader.skipped().query(f"key in {keys}").set_index("position")["reason"].to_dict()
        for keys in (["006"], ["008", "009"])
    )
    assert of_6 in [{60: "empty caption", twin: "duplicate pair"} for twin in (61, 62)]
    assert of_8_and_9 in [{twin: "duplicate pair"} for twin in (80, 90)]
    assert skipped.loc["005", "detail"] == "50 x 50"
    assert skipped.loc["007", "detail"] == "test"
    counts = reader.skipped()["reason"].value_counts()
    assert (counts["empty caption"], counts["duplicate pair"]) == (1, 2)
    pairs = reader.pairs().query("split == 'train'")
    assert pairs.query("key in ('008', '009')")["image_row"].nunique() == 1
    assert {normalize_caption(text) for text in pairs["caption"]} == {"kept", "first", "second"}
    duplicates = reader.skipped().query("reason == 'duplicate pair'")
    kept = set(pairs["position"])
    assert all(int(detail.split()[-1]) in kept for detail in duplicates["detail"])
    assert not kept & set(reader.skipped()["position"])


def test_an_image_stays_in_the_first_split_that_reads_it() -> None:
    twin = record(5, "in train", data=picture(91))
    reader, _ = read_all(source_of(train=[twin, record(6, "other")], **EVALUATION))
    assert reader.skipped()[["split", "key", "reason", "detail"]].values.tolist() == [
        ["train", "005", IMAGE_IN_ANOTHER_SPLIT, "validation"]
    ]
    official = EVALUATION | {"validation": [record(7, "twin", data=picture(90)), record(91, "own")]}
    reader, pixels = read_all(source_of(train=[record(6, "other")], **official))
    assert reader.skipped()[["split", "key", "reason", "detail"]].values.tolist() == [
        ["validation", "007", IMAGE_IN_ANOTHER_SPLIT, "test"]
    ]
    assert reader.pairs().query("split == 'validation'")["key"].tolist() == ["091"]
    assert pixels["validation"].tolist() == [[91, 0, 7]]


def test_test_images_keep_all_captions_and_validation_one() -> None:
    official = {
        "train": [record(1, "a")],
        "validation": [record(i, "a", "b") for i in range(10, 14)],
        "test": [record(i, "a", "b", "c") for i in range(20, 24)],
    }
    source = IndexedSource(
        "folder", "", "0", official, DataConfig().limits(), np.random.default_rng(0)
    )
    pairs = read_all(source)[0].pairs()
    assert pairs["split"].value_counts().to_dict() == {"train": 1, "validation": 4, "test": 12}
    assert list(pairs["split"].unique()) == list(SPLITS)
    for _, part in pairs.groupby("split"):
        assert part["position"].is_monotonic_increasing


@pytest.mark.parametrize("seed", [0, 1])
def test_workers_change_nothing(seed: int) -> None:
    def messy() -> IndexedSource:
        rng = np.random.default_rng(seed)
        images = [record(i, "x", "", f"{i}", data=None if i % 5 else b"junk") for i in range(60)]
        limits = {"train": 40, "validation": 5, "test": 5}
        return IndexedSource("folder", "", "0", {"train": images}, limits, rng)

    settings = {"max_train_samples": 40, "max_val_samples": 5, "max_test_samples": 5}
    expected, expected_pixels = read_all(messy(), num_workers=0, **settings)
    for num_workers in (1, 3, 8):
        reader, pixels = read_all(messy(), num_workers=num_workers, **settings)
        pd.testing.assert_frame_equal(reader.pairs(), expected.pairs())
        pd.testing.assert_frame_equal(reader.skipped(), expected.skipped())
        assert all(np.array_equal(pixels[split], expected_pixels[split]) for split in SPLITS)


def test_all_reads_everything(tmp_path: Path) -> None:
    rows = [
        f"{i:03d}.png,{'test' if i < 5 else 'val' if i < 12 else 'train'},{c} of {i}"
        for i in range(200)
        for c in range(2)
    ]
    captions = "\n".join(["image,split,caption", *rows])
    write(tmp_path, {"captions.csv": captions, **photographs(200)})
    most: dict[str, Any] = dict.fromkeys(SAMPLE_FLAGS.values(), "all")
    reader, pixels = read_all(open_folder(tmp_path, **most), **most)
    assert {split: len(pixels[split]) for split in SPLITS} == {
        "test": 5,
        "validation": 7,
        "train": 188,
    }
    assert Counter(reader.pairs()["split"]) == {"test": 10, "validation": 7, "train": 376}
    assert reader.n_all_expected() == 200
    assert reader.left_out() == (
        "7 further captions of the source were not read: 7 of validation "
        "(--max_val_samples all, one caption an image)"
    )


def test_all_of_an_endless_source_has_no_total() -> None:
    streams = {split: iter([record(i, "a")]) for i, split in enumerate(SPLITS)}
    source = StreamSource("hf", "", "0", streams, None)
    reader = read_all(source, max_train_samples="all")[0]
    assert reader.n_all_expected() is None
    assert len(reader.pairs()) == 3


def test_a_stream_loses_nothing_to_workers() -> None:
    def stream() -> StreamSource:
        records = (record(i, "a", "b", data=None if i % 4 else b"junk") for i in range(60))
        return StreamSource("hf", "a test", "0", {"train": records}, None)

    expected = read_all(stream(), num_workers=0, max_train_samples=20)[0]
    reader = read_all(stream(), num_workers=8, max_train_samples=20)[0]
    pd.testing.assert_frame_equal(reader.pairs(), expected.pairs())
    read = {*reader.pairs()["key"], *reader.skipped()["key"]}
    assert read == {f"{i:03d}" for i in range(len(read))}


@pytest.mark.parametrize(("num_workers", "most"), [(0, 2), (1, 9), (3, 25)])
def test_images_are_read_ahead_by_a_bounded_number(num_workers: int, most: int) -> None:
    # Beside the one that is given: two hands of four a worker, or one without workers.
    reads: Counter[str] = Counter()
    images = [counting(reads, record(i, "a")) for i in range(100)]
    limits = DataConfig(**SMALL | {"max_train_samples": 100})
    source = IndexedSource(
        *("folder", "", "0", {"train": images, **EVALUATION}, limits.limits()),
        np.random.default_rng(0),
    )
    config = replace(limits, num_workers=num_workers)
    decode = decode_pixels(lambda image: np.asarray(image)[0, 0], config.max_image_pixels)
    images_read = PairReader(source, config, decode=decode).images("train")
    assert next(images_read).row == 0
    assert isinstance(images_read, Generator)
    images_read.close()  # waits for what is in the workers' hands
    assert 1 <= reads.total() <= most


def test_nothing_usable() -> None:
    train = [record(1, "a", "b", data=b"junk"), record(2, "c", data=b"")]
    message = r"train split: 3 tried \(2 broken image, 1 empty file\); check the data \(a test"
    with pytest.raises(InputError, match=message):
        read_all(source_of(train=train, **EVALUATION))
    with pytest.raises(InputError, match="no usable pair for the test split: 0 tried; check"):
        read_all(source_of(train=[]))


def test_a_fault_of_preprocessing_is_not_hidden() -> None:
    def fail(image: PIL.Image.Image) -> np.ndarray:
        raise RuntimeError("a bug")

    reader = PairReader(
        source_of(train=[], **EVALUATION), DataConfig(**SMALL), decode=decode_pixels(fail, 1000)
    )
    with pytest.raises(RuntimeError, match="a bug"):
        list(reader.images("test"))


# --- Names and places -----------------------------------------------------------------------------


def texts_of(number: int, *texts: str | None, **places: Any) -> ImageRecord:
    """Captions that may be missing, each in a row of its own from 100 times the number."""
    captions = tuple(
        Caption(10 * number + i, text, row=100 * number + i) for i, text in enumerate(texts)
    )
    return replace(record(number), captions=captions, **places)


def test_kept_pairs_know_their_name_and_their_place() -> None:
    places = {"shard": "a/00001.tar", "member": "x/7.png", "uid": "0123456789abcdef" * 2}
    train = [texts_of(7, " Seven ", "Siete", **places), texts_of(8, "Eight")]
    pairs = read_all(source_of(train=train, **EVALUATION))[0].pairs()
    columns = ["position", "caption", "id", "shard", "member", "row", "uid"]
    seven = ("a/00001.tar", "x/7.png"), "0123456789abcdef0123456789abcdef"
    assert pairs.query("split == 'train'")[columns].values.tolist() == [
        [70, "Seven", half_sha256(picture(7), "Seven"), *seven[0], 700, seven[1]],
        [71, "Siete", half_sha256(picture(7), "Siete"), *seven[0], 701, seven[1]],
        [80, "Eight", half_sha256(picture(8), "Eight"), "", "", 800, ""],
    ]
    others = pairs.query("split != 'train'")
    assert others[["id", "shard", "member", "row", "uid"]].values.tolist() == [
        [half_sha256(picture(number), caption), "", "", -1, ""]
        for number, caption in [
            (91, "a validation image"),
            (90, "a test image"),
            (90, "seen twice"),
        ]
    ]


def test_skipped_pairs_know_their_name_and_their_place() -> None:
    same, place = picture(40), {"shard": "0.tar", "member": "m.png"}
    train = [
        replace(texts_of(1, "First", "second", **place), read=lambda: same),
        replace(texts_of(2, "first.", "SECOND ", "second", **place), read=lambda: same),
        replace(texts_of(3, "leaks", None, **place), read=lambda: picture(90)),
        replace(texts_of(4, "junk", **place), read=lambda: b"junk"),
        texts_of(5, "kept", "  ", **place),
    ]
    reader, _ = read_all(source_of(train=train, **EVALUATION))
    skipped = reader.skipped()
    assert (skipped["split"] == "train").all()
    assert (skipped["shard"] == "0.tar").all()
    assert (skipped["member"] == "m.png").all()
    found = skipped.set_index("position")[["reason", "id", "row", "duplicate_of"]]
    assert found.sort_index().T.to_dict("list") == {
        20: [DUPLICATE_PAIR, half_sha256(same, "first."), 200, 10],
        21: [DUPLICATE_PAIR, half_sha256(same, "SECOND"), 201, 11],
        22: [DUPLICATE_PAIR, half_sha256(same, "second"), 202, 11],
        30: [IMAGE_IN_ANOTHER_SPLIT, half_sha256(picture(90), "leaks"), 300, 900],
        31: [IMAGE_IN_ANOTHER_SPLIT, "", 301, 900],
        40: [BROKEN_IMAGE, "", 400, -1],
        51: [EMPTY_CAPTION, "", 501, -1],
    }
    names = reader.pairs().set_index("position")["id"]
    assert names[11] == found.loc[22, "id"] != found.loc[21, "id"]  # the very same pair
    assert 900 in names


# --- Captions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_without_a_usable_caption_is_not_read(num_workers: int) -> None:
    reads: Counter[str] = Counter()
    hopeless = [counting(reads, texts_of(i, text)) for i, (text, *_) in enumerate(FAULTS)]
    hopeless.append(counting(reads, texts_of(20, *(text for text, *_ in FAULTS))))
    good = counting(reads, texts_of(30, None, "kept", "a\0"))
    source = source_of(train=[*hopeless, good], **EVALUATION)
    reader, pixels = read_all(source, num_workers=num_workers)
    assert reads == {"030": 1}
    assert reader.pairs().query("split == 'train'")["position"].tolist() == [301]
    assert pixels["train"].tolist() == [[30, 0, 7]]
    skipped = reader.skipped().set_index("position").sort_index()
    faults = [[reason, detail, "", -1] for _, reason, detail in FAULTS]
    damaged = [DAMAGED_CAPTION, "it holds bytes that are no text", "", -1]
    assert skipped[["reason", "detail", "id", "duplicate_of"]].values.tolist() == [
        *faults,
        *faults,
        [MISSING_CAPTION, "", "", -1],
        damaged,
    ]


def test_skipped_captions_are_shown_as_any_file_can_hold_them() -> None:
    texts = ["y" * 500, "z" * 501, LONGEST + "x", "a\0b", "a\ud800b", None, " c "]
    train = [replace(texts_of(1, *texts), read=lambda: b"junk"), record(2, "kept")]
    reader, _ = read_all(source_of(train=train, **EVALUATION))
    skipped = reader.skipped().set_index("position")["caption"].sort_index()
    assert skipped.tolist() == [
        "y" * 500,
        "z" * 500 + "…",
        "x" * 500 + "…",
        "a\ufffdb",
        "a?b",
        "",
        "c",
    ]


def test_the_name_of_a_long_duplicate_is_that_of_the_whole_caption() -> None:
    long = "w" * 600
    train = [record(1, long, data=picture(5)), record(2, long.upper(), data=picture(5))]
    reader, _ = read_all(source_of(train=train, **EVALUATION))
    assert reader.skipped()[["id", "caption", "duplicate_of"]].values.tolist() == [
        [half_sha256(picture(5), "W" * 600), "W" * 500 + "…", 10]
    ]
    assert long in set(reader.pairs()["caption"])


def test_rows_that_show_one_image_need_a_column_that_tells(tmp_path: Path) -> None:
    rows = [(i, k) for i in range(20) for k in range(5)]
    table = pa.table(
        {
            "image": [picture(i) for i, _ in rows],
            "caption": [f"{k} of {i}" for i, k in rows],
            "image_id": [i for i, _ in rows],
        }
    )
    pq.write_table(table, tmp_path / "0.parquet")
    config = DataConfig("parquet", str(tmp_path), **SMALL)
    hints = {}
    for column in ("cocoid", "image_id"):
        of_column = replace(config, id_column=column)
        reader, _ = read_all(open_source(of_column, rng=np.random.default_rng(0)))
        hints[column] = reader.id_hint()
    assert "because their image is in another split; " in hints["cocoid"]
    assert hints["cocoid"].endswith("name the column that tells which with --id_column")
    assert hints["image_id"] == ""

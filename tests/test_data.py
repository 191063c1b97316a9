"""Reading pairs: cleaning, exact duplicates, reasons; the truth is what the tests make up."""

from __future__ import annotations

import struct
import threading
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candidates import IndexedSource, StreamSource
from data import (
    BROKEN_IMAGE,
    EMPTY_FILE,
    IMAGE_IN_ANOTHER_SPLIT,
    IMAGE_TOO_LARGE,
    SPLITS,
    DataConfig,
    ImageRecord,
    PairReader,
    UnusableImage,
    decode_image,
    decode_pixels,
    hub_answers,
    normalize_caption,
)
from settings import InputError
from tests.helpers import SMALL, encode, picture, read_all, record


def source_of(**official: Sequence[ImageRecord]) -> IndexedSource:
    limits = DataConfig(**SMALL).limits()
    return IndexedSource("folder", "a test", "0", official, limits, np.random.default_rng(0))


EVALUATION = {
    "test": [record(90, "a test image", "seen twice")],
    "validation": [record(91, "a validation image")],
}


# --- Reading --------------------------------------------------------------------------------------


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


def test_every_image_is_read_once() -> None:
    reads: Counter[str] = Counter()

    def counting(image: ImageRecord) -> ImageRecord:
        def read() -> bytes:
            reads[image.key] += 1
            return image.read()

        return replace(image, read=read)

    images = [counting(record(i, "a", "b", "c")) for i in range(9)]
    images.append(counting(record(9, "a", "b", "c", data=b"junk")))
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
    assert skipped["reason"].drop("009", errors="ignore").drop(
        "008", errors="ignore"
    ).to_dict() == {
        "001": "missing file",
        "002": "unreadable file",
        "003": "empty file",
        "004": "broken image",
        "005": "image too large",
        "006": skipped.loc["006", "reason"],
        "007": "image in another split",
    }
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


def test_a_stream_loses_nothing_to_workers() -> None:
    def stream() -> StreamSource:
        records = (record(i, "a", "b", data=None if i % 4 else b"junk") for i in range(60))
        return StreamSource("hf", "a test", "0", {"train": records}, None)

    expected = read_all(stream(), num_workers=0, max_train_samples=20)[0]
    reader = read_all(stream(), num_workers=8, max_train_samples=20)[0]
    pd.testing.assert_frame_equal(reader.pairs(), expected.pairs())
    read = {*reader.pairs()["key"], *reader.skipped()["key"]}
    assert read == {f"{i:03d}" for i in range(len(read))}


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


# --- Images ---------------------------------------------------------------------------------------


def first_pixel(content: bytes) -> tuple[int, ...]:
    image = decode_image(content, 10_000)
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


def noise(mode: str, value: Any) -> PIL.Image.Image:
    return PIL.Image.new(mode, (4, 3), value)


def palette_with_transparency() -> bytes:
    image = noise("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encode(image, transparency=b"\xff\x00")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encode(noise("RGBA", (0, 0, 0, 0))), (255, 255, 255)),
        (encode(noise("RGBA", (200, 0, 0, 127))), (228, 128, 128)),
        (encode(noise("LA", (0, 0))), (255, 255, 255)),
        (palette_with_transparency(), (255, 255, 255)),
        (encode(noise("RGB", (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
        (encode(noise("I;16", 65535)), (255, 255, 255)),
        (encode(noise("I;16", 200)), (1, 1, 1)),
        (encode(noise("F", 0.5), "TIFF"), (128, 128, 128)),
        (encode(noise("I", 1000), "TIFF"), (4, 4, 4)),
        (encode(noise("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
        (encode(noise("1", 1)), (255, 255, 255)),
        (
            encode(
                noise("RGB", (255, 0, 0)), "GIF", save_all=True, append_images=[noise("RGB", 0)]
            ),
            (255, 0, 0),
        ),
    ],
)
def test_pixel_formats(content: bytes, expected: tuple[int, ...]) -> None:
    assert first_pixel(content) == expected


def test_exif_orientation() -> None:
    image = PIL.Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    places = []
    for orientation in range(1, 10):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        decoded = np.asarray(decode_image(encode(image, exif=exif), 100))
        places.append((decoded.shape[:2], *np.argwhere(decoded[..., 0] > 0)[0].tolist()))
    wide, high = (2, 4), (4, 2)
    assert places[:4] == [(wide, 0, 0), (wide, 0, 3), (wide, 1, 3), (wide, 1, 0)]
    assert places[4:] == [(high, 0, 0), (high, 0, 1), (high, 3, 1), (high, 3, 0), (wide, 0, 0)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_is_ignored() -> None:
    assert decode_image(picture(3, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), 100).size == (
        6,
        4,
    )


def bomb() -> bytes:
    """The header of a PNG of 60,000 x 60,000 pixels, without the pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + picture(1)[33:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", EMPTY_FILE),
        (b"hello", BROKEN_IMAGE),
        (picture(1, "JPEG")[:300], BROKEN_IMAGE),
        (picture(1)[:45], BROKEN_IMAGE),
        (bomb(), IMAGE_TOO_LARGE),
        (encode(PIL.Image.new("L", (101, 100))), IMAGE_TOO_LARGE),
    ],
)
def test_unusable_images(content: bytes, reason: str) -> None:
    with pytest.raises(UnusableImage) as raised:
        decode_image(content, 10_000)
    assert raised.value.reason == reason
    assert " at 0x" not in raised.value.detail


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(content: bytes) -> None:
    for prefix in (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"\xff\xd8\xff"):
        with pytest.raises(UnusableImage):
            decode_image(prefix + content, 10_000)


# --- Captions -------------------------------------------------------------------------------------


@given(st.text())
def test_normalising_is_idempotent_and_ignores_case_space_and_final_stops(text: str) -> None:
    once = normalize_caption(text)
    assert normalize_caption(once) == once
    assert normalize_caption(f"  {text} . ") == once
    assert once == once.casefold() == " ".join(once.split())


@pytest.mark.parametrize("text", ["A  dog\truns.", "a dog runs", "A DOG RUNS !!", "ａ dog runs…"])
def test_captions_that_are_the_same(text: str) -> None:
    assert normalize_caption(text) == "a dog runs"


# --- The Hub --------------------------------------------------------------------------------------


def test_a_hub_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_answers("jxie/coco_captions", "dataset")


def test_a_hub_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    release = threading.Event()

    class Hanging:
        def dataset_info(self, repo_id: str, timeout: float) -> None:
            release.wait()

        def model_info(self, repo_id: str, timeout: float) -> None:
            if repo_id != "known":
                raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "HfApi", Hanging)
    assert not hub_answers("someone/something", "dataset", timeout_seconds=0.05)
    release.set()
    assert hub_answers("known", "model")
    assert not hub_answers("unknown", "model")


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train_samples": 1}, "--max_train_samples must be >= 2"),
        ({"num_workers": -1}, "--num_workers must be >= 0"),
        ({"dataset": "imagenet"}, "--dataset must be one of auto"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataConfig(**settings)


def test_workers_do_not_make_results_stale() -> None:
    assert "num_workers" not in DataConfig().fingerprint_settings()

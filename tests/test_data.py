"""Reading pairs: cleaning, exact duplicates, reasons; the truth is what the tests make up."""

from __future__ import annotations

import hashlib
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.settings import InputError
from data import PairReader
from sources.base import (
    BROKEN_IMAGE,
    CAPTION_TOO_LONG,
    DAMAGED_CAPTION,
    DUPLICATE_PAIR,
    EMPTY_CAPTION,
    EMPTY_FILE,
    IMAGE_IN_ANOTHER_SPLIT,
    IMAGE_TOO_LARGE,
    IMAGE_TOO_SMALL,
    MISSING_CAPTION,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    UnusableImage,
    pair_id,
)
from sources.captions import caption_fault, normalize_caption
from sources.images import decode_image, decode_pixels
from sources.online import hub_answers
from sources.splits import IndexedSource, StreamSource
from tests.helpers import SMALL, encode, picture, read_all, record


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


def half_sha256(image: bytes, caption: str) -> str:
    return hashlib.sha256(image + caption.encode("utf-8")).digest()[:16].hex()


def texts_of(number: int, *texts: str | None, **places: Any) -> ImageRecord:
    """Captions that may be missing, each in a row of its own from 100 times the number."""
    captions = tuple(
        Caption(10 * number + i, text, row=100 * number + i) for i, text in enumerate(texts)
    )
    return replace(record(number), captions=captions, **places)


def test_the_name_of_a_pair_is_half_a_sha256() -> None:
    assert pair_id(b"ab", "c") == "ba7816bf8f01cfea414140de5dae2223"  # FIPS 180's "abc"
    assert pair_id(b"", "") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert pair_id(b"\x00", "été") == hashlib.sha256(b"\0\xc3\xa9t\xc3\xa9").hexdigest()[:32]


@given(st.binary(max_size=100), st.text())
def test_the_name_of_any_pair(image: bytes, caption: str) -> None:
    assert pair_id(image, caption) == half_sha256(image, caption)


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
        (encode(PIL.Image.new("L", (1, 4))), IMAGE_TOO_SMALL),
        (encode(PIL.Image.new("L", (4, 1))), IMAGE_TOO_SMALL),
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


LONGEST = "x" * 10_000
FAULTS: list[tuple[str | None, str, str]] = [
    (None, MISSING_CAPTION, ""),
    ("", EMPTY_CAPTION, ""),
    (" \t\n\u3000", EMPTY_CAPTION, ""),
    ("a \0 dog", DAMAGED_CAPTION, "it holds bytes that are no text"),
    ("a d\ufffdg", DAMAGED_CAPTION, "it holds bytes that are no text"),
    ("a dog\ud800", DAMAGED_CAPTION, "it holds bytes that are no text"),
    ("\udfff", DAMAGED_CAPTION, "it holds bytes that are no text"),
    (LONGEST + "x", CAPTION_TOO_LONG, "10,001 characters"),
]


@pytest.mark.parametrize(("text", "reason", "detail"), FAULTS)
def test_captions_that_cannot_be_used(text: str | None, reason: str, detail: str) -> None:
    assert caption_fault(text) == (reason, detail)


@pytest.mark.parametrize("text", ["a", " a ", "0", "\U0001f415", "\ud7ff\ue000", LONGEST])
def test_captions_that_can_be_used(text: str) -> None:
    assert caption_fault(text) is None


@given(st.text(st.characters(exclude_categories=[]), max_size=20))
def test_a_usable_caption_has_bytes(text: str) -> None:
    if caption_fault(text) is None:
        assert text.encode().decode().strip()
    else:
        assert not text.strip() or any(c in "\0\ufffd" or 0xD800 <= ord(c) <= 0xDFFF for c in text)


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

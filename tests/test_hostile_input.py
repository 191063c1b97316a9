"""Hostile data through every source, and runs that are cut short; the tests make all of it.

The rule: a run goes on without what it cannot use and says why, or it ends with one clear line;
nothing saved earlier is lost; memory stays bounded.
"""

from __future__ import annotations

import csv
import errno
import functools
import io
import json
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import main
import visualize
from artifacts.settings import InputError
from cli import auto
from data import PairReader, open_source
from encoders.pretrained import load_encoder
from sources import hub
from sources.base import (
    BROKEN_IMAGE,
    CAPTION_TOO_LONG,
    DAMAGED_CAPTION,
    DUPLICATE_KEY,
    DUPLICATE_PAIR,
    EMPTY_CAPTION,
    EMPTY_FILE,
    FILE_TOO_LARGE,
    IMAGE_IN_ANOTHER_SPLIT,
    IMAGE_TOO_LARGE,
    IMAGE_TOO_SMALL,
    MISSING_CAPTION,
    MISSING_FILE,
    OUTSIDE_FOLDER,
    UNREADABLE_FILE,
    Caption,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
)
from sources.embeddings import open_embeddings
from sources.images import decode_image, decode_pixels
from sources.parquet_images import DAMAGED_TABLE
from sources.tar import NO_PLAIN_MEMBER, TRUNCATED_SHARD
from sources.vectors import EMBEDDING_NOT_USABLE
from tests.helpers import encode, offline_datasets, picture, record, write
from tests.small_models import narrow
from tests.test_main import timeless

ROOMY: dict[str, Any] = {
    "max_train_samples": 1000,
    "max_val_samples": 1000,
    "max_test_samples": 1000,
}
N_GOOD = 20

Member = tuple[str, bytes | str] | tarfile.TarInfo

# Pillow's word for the EXIF block that is broken on purpose; outside of tests it is not shown.
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")


# --- The same pairs in every source ---------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A pair as it is written: file name, image, caption or whatever stands in its place."""

    name: str
    image: bytes
    caption: Any


def good(n: int = N_GOOD, first: int = 0) -> list[Item]:
    return [Item(f"good{i}.png", picture(i), f"good {i}") for i in range(first, first + n)]


def as_folder(root: Path, items: Sequence[Item]) -> dict[str, str]:
    write(root, {item.name: item.image for item in items})
    table = io.StringIO()
    rows = [("image", "caption"), *((item.name, item.caption or "") for item in items)]
    csv.writer(table).writerows(rows)
    write(root, {"captions.txt": table.getvalue()})
    return {"dataset": "folder", "data_dir": str(root)}


def as_json_lines(root: Path, items: Sequence[Item]) -> dict[str, str]:
    write(root, {item.name: item.image for item in items})
    lines = [json.dumps({"file_name": item.name, "caption": item.caption}) for item in items]
    write(root, {"metadata.jsonl": "\n".join(lines)})
    return {"dataset": "folder", "data_dir": str(root)}


def as_texts_beside(root: Path, items: Sequence[Item]) -> dict[str, str]:
    for number, item in enumerate(items):
        write(root, {f"{number:04d}{Path(item.name).suffix}": item.image})
        if item.caption is not None:
            write(root, {f"{number:04d}.txt": item.caption})
    return {"dataset": "folder", "data_dir": str(root)}


def as_coco(root: Path, items: Sequence[Item]) -> dict[str, str]:
    write(root, {f"train2017/{item.name}": item.image for item in items})
    content = {
        "images": [{"id": i, "file_name": item.name} for i, item in enumerate(items)],
        "annotations": [{"image_id": i, "caption": item.caption} for i, item in enumerate(items)],
    }
    write(root, {"annotations/captions_train2017.json": json.dumps(content)})
    return {"dataset": "coco", "data_dir": str(root)}


def tar(members: Sequence[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def as_shards(root: Path, items: Sequence[Item], *, as_json: bool = False) -> dict[str, str]:
    shards: dict[str, list[Member]] = {"0.tar": [], "1.tar": []}
    for number, item in enumerate(items):
        members = shards["0.tar" if number < len(items) // 2 else "1.tar"]
        members.append((f"{number:04d}{Path(item.name).suffix}", item.image))
        if as_json:
            members.append((f"{number:04d}.json", json.dumps({"caption": item.caption})))
        elif item.caption is not None:
            members.append((f"{number:04d}.txt", item.caption))
    write(root, {name: tar(members) for name, members in shards.items()})
    return {"dataset": "webdataset", "data_dir": str(root)}


def as_parquet(root: Path, items: Sequence[Item]) -> dict[str, str]:
    root.mkdir(parents=True, exist_ok=True)
    columns = {"image": [i.image for i in items], "caption": [i.caption for i in items]}
    pq.write_table(pa.table(columns), root / "0.parquet", row_group_size=7)
    return {"dataset": "parquet", "data_dir": str(root)}


def as_hf(root: Path, items: Sequence[Item]) -> dict[str, str]:
    datasets = hub._import_datasets()
    columns = {"image": [i.image for i in items], "caption": [i.caption for i in items]}
    datasets.Dataset.from_dict(columns).save_to_disk(root)
    return {"dataset": "hf", "hf_dataset": str(root)}


def as_hf_parquet(root: Path, items: Sequence[Item]) -> dict[str, str]:
    root.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": item.image, "path": item.name} for item in items]
    columns = {"image": cells, "caption": [item.caption for item in items]}
    pq.write_table(pa.table(columns), root / "0.parquet")
    return {"dataset": "hf", "hf_dataset": str(root)}


Writer = Callable[[Path, Sequence[Item]], dict[str, str]]
WITH_IMAGES: dict[str, Writer] = {
    "folder": as_folder,
    "coco": as_coco,
    "webdataset": as_shards,
    "parquet": as_parquet,
    "hf": as_hf,
}
ALL_WRITERS: dict[str, Writer] = {
    **WITH_IMAGES,
    "json lines": as_json_lines,
    "texts beside": as_texts_beside,
    "webdataset json": functools.partial(as_shards, as_json=True),
    "hf parquet": as_hf_parquet,
}


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        offline_datasets(tmp_path_factory.mktemp("cache"), patch)
        yield


@dataclass(frozen=True)
class Seen:
    """What a reader made of a source, by position."""

    captions: dict[int, str]
    keys: dict[int, str]
    pixels: dict[int, np.ndarray]
    reasons: dict[int, str]
    details: dict[int, str]


def drain(reader: PairReader) -> Seen:
    """A full read; every position is either kept or skipped, and that once."""
    images = {split: list(reader.images(split)) for split in ("test", "validation", "train")}
    pairs, skipped = reader.pairs(), reader.skipped()
    positions = [*pairs["position"], *skipped["position"]]
    assert len(set(positions)) == len(positions)
    pixels = {
        position: images[split][row].pixels
        for split, position, row in zip(
            pairs["split"], pairs["position"], pairs["image_row"], strict=True
        )
    }

    def by_position(table: pd.DataFrame, column: str) -> dict[int, str]:
        return dict(zip(table["position"].tolist(), table[column].tolist(), strict=True))

    return Seen(
        by_position(pairs, "caption"),
        by_position(pairs, "key") | by_position(skipped, "key"),
        pixels,
        by_position(skipped, "reason"),
        by_position(skipped, "detail"),
    )


def open_any(place: Mapping[str, Any], **changes: Any) -> tuple[PairSource, DataConfig]:
    config = DataConfig(**{"num_workers": 2} | ROOMY | dict(place) | changes)
    return open_source(config, rng=np.random.default_rng(0)), config


def read(place: Mapping[str, Any], **changes: Any) -> Seen:
    source, config = open_any(place, **changes)
    decode = decode_pixels(np.asarray, config.max_image_pixels)
    return drain(PairReader(source, config, decode=decode))


# --- A. Images ------------------------------------------------------------------------------------


def png(
    width: int, height: int, depth: int, colour: int, data: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG file laid out by hand; `data` is what its pixels' chunk decompresses to."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def compressed_text(n_bytes: int) -> tuple[bytes, bytes]:
    return b"zTXt", b"Comment\0\0" + zlib.compress(bytes(n_bytes), 9)


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(picture(5, "JPEG"))
    start = data.index(b"\xff\xc0")  # length, precision, height, width
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def circular_tiff(exif: bool) -> bytes:
    """2 x 2 pixels, 40 and 200; the next directory, and the one of EXIF, is the first again."""
    entries = [
        *((256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((273, 4, 1, 1000), (277, 3, 1, 1), (278, 3, 1, 2), (279, 4, 1, 4)),
    ]
    entries += [(34665, 4, 1, 8)] if exif else []
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)
    return head.ljust(1000, b"\0") + 2 * bytes([40, 200])


def two_colours(size: tuple[int, int] = (16, 8)) -> PIL.Image.Image:
    """Left half red, right half blue."""
    image = PIL.Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return image


def turned(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encode(two_colours(), "JPEG", quality=95, subsampling=0, exif=exif)


def frames(format_name: str, **options: Any) -> bytes:
    """An animation: first red, then blue."""
    first, second = (PIL.Image.new("RGB", (6, 4), c) for c in ((255, 0, 0), (0, 0, 255)))
    return encode(first, format_name, save_all=True, append_images=[second], **options)


NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
DRAWING = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'

Colours = dict[tuple[int, int], tuple[int, int, int]]  # by row and column
# Height, width and colours within a tolerance; or the reason, and what its detail says.
USABLE: dict[str, tuple[str, bytes, tuple[int, int], Colours, int]] = {
    "CMYK": (  # no cyan, all magenta and yellow: red, as far as JPEG goes
        *("jpg", encode(PIL.Image.new("CMYK", (16, 8), (0, 255, 255, 0)), "JPEG"), (8, 16)),
        *({(0, 0): (255, 0, 0), (7, 15): (255, 0, 0)}, 8),
    ),
    "16 bits grey": (
        *("png", png(2, 2, 16, 0, 2 * (b"\0" + struct.pack(">HH", 0x8000, 0xFFFF))), (2, 2)),
        *({(0, 0): (128, 128, 128), (0, 1): (255, 255, 255)}, 1),
    ),
    "16 bits colour": (
        "png",
        png(2, 2, 16, 2, 2 * (b"\0" + 2 * struct.pack(">HHH", 0x1280, 0x8000, 0xFF80))),
        *((2, 2), {(0, 0): (0x12, 0x80, 0xFF)}, 1),
    ),
    "palette with transparency": (
        "png",
        png(
            2,
            2,
            8,
            3,
            b"\0\0\1" * 2,
            (b"PLTE", bytes([9, 9, 9, 10, 200, 30])),
            (b"tRNS", b"\0\xff"),
        ),
        *((2, 2), {(0, 0): (255, 255, 255), (0, 1): (10, 200, 30)}, 0),
    ),
    "RGBA": (  # 200 * 0.2 + 255 * 0.8
        *("png", png(2, 2, 8, 6, 2 * (b"\0" + 2 * bytes([200, 0, 0, 51]))), (2, 2)),
        *({(0, 0): (244, 204, 204)}, 1),
    ),
    "grey and alpha": (
        *("png", png(2, 2, 8, 4, 2 * bytes([0, 100, 51, 100, 255])), (2, 2)),
        *({(0, 0): (224, 224, 224), (0, 1): (100, 100, 100)}, 1),
    ),
    "broken EXIF": (
        "jpg",
        encode(
            two_colours(), "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
        ),
        *((8, 16), {(4, 2): (255, 0, 0), (4, 13): (0, 0, 255)}, 8),
    ),
    # To be turned clockwise: what is left comes to the top.
    "EXIF orientation 6": (
        *("jpg", turned(6), (16, 8), {(2, 4): (255, 0, 0), (13, 4): (0, 0, 255)}, 8),
    ),
    "EXIF orientation 3": (
        *("jpg", turned(3), (8, 16), {(4, 2): (0, 0, 255), (4, 13): (255, 0, 0)}, 8),
    ),
    "2 x 20,000": (
        *("png", png(2, 20_000, 8, 0, b"\0\x4d\x4d" * 20_000), (20_000, 2)),
        *({(0, 0): (77, 77, 77), (19_999, 0): (77, 77, 77)}, 0),
    ),
    "animated GIF": ("jpg", frames("GIF"), (4, 6), {(0, 0): (255, 0, 0), (3, 5): (255, 0, 0)}, 0),
    "animated PNG": ("png", frames("PNG"), (4, 6), {(0, 0): (255, 0, 0), (3, 5): (255, 0, 0)}, 0),
    "animated WebP": (
        *("webp", frames("WEBP", lossless=True), (4, 6)),
        *({(0, 0): (255, 0, 0), (3, 5): (255, 0, 0)}, 0),
    ),
    "TIFF with a circle": (
        *("png", circular_tiff(exif=False), (2, 2)),
        *({(0, 0): (40, 40, 40), (0, 1): (200, 200, 200)}, 0),
    ),
    "TIFF with a circle in EXIF": (
        *("png", circular_tiff(exif=True), (2, 2)),
        *({(0, 0): (40, 40, 40), (0, 1): (200, 200, 200)}, 0),
    ),
    "more data than pixels": (
        *("png", png(2, 2, 8, 0, 2 * bytes([0, 8, 9]) + bytes(2**25)), (2, 2)),
        *({(0, 0): (8, 8, 8), (0, 1): (9, 9, 9)}, 0),
    ),
}
UNUSABLE: dict[str, tuple[str, bytes, str, str]] = {
    "truncated JPEG": ("jpg", encode(NOISE, "JPEG")[:1500], BROKEN_IMAGE, "truncated"),
    "truncated PNG": ("png", encode(NOISE)[:1500], BROKEN_IMAGE, "truncated"),
    "empty": ("png", b"", EMPTY_FILE, ""),
    "web page": ("jpg", PAGE, BROKEN_IMAGE, "cannot identify image file"),
    "drawing": ("png", DRAWING, BROKEN_IMAGE, "cannot identify image file"),
    "text": ("png", b"not an image", BROKEN_IMAGE, "cannot identify image file"),
    # Pillow would have Ghostscript run it.
    "program": ("jpg", encode(NOISE, "EPS"), BROKEN_IMAGE, "cannot identify image file"),
    "icon": ("png", encode(NOISE, "ICO", sizes=[(64, 64)]), BROKEN_IMAGE, "cannot identify"),
    "huge PNG": ("png", png(10**5, 10**5, 8, 2, b""), IMAGE_TOO_LARGE, "100000 x 100000"),
    "1 x 1": (
        *("png", png(1, 1, 8, 2, bytes([0, 1, 2, 3])), IMAGE_TOO_SMALL),
        "1 x 1: a side has fewer than 2 pixels",
    ),
    "1 x 20,000": (
        *("png", png(1, 20_000, 8, 0, b"\0\x4d" * 20_000), IMAGE_TOO_SMALL, "1 x 20000: a side"),
    ),
    "20,000 x 1": ("jpg", jpeg_that_claims(20_000, 1), IMAGE_TOO_SMALL, "20000 x 1: a side"),
    "huge JPEG": ("jpg", jpeg_that_claims(65_500, 65_500), IMAGE_TOO_LARGE, "65500 x 65500"),
    "text bomb": (
        *("png", png(2, 2, 8, 0, 2 * b"\0\7\7", compressed_text(2**26)), BROKEN_IMAGE),
        "too large",
    ),
    "many texts": (
        *("png", png(2, 2, 8, 0, 2 * b"\0\7\7", *[compressed_text(2**20 - 99)] * 80), BROKEN_IMAGE),
        "Too much memory",
    ),
    "profile bomb": (
        "png",
        png(2, 2, 8, 0, 2 * b"\0\7\7", (b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**26), 9))),
        *(BROKEN_IMAGE, "too large"),
    ),
}
PICTURES = {name: case[:2] for name, case in (USABLE | UNUSABLE).items()}


def pictures() -> list[Item]:
    """Every hostile picture under a number, good ones after them."""
    named = enumerate(PICTURES.items())
    items = [Item(f"p{i:02d}.{ext}", data, f"{name} {i}") for i, (name, (ext, data)) in named]
    return [*items, *good()]


@pytest.fixture(scope="module", params=WITH_IMAGES)
def pictures_seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    place = WITH_IMAGES[request.param](tmp_path_factory.mktemp("pictures") / "in", pictures())
    return read(place)


@pytest.mark.parametrize("name", USABLE)
def test_pictures_that_look_odd_are_used(pictures_seen: Seen, name: str) -> None:
    number = list(PICTURES).index(name)
    _, _, size, colours, tolerance = USABLE[name]
    assert pictures_seen.captions[number] == f"{name} {number}"
    pixels = pictures_seen.pixels[number]
    assert pixels.shape == (*size, 3)
    for place, colour in colours.items():
        np.testing.assert_allclose(pixels[place].astype(int), colour, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", UNUSABLE)
def test_pictures_that_cannot_be_used_are_listed(pictures_seen: Seen, name: str) -> None:
    number = list(PICTURES).index(name)
    _, _, reason, detail = UNUSABLE[name]
    assert pictures_seen.reasons[number] == reason
    assert detail in pictures_seen.details[number]
    assert " at 0x" not in pictures_seen.details[number]  # an address differs by run


def test_pictures_take_no_others_along(pictures_seen: Seen) -> None:
    assert len(pictures_seen.reasons) == len(UNUSABLE)
    assert sorted(pictures_seen.keys) == [*range(len(PICTURES) + N_GOOD)]
    for number in range(N_GOOD):
        assert tuple(pictures_seen.pixels[len(PICTURES) + number][0, 0]) == (number, 0, 7)


@pytest.mark.parametrize("source", WITH_IMAGES)
def test_the_limit_of_pixels_is_the_users(tmp_path: Path, source: str) -> None:
    sizes = {0: (100, 100), 1: (101, 100), 2: (1, 10_001)}
    items = [
        Item(f"{i}.png", encode(PIL.Image.new("L", s, i)), f"large {i}") for i, s in sizes.items()
    ]
    place = WITH_IMAGES[source](tmp_path / "in", [*items, *good()])
    seen = read(place, max_image_pixels=10_000)
    assert seen.reasons == {1: IMAGE_TOO_LARGE, 2: IMAGE_TOO_LARGE}
    assert seen.details == {1: "101 x 100", 2: "1 x 10001"}


def test_the_limit_of_pixels_may_be_above_that_of_pillow() -> None:
    data = png(200_000, 1000, 8, 0, b"")  # no pixels: whoever goes on after the header finds out
    for limit, reason in ((2 * 10**8 - 1, IMAGE_TOO_LARGE), (2 * 10**8, BROKEN_IMAGE)):
        with pytest.raises(UnusableImage) as raised:
            decode_image(data, limit)
        assert raised.value.reason == reason


# --- B. Captions ----------------------------------------------------------------------------------

LONG = "x" * 100_000
BAD_TEXTS: dict[str, tuple[str, str]] = {
    "empty": ("", EMPTY_CAPTION),
    "blank": (" \t\u3000\u2003 ", EMPTY_CAPTION),
    "long": (LONG, CAPTION_TOO_LONG),
    "NUL": ("a \0 dog", DAMAGED_CAPTION),
    "replacement": ("a d\ufffdg", DAMAGED_CAPTION),
}
GOOD_TEXTS = [
    *("שלום עולם", "\u202eكلب في الحديقة\u202c", "👩‍👩‍👧 🏳️‍🌈 🐕", "犬が走る"),
    *(
        "e\u0301te\u0301",
        "ＦＵＬＬ ½ ﬁ",
        "100% %s {0} \\n $HOME",
        '"quoted", and; more\tthan',
        "=1+1",
    ),
]


@pytest.mark.parametrize("source", ALL_WRITERS)
def test_captions_of_every_kind(tmp_path: Path, source: str) -> None:
    texts = [text for text, _ in BAD_TEXTS.values()]
    items = [Item(f"{i:02d}.png", picture(100 + i), t) for i, t in enumerate([*texts, *GOOD_TEXTS])]
    items.append(Item("99.png", picture(99), None))
    seen = read(ALL_WRITERS[source](tmp_path / "in", [*items, *good()]))
    expected = dict(enumerate(reason for _, reason in BAD_TEXTS.values()))
    # A table of text has no other word for what is missing.
    expected[len(items) - 1] = EMPTY_CAPTION if source == "folder" else MISSING_CAPTION
    assert seen.reasons == expected
    assert seen.details[2] == "100,000 characters"
    kept = {len(texts) + i: text for i, text in enumerate(GOOD_TEXTS)}
    assert {position: seen.captions[position] for position in kept} == kept


JSON_CELLS: list[tuple[object, list[str | None]]] = [  # reasons, None for what is kept
    ("\ud83d alone", [DAMAGED_CAPTION]),
    ("\udc36\ud83d", [DAMAGED_CAPTION]),
    (7, [MISSING_CAPTION]),
    (True, [MISSING_CAPTION]),
    ({"text": "a dog"}, [None]),
]
LIST_CELLS: list[tuple[object, list[str | None]]] = [
    (
        ["", None, "kept", "  ", "kept too"],
        [EMPTY_CAPTION, MISSING_CAPTION, None, EMPTY_CAPTION, None],
    ),
    ([], [MISSING_CAPTION]),
    ([None], [MISSING_CAPTION]),
]
CELLS: dict[str, list[tuple[object, list[str | None]]]] = {
    "json lines": [*JSON_CELLS, *LIST_CELLS, ([7, "of a number"], [MISSING_CAPTION, None])],
    "webdataset json": [*JSON_CELLS, *LIST_CELLS, ([7, "of a number"], [MISSING_CAPTION, None])],
    "coco": [*JSON_CELLS, (["a", "list"], [None, None])],
    "parquet": LIST_CELLS,
    "hf": LIST_CELLS,
    "hf parquet": LIST_CELLS,
}


@pytest.mark.parametrize("source", CELLS)
def test_cells_that_are_no_text(tmp_path: Path, source: str) -> None:
    cells = CELLS[source]
    items = [Item(f"{i:02d}.png", picture(100 + i), cell) for i, (cell, _) in enumerate(cells)]
    is_list = cells is LIST_CELLS
    items += [Item(i.name, i.image, [i.caption] if is_list else i.caption) for i in good()]
    seen = read(ALL_WRITERS[source](tmp_path / "in", items))
    outcomes = [reason for _, reasons in cells for reason in reasons]
    assert seen.reasons == {i: reason for i, reason in enumerate(outcomes) if reason is not None}
    assert sorted(seen.keys) == [*range(len(outcomes) + N_GOOD)]


def test_escapes_that_belong_together_are_one_character(tmp_path: Path) -> None:
    items = [Item("dog.png", picture(50), "\U0001f436"), *good()]
    for source in ("json lines", "webdataset json", "coco"):
        place = ALL_WRITERS[source](tmp_path / source, items)
        written = "".join(
            p.read_bytes().decode("latin-1") for p in (tmp_path / source).rglob("*") if p.is_file()
        )
        assert "\\ud83d\\udc36" in written
        assert read(place).captions[0] == "\U0001f436"


RAW_TEXTS: list[tuple[bytes, str | None, str | None]] = [  # bytes, text, reason
    ("café".encode("cp1252"), "café", None),
    (b"\x81\x8d\x8f", None, DAMAGED_CAPTION),  # no letters of Windows-1252 either
    ("vu à midi".encode(), "vu à midi", None),
]


@pytest.mark.parametrize("source", ["folder", "texts beside", "webdataset"])
def test_texts_that_are_no_utf8(
    tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = [text for text, _, _ in RAW_TEXTS]
    if source == "folder":
        items = [Item(f"{i}.png", picture(100 + i), f"RAW{i}") for i in range(len(raw))]
        place = as_folder(tmp_path / "in", [*items, *good()])
        table = tmp_path / "in/captions.txt"
        data = table.read_bytes()
        for i, text in enumerate(raw):
            data = data.replace(b"RAW%d" % i, text)
        table.write_bytes(data)
    else:
        items = [Item(f"{i}.png", picture(100 + i), text) for i, text in enumerate(raw)]
        place = ALL_WRITERS[source](tmp_path / "in", [*items, *good()])
    seen = read(place)
    assert seen.reasons == {1: DAMAGED_CAPTION}
    assert [seen.captions[i] for i in (0, 2)] == ["café", "vu à midi"]
    assert "not UTF-8" in caplog.text


def not_utf8(n_good: int) -> Any:
    """A column of text in which the first two cells are no UTF-8, which Arrow does not see."""
    cells = [b"caf\xe9", b"\xed\xa0\x80 lone", *(b"good %d" % i for i in range(n_good))]
    return pa.array(cells, pa.binary()).view(pa.string())


@pytest.mark.parametrize("source", ["parquet", "hf", "hf parquet"])
def test_tables_whose_text_is_no_utf8(tmp_path: Path, source: str) -> None:
    images = [picture(i) for i in range(N_GOOD + 2)]
    table = pa.table({"image": images, "caption": not_utf8(N_GOOD)})
    if source == "hf":
        hub._import_datasets().Dataset(table).save_to_disk(tmp_path / "in")
    else:
        (tmp_path / "in").mkdir()
        pq.write_table(table, tmp_path / "in/0.parquet")
    flag = "data_dir" if source == "parquet" else "hf_dataset"
    seen = read({"dataset": source.split()[0], flag: str(tmp_path / "in")})
    assert seen.reasons == {0: DAMAGED_CAPTION, 1: DAMAGED_CAPTION}
    assert len(seen.captions) == N_GOOD


@pytest.mark.parametrize("source", ["parquet", "hf", "hf parquet"])
def test_columns_of_numbers_get_one_line(tmp_path: Path, source: str) -> None:
    items = [Item(item.name, item.image, i) for i, item in enumerate(good())]
    with pytest.raises(InputError, match=r"^--caption_column caption holds int"):
        open_any(ALL_WRITERS[source](tmp_path / "in", items))


DAMAGED_ANNOTATIONS = {
    "no UTF-8": b'{"images": [{"id": 1, "file_name": "caf\xe9.png"}], "annotations": []}',
    "deep": b"[" * 200_000,
    "no object": b"7",
    "cut": b'{"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"ima',
    "no lists": b'{"images": 7, "annotations": null}',
    "lists for numbers": b'{"images": [{"id": [1], "file_name": "1.png"}], "annotations": []}',
}


@pytest.mark.parametrize("content", DAMAGED_ANNOTATIONS.values(), ids=DAMAGED_ANNOTATIONS)
def test_damaged_annotations_get_one_line(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"annotations/captions_train2017.json": content})
    with pytest.raises(InputError, match=r"^[^\n]*captions_train2017.json is damaged[^\n]*$"):
        open_any({"dataset": "coco", "data_dir": str(tmp_path)})


@pytest.mark.parametrize(
    "line", ["[" * 200_000, "7", '{"file_name": "a.png", "caption": ', "{} {}"]
)
def test_damaged_lines_get_one_line(tmp_path: Path, line: str) -> None:
    place = as_json_lines(tmp_path, good(3))
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write("\n" + line)
    with pytest.raises(InputError, match=r"^[^\n]*metadata.jsonl, line 4: not a JSON object"):
        open_any(place)


# --- C. Names and structure -----------------------------------------------------------------------

NAMES = [
    *(
        "a b.png",
        " lead.png".strip(),
        "\u00e9te.png",
        "e\u0301te.png",
        "new\nline.png",
        "tab\t.png",
    ),
    *("100%.png", "%s%d%n.png", "x" * 240 + ".png", "deep/er/and deeper/ü.png", "犬🐕.png"),
    *("'single' \"double\".png", "-rf.png", "semi;colon,comma|bar.png", "a#2.png", "$HOME.png"),
    *("{a,b}.png", "*.png", "back`tick.png"),
]


def named_items() -> list[Item]:
    return [Item(name, picture(100 + i), f"named {i}") for i, name in enumerate(NAMES)]


@pytest.mark.parametrize("source", ["folder", "json lines", "coco"])
def test_names_of_files(tmp_path: Path, source: str) -> None:
    seen = read(ALL_WRITERS[source](tmp_path / "in", [*named_items(), *good()]))
    assert seen.reasons == {}
    prefix = "train2017/" if source == "coco" else ""
    for i, name in enumerate(NAMES):
        assert seen.keys[i] == prefix + name
        assert tuple(seen.pixels[i][0, 0]) == (100 + i, 0, 7)


def test_names_of_files_beside_tables(tmp_path: Path) -> None:
    items = [*named_items(), *good()]
    write(tmp_path, {f"photos/{item.name}": item.image for item in items})
    columns = {
        "file_name": [f"photos/{item.name}" for item in items],
        "caption": [item.caption for item in items],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    seen = read({"dataset": "parquet", "data_dir": str(tmp_path)})
    assert seen.reasons == {}
    assert [int(seen.pixels[i][0, 0, 0]) for i in range(len(NAMES))] == [
        100 + i for i in range(len(NAMES))
    ]


def test_names_in_shards(tmp_path: Path) -> None:
    members: list[Member] = []
    for item in [*named_items(), *good()]:
        members += [(item.name, item.image), (item.name.replace(".png", ".txt"), item.caption)]
    write(tmp_path, {"100% über\nshard.tar": tar(members)})
    seen = read({"dataset": "webdataset", "data_dir": str(tmp_path)})
    assert seen.reasons == {}
    for i, name in enumerate(NAMES):
        assert seen.keys[i] == "100% über\nshard/" + name.removesuffix(".png")
        assert tuple(seen.pixels[i][0, 0]) == (100 + i, 0, 7)


def test_ids_of_tables(tmp_path: Path) -> None:
    items = [*named_items(), *good()]
    columns = {"image": [i.image for i in items], "caption": [i.caption for i in items]}
    columns["cocoid"] = [item.name for item in items]
    hub._import_datasets().Dataset.from_dict(columns).save_to_disk(tmp_path / "hf")
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "parquet/t.parquet")
    for place in (
        {"dataset": "hf", "hf_dataset": str(tmp_path / "hf")},
        {"dataset": "parquet", "data_dir": str(tmp_path / "parquet")},
    ):
        seen = read(place)
        assert seen.reasons == {}
        assert [seen.keys[i] for i in range(len(NAMES))] == [f"train/{name}" for name in NAMES]


@pytest.mark.parametrize("source", ["folder", "json lines", "coco", "parquet"])
def test_links_out_loops_and_what_is_no_file(tmp_path: Path, source: str) -> None:
    secret = write(tmp_path, {"secret.png": picture(250)}) / "secret.png"
    names = ["link.png", "loop.png", "broken.png", "pipe.png", "folder.png", "gone.png"]
    names += ["../secret.png" if source != "coco" else "../../secret.png", "inside.png"]
    names += ["again/inside.png"]  # through a link to the folder itself
    items = [Item(name, b"", f"named {i}") for i, name in enumerate(names)]
    root = tmp_path / "in"
    if source == "parquet":
        write(root, {item.name: item.image for item in good()})
        columns = {
            "file_name": [item.name for item in [*items, *good()]],
            "caption": [item.caption for item in [*items, *good()]],
        }
        pq.write_table(pa.table(columns), root / "t.parquet")
        place = {"dataset": "parquet", "data_dir": str(root)}
    else:
        place = ALL_WRITERS[source](root, [*items, *good()])
        for name in names:
            os.remove(os.path.normpath((root / "train2017" if source == "coco" else root) / name))
        write(tmp_path, {"secret.png": picture(250)})
        (root / "train2017/again" if source == "coco" else root / "again").rmdir()
    images = root / "train2017" if source == "coco" else root
    (images / "link.png").symlink_to(secret)
    (images / "loop.png").symlink_to("loop.png")
    (images / "broken.png").symlink_to("nowhere")
    os.mkfifo(images / "pipe.png")  # reading it would wait for ever
    (images / "folder.png").mkdir()
    (images / "inside.png").symlink_to("good0.png")
    (images / "again").symlink_to(images)
    seen = read(place)
    expected = dict.fromkeys(range(6), MISSING_FILE)
    expected |= {0: OUTSIDE_FOLDER, 1: UNREADABLE_FILE, 6: OUTSIDE_FOLDER}
    inside = {7, 8, len(items)}  # one image under three names
    assert {i: r for i, r in seen.reasons.items() if i not in inside} == expected
    assert set(seen.reasons.values()) <= {*expected.values(), IMAGE_IN_ANOTHER_SPLIT}
    assert not any((pixels[0, 0] == 250).any() for pixels in seen.pixels.values())


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_shards_of_every_bad_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    members: list[Member] = []
    for item in good():
        stem = item.name.removesuffix(".png")
        members += [(item.name, item.image), (f"{stem}.txt", item.caption)]
        members += [(f"{stem}.pkl", trap), (f"{stem}.pth", trap), (f"{stem}.npy", trap)]
    hostile: list[Member] = [
        *(("../up.png", picture(30)), ("../up.txt", "up")),
        *(("/absolute.png", picture(31)), ("/absolute.txt", "absolute")),
        *(special("link.png", tarfile.SYMTYPE, "/etc/passwd"), ("link.txt", "link")),
        special("linked.png", tarfile.SYMTYPE, "../secret.png"),  # without a text
        special("hard.png", tarfile.LNKTYPE, "/etc/passwd"),
        special("device.png", tarfile.CHRTYPE),
        *(("text.png", picture(32)), special("text.txt", tarfile.SYMTYPE, "/etc/passwd")),
        *(("same.png", picture(33)), ("same.txt", "first"), ("x.png", picture(34)), ("x.txt", "x")),
        ("same.png", picture(35)),  # the key comes again, without a text
        *(("alone.png", picture(36)), ("lonely.txt", "no picture")),
    ]
    cut = tar([("a.png", picture(40)), ("a.txt", "whole"), ("b.png", picture(41) + bytes(9999))])
    files: dict[str, bytes | str] = {
        "in/1.tar": tar(members),
        "in/2.tar": tar([("good0.png", picture(50)), ("good0.txt", "the same key elsewhere")]),
        "in/3.tar": tar(hostile),
        "in/4.tar": cut[:-9000],
        "in/5.tar": tar([("readme.md", "nothing"), ("weights.pth", trap), ("w.pkl", trap)]),
        "in/6.tar": b"no tar file" * 999,
        "in/7.tar": b"",
        "out.tar": tar([("secret.png", picture(60)), ("secret.txt", "secret")]),
        "secret.png": picture(61),
    }
    write(tmp_path, files)
    (tmp_path / "in/8.tar").symlink_to("../out.tar")
    (tmp_path / "in/9.tar").symlink_to("9.tar")
    seen = read({"dataset": "webdataset", "data_dir": str(tmp_path / "in")})
    reasons = {seen.keys[position]: reason for position, reason in seen.reasons.items()}
    assert reasons == {
        "3/../up": OUTSIDE_FOLDER,
        "3//absolute": OUTSIDE_FOLDER,
        "3/link": NO_PLAIN_MEMBER,
        "3/linked": NO_PLAIN_MEMBER,
        "3/hard": NO_PLAIN_MEMBER,
        "3/device": NO_PLAIN_MEMBER,
        "3/text": NO_PLAIN_MEMBER,
        "3/same#2": DUPLICATE_KEY,
        "3/alone": MISSING_CAPTION,
        "3/lonely": MISSING_FILE,
        "4/b": TRUNCATED_SHARD,
    }
    kept = {seen.keys[position] for position in seen.captions}
    assert kept == {f"1/good{i}" for i in range(N_GOOD)} | {"2/good0", "3/same", "3/x", "4/a"}
    for left_out in ("5.tar", "6.tar", "7.tar", "8.tar", "9.tar"):
        assert left_out in caplog.text
    assert not sprung.exists()
    pickle.loads(trap)  # noqa: S301 - it was a trap
    assert sprung.exists()


def test_a_problem_known_at_opening_goes_before_everything() -> None:
    def must_not_be_read() -> bytes:
        raise AssertionError("it was read")

    known = ImageRecord(
        "known",
        must_not_be_read,
        (Caption(0, None), Caption(1, ""), Caption(2, "usable")),
        problem=UnusableImage("a reason", "known before"),
    )

    class Few(PairSource):
        def records(self, split: str) -> Iterator[ImageRecord]:
            first = [known] if split == "test" else []
            number = {"test": 1, "validation": 2, "train": 3}[split]
            return iter([*first, record(number, "usable")])

    config = DataConfig(**ROOMY, num_workers=0)
    reader = PairReader(Few("few", "a test", "0"), config, decode=decode_pixels(np.asarray, 100))
    seen = drain(reader)
    assert seen.reasons == dict.fromkeys(range(3), "a reason")
    assert seen.details == dict.fromkeys(range(3), "known before")
    assert sorted(seen.captions) == [10, 20, 30]


def test_a_damaged_row_group_is_listed(tmp_path: Path) -> None:
    columns = {
        "image": [picture(i) + bytes([i]) * 3000 for i in range(40)],
        "caption": [f"of {i}" for i in range(40)],
    }
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table(columns), path, row_group_size=10, use_dictionary=False, write_page_checksum=True
    )
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    end = chunk.data_page_offset + chunk.total_compressed_size
    data[end - 600 : end - 500] = b"\xff" * 100
    path.write_bytes(data)
    seen = read({"dataset": "parquet", "data_dir": str(tmp_path)})
    assert seen.reasons == dict.fromkeys(range(20, 30), DAMAGED_TABLE)
    assert sorted(seen.captions) == [*range(20), *range(30, 40)]


# --- Embeddings that exist already ----------------------------------------------------------------


def as_embeddings(root: Path, n: int = 60) -> tuple[dict[str, str], dict[int, str]]:
    """Embeddings of clustered pairs, every third of them no use; the reasons by position."""
    rng = np.random.default_rng(1)
    topics = rng.normal(size=(3, 16))
    images, texts = (topics[np.arange(n) % 3] + 0.3 * rng.normal(size=(n, 16)) for _ in range(2))
    captions: list[str | None] = [f"topic {i % 3} number {i}" for i in range(n)]
    expected: dict[int, str] = {}
    bad_rows = (np.nan, np.inf, -np.inf, 0.0, 1e-12)
    for number, position in enumerate(range(0, n, 3)):
        if number % 2:
            (images if number % 4 == 1 else texts)[position] = bad_rows[number // 2 % len(bad_rows)]
            expected[position] = EMBEDDING_NOT_USABLE
        else:
            bad = [(None, MISSING_CAPTION), *BAD_TEXTS.values()][number // 2 % 6]
            captions[position], expected[position] = bad
    for folder, rows in (("img_emb", images), ("text_emb", texts)):
        (root / folder).mkdir(parents=True)
        np.save(root / folder / f"{folder}_0.npy", rows.astype(np.float32))
    (root / "metadata").mkdir()
    pq.write_table(pa.table({"caption": captions}), root / "metadata/metadata_0.parquet")
    return {"embeddings_dir": str(root)}, expected


def read_embeddings(root: Path) -> Seen:
    config = DataConfig(embeddings_dir=str(root), **ROOMY, num_workers=0)
    files = open_embeddings(config, np.random.default_rng(0))
    return drain(PairReader(files.source, config, decode=files.decode))


def test_embeddings_without_a_direction_are_listed(tmp_path: Path) -> None:
    _, expected = as_embeddings(tmp_path)
    seen = read_embeddings(tmp_path)
    assert seen.reasons == expected
    assert sorted(seen.keys) == [*range(60)]


def test_embeddings_of_objects_are_refused_unopened(tmp_path: Path) -> None:
    as_embeddings(tmp_path / "in")
    sprung = tmp_path / "sprung"
    np.save(tmp_path / "in/img_emb/img_emb_0.npy", np.array([[Trap(sprung)]] * 60, object))
    with pytest.raises(InputError, match=r"^--embeddings_dir [^\n]*img_emb_0.npy[^\n]*$"):
        read_embeddings(tmp_path / "in")
    assert not sprung.exists()


def test_an_embedding_of_no_use_goes_before_its_caption(tmp_path: Path) -> None:
    as_embeddings(tmp_path)
    captions = ["" if i in (0, 3) else f"pair {i}" for i in range(60)]  # only row 3 is no use
    pq.write_table(pa.table({"caption": captions}), tmp_path / "metadata/metadata_0.parquet")
    reasons = read_embeddings(tmp_path).reasons
    assert (reasons[0], reasons[3]) == (EMPTY_CAPTION, EMBEDDING_NOT_USABLE)


# --- D. Whole runs --------------------------------------------------------------------------------

QUICK = (
    "--n_clusters 3 --samples_per_cluster 3 --influence_budget 1 --num_epochs 1 --n_seeds 1 "
    "--influence_seeds 1 --held_out_repeats 1 --removal_folds 0 --batch_size 8 --embed_dim 16 "
    "--device cpu --num_workers 2 --methods influencespace random "
    "--max_train_samples 1000 --max_val_samples 1000 --max_test_samples 1000"
).split()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without figures, which other tests look at, and with one encoder for all of them."""
    monkeypatch.setattr("visualize.figures", lambda summary: {})
    monkeypatch.setattr(auto, "load_encoder", _load_encoder_once)
    narrow(monkeypatch)


@functools.cache
def _load_encoder_once(config: Any, *, device: Any) -> Any:
    return load_encoder(config, device=device)


def flags_of(place: Mapping[str, str]) -> list[str]:
    flags = [text for name, value in place.items() for text in (f"--{name}", value)]
    return flags if "embeddings_dir" in place else [*flags, "--encoder_model", "embedded"]


def run(out: Path, *flags: str) -> int:
    return main.main([*QUICK, *flags, "--output_dir", str(out)])


def half_hostile() -> tuple[list[Item], dict[int, str]]:
    """Pairs of which about half are no use, and why, by position; the last two are one pair."""
    rng = np.random.default_rng(0)
    bad: list[tuple[Item, str]] = []
    for name, (extension, data, reason, _) in UNUSABLE.items():
        bad += [
            (Item(f"bad/{name} {i}.{extension}", data + bytes(i), name), reason) for i in (0, 1)
        ]
    bad = [(item, reason) for item, reason in bad if item.image != b"\0"]
    for name, (text, reason) in BAD_TEXTS.items():
        bad += [
            (Item(f"text/{name} {i}.png", picture(300 + len(bad) + i), text), reason)
            for i in (0, 1)
        ]
    items = [item for item, _ in bad]
    for number in range(40):
        shade = tuple(int(v) for v in rng.integers(0, 255, 3))
        image = encode(PIL.Image.new("RGB", (16, 16), shade))
        items.append(Item(f"good/{number}.png", image, f"a square {number} of shade {shade[0]}"))
    twin = items[-1]
    items.append(Item("good/twin.png", twin.image, f"{twin.caption.upper()} !"))
    return items, dict(enumerate(reason for _, reason in bad))


def page_counts(out: Path) -> dict[tuple[str, str, str], int]:
    """Pairs by split, decision and reason as the results page counts them; the sum is there too."""
    page = (out / "results/results.md").read_text()
    section = page.split("## What happened to every pair")[1].split("## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line]
    counts = {(s, d, r): int(n.replace(",", "")) for s, d, r, n in lines[2:-1]}
    assert lines[-1][-1] == f"**{sum(counts.values()):,}**"
    return counts


RUN_SOURCES = [*WITH_IMAGES, "texts beside", "hf parquet", "embeddings"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("source", RUN_SOURCES)
def test_a_run_on_half_hostile_data(tmp_path: Path, source: str) -> None:
    twins: tuple[int, ...] = ()
    if source == "embeddings":
        place, expected = as_embeddings(tmp_path / "in")
        n = 60
    else:
        items, expected = half_hostile()
        n, twins = len(items), (len(items) - 2, len(items) - 1)
        place = ALL_WRITERS[source](tmp_path / "in", items)
    assert run(tmp_path / "out", *flags_of(place)) == 0
    ledger = pd.read_parquet(tmp_path / "out/stage3/ledger.parquet")
    assert ledger["position"].tolist() == [*range(n)]  # every pair, once
    lost = ledger[ledger["decision"] == "skipped"].set_index("position")["reason"].to_dict()
    skipped = pd.read_csv(tmp_path / "out/stage1/skipped.csv", keep_default_na=False)
    assert skipped.set_index("position")["reason"].to_dict() == lost
    if twins:  # which of the two stays depends on the splits
        [twin] = [position for position in twins if position in lost]
        assert lost.pop(twin) in (DUPLICATE_PAIR, IMAGE_IN_ANOTHER_SPLIT)
    assert lost == expected
    counts = page_counts(tmp_path / "out")
    assert sum(counts.values()) == n
    on_page: Counter[str] = Counter()
    for (_, decision, reason), number in counts.items():
        on_page.update({reason: number} if decision == "skipped" else {})
    assert all(on_page[reason] >= number for reason, number in Counter(expected.values()).items())
    assert sum(on_page.values()) == len(expected) + bool(twins)
    before = timeless(tmp_path / "out")
    assert run(tmp_path / "out", *flags_of(place), "--load_saved") == 0
    assert timeless(tmp_path / "out") == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], int]:
    """A run on embeddings, its flags and how many files it wrote."""
    root = tmp_path_factory.mktemp("finished")
    place, _ = as_embeddings(root / "in")
    written = 0
    sync = os.fsync

    def counting(file: int) -> None:
        nonlocal written
        written += 1
        sync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visualize.figures", lambda summary: {})
        patch.setattr(os, "fsync", counting)
        assert run(root / "out", *flags_of(place)) == 0
    return root / "out", flags_of(place), written


@pytest.fixture
def copied(finished: tuple[Path, list[str], int], tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(finished[0]), str(tmp_path / "out")], check=True)
    return tmp_path / "out"


def error_line(captured: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, which is the last."""
    lines = captured.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in "".join(lines)
    return lines[-1]


DAMAGE: dict[str, tuple[str, bytes]] = {
    "manifest": ("stage1/embedding_manifest.json", b'{"fingerprint": '),
    "manifest of another kind": ("stage1/embedding_manifest.json", b"[]"),
    "array": ("stage1/image_embeddings.npy", b"\x93NUMPY\x01\0"),
    "empty array": ("stage1/cluster_assignments.npy", b""),
    "table": ("stage1/pairs.parquet", b"PAR1"),
    "list": ("stage1/skipped.csv", b"\xff\xfe"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_made_good_or_refused(
    finished: tuple[Path, list[str], int],
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
) -> None:
    _, flags, _ = finished
    before = timeless(copied)
    (copied / name).write_bytes(content)
    damaged = timeless(copied)
    assert run(copied, *flags, "--skip_stage", "1") == 2
    assert error_line(capsys).startswith("error: --skip_stage 1: ")
    assert timeless(copied) == damaged  # nothing is lost by asking
    assert run(copied, *flags, "--load_saved") == 0
    stage = "clustering" if "cluster" in name else "embedding"
    log = (copied / "log.txt").read_text()
    assert log.count(" recomputed: ") == 1
    assert f"{stage:<10} recomputed: " in log
    assert timeless(copied) == before


# --- E. A full disk -------------------------------------------------------------------------------


def n_reused(out: Path) -> int:
    return (out / "log.txt").read_text().count(" reuse from ")


def stage_manifests(out: Path) -> int:
    return sum("settings" in json.loads(p.read_bytes()) for p in out.rglob("*manifest.json"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("share", [0.05, 0.35, 0.65, 0.95])
def test_a_disk_that_is_full_loses_nothing(
    finished: tuple[Path, list[str], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
) -> None:
    whole, flags, n_writes = finished
    out, left, sync = tmp_path / "out", int(share * n_writes), os.fsync

    def full(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(out, *flags) == 2
    message = error_line(capsys)
    assert message.startswith(f"error: --output_dir: {out}/")
    assert "No space left on device" in message
    assert not list(out.rglob("*.tmp"))
    n_saved = stage_manifests(out)
    assert run(out, *flags, "--load_saved") == 0
    assert n_reused(out) == n_saved
    assert timeless(out) == timeless(whole)


@pytest.mark.parametrize("out", ["/proc/no/such", "/sys/kernel/out", "/dev/null/out"])
def test_an_output_folder_that_cannot_be_made(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Path(out), "--dataset", "synthetic") == 2
    assert f"--output_dir {out} cannot be written to" in error_line(capsys)


def test_an_output_folder_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write(tmp_path, {"out/kept.txt": "kept"}) / "out"
    opened = io.open

    def read_only(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set("wax+") & set(mode) and str(file).startswith(str(out)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", read_only)
    monkeypatch.setattr("builtins.open", read_only)
    assert run(out, "--dataset", "synthetic") == 2
    message = error_line(capsys)
    assert f"--output_dir {out} cannot be written to (Read-only file system)" in message
    assert [p.name for p in out.iterdir()] == ["kept.txt"]


# --- F. Runs that are killed ----------------------------------------------------------------------

N_CHAINS = 10  # of two kills each
FILE_LIMITS = (40_000,)  # bytes that the system lets a file have
KILLED = (
    "--dataset synthetic --encoder_model embedded --max_train_samples 24 --max_val_samples 4 "
    "--max_test_samples 4 --n_clusters 3 --samples_per_cluster 3 --influence_budget 1 "
    "--num_epochs 1 --n_seeds 1 --influence_seeds 1 --held_out_repeats 1 --held_out_steps 20 "
    "--removal_folds 0 --batch_size 8 --embed_dim 8 --device cpu --num_workers 0 "
    "--save_checkpoints --methods influencespace random semdedup --export webdataset parquet list"
).split()


def kill_and_continue(root: Path) -> None:
    """Runs of which each is killed twice, and one that is not; in a process of its own.

    The process imports everything once; every run is a fork of it.
    """

    from encoders.embedded import load_lite0, load_wordllama

    hub._import_datasets()
    networks = load_lite0(), load_wordllama()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("encoders.embedded.load_lite0", lambda: networks[0])
        patch.setattr("encoders.embedded.load_wordllama", lambda: networks[1])
        narrow(patch)
        figures = visualize.figures  # two are enough
        patch.setattr(visualize, "figures", lambda s: dict([*figures(s).items()][:2]))
        kills: list[tuple[bool, int]] = []
        started = time.monotonic()
        assert _wait(_spawn(root / "out")) == 0
        seconds = time.monotonic() - started
        (root / "out").rename(root / "whole")
        rng = np.random.default_rng(7)
        n_files = _n_files(root / "whole")
        for chain in range(N_CHAINS):
            process = _spawn(root / "out")
            time.sleep(seconds * (chain + rng.random()) / N_CHAINS)
            kills.append((_kill(process), _n_files(root / "out")))
            process = _spawn(root / "out", "--load_saved")
            more = rng.integers(1, max(2, n_files - kills[-1][1]))
            _wait_for_files(root / "out", kills[-1][1] + int(more), 2 * seconds)
            time.sleep(rng.random() / 20)
            kills.append((_kill(process), _n_files(root / "out")))
            assert _wait(_spawn(root / "out", "--load_saved")) == 0
            (root / "out").rename(root / f"chain{chain}")
        for limit in FILE_LIMITS:
            assert _wait(_spawn(root / "out", file_limit=limit)) == 2
            write(root, {f"limited{limit}.txt": (root / "stderr.txt").read_text()})
            assert _wait(_spawn(root / "out", "--load_saved")) == 0
            (root / "out").rename(root / f"limited{limit}")
    write(root, {"kills.json": json.dumps(kills)})


def _n_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _wait_for_files(folder: Path, number: int, seconds: float) -> None:
    """Until a folder holds so many files, but no longer than so many seconds."""
    end = time.monotonic() + seconds
    while _n_files(folder) < number and time.monotonic() < end:
        time.sleep(0.002)


def _kill(process: int) -> bool:
    """Whether a process had not ended before it was killed."""
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def _spawn(out: Path, *flags: str, file_limit: int | None = None) -> int:
    """A run in a process of its own: its number."""
    import resource

    process = os.fork()
    if process:
        return process
    status = 70
    try:
        with open(out.parent / "stderr.txt", "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        status = main.main([*KILLED, *flags, "--output_dir", str(out)])
        sys.stderr.flush()
    finally:
        os._exit(status)


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def in_a_process_of_its_own(call: str, root: Path, status: int = 0) -> str:
    """What a function of this module, in a process of its own, says on its way to its status."""
    code = f"import sys, pathlib; from {__name__} import {call}; {call}(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(root)],
        cwd=Path(main.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_killed_at_any_moment_a_run_continues_to_the_same_files(tmp_path: Path) -> None:
    in_a_process_of_its_own("kill_and_continue", tmp_path)
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == 2 * N_CHAINS
    assert sum(was_killed for was_killed, _ in kills) >= N_CHAINS  # others had ended before
    assert len({n_files for was_killed, n_files in kills if was_killed}) >= 4  # at several places
    whole = timeless(tmp_path / "whole")
    assert {"curated", "stage1", "stage2", "stage3", "evaluation"} <= {
        name.split("/")[0] for name in whole
    }
    for chain in range(N_CHAINS):
        again = timeless(tmp_path / f"chain{chain}")
        unfinished = [name for name in again if name.endswith(".tmp")]
        assert len(unfinished) <= 2  # at most the one that each kill has interrupted
        again = {name: content for name, content in again.items() if name not in unfinished}
        assert again.keys() == whole.keys()
        assert [name for name in whole if again[name] != whole[name]] == []
    for limit in FILE_LIMITS:
        lines = (tmp_path / f"limited{limit}.txt").read_text().splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert lines[-1].startswith(f"error: --output_dir: {tmp_path}/out/")
        assert "(File too large)" in lines[-1]
        assert "Traceback" not in "".join(lines)
        assert timeless(tmp_path / f"limited{limit}") == whole


def run_without_room_for_a_log(root: Path) -> None:
    import resource

    place, _ = as_embeddings(root / "in")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    sys.exit(run(root / "out", *flags_of(place)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="files have no limits here")
def test_a_disk_too_full_for_the_log_gets_one_line(tmp_path: Path) -> None:
    lines = in_a_process_of_its_own("run_without_room_for_a_log", tmp_path, 2).splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert lines[-1].startswith(f"error: --output_dir: {tmp_path}/out/")
    assert sum("log.txt cannot be written any more" in line for line in lines) == 1
    assert "Traceback" not in "".join(lines)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_file_that_is_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--dataset", "synthetic", "--log_file", "/dev/full") == 2
    assert "--log_file /dev/full is no plain file" in error_line(capsys)


# --- G. Memory ------------------------------------------------------------------------------------

N_LARGE, LARGE_BYTES = 128, 2**22  # half a gigabyte in all
MEMORY_BYTES = 2**28


def large(number: int) -> bytes:
    return picture(number) + bytes(LARGE_BYTES)


def with_a_hole(path: Path, content: bytes, n_bytes: int) -> None:
    """Append content that goes on with zeros, which take no room on the disk."""
    with path.open("ab") as file:
        start = file.tell()
        file.write(content)
        file.truncate(start + n_bytes)
        file.seek(0, os.SEEK_END)


def write_large(root: Path) -> dict[str, dict[str, str]]:
    for name in ("folder", "webdataset", "parquet"):
        (root / name).mkdir()
    writer = pq.ParquetWriter(
        root / "parquet/0.parquet",
        pa.schema([("image", pa.binary()), ("caption", pa.string())]),
        use_dictionary=False,
    )
    rows = ["image,caption"]
    for number in range(N_LARGE):
        size, text = len(picture(number)) + LARGE_BYTES, f"large {number}"
        with_a_hole(root / f"folder/{number}.png", picture(number), size)
        rows.append(f"{number}.png,{text}")
        info = tarfile.TarInfo(f"{number}.png")
        info.size = size
        with_a_hole(
            root / "webdataset/0.tar", info.tobuf() + picture(number), 512 + -(-size // 512) * 512
        )
        with_a_hole(root / "webdataset/0.tar", tar([(f"{number}.txt", text)])[:1024], 1024)
    with_a_hole(root / "webdataset/0.tar", b"", 1024)
    write(root, {"folder/captions.txt": "\n".join(rows)})
    for start in range(0, N_LARGE, 32):
        numbers = range(start, start + 32)
        columns = {
            "image": pa.array(map(large, numbers), pa.binary()),
            "caption": [f"large {i}" for i in numbers],
        }
        writer.write_table(pa.table(columns), row_group_size=32)
    writer.close()
    return {
        name: {"dataset": name, "data_dir": str(root / name)}
        for name in ("folder", "webdataset", "parquet")
    }


def write_claims(root: Path) -> dict[str, dict[str, str]]:
    """Good pairs, and one image that is, or claims to be, of 5 GB; nearly all of it a hole."""
    places = {name: ALL_WRITERS[name](root / name, good()) for name in ("folder", "webdataset")}
    with_a_hole(root / "folder/huge.png", picture(200), 5 * 2**30)
    with (root / "folder/captions.txt").open("a") as file:
        file.write("huge.png,huge\n")
    info = tarfile.TarInfo("huge.png")
    info.size = 5 * 2**30
    path = root / "webdataset/2.tar"
    with_a_hole(path, tar([("huge.txt", "huge")])[:1024], 1024)
    with_a_hole(path, info.tobuf(tarfile.GNU_FORMAT) + picture(200), 512 + info.size)
    with_a_hole(path, tar([("last.png", picture(201)), ("last.txt", "last")]), 10_240)
    info.name = "cut.png"  # and one that claims it alone
    with_a_hole(root / "webdataset/3.tar", info.tobuf(tarfile.GNU_FORMAT) + picture(202), 2048)
    return places


def decode_bombs() -> dict[str, str]:
    reasons = {}
    for name, (_, data) in PICTURES.items():
        try:
            decode_image(data, DataConfig.max_image_pixels)
        except UnusableImage as unusable:
            reasons[name] = unusable.reason
    return reasons


def measure_memory(root: Path) -> None:
    """Growth of the memory at its peak, bytes, and what was found, of every kind of reading."""
    logging.disable(logging.WARNING)
    found: dict[str, tuple[int, Any]] = {"bombs": _measure(decode_bombs)}
    (root / "large").mkdir()
    for name, place in write_large(root / "large").items():
        found[f"large {name}"] = _measure(functools.partial(_count_pairs, place))
    for name, place in write_claims(root / "claims").items():
        found[f"claim {name}"] = _measure(functools.partial(_list_reasons, place))
    write(root, {"memory.json": json.dumps(found)})


def _read_corners(place: Mapping[str, str]) -> Seen:
    source, config = open_any(place, num_workers=4)
    decode = decode_pixels(lambda image: np.asarray(image)[:1, :1].copy(), config.max_image_pixels)
    return drain(PairReader(source, config, decode=decode))


def _count_pairs(place: Mapping[str, str]) -> int:
    return len(_read_corners(place).captions)


def _list_reasons(place: Mapping[str, str]) -> dict[str, str]:
    seen = _read_corners(place)
    return {seen.keys[position]: reason for position, reason in seen.reasons.items()}


def _measure(work: Callable[[], Any]) -> tuple[int, Any]:
    """Growth of a fork's memory at its peak while it works, bytes, and the result."""
    import resource

    read_end, write_end = os.pipe()
    process = os.fork()
    if process == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = work()
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        os.write(write_end, json.dumps((grown, result)).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as file:
        content = file.read()
    assert _wait(process) == 0
    grown, result = json.loads(content)
    return grown, result


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Any]]:
    root = tmp_path_factory.mktemp("memory")
    in_a_process_of_its_own("measure_memory", root)
    found: dict[str, tuple[int, Any]] = json.loads((root / "memory.json").read_text())
    return found


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in kB on Linux")


@linux
@pytest.mark.parametrize("source", ["folder", "webdataset", "parquet"])
def test_large_data_takes_little_memory(memory: dict[str, tuple[int, Any]], source: str) -> None:
    grown, n_pairs = memory[f"large {source}"]
    assert n_pairs == N_LARGE
    assert 0 < grown < MEMORY_BYTES < N_LARGE * LARGE_BYTES


@linux
def test_claims_of_gigabytes_are_not_believed(memory: dict[str, tuple[int, Any]]) -> None:
    grown, reasons = memory["claim folder"]
    assert reasons == {"huge.png": FILE_TOO_LARGE}
    assert grown < MEMORY_BYTES // 2
    grown, reasons = memory["claim webdataset"]
    assert reasons == {"2/huge": FILE_TOO_LARGE, "3/cut": TRUNCATED_SHARD}
    assert grown < MEMORY_BYTES // 2


@linux
def test_bombs_are_defused(memory: dict[str, tuple[int, Any]]) -> None:
    grown, reasons = memory["bombs"]
    assert reasons == {name: reason for name, (_, _, reason, _) in UNUSABLE.items()}
    assert grown < MEMORY_BYTES  # the texts may take 64 MB, as Pillow counts


# --- H. Damage of any kind ------------------------------------------------------------------------

Damage = list[tuple[str, float, bytes]]
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def apply_damage(data: bytes, damage: Damage) -> bytes:
    content = bytearray(data)
    for kind, share, other in damage:
        place = int(share * len(content))
        if kind == "flip":
            for i, mask in enumerate(other[: len(content) - place]):
                content[place + i] ^= mask
        elif kind == "insert":
            content[place:place] = other
        else:
            del content[place : place + 16 * other[0] + 1]
    return bytes(content)


@pytest.fixture(scope="module", params=[*ALL_WRITERS, "embeddings"])
def sound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str], list[str]]:
    """Sound data: where, the settings to read it with, and the files, tables first."""
    root = tmp_path_factory.mktemp("sound") / "0"
    if request.param == "embeddings":
        place, _ = as_embeddings(root, 30)
    else:
        items = [*good(12), Item("photo.jpg", encode(NOISE, "JPEG"), "noise")]
        place = ALL_WRITERS[request.param](root, items)
    files = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
    return root, place, sorted(files, key=lambda name: (name.endswith((".png", ".jpg")), name))


@given(which=st.integers(0, 2**16), damage=damages)
@settings(derandomize=True, max_examples=60, deadline=None, database=None)
def test_no_damage_ends_in_anything_but_a_line(
    sound: tuple[Path, dict[str, str], list[str]], which: int, damage: Damage
) -> None:
    root, place, files = sound
    # A new folder each time: a table that is mapped into memory must not shrink.
    copy = root.with_name(f"{time.monotonic_ns()}")
    subprocess.run(["cp", "-r", str(root), str(copy)], check=True)
    # Tables as often as photographs, of which there are many.
    n_tables = sum(not name.endswith((".png", ".jpg")) for name in files)
    name = files[which % (n_tables if which % 2 else len(files))]
    (copy / name).write_bytes(apply_damage((root / name).read_bytes(), damage))
    try:
        if "embeddings_dir" in place:
            seen = read_embeddings(copy)
        else:
            seen = read({key: value.replace(str(root), str(copy)) for key, value in place.items()})
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome will do
    else:
        assert seen.captions

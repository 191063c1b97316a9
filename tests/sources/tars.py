"""Tar shards for tests, written by `tarfile` or laid out by hand, and what is read of them."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import open_source
from sources.base import MISSING_FILE, DataConfig, ImageRecord, PairSource, UnusableImage
from sources.splits import IndexedSource
from tests.helpers import SMALL, picture, write

Member = tuple[str, bytes | str] | tarfile.TarInfo


FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


BLOCK = 512


def tar(members: Iterable[Member], format: int = tarfile.USTAR_FORMAT) -> bytes:  # noqa: A002
    """A tar file of members with content, and of others by their header alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if format == tarfile.PAX_FORMAT:
                info.mtime = 1.5  # an extended header for each member
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pair(number: int, caption: str | None = None) -> list[Member]:
    text = f"picture {number}" if caption is None else caption
    return [(f"{number:03d}.png", picture(number)), (f"{number:03d}.txt", text)]


def pairs(numbers: Iterable[int]) -> list[Member]:
    return list(chain.from_iterable(map(pair, numbers)))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One header block that says anything; the GNU format can write any size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def open_shards(data_dir: Path | str, seed: int = 0, **settings: Any) -> PairSource:
    config = DataConfig(dataset="webdataset", data_dir=str(data_dir), **SMALL | settings)
    return open_source(config, rng=np.random.default_rng(seed))


def records(data_dir: Path | str) -> list[ImageRecord]:
    """Everything that shards hold, in their order, whatever split it is in."""
    return records_in(open_shards(data_dir))


def records_in(source: PairSource) -> list[ImageRecord]:
    assert isinstance(source, IndexedSource)
    found = chain.from_iterable(source._splits.values())
    return sorted(found, key=lambda record: record.captions[0].position)


def records_of(root: Path, *members: Member) -> list[ImageRecord]:
    return records(write(root, {"s.tar": tar(members)}) / "s.tar")


def texts(record: ImageRecord) -> list[str | None]:
    return [caption.text for caption in record.captions]


def outcome(record: ImageRecord) -> bytes | str:
    """The image, or why there is none."""
    try:
        return record.read()
    except UnusableImage as unusable:
        return unusable.reason
    except FileNotFoundError:
        return MISSING_FILE


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


UID = "0123456789abcdef0123456789ABCDEF"

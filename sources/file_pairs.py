"""Pairs whose images are files of a folder, as a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sources.base import (
    BROKEN_IMAGE,
    MISSING_FILE,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    UnusableImage,
)
from sources.image_files import from_base64
from sources.locate import Locator
from sources.paths import storable_name
from sources.places import Version
from sources.splits import IndexedSource, digest


@dataclass(frozen=True, slots=True)
class FilePair:
    """An image of a folder and one of its captions.

    Attributes:
        key: the image's path from the folder, or what stands for it.
        caption: None where it is missing.
        split: as the table has it, or "".
        table: that names it, or "".
        written: what the table calls the image.
        missing: why there is no image, where that is known.
        content: of the image, in base64, where the table holds it.
    """

    key: str
    caption: str | None
    split: str = ""
    table: str = ""
    written: str = ""
    missing: str = ""
    content: str = ""


@dataclass(frozen=True)
class About:
    """What a source tells of itself: its name, where it is, and what was done to read it."""

    name: str
    description: str
    notes: Sequence[str]


def file_source(
    about: About,
    pairs: Sequence[FilePair],
    splits: Mapping[str, str],
    locator: Locator,
    files: Mapping[str, Version],
    config: DataConfig,
    rng: np.random.Generator,
) -> IndexedSource:
    """The pairs of a folder's files, every image with all its captions.

    Args:
        about: what the source tells of itself.
        pairs: in the order of their positions.
        splits: official ones, by key; images without one are training images.
        locator: that reads the files.
        files: in the folder, with what changes when they do.
        config: limits.
        rng: see `IndexedSource`.
    """
    captions: dict[str, list[Caption]] = {}
    first: dict[str, FilePair] = {}
    for position, pair in enumerate(pairs):
        first.setdefault(pair.key, pair)
        captions.setdefault(pair.key, []).append(Caption(position, pair.caption))
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    for key, texts in captions.items():
        pair, member = first[key], storable_name(key)
        read: Callable[[], bytes] = partial(locator.read, key)
        if pair.content:
            read = partial(_decode, pair.content)
        problem = UnusableImage(MISSING_FILE, pair.missing) if pair.missing else None
        record = ImageRecord(member, read, tuple(texts), member=member, problem=problem)
        official[splits.get(key, "train")].append(record)
    description = f"{about.description}: {len(captions):,} images, {len(pairs):,} captions"
    seen = [(pair.key, pair.caption) for pair in pairs]
    written = [digest(pair.content) for pair in first.values() if pair.content]
    versions = [(key, files.get(key)) for key in captions]
    fingerprint = digest(about.name, seen, dict(splits), versions, *([written] if written else []))
    return IndexedSource(
        *(about.name, description, fingerprint, official, config.limits(), rng), notes=about.notes
    )


def _decode(text: str) -> bytes:
    """The image that a table holds in base64.

    Raises:
        UnusableImage: it is none.
    """
    data = from_base64(text.encode("utf-8", "replace"))
    if data is None:
        raise UnusableImage(BROKEN_IMAGE, "no base64")
    return data

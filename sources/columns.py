"""Which columns of a table, or fields of JSON, are read: one order of preference for all sources.

A flag that names a column decides. Where it has its default, which names none for certain, the
first known name that there is is taken, case left aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sources.base import DataConfig, PartConfig
from sources.paths import natural_order, storable_name

# The preferred name first. Several captions of an image may stand side by side, as `caption_0`,
# `caption_1` and so on.
CAPTION_COLUMNS = (
    *("caption", "captions", "title", "text", "sentences", "sentence", "comment", "description"),
    *("txt", "alt_text", "prompt", "raw"),
)
IMAGE_COLUMNS = (
    *("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "image_path", "file_name"),
    *("filename", "filepath", "file_path", "image_name", "image_file", "img_path", "path", "file"),
    *("images",),
)
SPLIT_COLUMN = "split"
URL_COLUMNS = ("url", "image_url", "img_url", "urls", "coco_url", "flickr_url")


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        image: holds images or their paths.
        captions: one, or several side by side.
        split: names the split of each row; None where there is none.
        ignored: others that are called like captions.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None = None
    ignored: tuple[str, ...] = ()

    def note(self) -> str:
        """Which columns are taken, and which are not, in a phrase."""
        names = [self.image, *self.captions, *([self.split] if self.split else [])]
        ignored = f" ({', '.join(self.ignored)} not used)" if self.ignored else ""
        return storable_name(f"columns {', '.join(names)}{ignored}")


def find_columns(names: Sequence[str], config: DataConfig) -> Columns | None:
    """The columns that are read of those that there are; None where images or captions lack one."""
    image = image_column(names, config)
    captions = caption_columns(names, config)
    if image is None or not captions:
        return None
    others = tuple(
        name for name in names if name.casefold() in CAPTION_COLUMNS and name not in captions
    )
    return Columns(
        image,
        captions,
        first_known((SPLIT_COLUMN,), names),
        tuple(name for name in others if name != image),
    )


def image_column(names: Sequence[str], config: DataConfig) -> str | None:
    """The column of images or of their paths; None where there is none."""
    default = DataConfig.image_column
    named = _named(config.image_column, default, names, config)
    return choose_column(named, default, IMAGE_COLUMNS, names)


def caption_columns(names: Sequence[str], config: DataConfig) -> tuple[str, ...]:
    """The column of captions, and those that are numbered like it; none where there is none."""
    default = DataConfig.caption_column
    named = _named(config.caption_column, default, names, config)
    if named != default:
        return (named,) if named in names else ()
    for known in CAPTION_COLUMNS:
        plain = [name for name in names if name.casefold() == known]
        if found := (*plain[:1], *_numbered(known, names)):
            return found
    return ()


def _named(flag: str, default: str, names: Sequence[str], config: DataConfig) -> str:
    """The column that a flag names; its default where the flag is about another data set."""
    is_of_another = isinstance(config, PartConfig) and flag not in names
    return default if is_of_another else flag


def _numbered(known: str, names: Iterable[str]) -> list[str]:
    """The columns that are called like this one and have a number, in its order."""
    pattern = re.compile(rf"{re.escape(known)}[ _.-]?\d+", re.IGNORECASE)
    return sorted((name for name in names if pattern.fullmatch(name)), key=natural_order)


def choose_column(
    named: str, default: str, known: Sequence[str], names: Sequence[str]
) -> str | None:
    """The column that a flag names; where it has its default, else the first known one.

    Args:
        named: by the flag.
        default: of the flag, which names no column for certain.
        known: names in lower case, the preferred one first.
        names: of the columns that there are.

    Returns:
        A name, or None where there is no such column.
    """
    if named in names:
        return named
    return first_known(known, names) if named == default else None


def first_known(known: Sequence[str], names: Sequence[str]) -> str | None:
    """The column of the first known name that there is, case left aside."""
    return next((name for k in known for name in names if name.casefold() == k), None)

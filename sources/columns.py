"""Which columns of a table, or fields of JSON, are read: one order of preference for all sources.

A flag that names a column decides. Where it has its default, which names none for certain, the
first known name that there is is taken, case left aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sources.base import DataConfig, PartConfig
from sources.image_files import is_image_name
from sources.paths import natural_order, storable_name

# The preferred name first. Several captions of an image may stand side by side, as `caption_0`,
# `caption_1` and so on.
CAPTION_COLUMNS = (
    *("caption", "captions", "title", "text", "sentences", "sentence", "comment", "description"),
    *("txt", "alt_text", "prompt", "raw", "caption_text", "caption_str"),
)
IMAGE_COLUMNS = (
    *("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "image_path", "file_name"),
    *("filename", "filepath", "file_path", "image_name", "image_file", "image_filename"),
    *("img_path", "img_name", "img_file", "path", "file", "images"),
)
# Where the folder of a file stands beside its name, as Karpathy's `filepath` does.
FOLDER_COLUMNS = ("filepath", "file_path", "folder", "directory", "dir", "image_dir", "path")
SPLIT_COLUMN = "split"
SPLIT_COLUMNS = (
    *(SPLIT_COLUMN, "splits", "data_split", "dataset_split", "subset", "partition", "phase", "set"),
    "set_name",
)
URL_COLUMNS = ("url", "image_url", "img_url", "urls", "coco_url", "flickr_url")


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        image: holds images or their paths.
        captions: one, or several side by side.
        split: names the split of each row; None where there is none.
        ignored: others that are called like images or captions.
        folder: holds the folder of the image; None where there is none.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None = None
    ignored: tuple[str, ...] = ()
    folder: str | None = None

    def note(self) -> str:
        """Which columns are taken, and which are not, in a phrase."""
        others = [name for name in (self.folder, self.split) if name is not None]
        names = [self.image, *self.captions, *others]
        ignored = f" ({', '.join(self.ignored)} not used)" if self.ignored else ""
        return storable_name(f"columns {', '.join(names)}{ignored}")


def find_columns(
    names: Sequence[str], config: DataConfig, rows: Sequence[Mapping[str, object]] = ()
) -> Columns | None:
    """The columns that are read of those that there are; None where images or captions lack one.

    Args:
        names: of the columns.
        config: with the flags that name some.
        rows: the first ones, where they can tell which of several columns names files.
    """
    image = image_column(names, config, rows)
    captions = caption_columns(names, config)
    if image is None or not captions:
        return None
    is_named = config.image_column != DataConfig.image_column
    folder = None if is_named else first_known(FOLDER_COLUMNS, names)
    if folder == image or not any(isinstance(row.get(str(folder)), str) for row in rows):
        folder = None
    known = {*CAPTION_COLUMNS, *IMAGE_COLUMNS}
    taken = {image, *captions, folder}
    ignored = tuple(name for name in names if plain(name) in known and name not in taken)
    return Columns(image, captions, first_known(SPLIT_COLUMNS, names), ignored, folder)


def image_column(
    names: Sequence[str], config: DataConfig, rows: Sequence[Mapping[str, object]] = ()
) -> str | None:
    """The column of images or of their paths; None where there is none.

    Of several known ones the first whose values are called like images, if there is such: `image`
    may hold a number or an address beside `file_name`.
    """
    default = DataConfig.image_column
    named = _named(config.image_column, default, names, config)
    if named == default:
        present = [name for k in IMAGE_COLUMNS for name in names if plain(name) == k]
        naming = [name for name in present if rows and all(_names_file(r.get(name)) for r in rows)]
        if naming:
            return naming[0]
    return choose_column(named, default, IMAGE_COLUMNS, names)


def _names_file(value: object) -> bool:
    """Whether a value is called like an image that lies on a disk."""
    return isinstance(value, str) and is_image_name(value.strip()) and "://" not in value


def caption_columns(names: Sequence[str], config: DataConfig) -> tuple[str, ...]:
    """The column of captions, and those that are numbered like it; none where there is none."""
    default = DataConfig.caption_column
    named = _named(config.caption_column, default, names, config)
    if named != default:
        return (named,) if named in names else ()
    for known in CAPTION_COLUMNS:
        exact = [name for name in names if plain(name) == known]
        if found := (*exact[:1], *_numbered(known, names)):
            return found
    return ()


def _named(flag: str, default: str, names: Sequence[str], config: DataConfig) -> str:
    """The column that a flag names; its default where the flag is about another data set."""
    is_of_another = isinstance(config, PartConfig) and flag not in names
    return default if is_of_another else flag


def _numbered(known: str, names: Iterable[str]) -> list[str]:
    """The columns that are called like this one and have a number, in its order."""
    pattern = re.compile(rf"{re.escape(known)}[_.#]?\d+")
    return sorted((name for name in names if pattern.fullmatch(plain(name))), key=natural_order)


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
    """The column of the first known name that there is; see `plain`."""
    return next((name for k in known for name in names if plain(name) == k), None)


def plain(name: str) -> str:
    """The name of a column as it is compared: case left aside, blanks and hyphens as `_`."""
    return re.sub(r"[ -]+", "_", name.strip().casefold())

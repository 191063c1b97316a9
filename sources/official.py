"""Official splits of images: from a column, from lists of names, from names of tables and folders.

Read the same way for every source that has them. Images that none of these name are training
images. Names of images and of their folders count only where they can hardly mean another thing:
`bullet_train` is a kind of picture, `flickr_train` beside `flickr_test` is a split.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.settings import InputError
from sources.base import SPLIT_OF, SPLITS, DataConfig, UnusableImage
from sources.columns import (
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    SPLIT_COLUMNS,
    first_known,
    image_column,
)
from sources.delimited import read_header_table, without_number
from sources.json_tables import rows_in
from sources.locate import Asked, Locator
from sources.manifests import read_table_file
from sources.paths import decode, decode_text, read_list, split_from_path, storable_name, words
from sources.places import Place
from sources.splits import official_split

SPLIT_FILE = "splits.csv"
LIST_SUFFIXES = (".txt", ".lst", ".list", ".csv")
MAX_LIST_BYTES = 2**27
MAX_LISTS = 50  # more are texts of single images
READ_ORDER = ("test", "validation", "train")  # an image that two of them name is in the first
# Words beside the name of a split that leave it one.
PLAIN_WORDS = {
    *("image", "images", "img", "imgs", "jpg", "jpgs", "png", "pic", "pics", "photo", "photos"),
    *("picture", "pictures", "set", "split", "data", "dataset", "caption", "captions", "text"),
    *("texts", "annotation", "annotations", "file", "files", "coco", "flickr", "k"),
}
# JSON beside captions that may tell their splits, in the folder or in one of its folders.
_SPLIT_TABLE = re.compile(r"(?:[^/]+/)?(?:[^/]*split[^/]*|dataset_[^/]*)\.json", re.IGNORECASE)
_ANY_SPLIT = re.compile("|".join(sorted(SPLIT_OF, key=len, reverse=True)), re.IGNORECASE)


@dataclass(frozen=True)
class Named:
    """What a table says of an image.

    Attributes:
        key: of the image.
        split: as it is written in the table's row, or "".
        table: path of the table, or "".
    """

    key: str
    split: str = ""
    table: str = ""


@dataclass(frozen=True)
class OfficialSplits:
    """The splits that a data set brings.

    Attributes:
        of: split of every image that has one.
        notes: where they were found, a phrase each.
    """

    of: Mapping[str, str]
    notes: tuple[str, ...] = ()


def find_splits(
    root: Place, files: Collection[str], images: Sequence[Named], column: str = SPLIT_COLUMN
) -> OfficialSplits:
    """The official splits of a folder's images, the most explicit source of each first.

    Args:
        root: of the data set.
        files: paths in it.
        images: with what tables say of them.
        column: of splits in the tables, as it is told.

    Raises:
        InputError: splits.csv cannot be understood.
    """
    keys = list(dict.fromkeys(image.key for image in images))
    by_column, unknown = _by_column(images)

    def origins() -> Iterator[tuple[str, Mapping[str, str]]]:
        yield f"from {SPLIT_FILE}", _by_file(root, files)
        yield f"from the column {storable_name(column)}", by_column
        yield "from lists of names", _by_lists(root, files, keys)
        yield "from the names of tables", _by_table(images)
        yield "from the names of folders and files", splits_of_paths(keys)

    of: dict[str, str] = {}
    notes: list[str] = []
    for origin, found in origins():
        new = {key: split for key, split in found.items() if key not in of}
        notes += _counts_note(origin, Counter(new[key] for key in keys if key in new))
        of |= new
        if all(key in of for key in keys):
            break
    notes += _unknown_note(column, unknown)
    if of and (n_none := sum(key not in of for key in keys)):
        are = "image without a split is a training image"
        if n_none > 1:
            are = "images without a split are training images"
        notes.append(f"{n_none:,} {are}")
    return OfficialSplits(of, tuple(notes))


def path_notes(by_path: Mapping[str, str]) -> list[str]:
    """What paths of images say of their splits, a phrase; nothing where they say nothing."""
    return _counts_note("from the paths of images", Counter(by_path.values()))


def column_notes(
    column: str, named: Counter[str | None], unknown: Counter[str], what: str
) -> list[str]:
    """What a column of splits says, a phrase each; nothing where it says nothing.

    Args:
        column: its name.
        named: how many rows name each split, and how many none.
        unknown: names of no split, with their numbers.
        what: the rows are called.
    """
    notes = _counts_note(f"from the column {storable_name(column)}", named)
    if notes and named[None]:
        notes[0] += f"; {named[None]:,} {what} name none"
    return notes + _unknown_note(column, unknown)


def _counts_note(origin: str, named: Mapping[Any, int]) -> list[str]:
    listed = ", ".join(f"{split} {named[split]:,}" for split in SPLITS if named.get(split))
    return [f"splits {origin}: {listed}"] if listed else []


def _unknown_note(column: str, unknown: Counter[str]) -> list[str]:
    shown = (f"{storable_name(name)[:40]!r} {n:,}" for name, n in unknown.most_common(3))
    told = f"names in the column {storable_name(column)} that are no split: {', '.join(shown)}"
    return [told] if unknown else []


# --- What tables and lists say --------------------------------------------------------------------


def _by_column(images: Iterable[Named]) -> tuple[dict[str, str], Counter[str]]:
    """Splits that rows name, and how often they name none that is known."""
    found: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    for image in images:
        if not image.split:
            continue
        split = official_split(image.split)
        if split is None:
            unknown[image.split] += 1
        else:
            found[image.key] = _first_read(found.get(image.key, split), split)
    return found, unknown


def _first_read(one: str, other: str) -> str:
    return min(one, other, key=READ_ORDER.index)


def _by_table(images: Iterable[Named]) -> dict[str, str]:
    found: dict[str, str] = {}
    for image in images:
        split = split_from_path(image.table)
        if split is not None:
            found[image.key] = _first_read(found.get(image.key, split), split)
    return found


def _by_file(root: Place, files: Collection[str]) -> dict[str, str]:
    """Split of every image that splits.csv names.

    Raises:
        InputError: it cannot be understood.
    """
    if SPLIT_FILE not in files:
        return {}
    path = root / SPLIT_FILE

    def fits(header: Sequence[str]) -> tuple[int, int] | None:
        names = first_known(IMAGE_COLUMNS, header), first_known(SPLIT_COLUMNS, header)
        return None if None in names else (header.index(str(names[0])), header.index(str(names[1])))

    table = read_header_table(_text(root, SPLIT_FILE), fits)
    places = fits(table.header) if table is not None else None
    if table is None or places is None:
        raise InputError(f"{path} needs the columns image and split")
    locator = Locator(root, files)
    locator.plan(Asked(row[places[0]]) for row in table.rows)
    splits = {}
    for row in table.rows:
        split = official_split(row[places[1]])
        if split is None:
            raise InputError(
                f"{path}: split must be train, validation or test; got {row[places[1]]!r}"
            )
        splits[locator.find(row[places[0]])] = split
    return splits


def _text(root: Place, name: str) -> str:
    return decode_text(read_table_file(root, name), root / name)


# --- Lists of names -------------------------------------------------------------------------------


def is_split_list(name: str) -> bool:
    """Whether a file is called like a list of the images of a split, as `devImages.txt`."""
    base = posixpath.basename(name)
    return base.lower().endswith(LIST_SUFFIXES) and split_from_path(base) is not None


def _by_lists(root: Place, files: Collection[str], keys: Collection[str]) -> dict[str, str]:
    """Splits of the images that lists name: files called after a split, JSON of several."""
    lists: list[tuple[str, list[str]]] = []
    texts = [name for name in files if is_split_list(name) and _stem(name) not in keys]
    for name in texts if len(texts) <= MAX_LISTS else ():
        split = split_from_path(posixpath.basename(name))
        lists += [(split, _listed_names(root, name))] if split is not None else []
    tables = [name for name in files if _SPLIT_TABLE.fullmatch(name)]
    for name in tables if len(tables) <= MAX_LISTS else ():
        lists += _listed_splits(root, name)
    images = Locator(root, keys)
    found: dict[str, str] = {}
    images.plan(Asked(written) for _, listed in lists for written in listed)
    for split, listed in lists:
        for key in map(images.find, listed):
            if key in keys:
                found[key] = _first_read(found.get(key, split), split)
    return found


def _listed_splits(root: Place, name: str) -> list[tuple[str, list[str]]]:
    """The names of each split in a JSON file: lists by split, or rows as Karpathy has them."""
    try:
        content = json.loads(decode(read_list(root, name, MAX_LIST_BYTES)).text)
    except (UnusableImage, OSError, ValueError, RecursionError):
        return []
    if isinstance(content, Mapping) and all(official_split(str(split)) for split in content):
        return [
            (split, [name for name in names if isinstance(name, str)])
            for called, names in content.items()
            if (split := official_split(str(called))) is not None and isinstance(names, list)
        ]
    found: dict[str, list[str]] = {}
    for row in rows_in(content) or ():
        names = [name for name in row if isinstance(name, str)]
        image, column = image_column(names, DataConfig()), first_known(SPLIT_COLUMNS, names)
        split = official_split(str(row[column])) if column is not None else None
        if image is not None and split is not None and isinstance(row[image], str):
            found.setdefault(split, []).append(row[image])
    return list(found.items())


def _listed_names(root: Place, name: str) -> list[str]:
    """The lines of a file that hold one name each; none where one of them holds more."""
    try:
        text = decode_text(read_list(root, name, MAX_LIST_BYTES), root / name)
    except (UnusableImage, OSError):
        return []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(re.search(r"[\s,;|]", without_number(line)) for line in lines):
        return []
    return [without_number(line) for line in lines]


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


# --- Names of folders and files -------------------------------------------------------------------


def splits_of_paths(paths: Iterable[str]) -> dict[str, str]:
    """The splits that folders of images name, or the images themselves, as COCO's of 2014 do.

    The nearest folder that names one counts. A folder names one where its name holds nothing else
    but what images are called, or where another folder differs from it in the split alone; the
    latter holds for files too.
    """
    paths = list(paths)
    folders = _splits_of_names({part for path in paths for part in path.split("/")[:-1]})
    found: dict[str, str] = {}
    rest: list[str] = []
    for path in paths:
        named = (folders.get(part) for part in reversed(path.split("/")[:-1]))
        split = next(filter(None, named), None)
        if split is None:
            rest.append(path)
        else:
            found[path] = split
    candidates = [path for path in rest if _ANY_SPLIT.search(posixpath.basename(path))]
    files = _differing_in_split({posixpath.basename(path) for path in candidates})
    return found | {p: files[name] for p in candidates if (name := posixpath.basename(p)) in files}


def _splits_of_names(names: Collection[str]) -> dict[str, str]:
    found = _differing_in_split(names)
    for name in names:
        parts = [word.lower() for word in words(name)]
        of_splits = [SPLIT_OF[word] for word in parts if word in SPLIT_OF]
        if len(of_splits) == 1 and {word for word in parts if word not in SPLIT_OF} <= PLAIN_WORDS:
            found[name] = of_splits[0]
    return found


def _differing_in_split(names: Iterable[str]) -> dict[str, str]:
    """The splits of names of which there are others that differ in nothing but the split."""
    split_of: dict[str, str] = {}
    alike: dict[str, set[str]] = {}
    templates: dict[str, str] = {}
    for name in names:
        word = next((word for word in words(name) if word.lower() in SPLIT_OF), None)
        if word is None:
            continue
        split_of[name] = SPLIT_OF[word.lower()]
        templates[name] = re.sub("[0-9]+", "0", name.replace(word, "*", 1)).casefold()
        alike.setdefault(templates[name], set()).add(split_of[name])
    return {name: split for name, split in split_of.items() if len(alike[templates[name]]) > 1}

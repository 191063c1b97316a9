"""Captions in files of their own: a text beside each image, or in a folder of texts.

`name.txt` belongs to `name.jpg`, `name.jpg.txt` too, and `texts/name.txt` to `images/name.jpg`;
`.caption` and its kin are texts as well. Where a `name.json` lies beside as img2dataset writes it,
the text is one caption, line breaks and all, as it is in a shard; else every line is one.
"""

from __future__ import annotations

import json
import posixpath
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from sources.base import DataConfig, UnusableImage
from sources.captions import captions_in
from sources.columns import caption_columns
from sources.image_files import HEAD_BYTES, is_image_name, looks_like_image
from sources.manifests import Row
from sources.paths import Decoded, decode, read_file, storable_name
from sources.places import BrokenReadError, Place, each

TEXT_SUFFIXES = (".caption", ".txt", ".captions", ".cap", ".text")  # the preferred one first
# What lies beside images and is none, whatever else it is.
OTHER_SUFFIXES = (
    *(".json", ".jsonl", ".npy", ".npz", ".csv", ".tsv", ".parquet", ".xml", ".yaml", ".yml"),
    *(".md", ".html", ".pt", ".pth", ".safetensors", ".tar", ".zip", ".gz", ".pkl", ".log", ".py"),
)
NO_CAPTIONS = {"readme", "license", "licence", "notice", "classes", "requirements"}
N_LOOKED_AT = 20  # texts that tell whether they are captions or numbers, such as boxes


@dataclass(frozen=True)
class Beside:
    """Captions in files of their own.

    Attributes:
        rows: one for each image and text.
        notes: what was taken, a phrase each.
    """

    rows: Sequence[Row]
    notes: tuple[str, ...]


def read_beside(root: Place, files: Collection[str], texts: Texts, config: DataConfig) -> Beside:
    """The captions of images that lie in files of their own; no rows where none do.

    Args:
        root: of the data set.
        files: paths in it.
        texts: as `texts_by_image` finds them.
        config: with the flag that names a field of JSON.
    """
    labels = _labels_by_image(files)
    if not _hold_captions(root, texts, labels, config):
        return Beside((), ())
    reader, rows, n_broken_up = _TextReader(root), [], 0
    images = [f for f in files if is_image_name(f) or f in texts.of or f in labels]

    def read(image: str) -> tuple[list[str | None], bool, str]:
        text, label = texts.of.get(image), labels.get(image)
        try:
            fields = None if label is None else reader.fields(label)
            if fields is not None and caption_columns(list(fields), config):
                return _as_in_a_shard(reader, text, fields, config), False, ""
            lines: list[str | None] = [None] if text is None else reader.lines(text)
        except BrokenReadError as error:
            return [None], False, str(error)
        return lines, len(lines) > 1, ""

    def lone(text: str) -> list[str | None]:
        try:
            return reader.lines(text)
        except BrokenReadError:
            return [None]

    progress = tqdm(images, desc="texts", unit="text", disable=None, leave=False)
    for image, found in zip(images, each(root, read, progress), strict=True):
        captions, is_broken_up, missing = found
        n_broken_up += is_broken_up
        rows.append(Row(image, tuple(captions), missing=missing))
    rows += [
        Row(text, tuple(lines), missing=f"no image beside {storable_name(text)}")
        for text, lines in zip(texts.alone, each(root, lone, texts.alone), strict=True)
    ]
    reader.warn()
    return Beside(rows, _notes(files, images, texts, labels, n_broken_up))


# --- Which text belongs to which image ------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Text files: by image, and those without one."""

    of: Mapping[str, str]
    alone: tuple[str, ...]


def texts_by_image(root: Place, files: Collection[str]) -> Texts:
    """The text of every image that has one, by the order of `TEXT_SUFFIXES` of several.

    Files that are called like something else are images where their first bytes say so, and no
    file that is called like one has the same text.
    """
    by_stem: dict[str, list[str]] = {}
    for file in files:
        if not file.lower().endswith((*TEXT_SUFFIXES, *OTHER_SUFFIXES)):
            by_stem.setdefault(posixpath.splitext(file)[0], []).append(file)
    by_name: dict[str, list[str]] | None = None
    found: dict[str, str] = {}
    alone: list[str] = []
    texts = [file for file in files if file.lower().endswith(TEXT_SUFFIXES)]
    for text in sorted(texts, key=lambda text: TEXT_SUFFIXES.index(_suffix(text))):
        stem = posixpath.splitext(text)[0]
        beside = [stem] if stem in files else by_stem.get(stem, [])
        images = [f for f in beside if is_image_name(f)] or [f for f in beside if _shows(root, f)]
        if not images:
            by_name = _images_by_name(files) if by_name is None else by_name
            images = _in_a_parallel_folder(stem, by_name)
        for image in images:
            found.setdefault(image, text)
        if not images and posixpath.basename(stem).lower() not in NO_CAPTIONS:
            alone.append(text)
    in_use = {posixpath.dirname(text) for text in found.values()}
    return Texts(found, tuple(text for text in alone if posixpath.dirname(text) in in_use))


def _shows(root: Place, file: str) -> bool:
    """Whether a file begins like an image."""
    try:
        return looks_like_image(read_file(root, file)[:HEAD_BYTES])
    except (UnusableImage, OSError):
        return False


def _suffix(file: str) -> str:
    return posixpath.splitext(file)[1].lower()


def _images_by_name(files: Collection[str]) -> dict[str, list[str]]:
    """Images by the name of their file without its extension."""
    by_name: dict[str, list[str]] = {}
    for file in files:
        if is_image_name(file):
            by_name.setdefault(posixpath.splitext(posixpath.basename(file))[0], []).append(file)
    return by_name


def _in_a_parallel_folder(stem: str, by_name: Mapping[str, list[str]]) -> list[str]:
    """The image whose path differs from a text's in one folder, if it is the only one."""
    folders = stem.split("/")[:-1]
    alike = []
    for image in by_name.get(posixpath.basename(stem), ()):
        others = image.split("/")[:-1]
        if len(others) == len(folders) and sum(a != b for a, b in zip(folders, others)) == 1:  # noqa: B905
            alike.append(image)
    return alike if len(alike) == 1 else []


def _labels_by_image(files: Collection[str]) -> dict[str, str]:
    """The JSON file beside an image, as img2dataset writes one, or `name.jpg.json`."""
    images = [file for file in files if is_image_name(file)]
    whole = {image: f"{image}.json" for image in images}
    stems = {image: f"{posixpath.splitext(image)[0]}.json" for image in images}
    found = {image: label for image, label in whole.items() if label in files}
    return found | {image: label for image, label in stems.items() if label in files}


# --- What they hold -------------------------------------------------------------------------------


class _TextReader:
    """Reads many small texts, and says once how many are not UTF-8."""

    def __init__(self, root: Place) -> None:
        self._root, self._all, self._lock = root, Decoded(""), threading.Lock()

    def text(self, name: str) -> str | None:
        """A text; None where it leads out of the folder or cannot be read.

        Raises:
            BrokenReadError: it is there and breaks off, again and again.
        """
        try:
            decoded = decode(read_file(self._root, name))
        except BrokenReadError:
            raise
        except (UnusableImage, OSError):
            return None
        with self._lock:
            self._all = Decoded(
                "",
                self._all.n_western + decoded.n_western,
                self._all.n_foreign + decoded.n_foreign,
            )
        return decoded.text

    def lines(self, name: str) -> list[str | None]:
        """Every line with something on it is a caption; a file without one is an empty caption."""
        text = self.text(name)
        if text is None:
            return [None]
        lines = [line for line in text.splitlines() if line.strip()] or [""]
        return [caption for line in lines for caption in captions_in(line)]

    def fields(self, name: str) -> dict[str, object] | None:
        """The fields of a JSON file beside an image; None where it holds no object."""
        text = self.text(name)
        try:
            fields = None if text is None else json.loads(text)
        except (ValueError, RecursionError):
            return None
        return {str(k): v for k, v in fields.items()} if isinstance(fields, dict) else None

    def warn(self) -> None:
        """Say what was not UTF-8."""
        self._all.warn(f"texts beside images in {self._root}")


def _as_in_a_shard(
    reader: _TextReader, text: str | None, fields: Mapping[str, object], config: DataConfig
) -> list[str | None]:
    """The text as one caption, else the captions in the fields; a flag that names one decides."""
    named = caption_columns(list(fields), config)
    is_chosen = bool(named) and config.caption_column != DataConfig.caption_column
    if text is not None and not is_chosen:
        content = reader.text(text)
        return [None] if content is None else captions_in(" ".join(content.strip().splitlines()))
    return [caption for name in named for caption in captions_in(fields[name])] or [None]


def _hold_captions(
    root: Place, texts: Texts, labels: Mapping[str, str], config: DataConfig
) -> bool:
    """Whether there are files of either kind, and the first hold captions, not numbers alone."""
    reader = _TextReader(root)
    if not texts.of:
        fields = (reader.fields(label) or {} for label in list(labels.values())[:N_LOOKED_AT])
        return any(caption_columns(list(names), config) for names in fields)
    found = [reader.text(name) or "" for name in list(texts.of.values())[:N_LOOKED_AT]]
    filled = [text for text in found if text.strip()]
    return not filled or any(set(text) - set("0123456789.,-+eE \t\r\n") for text in filled)


def _notes(
    files: Collection[str],
    images: Sequence[str],
    texts: Texts,
    labels: Mapping[str, str],
    n_broken_up: int,
) -> tuple[str, ...]:
    used = {*images, *texts.of.values(), *texts.alone, *labels.values()}
    taken = Counter(_suffix(image) or "no extension" for image in images)
    ignored = Counter(_suffix(file) or "no extension" for file in files if file not in used)
    notes = [f"images {_listed(taken)}"]
    notes[0] += f" (files {_listed(ignored)} not used)" if ignored else ""
    if n_broken_up:
        notes.append(f"{n_broken_up:,} texts of several lines, each line a caption")
    return tuple(notes)


def _listed(counts: Counter[str]) -> str:
    return storable_name(", ".join(f"{suffix} {n:,}" for suffix, n in counts.most_common(12)))

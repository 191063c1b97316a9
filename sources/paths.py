"""Files under a folder that nothing leads out of: their order, their names and what these tell.

And text in whatever encoding it has.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import overload

from artifacts.settings import InputError
from sources.base import FILE_TOO_LARGE, MAX_FILE_BYTES, OUTSIDE_FOLDER, SPLIT_OF, UnusableImage
from sources.places import Address, BrokenReadError, Place, Version, leads_above

logger = logging.getLogger(__name__)
MAX_LINK_BYTES = 256
N_SHOWN_KINDS = 8
MAX_REF_BYTES = 256
_FOREIGN = re.compile(rb"[\x80-\xff]{4}")
_SNAPSHOT = re.compile(r"(.*/(?:datasets|models|spaces)--[^/]+)/snapshots/")
_LINK_TEXT = re.compile(rb"(?:\.\./)+blobs/([0-9a-f]{40,64})\s*")


# --- What a folder holds --------------------------------------------------------------------------


def visible_files(root: Place) -> Iterator[str]:
    """Paths from `root` of every visible file, those of a folder before those of its subfolders."""
    if isinstance(root, Address):
        yield from sorted(filter(_is_visible, root.listing), key=_walking_order)
        return
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        place = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if place == os.curdir else f"{place}/"
        for name in sorted(name for name in names if not name.startswith(".")):
            yield prefix + name


def _is_visible(name: str) -> bool:
    """Whether no part of a listed name is hidden or none at all, as `..` would be."""
    return all(part and not part.startswith(".") for part in name.split("/"))


def _walking_order(name: str) -> list[tuple[bool, str]]:
    """Puts files before the folders beside them."""
    *folders, base = name.split("/")
    return [*((True, folder) for folder in folders), (False, base)]


def list_files(root: Place) -> dict[str, Version]:
    """`file_version` of every visible file, by path from `root`; links are not followed."""
    if isinstance(root, Address):
        return {name: root.listing[name] for name in visible_files(root)}
    base = os.fspath(root)
    return {name: file_version(os.lstat(f"{base}/{name}")) for name in visible_files(root)}


def file_version(status: os.stat_result) -> tuple[int, int]:
    """What changes when a file does: its size in bytes and its modification time in ns."""
    return status.st_size, status.st_mtime_ns


def version_of(root: Place, name: str) -> Version:
    """What changes when a file under a folder does.

    Raises:
        OSError: there is none.
    """
    return root.version(name) if isinstance(root, Address) else file_version((root / name).stat())


def has_file(root: Place, name: str) -> bool:
    """Whether there is a plain file of this name under a folder."""
    return root.has(name) if isinstance(root, Address) else (root / name).is_file()


def has_folder(root: Place, name: str) -> bool:
    """Whether there is a folder of this name under a folder."""
    if isinstance(root, Address):
        return any(file.startswith(f"{name}/") for file in root.listing)
    return (root / name).is_dir()


def names_in(root: Place, folder: str = "") -> list[str]:
    """Names of the files and folders in a folder, in no order.

    Raises:
        OSError: it cannot be read.
    """
    if not isinstance(root, Address):
        return os.listdir(root / folder)
    prefix = f"{folder}/" if folder else ""
    below = (file[len(prefix) :] for file in root.listing if file.startswith(prefix))
    return [*dict.fromkeys(name.partition("/")[0] for name in below)]


def open_plainly(root: Place, name: str) -> io.BufferedReader:
    """A file under a folder, open for reading; only `real_path` looks where links lead.

    Raises:
        OSError: it cannot be opened.
    """
    return root.open(name) if isinstance(root, Address) else open(real_path(root, name), "rb")


def leads_out(root: Place, name: str) -> bool:
    """Whether a path from a folder leads out of it, through links or upwards."""
    if isinstance(root, Address):
        return leads_above(name)
    return not _is_allowed(root, os.path.realpath(root / name))


def real_path(root: Path, name: str) -> str:
    """Where a file under a folder really is, a blob of the Hub's cache included."""
    path = os.path.realpath(root / name)
    return _linked_blob(path) or path


def read_file(root: Place, key: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file under a folder.

    Raises:
        UnusableImage: the path leads out of the folder, or the file is far too large.
        OSError: there is no such file, or it cannot be read.
    """
    if isinstance(root, Address):
        return root.read(key, max_bytes)
    folder, name = os.path.split(os.path.join(root, key))
    real_folder = _real_folder(os.fspath(root), folder)
    path = os.path.join(real_folder or "", name)
    if real_folder is None or name in (os.curdir, os.pardir) or os.path.islink(path):
        path = os.path.realpath(root / key)
        if not _is_allowed(root, path):
            raise UnusableImage(OUTSIDE_FOLDER, storable_name(key))
    path = _linked_blob(path) or path
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(key)
    if status.st_size > max_bytes:
        raise UnusableImage(FILE_TOO_LARGE, f"{status.st_size:,} bytes")
    with open(path, "rb") as file:
        return file.read()


def read_list(root: Place, name: str, max_bytes: int) -> bytes:
    """The bytes of a file without which others mean something else, such as a list of names.

    Raises:
        InputError: they are there and cannot be read to their end.
        UnusableImage, OSError: see `read_file`.
    """
    try:
        return read_file(root, name, max_bytes)
    except BrokenReadError as error:
        raise InputError(f"{root / name}: {error}; run again") from error


@lru_cache(maxsize=1024)  # else every part of the path is looked at again for every image
def _real_folder(root: str, folder: str) -> str | None:
    """Where a folder really is; None outside `root`."""
    base, real = os.path.realpath(root), os.path.realpath(folder)
    return real if _is_inside(base, real) else None


def _is_allowed(root: Path, path: str) -> bool:
    """Whether a real path lies in a folder, or in the blobs of the cached repository around it."""
    blobs = _blobs(os.path.abspath(root))
    return _is_inside(os.path.realpath(root), path) or (
        blobs is not None and _is_inside(os.path.realpath(blobs), path)
    )


def _is_inside(base: str, path: str) -> bool:
    return os.path.commonpath([base, path]) == base


# --- The Hub's cache ------------------------------------------------------------------------------
# A snapshot there is a folder of links to files called by their hashes, `../../blobs/0b81...`.


def _blobs(path: str) -> str | None:
    """Where the files really are that a path in a snapshot of the Hub's cache leads to."""
    match = _SNAPSHOT.match(path + os.sep)
    return None if match is None else os.path.join(match[1], "blobs")


def _linked_blob(path: str) -> str | None:
    """The blob that a file of a snapshot stands for where links were copied as texts."""
    blobs = _blobs(path) if f"{os.sep}snapshots{os.sep}" in path else None
    if blobs is None or not os.path.isfile(path) or os.path.getsize(path) > MAX_LINK_BYTES:
        return None
    with open(path, "rb") as file:
        match = _LINK_TEXT.fullmatch(file.read())
    blob = None if match is None else os.path.join(blobs, match[1].decode())
    is_there = blob is not None and os.path.isfile(blob) and not os.path.islink(blob)
    return blob if is_there else None


@overload
def current_snapshot(folder: Path) -> tuple[Path, tuple[str, ...]]: ...


@overload
def current_snapshot(folder: Place) -> tuple[Place, tuple[str, ...]]: ...


def current_snapshot(folder: Place) -> tuple[Place, tuple[str, ...]]:
    """The snapshot that a repository of the Hub's cache stands for; any other folder as it is.

    Every snapshot holds the same files anew, so one is enough.
    """
    if isinstance(folder, Address):
        return folder, ()
    if not ((folder / "blobs").is_dir() and (folder / "snapshots").is_dir()):
        return folder, ()
    snapshots = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    if not snapshots:
        return folder, ()
    main = _main_revision(folder)
    chosen = max(snapshots, key=lambda path: (path.name == main, path.stat().st_mtime, path.name))
    if len(snapshots) == 1:
        return chosen, ()
    return chosen, (f"snapshot {chosen.name} of {len(snapshots):,} in the Hub's cache",)


def _main_revision(repository: Path) -> str:
    """The snapshot that the branch `main` names; "" where none does."""
    path = repository / "refs/main"
    if not path.is_file():  # opening a pipe would wait for ever
        return ""
    with open(path, "rb") as file:
        return file.read(MAX_REF_BYTES).decode("utf-8", "replace").strip()


# --- Names ----------------------------------------------------------------------------------------


def natural_order(path: str) -> tuple[list[str | int], str]:
    """A sorting key that puts 2 before 10, and 02 before 2."""
    return [int(p) if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", path))], path


def split_from_path(path: str) -> str | None:
    """The split that the path of a table, shard or list names, the nearest part of it first.

    None if no word of it does; `trainImages` is two words.
    """
    for part in reversed(path.split("/")):
        found = (SPLIT_OF.get(word.lower()) for word in words(part))
        if (split := next(filter(None, found), None)) is not None:
            return split
    return None


def words(name: str) -> list[str]:
    """The words of a name; a capital letter after a small one begins another."""
    return re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)


def unread_note(files: Iterable[str]) -> list[str]:
    """How many files of which extensions are not read, in a phrase; nothing where all are."""
    listed = _listed_kinds(files)
    return [f"files not read: {listed}"] if listed else []


def what_it_holds(files: Iterable[str], suffixes: Mapping[str, Sequence[str]]) -> str:
    """What a folder holds that is not what was looked for, and which --dataset reads that.

    Args:
        files: of the folder.
        suffixes: that tell a layout, by its name, the likeliest first.
    """
    files = list(files)
    listed = _listed_kinds(files)
    reading = next(
        (d for d, ends in suffixes.items() if any(f.lower().endswith(tuple(ends)) for f in files)),
        None,
    )
    hint = f": --dataset {reading} reads such" if reading is not None else ""
    return f"; it holds {listed}{hint}" if listed else ""


def _listed_kinds(files: Iterable[str]) -> str:
    kinds = Counter(posixpath.splitext(file)[1].lower() or "no extension" for file in files)
    listed = ", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common(N_SHOWN_KINDS))
    return storable_name(listed)


def numbered(name: str, mark: str = "#") -> Iterator[str]:
    """A name as it is, then with #2, #3 and so on behind it."""
    yield name
    for number in count(2):
        yield f"{name}{mark}{number}"


def unique_names(names: Iterable[str], mark: str = "#") -> list[str]:
    """Every name once as it is; what has the name of another gets #2, #3 and so on."""
    taken: dict[str, None] = {}
    further: dict[str, Iterator[str]] = {}  # names to try, of those that came again
    for name in names:
        key = name
        while key in taken:
            key = next(further.setdefault(name, numbered(name, mark)))
        taken[key] = None
    return list(taken)


def clean_path(path: str) -> str:
    """A path with forward slashes and without detours."""
    return posixpath.normpath(path.replace("\\", "/")) if path else ""


def storable_name(path: str) -> str:
    """A path as any file can hold it: what is no Unicode, as in a name in Latin-1, written out."""
    return path.encode("utf-8", "backslashreplace").decode()


# --- Text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """A text, and what of it was not UTF-8.

    Attributes:
        text: of a file.
        n_western: lines that were read as Windows-1252.
        n_foreign: lines in yet another encoding, which nothing tells.
    """

    text: str
    n_western: int = 0
    n_foreign: int = 0

    def warn(self, origin: object) -> None:
        """Say what was not UTF-8."""
        if self.n_western:
            are = "line is" if self.n_western == 1 else "lines are"
            logger.warning(
                "%s: %d %s not UTF-8; read as Windows-1252", *(origin, self.n_western, are)
            )
        if self.n_foreign:
            are = "line is" if self.n_foreign == 1 else "lines are"
            logger.warning(
                "%s: %d %s neither UTF-8 nor Windows-1252; convert the text, as with "
                "iconv -f GBK -t UTF-8",
                *(origin, self.n_foreign, are),
            )


def decode_text(data: bytes, origin: object) -> str:
    """The text of a file, with a notice where it is not UTF-8; see `decode`.

    Args:
        data: a file's content.
        origin: what the notice calls it.
    """
    decoded = decode(data)
    decoded.warn(origin)
    return decoded.text


def decode(data: bytes) -> Decoded:
    """UTF-8, or UTF-16 with its mark; lines that are neither as Windows-1252.

    What no encoding explains, and NUL, which the csv module refuses, become U+FFFD, and the
    caption that holds it is damaged; see `captions.caption_fault`. So does what is hardly a word of
    a Western language: four letters in a row beyond ASCII.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Decoded(data.decode("utf-16", errors="replace").replace("\0", "\ufffd"))
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return Decoded(data.decode("utf-8").replace("\0", "\ufffd"))
    except UnicodeDecodeError:
        pass
    n_western = n_foreign = 0
    texts = []
    for line in data.split(b"\n"):
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            is_foreign = _FOREIGN.search(line) is not None
            texts.append(line.decode("utf-8" if is_foreign else "cp1252", errors="replace"))
            n_foreign += is_foreign
            n_western += not is_foreign
    return Decoded("\n".join(texts).replace("\0", "\ufffd"), n_western, n_foreign)

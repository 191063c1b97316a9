"""Which files are shards: those of a folder, of a brace pattern or of the Hub's cache.

What is packed, or leads elsewhere, is refused with what makes shards of it.
"""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from math import prod
from pathlib import Path

from braceexpand import alphabet, braceexpand

from artifacts.settings import InputError
from sources.image_files import IMAGE_SUFFIXES, is_lfs_pointer
from sources.paths import (
    current_snapshot,
    leads_out,
    list_files,
    natural_order,
    storable_name,
    unread_note,
    what_it_holds,
)
from sources.places import Address, Place, place_at

logger = logging.getLogger(__name__)
UNPACKERS = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd --rm"}
_PACKED_AS = {
    **{f".tar.{kind}": kind for kind in UNPACKERS},
    **{".tgz": "gz", ".tbz": "bz2", ".tbz2": "bz2", ".txz": "xz", ".tzst": "zst"},
    ".tar.zstd": "zst",
}
PACKED_SUFFIXES = tuple(_PACKED_AS)
_PACKED_HEADS = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
}
MARK_BYTES = 64  # of a file that tell what it is packed as
_ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06")
PATTERN_MARKS = "{*?["
MAX_PATTERN_PATHS = 100_000
N_SHOWN_SHARDS = 3


@dataclass(frozen=True)
class ShardFiles:
    """The shards that --data_dir names.

    Attributes:
        root: the folder that their names start from.
        names: in natural order.
        notes: what was chosen among several things, a phrase each.
        unread: what is left out although it may hold pairs, a phrase each.
    """

    root: Place
    names: list[str]
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def find_shards(data_dir: str | None) -> ShardFiles:
    """The shards in a folder, or those that a path or a pattern names.

    A file that is named, alone or by a pattern, may be a link; in a folder no link leads out. Of a
    repository in the Hub's cache one snapshot is taken, that of `main` if it is there.

    Raises:
        InputError: there are none.
    """
    if not data_dir:
        raise InputError(
            "--data_dir is needed; give a folder of .tar shards, one of them, or a pattern such as "
            "shards/{00000..00012}.tar"
        )
    place = place_at(data_dir)
    if isinstance(place, Address):
        return _shards_behind(place)
    if os.path.isdir(data_dir):
        return _shards_below(Path(data_dir))
    paths = [data_dir] if os.path.lexists(data_dir) else _pattern_paths(data_dir)
    paths = list(dict.fromkeys(map(os.path.normpath, paths)))
    there = {path: None for path in paths if os.path.exists(path)}
    if not there:
        raise InputError(
            f"--data_dir {data_dir}: no such file or folder{_shards_near(paths[0])}; give a folder "
            "of .tar shards, one of them, or a pattern such as shards/{00000..00012}.tar"
        )
    if other := [path for path in there if not path.lower().endswith(".tar")]:
        raise InputError(f"--data_dir {data_dir}: {other[0]} is no .tar shard; {_remedy(other[0])}")
    unread = _missing_note(data_dir, [path for path in paths if path not in there], len(paths))
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError as error:
        raise InputError(
            f"--data_dir {data_dir} mixes absolute and relative paths; give one kind"
        ) from error
    names = [os.path.relpath(path, root or ".") for path in there]
    return ShardFiles(Path(root), sorted(names, key=natural_order), unread=unread)


def _shards_behind(place: Address) -> ShardFiles:
    """The shards of an address: of a folder, of one of them, or of a pattern.

    Raises:
        InputError: there are none.
    """
    text = str(place)
    if not any(mark in text for mark in PATTERN_MARKS):
        if place.is_dir():
            return _shards_below(place)
        if not text.lower().endswith(".tar"):
            raise InputError(f"--data_dir {text} is no .tar shard; {_remedy(text)}")
        return ShardFiles(place.parent, [place.name])
    paths = list(dict.fromkeys(_expanded(text)))
    scheme, folder = _common_folder(paths)
    root = place_at(f"{scheme}{folder}")
    assert isinstance(root, Address), "it begins as an address does"
    n_before = len(scheme) + (len(folder) + 1 if folder else 0)
    found = {path: root.matching(path[n_before:]) for path in paths}
    names = list(dict.fromkeys(chain.from_iterable(found.values())))
    if not names:
        raise InputError(
            f"--data_dir {text}: no such file; give a folder of .tar shards, one of them, or a "
            "pattern such as s3://bucket/{00000..00012}.tar"
        )
    if other := [name for name in names if not name.lower().endswith(".tar")]:
        raise InputError(f"--data_dir {text}: {other[0]} is no .tar shard; {_remedy(other[0])}")
    unread = _missing_note(text, [path for path in paths if not found[path]], len(paths))
    return ShardFiles(root, sorted(names, key=natural_order), unread=unread)


def _common_folder(paths: Sequence[str]) -> tuple[str, str]:
    """How addresses begin, and the folder that is around all of them and no pattern itself.

    Raises:
        InputError: they are of different storage.
    """
    parts = [path.partition("://") for path in paths]
    if len({scheme for scheme, _, _ in parts}) > 1:
        raise InputError(f"--data_dir {paths[0]} and others are of different storage; give one")
    folders = [rest.split("/")[:-1] for _, _, rest in parts]
    common = posixpath.commonprefix(folders)  # of lists, part by part
    plain = takewhile(lambda part: not glob.has_magic(part), common)
    return f"{parts[0][0]}://", "/".join(plain)


def _missing_note(data_dir: str, absent: Sequence[str], n_all: int) -> tuple[str, ...]:
    """What is said of shards that are named and not there; nothing where all are."""
    if not absent:
        return ()
    missing = f"{len(absent):,} of {n_all:,} shards are missing, the first is {absent[0]}"
    logger.warning("--data_dir %s: %s", data_dir, missing)
    return (storable_name(missing),)


def _remedy(path: str) -> str:
    """What makes shards of a file that is none."""
    if path.endswith(PACKED_SUFFIXES):
        return f"decompress it: {unpacking(path)}"
    if path.endswith(".zip"):
        return f"give .tar shards, or unpack it: {unpacking(path)}"
    return "give .tar shards"


def _shards_near(path: str) -> str:
    """What shards there are in the folder of one that is not there, in a few words."""
    if not path.lower().endswith(".tar"):
        return ""
    folder = os.path.dirname(path) or "."
    try:
        names = sorted(
            (n for n in os.listdir(folder) if n.lower().endswith(".tar")), key=natural_order
        )
    except OSError:
        return ""
    if not names:
        return f", and no .tar shard in {folder}"
    more = f" and {len(names) - N_SHOWN_SHARDS:,} more" if len(names) > N_SHOWN_SHARDS else ""
    return f"; {folder} holds {storable_name(', '.join(names[:N_SHOWN_SHARDS]))}{more}"


# --- A folder -------------------------------------------------------------------------------------


def _shards_below(folder: Place) -> ShardFiles:
    root, notes = current_snapshot(folder)
    files = sorted(list_files(root), key=natural_order)
    names = [name for name in files if name.lower().endswith(".tar")]
    outside = {name: None for name in names if leads_out(root, name)}
    left_out = _left_out(root, files, list(outside))
    remedies = [storable_name(f"{fault}{remedy}") for fault, remedy in left_out.items()]
    if len(names) == len(outside):
        layouts = {"parquet": (".parquet",), "folder": IMAGE_SUFFIXES}
        told = "" if remedies else what_it_holds(files, layouts)
        raise InputError("; ".join([f"--data_dir {folder} holds no .tar shards{told}", *remedies]))
    for fault in left_out:
        logger.warning("--data_dir %s: %s", folder, fault)
    stems = {os.path.splitext(name)[0] for name in names}
    # What img2dataset writes beside a shard is about its pairs, and what is packed is told above.
    others = [
        name
        for name in files
        if name not in names
        and os.path.splitext(name)[0].removesuffix("_stats") not in stems
        and not name.endswith((*PACKED_SUFFIXES, ".zip"))
    ]
    notes = (*notes, *unread_note(others))
    return ShardFiles(root, [n for n in names if n not in outside], notes, tuple(remedies))


def _left_out(root: Place, files: Sequence[str], outside: Sequence[str]) -> dict[str, str]:
    """What is left out of a folder although it may hold pairs, and the rest of what helps."""
    packed = [name for name in files if name.endswith(PACKED_SUFFIXES)]
    zipped = [name for name in files if name.endswith(".zip")]
    found = {}
    if outside:
        place = os.path.dirname(os.path.realpath(str(root / outside[0])))
        fault = f"{len(outside):,} links lead out of it, the first is {outside[0]}; put copies in "
        found[f"{fault}their place"] = f", or give the folder that they lead to ({place})"
    if packed:
        fault = f"{len(packed):,} shards are compressed, the first is {packed[0]}; decompress them"
        found[fault] = f" ({unpacking(os.path.join(str(root), packed[0]))})"
    if zipped:
        fault = f"{len(zipped):,} files are zip, the first is {zipped[0]}; unpack them"
        found[fault] = f" ({unpacking(os.path.join(str(root), zipped[0]))})"
    return found


# --- What is packed -------------------------------------------------------------------------------


def unpacking(path: str) -> str:
    """The command that makes shards of a packed file, by its name."""
    shown = shlex.quote(storable_name(path))
    if path.endswith(".zip"):
        return f"unzip {shown}"
    return f"{UNPACKERS[next(k for s, k in _PACKED_AS.items() if path.endswith(s))]} {shown}"


def packing_fault(head: bytes, path: str) -> str:
    """Why what is called a shard is none although it may hold one; "" where it may be one.

    Args:
        head: its first bytes.
        path: of it, for the command that unpacks it.
    """
    shown = shlex.quote(storable_name(path))
    for mark, kind in _PACKED_HEADS.items():
        if head.startswith(mark):
            packed = shlex.quote(f"{storable_name(path)}.{kind}")
            return (
                f"is compressed ({kind}); unpack it: mv {shown} {packed} && "
                f"{UNPACKERS[kind]} {packed}"
            )
    if head.startswith(_ZIP_HEADS):
        return f"is a zip file; unpack it: unzip {shown}"
    if is_lfs_pointer(head):
        return "is a pointer of Git LFS; git lfs pull fetches the shard"
    if re.match(rb"(?:\.\./)+blobs/", head):
        return "is a link in the Hub's cache to a blob that is not there; download it again"
    return ""


# --- Patterns -------------------------------------------------------------------------------------


def _pattern_paths(pattern: str) -> list[str]:
    return list(chain.from_iterable(map(_matching, _expanded(pattern))))


def _expanded(pattern: str) -> Iterator[str]:
    """The texts that a pattern stands for; see `expand_braces`."""
    if _n_expanded(pattern) > MAX_PATTERN_PATHS:
        raise InputError(
            f"--data_dir {pattern} names more than {MAX_PATTERN_PATHS:,} shards; give a folder"
        )
    return expand_braces(pattern)


def _matching(path: str) -> list[str]:
    """The paths that a pattern with `*`, `?` or `[...]` finds; itself where it finds none."""
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    return sorted(glob.glob(path), key=natural_order) or [path]


def expand_braces(pattern: str) -> Iterator[str]:
    """The texts that a pattern stands for, as a shell has it: {a,b}, {00..12}, {0..9..3}, nested.

    A brace that is not closed, or holds neither a comma nor a range, stands for itself.
    """
    texts = braceexpand(_hide_lone_braces(pattern), escape=False)
    return (text.replace("\0(", "{").replace("\0)", "}") for text in texts)


def _hide_lone_braces(pattern: str) -> str:
    """The pattern with its lone braces behind NUL, which no path holds: `braceexpand` refuses them.

    Its own backslash would not do: it is taken away once more for every brace around it.
    """
    characters = list(pattern)
    opened: list[int] = []
    for i, character in enumerate(pattern):
        if character == "{":
            opened.append(i)
        elif character == "}" and opened:
            opened.pop()
        elif character == "}":
            characters[i] = "\0)"
    for i in opened:
        characters[i] = "\0("
    return "".join(characters)


def _n_expanded(pattern: str) -> int:
    """How many texts a pattern stands for: sums over commas, products of what stands side by side.

    Counted before they are made, because `braceexpand` holds every part of a pattern whole.
    """

    def weigh(brace: re.Match[str]) -> str:
        size = _range_size(brace[1])
        return f"<{sum(map(_product, brace[1].split(','))) if size is None else size}>"

    pattern, n_found = pattern.replace("<", ">"), 1
    while n_found:  # the innermost braces first
        pattern, n_found = re.subn(r"\{([^{}]*)\}", weigh, pattern)
    return _product(pattern)


def _product(text: str) -> int:
    return prod(map(int, re.findall("<([0-9]+)>", text)))


def _range_size(text: str) -> int | None:
    """How many numbers or letters a range stands for; None for anything else."""
    for end, place in ((r"-?\d+", int), ("[A-Za-z]", alphabet.index)):
        match = re.fullmatch(rf"({end})\.\.({end})(?:\.\.-?(\d+))?", text)
        if match is not None:
            step = int(match[3] or 1) or 1
            return abs(place(match[1]) - place(match[2])) // step + 1
    return None

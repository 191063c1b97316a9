"""Pairs in WebDataset tar shards: headers are read once, images where and when they are wanted.

A shard is a tar file in which the members of a sample stand side by side and share a key: the path
up to the first dot of the file name. Nothing is ever extracted, and only members whose extension
says image, text or JSON are opened; whatever else a shard holds, pickles included, stays closed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np
from braceexpand import alphabet, braceexpand
from tqdm import tqdm

from artifacts.settings import InputError
from sources.base import (
    DUPLICATE_KEY,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    UnusableImage,
    datacomp_uid,
)
from sources.captions import captions_in
from sources.columns import CAPTION_COLUMNS
from sources.paths import (
    decode_text,
    file_version,
    leads_out,
    list_files,
    natural_order,
    split_from_path,
    storable_name,
    unique_names,
)
from sources.splits import IndexedSource, digest
from sources.tar import IMAGE_EXTENSIONS, TEXT_BYTES, TRUNCATED_SHARD, Member, read_members

logger = logging.getLogger(__name__)
PACKED_SUFFIXES = (
    ".tgz",
    ".tbz2",
    ".txz",
    ".tzst",
    *(f".tar.{s}" for s in "gz bz2 xz zst".split()),
)
MAX_PATTERN_PATHS = 100_000
N_SHOWN_SHARDS = 3


@dataclass(frozen=True, slots=True)
class _Sample:
    """An image and its captions.

    Attributes:
        key: in its shard.
        image: None where there is none.
        captions: at least one; None where it is missing or unreadable.
        uid: 32 hex digits or "".
        problem: why the image must not be used, reason and detail, or None.
        unread: names of texts that are damaged or too large.
        is_repeat: whether the key was in the shard before.
    """

    key: str
    image: Member | None
    captions: tuple[str | None, ...]
    uid: str
    problem: tuple[str, str] | None
    unread: tuple[str, ...]
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class _Shard:
    """What a shard holds.

    Attributes:
        path: where it is.
        name: its path from the data folder.
        version: size in bytes and modification time in ns; None for what is no file.
        samples: in the shard's order.
        ignored: number of members of every extension that is not used.
        problem: why nothing of it can be used, or "".
    """

    path: str
    name: str
    version: tuple[int, int] | None
    samples: tuple[_Sample, ...]
    ignored: Counter[str]
    problem: str


def open_shards(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """The pairs of WebDataset shards: a folder of .tar files, one, or a brace pattern of them.

    Images are jpg, jpeg, png or webp; the caption is the txt member of the same key, else the first
    of `CAPTION_COLUMNS` that its json member has, a list of texts being several captions. The
    split is the one that a shard's path names, training where it names none. What cannot be used
    is skipped with its reason, never left out: a sample without an image is a missing file, one
    without a text a missing caption, one whose key its shard held before a duplicate key.

    Raises:
        InputError: there are no such shards, or none holds anything usable.
    """
    root, names = find_shards(config.data_dir)
    progress = tqdm(names, desc="shards", unit="shard", disable=None, leave=False)
    shards = [_read_shard(root, name) for name in progress]
    keys = _unique_keys(shards)
    if not keys:
        raise InputError(
            f"--data_dir {config.data_dir} holds nothing usable: {len(shards):,} shards, the first "
            f"{shards[0].name} {shards[0].problem}; give WebDataset shards of images and texts"
        )
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    n_images = position = 0
    seen: list[tuple[str, tuple[str | None, ...]]] = []
    for shard in shards:
        split = split_from_path(shard.name) or "train"
        for sample in shard.samples:
            key = keys[len(seen)]
            official[split].append(_record(shard, sample, key, position))
            seen.append((key, sample.captions))
            position += len(sample.captions)
            n_images += sample.image is not None
    n_usable = sum(bool(shard.samples) for shard in shards)
    description = f"{n_usable:,} shards in {config.data_dir}: {n_images:,} images"
    description += f", {position:,} captions"
    if not n_images:
        description += _ignored_note(shards)
    versions = [(shard.name, shard.version) for shard in shards]
    fingerprint = digest("webdataset", versions, seen)
    return IndexedSource("webdataset", description, fingerprint, official, config.limits(), rng)


def _ignored_note(shards: Iterable[_Shard]) -> str:
    ignored = sum((shard.ignored for shard in shards), Counter[str]())
    kinds = ", ".join(f"{n:,} .{extension}" for extension, n in ignored.most_common(3))
    understood = ", ".join(IMAGE_EXTENSIONS)
    return f", members of other kinds ignored ({kinds or 'none'}); images are {understood}"


# --- Which shards ---------------------------------------------------------------------------------


def find_shards(data_dir: str | None) -> tuple[Path, list[str]]:
    """The folder that the shards' names start from, and the names in natural order.

    A file that is named, alone or by a pattern, may be a link; in a folder no link leads out.

    Raises:
        InputError: there are none.
    """
    if not data_dir:
        raise InputError(
            "--data_dir is needed; give a folder of .tar shards, one of them, or a pattern such as "
            "shards/{00000..00012}.tar"
        )
    if os.path.isdir(data_dir):
        return Path(data_dir), _shards_below(Path(data_dir))
    paths = [data_dir] if os.path.lexists(data_dir) else _pattern_paths(data_dir)
    paths = list(dict.fromkeys(map(os.path.normpath, paths)))
    there = {path: None for path in paths if os.path.exists(path)}
    if not there:
        raise InputError(
            f"--data_dir {data_dir}: no such file or folder{_shards_near(paths[0])}; give a folder "
            "of .tar shards, one of them, or a pattern such as shards/{00000..00012}.tar"
        )
    if other := [path for path in there if not path.endswith(".tar")]:
        remedy = "decompress it" if other[0].endswith(PACKED_SUFFIXES) else "give .tar shards"
        raise InputError(f"--data_dir {data_dir}: {other[0]} is no .tar shard; {remedy}")
    if absent := [path for path in paths if path not in there]:
        logger.warning(
            "--data_dir %s: %d of %d shards are missing, the first is %s",
            *(data_dir, len(absent), len(paths), absent[0]),
        )
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError as error:
        raise InputError(
            f"--data_dir {data_dir} mixes absolute and relative paths; give one kind"
        ) from error
    names = [os.path.relpath(path, root or ".") for path in there]
    return Path(root), sorted(names, key=natural_order)


def _shards_near(path: str) -> str:
    """What shards there are in the folder of one that is not there, in a few words."""
    if not path.endswith(".tar"):
        return ""
    folder = os.path.dirname(path) or "."
    try:
        names = sorted((n for n in os.listdir(folder) if n.endswith(".tar")), key=natural_order)
    except OSError:
        return ""
    if not names:
        return f", and no .tar shard in {folder}"
    more = f" and {len(names) - N_SHOWN_SHARDS:,} more" if len(names) > N_SHOWN_SHARDS else ""
    return f"; {folder} holds {storable_name(', '.join(names[:N_SHOWN_SHARDS]))}{more}"


def _shards_below(root: Path) -> list[str]:
    files = sorted(list_files(root), key=natural_order)
    names = [name for name in files if name.endswith(".tar")]
    outside = [name for name in names if leads_out(root, name)]
    packed = [name for name in files if name.endswith(PACKED_SUFFIXES)]
    notes = []
    if outside:
        notes.append(
            f"{len(outside):,} links lead out of it, the first is {outside[0]}; put copies in "
            "their place"
        )
    if packed:
        notes.append(
            f"{len(packed):,} shards are compressed, the first is {packed[0]}; decompress them"
        )
    if len(names) == len(outside):
        raise InputError("; ".join([f"--data_dir {root} holds no .tar shards", *notes]))
    for note in notes:
        logger.warning("--data_dir %s: %s", root, note)
    return [name for name in names if name not in outside]


def _pattern_paths(pattern: str) -> list[str]:
    if _n_expanded(pattern) > MAX_PATTERN_PATHS:
        raise InputError(
            f"--data_dir {pattern} names more than {MAX_PATTERN_PATHS:,} shards; give a folder"
        )
    return list(expand_braces(pattern))


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


# --- Samples --------------------------------------------------------------------------------------


def _read_shard(root: Path, name: str) -> _Shard:
    """What a shard holds; a warning says what is wrong with it."""
    path, shown = os.path.realpath(root / name), storable_name(name)
    members: list[Member] = []
    version, n_whole, damage = None, 0, ""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise OSError("no plain file")
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            version = file_version(status)
            members, n_whole, damage = read_members(file, status.st_size)
    except OSError as error:
        damage = f"cannot be read ({error.strerror or error})"
    samples, ignored = _samples(members, shown)
    problem = ""
    if not samples:
        problem = _emptiness(version, n_whole, damage)
        logger.warning("%s %s; it is left out", shown, problem)
    elif damage:
        logger.warning(
            "%s is damaged after %d members (%s); what stands before is used",
            *(shown, n_whole, damage),
        )
    _warn_about(samples, shown)
    return _Shard(path, shown, version, tuple(samples), ignored, problem)


def _emptiness(version: tuple[int, int] | None, n_whole: int, damage: str) -> str:
    """Why a shard holds no sample."""
    if version is None:
        return damage
    if not version[0] or not (n_whole or damage):
        return "is empty"
    if not n_whole:
        return f"is no tar file ({damage})"
    return f"holds no image and no text among {n_whole:,} members" + (damage and f" ({damage})")


def _warn_about(samples: Sequence[_Sample], shard: str) -> None:
    if unread := [name for sample in samples for name in sample.unread]:
        logger.warning(
            "%s: %d texts are damaged or too large to be captions, the first is %s",
            *(shard, len(unread), unread[0]),
        )
    if repeats := [sample.key for sample in samples if sample.is_repeat]:
        logger.warning(
            "%s: %d samples have a key that was there before, the first is %s; the members of a "
            "sample must stand side by side (tar --sort=name)",
            *(shard, len(repeats), repeats[0]),
        )


def _samples(members: Sequence[Member], shard: str) -> tuple[list[_Sample], Counter[str]]:
    """The samples of a shard, and the number of members of every extension that is not used."""
    texts = _texts(members, shard)
    samples: list[_Sample] = []
    seen: set[str] = set()
    ignored: Counter[str] = Counter()
    for group in _groups(members):
        used = [member for member in group if _is_used(member)]
        ignored.update(member.extension for member in group if not _is_used(member))
        if used:
            sample = _sample(used, texts)
            samples.append(replace(sample, is_repeat=True) if sample.key in seen else sample)
            seen.add(sample.key)
    return samples, ignored


def _is_used(member: Member) -> bool:
    return member.extension in IMAGE_EXTENSIONS or member.extension in TEXT_BYTES


def _groups(members: Iterable[Member]) -> Iterator[list[Member]]:
    """Members side by side that share a key, no extension that is used twice among them."""
    group: list[Member] = []
    for member in members:
        again = _is_used(member) and any(m.extension == member.extension for m in group)
        if group and (member.key != group[0].key or again):
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _texts(members: Iterable[Member], shard: str) -> dict[int, str]:
    """The caption in every txt member that was read, by its offset.

    All but those in UTF-16 are decoded at once, so that one notice counts those that are no UTF-8.
    """
    texts, contents = {}, {}
    for member in members:
        if member.extension == "txt" and member.content is not None:
            if member.content.startswith((b"\xff\xfe", b"\xfe\xff")):
                texts[member.offset] = decode_text(member.content, member.name)
            else:
                lines = member.content.removeprefix(b"\xef\xbb\xbf").splitlines()
                contents[member.offset] = b" ".join(lines)
    # The empty line in front keeps the first text from being taken for a mark of UTF-16.
    decoded = decode_text(b"\n".join([b"", *contents.values()]), shard).split("\n")[1:]
    texts |= dict(zip(contents, decoded, strict=True))
    return {offset: " ".join(text.strip().splitlines()) for offset, text in texts.items()}


def _sample(members: Sequence[Member], texts: Mapping[int, str]) -> _Sample:
    """A sample of members of the same key, at most one of each extension."""
    first = {member.extension: member for member in reversed(members)}
    image = next((m for m in members if m.extension in IMAGE_EXTENSIONS), None)
    text, table = first.get("txt"), first.get("json")
    labels = None if table is None else _labels(table)
    captions = _captions(labels or {}) if text is None else (texts.get(text.offset),)
    problems = [member.problem for member in (image, text or table) if member is not None]
    unread = [m for m, found in ((text, captions[0]), (table, labels)) if m and found is None]
    return _Sample(
        members[0].key,
        image,
        captions,
        datacomp_uid((labels or {}).get("uid")),
        next((problem for problem in problems if problem is not None), None),
        tuple(member.name for member in unread if member.problem is None),
    )


def _labels(member: Member) -> dict[str, object] | None:
    """The fields of a json member, names in lower case; None where it holds no object."""
    if member.content is None:
        return None
    try:
        fields = json.loads(member.content)
    except (ValueError, RecursionError):
        return None
    return {name.casefold(): v for name, v in fields.items()} if isinstance(fields, dict) else None


def _captions(labels: Mapping[str, object]) -> tuple[str | None, ...]:
    """The captions that a json member gives; one that is missing where it gives none."""
    value = next((labels[field] for field in CAPTION_COLUMNS if field in labels), None)
    return tuple(captions_in(value))


# --- Records --------------------------------------------------------------------------------------


def _unique_keys(shards: Iterable[_Shard]) -> list[str]:
    """A name of its own for every sample: its shard's path without .tar, and its key.

    What has the name of another sample gets #2, #3 and so on; a sample that only repeats a key of
    its shard never takes the name of one that does not.
    """
    samples = [(shard.name.removesuffix(".tar"), s) for shard in shards for s in shard.samples]
    order = sorted(range(len(samples)), key=lambda i: samples[i][1].is_repeat)
    names = unique_names(f"{shard}/{sample.key}" for shard, sample in (samples[i] for i in order))
    key_of = dict(zip(order, names, strict=True))
    return [key_of[i] for i in range(len(samples))]


def _record(shard: _Shard, sample: _Sample, key: str, position: int) -> ImageRecord:
    captions = tuple(Caption(position + i, text) for i, text in enumerate(sample.captions))
    problem = (DUPLICATE_KEY, sample.key) if sample.is_repeat else sample.problem
    image = sample.image
    read: Callable[[], bytes]
    if problem is not None:
        read = partial(_refuse, *problem)
    elif image is None:
        read = partial(_miss, key)
    else:
        read = partial(_read_image, shard.path, image.offset, image.size)
    return ImageRecord(
        *(key, read, captions),
        shard=shard.name,
        member="" if image is None else image.name,
        uid=sample.uid,
        problem=None if problem is None else UnusableImage(*problem),
    )


def _refuse(reason: str, detail: str) -> NoReturn:
    raise UnusableImage(reason, detail)


def _miss(key: str) -> NoReturn:
    raise FileNotFoundError(key)


def _read_image(path: str, offset: int, size: int) -> bytes:
    """A part of a file; every call opens it anew, so that any number of threads may read."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise UnusableImage(TRUNCATED_SHARD, f"{len(data):,} of {size:,} bytes are left")
    return data

"""Pairs in WebDataset tar shards: headers are read once, images where and when they are wanted.

A shard is a tar file in which the members of a sample stand side by side and share a key; see
`shard_samples`. Nothing is ever extracted, and only members whose extension says image, text or
JSON are opened, and of others at most the first bytes looked at; whatever else a shard holds,
pickles included, stays closed.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from artifacts.settings import InputError
from sources.base import (
    DUPLICATE_KEY,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    PartConfig,
    UnusableImage,
)
from sources.columns import SPLIT_COLUMN
from sources.image_files import HEAD_BYTES
from sources.official import path_notes, splits_of_paths
from sources.paths import (
    file_version,
    open_plainly,
    real_path,
    split_from_path,
    storable_name,
    unique_names,
)
from sources.places import Address, BrokenReadError, Place, Version, each
from sources.shard_files import MARK_BYTES, ShardFiles, find_shards, packing_fault
from sources.shard_samples import (
    COMMON_IMAGES,
    OPEN_SAMPLE,
    Choice,
    Sample,
    ShardContent,
    find_samples,
)
from sources.splits import IndexedSource, digest
from sources.tar import FilePart, Member, read_members

logger = logging.getLogger(__name__)
N_SHOWN_KINDS = 8


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard and what it holds.

    Attributes:
        part: what reads a part of it, by offset and size in bytes.
        name: its path from the data folder.
        version: what changes when it does; None for what is no file.
        content: its samples, and what else it holds.
        problem: why nothing of it can be used, or "".
        is_whole: whether it could be read to its end.
        warnings: what is wrong with it, a line each.
    """

    part: Callable[[int, int], Callable[[], bytes]]
    name: str
    version: Version | None
    content: ShardContent
    problem: str
    is_whole: bool
    warnings: tuple[str, ...]

    @property
    def samples(self) -> list[Sample]:
        """In the shard's order."""
        return self.content.samples


def open_shards(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """The pairs of WebDataset shards: a folder of .tar files, one, or a pattern of them.

    The caption is the txt member beside the image, else the first of `CAPTION_COLUMNS` that its
    json member has, else another text; several numbered texts, or a list of texts, are several
    captions. `--image_column` and `--caption_column` choose an extension or a field of JSON. The
    split is the one that the field `split` of JSON names, else the shard's path, else training.
    What cannot be used is skipped with its reason, never left out: a sample without an image is a
    missing file, one without a text a missing caption, one whose key its shard held before a
    duplicate key.

    Raises:
        InputError: there are no such shards, or none holds anything usable.
    """
    files = find_shards(config.data_dir)
    shards, unused_flags = _read_shards(files, Choice.of(config))
    if unused_flags and not isinstance(config, PartConfig):  # where it may be about another one
        raise InputError(unused_flags[0].replace("; not used", "; correct it"))
    for warning in [*(w for shard in shards for w in shard.warnings), *unused_flags]:
        logger.warning("%s", warning)
    keys = _unique_keys(shards)
    if not keys:
        raise InputError(
            f"--data_dir {config.data_dir} holds nothing usable: {len(shards):,} shards, the first "
            f"{shards[0].name} {shards[0].problem}{_seen_members(shards)}; give WebDataset shards "
            "of images and texts"
        )
    by_path = _splits_of_members(shards)
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    position = 0
    seen: list[tuple[str, tuple[str | None, ...]]] = []
    for shard in shards:
        split = split_from_path(shard.name) or "train"
        for sample in shard.samples:
            key = keys[len(seen)]
            of_path = by_path.get(_place(shard, sample)) if by_path else None
            record = _record(shard, sample, key, position)
            official[sample.split or of_path or split].append(record)
            seen.append((key, sample.captions))
            position += len(sample.captions)
    versions = [(shard.name, shard.version) for shard in shards]
    facts = [*_further_facts(shards), *([by_path] if by_path else [])]
    fingerprint = digest("webdataset", versions, seen, *facts)
    return IndexedSource(
        *("webdataset", _description(shards, config.data_dir), fingerprint),
        *(official, config.limits(), rng),
        notes=[*files.notes, *unused_flags, *_notes(shards), *path_notes(by_path)],
        unread=[*files.unread, *_unread(shards)],
    )


def _splits_of_members(shards: Iterable[_Shard]) -> dict[str, str]:
    """The splits that paths of images name, in shards that name none themselves."""
    silent = [shard for shard in shards if split_from_path(shard.name) is None]
    return splits_of_paths({_place(shard, s) for shard in silent for s in shard.samples} - {""})


def _place(shard: _Shard, sample: Sample) -> str:
    """The path of a sample's image in its shard; "" where the shard names a split."""
    is_silent = sample.image is not None and split_from_path(shard.name) is None
    return sample.image.name if is_silent and sample.image is not None else ""


def _further_facts(shards: Iterable[_Shard]) -> list[object]:
    """What neither keys nor captions tell: splits, and images that once were not seen.

    Nothing where there are none, so that the fingerprint of such shards is what it always was.
    """
    facts = [
        (sample.key, sample.split, sample.image and sample.image.name)
        for shard in shards
        for sample in shard.samples
        if sample.split or (sample.image and sample.image.extension not in COMMON_IMAGES)
    ]
    return [facts] if facts else []


def _read_shards(files: ShardFiles, choice: Choice) -> tuple[list[_Shard], list[str]]:
    """The shards, and which flags are not used because no shard holds what they name."""
    progress = tqdm(files.names, desc="shards", unit="shard", disable=None, leave=False)
    read = partial(_read_shard, files.root, choice=choice)
    shards = list(each(files.root, read, progress))
    unused = {}
    samples = [sample for shard in shards for sample in shard.samples]
    if choice.image and not any(sample.image for sample in samples):
        unused["image"] = choice.image
    if choice.caption and not any(shard.content.captions for shard in shards):
        unused["caption"] = choice.caption
    if not unused:
        return shards, []
    shards, others = _read_shards(files, replace(choice, **dict.fromkeys(unused, "")))
    return shards, [
        f"--{name}_column {flag}: no shard has such members or fields; not used"
        + _seen_members(shards)
        for name, flag in unused.items()
    ] + others


# --- One shard ------------------------------------------------------------------------------------


def _read_shard(root: Place, name: str, choice: Choice) -> _Shard:
    """What a shard holds, and what is wrong with it."""
    shown = storable_name(name)
    content = ShardContent()
    read: Callable[[int, int], Callable[[], bytes]] = partial(
        FilePart, os.path.join(str(root), name)
    )
    version, n_whole, damage, packing = None, 0, "", ""
    try:
        if isinstance(root, Address):
            read = partial(_part_at, root, name)
        else:
            path = real_path(root, name)
            read = partial(FilePart, path)
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
                raise OSError("no plain file")
        with open_plainly(root, name) as file:
            version = (
                root.version(name)
                if isinstance(root, Address)
                else file_version(os.fstat(file.fileno()))
            )
            packing = packing_fault(file.read(MARK_BYTES), os.path.join(str(root), name))
            if not packing:
                members, n_whole, damage = read_members(file, version[0], choice.kind)
                content = find_samples(members, choice, shown, partial(_read_head, file))
    except BrokenReadError as error:
        version, damage = None, str(error).removeprefix(f"{shown} ")
    except OSError as error:
        damage = f"cannot be read ({error.strerror or error})"
    problem = ""
    warnings = []
    if not content.samples:
        problem = packing or _emptiness(version, n_whole, damage)
        warnings.append(f"{shown} {problem}; it is left out")
    elif damage:
        warnings.append(
            f"{shown} is damaged after {n_whole} members ({damage}); what stands before is used"
        )
    warnings += [f"{shown}: {warning}" for warning in _sample_warnings(content.samples)]
    is_whole = bool(version and version[0]) and not (damage or packing)
    return _Shard(read, shown, version, content, problem, is_whole, tuple(warnings))


def _read_head(file: io.BufferedIOBase, member: Member) -> bytes:
    """The first bytes of a member."""
    file.seek(member.offset)
    return file.read(min(HEAD_BYTES, member.size))


def _emptiness(version: Version | None, n_whole: int, damage: str) -> str:
    """Why a shard holds no sample."""
    if version is None:
        return damage
    if not version[0] or not (n_whole or damage):
        return "is empty"
    if not n_whole:
        return f"is no tar file ({damage})"
    return f"holds no image and no text among {n_whole:,} members" + (damage and f" ({damage})")


def _sample_warnings(samples: Sequence[Sample]) -> Iterator[str]:
    """What is wrong with the samples of a shard, a line for each kind."""
    if unread := [name for sample in samples for name in sample.unread]:
        yield (
            f"{len(unread)} texts are damaged or too large to be captions, the first is {unread[0]}"
        )
    if repeats := [sample.key for sample in samples if sample.is_repeat]:
        yield (
            f"{len(repeats)} samples have a key that was there before, the first is {repeats[0]}; "
            "the members of a sample must stand side by side (tar --sort=name)"
        )
    problems = [(s.key, s.problem[1]) for s in samples if s.problem and s.problem[0] == OPEN_SAMPLE]
    if problems:
        key, detail = problems[0]
        yield f"{len(problems)} samples hold {OPEN_SAMPLE}, the first is {key}: {detail}"


# --- What is told of them -------------------------------------------------------------------------


def _description(shards: Sequence[_Shard], data_dir: str | None) -> str:
    samples = [sample for shard in shards for sample in shard.samples]
    n_images = sum(sample.image is not None for sample in samples)
    n_captions = sum(len(sample.captions) for sample in samples)
    n_usable = sum(bool(shard.samples) for shard in shards)
    text = f"{n_usable:,} shards in {data_dir}: {n_images:,} images, {n_captions:,} captions"
    if n_images:
        return text
    ignored = _total(shards, "ignored").most_common(3)
    kinds = ", ".join(f"{n:,} {extension}" for extension, n in ignored) or "none"
    return f"{text}, members of other kinds ignored ({kinds}); --image_column names that of images"


def _notes(shards: Sequence[_Shard]) -> list[str]:
    """What was used of the shards' members and what was not, a phrase each."""
    totals = {
        "members": _total(shards, "taken"),
        "members ignored": _total(shards, "ignored"),
        "captions from": _total(shards, "captions"),
    }
    notes = [f"{what} {_counts(total)}" for what, total in totals.items() if total]
    splits = Counter(sample.split for shard in shards for sample in shard.samples)
    if set(splits) - {None}:
        parts = [f"{split} {splits[split]:,}" for split in SPLITS if splits[split]]
        n_without = splits[None] + splits[""]
        parts += [f"without {n_without:,}"] if n_without else []
        notes.append(f"split from the json field {SPLIT_COLUMN}: {', '.join(parts)}")
    if n_bare := sum(shard.content.n_bare_keys for shard in shards):
        notes.append(f"{n_bare:,} keys with neither image nor text ignored")
    return notes


def _unread(shards: Sequence[_Shard]) -> list[str]:
    """Which shards could not be read, or not to their end, a phrase each."""
    lost = [shard for shard in shards if not shard.is_whole and not shard.samples]
    cut = [shard for shard in shards if not shard.is_whole and shard.samples]
    notes = []
    if lost:
        notes.append(
            f"{len(lost):,} of {len(shards):,} shards could not be read, the first is "
            f"{lost[0].name}, which {lost[0].problem}"
        )
    if cut:
        notes.append(
            f"{len(cut):,} of {len(shards):,} shards are damaged and were read up to there, the "
            f"first is {cut[0].name}"
        )
    return notes


def _seen_members(shards: Sequence[_Shard]) -> str:
    """The extensions that there are, with their counts, in a phrase."""
    seen = _total(shards, "taken") + _total(shards, "ignored")
    return f"; members seen: {_counts(seen)}" if seen else ""


def _total(shards: Iterable[_Shard], kind: str) -> Counter[str]:
    """A count of what shards hold, of all of them."""
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(getattr(shard.content, kind))
    return total


def _counts(counts: Counter[str]) -> str:
    """Names and how often each is there, the most frequent first: `.jpg 40, .txt 40`."""
    shown = [f"{name} {n:,}" for name, n in counts.most_common(N_SHOWN_KINDS)]
    more = len(counts) - N_SHOWN_KINDS
    return storable_name(", ".join([*shown, *([f"{more:,} other kinds"] if more > 0 else [])]))


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


def _record(shard: _Shard, sample: Sample, key: str, position: int) -> ImageRecord:
    captions = tuple(Caption(position + i, text) for i, text in enumerate(sample.captions))
    problem = (DUPLICATE_KEY, sample.key) if sample.is_repeat else sample.problem
    image = sample.image
    read: Callable[[], bytes]
    if problem is not None:
        read = partial(_refuse, *problem)
    elif image is None:
        read = partial(_miss, key)
    else:
        read = shard.part(image.offset, image.size)
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


def _part_at(root: Address, name: str, offset: int, size: int) -> Callable[[], bytes]:
    """What reads a part of a file at an address."""
    return partial(root.read_range, name, offset, size)

"""Several data sets as one: the pool that is curated, and held-out pairs that come from elsewhere.

What kind a held-out data set is, is found out from its files or said in front of its path. Its
keys begin with `val_data/` or `test_data/`, and its positions with a number that no pool reaches,
so that those of the pool are what they are without it.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from artifacts.settings import InputError
from sources.base import SPLITS, DataConfig, ImageRecord, PairSource, PartConfig
from sources.coco import CAPTIONS
from sources.folders import CAPTION_FILES, METADATA_FILES
from sources.paths import has_file, numbered, visible_files
from sources.places import Address, Place, is_address, place_at
from sources.shard_files import PATTERN_MARKS
from sources.splits import StreamSource, digest

T = TypeVar("T")
LAYOUTS = ("folder", "webdataset", "parquet", "coco", "hf")
EMBEDDINGS = "embeddings"

# Beyond the positions of any pool, streams included, and below 2**53, which every reader of
# tables and JSON holds exactly.
FIRST_POSITIONS = {"validation": 2**51, "test": 2**52}
PREFIXES = {"validation": "val_data", "test": "test_data"}
DATA_FLAGS = {"validation": "val_data", "test": "test_data"}
EMBEDDINGS_FLAGS = {"validation": "val_embeddings_dir", "test": "test_embeddings_dir"}
SAVED_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")  # of save_to_disk
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ANY_LAYOUT = (
    "a folder of images and captions, of tar shards or of parquet files, COCO, a save_to_disk "
    "folder, a pattern of shards or a Hub id"
)


class HeldOut(NamedTuple):
    """A data set that one split is taken from.

    Attributes:
        flag: that names it, with its dashes.
        split: validation or test.
        layout: one of `LAYOUTS`, or `EMBEDDINGS`.
        place: path, pattern or Hub id.
    """

    flag: str
    split: str
    layout: str
    place: str

    @property
    def origin(self) -> str:
        """What it is, in a few words."""
        kind = "" if self.layout == EMBEDDINGS else f" as {self.layout}"
        return f"{self.split} from {self.flag}{kind}"

    def config(self, config: DataConfig) -> PartConfig:
        """What it is opened with."""
        place = "hf_dataset" if self.layout == "hf" else "data_dir"
        changes = {"dataset": self.layout, "data_dir": None, place: self.place}
        if self.layout == EMBEDDINGS:
            changes = {"embeddings_dir": self.place}
        return PartConfig(**{**asdict(config), **changes, "splits": (self.split,)})


# --- Which data sets ------------------------------------------------------------------------------


def held_out_sets(config: DataConfig) -> dict[str, HeldOut]:
    """The data sets that held-out pairs come from, by split; none where the pool gives all.

    Raises:
        InputError: one does not exist, is the pool itself, or cannot be told what it is.
    """
    given = config.embeddings_dir is not None
    found = {}
    for split, name in (EMBEDDINGS_FLAGS if given else DATA_FLAGS).items():
        place = getattr(config, name)
        if place is None:
            continue
        layout, place = (EMBEDDINGS, place) if given else find_layout(place, f"--{name}")
        found[split] = HeldOut(f"--{name}", split, layout, place)
        _check_apart(found[split], config)
    return found


def _check_apart(held_out: HeldOut, config: DataConfig) -> None:
    """Refuse the pool itself, all images of which would be held out."""
    name = "hf_dataset" if config.data_dir is None else "data_dir"
    if held_out.layout == EMBEDDINGS:
        name = "embeddings_dir"
    elif name == "hf_dataset" and config.dataset not in ("auto", "coco", "hf"):
        return
    if _is_same(held_out.place, getattr(config, name)):
        raise InputError(
            f"{held_out.flag} {held_out.place} is --{name} itself, whose images would all be held "
            f"out; leave {held_out.flag} out: {held_out.split} images are then taken from --{name}"
        )


def _is_same(place: str, other: str) -> bool:
    if is_address(place) or is_address(other):
        return place.rstrip("/") == (other or "").rstrip("/")
    if os.path.exists(place) and os.path.exists(other):
        return os.path.samefile(place, other)
    return os.path.normpath(place) == os.path.normpath(other)


def find_layout(given: str, flag: str) -> tuple[str, str]:
    """What a data set is, one of `LAYOUTS`, and where it is.

    Args:
        given: path, pattern or Hub id, perhaps with the layout and a colon in front.
        flag: what errors name.

    Raises:
        InputError: it does not exist, or could be several things.
    """
    layout, colon, place = given.partition(":")
    if colon and layout in LAYOUTS and not is_address(given):
        if not place:
            raise InputError(f"{flag} {given} names no data; say where, as in {layout}:DIR")
        if layout == "hf" and is_address(place):
            raise InputError(_not_as_saved(place, flag))
        return layout, place
    if is_address(given):
        return _layout_behind(given, flag), given
    if os.path.isdir(given):
        return _folder_layout(Path(given), given, flag), given
    for suffix, kind in ((".tar", "webdataset"), (".parquet", "parquet")):
        if os.path.isfile(given) and given.endswith(suffix):
            return kind, given
    if os.path.exists(given):
        raise InputError(f"{flag} {given} is no folder, tar shard or parquet file; give one")
    if any(mark in given for mark in PATTERN_MARKS):
        return "webdataset", given
    if HUB_ID.fullmatch(given) and not given.endswith((".tar", ".parquet")):
        return "hf", given
    raise InputError(f"{flag} {given} does not exist; give {ANY_LAYOUT}")


def _layout_behind(given: str, flag: str) -> str:
    """What an address says that is behind it, or the files that are there.

    Raises:
        InputError: nothing is there, or it could be several things.
    """
    for suffix, kind in ((".tar", "webdataset"), (".parquet", "parquet")):
        if given.endswith(suffix):
            return kind
    if any(mark in given for mark in PATTERN_MARKS):
        return "webdataset"
    root = place_at(given, flag)
    if not root.is_dir():
        raise InputError(f"{flag} {given} is no folder, tar shard or parquet file; give one")
    layout = _folder_layout(root, given, flag)
    if layout == "hf":
        raise InputError(_not_as_saved(given, flag))
    return layout


def _not_as_saved(given: str, flag: str) -> str:
    return (
        f"{flag} {given}: a save_to_disk folder or Hub id is read by datasets, not from an "
        "address; copy the folder to a disk, or save the data set as parquet files"
    )


def _folder_layout(root: Place, given: str, flag: str) -> str:
    """What the files of a folder say that it is.

    Raises:
        InputError: they say several things.
    """
    files = list(visible_files(root))
    captions = files if isinstance(root, Address) else (str(p) for p in root.glob(CAPTIONS))
    if any(fnmatch.fnmatch(file, f"*{CAPTIONS}") for file in captions):
        return "coco"
    shards = {file.removesuffix(".tar") for file in files if file.endswith(".tar")}
    tables = {file.removesuffix(".parquet") for file in files if file.endswith(".parquet")}
    folders = {os.path.dirname(file) for file in files}
    tables -= shards | folders  # img2dataset's tables of what it fetched into each of these
    captions = [f for f in files if f in CAPTION_FILES or os.path.basename(f) in METADATA_FILES]
    signs = {
        "webdataset": f"{len(shards):,} .tar files" if shards else "",
        "parquet": f"{len(tables):,} .parquet files" if tables else "",
        "folder": captions[0] if captions else "",
    }
    found = {layout: sign for layout, sign in signs.items() if sign}
    if len(found) > 1:
        prefixes = " or ".join(f"{layout}:{given}" for layout in found)
        raise InputError(
            f"{flag} {given} could be several things: it holds {' and '.join(found.values())}; "
            f"say which: {flag} {prefixes}"
        )
    if found:
        return next(iter(found))
    return "hf" if any(has_file(root, name) for name in SAVED_FILES) else "folder"


# --- Opening them ---------------------------------------------------------------------------------


def open_parts(
    config: DataConfig,
    held_out: Mapping[str, HeldOut],
    rng: np.random.Generator,
    open_one: Callable[[DataConfig, np.random.Generator], T],
) -> tuple[T, dict[str, T]]:
    """The pool, and the held-out data sets by split, each opened for the splits that it gives.

    The pool draws from `rng` as if it were alone; what is drawn from a held-out data set depends
    on nothing but the seed and itself.

    Raises:
        InputError: one of them cannot be had; it names the flag.
    """
    own_rngs = dict(zip(FIRST_POSITIONS, rng.spawn(len(FIRST_POSITIONS)), strict=True))
    splits = tuple(split for split in SPLITS if split not in held_out)
    pool = open_one(PartConfig(**{**asdict(config), "splits": splits}), rng)
    others = {}
    for split, part in held_out.items():
        with naming(part.flag):
            others[split] = open_one(part.config(config), own_rngs[split])
    return pool, others


@contextmanager
def naming(flag: str) -> Iterator[None]:
    """Errors of what reads a pool, in words that name another flag."""
    try:
        yield
    except InputError as error:
        text = re.sub(r"--dataset (\w+)(?: --data_dir DIR)?", rf"{flag} \1:DIR", str(error))
        text = re.sub(r"--(?:data_dir|hf_dataset|embeddings_dir)\b", flag, text)
        raise InputError(text) from error


def restrict_stream(source: PairSource, config: DataConfig) -> PairSource:
    """A source that gives what it was opened for; a stream has to be told."""
    if isinstance(source, StreamSource) and isinstance(config, PartConfig):
        source.restrict(config.splits)
    return source


# --- The combined source --------------------------------------------------------------------------


class CombinedSource(PairSource):
    """A pool and the data sets that held-out pairs come from."""

    def __init__(
        self,
        pool: PairSource,
        held_out: Mapping[str, HeldOut],
        sources: Mapping[str, PairSource],
    ) -> None:
        """Nothing is read yet.

        Args:
            pool: gives every split but those of `held_out`.
            held_out: what is taken from elsewhere, by split.
            sources: the same, opened.
        """
        parts = [[split, sources[split].fingerprint] for split in SPLITS if split in sources]
        self._origins = (
            pool.description,
            *(f"{held_out[split].origin}: {sources[split].description}" for split, _ in parts),
        )
        fingerprint = digest("combined", pool.fingerprint, parts)
        super().__init__(
            *(pool.name, "; ".join(self._origins), fingerprint),
            notes=[*pool.notes, *_of_parts(held_out, sources, "notes")],
            unread=[*pool.unread, *_of_parts(held_out, sources, "unread")],
        )
        self._pool = pool
        self.can_go_back = all(part.can_go_back for part in (pool, *sources.values()))
        self._held_out = {
            split: _RenamedSource(source, _free_prefix(PREFIXES[split], pool), split)
            for split, source in sources.items()
        }

    @property
    def origins(self) -> tuple[str, ...]:
        """What the pool is, and what each held-out data set is."""
        return self._origins

    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidates of a split, from the data set that gives it."""
        return self._giving(split).records(split)

    def n_images(self, split: str) -> int | None:
        """Number of candidate images of a split; None where that is not known."""
        return self._giving(split).n_images(split)

    def n_captions(self, split: str) -> int | None:
        """Number of captions of a split, all of every image; None where that is not known."""
        return self._giving(split).n_captions(split)

    def n_all_captions(self) -> int | None:
        """Number of captions of all data sets; None where that of one is not known."""
        counts = [part.n_all_captions() for part in (self._pool, *self._held_out.values())]
        return None if None in counts else sum(n for n in counts if n is not None)

    def has_keys_below(self, prefix: str) -> bool:
        """Whether a key of any data set begins like this."""
        return any(part.has_keys_below(prefix) for part in (self._pool, *self._held_out.values()))

    def read_image(self, key: str) -> bytes:
        """The bytes of one image; see `PairSource.read_image`."""
        return self._holding(key).read_image(key)

    def reader_of(self, key: str) -> Callable[[], bytes]:
        """That of the data set that holds the image."""
        return self._holding(key).reader_of(key)

    def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """What reads each of the images named, one data set after the other, the pool first."""
        keys = list(keys)
        for part in (self._pool, *self._held_out.values()):
            own = [key for key in keys if self._holding(key) is part]
            yield from part.read_again(own)

    def prefix(self, split: str) -> str:
        """What the keys of a held-out split begin with."""
        return self._held_out[split].prefix

    def _giving(self, split: str) -> PairSource:
        return self._held_out.get(split, self._pool)

    def _holding(self, key: str) -> PairSource:
        named = (part for part in self._held_out.values() if key.startswith(part.prefix))
        return next(named, self._pool)


def _of_parts(
    held_out: Mapping[str, HeldOut], sources: Mapping[str, PairSource], name: str
) -> Iterator[str]:
    """What held-out data sets tell, with the flag in front that names each."""
    for split, source in sources.items():
        yield from (f"{held_out[split].flag}: {told}" for told in getattr(source, name))


class _RenamedSource(PairSource):
    """A data set whose keys begin with a prefix and whose positions start further up."""

    def __init__(self, source: PairSource, prefix: str, split: str) -> None:
        super().__init__(source.name, source.description, source.fingerprint)
        self._source, self.prefix, self._first = source, prefix, FIRST_POSITIONS[split]

    def records(self, split: str) -> Iterator[ImageRecord]:
        for record in self._source.records(split):
            captions = tuple(
                replace(caption, position=self._first + caption.position)
                for caption in record.captions
            )
            yield replace(record, key=self.prefix + record.key, captions=captions)

    def n_images(self, split: str) -> int | None:
        return self._source.n_images(split)

    def n_captions(self, split: str) -> int | None:
        return self._source.n_captions(split)

    def n_all_captions(self) -> int | None:
        return self._source.n_all_captions()

    def has_keys_below(self, prefix: str) -> bool:
        return self.prefix.startswith(prefix)

    def read_image(self, key: str) -> bytes:
        return self._source.read_image(key.removeprefix(self.prefix))

    def reader_of(self, key: str) -> Callable[[], bytes]:
        return self._source.reader_of(key.removeprefix(self.prefix))

    def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        own = (key.removeprefix(self.prefix) for key in keys)
        return ((self.prefix + key, read) for key, read in self._source.read_again(own))


def _free_prefix(name: str, pool: PairSource) -> str:
    """A beginning of keys that no key of the pool has, as a folder of that name in it would."""
    prefixes = (f"{name}/" for name in numbered(name))
    return next(prefix for prefix in prefixes if not pool.has_keys_below(prefix))

"""DataComp's metadata: .parquet files of pairs, and their embeddings in the .npz beside each.

Both files of a shard have one name, `<hash>.parquet` and `<hash>.npz`, and row i of either is pair
i. An .npz holds the embeddings of one CLIP or of several: `b32_img` and `b32_txt`, `l14_img` and
`l14_txt`. https://github.com/mlfoundations/datacomp, download_upstream.py --download_npz. A shard
that is not whole is left out and counted; the others are read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

import pyarrow.parquet as pq
from tqdm import tqdm

from artifacts.settings import InputError
from sources.arrow import file_of
from sources.base import EMBEDDING_ARCHITECTURES
from sources.npz import NpzArray, array_names
from sources.paths import (
    has_file,
    has_folder,
    leads_out,
    natural_order,
    storable_name,
    visible_files,
)
from sources.places import Place
from sources.vectors import (
    IMAGE_FOLDER,
    MAX_OPEN_FILES,
    METADATA_FOLDER,
    TEXT_FOLDER,
    Vectors,
    all_lengths,
    input_error,
    row_faults,
)

logger = logging.getLogger(__name__)
ARRAYS, TABLE = ".npz", ".parquet"
IMAGES, TEXTS = "img", "txt"
MAX_HELD_BYTES = 2**29  # of decoded images or texts; those of one shard may be more
N_NAMES = 8  # of arrays that an error lists
N_SHOWN = 3  # shards of which a warning says why they are left out


@runtime_checkable  # types are checked while the tests run
class Table(Protocol):
    """What the .parquet file of a shard holds."""

    @property
    def captions(self) -> Sequence[str | None]:
        """One a row."""
        ...


T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Shard(Generic[T]):
    """Pairs and their embeddings.

    Attributes:
        parquet: path of the table from the folder.
        table: what is in it.
        images: image embeddings.
        texts: text embeddings.
        faults: what is wrong with a row, by its number, that cannot be used.
    """

    parquet: str
    table: T
    images: NpzArray
    texts: NpzArray
    faults: Mapping[int, str] = field(repr=False)


@dataclass(frozen=True)
class Pool(Generic[T]):
    """The shards that can be read.

    Attributes:
        architecture: whose embeddings are taken, one of `EMBEDDING_ARCHITECTURES`.
        shards: by name in natural order, one at least.
        left_out: how much there is besides, in a phrase; "" where that is nothing.
    """

    architecture: str
    shards: Sequence[Shard[T]]
    left_out: str

    def vectors(self, root: Place) -> tuple[Vectors, Vectors]:
        """Image and text embeddings, shard by shard.

        Raises:
            InputError: rows of one shard are wider than those of another.
        """
        images = [shard.images for shard in self.shards]
        texts = [shard.texts for shard in self.shards]
        return _vectors(root, images), _vectors(root, texts)


def _vectors(root: Place, arrays: Sequence[NpzArray]) -> Vectors:
    largest = max(array.held_bytes for array in arrays)
    n_held = min(MAX_OPEN_FILES, MAX_HELD_BYTES // largest) if largest else MAX_OPEN_FILES
    return Vectors(root, arrays, max(1, n_held))


# --- Which files ----------------------------------------------------------------------------------


def is_datacomp(root: Place) -> bool:
    """Whether a folder holds .npz files and is none of clip-retrieval's."""
    if any(has_folder(root, folder) for folder in (IMAGE_FOLDER, TEXT_FOLDER)):
        return False
    return any(name.endswith(ARRAYS) for name in visible_files(root))


def list_shards(root: Place) -> dict[str, set[str]]:
    """The suffixes that there are of every shard, by path without suffix, in natural order.

    Where all .npz files are in a folder `metadata`, as `download_upstream.py` leaves them, that one
    alone is looked at: beside it lie the images, in shards that have a .parquet file too.
    """
    files = [os.path.splitext(name) for name in visible_files(root)]
    inner = f"{METADATA_FOLDER}/"
    if all(stem.startswith(inner) for stem, suffix in files if suffix == ARRAYS):
        files = [(stem, suffix) for stem, suffix in files if stem.startswith(inner)]
    found: dict[str, set[str]] = {}
    for stem, suffix in files:
        if suffix in (ARRAYS, TABLE):
            found.setdefault(stem, set()).add(suffix)
    return {stem: found[stem] for stem in sorted(found, key=natural_order)}


def _check_files(root: Place, stem: str, suffixes: set[str]) -> None:
    """Raise an InputError unless both files of a shard are there, in the folder."""
    for suffix in (ARRAYS, TABLE):
        file = f"{stem}{suffix}"
        if suffix not in suffixes:
            raise input_error(
                root, f"{file} is missing; download it with download_upstream.py --download_npz"
            )
        if leads_out(root, file):
            raise input_error(root, f"{file} leads out of the folder; put a copy in its place")
        if not has_file(root, file):
            raise input_error(root, f"{file} is no plain file; replace it")


# --- Reading them ---------------------------------------------------------------------------------


def read_pool(root: Place, wanted: str, read_table: Callable[[str], T]) -> Pool[T]:
    """The shards of a folder, of which captions and the like are kept and embeddings stay on disk.

    Every embedding is looked at once: what has no direction is a fault of its row, what was not
    saved like this makes its shard one that is left out.

    Args:
        root: the folder.
        wanted: `--embedding_arch`.
        read_table: reads a .parquet file, by its path from the folder; may raise an InputError.

    Raises:
        InputError: no shard can be read, or none has the embeddings that are wanted.
    """
    arrays: dict[str, list[str]] = {}
    faults: dict[str, str] = {}
    found = list_shards(root)
    for stem, suffixes in found.items():
        try:
            _check_files(root, stem, suffixes)
            arrays[stem] = array_names(root, stem + ARRAYS)
        except InputError as error:
            faults[stem] = str(error)
    chosen = _choose_architecture(root, wanted, arrays)
    shards: list[Shard[T]] = []
    for stem in tqdm(arrays, desc="embeddings", unit="file", disable=None, leave=False):
        try:
            shards.append(_read_shard(root, stem, chosen, arrays[stem], read_table))
        except InputError as error:
            faults[stem] = str(error)
    reasons = {stem: _reason(root, faults[stem]) for stem in found if stem in faults}
    if not shards:
        stem, first = next(iter(reasons.items()))
        if len(found) == 1:
            raise InputError(faults[stem])
        raise input_error(root, f"none of {len(found):,} shards can be read: {first}")
    return Pool(chosen, shards, _warn_of_left_out(root, found, reasons))


def _choose_architecture(root: Place, wanted: str, arrays: Mapping[str, Sequence[str]]) -> str:
    """The embeddings that are taken: those asked for, else those that most files hold.

    Args:
        root: the folder that errors name.
        wanted: one of `EMBEDDING_ARCHITECTURES`, or auto.
        arrays: names of those in every .npz file.

    Raises:
        InputError: no file holds them.
    """
    counts = {
        name: sum({f"{name}_{IMAGES}", f"{name}_{TEXTS}"} <= {*names} for names in arrays.values())
        for name in EMBEDDING_ARCHITECTURES
    }
    there = [name for name, count in counts.items() if count]
    chosen = max(counts, key=lambda name: counts[name]) if wanted == "auto" else wanted
    if arrays and chosen not in there:
        held = sorted({name for names in arrays.values() for name in names})
        needed = [f"{name}_{IMAGES} and {name}_{TEXTS}" for name in EMBEDDING_ARCHITECTURES]
        lacking = (
            " or ".join(needed) if wanted == "auto" else f"{wanted}_{IMAGES} and {wanted}_{TEXTS}"
        )
        raise InputError(
            f"--embedding_arch {wanted}: no .npz file of --embeddings_dir {root} holds {lacking}; "
            f"they hold {_listed(held)}"
        )
    if wanted == "auto" and len(there) > 1:
        others = " and ".join(name for name in there if name != chosen)
        logger.info("--embedding_arch: %s is taken; %s is there too", chosen, others)
    return chosen


def _read_shard(
    root: Place, stem: str, architecture: str, names: Sequence[str], read_table: Callable[[str], T]
) -> Shard[T]:
    """A shard whose two files are there.

    Raises:
        InputError: one of them is damaged or lacks what is wanted, or their rows differ.
    """
    file, wanted = stem + ARRAYS, [f"{architecture}_{kind}" for kind in (IMAGES, TEXTS)]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise input_error(root, f"{file} lacks {' and '.join(missing)}; it holds {_listed(names)}")
    images, texts = (NpzArray.open(root, file, name) for name in wanted)
    table = read_table(stem + TABLE)
    n_rows = len(table.captions)
    if images.shape != texts.shape or images.shape[0] != n_rows:
        shapes = [
            f"{array.name} {array.shape[0]:,} x {array.shape[1]:,}" for array in (images, texts)
        ]
        raise input_error(
            root,
            f"the rows do not fit ({', '.join(shapes)}, {stem}{TABLE} {n_rows:,}); "
            "download these files again",
        )
    faults = [row_faults(a.name, all_lengths(a.checked_rows())) for a in (texts, images)]
    return Shard(stem + TABLE, table, images, texts, {**faults[0], **faults[1]})


# --- What is left out -----------------------------------------------------------------------------


def _reason(root: Place, error: str) -> str:
    return " ".join(error.removeprefix(f"{input_error(root, '')}").split())


def _warn_of_left_out(
    root: Place, found: Mapping[str, set[str]], reasons: Mapping[str, str]
) -> str:
    """How many shards and rows are left out, also said with a few reasons; "" where none is."""
    if not reasons:
        return ""
    counts = [_count_rows(root, stem, found[stem]) for stem in reasons]
    known = [count for count in counts if count is not None]
    n_rows = f"{sum(known):,}" if len(known) == len(counts) else f"at least {sum(known):,}"
    phrase = f"{len(reasons):,} of {len(found):,} shards left out, {n_rows} rows not read"
    shown = list(reasons.values())[:N_SHOWN]
    if len(reasons) > N_SHOWN:
        shown.append(f"and {len(reasons) - N_SHOWN:,} more")
    logger.warning("--embeddings_dir %s: %s: %s", root, phrase, "; ".join(shown))
    return phrase


def _count_rows(root: Place, stem: str, suffixes: set[str]) -> int | None:
    """Rows of a shard that is left out, by its table, else by its embeddings; None: unknown."""
    if any(leads_out(root, f"{stem}{suffix}") for suffix in suffixes):
        return None
    if TABLE in suffixes and has_file(root, f"{stem}{TABLE}"):
        try:
            return max(0, int(pq.read_metadata(file_of(root, f"{stem}{TABLE}")).num_rows))
        except Exception as error:  # a damaged file raises whatever Arrow raises
            logger.debug("%s: no rows in %s%s: %s", root, stem, TABLE, error)
    if ARRAYS in suffixes and has_file(root, f"{stem}{ARRAYS}"):
        try:
            names = array_names(root, stem + ARRAYS)
            return NpzArray.open(root, stem + ARRAYS, names[0]).shape[0] if names else None
        except InputError as error:
            logger.debug("%s", error)
    return None


def _listed(names: Sequence[str]) -> str:
    """The first few of the names of arrays."""
    if not names:
        return "no arrays"
    more = f" and {len(names) - N_NAMES:,} more" if len(names) > N_NAMES else ""
    return storable_name(", ".join(" ".join(name.split()) for name in names[:N_NAMES])) + more

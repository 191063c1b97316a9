"""Files of embeddings that belong together by number, mapped into memory and checked."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from tqdm import tqdm

from artifacts.settings import InputError
from sources.base import UnusableImage
from sources.npy import fetch_rows, remote_header
from sources.paths import (
    has_file,
    has_folder,
    leads_out,
    names_in,
    natural_order,
    storable_name,
)
from sources.places import Address, Place

EMBEDDING_NOT_USABLE = "embedding not usable"
IMAGE_FOLDER, TEXT_FOLDER, METADATA_FOLDER = "img_emb", "text_emb", "metadata"
SUFFIXES = {IMAGE_FOLDER: ".npy", TEXT_FOLDER: ".npy", METADATA_FOLDER: ".parquet"}
MADE_BY = {  # flags of clip-retrieval's inference
    IMAGE_FOLDER: "--enable_image True",
    TEXT_FOLDER: "--enable_text True",
    METADATA_FOLDER: "--enable_metadata True",
}
N_SHOWN_NAMES = 5  # of a folder that is none of embeddings
MIN_LENGTH = 1e-5  # float16 cannot tell the direction of a shorter row
BLOCK_ROWS = 2**13  # of embeddings that are looked at together
MAX_FETCHED_FILES = 2  # the same of an address, whose files are fetched to the disk
MAX_OPEN_FILES = 64  # of each kind; a memory map keeps its file open
SAVE_PLAINLY = "save the embeddings as a float16 or float32 array with np.save"


def input_error(root: Place, problem: str) -> InputError:
    """What is wrong with a folder of embeddings, with the flag that names it."""
    return InputError(f"--embeddings_dir {root}: {problem}")


def paired_files(root: Place) -> list[tuple[str, str, str]]:
    """Paths from the folder of the image, text and metadata files that belong together.

    Raises:
        InputError: a folder or a file is missing, or leads out of `root`.
    """
    there = [folder for folder in SUFFIXES if _is_there(root, folder)]
    if not {IMAGE_FOLDER, TEXT_FOLDER} & {*there}:
        raise unknown_layout(root)
    found = {folder: _list_folder(root, folder, SUFFIXES[folder]) for folder in there}
    missing = [folder for folder in SUFFIXES if folder not in there]
    if missing:
        verb, flags = ("is", "are")[len(missing) > 1], " ".join(MADE_BY[f] for f in missing)
        raise input_error(
            root,
            f"{' and '.join(missing)} {verb} missing beside {' and '.join(there)}; run "
            f"clip-retrieval inference again with {flags}",
        )
    counts = {folder: len(files) for folder, files in found.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{folder} {n:,}" for folder, n in counts.items())
        raise input_error(
            root, f"the folders hold different numbers of files ({listed}); complete them"
        )
    parts = list(zip(*found.values(), strict=True))
    for part in parts:
        numbers = [re.findall("[0-9]+", PurePosixPath(file).stem)[-1:] for file in part]
        if len({int(number) for last in numbers for number in last}) > 1:
            raise input_error(
                root, f"{' and '.join(part)} have different numbers; complete or rename the files"
            )
    return parts


def _list_folder(root: Place, folder: str, suffix: str) -> list[str]:
    """Visible files of a subfolder in natural order, as paths from `root`."""
    try:
        names = [name for name in names_in(root, folder) if not name.startswith(".")]
    except OSError as error:
        raise input_error(
            root, f"{folder} cannot be read ({error.strerror}); provide it"
        ) from error
    names = sorted((name for name in names if name.endswith(suffix)), key=natural_order)
    if not names:
        raise input_error(
            root,
            f"{folder} holds no {suffix} files; provide them: clip-retrieval inference with "
            f"{MADE_BY[folder]} writes them",
        )
    files = [f"{folder}/{name}" for name in names]
    for file in files:
        if leads_out(root, file):
            raise input_error(root, f"{file} leads out of the folder; put a copy in its place")
        if not has_file(root, file):
            raise input_error(root, f"{file} is no plain file; replace it")
    return files


def unknown_layout(root: Place) -> InputError:
    """What a folder without embeddings holds, what it should hold, and where that may be."""
    try:
        names = [name for name in names_in(root) if not name.startswith(".")]
        is_link = not isinstance(root, Address) and (root / METADATA_FOLDER).is_symlink()
        has_metadata = has_folder(root, METADATA_FOLDER) and not is_link
        inner = names_in(root, METADATA_FOLDER) if has_metadata else []
    except OSError as error:
        return input_error(root, f"it cannot be read ({error.strerror}); provide it")
    names = sorted(names, key=natural_order)
    if any(name.endswith(SUFFIXES[METADATA_FOLDER]) for name in (*names, *inner)):
        problem = (
            ".parquet files but no embeddings; of DataComp's metadata, download the .npz files too "
            "(download_upstream.py --download_npz); of clip-retrieval's, run its inference with "
            f"{MADE_BY[IMAGE_FOLDER]} {MADE_BY[TEXT_FOLDER]} for img_emb and text_emb"
        )
    else:
        seen = [" ".join(storable_name(name).split()) for name in names[:N_SHOWN_NAMES]]
        if len(names) > len(seen):
            seen.append(f"{len(names) - len(seen):,} more")
        problem = (
            f"{', '.join(seen) or 'nothing'}; give a folder with img_emb, text_emb and metadata in "
            "it (clip-retrieval's layout), or with a .parquet and an .npz file of every name "
            "(DataComp's metadata)"
        )
    meant = _meant_near(root, names)[:1]
    hint = "".join(f"; --embeddings_dir {place} may be meant" for place in meant)
    return input_error(root, f"it holds {problem}{hint}")


def _is_there(root: Place, folder: str) -> bool:
    """Whether a folder holds one of this name, a link that leads nowhere included."""
    if isinstance(root, Address):
        return has_folder(root, folder)
    return os.path.lexists(root / folder)


def _meant_near(root: Place, names: Sequence[str]) -> list[str]:
    """Folders of embeddings around a folder that is none: the one above, or those in it."""
    if isinstance(root, Address):
        return [str(root / n) for n in names if has_folder(root, f"{n}/{IMAGE_FOLDER}")]
    nearby = [root.parent] if root.name in SUFFIXES else [root / name for name in names]
    return [str(place) for place in nearby if _may_be_meant(place)]


def _may_be_meant(place: Path) -> bool:
    """Whether a folder is clip-retrieval's, or a link, which is not followed, to DataComp's."""
    return (place / IMAGE_FOLDER).is_dir() or (place.is_symlink() and any(place.glob("*.npz")))


# --- Embeddings -----------------------------------------------------------------------------------


@runtime_checkable  # types are checked while the tests run
class RowFile(Protocol):
    """A file, or a part of one, that holds a row of floats a pair."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and values a row, as its header says."""
        ...

    def rows(self) -> Float[np.ndarray, "n d"]:
        """All rows.

        Raises:
            InputError: they cannot be read any more.
        """
        ...


class Vectors:
    """The rows of several files, one file below the other, read when they are wanted.

    Attributes:
        files: what errors call them.
        n_rows: of every file.
        width: of every row.
    """

    def __init__(
        self, root: Place, files: Sequence[RowFile], max_open_files: int | None = None
    ) -> None:
        """Reads no rows.

        Args:
            root: the folder that errors name.
            files: in their order.
            max_open_files: whose rows are held at once; None: `MAX_OPEN_FILES`, of an address
                `MAX_FETCHED_FILES`.

        Raises:
            InputError: one file is wider than another.
        """
        self._root, self.files, self._max_open = root, [file.name for file in files], max_open_files
        self._parts = files
        n_open = MAX_FETCHED_FILES if isinstance(root, Address) else MAX_OPEN_FILES
        self._cached = lru_cache(max_open_files or n_open)(self._read)
        self._lock = threading.Lock()
        self.n_rows = [file.shape[0] for file in files]
        self.width = files[0].shape[1]
        self._ends = np.cumsum(self.n_rows)
        for file in files:
            if file.shape[1] != self.width:
                raise self.error(
                    f"{file.name} has rows of {file.shape[1]:,} values, {self.files[0]} of "
                    f"{self.width:,}; make them with one encoder"
                )

    def __reduce__(self) -> tuple[type[Vectors], tuple[Any, ...]]:
        """Where the rows are, and none of them."""
        return type(self), (self._root, self._parts, self._max_open)

    def error(self, problem: str) -> InputError:
        """An error that names the folder."""
        return input_error(self._root, problem)

    def place(self, position: int) -> str:
        """Where a row is: its number in its file, from 0, and the file."""
        part = int(np.searchsorted(self._ends, position, side="right"))
        return f"row {position - self._first(part):,} of {self.files[part]}"

    def at(self, positions: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """The rows at these positions, from 0 over all files, as they are.

        Raises:
            InputError: a file cannot be read any more.
        """
        parts = np.searchsorted(self._ends, positions, side="right")
        values = np.empty((len(positions), self.width), np.float32)
        for part in np.unique(parts).tolist():
            here = parts == part
            values[here] = as_float32(self._rows(part)[positions[here] - self._first(part)])
        return values

    def bytes_at(self, position: int) -> bytes:
        """One row as little-endian float32."""
        row: np.ndarray = self.at(np.array([position]))[0]
        return row.astype("<f4").tobytes()

    def lengths(self, part: int) -> Float64[np.ndarray, " n"]:
        """Euclidean length of every row of a file; see `all_lengths`."""
        return all_lengths(self._rows(part))

    def _first(self, part: int) -> int:
        return int(self._ends[part]) - self.n_rows[part]

    def _rows(self, part: int) -> Float[np.ndarray, "n d"]:
        with self._lock:  # threads that want the same file would each read it
            return self._cached(part)

    def _read(self, part: int) -> Float[np.ndarray, "n d"]:
        return self._parts[part].rows()


@dataclass(frozen=True)
class NpyFile:
    """A .npy file, which is mapped into memory.

    Attributes:
        root: folder that `name` starts from.
        name: path from it.
        shape: rows and values a row.
    """

    root: Place
    name: str
    shape: tuple[int, int]

    @classmethod
    def open(cls, root: Place, name: str) -> NpyFile:
        """Reads the header alone.

        Raises:
            InputError: it is no table of floats, or cannot be read.
        """
        if isinstance(root, Address):
            with _reading(root, name):
                shape, _, dtype = remote_header(root, name)
            _check_table(root, name, shape, dtype)
            return cls(root, name, (int(shape[0]), int(shape[1])))
        n, width = _map_rows(root, name).shape
        return cls(root, name, (int(n), int(width)))

    def rows(self) -> Float[np.ndarray, "n d"]:
        """All rows, which stay on disk, or are fetched to it; see `RowFile.rows`."""
        return _map_rows(self.root, self.name)


def _map_rows(root: Place, file: str) -> Float[np.ndarray, "n d"]:
    """A memory map of a .npy file.

    Raises:
        InputError: it is no table of floats, or cannot be read.
    """
    with _reading(root, file):
        rows: np.ndarray
        if isinstance(root, Address):
            rows = fetch_rows(root, file)
        else:
            rows = np.lib.format.open_memmap(root / file, mode="r")  # type: ignore[no-untyped-call]
    _check_table(root, file, rows.shape, rows.dtype)
    return rows


@contextmanager
def _reading(root: Place, file: str) -> Iterator[None]:
    """Whatever an array that is none raises as an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise input_error(
            root, f"{file} cannot be read ({error.strerror or error}); correct it"
        ) from error
    except Exception as error:  # a damaged header makes NumPy raise nearly anything
        problem = str(error).partition("\n")[0]
        raise input_error(
            root, f"{file} is damaged or no plain array ({problem}); {SAVE_PLAINLY}"
        ) from error


def _check_table(root: Place, file: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise an InputError unless an array is one row of floats a pair."""
    fault = table_fault(shape, dtype)
    if fault:
        raise input_error(root, f"{file} {fault}; {SAVE_PLAINLY}")


def table_fault(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Why an array is not one row of floats a pair; "" where it is."""
    is_table = len(shape) == 2 and shape[0] >= 0 and shape[1] > 0
    if is_table and dtype.kind == "f" and dtype.itemsize <= 8:
        return ""
    return f"holds an array of {dtype} with shape {shape}, not one row of floats a pair"


def as_float32(rows: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """The same values; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(rows, np.float32)


def all_lengths(rows: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """Euclidean length of every row, not finite where one of its values is not; block by block."""
    starts = range(0, len(rows), BLOCK_ROWS)
    blocks = [row_lengths(as_float32(rows[start : start + BLOCK_ROWS])) for start in starts]
    return np.concatenate([np.empty(0), *blocks])


def row_lengths(rows: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """Euclidean length of every row; in float64, where no square of a float32 overflows."""
    lengths: np.ndarray = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return lengths


def is_usable(lengths: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether rows of these lengths have a direction."""
    usable: np.ndarray = np.isfinite(lengths) & (lengths >= MIN_LENGTH)
    return usable


def length_fault(length: float) -> str:
    """Why an embedding of this length is not used."""
    return f"length is {length:.1g}" if np.isfinite(length) else "values are not all finite"


def unit_rows(rows: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """The rows divided by their lengths."""
    units = np.empty(rows.shape, np.float32)
    np.divide(rows, row_lengths(rows)[:, np.newaxis], out=units, casting="same_kind")
    return units


def check_shapes(
    images: Vectors, texts: Vectors, metadata: Sequence[str], n_rows: Sequence[int]
) -> None:
    """Raise an InputError unless image, text and metadata files have the same rows."""
    if images.width != texts.width:
        raise images.error(
            f"{images.files[0]} has rows of {images.width:,} values, {texts.files[0]} of "
            f"{texts.width:,}; both must be of one joint space"
        )
    for *names, n_images, n_texts, n_captions in zip(
        *(images.files, texts.files, metadata, images.n_rows, texts.n_rows, n_rows), strict=True
    ):
        counts = (n_images, n_texts, n_captions)
        if len(set(counts)) > 1:
            listed = ", ".join(f"{f} {n:,}" for f, n in zip(names, counts, strict=True))
            raise images.error(f"different numbers of rows ({listed}); make these files again")
    if not sum(n_rows):
        raise images.error("the files hold no rows; provide embeddings")


def find_problems(images: Vectors, texts: Vectors) -> dict[int, str]:
    """What is wrong with every pair, by position, whose image or text row cannot be used."""
    problems: dict[int, str] = {}
    first = 0
    parts = range(len(images.files))
    for part in tqdm(parts, desc="embeddings", unit="file", disable=None, leave=False):
        for vectors in (images, texts):
            for row, fault in row_faults(vectors.files[part], vectors.lengths(part)).items():
                problems.setdefault(first + row, fault)
        first += images.n_rows[part]
    return problems


def row_faults(name: str, lengths: Float64[np.ndarray, " n"]) -> dict[int, str]:
    """What is wrong with every row, by its number, that cannot be used.

    Args:
        name: of the file that they are in.
        lengths: of all its rows.
    """
    unusable = np.flatnonzero(~is_usable(lengths)).tolist()
    return {row: f"row {row:,} of {name}: its {length_fault(lengths[row])}" for row in unusable}


def refuse(detail: str) -> NoReturn:
    """Raise what is wrong with a pair's embedding."""
    raise UnusableImage(EMBEDDING_NOT_USABLE, detail)

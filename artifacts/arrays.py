"""Arrays in files of their own: begun, filled, mapped and hashed without ever being held."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32
from numpy.typing import DTypeLike
from tqdm import tqdm

from artifacts.scratch import reserve

HASHED_AT_ONCE = 2**22  # bytes of a file


@dataclass(frozen=True)
class Filled:
    """A .npy file of float32 rows whose values are written by whoever fills it.

    Attributes:
        path: of the file.
        offset: bytes in front of the first value.
        width: values a row.
    """

    path: Path
    offset: int
    width: int

    @classmethod
    def of(cls, array: np.ndarray) -> Filled:
        """The file that an array is the whole of."""
        assert isinstance(array, np.memmap), "large arrays lie in files"
        path = Path(str(array.filename)).resolve()
        return cls(path, int(getattr(array, "offset", 0)), int(array.shape[1]))

    def write(self, first: int, rows: Float32[np.ndarray, "m w"]) -> None:
        """Put rows in their place, counted from `first`; what lies beside them is not touched.

        Raises:
            OSError: the file cannot be written.
        """
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        with open(self.path, "r+b") as file:
            file.seek(self.offset + first * self.width * 4)
            file.write(data)

    def finish(self) -> None:
        """Have the disk hold what was written.

        Raises:
            OSError: it does not.
        """
        with open(self.path, "r+b") as file:
            os.fsync(file.fileno())


def begin_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros in a new file, or what was begun there before in the same shape.

    Raises:
        OSError: there is no room for it.
    """
    try:
        found = np.load(path, mmap_mode="r+", allow_pickle=False)
    except (OSError, ValueError):
        found = None
    if found is not None and found.shape == shape and found.dtype == dtype:
        return np.asanyarray(found)
    array: np.ndarray = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, mode="w+", dtype=np.dtype(dtype), shape=shape
    )
    with open(path, "r+b") as file:
        reserve(file.fileno(), path.stat().st_size)
    return array


def file_of(array: np.ndarray) -> Path | None:
    """The file that an array is the whole of; None for any other array."""
    if not isinstance(array, np.memmap) or array.filename is None:
        return None
    offset = int(getattr(array, "offset", 0))
    is_whole = array.nbytes + offset == os.path.getsize(array.filename)  # a view names it too
    return Path(array.filename) if is_whole else None


def map_array(path: Path) -> np.ndarray:
    """An array as it lies on the disk, read-only.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain array.
    """
    return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=f"hash of {path.name}",
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
            delay=1,  # most files take less
        ) as bar,
    ):
        while block := file.read(HASHED_AT_ONCE):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


class Hashed:
    """A file that is written from its beginning to its end, hashed on the way."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256, self._n_bytes = file, hashlib.sha256(), 0

    def entry(self) -> dict[str, Any]:
        """What manifests say of the file."""
        return {"sha256": self._sha256.hexdigest(), "bytes": self._n_bytes}

    def write(self, data: Any) -> int:
        """Append."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._sha256.update(view)
        self._n_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """How much was written."""
        return self._n_bytes

    def writable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is not."""
        return False

    def seekable(self) -> bool:
        """It is not."""
        return False

    def flush(self) -> None:
        """Whoever opened the file does, at the end."""

    def close(self) -> None:
        """Whoever opened the file does, at the end."""

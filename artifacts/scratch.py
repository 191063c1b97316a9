"""Arrays too large to be held: filled on disk, read from there, gone when nobody looks any more."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from artifacts.settings import InputError

HELD_BYTES = 2**26  # an array up to this size is an ordinary one
_folder: list[Path] = []  # of the run; one at most


def use_folder(folder: Path | None) -> None:
    """Where large arrays lie from now on; None: where the system puts temporary files."""
    _folder[:] = [] if folder is None else [folder]


def scratch_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """A writable array of zeros; a large one is a file without a name that ends with the array.

    What the system writes back of it does not count as memory that a process holds.

    Raises:
        InputError: the disk is full or cannot be written to.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if n_bytes <= HELD_BYTES:
        return np.zeros(shape, dtype)
    folder = _folder[0] if _folder else None
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".scratch.") as file:
            reserve(file.fileno(), n_bytes)
            return np.memmap(file, dtype=dtype, mode="w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"--output_dir: no room for {n_bytes / 2**30:.1f} GiB of intermediate results in "
            f"{folder or tempfile.gettempdir()} ({error.strerror}); free some space or choose "
            "another folder"
        ) from error


def reserve(file: int, n_bytes: int) -> None:
    """Take room on the disk for an open file: a write to a mapping that finds none kills a run.

    Raises:
        OSError: there is not so much.
    """
    with suppress(AttributeError):  # where there is no such call the file is sparse
        os.posix_fallocate(file, 0, n_bytes)

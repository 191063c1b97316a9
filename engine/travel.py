"""What may go to a worker and come back: paths, numbers and small arrays.

Images and embedding matrices stay where they are, on storage that all workers see. A whole file
that is mapped into memory (`np.load(path, mmap_mode="r")`) travels as its path.
"""

from __future__ import annotations

import copyreg
import functools
import mmap
import os
import platform
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifacts.settings import InputError

MAX_TRAVELLING_BYTES = 32 * 2**20


@dataclass(frozen=True)
class MappedFile:
    """A file's array, to be mapped again where it arrives."""

    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    order: str  # C or F

    def open(self) -> np.ndarray:
        """The array, read only.

        Raises:
            InputError: this machine does not see the file as it was where it was sent from.
        """
        kind = np.dtype(self.dtype)
        needed = self.offset + kind.itemsize * int(np.prod(self.shape, dtype=np.int64))
        try:
            found = os.stat(self.path).st_size
            if found < needed:
                raise OSError(f"{found} bytes, not {needed}")
            return np.memmap(
                self.path, kind, "r", self.offset, self.shape, "F" if self.order == "F" else "C"
            )
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read on {platform.node()} ({error.strerror or error}); all "
                "workers need the data and --output_dir under the same path, on shared storage"
            ) from error


def check_work(work: Callable[..., Any]) -> None:
    """Raise unless a function can be named to another process, which is all that travels of it.

    Raises:
        ValueError: it is no function of a module.
    """
    while isinstance(work, functools.partial):
        work = work.func
    module = sys.modules.get(getattr(work, "__module__", ""))
    name = getattr(work, "__qualname__", repr(work))
    if getattr(module, name, None) is not work:
        raise ValueError(f"work must be a function of a module, got {name}")


def check_travels(value: object, what: str) -> None:
    """Raise unless a value is small enough to be sent.

    Raises:
        ValueError: it is larger than `MAX_TRAVELLING_BYTES`, or part of a mapped file.
    """
    n_bytes = travelling_bytes(value)
    if n_bytes > MAX_TRAVELLING_BYTES:
        raise ValueError(
            f"{what} has {n_bytes / 2**20:.0f} MiB, and no more than "
            f"{MAX_TRAVELLING_BYTES // 2**20} MiB travel; write it to a file and send the path, or "
            "the np.memmap of the whole file"
        )


def travelling_bytes(value: object) -> int:
    """About how many bytes of a value are sent, whole mapped files not counted.

    Raises:
        ValueError: an array is a part of a mapped file, or of one that others cannot open.
    """
    return _bytes(value, set())


def _bytes(value: object, seen: set[int]) -> int:
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if type(value) is np.memmap:
        _mapped_file(value)
        return 0
    if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
        used = value.memory_usage(deep=True)
        return int(used.sum()) if isinstance(used, pd.Series) else int(used)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return value.nbytes + sum(_bytes(item, seen) for item in value.flat)
    if isinstance(size := getattr(value, "nbytes", None), int):  # arrays, tensors, Arrow tables
        return size
    if isinstance(value, functools.partial):
        return _bytes((value.args, value.keywords), seen)
    if isinstance(value, Mapping):
        return sum(_bytes(k, seen) + _bytes(v, seen) for k, v in value.items())
    if isinstance(value, Collection):
        return 8 * len(value) + sum(_bytes(item, seen) for item in value)
    if callable(value):
        return 8  # by its name
    fields = [*getattr(value, "__dict__", {}).values()]
    for name in getattr(type(value), "__slots__", ()):
        fields.append(getattr(value, name, None))
    return 8 + sum(_bytes(field, seen) for field in fields)


def _mapped_file(array: np.memmap) -> MappedFile:
    """How a whole mapped file is named.

    Raises:
        ValueError: it is part of one, has no name, or may still be written.
    """
    base: object = array.base
    if not isinstance(base, mmap.mmap):
        raise ValueError(
            "part of a mapped file does not travel; send the np.memmap of the whole file and the "
            "rows, or np.array(part) where it is small"
        )
    if array.filename is None or array.mode != "r":
        raise ValueError(
            "a mapped file travels where it has a name and is opened with mode r, got mode "
            f"{array.mode} and name {array.filename}"
        )
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return MappedFile(
        os.path.abspath(array.filename), array.dtype.str, array.offset, array.shape, order
    )


def _reduce(array: np.memmap) -> str | tuple[Any, ...]:
    try:
        return MappedFile.open, (_mapped_file(array),)
    except ValueError:  # not for a worker, which `check_travels` has seen to
        return np.array(array).__reduce__()


def send_mapped_files_by_path() -> None:
    """From now on, this process names whole mapped files to others, not their contents."""
    copyreg.pickle(np.memmap, _reduce)

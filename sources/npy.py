"""Arrays of .npy files, by their headers: what they are, and how those of an address are fetched.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Nothing is ever
unpickled.
"""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from artifacts.scratch import scratch_array
from sources.places import Address

READ_BYTES = 2**23  # at once


class NpyHeader(NamedTuple):
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    is_fortran: bool  # whether the first index runs fastest
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: io.BufferedIOBase) -> NpyHeader:
    """What stands before the values, which follow where the file is then.

    Raises:
        ValueError: it is no header of an array, or one of Python objects.
    """
    version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
    if version == (1, 0):
        header = NpyHeader(*np.lib.format.read_array_header_1_0(file))  # type: ignore[no-untyped-call]
    elif version == (2, 0):
        header = NpyHeader(*np.lib.format.read_array_header_2_0(file))  # type: ignore[no-untyped-call]
    else:
        raise ValueError(f"version {version} of .npy, which no array of numbers needs")
    if header.dtype.hasobject:
        raise ValueError("Python objects, which are never unpickled")
    return header


def remote_header(root: Address, name: str) -> NpyHeader:
    """What a file behind an address says of its array, and has bytes for.

    Raises:
        ValueError: see `read_header`; or the file ends before the array does.
        OSError: it cannot be read.
    """
    with root.open(name, 2**12) as file:
        header = read_header(file)
        if min(header.shape, default=0) < 0 or file.tell() + header.n_bytes > root.version(name)[0]:
            raise ValueError("the file ends before its array does")
    return header


def fetch_rows(root: Address, name: str) -> Float[np.ndarray, "n d"]:
    """The array of a file behind an address, in a file without a name that ends with the array.

    Raises:
        ValueError: see `remote_header`.
        OSError: it cannot be read.
        InputError: the disk is full.
    """
    header = remote_header(root, name)
    n_bytes = header.n_bytes
    held = scratch_array((n_bytes,), np.uint8)
    told: dict[str, Any] = {
        "desc": name,
        "unit": "B",
        "unit_scale": True,
        "disable": None,
        "leave": False,
    }
    progress = tqdm(total=n_bytes, **told)
    with root.open(name) as file, progress:
        read_header(file)
        for start in range(0, n_bytes, READ_BYTES):
            block = file.read(min(READ_BYTES, n_bytes - start))
            held[start : start + len(block)] = np.frombuffer(block, np.uint8)
            progress.update(len(block))
    values = held.view(header.dtype)
    if header.is_fortran:
        return values.reshape(header.shape[::-1]).T
    return values.reshape(header.shape)

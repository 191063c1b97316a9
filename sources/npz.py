"""Arrays in .npz files, read when they are wanted and never unpickled.

An .npz is a zip file with a .npy member an array. What `np.savez` stores as it is, is mapped into
memory where it lies in the file; what `np.savez_compressed` deflates has no rows that could be
reached one by one and is decoded whole. Sizes in headers are compared with each other, with the
file and with what is really there before anything is made of them.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from artifacts.settings import InputError
from sources.npy import read_header
from sources.places import Address, Place
from sources.vectors import input_error, table_fault

SAVE_PLAINLY = "download it again, or save float16 or float32 arrays with np.savez"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, length of name and extras
MAX_HEADER_BYTES = 2**16  # of an array; NumPy itself refuses longer ones
MAX_DECODED_BYTES = 2**30  # of one compressed array, which memory has to hold
READ_BYTES = 2**20  # at once


@dataclass(frozen=True)
class NpzArray:
    """A row of floats a pair, of which only the header was read.

    Attributes:
        root: folder that `file` starts from.
        file: path from it.
        array: name of the array.
        shape: rows and values a row.
        dtype: of the values.
        order: C or F.
        header_bytes: of the array, before its first value.
        offset: of the first value in the file; None where the array is compressed, or behind an
            address.
    """

    root: Place
    file: str
    array: str
    shape: tuple[int, int]
    dtype: np.dtype
    order: Any
    header_bytes: int
    offset: int | None

    @classmethod
    def open(cls, root: Place, file: str, array: str) -> NpzArray:
        """Reads the headers alone.

        Raises:
            InputError: there is no such array, it is no table of floats, or what the headers say
                cannot be true.
        """
        name = f"{array} of {file}"
        with _reading(root, name), zipfile.ZipFile(_openable(root, file)) as archive:
            info = _member(archive, array)
            with archive.open(info) as member:
                head = io.BytesIO(member.read(MAX_HEADER_BYTES))
            shape, is_fortran, dtype = read_header(head)
            fault = table_fault(shape, dtype)
            if fault:
                raise input_error(root, f"{name} {fault}; {SAVE_PLAINLY}")
            if head.tell() + shape[0] * shape[1] * dtype.itemsize != info.file_size:
                raise ValueError(f"its size is not that of an array of {dtype} of shape {shape}")
            offset = None
            if isinstance(root, Path) and info.compress_type == zipfile.ZIP_STORED:
                offset = _stored_at(root / file, info) + head.tell()
            elif info.file_size > MAX_DECODED_BYTES:
                size = f"{info.file_size:,} bytes"
                raise input_error(
                    root,
                    f"{name} is compressed and has {size}; save it with np.savez, which maps"
                    if isinstance(root, Path)
                    else f"{name} has {size}, which memory would have to hold; use smaller files",
                )
        order = "F" if is_fortran else "C"
        return cls(root, file, array, (shape[0], shape[1]), dtype, order, head.tell(), offset)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.array} of {self.file}"

    @property
    def held_bytes(self) -> int:
        """Memory that the rows take; none where they stay on disk."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize if self.offset is None else 0

    def rows(self) -> Float[np.ndarray, "n d"]:
        """All rows, on disk or decoded; see `vectors.RowFile.rows`."""
        with _reading(self.root, self.name):
            return self._decoded() if self.offset is None else self._mapped()

    def checked_rows(self) -> Float[np.ndarray, "n d"]:
        """All rows, compared with their checksum, which takes a look at every byte.

        Raises:
            InputError: they are not what was saved.
        """
        if self.offset is not None:
            with _reading(self.root, self.name), self._opened() as member:
                while member.read(READ_BYTES):  # the zip reader reckons the sum as it goes
                    pass
        return self.rows()

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        path = _openable(self.root, self.file, None)
        with zipfile.ZipFile(path) as archive, archive.open(_member(archive, self.array)) as member:
            yield member

    def _mapped(self) -> Float[np.ndarray, "n d"]:
        assert isinstance(self.root, Path), "what lies behind an address is decoded"
        if self.shape[0] == 0:  # nothing cannot be mapped
            return np.empty(self.shape, self.dtype)
        return np.memmap(
            self.root / self.file, self.dtype, "r", self.offset or 0, self.shape, self.order
        )

    def _decoded(self) -> Float[np.ndarray, "n d"]:
        data, at = bytearray(self.held_bytes), 0
        with self._opened() as member:
            member.read(self.header_bytes)
            while block := member.read(min(READ_BYTES, len(data) - at)):
                data[at : at + len(block)] = block
                at += len(block)
            if at < len(data) or member.read(1):  # its end is where the checksum is compared
                raise ValueError("it is shorter or longer than it says")
        return np.ndarray(self.shape, self.dtype, data, order=self.order)


def _openable(root: Place, file: str, buffer_bytes: int | None = MAX_HEADER_BYTES) -> Any:
    """What the zip reader opens; of an address so much is read at once."""
    return root.open(file, buffer_bytes) if isinstance(root, Address) else root / file


def array_names(root: Place, file: str) -> list[str]:
    """Names of the arrays in a file, which may be of any kind and damaged.

    Raises:
        InputError: it is no .npz file.
    """
    with _reading(root, file), zipfile.ZipFile(_openable(root, file)) as archive:
        members = archive.namelist()
    return [name.removesuffix(".npy") for name in members if name.endswith(".npy")]


@contextmanager
def _reading(root: Place, name: str) -> Iterator[None]:
    """Whatever a damaged file raises as an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        problem = error.strerror or error
        raise input_error(root, f"{name} cannot be read ({problem}); correct it") from error
    except Exception as error:
        problem = str(error).partition("\n")[0]
        raise input_error(
            root, f"{name} is damaged or no plain array ({problem}); {SAVE_PLAINLY}"
        ) from error


def _member(archive: zipfile.ZipFile, array: str) -> zipfile.ZipInfo:
    """What the directory of a zip file says of an array.

    Raises:
        KeyError: it says nothing.
        ValueError: it is not stored or deflated; other methods may need any amount of memory.
    """
    info = archive.getinfo(f"{array}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"compressed by method {info.compress_type}, which NumPy does not use")
    return info


def _stored_at(path: Path, info: zipfile.ZipInfo) -> int:
    """Where in its file a member begins that is stored as it is.

    Raises:
        ValueError: there is no member, or the file ends before it does.
    """
    with path.open("rb") as file:
        file.seek(info.header_offset)
        signature, n_name, n_extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        start = info.header_offset + LOCAL_HEADER.size + n_name + n_extra
        end = start + info.file_size
        if signature != b"PK\3\4" or info.compress_size != info.file_size:
            raise ValueError("the directory of the file does not fit its members")
        if end > file.seek(0, io.SEEK_END):
            raise ValueError("the file ends before it does")
    return int(start)

"""Members of a tar file, found by their headers, nothing extracted.

The headers are walked here, block by block with `tarfile.TarInfo`, because `tarfile.TarFile` takes
a damaged header for the end of the archive and follows a negative size backwards. The format is
that of POSIX.1-2008 (pax) with GNU's long names.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import NamedTuple

from sources.base import FILE_TOO_LARGE, MAX_FILE_BYTES, OUTSIDE_FOLDER, UnusableImage
from sources.image_files import IMAGE_EXTENSIONS
from sources.paths import storable_name
from sources.places import StorageGoneError

TRUNCATED_SHARD = "truncated shard"
NO_PLAIN_MEMBER = "no plain file in its shard"
IMAGE, TEXT, TABLE = "image", "text", "json"  # kinds of members that are used
TEXT_EXTENSIONS = ("txt", "text", "caption", "captions", "cap")
_KINDS = {
    **dict.fromkeys(IMAGE_EXTENSIONS, IMAGE),
    **dict.fromkeys(TEXT_EXTENSIONS, TEXT),
    "json": TABLE,
}
TEXT_BYTES = {TEXT: 2**20, TABLE: 2**22}  # the most that is read of a member of this kind
MAX_EXTENDED_BYTES = 2**20  # of a pax header or a long name; no path comes near
MAX_PADDING = 2**20  # bytes after the end mark that are looked at
_EXTENDED_TYPES = (
    *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_PLAIN_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, slots=True)
class FilePart:
    """Reads a part of a file, which every call opens anew: for any number of threads and processes.

    Attributes:
        path: of the file.
        offset: bytes before the part.
        size: of the part, in bytes.
    """

    path: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        """The part.

        Raises:
            UnusableImage: the file ends before it does.
            OSError: it cannot be read.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            detail = f"{len(data):,} of {self.size:,} bytes are left"
            raise UnusableImage(TRUNCATED_SHARD, detail)
        return data

    def as_list(self) -> list[str | int]:
        """All of it, as JSON has it."""
        return list(astuple(self))


class Member(NamedTuple):
    """A member of a shard that belongs to a sample.

    Attributes:
        name: path in the shard, as any file can hold it.
        key: of its sample, the path up to the first dot of the file name.
        extension: what follows that dot, in lower case; "" where there is none.
        kind: `IMAGE`, `TEXT`, `TABLE` or "".
        offset: of its data from the start of the shard, bytes.
        size: of its data, bytes.
        problem: why it must not be opened, reason and detail, or None.
        content: what it holds, if it is a text of permitted size.
    """

    name: str
    key: str
    extension: str
    kind: str
    offset: int
    size: int
    problem: tuple[str, str] | None
    content: bytes | None = None


# --- Names ----------------------------------------------------------------------------------------


def sample_key(name: str) -> tuple[str, str]:
    """The key of a member's sample, and its extension in lower case; key "" for a hidden file."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else ("", "")


def member_kind(extension: str) -> str:
    """What a member of this extension is by the last part of it: a kind, or ""."""
    kind = _KINDS.get(extension)
    return _KINDS.get(unnumbered(extension).rpartition(".")[2], "") if kind is None else kind


def unnumbered(extension: str) -> str:
    """The extension of a text without its number: `txt` of `0.txt`, `caption` of `caption_1`.

    Several texts of a sample that differ in nothing else are captions of one image.
    """
    stem, _, suffix = extension.rpartition(".")
    plain = _without_number(suffix)
    stem = _without_number(stem)
    suffix = plain if plain in TEXT_EXTENSIONS else suffix
    return f"{stem}.{suffix}" if stem else suffix


def _without_number(text: str) -> str:
    plain = text.rstrip("0123456789")
    return text if plain == text else plain.rstrip(" _.-")


# --- Headers --------------------------------------------------------------------------------------


def read_members(
    file: io.BufferedIOBase, n_bytes: int, kind_of: Callable[[str], str] = member_kind
) -> tuple[list[Member], int, str]:
    """The members that have a key, with the content of texts; how many are whole; what is damaged.

    Args:
        file: a shard, open at any place.
        n_bytes: its size.
        kind_of: the kind of a member, by its extension.

    Returns:
        Members in order, the last one perhaps cut; number of whole members of any kind; what ended
        the reading before the end mark, or "".
    """
    members, n_whole = [], 0
    try:
        for member in _headers(file, n_bytes, kind_of):
            n_whole += member.problem is None or member.problem[0] != TRUNCATED_SHARD
            if member.problem is None and member.size <= TEXT_BYTES.get(member.kind, -1):
                file.seek(member.offset)
                member = member._replace(content=_read_exactly(file, member.size))
            if member.extension or (member.key and member.problem is None):
                members.append(member)
    except StorageGoneError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        return members, n_whole, storable_name(str(error)) or type(error).__name__
    return members, n_whole, ""


def _headers(
    file: io.BufferedIOBase, n_bytes: int, kind_of: Callable[[str], str]
) -> Iterator[Member]:
    """Every member of a tar file, in order; the first one that is cut is the last.

    Raises:
        tarfile.TarError: a header is damaged, or the end mark is missing.
        ValueError: a number in a header is none.
    """
    offset = 0
    extended: dict[str, bytes] = {}
    while True:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends without an end mark")
        if not block.strip(b"\0"):
            if file.read(MAX_PADDING).strip(b"\0"):
                raise tarfile.ReadError("data follow its end mark")
            return
        info = _plain_header(block) or tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        offset += tarfile.BLOCKSIZE
        if info.type in _EXTENDED_TYPES:
            if not 0 <= info.size <= MAX_EXTENDED_BYTES:
                raise tarfile.ReadError(f"an extended header of {info.size:,} bytes")
            extended |= _extended_fields(info.type, _read_exactly(file, info.size))
            offset += _padded(info.size)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            offset += _sparse_map_bytes(file, block)
        size = int(extended.get("size", info.size))
        if size < 0:
            raise tarfile.ReadError(f"a member of {size:,} bytes")
        if not info.isreg() and info.type in tarfile.SUPPORTED_TYPES:
            size = 0  # links, folders and devices have no data, whatever their header says
        is_cut = offset + size > n_bytes
        member = _member(info, extended, offset, size, kind_of, is_cut=is_cut)
        yield member
        if is_cut:
            raise tarfile.ReadError(f"{member.name} goes on after the end of the file")
        offset += _padded(size)
        extended = {}


def _plain_header(block: bytes) -> tarfile.TarInfo | None:
    """What the header of a plain file says; None where tarfile has to look at it, which is slower.

    Those with anything uncommon: another type, a long path in two parts, a number that is not
    written in octal digits, a wrong checksum.
    """
    if block[156:157] != tarfile.REGTYPE or block[345]:
        return None
    try:
        size, checksum = (int(block[a:b].rstrip(b" \0"), 8) for a, b in ((124, 136), (148, 156)))
    except ValueError:
        return None
    # The checksum is taken with eight blanks in its own place.
    if sum(block) - sum(block[148:156]) + 8 * 32 != checksum or size < 0:
        return None
    info = tarfile.TarInfo(block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape"))
    info.size = size
    return info


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_exactly(file: io.BufferedIOBase, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise tarfile.ReadError("it ends within a member")
    return data


def _sparse_map_bytes(file: io.BufferedIOBase, header: bytes) -> int:
    """Size of the blocks that go on with the map of an old GNU sparse header, which was just read.

    A flag in the header, and then in each block, tells that another one follows.
    """
    size, goes_on = 0, header[482]
    while goes_on:
        goes_on = _read_exactly(file, tarfile.BLOCKSIZE)[504]
        size += tarfile.BLOCKSIZE
    return size


def _extended_fields(kind: bytes, content: bytes) -> dict[str, bytes]:
    """What an extended header says about the member that follows it.

    Raises:
        ValueError: it is damaged.
    """
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.partition(b"\0")[0]}
    if kind in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):  # neither names nor sizes a member
        return {}
    fields = {}
    position = 0
    while position < len(content):  # "<length of this record> <name>=<value>\n"
        space = content.find(b" ", position, position + 20)
        end = position + int(content[position : max(space, position)])
        name, equals, value = content[space + 1 : end].partition(b"=")
        if end > len(content) or not equals or not value.endswith(b"\n"):
            raise ValueError("a damaged extended header")
        fields[name.decode("utf-8", "surrogateescape")] = value[:-1]
        position = end
    return fields


def _member(
    info: tarfile.TarInfo,
    extended: Mapping[str, bytes],
    offset: int,
    size: int,
    kind_of: Callable[[str], str],
    *,
    is_cut: bool,
) -> Member:
    path = extended.get("GNU.sparse.name", extended.get("path"))
    name = info.name if path is None else path.decode("utf-8", "surrogateescape")
    name = storable_name(name).replace("\0", "\ufffd")
    parts = name.replace("\\", "/").split("/")
    is_sparse = any(field.startswith("GNU.sparse.") for field in extended)
    key, extension = sample_key(name)
    kind = kind_of(extension)
    problem = None
    if not parts[0] or ".." in parts:
        problem = OUTSIDE_FOLDER, name
    elif is_sparse or info.type not in _PLAIN_TYPES:
        problem = NO_PLAIN_MEMBER, name
    elif kind == IMAGE and not is_cut:
        problem = size_problem(size)
    if is_cut:
        problem = TRUNCATED_SHARD, name
    return Member(name, key, extension, kind, offset, size, problem)


def size_problem(size: int) -> tuple[str, str] | None:
    """Why an image of so many bytes must not be read, reason and detail, or None."""
    return (FILE_TOO_LARGE, f"{size:,} bytes") if size > MAX_FILE_BYTES else None

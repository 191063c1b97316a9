"""Files under a folder that nothing leads out of, and text in whatever encoding it has."""

from __future__ import annotations

import codecs
import logging
import os
import posixpath
import stat
from pathlib import Path

from data import FILE_TOO_LARGE, MAX_FILE_BYTES, OUTSIDE_FOLDER, UnusableImage

logger = logging.getLogger(__name__)


def list_files(root: Path) -> dict[str, tuple[int, int]]:
    """Size in bytes and modification time in ns of every visible file, by path from `root`."""
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            status = path.lstat()
            files[path.relative_to(root).as_posix()] = (status.st_size, status.st_mtime_ns)
    return files


def read_file(root: Path, key: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file under a folder.

    Raises:
        UnusableImage: the path leads out of the folder, or the file is far too large.
        OSError: there is no such file, or it cannot be read.
    """
    base, path = os.path.realpath(root), os.path.realpath(root / key)
    if os.path.commonpath([base, path]) != base:
        raise UnusableImage(OUTSIDE_FOLDER, storable_name(key))
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileNotFoundError(key)
    if os.stat(path).st_size > max_bytes:
        raise UnusableImage(FILE_TOO_LARGE, f"{os.stat(path).st_size:,} bytes")
    return Path(path).read_bytes()


def clean_path(path: str) -> str:
    """A path with forward slashes and without detours."""
    return posixpath.normpath(path.replace("\\", "/")) if path else ""


def storable_name(path: str) -> str:
    """A path as any file can hold it: what is no Unicode, as in a name in Latin-1, written out."""
    return path.encode("utf-8", "backslashreplace").decode()


def decode_text(data: bytes, origin: object) -> str:
    """UTF-8, or UTF-16 with its mark; lines that are neither as Windows-1252, with a notice.

    What no encoding explains, and NUL, which the csv module refuses, become U+FFFD, and the
    caption that holds it is damaged; see `data.caption_fault`.

    Args:
        data: a file's content.
        origin: what the notice calls it.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace").replace("\0", "\ufffd")
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    n_other = 0
    texts = []
    for line in lines:
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            texts.append(line.decode("cp1252", errors="replace"))
            n_other += 1
    if n_other:
        logger.warning("%s: %d lines are not UTF-8; read as Windows-1252", origin, n_other)
    return "\n".join(texts).replace("\0", "\ufffd")

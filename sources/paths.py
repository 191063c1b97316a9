"""Files under a folder that nothing leads out of, and text in whatever encoding it has."""

from __future__ import annotations

import codecs
import logging
import os
import posixpath
import stat
from functools import lru_cache
from pathlib import Path

from sources.base import FILE_TOO_LARGE, MAX_FILE_BYTES, OUTSIDE_FOLDER, UnusableImage

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
    folder, name = os.path.split(os.path.join(root, key))
    real_folder = _real_folder(os.fspath(root), folder)
    path = os.path.join(real_folder or "", name)
    if real_folder is None or name in (os.curdir, os.pardir) or os.path.islink(path):
        path = os.path.realpath(root / key)
        if not _is_inside(os.path.realpath(root), path):
            raise UnusableImage(OUTSIDE_FOLDER, storable_name(key))
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(key)
    if status.st_size > max_bytes:
        raise UnusableImage(FILE_TOO_LARGE, f"{status.st_size:,} bytes")
    with open(path, "rb") as file:
        return file.read()


@lru_cache(maxsize=1024)  # else every part of the path is looked at again for every image
def _real_folder(root: str, folder: str) -> str | None:
    """Where a folder really is; None outside `root`."""
    base, real = os.path.realpath(root), os.path.realpath(folder)
    return real if _is_inside(base, real) else None


def _is_inside(base: str, path: str) -> bool:
    return os.path.commonpath([base, path]) == base


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
        lines_are = "line is" if n_other == 1 else "lines are"
        logger.warning("%s: %d %s not UTF-8; read as Windows-1252", *(origin, n_other, lines_are))
    return "\n".join(texts).replace("\0", "\ufffd")

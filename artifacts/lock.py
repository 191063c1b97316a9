"""One run at a time in an output folder.

A file says who is writing there. On one machine the system's lock on it decides, which ends with
the process that has it, however that ends; of a process elsewhere, or where the file system knows
no locks, the file is believed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifacts.settings import InputError

if importlib.util.find_spec("fcntl"):  # not on Windows
    import fcntl

logger = logging.getLogger(__name__)
LOCK_FILE = ".running"
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder in this block; what one that died left is taken over.

    Raises:
        InputError: another run is writing there, or the folder cannot be written to.
    """
    path = folder / LOCK_FILE
    try:
        file = _locked(path)
    except OSError as error:
        raise InputError(
            f"--output_dir: {path} cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)


def _locked(path: Path) -> int:
    """The open file, which is ours and says so."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            is_known = _try_lock(file, path)
            if not _is_at(file, path):  # removed by its owner since it was opened
                os.close(file)
                continue
            _take_over(file, path, locks_work=is_known)
            content = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(content).encode(), 0)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(file)
            raise
        return file


def _try_lock(file: int, path: Path) -> bool:
    """Lock the file; False where the file system cannot.

    Raises:
        InputError: another process has it.
    """
    if "fcntl" not in globals():
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise _taken(path, _content(file)) from None
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _take_over(file: int, path: Path, *, locks_work: bool) -> None:
    """Raise where the file that is there belongs to a run that may go on."""
    content = _content(file)
    if content is None:  # new, or its run died before a word was written
        return
    is_ours = content.get("host") == socket.gethostname()
    if not is_ours or not (locks_work or _has_ended(content.get("pid"))):
        raise _taken(path, content)
    logger.warning(
        "%s: the run of process %s has ended without a word; its folder is taken over "
        "(--load_saved keeps the stages that it had saved)",
        *(path.parent, content.get("pid")),
    )


def _content(file: int) -> dict[str, Any] | None:
    try:
        content = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _has_ended(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, TypeError, ValueError):
        return False
    return False


def _taken(path: Path, content: dict[str, Any] | None) -> InputError:
    who = "" if content is None else f" (process {content.get('pid')} on {content.get('host')})"
    return InputError(
        f"--output_dir {path.parent}: another run is writing there{who}; wait for it, choose "
        f"another folder, or delete {path} if that run is no more"
    )

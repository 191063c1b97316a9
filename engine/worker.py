"""What runs in the processes of a cluster."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.base import Setup, run_job
from engine.threads import one_thread

_made: dict[str, Any] = {}  # this process' context by its setup's key, one at most


def do_job(work: Callable[..., Any], setup: Setup[Any] | None, job: Any) -> Any:
    """A job's summary; the context is kept for the next job of this process."""
    with one_thread():
        return run_job(work, job, () if setup is None else (_context(setup),))


def _context(setup: Setup[Any]) -> Any:
    if setup.key not in _made:
        _made.clear()
        _made[setup.key] = setup.make(setup.job)
    return _made[setup.key]


class Worker:
    """A process with a GPU of its own."""

    def do_job(self, work: Callable[..., Any], setup: Setup[Any] | None, job: Any) -> Any:
        """The same."""
        return do_job(work, setup, job)


def read_probe(path: str) -> tuple[str, bytes | str]:
    """This machine's name, and what a file holds here or why it cannot be read."""
    try:
        content: bytes | str = Path(path).read_bytes()
    except OSError as error:
        content = error.strerror or str(error)
    return platform.node(), content


def process_id() -> int:
    """Of a worker, as a sign that one has started."""
    return os.getpid()

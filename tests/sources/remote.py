"""Data behind addresses for tests: copies of folders in memory, and reads that break off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sources import places
from sources.base import SPLITS, UNREADABLE_FILE, ImageRecord, PairSource
from sources.places import BrokenReadError
from tests.sources.tars import outcome


def in_memory(root: Path, name: str) -> str:
    """The address of a copy of a folder, which replaces what was there."""
    files = fsspec.filesystem("memory")
    if files.exists(f"/{name}"):
        files.rm(f"/{name}", recursive=True)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            files.pipe_file(f"/{name}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return f"memory://{name}"


def seen(source: PairSource) -> list[tuple[Any, ...]]:
    """Everything that a source gives, the bytes of its images too."""
    found = [
        (split, r.key, r.captions, r.shard, r.member, r.uid, _outcome(r))
        for split in SPLITS
        for r in source.records(split)
    ]
    assert found
    return found


def _outcome(record: ImageRecord) -> bytes | str:
    """The image, or why there is none."""
    if record.problem is not None:
        return record.problem.reason
    try:
        return outcome(record)
    except BrokenReadError:
        return UNREADABLE_FILE


Break = Callable[[str, int], Exception | bytes | None]


def break_off(monkeypatch: pytest.MonkeyPatch, what: Break) -> list[str]:
    """Reads of files in memory that fail, or give too little, where `what` says so.

    Args:
        monkeypatch: that takes it back.
        what: of the path of a file and the number of the read of it, from 1.

    Returns:
        The paths of all reads, which grow as they are made.
    """
    monkeypatch.setattr(places, "WAITS_SECONDS", (0.0, 0.0, 0.0))
    original, reads = MemoryFileSystem.cat_file, list[str]()

    def cat_file(self: Any, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        reads.append(path)
        fault = what(path, reads.count(path))
        if isinstance(fault, Exception):
            raise fault
        data: bytes = original(self, path, start, end, **options)
        return data if fault is None else fault

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return reads

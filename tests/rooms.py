"""Where tests have stages train their models."""

from __future__ import annotations

import atexit
import itertools
import tempfile
from pathlib import Path

from artifacts.provenance import INFLUENCE
from artifacts.store import Store
from engine.base import Engine
from engine.local import LocalEngine
from engine.room import StageRoom

_numbers = itertools.count()
_folders: list[tempfile.TemporaryDirectory[str]] = []


def new_room(engine: Engine | None = None, folder: Path | None = None) -> StageRoom:
    """A room in a folder of its own, or in this one, whose shards it takes up."""
    if folder is None:
        if not _folders:
            _folders.append(tempfile.TemporaryDirectory())
            atexit.register(_folders[0].cleanup)
        folder = Path(_folders[0].name) / str(next(_numbers))
    return StageRoom(engine or LocalEngine(2), Store(folder), INFLUENCE, "of a test")

"""Where a benchmark has models trained: threads, and a folder that is gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.provenance import INFLUENCE
from artifacts.store import Store
from engine.local import LocalEngine
from engine.room import StageRoom


@contextmanager
def temporary_room(workers: int | None = None) -> Iterator[StageRoom]:
    """A room for one stage.

    Args:
        workers: trainings at once; None: one a processor core.
    """
    with tempfile.TemporaryDirectory() as folder, LocalEngine(workers) as engine:
        yield StageRoom(engine, Store(Path(folder)), INFLUENCE, "of a benchmark")

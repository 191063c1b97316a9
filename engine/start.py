"""The engine that the flags ask for."""

from __future__ import annotations

from artifacts.store import Store
from engine.base import Engine
from engine.cluster import RayEngine
from engine.local import LocalEngine
from engine.settings import RAY, EngineConfig


def start_engine(config: EngineConfig, store: Store) -> Engine:
    """An engine, to be closed after use.

    Args:
        config: the flags.
        store: the output folder, which all workers have to see.

    Raises:
        InputError: Ray is asked for and not installed, or its address does not answer.
    """
    return RayEngine(config, store) if config.engine == RAY else LocalEngine(config.workers)

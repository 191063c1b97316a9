"""The engine that flags ask for; one that is not installed is named."""

from __future__ import annotations

import sys

import pytest

from artifacts.cores import n_cores
from artifacts.settings import InputError
from artifacts.store import Store
from engine.local import LocalEngine
from engine.settings import EngineConfig
from engine.start import start_engine


def test_threads_unless_something_else_is_asked_for(store: Store) -> None:
    engine = start_engine(EngineConfig(), store)
    assert isinstance(engine, LocalEngine)
    assert engine.workers == n_cores() >= 1
    three = start_engine(EngineConfig(workers=3), store)
    assert isinstance(three, LocalEngine)
    assert three.workers == 3


def test_ray_that_is_not_installed_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--engine ray needs Ray; .*requirements-ray.txt"):
        start_engine(EngineConfig(engine="ray"), store)

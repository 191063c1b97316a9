"""Flags of the engine, none of which makes a saved result stale."""

from __future__ import annotations

from typing import Any

import pytest

from artifacts.settings import InputError
from engine.settings import EngineConfig


def test_where_work_is_done_changes_no_result() -> None:
    assert EngineConfig(engine="ray", workers=4).fingerprint_settings() == {}


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head.cluster:6379", "[::1]:6379"])
def test_addresses(address: str) -> None:
    assert EngineConfig(engine="ray", ray_address=address).ray_address == address


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "spark"}, "--engine must be one of local, ray"),
        ({"workers": 0}, "--workers must be >= 1"),
        ({"engine": "ray", "ray_timeout": 0}, "--ray_timeout must be >= 1"),
        ({"ray_address": "auto"}, "goes with --engine ray"),
        ({"engine": "ray", "ray_address": "ray://head:10001"}, "must be auto or HOST:PORT"),
        ({"engine": "ray", "ray_address": "head"}, "must be auto or HOST:PORT"),
        ({"engine": "ray", "ray_address": ":6379"}, "must be auto or HOST:PORT"),
        ({"engine": "ray", "ray_address": ""}, "must be auto or HOST:PORT"),
    ],
)
def test_wrong_values(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineConfig(**settings)

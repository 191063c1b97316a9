"""The source that the settings ask for, and synthetic scenes with their ground truth."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataConfig
from sources import SYNTHETIC_WARNING, open_source
from tests.helpers import SMALL, offline_datasets, read_all


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return offline_datasets(tmp_path, monkeypatch)


def test_auto_falls_back_to_synthetic_with_a_warning(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(DataConfig(**SMALL), rng=np.random.default_rng(0))
    assert source.name == "synthetic"
    assert SYNTHETIC_WARNING.startswith("SYNTHETIC DATA:")
    [message] = [record.getMessage() for record in caplog.records if record.name == "sources"]
    assert message.startswith(f"{SYNTHETIC_WARNING} (--hf_dataset ")
    assert message.endswith(")")


def test_synthetic_source_and_its_ground_truth() -> None:
    config = DataConfig(dataset="synthetic", **SMALL)
    source = open_source(config, rng=np.random.default_rng(0))
    pairs = read_all(source)[0].pairs()
    assert pairs["split"].value_counts().to_dict() == {"train": 100, "validation": 10, "test": 20}
    train = pairs[pairs["split"] == "train"]
    assert train["image_row"].is_unique
    assert train["fault"].value_counts()[
        ["wrong_caption", "boilerplate", "near_copy"]
    ].tolist() == [10, 5, 10]
    assert set(train["group"]) == {"", "rare"}
    assert source.read_image("test/000000").startswith(b"\x89PNG")
    again = open_source(config, rng=np.random.default_rng(0))
    other = open_source(config, rng=np.random.default_rng(1))
    assert again.fingerprint == source.fingerprint != other.fingerprint

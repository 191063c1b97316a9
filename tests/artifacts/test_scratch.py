"""Tests of arrays that lie on disk while they are filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import scratch
from artifacts.scratch import scratch_array, use_folder
from artifacts.settings import InputError


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the run, with a limit that makes 1,000 numbers a large array."""
    monkeypatch.setattr(scratch, "HELD_BYTES", 1000)
    monkeypatch.setattr(scratch, "_folder", [tmp_path])
    return tmp_path


def test_a_small_array_is_held(tiny: Path) -> None:
    array = scratch_array((10, 10), np.float32)
    assert not isinstance(array, np.memmap)
    assert array.shape == (10, 10)
    assert not array.any()


def test_a_large_array_is_on_disk_and_keeps_what_is_written(tiny: Path) -> None:
    array = scratch_array((100, 7), np.float64)
    assert isinstance(array, np.memmap)
    assert not array.any()
    array[3:5] = np.arange(7)
    assert array.sum() == 42
    assert array[4].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_nothing_of_it_is_left_in_the_folder(tiny: Path) -> None:
    array = scratch_array((1000,), np.int64)
    array[:] = 1
    assert list(tiny.iterdir()) == []


def test_a_disk_without_room_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, n_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch, "reserve", full)
    with pytest.raises(InputError, match=r"--output_dir: no room .*No space left on device"):
        scratch_array((1000,), np.int64)


def test_the_folder_can_be_chosen_and_given_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scratch, "_folder", [])
    use_folder(tmp_path)
    assert scratch._folder == [tmp_path]
    use_folder(None)
    assert scratch._folder == []

"""What is small travels, a whole mapped file as its path, and nothing else."""

from __future__ import annotations

import math
import pickle
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from artifacts.settings import InputError
from engine import travel
from engine.travel import (
    MAX_TRAVELLING_BYTES,
    check_travels,
    check_work,
    send_mapped_files_by_path,
    travelling_bytes,
)


@dataclass(frozen=True)
class Work:
    rows: Any
    name: str = "a"

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("rows",)

    def __init__(self, rows: Any) -> None:
        self.rows = rows


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    np.save(tmp_path / "rows.npy", np.arange(2**22, dtype=np.float64).reshape(-1, 4))
    found = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert found.nbytes == MAX_TRAVELLING_BYTES
    return found  # type: ignore[no-any-return]


MEGABYTE = np.zeros(2**17)


@pytest.mark.parametrize(
    "value",
    [
        MEGABYTE,
        torch.from_numpy(MEGABYTE),
        bytes(2**20),
        "x" * 2**20,
        pa.table({"a": MEGABYTE}),
        pd.DataFrame({"a": MEGABYTE}),
        [MEGABYTE],
        {"a": MEGABYTE},
        {MEGABYTE.tobytes()},
        (1, Work(MEGABYTE)),
        Slotted(MEGABYTE),
        partial(math.dist, MEGABYTE),
        partial(check_travels, value=MEGABYTE),
        np.array([MEGABYTE, None], dtype=object),
        [MEGABYTE, MEGABYTE],  # the same array is sent once
    ],
    ids=lambda value: type(value).__name__,
)
def test_bytes_are_found_wherever_they_are(value: object) -> None:
    assert 2**20 <= travelling_bytes(value) < 2**20 + 300


def test_what_holds_itself_is_counted_once() -> None:
    value: list[Any] = [MEGABYTE]
    value.append(value)
    assert 2**20 <= travelling_bytes(value) < 2**20 + 100


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(travel, "MAX_TRAVELLING_BYTES", 2**20)
    check_travels(Work(np.zeros(2**16)), "a job")
    with pytest.raises(ValueError, match=r"a job has 2 MiB, and no more than 1 MiB travel"):
        check_travels(Work([MEGABYTE, np.ones(2**17)]), "a job")


def test_a_whole_mapped_file_weighs_nothing_and_a_part_is_refused(mapped: np.memmap) -> None:
    assert travelling_bytes([Work(mapped), Work(mapped)]) < 300
    for part in (mapped[:10], mapped[5], mapped.T, mapped.reshape(2, -1)):
        with pytest.raises(ValueError, match="part of a mapped file does not travel"):
            travelling_bytes(Work(part))
    assert travelling_bytes(np.array(mapped[:10])) == 320
    assert travelling_bytes(np.asarray(mapped)) == mapped.nbytes


def test_a_mapped_file_that_others_cannot_open_is_refused(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(bytes(16))
        file.flush()
        nameless = np.memmap(file, np.float32, "r", shape=(4,))
    written = np.memmap(tmp_path / "written", np.float32, "w+", shape=(4,))
    for array in (nameless, written):
        with pytest.raises(ValueError, match="has a name and is opened with mode r"):
            travelling_bytes(array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_file_arrives_by_its_path(tmp_path: Path, order: Any) -> None:
    send_mapped_files_by_path()
    rows = np.asarray(np.random.default_rng(0).normal(size=(300, 20)), order=order)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    sent = pickle.dumps(Work(mapped))
    assert len(sent) < 500
    arrived = pickle.loads(sent).rows  # noqa: S301 - our own
    assert isinstance(arrived, np.memmap)
    assert arrived.mode == "r"
    assert arrived.dtype == mapped.dtype
    assert np.array_equal(arrived, rows)
    part = pickle.loads(pickle.dumps(mapped[3:5]))  # noqa: S301
    assert np.array_equal(part, rows[3:5]), "other users of pickle get what they had"

    (tmp_path / "rows.npy").write_bytes(b"short")
    with pytest.raises(InputError, match=r"rows.npy cannot be read on .* \(5 bytes, not \d+\)"):
        pickle.loads(sent)  # noqa: S301
    (tmp_path / "rows.npy").unlink()
    with pytest.raises(InputError, match=r"\(No such file or directory\).*shared storage"):
        pickle.loads(sent)  # noqa: S301


def test_work_is_a_function_of_a_module() -> None:
    for work in (check_travels, partial(check_travels, what="x"), math.factorial, Work):
        check_work(work)
    others: list[Any] = [lambda: None, partial(lambda: None), Work(1).method, [0].append]
    for other in others:
        with pytest.raises(ValueError, match="work must be a function of a module"):
            check_work(other)

"""Large arrays of saved results: written in pieces, filled in place, mapped when they are read."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from artifacts import store as store_module
from artifacts.provenance import Mode, Provenance, Stage, StaleError
from artifacts.store import Store

STAGE = Stage("thing", "stage9", number=9)
PROVENANCE = Provenance(42, {"rank": 10}, {})


@dataclass(frozen=True)
class Result:
    rows: np.ndarray
    same: np.ndarray
    few: np.ndarray
    name: str


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store to which 100 numbers are a large array."""
    monkeypatch.setattr(store_module, "HELD_BYTES", 400)
    return Store.open(str(tmp_path / "out"))


def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)


def made(store: Store, array: np.ndarray) -> Result:
    return Result(array, array, array[0, :3].copy(), "x")


def files_of(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / STAGE.folder).iterdir())


def test_a_large_array_is_the_same_file_as_numpy_writes(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, lambda: made(store, rows()))
    buffer = io.BytesIO()
    np.save(buffer, rows())
    assert (store.root / "stage9/rows.npy").read_bytes() == buffer.getvalue()


@pytest.mark.parametrize("mode", [Mode.RUN, Mode.LOAD])
def test_it_is_mapped_read_only_and_small_ones_are_held(store: Store, mode: Mode) -> None:
    ran = store.stage(STAGE, Mode.RUN, PROVENANCE, Result, lambda: made(store, rows()))
    value = ran.value
    if mode is Mode.LOAD:
        value = store.stage(STAGE, mode, PROVENANCE, Result, lambda: made(store, rows())).value
    assert isinstance(value.rows, np.memmap)
    assert not value.rows.flags.writeable
    assert not isinstance(value.few, np.memmap)
    np.testing.assert_array_equal(value.rows, rows())
    np.testing.assert_array_equal(value.same, rows())


def test_one_array_under_two_names_lies_on_the_disk_once(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, lambda: made(store, rows()))
    paths = [store.root / "stage9" / name for name in ("rows.npy", "same.npy")]
    assert paths[0].samefile(paths[1])


def test_a_file_system_without_links_gets_a_copy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr("artifacts.store.os.link", refuse)
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, lambda: made(store, rows()))
    paths = [store.root / "stage9" / name for name in ("rows.npy", "same.npy")]
    assert not paths[0].samefile(paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_array_that_was_filled_on_disk_takes_its_name(store: Store) -> None:
    def compute() -> Result:
        array = store.allocate(STAGE, "rows", (50, 7), np.float32, key="abc")
        array[:20], array[20:] = rows()[:20], rows()[20:]
        return Result(array, rows()[:2, :2], np.zeros(2), "x")

    value = store.stage(STAGE, Mode.RUN, PROVENANCE, Result, compute).value
    np.testing.assert_array_equal(value.rows, rows())
    assert files_of(store) == ["few.npy", "manifest.json", "rows.npy", "same.npy"]
    loaded = store.load(STAGE, PROVENANCE, Result).value
    np.testing.assert_array_equal(loaded.rows, rows())


def test_a_part_of_one_is_written_as_the_part(store: Store) -> None:
    def compute() -> Result:
        array = store.allocate(STAGE, "rows", (60, 7), np.float32)
        array[:50] = rows()
        return Result(array[:50], np.zeros(2), np.zeros(2), "x")

    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, compute)
    np.testing.assert_array_equal(np.load(store.root / "stage9/rows.npy"), rows())
    assert not any(name.endswith(".part") for name in files_of(store))


def test_what_a_killed_run_filled_is_taken_up_where_it_is_the_same_thing(store: Store) -> None:
    array = store.allocate(STAGE, "rows", (50, 7), np.float32, key="one")
    array[:3] = 5
    del array
    again = store.allocate(STAGE, "rows", (50, 7), np.float32, key="one")
    assert again[:4, 0].tolist() == [5, 5, 5, 0]
    assert not store.allocate(STAGE, "rows", (50, 7), np.float32, key="two").any()
    assert not store.allocate(STAGE, "rows", (51, 7), np.float32, key="one").any()


def test_a_small_one_is_not_begun_on_disk(store: Store) -> None:
    array = store.allocate(STAGE, "rows", (5, 2), np.float32)
    assert not isinstance(array, np.memmap)
    assert not (store.root / "stage9").exists()


def test_damage_to_a_large_file_is_noticed(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, lambda: made(store, rows()))
    path = store.root / "stage9/rows.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    with pytest.raises(StaleError, match=r"damaged rows\.npy"):
        store.load(STAGE, PROVENANCE, Result)

"""What is lent is the same at every worker, and only paths of large arrays travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from engine.base import Setup
from engine.local import LocalEngine
from engine.shards import ShardFiles, Summary
from engine.travel import check_travels, travelling_bytes
from learner.lending import lend
from learner.pairs import FeatureScaling, PairTensors, StoredPairs
from tests.rooms import new_room

CPU = torch.device("cpu")
KEPT: list[Any] = []


class Inner(NamedTuple):
    matrix: np.ndarray
    name: str


class Shown(NamedTuple):
    pairs: PairTensors
    stored: StoredPairs
    inner: Inner
    by_name: dict[str, Inner]
    short: np.ndarray
    long: np.ndarray
    empty: np.ndarray
    nothing: None
    several: list[np.ndarray]


class Elsewhere(LocalEngine):
    """Threads that are given what other processes are."""

    def offer(self, setup: Setup[Any], context: Any) -> bool:
        return False


def keep(number: int, files: ShardFiles, shown: Shown) -> Summary:
    KEPT.append(shown)
    return {"number": number, "sum": float(shown.pairs.images.sum())}


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(50, d)).astype(np.float32) for d in (3, 2)]
    paths = [tmp_path / f"{d}.npy" for d in (3, 2)]
    for path, side in zip(paths, sides, strict=True):
        np.save(path, side)
    means = [np.zeros(d, dtype=np.float32) for d in (3, 2)]
    scaling = FeatureScaling(means[0], 1.0, means[1], 2.0)
    maps = [np.load(path, mmap_mode="r") for path in paths]
    return Shown(
        PairTensors(*(torch.from_numpy(side) for side in sides)),
        StoredPairs(maps[0], maps[1], scaling, CPU, np.arange(0, 50, 2)),
        Inner(rng.normal(size=(4, 4)), "inner"),
        {"a": Inner(rng.normal(size=(2, 2)), "b")},
        np.arange(3),
        np.arange(2**14),
        np.zeros((0, 5)),
        None,
        [maps[0], np.arange(2)],
    )


def leaves(value: Any) -> list[Any]:
    if isinstance(value, StoredPairs):
        return [value.image_features, value.text_features, value.rows, value.whole().texts]
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def test_threads_are_given_what_is_there_and_others_files_of_the_same(shown: Shown) -> None:
    KEPT.clear()
    here, there = new_room(LocalEngine(2)), new_room(Elsewhere(2))
    for room in (here, there):
        made = lend(room, "shown", shown, CPU).run("keeping", keep, [0, 1], unit="job")
        assert [one.summary["number"] for one in made] == [0, 1]
        assert made[0].summary["sum"] == float(shown.pairs.images.sum())
    assert KEPT[0] is KEPT[1] is shown
    assert not (here.store.root / "stage2/shards/influence/put").exists()
    opened = KEPT[2]
    assert KEPT[3] is opened, "one a worker"
    assert type(opened) is Shown
    assert type(opened.inner) is Inner
    assert type(opened.pairs) is PairTensors
    assert len(leaves(opened)) == len(leaves(shown)) == 16
    for ours, theirs in zip(leaves(opened), leaves(shown), strict=True):
        assert type(ours) in (type(theirs), np.memmap)
        np.testing.assert_array_equal(ours, theirs)
    there.clear()
    assert not (there.store.root / "stage2").exists()


def test_only_paths_and_vectors_travel(shown: Shown) -> None:
    lent = lend(new_room(Elsewhere(1)), "shown", shown, CPU)
    job = lent.setup.job
    check_travels(job, "what is lent")
    assert travelling_bytes(job) < 2000
    files = sorted((lent.room.store.root / "stage2/shards/influence/put").glob("*.npy"))
    held = [np.load(file, mmap_mode="r") for file in files]
    # Features, the matrices and what is long; not the files that are there already.
    assert sorted(array.shape for array in held) == [(2, 2), (4, 4), (50, 2), (50, 3), (2**14,)]
    large = shown._replace(pairs=PairTensors(torch.zeros(2**20, 10), torch.zeros(2, 1)))
    assert travelling_bytes(lend(new_room(Elsewhere(1)), "shown", large, CPU).setup.job) < 2000


def test_beside_a_gpu_a_worker_needs_one(shown: Shown) -> None:
    assert not lend(new_room(), "shown", shown, CPU).setup.on_gpu
    assert lend(new_room(), "shown", shown, torch.device("cuda")).setup.on_gpu


def test_what_is_offered_ends_with_its_setup() -> None:
    engine = LocalEngine(1)
    room = new_room(engine)
    first = lend(room, "first", Inner(np.zeros((2, 2)), "first"), CPU)
    second = lend(room, "second", Inner(np.ones((2, 2)), "second"), CPU)
    for lent, name in ((second, "second"), (first, "first"), (second, "second")):
        made = lent.run("telling", tell, [0], unit="job")
        assert made[0].summary == {"name": name}
        room.forget("telling")
    assert len(engine._offered) == 2
    del lent, first, second
    assert len(engine._offered) == 0


def tell(_: int, files: ShardFiles, inner: Inner) -> Summary:
    return {"name": inner.name}

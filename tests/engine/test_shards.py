"""A shard map goes on where it was broken off, and what is damaged is made again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.settings import InputError
from artifacts.store import Store
from engine.base import Setup
from engine.local import LocalEngine
from engine.shards import Shard, ShardFiles, Summary, manifest_path, run_shards
from tests.engine import work

ROOT = Path(work.__file__).parents[2]


@dataclass(frozen=True)
class Numbers:
    """Numbers to be written, and where it is noted that they were."""

    first: int
    calls: Path
    dies: bool = False
    extra: bool = False
    fails: bool = False


def write_numbers(job: Numbers, files: ShardFiles) -> Summary:
    numbers = np.arange(job.first, job.first + 4, dtype=np.float32)
    files.write_npy("_numbers.npy", numbers)
    with job.calls.open("a") as calls:
        calls.write(f"{job.first}\n")
    if job.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.fails:
        raise InputError(f"shard {job.first} cannot be read")
    with files.writing("_table.parquet") as file:
        pq.write_table(pa.table({"number": numbers}), file)
    if job.extra:
        files.write_npy("_extra.npy", numbers)
    return {"sum": float(numbers.sum()), "thirds": [job.first / 3], "pair": (5, None)}


def scale_numbers(job: Numbers, files: ShardFiles, model: dict[str, Any]) -> Summary:
    return {"scaled": job.first * model["factor"]}


def shards(calls: Path, n: int = 5, version: str = "a", **changes: Any) -> list[Shard[Numbers]]:
    return [
        Shard(f"{i:03d}", f"{version}{i}", Numbers(10 * i, calls, **changes), size=4)
        for i in range(n)
    ]


def run(store: Store, todo: list[Shard[Numbers]], workers: int = 2) -> list[Summary]:
    found = run_shards(
        *(LocalEngine(workers), write_numbers, todo),
        store=store,
        folder="parts",
        description="test",
        unit="pair",
    )
    return list(found)


def taken(calls: Path) -> list[int]:
    """Which shards were worked on since this was asked last, sorted."""
    numbers = [int(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    calls.unlink(missing_ok=True)
    return sorted(numbers)


def contents(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.root / "parts").iterdir()}


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def test_each_shard_has_its_files_and_a_manifest_with_their_hashes(
    store: Store, calls: Path
) -> None:
    found = run(store, shards(calls))
    assert [summary["sum"] for summary in found] == [40.0 * i + 6 for i in range(5)]
    assert found[1] == {"sum": 46.0, "thirds": [10 / 3], "pair": [5, None]}, "as JSON gives it back"
    manifest = json.loads(manifest_path(store, "parts", "003").read_bytes())
    assert manifest["fingerprint"] == "a3"
    assert set(manifest["files"]) == {"003_numbers.npy", "003_table.parquet"}
    for name, expected in manifest["files"].items():
        data = (store.root / "parts" / name).read_bytes()
        assert expected == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    numbers = np.load(store.root / "parts" / "003_numbers.npy")
    assert numbers.tolist() == [30.0, 31.0, 32.0, 33.0]
    table = pq.read_table(store.root / "parts" / "003_table.parquet")
    assert table["number"].to_pylist() == numbers.tolist()
    assert len(contents(store)) == 15


def test_a_second_start_finds_everything(store: Store, calls: Path) -> None:
    found, whole = run(store, shards(calls)), contents(store)
    assert taken(calls) == [0, 10, 20, 30, 40]
    assert run(store, shards(calls), workers=1) == found
    assert taken(calls) == []
    assert contents(store) == whole


def damage_a_byte(folder: Path) -> None:
    data = bytearray((folder / "001_numbers.npy").read_bytes())
    data[-1] ^= 1
    (folder / "001_numbers.npy").write_bytes(data)


def point_outside(folder: Path) -> None:
    manifest = json.loads((folder / "001.json").read_bytes())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
    (folder / "001.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        damage_a_byte,
        lambda folder: (folder / "001_numbers.npy").unlink(),
        lambda folder: (folder / "001_table.parquet").write_bytes(b""),
        lambda folder: (folder / "001.json").unlink(),
        lambda folder: (folder / "001.json").write_bytes(b"{"),
        lambda folder: (folder / "001.json").write_bytes(b"[]"),
        lambda folder: (folder / "001.json").write_text(
            '{"fingerprint": "a1", "files": {"001_numbers.npy": 1}, "summary": {}}'
        ),
        lambda folder: (folder / "001.json").write_text(
            '{"fingerprint": "a1", "files": [], "summary": {}}'
        ),
    ],
)
def test_what_is_damaged_is_made_again(store: Store, calls: Path, damage: Any) -> None:
    found, whole = run(store, shards(calls)), contents(store)
    taken(calls)
    damage(store.root / "parts")
    assert contents(store) != whole
    assert run(store, shards(calls)) == found
    assert taken(calls) == [10]
    assert contents(store) == whole


def test_a_manifest_that_leads_elsewhere_takes_nothing_away(store: Store, calls: Path) -> None:
    run(store, shards(calls))
    secret = store.root / "secret"
    secret.write_bytes(b"x")
    point_outside(store.root / "parts")
    with pytest.raises(InputError, match="is not inside"):
        run(store, shards(calls))
    assert secret.read_bytes() == b"x"


def test_other_settings_make_a_shard_anew_and_leave_nothing_of_the_old(
    store: Store, calls: Path
) -> None:
    run(store, shards(calls, extra=True))
    assert (store.root / "parts" / "001_extra.npy").exists()
    taken(calls)
    mixed = [*shards(calls)[:2], *shards(calls, version="b")[2:]]
    run(store, mixed)
    assert taken(calls) == [20, 30, 40]
    extra = {name for name in contents(store) if "extra" in name}
    assert extra == {"000_extra.npy", "001_extra.npy"}, "theirs are current"


def test_shards_that_are_no_more_are_removed(store: Store, calls: Path) -> None:
    run(store, shards(calls))
    (store.root / "parts" / ".003_numbers.npy.77.tmp").write_bytes(b"half")
    taken(calls)
    run(store, shards(calls, n=2))
    assert taken(calls) == []
    assert {name[:3] for name in contents(store)} == {"000", "001"}


def test_an_error_leaves_what_is_saved(store: Store, calls: Path) -> None:
    todo = shards(calls)
    todo[3] = Shard("003", "a3", Numbers(30, calls, fails=True))
    with pytest.raises(InputError, match="shard 30 cannot be read"):
        run(store, todo, workers=1)
    assert {0, 10, 20, 30} <= set(taken(calls))
    run(store, shards(calls))
    assert taken(calls) in ([30], [30, 40])


def test_a_full_disk_is_one_line(
    store: Store, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, shards(calls, n=2))

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space"):
        run(store, shards(calls))
    monkeypatch.undo()
    assert not manifest_path(store, "parts", "002").exists()
    taken(calls)
    run(store, shards(calls))
    assert taken(calls) == [20, 30, 40]


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from artifacts.store import Store
from tests.engine.test_shards import run, shards
todo = shards(Path(sys.argv[2]))
todo[2] = replace(todo[2], job=replace(todo[2].job, dies=True))
run(Store(Path(sys.argv[1])), todo, workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_repeats_at_most_one_shard_a_worker(
    store: Store, calls: Path, tmp_path: Path, workers: int
) -> None:
    other = Store(tmp_path / "other")
    expected = run(other, shards(calls))
    taken(calls)
    command = [sys.executable, "-c", KILLED, str(store.root), str(calls), str(workers)]
    killed = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = taken(calls)
    assert 20 in before
    assert run(store, shards(calls)) == expected
    repeated = set(before) & set(taken(calls))
    assert 20 in repeated
    assert len(repeated) <= workers
    assert contents(store) == contents(other)


def test_a_context_is_handed_on(store: Store, calls: Path, tmp_path: Path) -> None:
    setup = Setup(work.make_model, (str(tmp_path / "made"), 3.0))

    def scale() -> list[Summary]:
        return list(
            run_shards(
                *(LocalEngine(2), scale_numbers, shards(calls)),
                store=store,
                folder="scaled",
                description="test",
                unit="pair",
                setup=setup,
            )
        )

    assert scale() == [{"scaled": 30.0 * i} for i in range(5)]
    made = tmp_path / "made"
    made.unlink()
    assert scale() == [{"scaled": 30.0 * i} for i in range(5)]
    assert not made.exists(), "nothing is made where nothing is missing"


def test_two_shards_of_one_name(store: Store, calls: Path) -> None:
    with pytest.raises(ValueError, match="two shards have one name"):
        run(store, shards(calls, n=1) * 2)

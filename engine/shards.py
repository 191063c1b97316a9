"""Work on shards that goes on where it was broken off.

Each shard's result is files and a manifest, written last, that holds their hashes: whoever finds it
whole and made by the same work leaves the shard alone. A run that is killed repeats at most the
shards that were being worked on, one a worker.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, cast

import numpy as np
from numpy.lib.format import write_array

from artifacts.arrays import Hashed, hash_file
from artifacts.provenance import json_bytes
from artifacts.store import Store
from engine.base import Engine, Setup

logger = logging.getLogger(__name__)
Job = TypeVar("Job")
Summary = dict[str, Any]  # of what JSON holds


@dataclass(frozen=True)
class Shard(Generic[Job]):
    """A piece of work with a result of its own."""

    name: str  # of its manifest, and the beginning of its files' names: letters, digits, - and _
    fingerprint: str  # of everything that its result follows from
    job: Job
    size: int = 1  # as progress counts


@dataclass
class ShardFiles:
    """Where work writes a shard's files."""

    store: Store
    folder: str
    name: str
    written: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def writing(self, ending: str) -> Iterator[BinaryIO]:
        """A file to fill from its beginning to its end, NAME + ending.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        name = self.name + ending
        with self.store.writing(f"{self.folder}/{name}") as file:
            hashed = Hashed(file)
            yield cast(BinaryIO, hashed)
        self.written[name] = hashed.entry()

    def write_npy(self, ending: str, array: np.ndarray) -> None:
        """Write an array; object arrays are refused.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        with self.writing(ending) as file:
            write_array(file, array, allow_pickle=False)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _ShardJob(Generic[Job]):
    store: Store
    folder: str
    shard: Shard[Job]
    work: Callable[..., Summary] | None = None


def run_shards(
    engine: Engine,
    work: Callable[..., Summary],
    shards: Sequence[Shard[Any]],
    *,
    store: Store,
    folder: str,
    description: str,
    unit: str,
    setup: Setup[Any] | None = None,
) -> Iterator[Summary]:
    """The summaries of all shards, in their order; only what is missing or damaged is worked on.

    What the folder holds of shards that are no longer among these is removed.

    Args:
        engine: where the work is done.
        work: a function of a module, `work(job, files)` or `work(job, files, context)`, which
            writes `ShardFiles` and returns what JSON can hold.
        shards: whose names differ.
        store: the output folder.
        folder: in it, for these results alone.
        description: of the progress bar.
        unit: what a shard's size counts.
        setup: makes the context, once a worker.

    Raises:
        ValueError: two shards have one name.
        InputError: raised by work, the engine or the store.
    """
    if len({shard.name for shard in shards}) != len(shards):
        raise ValueError("two shards have one name")
    root = store.root.resolve()  # workers may have another folder of their own
    jobs = [_ShardJob(Store(root), folder, shard) for shard in shards]
    _remove_others(store, folder, {shard.name for shard in shards})
    is_begun = [manifest_path(store, folder, shard.name).is_file() for shard in shards]
    begun = [job for job, there in zip(jobs, is_begun, strict=True) if there]
    found: list[Summary | None] = []
    if begun:
        checked = engine.map(
            *(saved_summary, begun),
            description=f"{description}: what is saved",
            unit=unit,
            sizes=[job.shard.size for job in begun],
        )
        found = list(checked)
    whole = {
        job.shard.name: summary
        for job, summary in zip(begun, found, strict=True)
        if summary is not None
    }
    if begun:
        logger.info("%s: %d of %d shards are saved", description, len(whole), len(jobs))
    missing = [
        _ShardJob(job.store, folder, job.shard, work) for job in jobs if job.shard.name not in whole
    ]
    return _merged(engine, shards, whole, missing, (description, unit, setup))


def _merged(
    engine: Engine,
    shards: Sequence[Shard[Any]],
    whole: dict[str, Summary],
    missing: Sequence[_ShardJob[Any]],
    told: tuple[str, str, Setup[Any] | None],
) -> Iterator[Summary]:
    description, unit, setup = told
    sizes = [job.shard.size for job in missing]
    made: Iterator[Summary]
    if setup is None:
        made = engine.map(make_shard, missing, description=description, unit=unit, sizes=sizes)
    else:
        made = engine.map(
            *(make_shard, missing),
            description=description,
            unit=unit,
            sizes=sizes,
            setup=setup,
        )
    for shard in shards:
        yield whole[shard.name] if shard.name in whole else next(made)
    for _ in made:  # there is no more, but the map has an end
        raise AssertionError("more summaries than shards")


def make_shard(job: _ShardJob[Any], *context: Any) -> Summary:
    """Work on a shard, its manifest at the end; its summary, as it will be read."""
    assert job.work is not None
    name = _manifest_name(job.folder, job.shard.name)
    former = _read_manifest(job.store, job.folder, job.shard.name)
    job.store.remove_files(job.folder, [f"{job.shard.name}.json"])
    files = ShardFiles(job.store, job.folder, job.shard.name)
    summary = job.work(job.shard.job, files, *context)
    if former is not None:
        job.store.remove_files(job.folder, sorted(former["files"].keys() - files.written.keys()))
    manifest = {
        "fingerprint": job.shard.fingerprint,
        "files": files.written,
        "summary": summary,
    }
    data = json_bytes(manifest, indent=2) + b"\n"
    job.store.write_bytes(name, data)
    return cast(Summary, json.loads(data)["summary"])


def saved_summary(job: _ShardJob[Any]) -> Summary | None:
    """The summary of a shard whose result is whole and made by the same work, else None."""
    manifest = _read_manifest(job.store, job.folder, job.shard.name)
    if manifest is None or manifest["fingerprint"] != job.shard.fingerprint:
        return None
    for name, expected in manifest["files"].items():
        if Path(name).name != name or not isinstance(expected, dict):
            return None
        if not _is_whole(job.store.root / job.folder / name, expected):
            logger.warning("%s/%s is damaged; it is made again", job.folder, name)
            return None
    return cast(Summary, manifest["summary"])


def manifest_path(store: Store, folder: str, name: str) -> Path:
    """Where a shard's manifest lies, once its result is whole."""
    return store.root / _manifest_name(folder, name)


def _manifest_name(folder: str, name: str) -> str:
    return f"{folder}/{name}.json"


def _read_manifest(store: Store, folder: str, name: str) -> dict[str, Any] | None:
    try:
        manifest = json.loads(manifest_path(store, folder, name).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or not manifest.keys() >= {"fingerprint", "files", "summary"}:
        return None
    are_dicts = isinstance(manifest["files"], dict) and isinstance(manifest["summary"], dict)
    return manifest if are_dicts else None


def _is_whole(path: Path, expected: dict[str, Any]) -> bool:
    try:
        is_complete = path.stat().st_size == expected.get("bytes")
        return is_complete and hash_file(path) == expected.get("sha256")
    except OSError:
        return False


def _remove_others(store: Store, folder: str, names: set[str]) -> None:
    """Remove shards that are no longer asked for, and what killed workers left unfinished."""
    store.remove_temporary(folder)
    for path in sorted((store.root / folder).glob("*.json")):
        if path.stem not in names:
            manifest = _read_manifest(store, folder, path.stem) or {"files": {}}
            store.remove_files(folder, [path.name, *manifest["files"]])

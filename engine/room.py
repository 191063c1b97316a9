"""Where a stage has its shards worked on: by which engine, and in which folder of the output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array
from numpy.typing import DTypeLike

from artifacts.arrays import map_array
from artifacts.provenance import Stage
from artifacts.settings import InputError
from artifacts.store import Store
from engine.base import Engine, Setup
from engine.shards import Shard, Summary, run_shards

SHARDS = "shards"  # subfolder of a stage's folder
PUT = "put"  # in it, arrays that workers are shown


@dataclass(frozen=True)
class Made:
    """A shard's result.

    Attributes:
        summary: what its work returned.
        path: of its files, without their endings.
    """

    summary: Summary
    path: Path

    def file(self, ending: str) -> Path:
        """One of its files."""
        return self.path.with_name(self.path.name + ending)

    def load(self, ending: str) -> np.ndarray:
        """One of its arrays, mapped.

        Raises:
            InputError: it is gone since it was written.
        """
        try:
            return np.asanyarray(np.load(self.file(ending), mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise InputError(
                f"--output_dir: {self.file(ending)} cannot be read ({error}); start again with "
                "--load_saved"
            ) from error


@dataclass(frozen=True)
class StageRoom:
    """The engine, the folder and the fingerprint of a stage that is computed.

    Shards of a run that was killed are taken up where they are of the same fingerprint, and removed
    when the stage is saved.
    """

    engine: Engine
    store: Store
    stage: Stage
    fingerprint: str
    part: str = ""  # of the stage, where it does the same several times

    def of(self, part: str) -> StageRoom:
        """The same for a part of the stage, whose shards are its own."""
        return replace(self, part=part)

    def run(
        self,
        name: str,
        work: Callable[..., Summary],
        jobs: Sequence[Any],
        *,
        unit: str,
        sizes: Sequence[int] | None = None,
        setup: Setup[Any] | None = None,
    ) -> list[Made]:
        """The results of all jobs, in their order; only what is missing is worked on.

        Args:
            name: of what is done, also on the progress bar; letters, digits and blanks.
            work: see `run_shards`.
            jobs: one a shard.
            unit: what `sizes` count.
            sizes: of the shards; one each by default.
            setup: makes the context, once a worker.

        Raises:
            InputError: raised by work, the engine or the store.
        """
        folder = self._folder(name)
        shards = [
            Shard(
                f"{i:06d}", self._print(name, i, len(jobs)), job, 1 if sizes is None else sizes[i]
            )
            for i, job in enumerate(jobs)
        ]
        summaries = run_shards(
            *(self.engine, work, shards),
            store=self.store,
            folder=folder,
            description=name,
            unit=unit,
            setup=setup,
        )
        paths = [self.store.root / folder / shard.name for shard in shards]
        return [Made(summary, path) for summary, path in zip(summaries, paths, strict=True)]

    def allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array for a field of the stage's result; see `Store.allocate`."""
        return self.store.allocate(self.stage, name, shape, dtype, key=self.fingerprint)

    def has_begun(self, name: str) -> bool:
        """Whether an array that is allocated under this name was there before."""
        return self.store.part_path(self.stage, name, self.fingerprint).exists()

    def put(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array as workers may be shown it: in a file, mapped, until the stage is saved.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        relative = f"{self._folder(PUT)}/{name}.npy"
        with self.store.writing(relative, lasting=False) as file:
            write_array(file, array, allow_pickle=False)  # type: ignore[no-untyped-call]
        return map_array(self.store.root / relative)

    def clear(self) -> None:
        """Remove all shards: the stage is saved."""
        self.store.remove_folder(self._stage_folder())

    def forget(self, name: str) -> None:
        """Remove the shards of one thing that is done."""
        self.store.remove_folder(self._folder(name))

    def _stage_folder(self) -> str:
        return f"{self.stage.folder}/{SHARDS}/{self.stage.name.replace(' ', '_')}"

    def _folder(self, name: str) -> str:
        return "/".join(
            [self._stage_folder(), *(n.replace(" ", "_") for n in (self.part, name) if n)]
        )

    def _print(self, name: str, number: int, count: int) -> str:
        whole = f"{self.fingerprint}:{self.part}{name}:{number}:{count}"
        return hashlib.sha256(whole.encode()).hexdigest()

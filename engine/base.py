"""The one seam: work on jobs, each to files and a small summary, mapped by an engine.

A job names what a worker reads and writes on storage that all workers see; its summary is small.
Summaries come in the order of the jobs, so that what is made of them does not depend on who was
first, and all arithmetic is done by one thread a worker: the same bytes come from any engine.
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from tqdm import tqdm

from engine.threads import one_thread
from engine.travel import check_travels, check_work

Job = TypeVar("Job")
Summary = TypeVar("Summary")
Context = TypeVar("Context")
_numbers = itertools.count()


def _new_key() -> str:
    return f"{os.getpid()}.{next(_numbers)}"


@dataclass(frozen=True, eq=False)
class Setup(Generic[Context]):
    """What a worker makes once and uses for all its jobs: an encoder, an opened source.

    One that is handed to several maps is kept from one to the next, but on GPUs of a cluster, which
    are free for others after each map.
    """

    make: Callable[[Any], Context]  # a function of a module
    job: Any  # what it is given; small
    on_gpu: bool = False  # each worker has a GPU of its own; locally there is one worker
    shared: bool = True  # threads of one process can use one at the same time
    key: str = field(default_factory=_new_key)


@dataclass(frozen=True)
class Call:
    """Work on jobs, as an engine takes it."""

    work: Callable[..., Any]
    jobs: Sequence[Any]
    setup: Setup[Any] | None

    @property
    def on_gpu(self) -> bool:
        """Whether each worker has a GPU of its own."""
        return self.setup is not None and self.setup.on_gpu


class Engine(ABC):
    """Maps work over jobs."""

    @abstractmethod
    def finished(self, call: Call) -> Iterator[tuple[int, Any]]:
        """Number and summary of every job, as they get done; closing it ends what is running."""

    def offer(self, setup: Setup[Context], context: Context) -> bool:
        """What a setup would make and is there already, for workers that can use it.

        Returns:
            Whether they use it, for as long as the setup is held: its job is then never asked for.
        """
        return False

    def workers_a_machine(self, on_gpu: bool = False) -> int:
        """How many work at once on one machine, for what they share; no result depends on it.

        Args:
            on_gpu: whether each has a GPU of its own.
        """
        return 1

    def close(self) -> None:
        """Let go of what was made or started for the work."""
        return

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @overload
    def map(
        self,
        work: Callable[[Job], Summary],
        jobs: Sequence[Job],
        *,
        description: str,
        unit: str,
        sizes: Sequence[int] | None = None,
    ) -> Iterator[Summary]: ...

    @overload
    def map(
        self,
        work: Callable[[Job, Context], Summary],
        jobs: Sequence[Job],
        *,
        description: str,
        unit: str,
        sizes: Sequence[int] | None = None,
        setup: Setup[Context],
    ) -> Iterator[Summary]: ...

    def map(
        self,
        work: Callable[..., Any],
        jobs: Sequence[Any],
        *,
        description: str,
        unit: str,
        sizes: Sequence[int] | None = None,
        setup: Setup[Any] | None = None,
    ) -> Iterator[Any]:
        """The summaries of all jobs, in the order of the jobs.

        A job may be done more than once, where a machine fails: work writes whole files or none.
        What it raises ends the map and is raised here.

        Args:
            work: a function of a module, `work(job)`, or `work(job, context)` with a setup.
            jobs: what it is given, one after the other; small.
            description: of the progress bar.
            unit: what the progress bar counts.
            sizes: of which each job has so many; None: one.
            setup: makes the context, once a worker.

        Raises:
            ValueError: work is no function of a module, or a job or a summary is large.
            InputError: raised by work, or the engine cannot do it.
        """
        check_work(work)
        check_travels(work, "work")
        if setup is not None:
            check_work(setup.make)
            check_travels(setup.job, "the setup's job")
        bar = tqdm(
            total=len(jobs) if sizes is None else sum(sizes),
            desc=description,
            unit=unit,
            unit_scale=sizes is not None,
            disable=None,
            leave=False,
        )
        return self._in_order(Call(work, jobs, setup), bar, sizes)

    def _in_order(self, call: Call, bar: Any, sizes: Sequence[int] | None) -> Iterator[Any]:
        early, n_given = dict[int, Any](), 0
        # What the caller makes of summaries on the way is rounded alike with every engine.
        with bar, one_thread(), closing(self.finished(call)) as finished:  # type: ignore[type-var]
            for number, summary in finished:
                bar.update(1 if sizes is None else sizes[number])
                early[number] = summary
                while n_given in early:
                    yield early.pop(n_given)
                    n_given += 1


def run_job(work: Callable[..., Any], job: Any, context: tuple[Any, ...]) -> Any:
    """A job's summary, which is small enough to travel; context is empty without a setup.

    Raises:
        ValueError: it is not.
    """
    summary = work(job, *context)
    check_travels(summary, "a summary")
    return summary

"""Trainings as an engine's jobs: on a GPU many of a kind at once, else one after another a worker.

On a GPU the steps of one run are too small to keep it busy; on a CPU each core has a run of its
own. Where trainings are interrupted, a group of them is what is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from engine.room import Made
from engine.shards import ShardFiles, Summary
from learner.lending import Lent

RUNS_ON_GPU = 32  # at once, at most: enough to keep one busy, and no burden on its memory

# Trains all of some jobs, whose trainings can be side by side; writes a result of each into its
# own files, and returns as many summaries.
Work = Callable[[Sequence[Any], Sequence[ShardFiles], Any], list[Summary]]


class _Group(NamedTuple):
    """Jobs that are done side by side."""

    work: Work
    jobs: tuple[Any, ...]


def train_in_groups(
    lent: Lent[Any],
    name: str,
    work: Work,
    jobs: Sequence[Any],
    *,
    unit: str,
    sizes: Sequence[int] | None = None,
    alike: Callable[[Any], Hashable] = lambda job: None,
    at_once: int = RUNS_ON_GPU,
) -> list[Made]:
    """The results of all jobs, in their order; see `StageRoom.run`.

    Args:
        lent: what they have in common, and where they are worked on.
        name: of what is done.
        work: a function of a module.
        jobs: one a training.
        unit: what `sizes` count.
        sizes: of the jobs; one each by default.
        alike: of a job; those side by side have the same.
        at_once: most trainings side by side on a GPU.
    """
    most = at_once if lent.setup.on_gpu else 1
    places: list[list[int]] = []
    open_groups: dict[Hashable, list[int]] = {}
    for place, job in enumerate(jobs):
        group = open_groups.get(alike(job))
        if group is None or len(group) == most:
            group = open_groups[alike(job)] = []
            places.append(group)
        group.append(place)
    counted = [1] * len(jobs) if sizes is None else sizes
    made = lent.run(
        name,
        _train_group,
        [_Group(work, tuple(jobs[place] for place in group)) for group in places],
        unit=unit,
        sizes=[sum(counted[place] for place in group) for group in places],
    )
    found: list[Made | None] = [None] * len(jobs)
    for group, one in zip(places, made, strict=True):
        for number, (place, summary) in enumerate(zip(group, one.summary["runs"], strict=True)):
            found[place] = Made(summary, one.file(f".{number}"))
    return [one for one in found if one is not None]


def _train_group(group: _Group, files: ShardFiles, context: Any) -> Summary:
    of_runs = [
        ShardFiles(files.store, files.folder, f"{files.name}.{number}", files.written)
        for number in range(len(group.jobs))
    ]
    return {"runs": group.work(group.jobs, of_runs, context)}

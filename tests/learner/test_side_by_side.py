"""Which trainings are done at once, and whose results are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from engine.local import LocalEngine
from engine.room import Made
from engine.shards import ShardFiles, Summary
from learner.lending import Lent, lend
from learner.side_by_side import train_in_groups
from tests.rooms import new_room


class Shown(NamedTuple):
    factor: int


class Job(NamedTuple):
    number: int
    kind: str


JOBS = [Job(k, "long" if k % 3 == 0 else "short") for k in range(8)]
_groups: list[list[int]] = []


def write_products(jobs: Sequence[Job], files: Sequence[ShardFiles], shown: Shown) -> list[Summary]:
    _groups.append([job.number for job in jobs])
    for job, own in zip(jobs, files, strict=True):
        own.write_npy(".npy", np.array(job.number * shown.factor))
        own.write_npy(".kind.npy", np.array(job.kind))
    return [{"squared": job.number**2} for job in jobs]


def lent_to(on_gpu: bool) -> Lent[Any]:
    lent = lend(new_room(LocalEngine(1)), "shown", Shown(10), torch.device("cpu"))
    setup = replace(lent.setup, on_gpu=on_gpu)
    assert lent.room.engine.offer(setup, lent.context)
    return replace(lent, setup=setup)


def done(lent: Lent[Any], **options: Any) -> list[Made]:
    _groups.clear()
    return train_in_groups(
        lent, "products", write_products, JOBS, unit="job", alike=lambda job: job.kind, **options
    )


@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_job_has_its_own_result(on_gpu: bool) -> None:
    made = done(lent_to(on_gpu), at_once=2)
    assert [int(one.load(".npy")) for one in made] == [10 * k for k in range(8)]
    assert [str(one.load(".kind.npy")) for one in made] == [job.kind for job in JOBS]
    assert [one.summary for one in made] == [{"squared": k**2} for k in range(8)]


def test_a_core_does_one_at_a_time_and_a_gpu_those_that_are_alike() -> None:
    done(lent_to(on_gpu=False))
    assert _groups == [[k] for k in range(8)]
    done(lent_to(on_gpu=True))
    assert _groups == [[0, 3, 6], [1, 2, 4, 5, 7]]
    done(lent_to(on_gpu=True), at_once=2)
    assert _groups == [[0, 3], [1, 2], [4, 5], [6], [7]]


def test_what_is_saved_is_not_done_again() -> None:
    lent = lent_to(on_gpu=True)
    first = done(lent)
    again = done(lent)
    assert _groups == []
    assert [one.path for one in again] == [one.path for one in first]
    assert [one.summary for one in again] == [one.summary for one in first]
    first[4].file(".npy").write_bytes(b"broken")
    done(lent)
    assert _groups == [[1, 2, 4, 5, 7]]

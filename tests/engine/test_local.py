"""Threads: the order of summaries, one thread of arithmetic, contexts, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from artifacts.settings import InputError
from engine import base
from engine.base import Setup
from engine.local import LocalEngine
from tests.engine import work

BAR: dict[str, Any] = {"description": "test", "unit": "job"}
_started: list[int] = []
_hanging = threading.Event()
_gate = threading.Barrier(2, timeout=20)


def meet(number: int) -> int:
    """Wait until another thread is here too."""
    _gate.wait()
    return number


def note(number: int) -> int:
    _started.append(number)
    time.sleep(0.02)
    if number == 3:
        raise KeyboardInterrupt
    return number


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_summaries_come_in_the_order_of_the_jobs(workers: int) -> None:
    jobs = [(3, 0.1), (1, 0.0), (2, 0.05), (0, 0.0), (7, 0.0)]
    found = LocalEngine(workers).map(work.slow_square, jobs, **BAR)
    assert [square for square, _ in found] == [9, 1, 4, 0, 49]
    assert list(LocalEngine(workers).map(work.slow_square, [], **BAR)) == []


def test_jobs_are_worked_on_side_by_side() -> None:
    assert list(LocalEngine(2).map(meet, range(4), **BAR)) == [0, 1, 2, 3]


def test_one_thread_of_arithmetic_while_it_maps_and_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threadpool_limits(limits=2):
            for blas, of_torch in LocalEngine(3).map(work.threads, range(6), **BAR):
                assert blas == {1}
                assert of_torch == 1
                assert torch.get_num_threads() == 1, "what the caller adds up, too"
            blas_after = {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}
            assert blas_after == {2}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_few_jobs_are_begun_before_their_turn() -> None:
    _started.clear()
    with pytest.raises(KeyboardInterrupt):
        list(LocalEngine(2).map(note, range(1000), **BAR))
    assert 3 in _started
    assert len(_started) < 12, "what was not begun is given up"


def hang(number: int) -> int:
    """Work on something that comes to no end of itself."""
    if number == 1:
        raise KeyboardInterrupt
    _hanging.wait(20)
    return number


def test_an_interrupt_waits_for_no_job() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(LocalEngine(2).map(hang, [0, 1], **BAR))
    assert time.monotonic() - started < 10
    _hanging.set()


def test_a_map_that_is_left_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    _started.clear()
    found = LocalEngine(1).map(note, [0, 1, 2] + [9] * 100, **BAR)
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    n_started = len(_started)
    time.sleep(0.1)
    assert len(_started) == n_started < 10


def test_errors_come_as_they_are(tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    for number, error, text in ((2, InputError, "^shard 2 is damaged"), (3, KeyError, "three")):
        with pytest.raises(error, match=text):
            list(LocalEngine(2).map(work.refuse, [(number, str(counter))], **BAR))
    assert counter.read_text() == "2\n3\n"


def test_what_is_large_does_not_travel_here_either() -> None:
    engine = LocalEngine(1)
    with pytest.raises(ValueError, match="a job has 64 MiB"):
        list(engine.map(work.large_summary, [np.zeros(2**23)], **BAR))
    with pytest.raises(ValueError, match="a summary has 64 MiB"):
        list(engine.map(work.large_summary, [1], **BAR))
    with pytest.raises(ValueError, match="the setup's job has 64 MiB"):
        engine.map(work.times, [1], **BAR, setup=Setup(work.make_model, np.zeros(2**23)))
    with pytest.raises(ValueError, match="must be a function of a module"):
        engine.map(lambda job: job, [1], **BAR)


@pytest.mark.parametrize(
    ("shared", "on_gpu", "most"), [(True, False, 1), (False, False, 3), (False, True, 1)]
)
def test_contexts(tmp_path: Path, shared: bool, on_gpu: bool, most: int) -> None:
    made = tmp_path / "made"
    setup = Setup(work.make_model, (str(made), 2.0), shared=shared, on_gpu=on_gpu)
    with LocalEngine(3) as engine:
        found = list(engine.map(work.times, range(9), **BAR, setup=setup))
        assert [value for value, _ in found] == [2.0 * i for i in range(9)]
        n_made = len(made.read_text().splitlines())
        assert n_made == most
        list(engine.map(work.times, range(3), **BAR, setup=setup))
        assert (len(made.read_text().splitlines()) == 1) == (most == 1), "kept for the next map"
        other = Setup(work.make_model, (str(made), 5.0))
        assert next(engine.map(work.times, [3], **BAR, setup=other))[0] == 15.0


@pytest.mark.parametrize(("sizes", "total"), [(None, 4), ([10, 20, 30, 40], 100)])
def test_progress_counts_what_jobs_hold(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int] | None, total: int
) -> None:
    counted: list[int] = []

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            counted.append(int(n or 0))
            return super().update(n)

    monkeypatch.setattr(base, "tqdm", Bar)
    run: Callable[..., Any] = LocalEngine(2).map
    assert len(list(run(work.threads, range(4), description="x", unit="pair", sizes=sizes))) == 4
    assert sum(counted) == total
    assert sorted(counted) == (sizes or [1, 1, 1, 1])

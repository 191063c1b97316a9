"""How many cores there are: what the machine has, what this process may use of it."""

import os

import pytest

from artifacts.cores import n_cores


def test_no_more_than_this_process_may_use() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= n_cores() <= (allowed or 1)


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from joblib.externals.loky.backend import context

    monkeypatch.setattr(context, "_cpu_count_cgroup", lambda _: 1)
    assert n_cores() == 1

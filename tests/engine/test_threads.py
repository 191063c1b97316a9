"""Threads of arithmetic where a container has fewer cores than its machine."""

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_info

from engine import threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    with threads.one_thread():  # restores all limits
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(n_threads)


@pytest.mark.usefixtures("two_threads")
def test_no_more_threads_than_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "n_cores", lambda: 2)
    threads.limit_to_cores()
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "n_cores", lambda: 1)
    threads.limit_to_cores()
    assert torch.get_num_threads() == 1
    assert {library["num_threads"] for library in threadpool_info()} == {1}

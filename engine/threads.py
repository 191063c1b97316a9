"""Threads of arithmetic: one a worker, so that bits do not depend on the workers, else a core."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from artifacts.cores import n_cores


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS, OpenMP and torch work with one thread in this block, in the calling thread.

    A sum over blocks that threads share is rounded as they are cut.
    """
    torch = sys.modules.get("torch")  # where it is imported later, the environment says so
    n_threads = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        if torch:
            torch.set_num_threads(n_threads)


def limit_to_cores() -> None:
    """As many threads of arithmetic as there are cores to use.

    Libraries count the cores of the machine, of which a container may have a few: more threads than
    these wait for each other.
    """
    import torch

    n = n_cores()
    if torch.get_num_threads() > n:
        torch.set_num_threads(n)
        threadpool_limits(limits=n)


def limit_this_thread() -> None:
    """The same for as long as the calling thread lasts: part of a limit is each thread's own."""
    threadpool_limits(limits=1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)

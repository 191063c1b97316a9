"""One thread of arithmetic a worker, so that the bits of a result do not depend on the workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


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


def limit_this_thread() -> None:
    """The same for as long as the calling thread lasts: part of a limit is each thread's own."""
    threadpool_limits(limits=1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)

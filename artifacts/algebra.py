"""One thread for linear algebra of small matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Products and decompositions in this block, or function, take one thread each.

    Threads that share one of matrices this small wait for one another longer than they work, many
    times longer where the cores have other work too. And nothing is rounded otherwise for another
    number of cores. The limit is that of the process: blocks of several threads must not overlap.
    """
    with threadpool_limits(1, "blas"):
        yield

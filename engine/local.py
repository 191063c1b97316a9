"""Threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from artifacts.cores import n_cores
from engine.base import Call, Engine, Setup, run_job
from engine.threads import limit_this_thread
from engine.travel import check_travels


class LocalEngine(Engine):
    """Works with threads of this process, with one thread of arithmetic each.

    Args:
        workers: how many; None: one a processor core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or n_cores()
        self._made: dict[tuple[str, int], Any] = {}  # contexts by setup and thread
        self._offered: WeakKeyDictionary[Setup[Any], Any] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def finished(self, call: Call) -> Iterator[tuple[int, Any]]:
        """See `Engine`."""
        workers = self.workers_a_machine(call.on_gpu)
        pool = ThreadPoolExecutor(workers, initializer=limit_this_thread)
        pending: dict[Future[Any], int] = {}
        ahead = iter(range(len(call.jobs)))
        waits = True
        try:
            while True:
                for number in islice(ahead, 2 * workers - len(pending)):
                    pending[pool.submit(self._run, call, number)] = number
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except KeyboardInterrupt:  # the program ends, and what is being worked on with it
            waits = False
            raise
        finally:
            pool.shutdown(waits, cancel_futures=True)
            with self._lock:  # those of threads that are no more
                self._made = {key: made for key, made in self._made.items() if key[1] == 0}

    def offer(self, setup: Setup[Any], context: Any) -> bool:
        """See `Engine`."""
        if setup.shared:
            self._offered[setup] = context
        return setup.shared

    def workers_a_machine(self, on_gpu: bool = False) -> int:
        """See `Engine`."""
        return 1 if on_gpu else self.workers

    def close(self) -> None:
        """See `Engine`."""
        self._made.clear()
        self._offered.clear()

    def _run(self, call: Call, number: int) -> Any:
        job = call.jobs[number]
        check_travels(job, "a job")
        context = () if call.setup is None else (self._context(call.setup),)
        return run_job(call.work, job, context)

    def _context(self, setup: Setup[Any]) -> Any:
        key = setup.key, 0 if setup.shared or setup.on_gpu else threading.get_ident()
        with self._lock:
            if setup in self._offered:
                return self._offered[setup]
            if key not in self._made:
                self._made = {k: made for k, made in self._made.items() if k[0] == setup.key}
                self._made[key] = setup.make(setup.job)
            return self._made[key]

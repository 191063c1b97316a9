"""Threads, and the order of the tests.

A test is too small to share, and spinning threads slow a busy machine many times over. What takes
longest comes first, so that no core waits for it at the end.
"""

from __future__ import annotations

import os

import pytest

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # read when the libraries are imported, so before them

LONGEST = (
    "test_killed_at_any_moment_a_run_continues_to_the_same_files",
    "test_noisy_pool.py",
    "test_open_clip.py",
    "test_learnt_scenes.py",
    "test_main.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first; all others stay in their order."""

    def rank(item: pytest.Item) -> int:
        names = [name for name in LONGEST if name in (item.name, item.path.name)]
        return LONGEST.index(names[0]) if names else len(LONGEST)

    items.sort(key=rank)

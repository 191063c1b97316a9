"""Threads: a test is too small to share, and spinning ones slow a busy machine many times over."""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)

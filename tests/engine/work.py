"""Work for the engines' tests, which processes of a cluster find by its name.

What takes long to import is imported where it is used: each worker does it anew.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from artifacts.settings import InputError


@dataclass(frozen=True)
class Part:
    """A stretch of a mapped array, and where what is made of it goes."""

    embeddings: np.ndarray
    start: int
    stop: int
    folder: Path
    seconds: float = 0.0


def multiply(part: Part) -> float:
    """Write the products of a stretch's rows; their sum, to the last bit."""
    import torch

    rows = np.asarray(part.embeddings[part.start : part.stop])
    time.sleep(part.seconds)
    products = rows @ rows.T
    products += torch.mm(torch.from_numpy(rows.copy()), torch.from_numpy(rows.T.copy())).numpy()
    name = f"{part.start:04d}.npy"
    temporary = part.folder / f".{name}.{platform.node()}.{os.getpid()}"
    with temporary.open("wb") as file:
        np.save(file, products)
    temporary.replace(part.folder / name)
    return float(products.sum(dtype=np.float32))


def slow_square(job: tuple[int, float]) -> tuple[int, int]:
    """The square of a number after some seconds, and the process that took it."""
    number, seconds = job
    time.sleep(seconds)
    return number * number, os.getpid()


def die_once(job: tuple[int, str]) -> int:
    """Kill this process the first time that job 1 is done; its number."""
    number, mark = job
    if number == 1 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(job: tuple[int, str]) -> int:
    """Count the calls in a file; an error of the user's for job 2, of the program's for job 3."""
    number, counter = job
    if number in (2, 3):
        with open(counter, "a") as file:
            file.write(f"{number}\n")
    if number == 2:
        raise InputError("shard 2 is damaged; take it away")
    if number == 3:
        raise KeyError("three")
    return number


def visit(job: tuple[int, Path]) -> int:
    """Leave a file with this node's name, and wait for one that says go; the number."""
    import ray

    number, folder = job
    (folder / ray.get_runtime_context().get_node_id()).touch()
    for _ in range(1200):
        if (folder / "go").exists():
            return number
        time.sleep(0.05)
    raise TimeoutError(folder)


def visit_gpu(job: tuple[int, Path], model: dict[str, Any]) -> tuple[float, str]:
    """The same, times the model's factor, and the GPU that the worker was given."""
    return visit(job) * model["factor"], os.environ["CUDA_VISIBLE_DEVICES"]


def threads(number: int) -> tuple[set[int], int]:
    """How many threads BLAS and OpenMP, and torch, work with."""
    import torch

    return {info["num_threads"] for info in threadpool_info()}, torch.get_num_threads()


def large_summary(job: object) -> np.ndarray:
    """More than travels."""
    return np.zeros(2**23)


def make_model(job: tuple[str, float]) -> dict[str, Any]:
    """A context that writes down that it was made."""
    with open(job[0], "a") as file:
        file.write(f"{os.getpid()} {threading.get_ident()}\n")
    return {"factor": job[1], "process": os.getpid(), "thread": threading.get_ident()}


def times(number: int, model: dict[str, Any]) -> tuple[float, int]:
    """A number times the model's factor, and the process that the model is in."""
    time.sleep(0.05)
    assert model["process"] == os.getpid()
    return number * model["factor"], os.getpid()


@dataclass(frozen=True)
class Deadly:
    """A training, in one of which a worker dies."""

    training: Any
    mark: str


def train_and_die_once(job: Deadly, files: Any, data: Any) -> dict[str, Any]:
    """Write a retraining's losses; the first worker that is half-way with seed 2 is killed."""
    from attribution.retraining import write_losses

    if job.training.seed == 2 and not Path(job.mark).exists():
        job.training.retraining.start(data, 2).advance_to(4)
        Path(job.mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (summary,) = write_losses([job.training], [files], data)
    return summary

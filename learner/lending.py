"""What many trainings are given alike, lent to the workers of an engine.

Threads of this process use it as it is. Other processes open it from files: features, scaled ones
too, lie on storage that all workers see and never travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from artifacts.arrays import file_of
from engine.base import Setup
from engine.room import Made, StageRoom
from engine.shards import Summary
from learner.pairs import StoredPairs

Context = TypeVar("Context")
SENT_BYTES = 2**16  # of a vector, up to which it needs no file


@dataclass(frozen=True)
class Lent(Generic[Context]):
    """What jobs of a stage have in common, and where they are worked on."""

    room: StageRoom
    setup: Setup[Context]
    context: Context

    def run(
        self,
        name: str,
        work: Callable[[Any, Any, Context], Summary],
        jobs: Sequence[Any],
        *,
        unit: str,
        sizes: Sequence[int] | None = None,
    ) -> list[Made]:
        """The results of all jobs, in their order; see `StageRoom.run`."""
        return self.room.run(name, work, jobs, unit=unit, sizes=sizes, setup=self.setup)


def lend(room: StageRoom, name: str, context: Context, device: torch.device) -> Lent[Context]:
    """Have workers use a named tuple as it is here.

    Args:
        room: of the stage.
        name: of its files, if there are any; one in a stage, or in a part of it.
        context: a named tuple of tensors, arrays, pairs in files, mappings, sequences and named
            tuples of these, and of small values.
        device: that its tensors are on, as they are at the workers; beside a GPU there is one
            worker, or one for each of a cluster's.

    Raises:
        InputError: the disk is full or the folder cannot be written to.
    """
    setup: Setup[Context] = Setup(_opened, None, on_gpu=device.type != "cpu")
    if not room.engine.offer(setup, context):
        numbers = count()
        job = _sent(context, lambda array: room.put(f"{name}_{next(numbers)}", array))
        setup = replace(setup, job=job)
    return Lent(room, setup, context)


@dataclass(frozen=True)
class _SentTensor:
    values: np.ndarray
    device: torch.device


@dataclass(frozen=True)
class _SentTuple:
    kind: Callable[..., Any]  # a class of named tuples
    parts: tuple[Any, ...]


def _sent(value: Any, put: Callable[[np.ndarray], np.ndarray]) -> Any:
    """What stands for a value where it travels: files where it is large."""
    if isinstance(value, Tensor):
        return _SentTensor(_sent(value.numpy(force=True), put), value.device)
    if isinstance(value, np.ndarray):
        is_small = value.size == 0 or (value.ndim < 2 and value.nbytes <= SENT_BYTES)
        is_file = file_of(value) is not None and getattr(value, "mode", None) == "r"
        return value if is_small or is_file else put(value)
    if isinstance(value, StoredPairs):
        return replace(value, rows=_sent(value.rows, put))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _SentTuple(type(value), tuple(_sent(part, put) for part in value))
    if isinstance(value, list | tuple):
        return [_sent(part, put) for part in value]
    if isinstance(value, Mapping):
        return {key: _sent(part, put) for key, part in value.items()}
    return value


def _opened(value: Any) -> Any:
    """The value that something sent stands for."""
    if isinstance(value, _SentTensor):
        return torch.from_numpy(np.array(value.values)).to(value.device)
    if isinstance(value, _SentTuple):
        return value.kind(*(_opened(part) for part in value.parts))
    if isinstance(value, list):
        return [_opened(part) for part in value]
    if isinstance(value, dict):
        return {key: _opened(part) for key, part in value.items()}
    return value

"""Work on a GPU that is launched as one graph instead of kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")

WARM_CALLS = 3  # before one is captured: libraries set themselves up


class Captured(Generic[Found]):
    """A function of tensors that is captured once it has been called a few times.

    It always works on tensors of the same shapes, and whatever else it reads or writes stays where
    it is. What it returns is overwritten by the next call. Off a GPU it is just called.

    Args:
        function: of tensors.
        device: that they are on.
        allowed: whether it may be captured: it must not look at what tensors hold.
    """

    def __init__(
        self, function: Callable[..., Found], device: torch.device, *, allowed: bool = True
    ) -> None:
        self._function = function
        self._allowed = allowed and device.type == "cuda"
        self._n_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: list[Tensor] = []
        self._found: Found

    def __call__(self, *given: Tensor) -> Found:
        """What the function makes of these."""
        if not self._allowed or self._n_calls < WARM_CALLS:
            self._n_calls += 1
            return self._function(*given)
        if self._graph is None:
            self._given, self._graph = [part.clone() for part in given], torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._found = self._function(*self._given)
        copy_all(self._given, given)
        self._graph.replay()
        return self._found


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each into its target, in few launches."""
    torch._foreach_copy_(list(targets), list(sources))

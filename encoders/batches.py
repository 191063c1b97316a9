"""Batches for an encoder: of a size that its device has room for, prepared while it works."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import TypeVar

import torch

from artifacts.settings import AUTO, InputError

logger = logging.getLogger(__name__)
# That `auto` begins with. More images at once bring a GPU little, and a processor nothing.
AUTO_SIZES = {"cpu": 64, "cuda": 256}
STARTED = 2  # batches that a device has before it: one that it works on, one that waits

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


class BatchSize:
    """Images or captions that an encoder takes at once: as asked, or as its memory allows.

    Attributes:
        now: how many.
    """

    def __init__(self, asked: int | str, device: torch.device) -> None:
        """`asked` is a number, which stays, or `auto`."""
        self._is_fitted, self._device, self._is_told = asked == AUTO, device, False
        sizes = AUTO_SIZES
        self.now = sizes.get(device.type, sizes["cpu"]) if asked == AUTO else int(asked)

    def shrink(self, tried: int) -> None:
        """Take fewer at once: so many need more memory than there is.

        Raises:
            InputError: the number was asked for, or one alone needs too much.
        """
        if not self._is_fitted or tried <= 1:
            remedy = "give a smaller number" if tried > 1 else "give a smaller --encoder_model"
            if not self._is_fitted and tried > 1:
                remedy += ", or leave it out, and it is fitted"
            raise InputError(
                f"--encoder_batch_size: {tried:,} at once need more memory than {self._device} "
                f"has; {remedy}, or use --device cpu"
            )
        self.now = min(self.now, tried // 2)
        # A number is said once, the first one; each halving is a word for who looks closer.
        level = logging.DEBUG if self._is_told else logging.WARNING
        logger.log(
            level,
            "%s has too little memory for %s images or captions at once; the encoder takes %s, or "
            "fewer (--encoder_batch_size fixes a number)",
            *(self._device, f"{tried:,}", f"{self.now:,}"),
        )
        self._is_told = True


def in_batches(
    items: Iterable[Item],
    size: BatchSize,
    prepare: Callable[[list[Item]], Prepared],
    start: Callable[[Prepared], Callable[[], Result]],
    *,
    beside: bool,
) -> Iterator[Result]:
    """What an encoder makes of all items, batch by batch, in their order.

    Args:
        items: images or captions.
        size: of a batch; it shrinks where the device has too little memory.
        prepare: makes a batch of items; in a thread of its own with `beside`.
        start: has the device begin with a batch; what it returns waits for the result.
        beside: prepare a batch while the device works on the one before, and have two waiting.

    Raises:
        InputError: the device has too little memory, see `BatchSize.shrink`.
    """
    iterator = iter(items)
    prepared: deque[tuple[list[Item], Callable[[], Prepared]]] = deque()
    started: deque[Callable[[], Result]] = deque()

    def start_one() -> None:
        batch, result = prepared.popleft()
        try:
            started.append(start(result()))
            return
        except torch.OutOfMemoryError:
            size.shrink(len(batch))
        # Outside of the clause, whose error holds what filled the memory.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = [batch[i : i + size.now] for i in range(0, len(batch), size.now)]
        prepared.extendleft((part, _later(prepare, part)) for part in reversed(parts))
        for _ in parts:
            start_one()

    with ThreadPoolExecutor(1) if beside else nullcontext() as pool:
        while batch := list(islice(iterator, size.now)):
            prepared.append((batch, _later(prepare, batch, pool)))
            if len(prepared) > beside:
                start_one()
            while len(started) >= (STARTED if beside else 1):
                yield started.popleft()()
        while prepared:
            start_one()
        while started:
            yield started.popleft()()


def _later(
    prepare: Callable[[list[Item]], Prepared],
    batch: list[Item],
    pool: ThreadPoolExecutor | None = None,
) -> Callable[[], Prepared]:
    """What gives a prepared batch: from a thread that begins now, or when it is called."""
    if pool is None:
        return lambda: prepare(batch)
    future: Future[Prepared] = pool.submit(prepare, batch)
    return future.result

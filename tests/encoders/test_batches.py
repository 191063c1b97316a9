import logging
import threading
from collections.abc import Callable

import pytest
import torch

from artifacts.settings import InputError
from encoders.batches import AUTO_SIZES, BatchSize, in_batches

CPU = torch.device("cpu")


class Device:
    """One with room for so many items; what it gives of an item is the item doubled."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []
        self.waiting = self.most_waiting = 0
        self.threads: set[int] = set()

    def prepare(self, batch: list[int]) -> list[int]:
        self.threads.add(threading.get_ident())
        return [2 * item for item in batch]

    def start(self, batch: list[int]) -> Callable[[], list[int]]:
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        self.sizes.append(len(batch))
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)

        def wait() -> list[int]:
            self.waiting -= 1
            return batch

        return wait


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("n", [0, 1, 4, 11])
def test_batches_come_in_their_order(n: int, beside: bool) -> None:
    device = Device(4)
    found = list(
        in_batches(range(n), BatchSize(4, CPU), device.prepare, device.start, beside=beside)
    )
    assert [item for batch in found for item in batch] == [2 * item for item in range(n)]
    assert device.sizes == [4] * (n // 4) + [n % 4] * (n % 4 > 0)
    # Beside, one is prepared by another thread and two are with the device.
    assert (threading.get_ident() in device.threads) == (not beside and n > 0)
    assert device.most_waiting == min(len(device.sizes), 2 if beside else 1)


@pytest.mark.parametrize("beside", [False, True])
def test_a_fitted_batch_shrinks_where_memory_is_short_and_that_is_said_once(
    beside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    device, size = Device(9), BatchSize("auto", CPU)
    assert size.now == AUTO_SIZES["cpu"] == 64
    found = list(in_batches(range(150), size, device.prepare, device.start, beside=beside))
    assert [item for batch in found for item in batch] == [2 * item for item in range(150)]
    assert size.now == 8
    assert set(device.sizes) <= {8, 150 % 8, 64 % 8, 22 % 8}
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert line == (
        "cpu has too little memory for 64 images or captions at once; the encoder takes 32, or "
        "fewer (--encoder_batch_size fixes a number)"
    )


@pytest.mark.parametrize(
    ("asked", "room", "message"),
    [
        (64, 9, "--encoder_batch_size: 64 at once need more memory than cpu has; give a smaller"),
        ("auto", 0, "--encoder_batch_size: 1 at once need more memory .* smaller --encoder_model"),
    ],
)
def test_a_batch_that_cannot_shrink_ends_the_run(asked: int | str, room: int, message: str) -> None:
    device = Device(room)
    batches = in_batches(
        range(100), BatchSize(asked, CPU), device.prepare, device.start, beside=True
    )
    with pytest.raises(InputError, match=f"^{message}") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_what_a_gpu_begins_with() -> None:
    assert BatchSize("auto", torch.device("cuda")).now == 256
    assert BatchSize(7, torch.device("cuda")).now == 7

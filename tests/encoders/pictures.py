"""What the tests of encoders feed them: noise as photographs, and as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch


def photographs(n: int, size: tuple[int, int] = (16, 16)) -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    shape = (n, size[1], size[0], 3)
    return [PIL.Image.fromarray(a) for a in rng.integers(0, 256, shape, dtype=np.uint8)]


def stack(images: Sequence[PIL.Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))

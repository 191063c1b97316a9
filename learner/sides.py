"""The two sides of pairs as rows in NumPy, wherever the pairs are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from learner.pairs import PairFeatures, PairTensors


@dataclass(frozen=True)
class ScaledRows:
    """One side of pairs in files, of which any rows can be asked for, as of an array.

    Attributes:
        features: (N, d) memory map.
        scale: what it takes to scale some of its rows.
        rows: which of the N rows these are; None is all.
    """

    features: np.ndarray
    scale: Callable[[np.ndarray, torch.device], Tensor]
    rows: Int64[np.ndarray, " n"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return len(self.features if self.rows is None else self.rows), self.features.shape[1]

    def __getitem__(self, index: Any) -> Float32[np.ndarray, "m d"]:
        """Some rows, scaled."""
        chosen = index if self.rows is None else self.rows[index]
        return np.asarray(self.scale(np.asarray(self.features[chosen]), torch.device("cpu")))


def sides_of(pairs: PairFeatures) -> tuple[Any, Any]:
    """Images and texts, each an array or, of pairs in files, `ScaledRows`."""
    if isinstance(pairs, PairTensors):
        return pairs.images.cpu().numpy(), pairs.texts.cpu().numpy()
    return (
        ScaledRows(pairs.image_features, pairs.scaling.images, pairs.rows),
        ScaledRows(pairs.text_features, pairs.scaling.texts, pairs.rows),
    )

"""What is made of any score."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64


def highest(scores: Float[np.ndarray, " n"], size: int) -> Int64[np.ndarray, " m"]:
    """Rows of the `size` highest scores; ties go to the earlier row."""
    rows: np.ndarray = np.argsort(-scores, kind="stable")[:size].astype(np.int64)
    return rows

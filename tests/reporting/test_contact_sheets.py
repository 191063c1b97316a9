"""Which pair stands for a cluster; the truth is found pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from reporting import contact_sheets


@pytest.mark.parametrize("at_once", [1, 7, 100, 8192])
def test_the_pair_nearest_each_centre(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheets, "ROWS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(100, 5)).astype(np.float32)
    centers, assignments = rng.normal(size=(4, 5)).astype(np.float32), np.arange(100) % 4
    embeddings[[8, 12]] = centers[0]  # of two as near the earlier one
    expected = [
        min(
            np.flatnonzero(assignments == k),
            key=lambda row: float(((embeddings[row] - centers[k]) ** 2).sum()),
        )
        for k in range(4)
    ]
    assert contact_sheets.central_rows(embeddings, centers, assignments).tolist() == expected

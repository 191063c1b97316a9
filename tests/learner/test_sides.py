"""Sides of pairs in files are, row for row, those of pairs that are held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from learner.pairs import PairTensors, StoredPairs, fit_feature_scaling
from learner.sides import ScaledRows, sides_of

CPU = torch.device("cpu")


def stored(folder: Path, rows: np.ndarray | None) -> tuple[StoredPairs, PairTensors]:
    """Pairs in files, and the same held."""
    rng = np.random.default_rng(0)
    features = [rng.normal(2, 3, size=(30, d)).astype(np.float32) for d in (5, 3)]
    scaling, maps = fit_feature_scaling(*features), []
    for name, side in zip("xy", features, strict=True):
        np.save(folder / f"{name}.npy", side)
        maps.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    held = scaling.pairs(features[0], features[1], CPU)
    if rows is not None:
        held = held.take(torch.from_numpy(rows))
    return StoredPairs(maps[0], maps[1], scaling, CPU, rows), held


def test_sides_of_pairs_in_files_are_those_of_pairs_that_are_held(tmp_path: Path) -> None:
    for rows in (None, np.array([3, 1, 4, 15, 9, 2])):
        in_files, held = stored(tmp_path, rows)
        for side, expected in zip(sides_of(in_files), held, strict=True):
            assert isinstance(side, ScaledRows)
            assert side.shape == tuple(expected.shape)
            for index in (slice(2, 5), np.array([4, 0, 4]), slice(None)):
                np.testing.assert_array_equal(side[index], expected.numpy()[index])
        assert in_files.device == held.device == CPU
        for side, expected in zip(sides_of(held), held, strict=True):
            np.testing.assert_array_equal(side, expected.numpy())

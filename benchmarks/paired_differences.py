"""Differences of two methods, paired over seeds, and how likely chance alone makes them.

A difference's p is the larger of two, each two-sided with Student's t of S - 1 degrees of freedom:

    t = mean / standard error over the S seeds
    t = mean / standard error where seeds and test images are both drawn anew

Where the test images of some seeds alone were kept, the second error is made from both parts,

    error^2 = (error over the S seeds)^2 + (error over test images of the mean over those kept)^2

which is a little larger than that of all images kept: fewer seeds leave more of their noise in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

N_RESAMPLES, SEED_OF_RESAMPLES = 2000, 5


class Difference(NamedTuple):
    """InfluenceSpace less another method, points of mean recall."""

    mean: float
    stderr: float  # over seeds; NaN of one
    p_seeds: float
    stderr_images: float  # over seeds and test images; NaN where these were not kept
    p: float  # the larger of the two
    n_seeds: int
    n_seeds_images: int  # whose test images were kept


def two_sided(mean: float, stderr: float, n_seeds: int) -> float:
    """The p of Student's t with a degree of freedom less than seeds; 1 where it cannot be told."""
    if n_seeds < 2 or np.isnan(stderr):
        return 1.0
    if stderr == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * student.sf(abs(mean) / stderr, n_seeds - 1))


def resampled(n: int, n_times: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n is drawn in n draws with replacement, as shares, (n_times, n)."""
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=n_times)) / n


def two_way_stderr(table: np.ndarray, seeds: np.ndarray, images: np.ndarray) -> float:
    """Standard error of the mean of a table whose rows and columns are both drawn anew.

        mean_b = sum_s sum_e seeds_bs table_se images_be,    its deviation over b

    Owen's pigeonhole bootstrap (2007), somewhat too large where rows and columns interact. S seeds
    drawn anew vary too little by (S - 1) / S, which tells where S is small: the rows' deviations
    from their mean are stretched by sqrt(S / (S - 1)) before.

    Args:
        table: (S, E) differences.
        seeds: (B, S) shares.
        images: (B, E) shares.
    """
    n_seeds = len(table)
    stretch = np.sqrt(n_seeds / (n_seeds - 1)) if n_seeds > 1 else 1.0
    middle = table.mean(axis=0)
    stretched = middle + stretch * (table - middle)
    means = np.einsum("bs,sb->b", seeds, stretched @ images.T)
    return float(means.std())


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values after Holm's correction (1979), in the order given.

    adjusted of the i-th smallest = max over j <= i of min(1, (m - j + 1) p_(j))
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    found = np.empty(len(values))
    found[order] = adjusted
    return found


class Resamples:
    """The same draws of seeds and of test images for every comparison of a shape."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def of(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the seeds and of the images in each draw."""
        if shape not in self._drawn:
            rng = np.random.default_rng((SEED_OF_RESAMPLES, *shape))
            drawn = [resampled(n, N_RESAMPLES, rng) for n in shape]
            self._drawn[shape] = (drawn[0], drawn[1])
        return self._drawn[shape]


def difference(recalls: pd.Series, table: np.ndarray | None, resamples: Resamples) -> Difference:
    """The test of one difference.

    Args:
        recalls: its mean of each seed, points.
        table: (S', E) of seeds whose test images were kept, points; None where there are none.
        resamples: draws.
    """
    n_seeds, mean = len(recalls), float(recalls.mean())
    stderr = float(recalls.std(ddof=1) / np.sqrt(n_seeds)) if n_seeds > 1 else float("nan")
    p_seeds = two_sided(mean, stderr, n_seeds)
    if table is None:
        return Difference(mean, stderr, p_seeds, float("nan"), p_seeds, n_seeds, 0)
    n_kept, n_images = table.shape
    if n_kept == n_seeds:
        both = two_way_stderr(table, *resamples.of((n_kept, n_images)))
    else:
        both = float(np.hypot(stderr, table.mean(axis=0).std(ddof=1) / np.sqrt(n_images)))
    p = max(p_seeds, two_sided(mean, both, n_seeds))
    return Difference(mean, stderr, p_seeds, both, p, n_seeds, len(table))

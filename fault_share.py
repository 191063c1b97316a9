"""How many of a set's captions are wrong, from how well they agree with their images.

    p(s) = (1 - w) N(s; m, d) + w c(s)        s: agreement of a pair, w: share of wrong captions

c, the density of agreement by chance, is seen by giving every image the caption of another; that of
right pairs is taken to be normal, and its mean and spread are fitted together with w by expectation
maximisation (Dempster, Laird & Rubin 1977). Captions that suit every image a little, boilerplate,
agree like chance and count as wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

N_BINS = 200
STARTS = (0.05, 0.25, 0.5, 0.75)  # shares; the likelihood may have several peaks
N_STEPS = 100  # of expectation maximisation; w moves by less than 1e-4 at the end
N_BOOTSTRAP = 100
LEVEL = 0.95
FEWEST = 10  # pairs that anything can be said of


class WrongShare(NamedTuple):
    """Share of wrong captions, with an interval from resampled pairs."""

    share: float
    low: float
    high: float


def wrong_share(
    own: Float[np.ndarray, " m"],
    by_chance: Float[np.ndarray, " c"],
    *,
    rng: np.random.Generator,
) -> WrongShare | None:
    """The share of pairs that agree no better than an image and the caption of another.

    Exact where right pairs are normally distributed and wrong ones agree like chance. Its interval
    holds the sampling of the pairs, not what that is worth: right pairs with a tail towards chance
    are counted as wrong, and where agreement hardly tells right from wrong the share comes out too
    high. A set without a right pair cannot be told from one without a wrong one.

    Args:
        own: agreement of the pairs, on any scale.
        by_chance: of images with captions of others, on the same scale.
        rng: resamples the pairs.

    Returns:
        None where there are fewer than ten pairs, or they do not differ.
    """
    low, high = min(own.min(), by_chance.min()), max(own.max(), by_chance.max())
    if len(own) < FEWEST or not high > low:
        return None
    edges = np.linspace(low, high, N_BINS + 1)
    middles, chance = (edges[1:] + edges[:-1]) / 2, _density(by_chance, edges)
    counts = np.histogram(own, edges)[0].astype(np.float64)[None]
    ends = [_mixture(counts, chance, middles, _start(counts, middles, s)) for s in STARTS]
    found, _ = max(ends, key=lambda end: float(end[1][0]))
    samples = rng.multinomial(len(own), counts[0] / counts.sum(), size=N_BOOTSTRAP)
    resampled, _ = _mixture(samples.astype(np.float64), chance, middles, found)
    tail = (1 - LEVEL) / 2
    bounds = np.quantile(resampled.share, [tail, 1 - tail])
    share = float(found.share[0, 0])
    return WrongShare(share, min(share, float(bounds[0])), max(share, float(bounds[1])))


class _Mixture(NamedTuple):
    """The share of wrong pairs, and the normal distribution of right ones; a row a histogram."""

    share: Float[np.ndarray, "r 1"]
    mean: Float[np.ndarray, "r 1"]
    spread: Float[np.ndarray, "r 1"]


def _density(values: Float[np.ndarray, " c"], edges: Float[np.ndarray, " e"]) -> np.ndarray:
    """A smoothed histogram; the width of its kernel is Silverman's."""
    counts = np.histogram(values, edges)[0].astype(np.float64)
    spread = min(values.std(), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34)
    width = 0.9 * spread * len(values) ** -0.2 / (edges[1] - edges[0])
    smooth = gaussian_filter1d(counts, max(float(width), 0.5), mode="constant")
    smooth = np.maximum(smooth, 0) + 1e-9  # nothing is impossible
    return np.asarray(smooth / smooth.sum())


def _start(
    counts: Float[np.ndarray, "1 b"], middles: Float[np.ndarray, " b"], share: float
) -> _Mixture:
    """The upper part of the pairs as the right ones."""
    upper = counts * (np.cumsum(counts, axis=1) / counts.sum() >= share)
    mean = (upper @ middles)[:, None] / upper.sum()
    spread = np.sqrt((upper * (middles - mean) ** 2).sum(axis=1, keepdims=True) / upper.sum())
    return _Mixture(np.full((1, 1), share), mean, spread)


def _mixture(
    counts: Float[np.ndarray, "r b"],
    chance: Float[np.ndarray, " b"],
    middles: Float[np.ndarray, " b"],
    start: _Mixture,
) -> tuple[_Mixture, Float[np.ndarray, " r"]]:
    """Expectation maximisation for each histogram, and the log likelihood that it ends at."""
    n, step = counts.sum(axis=1, keepdims=True), middles[1] - middles[0]
    share, mean, spread = start
    for _ in range(N_STEPS):
        spread = np.maximum(spread, step)
        right = np.exp(-(((middles - mean) / spread) ** 2) / 2) / spread / np.sqrt(2 * np.pi)
        right = (1 - share) * right * step
        both = right + share * chance + 1e-300
        posterior = counts * right / both
        total = np.maximum(posterior.sum(axis=1, keepdims=True), 1e-9)
        share = np.clip(1 - total / n, 0, 1)
        mean = (posterior @ middles)[:, None] / total
        deviations = (middles - mean) ** 2
        spread = np.sqrt((posterior * deviations).sum(axis=1, keepdims=True) / total)
    return _Mixture(share, mean, spread), (counts * np.log(both)).sum(axis=1)

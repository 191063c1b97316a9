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
from scipy.stats import norm
from tqdm import tqdm

N_BINS = 200
STARTS = (0.05, 0.25, 0.5, 0.75)  # shares; the likelihood may have several peaks
N_STEPS = 100  # of expectation maximisation; w moves by less than 1e-4 at the end
N_BOOTSTRAP = 100
LEVEL = 0.95
BEYOND = 0.7  # share of other images that outrank hardly any right pair's own
FEWEST = 10  # pairs that anything can be said of
PRIOR_PAIRS = 30.0  # what the right pairs of a larger set count beside those of a smaller one


class WrongShare(NamedTuple):
    """Share of wrong captions, with an interval from resampled pairs."""

    share: float
    low: float
    high: float
    right: tuple[float, float] = (0.0, 1.0)  # mean and spread of the agreement of right pairs


def wrong_share(
    own: Float[np.ndarray, " m"],
    by_chance: Float[np.ndarray, " c"],
    *,
    rng: np.random.Generator,
    like: WrongShare | None = None,
) -> WrongShare | None:
    """The share of pairs that agree no better than an image and the caption of another.

    Exact where right pairs are normally distributed and wrong ones agree like chance. Its interval
    holds the sampling of the pairs and of chance, and that the likelihood of few pairs may have
    several peaks; not what the assumptions are worth: right pairs with a tail towards chance are
    counted as wrong, and where agreement hardly tells right from wrong the share comes out too
    high. A set without a right pair cannot be told from one without a wrong one.

    Args:
        own: agreement of the pairs, on any scale.
        by_chance: of images with captions of others, on the same scale.
        rng: resamples the pairs.
        like: of many pairs of the same kind, whose right ones count like `PRIOR_PAIRS` further
            right ones: a few pairs alone may be split in several ways.

    Returns:
        None where there are fewer than ten pairs, or they do not differ.
    """
    low, high = min(own.min(), by_chance.min()), max(own.max(), by_chance.max())
    if len(own) < FEWEST or not high > low:
        return None
    edges = np.linspace(low, high, N_BINS + 1)
    chance, width = _density(by_chance, edges)
    counts = np.histogram(own, edges)[0].astype(np.float64)
    resampled = [
        rng.multinomial(len(values), weights / weights.sum(), size=N_BOOTSTRAP)
        for values, weights in ((own, counts), (by_chance, chance))
    ]
    found = _likeliest(
        np.concatenate([counts[None], resampled[0]]),
        np.concatenate([chance[None], _smooth(resampled[1].astype(np.float64), width)]),
        (edges[1:] + edges[:-1]) / 2,
        like,
    )
    tail = (1 - LEVEL) / 2
    share, *others = found.share[:, 0].tolist()
    bounds = np.quantile(others, [tail, 1 - tail])
    right = float(found.mean[0, 0]), float(found.spread[0, 0])
    return WrongShare(share, min(share, float(bounds[0])), max(share, float(bounds[1])), right)


def wrong_share_by_rank(outranked: Float[np.ndarray, " m"]) -> WrongShare | None:
    """The share of pairs whose own image is among the others as if drawn by lot: Storey (2002).

        w = #{u_i > lambda} / (m (1 - lambda))        u: share of other images that suit better

    A caption that does not belong to its image ranks it anywhere, uniformly, whatever the caption
    is; of right pairs hardly one is outranked by more than `BEYOND` of the others. So boilerplate
    counts as wrong at its full share. Exact where wrong captions fell to their images by lot, up
    to the few right pairs beyond; joint maps that are fitted to the other pairs, wrong ones too,
    rank the own image of a wrong pair a little too low.

    Args:
        outranked: of the pairs, 0 to 1.

    Returns:
        None where there are fewer than ten pairs.
    """
    m = len(outranked)
    if m < FEWEST:
        return None
    beyond = float((outranked > BEYOND).mean())
    off = norm.ppf((1 + LEVEL) / 2) * np.sqrt(beyond * (1 - beyond) / m)
    share, low, high = (
        float(np.clip(x / (1 - BEYOND), 0, 1)) for x in (beyond, beyond - off, beyond + off)
    )
    return WrongShare(share, low, high)


def both_shares(one: WrongShare | None, other: WrongShare | None) -> WrongShare | None:
    """The mean of two estimates whose biases are opposite, with an interval that holds both's."""
    if one is None or other is None:
        return one or other
    return WrongShare(
        (one.share + other.share) / 2, min(one.low, other.low), max(one.high, other.high), one.right
    )


class _Mixture(NamedTuple):
    """The share of wrong pairs, and the normal distribution of right ones; a row a histogram."""

    share: Float[np.ndarray, "r 1"]
    mean: Float[np.ndarray, "r 1"]
    spread: Float[np.ndarray, "r 1"]


def _density(
    values: Float[np.ndarray, " c"], edges: Float[np.ndarray, " e"]
) -> tuple[Float[np.ndarray, " b"], float]:
    """A smoothed histogram, and the width of its kernel, which is Silverman's, in bins."""
    counts = np.histogram(values, edges)[0].astype(np.float64)
    spread = min(values.std(), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34)
    width = max(float(0.9 * spread * len(values) ** -0.2 / (edges[1] - edges[0])), 0.5)
    return _smooth(counts[None], width)[0], width


def _smooth(counts: Float[np.ndarray, "r b"], width: float) -> Float[np.ndarray, "r b"]:
    smooth = gaussian_filter1d(counts, width, axis=1, mode="constant")
    smooth = np.maximum(smooth, 0) + 1e-9  # nothing is impossible
    return np.asarray(smooth / smooth.sum(axis=1, keepdims=True))


def _likeliest(
    counts: Float[np.ndarray, "r b"],
    chance: Float[np.ndarray, "r b"],
    middles: Float[np.ndarray, " b"],
    like: WrongShare | None,
) -> _Mixture:
    """Of several starts, the end of highest likelihood for each histogram."""
    ends = [_mixture(counts, chance, middles, _start(counts, middles, s), like) for s in STARTS]
    likeliest = np.argmax([reached[:, 0] for _, reached in ends], axis=0)
    rows = np.arange(len(counts))
    share, mean, spread = (
        np.stack([end[part] for end, _ in ends])[likeliest, rows] for part in range(3)
    )
    return _Mixture(share, mean, spread)


def _start(
    counts: Float[np.ndarray, "r b"], middles: Float[np.ndarray, " b"], share: float
) -> _Mixture:
    """The upper part of the pairs as the right ones."""
    reached = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    upper = counts * (reached >= share)
    total = upper.sum(axis=1, keepdims=True)
    mean = (upper @ middles)[:, None] / total
    spread = np.sqrt((upper * (middles - mean) ** 2).sum(axis=1, keepdims=True) / total)
    return _Mixture(np.full_like(mean, share), mean, spread)


def _mixture(
    counts: Float[np.ndarray, "r b"],
    chance: Float[np.ndarray, "r b"],
    middles: Float[np.ndarray, " b"],
    start: _Mixture,
    like: WrongShare | None,
) -> tuple[_Mixture, Float[np.ndarray, "r 1"]]:
    """Expectation maximisation for each histogram, and the log likelihood that it ends at."""
    n, step = counts.sum(axis=1, keepdims=True), middles[1] - middles[0]
    known, (known_mean, known_spread) = (PRIOR_PAIRS, like.right) if like else (0.0, (0.0, 1.0))
    share, mean, spread = start
    steps = range(N_STEPS)
    for _ in tqdm(steps, desc="share of wrong captions", unit="step", disable=None, leave=False):
        spread = np.maximum(spread, step)
        right = np.exp(-(((middles - mean) / spread) ** 2) / 2) / spread / np.sqrt(2 * np.pi)
        right = (1 - share) * right * step
        both = right + share * chance + 1e-300
        posterior = counts * right / both
        total = np.maximum(posterior.sum(axis=1, keepdims=True), 1e-9)
        share = np.clip(1 - total / n, 0, 1)
        mean = ((posterior @ middles)[:, None] + known * known_mean) / (total + known)
        squares = (posterior * (middles - mean) ** 2).sum(axis=1, keepdims=True)
        squares += known * (known_spread**2 + (known_mean - mean) ** 2)
        spread = np.sqrt(squares / (total + known))
    spread = np.maximum(spread, step)
    of_known = (known_spread**2 + (known_mean - mean) ** 2) / (2 * spread**2) + np.log(spread)
    likelihood = (counts * np.log(both)).sum(axis=1, keepdims=True) - known * of_known
    return _Mixture(share, mean, spread), likelihood

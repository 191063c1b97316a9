"""Which pairs are in which batch of a training."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int64

from learner.model import shuffled_batches


def training_batches(
    n: int,
    batch_size: int,
    n_steps: int,
    sampling_weights: np.ndarray | None,
    *,
    seed: int,
    carry_over: bool,
) -> Int64[np.ndarray, "n_steps b"]:
    """Positions of the pairs of every batch of a run; epochs follow one another.

    Args:
        n: pairs.
        batch_size: of full batches; a smaller set is one batch.
        n_steps: batches.
        sampling_weights: (n,) how often each pair is drawn, in proportion; None: once an epoch.
        seed: decides their order.
        carry_over: the pairs that the full batches of an epoch leave over come first in the next.
    """
    n_epochs = math.ceil(n_steps / steps_per_epoch(n, batch_size))
    rng = np.random.default_rng(seed)
    if carry_over:
        return _carried_over(n, batch_size, n_steps, rng)
    epochs = [shuffled_batches(n, batch_size, rng) for _ in range(n_epochs)]
    if sampling_weights is not None:
        # Drawn by a generator of its own: equal weights leave the batches as they are.
        draws = np.random.default_rng((seed, 1))
        epochs = [drawn_pairs(sampling_weights, draws)[places] for places in epochs]
    batches: np.ndarray = np.concatenate(epochs)[:n_steps]
    return batches


def _carried_over(
    n: int, batch_size: int, n_steps: int, rng: np.random.Generator
) -> Int64[np.ndarray, "n_steps b"]:
    """Batches of one permutation of the pairs after another, none twice in a batch.

    What a permutation leaves over of full batches is in the first batch of the next, so that
    ceil(n / b) steps hold every pair.
    """
    b = min(batch_size, n)
    batches: list[np.ndarray] = []
    left: np.ndarray = np.zeros(0, dtype=np.int64)
    while len(batches) < n_steps:
        order: np.ndarray = rng.permutation(n)
        if len(left):
            beside = order[~np.isin(order, left)][: b - len(left)]
            batches.append(np.concatenate([left, beside]))
            order = order[~np.isin(order, beside)]
        n_full = len(order) // b
        batches += list(order[: n_full * b].reshape(n_full, b))
        left = order[n_full * b :]
    return np.stack(batches[:n_steps])


def drawn_pairs(
    weights: Float[np.ndarray, " n"], rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """The n pairs of one epoch, sorted, each expected in proportion to its weight.

    Systematic resampling (Kitagawa 1996), in a new order of the pairs every time, so that no two
    of them always exclude each other. A pair that comes twice into a batch is there a negative of
    itself.
    """
    order = rng.permutation(len(weights))
    counts = np.empty(len(weights), dtype=np.int64)
    counts[order] = systematic_counts(weights[order], float(rng.random()))
    return np.repeat(np.arange(len(weights)), counts)


def systematic_counts(weights: Float[np.ndarray, " n"], offset: float) -> Int64[np.ndarray, " n"]:
    """How often each pair is drawn, n times in all: n w_i / sum w, rounded up or down.

    The weights are laid end to end on a line of length n; a pair is drawn once for every point
    1 - offset, 2 - offset, ..., n - offset on its piece.

    Args:
        weights: >= 0, not all zero.
        offset: in [0, 1); uniformly random, it makes the expected counts exact.
    """
    n = len(weights)
    ends = np.cumsum(weights)
    ends = n * (ends / ends[-1])
    # The last end is n exactly; adding the offset may round up to n + 1.
    reached = np.minimum(np.floor(ends + offset), n).astype(np.int64)
    return np.diff(reached, prepend=0)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in one epoch over `n` pairs, at least one."""
    return max(1, n // batch_size)

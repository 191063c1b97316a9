"""Which pairs look faulty, by what they agree and by what the other pairs of their topic do.

Boilerplate suits every image a little: a caption of it by itself may well be right. But its
captions are alike and make up topics of their own, in which hardly any pair agrees as right ones
do. So the share of wrong pairs is estimated for each topic by itself,

    w_k = (sum over its pairs of w_k / (w_k + (1 - w_k) exp(s_i)) + m w) / (n_k + m)

by expectation maximisation, s_i being the log odds that a pair is right, right and wrong equally
often, and w the share of all pairs, which counts like m pairs of the topic. What is so found of all
pairs together need not be w, which is known by other ways too; the odds of all topics are moved
alike, so that a topic that is like all pairs has the share w. A pair looks faulty that is more
likely wrong than right where w_k of its topic are wrong.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.special import expit, logit

PRIOR_PAIRS = 4.0  # m
N_STEPS, CLOSE = 200, 1e-5  # of expectation maximisation; when it is over
SHARES = 1e-3, 1 - 1e-3  # that are reckoned with


def topic_fault_shares(
    log_odds: Float[np.ndarray, " n"], topics: Int64[np.ndarray, " n"], wrong_share: float
) -> Float[np.ndarray, " K"]:
    """The estimated share of wrong pairs in every topic.

    Args:
        log_odds: that a pair is right, right and wrong equally often.
        topics: of the pairs, 0 to K - 1.
        wrong_share: of all pairs.
    """
    everywhere = float(np.clip(wrong_share, *SHARES))
    of_all, of_each = (
        logit(np.clip(_likeliest(log_odds, among, everywhere), *SHARES))
        for among in (np.zeros_like(topics), topics)
    )
    return np.asarray(expit(of_each - of_all + logit(everywhere)))


def _likeliest(
    log_odds: Float[np.ndarray, " n"], topics: Int64[np.ndarray, " n"], everywhere: float
) -> Float[np.ndarray, " K"]:
    sizes = np.bincount(topics)
    shares = np.full(len(sizes), everywhere)
    for _ in range(N_STEPS):
        wrong = expit(logit(np.clip(shares, *SHARES))[topics] - log_odds)
        before = shares
        shares = (np.bincount(topics, wrong) + PRIOR_PAIRS * everywhere) / (sizes + PRIOR_PAIRS)
        if np.abs(shares - before).max() < CLOSE:
            break
    return np.asarray(shares)


def looks_right(
    log_odds: Float[np.ndarray, " n"], topics: Int64[np.ndarray, " n"], wrong_share: float
) -> Bool[np.ndarray, " n"]:
    """Pairs that are more likely right than wrong; arguments as of `topic_fault_shares`."""
    shares = topic_fault_shares(log_odds, topics, wrong_share)
    return np.asarray(log_odds >= logit(shares)[topics])

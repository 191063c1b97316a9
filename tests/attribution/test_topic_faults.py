"""Which pairs look faulty, given what the others of their topic do."""

from __future__ import annotations

import numpy as np
import pytest

from attribution.topic_faults import (
    PRIOR_PAIRS,
    SHARES,
    _likeliest,
    looks_right,
    topic_fault_shares,
)


def test_the_share_of_a_topic_solves_its_equation() -> None:
    rng = np.random.default_rng(0)
    log_odds, topics = 3 * rng.normal(size=60), np.repeat([0, 1, 2], 20)
    log_odds[40:] -= 3
    shares = _likeliest(log_odds, topics, 0.2)
    assert shares[2] > shares[0]
    for k, share in enumerate(shares):
        wrong = share / (share + (1 - share) * np.exp(log_odds[topics == k]))
        wanted = (wrong.sum() + 0.2 * PRIOR_PAIRS) / (20 + PRIOR_PAIRS)
        assert share == pytest.approx(wanted, abs=1e-4)


def test_a_topic_like_all_pairs_has_the_share_of_all() -> None:
    log_odds = np.tile(3 * np.random.default_rng(0).normal(size=500), 2)
    topics = np.repeat([0, 1], 500)
    for share in (0.0, 0.1, 0.4, 1.0):
        found = topic_fault_shares(log_odds, topics, share)
        np.testing.assert_allclose(found, np.clip(share, *SHARES), atol=2e-3)


def test_topics_of_which_nothing_is_known_have_the_share_of_all() -> None:
    shares = topic_fault_shares(np.zeros(9), np.array([0] * 4 + [2] * 5), 0.3)
    np.testing.assert_allclose(shares, 0.3, atol=1e-3)  # an empty topic, too


def test_captions_that_suit_every_image_a_little_give_themselves_away_together() -> None:
    # Right pairs agree by 4, boilerplate by a little more than a fifth of wrong pairs asks for.
    rng = np.random.default_rng(1)
    right, boilerplate = rng.normal(4, 1.5, size=400), rng.normal(-1, 0.8, size=100)
    log_odds = np.concatenate([right, boilerplate])
    is_right = np.arange(500) < 400
    alone = log_odds >= np.log(0.2 / 0.8)
    assert alone[~is_right].mean() > 0.5
    topics = np.concatenate([np.arange(400) % 8, 8 + np.arange(100) % 2])
    found = looks_right(log_odds, topics, 0.2)
    assert found[~is_right].mean() < 0.05
    assert found[is_right].mean() > 0.95


def test_a_single_topic_keeps_to_its_pairs() -> None:
    log_odds = np.array([5.0, 4.0, 6.0, -9.0])
    found = looks_right(log_odds, np.zeros(4, dtype=np.int64), 0.0)
    np.testing.assert_array_equal(found, [True, True, True, False])
    everything = looks_right(np.full(50, -9.0), np.zeros(50, dtype=np.int64), 1.0)
    assert not everything.any()

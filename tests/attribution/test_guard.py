"""How much influence counts, where it agrees with agreement, contradicts it, or has no say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attribution.fault_share import WrongShare
from attribution.guard import FEWEST_WRONG, MISLEADS, TELLS, guard_influence, log_probability_right

A_FIFTH = WrongShare(0.2, 0.15, 0.25)
SURE = 60.0  # log odds: e^-60 of doubt is far below the tolerances


def told_apart(share: float) -> tuple[np.ndarray, np.ndarray]:
    """Influence and agreement of 1,000 pairs, 200 surely wrong.

    Influence is +1 or -1: of this share of the wrong ones -1, of the right ones always half each,
    so that its AUC is 1/2 [P(wrong -1) + P(right +1)] = 1/4 + share / 2 (ties count half).
    """
    agreement = np.where(np.arange(1000) < 200, -SURE, SURE)
    influence = np.where(np.arange(1000) % 2 == 0, 1.0, -1.0)
    influence[:200] = np.where(np.arange(200) < round(200 * share), -1.0, 1.0)
    return influence, agreement


def test_influence_that_agrees_counts_fully() -> None:
    agreement = np.random.default_rng(0).normal(size=500)
    found = guard_influence(2 * agreement + 1, agreement, A_FIFTH)
    assert found.weight == 1
    assert found.reason == ""
    assert found.correlation == pytest.approx(1)
    assert found.tells_right is not None
    assert found.tells_right > 0.5


def test_reversed_influence_counts_for_nothing_and_it_is_said_why() -> None:
    influence, agreement = np.zeros(1000), np.where(np.arange(1000) < 200, -SURE, SURE)
    influence[:200] = 1.0
    found = guard_influence(influence, agreement, A_FIFTH)
    assert found.weight == 0
    assert found.tells_right == pytest.approx(0, abs=1e-12)
    assert found.correlation == pytest.approx(-1)
    assert found.reason == (
        "influence and agreement contradict each other: of a right and a wrong pair the right one "
        "has the higher influence only 0 % of the time (correlation -1.00)"
    )


@pytest.mark.parametrize(
    ("share", "tells", "weight"),
    [
        (0.6, 0.55, 1.0),
        (0.5, 0.5, 1.0),
        (0.4, 0.45, 2 / 3),
        (0.35, 0.425, 0.5),
        (0.3, 0.4, 1 / 3),
        (0.2, 0.35, 0.0),
        (0.0, 0.25, 0.0),
    ],
)
def test_the_weight_is_linear_in_between(share: float, tells: float, weight: float) -> None:
    assert (MISLEADS, TELLS) == (0.35, 0.5)
    found = guard_influence(*told_apart(share), A_FIFTH)
    assert found.tells_right == pytest.approx(tells, abs=1e-9)
    assert found.weight == pytest.approx(weight, abs=1e-9)
    if share != 0.5:  # where the AUC is at the bar but for rounding
        assert (found.reason == "") is (weight == 1)
    if 0 < weight < 1:
        assert f"only {100 * tells:.0f} % of the time" in found.reason
        assert f"(correlation {found.correlation:+.2f})" in found.reason
        assert found.correlation < 0


def test_doubtful_pairs_count_by_their_odds() -> None:
    # Two kinds of pairs: right with 0.9 and 0.3. With influence 0 and 1 the AUC is, over all
    # couples weighted by P(right) P(wrong): upper right beside lower wrong, and half the ties.
    share, log_odds = 0.5, np.log(np.array([0.9 / 0.1, 0.3 / 0.7]))
    right, wrong = np.array([0.9, 0.3]), np.array([0.1, 0.7])
    agreement, influence = np.tile(log_odds, 30), np.tile([0.0, 1.0], 30)
    expected = (right[1] * wrong[0] + (right * wrong).sum() / 2) / (right.sum() * wrong.sum())
    found = guard_influence(influence, agreement, WrongShare(share, 0.4, 0.6))
    assert found.tells_right == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "wrong", [None, WrongShare(0.03, 0.0, 0.06), WrongShare(0.05, FEWEST_WRONG - 1e-9, 0.1)]
)
def test_where_hardly_a_caption_is_surely_wrong_hard_pairs_may_help_most(
    wrong: WrongShare | None,
) -> None:
    agreement = np.random.default_rng(0).normal(3, 1, size=500)
    found = guard_influence(-agreement, agreement, wrong)
    assert found.correlation == pytest.approx(-1)
    assert found.weight == 1
    assert found.reason == ""
    assert found.tells_right is None
    surely = guard_influence(-agreement, agreement, WrongShare(0.05, FEWEST_WRONG, 0.1))
    assert surely.weight < 1  # the bar itself is enough


@pytest.mark.parametrize("constant", ["influence", "agreement", "both"])
def test_what_is_constant_contradicts_nothing(constant: str) -> None:
    values, same = np.random.default_rng(0).normal(size=50), np.full(50, 0.7)
    influence = values if constant == "agreement" else same
    agreement = values if constant == "influence" else same
    assert guard_influence(influence, agreement, A_FIFTH) == (1.0, 0.0, None, "")


# --- Log probability --------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_log_probability_by_the_formula_of_bayes(share: float) -> None:
    log_odds = np.linspace(-6, 6, 25)
    # Densities in the ratio e^odds : 1, and right and wrong in the ratio (1 - share) : share.
    expected = [
        math.log(math.exp(s) * (1 - share) / (math.exp(s) * (1 - share) + share)) for s in log_odds
    ]
    np.testing.assert_allclose(log_probability_right(log_odds, share), expected, rtol=1e-9)


@pytest.mark.parametrize(("share", "bound"), [(0.0, 1e-3), (1.0, 1 - 1e-3)])
def test_no_share_is_reckoned_with_as_certain(share: float, bound: float) -> None:
    log_odds = np.array([-3.0, 0.0, 3.0])
    np.testing.assert_array_equal(
        log_probability_right(log_odds, share), log_probability_right(log_odds, bound)
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_extremes_are_finite(share: float) -> None:
    log_odds = np.array([-1e308, -1e4, -600.0, 600.0, 1e4, 1e308])
    found = log_probability_right(log_odds, share)  # warnings are errors
    assert np.isfinite(found).all()
    assert np.all(np.diff(found) >= 0)
    assert found[:2].tolist() == [-500.0, -500.0]
    np.testing.assert_allclose(found[3:], 0, atol=1e-12)

"""Views joined to log odds, against densities that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from attribution import joined_views
from attribution.joined_views import (
    LEAST_SHARE,
    LEAST_WRONG,
    MOST_WRONG,
    Agreement,
    JoinedViews,
    join_views,
    joined_agreement,
)


def view(separation: float, rng: np.random.Generator, n: int = 2000) -> Agreement:
    return Agreement(rng.normal(separation, 1, n), rng.normal(0, 1, n))


def test_views_are_joined_by_what_they_tell() -> None:
    # Independent unit normals `separation` apart: log odds are sum_v d_v (x_v - d_v / 2).
    rng = np.random.default_rng(0)
    views = [view(2.0, rng), view(1.0, rng), view(0.0, rng)]
    joined = joined_agreement(views, 0.0).log_odds
    expected = 2 * (views[0].own - 1) + (views[1].own - 0.5)
    assert np.corrcoef(joined, expected)[0, 1] > 0.995
    assert np.polyfit(expected, joined, 1)[0] == pytest.approx(1, abs=0.1)  # four errors of the fit


def test_the_scale_of_a_view_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    first, second = view(2.0, rng), view(1.0, rng)
    scaled = Agreement(0.01 * second.own - 5, 0.01 * second.by_chance - 5)
    np.testing.assert_allclose(
        joined_agreement([first, scaled], 0.0).log_odds,
        joined_agreement([first, second], 0.0).log_odds,
        atol=1e-3,  # the solver's tolerance
    )


def test_a_view_that_tells_the_contrary_counts_for_nothing() -> None:
    rng = np.random.default_rng(3)
    first, contrary = view(2.0, rng), view(-1.0, rng)
    np.testing.assert_allclose(
        joined_agreement([first, contrary], 0.0).log_odds,
        joined_agreement([first], 0.0).log_odds,
        atol=1e-3,  # the solver's tolerance
    )


def test_views_that_tell_nothing_leave_all_alike() -> None:
    same = Agreement(np.full(10, 0.3), np.full(10, 0.3))
    joined = joined_agreement([same, same], 0.0).log_odds
    np.testing.assert_allclose(joined, joined[0])


def test_odds_of_a_view_are_calibrated() -> None:
    # Unit normals two apart: log odds are 2 (x - 1). Four errors of a fit to 4,000 are some 0.15.
    joined = join_views([view(2.0, np.random.default_rng(4))], 0.0)
    at = np.array([-1.0, 0.0, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(joined.log_odds([at]), 2 * (at - 1), rtol=0.1, atol=0.15)


def test_a_view_given_twice_says_no_more_than_once() -> None:
    # By chance the same strangers stand in both, so that what they share is not counted twice.
    rng = np.random.default_rng(5)
    once = view(2.0, rng)
    alone, twice = (joined_agreement(views, 0.0).log_odds for views in ([once], [once, once]))
    # The ridge falls on two halves instead of one whole: 1e-4 beside a curvature of 0.05 or so.
    np.testing.assert_allclose(twice, alone, rtol=0.01, atol=0.01)
    # Two views of one quantity, each with its own error, say more than one, but not twice as much.
    own, by_chance = rng.normal(2, 1, 2000), rng.normal(0, 1, 2000)
    noisy = [
        Agreement(own + rng.normal(0, 0.5, 2000), by_chance + rng.normal(0, 0.5, 2000))
        for _ in range(2)
    ]
    one, both = (joined_agreement(views, 0.0).log_odds for views in (noisy[:1], noisy))
    # Separation 2 over a spread of sqrt(1.25) and sqrt(1.125): mean log odds d^2 / 2 = 1.6 and
    # 1.78; four errors of the fit are some 0.25.
    assert one.mean() == pytest.approx(1.6, abs=0.25)
    assert both.mean() == pytest.approx(1.78, abs=0.25)
    # Under other strangers the two are independent by chance, and it looks like twice as much.
    shuffled = once._replace(by_chance=rng.permutation(once.by_chance))
    doubled = joined_agreement([once, shuffled], 0.0).log_odds
    assert np.abs(doubled).mean() > 1.2 * np.abs(alone).mean()


def test_the_scale_holds_for_pairs_that_it_was_not_fitted_to() -> None:
    rng = np.random.default_rng(6)
    views = [view(2.0, rng), view(1.0, rng)]
    joined = join_views(views, 0.0)
    new = [rng.normal(size=50), rng.normal(size=50)]
    by_hand = [
        joined.intercept
        + sum(
            c * (v[i] - m) for c, v, m in zip(joined.coefficients, new, joined.middle, strict=True)
        )
        for i in range(50)
    ]
    np.testing.assert_allclose(joined.log_odds(new), by_hand, rtol=1e-12)
    expected = 2 * (new[0] - 1) + (new[1] - 0.5)
    assert np.corrcoef(joined.log_odds(new), expected)[0, 1] > 0.995
    assert (joined.coefficients > 0).all()


def test_a_scale_may_be_fitted_to_some_of_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [view(2.0, np.random.default_rng(4))]
    whole = join_views(views, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(whole.coefficients, join_views(views, 0.0).coefficients)
    monkeypatch.setattr(joined_views, "MOST_JOINED", 1000)
    some = join_views(views, 0.0, np.random.default_rng(0))
    assert some.coefficients[0] != whole.coefficients[0]
    assert some.coefficients[0] == pytest.approx(whole.coefficients[0], rel=0.2)


# --- Wrong captions among the pairs -----------------------------------------------------------


def pool(separations: tuple[float, float], wrong: float, n: int, seed: int) -> list[Agreement]:
    """Two independent views of n pairs, of which the first `wrong` n agree like chance."""
    rng = np.random.default_rng(seed)
    right = np.arange(n) >= round(wrong * n)
    return [Agreement(d * right + rng.normal(size=n), rng.normal(size=n)) for d in separations]


def at_zero(joined: JoinedViews) -> float:
    """Log odds where every view is zero."""
    return float(joined.log_odds([np.zeros(1)] * len(joined.coefficients))[0])


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.5])
def test_coefficients_are_those_of_right_pairs_whatever_the_share_of_wrong_ones(
    wrong: float,
) -> None:
    # Unit normals d apart: the log density ratio is d1 x1 + d2 x2 - (d1^2 + d2^2) / 2.
    fits = [join_views(pool((2.0, 1.0), wrong, 5000, seed), wrong) for seed in range(8)]
    found = np.array([[*fit.coefficients, at_zero(fit)] for fit in fits])
    errors = found.std(axis=0, ddof=1) / np.sqrt(8)
    assert (errors < 0.1).all()
    # Half a percent is reckoned with at least: where none is wrong slopes come out 0.02 too steep.
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - [2, 1, -2.5]), 4 * errors + 0.05)


def test_a_share_that_is_not_reckoned_with_makes_odds_too_small() -> None:
    views = pool((2.0, 1.0), 0.5, 5000, 0)
    blind, told = join_views(views, 0.0), join_views(views, 0.5)
    assert (blind.coefficients < 0.7 * told.coefficients).all()


def test_pairs_cut_off_along_one_view_would_give_that_view_most_of_the_weight() -> None:
    # Two views worth the same, half of the captions wrong: those that look best by the first view
    # are taken for right ones. What is left of it is far from chance, whatever it is worth.
    views = pool((1.5, 1.5), 0.5, 4000, 1)
    fair = join_views(views, 0.5).coefficients
    assert fair[0] == pytest.approx(fair[1], rel=0.25)
    best = np.argsort(-views[0].own)[:2000]
    cut = [Agreement(view.own[best], view.by_chance[best]) for view in views]
    biased = join_views(cut, 0.0).coefficients
    assert biased[0] > 2 * biased[1]


def test_what_is_said_by_chance_is_said_on_the_same_scale() -> None:
    views = pool((2.0, 1.0), 0.2, 2000, 2)
    joined, scale = joined_agreement(views, 0.2), join_views(views, 0.2)
    np.testing.assert_array_equal(joined.log_odds, scale.log_odds([v.own for v in views]))
    np.testing.assert_array_equal(joined.by_chance, scale.log_odds([v.by_chance for v in views]))
    assert joined.by_chance.mean() < 0 < joined.log_odds[400:].mean()
    # Wrong pairs agree like chance: 400 and 2,000 of spread sqrt(5) differ by 0.12 or so.
    assert joined.log_odds[:400].mean() == pytest.approx(joined.by_chance.mean(), abs=0.5)


def test_shares_beyond_reckoning_are_drawn_in() -> None:
    views = pool((2.0, 1.0), 0.2, 500, 3)
    for share, bound in ((0.0, LEAST_WRONG), (1.0, MOST_WRONG)):
        drawn_in, at_bound = join_views(views, share), join_views(views, bound)
        np.testing.assert_array_equal(drawn_in.coefficients, at_bound.coefficients)
        assert np.isfinite(drawn_in.coefficients).all()
        assert np.isfinite(drawn_in.intercept)


def test_no_view_counts_less_than_a_quarter_of_what_it_would_count_alone() -> None:
    # The second sees the first through noise and adds nothing to it.
    rng = np.random.default_rng(4)
    first = view(2.0, rng)
    noisy = Agreement(*(side + rng.normal(0, 0.5, 2000) for side in first[:2] if side is not None))
    alone = join_views([noisy], 0.0).coefficients[0]
    joined = join_views([first, noisy], 0.0).coefficients
    assert alone > 1
    assert joined[1] == pytest.approx(LEAST_SHARE * alone, rel=1e-3)
    assert joined[0] > joined[1]

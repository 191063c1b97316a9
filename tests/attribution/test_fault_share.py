"""The share of wrong captions in mixtures that were made with a known one."""

from __future__ import annotations

import numpy as np
import pytest

from attribution import fault_share
from attribution.fault_share import (
    BEYOND,
    FEWEST,
    WrongShare,
    both_shares,
    wrong_share,
    wrong_share_by_rank,
)

SHARES = (0.0, 0.05, 0.2, 0.4, 0.6)
SEEDS = range(5)


def mixture(
    share: float, n: int, seed: int, *, chance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Right pairs three standard deviations above chance, and as many wrong ones as is said."""
    rng = np.random.default_rng(seed)
    levels = rng.standard_normal(4 * n) if chance is None else chance
    own = rng.normal(3, 1, n)
    n_wrong = round(share * n)
    own[:n_wrong] = rng.choice(levels, n_wrong)
    return own, rng.choice(levels, n), rng


def estimate(own: np.ndarray, by_chance: np.ndarray, rng: np.random.Generator) -> WrongShare:
    found = wrong_share(own, by_chance, rng=rng)
    assert found is not None
    return found


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_known_share_is_found(share: float, seed: int) -> None:
    # Of 2,000 pairs, 3 deviations apart, some 7 % lie nearer to the other kind: were 140 pairs told
    # apart by a coin, the share would be off by 0.003 at one deviation, and chance is seen no
    # better; the largest of a hundred was 0.021.
    found = estimate(*mixture(share, 2000, seed))
    assert found.share == pytest.approx(share, abs=0.03)
    assert found.low <= found.share <= found.high
    assert found.high - found.low < 0.1


@pytest.fixture
def no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the share alone is looked at; the interval takes nearly all the time."""
    monkeypatch.setattr(fault_share, "N_BOOTSTRAP", 1)


@pytest.mark.usefixtures("no_interval")
def test_shares_come_in_the_order_in_which_they_were_made() -> None:
    found = [np.mean([estimate(*mixture(s, 500, seed)).share for seed in SEEDS]) for s in SHARES]
    np.testing.assert_allclose(found, SHARES, atol=0.02)  # the mean of five: no bias to speak of


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_the_interval_holds_the_share(share: float) -> None:
    # At 95 % fewer than 16 of 20 would be a chance of 0.0026; the wrong ones are counted, not
    # drawn, so that the interval, which also holds their drawing, is on the safe side.
    found = [estimate(*mixture(share, 500, seed)) for seed in range(20)]
    assert sum(f.low <= share <= f.high for f in found) >= 16


def test_more_pairs_narrow_the_interval() -> None:
    few, many = (estimate(*mixture(0.3, n, 0)) for n in (300, 4800))
    # Sixteen times as many: a quarter of the width, give or take a third for 100 resamples.
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.35)


def test_chance_may_have_any_shape() -> None:
    # Two kinds of wrong captions, one of which agrees much like the right ones.
    rng = np.random.default_rng(9)
    chance = np.append(rng.normal(-2, 0.3, 6000), rng.normal(1, 0.3, 2000))
    for seed in SEEDS:
        found = estimate(*mixture(0.3, 2000, seed, chance=chance))
        assert found.share == pytest.approx(0.3, abs=0.03)  # as above


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 7.0), (0.01, -0.2), (40.0, 0.0), (3.0, -90.0)])
def test_the_scale_of_agreement_does_not_matter(scale: float, shift: float) -> None:
    own, by_chance, _ = mixture(0.2, 1000, 0)
    plain, moved = (
        estimate(a * own + b, a * by_chance + b, np.random.default_rng(1))
        for a, b in ((1.0, 0.0), (scale, shift))
    )
    # Rounding may move a few of the thousand across the edge of a bin.
    np.testing.assert_allclose(moved[:3], plain[:3], atol=2e-3)
    mean, spread = plain.right
    np.testing.assert_allclose(moved.right, (scale * mean + shift, scale * spread), rtol=1e-2)


@pytest.mark.usefixtures("no_interval")
def test_a_few_pairs_lean_on_the_right_ones_of_many() -> None:
    # Forty pairs, half of them wrong, one deviation and a half above chance: alone they may be
    # split in many ways. Beside thousands whose right pairs are known the error halves.
    rng = np.random.default_rng(0)
    chance = rng.standard_normal(4000)
    many = np.append(rng.normal(1.5, 0.7, 3000), rng.choice(chance, 1000))
    known = estimate(many, chance, rng)
    errors = []
    for _ in range(50):
        few = np.append(rng.normal(1.5, 0.7, 20), rng.choice(chance, 20))
        alone = estimate(few, chance, rng)
        beside = wrong_share(few, chance, rng=rng, like=known)
        assert beside is not None
        errors.append([abs(alone.share - 0.5), abs(beside.share - 0.5)])
    alone_error, beside_error = np.mean(errors, axis=0)
    assert beside_error < 0.75 * alone_error


def test_the_interval_of_a_few_pairs_knows_of_other_peaks() -> None:
    # Half of the resampled sets of these end near zero, half far above it.
    rng = np.random.default_rng(3)
    widths = []
    for _ in range(10):
        few = np.append(rng.normal(1.2, 1, 60), rng.normal(0, 1, 20))
        found = estimate(few, rng.standard_normal(1000), rng)
        widths.append(found.high - found.low)
    assert np.median(widths) > 0.2


def test_a_share_is_that_of_captions_that_suit_every_image_too() -> None:
    # Boilerplate agrees like chance, whoever is asked.
    own, by_chance, rng = mixture(0.0, 1000, 0)
    own[:150] = by_chance[:150]
    assert estimate(own, by_chance, rng).share == pytest.approx(0.15, abs=0.03)


def test_where_all_are_far_above_chance_none_is_wrong() -> None:
    rng = np.random.default_rng(0)
    chance = rng.standard_normal(2000)
    assert estimate(rng.normal(30, 1, 2000), chance, rng).share == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_which_way_it_errs_where_right_pairs_are_not_normal(seed: int) -> None:
    """A tail of right pairs towards chance is taken for wrong ones; one away from it stretches."""
    rng = np.random.default_rng(seed)
    tail, chance = rng.gamma(1.5, 1.0, 2000), rng.standard_normal(2000)
    wrong = rng.standard_normal(400)  # a fifth
    for right, low, high in ((4 - tail, 0.25, 0.4), (2 + tail, 0.1, 0.18)):
        own = np.append(wrong, right[400:])
        assert low < estimate(own, chance, rng).share < high


@pytest.mark.parametrize("n", [1, FEWEST - 1])
def test_too_few_pairs_say_nothing(n: int) -> None:
    rng = np.random.default_rng(0)
    assert wrong_share(rng.normal(size=n), rng.normal(size=500), rng=rng) is None
    assert wrong_share(rng.normal(size=FEWEST), rng.normal(size=500), rng=rng) is not None


def test_pairs_that_do_not_differ_say_nothing() -> None:
    same = np.full(50, 0.3)
    assert wrong_share(same, same, rng=np.random.default_rng(0)) is None


def test_right_pairs_that_are_all_alike_are_told_from_chance() -> None:
    rng = np.random.default_rng(0)
    own = np.append(np.full(80, 9.0), rng.standard_normal(20))
    found = estimate(own, rng.standard_normal(500), rng)
    assert found.share == pytest.approx(0.2, abs=1e-3)


def test_equal_seeds_equal_results_and_others_differ_in_the_interval_alone() -> None:
    own, by_chance, _ = mixture(0.2, 500, 0)
    first, again, other = (
        estimate(own, by_chance, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first.share == other.share
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_wrong_ones_around_few_right_ones(seed: int) -> None:
    # Most start as one wide normal and end near no wrong captions at all; the likelihood is higher
    # where the few that lie close together are the right ones.
    rng = np.random.default_rng(seed)
    own = np.append(rng.standard_normal(1600), rng.normal(1.5, 0.3, 400))
    assert estimate(own, rng.standard_normal(2000), rng).share == pytest.approx(0.8, abs=0.06)


# --- By rank ----------------------------------------------------------------------------------


def by_rank(outranked: np.ndarray) -> WrongShare:
    found = wrong_share_by_rank(outranked)
    assert found is not None
    return found


def test_share_by_rank_by_hand() -> None:
    # Three of ten lie beyond 0.7, where 0.3 of those by lot do: all would be wrong.
    outranked = np.array([0.0, 0.1, 0.1, 0.2, 0.3, 0.6, BEYOND, 0.71, 0.8, 1.0])
    assert by_rank(outranked).share == pytest.approx(1.0)
    found = by_rank(np.tile(outranked[:8], 5))  # an eighth
    assert found.share == pytest.approx(0.125 / 0.3)
    off = 1.959964 * np.sqrt(0.125 * 0.875 / 40) / 0.3
    assert found.low == pytest.approx(0.125 / 0.3 - off)
    assert found.high == pytest.approx(0.125 / 0.3 + off)


@pytest.mark.parametrize("share", SHARES)
def test_a_share_of_captions_that_fell_by_lot_is_found_by_rank(share: float) -> None:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n_wrong = round(share * 2000)
        right = rng.beta(0.3, 6, 2000 - n_wrong)  # below 0.05 in the mean, hardly any beyond 0.7
        found.append(by_rank(np.r_[right, rng.random(n_wrong)]))
    # Of 2,000 drawn, the share has a deviation of sqrt(w 0.3 / 2000) / 0.3: at most 0.032.
    assert np.mean([f.share for f in found]) == pytest.approx(share, abs=0.03)
    # Fewer than 16 of 20 at 95 %: a chance of 0.0026.
    assert sum(f.low <= share <= f.high for f in found) >= 16
    assert all(0 <= f.low <= f.share <= f.high <= 1 for f in found)


def test_boilerplate_counts_as_wrong_by_rank() -> None:
    # Captions of many images agree a little better with all of them, yet rank their own anywhere.
    rng = np.random.default_rng(0)
    images = rng.normal(size=(600, 30))
    texts = images + 0.5 * rng.normal(size=images.shape)
    texts[:240] = images.mean(axis=0) + 0.05 * rng.normal(size=(240, 30))
    cosines = images @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
    outranked = (cosines > cosines.diagonal()).mean(axis=0)
    assert by_rank(outranked).share == pytest.approx(0.4, abs=0.13)  # three errors of 0.3 beyond


def test_of_few_pairs_nothing_is_said_by_rank() -> None:
    assert wrong_share_by_rank(np.linspace(0, 1, FEWEST - 1)) is None
    assert wrong_share_by_rank(np.zeros(FEWEST)) == WrongShare(0.0, 0.0, 0.0)


def test_two_estimates_meet_in_the_middle_of_an_interval_that_holds_both() -> None:
    one, other = WrongShare(0.2, 0.1, 0.3, (2.0, 0.5)), WrongShare(0.4, 0.25, 0.5)
    found = both_shares(one, other)
    assert found is not None
    assert found.share == pytest.approx(0.3)
    assert found[1:] == (0.1, 0.5, (2.0, 0.5))
    assert both_shares(one, None) == one
    assert both_shares(None, other) == other
    assert both_shares(None, None) is None

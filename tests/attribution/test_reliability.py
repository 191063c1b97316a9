"""Split halves of planted influence, whose reliability is known."""

from __future__ import annotations

import numpy as np
import pytest

from attribution.reliability import (
    FEWEST_EACH,
    Measured,
    Reliability,
    measured,
    own_share,
    split_half,
)

# --- What all repeats say ---------------------------------------------------------------------


def test_what_all_say_together_by_hand() -> None:
    influences = np.array([[[1.0, 2.0], [3.0, 6.0]], [[5.0, 6.0], [7.0, 2.0]]])  # (q, R, m)
    found = measured(influences)
    np.testing.assert_array_equal(found.influence, [4.0, 4.0])
    # The first half of the validation pairs by the first repeat, the second by the second.
    np.testing.assert_array_equal(found.halves, [[1.0, 2.0], [7.0, 2.0]])
    # Repeats say 3 4 and 5 4: variances 2 0, of two of them. The parts say 2 4 and 6 4.
    assert found.noise == pytest.approx((2.0 + 0.0) / 2 / 2 + (4.0**2 + 0.0**2) / 2 / 4)


def test_repeats_that_ask_the_same_pairs_differ_by_their_models_alone() -> None:
    found = measured(np.array([[[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]]]))
    np.testing.assert_array_equal(found.influence, [3.0, 5.0])
    np.testing.assert_array_equal(found.halves, [[3.0, 5.0], [3.0, 5.0]])  # 1 and 5; 3
    assert found.noise == pytest.approx((4.0 + 0.0) / 2 / 3)  # variances 4 and 0 of one, of three


def test_one_repeat_has_neither_halves_nor_noise() -> None:
    found = measured(np.array([[[1.0, 5.0]], [[3.0, 5.0]]]))
    assert found.noise is None
    assert not found.halves
    np.testing.assert_array_equal(found.influence, [2.0, 5.0])


def test_noise_holds_the_sampling_of_models_and_of_the_validation_pairs() -> None:
    # Four repeats, whose models differ by 1, of two halves which themselves differ by 3: the mean
    # over all is off by 1 / 4 and 3^2 / 2.
    rng = np.random.default_rng(0)
    m = 20_000
    truth, of_half = rng.normal(size=m), 3 * rng.normal(size=(2, 1, m))
    found = measured(truth + of_half + rng.normal(size=(4, m)))
    expected = 1 / 4 + 9 / 2
    assert found.noise == pytest.approx(expected, rel=0.05)  # five errors: sqrt(2 / m) each
    assert float(((found.influence - truth) ** 2).mean()) == pytest.approx(expected, rel=0.05)
    # Halves share nothing but the truth: each is off by 3^2 and 1 / 2 of its own.
    one, other = (half - truth for half in found.halves)
    assert float((one**2).mean()) == pytest.approx(9 + 1 / 2, rel=0.05)
    assert abs(float(np.corrcoef(one, other)[0, 1])) < 0.03  # four errors


# --- Own measurements -------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "noise"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (2.0, 0.1)])
def test_the_share_of_a_measurement_that_is_its_own(own: float, noise: float) -> None:
    # Residuals of variance own^2 beside noise^2 / 5 in the mean of five repeats.
    rng = np.random.default_rng(0)
    m = 4000
    pooled = rng.normal(size=m)
    per_repeat = pooled + own * rng.normal(size=m) + noise * rng.normal(size=(5, m))
    expected = own**2 / (own**2 + noise**2 / 5)
    for influences in (per_repeat[None], np.stack([per_repeat, per_repeat])):
        found = own_share(measured(influences), pooled)
        assert found == pytest.approx(expected, abs=0.08)  # three deviations


def test_shares_in_special_cases() -> None:
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=50)

    def share(*per_repeat: np.ndarray) -> float:
        return own_share(measured(np.stack(per_repeat)[None]), pooled)

    assert share(pooled) == 0
    assert share(pooled + 1) == 0.5
    assert share(pooled + 3, pooled - 2.9) == 0  # more noise than residual counts nothing
    assert share(pooled + 1, pooled + 1, pooled + 1) == 1
    # Halves of the validation pairs that contradict each other are noise as well.
    assert own_share(measured(np.stack([[pooled + 3] * 2, [pooled - 2.9] * 2])), pooled) == 0


# --- Split halves -----------------------------------------------------------------------------


def planted(signal: float, noise: float, seed: int, n: int = 3000) -> tuple[Measured, np.ndarray]:
    """Influence that is linear in one quantity; each half is off by a slope of its own.

    All pairs are evaluated, beside next to no noise of their own.
    """
    rng = np.random.default_rng(seed)
    kind = rng.uniform(-np.sqrt(3), np.sqrt(3), n)  # of unit variance
    other = rng.uniform(-np.sqrt(3), np.sqrt(3), (2, n))
    parts = [signal * kind + noise * side + 0.01 * rng.normal(size=n) for side in other]
    return Measured(np.mean(parts, axis=0), parts, None), np.stack([kind, *other])


def reliability_of(found: Measured, quantities: np.ndarray) -> Reliability:
    n = quantities.shape[1]
    return split_half(found, np.arange(n), list(quantities), np.zeros(n, dtype=np.int64))


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.2), (1.0, 1.0), (0.5, 1.0)])
def test_reliability_is_the_share_of_truth_in_the_mean_of_both_halves(
    signal: float, noise: float
) -> None:
    # Each half says s k + e z_half: they correlate by s^2 / (s^2 + e^2), their mean has a truth of
    # s^2 beside e^2 / 2, and they differ from each other by 2 e^2, their mean from it by e^2 / 2.
    found = reliability_of(*planted(signal, noise, seed=0))
    truth, error = signal**2, noise**2 / 2
    assert found.reliability == pytest.approx(truth / (truth + error), abs=0.04)
    assert found.squared_difference == pytest.approx(error, rel=0.1)
    assert found.weight == pytest.approx(np.sqrt(truth / (truth + error)), abs=0.04)


def test_halves_that_have_nothing_in_common_or_are_opposed_are_worth_nothing() -> None:
    found, quantities = planted(0.0, 1.0, seed=1)
    assert reliability_of(found, quantities).weight < 0.35  # of r below four errors of 1/sqrt(3000)
    opposed = found._replace(halves=[quantities[0], -quantities[0]])
    assert reliability_of(opposed, quantities) == pytest.approx((0.0, 1.0), rel=0.1)
    same = found._replace(halves=[np.ones(3000), np.ones(3000)])
    assert reliability_of(same, quantities).weight == 0.0


def test_the_weight_is_the_slope_of_the_truth_on_what_is_inferred() -> None:
    # Of standardised influence an inferred standard deviation foretells `weight` of the true one.
    found, quantities = planted(1.0, 1.0, seed=2)
    inferred, truth = (v / v.std() for v in (found.influence, quantities[0]))
    slope = float(np.polyfit(inferred, truth, 1)[0])
    assert reliability_of(found, quantities).weight == pytest.approx(slope, abs=0.04)


def test_without_two_halves_nothing_is_known_and_influence_is_taken_as_it_is() -> None:
    found, quantities = planted(1.0, 1.0, seed=3, n=2 * FEWEST_EACH)
    assert reliability_of(found, quantities).reliability is not None
    alone = found._replace(halves=[])
    fewer = Measured(found.influence[:-1], [part[:-1] for part in found.halves], None)
    for unknown in (
        reliability_of(alone, quantities),
        reliability_of(fewer, quantities[:, :-1]),
    ):
        assert unknown == Reliability(None, 0.0)
        assert unknown.weight == 1.0

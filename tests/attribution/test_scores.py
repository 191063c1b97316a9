"""Standard deviations and separation, against definitions and loops over couples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from attribution.scores import auc, standardised

property_test = hypothesis_settings(deadline=None, derandomize=True, max_examples=60)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("size", [1, 40])
def test_standardised_values_have_mean_zero_and_spread_one(dtype: type, size: int) -> None:
    values: np.ndarray = (100 * np.random.default_rng(0).normal(3, size, size=500)).astype(dtype)
    found = standardised(values)
    assert found.dtype == np.float64
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert found.std() == pytest.approx(1, abs=1e-12)
    # In the same order, and as far apart.
    steps, expected = np.diff(found), np.diff(values.astype(np.float64))
    np.testing.assert_allclose(steps * values.astype(np.float64).std(), expected, atol=1e-9)


def test_standardised_by_hand() -> None:
    # Mean 2, deviations -1 -1 -1 3, spread sqrt(3).
    found = standardised(np.array([1, 1, 1, 5]))
    np.testing.assert_allclose(found, np.array([-1, -1, -1, 3]) / np.sqrt(3), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", [0.0, 1.0, -7e4])
def test_values_that_only_rounding_tells_apart_are_alike(dtype: type, level: float) -> None:
    values: np.ndarray = np.full(50, level, dtype=dtype)
    values[::3] = np.nextafter(values[0], dtype(np.inf))  # the next number that there is
    assert standardised(values).tolist() == [0.0] * 50
    assert standardised(values[:1]).tolist() == [0.0]


def test_what_is_rounding_in_float32_is_a_difference_in_float64() -> None:
    values = 1 + 1e-9 * np.arange(50)
    assert standardised(values).std() == pytest.approx(1)
    assert standardised(values.astype(np.float32)).tolist() == [0.0] * 50


def slow_auc(scores: np.ndarray, above: np.ndarray, below: np.ndarray) -> float:
    """The definition, couple by couple."""
    higher = total = 0.0
    for s, a in zip(scores, above, strict=True):
        for t, b in zip(scores, below, strict=True):
            higher += a * b * (1.0 if s > t else 0.5 if s == t else 0.0)
            total += a * b
    return higher / total


@given(
    rows=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25
    )
)
@property_test
def test_auc_is_the_share_of_couples(rows: list[tuple[int, int, int]]) -> None:
    """Few different scores, so that there are ties; weights in quarters."""
    scores, above, below = (
        np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    above[0] += 1  # not all zero
    below[-1] += 1
    found = auc(scores, above / 4, below / 4)
    assert found == pytest.approx(slow_auc(scores, above, below), abs=1e-12)
    assert auc(scores, below, above) == pytest.approx(1 - found, abs=1e-12)


def test_auc_of_two_kinds_by_hand() -> None:
    kind = np.array([True, True, False, False, False])
    for scores, expected in (
        ([4.0, 5.0, 1.0, 2.0, 3.0], 1.0),
        ([0.0, 0.5, 1.0, 2.0, 3.0], 0.0),
        ([2.0, 2.0, 2.0, 2.0, 2.0], 0.5),
        ([2.0, 4.0, 1.0, 2.0, 5.0], (1 + 0.5 + 0 + 1 + 1 + 0) / 6),
    ):
        assert auc(np.array(scores), kind, ~kind) == pytest.approx(expected)

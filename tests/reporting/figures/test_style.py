"""What figures share: where labels and rows go."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baselines import FULL, INFLUENCESPACE
from reporting import words
from reporting.figures import style


def test_labels_are_spread_by_hand() -> None:
    apart = style.spread_out(np.array([5.0, 1.0, 5.0]), 1.0, 0.0, 10.0)
    np.testing.assert_allclose(apart, [4.5, 1.0, 5.5])
    squeezed = style.spread_out(np.array([9.8, 10.0]), 1.0, 0.0, 10.0)
    np.testing.assert_allclose(squeezed, [9.0, 10.0])


@given(
    arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 10)),
    st.floats(0.01, 0.8),
)
def test_spread_labels_keep_order_distance_and_bounds(positions: np.ndarray, gap: float) -> None:
    apart = style.spread_out(positions, gap, 0.0, 10.0)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(apart[order]) >= gap - 1e-9).all()
    assert apart.min() >= -1e-9
    assert apart.max() <= 10 + 1e-9


def test_full_data_and_encoder_stand_apart_below() -> None:
    rows = style.method_rows([FULL, "random", words.ENCODER, INFLUENCESPACE])
    assert rows == {"random": 0, INFLUENCESPACE: 1, FULL: 2.4, words.ENCODER: 3.4}
    assert style.method_rows([FULL]) == {FULL: 0}

"""Bands of agreement, and what cells say of themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clustering import agreement_bands, band_name, describe_cells, split_into_cells

# --- Bands ------------------------------------------------------------------------------------


def test_bands_by_hand() -> None:
    scores = np.array([0.5, 0.1, 0.3, 0.2, 0.6, 0.4])
    assert agreement_bands(scores, 3).tolist() == [2, 0, 1, 0, 2, 1]
    assert agreement_bands(scores, 1).tolist() == [0] * 6
    # The earlier of equal pairs counts as the lower.
    assert agreement_bands(np.array([0.2, 0.1, 0.2, 0.2]), 2).tolist() == [0, 0, 1, 1]


@given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=40), n_bands=st.integers(1, 6))
@hypothesis_settings(deadline=None, derandomize=True)
def test_bands_are_equal_parts_in_the_order_of_agreement(scores: list[int], n_bands: int) -> None:
    bands = agreement_bands(np.array(scores, dtype=np.float64), n_bands)
    sizes = np.bincount(bands, minlength=n_bands)
    assert len(sizes) == n_bands
    assert sizes.max() - sizes.min() <= 1
    in_order = sorted(range(len(scores)), key=lambda row: (scores[row], row))
    assert np.all(np.diff(bands[in_order]) >= 0)


@pytest.mark.parametrize(
    ("band", "n_bands", "name"),
    [
        (0, 1, "any agreement"),
        (1, 2, "upper half of agreement"),
        (0, 3, "lowest third of agreement"),
        (2, 4, "third quarter of agreement"),
        (4, 7, "agreement 5 of 7"),
    ],
)
def test_names_of_bands(band: int, n_bands: int, name: str) -> None:
    assert band_name(band, n_bands) == name


# --- Cells ------------------------------------------------------------------------------------

CLUSTERS = np.array([0, 1, 0, 1, 1, 0, 1])
BANDS = np.array([1, 0, 1, 0, 0, 0, 0])
COPIES = np.array([0, 2, 0, 0, 1, 0, 0])
ONE_GROUP = np.zeros(5, dtype=np.int64)


def test_cells_by_hand() -> None:
    # In order: (0, 0, no), (0, 1, no), (1, 0, no), (1, 0, copies); two copies are as one.
    assert split_into_cells(CLUSTERS, BANDS, COPIES).tolist() == [1, 3, 1, 2, 3, 0, 2]


@given(
    kinds=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30
    )
)
@hypothesis_settings(deadline=None, derandomize=True)
def test_cells_hold_what_is_alike_and_none_is_empty(kinds: list[tuple[int, int, int]]) -> None:
    clusters, bands, copies = np.array(kinds).T
    found = split_into_cells(clusters, bands, copies).tolist()
    assert sorted(set(found)) == list(range(max(found) + 1))
    for cell, (k, band, n_copies) in zip(found, kinds, strict=True):
        for other, (other_k, other_band, other_copies) in zip(found, kinds, strict=True):
            alike = (k, band, n_copies > 0) == (other_k, other_band, other_copies > 0)
            assert (cell == other) == alike


def test_descriptions_by_hand() -> None:
    scores = np.array([0.5, 0.1, 0.7, 0.2, 0.3, 0.25, 0.15])
    captions = [f"caption {row}" for row in range(7)]
    found = split_into_cells(CLUSTERS, BANDS, COPIES)
    first, second = describe_cells(found, CLUSTERS, BANDS, 2, COPIES, scores, captions)
    assert first == [
        {
            "cell": 0,
            "band": "lower half of agreement",
            "near_copies": False,
            "size": 1,
            "mean_clip_score": 0.25,
            "example": "caption 5",
        },
        {
            "cell": 1,
            "band": "upper half of agreement",
            "near_copies": False,
            "size": 2,
            "mean_clip_score": 0.6,
            "example": "caption 2",
        },
    ]
    assert [(cell["cell"], cell["near_copies"], cell["size"]) for cell in second] == [
        (2, False, 2),
        (3, True, 2),
    ]
    assert [cell["example"] for cell in second] == ["caption 3", "caption 4"]


def test_the_example_is_the_caption_of_middle_agreement() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.4, 0.8])
    ((cell,),) = describe_cells(
        ONE_GROUP, ONE_GROUP, ONE_GROUP, 1, ONE_GROUP, scores, list("abcde")
    )
    assert cell["example"] == "c"
    assert cell["mean_clip_score"] == 0.54
    assert cell["band"] == "any agreement"

"""The arithmetic of judgements, worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reporting.verdicts import (
    against,
    clear_outcome,
    effective_size,
    gap_change,
    image_error,
    n_undecided_signs,
    seeds_to_decide,
    spectrum_flatness,
    verdict,
)


@pytest.mark.parametrize(
    ("a", "b", "std_a", "std_b", "n", "outcome", "error"),
    [
        (31.0, 30.0, 0.3, 0.4, 1, "wins", 0.5),  # sqrt(0.09 + 0.16) = 0.5 < 1
        (30.0, 31.0, 0.3, 0.4, 1, "loses", 0.5),
        (30.4, 30.0, 0.3, 0.4, 1, "undecided", 0.5),
        (30.4, 30.0, 0.3, 0.4, 4, "wins", 0.25),  # four seeds halve the error
        (30.5, 30.0, 0.3, 0.4, 1, "undecided", 0.5),  # equal to the error is not beyond it
        (30.1, 30.0, None, None, 1, "wins", None),
        (30.0, 30.1, None, 0.2, 1, "loses", None),
        (30.0, 30.0, None, None, 1, "undecided", None),
        (30.0, 30.0, 0.0, 0.0, 3, "undecided", 0.0),
        (30.1, 30.0, 0.0, 0.0, 3, "wins", 0.0),
    ],
)
def test_verdict(
    a: float,
    b: float,
    std_a: float | None,
    std_b: float | None,
    n: int,
    outcome: str,
    error: float | None,
) -> None:
    v = verdict(a, b, std_a, std_b, n)
    assert v.outcome == outcome
    assert v.difference == pytest.approx(a - b)
    assert v.standard_error == (None if error is None else pytest.approx(error))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((32.0, 30.0, 0.3, 0.4, 1), "beats X by 2.00 points, 4.0 standard errors"),
        (
            (29.3, 30.0, 0.3, 0.4, 1),
            "is behind X by 0.70 points, 1.4 standard errors, too few to tell them apart",
        ),
        (
            (30.7, 30.0, 0.3, 0.4, 1),
            "is ahead of X by 0.70 points, 1.4 standard errors, too few to tell them apart",
        ),
        ((29.0, 30.0, 0.3, 0.4, 4), "loses to X by 1.00 points, 4.0 standard errors"),
        (
            (30.1, 30.0, 0.3, 0.4, 1),
            "shows no difference beyond the spread from X: +0.10 points, 0.2 standard errors",
        ),
        (
            (29.0, 30.0, None, None, 1),
            "loses to X by 1.00 points (one seed: no spread is known; run with more --n_seeds)",
        ),
        (
            (29.0, 29.0, None, None, 1),
            "shows no difference from X: +0.00 points"
            " (one seed: no spread is known; run with more --n_seeds)",
        ),
        ((31.0, 30.0, 0.0, 0.0, 3), "beats X by 1.00 points, without spread over seeds"),
    ],
)
def test_the_verdict_in_words(arguments: tuple[Any, ...], text: str) -> None:
    assert against(verdict(*arguments), "X") == text


def test_one_seed_claims_no_more_than_test_images_can_tell() -> None:
    # 100 sqrt((0.3 * 0.7 + 0.3 * 0.7) / 42) = 10 points, of which it takes two.
    assert image_error(30.0, 30.0, 42) == pytest.approx(10.0)
    assert image_error(100.0, 0.0, 42) == 0
    assert verdict(30.0, 15.0, None, None, 1, n_images=42).outcome == "undecided"
    assert verdict(30.0, 15.0, None, None, 1, n_images=4200).outcome == "wins"
    assert verdict(30.0, 30.1, None, None, 1, n_images=4200).outcome == "undecided"
    assert verdict(30.0, 30.1, 0.0, 0.0, 2, n_images=42).outcome == "loses"  # seeds tell
    assert against(verdict(30.0, 30.1, None, None, 1, n_images=42), "X") == (
        "is behind X by 0.10 points, no more than other test images could make"
        " (one seed: no spread is known; run with more --n_seeds)"
    )


def test_less_than_two_standard_errors_are_not_clear() -> None:
    assert clear_outcome(verdict(29.3, 30.0, 0.3, 0.4, 1)) == "undecided"  # 1.4
    assert clear_outcome(verdict(30.7, 30.0, 0.3, 0.4, 1)) == "undecided"
    assert clear_outcome(verdict(28.9, 30.0, 0.3, 0.4, 1)) == "loses"  # 2.2
    assert clear_outcome(verdict(31.1, 30.0, 0.3, 0.4, 1)) == "wins"
    assert clear_outcome(verdict(29.9, 30.0, None, None, 1)) == "loses"
    assert clear_outcome(verdict(30.1, 30.0, 0.0, 0.0, 3)) == "wins"


def test_seeds_to_decide() -> None:
    v = verdict(30.25, 30.0, 0.3, 0.4, 1)  # half a standard error, two are asked for
    assert seeds_to_decide(v, 1) == 16
    assert seeds_to_decide(verdict(30.0, 30.0, 0.3, 0.4, 1), 1) is None
    assert seeds_to_decide(verdict(31.0, 30.0, None, None, 1), 1) is None


def test_a_flat_spectrum() -> None:
    assert spectrum_flatness([90.0, 2.0, 1.8, 1.5]) == pytest.approx(0.75)
    assert spectrum_flatness([90.0, 2.0]) is None
    assert spectrum_flatness([]) is None


def test_gap_changes_only_where_the_intervals_do_not_overlap() -> None:
    def gap(low: float, high: float) -> dict[str, Any]:
        return {"gap": (low + high) / 2, "interval_95": [low, high]}

    assert gap_change(gap(1, 3), gap(4, 6)) == "wider"
    assert gap_change(gap(4, 6), gap(1, 3)) == "narrower"
    assert gap_change(gap(1, 4), gap(3, 6)) == ""
    assert gap_change(gap(3, 6), gap(1, 4)) == ""


def test_signs_that_are_not_known() -> None:
    entries = [
        {"influence_percent": score, "stderr_percent": error}
        for score, error in ((-0.5, 0.2), (0.1, 0.2), (-0.2, 0.2), (1.0, 0.0))
    ]
    assert n_undecided_signs(entries) == 2


def test_effective_size_by_hand() -> None:
    assert effective_size(np.ones(7)) == pytest.approx(7)
    assert effective_size(np.array([1.5, 0.5])) == pytest.approx(4 / 2.5)

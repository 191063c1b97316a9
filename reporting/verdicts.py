"""The arithmetic of judgements: when two numbers differ, and how sure that is.

Two methods are told apart where the difference of their means is at least twice its standard error
over training seeds, se = sqrt((s_a^2 + s_b^2) / n). Below that their order is named if they differ
by more than one standard error, but nothing is claimed of it. With one training seed no spread is
known: then the difference has to be more than other test images could make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from reporting.summary import Summary
from reporting.words import RANDOM

CLEAR = 2.0  # standard errors from which two means are told apart


class Verdict(NamedTuple):
    """A difference of two means and what it is worth."""

    difference: float  # points of recall
    standard_error: float | None  # of the difference; None with one seed
    outcome: str  # "wins", "loses" or "undecided"


def verdict(
    a: float, b: float, std_a: float | None, std_b: float | None, n: int, *, n_images: int = 0
) -> Verdict:
    """Whether mean `a` is above mean `b` beyond the spread over `n` seeds each.

        se = sqrt((std_a^2 + std_b^2) / n)

    Undecided where |a - b| <= se. With one seed there is no spread: undecided up to `CLEAR` times
    `image_error`, and the sign alone decides where the test images are not told.
    """
    difference = a - b
    if std_a is None or std_b is None:
        error, bar = None, CLEAR * image_error(a, b, n_images) if n_images else 0.0
    else:
        error = bar = math.sqrt((std_a**2 + std_b**2) / n)
    if abs(difference) <= bar:
        return Verdict(difference, error, "undecided")
    return Verdict(difference, error, "wins" if difference > 0 else "loses")


def image_error(a: float, b: float, n_images: int) -> float:
    """The standard error of a - b, two shares in percent, each over test images of its own.

        100 sqrt((p_a (1 - p_a) + p_b (1 - p_b)) / n_images)

    That of the same images for both is smaller.
    """
    variance = sum(p * (1 - p) for p in (min(max(x / 100, 0.0), 1.0) for x in (a, b)))
    return 100 * math.sqrt(variance / n_images)


def compare(summary: Summary, comparison: str, method: str, other: str) -> Verdict:
    """How a method's mean recall stands against another's."""
    a, b = (summary.mean_recall(comparison, m) for m in (method, other))
    return verdict(
        *(a["mean"], b["mean"], a["std"], b["std"], summary.n_seeds),
        n_images=summary.n_test_images,
    )


def in_standard_errors(v: Verdict) -> float | None:
    """The size of the difference in its standard errors, where it has any."""
    return abs(v.difference) / v.standard_error if v.standard_error else None


def clear_outcome(v: Verdict) -> str:
    """What may be claimed: the outcome, undecided where the difference is below `CLEAR`."""
    ratio = in_standard_errors(v)
    return "undecided" if ratio is not None and ratio < CLEAR else v.outcome


def against(v: Verdict, other: str) -> str:
    """The verdict as the end of a sentence, which claims no more than `clear_outcome`."""
    ratio, size = in_standard_errors(v), f"{abs(v.difference):.2f} points"
    if v.standard_error is None:
        why = " (one seed: no spread is known; run with more --n_seeds)"
    else:
        why = (
            f", {ratio:.1f} standard errors" if ratio is not None else ", without spread over seeds"
        )
    outcome = clear_outcome(v)
    if outcome != "undecided":
        return f"{'beats' if outcome == 'wins' else 'loses to'} {other} by {size}{why}"
    side = "ahead of" if v.difference > 0 else "behind"
    if v.outcome != "undecided":
        return f"is {side} {other} by {size}{why}, too few to tell them apart"
    if v.standard_error is None and v.difference:
        return f"is {side} {other} by {size}, no more than other test images could make{why}"
    beyond = "" if v.standard_error is None else " beyond the spread"
    return f"shows no difference{beyond} from {other}: {v.difference:+.2f} points{why}"


def versus_random(summary: Summary, comparison: str, method: str) -> str:
    """The difference of the mean recall to random's, in brackets its size in standard errors."""
    if RANDOM not in summary.metrics[comparison] or method == RANDOM:
        return "–"
    v = compare(summary, comparison, method, RANDOM)
    ratio = in_standard_errors(v)
    return f"{v.difference:+.2f}" + ("" if ratio is None else f" ({ratio:.1f})")


def seeds_to_decide(v: Verdict, n: int) -> int | None:
    """Training seeds at which a difference of this size and spread reaches `CLEAR`."""
    ratio = in_standard_errors(v)
    return math.ceil(n * (CLEAR / ratio) ** 2) if ratio else None


def effective_size(sample_weights: Float[np.ndarray, " m"]) -> float:
    """How many equally weighted pairs have the same variance: (sum w)^2 / sum w^2, Kish (1965)."""
    return float(sample_weights.sum() ** 2 / (sample_weights**2).sum())


def spectrum_flatness(eigenvalues: Sequence[float]) -> float | None:
    """The last eigenvalue over the second, which an outlying first does not hide."""
    if len(eigenvalues) < 3 or not eigenvalues[1]:
        return None
    return eigenvalues[-1] / eigenvalues[1]


def n_undecided_signs(entries: Sequence[Mapping[str, Any]]) -> int:
    """Clusters whose standard error is at least as large as their score."""
    return sum(e["stderr_percent"] >= abs(e["influence_percent"]) for e in entries)


def gap_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """`wider`, `narrower`, or `` where the two intervals overlap."""
    (low_before, high_before), (low_after, high_after) = before["interval_95"], after["interval_95"]
    if low_after > high_before:
        return "wider"
    return "narrower" if high_after < low_before else ""

"""What is said of the match between the estimate and real retraining."""

from __future__ import annotations

from typing import Any

import pytest

from reporting.retraining import beyond_chance, match_with_retraining, slope_without_extreme
from tests.reporting.test_figures import (
    make_agreement,
    make_validation,
)
from tests.reporting.test_summary import (
    SUMMARIES,
    make_summary,
)


def validation_text(n: int = 20, n_seeds: int = 3, **changes: Any) -> str:
    checks = make_validation(n, n_seeds, **changes)
    return match_with_retraining(make_summary(influence_validation=checks))


def test_what_was_not_validated_names_the_flag() -> None:
    text = match_with_retraining(make_summary())
    assert "`--validate_influence 20`" in text
    assert text.count(".") == 1
    assert match_with_retraining(SUMMARIES["stages 2 and 3 not loaded"]) == ""


def test_a_match_in_words() -> None:
    text = validation_text()
    assert text.startswith("20 clusters, spread over the range of scores, were left out one at a")
    assert "with 3 seeds." in text
    assert "rank them **well**: Spearman's rank correlation is 0.90." in text
    assert "A perfect prediction would reach 0.98" in text
    assert "No prediction that costs nothing does as well: the best, gradient similarity," in text
    assert "reaches 0.60" in text
    assert "Real effects grow by 1.10 for every 1 predicted" in text
    assert "percentages can be taken literally" in text
    assert "left out together, **well**: the linear datamodelling score is 0.90 (ceiling" in text
    assert validation_text(1, spearman=None).startswith("1 cluster, spread")


@pytest.mark.parametrize(
    ("spearman", "words"),
    [
        (0.94, "**as well as the noise of retraining lets any prediction**"),  # 0.98 - 0.94 < 0.05
        (0.85, "rank them **well**"),
        (0.6, "rank them **fairly well**"),
        (0.47, "rank them **weakly**"),
        (0.45, "rank them **no better than chance may do**"),  # 2 / sqrt(19) = 0.459
        (-0.45, "rank them **no better than chance may do**"),
        (-0.6, "rank them **in the wrong order**"),
    ],
)
def test_how_well_it_matches(spearman: float, words: str) -> None:
    text = validation_text(spearman=spearman)
    assert words in text
    # Without a rank correlation, a slope says nothing.
    assert ("for every 1 predicted" in text) == (spearman > 0.459)


def test_chance_by_hand() -> None:
    assert beyond_chance(0.51, 17)  # 2 / sqrt(16)
    assert not beyond_chance(0.49, 17)
    assert not beyond_chance(1.0, 4)  # four clusters show nothing
    assert "unrelated numbers reach ±0.58 with so few" in validation_text(4, spearman=1.0)


@pytest.mark.parametrize(
    ("slope", "words"),
    [
        (0.8, "taken literally"),
        (1.25, "taken literally"),
        (0.79, "they are smaller, so take the order from the scores, not the percentages"),
        (1.26, "they are larger, so take the order"),
    ],
)
def test_when_percentages_are_literal(slope: float, words: str) -> None:
    assert words in validation_text(slope=slope)


def test_one_cluster_does_not_make_percentages_literal() -> None:
    # By hand: (0, 0), (1, 0), (2, 0) are flat, and (9, 9) lifts the line to
    # (9 - 3) 9 / (9 + 4 + 1 + 36) = 54 / 50.
    points = [
        {"predicted": x, "real": y} for x, y in ((0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (9.0, 9.0))
    ]
    assert slope_without_extreme(points) == pytest.approx(0, abs=1e-12)
    assert slope_without_extreme(points[1:]) is None
    checks = make_validation(20, slope=1.08)
    checks["points"]["loco"] = 5 * points[:3] + points[3:]
    text = match_with_retraining(make_summary(influence_validation=checks))
    assert "by 1.08 for every 1 predicted, but by 0.00 once the most extreme prediction" in (
        text.replace("-0.00", "0.00")
    )
    assert "not to be taken literally" in text


def test_a_free_prediction_that_does_as_well_is_named() -> None:
    text = validation_text(gradient_similarity=0.86, size=0.84)
    assert "**gradient similarity (0.86) does nearly as well**" in text
    assert "does not show that the estimate is worth its cost" in text
    text = validation_text(gradient_similarity=0.95, size=0.9)
    assert "**cluster size (0.90) and gradient similarity (0.95) do as well or better**" in text
    text = validation_text(gradient_similarity=0.95, size=0.88)
    assert (
        "**gradient similarity (0.95) does as well or better and cluster size (0.88) does nearly"
        " as well**" in text
    )
    without = validation_text(size=None, clip_score=None, gradient_similarity=None)
    assert "could be compared" in without


def test_the_ceiling_in_words() -> None:
    text = validation_text(n_seeds=1)
    assert "with 1 seed." in text
    assert "cannot be known from one seed (`--validation_seeds 3`)" in text
    text = validation_text(ceiling=0.0, spearman=0.1)
    assert "do not agree with each other" in text


def test_too_few_to_correlate() -> None:
    text = match_with_retraining(SUMMARIES["too few to validate"])
    assert text.startswith("2 clusters,")
    assert "too few clusters, or too little spread, to correlate" in text
    checks = make_validation(20) | {"lds": make_agreement(None)}
    assert "datamodelling" not in match_with_retraining(make_summary(influence_validation=checks))

"""Whether the influence estimate matches real retraining, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reporting.summary import Summary
from reporting.verdicts import CLEAR
from reporting.words import FREE_PREDICTIONS, count, enumerate_words, quantity

AS_GOOD = 0.05  # a rank correlation this little below another counts as no worse
GOOD, FAIR = 0.8, 0.5  # rank correlations
LITERAL_SLOPES = (0.8, 1.25)  # of real on predicted effects, for which percentages hold


def match_with_retraining(summary: Summary) -> str:
    """Whether predicted effects are those of retraining; empty where stage 2 was not loaded."""
    if summary.influence_info is None:
        return ""
    checks = summary.influence_validation
    if checks is None:
        return (
            "Not measured in this run: `--validate_influence 20` retrains without each of 20"
            " clusters and compares."
        )
    n, n_seeds = len(checks["clusters"]), len(checks["seeds"])
    loco, halves = checks["loco"], checks["lds"]
    sentences = [
        f"{count(n, 'cluster')}, spread over the range of scores, {'was' if n == 1 else 'were'}"
        f" left out one at a time and the reference training repeated without each, with"
        f" {count(n_seeds, 'seed')}."
    ]
    own = loco["estimator"]["spearman"]
    if own is None:
        return f"{sentences[0]} That is too few clusters, or too little spread, to correlate."
    sentences += [_match(own, loco["ceiling"], n), *_ceiling(loco["ceiling"], n_seeds)]
    sentences.append(_free_predictions(own, loco))
    if beyond_chance(own, n):  # where ranks fail, a slope says nothing
        sentences.append(_slope(loco["estimator"]["slope"], checks["points"]["loco"]))
    score = halves["estimator"]["spearman"]
    if score is not None:
        sentences.append(
            "The sums of the scores rank random halves of the clusters, left out together,"
            f" {_grade(score, halves['ceiling'], n)}: the linear datamodelling score is"
            f" {score:.2f} (ceiling {quantity(halves['ceiling'])})."
        )
    return " ".join(sentences)


def beyond_chance(correlation: float, n: int) -> bool:
    """Whether a rank correlation of n points is `CLEAR` standard errors above none.

    Of unrelated points its standard deviation is 1 / sqrt(n - 1).
    """
    return correlation >= CLEAR / math.sqrt(n - 1)


def _grade(spearman: float, ceiling: float | None, n: int) -> str:
    """How well something ranks n things, as the end of a clause."""
    if beyond_chance(-spearman, n):
        return "**in the wrong order**"
    if not beyond_chance(spearman, n):
        return "**no better than chance may do**"
    if ceiling is not None and spearman >= ceiling - AS_GOOD:
        return "**as well as the noise of retraining lets any prediction**"
    return (
        "**well**" if spearman >= GOOD else "**fairly well**" if spearman >= FAIR else "**weakly**"
    )


def _match(spearman: float, ceiling: float | None, n: int) -> str:
    """How well predicted effects rank the clusters as retraining does."""
    text = (
        f"The predicted effects rank them {_grade(spearman, ceiling, n)}: Spearman's rank"
        f" correlation is {spearman:.2f}"
    )
    if not beyond_chance(abs(spearman), n):
        text += f", and unrelated numbers reach ±{1 / math.sqrt(n - 1):.2f} with so few"
    return f"{text}."


def _ceiling(ceiling: float | None, n_seeds: int) -> list[str]:
    """What the noise of retraining allows."""
    if ceiling is None:
        return (
            ["How noisy one retraining is cannot be known from one seed (`--validation_seeds 3`)."]
            if n_seeds == 1
            else []
        )
    if ceiling == 0:
        return [
            "The retrainings of different seeds do not agree with each other, so no prediction"
            " could match them; more seeds (`--validation_seeds`) lower the noise."
        ]
    return [f"A perfect prediction would reach {ceiling:.2f}, for retraining is noisy."]


def _free_predictions(own: float, loco: Mapping[str, Any]) -> str:
    """Whether a prediction that costs nothing does as well."""
    free = {
        label: loco[name]["spearman"]
        for name, label in FREE_PREDICTIONS.items()
        if loco[name]["spearman"] is not None
    }
    if not free:
        return "No prediction that costs nothing could be compared."
    better = [f"{label} ({r:.2f})" for label, r in free.items() if r >= own]
    close = [f"{label} ({r:.2f})" for label, r in free.items() if own > r >= own - AS_GOOD]
    clauses = [
        f"{enumerate_words(rivals)} {'does' if len(rivals) == 1 else 'do'} {how}"
        for rivals, how in ((better, "as well or better"), (close, "nearly as well"))
        if rivals
    ]
    if clauses:
        return (
            f"At no cost **{enumerate_words(clauses)}**, so leaving out single clusters does not"
            " show that the estimate is worth its cost."
        )
    best = max(free, key=lambda label: free[label])
    return (
        f"No prediction that costs nothing does as well: the best, {best}, reaches"
        f" {free[best]:.2f}."
    )


def slope_without_extreme(points: Sequence[Mapping[str, float]]) -> float | None:
    """Slope of real on predicted effects without the most extreme prediction, which decides it."""
    predicted, real = (np.array([p[name] for p in points]) for name in ("predicted", "real"))
    rest = np.arange(len(points)) != np.argmax(np.abs(predicted - predicted.mean()))
    if rest.sum() < 3 or np.ptp(predicted[rest]) == 0:
        return None
    return float(np.polyfit(predicted[rest], real[rest], 1)[0])


def _slope(slope: float, points: Sequence[Mapping[str, float]]) -> str:
    """Whether percentages can be taken literally."""
    low, high = LITERAL_SLOPES
    text = f"Real effects grow by {slope:.2f} for every 1 predicted"
    if not low <= slope <= high:
        size = "smaller" if slope < low else "larger"
        return f"{text}: they are {size}, so take the order from the scores, not the percentages."
    without = slope_without_extreme(points)
    if without is not None and not low <= without <= high:
        return (
            f"{text}, but by {without:.2f} once the most extreme prediction is set aside: the"
            " percentages are not to be taken literally."
        )
    return f"{text}, so that the percentages can be taken literally."

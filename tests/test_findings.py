"""What is said of a run: the judgements worked by hand, and the sentences they choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from findings import (
    against,
    answer,
    estimate,
    gap_change,
    kept_sentence,
    key_findings,
    limitations,
    n_undecided_signs,
    seeds_to_decide,
    spectrum_flatness,
    verdict,
    weights_sentence,
)
from tests.test_summary import SUMMARIES, make_summary
from tests.test_visualize import make_efficiency, make_gaps

# --- Judgements, worked by hand -----------------------------------------------------------------


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
        ((29.3, 30.0, 0.3, 0.4, 1), "narrowly loses to X by 0.70 points, 1.4 standard errors"),
        ((29.0, 30.0, 0.3, 0.4, 4), "loses to X by 1.00 points, 4.0 standard errors"),
        (
            (30.1, 30.0, 0.3, 0.4, 1),
            "shows no difference beyond the spread from X: +0.10 points, 0.2 standard errors",
        ),
        (
            (29.0, 30.0, None, None, 1),
            "loses to X by 1.00 points, in the only seed, so the spread is unknown",
        ),
        ((31.0, 30.0, 0.0, 0.0, 3), "beats X by 1.00 points, without spread over seeds"),
    ],
)
def test_the_verdict_in_words(arguments: tuple[Any, ...], text: str) -> None:
    assert against(verdict(*arguments), "X") == text


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


def test_signs_that_are_not_known() -> None:
    entries = [
        {"influence_percent": score, "stderr_percent": error}
        for score, error in ((-0.5, 0.2), (0.1, 0.2), (-0.2, 0.2), (1.0, 0.0))
    ]
    assert n_undecided_signs(entries) == 2


# --- Sentences --------------------------------------------------------------------------------


def test_the_answer_when_influencespace_wins() -> None:
    text = answer(make_summary(mean_recall={"influencespace": 33.0}))
    # sqrt((0.30^2 + 0.40^2) / 3) = 0.289
    assert "reaches a mean recall of **33.00 ± 0.30**" in text
    assert (
        "it beats the best rival of its size, CLIP score (31.60 ± 0.40) by 1.40 points, 4.8"
        " standard errors" in text
    )
    assert "random selection (28.20 ± 0.35) by 4.80 points" in text
    assert "the full data reaches 31.40 ± 0.25" in text
    assert "loses" not in text


def test_the_answer_when_influencespace_loses_to_random() -> None:
    summary = make_summary(mean_recall={"influencespace": 25.0})
    assert "it loses to random selection (28.20 ± 0.35) by 3.20 points" in answer(summary)
    standings = key_findings(summary)[:2]
    for standing in standings:
        assert (
            "InfluenceSpace **loses to** CLIP score, Per-pair influence (DataInf), Random"
            in standing
        )
        assert "beats" not in standing


def test_the_answer_when_nothing_can_be_told() -> None:
    summary = make_summary(mean_recall={"influencespace": 31.5})
    assert (
        "it shows no difference beyond the spread from the best rival of its size,"
        " CLIP score (31.60 ± 0.40)" in answer(summary)
    )
    assert "cannot be told from CLIP score" in key_findings(summary)[0]
    # 0.1 points at 0.289: 0.35 standard errors, two are asked for: 3 (2 / 0.346)^2 = 100
    assert "takes about 100 seeds" in " ".join(limitations(summary))


def test_one_seed_claims_no_spread() -> None:
    summary = make_summary(n_seeds=1)
    assert "in the only seed, so the spread is unknown" in answer(summary)
    assert "from one training seed" in answer(summary)
    assert "±" not in answer(summary)
    assert "One seed has no spread" in " ".join(limitations(summary))


def test_a_missing_influencespace_is_said() -> None:
    assert "InfluenceSpace was not among the methods trained" in answer(SUMMARIES["two methods"])


def test_without_any_comparison_there_is_still_a_finding() -> None:
    summary = make_summary(
        3, metrics={}, efficiency={}, gaps={}, histories={}, encoder_metrics={}, faults=None
    )
    assert key_findings(summary) == [kept_sentence(summary)]


def test_weights_in_words() -> None:
    equal = make_summary(3, sample_weights=np.ones(60))
    assert weights_sentence(equal) == "All kept pairs have the same weight."
    uneven = make_summary(3, sample_weights=np.array([0.5, 0.5, 2.0]))
    # 3^2 / (0.25 + 0.25 + 4) = 2
    assert "from 0.50 to 2.00 around a mean of one; they count like 2 pairs" in (
        weights_sentence(uneven)
    )
    assert weights_sentence(make_summary(3, sample_weights=None)) == ""


def test_faults_dropped_and_missed() -> None:
    summary = SUMMARIES["everything"]
    assert "InfluenceSpace dropped 61.0 % of wrong captions" in " ".join(key_findings(summary))
    # 18 of 90 near copies is less than the share dropped of everything
    limits = " ".join(limitations(summary))
    assert "dropped near copies no more often than a blind choice would" in limits
    assert "The data are drawn" in limits
    assert "The data are drawn" not in " ".join(limitations(make_summary(3, faults=None)))


def test_gaps_are_judged_by_their_intervals() -> None:
    gaps = make_gaps()
    gaps["same_epochs"]["influencespace"]["age"]["gap"]["recall@5"] = {
        "gap": 20.0,
        "interval_95": [15.0, 25.0],
    }
    text = " ".join(key_findings(make_summary(gaps=gaps)))
    assert "The gap is wider than the full data's for age, same epochs: 20.0 (15.0 to 25.0)" in text
    assert "no change against the full data can be claimed where the intervals overlap" in text


def test_the_estimate_is_described() -> None:
    summary = make_summary(20)
    text = " ".join(estimate(summary))
    assert "`lanczos`, damping 0.0123" in text
    assert "2.3456 nats, after 480 steps" in text
    assert "The spectrum is flat" in text
    assert "largest residual 1.0e-05 of the first" in text  # 9e-5 / 9
    assert summary.influence is not None
    assert summary.influence_info is not None
    n = sum(e["stderr_percent"] >= abs(e["influence_percent"]) for e in summary.influence)
    assert f"For {n} of 20 clusters" in text
    steep = summary.influence_info | {"eigenvalues": [9.0, 2.0, 0.1, 0.05], "damping": None}
    assert "flat" not in " ".join(estimate(make_summary(influence_info=steep)))
    none = summary.influence_info | {"eigenvalues": [], "eigenvalue_residuals": []}
    assert "eigenvalues" not in " ".join(estimate(make_summary(influence_info=none)))
    assert estimate(make_summary(influence_info=None)) == []


def test_the_time_finding_by_hand() -> None:
    # 8.1 - 6.48 = 1.62 s saved a run; 14.2 / 1.62 = 8.8
    text = " ".join(key_findings(make_summary()))
    assert "took 14.2 s, more than the 1.6 s" in text
    assert "(9 such runs pay for it)" in text
    efficiency = make_efficiency()
    efficiency["influencespace"]["curation_seconds"] = 1.0
    text = " ".join(key_findings(make_summary(efficiency=efficiency)))
    assert "took 1.0 s, less than the 1.6 s" in text


def test_the_frozen_encoder_is_compared() -> None:
    metrics = dict.fromkeys(SUMMARIES["everything"].encoder_metrics, 27.0)
    text = " ".join(key_findings(make_summary(encoder_metrics=metrics)))
    assert "mean recall, 27.00, is not reached by Coreset (k-centre)" in text
    metrics = dict.fromkeys(metrics, 96.0)
    text = " ".join(key_findings(make_summary(encoder_metrics=metrics)))
    assert "mean recall, 96.00, is not reached by any trained model" in text

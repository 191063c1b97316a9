"""What a run is judged to say: the answer, the findings, the limitations."""

from __future__ import annotations

from typing import Any

from reporting import console as console_module
from reporting.findings import answer, key_findings, limitations
from reporting.kept import (
    kept_sentence,
    skipped_sentence,
)
from tests.reporting.test_figures import (
    make_efficiency,
    make_gaps,
)
from tests.reporting.test_standing import trusting
from tests.reporting.test_summary import (
    SUMMARIES,
    make_influence_info,
    make_pair_quality,
    make_summary,
)


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
    standings = [f for f in key_findings(summary) if f.startswith("Same number of")]
    assert standings
    for standing in standings:
        assert (
            "InfluenceSpace **loses to** CLIP score, Gradient similarity, negCLIPLoss,"
            " Per-pair influence (DataInf), Random" in standing
        )
        assert "beats" not in standing
        # Random is at 28.2, CLIP score at 31.6, SemDeDup 1.5 standard errors below random.
        assert standing.endswith(" Coreset (k-centre) loses to random selection.")
    assert "training steps, InfluenceSpace loses to the full data by 6.40 points" in " ".join(
        key_findings(summary)
    )


def test_comparisons_that_say_the_same_are_one_finding() -> None:
    same = key_findings(make_summary(mean_recall={"influencespace": 25.0}))
    assert [f for f in same if f.startswith("Same number of")] == [same[0]]
    assert same[0].startswith("Same number of epochs and same number of steps: InfluenceSpace **l")
    metrics = make_summary().metrics
    steps = {m: dict(cells) for m, cells in metrics["same_steps"].items()}
    steps["influencespace"]["mean_recall"] = {"mean": 99.0, "std": 0.1}
    apart = key_findings(make_summary(metrics=metrics | {"same_steps": steps}))
    assert apart[0].startswith("Same number of epochs: InfluenceSpace")
    # 13 methods, of which one is the full data and one InfluenceSpace itself
    assert apart[1].startswith(
        "Same number of steps: InfluenceSpace beats all 11 rivals of its size."
    )


def test_those_that_are_beaten_are_counted() -> None:
    assert not any("recall at the curated" in f for f in key_findings(SUMMARIES["two methods"]))
    summary = make_summary(3, ("influencespace", "random"))
    assert key_findings(summary)[0].endswith("InfluenceSpace beats Random.")
    # At 30.9 CLIP score is ahead by 0.7 points and gradient similarity within an error.
    standing = (
        "InfluenceSpace **loses to** CLIP score, cannot be told from Gradient similarity and"
        " beats the other 9 rivals of its size."
    )
    assert standing in key_findings(make_summary())[0]


def test_the_answer_when_nothing_can_be_told() -> None:
    summary = make_summary(mean_recall={"influencespace": 31.5})
    assert (
        "it shows no difference beyond the spread from the best rival of its size,"
        " CLIP score (31.60 ± 0.40)" in answer(summary)
    )
    assert "cannot be told from CLIP score" in key_findings(summary)[0]
    # 0.1 points at 0.289: 0.35 standard errors, two are asked for: 3 (2 / 0.346)^2 = 100
    assert "takes about 100 seeds" in " ".join(limitations(summary))


def test_the_answer_and_the_findings_claim_the_same_of_a_narrow_difference() -> None:
    summary = make_summary(mean_recall={"influencespace": 31.2})  # 0.4 points at 0.289
    assert (
        "it is behind the best rival of its size, CLIP score (31.60 ± 0.40) by 0.40 points,"
        " 1.4 standard errors, too few to tell them apart" in answer(summary)
    )
    assert "cannot be told from CLIP score" in key_findings(summary)[0]
    assert "CLIP score at this difference and spread takes about 7 seeds" in " ".join(
        limitations(summary)
    )


def test_one_seed_claims_no_spread() -> None:
    summary = make_summary(n_seeds=1)
    assert "one seed: no spread is known" in answer(summary)
    assert "from one training seed" in answer(summary)
    assert "±" not in answer(summary)
    assert "One seed has no spread" in " ".join(limitations(summary))


def test_a_missing_influencespace_is_said() -> None:
    text = answer(SUMMARIES["two methods"])
    assert text.count("InfluenceSpace was not among the methods trained") == 1


def test_without_any_comparison_there_is_still_a_finding() -> None:
    pairs = SUMMARIES["stages 2 and 3 not loaded"].pairs
    nothing: dict[str, Any] = {"metrics": {}, "efficiency": {}, "gaps": {}, "histories": {}}
    summary = make_summary(3, **nothing, encoder_metrics={}, faults=None, pairs=pairs)
    assert key_findings(summary) == [kept_sentence(summary)]


def test_the_page_and_the_console_begin_with_what_is_weak_and_what_was_skipped() -> None:
    quality = make_pair_quality(explained=-0.1)
    reasons = {"broken image": 2, "x": 1, "empty caption": 30, "y": 1, "z": 1, "none": 0}
    summary = make_summary(3, pair_quality=quality, skipped=reasons)
    assert "agreement alone decides" in answer(summary)
    assert skipped_sentence(summary) == (
        "Skipped 35: 30 empty caption, 2 broken image, 1 x, 1 y, others (stage1/skipped.csv)."
    )
    console = console_module.console_summary(summary)
    assert "agreement alone decides" in console
    assert "Skipped 35" in console
    fine = make_summary(3, skipped={"broken image": 0})
    assert "Beware" not in answer(fine) + console_module.console_summary(fine)
    assert "Skipped" not in console_module.console_summary(fine)


def test_few_who_are_asked_are_a_limitation() -> None:
    few = " ".join(limitations(trusting(trusted=29)))
    assert "Only 29 validation pairs are asked what helps" in few
    for summary in (
        trusting(trusted=30),
        trusting(trusted=29, taken_at_word=True),
        make_summary(3, trust=None),
    ):
        assert "are asked what helps" not in " ".join(limitations(summary))


def test_the_answer_gives_recall_on_trusted_pairs_where_the_test_set_is_noisy() -> None:
    assert (
        "reaches a mean recall of **30.90 ± 0.30** on all test pairs and of **38.20 ± 0.30** on the"
        " 4,800 trusted ones; it" in answer(trusting(0.0, 0.2))
    )
    assert answer(trusting(0.0, 0.2)).endswith(" Methods are compared on all test pairs.")
    assert "trusted" not in answer(trusting(0.2, 0.01))


def test_seconds_below_a_tenth_are_not_nothing() -> None:
    efficiency = make_efficiency()
    for method, seconds in (("full", 5.04), ("influencespace", 5.0)):
        efficiency[method]["same_epochs"]["training_seconds"] = {"mean": seconds, "std": 0.0}
    efficiency["influencespace"]["curation_seconds"] = 0.004
    text = " ".join(key_findings(make_summary(efficiency=efficiency)))
    assert "Choosing the pairs took <0.01 s, less than the 0.04 s that one" in text


def test_faults_dropped_and_missed() -> None:
    summary = SUMMARIES["everything"]
    assert "InfluenceSpace dropped 61.0 % of wrong captions" in " ".join(key_findings(summary))
    # 18 of 90 near copies is less than the share dropped of everything
    limits = " ".join(limitations(summary))
    assert "dropped near copies no more often than a blind choice would" in limits
    assert "`--near_copy_similarity`" in limits
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


def test_what_is_inferred_is_a_limitation() -> None:
    summary = make_summary()
    text = " ".join(limitations(summary))
    assert (
        f"For {100 * (1 - 40 / summary.n_train):.1f} % of the pairs influence is inferred" in text
    )
    all_evaluated = make_pair_quality(pairs_evaluated=summary.n_train)
    assert "inferred" not in " ".join(limitations(make_summary(pair_quality=all_evaluated)))
    assert "inferred" not in " ".join(limitations(make_summary(pair_quality=None)))


def test_limitations_name_the_flags_that_help() -> None:
    by_sampling = " ".join(limitations(SUMMARIES["an inverse Hessian"]))
    assert "More pairs per cluster (`--samples_per_cluster`) and more reference" in by_sampling
    assert "`--influence_seeds`" in by_sampling
    for estimator in ("metagradient", "step"):
        info = make_influence_info(estimator)
        text = " ".join(limitations(make_summary(influence_info=info)))
        assert "More reference models (`--influence_seeds`) narrow it." in text
        assert "samples_per_cluster" not in text


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

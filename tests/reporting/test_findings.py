"""What is said of a run: the judgements worked by hand, and the sentences they choose."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from reporting import console as console_module
from reporting.estimate import (
    beyond_chance,
    caution,
    cells_beside_clusters,
    estimate,
    slope_without_extreme,
    validation,
)
from reporting.findings import (
    answer,
    kept_sentence,
    key_findings,
    kinds_sentence,
    limitations,
    skipped_sentence,
    value_sentence,
    weights_sentence,
)
from reporting.standing import (
    guard,
    judged_sentence,
    narrow_sentence,
    trust_warnings,
    wrong_captions_sentence,
)
from reporting.summary import PairSummary
from reporting.verdicts import (
    against,
    effective_size,
    gap_change,
    n_undecided_signs,
    seeds_to_decide,
    spectrum_flatness,
    verdict,
)
from tests.reporting.test_figures import (
    make_agreement,
    make_efficiency,
    make_gaps,
    make_trust,
    make_validation,
)
from tests.reporting.test_summary import (
    SUMMARIES,
    make_influence_info,
    make_pair_quality,
    make_summary,
)

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


def test_effective_size_by_hand() -> None:
    assert effective_size(np.ones(7)) == pytest.approx(7)
    assert effective_size(np.array([1.5, 0.5])) == pytest.approx(4 / 2.5)


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
            "InfluenceSpace **loses to** CLIP score, Gradient similarity, negCLIPLoss,"
            " Per-pair influence (DataInf), Random" in standing
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
    assert "one seed: no spread is known" in answer(summary)
    assert "from one training seed" in answer(summary)
    assert "±" not in answer(summary)
    assert "One seed has no spread" in " ".join(limitations(summary))


def test_a_missing_influencespace_is_said() -> None:
    assert "InfluenceSpace was not among the methods trained" in answer(SUMMARIES["two methods"])


def test_without_any_comparison_there_is_still_a_finding() -> None:
    pairs = SUMMARIES["stages 2 and 3 not loaded"].pairs
    nothing: dict[str, Any] = {"metrics": {}, "efficiency": {}, "gaps": {}, "histories": {}}
    summary = make_summary(3, **nothing, encoder_metrics={}, faults=None, pairs=pairs)
    assert key_findings(summary) == [kept_sentence(summary)]


def test_signs_are_taken_back_where_the_inference_explains_little() -> None:
    assert caution(None) == caution(make_pair_quality(explained=0.1)) == ""
    assert "explains only 9.9 % of how evaluated" in caution(make_pair_quality(explained=0.099))
    for explained in (0.0, -0.07):
        nothing = caution(make_pair_quality(explained=explained))
        assert "explains nothing of how" in nothing
        assert nothing.endswith("; agreement alone decides what is kept")


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


# --- Trust ------------------------------------------------------------------------------------


def trusting(*shares: float | None, trusted: int = 900, copies: int = 20, **changes: Any) -> Any:
    """A run whose validation and test captions are wrong to these shares."""
    trust = make_trust(*shares, **changes)
    trust["validation"] |= {"trusted": trusted, "near_copies": copies}
    return make_summary(3, trust=trust)


def test_only_shares_that_are_high_beyond_their_error_are_warned_of() -> None:
    assert trust_warnings(trusting(0.099, 0.099)) == []
    assert trust_warnings(trusting(None, None)) == []
    assert trust_warnings(make_summary(3, trust=None)) == []
    (test,) = trust_warnings(trusting(0.0, 0.1))
    assert test == (
        "Recall on all test pairs is an underestimate: 10.0 % (9.0 to 11.0) of the test captions"
        " are estimated to be wrong; see recall on trusted pairs, or bring clean data with"
        " --test_data."
    )
    uncertain = make_trust(0.0, 0.2)
    uncertain["test"]["low"] = 0.05
    assert trust_warnings(make_summary(3, trust=uncertain)) == []


def test_few_held_out_pairs_are_warned_of() -> None:
    (few,) = trust_warnings(trusting(0.0, trusted=29))
    assert few.startswith("Only 29 validation pairs are asked what helps; fewer than 30")
    assert trust_warnings(trusting(0.0, trusted=30)) == []


def test_noisy_validation_pairs_are_compared_with_the_pool() -> None:
    (like_the_pool,) = trust_warnings(trusting(0.2))
    assert like_the_pool == (
        "Held-out pairs are as noisy as the pool: 20.0 % (18.0 to 22.0) of the validation captions"
        " are estimated to be wrong; 900 of 1,000 are trusted and asked what helps; bring a clean"
        " target with --val_data."
    )
    (cleaner,) = trust_warnings(trusting(0.12))  # up to 13.2 %, the pool's begin at 17.8 %
    assert cleaner.startswith("Held-out pairs are noisy: 12.0 %")
    (blind,) = trust_warnings(trusting(0.2, taken_at_word=True))
    assert "all 1,000 are asked what helps all the same (--trust_validation)" in blind


def test_who_was_asked() -> None:
    assert judged_sentence(trusting()) == (
        "Validation pairs were judged before they judge, by how well image and caption agree: 900"
        " of 1,000 are asked what helps; 100 are not, 20 as near copies of others that are and 80"
        " because image and caption may not belong together. Of 5,000 test pairs 4,800 are trusted."
    )
    assert "1 is not, because" in judged_sentence(trusting(trusted=999, copies=0))
    assert "20 are not, as near copies of others that are." in (
        judged_sentence(trusting(trusted=980))
    )
    assert "1,000 of 1,000 are asked what helps. Of" in judged_sentence(
        trusting(trusted=1000, copies=0)
    )
    blind = judged_sentence(trusting(taken_at_word=True))
    assert "at their word (`--trust_validation`): all 1,000 are asked" in blind
    assert wrong_captions_sentence(trusting(0.21, None, trusted=1)) == (
        "Wrong captions, estimated: train 19.8 % (17.8 to 21.8), validation 21.0 % (18.9 to 23.1),"
        " test unknown; 1 of 1,000 validation pairs is asked what helps."
    )
    assert wrong_captions_sentence(trusting(taken_at_word=True)).endswith(
        "; 1,000 of 1,000 validation pairs are asked what helps."
    )


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


def test_how_much_influence_counts() -> None:
    why = "trusted pairs would be dropped more often than others"
    assert guard(None) == guard(make_pair_quality()) == guard(make_pair_quality(guard="")) == ""
    weak = make_pair_quality(guard=why, influence_weight=0.25)
    assert guard(weak) == f"influence counts with weight 0.25 in the values, because {why}"
    assert guard(weak | {"influence_weight": 0.0}) == (
        f"influence does not count in the values, because {why}"
    )
    assert f"Influence counts with weight 0.25 in the values, because {why}." in (
        answer(make_summary(3, pair_quality=weak))
    )
    assert "because" not in answer(make_summary(3, pair_quality=weak, sample_weights=None))
    text = pair_text(guard=why, influence_weight=0.25, agreement_correlation=-0.41)
    assert f"**Influence counts with weight 0.25 in the values, because {why}.**" in text
    assert "influence and image-text agreement have a correlation of -0.41." in text
    assert "Influence counts with weight 0.60 in the values." in pair_text(influence_weight=0.6)
    assert "Influence counts" not in pair_text(influence_weight=1.0, guard="")


def test_a_narrow_target_is_told_where_nearness_to_it_counts() -> None:
    narrow = make_pair_quality(relevance_auc=0.9, relevance_weight=0.4)
    text = narrow_sentence(make_summary(3, pair_quality=narrow))
    assert "a classifier tells them from training pairs (AUC 0.90; 0.5 would be by chance)" in text
    assert text.endswith("counts in a pair's value, with weight 0.40.")
    for quality in (None, make_pair_quality(), narrow | {"relevance_weight": 0.05}):
        assert narrow_sentence(make_summary(3, pair_quality=quality)) == ""


def test_why_cells_and_clusters_may_differ_in_sign() -> None:
    text = cells_beside_clusters(make_summary(3))
    assert "may have different signs" in text
    assert "pairs of other clusters step in" in text
    first_order = make_summary(3, influence_info=make_influence_info(removal_correction=False))
    assert cells_beside_clusters(first_order).endswith("out of training costs.")
    assert cells_beside_clusters(SUMMARIES["stage 3 not loaded"]) == ""


def test_seconds_below_a_tenth_are_not_nothing() -> None:
    efficiency = make_efficiency()
    for method, seconds in (("full", 5.04), ("influencespace", 5.0)):
        efficiency[method]["same_epochs"]["training_seconds"] = {"mean": seconds, "std": 0.0}
    efficiency["influencespace"]["curation_seconds"] = 0.004
    text = " ".join(key_findings(make_summary(efficiency=efficiency)))
    assert "Choosing the pairs took <0.01 s, less than the 0.04 s that one" in text


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


def estimate_text(estimator: str = "metagradient", **changes: Any) -> str:
    info = make_influence_info(estimator, **changes)
    return " ".join(estimate(make_summary(influence_info=info)))


def test_the_metagradient_is_described() -> None:
    text = estimate_text(n_evaluated=100)
    assert "Estimator: `metagradient`, the exact derivative of the validation loss" in text
    assert "no Hessian is inverted" in text
    assert "finite-removal correction)" in text
    assert "One reference model, stopped after 480 of the 1,560 steps" in text
    assert "2.3456 nats." in text
    assert "Cluster scores come from one reverse sweep over each reference training" in text
    assert "evaluated for 100 of" not in text  # the derivatives are of all, for clusters alone
    for word in ("igenvalue", "damping", "spectrum", "cosine", "trace"):
        assert word not in text
    assert "No finite-removal correction was added" in estimate_text(removal_correction=False)
    several = estimate_text(influence_seeds=3)
    assert "Mean over 3 reference models, all stopped after 480 of the 1,560 steps" in several
    assert "the first one's validation loss was lowest; their mean is 2.3456 nats." in several
    assert estimate(make_summary(influence_info=None, pair_quality=None)) == []


def test_unknown_signs_are_counted() -> None:
    summary = make_summary(20)
    assert summary.influence is not None
    n = sum(e["stderr_percent"] >= abs(e["influence_percent"]) for e in summary.influence)
    assert f"For {n} of 20 clusters" in " ".join(estimate(summary))
    known = [entry | {"stderr_percent": 0.0} for entry in summary.influence]
    certain = make_summary(20, influence=known)
    assert "Every cluster's score is larger than its standard error." in estimate(certain)
    assert "standard error is at least" not in " ".join(limitations(certain))


def pair_text(**changes: Any) -> str:
    return " ".join(estimate(make_summary(pair_quality=make_pair_quality(**changes))))


def test_the_influence_of_pairs_is_described() -> None:
    summary = make_summary()
    n = summary.n_train
    text = pair_text()
    assert f"evaluated for 40 of {n:,} training pairs ({100 * 40 / n:.1f} %)" in text
    assert f"inferred for the other {n - 40:,} from what is known of every pair" in text
    assert "measured on 10 models, each trained on a half of the pairs" in text
    assert "explains 43.2 % of the variance" in text
    assert "mean correlation of 0.65; the mean over 5 deals is used" in text
    assert "moved by 25.0 % of the way to its own measurement" in text
    assert "decided by the pairs' own influence, estimated apart" in text
    assert "explains **only** 5.0 %" in pair_text(explained=0.05)
    assert "explains **nothing**" in pair_text(explained=-0.02)
    one_deal = pair_text(held_out_models=2, repeats_agree=None, own_share=0.5)
    assert "mean correlation" not in one_deal
    assert "a fixed choice, for one deal has no spread" in one_deal
    assert "inferred" not in pair_text(pairs_evaluated=n).split("own influence was")[1][:120]
    alone = estimate(make_summary(influence_info=None))
    assert alone[0].startswith("The pairs' own influence was evaluated for 40 of")
    without = " ".join(estimate(make_summary(pair_quality=None)))
    assert "own influence" not in without


def test_what_is_inferred_is_a_limitation() -> None:
    summary = make_summary()
    text = " ".join(limitations(summary))
    assert (
        f"For {100 * (1 - 40 / summary.n_train):.1f} % of the pairs influence is inferred" in text
    )
    all_evaluated = make_pair_quality(pairs_evaluated=summary.n_train)
    assert "inferred" not in " ".join(limitations(make_summary(pair_quality=all_evaluated)))
    assert "inferred" not in " ".join(limitations(make_summary(pair_quality=None)))


def test_the_value_in_one_sentence() -> None:
    summary = make_summary(3)
    assert value_sentence(summary) == (
        "Dropped are the pairs of lowest value: a pair's value is its influence plus 0.5 times its"
        " image-text agreement, both in standard deviations, less 1 for every near copy of it that"
        " has a better caption."
    )
    plain = summary.thresholds | {"agreement_weight": 1.0, "copy_price": 0.0}
    assert value_sentence(make_summary(3, thresholds=plain)).endswith(
        "its influence plus its image-text agreement, both in standard deviations."
    )
    alone = plain | {"agreement_weight": 0.0}
    assert value_sentence(make_summary(3, thresholds=alone)).endswith(
        "value is its influence in standard deviations."
    )
    assert value_sentence(make_summary(3, categorization=None)) == ""
    narrow = make_pair_quality(influence_weight=0.25, relevance_weight=0.4)
    assert value_sentence(make_summary(3, pair_quality=narrow)) == (
        "Dropped are the pairs of lowest value: a pair's value is 0.25 times its influence plus 0.5"
        " times its image-text agreement plus how near it is to what the held-out pairs show, all"
        " in standard deviations, less 1 for every near copy of it that has a better caption."
    )
    guarded = make_pair_quality(influence_weight=0.0)
    assert value_sentence(make_summary(3, pair_quality=guarded, thresholds=plain)).endswith(
        "a pair's value is its image-text agreement in standard deviations."
    )
    assert value_sentence(make_summary(3, pair_quality=guarded, thresholds=alone)).endswith(
        "value is the same for all."
    )
    low_kept = dataclasses.replace(
        summary.pairs, values=np.r_[-3.0, np.ones(summary.n_train - 2), 2.0]
    )
    low_kept = dataclasses.replace(
        low_kept, kept=np.r_[True, False, [True] * (summary.n_train - 2)]
    )
    assert "1 pair of lower value stays as the best" in value_sentence(
        make_summary(3, pairs=low_kept)
    )


def test_the_kind_of_pair_that_is_dropped_is_named() -> None:
    pairs = PairSummary(
        bands=np.array([0, 0, 0, 0, 1, 1, 1, 1]),
        band_names=("lower half of agreement", "upper half of agreement"),
        near_copies=np.array([False] * 7 + [True]),
        kept=np.array([True, False, False, False, True, True, True, False]),
    )
    text = kinds_sentence(make_summary(pairs=pairs))
    assert text == (
        "Over all topics, 25.0 % of the 4 pairs whose image and text agree least (lower half of"
        " agreement) were kept and 75.0 % of the others. Of 1 pair for whose image the set has a"
        " copy with a better caption, 0.0 % was kept."
    )
    assert text in key_findings(make_summary(pairs=pairs))
    one_kind = dataclasses.replace(
        pairs, bands=np.zeros(8, dtype=np.int64), near_copies=np.zeros(8, dtype=bool)
    )
    assert kinds_sentence(make_summary(pairs=one_kind)) == ""
    assert kinds_sentence(SUMMARIES["stages 2 and 3 not loaded"]) == ""


@pytest.mark.parametrize("estimator", ["step", "first_order"])
def test_the_inverse_hessian_is_described(estimator: str) -> None:
    text = estimate_text(estimator)
    assert f"Estimator: `{estimator}`" in text
    assert "`lanczos` of the curvature `gauss_newton`, damping 0.0123" in text
    assert "cosine of 0.812 with the exact solution by conjugate gradients" in text
    assert "largest residual 1.0e-05 of the first" in text  # 9e-5 / 9
    assert "They hold 35.8 % of the trace, 40 ± 1.2" in text
    assert ("the whole cluster out" in text) == (estimator == "step")
    assert ("one step for each cluster" in text) == (estimator == "step")
    assert ("from 100 sampled pairs" in text) == (estimator == "first_order")
    assert ("scores hold for small changes" in text) == (estimator == "first_order")


def test_a_flat_spectrum_is_said_plainly() -> None:
    steep = {"eigenvalues": [9.0, 2.0, 0.1, 0.05], "trace_share": 0.9}
    assert "flat" not in estimate_text("step", **steep)
    little = estimate_text("step", **steep | {"trace_share": 0.1})
    assert "spectrum is flat: these eigenvalues hold under half of the trace." in little
    assert "behaves nearly like gradient similarity" in little
    assert "`--hessian cg` or `--estimator metagradient`" in little
    slow = estimate_text("first_order", trace_share=0.9)  # 1.5 / 2
    assert "spectrum is flat: the last of them is still 75.0 % of the second." in slow
    both = estimate_text("first_order")
    assert "under half of the trace and the last of them" in both
    one = estimate_text(
        "step", eigenvalues=[3.0], eigenvalue_residuals=[1e-4], trace_share=0.02, trace=150.0
    )
    assert "under half of the trace." in one


def test_flatness_is_no_matter_to_conjugate_gradients() -> None:
    text = estimate_text("step", hessian="cg")
    assert "has a cosine of 0.812 with that solution" in text
    assert "conjugate gradients do not depend on it" in text
    assert "gradient similarity" not in text


@pytest.mark.parametrize("hessian", ["datainf", "identity"])
def test_an_inverse_without_eigenvalues_has_no_spectrum(hessian: str) -> None:
    """What stands in the eigenvalues' place is the curvature along one direction."""
    text = estimate_text("step", hessian=hessian, eigenvalues=[3.0], eigenvalue_residuals=[0.1])
    assert f"`{hessian}` of the curvature" in text
    assert "cosine of 0.812" in text
    assert "igenvalue" not in text
    assert "flat" not in text


def test_limitations_name_the_flags_that_help() -> None:
    by_sampling = " ".join(limitations(SUMMARIES["an inverse Hessian"]))
    assert "More pairs per cluster (`--samples_per_cluster`) and more reference" in by_sampling
    assert "`--influence_seeds`" in by_sampling
    for estimator in ("metagradient", "step"):
        info = make_influence_info(estimator)
        text = " ".join(limitations(make_summary(influence_info=info)))
        assert "More reference models (`--influence_seeds`) narrow it." in text
        assert "samples_per_cluster" not in text


# --- Real retraining ----------------------------------------------------------------------------


def validation_text(n: int = 20, n_seeds: int = 3, **changes: Any) -> str:
    checks = make_validation(n, n_seeds, **changes)
    return validation(make_summary(influence_validation=checks))


def test_what_was_not_validated_names_the_flag() -> None:
    text = validation(make_summary())
    assert "`--validate_influence 20`" in text
    assert text.count(".") == 1
    assert validation(SUMMARIES["stages 2 and 3 not loaded"]) == ""


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
    text = validation(make_summary(influence_validation=checks))
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
    text = validation(SUMMARIES["too few to validate"])
    assert text.startswith("2 clusters,")
    assert "too few clusters, or too little spread, to correlate" in text
    checks = make_validation(20) | {"lds": make_agreement(None)}
    assert "datamodelling" not in validation(make_summary(influence_validation=checks))


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

"""What is said of the pairs that were kept and dropped."""

from __future__ import annotations

import dataclasses

import numpy as np

from curation import DROP, KEEP
from reporting.console import console_summary
from reporting.findings import key_findings
from reporting.kept import (
    kept_sentence,
    kinds_sentence,
    review_sentence,
    value_sentence,
    weights_sentence,
)
from reporting.ledger import KEPT, LOWERED, VALUABLE
from reporting.page import results_markdown
from reporting.report.page import PageData, render
from reporting.summary import PairSummary, Summary
from tests.reporting.test_summary import (
    SUMMARIES,
    make_pair_quality,
    make_summary,
)


def test_weights_in_words() -> None:
    equal = make_summary(3, sample_weights=np.ones(60))
    assert weights_sentence(equal) == "All kept pairs have the same weight."
    uneven = make_summary(3, sample_weights=np.array([0.5, 0.5, 2.0]))
    # 3^2 / (0.25 + 0.25 + 4) = 2
    assert "from 0.50 to 2.00 around a mean of one; they count like 2 pairs" in (
        weights_sentence(uneven)
    )
    assert weights_sentence(make_summary(3, sample_weights=None)) == ""


def lowered(n: int) -> Summary:
    """A summary in which so many kept pairs look faulty."""
    reasons = {LOWERED: n, VALUABLE: 60}
    decisions = [
        {"split": "train", "decision": KEPT, "reason": reason, "pairs": pairs}
        for reason, pairs in reasons.items()
    ]
    dropped = {"split": "train", "decision": "dropped", "reason": LOWERED, "pairs": 9}
    return make_summary(3, decisions=[*decisions, dropped])


def test_kept_pairs_that_look_faulty_are_told() -> None:
    plain = kept_sentence(make_summary(3))
    assert plain.endswith(" %).")
    assert kept_sentence(lowered(0)) == plain
    assert kept_sentence(lowered(1_012)) == (
        f"{plain[:-1]}; 1,012 of them look faulty and weigh 0.01 times as much as others."
    )
    assert "; 1 of them looks faulty and weighs 0.01 times" in kept_sentence(lowered(1))
    assert kept_sentence(lowered(1_012)) in console_summary(lowered(1_012))
    page = " ".join(render(lowered(1_012), PageData({}, [], [], {}), {}).split())
    assert " %); 1,012 of them look faulty and weigh 0.01 times as much as others</p>" in page
    assert weights_sentence(lowered(1_012)).endswith(
        " 1,012 pairs that look faulty are kept all the same; `--faulty_weight` says how much of"
        " the others' weight they have."
    )
    assert weights_sentence(lowered(1)).endswith(
        " 1 pair that looks faulty is kept all the same; `--faulty_weight` says how much of the"
        " others' weight it has."
    )
    assert "faulty" not in weights_sentence(lowered(0))


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


def test_a_reviewer_is_counted_and_protects_nobody() -> None:
    summary = make_summary(3)
    assert review_sentence(summary) == ""
    n = summary.n_train
    reviewed = np.zeros(n, dtype=np.int8)
    reviewed[[0, 1, 2]], reviewed[[3, 4]] = KEEP, DROP
    said = dataclasses.replace(summary.pairs, reviewed=reviewed, n_overruled=4)
    told = make_summary(3, pairs=said)
    told.run["settings"]["overrides"] = "reviews/over  rides.csv"
    assert review_sentence(told) == (
        "3 pairs kept and 2 dropped by the reviewer's say (--overrides reviews/over rides.csv); 4"
        " of them would have been decided otherwise."
    )
    assert review_sentence(told) in console_summary(told)
    assert len(console_summary(told).splitlines()) == len(console_summary(summary).splitlines())
    told.run["settings"]["overrides"] = "a|b/*x*.csv"
    page = results_markdown(told)
    assert (
        r"3 pairs kept and 2 dropped by the reviewer's say (--overrides a\|b/\*x\*.csv); 4" in page
    )
    assert "by the reviewer's say" not in results_markdown(summary)


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

"""How much to keep, in words: on the page, on the terminal and for programs."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from artifacts.store import Store
from attribution.keep_curve import GRID
from baselines import INFLUENCESPACE, METHODS
from reporting.console import console_summary
from reporting.evaluation_tables import summary_markdown
from reporting.how_much import (
    CURVE_FIGURE,
    CURVE_TABLE,
    auto_share,
    best_share,
    curve_csv,
    curve_numbers,
    share_sentence,
    share_warnings,
)
from reporting.ledger import KEPT, LOWERED
from reporting.page import results_markdown
from reporting.report.page import PageData, render
from reporting.results import write_results
from tests.helpers import encode
from tests.reporting.test_figures import make_curve
from tests.reporting.test_page import section, table_with
from tests.reporting.test_summary import SUMMARIES, kept_share, make_summary

FIGURE = encode(PIL.Image.new("RGB", (40, 20), "white"))
SENTENCE = (
    "Best share to keep: 74 % (the curve is highest at 68 to 80); 80 % gives away 0.3 ± 0.2 points;"
    " 20.9 % of the pairs look faulty (19.1 to 22.7)."
)


def report(name: str) -> str:
    """The page of a run, its text as readers see it in one line."""
    summary = SUMMARIES[name]
    figures = {path.removeprefix("results/"): FIGURE for path in summary.figures}
    return " ".join(render(summary, PageData({}, [], [], {}), figures).split())


# --- Sentences ------------------------------------------------------------------------------------


def test_the_sentence_stands_on_the_terminal_on_both_pages_and_in_the_report() -> None:
    summary = kept_share(0.8)
    assert share_sentence(summary) == SENTENCE
    assert SENTENCE in console_summary(summary).splitlines()
    assert SENTENCE in section(results_markdown(summary), "How much to keep")
    assert SENTENCE in summary_markdown(summary)
    assert f"<dt>How much to keep</dt><dd>{SENTENCE}</dd>" in report("everything")


def test_what_is_not_known_is_said_so() -> None:
    below = share_sentence(SUMMARIES["a share below the curve"])
    assert "what 10 % gives away is not known below 25 %;" in below
    unknown = share_sentence(SUMMARIES["values sort difficulty"])
    assert "80 % by value gives away 0.3 ± 0.2 points; how many of the pairs are faulty" in unknown


def test_where_faulty_pairs_were_made_to_count_less_the_curve_speaks_of_others() -> None:
    decision = {"split": "train", "decision": KEPT, "reason": LOWERED, "pairs": 7}

    def told(name: str, *decisions: dict[str, Any]) -> str:
        summary = replace(SUMMARIES[name], decisions=[*decisions])
        return " ".join([share_sentence(summary), *share_warnings(summary)])

    heeds = " points to a trainer that heeds no weights; 20.9 % of the pairs look faulty"
    assert heeds in told("everything", decision)
    assert "heeds" not in told("everything")
    warned = told("a share that gives much away", decision)
    assert (
        "validation pairs to a trainer that heeds no weights; the best share to keep is" in warned
    )
    text = section(results_markdown(SUMMARIES["everything"]), "How much to keep")
    assert "at each share, pairs that look faulty counting like others; asked" in text


def test_auto_chose_or_would_choose() -> None:
    def told(share: float, *, found: bool) -> str:
        return section(results_markdown(kept_share(share, found=found)), "How much to keep")

    assert "`--target_size_ratio auto` chose 74 %." in told(0.74, found=True)
    assert "80 % were asked for; `--target_size_ratio auto` would choose 74 %." in told(
        0.8, found=False
    )
    assert "`--target_size_ratio auto` would choose the same." in told(0.74, found=False)
    assert "82.5 % were asked for;" in told(0.825, found=False)


def test_how_it_was_measured_is_said() -> None:
    text = section(results_markdown(SUMMARIES["everything"]), "How much to keep")
    assert (
        "Measured by 12 short trainings of 390 steps each, 2 seeds at 25, 40, 55, 70, 85, 100 %"
        " kept"
    ) in text
    assert "asked were 764 trusted validation pairs." in text


def test_values_that_sort_easy_from_hard_are_named_with_both_recalls() -> None:
    recalls = "a recall of 59.3, as many at random among those that do not look faulty 57.1"
    plain = section(results_markdown(SUMMARIES["everything"]), "How much to keep")
    assert recalls in plain
    assert "+0.054 ± 0.021" in plain
    assert "easy pairs from hard ones" not in plain
    page = results_markdown(SUMMARIES["values sort difficulty"])
    hard = section(page, "How much to keep")
    assert recalls in hard
    assert "**values sort easy pairs from hard ones here, not good ones from bad**" in hard
    assert "easy pairs from hard ones here" in report("values sort difficulty")


# --- Warnings -------------------------------------------------------------------------------------


def test_a_share_that_gives_more_away_than_two_standard_errors_is_warned_of() -> None:
    summary = SUMMARIES["a share that gives much away"]
    (warning,) = share_warnings(summary)
    assert warning == (
        "Keeping 100 % gives away 2.7 ± 0.6 points of recall on the trusted validation pairs; the"
        " best share to keep is 74 % (the curve is highest at 68 to 80), which --target_size_ratio"
        " auto takes."
    )
    page = results_markdown(summary)
    assert page.index("Keeping 100 % gives away") < page.index("**Kept ")
    assert "! Keeping 100 % gives away 2.7 ± 0.6 points" in console_summary(summary)
    html = report("a share that gives much away")
    assert f'role="alert"><strong>Warning.</strong> {warning}' in html


@pytest.mark.parametrize(
    ("share", "found"),
    [(0.8, False), (0.74, False), (0.7, False), (0.1, False), (0.74, True)],
    ids=["within two errors", "best", "most", "below the curve", "found by the run"],
)
def test_no_warning_without_need(share: float, found: bool) -> None:
    assert share_warnings(kept_share(share, found=found)) == []


def test_what_others_want_is_said_where_auto_cannot_have_its_way() -> None:
    told = section(results_markdown(kept_share(1.0, found=True)), "How much to keep")
    assert (
        "`--target_size_ratio auto`: 74 % would be best; 100 % are kept, since --overrides and"
        " --min_group_retention ask for more."
    ) in told
    [warning] = share_warnings(kept_share(1.0, found=True))
    assert "for which --overrides and --min_group_retention leave no room" in warning
    assert auto_share(0.74, 0.5).endswith("leave no more")
    assert auto_share(0.74, 0.74) == "74 % are kept"


def test_a_best_share_apart_from_the_top_of_the_curve_is_explained() -> None:
    curve = kept_share(0.8, found=False).curve
    assert curve is not None
    apart = replace(curve, best={**curve.best, "share": 0.77, "low": 0.5, "high": 0.7})
    assert best_share(apart) == (
        "77 % (between where the curve is highest, 50 to 70, and the 79 % that do not look faulty)"
    )
    few = replace(curve, best={**curve.best, "validation_pairs": 10})
    assert best_share(few) == (
        "74 % (10 trusted validation pairs: too few for the curve to have a say,"
        " all but what surely looks faulty)"
    )
    told = share_sentence(replace(kept_share(0.8, found=False), curve=few))
    assert "gives away" not in told
    assert "surely looks faulty); 20.9 % of the pairs look faulty (19.1 to 22.7)." in told


# --- The table ------------------------------------------------------------------------------------


def test_the_table_by_hand() -> None:
    page = results_markdown(kept_share(0.8))
    rows = table_with(section(page, "How much to keep"), "share kept (%)")
    names = [row["share kept (%)"] for row in rows]
    assert names == ["30", "40", "50", "60", "70", "74 (best)", "80 (kept)", "90", "100"]
    assert rows[0] == {  # 0.4 from the highest place
        "share kept (%)": "30",
        "recall (%)": "55.2",
        "less than the most": "4.8 ± 0.8",
        "loss": "1.820",
        "more than the least": "0.320 ± 0.040",
    }
    assert rows[4]["less than the most"] == "0.0 ± 0.0"
    both = table_with(results_markdown(kept_share(0.74)), "share kept (%)")
    assert "74 (best, kept)" in [row["share kept (%)"] for row in both]
    below = table_with(results_markdown(kept_share(0.1)), "share kept (%)")
    assert not any("kept" in row["share kept (%)"] for row in below)


def test_programs_find_the_whole_curve_and_its_numbers() -> None:
    curve = make_curve()
    read = pd.read_csv(io.StringIO(curve_csv(curve)))
    assert list(read) == ["share", "recall", "recall_stderr", "loss", "loss_stderr"]
    assert np.allclose(read["share"], GRID, atol=1e-6)
    assert np.allclose(read["recall"], curve.recall, atol=1e-6)
    numbers = curve_numbers(kept_share(0.8))
    assert (numbers["kept"], numbers["share"], numbers["found_by_auto"]) == (0.8, 0.74, False)
    assert numbers["given_away"] == pytest.approx(0.3)
    assert numbers["given_away_stderr"] == pytest.approx(0.2)
    assert numbers["fault_share"] == [0.209, 0.191, 0.227]
    assert curve_numbers(SUMMARIES["a share below the curve"])["given_away"] is None
    assert curve_numbers(SUMMARIES["a share that was found"])["found_by_auto"]


# --- With and without it --------------------------------------------------------------------------


def test_the_section_stands_below_the_answer_with_its_figure() -> None:
    page = results_markdown(SUMMARIES["everything"])
    assert page.index("**Kept ") < page.index("## How much to keep")
    assert page.index("## How much to keep") < page.index("## What this run stands on")
    assert "![keep curve](keep_curve.png)" in section(page, "How much to keep")
    html = report("everything")
    assert 'alt="Lines: recall and loss expected at each share of the pairs kept' in html


def test_a_run_without_the_curve_is_reported_without_it() -> None:
    summary = make_summary(3)
    assert summary.curve is None
    assert share_sentence(summary) == ""
    assert share_warnings(summary) == []
    assert curve_numbers(summary) == {}
    assert CURVE_FIGURE not in summary.figures
    for text in (results_markdown(summary), summary_markdown(summary), console_summary(summary)):
        assert "to keep" not in text
    assert "to keep" not in report("two methods")


def test_files_of_an_earlier_run_do_not_stay(tmp_path: object) -> None:
    store = Store.open(str(tmp_path))
    write_results(store, kept_share(0.8), {})
    assert pd.read_csv(store.root / CURVE_TABLE)["share"].tolist() == pytest.approx(GRID.tolist())
    (store.root / CURVE_FIGURE).write_bytes(FIGURE)
    write_results(store, make_summary(3), {})
    assert not (store.root / CURVE_TABLE).exists()
    assert not (store.root / CURVE_FIGURE).exists()


def test_the_trainings_count_as_choosing() -> None:
    assert "keep curve" in METHODS[INFLUENCESPACE].pays_for

"""The page on what was kept and thrown away: its tables parsed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import visualize
from reporting import page as page_module
from tests.reporting.test_figures import (
    make_categorization,
    make_validation,
)
from tests.reporting.test_page import parsed_tables, section, table_with
from tests.reporting.test_summary import SUMMARIES, make_pair_quality, make_summary

AGREEMENT = "image-text agreement"


def test_what_was_kept() -> None:
    summary = SUMMARIES["everything"]
    page = section(page_module.results_markdown(summary), "What was kept and what was thrown away")
    assert "run from 0.50 to 1.50 around a mean of one" in page
    equal = page_module.results_markdown(make_summary(3, sample_weights=np.ones(60)))
    assert "All kept pairs have the same weight." in equal
    assert summary.categorization is not None
    categories = {row["category"]: row for row in table_with(page, "rule", "kept")}
    for category, row in categories.items():
        members = [c for c in summary.categorization if c["category"] == category]
        assert row["clusters"] == str(len(members))
        assert row["kept"] == f"{sum(c['pairs_kept'] for c in members):,}"
        assert row["dropped"] == f"{sum(c['pairs_dropped'] for c in members):,}"
    lowest, highest = [t[2:] for t in parsed_tables(page) if t[0][:2] == ["cluster", "terms"]]
    assert [row[0] for row in lowest] == [str(c["cluster"]) for c in summary.categorization[:5]]
    assert highest[0][0] == str(summary.categorization[-1]["cluster"])
    first = summary.categorization[0]
    assert lowest[0][4] == f"{first['influence_percent']:+.3f} ± {first['stderr_percent']:.3f}"


def test_kinds_of_pairs() -> None:
    summary = make_summary(20)
    page = section(page_module.results_markdown(summary), "What was kept and what was thrown away")
    rows = table_with(page, "copies", "share kept")
    assert [row["image-text agreement"] for row in rows] == ["lowest third", *2 * ["highest third"]]
    lowest = rows[0]
    n_dropped = summary.n_train - summary.n_curated
    assert lowest["pairs"] == f"{n_dropped:,}"
    assert (lowest["kept"], lowest["share kept"]) == ("0", "0.0 %")
    assert lowest["influence of a pair (% / n)"] == "-80"
    faint = dataclasses.replace(summary.pairs, influence=np.full(summary.n_train, -0.3))
    rows_of_faint = table_with(
        page_module.results_markdown(make_summary(20, pairs=faint)), "copies"
    )
    assert rows_of_faint[0]["influence of a pair (% / n)"] == "-0.3"
    assert lowest["known faults"] == "100.0 %"
    assert [row["copies"] for row in rows] == ["–", "–", "near copies"]
    assert f"over n = {summary.n_train:,};" in page
    unknown = dataclasses.replace(summary.pairs, faulty=None, influence=None)
    rows = table_with(
        page_module.results_markdown(make_summary(20, pairs=unknown)), "copies", "kept"
    )
    assert "known faults" not in rows[0]
    assert {row["influence of a pair (% / n)"] for row in rows} == {"–"}
    no_stage_3 = page_module.results_markdown(SUMMARIES["stage 3 not loaded"])
    assert {row["share kept"] for row in table_with(no_stage_3, "copies", "share kept")} == {"–"}
    assert "By kind of pair" not in page_module.results_markdown(
        SUMMARIES["stages 2 and 3 not loaded"]
    )


def test_cells_that_hurt_and_help_most() -> None:
    categorization = make_categorization(100)
    all_cells = (cell for cluster in categorization for cell in cluster["cells"])
    min(all_cells, key=lambda c: c["influence_percent"])["size"] = 1
    summary = make_summary(100, categorization=categorization)
    assert summary.categorization is not None
    page = page_module.results_markdown(summary)
    cells = [cell for cluster in summary.categorization for cell in cluster["cells"]]
    harmful, beneficial = (t for t in parsed_tables(page) if t[0][:2] == ["topic", AGREEMENT])
    for listed, sign in ((harmful, 1), (beneficial, -1)):
        strongest = sorted(cells, key=lambda c: sign * c["influence_percent"])[:5]
        assert [row[6] for row in listed[2:]] == [
            f"{c['influence_percent']:+.3f} ± 0.020" for c in strongest
        ]
        assert [row[7] for row in listed[2:]] == [
            f"{c['pairs_kept']:,} of {c['size']:,}" for c in strongest
        ]
    assert harmful[2][1] in ("lowest third", "highest third")
    sizes = {f"{c['influence_percent']:+.3f} ± 0.020": c["size"] for c in cells}
    assert [row[3] for row in harmful[2:]] == [
        "certain" if sizes[row[6]] > 1 else "not certain" for row in harmful[2:]
    ]
    assert 1 in [sizes[row[6]] for row in harmful[2:]]  # one pair is never certain
    assert {row[2] for row in beneficial[2:]} == {"near copies"}
    n_harmful = sum(c["category"] == "harmful" and c["size"] > 1 for c in cells)
    assert f"Of {len(cells)} cells" in page
    assert f"{n_harmful} are harmful and 0 beneficial with certainty" in page


@pytest.mark.parametrize("explained", [-0.07, 0.02])
def test_no_sign_is_certain_where_the_inference_explains_little(explained: float) -> None:
    summary = make_summary(20, pair_quality=make_pair_quality(explained=explained))
    page = page_module.results_markdown(summary)
    kinds = section(page, "What was kept and what was thrown away").split("### ")
    for heading in ("By kind of pair", "The most harmful"):
        (text,) = (part for part in kinds if part.startswith(heading))
        assert "the sign of an inferred influence is weak evidence" in text
    assert {row["sign"] for row in table_with(page, "topic", "sign")} == {"not certain"}
    assert "with certainty" not in page
    figure = visualize.figures(summary)["stage3/cells.png"]()
    assert "weak evidence" in figure.get_supxlabel().replace("\n", " ")
    assert "weak evidence" not in page_module.results_markdown(make_summary(20))


def test_cells_and_clusters_are_told_apart() -> None:
    page = page_module.results_markdown(make_summary(20))
    clusters = page.split("### The 5 clusters of lowest influence")[1].split("\n|")[0]
    assert "A cell and its cluster may have different signs" in clusters


def test_cells_of_one_sign() -> None:
    categorization = make_categorization(2)
    for cluster in categorization:
        cluster["cells"] = [
            cell | {"influence_percent": 0.1, "category": "beneficial"} for cell in cluster["cells"]
        ]
    page = page_module.results_markdown(make_summary(2, categorization=categorization))
    assert "No cell is harmful." in page
    assert "Most beneficial:" in page
    unknown = page_module.results_markdown(SUMMARIES["stage 2 not loaded"])
    assert {row[AGREEMENT] for row in table_with(unknown, "topic", "sign")} == {"–"}


def test_groups_stand_beside_all_pairs() -> None:
    summary = make_summary(20)
    page = page_module.results_markdown(summary)
    female, everyone = table_with(page, "group", "share kept")  # of a child no caption speaks
    assert female == {"group": "female", "pairs": "50", "kept": "45", "share kept": "90.0 %"}
    assert everyone["group"] == "all pairs"
    assert everyone["kept"] == f"{summary.n_curated:,}"
    assert "Every group keeps at least as large a share as all pairs. No least share" in page
    few = {"a|b": {"pairs": 10, "kept": 1, "retention": 0.1}}
    thresholds = summary.thresholds | {"min_group_retention": 0.1}
    page = page_module.results_markdown(
        make_summary(20, group_retention=few, thresholds=thresholds)
    )
    assert r"A smaller share than of all pairs is kept of a\|b. At least 10.0 % of each" in page
    assert "### Demographic groups" not in page_module.results_markdown(
        make_summary(3, group_retention={})
    )


def test_rounds_are_reported_where_there_are_several() -> None:
    first, second = table_with(page_module.results_markdown(SUMMARIES["several rounds"]), "round")
    assert first == {
        "round": "1",
        "explained": "40.0 %",
        "validation loss": "0.8500",
        "kept": "320",
        "of them kept before": "–",
    }
    assert second["of them kept before"] == "310"
    assert "### Rounds" not in page_module.results_markdown(make_summary(3))


def test_a_category_is_not_said_to_decide_what_is_dropped() -> None:
    page = section(
        page_module.results_markdown(make_summary()), "What was kept and what was thrown away"
    )
    assert "Dropped are the pairs of lowest value" in page.lstrip().split("\n\n")[0]
    assert "It does not say which pairs are dropped: their own values decide" in page
    (example,) = table_with(page, "caption", "why")
    assert example["value"] == "-2.3"
    assert example["why"].startswith("influence -1.8, agreement -1.1")


def test_few_clusters_are_all_in_one_table() -> None:
    page = page_module.results_markdown(make_summary(3))
    assert len([t for t in parsed_tables(page) if t[0][:2] == ["cluster", "terms"]]) == 1


def test_validation_table() -> None:
    checks = make_validation(20)
    checks["lds"]["estimator"] = {"spearman": -0.123, "pearson": 0.456, "slope": 7.891}
    checks["small_weight"] |= {"ceiling": None}
    checks["small_weight"]["size"]["spearman"] = None
    page = page_module.results_markdown(make_summary(influence_validation=checks))
    left_out, small, halves = table_with(page, "check", "Spearman (ceiling)")
    assert left_out == {
        "check": "One cluster left out",
        "Spearman (ceiling)": "0.90 (0.98)",
        "Pearson": "0.95",
        "slope": "1.10",
        "Spearman of cluster size": "0.40",
        "Spearman of mean CLIP score": "0.50",
        "Spearman of gradient similarity": "0.60",
    }
    assert small["check"] == "One cluster at 0.9 of its weight"
    assert small["Spearman (ceiling)"] == "0.90 (–)"
    assert small["Spearman of cluster size"] == "–"
    assert halves["check"] == "A random half of the clusters left out"
    assert halves["Spearman (ceiling)"] == "-0.12 (0.98)"
    assert halves["slope"] == "7.89"


def test_validation_stands_below_the_influence_figure() -> None:
    heading = "### Does the estimate match retraining?"
    kept = section(
        page_module.results_markdown(SUMMARIES["everything"]),
        "What was kept and what was thrown away",
    )
    figure = kept.index("stage2/influence_scores.png")
    assert figure < kept.index(heading) < kept.index("stage2/influence_validation.png")
    page = page_module.results_markdown(make_summary())
    text = page.split(heading)[1].split("\n#")[0]
    assert "`--validate_influence 20`" in text
    assert "|" not in text
    assert heading not in page_module.results_markdown(SUMMARIES["stages 2 and 3 not loaded"])


def test_faults() -> None:
    summary = SUMMARIES["everything"]
    page = page_module.results_markdown(summary)
    rows = table_with(page, "dropped by", "wrong captions (100)")
    assert "Full data" not in [row["dropped by"] for row in rows]
    assert rows[0]["wrong captions (100)"] == "61.0 %"
    assert rows[0]["boilerplate captions (50)"] == "68.0 %"
    assert rows[0]["good pairs (4,000)"] == "17.5 %"
    real = page_module.results_markdown(make_summary(3, faults=None))
    assert "Faults caught" not in real


def test_a_fault_that_is_not_in_the_data_has_no_share() -> None:
    counts = {"good": {"in_data": 10, "dropped": 2}, "near_copy": {"in_data": 0, "dropped": 0}}
    page = page_module.results_markdown(make_summary(3, faults={"influencespace": counts}))
    assert table_with(page, "near copies (0)")[0]["near copies (0)"] == "–"


def test_what_happened_to_every_pair_is_a_table() -> None:
    page = page_module.results_markdown(make_summary(3))
    section = page.split("## What happened to every pair")[1].split("## ")[0]
    assert "| train | skipped | broken \\| image | 1,234 |" in section
    total = 1234 + make_summary(3).n_curated
    assert f"| **all** |  |  | **{total:,}** |" in section
    assert "needs stage 3" in page_module.results_markdown(make_summary(3, decisions=None))

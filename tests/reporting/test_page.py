"""The results page: its tables parsed, its links followed, its figures drawn."""

from __future__ import annotations

import dataclasses
import posixpath
import re

import numpy as np
import pytest

import visualize
from reporting import console as console_module
from reporting import evaluation_tables
from reporting import page as page_module
from reporting.figures import gaps as gaps_module
from tests.reporting.test_figures import (
    NASTY,
    make_categorization,
    make_gaps,
    make_trust,
    make_validation,
)
from tests.reporting.test_summary import SUMMARIES, make_pair_quality, make_summary

AGREEMENT = "image-text agreement"


def parsed_tables(markdown: str) -> list[list[list[str]]]:
    """Every table as rows of cells, split at the bars that no backslash escapes."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in markdown.splitlines():
        if line.startswith("|"):
            row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if inside:
                tables[-1].append(row)
            else:
                tables.append([row])
        inside = line.startswith("|")
    return tables


def table_with(markdown: str, *columns: str) -> list[dict[str, str]]:
    """The rows of the first table that has these columns."""
    for header, _, *rows in parsed_tables(markdown):
        if set(columns) <= set(header):
            return [dict(zip(header, row, strict=True)) for row in rows]
    raise AssertionError(f"no table has {columns}")


def section(markdown: str, heading: str) -> str:
    """The text below a heading of the second level."""
    return markdown.split(f"\n## {heading}\n")[1].split("\n## ")[0]


# --- The page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_page_is_whole(name: str) -> None:
    summary = SUMMARIES[name]
    pages = (page_module.results_markdown(summary), evaluation_tables.summary_markdown(summary))
    for page in pages:
        assert not re.search(r"\b(nan|None|inf)\b", page)
        for header, rule, *rows in parsed_tables(page):
            assert all(re.fullmatch(":--|--:", cell) for cell in rule)
            assert {len(row) for row in rows} <= {len(header)}
            assert rows
        assert "\n\n\n" not in page
        for warning in summary.run["warnings"]:
            assert page.index(warning) < page.index("Kept ")


@pytest.mark.parametrize("name", SUMMARIES)
def test_links_lead_to_the_figures(name: str) -> None:
    made = visualize.figures(SUMMARIES[name])
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page_module.results_markdown(SUMMARIES[name]))
    assert sorted(posixpath.normpath(f"results/{link}") for link in links) == sorted(made)


def test_one_seed_shows_no_spread() -> None:
    page = page_module.results_markdown(make_summary(n_seeds=1))
    assert "±" not in section(page, "Performance")


def test_what_was_not_loaded_is_said() -> None:
    page = page_module.results_markdown(SUMMARIES["stages 2 and 3 not loaded"])
    assert "Stage 2 was not run" in section(page, "How good the influence estimate is")
    page = page_module.results_markdown(SUMMARIES["nothing trained"])
    assert "No method was trained." in section(page, "Performance")


def test_performance_table() -> None:
    summary = SUMMARIES["everything"]
    rows = table_with(page_module.results_markdown(summary), "mean recall", "against random")
    assert [row["method"] for row in rows] == [
        "CLIP score †",
        "**InfluenceSpace**",
        "Gradient similarity",
        "negCLIPLoss",
        "Per-pair influence (DataInf)",
        "Random",
        "negCLIPLoss + NormSim",
        "Text sampling (α = 0.5)",
        "Density-based pruning",
        "Diversity",
        "SemDeDup",
        "Coreset (k-centre)",
        "Full data",
        "Encoder's own joint space",
    ]
    own = rows[1]
    assert own["pairs"] == "4,000"
    assert own["mean recall"] == "30.90 ± 0.30"
    assert own["I→T @1"] == "14.6 ± 0.3"  # 30.9 x 0.45 x 1.05
    assert own["against random"] == "+2.70 (10.1)"  # 2.7 / sqrt((0.30^2 + 0.35^2) / 3)
    assert rows[5]["against random"] == "–"


def test_what_a_run_stands_on() -> None:
    page = page_module.results_markdown(SUMMARIES["noisy held-out data"])
    assert page.index("**Kept ") < page.index("## What this run stands on")
    assert page.index("## What this run stands on") < page.index("## Key findings")
    text = section(page, "What this run stands on")
    assert "drawn scenes with known faults. Validation pairs were judged" in text
    assert table_with(text, "split", "wrong captions") == [
        {
            "split": "train",
            "pairs": "5,000",
            "wrong captions": "19.8 %",
            "95 % interval (%)": "17.8 to 21.8",
            "trusted": "–",
            "near copies": "–",
        },
        {
            "split": "validation",
            "pairs": "1,000",
            "wrong captions": "21.0 %",
            "95 % interval (%)": "18.9 to 23.1",
            "trusted": "900",
            "near copies": "20",
        },
        {
            "split": "test",
            "pairs": "5,000",
            "wrong captions": "20.0 %",
            "95 % interval (%)": "18.0 to 22.0",
            "trusted": "4,800",
            "near copies": "–",
        },
    ]
    unknown = page_module.results_markdown(make_summary(3, trust=make_trust(None)))
    row = table_with(section(unknown, "What this run stands on"), "split")[1]
    assert (row["wrong captions"], row["95 % interval (%)"]) == ("–", "–")
    none = section(
        page_module.results_markdown(make_summary(3, trust=None)), "What this run stands on"
    )
    assert "How many captions are wrong was not estimated." in none
    assert "|" not in none


def test_noisy_held_out_data_are_warned_of_on_top() -> None:
    noisy = SUMMARIES["noisy held-out data"]
    for page in (page_module.results_markdown(noisy), evaluation_tables.summary_markdown(noisy)):
        assert page.count("> [!WARNING]") == 3
        assert page.index("underestimate: 20.0 % (18.0 to 22.0)") < page.index("Kept ")
    assert page_module.results_markdown(make_summary(3)).count("> [!WARNING]") == 1
    console = console_module.console_summary(noisy)
    assert "! Recall on all test pairs is an underestimate" in console
    assert "bring a clean target with --val_data." in console
    assert "Wrong captions, estimated: train 19.8 % (17.8 to 21.8), validation 21.0 %" in console
    assert "Wrong captions" not in console_module.console_summary(make_summary(3, trust=None))


def test_recall_on_trusted_pairs_stands_beside_that_on_all() -> None:
    column = "mean recall, trusted test pairs"
    page = page_module.results_markdown(SUMMARIES["noisy held-out data"])
    rows = {row["method"]: row for row in table_with(page, column)}
    assert rows["**InfluenceSpace**"][column] == "38.20 ± 0.30"
    assert rows["**InfluenceSpace**"]["mean recall"] == "30.90 ± 0.30"
    assert rows["Encoder's own joint space"][column] == "14.00"
    assert "each ranked among all" in section(page, "Performance")
    assert column not in page_module.results_markdown(make_summary(3))


def test_the_guard_stands_wherever_influence_does() -> None:
    summary = SUMMARIES["a narrow target and a guard"]
    page, words = page_module.results_markdown(summary), "Influence does not count in the values"
    assert words in section(page, "How good the influence estimate is")
    assert words in page.split("## What this run stands on")[0]
    assert words in console_module.console_summary(summary)
    figure = visualize.figures(summary)["stage3/cells.png"]()
    assert words in figure.get_supxlabel().replace("\n", " ")
    assert "AUC 0.90" in section(page, "What this run stands on")
    assert "narrower than the pool" not in page_module.results_markdown(make_summary(3))


def test_efficiency_table() -> None:
    rows = table_with(page_module.results_markdown(SUMMARIES["everything"]), "data saved")
    own = rows[1]
    assert own["data saved"] == "20.0 %"
    assert own["choosing (s)"] == "14.2"
    assert own["same epochs: steps"] == "1,248 (80.0 %)"
    assert own["same steps: training (s)"] == "8.1 ± 0.2"
    chosen = {row["method"]: row["choosing (s)"] for row in rows}
    assert (chosen["Full data"], chosen["Random"], chosen["Diversity"]) == ("0", "<0.01", "0.01")


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
    assert [row[0] for row in lowest] == [str(c["cluster"]) for c in summary.categorization[:8]]
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
    summary = make_summary(100)
    assert summary.categorization is not None
    page = page_module.results_markdown(summary)
    cells = [cell for cluster in summary.categorization for cell in cluster["cells"]]
    harmful, beneficial = (t for t in parsed_tables(page) if t[0][:2] == ["topic", AGREEMENT])
    for listed, sign in ((harmful, 1), (beneficial, -1)):
        strongest = sorted(cells, key=lambda c: sign * c["influence_percent"])[:10]
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
    clusters = page.split("### The 8 clusters of lowest influence")[1].split("\n|")[0]
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
    assert example["why"].startswith("influence -1.8 and agreement -1.1")


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


def test_gap_table() -> None:
    page = page_module.results_markdown(make_summary())
    rows = table_with(page, "same epochs: female (412)")
    assert rows[1]["same epochs: gap"] == "3.2 (0.7 to 6.3)"
    small = page_module.results_markdown(make_summary(gaps=make_gaps(child=5)))
    assert "child: 5 captions, too few to score" in small
    assert "There is no figure" not in page + small


@pytest.mark.parametrize(
    ("small", "drawn", "words"),
    [
        ({"child", "adult"}, 2, ""),
        ({"child", "adult", "male"}, 1, "There is no figure of the gaps: too few test captions"),
        ({"child", "adult", "male", "female"}, 0, "There are no figures: too few test captions"),
    ],
)
def test_no_empty_figure_of_groups(small: set[str], drawn: int, words: str) -> None:
    gaps = make_gaps(child=5, adult=5)
    for state in (a for ms in gaps.values() for m in ms.values() for a in m.values()):
        for group, facts in state["groups"].items():
            facts["too_small"] = group in small
        if small & {"male", "female"}:
            state["gap"] = None
    summary = make_summary(gaps=gaps)
    made = [path for path in gaps_module.GAP_FIGURES if path in visualize.figures(summary)]
    assert made == list(gaps_module.GAP_FIGURES[:drawn])
    for path in made:
        visualize.figures(summary)[path]().draw_without_rendering()
    text = section(page_module.results_markdown(summary), "Demographic gaps")
    assert text.count("![") == drawn
    assert words in text
    assert ("There is no" in text or "There are no" in text) == bool(words)


def test_reproduction() -> None:
    text = section(page_module.results_markdown(make_summary()), "How to repeat this run")
    assert "```sh\npython main.py --output_dir ./output --visualize\n```" in text
    settings = {row["flag"]: row["value"] for row in table_with(text, "flag")}
    assert settings["`--data_dir`"] == "not set"
    assert settings["`--methods`"].startswith("full influencespace")
    assert {row["stage"]: row["seconds"] for row in table_with(text, "stage")}["total"] == "301.5"
    assert "cpu cores 2" in text
    assert "torch 2.13.0" in text


# --- Tables and the console ---------------------------------------------------------------------


def test_summary_table() -> None:
    frame = evaluation_tables.summary_table(make_summary())
    assert len(frame) == 2 * 13
    row = frame[(frame.comparison == "same_steps") & (frame.method == "influencespace")].iloc[0]
    assert row["mean_recall_mean"] == pytest.approx(31.5)
    assert row["mean_recall_std"] == pytest.approx(0.3)
    assert row["n_pairs"] == 4000
    assert row["relative_training_cost"] == 1.0
    assert row["training_seconds_mean"] == pytest.approx(8.1)
    assert {f"{d}_recall@{k}_mean" for d in ("image_to_text", "text_to_image", "avg")
            for k in (1, 5, 10)} <= set(frame.columns)  # fmt: skip
    assert evaluation_tables.summary_table(make_summary(n_seeds=1))["mean_recall_std"].isna().all()
    assert evaluation_tables.summary_table(SUMMARIES["nothing trained"]).empty


def test_short_table() -> None:
    rows = table_with(
        evaluation_tables.summary_markdown(make_summary()), "average recall@1", "mean recall"
    )
    assert rows[0]["method"] == "CLIP score"
    assert rows[1]["mean recall"] == "30.90 ± 0.30"
    assert rows[-1]["method"] == "Full data"


@pytest.mark.parametrize("name", SUMMARIES)
def test_console_summary(name: str) -> None:
    text = console_module.console_summary(SUMMARIES[name])
    lines = text.splitlines()
    assert len(lines) <= 28
    assert not re.search(r"\b(nan|None)\b", text)
    assert any(line.startswith("Kept ") for line in lines)
    assert "./output/results/results.md" in text


def test_console_summary_stays_short() -> None:
    summary = make_summary(methods=[f"method_{i}" for i in range(30)])
    summary.run["warnings"] = [NASTY] * 30
    lines = console_module.console_summary(summary).splitlines()
    assert len(lines) <= 28
    assert "! and 26 more warnings" in lines


def test_console_summary_says_who_lost() -> None:
    text = console_module.console_summary(make_summary(mean_recall={"influencespace": 25.0}))
    assert "Same number of epochs: InfluenceSpace loses to random by 3.20 points" in text


def test_what_happened_to_every_pair_is_a_table() -> None:
    page = page_module.results_markdown(make_summary(3))
    section = page.split("## What happened to every pair")[1].split("## ")[0]
    assert "| train | skipped | broken \\| image | 1,234 |" in section
    total = 1234 + make_summary(3).n_curated
    assert f"| **all** |  |  | **{total:,}** |" in section
    assert "needs stage 3" in page_module.results_markdown(make_summary(3, decisions=None))

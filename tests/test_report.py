"""The results page: its judgements worked by hand, its tables parsed, its links followed."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import report
from report import Summary
from tests.test_visualize import (
    METHODS,
    NASTY,
    make_categorization,
    make_efficiency,
    make_gaps,
    make_histories,
    make_metrics,
    make_terms,
)


def make_summary(
    n_clusters: int = 20,
    methods: Sequence[str] = METHODS,
    n_seeds: int = 3,
    *,
    nasty: bool = False,
    mean_recall: dict[str, float] | None = None,
    **changes: Any,
) -> Summary:
    """An invented run; `changes` replace its fields."""
    categorization = make_categorization(n_clusters, nasty=nasty)
    by_cluster = {c["cluster"]: c for c in categorization}
    terms = make_terms(n_clusters, nasty=nasty)
    text = NASTY if nasty else "A dog runs over the beach with a red ball."
    n_curated = sum(c["pairs_kept"] for c in categorization)
    n_train = sum(c["size"] for c in categorization)
    dropped = {
        "wrong_caption": 61,
        "boilerplate": 34,
        "near_copy": 18,
        "good": 700,
        "rare group": 9,
    }
    in_data = {
        "wrong_caption": 100,
        "boilerplate": 50,
        "near_copy": 90,
        "good": 4000,
        "rare group": 60,
    }
    fields: dict[str, Any] = {
        "run": {
            "dataset": "synthetic",
            "dataset_description": "drawn scenes with known faults",
            "encoder": "embedded",
            "command": "python main.py --output_dir ./output --visualize",
            "seed": 42,
            "hardware": {"machine": "x86_64", "cpu_cores": 2},
            "packages": {"python": "3.11.9", "torch": "2.13.0"},
            "warnings": ["SYNTHETIC DATA: drawn scenes, no photographs."],
            "seconds": {"embedding": 80.0, "influence": 14.2},
            "total_seconds": 301.5,
            "settings": {"output_dir": "./output", "data_dir": None, "methods": list(methods)},
        },
        "n_train": n_train,
        "n_validation": 1000,
        "n_test_images": 1000,
        "n_test_captions": 5000,
        "skipped": {"broken image": 3, "empty caption": 0},
        "influence": [
            {
                **{k: c[k] for k in ("cluster", "terms", "size", "influence_percent")},
                "stderr_percent": c["stderr_percent"],
                "pairs_evaluated": 5,
                "meaning": "",
            }
            for c in categorization
        ],
        "influence_info": {
            "hessian": "lanczos",
            "damping": 0.0123,
            "validation_loss": 2.3456,
            "reference_steps": 480,
            "eigenvalues": [9.0, 2.0, 1.8, 1.5],
            "eigenvalue_residuals": [1e-6, 2e-6, 9e-5, 1e-5],
            "n_evaluated": 5 * n_clusters,
        },
        "influence_scores": np.array(
            [by_cluster[k]["influence_percent"] / 100 for k in range(n_clusters)]
        ),
        "influence_stderr": np.array(
            [by_cluster[k]["stderr_percent"] / 100 for k in range(n_clusters)]
        ),
        "clusters": [
            {"cluster": k, "size": by_cluster[k]["size"], "terms": terms[k]}
            for k in range(n_clusters)
        ],
        "categorization": categorization,
        "cluster_weights": {
            str(k): 1.0 if by_cluster[k]["pairs_kept"] else 0.0 for k in range(n_clusters)
        },
        "sample_weights": np.linspace(0.5, 1.5, max(n_curated, 1)),
        "n_curated": n_curated,
        "thresholds": {
            "harmful_threshold": -0.001,
            "beneficial_threshold": 0.01,
            "confidence": 0.9,
            "target_size_ratio": 0.8,
            "max_weight": 5.0,
        },
        "metrics": make_metrics(methods, n_seeds, mean_recall),
        "encoder_metrics": dict.fromkeys(make_metrics(("random",))["same_epochs"]["random"], 12.0),
        "efficiency": make_efficiency(methods, n_seeds),
        "gaps": make_gaps(methods),
        "histories": make_histories(methods, n_seeds),
        "faults": {
            m: {
                f: {"in_data": in_data[f], "dropped": dropped[f] if m != "full" else 0}
                for f in in_data
            }
            for m in methods
        },
        "dropped_examples": [
            {
                "caption": text,
                "key": "img_001.jpg#2",
                "clip_score": 0.123,
                "influence_percent": -0.4,
                "cluster": 3,
                "terms": ["dog", "beach"],
                "why": "harmful cluster",
            }
        ],
    }
    return Summary(**(fields | changes))


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


BARE: dict[str, Any] = dict.fromkeys(
    (
        "influence",
        "influence_info",
        "influence_scores",
        "influence_stderr",
        "categorization",
        "cluster_weights",
        "sample_weights",
        "faults",
    )
)
SUMMARIES = {
    "everything": make_summary(100),
    "one seed, one cluster": make_summary(1, n_seeds=1),
    "hostile text": make_summary(20, nasty=True),
    "two methods": make_summary(3, ("random", "full")),
    "influencespace alone": make_summary(3, ("influencespace",)),
    "full data alone": make_summary(3, ("full",)),
    "no random": make_summary(3, ("influencespace", "clip_score_filtering", "full"), 1),
    "stages 2 and 3 not loaded": make_summary(3, **BARE, dropped_examples=[]),
    "nothing trained": make_summary(
        3, metrics={}, efficiency={}, gaps={}, histories={}, encoder_metrics={}
    ),
    "groups too small": make_summary(3, gaps=make_gaps(child=5, adult=4)),
    "nothing skipped, no warning": make_summary(3, skipped={}),
}


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
    v = report.verdict(a, b, std_a, std_b, n)
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
    assert report.against(report.verdict(*arguments), "X") == text


def test_seeds_to_decide() -> None:
    v = report.verdict(30.25, 30.0, 0.3, 0.4, 1)  # half a standard error, two are asked for
    assert report.seeds_to_decide(v, 1) == 16
    assert report.seeds_to_decide(report.verdict(30.0, 30.0, 0.3, 0.4, 1), 1) is None
    assert report.seeds_to_decide(report.verdict(31.0, 30.0, None, None, 1), 1) is None


def test_a_flat_spectrum() -> None:
    assert report.spectrum_flatness([90.0, 2.0, 1.8, 1.5]) == pytest.approx(0.75)
    assert report.spectrum_flatness([90.0, 2.0]) is None
    assert report.spectrum_flatness([]) is None


def test_gap_changes_only_where_the_intervals_do_not_overlap() -> None:
    def gap(low: float, high: float) -> dict[str, Any]:
        return {"gap": (low + high) / 2, "interval_95": [low, high]}

    assert report.gap_change(gap(1, 3), gap(4, 6)) == "wider"
    assert report.gap_change(gap(4, 6), gap(1, 3)) == "narrower"
    assert report.gap_change(gap(1, 4), gap(3, 6)) == ""


def test_signs_that_are_not_known() -> None:
    entries = [
        {"influence_percent": score, "stderr_percent": error}
        for score, error in ((-0.5, 0.2), (0.1, 0.2), (-0.2, 0.2), (1.0, 0.0))
    ]
    assert report.n_undecided_signs(entries) == 2


# --- Words --------------------------------------------------------------------------------------


def test_escaped_text_keeps_to_its_cell() -> None:
    assert report.escape("a|b") == r"a\|b"
    assert report.escape("*x* _y_ snake_case $z$ <i>") == r"\*x\* \_y\_ snake_case \$z\$ \<i\>"
    assert report.escape("two\nlines") == "two lines"
    assert len(report.escape("x" * 500, 100)) == 100


def test_lists_in_words() -> None:
    assert report.enumerate_words(["a"]) == "a"
    assert report.enumerate_words(["a", "b"]) == "a and b"
    assert report.enumerate_words(["a", "b", "c"]) == "a, b and c"


# --- The page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_page_is_whole(name: str) -> None:
    summary = SUMMARIES[name]
    pages = (report.results_markdown(summary), report.summary_markdown(summary))
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
    made = report.figures(SUMMARIES[name])
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", report.results_markdown(SUMMARIES[name]))
    assert sorted(posixpath.normpath(f"results/{link}") for link in links) == sorted(made)


def test_every_figure_of_the_tree_is_made() -> None:
    assert set(report.figures(SUMMARIES["everything"])) == {
        "stage1/cluster_sizes.png",
        "stage2/influence_scores.png",
        "stage3/cluster_categorization.png",
        "stage3/weight_distribution.png",
        "evaluation/comparison_avg_recall@1.png",
        "evaluation/comparison_avg_recall@5.png",
        "evaluation/comparison_avg_recall@10.png",
        "evaluation/fairness_comparison.png",
        "results/performance_comparison.png",
        "results/efficiency_comparison.png",
        "results/training_progress.png",
        "results/demographic_gaps.png",
        "results/performance_efficiency_tradeoff.png",
    }


@pytest.mark.parametrize(
    "name", ["one seed, one cluster", "hostile text", "two methods", "full data alone", "no random"]
)
def test_every_figure_draws(name: str) -> None:
    for path, make in report.figures(SUMMARIES[name]).items():
        figure = make()
        figure.draw_without_rendering()
        assert figure.axes, path


def test_figures_without_their_data_are_left_out() -> None:
    made = report.figures(SUMMARIES["stages 2 and 3 not loaded"])
    assert not any(path.startswith(("stage2", "stage3")) for path in made)
    assert set(report.figures(SUMMARIES["nothing trained"])) == {
        "stage1/cluster_sizes.png",
        "stage2/influence_scores.png",
        "stage3/cluster_categorization.png",
        "stage3/weight_distribution.png",
    }


def test_the_answer_when_influencespace_wins() -> None:
    page = report.results_markdown(make_summary(mean_recall={"influencespace": 33.0}))
    answer = page.split("## Key findings")[0]
    # sqrt((0.30^2 + 0.40^2) / 3) = 0.289
    assert "reaches a mean recall of **33.00 ± 0.30**" in answer
    assert (
        "it beats the best rival of its size, CLIP score (31.60 ± 0.40) by 1.40 points, 4.8"
        " standard errors" in answer
    )
    assert "random selection (28.20 ± 0.35) by 4.80 points" in answer
    assert "the full data reaches 31.40 ± 0.25" in answer
    assert "loses" not in answer


def test_the_answer_when_influencespace_loses_to_random() -> None:
    page = report.results_markdown(make_summary(mean_recall={"influencespace": 25.0}))
    answer = page.split("## Key findings")[0]
    assert "it loses to random selection (28.20 ± 0.35) by 3.20 points" in answer
    findings = section(page, "Key findings")
    assert (
        "InfluenceSpace **loses to** CLIP score, Per-pair influence (DataInf), Random" in findings
    )
    assert "beats" not in findings.splitlines()[2]


def test_the_answer_when_nothing_can_be_told() -> None:
    page = report.results_markdown(make_summary(mean_recall={"influencespace": 31.5}))
    assert (
        "it shows no difference beyond the spread from the best rival of its size,"
        " CLIP score (31.60 ± 0.40)" in page
    )
    assert "cannot be told from CLIP score" in page
    # 0.1 points at 0.289: 0.35 standard errors, two are asked for: 3 (2 / 0.346)^2 = 100
    assert "takes about 100 seeds" in section(page, "Limitations and future work")


def test_one_seed_claims_no_spread() -> None:
    page = report.results_markdown(make_summary(n_seeds=1))
    assert "in the only seed, so the spread is unknown" in page
    assert "from one training seed" in page
    assert "One seed has no spread" in page
    assert "±" not in section(page, "Performance")


def test_a_missing_influencespace_is_said() -> None:
    page = report.results_markdown(SUMMARIES["two methods"])
    assert "InfluenceSpace was not among the methods trained" in page


def test_performance_table() -> None:
    summary = SUMMARIES["everything"]
    rows = table_with(report.results_markdown(summary), "mean recall", "against random")
    assert [row["method"] for row in rows] == [
        "CLIP score †",
        "**InfluenceSpace**",
        "Per-pair influence (DataInf)",
        "Random",
        "Diversity",
        "Coreset (k-centre)",
        "Full data",
        "Encoder's own joint space",
    ]
    own = rows[1]
    assert own["pairs"] == "4,000"
    assert own["mean recall"] == "30.90 ± 0.30"
    assert own["I→T @1"] == "14.6 ± 0.3"  # 30.9 x 0.45 x 1.05
    assert own["against random"] == "+2.70 (10.1)"  # 2.7 / sqrt((0.30^2 + 0.35^2) / 3)
    assert rows[3]["against random"] == "–"


def test_efficiency_table() -> None:
    rows = table_with(report.results_markdown(SUMMARIES["everything"]), "data saved")
    own = rows[1]
    assert own["data saved"] == "20.0 %"
    assert own["choosing (s)"] == "14.2"
    assert own["same epochs: steps"] == "1,248 (80.0 %)"
    assert own["same steps: training (s)"] == "8.1 ± 0.2"


def test_what_was_kept() -> None:
    summary = SUMMARIES["everything"]
    page = section(report.results_markdown(summary), "What was kept and what was thrown away")
    assert "run from 0.50 to 1.50 around a mean of one" in page
    equal = report.results_markdown(make_summary(3, sample_weights=np.ones(60)))
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


def test_few_clusters_are_all_in_one_table() -> None:
    page = report.results_markdown(make_summary(3))
    assert len([t for t in parsed_tables(page) if t[0][:2] == ["cluster", "terms"]]) == 1


def test_faults() -> None:
    summary = SUMMARIES["everything"]
    page = report.results_markdown(summary)
    rows = table_with(page, "dropped by", "wrong captions (100)")
    assert "Full data" not in [row["dropped by"] for row in rows]
    assert rows[0]["wrong captions (100)"] == "61.0 %"
    assert rows[0]["boilerplate captions (50)"] == "68.0 %"
    assert rows[0]["good pairs (4,000)"] == "17.5 %"
    assert "InfluenceSpace dropped 61.0 % of wrong captions" in section(page, "Key findings")
    # 18 of 90 near copies is less than the share dropped of everything
    limits = section(page, "Limitations and future work")
    assert "dropped near copies no more often than a blind choice would" in limits
    real = report.results_markdown(make_summary(3, faults=None))
    assert "Faults caught" not in real
    assert "The data are drawn" not in real


def test_a_fault_that_is_not_in_the_data_has_no_share() -> None:
    counts = {"good": {"in_data": 10, "dropped": 2}, "near_copy": {"in_data": 0, "dropped": 0}}
    page = report.results_markdown(make_summary(3, faults={"influencespace": counts}))
    assert table_with(page, "near copies (0)")[0]["near copies (0)"] == "–"


def test_gaps_are_judged_by_their_intervals() -> None:
    gaps = make_gaps()
    gaps["same_epochs"]["influencespace"]["age"]["gap"]["recall@5"] = {
        "gap": 20.0,
        "interval_95": [15.0, 25.0],
    }
    page = report.results_markdown(make_summary(gaps=gaps))
    findings = section(page, "Key findings")
    assert "The gap is wider than the full data's for age, same epochs: 20.0 (15.0 to 25.0)" in (
        findings
    )
    assert "no change against the full data can be claimed where the intervals overlap" in findings
    rows = table_with(page, "same epochs: female (412)")
    assert rows[1]["same epochs: gap"] == "3.2 (0.7 to 6.3)"
    small = report.results_markdown(make_summary(gaps=make_gaps(child=5)))
    assert "child: 5 captions, too few to score" in small


def test_the_estimate_is_described() -> None:
    summary = make_summary(20)
    text = section(report.results_markdown(summary), "How good the influence estimate is")
    assert "`lanczos`, damping 0.0123" in text
    assert "2.3456 nats, after 480 steps" in text
    assert "The spectrum is flat" in text
    assert "largest residual 1.0e-05 of the first" in text  # 9e-5 / 9
    assert summary.influence is not None
    assert summary.influence_info is not None
    n = sum(e["stderr_percent"] >= abs(e["influence_percent"]) for e in summary.influence)
    assert f"For {n} of 20 clusters" in text
    steep = summary.influence_info | {"eigenvalues": [9.0, 2.0, 0.1, 0.05], "damping": None}
    text = section(
        report.results_markdown(make_summary(influence_info=steep)),
        "How good the influence estimate is",
    )
    assert "flat" not in text
    none = summary.influence_info | {"eigenvalues": [], "eigenvalue_residuals": []}
    assert "eigenvalues" not in report.results_markdown(make_summary(influence_info=none))


def test_the_time_finding_by_hand() -> None:
    # 8.1 - 6.48 = 1.62 s saved a run; 14.2 / 1.62 = 8.8
    findings = section(report.results_markdown(make_summary()), "Key findings")
    assert "took 14.2 s, more than the 1.6 s" in findings
    assert "(9 such runs pay for it)" in findings
    efficiency = make_efficiency()
    efficiency["influencespace"]["curation_seconds"] = 1.0
    findings = section(report.results_markdown(make_summary(efficiency=efficiency)), "Key findings")
    assert "took 1.0 s, less than the 1.6 s" in findings


def test_the_frozen_encoder_is_compared() -> None:
    metrics = dict.fromkeys(SUMMARIES["everything"].encoder_metrics, 27.0)
    page = report.results_markdown(make_summary(encoder_metrics=metrics))
    assert "mean recall, 27.00, is not reached by Coreset (k-centre)" in page
    metrics = dict.fromkeys(metrics, 96.0)
    page = report.results_markdown(make_summary(encoder_metrics=metrics))
    assert "mean recall, 96.00, is not reached by any trained model" in page


def test_categories_follow_the_rule_where_stage_3_was_not_loaded() -> None:
    with_stage_3 = make_summary(100)
    without = make_summary(100, categorization=None)
    drawn = [
        [
            p.get_facecolor()
            for p in report.figures(s)["stage2/influence_scores.png"]().axes[1].patches
        ]
        for s in (with_stage_3, without)
    ]
    assert drawn[0] == drawn[1]


def test_reproduction() -> None:
    text = section(report.results_markdown(make_summary()), "How to repeat this run")
    assert "```sh\npython main.py --output_dir ./output --visualize\n```" in text
    settings = {row["flag"]: row["value"] for row in table_with(text, "flag")}
    assert settings["`--data_dir`"] == "not set"
    assert settings["`--methods`"].startswith("full influencespace")
    assert {row["stage"]: row["seconds"] for row in table_with(text, "stage")}["total"] == "301.5"
    assert "cpu cores 2" in text
    assert "torch 2.13.0" in text


# --- Tables and the console ---------------------------------------------------------------------


def test_summary_table() -> None:
    frame = report.summary_table(make_summary())
    assert len(frame) == 14
    row = frame[(frame.comparison == "same_steps") & (frame.method == "influencespace")].iloc[0]
    assert row["mean_recall_mean"] == pytest.approx(31.5)
    assert row["mean_recall_std"] == pytest.approx(0.3)
    assert row["n_pairs"] == 4000
    assert row["relative_training_cost"] == 1.0
    assert row["training_seconds_mean"] == pytest.approx(8.1)
    assert {f"{d}_recall@{k}_mean" for d in ("image_to_text", "text_to_image", "avg")
            for k in (1, 5, 10)} <= set(frame.columns)  # fmt: skip
    assert report.summary_table(make_summary(n_seeds=1))["mean_recall_std"].isna().all()
    assert report.summary_table(SUMMARIES["nothing trained"]).empty


def test_short_table() -> None:
    rows = table_with(report.summary_markdown(make_summary()), "average recall@1", "mean recall")
    assert rows[0]["method"] == "CLIP score"
    assert rows[1]["mean recall"] == "30.90 ± 0.30"
    assert rows[-1]["method"] == "Full data"


@pytest.mark.parametrize("name", SUMMARIES)
def test_console_summary(name: str) -> None:
    text = report.console_summary(SUMMARIES[name])
    lines = text.splitlines()
    assert len(lines) <= 25
    assert not re.search(r"\b(nan|None)\b", text)
    assert any(line.startswith("Kept ") for line in lines)
    assert "./output/results/results.md" in text


def test_console_summary_stays_short() -> None:
    summary = make_summary(methods=[f"method_{i}" for i in range(30)])
    summary.run["warnings"] = [NASTY] * 30
    lines = report.console_summary(summary).splitlines()
    assert len(lines) <= 25
    assert "! and 26 more warnings" in lines


def test_console_summary_says_who_lost() -> None:
    text = report.console_summary(make_summary(mean_recall={"influencespace": 25.0}))
    assert "Same number of epochs: InfluenceSpace loses to random by 3.20 points" in text

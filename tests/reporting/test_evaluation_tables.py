"""The page on what was trained, and the short tables."""

from __future__ import annotations

import dataclasses

import pytest

import visualize
from reporting import evaluation_tables
from reporting import page as page_module
from reporting.figures import gaps as gaps_module
from tests.reporting.test_figures import make_efficiency, make_gaps
from tests.reporting.test_page import section, table_with
from tests.reporting.test_summary import SUMMARIES, make_summary


def test_one_seed_shows_no_spread() -> None:
    page = page_module.results_markdown(make_summary(n_seeds=1))
    assert "±" not in section(page, "Performance")


def test_performance_table() -> None:
    summary = SUMMARIES["everything"]
    page = section(page_module.results_markdown(summary), "Performance")
    assert "[results_summary.md](results_summary.md)" in page
    rows = table_with(page, "same epochs: mean recall", "same steps: against random")
    assert [row["method"] for row in rows] == [
        "CLIP score",
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
    assert own["same epochs: mean recall"] == "30.90 ± 0.30"
    assert own["same steps: mean recall"] == "31.50 ± 0.30"
    # 2.7 / sqrt((0.30^2 + 0.35^2) / 3)
    assert own["same epochs: against random"] == "+2.70 (10.1)"
    assert rows[5]["same epochs: against random"] == "–"
    assert [row["method"] for row in rows if "†" in row["same epochs: mean recall"]] == [
        "CLIP score"
    ]
    assert rows[-1]["same steps: mean recall"] == "12.00"


def test_recall_on_trusted_pairs_stands_beside_that_on_all() -> None:
    column = "same epochs: trusted test pairs"
    page = page_module.results_markdown(SUMMARIES["noisy held-out data"])
    rows = {row["method"]: row for row in table_with(page, column)}
    assert rows["**InfluenceSpace**"][column] == "38.20 ± 0.30"
    assert rows["**InfluenceSpace**"]["same epochs: mean recall"] == "30.90 ± 0.30"
    assert rows["Encoder's own joint space"][column] == "14.00"
    assert "each ranked among all" in section(page, "Performance")
    assert column not in page_module.results_markdown(make_summary(3))


def test_efficiency_table() -> None:
    page = section(page_module.results_markdown(SUMMARIES["everything"]), "Efficiency")
    assert (
        "Full data: 5,000 pairs (0.0 % saved), steps 1,560 (100.0 %) with the same epochs" in page
    )
    assert (
        "Every other method: 4,000 pairs (20.0 % saved), steps 1,248 (80.0 %) with the same epochs,"
        " 1,560 (100.0 %) with the same steps." in page
    )
    rows = table_with(page, "choosing (s)")
    own = rows[1]
    assert own["choosing (s)"] == "14.2"
    assert own["same steps: training (s)"] == "8.1 ± 0.2"
    chosen = {row["method"]: row["choosing (s)"] for row in rows}
    assert (chosen["Full data"], chosen["Random"], chosen["Diversity"]) == ("0", "<0.01", "0.01")


def test_methods_of_other_sizes_are_told_apart() -> None:
    efficiency = make_efficiency()
    efficiency["influencespace"] |= {"n_pairs": 4100, "data_reduction": 0.18}
    page = page_module.results_markdown(make_summary(efficiency=efficiency))
    assert "InfluenceSpace: 4,100 pairs (18.0 % saved), steps 1,248" in page
    assert "Every other method: 4,000 pairs" in page
    alone = page_module.results_markdown(SUMMARIES["full data alone"])
    assert "Every other method" not in alone
    two = page_module.results_markdown(SUMMARIES["two methods"])
    assert "Random: 4,000 pairs" in two
    assert "Full data: 5,000 pairs" in two


def test_gap_table() -> None:
    page = page_module.results_markdown(make_summary())
    rows = table_with(page, "gender, same epochs", "age, same steps")
    assert rows[1]["gender, same epochs"] == "3.2 (0.7 to 6.3)"
    assert "female: 412 captions" in page
    assert "(../evaluation/demographic_gaps.json)" in page
    small = page_module.results_markdown(make_summary(gaps=make_gaps(child=5)))
    assert "child: 5 captions, too few to score" in small
    assert "There is no figure" not in page + small


def test_signed_gaps_stand_beside_the_gaps() -> None:
    gaps = make_gaps()
    assert "female - male" not in page_module.results_markdown(make_summary(gaps=gaps))
    for methods in gaps.values():
        for attributes in methods.values():
            signed = {"of": ["female", "male"], "gap": -3.25, "interval_95": [-6.0, 0.5]}
            attributes["gender"]["signed"] = {f"recall@{k}": signed for k in (1, 5, 10)}
            attributes["age"]["signed"] = None
    page = page_module.results_markdown(make_summary(gaps=gaps))
    rows = table_with(page, "female - male, same epochs", "female - male, same steps")
    assert rows[0]["female - male, same steps"] == "-3.2 (-6.0 to +0.5)"
    assert "age, same steps" not in rows[0]


def test_what_adding_pairs_would_bring_is_told_where_groups_were_asked() -> None:
    plain = make_summary()
    assert "--fairness" not in page_module.results_markdown(plain)
    told = {
        "weight": 0.5,
        "group": "female",
        "losses": {"female": 2.5, "male": 2.25},
        "adding": {"female": 2.5e-4, "male": -1e-5, "child": None},
    }
    quality = {**(plain.pair_quality or {}), "fairness": told}
    page = page_module.results_markdown(dataclasses.replace(plain, pair_quality=quality))
    assert "about female are served worst (losses in nats: female 2.500; male 2.250)" in page
    assert "with a weight of 0.5." in page
    assert "by whom they are about: female +0.0250; male -0.0010." in page
    idle = {**quality, "fairness": {**told, "weight": 0.0}}
    page = page_module.results_markdown(dataclasses.replace(plain, pair_quality=idle))
    assert "more than all does not count in values: how pairs differ in it could not be" in page


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
    assert rows[1]["I→T @1"] == "14.6 ± 0.3"  # 30.9 x 0.45 x 1.05
    assert rows[-2]["method"] == "Full data"
    assert rows[-1]["method"] == "Encoder's own joint space"
    assert (rows[-1]["T→I @5"], rows[-1]["mean recall"]) == ("12.0", "12.00")

"""The results page: whole, its links followed, and what stands on it where."""

from __future__ import annotations

import posixpath
import re

import pytest

import visualize
from reporting import console as console_module
from reporting import evaluation_tables
from reporting import page as page_module
from tests.reporting.test_figures import (
    make_trust,
)
from tests.reporting.test_summary import BARE, SUMMARIES, make_summary


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
            told = "Kept " if summary.is_curated else "No training pairs were chosen"
            assert page.index(warning) < page.index(told)


@pytest.mark.parametrize("name", SUMMARIES)
def test_links_lead_to_the_figures(name: str) -> None:
    made = visualize.figures(SUMMARIES[name])
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page_module.results_markdown(SUMMARIES[name]))
    assert sorted(posixpath.normpath(f"results/{link}") for link in links) == sorted(made)


def test_what_was_not_loaded_is_said() -> None:
    page = page_module.results_markdown(SUMMARIES["stages 2 and 3 not loaded"])
    assert "Stage 2 was not run" in section(page, "How good the influence estimate is")
    bare = make_summary(3, **BARE, dropped_examples=[], metrics={}, histories={})
    page = page_module.results_markdown(bare)
    assert page.startswith("# InfluenceSpace: results\n\n> [!WARNING]")
    assert "\n\n**No training pairs were chosen: stage 3 was not run or loaded.**\n\n" in page
    kept = section(page, "What was kept and what was thrown away")
    assert kept.strip() == "Stage 3 was not run or loaded."
    assert "Look at the pairs" not in page
    page = page_module.results_markdown(SUMMARIES["nothing trained"])
    assert "No method was trained." in section(page, "Performance")
    assert "run again with the same flags, without `--methods none`" in page
    assert "Nothing was trained on them" in page.partition("\n## ")[0]
    assert not {"## Efficiency", "## Demographic gaps"} & {*page.splitlines()}
    printed = console_module.console_summary(SUMMARIES["nothing trained"])
    assert "--load_saved, without --methods none, does that." in printed
    assert "Nothing was trained" not in console_module.console_summary(SUMMARIES["everything"])


def test_captions_that_were_cut_off_are_told_with_the_data() -> None:
    sentence = "--encoder_model some/clip reads 77 tokens: 3 of 90 captions are longer"
    page = page_module.results_markdown(make_summary(9, cut_off=sentence))
    place = "What this run stands on"
    assert f"\n\n{sentence}.\n\n" in section(page, place)
    assert "tokens" not in section(page_module.results_markdown(make_summary(9)), place)


def test_what_a_run_stands_on() -> None:
    page = page_module.results_markdown(SUMMARIES["noisy held-out data"])
    assert page.index("**Kept ") < page.index("## What this run stands on")
    assert page.index("## What this run stands on") < page.index("## Key findings")
    text = section(page, "What this run stands on")
    assert page.count("drawn scenes with known faults.") == 1
    assert "**synthetic**: drawn scenes with known faults. Of 30 captions of the source" in text
    assert "Encoder: **embedded**." in text
    assert "\n\n- columns image, caption (title not used)\n\nValidation pairs were judged" in text
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
    assert "1,000 test images with 5,000 captions." in none
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


def test_reproduction() -> None:
    text = section(page_module.results_markdown(make_summary()), "How to repeat this run")
    assert "```sh\npython main.py --output_dir ./output --visualize\n```" in text
    settings = {row["flag"]: row["value"] for row in table_with(text, "flag")}
    assert settings.keys() == {"`--visualize`", "`--methods`"}  # the others have their defaults
    assert settings["`--methods`"].startswith("full influencespace")
    assert "all are in [run.json](../run.json)" in text
    assert "computed: embedding 80.0, influence 14.2. This run took 301.5." in text
    run = make_summary().run | {"seconds": {"embedding": 80.0, "influence": 0.0, "semdedup": 1.0}}
    fewer = page_module.results_markdown(make_summary(run=run))  # of no other stage or of a rival
    assert "when it was computed: embedding 80.0. This run" in fewer
    assert "cpu cores 2" in text
    assert "torch 2.13.0" in text


def test_settings_at_their_defaults_are_not_listed() -> None:
    run = make_summary(3).run
    plain = page_module.results_markdown(make_summary(3, run=run | {"changed_settings": {}}))
    text = section(plain, "How to repeat this run")
    assert "Every setting has its default; all are in [run.json](../run.json)." in text
    assert "|" not in text
    del run["changed_settings"]
    of_old = table_with(page_module.results_markdown(make_summary(3, run=run)), "flag")
    assert {"flag": "`--data_dir`", "value": "not set"} in of_old


def test_the_report_is_linked_below_the_answer_unless_there_is_none() -> None:
    link, summary = "Look at the pairs: [report.html](report.html).", make_summary(3)
    page = page_module.results_markdown(summary)
    assert page.index("**Kept ") < page.index(link) < page.index("\n## ")
    settings = summary.run["settings"] | {"no_report": True}
    without = make_summary(3, run=summary.run | {"settings": settings})
    assert "report.html" not in page_module.results_markdown(without)


def test_another_run_that_was_compared_stands_below_the_findings() -> None:
    page = page_module.results_markdown(make_summary(3, changes="## Changes against out\n\nNone."))
    headings = re.findall("^## .*$", page, re.MULTILINE)
    place = headings.index("## Changes against out")
    assert headings[place - 1 : place + 2 : 2] == [
        "## Key findings",
        "## What happened to every pair",
    ]


def test_the_page_is_short() -> None:
    """Nothing is listed without end, and no paragraph stands in two places."""
    page = page_module.results_markdown(SUMMARIES["everything"])
    assert len(page.splitlines()) < 340
    texts = [t for t in page.split("\n\n") if not t.startswith(("|", "#", "!"))]
    sentences = [s for t in texts for s in re.split(r"(?<=[.:]) |\n", t) if len(s) > 40]
    assert len(sentences) > 60
    assert len(set(sentences)) == len(sentences)

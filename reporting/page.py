"""The results page, from a run's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reporting.curation_tables import decision_table, kept_section
from reporting.estimate import estimate
from reporting.evaluation_tables import efficiency_section, gaps_section, performance_section
from reporting.findings import answer, key_findings, limitations
from reporting.standing import standing_section, warnings_on_top
from reporting.summary import Summary, image_links
from reporting.words import bullets, count, escape, paragraphs, seconds_text, setting_text, table


def results_markdown(summary: Summary) -> str:
    """The results page, `results/results.md`."""
    sections = (
        "# InfluenceSpace: results",
        warnings_on_top(summary),
        answer(summary),
        "## What this run stands on",
        standing_section(summary),
        "## Key findings",
        bullets(key_findings(summary)),
        "## Data",
        _data(summary),
        "## What happened to every pair",
        decision_table(summary),
        "## What was kept and what was thrown away",
        kept_section(summary),
        "## Performance",
        performance_section(summary),
        "## Efficiency",
        efficiency_section(summary),
        "## Demographic gaps",
        gaps_section(summary),
        "## How good the influence estimate is",
        bullets(estimate(summary)) or "Stage 2 was not run or loaded.",
        "## Limitations and future work",
        bullets(limitations(summary)),
        "## How to repeat this run",
        _reproduction(summary),
    )
    return paragraphs(sections) + "\n"


def _data(summary: Summary) -> str:
    run = summary.run
    reasons = [f"{n:,} × {escape(reason)}" for reason, n in summary.skipped.items() if n]
    skipped = (
        f"Skipped and listed in `stage1/skipped.csv`: {', '.join(reasons)}."
        if reasons
        else ("" if summary.account else "No pair that was read was skipped.")
    )
    description = escape(run["dataset_description"], 1000).rstrip(".")
    return paragraphs(
        (
            f"**{escape(run['dataset'])}**: {description}. Encoder: **{escape(run['encoder'])}**.",
            f"{summary.n_train:,} training and {summary.n_validation:,} validation pairs;"
            f" {summary.n_test_images:,} test images with {summary.n_test_captions:,} captions."
            f" No image is in two of the three. {skipped}".rstrip(),
            f"{escape(summary.account, 1000)}." if summary.account else "",
            bullets([escape(note, 1000) for note in summary.notes]),
            f"{escape(summary.cut_off, 1000)}." if summary.cut_off else "",
            f"The training pairs form {count(len(summary.clusters), 'cluster')} by topic.",
            image_links(summary, "stage1/cluster_sizes.png"),
        )
    )


def _reproduction(summary: Summary) -> str:
    run = summary.run
    seconds = {**run["seconds"], "total": run["total_seconds"]}
    return paragraphs(
        (
            f"```sh\n{run['command']}\n```",
            table(["stage", "seconds"], [[escape(k), seconds_text(v)] for k, v in seconds.items()]),
            "A stage that was reused shows the time it took when it was computed; the total is this"
            " run's.",
            f"Seed {run['seed']}. Hardware: {_pairs(run['hardware'])}. Versions:"
            f" {_pairs(run['packages'])}.",
            "Settings:",
            table(
                ["flag", "value"],
                [[f"`--{k}`", escape(setting_text(v), 400)] for k, v in run["settings"].items()],
                2,
            ),
        )
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{escape(str(k).replace('_', ' '))} {escape(v)}" for k, v in values.items())

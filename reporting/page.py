"""The results page, from a run's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baselines import METHODS
from reporting.curation_tables import decision_table, kept_section
from reporting.estimate import estimate
from reporting.evaluation_tables import efficiency_section, gaps_section, performance_section
from reporting.findings import answer, key_findings, limitations
from reporting.how_much import how_much_section
from reporting.standing import standing_section, warnings_on_top
from reporting.summary import Summary
from reporting.words import bullets, escape, paragraphs, seconds_text, setting_text, table


def results_markdown(summary: Summary) -> str:
    """The results page, `results/results.md`."""
    sections = (
        "# InfluenceSpace: results",
        warnings_on_top(summary),
        answer(summary),
        _report_link(summary),
        *how_much_section(summary),
        "## What this run stands on",
        standing_section(summary),
        "## Key findings",
        bullets(key_findings(summary)),
        summary.changes,
        "## What happened to every pair",
        decision_table(summary),
        "## What was kept and what was thrown away",
        kept_section(summary) or "Stage 3 was not run or loaded.",
        *_measured(summary),
        "## How good the influence estimate is",
        bullets(estimate(summary)) or "Stage 2 was not run or loaded.",
        "## Limitations and future work",
        bullets(limitations(summary)),
        "## How to repeat this run",
        _reproduction(summary),
    )
    return paragraphs(sections) + "\n"


def _measured(summary: Summary) -> tuple[str, ...]:
    """What the methods are worth and cost; one section that says what is missing without them."""
    performance = ("## Performance", performance_section(summary))
    if not summary.metrics:
        return performance
    efficiency = ("## Efficiency", efficiency_section(summary))
    return (*performance, *efficiency, "## Demographic gaps", gaps_section(summary))


def _report_link(summary: Summary) -> str:
    """Where the pairs can be looked at; empty where no report is written."""
    if summary.run["settings"].get("no_report", False):
        return ""
    label = "Look at the pairs" if summary.is_curated else "The same in one file"
    return f"{label}: [report.html](report.html)."


def _reproduction(summary: Summary) -> str:
    run = summary.run
    hardware = {k: v for k, v in run["hardware"].items() if k not in run["packages"]}
    seconds = ", ".join(  # those of the rivals stand under Efficiency
        f"{escape(k)} {seconds_text(v)}"
        for k, v in run["seconds"].items()
        if v and k not in METHODS
    )
    return paragraphs(
        (
            f"```sh\n{run['command']}\n```",
            f"Seconds of each stage, when it was computed: {seconds}. This run took"
            f" {seconds_text(run['total_seconds'])}.",
            f"Seed {run['seed']}. Hardware: {_pairs(hardware)}. Versions:"
            f" {_pairs(run['packages'])}.",
            _settings(run.get("changed_settings", run["settings"])),
        )
    )


def _settings(changed: Mapping[str, Any]) -> str:
    """The settings that differ from their defaults."""
    if not changed:
        return "Every setting has its default; all are in [run.json](../run.json)."
    rows = [[f"`--{k}`", escape(setting_text(v), 400)] for k, v in changed.items()]
    return (
        "Settings that differ from their defaults; all are in [run.json](../run.json).\n\n"
        + table(["flag", "value"], rows, 2)
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{escape(str(k).replace('_', ' '))} {escape(v)}" for k, v in values.items())

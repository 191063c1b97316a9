"""The results page on what was trained: recall, costs, demographic gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from reporting.figures.gaps import GAP_FIGURES
from reporting.kept import kept_sentence
from reporting.standing import warnings_on_top
from reporting.summary import (
    GAP_RECALL_AT,
    RECALL_AT,
    Summary,
    gap_text,
    image_links,
    trusted_recall,
)
from reporting.verdicts import versus_random
from reporting.words import (
    COMPARISON_LABELS,
    COMPARISON_SHORT,
    ENCODER,
    escape,
    mean_and_spread,
    method_label,
    method_name,
    paragraphs,
    quantity,
    seconds_and_spread,
    seconds_text,
    share,
    table,
)

DIRECTIONS = {"image_to_text": "I→T", "text_to_image": "T→I"}


def performance_section(summary: Summary) -> str:
    """Recall of every method, with figures."""
    if not summary.metrics:
        return "No method was trained."
    averages = (f"evaluation/comparison_avg_recall@{k}.png" for k in RECALL_AT)
    return paragraphs(
        (
            "Recall in percent of the queries, image to text (I→T: any of the image's captions is"
            " found) and text to image (T→I)."
            + (" ± is the standard deviation over training seeds." if summary.n_seeds > 1 else "")
            + (
                " Trusted test pairs: captions that likely belong to their images, and images with"
                " such a caption, each ranked among all."
                if summary.shows_trusted
                else ""
            )
            + " Against random: difference of the mean recalls, in brackets its size in standard"
            " errors. † marks the best rival of the same size.",
            image_links(summary, "results/performance_comparison.png"),
            *(
                f"### {COMPARISON_LABELS[c]}\n\n{_recall_table(summary, c)}"
                for c in summary.metrics
            ),
            image_links(summary, *averages, "results/training_progress.png"),
        )
    )


def _recall_table(summary: Summary, comparison: str) -> str:
    metrics = summary.metrics[comparison]
    digits = {f"{d}_recall@{k}": 1 for d in DIRECTIONS for k in RECALL_AT} | {"mean_recall": 2}
    header = ["method", "pairs"]
    header += [f"{label} @{k}" for label in DIRECTIONS.values() for k in RECALL_AT]
    header += ["mean recall"]
    header += ["mean recall, trusted test pairs"] if summary.shows_trusted else []
    header += ["against random"]
    rows = []
    for method in summary.table_order(comparison):
        mark = " †" if method == summary.best_rival(comparison) else ""
        n_pairs = f"{summary.efficiency[method]['n_pairs']:,}"
        cells = [mean_and_spread(metrics[method][c], n) for c, n in digits.items()]
        cells += [trusted_recall(summary, comparison, method)] if summary.shows_trusted else []
        versus = versus_random(summary, comparison, method)
        rows.append([method_name(method) + mark, n_pairs, *cells, versus])
    encoder = [quantity(summary.encoder_metrics.get(c), n) for c, n in digits.items()]
    if summary.shows_trusted:
        encoder.append(quantity((summary.trusted_encoder_metrics or {}).get("mean_recall")))
    rows.append([method_label(ENCODER), "–", *encoder, "–"])
    return table(header, rows)


def efficiency_section(summary: Summary) -> str:
    """What every method costs, with figures."""
    if not summary.efficiency:
        return ""
    header = ["method", "pairs", "data saved", "choosing (s)"]
    header += [
        f"{short}: {what}"
        for short in COMPARISON_SHORT.values()
        for what in ("steps", "training (s)")
    ]
    rows = []
    for method, e in summary.efficiency.items():
        row = [method_name(method), f"{e['n_pairs']:,}", share(e["data_reduction"], 1)]
        row.append(seconds_text(e["curation_seconds"]))
        for comparison in COMPARISON_LABELS:
            cost = e[comparison]
            row.append(f"{cost['n_steps']:,} ({share(cost['relative_training_cost'], 1)})")
            row.append(seconds_and_spread(cost["training_seconds"]))
        rows.append(row)
    explanation = (
        "Steps in brackets: of the full data's. Choosing does not include embedding the pairs,"
        " which every method needs; per-pair influence and gradient similarity are given the"
        " reference model, whose training counts as InfluenceSpace's. Training is one run on this"
        " machine."
    )
    paths = ("results/efficiency_comparison.png", "results/performance_efficiency_tradeoff.png")
    return paragraphs((explanation, table(header, rows), image_links(summary, *paths)))


def gaps_section(summary: Summary) -> str:
    """Recall by demographic group, and the gaps."""
    if not summary.attributes:
        return "Not measured."
    parts = [
        f"Text-to-image recall@{GAP_RECALL_AT} over test captions that speak of one group alone, by"
        " a word list; in brackets the 95 % interval of the gap from a bootstrap over test images."
        " A gap is never negative, so an interval near zero is compatible with no gap."
    ]
    for attribute, groups in summary.attributes.items():
        parts.append(f"### {escape(attribute).capitalize()}")
        small = [
            f"{escape(g)}: {s['n_queries']:,} captions, too few to score."
            for g, s in groups.items()
            if s["too_small"]
        ]
        parts += [" ".join(small), _gap_table(summary, attribute, groups)]
    if summary.n_scored_groups == 0:
        parts.append("There are no figures: too few test captions speak of any group.")
    elif summary.n_scored_groups == 1:
        parts.append(
            "There is no figure of the gaps: too few test captions speak of a second group of any"
            " attribute."
        )
    return paragraphs([*parts, image_links(summary, *GAP_FIGURES)])


def _gap_table(summary: Summary, attribute: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    scored = [g for g, state in groups.items() if not state["too_small"]]
    if not scored:
        return ""
    header = ["method"]
    for comparison in summary.gaps:
        short = COMPARISON_SHORT[comparison]
        header += [f"{short}: {escape(g)} ({groups[g]['n_queries']:,})" for g in scored]
        header.append(f"{short}: gap")
    rows = []
    for method in next(iter(summary.gaps.values())):
        row = [method_name(method)]
        for methods in summary.gaps.values():
            state = methods[method][attribute]
            key = f"text_to_image_recall@{GAP_RECALL_AT}"
            row += [f"{state['groups'][g][key]:.1f}" for g in scored]
            row.append(gap_text(state))
        rows.append(row)
    return table(header, rows)


def summary_table(summary: Summary) -> pd.DataFrame:
    """One row a comparison and method: pairs, costs, mean and standard deviation of all metrics."""
    rows = []
    for comparison, methods in summary.metrics.items():
        for method, metrics in methods.items():
            efficiency = summary.efficiency[method]
            cost = efficiency[comparison]
            row = {
                "comparison": comparison,
                "method": method,
                "n_pairs": efficiency["n_pairs"],
                "data_reduction": efficiency["data_reduction"],
                "n_steps": cost["n_steps"],
                "relative_training_cost": cost["relative_training_cost"],
                "curation_seconds": efficiency["curation_seconds"],
            }
            cells = {"training_seconds": cost["training_seconds"], **metrics}
            for name, cell in cells.items():
                row |= {f"{name}_mean": cell["mean"], f"{name}_std": cell["std"]}
            rows.append(row)
    return pd.DataFrame(rows)


def summary_markdown(summary: Summary) -> str:
    """The short table, `results/results_summary.md`."""
    columns = [*(f"avg_recall@{k}" for k in RECALL_AT), "mean_recall"]
    header = ["method", "pairs", *(c.replace("_", " ").replace("avg", "average") for c in columns)]
    parts = ["# InfluenceSpace: summary", warnings_on_top(summary), kept_sentence(summary)]
    for comparison, methods in summary.metrics.items():
        rows = [
            [
                method_name(method),
                f"{summary.efficiency[method]['n_pairs']:,}",
                *(mean_and_spread(methods[method][c], 2) for c in columns),
            ]
            for method in summary.table_order(comparison)
        ]
        parts.append(f"## {COMPARISON_LABELS[comparison]}\n\n{table(header, rows)}")
    parts.append("Recall in percent. Everything else: [results.md](results.md).")
    return paragraphs(parts) + "\n"

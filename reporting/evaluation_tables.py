"""The results page on what was trained: recall, costs, demographic gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from reporting.figures.gaps import GAP_FIGURES
from reporting.how_much import share_part
from reporting.kept import kept_sentence
from reporting.standing import warnings_on_top
from reporting.summary import (
    GAP_RECALL_AT,
    RECALL_AT,
    Summary,
    gap_text,
    image_links,
    recall,
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
    names,
    paragraphs,
    quantity,
    seconds_and_spread,
    seconds_text,
    share,
    table,
)

NOT_TRAINED = (
    "No method was trained. Recall, costs and demographic gaps are therefore left out here and as"
    " figures and tables. Where they are wanted, run again with the same flags, without"
    " `--methods none` and with `--load_saved`: what is saved is reused."
)
MORE_PAIRS = 100  # that the effect of adding pairs is told for
DIRECTIONS = {"image_to_text": "I→T", "text_to_image": "T→I"}


def performance_section(summary: Summary) -> str:
    """Mean recall of every method, with figures."""
    if not summary.metrics:
        return NOT_TRAINED
    averages = (f"evaluation/comparison_avg_recall@{k}.png" for k in RECALL_AT)
    return paragraphs(
        (
            "Mean recall as above; at 1, 5 and 10 and by direction:"
            " [results_summary.md](results_summary.md). Against random: difference, in brackets its"
            " size in standard errors. † marks the best rival of the same size."
            + (
                " Trusted test pairs: captions that likely belong to their images, and images with"
                " such a caption, each ranked among all."
                if summary.shows_trusted
                else ""
            ),
            _recall_table(summary),
            image_links(summary, "results/performance_comparison.png"),
            image_links(summary, *averages, "results/training_progress.png"),
        )
    )


def _recall_table(summary: Summary) -> str:
    """One row a method, by its recall in the first comparison; the comparisons side by side."""
    header = ["method", "pairs"]
    for comparison in summary.metrics:
        short = COMPARISON_SHORT[comparison]
        header += [f"{short}: mean recall"]
        header += [f"{short}: trusted test pairs"] if summary.shows_trusted else []
        header += [f"{short}: against random"]
    rows = []
    for method in summary.table_order(next(iter(summary.metrics))):
        row = [method_name(method), f"{summary.efficiency[method]['n_pairs']:,}"]
        for comparison in summary.metrics:
            mark = " †" if method == summary.best_rival(comparison) else ""
            row.append(recall(summary, comparison, method) + mark)
            row += [trusted_recall(summary, comparison, method)] if summary.shows_trusted else []
            row.append(versus_random(summary, comparison, method))
        rows.append(row)
    encoder = [quantity(summary.encoder_metrics.get("mean_recall"))]
    if summary.shows_trusted:
        encoder.append(quantity((summary.trusted_encoder_metrics or {}).get("mean_recall")))
    encoder.append("–")
    rows.append([method_label(ENCODER), "–", *(encoder * len(summary.metrics))])
    return table(header, rows)


def efficiency_section(summary: Summary) -> str:
    """What every method costs, with figures."""
    if not summary.efficiency:
        return ""
    header = ["method", "choosing (s)"]
    header += [f"{short}: training (s)" for short in COMPARISON_SHORT.values()]
    rows = [
        [
            method_name(method),
            seconds_text(e["curation_seconds"]),
            *(
                seconds_and_spread(e[comparison]["training_seconds"])
                for comparison in COMPARISON_LABELS
            ),
        ]
        for method, e in summary.efficiency.items()
    ]
    explanation = (
        "Choosing leaves out the embedding, which every method needs, and for per-pair influence"
        " and gradient similarity the reference model, whose training counts as InfluenceSpace's."
        " Training: one run on this machine."
    )
    paths = ("results/efficiency_comparison.png", "results/performance_efficiency_tradeoff.png")
    return paragraphs(
        (_steps(summary), explanation, table(header, rows), image_links(summary, *paths))
    )


def _steps(summary: Summary) -> str:
    """What the methods train on and how long, those that do the same in one clause."""
    alike: dict[str, list[str]] = {}
    for method, e in summary.efficiency.items():
        steps = ", ".join(
            f"{e[c]['n_steps']:,} ({share(e[c]['relative_training_cost'], 1)}) with the {short}"
            for c, short in COMPARISON_SHORT.items()
        )
        size = f"{e['n_pairs']:,} pairs ({share(e['data_reduction'], 1)} saved)"
        alike.setdefault(f"{size}, steps {steps}", []).append(method)
    most = max(alike, key=lambda text: len(alike[text]))
    others = "Every other method" if len(alike) > 1 and len(alike[most]) > 1 else names(alike[most])
    return " ".join(
        f"{others if text == most else names(methods)}: {text}."
        for text, methods in sorted(alike.items(), key=lambda item: item[0] == most)
    )


def gaps_section(summary: Summary) -> str:
    """The gaps in recall between demographic groups."""
    told = _fairness_text(summary)
    if not summary.attributes:
        return paragraphs(["Not measured.", told])
    parts = [
        f"Gap in text-to-image recall@{GAP_RECALL_AT} between test captions that speak of one group"
        " alone, by a word list; in brackets its 95 % interval from a bootstrap over test images. A"
        " gap is never negative, so an interval near zero is compatible with no gap. Each group's"
        " recall: [demographic_gaps.json](../evaluation/demographic_gaps.json).",
        _group_sizes(summary),
        _gap_table(summary, "gap"),
        _gap_table(summary, "signed"),
        told,
    ]
    if summary.n_scored_groups == 0:
        parts.append("There are no figures: too few test captions speak of any group.")
    elif summary.n_scored_groups == 1:
        parts.append(
            "There is no figure of the gaps: too few test captions speak of a second group of any"
            " attribute."
        )
    return paragraphs([*parts, image_links(summary, *GAP_FIGURES)])


def _group_sizes(summary: Summary) -> str:
    """How many test captions speak of each group."""
    sentences = []
    for attribute, groups in summary.attributes.items():
        sizes = [
            f"{escape(group)}: {state['n_queries']:,} captions"
            + (", too few to score" if state["too_small"] else "")
            for group, state in groups.items()
        ]
        sentences.append(f"{escape(attribute).capitalize()} ({'; '.join(sizes)}).")
    return " ".join(sentences)


def _fairness_text(summary: Summary) -> str:
    """Which group was served worst and what more pairs would bring it; empty where not asked."""
    told = (summary.pair_quality or {}).get("fairness")
    if not told:
        return ""
    losses = "; ".join(f"{escape(g)} {loss:.3f}" for g, loss in told["losses"].items())
    worst = escape(told["group"])
    gains = [
        f"{escape(group)} {MORE_PAIRS * gain:+.4f}"
        for group, gain in told["adding"].items()
        if gain is not None
    ]
    return (
        f"Groups were asked apart (`--fairness`): held-out pairs about {worst} are served worst"
        f" (losses in nats: {losses}), and what helps them more than all "
        + (
            f"counts in values with a weight of {told['weight']:g}."
            if told["weight"]
            else "does not count in values: how pairs differ in it could not be inferred."
        )
        + (
            f" What adding would bring: nats by which {MORE_PAIRS} more right pairs like those that"
            f" are there lower the loss of {worst}, to first order, by whom they are about:"
            f" {'; '.join(gains)}."
            if gains
            else ""
        )
    )


def _signed_text(state: Mapping[str, Any]) -> str:
    """An attribute's signed gap with its interval."""
    signed = state["signed"][f"recall@{GAP_RECALL_AT}"]
    low, high = signed["interval_95"]
    return f"{signed['gap']:+.1f} ({low:+.1f} to {high:+.1f})"


def _gap_table(summary: Summary, kind: str) -> str:
    """One row a method, the attributes that have a gap side by side.

    Args:
        summary: with the gaps.
        kind: `gap`, or `signed`, which results of earlier runs have not.
    """
    measured = [
        attribute
        for attribute, groups in summary.attributes.items()
        if sum(not state["too_small"] for state in groups.values()) > 1
    ]
    first = next(iter(summary.gaps.values()))
    if kind == "signed":
        signed = next(iter(first.values()))
        measured = [a for a in measured if signed[a].get("signed")]
    if not measured:
        return ""
    text, of = gap_text, {a: escape(a) for a in measured}
    if kind == "signed":
        text = _signed_text
        for a in measured:
            one, other = signed[a]["signed"][f"recall@{GAP_RECALL_AT}"]["of"]
            of[a] = f"{escape(one)} - {escape(other)}"
    header = ["method"]
    header += [f"{of[a]}, {COMPARISON_SHORT[c]}" for a in measured for c in summary.gaps]
    rows = [
        [
            method_name(method),
            *(text(methods[method][a]) for a in measured for methods in summary.gaps.values()),
        ]
        for method in first
    ]
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
    """The tables of recall by direction, `results/results_summary.md`."""
    columns = {
        f"{d}_recall@{k}": f"{label} @{k}" for d, label in DIRECTIONS.items() for k in RECALL_AT
    }
    averages = [*(f"avg_recall@{k}" for k in RECALL_AT), "mean_recall"]
    header = ["method", "pairs", *columns.values()]
    header += [c.replace("_", " ").replace("avg", "average") for c in averages]
    parts = ["# InfluenceSpace: summary", warnings_on_top(summary), kept_sentence(summary)]
    parts.append(share_part(summary))
    for comparison, methods in summary.metrics.items():
        rows = [
            [
                method_name(method),
                f"{summary.efficiency[method]['n_pairs']:,}",
                *(mean_and_spread(methods[method][c], 1) for c in columns),
                *(mean_and_spread(methods[method][c], 2) for c in averages),
            ]
            for method in summary.table_order(comparison)
        ]
        encoder = [quantity(summary.encoder_metrics.get(c), 1) for c in columns]
        encoder += [quantity(summary.encoder_metrics.get(c)) for c in averages]
        rows.append([method_label(ENCODER), "–", *encoder])
        parts.append(f"## {COMPARISON_LABELS[comparison]}\n\n{table(header, rows)}")
    parts.append(
        NOT_TRAINED
        if not summary.metrics
        else "Recall in percent of the queries, image to text (I→T: any of the image's captions is"
        " found), text to image (T→I) and their average."
    )
    parts[-1] += " Everything else: [results.md](results.md)."
    return paragraphs(parts) + "\n"

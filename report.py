"""The results page, its tables and its figures, from a run's own numbers.

Every sentence that judges is chosen by numbers: two methods differ where the difference of their
means exceeds its standard error over training seeds, se = sqrt((s_a^2 + s_b^2) / n), and from
twice that on without a "narrowly".
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import visualize
from visualize import (
    CATEGORIES,
    COMPARISON_LABELS,
    ENCODER,
    FULL,
    INFLUENCESPACE,
    count,
    mean_and_spread,
    method_label,
    shorten,
)

RANDOM = "random"
RECALL_AT = (1, 5, 10)
GAP_RECALL_AT = 5  # the recall whose gaps are shown; evaluation/demographic_gaps.json has all
DIRECTIONS = {"image_to_text": "I→T", "text_to_image": "T→I"}
N_LISTED = 8  # clusters listed at either end
FLAT_SPECTRUM = 0.5  # last over second eigenvalue above which low rank explains little
CLEAR = 2.0  # standard errors from which a difference is more than narrow
MAX_CONSOLE_WARNINGS = 4
MAX_CONSOLE_METHODS = 10
MAX_USEFUL_SEEDS = 1000

COMPARISON_SHORT = {"same_epochs": "same epochs", "same_steps": "same steps"}
FAULT_LABELS = {
    "wrong_caption": "wrong captions",
    "boilerplate": "boilerplate captions",
    "near_copy": "near copies",
    "rare group": "the rare group",
    "good": "good pairs",
}

Cell = Mapping[str, Any]  # {"mean": ..., "std": ... or None}


@dataclass(frozen=True)
class Summary:
    """Everything the results page tells. A part is None where its stage was not loaded."""

    run: dict[str, Any]  # run.json
    n_train: int
    n_validation: int
    n_test_images: int
    n_test_captions: int
    skipped: dict[str, int]  # reason -> pairs
    influence: list[dict[str, Any]] | None  # one entry a cluster, most harmful first
    influence_info: dict[str, Any] | None
    influence_scores: np.ndarray | None  # (K,) relative change of the validation loss
    influence_stderr: np.ndarray | None  # (K,)
    clusters: list[dict[str, Any]]
    categorization: list[dict[str, Any]] | None
    cluster_weights: dict[str, float] | None
    sample_weights: np.ndarray | None  # (m,)
    n_curated: int
    thresholds: dict[str, float]
    metrics: dict[str, dict[str, dict[str, Any]]]  # comparison -> method -> metric -> mean, std
    encoder_metrics: dict[str, float]
    efficiency: dict[str, dict[str, Any]]
    gaps: dict[str, Any]  # comparison -> method -> attribute
    histories: dict[str, list[dict[str, Any]]]  # method -> one loss history a seed
    faults: dict[str, dict[str, Any]] | None  # method -> fault -> in_data, dropped
    dropped_examples: list[dict[str, Any]]
    contact_sheets: tuple[str, ...] = ()  # their paths in the tree, where they were drawn

    @property
    def n_seeds(self) -> int:
        """Training repeats of every method."""
        return max((len(runs) for runs in self.histories.values()), default=1)

    def mean_recall(self, comparison: str, method: str) -> Cell:
        """A method's mean recall: both directions, at 1, 5 and 10."""
        cell: Cell = self.metrics[comparison][method]["mean_recall"]
        return cell

    def ranking(self, comparison: str) -> list[str]:
        """The methods of the curated size by falling mean recall."""
        methods = [m for m in self.metrics[comparison] if m != FULL]
        return sorted(methods, key=lambda m: -self.mean_recall(comparison, m)["mean"])

    def best_rival(self, comparison: str) -> str | None:
        """The best method of the curated size other than InfluenceSpace."""
        return next((m for m in self.ranking(comparison) if m != INFLUENCESPACE), None)

    def compare(self, comparison: str, method: str, other: str) -> Verdict:
        """How a method's mean recall stands against another's."""
        a, b = self.mean_recall(comparison, method), self.mean_recall(comparison, other)
        return verdict(a["mean"], b["mean"], a["std"], b["std"], self.n_seeds)


# --- Judging ----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A difference of two means and what it is worth."""

    difference: float  # points of recall
    standard_error: float | None  # of the difference; None with one seed
    outcome: str  # "wins", "loses" or "undecided"


def verdict(a: float, b: float, std_a: float | None, std_b: float | None, n: int) -> Verdict:
    """Whether mean `a` is above mean `b` beyond the spread over `n` seeds each.

        se = sqrt((std_a^2 + std_b^2) / n)

    Undecided where |a - b| <= se. With one seed there is no spread, and the sign alone decides.
    """
    difference = a - b
    if std_a is None or std_b is None:
        error, bar = None, 0.0
    else:
        error = bar = math.sqrt((std_a**2 + std_b**2) / n)
    if abs(difference) <= bar:
        return Verdict(difference, error, "undecided")
    return Verdict(difference, error, "wins" if difference > 0 else "loses")


def in_standard_errors(v: Verdict) -> float | None:
    """The size of the difference in its standard errors, where it has any."""
    return abs(v.difference) / v.standard_error if v.standard_error else None


def against(v: Verdict, other: str) -> str:
    """The verdict as the end of a sentence."""
    ratio = in_standard_errors(v)
    if v.standard_error is None:
        why = "in the only seed, so the spread is unknown"
    else:
        why = f"{ratio:.1f} standard errors" if ratio is not None else "without spread over seeds"
    if v.outcome == "undecided":
        return (
            f"shows no difference beyond the spread from {other}: {v.difference:+.2f} points, {why}"
        )
    verb = "beats" if v.outcome == "wins" else "loses to"
    narrowly = "narrowly " if ratio is not None and ratio < CLEAR else ""
    return f"{narrowly}{verb} {other} by {abs(v.difference):.2f} points, {why}"


def seeds_to_decide(v: Verdict, n: int) -> int | None:
    """Training seeds at which a difference of this size and spread reaches `CLEAR`."""
    ratio = in_standard_errors(v)
    return math.ceil(n * (CLEAR / ratio) ** 2) if ratio else None


def spectrum_flatness(eigenvalues: Sequence[float]) -> float | None:
    """The last eigenvalue over the second, which an outlying first does not hide."""
    if len(eigenvalues) < 3 or not eigenvalues[1]:
        return None
    return eigenvalues[-1] / eigenvalues[1]


def n_undecided_signs(entries: Sequence[Mapping[str, Any]]) -> int:
    """Clusters whose standard error is at least as large as their score."""
    return sum(e["stderr_percent"] >= abs(e["influence_percent"]) for e in entries)


# --- Markdown ---------------------------------------------------------------------------------


def escape(text: Any, width: int = 160) -> str:
    """Text from outside as one line of Markdown that shows it as it is, in a table too."""
    special = r"[\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word is none
    return re.sub(special, r"\\\g<0>", shorten(str(text), width))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], n_left: int = 1) -> str:
    """A Markdown table; the first `n_left` columns to the left, the others to the right."""
    rule = [":--" if i < n_left else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def bullets(items: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {item}" for item in items)


def share(part: float, whole: float) -> str:
    """A share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def quantity(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def enumerate_words(words: Sequence[str]) -> str:
    """Words joined as in a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def names(methods: Sequence[str]) -> str:
    """Methods joined as in a sentence."""
    return enumerate_words([escape(method_label(m)) for m in methods])


def embed(summary: Summary, *paths: str) -> str:
    """The figures as images, with links that hold from `results/`."""
    made = figures(summary)
    return "\n\n".join(_image(path) for path in paths if path in made)


def _image(path: str) -> str:
    name = posixpath.basename(path)[: -len(".png")].replace("_", " ")
    return f"![{name}]({posixpath.relpath(path, 'results')})"


# --- The page ---------------------------------------------------------------------------------


def results_markdown(summary: Summary) -> str:
    """The results page, `results/results.md`."""
    sections = (
        "# InfluenceSpace: results",
        _warnings(summary),
        _answer(summary),
        "## Key findings",
        bullets(_findings(summary)),
        "## Data",
        _data(summary),
        "## What was kept and what was thrown away",
        _kept(summary),
        "## Performance",
        _performance(summary),
        "## Efficiency",
        _efficiency(summary),
        "## Demographic gaps",
        _demographic_gaps(summary),
        "## How good the influence estimate is",
        _estimate(summary),
        "## Limitations and future work",
        bullets(_limitations(summary)),
        "## How to repeat this run",
        _reproduction(summary),
    )
    return "\n\n".join(s for s in sections if s) + "\n"


def _warnings(summary: Summary) -> str:
    return "\n\n".join(f"> [!WARNING]\n> **{escape(w, 1000)}**" for w in summary.run["warnings"])


def _kept_sentence(summary: Summary) -> str:
    return (
        f"Kept {summary.n_curated:,} of {summary.n_train:,} training pairs"
        f" ({share(summary.n_curated, summary.n_train)})."
    )


def _answer(summary: Summary) -> str:
    sentences = [f"**{_kept_sentence(summary)}**"]
    for comparison in summary.metrics:
        sentences += _answer_for(summary, comparison)
    if summary.metrics:
        sentences.append(
            "Mean recall is over both directions at 1, 5 and 10, in percent of the queries on"
            f" {summary.n_test_images:,} unseen images"
            + (f"; ± is the standard deviation over {summary.n_seeds} training seeds."
               if summary.n_seeds > 1 else ", from one training seed.")
        )  # fmt: skip
    return " ".join(sentences)


def _answer_for(summary: Summary, comparison: str) -> list[str]:
    methods = summary.metrics[comparison]
    where = f"With the {COMPARISON_LABELS[comparison].lower()}"
    if INFLUENCESPACE not in methods:
        return [f"{where} InfluenceSpace was not among the methods trained."]
    own = _recall(summary, comparison, INFLUENCESPACE)
    clauses = [f"{where} InfluenceSpace reaches a mean recall of **{own}**"]
    best = summary.best_rival(comparison)
    for rival in dict.fromkeys((RANDOM, best)):
        if rival is None or rival not in methods:
            continue
        other = "random selection" if rival == RANDOM else escape(method_label(rival))
        other = f"the best rival of its size, {other}" if rival == best else other
        other += f" ({_recall(summary, comparison, rival)})"
        clauses.append(f"it {against(summary.compare(comparison, INFLUENCESPACE, rival), other)}")
    if FULL in methods:
        clauses.append(f"the full data reaches {_recall(summary, comparison, FULL)}")
    return ["; ".join(clauses) + "."]


def _recall(summary: Summary, comparison: str, method: str) -> str:
    return mean_and_spread(summary.mean_recall(comparison, method), 2)


def _data(summary: Summary) -> str:
    run = summary.run
    reasons = [f"{n:,} × {escape(reason)}" for reason, n in summary.skipped.items() if n]
    skipped = (
        f"Skipped and listed in `stage1/skipped.csv`: {', '.join(reasons)}."
        if reasons
        else "No pair was skipped."
    )
    description = escape(run["dataset_description"], 1000).rstrip(".")
    return "\n\n".join(
        (
            f"**{escape(run['dataset'])}**: {description}. Encoder: **{escape(run['encoder'])}**.",
            f"{summary.n_train:,} training and {summary.n_validation:,} validation pairs;"
            f" {summary.n_test_images:,} test images with {summary.n_test_captions:,} captions."
            f" No image is in two of the three. {skipped}",
            f"The training pairs form {count(len(summary.clusters), 'cluster')} by topic.",
            embed(summary, "stage1/cluster_sizes.png"),
        )
    ).strip()


# --- Kept and thrown away ---------------------------------------------------------------------


def _kept(summary: Summary) -> str:
    parts = [_kept_sentence(summary), _category_table(summary), _weights_sentence(summary)]
    parts.append(
        embed(summary, "stage3/cluster_categorization.png", "stage3/weight_distribution.png")
    )
    parts.append(_cluster_tables(summary))
    parts.append(embed(summary, "stage2/influence_scores.png"))
    parts += [_fault_table(summary), _example_table(summary)]
    return "\n\n".join(p for p in parts if p)


def _category_table(summary: Summary) -> str:
    if summary.categorization is None:
        return ""
    rules = {
        "harmful": f"influence below {100 * summary.thresholds['harmful_threshold']:g} %",
        "neutral": "between, or sign not certain",
        "beneficial": f"influence above {100 * summary.thresholds['beneficial_threshold']:+g} %",
    }
    rows = []
    for category in CATEGORIES:
        members = [c for c in summary.categorization if c["category"] == category]
        sums = [sum(c[k] for c in members) for k in ("size", "pairs_kept", "pairs_dropped")]
        rows.append([category, rules[category], f"{len(members):,}", *(f"{s:,}" for s in sums)])
    certainty = (
        f"Certain: the sign at {share(summary.thresholds['confidence'], 1)} confidence, one-sided."
    )
    header = ["category", "rule", "clusters", "pairs", "kept", "dropped"]
    return f"{table(header, rows, 2)}\n\n{certainty}"


def _weights_sentence(summary: Summary) -> str:
    weights = summary.sample_weights
    if weights is None:
        return ""
    if np.ptp(weights) == 0:
        return "All kept pairs have the same weight."
    return (
        f"Weights of the kept pairs run from {weights.min():.2f} to {weights.max():.2f} around a"
        f" mean of one; they count like {visualize.effective_size(weights):,.0f} pairs of equal"
        " weight."
    )


def _cluster_tables(summary: Summary) -> str:
    entries = summary.categorization or summary.influence
    if not entries:
        return ""
    unit = (
        "Influence is the change of the validation loss if the cluster were left out, ± its"
        " standard error: positive helps, negative hurts."
    )
    if len(entries) <= 2 * N_LISTED:
        return (
            f"### Clusters, lowest influence first\n\n{unit}\n\n{_cluster_table(summary, entries)}"
        )
    lowest = _cluster_table(summary, entries[:N_LISTED])
    highest = _cluster_table(summary, entries[: -N_LISTED - 1 : -1])
    return (
        f"### The {N_LISTED} clusters of lowest influence\n\n{unit}\n\n{lowest}\n\n"
        f"### The {N_LISTED} clusters of highest influence\n\n{highest}"
    )


def _cluster_table(summary: Summary, entries: Sequence[Mapping[str, Any]]) -> str:
    header = ["cluster", "terms", "category", "pairs", "influence (%)", "kept", "dropped", "weight"]
    weights = summary.cluster_weights or {}
    rows = [
        [
            str(e["cluster"]),
            escape(", ".join(e["terms"]) or "–", 80),
            e.get("category", "–"),
            f"{e['size']:,}",
            f"{e['influence_percent']:+.3f} ± {e['stderr_percent']:.3f}",
            quantity(e.get("pairs_kept"), 0),
            quantity(e.get("pairs_dropped"), 0),
            quantity(weights.get(str(e["cluster"]))),
        ]
        for e in entries
    ]
    return table(header, rows, 3)


def _fault_table(summary: Summary) -> str:
    faults = {m: counts for m, counts in (summary.faults or {}).items() if m != FULL}
    if not faults:
        return ""
    kinds = next(iter(faults.values()))
    ordered = sorted(kinds, key=lambda f: f == "good")
    header = ["dropped by", *(f"{_fault_label(f)} ({kinds[f]['in_data']:,})" for f in ordered)]
    rows = [
        [_name(method), *(share(counts[f]["dropped"], counts[f]["in_data"]) for f in ordered)]
        for method, counts in faults.items()
    ]
    return (
        "### Faults caught\n\nThe faults of this data set are known: the share of each kind that"
        " each method dropped (in brackets: how many there are). High is right for faults, low for"
        f" the rare group and for good pairs.\n\n{table(header, rows)}"
    )


def _fault_label(fault: str) -> str:
    return FAULT_LABELS.get(fault, escape(fault.replace("_", " ")))


def _example_table(summary: Summary) -> str:
    sheets = "\n\n".join(_image(path) for path in summary.contact_sheets)
    if not summary.dropped_examples:
        return sheets
    header = ["caption", "image", "cluster", "why", "CLIP score", "influence (%)"]
    rows = [
        [
            escape(e["caption"], 120),
            escape(e["key"], 60),
            f"{e['cluster']}: {escape(', '.join(e['terms']), 50)}",
            escape(e["why"]),
            quantity(e["clip_score"], 3),
            quantity(e["influence_percent"], 3),
        ]
        for e in summary.dropped_examples
    ]
    return f"### Some of the dropped pairs\n\n{table(header, rows, 4)}\n\n{sheets}".rstrip()


# --- Performance ------------------------------------------------------------------------------


def _name(method: str) -> str:
    label = escape(method_label(method))
    return f"**{label}**" if method == INFLUENCESPACE else label


def _performance(summary: Summary) -> str:
    if not summary.metrics:
        return "No method was trained."
    parts = [
        "Recall in percent of the queries, image to text (I→T: any of the image's captions is"
        " found) and text to image (T→I)."
        + (" ± is the standard deviation over training seeds." if summary.n_seeds > 1 else "")
        + " Against random: difference of the mean recalls, in brackets its size in standard"
        " errors. † marks the best rival of the same size.",
        embed(summary, "results/performance_comparison.png"),
    ]
    for comparison in summary.metrics:
        parts.append(f"### {COMPARISON_LABELS[comparison]}\n\n{_recall_table(summary, comparison)}")
    parts.append(
        embed(
            summary,
            *(f"evaluation/comparison_avg_recall@{k}.png" for k in RECALL_AT),
            "results/training_progress.png",
        )
    )
    return "\n\n".join(p for p in parts if p)


def _recall_table(summary: Summary, comparison: str) -> str:
    metrics = summary.metrics[comparison]
    columns = [f"{d}_recall@{k}" for d in DIRECTIONS for k in RECALL_AT] + ["mean_recall"]
    header = ["method", "pairs"]
    header += [f"{label} @{k}" for label in DIRECTIONS.values() for k in RECALL_AT]
    header += ["mean recall", "against random"]
    rows = []
    for method in [*summary.ranking(comparison), *({FULL} & set(metrics))]:
        mark = " †" if method == summary.best_rival(comparison) else ""
        cells = [
            mean_and_spread(metrics[method][c], 2 if c == "mean_recall" else 1) for c in columns
        ]
        versus = _versus_random(summary, comparison, method)
        n_pairs = f"{summary.efficiency[method]['n_pairs']:,}"
        rows.append([_name(method) + mark, n_pairs, *cells, versus])
    encoder = [
        quantity(summary.encoder_metrics.get(c), 2 if c == "mean_recall" else 1) for c in columns
    ]
    rows.append([method_label(ENCODER), "–", *encoder, "–"])
    return table(header, rows)


def _versus_random(summary: Summary, comparison: str, method: str) -> str:
    if RANDOM not in summary.metrics[comparison] or method == RANDOM:
        return "–"
    v = summary.compare(comparison, method, RANDOM)
    ratio = in_standard_errors(v)
    return f"{v.difference:+.2f}" + ("" if ratio is None else f" ({ratio:.1f})")


def _efficiency(summary: Summary) -> str:
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
        row = [_name(method), f"{e['n_pairs']:,}", share(e["data_reduction"], 1)]
        row.append(quantity(e["curation_seconds"], 1))
        for comparison in COMPARISON_LABELS:
            cost = e[comparison]
            row.append(f"{cost['n_steps']:,} ({share(cost['relative_training_cost'], 1)})")
            row.append(mean_and_spread(cost["training_seconds"]))
        rows.append(row)
    explanation = (
        "Steps in brackets: of the full data's. Choosing does not include embedding the pairs,"
        " which every method needs; per-pair influence is given the reference model, whose training"
        " counts as InfluenceSpace's. Training is one run on this machine."
    )
    images = embed(
        summary,
        "results/efficiency_comparison.png",
        "results/performance_efficiency_tradeoff.png",
    )
    return "\n\n".join(p for p in (explanation, table(header, rows), images) if p)


# --- Demographic gaps -------------------------------------------------------------------------


def _attributes(summary: Summary) -> dict[str, dict[str, Any]]:
    """The groups of every attribute with their sizes, which no method changes."""
    for methods in summary.gaps.values():
        for attributes in methods.values():
            return {attribute: state["groups"] for attribute, state in attributes.items()}
    return {}


def _demographic_gaps(summary: Summary) -> str:
    attributes = _attributes(summary)
    if not attributes:
        return "Not measured."
    parts = [
        f"Text-to-image recall@{GAP_RECALL_AT} over test captions that speak of one group alone, by"
        " a word list; in brackets the 95 % interval of the gap from a bootstrap over test images."
        " A gap is never negative, so an interval near zero is compatible with no gap."
    ]
    for attribute, groups in attributes.items():
        parts.append(f"### {escape(attribute).capitalize()}")
        small = [
            f"{escape(g)}: {s['n_queries']:,} captions, too few to score."
            for g, s in groups.items()
            if s["too_small"]
        ]
        parts += [" ".join(small), _gap_table(summary, attribute, groups)]
    parts.append(
        embed(summary, "results/demographic_gaps.png", "evaluation/fairness_comparison.png")
    )
    return "\n\n".join(p for p in parts if p)


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
        row = [_name(method)]
        for methods in summary.gaps.values():
            state = methods[method][attribute]
            key = f"text_to_image_recall@{GAP_RECALL_AT}"
            row += [f"{state['groups'][g][key]:.1f}" for g in scored]
            row.append(_gap_text(state))
        rows.append(row)
    return table(header, rows)


def _gap_text(state: Mapping[str, Any]) -> str:
    if state["gap"] is None:
        return "–"
    gap = state["gap"][f"recall@{GAP_RECALL_AT}"]
    low, high = gap["interval_95"]
    return f"{gap['gap']:.1f} ({low:.1f} to {high:.1f})"


def gap_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """`wider`, `narrower`, or `` where the two intervals overlap."""
    (low_before, high_before), (low_after, high_after) = before["interval_95"], after["interval_95"]
    if low_after > high_before:
        return "wider"
    return "narrower" if high_after < low_before else ""


# --- The estimate -----------------------------------------------------------------------------


def _estimate(summary: Summary) -> str:
    info = summary.influence_info
    if info is None:
        return "Stage 2 was not run or loaded."
    items = [
        f"Inverse Hessian: `{info['hessian']}`"
        + (f", damping {info['damping']:.3g}." if info["damping"] is not None else "."),
        f"Reference model: best validation loss {info['validation_loss']:.4f} nats, after"
        f" {info['reference_steps']:,} steps.",
        f"Influence evaluated for {info['n_evaluated']:,} of {summary.n_train:,} training pairs"
        f" ({share(info['n_evaluated'], summary.n_train)}).",
        *_spectrum(info["eigenvalues"], info["eigenvalue_residuals"]),
    ]
    if summary.influence:
        items.append(_undecided_signs(summary.influence))
    return bullets(items)


def _undecided_signs(entries: Sequence[Mapping[str, Any]]) -> str:
    n = n_undecided_signs(entries)
    return (
        f"For {n:,} of {count(len(entries), 'cluster')} ({share(n, len(entries))}) the standard"
        " error is at least as large as the score, so their sign is not known."
    )


def _spectrum(eigenvalues: Sequence[float], residuals: Sequence[float]) -> list[str]:
    if not len(eigenvalues):
        return []
    first, last = eigenvalues[0], eigenvalues[-1]
    items = [
        f"Leading eigenvalues ({len(eigenvalues)}): from {first:.3g} to {last:.3g}; largest"
        f" residual {max(residuals) / abs(first):.1e} of the first."
    ]
    flatness = spectrum_flatness(eigenvalues)
    if flatness is not None and flatness > FLAT_SPECTRUM:
        items.append(
            f"The spectrum is flat: the last of these eigenvalues is still {share(flatness, 1)} of"
            " the second, so this rank separates few directions from the rest."
        )
    return items


# --- Findings ---------------------------------------------------------------------------------


def _findings(summary: Summary) -> list[str]:
    """What this run's numbers say, each a sentence or two."""
    findings: list[str] = []
    for comparison in summary.metrics:
        findings += _standing(summary, comparison)
    findings += [*_against_full(summary), *_time_finding(summary), *_encoder_finding(summary)]
    return [*findings, *_fault_findings(summary), *_gap_findings(summary)] or [
        _kept_sentence(summary)
    ]


def _standing(summary: Summary, comparison: str) -> list[str]:
    """Who is ahead at the same size, and who does not beat random."""
    ranking = summary.ranking(comparison)
    if not ranking:
        return []
    rivals = [m for m in ranking if m != INFLUENCESPACE]
    text = (
        f"{COMPARISON_LABELS[comparison]}{' (one seed)' if summary.n_seeds == 1 else ''}:"
        f" {_name(ranking[0])} has the highest mean recall at the curated size,"
        f" {_recall(summary, comparison, ranking[0])}."
    )
    if INFLUENCESPACE in ranking and rivals:
        outcomes = {m: summary.compare(comparison, INFLUENCESPACE, m).outcome for m in rivals}
        verbs = {"wins": "beats", "loses": "**loses to**", "undecided": "cannot be told from"}
        clauses = [
            f"{verb} {names([m for m in rivals if outcomes[m] == outcome])}"
            for outcome, verb in verbs.items()
            if outcome in outcomes.values()
        ]
        text += f" InfluenceSpace {enumerate_words(clauses)}."
    if RANDOM in rivals:
        others = [m for m in rivals if m != RANDOM]
        losers = [m for m in others if summary.compare(comparison, m, RANDOM).outcome == "loses"]
        if losers:
            text += f" {names(losers)} {'lose' if losers[1:] else 'loses'} to random selection."
    return [text]


def _against_full(summary: Summary) -> list[str]:
    """What the curated set saves and costs beside the full data."""
    findings = []
    for comparison, methods in summary.metrics.items():
        if {FULL, INFLUENCESPACE} <= set(methods):
            cost = summary.efficiency[INFLUENCESPACE][comparison]["relative_training_cost"]
            steps = "as many" if cost == 1 else f"{share(cost, 1)} of the"
            v = summary.compare(comparison, INFLUENCESPACE, FULL)
            fewer = share(summary.n_train - summary.n_curated, summary.n_train)
            findings.append(
                f"With {fewer} fewer pairs and {steps} training steps, InfluenceSpace"
                f" {against(v, 'the full data')}."
            )
    return findings


def _time_finding(summary: Summary) -> list[str]:
    if not {FULL, INFLUENCESPACE} <= set(summary.efficiency):
        return []
    own, full = summary.efficiency[INFLUENCESPACE], summary.efficiency[FULL]
    seconds = [e["same_epochs"]["training_seconds"]["mean"] for e in (full, own)]
    saved = seconds[0] - seconds[1]
    choosing = own["curation_seconds"]
    if saved <= 0:
        return [f"Choosing the pairs took {choosing:.1f} s and saved no training time."]
    balance = "more" if choosing > saved else "less"
    return [
        f"Choosing the pairs took {choosing:.1f} s, {balance} than the {saved:.1f} s that one"
        f" training run of the same number of epochs saves"
        + (f" ({math.ceil(choosing / saved):,} such runs pay for it)." if choosing > saved else ".")
    ]


def _encoder_finding(summary: Summary) -> list[str]:
    own = summary.encoder_metrics.get("mean_recall")
    trained = {
        m: cells["mean_recall"]["mean"]
        for ms in summary.metrics.values()
        for m, cells in ms.items()
    }
    if own is None or not trained:
        return []
    better = [m for m, recall in trained.items() if recall > own]
    if len(better) == len(trained):
        return [f"Every trained model is above the encoder's own mean recall of {own:.2f}."]
    rest = names([m for m in trained if m not in better]) if better else "any trained model"
    reason = (
        ": its joint space is a closed-form solution on all training pairs, the trained models' "
        "is learnt in a few epochs"
        if summary.run["encoder"] == "embedded"
        else ""
    )
    return [f"The encoder's own mean recall, {own:.2f}, is not reached by {rest}{reason}."]


def _fault_findings(summary: Summary) -> list[str]:
    if not summary.faults or INFLUENCESPACE not in summary.faults:
        return []
    dropped = {
        fault: (count["dropped"], count["in_data"])
        for fault, count in summary.faults[INFLUENCESPACE].items()
        if count["in_data"]
    }
    shares = [f"{share(*dropped[f])} of {_fault_label(f)}" for f in dropped]
    chance = share(summary.n_train - summary.n_curated, summary.n_train)
    return [
        f"InfluenceSpace dropped {enumerate_words(shares)}; a blind choice drops {chance} of each."
    ]


def _gap_findings(summary: Summary) -> list[str]:
    """Gaps that differ from the full data's beyond their intervals; the others in one sentence."""
    findings, overlapping = [], []
    key = f"recall@{GAP_RECALL_AT}"
    for comparison, methods in summary.gaps.items():
        if not {FULL, INFLUENCESPACE} <= set(methods):
            continue
        for attribute in methods[FULL]:
            full, own = (methods[m][attribute] for m in (FULL, INFLUENCESPACE))
            if full["gap"] is None or own["gap"] is None:
                continue
            where = f"{escape(attribute)}, {COMPARISON_SHORT[comparison]}"
            numbers = f"{_gap_text(own)} points against {_gap_text(full)}"
            change = gap_change(full["gap"][key], own["gap"][key])
            if change:
                findings.append(f"The gap is {change} than the full data's for {where}: {numbers}.")
            else:
                overlapping.append(f"{where}: {numbers}")
    if overlapping:
        findings.append(
            "Demographic gaps: no change against the full data can be claimed where the intervals"
            f" overlap ({'; '.join(overlapping)})."
        )
    return findings


# --- Limitations ------------------------------------------------------------------------------


def _limitations(summary: Summary) -> list[str]:
    items = [*_seed_limits(summary), *_test_limits(summary)]
    if summary.faults:
        items.append(
            "The data are drawn, with faults put in at known shares; nothing here says how well the"
            " method does on photographs. Repeat it on your own pairs (`--dataset folder`)."
        )
    items.append(
        "Only linear maps on frozen features are trained. Whether the same pairs help a model"
        " whose towers are trained is not measured here."
    )
    if summary.influence:
        items.append(
            _undecided_signs(summary.influence)
            + " More pairs per cluster (`--samples_per_cluster`, `--influence_budget`) narrow it."
        )
    items += _fault_limits(summary)
    return items


def _seed_limits(summary: Summary) -> list[str]:
    if not summary.metrics:
        return []
    n = summary.n_seeds
    items = [
        f"Each method's subset was chosen once and trained {n} time{'s' if n > 1 else ''}: the"
        " spread is that of training and leaves out how much the choice itself would vary."
    ]
    if n == 1:
        return [*items, "One seed has no spread: no difference here is tested (`--n_seeds 3`)."]
    for comparison, methods in summary.metrics.items():
        rival = summary.best_rival(comparison)
        if INFLUENCESPACE not in methods or rival is None:
            continue
        v = summary.compare(comparison, INFLUENCESPACE, rival)
        needed = seeds_to_decide(v, n)
        if v.outcome == "undecided" and needed and needed <= MAX_USEFUL_SEEDS:
            items.append(
                f"{COMPARISON_LABELS[comparison]}: to tell InfluenceSpace from"
                f" {escape(method_label(rival))} at this difference and spread takes about"
                f" {needed:,} seeds (`--n_seeds`)."
            )
    return items


def _test_limits(summary: Summary) -> list[str]:
    cells = [
        c["image_to_text_recall@1"]["mean"] for ms in summary.metrics.values() for c in ms.values()
    ]
    if not cells:
        return []
    p = max(cells) / 100
    error = 100 * math.sqrt(p * (1 - p) / summary.n_test_images)
    return [
        f"With {summary.n_test_images:,} test images an image-to-text recall@1 of {100 * p:.1f} has"
        f" a sampling error of {error:.1f} points, which the spread over seeds does not show (the"
        " methods share the test images, so their differences suffer less)."
    ]


def _fault_limits(summary: Summary) -> list[str]:
    """Faults that the curation dropped no more often than a blind choice would."""
    if not summary.faults or INFLUENCESPACE not in summary.faults:
        return []
    chance = 1 - summary.n_curated / summary.n_train
    missed = [
        _fault_label(f)
        for f, count in summary.faults[INFLUENCESPACE].items()
        if f not in ("good", "rare group") and count["dropped"] <= chance * count["in_data"]
    ]
    if not missed:
        return []
    return [
        f"The curation dropped {enumerate_words(missed)} no more often than a blind choice would."
        " A choice by cluster means misses faults that are spread over all clusters."
    ]


# --- How to repeat it -------------------------------------------------------------------------


def _reproduction(summary: Summary) -> str:
    run = summary.run
    seconds = {**run["seconds"], "total": run["total_seconds"]}
    return "\n\n".join(
        (
            f"```sh\n{run['command']}\n```",
            table(["stage", "seconds"], [[escape(k), f"{v:,.1f}"] for k, v in seconds.items()]),
            "A stage that was reused shows the time it took when it was computed; the total is this"
            " run's.",
            f"Seed {run['seed']}. Hardware: {_pairs(run['hardware'])}. Versions:"
            f" {_pairs(run['packages'])}.",
            "Settings:",
            table(
                ["flag", "value"],
                [[f"`--{k}`", escape(_setting(v), 400)] for k, v in run["settings"].items()],
                2,
            ),
        )
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{escape(str(k).replace('_', ' '))} {escape(v)}" for k, v in values.items())


def _setting(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if value is not None and text else "not set"


# --- Tables and figures -----------------------------------------------------------------------


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
    columns = ["avg_recall@1", "avg_recall@5", "avg_recall@10", "mean_recall"]
    header = ["method", "pairs", *(c.replace("_", " ").replace("avg", "average") for c in columns)]
    parts = ["# InfluenceSpace: summary", _warnings(summary), _kept_sentence(summary)]
    for comparison, methods in summary.metrics.items():
        rows = [
            [
                _name(method),
                f"{summary.efficiency[method]['n_pairs']:,}",
                *(mean_and_spread(methods[method][c], 2) for c in columns),
            ]
            for method in [*summary.ranking(comparison), *({FULL} & set(methods))]
        ]
        parts.append(f"## {COMPARISON_LABELS[comparison]}\n\n{table(header, rows)}")
    parts.append("Recall in percent. Everything else: [results.md](results.md).")
    return "\n\n".join(p for p in parts if p) + "\n"


def figures(summary: Summary) -> dict[str, Callable[[], Figure]]:
    """A maker for every figure whose data there are, by its path in the output folder."""
    made: dict[str, Callable[[], Figure]] = {
        "stage1/cluster_sizes.png": partial(
            visualize.cluster_sizes,
            np.array([c["size"] for c in summary.clusters]),
            [c["terms"] for c in summary.clusters],
        )
    }
    made |= _curation_figures(summary)
    if not summary.metrics:
        return made
    made |= {
        f"evaluation/comparison_avg_recall@{k}.png": partial(
            visualize.recall_comparison,
            summary.metrics,
            f"avg_recall@{k}",
            title=f"Average recall@{k}, both directions, {summary.n_test_images:,} unseen images",
            encoder_recall=summary.encoder_metrics.get(f"avg_recall@{k}"),
        )
        for k in RECALL_AT
    }
    if _attributes(summary):
        made |= {
            "evaluation/fairness_comparison.png": partial(
                visualize.fairness_comparison, summary.gaps, GAP_RECALL_AT
            ),
            "results/demographic_gaps.png": partial(
                visualize.demographic_gaps, summary.gaps, GAP_RECALL_AT
            ),
        }
    return made | {
        "results/performance_comparison.png": partial(
            visualize.performance_comparison,
            summary.metrics,
            summary.encoder_metrics.get("mean_recall"),
            _differences_to_random(summary),
        ),
        "results/efficiency_comparison.png": partial(
            visualize.efficiency_comparison, summary.efficiency
        ),
        "results/training_progress.png": partial(visualize.training_progress, summary.histories),
        "results/performance_efficiency_tradeoff.png": partial(
            visualize.performance_efficiency_tradeoff, summary.metrics, summary.efficiency
        ),
    }


def _differences_to_random(summary: Summary) -> dict[str, dict[str, tuple[float, float | None]]]:
    return {
        comparison: {
            m: summary.compare(comparison, m, RANDOM)[:2]
            for m in methods
            if RANDOM in methods and m != RANDOM
        }
        for comparison, methods in summary.metrics.items()
    }


def _curation_figures(summary: Summary) -> dict[str, Callable[[], Figure]]:
    made: dict[str, Callable[[], Figure]] = {}
    if summary.influence_scores is not None and summary.influence_stderr is not None:
        made["stage2/influence_scores.png"] = partial(
            visualize.influence_scores,
            summary.influence_scores,
            summary.influence_stderr,
            [c["terms"] for c in summary.clusters],
            _categories(summary, summary.influence_scores, summary.influence_stderr),
            harmful_threshold=summary.thresholds["harmful_threshold"],
            beneficial_threshold=summary.thresholds["beneficial_threshold"],
        )
    if summary.categorization is not None:
        made["stage3/cluster_categorization.png"] = partial(
            visualize.cluster_categorization, summary.categorization
        )
        if summary.sample_weights is not None and summary.cluster_weights is not None:
            made["stage3/weight_distribution.png"] = partial(
                visualize.weight_distribution,
                summary.sample_weights,
                summary.cluster_weights,
                summary.categorization,
            )
    return made


def _categories(summary: Summary, scores: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """The category of every cluster; by the same rule where stage 3 was not loaded."""
    if summary.categorization is not None:
        categories = {c["cluster"]: c["category"] for c in summary.categorization}
        return np.array([categories[k] for k in range(len(scores))])
    certain = np.abs(scores) > NormalDist().inv_cdf(summary.thresholds["confidence"]) * stderr
    harmful = certain & (scores < summary.thresholds["harmful_threshold"])
    beneficial = certain & (scores > summary.thresholds["beneficial_threshold"])
    return np.select([harmful, beneficial], ["harmful", "beneficial"], "neutral")


# --- The end of the run -----------------------------------------------------------------------


def console_summary(summary: Summary) -> str:
    """At most 25 lines: what was kept, the table, the verdict and where to look."""
    warnings = [shorten(w, 200) for w in summary.run["warnings"]]
    lines = [f"! {w}" for w in warnings[:MAX_CONSOLE_WARNINGS]]
    if len(warnings) > MAX_CONSOLE_WARNINGS:
        lines.append(f"! and {len(warnings) - MAX_CONSOLE_WARNINGS} more warnings")
    lines += [_kept_sentence(summary), *_console_table(summary)]
    for comparison, methods in summary.metrics.items():
        if {INFLUENCESPACE, RANDOM} <= set(methods):
            v = summary.compare(comparison, INFLUENCESPACE, RANDOM)
            lines.append(f"{COMPARISON_LABELS[comparison]}: InfluenceSpace {against(v, 'random')}.")
    folder = str(summary.run["settings"].get("output_dir", "."))
    lines.append(f"Results: {posixpath.join(folder, 'results/results.md')}")
    lines.append(f"Curated pairs: {posixpath.join(folder, 'stage3/curated_indices.npy')}")
    return "\n".join(lines)


def _console_table(summary: Summary) -> list[str]:
    if not summary.metrics:
        return []
    methods = visualize.rank_methods(summary.metrics, "mean_recall")
    header = "".join(f"{COMPARISON_LABELS[c].lower():>24}" for c in summary.metrics)
    lines = ["", f"{'Mean recall (%)':<30}{header}"]
    for method in methods[:MAX_CONSOLE_METHODS]:
        cells = "".join(f"{_recall(summary, c, method):>24}" for c in summary.metrics)
        lines.append(f"{shorten(method_label(method), 29):<30}{cells}")
    return [*lines, ""]

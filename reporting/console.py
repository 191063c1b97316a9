"""The end of a run on the terminal."""

from __future__ import annotations

import posixpath

from baselines import FULL, INFLUENCESPACE
from reporting.estimate import doubts
from reporting.figures.methods import rank_methods
from reporting.how_much import share_sentence, share_warnings
from reporting.kept import kept_sentence, review_sentence, skipped_sentence
from reporting.standing import trust_warnings, wrong_captions_sentence
from reporting.summary import Summary, recall
from reporting.verdicts import against, compare
from reporting.widths import fill_up, shorten
from reporting.words import COMPARISON_LABELS, RANDOM, method_label

MAX_CONSOLE_WARNINGS = 4
MAX_CONSOLE_METHODS = 11


def console_summary(summary: Summary) -> str:
    """At most 28 lines: what was kept, the table, the verdict and where to look."""
    told = [*summary.run["warnings"], *trust_warnings(summary), *share_warnings(summary)]
    first_sentences = (w.partition(". ")[0].rstrip(".") + "." for w in told)
    warnings = [shorten(sentence, 240) for sentence in first_sentences]
    lines = [f"! {w}" for w in warnings[:MAX_CONSOLE_WARNINGS]]
    if len(warnings) > MAX_CONSOLE_WARNINGS:
        lines.append(f"! and {len(warnings) - MAX_CONSOLE_WARNINGS} more warnings")
    doubt = doubts(summary) if summary.is_curated else ""
    sentences = (skipped_sentence(summary), wrong_captions_sentence(summary), doubt)
    kept = f"{kept_sentence(summary)} {review_sentence(summary)}".rstrip()
    lines += [kept, *filter(None, (share_sentence(summary), *sentences))]
    lines += _console_table(summary)
    for comparison, methods in summary.metrics.items():
        if {INFLUENCESPACE, RANDOM} <= set(methods):
            v = compare(summary, comparison, INFLUENCESPACE, RANDOM)
            lines.append(f"{COMPARISON_LABELS[comparison]}: InfluenceSpace {against(v, 'random')}.")
    if summary.is_curated and not summary.metrics:
        missing = "Nothing was trained on the kept pairs, so what they are worth is not measured"
        lines.append(f"{missing}: --load_saved, without --methods none, does that.")
    folder = str(summary.run["settings"].get("output_dir", "."))
    lines.append(f"Results: {posixpath.join(folder, 'results/results.md')}")
    if not summary.run["settings"].get("no_report"):
        label = "Look at the pairs" if summary.is_curated else "Report"
        lines.append(f"{label}: {posixpath.join(folder, 'results/report.html')}")
    if summary.is_curated:
        lines.append(f"Curated pairs: {posixpath.join(folder, 'stage3/curated_indices.npy')}")
    return "\n".join(lines)


def _console_table(summary: Summary) -> list[str]:
    if not summary.metrics:
        return []
    methods = rank_methods(summary.metrics, "mean_recall")
    header = "".join(f"{COMPARISON_LABELS[c].lower():>24}" for c in summary.metrics)
    lines = ["", f"{'Mean recall (%)':<30}{header}"]
    others = [m for m in methods if m not in (INFLUENCESPACE, FULL, RANDOM)]
    n_hidden = max(0, len(methods) - MAX_CONSOLE_METHODS)
    hidden = set(others[len(others) - n_hidden :])
    for method in methods:
        if method in hidden:
            continue
        cells = "".join(f"{recall(summary, c, method):>24}" for c in summary.metrics)
        lines.append(fill_up(shorten(method_label(method), 29), 30) + cells)
    return [*lines, ""]

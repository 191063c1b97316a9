"""The results page, its tables and its figures, from a run's own numbers."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import visualize
from findings import (
    against,
    answer,
    caution_sentence,
    cells_beside_clusters,
    compare,
    doubts,
    estimate,
    judged_sentence,
    kept_sentence,
    key_findings,
    limitations,
    narrow_sentence,
    skipped_sentence,
    trust_warnings,
    validation,
    value_sentence,
    versus_random,
    weights_sentence,
    wrong_captions_sentence,
)
from summary import (
    COMPARISON_SHORT,
    FREE_PREDICTIONS,
    GAP_RECALL_AT,
    RANDOM,
    TEST,
    TRAIN,
    VALIDATION,
    Summary,
    bullets,
    enumerate_words,
    escape,
    fault_label,
    gap_text,
    interval_text,
    method_name,
    paragraphs,
    quantity,
    recall,
    share,
    table,
    trusted_recall,
)
from visualize import (
    CATEGORIES,
    CHECK_LABELS,
    COMPARISON_LABELS,
    ENCODER,
    FULL,
    INFLUENCESPACE,
    count,
    mean_and_spread,
    method_label,
    seconds_and_spread,
    seconds_text,
    shorten,
    signed,
)

RECALL_AT = (1, 5, 10)
DIRECTIONS = {"image_to_text": "I→T", "text_to_image": "T→I"}
N_LISTED = 8  # clusters listed at either end
N_CELLS = 10  # cells listed at either end
MAX_CONSOLE_WARNINGS = 4
MAX_CONSOLE_METHODS = 12
TRUST_FIGURE = "stage2/wrong_captions.png"
GAP_FIGURES = ("results/demographic_gaps.png", "evaluation/fairness_comparison.png")


# --- The page ---------------------------------------------------------------------------------


def results_markdown(summary: Summary) -> str:
    """The results page, `results/results.md`."""
    sections = (
        "# InfluenceSpace: results",
        _warnings(summary),
        answer(summary),
        "## What this run stands on",
        _standing(summary),
        "## Key findings",
        bullets(key_findings(summary)),
        "## Data",
        _data(summary),
        "## What happened to every pair",
        _decision_table(summary),
        "## What was kept and what was thrown away",
        _kept(summary),
        "## Performance",
        _performance(summary),
        "## Efficiency",
        _efficiency(summary),
        "## Demographic gaps",
        _demographic_gaps(summary),
        "## How good the influence estimate is",
        bullets(estimate(summary)) or "Stage 2 was not run or loaded.",
        "## Limitations and future work",
        bullets(limitations(summary)),
        "## How to repeat this run",
        _reproduction(summary),
    )
    return paragraphs(sections) + "\n"


def _warnings(summary: Summary) -> str:
    found = [*summary.run["warnings"], *trust_warnings(summary)]
    return paragraphs(f"> [!WARNING]\n> **{escape(w, 1000)}**" for w in found)


def _standing(summary: Summary) -> str:
    """Where held-out pairs come from, how many captions are wrong, and who is asked what helps."""
    description = escape(summary.run["dataset_description"], 1000).rstrip(".")
    return paragraphs(
        (
            f"Training, validation and test pairs: {description}. {judged_sentence(summary)}",
            _trust_table(summary),
            narrow_sentence(summary),
            _images(summary, TRUST_FIGURE),
        )
    )


def _trust_table(summary: Summary) -> str:
    trust = summary.trust
    if trust is None:
        return ""
    header = ["split", "pairs", "wrong captions", "95 % interval (%)", "trusted", "near copies"]
    rows = []
    for split in (TRAIN, VALIDATION, TEST):
        part = trust[split]
        rows.append(
            [
                split,
                f"{part['pairs']:,}",
                "–" if part["share"] is None else share(part["share"], 1),
                interval_text(part) or "–",
                *(
                    f"{part[name]:,}" if name in part else "–"
                    for name in ("trusted", "near_copies")
                ),
            ]
        )
    note = (
        "Wrong captions: estimated from how well image and caption agree beside images with the"
        " captions of others; boilerplate counts as wrong. The interval holds the sampling of the"
        " pairs alone; the estimate assumes that the agreement of right pairs is normal."
    )
    return f"{table(header, rows)}\n\n{note}"


def _data(summary: Summary) -> str:
    run = summary.run
    reasons = [f"{n:,} × {escape(reason)}" for reason, n in summary.skipped.items() if n]
    skipped = (
        f"Skipped and listed in `stage1/skipped.csv`: {', '.join(reasons)}."
        if reasons
        else "No pair was skipped."
    )
    description = escape(run["dataset_description"], 1000).rstrip(".")
    return paragraphs(
        (
            f"**{escape(run['dataset'])}**: {description}. Encoder: **{escape(run['encoder'])}**.",
            f"{summary.n_train:,} training and {summary.n_validation:,} validation pairs;"
            f" {summary.n_test_images:,} test images with {summary.n_test_captions:,} captions."
            f" No image is in two of the three. {skipped}",
            f"The training pairs form {count(len(summary.clusters), 'cluster')} by topic.",
            _images(summary, "stage1/cluster_sizes.png"),
        )
    )


def _decision_table(summary: Summary) -> str:
    """Every pair that was seen, by what became of it."""
    if summary.decisions is None:
        return "The ledger needs stage 3, which was not run or loaded."
    rows = [
        [escape(d["split"]), escape(d["decision"]), escape(d["reason"]), f"{d['pairs']:,}"]
        for d in summary.decisions
    ]
    total = sum(int(d["pairs"]) for d in summary.decisions)
    rows.append(["**all**", "", "", f"**{total:,}**"])
    return paragraphs(
        (
            "One row a pair is in `stage3/ledger.parquet`; these are its sums. `--explain KEY` "
            "tells the story of a pair.",
            table(["split", "decision", "reason", "pairs"], rows, n_left=3),
        )
    )


def _images(summary: Summary, *paths: str) -> str:
    """The figures as images, with links that hold from `results/`."""
    return paragraphs(_image(path) for path in paths if path in summary.figures)


def _image(path: str) -> str:
    name = posixpath.basename(path)[: -len(".png")].replace("_", " ")
    return f"![{name}]({posixpath.relpath(path, 'results')})"


# --- Kept and thrown away ---------------------------------------------------------------------


def _kept(summary: Summary) -> str:
    return paragraphs(
        (
            " ".join(filter(None, (kept_sentence(summary), value_sentence(summary)))),
            _images(summary, "stage3/cells.png"),
            _kind_table(summary),
            _cell_tables(summary),
            _group_table(summary),
            _round_table(summary),
            _category_table(summary),
            weights_sentence(summary),
            _images(summary, "stage3/cluster_categorization.png", "stage3/weight_distribution.png"),
            _cluster_tables(summary),
            _images(summary, "stage2/influence_scores.png"),
            _validation(summary),
            _fault_table(summary),
            _example_table(summary),
        )
    )


def _kind_table(summary: Summary) -> str:
    """What is kept of each kind of pair over all topics, and what such pairs do."""
    pairs, kinds = summary.pairs, summary.pairs.kinds()
    if pairs.kept is None and pairs.influence is None:
        return ""
    header = ["image-text agreement", "copies", "pairs", "kept", "share kept"]
    header += ["influence of a pair (% / n)"]
    header += ["known faults"] if pairs.faulty is not None else []
    rows = []
    for kind in kinds:
        row = [_band(kind["agreement"]), _copies(kind["near_copies"]), f"{kind['pairs']:,}"]
        row.append("–" if kind["kept"] is None else f"{kind['kept']:,}")
        row.append(_share_kept(kind["kept"], kind["pairs"]))
        row.append("–" if kind["influence"] is None else signed(kind["influence"]))
        row += [share(kind["faulty"], kind["pairs"])] if pairs.faulty is not None else []
        rows.append(row)
    doubt = caution_sentence(summary) if pairs.influence is not None else ""
    text = (
        "What hurts is often spread over all topics: a kind of pair shows it, a topic's mean does"
        " not. Near copies: the set has a copy of the image with a better caption. Influence:"
        " leaving such a pair out changes the validation loss by this many percent over"
        f" n = {summary.n_train:,}; positive helps, negative hurts."
        + (" Known faults: as planted, near copies among them." if pairs.faulty is not None else "")
        + (f" {doubt}" if doubt else "")
    )
    return f"### By kind of pair, over all topics\n\n{text}\n\n{table(header, rows, 2)}"


def _band(name: str) -> str:
    return name.removesuffix(" of agreement")


def _copies(near_copies: bool) -> str:
    return "near copies" if near_copies else "–"


def _share_kept(kept: int | None, pairs: int) -> str:
    return "–" if kept is None else share(kept, pairs)


def _cell_tables(summary: Summary) -> str:
    """The cells that hurt and help most, with how many signs are certain."""
    cells = [
        cell | {"terms": cluster["terms"]}
        for cluster in summary.categorization or ()
        for cell in cluster.get("cells", ())
    ]
    if not cells:
        return ""
    cells.sort(key=lambda cell: cell["influence_percent"])
    doubt = caution_sentence(summary)
    clear = [cell["category"] for cell in cells if _is_clear(cell)]
    harmful, beneficial = (clear.count(category) for category in ("harmful", "beneficial"))
    certain = (
        f"{harmful:,} are harmful and {beneficial:,} beneficial with certainty; of"
        f" {len(cells) - len(clear):,} the sign is not certain."
        if not doubt
        else f"{harmful:,} have an influence clearly below zero by their standard errors and"
        f" {beneficial:,} one clearly above it, but no sign is certain. {doubt}"
    )
    text = (
        f"Of {count(len(cells), 'cell')} (pairs of one topic, alike in agreement and copies)"
        f" {certain} Influence: the first-order change of the validation loss if the cell were left"
        " out, ± the standard error of the inference. A single pair's sign is never called certain."
    )
    bands = summary.pairs.band_of_cell()
    parts = [f"### The most harmful and the most beneficial cells\n\n{text}"]
    below = [cell for cell in cells if cell["influence_percent"] < 0][:N_CELLS]
    above = [cell for cell in cells[::-1] if cell["influence_percent"] > 0][:N_CELLS]
    for word, listed in (("harmful", below), ("beneficial", above)):
        parts.append(
            f"Most {word}:\n\n{_cell_table(listed, bands, believed=not doubt)}"
            if listed
            else f"No cell is {word}."
        )
    return paragraphs(parts)


def _is_clear(cell: Mapping[str, Any]) -> bool:
    """Whether the sign of a cell's influence is beyond its error; one pair is too few to say so."""
    return bool(cell["category"] != "neutral" and cell["size"] > 1)


def _cell_table(
    cells: Sequence[Mapping[str, Any]], bands: Mapping[int, str], *, believed: bool
) -> str:
    header = ["topic", "image-text agreement", "copies", "sign"]
    header += ["CLIP score", "pairs", "influence (%)", "kept"]
    rows = [
        [
            escape(", ".join(cell["terms"][:3]) or "–", 60),
            _band(bands.get(cell["cell"], "–")),
            _copies(cell["near_copies"]),
            "certain" if believed and _is_clear(cell) else "not certain",
            quantity(cell["mean_clip_score"]),
            f"{cell['size']:,}",
            f"{cell['influence_percent']:+.3f} ± {cell['stderr_percent']:.3f}",
            f"{cell['pairs_kept']:,} of {cell['size']:,}",
        ]
        for cell in cells
    ]
    return table(header, rows, 4)


def _group_table(summary: Summary) -> str:
    """What is kept of every demographic group, beside all pairs."""
    groups = {name: g for name, g in (summary.group_retention or {}).items() if g["pairs"]}
    if not groups:
        return ""
    rows = [
        [escape(name), f"{g['pairs']:,}", f"{g['kept']:,}", share(g["kept"], g["pairs"])]
        for name, g in groups.items()
    ]
    of_all = summary.n_curated / summary.n_train
    kept = share(summary.n_curated, summary.n_train)
    rows.append(["all pairs", f"{summary.n_train:,}", f"{summary.n_curated:,}", kept])
    below = [escape(name) for name, g in groups.items() if g["kept"] / g["pairs"] < of_all]
    verdict = (
        f"A smaller share than of all pairs is kept of {enumerate_words(below)}."
        if below
        else "Every group keeps at least as large a share as all pairs."
    )
    least = summary.thresholds["min_group_retention"]
    asked = (
        f" At least {share(least, 1)} of each was asked for (`--min_group_retention`)."
        if least
        else " No least share was asked for (`--min_group_retention`)."
    )
    return (
        "### Demographic groups\n\nTraining pairs whose captions name a group, by word lists."
        f" {verdict}{asked}\n\n{table(['group', 'pairs', 'kept', 'share kept'], rows)}"
    )


def _round_table(summary: Summary) -> str:
    """How estimate and choice moved from round to round, where there were several."""
    rounds = (summary.pair_quality or {}).get("rounds", ())
    if len(rounds) < 2:
        return ""
    header = ["round", "explained", "validation loss", "kept", "of them kept before"]
    rows = [
        [
            f"{r['round']}",
            share(max(0.0, r["explained"]), 1),
            quantity(r["validation_loss"], 4),
            f"{r['kept']:,}",
            "–" if r["kept_before_too"] is None else f"{r['kept_before_too']:,}",
        ]
        for r in rounds
    ]
    text = (
        "The first round's models are trained on all pairs, each later round's on those that the"
        " round before has kept; dropped pairs are asked about again and may come back. Validation"
        " loss: mean over these models, in nats."
    )
    return f"### Rounds\n\n{text}\n\n{table(header, rows)}"


def _category_table(summary: Summary) -> str:
    if summary.categorization is None:
        return ""
    heading = (
        "### Clusters\n\nA cluster's category says what leaving the whole cluster out would do to"
        " the validation loss. It does not say which pairs are dropped: their own values decide, so"
        " a beneficial cluster loses its bad pairs and a harmful one may keep its good ones."
    )
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
    return f"{heading}\n\n{table(header, rows, 2)}\n\n{certainty}"


def _cluster_tables(summary: Summary) -> str:
    entries = summary.categorization or summary.influence
    if not entries:
        return ""
    unit = (
        "Influence is the change of the validation loss if the cluster were left out, ± its"
        " standard error: positive helps, negative hurts."
    )
    if beside := cells_beside_clusters(summary):
        unit = f"{unit} {beside}"
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


def _validation(summary: Summary) -> str:
    """Predicted effects beside those of real retraining."""
    text = validation(summary)
    if not text:
        return ""
    heading, checks = "### Does the estimate match retraining?", summary.influence_validation
    if checks is None:
        return f"{heading}\n\n{text}"
    header = ["check", "Spearman (ceiling)", "Pearson", "slope"]
    header += [f"Spearman of {label}" for label in FREE_PREDICTIONS.values()]
    rows = []
    for check, label in CHECK_LABELS.items():
        found = checks[check]
        own = found["estimator"]
        spearman = f"{quantity(own['spearman'])} ({quantity(found['ceiling'])})"
        free = [quantity(found[name]["spearman"]) for name in FREE_PREDICTIONS]
        rows.append([label, spearman, quantity(own["pearson"]), quantity(own["slope"]), *free])
    explanation = (
        "Real against predicted change of the validation loss, as rank correlation (Spearman),"
        " linear correlation (Pearson) and slope. Ceiling: the rank correlation that a perfect"
        " prediction would reach, given how far retrainings of different seeds agree. The last"
        " three columns are predictions that cost nothing."
    )
    figure = _images(summary, "stage2/influence_validation.png")
    return paragraphs((heading, text, table(header, rows), explanation, figure))


def _fault_table(summary: Summary) -> str:
    faults = {m: counts for m, counts in (summary.faults or {}).items() if m != FULL}
    if not faults:
        return ""
    kinds = next(iter(faults.values()))
    ordered = sorted(kinds, key=lambda f: f == "good")
    header = ["dropped by", *(f"{fault_label(f)} ({kinds[f]['in_data']:,})" for f in ordered)]
    rows = [
        [method_name(method), *(share(counts[f]["dropped"], counts[f]["in_data"]) for f in ordered)]
        for method, counts in faults.items()
    ]
    return (
        "### Faults caught\n\nThe faults of this data set are known: the share of each kind that"
        " each method dropped (in brackets: how many there are). High is right for faults, low for"
        f" the rare group and for good pairs.\n\n{table(header, rows)}"
    )


def _example_table(summary: Summary) -> str:
    sheets = paragraphs(map(_image, summary.contact_sheets))
    if not summary.dropped_examples:
        return sheets
    header = ["caption", "image", "cluster", "why", "CLIP score", "value"]
    rows = [
        [
            escape(e["caption"], 120),
            escape(e["key"], 60),
            f"{e['cluster']}: {escape(', '.join(e['terms']), 50)}",
            escape(e["why"]),
            quantity(e["clip_score"], 3),
            f"{e['value']:+.1f}",
        ]
        for e in summary.dropped_examples
    ]
    text = (
        "Of each of these clusters the dropped pair of lowest value; the mean pair has an influence"
        " and an agreement of 0."
    )
    return paragraphs(("### Some of the dropped pairs", text, table(header, rows, 4), sheets))


# --- Performance ------------------------------------------------------------------------------


def _performance(summary: Summary) -> str:
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
            _images(summary, "results/performance_comparison.png"),
            *(
                f"### {COMPARISON_LABELS[c]}\n\n{_recall_table(summary, c)}"
                for c in summary.metrics
            ),
            _images(summary, *averages, "results/training_progress.png"),
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
    return paragraphs((explanation, table(header, rows), _images(summary, *paths)))


# --- Demographic gaps -------------------------------------------------------------------------


def _demographic_gaps(summary: Summary) -> str:
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
    return paragraphs([*parts, _images(summary, *GAP_FIGURES)])


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


# --- How to repeat it -------------------------------------------------------------------------


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
    columns = [*(f"avg_recall@{k}" for k in RECALL_AT), "mean_recall"]
    header = ["method", "pairs", *(c.replace("_", " ").replace("avg", "average") for c in columns)]
    parts = ["# InfluenceSpace: summary", _warnings(summary), kept_sentence(summary)]
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


def figures(summary: Summary) -> dict[str, Callable[[], Figure]]:
    """A maker for every figure whose data there are, by its path in the output folder."""
    made: dict[str, Callable[[], Figure]] = {
        "stage1/cluster_sizes.png": partial(
            visualize.cluster_sizes,
            np.array([c["size"] for c in summary.clusters]),
            [c["terms"] for c in summary.clusters],
        )
    }
    if summary.trust is not None and summary.log_odds is not None:
        made[TRUST_FIGURE] = partial(
            visualize.wrong_captions, summary.log_odds, summary.trusted or {}, summary.trust
        )
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
    drawn = (visualize.demographic_gaps, visualize.fairness_comparison)
    for n_needed, (path, draw) in enumerate(zip(GAP_FIGURES, drawn, strict=True), start=1):
        if summary.n_scored_groups >= n_needed:
            made[path] = partial(draw, summary.gaps, GAP_RECALL_AT)
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
            m: compare(summary, comparison, m, RANDOM)[:2]
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
    if summary.influence_validation is not None:
        checks = summary.influence_validation
        made["stage2/influence_validation.png"] = partial(
            visualize.influence_validation, checks["points"], checks
        )
    pairs = summary.pairs
    if pairs.values is not None and pairs.kept is not None:
        made["stage3/cells.png"] = partial(
            visualize.cells,
            pairs.values,
            pairs.kept,
            pairs.faulty,
            pairs.kinds(),
            " ".join(filter(None, (doubts(summary), narrow_sentence(summary)))),
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
    """At most 28 lines: what was kept, the table, the verdict and where to look."""
    told = [*summary.run["warnings"], *trust_warnings(summary)]
    first_sentences = (w.partition(". ")[0].rstrip(".") + "." for w in told)
    warnings = [shorten(sentence, 240) for sentence in first_sentences]
    lines = [f"! {w}" for w in warnings[:MAX_CONSOLE_WARNINGS]]
    if len(warnings) > MAX_CONSOLE_WARNINGS:
        lines.append(f"! and {len(warnings) - MAX_CONSOLE_WARNINGS} more warnings")
    doubt = doubts(summary) if summary.sample_weights is not None else ""
    sentences = (skipped_sentence(summary), wrong_captions_sentence(summary), doubt)
    lines += [kept_sentence(summary), *filter(None, sentences)]
    lines += _console_table(summary)
    for comparison, methods in summary.metrics.items():
        if {INFLUENCESPACE, RANDOM} <= set(methods):
            v = compare(summary, comparison, INFLUENCESPACE, RANDOM)
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
        cells = "".join(f"{recall(summary, c, method):>24}" for c in summary.metrics)
        lines.append(f"{shorten(method_label(method), 29):<30}{cells}")
    return [*lines, ""]

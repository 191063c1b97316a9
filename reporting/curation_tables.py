"""The results page on what was kept and thrown away: pairs, kinds, cells, groups, clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baselines import FULL
from reporting.estimate import caution_sentence, cells_beside_clusters
from reporting.kept import review_sentence, value_sentence, weights_sentence
from reporting.retraining import match_with_retraining
from reporting.summary import Summary, image_link, image_links
from reporting.words import (
    CATEGORIES,
    CHECK_LABELS,
    FREE_PREDICTIONS,
    count,
    enumerate_words,
    escape,
    fault_label,
    method_name,
    paragraphs,
    quantity,
    share,
    signed,
    table,
)

N_LISTED = 5  # clusters listed at either end; stage3/cluster_categorization.json has all
N_CELLS = 5  # cells listed at either end


def decision_table(summary: Summary) -> str:
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


def kept_section(summary: Summary) -> str:
    """What was kept and what was thrown away."""
    return paragraphs(
        (
            value_sentence(summary),
            escape(review_sentence(summary), 400),
            image_links(summary, "stage3/cells.png"),
            _kind_table(summary),
            _cell_tables(summary),
            _group_table(summary),
            _round_table(summary),
            _category_table(summary),
            weights_sentence(summary),
            image_links(
                summary, "stage3/cluster_categorization.png", "stage3/weight_distribution.png"
            ),
            _cluster_tables(summary),
            image_links(summary, "stage2/influence_scores.png"),
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
        "Near copies: the set has a copy of the image with a better caption. Influence: leaving"
        " such a pair out changes the validation loss by this many percent over"
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
        f" {certain} Influence: the first-order change of the validation loss without the cell, ±"
        " the standard error of the inference."
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
        " the validation loss. It does not say which pairs are dropped: their own values decide."
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
    unit = "Influence: the change of the validation loss without the cluster, ± its standard error."
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
    text = match_with_retraining(summary)
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
    figure = image_links(summary, "stage2/influence_validation.png")
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
    sheets = paragraphs(map(image_link, summary.contact_sheets))
    if not summary.dropped_examples:
        return sheets
    header = ["caption", "image", "cluster", "why", "CLIP score", "value"]
    rows = [
        [
            escape(e["caption"], 120),
            escape(e["key"], 60),
            f"{e['cluster']}: {escape(', '.join(e['terms'][:3]), 50)}",
            escape(e["why"]),
            quantity(e["clip_score"], 3),
            f"{e['value']:+.1f}",
        ]
        for e in summary.dropped_examples
    ]
    text = (
        "Of each of these clusters the dropped pair of lowest value; influence and agreement in"
        " standard deviations from the mean."
    )
    return paragraphs(("### Some of the dropped pairs", text, table(header, rows, 4), sheets))

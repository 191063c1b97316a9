"""`results/report.html`: one file, with no server and no network, made from the saved stages."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import PIL.Image
from jaxtyping import Bool
from markdown_it import MarkdownIt
from markdown_it.token import Token

from baselines import FULL, INFLUENCESPACE
from reporting.estimate import doubts
from reporting.findings import answer
from reporting.how_much import share_sentence, share_warnings
from reporting.kept import lowered_clause, review_sentence
from reporting.page import results_markdown
from reporting.report.pairs import AGREEMENT_ALONE, INFLUENCE_ALONE, OTHER_RUN, THIS_RUN
from reporting.standing import judged_sentence, trust_warnings
from reporting.summary import (
    TEST,
    TRAIN,
    VALIDATION,
    Summary,
    estimated_share,
    recall,
    trusted_recall,
)
from reporting.verdicts import CLEAR, clear_outcome, compare
from reporting.words import COMPARISON_LABELS, RANDOM, method_label, share

HERE = Path(__file__).parent
FIGURE_COLOURS = 64  # of a figure within the page, which then takes a sixth of its bytes
# Nothing is loaded but the page itself and what lies beside it.
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval' 'self' file:; img-src 'self' file: data: blob:"
)
OUTCOMES = {"wins": "beats it", "loses": "loses to it", "undecided": "cannot be told from it"}
ALTERNATIVES = {  # what a figure shows, for those who cannot see it
    "cluster sizes": "Bars: how many pairs each cluster has",
    "keep curve": "Lines: recall and loss expected at each share of the pairs kept, with errors;"
    " marked are the share kept, the best share and that of pairs that do not look faulty",
    "wrong captions": "Histograms: how likely image and caption belong together, split by split",
    "cells": "Values of pairs kept and dropped, and the share kept of each kind of pair",
    "cluster categorization": "Bars: clusters and pairs that are harmful, neutral, beneficial",
    "weight distribution": "Histogram of the weights of kept pairs",
    "influence scores": "Influence of each cluster with its standard error, in order",
    "influence validation": "Points: predicted against real effect of leaving clusters out",
    "performance comparison": "Mean recall of every method, and its difference to random",
    "efficiency comparison": "Bars: pairs, steps and seconds of every method",
    "training progress": "Lines: validation loss by training step, for every method",
    "performance efficiency tradeoff": "Points: recall against training cost of every method",
    "demographic gaps": "Recall of demographic groups, for every method",
    "fairness comparison": "Gaps between demographic groups with intervals, for every method",
}


class PageData(NamedTuple):
    """What the page holds beside the summary's numbers."""

    scripts: Mapping[str, str]  # packed data by name: meta, pairs, photos, map, library
    clusters: Sequence[Mapping[str, Any]]  # rows of the table
    cells: Sequence[Mapping[str, Any]]
    keeps: Mapping[str, Bool[np.ndarray, " n"]]  # who keeps which training pairs


def render(summary: Summary, data: PageData, figures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        summary: a run's numbers.
        data: what is shown of pairs.
        figures: PNG files, by their paths as the results page links them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    images = {path: figure_address(png) for path, png in figures.items()}
    rest, has_pairs = replace(summary, changes=""), "pairs" in data.scripts
    found, plain_doubts = standings(summary), doubts(summary).replace("*", "")
    return environment.get_template("report.html.jinja").render(
        policy=POLICY,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        program=(HERE / "report.js").read_text(encoding="utf-8"),
        data=data.scripts,
        has_pairs=has_pairs,
        dataset=summary.run["dataset"],
        command=summary.run["command"],
        warnings=[
            *summary.run["warnings"],
            *trust_warnings(summary),
            *share_warnings(summary),
            *filter(None, [plain_doubts]),
        ],
        review=review_sentence(summary),
        answer="" if found else html(answer(summary), {}),
        shows_trusted=summary.shows_trusted,
        is_curated=summary.is_curated,
        n_kept=summary.n_curated,
        n_train=summary.n_train,
        share=share(summary.n_curated, summary.n_train),
        lowered=lowered_clause(summary),
        share_width=100 * summary.n_curated / summary.n_train,
        n_seeds=summary.n_seeds,
        n_test_images=summary.n_test_images,
        standings=found,
        facts=facts(summary),
        views=[view for view in VIEWS if view[1].get("a", INFLUENCESPACE) in data.keeps],
        sorts=SORTS,
        colours=COLOURS,
        clusters=data.clusters,
        tables=[("Clusters", data.clusters, "cluster"), ("Cells", data.cells, "cell")],
        table_columns=TABLE_COLUMNS,
        keepers=[(name, keeper_label(name)) for name in data.keeps],
        overlaps=overlaps(data.keeps),
        changes=html(summary.changes, {}),
        results=html(results_markdown(rest).partition("\n## ")[2], images, above="## "),
    )


VIEWS: list[tuple[str, dict[str, Any]]] = [  # ways to look at pairs: values of the page's filters
    ("Kept beside dropped", {}),
    ("Near the cut", {"sort": "distance"}),
    ("Most harmful", {"sort": "influence"}),
    ("Most helpful", {"sort": "influence-"}),
    ("Agree least", {"sort": "agreement"}),
    ("By cluster", {"group": "cluster"}),
    ("By reason", {"group": "reason"}),
    ("Near copies", {"group": "family"}),
    ("Influence against agreement", {"a": INFLUENCE_ALONE, "b": AGREEMENT_ALONE}),
    ("Moved in and out", {"a": THIS_RUN, "b": OTHER_RUN}),
    ("Held out", {"split": VALIDATION, "sort": "agreement"}),
    ("Marked", {"marked": True}),
]
SORTS = [(name, name) for name in ("value", "influence", "agreement")]
SORTS += [("distance", "distance to the cut"), ("weight", "weight"), ("key", "key")]
COLOURS = ("decision", "cluster", "influence", "agreement", "value", "fault")
COMMON = [("category", ""), ("pairs", "number"), ("influence (%)", "number")]
COMMON += [("kept", "number"), ("weight", "number"), ("photographs", "plain")]
TABLE_COLUMNS = {
    "cluster": [("cluster", ""), ("terms", ""), *COMMON],
    "cell": [
        *(("cell", ""), ("cluster", ""), ("terms", "")),
        *(("agreement", ""), ("copies", ""), ("CLIP score", "number")),
        *COMMON,
    ],
}


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What the answer stands on: (name, text) each."""
    run, trust = summary.run, summary.trust
    found = [
        ("Data", run["dataset_description"]),
        ("Encoder", run["encoder"]),
        ("Validation", judged_sentence(summary).replace("`", "")),
    ]
    if trust is not None:
        shares = ", ".join(
            f"{name} {estimated_share(trust[split])}"
            for name, split in (("training", TRAIN), ("validation", VALIDATION), ("test", TEST))
        )
        found.append(("Wrong captions, estimated (95 % interval)", shares))
    if told := share_sentence(summary):
        found.append(("How much to keep", told))
    if summary.account:
        found.append(("Captions", summary.account))
    return found


def standings(summary: Summary) -> list[dict[str, str]]:
    """InfluenceSpace against random, the best rival and the full data, a row each."""
    rows = []
    for comparison, methods in summary.metrics.items():
        if INFLUENCESPACE not in methods:
            continue
        best = summary.best_rival(comparison)
        has_rivals = len({*methods} - {INFLUENCESPACE, FULL}) > 1  # of whom one can be the best
        for other in dict.fromkeys(filter(None, (RANDOM, best, FULL))):
            if other not in methods:
                continue
            v = compare(summary, comparison, INFLUENCESPACE, other)
            outcome = clear_outcome(v)
            spread = "" if v.standard_error is None else f" ± {CLEAR * v.standard_error:.2f}"
            rows.append(
                {
                    "comparison": COMPARISON_LABELS[comparison].lower(),
                    "own": recall(summary, comparison, INFLUENCESPACE),
                    "other": method_label(other)
                    + (", the best rival" if has_rivals and other == best else ""),
                    "recall": recall(summary, comparison, other),
                    "own_trusted": trusted_recall(summary, comparison, INFLUENCESPACE),
                    "trusted": trusted_recall(summary, comparison, other),
                    "difference": f"{v.difference:+.2f}{spread}",
                    "outcome": outcome,
                    "verdict": OUTCOMES[outcome],
                }
            )
    return rows


KEEPER_LABELS = {
    INFLUENCE_ALONE: "influence alone",
    AGREEMENT_ALONE: "agreement alone",
    THIS_RUN: "this run",
    OTHER_RUN: "the other run",
}


def keeper_label(name: str) -> str:
    """Who keeps pairs, for people."""
    return KEEPER_LABELS.get(name) or method_label(name)


def overlaps(keeps: Mapping[str, Bool[np.ndarray, " n"]]) -> list[dict[str, Any]]:
    """How many pairs each keeps that each other one drops, a row each."""
    most = max((int((a & ~b).sum()) for a in keeps.values() for b in keeps.values()), default=0)
    return [
        {
            "name": name,
            "label": keeper_label(name),
            "cells": [
                {
                    "other": other,
                    "label": keeper_label(other),
                    "n": (n := int((kept & ~others).sum())),
                    "part": round(45 * n / max(most, 1)),
                }
                for other, others in keeps.items()
            ],
        }
        for name, kept in keeps.items()
    ]


def figure_address(png: bytes) -> str:
    """A figure as a data address, in few colours."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(FIGURE_COLOURS, dither=PIL.Image.Dither.NONE)
    few.convert("RGB").save(buffer, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def html(markdown: str, images: Mapping[str, str], above: str = "") -> str:
    """Markdown of ours as HTML, its headings a level lower, its figures from `images`."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(above + markdown.replace("> [!WARNING]\n", ""))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        for child in token.children or ():
            if child.type == "image":
                _place_figure(child, images)
    return str(parser.renderer.render(tokens, parser.options, {}))


def _place_figure(image: Token, images: Mapping[str, str]) -> None:
    name = image.content
    if (address := images.get(str(image.attrs["src"]))) is not None:
        image.attrs["src"] = address
        image.attrs["loading"] = "lazy"
    for child in image.children or ():
        child.content = ALTERNATIVES.get(name, name)

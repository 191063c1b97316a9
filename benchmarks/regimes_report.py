"""Tables and figure of the benchmark of regimes, made from its rows alone.

    recovered gain = (method - random) / (oracle - random)        of mean recall, over seeds

with the oracle told which pairs are faulty. The best rival is the baseline of highest mean recall
on the test images themselves, chosen after the fact: a harder rival than any method chosen before.
Variants of InfluenceSpace stand apart from the methods, each beside InfluenceSpace as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from flickr8k_regimes import in_order
from regimes_figure import FIGURE, figure
from regimes_names import (
    BOTH,
    GROUP_METRICS,
    METHODS,
    METRICS,
    ORACLE,
    RANDOM,
    RARE,
    RESULTS,
    RIVALS,
    SAME_EPOCHS,
    SAME_STEPS,
    TWO_CUTS,
)

from baselines import FULL, INFLUENCESPACE
from reporting.words import COMPARISON_LABELS, method_label

# --- Summary ----------------------------------------------------------------------------------


def stderr(values: pd.Series) -> float:
    """Standard error of the mean of two values or more."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def mean_and_stderr(values: pd.Series) -> dict[str, float | None]:
    """Mean over seeds and its standard error, None where one seed has none."""
    values = values.dropna()
    return {
        "mean": float(np.mean(values)) if len(values) else None,
        "stderr": stderr(values) if len(values) > 1 else None,
    }


def recovered_gain(
    method: pd.Series, random: pd.Series, oracle: pd.Series
) -> dict[str, float | None] | None:
    """(method - random) / (oracle - random) of means over the seeds that all three have.

    With its standard error by the jackknife over seeds. None where oracle and random differ by no
    more than two standard errors: there is nothing to recover.
    """
    runs = pd.concat({"method": method, "random": random, "oracle": oracle}, axis=1).dropna()
    won, possible = runs["method"] - runs["random"], runs["oracle"] - runs["random"]
    error = stderr(possible) if len(runs) > 1 else 0.0
    if runs.empty or possible.mean() <= 2 * error:
        return None
    spread = None
    if len(runs) > 1 and (possible.sum() != possible).all():
        without = (won.sum() - won) / (possible.sum() - possible)
        spread = float(np.sqrt((len(runs) - 1) * np.var(without)))
    return {"mean": float(won.mean() / possible.mean()), "stderr": spread}


def summarize_cell(cell: pd.DataFrame) -> dict[str, Any]:
    """One regime, share kept and comparison: every method, and InfluenceSpace against the best.

    Args:
        cell: its rows, those of the full data included.
    """
    present = [m for m in METHODS if (cell["method"] == m).any()]
    runs = {m: cell[cell["method"] == m].set_index("seed") for m in present}
    methods: dict[str, dict[str, Any]] = {}
    for method, rows in runs.items():
        summary: dict[str, Any] = {m: mean_and_stderr(rows[m].astype(float)) for m in METRICS}
        summary["n_seeds"] = len(rows)
        if RANDOM in runs:
            change = percent_change(rows, runs[RANDOM])
            summary["recall_rise_percent"] = mean_and_stderr(change["mean_recall"])
            summary["validation_loss_fall_percent"] = mean_and_stderr(-change["validation_loss"])
            summary["test_loss_fall_percent"] = mean_and_stderr(-change["test_loss"])
        if RANDOM in runs and ORACLE in runs:
            recalls = (runs[m]["mean_recall"] for m in (method, RANDOM, ORACLE))
            summary["recovered_gain"] = recovered_gain(*recalls)
        if FULL in runs:
            for metric in ("mean_recall", "gap"):
                both = rows.index.intersection(runs[FULL].index)
                if len(both):
                    ratio = rows[metric][both].mean() / runs[FULL][metric][both].mean()
                    summary[f"{metric}_against_full_percent"] = 100 * (float(ratio) - 1)
        methods[method] = summary
    return {"methods": methods, **against_best_rival(runs)}


def percent_change(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Relative change of recall and losses against the run of the same seed."""
    columns = ["mean_recall", "validation_loss", "test_loss"]
    return 100 * (rows[columns] / base[columns].reindex(rows.index) - 1)


def against_best_rival(runs: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The rival of highest mean recall, and what InfluenceSpace has above it, paired by seed."""
    means = {m: runs[m]["mean_recall"].mean() for m in RIVALS if m in runs}
    if not means:
        return {"best_rival": None, "difference": None}
    best = max(means, key=lambda m: means[m])
    if INFLUENCESPACE not in runs:
        return {"best_rival": best, "difference": None}
    paired = (runs[INFLUENCESPACE]["mean_recall"] - runs[best]["mean_recall"]).dropna()
    difference = {**mean_and_stderr(paired), "n_seeds": len(paired)} if len(paired) else None
    return {"best_rival": best, "difference": difference}


def cells_of(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Comparison, regime and share kept of every cell, with its rows, the full data's included."""
    for comparison in (SAME_STEPS, SAME_EPOCHS):
        for regime in in_order(frame["regime"]):
            rows = frame[frame["regime"] == regime]
            chosen = rows[rows["comparison"] == comparison]
            for keep in sorted(chosen["keep"].unique()):
                cell = pd.concat([chosen[chosen["keep"] == keep], rows[rows["comparison"] == BOTH]])
                yield {"comparison": comparison, "regime": regime, "keep": float(keep)}, cell


def summarize(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """All cells, by comparison, regime and share kept, without the variants."""
    of_methods = frame[frame["method"].isin(METHODS)]
    return [named | summarize_cell(cell) for named, cell in cells_of(of_methods)]


def verdicts(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In how many of the regimes with a rival InfluenceSpace holds its own."""
    found = []
    for comparison, keep in dict.fromkeys((c["comparison"], c["keep"]) for c in cells):
        here = [
            c["difference"]
            for c in cells
            if (c["comparison"], c["keep"]) == (comparison, keep) and c["difference"]
        ]
        if not here:
            continue
        found.append(
            {
                "comparison": comparison,
                "keep": keep,
                "regimes": len(here),
                "above": sum(d["mean"] > 0 for d in here),
                "within_one_stderr_or_above": sum(d["mean"] >= -(d["stderr"] or 0) for d in here),
            }
        )
    return found


# --- Variants of InfluenceSpace ---------------------------------------------------------------


def ablation(frame: pd.DataFrame, labels: Mapping[str, str]) -> dict[str, Any]:
    """What each part is worth, and what weighing captions about women does where they are rare.

    Args:
        frame: the rows of all methods.
        labels: what is different in each variant.

    Returns:
        Empty where no variant has a seed in common with InfluenceSpace.
    """
    worth = parts_worth(frame, labels)
    return {"differences": worth, "rare_group": women_weighed(frame, labels)} if worth else {}


def parts_worth(frame: pd.DataFrame, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Variants against InfluenceSpace, by comparison and share kept, where there are both."""
    frame = frame[frame["method"].isin([INFLUENCESPACE, *labels])]
    found = []
    for comparison in (SAME_STEPS, SAME_EPOCHS):
        chosen = frame[frame["comparison"] == comparison]
        for keep in sorted(chosen["keep"].unique()):
            recalls, faults_left = (
                {
                    method: rows.pivot(index="seed", columns="regime", values=metric)
                    for method, rows in chosen[chosen["keep"] == keep].groupby("method")
                }
                for metric in ("mean_recall", "faults_left")
            )
            compared = against_unchanged(recalls, faults_left, labels)
            if compared:
                found.append({"comparison": comparison, "keep": float(keep), **compared})
    return found


def against_unchanged(
    recalls: Mapping[Any, pd.DataFrame],
    faults_left: Mapping[Any, pd.DataFrame],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """Mean recall of every variant less that of InfluenceSpace, paired by regime and seed, points.

    Args:
        recalls: of each method, a row a seed, a column a regime; NaN where there is no run.
        faults_left: share of faulty pairs among the kept, in the same form.
        labels: what is different in each variant.

    Returns:
        InfluenceSpace's own mean recall where a variant has the seed too, the differences, and the
        faulty among the kept on the same sets; empty where there are none.
    """
    if INFLUENCESPACE not in recalls:
        return {}
    own = recalls[INFLUENCESPACE]
    differences = {m: recalls[m].reindex_like(own) - own for m in labels if m in recalls}
    differences = {m: d for m, d in differences.items() if d.notna().to_numpy().any()}
    if not differences:
        return {}
    shared = np.any([table.notna() for table in differences.values()], axis=0)
    compared = {INFLUENCESPACE: own.where(shared), **differences}
    faulty = {
        name: float(faults_left[name].reindex_like(own).where(table.notna()).mean().mean())
        for name, table in compared.items()
    }
    return {
        "influencespace": {
            **over_regimes(compared[INFLUENCESPACE]),
            "faults_left": faulty[INFLUENCESPACE],
        },
        "variants": {
            name: {
                "label": labels[name],
                **over_regimes(table),
                "faults_left": faulty[name],
            }
            for name, table in differences.items()
        },
    }


def over_regimes(table: pd.DataFrame) -> dict[str, Any]:
    """Every regime over its seeds, and the mean over the regimes that there are.

    The error of that mean is over seeds, of their means over the regimes: a seed draws all regimes
    alike. It is known where every seed has every regime.

    Args:
        table: a row a seed, a column a regime; NaN where there is no run.
    """
    table = table.dropna(axis=1, how="all").dropna(axis=0, how="all")
    regimes = {
        regime: {**mean_and_stderr(table[regime]), "n_seeds": int(table[regime].count())}
        for regime in in_order(table.columns)
    }
    is_whole = len(table) > 1 and bool(table.notna().to_numpy().all())
    error = stderr(table.mean(axis=1)) if is_whole else None
    return {"regimes": regimes, "mean": {"mean": float(table.mean().mean()), "stderr": error}}


def women_weighed(frame: pd.DataFrame, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Recall per group where captions about women weigh more, beside the methods as they are.

    Over the seeds that all of them have, in the regime that thins such captions.
    """
    women = [name for name in labels if name.startswith("women_")]
    beside = {FULL: method_label(FULL), INFLUENCESPACE: method_label(INFLUENCESPACE)}
    named = beside | {name: labels[name] for name in women}
    found = []
    for cell, rows in cells_of(frame[frame["method"].isin(named)]):
        methods = rows.groupby("seed")["method"].nunique()
        shared = rows[rows["seed"].isin(methods.index[methods == rows["method"].nunique()])]
        present = set(shared["method"])
        if cell["regime"] != RARE or INFLUENCESPACE not in present or present.isdisjoint(women):
            continue
        runs = {name: shared[shared["method"] == name] for name in named}
        summaries = {
            name: {
                "label": named[name],
                "n_seeds": len(run),
                **{metric: mean_and_stderr(run[metric]) for metric in GROUP_METRICS},
            }
            for name, run in runs.items()
            if name in present
        }
        found.append({**cell, "methods": summaries})
    return found


# --- Tables -----------------------------------------------------------------------------------


def quantity(value: Mapping[str, float | None] | None, digits: int = 2, sign: str = "") -> str:
    """Mean ± standard error."""
    if value is None or value["mean"] is None:
        return "–"
    error = value.get("stderr")
    spread = "" if error is None else f" ± {error:.{digits}f}"
    return f"{value['mean']:{sign}.{digits}f}{spread}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def headline(cells: Sequence[dict[str, Any]]) -> list[str]:
    """InfluenceSpace and its best rival between random and the oracle."""
    rows = []
    for cell in cells:
        methods, best = cell["methods"], cell["best_rival"]
        ours, rival = methods.get(INFLUENCESPACE, {}), methods.get(best, {})

        def recall(method: str, methods: Any = methods) -> str:
            return quantity(methods.get(method, {}).get("mean_recall"))

        rows.append(
            [
                cell["regime"],
                f"{cell['keep']:g}",
                *(recall(m) for m in (FULL, RANDOM, ORACLE, INFLUENCESPACE)),
                f"{method_label(best)} {recall(best)}" if best else "–",
                quantity(cell["difference"], sign="+"),
                quantity(ours.get("recovered_gain")),
                quantity(rival.get("recovered_gain")),
                quantity(ours.get("validation_loss_fall_percent"), 1, "+"),
                quantity(ours.get("test_loss_fall_percent"), 1, "+"),
                quantity(ours.get("recall_rise_percent"), 1, "+"),
            ]
        )
    header = (
        "regime;keep;full data;random;oracle;InfluenceSpace;best rival;"
        "InfluenceSpace − best rival;recovered gain;of the best rival;"
        "validation loss falls by (%);test loss falls by (%);recall rises by (%)"
    )
    return markdown_table(header.split(";"), rows)


def table_label(method: str) -> str:
    """The method's name, also of one that only this benchmark has."""
    return "negCLIPLoss, then NormSim" if method == TWO_CUTS else method_label(method)


def recall_tables(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Every method in every regime, a table a share kept."""
    lines = []
    for keep in dict.fromkeys(c["keep"] for c in cells):
        here = [c for c in cells if c["keep"] == keep]
        names = [m for m in METHODS if any(m in c["methods"] for c in here)]
        rows = [
            [
                table_label(method),
                *(quantity(c["methods"].get(method, {}).get("mean_recall")) for c in here),
            ]
            for method in names
        ]
        lines += [f"### Mean recall, keep {keep:g}", ""]
        lines += markdown_table(["method", *(c["regime"] for c in here)], rows)
    return lines


def group_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The gap between captions about women and about men in the regime that thins the former."""
    rows = [
        [
            f"{cell['keep']:g}",
            table_label(method),
            quantity(summary["mean_recall"]),
            percent(summary.get("mean_recall_against_full_percent")),
            quantity(summary["gap"]),
            percent(summary.get("gap_against_full_percent")),
            quantity(summary["female_recall@10"]),
            quantity(summary["male_recall@10"]),
        ]
        for cell in cells
        if cell["regime"] == RARE
        for method, summary in cell["methods"].items()
    ]
    if not rows:
        return []
    header = (
        "keep;method;mean recall;against full data;gap female/male;against full data;"
        "recall@10 female;recall@10 male"
    )
    return ["### Rare group", "", *markdown_table(header.split(";"), rows)]


def women_table(weighed: Sequence[dict[str, Any]]) -> list[str]:
    """Weights for the captions about women, in the regime that thins them."""
    rows = [
        [
            f"{cell['keep']:g}",
            summary["label"],
            *(quantity(summary[metric]) for metric in GROUP_METRICS),
        ]
        for cell in weighed
        for summary in cell["methods"].values()
    ]
    if not rows:
        return []
    header = "keep;method;gap female/male;recall@10 female;recall@10 male"
    return [
        "Captions about women weighing more in training, over the seeds that all rows of a share "
        "kept have:",
        "",
        *markdown_table(header.split(";"), rows),
    ]


def ablation_tables(worth: Sequence[dict[str, Any]]) -> list[str]:
    """A row a variant, a table a comparison and share kept."""
    if not worth:
        return []
    lines = [
        "## What each part is worth",
        "",
        "InfluenceSpace with one thing changed, less InfluenceSpace: points of mean recall, paired "
        "over the seeds that both have. Below zero, the change does harm. The first row is the "
        "mean recall of InfluenceSpace on those seeds, in percent. *Faulty* is their share among "
        "the pairs kept, on the same sets.",
        "",
    ]
    for part in worth:
        own = part["influencespace"]
        regimes = list(own["regimes"])
        rows = [["InfluenceSpace", *_over_regimes(own, regimes, "")]]
        for variant in part["variants"].values():
            rows.append([variant["label"], *_over_regimes(variant, regimes, "+")])
        title = f"{COMPARISON_LABELS[part['comparison']]} as the full data, keep {part['keep']:g}"
        counts = {s["n_seeds"] for v in part["variants"].values() for s in v["regimes"].values()}
        n_seeds = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
        lines += [f"### {title}", "", f"Seeds: {n_seeds}.", ""]
        lines += markdown_table(["variant", *regimes, "mean over its regimes", "faulty"], rows)
    return lines


def _over_regimes(summary: Mapping[str, Any], regimes: Sequence[str], sign: str) -> list[str]:
    values = (*(summary["regimes"].get(regime) for regime in regimes), summary["mean"])
    faulty = f"{100 * summary['faults_left']:.1f} %"
    return [*(quantity(value, sign=sign) for value in values), faulty]


def percent(value: float | None) -> str:
    """A signed share."""
    return "–" if value is None else f"{value:+.1f} %"


def cost_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """What choosing costs, and what it leaves in, averaged over regimes and shares kept."""
    rows = []
    for method in METHODS:
        found = [c["methods"][method] for c in cells if method in c["methods"]]
        if found:
            means = [
                np.mean([s[metric]["mean"] for s in found])
                for metric in ("seconds", "pairs_evaluated", "faults_left")
            ]
            cost = [f"{means[0]:.1f}", f"{means[1]:,.0f}", f"{100 * means[2]:.1f} %"]
            rows.append([table_label(method), *cost])
    header = ["method", "seconds to choose", "pairs evaluated", "faulty among the kept"]
    return ["### Cost, mean over regimes and shares kept", "", *markdown_table(header, rows)]


def markdown(
    cells: Sequence[dict[str, Any]], about: Mapping[str, Any], parts: Mapping[str, Any]
) -> str:
    """The whole results page.

    Args:
        cells: of `summarize`.
        about: how the rows came about.
        parts: of `ablation`.
    """
    lines = [
        "# Who wins where",
        "",
        f"`{about['command']}`, {about['hardware']['cpu_cores']} CPU cores, "
        f"torch {about['packages'].get('torch', torch.__version__)}. Mean ± standard error over "
        f"seeds; recall in percent, mean of recall@1, 5 and 10 in both directions on 1,000 unseen "
        f"images. The best rival is chosen on these results.",
        "",
    ]
    for comparison in dict.fromkeys(c["comparison"] for c in cells):
        here = [c for c in cells if c["comparison"] == comparison]
        lines += [f"## {COMPARISON_LABELS[comparison]} as the full data", "", *headline(here)]
        lines += [
            f"Keep {v['keep']:g}: InfluenceSpace is above the best rival in {v['above']} of "
            f"{v['regimes']} regimes, above or within one standard error in "
            f"{v['within_one_stderr_or_above']}.\n"
            for v in verdicts(here)
        ]
        weighed = [c for c in parts.get("rare_group", []) if c["comparison"] == comparison]
        lines += [*recall_tables(here), *group_table(here), *women_table(weighed)]
        lines += cost_table(here)
    lines += ablation_tables(parts.get("differences", []))
    return "\n".join(lines)


# --- Files ------------------------------------------------------------------------------------


def write_summary(
    frame: pd.DataFrame, out: Path, about: Mapping[str, Any], labels: Mapping[str, str]
) -> None:
    """JSON, tables and figure of the rows; the tables are printed too.

    Args:
        frame: the rows that count.
        out: the folder written to; the figure goes to the documentation for the usual one.
        about: how the rows came about.
        labels: what is different in each variant of InfluenceSpace, by its name in the rows.
    """
    cells, parts = summarize(frame), ablation(frame, labels)
    summary = {**about, "verdicts": verdicts(cells), "cells": cells}
    if parts:
        summary["ablation"] = parts
    (out / "regimes.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    text = markdown(cells, about, parts)
    (out / "regimes.md").write_text(text)
    print(text)
    figure(cells, FIGURE if out.resolve() == RESULTS.resolve() else out / "regimes.png")

"""Tables of the benchmark of regimes where held-out pairs are noisy, few, or about one thing.

Differences are paired by seed. Rivals that look at no held-out pair are the same whatever these
are; their rows with clean held-out pairs stand for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from flickr8k_regimes import in_order
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from regimes_names import (
    BOTH,
    METHODS,
    RESULTS,
    RIVALS,
    SAME_STEPS,
    WITHOUT_HELD_OUT,
    regime_label,
)
from regimes_report import markdown_table, mean_and_stderr, quantity, table_label

from baselines import FULL, INFLUENCESPACE
from reporting.figures.style import INK, LINE_COLORS, PALE

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs/target.png"
ASK_HELD_OUT = tuple(method for method in RIVALS if method not in WITHOUT_HELD_OUT)
CLEAN, NOISY = "clean", "noisy"
TARGET_RIVALS = ("neg_clip_loss", "neg_clip_loss_normsim", "neg_clip_loss_then_normsim")
TARGET_COLORS = {
    INFLUENCESPACE: LINE_COLORS[INFLUENCESPACE],
    "neg_clip_loss": "#D55E00",
    "neg_clip_loss_normsim": "#7F7F00",
    "neg_clip_loss_then_normsim": "#999999",
}


def recalls(rows: pd.DataFrame, metric: str = "mean_recall") -> dict[str, pd.Series]:
    """A metric by seed for every method."""
    return {m: r.set_index("seed")[metric] for m, r in rows.groupby("method")}


def paired(first: pd.Series, second: pd.Series) -> dict[str, float | None]:
    """Mean difference over the seeds that both have, with its standard error."""
    return mean_and_stderr(first - second)


def best_of(found: Mapping[str, pd.Series], names: Sequence[str]) -> str:
    """The method of highest mean."""
    return max((m for m in names if m in found), key=lambda m: found[m].mean())


def fresh(frame: pd.DataFrame, first_seed: int) -> pd.DataFrame:
    """Rows at as many steps, of seeds that nobody looked at before the method was fixed."""
    chosen = frame["comparison"].isin([SAME_STEPS, BOTH])
    return frame[chosen & (frame["seed"] >= first_seed)]


def noise_table(frame: pd.DataFrame) -> list[str]:
    """Held-out pairs as faulty as the training pairs, beside clean ones and the best rival."""
    rows = []
    for regime in in_order(frame["regime"]):
        here = frame[frame["regime"] == regime]
        for keep in sorted(here.loc[here["validation"] == NOISY, "keep"].unique()):
            at = here[here["keep"] == keep]
            noisy, clean = (recalls(at[at["validation"] == v]) for v in (NOISY, CLEAN))
            if INFLUENCESPACE not in noisy or INFLUENCESPACE not in clean:
                continue
            rivals = {m: r for m, r in clean.items() if m in RIVALS and m not in ASK_HELD_OUT}
            rivals |= {m: r for m, r in noisy.items() if m in ASK_HELD_OUT}
            best = best_of(rivals, RIVALS)
            left = recalls(at[at["validation"] == NOISY], "faults_left")
            left_clean = recalls(at[at["validation"] == CLEAN], "faults_left")
            own = noisy[INFLUENCESPACE]
            rows.append(
                [
                    regime_label(regime),
                    f"{keep:g}",
                    quantity(mean_and_stderr(clean[INFLUENCESPACE])),
                    quantity(mean_and_stderr(own)),
                    quantity(paired(own, clean[INFLUENCESPACE]), sign="+"),
                    f"{table_label(best)} {quantity(mean_and_stderr(rivals[best]))}",
                    quantity(paired(own, rivals[best]), sign="+"),
                    percent(left[INFLUENCESPACE]),
                    percent(left_clean[INFLUENCESPACE]),
                    percent(left_clean["neg_clip_loss"]) if "neg_clip_loss" in left_clean else "–",
                    f"{len(own.index.intersection(clean[INFLUENCESPACE].index))}",
                ]
            )
    header = (
        "regime;keep;InfluenceSpace, clean held-out pairs;noisy ones;difference;best rival;"
        "noisy − best rival;faulty among the kept, noisy;clean;negCLIPLoss;seeds of the differences"
    )
    return markdown_table(header.split(";"), rows) if rows else []


def percent(values: pd.Series) -> str:
    """A mean share in percent."""
    return f"{100 * values.mean():.1f} %"


def size_table(frame: pd.DataFrame) -> list[str]:
    """How few held-out pairs do, by regime: recall and faulty among the kept."""
    sizes = sorted(
        {v for v in frame["validation"] if v.partition("-")[2].isdecimal()},
        key=lambda v: (v.partition("-")[0], int(v.partition("-")[2])),
    )
    columns = [v for kind in (NOISY, CLEAN) for v in [s for s in sizes if s[:5] == kind] + [kind]]
    some = frame[(frame["method"] == INFLUENCESPACE) & frame["validation"].isin(sizes)]
    rows = []
    for regime in in_order(frame["regime"]):
        of_regime = some[some["regime"] == regime]
        if of_regime.empty:
            continue
        seeds, keep = sorted(of_regime["seed"].unique()), of_regime["keep"].max()
        here = frame[
            (frame["regime"] == regime)
            & (frame["method"] == INFLUENCESPACE)
            & (frame["keep"] == keep)
            & frame["seed"].isin(seeds)
        ]
        cells = []
        for name in columns:
            at = here[here["validation"] == name]
            cells.append(
                f"{quantity(mean_and_stderr(at['mean_recall']))} ({percent(at['faults_left'])})"
                if len(at)
                else "–"
            )
        rows.append([regime_label(regime), f"{keep:g}", *cells, f"{len(seeds)}"])
    names = [v if "-" in v else f"{v}-1000" for v in columns]
    return markdown_table(["regime", "keep", *names, "seeds"], rows) if rows else []


def target_cells(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every regime and share kept whose held-out and test images are about one thing."""
    cells = []
    targets = frame[~frame["validation"].isin([CLEAN, NOISY])]
    is_size = [name.partition("-")[2].isdecimal() for name in targets["validation"]]
    targets = targets[~np.array(is_size, dtype=bool)]
    for (regime, name), rows in targets.groupby(["regime", "validation"]):
        for keep in sorted(rows.loc[rows["method"] == INFLUENCESPACE, "keep"].unique()):
            at = rows[(rows["keep"] == keep) | (rows["method"] == FULL)]
            cells.append(
                {
                    "regime": regime,
                    "validation": name,
                    "keep": float(keep),
                    "recalls": recalls(at),
                    "left": recalls(at, "faults_left"),
                }
            )
    return cells


def target_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Recall on the target, with the faulty among the kept."""
    rows = []
    for cell in cells:
        found, left = cell["recalls"], cell["left"]
        best = best_of(found, TARGET_RIVALS[:2])
        difference = paired(found[INFLUENCESPACE], found[best])
        shown = [m for m in METHODS if m in found]
        rows.append(
            [
                f"{regime_label(cell['regime'])}, {cell['validation']}",
                f"{cell['keep']:g}",
                *(
                    f"{quantity(mean_and_stderr(found[m]))} ({percent(left[m])})"
                    if m in shown
                    else "–"
                    for m in (FULL, INFLUENCESPACE, *TARGET_RIVALS)
                ),
                f"{table_label(best)} {quantity(difference, sign='+')}",
                f"{len(found[INFLUENCESPACE])}",
            ]
        )
    header = ["pool, held-out", "keep", "full data", "InfluenceSpace"]
    header += [table_label(m) for m in TARGET_RIVALS] + ["against the better of the first two"]
    return markdown_table([*header, "seeds"], rows) if rows else []


def variants_table(frame: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """InfluenceSpace with one thing changed where held-out pairs are noisy."""
    rows = []
    noisy = frame[frame["validation"] == NOISY]
    for (regime, keep), at in noisy.groupby(["regime", "keep"]):
        found, left = recalls(at), recalls(at, "faults_left")
        for name, label in labels.items():
            if name in found and INFLUENCESPACE in found:
                rows.append(
                    [
                        regime_label(regime),
                        f"{keep:g}",
                        label,
                        quantity(mean_and_stderr(found[name])),
                        quantity(paired(found[name], found[INFLUENCESPACE]), sign="+"),
                        percent(left[name]),
                    ]
                )
    header = ["regime", "keep", "changed", "mean recall", "difference", "faulty among the kept"]
    return markdown_table(header, rows) if rows else []


def write_validation(
    frame: pd.DataFrame,
    out: Path,
    about: Mapping[str, Any],
    labels: Mapping[str, str],
    *,
    first_seed: int,
) -> None:
    """`validation.md` and the figure of targets, from the rows that count.

    Args:
        frame: the rows of all held-out pairs.
        out: the folder written to; the figure goes to the documentation for the usual one.
        about: how the rows came about.
        labels: what is different in each variant of InfluenceSpace.
        first_seed: seeds before it were looked at while the method was made.
    """
    rows = fresh(frame, first_seed)
    cells = target_cells(rows)
    parts = (
        ("Held-out pairs as faulty as the training pairs", noise_table(rows)),
        ("How many held-out pairs are needed", size_table(rows)),
        ("A narrow target", target_table(cells)),
        ("What protects from noisy held-out pairs", variants_table(rows, labels)),
    )
    lines = [
        "# Held-out pairs that are noisy, few, or about one thing",
        "",
        f"`{about['command']}` with `--validation` and `--target`, {about['hardware']['cpu_cores']}"
        f" CPU cores. Mean recall in percent ± standard error over seeds from {first_seed} on, as "
        "many steps as the full data; in brackets the share of faulty pairs among the kept.",
        "",
    ]
    for title, table in parts:
        if table:
            lines += [f"## {title}", "", *table]
    if len(lines) > 4:
        (out / "validation.md").write_text("\n".join(lines))
        print("\n".join(lines))
    if cells:
        figure(cells, FIGURE if out.resolve() == RESULTS.resolve() else out / "target.png")


def figure(cells: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A panel a pool: recall on the target against the share kept."""
    pools = list(dict.fromkeys((c["regime"], c["validation"]) for c in cells))
    with mpl.rc_context({"font.size": 9}):
        drawn = Figure(figsize=(4.2 * len(pools) + 0.6, 3.6), layout="constrained")
        axes = drawn.subplots(1, len(pools), squeeze=False, sharey=True)[0]
        for axis, pool in zip(axes, pools, strict=True):
            _panel(axis, [c for c in cells if (c["regime"], c["validation"]) == pool])
        word = pools[0][1].partition("-")[2]
        axes[0].set_ylabel(f"mean recall on images about {word}s (%)")
        axes[0].legend(frameon=False, loc="lower right")
        drawn.suptitle(
            f"Held-out pairs about {word}s, pool of everything: what to keep", fontsize=10.5
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(file, dpi=150)


def _panel(axis: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    keeps = [c["keep"] for c in cells]
    for name, color in TARGET_COLORS.items():
        found = [c["recalls"].get(name) for c in cells]
        if any(f is None for f in found):
            continue
        summary = [mean_and_stderr(f) for f in found if f is not None]
        axis.errorbar(
            100 * np.array(keeps),
            [s["mean"] for s in summary],
            yerr=[s["stderr"] or 0.0 for s in summary],
            color=color,
            marker="o",
            markersize=4.5,
            linewidth=2.0 if name == INFLUENCESPACE else 1.3,
            capsize=2,
            label=table_label(name),
        )
    full = cells[0]["recalls"].get(FULL)
    if full is not None:
        axis.axhline(full.mean(), color=INK, linestyle=":", linewidth=1.2, label="Full data")
    axis.set_title(regime_label(cells[0]["regime"]) + " pool", fontsize=9, color=INK)
    axis.set_xlabel("pairs kept (%)")
    axis.set_xticks([100 * k for k in keeps])
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)

"""The table of `end_to_end.py`, made from its rows alone.

The best rival is the baseline of highest mean recall on the test images themselves, over the seeds
that it has: a harder rival than any method chosen before. Differences are paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from regimes_names import ORACLE, RANDOM, REGIME_LABELS
from regimes_report import markdown_table, mean_and_stderr, quantity, table_label
from trained_towers import SETTINGS

from baselines import BASELINES, FULL, INFLUENCESPACE

COMMAND = "python benchmarks/end_to_end.py --data_dir path/to/flickr8k --work_dir WORK"
WITHOUT = "no_influence"
FIRST = (RANDOM, *(m for m in BASELINES if m != RANDOM), WITHOUT, INFLUENCESPACE)
LAST = (ORACLE, FULL)


def label(method: str) -> str:
    """The method's name in the table; a variant of InfluenceSpace has that of its flag."""
    if method == WITHOUT:
        return "InfluenceSpace without influence"
    return table_label(method) if method in {*FIRST, *LAST} else method


def cells_of(frame: pd.DataFrame) -> Iterator[tuple[str, float, dict[str, pd.DataFrame]]]:
    """Regime, share kept and the rows of every method by seed, the full data's included."""
    for regime in dict.fromkeys(frame["regime"]):
        here = frame[frame["regime"] == regime]
        chosen = here[here["method"] != FULL]
        for keep in sorted(chosen["keep"].unique(), reverse=True):
            rows = pd.concat([chosen[chosen["keep"] == keep], here[here["method"] == FULL]])
            yield regime, float(keep), {m: r.set_index("seed") for m, r in rows.groupby("method")}


def best_rival(cell: Mapping[str, pd.DataFrame]) -> str | None:
    """The baseline of highest mean recall."""
    means = {m: cell[m]["mean_recall"].mean() for m in BASELINES if m in cell}
    return max(means, key=lambda m: means[m]) if means else None


def difference(cell: Mapping[str, pd.DataFrame], first: str, second: str | None) -> str:
    """Mean recall of one method less another's over the seeds that both have, points."""
    if second is None or first not in cell or second not in cell:
        return "–"
    paired = (cell[first]["mean_recall"] - cell[second]["mean_recall"]).dropna()
    return f"{quantity(mean_and_stderr(paired), sign='+')} ({len(paired)})" if len(paired) else "–"


def recall_lines(frame: pd.DataFrame) -> list[str]:
    """Mean recall of every method in every cell, and InfluenceSpace against the best rival."""
    present = [m for m in dict.fromkeys([*FIRST, *frame["method"], *LAST]) if m not in LAST]
    present = [m for m in [*present, *LAST] if (frame["method"] == m).any()]
    rows = []
    for regime, keep, cell in cells_of(frame):
        best = best_rival(cell)
        found = [
            quantity(mean_and_stderr(cell[m]["mean_recall"])) if m in cell else "–" for m in present
        ]
        against = difference(cell, INFLUENCESPACE, best)
        rows.append(
            [
                REGIME_LABELS.get(regime, regime),
                f"{keep:g}",
                *found,
                against if best is None else f"{label(best)} {against}",
                difference(cell, INFLUENCESPACE, WITHOUT),
            ]
        )
    header = ["pairs", "kept", *map(label, present)]
    return markdown_table(
        [*header, "InfluenceSpace − best rival (seeds)", "− without influence (seeds)"], rows
    )


def cost_lines(frame: pd.DataFrame) -> list[str]:
    """Faulty among the kept, and what choosing and training took."""
    rows = []
    for regime, _, cell in cells_of(frame):
        for method in (m for m in dict.fromkeys([*FIRST, *cell, *LAST]) if m in cell):
            run = cell[method]
            rows.append(
                [
                    REGIME_LABELS.get(regime, regime),
                    f"{run['keep'].iloc[0]:g}",
                    label(method),
                    f"{len(run)}",
                    f"{100 * run['faults_left'].mean():.1f} %",
                    f"{run['last_loss'].mean():.2f}",
                    f"{run['seconds'].mean():.1f}",
                    f"{run['training_seconds'].mean():.1f}",
                ]
            )
    header = (
        "pairs;kept;method;seeds;faulty among the kept;last loss (nats);choosing (s);training (s)"
    )
    once = list(dict.fromkeys(map(tuple, rows)))  # the full data serve every share kept
    return markdown_table(header.split(";"), once)


def table_of(frame: pd.DataFrame) -> str:
    """The page: a section for each setting and device, for their trainings are not compared."""
    lines = [
        "# Towers that are trained",
        "",
        f"`{COMMAND}`",
        "",
        "EfficientNet-Lite0 and a small text transformer, fine-tuned whole on the pairs that each "
        "method chose, as many steps each. Mean of the recalls at 1, 5 and 10 in both directions "
        "on the 1,000 unseen images with all their captions, percent, mean ± standard error over "
        "seeds. A seed decides the pairs, their faults, the choices and the training; differences "
        "are in points, paired by seed. The best rival is the baseline of highest mean in the "
        "cell, chosen after the fact; `full data` keeps all pairs.",
        "",
    ]
    for (setting, device, dtype), rows in frame.groupby(["setting", "device", "dtype"]):
        threads = ", ".join(map(str, sorted(rows["threads"].unique())))
        where = device if dtype != "fp32" else f"{device}, threads: {threads}"
        lines += [
            f"## `--setting {setting}`: {SETTINGS[setting]}, {dtype}, {where}",
            "",
            *recall_lines(rows),
            *cost_lines(rows),
        ]
    return "\n".join(lines).rstrip("\n") + "\n"


def write_table(frame: pd.DataFrame, out: Path) -> None:
    """Print the page, and keep it as `end_to_end.md`."""
    if frame.empty:
        print("there are no rows yet")
        return
    page = table_of(frame)
    print(page)
    (out / "end_to_end.md").write_text(page, encoding="utf-8")

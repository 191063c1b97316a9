"""What the protocol's rows say: InfluenceSpace less every rival, in every cell, worse ones first.

`benchmarks/protocol.md` describes the tests; their arithmetic is in `paired_differences.py`.

A cell is won where InfluenceSpace is above all rivals and the largest p over them, by Holm (1979)
over the cells, is below 0.05; it is lost where any single rival is above by the same test, Holm
over the cells for that rival alone: without a correction for the number of rivals, to our cost.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from flickr8k_regimes import in_order
from paired_differences import Difference, Resamples, difference, holm
from regimes_names import (
    BOTH,
    CONTROLS,
    FAULTS_COUNT,
    ORACLE,
    RANDOM,
    RIVALS,
    SAME_EPOCHS,
    SAME_STEPS,
    TWO_CUTS,
    WITHOUT_HELD_OUT,
    regime_label,
)
from regimes_report import markdown_table, mean_and_stderr, quantity, table_label
from regimes_rows import KEYS, highest_score

from baselines import FULL, INFLUENCESPACE

LEVEL = 0.05
WITHOUT_INFLUENCE = ("influencespace_without_influence", "no_influence")  # the first there is
OTHERS = tuple(control for control in CONTROLS if control not in WITHOUT_INFLUENCE)
ALL_CONTROLS = (*WITHOUT_INFLUENCE, *OTHERS, FAULTS_COUNT)
ALL_RIVALS = (*RIVALS, TWO_CUTS)
BLOCK_TITLES = {
    "regimes": "all held-out pairs, right",
    "held_out": "held-out pairs few or noisy",
    "target": "a narrow target",
}


class Cell(NamedTuple):
    """Where methods are compared."""

    comparison: str
    regime: str
    validation: str
    keep: float

    @property
    def block(self) -> str:
        """Of which kind it is."""
        kind, *rest = self.validation.split("-")
        if any(not part.isdecimal() for part in rest):
            return "target"
        return "regimes" if kind == "clean" and not rest else "held_out"

    @property
    def group(self) -> str:
        """Which cells are averaged together; every target has test images of its own."""
        return self.validation if self.block == "target" else self.block

    @property
    def label(self) -> str:
        """For readers."""
        held_out = "" if self.block == "regimes" else f", {self.validation}"
        return f"{regime_label(self.regime)}{held_out}"


class Outcome(NamedTuple):
    """What one method did in a cell, seed by seed."""

    recalls: pd.Series  # by seed, percent
    scores: Mapping[int, np.ndarray]  # by seed, of each test image
    seconds: float  # to choose


# --- Cells ------------------------------------------------------------------------------------


def with_stand_ins(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of methods that look at no held-out pair, for all held-out pairs without a target."""
    clean = frame[(frame["validation"] == "clean") & frame["method"].isin(WITHOUT_HELD_OUT)]
    kinds = {
        (regime, validation)
        for regime, validation in frame[["regime", "validation"]].drop_duplicates().to_numpy()
        if Cell("", regime, validation, 0.0).block == "held_out"
    }
    copies = [
        clean[clean["regime"] == regime].assign(validation=validation, scores_of="clean")
        for regime, validation in sorted(kinds)
    ]
    own = frame.assign(scores_of=frame["validation"])
    joined = pd.concat([own, *copies], ignore_index=True)
    return joined.drop_duplicates(list(KEYS), keep="first").reset_index(drop=True)


def whole_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Only seeds that have every row that any seed has, block by block: a seed counts when done."""
    cells = {name: Cell("", "", name, 0.0) for name in frame["validation"].unique()}
    blocks = frame["validation"].map({n: c.group for n, c in cells.items()})
    kept = []
    for _, rows in frame.groupby(blocks):
        counts = rows.groupby("seed").size()
        kept.append(rows[rows["seed"].isin(counts.index[counts == counts.max()])])
    return pd.concat(kept, ignore_index=True) if kept else frame


def outcomes(
    frame: pd.DataFrame, scores: Mapping[tuple[Any, ...], np.ndarray]
) -> dict[Cell, dict[str, Outcome]]:
    """Every cell's methods; the full data's row serves all shares and both comparisons."""
    found: dict[Cell, dict[str, Outcome]] = {}
    cells = frame[frame["comparison"] != BOTH]
    for key, rows in cells.groupby(["comparison", "regime", "validation", "keep"]):
        cell = Cell(*key)
        at = (frame["regime"] == cell.regime) & (frame["validation"] == cell.validation)
        both = pd.concat([rows, frame[at & (frame["comparison"] == BOTH)]])
        found[cell] = {m: _outcome(r, scores) for m, r in both.groupby("method")}
    return found


def _outcome(rows: pd.DataFrame, scores: Mapping[tuple[Any, ...], np.ndarray]) -> Outcome:
    keys = rows[list(KEYS)].assign(validation=rows["scores_of"]).itertuples(index=False, name=None)
    kept = {s: scores[k] for s, k in zip(rows["seed"], keys, strict=True) if k in scores}
    return Outcome(rows.set_index("seed")["mean_recall"], kept, float(rows["seconds"].mean()))


def seeds_with_images(methods: Sequence[Outcome], seeds: Iterable[int]) -> list[int]:
    """The seeds of which all these methods have the scores of the test images."""
    return [seed for seed in seeds if all(seed in method.scores for method in methods)]


def score_table(first: Outcome, second: Outcome, seeds: Sequence[int]) -> np.ndarray | None:
    """(S', E) differences of two methods on every test image, points; None without seeds."""
    if not seeds:
        return None
    table = [np.subtract(first.scores[s], second.scores[s], dtype=np.float64) for s in seeds]
    return 100 * np.stack(table) / highest_score()


def compare(first: Outcome, second: Outcome, resamples: Resamples) -> Difference | None:
    """One method less another over the seeds that both have; None where there are none."""
    recalls = (first.recalls - second.recalls).dropna()
    if recalls.empty:
        return None
    seeds = seeds_with_images((first, second), recalls.index)
    return difference(recalls, score_table(first, second, seeds), resamples)


def comparisons(found: Mapping[Cell, Mapping[str, Outcome]]) -> pd.DataFrame:
    """InfluenceSpace less every rival and control in every cell, with p and Holm's p.

    Holm's correction goes over the cells of a comparison, for each other method alone.
    """
    resamples, rows = Resamples(), []
    for cell, methods in found.items():
        own = methods.get(INFLUENCESPACE)
        for other in (*ALL_RIVALS, *ALL_CONTROLS):
            if own is None or other not in methods:
                continue
            tested = compare(own, methods[other], resamples)
            if tested is not None:
                rows.append(
                    {
                        **cell._asdict(),
                        "other": other,
                        **tested._asdict(),
                        "recall": float(own.recalls.mean()),
                        "other_recall": float(methods[other].recalls.mean()),
                        "seconds": own.seconds,
                        "other_seconds": methods[other].seconds,
                    }
                )
    table = pd.DataFrame(rows)
    if not rows:
        return table
    table["p_holm"] = table.groupby(["comparison", "other"])["p"].transform(
        lambda p: holm(p.tolist())
    )
    return table


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell: the closest rival, whether the cell is won, tied or lost; the worst first."""
    rows = []
    rivals = table[table["other"].isin(ALL_RIVALS)]
    for key, here in rivals.groupby(["comparison", "regime", "validation", "keep"]):
        closest = here.loc[here["mean"].idxmin()]
        is_above = bool((here["mean"] > 0).all())
        rows.append(
            {
                **Cell(*key)._asdict(),
                "n_rivals": len(here),
                "closest": closest["other"],
                **{k: closest[k] for k in ("mean", "stderr", "stderr_images")},
                **{k: closest[k] for k in ("n_seeds", "n_seeds_images")},
                **{k: closest[k] for k in ("recall", "seconds", "other_seconds")},
                "is_above": is_above,
                "p_all": float(here["p"].max()) if is_above else 1.0,
                "is_lost": bool(((here["mean"] < 0) & (here["p_holm"] < LEVEL)).any()),
            }
        )
    found = pd.DataFrame(rows)
    if rows:
        adjusted = found.groupby("comparison")["p_all"].transform(lambda p: holm(p.tolist()))
        found["p_holm"] = adjusted
        found["is_won"] = adjusted < LEVEL
        found = found.sort_values("mean", kind="stable")
    return found


def pooled(found: Mapping[Cell, Mapping[str, Outcome]]) -> pd.DataFrame:
    """InfluenceSpace less every other method, the mean over the regimes of a block and share.

    A seed draws all regimes alike, so the error is over seeds, of their means over the regimes.
    """
    resamples, rows = Resamples(), []
    groups: dict[tuple[str, str, float], list[Mapping[str, Outcome]]] = {}
    for cell, methods in found.items():
        groups.setdefault((cell.comparison, cell.group, cell.keep), []).append(methods)
    for (comparison, where, keep), cells in groups.items():
        cells = [methods for methods in cells if INFLUENCESPACE in methods]
        for other in (*ALL_RIVALS, *ALL_CONTROLS):
            if not cells or any(other not in methods for methods in cells):
                continue
            each = [m[INFLUENCESPACE].recalls - m[other].recalls for m in cells]
            recalls = pd.concat(each, axis=1).dropna().mean(axis=1)
            if recalls.empty:
                continue
            both = [(m[INFLUENCESPACE], m[other]) for m in cells]
            seeds = seeds_with_images([m for pair in both for m in pair], recalls.index)
            tables = [score_table(*pair, seeds) for pair in both]
            whole = np.mean(tables, axis=0) if seeds else None  # type: ignore[arg-type]
            tested = difference(recalls, whole, resamples)
            rows.append(
                {
                    **{"comparison": comparison, "block": where, "keep": keep, "other": other},
                    **tested._asdict(),
                    "n_regimes": len(cells),
                    "other_recall": float(np.mean([m[other].recalls.mean() for m in cells])),
                    "seconds": float(np.mean([m[INFLUENCESPACE].seconds for m in cells])),
                    "other_seconds": float(np.mean([m[other].seconds for m in cells])),
                }
            )
    return pd.DataFrame(rows)


def controls_of(methods: Iterable[str]) -> list[str]:
    """The controls that there are, of those without influence one."""
    present = set(methods)
    without = [name for name in WITHOUT_INFLUENCE if name in present][:1]
    return without + [n for n in ALL_CONTROLS if n in present and n not in WITHOUT_INFLUENCE]


# --- The page ---------------------------------------------------------------------------------


def signed(row: Mapping[str, Any]) -> str:
    """A difference with its error over seeds."""
    error = "" if np.isnan(row["stderr"]) else f" ± {row['stderr']:.2f}"
    return f"{row['mean']:+.2f}{error}"


def p_text(p: float) -> str:
    """A p-value."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def both_errors(row: Mapping[str, Any]) -> str:
    """The error over seeds and test images."""
    return "–" if np.isnan(row["stderr_images"]) else f"{row['stderr_images']:.2f}"


def other_label(name: str) -> str:
    """A method's name, also of a control that only the benchmark has."""
    if name == FAULTS_COUNT:
        return "Faulty pairs count like others"
    return "Without influence" if name in WITHOUT_INFLUENCE else table_label(name)


def counts_table(found: pd.DataFrame) -> list[str]:
    """Cells won, tied and lost, by block and share kept."""
    blocks = found.apply(lambda row: Cell("", "", row["validation"], 0.0).block, axis=1)
    rows = []
    for (block, keep), here in found.groupby([blocks, found["keep"]]):
        won, lost = int(here["is_won"].sum()), int(here["is_lost"].sum())
        counts = (len(here), lost, len(here) - won - lost, won, int(here["is_above"].sum()))
        rows.append([BLOCK_TITLES[block], f"{keep:g}", *(str(c) for c in counts)])
    header = "cells;keep;number;lost;tied;won;above all rivals, significant or not"
    return markdown_table(header.split(";"), rows)


def cells_table(found: pd.DataFrame) -> list[str]:
    """Every cell with its closest rival, the worst first."""
    rows = [
        [
            Cell("", row["regime"], row["validation"], 0.0).label,
            f"{row['keep']:g}",
            f"{row['recall']:.2f}",
            other_label(row["closest"]),
            signed(row),
            both_errors(row),
            p_text(row["p_holm"]) if row["is_above"] else "–",
            "won" if row["is_won"] else "lost" if row["is_lost"] else "tied",
            f"{row['seconds']:.0f} / {row['other_seconds']:.0f}",
            f"{row['n_seeds']} ({row['n_seeds_images']})",
        ]
        for row in found.to_dict("records")
    ]
    header = (
        "cell;keep;InfluenceSpace;closest rival;InfluenceSpace − it;error with test images;"
        "p against all, Holm;verdict;seconds to choose, ours / its;seeds (with images)"
    )
    return markdown_table(header.split(";"), rows)


def recalls_table(found: Mapping[Cell, Mapping[str, Outcome]], closest: pd.DataFrame) -> list[str]:
    """Mean recall itself of the full data, random, the oracle, InfluenceSpace, the closest rival.

    Shares kept from most to least.
    """
    names = closest.set_index(list(Cell._fields))["closest"]
    order = in_order(cell.regime for cell in found)
    rows = []
    for cell in sorted(found, key=lambda c: (c.validation, -c.keep, order.index(c.regime))):
        if tuple(cell) not in names.index:
            continue
        methods, rival = found[cell], str(names.loc[tuple(cell)])
        recalls = [
            quantity(mean_and_stderr(methods[name].recalls)) if name in methods else ""
            for name in (FULL, RANDOM, ORACLE, INFLUENCESPACE, rival)
        ]
        recalls[-1] = f"{other_label(rival)} {recalls[-1]}"
        rows.append([cell.label, f"{cell.keep:g}", *recalls])
    header = "cell;keep;full data;random;oracle;InfluenceSpace;closest rival"
    return markdown_table(header.split(";"), rows)


def rivals_table(table: pd.DataFrame) -> list[str]:
    """A row a comparison with one other method, the worst first."""
    rows = [
        [
            other_label(row["other"]),
            Cell("", row["regime"], row["validation"], 0.0).label,
            f"{row['keep']:g}",
            signed(row),
            both_errors(row),
            p_text(row["p_seeds"]),
            p_text(row["p_holm"]),
            f"{row['seconds']:.0f} / {row['other_seconds']:.0f}",
        ]
        for row in table.sort_values("mean", kind="stable").to_dict("records")
    ]
    header = (
        "other method;cell;keep;InfluenceSpace − it;error with test images;p by seeds;"
        "Holm's p, larger test;seconds to choose, ours / its"
    )
    return markdown_table(header.split(";"), rows)


def pooled_table(table: pd.DataFrame, *, best_only: bool) -> list[str]:
    """The mean over regimes at each share against the best single rival, or against all."""
    rows = []
    for (block, keep), here in table.groupby(["block", "keep"], sort=False):
        if best_only:
            here = here.loc[[here["other_recall"].idxmax()]]
        for row in here.sort_values("mean", kind="stable").to_dict("records"):
            rows.append(
                [
                    BLOCK_TITLES.get(str(block), f"target: {block}"),
                    f"{keep:g}",
                    other_label(row["other"]),
                    signed(row),
                    both_errors(row),
                    p_text(row["p"]),
                    f"{row['seconds']:.0f} / {row['other_seconds']:.0f}",
                    f"{row['n_regimes']} × {row['n_seeds']}",
                ]
            )
    header = (
        "cells;keep;other method;InfluenceSpace − it;error with test images;p;"
        "seconds to choose, ours / its;cells × seeds"
    )
    return markdown_table(header.split(";"), rows)


def page(
    table: pd.DataFrame,
    outcome: Mapping[Cell, Mapping[str, Outcome]],
    about: Mapping[str, Any],
) -> str:
    """The whole page.

    Args:
        table: of `comparisons`.
        outcome: what every method did in every cell.
        about: the machine that the rows come from.
    """
    found, pools = verdicts(table), pooled(outcome)
    seeds = sorted({int(n) for n in table["n_seeds"]})
    n_rivals = table[table["other"].isin(ALL_RIVALS)]["other"].nunique()
    lines = [
        "# The protocol, as it was run",
        "",
        f"`python benchmarks/protocol.py --data_dir path/to/flickr8k --work_dir WORK`, "
        f"{about['hardware']['cpu_cores']} CPU cores. What was fixed before: "
        f"[protocol.md](../protocol.md). {n_rivals} rivals; "
        f"{' to '.join(str(n) for n in sorted({seeds[0], seeds[-1]}))} of 20 seeds a cell. Points "
        "of mean recall ± standard error over seeds; worse ones first. Where test images of fewer "
        "seeds were kept than there are, errors with test images join that over all seeds and "
        "that over the images of those kept, which is a little too large.",
        "",
    ]
    for comparison, title in (
        (SAME_STEPS, "Same steps (primary)"),
        (SAME_EPOCHS, "Same epochs (secondary)"),
    ):
        here, cells = (t[t["comparison"] == comparison] for t in (table, found))
        if cells.empty:
            continue
        means = pools[pools["comparison"] == comparison]
        is_rival = means["other"].isin(ALL_RIVALS)
        control = here["other"].isin(ALL_CONTROLS)
        lines += [f"## {title}", "", *counts_table(cells)]
        lines += ["### Every cell and its closest rival", "", *cells_table(cells)]
        of_comparison = {c: m for c, m in outcome.items() if c.comparison == comparison}
        lines += ["### Mean recall", "", *recalls_table(of_comparison, cells)]
        lines += ["### Mean over regimes, the best single rival", ""]
        lines += pooled_table(means[is_rival], best_only=True)
        if control.any():
            lines += ["### Against the controls", ""]
            lines += pooled_table(means[~is_rival], best_only=False)
            lines += rivals_table(here[control])
        lines += ["### Mean over regimes, every rival", ""]
        lines += pooled_table(means[is_rival], best_only=False)
        lines += ["### Every rival in every cell", "", *rivals_table(here[~control])]
    return "\n".join(lines)


def write_protocol(
    frame: pd.DataFrame,
    scores: Mapping[tuple[Any, ...], np.ndarray],
    out: Path,
    about: Mapping[str, Any],
) -> None:
    """`protocol.md`, and every comparison in `protocol_comparisons.csv`.

    Args:
        frame: the rows that count.
        scores: what each test image adds, by the keys of the rows.
        out: the folder written to.
        about: the machine and packages that the rows come from.
    """
    begun = with_stand_ins(frame)
    rows = whole_seeds(begun)
    left_out = len(begun) - len(rows)
    if left_out:
        print(f"{left_out} rows of seeds that are not whole are left out", file=sys.stderr)
    rows = rows.assign(order=rows["regime"].map(in_order(rows["regime"]).index))
    found = outcomes(rows.sort_values("order", kind="stable"), scores)
    table = comparisons(found)
    if table.empty:
        print("no row of InfluenceSpace beside one of a rival: no page")
        return
    table.to_csv(out / "protocol_comparisons.csv", index=False, float_format="%.6g")
    (out / "protocol.md").write_text(page(table, found, about))
    print(f"{out / 'protocol.md'}: written")

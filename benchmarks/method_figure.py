"""The figure of every method's recall, from the saved table of a run.

    python benchmarks/method_figure.py --encoder_recall 35.09

reads `benchmarks/results/flickr8k_methods.csv`, the `evaluation/method_comparison.csv` of the run
in docs/results.md, and draws `docs/performance_comparison.png`. The encoder's own recall stands in
that run's results page.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from reporting.figures.methods import Metrics, performance_comparison
from reporting.words import RANDOM

N_SEEDS = 3  # of the run


def metrics_of(table: pd.DataFrame) -> Metrics:
    """Comparison -> method -> mean recall with its deviation over seeds."""
    return {
        str(comparison): {
            row.method: {"mean_recall": {"mean": row.mean_recall_mean, "std": row.mean_recall_std}}
            for row in rows.itertuples()
        }
        for comparison, rows in table.groupby("comparison", sort=False)
    }


def to_random(metrics: Metrics) -> dict[str, dict[str, tuple[float, float | None]]]:
    """How far each method is from random selection, with the standard error of the difference."""
    found: dict[str, dict[str, tuple[float, float | None]]] = {}
    for comparison, methods in metrics.items():
        base = methods[RANDOM]["mean_recall"]
        found[comparison] = {
            name: (
                own["mean_recall"]["mean"] - base["mean"],
                math.sqrt((own["mean_recall"]["std"] ** 2 + base["std"] ** 2) / N_SEEDS),
            )
            for name, own in methods.items()
            if name != RANDOM
        }
    return found


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoder_recall", type=float, required=True)
    parser.add_argument(
        "--table", type=Path, default=ROOT / "benchmarks/results/flickr8k_methods.csv"
    )
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/performance_comparison.png")
    arguments = parser.parse_args()
    metrics = metrics_of(pd.read_csv(arguments.table))
    figure = performance_comparison(metrics, arguments.encoder_recall, to_random(metrics))
    figure.savefig(arguments.figure)


if __name__ == "__main__":
    main()

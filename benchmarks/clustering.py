"""Where mini-batch k-means starts to pay: seconds and quality beside Lloyd's, same data and run.

    python benchmarks/clustering.py

Points are drawn like concatenated embeddings: unit rows around 500 topics, 256 wide. Reported are
the mean over three seeds of the time ratio (Lloyd's / mini-batch) and of the ratio of the within-
cluster sums of squares (mini-batch / Lloyd's), with their standard deviations.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from tqdm import tqdm

SIZES = (2_000, 5_000, 20_000, 50_000)
N_CLUSTERS = 100
N_SEEDS = 3
RESULTS = Path(__file__).parent / "results" / "clustering.json"


def draw_points(n: int, rng: np.random.Generator) -> np.ndarray:
    """Unit rows around 500 topics, (n, 256)."""
    topics = rng.normal(size=(500, 256))
    points = topics[rng.integers(500, size=n)] + rng.normal(size=(n, 256))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def measure(n: int, seed: int) -> dict[str, float]:
    """Seconds and inertia of both variants on the same points."""
    points = draw_points(n, np.random.default_rng(seed))
    row: dict[str, float] = {"n": n, "seed": seed}
    for name, kind in (("lloyd", KMeans), ("mini_batch", MiniBatchKMeans)):
        started = time.perf_counter()
        fitted = kind(n_clusters=N_CLUSTERS, n_init=3, random_state=seed).fit(points)
        row[f"{name}_seconds"] = time.perf_counter() - started
        row[f"{name}_inertia"] = float(fitted.inertia_)
    return row


def main() -> None:
    """Measure every size and seed, print the table, save the rows."""
    jobs = [(n, seed) for n in SIZES for seed in range(N_SEEDS)]
    rows = [measure(n, seed) for n, seed in tqdm(jobs, disable=None)]
    summary = []
    for n in SIZES:
        at_n = [r for r in rows if r["n"] == n]
        speed = [r["lloyd_seconds"] / r["mini_batch_seconds"] for r in at_n]
        quality = [r["mini_batch_inertia"] / r["lloyd_inertia"] for r in at_n]
        lloyd = [r["lloyd_seconds"] for r in at_n]
        summary.append(
            {
                "n": n,
                "lloyd_seconds": [float(np.mean(lloyd)), float(np.std(lloyd, ddof=1))],
                "time_ratio": [float(np.mean(speed)), float(np.std(speed, ddof=1))],
                "inertia_ratio": [float(np.mean(quality)), float(np.std(quality, ddof=1))],
            }
        )
        print(json.dumps(summary[-1]))
    content = {
        "command": "python benchmarks/clustering.py",
        "hardware": f"{platform.machine()}, {platform.system()}",
        "summary": summary,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

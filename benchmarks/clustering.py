"""K-means that begins with a sample beside Lloyd's over all rows: seconds and inertia.

    python benchmarks/clustering.py

Points are drawn like concatenated embeddings: unit rows around 500 topics, 256 wide. Reported are
the mean over three seeds of the time ratio (Lloyd's / sampled) and of the ratio of the within-
cluster sums of squares (sampled / Lloyd's), with their standard deviations. Lloyd's is
scikit-learn's, run once from k-means++, until it settles.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from learner.kmeans import sampled_kmeans

CASES = ((50_000, 100), (50_000, 1_000))  # points and clusters
N_SEEDS = 3
RESULTS = ROOT / "benchmarks" / "results" / "clustering.json"


def draw_points(n: int, rng: np.random.Generator) -> np.ndarray:
    """Unit rows around 500 topics, (n, 256)."""
    topics = rng.normal(size=(500, 256))
    points = topics[rng.integers(500, size=n)] + rng.normal(size=(n, 256))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def inertia(points: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> float:
    """The sum of squared distances of points to the centres of their clusters, in blocks."""
    total = 0.0
    for start in range(0, len(points), 8192):
        rows = slice(start, start + 8192)
        apart = points[rows].astype(np.float64) - centers[labels[rows]]
        total += float((apart**2).sum())
    return total


def measure(n: int, n_clusters: int, seed: int) -> dict[str, float]:
    """Seconds and inertia of both on the same points."""
    points = draw_points(n, np.random.default_rng(seed))
    row: dict[str, float] = {"n": n, "clusters": n_clusters, "seed": seed}
    started = time.perf_counter()
    lloyd = KMeans(n_clusters, n_init=1, random_state=seed).fit(points)
    row["lloyd_seconds"] = time.perf_counter() - started
    row["lloyd_inertia"] = inertia(points, lloyd.labels_, lloyd.cluster_centers_)
    started = time.perf_counter()
    sampled = sampled_kmeans(points, n_clusters, np.random.default_rng(seed))
    row["sampled_seconds"] = time.perf_counter() - started
    row["sampled_inertia"] = inertia(points, sampled.labels, sampled.centers)
    return row


def summarized(rows: list[dict[str, float]]) -> dict[str, object]:
    """Means and standard deviations over the seeds of one case."""
    seconds = [r["lloyd_seconds"] for r in rows]
    speed = [r["lloyd_seconds"] / r["sampled_seconds"] for r in rows]
    quality = [r["sampled_inertia"] / r["lloyd_inertia"] for r in rows]
    of = {"lloyd_seconds": seconds, "time_ratio": speed, "inertia_ratio": quality}
    told = {name: [float(np.mean(x)), float(np.std(x, ddof=1))] for name, x in of.items()}
    return {"n": rows[0]["n"], "clusters": rows[0]["clusters"], **told}


def main() -> None:
    """Measure every case and seed, print the table, save the rows."""
    jobs = [(*case, seed) for case in CASES for seed in range(N_SEEDS)]
    rows = [measure(*job) for job in tqdm(jobs, disable=None)]
    summary = [summarized(rows[i : i + N_SEEDS]) for i in range(0, len(rows), N_SEEDS)]
    for entry in summary:
        print(json.dumps(entry))
    content = {
        "command": "python benchmarks/clustering.py",
        "hardware": f"{platform.machine()}, {platform.system()}",
        "summary": summary,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

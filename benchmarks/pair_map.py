"""The map of pairs: seconds and quality of variants and rivals, and the time for large sets.

    python benchmarks/pair_map.py --run flickr8k output_flickr8k --run drawn output

Each --run names the embeddings of a finished run, for the results, and its output folder. openTSNE
and UMAP are measured where they are installed; UMAP's first seed includes its compilation. All run
in one thread but for matrix products.

Of each variant and seed: the share of the ten nearest on the map that are among the fifty nearest
by cosine of the joint embeddings (`near`), and that are in the same cluster (`cluster`). Of large
sets, drawn around the first run's embeddings with noise of half their norm: seconds of map and
neighbours, the most memory so far, `near`, and the share of the eight nearest that the search for
neighbours finds (`found`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting.report import pair_map
from reporting.report.neighbours import most_similar, unit_rows, whole_steps
from reporting.report.pair_map import map_pairs, place_landmarks, place_others

N_SEEDS = 3
SIZES = {5_000: N_SEEDS, 20_000: N_SEEDS, 100_000: N_SEEDS, 1_000_000: 1}  # seeds of each
NEAR_ON_MAP, NEAR_IN_EMBEDDING = 10, 50
N_ASKED = 1000  # pairs of a large set whose neighbours are counted
NOISE = 0.5
RESULTS = Path(__file__).parent / "results" / "pair_map.json"
Placer = Callable[[np.ndarray, int], np.ndarray]


def landmarks(count: int, **changes: Any) -> Placer:
    """A map of so many landmarks, with the others placed beside them."""

    def place(embeddings: np.ndarray, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(embeddings), min(count, len(embeddings)), replace=False))
        places = place_landmarks(unit_rows(embeddings[rows]), rng, **changes)
        return place_others(embeddings, rows, places)

    return place


def anywhere_between(count: int) -> Placer:
    """The others at the weighted mean of their landmarks, however far apart those lie."""

    def place(embeddings: np.ndarray, seed: int) -> np.ndarray:
        close, pair_map.CLOSE_ON_MAP = pair_map.CLOSE_ON_MAP, np.inf
        try:
            return landmarks(count)(embeddings, seed)
        finally:
            pair_map.CLOSE_ON_MAP = close

    return place


def open_tsne(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """All by openTSNE, as it comes."""
    fitted = importlib.import_module("openTSNE").TSNE(random_state=seed, n_jobs=1)
    return np.asarray(fitted.fit(unit_rows(embeddings)))


def umap(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """All by UMAP and cosine, as it comes."""
    fitted = importlib.import_module("umap").UMAP(random_state=seed, n_jobs=1, metric="cosine")
    return np.asarray(fitted.fit_transform(embeddings))


VARIANTS: dict[str, Placer] = {
    "chosen": landmarks(pair_map.MAX_LANDMARKS),
    "1,000 landmarks": landmarks(1000),
    "2,000 landmarks": landmarks(2000),
    "2,000 landmarks, others anywhere between": anywhere_between(2000),
    "20 components": landmarks(pair_map.MAX_LANDMARKS, dimensions=20),
    "50 components": landmarks(pair_map.MAX_LANDMARKS, dimensions=50),
    "all components": landmarks(pair_map.MAX_LANDMARKS, dimensions=10_000),
    "perplexity 15": landmarks(pair_map.MAX_LANDMARKS, perplexity=15.0),
    "perplexity 50": landmarks(pair_map.MAX_LANDMARKS, perplexity=50.0),
    "1,000 iterations": landmarks(pair_map.MAX_LANDMARKS, max_iterations=1000),
    "openTSNE": open_tsne,
    "UMAP": umap,
}


def near_share(
    places: np.ndarray, asked: np.ndarray, nearest: np.ndarray
) -> tuple[float, np.ndarray]:
    """The share of the ten nearest on the map of each pair asked that are in `nearest`; the ten."""
    ten = np.empty((len(asked), NEAR_ON_MAP), dtype=np.int64)
    for number, row in enumerate(asked):
        squares = ((places - places[row]) ** 2).sum(axis=1)
        squares[row] = np.inf
        ten[number] = np.argpartition(squares, NEAR_ON_MAP)[:NEAR_ON_MAP]
    return float((ten[:, :, None] == nearest[:, None, :]).any(axis=2).mean()), ten


def nearest_of(embeddings: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other pairs of those asked, all compared."""
    points = unit_rows(embeddings)
    blocks = []
    for rows in np.array_split(asked, max(1, len(asked) * len(points) // 2**26)):
        similar = whole_steps(points[rows] @ points.T)
        similar[np.arange(len(rows)), rows] = -(2**30)
        blocks.append(most_similar(similar, k)[0])
    return np.concatenate(blocks)


def compare(name: str, run: Path) -> list[dict[str, Any]]:
    """Every variant on the embeddings of a run, a row for each and seed."""
    embeddings = np.load(run / "stage1/concatenated_embeddings.npy")
    clusters = np.load(run / "stage1/cluster_assignments.npy")
    everything = np.arange(len(embeddings))
    nearest = nearest_of(embeddings, everything, NEAR_IN_EMBEDDING)
    rows = []
    jobs = [(variant, seed) for variant in VARIANTS for seed in range(N_SEEDS)]
    for variant, seed in tqdm(jobs, desc=name, disable=None):
        began, began_cpu = time.perf_counter(), time.process_time()
        try:
            with threadpool_limits(limits=1, user_api="openmp"):
                places = VARIANTS[variant](embeddings, seed)
        except ImportError:
            continue
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        near, ten = near_share(places, everything, nearest)
        same = float((clusters[ten] == clusters[:, None]).mean())
        rows.append({"run": name, "variant": variant, "seed": seed, "seconds": seconds})
        rows[-1] |= {"cpu_seconds": cpu, "near": near, "cluster": same}
    return rows


def draw_around(embeddings: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn from the embeddings, with noise of half their norm."""
    rows = rng.integers(len(embeddings), size=n)
    scale = np.float32(NOISE / np.sqrt(embeddings.shape[1]))
    noise = rng.standard_normal((n, embeddings.shape[1]), dtype=np.float32)
    noise *= scale
    noise += unit_rows(embeddings)[rows]
    return noise


def time_large(name: str, run: Path, n: int, seed: int) -> dict[str, Any]:
    """A set of n pairs: seconds of the map and its neighbours, and how good they are."""
    rng = np.random.default_rng(seed)
    embeddings = draw_around(np.load(run / "stage1/concatenated_embeddings.npy"), n, rng)
    began, began_cpu = time.perf_counter(), time.process_time()
    found = map_pairs(embeddings, rng=np.random.default_rng(seed))
    row = {"run": name, "n": n, "seed": seed, "seconds": time.perf_counter() - began}
    row["cpu_seconds"] = time.process_time() - began_cpu
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    asked = rng.choice(n, N_ASKED, replace=False)
    nearest = nearest_of(embeddings, asked, NEAR_IN_EMBEDDING)
    row["near"], _ = near_share(found.places, asked, nearest)
    k = found.neighbours.shape[1]
    hits = found.neighbours[asked][:, :, None] == nearest[:, None, :k]
    row["found"] = float(hits.any(axis=2).mean())
    return row


def summarise(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each run and variant or size."""
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["run"], row[by]), []).append(row)
    summary = []
    for (run, value), members in groups.items():
        measured = [key for key in members[0] if key not in ("run", "seed", by)]
        entry: dict[str, Any] = {"run": run, by: value, "seeds": len(members)}
        for key in measured:
            values = [member[key] for member in members]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            entry[key] = [float(np.mean(values)), deviation]
        summary.append(entry)
        print(json.dumps(entry))
    return summary


def main() -> None:
    """Measure every run, variant and size, print the tables, save the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("NAME", "DIR"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    runs = [(name, Path(folder)) for name, folder in args.run]
    large = [
        time_large(*runs[0], n, seed) for n, n_seeds in SIZES.items() for seed in range(n_seeds)
    ]
    rows = [row for name, run in runs for row in compare(name, run)]
    content = {
        "command": "python benchmarks/pair_map.py "
        + " ".join(f"--run {name} OUTPUT_DIR" for name, _ in runs),
        "hardware": f"{platform.machine()}, {platform.system()}, two cores shared with other work",
        "variants": summarise(rows, "variant"),
        "large": summarise(large, "n"),
        "rows": rows,
        "large_rows": large,
    }
    args.results.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

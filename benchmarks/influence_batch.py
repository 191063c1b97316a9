"""What larger batches of the reference trainings do to the estimate of clusters' influence.

    python main.py --output_dir RUN --dataset folder --data_dir path/to/flickr8k \
        --encoder_model embedded --methods none
    python benchmarks/influence_batch.py --run_dir RUN --work_dir WORK

Where a run has more pairs than its steps hold in batches of `--batch_size`, the batches grow. Here
the same 5,000 pairs of Flickr8k are trained on in batches of 32 to 256, ten epochs each, so that a
larger batch has fewer steps; the validation loss is taken in batches of 32 throughout. Each
estimate is compared with retraining by its own batches, and with retraining by batches of 32: every
cluster left out, and every cluster at nine tenths of its weight, with two seeds. What has been
retrained lies in `--work_dir` and is not retrained again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import influence
from artifacts import provenance
from artifacts.store import Store
from attribution.cluster_scores import InfluenceConfig
from attribution.results import LOCO, SMALL, InfluenceResult
from attribution.retraining import Retraining
from attribution.sampling import TrainedPairs
from attribution.validation import SMALL_WEIGHT, correlations, noise_ceiling, real_effects
from benchmarks.influence import REGIMES, SEED, TRAINING, Problem, data_of, known, make_problem
from benchmarks.rooms import temporary_room
from embedding import EmbeddingResult
from learner.lending import lend

BATCHES = (32, 64, 128, 256)
N_CLUSTERS = 40
N_RETRAINED = 2  # seeds


def estimate(problem: Problem, batch_size: int) -> tuple[InfluenceResult, float]:
    """By reference models of such batches, with every default else, and its seconds."""
    n, started = len(problem.clusters), time.perf_counter()
    trained = TrainedPairs(None, np.ones(n), batch_size, grown=False)
    as_told = patch.object(influence, "trained_pairs", lambda *_, **__: trained)
    with as_told, temporary_room() as room:
        result = influence.score_clusters(
            known(problem),
            InfluenceConfig(influence_seeds=3, removal_folds=10),
            TRAINING,
            room,
            rng=np.random.default_rng(SEED),
        )
    return result, time.perf_counter() - started


def real(problem: Problem, reference: InfluenceResult, file: Path) -> dict[str, np.ndarray]:
    """Change of the validation loss in percent, one row a seed, by batches as the reference's."""
    if file.exists():
        saved = np.load(file)
        return {check: saved[check] for check in (LOCO, SMALL)}
    retraining = Retraining(
        replace(TRAINING, batch_size=int(reference.reference_batch_size or 0)),
        reference.reference_schedule,
        reference.reference_steps,
    )
    one = np.eye(N_CLUSTERS, dtype=bool)
    with temporary_room() as room:
        data = data_of(problem, reference)
        effects = real_effects(
            lend(room, "pairs", data, data.pairs.device),
            retraining,
            {LOCO: np.where(one, 0.0, 1.0), SMALL: np.where(one, SMALL_WEIGHT, 1.0)},
            reference.reference_seeds.tolist()[:N_RETRAINED],
        )
    np.savez(file, **effects)  # type: ignore[arg-type]
    return effects


def compared(
    problem: Problem, result: InfluenceResult, effects: dict[str, np.ndarray]
) -> dict[str, Any]:
    """How well the estimate foretells these real effects."""
    first_order = 100 * result.first_order_scores.mean(axis=0)
    row: dict[str, Any] = {
        LOCO: correlations(100 * result.influence_scores, effects[LOCO].mean(axis=0)),
        SMALL: correlations(first_order * (1 - SMALL_WEIGHT), effects[SMALL].mean(axis=0)),
    }
    for check, of_seeds in effects.items():
        row[check]["ceiling"] = noise_ceiling(of_seeds)[0]
    if len(problem.planted):
        harmless = ~np.isin(np.arange(N_CLUSTERS), problem.planted)
        row["planted_auc_of_real_effects"] = roc_auc_score(harmless, effects[LOCO].mean(axis=0))
    return row


def measure(problem: Problem, regime: str, work_dir: Path) -> list[dict[str, Any]]:
    """One row a batch size."""
    rows: list[dict[str, Any]] = []
    smallest: dict[str, np.ndarray] = {}
    for batch_size in BATCHES:
        result, seconds = estimate(problem, batch_size)
        effects = real(problem, result, work_dir / f"{regime}_{batch_size}.npz")
        smallest = smallest or effects
        row = {
            "regime": regime,
            "batch_size": batch_size,
            "steps": result.reference_steps,
            "schedule": result.reference_schedule,
            "validation_loss": round(result.validation_loss, 4),
            "mean_stderr_percent": round(100 * float(result.influence_stderr.mean()), 4),
            "seconds": round(seconds, 1),
            "retrained_by_the_same_batches": compared(problem, result, effects),
            f"retrained_by_batches_of_{BATCHES[0]}": compared(problem, result, smallest),
        }
        if len(problem.planted):
            harmless = ~np.isin(np.arange(N_CLUSTERS), problem.planted)
            row["planted_auc"] = round(float(roc_auc_score(harmless, result.influence_scores)), 4)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Measure every batch size in every regime, and save what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", required=True, help="output folder of a run on Flickr8k")
    parser.add_argument("--work_dir", type=Path, required=True)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    embedding = Store.at(args.run_dir).read(provenance.EMBEDDING, EmbeddingResult)
    rows: list[dict[str, Any]] = []
    for regime in reversed(REGIMES):
        problem = make_problem(embedding, regime, N_CLUSTERS)
        rows += measure(problem, regime, args.work_dir)
        summary = {
            "command": "python benchmarks/influence_batch.py --run_dir RUN --work_dir WORK",
            "hardware": provenance.hardware(),
            "packages": provenance.package_versions(),
            "pairs": len(problem.clusters),
            "clusters": N_CLUSTERS,
            "retraining_seeds": N_RETRAINED,
            "rows": rows,
        }
        file = ROOT / "benchmarks/results/influence_batch.json"
        file.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How well predicted influence matches retraining, what it costs, and what rivals reach.

    python benchmarks/influence.py --data_dir ../shared/data/flickr8k --work_dir /tmp/influence \
        --rivals_python path/to/rivals/bin/python

Flickr8k, 5,000 pairs, embedded encoder, as it is and with 20 % wrong captions concentrated in a
third of the topics; 40 and 200 clusters; every cluster left out and retrained with three seeds.
What has been computed lies in `--work_dir` and is not computed again. The rivals need an
environment of their own: see requirements-rivals.txt; without it they are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from artifacts import provenance, store
from attribution.cluster_scores import InfluenceConfig
from attribution.curvature import Objective
from attribution.derivatives import batch_loss_influences, loss_gradient, own_loss_influences
from attribution.inverse import conjugate_gradients
from attribution.results import LDS, LOCO, SMALL, InfluenceResult
from attribution.retraining import Data, Retraining
from attribution.validation import (
    SMALL_WEIGHT,
    correlations,
    gradient_similarity,
    noise_ceiling,
    real_effects,
)
from benchmarks.rooms import temporary_room
from cli.config import Config, parse_arguments
from cli.run import Run
from clustering import ClusteringConfig, cluster_embeddings
from embedding import EmbeddingResult
from encoders.joint_map import embed_across_folds
from influence import score_clusters
from learner.config import TrainingConfig
from learner.lending import lend
from learner.model import Parameters, shuffled_batches
from learner.pairs import PairTensors, TrainingPairs, fit_feature_scaling
from main import embed

CPU = torch.device("cpu")
TRAINING = TrainingConfig()
SEED = 11
N_SEEDS = 3
N_HALVES = 40
WRONG_SHARE, TOPIC_SHARE = 0.2, 1 / 3
REGIMES, CLUSTER_COUNTS = ("clean", "concentrated"), (40, 200)
RIVALS = (
    "dense_gradients",
    "dense_datainf",
    "kronfluence_ekfac",
    "dattri_cg",
    "dattri_arnoldi",
    "dattri_datainf",
)
DEFAULT = "default: metagradient, three reference models, ten folds"  # as it was
# What settings are told beside; the program's defaults are "one reference model, five folds".
THREE_MODELS: dict[str, Any] = {"influence_seeds": 3, "removal_folds": 10}
ONE: dict[str, Any] = {"influence_seeds": 1}
ALONE: dict[str, Any] = {"influence_checkpoints": 1, "removal_folds": 0}
STEP: dict[str, Any] = {"estimator": "step", **ONE}
SAMPLED: dict[str, Any] = {"estimator": "first_order", **ONE}
EVERY_PAIR: dict[str, Any] = {**SAMPLED, "samples_per_cluster": 10**6}
# What each part is worth: settings of `InfluenceConfig` beside its defaults. `step` and
# `first order` have one reference model unless they say otherwise.
ABLATION: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "two reference models": {"influence_seeds": 2},
    "one reference model": ONE,
    "five folds": {"removal_folds": 5},
    "one reference model, five folds": {**ONE, "removal_folds": 5},
    "one reference model, five folds, one checkpoint": {
        **ONE,
        "removal_folds": 5,
        "influence_checkpoints": 1,
    },
    "one reference model, no folds": {**ONE, "removal_folds": 0},
    "metagradient alone (one checkpoint, no folds)": ALONE,
    "metagradient alone, one reference model": {**ALONE, **ONE},
    "step, lanczos": STEP,
    "step, lanczos, rank 50": {**STEP, "rank": 50},
    "step, conjugate gradients": {**STEP, "hessian": "cg"},
    "step, datainf": {**STEP, "hessian": "datainf"},
    "step, identity": {**STEP, "hessian": "identity"},
    "step, exact Hessian, lanczos": {**STEP, "curvature": "hessian"},
    "first order, 5 pairs a cluster, lanczos": SAMPLED,
    "first order, every pair, lanczos": EVERY_PAIR,
    "first order, every pair, cg": {**EVERY_PAIR, "hessian": "cg"},
    "first order, every pair, cg, three reference models": {
        **EVERY_PAIR,
        "hessian": "cg",
        "influence_seeds": 3,
    },
    "first order, every pair, cg, damping 0.01": {
        **EVERY_PAIR,
        "hessian": "cg",
        "damping": 0.01,
    },
    "first order, every pair, cg, damping 1": {**EVERY_PAIR, "hessian": "cg", "damping": 1.0},
}
# With many clusters, what decides between the defaults and their rivals.
ABLATION_MANY = (
    DEFAULT,
    "two reference models",
    "one reference model",
    "five folds",
    "one reference model, five folds",
    "one reference model, no folds",
    "metagradient alone (one checkpoint, no folds)",
    "metagradient alone, one reference model",
    "step, lanczos",
    "first order, 5 pairs a cluster, lanczos",
    "first order, every pair, cg",
)
SWEEP = "one-pass sweep, gradient similarity"  # on a model that is given, as the rivals have it


class Problem(NamedTuple):
    """One regime with one number of clusters."""

    pairs: PairTensors
    validation: PairTensors
    clusters: np.ndarray  # (n,)
    clip_scores: np.ndarray  # (n,)
    wrong: np.ndarray  # (n,) bool
    planted: np.ndarray  # clusters that wrong captions were put into


# --- Data -------------------------------------------------------------------------------------


def embedded_pairs(data_dir: str, work_dir: Path) -> EmbeddingResult:
    """Flickr8k through stage 1, saved in the work folder."""
    flags = ["--output_dir", str(work_dir / "run"), "--dataset", "folder", "--data_dir", data_dir]
    config: Config = parse_arguments([*flags, "--encoder_model", "embedded", "--load_saved"])
    run = Run(config, store.Store.open(config.run.output_dir), CPU)
    result: EmbeddingResult = embed(run).value
    return result


def make_problem(embedding: EmbeddingResult, regime: str, n_clusters: int) -> Problem:
    """Topics are found before captions are swapped, among the pairs of a third of the topics."""
    rng = np.random.default_rng(SEED)
    e = embedding
    captions = e.split_pairs("train")["caption"].tolist()
    assigned = cluster_embeddings(
        e.concatenated_embeddings,
        e.clip_scores,
        captions,
        ClusteringConfig(n_clusters=n_clusters),
        rng=np.random.default_rng(SEED),
    ).cluster_assignments
    n = len(assigned)
    texts, clip_scores = e.text_features, e.clip_scores
    wrong, planted = np.zeros(n, dtype=bool), np.zeros(0, dtype=np.int64)
    if regime == "concentrated":
        order = rng.permutation(n_clusters)
        reached = np.cumsum(np.bincount(assigned, minlength=n_clusters)[order])
        planted = np.sort(order[: np.searchsorted(reached, TOPIC_SHARE * n) + 1])
        candidates = np.flatnonzero(np.isin(assigned, planted))
        swapped = rng.permutation(candidates)[: round(WRONG_SHARE * n)]
        texts = texts.copy()
        texts[swapped] = texts[np.roll(swapped, 1)]
        wrong[swapped] = True
        images, joint_texts, _ = embed_across_folds(e.image_features, texts, np.arange(n), rng=rng)
        clip_scores = (images * joint_texts).sum(axis=1)
    scaling = fit_feature_scaling(e.image_features, texts)
    return Problem(
        scaling.pairs(e.image_features, texts, CPU),
        scaling.pairs(e.validation_image_features, e.validation_text_features, CPU),
        assigned,
        clip_scores,
        wrong,
        planted,
    )


# --- Real effects -----------------------------------------------------------------------------


def known(problem: Problem) -> TrainingPairs:
    """The pairs in their clusters; of features and embeddings, scores look at the first alone."""
    n, k = len(problem.clusters), int(problem.clusters.max()) + 1
    images, texts = (side.numpy() for side in problem.pairs)
    return TrainingPairs(
        indices=np.arange(n),
        tensors=problem.pairs,
        scaling=fit_feature_scaling(images, texts),
        image_embeddings=images,
        text_embeddings=texts,
        concatenated_embeddings=np.concatenate([images, texts], axis=1),
        clip_scores=problem.clip_scores,
        image_ids=np.arange(n),
        captions=[""] * n,
        groups={},
        cluster_assignments=problem.clusters,
        cell_assignments=problem.clusters,
        better_copies=np.zeros(n, dtype=np.int64),
        clusters=[{"terms": []}] * k,
        validation=problem.validation,
        validation_image_embeddings=None,
        represented=np.ones(k),
    )


def estimate(problem: Problem, seed: int = SEED, **settings: Any) -> tuple[InfluenceResult, float]:
    """The estimate and its seconds, the training of its reference models included."""
    pairs, started = known(problem), time.perf_counter()
    with temporary_room() as room:
        result = score_clusters(
            pairs,
            InfluenceConfig(**THREE_MODELS | settings),
            TRAINING,
            room,
            rng=np.random.default_rng(seed),
        )
    return result, time.perf_counter() - started


def data_of(problem: Problem, reference: InfluenceResult) -> Data:
    """What is retrained on, and measured with the batches of the reference."""
    weights = np.ones(len(problem.clusters))
    batches = reference.validation_batches
    return Data(problem.pairs, problem.clusters, problem.validation, batches, weights)


class Truth(NamedTuple):
    """Real changes of the validation loss in percent, one row a seed."""

    effects: dict[str, np.ndarray]  # check -> (N_SEEDS, c)
    halves: np.ndarray  # (N_HALVES, K) bool, the clusters left out together


def ground_truth(problem: Problem, reference: InfluenceResult, file: Path) -> Truth:
    """Retraining without every cluster, with a little less of it, and without halves of them."""
    k = len(reference.influence_scores)
    rng = np.random.default_rng(SEED)
    halves = np.array([rng.permutation(np.arange(k) % 2) for _ in range(N_HALVES)], dtype=bool)
    if file.exists():
        saved = np.load(file)
        return Truth({check: saved[check] for check in (LOCO, SMALL, LDS)}, halves)
    retraining = Retraining(TRAINING, reference.reference_schedule, reference.reference_steps)
    one = np.eye(k, dtype=bool)
    factors = {
        LOCO: np.where(one, 0.0, 1.0),
        SMALL: np.where(one, SMALL_WEIGHT, 1.0),
        LDS: np.where(halves, 0.0, 1.0),
    }
    with temporary_room() as room:
        lent = lend(room, "pairs", data_of(problem, reference), problem.pairs.device)
        seeds = reference.reference_seeds.tolist()
        effects = real_effects(lent, retraining, factors, seeds)
    np.savez(file, **effects)  # type: ignore[arg-type]
    return Truth(effects, halves)


# --- Predictions ------------------------------------------------------------------------------


def row(
    name: str,
    problem: Problem,
    truth: Truth,
    scores: np.ndarray,
    small: np.ndarray | None = None,
    lds: np.ndarray | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One line of the table: predicted scores against every kind of retraining."""
    real = {check: effect.mean(axis=0) for check, effect in truth.effects.items()}
    small = scores if small is None else small
    loco = correlations(scores, real[LOCO])
    little = correlations(small, real[SMALL] / (1 - SMALL_WEIGHT))
    halves = correlations(truth.halves @ scores if lds is None else lds, real[LDS])
    result = {
        "estimator": name,
        **{f"loco_{key}": value for key, value in loco.items()},
        "small_spearman": little["spearman"],
        "small_slope": little["slope"],
        "lds_spearman": halves["spearman"],
        **more,
    }
    if len(problem.planted):
        harmless = ~np.isin(np.arange(len(scores)), problem.planted)
        result["planted_auc"] = float(roc_auc_score(harmless, scores))
        result["planted_auc_first_order"] = float(roc_auc_score(harmless, small))
        result["planted_auc_of_real_effects"] = float(roc_auc_score(harmless, real[LOCO]))
    return result


def free_predictions(
    problem: Problem, truth: Truth, reference: InfluenceResult
) -> list[dict[str, Any]]:
    """Size, CLIP score and gradient similarity, which cost nothing; and the real single effects.

    The latter bound what any sum of single effects can say about halves of the clusters.
    """
    k, z = len(reference.influence_scores), problem.clusters
    sizes = np.bincount(z, minlength=k)
    sums = np.bincount(z, problem.clip_scores, minlength=k)
    similarity = gradient_similarity(
        reference,
        problem.pairs,
        np.ones(len(z)),
        problem.validation,
        TRAINING,
        rng=np.random.default_rng(SEED),
    )
    kept = ~truth.halves
    return [
        row("real effects of single clusters", problem, truth, truth.effects[LOCO].mean(axis=0)),
        row("free: size", problem, truth, sizes.astype(float)),
        row(
            "free: CLIP score",
            problem,
            truth,
            sums / sizes,
            lds=-(kept @ sums) / (kept @ sizes),
        ),
        row(
            "free: gradient similarity",
            problem,
            truth,
            np.bincount(z, similarity, minlength=k) / len(z),
        ),
    ]


def without_negative_role(
    problem: Problem, truth: Truth, reference: InfluenceResult
) -> dict[str, Any]:
    """Each pair's own loss alone, with conjugate gradients: what influence libraries compute."""
    parameters, rng = reference.reference(CPU), np.random.default_rng(SEED)
    n = len(problem.clusters)
    started = time.perf_counter()
    objective = Objective(
        problem.pairs,
        parameters,
        np.arange(n),
        np.ones(n),
        TRAINING.batch_size,
        TRAINING.weight_decay,
        rng=rng,
    )
    gradient = loss_gradient(parameters, problem.validation, reference.validation_batches)
    direction = conjugate_gradients(
        lambda v: objective.products(v) + 0.1 * v, gradient, preconditioner=lambda v: v
    )
    order = rng.permutation(n)
    b = TRAINING.batch_size
    batches = np.resize(order, -(-n // b) * b).reshape(-1, b)
    influence = own_loss_influences(parameters, problem.pairs, direction, batches) / n
    seconds = time.perf_counter() - started
    scores = np.bincount(problem.clusters, influence)
    return row("first order without the negative role, cg", problem, truth, scores, seconds=seconds)


def ablation(
    problem: Problem, truth: Truth, *, wanted: Sequence[str], file: Path
) -> list[dict[str, Any]]:
    """Every estimator against the same retraining, from the same reference models."""
    jobs: dict[str, tuple[int, dict[str, Any]]] = {name: (SEED, ABLATION[name]) for name in wanted}
    jobs["default, other seeds than the retraining"] = (SEED + 1, {})
    done: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for name, (seed, settings) in jobs.items():
        if name in done:
            continue
        result, seconds = estimate(problem, seed, **settings)
        percent = 100 * result.influence_scores
        first_order = 100 * result.first_order_scores.mean(axis=0)
        done[name] = row(name, problem, truth, percent, first_order, seconds=seconds)
        file.write_text(json.dumps(done, indent=1))
        print(json.dumps(done[name]), flush=True)
    return [done[name] for name in jobs]


# --- Cost, and the rivals ---------------------------------------------------------------------


def save_for_rivals(problem: Problem, reference: InfluenceResult, truth: Truth, file: Path) -> None:
    """What benchmarks/influence_rivals.py reads."""
    n = len(problem.clusters)
    np.savez(
        file,
        image_features=problem.pairs.images.numpy(),
        text_features=problem.pairs.texts.numpy(),
        validation_image_features=problem.validation.images.numpy(),
        validation_text_features=problem.validation.texts.numpy(),
        image_map=reference.reference_image_map,
        text_map=reference.reference_text_map,
        log_scale=reference.reference_log_scale,
        train_batches=shuffled_batches(n, TRAINING.batch_size, np.random.default_rng(SEED)),
        validation_batches=reference.validation_batches,
        clusters=problem.clusters,
        real_effects=truth.effects[LOCO].mean(axis=0),
    )


def measure(problem_file: Path, settings: dict[str, Any], result_file: Path) -> None:
    """Our estimate on a saved problem: seconds, peak memory and agreement, in a process of its own.

    The seconds hold the training of the reference model too, which the rivals are given.
    """
    saved = np.load(problem_file)
    tensors = {name: torch.from_numpy(saved[name]) for name in saved.files if "features" in name}
    problem = Problem(
        PairTensors(tensors["image_features"], tensors["text_features"]),
        PairTensors(tensors["validation_image_features"], tensors["validation_text_features"]),
        saved["clusters"],
        np.zeros(len(saved["clusters"])),
        np.zeros(len(saved["clusters"]), dtype=bool),
        np.zeros(0, dtype=np.int64),
    )
    before = peak_mib()
    if settings.get("estimator") == SWEEP:
        parameters = Parameters(
            *(torch.from_numpy(saved[name]) for name in ("image_map", "text_map", "log_scale"))
        )
        started = time.perf_counter()
        influence = batch_loss_influences(
            parameters,
            problem.pairs,
            loss_gradient(parameters, problem.validation, saved["validation_batches"]),
            np.arange(len(problem.clusters)),
            np.ones(len(problem.clusters)),
            batch_size=TRAINING.batch_size,
            rng=np.random.default_rng(SEED),
        )
        swept = {
            "seconds": time.perf_counter() - started,
            "peak_mib": peak_mib(),
            "baseline_mib": before,
            "n_pairs": len(problem.clusters),
            **correlations(np.bincount(problem.clusters, influence), saved["real_effects"]),
        }
        result_file.write_text(json.dumps(swept))
        return
    cpu_before = time.process_time()
    result, seconds = estimate(problem, **settings)
    measured: dict[str, Any] = {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_before,  # of all cores, whoever shares them
        "peak_mib": peak_mib(),
        "baseline_mib": before,
        "n_pairs": len(problem.clusters),
        "n_parameters": int(result.reference_image_map.size + result.reference_text_map.size + 1),
        "reference_steps": result.reference_steps,
    }
    if "real_effects" in saved.files:
        measured |= correlations(100 * result.influence_scores, saved["real_effects"])
    result_file.write_text(json.dumps(measured))


def peak_mib() -> float:
    """Largest resident size of this process so far; `ru_maxrss` would hold its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def run_apart(command: list[str], result_file: Path) -> dict[str, Any]:
    """Run a measurement in its own process; its result, or why there is none."""
    result_file.unlink(missing_ok=True)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result_file.exists():
        return {"failed": finished.stderr.strip().splitlines()[-1:]}
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result


def side_by_side(
    problem_file: Path, work_dir: Path, rivals_python: str | None
) -> list[dict[str, Any]]:
    """Ours and the rivals on the same model and data, one process after another."""
    result_file, file = work_dir / "measured.json", work_dir / "side_by_side.json"
    done: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def run(method: str, command: list[str]) -> None:
        if method not in done:
            done[method] = {"method": method, **run_apart(command, result_file)}
            file.write_text(json.dumps(done, indent=1))
            print(json.dumps(done[method]), flush=True)

    settings = {**ABLATION, SWEEP: {"estimator": SWEEP}}
    ours = (SWEEP, DEFAULT, "one reference model", "one reference model, no folds", "step, lanczos")
    for name in ours:
        command = [sys.executable, __file__, "--measure", str(problem_file)]
        command += ["--settings", json.dumps(settings[name]), "--result_file", str(result_file)]
        run(f"InfluenceSpace, {name}", command)
    for name in RIVALS if rivals_python else ():
        command = [str(rivals_python), str(ROOT / "benchmarks/influence_rivals.py")]
        command += ["--problem", str(problem_file), "--method", name]
        command += ["--result_file", str(result_file), "--max_gib", "19"]
        run(name, command)
    return list(done.values())


def large_problem(file: Path) -> None:
    """20,000 pairs and a million parameters: random topics."""
    rng = np.random.default_rng(SEED)
    n, m, d_image, d_text, n_topics = 20_000, 1000, 3072, 1024, 200

    def features(topics: np.ndarray, own: np.ndarray, width: int, centres: np.ndarray) -> Any:
        mixing = np.random.default_rng(width).normal(size=(own.shape[1], width))
        x = centres[topics] + own @ mixing / 8 + rng.normal(size=(len(topics), width))
        return (x / np.sqrt((x**2).sum(axis=1).mean())).astype(np.float32)

    centres = {width: rng.normal(size=(n_topics, width)) for width in (d_image, d_text)}
    arrays: dict[str, np.ndarray] = {}
    for prefix, count in (("", n), ("validation_", m)):
        topics, own = rng.integers(n_topics, size=count), rng.normal(size=(count, 64))
        for side, width in (("image", d_image), ("text", d_text)):
            arrays[f"{prefix}{side}_features"] = features(topics, own, width, centres[width])
        if not prefix:
            arrays["clusters"] = topics
    np.savez(file, **arrays)  # type: ignore[arg-type]


# --- Figure -----------------------------------------------------------------------------------


def figure(points: dict[str, Any], file: Path) -> None:
    """Predicted against real effect of every cluster left out, one panel a problem."""
    drawn, axes = plt.subplots(1, len(points), figsize=(3.6 * len(points), 3.9))
    for axis, (title, p) in zip(np.atleast_1d(axes), points.items(), strict=True):
        low = min(*p["predicted"], *p["real"])
        high = max(*p["predicted"], *p["real"])
        axis.plot([low, high], [low, high], color="0.6", linewidth=1, label="predicted = real")
        planted = np.array(p["planted"], dtype=bool)
        for mask, color, label in (
            (~planted, "#4477AA", "clusters"),
            (planted, "#CC6677", "planted wrong captions"),
        ):
            if mask.any():
                axis.errorbar(
                    np.array(p["predicted"])[mask],
                    np.array(p["real"])[mask],
                    xerr=np.array(p["predicted_stderr"])[mask],
                    yerr=np.array(p["real_stderr"])[mask],
                    fmt="o",
                    markersize=3,
                    linewidth=0.5,
                    color=color,
                    alpha=0.8,
                    label=label,
                )
        axis.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axis.axvline(0, color="0.85", linewidth=0.8, zorder=0)
        axis.set_title(
            f"{title}\nSpearman {p['spearman']:.2f} (ceiling {p['ceiling']:.2f}),"
            f" slope {p['slope']:.2f}",
            fontsize=9,
        )
        axis.set_xlabel("predicted change of the loss (%)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("real change, cluster left out and retrained (%)", fontsize=8)
    handles, labels = np.atleast_1d(axes)[-1].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    drawn.tight_layout(rect=(0, 0.06, 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, dpi=130)
    plt.close(drawn)


def leave_out_points(problem: Problem, truth: Truth, result: InfluenceResult) -> dict[str, Any]:
    """What the figure shows of one problem."""
    real = truth.effects[LOCO]
    predicted = 100 * result.influence_scores
    return {
        "predicted": predicted.tolist(),
        "predicted_stderr": (100 * result.influence_stderr).tolist(),
        "real": real.mean(axis=0).tolist(),
        "real_stderr": (real.std(axis=0, ddof=1) / np.sqrt(len(real))).tolist(),
        "planted": np.isin(np.arange(len(predicted)), problem.planted).tolist(),
        **correlations(predicted, real.mean(axis=0)),
        "ceiling": noise_ceiling(real)[0],
    }


# --- Everything -------------------------------------------------------------------------------


def benchmark(args: argparse.Namespace) -> None:
    """All of it, with tables and the figure."""
    work_dir: Path = args.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    embedding = embedded_pairs(args.data_dir, work_dir)
    rows: list[dict[str, Any]] = []
    points: dict[str, Any] = {}
    ceilings: dict[str, Any] = {}
    compared: list[dict[str, Any]] = []
    for n_clusters in CLUSTER_COUNTS:
        for regime in REGIMES:
            problem = make_problem(embedding, regime, n_clusters)
            reference, _ = estimate(problem)
            file = work_dir / f"{regime}_{n_clusters}.npz"
            truth = ground_truth(problem, reference, file)
            title = f"{regime}, {n_clusters} clusters"
            ceilings[title] = {
                check: dict(zip(("ceiling", "seed_agreement"), noise_ceiling(effect), strict=True))
                for check, effect in truth.effects.items()
            }
            new = [
                *free_predictions(problem, truth, reference),
                without_negative_role(problem, truth, reference),
                *ablation(
                    problem,
                    truth,
                    wanted=ABLATION_MANY if n_clusters >= 100 else tuple(ABLATION),
                    file=work_dir / f"ablation_{regime}_{n_clusters}.json",
                ),
            ]
            rows += [{"regime": regime, "clusters": n_clusters, **r} for r in new]
            points[title] = leave_out_points(problem, truth, reference)
            if (regime, n_clusters) == ("concentrated", 40):
                problem_file = work_dir / "rivals.npz"
                save_for_rivals(problem, reference, truth, problem_file)
                compared = side_by_side(problem_file, work_dir, args.rivals_python)
    results = ROOT / "benchmarks/results"
    results.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(results / "influence.csv", index=False, float_format="%.4f")
    figure(points, ROOT / "docs/influence_validation.png")
    summary = {
        "command": "python benchmarks/influence.py --data_dir path/to/flickr8k "
        "--work_dir WORK --rivals_python RIVALS/bin/python",
        "hardware": provenance.hardware(),
        "packages": provenance.package_versions(),
        "training": dataclasses.asdict(TRAINING),
        "retraining_seeds": N_SEEDS,
        "ceilings": ceilings,
        "leave_one_cluster_out": {
            title: {key: p[key] for key in ("spearman", "pearson", "slope", "ceiling")}
            for title, p in points.items()
        },
        "side_by_side": compared,
    }
    (results / "influence.json").write_text(json.dumps(summary, indent=2) + "\n")
    with pd.option_context("display.width", 200, "display.max_rows", 200):
        print(table.to_string(index=False, float_format="%.3f"))
    print(json.dumps(summary, indent=2))


def measure_large(work_dir: Path) -> None:
    """Seconds and memory at 20,000 pairs and a million parameters."""
    work_dir.mkdir(parents=True, exist_ok=True)
    large_file, result_file = work_dir / "large.npz", work_dir / "measured.json"
    large_problem(large_file)
    large = {}
    for name in (DEFAULT, "one reference model"):
        command = [sys.executable, __file__, "--measure", str(large_file)]
        command += ["--settings", json.dumps(ABLATION[name]), "--result_file", str(result_file)]
        large[name] = run_apart(command, result_file)
        print(json.dumps(large[name]), flush=True)
    summary = {
        "command": "python benchmarks/influence.py --large --work_dir WORK",
        "hardware": provenance.hardware(),
        "pairs": 20_000,
        **large,
    }
    results = ROOT / "benchmarks/results/influence_large.json"
    results.write_text(json.dumps(summary, indent=2) + "\n")


def main() -> None:
    """The whole benchmark, or one measurement of it in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="folder that --dataset folder reads")
    parser.add_argument("--work_dir", type=Path, help="where intermediate results are kept")
    parser.add_argument("--rivals_python", help="interpreter of the rivals' environment")
    parser.add_argument("--large", action="store_true", help="only time 20,000 pairs")
    parser.add_argument("--measure", type=Path, help="measure one estimate on this problem")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--result_file", type=Path)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.settings, args.result_file)
    elif args.large and args.work_dir:
        measure_large(args.work_dir)
    elif args.data_dir and args.work_dir:
        benchmark(args)
    else:
        parser.error("--data_dir and --work_dir are needed")


if __name__ == "__main__":
    main()

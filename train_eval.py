"""Trains the dual encoder on every method's subset and measures what it is worth.

Retrieval recall at 1, 5, 10 in both directions on unseen images, several captions an image
(Karpathy & Fei-Fei 2015), at the same number of epochs and at the same number of steps; recall
gaps between groups of captions with a bootstrap interval; cost relative to the full data.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from artifacts.settings import InputError, Settings, setting
from baselines import FULL, METHODS, TRAINED_BY_DEFAULT
from embedding import EmbeddingResult
from engine.room import StageRoom
from engine.shards import ShardFiles, Summary
from learner.batches import steps_per_epoch
from learner.config import LOSS, WEIGHTINGS, TrainingConfig
from learner.lending import lend
from learner.model import (
    Parameters,
    embed_images,
    embed_texts,
    from_vector,
    shuffled_batches,
    to_vector,
)
from learner.pairs import FeatureScaling, PairFeatures, TrainingPairs
from learner.side_by_side import train_in_groups
from learner.stacked import Run
from learner.training import train_side_by_side
from sources.captions import caption_groups

NONE = "none"  # in the place of methods: nothing is trained and evaluated
COMPARISONS = SAME_EPOCHS, SAME_STEPS = "same_epochs", "same_steps"
RECALL_AT = (1, 5, 10)
QUERIES_AT_ONCE = 2048
TIE = 1e-6  # cosines closer than this differ by the rounding of float32 products
MIN_GROUP_QUERIES = 20
N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Which methods are compared, and how often each is trained."""

    methods: tuple[str, ...] = setting(
        TRAINED_BY_DEFAULT,
        "curation methods that are trained and evaluated, or none: the run ends with the curated "
        "set",
        choices=tuple(METHODS),
    )
    n_seeds: int = setting(3, "training repeats per method", at_least=1)
    weighting: str = setting(
        LOSS,
        "how InfluenceSpace's weights reach training: in the loss, or in how often an epoch draws "
        "a pair",
        choices=WEIGHTINGS,
    )

    def __post_init__(self) -> None:
        """Check every field; the word `none` becomes no method at all.

        Raises:
            InputError: a value is outside what its `setting` permits, or `none` is not alone.
        """
        if NONE in self.methods:
            if len(self.methods) > 1:
                others = " ".join(name for name in self.methods if name != NONE)
                raise InputError(f"--methods {NONE} stands alone; leave it or {others} out")
            object.__setattr__(self, "methods", ())
        super().__post_init__()


class RetrievalSet(NamedTuple):
    """Unseen images and all their captions."""

    images: Tensor  # (E, d_i) scaled features
    texts: Tensor  # (Q, d_t) scaled features
    caption_image: np.ndarray  # (Q,) row of the image that each caption describes
    image_embeddings: Tensor  # (E, d) of the frozen encoder
    text_embeddings: Tensor  # (Q, d) of the frozen encoder


def retrieval_set(
    embedding: EmbeddingResult, scaling: FeatureScaling, device: torch.device
) -> RetrievalSet:
    """The test images and captions, scaled like the training pairs."""
    e = embedding
    return RetrievalSet(
        scaling.images(e.test_image_features, device),
        scaling.texts(e.test_text_features, device),
        e.test_caption_image,
        torch.from_numpy(e.test_image_embeddings).to(device),
        torch.from_numpy(e.test_text_embeddings).to(device),
    )


class Subset(NamedTuple):
    """What a method trains on."""

    rows: np.ndarray  # (m,) rows of the training arrays
    weights: np.ndarray | None  # (m,) mean one; None is all ones


@dataclass(frozen=True)
class EvaluationResult:
    """Every training run, and where it ranked every query; all metrics follow from these."""

    image_ranks: Int64[np.ndarray, "runs E"]  # 0: one of the image's captions came first
    caption_ranks: Int64[np.ndarray, "runs Q"]  # 0: the caption's image came first
    encoder_image_ranks: Int64[np.ndarray, " E"]  # the frozen encoder, untrained
    encoder_caption_ranks: Int64[np.ndarray, " Q"]
    runs: list[dict[str, Any]] = field(metadata={"file": "runs.json"})


def evaluate_methods(
    subsets: Mapping[str, Subset],
    pairs: TrainingPairs,
    test: RetrievalSet,
    training: TrainingConfig,
    config: EvaluationConfig,
    room: StageRoom,
    *,
    rng: np.random.Generator,
    on_model: Callable[[str, Parameters], None] | None = None,
) -> EvaluationResult:
    """Train every method in both comparisons over all seeds, and rank the test queries.

    Seeds are paired: run s of every method starts from the same parameters.

    Args:
        subsets: what each method trains on, by name.
        pairs: all training pairs, and the held-out ones for the loss curves.
        test: unseen images and captions.
        training: settings of every run.
        config: number of seeds, and what weights do.
        room: where models are trained.
        rng: the stage's generator.
        on_model: called with `method_comparison_seed` and the trained parameters.
    """
    seeds = [int(s) for s in rng.integers(2**31, size=config.n_seeds)]
    batches = shuffled_batches(pairs.validation.n_pairs, training.batch_size, rng)
    device, n_pairs = pairs.tensors.device, pairs.tensors.n_pairs
    compared = _Compared(
        pairs.tensors, dict(subsets), (pairs.validation, batches), test, training, config.weighting
    )
    full_steps = training.num_epochs * steps_per_epoch(n_pairs, training.batch_size)
    planned, jobs = planned_runs(tuple(subsets), config.n_seeds), list[_Run]()
    for method, comparison, seed_index in planned:
        n_own = n_pairs if comparison == SAME_STEPS else len(subsets[method].rows)
        n_steps = training.num_epochs * steps_per_epoch(n_own, training.batch_size)
        jobs.append(_Run(method, n_steps, seeds[seed_index], on_model is not None))
    made = train_in_groups(
        lend(room, "pairs", compared, device),
        "training" if on_model is None else "training of models that are kept",
        _train_and_rank,
        jobs,
        unit="step",
        sizes=[job.n_steps for job in jobs],
        alike=lambda job: (job.n_steps, min(len(subsets[job.method].rows), training.batch_size)),
    )
    runs = [
        {
            **{"method": method, "comparison": comparison, "seed_index": seed_index},
            **{"n_pairs": len(subsets[method].rows), "n_steps": job.n_steps},
            "relative_training_cost": job.n_steps / full_steps,
            **one.summary,
        }
        for (method, comparison, seed_index), job, one in zip(planned, jobs, made, strict=True)
    ]
    if on_model:
        for (method, comparison, seed_index), one in zip(planned, made, strict=True):
            vector = one.load(".parameters.npy")
            parameters = from_vector(vector, pairs.tensors.widths, device)
            on_model(f"{method}_{comparison}_seed{seed_index}", parameters)
    encoder_ranks = retrieval_ranks(test.image_embeddings, test.text_embeddings, test.caption_image)
    of_images, of_captions = (
        np.stack([one.load(ending) for one in made]) for ending in (".images.npy", ".captions.npy")
    )
    return EvaluationResult(of_images, of_captions, *encoder_ranks, runs)


class _Compared(NamedTuple):
    """What all trainings have in common."""

    pairs: PairFeatures
    subsets: Mapping[str, Subset]
    held_out: Sequence[Any]  # pairs and their fixed batches, for the loss curves
    test: RetrievalSet
    training: TrainingConfig
    weighting: str


class _Run(NamedTuple):
    """One training."""

    method: str
    n_steps: int
    seed: int
    keeps: bool  # the trained model


def _train_and_rank(
    jobs: Sequence[_Run], files: Sequence[ShardFiles], compared: _Compared
) -> list[Summary]:
    """Train models, and write where each ranks every query."""
    runs = [Run(job.seed, *compared.subsets[job.method]) for job in jobs]
    training = partial(
        train_side_by_side,
        compared.pairs,
        compared.training,
        weighting=compared.weighting,
        validation=(compared.held_out[0], compared.held_out[1]),
    )
    # A process pays for its start with its first steps; no method is charged for it.
    training([Run(0, run.rows) for run in runs], n_steps=1, n_reports=1)
    started = time.perf_counter()
    trained = training(runs, n_steps=jobs[0].n_steps)
    seconds = (time.perf_counter() - started) / len(jobs)
    for job, (parameters, _), own in zip(jobs, trained, files, strict=True):
        of_images, of_captions = model_ranks(parameters, compared.test)
        own.write_npy(".images.npy", of_images)
        own.write_npy(".captions.npy", of_captions)
        if job.keeps:
            own.write_npy(".parameters.npy", to_vector(parameters))
    return [{"training_seconds": seconds, "history": history._asdict()} for _, history in trained]


def planned_runs(methods: Sequence[str], n_seeds: int) -> list[tuple[str, str, int]]:
    """Method, comparison and seed of every training; the full data's are the same in both."""
    return [
        (method, comparison, seed_index)
        for method in methods
        for comparison in COMPARISONS
        for seed_index in range(n_seeds)
        if not (method == FULL and comparison != COMPARISONS[0])
    ]


# --- Retrieval --------------------------------------------------------------------------------


def model_ranks(
    parameters: Parameters, test: RetrievalSet
) -> tuple[Int64[np.ndarray, " E"], Int64[np.ndarray, " Q"]]:
    """`retrieval_ranks` of the test set in a trained model's joint space."""
    return retrieval_ranks(
        embed_images(parameters, test.images),
        embed_texts(parameters, test.texts),
        test.caption_image,
    )


def retrieval_ranks(
    image_embeddings: Tensor, text_embeddings: Tensor, caption_image: Int64[np.ndarray, " Q"]
) -> tuple[Int64[np.ndarray, " E"], Int64[np.ndarray, " Q"]]:
    """How many wrong answers come before the first right one, for every query.

    An image is found by any of its captions; its other captions are no wrong answers. A tie
    counts against the query, so a model that cannot tell answers apart finds nothing.

    Args:
        image_embeddings: (E, d) unit rows, float32.
        text_embeddings: (Q, d) unit rows, float32.
        caption_image: (Q,) the image of each caption; every image has one.

    Returns:
        Ranks from zero of the image queries (E,) and of the caption queries (Q,).
    """
    device = image_embeddings.device
    owner = torch.from_numpy(caption_image).to(device)
    n_images = len(image_embeddings)
    own = torch.empty(len(owner), device=device)
    caption_ranks = torch.empty(len(owner), dtype=torch.int64, device=device)
    blocks = range(0, len(owner), QUERIES_AT_ONCE)
    for start in blocks:
        block = slice(start, start + QUERIES_AT_ONCE)
        scores = text_embeddings[block] @ image_embeddings.T
        own[block] = scores.gather(1, owner[block, None]).squeeze(1)
        # "Not below" and not ">=": against a model that diverged to NaN every answer counts.
        caption_ranks[block] = (~(scores < own[block, None] - TIE)).sum(dim=1) - 1
    best = torch.full((n_images,), -torch.inf, device=device)
    best = best.scatter_reduce(0, owner, own, "amax")
    image_ranks = torch.zeros(n_images, dtype=torch.int64, device=device)
    for start in blocks:
        block = slice(start, start + QUERIES_AT_ONCE)
        scores = text_embeddings[block] @ image_embeddings.T
        wrong = owner[block, None] != torch.arange(n_images, device=device)
        image_ranks += (~(scores < best - TIE) & wrong).sum(dim=0)
    return image_ranks.cpu().numpy(), caption_ranks.cpu().numpy()


def recall_metrics(
    image_ranks: Int64[np.ndarray, " E"], caption_ranks: Int64[np.ndarray, " Q"]
) -> dict[str, float]:
    """Recall in percent: both directions and their mean at 1, 5, 10, and the mean of all six."""
    metrics: dict[str, float] = {}
    for k in RECALL_AT:
        image_to_text = 100 * float((image_ranks < k).mean())
        text_to_image = 100 * float((caption_ranks < k).mean())
        metrics[f"image_to_text_recall@{k}"] = image_to_text
        metrics[f"text_to_image_recall@{k}"] = text_to_image
        metrics[f"avg_recall@{k}"] = (image_to_text + text_to_image) / 2
    metrics["mean_recall"] = float(np.mean([metrics[f"avg_recall@{k}"] for k in RECALL_AT]))
    return metrics


def run_rows(result: EvaluationResult, comparison: str, method: str) -> list[int]:
    """Rows of the runs of a method; the full data's serve both comparisons."""
    return [
        i
        for i, run in enumerate(result.runs)
        if run["method"] == method and (method == FULL or run["comparison"] == comparison)
    ]


def methods_of(result: EvaluationResult) -> list[str]:
    """The methods that were trained, in their order."""
    return list(dict.fromkeys(run["method"] for run in result.runs))


def histories(result: EvaluationResult) -> dict[str, list[dict[str, Any]]]:
    """Losses on the way, one `LossHistory` a seed, of every method at the same epochs."""
    return {
        method: [result.runs[i]["history"] for i in run_rows(result, COMPARISONS[0], method)]
        for method in methods_of(result)
    }


def mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None where one value has no spread."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def method_metrics(result: EvaluationResult) -> dict[str, dict[str, dict[str, Any]]]:
    """Recall by comparison, method and metric, as mean and standard deviation over seeds."""
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for comparison in COMPARISONS:
        metrics[comparison] = {}
        for method in methods_of(result):
            rows = run_rows(result, comparison, method)
            per_run = [recall_metrics(result.image_ranks[i], result.caption_ranks[i]) for i in rows]
            metrics[comparison][method] = {
                name: mean_and_std([run[name] for run in per_run]) for name in per_run[0]
            }
    return metrics


def on_trusted_queries(
    result: EvaluationResult,
    trusted: Bool[np.ndarray, " Q"],
    caption_image: Int64[np.ndarray, " Q"],
) -> EvaluationResult:
    """The same runs with the ranks of trusted test queries alone, for the metrics on these.

    Text to image asks the trusted captions, image to text the images with at least one of them.
    Ranks stay those among all test pairs, so the answers to tell apart are no fewer; an image
    counts as found by any of its captions, of which some may be wrong.

    Args:
        result: the runs with their ranks of all queries.
        trusted: captions that are likely to belong to their image.
        caption_image: the image of each caption.
    """
    images = np.unique(caption_image[trusted])
    return dataclasses.replace(
        result,
        image_ranks=result.image_ranks[:, images],
        caption_ranks=result.caption_ranks[:, trusted],
        encoder_image_ranks=result.encoder_image_ranks[images],
        encoder_caption_ranks=result.encoder_caption_ranks[trusted],
    )


def efficiency_metrics(
    result: EvaluationResult, n_pairs: int, curation_seconds: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Data, time and training cost of every method, relative to the full data.

    Args:
        result: the training runs.
        n_pairs: pairs of the full data.
        curation_seconds: time to choose each method's subset, embedding not included.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for method in methods_of(result):
        kept = result.runs[run_rows(result, COMPARISONS[0], method)[0]]["n_pairs"]
        metrics[method] = {
            "n_pairs": kept,
            "data_reduction": 1 - kept / n_pairs,
            "curation_seconds": curation_seconds[method],
        }
        for comparison in COMPARISONS:
            runs = [result.runs[i] for i in run_rows(result, comparison, method)]
            metrics[method][comparison] = {
                "n_steps": runs[0]["n_steps"],
                "relative_training_cost": runs[0]["relative_training_cost"],
                "training_seconds": mean_and_std([run["training_seconds"] for run in runs]),
            }
    return metrics


def demographic_gaps(
    result: EvaluationResult,
    captions: Sequence[str],
    caption_image: Int64[np.ndarray, " Q"],
    *,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Text-to-image recall of every group and the gap between the best and the worst one.

        gap = max_g recall_g - min_g recall_g        percentage points
        signed gap = recall of the first group - recall of the second

    with a 95 % interval from a bootstrap over images, recall averaged over seeds. A group of
    fewer than `MIN_GROUP_QUERIES` captions is reported as too small and not scored; an attribute
    with fewer than two scored groups has no gap.
    """
    groups = caption_groups(captions)
    n_images = int(caption_image.max()) + 1
    resamples = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=N_BOOTSTRAP)
    return {
        comparison: {
            method: {
                attribute: _attribute_gap(
                    result.caption_ranks[run_rows(result, comparison, method)],
                    members,
                    caption_image,
                    resamples,
                )
                for attribute, members in groups.items()
            }
            for method in methods_of(result)
        }
        for comparison in COMPARISONS
    }


def _attribute_gap(
    ranks: Int64[np.ndarray, "runs Q"],
    members: Mapping[str, Bool[np.ndarray, " Q"]],
    caption_image: Int64[np.ndarray, " Q"],
    resamples: Int64[np.ndarray, "B E"],
) -> dict[str, Any]:
    scored = [g for g, member in members.items() if member.sum() >= MIN_GROUP_QUERIES]
    report: dict[str, Any] = {
        "groups": {
            group: {"n_queries": int(member.sum()), "too_small": group not in scored}
            for group, member in members.items()
        },
        "gap": None,
        "signed": None,
    }
    gaps: dict[str, Any] = {}
    signed: dict[str, Any] = {}
    for k in RECALL_AT:
        hits = 100 * (ranks < k).mean(axis=0)  # (Q,) mean over seeds, percent
        recalls = {g: float(hits[members[g]].mean()) for g in scored}
        for group, recall in recalls.items():
            report["groups"][group][f"text_to_image_recall@{k}"] = recall
        if len(scored) > 1:
            resampled = np.stack(
                [_resampled_means(hits, members[g], caption_image, resamples) for g in scored]
            )
            interval = np.nanquantile(resampled.max(axis=0) - resampled.min(axis=0), [0.025, 0.975])
            gaps[f"recall@{k}"] = {
                "gap": max(recalls.values()) - min(recalls.values()),
                "interval_95": [float(q) for q in interval],
            }
            interval = np.nanquantile(resampled[0] - resampled[1], [0.025, 0.975])
            signed[f"recall@{k}"] = {
                "of": list(scored[:2]),
                "gap": recalls[scored[0]] - recalls[scored[1]],
                "interval_95": [float(q) for q in interval],
            }
    if gaps:
        report["gap"], report["signed"] = gaps, signed
    return report


def _resampled_means(
    hits: Float[np.ndarray, " Q"],
    member: Bool[np.ndarray, " Q"],
    caption_image: Int64[np.ndarray, " Q"],
    resamples: Int64[np.ndarray, "B E"],
) -> Float[np.ndarray, " B"]:
    """Mean over a group's captions in every resample of the images, (B,); NaN where it has none."""
    n_images = resamples.shape[1]
    totals = np.bincount(caption_image[member], hits[member], minlength=n_images)
    counts = np.bincount(caption_image[member], minlength=n_images)
    n_drawn = resamples @ counts
    return np.where(n_drawn > 0, (resamples @ totals) / np.maximum(n_drawn, 1), np.nan)

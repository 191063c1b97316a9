"""The trainings of the benchmark of regimes, and what is measured of each model."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from regimes_names import RECALLS
from regimes_problem import TRAINING, Problem
from regimes_rows import image_scores, packed

from artifacts.provenance import stage_rng
from learner.config import LOSS
from learner.model import Parameters, embed_images, embed_texts, mean_loss, shuffled_batches
from learner.pairs import PairTensors
from learner.stacked import Run
from learner.training import train_side_by_side
from train_eval import recall_metrics, retrieval_ranks

MOST_AT_ONCE = 64  # trainings side by side on a GPU


class TrainingOf(NamedTuple):
    """Pairs to be trained on."""

    rows: np.ndarray  # (m,)
    weights: np.ndarray | None  # (m,); None is all ones
    weighting: str  # how the weights reach training
    n_steps: int

    def key(self) -> Hashable:
        """The same for trainings that are the same."""
        given = b"" if self.weights is None else self.weighting.encode() + self.weights.tobytes()
        return self.rows.tobytes(), given, self.n_steps

    def plainly(self) -> TrainingOf:
        """The weighting of unweighted pairs makes no difference."""
        return self if self.weights is not None else self._replace(weighting=LOSS)


def measured(problem: Problem, training: TrainingOf) -> dict[str, Any]:
    """What one training reaches; see `measured_all`."""
    ((_, found),) = measured_all(problem, {"": training})
    return found


def measured_all(
    problem: Problem, trainings: Mapping[Any, TrainingOf]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Train, on a GPU side by side, and measure on the validation pairs and the test images.

    Yields:
        A training's key, its metrics, and as `scores` what each test image adds to the mean
        recall, packed. The seconds of trainings side by side are shared out among them.
    """
    groups: dict[tuple[int, int, str], list[Any]] = {}
    for key, (rows, _, weighting, n_steps) in trainings.items():
        alike = n_steps, min(len(rows), TRAINING.batch_size), weighting
        groups.setdefault(alike, []).append(key)
    at_once = MOST_AT_ONCE if problem.pairs.device.type == "cuda" else 1
    seed = int(stage_rng(problem.seed, "training").integers(2**31))
    for (n_steps, _, weighting), keys in groups.items():
        for start in range(0, len(keys), at_once):
            some = keys[start : start + at_once]
            started = time.perf_counter()
            models = train_side_by_side(
                problem.pairs,
                TRAINING,
                [Run(seed, trainings[key].rows, trainings[key].weights) for key in some],
                n_steps=n_steps,
                weighting=weighting,
                n_reports=1,
            )
            seconds = (time.perf_counter() - started) / len(some)
            for key, (parameters, _) in zip(some, models, strict=True):
                yield key, {**metrics_of(problem, parameters), "training_seconds": seconds}


def metrics_of(problem: Problem, parameters: Parameters) -> dict[str, Any]:
    """What a model reaches on the validation pairs and the test images."""
    test, place = problem.test, problem.pairs.device
    images = problem.scaling.images(test.image_features, place)
    texts = problem.scaling.texts(test.text_features, place)
    image_ranks, caption_ranks = retrieval_ranks(
        embed_images(parameters, images), embed_texts(parameters, texts), test.caption_image
    )
    recalls = recall_metrics(image_ranks, caption_ranks)
    # One caption an image, as in the validation pairs: no other of the batch describes it.
    first = torch.from_numpy(np.unique(test.caption_image, return_index=True)[1])
    batches = shuffled_batches(len(images), TRAINING.batch_size, stage_rng(problem.seed, "test"))
    return {
        "mean_recall": recalls["mean_recall"],
        **{name: recalls[name] for name in RECALLS},
        **group_recalls(caption_ranks, test.groups),
        "validation_loss": mean_loss(parameters, problem.validation, problem.validation_batches),
        "test_loss": mean_loss(parameters, PairTensors(images, texts[first.to(place)]), batches),
        "scores": packed(image_scores(image_ranks, caption_ranks, test.caption_image)),
    }


def group_recalls(
    caption_ranks: np.ndarray, groups: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Text-to-image recall@10 of captions about each group alone, and the gaps, percentage points.

    `gap` is between captions about women and about men, `age_gap` about children and adults.
    """
    metrics: dict[str, float] = {}
    for attribute, name in (("gender", "gap"), ("age", "age_gap")):
        recalls = [
            100 * float((caption_ranks[member] < 10).mean())
            for member in groups[attribute].values()
        ]
        metrics |= {f"{g}_recall@10": r for g, r in zip(groups[attribute], recalls, strict=True)}
        metrics[name] = max(recalls) - min(recalls)
    return metrics

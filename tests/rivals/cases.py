"""What selectors are tried on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from baselines import Selection, select_baseline
from learner.pairs import TrainingPairs
from rivals.given import Reference
from tests.knowing import pair_influence, training_pairs
from tests.reference import random_problem


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows at unit length, float32."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def at_angles(*degrees: float) -> np.ndarray:
    """Points on the unit circle."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


class Case(NamedTuple):
    """What the selectors look at."""

    pairs: TrainingPairs
    reference: Reference | None


def case_of(n: int, **changes: Any) -> Case:
    """Any n pairs in three clusters, with a reference model, unless it is None."""
    problem, rng = random_problem(n, seed=0), np.random.default_rng(0)
    tensors = problem.pairs(torch.float32)
    given: dict[str, Any] = {
        "concatenated_embeddings": rng.normal(size=(n, 4)).astype(np.float32),
        "image_embeddings": unit(rng.normal(size=(n, 3))),
        "text_embeddings": unit(rng.normal(size=(n, 3))),
        "clip_scores": rng.random(n).astype(np.float32),
        "cluster_assignments": np.arange(n) % 3,
        "tensors": tensors,
        "validation": tensors,
    }
    model = changes.pop("reference", problem.parameters(torch.float32))
    batch_size, said = (
        changes.pop("batch_size", 4),
        pair_influence(rng.normal(size=n), np.arange(n)),
    )
    known = Reference(model, batch_size, said) if model is not None else None
    given |= changes
    width = given["image_embeddings"].shape[1]
    held_out = unit(np.random.default_rng(1).normal(size=(5, width)))
    return Case(training_pairs(n, **{"validation_image_embeddings": held_out} | given), known)


def select(name: str, case: Case, ratio: float, *, rng: np.random.Generator) -> Selection:
    return select_baseline(name, case.pairs, case.reference, ratio, rng)

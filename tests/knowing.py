"""Training pairs and what stages 2 and 3 say of them, invented where a test does not care."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from attribution.results import InfluenceResult, PairInfluence
from learner.pairs import FeatureScaling, PairTensors, TrainingPairs
from tests.reference import Planted

UNSCALED = FeatureScaling(np.zeros(1, dtype=np.float32), 1.0, np.zeros(1, dtype=np.float32), 1.0)


def training_pairs(n: int, **given: Any) -> TrainingPairs:
    """Any n pairs of one cluster, sources at 3, 13, 23 and so on, unless `given` says otherwise."""
    clusters = given.get("cluster_assignments", np.zeros(n, dtype=np.int64))
    n_clusters = int(clusters.max()) + 1
    tensors = given.get("tensors", PairTensors(torch.zeros(n, 1), torch.zeros(n, 1)))
    units = np.ones((n, 1), dtype=np.float32)
    fields: dict[str, Any] = {
        "indices": 10 * np.arange(n) + 3,
        "tensors": tensors,
        "scaling": UNSCALED,
        "image_embeddings": units,
        "text_embeddings": units,
        "concatenated_embeddings": np.repeat(units, 2, axis=1),
        "clip_scores": np.full(n, 0.25),
        "image_ids": np.arange(n),
        "captions": [f"caption {i}" for i in range(n)],
        "groups": {},
        "cluster_assignments": clusters,
        "cell_assignments": clusters,
        "better_copies": np.zeros(n, dtype=np.int64),
        "clusters": [{"terms": [f"term{k}", "b", "c", "d"]} for k in range(n_clusters)],
        "validation": tensors,
        "validation_image_embeddings": None,
        "represented": np.ones(n_clusters),
    }
    return TrainingPairs(**fields | given)


def planted_pairs(planted: Planted, clusters: np.ndarray, word: str) -> TrainingPairs:
    """The planted pairs in these clusters, each about the word and its number."""
    return training_pairs(
        len(clusters),
        tensors=planted.pairs,
        validation=planted.validation,
        cluster_assignments=clusters,
        clusters=[{"terms": [f"{word}{k}"]} for k in range(clusters.max() + 1)],
    )


def cluster_influence(
    scores: np.ndarray, stderr: np.ndarray | None = None, n_pairs: int = 1
) -> InfluenceResult:
    """Clusters' scores, certain unless their standard errors are given."""
    k = len(scores)
    return InfluenceResult(
        first_order_scores=np.zeros((1, k)),
        first_order_stderr=np.zeros(k),
        removal_corrections=np.zeros(k),
        influence_scores=scores,
        influence_stderr=np.zeros(k) if stderr is None else stderr,
        first_order_influence=np.zeros(n_pairs),
        first_order_evaluated=np.ones(n_pairs, dtype=bool),
        eigenvalues=np.zeros(0),
        eigenvalue_residuals=np.zeros(0),
        reference_image_map=np.zeros((1, 1), dtype=np.float32),
        reference_text_map=np.zeros((1, 1), dtype=np.float32),
        reference_log_scale=np.zeros((), dtype=np.float32),
        reference_seeds=np.zeros(1, dtype=np.int64),
        reference_steps=1,
        reference_schedule=1,
        validation_batches=np.zeros((1, 1), dtype=np.int64),
        validation_loss=2.0,
        estimator="metagradient",
        curvature_quality={},
        clusters=[],
    )


def pair_influence(influence: np.ndarray, cells: np.ndarray, **given: Any) -> PairInfluence:
    """Pairs' influence, known, of a validation loss of two nats; agreement tells nothing."""
    n, n_cells = len(influence), int(cells.max()) + 1
    fields: dict[str, Any] = {
        "pair_influence": influence,
        "pair_influence_stderr": np.zeros(n),
        "pair_influence_evaluated": np.zeros(n, dtype=bool),
        "held_out_losses": np.zeros(n),
        "agreement": np.zeros(n),
        "cell_assignments": cells,
        "cell_influence": np.bincount(cells, influence) / np.bincount(cells),
        "cell_influence_stderr": np.zeros(n_cells),
        "validation_loss": 2.0,
        "influence_weight": 1.0,
        "relevance_part": np.zeros(n),
        "quality": {"explained": 1.0},
    }
    return PairInfluence(**fields | given)


def replaced(record: Any, changes: Mapping[str, Any]) -> Any:
    """The record with those of the changes that are fields of it."""
    names = {field.name for field in dataclasses.fields(record)}
    return dataclasses.replace(record, **{k: v for k, v in changes.items() if k in names})

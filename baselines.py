"""The rival selectors, each returning a curated subset of the same size, with equal weights.

random                  uniform
clip_score_filtering    highest image-text agreement (Hessel et al. 2021; Schuhmann et al. 2022)
diversity_sampling      equal shares of every k-means cluster (Vo et al. 2024, arXiv 2405.15613)
coreset_selection       k-centre greedy (Sener & Savarese 2018, arXiv 1708.00489)
individual_influence    highest DataInf influence of every pair's own loss (Kwon et al. 2024)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from tqdm import tqdm

from curation import curated_size
from curvature import datainf_direction, loss_gradient
from model import PairTensors, Parameters, shuffled_batches
from pair_influence import own_loss_influences

BASELINES = (
    "random",
    "clip_score_filtering",
    "diversity_sampling",
    "coreset_selection",
    "individual_influence",
)


@dataclass(frozen=True)
class BaselineInputs:
    """What the selectors look at; `reference` is needed by individual influence alone."""

    indices: Int64[np.ndarray, " n"]  # positions in the source
    embeddings: Float[np.ndarray, "n d2"]
    clip_scores: Float[np.ndarray, " n"]
    cluster_assignments: Int64[np.ndarray, " n"]
    pairs: PairTensors
    validation: PairTensors
    reference: Parameters | None
    batch_size: int


@dataclass(frozen=True)
class Selection:
    """The m pairs that a selector keeps."""

    indices: Int64[np.ndarray, " m"]  # sorted positions in the source
    rows: Int64[np.ndarray, " m"]  # the same pairs as rows of the training arrays


def select_baseline(
    name: str, inputs: BaselineInputs, target_size_ratio: float, *, rng: np.random.Generator
) -> Selection:
    """The subset that baseline `name` keeps, as many pairs as InfluenceSpace keeps.

    Raises:
        ValueError: individual influence without a reference model.
    """
    size = curated_size(len(inputs.clip_scores), target_size_ratio)
    selectors: dict[str, Callable[[], np.ndarray]] = {
        "random": lambda: rng.permutation(len(inputs.clip_scores))[:size],
        "clip_score_filtering": lambda: highest(inputs.clip_scores, size),
        "diversity_sampling": lambda: equal_shares(inputs.cluster_assignments, size, rng=rng),
        "coreset_selection": lambda: k_center_greedy(inputs.embeddings, size, rng=rng),
        "individual_influence": lambda: highest(individual_influence(inputs, rng=rng), size),
    }
    rows = np.sort(selectors[name]()).astype(np.int64)
    return Selection(inputs.indices[rows], rows)


def highest(scores: Float[np.ndarray, " n"], size: int) -> Int64[np.ndarray, " m"]:
    """Rows of the `size` highest scores; ties go to the earlier row."""
    rows: np.ndarray = np.argsort(-scores, kind="stable")[:size].astype(np.int64)
    return rows


def equal_shares(
    cluster_assignments: Int64[np.ndarray, " n"], size: int, *, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Random rows, as evenly over the clusters as their sizes permit.

    Every cluster gives a first pair before any gives a second, and so on until `size` is met.
    """
    order = rng.permutation(len(cluster_assignments))
    by_cluster = order[np.argsort(cluster_assignments[order], kind="stable")]
    sizes = np.bincount(cluster_assignments)
    starts = (np.cumsum(sizes) - sizes)[cluster_assignments[by_cluster]]
    turn = np.arange(len(order)) - starts
    tie_break = rng.permutation(len(order))  # which clusters give one more in the last round
    rows: np.ndarray = by_cluster[np.lexsort((tie_break, turn))[:size]].astype(np.int64)
    return rows


def k_center_greedy(
    embeddings: Float[np.ndarray, "n d2"], size: int, *, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Rows chosen one by one, each the farthest from those chosen before: Sener & Savarese (2018).

    The first one is drawn at random. At most twice the optimal covering radius. O(n m d) time,
    O(n) memory beside the embeddings.
    """
    points = np.ascontiguousarray(embeddings, dtype=np.float32)
    squared_norms = np.einsum("nd,nd->n", points, points)
    chosen = np.empty(size, dtype=np.int64)
    chosen[0] = rng.integers(len(points))
    nearest = np.full(len(points), np.inf, dtype=np.float32)  # squared distance to the chosen
    for i in tqdm(range(1, size), desc="k-centre greedy", unit="pair", disable=None, leave=False):
        last = chosen[i - 1]
        distance = squared_norms + squared_norms[last] - 2 * (points @ points[last])
        np.minimum(nearest, distance, out=nearest)
        nearest[last] = -np.inf  # never again, whatever duplicates and rounding do
        chosen[i] = nearest.argmax()
    return chosen


def individual_influence(
    inputs: BaselineInputs, *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """DataInf influence of every pair, positive where leaving it out raises the validation loss.

    Per-pair influence as libraries compute it: the gradient of the pair's own loss in a fixed
    batch.
    """
    if inputs.reference is None:
        raise ValueError("individual_influence needs the reference model")
    n = len(inputs.clip_scores)
    b = min(inputs.batch_size, n)
    order = rng.permutation(n)
    batches = np.resize(order, -(-n // b) * b).reshape(-1, b)  # the last one wraps round
    validation_batches = shuffled_batches(len(inputs.validation.images), b, rng)
    gradient = loss_gradient(inputs.reference, inputs.validation, validation_batches)
    direction = datainf_direction(inputs.reference, inputs.pairs, gradient, batches)
    return own_loss_influences(inputs.reference, inputs.pairs, direction, batches)

"""The map of all pairs in two dimensions, and the neighbours of each.

t-SNE (van der Maaten & Hinton 2008) of the joint embeddings' principal components, for at most
`MAX_LANDMARKS` pairs; the others are placed beside the landmarks that they are most like. The
variants that were tried are in benchmarks/results/pair_map.json.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from reporting.report.neighbours import most_similar, nearest_neighbours, unit_rows, whole_steps

N_NEIGHBOURS = 8  # that the report shows of a pair
# Chosen by benchmarks/results/pair_map.json. Of the ten nearest on the map of 5,000 pairs of
# Flickr8k, 66 % are among the fifty nearest in the embedding. 2,000 landmarks: 55 %, 50 components:
# 64 %, all components, 1,000 iterations or openTSNE: 66 %, UMAP: 49 %.
MAX_LANDMARKS = 5_000
PCA_DIMENSIONS = 100
PERPLEXITY = 30.0
MAX_ITERATIONS = 500
FEWEST_FOR_TSNE = 8  # pairs; fewer are shown by their principal components
LEAST_SPREAD = 1e-6  # of equal points, but for rounding
SPREAD_AT_START = 1e-4  # standard deviation, as scikit-learn's own start from PCA has
# A pair goes to the mean of those of its nearest landmarks that are close to the very nearest on
# the map: a mean over several islands would lie in the sea between them.
NEAREST_LANDMARKS = 10
CLOSE_ON_MAP = 0.02  # of the map's width
NEARNESS_POWER = 4
SMALLEST_DISTANCE = 1e-6  # cosine distance to a landmark that is equal
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class PairMap:
    """Where each pair lies on the map, and the pairs that are most like it."""

    places: Float32[np.ndarray, "n 2"]  # within [-1, 1], both axes to one scale
    neighbours: Int32[np.ndarray, "n k"]  # rows of other pairs, nearest first
    similarities: Float32[np.ndarray, "n k"]  # cosines of the joint embeddings


def map_pairs(embeddings: Float32[np.ndarray, "n d2"], *, rng: np.random.Generator) -> PairMap:
    """The map of all pairs: near pairs have like images and captions; far ones say little.

    The same generator gives the same map, bit for bit on one machine; up to 5,000 pairs another one
    gives the same too, but for rounding. Neighbours are exact up to 20,000 pairs. 5,000 pairs take
    12 seconds of one core, 100,000 take 37, a million five minutes and 2 GB. Beyond some 100,000
    pairs, where dozens lie beside one landmark, the map shows topics rather than neighbours.

    Args:
        embeddings: image and text embeddings side by side.
        rng: draws the landmarks and what t-SNE and the search for neighbours draw.
    """
    k = min(N_NEIGHBOURS, len(embeddings) - 1)
    # More threads would add up in an order of their own each time, and wait for each other longer
    # than they save where cores are shared.
    with threadpool_limits(limits=1, user_api="openmp"):
        places = _place(embeddings, rng)
    neighbours, similarities = nearest_neighbours(embeddings, k, rng=rng)
    return PairMap(_into_square(places), neighbours, similarities)


def _place(
    embeddings: Float32[np.ndarray, "n d2"], rng: np.random.Generator
) -> Float32[np.ndarray, "n 2"]:
    n = len(embeddings)
    if n <= MAX_LANDMARKS:
        return place_landmarks(unit_rows(embeddings), rng)
    landmarks = np.sort(rng.choice(n, MAX_LANDMARKS, replace=False))
    landmark_places = place_landmarks(unit_rows(embeddings[landmarks]), rng)
    return place_others(embeddings, landmarks, landmark_places)


def place_landmarks(
    points: Float32[np.ndarray, "l d2"],
    rng: np.random.Generator,
    *,
    dimensions: int = PCA_DIMENSIONS,
    perplexity: float = PERPLEXITY,
    max_iterations: int = MAX_ITERATIONS,
) -> Float32[np.ndarray, "l 2"]:
    """Places by t-SNE, in its own units, or by two principal components where there are few points.

    Args:
        points: unit rows, whose squared distances are twice their cosine distances.
        rng: draws for PCA, where it is not exact.
        dimensions: principal components at most.
        perplexity: of t-SNE, less where there are few points.
        max_iterations: of t-SNE.
    """
    random_state = int(rng.integers(2**31))
    pca = PCA(min(dimensions, *points.shape), random_state=random_state)
    with np.errstate(invalid="ignore", divide="ignore"):  # no variance to take a share of
        components = pca.fit_transform(points).astype(np.float32)
    start = np.zeros((len(points), 2), dtype=np.float32)
    start[:, : components.shape[1]] = components[:, :2]
    spread = float(start[:, 0].std())
    if spread < LEAST_SPREAD:
        return np.zeros_like(start)
    if len(points) < FEWEST_FOR_TSNE:
        return start
    tsne = TSNE(
        perplexity=min(perplexity, (len(points) - 1) / 3),
        init=start / spread * np.float32(SPREAD_AT_START),
        max_iter=max_iterations,
        random_state=random_state,
    )
    places: np.ndarray = tsne.fit_transform(components).astype(np.float32)
    return places


def place_others(
    embeddings: Float32[np.ndarray, "n d2"],
    landmarks: Int64[np.ndarray, " l"],
    landmark_places: Float32[np.ndarray, "l 2"],
) -> Float32[np.ndarray, "n 2"]:
    """All pairs on the map of the landmarks, which stay where they are.

    A landmark at cosine distance c weighs c^-4, unless it lies farther from the nearest one on the
    map than a fiftieth of the map's width.
    """
    marks = unit_rows(embeddings[landmarks])
    k = min(NEAREST_LANDMARKS, len(landmarks))
    close = CLOSE_ON_MAP * float(np.ptp(landmark_places, axis=0).max())
    places = np.empty((len(embeddings), 2), dtype=np.float32)
    for start in tqdm(range(0, len(embeddings), ROWS_AT_ONCE), desc="map", disable=None):
        rows = slice(start, start + ROWS_AT_ONCE)
        nearest, cosines = most_similar(whole_steps(unit_rows(embeddings[rows]) @ marks.T), k)
        around = landmark_places[nearest]  # (rows, k, 2)
        distances = np.maximum(1 - cosines, np.float32(SMALLEST_DISTANCE))
        weights = (distances[:, :1] / distances) ** NEARNESS_POWER
        weights *= np.linalg.norm(around - around[:, :1], axis=2) <= close
        places[rows] = (weights[..., None] * around).sum(axis=1) / weights.sum(axis=1)[:, None]
    places[landmarks] = landmark_places
    return places


def _into_square(places: Float[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n 2"]:
    """The places moved and scaled into [-1, 1], both axes alike."""
    centred = places - (places.min(axis=0) + places.max(axis=0)) / 2
    reach = float(np.abs(centred).max())
    scaled = centred / reach if reach > 0 else centred
    square: np.ndarray = np.clip(scaled, -1, 1).astype(np.float32)
    return square

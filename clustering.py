"""Stage 1b: topics by k-means over the concatenated embeddings, and the cells within each.

Lloyd's algorithm from scikit-learn, for large sets fitted to a sample first (`learner/kmeans.py`);
the terms that set a cluster apart are those of `learner/terms.py`. Near copies are looked for among
images that lie close together: in small sets those nearest to one topic's images, in large ones
those of about sqrt(n) groups of their own, so that their cost does not depend on the topics.

What hurts a training set is mostly spread over all topics: wrong captions, boilerplate, copies. A
topic's mean cannot see it, so each is split into cells by how well image and text agree, and into
originals and near copies.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from artifacts.settings import InputError, Settings, setting
from embedding import EmbeddingResult
from engine.room import StageRoom
from learner.groups import nearby_groups, nearest
from learner.kmeans import SAMPLED_ABOVE, Fitted, sampled_kmeans
from learner.near_copies import SURROUNDINGS, near_copies, nearest_other_groups
from learner.pairs import TrainingPairs, fit_feature_scaling, nearest_clusters, representation
from learner.terms import distinctive_terms
from sources.captions import caption_groups

logger = logging.getLogger(__name__)

# Times the square root of n: as dear to assign as to compare within, and of planted copies more
# are found than with fewer, larger ones.
IMAGE_GROUPS = 2
N_NEAREST = 5
ROWS_AT_ONCE = 8192
DEFAULT_CLUSTERS = 100
ALL_IN_ONE = 10_000  # pairs of which copies are looked for among all, where clusters are small

BAND_NAMES = {
    2: ("lower half", "upper half"),
    3: ("lowest third", "middle third", "highest third"),
    4: ("lowest quarter", "second quarter", "third quarter", "highest quarter"),
}


@dataclass(frozen=True)
class ClusteringConfig(Settings):
    """How pairs are grouped into topics."""

    n_clusters: int = setting(
        DEFAULT_CLUSTERS,
        "clusters for k-means; by default one for ten pairs where there are fewer pairs than that",
        at_least=1,
    )
    agreement_bands: int = setting(
        4, "bands of image-text agreement that each cluster is split into", at_least=1
    )
    near_copy_similarity: float = setting(
        0.85, "least cosine of the centred features of near copies", above=0, at_most=1
    )

    def n_clusters_of(self, n: int) -> int:
        """How many clusters n pairs are put into: fewer by default where there are few pairs."""
        if n < self.n_clusters == DEFAULT_CLUSTERS:
            return max(1, n // 10)
        return self.n_clusters


@dataclass(frozen=True)
class ClusterAssignment:
    """K clusters over n pairs, split into cells; none of either is empty."""

    cluster_assignments: Int64[np.ndarray, " n"]
    cell_assignments: Int64[np.ndarray, " n"]
    better_copies: Int64[np.ndarray, " n"]  # near copies with a better caption, of each pair
    centers: Float[np.ndarray, "K d2"]
    clusters: list[dict[str, Any]] = field(metadata={"file": "clusters.json"})
    # (pair, near copy with a better caption); results saved before this existed have none.
    copy_links: Int64[np.ndarray, "m 2"] | None = None
    # About sqrt(n) groups of images that lie close together; None of small sets, whose topics do.
    image_groups: Int64[np.ndarray, " n"] | None = None


def cluster_embeddings(
    embeddings: Float[np.ndarray, "n d2"],
    clip_scores: Float[np.ndarray, " n"],
    captions: Sequence[str],
    config: ClusteringConfig,
    *,
    rng: np.random.Generator,
    image_features: Float[np.ndarray, "n d_i"] | None = None,
    room: StageRoom | None = None,
) -> ClusterAssignment:
    """Clusters of the concatenated embeddings, with their cells and descriptions for people.

    Fewer than `n_clusters` clusters come back only where there are fewer distinct points.

    Args:
        embeddings: image and text embeddings side by side, equally wide.
        clip_scores: image-text agreement of each pair.
        captions: of each pair.
        config: settings.
        rng: starts k-means.
        image_features: what near copies are looked for in; by default the images' embeddings.
        room: where the near copies of many pairs are looked for; None: here.

    Raises:
        InputError: fewer pairs than clusters asked for.
    """
    n = len(embeddings)
    n_clusters = config.n_clusters_of(n)
    if n < n_clusters:
        raise InputError(
            f"--n_clusters asks for {n_clusters} clusters but there are only {n} training "
            f"pairs; pass --n_clusters {max(1, n // 10)} or more data"
        )
    if n_clusters < config.n_clusters:
        logger.info("%s training pairs are put into %s clusters (--n_clusters)", n, n_clusters)
    found = _fit(embeddings, n_clusters, rng)
    used, assignments = np.unique(found.labels, return_inverse=True)
    assignments = assignments.astype(np.int64).reshape(n)
    centers = found.centers[used].astype(np.float32)
    embedded = embeddings[:, : embeddings.shape[1] // 2]
    # Copies share an image, not a caption: they are looked for where the images lie together.
    own = nearby_groups(embedded, round(IMAGE_GROUPS * n**0.5), rng) if n > SAMPLED_ABOVE else None
    copies, links = near_copies(
        embedded if image_features is None else image_features,
        _groups_of_few(embeddings, centers) if own is None else own,
        clip_scores,
        config.near_copy_similarity,
        other_groups=None if own is None else nearest_other_groups(embedded, own),
        room=None if own is None else room,
    )
    bands = agreement_bands(clip_scores, config.agreement_bands)
    cells = split_into_cells(assignments, bands, copies)
    clusters = describe_clusters(assignments, centers, embeddings, clip_scores, captions)
    described = describe_cells(
        cells, assignments, bands, config.agreement_bands, copies, clip_scores, captions
    )
    for cluster, its_cells in zip(clusters, described, strict=True):
        cluster["cells"] = its_cells
    return ClusterAssignment(assignments, cells, copies, centers, clusters, links, own)


def _fit(
    embeddings: Float[np.ndarray, "n d2"], n_clusters: int, rng: np.random.Generator
) -> Fitted:
    """K-means, on a sample first where there are many pairs; some clusters may be empty."""
    if len(embeddings) > SAMPLED_ABOVE:
        return sampled_kmeans(embeddings, n_clusters, rng)
    kmeans = KMeans(n_clusters=n_clusters, n_init=3, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: the empty clusters are dropped.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = kmeans.fit_predict(embeddings)
    return Fitted(labels, kmeans.cluster_centers_)


def _groups_of_few(
    embeddings: Float[np.ndarray, "n d2"], centers: Float[np.ndarray, "K d2"]
) -> Int64[np.ndarray, " n"]:
    """Groups of images that hold copies with their surroundings: clusters, or all in one.

    In a small cluster the surroundings of a copy would be other copies.
    """
    n = len(embeddings)
    if n <= ALL_IN_ONE and n < 2 * SURROUNDINGS * len(centers):
        return np.zeros(n, dtype=np.int64)
    return image_groups(embeddings, centers)


def image_groups(
    embeddings: Float[np.ndarray, "n d2"], centers: Float[np.ndarray, "K d2"]
) -> Int64[np.ndarray, " n"]:
    """The cluster that each image is nearest to, whatever its caption: copies lie in one."""
    width = embeddings.shape[1] // 2
    return _nearest(embeddings[:, :width], centers[:, :width])


def _nearest(
    points: Float[np.ndarray, "n d"], centers: Float[np.ndarray, "K d"]
) -> Int64[np.ndarray, " n"]:
    """The nearest centre of each point, in blocks of rows."""
    starts = range(0, len(points), ROWS_AT_ONCE)
    return np.concatenate(
        [nearest(points[start : start + ROWS_AT_ONCE], centers) for start in starts]
    )


def describe_clusters(
    assignments: Int64[np.ndarray, " n"],
    centers: Float[np.ndarray, "K d2"],
    embeddings: Float[np.ndarray, "n d2"],
    clip_scores: Float[np.ndarray, " n"],
    captions: Sequence[str],
) -> list[dict[str, Any]]:
    """What each cluster is about: size, mean CLIP score, its terms, captions nearest the centre."""
    terms = distinctive_terms(assignments, len(centers), captions)
    distances = _distances(embeddings, centers, assignments)
    order = np.argsort(assignments, kind="stable")
    starts = np.searchsorted(assignments[order], np.arange(1, len(centers)))
    clusters = []
    for k, members in enumerate(np.split(order, starts)):
        nearest = members[np.argsort(distances[members], kind="stable")[:N_NEAREST]]
        clusters.append(
            {
                "cluster": k,
                "size": len(members),
                "mean_clip_score": round(float(clip_scores[members].mean()), 4),
                "terms": terms[k],
                "nearest_captions": [captions[i] for i in nearest],
            }
        )
    return clusters


def _distances(
    embeddings: Float[np.ndarray, "n d2"],
    centers: Float[np.ndarray, "K d2"],
    assignments: Int64[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """The distance of each point to its centre, in blocks of rows."""
    distances = []
    with tqdm(
        total=len(embeddings),
        desc="distances",
        unit="row",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        for start in range(0, len(embeddings), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            apart = embeddings[rows] - centers[assignments[rows]]
            distances.append(np.linalg.norm(apart, axis=1))
            bar.update(len(apart))
    return np.concatenate(distances)


def agreement_bands(clip_scores: Float[np.ndarray, " n"], n_bands: int) -> Int64[np.ndarray, " n"]:
    """Band of each pair, 0 the lowest: equal parts of all pairs by CLIP score, ties by row."""
    ranks = np.empty(len(clip_scores), dtype=np.int64)
    ranks[np.argsort(clip_scores, kind="stable")] = np.arange(len(clip_scores))
    return ranks * n_bands // len(clip_scores)


def band_name(band: int, n_bands: int) -> str:
    """What a person calls a band of agreement."""
    if n_bands == 1:
        return "any agreement"
    names = BAND_NAMES.get(n_bands)
    return f"{names[band]} of agreement" if names else f"agreement {band + 1} of {n_bands}"


def split_into_cells(
    cluster_assignments: Int64[np.ndarray, " n"],
    bands: Int64[np.ndarray, " n"],
    copies: Int64[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Cell of each pair: one per cluster, band, and whether a better copy exists; none is empty."""
    n_bands = int(bands.max(initial=0)) + 1
    keys = (cluster_assignments * n_bands + bands) * 2 + np.minimum(copies, 1)
    cells: np.ndarray = np.unique(keys, return_inverse=True)[1].reshape(-1)
    return cells.astype(np.int64)


def describe_cells(
    cell_assignments: Int64[np.ndarray, " n"],
    cluster_assignments: Int64[np.ndarray, " n"],
    bands: Int64[np.ndarray, " n"],
    n_bands: int,
    copies: Int64[np.ndarray, " n"],
    clip_scores: Float[np.ndarray, " n"],
    captions: Sequence[str],
) -> list[list[dict[str, Any]]]:
    """The cells of every cluster, for people: band, size, and the caption nearest the middle."""
    described: list[list[dict[str, Any]]] = [
        [] for _ in range(int(cluster_assignments.max(initial=-1)) + 1)
    ]
    order = np.argsort(cell_assignments, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(cell_assignments[order])) + 1):
        first, scores = int(members[0]), clip_scores[members]
        middle = int(members[np.argsort(scores, kind="stable")[len(members) // 2]])
        described[cluster_assignments[first]].append(
            {
                "cell": int(cell_assignments[first]),
                "band": band_name(int(bands[first]), n_bands),
                "near_copies": bool(copies[first]),
                "size": len(members),
                "mean_clip_score": round(float(scores.mean()), 4),
                "example": captions[middle],
            }
        )
    return described


def training_pairs(
    embedding: EmbeddingResult, clustered: ClusterAssignment, device: torch.device
) -> TrainingPairs:
    """What stage 1 knows of every training pair, with all held-out pairs to say what helps.

    The trained models take features in that are scaled once, by all training pairs.
    """
    e, c, table = embedding, clustered, embedding.split_pairs("train")
    scaling = fit_feature_scaling(e.image_features, e.text_features)
    tensors = scaling.stored(e.image_features, e.text_features, device)
    validation = scaling.pairs(e.validation_image_features, e.validation_text_features, device)
    captions = table["caption"].tolist()
    memberships = caption_groups(captions)
    held_out = nearest_clusters(tensors, c.cluster_assignments, validation)
    return TrainingPairs(
        indices=e.indices,
        tensors=tensors,
        scaling=scaling,
        image_embeddings=e.image_embeddings,
        text_embeddings=e.text_embeddings,
        concatenated_embeddings=e.concatenated_embeddings,
        clip_scores=e.clip_scores,
        image_ids=pd.factorize(table["image_sha256"])[0].astype(np.int64),
        captions=captions,
        groups={name: member for groups in memberships.values() for name, member in groups.items()},
        cluster_assignments=c.cluster_assignments,
        cell_assignments=c.cell_assignments,
        better_copies=c.better_copies,
        clusters=c.clusters,
        validation=validation,
        validation_image_embeddings=e.validation_image_embeddings,
        represented=representation(c.cluster_assignments, held_out),
        image_groups=c.image_groups,
        validation_groups=caption_groups(e.split_pairs("validation")["caption"].tolist()),
    )

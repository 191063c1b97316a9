"""Selectors that go by clusters: equal shares, near copies, hard pairs, kinds of captions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int64
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from learner.kmeans import SAMPLED_ABOVE, sampled_kmeans
from rivals.ranking import highest

N_SIMILARITIES = 2**22  # in one block; 16 MiB
N_NEAREST_CENTERS = 20  # Abbas et al. (2024)
COMPLEXITY_TEMPERATURE = 0.1  # Abbas et al. (2024)
ALPHA = 0.5  # between equal shares of all clusters (0) and the data as they are (1)


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


def similarity_to_harder(
    image_embeddings: Float[np.ndarray, "n d"], cluster_assignments: Int64[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Highest image cosine with an earlier pair of the same cluster: SemDeDup, Abbas et al. (2023).

        M_i = max_{j before i in the cluster of i} <f_i, f_j>        arXiv 2303.09540

    The pairs of a cluster stand in rising order of their cosine with its centroid, the hardest
    first. SemDeDup drops i where M_i > 1 - epsilon, so that of a group of duplicates the one
    farthest from the centroid stays. The paper solves epsilon on a tenth of the clusters for the
    share wanted; with all of M at hand its exact quantile over all clusters meets the size, which
    is to say that the pairs of lowest M are kept. Clusters are the run's, of image and text, where
    the paper clusters images alone. O(sum of squared cluster sizes) time, in blocks of rows.

    Returns:
        (n,) -inf for the hardest pair of each cluster.
    """
    similarity = np.full(len(image_embeddings), -np.inf, dtype=np.float32)
    for members, _, cosines in image_clusters(image_embeddings, cluster_assignments):
        order = members[np.argsort(cosines, kind="stable")]
        points = np.ascontiguousarray(image_embeddings[order], dtype=np.float32)
        step = max(1, N_SIMILARITIES // len(order))
        for start in range(0, len(order), step):
            block = points[start : start + step] @ points[: start + step].T
            block[:, start:][np.triu_indices(len(block))] = -np.inf  # itself and those after it
            similarity[order[start : start + step]] = block.max(axis=1)
    return similarity


def density_pruning(
    image_embeddings: Float[np.ndarray, "n d"],
    cluster_assignments: Int64[np.ndarray, " n"],
    size: int,
) -> Int64[np.ndarray, " m"]:
    """Rows of the hardest pairs of every cluster, more of complex ones: Abbas et al. (2024).

        C_k = d_inter,k * d_intra,k,    p_k = exp(C_k / tau) / sum_j exp(C_j / tau)
        minimise  sum_k (x_k - p_k * size)^2    subject to  sum_k x_k = size,  1 <= x_k <= n_k

    (arXiv 2401.04578): d_intra,k is the mean cosine distance of the cluster's images to
    their centroid, d_inter,k that of its centroid to the `N_NEAREST_CENTERS` nearest others. Of
    cluster k the x_k images of lowest cosine with the centroid are kept. The quadratic programme
    is solved exactly and rounded by largest remainders. Taken is the density-based step alone:
    the paper removes duplicates and low CLIP scores before it, which here are rivals of their own
    (`semdedup`, `clip_score_filtering`). Clusters are the run's, of image and text.
    """
    clusters = list(image_clusters(image_embeddings, cluster_assignments))
    centers = np.stack([center for _, center, _ in clusters])
    intra = np.array([1 - cosines.mean(dtype=np.float64) for _, _, cosines in clusters])
    targets = size * softmax(center_distances(centers) * intra / COMPLEXITY_TEMPERATURE)
    counts = capped_shares(targets, np.array([len(members) for members, _, _ in clusters]), size)
    kept = [
        members[np.argsort(cosines, kind="stable")[:count]]
        for (members, _, cosines), count in zip(clusters, counts, strict=True)
    ]
    rows: np.ndarray = np.concatenate(kept).astype(np.int64)
    return rows


def image_clusters(
    image_embeddings: Float[np.ndarray, "n d"], cluster_assignments: Int64[np.ndarray, " n"]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of every cluster: its rows, its images' centroid at unit length, their cosines with it."""
    order = np.argsort(cluster_assignments, kind="stable")
    starts = np.flatnonzero(np.diff(cluster_assignments[order])) + 1
    for members in np.split(order, starts):
        images = image_embeddings[members]
        center = images.mean(axis=0)
        center = center / max(float(np.linalg.norm(center)), np.finfo(np.float32).tiny)
        yield members, center, images @ center


def center_distances(centers: Float[np.ndarray, "K d"]) -> Float[np.ndarray, " K"]:
    """Mean cosine distance of every unit centroid to the `N_NEAREST_CENTERS` nearest others."""
    n_nearest = min(N_NEAREST_CENTERS, len(centers) - 1)
    if n_nearest == 0:
        return np.zeros(1)
    distances = 1 - centers.astype(np.float64) @ centers.T
    np.fill_diagonal(distances, np.inf)
    mean: np.ndarray = np.partition(distances, n_nearest - 1)[:, :n_nearest].mean(axis=1)
    return mean


def capped_shares(
    targets: Float[np.ndarray, " K"], caps: Int64[np.ndarray, " K"], size: int
) -> Int64[np.ndarray, " K"]:
    """Whole numbers of sum `size` nearest to the targets, at least one and at most the cap each.

    The quadratic programme's solution is x_k = clip(t_k - mu, 1, cap_k), with mu the root of
    sum_k x_k = size; it is rounded by largest remainders. Where `size` has not one for each, the
    lower bound is zero.
    """
    lowest = 1 if size >= len(caps) else 0

    def shares(mu: float) -> np.ndarray:
        return np.clip(targets - mu, lowest, caps)

    # At the lower end all are at their caps, at the upper end all at the lower bound.
    low, high = float((targets - caps).min()) - 1, float(targets.max()) + 1
    exact = shares(brentq(lambda mu: float(shares(mu).sum()) - size, low, high, xtol=1e-12))
    whole = np.floor(exact + 1e-9).astype(np.int64)  # 1e-9: the root's own error
    largest = np.argsort(whole - exact, kind="stable")[: size - whole.sum()]
    whole[largest] += 1
    return whole


def text_clusters(
    text_embeddings: Float[np.ndarray, "n d"], *, n_clusters: int, rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """Clusters of the captions alone by k-means, at most `n_clusters` of them."""
    if len(text_embeddings) > SAMPLED_ABOVE:
        return sampled_kmeans(text_embeddings, n_clusters, rng).labels
    kmeans = KMeans(n_clusters, n_init=1, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():  # fewer distinct captions than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels: np.ndarray = kmeans.fit_predict(text_embeddings).astype(np.int64)
    return labels


def alpha_sampling(
    cluster_assignments: Int64[np.ndarray, " n"], size: int, *, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Rows drawn without replacement, frequent clusters less often than their share.

        P(next row is i of cluster k) ~ f_k^ALPHA / n_k ~ n_k^(ALPHA - 1)

    with f_k = n_k / n: a cluster is drawn in proportion to f_k^ALPHA, a pair in it uniformly, as
    Lample & Conneau (2019, arXiv 1901.07291, section 3.1) draw languages; the text-based sampling
    of DataComp (Gadre et al. 2023, arXiv 2304.14108) does so by the words of captions, which are
    k-means clusters of text embeddings here. One draw after another among the pairs left, by the
    `size` highest of log weight + Gumbel noise (Efraimidis & Spirakis 2006). No pair is drawn
    twice, so the larger `size`, the nearer the shares come to those of the data. This is the
    control that only reweights topics and looks at no pair.
    """
    sizes = np.bincount(cluster_assignments)
    log_weights = (ALPHA - 1) * np.log(sizes[cluster_assignments])
    return highest(log_weights + rng.gumbel(size=len(cluster_assignments)), size)

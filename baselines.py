"""The rival selectors, each returning a curated subset of the same size, with equal weights.

random                  uniform
clip_score_filtering    highest image-text agreement (Hessel et al. 2021; Schuhmann et al. 2022)
diversity_sampling      equal shares of every k-means cluster (Vo et al. 2024, arXiv 2405.15613)
coreset_selection       k-centre greedy (Sener & Savarese 2018, arXiv 1708.00489)
individual_influence    highest DataInf influence of every pair's own loss (Kwon et al. 2024)
semdedup                fewest near-copies of images (Abbas et al. 2023, arXiv 2303.09540)
density_pruning         hardest pairs of complex clusters (Abbas et al. 2024, arXiv 2401.04578)
neg_clip_loss           highest agreement less that with others (Wang et al. 2024, arXiv 2405.19547)
neg_clip_loss_normsim   that and likeness to a held-out image, NormSim of the same paper
text_alpha_sampling     frequent kinds of captions less often (Gadre et al. 2023, arXiv 2304.14108)
gradient_similarity     highest influence with the identity for a Hessian (Charpiat et al. 2019)
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from artifacts.provenance import (
    CLUSTERING,
    CURATION,
    INFLUENCE,
    KEEP_CURVE,
    PAIR_INFLUENCE,
    TRUST,
)
from attribution.agreement import (
    ALL_NORMALISED,
    FEWEST_NORMALISATIONS,
    FIT_BATCH,
    N_NORMALISATIONS,
    NORMALISATION_BATCH,
    normalised_agreement,
)
from attribution.derivatives import batch_loss_influences, loss_gradient, own_loss_influences
from attribution.inverse import datainf_direction
from attribution.scores import standardised
from curation import curated_size
from learner.kmeans import SAMPLED_ABOVE, sampled_kmeans
from learner.model import Parameters, shuffled_batches, whole_batches
from learner.pairs import PairTensors, TrainingPairs, blocks_of_pairs

logger = logging.getLogger(__name__)
FULL, INFLUENCESPACE = "full", "influencespace"
N_SIMILARITIES = 2**22  # in one block; 16 MiB
N_NEAREST_CENTERS = 20  # Abbas et al. (2024)
COMPLEXITY_TEMPERATURE = 0.1  # Abbas et al. (2024)
FIRST_CUT_POWER = 0.75  # of the share kept: 30 % where 20 % are kept in the end; Wang et al. (2024)
ALPHA = 0.5  # between equal shares of all clusters (0) and the data as they are (1)
FIT_SCALES = 48  # temperatures that agreement is fitted with


@dataclass(frozen=True)
class Selection:
    """The m pairs that a selector keeps."""

    indices: Int64[np.ndarray, " m"]  # sorted positions in the source
    rows: Int64[np.ndarray, " m"]  # the same pairs as rows of the training arrays


class Reference(NamedTuple):
    """The reference model of stage 2, and the size of the batches that it was trained in."""

    parameters: Parameters
    batch_size: int


class Counts(NamedTuple):
    """What the cost of choosing a subset is counted from."""

    pairs: int
    kept: int
    held_out: int
    clusters: int


Selector = Callable[[TrainingPairs, int, "Reference | None", np.random.Generator], np.ndarray]


class Method(NamedTuple):
    """A way to choose training pairs: all that the rest of the project knows of it.

    Attributes:
        label: its name for readers.
        colour: in figures, told apart by colour-blind readers.
        marker: in figures; no two methods have the same.
        select: the rows that a rival keeps, any order; None of what stage 3 or nobody chooses.
        needs: stages that it is chosen by, beside the embedding.
        pays_for: stages whose time counts as choosing its subset, beside its own.
        cosines: how many embeddings it compares, for the expected time.
        steps_a_batch: what it computes, in training steps for each batch of the training pairs.
    """

    label: str
    colour: str
    marker: str
    select: Selector | None = None
    needs: tuple[str, ...] = ()
    pays_for: tuple[str, ...] = ()
    cosines: Callable[[Counts], float] = lambda _: 0.0
    steps_a_batch: float = 0.0


# Every method, in the order of tables; a rival is added here and nowhere else.
METHODS: dict[str, Method] = {
    FULL: Method("Full data", "#4D4D4D", "s"),
    INFLUENCESPACE: Method(
        *("InfluenceSpace", "#0072B2", "o"),
        pays_for=tuple(
            stage.name
            for stage in (CLUSTERING, TRUST, INFLUENCE, PAIR_INFLUENCE, KEEP_CURVE, CURATION)
        ),
    ),
    "random": Method(
        *("Random", "#999999", "X"),
        select=lambda pairs, size, _, rng: rng.permutation(len(pairs.indices))[:size],
    ),
    "clip_score_filtering": Method(
        *("CLIP score", "#E69F00", "D"),
        select=lambda pairs, size, _, __: highest(pairs.clip_scores, size),
    ),
    "diversity_sampling": Method(
        *("Diversity", "#009E73", "^"),
        select=lambda pairs, size, _, rng: equal_shares(pairs.cluster_assignments, size, rng=rng),
        needs=(CLUSTERING.name,),
        pays_for=(CLUSTERING.name,),
    ),
    "coreset_selection": Method(
        *("Coreset (k-centre)", "#CC79A7", "v"),
        select=lambda pairs, size, _, rng: k_center_greedy(
            pairs.concatenated_embeddings, size, rng=rng
        ),
        cosines=lambda c: 3.0 * c.pairs * c.kept,  # a product with one vector uses no cache
    ),
    "individual_influence": Method(
        *("Per-pair influence (DataInf)", "#56B4E9", "P"),
        select=lambda pairs, size, reference, rng: highest(
            individual_influence(pairs, reference, rng=rng), size
        ),
        needs=(INFLUENCE.name,),
        steps_a_batch=5.0,
    ),
    "semdedup": Method(
        *("SemDeDup", "#661100", "<"),
        select=lambda pairs, size, _, __: highest(
            -similarity_to_harder(pairs.image_embeddings, pairs.cluster_assignments), size
        ),
        needs=(CLUSTERING.name,),
        pays_for=(CLUSTERING.name,),
        cosines=lambda c: c.pairs**2 / c.clusters,
    ),
    "density_pruning": Method(
        *("Density-based pruning", "#DDCC77", ">"),
        select=lambda pairs, size, _, __: density_pruning(
            pairs.image_embeddings, pairs.cluster_assignments, size
        ),
        needs=(CLUSTERING.name,),
        pays_for=(CLUSTERING.name,),
    ),
    "neg_clip_loss": Method(
        *("negCLIPLoss", "#8C510A", "p"),
        select=lambda pairs, size, _, rng: highest(neg_clip_loss(pairs, rng=rng), size),
        cosines=lambda c: agreement_cosines(c.pairs),
    ),
    "neg_clip_loss_normsim": Method(
        *("negCLIPLoss + NormSim", "#999933", "h"),
        select=lambda pairs, size, _, rng: highest(neg_clip_loss_normsim(pairs, rng=rng), size),
        cosines=lambda c: agreement_cosines(c.pairs) + c.pairs * c.held_out,
    ),
    "text_alpha_sampling": Method(
        *("Text sampling (α = 0.5)", "#000000", "*"),
        select=lambda pairs, size, _, rng: alpha_sampling(
            text_clusters(
                pairs.text_embeddings,
                n_clusters=int(pairs.cluster_assignments.max()) + 1,
                rng=rng,
            ),
            size,
            rng=rng,
        ),
        needs=(CLUSTERING.name,),  # as many clusters of captions
        cosines=lambda c: 60.0 * c.pairs * c.clusters,
    ),
    "gradient_similarity": Method(
        *("Gradient similarity", "#332288", "d"),
        select=lambda pairs, size, reference, rng: highest(
            gradient_similarity(pairs, reference, rng=rng), size
        ),
        needs=(INFLUENCE.name,),
        steps_a_batch=4.0,
    ),
}
BASELINES = tuple(name for name, method in METHODS.items() if method.select is not None)


def select_baseline(
    name: str,
    pairs: TrainingPairs,
    reference: Reference | None,
    target_size_ratio: float,
    rng: np.random.Generator,
) -> Selection:
    """The subset that baseline `name` keeps, as many pairs as InfluenceSpace keeps.

    Args:
        name: one of `BASELINES`.
        pairs: with all held-out pairs, as a rival knows of no trust.
        reference: needed by those that need the stage that trains it.
        target_size_ratio: how many are kept, as a share.
        rng: the method's generator.

    Raises:
        ValueError: a baseline that needs a reference model without one.
    """
    method = METHODS[name]
    if INFLUENCE.name in method.needs and reference is None:
        raise ValueError(f"{name} needs the reference model")
    assert method.select is not None, f"{name} is no baseline"
    size = curated_size(len(pairs.indices), target_size_ratio)
    rows = np.sort(method.select(pairs, size, reference, rng)).astype(np.int64)
    return Selection(pairs.indices[rows], rows)


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


# --- By clusters of images ----------------------------------------------------------------------


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


# --- By agreement of image and text -------------------------------------------------------------


def neg_clip_loss(pairs: TrainingPairs, *, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    """Agreement of image and text less that with other pairs: Wang et al. (2024)."""
    device = pairs.tensors.device
    return normalised_agreement(pairs.image_embeddings, pairs.text_embeddings, device, rng=rng).own


def agreement_cosines(n: int) -> int:
    """How many embeddings `normalised_agreement` of n pairs compares; of many, at least."""
    n_shuffles = N_NORMALISATIONS if n > NORMALISATION_BATCH else 1
    if n > ALL_NORMALISED:
        n_shuffles = FEWEST_NORMALISATIONS
    fitting = FIT_SCALES * min(n, FIT_BATCH) ** 2
    return fitting + n_shuffles * n * min(n, NORMALISATION_BATCH)


# --- By agreement, and by likeness to the target ------------------------------------------------


def neg_clip_loss_normsim(
    pairs: TrainingPairs, *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Sum of negCLIPLoss and NormSim, each in standard deviations: Wang et al. (2024).

    The rival that sees the target. The paper intersects two thresholds, which leaves open how
    strict each is where only the size is given; in the sum neither counts more. The two-stage form
    (the share r^(3/4) by negCLIPLoss, of these the share wanted by NormSim, the paper's 30 % then
    20 %) is offered by the benchmark of regimes as `neg_clip_loss_then_normsim`.
    """
    parts = standardised(neg_clip_loss(pairs, rng=rng)), standardised(norm_sim(pairs))
    return np.asarray(parts[0] + parts[1])


def neg_clip_loss_then_normsim(
    pairs: TrainingPairs, size: int, *, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Rows of the highest NormSim among those of the highest negCLIPLoss: Wang et al. (2024).

    Where the share r is kept in the end, negCLIPLoss leaves r^(3/4): the paper's 30 % of all
    pairs where 20 % are kept.
    """
    n = len(pairs.clip_scores)
    n_left = max(size, round(n * (size / n) ** FIRST_CUT_POWER))
    left = np.sort(highest(neg_clip_loss(pairs, rng=rng), n_left))
    rows: np.ndarray = left[highest(norm_sim(pairs)[left], size)]
    return rows


def norm_sim(pairs: TrainingPairs) -> Float[np.ndarray, " n"]:
    """Highest cosine of every image with a held-out one, in the encoder's joint space.

        NormSim_inf(x) = max_t <f(t), f(x)>        arXiv 2405.19547

    over all held-out images t; their captions play no role. Where a run was saved without their
    joint embeddings, the cosines are those of the scaled features that the models take in.
    """
    if pairs.validation_image_embeddings is not None:
        return highest_cosine(pairs.image_embeddings, pairs.validation_image_embeddings)
    logger.info(
        "NormSim: no joint embeddings of the held-out images are saved; the cosines are those of "
        "the image features"
    )
    targets = _unit_images(pairs.validation)
    blocks = blocks_of_pairs(pairs.tensors)
    return np.concatenate([highest_cosine(_unit_images(block), targets) for _, block in blocks])


def _unit_images(pairs: PairTensors) -> Float[np.ndarray, "m d"]:
    unit: np.ndarray = torch.nn.functional.normalize(pairs.images, dim=1).cpu().numpy()
    return unit


def highest_cosine(
    images: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "V d"]
) -> Float[np.ndarray, " n"]:
    """Of each unit row with any of the targets, in blocks of rows."""
    step = max(1, N_SIMILARITIES // len(targets))
    blocks = [
        (images[start : start + step] @ targets.T).max(axis=1)
        for start in range(0, len(images), step)
    ]
    return np.concatenate(blocks)


# --- By kinds of captions -----------------------------------------------------------------------


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


# --- By influence -------------------------------------------------------------------------------


def individual_influence(
    pairs: TrainingPairs, reference: Reference | None, *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """DataInf influence of every pair, positive where leaving it out raises the validation loss.

    Per-pair influence as libraries compute it: the gradient of the pair's own loss in a fixed
    batch.
    """
    assert reference is not None, "select_baseline sees to it"
    model = reference.parameters
    n = len(pairs.clip_scores)
    batches = whole_batches(n, reference.batch_size, rng)
    validation_batches = shuffled_batches(len(pairs.validation.images), batches.shape[1], rng)
    gradient = loss_gradient(model, pairs.validation, validation_batches)
    direction = datainf_direction(model, pairs.tensors, gradient, batches)
    return own_loss_influences(model, pairs.tensors, direction, batches)


def gradient_similarity(
    pairs: TrainingPairs, reference: Reference | None, *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Influence of every pair with the identity in place of the inverse Hessian.

        u_i = n * g_val . d2L / dtheta dw_i        Charpiat et al. (2019)

    Charpiat et al. (arXiv 2102.05262) compare gradients of single examples' losses; here the
    pair's part is the mixed derivative, in which it acts as positive and as negative, so that
    beside `first_order` influence only the inverse Hessian is missing. Positive where leaving the
    pair out of one small step of gradient descent raises the validation loss.
    """
    assert reference is not None, "select_baseline sees to it"
    model = reference.parameters
    n = len(pairs.clip_scores)
    b = min(reference.batch_size, n)
    validation_batches = shuffled_batches(len(pairs.validation.images), b, rng)
    direction = loss_gradient(model, pairs.validation, validation_batches)
    return batch_loss_influences(
        model,
        pairs.tensors,
        direction,
        np.arange(n),
        np.ones(n),
        batch_size=reference.batch_size,
        rng=rng,
    )

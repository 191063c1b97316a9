"""How much each cluster of training pairs helps or hurts the validation loss.

Influence functions (Koh & Liang 2017, arXiv 1703.04730) of a contrastive loss in which a pair
acts as a positive and as a negative, so that a pair's influence is a mixed derivative of the
weighted loss and not the gradient of the pair's own loss:

    v   = (H + damping I)^-1 grad L_val
    u_i = n * v . d2L / dtheta dw_i          leaving pair i out changes L_val by u_i / n
    I_k = (|C_k| / n) * mean_i(u_i) / L_val  predicted relative change without cluster k

**Sign: positive means helpful, leaving it out raises the validation loss.** H is the
Gauss-Newton matrix plus weight decay. Its inverse: a low-rank Lanczos factor, conjugate gradients,
DataInf (Kwon et al. 2024, arXiv 2310.00902), or a multiple of the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.func import grad

from curvature import HESSIANS, Objective, inverse_product, jvp, loss_gradient, unflatten
from model import (
    PairTensors,
    Parameters,
    TrainingConfig,
    batch_blocks,
    contrastive_loss,
    pair_losses,
    shuffled_batches,
    similarities,
    steps_per_epoch,
    train,
)
from settings import InputError, Settings, setting

REFERENCE_REPORTS = 40  # early stopping looks at the validation loss this often
N_SHUFFLES = 8  # batch compositions that a pair's influence is averaged over
MIN_BASE_WEIGHT = 1e-2  # a dropped pair's influence is taken at this weight: log w needs w > 0


@dataclass(frozen=True)
class InfluenceConfig(Settings):
    """How influence is estimated."""

    rank: int = setting(10, "rank of the low-rank Hessian approximation", at_least=1)
    samples_per_cluster: int = setting(
        5, "pairs of each cluster whose influence is evaluated", at_least=1
    )
    hessian: str = setting("lanczos", "how the inverse Hessian is approximated", choices=HESSIANS)
    damping: float | None = setting(
        None,
        "added to the Hessian's eigenvalues; by default the mean of the leading ones",
        above=0,
        type=float,
    )
    influence_budget: float = setting(
        0.1, "most pairs evaluated, as a share of the training pairs", above=0, at_most=1
    )
    rounds: int = setting(
        1, "curation rounds: train on the curated set, re-estimate, curate again", at_least=1
    )


@dataclass(frozen=True)
class InfluenceResult:
    """Influence of K clusters over n training pairs, and the reference model it belongs to."""

    influence_scores: Float[np.ndarray, " K"]
    influence_stderr: Float[np.ndarray, " K"]
    pair_influence: Float[np.ndarray, " n"]
    pair_influence_evaluated: Bool[np.ndarray, " n"]
    eigenvalues: Float[np.ndarray, " r"]
    eigenvalue_residuals: Float[np.ndarray, " r"]
    reference_image_map: Float32[np.ndarray, "d_i e"]
    reference_text_map: Float32[np.ndarray, "d_t e"]
    reference_log_scale: Float32[np.ndarray, ""]
    hessian: str
    damping: float
    validation_loss: float
    reference_steps: int
    clusters: list[dict[str, Any]] = field(metadata={"file": "influence_scores.json"})

    def quality(self) -> dict[str, Any]:
        """How the estimate was made, and what is known of its quality."""
        return {
            "hessian": self.hessian,
            "damping": self.damping,
            "validation_loss": self.validation_loss,
            "reference_steps": self.reference_steps,
            "eigenvalues": self.eigenvalues.tolist(),
            "eigenvalue_residuals": self.eigenvalue_residuals.tolist(),
            "n_evaluated": int(self.pair_influence_evaluated.sum()),
        }

    def reference(self, device: torch.device) -> Parameters:
        """The reference model's parameters."""
        arrays = (self.reference_image_map, self.reference_text_map, self.reference_log_scale)
        return Parameters(*(torch.from_numpy(a.copy()).to(device) for a in arrays))


def estimate_influence(
    pairs: PairTensors,
    validation: PairTensors,
    cluster_assignments: Int64[np.ndarray, " n"],
    cluster_terms: Sequence[Sequence[str]],
    config: InfluenceConfig,
    training: TrainingConfig,
    *,
    rng: np.random.Generator,
    sample_weights: np.ndarray | None = None,
) -> InfluenceResult:
    """Train the reference model, then score every cluster from a few of its pairs.

    Args:
        pairs: n training pairs, scaled features.
        validation: held-out pairs, scaled features.
        cluster_assignments: cluster of each training pair; every cluster has a pair.
        cluster_terms: K lists of words, for the readable result.
        config: settings of the estimate.
        training: settings of the reference model, and the batch size of the objective.
        rng: the stage's generator.
        sample_weights: (n,) weights of an earlier round's curated set, 0 where dropped; the
            reference model is trained on it and influence is taken at it.

    Raises:
        InputError: the budget does not reach one pair per cluster.
    """
    n = len(cluster_assignments)
    evaluated = sample_pairs(
        cluster_assignments, config.samples_per_cluster, config.influence_budget, rng=rng
    )
    weights = np.ones(n) if sample_weights is None else sample_weights
    kept = np.flatnonzero(weights > 0)
    validation_batches = shuffled_batches(len(validation.images), training.batch_size, rng)
    # Early stopping: a model that has memorised its pairs, wrong ones too, has no gradient left
    # to tell them apart by.
    reference, history = train(
        pairs.take(torch.from_numpy(kept).to(pairs.images.device)),
        training,
        n_steps=training.num_epochs * steps_per_epoch(len(kept), training.batch_size),
        seed=int(rng.integers(2**31)),
        sample_weights=None if sample_weights is None else weights[kept],
        validation=(validation, validation_batches),
        n_reports=REFERENCE_REPORTS,
        keep_best=True,
    )
    objective = Objective(
        pairs, reference, kept, weights, training.batch_size, training.weight_decay, rng=rng
    )
    gradient = loss_gradient(reference, validation, validation_batches)
    curvature = inverse_product(
        objective,
        gradient,
        config.hessian,
        rank=config.rank,
        damping=config.damping,
        rng=rng,
    )
    validation_loss = min(history.validation_loss)

    base_weights = representation_weights(cluster_assignments, evaluated) * np.maximum(
        weights[evaluated], MIN_BASE_WEIGHT
    )
    influence = pair_influences(
        reference,
        pairs,
        curvature.direction,
        evaluated,
        base_weights,
        batch_size=training.batch_size,
        rng=rng,
    )
    scores, stderr, means = cluster_scores(
        influence / validation_loss,
        cluster_assignments[evaluated],
        np.bincount(cluster_assignments),
    )
    pair_influence = means[cluster_assignments] * validation_loss
    pair_influence[evaluated] = influence
    is_evaluated = np.zeros(n, dtype=bool)
    is_evaluated[evaluated] = True
    return InfluenceResult(
        influence_scores=scores,
        influence_stderr=stderr,
        pair_influence=pair_influence,
        pair_influence_evaluated=is_evaluated,
        eigenvalues=curvature.eigenvalues,
        eigenvalue_residuals=curvature.residuals,
        reference_image_map=reference.image_map.cpu().numpy(),
        reference_text_map=reference.text_map.cpu().numpy(),
        reference_log_scale=reference.log_scale.cpu().numpy(),
        hessian=config.hessian,
        damping=curvature.damping,
        validation_loss=validation_loss,
        reference_steps=history.step[int(np.argmin(history.validation_loss))],
        clusters=_readable_scores(scores, stderr, cluster_assignments, is_evaluated, cluster_terms),
    )


def _readable_scores(
    scores: np.ndarray,
    stderr: np.ndarray,
    assignments: np.ndarray,
    is_evaluated: np.ndarray,
    terms: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """One entry a cluster, most harmful first; influence in percent of the validation loss."""
    sizes = np.bincount(assignments)
    n_evaluated = np.bincount(assignments, weights=is_evaluated, minlength=len(sizes))
    return [
        {
            "cluster": int(k),
            "terms": list(terms[k]),
            "size": int(sizes[k]),
            "pairs_evaluated": int(n_evaluated[k]),
            "influence_percent": round(100 * float(scores[k]), 5),
            "stderr_percent": round(100 * float(stderr[k]), 5),
            "meaning": "leaving it out "
            + ("raises" if scores[k] > 0 else "lowers")
            + f" the validation loss by {abs(100 * scores[k]):.3f} % "
            + f"(+/- {100 * stderr[k]:.3f})",
        }
        for k in np.argsort(scores, kind="stable")
    ]


# --- Which pairs are evaluated, and what they stand for --------------------------------------


def sample_pairs(
    cluster_assignments: Int64[np.ndarray, " n"],
    samples_per_cluster: int,
    budget: float,
    *,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " m"]:
    """Sorted indices of the pairs to evaluate: `samples_per_cluster` of each cluster, at random.

    Where that exceeds `budget` times n, every cluster gives equally many fewer, but at least one.

    Raises:
        InputError: the budget is smaller than one pair per cluster.
    """
    n, sizes = len(cluster_assignments), np.bincount(cluster_assignments)
    allowed = int(budget * n + 1e-9)
    if allowed < len(sizes):
        raise InputError(
            f"--influence_budget {budget:g} of {n} training pairs allows {allowed} influences, "
            f"fewer than one for each of {len(sizes)} clusters; raise it or lower --n_clusters"
        )
    per_cluster = samples_per_cluster
    while np.minimum(sizes, per_cluster).sum() > allowed:
        per_cluster -= 1
    order = rng.permutation(n)
    order = order[np.argsort(cluster_assignments[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    rank_in_cluster = np.arange(n) - starts[cluster_assignments[order]]
    return np.sort(order[rank_in_cluster < per_cluster])


def representation_weights(
    cluster_assignments: Int64[np.ndarray, " n"], evaluated: Int64[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """How many pairs of its cluster each evaluated pair stands for, scaled to mean one."""
    sizes = np.bincount(cluster_assignments)
    counts = np.bincount(cluster_assignments[evaluated], minlength=len(sizes))
    weights = (sizes / np.maximum(counts, 1))[cluster_assignments[evaluated]]
    return np.asarray(weights / weights.mean(), dtype=np.float64)


def cluster_scores(
    relative_influence: Float[np.ndarray, " m"],
    clusters: Int64[np.ndarray, " m"],
    sizes: Int64[np.ndarray, " K"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Scores, standard errors and mean pair influences of all clusters from their sampled pairs.

    The variance within a cluster is shrunk towards the one pooled over clusters, which counts as
    much as four further pairs; a cluster evaluated whole has no sampling error.

    Args:
        relative_influence: u_i / L_val of the evaluated pairs.
        clusters: the cluster of each evaluated pair; every cluster has one.
        sizes: pairs of each cluster in the training set.
    """
    prior_pairs = 4.0
    counts = np.bincount(clusters, minlength=len(sizes))
    means = np.bincount(clusters, relative_influence, minlength=len(sizes)) / counts
    squares = (relative_influence - means[clusters]) ** 2
    within = np.bincount(clusters, squares, minlength=len(sizes))
    freedom = counts - 1
    if freedom.sum() > 0:
        pooled = within.sum() / freedom.sum()
    else:  # one pair a cluster: the spread over clusters bounds the one within them
        pooled = relative_influence.var(ddof=1) if len(relative_influence) > 1 else 0.0
    variance = (within + prior_pairs * pooled) / (freedom + prior_pairs)
    unseen = 1 - counts / sizes
    share = sizes / sizes.sum()
    return share * means, share * np.sqrt(variance / counts * unseen), means


# --- The one-pass sweep ----------------------------------------------------------------------


def pair_influences(
    parameters: Parameters,
    pairs: PairTensors,
    direction: Tensor,
    index: Int64[np.ndarray, " m"],
    base_weights: Float[np.ndarray, " m"],
    *,
    batch_size: int,
    rng: np.random.Generator,
    n_shuffles: int = N_SHUFFLES,
) -> Float[np.ndarray, " m"]:
    """u_i of the pairs at `index`, nats, by one forward and one reverse sweep a batch.

        u_i = W_B * d/dw_i [ v . dL_B/dtheta ](w),    W_B = sum of the weights in i's batch B

    The forward sweep carries the logits and their derivative along v; the reverse sweep takes the
    gradient with respect to the pair weights, so the cost does not depend on the number of
    parameters and no per-pair gradient is stored. In every batch sum_i w_i u_i = 0: scaling all
    weights changes nothing.

    Args:
        parameters: the reference model.
        pairs: training pairs.
        direction: (p,) v = (H + damping)^-1 grad L_val.
        index: the pairs to evaluate; they are each other's negatives.
        base_weights: > 0, the weights at which the derivative is taken; how much of the training
            distribution each evaluated pair stands for.
        batch_size: of the training objective.
        rng: draws the shufflings.
        n_shuffles: batch compositions averaged over.
    """
    device = pairs.images.device
    tangent = unflatten(direction, parameters)
    weights = torch.from_numpy(base_weights.astype(np.float32)).to(device)
    pair_index = torch.from_numpy(index).to(device)
    totals = torch.zeros(len(index), dtype=torch.float64, device=device)
    counts = torch.zeros_like(totals)
    b = min(batch_size, len(index))
    for _ in range(n_shuffles):
        order = rng.permutation(len(index))
        n_batches = -(-len(order) // b)
        batches = np.resize(order, n_batches * b).reshape(n_batches, b)  # the last one wraps round
        for block in batch_blocks(batches, device):
            batch = pairs.take(pair_index[block])
            logits, logits_tangent = jvp(
                lambda p, batch=batch: similarities(p, batch), parameters, tangent
            )

            def slope(
                w: Tensor, logits: Tensor = logits, tangent: Tensor = logits_tangent
            ) -> Tensor:
                derivative: Tensor = jvp(lambda s: contrastive_loss(s, w), logits, tangent)[1]
                return derivative.sum()

            w = weights[block]
            u = w.sum(-1, keepdim=True) * grad(slope)(w)
            totals.index_add_(0, block.reshape(-1), u.reshape(-1).double())
            counts.index_add_(0, block.reshape(-1), torch.ones_like(u).reshape(-1).double())
    return (totals / counts).cpu().numpy()


def own_loss_influences(
    parameters: Parameters, pairs: PairTensors, direction: Tensor, batches: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Classical influence of every pair of fixed batches: v . grad l_i, with l_i its own loss.

    What influence libraries compute; it overlooks the pair's role as a negative. Pairs that no
    batch holds get NaN.
    """
    tangent = unflatten(direction, parameters)
    result = np.full(len(pairs.images), np.nan)
    for block in batch_blocks(batches, pairs.images.device):
        batch = pairs.take(block)
        _, slopes = jvp(
            lambda p, batch=batch: pair_losses(similarities(p, batch)), parameters, tangent
        )
        result[block.cpu().numpy()] = slopes.double().cpu().numpy()
    return result

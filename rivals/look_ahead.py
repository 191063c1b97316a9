"""Weights from a mix of scores that one step of training tells from held-out pairs: M-FLYT."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.func import grad
from tqdm import tqdm

from attribution.agreement import ALL_NORMALISED, MAX_WITNESSES, neighbour_agreement
from attribution.derivatives import jvp
from attribution.scores import standardised
from learner.model import MAX_LOG_SCALE, Parameters, contrastive_loss, similarities
from learner.pairs import PairTensors, TrainingPairs
from rivals.agreement import agreement_cosines, neg_clip_loss, norm_sim
from rivals.clusters import similarity_to_harder
from rivals.given import Reference

LOOK_AHEAD_COST = 40.0  # training steps that one of them takes, measured
N_STEPS = 300  # looks ahead, one batch each
LOOK_AHEAD_BATCH = 256  # pairs, and at most as many held-out pairs
STEP_SIZE = 0.1  # of the step that is looked ahead
LEARNING_RATE = 0.02  # of the mix: Adam
MOST_DEVIATIONS = 3.0  # a score counts no further from its mean


def mixed_scores(
    pairs: TrainingPairs, reference: Reference | None, *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Scores mixed as the held-out loss after one training step wants it: M-FLYT.

        w = softmax(X_B c),  theta' = theta - eta grad L_B(theta; w),  c down grad_c L_val(theta')

    Shechter & Carmon (2025, arXiv 2503.08805): a batch's weights are the softmax of a linear mix
    of scores, act in its contrastive loss, and the mix c follows the gradient of the held-out
    ("downstream") loss after one step of gradient descent on that loss. Here the model is stage
    2's reference model; it takes every step that it has looked ahead and is then thrown away. The
    mix is trained by Adam from equal weights over the scores of `signals`, each in standard
    deviations, where the paper mixes scores of large models. The paper samples a data set with
    repetitions by these weights (soft cap sampling); a subset without them has the pairs of
    highest mix.
    """
    assert reference is not None, "select_baseline sees to it"
    x = signals(pairs, rng)
    device, n, m = pairs.tensors.device, len(x), pairs.validation.n_pairs
    mix = torch.zeros(x.shape[1], device=device)
    optimizer = torch.optim.Adam([mix], lr=LEARNING_RATE)
    model = Parameters(*(p.clone() for p in reference.parameters))
    for _ in tqdm(range(N_STEPS), desc="M-FLYT", unit="step", disable=None, leave=False):
        rows, asked = (
            torch.from_numpy(rng.choice(size, min(size, LOOK_AHEAD_BATCH), replace=False))
            for size in (n, m)
        )
        rows, asked = rows.to(device), asked.to(device)
        of_batch = torch.from_numpy(x[rows.cpu().numpy()]).to(device)
        batch, held_out = pairs.tensors.take(rows), pairs.validation.take(asked)
        mix.grad, model = look_ahead(model, mix, of_batch, batch, held_out, STEP_SIZE)
        optimizer.step()
    return np.asarray(x @ mix.cpu().numpy(), dtype=np.float64)


def look_ahead(
    model: Parameters,
    mix: Float[Tensor, " f"],
    scores: Float[Tensor, "b f"],
    batch: PairTensors,
    held_out: PairTensors,
    step_size: float,
) -> tuple[Float[Tensor, " f"], Parameters]:
    """Gradient of the held-out loss after one step by the mix, and the model after that step.

        d L_val(theta') / dc = -eta d/dc [ v . grad L_B(theta; w(c)) ],  v = grad L_val(theta')

    exact: the forward sweep carries the logits' derivative along v, the reverse sweep takes the
    gradient by the mix, so that no gradient of a gradient of the maps is formed.
    """

    def weights(mix: Tensor) -> Tensor:
        return torch.softmax(scores @ mix, dim=0)

    step = grad(lambda p: contrastive_loss(similarities(p, batch), weights(mix)))(model)
    ahead = Parameters(*(p - step_size * g for p, g in zip(model, step, strict=True)))
    v = grad(lambda p: contrastive_loss(similarities(p, held_out)))(ahead)
    logits, tangent = jvp(lambda p: similarities(p, batch), model, v)

    def slope(mix: Tensor) -> Tensor:
        along: Tensor = jvp(lambda s: contrastive_loss(s, weights(mix)), logits, tangent)[1]
        return along

    by_mix: Tensor = -step_size * grad(slope)(mix)
    return by_mix, ahead._replace(log_scale=ahead.log_scale.clamp(max=MAX_LOG_SCALE))


def signals(pairs: TrainingPairs, rng: np.random.Generator) -> Float32[np.ndarray, "n f"]:
    """The scores that are mixed, cheap on embeddings, each in standard deviations from its mean.

    CLIP score, negCLIPLoss, NormSim, likeness to a harder pair's image of the cluster (SemDeDup's),
    and whether the caption is like those of the most similar images.
    """
    images, texts = pairs.image_embeddings, pairs.text_embeddings
    copies = similarity_to_harder(images, pairs.cluster_assignments).astype(np.float64)
    finite = np.isfinite(copies)
    copies[~finite] = copies[finite].min() if finite.any() else 0.0
    everyone = np.ones(len(images), dtype=bool)
    scores = (
        pairs.clip_scores,
        neg_clip_loss(pairs, rng=rng),
        norm_sim(pairs),
        copies,
        neighbour_agreement(images, texts, everyone, rng=rng, groups=pairs.image_groups),
    )
    standard = [np.clip(standardised(s), -MOST_DEVIATIONS, MOST_DEVIATIONS) for s in scores]
    return np.stack(standard, axis=1).astype(np.float32)


def signal_cosines(n: int, n_held_out: int, n_clusters: int) -> float:
    """How many embeddings `signals` of n pairs compares, about."""
    n_witnesses = min(n, MAX_WITNESSES) if n <= ALL_NORMALISED else n**0.5
    return agreement_cosines(n) + n * (n_held_out + n / n_clusters + n_witnesses)

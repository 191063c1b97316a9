"""Selectors that go by the influence of single pairs on a reference model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from attribution.derivatives import batch_loss_influences, loss_gradient, own_loss_influences
from attribution.inverse import datainf_direction
from learner.model import shuffled_batches, whole_batches
from learner.pairs import TrainingPairs
from rivals.given import Reference


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

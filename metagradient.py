"""The derivative of the final validation loss with respect to every pair's weight in training.

The chain rule back through a whole training run, one reverse sweep for all pairs (Engstrom et al.
2025, arXiv 2503.13751, replay from checkpoints). Up to rounding this is no approximation: it is
what an infinitesimal change of a pair's weight does to this very run, its batches, its optimiser
and its early end included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from model import (
    MAX_LOG_SCALE,
    PairTensors,
    Parameters,
    contrastive_loss,
    projected_similarities,
)
from training import ADAM_BETAS, ADAM_EPSILON, Training, TrainingState, one_cpu_thread

STATES_AT_ONCE = 32  # states of the run that are held for each level of replaying


def pair_weight_gradient(
    run: Training,
    n_steps: int,
    loss_gradient: Callable[[Parameters], Parameters],
    *,
    checkpoints: Collection[int] = (),
) -> Float[np.ndarray, " n"]:
    """dL_val / dw_i at the weights of the run, nats; in every batch sum_i w_i dL/dw_i = 0.

    With s_t the state (parameters and both of Adam's moments) after t steps:

        a_T = dL_val / ds_T,   a_t = a_{t+1} . ds_{t+1} / ds_t
        dL_val / dw = sum_t a_{t+1} . ds_{t+1} / dw

    Each step back costs one Hessian-vector product of its batch. The run is replayed from
    checkpoints, so that 32 states a level of replaying are alive, whatever its length: about five
    to eight times the time of the run itself. Pairs whose weight is zero get the derivative at
    zero: what adding them would do.

    Args:
        run: a training run, which is stepped to `n_steps` and left there.
        n_steps: after how many of its steps the validation loss is taken, at least 1.
        loss_gradient: gradient of the validation loss with respect to the parameters.
        checkpoints: L_val is the mean of the validation losses after these steps, none later than
            `n_steps`; by default the loss after `n_steps` alone. The mean depends less on which
            batches came last.
    """
    if run.weights is None:
        run.weights = torch.ones(len(run.pairs.images), device=run.pairs.images.device)
    totals = torch.zeros(len(run.weights), dtype=torch.float64, device=run.weights.device)
    with (
        one_cpu_thread(),
        tqdm(
            total=n_steps, desc="metagradient", unit="step", disable=None, leave=False
        ) as progress,
    ):
        start = run.state()
        for _ in range(n_steps):
            run.advance()
        final = run.state()
        looked_at = set(checkpoints) or {n_steps}
        adjoint = TrainingState(
            *(Parameters(*(torch.zeros_like(p) for p in final.parameters)) for _ in final)
        )
        for step, before, gradient, after in _backwards(run, start, 0, n_steps):
            if step + 1 in looked_at:
                for x, g in zip(adjoint.parameters, loss_gradient(after.parameters), strict=True):
                    x.add_(g / len(looked_at))
            index, by_weight = _step_back(run, step, before, gradient, after, adjoint)
            totals.index_add_(0, index, by_weight.double())
            progress.update()
        run.restore(final, n_steps)
    return totals.cpu().numpy()


def _backwards(
    run: Training, start: TrainingState, first: int, end: int
) -> Iterator[tuple[int, Parameters, Parameters, TrainingState]]:
    """Steps `first` to `end` of the run from the last to the first, replayed from `start`.

    Yields the step, the parameters before it, its gradient and the state after it.
    """
    run.restore(start, first)
    if end - first <= STATES_AT_ONCE:
        taken = []
        before = start.parameters
        for step in range(first, end):
            run.advance()
            after = run.state()
            gradient = Parameters(*(g.clone() for g in run.gradient()))
            taken.append((step, before, gradient, after))
            before = after.parameters
        while taken:
            yield taken.pop()
        return
    length = STATES_AT_ONCE
    while length * STATES_AT_ONCE < end - first:
        length *= STATES_AT_ONCE
    checkpoints = []
    for step in range(first, end):
        if (step - first) % length == 0:
            checkpoints.append((step, run.state()))
        if step < end - 1:
            run.advance()
    while checkpoints:
        step, state = checkpoints.pop()
        yield from _backwards(run, state, step, min(step + length, end))


def _step_back(
    run: Training,
    step: int,
    before: Parameters,
    gradient: Parameters,
    after: TrainingState,
    adjoint: TrainingState,
) -> tuple[Tensor, Tensor]:
    """Take the adjoint from after a step to before it, in place.

    AdamW, with g the gradient, b1 and b2 its betas, and c1 and c2 their bias corrections:

        m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
        x' = (1 - lr decay) x - (lr / c1) m' / (sqrt(v' / c2) + epsilon)

    Returns:
        The pairs of the batch and what the step adds to the derivative with respect to their
        weights, both (b,).
    """
    beta1, beta2 = ADAM_BETAS
    correction1, correction2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
    rate = float(run.learning_rates[step])
    decays = (run.config.weight_decay, run.config.weight_decay, 0.0)
    if float(after.parameters.log_scale) >= MAX_LOG_SCALE:
        adjoint.parameters.log_scale.zero_()  # the clamp forgets where it came from
    by_gradient = []
    for x, m, v, g, m_after, v_after in zip(
        *adjoint, gradient, after.first_moment, after.second_moment, strict=True
    ):
        root = (v_after / correction2).sqrt_()
        denominator = root + ADAM_EPSILON
        scaled = (x / denominator).mul_(rate / correction1)
        m.sub_(scaled)
        # A coordinate whose gradient has always been zero has no root to differentiate: 0 / 0.
        root.mul_(2 * correction2).clamp_(min=torch.finfo(root.dtype).tiny)
        v.add_(scaled.mul_(m_after).div_(denominator).div_(root))
        by_gradient.append((m * (1 - beta1)).addcmul_(g, v, value=2 * (1 - beta2)))
        m.mul_(beta1)
        v.mul_(beta2)
    index, batch, weights = run.batch(step)
    assert weights is not None
    by_parameters, by_weight = _slope_gradient(
        before, batch, weights, along=Parameters(*by_gradient)
    )
    for x, decay, h in zip(adjoint.parameters, decays, by_parameters, strict=True):
        x.mul_(1 - rate * decay).add_(h)
    return index, by_weight


def _slope_gradient(
    parameters: Parameters, batch: PairTensors, weights: Tensor, *, along: Parameters
) -> tuple[Parameters, Tensor]:
    """Gradient of d = along . grad L_B with respect to the parameters, H along, and the weights.

    The maps are linear, so only the small loss behind them is differentiated twice.
    """
    images = (batch.images @ parameters.image_map).requires_grad_()
    texts = (batch.texts @ parameters.text_map).requires_grad_()
    log_scale = parameters.log_scale.detach().clone().requires_grad_()
    weights = weights.detach().clone().requires_grad_()
    loss = contrastive_loss(projected_similarities(images, texts, log_scale), weights)
    by_images, by_texts, by_scale = torch.autograd.grad(
        loss, (images, texts, log_scale), create_graph=True
    )
    slope = (
        (by_images * (batch.images @ along.image_map)).sum()
        + (by_texts * (batch.texts @ along.text_map)).sum()
        + by_scale * along.log_scale
    )
    by_images, by_texts, by_scale, by_weight = torch.autograd.grad(
        slope, (images, texts, log_scale, weights)
    )
    return Parameters(batch.images.T @ by_images, batch.texts.T @ by_texts, by_scale), by_weight

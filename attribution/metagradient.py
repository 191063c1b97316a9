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
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm import tqdm

from learner.captured import Captured
from learner.model import (
    MAX_LOG_SCALE,
    Parameters,
    ProjectedGradient,
    contrastive_loss,
    projected_similarities,
)
from learner.pairs import PairTensors
from learner.stacked import (
    ADAM_BETAS,
    ADAM_EPSILON,
    StackedTraining,
    TrainingState,
    one_cpu_thread,
)
from learner.training import Training

STATES_AT_ONCE = 40  # states of the run that are held for each level of replaying


def pair_weight_gradient(
    run: Training,
    n_steps: int,
    loss_gradient: Callable[[Parameters], Parameters],
    *,
    checkpoints: Collection[int] = (),
) -> Float[np.ndarray, " n"]:
    """`pair_weight_gradients` of one run, (n,)."""
    gradients = pair_weight_gradients(run.runs, n_steps, loss_gradient, checkpoints=checkpoints)
    return gradients[0]


def pair_weight_gradients(
    runs: StackedTraining,
    n_steps: int,
    loss_gradient: Callable[[Parameters], Parameters],
    *,
    checkpoints: Collection[int] = (),
) -> list[Float[np.ndarray, " n"]]:
    """dL_val / dw_i of each run's pairs at its weights, nats; in every batch sum_i w_i dL/dw_i = 0.

    With s_t the state (parameters and both of Adam's moments) after t steps:

        a_T = dL_val / ds_T,   a_t = a_{t+1} . ds_{t+1} / ds_t
        dL_val / dw = sum_t a_{t+1} . ds_{t+1} / dw

    Each step back costs one Hessian-vector product of its batch. The runs are replayed from
    checkpoints, so that 40 states are alive for each level of replaying, of which runs of up to
    1,600 steps have two: about four to six times the time of the runs themselves. Pairs whose
    weight is zero get the derivative at zero: what adding them would do.

    Args:
        runs: training runs side by side, which are stepped to `n_steps` and left there.
        n_steps: after how many of their steps the validation loss is taken, at least 1.
        loss_gradient: gradient of the validation loss with respect to the parameters of one run.
        checkpoints: L_val is the mean of the validation losses after these steps, none later than
            `n_steps`; by default the loss after `n_steps` alone. The mean depends less on which
            batches came last.
    """
    device = runs.pairs.device
    if runs.weights is None:
        runs.weights = torch.ones(runs.n_runs, max(runs.sizes), device=device)
    totals = torch.zeros(runs.n_runs, max(runs.sizes), dtype=torch.float64, device=device)
    with (
        one_cpu_thread(),
        tqdm(
            total=n_steps, desc="metagradient", unit="step", disable=None, leave=False
        ) as progress,
    ):
        start = runs.state()
        looked_at = set(checkpoints) or {n_steps}
        adjoint = TrainingState(
            *(Parameters(*(torch.zeros_like(p) for p in start.parameters)) for _ in start)
        )
        step_back = _StepBack(runs, adjoint)
        final = None
        for step, before, gradient, after in _Replay(runs).backwards(start, 0, n_steps):
            if final is None:
                final = runs.state()  # the first step back is the last one taken
            if step + 1 in looked_at:
                for r in range(runs.n_runs):
                    of_run = loss_gradient(Parameters(*(p[r] for p in after.parameters)))
                    for x, g in zip(adjoint.parameters, of_run, strict=True):
                        x[r].add_(g / len(looked_at))
            positions, by_weight = step_back.take(step, before, gradient, after)
            totals.scatter_add_(1, positions, by_weight.double())
            progress.update()
        assert final is not None
        runs.restore(final, n_steps)
    return [of_run[:size] for of_run, size in zip(totals.cpu().numpy(), runs.sizes, strict=True)]


class _Replay:
    """The steps of runs from the last to the first, replayed from checkpoints.

    Copies of states are written over again and again: fresh memory costs more than the copying.
    """

    def __init__(self, runs: StackedTraining) -> None:
        self.runs = runs
        self.spare: list[TrainingState] = []

    def backwards(
        self, start: TrainingState, first: int, end: int
    ) -> Iterator[tuple[int, Parameters, ProjectedGradient, TrainingState]]:
        """Steps `first` to `end`, replayed from `start`.

        Yields the step, the parameters before it, its gradient and the state after it, which is
        there until the next step back.
        """
        runs, states, gradients = self.runs, [start], []
        if runs.n_done != first:
            runs.restore(start, first)
        if end - first <= STATES_AT_ONCE:
            for _ in range(first, end):
                gradients.append(runs.advance_with_gradient()[1])
                states.append(self._copy())
            for step in reversed(range(first, end)):
                after = states.pop()
                yield step, states[-1].parameters, gradients.pop(), after
                self.spare.append(after)
            return
        length = STATES_AT_ONCE
        while length * STATES_AT_ONCE < end - first:
            length *= STATES_AT_ONCE
        places = range(first, end, length)
        for place in places[1:]:
            runs.advance_to(place)
            states.append(self._copy())
        for place in reversed(places):
            yield from self.backwards(states[-1], place, min(place + length, end))
            done = states.pop()
            if states:  # the start is the caller's
                self.spare.append(done)

    def _copy(self) -> TrainingState:
        return self.runs.state(into=self.spare.pop() if self.spare else None)


class _StepBack:
    """Takes the adjoint from after a step to before it, in place.

    AdamW, with g the gradient, b1 and b2 its betas, and c1 and c2 their bias corrections:

        m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
        x' = (1 - lr decay) x - (lr / c1) m' / (sqrt(v' / c2) + epsilon)
    """

    def __init__(self, runs: StackedTraining, adjoint: TrainingState) -> None:
        self._runs, self._adjoint = runs, adjoint
        dtype, device = adjoint.parameters.image_map.dtype, runs.pairs.device
        self._factors = torch.from_numpy(_factors_of_steps(runs)).to(device, dtype)
        self._arithmetic = Captured(self._take, device, allowed=runs.pairs.in_memory)

    def take(
        self, step: int, before: Parameters, gradient: ProjectedGradient, after: TrainingState
    ) -> tuple[Tensor, Tensor]:
        """Back over a step.

        Returns:
            The positions of the batches' pairs and what the step adds to the derivative with
            respect to their weights, both (R, b).
        """
        positions, places = self._runs.batch_at(step)
        log_scale, *moments = after.parameters.log_scale, *after.first_moment, *after.second_moment
        given = (positions, places, self._factors[step], log_scale, *before, *gradient, *moments)
        return positions, self._arithmetic(*given)

    def _take(
        self, positions: Tensor, places: Tensor, factors: Tensor, log_scale: Tensor, *parts: Tensor
    ) -> Tensor:
        runs, adjoint = self._runs, self._adjoint
        before, gradient = Parameters(*parts[:3]), ProjectedGradient(*parts[3:6])
        first_moment, second_moment = Parameters(*parts[6:9]), Parameters(*parts[9:])
        # The clamp forgets where it came from.
        adjoint.parameters.log_scale.masked_fill_(log_scale >= MAX_LOG_SCALE, 0.0)
        batch, weights = runs.pairs_at(positions, places)
        assert weights is not None
        g = runs.gradient()  # the runs are restored before they step again: its memory is free
        gradient.by_parameters(batch, out=g)
        for arrays in zip(*adjoint, g, first_moment, second_moment, strict=True):
            _adam_back(*arrays, factors=factors)
        by_projections, by_weight = _slope_gradient(before, batch, weights, along=g)
        by_projections.by_parameters(batch, out=g)
        for x, h in zip(adjoint.parameters[:2], g[:2], strict=True):
            x.mul_(factors[3]).add_(h)
        adjoint.parameters.log_scale.add_(g.log_scale)
        return by_weight


def _factors_of_steps(runs: StackedTraining) -> Float64[np.ndarray, "n_steps 4"]:
    """Lr / c1, c2, 2 c2 and 1 - lr decay of every step."""
    rates, steps = runs.learning_rates, np.arange(1, runs.n_steps + 1)
    correction1, correction2 = (1 - beta**steps for beta in ADAM_BETAS)
    kept = 1 - rates * runs.config.weight_decay
    return np.stack([rates / correction1, correction2, 2 * correction2, kept], axis=1)


def _adam_back(
    x: Tensor, m: Tensor, v: Tensor, g: Tensor, m_after: Tensor, v_after: Tensor, *, factors: Tensor
) -> None:
    """Take the adjoints m and v to before the step, and put that of the gradient in place of g."""
    beta1, beta2 = ADAM_BETAS
    root = (v_after / factors[1]).sqrt_()
    denominator = root + ADAM_EPSILON
    scaled = (x / denominator).mul_(factors[0])
    m.sub_(scaled)
    # A coordinate whose gradient has always been zero has no root to differentiate: 0 / 0.
    root.mul_(factors[2]).clamp_(min=torch.finfo(root.dtype).tiny)
    v.add_(scaled.mul_(m_after).div_(denominator).div_(root))
    torch.addcmul(m * (1 - beta1), g, v, value=2 * (1 - beta2), out=g)
    m.mul_(beta1)
    v.mul_(beta2)


def _slope_gradient(
    parameters: Parameters, batch: PairTensors, weights: Tensor, *, along: Parameters
) -> tuple[ProjectedGradient, Tensor]:
    """Gradient of d = along . grad L_B with respect to the parameters, H along, and the weights.

    Of every run's batch; d of all runs are summed, since none depends on another's parameters.

    The maps are linear, so only the small loss behind them is differentiated twice.
    """
    images = (batch.images @ parameters.image_map).requires_grad_()
    texts = (batch.texts @ parameters.text_map).requires_grad_()
    log_scale = parameters.log_scale.detach().clone().requires_grad_()
    weights = weights.detach().clone().requires_grad_()
    losses = contrastive_loss(projected_similarities(images, texts, log_scale), weights)
    by_images, by_texts, by_scale = torch.autograd.grad(
        losses.sum(), (images, texts, log_scale), create_graph=True
    )
    slope = (
        (by_images * (batch.images @ along.image_map)).sum()
        + (by_texts * (batch.texts @ along.text_map)).sum()
        + (by_scale * along.log_scale).sum()
    )
    *by_projections, by_weight = torch.autograd.grad(slope, (images, texts, log_scale, weights))
    return ProjectedGradient(*by_projections), by_weight

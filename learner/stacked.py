"""Training runs side by side as one computation: AdamW with a cosine schedule, step by step.

Every array has a leading dimension of runs, so that R runs of linear heads are as many kernels as
one: small products keep a GPU waiting for the next launch. There a step is captured as a graph,
too. On a CPU a run at a time, one a core, is as fast: its parameters stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from learner.batches import training_batches
from learner.captured import Captured, copy_all
from learner.config import LOSS, SAMPLE, TrainingConfig
from learner.model import (
    MAX_LOG_SCALE,
    Parameters,
    ProjectedGradient,
    initial_parameters,
    loss_and_gradient,
)
from learner.pairs import PairFeatures, PairTensors

ADAM_BETAS = (0.9, 0.999)

# A hundredth of a typical gradient. With the customary 1e-8 the first steps are signs of the
# gradient, and the final loss is no smooth function of the pairs' weights (metagradient.py).
ADAM_EPSILON = 1e-4


class TrainingState(NamedTuple):
    """Everything that a training step changes."""

    parameters: Parameters
    first_moment: Parameters
    second_moment: Parameters


class Run(NamedTuple):
    """What one of several trainings has to itself."""

    seed: int  # decides the initial parameters and the order of the pairs
    rows: Int64[np.ndarray, " m"] | None = None  # of the pairs that it trains on; None is all
    weights: Float[np.ndarray, " m"] | None = None  # of these, >= 0; None is all ones


class StackedTraining:
    """R training runs from seeded parameters, step by step, each as if it were alone.

    The same arguments give the same batches, the same steps and on a CPU the same bits; runs can be
    taken back to an earlier state and stepped again. A run gives the same result among others as
    alone, to rounding.

    Args:
        pairs: scaled features, of which each run takes its rows.
        config: width, batch size, learning rate, weight decay.
        runs: at least one; all have batches of one size.
        n_steps: optimiser steps of the schedule; epochs follow one another, each newly shuffled.
        weighting: LOSS multiplies a pair's part of the loss by its weight; SAMPLE draws as many
            pairs an epoch as there are, each in proportion to its weight, and leaves the loss
            alone.
        carry_over: the pairs that the full batches of an epoch leave over come first in the next.

    Attributes:
        batches: (R, n_steps, b) positions among each run's pairs.

    Raises:
        ValueError: batches differ in size.
    """

    def __init__(
        self,
        pairs: PairFeatures,
        config: TrainingConfig,
        runs: Sequence[Run],
        *,
        n_steps: int,
        weighting: str = LOSS,
        carry_over: bool = False,
    ) -> None:
        self.pairs, self.config, self.n_steps = pairs, config, n_steps
        device = pairs.device
        self.sizes = [pairs.n_pairs if run.rows is None else len(run.rows) for run in runs]
        if len({min(size, config.batch_size) for size in self.sizes}) > 1:
            raise ValueError("runs side by side have batches of one size")
        self.batches = np.stack(
            [
                training_batches(
                    size,
                    config.batch_size,
                    n_steps,
                    run.weights if weighting == SAMPLE else None,
                    seed=run.seed,
                    carry_over=carry_over,
                )
                for run, size in zip(runs, self.sizes, strict=True)
            ]
        )
        self._positions, self._places = _by_steps(self.batches, runs, device)
        phase = np.pi * np.arange(n_steps) / n_steps
        self.learning_rates = config.learning_rate * (1 + np.cos(phase)) / 2
        self._weights: Tensor | None = None
        if weighting == LOSS and any(run.weights is not None for run in runs):
            self._weights = _padded_weights(runs, self.sizes).to(device)
        starts = [
            initial_parameters(*pairs.widths, config.embed_dim, seed=run.seed, device=device)
            for run in runs
        ]
        self._live = Parameters(*(torch.stack(parts) for parts in zip(*starts, strict=True)))
        self.n_done = 0
        # Written anew by every step: fresh memory would cost as much as the arithmetic.
        self._gradient = Parameters(*(torch.zeros_like(p) for p in self._live))
        for p, g in zip(self._live, self._gradient, strict=True):
            p.grad = g
        self._rates = torch.from_numpy(self.learning_rates.astype(np.float32)).to(device)
        self._rate = torch.zeros((), device=device)
        self._optimizer = _optimizer(self._live, config, self._rate)
        self._capture_anew()

    @property
    def weights(self) -> Tensor | None:
        """(R, n) of the runs' pairs in the loss, zero where a run has fewer; None is all ones."""
        return self._weights

    @weights.setter
    def weights(self, weights: Tensor) -> None:
        self._weights = weights
        self._capture_anew()

    @property
    def n_runs(self) -> int:
        """How many there are."""
        return len(self.sizes)

    @property
    def parameters(self) -> Parameters:
        """Those of all runs as they are now, detached; the next step changes them in place."""
        return Parameters(*(p.detach() for p in self._live))

    def parameters_of(self, run: int) -> Parameters:
        """Those of one run, likewise."""
        return Parameters(*(p[run].detach() for p in self._live))

    def gradient(self) -> Parameters:
        """The gradients that the last step was taken along; the next step overwrites them."""
        return self._gradient

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """Positions among each run's pairs, and places among all, of a step from 0 on, (R, b)."""
        return self._positions[step], self._places[step]

    def pairs_at(self, positions: Tensor, places: Tensor) -> tuple[PairTensors, Tensor | None]:
        """The pairs of batches, (R, b, d), and their weights, (R, b)."""
        weights = None if self.weights is None else self.weights.gather(1, positions)
        return self.pairs.take(places), weights

    def seen(self, run: int) -> Bool[np.ndarray, " m"]:
        """Which pairs of a run were in a batch of the steps taken so far."""
        held = np.zeros(self.sizes[run], dtype=bool)
        held[self.batches[run, : self.n_done].reshape(-1)] = True
        return held

    def advance(self) -> Tensor:
        """One optimiser step; the losses of its batches before it, (R,), until the next one."""
        return self._advance()[0]

    def advance_with_gradient(self) -> tuple[Tensor, ProjectedGradient]:
        """One optimiser step; the losses of its batches before it and these losses' gradient."""
        losses, gradient = self._advance()
        return losses.clone(), ProjectedGradient(*(part.clone() for part in gradient))

    def _advance(self) -> tuple[Tensor, ProjectedGradient]:
        step = self.n_done
        found = self._step_on(self._positions[step], self._places[step], self._rates[step])
        self.n_done += 1
        return found

    def _capture_anew(self) -> None:
        self._step_on = Captured(self._step, self.pairs.device, allowed=self.pairs.in_memory)

    def _step(
        self, positions: Tensor, places: Tensor, rate: Tensor
    ) -> tuple[Tensor, ProjectedGradient]:
        if self.pairs.device.type == "cuda":
            self._rate.copy_(rate)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = float(self.learning_rates[self.n_done])
        batch, weights = self.pairs_at(positions, places)
        losses, gradient = loss_and_gradient(
            batch.images @ self._live.image_map,
            batch.texts @ self._live.text_map,
            self._live.log_scale,
            weights,
        )
        gradient.by_parameters(batch, self._gradient)
        self._optimizer.step()
        self._live.log_scale.clamp_(max=MAX_LOG_SCALE)
        return losses, gradient

    def advance_to(self, n_done: int) -> None:
        """Step on until `n_done` steps are taken."""
        with one_cpu_thread():
            while self.n_done < n_done:
                self.advance()

    def state(self, into: TrainingState | None = None) -> TrainingState:
        """A copy of the present state, written over `into` where that is given."""
        copy = into or TrainingState(
            *(Parameters(*(torch.empty_like(p) for p in self._live)) for _ in range(3))
        )
        moments = [self._optimizer.state.get(live) for live in self._live]
        if all(moments):
            now = [*self._live, *(m["exp_avg"] for m in moments if m)]
            now += [m["exp_avg_sq"] for m in moments if m]
            copy_all([part for parts in copy for part in parts], now)
        else:  # before the first step
            copy_all(copy.parameters, self._live)
            for part in (*copy.first_moment, *copy.second_moment):
                part.zero_()
        return copy

    def restore(self, state: TrainingState, n_done: int) -> None:
        """Go back, or ahead, to the state after `n_done` steps."""
        for live, p, m, v in zip(self._live, *state, strict=True):
            moments = self._optimizer.state[live]
            if not moments:
                moments["step"] = torch.zeros((), device=live.device)
                moments["exp_avg"] = torch.empty_like(live)
                moments["exp_avg_sq"] = torch.empty_like(live)
            live.copy_(p)
            moments["step"].fill_(n_done)
            moments["exp_avg"].copy_(m)
            moments["exp_avg_sq"].copy_(v)
        self.n_done = n_done


def _by_steps(
    batches: Int64[np.ndarray, "R n_steps b"], runs: Sequence[Run], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions among each run's pairs and places among all, (n_steps, R, b)."""
    positions = torch.from_numpy(np.ascontiguousarray(batches.transpose(1, 0, 2))).to(device)
    if all(run.rows is None for run in runs):
        return positions, positions
    places = [
        of_run if run.rows is None else run.rows[of_run]
        for run, of_run in zip(runs, batches, strict=True)
    ]
    return positions, torch.from_numpy(np.stack(places, axis=1)).to(device)


def _padded_weights(runs: Sequence[Run], sizes: Sequence[int]) -> Tensor:
    """Weights of the runs' pairs, (R, most pairs of a run)."""
    weights = np.zeros((len(runs), max(sizes)), dtype=np.float32)
    for row, run, size in zip(weights, runs, sizes, strict=True):
        row[:size] = 1 if run.weights is None else run.weights
    return torch.from_numpy(weights)


def _optimizer(live: Parameters, config: TrainingConfig, rate: Tensor) -> torch.optim.AdamW:
    device = rate.device.type
    return torch.optim.AdamW(
        [
            # A temperature has no size to shrink.
            {"params": live[:2], "weight_decay": config.weight_decay},
            {"params": live[2:], "weight_decay": 0.0},
        ],
        lr=rate if device == "cuda" else config.learning_rate,
        betas=ADAM_BETAS,
        eps=ADAM_EPSILON,
        fused=device in ("cpu", "cuda"),
        capturable=device == "cuda",
    )


@contextmanager
def one_cpu_thread() -> Iterator[None]:
    """A step on a batch is too small to share: threads cost more than they bring."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)

"""Training of the dual encoder, one run or several side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from learner.config import LOSS, TrainingConfig
from learner.model import Parameters, mean_loss
from learner.pairs import PairFeatures, PairTensors
from learner.stacked import Run, StackedTraining, TrainingState, one_cpu_thread


class LossHistory(NamedTuple):
    """Loss as training went on, one entry a reporting step."""

    step: list[int]
    train_loss: list[float]  # mean since the last report, nats
    validation_loss: list[float]  # nats


class Training:
    """One training run, step by step: a `StackedTraining` of one, without its dimension of runs.

    Args:
        pairs: n training pairs, scaled features.
        config: width, batch size, learning rate, weight decay.
        n_steps: optimiser steps of the schedule; epochs follow one another, each newly shuffled.
        seed: decides the initial parameters and the order of the pairs.
        sample_weights: (n,) weights >= 0 of the pairs; None is all ones.
        weighting: see `StackedTraining`.
        carry_over: see `StackedTraining`.
    """

    def __init__(
        self,
        pairs: PairFeatures,
        config: TrainingConfig,
        *,
        n_steps: int,
        seed: int,
        sample_weights: np.ndarray | None = None,
        weighting: str = LOSS,
        carry_over: bool = False,
    ) -> None:
        self.pairs, self.config, self.n_steps = pairs, config, n_steps
        self.runs = StackedTraining(
            pairs,
            config,
            [Run(seed, None, sample_weights)],
            n_steps=n_steps,
            weighting=weighting,
            carry_over=carry_over,
        )
        self.learning_rates = self.runs.learning_rates

    @property
    def batches(self) -> Int64[np.ndarray, "n_steps b"]:
        """Positions of the pairs of every batch."""
        return np.asarray(self.runs.batches[0])

    @property
    def n_done(self) -> int:
        """Steps taken so far."""
        return self.runs.n_done

    @property
    def weights(self) -> Tensor | None:
        """(n,) of the pairs in the loss; None is all ones."""
        return None if self.runs.weights is None else self.runs.weights[0]

    @weights.setter
    def weights(self, weights: Tensor) -> None:
        self.runs.weights = weights.unsqueeze(0)

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now, detached; the next step changes them in place."""
        return self.runs.parameters_of(0)

    def advance(self) -> Tensor:
        """One optimiser step; the loss of its batch before it, detached."""
        return self.runs.advance()[0]

    def advance_to(self, n_done: int) -> None:
        """Step on until `n_done` steps are taken."""
        self.runs.advance_to(n_done)

    def state(self, into: TrainingState | None = None) -> TrainingState:
        """A copy of the present state, written over `into` where that is given."""
        stacked = None if into is None else _stacked(into)
        return TrainingState(
            *(Parameters(*(p[0] for p in part)) for part in self.runs.state(stacked))
        )

    def restore(self, state: TrainingState, n_done: int) -> None:
        """Go back, or ahead, to the state after `n_done` steps."""
        self.runs.restore(_stacked(state), n_done)


def _stacked(state: TrainingState) -> TrainingState:
    """A view of one run's state with the dimension of runs."""
    return TrainingState(*(Parameters(*(p.unsqueeze(0) for p in part)) for part in state))


def train(
    pairs: PairFeatures,
    config: TrainingConfig,
    *,
    n_steps: int,
    seed: int,
    sample_weights: np.ndarray | None = None,
    weighting: str = LOSS,
    validation: tuple[PairTensors, np.ndarray] | None = None,
    n_reports: int = 10,
) -> tuple[Parameters, LossHistory]:
    """A dual encoder trained from scratch with AdamW and a cosine schedule of `n_steps` steps.

    Args:
        pairs: n training pairs, scaled features.
        config: width, batch size, learning rate, weight decay.
        n_steps: optimiser steps; epochs follow one another, each newly shuffled.
        seed: decides the initial parameters and the order of the pairs.
        sample_weights: (n,) weights >= 0 of the pairs; None is all ones.
        weighting: whether they count in the loss or in how often pairs are drawn; see `Training`.
        validation: pairs and their fixed batches, whose loss is recorded.
        n_reports: how often losses are recorded.

    Returns:
        The trained parameters (detached) and the losses on the way.
    """
    (trained,) = train_side_by_side(
        pairs,
        config,
        [Run(seed, None, sample_weights)],
        n_steps=n_steps,
        weighting=weighting,
        validation=validation,
        n_reports=n_reports,
    )
    return trained


def train_side_by_side(
    pairs: PairFeatures,
    config: TrainingConfig,
    runs: Sequence[Run],
    *,
    n_steps: int,
    weighting: str = LOSS,
    validation: tuple[PairTensors, np.ndarray] | None = None,
    n_reports: int = 10,
) -> list[tuple[Parameters, LossHistory]]:
    """What `train` gives, of several runs that take their steps together.

    Args:
        pairs: scaled features, of which each run takes its rows.
        config: width, batch size, learning rate, weight decay.
        runs: whose batches are of one size; see `StackedTraining`.
        n_steps: optimiser steps of each.
        weighting: see `StackedTraining`.
        validation: pairs and their fixed batches, whose loss is recorded.
        n_reports: how often losses are recorded.
    """
    training = StackedTraining(pairs, config, runs, n_steps=n_steps, weighting=weighting)
    histories = [LossHistory([], [], []) for _ in runs]
    for _ in _reported_steps(training, n_reports, validation, histories):
        pass
    return [(training.parameters_of(r), history) for r, history in enumerate(histories)]


def train_until_best(
    run: Training,
    validation: tuple[PairTensors, np.ndarray],
    *,
    n_reports: int,
    patience: int | None = None,
    stop_by: int | None = None,
) -> LossHistory:
    """Early stopping: the run is left at the report with the lowest validation loss.

    Args:
        run: a run that has taken no step yet.
        validation: pairs and their fixed batches.
        n_reports: how often in the schedule the validation loss is looked at.
        patience: give up after this many reports without a lower loss; None goes on to the end.
        stop_by: give up at the first report after this many steps.
    """
    history = LossHistory([], [], [])
    best, n_best, waited = run.state(), 0, 0
    for step in _reported_steps(run.runs, n_reports, validation, [history]):
        waited += 1
        if history.validation_loss[-1] == min(history.validation_loss):
            best, n_best, waited = run.state(), step, 0
        if waited == patience or (stop_by is not None and step >= stop_by):
            break
    run.restore(best, n_best)
    return history


def _reported_steps(
    runs: StackedTraining,
    n_reports: int,
    validation: tuple[PairTensors, np.ndarray] | None,
    histories: Sequence[LossHistory],
) -> Iterator[int]:
    """Take the steps; after each report, which goes into the histories, yield its step."""
    reports = {math.ceil(runs.n_steps * (k + 1) / n_reports) for k in range(n_reports)}
    running, since = torch.zeros(runs.n_runs, device=runs.pairs.device), 0
    for step in range(1, runs.n_steps + 1):
        with one_cpu_thread():
            running += runs.advance()
        since += 1
        if step in reports:
            for run, history in enumerate(histories):
                history.step.append(step)
                history.train_loss.append(float(running[run]) / since)
                if validation is not None:
                    with one_cpu_thread():
                        loss = mean_loss(runs.parameters_of(run), *validation)
                    history.validation_loss.append(loss)
            running.zero_()
            since = 0
            yield step

"""Training of the dual encoder: AdamW with a cosine schedule, step by step and replayable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from model import (
    MAX_LOG_SCALE,
    PairTensors,
    Parameters,
    contrastive_loss,
    initial_parameters,
    mean_loss,
    shuffled_batches,
    similarities,
)
from settings import Settings, setting

ADAM_BETAS = (0.9, 0.999)
# A hundredth of a typical gradient. With the customary 1e-8 the first steps are signs of the
# gradient, and the final loss is no smooth function of the pairs' weights (metagradient.py).
ADAM_EPSILON = 1e-4


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How a dual encoder is trained, the reference model and every compared one alike."""

    embed_dim: int = setting(256, "width of the trained joint space", at_least=2)
    num_epochs: int = setting(10, "training epochs over the full data", at_least=1)
    batch_size: int = setting(32, "pairs per training and validation batch", at_least=2)
    learning_rate: float = setting(1e-3, "peak AdamW learning rate (cosine schedule)", above=0)
    weight_decay: float = setting(1e-5, "AdamW weight decay", at_least=0)


class LossHistory(NamedTuple):
    """Loss as training went on, one entry a reporting step."""

    step: list[int]
    train_loss: list[float]  # mean since the last report, nats
    validation_loss: list[float]  # nats


class TrainingState(NamedTuple):
    """Everything that a training step changes."""

    parameters: Parameters
    first_moment: Parameters
    second_moment: Parameters


class Training:
    """One training run, step by step: AdamW with a cosine schedule, from seeded parameters.

    The same arguments give the same batches, the same steps and the same bits; a run can be taken
    back to an earlier state and stepped again.

    Args:
        pairs: n training pairs, scaled features.
        config: width, batch size, learning rate, weight decay.
        n_steps: optimiser steps of the schedule; epochs follow one another, each newly shuffled.
        seed: decides the initial parameters and the order of the pairs.
        sample_weights: (n,) weights >= 0 in the loss; None is all ones.
    """

    def __init__(
        self,
        pairs: PairTensors,
        config: TrainingConfig,
        *,
        n_steps: int,
        seed: int,
        sample_weights: np.ndarray | None = None,
    ) -> None:
        self.pairs, self.config, self.n_steps = pairs, config, n_steps
        device = pairs.images.device
        self.batches = _training_batches(
            len(pairs.images), config.batch_size, n_steps, np.random.default_rng(seed)
        )
        phase = np.pi * np.arange(n_steps) / n_steps
        self.learning_rates = config.learning_rate * (1 + np.cos(phase)) / 2
        self.weights = None
        if sample_weights is not None:
            self.weights = torch.from_numpy(sample_weights.astype(np.float32)).to(device)
        start = initial_parameters(
            pairs.images.shape[1], pairs.texts.shape[1], config.embed_dim, seed=seed, device=device
        )
        self.n_done = 0
        self._live = Parameters(*(p.requires_grad_() for p in start))
        self._optimizer = torch.optim.AdamW(
            [
                # A temperature has no size to shrink.
                {"params": self._live[:2], "weight_decay": config.weight_decay},
                {"params": self._live[2:], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPSILON,
            fused=device.type in ("cpu", "cuda"),
        )

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now, detached; the next step changes them in place."""
        return Parameters(*(p.detach() for p in self._live))

    def batch(self, step: int) -> tuple[Tensor, PairTensors, Tensor | None]:
        """Indices, pairs and weights of the batch of a step counted from 0."""
        index = torch.from_numpy(self.batches[step]).to(self.pairs.images.device)
        weights = None if self.weights is None else self.weights[index]
        return index, self.pairs.take(index), weights

    def advance(self) -> Tensor:
        """One optimiser step; the loss of its batch before it, detached."""
        for group in self._optimizer.param_groups:
            group["lr"] = float(self.learning_rates[self.n_done])
        _, batch, weights = self.batch(self.n_done)
        loss = contrastive_loss(similarities(self._live, batch), weights)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            self._live.log_scale.clamp_(max=MAX_LOG_SCALE)
        self.n_done += 1
        return loss.detach()

    def advance_to(self, n_done: int) -> None:
        """Step on until `n_done` steps are taken."""
        with one_cpu_thread():
            while self.n_done < n_done:
                self.advance()

    def gradient(self) -> Parameters:
        """The gradient that the last step was taken along."""
        gradients = [p.grad for p in self._live]
        assert all(g is not None for g in gradients), "no step has been taken"
        return Parameters(*(g for g in gradients if g is not None))

    def state(self) -> TrainingState:
        """A copy of the present state."""
        moments = [self._optimizer.state.get(p, {}) for p in self._live]
        return TrainingState(
            Parameters(*(p.detach().clone() for p in self._live)),
            *(
                Parameters(
                    *(
                        m[name].clone() if name in m else torch.zeros_like(p, requires_grad=False)
                        for m, p in zip(moments, self._live, strict=True)
                    )
                )
                for name in ("exp_avg", "exp_avg_sq")
            ),
        )

    def restore(self, state: TrainingState, n_done: int) -> None:
        """Go back, or ahead, to the state after `n_done` steps."""
        with torch.no_grad():
            for live, p, m, v in zip(self._live, *state, strict=True):
                live.copy_(p)
                self._optimizer.state[live] = {
                    "step": torch.tensor(float(n_done), device=live.device),
                    "exp_avg": m.clone(),
                    "exp_avg_sq": v.clone(),
                }
        self.n_done = n_done


def train(
    pairs: PairTensors,
    config: TrainingConfig,
    *,
    n_steps: int,
    seed: int,
    sample_weights: np.ndarray | None = None,
    validation: tuple[PairTensors, np.ndarray] | None = None,
    n_reports: int = 10,
) -> tuple[Parameters, LossHistory]:
    """A dual encoder trained from scratch with AdamW and a cosine schedule of `n_steps` steps.

    Args:
        pairs: n training pairs, scaled features.
        config: width, batch size, learning rate, weight decay.
        n_steps: optimiser steps; epochs follow one another, each newly shuffled.
        seed: decides the initial parameters and the order of the pairs.
        sample_weights: (n,) weights >= 0 in the loss; None is all ones.
        validation: pairs and their fixed batches, whose loss is recorded.
        n_reports: how often losses are recorded.

    Returns:
        The trained parameters (detached) and the losses on the way.
    """
    run = Training(pairs, config, n_steps=n_steps, seed=seed, sample_weights=sample_weights)
    history = LossHistory([], [], [])
    for _ in _reported_steps(run, n_steps, n_reports, validation, history):
        pass
    return run.parameters, history


def train_until_best(
    run: Training,
    validation: tuple[PairTensors, np.ndarray],
    *,
    n_reports: int,
    patience: int | None = None,
) -> LossHistory:
    """Early stopping: the run is left at the report with the lowest validation loss.

    Args:
        run: a run that has taken no step yet.
        validation: pairs and their fixed batches.
        n_reports: how often in the schedule the validation loss is looked at.
        patience: give up after this many reports without a lower loss; None goes on to the end.
    """
    history = LossHistory([], [], [])
    best, n_best, waited = run.state(), 0, 0
    for step in _reported_steps(run, run.n_steps, n_reports, validation, history):
        waited += 1
        if history.validation_loss[-1] == min(history.validation_loss):
            best, n_best, waited = run.state(), step, 0
        if waited == patience:
            break
    run.restore(best, n_best)
    return history


def _reported_steps(
    run: Training,
    n_steps: int,
    n_reports: int,
    validation: tuple[PairTensors, np.ndarray] | None,
    history: LossHistory,
) -> Iterator[int]:
    """Take the steps; after each report, which goes into `history`, yield its step."""
    reports = {math.ceil(n_steps * (k + 1) / n_reports) for k in range(n_reports)}
    running, since = torch.zeros((), device=run.pairs.images.device), 0
    for step in range(1, n_steps + 1):
        with one_cpu_thread():
            running += run.advance()
        since += 1
        if step in reports:
            history.step.append(step)
            history.train_loss.append(float(running) / since)
            if validation is not None:
                with one_cpu_thread():
                    history.validation_loss.append(mean_loss(run.parameters, *validation))
            running.zero_()
            since = 0
            yield step


@contextmanager
def one_cpu_thread() -> Iterator[None]:
    """A step on a batch is too small to share: threads cost more than they bring."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _training_batches(
    n: int, batch_size: int, n_steps: int, rng: np.random.Generator
) -> Int64[np.ndarray, "n_steps b"]:
    n_epochs = math.ceil(n_steps / steps_per_epoch(n, batch_size))
    epochs = [shuffled_batches(n, batch_size, rng) for _ in range(n_epochs)]
    batches: np.ndarray = np.concatenate(epochs)[:n_steps]
    return batches


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in one epoch over `n` pairs, at least one."""
    return max(1, n // batch_size)

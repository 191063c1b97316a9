"""Training of the dual encoder: AdamW with a cosine schedule, step by step and replayable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from artifacts.settings import Settings, setting
from learner.model import (
    MAX_LOG_SCALE,
    Parameters,
    contrastive_loss,
    initial_parameters,
    mean_loss,
    projected_similarities,
    shuffled_batches,
)
from learner.pairs import PairFeatures, PairTensors

ADAM_BETAS = (0.9, 0.999)

# A hundredth of a typical gradient. With the customary 1e-8 the first steps are signs of the
# gradient, and the final loss is no smooth function of the pairs' weights (metagradient.py).
ADAM_EPSILON = 1e-4
LOSS, SAMPLE = WEIGHTINGS = ("loss", "sample")  # where the weights of pairs take effect


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


class ProjectedGradient(NamedTuple):
    """Gradient of a batch's loss with respect to what the maps make of the batch.

    The maps are linear, so that their own gradient is a product with the batch's features.
    """

    by_images: Tensor  # (b, e)
    by_texts: Tensor  # (b, e)
    by_scale: Tensor  # ()

    def by_parameters(self, batch: PairTensors, out: Parameters) -> None:
        """Write the gradient with respect to the parameters into `out`."""
        torch.mm(batch.images.T, self.by_images, out=out.image_map)
        torch.mm(batch.texts.T, self.by_texts, out=out.text_map)
        out.log_scale.copy_(self.by_scale)


class Training:
    """One training run, step by step: AdamW with a cosine schedule, from seeded parameters.

    The same arguments give the same batches, the same steps and the same bits; a run can be taken
    back to an earlier state and stepped again.

    Args:
        pairs: n training pairs, scaled features.
        config: width, batch size, learning rate, weight decay.
        n_steps: optimiser steps of the schedule; epochs follow one another, each newly shuffled.
        seed: decides the initial parameters and the order of the pairs.
        sample_weights: (n,) weights >= 0 of the pairs; None is all ones.
        weighting: LOSS multiplies a pair's part of the loss by its weight; SAMPLE draws n pairs an
            epoch, each in proportion to its weight, and leaves the loss alone.
        carry_over: the pairs that the full batches of an epoch leave over come first in the next.
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
        device = pairs.device
        self.batches = _training_batches(
            pairs.n_pairs,
            config.batch_size,
            n_steps,
            sample_weights if weighting == SAMPLE else None,
            seed=seed,
            carry_over=carry_over,
        )
        phase = np.pi * np.arange(n_steps) / n_steps
        self.learning_rates = config.learning_rate * (1 + np.cos(phase)) / 2
        self.weights = None
        if sample_weights is not None and weighting == LOSS:
            self.weights = torch.from_numpy(sample_weights.astype(np.float32)).to(device)
        start = initial_parameters(*pairs.widths, config.embed_dim, seed=seed, device=device)
        self.n_done = 0
        self._live = start
        # Written anew by every step: fresh memory would cost as much as the arithmetic.
        self._gradient = Parameters(*(torch.zeros_like(p) for p in start))
        for p, g in zip(self._live, self._gradient, strict=True):
            p.grad = g
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

    def gradient(self) -> Parameters:
        """The gradient that the last step was taken along; the next step overwrites it."""
        return self._gradient

    def batch(self, step: int) -> tuple[Tensor, PairTensors, Tensor | None]:
        """Indices, pairs and weights of the batch of a step counted from 0."""
        index = torch.from_numpy(self.batches[step]).to(self.pairs.device)
        weights = None if self.weights is None else self.weights[index]
        return index, self.pairs.take(index), weights

    def seen(self) -> Bool[np.ndarray, " n"]:
        """Which pairs were in a batch of the steps taken so far."""
        held = np.zeros(self.pairs.n_pairs, dtype=bool)
        held[self.batches[: self.n_done].reshape(-1)] = True
        return held

    def advance(self) -> Tensor:
        """One optimiser step; the loss of its batch before it, detached."""
        return self.advance_with_gradient()[0]

    def advance_with_gradient(self) -> tuple[Tensor, ProjectedGradient]:
        """One optimiser step; the loss of its batch before it and that loss's gradient."""
        for group in self._optimizer.param_groups:
            group["lr"] = float(self.learning_rates[self.n_done])
        _, batch, weights = self.batch(self.n_done)
        images = (batch.images @ self._live.image_map).requires_grad_()
        texts = (batch.texts @ self._live.text_map).requires_grad_()
        log_scale = self._live.log_scale.detach().requires_grad_()
        loss = contrastive_loss(projected_similarities(images, texts, log_scale), weights)
        gradient = ProjectedGradient(*torch.autograd.grad(loss, (images, texts, log_scale)))
        gradient.by_parameters(batch, self._gradient)
        self._optimizer.step()
        self._live.log_scale.clamp_(max=MAX_LOG_SCALE)
        self.n_done += 1
        return loss.detach(), gradient

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
        for live, p, m, v in zip(self._live, *copy, strict=True):
            p.copy_(live)
            moments = self._optimizer.state.get(live)
            if moments:
                m.copy_(moments["exp_avg"])
                v.copy_(moments["exp_avg_sq"])
            else:
                m.zero_()
                v.zero_()
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
    run = Training(
        pairs,
        config,
        n_steps=n_steps,
        seed=seed,
        sample_weights=sample_weights,
        weighting=weighting,
    )
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
    for step in _reported_steps(run, run.n_steps, n_reports, validation, history):
        waited += 1
        if history.validation_loss[-1] == min(history.validation_loss):
            best, n_best, waited = run.state(), step, 0
        if waited == patience or (stop_by is not None and step >= stop_by):
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
    running, since = torch.zeros((), device=run.pairs.device), 0
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
    n: int,
    batch_size: int,
    n_steps: int,
    sampling_weights: np.ndarray | None,
    *,
    seed: int,
    carry_over: bool,
) -> Int64[np.ndarray, "n_steps b"]:
    n_epochs = math.ceil(n_steps / steps_per_epoch(n, batch_size))
    rng = np.random.default_rng(seed)
    if carry_over:
        return _carried_over(n, batch_size, n_steps, rng)
    epochs = [shuffled_batches(n, batch_size, rng) for _ in range(n_epochs)]
    if sampling_weights is not None:
        # Drawn by a generator of its own: equal weights leave the batches as they are.
        draws = np.random.default_rng((seed, 1))
        epochs = [drawn_pairs(sampling_weights, draws)[places] for places in epochs]
    batches: np.ndarray = np.concatenate(epochs)[:n_steps]
    return batches


def _carried_over(
    n: int, batch_size: int, n_steps: int, rng: np.random.Generator
) -> Int64[np.ndarray, "n_steps b"]:
    """Batches of one permutation of the pairs after another, none twice in a batch.

    What a permutation leaves over of full batches is in the first batch of the next, so that
    ceil(n / b) steps hold every pair.
    """
    b = min(batch_size, n)
    batches: list[np.ndarray] = []
    left: np.ndarray = np.zeros(0, dtype=np.int64)
    while len(batches) < n_steps:
        order: np.ndarray = rng.permutation(n)
        if len(left):
            beside = order[~np.isin(order, left)][: b - len(left)]
            batches.append(np.concatenate([left, beside]))
            order = order[~np.isin(order, beside)]
        n_full = len(order) // b
        batches += list(order[: n_full * b].reshape(n_full, b))
        left = order[n_full * b :]
    return np.stack(batches[:n_steps])


def drawn_pairs(
    weights: Float[np.ndarray, " n"], rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """The n pairs of one epoch, sorted, each expected in proportion to its weight.

    Systematic resampling (Kitagawa 1996), in a new order of the pairs every time, so that no two
    of them always exclude each other. A pair that comes twice into a batch is there a negative of
    itself.
    """
    order = rng.permutation(len(weights))
    counts = np.empty(len(weights), dtype=np.int64)
    counts[order] = systematic_counts(weights[order], float(rng.random()))
    return np.repeat(np.arange(len(weights)), counts)


def systematic_counts(weights: Float[np.ndarray, " n"], offset: float) -> Int64[np.ndarray, " n"]:
    """How often each pair is drawn, n times in all: n w_i / sum w, rounded up or down.

    The weights are laid end to end on a line of length n; a pair is drawn once for every point
    1 - offset, 2 - offset, ..., n - offset on its piece.

    Args:
        weights: >= 0, not all zero.
        offset: in [0, 1); uniformly random, it makes the expected counts exact.
    """
    n = len(weights)
    ends = np.cumsum(weights)
    ends = n * (ends / ends[-1])
    # The last end is n exactly; adding the offset may round up to n + 1.
    reached = np.minimum(np.floor(ends + offset), n).astype(np.int64)
    return np.diff(reached, prepend=0)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in one epoch over `n` pairs, at least one."""
    return max(1, n // batch_size)

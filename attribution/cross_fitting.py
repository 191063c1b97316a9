"""Every pair seen by models that have not trained on it.

A model that has trained on a pair fits it, wrong caption or not, and has little gradient left to
tell by. So the pairs are dealt into halves, again and again; a model trained on one half, stopped
early, says of the other half how large its losses are (small where image and text belong
together) and what adding a pair would do to the validation loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from attribution.derivatives import batch_loss_influences, loss_gradient
from attribution.retraining import mean_pair_losses
from learner.model import Parameters, mean_loss, shuffled_batches, whole_batches
from learner.pairs import PairFeatures, PairTensors, TrainingPairs
from learner.training import (
    Training,
    TrainingConfig,
    side_by_side,
    steps_per_epoch,
    train_until_best,
)

N_REPORTS = 40  # early stopping looks at the validation loss this often
PATIENCE = 5  # reports without a lower validation loss after which the search ends
CHECKPOINTS = (0.6, 1.0)  # of the steps taken; what is asked is averaged over them
VALIDATION_SHUFFLES = 4  # batch compositions that the validation gradient is averaged over
LOSS_SHUFFLES = 4  # batch compositions that a pair's losses are averaged over
INFLUENCE_SHUFFLES = 16  # and its influence; only few pairs are evaluated


class HeldOutModel(NamedTuple):
    """A model early in its training on one half, and what it is asked about."""

    repeat: int
    parameters: Parameters
    validation_gradient: Tensor  # (p,)
    held_out: Int64[np.ndarray, " h"]  # rows of the other half


@dataclass(frozen=True)
class CrossFit:
    """What models say of pairs that they have not trained on."""

    models: list[HeldOutModel]
    held_out_losses: Float[np.ndarray, " n"]  # mean loss of each pair, nats
    memorised: Float[np.ndarray, " n"]  # how much lower it is for models trained on the pair
    n_repeats: int
    n_steps: int  # taken, by early stopping
    validation_loss: float  # mean over the models at the end


def cross_fit(
    pairs: TrainingPairs,
    trained_on: Bool[np.ndarray, " n"],
    training: TrainingConfig,
    *,
    n_repeats: int,
    max_steps: int,
    stop_by: int | None = None,
    rng: np.random.Generator,
) -> CrossFit:
    """Train two models a repeat, each on a half of the images, and ask each about the other half.

    Args:
        pairs: n training pairs, of which those of one image go to one half, and the held-out ones
            that are asked.
        trained_on: pairs that models train on; the others are asked about all the same.
        training: settings of the models.
        n_repeats: how often the pairs are dealt.
        max_steps: of the learning-rate schedule.
        stop_by: steps after which early stopping stops at the latest.
        rng: deals, shuffles and seeds.
    """
    b, n_models = training.batch_size, 2 * n_repeats
    epochs = training.num_epochs * steps_per_epoch(int(trained_on.sum()), b)
    shuffles = [
        shuffled_batches(len(pairs.validation.images), b, rng) for _ in range(VALIDATION_SHUFFLES)
    ]
    trainings = _HalfTrainings(
        pairs.tensors,
        trained_on,
        pairs.validation,
        np.concatenate(shuffles),
        training,
        min(epochs, max_steps),
        [_halves(pairs.image_ids, trained_on, rng) for _ in range(n_repeats)],
        rng.integers(2**31, size=n_models),
        rng.spawn(n_models),
    )
    stop = trainings.early_stop(stop_by)
    checkpoints = sorted({max(1, round(share * stop)) for share in CHECKPOINTS})
    with side_by_side(pairs.tensors.device) as pool:
        answers = list(
            tqdm(
                pool.map(lambda job: trainings.ask(job, checkpoints), range(n_models)),
                total=n_models,
                desc="held-out models",
                unit="model",
                disable=None,
                leave=False,
            )
        )
    return _put_together(answers, len(trained_on), stop)


class _Answers(NamedTuple):
    """What one model says at its checkpoints, on average, of either half."""

    models: list[HeldOutModel]  # one a checkpoint
    own: Int64[np.ndarray, " o"]  # rows that it is trained on
    held_out_losses: Float[np.ndarray, " h"]
    own_losses: Float[np.ndarray, " o"]
    validation_loss: float  # at the end


class _HalfTrainings(NamedTuple):
    """Pairs dealt into halves again and again, and what it takes to train a model on each half."""

    pairs: PairFeatures
    trained_on: Bool[np.ndarray, " n"]
    validation: PairTensors
    validation_batches: Int64[np.ndarray, "m b"]
    training: TrainingConfig
    schedule: int  # steps of the learning rates
    halves: list[Int64[np.ndarray, " n"]]  # one a repeat: 0 or 1 for each pair
    seeds: Int64[np.ndarray, " j"]  # one a training
    generators: list[np.random.Generator]

    def rows(self, job: int) -> tuple[Int64[np.ndarray, " o"], Int64[np.ndarray, " h"]]:
        """Which pairs a training is on, and which it holds out."""
        repeat, side = divmod(job, 2)
        own = (self.halves[repeat] == side) & self.trained_on
        return np.flatnonzero(own), np.flatnonzero(self.halves[repeat] != side)

    def start(self, job: int) -> Training:
        """A training before its first step."""
        own, _ = self.rows(job)
        return Training(
            self.pairs.subset(own), self.training, n_steps=self.schedule, seed=int(self.seeds[job])
        )

    def early_stop(self, stop_by: int | None) -> int:
        """After how many steps the first model's validation loss is lowest, at least one."""
        search = self.start(0)
        n_first = max(1, len(self.validation_batches) // VALIDATION_SHUFFLES)
        train_until_best(
            search,
            (self.validation, self.validation_batches[:n_first]),
            n_reports=N_REPORTS,
            patience=PATIENCE,
            stop_by=stop_by,
        )
        return max(search.n_done, 1)

    def ask(self, job: int, checkpoints: list[int]) -> _Answers:
        """Train a model, and ask it at each checkpoint about the pairs of both halves."""
        run, rng = self.start(job), self.generators[job]
        own, held_out = self.rows(job)
        models, own_losses, held_out_losses = [], np.zeros(len(own)), np.zeros(len(held_out))
        for checkpoint in checkpoints:
            run.advance_to(checkpoint)
            parameters = Parameters(*(p.clone() for p in run.parameters))
            gradient = loss_gradient(parameters, self.validation, self.validation_batches)
            models.append(HeldOutModel(job // 2, parameters, gradient, held_out))
            for rows, losses in ((held_out, held_out_losses), (own, own_losses)):
                losses += self.losses(parameters, rows, rng) / len(checkpoints)
        loss = mean_loss(run.parameters, self.validation, self.validation_batches)
        return _Answers(models, own, held_out_losses, own_losses, loss)

    def losses(
        self, parameters: Parameters, rows: Int64[np.ndarray, " k"], rng: np.random.Generator
    ) -> Float[np.ndarray, " k"]:
        """Mean loss of each of these pairs over random batches of them, nats."""
        shuffles = [
            whole_batches(len(rows), self.training.batch_size, rng) for _ in range(LOSS_SHUFFLES)
        ]
        return mean_pair_losses(parameters, self.pairs.subset(rows), np.concatenate(shuffles))


def _put_together(answers: list[_Answers], n: int, stop: int) -> CrossFit:
    """What all models say of n pairs, each pair by those that it concerns."""
    n_repeats = len(answers) // 2
    held_out_losses, own_losses, times_own = np.zeros(n), np.zeros(n), np.zeros(n)
    for given in answers:
        held_out_losses[given.models[0].held_out] += given.held_out_losses / n_repeats
        own_losses[given.own] += given.own_losses
        times_own[given.own] += 1
    memorised = held_out_losses - own_losses / np.maximum(times_own, 1)
    return CrossFit(
        [model for given in answers for model in given.models],
        held_out_losses,
        np.where(times_own > 0, memorised, 0.0),
        n_repeats,
        stop,
        float(np.mean([given.validation_loss for given in answers])),
    )


def _halves(
    image_ids: Int64[np.ndarray, " n"], trained_on: Bool[np.ndarray, " n"], rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """0 or 1 for each pair, the same for pairs of one image; both sides have pairs to train on."""
    n_images = int(image_ids.max()) + 1
    used = np.bincount(image_ids, trained_on, minlength=n_images) > 0
    sides = np.empty(n_images, dtype=np.int64)
    for members in (np.flatnonzero(used), np.flatnonzero(~used)):
        sides[rng.permutation(members)] = np.arange(len(members)) % 2
    dealt: np.ndarray = sides[image_ids]
    return dealt


def held_out_influences(
    cross: CrossFit,
    pairs: PairFeatures,
    index: Int64[np.ndarray, " m"],
    base_weights: Float[np.ndarray, " m"],
    *,
    batch_size: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "R m"]:
    """What adding each pair would spare the validation loss, nats, once a repeat.

    By `batch_loss_influences` with v = grad L_val, on models that have not trained on the pair. No
    inverse Hessian is taken: it would weigh up the directions that have not been fitted yet, and
    tell wrong captions from right ones less well.

    Args:
        cross: the models.
        pairs: training pairs.
        index: the pairs to evaluate, sorted; those held out together are each other's negatives.
        base_weights: how much of the training distribution each of them stands for.
        batch_size: of the training objective.
        rng: draws the shufflings.
    """
    influences = np.zeros((cross.n_repeats, len(index)))
    per_repeat = len(cross.models) // (2 * cross.n_repeats)
    # One after the other: forward-mode derivatives know one level for all threads.
    for model in cross.models:
        at = np.flatnonzero(np.isin(index, model.held_out))
        if len(at) == 0:
            continue
        values = batch_loss_influences(
            model.parameters,
            pairs,
            model.validation_gradient,
            index[at],
            base_weights[at],
            batch_size=batch_size,
            rng=rng,
            n_shuffles=INFLUENCE_SHUFFLES,
        )
        influences[model.repeat, at] += values / per_repeat
    return influences

"""Every pair seen by models that have not trained on it.

A model that has trained on a pair fits it, wrong caption or not, and has little gradient left to
tell by. So the pairs are dealt into halves, again and again; a model trained on one half, stopped
early, says of the other half how large its losses are (small where image and text belong
together) and what adding a pair would do to the validation loss.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from attribution.derivatives import batch_loss_influences, loss_gradient
from attribution.retraining import mean_pair_losses
from attribution.sampling import grown_batch_size
from learner.model import (
    Parameters,
    batch_blocks,
    embed_images,
    embed_texts,
    mean_loss,
    pair_losses,
    shuffled_batches,
    whole_batches,
)
from learner.pairs import ROWS_AT_ONCE, PairFeatures, PairTensors, StoredPairs, TrainingPairs
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
    n_models, n_trained = 2 * n_repeats, int(trained_on.sum())
    n_held_out, b = pairs.validation.n_pairs, training.batch_size
    shuffles = [shuffled_batches(n_held_out, b, rng) for _ in range(VALIDATION_SHUFFLES)]
    half, most_steps = math.ceil(n_trained / 2), min(max_steps, stop_by or max_steps)
    training = replace(training, batch_size=grown_batch_size(half, b, most_steps))
    epochs = training.num_epochs * steps_per_epoch(n_trained, training.batch_size)
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
        max(1, round(LOSS_SHUFFLES * b / training.batch_size)),
    )
    stop = trainings.early_stop(stop_by)
    checkpoints = sorted({max(1, round(share * stop)) for share in CHECKPOINTS})
    with side_by_side(pairs.tensors.device) as pool:
        asked = list(
            tqdm(
                pool.map(lambda job: trainings.ask(job, checkpoints), range(n_models)),
                total=n_models,
                desc="held-out models",
                unit="model",
                disable=None,
                leave=False,
            )
        )
        if isinstance(pairs.tensors, StoredPairs):
            losses = _losses_by_blocks(trainings, asked, pool, rng)
        else:
            losses = _losses_by_models(trainings, asked, pool)
    return _put_together(asked, losses, stop)


class _Asked(NamedTuple):
    """One model at its checkpoints."""

    models: list[HeldOutModel]  # one a checkpoint
    validation_loss: float  # at the end


class _Losses(NamedTuple):
    """Mean losses of n pairs, nats."""

    held_out: Float[np.ndarray, " n"]  # by the models that hold the pair out
    own: Float[np.ndarray, " n"]  # by those trained on its half
    times_own: Float[np.ndarray, " n"]  # how many these are


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
    loss_shuffles: int  # batch compositions that a pair's losses are averaged over

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

    def ask(self, job: int, checkpoints: list[int]) -> _Asked:
        """Train a model, and take its parameters and the validation gradient at each checkpoint."""
        run = self.start(job)
        _, held_out = self.rows(job)
        models = []
        for checkpoint in checkpoints:
            run.advance_to(checkpoint)
            parameters = Parameters(*(p.clone() for p in run.parameters))
            gradient = loss_gradient(parameters, self.validation, self.validation_batches)
            models.append(HeldOutModel(job // 2, parameters, gradient, held_out))
        loss = mean_loss(run.parameters, self.validation, self.validation_batches)
        return _Asked(models, loss)

    def losses_of_halves(
        self, job: int, models: list[HeldOutModel]
    ) -> tuple[Float[np.ndarray, " h"], Float[np.ndarray, " o"]]:
        """What a model says of the half that it holds out, and of its own."""
        own, held_out = self.rows(job)
        held_out_losses, own_losses = np.zeros(len(held_out)), np.zeros(len(own))
        for model in models:
            for rows, losses in ((held_out, held_out_losses), (own, own_losses)):
                losses += self.losses(model.parameters, rows, self.generators[job]) / len(models)
        return held_out_losses, own_losses

    def losses(
        self, parameters: Parameters, rows: Int64[np.ndarray, " k"], rng: np.random.Generator
    ) -> Float[np.ndarray, " k"]:
        """Mean loss of each of these pairs over random batches of them, nats."""
        batches = self.loss_batches(len(rows), rng)
        return mean_pair_losses(parameters, self.pairs.subset(rows), batches)

    def loss_batches(self, n: int, rng: np.random.Generator) -> Int64[np.ndarray, "m b"]:
        """Random batches that hold each of n pairs, again and again."""
        b = self.training.batch_size
        return np.concatenate([whole_batches(n, b, rng) for _ in range(self.loss_shuffles)])

    def block_losses(
        self, rows: Int64[np.ndarray, " k"], asked: list[_Asked], rng: np.random.Generator
    ) -> _Losses:
        """What all models say of some of the pairs, in batches of these."""
        block, k = self.pairs.subset(rows).whole(), len(rows)
        held_out_losses, own_losses, times_own = np.zeros(k), np.zeros(k), np.zeros(k)
        for job, given in enumerate(asked):
            repeat, side = divmod(job, 2)
            sides = self.halves[repeat][rows]
            held_out = np.flatnonzero(sides != side)
            own = np.flatnonzero((sides == side) & self.trained_on[rows])
            times_own[own] += 1
            for model in given.models:
                projected = _projected(model.parameters, block)
                for places, losses in ((held_out, held_out_losses), (own, own_losses)):
                    if len(places):
                        batches = places[self.loss_batches(len(places), rng)]
                        found = mean_projected_losses(*projected, batches)[places]
                        losses[places] += found / len(given.models)
        return _Losses(held_out_losses, own_losses, times_own)


def _losses_by_models(
    trainings: _HalfTrainings, asked: list[_Asked], pool: ThreadPoolExecutor
) -> _Losses:
    """One model after another, each of both halves in random batches."""
    n, n_repeats = len(trainings.trained_on), len(asked) // 2
    held_out_losses, own_losses, times_own = np.zeros(n), np.zeros(n), np.zeros(n)
    answers = pool.map(
        lambda job: trainings.losses_of_halves(job, asked[job].models), range(len(asked))
    )
    progress = tqdm(answers, "held-out losses", len(asked), unit="model", disable=None, leave=False)
    for job, (of_held_out, of_own) in enumerate(progress):
        own, held_out = trainings.rows(job)
        held_out_losses[held_out] += of_held_out / n_repeats
        own_losses[own] += of_own
        times_own[own] += 1
    return _Losses(held_out_losses, own_losses / np.maximum(times_own, 1), times_own)


def _losses_by_blocks(
    trainings: _HalfTrainings,
    asked: list[_Asked],
    pool: ThreadPoolExecutor,
    rng: np.random.Generator,
) -> _Losses:
    """Random blocks of pairs, read once for all models and put into batches block by block."""
    n, n_repeats = len(trainings.trained_on), len(asked) // 2
    order = rng.permutation(n)
    blocks = [np.sort(rows) for rows in np.array_split(order, math.ceil(n / ROWS_AT_ONCE))]
    losses = _Losses(*(np.zeros(n) for _ in _Losses._fields))
    answers = pool.map(
        lambda rows, generator: trainings.block_losses(rows, asked, generator),
        blocks,
        rng.spawn(len(blocks)),
    )
    with tqdm(total=n, desc="held-out losses", unit="pair", disable=None, leave=False) as progress:
        for rows, found in zip(blocks, answers, strict=True):
            losses.held_out[rows] = found.held_out / n_repeats
            losses.own[rows] = found.own / np.maximum(found.times_own, 1)
            losses.times_own[rows] = found.times_own
            progress.update(len(rows))
    return losses


def _projected(parameters: Parameters, pairs: PairTensors) -> tuple[Tensor, Tensor]:
    """Unit embeddings of both sides, the images' times the logit scale."""
    images = parameters.log_scale.exp() * embed_images(parameters, pairs.images)
    return images, embed_texts(parameters, pairs.texts)


def mean_projected_losses(
    images: Tensor, texts: Tensor, batches: Int64[np.ndarray, "n_batches b"]
) -> Float[np.ndarray, " k"]:
    """`mean_pair_losses` of pairs that have been through the model: logits are inner products."""
    totals, counts = np.zeros(len(images)), np.zeros(len(images))
    with torch.no_grad():
        for index in batch_blocks(batches, images.device):
            losses = pair_losses(images[index] @ texts[index].transpose(-1, -2))
            places = index.cpu().numpy().reshape(-1)
            totals += np.bincount(
                places, losses.double().cpu().numpy().reshape(-1), minlength=len(totals)
            )
            counts += np.bincount(places, minlength=len(totals))
    with np.errstate(invalid="ignore"):
        return np.asarray(totals / counts)


def _put_together(asked: list[_Asked], losses: _Losses, stop: int) -> CrossFit:
    """What all models say of the pairs."""
    memorised = np.where(losses.times_own > 0, losses.held_out - losses.own, 0.0)
    return CrossFit(
        [model for given in asked for model in given.models],
        losses.held_out,
        memorised,
        len(asked) // 2,
        stop,
        float(np.mean([given.validation_loss for given in asked])),
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

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
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from attribution.derivatives import loss_gradient, pair_influences
from attribution.retraining import validation_pair_losses
from learner.model import Parameters, mean_loss, shuffled_batches, whole_batches
from learner.pairs import PairTensors
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
    pairs: PairTensors,
    trained_on: Bool[np.ndarray, " n"],
    image_ids: Int64[np.ndarray, " n"],
    validation: PairTensors,
    training: TrainingConfig,
    *,
    n_repeats: int,
    max_steps: int,
    stop_by: int | None = None,
    rng: np.random.Generator,
) -> CrossFit:
    """Train two models a repeat, each on a half of the images, and ask each about the other half.

    Args:
        pairs: n training pairs, scaled features.
        trained_on: pairs that models train on; the others are asked about all the same.
        image_ids: pairs of one image go to one half.
        validation: held-out pairs.
        training: settings of the models.
        n_repeats: how often the pairs are dealt.
        max_steps: of the learning-rate schedule.
        stop_by: steps after which early stopping stops at the latest.
        rng: deals, shuffles and seeds.
    """
    n, b = len(trained_on), training.batch_size
    schedule = min(training.num_epochs * steps_per_epoch(int(trained_on.sum()), b), max_steps)
    validation_batches = np.concatenate(
        [shuffled_batches(len(validation.images), b, rng) for _ in range(VALIDATION_SHUFFLES)]
    )
    halves = [_halves(image_ids, trained_on, rng) for _ in range(n_repeats)]
    jobs = [(repeat, side) for repeat in range(n_repeats) for side in (0, 1)]
    seeds = rng.integers(2**31, size=len(jobs))
    generators = rng.spawn(len(jobs))

    def start(job: int) -> Training:
        repeat, side = jobs[job]
        rows = np.flatnonzero((halves[repeat] == side) & trained_on)
        return Training(
            pairs.take(torch.from_numpy(rows).to(pairs.images.device)),
            training,
            n_steps=schedule,
            seed=int(seeds[job]),
        )

    search = start(0)
    first_shuffle = validation_batches[: max(1, len(validation_batches) // VALIDATION_SHUFFLES)]
    train_until_best(
        search,
        (validation, first_shuffle),
        n_reports=N_REPORTS,
        patience=PATIENCE,
        stop_by=stop_by,
    )
    stop = max(search.n_done, 1)
    checkpoints = sorted({max(1, round(share * stop)) for share in CHECKPOINTS})

    def ask(job: int) -> _Answers:
        repeat, side = jobs[job]
        run, own_rng = start(job), generators[job]
        own, other = (np.flatnonzero(halves[repeat] == s) for s in (side, 1 - side))
        own = own[trained_on[own]]
        models, held_out_losses, own_losses = [], np.zeros(len(other)), np.zeros(len(own))
        for checkpoint in checkpoints:
            while run.n_done < checkpoint:
                run.advance()
            parameters = Parameters(*(p.clone() for p in run.parameters))
            gradient = loss_gradient(parameters, validation, validation_batches)
            models.append(HeldOutModel(repeat, parameters, gradient, other))
            for rows, losses in ((other, held_out_losses), (own, own_losses)):
                subset = pairs.take(torch.from_numpy(rows).to(pairs.images.device))
                batches = np.concatenate(
                    [whole_batches(len(rows), b, own_rng) for _ in range(LOSS_SHUFFLES)]
                )
                losses += validation_pair_losses(parameters, subset, batches) / len(checkpoints)
        loss = mean_loss(run.parameters, validation, validation_batches)
        return _Answers(models, own, held_out_losses, own_losses, loss)

    held_out_losses, own_losses, times_own = np.zeros(n), np.zeros(n), np.zeros(n)
    answers = []
    with side_by_side(pairs.images.device) as pool:
        for given in tqdm(
            pool.map(ask, range(len(jobs))),
            total=len(jobs),
            desc="held-out models",
            unit="model",
            disable=None,
            leave=False,
        ):
            answers.append(given)
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


class _Answers(NamedTuple):
    models: list[HeldOutModel]
    own: np.ndarray
    held_out_losses: np.ndarray
    own_losses: np.ndarray
    validation_loss: float


def held_out_influences(
    cross: CrossFit,
    pairs: PairTensors,
    index: Int64[np.ndarray, " m"],
    base_weights: Float[np.ndarray, " m"],
    *,
    batch_size: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "R m"]:
    """What adding each pair would spare the validation loss, nats, once a repeat.

    The influence of `pair_influences` with v = grad L_val, on models that have not trained on the
    pair. No inverse Hessian is taken: it would weigh up the directions that have not been fitted
    yet, and tell wrong captions from right ones less well.

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
        values = pair_influences(
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

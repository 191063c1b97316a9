"""Every pair seen by models that have not trained on it.

A model that has trained on a pair fits it, wrong caption or not, and has little gradient left to
tell by. So the pairs are dealt into halves, again and again; a model trained on one half, stopped
early, says of the other half how large its losses are (small where image and text belong
together) and what adding a pair would do to the validation loss. That is asked of two halves of the
validation pairs, so that how far their answers differ tells what they are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int8, Int64
from torch import Tensor
from tqdm import tqdm

from attribution.derivatives import (
    batch_loss_influences,
    group_loss_gradients,
    loss_gradient,
)
from attribution.group_influence import Group, asked_groups
from attribution.retraining import mean_pair_losses, mean_projected_losses, projected_pairs
from attribution.sampling import grown_batch_size
from engine.room import Made, StageRoom
from engine.shards import ShardFiles, Summary
from learner.batches import steps_per_epoch
from learner.config import TrainingConfig
from learner.lending import Lent, lend
from learner.model import (
    Parameters,
    from_vector,
    mean_loss,
    shuffled_batches,
    to_vector,
    whole_batches,
)
from learner.pairs import ROWS_AT_ONCE, PairFeatures, PairTensors, StoredPairs, TrainingPairs
from learner.side_by_side import train_in_groups
from learner.stacked import Run, StackedTraining
from learner.training import Training, train_until_best

N_REPORTS = 40  # early stopping looks at the validation loss this often
PATIENCE = 5  # reports without a lower validation loss after which the search ends
CHECKPOINTS = (0.6, 1.0)  # of the steps taken; what is asked is averaged over them
VALIDATION_SHUFFLES = 4  # batch compositions that the validation gradient is averaged over
LOSS_SHUFFLES = 4  # batch compositions that a pair's losses are averaged over
MOST_BLOCK_SHARDS = 256  # that blocks of pairs which are asked about are shared out among
INFLUENCE_SHUFFLES = 16  # and its influence; only few pairs are evaluated
FEWEST_ASKED = 20  # validation pairs that are worth asking in halves


class HeldOutModel(NamedTuple):
    """A model early in its training on one half, and what it is asked about."""

    repeat: int
    parameters: Parameters
    validation_gradients: Tensor  # (q, p), of each part of the validation pairs
    held_out: Int64[np.ndarray, " h"]  # rows of the other half
    group_gradients: Tensor | None = None  # (G, p), less the gradient of all validation pairs


@dataclass(frozen=True)
class CrossFit:
    """What models say of pairs that they have not trained on."""

    models: list[HeldOutModel]
    held_out_losses: Float[np.ndarray, " n"]  # mean loss of each pair, nats
    memorised: Float[np.ndarray, " n"]  # how much lower it is for models trained on the pair
    n_repeats: int
    n_steps: int  # taken, by early stopping
    validation_loss: float  # mean over the models at the end
    # Groups of validation pairs that are asked apart, with their mean losses; mostly none is.
    groups: Sequence[Group] = ()

    def beyond_all(self, group: int) -> CrossFit:
        """The same asked what helps a group more than all: of the difference of both gradients."""
        return replace(
            self,
            models=[
                m._replace(validation_gradients=m.group_gradients[group : group + 1])
                for m in self.models
                if m.group_gradients is not None
            ],
        )


def cross_fit(
    pairs: TrainingPairs,
    trained_on: Bool[np.ndarray, " n"],
    training: TrainingConfig,
    room: StageRoom,
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
        room: where they are trained.
        n_repeats: how often the pairs are dealt.
        max_steps: of the learning-rate schedule.
        stop_by: steps after which early stopping stops at the latest.
        rng: deals, shuffles and seeds.
    """
    n_models, n_trained = 2 * n_repeats, int(trained_on.sum())
    n_held_out, b = pairs.validation.n_pairs, training.batch_size
    shuffles = [shuffled_batches(n_held_out, b, rng) for _ in range(VALIDATION_SHUFFLES)]
    parts = _parts(n_held_out, rng)
    half, most_steps = math.ceil(n_trained / 2), min(max_steps, stop_by or max_steps)
    training = replace(training, batch_size=grown_batch_size(half, b, most_steps))
    epochs = training.num_epochs * steps_per_epoch(n_trained, training.batch_size)
    halves = _Halves(
        pairs.tensors,
        trained_on,
        pairs.validation,
        np.concatenate(shuffles),
        [
            np.concatenate(
                [part[shuffled_batches(len(part), b, rng)] for _ in range(VALIDATION_SHUFFLES)]
            )
            for part in parts
        ],
        training,
        min(epochs, max_steps),
        np.stack([_dealt(pairs.image_ids, trained_on, rng) for _ in range(n_repeats)]),
        rng.integers(2**31, size=n_models),
        max(1, round(LOSS_SHUFFLES * b / training.batch_size)),
        asked_groups(pairs.validation_groups),
    )
    lent = lend(room, "pairs", halves, pairs.tensors.device)
    generators = rng.spawn(n_models)
    stop = _early_stop(lent, stop_by)
    checkpoints = sorted({max(1, round(share * stop)) for share in CHECKPOINTS})
    batch_sizes = [min(len(halves.rows(k)[0]), training.batch_size) for k in range(n_models)]
    made = train_in_groups(
        lent,
        "held out models",
        _ask,
        [_HalfJob(number, checkpoints, own) for number, own in enumerate(generators)],
        unit="model",
        alike=lambda job: batch_sizes[job.number],
    )
    if isinstance(pairs.tensors, StoredPairs):
        losses = _losses_by_blocks(lent, made, rng)
    else:
        losses = _losses_by_models(halves, made)
    return _put_together(halves, made, losses, stop)


class _Losses(NamedTuple):
    """Mean losses of n pairs, nats."""

    held_out: Float[np.ndarray, " n"]  # by the models that hold the pair out
    own: Float[np.ndarray, " n"]  # by those trained on its half
    times_own: Float[np.ndarray, " n"]  # how many these are


class _Halves(NamedTuple):
    """Pairs dealt into halves again and again, and what it takes to train a model on each half."""

    pairs: PairFeatures
    trained_on: Bool[np.ndarray, " n"]
    validation: PairTensors
    validation_batches: Int64[np.ndarray, "m b"]
    part_batches: Sequence[Int64[np.ndarray, "m2 b2"]]  # of each part of the validation pairs
    training: TrainingConfig
    schedule: int  # steps of the learning rates
    sides: Int8[np.ndarray, "R n"]  # 0 or 1 for each pair
    seeds: Int64[np.ndarray, " j"]  # one a training
    loss_shuffles: int  # batch compositions that a pair's losses are averaged over
    groups: Sequence[Group]  # of validation pairs that are asked apart

    def rows(self, number: int) -> tuple[Int64[np.ndarray, " o"], Int64[np.ndarray, " h"]]:
        """Which pairs a training is on, and which it holds out."""
        repeat, side = divmod(number, 2)
        own = (self.sides[repeat] == side) & self.trained_on
        return np.flatnonzero(own), np.flatnonzero(self.sides[repeat] != side)

    def start(self, number: int) -> Training:
        """A training before its first step."""
        own, _ = self.rows(number)
        return Training(
            self.pairs.subset(own),
            self.training,
            n_steps=self.schedule,
            seed=int(self.seeds[number]),
        )

    def start_together(self, numbers: Sequence[int]) -> StackedTraining:
        """Trainings before their first step."""
        runs = [Run(int(self.seeds[number]), self.rows(number)[0]) for number in numbers]
        return StackedTraining(self.pairs, self.training, runs, n_steps=self.schedule)

    def losses_of_halves(
        self, number: int, models: Sequence[Parameters], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, " h"], Float[np.ndarray, " o"]]:
        """What a model says of the half that it holds out, and of its own."""
        own, held_out = self.rows(number)
        held_out_losses, own_losses = np.zeros(len(held_out)), np.zeros(len(own))
        for parameters in models:
            for rows, losses in ((held_out, held_out_losses), (own, own_losses)):
                losses += self.losses(parameters, rows, rng) / len(models)
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

    def models(self, vectors: Float32[np.ndarray, "c p"]) -> list[Parameters]:
        """A model at its checkpoints, as it is kept in a file."""
        return [from_vector(v, self.pairs.widths, self.pairs.device) for v in vectors]


class _HalfJob(NamedTuple):
    """A model to be trained on a half and asked."""

    number: int
    checkpoints: list[int]
    rng: np.random.Generator  # of its own


class _Blocks(NamedTuple):
    """Some blocks of pairs, to be asked about."""

    rows: list[Int64[np.ndarray, " k"]]
    generators: list[np.random.Generator]  # one a block


class _Trained(NamedTuple):
    """All models, to be asked about any pairs."""

    halves: _Halves
    vectors: list[Float32[np.ndarray, "c p"]]  # each at its checkpoints


def _early_stop(lent: Lent[_Halves], stop_by: int | None) -> int:
    """After how many steps the first model's validation loss is lowest, at least one."""
    (found,) = lent.run("early stopping", _find_stop, [stop_by], unit="run")
    return max(int(found.summary["steps"]), 1)


def _find_stop(stop_by: int | None, files: ShardFiles, halves: _Halves) -> Summary:
    search = halves.start(0)
    n_first = max(1, len(halves.validation_batches) // VALIDATION_SHUFFLES)
    train_until_best(
        search,
        (halves.validation, halves.validation_batches[:n_first]),
        n_reports=N_REPORTS,
        patience=PATIENCE,
        stop_by=stop_by,
    )
    return {"steps": search.n_done}


def _ask(jobs: Sequence[_HalfJob], files: Sequence[ShardFiles], halves: _Halves) -> list[Summary]:
    """Train models, and take the parameters and the validation gradients of each at checkpoints.

    Losses of pairs on the device too; what is in files is read once for all models.
    """
    runs = halves.start_together([job.number for job in jobs])
    models: list[list[Parameters]] = [[] for _ in jobs]
    for checkpoint in jobs[0].checkpoints:
        runs.advance_to(checkpoint)
        for r, of_run in enumerate(models):
            of_run.append(Parameters(*(p.clone() for p in runs.parameters_of(r))))
    return [
        _write_answers(job, of_run, own, halves)
        for job, of_run, own in zip(jobs, models, files, strict=True)
    ]


def _write_answers(
    job: _HalfJob, models: Sequence[Parameters], files: ShardFiles, halves: _Halves
) -> Summary:
    """Write what one model says at its checkpoints."""
    gradients, of_groups = list[np.ndarray](), list[np.ndarray]()
    validation = (halves.validation, halves.validation_batches)
    for model in models:
        parts = [loss_gradient(model, halves.validation, b) for b in halves.part_batches]
        gradients.append(torch.stack(parts).numpy(force=True))
        if halves.groups:
            members = np.stack([group.member for group in halves.groups])
            found = group_loss_gradients(model, *validation, members)
            of_groups.append((found - loss_gradient(model, *validation)).numpy(force=True))
    files.write_npy(".models.npy", np.stack([to_vector(model) for model in models]))
    files.write_npy(".gradients.npy", np.stack(gradients))
    if not isinstance(halves.pairs, StoredPairs):
        # Of a job that is done again after its worker died, the draws are the same.
        losses = halves.losses_of_halves(job.number, models, deepcopy(job.rng))
        for ending, of_half in zip((".held_out.npy", ".own.npy"), losses, strict=True):
            files.write_npy(ending, of_half)
    if halves.groups:
        files.write_npy(".groups.npy", np.stack(of_groups))
        files.write_npy(".validation.npy", mean_pair_losses(models[-1], *validation))
    return {"validation_loss": mean_loss(models[-1], *validation)}


def _losses_by_models(halves: _Halves, made: Sequence[Made]) -> _Losses:
    """What one model after another said, each of both halves in random batches."""
    n, n_repeats = len(halves.trained_on), len(made) // 2
    held_out_losses, own_losses, times_own = np.zeros(n), np.zeros(n), np.zeros(n)
    for number, one in enumerate(made):
        own, held_out = halves.rows(number)
        held_out_losses[held_out] += one.load(".held_out.npy") / n_repeats
        own_losses[own] += one.load(".own.npy")
        times_own[own] += 1
    return _Losses(held_out_losses, own_losses / np.maximum(times_own, 1), times_own)


def _losses_by_blocks(
    lent: Lent[_Halves], made: Sequence[Made], rng: np.random.Generator
) -> _Losses:
    """Random blocks of pairs, read once for all models and put into batches block by block."""
    halves = lent.context
    n, n_repeats = len(halves.trained_on), len(made) // 2
    order = rng.permutation(n)
    blocks = [np.sort(rows) for rows in np.array_split(order, math.ceil(n / ROWS_AT_ONCE))]
    generators = rng.spawn(len(blocks))
    each = math.ceil(len(blocks) / MOST_BLOCK_SHARDS)
    jobs = [
        _Blocks(blocks[start : start + each], generators[start : start + each])
        for start in range(0, len(blocks), each)
    ]
    trained = _Trained(halves, [one.load(".models.npy") for one in made])
    answers = lend(lent.room, "models", trained, halves.pairs.device).run(
        "held out losses",
        _ask_of_blocks,
        jobs,
        unit="pair",
        sizes=[sum(map(len, job.rows)) for job in jobs],
    )
    losses = _Losses(*(np.zeros(n) for _ in _Losses._fields))
    for job, answer in zip(jobs, answers, strict=True):
        rows, found = np.concatenate(job.rows), _Losses(*answer.load(".npy"))
        losses.held_out[rows] = found.held_out / n_repeats
        losses.own[rows] = found.own / np.maximum(found.times_own, 1)
        losses.times_own[rows] = found.times_own
    return losses


def _ask_of_blocks(job: _Blocks, files: ShardFiles, trained: _Trained) -> Summary:
    """Write what all models say of blocks of pairs."""
    answers = [
        np.stack(_block_losses(rows, trained, deepcopy(rng)))
        for rows, rng in zip(job.rows, job.generators, strict=True)
    ]
    files.write_npy(".npy", np.concatenate(answers, axis=1))
    return {}


def _block_losses(
    rows: Int64[np.ndarray, " k"], trained: _Trained, rng: np.random.Generator
) -> _Losses:
    """What all models say of some of the pairs, in batches of these; sums over the models."""
    halves, k = trained.halves, len(rows)
    block, may_be_own = halves.pairs.subset(rows).whole(), halves.trained_on[rows]
    losses = _Losses(*(np.zeros(k) for _ in _Losses._fields))
    for number, vectors in enumerate(trained.vectors):
        repeat, side = divmod(number, 2)
        sides = halves.sides[repeat][rows]
        held_out, own = np.flatnonzero(sides != side), np.flatnonzero((sides == side) & may_be_own)
        losses.times_own[own] += 1
        for parameters in halves.models(vectors):
            projected = projected_pairs(parameters, block)
            for places, sums in ((held_out, losses.held_out), (own, losses.own)):
                if len(places):
                    batches = places[halves.loss_batches(len(places), rng)]
                    found = mean_projected_losses(*projected, batches)[places]
                    sums[places] += found / len(vectors)
    return losses


def _put_together(halves: _Halves, made: Sequence[Made], losses: _Losses, stop: int) -> CrossFit:
    """What all models say of the pairs."""
    models, device = list[HeldOutModel](), halves.pairs.device
    for number, one in enumerate(made):
        _, held_out = halves.rows(number)
        gradients = torch.from_numpy(np.array(one.load(".gradients.npy"))).to(device)
        of_groups: Sequence[Tensor | None] = [None] * len(gradients)
        if halves.groups:
            of_groups = list(torch.from_numpy(np.array(one.load(".groups.npy"))).to(device))
        models += [
            HeldOutModel(number // 2, parameters, gradient, held_out, of_group)
            for parameters, gradient, of_group in zip(
                halves.models(one.load(".models.npy")), gradients, of_groups, strict=True
            )
        ]
    return CrossFit(
        models,
        losses.held_out,
        np.where(losses.times_own > 0, losses.held_out - losses.own, 0.0),
        len(made) // 2,
        stop,
        float(np.mean([one.summary["validation_loss"] for one in made])),
        [group.measured([one.load(".validation.npy") for one in made]) for group in halves.groups],
    )


def _parts(n: int, rng: np.random.Generator) -> list[Int64[np.ndarray, " v"]]:
    """Two random halves of n validation pairs; all of them together where they are few."""
    order = rng.permutation(n)
    return [order] if n < FEWEST_ASKED else np.array_split(order, 2)


def _dealt(
    image_ids: Int64[np.ndarray, " n"], trained_on: Bool[np.ndarray, " n"], rng: np.random.Generator
) -> Int8[np.ndarray, " n"]:
    """0 or 1 for each pair, the same for pairs of one image; both sides have pairs to train on."""
    n_images = int(image_ids.max()) + 1
    used = np.bincount(image_ids, trained_on, minlength=n_images) > 0
    sides = np.empty(n_images, dtype=np.int8)
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
) -> Float[np.ndarray, "q R m"]:
    """What adding each pair would spare the loss of each part of the validation pairs, nats.

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
    n_parts = len(cross.models[0].validation_gradients)
    influences = np.zeros((n_parts, cross.n_repeats, len(index)))
    per_repeat = len(cross.models) // (2 * cross.n_repeats)
    bar = tqdm(cross.models, desc="held-out influence", unit="model", disable=None, leave=False)
    for model in bar:
        at = np.flatnonzero(np.isin(index, model.held_out))
        if len(at) == 0:
            continue
        for part, gradient in enumerate(model.validation_gradients):
            values = batch_loss_influences(
                model.parameters,
                pairs,
                gradient,
                index[at],
                base_weights[at],
                batch_size=batch_size,
                rng=rng,
                n_shuffles=INFLUENCE_SHUFFLES // n_parts,
            )
            influences[part, model.repeat, at] += values / per_repeat
    return influences

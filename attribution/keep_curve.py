"""How much to keep: short trainings on what would be kept at a few shares, asked by held-out pairs.

    m(s): mean over trusted validation pairs of -log(1 + rank of the right answer), both directions

after as many steps at every share, a few seeds side by side: a smooth relative of recall that tells
shares apart with fewer pairs. A cubic in s is fitted to it; validation pairs and seeds are
resampled for its errors. Of the shares whose m is not worse than the best by more than a standard
error the one nearest to the share of pairs that are not faulty is taken: where the curve is flat
it says nothing. Chosen is the middle between that and the share of pairs that are not faulty: short
trainings, and validation pairs that have said what is kept, prefer smaller sets than long ones do.

Beside them stand trainings on as many pairs at random among those that do not look faulty. Where
these are better, agreement and influence sort easy pairs from hard ones and not good from bad, and
nothing but faults is to be dropped by them, and `auto` drops no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from attribution.results import PairInfluence
from attribution.retraining import mean_pair_losses
from attribution.sampling import grown_batch_size
from engine.room import StageRoom
from engine.shards import ShardFiles, Summary
from learner.batches import steps_per_epoch
from learner.config import TrainingConfig
from learner.lending import lend
from learner.model import embed_images, embed_texts, whole_batches
from learner.pairs import PairFeatures, PairTensors, TrainingPairs
from learner.side_by_side import train_in_groups
from learner.stacked import Run
from learner.training import train_side_by_side

SHARES = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
CHECKED = 0.55  # the share at which values are checked, where so many pairs look right
MISSED_ALIKE = 0.15  # shares as far apart as those measured are missed by the polynomial unlike
FEWEST_ASKED = 30  # validation pairs from which the curve has a say in the share to keep
N_SEEDS = 2
MOST_STEPS = 400  # of a training; a quarter of one on 5,000 pairs
MOST_RANKED = 2000  # validation pairs; bounds the time
RECALL_AT = (1, 5, 10)
DEGREE = 3
GRID = np.linspace(SHARES[0], 1.0, 76)
N_RESAMPLED = 400
# What values are expected to gain in m over pairs at random, and how much that differs between data
# sets: what is measured has to outweigh it before they are thought to do harm.
TYPICAL_GAIN = 0.1
LEVEL = 0.95
RANKS, RECALL, LOSS = range(3)  # what is asked of every validation pair after a training


class Kept(NamedTuple):
    """What would be kept at one share."""

    rows: Int64[np.ndarray, " m"]
    weights: Float[np.ndarray, " m"] | None


@dataclass(frozen=True)
class KeepCurve:
    """What is expected of keeping each of g shares of the pairs, those of highest value.

    Recall is in percent: the mean over both directions at 1, 5 and 10 on the trusted validation
    pairs, after short trainings of as many steps each. Losses are in nats.
    """

    shares: Float64[np.ndarray, " g"]
    recall: Float64[np.ndarray, " g"]
    recall_stderr: Float64[np.ndarray, " g"]  # of the difference to the highest point
    loss: Float64[np.ndarray, " g"]
    loss_stderr: Float64[np.ndarray, " g"]  # of the difference to the lowest point
    measured_shares: Float64[np.ndarray, " t"]  # one a training
    measured_recall: Float64[np.ndarray, " t"]
    measured_loss: Float64[np.ndarray, " t"]
    best: dict[str, Any] = field(metadata={"file": "best.json"})
    # `share` chosen by --target_size_ratio auto; the curve is highest from `low` to `high`;
    # `fault_share` as [share, low, high] or None; `check`: recall of values, of `random` pairs that
    # do not look faulty, `difference` in m and its `stderr`; `sorts_difficulty`; `n_steps`,
    # `n_seeds`, `validation_pairs`

    @property
    def share(self) -> float:
        """The share to keep, as far as the held-out pairs tell."""
        return float(self.best["share"])

    @property
    def sorts_difficulty(self) -> bool:
        """Whether values sort easy pairs from hard ones, so that they may drop faults alone."""
        return bool(self.best["sorts_difficulty"])

    def given_away(self, share: float) -> tuple[float, float]:
        """Points of recall below the highest point of the curve, and their standard error."""
        at = int(np.abs(self.shares - share).argmin())
        return float(self.recall.max() - self.recall[at]), float(self.recall_stderr[at])


def measure_keep_curve(
    pairs: TrainingPairs,
    kept_at: Callable[[float], Kept],
    influence: PairInfluence,
    training: TrainingConfig,
    room: StageRoom,
    *,
    rng: np.random.Generator,
) -> KeepCurve:
    """Train on what would be kept at `SHARES`, and on random pairs, and ask the validation pairs.

    Args:
        pairs: n training pairs, and the validation pairs that are asked.
        kept_at: what is kept at a share.
        influence: which pairs look faulty, and how many are.
        training: settings of the models.
        room: where they are trained.
        rng: draws seeds, pairs and resamples.
    """
    n, b = pairs.tensors.n_pairs, training.batch_size
    n_steps = min(training.num_epochs * steps_per_epoch(n, b), MOST_STEPS)
    training_of_all = _grown(training, n, n_steps)
    asked = np.sort(rng.permutation(pairs.validation.n_pairs)[:MOST_RANKED])
    validation = pairs.validation.take(torch.from_numpy(asked).to(pairs.validation.images.device))
    choices = {str(share): kept_at(share) for share in SHARES}
    looks_faulty = influence.looks_faulty
    checked = min(CHECKED, max(float(1 - looks_faulty.mean()), SHARES[0]))
    best = str(checked)
    if best not in choices:  # so many do not look right
        choices[best] = kept_at(checked)
    chance = np.lexsort((rng.random(n), looks_faulty))[: len(choices[best].rows)]
    choices["random"] = Kept(np.sort(chance), None)
    trained = _Trained(
        pairs.tensors,
        choices,
        validation,
        whole_batches(len(asked), b, rng),
        training_of_all,
        n_steps,
    )
    seeds = [int(s) for s in rng.integers(2**31, size=N_SEEDS)]
    jobs = [_Job(name, seed) for name in choices for seed in seeds]
    made = train_in_groups(
        lend(room, "kept", trained, pairs.tensors.device),
        "how much to keep",
        _train_and_ask,
        jobs,
        unit="training",
        alike=lambda job: min(len(choices[job.choice].rows), training_of_all.batch_size),
    )
    found = np.stack([one.load(".npy") for one in made])
    found = found.reshape(len(choices), N_SEEDS, *found.shape[1:])
    by_choice = dict(zip(choices, found, strict=True))
    check = _Check(checked, by_choice[best], by_choice["random"])
    return _curve(found[: len(SHARES)], check, influence.fault_share, n_steps, rng)


def _grown(training: TrainingConfig, n: int, n_steps: int) -> TrainingConfig:
    """With batches that let this many steps see as many of the pairs as possible."""
    size = grown_batch_size(n, training.batch_size, max(n_steps, 1) * 4)
    return replace(training, batch_size=size)


class _Trained(NamedTuple):
    """What all trainings have in common."""

    pairs: PairFeatures
    choices: dict[str, Kept]
    validation: PairTensors
    batches: Int64[np.ndarray, "m b"]
    training: TrainingConfig
    n_steps: int


class _Job(NamedTuple):
    """One training."""

    choice: str
    seed: int


def _train_and_ask(
    jobs: Sequence[_Job], files: Sequence[ShardFiles], given: _Trained
) -> list[Summary]:
    """Train, and write the negative log rank, the recall and the loss of every validation pair."""
    trained = train_side_by_side(
        given.pairs,
        given.training,
        [Run(job.seed, *given.choices[job.choice]) for job in jobs],
        n_steps=given.n_steps,
        n_reports=1,
    )
    for (parameters, _), own in zip(trained, files, strict=True):
        ranks = ranks_of_pairs(
            embed_images(parameters, given.validation.images),
            embed_texts(parameters, given.validation.texts),
        )
        recall = 100 * np.mean([ranks < k for k in RECALL_AT], axis=0).mean(axis=0)
        losses = mean_pair_losses(parameters, given.validation, given.batches)
        own.write_npy(".npy", np.stack([-np.log1p(ranks).mean(axis=0), recall, losses]))
    return [{} for _ in jobs]


def ranks_of_pairs(
    image_embeddings: Float[Tensor, "v d"], text_embeddings: Float[Tensor, "v d"]
) -> Int64[np.ndarray, "2 v"]:
    """How many others come before each image's caption, and before each caption's image."""
    cosines = image_embeddings @ text_embeddings.T
    own = cosines.diagonal()
    return np.stack(
        [
            (~(side < own[:, None])).sum(dim=1).cpu().numpy() - 1  # a tie counts against the query
            for side in (cosines, cosines.T)
        ]
    )


class _Check(NamedTuple):
    """Pairs of highest value and as many at random that look right, as the validation pairs find.

    At a lower share than `CHECKED` where fewer look right, but for the lowest of `SHARES`.
    """

    share: float
    by_value: Float[np.ndarray, "r 3 v"]
    by_chance: Float[np.ndarray, "r 3 v"]


def _curve(
    found: Float[np.ndarray, "s r 3 v"],
    check: _Check,
    fault_share: Sequence[float] | None,
    n_steps: int,
    rng: np.random.Generator,
) -> KeepCurve:
    """The fitted curve, its errors by resampling, and the share to keep.

    What is shown of recall and loss has errors that hold how far the polynomial misses them, too.
    """
    shares, measured = np.array(SHARES), found.mean(axis=(1, 3))  # (s,), (s, 3)
    fit = _polynomial_fit(shares, GRID)
    means = fit @ measured  # (g, 3)
    resampled = fit @ _resampled_means(found, rng)  # (B, g, 3)
    bests = means.argmax(axis=0)
    bests[LOSS] = means[:, LOSS].argmin()
    errors = np.std(resampled - resampled[:, bests, np.arange(len(bests))][:, None], axis=0)
    misses = measured - _polynomial_fit(shares, shares) @ measured
    misfit = np.sqrt((misses**2).sum(axis=0) / (len(shares) - DEGREE - 1))
    # Of a difference: what the polynomial misses next to the best share it misses there too.
    apart = 1 - np.exp(-(((GRID[:, None] - GRID[bests]) / MISSED_ALIKE) ** 2))
    with_misfit = np.sqrt(errors**2 + apart * misfit**2)
    gain = (check.by_value - check.by_chance).mean(axis=0)  # (3, v): over seeds
    difference, stderr = float(gain[RANKS].mean()), float(gain[RANKS].std() / len(gain[0]) ** 0.5)
    is_asked = found.shape[3] >= FEWEST_ASKED
    sorts_difficulty = is_asked and difference < -(stderr**2) / TYPICAL_GAIN
    unfaulty = 1.0 if fault_share is None else 1 - fault_share[0]
    if not is_asked:
        surely = 0.0 if fault_share is None else fault_share[1]
        share = round(float(np.clip(1 - surely, GRID[0], 1.0)), 2)
    elif sorts_difficulty:
        share = round(float(np.clip(unfaulty, GRID[0], 1.0)), 2)
    else:
        share = chosen_share(means[:, RANKS], errors[:, RANKS], unfaulty)
    best, tops = float(GRID[bests[RANKS]]), GRID[resampled[:, :, RANKS].argmax(axis=1)]
    low, high = np.quantile(tops, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return KeepCurve(
        shares=GRID,
        recall=means[:, RECALL],
        recall_stderr=with_misfit[:, RECALL],
        loss=means[:, LOSS],
        loss_stderr=with_misfit[:, LOSS],
        measured_shares=np.repeat(shares, found.shape[1]),
        measured_recall=found[:, :, RECALL].mean(axis=2).reshape(-1),
        measured_loss=found[:, :, LOSS].mean(axis=2).reshape(-1),
        best={
            "share": share,
            "low": min(low, best),
            "high": max(high, best),
            "fault_share": None if fault_share is None else [float(x) for x in fault_share],
            "check": {
                "share": check.share,
                "recall": float(check.by_value[:, RECALL].mean()),
                "random": float(check.by_chance[:, RECALL].mean()),
                "difference": difference,
                "stderr": stderr,
            },
            "sorts_difficulty": sorts_difficulty,
            "n_steps": n_steps,
            "n_seeds": found.shape[1],
            "validation_pairs": found.shape[3],
        },
    )


def chosen_share(
    means: Float[np.ndarray, " g"], errors: Float[np.ndarray, " g"], unfaulty: float | None
) -> float:
    """Between that of unfaulty pairs and the nearest to it that may be the best of `GRID`.

    Args:
        means: the higher the better.
        errors: standard errors of how much the best has more.
        unfaulty: share of pairs that are not faulty; None: nothing is known, and most is kept.
    """
    close = np.flatnonzero(means >= means.max() - errors)
    wanted = float(np.clip(1.0 if unfaulty is None else unfaulty, GRID[0], 1.0))
    nearest = float(GRID[close][np.abs(GRID[close] - wanted).argmin()])
    return round((nearest + wanted) / 2, 2)


def _polynomial_fit(
    shares: Float[np.ndarray, " s"], places: Float[np.ndarray, " p"]
) -> Float64[np.ndarray, "p s"]:
    """What takes values at the shares to their least-squares polynomial at some places."""
    at, on = (np.vander(x, DEGREE + 1) for x in (shares, places))
    return np.asarray(on @ np.linalg.pinv(at))


def _resampled_means(
    found: Float[np.ndarray, "s r 3 v"], rng: np.random.Generator
) -> Float64[np.ndarray, "B s 3"]:
    """Means over resampled validation pairs and seeds, the same for all shares."""
    n_seeds, n = found.shape[1], found.shape[3]
    pairs = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLED) / n
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=N_RESAMPLED) / n_seeds
    of_seeds = np.einsum("srmv,bv->bsrm", found, pairs, optimize=True)
    return np.asarray(np.einsum("bsrm,br->bsm", of_seeds, seeds))

"""The reference training once more, under other pair weights: the ground truth of influence.

Seeds and batches are paired: only the weights differ, and a weight of zero deletes a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from tqdm import tqdm

from learner.model import Parameters, batch_blocks, pair_losses, similarities
from learner.pairs import PairFeatures, PairTensors
from learner.training import Training, TrainingConfig, side_by_side


@dataclass(frozen=True)
class Retraining:
    """Everything about the reference training but its seed and its pair weights."""

    pairs: PairFeatures
    training: TrainingConfig
    n_steps: int  # of the schedule
    stop_after: int  # early stopping: steps that are taken
    validation: PairTensors
    validation_batches: Int64[np.ndarray, "n_batches b"]
    carry_over: bool = False  # see `Training`

    def losses(
        self, weightings: Sequence[Float[np.ndarray, " n"]], seeds: Sequence[int], description: str
    ) -> Float64[np.ndarray, "w m"]:
        """Loss of every validation pair after training with each of the weightings, nats.

        Args:
            weightings: weights of the n training pairs; zero leaves a pair out.
            seeds: one a weighting.
            description: of the progress bar.
        """
        with side_by_side(self.pairs.device) as pool:
            return collect_losses(self.submit(pool, weightings, seeds), description)

    def submit(
        self,
        pool: ThreadPoolExecutor,
        weightings: Sequence[Float[np.ndarray, " n"]],
        seeds: Sequence[int],
    ) -> list[Future[Float64[np.ndarray, " m"]]]:
        """The trainings that `losses` waits for, left to a pool of `side_by_side`."""
        return [
            pool.submit(self._losses, weights, seed)
            for weights, seed in zip(weightings, seeds, strict=True)
        ]

    def start(self, weights: Float[np.ndarray, " n"], seed: int) -> Training:
        """The training with these weights before its first step."""
        return Training(
            self.pairs,
            self.training,
            n_steps=self.n_steps,
            seed=seed,
            sample_weights=weights,
            carry_over=self.carry_over,
        )

    def validation_losses(self, run: Training) -> Float64[np.ndarray, " m"]:
        """Loss of every validation pair as the run stands, nats."""
        return mean_pair_losses(run.parameters, self.validation, self.validation_batches)

    def _losses(self, weights: np.ndarray, seed: int) -> Float64[np.ndarray, " m"]:
        run = self.start(weights, seed)
        run.advance_to(self.stop_after)
        return self.validation_losses(run)


def collect_losses(
    trainings: Sequence[Future[Float64[np.ndarray, " m"]]], description: str
) -> Float64[np.ndarray, "w m"]:
    """The losses of trainings that a pool was given, in their order."""
    done = tqdm(trainings, desc=description, unit="training", disable=None, leave=False)
    return np.stack([training.result() for training in done])


def mean_pair_losses(
    parameters: Parameters, pairs: PairFeatures, batches: Int64[np.ndarray, "n_batches b"]
) -> Float64[np.ndarray, " m"]:
    """Mean loss of every pair over the fixed batches that hold it, nats; NaN where none does.

    Their mean, each pair weighted by the batches that hold it, is the loss over the batches.
    """
    totals, counts = np.zeros(pairs.n_pairs), np.zeros(pairs.n_pairs)
    with torch.no_grad():
        for block in batch_blocks(batches, pairs.device):
            index = block.cpu().numpy()
            losses = pair_losses(similarities(parameters, pairs.take(block)))
            np.add.at(totals, index, losses.double().cpu().numpy())
            np.add.at(counts, index, 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(totals / counts, dtype=np.float64)

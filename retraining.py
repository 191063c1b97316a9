"""The reference training once more, under other pair weights: the ground truth of influence.

Seeds and batches are paired: only the weights differ, and a weight of zero deletes a pair.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from tqdm import tqdm

from model import PairTensors, Parameters, batch_blocks, pair_losses, similarities
from training import Training, TrainingConfig, one_cpu_thread


@dataclass(frozen=True)
class Retraining:
    """Everything about the reference training but its seed and its pair weights."""

    pairs: PairTensors
    training: TrainingConfig
    n_steps: int  # of the schedule
    stop_after: int  # early stopping: steps that are taken
    validation: PairTensors
    validation_batches: Int64[np.ndarray, "n_batches b"]

    def losses(
        self, weightings: Sequence[Float[np.ndarray, " n"]], seeds: Sequence[int], description: str
    ) -> Float64[np.ndarray, "w m"]:
        """Loss of every validation pair after training with each of the weightings, nats.

        Trainings run side by side on the CPU's cores, one thread each.

        Args:
            weightings: weights of the n training pairs; zero leaves a pair out.
            seeds: one a weighting.
            description: of the progress bar.
        """
        on_cpu = self.pairs.images.device.type == "cpu"
        workers = min(os.cpu_count() or 1, len(weightings)) if on_cpu else 1
        with one_cpu_thread(), ThreadPoolExecutor(workers) as pool:
            done = tqdm(
                pool.map(self._losses, weightings, seeds),
                total=len(weightings),
                desc=description,
                unit="training",
                disable=None,
                leave=False,
            )
            return np.stack(list(done))

    def _losses(self, weights: np.ndarray, seed: int) -> Float64[np.ndarray, " m"]:
        torch.set_num_threads(1)  # a setting of the thread
        run = Training(
            self.pairs, self.training, n_steps=self.n_steps, seed=seed, sample_weights=weights
        )
        for _ in range(self.stop_after):  # `advance_to` would set other threads' thread count
            run.advance()
        return validation_pair_losses(run.parameters, self.validation, self.validation_batches)


def validation_pair_losses(
    parameters: Parameters, pairs: PairTensors, batches: Int64[np.ndarray, "n_batches b"]
) -> Float64[np.ndarray, " m"]:
    """Mean loss of every pair over the fixed batches that hold it, nats; NaN where none does.

    Their mean, each pair weighted by the batches that hold it, is the validation loss.
    """
    totals, counts = np.zeros(len(pairs.images)), np.zeros(len(pairs.images))
    with torch.no_grad():
        for block in batch_blocks(batches, pairs.images.device):
            index = block.cpu().numpy()
            losses = pair_losses(similarities(parameters, pairs.take(block)))
            np.add.at(totals, index, losses.double().cpu().numpy())
            np.add.at(counts, index, 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(totals / counts, dtype=np.float64)

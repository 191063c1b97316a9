"""The reference training once more, under other pair weights: the ground truth of influence.

Seeds and batches are paired: only the weights differ, and a weight of zero deletes a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from engine.shards import ShardFiles, Summary
from learner.config import TrainingConfig
from learner.lending import Lent
from learner.model import Parameters, batch_blocks, embed_images, embed_texts, pair_losses
from learner.pairs import PairFeatures, PairTensors, blocks_of_pairs
from learner.side_by_side import train_in_groups
from learner.stacked import Run, StackedTraining
from learner.training import Training


class Data(NamedTuple):
    """What influence is estimated on: the pairs that are trained on, and the held-out pairs."""

    pairs: PairFeatures
    clusters: Int64[np.ndarray, " n"]  # 0 to K - 1, each with a pair
    validation: PairTensors
    validation_batches: Int64[np.ndarray, "m b"]
    weights: Float[np.ndarray, " n"]  # of the pairs, where derivatives are taken


@dataclass(frozen=True)
class Retraining:
    """Everything about the reference training but its data, its seed and its pair weights."""

    training: TrainingConfig
    n_steps: int  # of the schedule
    stop_after: int  # early stopping: steps that are taken
    carry_over: bool = False  # see `Training`

    def start(self, data: Data, seed: int) -> Training:
        """The training before its first step."""
        return Training(
            data.pairs,
            self.training,
            n_steps=self.n_steps,
            seed=seed,
            sample_weights=data.weights,
            carry_over=self.carry_over,
        )

    def losses(
        self,
        lent: Lent[Data],
        factors: Float[np.ndarray, "w K"],
        seeds: Sequence[int],
        name: str,
    ) -> Float64[np.ndarray, "w m"]:
        """Loss of every validation pair after training with each of the weightings, nats.

        Args:
            lent: what is trained on, and where.
            factors: of the clusters' weights in each training; zero leaves a cluster out.
            seeds: one a weighting.
            name: of what is done.
        """
        jobs = [
            RetrainingJob(self, seed, of_clusters)
            for seed, of_clusters in zip(seeds, factors, strict=True)
        ]
        made = train_in_groups(lent, name, write_losses, jobs, unit="training")
        return np.stack([np.array(one.load(".npy")) for one in made])


class RetrainingJob(NamedTuple):
    """One training."""

    retraining: Retraining
    seed: int
    factors: Float[np.ndarray, " K"] | None = None  # of the clusters' weights; None: as they are


def start_together(jobs: Sequence[RetrainingJob], data: Data) -> StackedTraining:
    """Trainings that differ in their seeds and weights, before their first step."""
    retraining = jobs[0].retraining
    runs = [
        Run(seed, None, data.weights if factors is None else data.weights * factors[data.clusters])
        for _, seed, factors in jobs
    ]
    return StackedTraining(
        data.pairs,
        retraining.training,
        runs,
        n_steps=retraining.n_steps,
        carry_over=retraining.carry_over,
    )


def write_losses(
    jobs: Sequence[RetrainingJob], files: Sequence[ShardFiles], data: Data
) -> list[Summary]:
    """Train, and write the loss of every validation pair, nats."""
    runs = start_together(jobs, data)
    runs.advance_to(jobs[0].retraining.stop_after)
    for r, own in enumerate(files):
        own.write_npy(".npy", validation_losses(runs.parameters_of(r), data))
    return [{} for _ in jobs]


def validation_losses(parameters: Parameters, data: Data) -> Float64[np.ndarray, " m"]:
    """Loss of every validation pair, nats; NaN where no batch holds it."""
    return mean_pair_losses(parameters, data.validation, data.validation_batches)


def mean_pair_losses(
    parameters: Parameters, pairs: PairFeatures, batches: Int64[np.ndarray, "n_batches b"]
) -> Float64[np.ndarray, " m"]:
    """Mean loss of every pair over the fixed batches that hold it, nats; NaN where none does.

    Their mean, each pair weighted by the batches that hold it, is the loss over the batches.
    """
    parts = [projected_pairs(parameters, part) for _, part in blocks_of_pairs(pairs)]
    images, texts = (torch.cat(side) for side in zip(*parts, strict=True))
    return mean_projected_losses(images, texts, batches)


def projected_pairs(parameters: Parameters, pairs: PairTensors) -> tuple[Tensor, Tensor]:
    """Unit embeddings of both sides, the images' times the logit scale: logits are products."""
    images = parameters.log_scale.exp() * embed_images(parameters, pairs.images)
    return images, embed_texts(parameters, pairs.texts)


def mean_projected_losses(
    images: Tensor, texts: Tensor, batches: Int64[np.ndarray, "n_batches b"]
) -> Float64[np.ndarray, " m"]:
    """`mean_pair_losses` of pairs that have been through the model; see `projected_pairs`."""
    totals = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    counts = torch.zeros_like(totals)
    with torch.no_grad():
        for index in batch_blocks(batches, images.device):
            losses = pair_losses(images[index] @ texts[index].transpose(-1, -2)).double()
            totals.index_add_(0, index.reshape(-1), losses.reshape(-1))
            counts.index_add_(0, index.reshape(-1), torch.ones_like(losses).reshape(-1))
    return np.asarray((totals / counts).cpu().numpy())

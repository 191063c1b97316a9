"""Loss of the reference model less that of a model of the held-out pairs: RHO-loss, JEST."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from attribution.retraining import mean_pair_losses
from learner.config import TrainingConfig
from learner.model import Parameters, shuffled_batches, whole_batches
from learner.pairs import PairTensors, TrainingPairs
from learner.training import Training, train_until_best
from rivals.given import Reference

N_SHUFFLES = 4  # batch compositions that a pair's losses are averaged over
MOST_STEPS = 600  # of the schedule of the model of the held-out pairs
N_REPORTS, PATIENCE = 20, 5  # early stopping
HELD_BACK = 0.2  # of the held-out images, those that say when to stop
FEWEST_IMAGES = 5  # of which some can be held back


def held_out_loss(
    pairs: TrainingPairs, reference: Reference | None, *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Reducible loss of every pair, nats: high where it is not learnt yet and can be.

        l_i(learner) - l_i(held out)        Mindermann et al. (2022), arXiv 2206.07137

    with l_i the contrastive loss of the pair in a random batch, the same batches for both models,
    as JEST has it for pairs (Evans et al. 2024, arXiv 2406.17711). The learner is stage 2's
    reference model, the other is trained from scratch on the held-out pairs alone. Both papers
    score candidates again and again while the learner trains; a subset is chosen once, by the
    model at the end of its training. JEST draws its batches jointly; here each pair is averaged
    over `N_SHUFFLES` batch compositions.
    """
    assert reference is not None, "select_baseline sees to it"
    held_out = held_out_model(pairs.validation, reference, rng=rng)
    models, n = (reference.parameters, held_out), len(pairs.indices)
    losses = np.zeros((2, n))
    with tqdm(
        total=2 * N_SHUFFLES * n, desc="losses", unit="pair", unit_scale=True, disable=None
    ) as bar:
        for _ in range(N_SHUFFLES):
            batches = whole_batches(n, reference.batch_size, rng)
            for own, model in zip(losses, models, strict=True):
                own += mean_pair_losses(model, pairs.tensors, batches) / N_SHUFFLES
                bar.update(n)
    return np.asarray(losses[0] - losses[1])


def held_out_model(
    validation: PairTensors, reference: Reference, *, rng: np.random.Generator
) -> Parameters:
    """A model as wide as the reference model, trained on the held-out pairs alone.

    A fifth of their images says after how many steps to stop; then all pairs are trained on for as
    many. Where the images are too few for that, all pairs say when to stop.
    """
    config = TrainingConfig(
        embed_dim=reference.parameters.image_map.shape[1], batch_size=max(2, reference.batch_size)
    )
    # The same features are the same image: its captions are on one side.
    features = validation.images.cpu().numpy()
    images = np.unique(features, axis=0, return_inverse=True)[1].reshape(-1)
    n_images, seed = int(images.max()) + 1, int(rng.integers(2**31))
    n_back = math.ceil(HELD_BACK * n_images) if n_images >= FEWEST_IMAGES else 0
    is_back = np.isin(images, rng.permutation(n_images)[:n_back])
    kept, back = (np.flatnonzero(rows) for rows in (~is_back, is_back | (n_back == 0)))
    search = Training(validation.subset(kept), config, n_steps=MOST_STEPS, seed=seed)
    judges = validation.subset(back), shuffled_batches(len(back), config.batch_size, rng)
    train_until_best(search, judges, n_reports=N_REPORTS, patience=PATIENCE)
    final = Training(validation, config, n_steps=MOST_STEPS, seed=seed)
    final.advance_to(search.n_done)
    return final.parameters

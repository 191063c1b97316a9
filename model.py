"""The dual encoder that is trained, its weighted contrastive loss and its training loop.

Two linear maps take frozen tower features to a joint space of unit vectors; a learned logit
scale turns their cosines into logits. The loss is CLIP's (Radford et al. 2021, arXiv 2103.00020)
with a weight per pair that acts on the pair both as a positive and as a negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Float, Int64
from torch import Tensor

from settings import Settings, setting

INITIAL_LOGIT_SCALE = 1 / 0.07  # CLIP's
MAX_LOG_SCALE = math.log(100.0)  # CLIP's cap on the logit scale
ROWS_AT_ONCE = 8192  # pairs per vectorised block of batches; bounds memory


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How a dual encoder is trained, the reference model and every compared one alike."""

    embed_dim: int = setting(256, "width of the trained joint space", at_least=2)
    num_epochs: int = setting(10, "training epochs over the full data", at_least=1)
    batch_size: int = setting(32, "pairs per training and validation batch", at_least=2)
    learning_rate: float = setting(1e-3, "peak AdamW learning rate (cosine schedule)", above=0)
    weight_decay: float = setting(1e-5, "AdamW weight decay", at_least=0)


class Parameters(NamedTuple):
    """Everything that is trained; a pytree, so `torch.func` transforms take it as it is."""

    image_map: Tensor  # (d_i, e)
    text_map: Tensor  # (d_t, e)
    log_scale: Tensor  # ()


class PairTensors(NamedTuple):
    """Aligned features of pairs on a device: row i of both is pair i."""

    images: Tensor  # (n, d_i)
    texts: Tensor  # (n, d_t)

    def take(self, index: Tensor) -> PairTensors:
        """The pairs at `index`, whose shape replaces the first axis."""
        return PairTensors(self.images[index], self.texts[index])


class FeatureScaling(NamedTuple):
    """Fixed affine map in front of the model: centre, then divide by the mean distance.

    Fitted once on all training pairs and shared by every model, so that methods differ in the
    pairs they train on and in nothing else.
    """

    image_mean: np.ndarray  # (d_i,)
    image_scale: float
    text_mean: np.ndarray  # (d_t,)
    text_scale: float

    def images(self, features: np.ndarray, device: torch.device) -> Tensor:
        """Scaled image features as a float32 tensor, (m, d_i)."""
        return _scaled(features, self.image_mean, self.image_scale, device)

    def texts(self, features: np.ndarray, device: torch.device) -> Tensor:
        """Scaled text features as a float32 tensor, (m, d_t)."""
        return _scaled(features, self.text_mean, self.text_scale, device)

    def pairs(
        self, image_features: np.ndarray, text_features: np.ndarray, device: torch.device
    ) -> PairTensors:
        """Both sides of aligned pairs."""
        return PairTensors(self.images(image_features, device), self.texts(text_features, device))


def fit_feature_scaling(
    image_features: Float[np.ndarray, "n d_i"], text_features: Float[np.ndarray, "n d_t"]
) -> FeatureScaling:
    """The scaling that centres these features and gives them a root mean square norm of one."""
    image_mean, image_scale = _mean_and_scale(image_features)
    text_mean, text_scale = _mean_and_scale(text_features)
    return FeatureScaling(image_mean, image_scale, text_mean, text_scale)


def _mean_and_scale(features: np.ndarray) -> tuple[np.ndarray, float]:
    mean = features.mean(axis=0, dtype=np.float64)
    variance = features.var(axis=0, dtype=np.float64).sum()
    return mean.astype(np.float32), float(np.sqrt(variance)) or 1.0


def _scaled(features: np.ndarray, mean: np.ndarray, scale: float, device: torch.device) -> Tensor:
    return torch.from_numpy((features - mean) / np.float32(scale)).to(device)


def initial_parameters(
    d_image: int, d_text: int, embed_dim: int, *, seed: int, device: torch.device
) -> Parameters:
    """Gaussian maps of unit gain and CLIP's initial logit scale; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    image_map = torch.randn(d_image, embed_dim, generator=generator) / math.sqrt(d_image)
    text_map = torch.randn(d_text, embed_dim, generator=generator) / math.sqrt(d_text)
    log_scale = torch.tensor(math.log(INITIAL_LOGIT_SCALE))
    return Parameters(image_map.to(device), text_map.to(device), log_scale.to(device))


def embed_images(parameters: Parameters, images: Tensor) -> Tensor:
    """Unit joint embeddings of scaled image features, (..., d_i) -> (..., e)."""
    return F.normalize(images @ parameters.image_map, dim=-1)


def embed_texts(parameters: Parameters, texts: Tensor) -> Tensor:
    """Unit joint embeddings of scaled text features, (..., d_t) -> (..., e)."""
    return F.normalize(texts @ parameters.text_map, dim=-1)


def similarities(parameters: Parameters, batch: PairTensors) -> Tensor:
    """Logits s_ij = scale * <f(v_i), g(t_j)> of batches of pairs, (..., b, b)."""
    scale = parameters.log_scale.exp()
    images, texts = embed_images(parameters, batch.images), embed_texts(parameters, batch.texts)
    return scale * images @ texts.transpose(-1, -2)


def pair_losses(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Symmetric contrastive loss of every pair among the others of its batch.

        l_i = 1/2 [ log sum_j w_j exp(s_ij) + log sum_j w_j exp(s_ji) - 2 s_ii ]      design 4

    No reduction. Negatives: the other pairs of the batch, each counted `weights` times; a weight
    of zero removes the pair from every denominator exactly.

    Args:
        logits: (..., b, b).
        weights: (..., b), >= 0 and not all zero in a batch; None is all ones.

    Returns:
        (..., b) nats.
    """
    # log 0 = -inf drops a column without the denormals that a tiny constant would make.
    bias = 0.0 if weights is None else weights.log().unsqueeze(-2)
    image_to_text = torch.logsumexp(logits + bias, dim=-1)
    text_to_image = torch.logsumexp(logits.transpose(-1, -2) + bias, dim=-1)
    return (image_to_text + text_to_image) / 2 - logits.diagonal(dim1=-2, dim2=-1)


def contrastive_loss(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of `pair_losses` over each batch: sum_i w_i l_i / sum_i w_i, (...) nats."""
    losses = pair_losses(logits, weights)
    if weights is None:
        return losses.mean(dim=-1)
    return torch.where(weights > 0, weights * losses, 0.0).sum(-1) / weights.sum(-1)


def shuffled_batches(
    n: int, batch_size: int, rng: np.random.Generator
) -> Int64[np.ndarray, "n_batches b"]:
    """One epoch: a permutation of the pairs cut into full batches, the remainder left out.

    A set smaller than a batch is one batch of all its pairs.
    """
    b = min(batch_size, n)
    n_batches = n // b
    return rng.permutation(n)[: n_batches * b].reshape(n_batches, b)


def batch_blocks(batches: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """The batches in blocks of at most `ROWS_AT_ONCE` pairs, each (n_batches, b) on `device`."""
    per_block = max(1, ROWS_AT_ONCE // batches.shape[1])
    for start in range(0, len(batches), per_block):
        yield torch.from_numpy(batches[start : start + per_block]).to(device)


def mean_loss(parameters: Parameters, pairs: PairTensors, batches: np.ndarray) -> float:
    """Mean contrastive loss over fixed batches, nats."""
    total = 0.0
    with torch.no_grad():
        for block in batch_blocks(batches, pairs.images.device):
            total += float(contrastive_loss(similarities(parameters, pairs.take(block))).sum())
    return total / len(batches)


class LossHistory(NamedTuple):
    """Loss as training went on, one entry a reporting step."""

    step: list[int]
    train_loss: list[float]  # mean since the last report, nats
    validation_loss: list[float]  # nats


def train(
    pairs: PairTensors,
    config: TrainingConfig,
    *,
    n_steps: int,
    seed: int,
    sample_weights: np.ndarray | None = None,
    validation: tuple[PairTensors, np.ndarray] | None = None,
    n_reports: int = 10,
    keep_best: bool = False,
) -> tuple[Parameters, LossHistory]:
    """A dual encoder trained from scratch for `n_steps` steps with AdamW and a cosine schedule.

    Args:
        pairs: training pairs, scaled features.
        config: width, batch size, learning rate, weight decay.
        n_steps: optimiser steps; epochs follow one another, each newly shuffled.
        seed: decides the initial parameters and the order of the pairs.
        sample_weights: (n,) positive weights in the loss; None is all ones.
        validation: pairs and their fixed batches, whose loss is recorded.
        n_reports: how often losses are recorded.
        keep_best: return the parameters of the report with the lowest validation loss (early
            stopping) in place of the last ones.

    Returns:
        The trained parameters (detached) and the losses on the way.

    Raises:
        ValueError: `keep_best` without validation pairs.
    """
    if keep_best and validation is None:
        raise ValueError("keep_best needs validation pairs")
    with _one_cpu_thread():
        return _train(
            pairs, config, n_steps, seed, sample_weights, validation, n_reports, keep_best
        )


@contextmanager
def _one_cpu_thread() -> Iterator[None]:
    """A step on a batch is too small to share: threads cost more than they bring."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _train(
    pairs: PairTensors,
    config: TrainingConfig,
    n_steps: int,
    seed: int,
    sample_weights: np.ndarray | None,
    validation: tuple[PairTensors, np.ndarray] | None,
    n_reports: int,
    keep_best: bool,
) -> tuple[Parameters, LossHistory]:
    device = pairs.images.device
    rng = np.random.default_rng(seed)
    parameters = Parameters(
        *(
            p.requires_grad_()
            for p in initial_parameters(
                pairs.images.shape[1],
                pairs.texts.shape[1],
                config.embed_dim,
                seed=seed,
                device=device,
            )
        )
    )
    weights = None
    if sample_weights is not None:
        weights = torch.from_numpy(sample_weights.astype(np.float32)).to(device)
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters[:2], "weight_decay": config.weight_decay},
            {"params": parameters[2:], "weight_decay": 0.0},  # a temperature has no size to shrink
        ],
        lr=config.learning_rate,
        fused=device.type in ("cpu", "cuda"),
    )
    history = LossHistory([], [], [])
    reports = {math.ceil(n_steps * (k + 1) / n_reports) for k in range(n_reports)}
    best = parameters
    running, since = torch.zeros((), device=device), 0
    for step, index in enumerate(_training_batches(len(pairs.images), config, n_steps, rng), 1):
        learning_rate = config.learning_rate * (1 + math.cos(math.pi * (step - 1) / n_steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        batch = torch.from_numpy(index).to(device)
        logits = similarities(parameters, pairs.take(batch))
        loss = contrastive_loss(logits, None if weights is None else weights[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            parameters.log_scale.clamp_(max=MAX_LOG_SCALE)
            running += loss
            since += 1
        if step in reports:
            history.step.append(step)
            history.train_loss.append(float(running) / since)
            if validation is not None:
                history.validation_loss.append(mean_loss(parameters, *validation))
            running.zero_()
            since = 0
            if keep_best and history.validation_loss[-1] == min(history.validation_loss):
                best = Parameters(*(p.detach().clone() for p in parameters))
    return best if keep_best else Parameters(*(p.detach() for p in parameters)), history


def _training_batches(
    n: int, config: TrainingConfig, n_steps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    done = 0
    while True:
        for index in shuffled_batches(n, config.batch_size, rng):
            if done == n_steps:
                return
            yield index
            done += 1


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in one epoch over `n` pairs, at least one."""
    return max(1, n // batch_size)

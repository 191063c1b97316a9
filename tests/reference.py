"""Model, loss and curvature once more, in plain NumPy float64: the tests' other channel.

Nothing here is shared with the code under test: probabilities are summed in loops and
derivatives are central differences. Small random problems for several test files are here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from learner.model import Parameters
from learner.pairs import PairTensors


class Problem(NamedTuple):
    """A tiny dual encoder around one parameter vector."""

    images: np.ndarray  # (n, d_i)
    texts: np.ndarray  # (n, d_t)
    theta: np.ndarray  # (p,) image map, text map, log scale
    embed_dim: int

    def logits(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """s_ij = scale * <f(v_i), g(t_j)>, (b, b)."""
        cut = self.images.shape[1] * self.embed_dim
        images = self.images[rows] @ theta[:cut].reshape(-1, self.embed_dim)
        texts = self.texts[rows] @ theta[cut:-1].reshape(-1, self.embed_dim)
        images = images / np.sqrt((images**2).sum(axis=1, keepdims=True))
        texts = texts / np.sqrt((texts**2).sum(axis=1, keepdims=True))
        return np.asarray(math.exp(theta[-1]) * images @ texts.T)

    def losses(
        self, theta: np.ndarray, rows: np.ndarray, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Every pair's own loss in the batch of these rows, (b,)."""
        return pair_losses(self.logits(theta, rows), weights)

    def loss_gradients(self, rows: np.ndarray) -> np.ndarray:
        """Gradient of every pair's own loss in the batch of these rows, (b, p)."""
        return central_difference(partial(self.losses, rows=rows), self.theta)

    def loss(self, theta: np.ndarray, rows: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Weighted contrastive loss of the batch of these rows."""
        weights = np.ones(len(rows)) if weights is None else weights
        return float(weights @ self.losses(theta, rows, weights) / weights.sum())

    def pairs(self, dtype: torch.dtype = torch.float64) -> PairTensors:
        """The features as the code under test takes them."""
        return PairTensors(
            torch.from_numpy(self.images).to(dtype), torch.from_numpy(self.texts).to(dtype)
        )

    def parameters(self, dtype: torch.dtype = torch.float64) -> Parameters:
        """The parameters as the code under test takes them."""
        cut = self.images.shape[1] * self.embed_dim
        theta = torch.from_numpy(self.theta).to(dtype)
        return Parameters(
            theta[:cut].reshape(-1, self.embed_dim),
            theta[cut:-1].reshape(-1, self.embed_dim),
            theta[-1],
        )


def random_problem(
    n: int, *, seed: int, d_image: int = 3, d_text: int = 4, embed_dim: int = 2
) -> Problem:
    """Texts that partly follow their images; parameters away from any optimum."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, d_image))
    texts = images @ rng.normal(size=(d_image, d_text)) + 0.5 * rng.normal(size=(n, d_text))
    theta = rng.normal(size=(d_image + d_text) * embed_dim + 1)
    theta[-1] = math.log(3.0)
    return Problem(images, texts, theta, embed_dim)


def pair_losses(logits: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """1/2 [log sum_j w_j exp(s_ij) + log sum_j w_j exp(s_ji) - 2 s_ii], (b,)."""
    b = len(logits)
    w = np.ones(b) if weights is None else weights
    losses = []
    for i in range(b):
        row = math.log(sum(w[j] * math.exp(logits[i, j]) for j in range(b)))
        column = math.log(sum(w[j] * math.exp(logits[j, i]) for j in range(b)))
        losses.append((row + column - 2 * logits[i, i]) / 2)
    return np.array(losses)


def central_difference(
    function: Callable[[np.ndarray], np.ndarray | float], point: np.ndarray, *, step: float = 1e-5
) -> np.ndarray:
    """d function / d point by central differences, (..., p); good to about 1e-9."""
    columns = []
    for i in range(len(point)):
        shift = np.zeros_like(point)
        shift[i] = step
        columns.append(
            (np.asarray(function(point + shift)) - np.asarray(function(point - shift))) / (2 * step)
        )
    return np.stack(columns, axis=-1)


def logit_curvature(logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Second derivative of the batch's loss with respect to its logits, (b * b, b * b).

    Pair i brings w_i / (2 W) times diag(p) - p p^T over the logits of its row, with the weighted
    softmax p of that row, and the same over those of its column.
    """
    b = len(logits)
    curvature = np.zeros((b, b, b, b))
    for i in range(b):
        factor = weights[i] / (2 * weights.sum())
        row = weights * np.exp(logits[i])
        row /= row.sum()
        column = weights * np.exp(logits[:, i])
        column /= column.sum()
        for j in range(b):
            for k in range(b):
                curvature[i, j, i, k] += factor * (row[j] * (j == k) - row[j] * row[k])
                curvature[j, i, k, i] += factor * (column[j] * (j == k) - column[j] * column[k])
    return curvature.reshape(b * b, b * b)


def gauss_newton(problem: Problem, batches: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Dense J^T H J of the mean loss over batches, (p, p)."""
    p = len(problem.theta)
    total = np.zeros((p, p))
    for rows in batches:
        jacobian = central_difference(partial(problem.logits, rows=rows), problem.theta)
        jacobian = jacobian.reshape(-1, p)  # (b * b, p)
        curvature = logit_curvature(problem.logits(problem.theta, rows), weights[rows])
        total += jacobian.T @ curvature @ jacobian
    return total / len(batches)


def hessian(problem: Problem, batches: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Dense second derivative of the mean loss over batches, (p, p); good to about 1e-7.

    Differences of differences: with steps of 1e-4 rounding brings 1e-15 / 1e-8, truncation 1e-8.
    """

    def loss(theta: np.ndarray) -> float:
        return float(np.mean([problem.loss(theta, rows, weights[rows]) for rows in batches]))

    def gradient(theta: np.ndarray) -> np.ndarray:
        return central_difference(loss, theta, step=1e-4)

    matrix = central_difference(gradient, problem.theta, step=1e-4)
    return np.asarray((matrix + matrix.T) / 2)


def rotated_pairs(n: int, *, seed: int = 0) -> PairTensors:
    """Float32 pairs whose text is a rotated image, so that they can be learnt."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 8)) / math.sqrt(8)
    rotation = np.linalg.qr(np.random.default_rng(99).normal(size=(8, 8)))[0]
    return PairTensors(
        torch.from_numpy(images).float(), torch.from_numpy(images @ rotation).float()
    )


class Planted(NamedTuple):
    """Clusters of pairs, one of which has the captions of other pairs."""

    pairs: PairTensors
    validation: PairTensors
    clusters: np.ndarray  # (n,)
    wrong: np.ndarray  # (n,) bool, the wrong captions


def planted_problem(
    *, seed: int, n_clusters: int = 4, per_cluster: int = 24, n_validation: int = 64
) -> Planted:
    """Pairs of a shared latent vector; the last cluster's captions are shifted by one pair."""
    rng = np.random.default_rng(seed)
    n = n_clusters * per_cluster
    latent = rng.normal(size=(n + n_validation, 5))
    images = latent @ rng.normal(size=(5, 8)) / math.sqrt(5)
    texts = latent @ rng.normal(size=(5, 6)) / math.sqrt(5)
    texts = texts + 0.05 * rng.normal(size=texts.shape)
    clusters = np.arange(n) % n_clusters
    wrong = clusters == n_clusters - 1
    texts[:n][wrong] = np.roll(texts[:n][wrong], 1, axis=0)
    as_tensors = [
        PairTensors(
            torch.from_numpy(images[part]).float(),
            torch.from_numpy(texts[part]).float(),
        )
        for part in (slice(n), slice(n, None))
    ]
    return Planted(as_tensors[0], as_tensors[1], clusters, wrong)


class Scattered(NamedTuple):
    """Pairs of a few topics, two an image, with wrong captions scattered over all of them."""

    pairs: PairTensors
    validation: PairTensors
    image_embeddings: np.ndarray  # (n, d) unit rows, as of an encoder that sees some of it
    text_embeddings: np.ndarray  # (n, d)
    topics: np.ndarray  # (n,)
    image_ids: np.ndarray  # (n,)
    wrong: np.ndarray  # (n,) bool


def scattered_problem(
    *, seed: int, n_images: int = 150, n_validation: int = 60, n_topics: int = 3, share: float = 0.2
) -> Scattered:
    """Images and texts are linear in a latent vector; wrong texts are those of other images."""
    rng = np.random.default_rng(seed)
    n = 2 * n_images
    image_ids = np.repeat(np.arange(n_images), 2)
    of_image = rng.integers(0, n_topics, size=n_images + n_validation)
    centres = rng.normal(size=(n_topics, 6))
    latent = centres[of_image] + rng.normal(size=(len(of_image), 6))
    shown = np.append(image_ids, np.arange(n_images, len(of_image)))  # a pair of each held-out one
    told = shown.copy()
    wrong = np.sort(rng.choice(n, size=int(share * n), replace=False))
    told[wrong] = (told[wrong] + rng.integers(1, n_images, size=len(wrong))) % n_images

    def features(latent: np.ndarray, d: int, noise: float) -> np.ndarray:
        made = latent @ rng.normal(size=(6, d)) / math.sqrt(6 * d)
        return np.asarray(made + noise * rng.normal(size=made.shape) / math.sqrt(d))

    images, texts = features(latent, 10, 0.05)[shown], features(latent[told], 8, 0.05)

    def tensors(part: slice) -> PairTensors:
        return PairTensors(
            torch.from_numpy(images[part]).float(), torch.from_numpy(texts[part]).float()
        )

    to_joint = rng.normal(size=(6, 12))
    embeddings = []
    for side in (latent[shown[:n]], latent[told[:n]]):
        joint = side @ to_joint + 3 * rng.normal(size=(n, 12))
        embeddings.append((joint / np.linalg.norm(joint, axis=1, keepdims=True)).astype(np.float32))
    is_wrong = np.isin(np.arange(n), wrong)
    return Scattered(
        tensors(slice(n)),
        tensors(slice(n, None)),
        embeddings[0],
        embeddings[1],
        of_image[image_ids],
        image_ids,
        is_wrong,
    )


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive scores above a negative, ties half, over all couples of them."""
    couples = scores[positive][:, None] - scores[~positive][None, :]
    return float((couples > 0).mean() + (couples == 0).mean() / 2)

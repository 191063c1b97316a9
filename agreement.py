"""How well image and text agree, beside other pairs: normalised, and by their neighbours."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from model import (
    MAX_LOG_SCALE,
    contrastive_loss,
    pair_losses,
    projected_similarities,
    whole_batches,
)

N_NORMALISATIONS = 10  # random batches that every pair is in; Wang et al. (2024)
NORMALISATION_BATCH = 4096  # pairs; bounds memory to a few blocks of 64 MiB
FIT_BATCH = 1024  # pairs that the temperature is fitted to
N_NEIGHBOURS = 20
MAX_WITNESSES = 20_000  # pairs that others are compared with; bounds the time
ROWS_AT_ONCE = 1024


def normalised_agreement(
    image_embeddings: Float[np.ndarray, "n d"],
    text_embeddings: Float[np.ndarray, "n d"],
    device: torch.device,
    *,
    rng: np.random.Generator,
) -> Float[np.ndarray, " n"]:
    """Agreement of image and text less that with the other pairs of a batch: Wang et al. (2024).

        s_i = <f_i, g_i> - (tau / 2) [ log sum_j exp(<f_i, g_j> / tau)
                                       + log sum_j exp(<f_j, g_i> / tau) ]    arXiv 2405.19547

    with j over a random batch that holds i, averaged over `N_NORMALISATIONS` shufflings of all
    pairs. A caption that would suit most images scores low although its cosine may be high. The
    paper's tau and batch size (0.01 and 32,768) are those its encoder was trained with. Here a
    batch has at most `NORMALISATION_BATCH` pairs, and a set no larger is one batch; tau is learnt,
    see `fit_log_scale`.
    """
    images, texts = (
        torch.from_numpy(np.asarray(side, dtype=np.float32)).to(device)
        for side in (image_embeddings, text_embeddings)
    )
    n = len(images)
    n_shuffles = N_NORMALISATIONS if n > NORMALISATION_BATCH else 1  # one batch of all stays so
    log_scale = fit_log_scale(images, texts, rng=rng)
    totals, counts = np.zeros(n), np.zeros(n)
    batches = [b for _ in range(n_shuffles) for b in whole_batches(n, NORMALISATION_BATCH, rng)]
    for batch in tqdm(batches, desc="negCLIPLoss", unit="batch", disable=None, leave=False):
        rows = torch.from_numpy(batch).to(device)
        losses = pair_losses(projected_similarities(images[rows], texts[rows], log_scale))
        totals[batch] -= losses.double().cpu().numpy()
        counts[batch] += 1
    return totals / counts * math.exp(-float(log_scale))


def fit_log_scale(images: Tensor, texts: Tensor, *, rng: np.random.Generator) -> Tensor:
    """The log of 1 / temperature of least contrastive loss over one random batch, up to CLIP's cap.

    What CLIP learns beside its towers; not every encoder has such a temperature. To 0.1.
    """
    rows = torch.from_numpy(rng.permutation(len(images))[:FIT_BATCH]).to(images.device)
    scales = torch.linspace(0, MAX_LOG_SCALE, 47, device=images.device)
    losses = [
        contrastive_loss(projected_similarities(images[rows], texts[rows], scale))
        for scale in scales
    ]
    return scales[torch.stack(losses).argmin()]


def neighbour_agreement(
    embeddings: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "n d2"],
    may_witness: Bool[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
) -> Float[np.ndarray, " n"]:
    """Mean cosine of a pair's other side with that of its 20 nearest pairs on this side.

    With image embeddings first and text embeddings second: is this caption like the captions of
    the most similar images? It errs on other pairs than the CLIP score, which compares a pair with
    itself alone.

    Args:
        embeddings: unit rows in which neighbours are looked for.
        others: unit rows, compared between neighbours.
        may_witness: pairs that are asked; 20,000 of them at random where there are more.
        rng: draws those.
    """
    witnesses: Int64[np.ndarray, " w"] = np.flatnonzero(may_witness)
    if len(witnesses) > MAX_WITNESSES:
        witnesses = np.sort(rng.permutation(witnesses)[:MAX_WITNESSES])
    k = min(N_NEIGHBOURS, len(witnesses) - 1)
    if k < 1:
        return np.zeros(len(embeddings))
    agreement = np.empty(len(embeddings))
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(embeddings)))
        cosines = embeddings[rows] @ embeddings[witnesses].T
        cosines[rows[:, None] == witnesses[None, :]] = -np.inf  # nobody is their own witness
        nearest = witnesses[np.argpartition(cosines, -k, axis=1)[:, -k:]]
        agreement[rows] = np.einsum("rd,rkd->r", others[rows], others[nearest]) / k
    return agreement

"""Agreement seen again, once it is roughly known which pairs are wrong.

An encoder's joint space is not made for these pairs, or is made from the wrong captions too. So a
joint map is fitted, in folds, to the pairs that look right at first sight and to the held-out
pairs, and its word is joined with the first on one calibrated scale.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata

from agreement import Agreement, joined_agreement, normalised_agreement
from joint import MIN_IMAGES, Moments, embed_across_folds
from model import PairTensors

TRUSTED_SHARE = 0.8  # of the pairs, those that look best at first sight
REFINED_FOLDS = 10  # each map sees nine tenths of the trusted pairs


def refine_agreement(
    first: Agreement,
    held_out_losses: Float[np.ndarray, " n"],
    pairs: PairTensors,
    image_ids: Int64[np.ndarray, " n"],
    validation: PairTensors,
    *,
    others: Int64[np.ndarray, " n"],
    rng: np.random.Generator,
    encoder_alone: bool = False,
) -> Float[np.ndarray, " n"]:
    """Log odds that image and caption belong together, see `agreement.joined_agreement`.

    No pair is judged by a map that was fitted to its own image. Of fewer than three images no map
    can be fitted, and the first view stands alone.

    Args:
        first: agreement in the encoder's joint space.
        held_out_losses: of each pair, by models that have not trained on it, nats.
        pairs: features of the n pairs.
        image_ids: which image each shows, 0 to the number of images - 1.
        validation: held-out pairs, all of them trusted.
        others: whose captions stood for chance in the first view.
        rng: deals folds and batches.
        encoder_alone: fit no map.
    """
    trusted = trusted_pairs(first.own, held_out_losses)
    if encoder_alone or int(image_ids.max()) + 1 < MIN_IMAGES:
        return joined_agreement([first], trusted)
    images, texts = (side.cpu().numpy() for side in pairs)
    refined_images, refined_texts, _ = embed_across_folds(
        images,
        texts,
        image_ids,
        rng=rng,
        n_folds=REFINED_FOLDS,
        trusted=trusted,
        further=Moments.of(*(side.cpu().numpy() for side in validation)),
    )
    refined = normalised_agreement(
        refined_images, refined_texts, pairs.images.device, rng=rng, others=others
    )
    return joined_agreement([first, refined], trusted)


def trusted_pairs(
    agreement: Float[np.ndarray, " n"], held_out_losses: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """The pairs of which agreement and held-out loss say best, by the sum of their ranks."""
    doubts = rankdata(held_out_losses) - rankdata(agreement)
    n_trusted = max(1, round(TRUSTED_SHARE * len(doubts)))
    trusted = np.zeros(len(doubts), dtype=bool)
    trusted[np.argsort(doubts, kind="stable")[:n_trusted]] = True
    return trusted

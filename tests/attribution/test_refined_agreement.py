"""Agreement in a map of trusted pairs, on Gaussian pairs of which some captions were exchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution.agreement import (
    TRUSTED_SHARE,
    Agreement,
    joined_agreement,
    normalised_agreement,
    refine_agreement,
    trusted_pairs,
)
from learner.pairs import PairTensors
from tests.encoders.test_joint_map import correlated_pairs
from tests.reference import auc

CPU = torch.device("cpu")
N, N_WRONG = 600, 120
OTHERS = np.roll(np.arange(N), -7)  # the next one has the right caption of the one before


def test_trusted_are_those_of_the_best_ranks_in_both() -> None:
    agreement = np.array([9.0, 1.0, 5.0, 4.0, 3.0])
    losses = np.array([5.0, 4.0, 1.0, 2.0, 3.0])
    # Ranks of agreement 5 1 4 3 2 less those of loss 5 4 1 2 3: 0 -3 3 1 -1.
    assert trusted_pairs(agreement, losses).tolist() == [True, False, True, True, True]
    assert trusted_pairs(agreement[:1], losses[:1]).tolist() == [True]


@pytest.fixture(scope="module")
def pairs() -> tuple[PairTensors, PairTensors]:
    """Training pairs, of which the first 120 pass their captions round, and validation pairs."""
    x, y = correlated_pairs(N + 200, [0.95] * 6, 40, 30)
    y[:N_WRONG] = np.roll(y[:N_WRONG], 1, axis=0)
    images, texts = torch.from_numpy(x), torch.from_numpy(y)
    return PairTensors(images[:N], texts[:N]), PairTensors(images[N:], texts[N:])


def first_view(pairs: PairTensors, noise: float) -> Agreement:
    """That of an encoder which sees the pairs through noise."""
    rng = np.random.default_rng(0)
    x, y = (side.numpy() for side in pairs)
    seen = [side @ rng.standard_normal((side.shape[1], 4)) for side in (x, y)]
    unit = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in seen]
    texts = unit[0] + noise * rng.standard_normal(unit[0].shape)
    texts[:N_WRONG] = np.roll(texts[:N_WRONG], 1, axis=0)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    images, captions = (side.astype(np.float32) for side in (unit[0], texts))
    return normalised_agreement(images, captions, CPU, rng=rng, others=OTHERS)


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_wrong_captions_stand_out_more_than_at_first_sight(
    noise: float, pairs: tuple[PairTensors, PairTensors]
) -> None:
    training, validation = pairs
    first, right = first_view(training, noise), np.arange(N) >= N_WRONG
    refined = refine_agreement(
        *(first, -first.own, training, np.arange(N), validation),
        others=OTHERS,
        rng=np.random.default_rng(1),
    )
    assert 1 - auc(refined, right) < 0.8 * (1 - auc(first.own, right))
    trusted = trusted_pairs(first.own, -first.own)
    assert trusted.sum() == TRUSTED_SHARE * N
    alone = joined_agreement([first], trusted)
    assert auc(alone, right) == pytest.approx(auc(first.own, right))


def test_a_pair_has_no_part_in_the_map_that_judges_it(
    pairs: tuple[PairTensors, PairTensors],
) -> None:
    training, validation = pairs
    rows = slice(N_WRONG, N_WRONG + 60)  # right ones, of which a map can say something
    few = PairTensors(*(side[rows] for side in training))
    first = Agreement(*(column[rows] for column in first_view(training, 1.0)))
    ids = np.arange(60) // 2  # two captions an image

    def refined(texts: torch.Tensor) -> np.ndarray:
        return refine_agreement(
            *(first, -first.own, PairTensors(few.images, texts), ids, validation),
            others=np.roll(np.arange(60), -7),
            rng=np.random.default_rng(1),
        )

    before = refined(few.texts)
    assert before.shape == (60,)
    assert np.isfinite(before).all()
    # A caption that fits its own image's map would raise the agreement of its image's other pair.
    changed = few.texts.clone()
    changed[1] = changed[1] * -1
    assert np.abs(refined(changed)[0] - before[0]) < np.abs(refined(changed)[1] - before[1])


def test_two_images_leave_the_first_view_alone(pairs: tuple[PairTensors, PairTensors]) -> None:
    training, validation = pairs
    few = PairTensors(*(side[:20] for side in training))
    first = Agreement(*(column[200:220] for column in first_view(training, 0.3)))
    refined = refine_agreement(
        *(first, -first.own, few, np.arange(20) % 2, validation),
        others=np.roll(np.arange(20), -7),
        rng=np.random.default_rng(1),
    )
    assert np.argsort(refined).tolist() == np.argsort(first.own).tolist()


def test_the_encoder_alone(pairs: tuple[PairTensors, PairTensors]) -> None:
    training, validation = pairs
    first = first_view(training, 0.3)
    alone = refine_agreement(
        *(first, -first.own, training, np.arange(N), validation),
        others=OTHERS,
        rng=np.random.default_rng(1),
        encoder_alone=True,
    )
    assert np.argsort(alone).tolist() == np.argsort(first.own).tolist()

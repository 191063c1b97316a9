"""Agreement in a map of trusted pairs, on Gaussian pairs of which some captions were exchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attribution import agreement
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
    own = np.array([9.0, 1.0, 5.0, 4.0, 3.0])
    losses = np.array([5.0, 4.0, 1.0, 2.0, 3.0])
    # Ranks of agreement 5 1 4 3 2 less those of loss 5 4 1 2 3: 0 -3 3 1 -1.
    assert trusted_pairs(own, losses).tolist() == [True, False, True, True, True]
    assert trusted_pairs(own[:1], losses[:1]).tolist() == [True]


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


class Few:
    """Sixty right pairs, of which a map can say something, with two captions an image."""

    def __init__(self, training: PairTensors, validation: PairTensors) -> None:
        rows = slice(N_WRONG, N_WRONG + 60)
        self.training = PairTensors(*(side[rows] for side in training))
        self.validation = validation
        self.first = Agreement(*(column[rows] for column in first_view(training, 1.0)))
        self.ids = np.arange(60) // 2

    def refined(self) -> np.ndarray:
        return refine_agreement(
            *(self.first, -self.first.own, self.training, self.ids, self.validation),
            others=np.roll(np.arange(60), -7),
            rng=np.random.default_rng(1),
        )

    def cosines(self, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        """Of image and caption in the maps that judge them."""
        seen = []

        def normalised(images: np.ndarray, texts: np.ndarray, *args: Any, **more: Any) -> Agreement:
            seen.append((images * texts).sum(axis=1))
            return normalised_agreement(images, texts, *args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(agreement, "normalised_agreement", normalised)
            self.refined()
        (cosines,) = seen
        return np.asarray(cosines)


@pytest.fixture
def few(pairs: tuple[PairTensors, PairTensors]) -> Few:
    return Few(*pairs)


def turned_round(texts: torch.Tensor, row: int) -> torch.Tensor:
    """The captions, one of them the contrary of what it was."""
    changed = texts.clone()
    changed[row] *= -1
    return changed


def test_a_pair_has_no_part_in_the_map_that_judges_it(
    few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, cosines = few.refined(), few.cosines(monkeypatch)
    assert before.shape == (60,)
    assert np.isfinite(before).all()
    # A caption that fits its own image's map would raise the agreement of its image's other pair.
    right = few.training.texts
    few.training = few.training._replace(texts=turned_round(right, 1))
    after = few.refined()
    assert np.abs(after[0] - before[0]) < np.abs(after[1] - before[1])
    # Of a pair that maps are fitted to: the one that judges it and its image's other pair is not,
    # and differs by float32 rounding; those of the other images are.
    row = int(trusted_pairs(few.first.own, -few.first.own).argmax())
    few.training = few.training._replace(texts=turned_round(right, row))
    changes = np.abs(few.cosines(monkeypatch) - cosines)
    assert changes[row ^ 1] < 1e-6
    assert np.median(changes[few.ids != few.ids[row]]) > 1e-4


def test_maps_are_fitted_to_held_out_pairs_too(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    cosines = few.cosines(monkeypatch)
    few.validation = few.validation._replace(texts=few.validation.texts.flip(0))
    assert np.abs(few.cosines(monkeypatch) - cosines).min() > 1e-4


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

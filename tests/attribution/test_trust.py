"""Who is believed, on Gaussian pairs of which some passed their captions round in every split."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from attribution import agreement, trust
from attribution.agreement import strangers
from attribution.fault_share import WrongShare
from attribution.trust import (
    FEWEST_TRUSTED,
    PairsInSpace,
    PairTrust,
    TrustConfig,
    best,
    judge_pairs,
)
from encoders.joint_map import embed_across_folds
from tests.encoders.test_joint_map import correlated_pairs
from tests.reference import auc
from tests.trusting import pair_trust

CPU = torch.device("cpu")
SIZES = {"train": 800, "validation": 300, "test": 300}
SIMILARITY = 0.9  # of near copies; what Gaussian images are far from


class World(NamedTuple):
    """Three splits, and which of their captions are wrong."""

    train: PairsInSpace
    validation: PairsInSpace
    test: PairsInSpace
    wrong: dict[str, np.ndarray]

    def judged(self, *, seed: int = 0, trust_validation: bool = False) -> PairTrust:
        return judge_pairs(
            *(self.train, self.validation, self.test, TrustConfig(trust_validation)),
            device=CPU,
            near_copy_similarity=SIMILARITY,
            rng=np.random.default_rng(seed),
        )


def make_world(
    train: float = 0.2,
    validation: float = 0.2,
    test: float = 0.2,
    *,
    seed: int = 0,
) -> World:
    """Shares of wrong captions by split.

    The encoder sees the images in eight dimensions, and the captions through noise.
    """
    x, y = correlated_pairs(sum(SIZES.values()), [0.97] * 14, 40, 30, seed)
    rng = np.random.default_rng(seed + 100)
    images = x @ rng.standard_normal((40, 8))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = images + 0.25 * rng.standard_normal(images.shape)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    splits, wrong, start = {}, {}, 0
    for (split, m), share in zip(SIZES.items(), (train, validation, test), strict=True):
        told = np.arange(m)
        n_wrong = round(share * m)
        told[:n_wrong] = np.roll(told[:n_wrong], 1)
        rows = slice(start, start + m)
        splits[split] = PairsInSpace(
            x[rows],
            y[rows][told],
            images[rows].astype(np.float32),
            texts[rows][told].astype(np.float32),
            np.arange(m),
        )
        wrong[split] = told != np.arange(m)
        start += m
    return World(splits["train"], splits["validation"], splits["test"], wrong)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def judged(world: World) -> PairTrust:
    return world.judged()


def take(pairs: PairsInSpace, rows: np.ndarray) -> PairsInSpace:
    """Some of the pairs, as those of images of their own."""
    return PairsInSpace(
        pairs.image_features[rows],
        pairs.text_features[rows],
        np.asarray(pairs.image_embeddings)[rows],
        np.asarray(pairs.text_embeddings)[rows],
        np.arange(len(rows)),
    )


# --- Who is believed --------------------------------------------------------------------------


def test_wrong_pairs_are_told_from_right_ones_in_every_split(
    world: World, judged: PairTrust
) -> None:
    for split, log_odds in (
        ("train", judged.training_log_odds),
        ("validation", judged.validation_log_odds),
        ("test", judged.test_log_odds),
    ):
        right = ~world.wrong[split]
        assert auc(log_odds, right) > 0.95
        assert log_odds[right].mean() > 0 > log_odds[~right].mean()
    # The map tells more than the encoder alone.
    right = ~world.wrong["train"]
    assert 1 - auc(judged.training_log_odds, right) < 0.5 * (
        1 - auc(judged.encoder_agreement, right)
    )


@pytest.mark.parametrize(
    "shares", [(0.2, 0.2, 0.2), (0.2, 0.0, 0.0), (0.05, 0.4, 0.1), (0.4, 0.05, 0.6)]
)
def test_shares_are_estimated_and_those_trusted_are_right(
    shares: tuple[float, float, float],
) -> None:
    world = make_world(*shares)
    judged = world.judged()
    for (split, n), share in zip(SIZES.items(), shares, strict=True):
        found = judged.faults[split]
        assert found["pairs"] == n
        # Of 300 pairs the share has a standard error of 0.02 or so, of 800 less.
        assert found["share"] == pytest.approx(share, abs=0.05)
        assert found["low"] <= found["share"] <= found["high"]
    for split, trusted in (
        ("validation", judged.validation_trusted),
        ("test", judged.test_trusted),
    ):
        right = ~world.wrong[split]
        assert right[trusted].mean() > 0.94  # who is right with 0.8 at least is so with more
        assert trusted[right].mean() > 0.8
        assert judged.faults[split]["trusted"] == trusted.sum()


def test_trusted_are_those_right_with_four_fifths(judged: PairTrust) -> None:
    for log_odds, trusted, split in (
        (judged.validation_log_odds, judged.validation_trusted, "validation"),
        (judged.test_log_odds, judged.test_trusted, "test"),
    ):
        share = judged.faults[split]["share"]
        odds = np.exp(log_odds) * (1 - share) / share
        np.testing.assert_array_equal(trusted, odds / (1 + odds) >= 0.8)


@pytest.mark.parametrize("seed", range(3))
def test_of_near_copies_the_best_alone_is_asked(world: World, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Ten right pairs, each with four copies of its image whose captions get worse and worse; of
    # a wrong pair, none of whose copies is to be asked either.
    originals = np.arange(100, 110)
    rows = np.append(np.arange(200, 300), np.repeat(originals, 5))
    many = take(world.validation, rows)
    spread = many.image_features.std()
    noise = 1e-3 * spread * rng.standard_normal(many.image_features.shape)
    many = many._replace(
        image_features=(many.image_features + noise).astype(np.float32),
        text_features=(
            many.text_features
            + 0.1 * many.text_features.std() * rng.standard_normal(many.text_features.shape)
        ).astype(np.float32),
    )
    judged = world._replace(validation=many).judged()
    families = judged.validation_log_odds[100:].reshape(10, 5)
    trusted = judged.validation_trusted[100:].reshape(10, 5)
    assert trusted.sum(axis=1).tolist() == [1] * 10
    assert trusted.argmax(axis=1).tolist() == families.argmax(axis=1).tolist()
    # Each has as many better copies as there are better ones in its family.
    expected = (families[:, None, :] > families[:, :, None]).sum(axis=2)
    np.testing.assert_array_equal(judged.validation_copies[100:].reshape(10, 5), expected)
    assert judged.validation_copies[:100].tolist() == [0] * 100
    assert judged.faults["validation"]["near_copies"] == 40


def test_taken_at_their_word_all_are_asked_and_judged_all_the_same(
    world: World, judged: PairTrust
) -> None:
    naive = world.judged(trust_validation=True)
    assert naive.asked.tolist() == list(range(300))
    assert naive.taken_at_word
    assert not judged.taken_at_word
    assert naive.faults["validation"] == judged.faults["validation"] | {"trusted": 300}
    for name in ("training_log_odds", "validation_log_odds", "test_log_odds", "test_trusted"):
        np.testing.assert_array_equal(getattr(naive, name), getattr(judged, name))


def test_asked_are_the_rows_of_the_trusted(judged: PairTrust) -> None:
    assert judged.asked.tolist() == [i for i in range(300) if judged.validation_trusted[i]]
    assert 0 < len(judged.asked) < 300


@pytest.fixture(scope="module")
def strange(world: World) -> PairsInSpace:
    """Validation pairs with captions not their own, those that agree least with them first."""
    told = np.roll(np.arange(300), 7)
    strange = world.validation._replace(
        text_features=world.validation.text_features[told],
        text_embeddings=np.asarray(world.validation.text_embeddings)[told],
    )
    odds = world._replace(validation=strange).judged().validation_log_odds
    return take(strange, np.argsort(odds))


@pytest.mark.parametrize(("n", "asked"), [(300, FEWEST_TRUSTED), (40, FEWEST_TRUSTED), (6, 6)])
def test_somebody_is_asked_although_all_look_wrong(
    world: World, strange: PairsInSpace, n: int, asked: int
) -> None:
    # No trust in any of them is deserved.
    judged = world._replace(validation=take(strange, np.arange(n))).judged()
    if n < 300:
        assert judged.validation_log_odds.max() < 0
        assert judged.validation_trusted.sum() == asked
    assert judged.validation_trusted.sum() >= asked
    assert judged.validation_log_odds[judged.validation_trusted].min() >= (
        judged.validation_log_odds[~judged.validation_trusted].max(initial=-np.inf)
    )


def test_share_of_the_pool_stands_in_for_that_of_too_few(world: World, judged: PairTrust) -> None:
    # Nine test pairs in doubt: to be trusted where hardly a caption is wrong, but not in this pool.
    doubtful = np.argsort(np.abs(judged.test_log_odds + 1))[:9]
    found = world._replace(test=take(world.test, doubtful)).judged()
    few = found.faults["test"]
    assert (few["pairs"], few["share"], few["low"], few["high"]) == (9, None, None, None)
    assert found.test_log_odds.min() > np.log(4) + np.log(0.005 / 0.995)
    share = found.faults["train"]["share"]
    odds = np.exp(found.test_log_odds) * (1 - share) / share
    np.testing.assert_array_equal(found.test_trusted, odds / (1 + odds) >= 0.8)
    assert not found.test_trusted.all()
    assert few["trusted"] == found.test_trusted.sum()


# --- What judges ------------------------------------------------------------------------------


def test_without_embeddings_the_map_judges_alone(world: World, judged: PairTrust) -> None:
    bare = world.validation._replace(image_embeddings=None, text_embeddings=None)
    found = world._replace(validation=bare).judged()
    right = ~world.wrong["validation"]
    assert auc(found.validation_log_odds, right) > 0.93
    assert found.faults["validation"]["share"] == pytest.approx(0.2, abs=0.06)
    np.testing.assert_array_equal(found.training_log_odds, judged.training_log_odds)
    # The odds are on the map's own scale: by Bayes' rule, as many are right as the odds say.
    for known in (found, judged):
        odds = np.exp(known.validation_log_odds) * 0.8 / 0.2
        assert (odds / (1 + odds)).mean() == pytest.approx(0.8, abs=0.04)  # two errors of 300
    # What the encoder would say has no part in it.
    assert not np.allclose(found.validation_log_odds, judged.validation_log_odds, atol=0.01)


@pytest.mark.parametrize("n_images", [1, 2])
def test_of_fewer_than_three_images_the_encoder_judges_alone(
    world: World, judged: PairTrust, n_images: int
) -> None:
    few = world.train._replace(image_ids=np.arange(800) % n_images)
    found = world._replace(train=few).judged()
    assert (
        np.argsort(found.training_log_odds).tolist() == np.argsort(found.encoder_agreement).tolist()
    )
    right = ~world.wrong["validation"]
    # What the encoder sees, and the map adds to.
    assert 0.9 < auc(found.validation_log_odds, right) < auc(judged.validation_log_odds, right)
    assert found.relevance_weight == 0  # too few images for folds


def test_training_pairs_without_embeddings_cannot_be_judged(
    world: World,
) -> None:
    for bare in (
        world.train._replace(image_embeddings=None),
        world.train._replace(text_embeddings=None),
    ):
        with pytest.raises(ValueError, match="training pairs must have embeddings"):
            world._replace(train=bare).judged()


def test_encoder_view_is_that_of_the_strangers(world: World, judged: PairTrust) -> None:
    images = np.asarray(world.train.image_embeddings, dtype=np.float64)
    texts = np.asarray(world.train.text_embeddings, dtype=np.float64)
    assert sorted(judged.strangers.tolist()) == list(range(800))
    assert (judged.strangers != np.arange(800)).all()
    own, by_chance, _ = judged.encoder_view
    # Own less by chance is a difference of cosines and of the captions' normalisations; without
    # these it is the cosines that they follow.
    cosines = (images * texts).sum(axis=1) - (images * texts[judged.strangers]).sum(axis=1)
    assert np.corrcoef(own - by_chance, cosines)[0, 1] > 0.9
    order = np.random.default_rng(0).permutation(judged.strangers)
    mixed = (images * texts).sum(axis=1) - (images * texts[order]).sum(axis=1)
    assert np.corrcoef(own - by_chance, mixed)[0, 1] < 0.8


@pytest.mark.parametrize(
    ("found", "fitted"),
    [
        ([0.1, 0.15], [640]),  # never to more than four fifths
        ([0.1, 0.24], [640]),  # not worth another look
        ([0.1, 0.3, 0.33], [640, 560]),
        ([0.3, 0.2], [560]),  # the map sees fewer wrong ones than the encoder
        ([0.1, 0.3, 0.4, 0.5], [640, 560, 480]),  # no more than three looks
        ([None, None], [640]),
    ],
)
def test_another_map_is_fitted_where_many_fewer_look_right(
    world: World, monkeypatch: pytest.MonkeyPatch, found: list[float | None], fitted: list[int]
) -> None:
    shares, seen = iter(found), []

    def scripted(*arguments: np.ndarray, **more: Any) -> WrongShare | None:
        share = next(shares, None)
        return None if share is None else WrongShare(share, share, share)

    def spied(*arguments: np.ndarray, trusted: np.ndarray, **more: Any) -> Any:
        seen.append(trusted)
        return embed_across_folds(*arguments, trusted=trusted, **more)

    monkeypatch.setattr(trust, "wrong_share", scripted)
    monkeypatch.setattr(trust, "embed_across_folds", spied)
    world.judged()
    assert [int(trusted.sum()) for trusted in seen] == fitted
    right = ~world.wrong["train"]
    for trusted in seen:  # the best of them
        assert right[trusted].mean() > 0.95


# --- Who has a part in it ---------------------------------------------------------------------


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_pair_has_no_part_in_what_is_said_of_another(
    split: str, world: World, judged: PairTrust
) -> None:
    pairs: PairsInSpace = getattr(world, split)
    changed = take(pairs, np.arange(300))
    for side in changed[:4]:
        assert side is not None
        side[7] = -side[7]
    found = world._replace(**{split: changed}).judged()  # type: ignore[arg-type]
    name = f"{split}_log_odds"
    before, after = getattr(judged, name), getattr(found, name)
    assert abs(after[7] - before[7]) > 0.1
    np.testing.assert_allclose(np.delete(after, 7), np.delete(before, 7), atol=1e-9)
    np.testing.assert_array_equal(found.training_log_odds, judged.training_log_odds)


def test_nothing_of_the_test_reaches_anybody_else(world: World, judged: PairTrust) -> None:
    other = make_world(seed=5).test
    found = world._replace(test=other).judged()
    assert not np.allclose(found.test_log_odds, judged.test_log_odds)
    for field in dataclasses.fields(PairTrust):
        if field.name == "faults":
            assert found.faults["train"] == judged.faults["train"]
            assert found.faults["validation"] == judged.faults["validation"]
        elif not field.name.startswith(("test", "relevance")):
            np.testing.assert_array_equal(
                getattr(found, field.name), getattr(judged, field.name), err_msg=field.name
            )


def test_the_same_generator_gives_the_same_bits(world: World, judged: PairTrust) -> None:
    again, other = world.judged(), world.judged(seed=1)
    for field in dataclasses.fields(PairTrust):
        np.testing.assert_equal(getattr(again, field.name), getattr(judged, field.name))
    assert not np.array_equal(other.training_log_odds, judged.training_log_odds)


def test_the_same_strangers_stand_for_chance_in_both_views(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    def spied(image_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        found = strangers(image_ids, rng)
        drawn.append(found.tolist())
        return found

    monkeypatch.setattr(agreement, "strangers", spied)
    world.judged()
    # A thousand times by chance: 300 pairs four times, in each view, of validation and test pairs.
    assert [len(others) for others in drawn] == [300] * 16
    assert drawn[:4] == drawn[4:8]
    assert drawn[8:12] == drawn[12:]
    assert len({tuple(others) for others in drawn}) == 8


# --- Nearness ---------------------------------------------------------------------------------


def test_nearness_to_a_narrow_target_counts(world: World, judged: PairTrust) -> None:
    assert judged.relevance_weight == 0  # held-out pairs like the pool
    assert judged.relevance_auc == pytest.approx(0.5, abs=0.1)
    # Held-out pairs on one side of the third image feature, which shows in the joint space.
    axis = world.validation.image_features[:, 2]
    narrow = take(world.validation, np.flatnonzero(axis > np.quantile(axis, 0.6)))
    found = world._replace(validation=narrow).judged()
    assert found.relevance_weight > 0
    assert found.relevance_auc > 0.6
    assert found.relevance.shape == (800,)
    alike = world.train.image_features[:, 2] > np.quantile(axis, 0.6)
    right = ~world.wrong["train"]
    assert auc(found.relevance[right], alike[right]) > 0.7


def test_only_those_asked_say_what_is_near(world: World) -> None:
    # All held-out pairs are like the pool, wrong or right, but for those of one kind of image,
    # which have wrong captions: who is not asked has no say.
    rows = np.flatnonzero(~world.wrong["validation"])
    right = take(world.validation, rows)
    axis = right.image_features[:, 2]
    narrow = np.flatnonzero(axis > np.quantile(axis, 0.6))
    told = np.arange(len(rows))
    told[narrow] = np.roll(told[narrow], 1)
    mixed = right._replace(
        text_features=right.text_features[told],
        text_embeddings=np.asarray(right.text_embeddings)[told],
    )
    shown = world._replace(validation=mixed)
    asked, everybody = shown.judged(), shown.judged(trust_validation=True)
    assert everybody.relevance_weight == 0
    assert asked.relevance_auc > everybody.relevance_auc


# --- Small parts ------------------------------------------------------------------------------


def test_the_best_by_hand() -> None:
    scores = np.array([3.0, 1.0, 5.0, 3.0, 2.0])
    assert best(scores, 0.4).tolist() == [True, False, True, False, False]  # ties by row
    assert best(scores, 0.0).tolist() == [False, False, True, False, False]  # at least one
    assert best(scores, 1.0).all()


def test_the_share_of_the_training_pairs_is_read_back(judged: PairTrust) -> None:
    found = judged.wrong_share
    assert found is not None
    assert found[:3] == tuple(judged.faults["train"][name] for name in ("share", "low", "high"))
    assert pair_trust(5).wrong_share is None


# --- By rank ----------------------------------------------------------------------------------


def test_wrong_captions_are_counted_by_rank_too(judged: PairTrust) -> None:
    found = judged.wrong_share_by_rank
    assert found is not None
    # 160 of 800 captions rank their image anywhere; a deviation of sqrt(0.06 / 800) / 0.3 = 0.03.
    assert found.share == pytest.approx(0.2, abs=0.09)
    assert found.low <= found.share <= found.high
    assert judged.faults["train"]["by_rank"] == [found.share, found.low, found.high]
    for split in ("validation", "test"):
        assert "by_rank" not in judged.faults[split]


def test_results_that_were_saved_without_ranks_say_nothing_by_them() -> None:
    shares = {"share": 0.2, "low": 0.1, "high": 0.3}
    old = pair_trust(3, faults={"train": shares})
    assert old.wrong_share_by_rank is None
    assert old.wrong_share == WrongShare(0.2, 0.1, 0.3)
    new = pair_trust(3, faults={"train": {**shares, "by_rank": [0.4, 0.3, 0.5]}})
    assert new.wrong_share_by_rank == WrongShare(0.4, 0.3, 0.5)

"""How much to keep, on planted curves, and on planted pairs of which half are faulty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from attribution import keep_curve
from attribution.keep_curve import (
    CHECKED,
    FEWEST_ASKED,
    GRID,
    LOSS,
    MISSED_ALIKE,
    N_SEEDS,
    RANKS,
    RECALL,
    SHARES,
    KeepCurve,
    Kept,
    _Check,
    _curve,
    chosen_share,
    measure_keep_curve,
    ranks_of_pairs,
)
from learner.config import TrainingConfig
from learner.pairs import PairTensors, TrainingPairs
from tests.knowing import pair_influence, training_pairs
from tests.rooms import new_room

# --- Ranks ------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    # The caption of the first image comes first, of the second last; of the third two tie with it.
    cosines = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.1, 0.3], [0.5, 0.5, 0.5]])
    ranks = ranks_of_pairs(cosines, torch.eye(3))
    assert ranks.tolist() == [[0, 2, 2], [0, 2, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, texts = (np.round(rng.normal(size=(20, 3))).astype(np.float32) for _ in range(2))
    cosines = images @ texts.T  # whole numbers, and many ties
    expected = [
        [sum(int(side[i, j] >= side[i, i]) for j in range(20) if j != i) for i in range(20)]
        for side in (cosines, cosines.T)
    ]
    ranks = ranks_of_pairs(torch.from_numpy(images), torch.from_numpy(texts))
    assert ranks.tolist() == expected
    assert (np.sort(cosines, axis=1)[:, 1:] == np.sort(cosines, axis=1)[:, :-1]).any()


def test_embeddings_that_are_no_numbers_come_last() -> None:
    images = torch.full((4, 2), torch.nan)
    assert ranks_of_pairs(images, torch.ones(4, 2)).tolist() == [[3] * 4] * 2


# --- A share of the curve ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unfaulty", "expected"),
    [
        (0.5, 0.5),
        (0.3, (0.42 + 0.3) / 2),
        (0.9, (0.58 + 0.9) / 2),
        (None, (0.58 + 1) / 2),
        (0.05, (0.42 + 0.25) / 2),  # no share below the least that is tried
    ],
)
def test_chosen_is_halfway_from_the_unfaulty_to_the_nearest_share_that_may_be_the_best(
    unfaulty: float | None, expected: float
) -> None:
    # A parabola with its top at 0.5; within 0.08 of it the fall of 0.0064 is less than the error.
    means, errors = -((GRID - 0.5) ** 2), np.full(len(GRID), 0.0065)
    assert chosen_share(means, errors, unfaulty) == pytest.approx(expected, abs=0.0051)


def test_without_errors_the_best_share_alone_may_be_the_best() -> None:
    means = -((GRID - 0.7) ** 2)
    for unfaulty, expected in ((0.7, 0.7), (0.3, 0.5), (1.0, 0.85), (None, 0.85)):
        assert chosen_share(means, np.zeros(len(GRID)), unfaulty) == pytest.approx(expected)


# --- A planted curve --------------------------------------------------------------------------


def planted(
    curve: Callable[[np.ndarray], np.ndarray], *, noise: float, seed: int, n: int = 400
) -> np.ndarray:
    """What v validation pairs say after two trainings at each share: (s, r, 3, v).

    Every pair is as hard as it is at all shares; its answers are off by `noise` in each training.
    """
    rng = np.random.default_rng(seed)
    means = curve(np.array(SHARES))
    hardness = rng.normal(size=n)
    found = np.zeros((len(SHARES), N_SEEDS, 3, n))
    off = noise * rng.normal(size=(len(SHARES), N_SEEDS, n))
    found[:, :, RANKS] = means[:, None, None] + hardness + off
    found[:, :, RECALL] = 50 + 10 * found[:, :, RANKS]
    found[:, :, LOSS] = 3 - found[:, :, RANKS]
    return found


def curve_of(
    found: np.ndarray, fault_share: Sequence[float] | None = None, by_chance: float = -1.0
) -> KeepCurve:
    """Pairs at random are worse than values by one, unless it is said otherwise."""
    at = found[SHARES.index(CHECKED)]
    check = _Check(CHECKED, at, at + by_chance)
    return _curve(found[:], check, fault_share, 100, np.random.default_rng(0))


def test_a_cubic_without_noise_is_found_as_it_is() -> None:
    def cubic(s: np.ndarray) -> np.ndarray:
        return np.asarray(s**3 - 2.25 * s**2 + 1.5 * s)  # top at 0.5, bottom at 1

    found = planted(cubic, noise=0.0, seed=0)
    curve = curve_of(found, [0.5, 0.4, 0.6])
    np.testing.assert_array_equal(curve.shares, GRID)
    hardness = found[0, :, RANKS].mean() - cubic(np.array([SHARES[0]]))[0]
    np.testing.assert_allclose(curve.recall, 50 + 10 * (cubic(GRID) + hardness), rtol=1e-6)
    np.testing.assert_allclose(curve.loss, 3 - cubic(GRID) - hardness, rtol=1e-6)
    # All shares are asked the same pairs, which say how much one share has more without an error.
    np.testing.assert_allclose(curve.recall_stderr, 0, atol=1e-9)
    assert curve.share == 0.5
    assert curve.best["low"] == curve.best["high"] == 0.5
    beyond = curve_of(found, [0.9, 0.8, 1.0])  # what is chosen may lie outside of it
    assert beyond.share < beyond.best["low"] == 0.5
    lost, error = curve.given_away(1.0)
    assert lost == pytest.approx(10 * (0.3125 - 0.25))  # 10 (m(0.5) - m(1))
    assert error == pytest.approx(0, abs=1e-9)
    assert curve.given_away(0.5)[0] == 0
    assert len(curve.measured_shares) == len(SHARES) * N_SEEDS
    np.testing.assert_allclose(
        curve.measured_recall, 50 + 10 * (cubic(curve.measured_shares) + hardness)
    )
    np.testing.assert_allclose(curve.measured_loss, 3 - cubic(curve.measured_shares) - hardness)


@pytest.mark.parametrize("top", [0.4, 0.6, 0.8])
def test_the_best_share_is_found_through_noise_and_the_interval_holds_it(top: float) -> None:
    def parabola(s: np.ndarray) -> np.ndarray:
        return np.asarray(-2 * (s - top) ** 2)

    curves = [curve_of(planted(parabola, noise=0.5, seed=seed)) for seed in range(10)]
    bests = np.array([curve.shares[curve.recall.argmax()] for curve in curves])
    assert bests.mean() == pytest.approx(top, abs=0.04)
    held = [curve.best["low"] - 0.005 <= top <= curve.best["high"] + 0.005 for curve in curves]
    assert sum(held) >= 7  # at 95 % fewer than seven of ten: a chance of one in a thousand
    assert all(0 < curve.best["high"] - curve.best["low"] < 0.5 for curve in curves)
    for curve, best in zip(curves, bests, strict=True):
        assert curve.best["low"] <= best <= curve.best["high"]


def test_the_errors_of_what_is_given_away_are_no_smaller_than_those_of_repetition() -> None:
    # What is off for each pair in each training is resampled along both: the error comes out too
    # large by up to sqrt(2) for two seeds, which is the safe side (Owen 2007).
    def parabola(s: np.ndarray) -> np.ndarray:
        return np.asarray(-2 * (s - 0.5) ** 2)

    repeated = [curve_of(planted(parabola, noise=0.5, seed=seed)) for seed in range(40)]
    at, best = -1, int(np.abs(GRID - 0.5).argmin())
    spread = np.std([curve.recall[best] - curve.recall[at] for curve in repeated], ddof=1)
    said = np.mean([curve.recall_stderr[at] for curve in repeated])
    assert 0.9 < said / spread < 2  # of forty, an eighth at one deviation


def test_where_the_curve_is_flat_what_is_not_faulty_is_kept() -> None:
    def flat(s: np.ndarray) -> np.ndarray:
        return np.zeros_like(s)

    def slope(s: np.ndarray) -> np.ndarray:
        return np.asarray(-2 * (s - 0.55) ** 2)

    shares = [[0.3, 0.2, 0.4], [0.1, 0.05, 0.2], None]
    for fault_share, wanted in zip(shares, (0.7, 0.9, 1.0), strict=True):
        chosen = [
            curve_of(planted(flat, noise=0.5, seed=seed), fault_share).share for seed in range(9)
        ]
        # A fifth at worst of the chosen shares lie more than a standard error below a luckier one.
        assert float(np.median(chosen)) == pytest.approx(wanted, abs=0.08)
        steep = curve_of(planted(slope, noise=0.1, seed=0), fault_share)
        assert steep.share == pytest.approx((0.55 + wanted) / 2, abs=0.04)


def test_values_sort_difficulty_where_random_pairs_do_better() -> None:
    found = planted(lambda s: -((s - 0.5) ** 2), noise=0.1, seed=0)
    better, worse = (curve_of(found, by_chance=off) for off in (0.2, -0.2))
    assert better.sorts_difficulty
    assert not worse.sorts_difficulty
    for curve, off in ((better, 0.2), (worse, -0.2)):
        check = curve.best["check"]
        assert check["difference"] == pytest.approx(-off)
        assert check["stderr"] == pytest.approx(0, abs=1e-9)  # the same for every pair
        assert check["random"] - check["recall"] == pytest.approx(off)
    assert worse.best["fault_share"] is None
    assert curve_of(found, [0.3, 0.2, 0.4]).best["fault_share"] == [0.3, 0.2, 0.4]


def test_few_validation_pairs_have_no_say() -> None:
    found = planted(lambda s: -((s - 0.4) ** 2), noise=0.1, seed=0)
    few, enough = found[..., : FEWEST_ASKED - 1], found[..., :FEWEST_ASKED]
    assert curve_of(enough, [0.3, 0.1, 0.5]).share < 0.7
    assert curve_of(few, [0.3, 0.1, 0.5]).share == 0.9  # what surely looks faulty goes
    assert curve_of(few).share == 1.0
    assert curve_of(few, [0.9, 0.8, 1.0]).share == SHARES[0]
    assert curve_of(enough, by_chance=0.2).sorts_difficulty
    assert not curve_of(few, by_chance=0.2).sorts_difficulty


def test_errors_grow_from_nothing_with_the_distance_to_the_highest_point() -> None:
    # No cubic: the second dot is off, so that the polynomial misses.
    found = planted(lambda s: -((s - 0.7) ** 2) + 0.1 * (s == SHARES[1]), noise=0.0, seed=0)
    curve = curve_of(found)
    best = int(curve.recall.argmax())
    errors = curve.recall_stderr
    assert errors[best] == 0
    assert (np.diff(errors[best:]) >= 0).all()
    assert (np.diff(errors[: best + 1]) <= 0).all()
    assert 0 < errors[best + 1] < errors.max() / 10


# --- Planted pairs ------------------------------------------------------------------------------

TRAINING = TrainingConfig(embed_dim=8, num_epochs=10, batch_size=32, learning_rate=0.02)
N, N_ASKED = 600, 150


def gaussian_pairs(rng: np.random.Generator, n: int, noise: np.ndarray | float) -> PairTensors:
    """Images and texts of one latent vector each, seen through the same whatever is drawn."""
    seen = np.random.default_rng(99)
    latent = rng.normal(size=(n, 8))
    images, texts = (latent @ seen.normal(size=(8, 12)) / np.sqrt(8) for _ in range(2))
    noise = np.broadcast_to(noise, n)[:, None]
    texts = texts + noise * rng.normal(size=texts.shape)
    return PairTensors(torch.from_numpy(images).float(), torch.from_numpy(texts).float())


def by_value(values: np.ndarray) -> Callable[[float], Kept]:
    """Those of highest value."""

    def kept_at(share: float) -> Kept:
        return Kept(np.sort(np.argsort(-values)[: round(share * len(values))]), None)

    return kept_at


def measure(
    pairs: TrainingPairs,
    values: np.ndarray,
    unfaulty: np.ndarray | None,
    fault_share: float | None,
    *,
    seed: int = 0,
) -> KeepCurve:
    n = len(values)
    share = None if fault_share is None else [fault_share, fault_share, fault_share]
    influence = dataclasses.replace(
        pair_influence(np.zeros(n), np.zeros(n, dtype=np.int64)),
        unfaulty=unfaulty,
        quality={"explained": 1.0, "wrong_share": share},
    )
    return measure_keep_curve(
        *(pairs, by_value(values), influence, TRAINING, new_room()),
        rng=np.random.default_rng(seed),
    )


def half_wrong() -> tuple[TrainingPairs, np.ndarray]:
    """Pairs of which the first half pass their captions round."""
    rng = np.random.default_rng(0)
    tensors = gaussian_pairs(rng, N, 0.3)
    told = np.arange(N)
    told[: N // 2] = np.roll(told[: N // 2], 1)
    pairs = training_pairs(
        N,
        tensors=tensors._replace(texts=tensors.texts[told]),
        validation=gaussian_pairs(rng, N_ASKED, 0.3),
    )
    return pairs, told != np.arange(N)


def test_where_half_of_the_captions_are_wrong_far_fewer_than_all_are_kept() -> None:
    pairs, wrong = half_wrong()
    values = np.where(wrong, -3.0, 0.0) + np.random.default_rng(1).normal(size=N)
    curve = measure(pairs, values, None, 0.5)
    assert 0.3 <= curve.share <= 0.7
    assert curve.best["high"] < 0.85
    lost, error = curve.given_away(1.0)
    assert lost > 3 * error > 0
    # Among all of them at random half are wrong, and models trained on these do worse.
    check = curve.best["check"]
    assert check["difference"] > 3 * check["stderr"] > 0
    assert check["recall"] > check["random"] + 5
    assert not curve.sorts_difficulty
    assert curve.best["validation_pairs"] == N_ASKED
    assert curve.best["n_seeds"] == N_SEEDS


def test_values_that_sort_easy_pairs_from_hard_ones_are_told() -> None:
    # Every caption is right. Those of high value all but repeat one another: an image of each of
    # few places, whose captions are without any noise; the others show what there is to learn.
    rng = np.random.default_rng(2)
    hard = gaussian_pairs(rng, N, 0.3)
    easy = gaussian_pairs(rng, 4, 0.0)
    n_easy = round(CHECKED * N)
    rows = np.arange(n_easy) % 4
    tensors = PairTensors(
        *(torch.cat([e[rows], h[n_easy:]]) for e, h in zip(easy, hard, strict=True))
    )
    pairs = training_pairs(N, tensors=tensors, validation=gaussian_pairs(rng, N_ASKED, 0.3))
    values = np.where(np.arange(N) < n_easy, 1.0, 0.0)
    curve = measure(pairs, values, np.ones(N, dtype=bool), 0.0)
    check = curve.best["check"]
    assert curve.sorts_difficulty
    assert check["difference"] < -3 * check["stderr"] < 0
    assert check["random"] > check["recall"]
    assert curve.share > 0.85


def test_random_pairs_are_those_that_look_right_as_far_as_they_go() -> None:
    # Half look faulty and all of them are: from the others alone a training learns more.
    pairs, wrong = half_wrong()
    values = np.where(wrong, -3.0, 0.0) + np.random.default_rng(1).normal(size=N)
    blind, told = (measure(pairs, values, unfaulty, 0.5) for unfaulty in (None, ~wrong))
    assert told.best["check"]["random"] > blind.best["check"]["random"] + 5


def test_the_check_keeps_to_pairs_that_look_right() -> None:
    pairs, wrong = half_wrong()
    values = np.where(wrong, -3.0, 0.0) + np.random.default_rng(1).normal(size=N)
    told = measure(pairs, values, ~wrong, 0.5)
    assert wrong.mean() == 0.5
    assert told.best["check"]["share"] == 0.5  # there are no more
    hardly = np.zeros(N, dtype=bool)
    hardly[-N // 10 :] = True
    assert measure(pairs, values, hardly, 0.5).best["check"]["share"] == SHARES[0]
    assert measure(pairs, values, None, 0.5).best["check"]["share"] == CHECKED


def test_the_same_generator_gives_the_same_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_curve, "MOST_STEPS", 20)
    pairs, wrong = half_wrong()
    values = -wrong.astype(np.float64)
    one, again, other = (measure(pairs, values, ~wrong, 0.5, seed=s) for s in (0, 0, 1))
    assert one.best == again.best
    np.testing.assert_array_equal(one.measured_recall, again.measured_recall)
    assert not np.array_equal(one.measured_recall, other.measured_recall)


def test_trainings_are_bounded_and_so_are_the_pairs_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_curve, "MOST_STEPS", 5)
    monkeypatch.setattr(keep_curve, "MOST_RANKED", 40)
    pairs, wrong = half_wrong()
    curve = measure(pairs, -wrong.astype(np.float64), ~wrong, 0.5)
    assert curve.best["n_steps"] == 5
    assert curve.best["validation_pairs"] == 40


def test_what_the_cubic_misses_is_in_the_errors_that_are_shown() -> None:
    shares = np.array(keep_curve.SHARES)
    kinked = np.where(shares < 0.9, 50.0, 40.0)  # flat, then down: no cubic has this form
    straight = 50 - 10 * shares
    shown = []
    for recall in (kinked, straight):
        found = np.zeros((len(shares), 2, 3, 30))
        found[:, :, keep_curve.RECALL] = recall[:, None, None]
        found[:, :, keep_curve.RECALL, ::2] += 0.1 * shares[:, None, None]  # pairs differ a little
        check = _Check(CHECKED, found[2], found[2])
        curve = keep_curve._curve(found, check, None, 10, np.random.default_rng(0))
        apart = 0.8 - curve.shares[curve.recall.argmax()]
        shown.append((curve.given_away(0.8)[1], 1 - np.exp(-((apart / MISSED_ALIKE) ** 2))))
    coefficients = np.polyfit(shares, kinked, keep_curve.DEGREE)
    misses = kinked - np.polyval(coefficients, shares)
    (missed, unlike), (fitted, _) = shown
    assert missed == pytest.approx(np.sqrt(unlike * (misses**2).sum() / 2), abs=0.01)
    assert missed > 0.9 > 0.1 > fitted

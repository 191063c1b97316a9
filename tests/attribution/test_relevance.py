"""Nearness to held-out pairs, on Gaussian pairs whose density ratio is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from attribution import relevance
from attribution.relevance import N_FOLDS, PENALTIES, BothSides, held_out_relevance
from tests.reference import auc

N, M, D = 900, 300, 6


def gaussians(shift: float, *, n: int = N, m: int = M, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Standard normal training pairs, and held-out ones shifted along the first axis."""
    rng = np.random.default_rng(seed)
    training, held_out = rng.standard_normal((n, D)), rng.standard_normal((m, D))
    held_out[:, 0] += shift
    return training, held_out, np.arange(n)


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_the_density_ratio_of_shifted_gaussians(shift: float) -> None:
    # log N(x; s, 1) / N(x; 0, 1) = s x_1 - s^2 / 2.
    training, held_out, ids = gaussians(shift)
    found = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(1))
    expected = shift * training[:, 0] - shift**2 / 2
    assert np.corrcoef(found.log_ratio, expected)[0, 1] > 0.9
    # Two normals s apart: the AUC is Phi(s / sqrt 2); its standard error here is some 0.02.
    theory = (1 + math.erf(shift / 2)) / 2
    assert found.auc == pytest.approx(theory, abs=0.05)
    assert found.weight > 0.2


def test_the_weight_by_hand() -> None:
    training, held_out, ids = gaussians(1.0)
    found = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(1))
    # Mann and Whitney: of m n couples, by chance, a variance of m n (m + n + 1) / 12.
    error = math.sqrt(N * M * (N + M + 1) / 12) / (N * M)
    assert found.weight == pytest.approx(2 * (found.auc - 3 * error) - 1, rel=1e-12)
    assert 0 < found.weight < 1


@pytest.mark.parametrize("seed", range(5))
def test_held_out_pairs_like_the_pool_count_for_nothing(seed: int) -> None:
    training, held_out, ids = gaussians(0.0, seed=seed)
    found = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(seed))
    assert found.weight == 0
    assert abs(found.auc - 0.5) < 0.08  # some four standard errors
    assert np.isfinite(found.log_ratio).all()


def test_the_weight_grows_with_the_distance() -> None:
    weights = []
    for shift in (0.3, 1.0, 2.0, 6.0):
        training, held_out, ids = gaussians(shift)
        weights.append(
            held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0)).weight
        )
    assert weights == sorted(weights)
    assert 0.85 < weights[-1] < 1  # 1 less six errors of 0.019: nobody is told apart for certain


@pytest.mark.parametrize(
    ("n_images", "m"), [(2 * N_FOLDS - 1, 50), (50, 2 * N_FOLDS - 1), (1, 1), (50, 0)]
)
def test_too_few_for_folds(n_images: int, m: int) -> None:
    training, held_out, _ = gaussians(5.0, n=60, m=m)
    ids = np.arange(60) % n_images
    found = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0))
    assert found.log_ratio.tolist() == [0.0] * 60
    assert (found.auc, found.weight) == (0.5, 0.0)


def test_just_enough_for_folds() -> None:
    training, held_out, _ = gaussians(5.0, n=60, m=2 * N_FOLDS)
    ids = np.arange(60) % (2 * N_FOLDS)
    found = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0))
    assert found.auc > 0.9
    assert np.ptp(found.log_ratio) > 0


def test_features_that_do_not_vary_tell_nothing() -> None:
    found = held_out_relevance(
        np.full((40, 3), 0.7), np.full((20, 3), 0.7), np.arange(40), rng=np.random.default_rng(0)
    )
    assert found.auc == pytest.approx(0.5)
    assert found.weight == 0


class Fits:
    """Which rows every classifier was fitted to, and which it was asked about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fitted: list[np.ndarray] = []
        self.asked: list[np.ndarray] = []
        spy = self

        class Spied(LogisticRegression):  # type: ignore[misc]
            def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
                spy.fitted.append(x)
                return super().fit(x, y)

            def decision_function(self, x: np.ndarray) -> Any:
                spy.asked.append(x)
                return super().decision_function(x)

        monkeypatch.setattr(relevance, "LogisticRegression", Spied)


def test_nobody_is_scored_by_a_classifier_that_has_seen_their_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = Fits(monkeypatch)
    n, m = 90, 30
    training, held_out, _ = gaussians(1.0, n=n, m=m)
    ids = np.random.default_rng(2).permutation(np.arange(n) // 3)  # three captions an image
    held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0))
    assert len(fits.fitted) == len(fits.asked) == N_FOLDS * len(PENALTIES)
    # Rows are recognised by the rank of their first feature, which no scaling changes.
    both = np.concatenate([training, held_out])[:, 0]
    row_of_rank = np.argsort(both)
    values = np.sort(np.concatenate([x[:, 0] for x in fits.asked[:N_FOLDS]]))
    images = np.append(ids, n + np.arange(m))
    asked_by_all: list[int] = []
    for x, y in zip(fits.fitted, fits.asked, strict=True):
        seen, asked = (row_of_rank[np.searchsorted(values, side[:, 0])] for side in (x, y))
        assert not set(images[seen].tolist()) & set(images[asked].tolist())
        assert len(seen) + len(asked) == n + m
        asked_by_all += asked.tolist()
    assert sorted(asked_by_all) == sorted([*range(n + m)] * len(PENALTIES))


def test_at_most_so_many_pairs_are_fitted_to_and_all_are_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relevance, "MOST_FITTED", 120)
    fits = Fits(monkeypatch)
    training, held_out, ids = gaussians(2.0)
    found = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0))
    assert max(map(len, fits.fitted)) <= 120 + M
    # Each of the drawn is in two of the three fits, and so is each held-out pair.
    assert sum(map(len, fits.fitted[:N_FOLDS])) == 2 * (120 + M)
    assert sum(map(len, fits.asked[:N_FOLDS])) == N + M
    assert np.corrcoef(found.log_ratio, training[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("most_fitted", [10**6, 200])
def test_sides_that_are_not_joined_give_the_same_bits(
    most_fitted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relevance, "MOST_FITTED", most_fitted)
    training, held_out, ids = gaussians(1.0)
    both = BothSides(training[:, :2], training[:, 2:])
    assert both.shape == training.shape
    joined, apart = (
        held_out_relevance(pairs, held_out, ids, rng=np.random.default_rng(0))
        for pairs in (training, both)
    )
    np.testing.assert_array_equal(joined.log_ratio, apart.log_ratio)


def test_blocks_of_scores_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training, held_out, ids = gaussians(1.0)
    whole = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0))
    monkeypatch.setattr(relevance, "ROWS_AT_ONCE", 7)
    blocks = held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0))
    np.testing.assert_allclose(blocks.log_ratio, whole.log_ratio, atol=1e-12)


def test_the_penalty_that_tells_most_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    training, held_out, ids = gaussians(0.5)

    def found() -> float:
        return held_out_relevance(training, held_out, ids, rng=np.random.default_rng(0)).auc

    best, alone = found(), []
    for penalty in PENALTIES:
        monkeypatch.setattr(relevance, "PENALTIES", (penalty,))
        alone.append(found())
    assert best == max(alone) > min(alone)


def test_the_same_generator_gives_the_same_bits() -> None:
    training, held_out, ids = gaussians(1.0)
    first, again, other = (
        held_out_relevance(training, held_out, ids, rng=np.random.default_rng(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.log_ratio, again.log_ratio)
    assert not np.array_equal(first.log_ratio, other.log_ratio)


def test_training_pairs_near_the_held_out_ones_come_first() -> None:
    # A third of the pool is about what all held-out pairs are about.
    rng = np.random.default_rng(0)
    about = np.arange(N) % 3 == 0
    training, held_out = rng.standard_normal((N, D)), rng.standard_normal((M, D))
    training[about, 1] += 2.5
    held_out[:, 1] += 2.5
    found = held_out_relevance(training, held_out, np.arange(N), rng=rng)
    # Two normals 2.5 apart: Phi(2.5 / sqrt 2) = 0.961 at best.
    assert auc(found.log_ratio, about) > 0.94

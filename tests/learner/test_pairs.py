"""Features of pairs that stay in their files, beside the same ones held."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from learner import pairs as module
from learner.config import TrainingConfig
from learner.pairs import (
    FeatureScaling,
    PairTensors,
    StoredPairs,
    blocks_of_pairs,
    fit_feature_scaling,
    in_halves,
    nearest_clusters,
)
from learner.training import Training
from tests.knowing import training_pairs

CPU = torch.device("cpu")
N = 50


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    """Of both sides, far from zero so that a careless variance would show."""
    rng = np.random.default_rng(5)
    images = 100 + 3 * rng.normal(size=(N, 6))
    texts = -7 + 0.5 * rng.normal(size=(N, 4))
    return images.astype(np.float32), texts.astype(np.float32)


def mapped(folder: Path, arrays: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    for name, array in zip(("images", "texts"), arrays, strict=True):
        np.save(folder / f"{name}.npy", array)
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "texts")]


@pytest.fixture
def stored(tmp_path: Path, features: tuple[np.ndarray, np.ndarray]) -> StoredPairs:
    images, texts = mapped(tmp_path, features)
    return StoredPairs(images, texts, fit_feature_scaling(*features), CPU)


@pytest.fixture
def held(features: tuple[np.ndarray, np.ndarray]) -> PairTensors:
    return fit_feature_scaling(*features).pairs(*features, CPU)


def assert_same(one: PairTensors, other: PairTensors) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_stored_pairs_are_those_that_are_held_bit_for_bit(
    stored: StoredPairs, held: PairTensors
) -> None:
    assert (stored.n_pairs, stored.widths, stored.device) == (N, (6, 4), CPU)
    assert (held.n_pairs, held.widths, held.device) == (N, (6, 4), CPU)
    for index in (torch.tensor([3]), torch.tensor([[7, 2, 2], [49, 0, 1]])):
        assert stored.take(index).images.shape == (*index.shape, 6)
        assert_same(stored.take(index), held.take(index))
    assert_same(stored.whole(), held)


def test_a_subset_of_a_subset_looks_into_the_same_files(
    stored: StoredPairs, held: PairTensors
) -> None:
    even, last = np.arange(0, N, 2), np.array([24, 3])
    part = stored.subset(even).subset(last)
    assert part.n_pairs == 2
    assert part.image_features is stored.image_features
    assert_same(part.whole(), held.take(torch.tensor([48, 6])))
    assert_same(held.subset(even).subset(last), part.whole())


def test_blocks_are_all_pairs_in_order(
    stored: StoredPairs, held: PairTensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    for pairs in (stored, held):
        places, parts = zip(*blocks_of_pairs(pairs), strict=True)
        assert [p.start for p in places] == [0, 8, 16, 24, 32, 40, 48]
        assert places[-1].stop == N
        assert_same(PairTensors(*map(torch.cat, zip(*parts, strict=True))), held)


def test_halves_in_memory_are_taken_in_single_precision(
    stored: StoredPairs, held: PairTensors
) -> None:
    pairs = in_halves(stored)
    rows = np.array([40, 4, 9])
    for found, expected in (
        (pairs.whole(), held),
        (pairs.subset(rows).whole(), held.subset(rows)),
        (pairs.subset(rows).take(torch.tensor([[2, 0]])), held.take(torch.tensor([[9, 40]]))),
    ):
        for half, whole in zip(found, expected, strict=True):
            assert half.dtype == torch.float32
            torch.testing.assert_close(half, whole, rtol=2**-11, atol=1e-7)
            assert not torch.equal(half, whole)
    assert not stored.in_memory
    assert pairs.subset(rows).in_memory
    assert held.in_memory


def test_halves_travel_as_their_files(stored: StoredPairs, held: PairTensors) -> None:
    rows = np.array([4, 40])
    data = pickle.dumps(in_halves(stored).subset(rows))
    assert len(data) < 4000
    assert_same(pickle.loads(data).whole(), held.subset(rows))  # noqa: S301


def test_pickled_they_are_paths(stored: StoredPairs, held: PairTensors) -> None:
    rows = np.array([4, 40])
    data = pickle.dumps(stored.subset(rows))
    assert len(data) < 4000
    assert stored.image_features.tobytes()[:24] not in data
    # What is unpickled here was pickled here.
    assert_same(pickle.loads(data).whole(), held.subset(rows))  # noqa: S301


def test_what_is_no_whole_file_is_not_pickled(stored: StoredPairs) -> None:
    for images in (stored.image_features[1:], np.asarray(stored.image_features)):
        part = StoredPairs(images, stored.text_features, stored.scaling, CPU)
        with pytest.raises(ValueError, match=r"path of a whole \.npy file"):
            pickle.dumps(part)


def test_only_large_features_that_are_mapped_stay_in_their_files(
    tmp_path: Path, features: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling = fit_feature_scaling(*features)
    images, texts = mapped(tmp_path, features)
    assert isinstance(scaling.stored(images, texts, CPU), PairTensors)
    monkeypatch.setattr(module, "MOST_BYTES_HELD", 4 * images.size - 1)  # the texts are fewer
    assert isinstance(scaling.stored(*features, CPU), PairTensors)
    found = scaling.stored(images, texts, CPU)
    assert isinstance(found, StoredPairs)
    assert_same(found.whole(), scaling.pairs(*features, CPU))


def test_scaling_by_blocks_is_that_of_the_whole(
    features: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES_HELD", 0)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    found = fit_feature_scaling(*features)
    for side, mean, scale in (
        (features[0], found.image_mean, found.image_scale),
        (features[1], found.text_mean, found.text_scale),
    ):
        exact = side.astype(np.longdouble)
        np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-7)  # float32
        centred = exact - exact.mean(axis=0)
        assert scale == pytest.approx(float(np.sqrt((centred**2).sum() / N)), rel=1e-12)


def test_a_constant_side_has_a_scale_by_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES_HELD", 0)
    constant = np.full((N, 3), 2.5, dtype=np.float32)
    found = fit_feature_scaling(constant, constant)
    assert found.image_scale == 1.0
    assert found.image_mean.tolist() == [2.5] * 3


def test_nearest_clusters_by_blocks(
    stored: StoredPairs, held: PairTensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    clusters = np.concatenate([np.arange(5), rng.integers(5, size=N - 5)])
    others = PairTensors(
        torch.from_numpy(rng.normal(size=(30, 6)).astype(np.float32)),
        torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32)),
    )
    joined = np.concatenate([side.double().numpy() for side in held], axis=1)
    centres = np.stack([joined[clusters == k].mean(axis=0) for k in range(5)])
    targets = np.concatenate([side.double().numpy() for side in others], axis=1)
    distances = ((targets[:, None] - centres) ** 2).sum(axis=-1)
    assert len(set(distances.argmin(axis=1))) > 1
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    for pairs in (stored, held):
        found = nearest_clusters(pairs, clusters, others)
        np.testing.assert_array_equal(found, distances.argmin(axis=1))


def test_training_on_files_takes_the_same_steps(stored: StoredPairs, held: PairTensors) -> None:
    config = TrainingConfig(embed_dim=3, batch_size=8)
    runs = [Training(pairs, config, n_steps=9, seed=1) for pairs in (stored, held)]
    for run in runs:
        run.advance_to(9)
    assert all(torch.equal(a, b) for a, b in zip(*(run.parameters for run in runs), strict=True))
    start = Training(held, config, n_steps=9, seed=1).parameters
    assert not torch.equal(runs[0].parameters.image_map, start.image_map)


def test_float16_files_are_scaled_as_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    halves = (
        rng.normal(size=(N, 6)).astype(np.float16),
        rng.normal(size=(N, 4)).astype(np.float16),
    )
    scaling = FeatureScaling(
        np.full(6, 0.1, dtype=np.float32), 1.5, np.full(4, 0.2, dtype=np.float32), 0.7
    )
    images, texts = mapped(tmp_path, halves)
    found = StoredPairs(images, texts, scaling, CPU).whole()
    assert found.images.dtype == torch.float32
    assert_same(found, scaling.pairs(*halves, CPU))


def test_groups_of_the_held_out_pairs_are_those_of_the_pairs_asked() -> None:
    pairs = training_pairs(4)
    member = np.array([True, False, True, False])
    known = dataclasses.replace(
        pairs, validation_groups={"gender": {"female": member, "male": ~member}}
    )
    asked = known.asking(np.array([0, 1, 2]))
    assert asked.validation_groups is not None
    of = asked.validation_groups["gender"]
    assert {group: rows.tolist() for group, rows in of.items()} == {
        "female": [True, False, True],
        "male": [False, True, False],
    }
    assert pairs.asking(np.array([0, 1])).validation_groups is None

"""The map: near pairs stay near, the same draws give the same map, hard cases, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from artifacts.provenance import PAIR_MAP, Mode, Provenance
from artifacts.store import Store
from reporting.report import pair_map
from reporting.report.pair_map import PairMap, map_pairs, place_others

N_TOPICS = 6


def topics(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around six topics, and the topic of each."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(N_TOPICS, size=n)
    points = rng.normal(size=(N_TOPICS, 32))[topic] + 0.5 * rng.normal(size=(n, 32))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), topic


def drawn(embeddings: np.ndarray, seed: int = 0) -> PairMap:
    return map_pairs(embeddings, rng=np.random.default_rng(seed))


def of_one_topic(places: np.ndarray, topic: np.ndarray) -> float:
    """The share of the five nearest on the map that have the pair's topic."""
    squares = ((places[:, None] - places[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    return float((topic[np.argsort(squares, axis=1)[:, :5]] == topic[:, None]).mean())


def test_what_is_near_stays_near() -> None:
    embeddings, topic = topics(300)
    found = drawn(embeddings)
    assert trustworthiness(embeddings, found.places, n_neighbors=5) > 0.85  # by chance 0.5
    assert of_one_topic(found.places, topic) > 0.95  # by chance 0.17


def test_pairs_that_are_no_landmarks_lie_with_their_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_map, "MAX_LANDMARKS", 150)
    monkeypatch.setattr(pair_map, "ROWS_AT_ONCE", 64)
    embeddings, topic = topics(600)
    found = drawn(embeddings)
    assert of_one_topic(found.places, topic) > 0.95
    assert trustworthiness(embeddings, found.places, n_neighbors=5) > 0.75
    assert np.array_equal(drawn(embeddings).places, found.places)
    assert not np.allclose(drawn(embeddings, 1).places, found.places, atol=0.1)  # other landmarks


def test_a_pair_goes_beside_the_nearest_landmark_not_between_two_islands() -> None:
    embeddings = np.array(
        [[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 1, 0.01], [1, 0.95, 0], [1, 0.005, 0]],
        dtype=np.float32,
    )
    landmarks = np.array([0, 1, 2, 3])
    at = np.array([[0, 0], [0.01, 0], [10, 0], [10, 0.01]], dtype=np.float32)
    places = place_others(embeddings, landmarks, at)
    assert np.array_equal(places[:4], at)
    assert 0 < places[4, 0] < 0.01  # half way to the other island
    assert places[4, 1] == 0
    assert places[5] == pytest.approx([0.005, 0], abs=1e-3)  # between two of one


def test_the_same_draws_give_the_same_map() -> None:
    embeddings, _ = topics(200)
    first, second, other = drawn(embeddings, 1), drawn(embeddings, 1), drawn(embeddings, 2)
    for name in ("places", "neighbours", "similarities"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    # Where all are compared, nothing is drawn for neighbours.
    assert np.array_equal(first.neighbours, other.neighbours)


def test_the_map_fills_the_square_with_both_axes_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.array([[0, 0], [30, 10], [10, 2]], dtype=np.float32)
    monkeypatch.setattr(pair_map, "place_landmarks", lambda points, rng: raw)
    places = drawn(np.eye(3, dtype=np.float32)).places
    np.testing.assert_allclose(places, [[-1, -1 / 3], [1, 1 / 3], [-1 / 3, -1 / 5]], atol=1e-6)
    assert places.dtype == np.float32


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 30])
@pytest.mark.parametrize("kind", ["different", "equal", "half of them equal"])
def test_small_sets_and_copies(n: int, kind: str) -> None:
    embeddings, _ = topics(n)
    if kind != "different":
        embeddings[: n if kind == "equal" else n // 2] = embeddings[0]
    found = drawn(embeddings)
    assert found.places.shape == (n, 2)
    assert found.neighbours.shape == found.similarities.shape == (n, min(8, n - 1))
    assert np.isfinite(found.places).all()
    reach = 0 if kind == "equal" or n == 1 else 1
    assert np.abs(found.places).max() == pytest.approx(reach, abs=1e-6)
    assert (found.neighbours != np.arange(n)[:, None]).all()


def test_narrow_embeddings_and_one_dimension() -> None:
    angles = np.linspace(0, 1, 40)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert np.isfinite(drawn(circle).places).all()
    assert (drawn(np.ones((20, 1), dtype=np.float32)).places == 0).all()


def test_saved_and_loaded(tmp_path: Path) -> None:
    embeddings, _ = topics(20)
    found = drawn(embeddings)
    store, provenance = Store.open(str(tmp_path)), Provenance(0, {}, {})
    store.stage(PAIR_MAP, Mode.RUN, provenance, PairMap, lambda: found)
    loaded = store.load(PAIR_MAP, provenance, PairMap).value
    for name in ("places", "neighbours", "similarities"):
        assert np.array_equal(getattr(loaded, name), getattr(found, name))
        assert getattr(loaded, name).dtype == getattr(found, name).dtype

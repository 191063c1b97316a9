"""Agreement beside other pairs, against loops over all pairs, and in maps of trusted pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from attribution import agreement
from attribution.agreement import (
    MOST_TRUSTED,
    Surroundings,
    fit_log_scale,
    neighbour_agreement,
    normalised_agreement,
    refine_agreement,
    strangers,
    trusted_pairs,
)
from attribution.joined_views import Agreement, joined_agreement
from learner.pairs import PairTensors
from tests import reference
from tests.encoders.test_joint_map import correlated_pairs
from tests.reference import auc

CPU = torch.device("cpu")


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def sides(n: int, *, seed: int, noise: float = 0.5, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of images, and of captions that say much the same."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, d))
    return unit(images), unit(images + noise * rng.normal(size=(n, d)))


# --- Neighbours -------------------------------------------------------------------------------


def slow_neighbour_agreement(
    embeddings: np.ndarray, others: np.ndarray, witnesses: list[int]
) -> np.ndarray:
    """The definition, pair by pair; as many neighbours for those who are no witnesses."""
    k, means = min(20, len(witnesses) - 1), []
    for i in range(len(embeddings)):
        asked = sorted(
            (j for j in witnesses if j != i), key=lambda j: -float(embeddings[i] @ embeddings[j])
        )[:k]
        means.append(sum(float(others[i] @ others[j]) for j in asked) / k)
    return np.array(means)


@pytest.mark.parametrize(("n", "rows_at_once"), [(70, 1024), (70, 16), (12, 1024), (2, 1024)])
def test_neighbours_are_those_of_the_definition(
    n: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", rows_at_once)
    images, texts = sides(n, seed=0)
    rng = np.random.default_rng(0)
    found = neighbour_agreement(images, texts, np.ones(n, dtype=bool), rng=rng)
    expected = slow_neighbour_agreement(images, texts, list(range(n)))
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32


def test_only_witnesses_are_asked() -> None:
    images, texts = sides(60, seed=1)
    witnesses = np.random.default_rng(2).permutation(60)[:30]
    may_witness = np.isin(np.arange(60), witnesses)
    found = neighbour_agreement(images, texts, may_witness, rng=np.random.default_rng(0))
    expected = slow_neighbour_agreement(images, texts, sorted(witnesses.tolist()))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    changed = texts.copy()
    row = int(np.flatnonzero(~may_witness)[0])
    changed[row] = -changed[row]
    again = neighbour_agreement(images, changed, may_witness, rng=np.random.default_rng(0))
    assert np.flatnonzero(again != found).tolist() == [row]  # its own alone


def test_nobody_is_their_own_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two pairs on each of three axes; nobody's caption is like that of the twin.
    monkeypatch.setattr(agreement, "N_NEIGHBOURS", 1)
    images = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    texts = np.eye(6, dtype=np.float32)
    everybody, rng = np.ones(6, dtype=bool), np.random.default_rng(0)
    assert neighbour_agreement(images, texts, everybody, rng=rng).tolist() == [0.0] * 6
    assert neighbour_agreement(images, images, everybody, rng=rng).tolist() == [1.0] * 6


def test_at_most_so_many_witnesses_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MAX_WITNESSES", 8)
    images, texts = sides(50, seed=3)
    may_witness = np.arange(50) % 2 == 0
    found = neighbour_agreement(images, texts, may_witness, rng=np.random.default_rng(5))
    drawn = np.random.default_rng(5).permutation(np.arange(0, 50, 2))[:8].tolist()
    np.testing.assert_allclose(found, slow_neighbour_agreement(images, texts, drawn), atol=1e-6)
    other = neighbour_agreement(images, texts, may_witness, rng=np.random.default_rng(6))
    assert not np.allclose(other, found, atol=1e-3)


@pytest.mark.parametrize(("n", "n_witnesses"), [(1, 1), (1, 0), (5, 1), (5, 0)])
def test_without_others_to_ask_there_is_nothing_to_say(n: int, n_witnesses: int) -> None:
    images, texts = sides(n, seed=0)
    may_witness = np.arange(n) < n_witnesses
    found = neighbour_agreement(images, texts, may_witness, rng=np.random.default_rng(0))
    assert found.tolist() == [0.0] * n


def test_a_wrong_caption_is_unlike_those_of_similar_images() -> None:
    rng = np.random.default_rng(0)
    topics = np.arange(200) % 4
    axes = np.eye(8)[:4]
    images = unit(axes[topics] + 0.1 * rng.normal(size=(200, 8)))
    told = topics.copy()
    told[:10] = (topics[:10] + 1) % 4
    texts = unit(axes[told] + 0.1 * rng.normal(size=(200, 8)))
    for here, there in ((images, texts), (texts, images)):
        found = neighbour_agreement(here, there, np.ones(200, dtype=bool), rng=rng)
        assert found[:10].max() < 0.4 < found[10:].min()


def in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for neighbours within groups although the pairs are few."""
    monkeypatch.setattr(agreement, "ALL_COMPARED", 0)
    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", 16)


def test_neighbours_of_many_pairs_are_those_of_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    in_groups(monkeypatch)
    images, texts = sides(100, seed=1)
    groups = np.random.default_rng(3).permutation(np.repeat([0, 1], [60, 40]))
    may_witness = np.arange(100) % 7 != 0
    rng = np.random.default_rng(0)
    found = neighbour_agreement(images, texts, may_witness, rng=rng, groups=groups)
    for group in (0, 1):
        rows = np.flatnonzero(groups == group)
        witnesses = np.flatnonzero(may_witness[rows]).tolist()
        expected = slow_neighbour_agreement(images[rows], texts[rows], witnesses)
        np.testing.assert_allclose(found[rows], expected, atol=1e-6)


def test_pairs_of_a_group_with_few_to_ask_ask_all(monkeypatch: pytest.MonkeyPatch) -> None:
    in_groups(monkeypatch)
    images, texts = sides(70, seed=2)
    groups = np.repeat([0, 1], [60, 10])
    everybody, rng = np.ones(70, dtype=bool), np.random.default_rng(0)
    found = neighbour_agreement(images, texts, everybody, rng=rng, groups=groups)
    expected = slow_neighbour_agreement(images, texts, list(range(70)))
    np.testing.assert_allclose(found[60:], expected[60:], atol=1e-6)
    within = slow_neighbour_agreement(images[:60], texts[:60], list(range(60)))
    np.testing.assert_allclose(found[:60], within, atol=1e-6)


def test_at_most_so_many_of_a_group_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    in_groups(monkeypatch)
    monkeypatch.setattr(agreement, "MOST_IN_GROUP", 30)
    images, texts = sides(60, seed=2)
    everybody, groups = np.ones(60, dtype=bool), np.zeros(60, dtype=np.int64)
    rng = np.random.default_rng(4)
    found = neighbour_agreement(images, texts, everybody, rng=rng, groups=groups)
    drawn = np.sort(np.random.default_rng(4).choice(np.arange(60), 30, replace=False)).tolist()
    np.testing.assert_allclose(found, slow_neighbour_agreement(images, texts, drawn), atol=1e-6)


def test_groups_that_are_not_given_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    in_groups(monkeypatch)
    # Four scenes far apart: whoever is near is of the same scene, whatever the groups.
    rng, topics, axes = np.random.default_rng(0), np.arange(900) % 4, np.eye(8)
    images, texts = (unit(axes[topics + s] + 0.1 * rng.normal(size=(900, 8))) for s in (0, 4))
    found = neighbour_agreement(images, texts, np.ones(900, dtype=bool), rng=rng)
    assert found.min() > 0.7  # other scenes: zero or so


# --- Normalised -------------------------------------------------------------------------------


def mean_loss(images: np.ndarray, texts: np.ndarray, log_scale: float) -> float:
    cosines = images.astype(np.float64) @ texts.T.astype(np.float64)
    return float(reference.pair_losses(math.exp(log_scale) * cosines).mean())


def test_the_temperature_is_that_of_least_loss() -> None:
    images, texts = sides(40, seed=4, noise=0.7)
    fitted = float(
        fit_log_scale(
            torch.from_numpy(images), torch.from_numpy(texts), rng=np.random.default_rng(0)
        )
    )
    grid = np.arange(0, math.log(100), 0.005)
    best = grid[np.argmin([mean_loss(images, texts, float(s)) for s in grid])]
    assert 0.5 < best < 4  # inside, so that neither end of the grid would do
    assert fitted == pytest.approx(best, abs=0.06)  # half a step of the grid


def test_the_temperature_stays_within_clips_bounds() -> None:
    # Images so alike that no scale tells them apart too well; and pairs that all disagree.
    close = torch.from_numpy(unit(np.ones((8, 8)) + 0.3 * np.eye(8)))
    rng = np.random.default_rng(0)
    assert float(fit_log_scale(close, close, rng=rng)) == pytest.approx(math.log(100))
    assert float(fit_log_scale(torch.eye(8), -torch.eye(8), rng=rng)) == 0


def test_normalised_agreement_by_the_formula() -> None:
    images, texts = sides(30, seed=5, noise=0.8)
    found = normalised_agreement(images, texts, CPU, rng=np.random.default_rng(0)).own
    grid = np.linspace(0, math.log(100), 47)
    tau = math.exp(-grid[np.argmin([mean_loss(images, texts, s) for s in grid])])
    expected = []
    for i in range(30):
        rows = math.log(sum(math.exp(float(images[i] @ texts[j]) / tau) for j in range(30)))
        columns = math.log(sum(math.exp(float(images[j] @ texts[i]) / tau) for j in range(30)))
        expected.append(float(images[i] @ texts[i]) - tau / 2 * (rows + columns))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32


def test_outranked_is_the_share_of_other_images_that_a_caption_suits_better() -> None:
    images, texts = sides(40, seed=12, noise=1.5)
    found = normalised_agreement(images, texts, CPU, rng=np.random.default_rng(0)).outranked
    expected = [
        sum(float(images[i] @ texts[j]) > float(images[j] @ texts[j]) for i in range(40)) / 39
        for j in range(40)
    ]
    assert found is not None
    assert len(set(expected)) > 5
    np.testing.assert_allclose(found, expected, atol=1e-7)  # a float32 share


def test_outranked_is_averaged_over_the_batches_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = sides(200, seed=13, noise=1.5)
    whole = normalised_agreement(images, texts, CPU, rng=np.random.default_rng(0)).outranked
    monkeypatch.setattr(agreement, "NORMALISATION_BATCH", 50)
    parts = normalised_agreement(images, texts, CPU, rng=np.random.default_rng(0)).outranked
    assert whole is not None
    assert parts is not None
    # Ten batches of 49 others: a share of 0.5 has an error of 0.02; four of them.
    np.testing.assert_allclose(parts, whole, atol=0.09)
    assert np.abs(parts - whole).max() > 0
    assert float(parts.mean()) == pytest.approx(float(whole.mean()), abs=0.01)


def test_every_pair_is_in_batches_of_the_given_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Equal pairs of cosine c: s = c - (c + tau log b), with batches of four, of seven, of all ten.
    same, found = np.tile(np.array([0.6, 0.8], dtype=np.float32), (10, 1)), {}
    for b in (4, 7, 10):
        monkeypatch.setattr(agreement, "NORMALISATION_BATCH", b)
        found[b] = normalised_agreement(same, same, CPU, rng=np.random.default_rng(0)).own
        assert found[b].max() < 0
        np.testing.assert_allclose(
            found[b] / math.log(b), found[4][0] / math.log(4), rtol=1e-4
        )  # float32, divided by a scale of up to a hundred


def test_batches_are_averaged_over(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = sides(200, seed=6)
    whole = normalised_agreement(images, texts, CPU, rng=np.random.default_rng(0)).own
    monkeypatch.setattr(agreement, "NORMALISATION_BATCH", 100)

    def halves() -> np.ndarray:
        return np.stack(
            [
                normalised_agreement(images, texts, CPU, rng=np.random.default_rng(seed)).own
                for seed in range(6)
            ]
        )

    averaged = halves()
    assert np.all(averaged > whole)  # half of the denominator is missing
    assert np.corrcoef(whole, averaged[0])[0, 1] > 0.99
    monkeypatch.setattr(agreement, "N_NORMALISATIONS", 1)
    # Ten shufflings instead of one: the spread falls by sqrt(10) = 3.2 or so.
    assert averaged.std(axis=0).mean() < halves().std(axis=0).mean() / 2


@pytest.mark.parametrize(("error", "n_shuffles"), [(1e3, 2), (0.0, 10), (0.2, None)])
def test_many_pairs_are_shuffled_as_often_as_the_precision_needs(
    error: float, n_shuffles: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = sides(200, seed=6)
    monkeypatch.setattr(agreement, "NORMALISATION_BATCH", 20)
    monkeypatch.setattr(agreement, "SMALL_ERROR", error)
    monkeypatch.setattr(agreement, "ALL_NORMALISED", 0)
    found: dict[int, np.ndarray] = {}
    for most in range(2, 11):
        found[most] = normalised_agreement(
            images, texts, CPU, rng=np.random.default_rng(0), n_normalisations=most
        ).own
    taken = min(m for m in found if np.array_equal(found[m], found[10]))
    # In batches of twenty, the agreement of ten shufflings apart from one another tells the error.
    monkeypatch.setattr(agreement, "ALL_NORMALISED", 10**6)
    whole = {
        most: normalised_agreement(
            images, texts, CPU, rng=np.random.default_rng(0), n_normalisations=most
        ).own
        for most in range(1, 11)
    }
    np.testing.assert_allclose(found[10], whole[taken], atol=1e-6)
    if n_shuffles is not None:
        assert taken == n_shuffles
        return
    assert 2 < taken < 10
    single = [whole[1], *(m * whole[m] - (m - 1) * whole[m - 1] for m in range(2, 11))]

    def relative_error(n_done: int) -> float:
        done = np.stack(single[:n_done])
        return float(np.sqrt(done.var(axis=0, ddof=1).mean() / n_done) / done.mean(axis=0).std())

    assert relative_error(taken) <= error < relative_error(taken - 1)


def test_sums_of_exponentials_that_float32_cannot_hold_are_taken_exactly() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, -100.0]])
    for sums, dim in zip(agreement._log_sums(logits), (1, 0), strict=True):
        torch.testing.assert_close(sums, torch.tensor([100.0, 0.0]), atol=1e-6, rtol=0)
        assert sums.shape == logits.sum(dim=dim).shape
    close = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32))
    expected = np.log(np.exp(close.numpy().astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(agreement._log_sums(close)[0].numpy(), expected, atol=1e-5)


def test_embeddings_in_files_agree_as_those_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "NORMALISATION_BATCH", 50)
    held, everyone = sides(120, seed=6), np.ones(120, dtype=bool)
    stored: list[np.ndarray] = []
    for name, side in zip(("images", "texts"), held, strict=True):
        np.save(tmp_path / f"{name}.npy", side)
        stored.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    for most in (10**6, 0):
        monkeypatch.setattr(agreement, "ALL_NORMALISED", most)
        monkeypatch.setattr(agreement, "ALL_COMPARED", most)
        one, other = (
            normalised_agreement(pair[0], pair[1], CPU, rng=np.random.default_rng(0))
            for pair in (held, stored)
        )
        np.testing.assert_array_equal(one.own, other.own)
        np.testing.assert_array_equal(one.by_chance, other.by_chance)
        near, again = (
            neighbour_agreement(pair[0], pair[1], everyone, rng=np.random.default_rng(0))
            for pair in (held, stored)
        )
        np.testing.assert_array_equal(near, again)


def test_a_caption_that_suits_most_images_scores_lower_than_its_cosine() -> None:
    rng = np.random.default_rng(7)
    scene = np.eye(12)[0]
    images = unit(scene + 0.7 * rng.normal(size=(80, 12)))
    texts = unit(images + 0.15 * rng.normal(size=(80, 12)))
    texts[:8] = unit(np.tile(scene, (8, 1)))  # boilerplate
    cosines = (images * texts).sum(axis=1)
    found = normalised_agreement(images, texts, CPU, rng=rng).own

    def place(scores: np.ndarray) -> float:
        """Mean share of right captions below the boilerplate."""
        return float((scores[:8, None] > scores[None, 8:]).mean())

    assert place(found) <= place(cosines)
    assert found[:8].max() < np.median(found[8:])
    standard = [(s - s.mean()) / s.std() for s in (found, cosines)]
    assert standard[0][:8].mean() < standard[1][:8].mean()


def test_a_single_pair_agrees_as_well_as_with_itself() -> None:
    images, texts = sides(1, seed=0)
    assert normalised_agreement(images, texts, CPU, rng=np.random.default_rng(0)).own.tolist() == [
        0.0
    ]


def test_agreement_by_chance_is_that_of_an_image_with_another_caption() -> None:
    images, texts = sides(30, seed=8, noise=0.8)
    crossed = normalised_agreement(images, texts, CPU, rng=np.random.default_rng(0)).by_chance
    tau = math.exp(
        -float(
            fit_log_scale(
                torch.from_numpy(images), torch.from_numpy(texts), rng=np.random.default_rng(0)
            )
        )
    )
    cosines = images.astype(np.float64) @ texts.T.astype(np.float64)
    rows, columns = (np.log(np.exp(cosines / tau).sum(axis=axis)) for axis in (1, 0))
    every_pairing = cosines - tau / 2 * (rows[:, None] + columns[None, :])
    # One of the other captions, each of which is taken once.
    place = np.abs(every_pairing - crossed[:, None]).argmin(axis=1)
    np.testing.assert_allclose(every_pairing[np.arange(30), place], crossed, atol=1e-5)
    assert (place != np.arange(30)).all()
    assert sorted(place) == list(range(30))


# --- Beside the training pairs ----------------------------------------------------------------


def test_others_are_judged_beside_the_training_pairs_and_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(agreement, "MIN_BY_CHANCE", 50)
    images, texts = sides(30, seed=11, noise=0.8)
    held_out = sides(20, seed=12, noise=0.8)
    around = Surroundings.drawn_from(images, texts, CPU, rng=np.random.default_rng(0))
    ids = np.arange(20) // 2
    found = around.agreement(*held_out, ids, rng=np.random.default_rng(1))
    tau = math.exp(-float(around.log_scale))

    def slow(i: int, j: int) -> float:
        """Image i of the held-out pairs with caption j."""
        image, text = held_out[0][i].astype(np.float64), held_out[1][j].astype(np.float64)
        own = math.exp(float(image @ text) / tau)
        by_image = own + sum(math.exp(float(image @ t) / tau) for t in texts)
        by_text = own + sum(math.exp(float(v @ text) / tau) for v in images)
        return float(image @ text) - tau / 2 * (math.log(by_image) + math.log(by_text))

    np.testing.assert_allclose(found.own, [slow(i, i) for i in range(20)], atol=1e-5)  # float32
    # Fifty times or more, each image as often: three times; each time every caption once.
    assert found.by_chance.shape == (60,)
    every_pairing = np.array([[slow(i, j) for j in range(20)] for i in range(20)])
    for crossed in found.by_chance.reshape(3, 20):
        place = np.abs(every_pairing - crossed[:, None]).argmin(axis=1)
        np.testing.assert_allclose(every_pairing[np.arange(20), place], crossed, atol=1e-5)
        assert (ids[place] != ids).all()
        assert sorted(place) == list(range(20))


def test_the_surroundings_are_one_batch_at_a_temperature_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, texts = sides(40, seed=4, noise=0.7)
    whole = Surroundings.drawn_from(images, texts, CPU, rng=np.random.default_rng(0))
    grid = np.linspace(0, math.log(100), 47)
    best = grid[np.argmin([mean_loss(images, texts, float(s)) for s in grid])]
    assert float(whole.log_scale) == pytest.approx(best, abs=1e-5)
    monkeypatch.setattr(agreement, "NORMALISATION_BATCH", 15)
    part = Surroundings.drawn_from(images, texts, CPU, rng=np.random.default_rng(0))
    assert part.images.shape == part.texts.shape == (15, 6)
    rows = [np.abs(images - image).sum(axis=1).argmin() for image in part.images.numpy()]
    assert len(set(rows)) == 15
    np.testing.assert_array_equal(part.images.numpy(), images[rows])
    np.testing.assert_array_equal(part.texts.numpy(), texts[rows])  # still pairs


def test_a_held_out_pair_has_no_part_in_what_is_said_of_another() -> None:
    around = Surroundings.drawn_from(*sides(30, seed=11), CPU, rng=np.random.default_rng(0))
    images, texts = sides(20, seed=12)

    def own(captions: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(1)
        return around.agreement(images, captions, np.arange(20), rng=rng).own

    changed = texts.copy()
    changed[3] = -changed[3]
    assert np.flatnonzero(own(changed) != own(texts)).tolist() == [3]


# --- Strangers --------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
@hypothesis_settings(deadline=None, derandomize=True)
def test_strangers_are_of_other_images_and_each_is_one_once(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    found = strangers(ids, rng)
    assert sorted(found.tolist()) == list(range(len(ids)))
    if max(sizes) <= len(ids) / 2:  # else there are not enough others
        assert (ids[found] != ids).all()
    if len(ids) > 1:
        assert (found != np.arange(len(ids))).all()


def test_of_one_image_alone_another_pair_is_the_stranger() -> None:
    for seed in range(5):
        found = strangers(np.zeros(4, dtype=np.int64), np.random.default_rng(seed))
        assert sorted(found.tolist()) == [0, 1, 2, 3]
        assert (found != np.arange(4)).all()
    assert strangers(np.zeros(1, dtype=np.int64), np.random.default_rng(0)).tolist() == [0]


def test_of_an_image_with_too_many_captions_as_many_as_can_be_are_strangers() -> None:
    # Seven of ten pairs show one image: three of them, and all three others, meet another image.
    ids = np.array([0] * 7 + [1, 2, 3])
    for seed in range(10):
        found = strangers(ids, np.random.default_rng(seed))
        assert sorted(found.tolist()) == list(range(10))
        assert (ids[found] != ids).sum() == 6
        assert (found != np.arange(10)).all()


def test_strangers_are_drawn_anew() -> None:
    ids = np.arange(50)
    drawn = {tuple(strangers(ids, np.random.default_rng(seed)).tolist()) for seed in range(8)}
    assert len(drawn) == 8


# --- Seen again, in a map of trusted pairs -----------------------------------------------------

# Gaussian pairs, of which some captions were exchanged.
N, N_WRONG = 600, 120
OTHERS = np.roll(np.arange(N), -7)  # the next one has the right caption of the one before


def test_trusted_are_those_of_the_best_ranks_in_both() -> None:
    own = np.array([9.0, 1.0, 5.0, 4.0, 3.0])
    losses = np.array([5.0, 4.0, 1.0, 2.0, 3.0])
    # Ranks of agreement 5 1 4 3 2 less those of loss 5 4 1 2 3: 0 -3 3 1 -1.
    assert trusted_pairs(own, losses, 0.8).tolist() == [True, False, True, True, True]
    assert trusted_pairs(own, losses, 0.4).tolist() == [False, False, True, True, False]
    assert trusted_pairs(own[:1], losses[:1], 0.8).tolist() == [True]


def test_as_many_are_trusted_as_are_right_but_never_all_and_never_none() -> None:
    own = np.random.default_rng(0).normal(size=200)
    for share, n_trusted in ((0.3, 60), (0.9, 180), (1.0, MOST_TRUSTED * 200), (0.0, 1)):
        trusted = trusted_pairs(own, -own, share)
        assert trusted.sum() == n_trusted
        assert own[trusted].min() > own[~trusted].max()


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
        wrong_share=N_WRONG / N,
        rng=np.random.default_rng(1),
    )
    assert 1 - auc(refined.log_odds, right) < 0.8 * (1 - auc(first.own, right))
    assert np.median(refined.by_chance) < np.median(refined.log_odds[right])
    alone = joined_agreement([first], N_WRONG / N)
    assert auc(alone.log_odds, right) == pytest.approx(auc(first.own, right))


class Few:
    """Sixty right pairs, of which a map can say something, with two captions an image."""

    def __init__(self, training: PairTensors, validation: PairTensors) -> None:
        rows = slice(N_WRONG, N_WRONG + 60)
        self.training = PairTensors(*(side[rows] for side in training))
        self.validation = validation
        whole = first_view(training, 1.0)
        self.first = Agreement(whole.own[rows], whole.by_chance[rows])
        self.ids = np.arange(60) // 2

    def refined(self) -> np.ndarray:
        return refine_agreement(
            *(self.first, -self.first.own, self.training, self.ids, self.validation),
            others=np.roll(np.arange(60), -7),
            wrong_share=0.2,
            rng=np.random.default_rng(1),
        ).log_odds

    def cosines(self, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        """Of image and caption in the maps that judge them."""
        seen = []

        def normalised(images: np.ndarray, texts: np.ndarray, *args: Any, **more: Any) -> Agreement:
            seen.append((images * texts).sum(axis=1))
            return normalised_agreement(images, texts, *args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(agreement, "normalised_agreement", normalised)
            self.refined()
        return np.concatenate(seen)


def test_a_pair_has_no_part_in_the_map_that_judges_it(
    pairs: tuple[PairTensors, PairTensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Few(*pairs)
    before, cosines, right = few.refined(), few.cosines(monkeypatch), few.training
    assert before.shape == (60,)
    assert np.isfinite(before).all()

    def turned_round(row: int) -> PairTensors:
        texts = right.texts.clone()
        texts[row] *= -1
        return right._replace(texts=texts)

    # A caption that fits its own image's map would raise the agreement of its image's other pair.
    few.training = turned_round(1)
    after = few.refined()
    assert np.abs(after[0] - before[0]) < np.abs(after[1] - before[1])
    # Of a pair that maps are fitted to: the one that judges it and its image's other pair is not,
    # and differs by float32 rounding; those of the other images are.
    row = int(trusted_pairs(few.first.own, -few.first.own, 0.8).argmax())
    few.training = turned_round(row)
    changes = np.abs(few.cosines(monkeypatch) - cosines)
    assert changes[row ^ 1] < 1e-6
    assert np.median(changes[few.ids != few.ids[row]]) > 1e-4


def test_maps_are_fitted_to_held_out_pairs_too(
    pairs: tuple[PairTensors, PairTensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Few(*pairs)
    cosines = few.cosines(monkeypatch)
    few.validation = few.validation._replace(texts=few.validation.texts.flip(0))
    assert np.abs(few.cosines(monkeypatch) - cosines).min() > 1e-4


def test_two_images_leave_the_first_view_alone(pairs: tuple[PairTensors, PairTensors]) -> None:
    training, validation = pairs
    few = PairTensors(*(side[:20] for side in training))
    whole = first_view(training, 0.3)
    first = Agreement(whole.own[200:220], whole.by_chance[200:220])
    refined = refine_agreement(
        *(first, -first.own, few, np.arange(20) % 2, validation),
        others=np.roll(np.arange(20), -7),
        wrong_share=0.2,
        rng=np.random.default_rng(1),
    )
    assert np.argsort(refined.log_odds).tolist() == np.argsort(first.own).tolist()


def test_the_encoder_alone(pairs: tuple[PairTensors, PairTensors]) -> None:
    training, validation = pairs
    first = first_view(training, 0.3)
    alone = refine_agreement(
        *(first, -first.own, training, np.arange(N), validation),
        others=OTHERS,
        wrong_share=N_WRONG / N,
        rng=np.random.default_rng(1),
        encoder_alone=True,
    )
    assert np.argsort(alone.log_odds).tolist() == np.argsort(first.own).tolist()

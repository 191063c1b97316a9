"""Halves, what models trained on one say of the other, and whom they have never seen."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from attribution import cross_fitting
from attribution.cross_fitting import (
    FEWEST_ASKED,
    CrossFit,
    HeldOutModel,
    _dealt,
    _parts,
    cross_fit,
    held_out_influences,
)
from attribution.retraining import mean_pair_losses
from engine.local import LocalEngine
from learner.config import TrainingConfig
from learner.model import Parameters, mean_loss
from learner.pairs import FeatureScaling, PairTensors, StoredPairs, TrainingPairs
from learner.training import Training
from tests.knowing import training_pairs
from tests.reference import Scattered, auc, scattered_problem
from tests.rooms import new_room

TRAINING = TrainingConfig(embed_dim=6, num_epochs=30, batch_size=16, learning_rate=0.02)
N_REPEATS = 3


def pairs_of(problem: Scattered) -> TrainingPairs:
    return training_pairs(
        len(problem.wrong),
        tensors=problem.pairs,
        image_ids=problem.image_ids,
        validation=problem.validation,
    )


def fit(problem: Scattered, *, seed: int = 0, **changes: Any) -> CrossFit:
    options: dict[str, Any] = {"n_repeats": N_REPEATS, "max_steps": 120} | changes
    trained_on = options.pop("trained_on", np.ones(len(problem.wrong), dtype=bool))
    return cross_fit(
        pairs_of(problem),
        trained_on,
        TRAINING,
        new_room(LocalEngine(options.pop("workers", 2))),
        rng=np.random.default_rng(seed),
        **options,
    )


@pytest.fixture(scope="module")
def problem() -> Scattered:
    return scattered_problem(seed=0)


@pytest.fixture(scope="module")
def fitted(problem: Scattered) -> CrossFit:
    return fit(problem)


def same(first: Parameters, second: Parameters) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- Halves -----------------------------------------------------------------------------------


@given(
    captions=st.lists(st.integers(1, 4), min_size=4, max_size=30),
    unused=st.lists(st.booleans(), min_size=30, max_size=30),
    seed=st.integers(0, 99),
)
@hypothesis_settings(deadline=None, derandomize=True)
def test_halves_share_no_image_and_are_even(
    captions: list[int], unused: list[bool], seed: int
) -> None:
    image_ids = np.repeat(np.arange(len(captions)), captions)
    trained_on = ~np.array(unused)[image_ids]
    trained_on[image_ids < 2] = True
    halves = _dealt(image_ids, trained_on, np.random.default_rng(seed))
    used = sorted(set(image_ids[trained_on].tolist()))
    for members in (used, sorted(set(image_ids.tolist()) - set(used))):
        sides = [set(halves[image_ids == i].tolist()) for i in members]
        assert all(len(side) == 1 for side in sides)
        second = sum(side == {1} for side in sides)
        assert second == len(members) // 2


def test_every_repeat_deals_anew_and_asks_about_every_pair_once(
    problem: Scattered, fitted: CrossFit
) -> None:
    n, seen = len(problem.wrong), []
    for repeat in range(N_REPEATS):
        halves = {m.held_out.tobytes(): m.held_out for m in fitted.models if m.repeat == repeat}
        first, second = halves.values()
        assert sorted([*first, *second]) == list(range(n))
        assert not set(problem.image_ids[first]) & set(problem.image_ids[second])
        seen.append(frozenset(problem.image_ids[first].tolist()))
    assert len(set(seen)) == N_REPEATS
    # Two models a repeat, each asked at two points of its training.
    assert len(fitted.models) == 2 * 2 * N_REPEATS
    assert fitted.n_repeats == N_REPEATS


# --- Groups -----------------------------------------------------------------------------------


def test_groups_are_asked_beside_all_and_change_nothing(
    problem: Scattered, fitted: CrossFit
) -> None:
    women = np.arange(60) % 3 == 0  # of the validation pairs
    few = np.arange(60) < 19
    known = dataclasses.replace(
        pairs_of(problem),
        validation_groups={
            "gender": {"female": women, "male": ~women},
            "age": {"child": few, "adult": ~few},  # children are too few, and adults then alone
        },
    )
    asked = cross_fit(
        *(known, np.ones(len(problem.wrong), dtype=bool), TRAINING, new_room(LocalEngine(2))),
        n_repeats=N_REPEATS,
        max_steps=120,
        rng=np.random.default_rng(0),
    )
    assert [(g.attribute, g.name) for g in asked.groups] == [
        ("gender", "female"),
        ("gender", "male"),
    ]
    np.testing.assert_array_equal(asked.held_out_losses, fitted.held_out_losses)
    assert asked.validation_loss == fitted.validation_loss
    towards = asked.beyond_all(0)
    assert len(towards.models) == len(fitted.models)
    for model, beyond, plain in zip(asked.models, towards.models, fitted.models, strict=True):
        assert same(model.parameters, plain.parameters)
        assert torch.equal(model.validation_gradients, plain.validation_gradients)
        assert plain.group_gradients is None
        assert model.group_gradients is not None
        # Both groups part the pairs: their gradients have all pairs' on the line between them.
        one, other = model.group_gradients
        assert torch.equal(beyond.validation_gradients, one[None])
        cosine = torch.nn.functional.cosine_similarity(one, other, dim=0)
        assert cosine.item() == pytest.approx(-1, abs=1e-3)
        assert 0.2 < (one.norm() / (one.norm() + other.norm())).item() < 0.9
    assert np.isfinite([group.loss for group in asked.groups]).all()
    mean = sum(g.loss * share for g, share in zip(asked.groups, (1 / 3, 2 / 3), strict=True))
    assert mean == pytest.approx(asked.validation_loss, rel=0.05)  # batches leave pairs out
    assert fitted.groups == []


# --- Held out ---------------------------------------------------------------------------------


def spoilt(problem: Scattered, row: int) -> Scattered:
    """The problem with other features of one pair."""
    images, texts = problem.pairs.images.clone(), problem.pairs.texts.clone()
    images[row], texts[row] = -3.0, 5.0
    return problem._replace(pairs=PairTensors(images, texts))


def test_a_model_knows_nothing_of_the_pairs_that_it_is_asked_about(
    problem: Scattered, fitted: CrossFit
) -> None:
    # Early stopping looks at one model; a pair that it holds out cannot change when they stop.
    row = int(fitted.models[0].held_out[11])
    again = fit(spoilt(problem, row))
    assert again.n_steps == fitted.n_steps
    n_changed = 0
    for before, after in zip(fitted.models, again.models, strict=True):
        np.testing.assert_array_equal(after.held_out, before.held_out)
        held_out = row in before.held_out
        n_changed += not held_out
        assert same(after.parameters, before.parameters) == held_out
        assert torch.equal(after.validation_gradients, before.validation_gradients) == held_out
    assert n_changed == len(fitted.models) // 2  # the pair is trained on, too


def test_pairs_that_are_dropped_are_asked_about_but_not_trained_on(problem: Scattered) -> None:
    trained_on = np.ones(len(problem.wrong), dtype=bool)
    trained_on[problem.image_ids % 10 == 0] = False  # both pairs of an image
    trained_on[5] = False  # one of two
    plain = fit(problem, trained_on=trained_on, n_repeats=2)
    row = 20
    assert not trained_on[row]
    other = fit(spoilt(problem, row), trained_on=trained_on, n_repeats=2)
    assert all(
        same(a.parameters, b.parameters) for a, b in zip(plain.models, other.models, strict=True)
    )
    for repeat in range(2):
        asked = {int(i) for m in plain.models if m.repeat == repeat for i in m.held_out}
        assert asked == set(range(len(trained_on)))
    assert np.all(plain.held_out_losses > 0)
    assert not plain.memorised[~trained_on].any()  # nobody has trained on them
    assert plain.memorised[trained_on].all()
    # Its own loss follows its own features.
    assert other.held_out_losses[row] > plain.held_out_losses[row] + 0.5


def test_losses_are_those_of_the_models_that_are_returned(
    problem: Scattered, fitted: CrossFit
) -> None:
    # With all pairs of a half in one batch there is but one composition: a brute-force mean.
    whole = dataclasses.replace(TRAINING, batch_size=200)
    found = cross_fit(
        pairs_of(problem),
        np.ones(len(problem.wrong), dtype=bool),
        whole,
        new_room(),
        n_repeats=2,
        max_steps=25,
        rng=np.random.default_rng(1),
    )
    held_out, trained = np.zeros(len(problem.wrong)), np.zeros(len(problem.wrong))
    validation_losses = []
    for place, model in enumerate(found.models):
        own = np.setdiff1d(np.arange(len(held_out)), model.held_out)
        for rows, losses in ((model.held_out, held_out), (own, trained)):
            losses[rows] += slow_losses(model.parameters, problem.pairs, rows) / 4
        if place % 2:  # the second of a training's two checkpoints is its end
            everything = np.arange(len(problem.validation.images))
            validation_losses.append(
                slow_losses(model.parameters, problem.validation, everything).mean()
            )
    np.testing.assert_allclose(found.held_out_losses, held_out, rtol=1e-4)  # float32
    np.testing.assert_allclose(found.memorised, held_out - trained, atol=1e-4)
    assert found.validation_loss == pytest.approx(np.mean(validation_losses), rel=1e-4)


def stored_in(folder: Path, problem: Scattered) -> TrainingPairs:
    """The same pairs in files."""
    for name, side in zip(("images", "texts"), problem.pairs, strict=True):
        np.save(folder / f"{name}.npy", side.numpy())
    images, texts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "texts"))
    as_they_are = FeatureScaling(
        *(np.zeros(images.shape[1], dtype=np.float32), 1.0),
        *(np.zeros(texts.shape[1], dtype=np.float32), 1.0),
    )
    return dataclasses.replace(
        pairs_of(problem), tensors=StoredPairs(images, texts, as_they_are, torch.device("cpu"))
    )


def test_losses_by_blocks_are_those_of_the_models_too(problem: Scattered, tmp_path: Path) -> None:
    # One block and one batch of a half: the same brute-force mean.
    n = len(problem.wrong)
    trained_on = np.arange(n) % 5 > 0
    found = cross_fit(
        stored_in(tmp_path, problem),
        trained_on,
        dataclasses.replace(TRAINING, batch_size=200),
        new_room(),
        n_repeats=2,
        max_steps=25,
        rng=np.random.default_rng(1),
    )
    held_out, own_losses, times_own = np.zeros(n), np.zeros(n), np.zeros(n)
    for model in found.models:
        own = np.setdiff1d(np.flatnonzero(trained_on), model.held_out)
        held_out[model.held_out] += slow_losses(model.parameters, problem.pairs, model.held_out) / 4
        own_losses[own] += slow_losses(model.parameters, problem.pairs, own)
        times_own[own] += 1
    np.testing.assert_allclose(found.held_out_losses, held_out, rtol=1e-4)  # float32
    expected = np.where(trained_on, held_out - own_losses / np.maximum(times_own, 1), 0)
    np.testing.assert_allclose(found.memorised, expected, atol=1e-4)
    assert np.ptp(found.held_out_losses) > 1


def test_blocks_say_what_whole_halves_say(
    problem: Scattered, fitted: CrossFit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fitting, "ROWS_AT_ONCE", 64)
    found = cross_fit(
        stored_in(tmp_path, problem),
        np.ones(len(problem.wrong), dtype=bool),
        TRAINING,
        new_room(),
        n_repeats=N_REPEATS,
        max_steps=120,
        rng=np.random.default_rng(0),
    )
    # The same models, to the bit; other batches of the pairs that they are asked about.
    assert all(
        same(a.parameters, b.parameters) for a, b in zip(found.models, fitted.models, strict=True)
    )
    assert not np.array_equal(found.held_out_losses, fitted.held_out_losses)
    assert np.corrcoef(found.held_out_losses, fitted.held_out_losses)[0, 1] > 0.99
    assert found.held_out_losses.mean() == pytest.approx(fitted.held_out_losses.mean(), rel=0.03)
    assert found.validation_loss == fitted.validation_loss
    again = cross_fit(
        stored_in(tmp_path, problem),
        np.ones(len(problem.wrong), dtype=bool),
        TRAINING,
        new_room(LocalEngine(1)),
        n_repeats=N_REPEATS,
        max_steps=120,
        rng=np.random.default_rng(0),
    )
    np.testing.assert_array_equal(again.held_out_losses, found.held_out_losses)
    np.testing.assert_array_equal(again.memorised, found.memorised)


def test_few_steps_have_larger_batches_and_fewer_compositions(
    problem: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    class Watched(Training):
        def __init__(self, pairs: PairTensors, config: TrainingConfig, **options: Any) -> None:
            sizes.append((pairs.n_pairs, config.batch_size))
            super().__init__(pairs, config, **options)

    shapes: list[tuple[int, ...]] = []

    def watched(parameters: Parameters, pairs: PairTensors, batches: np.ndarray) -> np.ndarray:
        shapes.append(batches.shape)
        return mean_pair_losses(parameters, pairs, batches)

    monkeypatch.setattr(cross_fitting, "Training", Watched)
    monkeypatch.setattr(cross_fitting, "mean_pair_losses", watched)
    half = math.ceil(len(problem.wrong) / 2)
    fit(problem, n_repeats=1, max_steps=120, stop_by=2)
    # Two steps hold a half.
    b = math.ceil(half / 2)
    assert b > 2 * TRAINING.batch_size
    assert {size for _, size in sizes} == {b}
    n_shuffles = max(1, round(4 * 16 / b))
    assert {shape[1] for shape in shapes} == {b}
    assert all(shape[0] <= n_shuffles * 3 for shape in shapes)


def slow_losses(parameters: Parameters, pairs: PairTensors, rows: np.ndarray) -> np.ndarray:
    """-1/2 (log p_i(i) + log q_i(i)) with softmaxes over all of these pairs, in float64."""
    f = pairs.images[rows].double().numpy() @ parameters.image_map.double().numpy()
    g = pairs.texts[rows].double().numpy() @ parameters.text_map.double().numpy()
    f, g = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (f, g))
    p = np.exp(float(parameters.log_scale.exp()) * f @ g.T)
    rows_and_columns = p.diagonal() ** 2 / (p.sum(axis=0) * p.sum(axis=1))
    return np.asarray(-np.log(rows_and_columns) / 2)


def test_wrong_captions_have_higher_losses_where_they_are_held_out(
    problem: Scattered, fitted: CrossFit
) -> None:
    assert auc(fitted.held_out_losses, problem.wrong) > 0.9
    assert fitted.memorised.mean() > 0  # what has been trained on fits better
    assert fitted.validation_loss < np.log(TRAINING.batch_size)  # better than by chance


# --- Steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_steps", "stop_by", "expected"), [(12, None, 12), (200, 20, 20)])
def test_models_stop_no_later_than_they_may(
    problem: Scattered, max_steps: int, stop_by: int | None, expected: int
) -> None:
    # So few steps that every report is the best so far; there is one every five of 200.
    found = fit(problem, n_repeats=1, max_steps=max_steps, stop_by=stop_by)
    assert found.n_steps == expected


def test_the_same_generator_gives_the_same_bits_whatever_the_number_of_cores(
    problem: Scattered, fitted: CrossFit
) -> None:
    again = fit(problem, workers=1)
    np.testing.assert_array_equal(again.held_out_losses, fitted.held_out_losses)
    np.testing.assert_array_equal(again.memorised, fitted.memorised)
    assert all(
        same(a.parameters, b.parameters) for a, b in zip(again.models, fitted.models, strict=True)
    )
    other = fit(problem, seed=1, n_repeats=1)
    assert not np.array_equal(other.held_out_losses, fitted.held_out_losses)


# --- Influence --------------------------------------------------------------------------------


def influences(problem: Scattered, fitted: CrossFit, index: np.ndarray) -> np.ndarray:
    return np.asarray(
        held_out_influences(
            fitted,
            problem.pairs,
            index,
            np.ones(len(index)),
            batch_size=TRAINING.batch_size,
            rng=np.random.default_rng(0),
        )
    )


def test_right_captions_help_and_wrong_ones_hurt(problem: Scattered, fitted: CrossFit) -> None:
    by_part = influences(problem, fitted, np.arange(len(problem.wrong)))
    assert by_part.shape == (2, N_REPEATS, len(problem.wrong))
    per_repeat = by_part.mean(axis=0)
    for repeat in per_repeat:
        assert repeat[problem.wrong].mean() < 0 < repeat[~problem.wrong].mean()
    assert auc(-per_repeat.mean(axis=0), problem.wrong) > 0.85
    # Scaling all weights alike changes nothing: in every batch influences add up to zero.
    assert abs(per_repeat.mean()) < 0.05 * per_repeat.std()


def test_weights_are_those_of_the_pairs(
    problem: Scattered, fitted: CrossFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fitting, "INFLUENCE_SHUFFLES", 2)  # one for each part
    # Scaling the weights of a batch alike changes nothing, so that sum_i w_i u_i = 0 in it: here a
    # batch is all pairs that one model holds out.
    n = len(problem.wrong)
    weights = np.random.default_rng(0).uniform(0.1, 10, size=n)
    for model in fitted.models[:4]:
        found = held_out_influences(
            dataclasses.replace(fitted, models=[model._replace(repeat=0)] * 2, n_repeats=1),
            problem.pairs,
            np.arange(n),
            weights,
            batch_size=n,
            rng=np.random.default_rng(0),
        )
        weighted = weights * found[:, 0]
        assert (np.abs(weighted.sum(axis=1)) < 1e-4 * np.abs(weighted).sum(axis=1)).all()  # float32


def test_checkpoints_are_averaged(
    problem: Scattered, fitted: CrossFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With all pairs of a half in one batch there is but one composition.
    monkeypatch.setattr(cross_fitting, "INFLUENCE_SHUFFLES", 2)  # one for each part

    def influences_of(models: list[HeldOutModel]) -> np.ndarray:
        found: np.ndarray = held_out_influences(
            dataclasses.replace(fitted, models=models),
            problem.pairs,
            np.arange(len(problem.wrong)),
            np.ones(len(problem.wrong)),
            batch_size=len(problem.wrong),
            rng=np.random.default_rng(0),
        )
        return found

    first, second = (influences_of(fitted.models[place::2]) for place in (0, 1))
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()
    np.testing.assert_allclose(  # float32
        influences_of(fitted.models), (first + second) / 2, atol=1e-4 * np.abs(first).max()
    )


def test_influence_is_what_a_step_with_more_of_the_pair_does(
    problem: Scattered, fitted: CrossFit
) -> None:
    # All evaluated pairs of a half in one batch: u_i = sum(w) d/dw_i [v . grad L(w)] with v the
    # validation gradient, by differences of the weight, of the loss along v.
    model, other = fitted.models[0], fitted.models[2]  # one checkpoint of either half
    held_out = model.held_out[:12]
    found = held_out_influences(
        dataclasses.replace(fitted, models=[model, other], n_repeats=1),
        problem.pairs,
        held_out,
        np.ones(12),
        batch_size=64,
        rng=np.random.default_rng(0),
    )[1, 0]
    parameters = Parameters(*(p.double() for p in model.parameters))
    direction, sizes = model.validation_gradients[1].double(), [p.numel() for p in parameters]
    tangent = [
        part.reshape(p.shape) for part, p in zip(direction.split(sizes), parameters, strict=True)
    ]
    images, texts = problem.pairs.images[held_out].double(), problem.pairs.texts[held_out].double()

    def loss(step: float, w: np.ndarray) -> float:
        moved = Parameters(*(p + step * t for p, t in zip(parameters, tangent, strict=True)))
        f, g = (images @ moved.image_map).numpy(), (texts @ moved.text_map).numpy()
        f, g = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (f, g))
        s = float(moved.log_scale.exp()) * f @ g.T
        rows, columns = np.log(np.exp(s) @ w), np.log(w @ np.exp(s))
        return float(w @ ((rows + columns) / 2 - s.diagonal()) / w.sum())

    h, expected = 1e-3, []
    for i in range(12):
        slopes = []
        for sign in (1, -1):
            w = np.ones(12)
            w[i] += sign * h
            slopes.append((loss(h, w) - loss(-h, w)) / (2 * h))
        expected.append(12 * (slopes[0] - slopes[1]) / (2 * h))
    # Differences are good to h^2, float32 to some 1e-6 of a sum of such terms.
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_only_models_that_hold_a_pair_out_are_asked(
    problem: Scattered, fitted: CrossFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fitting, "INFLUENCE_SHUFFLES", 4)
    index = np.sort(fitted.models[0].held_out[:20])
    plain = influences(problem, fitted, index)
    blank = [
        m
        if np.isin(index, m.held_out).any()
        else m._replace(
            parameters=Parameters(*(torch.full_like(p, torch.nan) for p in m.parameters))
        )
        for m in fitted.models
    ]
    assert any(m.parameters.image_map.isnan().any() for m in blank)
    np.testing.assert_array_equal(
        influences(problem, dataclasses.replace(fitted, models=blank), index), plain
    )
    # A model that trained on them in a later repeat has no say in the first.
    later = [
        m._replace(validation_gradients=0 * m.validation_gradients) if m.repeat > 0 else m
        for m in fitted.models
    ]
    silent = influences(problem, dataclasses.replace(fitted, models=later), index)
    np.testing.assert_array_equal(silent[:, 0], plain[:, 0])
    assert not silent[:, 1:].any()


def test_a_pair_evaluated_alone_in_its_half_changes_nothing(
    problem: Scattered, fitted: CrossFit
) -> None:
    # The loss of a batch of one is zero whatever its weight.
    assert influences(problem, fitted, np.array([7])) == pytest.approx(0, abs=1e-6)


def test_the_validation_gradient_is_that_of_the_validation_loss(
    problem: Scattered, fitted: CrossFit
) -> None:
    # Against its direction the loss falls; batches of 16 of 60 pairs leave some luck.
    batches = np.arange(60)[:48].reshape(3, 16)
    for model in fitted.models[:4]:
        direction = model.validation_gradients.mean(dim=0)
        parts = direction.split([p.numel() for p in model.parameters])
        step = 1e-2 / float(direction.norm())
        moved = Parameters(
            *(
                p - step * part.reshape(p.shape)
                for p, part in zip(model.parameters, parts, strict=True)
            )
        )
        before = mean_loss(model.parameters, problem.validation, batches)
        assert mean_loss(moved, problem.validation, batches) < before


# --- Halves of the validation pairs -----------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "sizes"), [(FEWEST_ASKED, [10, 10]), (61, [31, 30]), (FEWEST_ASKED - 1, [19]), (1, [1])]
)
def test_validation_pairs_are_asked_in_halves_where_they_suffice(n: int, sizes: list[int]) -> None:
    parts = _parts(n, np.random.default_rng(0))
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert n == 1 or np.concatenate(parts).tolist() != list(range(n))  # drawn, not cut in two


def test_a_validation_pair_has_a_say_in_its_half_alone(
    problem: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [np.arange(30), np.arange(30, 60)]
    monkeypatch.setattr(cross_fitting, "_parts", lambda *_: parts)
    # Early stopping looks at all validation pairs; here it may not.
    monkeypatch.setattr(cross_fitting, "_early_stop", lambda *_: 12)
    images = problem.validation.images.clone()
    images[40:] += 1.0
    changed = problem._replace(validation=problem.validation._replace(images=images))
    before, after = (fit(p) for p in (problem, changed))
    rows = np.arange(0, 40, 2)
    for one, other in zip(before.models, after.models, strict=True):
        assert same(one.parameters, other.parameters)
        assert torch.equal(one.validation_gradients[0], other.validation_gradients[0])
        assert not torch.equal(one.validation_gradients[1], other.validation_gradients[1])
    asked = [influences(p, cross, rows) for p, cross in ((problem, before), (changed, after))]
    assert asked[0].shape == (2, N_REPEATS, len(rows))
    assert np.abs(asked[0][1] - asked[1][1]).min(axis=0).max() > 0
    np.testing.assert_array_equal(asked[0][0], asked[1][0])


def test_few_validation_pairs_are_asked_together(problem: Scattered) -> None:
    few = problem._replace(
        validation=PairTensors(*(side[: FEWEST_ASKED - 1] for side in problem.validation))
    )
    fitted = fit(few)
    assert {len(model.validation_gradients) for model in fitted.models} == {1}
    assert influences(few, fitted, np.arange(10)).shape == (1, N_REPEATS, 10)

"""The training loop: AdamW by hand, its schedule, replays to the bit, early stopping."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from learner import model, stacked
from learner.batches import drawn_pairs, steps_per_epoch, systematic_counts
from learner.config import SAMPLE, TrainingConfig
from learner.model import (
    Parameters,
    initial_parameters,
    loss_and_gradient,
    mean_loss,
    shuffled_batches,
    similarities,
)
from learner.pairs import PairTensors
from learner.stacked import ADAM_EPSILON, TrainingState
from learner.training import Training, train, train_until_best
from tests import reference
from tests.reference import rotated_pairs

CPU = torch.device("cpu")
SMALL = TrainingConfig(embed_dim=6, batch_size=16, learning_rate=3e-2, weight_decay=1e-4)


def top_one(parameters: Parameters, pairs: PairTensors) -> float:
    logits = similarities(parameters, pairs)
    return float((logits.argmax(dim=1) == torch.arange(len(logits))).float().mean())


def test_the_same_seed_trains_the_same_model_and_another_another() -> None:
    pairs = rotated_pairs(40)
    first, again, other = (train(pairs, SMALL, n_steps=6, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert first[1] == again[1]
    assert not torch.equal(first[0].image_map, other[0].image_map)


def test_training_leaves_global_random_state_alone() -> None:
    before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    train(rotated_pairs(20), SMALL, n_steps=2, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert repr(np.random.get_state()) == numpy_before  # noqa: NPY002


def test_training_learns_pairs_it_has_not_seen() -> None:
    pairs = rotated_pairs(160)
    parameters, history = train(
        pairs.take(torch.arange(128)), SMALL, n_steps=200, seed=0, n_reports=4
    )
    assert history.train_loss[-1] < history.train_loss[0]
    unseen = pairs.take(torch.arange(128, 160))
    untrained = initial_parameters(8, 8, 6, seed=0, device=CPU)
    assert top_one(untrained, unseen) < 0.3  # chance is 1 / 32
    assert top_one(parameters, unseen) > 0.9


def test_the_first_step_is_adamw_by_hand() -> None:
    # Decay shrinks the maps and leaves the logit scale alone.
    pairs = rotated_pairs(7)
    config = TrainingConfig(embed_dim=3, batch_size=16, learning_rate=0.01, weight_decay=2.0)
    start = initial_parameters(8, 8, 3, seed=5, device=CPU)
    theta = torch.cat([p.reshape(-1) for p in start]).double().numpy()
    problem = reference.Problem(
        pairs.images.double().numpy(), pairs.texts.double().numpy(), theta, 3
    )
    gradient = reference.central_difference(lambda t: problem.loss(t, np.arange(7)), problem.theta)
    shrunk = theta * (1 - 0.01 * 2.0)
    shrunk[-1] = theta[-1]

    parameters, history = train(pairs, config, n_steps=1, seed=5)
    after = torch.cat([p.reshape(-1) for p in parameters]).double().numpy()
    # Both moments are corrected for their start at zero: the first step is g / (|g| + epsilon).
    step = gradient / (np.abs(gradient) + ADAM_EPSILON)
    clear = np.abs(gradient) > 1e-4  # float32 rounds the others, and the division enlarges it
    assert clear.mean() > 0.9
    np.testing.assert_allclose(after[clear], (shrunk - 0.01 * step)[clear], atol=3e-6)
    assert history.step == [1]
    assert history.train_loss[0] == pytest.approx(problem.loss(theta, np.arange(7)), rel=1e-5)


@pytest.mark.parametrize(
    ("n_steps", "n_reports", "steps"),
    [(20, 4, [5, 10, 15, 20]), (3, 10, [1, 2, 3]), (7, 3, [3, 5, 7]), (5, 1, [5])],
)
def test_steps_and_reports_are_as_many_as_asked(
    monkeypatch: pytest.MonkeyPatch, n_steps: int, n_reports: int, steps: list[int]
) -> None:
    calls = []

    def counted(images: Tensor, *others: Any) -> Any:
        calls.append(images.shape[-2])
        return loss_and_gradient(images, *others)

    monkeypatch.setattr(stacked, "loss_and_gradient", counted)
    _, history = train(rotated_pairs(40), SMALL, n_steps=n_steps, seed=0, n_reports=n_reports)
    assert calls == [16] * n_steps  # two full batches an epoch, the remainder left out
    assert history.step == steps
    assert len(history.train_loss) == len(steps)
    assert history.validation_loss == []


# --- Steps and states -------------------------------------------------------------------------


@given(n=st.integers(1, 60), batch_size=st.integers(2, 70))
@hypothesis_settings(deadline=None, derandomize=True)
def test_steps_per_epoch_are_the_full_batches(n: int, batch_size: int) -> None:
    batches = shuffled_batches(n, batch_size, np.random.default_rng(0))
    assert steps_per_epoch(n, batch_size) == len(batches)


def same_bits(a: TrainingState, b: TrainingState) -> bool:
    return all(
        torch.equal(x, y)
        for ours, theirs in zip(a, b, strict=True)
        for x, y in zip(ours, theirs, strict=True)
    )


def make_run(**changes: Any) -> Training:
    weights = np.arange(1, 41) % 5 / 2
    options: dict[str, Any] = {"n_steps": 12, "seed": 3, "sample_weights": weights}
    return Training(rotated_pairs(40), SMALL, **options | changes)


def test_epochs_follow_one_another_each_shuffled_anew() -> None:
    run = make_run(n_steps=5)
    assert run.batches.shape == (5, 16)
    for epoch in (run.batches[:2], run.batches[2:4]):
        assert len(set(epoch.ravel().tolist())) == 32
    assert not np.array_equal(run.batches[:2], run.batches[2:4])
    # A longer schedule goes on where a shorter one ends.
    np.testing.assert_array_equal(make_run(n_steps=9).batches[:5], run.batches)


def test_pairs_left_over_of_an_epoch_come_first_in_the_next() -> None:
    run = Training(rotated_pairs(38), SMALL, n_steps=12, seed=1, carry_over=True)
    # Three batches of 16 hold all of 38 pairs, which two full ones of the first epoch do not.
    for start in range(0, 12, 3):
        assert len(set(run.batches[start].tolist())) == 16
    assert set(run.batches[:3].ravel().tolist()) == set(range(38))
    assert set(run.batches[:2].ravel().tolist()).isdisjoint(run.batches[2, :6].tolist())
    assert all(len(set(batch.tolist())) == 16 for batch in run.batches)
    # After every epoch's worth of batches each pair has come as often as any other, give or take
    # those that wait.
    counts = np.bincount(run.batches[:12].ravel(), minlength=38)
    assert counts.sum() == 192
    assert counts.max() - counts.min() <= 1


def test_fewer_pairs_than_a_batch_leave_nothing_over() -> None:
    run = Training(rotated_pairs(10), SMALL, n_steps=3, seed=1, carry_over=True)
    assert [sorted(batch.tolist()) for batch in run.batches] == [list(range(10))] * 3


def test_a_run_knows_which_pairs_it_has_seen() -> None:
    run = make_run(n_steps=5)
    assert not run.runs.seen(0).any()
    run.advance_to(2)
    assert set(np.flatnonzero(run.runs.seen(0)).tolist()) == set(run.batches[:2].ravel().tolist())


def test_a_batch_holds_its_pairs_and_weights() -> None:
    run = make_run()
    positions, places = run.runs.batch_at(4)
    batches, of_runs = run.runs.pairs_at(positions, places)
    index, pairs = positions[0], PairTensors(batches.images[0], batches.texts[0])
    assert of_runs is not None
    weights = of_runs[0]
    assert index.tolist() == run.batches[4].tolist()
    assert torch.equal(pairs.images, run.pairs.whole().images[run.batches[4]])
    assert torch.equal(pairs.texts, run.pairs.whole().texts[run.batches[4]])
    assert weights.tolist() == [(i + 1) % 5 / 2 for i in run.batches[4]]
    assert make_run(sample_weights=None).runs.pairs_at(positions, places)[1] is None


def test_a_restored_state_replays_to_the_same_bits() -> None:
    run = make_run()
    run.advance_to(5)
    middle = run.state()
    losses = [float(run.advance()) for _ in range(7)]
    end = run.state()
    assert not same_bits(middle, end)

    run.restore(middle, 5)
    assert run.n_done == 5
    assert same_bits(run.state(), middle)
    assert [float(run.advance()) for _ in range(7)] == losses
    assert same_bits(run.state(), end)

    fresh = make_run()  # another run of the same arguments can be taken ahead
    fresh.restore(middle, 5)
    fresh.advance_to(12)
    assert same_bits(fresh.state(), end)

    fresh.restore(make_run().state(), 0)  # and back to before its first step
    fresh.advance_to(12)
    assert same_bits(fresh.state(), end)


def test_a_state_is_a_copy_and_the_run_does_not_hold_on_to_it() -> None:
    run = make_run()
    run.advance_to(3)
    state = run.state()
    kept = TrainingState(*(Parameters(*(t.clone() for t in part)) for part in state))
    run.advance()
    assert same_bits(state, kept)
    run.restore(state, 3)
    run.advance()
    assert same_bits(state, kept)
    live = run.parameters  # these follow the run
    before = live.image_map.clone()
    run.advance()
    assert not torch.equal(live.image_map, before)


def test_the_moments_start_at_zero() -> None:
    state = make_run().state()
    for moment in (state.first_moment, state.second_moment):
        assert all(float(m.abs().max()) == 0 for m in moment)
    start = initial_parameters(8, 8, 6, seed=3, device=CPU)
    assert all(torch.equal(a, b) for a, b in zip(state.parameters, start, strict=True))


def test_moments_and_gradient_are_those_of_the_batches_taken() -> None:
    run = make_run()
    problem = reference.Problem(
        run.pairs.whole().images.double().numpy(),
        run.pairs.whole().texts.double().numpy(),
        np.zeros(97),
        6,
    )
    weights = np.arange(1, 41) % 5 / 2
    first: np.ndarray = np.zeros(97)
    second: np.ndarray = np.zeros(97)
    for step in range(3):
        theta = torch.cat([p.reshape(-1) for p in run.parameters]).double().numpy()
        rows = run.batches[step]
        batch_loss = partial(problem.loss, rows=rows, weights=weights[rows])
        gradient = reference.central_difference(batch_loss, theta)
        loss = float(run.advance())
        assert loss == pytest.approx(problem.loss(theta, rows, weights[rows]), rel=1e-5)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        found = torch.cat([g.reshape(-1) for g in run.runs.gradient()]).double().numpy()
        # Float32 sums over a batch with logits of size 14, on entries up to about one.
        np.testing.assert_allclose(found, gradient, atol=5e-6)
    state = run.state()
    for moment, expected in ((state.first_moment, first), (state.second_moment, second)):
        flat = torch.cat([m.reshape(-1) for m in moment]).double().numpy()
        np.testing.assert_allclose(flat, expected, atol=5e-6 * np.abs(expected).max())


def test_the_number_of_threads_is_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with stacked.one_cpu_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), stacked.one_cpu_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
        make_run().advance_to(1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- Early stopping ---------------------------------------------------------------------------


class Memorising:
    """Half of the captions are wrong: once they are memorised, the validation loss rises again."""

    def __init__(self) -> None:
        pairs = rotated_pairs(32)
        wrong = PairTensors(pairs.images, pairs.texts[torch.arange(32).roll(1)])
        self.pairs = PairTensors(
            torch.cat([pairs.images, wrong.images]), torch.cat([pairs.texts, wrong.texts])
        )
        batches = shuffled_batches(32, 16, np.random.default_rng(0))
        self.validation = (rotated_pairs(32, seed=7), batches)

    def run(self) -> Training:
        return Training(self.pairs, SMALL, n_steps=80, seed=1)


def test_early_stopping_leaves_the_run_at_the_lowest_validation_loss() -> None:
    problem = Memorising()
    _, whole = train(
        problem.pairs, SMALL, n_steps=80, seed=1, validation=problem.validation, n_reports=20
    )
    run = problem.run()
    history = train_until_best(run, problem.validation, n_reports=20)
    assert history == whole  # without patience the search goes on to the end
    assert history.validation_loss[-1] > min(history.validation_loss)
    best = history.step[int(np.argmin(history.validation_loss))]
    assert 4 < best < 80
    assert run.n_done == best
    assert mean_loss(run.parameters, *problem.validation) == min(history.validation_loss)
    assert not any(p.requires_grad for p in run.parameters)
    # The very state of a run that has never gone further, moments included.
    straight = problem.run()
    straight.advance_to(best)
    assert same_bits(run.state(), straight.state())
    run.advance()
    straight.advance()
    assert same_bits(run.state(), straight.state())


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_the_search(patience: int) -> None:
    problem = Memorising()
    whole = train_until_best(problem.run(), problem.validation, n_reports=20)
    run = problem.run()
    history = train_until_best(run, problem.validation, n_reports=20, patience=patience)
    lowest, waited, n_looked = math.inf, 0, 0
    for loss in whole.validation_loss:
        n_looked += 1
        lowest, waited = min(lowest, loss), 0 if loss < lowest else waited + 1
        if waited == patience:
            break
    assert n_looked < 20
    assert history.validation_loss == whole.validation_loss[:n_looked]
    assert history.step == whole.step[:n_looked]
    assert run.n_done == history.step[int(np.argmin(history.validation_loss))]


@pytest.mark.parametrize("value", [1.0, 3.0])
def test_equal_sample_weights_train_the_unweighted_model(value: float) -> None:
    pairs = rotated_pairs(40)
    plain, _ = train(pairs, SMALL, n_steps=8, seed=2)
    weighted, _ = train(pairs, SMALL, n_steps=8, seed=2, sample_weights=np.full(40, value))
    # Rounding differs, and Adam's division by the gradient's size enlarges it a thousandfold.
    for a, b in zip(plain, weighted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4)


def test_pairs_of_weight_zero_are_not_trained_on() -> None:
    pairs = rotated_pairs(10)
    weights = np.array([1, 0, 2, 1, 0, 1, 0.5, 1, 0, 1])
    kept = np.flatnonzero(weights)
    # All pairs fit in one batch, so that both trainings see the same pairs in every step.
    zeroed, _ = train(pairs, SMALL, n_steps=8, seed=2, sample_weights=weights)
    deleted, _ = train(
        pairs.take(torch.from_numpy(kept)), SMALL, n_steps=8, seed=2, sample_weights=weights[kept]
    )
    plain, _ = train(pairs, SMALL, n_steps=8, seed=2)
    for a, b in zip(zeroed, deleted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4)  # as above
    assert float((zeroed.image_map - plain.image_map).abs().max()) > 1e-2


# --- Pairs drawn by weight --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "offset", "counts"),
    [
        # Pieces of the line from 0 to 4 end at 0.5, 1, 3, 4; the points are 0.75 to 3.75.
        ([1.0, 1.0, 4.0, 2.0], 0.25, [0, 1, 2, 1]),
        ([1.0, 1.0, 4.0, 2.0], 0.75, [1, 0, 2, 1]),
        ([0.0, 3.0, 0.0, 3.0, 0.0, 0.0], 0.5, [0, 3, 0, 3, 0, 0]),
        # Ends 1.8, 3: points 0.9, 1.9, 2.9, and 0.1, 1.1, 2.1.
        ([3.0, 0.0, 2.0], 0.1, [1, 0, 2]),
        ([3.0, 0.0, 2.0], 0.9, [2, 0, 1]),
        ([0.3], 0.6, [1]),
    ],
)
def test_counts_by_hand(weights: list[float], offset: float, counts: list[int]) -> None:
    found = systematic_counts(np.array(weights), offset)
    assert found.dtype == np.int64
    assert found.tolist() == counts


@given(
    weights=st.lists(st.floats(0, 5), min_size=1, max_size=60).filter(lambda w: sum(w) > 0.01),
    offset=st.floats(0, 1, exclude_max=True),
)
@hypothesis_settings(deadline=None, derandomize=True)
def test_counts_are_expectations_rounded_up_or_down(weights: list[float], offset: float) -> None:
    counts = systematic_counts(np.array(weights), offset)
    expected = len(weights) * np.array(weights) / sum(weights)
    assert counts.sum() == len(weights)
    assert counts.min() >= 0
    # Less than one, but for the rounding of where a piece ends.
    assert np.abs(counts - expected).max() < 1 + 1e-9


def test_counts_are_right_on_average() -> None:
    weights = np.random.default_rng(0).uniform(0, 3, size=20)
    weights[4] = 0.0
    offsets = (np.arange(1000) + 0.5) / 1000
    mean = np.mean([systematic_counts(weights, offset) for offset in offsets], axis=0)
    # A grid of a thousand offsets in the uniform one's place: off by one of them at either end.
    np.testing.assert_allclose(mean, weights / weights.mean(), atol=2e-3)
    assert mean[4] == 0


def test_an_epoch_draws_as_many_pairs_as_there_are_and_another_epoch_others() -> None:
    weights = np.tile([0.5, 1.5], 20)
    rng = np.random.default_rng(0)
    epochs = [drawn_pairs(weights, rng) for _ in range(400)]
    counts = np.array([np.bincount(epoch, minlength=40) for epoch in epochs])
    assert {len(epoch) for epoch in epochs} == {40}
    assert set(counts[:, ::2].ravel().tolist()) == {0, 1}
    assert set(counts[:, 1::2].ravel().tolist()) == {1, 2}
    # Deviations of 1/2 over 400 epochs, five standard errors for 40 pairs.
    np.testing.assert_allclose(counts.mean(axis=0), weights, atol=5 * 0.5 / 20)
    # Neighbours of weight a half are drawn together, apart and not at all.
    assert {tuple(pair) for pair in counts[:, [0, 2]].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_batches_hold_pairs_by_weight_and_the_loss_no_weights() -> None:
    weights = np.r_[np.zeros(8), np.tile([0.5, 1.5], 20)]
    run = Training(
        rotated_pairs(48), SMALL, n_steps=300, seed=3, sample_weights=weights, weighting=SAMPLE
    )
    assert run.weights is None
    assert run.batches.shape == (300, 16)
    counts = np.bincount(run.batches.ravel(), minlength=48) / 100  # 48 / 16 = 3 batches an epoch
    assert counts[:8].tolist() == [0.0] * 8
    # Expected counts are 0.6 and 1.8: deviations of 0.5 and 0.4 an epoch, five standard errors.
    np.testing.assert_allclose(counts, weights / weights.mean(), atol=5 * 0.05)
    for epoch in (run.batches[:3], run.batches[3:6]):
        assert np.bincount(epoch.ravel()).max() == 2
        assert np.any(np.diff(epoch.ravel()) < 0)  # shuffled
    # Started again it is the same run, and it replays to the bit.
    again = Training(
        run.pairs, SMALL, n_steps=300, seed=3, sample_weights=weights, weighting=SAMPLE
    )
    np.testing.assert_array_equal(again.batches, run.batches)
    start = run.state()
    run.advance_to(4)
    end = run.state()
    run.restore(start, 0)
    run.advance_to(4)
    assert same_bits(run.state(), end)
    other = Training(run.pairs, SMALL, n_steps=300, seed=4, sample_weights=weights)
    assert not np.array_equal(other.batches, run.batches)


@pytest.mark.parametrize("value", [1.0, 0.7])
def test_equal_weights_draw_every_pair_once_and_train_the_unweighted_model(value: float) -> None:
    pairs = rotated_pairs(40)
    plain, history = train(pairs, SMALL, n_steps=8, seed=2)
    drawn, same = train(
        pairs, SMALL, n_steps=8, seed=2, sample_weights=np.full(40, value), weighting=SAMPLE
    )
    assert history == same
    assert all(torch.equal(a, b) for a, b in zip(plain, drawn, strict=True))


def test_without_weights_both_weightings_train_the_same_model() -> None:
    pairs = rotated_pairs(40)
    plain, _ = train(pairs, SMALL, n_steps=4, seed=2)
    drawn, _ = train(pairs, SMALL, n_steps=4, seed=2, weighting=SAMPLE)
    assert all(torch.equal(a, b) for a, b in zip(plain, drawn, strict=True))


def test_the_logit_scale_stays_below_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert math.exp(model.MAX_LOG_SCALE) == pytest.approx(100)
    monkeypatch.setattr(stacked, "MAX_LOG_SCALE", math.log(9.0))  # below where training begins
    parameters, _ = train(rotated_pairs(32), SMALL, n_steps=1, seed=0)
    assert float(parameters.log_scale.exp()) == pytest.approx(9, rel=1e-6)  # float32


def test_the_learning_rate_falls_along_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Recording(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    train(rotated_pairs(32), SMALL, n_steps=4, seed=0)
    halves = [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2]
    np.testing.assert_allclose(rates, [[SMALL.learning_rate * h] * 2 for h in halves], rtol=1e-12)

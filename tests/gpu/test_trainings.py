"""Trainings, the way back through them, and what is asked of trained models, beside the CPU."""

from __future__ import annotations

import numpy as np
import torch

from attribution.derivatives import batch_loss_influences, loss_gradient, unflatten
from attribution.metagradient import pair_weight_gradient
from attribution.retraining import mean_pair_losses
from learner.config import TrainingConfig
from learner.model import Parameters, initial_parameters, shuffled_batches
from learner.pairs import PairTensors, nearest_clusters
from learner.training import LossHistory, Training, train, train_until_best
from tests.gpu import devices
from tests.gpu.devices import CPU, assert_near, correlation
from tests.reference import planted_problem
from train_eval import retrieval_ranks

pytestmark = devices.pytestmark
PLANTED = planted_problem(seed=0)
N, N_VALIDATION = PLANTED.pairs.n_pairs, PLANTED.validation.n_pairs
CONFIG = TrainingConfig(embed_dim=6, batch_size=16, learning_rate=0.03, weight_decay=1e-4)
N_STEPS = 48
WEIGHTS = np.random.default_rng(1).uniform(0.25, 2, N)
# Float32 rounds at 6e-8. Adam divides gradients by their size plus 1e-4, and 48 steps of 0.03
# carry what is left of it on: runs on two devices are a hundred thousandth apart, or less.
TRAINED = 1e-3


def on(device: torch.device, pairs: PairTensors) -> PairTensors:
    return PairTensors(pairs.images.to(device), pairs.texts.to(device))


def batches(n: int) -> np.ndarray:
    return shuffled_batches(n, 16, np.random.default_rng(2))


def trained(
    device: torch.device, weights: np.ndarray | None = WEIGHTS, weighting: str = "loss"
) -> tuple[Parameters, LossHistory]:
    return train(
        on(device, PLANTED.pairs),
        CONFIG,
        n_steps=N_STEPS,
        seed=3,
        sample_weights=weights,
        weighting=weighting,
        validation=(on(device, PLANTED.validation), batches(N_VALIDATION)),
    )


def by_weight(device: torch.device) -> np.ndarray:
    """The metagradient of the planted pairs."""
    validation = on(device, PLANTED.validation)
    run = Training(
        on(device, PLANTED.pairs), CONFIG, n_steps=N_STEPS, seed=3, sample_weights=np.ones(N)
    )
    return pair_weight_gradient(
        run,
        N_STEPS,
        lambda p: unflatten(loss_gradient(p, validation, batches(N_VALIDATION)), p),
        checkpoints=[40, N_STEPS],
    )


def test_parameters_begin_as_the_same_bits() -> None:
    cuda, cpu = (initial_parameters(8, 6, 5, seed=4, device=d) for d in (devices.CUDA, CPU))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(cuda, cpu, strict=True))


def test_a_training_is_that_of_the_cpu() -> None:
    for weights, weighting in ((None, "loss"), (WEIGHTS, "loss"), (WEIGHTS, "sample")):
        found, history = trained(devices.CUDA, weights, weighting)
        expected, of_cpu = trained(CPU, weights, weighting)
        assert found.image_map.device.type == devices.CUDA.type
        assert history.step == of_cpu.step
        for a, b in zip(found, expected, strict=True):
            assert_near(a, b, TRAINED)
        np.testing.assert_allclose(history.train_loss, of_cpu.train_loss, rtol=TRAINED)
        np.testing.assert_allclose(history.validation_loss, of_cpu.validation_loss, rtol=TRAINED)
        assert history.validation_loss[-1] < 0.8 * history.validation_loss[0]  # something is learnt


def test_a_training_done_twice_gives_the_same_bits() -> None:
    """Its products and reductions add in one order, and its batches hold a pair once."""
    first, second = trained(devices.CUDA), trained(devices.CUDA)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert first[1] == second[1]


def test_early_stopping_stops_at_the_same_step() -> None:
    steps = []
    for device in (devices.CUDA, CPU):
        run = Training(on(device, PLANTED.pairs), CONFIG, n_steps=N_STEPS, seed=3)
        validation = on(device, PLANTED.validation), batches(N_VALIDATION)
        train_until_best(run, validation, n_reports=12, patience=5)
        steps.append(run.n_done)
    assert steps[0] == steps[1] > 0


def test_a_run_can_be_taken_back() -> None:
    run = Training(on(devices.CUDA, PLANTED.pairs), CONFIG, n_steps=N_STEPS, seed=3)
    run.advance_to(20)
    state = run.state()
    run.advance_to(40)
    first = [p.clone() for p in run.parameters]
    run.restore(state, 20)
    run.advance_to(40)
    assert all(torch.equal(a, b) for a, b in zip(first, run.parameters, strict=True))


def test_the_metagradient_is_that_of_the_cpu() -> None:
    found, expected = by_weight(devices.CUDA), by_weight(CPU)
    assert correlation(found, expected) > 0.9999
    assert_near(found, expected, 0.01)


def test_the_metagradient_taken_twice_is_the_same_to_rounding() -> None:
    """Sums by index go to each pair once a batch; a batch that is filled up may hold one twice."""
    assert_near(by_weight(devices.CUDA), by_weight(devices.CUDA), 1e-5)


def test_what_a_model_says_of_pairs_is_what_it_says_on_the_cpu() -> None:
    parameters, _ = trained(CPU)
    direction = loss_gradient(parameters, PLANTED.validation, batches(N_VALIDATION))
    found = []
    for device in (devices.CUDA, CPU):
        there, pairs = Parameters(*(p.to(device) for p in parameters)), on(device, PLANTED.pairs)
        influences = batch_loss_influences(
            *(there, pairs, direction.to(device), np.arange(N), WEIGHTS),
            batch_size=10,  # which does not divide 96: the last batch is filled up
            rng=np.random.default_rng(5),
        )
        gradient = loss_gradient(there, on(device, PLANTED.validation), batches(N_VALIDATION))
        losses = mean_pair_losses(there, pairs, batches(N))
        found.append((influences, gradient.cpu().numpy(), losses))
    for a, b in zip(*found, strict=True):
        assert_near(a, b, 1e-3)


def test_clusters_and_ranks_are_those_of_the_cpu() -> None:
    """Exactly: no distance and no cosine of these is a tie to rounding."""
    rng, owner = np.random.default_rng(6), np.sort(np.random.default_rng(7).integers(0, 40, 150))
    owner[:40] = np.arange(40)
    rows = [rng.standard_normal((m, 12)).astype(np.float32) for m in (40, 150)]
    rows = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    nearest, ranks = [], []
    for device in (devices.CUDA, CPU):
        nearest.append(
            nearest_clusters(
                on(device, PLANTED.pairs), PLANTED.clusters, on(device, PLANTED.validation)
            )
        )
        images, texts = (torch.from_numpy(r).to(device) for r in rows)
        ranks.append(np.concatenate(retrieval_ranks(images, texts, owner)))
    np.testing.assert_array_equal(nearest[0], nearest[1])
    np.testing.assert_array_equal(ranks[0], ranks[1])
    assert len(np.unique(ranks[0])) > 10

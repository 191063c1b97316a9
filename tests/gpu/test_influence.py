"""What stage 2 says on CUDA beside the CPU: curvature, agreement, held-out pairs, clusters."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from attribution.agreement import Surroundings, normalised_agreement, strangers
from attribution.cluster_scores import InfluenceConfig
from attribution.cross_fitting import CrossFit, cross_fit, held_out_influences
from attribution.curvature import CURVATURES, Objective
from attribution.derivatives import loss_gradient
from attribution.inverse import HESSIANS, InverseProduct, inverse_product
from attribution.results import InfluenceResult
from attribution.spectrum import lanczos
from attribution.trust import PairTrust, TrustConfig, judge_pairs
from engine.local import LocalEngine
from influence import score_clusters
from learner.config import TrainingConfig
from learner.model import Parameters, initial_parameters, shuffled_batches
from learner.pairs import PairTensors, TrainingPairs
from tests.attribution.test_trust import make_world
from tests.gpu import devices
from tests.gpu.devices import CPU, assert_near, correlation
from tests.knowing import training_pairs
from tests.reference import planted_problem, scattered_problem
from tests.rooms import new_room

pytestmark = devices.pytestmark
PLANTED, SCATTERED = planted_problem(seed=0), scattered_problem(seed=0)
TRAINING = TrainingConfig(
    embed_dim=6, num_epochs=8, batch_size=16, learning_rate=3e-2, weight_decay=1e-4
)
ESTIMATORS = ("metagradient", "first_order", "step")


def on(device: torch.device, pairs: PairTensors) -> PairTensors:
    return PairTensors(pairs.images.to(device), pairs.texts.to(device))


# --- Curvature --------------------------------------------------------------------------------


def objective(device: torch.device, curvature: str = "gauss_newton") -> Objective:
    parameters = initial_parameters(8, 6, 6, seed=1, device=device)
    n = PLANTED.pairs.n_pairs
    return Objective(
        *(on(device, PLANTED.pairs), parameters, np.arange(n), np.linspace(0.5, 2, n), 16, 1e-2),
        rng=np.random.default_rng(0),
        curvature=curvature,
    )


def gradient(at: Parameters) -> torch.Tensor:
    validation = on(at.image_map.device, PLANTED.validation)
    return loss_gradient(at, validation, shuffled_batches(64, 16, np.random.default_rng(2)))


def solved(device: torch.device, hessian: str) -> InverseProduct:
    of = objective(device)
    return inverse_product(
        of, gradient(of.parameters), hessian, rank=4, damping=0.1, rng=np.random.default_rng(3)
    )


@pytest.mark.parametrize("curvature", CURVATURES)
def test_products_with_the_curvature_are_those_of_the_cpu(curvature: str) -> None:
    cuda, cpu = objective(devices.CUDA, curvature), objective(CPU, curvature)
    vectors = torch.randn(5, len(cpu.decay), generator=torch.Generator().manual_seed(4))
    found = cuda.products(vectors.to(devices.CUDA))
    assert found.device.type == devices.CUDA.type
    assert_near(found, cpu.products(vectors), 1e-3)
    assert torch.equal(found, cuda.products(vectors.to(devices.CUDA)))  # they add in one order


@pytest.mark.parametrize("hessian", HESSIANS)
def test_the_inverse_of_the_curvature_is_that_of_the_cpu(hessian: str) -> None:
    found, expected = solved(devices.CUDA, hessian), solved(CPU, hessian)
    assert found.direction.device.type == devices.CUDA.type
    assert_near(found.direction, expected.direction, 0.02)
    # Of the fourth pair Lanczos is the least sure.
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=0.02)
    assert found.trace == pytest.approx(expected.trace, rel=1e-3)
    assert found.cosine == pytest.approx(expected.cosine, abs=5e-3)
    assert_near(found.solve(gradient(objective(devices.CUDA).parameters)), found.direction, 0.05)


def test_eigenpairs_are_those_of_the_matrix() -> None:
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.standard_normal((90, 90)))[0]
    values = np.concatenate([[-9.0, 7.0, 5.0], rng.uniform(-1, 1, 87)])
    matrix = torch.from_numpy((basis * values) @ basis.T).float().to(devices.CUDA)
    found = lanczos(lambda v: matrix @ v, 90, 3, device=devices.CUDA, rng=np.random.default_rng(6))
    np.testing.assert_allclose(found.eigenvalues, [-9, 7, 5], rtol=1e-2)
    assert found.eigenvectors.device.type == devices.CUDA.type


# --- Agreement --------------------------------------------------------------------------------


@cache
def agreements(device: torch.device) -> tuple[np.ndarray, ...]:
    """Of training pairs with their captions and others', and of others beside them."""
    images, texts = SCATTERED.image_embeddings, SCATTERED.text_embeddings
    rng = np.random.default_rng(0)
    others = strangers(SCATTERED.image_ids, rng)
    found = normalised_agreement(images, texts, device, rng=rng, others=others)
    around = Surroundings.drawn_from(images[:200], texts[:200], device, rng=rng)
    assert around.images.device.type == device.type
    assert found.outranked is not None
    beside = around.agreement(images[200:], texts[200:], SCATTERED.image_ids[200:], rng=rng)
    return found.own, found.by_chance, found.outranked, beside.own, beside.by_chance


def test_agreement_is_that_of_the_cpu() -> None:
    for found, expected in zip(agreements(devices.CUDA), agreements(CPU), strict=True):
        assert_near(found, expected, 1e-3)


def test_agreement_in_several_batches_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from attribution import agreement

    monkeypatch.setattr(agreement, "NORMALISATION_BATCH", 64)
    monkeypatch.setattr(agreement, "ALL_NORMALISED", 100)  # more pairs: as of a large set
    found, expected = (
        normalised_agreement(
            *(SCATTERED.image_embeddings, SCATTERED.text_embeddings, device),
            rng=np.random.default_rng(0),
        )
        for device in (devices.CUDA, CPU)
    )
    assert_near(found.own, expected.own, 1e-3)
    assert_near(found.by_chance, expected.by_chance, 1e-3)


def judged(device: torch.device) -> PairTrust:
    world = make_world()
    return judge_pairs(
        *(world.train, world.validation, world.test, TrustConfig()),
        device=device,
        near_copy_similarity=0.9,
        rng=np.random.default_rng(0),
    )


def test_held_out_pairs_are_judged_as_on_the_cpu() -> None:
    """Each is trusted or not as there, but for one in a hundred that lies at the bar."""
    found, expected = judged(devices.CUDA), judged(CPU)
    assert_near(found.training_log_odds, expected.training_log_odds, 0.02)
    assert_near(found.validation_log_odds, expected.validation_log_odds, 0.02)
    assert (found.validation_trusted == expected.validation_trusted).mean() >= 0.99
    assert (found.test_trusted == expected.test_trusted).mean() >= 0.99
    assert 0 < expected.validation_trusted.sum() < len(expected.validation_trusted)


# --- Held-out influence -----------------------------------------------------------------------


def scattered_pairs(device: torch.device) -> TrainingPairs:
    return training_pairs(
        len(SCATTERED.wrong),
        tensors=on(device, SCATTERED.pairs),
        image_ids=SCATTERED.image_ids,
        validation=on(device, SCATTERED.validation),
        validation_groups={
            "of a test": {"first": np.arange(60) < 30, "second": np.arange(60) > 29}
        },
    )


@cache
def crossed(device: torch.device, time: int = 0) -> tuple[CrossFit, np.ndarray]:
    """Held-out models and what they say; `time` tells one call from the next."""
    pairs = scattered_pairs(device)
    cross = cross_fit(
        *(pairs, np.ones(len(SCATTERED.wrong), dtype=bool), TRAINING, new_room(LocalEngine(2))),
        n_repeats=2,
        max_steps=80,
        rng=np.random.default_rng(0),
    )
    index = np.arange(0, len(SCATTERED.wrong), 2)
    influences = held_out_influences(
        *(cross, pairs.tensors, index, np.ones(len(index))),
        batch_size=16,
        rng=np.random.default_rng(1),
    )
    return cross, influences


def test_held_out_losses_and_influences_are_those_of_the_cpu() -> None:
    (cross, found), (of_cpu, expected) = crossed(devices.CUDA), crossed(CPU)
    assert cross.n_steps == of_cpu.n_steps
    assert cross.models[0].parameters.image_map.device.type == devices.CUDA.type
    assert_near(cross.held_out_losses, of_cpu.held_out_losses, 5e-3)
    assert cross.validation_loss == pytest.approx(of_cpu.validation_loss, rel=1e-3)
    assert correlation(found, expected) > 0.999
    assert np.std(expected) > 0
    beyond, of_cpu_beyond = (c.beyond_all(0).models[0] for c in (cross, of_cpu))
    assert len(cross.groups) == len(of_cpu.groups)
    if cross.groups:
        assert_near(beyond.validation_gradients, of_cpu_beyond.validation_gradients, 0.02)


def test_held_out_losses_and_influences_found_twice_are_the_same_to_rounding() -> None:
    """Losses are the same bits; influences are sums by index, which CUDA adds in any order."""
    (first, influences), (second, again) = crossed(devices.CUDA), crossed(devices.CUDA, 1)
    np.testing.assert_array_equal(first.held_out_losses, second.held_out_losses)
    assert_near(influences, again, 1e-5)


# --- Clusters ---------------------------------------------------------------------------------


@cache
def scored(device: torch.device, estimator: str, time: int = 0) -> InfluenceResult:
    """Scores of the planted clusters; `time` tells one call from the next."""
    options: dict[str, Any] = {"influence_seeds": 2, "removal_folds": 2, "samples_per_cluster": 8}
    pairs = training_pairs(
        PLANTED.pairs.n_pairs,
        tensors=on(device, PLANTED.pairs),
        validation=on(device, PLANTED.validation),
        cluster_assignments=PLANTED.clusters,
    )
    return score_clusters(
        pairs,
        InfluenceConfig(estimator=estimator, rank=5, **options),
        TRAINING,
        new_room(LocalEngine(2)),
        rng=np.random.default_rng(0),
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scores_of_clusters_are_those_of_the_cpu(estimator: str) -> None:
    found, expected = scored(devices.CUDA, estimator), scored(CPU, estimator)
    assert found.reference_steps == expected.reference_steps
    assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-3)
    assert_near(found.reference_image_map, expected.reference_image_map, 5e-3)
    assert_near(found.influence_scores, expected.influence_scores, 0.02)
    assert int(np.argmin(found.influence_scores)) == 3  # the one with the wrong captions
    assert_near(found.influence_stderr, expected.influence_stderr, 0.05)
    if estimator == "metagradient":
        assert_near(found.removal_corrections, expected.removal_corrections, 0.05)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scores_of_clusters_found_twice_are_the_same_to_rounding(estimator: str) -> None:
    """The models are the same bits; scores are sums by index, which CUDA adds in any order."""
    first, second = scored(devices.CUDA, estimator), scored(devices.CUDA, estimator, 1)
    np.testing.assert_array_equal(first.reference_image_map, second.reference_image_map)
    assert_near(first.influence_scores, second.influence_scores, 1e-4)

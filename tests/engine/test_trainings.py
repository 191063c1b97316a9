"""Trainings give the same bytes wherever they run, and a second start repeats what is missing.

One Ray of four cores serves all tests that need it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_eval
from artifacts.store import Store
from attribution import cluster_scores, cross_fitting, retraining
from attribution.cluster_scores import ESTIMATORS, InfluenceConfig
from attribution.cross_fitting import cross_fit
from attribution.retraining import Data, Retraining, RetrainingJob
from attribution.validation import InfluenceValidationConfig, validate_influence
from engine.base import Engine
from engine.local import LocalEngine
from engine.room import StageRoom
from engine.settings import EngineConfig
from engine.shards import ShardFiles, Summary
from engine.start import start_engine
from influence import score_clusters
from learner.config import TrainingConfig
from learner.groups import nearby_groups
from learner.lending import lend
from learner.near_copies import GROUPS_A_JOB, near_copies, nearest_other_groups
from learner.pairs import FeatureScaling, StoredPairs, TrainingPairs
from tests.engine import work
from tests.knowing import planted_pairs
from tests.reference import planted_problem
from tests.rooms import new_room
from train_eval import EvaluationConfig, RetrievalSet, Subset, evaluate_methods

# Ray leaves sockets and files of its own processes to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

CPU = torch.device("cpu")
TRAINING = TrainingConfig(embed_dim=4, num_epochs=4, batch_size=16, learning_rate=2e-2)
Results = dict[str, Any]


@pytest.fixture(scope="module")
def pairs() -> TrainingPairs:
    planted = planted_problem(seed=0)
    return planted_pairs(planted, planted.clusters, "term")


@pytest.fixture(scope="module")
def in_files(pairs: TrainingPairs, tmp_path_factory: pytest.TempPathFactory) -> TrainingPairs:
    """The same features in files."""
    folder, maps = tmp_path_factory.mktemp("features"), list[np.ndarray]()
    for name, side in zip(("images", "texts"), pairs.tensors.whole(), strict=True):
        np.save(folder / f"{name}.npy", side.numpy())
        maps.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    means = [np.zeros(side.shape[1], dtype=np.float32) for side in maps]
    scaling = FeatureScaling(means[0], 1.0, means[1], 1.0)
    return replace(pairs, tensors=StoredPairs(maps[0], maps[1], scaling, CPU))


def clusters(pairs: TrainingPairs, room: StageRoom, estimator: str = "metagradient") -> Results:
    config = InfluenceConfig(influence_seeds=2, removal_folds=2, estimator=estimator)
    result = score_clusters(pairs, config, TRAINING, room, rng=np.random.default_rng(0))
    return dataclasses.asdict(result)


def halves(pairs: TrainingPairs, room: StageRoom) -> Results:
    trained_on = np.arange(96) % 7 > 0
    found = cross_fit(
        *(pairs, trained_on, TRAINING, room),
        n_repeats=2,
        max_steps=20,
        rng=np.random.default_rng(1),
    )
    models = [[*m.parameters, m.validation_gradients, m.held_out] for m in found.models]
    return {**vars(found), "models": models}


def methods(pairs: TrainingPairs, room: StageRoom) -> Results:
    images, texts = pairs.validation.take(torch.arange(30))
    test = RetrievalSet(images, texts, np.arange(30), images[:, :6], texts)
    half = np.arange(0, 96, 2)
    subsets = {
        "full": Subset(np.arange(96), None),
        "influencespace": Subset(half, np.where(half % 4, 1.5, 0.5)),
    }
    models: Results = {}
    found = evaluate_methods(
        *(subsets, pairs, test, TRAINING, EvaluationConfig(n_seeds=2), room),
        rng=np.random.default_rng(2),
        on_model=models.__setitem__,
    )
    runs = [{k: v for k, v in run.items() if k != "training_seconds"} for run in found.runs]
    return {**vars(found), "runs": runs, "trained": models}


def validation(pairs: TrainingPairs, room: StageRoom) -> Results:
    config = InfluenceConfig(influence_seeds=1, removal_folds=0)
    rng = np.random.default_rng(3)
    influence = score_clusters(pairs, config, TRAINING, new_room(), rng=rng)
    asked = InfluenceValidationConfig(validate_influence=2, validation_seeds=1)
    return validate_influence(influence, pairs, asked, TRAINING, room, rng=rng).checks


def by_step(pairs: TrainingPairs, room: StageRoom) -> Results:
    return clusters(pairs, room, estimator=ESTIMATORS[1])


def copies(pairs: TrainingPairs, room: StageRoom) -> Results:
    """Near copies of many groups, which have nothing to do with the pairs."""
    rng = np.random.default_rng(4)
    images = rng.normal(size=(900, 12)).astype(np.float32)
    images[450:500] = images[:50] + 0.01 * rng.normal(size=(50, 12)).astype(np.float32)
    groups = nearby_groups(images, 60, rng)
    assert groups.max() > 2 * GROUPS_A_JOB - 8  # several jobs
    others = nearest_other_groups(images, groups)
    scores = rng.random(900)
    found = near_copies(images, groups, scores, 0.85, other_groups=others, room=room)
    assert found.better.sum() > 40
    return found._asdict()


STAGES: dict[str, Callable[[TrainingPairs, StageRoom], Results]] = {
    f.__name__: f for f in (clusters, by_step, halves, methods, validation, copies)
}


def assert_same(found: Any, expected: Any) -> None:
    """To the bit, and so that nothing is compared with itself."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        np.testing.assert_array_equal(found, expected)


# --- Elsewhere --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Engine]]:
    pytest.importorskip("ray", reason="Ray is not installed (requirements-ray.txt)")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 4, "num_gpus": 0, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    store = Store.open(str(tmp_path_factory.mktemp("output")))
    config = EngineConfig(engine="ray", ray_address=cluster.address, ray_timeout=60)
    with start_engine(config, store) as engine:

        def of(workers: int) -> Engine:
            engine.config = replace(config, workers=workers)  # type: ignore[attr-defined]
            return engine

        yield of
    cluster.shutdown()


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_bits_from_threads_and_from_two_and_four_workers(
    stage: str, pairs: TrainingPairs, on_ray: Callable[[int], Engine]
) -> None:
    expected = STAGES[stage](pairs, new_room(LocalEngine(1)))
    assert_same(STAGES[stage](pairs, new_room(LocalEngine(3))), expected)
    for workers in (2, 4):
        assert_same(STAGES[stage](pairs, new_room(on_ray(workers))), expected)


@pytest.mark.parametrize("stage", ["clusters", "halves", "methods"])
def test_features_in_files_are_read_where_they_lie(
    stage: str,
    in_files: TrainingPairs,
    on_ray: Callable[[int], Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cross_fitting, "ROWS_AT_ONCE", 20)
    monkeypatch.setattr(cross_fitting, "MOST_BLOCK_SHARDS", 3)
    expected = STAGES[stage](in_files, new_room(LocalEngine(1)))
    room = new_room(on_ray(4))
    assert_same(STAGES[stage](in_files, room), expected)
    put = [np.load(path) for path in room.store.root.rglob("put/*.npy")]
    assert put, "held-out pairs"
    assert not any(array.shape == (96, d) for array in put for d in in_files.tensors.widths)


def test_a_worker_that_is_killed_in_a_training_changes_nothing(
    pairs: TrainingPairs, on_ray: Callable[[int], Engine], tmp_path: Path
) -> None:
    batches = np.arange(64).reshape(4, 16)
    data = Data(pairs.tensors, pairs.cluster_assignments, pairs.validation, batches, np.ones(96))
    again, mark = Retraining(TRAINING, 12, 8), tmp_path / "mark"
    expected = again.losses(
        lend(new_room(), "pairs", data, CPU), np.ones((5, 4)), range(5), "training"
    )
    jobs = [work.Deadly(RetrainingJob(again, seed), str(mark)) for seed in range(5)]
    made = lend(new_room(on_ray(2)), "pairs", data, CPU).run(
        "training", work.train_and_die_once, jobs, unit="training"
    )
    assert mark.exists()
    np.testing.assert_array_equal([one.load(".npy") for one in made], expected)


# --- A second start ---------------------------------------------------------------------------

WORK = {
    "clusters": (cluster_scores, "_train_references", 6),
    "halves": (cross_fitting, "_ask", 4),
    "methods": (train_eval, "_train_and_rank", 6),
    "validation": (retraining, "write_losses", 7),
}
_work: dict[str, Callable[..., list[Summary]]] = {}
_done: list[Any] = []
_breaks = False


class BreaksOffError(Exception):
    """Stands for the end of the program; an interrupt would not wait for what is worked on."""


def break_off(jobs: Sequence[Any], files: Sequence[ShardFiles], context: Any) -> list[Summary]:
    """What a stage does, until it is done two times."""
    if _breaks and len(_done) == 2:
        raise BreaksOffError
    summaries = _work["of the stage"](jobs, files, context)
    assert len(jobs) == len(files) == 1  # of a core
    _done.extend(jobs)
    return summaries


@pytest.mark.parametrize("stage", WORK)
def test_a_second_start_repeats_only_what_is_missing(
    stage: str, pairs: TrainingPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global _breaks
    module, name, n_jobs = WORK[stage]
    whole = STAGES[stage](pairs, new_room())
    _work["of the stage"] = getattr(module, name)
    monkeypatch.setattr(module, name, break_off)
    for _breaks, expected in ((True, 2), (False, n_jobs - 2), (False, 0)):
        _done.clear()
        room = new_room(LocalEngine(1), tmp_path)
        if _breaks:
            with pytest.raises(BreaksOffError):
                STAGES[stage](pairs, room)
        else:
            assert_same(STAGES[stage](pairs, room), whole)
        assert len(_done) == expected


def test_rounds_do_not_take_each_other_for_their_own(pairs: TrainingPairs, tmp_path: Path) -> None:
    first, second = (new_room(None, tmp_path).of(part) for part in ("round 1", "round 2"))
    one = halves(pairs, first)
    other = halves(replace(pairs, image_ids=np.arange(96) // 2), second)
    assert not np.array_equal(one["held_out_losses"], other["held_out_losses"])
    assert_same(halves(pairs, first), one)

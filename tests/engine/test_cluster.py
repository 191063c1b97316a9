"""Ray gives what threads give, whatever happens to workers and nodes; what is missing is said.

One cluster of several nodes, all of them on this machine, serves all tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.settings import InputError
from artifacts.store import Store
from engine import cluster as on_ray
from engine.base import Engine, Setup
from engine.cluster import RayEngine
from engine.local import LocalEngine
from engine.settings import EngineConfig
from engine.shards import Summary, run_shards
from engine.start import start_engine
from tests.engine import work
from tests.engine.test_shards import contents as shard_contents
from tests.engine.test_shards import shards, taken, write_numbers

pytest.importorskip("ray", reason="Ray is not installed (requirements-ray.txt)")
# Ray leaves sockets and files of its own processes to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

BAR: dict[str, Any] = {"description": "test", "unit": "job"}
STORE_BYTES = 80 * 2**20
SOON_MISSED = {  # nodes that have died
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}

OWN = """
import math, sys
from engine.settings import EngineConfig
from engine.shards import Summary, run_shards
from engine.start import start_engine
from artifacts.store import Store
with start_engine(EngineConfig(engine="ray", workers=2), Store.open(sys.argv[1])) as engine:
    found = list(engine.map(math.factorial, range(4), description="", unit="job"))
    print("CPU", engine.ray.cluster_resources()["CPU"])
print(found)
print("running" if engine.ray.is_initialized() else "ended")
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 1,
        "num_gpus": 0,
        "object_store_memory": STORE_BYTES,
        "_system_config": SOON_MISSED,
    }
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    store = Store.open(str(tmp_path_factory.mktemp("output")))
    config = EngineConfig(engine="ray", ray_address=cluster.address, ray_timeout=30)
    started = start_engine(config, store)
    assert isinstance(started, RayEngine)
    add_node(cluster, num_cpus=3)
    with started:
        yield started
    assert not started.ray.is_initialized()


def add_node(cluster: Any, **resources: int) -> Any:
    return cluster.add_node(**{"num_gpus": 0, **resources}, object_store_memory=STORE_BYTES)


def parts(folder: Path, n: int = 12, seconds: float = 0.0) -> list[work.Part]:
    """Stretches of a mapped file, made where there is none."""
    path = folder.parent / "embeddings.npy"
    if not path.exists():
        rows = np.random.default_rng(5).normal(size=(40 * n, 96))
        np.save(path, rows.astype(np.float32))
    folder.mkdir()
    mapped = np.load(path, mmap_mode="r")
    return [work.Part(mapped, 40 * i, 40 * i + 40, folder, seconds) for i in range(n)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_the_same_bytes_from_threads_and_from_two_and_four_workers(
    engine: RayEngine, tmp_path: Path
) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    sums = list(LocalEngine(1).map(work.multiply, parts(one), **BAR))
    assert list(LocalEngine(3).map(work.multiply, parts(three), **BAR)) == sums
    whole = contents(one)
    assert len(whole) == 12
    assert contents(three) == whole
    for workers in (2, 4):
        folder, engine.config = tmp_path / str(workers), replace(engine.config, workers=workers)
        assert list(engine.map(work.multiply, parts(folder), **BAR)) == sums
        assert contents(folder) == whole
    engine.config = replace(engine.config, workers=None)


def test_summaries_come_in_the_order_of_the_jobs(engine: RayEngine) -> None:
    jobs = [(3, 0.4), (1, 0.0), (2, 0.1), (0, 0.0)]
    found = list(engine.map(work.slow_square, jobs, **BAR))
    assert [square for square, _ in found] == [9, 1, 4, 0]
    processes = {process for _, process in found}
    assert os.getpid() not in processes
    assert len(processes) > 1
    assert list(engine.map(work.slow_square, [], **BAR)) == []


def test_a_worker_that_is_killed_changes_nothing(engine: RayEngine, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    jobs = [(i, str(mark)) for i in range(5)]
    assert list(engine.map(work.die_once, jobs, **BAR)) == [0, 1, 2, 3, 4]
    assert mark.exists()


def test_a_job_that_kills_every_worker_ends_with_one_line(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "MAX_RETRIES", 0)
    with pytest.raises(
        InputError, match=r"--engine ray: .*WorkerCrashed.*what is saved stays"
    ) as e:
        list(engine.map(work.die, [1], **BAR))
    assert "\n" not in str(e.value)


def answers_while_a_node_leaves(
    cluster: Any, nodes: list[Any], folder: Path, found: Iterator[Any]
) -> list[Any]:
    """All summaries; the last node is removed as soon as all of them are at work."""
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(lambda: list(found))
        wanted = {node.node_id for node in nodes}
        for _ in range(1200):
            if wanted <= {path.name for path in folder.iterdir()} or answers.done():
                break
            time.sleep(0.05)
        assert wanted <= {path.name for path in folder.iterdir()}
        cluster.remove_node(nodes[-1], allow_graceful=False)
        (folder / "go").touch()
        return answers.result()


def test_a_node_that_is_removed_changes_nothing(
    engine: RayEngine, cluster: Any, tmp_path: Path
) -> None:
    node = add_node(cluster, num_cpus=1)
    cluster.wait_for_nodes()
    found = engine.map(work.visit, [(i, tmp_path) for i in range(12)], **BAR)
    assert answers_while_a_node_leaves(cluster, [node], tmp_path, found) == list(range(12))


def test_a_shard_map_goes_on_with_another_engine(engine: RayEngine, tmp_path: Path) -> None:
    def run(engine: Engine, store: Store, n: int) -> list[Summary]:
        todo = shards(tmp_path / "calls", n)
        found = run_shards(
            *(engine, write_numbers, todo),
            store=store,
            folder="parts",
            description="test",
            unit="pair",
        )
        return list(found)

    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    run(LocalEngine(2), there, 7)
    assert run(engine, there, 7) == run(LocalEngine(2), here, 7)
    assert taken(tmp_path / "calls") == sorted([10 * i for i in range(7)] * 2)
    for path in (there.root / "parts").glob("00[25]*"):
        path.unlink()
    assert run(engine, there, 7) == run(LocalEngine(2), here, 7)
    assert taken(tmp_path / "calls") == [20, 50]
    found, expected = shard_contents(there), shard_contents(here)
    assert len(expected) == 21
    assert found == expected


def test_errors_of_work_come_as_they_are_and_once(engine: RayEngine, tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    for number, error, text in ((2, InputError, "^shard 2 is damaged"), (3, KeyError, "three")):
        with pytest.raises(error, match=text):
            list(engine.map(work.refuse, [(number, str(counter))], **BAR))
    assert counter.read_text() == "2\n3\n"


def test_errors_while_other_jobs_get_done(engine: RayEngine, tmp_path: Path) -> None:
    jobs = [(i, str(tmp_path / "calls")) for i in (0, 1, 4, 2, 5, 6, 7, 8, 9)]
    for _ in range(25):  # Ray ends this process where a task is cancelled that gets done
        with pytest.raises(InputError, match=r"^shard 2 is damaged"):
            list(engine.map(work.refuse, jobs, **BAR))
    assert next(iter(engine.map(work.slow_square, [(3, 0.0)], **BAR)))[0] == 9


def test_a_worker_has_one_thread_of_arithmetic(engine: RayEngine) -> None:
    for blas, torch in engine.map(work.threads, range(4), **BAR):
        assert blas == {1}
        assert torch == 1


def test_a_context_is_made_once_a_worker(engine: RayEngine, tmp_path: Path) -> None:
    made = tmp_path / "made"
    setup = Setup(work.make_model, (str(made), 2.0))
    for _ in range(2):
        found = list(engine.map(work.times, range(12), **BAR, setup=setup))
        assert [value for value, _ in found] == [2.0 * i for i in range(12)]
    makers = [int(line.split()[0]) for line in made.read_text().splitlines()]
    assert len(makers) == len(set(makers)), "once a process, for both maps"
    assert {process for _, process in found} <= set(makers)


def test_what_is_large_does_not_travel(engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a job has 64 MiB"):
        list(engine.map(work.large_summary, [np.zeros(2**23)], **BAR))
    with pytest.raises(ValueError, match="a summary has 64 MiB"):
        list(engine.map(work.large_summary, [1], **BAR))


def test_a_mapped_file_that_a_worker_does_not_see(engine: RayEngine, tmp_path: Path) -> None:
    jobs = parts(tmp_path / "ray", n=1)
    (tmp_path / "embeddings.npy").unlink()
    with pytest.raises(InputError, match=r"embeddings.npy cannot be read on .*shared storage"):
        list(engine.map(work.multiply, jobs, **BAR))


def test_gpus_that_are_not_there_are_not_waited_for_for_ever(engine: RayEngine) -> None:
    patient, engine.config = engine.config, replace(engine.config, ray_timeout=1)
    setup = Setup(work.make_model, ("unused", 2.0), on_gpu=True)
    with pytest.raises(InputError, match=r"within 1 s, one GPU is needed .* 0 of 0 GPUs free"):
        list(engine.map(work.visit_gpu, [(0, Path())], **BAR, setup=setup))
    engine.config = patient


def test_a_gpu_each_and_one_that_leaves(engine: RayEngine, cluster: Any, tmp_path: Path) -> None:
    nodes = [add_node(cluster, num_cpus=1, num_gpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    folder, made = tmp_path / "visited", tmp_path / "made"
    folder.mkdir()
    setup = Setup(work.make_model, (str(made), 3.0), on_gpu=True)
    found = engine.map(work.visit_gpu, [(i, folder) for i in range(9)], **BAR, setup=setup)
    answers = answers_while_a_node_leaves(cluster, nodes, folder, found)
    assert answers == [(3.0 * i, "0") for i in range(9)]
    n_made = len(made.read_text().splitlines())
    assert n_made == 3, "one a GPU, and one more where the work of the lost one went on"
    cluster.remove_node(nodes[0])


def test_a_node_that_does_not_see_the_output_folder_is_named(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hidden = RayEngine(engine.config, Store.open(str(tmp_path)))
    list(engine.map(work.threads, [1], **BAR))  # connected
    unseen = tmp_path / "unseen"
    monkeypatch.setattr(Store, "write_bytes", lambda *_, **__: unseen)
    with pytest.raises(
        InputError, match=rf"node [\d.]+ \(.*\) cannot read {unseen} .*shared storage"
    ):
        hidden._check_nodes()
    assert not list(tmp_path.iterdir())


def test_a_node_that_cannot_import_the_program_is_named(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(engine.map(work.threads, [1], **BAR))

    def elsewhere(path: str) -> tuple[str, bytes]:
        return path, b""

    elsewhere.__module__, elsewhere.__qualname__ = "not_on_nodes", "elsewhere"
    module = type(sys)("not_on_nodes")
    module.elsewhere = elsewhere  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "not_on_nodes", module)
    monkeypatch.setattr(on_ray, "read_probe", elsewhere)
    with pytest.raises(InputError, match=r"node [\d.]+ cannot run the program \(.*not_on_nodes"):
        engine._check_nodes()


def test_a_ray_of_ones_own_ends_with_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWN, str(tmp_path)]
    root = Path(on_ray.__file__).parents[1]
    started = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=90)
    assert started.returncode == 0, started.stderr
    assert started.stdout.splitlines() == ["CPU 2.0", "[1, 1, 2, 6]", "ended"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("port_is_open", [False, True])
def test_an_address_where_no_ray_is(
    port_is_open: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "ANSWER_SECONDS", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not port_is_open:
            server.close()
        started = time.monotonic()
        config = EngineConfig(engine="ray", ray_address=f"127.0.0.1:{port}")
        with (
            pytest.raises(InputError, match=rf"--ray_address 127.0.0.1:{port} .*ray start --head"),
            RayEngine(config, store) as engine,
        ):
            list(engine.map(work.threads, [1], **BAR))
    assert time.monotonic() - started < 10

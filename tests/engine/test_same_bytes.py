"""Stage 1 gives the same bytes from any engine, and whatever happens to workers, nodes and the run.

Data sets and files are small and shards shorter still; one Ray serves all tests.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main
from artifacts.store import Store
from cli.config import parse_arguments
from engine.base import Engine
from engine.cluster import RayEngine
from engine.local import LocalEngine
from engine.settings import EngineConfig
from engine.threads import one_thread
from intake import images as intake_images
from sources import row_arrays, row_facts
from tests.engine import stage_1_work
from tests.sources.embedding_files import draw, save_part
from tests.sources.layouts import as_folder, as_parquet, as_shards
from tests.sources.test_datacomp import save_pool

pytest.importorskip("ray", reason="Ray is not installed (requirements-ray.txt)")
# Ray leaves sockets and files of its own processes to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

ROOT = Path(main.__file__).parent
SIZES = {"train": 24, "validation": 8, "test": 8}
FLAGS = (
    "--max_train_samples 60 --max_val_samples 12 --max_test_samples 12 --n_clusters 4 "
    "--encoder_batch_size 3 --num_workers 0 --device cpu --no_report"
).split()
NEEDED = ("image_embeddings.npy", "clusters.json", "skipped.csv")
STAGE_1 = ["--skip_stage", "2", "3", "--methods", "none"]
IMAGES = ["--encoder_model", "embedded"]


def drawn(root: Path) -> list[str]:
    return ["--dataset", "synthetic", *IMAGES, "--max_train_samples", "24"]


def folder(root: Path) -> list[str]:
    return ["--dataset", "folder", "--data_dir", str(as_folder(root / "folder", SIZES)), *IMAGES]


def tars(root: Path) -> list[str]:
    place = str(as_shards(root / "tars", SIZES))
    return ["--dataset", "webdataset", "--data_dir", place, *IMAGES]


def tables(root: Path) -> list[str]:
    place = str(as_parquet(root / "tables", SIZES))
    return ["--dataset", "parquet", "--data_dir", place, *IMAGES]


def clip_retrieval(root: Path) -> list[str]:
    for number, n in enumerate((70, 50)):
        images, texts = draw(n, 2 * number), draw(n, 2 * number + 1)
        images[3] = np.nan
        save_part(root / "retrieval", number, images, texts)
    return ["--embeddings_dir", str(root / "retrieval")]


def datacomp(root: Path) -> list[str]:
    save_pool(root / "pool", 4, 30)
    return ["--embeddings_dir", str(root / "pool")]


LAYOUTS: dict[str, Callable[[Path], list[str]]] = {
    made.__name__: made for made in (drawn, folder, tars, tables, clip_retrieval, datacomp)
}


def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What jobs are made of, here; workers take them as they come."""
    monkeypatch.setattr(intake_images, "IMAGES_A_SHARD", 4)
    monkeypatch.setattr("intake.captions.CAPTIONS_A_SHARD", 6)
    monkeypatch.setattr(row_facts, "STRETCH", 17)
    monkeypatch.setattr(row_arrays, "ROWS_A_JOB", 13)


def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array of embeddings is filled in a file of its own."""
    for name in ("embedding", "artifacts.store"):
        monkeypatch.setattr(f"{name}.HELD_BYTES", 1000)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short_shards(monkeypatch)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    from tests.engine.test_cluster import SOON_MISSED, STORE_BYTES

    head = {
        **{"num_cpus": 4, "num_gpus": 0, "object_store_memory": STORE_BYTES},
        "_system_config": SOON_MISSED,
    }
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def ray(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    store = Store.open(str(tmp_path_factory.mktemp("output")))
    config = EngineConfig(engine="ray", workers=2, ray_address=cluster.address, ray_timeout=60)
    engine = RayEngine(config, store)
    with engine:
        yield engine


def stage_1(engine: Engine, flags: list[str], output: Path) -> dict[str, str]:
    """The hashes of what stage 1 leaves, by file; of manifests without their seconds."""
    config = parse_arguments([*FLAGS, *flags, "--output_dir", str(output)])
    run = replace(main.open_run(config, Store.open(str(output))), engine=engine)
    main.stage_1(run)
    return hashes(output)


def hashes(output: Path) -> dict[str, str]:
    found = {}
    for path in sorted((output / "stage1").rglob("*")):
        data = path.read_bytes() if path.is_file() else b"a folder"
        if path.name.endswith("manifest.json"):
            data = json.dumps(json.loads(data) | {"seconds": 0}).encode()
        found[str(path.relative_to(output))] = hashlib.sha256(data).hexdigest()
    return found


def checked(found: dict[str, str]) -> dict[str, str]:
    """The same; fails where there is nothing to compare."""
    assert {f"stage1/{name}" for name in NEEDED} <= found.keys(), sorted(found)
    return found


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        *((layout, "small") for layout in LAYOUTS),
        *((layout, "large") for layout in ("folder", "clip_retrieval", "datacomp")),
    ],
)
def test_stage_1_is_the_same_from_threads_and_from_ray(
    ray: RayEngine, layout: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "large":
        all_large(monkeypatch)
    flags = LAYOUTS[layout](tmp_path)
    one = checked(stage_1(LocalEngine(1), flags, tmp_path / "one"))
    assert stage_1(LocalEngine(2), flags, tmp_path / "two") == one
    n_done = len(stage_1_work.finished_shards(tmp_path))
    assert n_done == 0, "shards are gone when the stage is saved"
    for workers in (2, 4) if size == "small" else (2,):
        ray.config = replace(ray.config, workers=workers)
        assert stage_1(ray, flags, tmp_path / f"ray{workers}") == one


def test_a_worker_that_is_killed_while_it_encodes(
    ray: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = folder(tmp_path)
    expected = checked(stage_1(LocalEngine(2), flags, tmp_path / "local"))
    monkeypatch.setattr(intake_images, "encode_shard", stage_1_work.encode_and_die_once)
    assert stage_1(ray, flags, tmp_path / "ray") == expected
    assert (tmp_path / "ray" / stage_1_work.DIED).read_text() == "images of two batches"


def test_a_worker_that_is_killed_while_it_fills_an_array(
    ray: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_large(monkeypatch)
    flags = clip_retrieval(tmp_path)
    expected = checked(stage_1(LocalEngine(2), flags, tmp_path / "local"))
    monkeypatch.setattr("intake.arrays.fill_shard", stage_1_work.fill_and_die_once)
    assert stage_1(ray, flags, tmp_path / "ray") == expected
    assert (tmp_path / "ray" / stage_1_work.DIED).read_text() == "rows filled"


def test_a_node_that_is_removed_while_its_worker_encodes(
    ray: RayEngine, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.engine.test_cluster import add_node, answers_while_a_node_leaves

    flags, output = tars(tmp_path), tmp_path / "ray"
    expected = checked(stage_1(LocalEngine(2), flags, tmp_path / "local"))
    ray.config = replace(ray.config, workers=6)
    monkeypatch.setattr(intake_images, "IMAGES_A_SHARD", 1)  # a shard for every worker
    node = add_node(cluster, num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setattr(intake_images, "encode_shard", stage_1_work.encode_where_a_node_leaves)
    visited = output / stage_1_work.VISITED
    visited.mkdir(parents=True)

    def found() -> Iterator[tuple[str, str]]:
        yield from stage_1(ray, flags, output).items()

    assert dict(answers_while_a_node_leaves(cluster, [node], visited, found())) == expected


# --- The whole program ----------------------------------------------------------------------------

PROGRAM = """
import sys
import pytest
from intake import arrays, images, rows
from tests.engine import stage_1_work, test_same_bytes
import main
patch = pytest.MonkeyPatch()
test_same_bytes.short_shards(patch)
if sys.argv[1] == "large":
    test_same_bytes.all_large(patch)
stage_1_work.note(patch)
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("layout", "size"), [("folder", "small"), ("clip_retrieval", "large")])
def test_a_run_that_is_killed_repeats_less_than_a_shard_a_worker(
    layout: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, output = np.random.default_rng([16, len(layout)]), tmp_path / "output"
    flags = LAYOUTS[layout](tmp_path)
    more = ["--workers", "2", *STAGE_1, "--output_dir", str(output)]
    command = [sys.executable, "-c", PROGRAM, size, *FLAGS, *flags, *more]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of what is computed in one piece
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as started:
        for _ in range(1200):
            if stage_1_work.noted(output) or started.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0, 0.6)))
        assert started.poll() is None
        started.send_signal(signal.SIGKILL)
    first, saved = stage_1_work.noted(output), stage_1_work.finished_shards(output)
    assert first
    assert len(set(first) - set(saved)) <= 2, "one a worker is unfinished"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    second = stage_1_work.noted(output)[len(first) :]
    assert second, "something was left to do"
    assert not set(second) & set(saved), "what was saved is not made again"
    assert len(second) == len(set(second))
    if size == "large":
        all_large(monkeypatch)
    with one_thread():  # as in the other process
        expected = checked(stage_1(LocalEngine(2), flags, tmp_path / "whole"))
    figures = {"stage1/cluster_sizes.png"}
    assert hashes(output).keys() - expected.keys() == figures
    assert {name: data for name, data in hashes(output).items() if name not in figures} == expected

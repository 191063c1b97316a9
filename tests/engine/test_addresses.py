"""Workers of Ray open data behind addresses by themselves; one Ray and one S3 server serve all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.settings import InputError
from artifacts.store import Store
from engine.cluster import RayEngine
from engine.local import LocalEngine
from engine.settings import EngineConfig
from intake import images as intake_images
from tests.engine import stage_1_work
from tests.engine.test_same_bytes import (
    IMAGES,
    SIZES,
    all_large,
    checked,
    clip_retrieval,
    short_shards,
    stage_1,
)
from tests.sources.layouts import as_folder, as_shards
from tests.sources.s3 import s3_bucket

pytest.importorskip("ray", reason="Ray is not installed (requirements-ray.txt)")
# Ray leaves sockets and files of its own processes to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short_shards(monkeypatch)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with s3_bucket(tmp_path_factory.mktemp("aws")) as files:
        yield files


@pytest.fixture(scope="module")
def ray(bucket: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    """Started where the environment tells of the bucket, which is how workers know."""
    store = Store.open(str(tmp_path_factory.mktemp("output")))
    engine = RayEngine(EngineConfig(engine="ray", workers=2, ray_timeout=60), store)
    with engine:
        yield engine


def test_shards_behind_an_address(ray: RayEngine, bucket: Any, tmp_path: Path) -> None:
    bucket.put(str(as_shards(tmp_path / "shards", SIZES)), "pool/shards", recursive=True)
    flags = ["--dataset", "webdataset", "--data_dir", "s3://pool/shards", *IMAGES]
    expected = checked(stage_1(LocalEngine(2), flags, tmp_path / "local"))
    assert stage_1(ray, flags, tmp_path / "ray") == expected


def test_embeddings_behind_an_address(
    ray: RayEngine, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_large(monkeypatch)
    bucket.put(clip_retrieval(tmp_path)[1], "pool/given", recursive=True)
    flags = ["--embeddings_dir", "s3://pool/given"]
    expected = checked(stage_1(LocalEngine(2), flags, tmp_path / "local"))
    assert stage_1(ray, flags, tmp_path / "ray") == expected


def test_an_embedding_file_that_is_gone_when_a_worker_wants_it(
    ray: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, output = clip_retrieval(tmp_path), tmp_path / "out"
    hidden = tmp_path / "retrieval" / "img_emb" / "img_emb_1.npy"
    monkeypatch.setattr("intake.rows.look_shard", stage_1_work.look_but_hide)
    with pytest.raises(InputError, match=r"--embeddings_dir .*img_emb_1.npy cannot be read") as e:
        stage_1(ray, flags, output)
    assert "\n" not in str(e.value)
    saved = stage_1_work.finished_shards(output)
    assert saved, "what is saved stays"
    hidden.with_suffix(".hidden").rename(hidden)
    monkeypatch.setattr("intake.rows.look_shard", stage_1_work.noted_look)
    assert checked(stage_1(ray, flags, output))
    assert stage_1_work.noted(output)
    assert not set(saved) & set(stage_1_work.noted(output))


def test_data_that_are_others_where_a_worker_is(
    ray: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = as_folder(tmp_path / "folder", SIZES)
    flags = ["--dataset", "folder", "--data_dir", str(root), *IMAGES]
    plain = intake_images.ShardReader._read_wave

    def change(self: Any, *arguments: Any) -> Any:
        (root / "000.png").write_bytes((root / "001.png").read_bytes())
        return plain(self, *arguments)

    monkeypatch.setattr(intake_images.ShardReader, "_read_wave", change)
    with pytest.raises(InputError, match=rf"--data_dir: {root} holds other files on .* changed"):
        stage_1(ray, flags, tmp_path / "out")


def test_a_disk_that_fills_while_a_worker_writes(
    ray: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_large(monkeypatch)
    flags, output = clip_retrieval(tmp_path), tmp_path / "out"
    for name, work in (
        ("intake.rows.look_shard", "look_on_a_full_disk"),
        ("intake.arrays.fill_shard", "fill_a_full_disk"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, getattr(stage_1_work, work))
            with pytest.raises(InputError, match=r"--output_dir: .*No space left on device") as e:
                stage_1(ray, flags, output)
        assert "\n" not in str(e.value)
        assert stage_1_work.finished_shards(output), "what is saved stays"
    expected = checked(stage_1(LocalEngine(2), flags, tmp_path / "whole"))
    assert stage_1(ray, flags, output) == expected

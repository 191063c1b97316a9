"""Data behind s3:// addresses: a server on this machine that speaks S3, and the usual driver.

What is read is told by the same files as a folder on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.settings import InputError
from sources import places
from tests.helpers import open_folder, read_all, write
from tests.sources.layouts import as_folder, as_parquet, as_shards
from tests.sources.remote import seen
from tests.sources.s3 import KEYS, s3_bucket
from tests.sources.tars import open_shards
from tests.sources.test_npy import as_clip_retrieval, open_at
from tests.sources.test_places import open_any

pytest.importorskip("moto.server", reason="needs moto[server], an S3 server")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs, the driver of s3://")

SIZES = {"train": 12, "validation": 4, "test": 4}
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The driver's view of an empty bucket called pool."""
    with s3_bucket(tmp_path_factory.mktemp("aws")) as files:
        yield files


def test_folder_shards_and_tables(bucket: Any, tmp_path: Path) -> None:
    layouts = {"folder": as_folder, "webdataset": as_shards, "parquet": as_parquet}
    for layout, make in layouts.items():
        root = make(tmp_path / layout, SIZES)
        bucket.put(str(root), f"pool/{layout}", recursive=True)
        local, remote = open_any(layout, root), open_any(layout, f"s3://pool/{layout}/")
        assert seen(remote) == seen(local)
        pixels, expected = read_all(remote, num_workers=4)[1], read_all(local)[1]
        assert {split: rows.tolist() for split, rows in pixels.items()} == {
            split: rows.tolist() for split, rows in expected.items()
        }


def test_patterns_of_shards(bucket: Any, tmp_path: Path) -> None:
    root = as_shards(tmp_path / "shards", SIZES)
    bucket.put(str(root), "pool/shards", recursive=True)
    for pattern in ("train-0.tar", "train-{0,5,77}.tar", "t*-{1..39}.tar"):
        assert seen(open_shards(f"s3://pool/shards/{pattern}")) == seen(open_shards(root / pattern))


def test_a_changed_file_changes_the_fingerprint(bucket: Any, tmp_path: Path) -> None:
    root = as_folder(tmp_path / "changed", SIZES)
    bucket.put(str(root), "pool/changed", recursive=True)
    first = open_any("folder", "s3://pool/changed").fingerprint
    bucket.pipe_file("pool/changed/000.png", (root / "001.png").read_bytes())
    assert open_any("folder", "s3://pool/changed").fingerprint != first


def test_names_are_not_taken_for_addresses(bucket: Any, tmp_path: Path) -> None:
    names = ["a b.png", "50%25.png", "a#1.png", "a+b?.png", "\u00e9.png"]
    files = {name: f"image {i}" for i, name in enumerate(names)}
    table = "image,caption\n" + "\n".join(f"{name},of it" for name in names)
    root = write(tmp_path / "names", {**files, "captions.csv": table})
    for name in (*names, "captions.csv"):
        bucket.pipe_file(f"pool/names/{name}", (root / name).read_bytes())
    assert seen(open_any("folder", "s3://pool/names")) == seen(open_folder(root))


@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet", "coco"])
def test_what_is_not_there(bucket: Any, layout: str) -> None:
    for address in ("s3://no-such-bucket/x", "s3://pool/no/such/prefix"):
        with pytest.raises(InputError, match=f"--data_dir {address} does not exist: no file is"):
            open_any(layout, address)


def test_no_credentials(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS:
        monkeypatch.delenv(key)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match="cannot be listed: access is denied, or there are no cre"):
        open_any("folder", "s3://pool/folder")
    with pytest.raises(InputError, match=r"set those of the storage \(AWS_ACCESS_KEY_ID and"):
        open_any("webdataset", "s3://pool/{1..3}.tar")
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_read_that_breaks_off_midway(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = as_shards(tmp_path / "breaks", SIZES)
    bucket.put(str(root), "pool/breaks", recursive=True)
    monkeypatch.setattr(places, "WAITS_SECONDS", (0.0, 0.0, 0.0))
    original, reads = s3fs.S3FileSystem._cat_file, Counter[str]()

    async def halves(self: Any, path: str, *args: Any, **options: Any) -> bytes:
        part = f"{path} {args} {options}"
        reads[part] += 1
        data: bytes = await original(self, path, *args, **options)
        return data[: len(data) // 2] if reads[part] < 3 else data

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", halves)
    assert seen(open_shards("s3://pool/breaks")) == seen(open_shards(root))
    assert {*reads.values()} == {3}


def test_embeddings(bucket: Any, tmp_path: Path) -> None:
    root = as_clip_retrieval(tmp_path / "embeddings")
    bucket.put(str(root), "pool/embeddings", recursive=True)
    local, remote = open_at(root), open_at("s3://pool/embeddings")
    assert seen(remote.source) == seen(local.source)
    rows = np.arange(55)
    np.testing.assert_array_equal(remote.texts.at(rows), local.texts.at(rows))

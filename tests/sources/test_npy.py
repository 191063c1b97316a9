"""Embeddings behind addresses: the truth is what the same files give as a folder on the disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from artifacts import scratch
from artifacts.settings import InputError
from sources import npy
from sources.base import DataConfig
from sources.embeddings import EmbeddingFiles, open_embeddings
from sources.npy import fetch_rows, remote_header
from sources.places import Address
from tests.helpers import SMALL, write
from tests.sources.embedding_files import draw, save_part
from tests.sources.remote import break_off, in_memory, seen
from tests.sources.test_datacomp import save_pool


def as_clip_retrieval(root: Path) -> Path:
    for part, n in ((2, 30), (10, 25)):
        images, texts = draw(n, part), draw(n, part + 1)
        images[3] = np.nan
        paths = [f"{part}/{i // 2}.jpg" for i in range(n)]
        columns = {"caption": [f"{part}, {i}" for i in range(n)], "image_path": paths}
        save_part(root, part, images, texts, columns)
    return root


def as_datacomp(root: Path) -> Path:
    save_pool(root)
    return write(root, {"b.npz": "no zip", "b.parquet": "no table"})


def as_packed_datacomp(root: Path) -> Path:
    save_pool(root / "metadata", save=np.savez_compressed)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "clip-retrieval": as_clip_retrieval,
    "datacomp": as_datacomp,
    "packed datacomp": as_packed_datacomp,
}


def open_at(place: Path | str, **changes: Any) -> EmbeddingFiles:
    config = DataConfig(embeddings_dir=str(place), **SMALL | changes)
    return open_embeddings(config, np.random.default_rng(0))


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_address_gives_what_the_folder_gives(tmp_path: Path, name: str) -> None:
    root = LAYOUTS[name](tmp_path / "pool")
    address = in_memory(root, "pool")
    local, remote = open_at(root), open_at(address)
    assert seen(remote.source) == seen(local.source)
    assert remote.source.notes == local.source.notes
    assert remote.source.unread == local.source.unread
    assert remote.source.description == local.source.description.replace(str(root), address)
    positions = np.arange(0, 55, 7)
    np.testing.assert_array_equal(remote.texts_at(positions), local.texts_at(positions))
    again = pickle.loads(pickle.dumps(remote.texts))  # noqa: S301 - what this test itself wrote
    np.testing.assert_array_equal(again.at(positions), local.texts.at(positions))


def test_a_pool_behind_an_address_beside_a_target_on_the_disk(tmp_path: Path) -> None:
    root = as_clip_retrieval(tmp_path / "pool")
    save_part(tmp_path / "target", 0, draw(20, 7), draw(20, 8))
    target, address = str(tmp_path / "target"), in_memory(root, "pool")
    local = open_at(root, val_embeddings_dir=target)
    assert seen(open_at(address, val_embeddings_dir=target).source) == seen(local.source)
    other = in_memory(tmp_path / "target", "target")
    assert seen(open_at(address, val_embeddings_dir=other).source) == seen(local.source)
    with pytest.raises(InputError, match="--val_embeddings_dir memory://none does not exist"):
        open_at(address, val_embeddings_dir="memory://none")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_fingerprint_changes_when_a_file_does(tmp_path: Path, name: str) -> None:
    address = in_memory(LAYOUTS[name](tmp_path / "pool"), "pool")
    first = open_at(address).source.fingerprint
    assert open_at(address).source.fingerprint == first
    files = fsspec.filesystem("memory")
    changed = next(f for f in sorted(files.find("/pool")) if f.endswith(("img_emb_2.npy", "0.npz")))
    files.pipe_file(changed, files.cat_file(changed))
    assert open_at(address).source.fingerprint != first


def test_what_is_no_folder_of_embeddings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--embeddings_dir memory://nothing does not exist"):
        open_at("memory://nothing")
    address = in_memory(as_clip_retrieval(tmp_path / "pool/inner").parent, "pool")
    with pytest.raises(InputError, match=f"--embeddings_dir {address}/inner may be meant"):
        open_at(address)
    fsspec.filesystem("memory").rm("/pool/inner/text_emb", recursive=True)
    with pytest.raises(InputError, match=f"{address}/inner: text_emb is missing beside img_emb"):
        open_at(f"{address}/inner")


def test_embeddings_that_break_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = in_memory(as_clip_retrieval(tmp_path / "pool"), "pool")
    lost = OSError("gone\nand more")
    reads = break_off(monkeypatch, lambda path, n: lost if n < 4 else None)
    files = open_at(address)
    assert min(map(reads.count, reads)) > 3
    monkeypatch.setattr(files.texts, "_cached", files.texts._read)
    assert len(files.texts_at(np.arange(4, 30))) == 26
    break_off(monkeypatch, lambda path, _: lost if "text_emb_10" in path else None)
    with pytest.raises(InputError, match=r"text_emb_10\.npy cannot be read .*gone") as ended:
        files.texts_at(np.arange(30, 50))
    assert "\n" not in str(ended.value)
    with pytest.raises(InputError, match=r"text_emb_10\.npy cannot be read"):
        open_at(address)


# --- One file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_rows_are_fetched_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any, dtype: str
) -> None:
    monkeypatch.setattr(scratch, "HELD_BYTES", 100)  # so that they lie in a file
    monkeypatch.setattr(npy, "READ_BYTES", 64)
    rows = np.asarray(draw(30, 5), dtype, order=order)
    np.save(tmp_path / "a.npy", rows)
    root = Address(in_memory(tmp_path, "pool"))
    fetched = fetch_rows(root, "a.npy")
    assert fetched.dtype == rows.dtype
    np.testing.assert_array_equal(fetched, rows)


def test_what_is_no_array(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", draw(30, 5))
    data = (tmp_path / "whole.npy").read_bytes()
    objects = np.empty(2, object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    huge = data.replace(b"(30, ", b"(3000000000000000000, ")[: len(data)]
    write(tmp_path, {"cut.npy": data[:-1], "text.npy": "no array", "huge.npy": huge})
    root = Address(in_memory(tmp_path, "pool"))
    assert remote_header(root, "whole.npy").shape == (30, draw(1, 5).shape[1])
    faults = {"cut": "ends before", "text": "magic", "objects": "never unp", "huge": "ends before"}
    for name, fault in faults.items():
        with pytest.raises(ValueError, match=fault):
            fetch_rows(root, f"{name}.npy")

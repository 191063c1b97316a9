"""Data behind addresses: the truth is what the same files give as a folder on the disk."""

from __future__ import annotations

import io
import json
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations

from artifacts.settings import InputError
from data import open_source
from sources import places
from sources.base import (
    MISSING_FILE,
    OUTSIDE_FOLDER,
    UNREADABLE_FILE,
    DataConfig,
    PairSource,
    UnusableImage,
)
from sources.combined import find_layout
from sources.paths import leads_out, list_files, read_file, visible_files
from sources.places import Address, BrokenReadError, StorageGoneError, is_address, place_at
from tests.helpers import SMALL, photographs, picture, read_all, write
from tests.sources.layouts import SPLIT_SIZES, as_folder, as_parquet, as_shards
from tests.sources.remote import break_off, in_memory, seen
from tests.sources.tars import pairs, tar


def open_any(layout: str, place: Path | str, **changes: object) -> PairSource:
    config = DataConfig(**{"dataset": layout, "data_dir": str(place), **SMALL, **changes})
    return open_source(config, rng=np.random.default_rng(0))


# --- The same as a folder -------------------------------------------------------------------------


def as_coco(root: Path) -> Path:
    for part, numbers in (("train", range(12)), ("val", range(12, 20))):
        content = {
            "images": [{"id": i, "file_name": f"{i:03d}.png"} for i in numbers],
            "annotations": [{"image_id": i, "caption": f"of {i}"} for i in numbers[1:]],
        }
        write(root, {f"annotations/captions_{part}2017.json": json.dumps(content)})
        write(root, {f"{part}2017/{i:03d}.png": picture(i) for i in numbers})
    return root


def as_texts_beside(root: Path) -> Path:
    write(root, {f"in/{i:03d}.png": picture(i) for i in range(20)})
    write(root, {f"in/{i:03d}.txt": f"of {i}\nand more" for i in range(19)})
    return write(root, {"in/lonely.txt": "no picture", ".hidden/x.png": picture(99)})


def as_other_names(root: Path) -> Path:
    """Names that have to be bridged, one that leads out, one that is not there."""
    write(root, photographs(14, "Bilder/") | {"Bilder/e\u0301.png": picture(50)})
    rows = [f"{i:03d}.PNG,of {i}" for i in range(14)]
    rows += ["\u00e9.png,accents", "../secret.png,outside", "gone.png,gone"]
    return write(root, {"captions.csv": "\n".join(["image,caption", *rows])})


def as_lists(root: Path) -> Path:
    write(root, photographs(20) | {"train.txt": "\n".join(f"{i:03d}.png" for i in range(12))})
    write(root, {"test.txt": "\n".join(f"{i:03d}.png" for i in range(12, 20))})
    rows = [{"file_name": f"{i:03d}.png", "caption": f"of {i}"} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), root / "captions.parquet")
    return root


def as_paths_in_parquet(root: Path) -> Path:
    write(root, photographs(20, "images/"))
    columns = {"image": [f"images/{i:03d}.png" for i in range(20)], "caption": ["of it"] * 20}
    pq.write_table(pa.table(columns), root / "table.parquet")
    return root


def as_damaged_shards(root: Path) -> Path:
    whole = tar(pairs(range(10)))
    return write(root, {"a/1.tar": whole, "a/2.tar": whole[:4000], "b.tar": "no tar", "c.txt": ""})


LAYOUTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "folder": ("folder", lambda root: as_folder(root, SPLIT_SIZES["official"])),
    "texts beside": ("folder", as_texts_beside),
    "other names": ("folder", as_other_names),
    "lists of splits": ("folder", as_lists),
    "coco": ("coco", as_coco),
    "shards": ("webdataset", lambda root: as_shards(root, SPLIT_SIZES["official"])),
    "damaged shards": ("webdataset", as_damaged_shards),
    "parquet": ("parquet", lambda root: as_parquet(root, SPLIT_SIZES["official"])),
    "paths in parquet": ("parquet", as_paths_in_parquet),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_address_gives_what_the_folder_gives(tmp_path: Path, name: str) -> None:
    layout, make = LAYOUTS[name]
    root = make(tmp_path / "pool")
    address = in_memory(root, "pool")
    local, remote = open_any(layout, root), open_any(layout, address)
    assert seen(remote) == seen(local)
    assert (remote.notes, remote.unread) == (local.notes, local.unread)
    assert remote.description == local.description.replace(str(root), address)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_fingerprint_changes_when_a_file_does(tmp_path: Path, name: str) -> None:
    layout, make = LAYOUTS[name]
    root = make(tmp_path / "pool")
    address = in_memory(root, "pool")
    first = open_any(layout, address).fingerprint
    assert open_any(layout, address).fingerprint == first
    files = fsspec.filesystem("memory")
    used = sorted(n for n in files.find("/pool") if n.endswith((".png", ".tar", ".parquet")))
    visible = next(n for n in used if "/." not in n)
    data = files.cat_file(visible)
    time.sleep(0.001)
    files.pipe_file(visible, data)
    assert open_any(layout, address).fingerprint != first


def test_one_file_and_patterns_of_shards(tmp_path: Path) -> None:
    root = as_shards(tmp_path / "pool", SPLIT_SIZES["official"])
    address = in_memory(root, "pool")
    for pattern in ("train-0.tar", "train-{0,5,77}.tar", "*-{1..39}.tar", "t*.tar"):
        local = open_any("webdataset", root / pattern)
        remote = open_any("webdataset", f"{address}/{pattern}")
        assert seen(remote) == seen(local)
        assert remote.unread == tuple(u.replace(str(root), address) for u in local.unread)
    table = as_parquet(tmp_path / "tables", SPLIT_SIZES["official"]) / "train.parquet"
    remote = open_any("parquet", f"{in_memory(table.parent, 'tables')}/{table.name}")
    assert seen(remote) == seen(open_any("parquet", table))


def test_patterns_of_folders(tmp_path: Path) -> None:
    files = {f"{part}/{i}.tar": tar(pairs(range(i, i + 9))) for part in "ab" for i in (0, 9)}
    root = write(tmp_path / "pool", files)
    address = in_memory(root, "pool")
    for pattern in ("*/0.tar", "{a,b}/*.tar"):
        remote = open_any("webdataset", f"{address}/{pattern}")
        assert seen(remote) == seen(open_any("webdataset", root / pattern))


def test_a_pool_in_a_bucket_beside_a_target_on_the_disk(tmp_path: Path) -> None:
    pool = as_shards(tmp_path / "pool", {"train": 30})
    target = write(
        tmp_path / "target",
        {f"{i}.png": picture(i) for i in range(100, 110)}
        | {
            "captions.csv": "\n".join(["image,caption", *(f"{i}.png,{i}" for i in range(100, 110))])
        },
    )
    address, other = in_memory(pool, "pool"), in_memory(target, "target")
    local = open_any("webdataset", pool, val_data=str(target))
    assert seen(open_any("webdataset", address, val_data=str(target))) == seen(local)
    assert seen(open_any("webdataset", address, val_data=other)) == seen(local)
    assert seen(open_any("webdataset", pool, val_data=f"folder:{other}")) == seen(local)
    with pytest.raises(InputError, match=f"--val_data {address}/ is --data_dir itself"):
        open_any("webdataset", address, val_data=f"{address}/")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_an_address_holds_is_found_out(tmp_path: Path, name: str) -> None:
    layout, make = LAYOUTS[name]
    root = make(tmp_path / "pool")
    if name in ("lists of splits", "damaged shards"):  # which may be one thing or another
        return
    address = in_memory(root, "pool")
    assert find_layout(address, "--val_data") == (find_layout(str(root), "--val_data")[0], address)
    assert find_layout(f"{layout}:{address}", "--val_data") == (layout, address)


# --- Files of an address --------------------------------------------------------------------------


FILES = {"b.png": "b", "a/x/y.txt": "1", "a/c.png": "2", ".h": "", "a/.git/config": "", "a/é": "3"}


def test_files_are_listed_as_those_of_a_folder(tmp_path: Path) -> None:
    root = write(tmp_path, dict(FILES))
    place = place_at(in_memory(root, "pool"))
    assert list(visible_files(place)) == list(visible_files(root))
    sizes = {name: size for name, (size, _) in list_files(root).items()}
    assert {name: size for name, (size, _) in list_files(place).items()} == sizes
    assert read_file(place, "a/../b.png") == b"b"
    assert read_file(place, "a/.git/config") == b""


def test_nothing_leads_out(tmp_path: Path) -> None:
    in_memory(write(tmp_path / "secret", {"s.png": "secret"}), "secret")
    place = place_at(in_memory(write(tmp_path / "pool", dict(FILES)), "pool"))
    for name in ("../secret/s.png", "/secret/s.png", "a/../../secret/s.png", ".."):
        assert leads_out(place, name)
        with pytest.raises(UnusableImage) as refused:
            read_file(place, name)
        assert refused.value.reason == OUTSIDE_FOLDER
    for name in ("memory://secret/s.png", "gone.png", "a"):
        with pytest.raises(FileNotFoundError):
            read_file(place, name)


def test_a_file_is_read_in_parts(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(1000)
    place = place_at(in_memory(write(tmp_path, {"f": data}), "pool"))
    assert isinstance(place, Address)
    with place.open("f", buffer_bytes=64) as file, io.BytesIO(data) as truth:
        for offset, whence, size in (
            (10, 0, 5),
            (3, 1, 200),
            (-7, 2, 50),
            (2000, 0, 1),
            (0, 0, -1),
        ):
            assert file.seek(offset, whence) == truth.seek(offset, whence)
            assert file.read(size) == truth.read(size)
    with pytest.raises(UnusableImage):
        place.read("f", 999)


def test_an_address_alone_opens_it_again(tmp_path: Path) -> None:
    place = place_at(in_memory(write(tmp_path, dict(FILES)), "pool"))
    place.is_dir()
    again = pickle.loads(pickle.dumps(place))  # noqa: S301 - what this test itself wrote
    assert (again, str(again), vars(again).keys() & {"listing", "_entries"}) == (
        place,
        str(place),
        set(),
    )
    assert read_file(again, "b.png") == b"b"


def test_threads_share_an_address(tmp_path: Path) -> None:
    place = place_at(in_memory(write(tmp_path, photographs(64)), "pool"))
    started = threading.Barrier(8)

    def read(worker: int) -> list[bytes]:
        started.wait()
        return [read_file(place, f"{i:03d}.png") for i in range(worker, 64, 8)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(8)))
    assert found == [[picture(i) for i in range(worker, 64, 8)] for worker in range(8)]


# --- What cannot be had ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["folder", "coco", "webdataset", "parquet"])
def test_an_address_with_nothing_behind_it(layout: str) -> None:
    with pytest.raises(InputError, match="--data_dir memory://nothing/here does not exist"):
        open_any(layout, "memory://nothing/here")


REFUSED = {
    "abfs://container/pool": "abfs:// is missing .*; pip install -r requirements-cloud.txt",
    "nosuch://bucket/pool": "nothing reads nosuch://; give a folder, or an address of s3://",
    "file:///data": "give the path itself, without file://",
    "simplecache::s3://bucket/pool": "only storage itself is read",
    "zip://*.png::s3://bucket/pool.zip": "only storage itself is read",
    "ftp://me:secret@host/pool": r"--data_dir ftp://\.\.\.@host/pool: an address must hold no",
}


@pytest.mark.parametrize("address", REFUSED)
def test_what_no_driver_reads(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "abfs", {"class": "not_there.Files"})
    assert is_address(address)
    for layout in ("folder", "webdataset", "parquet", "coco"):
        with pytest.raises(InputError, match=REFUSED[address]) as refused:
            open_any(layout, address)
        assert "secret" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_the_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    with pytest.raises(InputError, match="Hub does not answer, or has no dataset owner/name for"):
        open_any("parquet", "hf://datasets/owner/name@main/data")
    assert time.monotonic() - began < 5


def test_saved_data_sets_stay_on_the_disk(tmp_path: Path) -> None:
    root = write(tmp_path, {"dataset_info.json": "{}", "state.json": "{}", "data.arrow": ""})
    for given in (in_memory(root, "pool"), f"hf:{in_memory(root, 'pool')}"):
        with pytest.raises(InputError, match="--val_data memory://pool: a save_to_disk folder"):
            find_layout(given, "--val_data")


# --- What breaks off ------------------------------------------------------------------------------


def test_a_read_that_breaks_off_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = as_folder(tmp_path / "pool", SPLIT_SIZES["official"])
    expected = seen(open_any("folder", root))
    address = in_memory(root, "pool")
    faults: dict[int, Exception | bytes] = {
        1: ConnectionResetError("reset"),
        2: b"half",
        3: TimeoutError(),
    }
    reads = break_off(monkeypatch, lambda path, number: faults.get(number))
    assert seen(open_any("folder", address)) == expected
    assert {reads.count(path) for path in reads} == {4}


def test_an_image_that_cannot_be_read_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = in_memory(as_folder(tmp_path / "pool", SPLIT_SIZES["official"]), "pool")
    lost = ConnectionResetError("reset by peer\nand more")
    reads = break_off(monkeypatch, lambda path, _: lost if path.endswith("/003.png") else None)
    reader, pixels = read_all(open_any("folder", address))
    skipped = reader.skipped().set_index("key")
    assert skipped["reason"].tolist() == [UNREADABLE_FILE] * 2  # its two captions
    assert "003.png cannot be read (reset by peer)" in skipped["detail"].iloc[0]
    assert sum(map(len, pixels.values())) > 30
    assert reads.count("/pool/003.png") == 1 + len(places.WAITS_SECONDS)


def test_a_shard_that_breaks_off_is_used_up_to_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tar(pairs(range(20)))
    root = write(tmp_path / "pool", {"1.tar": shard, "2.tar": shard, "3.tar": shard})
    address = in_memory(root, "pool")
    monkeypatch.setattr(places, "BUFFER_BYTES", 2048)
    faults = {"/pool/2.tar": OSError("gone"), "/pool/3.tar": OSError("gone")}
    first = {"/pool/2.tar": 3, "/pool/3.tar": 0}  # reads that are answered
    break_off(
        monkeypatch, lambda path, number: faults.get(path) if number > first.get(path, 0) else None
    )
    source = open_any("webdataset", address)
    shards = [record[3] for record in seen(source)]
    assert (shards.count("1.tar"), shards.count("3.tar")) == (20, 0)
    assert 0 < shards.count("2.tar") < 20
    assert "3.tar, which cannot be read (gone)" in source.unread[0]
    assert [note.partition(",")[0] for note in source.unread] == [
        "1 of 3 shards could not be read",
        "1 of 3 shards are damaged and were read up to there",
    ]


def test_a_table_of_images_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = in_memory(as_parquet(tmp_path / "pool", SPLIT_SIZES["official"]), "pool")
    source = open_any("parquet", address)
    break_off(monkeypatch, lambda path, _: OSError("gone") if "validation" in path else None)
    of_split = {split: outcome for split, *_, outcome in seen(source)}
    assert of_split["validation"] == UNREADABLE_FILE
    assert isinstance(of_split["train"], bytes)
    source = open_any("parquet", address)
    assert source.unread == ("1 unreadable file",)
    assert "1 unreadable file left out" in source.description


def test_a_text_beside_an_image_that_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = in_memory(as_texts_beside(tmp_path / "pool"), "pool")
    lost = "/pool/in/004.txt"
    break_off(monkeypatch, lambda path, n: OSError("gone") if path == lost and n > 1 else None)
    outcomes = {key: outcome for _, key, *_, outcome in seen(open_any("folder", address))}
    assert outcomes["in/004.png"] == MISSING_FILE
    assert outcomes["in/005.png"] == picture(5)


@pytest.mark.parametrize("name", ["captions.txt", "splits.csv"])
def test_a_table_that_breaks_off_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    address = in_memory(as_folder(tmp_path / "pool", SPLIT_SIZES["official"]), "pool")
    break_off(monkeypatch, lambda path, _: OSError("gone") if path.endswith(name) else None)
    with pytest.raises(InputError, match=f"memory://pool/{name}: {name} cannot be read .*gone"):
        open_any("folder", address)


@pytest.mark.parametrize("name", ["train.txt", "captions.parquet"])
def test_a_list_that_breaks_off_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    address = in_memory(as_lists(tmp_path / "pool"), "pool")
    break_off(monkeypatch, lambda path, _: OSError("gone") if path.endswith(name) else None)
    with pytest.raises(
        InputError, match=f"memory://pool/{name}: {name} cannot be read .*run again"
    ):
        open_any("folder", address)


@pytest.mark.parametrize("name", ["folder", "shards", "parquet"])
def test_storage_that_is_gone_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    layout, make = LAYOUTS[name]
    source = open_any(layout, in_memory(make(tmp_path / "pool"), "pool"))
    monkeypatch.setattr(places, "MAX_FAILED", 3)
    break_off(monkeypatch, lambda path, _: PermissionError("token has expired"))
    with pytest.raises(StorageGoneError, match=r"\d reads in a row have failed.*token has expired"):
        read_all(source)


def test_failures_are_counted_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_at(in_memory(write(tmp_path, photographs(50)), "pool"))
    monkeypatch.setattr(places, "MAX_FAILED", 2)
    break_off(monkeypatch, lambda path, _: OSError("gone") if path[-5] in "13579" else None)
    for i in range(50):
        if i % 2:
            with pytest.raises(BrokenReadError):
                read_file(place, f"{i:03d}.png")
        else:
            assert read_file(place, f"{i:03d}.png") == picture(i)

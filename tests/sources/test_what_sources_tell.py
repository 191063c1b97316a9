"""Splits that paths, classes and parts tell, and files that are not read: for every source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.settings import InputError
from data import open_source
from sources.base import SPLITS, DataConfig, PairSource
from tests.helpers import offline_datasets, picture, write
from tests.sources.embedding_files import open_files, save_one
from tests.sources.tars import tar

Files = dict[str, bytes | str]
N = 12
NAMES = ["train", "train", "val", "test"] * 3
EXPECTED = {i: {"val": "validation"}.get(name, name) for i, name in enumerate(NAMES)}
PATHS: dict[str, list[str]] = {
    "folders": [f"set/{name}/{i}.png" for i, name in enumerate(NAMES)],
    "files": [f"COCO_{name}2014_{i:012d}.png" for i, name in enumerate(NAMES)],
}


def open_at(dataset: str, place: Path, **flags: Any) -> PairSource:
    return open_source(DataConfig(dataset, str(place), **flags), rng=np.random.default_rng(0))


def splits_of(source: PairSource) -> dict[int, str]:
    """The split of every pair, by the number that its caption tells."""
    return {
        int(str(caption.text).split()[-1]): split
        for split in SPLITS
        for record in source.records(split)
        for caption in record.captions
    }


def as_shard(root: Path, paths: list[str]) -> PairSource:
    members: list[tuple[str, bytes]] = []
    for i, path in enumerate(paths):
        members += [(path, picture(i)), (path.replace(".png", ".txt"), f"of {i}".encode())]
    return open_at("webdataset", write(root, {"0.tar": tar(members)}))


def as_table(root: Path, paths: list[str], *, inside: bool) -> PairSource:
    images: Any = paths
    if inside:
        images = [{"bytes": picture(i), "path": path} for i, path in enumerate(paths)]
    else:
        write(root, {path: picture(i) for i, path in enumerate(paths)})
    root.mkdir(exist_ok=True)
    columns = {"image": images, "caption": [f"of {i}" for i in range(N)]}
    pq.write_table(pa.table(columns), root / "0.parquet")
    return open_at("parquet", root)


@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("kind", ["shard", "paths", "images"])
def test_paths_of_images_tell_splits(tmp_path: Path, kind: str, paths: str) -> None:
    written = PATHS[paths]
    if kind == "shard":
        source = as_shard(tmp_path / "in", written)
    else:
        source = as_table(tmp_path / "in", written, inside=kind == "images")
    assert splits_of(source) == EXPECTED
    assert "splits from the paths of images: train 6, validation 3, test 3" in source.notes


@pytest.mark.parametrize("paths", PATHS)
def test_paths_beside_embeddings_tell_splits(tmp_path: Path, paths: str) -> None:
    columns: dict[str, Any] = {"caption": [f"of {i}" for i in range(N)]}
    save_one(tmp_path, N, columns | {"image_path": PATHS[paths]})
    source = open_files(tmp_path).source
    assert splits_of(source) == EXPECTED
    assert source.notes[-1] == "splits from the paths of images: train 6, validation 3, test 3"
    save_one(tmp_path, N, columns | {"image_path": PATHS[paths], "split": ["train"] * N})
    assert {*splits_of(open_files(tmp_path).source).values()} == {*SPLITS}  # drawn from train
    assert "paths" not in open_files(tmp_path).source.notes[-1]


def test_names_that_tell_nothing_leave_a_fingerprint_as_it_was(tmp_path: Path) -> None:
    silent = as_shard(tmp_path / "a", [f"{i}.png" for i in range(N)])
    assert not any("splits" in note for note in silent.notes)
    named = as_shard(tmp_path / "b", PATHS["folders"])
    assert silent.fingerprint != named.fingerprint


def test_numbers_of_classes_are_splits(tmp_path: Path) -> None:
    names = ["test", "train", "val"]
    features = {"features": {"split": {"names": names, "_type": "ClassLabel"}}}
    table = pa.table(
        {
            "image": [picture(i) for i in range(N)],
            "caption": [f"of {i}" for i in range(N)],
            "split": [names.index(name) for name in NAMES],
        }
    )
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    (tmp_path / "a").mkdir()
    pq.write_table(described, tmp_path / "a/0.parquet")
    assert splits_of(open_at("parquet", tmp_path / "a")) == EXPECTED
    (tmp_path / "b").mkdir()
    pq.write_table(table, tmp_path / "b/0.parquet")  # nothing tells what the numbers mean
    assert open_at("parquet", tmp_path / "b").notes == ("columns image, caption",)


def test_parts_beyond_the_official_ones_are_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = offline_datasets(tmp_path, monkeypatch)
    numbers = {"train": range(4), "restval": range(4, 6), "train_1": range(6, 7)}
    numbers |= {"extra": range(7, 8), "val": range(8, 10), "test": range(10, 12)}
    parts = {
        name: offline.Dataset.from_dict(
            {
                "image": [{"bytes": picture(i), "path": None} for i in of_part],
                "caption": [f"of {i}" for i in of_part],
            }
        )
        for name, of_part in numbers.items()
    }
    offline.DatasetDict(parts).save_to_disk(tmp_path / "in")
    source = open_source(
        DataConfig("hf", hf_dataset=str(tmp_path / "in")), rng=np.random.default_rng(0)
    )
    assert splits_of(source) == {
        i: "train" if i < 8 else "validation" if i < 10 else "test" for i in range(N)
    }
    told = [f"part {name}, read as train" for name in ("restval", "train_1", "extra")]
    assert source.notes == ("columns image, caption", *told)


def test_one_snapshot_of_a_repository_is_read(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--me--x"
    for number, revision in enumerate(("abc", "zzz")):
        folder = repository / "snapshots" / revision
        folder.mkdir(parents=True)
        blob = f"{number:040x}"
        (repository / "blobs").mkdir(exist_ok=True)
        columns = {"image": [picture(9)] * 3, "caption": [f"{revision} {i}" for i in range(3)]}
        pq.write_table(pa.table(columns), repository / "blobs" / blob)
        (folder / "0.parquet").symlink_to(f"../../blobs/{blob}")
    write(repository, {"refs/main": "abc"})
    source = open_at("parquet", repository)
    texts = {c.text for split in SPLITS for r in source.records(split) for c in r.captions}
    assert texts == {"abc 0", "abc 1", "abc 2"}
    assert "snapshot abc of 2 in the Hub's cache" in source.notes


def test_addresses_in_the_place_of_images(tmp_path: Path) -> None:
    columns = {"image": ["https://x.org/0.jpg"] * 3, "caption": ["a"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"addresses such as https://x.org/0.jpg; .*img2dataset"):
        open_at("parquet", tmp_path)


def test_a_pointer_of_git_lfs_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"0.parquet": "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"})
    with pytest.raises(InputError, match="a pointer of Git LFS; git lfs pull"):
        open_at("parquet", tmp_path)


# --- What lies beside -----------------------------------------------------------------------------


def test_files_beside_tables_and_shards_are_told(tmp_path: Path) -> None:
    members = [("0.png", picture(0)), ("0.txt", b"of 0"), ("1.png", picture(1)), ("1.txt", b"of 1")]
    sidecars: Files = {"0.parquet": b"PAR1", "0_stats.json": "{}", "0.tar.gz": b"\x1f\x8b"}
    loose: Files = {"x.png": picture(2), "x.txt": "of 2", "notes": "x"}
    shards: Files = {"0.tar": tar(members), "1.TAR": tar(members)}
    root = write(tmp_path / "shards", shards | sidecars)
    assert not any("not read" in note for note in open_at("webdataset", root).notes)
    source = open_at("webdataset", write(root, loose))
    assert "files not read: no extension 1, .png 1, .txt 1" in source.notes
    assert source.n_all_captions() == 4  # of 0.tar and of 1.TAR
    tables = tmp_path / "tables"
    source = as_table(tables, PATHS["folders"], inside=False)
    assert not any("not read" in note for note in source.notes)
    write(tables, loose)
    assert "files not read: no extension 1, .png 1, .txt 1" in open_at("parquet", tables).notes


@pytest.mark.parametrize(
    ("dataset", "files", "message"),
    [
        ("webdataset", {"a.jpg": "", "a.txt": ""}, "; it holds .jpg 1, .txt 1: --dataset folder"),
        ("webdataset", {"a.parquet": ""}, "; it holds .parquet 1: --dataset parquet reads such"),
        ("parquet", {"0.tar": "", "1.tar": ""}, "; it holds .tar 2: --dataset webdataset reads"),
        ("parquet", {"state.json": "", "0.arrow": ""}, ".*: --dataset hf reads such"),
        ("parquet", {"notes": ""}, "; it holds no extension 1$"),
    ],
)
def test_what_a_folder_holds_instead_is_told(
    tmp_path: Path, dataset: str, files: Files, message: str
) -> None:
    with pytest.raises(InputError, match=rf"holds no .*{message}"):
        open_at(dataset, write(tmp_path, files))

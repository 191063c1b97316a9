"""Sources of pairs: layouts, splits, order; the truth is what the tests write to disk."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import folders
import hub
from candidates import StreamSource, complete_splits, order_candidates
from data import BROKEN_IMAGE, MISSING_FILE, OUTSIDE_FOLDER, SPLITS, DataConfig, PairSource
from settings import InputError
from sources import SYNTHETIC_WARNING, open_source
from tests.helpers import SMALL, picture, read_all, record

FLICKR8K = Path(__file__).parents[2] / "shared" / "data" / "flickr8k"


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def photographs(n: int, folder: str = "") -> dict[str, bytes | str]:
    return {f"{folder}{i:03d}.png": picture(i) for i in range(n)}


def open_folder(root: Path, seed: int = 0, **settings: Any) -> PairSource:
    config = DataConfig(dataset="folder", data_dir=str(root), **SMALL | settings)
    return open_source(config, rng=np.random.default_rng(seed))


def open_hf(path: Path | str, **settings: Any) -> PairSource:
    config = DataConfig(dataset="hf", hf_dataset=str(path), **SMALL | settings)
    return open_source(config, rng=np.random.default_rng(0))


def candidates(source: PairSource) -> dict[str, set[tuple[str, str]]]:
    return {
        split: {(r.key, c.text or "") for r in source.records(split) for c in r.captions}
        for split in SPLITS
    }


def all_candidates(source: PairSource) -> set[tuple[str, str]]:
    return set().union(*candidates(source).values())


def image_splits(source: PairSource) -> dict[str, list[str]]:
    return {split: [record.key for record in source.records(split)] for split in SPLITS}


# --- Folder layouts -------------------------------------------------------------------------------


CAPTION_TABLES = {
    "flickr8k": ("captions.txt", "image,caption\n000.png,One\n000.png,Two\n001.png,Three\n"),
    "bom and crlf": (
        "captions.csv",
        "\ufeffimage,caption\r\n000.png,One\r\n000.png,Two\r\n001.png,Three\r\n",
    ),
    "flickr30k": (
        "results.csv",
        "image_name| number| comment\n000.png| 0| One\n000.png| 1| Two\n001.png| 0| Three\n",
    ),
    "any tsv": ("mine.tsv", "title\tfilepath\nOne\t000.png\nTwo\t.\\000.png\nThree\t001.png\n"),
    "semicolons": ("mine.csv", "file;id;text\n000.png;1;One\n000.png;2;Two\n001.png;3;Three\n"),
}


@pytest.mark.parametrize("folder", ["", "Images/", "Flicker8k_Dataset/"])
@pytest.mark.parametrize("table", CAPTION_TABLES.values(), ids=CAPTION_TABLES)
def test_caption_tables(tmp_path: Path, table: tuple[str, str], folder: str) -> None:
    write(tmp_path, {table[0]: table[1], **photographs(3, folder)})
    pairs = {(key, text.strip()) for key, text in all_candidates(open_folder(tmp_path))}
    first, second = f"{folder}000.png", f"{folder}001.png"
    assert pairs <= {(first, "One"), (first, "Two"), (second, "Three")}
    assert {key for key, _ in pairs} == {first, second}


def test_table_rows_keep_every_character(tmp_path: Path) -> None:
    long = "x" * 200_000
    rows = [
        "file,caption,source",
        "a.png,red, green, blue,web",
        'b.png,"quoted, once",web',
        "c.png",
    ]
    table = write(tmp_path, {"t.csv": "\n".join([*rows, f"d.png,{long},web"])}) / "t.csv"
    assert folders.read_table(table, folders.CAPTION_COLUMNS) == [
        ("a.png", "red, green, blue"),
        ("b.png", "quoted, once"),
        ("c.png", ""),
        ("d.png", long),
    ]
    table.write_bytes(b"caption,file\nred, green,a.png\n\xff,b.png\n")
    assert folders.read_table(table, folders.CAPTION_COLUMNS) == [
        ("a.png", "red, green"),
        ("b.png", "\xff"),  # Windows-1252, line by line
    ]


def test_metadata_in_subfolders(tmp_path: Path) -> None:
    lines = [
        {"file_name": "000.png", "text": ["One", "Two"]},
        {"file_name": "in/001.png", "text": None},
    ]
    write(tmp_path, photographs(1, "a/") | photographs(2, "a/in/") | photographs(1, "b/"))
    write(tmp_path, {"a/metadata.jsonl": "\n".join(map(json.dumps, lines)) + "\n"})
    write(tmp_path, {"b/metadata.csv": "file_name,caption\n000.png,Three\n"})
    source = open_folder(tmp_path)
    texts = {record.key: record.captions for split in SPLITS for record in source.records(split)}
    assert set(texts) == {"a/000.png", "a/in/001.png", "b/000.png"}
    assert "3 images, 4 captions" in source.description


def test_text_beside_each_image(tmp_path: Path) -> None:
    write(tmp_path, {"x/a.jpg": picture(1, "JPEG"), "x/a.txt": "A cat\nsecond line"})
    write(tmp_path, {"b.WEBP": picture(2, "WEBP"), "b.txt": "\ufeffA dog", "alone.png": picture(3)})
    write(tmp_path, {"c.gif": picture(4, "GIF"), "c.txt": "", "x/._a.jpg": b"", "x/._a.txt": "no"})
    assert all_candidates(open_folder(tmp_path)) == {
        ("x/a.jpg", "A cat"),
        ("x/a.jpg", "second line"),
        ("b.WEBP", "A dog"),
        ("c.gif", ""),
        ("alone.png", ""),
    }


def test_tables_go_before_texts_beside_images(tmp_path: Path) -> None:
    write(
        tmp_path,
        photographs(1) | {"000.txt": "beside", "captions.csv": "file,text\n000.png,table\n"},
    )
    assert all_candidates(open_folder(tmp_path)) == {("000.png", "table")}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b""}, "--data_dir .* holds no captions; understood are captions.txt"),
        ({"captions.txt": "no header here\n"}, "holds no captions"),
        (
            {"a.csv": "file,text\nx,y\n", "b.csv": "file,text\nx,y\n"},
            "a.csv, b.csv all hold captions",
        ),
        ({"metadata.csv": "file_name,label\nx.png,3\n"}, "metadata.csv needs a file_name column"),
        ({"metadata.jsonl": '{"file_name": "x"}\n'}, "metadata.jsonl needs a file_name column"),
        ({"metadata.jsonl": '\n{"file_name"\n'}, "metadata.jsonl, line 2: not a JSON object"),
        (
            {"captions.txt": "image,text\nx,y\n", "splits.csv": "a,b\n"},
            "needs the columns image and",
        ),
        (
            {"captions.txt": "image,text\nx,y\n", "splits.csv": "image,split\nx,mars\n"},
            "split must be train, validation or test; got 'mars'",
        ),
    ],
)
def test_folders_that_cannot_be_understood(
    tmp_path: Path, files: dict[str, bytes | str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_folder(write(tmp_path, files))


@pytest.mark.parametrize(("path", "message"), [(None, "is needed"), ("nowhere", "is not a folder")])
def test_missing_folder(path: str | None, message: str) -> None:
    with pytest.raises(InputError, match=f"--data_dir .*{message}"):
        open_source(DataConfig(dataset="folder", data_dir=path), rng=np.random.default_rng(0))


def test_paths_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"secret.png": picture(200)})
    root = write(tmp_path / "mine", photographs(20, "in/"))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    names = [*(f"in/{i:03d}.png" for i in range(20)), "../secret.png", "link.png"]
    names.append(str(tmp_path / "secret.png"))
    write(root, {"captions.csv": "image,caption\n" + "".join(f"{n},text of {n}\n" for n in names)})
    source = open_folder(root)
    reader, _ = read_all(source)
    skipped = reader.skipped()
    assert set(skipped["key"]) == set(names[20:])
    assert set(skipped["reason"]) == {OUTSIDE_FOLDER}


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    write(tmp_path, photographs(3) | {"captions.csv": "image,caption\n000.png,One\n001.png,Two\n"})
    first = open_folder(tmp_path).fingerprint
    write(tmp_path, {"unused.txt": "x"})
    assert open_folder(tmp_path, seed=1).fingerprint == first
    write(tmp_path, {"001.png": picture(50) + b" "})
    second = open_folder(tmp_path).fingerprint
    write(tmp_path, {"captions.csv": "image,caption\n000.png,One\n001.png,Three\n"})
    assert len({first, second, open_folder(tmp_path).fingerprint}) == 3


# --- COCO on disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("year", ["2017", "2014"])
@pytest.mark.parametrize("dataset", ["coco", "auto"])
def test_coco_on_disk(tmp_path: Path, year: str, dataset: str) -> None:
    for part, ids in (("train", range(20)), ("val", range(20, 24))):
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in ids]
        rows = [{"id": 9, "image_id": i, "caption": f"{i} {c}"} for c in "ab" for i in ids]
        annotations = json.dumps({"images": images, "annotations": rows})
        write(tmp_path, {f"annotations/captions_{part}{year}.json": annotations})
        write(tmp_path, {f"{part}{year}/{i}.jpg": picture(i) for i in ids})
    config = DataConfig(dataset=dataset, data_dir=str(tmp_path), **SMALL)
    source = open_source(config, rng=np.random.default_rng(0))
    assert source.name == "coco"
    pairs = read_all(source)[0].pairs()
    test = pairs[pairs["split"] == "test"]
    assert set(test["key"]) == {f"val{year}/{i}.jpg" for i in range(20, 24)}
    assert sorted(test["position"]) == list(range(40, 48))
    assert pairs.groupby("split")["image_row"].nunique().to_dict() == {
        "train": 16,
        "validation": 4,
        "test": 4,
    }
    expected = {f"train{year}/{i}.jpg": {f"{i} a", f"{i} b"} for i in range(20)}
    train = pairs[pairs["split"] == "train"]
    assert all(c in expected[k] for k, c in zip(train["key"], train["caption"], strict=True))


def test_damaged_coco(tmp_path: Path) -> None:
    write(tmp_path, {"annotations/captions_train2017.json": '{"images": []}'})
    with pytest.raises(InputError, match=r"captions_train2017.json is damaged"):
        open_source(DataConfig(data_dir=str(tmp_path)), rng=np.random.default_rng(0))


@pytest.mark.parametrize("dataset", ["coco", "auto"])
def test_a_folder_without_coco(tmp_path: Path, dataset: str) -> None:
    config = DataConfig(dataset=dataset, data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"holds no COCO .*--dataset folder"):
        open_source(config, rng=np.random.default_rng(0))


# --- Tables and streams through `datasets` --------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = hub._import_datasets()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return datasets


def rows(numbers: Sequence[int], n_captions: int = 2) -> dict[str, list[Any]]:
    each = [i for i in numbers for _ in range(n_captions)]
    return {
        "image": [picture(i) for i in each],
        "caption": [f"image {i} caption {row % n_captions}" for row, i in enumerate(each)],
        "cocoid": each,
    }


@pytest.mark.parametrize("shape", ["Dataset", "DatasetDict"])
def test_save_to_disk(tmp_path: Path, cache: Any, shape: str) -> None:
    train = cache.Dataset.from_dict(rows(range(20)))
    folder = tmp_path / "saved"
    if shape == "Dataset":
        train.save_to_disk(folder)
    else:
        test = cache.Dataset.from_dict(rows(range(30, 34)))
        cache.DatasetDict({"train": train, "val": test}).save_to_disk(folder)
    reader, pixels = read_all(open_hf(folder))
    pairs = reader.pairs()
    assert pairs["position"].is_unique
    for row in pairs.itertuples():
        number = int(str(row.key).split("/")[1])
        assert str(row.caption).startswith(f"image {number} ")
        assert pixels[str(row.split)][int(str(row.image_row)), 0] == number
    if shape == "DatasetDict":
        assert set(pairs.loc[pairs["split"] == "test", "key"]) == {
            f"validation/{i}" for i in range(30, 34)
        }


def test_lists_of_captions_stay_with_their_image(tmp_path: Path, cache: Any) -> None:
    numbers = [1, 2, 1, *range(3, 20)]
    cells: list[list[str]] = [[], ["of 2"], ["of 1"], *([f"of {i}"] for i in range(3, 20))]
    content = {"image": [picture(i) for i in numbers], "caption": cells, "cocoid": numbers}
    cache.Dataset.from_dict(content).save_to_disk(tmp_path / "saved")
    reader, _ = read_all(open_hf(tmp_path / "saved"))
    pairs = reader.pairs()
    assert (pairs["caption"] == "of " + pairs["key"].str.split("/").str[1]).all()
    skipped = reader.skipped()
    assert set(skipped["key"]) <= {"train/1"}
    assert set(skipped["reason"]) <= {"empty caption"}


def test_parquet_folder(tmp_path: Path, cache: Any) -> None:
    path = write(tmp_path, {"on_disk.png": picture(77)}) / "on_disk.png"
    cells: list[dict[str, Any]] = [{"bytes": picture(i), "path": None} for i in range(20)]
    cells[3], cells[4] = {"bytes": b"not an image", "path": "x"}, {"bytes": None, "path": str(path)}
    cells[5] = {"bytes": None, "path": None}
    folder = tmp_path / "parquet"
    for split, part in (
        ("train", cells),
        ("val", cells[:0]),
        ("test", [{"bytes": picture(90), "path": ""}]),
    ):
        table = pd.DataFrame(
            {"photo": part, "texts": [[f"{split} {i}", "again"] for i in range(len(part))]}
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        if part:
            table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    columns = {"image_column": "photo", "caption_column": "texts"}
    reader, pixels = read_all(open_hf(folder, **columns))
    assert pixels["test"].tolist() == [[90, 0, 7]]
    skipped = reader.skipped()
    assert dict(zip(skipped["key"], skipped["reason"], strict=True)) == {
        "train/3": BROKEN_IMAGE,
        "train/5": MISSING_FILE,
    }
    assert 77 in np.concatenate([pixels["train"], pixels["validation"]])[:, 0]
    with pytest.raises(InputError, match=r"--image_column image: no such column .* photo, texts"):
        open_hf(folder)
    with pytest.raises(InputError, match="--caption_column photo holds dict, not text"):
        open_hf(folder, image_column="photo", caption_column="photo")


def test_folder_without_tables(tmp_path: Path, cache: Any) -> None:
    with pytest.raises(InputError, match="no save_to_disk folder or folder of parquet"):
        open_hf(tmp_path)


@pytest.mark.parametrize("splits", [("train",), ("train", "validation", "test"), ("all",)])
def test_hub_stream(
    tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch, splits: tuple[str, ...]
) -> None:
    files = {}
    for offset, split in enumerate(splits):
        table = cache.Dataset.from_dict(rows(range(50 * offset, 50 * offset + 50)))
        files[split] = str(tmp_path / f"{split}.parquet")
        table.to_parquet(files[split])
    builder = cache.load_dataset_builder("parquet", data_files=files)
    monkeypatch.setattr(cache, "load_dataset_builder", lambda _: builder)
    monkeypatch.setattr(hub, "hub_answers", lambda *_: True)
    settings = {"max_train_samples": 30, "max_val_samples": 5, "max_test_samples": 5}
    source = open_hf("someone/something", **settings)
    assert source.name == "hf"
    reader, pixels = read_all(source, **settings)
    taken = {split: list(pixels[split][:, 0]) for split in SPLITS}
    if len(splits) == 1:
        assert taken == {
            "test": [*range(5)],
            "validation": [*range(5, 10)],
            "train": [*range(10, 25)],
        }
    else:
        assert taken == {
            "train": [*range(15)],
            "validation": [*range(50, 55)],
            "test": [*range(100, 105)],
        }
    pairs = reader.pairs()
    assert pairs["position"].is_unique
    assert pairs["split"].value_counts().to_dict() == {"train": 30, "validation": 5, "test": 10}
    with pytest.raises(KeyError):
        source.read_image("train/0")


def test_carving_leaves_most_of_a_short_stream_to_training() -> None:
    stream = iter([record(i, f"caption {i}") for i in range(50)])
    source = StreamSource("hf", "a test", "0", {"train": stream}, n_train_pairs=50)
    _, pixels = read_all(source, max_test_samples=40, max_val_samples=40)
    assert {split: len(pixels[split]) for split in SPLITS} == {
        "train": 30,
        "validation": 10,
        "test": 10,
    }


def test_a_stream_that_breaks_off() -> None:
    def broken() -> Iterator[Mapping[str, Any]]:
        yield {"caption": "a", "image": {"bytes": picture(0), "path": None}}
        raise ConnectionError("the line is dead")

    records = hub._stream_records(broken(), ["caption", "image"], "train", 0)
    with pytest.raises(InputError, match="the stream of train broke off: the line is dead"):
        list(records)


def test_hub_cache(cache: Any, tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    cache.Dataset.from_dict(rows(range(20))).to_parquet(tmp_path / "something" / "train.parquet")
    builder = cache.load_dataset_builder(str(tmp_path / "something"))
    builder.download_and_prepare(str(tmp_path / "cache/someone___something/default/0.0.0/abc"))
    source = open_hf("someone/something")
    assert "from the local cache: 20 images, 40 captions" in source.description


def test_hub_that_is_switched_off(cache: Any) -> None:
    with pytest.raises(InputError, match="--hf_dataset someone/something is no folder, not in"):
        open_hf("someone/something")
    with pytest.raises(InputError, match="--dataset coco --data_dir"):
        open_source(DataConfig(dataset="coco"), rng=np.random.default_rng(0))


# --- Synthetic scenes -----------------------------------------------------------------------------


def test_auto_falls_back_to_synthetic_with_a_warning(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(DataConfig(**SMALL), rng=np.random.default_rng(0))
    assert source.name == "synthetic"
    assert SYNTHETIC_WARNING.startswith("SYNTHETIC DATA:")
    [message] = [record.getMessage() for record in caplog.records if record.name == "sources"]
    assert message.startswith(f"{SYNTHETIC_WARNING} (--hf_dataset ")
    assert message.endswith(")")


def test_synthetic_source_and_its_ground_truth() -> None:
    config = DataConfig(dataset="synthetic", **SMALL)
    source = open_source(config, rng=np.random.default_rng(0))
    pairs = read_all(source)[0].pairs()
    assert pairs["split"].value_counts().to_dict() == {"train": 100, "validation": 10, "test": 20}
    train = pairs[pairs["split"] == "train"]
    assert train["image_row"].is_unique
    assert train["fault"].value_counts()[
        ["wrong_caption", "boilerplate", "near_copy"]
    ].tolist() == [10, 5, 10]
    assert set(train["group"]) == {"", "rare"}
    assert source.read_image("test/000000").startswith(b"\x89PNG")
    again = open_source(config, rng=np.random.default_rng(0))
    other = open_source(config, rng=np.random.default_rng(1))
    assert again.fingerprint == source.fingerprint != other.fingerprint


# --- Splits and order -----------------------------------------------------------------------------


def test_official_splits_are_kept(tmp_path: Path) -> None:
    names = ["training", "Val", "test"] * 4
    write(
        tmp_path,
        {"captions.csv": "image,caption\n" + "".join(f"{i}.png,c{i}\n" for i in range(13))},
    )
    write(
        tmp_path,
        {"splits.csv": "file,split\n" + "".join(f"{i}.png,{s}\n" for i, s in enumerate(names))},
    )
    source = open_folder(tmp_path)
    expected = {split: {f"{i}.png" for i in range(k, 12, 3)} for k, split in enumerate(SPLITS)}
    assert {split: set(keys) for split, keys in image_splits(source).items()} == expected
    assert "1 images in no split left out" in source.description


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    for folder in ("train", "val", "test"):
        write(tmp_path, photographs(3, f"{folder}/"))
        write(tmp_path, {f"{folder}/{i:03d}.txt": f"{folder} {i}" for i in range(3)})
    for split, keys in image_splits(open_folder(tmp_path)).items():
        assert {key.split("/")[0] for key in keys} == {"val" if split == "validation" else split}


def test_miniature_flickr8k(tmp_path: Path) -> None:
    """As the real one: 60 training and 10 validation images, five captions each, no test."""
    captions = "".join(f"{i:03d}.png,caption {c} of {i}\n" for i in range(70) for c in range(5))
    splits = "".join(f"{i:03d}.png,{'train' if i < 60 else 'dev'}\n" for i in range(70))
    write(tmp_path, photographs(70, "Images/"))
    write(
        tmp_path,
        {"captions.txt": f"image,caption\n{captions}", "splits.csv": f"image,split\n{splits}"},
    )
    source = open_folder(tmp_path, max_train_samples=50)
    reader, pixels = read_all(source, max_train_samples=50)
    pairs = reader.pairs()
    assert set(pixels["test"][:, 0]) == set(range(60, 70))
    assert {split: len(pixels[split]) for split in SPLITS} == {
        "train": 50,
        "validation": 10,
        "test": 10,
    }
    assert pairs["split"].value_counts().to_dict() == {"train": 50, "validation": 10, "test": 50}
    assert "test is the official validation split" in source.description
    assert "validation drawn at random from train" in source.description
    assert (pairs["key"] + pairs["split"]).nunique() == pairs["key"].nunique() == 70


@pytest.mark.parametrize(("n", "size"), [(100, 10), (40, 8), (5, 1), (3, 1)])
def test_carved_splits_take_at_most_a_fifth(n: int, size: int) -> None:
    limits = {"train": 100, "validation": 10, "test": 10}
    splits, note = complete_splits({"train": range(n)}, limits, np.random.default_rng(0))
    assert {split: len(part) for split, part in splits.items()} == {
        "train": n - 2 * size,
        "validation": size,
        "test": size,
    }
    assert sorted(i for part in splits.values() for i in part) == list(range(n))
    assert "test and validation drawn at random from train" in note


def test_without_a_training_split_all_images_are_pooled() -> None:
    limits = DataConfig(**SMALL).limits()
    splits, _ = complete_splits({"test": range(50)}, limits, np.random.default_rng(0))
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 30,
        "validation": 10,
        "test": 10,
    }


@pytest.mark.parametrize("limit", [3, 7, 10, 14, 30])
def test_captions_are_dealt_in_rounds(limit: int) -> None:
    images = [record(i, *(f"{i} {c}" for c in range(1 + i % 3))) for i in range(7)]
    records = list(order_candidates(images, "train", limit, np.random.default_rng(0)))
    dealt = [str(caption.text) for record in records for caption in record.captions]
    assert sorted(dealt) == sorted(str(c.text) for image in images for c in image.captions)
    chosen = Counter(text.split()[0] for text in dealt[:limit])
    depth = max(chosen.values())
    for image in images:
        n_captions = len(image.captions)
        assert chosen[str(int(image.key))] >= min(depth - 1, n_captions)
    first = [record.key for record in records[: len(chosen)]]
    assert first == sorted(set(first))  # in the order of the source


def test_seed_decides_the_draw(tmp_path: Path) -> None:
    write(
        tmp_path, {"captions.csv": "image,caption\n" + "".join(f"{i}.png,c\n" for i in range(50))}
    )
    first = image_splits(open_folder(tmp_path, seed=3))
    assert image_splits(open_folder(tmp_path, seed=3)) == first
    assert image_splits(open_folder(tmp_path, seed=4)) != first


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs Flickr8k")
def test_real_flickr8k() -> None:
    config = DataConfig(dataset="folder", data_dir=str(FLICKR8K))
    source = open_source(config, rng=np.random.default_rng(42))
    records = {split: list(source.records(split)) for split in SPLITS}
    keys = {split: {record.key for record in records[split]} for split in SPLITS}
    assert {split: len(keys[split]) for split in SPLITS} == {
        "train": 5000,
        "validation": 1000,
        "test": 1000,
    }
    assert len(set().union(*keys.values())) == 7000
    assert {len(record.captions) for record in records["test"]} == {5}
    assert {len(record.captions) for record in records["train"][:5000]} == {1}
    with (FLICKR8K / "splits.csv").open(newline="") as file:
        official = {
            f"Images/{row['image']}" for row in csv.DictReader(file) if row["split"] == "validation"
        }
    assert keys["test"] == official


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_captions_in_other_encodings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str
) -> None:
    content = "image,caption\n" + "".join(f"{i}.png,Un été à la plage {i}\n" for i in range(20))
    write(tmp_path, {f"{i}.png": picture(i) for i in range(20)})
    (tmp_path / "captions.txt").write_bytes(content.encode(encoding))
    config = DataConfig(dataset="folder", data_dir=str(tmp_path))
    source = open_source(config, rng=np.random.default_rng(0))
    captions = {c.text for s in SPLITS for r in source.records(s) for c in r.captions}
    assert captions == {f"Un été à la plage {i}" for i in range(20)}
    warned = any("are not UTF-8" in record.message for record in caplog.records)
    assert warned == (encoding == "cp1252")


def test_an_annotation_without_its_image_is_a_missing_file(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(20)]
    notes = [{"image_id": i, "caption": f"caption {i}"} for i in (*range(20), 999)]
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/captions_train2017.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    write(tmp_path, {f"train2017/{i}.png": picture(i) for i in range(20)})
    config = DataConfig(dataset="coco", data_dir=str(tmp_path), num_workers=0)
    source = open_source(config, rng=np.random.default_rng(0))
    keys = {record.key for split in SPLITS for record in source.records(split)}
    assert "train2017/image 999" in keys
    with pytest.raises(FileNotFoundError):
        source.read_image("train2017/image 999")

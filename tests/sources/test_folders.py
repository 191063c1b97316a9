"""Folders of images and captions, COCO on disk; the truth is what the tests write to disk."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from artifacts.settings import InputError
from data import open_source
from sources.base import (
    EMPTY_CAPTION,
    MISSING_CAPTION,
    OUTSIDE_FOLDER,
    SPLITS,
    DataConfig,
    PairSource,
)
from tests.helpers import SMALL, image_splits, open_folder, photographs, picture, read_all, write

FLICKR8K = Path(__file__).parents[3] / "shared" / "data" / "flickr8k"


def candidates(source: PairSource) -> dict[str, set[tuple[str, str]]]:
    return {
        split: {(r.key, c.text or "") for r in source.records(split) for c in r.captions}
        for split in SPLITS
    }


def all_candidates(source: PairSource) -> set[tuple[str, str]]:
    return set().union(*candidates(source).values())


# --- Tables of captions ---------------------------------------------------------------------------


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
    "tokens": (
        "Flickr8k.token.txt",
        "000.png#0\tOne\n000.png#1\tTwo\n001.png#0\tThree\n",
    ),
    "no header": ("captions.txt", "000.png,One\n\n000.png,Two\n001.png,Three\n"),
    "no header, quoted": ("mine.csv", '"000.png","One"\n"000.png","Two"\n"001.png","Three"\n'),
}


@pytest.mark.parametrize("folder", ["", "Images/", "Flicker8k_Dataset/"])
@pytest.mark.parametrize("table", CAPTION_TABLES.values(), ids=CAPTION_TABLES)
def test_caption_tables(tmp_path: Path, table: tuple[str, str], folder: str) -> None:
    write(tmp_path, {table[0]: table[1], **photographs(3, folder)})
    pairs = {(key, text.strip()) for key, text in all_candidates(open_folder(tmp_path))}
    first, second = f"{folder}000.png", f"{folder}001.png"
    assert pairs <= {(first, "One"), (first, "Two"), (second, "Three")}
    assert {key for key, _ in pairs} == {first, second}


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


def test_metadata_without_a_caption_is_a_missing_one(tmp_path: Path) -> None:
    cells: list[object] = [None, [], [None, "One"], "", "Two"]
    lines = [{"file_name": f"{i}.png", "text": cell} for i, cell in enumerate(cells)]
    write(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, lines))})
    source = open_folder(tmp_path)
    assert "5 images, 6 captions" in source.description
    captions = {r.key: r.captions for split in SPLITS for r in source.records(split)}
    texts = {key: {c.text for c in found} for key, found in captions.items()}
    assert texts.pop("2.png") <= {None, "One"}  # one of them where it is drawn for validation
    assert texts == {"0.png": {None}, "1.png": {None}, "3.png": {""}, "4.png": {"Two"}}


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


# --- A text beside each image ---------------------------------------------------------------------


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


def beside_images(train: dict[str, bytes | str]) -> dict[str, bytes | str]:
    """Files of a training folder, and one pair for validation and one for test."""
    others: dict[str, bytes | str] = {"val/v.png": picture(98), "val/v.txt": "v"}
    others |= {"test/t.png": picture(99), "test/t.txt": "t"}
    return others | {f"train/{name}": data for name, data in train.items()}


def test_several_lines_are_several_captions(tmp_path: Path) -> None:
    text = "A cat\r\n\n  On a mat.  \n \t\nA cat, again\n"
    write(
        tmp_path, beside_images({"a.png": picture(1), "a.txt": text, "b.jpg": picture(2, "JPEG")})
    )
    write(tmp_path, {"train/b.txt": "One only"})
    pairs = read_all(open_folder(tmp_path))[0].pairs().query("split == 'train'")
    assert list(zip(pairs["member"], pairs["caption"], strict=True)) == [
        ("train/a.png", "A cat"),
        ("train/a.png", "On a mat."),
        ("train/a.png", "A cat, again"),
        ("train/b.jpg", "One only"),
    ]


def test_an_image_without_a_text_has_a_missing_caption(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"a.png": picture(1), "a.txt": "A cat"}
    files |= {"alone.png": b"never looked at", "empty.png": picture(2), "empty.txt": " \n\n"}
    write(tmp_path, beside_images(files))
    reader, _ = read_all(open_folder(tmp_path))
    assert list(reader.pairs()["key"]) == ["train/a.png", "val/v.png", "test/t.png"]
    skipped = reader.skipped()
    assert skipped[["split", "key", "member", "reason", "caption", "id"]].values.tolist() == [
        ["train", "train/alone.png", "train/alone.png", MISSING_CAPTION, "", ""],
        ["train", "train/empty.png", "train/empty.png", EMPTY_CAPTION, "", ""],
    ]


def test_names_in_other_encodings_do_not_stop_a_run(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9t\xe9")
    write(tmp_path, beside_images({f"{name}.png": picture(1), f"{name}.txt": "Summer"}))
    source = open_folder(tmp_path)
    pairs = read_all(source)[0].pairs()
    key = pairs["key"][0]
    assert (key, pairs["member"][0]) == (r"train/\udce9t\udce9.png",) * 2
    assert source.read_image(key) == picture(1)
    buffer = io.BytesIO()
    pairs.to_parquet(buffer)
    assert buffer.getbuffer().nbytes > 0


def test_tables_go_before_texts_beside_images(tmp_path: Path) -> None:
    write(
        tmp_path,
        photographs(1) | {"000.txt": "beside", "captions.csv": "file,text\n000.png,table\n"},
    )
    assert all_candidates(open_folder(tmp_path)) == {("000.png", "table")}


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b""}, "--data_dir .* holds no captions; understood are captions.txt"),
        ({"captions.txt": "no header here\n"}, "holds no captions"),
        ({"a/0.tar": b"", "1.tar": b""}, "holds 2 .tar files: --dataset webdataset reads such"),
        ({"0.parquet": b""}, "holds 1 .parquet files: --dataset parquet reads such"),
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


# --- Splits and fingerprint -----------------------------------------------------------------------


CAPTION_LINKS = {
    "captions.txt": "image,caption\na.png,One\n",
    "mine.tsv": "image\tcaption\na.png\tOne\n",
    "metadata.csv": "file_name,text\na.png,One\n",
    "metadata.jsonl": '{"file_name": "a.png", "text": "One"}\n',
}


@pytest.mark.parametrize("name", CAPTION_LINKS)
def test_caption_files_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"outside": CAPTION_LINKS[name], "mine/a.png": picture(1)})
    link = tmp_path / "mine" / name
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=rf"{name} cannot be used \({OUTSIDE_FOLDER}: .*a copy"):
        open_folder(tmp_path / "mine")
    write(tmp_path, {"mine/inside": CAPTION_LINKS[name]})
    link.unlink()
    link.symlink_to("inside")
    assert all_candidates(open_folder(tmp_path / "mine")) == {("a.png", "One")}


def test_splits_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"outside": "image,split\na.png,test\n", "mine/a.png": picture(1)})
    write(tmp_path, {"mine/captions.csv": CAPTION_LINKS["captions.txt"]})
    (tmp_path / "mine/splits.csv").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=rf"splits.csv cannot be used \({OUTSIDE_FOLDER}"):
        open_folder(tmp_path / "mine")


def test_texts_that_lead_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    root = write(tmp_path / "mine", beside_images({"a.png": picture(1), "b.png": picture(2)}))
    write(tmp_path, {"secret": "the secret", "mine/train/a.txt": "A cat"})
    (root / "train/b.txt").symlink_to(tmp_path / "secret")
    source = open_folder(root)
    assert ("train/b.png", "") in all_candidates(source)
    reader, _ = read_all(source)
    assert list(reader.pairs()["caption"]) == ["A cat", "v", "t"]
    assert reader.skipped()[["key", "reason", "caption"]].values.tolist() == [
        ["train/b.png", MISSING_CAPTION, ""]
    ]


def test_a_link_to_a_text_inside_is_followed(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(1), "texts/a": "A cat"})
    (tmp_path / "a.txt").symlink_to("texts/a")
    assert all_candidates(open_folder(tmp_path)) == {("a.png", "A cat")}


def test_caption_files_far_too_large_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "captions.csv").open("wb") as file:
        file.truncate(2**29 + 1)  # takes no room on the disk
    with pytest.raises(InputError, match=r"captions.csv .*536,870,913 bytes\); use parquet files"):
        open_folder(tmp_path)


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    write(tmp_path, photographs(3) | {"captions.csv": "image,caption\n000.png,One\n001.png,Two\n"})
    first = open_folder(tmp_path).fingerprint
    write(tmp_path, {"unused.txt": "x"})
    assert open_folder(tmp_path, seed=1).fingerprint == first
    write(tmp_path, {"001.png": picture(50) + b" "})
    second = open_folder(tmp_path).fingerprint
    write(tmp_path, {"captions.csv": "image,caption\n000.png,One\n001.png,Three\n"})
    assert len({first, second, open_folder(tmp_path).fingerprint}) == 3


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
    expected["train"].add("12.png")  # which no split claims
    assert {split: set(keys) for split, keys in image_splits(source).items()} == expected
    assert source.notes == (
        "columns image, caption",
        "splits from splits.csv: train 4, validation 4, test 4",
        "1 image without a split is a training image",
    )


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


@pytest.mark.parametrize("link", ["annotations", "annotations/captions_train2017.json"])
def test_coco_that_leads_out_of_the_folder_is_refused(tmp_path: Path, link: str) -> None:
    name = "annotations/captions_train2017.json"
    write(tmp_path / "outside", {name: '{"images": [], "annotations": []}'})
    (tmp_path / "mine" / link).parent.mkdir(parents=True)
    (tmp_path / "mine" / link).symlink_to(tmp_path / "outside" / link)
    config = DataConfig(dataset="coco", data_dir=str(tmp_path / "mine"))
    message = rf"captions_train2017.json cannot be used \({OUTSIDE_FOLDER}: {name}\); put a copy"
    with pytest.raises(InputError, match=message):
        open_source(config, rng=np.random.default_rng(0))


def test_a_coco_annotation_without_text_is_a_missing_caption(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    texts = ["zero", None, "two"]
    notes = [{"image_id": i, "caption": text} for i, text in enumerate(texts)]
    content = json.dumps({"images": images, "annotations": notes})
    write(tmp_path, {"annotations/captions_train2017.json": content})
    config = DataConfig(dataset="coco", data_dir=str(tmp_path), **SMALL)
    source = open_source(config, rng=np.random.default_rng(0))
    captions = {r.key: r.captions for split in SPLITS for r in source.records(split)}
    assert {key: caption.text for key, (caption,) in captions.items()} == {
        "train2017/0.png": "zero",
        "train2017/1.png": None,
        "train2017/2.png": "two",
    }


@pytest.mark.parametrize("dataset", ["coco", "auto"])
def test_a_folder_without_coco(tmp_path: Path, dataset: str) -> None:
    config = DataConfig(dataset=dataset, data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"holds no COCO .*--dataset folder"):
        open_source(config, rng=np.random.default_rng(0))


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

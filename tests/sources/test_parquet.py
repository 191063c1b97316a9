"""Pairs in Parquet files; the truth is what the tests write into them."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.settings import InputError
from data import open_source
from sources import parquet_images
from sources.base import (
    DAMAGED_CAPTION,
    EMPTY_CAPTION,
    FILE_TOO_LARGE,
    MISSING_CAPTION,
    MISSING_FILE,
    OUTSIDE_FOLDER,
    SPLITS,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
)
from sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS
from sources.parquet_images import DAMAGED_TABLE
from tests.helpers import SMALL, open_folder, photographs, picture, read_all, write


def table(root: Path, name: str, columns: Mapping[str, Any], **options: Any) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def open_tables(place: Path, seed: int = 0, **changes: Any) -> PairSource:
    config = DataConfig(dataset="parquet", data_dir=str(place), **SMALL | changes)
    return open_source(config, rng=np.random.default_rng(seed))


def pairs_of(numbers: Sequence[int], column: str = "image") -> dict[str, list[Any]]:
    return {column: [picture(i) for i in numbers], "caption": [f"of {i}" for i in numbers]}


def stored(place: Path, **changes: Any) -> list[ImageRecord]:
    """Every image of all splits with all its captions, by position."""
    by_key: dict[str, ImageRecord] = vars(open_tables(place, **changes))["_by_key"]
    return sorted(by_key.values(), key=lambda record: record.captions[0].position)


class Decoded:
    """What was decoded: of every call the row groups, the columns and the rows of each batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[list[int] | None, list[str], list[int]]] = []
        original = pq.ParquetFile.iter_batches

        def counting(file: Any, batch_size: int, **options: Any) -> Iterator[Any]:
            sizes: list[int] = []
            self.calls.append((options.get("row_groups"), options["columns"], sizes))
            for batch in original(file, batch_size, **options):
                sizes.append(batch.num_rows)
                yield batch

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)

    def groups(self) -> list[list[int] | None]:
        return [groups for groups, _, _ in self.calls]


# --- Layouts --------------------------------------------------------------------------------------


def image_column(layout: str, numbers: Sequence[int]) -> dict[str, Any]:
    files = [f"{i:03d}.png" for i in numbers]
    data = [picture(i) for i in numbers]
    if layout == "bytes":
        return {"jpg": data}
    if layout == "struct":
        return {"image": [{"bytes": b, "path": f} for b, f in zip(data, files, strict=True)]}
    if layout == "bytes alone":
        return {"image": [{"bytes": b} for b in data]}
    if layout == "mixed":
        return {
            "image": [
                {"bytes": None if i % 2 else b, "path": f"../photos/{f}"}
                for i, (b, f) in enumerate(zip(data, files, strict=True))
            ]
        }
    if layout == "null bytes":
        return {"image": [{"bytes": None, "path": f"../photos/{f}"} for f in files]}
    if layout == "beside":
        return {"image": [f"../photos/{f}" for f in files]}
    return {"file_name": [f"photos/{f}" for f in files]}  # from the data folder


@pytest.mark.parametrize(
    "layout", ["bytes", "struct", "bytes alone", "mixed", "null bytes", "beside", "from the root"]
)
def test_layouts(tmp_path: Path, layout: str) -> None:
    write(tmp_path, photographs(30, "photos/"))
    for part, numbers in enumerate((range(17), range(17, 30))):
        columns = image_column(layout, numbers) | {"caption": [f"of {i}" for i in numbers]}
        table(tmp_path, f"tables/{part}.parquet", columns, row_group_size=7)
    reader, pixels = read_all(open_tables(tmp_path))
    pairs = reader.pairs()
    assert len(pairs) == 30
    assert reader.skipped().empty
    for row in pairs.itertuples():
        number = int(str(row.caption).removeprefix("of "))
        part, at = divmod(number, 17)
        assert row.position == number
        assert (row.key, row.shard) == (f"tables/{part}/{at}", f"tables/{part}.parquet")
        assert row.row == at
        assert pixels[str(row.split)][int(str(row.image_row)), 0] == number
        assert row.member == {
            "bytes": "",
            "struct": f"{number:03d}.png",
            "bytes alone": "",
            "mixed": f"../photos/{number:03d}.png",
        }.get(layout, f"photos/{number:03d}.png")


IMAGE_TYPES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), "binary"),
]
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), "string")]


@pytest.mark.parametrize("image_type", IMAGE_TYPES, ids=str)
@pytest.mark.parametrize("text_type", TEXT_TYPES, ids=str)
def test_arrow_types(tmp_path: Path, image_type: Any, text_type: Any) -> None:
    data = [picture(i) for i in range(10)]
    texts = pa.array([f"of {i}" for i in range(10)]).cast(text_type)
    table(tmp_path, "a.parquet", {"image": pa.array(data).cast(image_type), "caption": texts})
    records = stored(tmp_path)
    assert [record.read() for record in records] == data
    assert [record.captions[0].text for record in records] == [f"of {i}" for i in range(10)]


def test_one_file(tmp_path: Path) -> None:
    path = table(tmp_path, "mine.pq", pairs_of(range(10)))
    write(tmp_path, {"broken.parquet": "not looked at"})
    source = open_tables(path)
    assert source.description.startswith(f"1 parquet files in {path}: 10 images, 10 captions;")
    assert source.name == "parquet"
    assert source.read_image("mine.pq/7") == picture(7)
    shards = {record.shard for split in SPLITS for record in source.records(split)}
    assert shards == {"mine.pq"}


def test_files_are_taken_in_natural_order(tmp_path: Path) -> None:
    names = ["b/part-2", "b/part-10", "a/10", "a/9", "a/09"]
    for number, name in enumerate(names):
        table(tmp_path, f"{name}.parquet", pairs_of([number]))
    table(tmp_path, ".hidden/c.parquet", pairs_of([77]))
    table(tmp_path, ".hidden.parquet", pairs_of([77]))
    write(tmp_path, {"notes.txt": "not a table"})
    keys = [record.key for record in stored(tmp_path)]
    assert keys == ["a/09/0", "a/9/0", "a/10/0", "b/part-2/0", "b/part-10/0"]


# --- Columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGE_COLUMNS)
@pytest.mark.parametrize("caption", CAPTION_COLUMNS)
def test_known_columns_are_found(tmp_path: Path, image: str, caption: str) -> None:
    texts = [f"of {i}" for i in range(6)]
    table(tmp_path, "a.parquet", {image: [picture(i) for i in range(6)], caption.upper(): texts})
    records = stored(tmp_path)
    assert [record.read() for record in records] == [picture(i) for i in range(6)]
    assert [record.captions[0].text for record in records] == texts


def test_named_columns_and_the_first_known_one(tmp_path: Path) -> None:
    columns = {
        "text": [f"text {i}" for i in range(6)],
        "title": [f"title {i}" for i in range(6)],
        "mine": [f"mine {i}" for i in range(6)],
        "png": [picture(50 + i) for i in range(6)],
        "jpg": [picture(i) for i in range(6)],
    }
    table(tmp_path, "a.parquet", columns)
    first = stored(tmp_path)[0]
    assert (first.captions[0].text, first.read()) == ("title 0", picture(0))
    assert open_tables(tmp_path).notes == ("columns jpg, title (text, png not used)",)
    source = open_tables(tmp_path, caption_column="text", image_column="png")
    assert source.notes == ("columns png, text (title, jpg not used)",)
    first = stored(tmp_path, caption_column="mine", image_column="png")[0]
    assert (first.captions[0].text, first.read()) == ("mine 0", picture(50))


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({"caption": ["a"]}, {}, "--image_column image: no such column in .*a.parquet; there are "),
        ({"image": [b""], "key": ["a"]}, {}, "--caption_column caption: no such .* image, key$"),
        (pairs_of([0]), {"image_column": "jpg"}, "--image_column jpg: no such column"),
        (pairs_of([0]), {"caption_column": "text"}, "--caption_column text: no such column"),
        ({"image": [3], "caption": ["a"]}, {}, "--image_column image holds int64 in .*a.parquet"),
        ({"image": [[3]], "caption": ["a"]}, {}, "--image_column image holds list<.*>"),
        ({"image": [{"x": b""}], "caption": ["a"]}, {}, "--image_column image holds struct<x"),
        ({"image": [b""], "caption": [3]}, {}, "--caption_column caption holds int64 in"),
        ({"image": [b""], "caption": [b"a"]}, {}, "--caption_column caption holds binary in"),
        ({"image": [b""], "caption": [[3]]}, {}, "--caption_column caption holds list<.*>"),
        ({"image": [b""], "caption": [{"a": "b"}]}, {}, "caption holds struct<.* name another"),
        (pairs_of([0]) | {"cocoid": [1.5]}, {}, "--id_column cocoid holds double in"),
    ],
)
def test_wrong_columns(
    tmp_path: Path, columns: Mapping[str, Any], changes: Mapping[str, Any], message: str
) -> None:
    table(tmp_path, "a.parquet", columns)
    with pytest.raises(InputError, match=message):
        open_tables(tmp_path, **changes)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    columns = [pa.array([picture(0)]), pa.array(["a"]), pa.array(["b"])]
    double = pa.Table.from_arrays(columns, names=["image", "caption", "caption"])
    pq.write_table(double, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="--caption_column caption: several such columns in"):
        open_tables(tmp_path)


def test_columns_are_looked_for_in_every_file(tmp_path: Path) -> None:
    table(tmp_path, "a.parquet", pairs_of(range(5), "jpg"))
    table(tmp_path, "b.parquet", pairs_of(range(5, 10), "webp"))
    assert [record.read() for record in stored(tmp_path)] == [picture(i) for i in range(10)]
    table(tmp_path, "c.parquet", {"url": ["http://"], "caption": ["of nothing"]})
    with pytest.raises(
        InputError, match=r"--image_column image: .*c\.parquet, which has .* img2dataset"
    ):
        open_tables(tmp_path)


# --- Captions, images of several rows, names ------------------------------------------------------


def test_strings_lists_and_nulls(tmp_path: Path) -> None:
    images = {"image": [picture(i) for i in range(5)]}
    lists = [["a", "b"], [], None, ["c", None], ["d"]]
    table(tmp_path, "a.parquet", images | {"caption": lists})
    table(tmp_path, "b.parquet", images | {"caption": ["e", None, "", "f", "g"]})
    table(tmp_path, "c.parquet", images | {"caption": [None] * 5})
    records = stored(tmp_path)
    assert [[caption.text for caption in record.captions] for record in records] == [
        *(["a", "b"], [None], [None], ["c", None], ["d"]),
        *(["e"], [None], [""], ["f"], ["g"]),
        *([None],) * 5,
    ]
    positions = [caption.position for record in records for caption in record.captions]
    assert positions == [*range(17)]
    assert [{c.row for c in r.captions} for r in records] == [{i % 5} for i in range(15)]


def test_unusable_captions_are_skipped_with_a_reason(tmp_path: Path) -> None:
    texts = pa.array([f"of {i}".encode() for i in range(17)] + [b"gr\xfcn", None, b" "])
    column = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers(), texts.null_count)
    table(tmp_path, "a.parquet", pairs_of(range(20)) | {"caption": column})
    reader, _ = read_all(open_tables(tmp_path))
    skipped = reader.skipped()
    assert dict(zip(skipped["key"], skipped["reason"], strict=True)) == {
        "a/17": DAMAGED_CAPTION,
        "a/18": MISSING_CAPTION,
        "a/19": EMPTY_CAPTION,
    }
    assert len(reader.pairs()) == 17


@pytest.mark.parametrize("id_type", [pa.int64(), pa.string(), pa.large_string()], ids=str)
def test_rows_of_one_id_are_one_image(tmp_path: Path, id_type: Any) -> None:
    ids = pa.array([5, 6, 5, None, None, 7]).cast(id_type)
    table(tmp_path, "train-0.parquet", pairs_of(range(6)) | {"cocoid": ids})
    table(tmp_path, "train-1.parquet", pairs_of([6, 7]) | {"cocoid": pa.array([7, 8])})
    table(tmp_path, "val-0.parquet", pairs_of([8]) | {"cocoid": pa.array([5])})
    found = {record.key: record for record in stored(tmp_path)}
    assert {k: [(c.position, c.row) for c in r.captions] for k, r in found.items()} == {
        "train/5": [(0, 0), (2, 2)],
        "train/6": [(1, 1)],
        "train-0/3": [(3, 3)],
        "train-0/4": [(4, 4)],
        "train/7": [(5, 5), (6, -1)],  # the second stands in another file than the image
        "train/8": [(7, 1)],
        "validation/5": [(8, 0)],
    }
    numbers = {"train/5": 0, "train/6": 1, "train/7": 5, "train/8": 7, "validation/5": 8}
    assert {key: found[key].read() for key in numbers} == {
        key: picture(number) for key, number in numbers.items()
    }
    assert found["train/7"].shard == "train-0.parquet"
    single = stored(tmp_path, id_column="another")
    assert [record.key for record in single][:3] == ["train-0/0", "train-0/1", "train-0/2"]
    assert len(single) == 9


def test_uids_of_datacomp(tmp_path: Path) -> None:
    uid = "0123456789abcdef0123456789ABCDEF"
    uids = [uid, None, uid[:-1], uid[:-1] + "g", f"{uid}\n"]
    table(tmp_path, "a.parquet", pairs_of(range(5), "jpg") | {"uid": uids})
    assert [record.uid for record in stored(tmp_path)] == [uid, "", "", "", ""]
    table(tmp_path, "a.parquet", pairs_of(range(5), "jpg") | {"uid": [*range(5)]})
    assert {record.uid for record in stored(tmp_path)} == {""}


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"gr\xfcn")
    write(tmp_path, {f"{name}.png": picture(3)})
    paths = pa.array([b"gr\xfcn.png"] * 2)
    columns = {
        "image": pa.Array.from_buffers(pa.string(), 2, paths.buffers()),
        "caption": ["a", "b"],
    }
    table(tmp_path, "plain.parquet", columns)
    os.rename(tmp_path / "plain.parquet", tmp_path / f"{name}.parquet")
    record = stored(tmp_path)[0]
    assert (record.key, record.shard) == ("gr\\udcfcn/0", "gr\\udcfcn.parquet")
    assert record.member == "gr\\udcfcn.png"
    assert record.read() == picture(3)


# --- Splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"),
        ("training", "val2017", "testing"),
        ("train/0", "valid/0", "test/0"),
        ("data/restval/en/0", "data/dev/en/0", "data/test/en/0"),
        ("unnamed/latest", "unnamed/dev_set", "unnamed/test"),
    ],
)
def test_official_splits(tmp_path: Path, names: Sequence[str]) -> None:
    for part, name in enumerate(names):
        table(tmp_path, f"{name}.parquet", pairs_of(range(10 * part, 10 * part + 10)))
    _, pixels = read_all(open_tables(tmp_path))
    for part, split in enumerate(SPLITS):
        assert sorted(pixels[split][:, 0]) == [*range(10 * part, 10 * part + 10)]


def test_files_of_no_split_are_all_train(tmp_path: Path) -> None:
    for number in range(2):  # the folder that is given has no say
        table(tmp_path / "test", f"{number}.parquet", pairs_of(range(10 * number, 10 * number + 9)))
    source = open_tables(tmp_path / "test")
    assert "images: train 12, validation 3, test 3" in source.description
    assert "test and validation drawn at random from train" in source.description


@pytest.mark.parametrize("seed", [0, 1])
def test_a_folder_with_the_same_pairs_gives_the_same_sequence(tmp_path: Path, seed: int) -> None:
    rows = [(i, f"of {i}, {j}") for i in range(40) for j in range(i % 3 + 1)]
    lines = "".join(f'{i:03d}.png,"{text}"\n' for i, text in rows)
    write(tmp_path / "folder", photographs(40) | {"captions.csv": f"image,caption\n{lines}"})
    for part in range(3):
        numbers = range(40)[part * 15 : part * 15 + 15]
        texts = [[text for i, text in rows if i == number] for number in numbers]
        columns = {"image": [picture(i) for i in numbers], "caption": texts}
        table(tmp_path / "tables", f"{part}.parquet", columns, row_group_size=4)
    limits = {"max_train_samples": 30, "max_val_samples": 5, "max_test_samples": 6}
    sequences = []
    for source in (
        open_folder(tmp_path / "folder", seed, **limits),
        open_tables(tmp_path / "tables", seed, **limits),
    ):
        reader, _ = read_all(source, **limits)
        columns_kept = ["split", "position", "image_row", "caption", "image_sha256", "id"]
        sequences.append(reader.pairs()[columns_kept].values.tolist())
    assert sequences[0] == sequences[1]
    assert len(sequences[0]) > 40


# --- Reading images -------------------------------------------------------------------------------


def test_opening_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, "a.parquet", image_column("struct", range(9)) | {"text": ["x"] * 9})
    table(tmp_path, "b.parquet", pairs_of(range(9), "jpg"))
    decoded = Decoded(monkeypatch)
    open_tables(tmp_path)
    assert [columns for _, columns, _ in decoded.calls] == [["text", "image.path"], ["caption"]]


def test_every_row_group_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "IMAGES_AT_ONCE", 8)
    for part in range(2):
        numbers = range(100 * part, 100 * part + 100)
        table(tmp_path, f"{part}.parquet", pairs_of(numbers, "jpg"), row_group_size=40)
    records = stored(tmp_path)
    decoded = Decoded(monkeypatch)
    assert [record.read() for record in records] == [picture(i) for i in range(200)]
    assert decoded.groups() == [[0], [1], [2]] * 2
    assert [sum(sizes) for _, _, sizes in decoded.calls] == [40, 40, 20] * 2
    assert max(max(sizes) for _, _, sizes in decoded.calls) == 8
    assert {tuple(columns) for _, columns, _ in decoded.calls} == {("jpg",)}


def test_what_is_not_asked_for_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "IMAGES_AT_ONCE", 4)
    monkeypatch.setattr(parquet_images, "BATCHES_KEPT", 2)
    table(tmp_path, "a.parquet", pairs_of(range(100)), row_group_size=20)
    records = stored(tmp_path)
    decoded = Decoded(monkeypatch)
    wanted = [3, 9, 7, 65, 99, 62, 3]
    assert [records[i].read() for i in wanted] == [picture(i) for i in wanted]
    assert [(groups, sum(sizes)) for groups, _, sizes in decoded.calls] == [
        ([0], 12),  # rows 3 and 9; 7 is still there
        ([3], 8),
        ([4], 20),
        ([3], 4),  # row 62 was let go
        ([0], 4),
    ]


def test_large_images_are_decoded_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_images, "BYTES_AT_ONCE", 10_000)
    data = [np.random.default_rng(i).bytes(3000) for i in range(20)]
    table(tmp_path, "a.parquet", pairs_of(range(20)) | {"image": data})
    records = stored(tmp_path)
    decoded = Decoded(monkeypatch)
    assert [record.read() for record in records] == data
    assert decoded.calls[0][2] == [3] * 6 + [2]


def test_one_huge_row_group_needs_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_images, "BYTES_AT_ONCE", 2**18)
    n_images, n_bytes = 600, 2**16
    rng = np.random.default_rng(0)
    images = [rng.bytes(n_bytes) for _ in range(n_images)]
    columns = {"image": images, "caption": ["x"] * n_images}
    options = {"row_group_size": n_images, "write_batch_size": 4, "use_dictionary": False}
    table(tmp_path, "a.parquet", columns, compression="none", **options)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1
    records = stored(tmp_path)
    before, most = pa.total_allocated_bytes(), 0
    for record, data in zip(records, images, strict=True):
        assert record.read() == data
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < n_images * n_bytes / 6  # 39 MB in all; kept are 8 batches of 256 KiB


def test_late_threads_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(2):
        numbers = range(100 * part, 100 * part + 100)
        table(tmp_path, f"{part}.parquet", pairs_of(numbers), row_group_size=50)
    records = stored(tmp_path)
    decoded = Decoded(monkeypatch)
    # Sixteen images at a time, the last of them first: across row groups, across files.
    order = [i for start in range(0, 200, 16) for i in reversed(range(200)[start : start + 16])]
    assert [records[i].read() for i in order] == [picture(i) for i in order]
    assert sorted(decoded.groups(), key=str) == [[0], [0], [1], [1]]
    assert sum(sum(sizes) for _, _, sizes in decoded.calls) == 200


def test_many_threads(tmp_path: Path) -> None:
    for part in range(6):
        numbers = range(50 * part, 50 * part + 50)
        table(tmp_path, f"{part}.parquet", pairs_of(numbers), row_group_size=25)
    records = stored(tmp_path)
    for order in (range(300), np.random.default_rng(0).permutation(300).tolist()):
        with ThreadPoolExecutor(8) as executor:
            data = list(executor.map(lambda i: records[i].read(), order))
        assert data == [picture(i) for i in order]


def test_threads_of_the_reader_see_every_image(tmp_path: Path) -> None:
    table(tmp_path, "a.parquet", pairs_of(range(200)), row_group_size=30)
    reader, pixels = read_all(open_tables(tmp_path), num_workers=6)
    for row in reader.pairs().itertuples():
        number = int(str(row.caption).removeprefix("of "))
        assert pixels[str(row.split)][int(str(row.image_row)), 0] == number


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(9):
        table(tmp_path, f"{part}.parquet", pairs_of([part, part + 20]))
    records = stored(tmp_path)
    n_open, original_open, original_close = [0], parquet_images.open_file, pq.ParquetFile.close
    highest = []

    def opening(root: Path, name: str) -> Any:
        n_open[0] += 1
        highest.append(n_open[0])
        return original_open(root, name)

    def closing(file: Any, force: bool = False) -> None:
        n_open[0] -= 1
        original_close(file, force)

    monkeypatch.setattr(parquet_images, "open_file", opening)
    monkeypatch.setattr(pq.ParquetFile, "close", closing)
    order = [*range(0, 18, 2), *range(1, 18, 2)]
    assert [records[i].read() for i in order] == [picture(i // 2 + 20 * (i % 2)) for i in order]
    assert n_open == [parquet_images.MAX_OPEN_FILES]
    assert len(highest) == 18
    assert max(highest) == parquet_images.MAX_OPEN_FILES + 1  # until the oldest is closed


def test_cells_without_an_image(tmp_path: Path) -> None:
    structs: list[Any] = [{"bytes": None, "path": None}, None, {"bytes": None, "path": ""}]
    structs += [{"bytes": None, "path": "gone.png"}, {"bytes": b"", "path": None}]
    table(tmp_path, "a.parquet", {"image": structs, "caption": ["x"] * 5})
    table(tmp_path, "b.parquet", {"jpg": [None, b"\0"], "caption": ["x"] * 2})
    table(tmp_path, "c.parquet", {"path": [None, "gone.png", "."], "caption": ["x"] * 3})
    table(tmp_path, "d.parquet", {"image": pa.nulls(1), "caption": ["x"]})
    outcomes: list[bytes | str] = []
    details: set[str] = set()
    for record in stored(tmp_path):
        try:
            outcomes.append(record.read())
        except FileNotFoundError:
            outcomes.append(MISSING_FILE)
        except UnusableImage as error:
            outcomes.append(error.reason)
            details.add(error.detail)
    assert details == {"no image in this row"}
    gone = MISSING_FILE
    assert outcomes == [gone, gone, gone, gone, b"", gone, b"\0", gone, gone, gone, gone]


def test_missing_images_are_listed(tmp_path: Path) -> None:
    columns = pairs_of(range(20))
    columns["image"][7] = None
    table(tmp_path, "a.parquet", columns)
    reader, _ = read_all(open_tables(tmp_path))
    [skipped] = reader.skipped().to_dict("records")
    expected = {"key": "a/7", "reason": MISSING_FILE, "shard": "a.parquet", "row": 7}
    assert {name: skipped[name] for name in expected} == expected


def test_a_cell_that_is_far_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "MAX_FILE_BYTES", 5000)
    columns = pairs_of(range(3)) | {"image": [b"x" * 5000, b"x" * 5001, b"x"]}
    table(tmp_path, "a.parquet", columns)
    first, second, third = stored(tmp_path)
    assert (first.read(), third.read()) == (b"x" * 5000, b"x")
    with pytest.raises(UnusableImage, match="5,001 bytes") as raised:
        second.read()
    assert raised.value.reason == FILE_TOO_LARGE


# --- What leads out of the folder -----------------------------------------------------------------


def test_images_outside_the_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"secret.png": picture(1), "mine/in.png": picture(2)})
    (tmp_path / "mine/link.png").symlink_to(tmp_path / "secret.png")
    paths = ["../../secret.png", "../secret.png", str(tmp_path / "secret.png"), "../link.png"]
    inside = ["../in.png", "in.png", str(tmp_path / "mine/in.png")]
    columns = {"image": paths + inside, "caption": ["x"] * 7}
    table(tmp_path / "mine", "tables/a.parquet", columns)
    structs = [{"bytes": None, "path": path} for path in paths + inside]
    table(tmp_path / "mine", "tables/b.parquet", columns | {"image": structs})
    records = stored(tmp_path / "mine")
    for record in [*records[:4], *records[7:11]]:
        with pytest.raises((UnusableImage, FileNotFoundError)) as raised:
            record.read()
        if record not in (records[1], records[8]):  # ../secret.png is no file, within the folder
            assert isinstance(raised.value, UnusableImage)
            assert raised.value.reason == OUTSIDE_FOLDER
    assert {record.read() for record in [*records[4:7], *records[11:]]} == {picture(2)}


def test_tables_outside_the_folder_are_refused(tmp_path: Path) -> None:
    table(tmp_path, "secret/a.parquet", pairs_of(range(5)))
    table(tmp_path, "mine/b.parquet", pairs_of(range(5, 10)))
    (tmp_path / "mine/c.parquet").symlink_to("b.parquet")
    assert len(stored(tmp_path / "mine")) == 10
    (tmp_path / "mine/a.parquet").symlink_to("../secret/a.parquet")
    with pytest.raises(InputError, match=r"--data_dir .*: a\.parquet leads out .* put a copy"):
        open_tables(tmp_path / "mine")
    assert len(stored(tmp_path / "mine/a.parquet")) == 5  # named, so meant
    (tmp_path / "link").symlink_to("secret")
    assert len(stored(tmp_path / "link")) == 5


# --- Damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (None, "--data_dir is needed; give a folder of parquet files"),
        ("", "--data_dir is needed; give a folder of parquet files"),
        ("gone", "--data_dir .*gone does not exist; give"),
        ("empty", r"--data_dir .*empty holds no \*\.parquet file; give"),
        ("text/notes.txt", r"--data_dir .*notes\.txt: 1 parquet files, none can be read \("),
        ("html", r"--data_dir .*html: 2 parquet files, none can be read \("),
        ("rowless", "--data_dir .*rowless: 1 parquet files, they have no rows"),
    ],
)
def test_no_tables(tmp_path: Path, place: str | None, message: str) -> None:
    pages: dict[str, bytes | str] = {f"html/{i}.parquet": "<!DOCTYPE html><p>404" for i in range(2)}
    write(tmp_path, pages | {"text/notes.txt": "no table", "empty/.hidden.parquet": ""})
    rowless = {"image": pa.array([], "binary"), "caption": pa.array([], "string")}
    table(tmp_path, "rowless/a.parquet", rowless)
    data_dir = str(tmp_path / place) if place else place
    with pytest.raises(InputError, match=message):
        open_source(DataConfig(dataset="parquet", data_dir=data_dir), rng=np.random.default_rng(0))


def test_damaged_files_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = table(tmp_path, "whole.parquet", pairs_of(range(20))).read_bytes()
    damaged = {
        "cut.parquet": whole[:-100],
        "empty.parquet": b"",
        "head.parquet": whole[100:],
        "html.parquet": b"<html>" + b" " * 5000,
        "magic.parquet": b"PAR1" * 10,
        "text.parquet": whole.replace(b"of 3", b"\0\0\0\0", 1)[:-1] + b"2",
    }
    write(tmp_path, damaged)
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "link.parquet").symlink_to("gone.parquet")
    with caplog.at_level(logging.WARNING):
        source = open_tables(tmp_path)
    messages = [record.getMessage() for record in caplog.records]
    for name in sorted([*damaged, "pipe.parquet", "link.parquet"]):
        [message] = [message for message in messages if name in message]
        assert message.startswith(f"{tmp_path / name} is damaged or no Parquet file; left out: ")
    assert len(messages) == len(damaged) + 2
    assert "1 parquet files in" in source.description
    assert ": 20 images, 20 captions, 8 damaged files left out" in source.description
    assert len(read_all(source)[0].pairs()) == 20


def damage(path: Path, row_group: int, column: int, share: float) -> None:
    """Overwrite the end of a column chunk, from this share of it on."""
    chunk = pq.ParquetFile(path).metadata.row_group(row_group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    first = start + int(share * chunk.total_compressed_size)
    data = bytearray(path.read_bytes())
    end = start + chunk.total_compressed_size
    data[first:end] = b"\xff" * (end - first)
    path.write_bytes(data)


def test_a_damaged_row_group_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "IMAGES_AT_ONCE", 2)
    options: dict[str, Any] = {"write_batch_size": 2, "data_page_size": 1, "row_group_size": 20}
    options |= {"use_dictionary": False, "write_page_checksum": True}
    path = table(tmp_path, "a.parquet", pairs_of(range(60)), **options)
    damage(path, 1, 0, 0.5)
    records = stored(tmp_path)
    decoded = Decoded(monkeypatch)
    for _ in range(2):
        outcomes: list[bytes | str] = []
        for record in records:
            try:
                outcomes.append(record.read())
            except UnusableImage as unusable:
                outcomes.append(unusable.reason)
        first_lost = outcomes.index(DAMAGED_TABLE)
        assert 20 < first_lost < 40
        assert outcomes == [
            DAMAGED_TABLE if first_lost <= i < 40 else picture(i) for i in range(60)
        ]
    assert decoded.groups() == [[0], [1], [2]] * 2  # what is lost is not tried row by row
    reader, _ = read_all(open_tables(tmp_path))
    assert set(reader.skipped()["reason"]) == {DAMAGED_TABLE}
    assert reader.skipped()["detail"].str.contains("CRC checksum").all()
    assert len(reader.pairs()) + len(reader.skipped()) == 60


def test_damaged_captions_leave_the_file_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in range(2):
        table(tmp_path, f"{part}.parquet", pairs_of(range(30 * part, 30 * part + 30)))
    damage(tmp_path / "0.parquet", 0, 1, 0)
    records = stored(tmp_path)
    assert [record.key for record in records] == [f"1/{i}" for i in range(30)]
    assert [record.captions[0].position for record in records] == [*range(30)]
    assert "0.parquet is damaged or no Parquet file" in caplog.text


def test_a_file_that_disappears(tmp_path: Path) -> None:
    path = table(tmp_path, "a.parquet", pairs_of(range(30)))
    [record, *_] = stored(tmp_path)
    path.write_bytes(b"overwritten")
    with pytest.raises(UnusableImage) as raised:
        record.read()
    assert raised.value.reason == DAMAGED_TABLE
    path.unlink()
    with pytest.raises(FileNotFoundError):
        record.read()


class Exploit:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", [b"arrow.py_extension_type", b"pandas", b"made.up"])
def test_nothing_is_unpickled(tmp_path: Path, name: bytes) -> None:
    payload = pickle.dumps(Exploit(tmp_path / "exploited"))
    metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": payload}
    schema = pa.schema(
        [pa.field("image", pa.binary(), metadata=metadata), pa.field("caption", pa.string())],
        metadata={b"pandas": payload},
    )
    data = [picture(i) for i in range(5)]
    exploit = pa.Table.from_arrays([pa.array(data), pa.array(["x"] * 5)], schema=schema)
    pq.write_table(exploit, tmp_path / "a.parquet")
    assert [record.read() for record in stored(tmp_path)] == data
    assert not (tmp_path / "exploited").exists()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("fuzzed")
    columns = image_column("struct", range(60)) | {
        "caption": [[f"of {i}", "again"][: i % 3] for i in range(60)],
        "cocoid": [i // 2 for i in range(60)],
        "uid": [f"{i:032x}" for i in range(60)],
    }
    path = table(folder, "whole.parquet", columns, row_group_size=25, data_page_size=500)
    data = path.read_bytes()
    path.unlink()
    return folder, data


@settings(deadline=None, max_examples=150)
@given(draw=st.data())
def test_any_damage_is_survived(fuzzed: tuple[Path, bytes], draw: st.DataObject) -> None:
    folder, whole = fuzzed
    data = bytearray(whole)
    near_end = draw.draw(st.booleans(), "in the footer")
    start = len(data) - 8 - int.from_bytes(whole[-8:-4], "little") if near_end else 0
    places = st.integers(start, len(data) - 1)
    for place, mask in draw.draw(st.lists(st.tuples(places, st.integers(1, 255)), max_size=4)):
        data[place] ^= mask
    cut = draw.draw(st.none() | st.tuples(places, st.integers(1, 300)), "cut out")
    if cut is not None:
        del data[cut[0] : sum(cut)]
    (folder / "a.parquet").write_bytes(data)
    try:
        records = stored(folder)
    except InputError:
        return
    outcomes: list[type] = []
    for record in records:
        try:
            outcomes.append(type(record.read()))
        except (UnusableImage, OSError) as error:
            outcomes.append(type(error))
    assert len(outcomes) == len(records) > 0
    if data == whole:
        assert outcomes == [bytes] * 30


# --- Fingerprint ----------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_data(tmp_path: Path) -> None:
    write(tmp_path, photographs(10))
    columns = {"caption": [f"of {i}" for i in range(10)], "text": ["b"] * 10}
    columns["path"] = [f"{i:03d}.png" for i in range(10)]
    path = table(tmp_path, "a.parquet", columns)

    def fingerprint(**changes: Any) -> str:
        return open_tables(tmp_path, **changes).fingerprint

    first = fingerprint()
    assert fingerprint() == fingerprint(num_workers=0) == first
    seen = {first, fingerprint(caption_column="text")}
    assert len(seen) == 2
    os.utime(path, ns=(1, 1))
    seen.add(fingerprint())
    assert len(seen) == 3
    os.utime(tmp_path / "003.png", ns=(1, 1))
    seen.add(fingerprint())
    assert len(seen) == 4
    path.rename(tmp_path / "b.parquet")
    seen.add(fingerprint())
    assert len(seen) == 5
    table(tmp_path, "b.parquet", columns | {"caption": ["other"] * 10})
    os.utime(tmp_path / "b.parquet", ns=(1, 1))
    seen.add(fingerprint())
    assert len(seen) == 6

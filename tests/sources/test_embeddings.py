"""Embeddings that exist already; the truth is the arrays and tables that the tests write."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.settings import InputError
from data import PairReader
from sources.base import (
    DAMAGED_CAPTION,
    EMPTY_CAPTION,
    MISSING_CAPTION,
    OUTSIDE_FOLDER,
    SPLITS,
    ImageRecord,
    UnusableImage,
)
from sources.embeddings import EmbeddingFiles, open_embeddings
from sources.vectors import EMBEDDING_NOT_USABLE
from tests.helpers import image_splits, picture, write
from tests.sources.embedding_files import (
    draw,
    open_files,
    problem,
    save_one,
    save_part,
    settings_of,
    unit,
)


def by_key(files: EmbeddingFiles) -> dict[str, ImageRecord]:
    """Every image of a folder, as it was found."""
    source = files.pool
    captions = [np.flatnonzero(source.rows.owners == row).tolist() for row in source.rows.keyed]
    return {record.key: record for record in map(source._record, captions)}


def read_pairs(files: EmbeddingFiles, root: Path, **changes: Any) -> tuple[PairReader, np.ndarray]:
    """A full read of all splits, and the image embedding of every kept pair, in their order."""
    reader = PairReader(files.source, settings_of(root, **changes), decode=files.decode)
    images = {s: list(reader.images(s)) for s in ("test", "validation", "train")}
    pairs = reader.pairs()
    rows = zip(pairs["split"], pairs["image_row"], strict=True)
    return reader, np.stack([images[split][row].pixels for split, row in rows])


# --- What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_every_pair_has_its_own_rows(tmp_path: Path, dtype: type) -> None:
    images, texts = save_one(tmp_path, dtype=dtype)
    files = open_files(tmp_path)
    assert files.name == f"embeddings in {tmp_path}"
    assert files.source.name == "embeddings"
    assert files.source.description.startswith(f"{files.name}: 40 images, 40 captions; images: ")
    reader, embeddings = read_pairs(files, tmp_path)
    pairs = reader.pairs()
    assert pairs["split"].value_counts().to_dict() == {"train": 24, "validation": 8, "test": 8}
    assert sorted(pairs["row"]) == list(range(40))
    rows = pairs["row"].to_numpy()
    assert pairs["caption"].tolist() == [f"0, row {row}" for row in rows]
    assert pairs["key"].tolist() == [f"metadata_0/{row}" for row in rows]
    assert set(pairs["shard"]) == {"img_emb/img_emb_0.npy"}
    assert set(pairs["member"]) == set(pairs["uid"]) == {""}
    # One rounding to float32 of a value of at most 1: 6e-8.
    np.testing.assert_allclose(embeddings, unit(images[rows]), rtol=0, atol=1e-7)
    given = files.texts_at(pairs["position"].to_numpy(np.int64))
    np.testing.assert_allclose(given, unit(texts[rows]), rtol=0, atol=1e-7)
    assert embeddings.dtype == given.dtype == np.float32


def test_a_record_reads_the_row_as_it_is(tmp_path: Path) -> None:
    images, _ = save_one(tmp_path, 5)
    records = {r.captions[0].row: r for s in SPLITS for r in open_files(tmp_path).source.records(s)}
    assert len(records) == 5
    for row, record in records.items():
        assert record.read() == images[row].astype("<f4").tobytes()


@pytest.mark.parametrize("plain", [False, True])
def test_shards_belong_together_in_natural_order(tmp_path: Path, plain: bool) -> None:
    sizes = [3, 5, 0, 1, 4, 2, 6, 3, 3, 2, 7]  # 0 to 10, of which one is empty
    images = [draw(n, seed) for seed, n in enumerate(sizes)]
    texts = [draw(n, 100 + seed) for seed, n in enumerate(sizes)]
    for number in reversed(range(11)):
        captions = pa.array([f"{number}, row {i}" for i in range(sizes[number])], pa.string())
        columns = {"caption": captions}
        save_part(tmp_path, number, images[number], texts[number], columns, plain=plain)
    write(tmp_path, {"img_emb/.hidden.npy": b"", "img_emb/notes.txt": "", "metadata/README": ""})
    files = open_files(tmp_path)
    reader, embeddings = read_pairs(files, tmp_path)
    pairs = reader.pairs().assign(place=range(sum(sizes))).sort_values("position")
    assert pairs["position"].tolist() == list(range(sum(sizes)))
    assert pairs["caption"].tolist() == [
        f"{s}, row {i}" for s, n in enumerate(sizes) for i in range(n)
    ]
    assert pairs["row"].tolist() == [i for n in sizes for i in range(n)]
    name = "img_emb/{}.npy" if plain else "img_emb/img_emb_{}.npy"
    assert pairs["shard"].tolist() == [
        name.format(s) for s, n in enumerate(sizes) for _ in range(n)
    ]
    expected = unit(np.concatenate(images))
    np.testing.assert_allclose(embeddings[pairs["place"]], expected, rtol=0, atol=1e-7)
    positions = np.array([31, 0, 7, 8, 35, 8])
    expected = unit(np.concatenate(texts)[positions])
    np.testing.assert_allclose(files.texts_at(positions), expected, rtol=0, atol=1e-7)


def test_many_blocks_and_more_files_than_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sources.embedding_rows.BLOCK_ROWS", 2)
    monkeypatch.setattr("sources.vectors.BLOCK_ROWS", 2)
    monkeypatch.setattr("sources.vectors.MAX_OPEN_FILES", 2)
    images, texts = draw(35, 1), draw(35, 2)
    images[11] = 0
    for part in range(5):
        rows = slice(7 * part, 7 * part + 7)
        save_part(tmp_path, part, images[rows], texts[rows])
    files = open_files(tmp_path)
    reader, embeddings = read_pairs(files, tmp_path, num_workers=4)
    positions = reader.pairs()["position"].to_numpy(np.int64)
    assert sorted(positions) == [i for i in range(35) if i != 11]
    np.testing.assert_allclose(embeddings, unit(images[positions]), rtol=0, atol=1e-7)
    np.testing.assert_allclose(files.texts_at(positions), unit(texts[positions]), rtol=0, atol=1e-7)


def test_flags_that_embeddings_do_not_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_one(tmp_path, columns={"mine": [f"row {i}" for i in range(40)]})
    open_files(tmp_path, caption_column="mine")
    assert not caplog.messages
    open_files(tmp_path, caption_column="mine", image_column="png")
    assert caplog.messages == ["--image_column: not used by --embeddings_dir; leave it out"]


def test_the_seed_decides_splits_and_order(tmp_path: Path) -> None:
    save_one(tmp_path)
    splits = [image_splits(open_files(tmp_path, seed).source) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_the_fingerprint_follows_files_and_columns(tmp_path: Path) -> None:
    columns = {"caption": list("abcdefgh"), "alt": list("ijklmnop")}
    images, _ = save_one(tmp_path, 8, columns)
    seen = [open_files(tmp_path, seed).source.fingerprint for seed in (0, 1)]
    assert seen[0] == seen[1]
    seen.append(open_files(tmp_path, caption_column="alt").source.fingerprint)
    path = tmp_path / "text_emb" / "text_emb_0.npy"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    seen.append(open_files(tmp_path).source.fingerprint)
    save_part(tmp_path, 1, images, images, columns)
    seen.append(open_files(tmp_path).source.fingerprint)
    assert len(set(seen)) == len(seen) - 1


# --- Metadata -------------------------------------------------------------------------------------


def read_one(root: Path, columns: Mapping[str, Sequence[Any]], **changes: Any) -> pd.DataFrame:
    """What a full read keeps of one shard with these columns, by position."""
    save_one(root, len(next(iter(columns.values()))), columns)
    reader, _ = read_pairs(open_files(root, **changes), root, **changes)
    return reader.pairs().sort_values("position").reset_index(drop=True)


def test_names_paths_and_uids(tmp_path: Path) -> None:
    uid = "0123456789abcdefABCDEF9876543210"
    columns: dict[str, list[Any]] = {
        "caption": list("abcdef"),
        "image_path": ["x/1.jpg", "", None, "", "", "metadata_0/3"],
        "key": ["000000001", "000000002", "", "", "000000002", ""],
        "uid": [uid, uid[1:], f"{uid}0", "", None, "z" * 32],
    }
    pairs = read_one(tmp_path, columns)
    assert sorted(pairs["key"]) == sorted(
        ["x/1.jpg", "000000002", "metadata_0/2", "metadata_0/3", "000000002#2", "metadata_0/3#2"]
    )
    assert pairs["key"].tolist()[:3] == ["x/1.jpg", "000000002", "metadata_0/2"]
    assert pairs["member"].tolist() == ["x/1.jpg", "", "", "", "", "metadata_0/3"]
    assert pairs["uid"].tolist() == [uid, "", "", "", "", ""]


@pytest.mark.parametrize(
    ("names", "changes", "used"),
    [
        (["caption", "text"], {}, "caption"),
        (["TEXT", "url"], {}, "TEXT"),
        (["description", "title"], {}, "title"),
        (["alt", "caption"], {"caption_column": "alt"}, "alt"),
    ],
)
def test_the_caption_column(
    tmp_path: Path, names: list[str], changes: dict[str, str], used: str
) -> None:
    columns = {name: [f"{name} {i}" for i in range(5)] for name in names}
    pairs = read_one(tmp_path, columns, **changes)
    assert pairs["caption"].tolist() == [f"{used} {i}" for i in range(5)]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_kinds_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    captions = pa.array([f"Été {i}" for i in range(4)]).cast(kind)
    pairs = read_one(tmp_path, {"caption": captions, "key": [7, 8, 9, 10]})
    assert pairs["caption"].tolist() == ["Été 0", "Été 1", "Été 2", "Été 3"]
    assert pairs["key"].tolist() == ["7", "8", "9", "10"]


def test_captions_that_are_missing_or_damaged_are_skipped(tmp_path: Path) -> None:
    cells = [b"good 0", None, b"", b"\xff\xfe broken", b"good 4", b"good 5", b"a\0b"]
    # Cast without a check, as other programs write it: parquet readers do not look at the bytes.
    captions = pa.array(cells, pa.binary()).cast(pa.string(), safe=False)
    splits = ["test", *["train"] * 4, "val", "train"]
    save_one(tmp_path, len(cells), {"caption": captions, "split": splits})
    reader, _ = read_pairs(open_files(tmp_path), tmp_path)
    assert sorted(reader.pairs()["caption"]) == ["good 0", "good 4", "good 5"]
    reasons = dict(zip(reader.skipped()["row"], reader.skipped()["reason"], strict=True))
    assert reasons == {1: MISSING_CAPTION, 2: EMPTY_CAPTION, 3: DAMAGED_CAPTION, 6: DAMAGED_CAPTION}


def test_a_column_without_any_caption(tmp_path: Path) -> None:
    save_one(tmp_path, 3, {"caption": pa.nulls(3)})
    files = open_files(tmp_path)
    with pytest.raises(InputError, match=rf"no usable pair .*1 {MISSING_CAPTION}.*embeddings in"):
        read_pairs(files, tmp_path)


def test_splits_that_rows_name(tmp_path: Path) -> None:
    names = ["train", "val", "Test ", "restval", "dev", "testing"]
    columns = {"caption": list("abcdef"), "split": names}
    pairs = read_one(tmp_path, columns)
    assert dict(zip(pairs["caption"], pairs["split"], strict=True)) == {
        **{"a": "train", "b": "validation", "c": "test"},
        **{"d": "train", "e": "validation", "f": "test"},
    }
    names[3] = "elsewhere"
    source = open_files_with(tmp_path, columns | {"split": names}).source
    assert {split: source.n_images(split) for split in SPLITS} == dict.fromkeys(SPLITS, 2)
    assert source.notes == (
        "columns caption, split",
        "splits from the column split: train 1, validation 2, test 2; 1 rows name none",
        "names in the column split that are no split: 'elsewhere' 1",
    )


def open_files_with(root: Path, columns: Mapping[str, Sequence[Any]]) -> EmbeddingFiles:
    save_one(root, len(columns["caption"]), columns)
    return open_files(root)


# --- Rows of the same image -----------------------------------------------------------------------


def test_rows_of_one_path_are_captions_of_one_image(tmp_path: Path) -> None:
    paths = [f"{i // 5}.jpg" for i in range(50)]
    images, texts = draw(10, 1, np.float32).repeat(5, axis=0), draw(50, 2)
    noise = np.random.default_rng(3).normal(size=images.shape)
    images = (images * (1 + 1e-3 * noise)).astype(np.float16)  # as another batch would give them
    for part, rows in enumerate((slice(0, 23), slice(23, 50))):  # 4.jpg is in both files
        columns = {"caption": [f"caption {i}" for i in range(50)][rows], "image_path": paths[rows]}
        save_part(tmp_path, part, images[rows], texts[rows], columns)
    files = open_files(tmp_path)
    assert "10 images, 50 captions" in files.source.description
    reader, embeddings = read_pairs(files, tmp_path)
    pairs = reader.pairs()
    assert pairs.groupby("key")["split"].nunique().eq(1).all()
    assert pairs.groupby("split").size().to_dict() == {"train": 30, "validation": 2, "test": 10}
    positions = pairs["position"].to_numpy(np.int64)
    assert pairs["key"].tolist() == pairs["member"].tolist() == [paths[i] for i in positions]
    assert pairs["caption"].tolist() == [f"caption {i}" for i in positions]
    # The image is the first row of its path, each text its own.
    np.testing.assert_allclose(embeddings, unit(images[positions // 5 * 5]), rtol=0, atol=1e-7)
    np.testing.assert_allclose(files.texts_at(positions), unit(texts[positions]), rtol=0, atol=1e-7)
    in_second = positions >= 23
    assert (pairs["row"].to_numpy() == np.where(in_second, positions - 23, positions)).all()


def test_other_images_of_the_same_path_stay_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = draw(5, 1)
    names = [f"{i:09d}" for i in range(5)]
    for part in (0, 1):  # the second shard begins again, and repeats only its last image
        images = rows if part == 0 else np.concatenate([draw(4, 2), rows[4:]])
        columns = {"caption": [f"{part} {name}" for name in names], "image_path": names}
        save_part(tmp_path, part, images, draw(5, 3 + part), columns)
    files = open_files(tmp_path)
    [record] = caplog.records
    assert "4 rows share their image_path with an earlier row but not" in record.getMessage()
    records = [r for split in SPLITS for r in files.source.records(split)]
    assert sorted(r.key for r in records) == sorted([*names, *(f"{n}#2" for n in names[:4])])
    [both] = [r for r in records if r.key == names[4]]
    assert {by_key(files)[names[4]].captions[i].position for i in (0, 1)} == {4, 9}
    assert both.read() == rows[4].astype("<f4").tobytes()


def test_a_uid_belongs_to_one_pair(tmp_path: Path) -> None:
    save_part(
        *(tmp_path, 0, draw(2, 1).repeat([2, 4], axis=0), draw(6, 2)),
        columns={
            "caption": list("abcdef"),
            "image_path": ["a", "a", "b", "b", "c", "d"],
            "uid": ["1" * 32, "2" * 32, "3" * 32, "3" * 32, "4" * 32, "5" * 32],
        },
    )
    records = by_key(open_files(tmp_path))
    assert {key: record.uid[:1] for key, record in records.items()} == {
        **{"a": "", "b": "3", "c": "4", "d": "5"}
    }


def test_equal_embeddings_are_never_in_two_splits(tmp_path: Path) -> None:
    images = draw(30, 1)[np.arange(60) % 30]  # every image twice, under another name
    save_part(tmp_path, 0, images, draw(60, 2), {"caption": [f"caption {i}" for i in range(60)]})
    reader, _ = read_pairs(open_files(tmp_path), tmp_path)
    pairs = reader.pairs()
    shown = pairs["row"] % 30
    assert pairs.groupby(shown)["split"].nunique().eq(1).all()
    assert pairs.groupby(shown)["image_sha256"].nunique().eq(1).all()
    assert pairs["image_sha256"].nunique() == shown.nunique() < len(pairs)


# --- Rows that cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_without_a_direction_are_skipped_with_their_place(tmp_path: Path, dtype: type) -> None:
    images, texts = draw(40, 1, dtype), draw(40, 2, dtype)
    images[3, 2], images[4, 0], images[5] = np.nan, np.inf, 0
    texts[6, 5], texts[7, 1], texts[8] = np.nan, -np.inf, 0
    images[9], texts[10] = 1e-7, -1e-7
    texts[3] = 0  # where both are no use, the image is named
    save_part(tmp_path, 0, images[:5], texts[:5])
    save_part(tmp_path, 1, images[5:], texts[5:])
    files = open_files(tmp_path)
    assert "32 images, 40 captions, 8 rows not usable" in files.source.description
    reader, embeddings = read_pairs(files, tmp_path)
    assert sorted(reader.pairs()["position"]) == [i for i in range(40) if i not in range(3, 11)]
    assert np.isfinite(embeddings).all()
    skipped = reader.skipped().sort_values("position")
    assert skipped["position"].tolist() == list(range(3, 11))
    assert set(skipped["reason"]) == {EMBEDDING_NOT_USABLE}
    begins = [
        *("row 3 of img_emb/img_emb_0.npy: its values", "row 4 of img_emb/img_emb_0.npy: its v"),
        *("row 0 of img_emb/img_emb_1.npy: its length", "row 1 of text_emb/text_emb_1.npy: its v"),
        *(
            "row 2 of text_emb/text_emb_1.npy: its values",
            "row 3 of text_emb/text_emb_1.npy: its l",
        ),
        *("row 4 of img_emb/img_emb_1.npy: its length", "row 5 of text_emb/text_emb_1.npy: its l"),
    ]
    for detail, begin in zip(skipped["detail"], begins, strict=True):
        assert detail.startswith(begin)


def test_a_row_without_a_direction_takes_no_image_along(tmp_path: Path) -> None:
    images, texts = draw(3, 1).repeat(3, axis=0), draw(9, 2)
    images[0], texts[4] = np.nan, 0  # the first of a.jpg, the second of b.jpg
    paths = [f"{name}.jpg" for name in "aaabbbccc"]
    columns = {"caption": list("123456789"), "image_path": paths}
    save_part(tmp_path, 0, images, texts, columns)
    files = open_files(tmp_path)
    captions = {k: [c.text for c in r.captions] for k, r in by_key(files).items()}
    assert captions == {
        **{"a.jpg": ["2", "3"], "a.jpg#2": ["1"]},
        **{"b.jpg": ["4", "6"], "b.jpg#2": ["5"], "c.jpg": ["7", "8", "9"]},
    }
    assert by_key(files)["a.jpg"].read() == images[1].astype("<f4").tobytes()
    with pytest.raises(UnusableImage, match="row 4 of text_emb"):
        by_key(files)["b.jpg#2"].read()
    with pytest.raises(InputError, match=r"--embeddings_dir .*row 4 of text_emb/text_emb_0.npy is"):
        files.texts_at(np.array([3, 4]))


def test_values_beyond_float32_and_values_near_its_end(tmp_path: Path) -> None:
    images, texts = draw(10, 1, np.float64), draw(10, 2, np.float64)
    images[2] *= 1e60
    images[3] *= 1e37  # the squares overflow in float32, the values do not
    save_part(tmp_path, 0, images, texts)
    reader, embeddings = read_pairs(open_files(tmp_path), tmp_path)
    positions = reader.pairs()["position"].to_numpy()
    assert sorted(positions) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    np.testing.assert_allclose(embeddings, unit(images[positions]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1.0, np.nan], [np.inf, 1.0], [1e-20, 0.0]])
def test_decode_refuses_what_has_no_direction(tmp_path: Path, values: list[float]) -> None:
    save_one(tmp_path)
    files = open_files(tmp_path)
    with pytest.raises(UnusableImage, match=EMBEDDING_NOT_USABLE):
        files.decode(np.array(values, "<f4").tobytes())
    np.testing.assert_allclose(files.decode(np.array([3, 4], "<f4").tobytes()), [0.6, 0.8], 1e-6)


# --- Photographs ----------------------------------------------------------------------------------


def test_photographs_are_read_from_the_data_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "photographs", tmp_path / "outside.png"
    write(inside, {"a/1.png": picture(1), "2.png": picture(2)})
    outside.write_bytes(picture(3))
    (inside / "link.png").symlink_to(outside)
    paths = ["a/1.png", str(inside / "2.png"), "../outside.png", str(outside), "link.png"]
    paths += ["none.png", "", "a\0b.png"]
    root = tmp_path / "embeddings"
    save_one(root, 8, {"caption": list("abcdefgh"), "image_path": paths})
    source = open_files(root, data_dir=str(inside)).source
    assert source.read_image("a/1.png") == picture(1)
    assert source.read_image(paths[1]) == picture(2)
    for path in paths[2:5]:
        with pytest.raises(UnusableImage, match=OUTSIDE_FOLDER):
            source.read_image(path)
    for path in ("none.png", "a\ufffdb.png"):
        with pytest.raises(FileNotFoundError, match=path):
            source.read_image(path)
    for key in ("metadata_0/6", "unknown"):
        with pytest.raises(KeyError, match=key):
            source.read_image(key)
    wanted = ["a/1.png", paths[1]]
    assert [(key, read()) for key, read in source.read_again(wanted)] == [
        (paths[0], picture(1)),
        (paths[1], picture(2)),
    ]


def test_an_embedding_is_never_given_for_a_photograph(tmp_path: Path) -> None:
    save_one(tmp_path, 5, {"caption": list("abcde"), "image_path": [f"{i}.png" for i in range(5)]})
    files = open_files(tmp_path)
    assert by_key(files)["2.png"].read()
    with pytest.raises(KeyError, match=r"2\.png"):
        files.source.read_image("2.png")


def test_the_folder_of_photographs_must_be_one(tmp_path: Path) -> None:
    save_one(tmp_path)
    with pytest.raises(InputError, match=r"--data_dir /nowhere is not a folder; .*image_path"):
        open_files(tmp_path, data_dir="/nowhere")


# --- What is refused ------------------------------------------------------------------------------


def damaged_tables() -> dict[str, bytes]:
    whole = io.BytesIO()
    pq.write_table(pa.table({"caption": [f"caption {i}" * 20 for i in range(3)]}), whole)
    data = whole.getvalue()
    return {
        "empty": b"",
        "cut": data[:-1],
        "its end alone": data[-50:],
        "a web page": b"<!DOCTYPE html><html></html>",
        "no data": b"PAR1" + b"\0" * (len(data) - 200) + data[-196:],
    }


@pytest.mark.parametrize("data", damaged_tables().values(), ids=damaged_tables())
def test_damaged_tables(tmp_path: Path, data: bytes) -> None:
    save_one(tmp_path, 3)
    (tmp_path / "metadata" / "metadata_0.parquet").write_bytes(data)
    message = problem(tmp_path)
    assert "metadata/metadata_0.parquet is damaged or no parquet (" in message
    assert message.endswith("; write it again as parquet")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"url": ["a"] * 3}, "has no caption column (one of caption, captions, title, text, sent"),
        ({"caption": [1, 2, 3], "key": ["a"] * 3}, "column caption holds int64, not text"),
        ({"caption": [["a"], ["b"], ["c"]]}, "column caption holds list<"),
        ({"caption": ["a"] * 3, "split": [0.5] * 3}, "column split holds double, not text"),
    ],
)
def test_metadata_without_texts(
    tmp_path: Path, columns: Mapping[str, Sequence[Any]], found: str
) -> None:
    save_one(tmp_path, 3, columns)
    message = problem(tmp_path)
    assert "metadata/metadata_0.parquet" in message
    assert found in message


def test_a_caption_column_that_is_named_must_exist(tmp_path: Path) -> None:
    save_one(tmp_path, 3, {"caption": list("abc"), "url": list("abc")})
    with pytest.raises(
        InputError,
        match=r"--caption_column alt: no such column in metadata/metadata_0\.parquet of "
        r"--embeddings_dir .*; there are caption, url$",
    ):
        open_files(tmp_path, caption_column="alt")


@pytest.mark.parametrize("given_dir", [None, "", "/nowhere"])
def test_the_folder_must_be_there(given_dir: str | None) -> None:
    config = replace(settings_of(Path("x")), embeddings_dir=given_dir)
    words = f"{given_dir} is not a folder" if given_dir else "is needed"
    with pytest.raises(InputError, match=f"^--embeddings_dir {words}; give one with img_emb, text"):
        open_embeddings(config, np.random.default_rng(0))

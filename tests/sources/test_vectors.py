"""Files of embeddings that belong together; the truth is what the tests write."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.settings import InputError
from sources.base import SPLITS, UnusableImage
from sources.vectors import EMBEDDING_NOT_USABLE, paired_files
from tests.helpers import write
from tests.sources.embedding_files import (
    WIDTH,
    Trap,
    draw,
    open_files,
    problem,
    save_one,
    save_part,
)

# --- Which files ----------------------------------------------------------------------------------


MAKERS = {
    "img_emb": "--enable_image True",
    "text_emb": "--enable_text True",
    "metadata": "--enable_metadata True",
}


@pytest.mark.parametrize("folder", MAKERS)
def test_every_subfolder_must_hold_files(tmp_path: Path, folder: str) -> None:
    save_one(tmp_path, 3)
    [path] = (tmp_path / folder).iterdir()
    path.rename(path.with_suffix(".other"))
    message = problem(tmp_path)
    assert f"{folder} holds no {path.suffix} files; provide them" in message
    assert MAKERS[folder] in message
    path.with_suffix(".other").unlink()
    (tmp_path / folder).rmdir()
    others = " and ".join(name for name in MAKERS if name != folder)
    assert problem(tmp_path).endswith(
        f": {folder} is missing beside {others}; run clip-retrieval inference again with "
        f"{MAKERS[folder]}"
    )


@pytest.mark.parametrize("folder", ["img_emb", "text_emb"])
def test_images_or_texts_alone(tmp_path: Path, folder: str) -> None:
    save_one(tmp_path, 3)
    missing = [name for name in MAKERS if name != folder]
    for name in missing:
        shutil.rmtree(tmp_path / name)
    flags = " ".join(MAKERS[name] for name in missing)
    message = problem(tmp_path)
    assert f"{' and '.join(missing)} are missing beside {folder}; run clip-retrieval" in message
    assert message.endswith(flags)


def test_metadata_without_embeddings(tmp_path: Path) -> None:
    save_one(tmp_path, 3)
    for name in ("img_emb", "text_emb"):
        shutil.rmtree(tmp_path / name)
    for root in (tmp_path, tmp_path / "metadata"):
        message = problem(root)
        assert "it holds .parquet files but no embeddings; of DataComp's metadata, dow" in message
        assert "--download_npz" in message
        assert "--enable_image True --enable_text True" in message
        assert "may be meant" not in message


def test_folders_of_something_else_are_described(tmp_path: Path) -> None:
    write(tmp_path, {f"{i:05d}.tar": b"" for i in range(12)} | {"a\nb": b"", ".hidden": b""})
    message = problem(tmp_path)
    seen = "it holds 00000.tar, 00001.tar, 00002.tar, 00003.tar, 00004.tar, 8 more; give a folder"
    assert seen in message
    assert "img_emb, text_emb and metadata in it (clip-retrieval's layout), or with a .p" in message
    for path in tmp_path.iterdir():
        path.unlink()
    assert "it holds nothing; give a folder with img_emb" in problem(tmp_path)
    write(tmp_path, {"a\nb": b""})
    assert "it holds a b; give" in problem(tmp_path)


def test_the_folder_that_may_be_meant_is_named(tmp_path: Path) -> None:
    save_one(tmp_path / "laion/part 1", 3)
    for place in ("laion", "laion/part 1/img_emb", "laion/part 1/metadata"):
        assert problem(tmp_path / place).endswith(
            f"; --embeddings_dir {tmp_path / 'laion/part 1'} may be meant"
        )


@pytest.mark.parametrize("folder", ["img_emb", "text_emb", "metadata"])
def test_a_missing_file_is_not_made_up_for_by_the_next(tmp_path: Path, folder: str) -> None:
    for part in range(3):
        save_part(tmp_path, part, draw(3, part), draw(3, 9 + part))
    assert [file for part in paired_files(tmp_path) for file in part][6:] == [
        *("img_emb/img_emb_2.npy", "text_emb/text_emb_2.npy", "metadata/metadata_2.parquet")
    ]
    [path] = (tmp_path / folder).glob("*_1.*")
    path.rename(path.with_stem(f"{folder}_3"))
    message = problem(tmp_path)
    assert "have different numbers; complete or rename" in message
    assert "img_emb" in message
    [path] = (tmp_path / folder).glob("*_3.*")
    path.unlink()
    counts = {name: 3 - (name == folder) for name in ("img_emb", "text_emb", "metadata")}
    listed = ", ".join(f"{name} {n}" for name, n in counts.items())
    assert f"different numbers of files ({listed})" in problem(tmp_path)


def test_links_out_of_the_folder_and_what_is_no_file(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "embeddings", tmp_path / "elsewhere"
    save_one(root, 3)
    save_one(elsewhere, 3)
    path = root / "img_emb" / "img_emb_0.npy"
    path.unlink()
    path.symlink_to(elsewhere / "img_emb" / "img_emb_0.npy")
    assert "img_emb/img_emb_0.npy leads out of the folder; put a copy" in problem(root)
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    assert "img_emb/img_emb_0.npy is no plain file" in problem(root)


# --- Arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_header", [True, False])
@pytest.mark.parametrize("folder", ["img_emb", "text_emb"])
def test_nothing_is_unpickled(tmp_path: Path, folder: str, with_header: bool) -> None:
    root, sprung = tmp_path / "embeddings", tmp_path / "sprung"
    save_one(root, 3)
    path = root / folder / f"{folder}_0.npy"
    trap = np.array([[Trap(sprung)]] * 3, dtype=object)
    if with_header:
        np.save(path, trap)
    else:
        trap.dump(path)
    message = problem(root)
    assert f"{folder}/{folder}_0.npy is damaged or no plain array" in message
    assert "np.save" in message
    assert not sprung.exists()
    np.load(path, allow_pickle=True)
    assert sprung.exists(), "it was no trap"


NO_TABLE = {
    "one dimension": np.ones(3, np.float32),
    "three dimensions": np.ones((3, 2, WIDTH), np.float32),
    "whole numbers": np.ones((3, WIDTH), np.int8),
    "complex": np.ones((3, WIDTH), np.complex64),
    "no width": np.ones((3, 0), np.float32),
    "words": np.array([["a"], ["b"], ["c"]]),
}


@pytest.mark.parametrize("rows", NO_TABLE.values(), ids=NO_TABLE)
@pytest.mark.parametrize("folder", ["img_emb", "text_emb"])
def test_arrays_that_are_no_tables_of_floats(tmp_path: Path, folder: str, rows: np.ndarray) -> None:
    save_one(tmp_path, 3)
    np.save(tmp_path / folder / f"{folder}_0.npy", rows)
    message = problem(tmp_path)
    found = f"{folder}/{folder}_0.npy holds an array of {rows.dtype} with shape {rows.shape}"
    assert found in message


def damaged_arrays() -> dict[str, bytes]:
    whole = io.BytesIO()
    np.save(whole, draw(3, 1))
    data = whole.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("rows.npy", data)
    return {
        "empty": b"",
        "cut in its magic": data[:5],
        "cut in its header": data[:40],
        "cut in its rows": data[:-1],
        "a web page": b"<!DOCTYPE html><html></html>",
        "huge": data.replace(b"(3, 6)", b"(3000000000000, 6)").replace(b" " * 12 + b"\n", b"\n"),
        "negative": data.replace(b"(3, 6), ", b"(-3, 6),"),
        "a call": data.replace(b"(3, 6), ", b"exit()  "),
        "an archive": archive.getvalue(),
    }


@pytest.mark.parametrize("data", damaged_arrays().values(), ids=damaged_arrays())
def test_damaged_arrays(tmp_path: Path, data: bytes) -> None:
    save_one(tmp_path, 3)
    (tmp_path / "text_emb" / "text_emb_0.npy").write_bytes(data)
    message = problem(tmp_path)
    assert "text_emb/text_emb_0.npy" in message
    assert "save the embeddings as a float16 or float32 array" in message


@given(at=st.integers(0, 127), value=st.integers(0, 255), cut=st.integers(0, 200))
@settings(
    max_examples=60,
    deadline=None,  # opening takes files, and the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_damaged_header_is_refused_or_understood(
    tmp_path: Path, at: int, value: int, cut: int
) -> None:
    save_one(tmp_path, 3, dtype=np.float32)
    path = tmp_path / "img_emb" / "img_emb_0.npy"
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data if cut > 100 else data[: len(data) - cut])
    try:
        files = open_files(tmp_path)
    except InputError as error:
        assert str(error).startswith("--embeddings_dir ")  # noqa: PT017 - either is right
        return
    records = [r for split in SPLITS for r in files.source.records(split)]
    for record in records:
        try:
            assert len(record.read()) == 4 * WIDTH
        except UnusableImage as unusable:  # a shifted row may be next to zero
            assert unusable.reason == EMBEDDING_NOT_USABLE  # noqa: PT017 - either is right


# --- Rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 5, 5), (5, 4, 5), (5, 5, 4)])
def test_files_of_different_numbers_of_rows(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    save_part(tmp_path, 0, draw(3, 1), draw(3, 2))
    columns = {"caption": [str(i) for i in range(sizes[2])]}
    save_part(tmp_path, 1, draw(sizes[0], 3), draw(sizes[1], 4), columns)
    assert (
        f"different numbers of rows (img_emb/img_emb_1.npy {sizes[0]}, text_emb/text_emb_1.npy "
        f"{sizes[1]}, metadata/metadata_1.parquet {sizes[2]}); make these files again"
    ) in problem(tmp_path)


def test_different_widths(tmp_path: Path) -> None:
    save_part(tmp_path, 0, draw(3, 1), draw(3, 2)[:, :4])
    assert (
        "img_emb/img_emb_0.npy has rows of 6 values, text_emb/text_emb_0.npy of 4; both must"
    ) in problem(tmp_path)
    save_part(tmp_path, 0, draw(3, 1), draw(3, 2))
    save_part(tmp_path, 1, draw(3, 1)[:, :5], draw(3, 2))
    assert (
        "img_emb/img_emb_1.npy has rows of 5 values, img_emb/img_emb_0.npy of 6; make"
    ) in problem(tmp_path)


def test_no_rows_at_all(tmp_path: Path) -> None:
    save_part(tmp_path, 0, draw(0, 1), draw(0, 2), {"caption": pa.array([], pa.string())})
    assert "the files hold no rows" in problem(tmp_path)

"""DataComp's metadata; the truth is the arrays and tables that the tests write."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import main
from artifacts.settings import InputError
from cli.config import parse_arguments
from data import PairReader
from sources import datacomp
from sources.base import EMPTY_CAPTION, MISSING_CAPTION
from sources.embeddings import EmbeddingFiles
from sources.npz import NpzArray
from sources.vectors import EMBEDDING_NOT_USABLE
from tests.helpers import picture, write
from tests.sources.embedding_files import (
    Trap,
    draw,
    open_files,
    problem,
    save_one,
    settings_of,
    unit,
)

WIDTHS = {"b32": 6, "l14": 9}
SAVERS = {"stored": np.savez, "deflated": np.savez_compressed}
saving = pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)


def uid(number: int) -> str:
    return f"{number + 1:016x}{(7919 * number) % 2**64:016x}"


def tables(n: int, first: int = 0) -> dict[str, list[Any]]:
    """The columns of a shard as DataComp has them."""
    numbers = range(first, first + n)
    return {
        "uid": [uid(i) for i in numbers],
        "url": [f"https://example.org/{i}.jpg" for i in numbers],
        "text": [f"caption {i}" for i in numbers],
        "original_width": [640] * n,
        "original_height": [480] * n,
        "clip_b32_similarity_score": [0.25] * n,
        "clip_l14_similarity_score": [0.2] * n,
        "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]]] * n,
        "sha256": ["0" * 64] * n,
    }


def arrays(n: int, first: int = 0, names: Sequence[str] = ("b32", "l14")) -> dict[str, np.ndarray]:
    """The embeddings of a shard; rows of other pairs differ."""
    found = {}
    for name in names:
        for i, kind in enumerate(("img", "txt")):
            rng = np.random.default_rng([first, i, WIDTHS[name]])
            found[f"{name}_{kind}"] = rng.normal(size=(n, WIDTHS[name])).astype(np.float16)
    return found


def save_shard(
    root: Path,
    stem: str,
    n: int,
    first: int = 0,
    *,
    changes: Mapping[str, Any] | None = None,
    embeddings: Mapping[str, np.ndarray] | None = None,
    save: Any = np.savez,
) -> dict[str, np.ndarray]:
    """Both files of a shard of `n` pairs, the first of which has the number `first`."""
    path = root / stem
    path.parent.mkdir(parents=True, exist_ok=True)
    given = dict(arrays(n, first) if embeddings is None else embeddings)
    save(path.with_suffix(".npz"), **given)
    pq.write_table(pa.table(tables(n, first) | dict(changes or {})), path.with_suffix(".parquet"))
    return given


def save_pool(root: Path, n_shards: int = 3, n: int = 20, **options: Any) -> dict[str, np.ndarray]:
    """Shards of `n` pairs each, and their embeddings one below the other."""
    parts = [save_shard(root, f"{i:032x}", n, n * i, **options) for i in range(n_shards)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_pairs(files: EmbeddingFiles, root: Path, **changes: Any) -> tuple[PairReader, np.ndarray]:
    """A full read of all splits, and the image embedding of every kept pair, in their order."""
    reader = PairReader(files.source, settings_of(root, **changes), decode=files.decode)
    images = {s: list(reader.images(s)) for s in ("test", "validation", "train")}
    pairs = reader.pairs()
    rows = zip(pairs["split"], pairs["image_row"], strict=True)
    return reader, np.stack([images[split][row].pixels for split, row in rows])


def check_rows(files: EmbeddingFiles, root: Path, truth: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Every pair is there with its own embeddings; the pairs by position."""
    reader, images = read_pairs(files, root)
    assert reader.skipped().empty
    pairs = reader.pairs().assign(place=range(len(images))).sort_values("position")
    n = len(truth["b32_img"]) if "b32_img" in truth else len(truth["l14_img"])
    assert pairs["position"].tolist() == list(range(n))
    name = files.architecture
    # One rounding to float32 of a value of at most 1: 6e-8.
    np.testing.assert_allclose(
        images[pairs["place"]], unit(truth[f"{name}_img"]), rtol=0, atol=1e-7
    )
    positions = pairs["position"].to_numpy(np.int64)
    texts = files.texts_at(positions)
    np.testing.assert_allclose(texts, unit(truth[f"{name}_txt"]), rtol=0, atol=1e-7)
    return pairs


# --- What is read ---------------------------------------------------------------------------------


@saving
def test_every_pair_has_its_own_rows(tmp_path: Path, save: Any) -> None:
    truth = save_pool(tmp_path, save=save)
    files = open_files(tmp_path)
    assert files.name == f"b32 embeddings in {tmp_path}"
    assert files.source.name == "embeddings"
    assert f"{files.name}: 60 images, 60 captions; images: " in files.source.description
    pairs = check_rows(files, tmp_path, truth)
    assert pairs["caption"].tolist() == [f"caption {i}" for i in range(60)]
    assert pairs["uid"].tolist() == [uid(i) for i in range(60)]
    assert pairs["key"].tolist() == [f"{i // 20:032x}/{i % 20}" for i in range(60)]
    assert pairs["shard"].tolist() == [f"{i // 20:032x}.npz" for i in range(60)]
    assert pairs["row"].tolist() == [i % 20 for i in range(60)]
    assert set(pairs["member"]) == {""}


def test_the_folder_above_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = save_pool(tmp_path / "metadata")
    pq.write_table(pa.table({"key": ["0"]}), write(tmp_path, {"shards/0.tar": b""}) / "s.parquet")
    os.rename(tmp_path / "s.parquet", tmp_path / "shards/0.parquet")  # as img2dataset leaves it
    files = open_files(tmp_path)
    pairs = check_rows(files, tmp_path, truth)
    assert pairs["shard"].iloc[0] == f"metadata/{0:032x}.npz"
    assert "left out" not in files.source.description
    assert not caplog.records


def test_a_link_to_metadata_is_not_followed_but_named(tmp_path: Path) -> None:
    truth = save_pool(tmp_path / "elsewhere")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/metadata").symlink_to(tmp_path / "elsewhere")
    message = problem(tmp_path / "pool")
    assert "it holds metadata; give a folder with" in message
    assert message.endswith(f"; --embeddings_dir {tmp_path / 'pool/metadata'} may be meant")
    check_rows(open_files(tmp_path / "pool/metadata"), tmp_path, truth)


def test_shards_in_folders_of_their_own_in_natural_order(tmp_path: Path) -> None:
    stems = ["part_2/7", "part_10/7", "part_10/11", "part_10/100"]
    parts = {stem: save_shard(tmp_path, stem, 5, 5 * i) for i, stem in enumerate(stems)}
    write(tmp_path, {"README.md": "", ".hidden.npz": b"", "part_2/.cache/x.npz": b"", "x.json": ""})
    truth = {k: np.concatenate([part[k] for part in parts.values()]) for k in parts[stems[0]]}
    pairs = check_rows(open_files(tmp_path), tmp_path, truth)
    assert pairs["shard"].drop_duplicates().tolist() == [f"{stem}.npz" for stem in stems]
    assert pairs["caption"].tolist() == [f"caption {i}" for i in range(20)]


def test_decoded_shards_are_held_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datacomp, "MAX_HELD_BYTES", 1)
    truth = save_pool(tmp_path, n_shards=5, n=8, save=np.savez_compressed)
    files = open_files(tmp_path)
    decoded: list[str] = []
    decode = NpzArray._decoded

    def noting(array: NpzArray) -> np.ndarray:
        decoded.append(array.name)
        return decode(array)

    monkeypatch.setattr(NpzArray, "_decoded", noting)
    files.texts_at(np.arange(40))
    assert decoded == [f"b32_txt of {i:032x}.npz" for i in range(5)], "each once, in their order"
    decoded.clear()
    files.texts_at(np.array([39, 38, 0, 39]))
    assert decoded == [f"b32_txt of {0:032x}.npz", f"b32_txt of {4:032x}.npz"]
    monkeypatch.undo()
    check_rows(open_files(tmp_path, num_workers=4), tmp_path, truth)


def test_stored_rows_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = save_pool(tmp_path)
    monkeypatch.setattr(NpzArray, "_decoded", lambda array: pytest.fail("decoded"))
    check_rows(open_files(tmp_path), tmp_path, truth)


def test_the_fingerprint_follows_files_and_architecture(tmp_path: Path) -> None:
    save_pool(tmp_path)
    seen = [open_files(tmp_path, seed).source.fingerprint for seed in (0, 1)]
    assert seen[0] == seen[1]
    seen.append(open_files(tmp_path, embedding_arch="l14").source.fingerprint)
    assert open_files(tmp_path, embedding_arch="b32").source.fingerprint == seen[0]
    path = tmp_path / f"{1:032x}.npz"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    seen.append(open_files(tmp_path).source.fingerprint)
    path.unlink()
    seen.append(open_files(tmp_path).source.fingerprint)
    assert len(set(seen)) == len(seen) - 1


# --- Whose embeddings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "wanted", "taken"),
    [
        (("b32", "l14"), "auto", "b32"),
        (("l14", "b32"), "auto", "b32"),
        (("b32", "l14"), "l14", "l14"),
        (("l14",), "auto", "l14"),
        (("b32",), "b32", "b32"),
    ],
)
def test_which_embeddings_are_taken(
    tmp_path: Path,
    held: tuple[str, ...],
    wanted: str,
    taken: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    truth = save_shard(tmp_path, "a", 30, embeddings=arrays(30, names=held))
    files = open_files(tmp_path, embedding_arch=wanted)
    assert files.architecture == taken
    assert files.name == f"{taken} embeddings in {tmp_path}"
    assert files.texts.width == WIDTHS[taken]
    check_rows(files, tmp_path, truth)
    is_choice = wanted == "auto" and len(held) > 1
    said = ["--embedding_arch: b32 is taken; l14 is there too"] if is_choice else []
    assert caplog.messages == said


def test_what_most_files_hold_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        names = ("b32", "l14") if i else ("l14",)
        save_shard(tmp_path, str(i), 5, 5 * i, embeddings=arrays(5, 5 * i, names))
    assert open_files(tmp_path).architecture == "l14"
    assert not caplog.records
    files = open_files(tmp_path, embedding_arch="b32")
    assert "1 of 3 shards left out, 5 rows not read" in files.source.description
    assert "0.npz lacks b32_img and b32_txt; it holds l14_img, l14_txt" in caplog.text


@pytest.mark.parametrize(
    ("names", "wanted", "words"),
    [
        (("b32_img", "b32_txt"), "l14", "l14_img and l14_txt; they hold b32_img, b32_txt"),
        (
            ("b32_img", "l14_txt"),
            "auto",
            "b32_img and b32_txt or l14_img and l14_txt; they hold b32_img, l14_txt",
        ),
        (("a b\nc",), "auto", "l14_txt; they hold a b c"),
        ((), "auto", "l14_txt; they hold no arrays"),
    ],
)
def test_embeddings_that_are_not_there(
    tmp_path: Path, names: tuple[str, ...], wanted: str, words: str
) -> None:
    save_shard(tmp_path, "a", 3, embeddings={name: draw(3, 1) for name in names})
    with pytest.raises(InputError) as caught:
        open_files(tmp_path, embedding_arch=wanted)
    assert str(caught.value).startswith(
        f"--embedding_arch {wanted}: no .npz file of --embeddings_dir {tmp_path} holds "
    )
    assert str(caught.value).endswith(words)


def test_the_flag_is_for_this_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_one(tmp_path)
    open_files(tmp_path, embedding_arch="l14")
    assert caplog.messages == ["--embedding_arch: not used by --embeddings_dir; leave it out"]
    caplog.clear()
    save_pool(tmp_path / "pool")
    open_files(tmp_path / "pool", embedding_arch="l14", image_column="png")
    assert caplog.messages == ["--image_column: not used by --embeddings_dir; leave it out"]
    settings_of(tmp_path, embedding_arch="l14").warn_of_unused((), "--dataset folder")
    assert caplog.messages[1:] == ["--embedding_arch: not used by --dataset folder; leave it out"]
    with pytest.raises(InputError, match="embedding_arch"):
        parse_arguments(["--embeddings_dir", "x", "--embedding_arch", "h14"])


# --- Rows that cannot be used ---------------------------------------------------------------------


@saving
def test_rows_and_captions_that_are_no_use_are_skipped(tmp_path: Path, save: Any) -> None:
    given = arrays(20, 20)
    given["b32_img"][3] = 0
    given["b32_txt"][4, 2] = np.nan
    given["b32_img"][5, 1] = given["b32_txt"][5, 0] = np.inf  # the image is named
    given["l14_img"][6] = np.nan  # not taken
    captions = [None if i == 7 else "  " if i == 8 else f"caption {20 + i}" for i in range(20)]
    save_shard(tmp_path, "0", 20, save=save)
    save_shard(tmp_path, "1", 20, 20, changes={"text": captions}, embeddings=given, save=save)
    files = open_files(tmp_path)
    assert "37 images, 40 captions, 3 rows not usable; " in files.source.description
    reader, _ = read_pairs(files, tmp_path)
    skipped = reader.skipped().sort_values("position")
    assert dict(zip(skipped["position"], skipped["reason"], strict=True)) == {
        **dict.fromkeys([23, 24, 25], EMBEDDING_NOT_USABLE),
        **{27: MISSING_CAPTION, 28: EMPTY_CAPTION},
    }
    assert skipped["detail"].tolist()[:3] == [
        "row 3 of b32_img of 1.npz: its length is 0",
        "row 4 of b32_txt of 1.npz: its values are not all finite",
        "row 5 of b32_img of 1.npz: its values are not all finite",
    ]
    assert len(reader.pairs()) + len(skipped) == 40


def test_uids_that_come_again_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = save_shard(tmp_path, "0", 20), arrays(20, 20)
    for name in second:
        second[name][:2] = first[name][:2]  # the same pairs
    again = [uid(i) for i in (0, 1, 2, 20, *range(24, 40))]  # two more uids of other pairs
    captions = [f"caption {i}" for i in (0, 1, *range(22, 40))]
    save_shard(tmp_path, "1", 20, 20, changes={"uid": again, "text": captions}, embeddings=second)
    files = open_files(tmp_path)
    [message] = caplog.messages
    assert message == (
        f"--embeddings_dir {tmp_path}: 3 rows have the uid of an earlier row; each is a pair of "
        "its own, and --export datacomp writes a uid once"
    )
    reader, _ = read_pairs(files, tmp_path)
    pairs, skipped = reader.pairs(), reader.skipped()
    assert len(pairs) + len(skipped) == 40
    assert len(skipped) == 2, "the same image embedding and caption"
    assert pairs.set_index("position")["uid"][22] == uid(2)


def test_uids_of_another_kind_are_left_out(tmp_path: Path) -> None:
    save_shard(tmp_path, "a", 20, changes={"uid": [uid(i)[:31] for i in range(20)]})
    reader, _ = read_pairs(open_files(tmp_path), tmp_path)
    assert set(reader.pairs()["uid"]) == {""}


# --- Shards that are not whole --------------------------------------------------------------------


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def replace_by_page(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever


def lead_out(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    path.symlink_to(path.rename(elsewhere / path.name))


def empty_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


def one_row_less(path: Path) -> None:
    np.savez(path, **{name: rows[:-1] for name, rows in np.load(path).items()})


def other_widths(path: Path) -> None:
    found = dict(np.load(path))
    np.savez(path, **found | {"b32_txt": found["b32_txt"][:, :5]})


def objects(path: Path) -> None:
    trap = np.array([[Trap(path.parent.parent / "sprung")]] * 20, dtype=object)
    np.savez(path, b32_img=trap, b32_txt=trap)


def no_captions(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns("text"), path)


DAMAGE: dict[str, tuple[Any, str, str, str]] = {
    "no npz": (lose, ".npz", "1.npz is missing; download it with download_upstream.py", "20"),
    "no parquet": (lose, ".parquet", "1.parquet is missing; download it", "20"),
    "npz cut": (cut, ".npz", "1.npz is damaged or no plain array (File is not a zip", "20"),
    "parquet cut": (cut, ".parquet", "1.parquet is damaged or no parquet (", "20"),
    "npz flipped": (flip, ".npz", "of 1.npz is damaged or no plain array (Bad CRC-32", "20"),
    "npz a page": (replace_by_page, ".npz", "1.npz is damaged or no plain array (", "20"),
    "parquet a page": (replace_by_page, ".parquet", "1.parquet is damaged or no parquet", "20"),
    "npz a pipe": (replace_by_pipe, ".npz", "1.npz is no plain file; replace it", "20"),
    "npz elsewhere": (lead_out, ".npz", "1.npz leads out of the folder; put", "at least 0"),
    "parquet elsewhere": (lead_out, ".parquet", "1.parquet leads out of the", "at least 0"),
    "npz empty": (empty_zip, ".npz", "1.npz lacks b32_img and b32_txt; it holds no arrays", "20"),
    "row counts": (
        *(one_row_less, ".npz"),
        "the rows do not fit (b32_img of 1.npz 19 x 6, b32_txt of 1.npz 19 x 6, 1.parquet 20); dow",
        "20",
    ),
    "widths": (other_widths, ".npz", "b32_txt of 1.npz 20 x 5", "20"),
    "objects": (objects, ".npz", "(Python objects, which are never unpickled)", "20"),
    "no captions": (no_captions, ".parquet", "1.parquet has no caption column (one of", "20"),
}


@pytest.mark.parametrize(("damage", "suffix", "words", "n_rows"), DAMAGE.values(), ids=DAMAGE)
def test_a_shard_that_is_not_whole_is_left_out_and_counted(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    suffix: str,
    words: str,
    n_rows: str,
) -> None:
    root = tmp_path / "pool"
    given = [save_shard(root, str(i), 20, 20 * i) for i in range(3)]
    damage(root / f"1{suffix}")
    files = open_files(root)
    said = f"1 of 3 shards left out, {n_rows} rows not read"
    assert f": 40 images, 40 captions, {said}; " in files.source.description
    [message] = caplog.messages
    assert message.startswith(f"--embeddings_dir {root}: {said}: ")
    assert words in message
    assert "\n" not in message
    truth = {name: np.concatenate([given[0][name], given[2][name]]) for name in given[0]}
    pairs = check_rows(files, root, truth)
    assert pairs["uid"].tolist() == [uid(i) for i in (*range(20), *range(40, 60))]
    assert not (tmp_path / "sprung").exists()


def test_many_shards_that_are_not_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_pool(tmp_path, n_shards=7, n=10)
    for i in range(5):
        (tmp_path / f"{i:032x}.npz").unlink()
    assert "5 of 7 shards left out, 50 rows not read" in open_files(tmp_path).source.description
    assert caplog.messages[0].endswith(f"{2:032x}.npz is missing; {ADVICE}; and 2 more")
    for i in (5, 6):
        (tmp_path / f"{i:032x}.npz").write_bytes(b"")
    message = problem(tmp_path)
    assert f": none of 7 shards can be read: {0:032x}.npz is missing; {ADVICE}" in message


ADVICE = "download it with download_upstream.py --download_npz"


def test_a_single_shard_that_is_not_whole(tmp_path: Path) -> None:
    save_pool(tmp_path, n_shards=1)
    (tmp_path / f"{0:032x}.parquet").unlink()
    assert problem(tmp_path).endswith(f": {0:032x}.parquet is missing; {ADVICE}")
    save_pool(tmp_path, n_shards=1)
    with pytest.raises(InputError, match=r"^--caption_column alt: no such column in .*; there are"):
        open_files(tmp_path, caption_column="alt")


def test_shards_of_several_widths(tmp_path: Path) -> None:
    save_shard(tmp_path, "0", 5)
    save_shard(tmp_path, "1", 5, embeddings={"b32_img": draw(5, 1), "b32_txt": draw(5, 2)})
    assert open_files(tmp_path).texts.width == 6
    wide = {name: np.ones((5, 7), np.float16) for name in ("b32_img", "b32_txt")}
    save_shard(tmp_path, "1", 5, embeddings=wide)
    message = problem(tmp_path)
    assert "b32_img of 1.npz has rows of 7 values, b32_img of 0.npz of 6; make" in message


def test_no_rows_at_all(tmp_path: Path) -> None:
    save_shard(tmp_path, "0", 0, changes={"text": pa.array([], pa.string())})
    assert "the files hold no rows" in problem(tmp_path)


# --- Images, held-out pairs -----------------------------------------------------------------------


def test_images_are_not_there(tmp_path: Path) -> None:
    save_pool(tmp_path / "pool")
    files = open_files(tmp_path / "pool")
    key = next(record.key for record in files.source.records("train"))
    with pytest.raises(KeyError, match=key):
        files.source.read_image(key)
    write(tmp_path, {"album/0.png": picture(0)})
    with pytest.raises(InputError) as caught:
        open_files(tmp_path / "pool", data_dir=str(tmp_path / "album"))
    assert str(caught.value) == (
        f"--data_dir {tmp_path / 'album'} is not used: no table of --embeddings_dir "
        f"{tmp_path / 'pool'} has image_path; leave it out, or download the images with "
        "img2dataset and curate these"
    )
    with pytest.raises(InputError, match=r"^--export webdataset needs the images .*img2dataset"):
        parse_arguments(["--embeddings_dir", str(tmp_path / "pool"), "--export", "webdataset"])


def test_held_out_pairs_from_other_metadata(tmp_path: Path) -> None:
    for i, name in enumerate(("pool", "val", "test")):
        save_shard(tmp_path / name / "metadata", "a", 20, 100 * i)
    flags: dict[str, Any] = {
        f"{name}_embeddings_dir": str(tmp_path / name) for name in ("val", "test")
    }
    files = open_files(tmp_path / "pool", **flags)
    reader, _ = read_pairs(files, tmp_path / "pool", **flags)
    pairs = reader.pairs()
    assert pairs["split"].value_counts().to_dict() == {"train": 20, "validation": 10, "test": 10}
    firsts = {"train": 0, "validation": 100, "test": 200}
    expected = [uid(firsts[s] + row) for s, row in zip(pairs["split"], pairs["row"], strict=True)]
    assert pairs["uid"].tolist() == expected
    texts = files.texts_at(pairs["position"].to_numpy(np.int64))
    truth = [
        arrays(20, firsts[s])["b32_txt"][row]
        for s, row in zip(pairs["split"], pairs["row"], strict=True)
    ]
    np.testing.assert_allclose(texts, unit(np.stack(truth)), rtol=0, atol=1e-7)


def test_held_out_pairs_of_another_encoder(tmp_path: Path) -> None:
    save_shard(tmp_path / "pool", "a", 20)
    save_shard(tmp_path / "val", "a", 20, 100, embeddings=arrays(20, 100, ("l14",)))
    val = str(tmp_path / "val")
    with pytest.raises(InputError) as caught:
        open_files(tmp_path / "pool", val_embeddings_dir=val)
    assert str(caught.value) == (
        f"--val_embeddings_dir {val} has embeddings of l14, --embeddings_dir {tmp_path / 'pool'} "
        "of b32; choose with --embedding_arch one that both have"
    )
    files = open_files(tmp_path / "pool", val_embeddings_dir=val, embedding_arch="l14")
    assert files.architecture == "l14"
    save_one(tmp_path / "clip", 20)
    with pytest.raises(InputError, match=r"clip has rows of 6 values, .* of 9; make both with one"):
        open_files(
            *(tmp_path / "pool",),
            val_embeddings_dir=str(tmp_path / "clip"),
            embedding_arch="l14",
        )
    with pytest.raises(InputError, match=r"^--embedding_arch b32: no .npz file of --val_embedd"):
        open_files(tmp_path / "pool", val_embeddings_dir=val, embedding_arch="b32")


# --- From pool to subset --------------------------------------------------------------------------

RUN = (
    "--device cpu --n_clusters 2 --samples_per_cluster 1 --num_epochs 1 --batch_size 8 --n_seeds 2 "
    "--influence_seeds 1 --removal_folds 3 --held_out_repeats 1 --num_workers 0 "
    "--methods full influencespace"
)


def test_from_the_pool_to_a_subset_in_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "metadata", tmp_path / "out"
    given = arrays(30)
    given["b32_img"][4] = 0
    save_shard(root, f"{0:032x}", 30, embeddings=given)
    save_shard(root, f"{1:032x}", 30, 30, save=np.savez_compressed)
    save_shard(root, f"{2:032x}", 30, 60)
    cut(root / f"{2:032x}.npz")
    flags = ["--output_dir", str(out), "--embeddings_dir", str(root), "--export", "datacomp,list"]
    assert main.main([*flags, *RUN.split()]) == 0
    assert "names: the data set's own names" in capsys.readouterr().out
    ledger = pd.read_parquet(out / "stage3/ledger.parquet")
    assert len(ledger) == 60
    skipped = ledger[ledger["decision"] == "skipped"]
    assert skipped["position"].tolist() == [4]
    kept = ledger[ledger["decision"] == "kept"]
    subset = np.load(out / "curated/datacomp/subset.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    names = [f"{first:016x}{second:016x}" for first, second in subset.tolist()]
    assert names == sorted(kept["uid"])
    assert set(names) < {uid(i) for i in range(60)}
    assert kept["uid"].tolist() == [uid(i) for i in kept["position"]]
    listed = pd.read_csv(out / "curated/list/curated.csv", dtype=str)
    assert sorted(listed["uid"]) == names
    page = (out / "results/results.md").read_text()
    assert "1 of 3 shards left out, 30 rows not read" in page
    assert f"b32 embeddings in {root}" in page

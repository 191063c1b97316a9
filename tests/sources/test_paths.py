"""Files that nothing leads out of, text in any encoding; the truth is what the tests write."""

from __future__ import annotations

import codecs
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.base import FILE_TOO_LARGE, MAX_FILE_BYTES, OUTSIDE_FOLDER, UnusableImage
from sources.paths import (
    clean_path,
    decode_text,
    leads_out,
    list_files,
    natural_order,
    read_file,
    real_path,
    split_from_path,
    storable_name,
    unique_names,
)
from tests.helpers import write

# --- What a folder holds --------------------------------------------------------------------------


def test_files_are_listed_with_size_and_time(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": "four", "a/b/c.png": b"\0" * 10, "a/d": ""})
    os.utime(tmp_path / "a/b/c.png", ns=(5, 1_234_567_890_123_456_789))
    listed = list_files(tmp_path)
    assert {name: size for name, (size, _) in listed.items()} == {
        "b.txt": 4,
        "a/b/c.png": 10,
        "a/d": 0,
    }
    assert listed["a/b/c.png"][1] == 1_234_567_890_123_456_789


def test_hidden_files_and_folders_are_not_listed(tmp_path: Path) -> None:
    write(tmp_path, {".hidden": "", "a/.b.png": "", ".git/c": "", "a/.d/e.png": "", "a/f.g": ""})
    assert set(list_files(tmp_path)) == {"a/f.g"}


def test_linked_folders_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, {"out/secret.png": "secret", "root/a.png": "a"})
    root = tmp_path / "root"
    (root / "folder").symlink_to(tmp_path / "out")
    (root / "loop").symlink_to(root)
    (root / "nowhere.png").symlink_to("gone")
    assert {name: size for name, (size, _) in list_files(root).items()} == {
        "a.png": 1,
        "nowhere.png": len("gone"),  # the link's own size: what it leads to is not looked at
    }


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert list_files(tmp_path) == {}


# --- Reading --------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two files, beside one whose name begins like its own."""
    write(tmp_path, {"mine/a.png": b"\x89a", "mine/in/b.png": b"b", "mine2/secret.png": b"s"})
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("key", "content"),
    [("a.png", b"\x89a"), ("in/b.png", b"b"), ("in/../a.png", b"\x89a"), ("in/link.png", b"\x89a")],
)
def test_files_inside_are_read(root: Path, key: str, content: bytes) -> None:
    (root / "in/link.png").symlink_to("../a.png")
    assert read_file(root, key) == content


def test_the_folder_itself_may_be_a_link(tmp_path: Path, root: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert read_file(tmp_path / "link", "in/b.png") == b"b"


@pytest.mark.parametrize(
    "key",
    ["../mine2/secret.png", "in/../../mine2/secret.png", "link", "chain", "folder/secret.png"],
)
def test_what_leads_out_is_not_read(tmp_path: Path, root: Path, key: str) -> None:
    (root / "link").symlink_to(tmp_path / "mine2/secret.png")
    (root / "chain").symlink_to("link")
    (root / "folder").symlink_to("../mine2")
    with pytest.raises(UnusableImage) as raised:
        read_file(root, key)
    assert (raised.value.reason, raised.value.detail) == (OUTSIDE_FOLDER, key)


def test_absolute_paths_are_read_only_inside(tmp_path: Path, root: Path) -> None:
    assert read_file(root, str(root / "a.png")) == b"\x89a"
    with pytest.raises(UnusableImage, match=OUTSIDE_FOLDER):
        read_file(root, str(tmp_path / "mine2/secret.png"))
    with pytest.raises(UnusableImage, match=OUTSIDE_FOLDER):
        read_file(root, "..")


@pytest.mark.parametrize(
    ("target", "outside"),
    [
        *(("a.png", False), ("in/b.png", False), ("in/../a.png", False), ("gone.png", False)),
        *(("../mine2/secret.png", True), ("in/../../mine2/secret.png", True), ("..", True)),
    ],
)
def test_names_and_links_that_lead_out(root: Path, target: str, outside: bool) -> None:
    (root / "in/link").symlink_to(root / target)
    (root / "folder").symlink_to("in")
    for name in (target, "in/link", "folder/link"):
        assert leads_out(root, name) == outside


def test_what_is_no_file_is_not_read(root: Path) -> None:
    os.mkfifo(root / "pipe")  # opening it would wait for ever
    for key in ("in", "", "pipe", "gone.png", "a.png/b"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            read_file(root, key)
    (root / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        read_file(root, "loop")


def test_files_far_too_large_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (root / "huge.png").open("wb") as file:
        file.truncate(2**28 + 1)  # takes no room on the disk
    assert MAX_FILE_BYTES == 2**28
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(UnusableImage) as raised:
        read_file(root, "huge.png")
    assert (raised.value.reason, raised.value.detail) == (FILE_TOO_LARGE, "268,435,457 bytes")


def test_the_largest_file_is_read(root: Path) -> None:
    write(root, {"three": b"123", "four": b"1234"})
    assert read_file(root, "three", max_bytes=3) == b"123"
    with pytest.raises(UnusableImage, match="4 bytes"):
        read_file(root, "four", max_bytes=3)
    assert read_file(root, "four", max_bytes=4) == b"1234"


# --- Paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("a//b/./c/../d.png", "a/b/d.png"),
        ("a\\b\\c.png", "a/b/c.png"),
        (".\\a.png", "a.png"),
        ("../a.png", "../a.png"),
        ("/a/../b.png", "/b.png"),
        ("", ""),
    ],
)
def test_paths_without_detours(path: str, cleaned: str) -> None:
    assert clean_path(path) == cleaned


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("été/猫.png", "été/猫.png"),
        (os.fsdecode(b"\xe9t\xe9.png"), r"\udce9t\udce9.png"),
        ("\ud800", r"\ud800"),
    ],
)
def test_names_that_any_file_can_hold(path: str, name: str) -> None:
    assert storable_name(path) == name


def test_numbers_are_ordered_as_numbers() -> None:
    ordered = ["02", "2", "10", "a", "a1b9", "a1b10", "a/9", "a/10", "b", "²"]
    for seed in range(5):
        mixed = np.random.default_rng(seed).permutation(ordered).tolist()
        assert sorted(mixed, key=natural_order) == ordered


def test_names_become_unique() -> None:
    assert unique_names(["a", "b", "a", "a#2", "a", "b"]) == [
        "a",
        "b",
        "a#2",
        "a#2#2",
        "a#3",
        "b#2",
    ]
    assert unique_names(["a#2", "a", "a"]) == ["a#2", "a", "a#3"]
    assert unique_names(["x", "x", "y", "x"], mark="-") == ["x", "x-2", "y", "x-3"]
    assert unique_names([]) == []


@given(st.lists(st.sampled_from(["a", "a#2", "a#2#2", "a#3", "b"]), max_size=20))
def test_every_name_is_kept_once(names: list[str]) -> None:
    found = unique_names(names)
    assert len(set(found)) == len(found) == len(names)
    seen: set[str] = set()
    for name, key in zip(names, found, strict=True):
        assert key == name or (name in seen and key.startswith(f"{name}#"))
        seen.add(key)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/00000.tar", "train"),
        ("test/a/0.parquet", "test"),
        ("/data/./val/../0", "validation"),
        ("val-000.tar", "validation"),
        ("coco_val2014_01.tar", "validation"),
        ("Validation/a.tar", "validation"),
        ("data/dev/x/y.tar", "validation"),
        ("train/test-1.tar", "test"),
        ("test/train/1.tar", "train"),
        ("testing.tar", "test"),
        ("Flickr_8k.trainImages.txt", "train"),
        ("Flickr_8k.devImages.txt", "validation"),
        ("TEST-00000-of-00002.parquet", "test"),
        ("captions_train2017.json", "train"),
        ("myTESTset.csv", None),
        ("latest/value/strain.tar", None),
        ("00000.tar", None),
    ],
)
def test_a_path_names_a_split(name: str, split: str | None) -> None:
    assert split_from_path(name) == split


# --- The Hub's cache ------------------------------------------------------------------------------

BLOB, OTHER_BLOB = "ab" * 20, "cd" * 32


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot of one repository in a cache that holds another one and a secret."""
    write(
        tmp_path,
        {
            f"hub/datasets--me--pairs/blobs/{BLOB}": "shard",
            f"hub/datasets--me--other/blobs/{OTHER_BLOB}": "of another",
            "secret": "secret",
        },
    )
    folder = tmp_path / "hub/datasets--me--pairs/snapshots/0123"
    folder.mkdir(parents=True)
    return folder


def test_links_of_a_snapshot_are_followed_to_its_own_blobs(snapshot: Path) -> None:
    (snapshot / "a.tar").symlink_to(f"../../blobs/{BLOB}")
    (snapshot / "b.tar").symlink_to(f"../../../datasets--me--other/blobs/{OTHER_BLOB}")
    (snapshot / "c.tar").symlink_to("../../../../secret")
    assert read_file(snapshot, "a.tar") == b"shard"
    assert not leads_out(snapshot, "a.tar")
    for name in ("b.tar", "c.tar"):
        assert leads_out(snapshot, name)
        with pytest.raises(UnusableImage, match=OUTSIDE_FOLDER):
            read_file(snapshot, name)


def test_links_that_were_copied_as_texts_are_followed(snapshot: Path) -> None:
    blob = f"../../blobs/{BLOB}"
    write(snapshot, {"a.tar": blob, "b.tar": blob.replace("ab", "ef"), "c.tar": "../../../secret"})
    assert read_file(snapshot, "a.tar") == b"shard"
    assert Path(real_path(snapshot, "a.tar")).read_bytes() == b"shard"
    for name in ("b.tar", "c.tar"):  # there is no such blob, and it is no blob
        assert read_file(snapshot, name) == (snapshot / name).read_bytes()


def test_elsewhere_such_links_lead_out(tmp_path: Path) -> None:
    write(tmp_path, {f"mine/blobs/{BLOB}": "shard", "mine/snapshots/1/a": f"../../blobs/{BLOB}"})
    folder = tmp_path / "mine/snapshots/1"
    (folder / "link").symlink_to(f"../../blobs/{BLOB}")
    assert leads_out(folder, "link")
    assert read_file(folder, "a") == f"../../blobs/{BLOB}".encode()


# --- Text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("été 猫".encode(), "été 猫"),
        (b"\xef\xbb\xbfa\r\nb\n", "a\r\nb\n"),
        (b"\xff\xfea\0\n\0\xe9\0", "a\né"),
        (b"\xfe\xff\0a\0\n\x73\x2b", "a\n猫"),
        (b"", ""),
        (b"\xef\xbb\xbf", ""),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa"),  # one mark, the second is text
    ],
)
def test_unicode_is_read_without_a_notice(
    caplog: pytest.LogCaptureFixture, data: bytes, text: str
) -> None:
    assert decode_text(data, "t.txt") == text
    assert not caplog.records


def test_lines_that_are_not_utf8_are_windows_1252(caplog: pytest.LogCaptureFixture) -> None:
    data = "été\n".encode() + b"\xe9t\xe9 \x80\nplain\n\x93quoted\x94"
    with caplog.at_level(logging.WARNING):
        assert decode_text(data, "my/t.csv") == "été\nété €\nplain\n“quoted”"
    assert [record.getMessage() for record in caplog.records] == [
        "my/t.csv: 2 lines are not UTF-8; read as Windows-1252"
    ]
    decode_text(b"\xe9", "my/t.csv")
    assert caplog.messages[1] == "my/t.csv: 1 line is not UTF-8; read as Windows-1252"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\0b\nc", "a\ufffdb\nc"),
        (b"\xe9\0", "é\ufffd"),
        (b"\xff\xfea\0\0\0", "a\ufffd"),
        (b"\xff\xfea\0b", "a\ufffd"),  # cut in the middle of a character
        (b"\xff\xfe\0\xd8a\0", "\ufffda"),  # half a pair of surrogates
        (b"\x81", "\ufffd"),  # nothing in Windows-1252
        (b"\xed\xa0\x80", "í\xa0€"),  # a surrogate is no UTF-8
    ],
)
def test_what_no_encoding_explains_is_marked(data: bytes, text: str) -> None:
    assert decode_text(data, "t.txt") == text


@given(st.binary(max_size=60), st.sampled_from([b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE]))
def test_any_bytes_make_text_that_any_file_can_hold(data: bytes, mark: bytes) -> None:
    text = decode_text(mark + data, "t.txt")
    assert "\0" not in text
    assert text.encode().decode() == text


@given(st.text().filter(lambda text: "\0" not in text))
def test_text_comes_back_as_written(text: str) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        assert decode_text(text.encode(encoding), "t.txt") == text
    assert decode_text(text.encode(), "t.txt") == text.removeprefix("\ufeff")

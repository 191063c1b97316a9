"""WebDataset shards; the truth is what `tarfile` wrote, or bytes laid out by hand."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from artifacts.settings import InputError
from data import open_source
from sources import shard_files
from sources.base import DUPLICATE_KEY, MISSING_CAPTION, MISSING_FILE, SPLITS, DataConfig
from sources.tar import TRUNCATED_SHARD
from tests.helpers import SMALL, picture, read_all, write
from tests.sources.tars import (
    BLOCK,
    UID,
    Member,
    open_shards,
    outcome,
    pair,
    pairs,
    records,
    records_of,
    tar,
    texts,
    warnings_in,
)

# --- What a shard holds ---------------------------------------------------------------------------


CAPTIONS: dict[str, tuple[dict[str, bytes | str], list[str | None]]] = {
    "text": ({"txt": " A cat\n"}, ["A cat"]),
    "lines": ({"txt": "A cat\r\nsits\non a mat\n\n"}, ["A cat sits on a mat"]),
    "mark": ({"txt": b"\xef\xbb\xbfA cat"}, ["A cat"]),
    "utf-16": ({"txt": "A\ncat".encode("utf-16")}, ["A cat"]),
    "mark of utf-16 after that of utf-8": ({"txt": b"\xef\xbb\xbf\xff\xfeA"}, ["ÿþA"]),
    "windows": ({"txt": b"caf\xe9\nnoir"}, ["café noir"]),
    "empty": ({"txt": ""}, [""]),
    "json": ({"json": '{"url": "u", "caption": "A dog"}'}, ["A dog"]),
    "title": ({"json": '{"Title": "A dog", "text": "other"}'}, ["A dog"]),
    "list": ({"json": '{"captions": ["One", "Two", null]}'}, ["One", "Two", None]),
    "empty list": ({"json": '{"caption": []}'}, [None]),
    "null": ({"json": '{"caption": null}'}, [None]),
    "number": ({"json": '{"caption": 3}'}, [None]),
    "no field": ({"json": '{"url": "u"}'}, [None]),
    "no object": ({"json": '["A dog"]'}, [None]),
    "broken": ({"json": '{"caption": "A d'}, [None]),
    "deep": ({"json": "[" * 100_000}, [None]),
    "surrogate": ({"json": '{"caption": "\\ud800"}'}, ["\ud800"]),
    "text wins": ({"json": '{"caption": "A dog"}', "txt": "A cat"}, ["A cat"]),
    "text wins over broken": ({"txt": "A cat", "json": "{"}, ["A cat"]),
    "upper case": ({"TXT": "A cat"}, ["A cat"]),
    "dots": ({"b.txt": "not this", "txt": "A cat"}, ["A cat"]),
    "neither": ({"cls": "3"}, [None]),
}


@pytest.mark.parametrize(("members", "expected"), CAPTIONS.values(), ids=CAPTIONS)
def test_captions(
    tmp_path: Path, members: dict[str, bytes | str], expected: list[str | None]
) -> None:
    content: list[Member] = [("a.png", picture(1))]
    content += [(f"a.{extension}", text) for extension, text in members.items()]
    (found,) = records_of(tmp_path, *content)
    assert texts(found) == expected
    assert [c.position for c in found.captions] == list(range(len(expected)))
    assert outcome(found) == picture(1)


@pytest.mark.parametrize(
    ("uid", "expected"),
    [(UID, UID), (UID[1:], ""), (UID + "\n", ""), ("g" + UID[1:], ""), (int("1" * 32), "")],
)
def test_uid(tmp_path: Path, uid: object, expected: str) -> None:
    labels = json.dumps({"uid": uid, "caption": "json"})
    members: list[Member] = [("a.png", picture(1)), ("a.json", labels), ("a.txt", "text")]
    (found,) = records_of(tmp_path, *members)
    assert (found.uid, texts(found)) == (expected, ["text"])


def test_encodings_are_noticed_once_a_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members: list[Member] = []
    for i in range(20):
        members += [(f"{i:02d}.png", picture(i)), (f"{i:02d}.txt", f"été {i}".encode("cp1252"))]
    assert [texts(r) for r in records_of(tmp_path, *members)] == [[f"été {i}"] for i in range(20)]
    (warning,) = warnings_in(caplog)
    assert warning.startswith("s.tar: 20 lines are not UTF-8")


def test_texts_that_cannot_be_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members: list[Member] = []
    for i, (extension, text) in enumerate(
        [
            *(("txt", "x" * (2**20 + 1)), ("txt", "x" * 2**20)),
            *(("json", json.dumps({"caption": "x", "more": "x" * 2**22})), ("json", "{")),
        ]
    ):
        members += [(f"{i}.png", picture(i)), (f"{i}.{extension}", text)]
    found = records_of(tmp_path, *members, ("4.png", picture(4)), ("4.txt", "t"), ("4.json", "]"))
    assert [texts(r) for r in found] == [[None], ["x" * 2**20], [None], [None], ["t"]]
    (warning,) = warnings_in(caplog)
    assert "s.tar: 4 texts are damaged or too large to be captions, the first is 0.txt" in warning


def test_nothing_is_left_out(tmp_path: Path) -> None:
    lonely: list[Member] = [("x.png", picture(50)), ("y.txt", "no picture")]
    root = write(tmp_path, {"s.tar": tar([*pairs(range(20)), *lonely])})
    source = open_shards(root / "s.tar")
    assert "1 shards in" in source.description
    assert "s.tar: 21 images, 22 captions" in source.description
    skipped = read_all(source)[0].skipped().set_index("key")
    assert skipped["reason"].to_dict() == {"s/x": MISSING_CAPTION, "s/y": MISSING_FILE}
    assert skipped["shard"].tolist() == ["s.tar", "s.tar"]


def test_the_first_image_of_a_sample_is_used(tmp_path: Path) -> None:
    members: list[Member] = [("a.webp", picture(1)), ("a.txt", "t"), ("a.png", picture(2))]
    (found,) = records_of(tmp_path, *members)
    assert (found.member, outcome(found)) == ("a.webp", picture(1))


def test_keys_that_come_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members: list[Member] = [
        *pair(1),
        *pair(2),
        *pair(1, "again"),  # not side by side
        *pair(3),
        *pair(3, "side by side"),
        ("001.txt", "and again"),
        ("001#2.png", picture(9)),  # another sample's own key
        ("001#2.txt", "other"),
    ]
    found = records_of(tmp_path, *members)
    expected = [
        ("s/001", picture(1), "picture 1"),
        ("s/002", picture(2), "picture 2"),
        ("s/001#3", DUPLICATE_KEY, "again"),
        ("s/003", picture(3), "picture 3"),
        ("s/003#2", DUPLICATE_KEY, "side by side"),
        ("s/001#4", DUPLICATE_KEY, "and again"),
        ("s/001#2", picture(9), "other"),
    ]
    assert [(r.key, outcome(r), *texts(r)) for r in found] == expected
    (warning,) = warnings_in(caplog)
    assert "s.tar: 3 samples have a key that was there before, the first is 001;" in warning


def test_keys_of_other_shards_are_others(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": tar(pair(1)), "b.tar": tar(pair(1)), "c.tar": tar([("d/1.png", "")])})
    write(tmp_path, {"c/d.tar": tar([("1.png", picture(7))])})
    found = records(tmp_path)
    assert [r.key for r in found] == ["a/001", "b/001", "c/d/1", "c/d/1#2"]
    assert [outcome(r) for r in found] == [picture(1), picture(1), b"", picture(7)]


def test_a_shard_without_images_tells_what_it_holds(tmp_path: Path) -> None:
    members = [(f"{i}.{e}", "x") for i in range(3) for e in ("npy", "txt")]
    source = open_shards(write(tmp_path, {"a.tar": tar(members)}))
    assert "0 images, 3 captions, members of other kinds ignored (3 .npy)" in source.description


# --- Damage ---------------------------------------------------------------------------------------


def test_a_cut_shard_among_others(tmp_path: Path) -> None:
    data = tar([*pairs(range(20)), ("x.txt", "its image is cut"), ("x.png", picture(7))])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        cut = archive.getmember("x.png").offset_data + 10
    write(tmp_path, {"1.tar": data[:cut], "2.tar": tar(pairs(range(30, 50)))})
    reader, _ = read_all(open_shards(tmp_path))
    assert len(reader.pairs()) == 40
    columns = ["key", "reason", "detail", "caption"]
    assert reader.skipped()[columns].to_numpy().tolist() == [
        ["1/x", TRUNCATED_SHARD, "x.png", "its image is cut"]
    ]


def test_a_shard_that_shrinks_later(tmp_path: Path) -> None:
    found = records_of(tmp_path, *pairs(range(3)))
    os.truncate(tmp_path / "s.tar", 5 * BLOCK + 9)
    assert [outcome(r) for r in found] == [picture(0), TRUNCATED_SHARD, TRUNCATED_SHARD]


UNUSABLE: dict[str, tuple[bytes, str]] = {
    "text": (b"hello " * 1000, "is no tar file"),
    "short": (b"hello", "is no tar file"),
    "empty": (b"", "is empty"),
    "end mark": (tar([]), "is empty"),
    "other members": (tar([("README", "x"), ("a.npy", "x")]), "no image and no text among 2 mem"),
    "hidden members": (tar([("._a.png", "x"), ("in/.b.txt", "x")]), "no image and no text"),
}


@pytest.mark.parametrize(("data", "problem"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_shards(
    tmp_path: Path, data: bytes, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"bad.tar": data})
    with pytest.raises(InputError, match=f"--data_dir .* nothing usable: 1 shards, .*{problem}"):
        open_shards(tmp_path)
    caplog.clear()
    write(tmp_path, {"good.tar": tar(pair(1))})
    assert [r.key for r in records(tmp_path)] == ["good/001"]
    (warning,) = warnings_in(caplog)
    assert warning.startswith("bad.tar ")
    assert warning.endswith("; it is left out")


def test_what_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe.tar")  # opening it would wait for ever
    (tmp_path / "gone.tar").symlink_to("nowhere")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(InputError, match=r"2 shards, the first gone.tar cannot be read \(No such"):
        open_shards(tmp_path)
    write(tmp_path, {"x.tar": tar(pair(1))})
    caplog.clear()
    assert [r.key for r in records(tmp_path)] == ["x/001"]
    assert [w.partition(" ")[0] for w in warnings_in(caplog)] == ["gone.tar", "pipe.tar"]


# --- Which shards ---------------------------------------------------------------------------------


BRACES = {
    "": [""],
    "a": ["a"],
    "{a,b}": ["a", "b"],
    "x{a,b}y{c,}z": ["xaycz", "xayz", "xbycz", "xbyz"],
    "{000..003}": ["000", "001", "002", "003"],
    "{8..11}": ["8", "9", "10", "11"],
    "{08..11}": ["08", "09", "10", "11"],
    "{9..010}": ["009", "010"],
    "{0..0}": ["0"],
    "{3..1}": ["3", "2", "1"],
    "{-1..1}": ["-1", "0", "1"],
    "{-01..1}": ["-01", "000", "001"],
    "{0..9..4}": ["0", "4", "8"],
    "{9..0..-4}": ["9", "5", "1"],
    "{0..1..0}": ["0", "1"],
    "{a,{1..2},c}": ["a", "1", "2", "c"],
    "{a{1,2},b}{x,y}": ["a1x", "a1y", "a2x", "a2y", "bx", "by"],
    "{,a}": ["", "a"],
    "{}": ["{}"],
    "{a}": ["{a}"],
    "{a{b,c}}": ["{ab}", "{ac}"],
    "{a,b": ["{a,b"],
    "{a,{b,c}": ["{a,b", "{a,c"],
    "a}{b,c}": ["a}b", "a}c"],
    "{1..b}": ["{1..b}"],
    "{1...3}": ["{1...3}"],
    "{²..3}": ["{²..3}"],
    "{a..c}{C..A..2}": ["aC", "aA", "bC", "bA", "cC", "cA"],
    "{{\\a}{1,2}\\{": ["{{\\a}1\\{", "{{\\a}2\\{"],
    "{}},{<1>..2}": ["{}},{<1>..2}"],
}


@pytest.mark.parametrize(("pattern", "expected"), BRACES.items())
def test_braces_expand_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    assert list(shard_files.expand_braces(pattern)) == expected
    assert shard_files._n_expanded(pattern) == len(expected)


def test_a_folder_of_shards_in_natural_order(tmp_path: Path) -> None:
    names = ["2.tar", "10.tar", "a/1.tar", "a/02.tar", "a/2.tar", "a/b/3-9.tar", "a/b/3-10.tar"]
    for number, name in enumerate(reversed(names)):
        write(tmp_path, {name: tar(pair(number))})
    write(tmp_path, {".hidden/4.tar": tar(pair(1)), "a/.5.tar": tar(pair(1)), "a/6.txt": "none"})
    assert [r.shard for r in records(tmp_path)] == names


def test_one_shard_and_patterns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/000", "train/001", "train/002", "val/000", "a{b,c}d"):
        write(tmp_path, {f"{name}.tar": tar(pairs(range(3)))})
    caplog.clear()

    def shown(pattern: str) -> list[str]:
        return list(dict.fromkeys(r.shard for r in records(tmp_path / pattern)))

    assert shown("train/001.tar") == ["001.tar"]
    assert shown("train/{002..000}.tar") == ["000.tar", "001.tar", "002.tar"]
    assert shown("{val,train}/000.tar") == ["train/000.tar", "val/000.tar"]
    assert shown("{train,train}/000.tar") == ["000.tar"]
    assert shown("a{b,c}d.tar") == ["a{b,c}d.tar"]  # a file of this name comes first
    assert not warnings_in(caplog)
    assert shown("{train,val}/{000..002}.tar") == [
        *("train/000.tar", "train/001.tar", "train/002.tar", "val/000.tar")
    ]
    (warning,) = warnings_in(caplog)
    assert f"2 of 6 shards are missing, the first is {tmp_path}/val/001.tar" in warning


def test_a_pattern_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"0.tar": tar(pair(0)), "1.tar": tar(pair(1)), "in/2.tar": tar(pair(2))})
    monkeypatch.chdir(tmp_path)
    assert [r.key for r in records("{0..1}.tar")] == ["0/000", "1/001"]
    assert [r.key for r in records("./in/../1.tar")] == ["1/001"]
    found = records("{1,in/2}.tar")
    assert [r.key for r in found] == ["1/001", "in/2/002"]
    assert [outcome(r) for r in found] == [picture(1), picture(2)]


@pytest.mark.parametrize(
    ("files", "data_dir", "message"),
    [
        ({}, None, "--data_dir is needed"),
        ({}, "", "--data_dir is needed"),
        ({}, "nowhere", "nowhere: no such file or folder"),
        ({}, "{0..3}.tar", r"\{0..3\}.tar: no such file or folder, and no .tar shard in \.; give"),
        (
            {f"s/{i}.tar": "" for i in (10, 2, 7, 1)},
            "s/{00..03}.tar",
            r"no such file or folder; s holds 1.tar, 2.tar, 7.tar and 1 more; give a folder",
        ),
        ({"a.tar": ""}, "b.tar", r"b.tar: no such file or folder; \. holds a.tar; give"),
        ({}, "{0..1000000}.tar", "names more than 100,000 shards"),
        ({}, "{0..999999999999}.tar", "names more than 100,000 shards"),  # nor are they all made
        ({}, "{a/{0..99999}/{0..99999},b}.tar", "names more than 100,000 shards"),
        ({}, "{a/{1..50000},b/{1..50000}}.tar", "no such file or folder"),
        ({}, ".", r"--data_dir \. holds no .tar shards$"),
        ({"a.tar.gz": ""}, ".", "no .tar shards; 1 shards are compressed, .* a.tar.gz; decompress"),
        ({"a.tgz": ""}, "a.tgz", "a.tgz is no .tar shard; decompress it"),
        ({"a.zip": ""}, "a.zip", "a.zip is no .tar shard; give .tar shards"),
        ({"a.tar": ""}, "{a,/a}.tar", "mixes absolute and relative paths"),
    ],
)
def test_there_are_no_shards(
    tmp_path: Path,
    files: dict[str, bytes | str],
    data_dir: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(write(tmp_path, files))
    config = DataConfig(dataset="webdataset", data_dir=data_dir)
    with pytest.raises(InputError, match=message):
        open_source(config, rng=np.random.default_rng(0))


def test_compressed_shards_among_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"a.tar": tar(pair(1)), "b.tar.gz": b"x", "c.tgz": b"x"})
    assert [r.key for r in records(tmp_path)] == ["a/001"]
    (warning,) = warnings_in(caplog)
    assert warning.endswith("2 shards are compressed, the first is b.tar.gz; decompress them")


def test_links_out_of_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"secret.tar": tar(pair(9)), "in/here.tar": tar(pair(1))})
    write(tmp_path, {"in2/sibling.tar": tar(pair(8))})
    root = tmp_path / "in"
    (root / "inner.tar").symlink_to("here.tar")
    (root / "outer.tar").symlink_to("../secret.tar")
    assert [r.key for r in records(root)] == ["here/001", "inner/001"]
    (warning,) = warnings_in(caplog)
    assert "1 links lead out of it, the first is outer.tar; put copies" in warning
    (root / "here.tar").unlink()
    (root / "inner.tar").unlink()
    with pytest.raises(InputError, match=r"holds no .tar shards; 1 links lead out"):
        open_shards(root)
    (root / "alike.tar").symlink_to("../in2/sibling.tar")  # of a folder whose name begins alike
    with pytest.raises(InputError, match=r"holds no .tar shards; 2 links lead out"):
        open_shards(root)
    assert [r.key for r in records(root / "outer.tar")] == ["outer/009"]  # named by the user


def test_official_splits(tmp_path: Path) -> None:
    parts = {"train/00000": range(12), "more": range(20, 23), "val/0": range(30, 34)}
    for name, numbers in (parts | {"cc3m-test-0": range(40, 42)}).items():
        write(tmp_path, {f"{name}.tar": tar(pairs(numbers))})
    source = open_shards(tmp_path)
    assert {split: {r.shard for r in source.records(split)} for split in SPLITS} == {
        "train": {"train/00000.tar", "more.tar"},
        "validation": {"val/0.tar"},
        "test": {"cc3m-test-0.tar"},
    }
    assert "drawn at random" not in source.description
    assert "test and validation drawn at random" in open_shards(tmp_path / "train").description


# --- Reading --------------------------------------------------------------------------------------


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    for shard in range(3):
        numbers = range(40 * shard, 40 * (shard + 1))
        write(tmp_path, {f"{shard}.tar": tar(pairs(numbers), tarfile.PAX_FORMAT)})
    limits = {"max_train_samples": 200, "max_val_samples": 20, "max_test_samples": 20}
    (alone, pixels), (shared, pixels_shared) = (
        read_all(open_shards(tmp_path, **limits), num_workers=n, **limits) for n in (0, 16)
    )
    assert len(alone.pairs()) == 120
    assert alone.pairs().equals(shared.pairs())
    for row in shared.pairs().itertuples():
        number = int(str(row.caption).split()[1])
        assert pixels_shared[str(row.split)][int(str(row.image_row)), 0] == number
    assert all(np.array_equal(pixels[split], pixels_shared[split]) for split in SPLITS)


def test_an_image_is_read_again(tmp_path: Path) -> None:
    source = open_shards(write(tmp_path, {"s.tar": tar(pairs(range(20)))}))
    assert source.read_image("s/007") == picture(7)
    with pytest.raises(KeyError):
        source.read_image("s/020")


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"

    def fingerprint(caption: str, seconds: int, seed: int = 0) -> str:
        write(tmp_path, {"s.tar": tar([*pairs(range(9)), *pair(9, caption)])})
        os.utime(path, (seconds, seconds))
        return open_shards(path, seed=seed).fingerprint

    first = fingerprint("one", 1)
    assert fingerprint("one", 1, seed=1) == first
    others = {fingerprint("two", 1), fingerprint("one", 2)}
    path.rename(tmp_path / "t.tar")
    others.add(open_shards(tmp_path / "t.tar").fingerprint)
    assert len({first, *others}) == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_pairs_as_in_a_folder(tmp_path: Path, seed: int) -> None:
    members = pairs(range(60))
    files = dict(member for member in members if isinstance(member, tuple))
    write(tmp_path / "folder", files)
    write(tmp_path, {"s.tar": tar(members)})
    limits = {"max_train_samples": 30, "max_val_samples": 5, "max_test_samples": 5}
    config = DataConfig(dataset="folder", data_dir=str(tmp_path / "folder"), **SMALL | limits)
    folder = open_source(config, rng=np.random.default_rng(seed))
    source = open_shards(tmp_path / "s.tar", seed, **limits)
    for split in SPLITS:
        expected, found = (
            [(outcome(r), texts(r)) for r in each.records(split)] for each in (folder, source)
        )
        assert found == expected
        assert len(found) > 0

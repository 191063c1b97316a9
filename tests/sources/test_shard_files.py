"""Which files are shards; the truth is what was written, and what a shell makes of a pattern."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from artifacts.settings import InputError
from data import open_source
from sources import shard_files
from sources.base import DataConfig
from tests.helpers import picture, write
from tests.sources.tars import open_shards, outcome, pair, pairs, records, tar, warnings_in

# --- Patterns and folders -------------------------------------------------------------------------


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
    assert len(list(records(tmp_path / "{train,train}/00{0,{0..1}}.tar"))) == 6, "each read once"
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


# --- What is packed -------------------------------------------------------------------------------


def unread(data_dir: Path) -> tuple[str, ...]:
    return open_shards(data_dir).unread


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_a_packed_shard_under_the_name_of_one(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "my shards"
    path = write(folder, {"a b.tar": PACKERS[kind](tar(pair(1)))}) / "a b.tar"
    with pytest.raises(
        InputError, match=rf"a b.tar is compressed \({kind}\); unpack it: "
    ) as error:
        open_shards(path)
    write(folder, {"good.tar": tar(pair(2))})
    caplog.clear()
    assert [r.key for r in records(folder)] == ["good/002"]
    (warning,) = warnings_in(caplog)
    assert warning.startswith(f"a b.tar is compressed ({kind}); unpack it: mv ")
    (phrase,) = unread(folder)
    assert phrase.startswith("1 of 2 shards could not be read, the first is a b.tar, which is comp")
    command = str(error.value).partition("unpack it: ")[2].partition("; give WebDataset")[0]
    if shutil.which(command.partition(" && ")[2].split()[0]):
        subprocess.run(["/bin/sh", "-c", command], check=True)
        assert [r.key for r in records(path)] == ["a b/001"]


def test_zstandard_is_known_by_its_mark(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.tar": b"\x28\xb5\x2f\xfd" + bytes(600)}) / "a.tar"
    with pytest.raises(
        InputError, match=r"compressed \(zst\).* && unzstd --rm \S+/a.tar.zst; give"
    ):
        open_shards(path)


def test_packed_shards_by_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, {"0.tar": tar(pair(0)), "a.tar.gz": b"x", "b.tzst": b"x", "c.zip": b"x"})
    assert unread(root) == (
        f"2 shards are compressed, the first is a.tar.gz; decompress them (gunzip {root}/a.tar.gz)",
        f"1 files are zip, the first is c.zip; unpack them (unzip {root}/c.zip)",
    )
    assert len(warnings_in(caplog)) == 2
    for name in ("0.tar", "a.tar.gz", "b.tzst"):
        (root / name).unlink()
    with pytest.raises(InputError, match=r"no .tar shards; 1 files are zip, .*unzip \S+/c.zip\)$"):
        open_shards(root)
    with pytest.raises(InputError, match=r"c.zip is no .tar shard; .* unpack it: unzip \S+/c.zip$"):
        open_shards(root / "c.zip")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"PK\x03\x04" + bytes(100), r"is a zip file; unpack it: unzip \S+/a.tar"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS; git lfs pull"),
        (b"../../blobs/" + b"0" * 64, "a blob that is not there; download it again"),
    ],
)
def test_what_stands_for_a_shard(tmp_path: Path, content: bytes, fault: str) -> None:
    write(tmp_path, {"a.tar": content})
    with pytest.raises(InputError, match=f"1 shards, the first a.tar .*{fault}.*; give WebDataset"):
        open_shards(tmp_path)
    write(tmp_path, {"b.tar": tar(pair(1)), "c.tar": content})
    assert [r.key for r in records(tmp_path)] == ["b/001"]
    (phrase,) = unread(tmp_path)
    assert re.match(f"2 of 3 shards could not be read, the first is a.tar, which .*{fault}", phrase)


def test_shards_that_are_missing_are_told(tmp_path: Path) -> None:
    write(tmp_path, {"0.tar": tar(pair(0))})
    expected = f"3 of 4 shards are missing, the first is {tmp_path}/1.tar"
    assert unread(tmp_path / "{0..3}.tar") == (expected,)


def test_links_out_name_what_works(tmp_path: Path) -> None:
    write(tmp_path, {"in/0.tar": tar(pair(0)), "other/1.tar": tar(pair(1))})
    (tmp_path / "in/1.tar").symlink_to("../other/1.tar")
    assert unread(tmp_path / "in") == (
        "1 links lead out of it, the first is 1.tar; put copies in their place, or give the folder "
        f"that they lead to ({tmp_path.resolve()}/other)",
    )


def test_stars_find_files(tmp_path: Path) -> None:
    for name in ("10", "9", "x[1]", "in/1"):
        write(tmp_path, {f"{name}.tar": tar(pair(1))})

    def shown(pattern: str) -> list[str]:
        return [record.shard for record in records(tmp_path / pattern)]

    assert shown("*.tar") == ["9.tar", "10.tar", "x[1].tar"]
    assert shown("[0-9].tar") == ["9.tar"]
    assert shown("{in/*,1?}.tar") == ["10.tar", "in/1.tar"]
    assert shown("x[1].tar") == ["x[1].tar"]  # a file of this name comes first
    with pytest.raises(InputError, match=r"b\*.tar: no such file or folder"):
        records(tmp_path / "b*.tar")


# --- The Hub's cache ------------------------------------------------------------------------------


def cache(root: Path, revisions: dict[str, dict[str, int]], *, as_texts: bool = False) -> Path:
    """A repository of the Hub's cache: of each revision, the number of the pair in each shard."""
    repository = root / "datasets--me--pairs"
    for revision, shards in revisions.items():
        for name, number in shards.items():
            blob = f"{number:064x}"
            write(repository, {f"blobs/{blob}": tar(pair(number))})
            path = repository / "snapshots" / revision / name
            path.parent.mkdir(parents=True, exist_ok=True)
            target = "../" * (2 + name.count("/")) + f"blobs/{blob}"
            if as_texts:
                path.write_text(target)
            else:
                path.symlink_to(target)
    return repository


@pytest.mark.parametrize("as_texts", [False, True])
def test_shards_in_the_hubs_cache(
    tmp_path: Path, as_texts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    repository = cache(tmp_path, {"0123": {"0.tar": 1, "val/0.tar": 2}}, as_texts=as_texts)
    snapshot = repository / "snapshots/0123"
    expected = [("0/001", picture(1)), ("val/0/002", picture(2))]
    for place in (snapshot, repository):
        assert [(r.key, outcome(r)) for r in records(place)] == expected
    assert [(r.key, outcome(r)) for r in records(snapshot / "*.tar")] == expected[:1]
    assert [(r.key, outcome(r)) for r in records(snapshot / "{0..0}.tar")] == expected[:1]
    assert [(r.key, outcome(r)) for r in records(snapshot / "0.tar")] == expected[:1]
    assert open_shards(snapshot).fingerprint == open_shards(repository).fingerprint
    assert warnings_in(caplog) == []


def test_one_snapshot_of_a_repository_is_read(tmp_path: Path) -> None:
    repository = cache(tmp_path, {"aaaa": {"0.tar": 1}, "bbbb": {"0.tar": 2}})
    for revision, number in (("aaaa", 1), ("bbbb", 2)):
        write(repository, {"refs/main": f"{revision}\n"})
        source = open_shards(repository)
        assert [outcome(r) for r in records(repository)] == [picture(number)]
        assert source.notes[0] == f"snapshot {revision} of 2 in the Hub's cache"
    (repository / "refs/main").unlink()
    os.mkfifo(repository / "refs/main")  # opening it would wait for ever
    os.utime(repository / "snapshots/aaaa", (9, 9))
    assert [outcome(r) for r in records(repository)] == [picture(2)]


def test_links_out_of_the_hubs_cache(tmp_path: Path) -> None:
    repository = cache(tmp_path, {"0123": {"0.tar": 1}})
    write(tmp_path, {"secret.tar": tar(pair(9)), "datasets--me--more/blobs/1": tar(pair(8))})
    snapshot = repository / "snapshots/0123"
    (snapshot / "1.tar").symlink_to("../../../secret.tar")
    (snapshot / "2.tar").symlink_to("../../../datasets--me--more/blobs/1")
    assert [r.key for r in records(repository)] == ["0/001"]
    (phrase,) = unread(snapshot)
    assert phrase.startswith("2 links lead out of it, the first is 1.tar; put copies")

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
from sources.base import DUPLICATE_KEY, MISSING_CAPTION, MISSING_FILE, SPLITS, DataConfig
from sources.tar import TRUNCATED_SHARD
from tests.helpers import SMALL, picture, read_all, write
from tests.sources.tars import (
    BLOCK,
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


def test_nothing_is_left_out(tmp_path: Path) -> None:
    lonely: list[Member] = [("x.png", picture(50)), ("y.txt", "no picture")]
    root = write(tmp_path, {"s.tar": tar([*pairs(range(20)), *lonely])})
    source = open_shards(root / "s.tar")
    assert "1 shards in" in source.description
    assert "s.tar: 21 images, 22 captions" in source.description
    skipped = read_all(source)[0].skipped().set_index("key")
    assert skipped["reason"].to_dict() == {"s/x": MISSING_CAPTION, "s/y": MISSING_FILE}
    assert skipped["shard"].tolist() == ["s.tar", "s.tar"]


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


def test_what_could_not_be_read_is_counted(tmp_path: Path) -> None:
    whole = tar(pairs(range(3)))
    files = {"0": whole, "1": whole[: 8 * BLOCK], "2": b"", "3": b"text " * 200, "4": tar([])}
    write(tmp_path, {f"{name}.tar": data for name, data in files.items()})
    assert open_shards(tmp_path).unread == (
        "2 of 5 shards could not be read, the first is 2.tar, which is empty",
        "1 of 5 shards are damaged and were read up to there, the first is 1.tar",
    )


def test_where_nothing_is_usable_the_members_are_named(tmp_path: Path) -> None:
    names = [f"{i}.{e}" for i in range(3) for e in ("npy", "cls")]
    write(tmp_path, {"a.tar": tar([(name, "x") for name in [*names, "read.me.md", "LICENCE"]])})
    seen = r"members seen: \.npy 3, \.cls 3, \.me\.md 1, no extension 1; give WebDataset"
    with pytest.raises(InputError, match=f"no image and no text among 8 members; {seen}"):
        open_shards(tmp_path)


# --- Splits ---------------------------------------------------------------------------------------


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


def labelled(name: str, split: object) -> list[Member]:
    """A pair whose JSON names its split."""
    return [(f"{name}.png", picture(int(name))), (f"{name}.json", json.dumps(split))]


def test_splits_of_samples(tmp_path: Path) -> None:
    splits = ["train", "Test", "val", "val2017", "restval", "", None, 3, "unlabelled"]
    members: list[Member] = []
    for number, split in enumerate(splits):
        members += labelled(f"{number:03d}", {"caption": "x", "Split": split})
    members += labelled("100", {"caption": "no split"})
    write(tmp_path, {"some.tar": tar(members), "dev/0.tar": tar([*pair(200), *members[:4]])})
    source = open_shards(tmp_path)
    found = {split: {r.key for r in source.records(split)} for split in SPLITS}
    assert found == {
        "train": {
            *("dev/0/000", "some/000", "some/004", "some/005", "some/006", "some/007"),
            *("some/008", "some/100"),
        },
        "validation": {"dev/0/200", "some/002", "some/003"},
        "test": {"dev/0/001", "some/001"},
    }
    note = "split from the json field split: train 3, validation 2, test 2, without 6"
    assert note in source.notes
    assert "drawn at random" not in source.description


def test_the_fingerprint_follows_the_splits_of_samples(tmp_path: Path) -> None:
    fingerprints = []
    for split in ("test", "word"):
        write(tmp_path, {"s.tar": tar(labelled("001", {"caption": "x", "split": split}))})
        os.utime(tmp_path / "s.tar", (5, 5))
        fingerprints.append(open_shards(tmp_path).fingerprint)
    assert len(set(fingerprints)) == 2


def test_no_split_is_told_of_where_no_field_names_one(tmp_path: Path) -> None:
    write(tmp_path, {"s.tar": tar([*pair(1), ("002.png", picture(2)), ("002.json", "{}")])})
    assert not [note for note in open_shards(tmp_path).notes if "split" in note]


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

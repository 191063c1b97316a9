"""Splits and the order of candidates; the truth is counted and drawn by the tests themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from sources.base import NO_LIMIT, SPLITS, DataConfig, ImageRecord
from sources.splits import (
    IndexedSource,
    StreamSource,
    complete_splits,
    digest,
    official_split,
    order_candidates,
)
from tests.helpers import SMALL, image_splits, open_folder, picture, read_all, record, write

# --- Splits ---------------------------------------------------------------------------------------


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


def test_carving_leaves_most_of_a_short_stream_to_training() -> None:
    stream = iter([record(i, f"caption {i}") for i in range(50)])
    source = StreamSource("hf", "a test", "0", {"train": stream}, n_train_pairs=50)
    _, pixels = read_all(source, max_test_samples=40, max_val_samples=40)
    assert {split: len(pixels[split]) for split in SPLITS} == {
        "train": 30,
        "validation": 10,
        "test": 10,
    }


def test_all_of_a_split_that_is_there_and_a_thousand_of_one_that_is_carved() -> None:
    limits = DataConfig(
        max_train_samples="all", max_val_samples="all", max_test_samples="all"
    ).limits()
    official = {"train": range(8000), "test": range(8000, 8000 + 1500)}
    splits, _ = complete_splits(official, limits, np.random.default_rng(0))
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 7000,
        "validation": 1000,
        "test": 1500,
    }
    few, _ = complete_splits({"train": range(50)}, limits, np.random.default_rng(0))
    assert len(few["validation"]) == len(few["test"]) == 10  # a fifth each


@pytest.mark.parametrize("given", [2500, "all"])
def test_all_of_a_stream_does_not_go_to_its_held_out_part(given: int | str) -> None:
    stream = iter([record(i, f"caption {i}") for i in range(3000)])
    limits = DataConfig(max_test_samples=given).limits()
    source = StreamSource("hf", "a test", "0", {"train": stream}, None, limits=limits)
    n_test = sum(1 for _ in islice(source.records("test"), limits["test"]))
    assert n_test == (1000 if given == "all" else 2500)
    assert next(stream).key == f"{n_test:03d}"  # and none is lost


# --- Order ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("split", SPLITS)
def test_all_candidates_are_one_hand_in_the_order_of_the_source(split: str) -> None:
    images = [record(i, "a", "b") for i in range(50)]
    records = list(order_candidates(images, split, NO_LIMIT, np.random.default_rng(0)))
    assert [record.key for record in records] == [f"{i:03d}" for i in range(50)]
    n_captions = 1 if split == "validation" else 2
    assert {len(record.captions) for record in records} == {n_captions}


@pytest.mark.parametrize("split", SPLITS)
def test_every_hand_is_in_the_order_of_the_source(split: str) -> None:
    images = [record(i, *(f"{i} {c}" for c in range(1 + i % 3))) for i in range(100)]
    records = list(order_candidates(images, split, 60, np.random.default_rng(0)))
    cards = [  # what a limit counts: pairs, in test images
        (place, record.key)
        for place, record in enumerate(records)
        for _ in (record.captions if split == "train" else record.captions[:1])
    ]
    assert len(cards) == {"train": 199, "validation": 100, "test": 100}[split]
    hands = [cards[:60], *(cards[i : i + 3] for i in range(60, len(cards), 3))]
    for hand in hands:
        keys = [key for _, key in sorted(set(hand))]
        assert keys == sorted(set(keys))  # captions of the same image come together
    for before, after in pairwise(hands):
        assert before[-1][0] < after[0][0]  # no record is in two hands
    firsts = [hand[0][1] for hand in hands[1:]]
    assert firsts != sorted(firsts)  # the hands themselves are drawn


@pytest.mark.parametrize(
    ("limit", "hand"), [(1, 1), (20, 1), (39, 1), (40, 2), (90, 4), (100, 5), (500, 25)]
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_spare_hands_are_a_twentieth_of_the_limit(split: str, limit: int, hand: int) -> None:
    images = [record(i, "a") for i in range(100)]
    drawn = np.random.default_rng(5).permutation(100)
    parts = [drawn[:limit], *(drawn[i : i + hand] for i in range(limit, 100, hand))]
    expected = [f"{i:03d}" for part in parts for i in sorted(part)]
    records = order_candidates(images, split, limit, np.random.default_rng(5))
    assert [record.key for record in records] == expected


def test_an_image_in_two_hands_gives_each_another_caption() -> None:
    images = [record(i, "a", "b", "c") for i in range(20)]
    records = list(order_candidates(images, "train", 20, np.random.default_rng(0)))
    assert [record.key for record in records[:20]] == [f"{i:03d}" for i in range(20)]
    assert [len(record.captions) for record in records] == [1] * 60
    positions = [caption.position for record in records for caption in record.captions]
    assert sorted(positions) == [10 * i + c for i in range(20) for c in range(3)]


def test_seed_decides_the_draw(tmp_path: Path) -> None:
    write(
        tmp_path, {"captions.csv": "image,caption\n" + "".join(f"{i}.png,c\n" for i in range(50))}
    )
    first = image_splits(open_folder(tmp_path, seed=3))
    assert image_splits(open_folder(tmp_path, seed=3)) == first
    assert image_splits(open_folder(tmp_path, seed=4)) != first


# --- Two kinds of source --------------------------------------------------------------------------
def numbered(n: int, captions: int = 1) -> list[ImageRecord]:
    """Images in the order of their source, the i-th with the picture i."""
    return [record(i, *(f"{i} {c}" for c in range(captions))) for i in range(n)]


def test_an_indexed_source_tells_the_same_every_time() -> None:
    limits = DataConfig(**SMALL).limits()
    official = {"train": numbered(50), "test": [record(i, "a", "b") for i in range(60, 65)]}
    source = IndexedSource("folder", "a test", "0", official, limits, np.random.default_rng(0))
    assert {split: source.n_images(split) for split in SPLITS} == {
        "train": 40,
        "validation": 10,
        "test": 5,
    }
    once = image_splits(source)
    assert image_splits(source) == once
    assert sorted(key for keys in once.values() for key in keys) == [
        f"{i:03d}" for i in (*range(50), *range(60, 65))
    ]
    assert source.description.startswith("a test; images: train 40, validation 10, test 5; valid")


def test_an_indexed_source_reads_again_in_the_order_asked_for() -> None:
    limits = DataConfig(**SMALL).limits()
    reads: Counter[str] = Counter()

    def counting(number: int) -> ImageRecord:
        def read() -> bytes:
            reads[key] += 1
            return picture(number)

        key = f"{number:03d}"
        return replace(record(number, "a"), read=read)

    official = {"train": [counting(i) for i in range(20)]}
    source = IndexedSource("folder", "", "0", official, limits, np.random.default_rng(0))
    wanted = ["007", "003", "019", "003"]
    readers = list(source.read_again(wanted))
    assert [key for key, _ in readers] == wanted
    assert not reads
    assert [read() for _, read in readers] == [picture(int(key)) for key in wanted]
    assert reads == Counter(wanted)
    [(_, read)] = source.read_again(["020"])
    with pytest.raises(KeyError, match="020"):
        read()


def test_a_stream_reads_again_in_one_pass() -> None:
    taken: list[str] = []

    def stream(first: int) -> Iterator[ImageRecord]:
        for number in range(first, first + 10):
            taken.append(f"{number:03d}")
            yield record(number, "a")

    streams = {"test": stream(20), "train": stream(0)}
    source = StreamSource("hf", "a test", "0", streams, None)
    readers = list(source.read_again(["023", "008", "002", "008", "023"]))
    assert [key for key, _ in readers] == ["002", "008", "023"]
    assert [read() for _, read in readers] == [picture(i) for i in (2, 8, 23)]
    assert taken == [f"{i:03d}" for i in (*range(10), *range(20, 24))]


def test_a_stream_leaves_out_what_it_does_not_hold() -> None:
    source = StreamSource("hf", "a test", "0", {"all": iter(numbered(5))}, None)
    assert [key for key, _ in source.read_again(["004", "077"])] == ["004"]
    records = iter(numbered(5))
    assert not list(StreamSource("hf", "", "0", {"train": records}, None).read_again([]))
    assert len(list(records)) == 5
    with pytest.raises(KeyError, match="001"):
        source.read_image("001")


def test_a_validation_stream_is_the_test_set_where_there_is_none() -> None:
    streams = {"train": iter(numbered(50)), "validation": iter(numbered(3, captions=2))}
    source = StreamSource("hf", "a test", "0", streams, None)
    assert [len(record.captions) for record in source.records("test")] == [2, 2, 2]
    validation = source.records("validation")
    assert [next(validation).key for _ in range(2)] == ["000", "001"]
    assert next(source.records("train")).key == "002"


def test_validation_streams_give_one_caption_an_image() -> None:
    streams = {split: iter(numbered(3, captions=2)) for split in SPLITS}
    source = StreamSource("hf", "a test", "0", streams, None)
    texts = [[c.text for c in record.captions] for record in source.records("validation")]
    assert texts == [["0 0"], ["1 0"], ["2 0"]]
    assert not list(source.records("validation"))  # it goes on where it stopped


# --- Names and digests ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        (" Dev ", "validation"),
        ("TESTING", "test"),
        ("restval", "train"),
        ("mars", None),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert official_split(name) == split


def test_digests_follow_the_content() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    others = [digest(1, 2), digest(2, 1), digest([1, 2]), digest("12"), digest(None), digest()]
    assert len({*others}) == len(others)
    assert all(len(value) == 64 for value in others)

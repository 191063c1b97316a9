"""Synthetic scenes: faults in known shares, consistent captions, pictures that differ."""

from __future__ import annotations

import hashlib
import io
from collections import Counter

import numpy as np
import PIL.Image
import pytest

from artifacts.settings import InputError
from data import open_source
from sources import pen, scenes
from sources.backdrops import PLACES
from sources.base import DataConfig
from sources.drawing import PEOPLE, THINGS
from sources.pen import COLOURS
from sources.scenes import BOILERPLATE, Example, make_examples, render
from tests.helpers import SMALL, read_all

N = 1000


@pytest.fixture(scope="module")
def training() -> list[Example]:
    return make_examples("train", N, seed=7)


@pytest.fixture(scope="module", params=["train", "validation"])
def faulty(request: pytest.FixtureRequest) -> list[Example]:
    return make_examples(request.param, N, seed=7)


def names(caption: str, words: tuple[str, ...]) -> bool:
    return any(
        f" {word} " in f" {caption.casefold().rstrip('.').replace(',', '')} " for word in words
    )


def describes(caption: str, scene: pen.Scene) -> bool:
    return (
        names(caption, PEOPLE[scene.person].words)
        and names(caption, THINGS[scene.thing].words)
        and names(caption, PLACES[scene.place].words)
        and names(caption, (scene.thing_colour, scene.clothes_colour))
    )


def pixels(example: Example) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(render(example))), dtype=np.float64)


def test_faults_come_in_their_shares(faulty: list[Example]) -> None:
    assert Counter(example.fault for example in faulty) == {
        "": 750,
        "wrong_caption": round(scenes.WRONG_CAPTION_SHARE * N),
        "boilerplate": round(scenes.BOILERPLATE_SHARE * N),
        "near_copy": round(scenes.NEAR_COPY_SHARE * N),
    }


def test_women_and_girls_are_rare_in_training_only(training: list[Example]) -> None:
    rare = [example.group == "rare" for example in training]
    female = [PEOPLE[example.scene.person].female for example in training]
    assert rare == female
    # Binomial with 1,000 draws: four standard deviations are 0.038 and 0.063.
    assert np.mean(rare) == pytest.approx(scenes.RARE_SHARE, abs=0.04)
    for split in ("validation", "test"):
        examples = make_examples(split, N, seed=7)
        assert {example.group for example in examples} == {""}
        share = np.mean([PEOPLE[example.scene.person].female for example in examples])
        assert share == pytest.approx(0.5, abs=0.065)


def test_test_scenes_are_all_right() -> None:
    assert {example.fault for example in make_examples("test", N, seed=7)} == {""}


def test_captions_tell_the_scene_unless_faulty(faulty: list[Example]) -> None:
    for example in faulty:
        first, second = example.captions
        assert first != second
        told = [describes(caption, example.scene) for caption in example.captions]
        assert told == [example.fault in ("", "near_copy")] * 2
        if example.fault == "boilerplate":
            assert {first, second} <= set(BOILERPLATE)
        elif example.fault == "wrong_caption":
            assert any(e.captions == example.captions and not e.fault for e in faulty)


def test_near_copies_look_like_an_earlier_scene(faulty: list[Example]) -> None:
    copies = [(i, example) for i, example in enumerate(faulty) if example.fault == "near_copy"]
    for i, copy in copies[:10]:
        [original] = [e for e in faulty[:i] if e.scene == copy.scene and not e.fault]
        assert not set(copy.captions) & set(original.captions)
        assert copy.group == original.group
        difference = np.abs(pixels(copy) - pixels(original)).mean()
        stranger = next(e for e in faulty if e.scene.place != copy.scene.place)
        assert 0 < difference < 0.4 * np.abs(pixels(stranger) - pixels(original)).mean()


def test_all_pictures_differ_and_are_rgb_224() -> None:
    examples = make_examples("test", 200, seed=1)
    pictures = [render(example) for example in examples]
    assert len({hashlib.sha256(picture).digest() for picture in pictures}) == 200
    with PIL.Image.open(io.BytesIO(pictures[0])) as picture:
        assert (picture.size, picture.mode, picture.format) == ((224, 224), "RGB", "PNG")


def test_no_picture_is_in_two_splits() -> None:
    splits = {split: make_examples(split, 60, seed=5) for split in ("train", "validation", "test")}
    assert all(
        any(example.fault == "near_copy" for example in splits[split])
        for split in ("train", "validation")
    )
    pictures = [{render(example) for example in examples} for examples in splits.values()]
    assert [len(p) for p in pictures] == [60] * 3
    assert len(set.union(*pictures)) == 180


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("thing", THINGS)
def test_every_thing_shows_at_every_place(place: str, thing: str) -> None:
    """Another colour of the thing changes the picture: it is neither hidden nor cut off."""
    red, blue = (
        pen.Scene("boy", "white", thing, colour, place, (3,)) for colour in ("black", "orange")
    )
    changed = pixels(Example(red, ("", ""))) != pixels(Example(blue, ("", "")))
    assert changed.any(axis=2).mean() > 0.01


def test_same_seed_same_set_another_seed_another_set() -> None:
    assert make_examples("train", 50, seed=3) == make_examples("train", 50, seed=3)
    assert render(make_examples("train", 5, seed=3)[4]) == render(
        make_examples("train", 5, seed=3)[4]
    )
    for other in (
        make_examples("train", 50, seed=4),
        make_examples("validation", 50, seed=3),
        make_examples("test", 50, seed=3),
    ):
        assert not {e.scene for e in make_examples("train", 50, seed=3)} & {e.scene for e in other}


def test_longer_sets_begin_with_the_same_scenes() -> None:
    assert make_examples("test", 30, seed=3)[:10] == make_examples("test", 10, seed=3)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tiny_sets(split: str, n: int) -> None:
    assert len(make_examples(split, n, seed=0)) == n


def test_enough_of_everything() -> None:
    assert len(COLOURS) >= 8
    assert len(THINGS) >= 12
    assert len(PLACES) >= 8
    assert len(BOILERPLATE) == 10


def test_synthetic_source_and_its_ground_truth() -> None:
    config = DataConfig(dataset="synthetic", **SMALL)
    source = open_source(config, rng=np.random.default_rng(0))
    pairs = read_all(source)[0].pairs()
    assert pairs["split"].value_counts().to_dict() == {"train": 100, "validation": 10, "test": 20}
    train = pairs[pairs["split"] == "train"]
    assert train["image_row"].is_unique
    assert train["fault"].value_counts()[
        ["wrong_caption", "boilerplate", "near_copy"]
    ].tolist() == [10, 5, 10]
    assert set(train["group"]) == {"", "rare"}
    held_out = {
        split: pairs.loc[pairs["split"] == split, "fault"].tolist()
        for split in ("validation", "test")
    }
    assert sorted(held_out["validation"]) == [""] * 8 + ["near_copy", "wrong_caption"]
    assert set(held_out["test"]) == {""}
    assert source.read_image("test/000000").startswith(b"\x89PNG")
    again = open_source(config, rng=np.random.default_rng(0))
    other = open_source(config, rng=np.random.default_rng(1))
    assert again.fingerprint == source.fingerprint != other.fingerprint


def test_scenes_have_no_end() -> None:
    with pytest.raises(InputError, match=r"^--max_val_samples all: drawn scenes have no end"):
        open_source(
            DataConfig(dataset="synthetic", **SMALL | {"max_val_samples": "all"}),
            rng=np.random.default_rng(0),
        )

"""Drawn scenes with captions and known faults, any number of them, from one seed.

A scene is a person in coloured clothes, with a coloured thing, at a place. What is in it, how it
is captioned and how it is drawn follow from (seed, split, index) alone, so nothing is stored.
Training scenes carry faults in fixed shares, each kept as ground truth: wrong captions,
boilerplate captions and near copies; and they thin a (rare) group. Validation scenes carry the same
faults in the same shares, as those of a user do who carves them out of one pool, but thin no group.
Test scenes are all right, so that recall means something.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from artifacts.settings import InputError
from sources.backdrops import PLACES
from sources.base import NO_LIMIT, SAMPLE_FLAGS, SPLITS, Caption, DataConfig, ImageRecord
from sources.drawing import PEOPLE, THINGS, draw_scene, retouch
from sources.pen import COLOURS, DRAWING_VERSION, Scene, pick
from sources.splits import IndexedSource, digest

WRONG_CAPTION_SHARE = 0.10
BOILERPLATE_SHARE = 0.05
NEAR_COPY_SHARE = 0.10
RARE_SHARE = 0.10  # of training scenes show a woman or a girl; half of the others
BOILERPLATE = (
    "image may contain: one or more people",
    "DSC_0042.JPG",
    "click to enlarge",
    "photo of the day",
    "stock photo, royalty free",
    "no description available",
    "image 3 of 17",
    "untitled",
    "share this picture with your friends",
    "free shipping on all orders",
)


@dataclass(frozen=True)
class Example:
    """A scene with its two captions and what is known to be wrong with them."""

    scene: Scene
    captions: tuple[str, str]
    fault: str = ""  # "", "wrong_caption", "boilerplate" or "near_copy"
    group: str = ""  # "rare" for women and girls in the training split
    copy_seed: tuple[int, ...] | None = None  # of a near copy's crop and brightness


# --- The data set ---------------------------------------------------------------------------------


def open_synthetic(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """Drawn scenes, as many as asked for, as pairs.

    Raises:
        InputError: all are asked for.
    """
    seed = int(rng.integers(2**63))
    limits = config.limits()
    for split, flag in SAMPLE_FLAGS.items():
        if limits[split] == NO_LIMIT:
            raise InputError(f"--{flag} all: drawn scenes have no end; say how many")
    official: dict[str, list[ImageRecord]] = {}
    position = 0
    for split in SPLITS:
        official[split] = []
        for i, example in enumerate(make_examples(split, limits[split], seed)):
            captions = tuple(
                Caption(position + j, text, example.fault)
                for j, text in enumerate(example.captions)
            )
            position += len(captions)
            read = partial(render, example)
            official[split].append(ImageRecord(f"{split}/{i:06d}", read, captions, example.group))
    fingerprint = digest("synthetic", DRAWING_VERSION, seed, limits)
    return IndexedSource("synthetic", "drawn scenes", fingerprint, official, limits, rng)


def make_examples(split: str, n: int, seed: int) -> list[Example]:
    """The scenes of one split.

    Args:
        split: `train` and `validation` carry faults, each among its own scenes, and `test` none;
            `train` alone has the rare group.
        n: number of scenes.
        seed: any non-negative integer.

    Returns:
        n examples. Only which of them are faulty depends on n.
    """
    key = (seed, SPLITS.index(split))
    in_training = split == "train"
    scenes = [_random_scene((*key, i), RARE_SHARE if in_training else 0.5) for i in range(n)]
    examples = [
        Example(scene, _captions(scene)[0], group=_group(scene) if in_training else "")
        for scene in scenes
    ]
    if split == "test":
        return examples
    return _with_faults(examples, np.random.default_rng((*key, n, 0)))


def render(example: Example) -> bytes:
    """The picture of an example, a PNG of 224 x 224 pixels."""
    picture = draw_scene(example.scene)
    if example.copy_seed is not None:
        picture = retouch(picture, np.random.default_rng(example.copy_seed))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _random_scene(seed: tuple[int, ...], female_share: float) -> Scene:
    rng = np.random.default_rng(seed)
    female = rng.random() < female_share
    people = [name for name, person in PEOPLE.items() if person.female == female]
    thing = pick(rng, tuple(THINGS))
    return Scene(
        person=pick(rng, people),
        clothes_colour=pick(rng, tuple(COLOURS)),
        thing=thing,
        thing_colour=pick(rng, THINGS[thing].colours),
        place=pick(rng, tuple(PLACES)),
        seed=seed,
    )


def _group(scene: Scene) -> str:
    return "rare" if PEOPLE[scene.person].female else ""


def _with_faults(examples: list[Example], rng: np.random.Generator) -> list[Example]:
    n = len(examples)
    order = rng.permutation(np.arange(1, n)).tolist()  # scene 0 is honest: something to copy
    ends = np.cumsum([round(s * n) for s in (WRONG_CAPTION_SHARE, BOILERPLATE_SHARE)])
    wrong, boilerplate = order[: ends[0]], order[ends[0] : ends[1]]
    copies = sorted(order[ends[1] : ends[1] + round(NEAR_COPY_SHARE * n)])
    honest = np.setdiff1d(np.arange(n), [*wrong, *boilerplate, *copies])
    faulty = list(examples)
    for i in copies:
        original = examples[rng.choice(honest[honest < i])]
        faulty[i] = replace(
            original,
            captions=_captions(original.scene)[1],
            fault="near_copy",
            copy_seed=(*examples[i].scene.seed, 1),
        )
    for i in boilerplate:
        first, second = rng.choice(len(BOILERPLATE), size=2, replace=False)
        captions = (BOILERPLATE[first], BOILERPLATE[second])
        faulty[i] = replace(examples[i], captions=captions, fault="boilerplate")
    donors = [examples[i] for i in honest]
    for i in wrong:
        captions = _other_example(donors, examples[i].scene, rng).captions
        faulty[i] = replace(examples[i], captions=captions, fault="wrong_caption")
    return faulty


def _other_example(examples: Sequence[Example], scene: Scene, rng: np.random.Generator) -> Example:
    """One that differs from a scene in thing and place; any where none turns up."""
    for _ in range(100):
        other = pick(rng, examples)
        if other.scene.thing != scene.thing and other.scene.place != scene.place:
            break
    return other


# --- Captions -------------------------------------------------------------------------------------

_TEMPLATES = (
    "{person} in {clothes} {doing} {thing} {place}.",
    "{place}, {person} wearing {clothes} is {doing} {thing}.",
    "{thing} and {person} in {colour} {place}.",
    "{person} {doing} {thing} {place}.",
    "{person} dressed in {colour} {doing} {plain_thing} {place}.",
    "there is {person} in {clothes} {place}, {doing} {thing}.",
    "{person} {place} in {clothes}, {doing} {thing}.",
    "{person} with {thing} {place}.",
)


def _captions(scene: Scene) -> tuple[tuple[str, str], tuple[str, str]]:
    """Four captions of a scene that differ: two for its picture, two for a near copy of it."""
    rng = np.random.default_rng((*scene.seed, 2))
    a, b, c, d = (_caption(scene, _TEMPLATES[i], rng) for i in rng.permutation(8)[:4])
    return (a, b), (c, d)


def _caption(scene: Scene, template: str, rng: np.random.Generator) -> str:
    person, thing = PEOPLE[scene.person], THINGS[scene.thing]
    thing_word = pick(rng, thing.words)
    text = template.format(
        person=_with_article(pick(rng, person.words)),
        clothes=_with_article(f"{scene.clothes_colour} {pick(rng, person.clothes)}"),
        colour=scene.clothes_colour,
        doing=pick(rng, thing.doing),
        thing=_with_article(f"{scene.thing_colour} {thing_word}"),
        plain_thing=_with_article(thing_word),
        place=pick(rng, PLACES[scene.place].words),
    )
    return text[0].upper() + text[1:]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

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
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance

DRAWING_VERSION = 2  # to be raised with every change of a picture or a caption

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

Colour = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

SIZE = 224
_SUPERSAMPLE = 2
_MARGIN = 24  # the backdrop is this much wider than the picture, which slides along it

COLOURS: dict[str, Colour] = {
    "red": (214, 48, 49),
    "orange": (243, 146, 32),
    "yellow": (250, 214, 60),
    "green": (56, 158, 76),
    "blue": (48, 98, 214),
    "purple": (132, 68, 184),
    "pink": (247, 138, 184),
    "white": (246, 246, 246),
    "black": (44, 44, 50),
    "brown": (136, 86, 50),
}
_FUR = ("orange", "white", "black", "brown")
_LOOKS: tuple[tuple[Colour, Colour], ...] = (  # skin and hair
    ((255, 219, 190), (226, 186, 92)),
    ((255, 219, 190), (120, 70, 40)),
    ((240, 196, 156), (176, 100, 48)),
    ((236, 188, 146), (46, 34, 30)),
    ((198, 140, 98), (62, 42, 34)),
    ((126, 82, 56), (36, 28, 28)),
)
_DARK = (52, 48, 56)


@dataclass(frozen=True)
class Scene:
    """What a picture shows, and the seed of everything else about it."""

    person: str
    clothes_colour: str
    thing: str
    thing_colour: str
    place: str
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A scene with its two captions and what is known to be wrong with them."""

    scene: Scene
    captions: tuple[str, str]
    fault: str = ""  # "", "wrong_caption", "boilerplate" or "near_copy"
    group: str = ""  # "rare" for women and girls in the training split
    copy_seed: tuple[int, ...] | None = None  # of a near copy's crop and brightness


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
    key = (seed, ("train", "validation", "test").index(split))
    in_training = split == "train"
    scenes = [_draw_lots((*key, i), RARE_SHARE if in_training else 0.5) for i in range(n)]
    examples = [
        Example(scene, _captions(scene)[0], group=_group(scene) if in_training else "")
        for scene in scenes
    ]
    if split == "test":
        return examples
    return _with_faults(examples, np.random.default_rng((*key, n, 0)))


def render(example: Example) -> bytes:
    """The picture of an example, a PNG of 224 x 224 pixels."""
    picture = _draw(example.scene)
    if example.copy_seed is not None:
        picture = _retouch(picture, np.random.default_rng(example.copy_seed))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _draw_lots(seed: tuple[int, ...], female_share: float) -> Scene:
    rng = np.random.default_rng(seed)
    female = rng.random() < female_share
    people = [name for name, person in PEOPLE.items() if person.female == female]
    thing = _pick(rng, tuple(THINGS))
    return Scene(
        person=_pick(rng, people),
        clothes_colour=_pick(rng, tuple(COLOURS)),
        thing=thing,
        thing_colour=_pick(rng, THINGS[thing].colours),
        place=_pick(rng, tuple(PLACES)),
        seed=seed,
    )


def _group(scene: Scene) -> str:
    return "rare" if PEOPLE[scene.person].female else ""


def _with_faults(examples: list[Example], rng: np.random.Generator) -> list[Example]:
    n = len(examples)
    lots = rng.permutation(np.arange(1, n)).tolist()  # scene 0 is honest: something to copy
    ends = np.cumsum([round(s * n) for s in (WRONG_CAPTION_SHARE, BOILERPLATE_SHARE)])
    wrong, boilerplate = lots[: ends[0]], lots[ends[0] : ends[1]]
    copies = sorted(lots[ends[1] : ends[1] + round(NEAR_COPY_SHARE * n)])
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
        captions = _stranger(donors, examples[i].scene, rng).captions
        faulty[i] = replace(examples[i], captions=captions, fault="wrong_caption")
    return faulty


def _stranger(examples: Sequence[Example], scene: Scene, rng: np.random.Generator) -> Example:
    """One that differs from a scene in thing and place; any where none turns up."""
    for _ in range(100):
        other = _pick(rng, examples)
        if other.scene.thing != scene.thing and other.scene.place != scene.place:
            break
    return other


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


# Captions


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
    thing_word = _pick(rng, thing.words)
    text = template.format(
        person=_with_article(_pick(rng, person.words)),
        clothes=_with_article(f"{scene.clothes_colour} {_pick(rng, person.clothes)}"),
        colour=scene.clothes_colour,
        doing=_pick(rng, thing.doing),
        thing=_with_article(f"{scene.thing_colour} {thing_word}"),
        plain_thing=_with_article(thing_word),
        place=_pick(rng, PLACES[scene.place].words),
    )
    return text[0].upper() + text[1:]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# Drawing


class _Pen:
    """Draws in a frame with its own origin, unit and direction; v points down."""

    def __init__(
        self,
        draw: PIL.ImageDraw.ImageDraw,
        x: float = 0,
        y: float = 0,
        unit: float = 1,
        side: int = 1,
    ) -> None:
        self.draw, self.x, self.y, self.unit, self.side = draw, x, y, unit, side

    def at(self, u: float, v: float) -> Point:
        """Canvas coordinates of a point of the frame."""
        x = self.x + self.side * u * self.unit
        return x * _SUPERSAMPLE, (self.y + v * self.unit) * _SUPERSAMPLE

    def shape(self, points: Sequence[Point], fill: Colour, *, outline: bool = True) -> None:
        corners = [self.at(*point) for point in points]
        self.draw.polygon(corners, fill=fill)
        if outline:
            self.draw.line([*corners, *corners[:2]], fill=_shade(fill), width=2, joint="curve")

    def oval(
        self, u: float, v: float, ru: float, rv: float, fill: Colour, *, outline: bool = True
    ) -> None:
        x, y = self.at(u, v)
        rx, ry = (r * self.unit * _SUPERSAMPLE for r in (ru, rv))
        edge = _shade(fill) if outline else None
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill, outline=edge, width=2)

    def box(
        self, u0: float, v0: float, u1: float, v1: float, fill: Colour, *, outline: bool = True
    ) -> None:
        self.shape([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], fill, outline=outline)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A stroke with round ends, `width` in units of the frame."""
        thick = max(2, round(width * self.unit * _SUPERSAMPLE))
        corners = [self.at(*point) for point in points]
        self.draw.line(corners, fill=fill, width=thick, joint="curve")
        for x, y in (corners[0], corners[-1]):
            r = thick / 2 - 0.5
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def shadow(self, u: float, ru: float) -> None:
        x, y = self.at(u, 0)
        rx, ry = (r * self.unit * _SUPERSAMPLE for r in (ru, 0.03))
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(0, 0, 0, 70))


def _shade(colour: Colour, factor: float = 0.62) -> Colour:
    r, g, b = (min(255, int(c * factor)) for c in colour)
    return r, g, b


def _arc(u: float, v: float, ru: float, rv: float, start: float, end: float) -> list[Point]:
    """Points of an elliptic arc, degrees clockwise from the positive u axis."""
    angles = np.radians(np.linspace(start, end, 20))
    return [(u + ru * math.cos(a), v + rv * math.sin(a)) for a in angles]


def _draw(scene: Scene) -> PIL.Image.Image:
    rng = np.random.default_rng((*scene.seed, 3))
    shift = int(rng.integers(_MARGIN * _SUPERSAMPLE))
    width = SIZE * _SUPERSAMPLE
    canvas = _backdrop(scene.place).crop((shift, 0, shift + width, width))
    draw = PIL.ImageDraw.Draw(canvas, "RGBA")

    person, thing = PEOPLE[scene.person], THINGS[scene.thing]
    side = 1 if rng.random() < 0.5 else -1
    x = SIZE / 2 - side * rng.uniform(40, 54)
    feet = rng.uniform(204, 214)
    height = person.height * rng.uniform(0.95, 1.06)
    skin, hair = _pick(rng, _LOOKS)
    size = thing.size * rng.uniform(0.92, 1.08)
    hand = (0.27, -0.52)
    if thing.held:
        place = _Pen(draw, x + side * hand[0] * height, feet + hand[1] * height, size, side)
    else:
        place = _Pen(draw, x + side * rng.uniform(82, 94), feet + rng.uniform(-4, 4), size, side)
        place.shadow(0, 0.45)
    pen = _Pen(draw, x, feet, height, side)
    pen.shadow(0, 0.2)
    thing.draw(place, COLOURS[scene.thing_colour])
    person.draw(pen, COLOURS[scene.clothes_colour], skin, hair)
    pen.line([(0.1, -0.68), (0.2, -0.57), hand], 0.055, skin)
    pen.line([(0.1, -0.68), (0.15, -0.625)], 0.07, _shade(COLOURS[scene.clothes_colour], 0.85))
    return canvas.reduce(_SUPERSAMPLE)


def _retouch(picture: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    left, top, right, bottom = rng.uniform(0, 4, size=4)
    box = (left, top, SIZE - right, SIZE - bottom)
    cropped = picture.resize((SIZE, SIZE), PIL.Image.Resampling.BILINEAR, box=box)
    brightness = float(rng.choice([-1, 1]) * rng.uniform(0.04, 0.1))
    return PIL.ImageEnhance.Brightness(cropped).enhance(1 + brightness)


# People: feet at the origin, one unit tall


def _legs(pen: _Pen, top: float, upper: Colour, lower: Colour, knee: float, width: float) -> None:
    for u in (-0.06, 0.06):
        pen.line([(u, knee), (u, -0.03)], width * 0.75, lower)
        pen.line([(u, top), (u, knee)], width, upper)
        pen.oval(u + 0.02, -0.015, 0.055, 0.025, _DARK)


def _head(pen: _Pen, v: float, r: float, skin: Colour) -> None:
    pen.line([(0, v), (0, v + 1.3 * r)], 0.6 * r, _shade(skin, 0.9))
    pen.oval(0, v, r, 1.08 * r, skin)
    for u in (-0.2, 0.5):
        pen.oval(u * r, v, 0.11 * r, 0.16 * r, _DARK, outline=False)
    pen.line(_arc(0.15 * r, v + 0.25 * r, 0.38 * r, 0.3 * r, 25, 155), 0.1 * r, (170, 60, 60))


def _dress(pen: _Pen, colour: Colour, hem: float, flare: float) -> None:
    pen.line([(-0.1, -0.68), (-0.17, -0.45)], 0.06, _shade(colour, 0.85))
    left = [(-flare, hem), (-0.075, -0.52), (-0.11, -0.72)]
    pen.shape([*left, *((-u, v) for u, v in reversed(left))], colour)
    pen.line([(-0.075, -0.52), (0.075, -0.52)], 0.025, _shade(colour))


def _draw_woman(pen: _Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    pen.oval(-0.02, -0.83, 0.125, 0.15, hair)
    pen.shape([(-0.14, -0.85), (0.1, -0.85), (0.1, -0.68), (-0.17, -0.6)], hair, outline=False)
    _legs(pen, -0.3, skin, skin, -0.2, 0.05)
    _dress(pen, colour, -0.22, 0.21)
    _head(pen, -0.85, 0.095, skin)
    pen.shape(_arc(0, -0.86, 0.115, 0.13, 170, 350), hair)


def _draw_man(pen: _Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    trousers = (66, 76, 104)
    _legs(pen, -0.45, trousers, trousers, -0.2, 0.105)
    pen.line([(-0.15, -0.69), (-0.2, -0.5), (-0.19, -0.42)], 0.06, skin)
    pen.line([(-0.15, -0.69), (-0.185, -0.56)], 0.08, _shade(colour, 0.85))
    pen.shape([(-0.17, -0.74), (0.17, -0.74), (0.13, -0.42), (-0.13, -0.42)], colour)
    pen.line([(-0.125, -0.42), (0.125, -0.42)], 0.025, _DARK)
    _head(pen, -0.87, 0.085, skin)
    pen.shape(_arc(0, -0.86, 0.087, 0.1, 20, 160), hair, outline=False)
    pen.line([(-0.02, -0.82), (0.045, -0.82)], 0.014, (235, 200, 190))
    pen.shape(_arc(0, -0.89, 0.095, 0.085, 180, 360), hair)


def _draw_girl(pen: _Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    _legs(pen, -0.3, skin, (246, 246, 246), -0.14, 0.06)
    _dress(pen, colour, -0.28, 0.26)
    for u in (-0.21, 0.21):
        pen.oval(u, -0.78, 0.065, 0.11, hair)
        pen.oval(0.8 * u, -0.86, 0.035, 0.035, colour)
    _head(pen, -0.83, 0.145, skin)
    pen.shape(_arc(0, -0.86, 0.16, 0.14, 175, 365), hair)


def _draw_boy(pen: _Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    shorts = (150, 130, 92)
    _legs(pen, -0.4, shorts, skin, -0.22, 0.11)
    pen.line([(-0.13, -0.66), (-0.19, -0.45)], 0.06, skin)
    pen.line([(-0.13, -0.66), (-0.165, -0.55)], 0.085, _shade(colour, 0.85))
    pen.shape([(-0.15, -0.7), (0.15, -0.7), (0.14, -0.38), (-0.14, -0.38)], colour)
    _head(pen, -0.83, 0.14, skin)
    pen.shape(_arc(-0.02, -0.85, 0.145, 0.1, 140, 220), hair)
    pen.shape(_arc(0, -0.89, 0.15, 0.12, 180, 360), colour)
    pen.line([(0.05, -0.89), (0.24, -0.88)], 0.03, _shade(colour))


# Things: standing on the origin, one unit large; held ones begin at the hand


def _draw_ball(pen: _Pen, colour: Colour) -> None:
    panel = (250, 250, 246) if colour != COLOURS["white"] else (196, 200, 210)
    pen.oval(0, -0.42, 0.42, 0.42, colour)
    for start, outer, inner in ((-90, 0.27, 0.06), (90, 0.38, 0.17)):
        edge = _arc(0, -0.42, outer, 0.42, start, start + 180)
        pen.shape([*edge, *_arc(0, -0.42, inner, 0.42, start + 180, start)], panel)
    pen.oval(0, -0.8, 0.1, 0.045, panel)


def _draw_umbrella(pen: _Pen, colour: Colour) -> None:
    pen.line([*_arc(0.05, 0.13, 0.06, 0.06, 150, 0)[::-1], (0.11, 0.0)], 0.035, (110, 76, 50))
    pen.line([(0, 0.12), (0, -0.95)], 0.035, (110, 76, 50))
    scallops = [p for u in (0.4, 0.0, -0.4) for p in _arc(u, -0.55, 0.2, 0.09, 0, -180)]
    pen.shape([*_arc(0, -0.55, 0.6, 0.45, 180, 360), *scallops], colour)
    for u in (-0.2, 0.2):
        pen.line([(u, -0.6), (0, -0.99)], 0.015, _shade(colour))


def _draw_bicycle(pen: _Pen, colour: Colour) -> None:
    for u in (-0.4, 0.4):
        pen.line(_arc(u, -0.28, 0.26, 0.26, 0, 360), 0.05, _DARK)
        pen.oval(u, -0.28, 0.04, 0.04, _DARK, outline=False)
    frame = [(-0.4, -0.28), (-0.15, -0.66), (0.27, -0.66), (0.0, -0.28), (-0.4, -0.28)]
    pen.line(frame, 0.085, colour)
    pen.line([(-0.2, -0.74), (0.0, -0.28)], 0.07, colour)
    pen.line([(0.4, -0.28), (0.25, -0.85)], 0.085, colour)
    pen.line([(0.14, -0.86), (0.34, -0.84)], 0.05, _DARK)
    pen.line([(-0.3, -0.77), (-0.12, -0.76)], 0.07, _DARK)


def _draw_kite(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, 0), (0.35, -0.3), (0.6, -0.75)], 0.012, (250, 250, 250))
    pen.line([(0.6, -0.75), (0.72, -0.5), (0.62, -0.36), (0.76, -0.2)], 0.02, _DARK)
    for u, v in ((0.7, -0.52), (0.66, -0.35), (0.75, -0.2)):
        pen.shape([(u - 0.06, v - 0.03), (u + 0.06, v + 0.03), (u + 0.06, v - 0.04)], colour)
    pen.shape([(0.7, -1.4), (0.98, -1.1), (0.6, -0.72), (0.36, -1.12)], colour)
    pen.line([(0.7, -1.4), (0.6, -0.72)], 0.018, _shade(colour))
    pen.line([(0.36, -1.12), (0.98, -1.1)], 0.018, _shade(colour))


def _draw_guitar(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, -0.5), (0, -1.2)], 0.09, (96, 62, 40))
    pen.box(-0.08, -1.34, 0.08, -1.17, _shade(colour, 0.8))
    for r, v in ((0.23, -0.6), (0.31, -0.29)):
        pen.oval(0, v, r, 0.28, colour)
    pen.oval(0, -0.46, 0.16, 0.12, colour, outline=False)
    pen.oval(0, -0.5, 0.1, 0.1, (40, 28, 24))
    pen.line([(0, -0.2), (0, -1.2)], 0.012, (240, 230, 210))
    pen.line([(-0.1, -0.18), (0.1, -0.18)], 0.05, (60, 40, 30))


def _draw_dog(pen: _Pen, colour: Colour) -> None:
    for u in (-0.3, -0.18, 0.14, 0.26):
        pen.line([(u, -0.35), (u, -0.04)], 0.1, _shade(colour, 0.88))
    pen.line([(-0.34, -0.5), (-0.5, -0.7), (-0.5, -0.8)], 0.08, colour)
    pen.oval(-0.02, -0.43, 0.38, 0.17, colour)
    pen.oval(0.36, -0.66, 0.18, 0.17, colour)
    pen.oval(0.52, -0.61, 0.12, 0.085, colour)
    pen.oval(0.61, -0.64, 0.045, 0.04, (20, 20, 20))
    pen.oval(0.25, -0.6, 0.075, 0.17, _shade(colour, 0.72))
    pen.oval(0.4, -0.71, 0.03, 0.035, (250, 250, 250))
    pen.oval(0.41, -0.71, 0.018, 0.022, (10, 10, 10), outline=False)
    pen.line([(0.24, -0.5), (0.36, -0.49)], 0.05, (220, 50, 50))


def _draw_cat(pen: _Pen, colour: Colour) -> None:
    pen.line(_arc(-0.34, -0.28, 0.2, 0.26, 90, 290), 0.085, _shade(colour, 0.88))
    pen.oval(-0.02, -0.27, 0.28, 0.28, colour)
    for u in (-0.12, 0.1):
        pen.oval(u, -0.05, 0.1, 0.06, _shade(colour, 0.9))
    for s in (-1, 1):
        pen.shape([(s * 0.24, -0.68), (s * 0.25, -1.0), (s * 0.04, -0.82)], colour)
    pen.oval(0, -0.66, 0.27, 0.23, colour)
    for s in (-1, 1):
        pen.oval(s * 0.11, -0.69, 0.05, 0.065, (190, 220, 80))
        pen.oval(s * 0.11, -0.69, 0.018, 0.055, (10, 10, 10), outline=False)
        for rise in (-0.05, 0.03):
            pen.line([(s * 0.1, -0.58), (s * 0.36, -0.58 + rise)], 0.012, (150, 150, 150))
    pen.shape([(-0.035, -0.61), (0.035, -0.61), (0, -0.57)], (240, 130, 140))


def _draw_balloon(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, 0), (0.08, -0.25), (0.03, -0.5), (0.1, -0.72)], 0.014, (120, 120, 130))
    pen.shape([(0.1, -0.76), (0.04, -0.68), (0.16, -0.68)], colour)
    pen.oval(0.1, -1.12, 0.31, 0.38, colour)
    pale = _shade(colour, 1.3) if colour != COLOURS["white"] else (215, 220, 228)
    pen.oval(0.0, -1.26, 0.06, 0.1, pale, outline=False)


def _draw_car(pen: _Pen, colour: Colour) -> None:
    pen.shape([(-0.36, -0.42), (-0.24, -0.68), (0.16, -0.68), (0.34, -0.42)], colour)
    pen.shape([(-0.27, -0.43), (-0.19, -0.62), (-0.06, -0.62), (-0.06, -0.43)], (196, 226, 242))
    pen.shape([(0.0, -0.43), (0.0, -0.62), (0.13, -0.62), (0.24, -0.43)], (196, 226, 242))
    bonnet = [(-0.58, -0.36), (-0.5, -0.44), (0.4, -0.44), (0.58, -0.34)]
    pen.shape([*bonnet, (0.58, -0.12), (-0.58, -0.12)], colour)
    pen.oval(0.54, -0.3, 0.045, 0.05, (255, 240, 160))
    for u in (-0.32, 0.32):
        pen.oval(u, -0.13, 0.13, 0.13, (40, 40, 44))
        pen.oval(u, -0.13, 0.055, 0.055, (200, 200, 205))


def _draw_boat(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, -0.2), (0, -1.2)], 0.045, (110, 76, 50))
    pen.shape([(0.05, -1.15), (0.05, -0.32), (0.48, -0.32)], (250, 250, 244))
    pen.shape([(-0.05, -1.02), (-0.05, -0.32), (-0.38, -0.32)], (226, 230, 232))
    pen.shape([(-0.56, -0.27), (0.58, -0.27), (0.4, 0), (-0.4, 0)], colour)
    pen.line([(-0.5, -0.19), (0.5, -0.19)], 0.035, _shade(colour))


def _draw_book(pen: _Pen, colour: Colour) -> None:
    cover = [(-0.06, -0.62), (0.5, -0.54), (1.06, -0.62), (1.06, 0.26), (0.5, 0.36), (-0.06, 0.26)]
    pen.shape(cover, colour)
    for s in (-1, 1):
        page = [(0.5, -0.42), (0.5 + s * 0.4, -0.48), (0.5 + s * 0.4, 0.1), (0.5, 0.18)]
        pen.shape(page, (252, 250, 240))
        for v in (-0.28, -0.14, 0.0):
            pen.line([(0.5 + s * 0.09, v), (0.5 + s * 0.32, v - 0.03)], 0.025, (170, 170, 170))


def _draw_chair(pen: _Pen, colour: Colour) -> None:
    for u in (-0.33, 0.33):
        pen.line([(u, -0.3), (u, -0.03)], 0.07, (110, 76, 50))
    pen.shape([*_arc(0, -0.75, 0.36, 0.4, 180, 360), (0.36, -0.3), (-0.36, -0.3)], colour)
    pen.box(-0.34, -0.48, 0.34, -0.2, _shade(colour, 0.85))
    for u in (-0.4, 0.4):
        rest = [(u + 0.11, -0.16), (u - 0.11, -0.16)]
        pen.shape([*_arc(u, -0.55, 0.11, 0.11, 180, 360), *rest], colour)


def _draw_suitcase(pen: _Pen, colour: Colour) -> None:
    pen.line([(-0.14, -0.8), (-0.14, -1.1), (0.14, -1.1), (0.14, -0.8)], 0.05, (150, 150, 158))
    pen.box(-0.36, -0.84, 0.36, -0.07, colour)
    for u in (-0.19, 0.0, 0.19):
        pen.line([(u, -0.74), (u, -0.17)], 0.03, _shade(colour))
    for u in (-0.26, 0.26):
        pen.oval(u, -0.05, 0.06, 0.06, (40, 40, 44))


def _draw_tent(pen: _Pen, colour: Colour) -> None:
    pen.shape([(0, -0.9), (0.6, 0), (-0.6, 0)], colour)
    pen.shape([(0, -0.72), (0.2, 0), (-0.2, 0)], (58, 50, 52))
    pen.shape([(0, -0.74), (0.05, -0.55), (0.32, 0), (0.2, 0)], _shade(colour, 0.8))
    pen.line([(0, -0.9), (0.06, -1.0)], 0.03, (110, 76, 50))


def _draw_flower(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, -0.35), (0.02, -0.75)], 0.05, (70, 140, 60))
    for s in (-1, 1):
        pen.oval(s * 0.14, -0.46, 0.13, 0.06, (84, 164, 72))
    for angle in range(0, 360, 60):
        u, v = _arc(0.02, -0.92, 0.19, 0.19, angle, angle)[0]
        pen.oval(u, v, 0.125, 0.125, colour)
    centre = (250, 200, 50) if colour != COLOURS["yellow"] else (150, 90, 40)
    pen.oval(0.02, -0.92, 0.11, 0.11, centre)
    pen.shape([(-0.25, -0.38), (0.25, -0.38), (0.18, 0), (-0.18, 0)], (196, 110, 70))


# Places: the backdrop is painted once, 248 units wide and 224 high


def _gradient(pen: _Pen, top: Colour, bottom: Colour, v0: int = 0, v1: int = SIZE) -> None:
    right = (SIZE + _MARGIN) * _SUPERSAMPLE
    for y in range(v0 * _SUPERSAMPLE, v1 * _SUPERSAMPLE):
        share = (y / _SUPERSAMPLE - v0) / (v1 - v0)
        fill = tuple(round(a + share * (b - a)) for a, b in zip(top, bottom, strict=True))
        pen.draw.line([(0, y), (right, y)], fill=fill)


def _cloud(pen: _Pen, u: float, v: float) -> None:
    for du, dv, r in ((-16, 2, 9), (0, -3, 13), (15, 2, 10)):
        pen.oval(u + du, v + dv, r, r * 0.75, (252, 252, 255), outline=False)


def _tree(pen: _Pen, u: float, v: float, size: float) -> None:
    pen.box(u - 0.08 * size, v - 0.5 * size, u + 0.08 * size, v, (112, 78, 50))
    for du, dv in ((-0.25, 0.6), (0.25, 0.6), (0.0, 0.85)):
        pen.oval(u + du * size, v - dv * size, 0.34 * size, 0.3 * size, (66, 136, 62))


def _fir(pen: _Pen, u: float, v: float, size: float, green: Colour) -> None:
    pen.box(u - 0.06 * size, v - 0.2 * size, u + 0.06 * size, v, (92, 64, 44))
    for base, half in ((0.12, 0.36), (0.4, 0.28), (0.66, 0.2)):
        tip = v - (base + 0.42) * size
        left, right = (u - half * size, v - base * size), (u + half * size, v - base * size)
        pen.shape([left, right, (u, tip)], green)


def _paint_beach(pen: _Pen) -> None:
    _gradient(pen, (120, 200, 245), (205, 236, 250), 0, 104)
    _gradient(pen, (30, 130, 190), (92, 196, 214), 104, 152)
    _gradient(pen, (244, 222, 164), (232, 200, 136), 152)
    pen.oval(206, 34, 17, 17, (255, 226, 92), outline=False)
    for u in range(0, 250, 22):
        pen.oval(u, 152, 15, 4, (250, 252, 252), outline=False)
    pen.line([(36, 162), (44, 122), (42, 76)], 7, (150, 108, 66))
    for du, dv in ((-34, 2), (-26, 22), (34, 2), (26, 22), (-14, -20), (16, -20)):
        pen.line([(42, 76), (42 + 0.6 * du, 66 + 0.4 * dv), (42 + du, 76 + dv)], 6, (60, 150, 80))


def _paint_park(pen: _Pen) -> None:
    _gradient(pen, (140, 206, 250), (214, 238, 250), 0, 130)
    _gradient(pen, (130, 200, 90), (92, 168, 66), 130)
    _cloud(pen, 60, 32)
    _cloud(pen, 182, 48)
    for u, size in ((24, 66), (120, 52), (224, 70)):
        _tree(pen, u, 138, size)
    pen.shape([(96, 224), (152, 224), (136, 132), (126, 132)], (226, 204, 162), outline=False)


def _paint_street(pen: _Pen) -> None:
    _gradient(pen, (176, 206, 226), (222, 232, 238), 0, 150)
    walls = ((196, 106, 84), (222, 190, 132), (150, 164, 178), (206, 140, 110))
    for i, (wall, top) in enumerate(zip(walls, (30, 54, 16, 44), strict=True)):
        left = i * 62
        pen.box(left, top, left + 62, 152, wall)
        for u in (left + 10, left + 36):
            for v in range(top + 12, 128, 28):
                pen.box(u, v, u + 16, v + 16, (232, 240, 236))
    pen.box(0, 150, 248, 168, (190, 188, 184), outline=False)
    pen.box(0, 168, 248, 224, (96, 98, 104), outline=False)
    for u in range(4, 248, 44):
        pen.box(u, 193, u + 24, 198, (244, 224, 120), outline=False)


def _paint_mountains(pen: _Pen) -> None:
    _gradient(pen, (96, 164, 232), (206, 228, 246), 0, 160)
    for u, peak, half in ((40, 46, 74), (206, 40, 84), (124, 22, 86)):
        pen.shape([(u - half, 158), (u, peak), (u + half, 158)], (124, 138, 164))
        dip = peak + 0.42 * (158 - peak)
        cap = [(u - 0.42 * half, dip), (u, peak), (u + 0.42 * half, dip)]
        zigzag = [(u + 0.2 * half, dip - 8), (u, dip + 8), (u - 0.2 * half, dip - 8)]
        pen.shape([*cap, *zigzag], (250, 252, 255), outline=False)
    _gradient(pen, (240, 246, 252), (212, 226, 240), 152)
    for u, size in ((14, 40), (236, 46), (90, 28)):
        _fir(pen, u, 164, size, (54, 104, 88))


def _paint_kitchen(pen: _Pen) -> None:
    _gradient(pen, (252, 238, 206), (246, 226, 186), 0, 168)
    for u in range(0, 248, 20):
        for v in (92, 106):
            pen.box(u, v, u + 20, v + 14, (226, 240, 240))
    for u in (4, 188):
        pen.box(u, 14, u + 56, 62, (176, 122, 74))
        pen.line([(u + 28, 16), (u + 28, 60)], 1.5, (112, 76, 46))
    pen.box(92, 16, 156, 76, (176, 220, 246))
    pen.line([(124, 16), (124, 76)], 3, (250, 250, 250))
    pen.box(0, 120, 248, 128, (120, 124, 130))
    pen.box(0, 128, 248, 172, (176, 122, 74))
    for u in (62, 124, 186):
        pen.line([(u, 130), (u, 170)], 1.5, (112, 76, 46))
    for u in range(0, 248, 31):
        for v in (172, 198):
            tile = (236, 232, 226) if (u // 31 + v // 26) % 2 else (168, 186, 190)
            pen.box(u, v, u + 31, v + 26, tile, outline=False)
    pen.oval(30, 112, 17, 9, (190, 60, 50))
    pen.line([(12, 108), (48, 108)], 2, (60, 60, 66))


def _paint_living_room(pen: _Pen) -> None:
    _gradient(pen, (166, 196, 190), (150, 182, 176), 0, 160)
    _gradient(pen, (190, 138, 88), (160, 110, 66), 160)
    for v in (176, 196):
        pen.line([(0, v), (248, v)], 1, (140, 94, 56))
    pen.box(92, 26, 158, 74, (250, 244, 228))
    pen.shape([(98, 68), (116, 44), (130, 58), (140, 50), (152, 68)], (120, 150, 190))
    pen.box(54, 116, 194, 162, (172, 92, 88))
    pen.box(44, 126, 66, 168, (152, 76, 74))
    pen.box(182, 126, 204, 168, (152, 76, 74))
    pen.line([(226, 164), (226, 84)], 3, (70, 60, 56))
    pen.shape([(212, 84), (240, 84), (234, 58), (218, 58)], (255, 232, 160))
    for v in (30, 56, 82):
        pen.line([(2, v + 18), (40, v + 18)], 3, (110, 76, 50))
        for i, spine in enumerate(((200, 80, 70), (70, 110, 170), (226, 180, 80))):
            pen.box(6 + 10 * i, v, 13 + 10 * i, v + 16, spine)


def _paint_desert(pen: _Pen) -> None:
    _gradient(pen, (252, 178, 96), (255, 228, 168), 0, 140)
    pen.oval(60, 44, 22, 22, (255, 244, 200), outline=False)
    corners = [(248.0, 224.0), (0.0, 224.0)]
    pen.shape([*_arc(60, 146, 90, 40, 180, 360), (248, 146), *corners], (222, 158, 92))
    pen.shape([(0, 172), *_arc(190, 166, 120, 36, 185, 355), *corners], (236, 182, 112))
    for u, v, size in ((26, 158, 46), (222, 150, 55), (124, 140, 32)):
        cactus = _Pen(pen.draw, u, v, size)
        cactus.line([(0, 0), (0, -1)], 0.2, (70, 138, 84))
        for arm, low, high in ((-0.3, -0.4, -0.8), (0.28, -0.26, -0.6)):
            cactus.line([(0, low), (arm, low - 0.04), (arm, high)], 0.13, (70, 138, 84))


def _paint_forest(pen: _Pen) -> None:
    _gradient(pen, (120, 166, 120), (66, 116, 78), 0, 160)
    for u in range(-8, 260, 26):
        _fir(pen, u, 156, 118 + 22 * (u % 4 == 0), (48, 100, 66))
    for u in (10, 78, 150, 234):
        pen.box(u - 8, 0, u + 8, 164, (92, 66, 46))
        pen.oval(u, 2, 40, 26, (40, 88, 54))
    _gradient(pen, (84, 112, 56), (112, 92, 54), 160)
    for u in (44, 116, 196):
        pen.oval(u, 168, 15, 7, (56, 112, 58))


def _paint_lake(pen: _Pen) -> None:
    _gradient(pen, (168, 214, 244), (236, 244, 246), 0, 96)
    _cloud(pen, 190, 28)
    for u, r in ((30, 74), (140, 90), (236, 66)):
        pen.shape(_arc(u, 100, r, 42, 180, 360), (96, 150, 110))
    _gradient(pen, (88, 160, 206), (58, 122, 182), 98, 176)
    for u, v in ((30, 112), (120, 124), (200, 116), (66, 146), (166, 154), (232, 142)):
        pen.line([(u, v), (u + 22, v)], 2, (190, 222, 240))
    _gradient(pen, (136, 190, 92), (108, 164, 72), 176)
    for u in (6, 14, 22, 226, 236, 244):
        pen.line([(u, 188), (u + 2, 144)], 2, (84, 126, 62))
        pen.oval(u + 2, 142, 3, 9, (124, 82, 48))


def _paint_night_city(pen: _Pen) -> None:
    _gradient(pen, (14, 18, 54), (58, 48, 104), 0, 176)
    pen.oval(40, 34, 17, 17, (250, 244, 208), outline=False)
    pen.oval(48, 30, 15, 15, (20, 23, 60), outline=False)
    for i in range(24):
        pen.oval((i * 71) % 248, (i * 37) % 80, 1, 1, (255, 255, 240), outline=False)
    for i, top in enumerate((84, 52, 100, 36, 72, 92, 46)):
        left = i * 36
        pen.box(left, top, left + 34, 178, (34, 36, 66) if i % 2 else (44, 42, 80))
        for u in (left + 5, left + 14, left + 23):
            for v in range(top + 8, 166, 15):
                lit = (u * 7 + v * 5) % 3 > 0
                window = (255, 216, 112) if lit else (64, 66, 104)
                pen.box(u, v, u + 6, v + 8, window, outline=False)
    _gradient(pen, (66, 64, 88), (44, 44, 64), 176)


def _paint_farm(pen: _Pen) -> None:
    _gradient(pen, (150, 208, 246), (226, 240, 244), 0, 132)
    _cloud(pen, 40, 36)
    pen.shape([(0, 128), *_arc(190, 136, 120, 30, 190, 350), (248, 150), (0, 150)], (150, 190, 86))
    pen.box(84, 78, 168, 146, (186, 52, 46))
    pen.shape([(76, 80), (92, 50), (126, 36), (160, 50), (176, 80)], (110, 62, 54))
    pen.box(112, 106, 140, 146, (250, 244, 236))
    for a, b in (((112, 106), (140, 146)), ((140, 106), (112, 146))):
        pen.line([a, b], 2.5, (186, 52, 46))
    _gradient(pen, (226, 196, 92), (196, 160, 66), 146)
    for v in (160, 178, 200):
        pen.line([(0, v), (248, v)], 2, (176, 140, 56))
    for u in range(4, 248, 30):
        pen.box(u, 132, u + 5, 158, (240, 236, 226))
    pen.box(0, 138, 84, 142, (240, 236, 226))
    pen.box(168, 138, 248, 142, (240, 236, 226))


@cache
def _backdrop(place: str) -> PIL.Image.Image:
    size = ((SIZE + _MARGIN) * _SUPERSAMPLE, SIZE * _SUPERSAMPLE)
    canvas = PIL.Image.new("RGB", size)
    PLACES[place].paint(_Pen(PIL.ImageDraw.Draw(canvas)))
    return canvas


@dataclass(frozen=True)
class _Person:
    words: tuple[str, ...]
    clothes: tuple[str, ...]
    female: bool
    height: float  # pixels
    draw: Callable[[_Pen, Colour, Colour, Colour], None]


@dataclass(frozen=True)
class _Thing:
    words: tuple[str, ...]
    doing: tuple[str, ...]
    size: float  # pixels a unit
    draw: Callable[[_Pen, Colour], None]
    held: bool = False
    colours: tuple[str, ...] = tuple(COLOURS)


@dataclass(frozen=True)
class _Place:
    words: tuple[str, ...]
    paint: Callable[[_Pen], None]


PEOPLE = {
    "woman": _Person(("woman", "lady", "young woman"), ("dress",), True, 142, _draw_woman),
    "man": _Person(("man", "guy", "young man"), ("shirt", "sweater"), False, 152, _draw_man),
    "girl": _Person(("girl", "little girl", "young girl"), ("dress",), True, 98, _draw_girl),
    "boy": _Person(("boy", "little boy", "young boy"), ("shirt", "top"), False, 100, _draw_boy),
}

_NEAR = ("next to", "beside", "standing near")
THINGS = {
    "ball": _Thing(("ball",), ("playing with", "next to"), 58, _draw_ball),
    "umbrella": _Thing(
        ("umbrella", "parasol"), ("holding", "carrying", "under"), 82, _draw_umbrella, held=True
    ),
    "bicycle": _Thing(("bicycle", "bike"), _NEAR, 92, _draw_bicycle),
    "kite": _Thing(("kite",), ("flying", "playing with"), 82, _draw_kite, held=True),
    "guitar": _Thing(("guitar",), ("next to", "beside"), 78, _draw_guitar),
    "dog": _Thing(("dog", "puppy"), ("walking", "playing with"), 78, _draw_dog, colours=_FUR),
    "cat": _Thing(("cat", "kitten"), ("looking at", "next to"), 68, _draw_cat, colours=_FUR),
    "balloon": _Thing(("balloon",), ("holding", "carrying"), 78, _draw_balloon, held=True),
    "car": _Thing(("car", "automobile"), _NEAR, 98, _draw_car),
    "boat": _Thing(("boat", "sailboat"), _NEAR, 88, _draw_boat),
    "book": _Thing(("book",), ("reading", "holding"), 60, _draw_book, held=True),
    "chair": _Thing(("chair", "armchair"), _NEAR, 84, _draw_chair),
    "suitcase": _Thing(("suitcase", "travel bag"), ("next to", "beside"), 80, _draw_suitcase),
    "tent": _Thing(("tent",), (*_NEAR, "in front of"), 96, _draw_tent),
    "flower": _Thing(("flower", "potted flower"), ("watering", "next to"), 82, _draw_flower),
}

PLACES = {
    "beach": _Place(("on the beach", "on a sunny beach", "on the sand by the sea"), _paint_beach),
    "park": _Place(("in the park", "in a green park"), _paint_park),
    "street": _Place(("on the street", "on a city street"), _paint_street),
    "mountains": _Place(("in the snowy mountains", "in the snow"), _paint_mountains),
    "kitchen": _Place(("in the kitchen", "in a tiled kitchen"), _paint_kitchen),
    "living room": _Place(("in the living room", "in a living room by a sofa"), _paint_living_room),
    "desert": _Place(("in the desert", "among the cacti in the desert"), _paint_desert),
    "forest": _Place(("in the forest", "in the woods"), _paint_forest),
    "lake": _Place(("by the lake", "on the shore of a lake"), _paint_lake),
    "night city": _Place(("in the city at night", "downtown at night"), _paint_night_city),
    "farm": _Place(("on a farm", "in front of a red barn"), _paint_farm),
}

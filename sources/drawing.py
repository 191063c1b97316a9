"""How scenes are drawn: people, things, and the picture put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance

from sources.backdrops import backdrop
from sources.pen import (
    COLOURS,
    DARK,
    FUR,
    LOOKS,
    MARGIN,
    SIZE,
    SUPERSAMPLE,
    Colour,
    Pen,
    Scene,
    arc,
    pick,
    shade,
)


def draw_scene(scene: Scene) -> PIL.Image.Image:
    """The whole picture, (SIZE, SIZE) pixels."""
    rng = np.random.default_rng((*scene.seed, 3))
    shift = int(rng.integers(MARGIN * SUPERSAMPLE))
    width = SIZE * SUPERSAMPLE
    canvas = backdrop(scene.place).crop((shift, 0, shift + width, width))
    draw = PIL.ImageDraw.Draw(canvas, "RGBA")

    person, thing = PEOPLE[scene.person], THINGS[scene.thing]
    side = 1 if rng.random() < 0.5 else -1
    x = SIZE / 2 - side * rng.uniform(40, 54)
    feet = rng.uniform(204, 214)
    height = person.height * rng.uniform(0.95, 1.06)
    skin, hair = pick(rng, LOOKS)
    size = thing.size * rng.uniform(0.92, 1.08)
    hand = (0.27, -0.52)
    if thing.held:
        place = Pen(draw, x + side * hand[0] * height, feet + hand[1] * height, size, side)
    else:
        place = Pen(draw, x + side * rng.uniform(82, 94), feet + rng.uniform(-4, 4), size, side)
        place.shadow(0, 0.45)
    pen = Pen(draw, x, feet, height, side)
    pen.shadow(0, 0.2)
    thing.draw(place, COLOURS[scene.thing_colour])
    person.draw(pen, COLOURS[scene.clothes_colour], skin, hair)
    pen.line([(0.1, -0.68), (0.2, -0.57), hand], 0.055, skin)
    pen.line([(0.1, -0.68), (0.15, -0.625)], 0.07, shade(COLOURS[scene.clothes_colour], 0.85))
    return canvas.reduce(SUPERSAMPLE)


def retouch(picture: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    """The picture slightly cropped, brightened and compressed: a near copy."""
    left, top, right, bottom = rng.uniform(0, 4, size=4)
    box = (left, top, SIZE - right, SIZE - bottom)
    cropped = picture.resize((SIZE, SIZE), PIL.Image.Resampling.BILINEAR, box=box)
    brightness = float(rng.choice([-1, 1]) * rng.uniform(0.04, 0.1))
    return PIL.ImageEnhance.Brightness(cropped).enhance(1 + brightness)


# --- People: feet at the origin, one unit tall ----------------------------------------------------


def _legs(pen: Pen, top: float, upper: Colour, lower: Colour, knee: float, width: float) -> None:
    for u in (-0.06, 0.06):
        pen.line([(u, knee), (u, -0.03)], width * 0.75, lower)
        pen.line([(u, top), (u, knee)], width, upper)
        pen.oval(u + 0.02, -0.015, 0.055, 0.025, DARK)


def _head(pen: Pen, v: float, r: float, skin: Colour) -> None:
    pen.line([(0, v), (0, v + 1.3 * r)], 0.6 * r, shade(skin, 0.9))
    pen.oval(0, v, r, 1.08 * r, skin)
    for u in (-0.2, 0.5):
        pen.oval(u * r, v, 0.11 * r, 0.16 * r, DARK, outline=False)
    pen.line(arc(0.15 * r, v + 0.25 * r, 0.38 * r, 0.3 * r, 25, 155), 0.1 * r, (170, 60, 60))


def _dress(pen: Pen, colour: Colour, hem: float, flare: float) -> None:
    pen.line([(-0.1, -0.68), (-0.17, -0.45)], 0.06, shade(colour, 0.85))
    left = [(-flare, hem), (-0.075, -0.52), (-0.11, -0.72)]
    pen.shape([*left, *((-u, v) for u, v in reversed(left))], colour)
    pen.line([(-0.075, -0.52), (0.075, -0.52)], 0.025, shade(colour))


def _draw_woman(pen: Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    pen.oval(-0.02, -0.83, 0.125, 0.15, hair)
    pen.shape([(-0.14, -0.85), (0.1, -0.85), (0.1, -0.68), (-0.17, -0.6)], hair, outline=False)
    _legs(pen, -0.3, skin, skin, -0.2, 0.05)
    _dress(pen, colour, -0.22, 0.21)
    _head(pen, -0.85, 0.095, skin)
    pen.shape(arc(0, -0.86, 0.115, 0.13, 170, 350), hair)


def _draw_man(pen: Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    trousers = (66, 76, 104)
    _legs(pen, -0.45, trousers, trousers, -0.2, 0.105)
    pen.line([(-0.15, -0.69), (-0.2, -0.5), (-0.19, -0.42)], 0.06, skin)
    pen.line([(-0.15, -0.69), (-0.185, -0.56)], 0.08, shade(colour, 0.85))
    pen.shape([(-0.17, -0.74), (0.17, -0.74), (0.13, -0.42), (-0.13, -0.42)], colour)
    pen.line([(-0.125, -0.42), (0.125, -0.42)], 0.025, DARK)
    _head(pen, -0.87, 0.085, skin)
    pen.shape(arc(0, -0.86, 0.087, 0.1, 20, 160), hair, outline=False)
    pen.line([(-0.02, -0.82), (0.045, -0.82)], 0.014, (235, 200, 190))
    pen.shape(arc(0, -0.89, 0.095, 0.085, 180, 360), hair)


def _draw_girl(pen: Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    _legs(pen, -0.3, skin, (246, 246, 246), -0.14, 0.06)
    _dress(pen, colour, -0.28, 0.26)
    for u in (-0.21, 0.21):
        pen.oval(u, -0.78, 0.065, 0.11, hair)
        pen.oval(0.8 * u, -0.86, 0.035, 0.035, colour)
    _head(pen, -0.83, 0.145, skin)
    pen.shape(arc(0, -0.86, 0.16, 0.14, 175, 365), hair)


def _draw_boy(pen: Pen, colour: Colour, skin: Colour, hair: Colour) -> None:
    shorts = (150, 130, 92)
    _legs(pen, -0.4, shorts, skin, -0.22, 0.11)
    pen.line([(-0.13, -0.66), (-0.19, -0.45)], 0.06, skin)
    pen.line([(-0.13, -0.66), (-0.165, -0.55)], 0.085, shade(colour, 0.85))
    pen.shape([(-0.15, -0.7), (0.15, -0.7), (0.14, -0.38), (-0.14, -0.38)], colour)
    _head(pen, -0.83, 0.14, skin)
    pen.shape(arc(-0.02, -0.85, 0.145, 0.1, 140, 220), hair)
    pen.shape(arc(0, -0.89, 0.15, 0.12, 180, 360), colour)
    pen.line([(0.05, -0.89), (0.24, -0.88)], 0.03, shade(colour))


# --- Things: standing on the origin, one unit large; held ones begin at the hand ------------------


def _draw_ball(pen: Pen, colour: Colour) -> None:
    panel = (250, 250, 246) if colour != COLOURS["white"] else (196, 200, 210)
    pen.oval(0, -0.42, 0.42, 0.42, colour)
    for start, outer, inner in ((-90, 0.27, 0.06), (90, 0.38, 0.17)):
        edge = arc(0, -0.42, outer, 0.42, start, start + 180)
        pen.shape([*edge, *arc(0, -0.42, inner, 0.42, start + 180, start)], panel)
    pen.oval(0, -0.8, 0.1, 0.045, panel)


def _draw_umbrella(pen: Pen, colour: Colour) -> None:
    pen.line([*arc(0.05, 0.13, 0.06, 0.06, 150, 0)[::-1], (0.11, 0.0)], 0.035, (110, 76, 50))
    pen.line([(0, 0.12), (0, -0.95)], 0.035, (110, 76, 50))
    scallops = [p for u in (0.4, 0.0, -0.4) for p in arc(u, -0.55, 0.2, 0.09, 0, -180)]
    pen.shape([*arc(0, -0.55, 0.6, 0.45, 180, 360), *scallops], colour)
    for u in (-0.2, 0.2):
        pen.line([(u, -0.6), (0, -0.99)], 0.015, shade(colour))


def _draw_bicycle(pen: Pen, colour: Colour) -> None:
    for u in (-0.4, 0.4):
        pen.line(arc(u, -0.28, 0.26, 0.26, 0, 360), 0.05, DARK)
        pen.oval(u, -0.28, 0.04, 0.04, DARK, outline=False)
    frame = [(-0.4, -0.28), (-0.15, -0.66), (0.27, -0.66), (0.0, -0.28), (-0.4, -0.28)]
    pen.line(frame, 0.085, colour)
    pen.line([(-0.2, -0.74), (0.0, -0.28)], 0.07, colour)
    pen.line([(0.4, -0.28), (0.25, -0.85)], 0.085, colour)
    pen.line([(0.14, -0.86), (0.34, -0.84)], 0.05, DARK)
    pen.line([(-0.3, -0.77), (-0.12, -0.76)], 0.07, DARK)


def _draw_kite(pen: Pen, colour: Colour) -> None:
    pen.line([(0, 0), (0.35, -0.3), (0.6, -0.75)], 0.012, (250, 250, 250))
    pen.line([(0.6, -0.75), (0.72, -0.5), (0.62, -0.36), (0.76, -0.2)], 0.02, DARK)
    for u, v in ((0.7, -0.52), (0.66, -0.35), (0.75, -0.2)):
        pen.shape([(u - 0.06, v - 0.03), (u + 0.06, v + 0.03), (u + 0.06, v - 0.04)], colour)
    pen.shape([(0.7, -1.4), (0.98, -1.1), (0.6, -0.72), (0.36, -1.12)], colour)
    pen.line([(0.7, -1.4), (0.6, -0.72)], 0.018, shade(colour))
    pen.line([(0.36, -1.12), (0.98, -1.1)], 0.018, shade(colour))


def _draw_guitar(pen: Pen, colour: Colour) -> None:
    pen.line([(0, -0.5), (0, -1.2)], 0.09, (96, 62, 40))
    pen.box(-0.08, -1.34, 0.08, -1.17, shade(colour, 0.8))
    for r, v in ((0.23, -0.6), (0.31, -0.29)):
        pen.oval(0, v, r, 0.28, colour)
    pen.oval(0, -0.46, 0.16, 0.12, colour, outline=False)
    pen.oval(0, -0.5, 0.1, 0.1, (40, 28, 24))
    pen.line([(0, -0.2), (0, -1.2)], 0.012, (240, 230, 210))
    pen.line([(-0.1, -0.18), (0.1, -0.18)], 0.05, (60, 40, 30))


def _draw_dog(pen: Pen, colour: Colour) -> None:
    for u in (-0.3, -0.18, 0.14, 0.26):
        pen.line([(u, -0.35), (u, -0.04)], 0.1, shade(colour, 0.88))
    pen.line([(-0.34, -0.5), (-0.5, -0.7), (-0.5, -0.8)], 0.08, colour)
    pen.oval(-0.02, -0.43, 0.38, 0.17, colour)
    pen.oval(0.36, -0.66, 0.18, 0.17, colour)
    pen.oval(0.52, -0.61, 0.12, 0.085, colour)
    pen.oval(0.61, -0.64, 0.045, 0.04, (20, 20, 20))
    pen.oval(0.25, -0.6, 0.075, 0.17, shade(colour, 0.72))
    pen.oval(0.4, -0.71, 0.03, 0.035, (250, 250, 250))
    pen.oval(0.41, -0.71, 0.018, 0.022, (10, 10, 10), outline=False)
    pen.line([(0.24, -0.5), (0.36, -0.49)], 0.05, (220, 50, 50))


def _draw_cat(pen: Pen, colour: Colour) -> None:
    pen.line(arc(-0.34, -0.28, 0.2, 0.26, 90, 290), 0.085, shade(colour, 0.88))
    pen.oval(-0.02, -0.27, 0.28, 0.28, colour)
    for u in (-0.12, 0.1):
        pen.oval(u, -0.05, 0.1, 0.06, shade(colour, 0.9))
    for s in (-1, 1):
        pen.shape([(s * 0.24, -0.68), (s * 0.25, -1.0), (s * 0.04, -0.82)], colour)
    pen.oval(0, -0.66, 0.27, 0.23, colour)
    for s in (-1, 1):
        pen.oval(s * 0.11, -0.69, 0.05, 0.065, (190, 220, 80))
        pen.oval(s * 0.11, -0.69, 0.018, 0.055, (10, 10, 10), outline=False)
        for rise in (-0.05, 0.03):
            pen.line([(s * 0.1, -0.58), (s * 0.36, -0.58 + rise)], 0.012, (150, 150, 150))
    pen.shape([(-0.035, -0.61), (0.035, -0.61), (0, -0.57)], (240, 130, 140))


def _draw_balloon(pen: Pen, colour: Colour) -> None:
    pen.line([(0, 0), (0.08, -0.25), (0.03, -0.5), (0.1, -0.72)], 0.014, (120, 120, 130))
    pen.shape([(0.1, -0.76), (0.04, -0.68), (0.16, -0.68)], colour)
    pen.oval(0.1, -1.12, 0.31, 0.38, colour)
    pale = shade(colour, 1.3) if colour != COLOURS["white"] else (215, 220, 228)
    pen.oval(0.0, -1.26, 0.06, 0.1, pale, outline=False)


def _draw_car(pen: Pen, colour: Colour) -> None:
    pen.shape([(-0.36, -0.42), (-0.24, -0.68), (0.16, -0.68), (0.34, -0.42)], colour)
    pen.shape([(-0.27, -0.43), (-0.19, -0.62), (-0.06, -0.62), (-0.06, -0.43)], (196, 226, 242))
    pen.shape([(0.0, -0.43), (0.0, -0.62), (0.13, -0.62), (0.24, -0.43)], (196, 226, 242))
    bonnet = [(-0.58, -0.36), (-0.5, -0.44), (0.4, -0.44), (0.58, -0.34)]
    pen.shape([*bonnet, (0.58, -0.12), (-0.58, -0.12)], colour)
    pen.oval(0.54, -0.3, 0.045, 0.05, (255, 240, 160))
    for u in (-0.32, 0.32):
        pen.oval(u, -0.13, 0.13, 0.13, (40, 40, 44))
        pen.oval(u, -0.13, 0.055, 0.055, (200, 200, 205))


def _draw_boat(pen: Pen, colour: Colour) -> None:
    pen.line([(0, -0.2), (0, -1.2)], 0.045, (110, 76, 50))
    pen.shape([(0.05, -1.15), (0.05, -0.32), (0.48, -0.32)], (250, 250, 244))
    pen.shape([(-0.05, -1.02), (-0.05, -0.32), (-0.38, -0.32)], (226, 230, 232))
    pen.shape([(-0.56, -0.27), (0.58, -0.27), (0.4, 0), (-0.4, 0)], colour)
    pen.line([(-0.5, -0.19), (0.5, -0.19)], 0.035, shade(colour))


def _draw_book(pen: Pen, colour: Colour) -> None:
    cover = [(-0.06, -0.62), (0.5, -0.54), (1.06, -0.62), (1.06, 0.26), (0.5, 0.36), (-0.06, 0.26)]
    pen.shape(cover, colour)
    for s in (-1, 1):
        page = [(0.5, -0.42), (0.5 + s * 0.4, -0.48), (0.5 + s * 0.4, 0.1), (0.5, 0.18)]
        pen.shape(page, (252, 250, 240))
        for v in (-0.28, -0.14, 0.0):
            pen.line([(0.5 + s * 0.09, v), (0.5 + s * 0.32, v - 0.03)], 0.025, (170, 170, 170))


def _draw_chair(pen: Pen, colour: Colour) -> None:
    for u in (-0.33, 0.33):
        pen.line([(u, -0.3), (u, -0.03)], 0.07, (110, 76, 50))
    pen.shape([*arc(0, -0.75, 0.36, 0.4, 180, 360), (0.36, -0.3), (-0.36, -0.3)], colour)
    pen.box(-0.34, -0.48, 0.34, -0.2, shade(colour, 0.85))
    for u in (-0.4, 0.4):
        rest = [(u + 0.11, -0.16), (u - 0.11, -0.16)]
        pen.shape([*arc(u, -0.55, 0.11, 0.11, 180, 360), *rest], colour)


def _draw_suitcase(pen: Pen, colour: Colour) -> None:
    pen.line([(-0.14, -0.8), (-0.14, -1.1), (0.14, -1.1), (0.14, -0.8)], 0.05, (150, 150, 158))
    pen.box(-0.36, -0.84, 0.36, -0.07, colour)
    for u in (-0.19, 0.0, 0.19):
        pen.line([(u, -0.74), (u, -0.17)], 0.03, shade(colour))
    for u in (-0.26, 0.26):
        pen.oval(u, -0.05, 0.06, 0.06, (40, 40, 44))


def _draw_tent(pen: Pen, colour: Colour) -> None:
    pen.shape([(0, -0.9), (0.6, 0), (-0.6, 0)], colour)
    pen.shape([(0, -0.72), (0.2, 0), (-0.2, 0)], (58, 50, 52))
    pen.shape([(0, -0.74), (0.05, -0.55), (0.32, 0), (0.2, 0)], shade(colour, 0.8))
    pen.line([(0, -0.9), (0.06, -1.0)], 0.03, (110, 76, 50))


def _draw_flower(pen: Pen, colour: Colour) -> None:
    pen.line([(0, -0.35), (0.02, -0.75)], 0.05, (70, 140, 60))
    for s in (-1, 1):
        pen.oval(s * 0.14, -0.46, 0.13, 0.06, (84, 164, 72))
    for angle in range(0, 360, 60):
        u, v = arc(0.02, -0.92, 0.19, 0.19, angle, angle)[0]
        pen.oval(u, v, 0.125, 0.125, colour)
    centre = (250, 200, 50) if colour != COLOURS["yellow"] else (150, 90, 40)
    pen.oval(0.02, -0.92, 0.11, 0.11, centre)
    pen.shape([(-0.25, -0.38), (0.25, -0.38), (0.18, 0), (-0.18, 0)], (196, 110, 70))


@dataclass(frozen=True)
class _Person:
    words: tuple[str, ...]
    clothes: tuple[str, ...]
    female: bool
    height: float  # pixels
    draw: Callable[[Pen, Colour, Colour, Colour], None]


@dataclass(frozen=True)
class _Thing:
    words: tuple[str, ...]
    doing: tuple[str, ...]
    size: float  # pixels a unit
    draw: Callable[[Pen, Colour], None]
    held: bool = False
    colours: tuple[str, ...] = tuple(COLOURS)


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
    "dog": _Thing(("dog", "puppy"), ("walking", "playing with"), 78, _draw_dog, colours=FUR),
    "cat": _Thing(("cat", "kitten"), ("looking at", "next to"), 68, _draw_cat, colours=FUR),
    "balloon": _Thing(("balloon",), ("holding", "carrying"), 78, _draw_balloon, held=True),
    "car": _Thing(("car", "automobile"), _NEAR, 98, _draw_car),
    "boat": _Thing(("boat", "sailboat"), _NEAR, 88, _draw_boat),
    "book": _Thing(("book",), ("reading", "holding"), 60, _draw_book, held=True),
    "chair": _Thing(("chair", "armchair"), _NEAR, 84, _draw_chair),
    "suitcase": _Thing(("suitcase", "travel bag"), ("next to", "beside"), 80, _draw_suitcase),
    "tent": _Thing(("tent",), (*_NEAR, "in front of"), 96, _draw_tent),
    "flower": _Thing(("flower", "potted flower"), ("watering", "next to"), 82, _draw_flower),
}

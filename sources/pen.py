"""What scenes are drawn with: colours, shapes, and the scene itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import PIL.ImageDraw

DRAWING_VERSION = 2  # to be raised with every change of a picture or a caption
Colour = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")
SIZE = 224
SUPERSAMPLE = 2
MARGIN = 24  # the backdrop is this much wider than the picture, which slides along it
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
FUR = ("orange", "white", "black", "brown")
LOOKS: tuple[tuple[Colour, Colour], ...] = (  # skin and hair
    ((255, 219, 190), (226, 186, 92)),
    ((255, 219, 190), (120, 70, 40)),
    ((240, 196, 156), (176, 100, 48)),
    ((236, 188, 146), (46, 34, 30)),
    ((198, 140, 98), (62, 42, 34)),
    ((126, 82, 56), (36, 28, 28)),
)
DARK = (52, 48, 56)


@dataclass(frozen=True)
class Scene:
    """What a picture shows, and the seed of everything else about it."""

    person: str
    clothes_colour: str
    thing: str
    thing_colour: str
    place: str
    seed: tuple[int, ...]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


# --- Drawing --------------------------------------------------------------------------------------


class Pen:
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
        return x * SUPERSAMPLE, (self.y + v * self.unit) * SUPERSAMPLE

    def shape(self, points: Sequence[Point], fill: Colour, *, outline: bool = True) -> None:
        """A filled polygon."""
        corners = [self.at(*point) for point in points]
        self.draw.polygon(corners, fill=fill)
        if outline:
            self.draw.line([*corners, *corners[:2]], fill=shade(fill), width=2, joint="curve")

    def oval(
        self, u: float, v: float, ru: float, rv: float, fill: Colour, *, outline: bool = True
    ) -> None:
        """A filled ellipse around a point."""
        x, y = self.at(u, v)
        rx, ry = (r * self.unit * SUPERSAMPLE for r in (ru, rv))
        edge = shade(fill) if outline else None
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill, outline=edge, width=2)

    def box(
        self, u0: float, v0: float, u1: float, v1: float, fill: Colour, *, outline: bool = True
    ) -> None:
        """A filled rectangle between two corners."""
        self.shape([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], fill, outline=outline)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A stroke with round ends, `width` in units of the frame."""
        thick = max(2, round(width * self.unit * SUPERSAMPLE))
        corners = [self.at(*point) for point in points]
        self.draw.line(corners, fill=fill, width=thick, joint="curve")
        for x, y in (corners[0], corners[-1]):
            r = thick / 2 - 0.5
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def shadow(self, u: float, ru: float) -> None:
        """A flat shadow on the ground."""
        x, y = self.at(u, 0)
        rx, ry = (r * self.unit * SUPERSAMPLE for r in (ru, 0.03))
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(0, 0, 0, 70))


def shade(colour: Colour, factor: float = 0.62) -> Colour:
    """The colour, darker."""
    r, g, b = (min(255, int(c * factor)) for c in colour)
    return r, g, b


def arc(u: float, v: float, ru: float, rv: float, start: float, end: float) -> list[Point]:
    """Points of an elliptic arc, degrees clockwise from the positive u axis."""
    angles = np.radians(np.linspace(start, end, 20))
    return [(u + ru * math.cos(a), v + rv * math.sin(a)) for a in angles]

"""The places that scenes are drawn at, each with its name and its painter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import PIL.Image
import PIL.ImageDraw

from sources.pen import MARGIN, SIZE, SUPERSAMPLE, Colour, Pen, arc

# The backdrop of a place is painted once, 248 units wide and 224 high.


def _gradient(pen: Pen, top: Colour, bottom: Colour, v0: int = 0, v1: int = SIZE) -> None:
    right = (SIZE + MARGIN) * SUPERSAMPLE
    for y in range(v0 * SUPERSAMPLE, v1 * SUPERSAMPLE):
        share = (y / SUPERSAMPLE - v0) / (v1 - v0)
        fill = tuple(round(a + share * (b - a)) for a, b in zip(top, bottom, strict=True))
        pen.draw.line([(0, y), (right, y)], fill=fill)


def _cloud(pen: Pen, u: float, v: float) -> None:
    for du, dv, r in ((-16, 2, 9), (0, -3, 13), (15, 2, 10)):
        pen.oval(u + du, v + dv, r, r * 0.75, (252, 252, 255), outline=False)


def _tree(pen: Pen, u: float, v: float, size: float) -> None:
    pen.box(u - 0.08 * size, v - 0.5 * size, u + 0.08 * size, v, (112, 78, 50))
    for du, dv in ((-0.25, 0.6), (0.25, 0.6), (0.0, 0.85)):
        pen.oval(u + du * size, v - dv * size, 0.34 * size, 0.3 * size, (66, 136, 62))


def _fir(pen: Pen, u: float, v: float, size: float, green: Colour) -> None:
    pen.box(u - 0.06 * size, v - 0.2 * size, u + 0.06 * size, v, (92, 64, 44))
    for base, half in ((0.12, 0.36), (0.4, 0.28), (0.66, 0.2)):
        tip = v - (base + 0.42) * size
        left, right = (u - half * size, v - base * size), (u + half * size, v - base * size)
        pen.shape([left, right, (u, tip)], green)


def _paint_beach(pen: Pen) -> None:
    _gradient(pen, (120, 200, 245), (205, 236, 250), 0, 104)
    _gradient(pen, (30, 130, 190), (92, 196, 214), 104, 152)
    _gradient(pen, (244, 222, 164), (232, 200, 136), 152)
    pen.oval(206, 34, 17, 17, (255, 226, 92), outline=False)
    for u in range(0, 250, 22):
        pen.oval(u, 152, 15, 4, (250, 252, 252), outline=False)
    pen.line([(36, 162), (44, 122), (42, 76)], 7, (150, 108, 66))
    for du, dv in ((-34, 2), (-26, 22), (34, 2), (26, 22), (-14, -20), (16, -20)):
        pen.line([(42, 76), (42 + 0.6 * du, 66 + 0.4 * dv), (42 + du, 76 + dv)], 6, (60, 150, 80))


def _paint_park(pen: Pen) -> None:
    _gradient(pen, (140, 206, 250), (214, 238, 250), 0, 130)
    _gradient(pen, (130, 200, 90), (92, 168, 66), 130)
    _cloud(pen, 60, 32)
    _cloud(pen, 182, 48)
    for u, size in ((24, 66), (120, 52), (224, 70)):
        _tree(pen, u, 138, size)
    pen.shape([(96, 224), (152, 224), (136, 132), (126, 132)], (226, 204, 162), outline=False)


def _paint_street(pen: Pen) -> None:
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


def _paint_mountains(pen: Pen) -> None:
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


def _paint_kitchen(pen: Pen) -> None:
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


def _paint_living_room(pen: Pen) -> None:
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


def _paint_desert(pen: Pen) -> None:
    _gradient(pen, (252, 178, 96), (255, 228, 168), 0, 140)
    pen.oval(60, 44, 22, 22, (255, 244, 200), outline=False)
    corners = [(248.0, 224.0), (0.0, 224.0)]
    pen.shape([*arc(60, 146, 90, 40, 180, 360), (248, 146), *corners], (222, 158, 92))
    pen.shape([(0, 172), *arc(190, 166, 120, 36, 185, 355), *corners], (236, 182, 112))
    for u, v, size in ((26, 158, 46), (222, 150, 55), (124, 140, 32)):
        cactus = Pen(pen.draw, u, v, size)
        cactus.line([(0, 0), (0, -1)], 0.2, (70, 138, 84))
        for arm, low, high in ((-0.3, -0.4, -0.8), (0.28, -0.26, -0.6)):
            cactus.line([(0, low), (arm, low - 0.04), (arm, high)], 0.13, (70, 138, 84))


def _paint_forest(pen: Pen) -> None:
    _gradient(pen, (120, 166, 120), (66, 116, 78), 0, 160)
    for u in range(-8, 260, 26):
        _fir(pen, u, 156, 118 + 22 * (u % 4 == 0), (48, 100, 66))
    for u in (10, 78, 150, 234):
        pen.box(u - 8, 0, u + 8, 164, (92, 66, 46))
        pen.oval(u, 2, 40, 26, (40, 88, 54))
    _gradient(pen, (84, 112, 56), (112, 92, 54), 160)
    for u in (44, 116, 196):
        pen.oval(u, 168, 15, 7, (56, 112, 58))


def _paint_lake(pen: Pen) -> None:
    _gradient(pen, (168, 214, 244), (236, 244, 246), 0, 96)
    _cloud(pen, 190, 28)
    for u, r in ((30, 74), (140, 90), (236, 66)):
        pen.shape(arc(u, 100, r, 42, 180, 360), (96, 150, 110))
    _gradient(pen, (88, 160, 206), (58, 122, 182), 98, 176)
    for u, v in ((30, 112), (120, 124), (200, 116), (66, 146), (166, 154), (232, 142)):
        pen.line([(u, v), (u + 22, v)], 2, (190, 222, 240))
    _gradient(pen, (136, 190, 92), (108, 164, 72), 176)
    for u in (6, 14, 22, 226, 236, 244):
        pen.line([(u, 188), (u + 2, 144)], 2, (84, 126, 62))
        pen.oval(u + 2, 142, 3, 9, (124, 82, 48))


def _paint_night_city(pen: Pen) -> None:
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


def _paint_farm(pen: Pen) -> None:
    _gradient(pen, (150, 208, 246), (226, 240, 244), 0, 132)
    _cloud(pen, 40, 36)
    pen.shape([(0, 128), *arc(190, 136, 120, 30, 190, 350), (248, 150), (0, 150)], (150, 190, 86))
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
def backdrop(place: str) -> PIL.Image.Image:
    """The painted place, twice as large as it is shown and wider than the picture."""
    size = ((SIZE + MARGIN) * SUPERSAMPLE, SIZE * SUPERSAMPLE)
    canvas = PIL.Image.new("RGB", size)
    PLACES[place].paint(Pen(PIL.ImageDraw.Draw(canvas)))
    return canvas


@dataclass(frozen=True)
class _Place:
    words: tuple[str, ...]
    paint: Callable[[Pen], None]


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

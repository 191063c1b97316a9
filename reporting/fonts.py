"""Fonts that have the letters which the figures' own font lacks, where the system holds one.

DejaVu Sans, which matplotlib brings along, has Latin, Greek, Cyrillic, Arabic and Hebrew letters.
For others the installed fonts are looked through once, by the characters that they cover and not by
their names. matplotlib takes the first font of a collection (.ttc) alone; in those of Chinese,
Japanese and Korean, each has the letters of all.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.figure import Figure
from matplotlib.font_manager import (
    FontEntry,
    FontProperties,
    findfont,
    findSystemFonts,
    fontManager,
    get_font,
    ttfFontProperty,
)
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.text import Text

EAST_ASIAN = "East Asian"
# A font with so much of what the best one has of a script is as good as that.
NEARLY_ALL = 0.9
# A vowel and a tone above it, which fonts that rely on shaping draw over each other.
_STACKED = {"Thai": "\u0e35\u0e49", "Lao": "\u0eb5\u0ec9"}
# They have a glyph for every character, which shows nothing of it.
_PLACEHOLDERS = ("lastresort", "last resort", "adobe blank", "adobe notdef")


@dataclass(frozen=True, eq=False)
class Face:
    """An installed font: where it lies, how plain it looks and which characters it has."""

    path: str
    looks: tuple[object, ...]  # the less, the plainer
    characters: Int[np.ndarray, " c"]  # code points, sorted

    def has(self, code_points: Iterable[int]) -> Bool[np.ndarray, " n"]:
        """Which of the code points it has."""
        return np.isin(np.fromiter(code_points, dtype=np.int64), self.characters)


# --- Which font has a character -------------------------------------------------------------------


@functools.cache
def own_font(weight: str | int = "normal") -> FT2Font:
    """The font of the figures, which matplotlib brings along."""
    return get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))


@functools.cache
def fallback(character: str) -> str | None:
    """The path of an installed font that has the character; None where there is none.

    The plainest of those with nearly all letters of its script, so that a text is drawn in one
    font and not in many.
    """
    for face in _ranked(script(character)):
        if face.has([ord(character)])[0] and _leaves_ink(face.path, character):
            return face.path
    return None


def script(character: str) -> str:
    """What a letter is of; Chinese, Japanese and Korean ones are drawn with one font.

    A sign is of no script but itself, and so is a mark that goes with letters of any script.
    """
    code_point = ord(character)
    if unicodedata.east_asian_width(character) in "WFH" and not 0x1F000 <= code_point < 0x20000:
        return EAST_ASIAN
    name = unicodedata.name(character, "")
    if unicodedata.category(character)[0] not in "LMN" or name.startswith("COMBINING"):
        return character
    return name.partition(" ")[0].capitalize()


@functools.cache
def _ranked(of_script: str) -> tuple[Face, ...]:
    """The installed fonts with letters of a script, the best first."""
    letters, marks = _letters(of_script), _STACKED.get(of_script)
    covered = [(int(face.has(letters).sum()), face) for face in installed_faces()]
    enough = NEARLY_ALL * max((n for n, _ in covered), default=0)
    having = [
        (n < enough, marks is not None and not _stacks(face.path, *marks), face)
        for n, face in covered
        if n
    ]
    return tuple(face for *_, face in sorted(having, key=lambda h: (*h[:2], h[2].looks)))


@functools.cache
def _letters(of_script: str) -> list[int]:
    """Code points of a script, less the rare ones beyond the second plane."""
    if len(of_script) == 1:
        return [ord(of_script)]
    return [c for c in range(0x80, 0x20000) if script(chr(c)) == of_script]


# --- What is installed ----------------------------------------------------------------------------


@functools.cache
def installed_faces() -> tuple[Face, ...]:
    """Every font of the system that matplotlib can draw with, in the order of their paths."""
    faces = (_read_face(path) for path in sorted(findSystemFonts()))
    return tuple(face for face in faces if face is not None)


def _read_face(path: str) -> Face | None:
    """A font file's face, the first of a collection; None where it is of no use."""
    try:
        font = FT2Font(path)
        entry = ttfFontProperty(font)
        characters = np.fromiter(font.get_charmap(), dtype=np.int64)
    except (OSError, RuntimeError, NotImplementedError, ValueError, KeyError):
        return None  # broken, or of pictures in fixed sizes
    name = entry.name.lower()
    if name.startswith(_PLACEHOLDERS) or not len(characters):
        return None
    weight = entry.weight if isinstance(entry.weight, int) else 400
    looks = (
        entry.style != "normal",
        abs(weight - 400),
        str(entry.stretch) != "normal",
        "mono" in name or "serif" in name,
        "sans" not in name and "gothic" not in name,
        len(name),  # variants have longer names
        path,
    )
    return Face(path, looks, np.sort(characters))


def _stacks(path: str, lower: str, upper: str) -> bool:
    """Whether a font draws a mark above another one where nobody shapes its text."""
    try:
        font = FT2Font(path)
        boxes = [font.load_char(ord(c), LoadFlags.NO_SCALE).bbox for c in (lower, upper)]
    except (OSError, RuntimeError):
        return False
    (*_, top), (_, bottom, *_) = boxes
    return bool(bottom >= top)


@functools.cache
def _leaves_ink(path: str, character: str) -> bool:
    """Whether a font draws more than nothing for a character."""
    try:
        return FT2Font(path).load_char(ord(character)).width > 0
    except (OSError, RuntimeError):
        return False


# --- Drawing with them ----------------------------------------------------------------------------


def give_fonts(figure: Figure) -> None:
    """Every text of a figure is drawn with fonts that have its letters, as far as there are any.

    Texts whose letters are in the figures' own font stay as they are.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        shown = text.get_text()
        if shown.isascii():
            continue
        own = own_font(text.get_fontweight())
        lacking = (c for c in shown if not c.isspace() and not own.get_char_index(ord(c)))
        paths = dict.fromkeys(path for path in map(_font_of, lacking) if path is not None)
        if paths:
            text.set_fontfamily([*text.get_fontfamily(), *map(_family, paths)])


def _font_of(character: str) -> str | None:
    """A font with a character that the figures' own has not in some weight."""
    regular = own_font()
    return regular.fname if regular.get_char_index(ord(character)) else fallback(character)


@functools.cache
def _family(path: str) -> str:
    """A family's name under which matplotlib finds this one file.

    Names in font files are shared by several, and matplotlib's own list of what is installed may
    be older than the font.
    """
    name = f"file {path}"
    fontManager.ttflist.append(FontEntry(fname=path, name=name, size="scalable"))
    return name

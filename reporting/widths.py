"""Text cut, wrapped and filled up by the columns it takes: two for each Chinese letter.

No cut is between a letter and the marks that belong to it. Without spaces, lines end between
characters or, where ICU's dictionaries know them, between words.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable

import regex

_IN_KOREAN_WORD = regex.compile(r"\p{Hangul}\p{Hangul}")


def columns(text: str) -> int:
    """Columns that a text takes: wide characters two, marks and invisible ones none."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def cut(text: str, width: int) -> str:
    """The beginning of a text that takes at most `width` columns."""
    kept, taken = [], 0
    for character in _with_marks(text):
        taken += columns(character)
        if taken > width:
            break
        kept.append(character)
    return "".join(kept)


def shorten(text: str, width: int) -> str:
    """The text on one line of at most `width` columns, with an ellipsis where it was cut."""
    line = " ".join(text.split())
    return line if columns(line) <= width else cut(line, width - 1).rstrip() + "…"


def fill_up(text: str, width: int) -> str:
    """The text with spaces behind it, `width` columns in all if it does not take more."""
    return text + " " * (width - columns(text))


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns each; a word that takes more is broken."""
    if len(_with_marks(text)) == len(text) == columns(text):
        return textwrap.wrap(text, width)
    from icu4py.breakers import LineBreaker  # as in learner/words.py

    lines: list[str] = []
    for part in _joined(LineBreaker(text, "en")):  # of the rules, not of the dictionaries
        fits = columns(part.rstrip()) <= width
        for piece in [part] if fits else _with_marks(part):
            if lines and columns((lines[-1] + piece).rstrip()) <= width:
                lines[-1] += piece
            else:
                lines.append(piece)
    return [line.rstrip() for line in lines if line.strip()]


def _joined(parts: Iterable[str]) -> list[str]:
    """Parts of a line, those of Korean words put together: they have spaces between them."""
    joined: list[str] = []
    for part in parts:
        if joined and _IN_KOREAN_WORD.search(joined[-1][-1:] + part[:1]):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _with_marks(text: str) -> list[str]:
    """The characters as readers count them, each with the marks that belong to it."""
    characters: list[str] = regex.findall(r"\X", text)
    return characters

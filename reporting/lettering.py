"""Lines of text as matplotlib draws them rightly: it sets one glyph a character, left to right.

Arabic letters are replaced by their shapes (arabic-reshaper), and lines with Arabic or Hebrew are
put into the order of drawing by the Unicode Bidirectional Algorithm (UAX #9, python-bidi). Letters
that no font has are named by their script. Text in Latin letters stays as it is.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections.abc import Sequence

import regex
from arabic_reshaper import ArabicReshaper
from bidi import get_display
from bidi.mirror import MIRRORED

from reporting.fonts import EAST_ASIAN, fallback, own_font, script
from reporting.widths import wrap

logger = logging.getLogger(__name__)
PACKAGES = {EAST_ASIAN: "fonts-noto-cjk", "Thai": "fonts-thai-tlwg"}  # others: fonts-noto-core

_TO_THE_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]")
_WITH_DIRECTION = regex.compile(rf"{_TO_THE_LEFT.pattern}|\p{{Bidi_Class=L}}")
_INVISIBLE = regex.compile(r"(?!\u00ad)\p{Default_Ignorable_Code_Point}")  # but soft hyphens
_MIRRORED = "[" + re.escape("".join(MIRRORED)) + "]"
_LEFT_TO_RIGHT, _RIGHT_TO_LEFT = "\u200e", "\u200f"
_ISOLATE, _END_OF_ISOLATE = "\u2068", "\u2069"
_FOLLOWER = "\ufe00"  # a variation selector: drawn as nothing, in the direction of what it follows
_KOREAN_OR_JAPANESE = regex.compile(
    r"(?P<Korean>\p{Hangul})|(?P<Japanese>[\p{Hiragana}\p{Katakana}ー])"
)


def drawable(line: str) -> str:
    """The line as matplotlib is to be given it; no dollar sign opens mathematics.

    It is not to be cut or wrapped after this: its order may be that of drawing.
    """
    return _in_order(_with_stand_ins(line)).replace("$", r"\$")


def drawable_lines(text: str, width: int) -> list[str]:
    """One line of text as `drawable` lines of at most `width` columns, in its own direction."""
    text = _with_stand_ins(text)
    lines = wrap(text, width)
    if _TO_THE_LEFT.search(text):
        first = _WITH_DIRECTION.search(text)
        mark = _RIGHT_TO_LEFT if first and _TO_THE_LEFT.match(first[0]) else _LEFT_TO_RIGHT
        lines = [mark + line for line in lines]
    return [drawable(line) for line in lines]


def list_from_left(beginning: str, items: Sequence[str]) -> str:
    """A beginning and items after it from left to right, whichever way each is read."""
    if all(map(str.isascii, items)):
        return beginning + ", ".join(items)
    return _LEFT_TO_RIGHT + beginning + ", ".join(f"{_ISOLATE}{i}{_END_OF_ISOLATE}" for i in items)


# --- Right to left --------------------------------------------------------------------------------


def _in_order(line: str) -> str:
    """Arabic letters in their shapes, and all in the order of drawing.

    A mark then stands before the letter it belongs to, and is drawn over it: the marks of DejaVu
    Sans for Arabic and Hebrew take no room of their own.
    """
    if line.isascii():
        return line
    if _TO_THE_LEFT.search(line):
        shaped = "".join(map(_with_glyph, _reshaper().reshape(line.replace(_FOLLOWER, ""))))
        line = _mirrored(get_display(re.sub(_MIRRORED, rf"\g<0>{_FOLLOWER}", shaped)))
    return str(_INVISIBLE.sub("", line))


def _mirrored(line: str) -> str:
    """A line in order of drawing, with brackets mirrored where it is read to the left (L4).

    There what followed a bracket stands before it now.
    """
    return re.sub(
        f"{_FOLLOWER}(.)|({_MIRRORED}){_FOLLOWER}",
        lambda found: MIRRORED[found[1]] if found[1] else found[2],
        line,
    )


@functools.cache
def _reshaper() -> ArabicReshaper:
    """Joins letters and keeps their marks; its only ligatures are those of lam and alef."""
    return ArabicReshaper({"delete_harakat": False, "ARABIC LIGATURE ALLAH": False})


def _with_glyph(shape: str) -> str:
    """The shape of an Arabic letter, or the letter itself where no font has that shape."""
    is_shape = "\ufb50" <= shape <= "\ufeff" and not _is_drawn(shape)
    return unicodedata.normalize("NFKC", shape) if is_shape else shape


# --- Letters that no font has ---------------------------------------------------------------------


def _with_stand_ins(line: str) -> str:
    """The line with the names of scripts in place of letters that cannot be drawn.

    `[Thai]` is one word or several. A sign or a picture is a square, and so is a letter of a script
    of which most letters here can be drawn.
    """
    line = unicodedata.normalize("NFC", line)
    if all(map(_is_drawn, line)):
        return line
    named = _scripts_to_name(line)
    kinds = "".join(_kind(c, named) for c in line)
    parts, end = [], 0
    for found in re.finditer(r"n(?:[ns.]*[ns])?|s", kinds):
        text = line[found.start() : found.end()]
        parts += [line[end : found.start()], _names(text, named) if "n" in found[0] else "□"]
        end = found.end()
    return "".join([*parts, line[end:]])


def _scripts_to_name(line: str) -> set[str]:
    """Scripts of which no more than half of the line's letters can be drawn."""
    letters = list(filter(_is_letter, line))
    lacking = {script(c) for c in letters if not _is_drawn(c)}
    for name in sorted(lacking):
        _say_missing(name)
    drawn = {name: [_is_drawn(c) for c in letters if script(c) == name] for name in lacking}
    return {name for name, each in drawn.items() if 2 * sum(each) <= len(each)}


def _kind(character: str, named: set[str]) -> str:
    """A letter whose script is named, a sign for a square, another letter, or what is between."""
    if _is_letter(character) and script(character) in named:
        return "n"
    if not _is_drawn(character):
        return "s"
    return "a" if _is_letter(character) else "."


def _names(text: str, named: set[str]) -> str:
    scripts = dict.fromkeys(script(c) for c in text if _is_letter(c) and script(c) in named)
    return f"[{', '.join(_language(text) if s == EAST_ASIAN else s for s in scripts)}]"


def _language(text: str) -> str:
    """Which of the languages that are drawn with one font a text is in."""
    found = _KOREAN_OR_JAPANESE.search(text)
    return str(found.lastgroup) if found else "Chinese"


@functools.cache
def _say_missing(name: str) -> None:
    """Once for each script, that the system holds no font for it."""
    letters = "Chinese, Japanese or Korean" if name == EAST_ASIAN else name
    logger.warning(
        "no installed font has some of the %s letters of captions or terms: figures show their "
        "script's name or squares instead; install a font, on Debian or Ubuntu: apt-get install %s",
        letters,
        PACKAGES.get(name, "fonts-noto-core"),
    )


@functools.cache
def _is_drawn(character: str) -> bool:
    """Whether there is a font for the character, or nothing to be drawn."""
    if own_font().get_char_index(ord(character)) or _INVISIBLE.match(character):
        return True
    return fallback(character) is not None


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" and len(script(character)) > 1

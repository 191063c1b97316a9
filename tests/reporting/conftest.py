"""Systems that hold no fonts, or one that was made for the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from reporting import fonts, lettering

Install = Callable[..., list[str]]
CACHES = (
    fonts.fallback,
    fonts.installed_faces,
    fonts._ranked,
    lettering._is_drawn,
    lettering._say_missing,
)


def write_font(
    path: Path, characters: str, *, style: str = "Regular", blank: bool = False, raised: str = ""
) -> str:
    """A font in which each of the characters is a square, a raised one above it, or nothing."""
    names = [".notdef", *(f"c{ord(c)}" for c in characters)]
    glyphs = dict.fromkeys(names, TTGlyphPen(None).glyph() if blank else square(0))
    glyphs |= {f"c{ord(c)}": square(900) for c in raised}
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"c{ord(c)}" for c in characters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": style})
    builder.setupOS2(usWeightClass=700 if style == "Bold" else 400)
    builder.setupPost()
    builder.save(path)
    return str(path)


def square(bottom: int) -> Any:
    """A glyph of 0.9 em."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, bottom))
    for corner in ((0, bottom + 900), (900, bottom + 900), (900, bottom)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes the system hold these fonts and no others."""

    def hold(*paths: str) -> list[str]:
        for cache in CACHES:
            cache.cache_clear()
        monkeypatch.setattr(fonts, "findSystemFonts", lambda: list(paths))
        return list(paths)

    yield hold
    for cache in CACHES:
        cache.cache_clear()

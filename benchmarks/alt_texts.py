"""Captions as web pages have them: keywords, file names, prices, prompts to click.

Keywords of the right caption are right but terse. The others say nothing of the image.
"""

from __future__ import annotations

import re

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

ALT_TEXT_RULES = 1  # to be raised where the texts change: their features are kept in a file
SEED_OF_TEXTS = 11
N_OF_A_KIND = 100
MOST_KEYWORDS = 5
CAMERAS = ("IMG", "DSC", "DSCN", "P", "image", "photo")
ENDINGS = ("jpg", "JPG", "jpeg", "png")
PROMPTS = (
    "click to enlarge",
    "click here for larger image",
    "buy now",
    "add to cart",
    "zoom in",
    "view full size",
)


def keywords_of(caption: str) -> str:
    """The first words of a caption that carry meaning, each once, as a search engine is fed.

    A caption of stop words alone stays as it is.
    """
    words = re.findall(r"[a-z0-9]+", caption.lower())
    kept = dict.fromkeys(word for word in words if word not in ENGLISH_STOP_WORDS)
    return ", ".join(list(kept)[:MOST_KEYWORDS]) or caption


def texts_that_say_nothing() -> tuple[str, ...]:
    """File names, prices, and prompts to click with a price; as many of each, all different."""
    rng = np.random.default_rng(SEED_OF_TEXTS)
    numbers = rng.permutation(9000)[:N_OF_A_KIND] + 1000
    cents = rng.permutation(20000)[: 2 * N_OF_A_KIND] + 99
    names = [
        f"{CAMERAS[i % len(CAMERAS)]}_{number}.{ENDINGS[i % len(ENDINGS)]}"
        for i, number in enumerate(numbers)
    ]
    prices = [f"${c // 100}.{c % 100:02d}" for c in cents]
    prompts = [
        f"{PROMPTS[i % len(PROMPTS)]} {names[i]} {price}"
        for i, price in enumerate(prices[N_OF_A_KIND:])
    ]
    return (*names, *(f"only {price} in stock" for price in prices[:N_OF_A_KIND]), *prompts)


SAYING_NOTHING = texts_that_say_nothing()

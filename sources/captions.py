"""Captions: where they stand, their normal form, what is wrong with them, whom they name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from sources.base import CAPTION_TOO_LONG, DAMAGED_CAPTION, EMPTY_CAPTION, MISSING_CAPTION

# What readers look for, case left aside, the preferred name first.
CAPTION_COLUMNS = ("caption", "title", "text", "comment", "description")
PARQUET_CAPTION_COLUMNS = (*CAPTION_COLUMNS, "captions", "txt", "alt_text")
SHARD_CAPTION_FIELDS = (CAPTION_COLUMNS[0], "captions", *CAPTION_COLUMNS[1:])
MAX_CAPTION_CHARACTERS = 10_000
GROUP_WORDS = {
    "gender": {
        "female": "woman women girl girls lady ladies female females she her hers mother mom "
        "daughter sister wife grandmother bride actress",
        "male": "man men boy boys gentleman guy guys male males he him his father dad son "
        "brother husband grandfather groom actor",
    },
    "age": {
        "child": "child children kid kids boy boys girl girls toddler toddlers baby babies infant "
        "youngster youngsters",
        "adult": "man men woman women adult adults lady ladies gentleman guy guys mother father "
        "mom dad grandmother grandfather elderly",
    },
}


# --- Reading --------------------------------------------------------------------------------------


def captions_in(value: object) -> list[str | None]:
    """The captions in a value of JSON: one, or those of a list, of which an empty one lacks one."""
    values = value if isinstance(value, list) and value else [value]
    return [caption_in(text) for text in values]


def caption_in(value: object) -> str | None:
    """The caption that a value of JSON is; None where something else stands in its place."""
    return value if isinstance(value, str) else None


# --- Cleaning -------------------------------------------------------------------------------------


def normalize_caption(text: str) -> str:
    """A caption as it is compared, never as it is used.

    Unicode NFKC, case folded, white space collapsed, punctuation and space dropped at the end.
    Applying it twice changes nothing.
    """
    previous, text = "", text
    while text != previous:  # NFKC and case folding can undo each other's work once
        previous, text = text, unicodedata.normalize("NFKC", text).casefold()
    text = " ".join(text.split())
    while text and (text[-1].isspace() or unicodedata.category(text[-1]).startswith("P")):
        text = text[:-1]
    return text


_NO_TEXT = re.compile("[\0\ufffd\ud800-\udfff]")  # NUL, what decoders put for damage, surrogates


def caption_fault(text: str | None) -> tuple[str, str] | None:
    """Why a caption cannot be used, a short reason and what exactly is wrong; None if it can."""
    if text is None:
        return MISSING_CAPTION, ""
    if not text.strip():
        return EMPTY_CAPTION, ""
    if len(text) > MAX_CAPTION_CHARACTERS:
        return CAPTION_TOO_LONG, f"{len(text):,} characters"
    if _NO_TEXT.search(text):
        return DAMAGED_CAPTION, "it holds bytes that are no text"
    return None


# --- Demographic gaps -------------------------------------------------------------------------


def caption_groups(captions: Sequence[str]) -> dict[str, dict[str, Bool[np.ndarray, " Q"]]]:
    """Which captions speak of which group alone, by attribute and group.

    A word list on whole words; a caption with words of two groups of an attribute is in neither.
    """
    words = [set(re.findall(r"[a-z]+", caption.lower())) for caption in captions]
    memberships: dict[str, dict[str, np.ndarray]] = {}
    for attribute, groups in GROUP_WORDS.items():
        lists = {group: set(text.split()) for group, text in groups.items()}
        mentions = {
            group: np.array([bool(w & named) for w in words], dtype=bool)
            for group, named in lists.items()
        }
        n_mentioned = sum(m.astype(int) for m in mentions.values())
        memberships[attribute] = {g: m & (n_mentioned == 1) for g, m in mentions.items()}
    return memberships

"""Captions: where they stand, their normal form, what is wrong with them, whom they name."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from sources.base import CAPTION_TOO_LONG, DAMAGED_CAPTION, EMPTY_CAPTION, MISSING_CAPTION

# Where the text of an object is, the preferred name first: Karpathy's sentences have it as written
# in `raw`, FiftyOne's labels in `label`.
TEXT_FIELDS = ("caption", "raw", "text", "sentence", "value", "label", "title", "description")
MAX_CAPTION_CHARACTERS = 10_000
MAX_SHOWN_CHARACTERS = 500  # of a caption in the list of what was skipped
MAX_LIST_CHARACTERS = 2**20  # of a text that is looked at as a list
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
    """Every caption in a value of a table or of JSON; None where something else stands there.

    A text is one caption, unless it is a list written out, as JSON or as Python writes it, or an
    object of JSON; a list gives those of its values, and an empty one lacks one; of an object the
    text in the first of `TEXT_FIELDS` counts, or the texts there.
    """
    if isinstance(value, str):
        return [*(_written_out(value) or [value])]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [text for item in value for text in captions_in(_plain(item))] or [None]
    return _listed_in(value) or [_text_of(value)]


def caption_in(value: object) -> str | None:
    """The caption that a value is; None where something else stands in its place."""
    return value if isinstance(value, str) else None


def _plain(item: object) -> object:
    """A value of a list; a list in a list is no caption."""
    return None if isinstance(item, list | tuple) else item


def _text_of(value: object) -> str | None:
    """The text in an object, one object in another included; None for anything else."""
    if not isinstance(value, Mapping):
        return caption_in(value)
    fields = {str(name).casefold(): found for name, found in value.items()}
    texts = (_text_of(fields[name]) for name in TEXT_FIELDS if name in fields)
    return next((text for text in texts if text is not None), None)


def _listed_in(value: object) -> list[str | None] | None:
    """The captions of an object that holds a list of them, as columns of objects are stored."""
    if not isinstance(value, Mapping):
        return None
    fields = {str(name).casefold(): found for name, found in value.items()}
    found = next((fields[name] for name in TEXT_FIELDS if name in fields), None)
    return captions_in(found) if isinstance(found, list | np.ndarray) and len(found) else None


def _written_out(text: str) -> list[str] | None:
    """The texts of a list or object that is written out; None where the text is neither."""
    start = text.lstrip()[:1]
    if start == "{" and len(text) < MAX_LIST_CHARACTERS:
        try:
            found = captions_in(json.loads(text))
        except (ValueError, RecursionError):
            return None
        return [t for t in found if t is not None] or None
    return _listed_texts(text) if start in ("[", "(") else None


def _listed_texts(text: str) -> list[str] | None:
    """The texts of a list that is written out; None where the text is no list of texts.

    What NumPy prints has no commas, and Python would read the texts of it as a single one.
    """
    text = text.strip()
    if not (text.endswith(("]", ")")) and len(text) < MAX_LIST_CHARACTERS):
        return None
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return _python_texts(text)
    found = [_text_of(item) for item in listed]
    return [t for t in found if t is not None] if found and None not in found else None


def _python_texts(text: str) -> list[str] | None:
    """The same of a list as Python or NumPy writes it: the text is cut up, never run."""
    try:
        tokens = [
            t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.string.strip()
        ]
        if any(t.type not in (tokenize.STRING, tokenize.OP) for t in tokens):
            return None
        if {t.string for t in tokens if t.type == tokenize.OP} - {*"[](),"}:
            return None
        texts = [ast.literal_eval(t.string) for t in tokens if t.type == tokenize.STRING]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return texts if texts and all(isinstance(t, str) for t in texts) else None


# --- Cleaning -------------------------------------------------------------------------------------


def normalize_caption(text: str) -> str:
    """A caption as it is compared, never as it is used.

    Unicode NFKC, case folded, white space collapsed, punctuation and space dropped at the end.
    Applying it twice changes nothing.
    """
    if text.isascii():  # most captions; NFKC leaves them as they are
        text = text.lower()
    else:
        previous = ""
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


def shown_caption(text: str) -> str:
    """A caption that any file can hold, cut off where it is very long."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"


# --- Demographic gaps -------------------------------------------------------------------------


def caption_groups(captions: Sequence[str]) -> dict[str, dict[str, Bool[np.ndarray, " Q"]]]:
    """Which captions speak of which group alone, by attribute and group.

    A word list on whole words; a caption with words of two groups of an attribute is in neither.
    """
    bits: dict[str, int] = {}  # of a word, one for every group whose list it is in
    groups = [(attribute, group) for attribute, of in GROUP_WORDS.items() for group in of]
    for bit, (attribute, group) in enumerate(groups):
        for word in GROUP_WORDS[attribute][group].split():
            bits[word] = bits.get(word, 0) | 1 << bit
    named = np.fromiter((_named(caption, bits) for caption in captions), np.int64, len(captions))
    mentions = {of: named >> bit & 1 for bit, of in enumerate(groups)}
    return {
        attribute: {
            group: (mentions[attribute, group] == 1)
            & (sum(mentions[attribute, other] for other in of) == 1)
            for group in of
        }
        for attribute, of in GROUP_WORDS.items()
    }


def _named(caption: str, bits: Mapping[str, int]) -> int:
    """The bits of all words of a caption together."""
    found = 0
    for word in re.findall(r"[a-z]+", caption.lower()):
        found |= bits.get(word, 0)
    return found

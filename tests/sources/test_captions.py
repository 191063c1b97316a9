"""Captions as they are compared, and what is wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.base import CAPTION_TOO_LONG, DAMAGED_CAPTION, EMPTY_CAPTION, MISSING_CAPTION
from sources.captions import (
    caption_fault,
    captions_in,
    normalize_caption,
)


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a dog", ["a dog"]),
        (["a", "b"], ["a", "b"]),
        (["a", None, 3, ["b"]], ["a", None, None, None]),
        ([], [None]),
        (None, [None]),
        (3, [None]),
        ({"caption": "a"}, ["a"]),
        (
            [{"raw": "A dog .", "tokens": ["a", "dog"]}, {"Text": "b"}, {"x": 1}],
            ["A dog .", "b", None],
        ),
        ({"label": {"value": "a"}}, ["a"]),
        ('["a dog", "it\'s"]', ["a dog", "it's"]),
        ('[{"raw": "a"}, {"raw": "b"}]', ["a", "b"]),
        ('[\'a "dog"\', "it\'s"]', ['a "dog"', "it's"]),
        ("['a dog'\n 'a cat']", ["a dog", "a cat"]),  # as NumPy writes it
        ({"raw": ["a", None, "b"], "tokens": [["a"], [], ["b"]]}, ["a", None, "b"]),
        ('{"caption": "a dog", "score": 0.3}', ["a dog"]),
        ('{"score": 0.3}', ['{"score": 0.3}']),
        ("{a dog}", ["{a dog}"]),
        ("", [""]),
        ("('a dog', 'a cat')", ["a dog", "a cat"]),
        ("(a dog)", ["(a dog)"]),
        ("[laughs] a man", ["[laughs] a man"]),
        ("[a dog]", ["[a dog]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[]", ["[]"]),
        ("[__import__('os').name]", ["[__import__('os').name]"]),
        ("[" * 5000 + "]" * 5000, ["[" * 5000 + "]" * 5000]),
    ],
)
def test_captions_in_values(value: object, captions: list[str | None]) -> None:
    assert captions_in(value) == captions


@given(st.text())
def test_normalising_is_idempotent_and_ignores_case_space_and_final_stops(text: str) -> None:
    once = normalize_caption(text)
    assert normalize_caption(once) == once
    assert normalize_caption(f"  {text} . ") == once
    assert once == once.casefold() == " ".join(once.split())


@pytest.mark.parametrize("text", ["A  dog\truns.", "a dog runs", "A DOG RUNS !!", "ａ dog runs…"])
def test_captions_that_are_the_same(text: str) -> None:
    assert normalize_caption(text) == "a dog runs"


LONGEST = "x" * 10_000
FAULTS: list[tuple[str | None, str, str]] = [
    (None, MISSING_CAPTION, ""),
    ("", EMPTY_CAPTION, ""),
    (" \t\n\u3000", EMPTY_CAPTION, ""),
    ("a \0 dog", DAMAGED_CAPTION, "it holds bytes that are no text"),
    ("a d\ufffdg", DAMAGED_CAPTION, "it holds bytes that are no text"),
    ("a dog\ud800", DAMAGED_CAPTION, "it holds bytes that are no text"),
    ("\udfff", DAMAGED_CAPTION, "it holds bytes that are no text"),
    (LONGEST + "x", CAPTION_TOO_LONG, "10,001 characters"),
]


@pytest.mark.parametrize(("text", "reason", "detail"), FAULTS)
def test_captions_that_cannot_be_used(text: str | None, reason: str, detail: str) -> None:
    assert caption_fault(text) == (reason, detail)


@pytest.mark.parametrize("text", ["a", " a ", "0", "\U0001f415", "\ud7ff\ue000", LONGEST])
def test_captions_that_can_be_used(text: str) -> None:
    assert caption_fault(text) is None


@given(st.text(st.characters(exclude_categories=[]), max_size=20))
def test_a_usable_caption_has_bytes(text: str) -> None:
    if caption_fault(text) is None:
        assert text.encode().decode().strip()
    else:
        assert not text.strip() or any(c in "\0\ufffd" or 0xD800 <= ord(c) <= 0xDFFF for c in text)

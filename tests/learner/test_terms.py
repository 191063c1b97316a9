"""Terms of clusters worked by hand, and of captions in many languages."""

from __future__ import annotations

import math

import numpy as np
import pytest

from learner.terms import N_TERMS, distinctive_terms


def test_distinctive_terms_by_hand() -> None:
    captions = ["a dog runs", "the dog barks", "a cat runs", "cat sleeps", "cat cat"]
    assignments = np.array([0, 0, 1, 1, 1])
    # Words: cluster 0 has dog 2, runs 1, barks 1; cluster 1 has cat 4, runs 1, sleeps 1: A = 5.
    scores = {
        "dog": 2 / 4 * math.log(1 + 5 / 2),
        "barks": 1 / 4 * math.log(1 + 5 / 1),
        "runs": 1 / 4 * math.log(1 + 5 / 2),
    }
    assert sorted(scores, key=lambda t: -scores[t]) == ["dog", "barks", "runs"]
    assert distinctive_terms(assignments, 2, captions) == [
        ["dog", "barks", "runs"],
        ["cat", "sleeps", "runs"],
    ]


def test_a_word_of_every_cluster_gives_way_to_one_of_its_own() -> None:
    captions = ["common rare"] + [f"common word{'abcdefgh'[i]}" for i in range(8)]
    terms = distinctive_terms(np.arange(9), 9, captions)
    assert [t[0] for t in terms] == ["rare"] + [f"word{'abcdefgh'[i]}" for i in range(8)]


def test_there_are_at_most_so_many_terms_and_no_numbers_or_stop_words() -> None:
    caption = "the and 12 x9 alpha beta gamma delta epsilon zeta eta theta x"
    (terms,) = distinctive_terms(np.array([0]), 1, [caption])
    assert len(terms) == N_TERMS
    assert set(terms) <= set("alpha beta gamma delta epsilon zeta eta theta".split())


def test_terms_of_other_scripts() -> None:
    terms = distinctive_terms(np.array([0, 1]), 2, ["Ein Hund läuft", "собака бежит"])
    assert "läuft" in terms[0]
    assert set(terms[1]) == {"собака", "бежит"}


@pytest.mark.parametrize("caption", ["", "the of 12 !", "x y z"])
def test_captions_without_words_have_no_terms(caption: str) -> None:
    assert distinctive_terms(np.array([0, 1, 1]), 2, [caption] * 3) == [[], []]


def test_a_cluster_without_words_among_others_has_no_terms() -> None:
    assert distinctive_terms(np.array([0, 1]), 2, ["a red boat", "12"]) == [["boat", "red"], []]

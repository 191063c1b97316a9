"""Terms of clusters worked by hand, and of captions in many languages."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

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


# --- Captions in other languages ------------------------------------------------------------------


def terms_before(assignments: np.ndarray, n_clusters: int, captions: list[str]) -> list[list[str]]:
    """Terms by scikit-learn's own tokens, as they were before other scripts were cut."""
    documents = [
        " ".join(captions[i] for i in np.flatnonzero(assignments == k)) for k in range(n_clusters)
    ]
    vectorizer = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{2,}\b")
    counts = vectorizer.fit_transform(documents).toarray()
    totals = counts.sum(axis=1, keepdims=True)
    scores = counts / np.maximum(totals, 1) * np.log1p(totals.mean() / counts.sum(axis=0))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :N_TERMS]
    names = vectorizer.get_feature_names_out()
    return [[str(names[t]) for t in row if scores[k, t] > 0] for k, row in enumerate(best)]


def test_terms_in_latin_letters_are_what_they_were() -> None:
    rng = np.random.default_rng(0)
    drawn = [SENTENCES[i] for i in rng.integers(len(SENTENCES), size=300)]
    assignments = rng.integers(5, size=300)
    assert distinctive_terms(assignments, 5, drawn) == terms_before(assignments, 5, drawn)
    assert all(len(terms) == N_TERMS for terms in distinctive_terms(assignments, 5, drawn))


SENTENCES = (
    "A black dog runs over the well-known beach, isn't it?",
    "Two MEN_x in 3 red shirts9 play football — naïve café",
    "Ein Hund läuft über die Straße, à côté d'un élève",
    "The child's kite flies above İzmir and Łódź²",
    "a dog dog dog and a cat",
    "X Y z, 12 boats; boats/ships @user #tag http://a.example/b_c?d=1",
)
TOPICS: dict[str, tuple[list[str], list[str], list[tuple[str, str]]]] = {
    "Chinese": (
        ["一只黑狗", "两个男人", "一位老人", "几个孩子", "穿红色衣服的女人"],
        ["{s}在{n}上{v}。", "{s}正在{n}里{v}着", "照片中，{s}在{n}旁边{v}"],
        [("海滩", "散步"), ("厨房", "做饭"), ("足球场", "跑步"), ("雪山", "滑雪")],
    ),
    "Japanese": (
        ["黒い犬", "小さな女の子", "二人の男性", "老人", "子供たち"],
        ["{s}が{n}で{v}。", "{n}の中で{v}{s}", "{s}は{n}のそばで{v}様子"],
        [
            ("砂浜", "走っている"),
            ("台所", "食べている"),
            ("公園", "遊んでいる"),
            ("雪山", "滑っている"),
        ],
    ),
    "Thai": (
        ["สุนัขสีดำ", "เด็กผู้หญิง", "ผู้ชายสองคน", "แมว"],
        ["{s}กำลัง{v}อยู่ที่{n}", "{s}{v}ใน{n}", "ที่{n}มี{s}กำลัง{v}"],
        [("ชายหาด", "วิ่ง"), ("ตลาด", "กิน"), ("ภูเขา", "เดิน"), ("ถนน", "นั่ง")],
    ),
}


def about_topics(language: str) -> tuple[np.ndarray, list[str]]:
    """200 captions, 50 of each of four topics."""
    subjects, patterns, topics = TOPICS[language]
    rng = np.random.default_rng(1)
    captions = [
        patterns[rng.integers(len(patterns))].format(
            s=subjects[rng.integers(len(subjects))], n=noun, v=verb
        )
        for noun, verb in topics
        for _ in range(50)
    ]
    return np.repeat(np.arange(4), 50), captions


@pytest.mark.parametrize("language", TOPICS)
def test_the_noun_of_a_topic_is_among_its_first_terms(language: str) -> None:
    assignments, captions = about_topics(language)
    terms = distinctive_terms(assignments, 4, captions)
    for (noun, _), found in zip(TOPICS[language][2], terms, strict=True):
        assert noun in found[:2]
        assert max(map(len, found)) <= 8, "words and no sentences"
    shared = {"在", "上", "里", "的", "が", "で", "の", "いる", "กำลัง", "ที่", "ใน", "一只", "两个"}
    assert not shared & {term for found in terms for term in found}


def test_languages_side_by_side() -> None:
    captions = ["一只狗在海滩上 a dog on the beach", "собака на пляже", "犬が砂浜で"]
    first, second, third = distinctive_terms(np.arange(3), 3, captions)
    assert set(first) == {"狗", "海滩", "dog", "beach"}
    assert set(second) == {"собака", "на", "пляже"}
    assert set(third) == {"犬", "砂浜"}


def test_a_part_of_a_better_term_gives_way_to_another_word() -> None:
    captions = ["小女孩跑步，小女孩跑步，女孩"]
    (terms,) = distinctive_terms(np.array([0]), 1, captions)
    assert "小女孩" in terms
    assert "女孩" not in terms
    assert distinctive_terms(np.array([0]), 1, ["dogs dogs dog"]) == [["dogs", "dog"]]


def test_captions_that_are_all_alike_give_words() -> None:
    captions = ["一群孩子在公园里玩耍。"] * 30
    assert set(distinctive_terms(np.zeros(30, dtype=int), 1, captions)[0]) == {
        "孩子",
        "公园",
        "玩耍",
    }


def test_terms_are_those_of_the_dense_table_by_hand() -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("bcdfghjk"))
    words = ["".join(rng.choice(letters, size=4)) for _ in range(60)]
    captions = [" ".join(rng.choice(words, size=6)) for _ in range(200)]
    assignments = rng.integers(0, 9, size=200)
    assignments[assignments == 4] = 5  # a cluster without captions
    names = sorted({word for caption in captions for word in caption.split()})
    counts = np.zeros((9, len(names)))
    for caption, k in zip(captions, assignments, strict=True):
        for word in caption.split():
            counts[k, names.index(word)] += 1
    totals = counts.sum(axis=1)
    expected = []
    for k in range(9):
        scores = [
            counts[k, t] / max(totals[k], 1) * math.log1p(totals.mean() / counts[:, t].sum())
            for t in range(len(names))
        ]
        ranked = sorted(range(len(names)), key=lambda t: (-round(scores[t], 12), t))
        expected.append([names[t] for t in ranked if scores[t] > 0][:N_TERMS])
    assert expected[4] == []
    assert distinctive_terms(assignments, 9, captions) == expected

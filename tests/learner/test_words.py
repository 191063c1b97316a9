"""Words of captions, by hand, in scripts with spaces and without."""

from __future__ import annotations

import pytest

from learner.words import caption_words


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A well-known Dog doesn't run, x 12 x9 9x foo_bar", "known dog doesn run"),
        ("Ein Hund läuft über die Straße", "ein hund läuft über die straße"),
        ("Собака бежит", "собака бежит"),
        ("كلب أسود", "كلب أسود"),
        ("כלב שחור", "כלב שחור"),
        ("검은 개가 달린다", "검은 개가 달린다"),
    ],
)
def test_words_between_spaces(caption: str, words: str) -> None:
    assert caption_words(caption) == words.split()


def test_no_word_is_torn_at_a_mark() -> None:
    assert caption_words("छोटा कुत्ता तट पर") == ["छोटा", "कुत्ता", "तट", "पर"]
    assert caption_words("यह है में व") == ["यह"]  # one letter each, but the first
    assert caption_words("cafe\u0301 noir") == ["café", "noir"]
    assert caption_words("שָׁלוֹם") == ["שָׁלוֹם"]
    assert caption_words("او می‌دود") == ["او", "می\u200cدود"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("一只黑狗在海滩上散步。", "黑狗 海滩 散步"),
        ("两个男人骑着自行车，3只狗", "男人 骑 自行车 狗"),
        ("操场上的孩子们", "操场 孩子"),
        ("一隻黑狗在沙灘上奔跑", "黑狗 沙灘 奔跑"),
        ("犬が公園で走っている。", "犬 公園 走"),
        ("子供たちがサッカーをしている", "子供 サッカー"),
        ("สุนัขสีดำกำลังวิ่งบนชายหาด", "สุนัข สี ดำ วิ่ง ชายหาด"),
        ("ໝາກຳລັງແລ່ນຢູ່ຫາດຊາຍ", "ໝາ ແລ່ນ ຫາດຊາຍ"),
        ("ឆ្កែកំពុងរត់នៅលើឆ្នេរ", "ឆ្កែ រត់ ឆ្នេរ"),
        ("ခွေးတစ်ကောင်ကမ်းခြေမှာပြေးနေတယ်", "ခွေး ကမ်းခြေ ပြေး"),
    ],
)
def test_words_without_spaces_between(caption: str, words: str) -> None:
    assert caption_words(caption) == words.split()


def test_languages_in_one_caption() -> None:
    assert caption_words("A black dog 在海滩 runs") == ["black", "dog", "海滩", "runs"]
    assert caption_words("白色T恤和iPhone手机, 9狗_ 9abc") == [
        "白色",
        "t恤",
        "iphone",
        "手机",
        "狗",
    ]
    assert caption_words("\U0001f600狗\u200b猫\U00020bb7") == ["狗", "猫", "\U00020bb7"]


@pytest.mark.parametrize("caption", ["", "。！？", "的 了 在", "一个 三只 12", "がをに", "ๆ"])
def test_captions_that_tell_nothing(caption: str) -> None:
    assert caption_words(caption) == []

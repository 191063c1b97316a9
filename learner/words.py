"""The words of captions, in scripts that put spaces between words and in scripts that do not.

Between spaces a word is two letters or more with the marks above and below them, as scikit-learn's
vectorizers take it. Text without spaces is cut by dictionaries that come with their packages:
Simplified Chinese by jieba's (rjieba), which knows compounds that ICU's cuts in two; Traditional
Chinese, Japanese, Thai, Lao, Khmer and Burmese by ICU's (icu4py). What a dictionary does not know
comes in shorter parts, never as a whole sentence.
"""

from __future__ import annotations

import re
import unicodedata

import regex
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

_SPACED_WORD = re.compile(r"\b[^\W\d_]{2,}\b")
# Marks, and ZWNJ and ZWJ in Persian and languages of India, are inside words, not between them.
_INSIDE = r"\p{M}\u200c\u200d"
_MARKS = regex.compile(f"[{_INSIDE}]")
_RUN = regex.compile(rf"[\w{_INSIDE}]+")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}ー]")
_HAN = regex.compile(r"\p{Han}")
_WITHOUT_SPACES = (
    r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
)
_UNSPACED = regex.compile(f"[{_WITHOUT_SPACES}]")
_NEEDS_CARE = regex.compile(f"[{_WITHOUT_SPACES}{_INSIDE}]")
# A number, a counted thing's classifier after it or none.
_COUNTED = re.compile(
    "[一二两兩三四五六七八九十百千几幾数數半多每这這那某各]+"
    "[个個只隻位名群条條张張辆輛座件双雙对對块塊片朵棵头頭匹本台架艘把杯盘盤碗人枚羽棟些种種]?"
)
_FUNCTION_WORDS = frozenset(
    # Chinese, Simplified and Traditional
    "的 了 着 著 过 過 地 得 在 上 下 里 裡 裏 中 内 內 外 前 后 後 左 右 边 邊 旁 旁边 旁邊 "
    "上面 下面 里面 裡面 前面 后面 後面 中间 中間 之间 之間 附近 和 与 與 及 或 而 并 並 也 "
    "都 就 又 还 還 很 更 最 太 非常 不 没 沒 没有 沒有 是 有 为 為 被 把 给 給 让 讓 向 往 "
    "从 從 到 对 對 以 于 於 由 用 跟 同 将 將 会 會 能 可以 正 正在 已 已经 已經 这 這 那 "
    "这个 這個 那个 那個 这里 這裡 那里 那裡 他 她 它 我 你 们 們 他们 他們 她们 她們 它们 "
    "它們 我们 我們 自己 其 其中 其他 之 等 所 个 個 只 隻 位 名 群 条 條 张 張 辆 輛 件 "
    "一起 一样 一樣 一些 一边 一邊 一旁 起来 起來 出来 出來 来 來 去 来自 來自 进行 進行 "
    "位于 位於 坐在 站在 躺在 走在 趴在 放在 停在 看着 看著 "
    # Japanese
    "の を に が は も で と へ や から まで より こと もの ため これ それ あれ この その "
    "あの ここ そこ いる ある する なる くる いく いた あった した して って った んで いて おり "
    "れる られる ている てる です ます ました ない なく ながら そして また など だけ たち とても "
    "ところ よう さん いくつ ひとつ ふたつ 中 上 下 横 隣 的 様子 "
    # Thai
    "และ หรือ ของ ที่ ใน บน กับ เป็น มี อยู่ กำลัง ได้ ให้ ไป มา จาก โดย ด้วย แล้ว จะ ก็ ว่า "
    "นี้ นั้น ซึ่ง อัน ตัว คัน หนึ่ง สอง สาม หลาย ไม่ ข้าง ใต้ เหนือ ข้างๆ ใกล้ ตาม ถึง "
    "เพื่อ การ ความ ต่อ อีก แต่ "
    # Lao
    "ແລະ ຫຼື ຂອງ ທີ່ ໃນ ເທິງ ກັບ ເປັນ ມີ ຢູ່ ກຳລັງ ກໍາລັງ ໄດ້ ໃຫ້ ໄປ ມາ ຈາກ ໂດຍ ດ້ວຍ ແລ້ວ ຈະ "
    "ນີ້ ນັ້ນ ໂຕ ໜຶ່ງ ສອງ ບໍ່ "
    # Khmer
    "និង ឬ របស់ នៃ ដែល ក្នុង លើ ជាមួយ ជា មាន នៅ កំពុង បាន ឲ្យ ឱ្យ ទៅ មក ពី ដោយ នេះ នោះ មួយ "
    "ពីរ នាក់ ការ តាម "
    # Burmese
    "နှင့် နဲ့ သို့မဟုတ် ၏ ရဲ့ သော သည် တယ် မှာ တွင် ပေါ် ပေါ်မှာ က ကို မှ များ တွေ ဖြင့် "
    "ဖြစ် ရှိ နေ နေတယ် တစ် နှစ် ကောင် ယောက် ဒီ ထို ပြီး အတွက်".split()
)


def caption_words(caption: str) -> list[str]:
    """The words of a caption in order, in small letters, without function words and numbers.

    English and the other languages in Latin letters: every run of two letters or more that is not
    among scikit-learn's English stop words.
    """
    text = unicodedata.normalize("NFC", caption)
    if text.isascii() or not _NEEDS_CARE.search(text):
        return [w for w in _SPACED_WORD.findall(text.lower()) if w not in ENGLISH_STOP_WORDS]
    words: list[str] = []
    is_japanese = bool(_KANA.search(text))
    for run in _RUN.findall(text):
        if not is_unspaced(run):
            words.append(run)
        elif is_japanese or not _is_simplified(run):
            words += _cut_by_icu(run)
        else:
            words += _cut_by_jieba(run)
    return [word for word in map(str.lower, words) if _tells_something(word)]


def is_unspaced(text: str) -> bool:
    """Whether there are letters of a script that puts no spaces between words."""
    return bool(_UNSPACED.search(text))


def _is_simplified(text: str) -> bool:
    """Whether all characters are of GB 2312, which has no Traditional ones."""
    try:
        text.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def _cut_by_icu(text: str) -> list[str]:
    from icu4py.breakers import WordBreaker  # 40 MB that most data sets do without

    return list(WordBreaker(text, "en"))  # the language of the rules, not of the dictionaries


def _cut_by_jieba(text: str) -> list[str]:
    import rjieba  # which reads its dictionary

    # Without its guess at unknown words, which glues a noun to the particle behind it.
    return [_without_place(word) for word in rjieba.cut(text, hmm=False)]


def _without_place(word: str) -> str:
    """A word of Chinese less the "on" or "in" at its end, with which some are in the dictionary."""
    return word[:-1] if len(word) > 2 and word[-1] in "上下里中" else word


def _tells_something(word: str) -> bool:
    """Whether a word could say what a topic is about: no number, letter or function word.

    Where no spaces are, a letter with a vowel sign is a word, and a Chinese character alone too.
    """
    if is_unspaced(word):
        told = len(word) > 1 or bool(_HAN.fullmatch(word))
        return told and word not in _FUNCTION_WORDS and not _COUNTED.fullmatch(word)
    letters = _MARKS.sub("", word)
    return bool(_SPACED_WORD.fullmatch(letters)) and word not in ENGLISH_STOP_WORDS

"""Features of encoders and of embeddings that exist; the truth is what the tests make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import PIL.Image
import pytest
import torch

from artifacts.provenance import FLAG_WORDS, changed_settings
from artifacts.settings import InputError
from encoders import base
from encoders.base import (
    DTYPES,
    EmbeddingConfig,
    Encoded,
    Encoder,
    GivenEmbeddings,
    count_cut_off,
    resolve_dtype,
    slow_precision,
)
from tests.small_models import CPU


class Lengths(Encoder):
    """The mean of an image, and the length of a caption twice for its projection."""

    name = "lengths"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def preprocess(self, image: PIL.Image.Image) -> np.ndarray:
        return np.zeros((3, *image.size), np.float32)

    def encode_images(self, inputs: np.ndarray) -> Encoded:
        return Encoded(inputs.mean(axis=(2, 3)), None)

    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        self.batches.append(list(captions))
        lengths = np.array([[len(caption)] for caption in captions], np.float32)
        return Encoded(lengths, np.hstack([lengths, lengths]))


def test_an_encoder_encodes_equal_captions_once_and_short_ones_first() -> None:
    encoder, captions = Lengths(), ["bb", "a", "dddd", "bb", "ccc", "a", "aa"]
    found = encoder.all_text_features(captions, np.arange(7), batch_size=2)
    assert encoder.batches == [["a", "aa"], ["bb", "ccc"], ["dddd"]]
    assert found.features.tolist() == [[2], [1], [4], [2], [3], [1], [2]]
    assert found.projections is not None
    assert found.projections.tolist() == [[n, n] for [n] in found.features.tolist()]
    some = encoder.text_features(captions[:3], np.array([7, 8, 9]))
    assert some.features.tolist() == [[2], [1], [4]]


class Words(Lengths):
    """Takes a word, and each end of a caption, for a token, but "&amp;" for three."""

    max_tokens = 6

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[list[str]] = []

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        self.counted.append(list(captions))
        return [len(caption.replace("&amp;", "a n d").split()) + 2 for caption in captions]


def test_captions_that_are_cut_off_are_counted_pair_by_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits, long, longer = "four words are read", "but five words are not", "a b c d e f g"
    monkeypatch.setattr(base, "CAPTIONS_COUNTED_AT_ONCE", 2)
    encoder = Words()
    assert count_cut_off(encoder, [long, fits, long, longer, "a", "aa", "aaa"]) == 3
    # Two characters and the marks at their ends fit; equal captions are looked at once.
    assert encoder.counted == [[long, fits], [longer, "aaa"]]


def test_short_captions_that_may_grow_are_looked_at() -> None:
    encoder = Words()
    encoder.max_tokens = 9  # five characters that stay what they are fit
    assert count_cut_off(encoder, ["&amp;", "ﷺ", "abcde"]) == 0
    assert encoder.counted == [["&amp;", "ﷺ"]]
    encoder.max_tokens = 4
    assert count_cut_off(encoder, ["&amp;", "ﷺ", "abcde"]) == 1


def test_nothing_is_cut_off_without_a_limit() -> None:
    assert Lengths().max_tokens is None
    assert count_cut_off(Lengths(), ["word " * 1000]) == 0
    given = GivenEmbeddings("mine", lambda positions: np.zeros((len(positions), 2), np.float32))
    assert count_cut_off(given, ["word " * 1000]) == 0


def test_given_embeddings_are_those_of_the_positions_whatever_the_captions() -> None:
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    asked: list[list[int]] = []

    def texts_at(positions: np.ndarray) -> np.ndarray:
        asked.append(positions.tolist())
        rows: np.ndarray = table[positions]
        return rows

    given = GivenEmbeddings("mine", texts_at)
    assert (given.name, given.preprocess) == ("mine", None)
    for found in (
        given.all_text_features(["same"] * 3, np.array([4, 0, 4]), batch_size=2),
        given.text_features(["same"] * 3, np.array([4, 0, 4])),
        given.encode_images(table[[4, 0, 4]]),
    ):
        for part in found:
            assert part is not None
            assert part.tolist() == [[8, 9], [0, 1], [8, 9]]
    assert asked == [[4, 0, 4]] * 2  # all at once


def test_resolve_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert resolve_dtype("auto", CPU) == resolve_dtype("auto", torch.device("mps")) == torch.float32
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=supported: answer)
        assert resolve_dtype("auto", cuda) == dtype
    assert resolve_dtype("fp32", cuda) == torch.float32


def test_number_formats_that_a_processor_has_no_arithmetic_for_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for capability, is_slow in (("AVX2", True), ("AVX512", False), ("DEFAULT", False)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda c=capability: c)
        assert slow_precision("fp16", CPU) == (
            "--precision fp16 is several times slower than fp32 on most CPUs; leave it out"
        )
        assert bool(slow_precision("bf16", CPU)) == is_slow
        assert not slow_precision("auto", CPU)
        assert not slow_precision("fp32", CPU)
        assert not slow_precision("fp16", torch.device("cuda"))


def test_number_formats_are_told_as_the_flag_has_them() -> None:
    assert {str(dtype): name for name, dtype in DTYPES.items()} == FLAG_WORDS
    saved, now = ({"precision": str(DTYPES[name])} for name in ("bf16", "fp32"))
    assert changed_settings(saved, now) == ["--precision bf16 (now fp32)"]


def test_settings() -> None:
    with pytest.raises(InputError, match="--precision must be one of auto, fp32"):
        EmbeddingConfig(precision="fp8")
    with pytest.raises(InputError, match="--encoder_batch_size must be >= 1"):
        EmbeddingConfig(encoder_batch_size=0)
    assert "encoder_batch_size" not in EmbeddingConfig().fingerprint_settings()
    (told,) = (
        f.metadata["help"] for f in fields(EmbeddingConfig) if f.name == "encoder_batch_size"
    )
    assert "auto: 64, on CUDA 256, halved as long as" in told  # it never grows

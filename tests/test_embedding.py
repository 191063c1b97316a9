import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from artifacts.provenance import EMBEDDING, Provenance
from artifacts.settings import InputError
from artifacts.store import Store
from data import PairReader, open_source
from embedding import EmbeddingResult, cut_off_sentence, embed_pairs, skipped_sentence
from encoders.base import EmbeddingConfig, Encoded, Encoder
from encoders.embedded import EmbeddedEncoder
from encoders.joint_map import embed_across_folds
from sources.base import DataConfig, PairSource
from sources.images import decode_image, decode_pixels
from tests.small_models import CPU, encode, load, save_clip, unit_projections


@pytest.fixture(scope="module")
def source() -> PairSource:
    return open_source(scenes(), rng=np.random.default_rng(0))


def scenes() -> DataConfig:
    return DataConfig("synthetic", max_train_samples=24, max_val_samples=5, max_test_samples=6)


def embed(source: PairSource, encoder: Encoder, config: EmbeddingConfig) -> EmbeddingResult:
    reader = PairReader(source, scenes(), decode=decode_pixels(encoder.preprocess, 10**6))
    return embed_pairs(reader, encoder, config, rng=np.random.default_rng(1))


def check_rows(result: EmbeddingResult, source: PairSource, encoder: Encoder) -> None:
    """Every row of the result belongs to the pair that `pairs` says."""

    def features(key: str) -> np.ndarray:
        image = decode_image(source.read_image(key), scenes().max_image_pixels)
        row: np.ndarray = encode(encoder, [image]).features[0]
        return row

    train, validation, test = (
        result.pairs[result.pairs["split"] == split] for split in ("train", "validation", "test")
    )
    assert result.indices.tolist() == train["position"].tolist()
    for i, key in enumerate(train["key"]):
        np.testing.assert_allclose(result.image_features[i], features(key), atol=1e-4)
    for i, key in enumerate(validation["key"]):
        np.testing.assert_allclose(result.validation_image_features[i], features(key), atol=1e-4)
    for row, key in zip(result.test_caption_image, test["key"], strict=True):
        np.testing.assert_allclose(result.test_image_features[row], features(key), atol=1e-4)
    for rows, found in (
        (train, result.text_features),
        (validation, result.validation_text_features),
        (test, result.test_text_features),
    ):
        expected = np.stack([encoder.encode_texts([c]).features[0] for c in rows["caption"]])
        np.testing.assert_allclose(found, expected, atol=1e-5)


def check_form(result: EmbeddingResult) -> None:
    for f in fields(result):
        value = getattr(result, f.name)
        if isinstance(value, np.ndarray):
            assert value.flags.c_contiguous, f.name
            assert value.dtype in (np.float32, np.int64), f.name
        if isinstance(value, pd.DataFrame):
            assert isinstance(value.index, pd.RangeIndex), f.name
    np.testing.assert_allclose(np.linalg.norm(result.image_embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(result.test_text_embeddings, axis=1), 1, atol=1e-5)
    for rows in (result.validation_image_embeddings, result.validation_text_embeddings):
        assert rows is not None
        assert rows.shape == (5, result.image_embeddings.shape[1])
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    both = np.hstack([result.image_embeddings, result.text_embeddings])
    np.testing.assert_array_equal(result.concatenated_embeddings, both)
    scores = np.einsum("nd,nd->n", result.image_embeddings, result.text_embeddings)
    np.testing.assert_allclose(result.clip_scores, scores, atol=1e-6)


def test_what_was_not_read_is_said(source: PairSource, caplog: pytest.LogCaptureFixture) -> None:
    encoder, few = EmbeddedEncoder(CPU, torch.float32), replace(scenes(), max_train_samples=20)
    reader = PairReader(source, few, decode=decode_pixels(encoder.preprocess, 10**6))
    with caplog.at_level(logging.INFO):
        result = embed_pairs(reader, encoder, EmbeddingConfig(), rng=np.random.default_rng(1))
    rest = reader.left_out()
    assert "of train (--max_train_samples 20)" in rest
    assert result.source == f"{source.description}; {rest}"
    assert rest in caplog.messages


def same(a: EmbeddingResult, b: EmbeddingResult) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return x.equals(y) if isinstance(x, pd.DataFrame) else np.array_equal(x, y)

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def test_embed_pairs_with_clip(source: PairSource, tmp_path: Path) -> None:
    save_clip(tmp_path)
    encoder = load(tmp_path)
    result = embed(source, encoder, EmbeddingConfig(str(tmp_path), encoder_batch_size=5))
    check_form(result)
    check_rows(result, source, encoder)
    assert result.encoder == str(tmp_path)
    assert result.image_embeddings.shape == (24, 20)
    captions = result.pairs["caption"][result.pairs["split"] == "train"].tolist()
    np.testing.assert_allclose(
        result.text_embeddings, unit_projections(encoder.encode_texts(captions)), atol=1e-5
    )
    validation = result.split_pairs("validation")
    assert result.validation_image_embeddings is not None
    assert result.validation_text_embeddings is not None
    expected = unit_projections(encoder.encode_texts(validation["caption"].tolist()))
    np.testing.assert_allclose(result.validation_text_embeddings, expected, atol=1e-5)
    for row, key in enumerate(validation["key"]):
        image = decode_image(source.read_image(key), scenes().max_image_pixels)
        np.testing.assert_allclose(
            result.validation_image_embeddings[row],
            unit_projections(encode(encoder, [image]))[0],
            atol=1e-4,
        )
    for size in (1, 64):
        other = embed(source, encoder, EmbeddingConfig(encoder_batch_size=size))
        np.testing.assert_allclose(other.image_embeddings, result.image_embeddings, atol=1e-5)
        np.testing.assert_allclose(other.text_embeddings, result.text_embeddings, atol=1e-5)


def test_captions_that_are_cut_off_are_said_and_saved(
    source: PairSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_clip(tmp_path / "clip")
    encoder = load(tmp_path / "clip")  # reads a letter a token, 24 with the ends
    result = embed(source, encoder, EmbeddingConfig())
    captions = result.pairs["caption"]
    n = int((captions.str.replace(" ", "").str.len() > 22).sum())
    assert 1 < n < len(captions)
    sentence = (
        f"--encoder_model {encoder.name} reads 24 tokens: {n} of {len(captions)} captions are "
        "longer and were cut off"
    )
    assert result.cut_off == sentence
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [sentence]

    store, provenance = Store.open(str(tmp_path / "out")), Provenance(1, {}, {})
    store.save(EMBEDDING, provenance, result, seconds=0.0)
    assert store.load(EMBEDDING, provenance, EmbeddingResult).value.cut_off == sentence
    manifest = store.manifest(EMBEDDING)  # as it was before anything was counted
    for name in ("max_tokens", "n_cut_off"):
        del manifest["values"][name]
    store.write_json(f"{EMBEDDING.folder}/{EMBEDDING.manifest}", manifest)
    assert store.load(EMBEDDING, provenance, EmbeddingResult).value.cut_off == ""


def test_one_caption_that_is_cut_off() -> None:
    assert cut_off_sentence("clip", 77, 0, 5000) == ""
    assert cut_off_sentence("clip", 77, 1, 5000) == (
        "--encoder_model clip reads 77 tokens: 1 of 5,000 captions is longer and was cut off"
    )


def test_reasons_are_told_where_many_captions_are_skipped() -> None:
    reasons = pd.Series(["broken image", "outside", "broken image", "outside", "outside"])
    assert skipped_sentence(reasons) == (
        "Many captions were skipped: 3 outside, 2 broken image; stage1/skipped.csv tells of each"
    )


def test_embed_pairs_embedded(source: PairSource, caplog: pytest.LogCaptureFixture) -> None:
    embedded = EmbeddedEncoder(CPU, torch.float32)
    caplog.set_level(logging.INFO, "embedding")
    result = embed(source, embedded, EmbeddingConfig("embedded"))
    check_form(result)
    check_rows(result, source, embedded)
    assert result.encoder == "embedded"
    assert result.cut_off == ""
    assert "cut off" not in caplog.text
    assert len(result.pairs) > 35  # a test image has several captions
    (told,) = [r for r in caplog.records if "images a second" in str(r.msg)]
    assert told.getMessage().startswith(f"embedded: 35 images and {len(result.pairs)} captions in ")
    assert isinstance(told.args, tuple)
    seconds, a_second = (value for value in told.args if isinstance(value, float))
    assert a_second == pytest.approx(35 / seconds)
    assert same(result, embed(source, embedded, EmbeddingConfig("embedded")))
    # What is held out is embedded by the map of all training pairs, which has not seen it.
    assert result.test_image_embeddings.shape[1] == result.image_embeddings.shape[1]
    image_ids = np.arange(24)  # every training scene has a picture of its own
    *_, joint_map = embed_across_folds(
        result.image_features, result.text_features, image_ids, rng=np.random.default_rng(1)
    )
    for found, expected in (
        (
            result.validation_image_embeddings,
            joint_map.embed_images(result.validation_image_features),
        ),
        (result.validation_text_embeddings, joint_map.embed_texts(result.validation_text_features)),
        (result.test_image_embeddings, joint_map.embed_images(result.test_image_features)),
        (result.test_text_embeddings, joint_map.embed_texts(result.test_text_features)),
    ):
        assert found is not None
        np.testing.assert_allclose(found, expected, atol=1e-6)  # float32


def test_saved_embeddings_with_and_without_those_of_validation(
    source: PairSource, tmp_path: Path
) -> None:
    result = embed(source, EmbeddedEncoder(CPU, torch.float32), EmbeddingConfig("embedded"))
    store, provenance = Store.open(str(tmp_path)), Provenance(1, {}, {})

    def load_saved() -> EmbeddingResult:
        saved = store.load(EMBEDDING, provenance, EmbeddingResult).value
        assert isinstance(saved, EmbeddingResult)
        return saved

    without = replace(result, validation_image_embeddings=None, validation_text_embeddings=None)
    for given in (result, without):
        store.save(EMBEDDING, provenance, given, seconds=0.0)
        assert same(load_saved(), given)
    manifest = store.manifest(EMBEDDING)  # as it was before the two fields were there
    for name in ("validation_image_embeddings", "validation_text_embeddings"):
        assert f"{name}.npy" not in manifest["files"]
        del manifest["values"][name]
    store.write_json(f"{EMBEDDING.folder}/{EMBEDDING.manifest}", manifest)
    assert same(load_saved(), without)


class Overflowing(EmbeddedEncoder):
    """Whose features are too large for the precision."""

    def encode_images(self, pixels: np.ndarray) -> Encoded:
        return Encoded(np.full((len(pixels), 4), np.inf, np.float32), None)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("images", "all 24 training images have the same embedding.*--image_column"),
        ("texts", "all 24 training captions have the same embedding.*--caption_column"),
    ],
)
def test_data_without_differences_are_refused(
    source: PairSource, tmp_path: Path, side: str, message: str
) -> None:
    save_clip(tmp_path / "clip")
    encoder = load(tmp_path / "clip")
    encode_as_ever = getattr(encoder, f"encode_{side}")

    def alike(inputs: Any) -> Encoded:
        encoded: Encoded = encode_as_ever(inputs)
        return Encoded(*(np.ones_like(part) for part in encoded if part is not None))

    setattr(encoder, f"encode_{side}", alike)
    with pytest.raises(InputError, match=message):
        embed(source, encoder, EmbeddingConfig())


def test_values_that_are_not_finite(source: PairSource) -> None:
    encoder = Overflowing(CPU, torch.float32)
    with pytest.raises(InputError, match="--precision fp16: embedded gives values that are not fi"):
        embed(source, encoder, EmbeddingConfig("embedded", "fp16"))

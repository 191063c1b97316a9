"""Encoders on CUDA beside the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.base import EmbeddingConfig, Encoded, Encoder
from encoders.embedded import EmbeddedEncoder
from encoders.pretrained import load_encoder
from tests.encoders.pictures import photographs
from tests.gpu import devices
from tests.gpu.devices import CPU, assert_near
from tests.small_models import CAPTIONS, encode, save_clip, save_siglip, unit_projections

pytestmark = devices.pytestmark
# Convolutions on CUDA take float32 at the 10 bits of TF32 by default, and each layer adds some.
CONVOLVED = 0.01
MANY = photographs(37, (31, 23))  # an odd number of an odd size


@pytest.fixture(scope="module", params=[save_clip, save_siglip])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save: Callable[[Path], None] = request.param
    save(path)
    return path


def load(name: str, precision: str, device: torch.device) -> Encoder:
    return load_encoder(EmbeddingConfig(name, precision), device=device)


def both(encoder: Encoder) -> tuple[Encoded, Encoded]:
    return encode(encoder, MANY), encoder.encode_texts(CAPTIONS)


def test_float32_features_and_projections_are_those_of_the_cpu(folder: Path) -> None:
    for found, expected in zip(
        both(load(str(folder), "fp32", devices.CUDA)),
        both(load(str(folder), "fp32", CPU)),
        strict=True,
    ):
        assert found.features.dtype == np.float32
        assert_near(found.features, expected.features, CONVOLVED)
        assert_near(unit_projections(found), unit_projections(expected), CONVOLVED)


def test_the_default_precision_turns_no_row_far(folder: Path) -> None:
    """The default on CUDA is bfloat16, with 8 bits: cosines with the CPU's rows stay above 0.99."""
    for found, expected in zip(
        both(load(str(folder), "auto", devices.CUDA)),
        both(load(str(folder), "fp32", CPU)),
        strict=True,
    ):
        cosines = (unit_projections(found) * unit_projections(expected)).sum(axis=1)
        assert cosines.min() > 0.99


def test_rows_do_not_depend_on_their_batch(folder: Path) -> None:
    """To rounding: kernels are chosen by the size of a batch."""
    encoder = load(str(folder), "fp32", devices.CUDA)
    together, texts = both(encoder)
    assert_near(encode(encoder, MANY[5:8]).features, together.features[5:8], CONVOLVED)
    assert_near(encoder.encode_texts(CAPTIONS[1:2]).features, texts.features[1:2], CONVOLVED)


def test_the_same_batch_twice_gives_the_same_bits(folder: Path) -> None:
    """Forward passes add in one order."""
    encoder = load(str(folder), "auto", devices.CUDA)
    for first, second in zip(both(encoder), both(encoder), strict=True):
        np.testing.assert_array_equal(first.features, second.features)


def test_the_embedded_encoder_is_that_of_the_cpu() -> None:
    """The first forward passes add in one order too."""
    cuda, cpu = (EmbeddedEncoder(d, torch.float32) for d in (devices.CUDA, CPU))
    found, expected = both(cuda), both(cpu)
    assert found[0].features.shape == (len(MANY), 1280)
    for a, b in zip(found, expected, strict=True):
        cosines = (a.features * b.features).sum(axis=1)
        cosines /= np.linalg.norm(a.features, axis=1) * np.linalg.norm(b.features, axis=1)
        assert cosines.min() > 0.999
    np.testing.assert_array_equal(both(cuda)[0].features, found[0].features)

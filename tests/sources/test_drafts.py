"""JPEGs that are decoded at a part of their size: when, and how little that changes."""

import numpy as np
import PIL.Image
import pytest
import torch

from encoders.base import EmbeddingConfig
from encoders.pretrained import load_encoder
from sources.images import decode_image, decode_resized
from sources.pixels import MEAN_DRAFT_DIFFERENCE, Resizing
from tests.sources.image_kinds import natural, saved

RESIZING = Resizing(80, (80, 80), int(PIL.Image.Resampling.BICUBIC))
MOST = 10**8


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("size", [(512, 512), (1101, 823), (777, 1403), (2048, 2065)])
@pytest.mark.parametrize("grey", [False, True])
def test_pixels_differ_by_less_than_the_stated_bound(
    size: tuple[int, int], subsampling: int, grey: bool
) -> None:
    image = natural(*size, seed=size[0])
    data = saved(image.convert("L") if grey else image, quality=92, subsampling=subsampling)
    found, shown = decode_resized(data, MOST, RESIZING)
    assert shown.width <= -(-size[0] // 2)  # it was drafted, and is large enough
    assert min(shown.size) >= 256
    exact = RESIZING(decode_image(data, MOST))
    difference = np.abs(found.astype(int) - exact)
    assert 0 < difference.mean() < MEAN_DRAFT_DIFFERENCE


def test_the_bound_does_not_hold_for_patterns_as_fine_as_a_pixel() -> None:
    rows, columns = np.mgrid[:1600, :1600]
    checks = (((rows + columns) % 2)[..., None] * np.array([255, 0, 255])).astype(np.uint8)
    data = saved(PIL.Image.fromarray(checks), quality=90)
    exact = RESIZING(decode_image(data, MOST))
    found, _ = decode_resized(data, MOST, RESIZING)
    assert np.abs(found.astype(int) - exact).mean() > 2 * MEAN_DRAFT_DIFFERENCE


def test_every_pixel_is_decoded_where_that_is_asked_for() -> None:
    encoder = load_encoder(
        EmbeddingConfig("embedded", jpeg_decoding="full"), device=torch.device("cpu")
    )
    data = saved(natural(2048, 2065))
    assert encoder.resizing is not None
    found, shown = decode_resized(data, MOST, encoder.resizing)
    assert shown.size == (2048, 2065)
    np.testing.assert_array_equal(found, encoder.resizing(decode_image(data, MOST)))


def test_only_full_decoding_makes_saved_embeddings_stale() -> None:
    assert "jpeg_decoding" not in EmbeddingConfig().fingerprint_settings()
    full = EmbeddingConfig(jpeg_decoding="full").fingerprint_settings()
    assert full["jpeg_decoding"] == "full"


@pytest.mark.parametrize(
    "data",
    [
        saved(natural(511, 600)),
        saved(natural(1100, 823).convert("CMYK")),
        saved(natural(1100, 823), "PNG"),
        saved(natural(3400, 200)),
    ],
    ids=["less than twice as large", "CMYK", "PNG", "strip"],
)
def test_others_are_decoded_in_full(data: bytes) -> None:
    found, shown = decode_resized(data, MOST, RESIZING)
    np.testing.assert_array_equal(found, RESIZING(decode_image(data, MOST)))
    assert shown.size == decode_image(data, MOST).size


def test_one_that_has_to_be_turned_is_decoded_in_full() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = saved(natural(1100, 823), exif=exif)
    found, shown = decode_resized(data, MOST, RESIZING)
    assert shown.size == (823, 1100)
    np.testing.assert_array_equal(found, RESIZING(decode_image(data, MOST)))

import json
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sources.pixels import Resizing, crop_strip
from tests.sources.image_kinds import natural

BICUBIC = int(PIL.Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "resizing",
    [
        Resizing((24, 16), None, BICUBIC, crops_strips=False),
        Resizing(24, (20, 24), BICUBIC, rounds=True, drafts=False),
    ],
)
def test_a_resizing_travels_as_json(resizing: Resizing) -> None:
    assert Resizing.from_json(json.loads(json.dumps(resizing.to_json()))) == resizing


@pytest.mark.parametrize(("size", "resized"), [((50, 30), (20, 12)), ((31, 77), (12, 29))])
def test_the_short_side_is_scaled_and_the_middle_cut_out(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    image = natural(*size)
    whole = np.asarray(image.resize(resized, PIL.Image.Resampling.BICUBIC))
    left, top = (resized[0] - 11) // 2, (resized[1] - 12) // 2
    found = Resizing(12, (12, 11), BICUBIC)(image)
    assert found.shape == Resizing(12, (12, 11), BICUBIC).shape == (12, 11, 3)
    np.testing.assert_array_equal(found, whole[top : top + 12, left : left + 11])


@pytest.mark.parametrize(("margin", "rounded"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_an_odd_margin_is_halved_as_each_library_does(margin: int, rounded: int) -> None:
    image = natural(10, 10 + margin)
    ours: dict[str, Any] = {"size": (10 + margin, 10), "crop": (10, 10), "resample": BICUBIC}
    down, even = Resizing(**ours)(image), Resizing(**ours, rounds=True)(image)
    np.testing.assert_array_equal(down, np.asarray(image)[margin // 2 :][:10])
    np.testing.assert_array_equal(even, np.asarray(image)[rounded:][:10])


def test_a_strip_is_cropped_first_where_that_is_asked_for() -> None:
    strip = natural(400, 4)
    ours: dict[str, Any] = {"size": (8, 8), "crop": None, "resample": BICUBIC}
    cropped = Resizing(**ours)(strip)
    np.testing.assert_array_equal(cropped, np.asarray(crop_strip(strip).resize((8, 8), 3)))
    whole = Resizing(**ours, crops_strips=False)(strip)
    np.testing.assert_array_equal(whole, np.asarray(strip.resize((8, 8), 3)))
    assert not np.array_equal(cropped, whole)


@pytest.mark.parametrize(
    ("resizing", "size", "least"),
    [
        (Resizing(224, (224, 224), BICUBIC), (4000, 3000), (894, 672)),
        (Resizing((32, 32), None, BICUBIC), (4000, 3000), (256, 256)),  # small copies are larger
        (Resizing((224, 224), None, BICUBIC, drafts=False), (4000, 3000), None),
        (Resizing(224, (224, 224), BICUBIC), (9000, 500), None),  # a strip
    ],
)
def test_how_small_a_jpeg_may_be_decoded(
    resizing: Resizing, size: tuple[int, int], least: tuple[int, int] | None
) -> None:
    assert resizing.draft_size(size) == least

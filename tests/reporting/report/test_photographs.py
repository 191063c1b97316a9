"""Small copies of photographs: which, how small, and what cannot be read again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from reporting.report import photographs
from reporting.report.photographs import (
    Photographs,
    keep_small,
    make_photographs,
    read_copies,
    wanted_photographs,
)
from sources.base import PairSource
from tests.helpers import encode

N = 7


def patches(seed: int) -> bytes:
    """A photograph of 300 x 200 pixels in soft colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    image = PIL.Image.fromarray(pixels)
    return encode(image.resize((300, 200), PIL.Image.Resampling.BICUBIC))


class Source(PairSource):
    """Images by key; one is broken, one is gone, and it may fail as a whole."""

    def __init__(self, fails_at: int = N) -> None:
        super().__init__("folder", "photographs", "0")
        self.fails_at = fails_at

    def records(self, split: str) -> Iterator[object]:  # type: ignore[override]
        raise AssertionError("not read from the beginning")

    def read_image(self, key: str) -> bytes:
        if key == "3":
            raise FileNotFoundError(key)
        return b"no image" if key == "4" else patches(int(key))

    def read_again(self, keys: object) -> Iterator[tuple[str, Callable[[], bytes]]]:
        for i, key in enumerate(keys):  # type: ignore[var-annotated, arg-type]
            if i == self.fails_at:
                raise OSError("the line is cut")
            yield key, partial(self.read_image, key)


def wanted() -> pd.DataFrame:
    keys = [str(i) for i in range(N)]
    return pd.DataFrame({"key": keys, "image_sha256": [f"sha of {key}" for key in keys]})


def made(source: PairSource, n_workers: int = 2) -> Photographs:
    readers = source.read_again(wanted()["key"].tolist())
    return make_photographs(wanted(), readers, max_image_pixels=10**6, n_workers=n_workers)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_small_copies_of_what_can_be_read(n_workers: int) -> None:
    found = made(Source(), n_workers)
    assert found.image_sha256.tolist() == [b"sha of %d" % i for i in (0, 1, 2, 5, 6)]
    assert found.n_missing == 2
    for row, key in enumerate((0, 1, 2, 5, 6)):
        with PIL.Image.open(io.BytesIO(found.file(row))) as image:
            assert (image.format, image.size) == ("AVIF", (112, 75))
            small = np.asarray(image.convert("RGB"), dtype=float)
        with PIL.Image.open(io.BytesIO(patches(key))) as original:
            original.thumbnail((112, 112))
            close = np.asarray(original.convert("RGB"), dtype=float)
        assert np.abs(small - close).mean() < 4  # of 255
        assert np.abs(small - close[::-1]).mean() > 20
    assert found.sizes.tolist() == [len(found.file(row)) for row in range(5)]


def test_copies_kept_on_the_way_give_the_very_same_photographs() -> None:
    kept: dict[str, bytes] = {}
    keep = keep_small(kept, 3)
    for i in (0, 1, 2, 5):
        with PIL.Image.open(io.BytesIO(patches(i))) as image:
            keep(patches(i), image)
            assert image.size == (300, 200)  # an encoder is yet to see it
    assert list(kept) == [hashlib.sha256(patches(i)).hexdigest() for i in (0, 1, 2)]
    rows = pd.DataFrame({"key": ["a", "b", "c"], "image_sha256": list(kept)})
    found = make_photographs(rows, read_copies(rows, kept), max_image_pixels=10**6, n_workers=0)
    again = made(Source())
    assert [found.file(row) for row in range(3)] == [again.file(row) for row in range(3)]


def test_a_source_that_fails_leaves_what_was_read(caplog: pytest.LogCaptureFixture) -> None:
    found = made(Source(fails_at=2))
    assert len(found) == 2
    assert found.n_missing == N - 2
    assert "the line is cut" in caplog.text
    assert len(made(Source(fails_at=0))) == 0


def test_the_best_quality_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for quality in (60, 30):
        monkeypatch.setattr(photographs, "QUALITIES", (quality,))
        sizes.append(made(Source()).sizes.mean())
    assert sizes[0] > sizes[1]
    monkeypatch.setattr(photographs, "QUALITIES", (60, 30, 1))
    for limit, quality in ((sizes[0], 60), (sizes[0] - 1, 30), (sizes[1], 30), (sizes[1] - 1, 1)):
        monkeypatch.setattr(photographs, "EMBEDDED_BYTES", int(np.ceil(limit)) * N)
        assert made(Source()).quality == quality


def test_images_that_are_wanted() -> None:
    pairs = pd.DataFrame(
        {
            "key": [f"k{i}" for i in range(40)],
            "image_sha256": [f"s{i % 30}" for i in range(40)],  # ten pairs share an image
            "split": ["train"] * 20 + ["test"] * 20,
        }
    )
    rng = np.random.default_rng
    assert wanted_photographs(pairs, set(), 99, rng(0))["key"].tolist() == [
        f"k{i}" for i in range(30)
    ]
    few = wanted_photographs(pairs, {"s3", "s25"}, 6, rng(0))["image_sha256"].tolist()
    assert len(few) == 6
    assert {"s3", "s25"} < set(few)
    assert {s for s in few if int(s[1:]) >= 20} == {"s25"}  # training pairs before others
    assert few == sorted(few, key=lambda s: int(s[1:]))  # the order of the data
    assert few != wanted_photographs(pairs, {"s3", "s25"}, 6, rng(1))["image_sha256"].tolist()

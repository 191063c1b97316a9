"""JPEGs decoded on a device; Pillow stands in for its decoder, and is the truth."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from artifacts.settings import InputError
from encoders.base import EmbeddingConfig
from encoders.embedded import EmbeddedEncoder
from intake.device_jpegs import DeviceJpegs, can_resize, resized, torchvision_decode
from intake.setup import processes_for
from sources.base import DataConfig, UnusableImage
from sources.images import SmallCopies, is_plain_jpeg
from sources.pixels import Resizing
from sources.processes import AskedImage, ImageProcesses, ImageReaders, SentImage
from tests.sources.image_kinds import image_files, natural, saved

BICUBIC, BILINEAR = int(PIL.Image.Resampling.BICUBIC), int(PIL.Image.Resampling.BILINEAR)
RESIZING = Resizing(24, (24, 20), BICUBIC)
MOST = 10**7
CPU = torch.device("cpu")
Files = Sequence[torch.Tensor]


def opened(data: bytes) -> torch.Tensor:
    pixels = np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def by_pillow(files: Files) -> list[torch.Tensor]:
    return [opened(bytes(file.numpy())) for file in files]


@pytest.fixture
def others() -> Iterator[ImageProcesses]:
    made = ImageProcesses(RESIZING, MOST)
    yield made
    made.close()


def reader(
    others: ImageProcesses, decode: Callable[[Files], Sequence[torch.Tensor]] = by_pillow
) -> DeviceJpegs:
    return DeviceJpegs(RESIZING, MOST, CPU, others, decode=decode)


def asked(files: dict[str, bytes]) -> list[AskedImage]:
    return [AskedImage(name, partial(bytes, data), (f"a {name}",)) for name, data in files.items()]


def assert_alike(found: Sequence[object], expected: Sequence[object], most: float) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, UnusableImage):
            assert isinstance(one, UnusableImage)
            assert (one.reason, one.detail) == (other.reason, other.detail)
            continue
        assert isinstance(one, SentImage)
        assert isinstance(other, SentImage)
        assert (one.sha256, one.ids) == (other.sha256, other.ids)
        assert one.pixels.dtype == np.uint8
        assert one.pixels.shape == other.pixels.shape
        assert np.abs(one.pixels.astype(int) - other.pixels).mean() <= most


def missing() -> bytes:
    raise FileNotFoundError("gone.jpg is not there")


def test_a_device_reads_what_processes_read(others: ImageProcesses) -> None:
    decoded: list[int] = []

    def decode(files: Files) -> list[torch.Tensor]:
        decoded.append(len(files))
        return by_pillow(files)

    files = image_files() | {"empty": b"", "broken": b"no image"}
    images = [*asked(files), AskedImage("missing", missing, ())]
    device = reader(others, decode)
    assert isinstance(device, ImageReaders)
    assert_alike(device.read(images), others.read(images), 1.25)
    # The picture it is tried out with; then RGB, small, tall and large in one hand.
    assert decoded == [1, 4]
    assert device.read([]) == []


@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
@pytest.mark.parametrize(
    "resizing",
    [
        partial(Resizing, 24, (24, 24)),
        partial(Resizing, 31, (24, 30), rounds=True),
        partial(Resizing, 31, (24, 30)),
        partial(Resizing, (17, 40), None),
        partial(Resizing, 90, (64, 64)),
    ],
)
@pytest.mark.parametrize("size", [(61, 24), (24, 24), (25, 199), (300, 220)])
def test_a_tensor_is_resized_as_pillow_does(
    size: tuple[int, int], resizing: Callable[..., Resizing], resample: int
) -> None:
    how, image = resizing(resample=resample), natural(*size)
    found = resized(torch.from_numpy(np.array(image)).permute(2, 0, 1), how).numpy()
    expected = how(image)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    # Pillow rounds and cuts off between rows and columns.
    assert difference.max() <= 8
    assert difference.mean() < 0.5


def test_what_the_device_refuses_is_read_without_it(
    others: ImageProcesses, caplog: pytest.LogCaptureFixture
) -> None:
    def decode(files: Files) -> list[torch.Tensor]:
        if len(files) > 1:
            raise RuntimeError("nvjpegDecode failed: 5\nat line 3")
        return by_pillow(files)

    images = asked(image_files())
    device = reader(others, decode)
    for _ in range(2):
        assert_alike(device.read(images), others.read(images), 0)
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "4 JPEGs are decoded by the processor, as cpu refuses one" in warning.getMessage()
    assert "(nvjpegDecode failed: 5)" in warning.getMessage()


@pytest.mark.parametrize("what", ["black", "other colours"])
def test_a_device_that_decodes_wrongly_is_no_use(others: ImageProcesses, what: str) -> None:
    def decode(files: Files) -> list[torch.Tensor]:
        right = by_pillow(files)
        return [torch.zeros_like(x) if what == "black" else x.flip(0) for x in right]

    expected = r"^--jpeg_decoding gpu: a test picture differs by .*use --jpeg_decoding reduced$"
    with pytest.raises(InputError, match=expected):
        reader(others, decode)


def test_one_image_of_many_is_compared(others: ImageProcesses) -> None:
    wrong_from = 10

    def decode(files: Files) -> list[torch.Tensor]:
        right = by_pillow(files)
        return right if len(files) < wrong_from else [torch.zeros_like(x) for x in right]

    device = reader(others, decode)
    hand = asked({str(i): saved(natural(40, 30, i)) for i in range(32)})
    for _ in range(7):  # 63 images, after the picture it is tried out with
        device.read(hand[:9])
    with pytest.raises(InputError, match=r"0 differs by .* in the mean from what Pillow decodes"):
        device.read(hand)


def test_a_device_that_decodes_nothing_is_said_at_once(others: ImageProcesses) -> None:
    def decode(files: Files) -> list[torch.Tensor]:
        raise RuntimeError("not compiled with CUDA support")

    with pytest.raises(InputError, match=r"decodes nothing on cpu \(not compiled with CUDA"):
        reader(others, decode)


def test_small_copies_are_made_and_pixels_are_the_devices(others: ImageProcesses) -> None:
    kept: dict[str, bytes] = {}
    copies = SmallCopies(kept, 2, 16)
    making = ImageProcesses(RESIZING, MOST, copies)
    device = DeviceJpegs(RESIZING, MOST, CPU, making, decode=by_pillow, copies=copies)
    images = asked({str(i): saved(natural(40, 30, i)) for i in range(3)})
    first, again = device.read(images), device.read(images)
    making.close()
    assert [*kept] == [hashlib.sha256(image.read()).hexdigest() for image in images[:2]]
    assert_alike(first, again, 0)


def plain(image: PIL.Image.Image, **options: Any) -> bool:
    return is_plain_jpeg(saved(image, **options), MOST)


def test_what_any_decoder_makes_the_same_of_is_plain() -> None:
    image = natural(40, 30)
    turned, upright = PIL.Image.Exif(), PIL.Image.Exif()
    turned[0x0112], upright[0x0112] = 6, 1
    assert plain(image)
    assert plain(image, progressive=True)
    assert plain(image, exif=upright)
    assert not plain(image, exif=turned)
    assert not plain(image.convert("L"))
    assert not plain(image.convert("CMYK"))
    assert not plain(image, kind="PNG")
    assert not plain(image, keep_rgb=True)  # red, green and blue as they are
    assert not plain(natural(40, 2))
    whole = saved(image)
    assert not is_plain_jpeg(whole[:-2], MOST)
    assert not is_plain_jpeg(whole + b"\0", MOST)
    assert not is_plain_jpeg(whole[:20] + b"\xff\xd9", MOST)
    assert not is_plain_jpeg(whole, 40 * 30 - 1)
    assert not is_plain_jpeg(b"", MOST)


def test_only_known_filters_can_be_had_on_a_device() -> None:
    assert can_resize(RESIZING)
    assert not can_resize(Resizing(24, (24, 24), int(PIL.Image.Resampling.LANCZOS)))
    assert not can_resize(None)


def test_the_encoder_has_to_be_on_a_gpu() -> None:
    with pytest.raises(InputError, match="the encoder works on cpu; give --device cuda"):
        torchvision_decode(CPU)


def test_torchvision_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(InputError, match=r"needs torchvision, of the release .*PyTorch \d"):
        torchvision_decode(torch.device("cuda"))


def test_torchvision_is_given_all_files_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def decode_jpeg(files: list[torch.Tensor], *, mode: str, device: torch.device) -> list[str]:
        calls.append((len(files), mode, device))
        return ["image"] * len(files)

    io_module = SimpleNamespace(decode_jpeg=decode_jpeg, ImageReadMode=SimpleNamespace(RGB="RGB"))
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "torchvision", SimpleNamespace(io=io_module))
    monkeypatch.setitem(modules, "torchvision.io", io_module)
    device = torch.device("cuda", 1)
    decode = torchvision_decode(device)
    assert decode((torch.zeros(3), torch.zeros(2))) == ["image"] * 2  # type: ignore[comparison-overlap]
    assert calls == [(2, "RGB", device)]


@pytest.mark.parametrize(
    ("n_workers", "known", "message"),
    [
        (0, True, "give --num_workers 1 or more"),
        (2, False, "what embedded makes of an image is not known well enough"),
        (2, True, "the encoder works on cpu"),
    ],
)
def test_what_is_missing_for_a_gpu_is_said(n_workers: int, known: bool, message: str) -> None:
    encoder = EmbeddedEncoder(CPU, torch.float32)
    if not known:
        encoder.resizing = None  # type: ignore[assignment]
    config = EmbeddingConfig("embedded", jpeg_decoding="gpu")
    with pytest.raises(InputError, match=f"^--jpeg_decoding gpu: .*{message}"):
        processes_for(encoder, config, DataConfig(num_workers=n_workers))

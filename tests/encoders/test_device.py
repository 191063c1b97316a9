"""Pixels as bytes, normalised by the encoder, against what a model's own processor makes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from encoders.base import Encoded
from encoders.device import DeviceEncoder, Normalisation, Room
from encoders.embedded import EmbeddedEncoder
from encoders.pretrained import PretrainedEncoder, parts_of_processor
from sources.images import decode_image, decode_pixels
from tests.small_models import CAPTIONS, CPU, load, save_clip, save_siglip
from tests.sources.image_kinds import image_files

MOST = 10**7
FLOAT32 = 1e-6  # of values of a few units, in another order of operations


def processors() -> dict[str, Callable[[], Any]]:
    import transformers

    clip, siglip = transformers.CLIPImageProcessorPil, transformers.SiglipImageProcessorPil
    return {
        "CLIP": clip,
        "CLIP, bilinear": lambda: clip(
            resample=2, size={"shortest_edge": 41}, crop_size={"height": 34, "width": 39}
        ),
        "CLIP, no square": lambda: clip(
            size={"shortest_edge": 40}, crop_size={"height": 33, "width": 40}
        ),
        "CLIP, whole": lambda: clip(size={"height": 21, "width": 32}, do_center_crop=False),
        "SigLIP": siglip,
        "SigLIP, Lanczos": lambda: siglip(resample=1, size={"height": 37, "width": 24}),
        "not normalised": lambda: siglip(do_normalize=False),
    }


@pytest.mark.parametrize("name", processors())
def test_bytes_normalised_are_what_the_processor_makes(name: str) -> None:
    processor = processors()[name]()
    parts = parts_of_processor(processor)
    assert parts is not None
    resizing, normalisation = parts
    encoder = PretrainedEncoder.__new__(PretrainedEncoder)
    encoder._image_processor = processor
    exact = decode_pixels(encoder.preprocess, MOST)
    for kind, data in image_files().items():
        pixels = resizing(decode_image(data, MOST))  # all of it: a draft is another decoding
        assert pixels.dtype == np.uint8
        assert pixels.shape == resizing.shape
        found = normalisation(torch.from_numpy(pixels.copy())[None], torch.float32)[0]
        np.testing.assert_allclose(found, exact(data), rtol=0, atol=FLOAT32, err_msg=kind)


def test_memory_that_is_used_again_changes_nothing() -> None:
    normalisation, room = Normalisation(1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)), Room()
    rng = np.random.default_rng(0)
    for n in (3, 5, 2, 5):
        pixels = torch.from_numpy(rng.integers(0, 256, (n, 6, 4, 3), dtype=np.uint8))
        expected = (pixels.numpy() / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.1]
        found = normalisation(pixels, torch.float32, room.of(pixels))
        assert found.is_contiguous()
        np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-5)
        assert torch.equal(found, normalisation(pixels, torch.float32))


def test_every_thread_has_memory_of_its_own() -> None:
    room, pixels = Room(), torch.zeros((1, 2, 2, 3), dtype=torch.uint8)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(room.of, pixels).result()
    assert other.data_ptr() != room.of(pixels).data_ptr()
    assert room.of(pixels).data_ptr() == room.of(pixels).data_ptr()


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 24, "width": 24}},  # zeros around
        {"size": {"shortest_edge": 20}, "do_center_crop": False},  # of any width
        {"do_resize": False},
        {"do_pad": True, "pad_size": {"height": 300, "width": 300}},
        {"size": {"longest_edge": 20}},
        {"do_rescale": False},
    ],
)
def test_what_is_not_known_is_left_to_the_processor(options: dict[str, Any]) -> None:
    import transformers

    assert parts_of_processor(transformers.CLIPImageProcessorPil()) is not None
    if options == {"do_rescale": False}:
        options = {**options, "do_normalize": False}
    assert parts_of_processor(transformers.CLIPImageProcessorPil(**options)) is None


def test_a_processor_of_another_class_is_asked_itself() -> None:
    import transformers

    own = type("Own", (transformers.CLIPImageProcessorPil,), {})
    assert parts_of_processor(own()) is None
    assert parts_of_processor(object()) is None


@pytest.fixture(scope="module", params=["clip", "siglip", "embedded"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "embedded":
        return EmbeddedEncoder(CPU, torch.float32)
    folder = tmp_path_factory.mktemp(request.param)
    (save_clip if request.param == "clip" else save_siglip)(folder)
    return load(folder)


def test_bytes_give_the_features_of_the_processors_pixels(encoder: DeviceEncoder) -> None:
    images = [decode_image(data, MOST) for data in image_files().values()]
    assert encoder.resizing is not None
    assert encoder.prepare is encoder.resizing
    found = encoder.encode_images(np.stack([encoder.prepare(image) for image in images]))
    exact = encoder.encode_images(np.stack([encoder.preprocess(image) for image in images]))
    np.testing.assert_allclose(found.features, exact.features, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, exact, strict=True):
        assert (one is None) == (other is None)


def parted(batches: Iterator[Encoded]) -> tuple[list[int], np.ndarray]:
    every = list(batches)
    return [len(e.features) for e in every], np.concatenate([e.features for e in every])


class Beside:
    """Have an encoder go the way of a GPU, whose results are waited for, on the processor."""

    def __init__(self, encoder: DeviceEncoder, patch: pytest.MonkeyPatch) -> None:
        def stacked(images: Sequence[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.stack(images))

        patch.setattr(encoder, "stack", stacked)

    def run(self, encoder: DeviceEncoder, pixels: Sequence[np.ndarray]) -> Any:
        from encoders.batches import in_batches

        size = encoder.batch_size(3)
        return (
            in_batches(pixels, size, encoder.stack, encoder.start_images, beside=True),
            in_batches(CAPTIONS * 2, size, encoder.tokens, encoder.start_texts, beside=True),
        )


def test_batches_begun_ahead_are_those_of_one_after_the_other(
    encoder: DeviceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = [encoder.prepare(decode_image(d, MOST)) for d in list(image_files().values())[:7]]
    images, texts = Beside(encoder, monkeypatch).run(encoder, pixels)
    sizes, features = parted(images)
    assert sizes == [3, 3, 1]
    np.testing.assert_array_equal(
        features, parted(encoder.image_batches(pixels, encoder.batch_size(3)))[1]
    )
    sizes, features = parted(texts)
    assert sizes == [3, 3]
    np.testing.assert_array_equal(
        features, parted(encoder.text_batches(CAPTIONS * 2, encoder.batch_size(3)))[1]
    )


def test_a_full_memory_shrinks_the_batches_of_an_encoder(
    encoder: DeviceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = encoder.image_rows
    tried: list[int] = []

    def small(batch: torch.Tensor) -> Any:
        tried.append(len(batch))
        if len(batch) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(batch)

    pixels = [encoder.prepare(decode_image(d, MOST)) for d in list(image_files().values())[:11]]
    expected = parted(encoder.image_batches(pixels, encoder.batch_size(4)))[1]
    monkeypatch.setattr(encoder, "image_rows", small)
    encoder.__dict__.pop("_batch_sizes", None)
    sizes, found = parted(encoder.image_batches(pixels, encoder.batch_size("auto")))
    assert tried[:2] == [11, 5]
    assert sizes == [5, 5, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # It is remembered for the next images and for the captions.
    assert encoder.batch_size("auto").now == 5
    encoder.__dict__.pop("_batch_sizes", None)

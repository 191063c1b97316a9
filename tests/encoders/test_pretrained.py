"""CLIP and SigLIP through transformers; the truth is the model run directly."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from artifacts.settings import InputError
from encoders import pretrained
from encoders.base import EmbeddingConfig, Encoder, count_cut_off
from encoders.embedded import EmbeddedEncoder
from encoders.pretrained import load_encoder, load_pretrained
from sources.pixels import crop_strip
from tests.encoders.pictures import channels_first, photographs, stack
from tests.encoders.weight_files import Planted, put_in_cache, save_shards
from tests.small_models import (
    CAPTIONS,
    CPU,
    encode,
    load,
    on_cuda_and_cpu,
    save_clip,
    save_siglip,
    unit,
    unit_projections,
)

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    save_siglip(folder)
    return folder


@pytest.fixture
def broken_folder(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of the CLIP folder for a test to damage."""
    return Path(shutil.copytree(clip_folder, tmp_path / "broken"))


# --- CLIP and SigLIP ------------------------------------------------------------------------------


def test_clip_equals_the_model_run_directly(clip_folder: Path) -> None:
    import transformers

    encoder, images = load(clip_folder), photographs(3)
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    pixels = channels_first((stack(images) / 255 - CLIP_MEAN) / CLIP_STD)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    ids = [[*tokenizer(text)["input_ids"][:23], tokenizer.eos_token_id] for text in CAPTIONS]
    with torch.no_grad():
        image_rows = model.get_image_features(pixels).pooler_output
        # One caption at a time: no padding that a mask would have to hide.
        text_rows = [model.get_text_features(torch.tensor([row])).pooler_output for row in ids]

    found_images, found_texts = encode(encoder, images), encoder.encode_texts(CAPTIONS)
    np.testing.assert_allclose(unit_projections(found_images), unit(image_rows), atol=1e-5)
    np.testing.assert_allclose(unit_projections(found_texts), unit(torch.cat(text_rows)), atol=1e-5)
    assert encoder.name == str(clip_folder)
    # The features are what the projections take in.
    for found, projection in (
        (found_images, model.visual_projection),
        (found_texts, model.text_projection),
    ):
        assert found.features.shape == (3, 32)
        projected = unit(projection(torch.from_numpy(found.features)))
        np.testing.assert_allclose(unit_projections(found), projected, atol=1e-5)


def test_siglip_equals_the_model_run_directly(siglip_folder: Path) -> None:
    import transformers

    encoder, images = load(siglip_folder), photographs(3)
    model = transformers.SiglipModel.from_pretrained(siglip_folder)
    pixels = channels_first(stack(images) / 127.5 - 1)
    letters = ["<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz.,"]
    ids = [[letters.index(c) for c in text.lower() if c != " "][:23] for text in CAPTIONS]
    padded = torch.tensor([row + [1] * (24 - len(row)) for row in ids])
    with torch.no_grad():
        image_rows = model.get_image_features(pixels).pooler_output
        text_rows = model.get_text_features(padded).pooler_output
    for found, rows in (
        (encode(encoder, images), image_rows),
        (encoder.encode_texts(CAPTIONS), text_rows),
    ):
        np.testing.assert_allclose(found.features, rows.numpy(), atol=1e-5)
        np.testing.assert_allclose(unit_projections(found), unit(rows), atol=1e-5)


@pytest.mark.parametrize("folder", ["clip_folder", "siglip_folder"])
def test_rows_do_not_depend_on_their_batch(folder: str, request: pytest.FixtureRequest) -> None:
    encoder, images = load(request.getfixturevalue(folder)), photographs(3)
    together, texts_together = encode(encoder, images), encoder.encode_texts(CAPTIONS)
    for i in range(3):
        alone, text_alone = encode(encoder, images[i : i + 1]), encoder.encode_texts([CAPTIONS[i]])
        np.testing.assert_allclose(alone.features[0], together.features[i], atol=1e-5)
        np.testing.assert_allclose(text_alone.features[0], texts_together.features[i], atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "at_the_ends", "longest"),
    # One token a letter; CLIP marks both ends, SigLIP one.
    [("clip_folder", 2, "x" * 22), ("siglip_folder", 1, "X" * 23)],
)
def test_tokens_of_a_caption(
    folder: str, at_the_ends: int, longest: str, request: pytest.FixtureRequest
) -> None:
    encoder = load(request.getfixturevalue(folder))
    counts = encoder.count_tokens(["abc", "a b c", longest, longest + "y"])
    assert counts == [3 + at_the_ends, 3 + at_the_ends, 24, 25]
    assert encoder.max_tokens == 24
    captions = [longest, longest + "y", longest + "z", longest + "z"]
    assert count_cut_off(encoder, captions) == 3
    _, one, other, _ = encoder.encode_texts(captions).features
    np.testing.assert_array_equal(one, other)  # what is beyond the limit is not seen


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(clip_folder: Path, precision: str) -> None:
    exact, close = load(clip_folder), load(clip_folder, precision)
    found, expected = (
        unit_projections(encode(close, photographs(3))),
        unit_projections(encode(exact, photographs(3))),
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.02)  # bf16: 8 bits of mantissa


def test_a_tokenizer_that_knows_no_word_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    """transformers makes an empty one where its files are missing: all captions would be alike."""
    copied = Path(shutil.copytree(clip_folder, tmp_path / "copied"))
    for path in copied.glob("token*"):
        path.unlink()
    with pytest.raises(InputError, match=r"--encoder_model .* its tokenizer knows no word"):
        load(copied)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_close_to_the_cpu(clip_folder: Path) -> None:
    for found, exact in on_cuda_and_cpu(clip_folder, photographs(3)):
        np.testing.assert_allclose(unit_projections(found), unit_projections(exact), atol=0.02)


def test_preprocess_in_threads(clip_folder: Path) -> None:
    images = photographs(24, (40, 30))
    for encoder in (load(clip_folder), EmbeddedEncoder(CPU, torch.float32)):
        with ThreadPoolExecutor(8) as executor:
            threaded = list(executor.map(encoder.preprocess, images))
        for image, pixels in zip(images, threaded, strict=True):
            np.testing.assert_array_equal(pixels, encoder.preprocess(image))


def test_crop_strip() -> None:
    photograph, strip = photographs(1, (64, 40))[0], photographs(1, (501, 2))[0]
    assert crop_strip(photograph) is photograph
    middle = np.asarray(strip)[:, 234:266]
    np.testing.assert_array_equal(np.asarray(crop_strip(strip)), middle)
    np.testing.assert_array_equal(
        np.asarray(crop_strip(strip.transpose(PIL.Image.Transpose.TRANSPOSE))),
        middle.transpose(1, 0, 2),
    )


def test_strip_of_pixels_does_not_fill_the_memory(clip_folder: Path) -> None:
    # Its short side scaled to 16 pixels would make 16 * 16 * 2,000,000 of them.
    assert load(clip_folder).preprocess(PIL.Image.new("RGB", (2_000_000, 1))).shape == (3, 16, 16)


# --- Weights in .bin ------------------------------------------------------------------------------


def as_bin(folder: Path, n_shards: int = 0) -> Path:
    """Save a model's weights as its authors did before safetensors, with what was a buffer then."""
    tensors = load_tensors(folder / "model.safetensors")
    for tower in ("text_model", "vision_model"):
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(24)[None]
    (folder / "model.safetensors").unlink()
    if n_shards:
        save_shards(tensors, folder, n_shards)
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def check_same(found: Encoder, expected: Encoder) -> None:
    """The same features and projections, bit for bit."""
    for rows, others in (
        (encode(found, photographs(3)), encode(expected, photographs(3))),
        (found.encode_texts(CAPTIONS), expected.encode_texts(CAPTIONS)),
    ):
        np.testing.assert_array_equal(rows.features, others.features)
        np.testing.assert_array_equal(unit_projections(rows), unit_projections(others))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("n_shards", [0, 3])
@pytest.mark.parametrize("model", ["clip_folder", "siglip_folder"])
def test_bin_equals_safetensors(
    model: str, n_shards: int, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole: Path = request.getfixturevalue(model)
    folder = as_bin(Path(shutil.copytree(whole, tmp_path / "bin")), n_shards)
    assert len(list(folder.glob("*.bin"))) == max(1, n_shards)
    check_same(load(folder, precision), load(whole, precision))


def test_safetensors_come_first(clip_folder: Path, broken_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"planted": Planted(marker)}, broken_folder / "pytorch_model.bin")
    check_same(load(broken_folder), load(clip_folder))
    assert not marker.exists()


def test_cache_that_holds_bin_alone_needs_no_network(
    clip_folder: Path, no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_bin(Path(shutil.copytree(clip_folder, tmp_path / "bin")))
    put_in_cache(folder, no_hub, "openai/clip")
    monkeypatch.delenv("HF_HUB_OFFLINE")  # it is the cache that keeps the Hub from being asked
    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network")

    for name in ("socket.socket.connect", "socket.getaddrinfo"):
        monkeypatch.setattr(name, refuse)
    found, threads = load("openai/clip"), [thread.name for thread in threading.enumerate()]
    assert found.name == "openai/clip"
    assert not asked
    assert not [name for name in threads if "conversion" in name]
    check_same(found, load(clip_folder))


def test_cache_that_lacks_a_shard_is_no_cached_model(
    clip_folder: Path, no_hub: Path, tmp_path: Path
) -> None:
    folder = as_bin(Path(shutil.copytree(clip_folder, tmp_path / "bin")), n_shards=2)
    snapshot = put_in_cache(folder, no_hub, "openai/clip")
    check_same(load("openai/clip"), load(clip_folder))
    (snapshot / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match="not in the local cache"):
        load("openai/clip")


def test_planted_weights_are_never_unpickled(broken_folder: Path, tmp_path: Path) -> None:
    path, marker = as_bin(broken_folder) / "pytorch_model.bin", tmp_path / "marker"
    torch.save({**torch.load(path, weights_only=True), "planted": Planted(marker)}, path)
    with pytest.raises(InputError, match=r"more than tensors \(posix\.system\)") as caught:
        load(broken_folder)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # what it would have done
    assert marker.exists()


def test_bin_that_lacks_a_weight(broken_folder: Path) -> None:
    path = as_bin(broken_folder) / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    del tensors["text_projection.weight"]
    torch.save(tensors, path)
    with pytest.raises(InputError, match=r"the weights lack text_projection\.weight"):
        load(broken_folder)


# --- Models that cannot be had --------------------------------------------------------------------


def test_absent_hub_is_known_within_seconds(no_hub: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(InputError, match="--encoder_model some/model is no folder, not in the loc"):
        load("some/model")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "a b", "", "../clip"])
def test_name_of_nothing(name: str, no_hub: Path) -> None:
    with pytest.raises(InputError, match="is no folder, not in the local cache"):
        load(name)


def test_cached_model_needs_no_hub(clip_folder: Path, no_hub: Path) -> None:
    repository = no_hub / "models--some--clip"
    shutil.copytree(clip_folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    found, expected = load("some/clip"), load(clip_folder)
    assert found.name == "some/clip"
    np.testing.assert_array_equal(
        found.encode_texts(CAPTIONS).features, expected.encode_texts(CAPTIONS).features
    )


def test_cached_model_without_weights_is_no_cached_model(clip_folder: Path, no_hub: Path) -> None:
    repository = no_hub / "models--some--clip"
    shutil.copytree(clip_folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not in the local cache"):
        load("some/clip")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--encoder_model .* cannot be loaded: .*[^\n]*$"):
        load(tmp_path)


def test_model_of_another_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="is a model of type bert; only the types clip and siglip"):
        load(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def drop_a_weight(path: Path) -> None:
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", Path.unlink, "model.safetensors"),
        ("model.safetensors", truncate, "cannot be loaded"),
        ("model.safetensors", drop_a_weight, "the weights lack visual_projection.weight"),
        ("config.json", lambda path: path.write_text("{"), "cannot be loaded"),
        ("preprocessor_config.json", lambda path: path.write_text("[]"), "cannot be loaded"),
        ("tokenizer.json", lambda path: path.write_text("{}"), "cannot be loaded"),
    ],
)
def test_damaged_model(
    file: str, damage: Callable[[Path], object], message: str, broken_folder: Path
) -> None:
    damage(broken_folder / file)
    with pytest.raises(InputError, match=message) as caught:
        load_pretrained(str(broken_folder), CPU, torch.float32)
    assert "\n" not in str(caught.value)
    assert "use --encoder_model embedded" in str(caught.value)


def test_weights_of_another_format_under_the_name_of_a_pickle(broken_folder: Path) -> None:
    (broken_folder / "model.safetensors").rename(broken_folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is damaged or needs more than tens"):
        load(broken_folder)


def test_auto_falls_back_with_a_warning(no_hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(EmbeddingConfig("auto"), device=CPU)
    assert encoder.name == "embedded"
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage().startswith("EMBEDDED ENCODER:")
    assert "openai/clip-vit-base-patch32" in record.getMessage()


def test_auto_takes_clip_where_it_can_be_had(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "DEFAULT_MODEL", str(clip_folder))
    assert load_encoder(EmbeddingConfig("auto"), device=CPU).name == str(clip_folder)

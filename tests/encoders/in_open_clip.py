"""Encoders of open_clip; the truth is open_clip itself, on two-layer models of its own.

`test_openclip.py` runs these tests where open_clip is, in an environment of its own.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.settings import InputError
from encoders.base import Encoder, count_cut_off
from encoders.openclip import OpenClipEncoder
from sources.images import decode_image
from tests.encoders.pictures import photographs
from tests.encoders.weight_files import Planted, put_in_cache
from tests.small_models import (
    CAPTIONS,
    encode,
    load,
    on_cuda_and_cpu,
    save_siglip,
    unit,
    unit_projections,
)
from tests.sources.image_kinds import image_files

D = 20  # of the joint space
WEIGHTS = "open_clip_model.safetensors"
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2}
CLIP = {"embed_dim": D, "vision_cfg": VISION, "text_cfg": TEXT}
TIMM = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"}
DECODER = {**TEXT, "context_length": 16, "mlp_ratio": 4, "attn_pooler_heads": 2}
BERT = {
    **{"model_type": "bert", "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16},
    "pad_token_id": 1,
}
HF_TEXT = {"hf_tokenizer_name": "elsewhere", "context_length": 16, "hf_pooler_type": "mean_pooler"}
# By kind of tower: the configuration, and the widths of the features.
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "clip": (CLIP, 64, 48),
    "quick gelu, apart": ({**CLIP, "quick_gelu": True, "custom_text": True}, 64, 48),
    "resnet": ({**CLIP, "vision_cfg": {**VISION, "layers": [1, 1, 1, 1], "width": 8}}, 256, 48),
    "linear layers": (
        {
            **CLIP,
            "vision_cfg": {**TIMM, "timm_proj": "linear", "timm_proj_bias": True},
            "text_cfg": {**TEXT, "proj_bias": True},
        },
        *(64, 48),
    ),
    "mlp": ({**CLIP, "vision_cfg": {**TIMM, "timm_proj": "mlp"}}, 64, 48),
    "classifier": (
        {**CLIP, "vision_cfg": {**TIMM, "timm_proj": None}, "custom_text": True},
        64,
        48,
    ),
    "no projections": (
        {
            **{"embed_dim": 64, "custom_text": True, "init_logit_bias": -10},
            "vision_cfg": {**TIMM, "timm_proj": "none"},
            "text_cfg": {**TEXT, "width": 64, "proj_type": "none"},
        },
        *(64, 64),
    ),
    "coca": (
        {
            **{"embed_dim": D, "custom_text": True, "multimodal_cfg": DECODER},
            "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2}
            | {"output_tokens": True},
            "text_cfg": {**TEXT, "context_length": 15, "embed_cls": True, "output_tokens": True},
        },
        *(D, 48),
    ),
    "transformers text": ({**CLIP, "text_cfg": {**HF_TEXT, "hf_proj_type": "mlp"}}, 64, 32),
}


def save_model(
    folder: Path, config: dict[str, Any], preprocess: dict[str, Any] | None = None
) -> Path:
    """A model with random weights in a folder, as open_clip saves one."""
    folder.mkdir(parents=True, exist_ok=True)
    if "hf_tokenizer_name" in config["text_cfg"]:
        save_siglip(folder)  # for its tokenizer
        for name in ("model.safetensors", "preprocessor_config.json"):
            (folder / name).unlink()
        (folder / "config.json").write_text(json.dumps(BERT))
        text = {**config["text_cfg"], "hf_model_name": str(folder)}
        config = {**config, "text_cfg": text}
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("bias"):  # open_clip begins with zeros, which would hide one left out
                values.normal_(std=0.1)
    save_file({name: v.contiguous() for name, v in model.state_dict().items()}, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("clip"), CLIP)


@pytest.fixture
def copied(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of the CLIP folder for a test to change."""
    return Path(shutil.copytree(clip_folder, tmp_path / "copied"))


def check_same(found: Encoder, expected: Encoder) -> None:
    """The same features and projections, bit for bit."""
    for rows, others in (
        (encode(found, photographs(2)), encode(expected, photographs(2))),
        (found.encode_texts(CAPTIONS), expected.encode_texts(CAPTIONS)),
    ):
        np.testing.assert_array_equal(rows.features, others.features)
        np.testing.assert_array_equal(unit_projections(rows), unit_projections(others))


# What each kind makes of its features, from its weights.
PROJECTIONS: dict[str, dict[str, Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]]] = {
    "clip": {
        "image": lambda w, x: x @ w["visual.proj"],
        "text": lambda w, x: x @ w["text_projection"],
    },
    "resnet": {
        "image": lambda w, x: (
            x @ w["visual.attnpool.c_proj.weight"].T + w["visual.attnpool.c_proj.bias"]
        ),
    },
    "linear layers": {
        "image": lambda w, x: x @ w["visual.head.proj.weight"].T + w["visual.head.proj.bias"],
        "text": lambda w, x: x @ w["text_projection.weight"].T + w["text_projection.bias"],
    },
    "classifier": {
        "image": lambda w, x: x @ w["visual.trunk.head.weight"].T + w["visual.trunk.head.bias"],
        "text": lambda w, x: x @ w["text.text_projection"],
    },
    "no projections": {"image": lambda _, x: x, "text": lambda _, x: x},
    "coca": {
        "image": lambda w, x: x @ w["visual.proj"],
        "text": lambda w, x: x @ w["text.text_projection"],
    },
}


# --- What is encoded ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_model_run_directly(kind: str, tmp_path: Path) -> None:
    config, image_width, text_width = MODELS[kind]
    folder, images = save_model(tmp_path / "model", config), photographs(3)
    encoder = load(f"open_clip:{folder}")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        image_rows = model.encode_image(torch.stack([transform(i) for i in images]), normalize=True)
        text_rows = model.encode_text(tokenizer(CAPTIONS), normalize=True)
    found_images, found_texts = encode(encoder, images), encoder.encode_texts(CAPTIONS)
    np.testing.assert_allclose(unit_projections(found_images), unit(image_rows), atol=1e-6)
    np.testing.assert_allclose(unit_projections(found_texts), unit(text_rows), atol=1e-6)
    assert found_images.features.shape == (3, image_width)
    assert found_texts.features.shape == (3, text_width)
    assert np.ptp(found_images.features, axis=0).min() > 0
    assert encoder.name == f"open_clip:{folder}"
    assert encoder.max_tokens == config["text_cfg"]["context_length"]

    tensors = load_file(folder / WEIGHTS)
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    encoded = {"image": found_images, "text": found_texts}
    for side, project in PROJECTIONS.get(kind, {}).items():
        rows = encoded[side]
        assert rows.projections is not None
        np.testing.assert_allclose(project(arrays, rows.features), rows.projections, atol=1e-5)


def test_features_of_clip_are_the_normed_tokens(clip_folder: Path) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    seen: dict[str, torch.Tensor] = {}
    for name, module in (("image", model.visual.ln_post), ("text", model.ln_final)):
        module.register_forward_hook(lambda *a, name=name: seen.__setitem__(name, a[2]))
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(CAPTIONS)
    images = photographs(2)
    with torch.no_grad():
        model.eval().encode_image(torch.stack([transform(image) for image in images]))
        model.encode_text(tokens)
    encoder = load(f"open_clip:{clip_folder}")
    np.testing.assert_allclose(
        encode(encoder, images).features, seen["image"][:, 0].numpy(), atol=1e-6
    )
    last = tokens.argmax(dim=1)
    np.testing.assert_allclose(
        encoder.encode_texts(CAPTIONS).features, seen["text"][torch.arange(3), last], atol=1e-6
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(clip_folder: Path, precision: str) -> None:
    exact, close = load(clip_folder), load(clip_folder, precision)
    for found, expected in (
        (encode(close, photographs(3)), encode(exact, photographs(3))),
        (close.encode_texts(CAPTIONS), exact.encode_texts(CAPTIONS)),
    ):
        assert found.features.dtype == np.float32
        np.testing.assert_allclose(unit_projections(found), unit_projections(expected), atol=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_close_to_the_cpu(clip_folder: Path) -> None:
    for found, exact in on_cuda_and_cpu(clip_folder, photographs(3)):
        np.testing.assert_allclose(unit_projections(found), unit_projections(exact), atol=0.02)


def test_preprocess_in_threads(clip_folder: Path) -> None:
    encoder, images = load(clip_folder), photographs(24, (40, 30))
    with ThreadPoolExecutor(8) as executor:
        threaded = list(executor.map(encoder.preprocess, images))
    for image, pixels in zip(images, threaded, strict=True):
        np.testing.assert_array_equal(pixels, encoder.preprocess(image))


def test_preprocessing_is_the_models_own(clip_folder: Path, tmp_path: Path) -> None:
    grey = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    encoder = load(save_model(tmp_path / "grey", CLIP, grey))
    np.testing.assert_allclose(encoder.preprocess(PIL.Image.new("RGB", (9, 5), (255, 0, 0)))[0], 1)
    assert encoder.preprocess(PIL.Image.new("RGB", (2_000_000, 1))).shape == (3, 32, 32)
    assert load(clip_folder).preprocess(PIL.Image.new("RGB", (2_000_000, 1))).shape == (3, 32, 32)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_bytes_normalised_are_what_the_transform_makes(
    tmp_path: Path, resize_mode: str, interpolation: str
) -> None:
    how = {"resize_mode": resize_mode, "interpolation": interpolation, "std": [0.5, 0.25, 0.125]}
    encoder = load(save_model(tmp_path / "model", CLIP, how))
    assert isinstance(encoder, OpenClipEncoder)
    assert encoder.resizing is not None
    assert encoder.normalisation is not None
    for kind, data in image_files().items():
        image = decode_image(data, 10**7)
        pixels = torch.from_numpy(encoder.resizing(image).copy())[None]
        found = encoder.normalisation(pixels, torch.float32)[0]
        exact = encoder.preprocess(image)
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6, err_msg=kind)


def test_a_transform_that_is_not_known_is_asked_itself(tmp_path: Path) -> None:
    encoder = load(save_model(tmp_path / "model", CLIP, {"resize_mode": "longest"}))
    assert encoder.resizing is None
    assert encoder.prepare(photographs(1, (40, 30))[0]).shape == (3, 32, 32)


def test_tokens_of_a_caption(clip_folder: Path, tmp_path: Path) -> None:
    encoder = load(clip_folder)
    fits = " ".join(["dog"] * 14)
    assert encoder.count_tokens(["a dog", fits, f"{fits} dog"]) == [4, 16, 17]
    assert count_cut_off(encoder, [fits, f"{fits} dog", f"{fits} cat", f"{fits} cat"]) == 3
    _, one, other = encoder.encode_texts([fits, f"{fits} dog", f"{fits} cat"]).features
    np.testing.assert_array_equal(one, other)  # what is beyond the limit is not seen

    letters = load(f"open_clip:{save_model(tmp_path / 'bert', MODELS['transformers text'][0])}")
    assert letters.count_tokens(["abc", "x" * 15, "x" * 16]) == [4, 16, 17]
    _, one, other = letters.encode_texts(["x" * 15, "x" * 15 + "y", "x" * 15 + "z"]).features
    np.testing.assert_array_equal(one, other)


def test_captions_are_never_cut_at_random(copied: Path) -> None:
    config = {**CLIP, "text_cfg": {**TEXT, "tokenizer_kwargs": {"reduction_mask": "shuffle"}}}
    (copied / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    long, encoder = ["one two three four five six seven eight nine ten " * 3] * 2, load(copied)
    one, other = encoder.encode_texts(long).features
    np.testing.assert_array_equal(one, other)


# --- Names ----------------------------------------------------------------------------------------


def test_names_of_a_folder(clip_folder: Path) -> None:
    names = [f"open_clip:{clip_folder}", f"local-dir:{clip_folder}", str(clip_folder)]
    for name in (*names, f"open_clip:local-dir:{clip_folder}"):
        encoder = load(name)
        assert encoder.name == name
        check_same(encoder, load(names[0]))


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        *(("clip", prefix) for prefix in ("open_clip:hf-hub:", "hf-hub:", "open_clip:", "")),
        ("transformers text", "hf-hub:"),
    ],
)
def test_names_of_a_cached_repository(prefix: str, kind: str, no_hub: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", MODELS[kind][0])
    expected = load(f"open_clip:{folder}")
    tower = tmp_path / "tower"  # the configuration of the text tower stays where it was
    tower.mkdir()
    if kind != "clip":
        shutil.move(folder / "config.json", tower / "config.json")
        content = json.loads((folder / "open_clip_config.json").read_text())
        content["model_cfg"]["text_cfg"]["hf_model_name"] = str(tower)
        (folder / "open_clip_config.json").write_text(json.dumps(content))
    put_in_cache(folder, no_hub, "apple/DFN")
    found = load(f"{prefix}apple/DFN")
    assert found.name == f"{prefix}apple/DFN"
    check_same(found, expected)


def test_tokenizer_of_another_cached_repository(no_hub: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", MODELS["transformers text"][0])
    expected = load(f"open_clip:{folder}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / name, elsewhere / name)
    with pytest.raises(InputError, match="or its tokenizer elsewhere, is no folder, not in the lo"):
        load(f"open_clip:{folder}")
    put_in_cache(elsewhere, no_hub, "elsewhere")
    check_same(load(f"open_clip:{folder}"), expected)


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that open_clip has itself, with weights at `some/weights` on the Hub."""
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", [tmp_path / "two-layers.json"])
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {})
    (tmp_path / "two-layers.json").write_text(json.dumps(CLIP))
    open_clip.factory._rescan_model_configs()
    tag = {"hf_hub": "some/weights/", "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    tags = {"tag": tag, "file": {"hf_hub": "some/weights/named.bin"}, "url": {"url": "http://x.y"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "two-layers", tags)
    return "two-layers"


def test_weights_that_open_clip_offers(
    own_model: str, clip_folder: Path, no_hub: Path, tmp_path: Path
) -> None:
    grey = {"mean": [0.5] * 3, "std": [0.5] * 3}
    same = save_model(tmp_path / "same", {**CLIP, "quick_gelu": True}, grey)
    shutil.copy(clip_folder / WEIGHTS, same / WEIGHTS)
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(clip_folder / WEIGHTS, weights / WEIGHTS)
    torch.save(load_file(clip_folder / WEIGHTS), weights / "named.bin")
    put_in_cache(weights, no_hub, "some/weights")
    # The activation and the colours are those that the weights were trained with.
    check_same(load(f"open_clip:{own_model}/tag"), load(same))
    check_same(load(f"open_clip:{own_model}/file"), load(clip_folder))
    with pytest.raises(InputError, match=r"open_clip has these weights at http://x\.y alone"):
        load(f"open_clip:{own_model}/url")


def test_weights_in_a_file(own_model: str, clip_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(clip_folder / WEIGHTS)
    trained = {f"module.{name}": values for name, values in tensors.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": trained}, tmp_path / "epoch_3.pt")
    for path in (tmp_path / "epoch_3.pt", clip_folder / WEIGHTS):
        check_same(load(f"open_clip:{own_model}/{path}"), load(clip_folder))


@pytest.mark.parametrize("pretrained", ["/absent", "", "/"])
def test_weights_that_nobody_offers(own_model: str, pretrained: str) -> None:
    with pytest.raises(InputError, match=r"is no file and no weights .* it has tag, file, url$"):
        load(f"open_clip:{own_model}{pretrained}")


def test_repository_with_the_weights_of_another_library(
    clip_folder: Path, no_hub: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "model"))
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    check_same(load(folder), load(clip_folder))  # in a folder there is nothing else to take
    put_in_cache(folder, no_hub, "timm/model")
    with pytest.raises(InputError, match="hf-hub:timm/model is no folder, not in the local cache"):
        load("hf-hub:timm/model")


@pytest.mark.parametrize("name", ["hf-hub:some/model", "open_clip:No-Such/model", "open_clip:"])
def test_absent_model_is_known_within_seconds(name: str, no_hub: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(InputError, match=rf"^--encoder_model {name} is no folder, not in the"):
        load(name)
    assert time.perf_counter() - started < 5


def test_absent_weights_of_a_tag(own_model: str, no_hub: Path) -> None:
    with pytest.raises(InputError, match=r"two-layers/tag is no folder, not in the local cache"):
        load(f"open_clip:{own_model}/tag")


# --- Weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "pytorch_model.bin", "mine.pt"])
def test_bin_equals_safetensors(name: str, copied: Path, clip_folder: Path) -> None:
    torch.save(load_file(copied / WEIGHTS), copied / name)
    (copied / WEIGHTS).unlink()
    check_same(load(copied), load(clip_folder))


def test_safetensors_come_first(copied: Path, clip_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"planted": Planted(marker)}, copied / "open_clip_pytorch_model.bin")
    check_same(load(copied), load(clip_folder))
    assert not marker.exists()


def test_planted_weights_are_never_unpickled(copied: Path, tmp_path: Path) -> None:
    path, marker = copied / "open_clip_pytorch_model.bin", tmp_path / "marker"
    torch.save({**load_file(copied / WEIGHTS), "planted": Planted(marker)}, path)
    (copied / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"more than tensors \(posix\.system\)") as caught:
        load(copied)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # what it would have done
    assert marker.exists()


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", MODELS["transformers text"][0])
    marker = tmp_path / "marker"
    (folder / "evil.py").write_text(f"__import__('pathlib').Path({str(marker)!r}).touch()\n")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    encoder = load(f"open_clip:{folder}")  # by tokenizer.json, which is no code
    assert encoder.count_tokens(["abc"]) == [4]
    assert not marker.exists()
    with pytest.raises(AttributeError, match="Evil"):
        open_clip.get_tokenizer(f"local-dir:{folder}")  # what it would have done
    assert marker.exists()


def test_code_beside_a_text_tower_is_not_run(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", MODELS["transformers text"][0])
    marker = tmp_path / "marker"
    (folder / "evil.py").write_text(f"__import__('pathlib').Path({str(marker)!r}).touch()\n")
    own = {**BERT, "model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match="cannot be loaded"):
        load(f"open_clip:{folder}")
    assert not marker.exists()


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["visual.proj"]
    save_file(tensors, folder / WEIGHTS)


def add_a_layer(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    more = {k.replace(".1.", ".2."): v + 0 for k, v in tensors.items() if ".resblocks.1." in k}
    save_file(tensors | more, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "other weights: none"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"{"), "cannot be loaded"),
        (drop_a_weight, r'Missing key\(s\) in state_dict: "visual\.proj"'),
        (add_a_layer, r"Unexpected key\(s\) in state_dict"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "model_cfg"),
    ],
)
def test_damaged_model(damage: Callable[[Path], object], message: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(InputError, match=message) as caught:
        load(f"open_clip:{copied}")
    assert "\n" not in str(caught.value)
    assert "use --encoder_model embedded" in str(caught.value)


def test_several_weights_under_names_of_their_own(copied: Path) -> None:
    for name in ("a.pt", "b.safetensors"):
        shutil.copy(copied / WEIGHTS, copied / name)
    (copied / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"other weights: a\.pt, b\.safetensors;"):
        load(copied)


def test_folder_without_a_model_of_open_clip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no open_clip_config\.json; give open_clip:MOD"):
        load(f"open_clip:{tmp_path}")


def test_open_clip_says_nothing_of_its_own(
    clip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters)
    with caplog.at_level(logging.INFO):
        load(clip_folder)
        logging.warning("said by others")
    assert caplog.messages == ["said by others"]
    assert (list(root.handlers), list(root.filters)) == before

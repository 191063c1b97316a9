"""A CLIP and a SigLIP model small enough to be made for a test, and what to feed them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from encoders.base import EmbeddingConfig, Encoded, Encoder
from encoders.embedded import EmbeddedEncoder
from encoders.pretrained import load_encoder

CPU = torch.device("cpu")
CAPTIONS = ["A dog runs on the beach .", "two children", "a red bus, and a very long street"]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_ENCODED: dict[bytes, np.ndarray] = {}  # features by the hash of a batch
VISION = {**TOWER, "image_size": 16, "patch_size": 8}


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


def load(name: str | Path, precision: str = "fp32") -> Encoder:
    return load_encoder(EmbeddingConfig(str(name), precision), device=CPU)


def encode(encoder: Encoder, images: Sequence[PIL.Image.Image]) -> Encoded:
    return encoder.encode_images(np.stack([encoder.preprocess(image) for image in images]))


def on_cuda_and_cpu(
    name: str | Path, images: Sequence[PIL.Image.Image]
) -> list[tuple[Encoded, Encoded]]:
    """What an encoder makes of images, and of captions, on a CUDA device and on the CPU."""
    cuda = load_encoder(EmbeddingConfig(str(name)), device=torch.device("cuda"))
    cpu = load(name)
    return [
        (encode(cuda, images), encode(cpu, images)),
        (cuda.encode_texts(CAPTIONS), cpu.encode_texts(CAPTIONS)),
    ]


def unit_projections(encoded: Encoded) -> np.ndarray:
    """What a joint encoder's cosines are taken of."""
    assert encoded.projections is not None
    return np.asarray(unit(torch.from_numpy(encoded.projections)))


def unit(rows: torch.Tensor) -> np.ndarray:
    return np.asarray((rows / rows.norm(dim=1, keepdim=True)).detach())


def narrow(patch: pytest.MonkeyPatch, width: int = 48) -> None:
    """Let the embedded encoder give its first features alone, and those of a batch once.

    Joint maps are then fitted in no time, and runs of the same pictures are fast.
    """
    images, texts = EmbeddedEncoder.encode_images, EmbeddedEncoder.encode_texts

    def few_of_images(encoder: EmbeddedEncoder, pixels: np.ndarray) -> Encoded:
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in _ENCODED:
            _ENCODED[key] = images(encoder, pixels).features
        return Encoded(_ENCODED[key][:, :width], None)

    def few_of_texts(encoder: EmbeddedEncoder, captions: Sequence[str]) -> Encoded:
        return Encoded(texts(encoder, captions).features[:, :width], None)

    patch.setattr(EmbeddedEncoder, "encode_images", few_of_images)
    patch.setattr(EmbeddedEncoder, "encode_texts", few_of_texts)

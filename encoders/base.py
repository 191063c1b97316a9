"""Where features come from: settings, the interface, encoders, embeddings that exist already."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float32, Int64
from tqdm import tqdm

from artifacts.settings import AUTO, Settings, setting
from encoders.batches import AUTO_SIZES, BatchSize, in_batches
from sources.pixels import Resizing

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
MOST_END_MARKS = 4  # tokens that are no characters: start, end, class, the gap before a word
CAPTIONS_COUNTED_AT_ONCE = 1024
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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
        "Hub id or local folder of a CLIP or SigLIP model, open_clip:MODEL/PRETRAINED, "
        "hf-hub:OWNER/NAME or a folder of a model of open_clip (requirements-openclip.txt), "
        "embedded (needs no download), or auto: "
        f"{DEFAULT_MODEL} where it can be had, else embedded",
    )
    precision: str = setting(
        "auto",
        "of the encoder only; auto: fp32, on CUDA bf16 where it is supported, else fp16",
        choices=("auto", *DTYPES),
    )
    encoder_batch_size: int | str = setting(
        AUTO,
        f"images or captions the encoder takes at once; auto: {AUTO_SIZES['cpu']}, on CUDA "
        f"{AUTO_SIZES['cuda']}, halved as long as the GPU's memory is too small",
        at_least=1,
        affects_result=False,
        or_auto=True,
        type=int,
    )
    jpeg_decoding: str = setting(
        "reduced",
        "how large JPEGs are decoded; reduced: at 1/2, 1/4 or 1/8 of their size where at least "
        "three times the encoder's remains; full: every pixel, large ones several times slower; "
        "gpu: plain ones on the encoder's GPU (needs torchvision)",
        choices=("reduced", "full", "gpu"),
        added_later=True,
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


def join(batches: Sequence[Encoded]) -> Encoded:
    """All batches one below the other."""
    features = np.concatenate([batch.features for batch in batches])
    projections = [batch.projections for batch in batches if batch.projections is not None]
    return Encoded(features, np.concatenate(projections) if projections else None)


class Features(ABC):
    """What gives the pairs of a data set their features: an encoder, or rows that exist already.

    Attributes:
        name: the model really used, or what stands for it in reports.
        preprocess: makes what `encode_images` takes of an RGB image of any size, thread-safe; None
            where the images of the data set are rows.
        resizing: makes other pixels of it, (h, w, 3) in uint8, that `encode_images` takes as well:
            a quarter of the bytes, for whoever decodes; None: `preprocess` alone can.
        max_tokens: how many tokens of a caption are read; None where nothing is cut off.
        device: that it works on.
    """

    name: str
    max_tokens: int | None = None
    device = torch.device("cpu")
    preprocess: Callable[[PIL.Image.Image], np.ndarray] | None
    resizing: Resizing | None = None

    @abstractmethod
    def encode_images(self, inputs: np.ndarray) -> Encoded:
        """Features and projections of a batch of images, of `preprocess` or of `resizing`."""

    def image_batches(self, images: Iterable[np.ndarray], size: BatchSize) -> Iterator[Encoded]:
        """What `encode_images` gives of any number of images, batch by batch.

        Raises:
            InputError: the device has too little memory.
        """

        def start(batch: np.ndarray) -> Callable[[], Encoded]:
            return partial(_itself, self.encode_images(batch))

        return in_batches(images, size, np.stack, start, beside=False)

    def batch_size(self, asked: int | str) -> BatchSize:
        """How many images or captions at once; what was found too many is remembered."""
        sizes: dict[int | str, BatchSize] = self.__dict__.setdefault("_batch_sizes", {})
        return sizes.setdefault(asked, BatchSize(asked, self.device))

    @abstractmethod
    def text_features(self, captions: Sequence[str], positions: Int64[np.ndarray, " m"]) -> Encoded:
        """Features and projections of the texts of a batch of pairs, in their order.

        Args:
            captions: of the pairs.
            positions: of the pairs in their source.
        """

    def all_text_features(
        self, captions: Sequence[str], positions: Int64[np.ndarray, " m"], batch_size: int | str
    ) -> Encoded:
        """The same of any number of pairs, in batches where that matters."""
        return self.text_features(captions, positions)

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption were nothing cut off, those that mark its ends included.

        Asked only where there is a `max_tokens`.
        """
        raise NotImplementedError(f"{type(self).__name__} has max_tokens but counts none")


class Encoder(Features):
    """Turns images and captions into features; one with a joint space also projects them to it."""

    @abstractmethod
    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """What `encode_images` takes, from an RGB image of any size; thread-safe."""

    @property
    def prepare(self) -> Callable[[PIL.Image.Image], np.ndarray]:
        """What makes the lighter input of an image, where there are two."""
        return self.resizing or self.preprocess

    @abstractmethod
    def encode_texts(self, captions: Sequence[str]) -> Encoded:
        """Features and projections of a batch of captions."""

    def text_batches(self, captions: Iterable[str], size: BatchSize) -> Iterator[Encoded]:
        """What `encode_texts` gives of any number of captions, batch by batch.

        Raises:
            InputError: the device has too little memory.
        """

        def start(batch: list[str]) -> Callable[[], Encoded]:
            return partial(_itself, self.encode_texts(batch))

        return in_batches(captions, size, list, start, beside=False)

    def text_features(self, captions: Sequence[str], positions: Int64[np.ndarray, " m"]) -> Encoded:
        """Those of the captions, wherever they stand."""
        return self.encode_texts(captions)

    def all_text_features(
        self, captions: Sequence[str], positions: Int64[np.ndarray, " m"], batch_size: int | str
    ) -> Encoded:
        """Those of the captions; equal ones are encoded once."""
        # By length, which needs less padding.
        distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
        batches = []
        with tqdm(total=len(distinct), desc="captions", unit="caption", disable=None) as progress:
            for encoded in self.text_batches(distinct, self.batch_size(batch_size)):
                batches.append(encoded)
                progress.update(len(encoded.features))
        row_of = {caption: row for row, caption in enumerate(distinct)}
        return join(batches).take(np.array([row_of[caption] for caption in captions], np.int64))


class GivenEmbeddings(Features):
    """Embeddings that are there already: their rows are read and serve as features and projections.

    Text embeddings belong to pairs, not to captions.
    """

    preprocess = None

    def __init__(
        self,
        name: str,
        texts_at: Callable[[Int64[np.ndarray, " m"]], Float32[np.ndarray, "m d"]],
    ) -> None:
        """`texts_at` gives the text embeddings of the pairs at these positions of the source."""
        self.name, self._texts_at = name, texts_at

    def encode_images(self, inputs: Float32[np.ndarray, "m d"]) -> Encoded:
        """The rows themselves."""
        return Encoded(inputs, inputs)

    def text_features(self, captions: Sequence[str], positions: Int64[np.ndarray, " m"]) -> Encoded:
        """The rows of the pairs at these positions."""
        rows = self._texts_at(positions)
        return Encoded(rows, rows)


def count_cut_off(features: Features, captions: Sequence[str]) -> int:
    """How many of the captions, equal ones included, are longer than what is read of them."""
    limit = features.max_tokens
    if limit is None:
        return 0
    times = Counter(captions)
    unsure = [caption for caption in times if not _is_surely_short(caption, limit)]
    n_cut_off, starts = 0, range(0, len(unsure), CAPTIONS_COUNTED_AT_ONCE)
    for start in tqdm(starts, desc="caption lengths", unit="batch", disable=None):
        batch = unsure[start : start + CAPTIONS_COUNTED_AT_ONCE]
        counts = features.count_tokens(batch)
        n_cut_off += sum(times[c] for c, n in zip(batch, counts, strict=True) if n > limit)
    return n_cut_off


def _is_surely_short(caption: str, max_tokens: int) -> bool:
    """Whether a caption needs no tokenizer to be known to fit, as most need none.

    A token takes a character at least, but for marks at the ends, and but for letters beyond ASCII
    and HTML entities, which tokenizers may first replace by several.
    """
    fits = len(caption) + MOST_END_MARKS <= max_tokens
    return fits and caption.isascii() and "&" not in caption


def check_tokenizer(encoder: Encoder) -> None:
    """Raise a ValueError where captions are all alike to an encoder: it has no words of its own."""
    dog, cars = encoder.encode_texts(["a photo of a dog", "two red cars"]).features
    if np.array_equal(dog, cars):
        raise ValueError("its tokenizer knows no word, as where tokenizer.json is missing")


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The encoder's number format: the one asked for, or what suits the device.

    Single precision that is asked for is kept by convolutions on CUDA, too, which round to TF32
    else, so that fewer pairs of the curated set would be those of the CPU.
    """
    if precision != "auto":
        if device.type == "cuda" and DTYPES[precision] == torch.float32:
            torch.backends.cudnn.allow_tf32 = False
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def slow_precision(precision: str, device: torch.device) -> str:
    """A warning where a number format takes a processor longer than single precision; else "".

    Few processors have arithmetic for fp16. Where one has AVX-512, bf16 was between half as fast
    and four times as fast as fp32, by whether it has bf16 too; with AVX2 alone it was as slow as
    fp16.
    """
    if device.type != "cpu" or precision not in ("fp16", "bf16"):
        return ""
    if precision == "bf16" and torch.backends.cpu.get_cpu_capability() != "AVX2":
        return ""
    cpus = "most CPUs" if precision == "fp16" else "a CPU without AVX-512"
    return f"--precision {precision} is several times slower than fp32 on {cpus}; leave it out"


def _itself(encoded: Encoded) -> Encoded:
    return encoded


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as float32 on the host."""
    return tensor.float().cpu().numpy()

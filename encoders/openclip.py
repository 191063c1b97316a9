"""Encoders of open_clip: its own models, repositories and folders, data filter networks included.

open_clip (Ilharco et al. 2021, doi 10.5281/zenodo.5143773) is an extra; `requirements-openclip.txt`
has the versions that go with the rest. DFN: Fang et al. 2023, arXiv 2309.17425.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float32

from artifacts.settings import InputError
from encoders.base import check_tokenizer
from encoders.device import DeviceEncoder, Normalisation, Rows, as_channels_last
from encoders.model_files import ModelFiles, find_model, load_restricted
from encoders.openclip_towers import take_image_projection, take_text_projection
from sources.pixels import Resizing, crop_strip

PREFIX, HUB, FOLDER = "open_clip:", "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"
OWN_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
# A folder's, where it has none of the above: a repository may hold a model of timm or transformers
# under these names.
OTHER_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
RESTRICTED = (".bin", ".pt", ".pth")  # what the restricted loader reads
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "sentencepiece.model")
FILTERS = {  # of torchvision, as Pillow has them
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
}
# Steps of its transforms, by version: what changes no image in RGB, and what divides by 255.
TO_RGB = ("_convert_to_rgb", "MaybeConvertMode")
TO_TENSOR = ("ToTensor", "MaybeToTensor")
MAX_PROBLEM = 300  # characters of a library's own words


class OpenClipEncoder(DeviceEncoder):
    """A model of open_clip.

    The features are what each tower's projection takes in; where a tower has no projection apart,
    as SigLIP's, they are what it puts out.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype
    ) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        super().__init__(device, dtype)
        self.name = name
        self._model, self._tokenizer = as_channels_last(model.eval().to(dtype), device), tokenizer
        self._one_at_a_time = threading.Lock()  # fast tokenizers refuse a second thread
        self.max_tokens = tokenizer.context_length
        self._transform = image_transform_v2(
            PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
        )
        if parts := parts_of_transform(self._transform):
            self.resizing, self.normalisation = parts
        self._project_image = take_image_projection(self._model)
        self._project_text = take_text_projection(self._model)

    def preprocess(self, image: PIL.Image.Image) -> Float32[np.ndarray, "3 h w"]:
        """The model's own scaling, cropping and normalisation."""
        return np.asarray(self._transform(crop_strip(image)), np.float32)

    def image_rows(self, batch: torch.Tensor) -> Rows:
        """Output of the vision tower and its projection, in one pass."""
        return self._rows(self._model.encode_image(batch, normalize=False), self._project_image)

    def tokens(self, captions: Sequence[str]) -> torch.Tensor:
        """Token numbers."""
        with self._one_at_a_time:
            tokens: torch.Tensor = self._tokenizer(list(captions))
            return tokens

    def text_rows(self, tokens: torch.Tensor) -> Rows:
        """Output of the text tower and its projection, in one pass."""
        features = self._model.encode_text(tokens.to(self.device), normalize=False)
        return self._rows(features, self._project_text)

    def _rows(self, features: torch.Tensor, project: Any) -> Rows:
        if features.ndim != 2:
            raise InputError(
                f"--encoder_model {self.name} has a tower that gives {tuple(features.shape[1:])} "
                "numbers for one input instead of one row; choose another model"
            )
        return Rows(features, project(features))

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, the marks at its ends included."""
        tokenizer = self._tokenizer
        if hasattr(tokenizer, "encode"):  # open_clip's own, which marks both ends
            return [len(tokenizer.encode(caption)) + 2 for caption in captions]
        cleaned = [tokenizer.clean_fn(caption) for caption in captions]
        if tokenizer.tokenizer_mode == "clips":  # adds both ends and a class at the end
            ids = tokenizer.tokenizer(cleaned, add_special_tokens=False)["input_ids"]
            return [len(row) + 3 for row in ids]
        return [len(row) for row in tokenizer.tokenizer(cleaned)["input_ids"]]


def parts_of_transform(transform: Any) -> tuple[Resizing, Normalisation] | None:
    """What a transform of open_clip does, in two parts; None where it may do anything else.

    Known are a resize by torchvision, to a square or by the short side, a crop that lies within,
    and the normalisation; for all others the transform itself is asked, and nothing is guessed.
    """
    from torchvision import transforms  # type: ignore[import-not-found]

    steps = list(transform.transforms)
    crop = steps.pop(1) if len(steps) == 5 else None
    if len(steps) != 4 or (crop is not None and type(crop) is not transforms.CenterCrop):
        return None
    resize, to_rgb, to_tensor, normalise = steps
    if (type(resize), type(normalise)) != (transforms.Resize, transforms.Normalize):
        return None
    resample = FILTERS.get(resize.interpolation.value)
    if resize.max_size is not None or resample is None:
        return None
    if _name_of(to_rgb) not in TO_RGB or _name_of(to_tensor) not in TO_TENSOR:
        return None
    size = resize.size if isinstance(resize.size, int) else tuple(resize.size)
    cut = None if crop is None else tuple(crop.size)
    least = (size, size) if isinstance(size, int) else size
    if len(least) != 2 or (cut is None) != (not isinstance(size, int)):
        return None  # of no known arrangement
    if cut is not None and (cut[0] > least[0] or cut[1] > least[1]):
        return None  # a crop beyond the image is filled
    mean, std = (tuple(map(float, values)) for values in (normalise.mean, normalise.std))
    resizing = Resizing(size, cut, int(resample), rounds=True)
    return (resizing, Normalisation(1 / 255, mean, std)) if len(mean) == len(std) == 3 else None


def _name_of(step: Any) -> str:
    """What a function or the class of an object is called."""
    return str(getattr(step, "__name__", type(step).__name__))


def is_open_clip(name: str) -> bool:
    """Whether a name is one of open_clip's, or of a folder or cached repository of its models."""
    if name.startswith((PREFIX, HUB, FOLDER)):
        return True
    files = ModelFiles(name, is_local=True)
    return files.find(CONFIG) is not None and files.find("config.json") is None


def load_open_clip(name: str, device: torch.device, dtype: torch.dtype) -> OpenClipEncoder:
    """A model of open_clip: its own, or of a folder, the Hub's cache or the Hub.

    The Hub is asked only for what is not cached. Weights are read from safetensors, or else by
    torch's restricted loader, and no code of a repository is run.

    Args:
        name: `open_clip:MODEL/PRETRAINED`, where PRETRAINED is a tag or a file of weights;
            `hf-hub:OWNER/NAME`; or a folder with an `open_clip_config.json`. The last two with
            `open_clip:` before them or without.
        device: for the model.
        dtype: of its weights.

    Raises:
        InputError: open_clip is not there, or the model cannot be had or is damaged.
    """
    _import_open_clip(name)
    try:
        with _undisturbed():
            found = _find(name)
            model = _load_model(name, found)
            tokenizer = _load_tokenizer(name, found)
            encoder = OpenClipEncoder(name, model, tokenizer, device, dtype)
            check_tokenizer(encoder)
            return encoder
    except InputError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        problem = " ".join((str(error) or repr(error)).split())[:MAX_PROBLEM]
        raise InputError(
            f"--encoder_model {name} cannot be loaded: {problem}; give open_clip:MODEL/PRETRAINED, "
            f"hf-hub:OWNER/NAME or a folder with {CONFIG} and weights, or use "
            "--encoder_model embedded"
        ) from error


def _import_open_clip(name: str) -> None:
    try:
        import open_clip  # noqa: F401 - only whether it can be
    except Exception as error:
        # What is there but fails is torchvision, beside a torch of another build.
        remedy = (
            "pip install -r requirements.txt -r requirements-openclip.txt"
            if isinstance(error, ImportError)
            else "install torch and torchvision from one index (requirements-openclip.txt has both)"
        )
        raise InputError(
            f"--encoder_model {name} needs open_clip, which cannot be imported ({error}); "
            f"{remedy}, or use --encoder_model embedded"
        ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep open_clip's running commentary on the root logger out of the log.

    On a root without a handler it would also put one there, for good.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    root, handler = logging.getLogger(), logging.NullHandler()

    def is_said_elsewhere(record: logging.LogRecord) -> bool:
        return record.name != root.name

    root.addHandler(handler)
    root.addFilter(is_said_elsewhere)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(is_said_elsewhere)
        root.removeHandler(handler)


# --- What is to be loaded -------------------------------------------------------------------------


class _Found(NamedTuple):
    """A model that is there."""

    model: str  # as open_clip names it
    config: Mapping[str, Any]  # the architecture
    weights: Path
    tag: Mapping[str, Any]  # what open_clip knows of weights that it offers itself
    files: ModelFiles | None  # beside the configuration; None for a model of open_clip's own


def _find(name: str) -> _Found:
    """The model of a name, its files downloaded if need be.

    Raises:
        InputError: it is not in the cache and the Hub does not have it, or open_clip has no such
            model or weights.
        ValueError: its folder or repository lacks a file.
    """
    import open_clip

    place = name.removeprefix(PREFIX)
    model, _, pretrained = place.partition("/")
    is_elsewhere = place.startswith((HUB, FOLDER)) or os.path.isdir(place)
    if not is_elsewhere and model in open_clip.list_models():
        return _find_own(name, model, pretrained)
    return _find_files(name, place.removeprefix(HUB).removeprefix(FOLDER))


def _find_own(name: str, model: str, pretrained: str) -> _Found:
    import open_clip

    config = open_clip.get_model_config(model)
    if pretrained and os.path.isfile(pretrained):
        return _Found(model, config, Path(pretrained), {}, None)
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        offered = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise InputError(
            f"--encoder_model {name}: {pretrained or 'nothing'} after {model}/ is no file and no "
            f"weights that open_clip offers; it has {offered}"
        )
    repository, file = os.path.split(tag.get("hf_hub", ""))
    if not repository:
        raise ValueError(f"open_clip has these weights at {tag.get('url')} alone; download them")
    names = (f"{os.path.splitext(file)[0]}.safetensors", file) if file else OWN_WEIGHTS
    files = find_model(repository, lambda found: found.find_first(names) is not None, flag=name)
    return _Found(model, config, _weights(files, names), tag, None)


def _find_files(name: str, place: str) -> _Found:
    def is_whole(found: ModelFiles) -> bool:
        return found.find(CONFIG) is not None and found.find_first(OWN_WEIGHTS) is not None

    files = find_model(place, is_whole, flag=name)
    path = files.find(CONFIG)
    if path is None:
        raise ValueError(f"there is no {CONFIG}")
    weights = _weights(files, OWN_WEIGHTS)
    config = json.loads(path.read_bytes())["model_cfg"]
    beside = ModelFiles(str(path.parent), is_local=True)
    return _Found(f"{FOLDER}{path.parent}", config, weights, {}, beside)


def _weights(files: ModelFiles, names: Sequence[str]) -> Path:
    """The first file of these names; in a folder, else one of another name, if it is the only one.

    Raises:
        ValueError: there is none, or it is not clear which.
    """
    if found := files.find_first(names):
        return found
    if not os.path.isdir(files.place):
        raise ValueError(f"{files.place} has none of {', '.join(names)}")
    if found := files.find_first(OTHER_WEIGHTS):
        return found
    suffixes = (".safetensors", *RESTRICTED)
    others = sorted(p for p in Path(files.place).iterdir() if p.suffix in suffixes)
    if len(others) != 1:
        listed = ", ".join(path.name for path in others) or "none"
        raise ValueError(f"there is no {names[0]}, and other weights: {listed}")
    return others[0]


# --- Loading --------------------------------------------------------------------------------------


def _load_model(name: str, found: _Found) -> Any:
    """The model with all its weights.

    Raises:
        ValueError: the weights are no tensors.
        RuntimeError: they are not all of the model's and no others.
    """
    import open_clip

    if found.weights.suffix in RESTRICTED:
        load_restricted(found.weights, "meta")  # refuses what open_clip is not to be asked to read
    elif found.weights.suffix != ".safetensors":
        raise ValueError(f"{found.weights.name} is neither safetensors nor one of torch's files")
    text = found.config.get("text_cfg") or {}
    own_text = {"text_cfg": _with_local_text_tower(name, text)} if "hf_model_name" in text else {}
    model = open_clip.create_model(
        found.model,
        load_weights=False,
        pretrained_text=False,
        # Some of the tags hold for one activation, and the model's plain name for the other.
        force_quick_gelu=bool(found.tag.get("quick_gelu")),
        force_preprocess_cfg=dict(found.tag),
        **own_text,
    )
    open_clip.load_checkpoint(model, str(found.weights), strict=True, weights_only=True)
    return model


def _with_local_text_tower(name: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """The text tower's configuration, with that of a transformers model where it lies.

    Raises:
        InputError: it is not in the cache and cannot be downloaded.
        ValueError: it is one that comes with its own code.
    """
    import transformers

    tower = str(text["hf_model_name"])
    files = find_model(
        tower,
        lambda found: found.find("config.json") is not None,
        flag=f"{name}, or its text tower {tower},",
    )
    path = files.find("config.json")
    if path is None:
        raise ValueError(f"{tower} has no config.json")
    place = str(path.parent)
    transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    return {**text, "hf_model_name": place, "hf_model_pretrained": False}


def _load_tokenizer(name: str, found: _Found) -> Any:
    """The model's own tokenizer; what does not fit is cut off at its end.

    Raises:
        InputError: it is not in the cache and cannot be downloaded.
    """
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    text = found.config.get("text_cfg") or {}
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    # A reduction leaves tokens out at random, which is for training.
    options = {k: v for k, v in text.get("tokenizer_kwargs", {}).items() if k != "reduction_mask"}
    source = text.get("hf_tokenizer_name")
    if not source:
        return SimpleTokenizer(context_length=length, **options)

    def has_tokenizer(files: ModelFiles) -> bool:
        return files.find_first(TOKENIZER_FILES) is not None

    files = found.files
    if files is None or not has_tokenizer(files):
        files = find_model(source, has_tokenizer, flag=f"{name}, or its tokenizer {source},")
    options |= {"local_files_only": files.is_local, "trust_remote_code": False}
    place = files.as_folder(next(filter(files.find, TOKENIZER_FILES), "")).place
    mode = text.get("tokenizer_mode")
    return HFTokenizer(place, context_length=length, tokenizer_mode=mode, **options)

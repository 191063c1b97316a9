"""A model's files: where they lie, and their weights read without unpickling.

A pickle is a program. Weights in `.bin`, `.pt` or `.pth` are read by torch's restricted loader,
which knows tensors and plain containers and runs nothing that a file names.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.settings import InputError
from sources.online import hub_answers


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in a folder, or in a repository of the Hub and its cache.

    Attributes:
        place: the folder, or the repository's owner/name.
        is_local: the Hub is not asked; only the folder or the cache is looked at.
    """

    place: str
    is_local: bool

    def find(self, file: str) -> Path | None:
        """Where a file lies, downloaded if need be; None where there is none."""
        if os.path.isdir(self.place):
            path = Path(self.place, file)
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError

        try:
            if not self.is_local:
                return Path(hf_hub_download(self.place, file))
            cached = try_to_load_from_cache(self.place, file)
        except (EntryNotFoundError, HFValidationError):
            return None
        return Path(cached) if isinstance(cached, str) else None

    def as_folder(self, file: str) -> ModelFiles:
        """The same files: those of a cache as the folder that holds this one of them.

        Libraries that are given a folder's path have no reason to ask the Hub.
        """
        found = self.find(file) if self.is_local else None
        return ModelFiles(str(found.parent), is_local=True) if found else self

    def find_first(self, files: Sequence[str]) -> Path | None:
        """The first of these files that there is."""
        return next(filter(None, map(self.find, files)), None)

    def weights(self, name: str) -> list[Path]:
        """The file of this name, or the shards that its index names; empty where there is neither.

        Raises:
            ValueError: the index is damaged, or a shard is not there.
        """
        if whole := self.find(name):
            return [whole]
        index = self.find(f"{name}.index.json")
        return [self._shard(index, shard) for shard in _shard_names(index)] if index else []

    def _shard(self, index: Path, name: str) -> Path:
        path = self.find(name) if os.path.basename(name) == name else None
        if path is None:
            raise ValueError(f"{index.name} names {name}, which is not beside it")
        return path


def find_model(place: str, is_whole: Callable[[ModelFiles], bool], *, flag: str) -> ModelFiles:
    """A model in a folder, in the Hub's cache or on the Hub, which is asked last.

    Args:
        place: a folder, or a repository's owner/name.
        is_whole: whether all that is needed of a repository is in the cache.
        flag: what `--encoder_model` was given.

    Raises:
        InputError: it is in none of the three.
    """
    local = ModelFiles(place, is_local=True)
    if os.path.isdir(place) or is_whole(local):
        return local
    if hub_answers(place, "model"):
        return ModelFiles(place, is_local=False)
    raise InputError(
        f"--encoder_model {flag} is no folder, not in the local cache, and the Hub does not offer "
        "it or does not answer; check the name and the network, or use --encoder_model embedded"
    )


def read_tensors(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The tensors of all shards by name, on the CPU.

    Raises:
        ValueError: a file holds something else; see `load_restricted`.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        found = load_restricted(path)
        is_table = isinstance(found, dict) and all(isinstance(name, str) for name in found)
        if not is_table or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise ValueError(f"{path.name} is no table of tensors")
        tensors |= found
    return tensors


def load_restricted(path: Path, device: str = "cpu") -> Any:
    """What torch saved in a file, as far as it is tensors and plain containers.

    Args:
        path: never unpickled.
        device: for the tensors; on "meta" they have no values, and the file is only checked.

    Raises:
        ValueError: the file needs more than that, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles and of what is refused anyway
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(_refusal(path.name, error)) from error


def _refusal(name: str, error: Exception) -> str:
    """Why the restricted loader does not take a file; torch's own text tells how to trust it."""
    text = str(error)
    if foreign := re.search(r"GLOBAL ([\w.]+)", text):
        return f"{name} needs more than tensors ({foreign[1]}) and is not unpickled"
    if "TorchScript" in text:
        return f"{name} is a program (TorchScript), which is not run"
    return f"{name} is damaged or needs more than tensors, and is not unpickled"


def _shard_names(index: Path) -> list[str]:
    """The files that an index names, each once.

    Raises:
        ValueError: it is damaged.
    """
    try:
        names = json.loads(index.read_bytes())["weight_map"].values()
        return sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index.name} is damaged") from error

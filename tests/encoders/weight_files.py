"""A model's weights as they lie on disks: pickled, in shards, in the Hub's cache, planted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

COMMIT = "a" * 40


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def save_shards(tensors: Mapping[str, torch.Tensor], folder: Path, n_shards: int) -> list[str]:
    """Save as `save_pretrained` did before safetensors; the names of the shards."""
    names = [f"pytorch_model-{i + 1:05}-of-{n_shards:05}.bin" for i in range(n_shards)]
    keys = list(tensors)
    for i, name in enumerate(names):
        torch.save({key: tensors[key] for key in keys[i::n_shards]}, folder / name)
    weight_map = {key: names[i % n_shards] for i, key in enumerate(keys)}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return names


def put_in_cache(folder: Path, cache: Path, name: str) -> Path:
    """Lay a folder's files into a cache as the Hub's client does; the snapshot's folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for made in (snapshot, repository / "blobs", repository / "refs"):
        made.mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for path in folder.iterdir():
        data = path.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot

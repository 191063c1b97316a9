"""Work of stage 1 whose worker dies, whose node leaves, or that is noted down."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.base import Features
from engine.shards import ShardFiles, Summary
from intake.captions import CaptionsJob, encode_captions
from intake.images import ImagesJob, encode_shard
from intake.rows import fill_shard, look_shard
from intake.setup import Reading
from sources.row_arrays import FillJob, fill_rows
from sources.row_facts import Stretch

DIED, VISITED, CALLS = "died", "visited", "calls"  # beside the output's stages


class Deadly:
    """An encoder that kills its process with the second batch of images."""

    device = torch.device("cpu")
    batch_size = Features.batch_size
    image_batches = Features.image_batches

    def __init__(self, encoder: Any, mark: Path) -> None:
        self.encoder, self.mark, self.n_batches = encoder, mark, 0

    def encode_images(self, pixels: Any) -> Any:
        self.n_batches += 1
        encoded = self.encoder.encode_images(pixels)
        if self.n_batches == 2:
            self.mark.write_text("images of two batches")
            os.kill(os.getpid(), signal.SIGKILL)
        return encoded


def encode_and_die_once(job: ImagesJob, files: ShardFiles, reading: Reading) -> Summary:
    mark = files.store.root / DIED
    if len(job.keys) > int(job.batch_size) and not mark.exists():
        deadly: Any = Deadly(reading.encoder, mark)
        reading = replace(reading, encoder=deadly)
    return encode_shard(job, files, reading)


def fill_and_die_once(job: FillJob, files: ShardFiles) -> Summary:
    mark = files.store.root / DIED
    if job.first and not mark.exists():
        fill_rows(job)
        mark.write_text("rows filled")
        os.kill(os.getpid(), signal.SIGKILL)
    return fill_shard(job, files)


def encode_where_a_node_leaves(job: ImagesJob, files: ShardFiles, reading: Reading) -> Summary:
    """Leave a file with this node's name, wait for one that says go, and encode."""
    import ray

    visited = files.store.root / VISITED
    (visited / ray.get_runtime_context().get_node_id()).touch()
    for _ in range(1200):
        if (visited / "go").exists():
            return encode_shard(job, files, reading)
        time.sleep(0.05)
    raise TimeoutError(visited)


# --- What goes wrong ------------------------------------------------------------------------------


def look_but_hide(stretch: Stretch, files: ShardFiles) -> Summary:
    """Look at rows; before the first shard of the second file it is taken away."""
    mark = files.store.root / DIED
    if stretch.table.endswith("_1.parquet") and not mark.exists():
        mark.touch()
        path = Path(str(stretch.root)) / "img_emb" / "img_emb_1.npy"
        path.rename(path.with_suffix(".hidden"))
    return look_shard(stretch, files)


def look_on_a_full_disk(stretch: Stretch, files: ShardFiles) -> Summary:
    with _full_from(files, 2):
        return look_shard(stretch, files)


def fill_a_full_disk(job: FillJob, files: ShardFiles) -> Summary:
    with _full_from(files, 2):
        return fill_shard(job, files)


@contextmanager
def _full_from(files: ShardFiles, number: int) -> Iterator[None]:
    """A disk without room for this shard and those after it."""
    with pytest.MonkeyPatch.context() as patch:
        if int(files.name) >= number:
            patch.setattr(os, "fsync", _full)
        yield


def _full(file: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- What was worked on ---------------------------------------------------------------------------


def _note(files: ShardFiles) -> None:
    with (files.store.root / CALLS).open("a") as calls:
        calls.write(f"{files.folder}/{files.name}\n")
    time.sleep(0.05)


def noted_images(job: ImagesJob, files: ShardFiles, reading: Reading) -> Summary:
    _note(files)
    return encode_shard(job, files, reading)


def noted_captions(job: CaptionsJob, files: ShardFiles, reading: Reading) -> Summary:
    _note(files)
    return encode_captions(job, files, reading)


def noted_look(job: Stretch, files: ShardFiles) -> Summary:
    _note(files)
    return look_shard(job, files)


def noted_fill(job: FillJob, files: ShardFiles) -> Summary:
    _note(files)
    return fill_shard(job, files)


def note(patch: pytest.MonkeyPatch) -> None:
    """Have every shard noted that is worked on."""
    patch.setattr("intake.images.encode_shard", noted_images)
    patch.setattr("intake.captions.encode_captions", noted_captions)
    patch.setattr("intake.rows.look_shard", noted_look)
    patch.setattr("intake.arrays.fill_shard", noted_fill)


def noted(output: Path) -> list[str]:
    """The shards that were worked on, in the order in which it began."""
    path = output / CALLS
    return path.read_text().splitlines() if path.exists() else []


def finished_shards(output: Path) -> list[str]:
    """The shards that are saved, as they are noted."""
    paths = output.glob("stage1/shards/**/*.json")
    return sorted(str(path.relative_to(output).with_suffix("")) for path in paths)

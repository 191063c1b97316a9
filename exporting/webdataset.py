"""Tar shards of image, caption and JSON, by weight, and a script that trains open_clip on them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Int

from exporting.folder import Job, json_text
from exporting.images import ImageFile, for_open_clip
from exporting.shards import (
    Record,
    Shard,
    ShardFormat,
    ShardWriter,
    even_parts,
    finite_or_none,
    n_digits,
)

SCRIPT = "train_open_clip.sh"
MAX_BUCKETS = 8
WEIGHT_TOLERANCE = 0.1  # a pair's weight may differ from its bucket's by this share of it
MAX_WORKERS = 4  # of the training command where every worker needs a shard
PAIRS_A_WORKER = 1024  # at least, so that it can fill a batch


# --- Weights --------------------------------------------------------------------------------------


def weight_buckets(
    weights: Float[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " b"]]:
    """Pairs of like weight together: the bucket of each, and each bucket's mean weight.

    Each bucket takes all weights from the smallest that is left up to (1 + WEIGHT_TOLERANCE)
    times that. Where this would need more than MAX_BUCKETS, the factor is the smallest that needs
    no more. A mean lies between its bucket's ends, so that no pair's weight is off by more than
    the factor, and the sum over all pairs stays as it is.

    Args:
        weights: non-negative.

    Returns:
        Buckets from 0 by rising weight, none empty, and their mean weights, (b,).
    """
    distinct, ranks = np.unique(weights, return_inverse=True)
    low = 1 + WEIGHT_TOLERANCE
    starts = _bucket_starts(distinct, low)
    if len(starts) > MAX_BUCKETS:
        positive = distinct[distinct > 0]
        high = float(positive[-1] / positive[0]) * (1 + 1e-9)  # surely one bucket, with a zero two
        for _ in range(60):
            middle = float(np.sqrt(low) * np.sqrt(high))
            if len(_bucket_starts(distinct, middle)) > MAX_BUCKETS:
                low = middle
            else:
                high = middle
        starts = _bucket_starts(distinct, high)
    buckets = np.searchsorted(np.array(starts), np.asarray(ranks), side="right") - 1
    return buckets, np.bincount(buckets, weights=weights) / np.bincount(buckets)


def _bucket_starts(distinct: np.ndarray, factor: float) -> list[int]:
    """Where buckets begin that each reach from a weight to `factor` times it."""
    starts, n = [0], len(distinct)
    while (end := int(np.searchsorted(distinct, distinct[starts[-1]] * factor, "right"))) < n:
        starts.append(end)
    return starts


def _bucket_names(factors: Sequence[float]) -> list[str]:
    """Folder names with two decimals, or with as many as tell the buckets apart."""
    for digits in range(2, 17):
        names = [f"weight-{factor:.{digits}f}" for factor in factors]
        if len(set(names)) == len(names):
            return names
    return [f"weight-{number}" for number in range(len(factors))]


# --- Shards ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bucket:
    folder: str
    factor: float
    rows: np.ndarray


def _buckets(job: Job) -> list[_Bucket]:
    buckets, factors = weight_buckets(job.table["weight"].to_numpy(dtype=np.float64))
    names = _bucket_names(factors.tolist())
    return [
        _Bucket(name, float(factor), np.flatnonzero(buckets == number))
        for number, (name, factor) in enumerate(zip(names, factors, strict=True))
    ]


def _plan_tars(job: Job) -> list[Shard]:
    shards = []
    for bucket in _buckets(job):
        parts = even_parts(bucket.rows, job.shard_size)
        digits = n_digits(len(parts))
        shards += [
            Shard(f"{bucket.folder}/{i:0{digits}d}.tar", rows) for i, rows in enumerate(parts)
        ]
    return shards


class _TarWriter(ShardWriter):
    """Image, caption and JSON of every pair, without times and owners."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._n_bytes = file, 0

    def add(self, pair: Any, image: ImageFile) -> None:
        """Add the members of one pair."""
        self._member(f"{pair.name}.{image.extension}", image.data)
        self._member(f"{pair.name}.txt", pair.caption.encode())
        text = json.dumps(_facts(pair, image), ensure_ascii=False, allow_nan=False)
        self._member(f"{pair.name}.json", text.encode())

    def close(self) -> None:
        """Write the end of the archive: two empty blocks, then up to a whole record."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._n_bytes % tarfile.RECORDSIZE))

    def _member(self, name: str, data: bytes) -> None:
        # By hand, because `tarfile.TarFile` keeps every header until it is closed.
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-self._n_bytes % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._n_bytes += len(data)


def _facts(pair: Any, image: ImageFile) -> dict[str, Any]:
    """The JSON of a pair; `sha256` is that of the image file beside it."""
    facts = {
        "uid": pair.uid or pair.id,
        "id": pair.id,
        "key": pair.key,
        "caption": pair.caption,
        "weight": float(pair.weight),
        "cluster": int(pair.cluster),
        "cell": int(pair.cell),
        "clip_score": finite_or_none(pair.clip_score),
        "influence": finite_or_none(pair.influence),
        "evaluated": bool(pair.evaluated),
        "group": pair.group,
        "sha256": image.source_sha256,
    }
    if image.converted_from:
        facts["sha256"] = hashlib.sha256(image.data).hexdigest()
        facts["converted_from"] = image.converted_from
        facts["original_sha256"] = image.source_sha256
    return facts


# --- Training -------------------------------------------------------------------------------------


def _finish_tars(
    job: Job, shards: list[Shard], records: dict[str, Record]
) -> tuple[dict[str, str], list[str]]:
    sizes = {shard.name: records[shard.name].pairs for shard in shards}
    extras = {"sizes.json": json_text(sizes)}  # webdataset's convention, here and in every folder
    groups, factors, n_shards = [], [], 0
    for bucket in _buckets(job):
        own = {
            name.partition("/")[2]: n
            for name, n in sizes.items()
            if name.startswith(f"{bucket.folder}/")
        }
        extras[f"{bucket.folder}/sizes.json"] = json_text(own)
        if any(own.values()):
            first, last = min(own)[:-4], max(own)[:-4]
            numbers = first if first == last else f"{{{first}..{last}}}"
            groups.append(f"{bucket.folder}/{numbers}.tar")
            factors.append(bucket.factor)
            n_shards += len(own)
    extras[SCRIPT] = open_clip_script(groups, factors, sum(sizes.values()), n_shards)
    command = [line for line in extras[SCRIPT].splitlines() if line.startswith("  --")]
    lines = [
        f"train open_clip: sh {job.place(SCRIPT)} --model ViT-B-32",
        "which runs: python -m open_clip_train.main "
        + " ".join(line.strip(" \\") for line in command).replace(
            "$here", str(job.store.root.resolve() / job.folder)
        ),
        f"{n_shards:,} shards, of weight {', '.join(f'{factor:.3g}' for factor in factors)}",
    ]
    return extras, lines


def open_clip_script(
    groups: Sequence[str], factors: Sequence[float], n_pairs: int, n_shards: int
) -> str:
    """A shell script that trains open_clip 3.x on the shards beside it, by their weights.

    With several groups, open_clip gives every shard of a group the group's factor and draws
    shards with replacement, with a probability proportional to the factor and whatever their
    size (`expand_urls` and `ResampledShards2` in open_clip_train/data.py, 3.3). It then reads the
    drawn shard from its beginning, every pair once. So a pair is seen in proportion to its
    group's factor, also where the shards differ in size; the more nearly, the more shards an
    epoch holds, since the epoch's end cuts the last ones off. It refuses factors without
    --dataset-resampled. With one group no factor is needed and no shard is drawn twice; then each
    worker needs a shard of its own, and one whose shards hold less than a batch would wait for
    ever.

    Args:
        groups: shards of one weight each, as brace patterns from the script's folder.
        factors: how often a pair of each group is seen, relative to the others.
        n_pairs: samples an epoch.
        n_shards: all groups together.
    """
    # The folder is found when the script is run, and what open_clip would expand is escaped.
    data = "::".join(f"$here/{group}" for group in groups)
    flags = [f'--train-data "{data}"', "--dataset-type webdataset"]
    flags.append(f"--train-num-samples {n_pairs}")
    if len(groups) > 1:
        shown = "::".join(f"{factor:.6g}" for factor in factors)
        flags += ["--dataset-resampled", f"--train-data-upsampling-factors {shown}"]
        note = "Shards are drawn by their weight; an epoch has as many samples as there are pairs."
    else:
        workers = max(1, min(MAX_WORKERS, n_shards, n_pairs // PAIRS_A_WORKER))
        flags.append(f"--workers {workers}")
        note = "Every worker of every GPU needs a shard of its own with a whole batch of pairs."
    lines = [
        "#!/bin/sh",
        "# Trains open_clip 3.x on the curated pairs; further flags are passed on, for example",
        f"#     sh {SCRIPT} --model ViT-B-32 --batch-size 256 --epochs 32",
        f"# {note}",
        "set -e",
        'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)',
        "case $here in",
        '  *::*) echo "$here: open_clip takes paths apart at ::, rename it" >&2; exit 2 ;;',
        "esac",
        r"""here=$(printf '%s' "$here" | sed 's/[\\{},]/\\&/g')""",
        'exec "${PYTHON:-python}" -m open_clip_train.main \\',
        *(f"  {flag} \\" for flag in flags),
        '  "$@"',
    ]
    return "\n".join(lines) + "\n"


WEBDATASET = ShardFormat(_plan_tars, _TarWriter, for_open_clip, _finish_tars)

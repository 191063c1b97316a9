"""Captions encoded shard by shard: distinct ones, by length, as one worker would take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from encoders.base import Encoded, join
from engine.base import Setup
from engine.room import Made, StageRoom
from engine.shards import ShardFiles, Summary
from intake.setup import Reading

CAPTIONS_A_SHARD = 4096  # whatever a batch is, so that shards of a run that was killed fit


@dataclass(frozen=True)
class CaptionsJob:
    """A shard of captions, encoded in batches of `batch_size`, a number or `auto`."""

    captions: tuple[str, ...]
    batch_size: int | str


def encode_captions(job: CaptionsJob, files: ShardFiles, reading: Reading) -> Summary:
    """Encode the captions of a shard; write their features.

    Raises:
        InputError: the disk is full.
    """
    size = reading.encoder.batch_size(job.batch_size)
    encoded = join(list(reading.encoder.text_batches(job.captions, size)))
    files.write_npy(".features.npy", encoded.features)
    if encoded.projections is not None:
        files.write_npy(".projections.npy", encoded.projections)
    return {"captions": len(job.captions)}


class EncodedCaptions:
    """The features of captions, in the files of their shards."""

    def __init__(
        self, captions: Sequence[str], room: StageRoom, setup: Setup[Reading], batch_size: int | str
    ) -> None:
        """Encodes each distinct one once.

        Args:
            captions: of all pairs.
            room: where shards are worked on.
            setup: what a worker opens.
            batch_size: captions that are encoded at once.
        """
        # By length, which needs less padding.
        distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
        self._size = CAPTIONS_A_SHARD
        hands = [distinct[i : i + self._size] for i in range(0, len(distinct), self._size)]
        self._shards: list[Made] = room.run(
            "captions",
            encode_captions,
            [CaptionsJob(tuple(hand), batch_size) for hand in hands],
            sizes=[len(hand) for hand in hands],
            unit="caption",
            setup=setup,
        )
        row_of = {caption: row for row, caption in enumerate(distinct)}
        self._rows = np.array([row_of[caption] for caption in captions], np.int64)

    def take(self, pairs: Int64[np.ndarray, " m"]) -> Encoded:
        """The texts of some pairs, in the order given."""
        rows = self._rows[pairs]
        shards, places = rows // self._size, rows % self._size
        parts = [(shard, np.flatnonzero(shards == shard)) for shard in np.unique(shards).tolist()]
        order = np.concatenate([at for _, at in parts]) if parts else np.zeros(0, np.int64)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return join([self._load(shard, places[at]) for shard, at in parts]).take(back)

    def _load(self, shard: int, rows: Int64[np.ndarray, " k"]) -> Encoded:
        made = self._shards[shard]
        features = made.load(".features.npy")[rows]
        if not made.file(".projections.npy").exists():
            return Encoded(features, None)
        return Encoded(features, made.load(".projections.npy")[rows])

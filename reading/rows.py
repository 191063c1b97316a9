"""Rows of embeddings that exist, hashed and brought to unit length stretch by stretch."""

from __future__ import annotations

import pyarrow.parquet as pq

from engine.room import StageRoom
from engine.shards import ShardFiles, Summary
from sources.embeddings import EmbeddingSource
from sources.row_arrays import FillJob, fill_rows
from sources.row_facts import RowFacts, Stretch, join_facts, look_at


def fill_shard(job: FillJob, files: ShardFiles) -> Summary:
    """Write the unit embeddings of some pairs in their places, and their cosines."""
    files.write_npy(".npy", fill_rows(job))
    return {}


def look_shard(stretch: Stretch, files: ShardFiles) -> Summary:
    """Hash some rows of embeddings, and write what was found."""
    with files.writing(".parquet") as file:
        pq.write_table(look_at(stretch), file)
    return {}


def look_at_rows(source: EmbeddingSource, name: str, room: StageRoom) -> RowFacts:
    """Hashes and faults of all rows of a source, found by whatever workers there are.

    Args:
        source: embeddings.
        name: of the source, of several.
        room: where the work is done.
    """
    stretches = source.stretches()
    sizes = [stretch.n_rows for stretch in stretches]
    made = room.run(f"rows {name}", look_shard, stretches, sizes=sizes, unit="row")
    return join_facts((pq.read_table(shard.file(".parquet")) for shard in made), sum(sizes))

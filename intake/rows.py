"""Rows of embeddings that exist, hashed and brought to unit length stretch by stretch."""

from __future__ import annotations

from platform import node

import pyarrow.parquet as pq

from artifacts.settings import InputError
from engine.room import StageRoom
from engine.shards import ShardFiles, Summary
from sources.embeddings import EmbeddingSource
from sources.row_arrays import FillJob, fill_rows
from sources.row_facts import RowFacts, Stretch, join_facts, look_at


def fill_shard(job: FillJob, files: ShardFiles) -> Summary:
    """Write the unit embeddings of some pairs in their places, and their cosines.

    Raises:
        InputError: an embedding cannot be read any more, or a file cannot be written.
    """
    try:
        cosines = fill_rows(job)
    except OSError as error:
        raise InputError(
            f"--output_dir: {job.targets['image_embeddings'].path.parent} cannot be written to on "
            f"{node()} ({error.strerror or error}); free some space, or choose a folder that all "
            "workers see"
        ) from error
    files.write_npy(".npy", cosines)
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

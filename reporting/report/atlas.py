"""`results/atlas.parquet`: the pairs, their map and photographs, for the viewer Embedding Atlas.

Its columns are those that the viewer's documentation names: places, neighbours as
`{"ids": [...], "distances": [...]}` with zero-based rows of the file, images as
`{"bytes": ..., "path": ...}` (https://apple.github.io/embedding-atlas/tool.html).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped
from PIL import Image

from reporting.report.pair_map import PairMap

ROWS_AT_ONCE = 10_000  # of a row group: some 50 MB with photographs
# The viewer tells images by their first bytes and takes AVIF for sound (version 0.26.0).
SHOWN_AS_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG
JPEG_QUALITY = 80
NEIGHBOURS = pa.struct([("ids", pa.list_(pa.int32())), ("distances", pa.list_(pa.float32()))])
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OWN_FIELDS = (
    pa.field("x", pa.float32()),
    pa.field("y", pa.float32()),
    pa.field("neighbors", NEIGHBOURS),
    pa.field("image", IMAGE),
    pa.field("caption", pa.string()),
)


def write_atlas(
    file: BinaryIO, ledger: pd.DataFrame, pair_map: PairMap, photographs: Mapping[int, bytes]
) -> None:
    """Write the atlas in blocks of rows, so that only one of them lies in memory.

    Args:
        file: open for writing.
        ledger: the ledger's rows of the n training pairs, in the order of the map.
        pair_map: of the same pairs.
        photographs: encoded images by row of the n, AVIF or any other that Pillow reads; rows
            without one get null.
    """
    with pq.ParquetWriter(file, atlas_schema(ledger), compression="zstd") as writer:
        for start in range(0, len(ledger), ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, len(ledger))
            writer.write_table(atlas_table(ledger, pair_map, photographs, range(start, stop)))


def atlas_table(
    ledger: pd.DataFrame,
    pair_map: PairMap,
    photographs: Mapping[int, bytes],
    rows: range,
) -> pa.Table:
    """A block of the atlas: x, y, neighbors, image, caption, then the ledger's other columns.

    Distances are one minus the cosine. `trusted`, which only held-out pairs have, is all null.

    Args:
        ledger: the ledger's rows of the n training pairs, in the order of the map.
        pair_map: of the same pairs; rows count in all of them, not in the block.
        photographs: encoded images by row of the n; rows without one get null.
        rows: of the block.
    """
    block = slice(rows.start, rows.stop)
    schema, ledger_rows = atlas_schema(ledger), ledger.iloc[block]
    distances = (1 - pair_map.similarities[block]).astype(np.float32)
    neighbours = [_lists(pair_map.neighbours[block], pa.int32()), _lists(distances, pa.float32())]
    own = {
        "x": pa.array(pair_map.places[block, 0]),
        "y": pa.array(pair_map.places[block, 1]),
        "neighbors": pa.StructArray.from_arrays(neighbours, fields=list(NEIGHBOURS)),
        "image": pa.array([_image(photographs.get(row)) for row in rows], IMAGE),
    }
    columns = [
        own[field.name]
        if field.name in own
        else pa.Array.from_pandas(ledger_rows[field.name], type=field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def atlas_schema(ledger: pd.DataFrame) -> pa.Schema:
    """Names and types of the atlas's columns; what the ledger holds as objects is text."""
    own = {field.name for field in OWN_FIELDS}
    others = [
        pa.field(
            name, pa.string() if pd.api.types.is_object_dtype(dtype) else _arrow_type(ledger[name])
        )
        for name, dtype in ledger.dtypes.items()
        if name not in own
    ]
    return pa.schema([*OWN_FIELDS, *others])


def _arrow_type(column: pd.Series) -> pa.DataType:
    return pa.Array.from_pandas(column.iloc[:0]).type


def _lists(values: Shaped[np.ndarray, "n k"], item: pa.DataType) -> pa.ListArray:
    """One list of k items a row."""
    n, k = values.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * k, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), item))


def _image(data: bytes | None) -> dict[str, bytes | None] | None:
    return None if data is None else {"bytes": _shown_as_image(data), "path": None}


def _shown_as_image(data: bytes) -> bytes:
    """The image as it is where the viewer takes it for one, else as JPEG."""
    if data.startswith(SHOWN_AS_IMAGES):
        return data
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

"""What has to be known of rows of embeddings to choose among them: hashes, and faults of captions.

They are found stretch by stretch of the files, each by itself, and written as columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8

from sources.captions import caption_fault, normalize_caption
from sources.embedding_tables import read_table
from sources.places import Place
from sources.vectors import Vectors

STRETCH = 2**16  # rows of a file that are looked at together
ROWS_AT_ONCE = 2**12  # of them that are in memory
SHA256_BYTES, NAME_BYTES = 32, 16  # of an image; of a pair, or of a caption as it is compared


@dataclass(frozen=True)
class Stretch:
    """Some rows of one file.

    Attributes:
        images: embeddings of all files.
        root: the folder.
        table: metadata file of these rows, from the folder.
        caption_column: as asked for.
        first: position of the first of them.
        row: its number in its file.
        n_rows: how many they are.
    """

    images: Vectors = field(repr=False)
    root: Place
    table: str
    caption_column: str
    first: int
    row: int
    n_rows: int


@dataclass(frozen=True)
class RowFacts:
    """Of n rows.

    Attributes:
        sha256: of the bytes of the image embedding.
        pair_ids: the first half of the SHA-256 of these and the caption; zeros without a caption.
        captions: the same of the caption alone, as captions are compared.
        faulty: whether the caption cannot be used.
        faults: why, a reason and what exactly is wrong, by row.
    """

    sha256: UInt8[np.ndarray, "n 32"]
    pair_ids: UInt8[np.ndarray, "n 16"]
    captions: UInt8[np.ndarray, "n 16"]
    faulty: np.ndarray
    faults: dict[int, tuple[str, str]]


def look_at(stretch: Stretch) -> pa.Table:
    """The facts of a stretch of rows, as columns.

    Raises:
        InputError: a file cannot be read any more.
    """
    table = read_table(stretch.root, stretch.table, stretch.caption_column)
    captions = table.captions.slice(stretch.row, stretch.n_rows).to_pylist()
    blocks = []
    for start in range(0, stretch.n_rows, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, stretch.n_rows)
        rows = stretch.images.at(np.arange(stretch.first + start, stretch.first + stop))
        blocks.append(facts_of(rows, captions[start:stop]))
    return pa.concat_tables(blocks)


def facts_of(images: Float32[np.ndarray, "m d"], captions: Sequence[str | None]) -> pa.Table:
    """The facts of some rows, as columns."""
    columns: dict[str, list[object]] = {
        name: [] for name in ("sha256", "pair_id", "caption", "reason", "detail")
    }
    for row, caption in zip(images.astype("<f4", copy=False), captions, strict=True):
        image = hashlib.sha256(row.tobytes())
        fault = caption_fault(caption)
        pair_id = name = bytes(NAME_BYTES)
        if fault is None and caption is not None:
            text = caption.strip()
            both = image.copy()
            both.update(text.encode())
            pair_id = both.digest()[:NAME_BYTES]
            name = caption_name(text)
        values = (image.digest(), pair_id, name, *(fault or ("", "")))
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    schema = pa.schema(
        [
            *(("sha256", pa.binary(SHA256_BYTES)), ("pair_id", pa.binary(NAME_BYTES))),
            *(("caption", pa.binary(NAME_BYTES)), ("reason", pa.string()), ("detail", pa.string())),
        ]
    )
    return pa.table(columns, schema=schema)


def caption_name(text: str) -> bytes:
    """What a caption is compared by: half the SHA-256 of its normal form."""
    return hashlib.sha256(normalize_caption(text).encode()).digest()[:NAME_BYTES]


def join_facts(tables: Iterator[pa.Table], n_rows: int) -> RowFacts:
    """The facts of all stretches, one below the other."""
    sha256 = np.zeros((n_rows, SHA256_BYTES), np.uint8)
    pair_ids, captions = (np.zeros((n_rows, NAME_BYTES), np.uint8) for _ in range(2))
    faulty, faults, first = np.zeros(n_rows, dtype=bool), dict[int, tuple[str, str]](), 0
    for table in tables:
        rows = slice(first, first + len(table))
        for name, whole in (("sha256", sha256), ("pair_id", pair_ids), ("caption", captions)):
            column = table.column(name).combine_chunks()
            values = np.frombuffer(column.buffers()[1], np.uint8, len(column) * whole.shape[1])
            whole[rows] = values.reshape(len(column), -1)
        reasons, details = (table.column(name).to_pylist() for name in ("reason", "detail"))
        for row, (reason, detail) in enumerate(zip(reasons, details, strict=True), first):
            if reason:
                faulty[row], faults[row] = True, (reason, detail)
        first += len(table)
    return RowFacts(sha256, pair_ids, captions, faulty, faults)


def stretches(n_rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """File, first row and number of rows of every stretch of files with so many rows."""
    for file, count in enumerate(n_rows):
        for start in range(0, count, STRETCH):
            yield file, start, min(STRETCH, count - start)


def pair_id_of(images: Vectors, owner: int, caption: str) -> str:
    """The name of a pair whose image is another row's; see `base.pair_id`."""
    return hashlib.sha256(images.bytes_at(owner) + caption.encode()).hexdigest()[: 2 * NAME_BYTES]


def hex_rows(values: UInt8[np.ndarray, "m b"]) -> list[str]:
    """Every row in hexadecimal."""
    width = values.shape[1]
    text = values.tobytes().hex()
    return [text[i : i + 2 * width] for i in range(0, len(text), 2 * width)]


def lanes(values: UInt8[np.ndarray, "m b"]) -> Int64[np.ndarray, "m 2"]:
    """The first 128 bits of every row, as two numbers."""
    return np.ascontiguousarray(values[:, :NAME_BYTES]).view("<i8").reshape(len(values), 2)

"""The tables beside embeddings: captions and what else is known of every row, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from artifacts.settings import InputError
from sources.arrow import cell_texts, file_of, is_text, value_type
from sources.base import DataConfig
from sources.columns import CAPTION_COLUMNS, choose_column, first_known
from sources.places import Place
from sources.vectors import input_error

OTHER_COLUMNS = ("image_path", "key", "uid", "split")


@dataclass(frozen=True)
class EmbeddingTable:
    """A metadata file.

    Attributes:
        columns: name in the file of every column that is used, by what it is used for.
        captions: texts, null where there is none.
        others: those of `OTHER_COLUMNS` that there are, "" where a cell is empty.
    """

    columns: dict[str, str]
    captions: pa.ChunkedArray
    others: dict[str, pa.ChunkedArray]


def read_table(root: Place, file: str, caption_column: str) -> EmbeddingTable:
    """The columns of a metadata file that are used.

    Raises:
        InputError: it is damaged, or lacks a caption column or one of texts.
    """
    try:
        with pq.ParquetFile(file_of(root, file), page_checksum_verification=True) as parquet:
            columns = _choose_columns(root, file, parquet.schema_arrow.names, caption_column)
            table = parquet.read(columns=list(columns.values()), use_threads=False)
        for use, name in columns.items():
            _check_type(root, file, use, name, table.column(name).type)
        cells = {use: _texts(table.column(name)) for use, name in columns.items()}
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever Arrow raises
        problem = str(error).partition("\n")[0]
        remedy = "write it again as parquet"
        raise input_error(root, f"{file} is damaged or no parquet ({problem}); {remedy}") from error
    captions = cells.pop("caption")
    return EmbeddingTable(columns, captions, {use: c.fill_null("") for use, c in cells.items()})


def _choose_columns(
    root: Place, file: str, names: Sequence[str], caption_column: str
) -> dict[str, str]:
    """Name of every column that is used, by what it is used for."""
    default = DataConfig.caption_column
    caption = choose_column(caption_column, default, CAPTION_COLUMNS, names)
    if caption is None and caption_column != default:
        raise InputError(
            f"--caption_column {caption_column}: no such column in {file} of --embeddings_dir "
            f"{root}; there are {', '.join(names)}"
        )
    if caption is None:
        raise input_error(
            root,
            f"{file} has no caption column (one of {', '.join(CAPTION_COLUMNS)}) among "
            f"{', '.join(names)}; name it with --caption_column",
        )
    others = {use: first_known((use,), names) for use in OTHER_COLUMNS}
    return {"caption": caption, **{use: name for use, name in others.items() if name is not None}}


def _check_type(root: Place, file: str, use: str, name: str, kind: Any) -> None:
    """Refuse a column that holds no text; those beside the captions may hold whole numbers."""
    if not is_text(value_type(kind)) and (use == "caption" or not pa.types.is_integer(kind)):
        raise input_error(
            root, f"{file}: column {name} holds {kind}, not text; write it as strings"
        )


def _texts(column: Any) -> pa.ChunkedArray:
    """The cells of a column as text, whole numbers written out; NUL becomes U+FFFD too."""
    texts = column.cast(pa.large_string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:  # it is no UTF-8, or damaged, which `cell_texts` tells apart
        texts = pa.chunked_array([pa.array(cell_texts(texts), pa.large_string())])
    replaced: pa.ChunkedArray = pc.replace_substring(texts, "\0", "\ufffd")
    return replaced


def join_column(tables: Iterable[EmbeddingTable], use: str) -> pa.ChunkedArray:
    """One of `OTHER_COLUMNS` over all tables, one below the other; "" where a table lacks it."""
    chunks: list[pa.Array] = []
    for table in tables:
        if use in table.others:
            chunks += table.others[use].chunks
        else:
            chunks.append(pa.repeat(pa.scalar("", pa.large_string()), len(table.captions)))
    return pa.chunked_array(chunks, pa.large_string())


def join_captions(tables: Iterable[EmbeddingTable]) -> pa.ChunkedArray:
    """The captions of all tables, one below the other."""
    chunks = [chunk for table in tables for chunk in table.captions.chunks]
    return pa.chunked_array(chunks, pa.large_string())

"""Pairs whose embeddings exist already: the rows stand for the images.

In clip-retrieval's layout three folders hold files that belong together by number, 2 before 10:
`img_emb` and `text_emb` one row of floats a pair (.npy), `metadata` its caption and what else is
known (.parquet). DataComp's layout is in `datacomp`. Embeddings are mapped into memory and read
where and when they are wanted; nothing is ever unpickled.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from artifacts.settings import InputError
from sources.arrow import cell_texts, is_text, value_type
from sources.base import (
    EMBEDDING_ARCHITECTURES,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
    datacomp_uid,
)
from sources.columns import CAPTION_COLUMNS, SPLIT_COLUMN, choose_column, first_known
from sources.combined import FIRST_POSITIONS, CombinedSource, HeldOut, held_out_sets, open_parts
from sources.datacomp import is_datacomp, read_pool
from sources.official import column_notes, path_notes, splits_of_paths
from sources.paths import file_version, read_file, storable_name, unique_names
from sources.splits import IndexedSource, digest, official_split
from sources.vectors import (
    BLOCK_ROWS,
    EMBEDDING_NOT_USABLE,
    SUFFIXES,
    NpyFile,
    Vectors,
    check_shapes,
    find_problems,
    input_error,
    is_usable,
    length_fault,
    paired_files,
    refuse,
    row_lengths,
    unit_rows,
)

logger = logging.getLogger(__name__)
OTHER_COLUMNS = ("image_path", "key", "uid", "split")
SAME_IMAGE_COSINE = 0.99  # far below what batches and float16 do to the embedding of one image


class EmbeddingSource(IndexedSource):
    """Pairs whose images are rows; the photographs themselves may lie in a folder."""

    def __init__(self, *args: Any, image_root: Path | None, **told: Any) -> None:
        """`image_root` is where image_path starts from; the rest is as in `IndexedSource`."""
        super().__init__(*args, **told)
        self._image_root = image_root

    def read_image(self, key: str) -> bytes:
        """The bytes of a photograph, never those of its embedding.

        Raises:
            KeyError: there is no folder of photographs, no such image or no path of it.
            UnusableImage: its path leads out of the folder.
            OSError: the file cannot be read.
        """
        member = self._by_key[key].member
        if self._image_root is None or not member:
            raise KeyError(key)
        return read_file(self._image_root, member)


@dataclass(frozen=True)
class EmbeddingFiles:
    """Embeddings on disk.

    Attributes:
        source: the pairs; an image's bytes are its embedding, little-endian float32.
        name: what stands for the encoder in reports.
        texts: text embeddings by position.
        held_out: those of the pairs that come from elsewhere, by their first position.
        architecture: of the CLIP that made them, where the files tell it; else "".
    """

    source: PairSource
    name: str
    texts: Vectors = field(repr=False)
    held_out: Mapping[int, Vectors] = field(default_factory=dict, repr=False)
    architecture: str = ""

    def decode(self, data: bytes) -> Float32[np.ndarray, " d"]:
        """The unit image embedding in what a record of `source` reads.

        Raises:
            UnusableImage: values that are not finite, or all zero.
        """
        row = np.frombuffer(data, "<f4").astype(np.float32)[np.newaxis]
        length = float(row_lengths(row)[0])
        if not is_usable(np.array([length]))[0]:
            raise UnusableImage(EMBEDDING_NOT_USABLE, f"its {length_fault(length)}")
        unit: np.ndarray = unit_rows(row)[0]
        return unit

    def texts_at(self, positions: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Unit text embeddings of the pairs at these positions of the source.

        Raises:
            InputError: one is not finite or all zero, or a file cannot be read any more.
        """
        parts = {0: self.texts, **self.held_out}
        firsts = np.array(sorted(parts), np.int64)
        owners = firsts[np.searchsorted(firsts, positions, side="right") - 1]
        units = np.empty((len(positions), self.texts.width), np.float32)
        for first, texts in parts.items():
            here = owners == first
            units[here] = _unit_texts(texts, positions[here] - first)
        return units


def open_embeddings(config: DataConfig, rng: np.random.Generator) -> EmbeddingFiles:
    """The embeddings of `config.embeddings_dir`, and those that held-out pairs are taken from.

    Raises:
        InputError: see `_open_files`; or embeddings of different widths.
    """
    held_out = held_out_sets(config)
    if held_out:
        pool, others = open_parts(config, held_out, rng, _open_files)
    else:
        pool, others = _open_files(config, rng), {}
    used = ["caption_column"]
    used += ["embedding_arch"] if any(f.architecture for f in (pool, *others.values())) else []
    config.warn_of_unused(used, "--embeddings_dir")
    if not held_out:
        return pool
    for split, files in others.items():
        _check_encoders(pool, files, held_out[split], config)
    source = CombinedSource(pool.source, held_out, {split: f.source for split, f in others.items()})
    texts = {FIRST_POSITIONS[split]: files.texts for split, files in others.items()}
    return replace(pool, source=source, held_out=texts)


def _check_encoders(
    pool: EmbeddingFiles, files: EmbeddingFiles, held_out: HeldOut, config: DataConfig
) -> None:
    """Raise an InputError where held-out embeddings cannot be of the pool's encoder."""
    ours = f"--embeddings_dir {config.embeddings_dir}"
    if {pool.architecture, files.architecture} == {*EMBEDDING_ARCHITECTURES}:
        raise InputError(
            f"{held_out.flag} {held_out.place} has embeddings of {files.architecture}, {ours} of "
            f"{pool.architecture}; choose with --embedding_arch one that both have"
        )
    if files.texts.width != pool.texts.width:
        raise InputError(
            f"{held_out.flag} {held_out.place} has rows of {files.texts.width:,} values, {ours} of "
            f"{pool.texts.width:,}; make both with one encoder"
        )


def _open_files(config: DataConfig, rng: np.random.Generator) -> EmbeddingFiles:
    """The embeddings of `config.embeddings_dir` alone, every row a candidate pair.

    Rows of the same image_path are captions of one image, unless their image embeddings differ.
    A row whose image or text embedding is not finite or zero is an image of its own, which is
    skipped when it is read. Official splits come from a column `split`, or where it names none at
    all from image_path; rows without one are training pairs.

    Raises:
        InputError: a file is missing, damaged or no table of floats, files do not fit together, or
            there is no caption column.
    """
    root = _embeddings_root(config)
    image_root = None if config.data_dir is None else Path(config.data_dir)
    if image_root is not None and not image_root.is_dir():
        raise InputError(
            f"--data_dir {config.data_dir} is not a folder; give the one that image_path of "
            "--embeddings_dir starts from, or leave it out"
        )
    read = _read_datacomp if is_datacomp(root) else _read_clip_retrieval
    found = read(root, config)
    rows = _Rows(found.files, found.tables)
    if found.architecture:
        _check_names(rows, root, config)
    owners = _same_images(rows.paths, found.problems, found.images)
    official = _records(rows, owners, found.problems, found.images)
    columns = {n: None for table in found.tables for n in table.columns.values()}
    notes = [f"columns {storable_name(', '.join(columns))}", *rows.split_notes()]
    unread = [found.left_out] if found.left_out else []
    kind = f"{found.architecture} embeddings".lstrip()
    name = f"{kind} in {config.embeddings_dir}"
    about = ("embeddings", _describe(name, owners, found), found.fingerprint(root, rows.by_path))
    source = EmbeddingSource(
        *(*about, official, config.limits(), rng),
        image_root=image_root,
        notes=notes,
        unread=unread,
    )
    return EmbeddingFiles(source, name, found.texts, architecture=found.architecture)


def _describe(name: str, owners: Int64[np.ndarray, " n"], found: _Found) -> str:
    n_images = len({owner for owner in owners.tolist() if owner not in found.problems})
    description = f"{name}: {n_images:,} images, {len(owners):,} captions"
    if found.problems:
        description += f", {len(found.problems):,} rows not usable"
    return ", ".join(filter(None, [description, found.left_out]))


def _unit_texts(texts: Vectors, positions: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
    """The rows at these positions at unit length.

    Raises:
        InputError: one is not finite or all zero, or a file cannot be read any more.
    """
    rows = texts.at(positions)
    unusable = np.flatnonzero(~is_usable(row_lengths(rows)))
    if len(unusable):
        place = texts.place(int(positions[unusable[0]]))
        raise texts.error(f"{place} is not finite or all zero; leave this pair out")
    return unit_rows(rows)


# --- Which files ----------------------------------------------------------------------------------


def _embeddings_root(config: DataConfig) -> Path:
    if not config.embeddings_dir or not os.path.isdir(config.embeddings_dir):
        given = config.embeddings_dir
        problem = f"{given} is not a folder" if given else "is needed"
        raise InputError(
            f"--embeddings_dir {problem}; give one with {', '.join(SUFFIXES)} in it, or with "
            "DataComp's .parquet and .npz files"
        )
    return Path(config.embeddings_dir)


@dataclass(frozen=True)
class _Found:
    """What the files of a folder hold, whatever its layout.

    Attributes:
        files: of every part: those of image embeddings, text embeddings and metadata.
        images: embeddings.
        texts: embeddings.
        tables: metadata, part by part.
        problems: what is wrong with a row, by its position, that cannot be used.
        architecture: see `EmbeddingFiles`.
        left_out: what of the folder is not read, in a phrase, or "".
    """

    files: Sequence[tuple[str, str, str]]
    images: Vectors
    texts: Vectors
    tables: Sequence[_Metadata]
    problems: Mapping[int, str]
    architecture: str = ""
    left_out: str = ""

    def fingerprint(self, root: Path, by_path: Mapping[str, str]) -> str:
        """Hex digest that changes whenever the files do, or what is taken from them.

        Args:
            root: of the files.
            by_path: splits that only the paths of images tell.
        """
        versions = [file_version((root / file).stat()) for part in self.files for file in part]
        columns = [table.columns for table in self.tables]
        taken: list[object] = [self.architecture] if self.architecture else []
        taken += [dict(by_path)] if by_path else []
        return digest("embeddings", self.files, versions, columns, *taken)


def _read_clip_retrieval(root: Path, config: DataConfig) -> _Found:
    """Files that belong together by number.

    Raises:
        InputError: a file is missing, damaged or no table of floats, or files do not fit together.
    """
    files = paired_files(root)
    images, texts = (Vectors(root, [NpyFile.open(root, f[i]) for f in files]) for i in (0, 1))
    tables = [_read_metadata(root, file, config.caption_column) for _, _, file in files]
    check_shapes(images, texts, [file for _, _, file in files], [len(t.captions) for t in tables])
    return _Found(files, images, texts, tables, find_problems(images, texts))


def _read_datacomp(root: Path, config: DataConfig) -> _Found:
    """Files that belong together by name.

    Raises:
        InputError: see `datacomp.read_pool`; or there are no rows.
    """
    read_table = partial(_read_metadata, root, caption_column=config.caption_column)
    pool = read_pool(root, config.embedding_arch, read_table)
    images, texts = pool.vectors(root)
    files = [(s.images.file, s.texts.file, s.parquet) for s in pool.shards]
    tables = [shard.table for shard in pool.shards]
    check_shapes(images, texts, [file for _, _, file in files], [len(t.captions) for t in tables])
    problems: dict[int, str] = {}
    first = 0
    for shard in pool.shards:
        problems |= {first + row: fault for row, fault in shard.faults.items()}
        first += len(shard.table.captions)
    return _Found(files, images, texts, tables, problems, pool.architecture, pool.left_out)


def _check_names(rows: _Rows, root: Path, config: DataConfig) -> None:
    """Look at what DataComp calls pairs: uids should be unique, and images have no files."""
    is_pool = "train" in config.limits()  # what it is that images are exported of
    if is_pool and config.data_dir is not None and not any(rows.paths):
        raise InputError(
            f"--data_dir {config.data_dir} is not used: no table of --embeddings_dir {root} has "
            "image_path; leave it out, or download the images with img2dataset and curate these"
        )
    uids = [uid for uid in rows.uids if uid]
    n_repeated = len(uids) - len(set(uids))
    if n_repeated:
        logger.warning(
            "--embeddings_dir %s: %d rows have the uid of an earlier row; each is a pair of its "
            "own, and --export datacomp writes a uid once",
            *(root, n_repeated),
        )


# --- Metadata -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Metadata:
    """A metadata file.

    Attributes:
        columns: name in the file of every column that is used, by what it is used for.
        captions: None where there is none.
        others: those of `OTHER_COLUMNS` that there are, "" where a cell is empty.
    """

    columns: dict[str, str]
    captions: list[str | None]
    others: dict[str, list[str]]


def _read_metadata(root: Path, file: str, caption_column: str) -> _Metadata:
    """The columns of a metadata file that are used.

    Raises:
        InputError: it is damaged, or lacks a caption column or one of texts.
    """
    try:
        with pq.ParquetFile(root / file, page_checksum_verification=True) as parquet:
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
    others = {use: [text or "" for text in texts] for use, texts in cells.items()}
    return _Metadata(columns, captions, others)


def _choose_columns(
    root: Path, file: str, names: Sequence[str], caption_column: str
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


def _check_type(root: Path, file: str, use: str, name: str, kind: Any) -> None:
    """Refuse a column that holds no text; those beside the captions may hold whole numbers."""
    if not is_text(value_type(kind)) and (use == "caption" or not pa.types.is_integer(kind)):
        raise input_error(
            root, f"{file}: column {name} holds {kind}, not text; write it as strings"
        )


def _texts(column: Any) -> list[str | None]:
    """The cells of a column as text, whole numbers written out; NUL becomes U+FFFD too."""
    found = cell_texts(column.cast(pa.large_string()))
    return [None if text is None else text.replace("\0", "\ufffd") for text in found]


# --- Records --------------------------------------------------------------------------------------


class _Rows:
    """What is known of every row besides its embeddings, all files one below the other.

    Attributes:
        captions: None where there is none.
        paths: image_path, or "".
        uids: 32 hex digits, or "".
        splits: that the column names, or else the paths of images; None where none does.
        by_path: those that only paths tell.
        names: what the rows are called, not yet unique.
        shards: path of the file that holds the image embedding.
        numbers: of the row in its file.
    """

    def __init__(self, files: Sequence[tuple[str, str, str]], tables: Sequence[_Metadata]) -> None:
        self.captions = [text for table in tables for text in table.captions]
        columns = {use: _join_column(tables, use) for use in OTHER_COLUMNS}
        self.paths, self._named = columns["image_path"], columns["split"]
        by_path = splits_of_paths({*self.paths} - {""})
        by_column = [official_split(name) for name in self._named]
        self.by_path = {} if any(by_column) else by_path
        self._by_column = by_column
        self.splits = [
            own or self.by_path.get(path) for own, path in zip(by_column, self.paths, strict=True)
        ]
        self.uids = [datacomp_uid(uid) for uid in columns["uid"]]
        counts = [len(table.captions) for table in tables]
        self.numbers = [row for n in counts for row in range(n)]
        self.shards = [part[0] for part, n in zip(files, counts, strict=True) for _ in range(n)]
        stems = [PurePosixPath(part[2]).stem for part in files]
        places = [f"{s}/{row}" for s, n in zip(stems, counts, strict=True) for row in range(n)]
        given = zip(self.paths, columns["key"], places, strict=True)
        self.names = [path or key or place for path, key, place in given]

    def split_notes(self) -> list[str]:
        """What the column of splits says, a phrase each."""
        pairs = zip(self._named, self._by_column, strict=True)
        unknown = Counter(name for name, split in pairs if name and split is None)
        named = Counter(self._by_column)
        notes = column_notes(SPLIT_COLUMN, named, unknown, "rows")
        return [*notes, *path_notes(self.by_path)]


def _join_column(tables: Iterable[_Metadata], use: str) -> list[str]:
    return [cell for table in tables for cell in table.others.get(use, [""] * len(table.captions))]


def _same_images(
    paths: Sequence[str], problems: Mapping[int, str], images: Vectors
) -> Int64[np.ndarray, " n"]:
    """For every row the first that shows the same image, itself or one before it.

    Names such as 000000001 come again in the next shard of many data sets and mean another image;
    so rows of one path whose embeddings differ stay apart, with a warning.

    Args:
        paths: image_path of every row, or "".
        problems: by row; these rows stay alone.
        images: embeddings.
    """
    owners = np.arange(len(paths))
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        if path and row not in problems:
            owners[row] = first.setdefault(path, row)
    repeats = np.flatnonzero(owners < np.arange(len(paths)))
    n_other = 0
    for start in range(0, len(repeats), BLOCK_ROWS):
        block = repeats[start : start + BLOCK_ROWS]
        both = unit_rows(images.at(block)), unit_rows(images.at(owners[block]))
        others = block[np.einsum("nd,nd->n", *both) < SAME_IMAGE_COSINE]
        owners[others] = others
        n_other += len(others)
    if n_other:
        logger.warning(
            "--embeddings_dir: %d rows share their image_path with an earlier row but not its "
            "image embedding; they are taken for other images",
            n_other,
        )
    return owners


def _records(
    rows: _Rows, owners: Int64[np.ndarray, " n"], problems: Mapping[int, str], images: Vectors
) -> dict[str, list[ImageRecord]]:
    """The images of every split, each with the captions of all its rows.

    Rows that are no use are named last, so that no usable image gives way to them.
    """
    captions: dict[int, list[Caption]] = {}
    for position, owner in enumerate(owners.tolist()):
        caption = Caption(position, rows.captions[position], row=rows.numbers[position])
        captions.setdefault(owner, []).append(caption)
    order = sorted(captions, key=lambda row: row in problems)
    keys = unique_names(rows.names[row] for row in order)
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    for row, key in zip(order, keys, strict=True):
        fault = problems.get(row)
        read = partial(images.bytes_at, row) if fault is None else partial(refuse, fault)
        own, uid = captions[row], rows.uids[row]
        if len(own) > 1 and any(rows.uids[caption.position] != uid for caption in own):
            uid = ""  # a name of several pairs would be one of none
        record = ImageRecord(
            *(key, read, tuple(own)),
            shard=rows.shards[row],
            member=rows.paths[row],
            uid=uid,
            problem=None if fault is None else UnusableImage(EMBEDDING_NOT_USABLE, fault),
        )
        official[rows.splits[row] or "train"].append(record)
    return official

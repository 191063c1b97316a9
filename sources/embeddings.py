"""Pairs whose embeddings exist already: the rows stand for the images.

In clip-retrieval's layout three folders hold files that belong together by number, 2 before 10:
`img_emb` and `text_emb` one row of floats a pair (.npy), `metadata` its caption and what else is
known (.parquet). DataComp's layout is in `datacomp`. Embeddings are mapped into memory and read
where and when they are wanted; what else is known of the rows is held as columns, and records are
made of it one by one. Nothing is ever unpickled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from artifacts.settings import InputError
from sources.base import (
    EMBEDDING_ARCHITECTURES,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
)
from sources.candidates import order_rows
from sources.combined import FIRST_POSITIONS, CombinedSource, HeldOut, held_out_sets, open_parts
from sources.datacomp import is_datacomp, read_pool
from sources.embedding_rows import EmbeddingRows
from sources.embedding_tables import EmbeddingTable, read_table
from sources.paths import read_file, version_of
from sources.places import Place, place_at
from sources.row_arrays import unit_texts
from sources.row_facts import Stretch, stretches
from sources.splits import complete_splits, digest
from sources.vectors import (
    EMBEDDING_NOT_USABLE,
    SUFFIXES,
    NpyFile,
    Vectors,
    check_shapes,
    find_problems,
    is_usable,
    length_fault,
    paired_files,
    refuse,
    row_lengths,
    unit_rows,
)

logger = logging.getLogger(__name__)


class TableFiles(NamedTuple):
    """The metadata files beside embeddings."""

    root: Place
    names: Sequence[str]  # paths from it, part by part
    caption_column: str  # as asked for


class EmbeddingSource(PairSource):
    """Pairs whose images are rows; the photographs themselves may lie in a folder.

    Attributes:
        rows: what is known of every row of the files; its number is its position.
        images: embeddings.
        texts: embeddings.
    """

    def __init__(
        self,
        about: tuple[str, str, str],
        rows: EmbeddingRows,
        vectors: tuple[Vectors, Vectors],
        limits: Mapping[str, int],
        rng: np.random.Generator,
        *,
        tables: TableFiles,
        image_root: Place | None,
        unread: Sequence[str] = (),
    ) -> None:
        """Nothing of the embeddings is read.

        Args:
            about: name, description and fingerprint; see `PairSource`.
            rows: of all files.
            vectors: embeddings of images and of texts.
            limits: the most samples of the splits that are given; see `complete_splits`.
            rng: decides carved splits and the order of candidates.
            tables: where the captions are.
            image_root: where image_path starts from.
            unread: see `PairSource`.
        """
        splits, note = complete_splits(rows.official_images(), limits, rng)
        name, description, fingerprint = about
        super().__init__(
            *(name, f"{description}; {note}", fingerprint), notes=rows.notes(), unread=unread
        )
        self.rows, self.images, self.texts = rows, vectors[0], vectors[1]
        self._limits, self._image_root, self._tables = limits, image_root, tables
        self._splits = {split: np.array(splits[split], np.int64) for split in SPLITS}
        self._seeds = {split: int(rng.integers(2**63)) for split in SPLITS}

    def stretches(self) -> list[Stretch]:
        """All rows, in stretches of a file each."""
        root, names, caption_column = self._tables
        found, first = [], 0
        for file, row, n_rows in stretches(self.images.n_rows):
            found.append(
                Stretch(self.images, root, names[file], caption_column, first, row, n_rows)
            )
            first += n_rows
        return found

    def hands(self, split: str) -> Iterator[Int64[np.ndarray, " m"]]:
        """Positions of a split's candidates, hand by hand; see `order_rows`."""
        rng = np.random.default_rng(self._seeds[split])
        limit = self._limits.get(split, 0)
        return order_rows(self._splits[split], self.rows.owners, split, limit, rng)

    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidates of a split; see `order_candidates`. Every call gives the same order."""
        for hand in self.hands(split):
            owners = self.rows.owners[hand]
            ends = np.flatnonzero(np.diff(owners)) + 1
            for positions in np.split(hand, ends) if len(hand) else []:
                yield self._record(positions.tolist())

    def _record(self, positions: Sequence[int]) -> ImageRecord:
        """The image of some captions."""
        rows, row = self.rows, int(self.rows.owners[positions[0]])
        fault = rows.problems.get(row)
        return ImageRecord(
            rows.key_of(row),
            partial(self.images.bytes_at, row) if fault is None else partial(refuse, fault),
            tuple(Caption(p, rows.caption(p), row=int(rows.numbers[p])) for p in positions),
            shard=rows.shards[int(rows.parts[row])],
            member=rows.path(row),
            uid=rows.uid(row),
            problem=None if fault is None else UnusableImage(EMBEDDING_NOT_USABLE, fault),
        )

    def n_images(self, split: str) -> int:
        """Number of candidate images of a split."""
        return len(self._splits[split])

    def n_captions(self, split: str) -> int:
        """Number of captions of a split, all of every image."""
        return int(self.rows.n_captions[self._splits[split]].sum())

    def n_all_captions(self) -> int:
        """Number of captions, those of official splits that are not asked for included."""
        return len(self.rows.owners)

    def has_keys_below(self, prefix: str) -> bool:
        """Whether a key begins like this."""
        return any(key.startswith(prefix) for key in self.rows.keys)

    def read_image(self, key: str) -> bytes:
        """The bytes of a photograph, never those of its embedding.

        Raises:
            KeyError: there is no folder of photographs, no such image or no path of it.
            UnusableImage: its path leads out of the folder.
            OSError: the file cannot be read.
        """
        member = self.rows.path(self._row_of[key])
        if self._image_root is None or not member:
            raise KeyError(key)
        return read_file(self._image_root, member)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """The images of all splits that are given, by their keys."""
        given = np.concatenate([self._splits[split] for split in SPLITS])
        return {self.rows.key_of(row): row for row in given.tolist()}


@dataclass(frozen=True)
class EmbeddingFiles:
    """Embeddings on disk.

    Attributes:
        source: the pairs; an image's bytes are its embedding, little-endian float32.
        name: what stands for the encoder in reports.
        pool: the pairs that come from no held-out data set, alone.
        held_out: what the others come from, by split.
        architecture: of the CLIP that made them, where the files tell it; else "".
    """

    source: PairSource
    name: str
    pool: EmbeddingSource = field(repr=False)
    held_out: Mapping[str, EmbeddingSource] = field(default_factory=dict, repr=False)
    architecture: str = ""

    @property
    def texts(self) -> Vectors:
        """Text embeddings of the pool."""
        return self.pool.texts

    def part(self, split: str) -> EmbeddingPart:
        """Where the pairs of a split come from."""
        if split not in self.held_out:
            return EmbeddingPart(self.pool, 0, "")
        assert isinstance(self.source, CombinedSource), "that is what held-out data sets make"
        prefix = self.source.prefix(split)
        return EmbeddingPart(self.held_out[split], FIRST_POSITIONS[split], prefix)

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
        parts = {0: self.texts}
        parts |= {FIRST_POSITIONS[split]: other.texts for split, other in self.held_out.items()}
        firsts = np.array(sorted(parts), np.int64)
        owners = firsts[np.searchsorted(firsts, positions, side="right") - 1]
        units = np.empty((len(positions), self.texts.width), np.float32)
        for first, texts in parts.items():
            here = owners == first
            units[here] = unit_texts(texts, positions[here] - first)
        return units


@dataclass(frozen=True)
class EmbeddingPart:
    """The embeddings that the pairs of a split come from.

    Attributes:
        source: that gives them.
        first: what is added to its positions.
        prefix: what is put before its keys.
    """

    source: EmbeddingSource
    first: int
    prefix: str


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
    sources = {split: files.pool for split, files in others.items()}
    return replace(pool, source=CombinedSource(pool.source, held_out, sources), held_out=sources)


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
    image_root = None if config.data_dir is None else place_at(config.data_dir)
    if image_root is not None and not image_root.is_dir():
        raise InputError(
            f"--data_dir {config.data_dir} is not a folder; give the one that image_path of "
            "--embeddings_dir starts from, or leave it out"
        )
    read = _read_datacomp if is_datacomp(root) else _read_clip_retrieval
    found = read(root, config)
    rows = EmbeddingRows(found.files, found.tables, found.problems, found.images)
    if found.architecture:
        _check_names(rows, root, config)
    unread = [found.left_out] if found.left_out else []
    kind = f"{found.architecture} embeddings".lstrip()
    name = f"{kind} in {config.embeddings_dir}"
    source = EmbeddingSource(
        ("embeddings", _describe(name, rows, found), found.fingerprint(root, rows.by_path)),
        rows,
        (found.images, found.texts),
        config.limits(),
        rng,
        tables=TableFiles(root, [part[2] for part in found.files], config.caption_column),
        image_root=image_root,
        unread=unread,
    )
    return EmbeddingFiles(source, name, source, architecture=found.architecture)


def _describe(name: str, rows: EmbeddingRows, found: _Found) -> str:
    n_images = len(rows.keyed) - len(found.problems)  # a row that is no use is an image alone
    description = f"{name}: {n_images:,} images, {len(rows.owners):,} captions"
    if found.problems:
        description += f", {len(found.problems):,} rows not usable"
    return ", ".join(filter(None, [description, found.left_out]))


# --- Which files ----------------------------------------------------------------------------------


def _embeddings_root(config: DataConfig) -> Place:
    root = place_at(config.embeddings_dir or "", "--embeddings_dir")
    if not config.embeddings_dir or not root.is_dir():
        given = config.embeddings_dir
        problem = f"{given} is not a folder" if given else "is needed"
        raise InputError(
            f"--embeddings_dir {problem}; give one with {', '.join(SUFFIXES)} in it, or with "
            "DataComp's .parquet and .npz files"
        )
    return root


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
    tables: Sequence[EmbeddingTable]
    problems: Mapping[int, str]
    architecture: str = ""
    left_out: str = ""

    def fingerprint(self, root: Place, by_path: Mapping[str, str]) -> str:
        """Hex digest that changes whenever the files do, or what is taken from them.

        Args:
            root: of the files.
            by_path: splits that only the paths of images tell.
        """
        versions = [version_of(root, file) for part in self.files for file in part]
        columns = [table.columns for table in self.tables]
        taken: list[object] = [self.architecture] if self.architecture else []
        taken += [dict(by_path)] if by_path else []
        return digest("embeddings", self.files, versions, columns, *taken)


def _read_clip_retrieval(root: Place, config: DataConfig) -> _Found:
    """Files that belong together by number.

    Raises:
        InputError: a file is missing, damaged or no table of floats, or files do not fit together.
    """
    files = paired_files(root)
    images, texts = (Vectors(root, [NpyFile.open(root, f[i]) for f in files]) for i in (0, 1))
    tables = [read_table(root, file, config.caption_column) for _, _, file in files]
    check_shapes(images, texts, [file for _, _, file in files], [len(t.captions) for t in tables])
    return _Found(files, images, texts, tables, find_problems(images, texts))


def _read_datacomp(root: Place, config: DataConfig) -> _Found:
    """Files that belong together by name.

    Raises:
        InputError: see `datacomp.read_pool`; or there are no rows.
    """
    read = partial(read_table, root, caption_column=config.caption_column)
    pool = read_pool(root, config.embedding_arch, read)
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


def _check_names(rows: EmbeddingRows, root: Place, config: DataConfig) -> None:
    """Look at what DataComp calls pairs: uids should be unique, and images have no files."""
    is_pool = "train" in config.limits()  # what it is that images are exported of
    if is_pool and config.data_dir is not None and not rows.has_paths:
        raise InputError(
            f"--data_dir {config.data_dir} is not used: no table of --embeddings_dir {root} has "
            "image_path; leave it out, or download the images with img2dataset and curate these"
        )
    n_repeated = rows.n_repeated_uids()
    if n_repeated:
        logger.warning(
            "--embeddings_dir %s: %d rows have the uid of an earlier row; each is a pair of its "
            "own, and --export datacomp writes a uid once",
            *(root, n_repeated),
        )

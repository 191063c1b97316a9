"""What is known of every row of embeddings besides its values: columns, images, names, splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from sources.base import SPLITS
from sources.columns import SPLIT_COLUMN
from sources.embedding_tables import OTHER_COLUMNS, EmbeddingTable, join_captions, join_column
from sources.official import column_notes, path_notes, splits_of_paths
from sources.paths import storable_name, unique_names
from sources.splits import official_split
from sources.vectors import BLOCK_ROWS, Vectors, unit_rows

logger = logging.getLogger(__name__)
SAME_IMAGE_COSINE = 0.99  # far below what batches and float16 do to the embedding of one image
UID = "^[0-9a-fA-F]{32}$"  # of DataComp


class EmbeddingRows:
    """The rows of all files, one file below the other; a row's number is its position.

    Rows of one image are named by its first row, which is the image's own.

    Attributes:
        owners: first row of the image that each row shows, itself or one before it.
        problems: what is wrong with a row that cannot be used, by its position.
        keyed: rows that are images, in the order in which they got their names.
        n_captions: of the image that a row is; 0 for other rows.
        shards: paths of the files that hold the image embeddings.
        parts: of these, the one of every row.
        numbers: of every row in its file.
        by_path: the splits of paths, where only these tell any.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, str, str]],
        tables: Sequence[EmbeddingTable],
        problems: Mapping[int, str],
        images: Vectors,
    ) -> None:
        """Looks at the embeddings of rows that share their path, and at no others.

        Args:
            files: of every part: those of image embeddings, text embeddings and metadata.
            tables: metadata, part by part.
            problems: see above.
            images: embeddings.
        """
        self.problems = problems
        self._captions = join_captions(tables)
        columns = {use: join_column(tables, use) for use in OTHER_COLUMNS}
        self._paths, self._named = columns["image_path"], columns["split"]
        self._columns = {n: None for table in tables for n in table.columns.values()}
        is_uid = pc.match_substring_regex(columns["uid"], UID)
        self._uids = pc.if_else(is_uid, columns["uid"], "")
        counts = np.array([len(table.captions) for table in tables], np.int64)
        self.parts = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.shards = [part[0] for part in files]
        self._stems = [PurePosixPath(part[2]).stem for part in files]
        paths = self._paths.to_pylist()
        self.owners = same_images(paths, problems, images)
        self.n_captions = np.bincount(self.owners, minlength=len(self.owners))
        is_image = self.owners == np.arange(len(self.owners))
        # Rows that are no use are named last, so that no usable image gives way to them.
        has_problem = np.zeros(len(self.owners), dtype=bool)
        has_problem[list(problems)] = True
        self.keyed = np.concatenate(
            [np.flatnonzero(is_image & ~has_problem), np.flatnonzero(is_image & has_problem)]
        )
        self.keys = unique_names(self._names(self.keyed, paths, columns["key"]))
        self._place = np.full(len(self.owners), -1)
        self._place[self.keyed] = np.arange(len(self.keyed))
        self._split_codes, self.by_path = self._find_splits(paths)

    def _names(
        self, rows: Int64[np.ndarray, " i"], paths: Sequence[str], keys: pa.ChunkedArray
    ) -> list[str]:
        """What images are called, not yet unique: path, key, or file and row."""
        given = keys.to_pylist()
        return [
            paths[row] or given[row] or f"{self._stems[self.parts[row]]}/{self.numbers[row]}"
            for row in rows.tolist()
        ]

    def _find_splits(
        self, paths: Sequence[str]
    ) -> tuple[Int64[np.ndarray, " n"], Mapping[str, str]]:
        """The split of every row, 0 for the first of `SPLITS`, and those that paths alone tell."""
        named = self._named.combine_chunks().dictionary_encode()
        values = [official_split(name) for name in named.dictionary.to_pylist()]
        self._by_column = np.array([-1 if s is None else SPLITS.index(s) for s in values] or [-1])
        codes: np.ndarray = self._by_column[named.indices.to_numpy(zero_copy_only=False)]
        self._is_named = codes >= 0
        if self._is_named.any():
            return np.where(self._is_named, codes, 0), {}
        by_path = splits_of_paths({*paths} - {""})
        if not by_path:
            return np.zeros(len(codes), dtype=np.int64), {}
        found = [SPLITS.index(by_path.get(path, "train")) for path in paths]
        return np.array(found, np.int64), by_path

    @property
    def has_paths(self) -> bool:
        """Whether any row tells where its photograph is."""
        return bool(pc.any(pc.not_equal(self._paths, "")).as_py())

    def official_images(self) -> dict[str, list[int]]:
        """The images of every official split; rows without one are training pairs."""
        codes = self._split_codes[self.keyed]
        return {split: self.keyed[codes == i].tolist() for i, split in enumerate(SPLITS)}

    def notes(self) -> list[str]:
        """Which columns are used, and what tells the splits, a phrase each."""
        notes = [f"columns {storable_name(', '.join(self._columns))}"]
        counts = Counter(self._named.to_pylist())
        known = {name: official_split(name) for name in counts}
        unknown = Counter({n: c for n, c in counts.items() if n and known[n] is None})
        named: Counter[str | None] = Counter()
        for name, count in counts.items():
            named[known[name]] += count
        return [
            *notes,
            *column_notes(SPLIT_COLUMN, named, unknown, "rows"),
            *path_notes(self.by_path),
        ]

    def n_repeated_uids(self) -> int:
        """How many rows have the name that DataComp gave an earlier row."""
        uids = self._uids.filter(pc.not_equal(self._uids, ""))
        return len(uids) - int(pc.count_distinct(uids).as_py())

    def caption(self, position: int) -> str | None:
        """The caption of a row."""
        text: str | None = self._captions[position].as_py()
        return text

    def captions(self, positions: Int64[np.ndarray, " m"]) -> list[str | None]:
        """The captions of rows."""
        texts: list[str | None] = self._captions.take(pa.array(positions)).to_pylist()
        return texts

    def key_of(self, row: int) -> str:
        """The name of an image."""
        return self.keys[int(self._place[row])]

    def keys_of(self, rows: Int64[np.ndarray, " m"]) -> list[str]:
        """The names of images."""
        return [self.keys[place] for place in self._place[rows].tolist()]

    def path(self, row: int) -> str:
        """Where the photograph of a row is, or ""."""
        return str(self._paths[row].as_py())

    def paths_of(self, rows: Int64[np.ndarray, " m"]) -> list[str]:
        """Where the photographs of rows are, or ""."""
        found: list[str] = self._paths.take(pa.array(rows)).to_pylist()
        return found

    def uid(self, row: int) -> str:
        """The name that DataComp gave an image; "" where its rows have several."""
        return self.uids_of(np.array([row]))[0]

    def uids_of(self, rows: Int64[np.ndarray, " m"]) -> list[str]:
        """The names that DataComp gave images; "" where the rows of one have several.

        A name of several pairs would be one of none.
        """
        found: list[str] = self._uids.take(pa.array(rows)).to_pylist()
        several = self._has_several_uids[rows]
        return ["" if many else uid for uid, many in zip(found, several.tolist(), strict=True)]

    @cached_property
    def _has_several_uids(self) -> Bool[np.ndarray, " n"]:
        """Whether the rows of the image that a row is have different names."""
        differs = np.zeros(len(self.owners), dtype=bool)
        further = np.flatnonzero(self.owners < np.arange(len(self.owners)))
        if len(further):
            own = self._uids.take(pa.array(further))
            first = self._uids.take(pa.array(self.owners[further]))
            other = pc.not_equal(own, first).to_numpy()
            differs[self.owners[further[other]]] = True
        return differs


def same_images(
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
    may_share = np.array([bool(path) for path in paths], dtype=bool)
    may_share[list(problems)] = False
    rows = np.flatnonzero(may_share)
    if len(rows):
        codes, _ = pd.factorize(np.array(paths, dtype=object)[rows])
        first = np.full(codes.max() + 1, -1)
        first[codes[::-1]] = rows[::-1]
        owners[rows] = first[codes]
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

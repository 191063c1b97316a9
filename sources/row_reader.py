"""Reads pairs whose embeddings exist: which rows are kept, and why the others are not.

The same choice, in the same order, as reading image after image makes (`data.PairReader`), by
sorting columns of hashes: exact duplicates and images in two splits are found over all files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from artifacts.settings import InputError
from sources.accounting import (
    PAIR_COLUMNS,
    SKIPPED_COLUMNS,
    Account,
    left_out_sentence,
    no_usable_pair,
)
from sources.base import (
    DUPLICATE_PAIR,
    IMAGE_IN_ANOTHER_SPLIT,
    SPLITS,
    DataConfig,
    PairSource,
)
from sources.captions import shown_caption
from sources.embeddings import EmbeddingFiles, EmbeddingPart, EmbeddingSource
from sources.row_facts import RowFacts, hex_rows, lanes, pair_id_of
from sources.vectors import EMBEDDING_NOT_USABLE, unit_rows

KEPT, FAULT, PROBLEM, OTHER_SPLIT, DUPLICATE = range(5)  # what becomes of a row


@dataclass
class _SplitRows:
    """What became of the rows of a split that were tried, in the order in which they were."""

    positions: list[np.ndarray] = field(default_factory=list)  # in the files
    outcomes: list[np.ndarray] = field(default_factory=list)
    firsts: list[np.ndarray] = field(default_factory=list)  # what stayed in a duplicate's place
    n_kept: int = 0  # pairs, but images of the test split

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions, outcomes and what stayed in the place of duplicates, of all hands."""
        found = self.positions, self.outcomes, self.firsts
        empty = np.zeros(0, np.int64)
        positions, outcomes, firsts = (np.concatenate([empty, *parts]) for parts in found)
        return positions, outcomes, firsts


class RowReader:
    """What `data.PairReader` is to images, for rows of embeddings.

    Attributes:
        source: where the pairs come from.
        image_rows: positions, in the files of a split, of the rows of its different images.
    """

    def __init__(
        self,
        files: EmbeddingFiles,
        config: DataConfig,
        find_facts: Callable[[EmbeddingSource, str], RowFacts],
    ) -> None:
        """Reads all splits: test, validation, train; an image in two stays in the first of these.

        Args:
            files: the embeddings.
            config: limits.
            find_facts: hashes and faults of all rows of a source, which is named by a split.

        Raises:
            InputError: a split ends without a single usable pair.
        """
        self.source: PairSource = files.source
        self.files, self._config, self._limits = files, config, config.limits()
        self._ended: set[str] = set()
        self._facts: dict[int, RowFacts] = {}
        self.image_rows: dict[str, np.ndarray] = {}
        self._owned: dict[bytes, tuple[str, int]] = {}  # images of earlier splits
        self._rows = {split: _SplitRows() for split in SPLITS}
        for split in ("test", "validation", "train"):
            part = files.part(split)
            if id(part.source) not in self._facts:
                self._facts[id(part.source)] = find_facts(part.source, split)
            self._read(split, part)

    # --- Choosing ---------------------------------------------------------------------------------

    def _read(self, split: str, part: EmbeddingPart) -> None:
        facts, rows = self._facts[id(part.source)], self._rows[split]
        for hand in part.source.hands(split):
            if rows.n_kept >= self._limits[split]:
                break
            self._take(split, part, facts, hand)
        else:
            self._ended.add(split)
        positions, outcomes, _ = rows.joined()
        kept = positions[outcomes == KEPT]
        if not len(kept):
            self._refuse(split, part, positions, outcomes)
        owners = part.source.rows.owners[kept]
        image = lanes(facts.sha256[owners])
        first = np.sort(np.unique(image, axis=0, return_index=True)[1])
        self.image_rows[split] = owners[first]
        if split == "train":  # which is the last
            return
        for row, position in zip(owners[first].tolist(), kept[first].tolist(), strict=True):
            self._owned[facts.sha256[row].tobytes()] = (split, part.first + position)

    def _take(
        self, split: str, part: EmbeddingPart, facts: RowFacts, hand: Int64[np.ndarray, " m"]
    ) -> None:
        """Decide on the rows of a hand, as far as the split needs them."""
        if not len(hand):
            return
        rows, source_rows = self._rows[split], part.source.rows
        owners = source_rows.owners[hand]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        record = np.cumsum(np.diff(owners, prepend=-1) != 0) - 1
        outcomes = np.full(len(hand), KEPT)
        firsts = np.full(len(hand), -1)
        faulty = facts.faulty[hand]
        has_caption = np.logical_or.reduceat(~faulty, starts)[record]
        has_problem = np.isin(owners, np.array(list(source_rows.problems), np.int64))
        elsewhere = self._in_another_split(facts, owners)
        readable = ~has_problem & has_caption
        outcomes[faulty] = FAULT
        is_elsewhere = readable & (elsewhere >= 0)
        outcomes[is_elsewhere] = OTHER_SPLIT
        firsts[is_elsewhere] = elsewhere[is_elsewhere]
        outcomes[has_problem] = PROBLEM
        self._mark_duplicates(split, part, facts, hand, outcomes, firsts)
        n_taken = self._n_taken(split, facts, owners, record, outcomes == KEPT)
        rows.positions.append(hand[:n_taken])
        rows.outcomes.append(outcomes[:n_taken])
        rows.firsts.append(firsts[:n_taken])

    def _in_another_split(
        self, facts: RowFacts, owners: Int64[np.ndarray, " m"]
    ) -> Int64[np.ndarray, " m"]:
        """The position of the pair through which an earlier split has each image; -1: none has."""
        found = np.full(len(owners), -1)
        if not self._owned:
            return found
        taken = np.array([np.frombuffer(key[:8], "<i8")[0] for key in self._owned])
        may_be = np.flatnonzero(np.isin(lanes(facts.sha256[owners])[:, 0], taken))
        for at in may_be.tolist():
            found[at] = self._owned.get(facts.sha256[owners[at]].tobytes(), ("", -1))[1]
        return found

    def _mark_duplicates(
        self,
        split: str,
        part: EmbeddingPart,
        facts: RowFacts,
        hand: Int64[np.ndarray, " m"],
        outcomes: Int64[np.ndarray, " m"],
        firsts: Int64[np.ndarray, " m"],
    ) -> None:
        """Mark the rows that repeat an image with its caption, and say what stays in their place.

        Every pair of the same hashes but the first one tried is a duplicate.
        """
        before, before_outcomes, _ = self._rows[split].joined()
        before = before[before_outcomes == KEPT]
        new = np.flatnonzero(outcomes == KEPT)
        if not len(new):
            return
        tried = np.concatenate([before, hand[new]])
        owners = part.source.rows.owners[tried]
        keys = np.concatenate([lanes(facts.sha256[owners]), lanes(facts.captions[tried])], axis=1)
        order = np.lexsort(keys.T)  # stable: of equal ones the first tried is the first
        is_first = np.r_[True, (np.diff(keys[order], axis=0) != 0).any(axis=1)]
        first_of = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
        repeats = order[~is_first]
        at = new[repeats - len(before)]
        outcomes[at] = DUPLICATE
        firsts[at] = part.first + tried[first_of[~is_first]]

    def _n_taken(
        self,
        split: str,
        facts: RowFacts,
        owners: Int64[np.ndarray, " m"],
        record: Int64[np.ndarray, " m"],
        kept: Bool[np.ndarray, " m"],
    ) -> int:
        """How many rows of a hand are looked at until the split is full, all of them or fewer."""
        rows, counts = self._rows[split], kept
        if split == "test":  # it is full by images, and takes all captions of the last
            before, outcomes, _ = rows.joined()
            seen = self.files.part(split).source.rows.owners[before[outcomes == KEPT]]
            images = np.concatenate([seen, owners[kept]])
            _, first = np.unique(lanes(facts.sha256[images]), axis=0, return_index=True)
            counts = np.zeros(len(kept), dtype=bool)
            counts[np.flatnonzero(kept)[first[first >= len(seen)] - len(seen)]] = True
        reached = np.flatnonzero(rows.n_kept + np.cumsum(counts) >= self._limits[split])
        if not len(reached):
            rows.n_kept += int(counts.sum())
            return len(kept)
        last = int(reached[0])
        if split == "test":
            last = int(np.flatnonzero(record == record[last])[-1])
        rows.n_kept += int(counts[: last + 1].sum())
        return last + 1

    def _refuse(
        self, split: str, part: EmbeddingPart, positions: np.ndarray, outcomes: np.ndarray
    ) -> None:
        rows = self._skipped_rows(split, part)
        reasons = Counter(str(row[3]) for row in rows)
        raise InputError(no_usable_pair(split, len(positions), reasons, rows, self.source))

    def images(self, split: str) -> Float32[np.ndarray, "m d"]:
        """Unit embeddings of a split's different images, by their rows.

        Raises:
            InputError: a file cannot be read any more.
        """
        return unit_rows(self.files.part(split).source.images.at(self.image_rows[split]))

    # --- Telling ----------------------------------------------------------------------------------

    def pairs(self) -> pd.DataFrame:
        """The kept pairs, split by split, by position; as `PairReader.pairs`."""
        tables = [self._kept_table(split, self.files.part(split)) for split in SPLITS]
        return pd.concat(tables, ignore_index=True)

    def _kept_table(self, split: str, part: EmbeddingPart) -> pd.DataFrame:
        facts, rows = self._facts[id(part.source)], part.source.rows
        tried, outcomes, _ = self._rows[split].joined()
        kept = tried[outcomes == KEPT]
        image = lanes(facts.sha256[rows.owners[kept]])
        _, first, code = np.unique(image, axis=0, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        order = np.argsort(kept, kind="stable")
        kept, image_rows = kept[order], rank[code.reshape(-1)][order]
        owners = rows.owners[kept]
        captions = [str(text).strip() for text in rows.captions(kept)]
        values = (
            *(split, part.first + kept, _prefixed(part.prefix, rows.keys_of(owners)), image_rows),
            *(captions, hex_rows(facts.sha256[owners]), "", ""),
            self._pair_ids(part, kept, captions),
            *(_shards_of(part.source, kept), rows.paths_of(owners)),
            *(rows.numbers[kept], rows.uids_of(owners)),
        )
        table = pd.DataFrame(dict(zip(PAIR_COLUMNS, values, strict=True)), index=range(len(kept)))
        return table.astype({"position": np.int64, "image_row": np.int64, "row": np.int64})

    def _pair_ids(
        self, part: EmbeddingPart, positions: Int64[np.ndarray, " m"], captions: list[str]
    ) -> list[str]:
        ids = hex_rows(self._facts[id(part.source)].pair_ids[positions])
        owners = part.source.rows.owners[positions]
        for at in np.flatnonzero(owners != positions).tolist():  # hashed with another row
            ids[at] = pair_id_of(part.source.images, int(owners[at]), captions[at])
        return ids

    def skipped(self) -> pd.DataFrame:
        """The candidate pairs that were tried and not kept, as `PairReader.skipped`."""
        parts = ((split, self.files.part(split)) for split in ("test", "validation", "train"))
        rows = [row for split, part in parts for row in self._skipped_rows(split, part)]
        return pd.DataFrame(rows, columns=SKIPPED_COLUMNS)

    def _skipped_rows(self, split: str, part: EmbeddingPart) -> list[tuple[object, ...]]:
        positions, outcomes, firsts = self._rows[split].joined()
        away = np.flatnonzero(outcomes != KEPT)
        facts, rows = self._facts[id(part.source)], part.source.rows
        texts = [(text or "").strip() for text in rows.captions(positions[away])]
        ids = self._pair_ids(part, positions[away], texts)
        found: list[tuple[object, ...]] = []
        for at, text, pair_id in zip(away.tolist(), texts, ids, strict=True):
            position, outcome, first = int(positions[at]), int(outcomes[at]), int(firsts[at])
            owner = int(rows.owners[position])
            reason, detail = facts.faults.get(position, ("", ""))
            if outcome == PROBLEM:
                reason, detail = EMBEDDING_NOT_USABLE, rows.problems[owner]
            elif outcome == DUPLICATE:
                reason, detail = DUPLICATE_PAIR, f"same as position {first}"
            elif outcome == OTHER_SPLIT:
                reason = IMAGE_IN_ANOTHER_SPLIT
                detail = self._owned[facts.sha256[owner].tobytes()][0]
            was_read = outcome in (DUPLICATE, OTHER_SPLIT) and not facts.faulty[position]
            found.append(
                (
                    *(split, part.first + position, part.prefix + rows.key_of(owner)),
                    *(reason, detail, shown_caption(text), pair_id if was_read else ""),
                    *(rows.shards[int(rows.parts[position])], rows.path(owner)),
                    *(int(rows.numbers[position]), first),
                )
            )
        return found

    def _n_tried(self) -> Counter[str]:
        return Counter({split: len(self._rows[split].joined()[0]) for split in SPLITS})

    def account(self) -> Account:
        """What became of every caption of the source."""
        outcomes = np.concatenate([self._rows[split].joined()[1] for split in SPLITS])
        n_used = int((outcomes == KEPT).sum())
        n_skipped = len(outcomes) - n_used
        total = self.source.n_all_captions()
        assert total is not None, "rows of files are counted"
        return Account(n_used, n_skipped, total - n_used - n_skipped, self.source.unread)

    def id_hint(self) -> str:
        """Nothing: rows of one image are told by their paths."""
        return ""

    def left_out(self) -> str:
        """What of the source the limits left unread, in a phrase; "" where that is nothing."""
        return left_out_sentence(
            self.source, self._config, self._n_tried(), is_read=self._ended >= {*SPLITS}
        )


def _prefixed(prefix: str, keys: list[str]) -> list[str]:
    return [prefix + key for key in keys] if prefix else keys


def _shards_of(source: EmbeddingSource, positions: Int64[np.ndarray, " m"]) -> list[str]:
    return [source.rows.shards[part] for part in source.rows.parts[positions].tolist()]

"""What became of every caption of a source: used, skipped, not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sources.base import SAMPLE_FLAGS, DataConfig, PairSource

# Of the kept pairs, and of those that were tried and not kept.
PAIR_COLUMNS = ["split", "position", "key", "image_row", "caption", "image_sha256", "fault"]
PAIR_COLUMNS += ["group", "id", "shard", "member", "row", "uid"]
SKIPPED_COLUMNS = ["split", "position", "key", "reason", "detail", "caption"]
SKIPPED_COLUMNS += ["id", "shard", "member", "row", "duplicate_of"]


@dataclass(frozen=True)
class Account:
    """Numbers of captions, which are pairs with their images.

    Attributes:
        used: read and kept, in any split.
        skipped: read or tried, and listed with a reason.
        not_read: beyond the limits, or of official splits that are not asked for; None where
            nobody knows how long the source is.
        unread: what could not be opened, so that its pairs are not counted, a phrase each.
    """

    used: int
    skipped: int
    not_read: int | None
    unread: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The numbers, in words."""
        if self.not_read is None:
            text = f"{self.used:,} captions used, {self.skipped:,} skipped; the rest was not read"
        else:
            total = self.used + self.skipped + self.not_read
            text = (
                f"Of {total:,} captions of the source {self.used:,} are used, {self.skipped:,} "
                f"skipped and {self.not_read:,} not read"
            )
        return f"{text}; not counted: {', '.join(self.unread)}" if self.unread else text


def left_out_sentence(
    source: PairSource, config: DataConfig, n_tried: Mapping[str, int], *, is_read: bool
) -> str:
    """What of a source the limits left unread, in a phrase; "" where that is nothing.

    Args:
        source: that was read.
        config: limits.
        n_tried: captions of each split that were kept or skipped.
        is_read: whether every candidate of every split was asked for.
    """
    parts, total = [], 0
    for split, flag in SAMPLE_FLAGS.items():
        n_captions = source.n_captions(split)
        if n_captions is None:
            return "" if is_read else "the rest of the source was not read"
        if rest := n_captions - n_tried[split]:
            once = ", one caption an image" if split == "validation" else ""
            parts.append(f"{rest:,} of {split} (--{flag} {getattr(config, flag)}{once})")
            total += rest
    if not parts:
        return ""
    return f"{total:,} further captions of the source were not read: {', '.join(parts)}"


def no_usable_pair(
    split: str,
    n_tried: int,
    reasons: Counter[str],
    skipped: Sequence[Sequence[object]],
    source: PairSource,
) -> str:
    """What is wrong where a split has ended without a single usable pair.

    Args:
        split: which.
        n_tried: captions that were tried.
        reasons: for which they were skipped.
        skipped: these, as rows of `SKIPPED_COLUMNS`.
        source: that was read.
    """
    counts = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    tried = f"{n_tried:,} tried" + (f" ({counts})" if counts else "")
    text = f"no usable pair for the {split} split: {tried}; check the data ({source.description})"
    if not skipped:
        return text
    _, _, key, reason, detail, *_ = skipped[0]
    told = detail if str(key) in str(detail) else f"{key}: {detail or reason}"
    return f"{text}; the first: {told}"

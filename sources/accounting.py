"""What became of every caption of a source: used, skipped, not read."""

from __future__ import annotations

from dataclasses import dataclass


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

"""Candidate pairs: which image is in which split, and in which order candidates are tried.

Splits are by image: test keeps every caption of an image, validation one, and training gives every
image one caption before any image gives a second.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from sources.base import NO_LIMIT, SPLIT_OF, SPLITS, Caption, ImageRecord, PairSource

T = TypeVar("T")
CARVED_SHARE = 0.2  # the most of the training images that a missing split may take
CARVED_IMAGES = (
    1000  # that it takes where all were asked for, which would leave nothing to train on
)
SPARE_HANDS = 20  # a hand of spare candidates is this fraction of what is asked for


def digest(*parts: object) -> str:
    """Hex digest of anything that JSON can write, the order of keys left aside."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


# --- Two kinds of source --------------------------------------------------------------------------


class IndexedSource(PairSource):
    """Pairs of which every one can be reached at any time.

    It gives the splits that `limits` names; see `complete_splits`.
    """

    can_go_back = True

    def __init__(
        self,
        name: str,
        description: str,
        fingerprint: str,
        official: Mapping[str, Sequence[ImageRecord]],
        limits: Mapping[str, int],
        rng: np.random.Generator,
        *,
        notes: Sequence[str] = (),
        unread: Sequence[str] = (),
    ) -> None:
        splits, note = complete_splits(official, limits, rng)
        super().__init__(name, f"{description}; {note}", fingerprint, notes=notes, unread=unread)
        self._splits, self._limits = splits, limits
        self._n_captions = sum(len(image.captions) for of in official.values() for image in of)
        self._seeds = {split: int(rng.integers(2**63)) for split in SPLITS}
        self._by_key = {image.key: image for image in chain.from_iterable(splits.values())}

    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidates of a split; see `order_candidates`. Every call gives the same order."""
        rng = np.random.default_rng(self._seeds[split])
        return order_candidates(self._splits[split], split, self._limits.get(split, 0), rng)

    def n_images(self, split: str) -> int:
        """Number of candidate images of a split."""
        return len(self._splits[split])

    def n_captions(self, split: str) -> int:
        """Number of captions of a split, all of every image."""
        return sum(len(image.captions) for image in self._splits[split])

    def n_all_captions(self) -> int:
        """Number of captions, those of official splits that are not asked for included."""
        return self._n_captions

    def has_keys_below(self, prefix: str) -> bool:
        """Whether a key begins like this."""
        return any(key.startswith(prefix) for key in self._by_key)

    def read_image(self, key: str) -> bytes:
        """The bytes of one image; see `PairSource.read_image`."""
        return self._by_key[key].read()

    def reader_of(self, key: str) -> Callable[[], bytes]:
        """The record's own; see `PairSource.reader_of`."""
        return self._by_key[key].read


class StreamSource(PairSource):
    """Pairs that come one after the other and are taken as they come.

    Without a test stream the validation stream is the test set, and a split that is still missing
    takes the first images of the training stream: test, then validation, then training. Where
    all were asked for, these are `CARVED_IMAGES`.
    """

    def __init__(
        self,
        name: str,
        description: str,
        fingerprint: str,
        streams: Mapping[str, Iterator[ImageRecord]],
        n_train_pairs: int | None,
        *,
        limits: Mapping[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(name, description, fingerprint, notes=notes)
        self._official, self._limits = dict(streams), limits or {}
        self._streams, _ = _assign_streams(self._official, SPLITS)
        self._carved_pairs = CARVED_SHARE * (n_train_pairs or float("inf"))

    def restrict(self, splits: Collection[str]) -> None:
        """Give these splits alone, as `complete_splits` has it; nothing may have been read yet."""
        self._streams, note = _assign_streams(self._official, splits)
        self.description += f"; {note}" if note else ""

    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidates of a split; a second call goes on where the first one stopped."""
        if split in self._streams:
            records = self._streams[split]
        else:
            stream = self._streams["train"]
            if self._limits.get(split) == NO_LIMIT:
                stream = islice(stream, CARVED_IMAGES)
            records = _until(stream, self._carved_pairs)
        if split != "validation":
            return records
        return (replace(record, captions=record.captions[:1]) for record in records)

    def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """What reads each of the images named, once each, in one pass and in its order.

        Nothing is taken from the streams beyond the last of them; what they do not hold is left
        out. See `PairSource.read_again`.
        """
        records = chain.from_iterable(
            self._streams[split] for split in SPLITS if split in self._streams
        )
        missing = set(keys)
        while missing and (record := next(records, None)) is not None:
            if record.key in missing:
                missing.remove(record.key)
                yield record.key, record.read


def _assign_streams(
    official: Mapping[str, Iterator[ImageRecord]], wanted: Collection[str]
) -> tuple[dict[str, Iterator[ImageRecord]], str]:
    """The streams of the splits that are wanted, as far as there are any, and what was done."""
    everything = chain.from_iterable(official.values())
    if "train" not in wanted:
        (split,) = wanted
        chosen = _held_out_name(official, split)
        stream = everything if chosen is None else official[chosen]
        return {split: stream}, "all of it" if chosen is None else f"its official {chosen} split"
    if "train" not in official:
        return {"train": everything}, ""
    streams = dict(official)
    if "test" in wanted and "test" not in streams and "validation" in streams:
        streams["test"] = streams.pop("validation")
    left_out = [split for split in SPLITS if split in streams and split not in wanted]
    note = f"official {' and '.join(left_out)} not read" if left_out else ""
    return {split: stream for split, stream in streams.items() if split not in left_out}, note


def _until(records: Iterator[ImageRecord], n_pairs: float) -> Iterator[ImageRecord]:
    """Records up to a number of pairs; takes none from the iterator beyond those it yields."""
    for record in records:
        yield record
        n_pairs -= len(record.captions)
        if n_pairs <= 0:
            return


# --- Splits and order -----------------------------------------------------------------------------


def complete_splits(
    official: Mapping[str, Sequence[T]], limits: Mapping[str, int], rng: np.random.Generator
) -> tuple[dict[str, list[T]], str]:
    """Images by split, the missing splits carved out of training at random.

    Without test images the official validation images become the test images. A carved split has
    the size asked for, but never more than a fifth of the training images; where all were asked
    for, at most `CARVED_IMAGES`.

    A split that `limits` does not name comes from another data set: it is not carved, and official
    images of it are left out. Without training in `limits` the one split that is named is the
    official one, else the other held-out one, else all images.

    Returns:
        Images by split, and one phrase that says what was done.
    """
    if "train" not in limits:
        return _held_out_images(official, limits)
    splits = {split: list(official.get(split, ())) for split in SPLITS}
    notes = []
    if not splits["train"]:
        splits = {"train": [*splits["validation"], *splits["test"]], "validation": [], "test": []}
    elif "test" in limits and not splits["test"] and splits["validation"]:
        splits["test"], splits["validation"] = splits["validation"], []
        notes.append("test is the official validation split")
    for split in SPLITS:
        if split not in limits and splits[split]:
            notes.append(f"{len(splits[split]):,} official {split} images left out")
            splits[split] = []
    rest = splits["train"]
    most = max(1, int(CARVED_SHARE * len(rest)))
    missing = [split for split in ("test", "validation") if split in limits and not splits[split]]
    if missing:
        rest = [rest[i] for i in rng.permutation(len(rest))]
        notes.append(f"{' and '.join(missing)} drawn at random from train")
    for split in missing:
        asked = CARVED_IMAGES if limits[split] == NO_LIMIT else limits[split]
        size = min(asked, most)
        splits[split], rest = rest[:size], rest[size:]
    splits["train"] = rest
    sizes = ", ".join(f"{split} {len(splits[split]):,}" for split in SPLITS if split in limits)
    return splits, "; ".join([f"images: {sizes}", *notes])


def _held_out_images(
    official: Mapping[str, Sequence[T]], wanted: Collection[str]
) -> tuple[dict[str, list[T]], str]:
    """The images of the one split that is wanted, and which they are."""
    (split,) = wanted
    chosen = _held_out_name({name: images for name, images in official.items() if images}, split)
    everything = list(chain.from_iterable(official.get(name, ()) for name in SPLITS))
    images = everything if chosen is None else list(official[chosen])
    note = "all of it" if chosen is None else f"its official {chosen} split"
    if len(images) < len(everything):
        note += f", {len(images):,} of {len(everything):,} images"
    return {name: images if name == split else [] for name in SPLITS}, note


def _held_out_name(official: Collection[str], split: str) -> str | None:
    """The official split that held-out pairs are taken from; None: there is none."""
    others = [name for name in SPLITS[1:] if name != split]
    return next((name for name in (split, *others) if name in official), None)


def order_candidates(
    images: Sequence[ImageRecord], split: str, limit: int, rng: np.random.Generator
) -> Iterator[ImageRecord]:
    """Candidate images, drawn at random, in the order in which they are tried.

    For training the first `limit` pairs are dealt in rounds, one caption of every image a round.
    Validation images give one caption, test images all of theirs. What is drawn first is tried
    first, in the order of the source, because reading on is faster than jumping; what replaces
    unusable pairs follows in small hands, each in the order of the source again.
    """
    order = [images[i] for i in rng.permutation(len(images))]
    dealt: Iterator[tuple[ImageRecord, tuple[Caption, ...]]]
    if split == "test":
        dealt = ((image, image.captions) for image in order)
    else:
        hands = [[im.captions[i] for i in rng.permutation(len(im.captions))] for im in order]
        n_rounds = max(map(len, hands), default=0) if split == "train" else 1
        dealt = (
            (order[i], (hand[number],))
            for number in range(n_rounds)
            for i, hand in enumerate(hands)
            if number < len(hand)
        )
    yield from _in_source_order(islice(dealt, limit))
    while spare := list(islice(dealt, max(1, limit // SPARE_HANDS))):
        yield from _in_source_order(spare)


def _in_source_order(
    dealt: Iterable[tuple[ImageRecord, tuple[Caption, ...]]],
) -> list[ImageRecord]:
    """Records with the captions dealt to them, by position; those of the same image joined."""
    images: dict[str, ImageRecord] = {}
    captions: dict[str, tuple[Caption, ...]] = {}
    for image, given in dealt:
        images[image.key] = image
        captions[image.key] = captions.get(image.key, ()) + given
    joined = [
        image if captions[key] == image.captions else replace(image, captions=captions[key])
        for key, image in images.items()
    ]
    return sorted(joined, key=lambda record: min(c.position for c in record.captions))


def official_split(name: str) -> str | None:
    """The split that a name means, if any; `train2017` means one too."""
    name = name.strip().casefold()
    return SPLIT_OF.get(name) or SPLIT_OF.get(re.sub(r"[\W\d_]+", "", name))

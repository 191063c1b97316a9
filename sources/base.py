"""What every source gives: captions, image records, and the reasons for which pairs are left out.

A `PairSource` names candidate images with their captions, split by split, in the order in which
they are to be tried.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from artifacts.cores import n_cores
from artifacts.settings import ALL, AUTO, Settings, setting

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {  # what data sets call them
    "train": ("train", "training", "restval"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
SAMPLE_FLAGS = dict(
    zip(SPLITS, ("max_train_samples", "max_val_samples", "max_test_samples"), strict=True)
)
NO_LIMIT = sys.maxsize  # what `all` is to whoever counts
MISSING_FILE = "missing file"
UNREADABLE_FILE = "unreadable file"
EMPTY_FILE = "empty file"
FILE_TOO_LARGE = "file too large"
OUTSIDE_FOLDER = "path outside the folder"
BROKEN_IMAGE = "broken image"
SEVERAL_IMAGES = "several images in one row"
FORMAT_NOT_READ = "image format not read"
IMAGE_TOO_LARGE = "image too large"
IMAGE_TOO_SMALL = "image too small"
EMPTY_CAPTION = "empty caption"
MISSING_CAPTION = "missing caption"
DAMAGED_CAPTION = "damaged caption"
CAPTION_TOO_LONG = "caption too long"
DUPLICATE_KEY = "duplicate key"
DUPLICATE_PAIR = "duplicate pair"
IMAGE_IN_ANOTHER_SPLIT = "image in another split"
EMBEDDING_ARCHITECTURES = ("b32", "l14")  # of CLIP, in DataComp's words; the preferred one first
MAX_FILE_BYTES = 2**28  # of an image; what claims to be larger is not read


# Flags about a source that not every source has a use for.
SOURCE_FLAGS = ("hf_dataset", "image_column", "caption_column", "id_column", "embedding_arch")


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which pairs to use, and how many."""

    dataset: str = setting(
        "auto",
        "where the pairs come from; auto: COCO where it can be had, else synthetic scenes",
        choices=("auto", "coco", "synthetic", "folder", "webdataset", "parquet", "hf"),
    )
    data_dir: str | None = setting(
        None,
        "local data: COCO's official layout, a folder of images and captions, of parquet files or "
        "of tar shards, or a pattern of shards; or an address of it, as s3://, gs://, hf://",
        type=str,
    )
    embeddings_dir: str | None = setting(
        None,
        "embeddings that you already have, in clip-retrieval's layout (img_emb, text_emb, "
        "metadata) or as DataComp's metadata (.parquet and .npz), in a folder or at an address: "
        "stage 1 then only clusters",
        type=str,
    )
    embedding_arch: str = setting(
        "auto",
        "whose embeddings to take from DataComp's .npz files; auto: b32 where it is there, else "
        "l14",
        choices=("auto", *EMBEDDING_ARCHITECTURES),
        added_later=True,
    )
    hf_dataset: str = setting(
        "jxie/coco_captions", "Hub data set, or local save_to_disk or parquet folder"
    )
    image_column: str = setting(
        "image",
        "column or field that holds the image or its path, or extension of a shard's images",
    )
    caption_column: str = setting(
        "caption", "column or field that holds the caption, or extension of a shard's texts"
    )
    id_column: str = setting(
        "cocoid", "column of a table that tells which rows show the same image, if it exists"
    )
    val_data: str | None = setting(
        None,
        "another data set that the validation pairs come from: a folder, tar shards, parquet "
        "files, COCO, a save_to_disk folder or a Hub id; what it is, is found out, or said in "
        "front: parquet:DIR",
        type=str,
        added_later=True,
    )
    test_data: str | None = setting(
        None,
        "another data set that the test pairs come from, likewise",
        type=str,
        added_later=True,
    )
    val_embeddings_dir: str | None = setting(
        None,
        "other embeddings that the validation pairs come from, beside --embeddings_dir",
        type=str,
        added_later=True,
    )
    test_embeddings_dir: str | None = setting(
        None,
        "other embeddings that the test pairs come from, beside --embeddings_dir",
        type=str,
        added_later=True,
    )
    max_train_samples: int | str = setting(
        5000, "most training pairs, or all", at_least=2, or_all=True
    )
    max_val_samples: int | str = setting(
        1000, "most validation images, one caption each, or all", at_least=2, or_all=True
    )
    max_test_samples: int | str = setting(
        1000, "most test images, all captions each, or all", at_least=2, or_all=True
    )
    num_workers: int | str = setting(
        AUTO,
        "processes that read and decode images, shared among the workers of a machine, threads "
        "where images are few; auto: one a processor core; 0 reads in the workers' own thread",
        at_least=0,
        affects_result=False,
        or_auto=True,
        type=int,
    )
    max_image_pixels: int = setting(89_478_485, "images with more pixels are skipped", at_least=1)

    def warn_of_unused(self, used: Sequence[str], source: str) -> None:
        """Say which flags about a source were given to one that does not use them."""
        unused = [
            f"--{name}"
            for name in SOURCE_FLAGS
            if name not in used and getattr(self, name) != getattr(DataConfig, name)
        ]
        if unused:
            logger.warning(
                "%s: not used by %s; leave %s out",
                *(", ".join(unused), source, "it" if len(unused) == 1 else "them"),
            )

    def n_workers(self) -> int:
        """How many read images on this machine; 0: whoever asks for them."""
        return n_cores() if self.num_workers == AUTO else int(self.num_workers)

    def limits(self) -> dict[str, int]:
        """The most samples of each split: pairs, images of one pair, images; `NO_LIMIT` for all."""
        asked = {split: getattr(self, flag) for split, flag in SAMPLE_FLAGS.items()}
        return {split: NO_LIMIT if most == ALL else int(most) for split, most in asked.items()}


@dataclass(frozen=True)
class PartConfig(DataConfig):
    """What one of several data sets is opened with.

    Attributes:
        splits: those that it gives; the others come from elsewhere.
    """

    splits: tuple[str, ...] = SPLITS

    def limits(self) -> dict[str, int]:
        """The most samples of each split that it gives."""
        return {split: n for split, n in super().limits().items() if split in self.splits}


@dataclass(frozen=True)
class Caption:
    """The text side of a candidate pair.

    Attributes:
        position: index of the pair in the source, over all its splits; of held-out pairs from
            another data set from a large number on, see `combined.FIRST_POSITIONS`.
        text: the caption as written; None where there is none.
        fault: ground truth of synthetic pairs: wrong_caption, boilerplate, near_copy or "".
        row: of the table that it stands in, from 0; -1 where it stands in none.
    """

    position: int
    text: str | None
    fault: str = ""
    row: int = -1


@dataclass(frozen=True)
class ImageRecord:
    """An image that is not read yet, and its candidate captions.

    Attributes:
        key: stable name of the image in its source.
        read: returns the file's bytes; called in a worker thread, may raise OSError and others.
        captions: the candidate pairs.
        group: ground truth of synthetic images: rare or "".
        shard: the file that holds many images, as a path from the data folder; "" without one.
        member: the image's own file, in the folder or in its shard; "" in a table.
        uid: the name that DataComp gave the pair, 32 hex digits, or "".
        problem: why the image must not be read, where that was known when the source was opened.
    """

    key: str
    read: Callable[[], bytes]
    captions: tuple[Caption, ...]
    group: str = ""
    shard: str = ""
    member: str = ""
    uid: str = ""
    problem: UnusableImage | None = None


class UnusableImage(Exception):  # noqa: N818 - an outcome, not an error of the program
    """An image that is skipped: a short reason, and what exactly was wrong."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class PairSource(ABC):
    """Where pairs come from.

    Attributes:
        name: the data set really used: one of the choices of --dataset but auto, or embeddings.
        description: one line for people: what, where, how many.
        fingerprint: hex digest that changes whenever the data does.
        notes: what was chosen, bridged or ignored when it was opened, a phrase each.
        unread: what could not be opened, so that nobody can count its pairs, a phrase each.
        can_go_back: whether `read_image` reaches every image at any time, in any process that opens
            the same data set.
    """

    can_go_back = False

    def __init__(
        self,
        name: str,
        description: str,
        fingerprint: str,
        *,
        notes: Sequence[str] = (),
        unread: Sequence[str] = (),
    ) -> None:
        self.name, self.description, self.fingerprint = name, description, fingerprint
        self.notes, self.unread = tuple(notes), tuple(unread)

    @abstractmethod
    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidate images of a split in the order in which they are tried."""

    @property
    def origins(self) -> tuple[str, ...]:
        """The description, in a line for each data set that there is."""
        return (self.description,)

    def n_images(self, split: str) -> int | None:
        """Number of candidate images of a split; None where that is not known."""
        return None

    def n_captions(self, split: str) -> int | None:
        """Number of captions of a split, all of every image; None where that is not known."""
        return None

    def n_all_captions(self) -> int | None:
        """Number of captions, those of splits that are not asked for included; None: not known."""
        counts = [self.n_captions(split) for split in SPLITS]
        return None if None in counts else sum(n for n in counts if n is not None)

    def has_keys_below(self, prefix: str) -> bool:
        """Whether a key is known that begins like this."""
        return False

    def read_image(self, key: str) -> bytes:
        """The bytes of one image.

        Raises:
            KeyError: the source cannot go back to this image.
            OSError: the file cannot be read.
        """
        raise KeyError(key)

    def reader_of(self, key: str) -> Callable[[], bytes]:
        """What reads one image, in whatever form the source has it."""
        return partial(self.read_image, key)

    def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """What reads each of the images named, in the order given: that of the source is fastest.

        A stream gives each once, in its own order, leaves out what it does not hold, and must not
        have been read before.
        """
        for key in keys:
            yield key, partial(self.read_image, key)


def pair_id(image: bytes, caption: str) -> str:
    """The 128-bit name of a pair, 32 hex digits: half the SHA-256 of image file and caption."""
    return hashlib.sha256(image + caption.encode()).hexdigest()[:32]


def datacomp_uid(value: object) -> str:
    """The name that DataComp gave a pair, 32 hex digits; "" for anything else."""
    return value if isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{32}", value) else ""

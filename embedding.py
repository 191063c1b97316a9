"""Embeddings of image-text pairs: tower features and unit vectors of a joint space."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64
from tqdm import tqdm

from artifacts.scratch import HELD_BYTES
from artifacts.settings import InputError
from data import PairReader
from encoders.base import EmbeddingConfig, Encoded, Features, count_cut_off, join
from encoders.joint_map import unit_rows
from engine.base import Setup
from engine.room import StageRoom
from intake.arrays import TrainingArrays, fill_given, fill_pairs
from intake.captions import EncodedCaptions
from intake.images import ShardReader
from intake.joint import JointEmbeddings, joint_embeddings
from intake.setup import Reading
from sources.base import SPLITS
from sources.row_reader import RowReader

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 8192
MANY_SKIPPED = 0.1  # of the captions; then the reasons are told at once
SAME_ROW = 1e-6  # difference of unit rows below which they are one
READ_ORDER = ("test", "validation", "train")  # an image in two splits stays in the first of these


@dataclass(frozen=True)
class EmbeddingResult:
    """n training pairs, V validation pairs, E test images with Q captions.

    Features are the towers' outputs before the joint projection; embeddings have unit rows.
    """

    image_embeddings: Float32[np.ndarray, "n d"]
    text_embeddings: Float32[np.ndarray, "n d"]
    concatenated_embeddings: Float32[np.ndarray, "n 2*d"]
    image_features: Float32[np.ndarray, "n d_i"]
    text_features: Float32[np.ndarray, "n d_t"]
    clip_scores: Float32[np.ndarray, " n"]  # cosine of a pair's two embeddings
    indices: Int64[np.ndarray, " n"]  # positions in the source
    validation_image_features: Float32[np.ndarray, "V d_i"]
    validation_text_features: Float32[np.ndarray, "V d_t"]
    test_image_features: Float32[np.ndarray, "E d_i"]
    test_text_features: Float32[np.ndarray, "Q d_t"]
    test_caption_image: Int64[np.ndarray, " Q"]  # row of the test image a caption belongs to
    test_image_embeddings: Float32[np.ndarray, "E d"]
    test_text_embeddings: Float32[np.ndarray, "Q d"]
    pairs: pd.DataFrame
    skipped: pd.DataFrame = field(metadata={"file": "skipped.csv"})
    encoder: str  # the one really used
    source: str  # the data set, and what of it was not read, in one line
    # Results saved before these existed have none.
    validation_image_embeddings: Float32[np.ndarray, "V d"] | None = None
    validation_text_embeddings: Float32[np.ndarray, "V d"] | None = None
    max_tokens: int | None = None  # of a caption that the encoder reads; None: no limit, or unknown
    n_cut_off: int = 0  # pairs with a caption longer than that
    account: str = ""  # how many captions of the source are used, skipped and not read
    notes: str = ""  # what was chosen, bridged and ignored to read the source, a line each

    @property
    def cut_off(self) -> str:
        """How many captions the encoder did not read to their ends; empty where it read all."""
        return cut_off_sentence(self.encoder, self.max_tokens, self.n_cut_off, len(self.pairs))

    def split_pairs(self, split: str) -> pd.DataFrame:
        """The kept pairs of one split, in the order of its arrays."""
        return self.pairs[self.pairs["split"] == split].reset_index(drop=True)


def embed_pairs(
    reader: PairReader, features: Features, config: EmbeddingConfig, *, rng: np.random.Generator
) -> EmbeddingResult:
    """Features and embeddings of all pairs of a reader.

    Each image and each distinct caption passes an encoder once. Where it has no joint space,
    `embed_across_folds` fits one to the training pairs; validation pairs and test data, which it
    has not seen, are embedded by the map of all of them.

    Args:
        reader: nothing of it read yet.
        features: whose `encode_images` takes what the reader makes of an image.
        config: batch size.
        rng: assigns the folds.

    Raises:
        InputError: no usable pair, too few images, or values that are not finite.
    """
    pairs, images, texts = _encode(reader, features, config)
    return _embedded(reader, features, pairs, images, texts, rng=rng)


def embed_rows(
    reader: RowReader, features: Features, *, rng: np.random.Generator, room: StageRoom
) -> EmbeddingResult:
    """The same of embeddings that exist already; many are gone through stretch by stretch.

    Of many, features and embeddings are one: the rows at unit length.

    Args:
        reader: which rows are kept.
        features: that stand for the embeddings.
        rng: as in `embed_pairs`.
        room: where large arrays are filled, and by whom.

    Raises:
        InputError: a file cannot be read any more, or all images or all captions are alike.
    """
    pairs = reader.pairs()
    n_pairs = int((pairs["split"] == "train").sum())
    if 4 * n_pairs * reader.files.texts.width <= HELD_BYTES:
        images, texts = _rows_of(reader, pairs, SPLITS)
        return _embedded(reader, features, pairs, images, texts, rng=rng)
    n_cut_off = _tell(reader, features, pairs)
    train = fill_given(reader, pairs, room)
    held_out = pairs[pairs["split"] != "train"].reset_index(drop=True)
    images, texts = _rows_of(reader, held_out, ("validation", "test"))
    of_pairs = _of_pairs(held_out, images, texts)
    sides = _held_out_sides(of_pairs, images)
    joint = JointEmbeddings(
        train.image_embeddings, train.text_embeddings, *(unit_rows(s.features) for s in sides)
    )
    _check_differences(joint, features)
    return _result(reader, features, pairs, train, sides, joint, n_cut_off)


def embed_in_shards(
    reader: ShardReader,
    encoder: Features,
    config: EmbeddingConfig,
    *,
    rng: np.random.Generator,
    room: StageRoom,
    setup: Setup[Reading],
) -> EmbeddingResult:
    """The same as `embed_pairs`, images and captions encoded shard by shard by any worker.

    Args:
        reader: nothing of it read yet.
        encoder: whose features they are.
        config: batch size.
        rng: assigns the folds.
        room: where shards are worked on, and large arrays filled.
        setup: what a worker opens.

    Raises:
        InputError: no usable pair, too few images, or values that are not finite.
    """
    started = time.perf_counter()
    places = {s: np.stack([image.pixels for image in reader.images(s)]) for s in READ_ORDER}
    pairs = reader.pairs()
    texts = EncodedCaptions(pairs["caption"].tolist(), room, setup, config.encoder_batch_size)
    _tell_speed(encoder.name, sum(map(len, places.values())), len(pairs), started)
    n_pairs = int((pairs["split"] == "train").sum())
    one = reader.features(places["train"][:1])
    if 4 * n_pairs * one.features.shape[1] <= HELD_BYTES:
        images = {split: reader.features(places[split]) for split in SPLITS}
        encoded = texts.take(np.arange(len(pairs)))
        for part in (*images.values(), encoded):
            _check_finite(part, encoder, config)
        return _embedded(reader, encoder, pairs, images, encoded, rng=rng)
    n_cut_off = _tell(reader, encoder, pairs)
    held_out = pairs[pairs["split"] != "train"]
    images = {split: reader.features(places[split]) for split in ("validation", "test")}
    of_pairs = _of_pairs(held_out, images, texts.take(held_out.index.to_numpy()))
    sides = _held_out_sides(of_pairs, images)
    image_rows = pairs["image_row"].to_numpy(np.int64)
    rows = np.flatnonzero(pairs["split"] == "train")

    def block(at: Int64[np.ndarray, " m"]) -> tuple[Encoded, Encoded]:
        found = reader.features(places["train"][image_rows[rows[at]]]), texts.take(rows[at])
        for part in found:
            _check_finite(part, encoder, config)
        return found

    ids = pd.factorize(pairs["image_sha256"].to_numpy()[rows])[0].astype(np.int64)
    train, joint = fill_pairs(block, sides, ids, room, rng=rng)
    _check_differences(joint, encoder)
    return _result(reader, encoder, pairs, train, sides, joint, n_cut_off)


def _rows_of(
    reader: RowReader, pairs: pd.DataFrame, splits: Sequence[str]
) -> tuple[dict[str, Encoded], Encoded]:
    """What `_encode` gives, of embeddings that exist already."""
    images = {split: Encoded(rows, rows) for split in splits for rows in [reader.images(split)]}
    texts = reader.files.texts_at(pairs["position"].to_numpy(np.int64))
    return images, Encoded(texts, texts)


def _embedded(
    reader: PairReader | RowReader,
    features: Features,
    pairs: pd.DataFrame,
    images: Mapping[str, Encoded],
    texts: Encoded,
    *,
    rng: np.random.Generator,
) -> EmbeddingResult:
    """The result, of encoded images of every split and of the texts of all pairs."""
    n_cut_off = _tell(reader, features, pairs)
    of_pairs = _of_pairs(pairs, images, texts)
    ids = pd.factorize(pairs["image_sha256"][pairs["split"] == "train"])[0].astype(np.int64)
    sides = [*of_pairs["train"], *_held_out_sides(of_pairs, images)]
    joint = joint_embeddings(sides, ids, rng=rng)
    _check_differences(joint, features)
    train = TrainingArrays(
        joint.images,
        joint.texts,
        np.concatenate([joint.images, joint.texts], axis=1),
        sides[0].features,
        sides[1].features,
        (joint.images * joint.texts).sum(axis=1),
    )
    return _result(reader, features, pairs, train, sides[2:], joint, n_cut_off)


def _of_pairs(
    pairs: pd.DataFrame, images: Mapping[str, Encoded], texts: Encoded
) -> dict[str, tuple[Encoded, Encoded]]:
    """Images and texts of the pairs of every split, row by row."""
    image_rows = pairs["image_row"].to_numpy(np.int64)
    rows = {split: np.flatnonzero(pairs["split"] == split) for split in images}
    return {s: (images[s].take(image_rows[rows[s]]), texts.take(rows[s])) for s in images}


def _held_out_sides(
    of_pairs: Mapping[str, tuple[Encoded, Encoded]], images: Mapping[str, Encoded]
) -> list[Encoded]:
    """Images and texts of validation pairs, then of test, whose images have several texts each."""
    return [*of_pairs["validation"], images["test"], of_pairs["test"][1]]


def _result(
    reader: PairReader | RowReader,
    features: Features,
    pairs: pd.DataFrame,
    train: TrainingArrays,
    held_out: Sequence[Encoded],
    joint: JointEmbeddings,
    n_cut_off: int,
) -> EmbeddingResult:
    """All of it together; `held_out` are images and texts, of validation, then of test."""
    split, image_rows = pairs["split"], pairs["image_row"].to_numpy(np.int64)
    return EmbeddingResult(
        **train._asdict(),
        indices=pairs["position"].to_numpy(np.int64)[split == "train"],
        validation_image_features=held_out[0].features,
        validation_text_features=held_out[1].features,
        test_image_features=held_out[2].features,
        test_text_features=held_out[3].features,
        test_caption_image=image_rows[split == "test"],
        test_image_embeddings=joint.test_images,
        test_text_embeddings=joint.test_texts,
        pairs=pairs,
        skipped=reader.skipped(),
        encoder=features.name,
        account=reader.account().sentence(),
        notes="\n".join(reader.source.notes),
        source="; ".join(filter(None, [reader.source.description, reader.left_out()])),
        validation_image_embeddings=joint.validation_images,
        validation_text_embeddings=joint.validation_texts,
        max_tokens=features.max_tokens,
        n_cut_off=n_cut_off,
    )


def _tell(reader: PairReader | RowReader, features: Features, pairs: pd.DataFrame) -> int:
    """Log how much of the source and of its captions was read; the number of captions cut off."""
    for told in filter(None, (reader.left_out(), reader.account().sentence())):
        logger.info("%s", told)
    if hint := reader.id_hint():
        logger.warning("%s", hint)
    skipped = reader.skipped()["reason"]
    if len(skipped) > MANY_SKIPPED * (len(pairs) + len(skipped)):
        logger.warning("%s", skipped_sentence(skipped))
    n_cut_off = count_cut_off(features, pairs["caption"].tolist())
    if n_cut_off:
        told = cut_off_sentence(features.name, features.max_tokens, n_cut_off, len(pairs))
        logger.warning("%s", told)
    return n_cut_off


def skipped_sentence(reasons: pd.Series) -> str:
    """Why captions were skipped, the most frequent reason first."""
    counts = reasons.value_counts(sort=False).sort_values(ascending=False, kind="stable")
    told = ", ".join(f"{n:,} {reason}" for reason, n in counts.items())
    return f"Many captions were skipped: {told}; stage1/skipped.csv tells of each"


def cut_off_sentence(encoder: str, max_tokens: int | None, n_cut_off: int, n_captions: int) -> str:
    """How many captions are longer than what an encoder reads of them; empty where none is."""
    if not n_cut_off:
        return ""
    verbs = "is longer and was" if n_cut_off == 1 else "are longer and were"
    return (
        f"--encoder_model {encoder} reads {max_tokens} tokens: {n_cut_off:,} of {n_captions:,} "
        f"captions {verbs} cut off"
    )


def _encode(
    reader: PairReader, features: Features, config: EmbeddingConfig
) -> tuple[pd.DataFrame, dict[str, Encoded], Encoded]:
    """The pairs of all splits, the usable images by split and row, and the pairs' texts.

    Raises:
        InputError: a value is not finite.
    """
    started = time.perf_counter()
    images = _encode_images(reader, features, config)
    pairs = reader.pairs()
    texts = features.all_text_features(
        pairs["caption"].tolist(),
        pairs["position"].to_numpy(np.int64),
        config.encoder_batch_size,
    )
    _check_finite(texts, features, config)
    n_images = sum(len(encoded.features) for encoded in images.values())
    _tell_speed(features.name, n_images, len(pairs), started)
    return pairs, images, texts


def _tell_speed(name: str, n_images: int, n_captions: int, started: float) -> None:
    """Log what was encoded; of a test image every caption is, so that pairs are no measure."""
    seconds = time.perf_counter() - started
    logger.info(
        "%s: %s images and %s captions in %.1f s, %.1f images a second",
        *(name, f"{n_images:,}", f"{n_captions:,}", seconds, n_images / seconds),
    )


def _encode_images(
    reader: PairReader, features: Features, config: EmbeddingConfig
) -> dict[str, Encoded]:
    """Every usable image of each split, by its row in the split."""
    total = reader.n_all_expected()
    size = features.batch_size(config.encoder_batch_size)
    encoded = {}
    with tqdm(total=total, desc="images", unit="image", disable=None) as progress:
        for split in READ_ORDER:
            batches = []
            with closing(reader.images(split)) as images:  # type: ignore[type-var]
                pixels = (image.pixels for image in images)
                for batch in features.image_batches(pixels, size):
                    batches.append(batch)
                    progress.update(len(batch.features))
            encoded[split] = join(batches)
            _check_finite(encoded[split], features, config)
    return encoded


def _check_finite(encoded: Encoded, features: Features, config: EmbeddingConfig) -> None:
    if not all(np.isfinite(part).all() for part in encoded if part is not None):
        raise InputError(
            f"--precision {config.precision}: {features.name} gives values that are not finite; "
            "use --precision fp32, and another --encoder_model if that does not help"
        )


def _check_differences(joint: JointEmbeddings, features: Features) -> None:
    """Raise an InputError where all training images, or all captions, are embedded alike."""
    for what, rows, flag in (
        ("images", joint.images, "--image_column"),
        ("captions", joint.texts, "--caption_column"),
    ):
        if len(rows) > 1 and _are_alike(rows):
            raise InputError(
                f"all {len(rows):,} training {what} have the same embedding, and nothing can be "
                f"learnt from them; check {flag}, and the encoder ({features.name})"
            )


def _are_alike(rows: Float32[np.ndarray, "n d"]) -> bool:
    """Whether all rows are one, up to rounding; looks at no more of them than it has to."""
    starts = range(0, len(rows), ROWS_AT_ONCE)
    blocks = (np.abs(rows[start : start + ROWS_AT_ONCE] - rows[0]).max() for start in starts)
    return all(difference < SAME_ROW for difference in blocks)

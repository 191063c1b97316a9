"""What a run would do, before it does it: a few pairs, counts, expected times and disk space.

A sample is read and encoded as the run would do it; `costs` times a few training steps and `sizes`
counts the rest.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image

from artifacts.provenance import EMBEDDING, Mode
from artifacts.settings import AUTO
from baselines import BASELINES
from cli.auto import OpenData, resolve_auto
from cli.config import Config
from cli.costs import STAGES, Speed, expected_seconds, keep_curve_trainings, measure_speed
from cli.run import Run
from cli.sizes import (
    ImageFile,
    Sample,
    Sizes,
    SplitCount,
    Widths,
    expected_bytes,
    n_trained,
    reference_steps,
)
from data import PairReader
from embedding import READ_ORDER, cut_off_sentence
from encoders.base import Encoded, Features, count_cut_off
from sources.base import NO_LIMIT, SPLITS, DataConfig, PairSource, UnusableImage
from sources.images import decode_pixels
from train_eval import COMPARISONS

logger = logging.getLogger(__name__)
SAMPLE_LIMITS = {"train": 64, "validation": 8, "test": 8}
IMAGES_AT_ONCE = 16  # so that reading and encoding overlap in a small sample as they do in a run
N_SHOWN_PAIRS = 5
N_SHOWN_SKIPPED = 3
MAX_SHOWN_KEY = 32
N_PHOTOGRAPHS = 8  # whose size is looked up where embeddings stand for images


def preview(run: Run) -> str:
    """What the run would read, take and write, as text for a terminal. Nothing is written.

    Args:
        run: its output folder need not exist.

    Raises:
        InputError: the data set or the encoder cannot be had, or a split has no usable pair.
    """
    config = run.config
    data = open_data(run)
    sample = read_sample(data, config)
    counts = count_splits(data.source, sample, config.data)
    sizes = sizes_of(counts)
    speed = measure_speed(sample, sizes, config.training, run.device)
    seconds = expected_seconds(config, sizes, speed)
    needed = expected_bytes(config, sizes, sample)
    columns = shutil.get_terminal_size().columns
    parts = [
        _origin_lines(data),
        _note_lines(data.source, columns),
        [*_counts_lines(counts), *_account_lines(data.source, sample, counts)],
        [_cut(line, columns) for line in _skipped_lines(sample)],
        _cut_off_lines(data.encoder, sample),
        [_cut(line, columns) for line in _pair_lines(sample)],
        _share_lines(config),
        _time_lines(config, sizes, speed, seconds),
        _disk_lines(needed, Path(config.run.output_dir)),
        ["Nothing was written."],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


# --- Reading --------------------------------------------------------------------------------------


def open_data(run: Run) -> OpenData:
    """The data set and the encoder that stage 1 would take, with its warnings.

    Raises:
        InputError: one of them cannot be had.
    """
    mode = run.mode(EMBEDDING)
    return resolve_auto(run, Mode.REUSE if mode is Mode.LOAD else mode).opened(run)


def sample_config(config: DataConfig) -> DataConfig:
    """The same data, a few of each split."""
    few = {split: min(limit, SAMPLE_LIMITS[split]) for split, limit in config.limits().items()}
    return replace(
        config,
        max_train_samples=few["train"],
        max_val_samples=few["validation"],
        max_test_samples=few["test"],
    )


def read_sample(data: OpenData, config: Config) -> Sample:
    """Read and encode a few pairs; held-out ones first and untimed, to warm up.

    Raises:
        InputError: a split has no usable pair.
    """
    small = sample_config(config.data)
    files: dict[str, ImageFile] = {}
    preprocess = data.encoder.preprocess
    decode = data.decode if preprocess is None else _noting_files(preprocess, small, files)
    reader = PairReader(data.source, small, decode=decode)
    at_once = min(data.encoder.batch_size(config.embedding.encoder_batch_size).now, IMAGES_AT_ONCE)
    for split in READ_ORDER[:-1]:
        _encode_images(reader, split, data.encoder, at_once)
    started = time.perf_counter()
    n_images, images = _encode_images(reader, "train", data.encoder, at_once)
    image_seconds = time.perf_counter() - started

    pairs = reader.pairs()
    in_training = pairs["split"] == "train"
    _encode_captions(pairs[~in_training], data.encoder)
    started = time.perf_counter()
    texts = _encode_captions(pairs[in_training], data.encoder)
    caption_seconds = time.perf_counter() - started

    joint = None if images.projections is None else images.projections.shape[1]
    return Sample(
        limits=small.limits(),
        pairs=pairs,
        skipped=reader.skipped(),
        account=reader.account(),
        files=files,
        image_bytes=_mean_image_bytes(files, data.source, pairs["key"].unique()),
        widths=Widths(images.features.shape[1], texts.features.shape[1], joint),
        images_per_second=n_images / image_seconds,
        captions_per_second=int(in_training.sum()) / caption_seconds,
        n_cut_off=count_cut_off(data.encoder, pairs["caption"].tolist()),
    )


def _noting_files(
    preprocess: Callable[[PIL.Image.Image], np.ndarray],
    config: DataConfig,
    files: dict[str, ImageFile],
) -> Callable[[bytes], np.ndarray]:
    """`decode_pixels` that also enters the sizes of what it decodes into `files`."""

    def decode(data: bytes) -> np.ndarray:
        sizes: list[tuple[int, int]] = []

        def noting_size(image: PIL.Image.Image) -> np.ndarray:
            sizes.append(image.size)
            return preprocess(image)

        pixels = decode_pixels(noting_size, config.max_image_pixels)(data)
        files[hashlib.sha256(data).hexdigest()] = ImageFile(len(data), *sizes[0])
        return pixels

    return decode


def _encode_images(
    reader: PairReader, split: str, encoder: Features, at_once: int
) -> tuple[int, Encoded]:
    """Read and encode a split; the number of images and the last batch of features."""
    n_images, images = 0, reader.images(split)
    while batch := list(islice(images, at_once)):
        encoded = encoder.encode_images(np.stack([image.pixels for image in batch]))
        n_images += len(batch)
    return n_images, encoded


def _encode_captions(pairs: pd.DataFrame, encoder: Features) -> Encoded:
    return encoder.text_features(pairs["caption"].tolist(), pairs["position"].to_numpy(np.int64))


def _mean_image_bytes(
    files: Mapping[str, ImageFile], source: PairSource, keys: Sequence[str] | np.ndarray
) -> float | None:
    """Mean size of the image files; looked up in the source where none was read."""
    sizes = [file.n_bytes for file in files.values()]
    for key in [] if sizes else keys[:N_PHOTOGRAPHS]:
        try:
            sizes.append(len(source.read_image(key)))
        except (KeyError, OSError, UnusableImage) as error:
            logger.debug("no photograph %s: %s", key, error)
    return float(np.mean(sizes)) if sizes else None


def count_splits(source: PairSource, sample: Sample, config: DataConfig) -> dict[str, SplitCount]:
    """What there is of every split, and what of it the run takes."""
    counts: dict[str, SplitCount] = {}
    is_exact = True
    for split in READ_ORDER:
        limit, kept = config.limits()[split], sample.n_kept(split)
        images, captions = source.n_images(split), None
        if images is not None:  # then it can be gone through twice
            captions = sum(len(record.captions) for record in source.records(split))
        # An image in an earlier split is skipped, so that what is exact begins with the first.
        is_exact = is_exact and (kept < sample.limits[split] or sample.limits[split] == limit)
        available = images if split == "test" else captions
        is_open = not is_exact and available is None and limit == NO_LIMIT
        bounded = limit if available is None else min(limit, available)
        used = kept if is_exact or is_open else bounded
        n_captions = int((sample.pairs["split"] == split).sum())
        counts[split] = SplitCount(
            images, captions, limit, used, round(used * n_captions / kept), is_exact, is_open
        )
    return {split: counts[split] for split in SPLITS}


def sizes_of(counts: Mapping[str, SplitCount]) -> Sizes:
    """What the stages work on."""
    test = counts["test"]
    return Sizes(counts["train"].used, counts["validation"].used, test.used, test.used_captions)


# --- Text -----------------------------------------------------------------------------------------


def _origin_lines(data: OpenData) -> list[str]:
    """Where the pairs come from, what held-out ones do, and what embeds them."""
    pool, *others = data.source.origins
    held_out = [f"Held out  {origin}" for origin in others]
    return [f"Data set  {pool}", *held_out, f"Encoder   {data.encoder.name}"]


def _counts_lines(counts: Mapping[str, SplitCount]) -> list[str]:
    rows = [("Split", "images", "captions", "limit", "used")]
    for split, c in counts.items():
        limit = "all" if c.limit == NO_LIMIT else f"{c.limit:,}"
        limit += f" {'images' if split == 'test' else 'pairs'}"
        bound = "at least " if c.is_open else "" if c.is_exact else "at most "
        used = f"{bound}{c.used:,}"
        rows.append((split, _known(c.images), _known(c.captions), limit, used))
    return _table(rows)


def _note_lines(source: PairSource, width: int) -> list[str]:
    """What was chosen, bridged and ignored to read the source."""
    notes = [textwrap.wrap(_printable(note), max(20, width - 10)) for note in source.notes]
    lines = [line for note in notes for line in (note[0], *(f"  {more}" for more in note[1:]))]
    return [f"{'Reading' if i == 0 else '':<9} {line}" for i, line in enumerate(lines)]


def _account_lines(
    source: PairSource, sample: Sample, counts: Mapping[str, SplitCount]
) -> list[str]:
    """How many captions of the source the run reads, to use or to skip them, and how many not."""
    if all(count.is_exact for count in counts.values()) and sample.account is not None:
        return [f"In all    {sample.account.sentence()}"]
    total, read, about = source.n_all_captions(), 0, ""
    if total is None:
        line = "In all    an unknown number of captions, read as far as the limits allow"
        is_open = any(count.is_open for count in counts.values())
        return [f"{line}; expected times and sizes leave out what is not counted" * is_open or line]
    for split, count in counts.items():
        there = source.n_captions(split)
        assert there is not None, "it is in the total"
        assert count.images is not None, "captions are counted by image"
        captions = count.images if split == "validation" else there  # one an image
        share = min(1.0, count.limit / max(1, there if split == "train" else count.images))
        read += round(share * captions)
        about = "about " if share < 1 else about
    line = f"In all    {total:,} captions: {about}{read:,} are read, to be used or skipped, "
    line += f"{about}{total - read:,} are not"
    return ["; not counted: ".join([line, *map(_printable, source.unread)])]


def _known(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _skipped_lines(sample: Sample) -> list[str]:
    """Counts by reason, then a few examples, of different reasons first."""
    skipped = sample.skipped
    heading = f"Sample    {len(sample.pairs):,} pairs read, {len(skipped):,} skipped"
    if skipped.empty:
        return [heading]
    counts = [(f"  {n:,}", str(reason)) for reason, n in skipped["reason"].value_counts().items()]
    repeated = skipped["reason"].duplicated()
    examples = pd.concat([skipped[~repeated], skipped[repeated]])[:N_SHOWN_SKIPPED]
    keys = dict(zip(sample.pairs["position"], sample.pairs["key"], strict=True))
    named = [
        (f"  {_end(_printable(key))}", reason, _detail(detail, keys.get(first)))
        for key, reason, detail, first in zip(
            *(examples[name] for name in ("key", "reason", "detail", "duplicate_of")), strict=True
        )
    ]
    return [heading, *_table(counts, left=True), "such as", *_table(named, left=True)]


def _cut_off_lines(encoder: Features, sample: Sample) -> list[str]:
    """How many captions of the sample are longer than the encoder reads."""
    sentence = cut_off_sentence(
        encoder.name, encoder.max_tokens, sample.n_cut_off, len(sample.pairs)
    )
    return [f"Cut off   {sentence}"] if sentence else []


def _detail(detail: str, first_key: str | None) -> str:
    """What is wrong with a pair, with the key of the one that stayed in its place."""
    same = f": {_end(_printable(first_key))}" if first_key is not None else ""
    return _printable(detail) + same


def _pair_lines(sample: Sample) -> list[str]:
    """A few training pairs: key, picture, file, caption."""
    pairs = sample.pairs[sample.pairs["split"] == "train"][:N_SHOWN_PAIRS]
    rows = []
    for key, sha256, caption in zip(
        pairs["key"], pairs["image_sha256"], pairs["caption"], strict=True
    ):
        file = sample.files.get(sha256)
        picture = f"{file.width} x {file.height}" if file else ""
        size = _bytes(file.n_bytes) if file else ""
        rows.append((f"  {_end(_printable(key))}", picture, size, _printable(caption)))
    return ["Pairs", *_table(rows, left=True)]


def _share_lines(config: Config) -> list[str]:
    """What is reckoned with where the run is to find the share kept."""
    if config.curation.target_size_ratio != AUTO:
        return []
    return [
        f"Kept      {config.curation.share:.0%} is reckoned with in times and bytes; "
        "--target_size_ratio auto finds the share in the run"
    ]


def _time_lines(
    config: Config, sizes: Sizes, speed: Speed, seconds: Mapping[str, float]
) -> list[str]:
    work = _work(config, sizes)
    skipped = {name for name, number in STAGES if number in config.execution.skip_stage}
    rows = [
        (f"  {name}", "skipped" if name in skipped else _duration(s), work.get(name, ""))
        for name, s in seconds.items()
        if s > 0 or name in skipped
    ]
    rows.append(("  in all", _duration(sum(seconds.values())), ""))
    if config.execution.load_saved:
        rows.append(("", "", "less where --load_saved finds what is current"))
    return [
        f"Speed     {speed.images_per_second:,.1f} images and {speed.captions_per_second:,.0f} "
        f"captions a second; {1000 * speed.step_seconds:.2g} ms a training step, "
        f"{1000 * speed.shared_step_seconds:.2g} ms side by side",
        "",
        "Expected time",
        *_table(rows, left=True),
    ]


def _work(config: Config, sizes: Sizes) -> dict[str, str]:
    """What each stage does, in a few words."""
    n_images = sizes.train + sizes.validation + sizes.test_images
    n_captions = sizes.train + sizes.validation + sizes.test_captions
    n_models, n_steps = config.influence.influence_seeds, reference_steps(config, sizes)
    n_short, short_steps = keep_curve_trainings(config, sizes)
    repeats, methods = config.pair_influence.held_out_repeats, len(config.evaluation.methods)
    return {
        "embedding": f"{n_images:,} images, {n_captions:,} captions",
        "clustering": f"{config.clustering.n_clusters_of(sizes.train):,} clusters",
        "cluster influence": f"{n_models} reference models of up to {n_steps:,} steps, "
        f"{config.influence.estimator}",
        "pair influence": f"{2 * repeats} held-out models of up to "
        f"{min(n_steps, config.pair_influence.held_out_steps):,} steps, "
        f"rounds: {config.pair_influence.rounds}",
        "keep curve": f"{n_short} trainings of {short_steps:,} steps",
        "baselines": f"{len(set(BASELINES) & set(config.evaluation.methods))} subsets",
        "evaluation": f"{methods} methods x {config.evaluation.n_seeds} seeds x "
        f"{len(COMPARISONS)} comparisons: {n_trained(config)} trainings",
        "export": f"{', '.join(config.export.export)}, at most",
    }


def _disk_lines(needed: Mapping[str, int | None], output_dir: Path) -> list[str]:
    rows = [(f"  {n}", "unknown" if b is None else _bytes(b)) for n, b in needed.items()]
    in_all, free = sum(b for b in needed.values() if b is not None), free_bytes(output_dir)
    rows += [("  in all", _bytes(in_all)), ("  free there", _bytes(free))]
    if in_all > free:
        rows.append(("  TOO LITTLE BY", _bytes(in_all - free)))
    return ["Expected disk space", *_table(rows)]


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or would be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def _table(rows: Sequence[Sequence[str]], left: bool = False) -> list[str]:
    """Aligned columns: the first left, the others right unless `left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if left or i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _printable(text: str) -> str:
    """On one line, without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def _end(key: str) -> str:
    """The end of a long key, which tells more than its beginning."""
    return key if len(key) <= MAX_SHOWN_KEY else "…" + key[1 - MAX_SHOWN_KEY :]


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 99.5:
        return f"{minutes:.1f} min" if minutes < 9.95 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def _bytes(count: int) -> str:
    """With two or three digits that count."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 9.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

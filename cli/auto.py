"""What stage 1 reads once it is known what `auto` means, and which saved results are replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Image

from artifacts.cores import n_cores
from artifacts.provenance import (
    CURATION,
    EMBEDDING,
    INFLUENCE_VALIDATION,
    STAGES,
    Mode,
    Provenance,
    StaleError,
    changed_settings,
)
from cli.config import Config
from cli.run import Run
from data import SYNTHETIC_WARNING, PairReader
from embedding import EmbeddingResult, embed_in_shards, embed_pairs, embed_rows
from encoders.base import (
    DEFAULT_MODEL,
    EMBEDDED_WARNING,
    Encoder,
    Features,
    GivenEmbeddings,
    resolve_dtype,
    slow_precision,
)
from encoders.pretrained import load_encoder
from engine.base import Setup
from engine.room import StageRoom
from intake.images import ShardReader
from intake.rows import look_at_rows
from intake.setup import Reading, ReadingJob, open_reading, processes_for
from sources.base import DataConfig, PairSource
from sources.embeddings import EmbeddingFiles, open_embeddings
from sources.images import SmallCopies, decode_pixels
from sources.row_reader import RowReader

logger = logging.getLogger(__name__)
MEANT_BY_AUTO = {
    "dataset": ("coco", "synthetic"),
    "encoder_model": (DEFAULT_MODEL, "embedded"),
}


def warn_of_unheeded(config: Config) -> None:
    """Say which flags make no difference in this run."""
    for text in config.unheeded():
        logger.warning(text)


def warn_of_replacing(run: Run) -> None:
    """Say which results of other settings this run is about to replace, and where.

    With `--load_saved` every stage that is not current says so itself.
    """
    config = run.config
    replaced: dict[str, None] = {}
    changes: dict[str, None] = {}
    if config.execution.load_saved:
        return
    validates = config.influence_validation.validate_influence > 0
    for stage in STAGES:
        if stage.number in config.execution.skip_stage or (
            stage is INFLUENCE_VALIDATION and not validates
        ):
            continue
        try:
            manifest = run.store.manifest(stage)
        except StaleError:
            continue
        replaced[stage.folder] = None
        settings = {EMBEDDING: config.data, CURATION: config.curation}.get(stage)
        left_out = settings.left_out_defaults() if settings else {}
        saved = {**left_out, **manifest["settings"]}
        found = changed_settings(saved, _settings_now(run, saved))
        found += changed_settings({"seed": manifest.get("seed")}, {"seed": config.run.seed})
        changes |= dict.fromkeys(found)
    if changes:
        logger.warning(
            "%s holds the results of another run, made with %s; this run replaces %s; to keep "
            "them choose another --output_dir",
            *(run.store.root, ", ".join(changes), ", ".join(replaced)),
        )


def _settings_now(run: Run, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of this run; `auto` is what it was when it was saved, where it can be that."""
    now = run.config.flat() | {"overrides": None} | run.overrides.settings()
    now["precision"] = str(resolve_dtype(run.config.embedding.precision, run.device))
    for name, meant in MEANT_BY_AUTO.items():
        is_given = saved.get("embeddings_dir") is not None  # which then stands for both
        if now[name] == "auto" and (saved.get(name) in meant or is_given):
            now[name] = saved.get(name)
    return now


@dataclass(frozen=True)
class StageOneData:
    """What stage 1 reads and by what it embeds, once it is known what `auto` means."""

    dataset: str
    encoder_model: str
    fingerprint: str  # of the data set
    source: PairSource | None = None  # None where saved results are loaded, unread
    given: EmbeddingFiles | None = None  # embeddings that exist already
    encoder: Encoder | None = None  # where it had to be loaded to know its name

    def provenance(self, run: Run) -> Provenance:
        """What the embedding depends on."""
        config = run.config
        settings = {
            **config.data.fingerprint_settings(),
            **config.embedding.fingerprint_settings(),
            "dataset": self.dataset,
            "encoder_model": self.encoder_model,
            "precision": str(resolve_dtype(config.embedding.precision, run.device)),
        }
        inputs = {"data set": self.fingerprint}
        left_out = config.data.left_out_defaults() | config.embedding.left_out_defaults()
        return Provenance(config.run.seed, settings, inputs, left_out)

    def embed(
        self,
        run: Run,
        room: StageRoom,
        watch: SmallCopies,
        *,
        rng: np.random.Generator,
    ) -> EmbeddingResult:
        """Every pair read and embedded.

        Args:
            run: its settings.
            room: where what is much is worked on.
            watch: is shown every image that is decoded, as long as it wants more.
            rng: the stage's generator.
        """
        config = run.config
        if self.given is not None:
            features = GivenEmbeddings(self.given.name, self.given.texts_at)
            rows = RowReader(self.given, config.data, partial(look_at_rows, room=room))
            return embed_rows(rows, features, rng=rng, room=room)
        source, encoder, decode = self._loaded(run, watch)
        processes = processes_for(encoder, config.embedding, config.data, watch)
        try:
            return self._embed(run, room, Reading(source, encoder, decode, processes), rng=rng)
        finally:
            if processes is not None:
                processes.close()

    def _embed(
        self, run: Run, room: StageRoom, reading: Reading, *, rng: np.random.Generator
    ) -> EmbeddingResult:
        """The same of images."""
        config, source, encoder = run.config, reading.source, reading.encoder
        if not source.can_go_back:
            decode, processes = reading.decode, reading.processes
            reader = PairReader(source, config.data, decode=decode, processes=processes)
            _tell_who_reads(config.data, reader.is_in_processes())
            return embed_pairs(reader, encoder, config.embedding, rng=rng)
        setup = Setup(
            open_reading,
            ReadingJob(
                replace(run.source_job(self.dataset), fingerprint=self.fingerprint),
                replace(config.embedding, encoder_model=self.encoder_model),
                str(run.device),
            ),
            on_gpu=run.device.type == "cuda",
        )
        run.engine.offer(setup, reading)
        size = config.embedding.encoder_batch_size
        shards = ShardReader(source, config.data, room, setup, size, reading.processes)
        _tell_who_reads(config.data, shards.is_in_processes())
        return embed_in_shards(shards, encoder, config.embedding, rng=rng, room=room, setup=setup)

    def opened(self, run: Run) -> OpenData:
        """The source and what it is embedded by, opened now where they are not yet."""
        if self.given is not None:
            features = GivenEmbeddings(self.given.name, self.given.texts_at)
            return OpenData(self.given.source, features, self.given.decode)
        source, encoder, decode = self._loaded(run, None)
        processes_for(encoder, run.config.embedding, run.config.data)  # whether they can be had
        return OpenData(source, encoder, decode)

    def _loaded(
        self, run: Run, watch: Callable[[bytes, Image], None] | None
    ) -> tuple[PairSource, Encoder, Callable[[bytes], np.ndarray]]:
        """The same of images; `watch` is shown every one that is decoded."""
        config = run.config
        chosen = replace(config.embedding, encoder_model=self.encoder_model)
        if warning := slow_precision(chosen.precision, run.device):
            logger.warning(warning)
        encoder = self.encoder or load_encoder(chosen, device=run.device)
        decode = decode_pixels(encoder.prepare, config.data.max_image_pixels, watch)
        return self.source or run.open_source(self.dataset), encoder, decode


def _tell_who_reads(config: DataConfig, are_processes: bool) -> None:
    """Say what the images are read by, and where that is more than the machine has cores for."""
    n = config.n_workers()
    if not n:
        logger.info("images are read by the thread that encodes them (--num_workers 0)")
        return
    noun = "process" if are_processes else "thread"
    plural = "" if n == 1 else "es" if are_processes else "s"
    logger.info("images are read by %s %s%s (--num_workers)", f"{n:,}", noun, plural)
    if are_processes and n > n_cores():
        logger.warning(
            "--num_workers %s: there are %s cores here, and every process takes memory; leave it "
            "out, and there is one a core",
            *(f"{n:,}", f"{n_cores():,}"),
        )


class OpenData(NamedTuple):
    """A data set, what embeds it and what makes the embedder's input of an image file."""

    source: PairSource
    encoder: Features
    decode: Callable[[bytes], np.ndarray]


def resolve_auto(run: Run, mode: Mode) -> StageOneData:
    """What stage 1 reads, opened unless its saved result is loaded.

    What `auto` meant when a result was saved, it still means.

    Raises:
        InputError: the data set or the encoder cannot be had.
    """
    config, earlier = run.config, _earlier_settings(run, mode)
    dataset, encoder_model = config.data.dataset, config.embedding.encoder_model
    if earlier:
        dataset = earlier["settings"]["dataset"] if dataset == "auto" else dataset
        if encoder_model == "auto":
            encoder_model = earlier["settings"]["encoder_model"]
    if mode is Mode.LOAD and earlier:
        data = StageOneData(dataset, encoder_model, earlier["inputs"]["data set"])
    elif config.data.embeddings_dir is not None:
        given = open_embeddings(config.data, rng=run.rng("data"))
        source = given.source
        data = StageOneData(source.name, given.name, source.fingerprint, source, given)
    else:
        source = run.open_source(dataset)
        data = StageOneData(source.name, encoder_model, source.fingerprint, source)
    if data.source is not None:
        for told in (data.source.description, *data.source.notes):
            logger.info("data set: %s", told)
    if data.encoder_model == "auto":
        encoder = load_encoder(config.embedding, device=run.device)
        data = replace(data, encoder=encoder, encoder_model=encoder.name)
    for asked, resolved, fallback, warning in (
        (config.data.dataset, data.dataset, "synthetic", SYNTHETIC_WARNING),
        (config.embedding.encoder_model, data.encoder_model, "embedded", EMBEDDED_WARNING),
    ):
        if asked == "auto" and resolved == fallback:
            run.warnings.append(warning)
            if earlier:
                logger.warning(warning)
    return data


def _earlier_settings(run: Run, mode: Mode) -> dict[str, Any]:
    """The manifest of a saved embedding that may be reused; empty where there is none."""
    if mode is Mode.RUN:
        return {}
    try:
        earlier = run.store.manifest(EMBEDDING)
    except StaleError:
        logger.debug("no earlier embedding")
        return {}
    if earlier["settings"].get("embeddings_dir") != run.config.data.embeddings_dir:
        return {}  # of other data: it says nothing about what `auto` means
    return earlier

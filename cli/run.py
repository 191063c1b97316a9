"""What every stage of a run shares: settings, store, device, seconds, and how a result is had."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int8
from safetensors.torch import save as to_safetensors

from artifacts.provenance import (
    CLUSTERING,
    CURATION,
    EMBEDDING,
    INFLUENCE,
    PAIR_INFLUENCE,
    PAIR_MAP,
    PHOTOGRAPHS,
    TRUST,
    MissingError,
    Mode,
    Provenance,
    Saved,
    Stage,
    StaleError,
    hardware,
    package_versions,
    stage_mode,
    stage_rng,
)
from artifacts.settings import InputError, Settings
from artifacts.store import Checkpoints, Store
from cli.config import Config
from cli.overrides import Overrides
from engine.base import Engine
from engine.local import LocalEngine
from engine.room import StageRoom
from intake.setup import SourceJob, open_again
from learner.model import Parameters
from sources.base import PairSource

logger = logging.getLogger(__name__)
T = TypeVar("T")  # a stage's result
Keep = Callable[[str, Parameters], None]  # is handed every trained model


@dataclass
class Run:
    """What every stage shares."""

    config: Config
    store: Store
    device: torch.device
    overrides: Overrides = field(default_factory=Overrides)
    engine: Engine = field(default_factory=LocalEngine)  # does what can be done side by side
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    # Small copies of the images that stage 1 has read, by the SHA-256 of their files.
    small_copies: dict[str, bytes] = field(default_factory=dict)
    asked: Config | None = None  # the settings as given, where the run has found one since

    def rng(self, name: str) -> np.random.Generator:
        """A stage's own generator."""
        return stage_rng(self.config.run.seed, name)

    def mode(self, stage: Stage, needed_later: bool = True) -> Mode:
        """How a stage is to be had; what the report makes of stage 1 is reused along with that."""
        config = self.config.execution
        is_of_stage_1 = stage in (PAIR_MAP, PHOTOGRAPHS)
        return stage_mode(
            skipped=stage.number in config.skip_stage,
            needed_later=needed_later,
            load_saved=config.load_saved
            or (is_of_stage_1 and EMBEDDING.number in config.skip_stage),
        )

    def check_skipped(self) -> None:
        """Check, before any work, that stages that are skipped but needed were ever saved.

        Whether what is saved is current shows when it is loaded.

        Raises:
            InputError: one was not.
        """
        config = self.config
        needed = {
            **dict.fromkeys((EMBEDDING, CLUSTERING), True),
            **dict.fromkeys((TRUST, INFLUENCE), config.needs_influence()),
            PAIR_INFLUENCE: config.needs_pair_influence(),
            CURATION: config.needs_curation(),
        }
        for stage, is_needed in needed.items():
            if self.mode(stage, is_needed) is Mode.LOAD:
                try:
                    self.store.manifest(stage)
                except MissingError as error:
                    raise self.store.cannot_skip(stage, error) from error
                except StaleError:
                    logger.debug("%s cannot be loaded", stage.name)

    def stage(
        self,
        stage: Stage,
        result_type: type[T],
        *settings: Settings | Mapping[str, Any],
        after: Sequence[Saved[Any]],
        compute: Callable[[np.random.Generator], T],
        needed_later: bool = True,
    ) -> Saved[T]:
        """A stage's result, computed by its own generator, reused or loaded.

        Args:
            stage: which one.
            result_type: its dataclass.
            settings: those that its result follows from.
            after: the stages' results that it follows from.
            compute: makes the result where it is not had otherwise.
            needed_later: whether a stage that is skipped is loaded. One that is saved is loaded all
                the same where the report can show it.
        """
        return self.shared_stage(
            stage,
            result_type,
            *settings,
            after=after,
            compute=lambda rng, _: compute(rng),
            needed_later=needed_later,
        )

    def shared_stage(
        self,
        stage: Stage,
        result_type: type[T],
        *settings: Settings | Mapping[str, Any],
        after: Sequence[Saved[Any]],
        compute: Callable[[np.random.Generator, StageRoom], T],
        needed_later: bool = True,
    ) -> Saved[T]:
        """The same for a stage whose work is shared out to the engine's workers."""
        provenance, mode = self.provenance(*settings, after=after), self.mode(stage, needed_later)
        is_shown = not self.config.report.no_report
        if mode is Mode.OMIT and is_shown and self.store.is_current(stage, provenance):
            mode = Mode.LOAD
        made = partial(compute, self.rng(stage.name), self.room(stage, provenance))
        return self.have(stage, result_type, provenance, made, mode)

    def provenance(
        self, *settings: Settings | Mapping[str, Any], after: Sequence[Saved[Any]]
    ) -> Provenance:
        """What a result depends on: the seed, settings, and results by their names."""
        merged, left_out = dict[str, Any](), dict[str, Any]()
        for some in settings:
            merged |= some.fingerprint_settings() if isinstance(some, Settings) else some
            left_out |= some.left_out_defaults() if isinstance(some, Settings) else {}
        inputs = {saved.name: saved.fingerprint for saved in after}
        return Provenance(self.config.run.seed, merged, inputs, left_out)

    def reviewed(self, ids: Sequence[str]) -> Int8[np.ndarray, " n"] | None:
        """What a reviewer says of the training pairs of these ids; None where nothing.

        Decisions on other pairs are counted in a warning.
        """
        if warning := self.overrides.strangers(ids):
            logger.warning(warning)
            self.warnings.append(warning)
        return self.overrides.of(ids)

    def have(
        self,
        stage: Stage,
        result_type: type[T],
        provenance: Provenance,
        compute: Callable[[], T],
        mode: Mode,
    ) -> Saved[T]:
        """The same where what the result depends on is no result of a stage."""
        saved = self.store.stage(stage, mode, provenance, result_type, compute)
        self.room(stage, provenance).clear()
        self.seconds[stage.name] = saved.seconds
        return saved

    def room(self, stage: Stage, provenance: Provenance) -> StageRoom:
        """Where a stage has its shards worked on."""
        return StageRoom(self.engine, self.store, stage, provenance.fingerprint(stage))

    def training_stage(
        self,
        stage: Stage,
        result_type: type[T],
        *settings: Settings,
        after: Sequence[Saved[Any]],
        compute: Callable[[np.random.Generator, StageRoom, Keep | None], T],
    ) -> Saved[T]:
        """The same for a stage whose models are kept with `--save_checkpoints`."""
        provenance, mode = self.provenance(*settings, after=after), self.mode(stage)
        rng, keeps = self.rng(stage.name), self.config.execution.save_checkpoints
        checkpoints = Checkpoints(self.store, provenance.fingerprint(stage))
        if mode is Mode.REUSE and keeps and not checkpoints.complete():
            logger.warning("%s recomputed: its checkpoints are missing", stage.name)
            mode = Mode.RUN

        def keep(name: str, parameters: Parameters) -> None:
            tensors = {k: v.cpu().contiguous() for k, v in parameters._asdict().items()}
            checkpoints.write(name, to_safetensors(tensors))

        made = partial(compute, rng, self.room(stage, provenance), keep if keeps else None)
        saved = self.have(stage, result_type, provenance, made, mode)
        if keeps:
            checkpoints.finish()
        return saved

    def dataset(self) -> str:
        """The data set that stage 1 read, by its name."""
        return str(self.store.manifest(EMBEDDING)["settings"]["dataset"])

    def about(self, command: str, started: float) -> dict[str, Any]:
        """What `run.json` says of the run, so far; its settings repeat the run."""
        asked = self.asked or self.config
        return {
            "dataset": self.dataset(),
            "command": command,
            "seed": self.config.run.seed,
            "device": str(self.device),
            "hardware": hardware(),
            "packages": package_versions(),
            "warnings": self.warnings,
            "settings": asked.flat(),
            "changed_settings": asked.changed(),
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "total_seconds": round(time.perf_counter() - started, 1),
        }

    def open_source(self, dataset: str) -> PairSource:
        """The data set named, with the choices that the seed makes."""
        return open_again(self.source_job(dataset))

    def source_job(self, dataset: str) -> SourceJob:
        """How any process opens the data set named."""
        data = self.config.data
        is_given = data.embeddings_dir is not None
        return SourceJob(data if is_given else replace(data, dataset=dataset), self.config.run.seed)


def resolve_device(name: str) -> torch.device:
    """The device to run on.

    Raises:
        InputError: it is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        why = _why_no_cuda() if name == "cuda" else _why_no_mps()
        raise InputError(f"--device {name} is not available: {why}, or use --device auto")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """A device for people: a GPU by what it is called."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _why_no_cuda() -> str:
    """What is missing for a GPU, and what to do about it."""
    cuda, version = torch.version.cuda, torch.__version__
    if cuda is None and torch.version.hip is None:
        return (
            f"PyTorch {version} is built without CUDA; install a build with it "
            "(https://pytorch.org/get-started/locally)"
        )
    build, hidden = f"CUDA {cuda}" if cuda else "ROCm", os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if hidden is None else f", and CUDA_VISIBLE_DEVICES is {hidden!r}"
    return (
        f"PyTorch {version} is built for {build}, but finds no GPU or no driver that is new enough"
        f"{shown}; see what nvidia-smi says"
    )


def _why_no_mps() -> str:
    """What is missing for the GPU of a Mac, and what to do about it."""
    if not torch.backends.mps.is_built():
        return f"PyTorch {torch.__version__} is no build for a Mac with Apple silicon"
    return "PyTorch finds no such GPU; it needs Apple silicon and a macOS that is new enough"

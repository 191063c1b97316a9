"""What every stage of a run shares: settings, store, device, seconds, and how a result is had."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from artifacts.provenance import Mode, Provenance, Saved, Stage, stage_mode, stage_rng
from artifacts.store import Store
from cli.config import Config
from data import open_source
from sources.base import PairSource
from sources.embeddings import open_embeddings


@dataclass
class Run:
    """What every step shares."""

    config: Config
    store: Store
    device: torch.device
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def rng(self, name: str) -> np.random.Generator:
        """A step's own generator."""
        return stage_rng(self.config.run.seed, name)

    def mode(self, stage: Stage, needed_later: bool = True) -> Mode:
        """How a stage is to be had."""
        return stage_mode(
            skipped=stage.number in self.config.execution.skip_stage,
            needed_later=needed_later,
            load_saved=self.config.execution.load_saved,
        )

    def have(
        self,
        stage: Stage,
        result_type: type[Any],
        compute: Callable[[], Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        mode: Mode | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Saved:
        """A stage's result, computed, reused or loaded.

        `defaults` are those at which a setting is left out of `settings`.
        """
        provenance = Provenance(self.config.run.seed, settings, inputs, defaults or {})
        mode = self.mode(stage) if mode is None else mode
        saved = self.store.stage(stage, mode, provenance, result_type, compute)
        self.seconds[stage.name] = saved.seconds
        return saved

    def open_source(self, dataset: str) -> PairSource:
        """The data set named, with the choices that the seed makes."""
        if self.config.data.embeddings_dir is not None:
            return open_embeddings(self.config.data, rng=self.rng("data")).source
        return open_source(replace(self.config.data, dataset=dataset), rng=self.rng("data"))

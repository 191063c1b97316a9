"""Stages, their modes and what a result depends on: names, settings, fingerprints.

The fingerprint hashes the schema version, the stage and its version, the seed, the settings that
can change the result and the fingerprints of the stage's inputs: a change upstream makes what
follows stale. A stage is run, reused, loaded or left out; this is decided here and nowhere else.
"""

from __future__ import annotations

import enum
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

SCHEMA_VERSION = 7  # raise when what all stages save changes; for one stage see `Stage.version`
MANY_PAIRS = 20_000  # from here on some stages work with samples and groups
T = TypeVar("T")  # a stage's result
# What manifests call a number format, and what `--precision` does.
FLAG_WORDS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "transformers", "datasets", "pillow")


class Mode(enum.Enum):
    """What is done about a stage."""

    RUN = "run"  # compute
    REUSE = "reuse"  # load if saved with the current settings, else compute
    LOAD = "load"  # load; missing or stale is an error
    OMIT = "omit"  # neither


def stage_mode(*, skipped: bool, needed_later: bool, load_saved: bool) -> Mode:
    """The one place where `--skip_stage` and `--load_saved` are interpreted."""
    if skipped:
        return Mode.LOAD if needed_later else Mode.OMIT
    return Mode.REUSE if load_saved else Mode.RUN


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline with a saved result.

    `version` is raised when this stage's arithmetic changes: its saved results become stale, those
    before it stay.
    """

    name: str
    folder: str
    prefix: str = ""  # of its files' names, where stages share a folder
    manifest: str = "manifest.json"
    number: int | None = None  # as `--skip_stage` counts
    version: int = 0


EMBEDDING = Stage("embedding", "stage1", manifest="embedding_manifest.json", number=1, version=1)
CLUSTERING = Stage("clustering", "stage1", number=1, version=1)
TRUST = Stage("trust", "stage2", manifest="trust_manifest.json", number=2, version=1)
INFLUENCE = Stage("influence", "stage2", number=2, version=2)
PAIR_INFLUENCE = Stage(
    "pair_influence", "stage2", manifest="pair_influence_manifest.json", number=2, version=5
)
INFLUENCE_VALIDATION = Stage(
    "influence_validation", "stage2", manifest="influence_validation_manifest.json", number=2
)
KEEP_CURVE = Stage(
    *("keep curve", "stage3", "keep_curve_", "keep_curve_manifest.json"),
    number=3,
    version=1,
)
CURATION = Stage("curation", "stage3", number=3, version=3)
LEDGER = Stage("ledger", "stage3", manifest="ledger_manifest.json", number=3, version=3)
EVALUATION = Stage("evaluation", "evaluation")
PAIR_MAP = Stage("pair map", "report")
PHOTOGRAPHS = Stage("photographs", "report", manifest="photographs_manifest.json")
STAGES = (
    *(
        EMBEDDING,
        CLUSTERING,
        TRUST,
        INFLUENCE,
        PAIR_INFLUENCE,
        INFLUENCE_VALIDATION,
        KEEP_CURVE,
        CURATION,
        LEDGER,
    ),
    *(EVALUATION, PAIR_MAP, PHOTOGRAPHS),
)


def for_many(n_pairs: int) -> dict[str, int]:
    """What is added to the settings of stages whose arithmetic of many pairs is younger than them.

    Results of fewer pairs that were saved before stay current.
    """
    return {"for_many_pairs": 1} if n_pairs > MANY_PAIRS else {}


def baseline_stage(method: str) -> Stage:
    """One baseline's selection; the baselines share a folder and are reused one by one."""
    return Stage(method, "baselines", prefix=f"{method}_", manifest=f"{method}_manifest.json")


@dataclass(frozen=True)
class Provenance:
    """What a stage's result depends on."""

    seed: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]  # fingerprints by name
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of settings left out there

    def fingerprint(self, stage: Stage) -> str:
        """Hex digest that changes whenever the result could."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "stage": stage.name,
            "seed": self.seed,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
        }
        if stage.version != 0:  # results of stages that never had one stay current
            content["stage_version"] = stage.version
        return hashlib.sha256(json_bytes(content)).hexdigest()


@dataclass(frozen=True)
class Saved(Generic[T]):
    """A stage's result with its fingerprint and the seconds it took when it was computed."""

    name: str  # by which later stages name it among what they depend on
    found: T | None  # None where the stage was left out
    fingerprint: str
    seconds: float

    @property
    def value(self) -> T:
        """The result of a stage that was not left out."""
        assert self.found is not None, f"{self.name} was left out, and something needs it"
        return self.found


class StaleError(Exception):
    """A saved result that is missing, damaged or made with other settings; the text says which."""


class MissingError(StaleError):
    """Nothing is saved."""


class OtherProgramError(StaleError):
    """It was made by another version of the program, which no settings bring back."""


class OtherSettingsError(StaleError):
    """It was made with other settings or inputs."""


def list_changes(manifest: Mapping[str, Any], stage: Stage, provenance: Provenance) -> str:
    """What differs between a manifest and the current settings, in words."""
    changes = []
    if manifest.get("schema_version") != SCHEMA_VERSION:
        changes.append(f"schema version {manifest.get('schema_version')} (now {SCHEMA_VERSION})")
    saved_version = manifest.get("stage_version", 0)  # manifests of old have none
    if saved_version != stage.version:
        changes.append(f"stage version {saved_version} (now {stage.version})")
    if manifest.get("seed") != provenance.seed:
        changes.append(f"--seed {manifest.get('seed')} (now {provenance.seed})")
    changes += changed_settings(
        {**provenance.defaults, **manifest["settings"]},
        {**provenance.defaults, **provenance.settings},
    )
    inputs = manifest.get("inputs", {})
    changed = [n for n, value in provenance.inputs.items() if inputs.get(n) != value]
    if changed:
        changes.append(f"another {' and another '.join(changed)} as input")
    return ", ".join(changes) or "other settings"


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What differs between saved settings and current ones that both have, a phrase each."""
    current = json.loads(json_bytes(dict(current)))
    return [
        f"--{name} {_shown(saved[name])} (now {_shown(current[name])})"
        for name in sorted(saved.keys() & current.keys())  # others belong to what changed
        if saved[name] != current[name]
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return FLAG_WORDS.get(str(value), str(value))


def json_bytes(content: Any, indent: int | None = None) -> bytes:
    """JSON as it is written and hashed: finite numbers only."""
    text = json.dumps(content, indent=indent, sort_keys=indent is None, allow_nan=False)
    return text.encode("utf-8")


# --- The run ----------------------------------------------------------------------------------


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose arithmetic the results depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def hardware() -> dict[str, Any]:
    """The processor, its cores and the operating system."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu_cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def stage_rng(seed: int, name: str) -> np.random.Generator:
    """A stage's own generator, from the run's seed and its name: skipping one shifts no other."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))

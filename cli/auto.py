"""What `auto` means beside what is saved, and which saved results a run is about to replace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from artifacts.provenance import (
    EMBEDDING,
    INFLUENCE_VALIDATION,
    STAGES,
    StaleError,
    changed_settings,
)
from cli.run import Run
from encoders.base import DEFAULT_MODEL, resolve_dtype

logger = logging.getLogger(__name__)
MEANT_BY_AUTO = {
    "dataset": ("coco", "synthetic"),
    "encoder_model": (DEFAULT_MODEL, "embedded"),
}


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
        left_out = config.data.left_out_defaults() if stage is EMBEDDING else {}
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
    now = run.config.flat()
    now["precision"] = str(resolve_dtype(run.config.embedding.precision, run.device))
    for name, meant in MEANT_BY_AUTO.items():
        is_given = saved.get("embeddings_dir") is not None  # which then stands for both
        if now[name] == "auto" and (saved.get(name) in meant or is_given):
            now[name] = saved.get(name)
    return now

"""The run in another folder, to compare with: read, checked, and narrowed to what is compared.

The folder may be of an earlier program, whose ledger lacks columns, or of a run that was stopped;
what it holds is data like any other.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from artifacts.provenance import CURATION, EVALUATION, LEDGER, StaleError
from artifacts.settings import AUTO, InputError
from artifacts.store import Store
from baselines import INFLUENCESPACE

METRICS = "evaluation/method_metrics.json"
GIVE = "give the --output_dir of a run that has finished"
NEEDED = ("id", "split", "decision", "decision_reason")  # columns without which nothing is told
NUMBERS = ("value", "weight", "cluster")
READING_ERRORS = (  # of files that are damaged, or are no files of ours
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(NotImplementedError, RecursionError),
)


@dataclass(frozen=True)
class OtherRun:
    """What is compared of the run in another folder."""

    run: Mapping[str, Any]  # run.json
    metrics: Mapping[str, Any]  # comparison -> method -> metric -> mean, std
    ledger: pd.DataFrame


@dataclass(frozen=True)
class _SavedLedger:
    """Of what the ledger's stage has saved, what every version of it has."""

    ledger: pd.DataFrame


def check_comparable(compare: str | None, output_dir: str) -> None:
    """Check, before anything is computed, that a folder holds a run to compare with.

    Args:
        compare: `--compare`; None for no comparison.
        output_dir: where this run writes.

    Raises:
        InputError: it is this run's own folder, or holds no whole run.
    """
    if compare is None:
        return
    if _is_same_folder(compare, output_dir):
        raise InputError(
            f"--compare {compare} is the --output_dir of this run, which replaces what is in it; "
            "give this run another --output_dir, or compare with a copy of the folder"
        )
    read_other(compare)


def _is_same_folder(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of them is not there
        return Path(a).resolve() == Path(b).resolve()


def read_other(folder: str) -> OtherRun:
    """The run in a folder.

    Raises:
        InputError: the folder is missing, or what it holds is no whole run.
    """
    if not os.path.isdir(folder):
        missing = "is a file" if os.path.exists(folder) else "does not exist"
        raise InputError(f"--compare {folder} {missing}; {GIVE}")
    store = Store(Path(folder))
    try:
        run = _checked_run(_read_json(_file(folder, "run.json")))
        stages = (CURATION, LEDGER, *([EVALUATION] if _trained(run) else []))
        manifests = [f"{s.folder}/{s.manifest}" for s in stages]
        for name in (f"{LEDGER.folder}/ledger.parquet", *manifests):
            _file(folder, name)
        metrics = _checked_metrics(_read_json(_file(folder, METRICS))) if _trained(run) else {}
        unfinished = _unfinished(store, run)
        ledger = narrowed(store.read(LEDGER, _SavedLedger).ledger)
    except InputError:  # a file is missing; to Python it is a wrong value too
        raise
    except StaleError as error:
        raise InputError(_advised(folder, f"{error}")) from error
    except READING_ERRORS as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(_advised(folder, f"is damaged ({said})")) from error
    if unfinished:
        raise InputError(f"--compare {folder} holds no finished run: {unfinished}; {GIVE}")
    return OtherRun(run, metrics, ledger)


def _file(folder: str, name: str) -> Path:
    """A file of a finished run.

    Raises:
        InputError: it is not there.
    """
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"--compare {folder} holds no finished run: no {name}; {GIVE}")
    return path


def _trained(run: Mapping[str, Any]) -> bool:
    """Whether a run trained methods; with `--methods none` it ends with the curated set."""
    return bool(run["settings"].get("methods") != [])


def _advised(folder: str, found: str) -> str:
    return f"--compare {folder} {found}; run it again or leave --compare out"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise StaleError(f"has a damaged {path.name}") from error


def _checked_run(run: Any) -> dict[str, Any]:
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        raise StaleError("has a damaged run.json (without settings)")
    return cast(dict[str, Any], run)


def _checked_metrics(metrics: Any) -> dict[str, Any]:
    """The metrics, all of whose mean recalls are numbers."""
    try:
        cells = [c["mean_recall"] for methods in metrics.values() for c in methods.values()]
        is_whole = all(math.isfinite(c["mean"]) and math.isfinite(c["std"] or 0) for c in cells)
    except READING_ERRORS:
        is_whole = False
    if not is_whole:
        raise StaleError(f"has a damaged {METRICS} (without mean recalls)")
    return cast(dict[str, Any], metrics)


def _unfinished(store: Store, run: Mapping[str, Any]) -> str:
    """Why a folder's files are of several runs, as after one that was stopped; "" if of one."""
    settings: Mapping[str, Any] = run["settings"]
    curated, ledger = (store.manifest(stage) for stage in (CURATION, LEDGER))
    evaluated = store.manifest(EVALUATION) if _trained(run) else {"inputs": {}, "settings": {}}
    taken = {ledger["inputs"].get(CURATION.name), evaluated["inputs"].get(INFLUENCESPACE)}
    if taken - {None, curated["fingerprint"]}:
        return "its stage 3, ledger and evaluation are of different runs"
    for name, value in {**curated["settings"], **evaluated["settings"]}.items():
        # What was left to the run to find is saved as it was found.
        if name in settings and settings[name] not in (value, AUTO):
            return f"run.json and the saved stages differ in --{name}"
    return ""


def narrowed(ledger: pd.DataFrame) -> pd.DataFrame:
    """The columns that are compared; numbers that a ledger lacks are unknown.

    Raises:
        StaleError: it lacks a column without which nothing is told.
    """
    lacking = [name for name in NEEDED if name not in ledger.columns]
    if lacking:
        raise StaleError(f"has a ledger without {', '.join(lacking)}, of an earlier program")
    texts = {name: ledger[name].fillna("").astype(str) for name in NEEDED}
    numbers = {
        name: pd.to_numeric(ledger[name], errors="coerce").astype("Float64").astype(float)
        if name in ledger.columns
        else pd.Series(np.nan, index=ledger.index)
        for name in NUMBERS
    }
    return pd.DataFrame({**texts, **numbers})

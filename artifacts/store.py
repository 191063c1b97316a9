"""Everything on disk: the one place that writes.

A stage's result dataclass is its schema: an array field is one `.npy` (never pickled), a table
one `.parquet` or `.csv`, a field with a file name in its metadata one `.json`, the rest goes into
the stage's manifest. Large arrays are never held: they are written in pieces, or where they were
filled on disk already take their name, and are mapped into memory, read-only, when they are read.
A file is written under a temporary name and renamed when whole; the manifest, which holds every
file's hash, is written last, so a folder without one is unfinished. A field that was added later
has a default, which results saved before it load with.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import DTypeLike

from artifacts.arrays import Hashed, begin_array, file_of, hash_file, map_array
from artifacts.provenance import (
    EVALUATION,
    SCHEMA_VERSION,
    MissingError,
    Mode,
    OtherProgramError,
    OtherSettingsError,
    Provenance,
    Saved,
    Stage,
    StaleError,
    json_bytes,
    list_changes,
    package_versions,
)
from artifacts.scratch import HELD_BYTES
from artifacts.settings import InputError

logger = logging.getLogger(__name__)
ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # s3://, not C:/
PART = ".part"  # ends the name of an array that is being filled
MANIFEST_KEYS = {"fingerprint", "settings", "inputs", "values", "files", "seconds"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Store:
    """The output folder of a run."""

    root: Path

    @classmethod
    def at(cls, output_dir: str) -> Store:
        """The store in `output_dir`, to be looked at: nothing is made.

        Raises:
            InputError: it is a file, or an address.
        """
        if ADDRESS.match(output_dir):
            raise InputError(
                f"--output_dir {output_dir} is an address; name a folder on a disk, which all "
                "workers see"
            )
        root = Path(output_dir)
        if root.exists() and not root.is_dir():
            raise InputError(f"--output_dir {output_dir} is a file; name a folder")
        return cls(root)

    @classmethod
    def open(cls, output_dir: str) -> Store:
        """The store in `output_dir`, which is made if need be.

        Raises:
            InputError: it is a file or cannot be written to.
        """
        root = cls.at(output_dir).root
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".writable.{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"--output_dir {output_dir} cannot be written to ({error.strerror}); "
                "choose another folder"
            ) from error
        return cls(root)

    def path(self, relative: str) -> Path:
        """Where a file of this run lies; its folder is made."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_bytes(self, relative: str, data: bytes, *, lasting: bool = True) -> Path:
        """Write a whole file or nothing.

        Args:
            relative: its path in the output folder.
            data: what is in it.
            lasting: False for one of many that are easily made anew: it is not waited for until
                the disk has it.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        with self.writing(relative, lasting=lasting) as file:
            file.write(data)
        return self.root / relative

    @contextmanager
    def writing(self, relative: str, *, lasting: bool = True) -> Iterator[BinaryIO]:
        """A file to fill, which takes its name when it is whole and on the disk.

        On any error nothing of it remains; what had the name before stays. An `OSError` in the
        block is taken for one of writing.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        path = self.root / relative
        # On shared storage a process elsewhere may have the same number.
        temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if not isinstance(error, OSError):
                raise
            raise _not_written(path, error) from error

    def remove_files(self, folder: str, names: Iterable[str]) -> None:
        """Remove files of a folder, as far as they exist, and the subfolders that this empties.

        Raises:
            InputError: a name leads out of the folder, or a file cannot be removed.
        """
        root = (self.root / folder).resolve()
        for name in names:
            path = root / name
            if not path.parent.resolve().is_relative_to(root) or path.name in ("", ".."):
                raise InputError(f"--output_dir: {name} is not inside {root}; delete {root}")
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(
                    f"--output_dir: {path} cannot be removed ({error.strerror}); remove it"
                ) from error
            for parent in path.parents:
                if parent == root or not parent.is_dir() or any(parent.iterdir()):
                    break
                parent.rmdir()

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it, and those above it that this empties.

        What cannot be removed is in nobody's way and stays.
        """
        path = self.root / folder
        with suppress(OSError):
            shutil.rmtree(path)
            for parent in path.parents:
                if parent == self.root:
                    break
                parent.rmdir()

    def remove_temporary(self, folder: str) -> None:
        """Remove what a run that was killed left unfinished anywhere in a folder."""
        paths = (self.root / folder).rglob(".*.tmp")
        self.remove_files(folder, [str(p.relative_to(self.root / folder)) for p in paths])

    def write_text(self, relative: str, text: str) -> Path:
        """Write a whole UTF-8 file or nothing."""
        return self.write_bytes(relative, text.encode("utf-8"))

    def write_json(self, relative: str, content: Any) -> Path:
        """Write JSON that a person can read; NaN is refused."""
        return self.write_bytes(relative, json_bytes(content, indent=2) + b"\n")

    def write_npy(self, relative: str, array: np.ndarray) -> Path:
        """Write an array; object arrays are refused."""
        return self.write_bytes(relative, _npy_bytes(array))

    def write_figure(self, relative: str, figure: Figure) -> Path:
        """Write a figure as PNG; the same figure gives the same bytes."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return self.write_bytes(relative, buffer.getvalue())

    def log_path(self, log_file: str) -> Path:
        """Where the log goes: a relative path is inside the output folder."""
        return self.path(log_file)

    def stage(
        self,
        stage: Stage,
        mode: Mode,
        provenance: Provenance,
        result_type: type[Result],
        compute: Callable[[], Result],
    ) -> Saved[Result]:
        """The stage's result: computed, reused or loaded as `mode` says.

        Raises:
            InputError: the stage is skipped but its saved result is missing, stale or damaged.
        """
        fingerprint = provenance.fingerprint(stage)
        if mode is Mode.OMIT:
            logger.info("%-10s omitted: skipped, and nothing later needs it", stage.name)
            return Saved(stage.name, None, fingerprint, 0.0)
        if mode in (Mode.REUSE, Mode.LOAD):
            try:
                saved = self.load(stage, provenance, result_type)
            except StaleError as error:
                folder = self.root / stage.folder
                if mode is Mode.LOAD:
                    raise self.cannot_skip(stage, error) from error
                if isinstance(error, MissingError):
                    logger.info("%-10s not saved yet in %s, so it is computed", stage.name, folder)
                else:
                    logger.warning("%-10s recomputed: %s %s", stage.name, folder, error)
            else:
                logger.info("%-10s %s from %s", stage.name, mode.value, self.root / stage.folder)
                return saved
        started = time.perf_counter()
        value = compute()
        seconds = time.perf_counter() - started
        self.save(stage, provenance, value, seconds)
        logger.info("%-10s computed in %.1f s, saved in %s", stage.name, seconds, stage.folder)
        return Saved(stage.name, self._mapped(stage, value), fingerprint, seconds)

    def cannot_skip(self, stage: Stage, error: StaleError) -> InputError:
        """What is said of a stage that is skipped although it is needed and cannot be loaded."""
        repeat = isinstance(error, OtherSettingsError)
        return InputError(
            f"--skip_stage {stage.number}: {self.root / stage.folder} {error}; "
            + ("repeat the flags it was made with or " if repeat else "")
            + f"leave out --skip_stage {stage.number}"
        )

    def save(self, stage: Stage, provenance: Provenance, value: Any, seconds: float) -> None:
        """Write every field of a result, then the manifest that makes them valid."""
        manifest_name = f"{stage.folder}/{stage.manifest}"
        contents: dict[str, bytes] = {}
        large: dict[str, np.ndarray] = {}
        scalars: dict[str, Any] = {}
        for f in fields(value):
            content = getattr(value, f.name)
            name = _file_name(f, content)
            if name is None:
                scalars[f.name] = content
            elif is_large(content):
                large[stage.prefix + name] = content
            else:
                contents[stage.prefix + name] = _encode(name, content)
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "stage": stage.name,
            "stage_version": stage.version,
            "fingerprint": provenance.fingerprint(stage),
            "seed": provenance.seed,
            "settings": dict(provenance.settings),
            "inputs": dict(provenance.inputs),
            "values": scalars,
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                for name, data in contents.items()
            },
            "packages": package_versions(),
            "seconds": round(seconds, 3),
        }
        json_bytes(manifest)  # what JSON cannot hold is found before anything is replaced
        self._remove_outdated(stage, [*contents, *large])
        self.remove_temporary(stage.folder)
        self.path(manifest_name).unlink(missing_ok=True)
        for name, data in contents.items():
            self.write_bytes(f"{stage.folder}/{name}", data)
        written: dict[int, str] = {}
        for name, array in large.items():
            same = written.setdefault(id(array), name)
            if same == name:
                manifest["files"][name] = self._write_large(f"{stage.folder}/{name}", array)
            else:  # one array under two names lies on the disk once
                self._link(f"{stage.folder}/{same}", f"{stage.folder}/{name}")
                manifest["files"][name] = manifest["files"][same]
        self.write_bytes(manifest_name, json_bytes(manifest, indent=2) + b"\n")
        self.remove_parts(stage.folder)

    def allocate(
        self, stage: Stage, name: str, shape: tuple[int, ...], dtype: DTypeLike, key: str = ""
    ) -> np.ndarray:
        """An array for the field of this name of a stage's result, to be filled.

        A large one is a file that takes its name when the stage is saved. Of a run that was killed
        it is taken up as it was left.

        Args:
            stage: whose.
            name: of the field.
            shape: of the array.
            dtype: its type.
            key: what is filled in; a file of another key is not taken up.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize <= HELD_BYTES:
            return np.zeros(shape, dtype)
        path = self.part_path(stage, name, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return begin_array(path, shape, dtype)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise _not_written(path, error) from error

    def part_path(self, stage: Stage, name: str, key: str) -> Path:
        """Where an array lies while it is filled; see `allocate`."""
        return self.root / stage.folder / f".{stage.prefix}{name}.npy.{key[:16]}{PART}"

    def _write_large(self, relative: str, array: np.ndarray) -> dict[str, Any]:
        """Write an array piece by piece, or name the file that it was filled in; its entry."""
        path = self.root / relative
        filled = file_of(array)
        if filled is not None and filled.name.endswith(PART) and filled.parent == path.parent:
            cast(np.memmap, array).flush()
            try:
                os.replace(filled, path)
            except OSError as error:
                raise _not_written(path, error) from error
            return {"sha256": hash_file(path), "bytes": path.stat().st_size}
        with self.writing(relative) as file:
            hashed = Hashed(file)
            np.lib.format.write_array(hashed, array, allow_pickle=False)  # type: ignore[no-untyped-call]
        return hashed.entry()

    def _link(self, relative: str, other: str) -> None:
        """Give a file a second name; where the file system knows no such thing, a copy."""
        path, temporary = self.root / other, self.root / f"{other}.link.tmp"
        try:
            temporary.unlink(missing_ok=True)
            try:
                os.link(self.root / relative, temporary)
            except OSError:
                shutil.copyfile(self.root / relative, temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise _not_written(path, error) from error

    def remove_parts(self, folder: str) -> None:
        """Remove arrays of a folder that were begun and never named."""
        paths = (self.root / folder).glob(f".*{PART}")
        self.remove_files(folder, [path.name for path in paths])

    def _mapped(self, stage: Stage, value: Result) -> Result:
        """A result that was saved just now, its large arrays as they lie on the disk."""
        changes = {}
        for f in fields(cast(Any, value)):
            content = getattr(value, f.name)
            if is_large(content):
                name = stage.prefix + str(_file_name(f, content))
                changes[f.name] = map_array(self.root / stage.folder / name)
        return replace(cast(Any, value), **changes) if changes else value

    def _remove_outdated(self, stage: Stage, names: Iterable[str]) -> None:
        """Remove the files of a stage's saved result that are not among these names."""
        with suppress(StaleError):
            saved = self.manifest(stage)["files"]
            if isinstance(saved, dict):
                self.remove_files(stage.folder, sorted(saved.keys() - set(names)))

    def manifest(self, stage: Stage) -> dict[str, Any]:
        """A stage's manifest.

        Raises:
            StaleError: there is none, or it is damaged.
        """
        path = self.root / stage.folder / stage.manifest
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise MissingError("has no saved result") from None
        except (OSError, ValueError) as error:
            raise StaleError(f"has a damaged {stage.manifest} ({error})") from error
        is_whole = isinstance(manifest, dict) and manifest.keys() >= MANIFEST_KEYS
        if not is_whole or not isinstance(manifest["settings"], dict):
            raise StaleError(f"has a damaged {stage.manifest}")
        return cast(dict[str, Any], manifest)

    def load(
        self, stage: Stage, provenance: Provenance, result_type: type[Result]
    ) -> Saved[Result]:
        """Exactly what `save` was given; a field added since then has its default.

        Raises:
            StaleError: missing, made with other settings, or damaged.
        """
        manifest = self.manifest(stage)
        fingerprint = provenance.fingerprint(stage)
        if manifest.get("fingerprint") != fingerprint:
            versions = manifest.get("schema_version"), manifest.get("stage_version", 0)
            is_ours = versions == (SCHEMA_VERSION, stage.version)
            stale = OtherSettingsError if is_ours else OtherProgramError
            raise stale(f"was made with {list_changes(manifest, stage, provenance)}")
        value = self._read_result(stage, manifest, result_type)
        return Saved(stage.name, value, fingerprint, float(manifest["seconds"]))

    def is_current(self, stage: Stage, provenance: Provenance) -> bool:
        """Whether a result of these settings and inputs is saved."""
        try:
            return bool(self.manifest(stage)["fingerprint"] == provenance.fingerprint(stage))
        except StaleError:
            return False

    def read(self, stage: Stage, result_type: type[Result]) -> Result:
        """A stage's result as it was saved, whatever the settings were.

        A field added since then has its default.

        Raises:
            StaleError: missing or damaged.
        """
        return self._read_result(stage, self.manifest(stage), result_type)

    def _read_result(
        self, stage: Stage, manifest: Mapping[str, Any], result_type: type[Result]
    ) -> Result:
        values: dict[str, Any] = {}
        for f in fields(cast(Any, result_type)):
            if f.name in manifest["values"]:
                values[f.name] = manifest["values"][f.name]
                continue
            names = [
                name
                for name in (stage.prefix + n for n in _possible_names(f))
                if name in manifest["files"]
            ]
            if not names and _has_default(f):
                continue  # saved before the field existed
            if not names:
                raise StaleError(f"has no {f.name}")
            values[f.name] = self._read_checked(stage, names[0], manifest["files"][names[0]])
        return result_type(**values)

    def _read_checked(self, stage: Stage, name: str, expected: Mapping[str, Any]) -> Any:
        path = self.root / stage.folder / name
        try:
            if name.endswith(".npy") and path.stat().st_size > HELD_BYTES:
                if hash_file(path) != expected["sha256"]:
                    raise StaleError(f"has a damaged {name} (its hash is not the saved one)")
                return map_array(path)
            data = path.read_bytes()
        except OSError as error:
            raise StaleError(f"lacks {name} ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise StaleError(f"has a damaged {name} (its hash is not the saved one)")
        return _decode(name, data)


@dataclass(frozen=True)
class Checkpoints:
    """The trained models of one evaluation, as safetensors."""

    store: Store
    fingerprint: str  # of the evaluation
    folder: str = f"{EVALUATION.folder}/checkpoints"

    def write(self, name: str, data: bytes) -> None:
        """Write one model."""
        self.store.write_bytes(f"{self.folder}/{name}.safetensors", data)

    def finish(self) -> None:
        """Mark the models as complete."""
        self.store.write_json(f"{self.folder}/manifest.json", {"fingerprint": self.fingerprint})

    def complete(self) -> bool:
        """Whether all models of this very evaluation are there."""
        try:
            manifest = json.loads((self.store.root / self.folder / "manifest.json").read_bytes())
        except (OSError, ValueError):
            return False
        return bool(manifest == {"fingerprint": self.fingerprint})


# --- One file each ----------------------------------------------------------------------------


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"--output_dir: {path} cannot be written ({error.strerror}); "
        "free some space or choose another folder"
    )


def is_large(content: Any) -> bool:
    """Whether a field's value is an array that is not to be held."""
    return isinstance(content, np.ndarray) and content.nbytes > HELD_BYTES


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _possible_names(f: Field[Any]) -> list[str]:
    if "file" in f.metadata:
        return [f.metadata["file"]]
    return [f"{f.name}.npy", f"{f.name}.parquet"]


def _file_name(f: Field[Any], value: Any) -> str | None:
    if "file" in f.metadata:
        return str(f.metadata["file"])
    if isinstance(value, np.ndarray):
        return f"{f.name}.npy"
    return f"{f.name}.parquet" if isinstance(value, pd.DataFrame) else None


def _encode(name: str, value: Any) -> bytes:
    if name.endswith(".npy"):
        return _npy_bytes(value)
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        value.to_parquet(buffer, index=False)
        return buffer.getvalue()
    if name.endswith(".csv"):
        # Every text quoted, so that an empty one comes back as text.
        csv_text: str = value.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        return csv_text.encode("utf-8")
    return json_bytes(value, indent=2) + b"\n"


def _decode(name: str, data: bytes) -> Any:
    if name.endswith(".npy"):
        return np.load(io.BytesIO(data), allow_pickle=False)
    if name.endswith(".parquet"):
        return pd.read_parquet(io.BytesIO(data))
    if name.endswith(".csv"):
        return pd.read_csv(io.BytesIO(data), keep_default_na=False)
    return json.loads(data)


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()

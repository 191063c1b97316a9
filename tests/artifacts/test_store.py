"""Saved results: round trips, modes, staleness, damage, interrupted saves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from artifacts import provenance
from artifacts import store as store_module
from artifacts.provenance import Mode, Provenance, Stage, stage_mode, stage_rng
from artifacts.settings import InputError
from artifacts.store import Store


@dataclass(frozen=True)
class Result:
    scores: np.ndarray
    flags: np.ndarray
    scalar_array: np.ndarray
    table: pd.DataFrame
    count: int
    loss: float
    name: str | None
    readable: list[dict[str, Any]] = field(metadata={"file": "readable.json"})
    listing: pd.DataFrame = field(metadata={"file": "listing.csv"})


STAGE = Stage("thing", "stage9", number=9)
PROVENANCE = Provenance(42, {"rank": 10, "methods": ("a", "b")}, {"embedding": "abc"})


def make_result(seed: int = 0) -> Result:
    rng = np.random.default_rng(seed)
    return Result(
        scores=rng.normal(size=(3, 2)),
        flags=np.array([True, False]),
        scalar_array=np.array(1.5, dtype=np.float32),
        table=pd.DataFrame({"position": [1, 2], "caption": ['a "quoted"\nline', "ünï, 日本"]}),
        count=7,
        loss=0.1 + 0.2,  # not exact in decimal: the round trip must keep every bit
        name=None,
        readable=[{"cluster": 0, "terms": ["dog"]}],
        listing=pd.DataFrame({"position": [3, 4], "caption": ["", 'say "hi", you']}),
    )


def assert_same(a: Result, b: Result) -> None:
    for name in ("scores", "flags", "scalar_array"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert x.tobytes() == y.tobytes()
    pd.testing.assert_frame_equal(a.table, b.table)
    pd.testing.assert_frame_equal(a.listing, b.listing)
    assert (a.count, a.loss, a.name, a.readable) == (b.count, b.loss, b.name, b.readable)


def fail() -> Any:
    raise AssertionError("must not be computed")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


def test_loading_returns_exactly_what_running_returned(store: Store) -> None:
    ran = store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    loaded = store.stage(STAGE, Mode.LOAD, PROVENANCE, Result, fail)
    assert_same(ran.value, loaded.value)
    assert ran.fingerprint == loaded.fingerprint


def test_files_carry_the_names_of_the_fields(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    names = {p.name for p in (store.root / "stage9").iterdir()}
    assert names == {
        "scores.npy",
        "flags.npy",
        "scalar_array.npy",
        "table.parquet",
        "readable.json",
        "listing.csv",
        "manifest.json",
    }
    prefixed = replace(STAGE, prefix="random_", manifest="random_manifest.json")
    store.stage(prefixed, Mode.RUN, PROVENANCE, Result, make_result)
    assert (store.root / "stage9" / "random_scores.npy").exists()
    assert_same(store.stage(prefixed, Mode.LOAD, PROVENANCE, Result, fail).value, make_result())


@pytest.mark.parametrize(
    ("skipped", "needed_later", "load_saved", "mode"),
    [
        (False, True, False, Mode.RUN),
        (False, True, True, Mode.REUSE),
        (True, True, False, Mode.LOAD),
        (True, True, True, Mode.LOAD),
        (True, False, False, Mode.OMIT),
        (True, False, True, Mode.OMIT),
    ],
)
def test_modes(skipped: bool, needed_later: bool, load_saved: bool, mode: Mode) -> None:
    assert stage_mode(skipped=skipped, needed_later=needed_later, load_saved=load_saved) is mode


def test_omitted_stage_does_nothing(store: Store) -> None:
    assert store.stage(STAGE, Mode.OMIT, PROVENANCE, Result, fail).found is None
    assert not (store.root / "stage9").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (replace(PROVENANCE, seed=1), r"--seed 42 \(now 1\)"),
        (replace(PROVENANCE, settings={"rank": 3, "methods": ("a", "b")}), r"--rank 10 \(now 3\)"),
        (
            replace(PROVENANCE, settings={"rank": 10, "methods": ("a",)}),
            r"--methods a b \(now a\)",
        ),
        (replace(PROVENANCE, inputs={"embedding": "xyz"}), "another embedding as input"),
    ],
)
def test_each_change_is_noticed_and_named(
    store: Store, caplog: pytest.LogCaptureFixture, changed: Provenance, words: str
) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    with pytest.raises(InputError, match=f"{words}.*; repeat the flags it was made with or leave"):
        store.stage(STAGE, Mode.LOAD, changed, Result, fail)
    assert store.load(STAGE, PROVENANCE, Result)  # nothing saved is lost by the error
    again = store.stage(STAGE, Mode.REUSE, changed, Result, lambda: make_result(1))
    assert_same(again.value, make_result(1))
    assert any(r.levelname == "WARNING" and "recomputed" in r.message for r in caplog.records)


def test_a_stage_that_was_never_saved_is_not_called_recomputed(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="has no saved result; leave out --skip_stage"):
        store.stage(STAGE, Mode.LOAD, PROVENANCE, Result, fail)
    caplog.set_level("INFO")
    store.stage(STAGE, Mode.REUSE, PROVENANCE, Result, make_result)
    assert "not saved yet" in caplog.text
    assert "recomputed" not in caplog.text
    assert all(record.levelname == "INFO" for record in caplog.records)


def test_a_setting_that_is_now_left_out_is_not_called_none(store: Store) -> None:
    saved, left_out = (replace(PROVENANCE, settings={"data_dir": x}) for x in ("photos", None))
    store.stage(STAGE, Mode.RUN, saved, Result, make_result)
    with pytest.raises(InputError, match=r"--data_dir photos \(now not set\)"):
        store.stage(STAGE, Mode.LOAD, left_out, Result, fail)


def test_schema_version_is_part_of_the_fingerprint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    monkeypatch.setattr(provenance, "SCHEMA_VERSION", provenance.SCHEMA_VERSION + 1)
    with pytest.raises(InputError, match="schema version"):
        store.stage(STAGE, Mode.LOAD, PROVENANCE, Result, fail)


def test_a_stage_without_a_version_keeps_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "SCHEMA_VERSION", 7)
    content = (
        b'{"inputs": {"embedding": "abc"}, "schema_version": 7, "seed": 42, '
        b'"settings": {"methods": ["a", "b"], "rank": 10}, "stage": "thing"}'
    )
    assert PROVENANCE.fingerprint(STAGE) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("saved", "now"), [(0, 1), (1, 2), (2, 0)])
def test_a_stage_of_another_version_is_stale(store: Store, saved: int, now: int) -> None:
    before, after = (replace(STAGE, version=version) for version in (saved, now))
    store.stage(before, Mode.RUN, PROVENANCE, Result, make_result)
    assert store.manifest(before)["stage_version"] == saved
    assert_same(store.stage(before, Mode.LOAD, PROVENANCE, Result, fail).value, make_result())
    told = (
        rf"made with stage version {saved} \(now {now}\); leave out --skip_stage"  # no flags help
    )
    with pytest.raises(InputError, match=told):
        store.stage(after, Mode.LOAD, PROVENANCE, Result, fail)
    again = store.stage(after, Mode.REUSE, PROVENANCE, Result, lambda: make_result(1))
    assert_same(again.value, make_result(1))


def test_a_manifest_that_names_no_stage_version_has_version_0(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    path = store.root / "stage9" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["stage_version"]
    path.write_text(json.dumps(manifest))
    assert_same(store.stage(STAGE, Mode.LOAD, PROVENANCE, Result, fail).value, make_result())
    with pytest.raises(InputError, match=r"made with stage version 0 \(now 1\); "):
        store.stage(replace(STAGE, version=1), Mode.LOAD, PROVENANCE, Result, fail)


@dataclass(frozen=True)
class Grown(Result):
    """The result with fields that were added later."""

    more: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    extra: dict[str, int] = field(default_factory=dict, metadata={"file": "extra.json"})


def grown(**changes: Any) -> Grown:
    return Grown(**vars(make_result()), **changes)


def test_a_field_that_was_added_later_has_its_default(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    for loaded in (
        store.stage(STAGE, Mode.LOAD, PROVENANCE, Grown, fail).value,
        store.read(STAGE, Grown),
    ):
        assert_same(loaded, make_result())
        assert (loaded.more, loaded.notes, loaded.extra) == (None, [], {})


def test_a_field_with_a_default_is_saved_and_loaded_as_any_other(store: Store) -> None:
    more = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = {"more": more, "notes": ["a"], "extra": {"b": 1}}
    store.stage(STAGE, Mode.RUN, PROVENANCE, Grown, lambda: grown(**given))
    loaded = store.stage(STAGE, Mode.LOAD, PROVENANCE, Grown, fail).value
    assert_same(loaded, make_result())
    assert loaded.more is not None
    assert loaded.more.dtype == more.dtype
    assert loaded.more.tobytes() == more.tobytes()
    assert (loaded.notes, loaded.extra) == (["a"], {"b": 1})
    (store.root / "stage9" / "more.npy").unlink()  # known to the manifest: no default then
    with pytest.raises(InputError, match=r"lacks more.npy"):
        store.stage(STAGE, Mode.LOAD, PROVENANCE, Grown, fail)


def test_none_in_place_of_an_array_is_no_file(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Grown, lambda: grown(more=np.ones(2)))
    store.stage(STAGE, Mode.RUN, PROVENANCE, Grown, grown)
    manifest = store.manifest(STAGE)
    assert "more.npy" not in manifest["files"]
    assert not (store.root / "stage9" / "more.npy").exists()  # of the result before it
    assert manifest["values"]["more"] is None
    assert store.stage(STAGE, Mode.LOAD, PROVENANCE, Grown, fail).value.more is None


def test_a_field_without_a_default_has_to_be_saved(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    path = store.root / "stage9" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["values"]["count"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="has no count"):
        store.stage(STAGE, Mode.LOAD, PROVENANCE, Result, fail)


def test_unchanged_settings_are_reused(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    assert_same(store.stage(STAGE, Mode.REUSE, PROVENANCE, Result, fail).value, make_result())


def _flip_a_byte(folder: Path) -> None:
    path = folder / "scores.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (_flip_a_byte, "damaged scores.npy"),
    (lambda f: (f / "flags.npy").unlink(), "lacks flags.npy"),
    (lambda f: (f / "listing.csv").write_text(""), "damaged listing.csv"),
    (lambda f: (f / "manifest.json").write_text("{"), "damaged manifest.json"),
    (lambda f: (f / "manifest.json").write_text("[]"), "damaged manifest.json"),
    (
        lambda f: (f / "manifest.json").write_text(
            json.dumps(dict.fromkeys(store_module.MANIFEST_KEYS, "x"))
        ),
        "damaged manifest.json",
    ),
    (lambda f: (f / "manifest.json").unlink(), "no saved result"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_damage_is_noticed(store: Store, damage: Callable[[Path], object], words: str) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    damage(store.root / "stage9")
    with pytest.raises(InputError, match=words):
        store.stage(STAGE, Mode.LOAD, PROVENANCE, Result, fail)
    again = store.stage(STAGE, Mode.REUSE, PROVENANCE, Result, make_result)
    assert_same(again.value, make_result())


def test_interrupted_save_is_unfinished_and_leaves_no_temporary_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    real, calls = os.replace, []

    def full_disk(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    changed = replace(PROVENANCE, seed=1)
    with pytest.raises(InputError, match="No space left on device"):
        store.stage(STAGE, Mode.RUN, changed, Result, lambda: make_result(1))
    monkeypatch.undo()
    with pytest.raises(InputError, match="no saved result"):
        store.stage(STAGE, Mode.LOAD, changed, Result, fail)
    assert not [p for p in (store.root / "stage9").iterdir() if p.name.endswith(".tmp")]


def test_saving_clears_away_what_a_killed_run_left(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    saved = {p.name for p in (store.root / "stage9").rglob("*")}
    store.write_text("stage9/.manifest.json.1.tmp", "half a manife")
    store.write_text("stage9/deep/.whole.npy.1.tmp", "")
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    assert {p.name for p in (store.root / "stage9").rglob("*")} == saved


def test_failed_computation_keeps_what_was_saved(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)

    def broken() -> Result:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        store.stage(STAGE, Mode.RUN, replace(PROVENANCE, seed=2), Result, broken)
    assert_same(store.stage(STAGE, Mode.LOAD, PROVENANCE, Result, fail).value, make_result())


def test_nothing_is_pickled(store: Store) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        store.write_npy("x.npy", np.array([{}], dtype=object))


def test_manifest_says_what_a_reader_needs(store: Store) -> None:
    store.stage(STAGE, Mode.RUN, PROVENANCE, Result, make_result)
    manifest = json.loads((store.root / "stage9" / "manifest.json").read_text())
    assert manifest["settings"] == {"rank": 10, "methods": ["a", "b"]}
    assert manifest["seed"] == 42
    assert manifest["inputs"] == {"embedding": "abc"}
    assert manifest["values"] == {"count": 7, "loss": 0.1 + 0.2, "name": None}
    assert manifest["packages"]["numpy"] == np.__version__
    assert manifest["seconds"] >= 0


def test_output_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Store.open(str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        Store.open(str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="is a file"):
        Store.at(str(tmp_path / "file"))
    assert Store.at(str(tmp_path / "none")).root == tmp_path / "none"
    assert not (tmp_path / "none").exists()


def test_each_stage_has_its_own_generator() -> None:
    a, b = stage_rng(1, "influence"), stage_rng(1, "curation")
    first = a.integers(2**62, size=4)
    assert not np.array_equal(first, b.integers(2**62, size=4))
    assert np.array_equal(first, stage_rng(1, "influence").integers(2**62, size=4))
    assert not np.array_equal(first, stage_rng(2, "influence").integers(2**62, size=4))


def test_checkpoints_are_complete_only_for_their_evaluation(store: Store) -> None:
    checkpoints = store_module.Checkpoints(store, "abc")
    assert not checkpoints.complete()
    checkpoints.write("full_seed0", b"weights")
    assert not checkpoints.complete()
    checkpoints.finish()
    assert checkpoints.complete()
    assert not store_module.Checkpoints(store, "xyz").complete()


def test_a_file_takes_its_name_when_it_is_whole(store: Store) -> None:
    path = store.root / "a/b/file"
    with store.writing("a/b/file") as file:
        file.write(b"one ")
        file.write(b"two")
        assert not path.exists()
    assert path.read_bytes() == b"one two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OSError(28, "No space left on device"), InputError, "cannot be written .No space left"),
        (KeyError("bug"), KeyError, "bug"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_file_that_is_given_up_leaves_the_old_one(
    store: Store, error: BaseException, raised: type[BaseException], words: str
) -> None:
    def give_up() -> None:
        with store.writing("file") as file:
            file.write(b"new")
            raise error

    store.write_text("file", "old")
    with pytest.raises(raised, match=words):
        give_up()
    assert {p.name: p.read_text() for p in store.root.iterdir()} == {"file": "old"}


def test_files_are_removed_with_the_folders_that_this_empties(store: Store) -> None:
    for name in ("a/b/c/1", "a/b/2", "a/3", "d/4"):
        store.write_text(f"x/{name}", "")
    store.remove_files("x", ["a/b/c/1", "a/b/2", "d/4", "no/such/file"])
    left = {str(p.relative_to(store.root)) for p in store.root.rglob("*")}
    assert left == {"x", "x/a", "x/a/3"}
    store.remove_files("x", ["a/3"])
    assert list((store.root / "x").iterdir()) == []


@pytest.mark.parametrize("name", ["../y/1", "a/../../y/1", "..", ".", "link/1", "{root}/y/1"])
def test_nothing_is_removed_outside_of_the_folder(store: Store, name: str) -> None:
    store.write_text("x/1", "")
    outside = store.write_text("y/1", "")
    (store.root / "x/link").symlink_to(store.root / "y")
    with pytest.raises(InputError, match="is not inside"):
        store.remove_files("x", [name.format(root=store.root.resolve())])
    assert outside.exists()


def test_a_folder_is_no_file_to_remove(store: Store) -> None:
    store.write_text("x/a/1", "")
    with pytest.raises(InputError, match="cannot be removed"):
        store.remove_files("x", ["a"])


def test_what_a_killed_run_left_is_removed(store: Store) -> None:
    for name in (".f.1.tmp", "a/.g.22.tmp", "a/whole", "mine.tmp"):
        store.write_text(f"x/{name}", "")
    store.write_text("y/.other.1.tmp", "")
    store.remove_temporary("x")
    left = {str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file()}
    assert left == {"x/a/whole", "x/mine.tmp", "y/.other.1.tmp"}

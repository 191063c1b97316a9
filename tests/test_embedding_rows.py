"""Embeddings that exist already: held, or filled on the disk stretch by stretch, and taken up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from artifacts.provenance import EMBEDDING, Mode, Provenance
from artifacts.settings import InputError
from artifacts.store import Store
from data import PairReader
from embedding import EmbeddingResult, embed_pairs, embed_rows
from encoders.base import EmbeddingConfig, GivenEmbeddings
from engine.local import LocalEngine
from engine.room import StageRoom
from intake import rows as intake_rows
from intake.rows import look_at_rows
from sources.base import DataConfig
from sources.embeddings import EmbeddingFiles, open_embeddings
from sources.row_arrays import fill_rows
from sources.row_reader import RowReader
from tests.sources.test_row_reader import save_pool

PROVENANCE = Provenance(1, {}, {"data set": "x"})


def opened(root: Path, **changes: Any) -> tuple[EmbeddingFiles, DataConfig]:
    config = DataConfig(embeddings_dir=str(root), num_workers=0, **changes)
    return open_embeddings(config, np.random.default_rng(3)), config


def room_of(store: Store) -> StageRoom:
    return StageRoom(LocalEngine(2), store, EMBEDDING, PROVENANCE.fingerprint(EMBEDDING))


def embedded(root: Path, store: Store, **changes: Any) -> EmbeddingResult:
    """The saved result of stage 1a."""
    files, config = opened(root, **changes)
    room = room_of(store)

    def compute() -> EmbeddingResult:
        reader = RowReader(files, config, partial(look_at_rows, room=room))
        features = GivenEmbeddings(files.name, files.texts_at)
        return embed_rows(reader, features, rng=np.random.default_rng(0), room=room)

    result = store.stage(EMBEDDING, Mode.RUN, PROVENANCE, EmbeddingResult, compute).value
    room.clear()
    return result


def one_by_one(root: Path) -> EmbeddingResult:
    files, config = opened(root)
    reader = PairReader(files.source, config, decode=files.decode)
    features = GivenEmbeddings(files.name, files.texts_at)
    return embed_pairs(reader, features, EmbeddingConfig(), rng=np.random.default_rng(0))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    save_pool(tmp_path / "pool", 7, 240, with_splits=False)
    return tmp_path / "pool"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array is large, and every stretch short."""
    for name in ("embedding", "artifacts.store"):
        monkeypatch.setattr(f"{name}.HELD_BYTES", 100)
    monkeypatch.setattr("sources.row_facts.STRETCH", 37)
    monkeypatch.setattr("sources.row_facts.ROWS_AT_ONCE", 10)
    monkeypatch.setattr("sources.row_arrays.ROWS_A_JOB", 29)
    monkeypatch.setattr("sources.row_arrays.ROWS_AT_ONCE", 12)


def assert_same(one: EmbeddingResult, other: EmbeddingResult, tolerance: float) -> None:
    for f in fields(EmbeddingResult):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, f.name
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=f.name)
        elif isinstance(a, pd.DataFrame):
            # A row's own file, not that of the image's first row.
            pd.testing.assert_frame_equal(a.drop(columns="shard"), b.drop(columns="shard"))
        else:
            assert a == b, f.name


def test_few_rows_are_embedded_as_images_one_by_one(pool: Path, store: Store) -> None:
    assert_same(embedded(pool, store), one_by_one(pool), 0)


@pytest.mark.usefixtures("large")
def test_many_rows_are_the_same_but_for_rounding(pool: Path, store: Store) -> None:
    result = embedded(pool, store)
    assert_same(result, one_by_one(pool), 2e-7)
    assert isinstance(result.concatenated_embeddings, np.memmap)
    n, d = result.image_embeddings.shape
    np.testing.assert_array_equal(result.concatenated_embeddings[:, :d], result.image_embeddings)
    np.testing.assert_array_equal(result.concatenated_embeddings[:, d:], result.text_embeddings)
    assert len(result.clip_scores) == n
    features = store.root / "stage1/image_features.npy"
    assert features.samefile(store.root / "stage1/image_embeddings.npy")


@pytest.mark.usefixtures("large")
def test_nothing_is_left_beside_the_result(pool: Path, store: Store) -> None:
    embedded(pool, store)
    names = {path.name for path in (store.root / "stage1").iterdir()}
    assert {f.name + ".npy" for f in fields(EmbeddingResult) if "features" in f.name} < names
    assert not {name for name in names if name.startswith(".") or name == "shards"}


class Counted:
    """Work that is counted, and breaks off after so much of it."""

    def __init__(self, work: Callable[..., Any], breaks_after: int) -> None:
        self.work, self.left, self.n_done = work, breaks_after, 0

    def __call__(self, *given: Any) -> Any:
        if self.left == 0:
            raise InputError("--output_dir: the disk is full")
        self.left -= 1
        result = self.work(*given)
        self.n_done += 1
        return result


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("breaks_after", [0, 1, 2])
@pytest.mark.parametrize("work", ["look_at", "fill_rows"])
def test_a_run_that_broke_off_goes_on_at_the_first_stretch_that_is_missing(
    pool: Path, store: Store, monkeypatch: pytest.MonkeyPatch, work: str, breaks_after: int
) -> None:
    plain = getattr(intake_rows, work)
    broken = Counted(plain, breaks_after)
    monkeypatch.setattr(intake_rows, work, broken)
    with pytest.raises(InputError, match="the disk is full"):
        embedded(pool, store)
    again = Counted(plain, -1)
    monkeypatch.setattr(intake_rows, work, again)
    result = embedded(pool, store)
    assert_same(result, one_by_one(pool), 2e-7)
    whole = Counted(plain, -1)
    monkeypatch.setattr(intake_rows, work, whole)
    other = Store.open(str(store.root / "other"))
    embedded(pool, other)
    assert broken.n_done <= breaks_after
    assert again.n_done == whole.n_done - broken.n_done


@pytest.mark.usefixtures("large")
def test_the_parts_of_an_array_that_is_gone_are_filled_again(
    pool: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Counted(fill_rows, 3)
    monkeypatch.setattr(intake_rows, "fill_rows", broken)
    with pytest.raises(InputError):
        embedded(pool, store)
    for part in (store.root / "stage1").glob(".*.part"):
        part.unlink()
    monkeypatch.setattr(intake_rows, "fill_rows", broken.work)
    assert_same(embedded(pool, store), one_by_one(pool), 2e-7)


@pytest.mark.usefixtures("large")
def test_other_embeddings_in_the_same_place_are_not_mixed_with_those_of_before(
    pool: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(intake_rows, "fill_rows", Counted(fill_rows, 3))
        with pytest.raises(InputError):
            embedded(pool, store)
    save_pool(pool, 8, 240, with_splits=False)
    monkeypatch.setattr(
        "tests.test_embedding_rows.PROVENANCE", Provenance(1, {}, {"data set": "another"})
    )
    assert_same(embedded(pool, store), one_by_one(pool), 2e-7)

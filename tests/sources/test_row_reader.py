"""Rows of embeddings are chosen as reading image after image chooses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from artifacts.settings import InputError
from data import PairReader
from sources.base import DataConfig
from sources.embeddings import EmbeddingFiles, EmbeddingSource, open_embeddings
from sources.row_facts import RowFacts, join_facts, look_at
from sources.row_reader import RowReader
from tests.sources.embedding_files import save_part

CAPTIONS = ["a dog", "A dog.", "a cat", "  ", "", "two  birds", "two birds", "\ufffd bad", "sky"]
WORDS = ["red", "old", "wet", "big"]


def facts(source: EmbeddingSource, split: str) -> RowFacts:
    assert split in ("test", "validation", "train")
    stretches = source.stretches()
    return join_facts(map(look_at, stretches), sum(s.n_rows for s in stretches))


def save_pool(root: Path, seed: int, n_rows: int, *, with_splits: bool) -> None:
    """Rows with everything that makes one be skipped, in three files."""
    rng = np.random.default_rng(seed)
    n_images = n_rows // 2
    images = rng.normal(size=(n_images, 6)).astype(np.float32)
    shown = rng.integers(n_images, size=n_rows)
    shown[: n_rows // 4] = np.arange(n_rows // 4)
    rows = images[shown]
    rows[rng.integers(n_rows, size=n_rows // 20)] = 0
    rows[rng.integers(n_rows, size=3), 1] = np.nan
    captions = [
        f"{CAPTIONS[i]}{' ' + WORDS[j] if CAPTIONS[i].strip() else ''}"
        for i, j in rng.integers((len(CAPTIONS), len(WORDS)), size=(n_rows, 2))
    ]
    names = rng.integers(10, size=n_images)  # images without a path, and one path for several
    paths = ["" if names[i] == 0 else f"{i // 2 if names[i] == 1 else i}.jpg" for i in shown]
    splits = rng.choice(["train", "train", "val", "test", "other"], size=n_rows)
    uids = [f"{i % (n_rows - 4):032x}" for i in range(n_rows)]
    texts = rng.normal(size=(n_rows, 6)).astype(np.float32)
    for part, at in enumerate(np.array_split(np.arange(n_rows), 3)):
        columns: dict[str, Any] = {
            "caption": [captions[i] for i in at],
            "image_path": [paths[i] for i in at],
            "uid": [uids[i] for i in at],
        }
        if with_splits:
            columns["split"] = splits[at].tolist()
        save_part(root, part, rows[at], texts[at], columns=columns)


def both(files: EmbeddingFiles, config: DataConfig) -> tuple[RowReader, PairReader, dict[str, Any]]:
    """The pairs read in either way, and the images that reading one after the other gives."""
    slow = PairReader(files.source, config, decode=files.decode)
    images = {split: list(slow.images(split)) for split in ("test", "validation", "train")}
    return RowReader(files, config, facts), slow, images


def places(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(table["split"], table["position"].tolist(), strict=True))


def file_of(files: EmbeddingFiles, split: str, position: int) -> str:
    """The file that a row lies in, though its image may be that of a row before it."""
    part = files.part(split)
    ends = np.cumsum(part.source.images.n_rows)
    return part.source.images.files[int(np.searchsorted(ends, position - part.first, "right"))]


def assert_alike(files: EmbeddingFiles, config: DataConfig) -> RowReader:
    fast, slow, images = both(files, config)
    for table, expected in ((fast.pairs(), slow.pairs()), (fast.skipped(), slow.skipped())):
        pd.testing.assert_frame_equal(table.drop(columns="shard"), expected.drop(columns="shard"))
        assert table["shard"].tolist() == [file_of(files, *row) for row in places(table)]
    assert fast.account() == slow.account()
    assert fast.left_out() == slow.left_out()
    for split, read in images.items():
        rows = fast.image_rows[split]
        found = files.part(split).source.images.at(rows)
        lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
        np.testing.assert_allclose(
            found / lengths, np.stack([image.pixels for image in read]), rtol=0, atol=1e-6
        )
    return fast


@pytest.mark.parametrize("with_splits", [True, False])
@pytest.mark.parametrize("limits", [(10_000, 1000, 1000), (60, 7, 9), (100, 15, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_that_of_reading_in_order(
    tmp_path: Path, seed: int, limits: tuple[int, int, int], with_splits: bool
) -> None:
    save_pool(tmp_path, seed, 300, with_splits=with_splits)
    train, val, test = limits
    config = DataConfig(
        embeddings_dir=str(tmp_path),
        max_train_samples=train,
        max_val_samples=val,
        max_test_samples=test,
        num_workers=0,
    )
    files = open_embeddings(config, np.random.default_rng(seed))
    reader = assert_alike(files, config)
    reasons = set(reader.skipped()["reason"])
    assert "empty caption" in reasons
    if limits[0] > 1000:
        assert {"duplicate pair", "damaged caption", "embedding not usable"} <= reasons
        assert not with_splits or "image in another split" in reasons


def test_held_out_pairs_from_elsewhere(tmp_path: Path) -> None:
    save_pool(tmp_path / "pool", 1, 200, with_splits=False)
    save_pool(tmp_path / "test", 2, 60, with_splits=False)
    save_pool(tmp_path / "val", 1, 80, with_splits=False)  # some images of the pool
    config = DataConfig(
        embeddings_dir=str(tmp_path / "pool"),
        test_embeddings_dir=str(tmp_path / "test"),
        val_embeddings_dir=str(tmp_path / "val"),
        num_workers=0,
    )
    reader = assert_alike(open_embeddings(config, np.random.default_rng(0)), config)
    pairs = reader.pairs()
    assert pairs.loc[pairs["split"] == "validation", "key"].str.startswith("val_data/").all()


def test_all_pairs_may_be_asked_for(tmp_path: Path) -> None:
    save_pool(tmp_path, 5, 300, with_splits=True)
    config = DataConfig(
        embeddings_dir=str(tmp_path),
        max_train_samples="all",
        max_val_samples="all",
        max_test_samples="all",
        num_workers=0,
    )
    reader = assert_alike(open_embeddings(config, np.random.default_rng(0)), config)
    assert reader.account().not_read == 300 - len(reader.pairs()) - len(reader.skipped())


def test_nothing_usable_is_the_same_line(tmp_path: Path) -> None:
    rows = np.zeros((6, 4), np.float32)
    save_part(tmp_path, 0, rows, rows + 1, columns={"caption": ["a"] * 6})
    config = DataConfig(embeddings_dir=str(tmp_path), num_workers=0)
    files = open_embeddings(config, np.random.default_rng(0))
    with pytest.raises(InputError) as fast:
        RowReader(files, config, facts)
    slow = PairReader(files.source, config, decode=files.decode)
    with pytest.raises(InputError) as other:
        list(slow.images("test"))
    assert str(fast.value) == str(other.value)
    assert "embedding not usable" in str(fast.value)

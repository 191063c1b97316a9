"""Numbers of captions that add up to what a source holds, whatever kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import open_source
from sources.accounting import Account
from sources.base import DataConfig, PairSource
from sources.splits import StreamSource
from tests.helpers import picture, read_all, record, write
from tests.sources.layouts import N_PICTURES, SPLIT_SIZES, as_folder, as_parquet, as_shards


@pytest.mark.parametrize(
    ("account", "sentence"),
    [
        (
            Account(1200, 3, 40),
            "Of 1,243 captions of the source 1,200 are used, 3 skipped and 40 not read",
        ),
        (Account(5, 1, None), "5 captions used, 1 skipped; the rest was not read"),
        (
            Account(5, 0, 0, ("2 damaged files", "1 zip")),
            "Of 5 captions of the source 5 are used, 0 skipped and 0 not read; not counted: "
            "2 damaged files, 1 zip",
        ),
    ],
)
def test_the_numbers_in_words(account: Account, sentence: str) -> None:
    assert account.sentence() == sentence


LIMITS: dict[str, dict[str, Any]] = {
    "all": {},
    "few": {"max_train_samples": 7, "max_val_samples": 3, "max_test_samples": 2},
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("sizes", SPLIT_SIZES)
@pytest.mark.parametrize("write_as", [as_folder, as_shards, as_parquet])
def test_every_caption_is_in_one_of_the_numbers(
    tmp_path: Path, write_as: Any, sizes: str, limits: str
) -> None:
    names = {as_folder: "folder", as_shards: "webdataset", as_parquet: "parquet"}
    place = write_as(tmp_path / "in", SPLIT_SIZES[sizes])
    config = DataConfig(names[write_as], str(place), **LIMITS[limits])
    reader, _ = read_all(open_source(config, rng=np.random.default_rng(0)), **LIMITS[limits])
    account = reader.account()
    assert account.unread == ()
    assert account.not_read is not None
    assert account.used + account.skipped + account.not_read == 2 * N_PICTURES
    assert (account.used, account.skipped) == (len(reader.pairs()), 0)


def test_splits_of_a_pool_that_another_data_set_replaces_are_not_read(tmp_path: Path) -> None:
    pool = as_folder(tmp_path / "pool", SPLIT_SIZES["official"])
    other = write(tmp_path / "other", {f"{i}.png": picture(200 + i) for i in range(5)})
    rows = "".join(f"{i}.png,other {i}\n" for i in range(5))
    write(other, {"captions.csv": f"image,caption\n{rows}"})
    config = DataConfig("folder", str(pool), test_data=str(other))
    source = open_source(config, rng=np.random.default_rng(0))
    account = read_all(source)[0].account()
    n_test, n_validation = SPLIT_SIZES["official"]["test"], SPLIT_SIZES["official"]["validation"]
    assert account == Account(
        used=2 * N_PICTURES - 2 * n_test - n_validation + 5,
        skipped=0,
        not_read=2 * n_test + n_validation,
    )
    assert source.notes[-1] == "--test_data: columns image, caption"


@pytest.mark.parametrize(("limit", "not_read"), [(3, None), (50, 0)])
def test_a_stream_that_ends_is_known(limit: int, not_read: int | None) -> None:
    parts = {"train": (0, 6), "validation": (6, 8), "test": (8, 10)}
    streams = {
        split: iter([record(i, f"of {i}") for i in range(*ends)]) for split, ends in parts.items()
    }
    source: PairSource = StreamSource("hf", "a stream", "0", streams, None)
    reader, _ = read_all(source, max_train_samples=limit, max_val_samples=50, max_test_samples=50)
    assert reader.account() == Account(limit + 4 if limit < 6 else 10, 0, not_read)

"""Which pairs lie within the page, which photographs, and which files beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from artifacts.store import Store
from reporting.report import write
from reporting.report.photographs import Photographs

N = 400


def table() -> pd.DataFrame:
    """Training pairs in eight strata, with families of three; held-out pairs behind them."""
    rng = np.random.default_rng(0)
    n = N + 50
    is_train = np.arange(n) < N
    value = np.where(is_train, rng.normal(size=n), np.nan)
    return pd.DataFrame(
        {
            "split": np.where(is_train, "train", "validation"),
            "decision": np.where(is_train, np.where(value > 0, "kept", "dropped"), "held out"),
            "reason": "some",
            "cell": np.where(is_train, np.arange(n) % 4, -1),
            "value": value,
            "influence": np.where(is_train, rng.normal(size=n), np.nan),
            "agreement": rng.normal(size=n),
            "family": np.where(np.arange(n) < 60, np.arange(n) // 3, -1),
            "photo": np.arange(n) // 2,
        }
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"N_EMBEDDED": 100, "N_OTHERS": 10, "N_EXTREMES": 3, "N_IN_FAMILIES": 10}
    for name, value in limits.items():
        monkeypatch.setattr(write, name, value)


def test_all_pairs_are_in_the_page_where_they_are_few() -> None:
    assert write._within_page(table(), 0.0, np.random.default_rng(0)).all()


@pytest.mark.usefixtures("small")
def test_many_pairs_are_drawn_from_every_stratum_with_the_ends_of_every_order() -> None:
    rows = table()
    inside = write._within_page(rows, 0.0, np.random.default_rng(0))
    train = (rows["split"] == "train").to_numpy()
    assert (inside & train).sum() == 100
    assert (inside & ~train).sum() == 10
    strata = rows[train].groupby(["cell", "decision"])
    assert set(rows[inside & train].groupby(["cell", "decision"]).groups) == set(strata.groups)
    for decision in ("kept", "dropped"):
        side = rows[rows["decision"] == decision]
        for order in (side["influence"], -side["influence"], side["value"].abs()):
            assert inside[order.sort_values().index[:3]].all()
    whole = rows.assign(inside=inside)[rows["family"] != -1].groupby("family")["inside"].all()
    assert whole.iloc[:3].all()  # nine pairs; a fourth family would be cut
    again = write._within_page(rows, 0.0, np.random.default_rng(0))
    assert np.array_equal(inside, again)
    assert not np.array_equal(inside, write._within_page(rows, 0.0, np.random.default_rng(1)))


def test_photographs_of_training_pairs_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table().iloc[::-1]  # held-out pairs first
    sizes = np.full(N // 2 + 25, 10)
    photographs = Photographs(
        np.array([f"{i}" for i in range(len(sizes))]), sizes.cumsum(), np.zeros(1, np.uint8), 0, 50
    )
    monkeypatch.setattr(write, "EMBEDDED_BYTES", 2030)
    inline = write._inline_photographs(rows, photographs)
    assert len(inline) == 203  # all two hundred of training pairs, and three others
    assert set(range(200)) < set(inline.tolist())
    held_out = rows[rows["split"] != "train"].sort_values("agreement")
    assert set(inline.tolist()) - set(range(200)) == set(held_out["photo"].unique()[:3])


def test_files_of_an_earlier_report_go(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    for name in ("pairs/00000.js", "photographs/0/1.avif"):
        store.write_bytes(f"{write.FILES}/{name}", b"x")
    write._remove_others(store, {"pairs/00000.js"})
    assert [p.name for p in (tmp_path / write.FILES).rglob("*") if p.is_file()] == ["00000.js"]
    store.write_text(write.PAGE, "page")
    write.remove_report(store)
    assert list(tmp_path.rglob("report*")) == []

"""Which photographs lie within the page, and which files beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts.store import Store
from reporting.report import write
from reporting.report.photographs import Photographs
from tests.reporting.report.test_within import N, table


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

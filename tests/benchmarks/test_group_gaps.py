"""The benchmark of gaps between groups: signs, and changes paired by seed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield importlib.import_module("group_gaps")
    sys.path.remove(BENCHMARKS)


def row(method: str, keep: float, seed: int, recall: float, women: float, men: float) -> Any:
    return {
        "method": method,
        "keep": keep,
        "seed": seed,
        "mean_recall": recall,
        "female_recall@10": women,
        "male_recall@10": men,
    }


ROWS = [
    *(row("full", 1.0, seed, 30.0, 30.0, 40.0) for seed in (200, 201)),
    *(row("influencespace", 0.8, seed, 30.0 + seed - 200, 32.0, 40.0) for seed in (200, 201)),
    row("fairness_1", 0.8, 200, 29.4, 35.0, 40.0),
    row("fairness_1", 0.8, 201, 30.4, 43.0, 40.0),  # women are served better
]


def test_a_gap_keeps_its_sign(bench: Any) -> None:
    frame = bench.with_signs(pd.DataFrame(ROWS))
    assert frame["signed_gap"].tolist() == [10, 10, 8, 8, 5, -3]


def test_changes_are_paired_by_seed_and_relative_to_the_mean(bench: Any) -> None:
    lines = bench.table(bench.with_signs(pd.DataFrame(ROWS)), 0.8)
    assert len(lines) == 2 + 3 + 1
    full, plain, fair = ([c.strip() for c in line.strip("|").split("|")] for line in lines[2:5])
    assert full[:5] == ["Full data", *("30.00 ± 0.00", "30.00 ± 0.00", "40.00 ± 0.00"),
                        "10.00 ± 0.00"]  # fmt: skip
    assert full[5:7] == ["", ""]
    assert plain[5:] == ["-20.0 ± 0.0", "+1.7 ± 1.7", "", ""]
    # Gaps of 5 and -3 against 10, and against 8; recalls of 29.4 and 30.4 against 30, and 30.5.
    assert fair[0] == "fairness 1"
    assert fair[4:] == [
        *("1.00 ± 4.00", "-90.0 ± 40.0", "-0.3 ± 1.7"),
        *("-87.5 ± 50.0", "-2.0 ± 0.0"),
    ]


def test_the_page_tells_seeds_and_every_share(bench: Any) -> None:
    text = bench.page(bench.with_signs(pd.DataFrame(ROWS)), "2 CPU cores")
    assert "2 seeds from 200 on" in text
    assert text.count("\n## ") == 1
    assert "## 80 % kept" in text

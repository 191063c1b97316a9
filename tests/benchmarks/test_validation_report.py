"""Tables of noisy, few and narrow held-out pairs, from rows made by hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def report() -> Iterator[Any]:
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module("validation_report")
    sys.path.remove(str(BENCHMARKS))


def row(validation: str, method: str, seed: int, recall: float, **more: Any) -> dict[str, Any]:
    found = {"regime": "wrong_20", "keep": 0.8, "comparison": "same_steps", "faults_left": 0.04}
    return found | {
        "validation": validation,
        "method": method,
        "seed": seed,
        "mean_recall": recall,
        **more,
    }


def rows() -> pd.DataFrame:
    found = []
    for seed, shift in ((7, 0.0), (8, 1.0)):
        found += [
            row("clean", "influencespace", seed, 28 + shift),
            row("noisy", "influencespace", seed, 27.5 + shift),
            row("clean", "neg_clip_loss", seed, 27 + shift),
            row("noisy", "gradient_similarity", seed, 20 + shift),
            row("clean", "gradient_similarity", seed, 29 + shift),  # on clean pairs it would win
            row("noisy-100", "influencespace", seed, 26 + shift, faults_left=0.06),
            row("clean-dog", "influencespace", seed, 31 + shift, keep=0.2),
            row("clean-dog", "neg_clip_loss", seed, 29 + shift, keep=0.2),
            row("clean-dog", "neg_clip_loss_normsim", seed, 30 + shift, keep=0.2),
        ]
    found.append(row("noisy", "influencespace", 3, 99.0))  # a seed that was looked at
    return pd.DataFrame(found)


def test_noisy_held_out_pairs_stand_beside_clean_ones_and_the_best_rival(report: Any) -> None:
    header, _, line, *rest = report.noise_table(report.fresh(rows(), 7))
    assert [part for part in rest if part] == []
    cells = dict(zip(header.split(" | "), line.split(" | "), strict=True))
    assert cells["noisy ones"] == "28.00 ± 0.50"
    assert cells["difference"] == "-0.50 ± 0.00"
    # One that asks held-out pairs is given the noisy ones too.
    assert cells["best rival"] == "negCLIPLoss 27.50 ± 0.50"
    assert cells["noisy − best rival"] == "+0.50 ± 0.00"


def test_sizes_stand_side_by_side(report: Any) -> None:
    header, _, line, _ = report.size_table(report.fresh(rows(), 7))
    assert header == "| regime | keep | noisy-100 | noisy-1000 | clean-1000 | seeds |"
    assert "26.50 ± 0.50 (6.0 %)" in line
    assert line.endswith("| 2 |")


def test_a_target_is_compared_with_the_better_of_two_rivals(report: Any) -> None:
    cells = report.target_cells(report.fresh(rows(), 7))
    assert [(c["regime"], c["validation"], c["keep"]) for c in cells] == [
        ("wrong_20", "clean-dog", 0.2)
    ]
    line = report.target_table(cells)[2]
    assert "negCLIPLoss + NormSim +1.00 ± 0.00" in line


def test_the_page_and_the_figure_are_written(
    report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"command": "python benchmarks/regimes.py", "hardware": {"cpu_cores": 2}}
    report.write_validation(rows(), tmp_path, about, {}, first_seed=7)
    page = (tmp_path / "validation.md").read_text()
    assert page in capsys.readouterr().out
    assert "## A narrow target" in page
    assert "99.0" not in page
    assert (tmp_path / "target.png").stat().st_size > 10_000


def test_rows_without_a_target_have_no_such_table(report: Any) -> None:
    frame = rows()
    assert report.target_cells(frame[frame["validation"] == "clean"]) == []

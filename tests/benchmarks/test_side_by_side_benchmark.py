"""The benchmark of trainings side by side: its flags, and what it compares."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield importlib.import_module("side_by_side")
    sys.path.remove(BENCHMARKS)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--device cuda", "--device: there is no such device here; give cpu; got cuda"),
        ("--device cuda:1", "--device: there is no such device here; give cpu; got cuda:1"),
        ("--device foo", "--device: not a device that is measured; give cpu; got foo"),
        ("--device meta", "--device: not a device that is measured; give cpu; got meta"),
        ("--runs 1 0", "--runs: give a whole number of at least 1; got 0"),
        ("--steps 0", "--steps: give a whole number of at least 1; got 0"),
    ],
)
def test_wrong_flags_are_one_line(
    bench: Any,
    flags: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit) as ended:
        bench.main(flags.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {told}")


def test_devices_that_are_there_are_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert bench.device_here(name) == torch.device(name)
    with pytest.raises(argparse.ArgumentTypeError, match=r"give cpu or cuda or .*; got cuda:2"):
        bench.device_here("cuda:2")


def test_the_cpu_is_not_compared_with_itself(
    bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "N_PAIRS", 80)
    bench.main("--device cpu --runs 2 --steps 3".split())
    speed, difference = capsys.readouterr().out.splitlines()
    assert speed.startswith("2 runs: ")
    assert difference.startswith("largest difference: ")
    assert difference.endswith(" among others")

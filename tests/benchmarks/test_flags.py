"""What the benchmarks take of their flags, and what they say of the rest."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def flags() -> Iterator[Any]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield importlib.import_module("flags")
    sys.path.remove(BENCHMARKS)


def test_whole_numbers_have_a_least_one(flags: Any) -> None:
    assert flags.positive("1") == 1
    assert flags.at_least(150)("150") == 150
    for text in ("0", "-5", "1.5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"at least 1; got {text}"):
            flags.positive(text)
    with pytest.raises(argparse.ArgumentTypeError, match="at least 150; got 149"):
        flags.at_least(150)("149")


def test_seconds_have_an_end(flags: Any) -> None:
    assert flags.as_seconds("0.5") == 0.5
    for text in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"above 0; got {text}"):
            flags.as_seconds(text)


def test_a_file_is_no_folder(flags: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert flags.as_folder(str(tmp_path / "new" / "one")) == tmp_path / "new" / "one"
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(argparse.ArgumentTypeError, match="file is a file; give a folder"):
            flags.as_folder(str(path))


def test_results_are_a_json_file(flags: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    assert flags.as_json_file(str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
    for name in ("a.md", "folder.json"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"ends in \.json; got .*" + name):
            flags.as_json_file(str(tmp_path / name))
    with pytest.raises(argparse.ArgumentTypeError, match="file is a file; give a folder"):
        flags.as_json_file(str(tmp_path / "file" / "a.json"))


def test_what_is_wrong_is_one_line_that_names_the_flag(
    flags: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser(prog="it")
    parser.add_argument("--cores", nargs="+", type=flags.positive)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--cores", "1", "0"])
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "it: error: argument --cores: give a whole number of at least 1; got 0"

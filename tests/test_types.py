"""The type checker's configuration: a misspelt field of a stage's result is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[1]
USE = """
from artifacts.provenance import EMBEDDING, Saved
from cli.run import Run
from embedding import EmbeddingResult
from main import stage_1


def of_a_result(saved: Saved[EmbeddingResult]) -> object:
    return saved.value.{field}


def of_a_stage(run: Run) -> object:
    return stage_1(run).embedded.value.{field}


def of_what_is_had(run: Run, made: EmbeddingResult) -> object:
    return run.stage(EMBEDDING, EmbeddingResult, after=[], compute=lambda _: made).value.{field}
"""


def test_a_misspelt_field_of_a_result_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MYPYPATH", os.fspath(ROOT))
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(USE.format(field="clip_scores"))
    wrong.write_text(USE.format(field="clip_score"))
    found, _, status = api.run(["--config-file", "pyproject.toml", str(right), str(wrong)])
    assert status == 1
    errors = [line for line in found.splitlines() if ": error: " in line]
    assert len(errors) == 3
    for line in errors:
        assert line.startswith(str(wrong))
        assert '"EmbeddingResult" has no attribute "clip_score"' in line

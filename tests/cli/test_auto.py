"""What is said before images are read."""

import logging

import pytest

from cli import auto
from cli.config import parse_arguments
from sources.base import DataConfig


@pytest.mark.parametrize(
    ("n", "are_processes", "said", "warned"),
    [
        (0, False, "images are read by the thread that encodes them (--num_workers 0)", ""),
        (1, False, "images are read by 1 thread (--num_workers)", ""),
        (64, False, "images are read by 64 threads (--num_workers)", ""),
        (2, True, "images are read by 2 processes (--num_workers)", ""),
        (3, True, "images are read by 3 processes (--num_workers)", "there are 2 cores here"),
    ],
)
def test_what_reads_the_images_is_said(
    n: int,
    are_processes: bool,
    said: str,
    warned: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(auto, "n_cores", lambda: 2)
    with caplog.at_level(logging.INFO):
        auto._tell_who_reads(DataConfig(num_workers=n), are_processes)
    first, *rest = caplog.records
    assert first.getMessage() == said
    assert len(rest) == bool(warned)
    assert all(warned in r.getMessage() and r.levelno == logging.WARNING for r in rest)


def test_flags_without_effect_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    auto.warn_of_unheeded(parse_arguments(["--removal_folds", "7"]))
    assert not caplog.messages
    auto.warn_of_unheeded(parse_arguments(["--hessian", "cg"]))
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "--hessian cg: --estimator metagradient does not heed it" in caplog.text

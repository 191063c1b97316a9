"""One run at a time in a folder; a run that was killed keeps nobody out."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import lock
from artifacts.lock import LOCK_FILE, only_run_in
from artifacts.settings import InputError

HOLD = """
import sys, time
from pathlib import Path
from artifacts.lock import only_run_in
with only_run_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def content(folder: Path) -> dict[str, object]:
    found = json.loads((folder / LOCK_FILE).read_text())
    assert isinstance(found, dict)
    return found


def test_the_file_names_the_run_while_it_goes_on(tmp_path: Path) -> None:
    with only_run_in(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()
        assert content(tmp_path)["host"] == socket.gethostname()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), only_run_in(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_second_run_is_told_of_the_first(tmp_path: Path) -> None:
    with only_run_in(tmp_path):
        with (
            pytest.raises(InputError, match=f"process {os.getpid()} on .*delete .*{LOCK_FILE}"),
            only_run_in(tmp_path),
        ):
            pytest.fail("two runs in one folder")
        assert content(tmp_path)["pid"] == os.getpid(), "the second run takes nothing away"
        other = tmp_path / "other"
        other.mkdir()
        with only_run_in(other):
            assert content(other)["pid"] == os.getpid()


def test_what_a_killed_run_left_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(lock.__file__).parents[1])
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match=f"process {holder.pid}"), only_run_in(tmp_path):
        pytest.fail("two runs in one folder")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert content(tmp_path)["pid"] == holder.pid
    with caplog.at_level(logging.WARNING), only_run_in(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()
    assert f"process {holder.pid} has ended" in caplog.text


def test_a_run_on_another_machine_is_believed(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": 0}))
    with pytest.raises(InputError, match="process 1 on elsewhere"), only_run_in(tmp_path):
        pytest.fail("two runs in one folder")
    assert content(tmp_path)["host"] == "elsewhere"


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"\xff"])
def test_a_file_that_says_nothing_keeps_nobody_out(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(damaged)
    with only_run_in(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()


def test_without_locks_of_the_file_system_the_process_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", unsupported)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname()
    for pid, is_free in ((ended.pid, True), (os.getpid(), False), ("x", False), (None, False)):
        (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": pid, "host": here}))
        if is_free:
            with only_run_in(tmp_path):
                assert content(tmp_path)["pid"] == os.getpid()
        else:
            with pytest.raises(InputError, match="another run"), only_run_in(tmp_path):
                pytest.fail("two runs in one folder")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), only_run_in(tmp_path / "none"):
        pytest.fail("no folder")

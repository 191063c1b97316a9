import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from artifacts.settings import InputError
from data import read_record
from sources.base import BROKEN_IMAGE, FILE_TOO_LARGE, UnusableImage, pair_id
from sources.decoding import LENGTH, write_frame
from sources.images import DecodedImage, SmallCopies, decode_pixels
from sources.pixels import Resizing
from sources.processes import _PROGRAM, AskedImage, ImageProcesses, SentImage
from sources.tar import FilePart
from tests.sources.image_kinds import image_files, natural, saved

ROOT = Path(__file__).parents[2]
RESIZING = Resizing(24, (24, 20), int(PIL.Image.Resampling.BICUBIC))
MOST = 1_000_000
GONE = {
    "empty": b"",
    "broken": b"no image",
    "cut": saved(natural(60, 40))[:-400],
    "too large": saved(PIL.Image.new("L", (1001, 1001)), "PNG"),
}


@pytest.fixture
def processes() -> Iterator[ImageProcesses]:
    made = ImageProcesses(RESIZING, MOST)
    yield made
    made.close()


def pids(processes: ImageProcesses) -> list[int]:
    return [process.pid for process in processes._started]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def missing() -> bytes:
    raise FileNotFoundError("gone.jpg is not there")


def unreadable() -> bytes:
    raise PermissionError("locked")


def refused() -> bytes:
    raise UnusableImage(FILE_TOO_LARGE, "1 byte")


def asked_images(folder: Path) -> list[AskedImage]:
    """Images of every kind, every second one in a file that a process opens itself."""
    asked = []
    for number, (name, data) in enumerate((image_files() | GONE).items()):
        path = folder / f"{number}.tar"
        path.write_bytes(b"before" + data + b"behind")
        part = FilePart(str(path), 6, len(data))
        captions = (f"one {name}", "zwei é 🐟")[: number % 3]
        asked.append(AskedImage(name, part if number % 2 else part.__call__, captions))
    nowhere = FilePart(str(folder / "nowhere.tar"), 0, 5)
    asked.append(AskedImage("short", FilePart(str(folder / "0.tar"), 6, 10**6), ("x",)))
    asked.append(AskedImage("nowhere", nowhere, ("x",)))
    asked += [AskedImage(read.__name__, read, ("x",)) for read in (missing, unreadable, refused)]
    return asked


def test_a_process_finds_what_a_thread_finds(processes: ImageProcesses, tmp_path: Path) -> None:
    asked = asked_images(tmp_path)
    found = processes.read(asked)
    n_usable = 0
    for image, sent in zip(asked, found, strict=True):
        expected = read_record(image.key, image.read, decode_pixels(RESIZING, MOST))
        if isinstance(expected, UnusableImage):
            assert isinstance(sent, UnusableImage)
            assert (sent.reason, sent.detail) == (expected.reason, expected.detail)
            continue
        n_usable += 1
        assert isinstance(sent, SentImage)
        assert isinstance(expected, DecodedImage)
        np.testing.assert_array_equal(sent.pixels, expected.pixels)
        data = image.read()
        assert sent.sha256 == hashlib.sha256(data).hexdigest()
        assert sent.ids == {caption: pair_id(data, caption) for caption in image.captions}
    assert n_usable == len(image_files())


def test_threads_share_processes_that_end_when_they_are_closed(processes: ImageProcesses) -> None:
    data = [saved(natural(40, 30, seed)) for seed in range(24)]
    hands = [[AskedImage("", partial(bytes, image), ())] for image in data]
    with ThreadPoolExecutor(2) as threads:
        found = [sent for hand in threads.map(processes.read, hands) for sent in hand]
    decode = decode_pixels(RESIZING, MOST)
    for sent, image in zip(found, data, strict=True):
        assert isinstance(sent, SentImage)
        np.testing.assert_array_equal(sent.pixels, decode(image))
    started = pids(processes)
    assert 1 <= len(started) <= 2
    processes.close()
    assert not any(map(is_there, started))
    assert isinstance(processes.read(hands[0])[0], SentImage)  # one starts again
    assert len(pids(processes)) == 1


@pytest.mark.parametrize("at_work", [True, False])
def test_what_a_killed_process_had_is_read_by_another(
    processes: ImageProcesses, at_work: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hand = [AskedImage(key, partial(bytes, saved(natural(400, 300))), ()) for key in "abc"]
    processes.read(hand)
    (pid,) = pids(processes)
    os.kill(pid, signal.SIGSTOP if at_work else signal.SIGKILL)
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    if at_work:
        killer.start()
    assert all(isinstance(sent, SentImage) for sent in processes.read(hand))
    if at_work:  # else it may be seen before it is asked, and another is
        assert "ended (killed by SIGKILL); its 3 images are read once more: a to c" in caplog.text


# Stands in for a decoder that fails on some images, as libraries in C do.
FAILING = """
import os, signal, sys
sys.path[:] = [{{root!r}}, *filter(None, sys.path)]
from sources import decoding
decode = decoding.decode_resized

def fail(data, *rest):
    if data.startswith(b"fails"):
        os.kill(os.getpid(), signal.{signal})
    return decode(data, *rest)

decoding.decode_resized = fail
decoding.main()
"""


def hand_that_fails(n: int = 1) -> list[AskedImage]:
    """Images on the second of which, and on further ones, a decoder fails."""
    whole = partial(bytes, saved(natural(40, 30)))
    failing = [AskedImage(f"fails {i}", partial(bytes, b"fails"), ()) for i in range(n)]
    return [AskedImage("first", whole, ("x",)), *failing, AskedImage("last", whole, ("y",))]


def test_an_image_on_which_a_decoder_crashes_is_a_broken_image(
    processes: ImageProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sources.processes._PROGRAM", FAILING.format(signal="SIGSEGV"))
    first, broken, last = processes.read(hand_that_fails())
    assert isinstance(first, SentImage)
    assert isinstance(last, SentImage)
    assert [*first.ids, *last.ids] == ["x", "y"]
    assert isinstance(broken, UnusableImage)
    assert broken.reason == BROKEN_IMAGE
    assert broken.detail == "the process that decoded it: killed by SIGSEGV, twice"


def test_a_decoder_that_crashes_on_many_images_is_broken_itself(
    processes: ImageProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sources.processes._PROGRAM", FAILING.format(signal="SIGABRT"))
    monkeypatch.setattr("sources.processes.MOST_CRASHES", 1)
    with pytest.raises(InputError, match=r"image fails 1 .*SIGABRT.*1 images before.*pillow anew"):
        processes.read(hand_that_fails(2))


def test_processes_that_are_killed_again_end_the_reading_with_one_line(
    processes: ImageProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sources.processes._PROGRAM", FAILING.format(signal="SIGKILL"))
    expected = r"^--num_workers: .*image fails 0 ended \(killed by SIGKILL\), twice.*--load_saved"
    with pytest.raises(InputError, match=expected):
        processes.read(hand_that_fails())


def test_processes_that_end_while_idle_cost_no_image(processes: ImageProcesses) -> None:
    processes.start(3)
    hand = [AskedImage(key, partial(bytes, saved(natural(40, 30))), ()) for key in "abc"]
    processes.read(hand)
    for pid in pids(processes):
        os.kill(pid, signal.SIGSEGV)
    for _ in range(4):
        assert all(isinstance(sent, SentImage) for sent in processes.read(hand))


def test_a_decoder_that_comes_to_no_end_is_ended(
    processes: ImageProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = FAILING.format(signal="SIGKILL").replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "__import__('time').sleep(60)"
    )
    monkeypatch.setattr(
        "sources.processes._PROGRAM",
        program.replace("decode =", "decoding.MOST_SECONDS = 1; decode ="),
    )
    _, broken, last = processes.read(hand_that_fails())
    assert isinstance(last, SentImage)
    assert isinstance(broken, UnusableImage)
    assert broken.detail == "the process that decoded it: no answer for 300 seconds, twice"


def test_processes_are_closed_whatever_they_are_at(
    processes: ImageProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = AskedImage("a", partial(bytes, saved(natural(40, 30))), ())
    processes.read([image])
    (pid,) = pids(processes)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(processes.read, [image])
        time.sleep(0.3)
        started = time.monotonic()
        processes.close()
        assert time.monotonic() - started < 10
        with pytest.raises(RuntimeError, match="were closed"):
            waiting.result()
    assert not is_there(pid)


def test_who_answers_as_all_are_closed_is_not_asked_again(
    processes: ImageProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = AskedImage("a", partial(bytes, saved(natural(40, 30))), ())
    receive = processes._receive

    def closed_meanwhile(*answer: Any) -> Any:
        found = receive(*answer)
        processes.close()
        return found

    monkeypatch.setattr(processes, "_receive", closed_meanwhile)
    for _ in range(2):
        assert isinstance(processes.read([image])[0], SentImage)
    assert not processes._idle


def test_no_more_are_at_work_than_may_be() -> None:
    few = ImageProcesses(RESIZING, MOST, most=2)
    few.start(5)
    hand = [AskedImage("a", partial(bytes, saved(natural(40, 30))), ())]
    with ThreadPoolExecutor(5) as threads:
        found = list(threads.map(few.read, [hand] * 40))
    assert len(pids(few)) == 2
    few.close()
    assert all(isinstance(sent, SentImage) for (sent,) in found)


def test_what_hooks_of_an_installation_print_is_no_answer(
    processes: ImageProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = """
import atexit, os, sys
os.write(1, b"started\\nwithout an end" * 20_000)  # more than a pipe holds
print("kept back")
atexit.register(print, "ended")
"""
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    image = AskedImage("a", lambda: saved(natural(400, 300), quality=100), ())
    for _ in range(2):
        assert isinstance(processes.read([image] * 9)[0], SentImage)
    assert len(pids(processes)) == 1


def test_an_interrupt_leaves_the_end_to_the_program(processes: ImageProcesses) -> None:
    image = AskedImage("a", lambda: saved(natural(40, 30)), ())
    processes.read([image])
    (pid,) = pids(processes)
    os.kill(pid, signal.SIGINT)
    assert isinstance(processes.read([image])[0], SentImage)
    assert pids(processes) == [pid]


def test_an_interrupt_of_the_terminal_does_not_reach_a_process_that_starts(
    processes: ImageProcesses,
) -> None:
    processes.start(1)
    (pid,) = pids(processes)
    assert os.getpgid(pid) == pid  # a terminal signals the group of whoever is in front


PROGRAM = """
import sys, os, signal
sys.path.insert(0, {root!r})
from sources.pixels import Resizing
from sources.processes import AskedImage, ImageProcesses
processes = ImageProcesses(Resizing((4, 4), None, 3), 1000)
processes.read([AskedImage("a", lambda: b"", ())])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_outlives_a_program_that_is_killed() -> None:
    program = [sys.executable, "-c", PROGRAM.format(root=str(ROOT))]
    # What it started has the same standard error, which is read until nobody has it any more.
    done = subprocess.run(program, stderr=subprocess.PIPE, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == b""


@pytest.mark.parametrize("says", ["half a question", "no answer wanted"])
def test_a_process_whose_program_was_ended_ends_without_a_word(says: str) -> None:
    settings = {"resizing": Resizing((4, 4), None, 3).to_json(), "max_pixels": 1000, "greeting": ""}
    command = [sys.executable, "-c", _PROGRAM.format(root=str(ROOT))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        write_frame(program.stdin, settings)  # type: ignore[arg-type]
        if says == "half a question":
            program.stdin.write(LENGTH.pack(100) + b"{")
        else:
            program.stdout.close()
            write_frame(program.stdin, {"images": [], "side": 0})  # type: ignore[arg-type]
        program.stdin.close()
        assert program.stderr.read() == b""
    assert program.returncode == 1


def test_the_folder_it_is_started_in_is_no_place_for_modules(
    processes: ImageProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('a module of the data')")
    monkeypatch.chdir(tmp_path)
    (found,) = processes.read([AskedImage("a", lambda: b"", ())])
    assert isinstance(found, UnusableImage)


def test_small_copies_are_made_by_the_process_and_no_more_than_wanted() -> None:
    kept: dict[str, bytes] = {}
    processes = ImageProcesses(RESIZING, MOST, SmallCopies(kept, 3, 16))
    data = [saved(natural(40, 30, seed)) for seed in range(5)]
    processes.read([AskedImage("", partial(bytes, each), ()) for each in data])
    processes.close()
    expected: dict[str, bytes] = {}
    watch = SmallCopies(expected, 3, 16)
    for each in data:
        decode_pixels(RESIZING, MOST, watch)(each)
    assert kept == expected
    assert [*kept] == [hashlib.sha256(each).hexdigest() for each in data[:3]]

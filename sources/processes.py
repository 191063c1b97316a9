"""Processes that read images, as threads cannot: those that decode hold each other up.

See `decoding` for what runs in them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.cores import ONE_THREAD
from artifacts.settings import InputError
from sources.base import UnusableImage
from sources.decoding import read_exactly, read_frame, write_frame
from sources.images import SmallCopies, read_file_of
from sources.pixels import Resizing
from sources.tar import FilePart

# Fewer images are read by threads: what the processes save then is not what starting them takes.
LEAST_IMAGES = 1000
IMAGES_A_HAND = 16  # asked for at once; fewer keep a process waiting for the next, more a batch
SECONDS_TO_END = 5.0
_ROOT = Path(__file__).resolve().parents[1]
# The folder that it is started in is no place for modules.
_PROGRAM = (
    "import sys; sys.path[:] = [{root!r}, *filter(None, sys.path)]; "
    "from sources.decoding import main; main(sys.stdin.buffer, sys.stdout.buffer)"
)


@dataclass(frozen=True)
class AskedImage:
    """An image that is to be read.

    Attributes:
        key: of the image in its source.
        read: gives the file's bytes; a `FilePart` is opened in the process, others in a thread.
        captions: of the pairs that want a name.
    """

    key: str
    read: Callable[[], bytes]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class SentImage:
    """What a process found of an image.

    Attributes:
        sha256: of the image file, hexadecimal.
        ids: names of the pairs, by captions.
        pixels: (height, width, 3), uint8.
    """

    sha256: str
    ids: Mapping[str, str]
    pixels: np.ndarray


class ImageProcesses:
    """Processes that read images, started as threads ask for them: one a thread that does."""

    def __init__(
        self, resizing: Resizing, max_pixels: int, copies: SmallCopies | None = None
    ) -> None:
        """None is started yet.

        Args:
            resizing: what is made of an image.
            max_pixels: see `decode_image`.
            copies: kept of the first images.
        """
        self._settings = {"resizing": resizing.to_json(), "max_pixels": max_pixels}
        self._shape, self._copies = resizing.shape, copies
        self._idle: list[subprocess.Popen[bytes]] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _end, self._started)

    def read(self, asked: Sequence[AskedImage]) -> list[SentImage | UnusableImage]:
        """What becomes of some images, in their order; for any number of threads.

        Raises:
            InputError: the process was ended from outside.
            StorageGoneError: the place of the data is gone.
        """
        found: dict[int, SentImage | UnusableImage] = {}
        sent: dict[int, dict[str, Any]] = {}
        parts: list[bytes] = []
        for number, image in enumerate(asked):
            about: dict[str, Any] = {"captions": image.captions}
            if isinstance(image.read, FilePart):
                about |= {"key": image.key, "part": image.read.as_list()}
            else:
                try:
                    parts.append(read_file_of(image.key, image.read))
                except UnusableImage as unusable:
                    found[number] = unusable
                    continue
                about["bytes"] = len(parts[-1])
            sent[number] = about
        if sent:
            outcomes = self._ask(list(sent.values()), parts)
            found |= dict(zip(sent, outcomes, strict=True))
        return [found[number] for number in range(len(asked))]

    def start(self, n: int) -> None:
        """Have so many start, which takes them a moment in which something else can be done."""
        with self._lock:
            while len(self._started) < n:
                self._idle.append(self._new())

    def close(self) -> None:
        """End all of them; they start again when images are asked for."""
        with self._lock:
            self._idle.clear()
            _end(self._started)

    def _ask(
        self, images: Sequence[Mapping[str, Any]], parts: Sequence[bytes]
    ) -> list[SentImage | UnusableImage]:
        """What a process answers; it is not asked again if that fails."""
        wants_copies = self._copies is not None and self._copies.wants_more()
        side = self._copies.side if self._copies is not None and wants_copies else 0
        process = self._take()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            write_frame(process.stdin, {"images": images, "side": side}, parts)  # type: ignore[arg-type]
            facts = read_frame(process.stdout)  # type: ignore[arg-type]
            if facts is None:
                raise EOFError
            found = self._receive(images, facts, process.stdout)
        except (EOFError, OSError) as error:
            raise InputError(_how_it_ended(process)) from error
        except BaseException:
            process.kill()
            raise
        with self._lock:
            self._idle.append(process)
        return found

    def _receive(
        self, images: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, Any]], file: Any
    ) -> list[SentImage | UnusableImage]:
        """The answer, with the pixels that follow it."""
        n_usable = sum("sha256" in fact for fact in facts)
        pixels = np.empty((n_usable, *self._shape), np.uint8)
        if n_usable and file.readinto(pixels.reshape(-1)) < pixels.nbytes:
            raise EOFError
        rows = iter(pixels)
        found: list[SentImage | UnusableImage] = []
        for image, fact in zip(images, facts, strict=True):
            if "reason" in fact:
                found.append(UnusableImage(fact["reason"], fact["detail"]))
                continue
            ids = dict(zip(image["captions"], fact["ids"], strict=True))
            found.append(SentImage(fact["sha256"], ids, next(rows)))
            copy = read_exactly(file, fact["copy"])
            if copy and self._copies is not None and self._copies.wants_more():
                self._copies.keep(fact["sha256"], copy)
        return found

    def _take(self) -> subprocess.Popen[bytes]:
        """A process that has nothing to do, a new one if need be."""
        with self._lock:
            return self._idle.pop() if self._idle else self._new()

    def _new(self) -> subprocess.Popen[bytes]:
        """One more; for who holds the lock."""
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(root=str(_ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,  # else NumPy starts a thread a core as it is imported
            start_new_session=True,  # Ctrl-C is for whoever started it, which ends it
        )
        self._started.append(process)
        assert process.stdin is not None
        with suppress(OSError):  # it is seen when it is asked
            write_frame(process.stdin, self._settings)  # type: ignore[arg-type]
        return process


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Have processes end, and wait for them."""
    for process in processes:
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError, ValueError):
                if pipe is not None:
                    pipe.close()
    for process in processes:
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    processes.clear()


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    return (
        f"--num_workers: a process that reads images ended ({how}), as where memory is short or a "
        "decoder fails on a damaged image; give fewer, or 0 to read in the main process"
    )

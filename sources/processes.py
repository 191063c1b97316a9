"""Processes that read images, as threads cannot: those that decode hold each other up.

See `decoding` for what runs in them.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

from artifacts.cores import ONE_THREAD
from artifacts.settings import InputError
from sources.base import BROKEN_IMAGE, UnusableImage
from sources.decoding import MOST_SECONDS, read_exactly, read_frame, write_frame
from sources.images import SmallCopies, read_file_of
from sources.pixels import Resizing
from sources.tar import FilePart

logger = logging.getLogger(__name__)
# Fewer images are read by threads: what the processes save then is not what starting them takes.
LEAST_IMAGES = 1000
MOST_PROCESSES = 64
SECONDS_TO_END = 1.0  # of a process whose pipe has ended, to have ended itself
IMAGES_A_HAND = 16  # asked for at once; fewer keep a process waiting for the next, more a batch
# A decoder that crashes on an image loses that image. On so many the fault is the decoder's own.
MOST_CRASHES = 100
_CRASHES = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGALRM")
    if hasattr(signal, name)  # not every system has them
}
_ROOT = Path(__file__).resolve().parents[1]
# The folder that it is started in is no place for modules.
_PROGRAM = (
    "import sys; sys.path[:] = [{root!r}, *filter(None, sys.path)]; "
    "from sources.decoding import main; main()"
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


@runtime_checkable  # types are checked while the tests run
class ImageReaders(Protocol):
    """What reads images in the place of a thread.

    Attributes:
        images_a_hand: that are best asked for at once.
        least_images: fewer are read by threads.
    """

    images_a_hand: int
    least_images: int

    def read(self, asked: Sequence[AskedImage]) -> list[SentImage | UnusableImage]:
        """What becomes of some images, in their order; for any number of threads."""
        ...

    def start(self, n: int) -> None:
        """Have as many start as threads will ask."""
        ...

    def close(self) -> None:
        """End all of them."""
        ...


class _Question(NamedTuple):
    """An image as a process is asked for it.

    Attributes:
        key: of the image in its source.
        about: what it is told.
        data: the file's bytes where it does not open the file itself.
    """

    key: str
    about: dict[str, Any]
    data: bytes | None


class _EndedError(Exception):
    """A process ended before it had answered.

    Attributes:
        code: as `subprocess` has it.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    @property
    def is_crash(self) -> bool:
        """Whether a decoder crashed or came to no end, not someone from outside ended it."""
        return -self.code in _CRASHES

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit status {self.code}"
        if -self.code == getattr(signal, "SIGALRM", None):
            return f"no answer for {MOST_SECONDS} seconds"
        try:
            return f"killed by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"killed by signal {-self.code}"


class ImageProcesses:
    """Processes that read images, started as threads ask for them: one a thread that does.

    No more are at work at once than there may be; a thread waits where all are. Where one ends, the
    images that it had are asked for once more, each alone and of a new process. An image on which a
    decoder crashes again, or comes to no end, is a broken image; any other end ends the run.
    """

    images_a_hand = IMAGES_A_HAND
    least_images = LEAST_IMAGES

    def __init__(
        self,
        resizing: Resizing,
        max_pixels: int,
        copies: SmallCopies | None = None,
        *,
        most: int = MOST_PROCESSES,
    ) -> None:
        """None is started yet.

        Args:
            resizing: what is made of an image.
            max_pixels: see `decode_image`.
            copies: kept of the first images.
            most: processes that are at work at once.
        """
        self._settings = {"resizing": resizing.to_json(), "max_pixels": max_pixels}
        self._shape, self._copies = resizing.shape, copies
        self._idle: list[_Process] = []
        self._started: list[_Process] = []
        self._lock = threading.Lock()
        self._most, self._places = most, threading.BoundedSemaphore(most)
        self._n_crashes = 0
        self._finalizer = weakref.finalize(self, _end, self._started)

    def read(self, asked: Sequence[AskedImage]) -> list[SentImage | UnusableImage]:
        """What becomes of some images, in their order; for any number of threads.

        Raises:
            InputError: a process was ended from outside, twice.
            StorageGoneError: the place of the data is gone.
        """
        found: dict[int, SentImage | UnusableImage] = {}
        questions: dict[int, _Question] = {}
        for number, image in enumerate(asked):
            about: dict[str, Any] = {"captions": image.captions}
            data = None
            if isinstance(image.read, FilePart):
                about |= {"key": image.key, "part": image.read.as_list()}
            else:
                try:
                    data = read_file_of(image.key, image.read)
                except UnusableImage as unusable:
                    found[number] = unusable
                    continue
                about["bytes"] = len(data)
            questions[number] = _Question(image.key, about, data)
        if questions:
            outcomes = self._ask(list(questions.values()))
            found |= dict(zip(questions, outcomes, strict=True))
        return [found[number] for number in range(len(asked))]

    def start(self, n: int) -> None:
        """Have so many start, which takes them a moment in which something else can be done."""
        with self._lock:
            while len(self._started) < min(n, self._most):
                self._idle.append(self._new())

    def close(self) -> None:
        """End all of them, whatever they are at; they start again when images are asked for."""
        with self._lock:
            self._idle.clear()
            _end(self._started)

    def _ask(self, questions: Sequence[_Question]) -> list[SentImage | UnusableImage]:
        """What a process answers, or what others do of each image alone."""
        try:
            return self._answer(questions)
        except _EndedError as ended:
            logger.warning(
                "a process that reads images ended (%s); %s read once more: %s",
                ended,
                "its image is" if len(questions) == 1 else f"its {len(questions)} images are",
                _shown([question.key for question in questions]),
            )
        return [self._ask_alone(question) for question in questions]

    def _ask_alone(self, question: _Question) -> SentImage | UnusableImage:
        """What a process answers to one image that another one ended with.

        Raises:
            InputError: this one ends as well, from outside or on one of many images.
        """
        try:
            (found,) = self._answer([question], is_new=True)
        except _EndedError as ended:
            with self._lock:
                self._n_crashes += ended.is_crash
                is_decoder = self._n_crashes > MOST_CRASHES
            if not ended.is_crash or is_decoder:
                raise InputError(_how_it_ended(question.key, ended, is_decoder)) from ended
            return UnusableImage(BROKEN_IMAGE, f"the process that decoded it: {ended}, twice")
        return found

    def _answer(
        self, questions: Sequence[_Question], *, is_new: bool = False
    ) -> list[SentImage | UnusableImage]:
        """What a process answers, on wish one that was asked nothing before.

        It is not asked again if that fails.

        Raises:
            _EndedError: it ended.
        """
        wants_copies = self._copies is not None and self._copies.wants_more()
        side = self._copies.side if self._copies is not None and wants_copies else 0
        images = [question.about for question in questions]
        parts = [question.data for question in questions if question.data is not None]
        with self._places:
            process = self._take(is_new)
            try:
                facts = process.ask({"images": images, "side": side}, parts)
                found = self._receive(images, facts, process.answers)
            except (EOFError, OSError) as error:
                raise self._why_it_ended(process) from error
            except BaseException:
                process.kill()
                raise
            with self._lock:
                if process in self._started:  # else all were closed meanwhile
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

    def _take(self, is_new: bool) -> _Process:
        """A process that lives and has nothing to do, a new one if need be."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.lives and not is_new:
                    return process
                self._started.remove(process)
                process.kill()
                process.end()
                if is_new:  # which takes its place
                    break
            return self._new()

    def _new(self) -> _Process:
        """One more; for who holds the lock."""
        process = _Process(self._settings)
        self._started.append(process)
        return process

    def _why_it_ended(self, process: _Process) -> Exception:
        """What to raise of a process that answers no more, which is forgotten."""
        with self._lock:
            if process not in self._started:
                return RuntimeError("the processes that read images were closed")
            self._started.remove(process)
        return _EndedError(process.end())


class _Process:
    """An interpreter that decodes.

    What a hook of the installation prints while it starts stands before its first answer, and is
    passed over; what is printed later goes to standard error.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._greeting: bytes | None = secrets.token_hex(16).encode()
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(root=str(_ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,  # else NumPy starts a thread a core as it is imported
            start_new_session=True,  # Ctrl-C is for whoever started it, which ends it
        )
        self._questions = cast(BinaryIO, self._popen.stdin)
        self.answers = cast(BinaryIO, self._popen.stdout)
        with suppress(OSError):  # it is seen when it is asked
            write_frame(self._questions, {**settings, "greeting": self._greeting.decode()})

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._popen.pid

    def ask(self, question: Any, parts: Sequence[bytes]) -> Any:
        """The answer to a question; what follows it stands in `answers`.

        Raises:
            EOFError, OSError: it ended.
        """
        while self._greeting is not None:  # first: it may have much to print before it listens
            line = self.answers.readline()
            if not line:
                raise EOFError
            if line.endswith(self._greeting + b"\n"):
                self._greeting = None
        write_frame(self._questions, question, parts)
        answer = read_frame(self.answers)
        if answer is None:
            raise EOFError
        return answer

    @property
    def lives(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """End it at once; it holds nothing that would have to be put away."""
        self._popen.kill()

    def end(self) -> int:
        """The exit status; it is killed if it has not ended, so that nobody waits for its pipes."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(SECONDS_TO_END)
        self._popen.kill()
        code = self._popen.wait()
        for pipe in (self._questions, self.answers):
            with suppress(OSError, ValueError):
                pipe.close()
        return code


def _end(processes: list[_Process]) -> None:
    """End processes, whatever they are at."""
    for process in processes:
        process.kill()
    for process in processes:
        process.end()
    processes.clear()


def _shown(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"


def _how_it_ended(key: str, ended: _EndedError, is_decoder: bool) -> str:
    what = f"--num_workers: a process that read the image {key} ended ({ended})"
    if is_decoder:
        return (
            f"{what}, as did those of {MOST_CRASHES} images before it: a library that decodes them "
            "is broken here; install pillow anew, and give --load_saved to go on"
        )
    why = "as where memory is short" if ended.code < 0 else "what it printed above says why"
    return (
        f"{what}, twice, {why}; give fewer, or 0 to read in the main process, and --load_saved to "
        "go on with what is saved"
    )

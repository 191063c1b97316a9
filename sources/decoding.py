"""What runs in a process that reads images: files opened, hashed, decoded and resized.

Such a process is an interpreter of its own that imports little, asked through its standard input
and answering through what was its standard output: a frame of JSON, with bytes behind it. Nothing
is unpickled; it ends when its input does, so with whoever started it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from sources.base import UnusableImage
from sources.images import decode_resized, pair_ids, read_file_of, small_copy
from sources.pixels import Resizing
from sources.tar import FilePart

LENGTH = struct.Struct(">Q")
MOST_SECONDS = 300  # that one image may take: a decoder that comes to no end is ended


def write_frame(file: BinaryIO, content: Any, parts: Sequence[Any] = ()) -> None:
    """Write what JSON can hold, and bytes behind it."""
    text = json.dumps(content).encode()
    file.write(LENGTH.pack(len(text)) + text)
    for part in parts:
        file.write(part)
    file.flush()


def read_frame(file: BinaryIO) -> Any:
    """What JSON held; None at the end of the file.

    Raises:
        EOFError: it ends in the middle of it.
    """
    head = file.read(LENGTH.size)
    return json.loads(read_exactly(file, LENGTH.unpack(head)[0])) if head else None


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: there are fewer.
    """
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main() -> None:
    """Answer what is asked until the end of the input, or until nobody is there to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides
    sys.stdout.flush()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed is no answer
    try:
        _answer(sys.stdin.buffer, answers)
    except (EOFError, BrokenPipeError):  # whoever started it was ended; nothing is left to flush to
        os._exit(1)


def _answer(stdin: BinaryIO, stdout: BinaryIO) -> None:
    settings = read_frame(stdin)
    if settings is None:
        return
    resizing, max_pixels = Resizing.from_json(settings["resizing"]), settings["max_pixels"]
    stdout.write(settings["greeting"].encode() + b"\n")  # behind it stand answers alone
    stdout.flush()
    while (request := read_frame(stdin)) is not None:
        facts, pixels, copies = [], [], []
        for asked in request["images"]:
            data = read_exactly(stdin, asked["bytes"]) if "bytes" in asked else None
            _end_after(MOST_SECONDS)
            try:
                fact, rows, copy = _read(asked, data, max_pixels, resizing, request["side"])
            except UnusableImage as unusable:
                facts.append({"reason": unusable.reason, "detail": unusable.detail})
                continue
            facts.append(fact)
            pixels.append(rows)
            copies.append(copy)
        _end_after(0)
        write_frame(stdout, facts, [*pixels, *copies])


def _end_after(seconds: int) -> None:
    """End this process by a signal after so long, whatever it is at then; 0: do not."""
    if hasattr(signal, "alarm"):  # not every system has it
        signal.alarm(seconds)


def _read(
    asked: Mapping[str, Any], data: bytes | None, max_pixels: int, resizing: Resizing, side: int
) -> tuple[dict[str, Any], np.ndarray, bytes]:
    """What is found of an image, its pixels and its small copy; without a side there is none.

    Raises:
        UnusableImage: it cannot be had or used.
    """
    if data is None:
        data = read_file_of(asked["key"], FilePart(*asked["part"]))
    pixels, image = decode_resized(data, max_pixels, resizing)
    copy = small_copy(image, side) if side else b""
    seen = hashlib.sha256(data)
    ids = pair_ids(seen, asked["captions"])
    fact = {"sha256": seen.hexdigest(), "ids": ids, "copy": len(copy)}
    return fact, np.ascontiguousarray(pixels), copy

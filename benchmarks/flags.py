"""Types of a benchmark's flags: a wrong value is one line that names the flag, and status 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """What makes a whole number, no smaller than this, of a flag's text."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"give a whole number of at least {least}; got {text}")
        return number

    return parse


positive = at_least(1)


def as_seconds(text: str) -> float:
    """A duration, more than none and with an end."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"give a number of seconds above 0; got {text}")
    return number


def as_folder(text: str) -> Path:
    """A folder that is there or can be made."""
    path = Path(text)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"{part} is a file; give a folder")
    return path


def as_json_file(text: str) -> Path:
    """A file for results, in a folder that is there or can be made."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"give a file whose name ends in .json; got {text}")
    as_folder(str(path.parent))
    return path

"""Finding the files that tables name: as written, else where the answer is unique.

Tables travel without their folders, from systems that write names in other ways. What is bridged
is counted: another folder, Unicode in another form (NFC here, NFD on a Mac), the case of letters,
a name without its extension.
"""

from __future__ import annotations

import bisect
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from sources.image_files import is_image_name
from sources.paths import clean_path, read_file, split_from_path, storable_name

N_NEAR = 8  # names on either side, in the order of names, that the nearest one is looked for among


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _nfc(name).casefold()


def _stem(name: str) -> str:
    return posixpath.splitext(_folded(name))[0] if is_image_name(name) else _folded(name)


# How a name is compared, and what that bridges, from the nearest to the furthest.
BRIDGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("in another folder", str),
    ("of another Unicode form", _nfc),
    ("with letters of another case", _folded),
    ("without an extension", _stem),
)


class Locator:
    """The files of a folder, found by what tables call them."""

    def __init__(self, root: Path, files: Collection[str]) -> None:
        """`files` are paths from `root`, in order."""
        self._root, self._files = root, files
        self._prefixes: dict[str | None, str] = {}  # by split
        self._found: dict[tuple[str, str, str | None], str] = {}
        self._bridges: dict[tuple[str, str, str | None], str] = {}  # by what was asked for
        self._by_name: dict[int, dict[str, list[str]]] = {}

    def learn(self, written: Iterable[str], split: str | None = None) -> None:
        """Note which folder most names start from of those that are not there as written.

        Args:
            written: names in a table.
            split: that the table's name tells; folders of other splits do not count then.
        """
        prefixes: Counter[str] = Counter()
        for name in {clean_path(name.strip()) for name in set(written)}:
            if name and name not in self._files:
                alike = self._names(0).get(posixpath.basename(name), [])
                for path in _of_split(alike, split):
                    if path.endswith(f"/{name}"):
                        prefixes[path[: -len(name)]] += 1
        self._prefixes[split] = min(prefixes, key=lambda p: (-prefixes[p], p), default="")

    @property
    def bridged(self) -> Counter[str]:
        """How many names were found otherwise than as written, by what was bridged."""
        return Counter(self._bridges.values())

    def notes(self) -> list[str]:
        """What was bridged, in a phrase."""
        parts = [f"{n:,} {how}" for how, n in self.bridged.most_common()]
        return [f"files found otherwise than as named: {', '.join(parts)}"] if parts else []

    def find(self, written: str, beside: str = "", split: str | None = None) -> str:
        """The path of a file from the root; the name as it is written where there is none.

        Args:
            written: in a table.
            beside: folder of the table, which a name may start from.
            split: of the image, where that is known: of files of the same name it tells the right.
        """
        asked = (written, beside, split)
        if asked not in self._found:
            self._found[asked] = self._look_up(clean_path(written.strip()), asked)
        return self._found[asked]

    def _look_up(self, written: str, asked: tuple[str, str, str | None]) -> str:
        _, beside, split = asked
        near = clean_path(posixpath.join(beside, written)) if written else ""
        for path in (near, written):
            if path in self._files:
                return path
        if not written:
            return ""
        prefix = self._prefixes.get(split, "")
        if prefix and prefix + written in self._files:
            self._bridges[asked] = f"below {storable_name(prefix)}"
            return prefix + written
        has_extension = is_image_name(written)  # another one would be another file
        for level, (how, same) in enumerate(BRIDGES[:-1] if has_extension else BRIDGES):
            alike = self._names(level).get(same(posixpath.basename(written)), [])
            best = _most_alike(written, _of_split(alike, split), same)
            if len(best) == 1:
                self._bridges[asked] = how
                return best[0]
            if best:
                break
        return near

    def _names(self, level: int) -> dict[str, list[str]]:
        """Paths by their base name as one of `BRIDGES` compares it."""
        if level not in self._by_name:
            same = BRIDGES[level][1]
            self._by_name[level] = {}
            for path in self._files:
                if level < len(BRIDGES) - 1 or is_image_name(path):
                    name = same(posixpath.basename(path))
                    self._by_name[level].setdefault(name, []).append(path)
        return self._by_name[level]

    # --- What is missing --------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """The bytes of a file; see `read_file`.

        Raises:
            FileNotFoundError: there is none; it tells the path and the nearest name that exists.
            UnusableImage, OSError: as `read_file` does.
        """
        try:
            return read_file(self._root, path)
        except (FileNotFoundError, NotADirectoryError):
            self._miss(path)

    def _miss(self, path: str) -> NoReturn:
        nearest = self.nearest(path)
        hint = f"; the nearest name is {storable_name(nearest)}" if nearest else ""
        raise FileNotFoundError(f"{storable_name(path)}{hint}")

    def nearest(self, path: str) -> str:
        """The path of the file whose name is most like this one's; "" where none is like it."""
        name = _folded(posixpath.basename(path))
        place = bisect.bisect(self._sorted_names, (name,))
        near = self._sorted_names[max(0, place - N_NEAR) : place + N_NEAR]
        likeness = [(SequenceMatcher(None, name, other).ratio(), p) for other, p in near]
        best, found = max(likeness, default=(0.0, ""))
        return found if best >= 0.6 else ""

    @cached_property
    def _sorted_names(self) -> list[tuple[str, str]]:
        return sorted((_folded(posixpath.basename(path)), path) for path in self._files)


def _of_split(paths: Sequence[str], split: str | None) -> Sequence[str]:
    """The paths in folders that name a split; all where there is none such."""
    if split is None or len(paths) < 2:
        return paths
    return [path for path in paths if split_from_path(posixpath.dirname(path)) == split] or paths


def _most_alike(written: str, paths: Iterable[str], same: Callable[[str], str]) -> list[str]:
    """The paths that share most of the written one's last folders: all that share as many."""
    parts = [same(part) for part in reversed(posixpath.dirname(written).split("/"))]
    best: list[str] = []
    most = -1
    for path in paths:
        folders = [same(part) for part in reversed(posixpath.dirname(path).split("/"))]
        n_shared = next(
            (i for i, (a, b) in enumerate(zip(parts, folders, strict=False)) if a != b),
            min(len(parts), len(folders)),
        )
        if n_shared > most:
            best, most = [], n_shared
        if n_shared == most:
            best.append(path)
    return best

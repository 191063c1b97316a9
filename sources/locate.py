"""Finding the files that tables name: as written, else where the answer is unique.

Tables travel without their folders, from systems that write names in other ways. What is bridged
is counted: another folder, Unicode in another form (NFC here, NFD on a Mac), the case of letters,
escapes of addresses, a name without its extension, a number without its zeros. All names of a data
set are looked at together: two of them never lead to one file, and a file that is missing from a
folder is not looked for in another one.
"""

from __future__ import annotations

import bisect
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from typing import NamedTuple, NoReturn
from urllib.parse import unquote

from sources.image_files import is_image_name
from sources.paths import clean_path, read_file, split_from_path, storable_name
from sources.places import Place

N_NEAR = 8  # names on either side, in the order of names, that the nearest one is looked for among
N_SHOWN = 3  # of files that have the same name
LEAST_LIKENESS = 0.6  # of a name that is called near


class Asked(NamedTuple):
    """A file that is looked for.

    Attributes:
        written: its name in a table.
        beside: folder of the table, which a name may start from.
        split: of the image, where that is known: of files of the same name it tells the right.
    """

    written: str
    beside: str = ""
    split: str | None = None


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _nfc(name).casefold()


def _unescaped(name: str) -> str:
    return _folded(unquote(name.partition("?")[0]))


def _stem(name: str) -> str:
    name = _folded(name)
    return posixpath.splitext(name)[0] if is_image_name(name) else name


def _number(name: str) -> str:
    stem = _stem(name)
    return stem.lstrip("0") or "0" if stem.isdecimal() else ""


# How a name is compared, and what that bridges, from the nearest to the furthest. The last two
# compare with names of images alone; another extension than the written one is another file.
BRIDGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("in another folder", str),
    ("of another Unicode form", _nfc),
    ("with letters of another case", _folded),
    ("written as in addresses", _unescaped),
    ("without an extension", _stem),
    ("by their number", _number),
)
N_WITH_EXTENSION = 4


class Locator:
    """The files of a folder, found by what tables call them."""

    def __init__(self, root: Place, files: Collection[str]) -> None:
        """`files` are paths from `root`, in order."""
        self._root, self._files = root, files
        self._clean: dict[str, str] = {}  # names as they are written, and plainly
        self._found: dict[Asked, str] = {}
        self._bridges: dict[Asked, str] = {}
        self._several: dict[str, Sequence[str]] = {}  # by the path that is given for them
        self._by_name: dict[int, dict[str, list[str]]] = {}

    def find(self, written: str, beside: str = "", split: str | None = None) -> str:
        """The path of a file from the root; the name as it is written where there is none."""
        asked = self._cleaned(Asked(written, beside, split))
        if asked not in self._found:
            self.plan([asked])
        return self._found[asked]

    def plan(self, names: Iterable[Asked]) -> None:
        """Find all the files that the tables of a data set name."""
        asked = [a for a in dict.fromkeys(map(self._cleaned, names)) if a not in self._found]
        self._found |= {each: self._as_written(each) for each in asked}
        lost = [a for a in asked if a.written and self._found[a] not in self._files]
        if not lost:
            return
        named = {path for each in asked if (path := self._found[each]) in self._files}
        choices = _Choices(lost, self._names(0), self._files)
        claims: dict[str, list[Asked]] = defaultdict(list)
        for each in lost:
            bridge = self._bridge(each, choices)
            if bridge is not None and bridge[0] not in named:
                self._bridges[each] = bridge[1]
                claims[bridge[0]].append(each)
        for path, claiming in claims.items():
            meant = _meant(path, claiming)
            self._found |= dict.fromkeys(meant, path)
            for each in set(claiming) - set(meant):
                del self._bridges[each]

    def _cleaned(self, asked: Asked) -> Asked:
        """The same with a path that is written plainly."""
        written = self._clean.get(asked.written)
        if written is None:
            written = self._clean[asked.written] = clean_path(asked.written.strip())
        return asked if written == asked.written else asked._replace(written=written)

    @property
    def bridged(self) -> Counter[str]:
        """How many names were found otherwise than as written, by what was bridged."""
        return Counter(self._bridges.values())

    def notes(self) -> list[str]:
        """What was bridged, in a phrase."""
        parts = [f"{n:,} {how}" for how, n in self.bridged.most_common()]
        return [f"files found otherwise than as named: {', '.join(parts)}"] if parts else []

    # --- Looking ----------------------------------------------------------------------------------

    def _as_written(self, asked: Asked) -> str:
        """The path where a file should be: seen from the table's folder, else from the root."""
        written, beside, _ = asked
        if not (written and beside):
            return written
        near = clean_path(posixpath.join(beside, written))
        return written if near not in self._files and written in self._files else near

    def _bridge(self, asked: Asked, choices: _Choices) -> tuple[str, str] | None:
        """The one file that a name can mean, and what is bridged; None where there is none."""
        base = posixpath.basename(asked.written)
        n_levels = N_WITH_EXTENSION if is_image_name(base) else len(BRIDGES)
        for level, (how, same) in enumerate(BRIDGES[:n_levels]):
            alike = self._names(level).get(same(base))
            best = choices.narrow(asked, alike, same) if alike else ()
            if len(best) > 1:
                self._several[self._found[asked]] = best
            if best:
                label = choices.label(asked, best[0]) or how
                return (best[0], label) if len(best) == 1 else None
        return None

    def _names(self, level: int) -> dict[str, list[str]]:
        """Paths by their base name as one of `BRIDGES` compares it."""
        if level not in self._by_name:
            same, found = BRIDGES[level][1], defaultdict(list)
            for path in self._files:
                if level < N_WITH_EXTENSION or is_image_name(path):
                    found[same(posixpath.basename(path))].append(path)
            found.pop("", None)
            self._by_name[level] = dict(found)
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
        several, nearest = self._several.get(path, ()), self.nearest(path)
        hint = f"; the nearest name is {nearest}" if nearest else ""
        if several:
            hint = f"; several files have this name: {', '.join(several[:N_SHOWN])}"
        raise FileNotFoundError(storable_name(path + hint))

    def nearest(self, path: str) -> str:
        """The path of the file whose name is most like this one's; "" where none is like it."""
        name = _folded(posixpath.basename(path))
        place = bisect.bisect(self._sorted_names, (name,))
        near = self._sorted_names[max(0, place - N_NEAR) : place + N_NEAR]
        likeness = [(SequenceMatcher(None, name, other).ratio(), p) for other, p in near]
        best, found = max(likeness, default=(0.0, ""))
        return found if best >= LEAST_LIKENESS else ""

    @cached_property
    def _sorted_names(self) -> list[tuple[str, str]]:
        return sorted((_folded(posixpath.basename(path)), path) for path in self._files)


class _Choices:
    """What the names that are not there as written have in common, table by table."""

    def __init__(
        self, lost: Sequence[Asked], by_name: dict[str, list[str]], files: Collection[str]
    ) -> None:
        """Look at all of them.

        Args:
            lost: names that are not there as written.
            by_name: files by their base names.
            files: all of them.
        """
        self._folders = {
            posixpath.basename(folder) for folder in set(map(posixpath.dirname, files))
        }
        self._n_named = Counter(posixpath.basename(path) for path in {a.written for a in lost})
        prefixes: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
        sizes: Counter[tuple[str, str | None]] = Counter()
        for written, beside, split in lost:
            table = beside, split
            sizes[table] += 1
            for path in _of_split(by_name.get(posixpath.basename(written), ()), split):
                if path.endswith(f"/{written}"):
                    prefixes[table][path[: -len(written)]] += 1
        self._usual = {
            table: min(found, key=lambda p: (-found[p], p)) for table, found in prefixes.items()
        }
        whole = {t: [p for p, n in found.items() if n == sizes[t]] for t, found in prefixes.items()}
        self._whole = {table: found[0] for table, found in whole.items() if len(found) == 1}

    def narrow(
        self, asked: Asked, paths: Sequence[str], same: Callable[[str], str]
    ) -> Sequence[str]:
        """Of files of the same base name those that a name can mean.

        In folders of its split, below the table's own folder, most alike in their last folders,
        in the one folder that has all names of the table.
        """
        paths = _of_split(paths, asked.split)
        if asked.beside and len(paths) > 1:
            paths = [p for p in paths if p.startswith(f"{asked.beside}/")] or paths
        best, n_shared = _most_alike(asked.written, paths, same)
        if not n_shared and self._contradicts(asked.written):
            return []
        whole = self._whole.get((asked.beside, asked.split))
        if len(best) > 1 and whole is not None and whole + asked.written in best:
            return [whole + asked.written]
        return best

    def _contradicts(self, written: str) -> bool:
        """Whether a name tells a folder that is there without the file, or another file as well."""
        folder, base = posixpath.split(written)
        if not folder:
            return False
        return posixpath.basename(folder) in self._folders or self._n_named[base] > 1

    def label(self, asked: Asked, path: str) -> str:
        """What is bridged where a file is in the folder that most of its table are in; else ""."""
        usual = self._usual.get((asked.beside, asked.split))
        return f"below {storable_name(usual)}" if usual and path == usual + asked.written else ""


def _meant(path: str, claiming: Sequence[Asked]) -> Sequence[Asked]:
    """Which of the names that lead to a file may mean it.

    Two names cannot; one in tables of two splits only where its folder is of neither.
    """
    if len({asked.written for asked in claiming}) > 1:
        return ()
    split = split_from_path(posixpath.dirname(path)) if len(claiming) > 1 else None
    right = [asked for asked in claiming if asked.split == split]
    return right or claiming


def _of_split(paths: Sequence[str], split: str | None) -> Sequence[str]:
    """The paths in folders that name a split; all where there is none such."""
    if split is None or len(paths) < 2:
        return paths
    return [path for path in paths if split_from_path(posixpath.dirname(path)) == split] or paths


def _most_alike(
    written: str, paths: Sequence[str], same: Callable[[str], str]
) -> tuple[list[str], int]:
    """The paths that share most of the written one's last folders, and how many they share."""
    if len(paths) == 1 and "/" not in written:
        return [*paths], 0
    parts = [same(part) for part in reversed(posixpath.dirname(written).split("/")) if part]
    best: list[str] = []
    most = -1
    for path in paths:
        folders = [same(part) for part in reversed(posixpath.dirname(path).split("/")) if part]
        both = zip(parts, folders, strict=False)
        n_shared = next(
            (i for i, (a, b) in enumerate(both) if a != b), min(len(parts), len(folders))
        )
        if n_shared > most:
            best, most = [], n_shared
        if n_shared == most:
            best.append(path)
    return best, max(0, most)

"""Where data lie: folders on a disk, and addresses of other storage, such as s3://bucket/pool.

An `Address` stands where a `Path` does. It is read through fsspec, whose drivers find credentials
and endpoints where they always do (https://filesystem-spec.readthedocs.io). What is under it is
listed once, and only what is in that list is ever opened; nothing is copied to the disk.

The rule for what goes wrong. A list of files, and a table that is needed as a whole, are asked for
`1 + len(WAITS_SECONDS)` times with growing waits, and then end the run with one line. So often is
an image, a part of a shard or of a table asked for too; then it is skipped, or the shard listed as
unread, with its reason, and the run goes on. Only when `MAX_FAILED` reads of one address have
failed in a row, as when a network is gone or credentials have expired, the run ends with one line.
What is not there, or may not be read, is asked for once.
"""

from __future__ import annotations

import fnmatch
import glob
import io
import logging
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from artifacts.settings import InputError
from sources.base import FILE_TOO_LARGE, OUTSIDE_FOLDER, UnusableImage
from sources.online import hub_answers

logger = logging.getLogger(__name__)
S = TypeVar("S")
T = TypeVar("T")
N_AT_ONCE = 8  # files that are read at once where each is waited for
WAITS_SECONDS = (0.5, 2.0, 8.0)  # before each further try of what broke off
MAX_FAILED = 20  # reads of an address in a row, after which it counts as gone
BUFFER_BYTES = 2**23  # read at once of a file that is read from front to back
MAX_SHOWN = 200  # characters of what a driver says
CLOUD_REQUIREMENTS = "requirements-cloud.txt"
_ADDRESS = re.compile(r"(?:[a-z][\w+.-]*::)*([a-z][\w+.-]*)://", re.IGNORECASE)
_TALKATIVE = ("aiobotocore", "botocore", "azure", "google.auth")  # they tell where keys were found
_LOCAL = ("file", "local")
# What fsspec puts around another storage: copies on the disk without bound, or files that say
# themselves where to read on.
_WRAPPERS = (
    *("simplecache", "filecache", "blockcache", "cached", "reference", "dir", "generic", "dask"),
    *("asynclocal", "async_wrapper", "asyncwrapper", "data", "zip", "tar", "libarchive", "git"),
)
# Of an entry in a list: what changes when the file does, the surest first.
_MARKS = (
    *("ETag", "etag", "md5Hash", "xet_hash", "blob_id", "generation", "version", "LastModified"),
    *("last_modified", "mtime", "modified", "updated", "created"),
)
# Errors of drivers, by the names of their classes: the drivers themselves need not be there.
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
    *("TokenRetrievalError", "ProfileNotFound", "UnauthorizedSSOTokenError", "GatedRepoError"),
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError", "PermissionError"),
}
_MISSING = {"FileNotFoundError", "NotADirectoryError", "RepositoryNotFoundError"}
# Of which drivers themselves have made sure for some seconds.
_UNREACHABLE = {"EndpointConnectionError", "ConnectionRefusedError", "gaierror"}
_HINTS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for "
    "a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "HF_TOKEN",
}

Version = tuple[int, int | str]  # what changes when a file does: its size in bytes and a mark


class BrokenReadError(OSError):
    """A read that was tried several times and did not come to its end."""


class StorageGoneError(InputError):
    """An address of which read after read has failed: the run ends, whatever was read for."""


class Address:
    """A folder behind an address, in the place of a `Path`; it is not asked before it must be.

    Threads may share one; in another process the address alone opens it again.
    """

    def __init__(self, text: str, flag: str = "--data_dir") -> None:
        """Nothing is asked yet.

        Args:
            text: address of a folder or of a file.
            flag: that names it, for errors.
        """
        scheme = _ADDRESS.match(text)
        assert scheme is not None, "only addresses are Addresses"
        self.scheme = scheme[1].lower()
        self._text = scheme[0] + text[scheme.end() :].rstrip("/")
        self._flag = flag
        self._n_failed, self._lock = 0, threading.Lock()

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Address({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[type[Address], tuple[str, str]]:
        return Address, (self._text, self._flag)

    def __truediv__(self, name: str) -> Address:
        separator = "" if self._text.endswith("/") else "/"
        return Address(f"{self._text}{separator}{name}", self._flag)

    @property
    def name(self) -> str:
        """The last part of it."""
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """The folder around it."""
        return Address(self._text.rpartition("/")[0] + "/", self._flag)

    # --- What there is ----------------------------------------------------------------------------

    @cached_property
    def listing(self) -> dict[str, Version]:
        """What changes when a file does, for every file below, hidden ones too; asked once.

        Raises:
            InputError: nothing is there, or it cannot be asked.
        """
        return self._entries[0]

    def is_dir(self) -> bool:
        """Whether files are below it; see `listing`."""
        return bool(self.listing)

    def is_file(self) -> bool:
        """Whether it is a file itself; see `listing`."""
        return self._entries[1]

    def version(self, name: str) -> Version:
        """What changes when a file does: from the list, if there is one.

        Raises:
            FileNotFoundError: there is no such file.
            BrokenReadError: it cannot be asked.
        """
        if "listing" in self.__dict__:
            version = self.listing.get(self._listed(name))
            if version is None:
                raise FileNotFoundError(name)
            return version
        found = self._tried(lambda: self._files().info(self._path(name)), name)
        if found.get("type") != "file":
            raise FileNotFoundError(name)
        return _version(found)

    def has(self, name: str) -> bool:
        """Whether it is the name of a file below; see `version`."""
        try:
            self.version(name)
        except FileNotFoundError:
            return False
        return True

    def matching(self, name: str) -> list[str]:
        """The names that a pattern finds, as `glob.glob` would; only their folders are asked.

        Raises:
            InputError: they cannot be asked.
        """
        folder, base = posixpath.split(name)
        if glob.has_magic(folder):
            found = self._asked(lambda: self._files().glob(self._path(name)))
            return [full[len(self._path("")) :] for full in found]
        there = self._names_in(folder)
        if not glob.has_magic(base) or base in there:
            return [name] if base in there else []
        visible = [n for n in there if base.startswith(".") or not n.startswith(".")]
        return [posixpath.join(folder, n) for n in fnmatch.filter(visible, base)]

    def _names_in(self, folder: str) -> set[str]:
        """Names of the files in a folder alone; asked once."""
        known: dict[str, set[str]] = self.__dict__.setdefault("_folders", {})
        if folder not in known:
            path = self._path(folder)

            def ask() -> list[Mapping[str, Any]]:
                try:
                    return list(self._files().ls(path, detail=True))
                except FileNotFoundError:
                    return []

            entries = self._asked(ask)
            files = (e["name"] for e in entries if e.get("type") == "file")
            known[folder] = {posixpath.basename(file) for file in files}
        return known[folder]

    @cached_property
    def _entries(self) -> tuple[dict[str, Version], bool]:
        """The files below, and whether it is a file itself."""
        logger.info("listing %s", self._text)
        path = self._path("")

        def ask() -> tuple[dict[str, Version], bool]:
            files = self._files()
            files.invalidate_cache()  # a process may open what it has opened before
            found = files.find(path.rstrip("/") or path, detail=True)
            files.invalidate_cache()  # else the driver holds a list of its own, which is larger
            below = {n[len(path) :]: _version(e) for n, e in found.items() if n.startswith(path)}
            return below, path.rstrip("/") in found

        try:
            below, is_file = self._asked(ask)
        except FileNotFoundError:
            below, is_file = {}, False
        if not below and not is_file:
            raise InputError(
                f"{self._flag} {self._text} does not exist: no file is there or below; check the "
                "bucket and the path"
            )
        return below, is_file

    def _listed(self, name: str) -> str:
        """The name by which a file is listed, if it is."""
        return name if name in self.listing else posixpath.normpath(name)

    # --- Reading ----------------------------------------------------------------------------------

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of a file below.

        Raises:
            UnusableImage: the path leads out of the folder, or the file is far too large.
            FileNotFoundError: there is none.
            BrokenReadError: it breaks off, again and again.
            StorageGoneError: so many reads did that the address counts as gone.
        """
        if leads_above(name):
            raise UnusableImage(OUTSIDE_FOLDER, name.encode("utf-8", "backslashreplace").decode())
        size, _ = self.version(name)
        if size > max_bytes:
            raise UnusableImage(FILE_TOO_LARGE, f"{size:,} bytes")
        path = self._path(self._listed(name) if "listing" in self.__dict__ else name)
        if size < 0:
            return self._tried(lambda: bytes(self._files().cat_file(path)), name)
        return self._tried(lambda: self._part(path, 0, size), name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """So many bytes of a file below; see `read`."""
        return self._tried(lambda: self._part(self._path(name), offset, size), name)

    def _part(self, path: str, offset: int, size: int) -> bytes:
        """So many bytes; many drivers first ask for the size of what is read as a whole."""
        if not size:
            return b""
        data = bytes(self._files().cat_file(path, start=offset, end=offset + size))
        if len(data) != size:
            raise OSError(f"{len(data):,} of {size:,} bytes came")
        return data

    def open(self, name: str, buffer_bytes: int | None = None) -> io.BufferedReader:
        """A file below, which is read in parts where they are wanted; see `read`.

        Args:
            name: path from here.
            buffer_bytes: read at once; None: `BUFFER_BYTES`.
        """
        size = self.version(name)[0]
        if size < 0:
            raise BrokenReadError(f"{self / name}: the storage does not tell its size")
        return io.BufferedReader(_Parts(self, name, size), buffer_bytes or BUFFER_BYTES)

    # --- Asking -----------------------------------------------------------------------------------

    def _files(self) -> Any:
        """The file system, which fsspec keeps for the process, or for the thread if it must be."""
        from fsspec.core import url_to_fs

        return url_to_fs(self._text)[0]

    def _path(self, name: str) -> str:
        """What the file system calls a file below; the folder itself, with a slash, for ""."""
        own = self.__dict__.get("_own_path")
        if own is None:
            from fsspec.core import url_to_fs

            own = self.__dict__["_own_path"] = f"{url_to_fs(self._text)[1].rstrip('/')}/"
        return f"{own}{name}"

    def _tried(self, read: Callable[[], T], name: str) -> T:
        """What a read gives, tried again where it breaks off; failures in a row are counted."""
        try:
            found = _tried_again(read)
        except Exception as error:
            if _is_one_of(error, _MISSING):
                raise FileNotFoundError(name) from error
            if isinstance(error, InputError):
                raise
            with self._lock:
                self._n_failed += 1
                n_failed = self._n_failed
            if n_failed >= MAX_FAILED:
                raise StorageGoneError(
                    f"{self._flag} {self._text}: {n_failed:,} reads in a row have failed, the last "
                    f"of {shown_name(name)} ({problem_of(error)}); see to the network and the "
                    "credentials and run again"
                ) from error
            raise BrokenReadError(
                f"{shown_name(name)} cannot be read ({problem_of(error)})"
            ) from error
        self._n_failed = 0
        return found

    def _asked(self, ask: Callable[[], T]) -> T:
        """What the storage answers about its files.

        Raises:
            FileNotFoundError: it has none such.
            InputError: it does not answer.
        """
        self._check_hub()
        try:
            return _tried_again(ask, _UNREACHABLE)
        except Exception as error:
            if _is_one_of(error, _MISSING):
                raise FileNotFoundError(self._text) from error
            what = f"{self._flag} {self._text} cannot be listed"
            if _is_one_of(error, _NO_CREDENTIALS):
                hint = _HINTS.get(self.scheme)
                raise InputError(
                    f"{what}: access is denied, or there are no credentials ({problem_of(error)}); "
                    f"set those of the storage{f' ({hint})' if hint else ''}"
                ) from error
            raise InputError(
                f"{what} ({problem_of(error)}); check the address and the network"
            ) from error

    def _check_hub(self) -> None:
        """Ask the Hub for a moment before its driver does, which waits for long."""
        kind, _, rest = self._text.partition("://")[2].partition("/")
        if self.scheme != "hf" or kind == "buckets":
            return
        kind, name = ("dataset", rest) if kind == "datasets" else ("model", f"{kind}/{rest}")
        repo = "/".join(name.split("@")[0].split("/")[:2])
        if not hub_answers(repo, kind):
            raise InputError(
                f"{self._flag} {self._text}: the Hub does not answer, or has no {kind} {repo} for "
                "you; check the name, the network and HF_TOKEN"
            )


Place = Path | Address


class _Parts(io.RawIOBase):
    """A file behind an address, as a file object that asks for parts of it."""

    def __init__(self, folder: Address, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._at = folder, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"a place before the file: {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        n = max(0, min(len(buffer), self._size - self._at))
        buffer[:n] = self._folder.read_range(self._name, self._at, n)
        self._at += n
        return n


# --- From texts -----------------------------------------------------------------------------------


def is_address(text: str) -> bool:
    """Whether a text is an address of storage, not a path on the disk."""
    return _ADDRESS.match(text) is not None


def place_at(text: str, flag: str = "--data_dir") -> Place:
    """The folder that a flag names, on the disk or behind an address, which is not asked yet.

    Raises:
        InputError: nothing reads such addresses, or what does is not installed.
    """
    scheme = _ADDRESS.match(text)
    if scheme is None:
        return Path(text)
    _check_scheme(scheme[1].lower(), text, flag)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return Address(text, flag)


def _check_scheme(scheme: str, text: str, flag: str) -> None:
    """Raise an InputError unless there is a driver for addresses that begin like this."""
    from fsspec.registry import available_protocols, get_filesystem_class

    if re.match("[^/]*:[^/]*@", text.partition("://")[2]):
        hidden = re.sub("://[^/]*@", "://...@", text)
        raise InputError(
            f"{flag} {hidden}: an address must hold no password, because it is saved with the "
            "run; set it where the driver of the storage looks for it"
        )
    if scheme in _LOCAL:
        raise InputError(f"{flag} {text}: give the path itself, without {scheme}://")
    if "::" in text or scheme in _WRAPPERS:
        raise InputError(
            f"{flag} {text}: only storage itself is read, nothing in or around it; give an address "
            "such as s3://bucket/folder"
        )
    if scheme not in available_protocols():
        raise InputError(
            f"{flag} {text}: nothing reads {scheme}://; give a folder, or an address of s3://, "
            "gs://, abfs:// or hf://"
        )
    try:
        get_filesystem_class(scheme)
    except Exception as error:  # a driver that does not fit its own requirements raises anything
        raise InputError(
            f"{flag} {text}: the driver of {scheme}:// is missing ({problem_of(error)}); pip "
            f"install -r {CLOUD_REQUIREMENTS}"
        ) from error


def leads_above(name: str) -> bool:
    """Whether a path from a folder leads out of it, by what is written."""
    plain = posixpath.normpath(name)
    return plain.startswith("/") or plain == ".." or plain.startswith("../")


def shown_name(name: str) -> str:
    """A name as any file can hold it."""
    return name.encode("utf-8", "backslashreplace").decode()


def each(place: Place, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """What `work` makes of every item, in order; of several at once where each is waited for."""
    if not isinstance(place, Address):
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(N_AT_ONCE)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


# --- Trying ---------------------------------------------------------------------------------------


def _tried_again(work: Callable[[], T], also_final: Iterable[str] = ()) -> T:
    """What `work` gives, tried again after each of the waits if it fails in passing.

    Args:
        work: asks the storage.
        also_final: names of further errors that do not pass.
    """
    final = {*_MISSING, *_NO_CREDENTIALS, *also_final}
    for wait in WAITS_SECONDS:
        try:
            return work()
        except Exception as error:  # drivers raise whatever their libraries do
            if isinstance(error, InputError) or _is_one_of(error, final):
                raise
            logger.debug("tried again in %g s: %r", wait, error)
            time.sleep(wait)
    return work()


def _is_one_of(error: BaseException | None, names: set[str]) -> bool:
    """Whether an error, or what it stands for, is of a class that is called like this."""
    while error is not None:
        if names & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__
    return False


def problem_of(error: BaseException) -> str:
    """The first line of what is wrong."""
    line = next((s for s in str(error).splitlines() if s.strip()), "") or type(error).__name__
    return " ".join(line.split())[:MAX_SHOWN]


def _version(entry: Mapping[str, Any]) -> Version:
    """The version of a file, from its entry in a list; the size is -1 where that is not told."""
    size = entry.get("size")
    mark = next((entry[name] for name in _MARKS if entry.get(name)), "")
    return (-1 if size is None else int(size)), str(mark)

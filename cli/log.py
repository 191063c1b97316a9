"""Where a run's log goes: the terminal and a file, around progress bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tqdm.contrib.logging import logging_redirect_tqdm

from artifacts.settings import InputError
from artifacts.store import Store

NEXT_RUN = "-" * 40 + " next run"  # in the log file, below what earlier runs wrote


class _LogFile(logging.FileHandler):
    """A log file; a run goes on without the rest of it where the disk is full."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - overrides
        """Say so once, on the terminal."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
            return
        if not self._has_failed:
            self._has_failed = True
            print(f"{self.baseFilename} cannot be written any more", file=sys.stderr)

    def close(self) -> None:
        """Close the file; what could not be written is lost."""
        with suppress(OSError):
            super().close()


class _Once(logging.Filter):
    """Lets a warning through once: a run may open its data set several times."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is no warning, or a new one."""
        if record.levelno != logging.WARNING:
            return True
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


def _log_record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("influencespace", level, "", 0, message, None, None)


@contextmanager
def logging_to(store: Store, log_file: str) -> Iterator[None]:
    """Log to the terminal and, after earlier runs, to the log file, around progress bars."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    try:
        path = store.log_path(log_file)
        if path.exists() and not path.is_file():  # a device may be read without end
            raise InputError(f"--log_file {log_file} is no plain file; name another")
        has_earlier = path.exists() and path.stat().st_size > 0
        handlers.append(_LogFile(path, mode="a", encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--log_file {log_file} cannot be written ({error.strerror})") from error
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    for handler in handlers:
        handler.addFilter(_Once())
    if has_earlier:
        handlers[1].handle(_log_record(logging.INFO, NEXT_RUN))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for noisy in ("httpx", "httpx2", "huggingface_hub", "datasets", "transformers", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for handler in handlers:
        root.addHandler(handler)
    try:
        with logging_redirect_tqdm():
            yield
    except InputError as error:
        handlers[1].handle(_log_record(logging.ERROR, str(error)))
        raise
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()

"""InfluenceSpace from the command line: the pipeline from top to bottom, one call a stage."""

from __future__ import annotations

import os

# Threads that wait for each other sleep: spinning ones slow a shared machine many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from artifacts import Store
from config import Config, parse_arguments
from dry_run import preview
from results import explain_pair, write_results
from settings import InputError
from stages import (
    Run,
    cluster,
    embed,
    evaluate,
    export,
    judge,
    model_inputs,
    record,
    score,
    score_pairs,
    select,
    select_baselines,
    validate,
    warn_of_replacing,
)

logger = logging.getLogger(__name__)

NEXT_RUN = "-" * 40 + " next run"  # in the log file, below what earlier runs wrote


def run_pipeline(config: Config, command: str) -> None:
    """Everything, from the data to the results page."""
    started = time.perf_counter()
    if config.run.dry_run:  # no folder is made and no log; warnings reach the terminal all the same
        store = Store.at(config.run.output_dir)
        print(preview(Run(config, store, resolve_device(config.run.device))))
        return
    if config.run.explain is not None:
        print(explain_pair(Store.at(config.run.output_dir), config.run.explain))
        return
    store = Store.open(config.run.output_dir)
    with _logging(store, config.run.log_file):
        logger.info("%s", command)
        run = Run(config, store, resolve_device(config.run.device))
        warn_of_replacing(run)
        embedded = embed(run)
        inputs = model_inputs(embedded.value, run.device)
        clustered = cluster(run, embedded)
        trust = judge(run, embedded, inputs)
        asked = inputs.asking(trust.value)
        influence = score(run, embedded, clustered, trust, asked)
        validated = validate(run, embedded, clustered, influence, asked)
        pair_influence = score_pairs(run, embedded, clustered, trust, influence, asked)
        curated = select(run, embedded, clustered, influence, pair_influence, asked)
        ledger = record(run, embedded, clustered, trust, pair_influence, curated)
        exported = export(run, embedded, ledger)
        rivals = select_baselines(run, embedded, clustered, influence, inputs)
        evaluated, subsets = evaluate(run, embedded, trust, curated, rivals, asked)
        write_results(
            run,
            embedded.value,
            clustered.value,
            influence.value,
            validated.value if validated else None,
            pair_influence.value,
            curated.value,
            subsets,
            evaluated.value,
            ledger.value,
            command=command,
            started=started,
            trust=trust.value,
        )
        for line in exported.lines():
            print(line)


def resolve_device(name: str) -> torch.device:
    """The device to run on.

    Raises:
        InputError: it is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name} is not available here; use --device auto")
    return torch.device(name)


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
def _logging(store: Store, log_file: str) -> Iterator[None]:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 for bad input, which gets one line and no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run_pipeline(parse_arguments(given), shlex.join(["python", "main.py", *given]))
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `--dry_run | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is saved stays, continue with --load_saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

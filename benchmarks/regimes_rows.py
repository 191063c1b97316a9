"""The rows of the benchmark of regimes in their CSV, and what each test image adds to them.

An image's score is the number of its queries answered among the first 1, 5 and 10, its own counted
once for each of its captions, so that both directions weigh the same:

    mean recall = 100 * mean over images of score / (2 * 3 * captions an image)

exactly. One byte an image is thus all that is needed to resample the test images.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from regimes_methods import METHODS, version_of
from regimes_names import METRICS

from train_eval import RECALL_AT

KEYS = ("regime", "validation", "keep", "method", "seed", "comparison", "version")
COLUMNS = (*KEYS, *METRICS, "n_pairs", "n_steps", "training_seconds")
SCORE_COLUMNS = (*KEYS, "scores")


def image_scores(
    image_ranks: np.ndarray, caption_ranks: np.ndarray, caption_image: np.ndarray
) -> np.ndarray:
    """What each test image adds to the mean recall, (E,) uint8.

    Args:
        image_ranks: (E,) wrong answers before the first right one.
        caption_ranks: (Q,) the same of the caption queries.
        caption_image: (Q,) the image of each caption; every image has as many.
    """
    n_images = len(image_ranks)
    n_captions = np.bincount(caption_image, minlength=n_images)
    assert (n_captions == n_captions[0]).all(), "every image has as many captions"
    scores = np.zeros(n_images, dtype=np.int64)
    for k in RECALL_AT:
        scores += n_captions * (image_ranks < k)
        found = caption_image[caption_ranks < k]
        scores += np.bincount(found, minlength=n_images)
    return scores.astype(np.uint8)


def highest_score(n_captions: int = 5) -> int:
    """The score of an image all of whose queries are answered at rank one."""
    return 2 * len(RECALL_AT) * n_captions


def packed(scores: np.ndarray) -> str:
    """Scores as text that a CSV holds."""
    return base64.b64encode(zlib.compress(scores.tobytes(), 9)).decode()


def unpacked(text: str) -> np.ndarray:
    """Scores as they were before they were packed, (E,) uint8."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)


def scores_file_of(file: Path) -> Path:
    """Where the scores of the images are kept, beside the rows."""
    return file.with_name(f"{file.stem}_images.csv")


class appending:  # noqa: N801 - reads as a verb
    """Appends whole rows to the CSV, which is made where there is none."""

    def __init__(self, file: Path, columns: Sequence[str] = COLUMNS) -> None:
        self._path, self._columns = file, columns

    def __enter__(self) -> Callable[[Mapping[str, Any]], None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        self._file: TextIO = self._path.open("a", newline="")
        if is_new:
            self._append(self._columns)
        return lambda row: self._append([_cell(row[column]) for column in self._columns])

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _append(self, cells: Sequence[Any]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self._file.write(line.getvalue())
        self._file.flush()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _whole_rows(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not file.exists():
        return pd.DataFrame(columns=list(columns))
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    if not whole:
        return pd.DataFrame(columns=list(columns))
    frame = pd.read_csv(io.BytesIO(whole), dtype={"version": str})
    if tuple(frame.columns) != tuple(columns):
        raise SystemExit(f"{file} has other columns than this benchmark writes; move it away")
    return frame


def read_rows(file: Path) -> pd.DataFrame:
    """The rows that count: of methods that there are, in their present version.

    A last line without an end, of a run that was killed as it wrote, is cut off.

    Raises:
        SystemExit: the file has other columns.
    """
    frame = _whole_rows(file, COLUMNS)
    current = {method: version_of(method) for method in METHODS}
    counts = frame["version"] == frame["method"].map(current)
    if not counts.all():
        print(f"{(~counts).sum()} rows of other versions are passed over", file=sys.stderr)
    return frame[counts].drop_duplicates(list(KEYS), keep="last").reset_index(drop=True)


def keys_of(frame: pd.DataFrame) -> set[tuple[Any, ...]]:
    """What has been computed."""
    return set(frame[list(KEYS)].itertuples(index=False, name=None))


def read_scores(file: Path) -> dict[tuple[Any, ...], np.ndarray]:
    """The scores of the test images by the keys of their row, from the file beside the rows."""
    frame = _whole_rows(scores_file_of(file), SCORE_COLUMNS)
    keys = frame[list(KEYS)].itertuples(index=False, name=None)
    return {key: unpacked(text) for key, text in zip(keys, frame["scores"], strict=True)}

"""Folders of the `datasets` library: parquet files for the Hub, Arrow files to load from disk."""

from __future__ import annotations

from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exporting.folder import Job, json_text
from exporting.images import ImageFile, as_it_is
from exporting.shards import (
    Record,
    Shard,
    ShardFormat,
    ShardWriter,
    even_parts,
    finite_or_none,
    n_digits,
)

GROUP_ROWS = 100  # of a table that are written at once,
GROUP_BYTES = 2**27  # or fewer, where their images fill this much


def _features() -> Any:
    """The columns of a table as `datasets` knows them."""
    import datasets  # takes seconds

    words = dict.fromkeys(("caption", "id", "uid", "key"), "string")
    numbers = {"weight": "float64", "cluster": "int64", "cell": "int64", "clip_score": "float64"}
    columns = {**words, **numbers, "influence": "float64", "group": "string"}
    values = {name: datasets.Value(kind) for name, kind in columns.items()}
    return datasets.Features({"image": datasets.Image(), **values})


class _TableWriter(ShardWriter):
    """Rows of a table, written some at a time; the schema tells `datasets` what is an image."""

    def __init__(self, schema: Any, sink: Any) -> None:
        self._schema, self._sink = schema, sink
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, pair: Any, image: ImageFile) -> None:
        """Add one pair."""
        extension = f".{image.extension}" if image.extension else ""
        self._rows.append(
            {
                "image": {"bytes": image.data, "path": f"{pair.name}{extension}"},
                "caption": pair.caption,
                "id": pair.name,
                "uid": pair.uid or pair.id,
                "key": pair.key,
                "weight": float(pair.weight),
                "cluster": int(pair.cluster),
                "cell": int(pair.cell),
                "clip_score": finite_or_none(pair.clip_score),
                "influence": finite_or_none(pair.influence),
                "group": pair.group,
            }
        )
        self._bytes += len(image.data)
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the end of the file."""
        try:
            self._flush()
        finally:
            self._sink.close()

    def _flush(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        if rows:
            self._sink.write_table(pa.Table.from_pylist(rows, schema=self._schema))


def _parquet_writer(file: BinaryIO) -> ShardWriter:
    schema = _features().arrow_schema
    plain = [name for name in schema.names if name != "image"]  # images do not repeat or compress
    sink = pq.ParquetWriter(file, schema, use_dictionary=plain, write_statistics=plain)
    return _TableWriter(schema, sink)


def _arrow_writer(file: BinaryIO) -> ShardWriter:
    schema = _features().arrow_schema
    return _TableWriter(schema, pa.ipc.new_stream(file, schema))


def _plan_tables(job: Job, pattern: str) -> list[Shard]:
    parts = even_parts(np.arange(len(job.table)), job.shard_size)
    digits = n_digits(len(parts) + 1)
    total = f"{len(parts):0{digits}d}"
    return [
        Shard(pattern.format(f"{i:0{digits}d}-of-{total}"), rows) for i, rows in enumerate(parts)
    ]


def _finish_parquet(
    job: Job, shards: list[Shard], records: dict[str, Record]
) -> tuple[dict[str, str], list[str]]:
    n_pairs = sum(record.pairs for record in records.values())
    use = "datasets.load_dataset({}, split='train')"
    card = _front_matter(job) + _card(job, n_pairs, use)
    return {"README.md": card}, [f"read it: {use.format(_python_path(job))}"]


def _finish_hf(
    job: Job, shards: list[Shard], records: dict[str, Record]
) -> tuple[dict[str, str], list[str]]:
    import datasets

    info = datasets.DatasetInfo(features=_features())
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.name} for shard in shards],
        "_fingerprint": job.fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    facts = {
        "citation": info.citation,
        "description": info.description,
        "features": info.features.to_dict(),
        "homepage": info.homepage,
        "license": info.license,
    }
    n_pairs = sum(record.pairs for record in records.values())
    use = "datasets.load_from_disk({})"
    card = _card(job, n_pairs, use)
    extras = {
        "dataset_info.json": json_text(facts),
        "state.json": json_text(state),
        "README.md": card,
    }
    return extras, [f"read it: {use.format(_python_path(job))}"]


def _python_path(job: Job) -> str:
    return repr(str(job.store.root.resolve() / job.folder))


def _front_matter(job: Job) -> str:
    """Where the rows are, for `datasets` and the Hub.

    Named after the export, because `datasets` keeps what it has once read under this name and the
    folder's own, whatever the files hold by now.
    """
    return f"""---
configs:
- config_name: curated-{job.fingerprint[:12]}
  data_files:
  - split: train
    path: data/train-*.parquet
---

"""


def _card(job: Job, n_pairs: int, use: str) -> str:
    """The data set card."""
    facts = {"pairs": f"{n_pairs:,}", **job.about}
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items())
    return f"""# Curated image-text pairs

A training set chosen by InfluenceSpace. The images are the original files.

```python
import datasets

table = {use.format("'path/to/this/folder'")}
```

| | |
|---|---|
{rows}

| column | meaning |
|---|---|
| `image`, `caption` | the pair |
| `id` | 128 bits of the SHA-256 of image file and caption, 32 hex digits |
| `uid` | the pair's name in the data set it comes from; the id where it has none |
| `key` | name of the image in the data set it comes from |
| `weight` | how often the pair should be seen, mean one |
| `cluster`, `cell` | its topic, and the part of it in which pairs agree alike |
| `clip_score` | cosine of image and caption |
| `influence` | relative change of the validation loss without the pair, times n; positive helps |
| `group` | demographic groups that the caption names |

Images and captions remain under the licence of the data set they come from.
"""


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


_plan_parquet = partial(_plan_tables, pattern="data/train-{}.parquet")
_plan_hf = partial(_plan_tables, pattern="data-{}.arrow")
PARQUET = ShardFormat(_plan_parquet, _parquet_writer, as_it_is, _finish_parquet)
HF = ShardFormat(_plan_hf, _arrow_writer, as_it_is, _finish_hf)

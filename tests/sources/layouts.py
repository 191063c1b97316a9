"""One data set in three layouts, for the tests that compare them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers import picture, write

N_PICTURES = 40
SPLIT_SIZES = {  # images; at most a fifth of the training images are carved out for another split
    "official": {"train": 24, "validation": 8, "test": 8},
    "no test": {"train": 30, "validation": 10},
    "train alone": {"train": N_PICTURES},
}


def captions_of(number: int) -> list[str]:
    return [f"picture {number}", f"a caption, and another of {number}"]


def numbers_by_split(sizes: Mapping[str, int]) -> dict[str, range]:
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return {split: range(ends[i], ends[i + 1]) for i, split in enumerate(sizes)}


def as_folder(root: Path, sizes: Mapping[str, int]) -> Path:
    captions, splits = ["image,caption"], ["image,split"]
    for split, numbers in numbers_by_split(sizes).items():
        for i in numbers:
            write(root, {f"{i:03d}.png": picture(i)})
            captions += [f'{i:03d}.png,"{text}"' for text in captions_of(i)]
            splits.append(f"{i:03d}.png,{split}")
    tables = {"captions.txt": "\n".join(captions), "splits.csv": "\n".join(splits)}
    return write(root, tables)


def as_shards(root: Path, sizes: Mapping[str, int]) -> Path:
    root.mkdir()
    for split, numbers in numbers_by_split(sizes).items():
        for start in numbers[::5]:
            with tarfile.open(root / f"{split}-{start}.tar", "w") as archive:
                for i in numbers[start - numbers[0] :][:5]:
                    labels = json.dumps({"captions": captions_of(i)}).encode()
                    for name, content in ((f"{i}.png", picture(i)), (f"{i}.json", labels)):
                        header = tarfile.TarInfo(name)
                        header.size = len(content)
                        archive.addfile(header, io.BytesIO(content))
    return root


def as_parquet(root: Path, sizes: Mapping[str, int]) -> Path:
    root.mkdir()
    for split, numbers in numbers_by_split(sizes).items():
        images = [{"bytes": picture(i), "path": f"{i}.png"} for i in numbers]
        table = pa.table({"image": images, "caption": [captions_of(i) for i in numbers]})
        pq.write_table(table, root / f"{split}.parquet", row_group_size=7)
    return root

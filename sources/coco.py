"""COCO captions as downloaded, in 2014's and 2017's layout."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import numpy as np

from artifacts.settings import InputError
from sources.base import SPLIT_OF, DataConfig
from sources.captions import captions_in
from sources.file_pairs import About, FilePair, file_source
from sources.json_tables import image_number
from sources.locate import Asked, Locator
from sources.manifests import read_table_file
from sources.paths import has_file, list_files
from sources.places import Address, place_at
from sources.splits import IndexedSource

CAPTIONS = "annotations/captions_*.json"


def open_coco_files(data_dir: str, config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """COCO captions in their official layout.

    Raises:
        InputError: the folder holds none, or an annotation file is damaged.
    """
    root = place_at(data_dir)
    if isinstance(root, Address):
        root.is_dir()  # an address that nothing is at says so
    for year in ("2017", "2014"):
        names = (f"annotations/captions_{part}{year}.json" for part in ("train", "val"))
        tables = [name for name in names if has_file(root, name)]
        if tables and data_dir:  # an empty name is not the current folder
            break
    else:
        raise InputError(
            f"--data_dir {data_dir} holds no COCO (annotations/captions_train2017.json, "
            "train2017/, val2017/); for images and captions of your own use --dataset folder, "
            "webdataset or parquet"
        )
    listed = list_files(root)
    locator = Locator(root, listed)
    pairs: list[FilePair] = []
    splits: dict[str, str] = {}
    for table in tables:
        data = read_table_file(root, table)
        folder = PurePosixPath(table).stem.removeprefix("captions_")
        split = SPLIT_OF[folder.removesuffix(year)]
        try:
            content = json.loads(data)
            written = {
                image_number(image["id"]): f"{folder}/{image['file_name']}"
                for image in content["images"]
            }
            locator.plan(Asked(name, split=split) for name in written.values())
            files = {number: locator.find(name, split=split) for number, name in written.items()}
            described = set()
            for row in content["annotations"]:
                number = image_number(row["image_id"])
                # An annotation without its image is a missing file.
                key = files.setdefault(number, f"{folder}/image {number}")
                pairs += [FilePair(key, text) for text in captions_in(row["caption"])]
                described.add(number)
            pairs += [
                FilePair(key, None) for number, key in files.items() if number not in described
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{root / table} is damaged or no COCO captions file: {error!r}"
            ) from error
        splits |= dict.fromkeys(files.values(), split)
    about = About("coco", f"COCO {year} in {root}", locator.notes())
    return file_source(about, pairs, splits, locator, listed, config, rng)

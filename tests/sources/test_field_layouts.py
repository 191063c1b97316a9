"""Layouts that people's data have: each is read as its owner means it, and every pair counted.

The truth is written beside each layout: what captions every picture has, and in which split.
"""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from artifacts.settings import InputError
from data import PairReader, open_source
from sources.base import FORMAT_NOT_READ, MISSING_FILE, SPLITS, DataConfig
from sources.captions import caption_fault
from sources.images import HAS_HEIF, decode_pixels
from tests.helpers import picture, write

FIELD = Path(__file__).parents[3] / "shared" / "field"
N = 12
NAMES = [f"{i:03d}.png" for i in range(N)]
Files = dict[str, bytes | str]


@dataclass(frozen=True)
class Layout:
    """Files, and how they are to be read.

    Attributes:
        files: of the data folder.
        captions: of every picture, by its number.
        splits: of every picture, where the files tell it.
        skipped: reasons, with the number of captions.
        notes: what is said, in parts.
        flags: settings beside the folder.
    """

    files: Files
    captions: Mapping[int, Sequence[str]] = field(
        default_factory=lambda: {i: [f"of {i}"] for i in range(N)}
    )
    splits: Mapping[int, str] | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)


def images(folder: str = "", names: Sequence[str] = NAMES) -> Files:
    prefix = f"{folder}/" if folder else ""
    return {prefix + name: picture(i) for i, name in enumerate(names)}


def csv_of(header: str, row: str, numbers: Sequence[int] = range(N)) -> str:
    """A table with a row for each number, which stands for {i} and its picture for {name}."""
    rows = (row.format(i=i, name=NAMES[i]) for i in numbers)
    return "\n".join([header, *rows]) + "\n"


SPLIT_NAMES = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
BY_SPLIT = dict(enumerate(["train"] * 6 + ["validation"] * 3 + ["test"] * 3))
TWO = {i: [f"of {i}", f"again {i}"] for i in range(N)}
TRAIN, VAL, TEST = range(6), range(6, 9), range(9, 12)
PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


def in_parts(folder: str) -> Files:
    """Pictures in folders of their splits, called alike in each."""
    return {
        folder.format(split) + f"/{k}.png": picture(i)
        for split, numbers in PARTS.items()
        for k, i in enumerate(numbers)
    }


def coco_json(numbers: Sequence[int], **image: Any) -> str:
    return json.dumps(
        {
            "info": {"year": 2017},
            "images": [{"id": 100 + i, "file_name": NAMES[i], **image} for i in numbers],
            "annotations": [
                {"id": 10 * i + k, "image_id": 100 + i, "caption": text}
                for i in numbers
                for k, text in enumerate(TWO[i])
            ],
        }
    )


def base64_of(i: int) -> str:
    return base64.b64encode(picture(i)).decode()


MANIFESTS: dict[str, Layout] = {
    "a list of BLIP": Layout(
        images("images/val2014")
        | {
            "mine.json": json.dumps(
                [{"image": f"/export/coco/val2014/{NAMES[i]}", "caption": TWO[i]} for i in range(N)]
            )
        },
        TWO,
        notes=["columns image, caption", "12 in another folder"],
    ),
    "conversations of LLaVA": Layout(
        images("llava/pictures")
        | {
            "chat.json": json.dumps(
                [
                    {
                        "id": str(i),
                        "image": NAMES[i],
                        "conversations": [
                            {"from": "human", "value": "<image>\nWhat is it?"},
                            {"from": "gpt", "value": f"of {i}"},
                            {"from": "human", "value": "And now?"},
                            {"from": "gpt", "value": "no"},
                        ],
                    }
                    for i in range(N)
                ]
                + [{"id": "x", "conversations": [{"from": "gpt", "value": "without an image"}]}]
            )
        },
        skipped={MISSING_FILE: 1},
    ),
    "Karpathy": Layout(
        images("flickr")
        | {
            "dataset_flickr8k.json": json.dumps(
                {
                    "dataset": "flickr8k",
                    "images": [
                        {
                            "filename": NAMES[i],
                            "split": SPLIT_NAMES[i],
                            "sentences": [{"raw": t, "tokens": t.split()} for t in TWO[i]],
                        }
                        for i in range(N)
                    ],
                }
            )
        },
        TWO,
        BY_SPLIT,
        notes=["columns filename, sentences, split"],
    ),
    "labels of FiftyOne": Layout(
        images("data")
        | {
            "labels.json": json.dumps(
                {"classes": None, "labels": {f"{i:03d}": f"of {i}" for i in range(N)}}
            )
        },
        notes=["12 without an extension"],
    ),
    "classes of FiftyOne": Layout(
        images("data")
        | {
            "labels.json": json.dumps(
                {
                    "classes": [f"of {i}" for i in range(N)],
                    "labels": {f"{i:03d}": i for i in range(N)},
                }
            )
        },
    ),
    "a table of kohya": Layout(
        images()
        | {"meta.json": json.dumps({name: {"caption": f"of {i}"} for i, name in enumerate(NAMES)})}
    ),
    "COCO in folders of another tool": Layout(
        {f"images/train2017/{NAMES[i]}": picture(i) for i in range(6)}
        | {f"images/val2017/{NAMES[i]}": picture(i) for i in range(6, N)}
        | {
            "annotations/captions_train2017.json": coco_json(range(6)),
            "annotations/captions_val2017.json": coco_json(range(6, N)),
            "annotations/instances_val2017.json": "{",
        },
        TWO,
        {i: "train" if i < 6 else "validation" for i in range(N)},
        notes=["splits from the names of tables: train 6, validation 6"],
    ),
    "a column table of pandas": Layout(
        images()
        | {"t.json": pd.DataFrame({"img": NAMES, "text": [f"of {i}" for i in range(N)]}).to_json()}
    ),
    "lines of JSON with images in base64": Layout(
        {
            "t.jsonl": "\n".join(
                json.dumps({"image": base64_of(i), "caption": f"of {i}"}) for i in range(N)
            )
        }
    ),
    "open_clip's table with its prefix": Layout(
        images("images")
        | {"train.csv": csv_of("filepath\ttitle", "/home/me/set/images/{name}\tof {i}")},
        notes=["columns filepath, title", "12 in another folder"],
    ),
    "paths of Windows": Layout(
        images("images") | {"t.csv": csv_of("image_path,text", "C:\\set\\images\\{name},of {i}")},
    ),
    "prompts": Layout(
        images("images") | {"captions.csv": csv_of("filename,prompt", "{name},of {i}")},
        notes=["columns filename, prompt", "12 below images/"],
    ),
    "annotations of Flickr30k": Layout(
        images("flickr30k-images")
        | {
            "flickr_annotations_30k.csv": pd.DataFrame(
                {
                    "raw": [json.dumps(TWO[i]) for i in range(N)],
                    "sentids": [f"[{i}]" for i in range(N)],
                    "split": SPLIT_NAMES,
                    "filename": NAMES,
                    "img_id": range(N),
                }
            ).to_csv(index=False)
        },
        TWO,
        BY_SPLIT,
    ),
    "lists as Python writes them": Layout(
        images()
        | {
            "t.csv": pd.DataFrame(
                {"file_name": NAMES, "captions": [str(TWO[i]) for i in range(N)]}
            ).to_csv(index=False)
        },
        TWO,
    ),
    "captions side by side": Layout(
        images()
        | {"t.csv": csv_of("image,caption_0,caption_1,caption_10", "{name},of {i},,again {i}")},
        TWO,
    ),
    "title beside caption": Layout(
        images() | {"t.csv": csv_of("image,title,caption", "{name},Shop {i},of {i}")},
        notes=["columns image, caption (title not used)"],
    ),
    "columns that flags name": Layout(
        images() | {"t.csv": csv_of("image,photo,caption,words", "x,{name},no,of {i}")},
        notes=["columns photo, words (image, caption not used)"],
        flags={"image_column": "photo", "caption_column": "words"},
    ),
    "fields that flags name": Layout(
        images()
        | {
            "t.jsonl": "\n".join(
                json.dumps({"p": NAMES[i], "w": f"of {i}", "image": "x", "caption": "no"})
                for i in range(N)
            )
        },
        flags={"image_column": "p", "caption_column": "w"},
    ),
    "a stray quotation mark": Layout(
        images() | {"captions.txt": csv_of("image,caption", '{name},"of {i}')},
        {i: [f'"of {i}'] for i in range(N)},
        notes=["12 rows of captions.txt with a stray quotation mark read as they stand"],
    ),
    "a lemma file beside the tokens, a folder down": Layout(
        images("Flicker8k_Dataset")
        | {
            "Flickr8k_text/Flickr8k.lemma.token.txt": csv_of("", "{name}#0\tlemma {i}").lstrip(),
            "Flickr8k_text/Flickr8k.token.txt": csv_of("", "{name}#0\tof {i}").lstrip(),
            "Flickr8k_text/ExpertAnnotations.txt": csv_of("", "{name}\t{name}#2\t1\t1\t2").lstrip(),
            "Flickr8k_text/CrowdFlowerAnnotations.txt": csv_of(
                "", "{name}\t{name}#2\t0.3\t1\t2"
            ).lstrip(),
            "Flickr8k_text/Flickr_8k.trainImages.txt": "\n".join(NAMES[:6]),
            "Flickr8k_text/Flickr_8k.devImages.txt": "\n".join(NAMES[6:9]),
            "Flickr8k_text/Flickr_8k.testImages.txt": "\n".join([*NAMES[9:], "elsewhere.jpg"]),
            "Flickr8k_text/readme.txt": "Thank you for downloading, and so on.",
        },
        splits=BY_SPLIT,
        notes=["splits from lists of names: train 6, validation 3, test 3"],
    ),
    "folders beside the names of files": Layout(
        {f"{'cat' if i % 2 else 'dog'}/{i // 2}.png": picture(i) for i in range(N)}
        | {
            "t.json": json.dumps(
                [
                    {
                        "filepath": "cat" if i % 2 else "dog",
                        "filename": f"{i // 2}.png",
                        "sentences": [{"raw": text} for text in TWO[i]],
                    }
                    for i in range(N)
                ]
            )
        },
        TWO,
        notes=["columns filename, sentences, filepath"],
    ),
    "numbers beside the names of files": Layout(
        images("p") | {"t.csv": csv_of("image,caption,File Name", "{i},of {i},p/{name}")},
        notes=["columns File Name, caption (image not used)"],
    ),
    "addresses beside the names of files": Layout(
        images() | {"t.csv": csv_of("image,caption,path", "https://x.org/{i}.jpg,of {i},{name}")},
    ),
    "numbers alone": Layout(
        images("p", [f"{i:06d}.png" for i in range(N)])
        | {"t.json": json.dumps([{"image_id": i, "caption": f"of {i}"} for i in range(N)])},
        notes=["12 by their number"],
    ),
    "a list for each split": Layout(
        images()
        | {
            "t.json": json.dumps(
                {
                    split: [{"image": NAMES[i], "caption": f"of {i}"} for i in numbers]
                    for split, numbers in PARTS.items()
                }
            )
        },
        splits=BY_SPLIT,
    ),
    "lists by file": Layout(
        images() | {"t.json": json.dumps({NAMES[i]: TWO[i] for i in range(N)})}, TWO
    ),
    "objects by number": Layout(
        images()
        | {"t.json": json.dumps({i: {"image": NAMES[i], "caption": f"of {i}"} for i in range(N)})}
    ),
    "numbers in a table": Layout(
        images("p", [f"{i:06d}.png" for i in range(N)])
        | {"t.csv": csv_of("image_id,caption", "{i},of {i}")},
    ),
    "objects for each split": Layout(
        images()
        | {
            "t.json": json.dumps(
                {split: {NAMES[i]: f"of {i}" for i in numbers} for split, numbers in PARTS.items()}
            )
        },
        splits=BY_SPLIT,
    ),
    "Karpathy's table beside tokens": Layout(
        images("p")
        | {"results_20130124.token": csv_of("", "{name}#0\tof {i}").lstrip()}
        | {
            "dataset_flickr30k.json": json.dumps(
                [
                    {
                        "filename": NAMES[i],
                        "split": SPLIT_NAMES[i],
                        "sentences": [{"raw": f"of {i}"}],
                    }
                    for i in range(N)
                ]
            )
        },
        splits=BY_SPLIT,
        notes=["other tables not read: results_20130124.token"],
    ),
    "pairs": Layout(
        images() | {"t.json": json.dumps([[NAMES[i], f"of {i}"] for i in range(N)])},
    ),
    "a table of Excel": Layout(
        images()
        | {"t.csv": "sep=;\n" + csv_of("Image;Caption;Caption", "{name};of {i};again {i}")},
        TWO,
    ),
    "tabs between captions": Layout(
        images() | {"captions.txt": csv_of("", "{name}\t7\tof {i}\tagain {i}").lstrip()}, TWO
    ),
    "tables of other images each": Layout(
        {f"{'cats' if i % 2 else 'dogs'}/{i}.png": picture(i) for i in range(N)}
        | {
            f"{name}/captions.csv": "image,caption\n"
            + "".join(f"{i}.png,of {i}\n" for i in range(N) if (name == "cats") == i % 2)
            for name in ("cats", "dogs")
        }
    ),
    "a loose list beside a table": Layout(
        images()
        | {"t.csv": csv_of("image,caption", "{name},of {i}"), "urls.txt": "http://a/0.png,foo"},
        notes=["other tables not read: urls.txt"],
    ),
    "a JSON array that is no table beside one": Layout(
        images()
        | {
            "config.json": json.dumps({"a": [1, 2]}),
            "stats.json": json.dumps([{"count": 3}]),
            "t.jsonl": "\n".join(
                json.dumps({"file": NAMES[i], "caption": f"of {i}"}) for i in range(N)
            ),
        }
    ),
}

SPLITS_OF_FOLDERS: dict[str, Layout] = {
    "Karpathy's table beside captions": Layout(
        images("p")
        | {"results.csv": csv_of("image_name|comment", "{name}|of {i}")}
        | {
            "dataset_flickr30k.json": json.dumps(
                {"images": [{"filename": NAMES[i], "split": SPLIT_NAMES[i]} for i in range(N)]}
            )
        },
        splits=BY_SPLIT,
        notes=["splits from lists of names", "other tables not read: dataset_flickr30k.json"],
    ),
    "lists in JSON": Layout(
        images()
        | {"captions.csv": csv_of("image,caption", "{name},of {i}")}
        | {
            "my_splits.json": json.dumps(
                {split: [NAMES[i][:-4] for i in numbers] for split, numbers in PARTS.items()}
            )
        },
        splits=BY_SPLIT,
    ),
    "a column": Layout(
        images() | {"t.csv": csv_of("image,caption,split", "{name},of {i},train")},
        splits=dict.fromkeys(range(N), "train"),
    ),
    "a column that names some": Layout(
        images()
        | {
            "t.csv": csv_of("image,caption,split", "{name},of {i},train", TRAIN)
            + csv_of("", "{name},of {i},mars", VAL)
            + csv_of("", "{name},of {i},Test", TEST)
        },
        splits=BY_SPLIT | dict.fromkeys(VAL, "train"),
        notes=[
            "splits from the column split: train 6, test 3",
            "names in the column split that are no split: 'mars' 3",
            "3 images without a split are training images",
        ],
    ),
    "a column of another name": Layout(
        images()
        | {
            "t.csv": "image,caption,Subset\n"
            + "".join(f"{NAMES[i]},of {i},{SPLIT_NAMES[i]}\n" for i in range(N))
        },
        splits=BY_SPLIT,
        notes=["splits from the column Subset: train 6, validation 3, test 3"],
    ),
    "a field": Layout(
        images()
        | {
            "t.jsonl": "\n".join(
                json.dumps({"image": NAMES[i], "caption": f"of {i}", "split": SPLIT_NAMES[i]})
                for i in range(N)
            )
        },
        splits=BY_SPLIT,
    ),
    "a stray folder beside splits": Layout(
        {f"{SPLIT_NAMES[i]}/{NAMES[i]}": picture(i) for i in range(1, N)}
        | {f"{SPLIT_NAMES[i]}/{i:03d}.txt": f"of {i}" for i in range(1, N)}
        | {"stray/000.png": picture(0), "stray/000.txt": "of 0"},
        splits=BY_SPLIT,
        notes=["1 image without a split is a training image"],
    ),
    "folders further down": Layout(
        {f"set/images/{SPLIT_NAMES[i]}2017/{NAMES[i]}": picture(i) for i in range(N)}
        | {f"set/images/{SPLIT_NAMES[i]}2017/{i:03d}.txt": f"of {i}" for i in range(N)},
        splits=BY_SPLIT,
    ),
    "tables side by side, files called alike": Layout(
        in_parts("images/{}")
        | {
            f"{split}.csv": "image,caption\n"
            + "".join(f"{k}.png,of {i}\n" for k, i in enumerate(n))
            for split, n in PARTS.items()
        },
        splits=BY_SPLIT,
        notes=["splits from the names of tables: train 6, validation 3, test 3"],
    ),
    "a column, files called alike": Layout(
        in_parts("images/{}")
        | {
            "t.csv": "image,caption,split\n"
            + "".join(
                f"{k}.png,of {i},{split}\n" for split, n in PARTS.items() for k, i in enumerate(n)
            )
        },
        splits=BY_SPLIT,
    ),
    "names of files": Layout(
        {f"COCO_{SPLIT_NAMES[i]}2014_{i:012d}.png": picture(i) for i in range(N)}
        | {f"COCO_{SPLIT_NAMES[i]}2014_{i:012d}.txt": f"of {i}" for i in range(N)},
        splits=BY_SPLIT,
    ),
    "folders that differ in the split alone": Layout(
        {f"mine_{SPLIT_NAMES[i]}/{NAMES[i]}": picture(i) for i in range(N)}
        | {f"mine_{SPLIT_NAMES[i]}/{i:03d}.txt": f"of {i}" for i in range(N)},
        splits=BY_SPLIT,
    ),
}

BESIDE: dict[str, Layout] = {
    "kohya": Layout(images() | {f"{i:03d}.caption": f"of {i}" for i in range(N)}),
    "the whole name": Layout(images() | {f"{name}.txt": f"of {i}" for i, name in enumerate(NAMES)}),
    "parallel folders": Layout(
        images("set/images") | {f"set/texts/{i:03d}.txt": f"of {i}" for i in range(N)}
    ),
    "img2dataset's files": Layout(
        images("00000")
        | {f"00000/{i:03d}.txt": f"of\n {i} \n" for i in range(N)}
        | {f"00000/{i:03d}.json": json.dumps({"caption": f"of\n {i}"}) for i in range(N)}
        | {"00000.parquet": b"PAR1", "00000_stats.json": "{}"},
        {i: [f"of  {i}"] for i in range(N)},
    ),
    "JSON alone": Layout(
        images() | {f"{i:03d}.json": json.dumps({"caption": TWO[i], "w": 3}) for i in range(N)}, TWO
    ),
    "JSON under the whole name": Layout(
        images()
        | {f"{name}.json": json.dumps({"title": f"of {i}"}) for i, name in enumerate(NAMES)}
    ),
    "JSON of other things": Layout(
        images()
        | {f"{i:03d}.txt": "\n".join(TWO[i]) for i in range(N)}
        | {f"{i:03d}.json": json.dumps({"exposure": 3}) for i in range(N)},
        TWO,
        notes=["12 texts of several lines, each line a caption"],
    ),
    "a field that a flag names": Layout(
        images()
        | {f"{i:03d}.txt": "no" for i in range(N)}
        | {f"{i:03d}.json": json.dumps({"caption": "no", "blip": f"of {i}"}) for i in range(N)},
        flags={"caption_column": "blip"},
    ),
    "a loose list beside": Layout(
        images()
        | {f"{i:03d}.txt": f"of {i}" for i in range(N)}
        | {"notes.txt": "000.png, look at this again"},
        notes=["other tables not read: notes.txt"],
        skipped={MISSING_FILE: 1},
    ),
    "other files of the same name": Layout(
        images()
        | {f"{i:03d}.txt": f"of {i}" for i in range(N)}
        | {f"{i:03d}.xmp": "<x/>" for i in range(N)}
        | {f"{i:03d}.h5": b"HDF" for i in range(N)},
        notes=["files .h5 12, .xmp 12 not used"],
    ),
    "tags beside captions": Layout(
        images()
        | {f"{i:03d}.caption": f"of {i}" for i in range(N)}
        | {f"{i:03d}.txt": "tag, tag" for i in range(N)},
    ),
    "texts without images": Layout(
        images()
        | {f"{i:03d}.txt": f"of {i}" for i in range(N)}
        | {"gone.txt": "alone", "README.txt": "what this is"},
        skipped={MISSING_FILE: 1},
    ),
    "every format, good extension or not": Layout(
        {
            **{"000.jfif": picture(0, "PNG"), "001.avif": picture(1), "002.jp2": picture(2)},
            **{"003.TIF": picture(3, "TIFF"), "004.bmp": picture(4, "BMP"), "005": picture(5)},
            **{"006.photo": picture(6), "007.gif": picture(7), "008.webp": picture(8)},
            **{"009.JPEG": picture(9), "010.PNG": picture(10), "011.ppm": picture(11, "PPM")},
        }
        | {f"{i:03d}.txt": f"of {i}" for i in range(N)},
    ),
}
NAMES_THAT_DIFFER: dict[str, Layout] = {
    "several folders": Layout(
        {f"VG_100K/{NAMES[i]}": picture(i) for i in range(5)}
        | {f"VG_100K_2/{NAMES[i]}": picture(i) for i in range(5, N)}
        | {"captions.csv": csv_of("image,caption", "{name},of {i}")},
        notes=["7 below VG_100K_2/, 5 in another folder"],
    ),
    "Unicode in another form": Layout(
        images("", [unicodedata.normalize("NFD", f"é{i}.png") for i in range(N)])
        | {
            "captions.csv": "image,caption\n"
            + "".join(unicodedata.normalize("NFC", f"é{i}.png,of {i}\n") for i in range(N))
        },
        notes=["12 of another Unicode form"],
    ),
    "letters of another case": Layout(
        images("Images") | {"captions.csv": csv_of("image,caption", "images/{i:03d}.PNG,of {i}")},
        notes=["12 with letters of another case"],
    ),
    "no extension": Layout(
        images("p") | {"captions.csv": csv_of("image,caption", "{i:03d},of {i}")},
        notes=["12 without an extension"],
    ),
    "a file that is missing from its folder": Layout(
        {f"cat/{NAMES[i]}": picture(i) for i in range(N)}
        | {"dog/x.png": picture(77)}
        | {
            "captions.csv": csv_of("image,caption", "cat/{name},of {i}")
            + "dog/003.png,a dog\ndog/x.png,x\n"
        },
        {i: [f"of {i}"] for i in range(N)} | {77: ["x"]},
        skipped={MISSING_FILE: 1},
    ),
    "images that no row names": Layout(
        images() | {"extra.png": picture(90), "t.csv": csv_of("image,caption", "{name},of {i}")},
        notes=["images that no row names, not read: 1"],
    ),
    "two answers are none": Layout(
        images()
        | {"a/twice.png": picture(90), "b/c/twice.png": picture(91)}
        | {"captions.csv": csv_of("image,caption", "{name},of {i}") + "x/twice.png,which\n"},
        skipped={MISSING_FILE: 1},
    ),
}
LAYOUTS = {
    **{f"table: {name}": layout for name, layout in MANIFESTS.items()},
    **{f"splits: {name}": layout for name, layout in SPLITS_OF_FOLDERS.items()},
    **{f"beside: {name}": layout for name, layout in BESIDE.items()},
    **{f"names: {name}": layout for name, layout in NAMES_THAT_DIFFER.items()},
}


def open_layout(root: Path, layout: Layout, **changes: Any) -> tuple[Any, DataConfig]:
    config = DataConfig(
        **{"dataset": "folder", "data_dir": str(root), "num_workers": 0, **layout.flags, **changes}
    )
    return open_source(config, rng=np.random.default_rng(0)), config


def read_everything(source: Any, config: DataConfig) -> PairReader:
    reader = PairReader(
        source,
        config,
        decode=decode_pixels(lambda image: np.asarray(image)[0, 0], config.max_image_pixels),
    )
    for split in ("test", "validation", "train"):
        list(reader.images(split))
    return reader


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_its_owner_means_it(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    source, _ = open_layout(write(tmp_path, layout.files), layout)
    records = [(split, record) for split in SPLITS for record in source.records(split)]
    found: dict[int, set[str | None]] = {}
    split_of: dict[int, str] = {}
    for split, record in records:
        if record.problem is not None:
            continue
        try:
            number = int(np.asarray(decode_pixels(_corner, 10**6)(record.read()))[0])
        except FileNotFoundError:
            continue
        found.setdefault(number, set()).update(caption.text for caption in record.captions)
        split_of[number] = split
    for number, texts in layout.captions.items():
        drawn = found[number]  # one of them in validation
        assert drawn <= set(texts) and drawn, number  # noqa: PT018
        assert split_of[number] == "validation" or drawn == set(texts)
    if layout.splits is not None:
        is_whole = {*layout.splits.values()} == {*SPLITS}  # else one is drawn from another
        expected = {i: s for i, s in layout.splits.items() if is_whole or s == "test"}
        assert expected.items() <= split_of.items()
    for note in layout.notes:
        assert any(note in told for told in source.notes), source.notes


def _corner(image: Any) -> np.ndarray:
    corner: np.ndarray = np.asarray(image)[0, 0]
    return corner


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_pair_of_a_layout_is_counted(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    source, config = open_layout(write(tmp_path, layout.files), layout)
    reader = read_everything(source, config)
    account = reader.account()
    total = sum(map(len, layout.captions.values())) + sum(layout.skipped.values())
    assert account.used + account.skipped + (account.not_read or 0) == total
    assert (account.used, account.skipped) == (len(reader.pairs()), len(reader.skipped()))
    assert reader.skipped()["reason"].value_counts().to_dict() == dict(layout.skipped)
    assert (account.not_read is not None, account.unread) == (True, ())
    assert account.sentence().startswith(f"Of {total} captions of the source {account.used} are")


# --- Refused with help ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[Files, str]] = {
    "a spreadsheet": (images() | {"c.xlsx": b"PK"}, "Export the spreadsheet as CSV"),
    "addresses": (
        {"t.csv": csv_of("url,caption", "https://x.org/{name},of {i}")},
        "seen, but without images and captions by their names: t.csv .url, caption.",
    ),
    "addresses as images": (
        {"t.csv": csv_of("image,caption", "https://x.org/{name},of {i}")},
        r"t.csv names images by addresses such as https://x.org/000.png; .* img2dataset",
    ),
    "a zip": ({"data.zip": b"PK\3\4"}, "holds no captions.*it holds 1 .zip. Unpack what is packed"),
    "columns by other names": (
        images() | {"t.csv": csv_of("photo,words", "{name},of {i}")},
        r"t.csv \(photo, words\); name the columns with --image_column and --caption_column",
    ),
    "several tables": (
        images()
        | {f"{name}.csv": csv_of("image,caption", "{name},of {i}") for name in ("one", "two")},
        "one.csv, two.csv all hold captions; move those that are not meant out",
    ),
    "boxes": (
        images() | {f"{i:03d}.txt": "0 0.5 0.5 0.1 0.1\n3 0.1 0.1 0.5 0.25" for i in range(N)},
        "holds no captions",
    ),
}


def test_a_flag_that_names_no_column_is_told_with_the_columns(tmp_path: Path) -> None:
    files = images() | {"captions.txt": csv_of("image,caption", "{name},of {i}")}
    message = r"captions by --caption_column words: captions.txt \(image, caption\); name the col"
    with pytest.raises(InputError, match=message):
        open_layout(write(tmp_path, files), Layout({}, flags={"caption_column": "words"}))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    files, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as error:
        open_layout(write(tmp_path, files), Layout({}))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("--data_dir ")


def test_captions_in_another_encoding_are_damaged_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["一个小女孩在公园", "été à la plage", "девочка в парке"]
    codecs = ["gbk", "cp1252", "cp1251"]
    files: Files = {f"{i:03d}.txt": texts[i % 3].encode(codecs[i % 3]) for i in range(N)}
    source, _ = open_layout(write(tmp_path, images() | files), Layout({}))
    captions = [c.text for split in SPLITS for r in source.records(split) for c in r.captions]
    assert [text for text in captions if caption_fault(text) is None] == ["été à la plage"] * 4
    western, foreign = caplog.messages
    assert "4 lines are not UTF-8; read as Windows-1252" in western
    assert "8 lines are neither UTF-8 nor Windows-1252; convert the text" in foreign


def test_an_error_about_a_whole_split_tells_the_first_problem(tmp_path: Path) -> None:
    write(tmp_path, {"t.csv": csv_of("image,caption", "gone/{name},of {i}"), "000.pgn": "x"})
    source, config = open_layout(tmp_path, Layout({}))
    with pytest.raises(InputError, match=r"missing file.*; the first: gone/0\d\d.png"):
        read_everything(source, config)


def test_a_missing_file_tells_the_path_and_the_nearest_name(tmp_path: Path) -> None:
    table = csv_of("image,caption", "{name},of {i}") + "images/photo_l.png,x\nimages/zzz.png,y\n"
    write(tmp_path, images() | {"images/photo_1.png": picture(50), "captions.csv": table})
    source, config = open_layout(tmp_path, Layout({}))
    skipped = read_everything(source, config).skipped()
    assert dict(skipped[["key", "detail"]].values.tolist()) == {
        "images/photo_l.png": "images/photo_l.png; the nearest name is images/photo_1.png",
        "images/zzz.png": "images/zzz.png",
    }


@pytest.mark.skipif(HAS_HEIF, reason="HEIC is read where its package is installed")
def test_heic_tells_what_reads_it(tmp_path: Path) -> None:
    files: Files = images() | {f"{i:03d}.txt": f"of {i}" for i in range(N)}
    files |= {"phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "phone.txt": "from a phone"}
    source, config = open_layout(write(tmp_path, files), Layout({}))
    [row] = read_everything(source, config).skipped()[["reason", "detail", "caption"]].values
    assert (row[0], row[2]) == (FORMAT_NOT_READ, "from a phone")
    assert row[1] == "HEIC; pip install -r requirements-heif.txt (pillow-heif) reads it"


def test_a_folder_of_the_hubs_cache(tmp_path: Path) -> None:
    """A snapshot holds links to blobs, whatever is in it."""
    repository = tmp_path / "hub/datasets--me--pairs"
    snapshot = repository / "snapshots/0123"
    files = images("images") | {"captions.csv": csv_of("image,caption", "{name},of {i}")}
    for number, (name, content) in enumerate(files.items()):
        blob = f"{number:040x}"
        write(repository / "blobs", {blob: content})
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(
            os.path.relpath(repository / "blobs" / blob, (snapshot / name).parent)
        )
    source, config = open_layout(snapshot, Layout({}))
    reader = read_everything(source, config)
    assert (reader.account().used, reader.account().skipped) == (N, 0)


# --- Real ones ------------------------------------------------------------------------------------

# Data set, captions used where every image is usable, captions skipped, and splits by their images.
EXPECTED: dict[str, tuple[str, int, int, dict[str, int] | None]] = {
    "01b-csv-blipcaption": ("folder", 40, 0, None),
    "05-karpathy": ("folder", 200, 0, {"train": 33, "validation": 6, "test": 1}),
    "06d-image_path": ("folder", 40, 0, None),
    "07-tsv-quotes": ("folder", 40, 0, None),
    "08-csv-quotes": ("folder", 200, 0, None),
    "10b-wds-some-dotted": ("webdataset", 40, 0, None),
    "13b-wds-mixed-formats": ("webdataset", 40, 0, None),
    "16-hfcache-wds": ("webdataset", 40, 0, None),
    "18-mixed-formats-txt": ("folder", 40, 0 if HAS_HEIF else 5, None),
    "19-vg-two-folders": ("folder", 40, 0, None),
    "20-coco-ultralytics": ("coco", 200, 0, {"train": 24, "validation": 6, "test": 10}),
    "21-nlphuji-flickr30k": ("parquet", 300, 0, {"train": 40, "validation": 10, "test": 10}),
    "22-jxie-flickr8k": ("parquet", 300, 0, {"train": 40, "validation": 10, "test": 10}),
    "25-img2dataset-files": ("folder", 38, 0, None),
    "29-split-column": ("folder", 40, 0, {"train": 28, "validation": 6, "test": 6}),
    "31b-chinese": ("folder", 60, 0, None),
    "36b-flickr8k-both-token": ("folder", 200, 0, None),
    "51-title-and-caption-csv": ("folder", 40, 0, None),
}


@pytest.mark.skipif(not FIELD.is_dir(), reason="needs the data sets of the field")
@pytest.mark.parametrize("name", EXPECTED)
def test_data_sets_of_the_field(name: str) -> None:
    dataset, n_captions, n_skipped, splits = EXPECTED[name]
    source, config = open_layout(FIELD / name, Layout({}), dataset=dataset)
    reader = read_everything(source, config)
    account = reader.account()
    assert (account.not_read is not None, account.unread) == (True, ())
    assert account.used + account.skipped + (account.not_read or 0) == n_captions
    assert account.skipped == n_skipped
    if splits is not None:
        images_of = reader.pairs().groupby("split")["image_row"].nunique().to_dict()
        assert images_of == splits

"""Official splits of images; the truth is written beside each name."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.settings import InputError
from sources.official import Named, find_splits, is_split_list, splits_of_paths
from tests.helpers import write


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train/a.jpg", "val/b.jpg", "other/c.jpg"], ["train", "validation", None]),
        (["images/train2017/a.jpg", "images/Test/deep/b.jpg"], ["train", "test"]),
        (["test/train/a.jpg"], ["train"]),  # the nearest
        (
            ["train_images/a.jpg", "images-val/b.jpg", "TestSet/c.jpg"],
            ["train", "validation", "test"],
        ),
        (["bullet_train/a.jpg", "test_tube/b.jpg", "dev kit/c.jpg"], [None, None, None]),
        (["mine_train/a.jpg", "mine_test/b.jpg"], ["train", "test"]),
        (["mine_train/a.jpg", "yours_test/b.jpg"], [None, None]),
        (["dog training.jpg", "test.jpg"], [None, None]),
        (["x_train_01.jpg", "x_train_02.jpg"], [None, None]),
        (["x_train_01.jpg", "x_val_07.jpg", "plain.jpg"], ["train", "validation", None]),
        (["strain/a.jpg", "latest/b.jpg", "trainvaltest/c.jpg"], [None, None, None]),
    ],
)
def test_splits_that_paths_name(paths: list[str], splits: list[str | None]) -> None:
    found = splits_of_paths(paths)
    assert [found.get(path) for path in paths] == splits


@pytest.mark.parametrize(
    ("name", "is_list"),
    [
        ("Flickr_8k.trainImages.txt", True),
        ("lists/val.lst", True),
        ("test.csv", True),
        ("train.json", False),
        ("notes.txt", False),
    ],
)
def test_lists_of_names_are_called_after_a_split(name: str, is_list: bool) -> None:
    assert is_split_list(name) == is_list


def test_the_most_explicit_source_of_a_split_counts(tmp_path: Path) -> None:
    """splits.csv, then the column, lists, names of tables, folders."""
    write(
        tmp_path,
        {
            "splits.csv": "file_name,split\n0.jpg,test\n",
            "val.txt": "2\ntrain/0.jpg\nunknown.jpg\n",
            "train.txt": "two words\n3.jpg",  # no list
        },
    )
    files = ["splits.csv", "val.txt", "train.txt", *(f"train/{i}.jpg" for i in range(5))]
    images = [
        Named("train/0.jpg", "train", "b_train.json"),
        Named("train/1.jpg", "val", "b_train.json"),
        Named("train/1.jpg", "test", "b_train.json"),  # the first that is read
        Named("train/2.jpg", "no split", "b_train.json"),
        Named("train/3.jpg", "", "b_test.json"),
        Named("elsewhere.jpg", "", "b.json"),
    ]
    splits = find_splits(tmp_path, files, images)
    assert splits.of == {
        "train/0.jpg": "test",
        "train/1.jpg": "test",
        "train/2.jpg": "validation",
        "train/3.jpg": "test",
    }
    assert splits.notes == (
        "splits from splits.csv: test 1",
        "splits from the column split: test 1",
        "splits from lists of names: validation 1",
        "splits from the names of tables: test 1",
        "names in the column split that are no split: 'no split' 1",
        "1 image without a split is a training image",
    )
    by_folder = find_splits(tmp_path, files[1:], [Named("train/4.jpg")])
    assert by_folder.of == {"train/4.jpg": "train"}
    assert find_splits(tmp_path, [], [Named("a.jpg")]).notes == ()


@pytest.mark.parametrize("content", ["image\na.jpg\n", "image,part\na.jpg,test\n", ""])
def test_a_table_of_splits_without_its_columns(tmp_path: Path, content: str) -> None:
    write(tmp_path, {"splits.csv": content})
    with pytest.raises(InputError, match=r"splits.csv needs the columns image and split"):
        find_splits(tmp_path, ["splits.csv"], [Named("a.jpg")])

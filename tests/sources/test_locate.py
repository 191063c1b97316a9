"""Files found by what tables call them; the truth is written beside each name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sources.locate import Locator
from tests.helpers import write

FILES = [
    *("a/1.jpg", "a/2.jpg", "b/2.jpg", "b/Été.png", "photo.jpg", "train/x.png", "val/x.png"),
    *("deep/set/images/9.png", "other/images/9.png"),
]


@pytest.mark.parametrize(
    ("written", "beside", "split", "found"),
    [
        ("a/1.jpg", "", None, "a/1.jpg"),
        ("./a//1.jpg", "", None, "a/1.jpg"),
        (" 1.jpg ", "a", None, "a/1.jpg"),
        ("a/1.jpg", "b", None, "a/1.jpg"),  # from the data folder
        ("1.jpg", "", None, "a/1.jpg"),
        ("/home/me/a/2.jpg", "", None, "a/2.jpg"),
        ("C:\\me\\b\\2.jpg", "", None, "b/2.jpg"),
        ("2.jpg", "", None, "2.jpg"),  # two have the name
        ("b/E\u0301te\u0301.png", "", None, "b/Été.png"),
        ("PHOTO.JPG", "", None, "photo.jpg"),
        ("photo", "", None, "photo.jpg"),
        ("photo.png", "", None, "photo.png"),  # another extension is another file
        ("x.png", "", "validation", "val/x.png"),
        ("x.png", "", "train", "train/x.png"),
        ("x.png", "", "test", "x.png"),
        ("/data/set/images/9.png", "", None, "deep/set/images/9.png"),
        ("images/9.png", "", None, "images/9.png"),
        ("", "", None, ""),
        ("../photo.jpg", "", None, "photo.jpg"),  # nothing outside the folder is looked at
    ],
)
def test_where_files_are(written: str, beside: str, split: str | None, found: str) -> None:
    assert Locator(Path(), dict.fromkeys(FILES)).find(written, beside, split) == found


def test_the_folder_that_most_names_are_in_goes_first() -> None:
    files = [f"Images/{i}.jpg" for i in range(5)] + ["thumbs/3.jpg", "thumbs/7.jpg"]
    locator = Locator(Path(), dict.fromkeys(files))
    locator.learn([f"{i}.jpg" for i in range(8)])
    assert [locator.find(f"{i}.jpg") for i in (3, 7, 9)] == [
        "Images/3.jpg",
        "thumbs/7.jpg",
        "9.jpg",
    ]
    assert locator.notes() == [
        "files found otherwise than as named: 1 below Images/, 1 in another folder"
    ]


def test_a_name_that_is_asked_for_twice_counts_once() -> None:
    locator = Locator(Path(), {"a/1.jpg": 0, "2.jpg": 0})
    assert [locator.find(name) for name in ("1.jpg", "1.jpg", "2.jpg")] == [
        *("a/1.jpg", "a/1.jpg", "2.jpg"),
    ]
    assert locator.bridged == {"in another folder": 1}
    assert Locator(Path(), {"2.jpg": 0}).notes() == []


def test_what_is_missing_tells_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, {"a/IMG_0041.jpg": b"x", "a/IMG_0042.jpg": b"y", "zebra.png": b"z"})
    locator = Locator(tmp_path, ["a/IMG_0041.jpg", "a/IMG_0042.jpg", "zebra.png"])
    assert locator.read("zebra.png") == b"z"
    with pytest.raises(FileNotFoundError, match=r"^a/IMG_0042.jpeg; .*is a/IMG_0042.jpg$"):
        locator.read("a/IMG_0042.jpeg")
    with pytest.raises(FileNotFoundError, match=r"^quite another$"):
        locator.read("quite another")
    assert Locator(tmp_path, []).nearest("a.jpg") == ""

"""Files found by what tables call them; the truth is written beside each name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sources.locate import Asked, Locator
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


def planned(files: Sequence[str], *asked: Asked | str) -> tuple[list[str], list[str]]:
    """What names lead to that are looked for together, and what is said of it."""
    locator = Locator(Path(), dict.fromkeys(files))
    names = [Asked(each) if isinstance(each, str) else each for each in asked]
    locator.plan(names)
    return [locator.find(*name) for name in names], locator.notes()


def test_a_folder_that_has_all_names_goes_first() -> None:
    files = [f"Images/{i}.jpg" for i in range(5)] + ["thumbs/3.jpg", "thumbs/7.jpg"]
    assert planned(files, "0.jpg", "3.jpg") == (
        ["Images/0.jpg", "Images/3.jpg"],
        ["files found otherwise than as named: 2 below Images/"],
    )
    found, notes = planned(files, "0.jpg", "3.jpg", "7.jpg", "9.jpg")
    assert found == ["Images/0.jpg", "3.jpg", "thumbs/7.jpg", "9.jpg"]  # nothing tells which 3
    assert notes == ["files found otherwise than as named: 1 below Images/, 1 in another folder"]


def test_a_folder_that_has_all_names_beside_another_is_no_answer() -> None:
    files = [f"{folder}/{i}.jpg" for folder in ("masks", "originals") for i in range(3)]
    assert planned(files, "0.jpg", "1.jpg") == (["0.jpg", "1.jpg"], [])
    beside = [Asked("0.jpg", "originals"), Asked("1.jpg", "originals")]
    assert planned(files, *beside)[0] == ["originals/0.jpg", "originals/1.jpg"]
    below = [*files, "masks/deep/9.jpg", "originals/deep/9.jpg"]
    assert planned(below, Asked("9.jpg", "masks"))[0] == ["masks/deep/9.jpg"]


@pytest.mark.parametrize(
    ("files", "written", "found"),
    [
        # A file that is missing from its folder is not the one of another folder.
        (["cat/0.jpg", "cat/7.jpg", "dog/1.jpg"], ["dog/7.jpg"], ["dog/7.jpg"]),
        # Nor where the folder is missing as a whole.
        (["cat/0.jpg", "cat/1.jpg"], ["cat/0.jpg", "dog/0.jpg"], ["cat/0.jpg", "dog/0.jpg"]),
        (["all/0.jpg"], ["cat/0.jpg", "dog/0.jpg"], ["cat/0.jpg", "dog/0.jpg"]),
        (["x/a.jpg"], ["a.jpg", "A.JPG"], ["a.jpg", "A.JPG"]),
        (["x/a.jpg"], ["a.jpg", ".\\a.jpg"], ["x/a.jpg", "x/a.jpg"]),  # one name
        # Folders that were made flat, and a beginning that was taken away.
        (["all/0.jpg", "all/1.jpg"], ["cat/0.jpg", "dog/1.jpg"], ["all/0.jpg", "all/1.jpg"]),
        (["b/0.jpg", "b/1.jpg"], ["/x/b/0.jpg", "/x/b/1.jpg"], ["b/0.jpg", "b/1.jpg"]),
    ],
)
def test_two_names_never_lead_to_one_file(
    files: list[str], written: list[str], found: list[str]
) -> None:
    assert planned(files, *written)[0] == found


def test_a_name_in_two_splits_is_that_of_the_folder() -> None:
    asked = [Asked("0.jpg", "", "train"), Asked("0.jpg", "", "validation")]
    assert planned(["images/train/0.jpg"], *asked)[0] == ["images/train/0.jpg", "0.jpg"]
    assert planned(["images/0.jpg"], *asked)[0] == ["images/0.jpg"] * 2
    assert planned(["val2014/0.jpg"], asked[0])[0] == ["val2014/0.jpg"]  # Karpathy's restval


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("my%20pic.jpg", "a/my pic.jpg"),
        ("my%20pic.jpg?width=30", "a/my pic.jpg"),
        ("100%.jpg", "a/100%.jpg"),
        ("42", "a/000042.jpg"),
        ("42.png", "42.png"),
        ("7", "7"),  # two have this number
        ("0", "0"),
    ],
)
def test_names_in_addresses_and_numbers(written: str, found: str) -> None:
    files = ["a/my pic.jpg", "a/100%.jpg", "a/000042.jpg", "a/07.jpg", "a/007.jpg", "a/words"]
    assert planned(files, written)[0] == [found]


def test_a_name_that_is_asked_for_twice_counts_once() -> None:
    locator = Locator(Path(), {"a/1.jpg": 0, "2.jpg": 0})
    assert [locator.find(name) for name in ("1.jpg", "1.jpg", "2.jpg")] == [
        *("a/1.jpg", "a/1.jpg", "2.jpg"),
    ]
    assert locator.notes() == ["files found otherwise than as named: 1 below a/"]
    assert Locator(Path(), {"2.jpg": 0}).notes() == []


def test_several_files_of_a_name_are_told(tmp_path: Path) -> None:
    locator = Locator(tmp_path, dict.fromkeys(["a/0.jpg", "b/0.jpg"]))
    locator.plan([Asked("0.jpg")])
    with pytest.raises(FileNotFoundError, match=r"^0.jpg; several .* name: a/0.jpg, b/0.jpg$"):
        locator.read("0.jpg")


def test_what_is_missing_tells_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, {"a/IMG_0041.jpg": b"x", "a/IMG_0042.jpg": b"y", "zebra.png": b"z"})
    locator = Locator(tmp_path, ["a/IMG_0041.jpg", "a/IMG_0042.jpg", "zebra.png"])
    assert locator.read("zebra.png") == b"z"
    with pytest.raises(FileNotFoundError, match=r"^a/IMG_0042.jpeg; .*is a/IMG_0042.jpg$"):
        locator.read("a/IMG_0042.jpeg")
    with pytest.raises(FileNotFoundError, match=r"^quite another$"):
        locator.read("quite another")
    assert Locator(tmp_path, []).nearest("a.jpg") == ""

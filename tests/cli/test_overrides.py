"""A reviewer's file: what is read of it, what spreadsheets do to it, and what is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.settings import InputError
from cli.overrides import Overrides, read_overrides
from curation import DROP, KEEP

A, B, C = ("0123456789abcdef" * 2, "a" * 32, "f00d" * 8)
SAID = {A: KEEP, B: DROP}


def write(folder: Path, content: bytes | str, name: str = "o.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_without_a_file_nothing_is_said() -> None:
    nobody = read_overrides(None)
    assert nobody == Overrides()
    assert nobody.settings() == {}
    assert nobody.of([A, B]) is None
    assert nobody.strangers([A, B]) == ""


@pytest.mark.parametrize(
    "content",
    [
        f"id,decision,key,caption\n{A},keep,a.jpg,a dog\n{B},drop,b.jpg,a cat\n",
        f"\ufeffid,decision,key,caption\r\n{A},keep,a.jpg,a dog\r\n{B},drop,b.jpg,a cat\r\n",
        f"id;decision;key;caption\r\n{A};keep;a.jpg;a dog, a cat\r\n{B};drop;;\r\n",
        f"sep=;\r\nid;decision\r\n{A};keep\r\n{B};drop\r\n",
        f"id\tdecision\n{A}\tkeep\n{B}\tdrop",
        f" ID , Decision \n {A.upper()} , KEEP \n{B},Drop\u00a0\n",
        f'"id","decision","key"\n"{A}","keep","a ""b"""\n"{B}","drop","two\nlines, one id"\n',
        f"\n\r\nid,decision\n\n{A},keep\n,,\n , \n{B},drop\n\n",
        f"key,decision,caption,id\na.jpg,keep,x,{A}\nb.jpg,drop,y,{B},more,cells\n",
        f"id,decision\n{A},keep\n{B},drop\n{A},keep\n",  # the same twice
        f"id,decision\r{A},keep\r{B},drop\r",
        f"id,decision,caption\n{A},keep,caf\xe9\n{B},drop,\n".encode("latin-1"),
        f"id\tdecision\tcaption\r\n{A}\tkeep\tcaf\xe9\r\n{B}\tdrop\t\r\n".encode("utf-16"),
        f"id,decision,caption\n{A},keep,\0</script>\u202e\n{B},drop,\n",
        f"id,decision,caption\n{A},keep,{'long ' * 40_000}\n{B},drop,\n",
    ],
)
def test_what_spreadsheets_make_of_a_file_is_read(tmp_path: Path, content: bytes | str) -> None:
    read = read_overrides(write(tmp_path, content))
    assert read.decisions == SAID
    assert read.of([C, B, A]) is not None
    assert np.asarray(read.of([C, B, A])).tolist() == [0, DROP, KEEP]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(cells=st.lists(st.tuples(st.booleans(), words, words), max_size=12), semicolon=st.booleans())
@settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_captions_hold_decisions_come_back(
    tmp_path: Path, cells: list[tuple[bool, str, str]], semicolon: bool
) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter=";" if semicolon else ",")
    writer.writerow(["id", "decision", "key", "caption"])
    expected = {}
    for number, (keep, key, caption) in enumerate(cells):
        expected[f"{number:032x}"] = KEEP if keep else DROP
        writer.writerow([f"{number:032x}", "keep" if keep else "drop", key, caption])
    path = write(tmp_path, table.getvalue())
    assert read_overrides(path).decisions == expected


def test_a_fingerprint_follows_from_the_decisions_alone(tmp_path: Path) -> None:
    given = [
        read_overrides(write(tmp_path, content, name))
        for name, content in {
            "a.csv": f"id,decision,caption\n{A},keep,one\n{B},drop,\n",
            "b.csv": f"caption;Decision;ID\r\nother;DROP;{B}\r\n\r\nmore;keep;{A.upper()}\r\n",
        }.items()
    ]
    assert given[0].settings() == given[1].settings()
    (told,) = given[0].settings().values()
    assert told.startswith("1 keep, 1 drop (")
    others = [
        Overrides(decisions).settings()["overrides"]
        for decisions in ({A: KEEP}, {A: DROP, B: KEEP}, {A: KEEP, C: DROP}, {B: KEEP, A: KEEP})
    ]
    assert len({told, *others}) == 5
    assert read_overrides(write(tmp_path, "id,decision\n")).settings() == {}


def test_ids_of_no_training_pair_are_counted_and_change_nothing() -> None:
    asked = Overrides({A: KEEP, B: DROP, A[:8]: DROP}, "some/o.csv")
    assert asked.strangers([A, B, A[:8]]) == ""
    assert asked.strangers([B, C, A]) == (
        "--overrides some/o.csv: 1 of 3 ids are of no training pair of this run (held out, skipped "
        "or unknown) and change nothing: 01234567"
    )
    assert np.asarray(asked.of([B, C, A])).tolist() == [DROP, 0, KEEP]
    assert asked.of([C]) is None
    many = Overrides(dict.fromkeys(["\x1b[31mred", *map(str, range(1500))], KEEP), "o.csv")
    assert many.strangers([C]).startswith("--overrides o.csv: 1,501 of 1,501 ids")
    assert many.strangers([C]).endswith("change nothing: ?[31mred, 0, 1, ...")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"with the columns id and decision; its first line is ''"),
        ("\n\n", r"with the columns id and decision; its first line is ''"),
        ("key,decision\na,keep\n", r"columns id and decision; its first line is 'key,decision'"),
        (f"{A},keep\n", r"columns id and decision; its first line is '0123.*,keep'"),
        ("id decision\n", r"its first line is 'id decision'"),
        (b"\xff\xfei\0d\0,\0d\0", r"must be a CSV file in Unicode"),
        (
            f"id,decision\n\n{A},keep\n{B},maybe\n",
            r"o.csv, line 4: the decision must be keep or drop; got 'maybe'",
        ),
        (f"id,decision,key\n{A},,a.jpg\n", r"line 2: the decision must be keep or drop; got ''"),
        (f"id,decision\n{A}\n", r"line 2: the decision must be keep or drop; got ''"),
        (f"id,decision\n{A},\x1b[2J{'x' * 99}\n", r"got '\?\[2jx{36}\.\.\.'"),
        ("id,decision\n,keep\n", r"line 2: no id beside keep; give one or delete the row"),
        (
            f'id,decision,caption\n{A},keep,"two\nlines"\n{B},drop,\n{A.upper()},drop,\n',
            rf"line 5: {A} is marked drop, in line 2 keep; delete one of the two rows",
        ),
        # A quote that swallows the rows below it hides decisions.
        (f'id,decision,caption\n{A},keep,"oh\n{B},drop,x\n', r"line 2: unexpected end of data"),
        (f'id,decision,caption\n{A},keep,"oh\n{B},drop,"x\n', r"line 2: .*save the table as CSV"),
    ],
)
def test_files_that_cannot_be_obeyed_are_refused_in_one_line(
    tmp_path: Path, content: bytes | str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        read_overrides(write(tmp_path, content))
    assert str(refused.value).startswith(f"--overrides {tmp_path / 'o.csv'}")
    assert str(refused.value).isprintable()


def test_a_file_has_to_be_there_and_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"--overrides .*none\.csv does not exist; name a CSV"):
        read_overrides(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=r"is no file; name a CSV file"):
        read_overrides(str(tmp_path))
    with pytest.raises(InputError, match=r"--overrides /dev/zero is no file"):
        read_overrides("/dev/zero")
    path = write(tmp_path, "id,decision\n")

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(InputError, match=r"o\.csv cannot be read \(Permission denied\)"):
        read_overrides(path)

"""Members of tar files; the truth is what `tarfile` wrote, or bytes laid out by hand."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from artifacts.settings import InputError
from sources import tar as tar_module
from sources.base import FILE_TOO_LARGE, MAX_FILE_BYTES, OUTSIDE_FOLDER, UnusableImage
from sources.tar import NO_PLAIN_MEMBER, TRUNCATED_SHARD
from tests.helpers import picture, read_all, write
from tests.sources.tars import (
    BLOCK,
    FORMATS,
    UID,
    Member,
    header,
    open_shards,
    outcome,
    padded,
    pair,
    pairs,
    records,
    records_of,
    special,
    tar,
    texts,
    warnings_in,
)


@given(
    name=st.text(min_size=1, max_size=120),
    size=st.integers(0, 2**36),
    format_name=st.sampled_from(sorted(FORMATS)),
    damaged=st.none() | st.tuples(st.integers(0, BLOCK - 1), st.integers(0, 255)),
    is_signed_anew=st.booleans(),
)
@example(name="a.jpg", size=0o777, format_name="ustar", damaged=(124, 57), is_signed_anew=True)
@example(name="d/" * 60, size=1, format_name="ustar", damaged=None, is_signed_anew=False)
def test_a_plain_header_says_what_tarfile_reads(
    name: str,
    size: int,
    format_name: str,
    damaged: tuple[int, int] | None,
    *,
    is_signed_anew: bool,
) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        written = info.tobuf(FORMATS[format_name], "utf-8", "surrogateescape")  # type: ignore[arg-type]
    except (ValueError, UnicodeError):  # it holds no such name or size
        return
    block = bytearray(written[-BLOCK:])
    if damaged is not None:
        block[damaged[0]] = damaged[1]
    if is_signed_anew:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    found = tar_module._plain_header(bytes(block))
    if found is None:  # then tarfile is asked, whatever it says
        return
    try:
        expected = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
    except tarfile.HeaderError:  # over a number that nobody looks at, such as the owner's
        assert is_signed_anew
        return
    assert (found.name, found.size, found.type) == (expected.name, expected.size, expected.type)


def test_the_usual_header_is_a_plain_one() -> None:
    block = tar([("00001.jpg", picture(1))], tarfile.GNU_FORMAT)[:BLOCK]
    found = tar_module._plain_header(block)
    assert found is not None
    assert (found.name, found.size) == ("00001.jpg", len(picture(1)))


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_tar_format(tmp_path: Path, format_name: str) -> None:
    deep = "/".join(["d" * 30] * (7 if format_name == "ustar" else 20))
    names = ["a", "in/b", "./c", "été", f"{deep}/long", "in/a"]
    members: list[Member] = []
    for number, name in enumerate(names):
        members += [(f"{name}.PNG", picture(number)), (f"{name}.txt", f"text {number}\n")]
        members += [(f"{name}.cls", "3"), special(f"folder {number}", tarfile.DIRTYPE)]
    write(tmp_path, {"sub/one.tar": tar(members, FORMATS[format_name])})
    found = records(tmp_path)
    assert [r.key for r in found] == [f"sub/one/{n.removeprefix('./')}" for n in names]
    assert [r.member for r in found] == [f"{n}.PNG" for n in names]
    assert {r.shard for r in found} == {"sub/one.tar"}
    assert [outcome(r) for r in found] == [picture(i) for i in range(len(names))]
    assert [texts(r) for r in found] == [[f"text {i}"] for i in range(len(names))]
    assert [r.captions[0].position for r in found] == list(range(len(names)))


# --- What is never opened -------------------------------------------------------------------------


class Watched(io.BytesIO):
    """A file that remembers which bytes were asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 <= size <= 2**22, "a header's word for a size is not taken"
        self.asked.append((self.tell(), self.tell() + size))
        return super().read(size)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemError('unpickled')",)


@pytest.mark.parametrize("format_name", FORMATS)
def test_only_headers_and_texts_are_read(tmp_path: Path, format_name: str) -> None:
    trap = pickle.dumps(Trap())
    with pytest.raises(SystemError, match="unpickled"):
        pickle.loads(trap)  # noqa: S301 - the trap works
    members: list[Member] = []
    for i in range(4):
        members += [(f"{i}.cls", trap), (f"{i}.npy", trap), (f"{i}.pkl", trap), (f"{i}.pth", trap)]
        members += [(f"{i}.png", picture(i)), (f"{i}.pyd", trap), (f"{i}.txt", "text")]
    data = tar([*members, ("only.pkl", trap)], FORMATS[format_name])
    file = Watched(data)
    _, n_whole, damage = tar_module.read_members(file, len(data))
    assert (n_whole, damage) == (29, "")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        closed = [m for m in archive.getmembers() if not m.name.endswith(".txt")]
    assert len(closed) == 25
    for member in closed:
        start, end = member.offset_data, member.offset_data + member.size
        assert all(b <= start or a >= end for a, b in file.asked), member.name
    found = records(write(tmp_path, {"s.tar": data}))
    assert [outcome(r) for r in found] == [picture(i) for i in range(4)]


def pax_sparse(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
    return info


REFUSED: dict[str, tuple[tarfile.TarInfo, str]] = {
    "symbolic link": (special("b.png", tarfile.SYMTYPE, "000.png"), NO_PLAIN_MEMBER),
    "link out": (special("b.png", tarfile.SYMTYPE, "../secret.png"), NO_PLAIN_MEMBER),
    "hard link": (special("b.png", tarfile.LNKTYPE, "000.png"), NO_PLAIN_MEMBER),
    "device": (special("b.png", tarfile.CHRTYPE), NO_PLAIN_MEMBER),
    "disk": (special("b.png", tarfile.BLKTYPE), NO_PLAIN_MEMBER),
    "pipe": (special("b.png", tarfile.FIFOTYPE), NO_PLAIN_MEMBER),
    "folder": (special("b.png", tarfile.DIRTYPE), NO_PLAIN_MEMBER),
    "unknown": (special("b.png", b"Q"), NO_PLAIN_MEMBER),
    "old sparse": (special("b.png", tarfile.GNUTYPE_SPARSE), NO_PLAIN_MEMBER),
    "sparse": (pax_sparse("b.png"), NO_PLAIN_MEMBER),
    "absolute": (special("/b.png", tarfile.REGTYPE), OUTSIDE_FOLDER),
    "upwards": (special("in/../../b.png", tarfile.REGTYPE), OUTSIDE_FOLDER),
    "backwards": (special("\\b.png", tarfile.REGTYPE), OUTSIDE_FOLDER),
}


@pytest.mark.parametrize(("member", "reason"), REFUSED.values(), ids=REFUSED)
def test_members_that_are_refused(tmp_path: Path, member: tarfile.TarInfo, reason: str) -> None:
    write(tmp_path, {"secret.png": picture(200)})
    name = str(member.pax_headers.get("GNU.sparse.name", member.name))
    text = name.replace(".png", ".txt")
    members = [*pairs(range(10)), member, (text, "its text"), *pairs(range(20, 30))]
    write(tmp_path, {"in/s.tar": tar(members, tarfile.PAX_FORMAT)})
    found = records(tmp_path / "in")
    assert [outcome(r) for r in found] == [
        *(picture(i) for i in range(10)),
        reason,
        *(picture(i) for i in range(20, 30)),
    ]
    is_text_open = reason == NO_PLAIN_MEMBER  # its name leads as far as that of the image
    assert texts(found[10]) == ["its text" if is_text_open else None]
    with pytest.raises(UnusableImage) as caught:
        found[10].read()
    assert caught.value.detail == name
    skipped = read_all(open_shards(tmp_path / "in"))[0].skipped()
    assert skipped[["reason", "member"]].to_numpy().tolist() == [[reason, name]]


@pytest.mark.parametrize("name", ["b.txt", "b.json"])
def test_a_text_that_is_refused(tmp_path: Path, name: str) -> None:
    link = special(name, tarfile.SYMTYPE, "000.txt")
    found = records_of(tmp_path, *pair(0), ("b.png", picture(1)), link, *pair(2))
    assert [outcome(r) for r in found] == [picture(0), NO_PLAIN_MEMBER, picture(2)]
    assert texts(found[1]) == [None]


def test_headers_for_all_members_name_none(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    fields = {"comment": "x" * 2000, "path": "other.png", "size": "3"}
    with tarfile.open(fileobj=buffer, mode="w", pax_headers=fields):
        pass
    content = buffer.getvalue().rstrip(b"\0")
    write(tmp_path, {"s.tar": padded(content) + tar(pair(1))})
    (found,) = records(tmp_path)
    assert (found.key, outcome(found)) == ("s/001", picture(1))


def test_an_old_sparse_map_that_goes_on(tmp_path: Path) -> None:
    sparse = bytearray(header("b.png", BLOCK, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1  # another block of the map follows
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    first, second = bytearray(BLOCK), bytes(BLOCK)
    first[504] = 1
    data = tar([("a.png", picture(1))])[: 2 * BLOCK] + sparse + first + second + bytes(BLOCK)
    write(tmp_path, {"s.tar": data + tar([("c.png", picture(3))])})
    assert [outcome(r) for r in records(tmp_path)] == [picture(1), NO_PLAIN_MEMBER, picture(3)]


def test_a_member_too_large(tmp_path: Path) -> None:
    size = MAX_FILE_BYTES + 1
    path = write(tmp_path, {"s.tar": header("a.png", size)}) / "s.tar"
    os.truncate(path, BLOCK + -(-size // BLOCK) * BLOCK)  # a hole, which takes no room
    with path.open("ab") as file:
        file.write(tar([("b.png", picture(2))]))
    assert [outcome(r) for r in records(path)] == [FILE_TOO_LARGE, picture(2)]


# --- Damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_shard_cut_anywhere(
    tmp_path: Path, format_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = tar(pairs(range(3)), FORMATS[format_name])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        headers = archive.getmembers()
    end = headers[-1].offset_data + BLOCK
    for cut in [*range(0, end + 2 * BLOCK, 101), *(m.offset_data for m in headers), end]:
        caplog.clear()
        path = write(tmp_path, {"s.tar": data[:cut]}) / "s.tar"
        named = [m for m in headers if m.offset_data <= cut]
        whole = [m.name for m in named if m.offset_data + m.size <= cut]
        if not named:
            with pytest.raises(InputError, match="nothing usable: 1 shards, the first"):
                records(path)
            continue
        found = records(path)
        assert [r.member for r in found] == [m.name for m in named if m.name.endswith(".png")]
        for number, record in enumerate(found):
            members = [m.name for m in named if m.name.startswith(f"{number:03d}")]
            is_cut = not set(members) <= set(whole)
            assert outcome(record) == (TRUNCATED_SHARD if is_cut else picture(number))
            assert texts(record) == [f"picture {number}" if f"{number:03d}.txt" in whole else None]
        has_end = cut >= end + BLOCK
        expected = f"s.tar is damaged after {len(whole)} members"
        assert [w.startswith(expected) for w in warnings_in(caplog)] == [True] * (not has_end)


def pax_record(text: str) -> bytes:
    return header("pax", len(text), tarfile.XHDTYPE) + padded(text.encode())


LIES: dict[str, bytes] = {
    "negative size": header("b.png", -1024),
    "absurd size": header("b.png", 2**60),
    "size beyond a file's": header("b.png", 2**80),
    "negative long name": header("x", -512, tarfile.GNUTYPE_LONGNAME),
    "absurd long name": header("x", 2**40, tarfile.GNUTYPE_LONGNAME),
    "absurd pax": header("x", 2**30, tarfile.XHDTYPE),
    "negative pax size": pax_record("11 size=-1\n") + header("b.png", 4),
    "absurd pax size": pax_record("30 size=1000000000000000000000\n") + header("b.png", 4),
    "no pax size": pax_record("11 size=xy\n") + header("b.png", 4),
    "pax without length": pax_record("0 path=b\n"),
    "pax with negative length": pax_record("-9 path=b\n"),
    "pax too long": pax_record("99 path=b\n"),
    "no checksum": header("b.png", 4).replace(b"b.png", b"c.png"),
    "no header": b"\xff" * BLOCK,
    "endless sparse map": header("b.png", 4, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + b"\1" * 4096,
    "hole": bytes(2 * BLOCK) + header("b.png", 4),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_headers_that_lie(tmp_path: Path, lie: bytes, caplog: pytest.LogCaptureFixture) -> None:
    before = tar(pair(1))[: 4 * BLOCK]
    data = before + lie + tar(pairs(range(2, 30)))
    file = Watched(data)  # it refuses to read as much as the lies ask for
    _, n_whole, damage = tar_module.read_members(file, len(data))
    assert damage
    assert n_whole == 2
    found = records(write(tmp_path, {"s.tar": data}))
    assert outcome(found[0]) == picture(1)
    assert {outcome(r) for r in found[1:]} <= {TRUNCATED_SHARD}
    (warning,) = warnings_in(caplog)
    assert warning.startswith("s.tar is damaged after 2 members (")


def test_a_link_with_a_size_has_no_data(tmp_path: Path) -> None:
    link = header("b.png", 10**6, tarfile.SYMTYPE)
    write(tmp_path, {"s.tar": tar(pair(1))[: 4 * BLOCK] + link + tar(pair(2))})
    assert [outcome(r) for r in records(tmp_path)] == [picture(1), NO_PLAIN_MEMBER, picture(2)]


LONG = "é" * 30 + "/" + "é" * 30


SOUND = {
    name: tar(
        [
            *pair(0),
            (LONG + ".png", picture(1)),
            (LONG + ".json", '{"caption": ["One", "Two"], "uid": "' + UID + '"}'),
            special("link.png", tarfile.SYMTYPE, "000.png"),
            *pair(2),
        ],
        number,
    )
    for name, number in FORMATS.items()
}


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    format_name=st.sampled_from(sorted(FORMATS)),
    flips=st.lists(st.tuples(st.integers(0, 12 * BLOCK), st.integers(1, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 14 * BLOCK)),
    is_signed=st.booleans(),
)
@example(format_name="ustar", flips=[(124, 176), (135, 9)], cut=None, is_signed=True)
def test_damage_is_never_more_than_damage(
    format_name: str, flips: list[tuple[int, int]], cut: int | None, is_signed: bool
) -> None:
    data = bytearray(SOUND[format_name])
    for place, mask in flips:
        data[place] ^= mask
        block = place // BLOCK * BLOCK
        if is_signed:  # with a right checksum the damage is believed
            data[block + 148 : block + 156] = b" " * 8
            data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + BLOCK])
    content = bytes(data[:cut])
    tar_module.read_members(Watched(content), len(content))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), {"s.tar": content}) / "s.tar"
        try:
            found = records(path)
        except InputError as error:
            assert "nothing usable" in str(error)  # noqa: PT017 - either outcome will do
            return
        assert len({r.key for r in found}) == len(found) > 0
        for record in found:
            image = outcome(record)
            assert isinstance(image, str) or image in content
            f"{record.key}{record.member}".encode()  # any file can hold the names

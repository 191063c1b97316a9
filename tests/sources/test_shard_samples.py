"""Which members of a shard are a sample, and what its captions are; truth is written by hand."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from artifacts.settings import InputError
from sources import images, shards
from sources import tar as tar_module
from sources.base import (
    FILE_TOO_LARGE,
    FORMAT_NOT_READ,
    MAX_FILE_BYTES,
    MISSING_FILE,
    PairSource,
    PartConfig,
)
from sources.image_files import HEAD_BYTES
from sources.shard_samples import OPEN_SAMPLE, Choice, find_samples
from tests.helpers import picture, read_all, write
from tests.sources.tars import (
    BLOCK,
    UID,
    Member,
    header,
    open_shards,
    outcome,
    pairs,
    records,
    records_in,
    records_of,
    tar,
    texts,
    warnings_in,
)

# --- What samples hold ----------------------------------------------------------------------------


CAPTIONS: dict[str, tuple[dict[str, bytes | str], list[str | None]]] = {
    "text": ({"txt": " A cat\n"}, ["A cat"]),
    "lines": ({"txt": "A cat\r\nsits\non a mat\n\n"}, ["A cat sits on a mat"]),
    "mark": ({"txt": b"\xef\xbb\xbfA cat"}, ["A cat"]),
    "utf-16": ({"txt": "A\ncat".encode("utf-16")}, ["A cat"]),
    "mark of utf-16 after that of utf-8": ({"txt": b"\xef\xbb\xbf\xff\xfeA"}, ["ÿþA"]),
    "windows": ({"txt": b"caf\xe9\nnoir"}, ["café noir"]),
    "empty": ({"txt": ""}, [""]),
    "json": ({"json": '{"url": "u", "caption": "A dog"}'}, ["A dog"]),
    "title": ({"json": '{"Title": "A dog", "text": "other"}'}, ["A dog"]),
    "list": ({"json": '{"captions": ["One", "Two", null]}'}, ["One", "Two", None]),
    "empty list": ({"json": '{"caption": []}'}, [None]),
    "null": ({"json": '{"caption": null}'}, [None]),
    "number": ({"json": '{"caption": 3}'}, [None]),
    "no field": ({"json": '{"url": "u"}'}, [None]),
    "no object": ({"json": '["A dog"]'}, [None]),
    "broken": ({"json": '{"caption": "A d'}, [None]),
    "deep": ({"json": "[" * 100_000}, [None]),
    "surrogate": ({"json": '{"caption": "\\ud800"}'}, ["\ud800"]),
    "text wins": ({"json": '{"caption": "A dog"}', "txt": "A cat"}, ["A cat"]),
    "text wins over broken": ({"txt": "A cat", "json": "{"}, ["A cat"]),
    "upper case": ({"TXT": "A cat"}, ["A cat"]),
    "dots": ({"b.txt": "not this", "txt": "A cat"}, ["A cat"]),
    "neither": ({"cls": "3"}, [None]),
    "text written as a list": ({"txt": '["One",\n "Two"]'}, ["One", "Two"]),
    "json written as a list": ({"json": "{\"caption\": \"['One', 'Two']\"}"}, ["One", "Two"]),
    "objects": ({"json": '{"sentences": [{"raw": "One"}, {"raw": "Two"}]}'}, ["One", "Two"]),
    "brackets": ({"txt": "[sic] a cat"}, ["[sic] a cat"]),
    "numbered fields": (
        {"json": '{"caption_10": "Ten", "caption_0": "One", "other": "x", "caption_2": "Two"}'},
        ["One", "Two", "Ten"],
    ),
    "numbered texts": ({"10.txt": "Ten", "0.txt": "One", "2.txt": "Two"}, ["One", "Two", "Ten"]),
    "numbered and plain": ({"1.txt": "One", "txt": "Plain"}, ["Plain", "One"]),
    "numbered extensions": ({"caption_1": "One", "caption_0": "Zero"}, ["Zero", "One"]),
    "numbered names": ({"caption.1.txt": "One", "caption.0.txt": "Zero"}, ["Zero", "One"]),
    "numbered texts before json": ({"0.txt": "A cat", "json": '{"caption": "A dog"}'}, ["A cat"]),
    "caption": ({"Caption": "A cat"}, ["A cat"]),
    "captions": ({"captions": '["One", "Two"]'}, ["One", "Two"]),
    "cap": ({"cap": "A cat"}, ["A cat"]),
    "json before other texts": ({"cap": "A cat", "json": '{"caption": "A dog"}'}, ["A dog"]),
    "texts before empty json": ({"cap": "A cat", "json": '{"url": "u"}'}, ["A cat"]),
    "text of another name": ({"outputs.txt": "A cat"}, ["A cat"]),
    "json of another name": ({"meta.json": '{"caption": "A dog"}'}, ["A dog"]),
    "json without captions": ({"meta.json": '{"url": "u"}'}, [None]),
}


@pytest.mark.parametrize(("members", "expected"), CAPTIONS.values(), ids=CAPTIONS)
def test_captions(
    tmp_path: Path, members: dict[str, bytes | str], expected: list[str | None]
) -> None:
    content: list[Member] = [("a.png", picture(1))]
    content += [(f"a.{extension}", text) for extension, text in members.items()]
    (found,) = records_of(tmp_path, *content)
    assert texts(found) == expected
    assert [c.position for c in found.captions] == list(range(len(expected)))
    assert outcome(found) == picture(1)


@pytest.mark.parametrize(
    ("uid", "expected"),
    [(UID, UID), (UID[1:], ""), (UID + "\n", ""), ("g" + UID[1:], ""), (int("1" * 32), "")],
)
def test_uid(tmp_path: Path, uid: object, expected: str) -> None:
    labels = json.dumps({"uid": uid, "caption": "json"})
    members: list[Member] = [("a.png", picture(1)), ("a.json", labels), ("a.txt", "text")]
    (found,) = records_of(tmp_path, *members)
    assert (found.uid, texts(found)) == (expected, ["text"])


def test_encodings_are_noticed_once_a_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members: list[Member] = []
    for i in range(20):
        members += [(f"{i:02d}.png", picture(i)), (f"{i:02d}.txt", f"été {i}".encode("cp1252"))]
    assert [texts(r) for r in records_of(tmp_path, *members)] == [[f"été {i}"] for i in range(20)]
    (warning,) = warnings_in(caplog)
    assert warning.startswith("s.tar: 20 lines are not UTF-8")


def test_texts_that_cannot_be_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members: list[Member] = []
    for i, (extension, text) in enumerate(
        [
            *(("txt", "x" * (2**20 + 1)), ("txt", "x" * 2**20)),
            *(("json", json.dumps({"caption": "x", "more": "x" * 2**22})), ("json", "{")),
        ]
    ):
        members += [(f"{i}.png", picture(i)), (f"{i}.{extension}", text)]
    found = records_of(tmp_path, *members, ("4.png", picture(4)), ("4.txt", "t"), ("4.json", "]"))
    assert [texts(r) for r in found] == [[None], ["x" * 2**20], [None], [None], ["t"]]
    (warning,) = warnings_in(caplog)
    assert "s.tar: 4 texts are damaged or too large to be captions, the first is 0.txt" in warning


def test_the_first_image_of_a_sample_is_used(tmp_path: Path) -> None:
    members: list[Member] = [("a.webp", picture(1)), ("a.txt", "t"), ("a.png", picture(2))]
    (found,) = records_of(tmp_path, *members)
    assert (found.member, outcome(found)) == ("a.webp", picture(1))


# --- Which members belong together ----------------------------------------------------------------


def members_of(names: str) -> list[Member]:
    """Members that tell their names: pictures by number, texts in words, JSON in a caption."""
    members: list[Member] = []
    for number, name in enumerate(names.split()):
        extension = name.lower().rpartition(".")[2]
        if extension in ("jpg", "png", "gif", "dat"):
            members.append((name, picture(number)))
        elif extension == "json":
            members.append((name, json.dumps({"caption": f"in {name}", "prompt": f"of {name}"})))
        else:
            members.append((name, f"in {name}"))
    return members


# Keys, with the image that is used or why there is none, and the captions after "in".
Expected = dict[str, tuple[str, list[str]]]
TOGETHER: dict[str, tuple[str, Expected]] = {
    "some keys have dots": (
        "0000.edit.jpg 0000.edit.txt 0001.jpg 0001.txt",
        {
            "0000.edit": ("0000.edit.jpg", ["0000.edit.txt"]),
            "0001": ("0001.jpg", ["0001.txt"]),
        },
    ),
    "one key, several samples": (
        "a.b.jpg a.b.txt a.c.jpg a.c.txt",
        {"a.b": ("a.b.jpg", ["a.b.txt"]), "a.c": ("a.c.jpg", ["a.c.txt"])},
    ),
    "not side by side in their key": (
        "a.b.jpg a.C.jpg a.b.txt a.C.txt",
        {"a.b": ("a.b.jpg", ["a.b.txt"]), "a.C": ("a.C.jpg", ["a.C.txt"])},
    ),
    "addresses": (
        "d/www.site.com_1.jpg d/www.site.com_1.txt d/www.site.com_2.jpg d/www.site.com_2.json",
        {
            "d/www.site.com_1": ("d/www.site.com_1.jpg", ["d/www.site.com_1.txt"]),
            "d/www.site.com_2": ("d/www.site.com_2.jpg", ["d/www.site.com_2.json"]),
        },
    ),
    "addresses and numbered texts": (
        "w.s_1.jpg w.s_1.0.txt w.s_1.1.txt w.s_2.jpg w.s_2.0.txt",
        {
            "w.s_1": ("w.s_1.jpg", ["w.s_1.0.txt", "w.s_1.1.txt"]),
            "w.s_2": ("w.s_2.jpg", ["w.s_2.0.txt"]),
        },
    ),
    "numbered samples": (
        "k.0.jpg k.0.txt k.1.jpg k.1.txt",
        {"k.0": ("k.0.jpg", ["k.0.txt"]), "k.1": ("k.1.jpg", ["k.1.txt"])},
    ),
    "one image and one text": (
        "k.input.jpg k.outputs.txt",
        {"k": ("k.input.jpg", ["k.outputs.txt"])},
    ),
    "one image and one text of each address": (
        "w.s_1.input.jpg w.s_1.outputs.txt w.s_2.input.jpg w.s_2.outputs.txt",
        {
            "w.s_1": ("w.s_1.input.jpg", ["w.s_1.outputs.txt"]),
            "w.s_2": ("w.s_2.input.jpg", ["w.s_2.outputs.txt"]),
        },
    ),
    "a text without a name of its own": (
        "k.input.jpg k.txt",
        {"k": ("k.input.jpg", ["k.txt"])},
    ),
    "one image and numbered texts": (
        "k.input.jpg k.out_1.txt k.out_0.txt",
        {"k": ("k.input.jpg", ["k.out_0.txt", "k.out_1.txt"])},
    ),
    "a mask": ("k.jpg k.seg.png k.txt", {"k": ("k.jpg", ["k.txt"])}),
    "a mask first": ("k.depth.png k.jpg k.txt", {"k": ("k.jpg", ["k.txt"])}),
    "the mask of an address": (
        "w.s_1.jpg w.s_1.seg.png w.s_1.txt",
        {"w.s_1": ("w.s_1.jpg", ["w.s_1.txt"])},
    ),
    "an image beside with its own text": (
        "k.jpg k.txt k.edit.jpg k.edit.txt",
        {"k": ("k.jpg", ["k.txt"]), "k.edit": ("k.edit.jpg", ["k.edit.txt"])},
    ),
    "two images": ("k.jpg k.png k.txt", {"k": ("k.jpg", ["k.txt"])}),
    "a rare image before a common one": ("k.gif k.jpg k.txt", {"k": ("k.jpg", ["k.txt"])}),
    "a text too many": ("k.jpg k.txt k.tags.txt", {"k": ("k.jpg", ["k.txt"])}),
    "images alone": (
        "w.s_1.jpg w.s_2.jpg",
        {"w.s_1": ("w.s_1.jpg", []), "w.s_2": ("w.s_2.jpg", [])},
    ),
    "texts alone": (
        "w.s_1.txt w.s_2.txt",
        {"w.s_1": (MISSING_FILE, ["w.s_1.txt"]), "w.s_2": (MISSING_FILE, ["w.s_2.txt"])},
    ),
    "numbered texts alone": (
        "k.0.txt k.1.txt",
        {"k": (MISSING_FILE, ["k.0.txt", "k.1.txt"])},
    ),
    "what is left of two": (
        "w.s_1.jpg w.s_2.txt",
        {"w.s_1": ("w.s_1.jpg", []), "w.s_2": (MISSING_FILE, ["w.s_2.txt"])},
    ),
    "what is left beside a whole one": (
        "a.b.jpg a.b.txt a.c.jpg a.d.txt",
        {
            "a.b": ("a.b.jpg", ["a.b.txt"]),
            "a.c": ("a.c.jpg", []),
            "a.d": (MISSING_FILE, ["a.d.txt"]),
        },
    ),
    "several images": (
        "k.input.jpg k.edited.jpg k.outputs.txt",
        {"k": (OPEN_SAMPLE, ["k.outputs.txt"])},
    ),
    "several texts": ("k.jpg k.short.txt k.long.txt", {"k": (OPEN_SAMPLE, [])}),
    "several JSON": ("k.jpg k.a.json k.b.json", {"k": (OPEN_SAMPLE, [])}),
    "more parts than are looked at": (
        f"k{'.x' * 40}.jpg k{'.x' * 40}.txt",
        {f"k{'.x' * 40}": (f"k{'.x' * 40}.jpg", [f"k{'.x' * 40}.txt"])},
    ),
}


def check(root: Path, names: str, expected: Expected, **flags: Any) -> PairSource:
    """Read members and compare what each sample holds; the source."""
    members = members_of(names)
    contents = dict(member for member in members if isinstance(member, tuple))
    source = open_shards(write(root, {"s.tar": tar(members)}), **flags)
    found = {r.key: (outcome(r), texts(r)) for r in records_in(source)}
    wanted = {}
    for key, (image, captions) in expected.items():
        words: list[str | None] = [f"in {name}" for name in captions]
        wanted[f"s/{key}"] = contents.get(image, image), words or [None]
    assert found == wanted
    return source


@pytest.mark.parametrize(("names", "expected"), TOGETHER.values(), ids=TOGETHER)
def test_members_that_belong_together(tmp_path: Path, names: str, expected: Expected) -> None:
    check(tmp_path, names, expected)


def test_what_is_open_names_the_flag_that_chooses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = "a.input.jpg a.edited.jpg a.outputs.txt b.jpg b.short.txt b.long.txt c.jpg c.txt"
    source = open_shards(write(tmp_path, {"s.tar": tar(members_of(names))}))
    details = {r.key: r.problem.detail for r in records_in(source) if r.problem is not None}
    assert details == {
        "s/a": "input.jpg, edited.jpg, outputs.txt; choose one with --image_column input.jpg",
        "s/b": "jpg, short.txt, long.txt; choose one with --caption_column short.txt",
    }
    assert warnings_in(caplog) == [
        f"s.tar: 2 samples hold {OPEN_SAMPLE}, the first is a: {details['s/a']}"
    ]
    skipped = read_all(open_shards(more_than_enough(tmp_path)))[0].skipped()
    reasons = skipped.set_index("key")["reason"].to_dict()
    assert reasons == {"s/a": OPEN_SAMPLE, "s/b": OPEN_SAMPLE}


def more_than_enough(root: Path) -> Path:
    """Shards with enough pairs for all splits beside those that are there."""
    return write(root, {"t.tar": tar(pairs(range(100, 130)))})


SEVERAL = "k.input.jpg k.edited.jpg k.short.txt k.long.txt k.json"
BOTH: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "image": ({"image_column": "edited.jpg"}, "k.edited.jpg", ["k.json"]),
    "with a dot": ({"image_column": ".Input.JPG"}, "k.input.jpg", ["k.json"]),
    "both": (
        {"image_column": "input.jpg", "caption_column": "long.txt"},
        *("k.input.jpg", ["k.long.txt"]),
    ),
    "json": (
        {"image_column": "input.jpg", "caption_column": "json"},
        *("k.input.jpg", ["k.json"]),
    ),
}


@pytest.mark.parametrize(("flags", "image", "captions"), BOTH.values(), ids=BOTH)
def test_flags_choose_members(
    tmp_path: Path, flags: dict[str, Any], image: str, captions: list[str]
) -> None:
    check(tmp_path, SEVERAL, {"k": (image, captions)}, **flags)


def test_flags_choose_in_addresses_too(tmp_path: Path) -> None:
    numbers = (1, 2)
    names = [f"w.s_{i}.{end}" for i in numbers for end in ("a.jpg", "b.jpg", "x.txt", "y.txt")]
    expected: Expected = {f"w.s_{i}": (f"w.s_{i}.b.jpg", [f"w.s_{i}.x.txt"]) for i in numbers}
    flags = {"image_column": "b.jpg", "caption_column": "x.txt"}
    check(tmp_path, " ".join(names), expected, **flags)


def test_a_flag_names_a_field_of_json(tmp_path: Path) -> None:
    members = members_of("a.jpg a.txt a.json b.jpg b.txt")
    source = open_shards(write(tmp_path, {"s.tar": tar(members)}), caption_column="prompt")
    assert {r.key: texts(r) for r in records_in(source)} == {"s/a": ["of a.json"], "s/b": [None]}
    assert "captions from json prompt 1" in source.notes
    assert "members ignored .txt 2" in source.notes


def test_a_flag_names_extensions_that_say_nothing(tmp_path: Path) -> None:
    members = members_of("a.rgb a.txt a.prompt a.jpg")
    root = write(tmp_path, {"s.tar": tar(members)})
    source = open_shards(root, image_column="rgb", caption_column="prompt")
    (found,) = records_in(source)
    assert (outcome(found), texts(found)) == (b"in a.rgb", ["in a.prompt"])


def test_a_flag_that_names_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags: dict[str, Any] = {"image_column": "pixels", "caption_column": "words"}
    write(tmp_path, {"s.tar": tar(members_of("a.jpg a.txt"))})
    with pytest.raises(InputError, match=r"^--image_column pixels: .*; correct it; members seen:"):
        open_shards(tmp_path, **flags)
    caplog.clear()
    config = PartConfig(dataset="webdataset", data_dir=str(tmp_path), **flags)
    source = shards.open_shards(config, np.random.default_rng(0))  # flags about another data set
    assert [texts(record) for record in records_in(source)] == [["in a.txt"]]
    expected = [
        f"--{flag}: no shard has such members or fields; not used; members seen: .jpg 1, .txt 1"
        for flag in ("image_column pixels", "caption_column words")
    ]
    assert [line for line in warnings_in(caplog) if "no shard has" in line] == expected
    assert list(source.notes[:2]) == expected


# --- Images by their bytes ------------------------------------------------------------------------


PICTURES = {
    **{f"{e}": "JPEG" for e in ("jpg", "JPEG", "jfif", "jpe")},
    **{"gif": "GIF", "BMP": "BMP", "tif": "TIFF", "tiff": "TIFF", "webp": "WEBP", "png": "PNG"},
    **{"avif": "AVIF", "jp2": "JPEG2000", "ppm": "PPM", "img": "JPEG", "image": "PNG"},
    **{"dat": "JPEG", "cls": "PNG", "bin": "GIF", "pyd": "WEBP", "unknown": "TIFF"},
}


def test_images_of_every_extension(tmp_path: Path) -> None:
    members: list[Member] = []
    for number, (extension, name) in enumerate(PICTURES.items()):
        members += [(f"{number:02d}.{extension}", picture(20 * number, name))]
        members += [(f"{number:02d}.txt", f"picture {number}")]
    members += [("99", picture(99)), ("99.txt", "picture 99")]
    found = records_of(tmp_path, *members)
    images = [member[1] for member in members[::2] if isinstance(member, tuple)]
    assert [outcome(r) for r in found] == images
    assert len({r.key for r in found}) == len(PICTURES) + 1
    reader, _ = read_all(open_shards(tmp_path / "s.tar"))
    assert reader.skipped().empty
    assert len(reader.pairs()) == len(PICTURES) + 1


def test_heic_is_skipped_with_the_decoders_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "HAS_HEIF", False)
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    members: list[Member] = [("a.heic", heic), ("a.txt", "a"), ("b.xyz", heic), ("b.txt", "b")]
    write(tmp_path, {"s.tar": tar([*pairs(range(30)), *members])})
    skipped = read_all(open_shards(tmp_path))[0].skipped()
    assert set(skipped["key"]) == {"s/a", "s/b"}
    assert set(skipped["reason"]) == {FORMAT_NOT_READ}
    assert skipped["detail"].str.contains("pillow-heif").all()


def test_heads_are_read_only_where_an_image_is_wanting() -> None:
    asked: list[str] = []

    def read_head(member: tar_module.Member) -> bytes:
        asked.append(member.name)
        return picture(1)[:HEAD_BYTES]

    names = "a.jpg a.npy a.seg.dat a.txt b.npy b.txt b.pkl c.d.png c.d.npy c.e.npy c.e.txt f.cls"
    data = tar([(name, "x") for name in names.split()])
    members, _, _ = tar_module.read_members(io.BytesIO(data), len(data))
    content = find_samples(members, Choice(), "s.tar", read_head)
    assert asked == ["b.npy", "b.pkl", "c.e.npy", "f.cls"]
    assert [s.image and s.image.name for s in content.samples] == [
        *("a.jpg", "b.npy", "c.d.png", "c.e.npy", "f.cls")
    ]


def test_an_image_by_its_bytes_may_be_too_large(tmp_path: Path) -> None:
    size = MAX_FILE_BYTES + 1
    head = picture(1)
    path = write(tmp_path, {"s.tar": header("a.dat", size) + head}) / "s.tar"
    os.truncate(path, BLOCK + -(-size // BLOCK) * BLOCK)  # a hole, which takes no room
    with path.open("ab") as file:
        file.write(tar([("a.txt", "a")]))
    assert [outcome(r) for r in records(path)] == [FILE_TOO_LARGE]


# --- Accounts -------------------------------------------------------------------------------------


def test_notes_count_every_member(tmp_path: Path) -> None:
    names = "a.jpg a.txt a.npy b.png b.0.txt b.1.txt c.jpg c.json d.cls d.npy e.jpg e.seg.png e.cap"
    source = open_shards(write(tmp_path, {"s.tar": tar(members_of(names))}))
    assert source.notes == (
        "members .jpg 3, .txt 3, .png 1, .json 1, .cap 1",
        "members ignored .npy 2, .cls 1, .seg.png 1",
        "captions from .txt 2, json caption 1, .cap 1",
        "1 keys with neither image nor text ignored",
    )
    assert source.unread == ()


def test_kinds_beyond_counting_are_one(tmp_path: Path) -> None:
    names = " ".join(["a.jpg a.txt", *(f"a.x{i}" for i in range(20))])
    source = open_shards(write(tmp_path, {"s.tar": tar(members_of(names))}))
    ignored = ", ".join(f".x{i} 1" for i in range(8))
    assert source.notes[1] == f"members ignored {ignored}, 12 other kinds"


PARTS = st.sampled_from(["k", "a", "1", "2", "input", "s_1", "jpg", "txt"])
ENDINGS = st.sampled_from(["jpg", "png", "txt", "0.txt", "cap", "json", "npy", "dat", "JPG"])
STEMS = st.lists(PARTS, min_size=1, max_size=3).map(".".join)
NAMES = st.lists(st.builds("{}.{}".format, STEMS, ENDINGS), max_size=14)


@hypothesis_settings(deadline=None, max_examples=300)
@given(names=NAMES, flags=st.sampled_from([("", ""), ("input.jpg", ""), ("", "0.txt")]))
def test_no_member_is_lost(names: list[str], flags: tuple[str, str]) -> None:
    data = tar(members_of(" ".join(names)))
    members, n_whole, damage = tar_module.read_members(
        io.BytesIO(data), len(data), Choice(*flags).kind
    )
    assert (n_whole, damage) == (len(names), "")

    def read_head(member: tar_module.Member) -> bytes:
        return data[member.offset : member.offset + HEAD_BYTES]

    content = find_samples(members, Choice(*flags), "s.tar", read_head)
    assert content.taken.total() + content.ignored.total() == len(names)
    used = [s.image.offset for s in content.samples if s.image is not None]
    assert len(set(used)) == len(used)
    firsts = [s.key for s in content.samples if not s.is_repeat]
    assert len(set(firsts)) == len(firsts)
    assert all(s.captions and s.key in "".join(names) for s in content.samples)
    assert content.samples or content.n_bare_keys or not names
    if not any(flags):  # an image is a sample's, beside one that is, or of a sample that is open
        kept = {s.key for s in content.samples}
        for member in members:
            if tar_module.member_kind(member.extension) == tar_module.IMAGE:
                stem = member.name.rpartition(".")[0]
                assert any(stem == key or stem.startswith(f"{key}.") for key in kept), member.name

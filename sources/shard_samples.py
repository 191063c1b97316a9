"""Samples of a shard: which of its members belong together, and what each of them is.

The members of a WebDataset sample stand side by side and share a key: the path up to the first dot
of the file name. Where names have more dots, samples of one key are told apart by what stands
before the last one: `www.site.com_1.jpg` and `www.site.com_1.txt` are a sample, and so are
`www.site.com_2.jpg` and its text. A text belongs to the image whose name it goes on with, as
`key.0.txt` and `key.1.txt` do with `key.jpg`; one image and one text of a key belong together
whatever they are called. Where that leaves it open which is meant, nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from sources.base import DataConfig, datacomp_uid
from sources.captions import captions_in
from sources.columns import SPLIT_COLUMNS, caption_columns, first_known
from sources.image_files import looks_like_image
from sources.paths import decode_text, natural_order, split_from_path
from sources.splits import official_split
from sources.tar import (
    IMAGE,
    TABLE,
    TEXT,
    TEXT_EXTENSIONS,
    Member,
    member_kind,
    size_problem,
    unnumbered,
)

OPEN_SAMPLE = "several images or texts"
COMMON_IMAGES = ("jpg", "jpeg", "png", "webp")  # taken before other images of the same name
MAX_PARTS = 16  # of a name between its dots that are looked at
N_SHOWN_NAMES = 6
_DEFAULTS = DataConfig()


@dataclass(frozen=True)
class Choice:
    """What flags choose among the members of a sample; "" leaves it to the rules.

    Attributes:
        image: extension of the images; it may have several parts, as `input.jpg`.
        caption: extension of the texts, or name of a field of JSON.
    """

    image: str = ""
    caption: str = ""

    @classmethod
    def of(cls, config: DataConfig) -> Choice:
        """What the flags say where they do not have their defaults."""
        given = {
            name: getattr(config, f"{name}_column").removeprefix(".")
            for name in ("image", "caption")
            if getattr(config, f"{name}_column") != getattr(_DEFAULTS, f"{name}_column")
        }
        return cls(**given)

    def kind(self, extension: str) -> str:
        """The kind of a member, by its extension; see `tar.member_kind`."""
        known = member_kind(extension)
        if self.image and self._names(self.image, extension):
            return IMAGE
        if self.caption and known != TABLE and self._names(self.caption, unnumbered(extension)):
            return TEXT
        is_other = (known == IMAGE and self.image) or (known == TEXT and self.caption)
        return "" if is_other else known

    def stem(self, member: Member) -> str:
        """A member's name up to the extension: its last part, or what a flag names."""
        if not member.extension:
            return member.key
        names = (n for n in (self.image, self.caption) if n and self._names(n, member.extension))
        n_parts = 1 + next(names, "").count(".")
        return member.name.removeprefix("./").rsplit(".", n_parts)[0]

    def fields(self, labels: Mapping[str, object], member: Member) -> _Fields:
        """The fields of a JSON member that are read."""
        is_named = bool(self.caption) and self._names(self.caption, member.extension)
        return _fields(tuple(labels), "" if is_named else self.caption)

    @staticmethod
    def _names(flag: str, extension: str) -> bool:
        flag = flag.lower()
        return extension == flag or extension.endswith(f".{flag}")


class _Fields(NamedTuple):
    """Names of the fields of a JSON member; None where there is none."""

    captions: tuple[str, ...]
    uid: str | None
    split: str | None


@lru_cache(maxsize=64)  # the fields of a shard are nearly always the same
def _fields(names: tuple[str, ...], caption: str) -> _Fields:
    captions = (caption,) if caption in names else ()
    return _Fields(
        captions if caption else caption_columns(names, _DEFAULTS),
        first_known(("uid",), names),
        first_known(SPLIT_COLUMNS, names),
    )


class Sample(NamedTuple):
    """An image and its captions.

    Attributes:
        key: in its shard.
        image: None where there is none.
        captions: at least one; None where it is missing or unreadable.
        uid: 32 hex digits or "".
        split: that JSON names; "" where its field names none, None where there is no such field.
        problem: why the image must not be used, reason and detail, or None.
        unread: names of texts that are damaged or too large.
        is_repeat: whether the key was in the shard before.
    """

    key: str
    image: Member | None
    captions: tuple[str | None, ...]
    uid: str
    split: str | None
    problem: tuple[str, str] | None
    unread: tuple[str, ...]
    is_repeat: bool = False


@dataclass
class ShardContent:
    """What a shard holds.

    Attributes:
        samples: in the shard's order.
        taken: number of members of every extension that is used, with its dot.
        ignored: the same of those that are not.
        captions: number of samples whose captions are from each extension or field of JSON.
        n_bare_keys: number of keys with neither image nor text.
    """

    samples: list[Sample] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    n_bare_keys: int = 0


def find_samples(
    members: Sequence[Member], choice: Choice, shard: str, read_head: Callable[[Member], bytes]
) -> ShardContent:
    """The samples of a shard; every member is part of one, or counted as ignored.

    Args:
        members: with the content of texts.
        choice: what flags choose.
        shard: what notices call it.
        read_head: the first bytes of a member, of which only those are asked for that may be the
            image of a sample that has none by its name.
    """
    texts = _texts(members, shard)
    content = ShardContent()
    seen: set[str] = set()
    for group in _groups(members):
        group = group if choice.image else _with_heads(group, choice, read_head)
        parts = _parts(group, choice)
        used: set[int] = set()
        for part in parts:
            found = _sample(part, texts, choice)
            sample = found.sample
            content.samples.append(
                sample._replace(is_repeat=True) if sample.key in seen else sample
            )
            seen.add(sample.key)
            used.update(member.offset for member in found.members)
            content.taken.update(_kind_shown(member, sample.key) for member in found.members)
            content.captions.update([found.origin] if found.origin else [])
        content.ignored.update(
            _kind_shown(member, member.key) for member in group if member.offset not in used
        )
        content.n_bare_keys += not parts
    return content


def _texts(members: Iterable[Member], shard: str) -> dict[int, str]:
    """What every text member that was read says, in one line, by its offset.

    All but those in UTF-16 are decoded at once, so that one notice counts those that are no UTF-8.
    """
    texts, contents = {}, {}
    for member in members:
        if member.kind == TEXT and member.content is not None:
            if member.content.startswith((b"\xff\xfe", b"\xfe\xff")):
                texts[member.offset] = decode_text(member.content, member.name)
            else:
                lines = member.content.removeprefix(b"\xef\xbb\xbf").splitlines()
                contents[member.offset] = b" ".join(lines)
    # The empty line in front keeps the first text from being taken for a mark of UTF-16.
    decoded = decode_text(b"\n".join([b"", *contents.values()]), shard).split("\n")[1:]
    texts |= dict(zip(contents, decoded, strict=True))
    return {offset: " ".join(text.strip().splitlines()) for offset, text in texts.items()}


# --- Which members belong together ----------------------------------------------------------------


class _Part(NamedTuple):
    """The members that one sample is made of.

    Attributes:
        key: of the sample.
        images: of which the sample has one; those of several names leave it open.
        texts: that may hold its captions.
        tables: its members of JSON.
    """

    key: str
    images: list[Member]
    texts: list[Member]
    tables: list[Member]


def _groups(members: Iterable[Member]) -> Iterator[list[Member]]:
    """Members side by side that share a key, no extension that is used twice among them."""
    group: list[Member] = []
    extensions: set[str] = set()
    for member in members:
        again = member.kind and member.extension in extensions
        if group and (again or member.key != group[0].key):
            yield group
            group, extensions = [], set()
        group.append(member)
        extensions.add(member.extension)
    if group:
        yield group


def _with_heads(
    group: list[Member], choice: Choice, read_head: Callable[[Member], bytes]
) -> list[Member]:
    """Members of a key; those of no kind are images if they begin so, where names tell of none."""
    if all(m.kind for m in group) or any(m.kind == IMAGE and "." not in m.extension for m in group):
        return group
    named = {choice.stem(m) for m in group if m.kind == IMAGE}

    def is_image(member: Member) -> bool:
        may_be = not member.kind and member.problem is None
        may_be = may_be and _owner(choice.stem(member), named) is None
        return may_be and looks_like_image(read_head(member))

    return [
        m._replace(kind=IMAGE, problem=size_problem(m.size)) if is_image(m) else m for m in group
    ]


def _owner(stem: str, owners: Container[str]) -> str | None:
    """The longest of some names that a name goes on with after a dot, or is; None without one."""
    for _ in range(MAX_PARTS):
        if stem in owners:
            return stem
        stem = stem.rpartition(".")[0]
    return None


def _parts(group: Sequence[Member], choice: Choice) -> list[_Part]:
    """The samples among members that share a key, each with the members that are its own."""
    key = group[0].key
    used = [member for member in group if member.kind]
    if not used:
        return []
    if not any("." in member.extension for member in used):
        return [_part(key, used)]
    stems: dict[str, list[Member]] = {}
    for member in used:
        stems.setdefault(choice.stem(member), []).append(member)
    with_image = {choice.stem(member) for member in used if member.kind == IMAGE}
    families: dict[str, _Family] = {}
    for stem, own in stems.items():
        owner = _owner(stem, with_image)
        name = stem if owner is None else owner
        family = families.setdefault(key if name == key else name.rpartition(".")[0], _Family())
        (family.others if owner is None else family.images).setdefault(name, []).extend(own)
    return [
        _part(stem, own)
        for name, family in families.items()
        for stem, own in _family_parts(name, family, with_image, choice).items()
    ]


class _Family:
    """Members whose names differ in their last part alone, by what stands before the extension.

    Attributes:
        images: with the texts that go on with their names.
        others: texts and JSON that go on with the name of no image.
    """

    def __init__(self) -> None:
        self.images: dict[str, list[Member]] = {}
        self.others: dict[str, list[Member]] = {}


def _family_parts(
    name: str, family: _Family, with_image: Container[str], choice: Choice
) -> dict[str, list[Member]]:
    """The members of each sample of a family, by its key."""
    images = {
        stem: own
        for stem, own in family.images.items()
        if _owner(stem.rpartition(".")[0], with_image) is None or _has_text(own, choice)
    }  # what is left out is a mask or the like of another image
    texts = {stem: own for stem, own in family.others.items() if _has_text(own, choice)}
    if not images or not texts:
        return images or _joined(texts)
    is_open = not any(_has_text(own, choice) for own in images.values())
    if is_open and _are_numbered_alike(images, texts, name):
        return {name: [*chain.from_iterable((*images.values(), *family.others.values()))]}
    return images | texts


def _part(key: str, members: Iterable[Member]) -> _Part:
    part = _Part(key, [], [], [])
    lists = {IMAGE: part.images, TEXT: part.texts, TABLE: part.tables}
    for member in members:
        lists[member.kind].append(member)
    return part


def _has_text(members: Iterable[Member], choice: Choice) -> bool:
    return any(
        member.kind == TEXT or (member.kind == TABLE and _has_captions(member, choice))
        for member in members
    )


def _has_captions(table: Member, choice: Choice) -> bool:
    return bool(choice.fields(_labels(table) or {}, table).captions)


def _are_numbered_alike(images: Iterable[str], texts: Iterable[str], name: str) -> bool:
    """Whether images and texts may be one sample: `site_1` and `site_2` are what is left of two."""
    in_images, in_texts = (
        {number for stem in stems for number in _digits(stem[len(name) :])}
        for stems in (images, texts)
    )
    return not in_images or not in_texts or bool(in_images & in_texts)


def _digits(text: str) -> list[str]:
    return re.findall("[0-9]+", text)


def _joined(texts: Mapping[str, list[Member]]) -> dict[str, list[Member]]:
    """Texts without an image, those that differ in a number alone as one sample."""
    joined: dict[str, list[Member]] = {}
    for stem, own in texts.items():
        shorter, _, last = stem.rpartition(".")
        joined.setdefault(shorter if last.isdecimal() and shorter else stem, []).extend(own)
    return joined


# --- What they are --------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A sample, the members that it is made of, and where its captions are from."""

    sample: Sample
    members: list[Member]
    origin: str


class _Captions(NamedTuple):
    """Where the captions of a sample are: in texts, or in fields of JSON.

    Attributes:
        texts: in order.
        table: the JSON that is read of the sample, perhaps without captions.
        labels: what it holds; None where it is missing or damaged.
        fields: that hold the captions.
        open: names of texts of which any may be meant.
    """

    texts: list[Member]
    table: Member | None
    labels: Mapping[str, object] | None
    fields: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


def _sample(part: _Part, texts: Mapping[int, str], choice: Choice) -> _Found:
    """The sample that some members are, and which of them are used."""
    image, open_images = _choose_image(part, choice)
    chosen = _choose_captions(part, choice)
    images = [] if image is None else [image]
    tables = [] if chosen.table is None else [chosen.table]
    labels = chosen.labels or {}
    values = [
        *(texts.get(member.offset) for member in chosen.texts),
        *(labels[name] for name in chosen.fields),
    ]
    names = _fields(tuple(labels), "")
    problems = [member.problem for member in [*images, *(chosen.texts or tables)]]
    unread = [m for m in chosen.texts if m.offset not in texts]
    unread += tables if chosen.labels is None else []
    sample = Sample(
        part.key,
        image,
        tuple(caption for value in values for caption in captions_in(value)) or (None,),
        datacomp_uid(labels[names.uid]) if names.uid else "",
        _split(labels[names.split]) if names.split else None,
        _openness(part, open_images, chosen.open) or next(filter(None, problems), None),
        tuple(member.name for member in unread if member.problem is None),
    )
    if open_images or chosen.open:
        return _Found(sample, [], "")
    origin = f"json {' and '.join(chosen.fields)}" if chosen.fields else ""
    origin = _kind_shown(chosen.texts[0], part.key) if chosen.texts else origin
    return _Found(sample, [*images, *chosen.texts, *tables], origin)


def _choose_image(part: _Part, choice: Choice) -> tuple[Member | None, tuple[str, ...]]:
    """The image of a sample, or those of which any may be meant: one that has its key goes first.

    Of several with one name a common one is taken before a rare one, else the first.
    """
    images = part.images
    if len(images) > 1:
        stems = [choice.stem(member) for member in images]
        if part.key in stems:
            images = [m for m, stem in zip(images, stems, strict=True) if stem == part.key]
        elif len(set(stems)) > 1:
            return None, tuple(_shown(member, part.key) for member in images)
    common = (m for m in images if m.extension.rpartition(".")[2] in COMMON_IMAGES)
    return next(common, images[0] if images else None), ()


def _choose_captions(part: _Part, choice: Choice) -> _Captions:
    """Where the captions are: `txt`, else JSON, else other texts, those of the sample's key first.

    JSON goes before `text`, `caption` and `cap` because it always did.
    """
    table = next((t for t in part.tables if _shown(t, part.key) == "json"), None)
    labels = None if table is None else _labels(table)
    texts: dict[str, list[Member]] = {}
    for member in part.texts:
        texts.setdefault(unnumbered(_shown(member, part.key)), []).append(member)
    if "txt" in texts:
        return _Captions(_in_order(texts["txt"], part.key), table, labels)
    if table is not None and labels and (fields := choice.fields(labels, table).captions):
        return _Captions([], table, labels, fields)
    plain = next((name for name in TEXT_EXTENSIONS if name in texts), None)
    if plain is not None or len(texts) == 1:
        return _Captions(_in_order(texts[plain or next(iter(texts))], part.key), table, labels)
    if texts:
        return _Captions([], table, labels, open=tuple(texts))
    others = [t for t in part.tables if t is not table and _has_captions(t, choice)]
    if len(others) == 1:
        labels = _labels(others[0]) or {}
        return _Captions([], others[0], labels, choice.fields(labels, others[0]).captions)
    return _Captions([], table, labels, open=tuple(_shown(t, part.key) for t in others))


def _in_order(texts: list[Member], key: str) -> list[Member]:
    """Texts of a sample that differ in their numbers: the one without, then in natural order."""

    def place(member: Member) -> tuple[bool, object]:
        name = _shown(member, key)
        return name != unnumbered(name), natural_order(name)

    return texts if len(texts) == 1 else sorted(texts, key=place)


def _openness(part: _Part, images: Sequence[str], texts: Sequence[str]) -> tuple[str, str] | None:
    """Why it is open what a sample is, and the flags that choose; None where it is not."""
    if not images and not texts:
        return None
    flags = [f"--image_column {images[0]}"] if images else []
    flags += [f"--caption_column {texts[0]}"] if texts else []
    names = [_shown(m, part.key) for m in (*part.images, *part.texts, *part.tables)]
    more = f" and {len(names) - N_SHOWN_NAMES:,} more" if len(names) > N_SHOWN_NAMES else ""
    shown = ", ".join(names[:N_SHOWN_NAMES])
    return OPEN_SAMPLE, f"{shown}{more}; choose one with {' '.join(flags)}"


def _shown(member: Member, key: str) -> str:
    """What of a member's name is not its sample's key: its extension, in lower case."""
    if len(key) == len(member.key):
        return member.extension
    return member.name.removeprefix("./")[len(key) + 1 :].lower()


def _kind_shown(member: Member, key: str) -> str:
    """The extension of a member as notes count it, without the number of a text."""
    extension = _shown(member, key)
    extension = unnumbered(extension) if member.kind == TEXT else extension
    return f".{extension}" if extension else "no extension"


def _labels(member: Member) -> dict[str, object] | None:
    """The fields of a JSON member; None where it holds no object."""
    if member.content is None:
        return None
    try:
        fields = json.loads(member.content)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _split(value: object) -> str:
    """The split that a field names, or ""."""
    if not isinstance(value, str):
        return ""
    return official_split(value) or split_from_path(value) or ""

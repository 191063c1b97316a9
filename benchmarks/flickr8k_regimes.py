"""Ways in which a training set can be good or bad, made from Flickr8k: seven and further ones.

Training and validation pairs come from the `train` images, one caption an image, and share none;
test are the 1,000 `validation` images with all their captions. A seed decides which pairs are
drawn, which of them are faulty and how. Validation pairs are right, or as faulty as the training
pairs, and all there are, a few of them, or those about one thing alone.

`TARGETS` are the things with the most images that most of their captions name, people apart: dog
(1,491 of the 6,000 training and validation images, 235 of the 1,000 test images), water (371, 67)
and ball (267, 45).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageEnhance
from alt_texts import ALT_TEXT_RULES, SAYING_NOTHING, keywords_of
from tqdm import tqdm

from clustering import ClusteringConfig, cluster_embeddings
from encoders.base import Encoder
from encoders.joint_map import JointMap, embed_across_folds
from sources.captions import caption_groups, normalize_caption
from sources.images import decode_image

N_TRAINING, N_VALIDATION = 5000, 1000
N_COPIED_IMAGES = 1000  # the pool of which a seed copies half
COPIES_AN_IMAGE = 5
SEED_OF_COPIES = 7
TOPICS, TOPIC_SHARE = 40, 1 / 3
RARE_SHARE = 0.1  # of the captions about women and girls that are left in training
WRONG, COPY, BOILERPLATE = "wrong caption", "near copy", "boilerplate caption"
HARD, SAYS_NOTHING = "caption of a near image", "alt text that says nothing"
TARGETS = ("dog", "water", "ball")
LARGEST_WRONG_SHARE = 60  # percent, of `wrong_N`
BOILERPLATES = (
    "click on the picture to enlarge",
    "image may contain one or more people",
    "no description available",
    "photo uploaded from my phone",
    "stock photo, all rights reserved",
    "thanks for watching, please subscribe",
    "see more at our website",
    "this image is for illustration only",
    "best price, free shipping on all orders",
    "untitled photograph from my album",
)


class AltTexts(NamedTuple):
    """Features of captions as web pages have them (`benchmarks/alt_texts.py` writes the words)."""

    keywords: np.ndarray  # (7000, 5, d_t) of the keywords of each caption
    saying_nothing: np.ndarray  # (k, d_t) of `SAYING_NOTHING`


class Pool(NamedTuple):
    """Everything that the regimes are drawn from, embedded once."""

    images: np.ndarray  # (7000, d_i) features, by name
    texts: np.ndarray  # (7000, 5, d_t) features of the captions of each image
    captions: np.ndarray  # (7000, 5)
    is_train: np.ndarray  # (7000,) bool
    copied: np.ndarray  # (1000,) rows of the images that there are copies of
    copies: np.ndarray  # (1000, 5, d_i) features of slightly cropped and recoloured copies
    boilerplates: np.ndarray  # (10, d_t) features
    alt_texts: AltTexts | None = None  # in a file of their own: older pools stay valid


class HeldOut(NamedTuple):
    """How the held-out pairs of a regime are drawn."""

    noisy: bool = False  # with the faults of the training pairs, in the same share
    size: int = N_VALIDATION
    target: str = ""  # a word: only images that most of their captions say it of; "" is all

    @property
    def name(self) -> str:
        """What tables and rows call it: `clean`, `noisy-100`, `clean-dog`."""
        parts = ["noisy" if self.noisy else "clean"]
        parts += [self.target] if self.target else []
        return "-".join([*parts, *([] if self.size == N_VALIDATION else [str(self.size)])])


class Regime(NamedTuple):
    """One training set with its validation and test sets."""

    name: str
    image_features: np.ndarray  # (n, d_i)
    text_features: np.ndarray  # (n, d_t)
    captions: list[str]
    faults: np.ndarray  # (n,) str, "" where there is none
    image_embeddings: np.ndarray  # (n, d)
    text_embeddings: np.ndarray  # (n, d)
    joint_map: JointMap
    validation_image_features: np.ndarray
    validation_text_features: np.ndarray
    validation_faults: np.ndarray  # (m,) str
    image_rows: np.ndarray = np.empty(0, np.int64)  # (n,) of the pool's images; -1: a near copy
    validation_captions: Sequence[str] = ()

    @property
    def clip_scores(self) -> np.ndarray:
        """(n,) cosine of a pair's two embeddings."""
        return np.asarray((self.image_embeddings * self.text_embeddings).sum(axis=1))


def load_pool(data_dir: Path, file: Path, encoder: Callable[[], Encoder]) -> Pool:
    """The pool, embedded at most once."""
    if file.exists():
        with np.load(file) as saved:
            pool = Pool(*(saved[name] for name in Pool._fields if name in saved.files))
    else:
        pool = _embedded_pool(data_dir, file, encoder())
    return pool._replace(alt_texts=_load_alt_texts(pool, file, encoder))


def _load_alt_texts(pool: Pool, pool_file: Path, encoder: Callable[[], Encoder]) -> AltTexts:
    """The alt texts of the pool's captions, embedded at most once, in a file beside the pool."""
    file = pool_file.with_name(f"{pool_file.stem}_alt_texts_{ALT_TEXT_RULES}.npz")
    if file.exists():
        with np.load(file) as saved:
            return AltTexts(*(saved[name] for name in AltTexts._fields))
    used = encoder()
    words = [keywords_of(caption) for caption in pool.captions.reshape(-1).tolist()]
    keywords = used.encode_texts(words).features
    alt_texts = AltTexts(
        keywords.reshape(*pool.captions.shape, -1), used.encode_texts(SAYING_NOTHING).features
    )
    np.savez(file, **alt_texts._asdict())
    return alt_texts


def _embedded_pool(data_dir: Path, file: Path, used: Encoder) -> Pool:
    splits = pd.read_csv(data_dir / "splits.csv").sort_values("image")
    table = pd.read_csv(data_dir / "captions.txt")
    table["caption"] = [normalize_caption(c) for c in table["caption"]]
    by_image = table.groupby("image")["caption"].apply(list)
    captions = np.array([by_image[name] for name in splits["image"]])
    is_train = (splits["split"] == "train").to_numpy()
    rng = np.random.default_rng(SEED_OF_COPIES)
    copied = np.sort(rng.permutation(np.flatnonzero(is_train))[:N_COPIED_IMAGES])
    copied_rows = set(copied.tolist())
    images, copies = [], []
    for row, name in enumerate(tqdm(splits["image"], desc="images", unit="image", disable=None)):
        picture = decode_image((data_dir / "Images" / name).read_bytes(), 10**8)
        pictures = [picture]
        if row in copied_rows:
            pictures += [retouched(picture, rng) for _ in range(COPIES_AN_IMAGE)]
        features = used.encode_images(np.stack([used.preprocess(p) for p in pictures])).features
        images.append(features[0])
        if row in copied_rows:
            copies.append(features[1:])
    texts = used.encode_texts(captions.reshape(-1).tolist()).features
    pool = Pool(
        np.stack(images),
        texts.reshape(*captions.shape, -1),
        captions,
        is_train,
        copied,
        np.stack(copies),
        used.encode_texts(BOILERPLATES).features,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **{name: a for name, a in pool._asdict().items() if a is not None})
    return pool


def retouched(picture: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    """A near copy: up to a tenth cropped from each side, other brightness and contrast."""
    width, height = picture.size
    left, top, right, bottom = rng.uniform(0, 0.1, 4)
    cropped = picture.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )
    brighter = PIL.ImageEnhance.Brightness(cropped).enhance(rng.uniform(0.8, 1.2))
    return PIL.ImageEnhance.Contrast(brighter).enhance(rng.uniform(0.8, 1.2))


class _Draw:
    """The pairs of one seed, before and after something has been done to them."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool, self.rng = pool, np.random.default_rng(seed)
        rows = self.rng.permutation(np.flatnonzero(pool.is_train))
        chosen = self.rng.integers(pool.captions.shape[1], size=len(pool.images))
        self.chosen = chosen  # which caption of each image
        self.validation, self.rest = rows[:N_VALIDATION], rows[N_VALIDATION:]
        self.take(self.rest[:N_TRAINING])
        self.hit: JointTopics | None = None  # where faults are concentrated, if anywhere

    def take(self, rows: np.ndarray) -> None:
        """Train on these images, each with its chosen caption."""
        pool = self.pool
        self.image_rows = rows.copy()
        self.images = pool.images[rows].copy()
        self.texts = pool.texts[rows, self.chosen[rows]].copy()
        self.captions = pool.captions[rows, self.chosen[rows]].astype(object)
        self.faults = np.full(len(rows), "", dtype=object)

    def exchange_captions(self, candidates: np.ndarray, share: float) -> None:
        """A share of all pairs, all of them candidates, pass their captions round."""
        wrong = self.rng.permutation(candidates)[: round(share * len(self.images))]
        self.pass_round(wrong)

    def pass_round(self, wrong: np.ndarray) -> None:
        """Each of these pairs gets the caption of the one before it."""
        self.texts[wrong] = self.texts[np.roll(wrong, 1)]
        self.captions[wrong] = self.captions[np.roll(wrong, 1)]
        self.faults[wrong] = WRONG

    def exchange_with_nearest(self, candidates: np.ndarray, share: float) -> None:
        """Pairs exchange captions with the pair of the nearest image, each pair at most once.

        Candidates come in random order, each with the nearest candidate that has its own caption
        still, until a share of all pairs has another's.
        """
        n_exchanges = round(share * len(self.images) / 2)
        if n_exchanges == 0:
            return
        directions = self.images - self.images.mean(axis=0)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        free = np.zeros(len(self.images), dtype=bool)
        free[candidates] = True
        swapped: list[int] = []
        for row in self.rng.permutation(candidates).tolist():
            if len(swapped) == 2 * n_exchanges:
                break
            free_before, free[row] = free[row], False
            if not free_before or not free.any():
                continue
            likeness = np.where(free, directions @ directions[row], -np.inf)
            nearest = int(likeness.argmax())
            free[nearest] = False
            swapped += [row, nearest]
        givers = np.array(swapped, dtype=np.int64).reshape(-1, 2)[:, ::-1].reshape(-1)
        self.texts[swapped] = self.texts[givers]
        self.captions[swapped] = self.captions[givers]
        self.faults[swapped] = HARD

    def write_boilerplate(self, rows: np.ndarray) -> None:
        """Each of these pairs gets one of the boilerplate captions."""
        which = self.rng.integers(len(BOILERPLATES), size=len(rows))
        self.texts[rows] = self.pool.boilerplates[which]
        self.captions[rows] = np.array(BOILERPLATES, dtype=object)[which]
        self.faults[rows] = BOILERPLATE


class JointTopics(NamedTuple):
    """Topics of which some were hit: where faults are concentrated in other pairs, too."""

    joint_map: JointMap
    centers: np.ndarray  # (TOPICS, 2 d)
    hit: np.ndarray  # topics
    share: float  # of their pairs that are faulty

    def of(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Which of some pairs, by their features, lie in a topic that was hit."""
        embedded = np.concatenate(
            [self.joint_map.embed_images(images), self.joint_map.embed_texts(texts)], axis=1
        )
        distances = ((embedded[:, None] - self.centers) ** 2).sum(axis=2)
        return np.isin(distances.argmin(axis=1), self.hit)


def _wrong_captions(share: float) -> Callable[[_Draw], None]:
    return lambda draw: draw.exchange_captions(np.arange(len(draw.images)), share)


def _concentrated(draw: _Draw) -> None:
    images, texts, joint_map = embed_across_folds(
        draw.images, draw.texts, np.arange(N_TRAINING), rng=draw.rng
    )
    clusters = cluster_embeddings(
        np.concatenate([images, texts], axis=1),
        (images * texts).sum(axis=1),
        draw.captions.tolist(),
        ClusteringConfig(n_clusters=TOPICS),
        rng=draw.rng,
    )
    topics = clusters.cluster_assignments
    order = draw.rng.permutation(TOPICS)
    reached = np.cumsum(np.bincount(topics, minlength=TOPICS)[order])
    hit = order[: np.searchsorted(reached, TOPIC_SHARE * N_TRAINING) + 1]
    candidates = np.flatnonzero(np.isin(topics, hit))
    draw.exchange_captions(candidates, 0.2)
    share = 0.2 * N_TRAINING / len(candidates)
    draw.hit = JointTopics(joint_map, clusters.centers, hit, share)


def _near_copies(draw: _Draw) -> None:
    """Half of the set: five copies, each with another caption, of a tenth of it."""
    _take_copies(draw, N_TRAINING // 2)


def _take_copies(draw: _Draw, n_copies: int) -> None:
    """So many pairs, at the end, are copies of others: five, each with another caption, of each."""
    pool, rng = draw.pool, draw.rng
    free = np.flatnonzero(~np.isin(pool.copied, draw.validation))
    if len(free) < n_copies // COPIES_AN_IMAGE:
        raise SystemExit(
            "near_copies, mixture: with this seed the images that there are copies of are "
            "validation images, as the pool was drawn with the same one; take another"
        )
    sources = rng.permutation(free)[: n_copies // COPIES_AN_IMAGE]
    source_rows = pool.copied[sources]
    others = draw.rest[~np.isin(draw.rest, source_rows)]
    n_others = N_TRAINING - n_copies - len(source_rows)
    draw.take(np.concatenate([source_rows, others[:n_others]]))
    # The caption of the k-th copy is the k-th after the original's; the last has the original's.
    which = (draw.chosen[source_rows, None] + 1 + np.arange(COPIES_AN_IMAGE)) % 5
    draw.images = np.concatenate(
        [draw.images, pool.copies[sources].reshape(-1, pool.images.shape[1])]
    )
    draw.image_rows = np.pad(
        draw.image_rows, (0, sources.size * COPIES_AN_IMAGE), constant_values=-1
    )
    texts = pool.texts[source_rows[:, None], which]
    draw.texts = np.concatenate([draw.texts, texts.reshape(-1, texts.shape[-1])])
    captions = pool.captions[source_rows[:, None], which].reshape(-1)
    draw.captions = np.concatenate([draw.captions, captions])
    draw.faults = np.concatenate([draw.faults, np.full(captions.shape, COPY, dtype=object)])


def _boilerplate(draw: _Draw) -> None:
    n = len(draw.images)
    draw.write_boilerplate(draw.rng.permutation(n)[: n // 5])


def _hard_captions(draw: _Draw) -> None:
    draw.exchange_with_nearest(np.arange(len(draw.images)), 0.2)


def _alt_texts(draw: _Draw) -> None:
    """A fifth of the captions are alt texts.

    Half of these are the keywords of the caption that was there: right but terse, no fault. The
    others are file names, prices and prompts to click that say nothing of the image: faults.
    """
    assert draw.pool.alt_texts is not None, "the pool has its alt texts"
    n = len(draw.images)
    rows = draw.rng.permutation(n)[: n // 5]
    terse, empty = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    taken, alt_texts = draw.image_rows[terse], draw.pool.alt_texts
    draw.texts[terse] = alt_texts.keywords[taken, draw.chosen[taken]]
    words = [keywords_of(caption) for caption in draw.captions[terse]]
    draw.captions[terse] = np.array(words, dtype=object)
    which = draw.rng.integers(len(SAYING_NOTHING), size=len(empty))
    draw.texts[empty] = alt_texts.saying_nothing[which]
    draw.captions[empty] = np.array(SAYING_NOTHING, dtype=object)[which]
    draw.faults[empty] = SAYS_NOTHING


def _mixture(draw: _Draw) -> None:
    """A tenth near copies, and of the others' captions wrong, boilerplate and hard ones."""
    _take_copies(draw, N_TRAINING // 10)
    _mixed_captions(draw)


def _mixed_captions(draw: _Draw) -> None:
    """10 % of all pairs pass captions round, 10 % get boilerplate, 5 % those of near images."""
    n = len(draw.images)
    sound = draw.rng.permutation(np.flatnonzero(draw.faults == ""))
    n_each = round(0.1 * n)
    draw.pass_round(sound[:n_each])
    draw.write_boilerplate(sound[n_each : 2 * n_each])
    draw.exchange_with_nearest(sound[2 * n_each :], 0.05)


def _rare_group(draw: _Draw) -> None:
    """Captions about women and girls thinned to a tenth, others in their place."""
    captions = draw.pool.captions[draw.rest, draw.chosen[draw.rest]].tolist()
    female = caption_groups(captions)["gender"]["female"]
    n_left = round(RARE_SHARE * female[:N_TRAINING].sum())
    left = draw.rest[female][:n_left]
    others = draw.rest[~female]
    draw.take(np.concatenate([left, others])[:N_TRAINING])
    # Where the other images do not suffice, they come again with another caption.
    missing = N_TRAINING - len(draw.images)
    which = (draw.chosen[others] + 1) % draw.pool.captions.shape[1]
    captions = draw.pool.captions[others, which]
    usable = np.flatnonzero(~caption_groups(captions.tolist())["gender"]["female"])[:missing]
    again, which = others[usable], which[usable]
    draw.image_rows = np.concatenate([draw.image_rows, again])
    draw.images = np.concatenate([draw.images, draw.pool.images[again]])
    draw.texts = np.concatenate([draw.texts, draw.pool.texts[again, which]])
    draw.captions = np.concatenate([draw.captions, captions[usable]])
    draw.faults = np.full(len(draw.images), "", dtype=object)


REGIMES: dict[str, Callable[[_Draw], None]] = {
    "clean": lambda draw: None,
    "wrong_20": _wrong_captions(0.2),
    "wrong_40": _wrong_captions(0.4),
    "wrong_20_concentrated": _concentrated,
    "near_copies": _near_copies,
    "boilerplate_20": _boilerplate,
    "rare_group": _rare_group,
}
FURTHER: dict[str, Callable[[_Draw], None]] = {
    "hard_20": _hard_captions,
    "alt_text_20": _alt_texts,
    "mixture": _mixture,
}
# What held-out pairs are spoilt by where not by the regime itself: a copy is no held-out pair.
OF_HELD_OUT: dict[str, Callable[[_Draw], None]] = {"mixture": _mixed_captions}


def recipe_of(name: str) -> Callable[[_Draw], None]:
    """What is done to the pairs in the regime of this name; `wrong_N` for any N up to 60.

    Raises:
        ValueError: there is no such regime.
    """
    known = REGIMES | FURTHER
    if name in known:
        return known[name]
    share = re.fullmatch(r"wrong_(0|[1-9]\d?)", name)
    if share is None or int(share[1]) > LARGEST_WRONG_SHARE:
        raise ValueError(
            f"no regime {name}: one of {', '.join(known)}, or wrong_N with N from 0 to "
            f"{LARGEST_WRONG_SHARE}"
        )
    return _wrong_captions(int(share[1]) / 100)


def in_order(names: Iterable[str]) -> list[str]:
    """Regimes in the order of tables: the seven, the further ones, others by name and number."""
    known, present = [*REGIMES, *FURTHER], set(names)
    rest = sorted(present - set(known), key=lambda name: (len(name), name))
    return [name for name in known if name in present] + rest


def _spoil_held_out(name: str, training: _Draw, held_out: _Draw) -> None:
    """Put the faults of a regime's training pairs into held-out pairs, in the same share."""
    if training.hit is not None:
        hit = np.flatnonzero(training.hit.of(held_out.images, held_out.texts))
        wrong = hit[held_out.rng.random(len(hit)) < training.hit.share]
        held_out.pass_round(held_out.rng.permutation(wrong))
    elif name.startswith(("wrong_", "boilerplate_", "hard_", "alt_text_", "mixture")):
        OF_HELD_OUT.get(name, recipe_of(name))(held_out)


def about(captions: np.ndarray, word: str) -> np.ndarray:
    """Whether most captions of each image, (..., 5), name a thing, in the plural too."""
    named = [bool(re.search(rf"\b{re.escape(word)}s?\b", c)) for c in captions.reshape(-1)]
    return np.asarray(np.reshape(named, captions.shape).mean(axis=-1) > 0.5)


def make_regime(name: str, pool: Pool, seed: int, held_out: HeldOut = HeldOut()) -> Regime:  # noqa: B008
    """One regime as one seed draws it, embedded as stage 1 does.

    The training pairs are the same whatever the held-out pairs are.
    """
    draw = _Draw(pool, seed)
    recipe_of(name)(draw)
    assert len(draw.images) == N_TRAINING, "every regime is of one size"
    order = draw.rng.permutation(len(draw.images))  # faults in no particular place
    images, texts = draw.images[order], draw.texts[order]
    image_ids = np.unique(images, axis=0, return_inverse=True)[1].reshape(-1)
    image_embeddings, text_embeddings, joint_map = embed_across_folds(
        images, texts, image_ids, rng=draw.rng
    )
    rows = draw.validation
    if held_out.target:
        rows = rows[about(pool.captions[rows], held_out.target)]
    asked = copy.copy(draw)
    asked.rng = np.random.default_rng((seed, 1))
    asked.take(rows[: held_out.size])
    if held_out.noisy:
        _spoil_held_out(name, draw, asked)
    return Regime(
        name,
        images,
        texts,
        draw.captions[order].tolist(),
        draw.faults[order].astype(str),
        image_embeddings,
        text_embeddings,
        joint_map,
        asked.images,
        asked.texts,
        asked.faults.astype(str),
        draw.image_rows[order],
        asked.captions.tolist(),
    )

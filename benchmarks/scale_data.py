"""Embeddings of n pairs with topics, agreement and planted faults, made shard by shard.

They stand for what an encoder leaves of a crawl: image and text embeddings share a theme, a topic
and a content of their own, each side has noise whose strength differs from pair to pair, and the
two sides lie on cones of their own (the modality gap). Planted are wrong captions (text and
embedding of another pair), near copies of an image with a vaguer text, and boilerplate. Held-out
pairs are taken from the same rows, so that their captions are as often wrong. What was planted is
written beside the embeddings, where no program that is measured looks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int8, Int64
from tqdm import tqdm

GOOD, WRONG_CAPTION, NEAR_COPY, BOILERPLATE = range(4)  # what was planted of a pair
FAULTS = {WRONG_CAPTION: "wrong caption", NEAR_COPY: "near copy", BOILERPLATE: "boilerplate"}
SHARES = {WRONG_CAPTION: 0.10, NEAR_COPY: 0.02, BOILERPLATE: 0.02}
N_THEMES, N_TOPICS = 40, 1000
THEME, TOPIC, CONTENT = 0.4, 0.7, 0.6  # lengths of what both sides of a pair share
# Of what they do not: chosen so that CLIP score finds about 99.9 % of the wrong captions among the
# fifth of the pairs that it scores lowest, as it does on crawled photographs.
NOISE, NOISE_SPREAD = 1.25, 0.25
VAGUER = 1.6  # times the noise of a near copy's text
COPY_NOISE = 0.15  # of a near copy's image, beside the original of length one
GAP, GAP_COSINE = 1.0, 0.2  # length of each side's cone, and how near the two lie to each other
N_BOILERPLATES = 25
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u", "ai", "or", "en")]
WORDS_A_TOPIC, COMMON_WORDS = 24, 400
PEOPLE = ("woman", "man", "girl", "boy", "child", "people", "nobody")
ABOUT = "about.json"


@dataclass(frozen=True)
class Planting:
    """What is made.

    Attributes:
        n: pairs.
        width: of an embedding.
        shard_size: pairs of a shard.
        seed: everything follows from it.
    """

    n: int
    width: int = 512
    shard_size: int = 20_000
    seed: int = 0

    @property
    def n_shards(self) -> int:
        """Number of shards; the last may be shorter."""
        return -(-self.n // self.shard_size)


class World(NamedTuple):
    """What all shards share."""

    themes: Float32[np.ndarray, "h d"]
    topics: Float32[np.ndarray, "k d"]
    cones: Float32[np.ndarray, "2 d"]  # of images and of texts
    boilerplate: Float32[np.ndarray, "b d"]
    words: list[list[str]]  # of each topic, the most frequent first
    common: list[str]


class Shard(NamedTuple):
    """One shard's pairs."""

    images: Float32[np.ndarray, "m d"]
    texts: Float32[np.ndarray, "m d"]
    captions: list[str]
    faults: Int8[np.ndarray, " m"]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows at length one."""
    scaled: np.ndarray = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


def gaussian(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Rows of length about one, (n, width) float32."""
    rows: np.ndarray = rng.standard_normal((n, width), dtype=np.float32)
    return rows / np.float32(np.sqrt(width))


def make_world(planting: Planting) -> World:
    """Themes, topics and their words; the same for every shard."""
    rng, d = np.random.default_rng((planting.seed, 0)), planting.width
    first, second = unit(rng.standard_normal((2, d)))
    second = unit(second - (second @ first) * first)
    second = GAP_COSINE * first + np.sqrt(1 - GAP_COSINE**2) * second
    n_words = COMMON_WORDS + N_TOPICS * WORDS_A_TOPIC
    made = list(dict.fromkeys("".join(w) for w in rng.choice(SYLLABLES, (2 * n_words, 3))))
    common, rest = made[:COMMON_WORDS], made[COMMON_WORDS:]
    words = [rest[i * WORDS_A_TOPIC : (i + 1) * WORDS_A_TOPIC] for i in range(N_TOPICS)]
    return World(
        gaussian(rng, N_THEMES, d),
        gaussian(rng, N_TOPICS, d),
        np.stack([first, second]).astype(np.float32),
        gaussian(rng, N_BOILERPLATES, d),
        words,
        common,
    )


def make_shard(planting: Planting, world: World, number: int) -> Shard:
    """The pairs of one shard, which depend on nothing but the planting and its number."""
    rng, d = np.random.default_rng((planting.seed, 1, number)), planting.width
    m = min(planting.shard_size, planting.n - number * planting.shard_size)
    faults = rng.choice(
        np.array([GOOD, *FAULTS], np.int8), m, p=[1 - sum(SHARES.values()), *SHARES.values()]
    )
    topics = rng.integers(N_TOPICS, size=m)
    captions = make_captions(topics, world, rng)
    shared = np.float32(THEME) * world.themes[topics % N_THEMES]
    shared += np.float32(TOPIC) * world.topics[topics]
    shared += np.float32(CONTENT) * gaussian(rng, m, d)
    sources = np.arange(m)  # the row that each row's text is about
    wrong = np.flatnonzero(faults == WRONG_CAPTION)
    sources[wrong] = np.roll(wrong, 1)
    copies, originals = np.flatnonzero(faults == NEAR_COPY), np.flatnonzero(faults == GOOD)
    originals = rng.choice(originals, len(copies)) if len(originals) else copies
    sources[copies] = originals  # in other words, which are vaguer

    noise = np.float32(NOISE) * np.exp(np.float32(NOISE_SPREAD) * rng.standard_normal((2, m, 1)))
    noise[1, copies] *= VAGUER
    images = unit(shared + noise[0].astype(np.float32) * gaussian(rng, m, d))
    images[copies] = unit(
        images[originals] + np.float32(COPY_NOISE) * gaussian(rng, len(copies), d)
    )
    texts = unit(shared[sources] + noise[1].astype(np.float32) * gaussian(rng, m, d))
    swapped = np.array(captions, dtype=object)
    swapped[wrong] = swapped[sources[wrong]]
    swapped[copies] = make_captions(topics[originals], world, rng)
    plain = np.flatnonzero(faults == BOILERPLATE)
    kind = rng.integers(N_BOILERPLATES, size=len(plain))
    texts[plain] = unit(world.boilerplate[kind] + np.float32(0.1) * gaussian(rng, len(plain), d))
    swapped[plain] = [f"{world.common[k]} {world.common[-k - 1]} stock photo" for k in kind]
    gap = np.float32(GAP)
    images, texts = unit(images + gap * world.cones[0]), unit(texts + gap * world.cones[1])
    return Shard(images.astype(np.float32), texts.astype(np.float32), swapped.tolist(), faults)


def make_captions(
    topics: Int64[np.ndarray, " m"], world: World, rng: np.random.Generator
) -> list[str]:
    """A caption of each topic: words of it, common ones, in one pair of two somebody."""
    picks = np.minimum(rng.geometric(0.15, size=(len(topics), 4)) - 1, WORDS_A_TOPIC - 1)
    common = rng.integers(COMMON_WORDS, size=(len(topics), 2))
    people = rng.integers(2 * len(PEOPLE), size=len(topics))
    captions = []
    for topic, (a, b, c, e), (f, g), person in zip(
        topics.tolist(), picks.tolist(), common.tolist(), people.tolist(), strict=True
    ):
        words = world.words[topic]
        who = f"a {PEOPLE[person]} with " if person < len(PEOPLE) else ""
        captions.append(
            f"{who}{words[a]} {words[b]} {world.common[f]} near {words[c]} and {words[e]} "
            f"{world.common[g]}"
        )
    return captions


def write_embeddings(planting: Planting, folder: Path) -> Path:
    """The shards in clip-retrieval's layout, `folder`/embeddings, made once; the truth beside them.

    What is there of the same planting is kept: a shard is written whole or not at all.

    Raises:
        SystemExit: the folder holds other pairs.
    """
    about, root = folder / ABOUT, folder / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    if about.exists() and json.loads(about.read_text()) != asdict(planting):
        raise SystemExit(f"{folder} holds other pairs; give another --work_dir, or delete it")
    about.write_text(json.dumps(asdict(planting)) + "\n")
    for name in ("img_emb", "text_emb", "metadata"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (folder / "truth").mkdir(exist_ok=True)
    world = make_world(planting)
    for number in tqdm(range(planting.n_shards), desc="embeddings", unit="shard", disable=None):
        truth = folder / "truth" / f"{number:05d}.npy"
        if truth.exists():  # it is written last
            continue
        shard = make_shard(planting, world, number)
        np.save(root / "img_emb" / f"img_emb_{number:05d}.npy", shard.images.astype(np.float16))
        np.save(root / "text_emb" / f"text_emb_{number:05d}.npy", shard.texts.astype(np.float16))
        first = number * planting.shard_size
        paths = [f"{number:05d}/{first + i:010d}.jpg" for i in range(len(shard.captions))]
        table = pa.table({"image_path": paths, "caption": shard.captions})
        pq.write_table(table, root / "metadata" / f"metadata_{number:05d}.parquet")
        np.save(truth, shard.faults)
    return root


def read_truth(folder: Path) -> Int8[np.ndarray, " n"]:
    """What was planted of every pair, in the order of the shards."""
    parts = [np.load(path) for path in sorted((folder / "truth").glob("*.npy"))]
    truth: np.ndarray = np.concatenate(parts)
    return truth


def rows_of(keys: list[str]) -> Int64[np.ndarray, " m"]:
    """The rows that image paths name."""
    return np.array([int(key.rpartition("/")[2].partition(".")[0]) for key in keys], np.int64)

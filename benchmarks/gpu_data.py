"""Tar shards of photograph-like JPEGs with captions, and a CLIP ViT-B/32 of random weights.

    python benchmarks/gpu_data.py FOLDER --pairs 20000

What a GPU benchmark reads. Speed depends neither on what a picture shows nor on what a model has
learnt, so both are drawn: noise that is smooth over some 16 pixels with shapes on it, which JPEG
compresses about as far as photographs; captions of 6 to 16 words; weights as transformers draws
them. Shards are drawn in processes, each from a generator of its own number; what is there of the
same settings is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from flags import as_folder, positive
from tqdm import tqdm

SMOOTH = 16  # pixels over which the noise is smooth
GRAIN = 6.0  # standard deviation of what is not smooth, of 255
QUALITY = 85
N_SHAPES = 5
WORDS = "a the of red small dog street two children with old near blue running water white "
WORDS += "table cat green holding under boat people large standing field black woman bright man"
ABOUT = "about.json"
END_OF_WORD = "</w>"


@dataclass(frozen=True)
class Pictures:
    """What is drawn.

    Attributes:
        pairs: image-text pairs.
        side: of an image, pixels.
        shard_size: pairs of a shard.
        seed: everything follows from it.
    """

    pairs: int
    side: int = 336
    shard_size: int = 1000
    seed: int = 0

    @property
    def n_shards(self) -> int:
        """Number of shards; the last may be shorter."""
        return -(-self.pairs // self.shard_size)


def draw_picture(side: int, rng: np.random.Generator) -> PIL.Image.Image:
    """Smooth noise, shapes on it, and grain over all."""
    coarse = rng.integers(256, size=(max(2, side // SMOOTH), max(2, side // SMOOTH), 3))
    image = PIL.Image.fromarray(coarse.astype(np.uint8)).resize(
        (side, side), PIL.Image.Resampling.BICUBIC
    )
    canvas = PIL.ImageDraw.Draw(image)
    for corners, color in zip(
        np.sort(rng.integers(side, size=(N_SHAPES, 2, 2)), axis=1).reshape(N_SHAPES, 4).tolist(),
        rng.integers(256, size=(N_SHAPES, 3)).tolist(),
        strict=True,
    ):
        (canvas.ellipse if sum(color) % 2 else canvas.rectangle)(corners, fill=tuple(color))
    grain = rng.normal(0, GRAIN, (side, side, 1))
    return PIL.Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def make_caption(rng: np.random.Generator) -> str:
    """Words in any order."""
    return " ".join(rng.choice(WORDS.split(), int(rng.integers(6, 17))))


def write_shard(pictures: Pictures, folder: Path, number: int) -> None:
    """One shard, as a whole or not at all."""
    path, rng = folder / f"{number:05d}.tar", np.random.default_rng((pictures.seed, number))
    if path.exists():
        return
    first = number * pictures.shard_size
    part = path.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for row in range(first, min(first + pictures.shard_size, pictures.pairs)):
            buffer = io.BytesIO()
            draw_picture(pictures.side, rng).save(buffer, "JPEG", quality=QUALITY)
            text = make_caption(rng).encode()
            for ending, data in (("jpg", buffer.getvalue()), ("txt", text)):
                info = tarfile.TarInfo(f"{row:09d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    part.rename(path)


def write_shards(pictures: Pictures, folder: Path) -> Path:
    """All shards, drawn by as many processes as there are cores; the folder that they are in.

    Raises:
        SystemExit: the folder holds other pairs.
    """
    root, about = folder / "shards", folder / ABOUT
    root.mkdir(parents=True, exist_ok=True)
    if about.exists() and json.loads(about.read_text()) != asdict(pictures):
        raise SystemExit(f"{folder} holds other pairs; give another --work_dir, or delete it")
    about.write_text(json.dumps(asdict(pictures)) + "\n")
    n_processes = min(os.cpu_count() or 1, pictures.n_shards)
    with multiprocessing.get_context("spawn").Pool(n_processes) as pool:
        done = pool.imap_unordered(partial(write_shard, pictures, root), range(pictures.n_shards))
        for _ in tqdm(done, total=pictures.n_shards, desc="shards", unit="shard", disable=None):
            pass
    return root


# --- The encoder ----------------------------------------------------------------------------------


def make_tokenizer(captions: Iterator[str]) -> Any:
    """CLIP's kind of tokenizer, byte-level pairs merged as these captions have them together."""
    import transformers
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    marks = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = [*letters, *(letter + END_OF_WORD for letter in letters)]
    plain = transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate([*alphabet, *marks])}, merges=[]
    )
    backend = plain.backend_tokenizer
    learning = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learning.normalizer, learning.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 300,
        initial_alphabet=letters,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learning.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learning.to_str())["model"]["merges"]]
    words = [*alphabet, *dict.fromkeys("".join(pair) for pair in merges), *marks]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)


def save_clip(folder: Path, *, seed: int = 0, small: bool = False) -> Path:
    """A CLIP of random weights with the shape of openai/clip-vit-base-patch32, made once.

    Args:
        folder: that it is saved in.
        seed: of the weights.
        small: two narrow layers a tower, to try the benchmark itself.
    """
    import torch
    import transformers

    if (folder / "model.safetensors").exists():
        return folder
    rng = np.random.default_rng(seed)
    tokenizer = make_tokenizer(make_caption(rng) for _ in range(2000))
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    layers: dict[str, int] = {}
    if small:
        layers = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
        layers |= {"num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**ids, "pad_token_id": tokenizer.eos_token_id, **layers},
        vision_config=layers,
    )
    torch.manual_seed(seed)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Draw the shards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=as_folder)
    parser.add_argument("--pairs", type=positive, default=20_000)
    parser.add_argument("--side", type=positive, default=336, help="pixels of an image's side")
    parser.add_argument("--shard_size", type=positive, default=1000)
    args = parser.parse_args()
    print(write_shards(Pictures(args.pairs, args.side, args.shard_size), args.folder))


if __name__ == "__main__":
    main()

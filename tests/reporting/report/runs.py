"""Small runs whose report is looked at: photographs and captions that nobody would wish for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image

import main
from tests.helpers import encode

N = 96
HOSTILE = (
    '<img src=x onerror="window.hacked = 1"> a dog',
    "</script><script>window.hacked = 2</script> a cat",
    "\"double\" and 'single' quotes, <b>bold</b> &amp; a bird",
    "a man \u202egnals esrever\u202c in the rain",
    "{{ 7 * 7 }} {% raw %} ${window.hacked = 3} a horse",
    '=HYPERLINK("http://localhost/","click") a boat',
    "--><!-- a comment about a train",
    "a\u2028line\u2029separator and a bicycle",
    "a NUL \0 in the middle of a mountain",
)
FLAGS = (
    "--dataset folder --encoder_model embedded --max_train_samples 60 --max_val_samples 18 "
    "--max_test_samples 18 --n_clusters 5 --samples_per_cluster 3 --influence_budget 0.5 "
    "--influence_seeds 1 --removal_folds 2 --held_out_repeats 1 --held_out_steps 50 "
    "--num_epochs 1 --n_seeds 2 --batch_size 8 --embed_dim 16 --device cpu --num_workers 0 "
    "--methods full influencespace random clip_score_filtering"
).split()
THINGS = ("dog", "boat", "red barn", "bicycle", "child", "mountain")
PLACES = ("on the beach", "in the snow", "at night", "in a field", "by the lake")


def data_of(folder: Path) -> Path:
    """Photographs of noise with captions; the first ones hostile, one image twice."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for i in range(N):
        pixels = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        image = PIL.Image.fromarray(pixels).resize((50, 40), PIL.Image.Resampling.BICUBIC)
        caption = f"A {THINGS[i % 6]} {PLACES[i % 5]}, number {i}."
        caption = HOSTILE[i] if i < len(HOSTILE) else caption
        name = f"{i:02d}'\"<i>&amp;\u202e.png" if i < 3 else f"photo {i:02d}.png"
        (folder / name).write_bytes(encode(image))
        split = "test" if i >= N - 18 else "val" if i >= N - 36 else "train"
        rows.append({"image": name, "caption": caption, "split": split})
    lines = [json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run(data: Path, output: Path, *flags: str) -> int:
    """The command line on such data."""
    return main.main([*FLAGS, "--data_dir", str(data), "--output_dir", str(output), *flags])

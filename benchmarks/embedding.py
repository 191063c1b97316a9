"""Speed and quality of the embedded encoder on photographs with captions.

    python benchmarks/embedding.py --data_dir ../shared/data/flickr8k

Each seed draws one caption a training image. Recall is that of the map fitted to those pairs on
the test images; the AUC is how well the fold-wise score tells apart right captions from wrong
ones, which a fifth of the training images exchange among themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data import PairReader, open_source
from embedding import READ_ORDER
from encoders.embedded import EmbeddedEncoder
from encoders.joint_map import embed_across_folds
from sources.base import DataConfig
from sources.images import decode_pixels
from train_eval import recall_metrics, retrieval_ranks

SEEDS = (0, 1, 2)
BATCH_SIZE = 64
WRONG_SHARE = 0.2


def image_features(reader: PairReader, encoder: EmbeddedEncoder) -> dict[str, np.ndarray]:
    """Features of every image of each split, by its row."""
    features = {}
    for split in READ_ORDER:
        rows, batch = [], []
        for image in reader.images(split):
            batch.append(image.pixels)
            if len(batch) == BATCH_SIZE:
                rows.append(encoder.encode_images(np.stack(batch)).features)
                batch = []
        if batch:
            rows.append(encoder.encode_images(np.stack(batch)).features)
        features[split] = np.concatenate(rows)
    return features


def joint_space_quality(
    pairs: pd.DataFrame,
    images: dict[str, np.ndarray],
    texts: Float32[np.ndarray, "pairs d_t"],
    seed: int,
) -> dict[str, float]:
    """Recall of the full map on the test images, and AUC of the fold-wise score."""
    rng = np.random.default_rng(seed)
    train = pairs[pairs["split"] == "train"].groupby("image_row").sample(n=1, random_state=seed)
    test = pairs[pairs["split"] == "test"]
    x, y = images["train"][train["image_row"]], texts[train.index]
    ids = np.arange(len(train))

    _, _, joint_map = embed_across_folds(x, y, ids, rng=rng)
    ranks = retrieval_ranks(
        torch.from_numpy(joint_map.embed_images(images["test"])),
        torch.from_numpy(joint_map.embed_texts(texts[test.index])),
        test["image_row"].to_numpy(np.int64),
    )

    wrong = rng.permutation(len(train))[: round(WRONG_SHARE * len(train))]
    y = y.copy()
    y[wrong] = y[np.roll(wrong, 1)]
    image_embeddings, text_embeddings, _ = embed_across_folds(x, y, ids, rng=rng)
    scores = (image_embeddings * text_embeddings).sum(axis=1)
    auc = roc_auc_score(~np.isin(ids, wrong), scores)
    return {**recall_metrics(*ranks), "wrong_caption_auc": float(auc)}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder that --dataset folder reads")
    parser.add_argument(
        "--result_file", type=Path, default=ROOT / "benchmarks/results/embedding.json"
    )
    args = parser.parse_args()

    config = DataConfig(
        "folder",
        args.data_dir,
        max_train_samples=25_000,
        max_val_samples=1000,
        max_test_samples=1000,
    )
    encoder = EmbeddedEncoder(torch.device("cpu"), torch.float32)
    source = open_source(config, rng=np.random.default_rng(0))
    reader = PairReader(
        source, config, decode=decode_pixels(encoder.preprocess, config.max_image_pixels)
    )
    started = time.perf_counter()
    images = image_features(reader, encoder)
    image_seconds = time.perf_counter() - started
    pairs = reader.pairs()
    started = time.perf_counter()
    texts = encoder.encode_texts(pairs["caption"].tolist()).features
    text_seconds = time.perf_counter() - started

    runs = pd.DataFrame([joint_space_quality(pairs, images, texts, seed) for seed in SEEDS])
    results = {
        "command": "python benchmarks/embedding.py --data_dir path/to/flickr8k",
        "data": {split: len(features) for split, features in images.items()},
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "images_per_second": sum(map(len, images.values())) / image_seconds,
        "captions_per_second": len(pairs) / text_seconds,
        "seeds": len(SEEDS),
        "mean": runs.mean().to_dict(),
        "std": runs.std().to_dict(),
    }
    args.result_file.parent.mkdir(parents=True, exist_ok=True)
    args.result_file.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

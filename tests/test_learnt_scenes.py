"""Drawn scenes are learnt by a whole run, with all features of the embedded encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import main
from tests.test_main import TINY


def test_scenes_can_be_learnt(tmp_path: Path) -> None:
    sizes = "--max_train_samples 200 --max_test_samples 40 --num_epochs 6 --batch_size 16".split()
    sizes += ["--embed_dim", "32", "--methods", "full"]
    assert main.main([*TINY, "--output_dir", str(tmp_path / "out"), *sizes]) == 0
    metrics = json.loads((tmp_path / "out/evaluation/method_metrics.json").read_text())
    reached = metrics["same_epochs"]["full"]["mean_recall"]["mean"]
    chance = 100 * np.mean([k / 40 for k in (1, 5, 10)])
    assert reached > 3 * chance  # 72 against 13 when this was written

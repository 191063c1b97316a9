"""How well the share of wrong captions is estimated, in the pool and among held-out pairs.

    python benchmarks/wrong_share.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

Shares of all captions of 5,000 training and 1,000 validation pairs of Flickr8k pass round; a
hundred of the latter stand for a small split. Also: captions wrong in some topics alone, and
boilerplate, which agrees like chance but not quite.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from flickr8k_regimes import REGIMES, HeldOut, _wrong_captions, load_pool, make_regime
from regimes import FIRST_FRESH_SEED
from regimes_methods import trust_of
from regimes_problem import make_problem, test_set_of
from tqdm import tqdm

from artifacts.provenance import hardware, package_versions
from encoders.base import EmbeddingConfig
from encoders.pretrained import load_encoder

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6)
OTHERS = ("wrong_20_concentrated", "boilerplate_20")
RESULTS = ROOT / "benchmarks/results/wrong_share.json"
SMALL = 100


def measured(name: str, seed: int, size: int, pool: Any, pool_file: Path) -> list[dict[str, Any]]:
    """True and estimated shares of one set of pairs."""
    regime = make_regime(name, pool, seed, HeldOut(noisy=True, size=size))
    trust, _ = trust_of(make_problem(regime, seed, test_set_of(pool_file, "")))
    asked = trust.asked
    splits = {"validation": regime.validation_faults != ""}
    if size > SMALL:  # the pool is the same
        splits["train"] = regime.faults != ""
    return [
        {
            "regime": name,
            "seed": seed,
            "split": split,
            "true": float(wrong.mean()),
            **{k: trust.faults[split][k] for k in ("pairs", "share", "low", "high")},
            "wrong_among_asked": float(wrong[asked].mean()) if split == "validation" else None,
        }
        for split, wrong in splits.items()
    ]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Error of the estimate over seeds, by regime, split and size."""
    found = []
    for key in dict.fromkeys((r["regime"], r["split"], r["pairs"]) for r in rows):
        here = [r for r in rows if (r["regime"], r["split"], r["pairs"]) == key]
        errors = np.array([r["share"] - r["true"] for r in here])
        found.append(
            {
                **dict(zip(("regime", "split", "pairs"), key, strict=True)),
                "true": float(np.mean([r["true"] for r in here])),
                "estimated": float(np.mean([r["share"] for r in here])),
                "largest_error": float(np.abs(errors).max()),
                "in_interval": sum(r["low"] <= r["true"] <= r["high"] for r in here),
                "seeds": len(here),
            }
        )
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="from the first fresh one on")
    args = parser.parse_args()
    pool_file = args.work_dir / "pool.npz"
    pool = load_pool(
        args.data_dir,
        pool_file,
        lambda: load_encoder(EmbeddingConfig("embedded"), device=torch.device("cpu")),
    )
    names = {f"wrong_{100 * share:g}_percent": share for share in SHARES}
    for name, share in names.items():
        REGIMES[name] = _wrong_captions(share)
    rows: list[dict[str, Any]] = []
    for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + args.seeds):
        for name in tqdm([*names, *OTHERS], desc=f"seed {seed}", disable=None):
            for size in (1000, SMALL):
                rows += measured(name, seed, size, pool, pool_file)
    found = summary(rows)
    for line in found:
        print(
            f"{line['regime']:24} {line['split']:10} {line['pairs']:5} true {line['true']:.3f} "
            f"estimated {line['estimated']:.3f} largest error {line['largest_error']:.3f} "
            f"in the interval {line['in_interval']} of {line['seeds']}"
        )
    about = {
        "command": "python benchmarks/wrong_share.py --data_dir path/to/flickr8k --work_dir WORK",
        "hardware": hardware(),
        "packages": package_versions(),
    }
    RESULTS.write_text(json.dumps({**about, "summary": found, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

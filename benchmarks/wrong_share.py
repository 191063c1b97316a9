"""How well the share of wrong captions is estimated, in the pool and among held-out pairs.

    python benchmarks/wrong_share.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

Shares of all captions of 5,000 training and 1,000 validation pairs of Flickr8k pass round; a
hundred of the latter stand for a small split. Also: captions wrong in some topics alone, and
boilerplate, which agrees like chance but not quite. `settled` is the estimate that a run shows,
after held-out models have seen all pairs; the others are those that it begins with. `--pairs 1000`
draws a small pool, into a file of its own.
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

import flickr8k_regimes
import numpy as np
import torch
from flickr8k_regimes import REGIMES, HeldOut, _wrong_captions, load_pool, make_regime
from regimes import FIRST_FRESH_SEED
from regimes_methods import Variant, pair_influence_of, trust_of
from regimes_problem import make_problem, test_set_of
from tqdm import tqdm

from artifacts.provenance import hardware, package_versions
from encoders.base import EmbeddingConfig
from encoders.pretrained import load_encoder

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6)
OTHERS = ("wrong_20_concentrated", "boilerplate_20")
RESULTS = ROOT / "benchmarks/results"
SMALL = 100


def measured(name: str, seed: int, size: int, pool: Any, pool_file: Path) -> list[dict[str, Any]]:
    """True and estimated shares of one set of pairs."""
    regime = make_regime(name, pool, seed, HeldOut(noisy=True, size=size))
    problem = make_problem(regime, seed, test_set_of(pool_file, ""))
    trust, _ = trust_of(problem)
    estimate, _ = pair_influence_of(problem, trust, Variant().cells)
    asked = trust.asked
    settled = dict(zip(("share", "low", "high"), estimate.quality["wrong_share"], strict=True))
    wrong = {"validation": regime.validation_faults != "", "train": regime.faults != ""}
    found = {"validation": trust.faults["validation"], "train": trust.faults["train"]}
    found["settled"] = {"pairs": len(wrong["train"]), **settled}
    if size <= SMALL:  # the pool is the same, and what it is taken for at first
        del found["train"]
    return [
        {
            "regime": name,
            "seed": seed,
            "split": split,
            "validation_pairs": size,
            "true": float(wrong.get(split, wrong["train"]).mean()),
            **{k: said[k] for k in ("pairs", "share", "low", "high")},
            "wrong_among_asked": float(wrong["validation"][asked].mean())
            if split == "validation"
            else None,
        }
        for split, said in found.items()
    ]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Error of the estimate over seeds, by regime, split and size."""
    found = []
    columns = ("regime", "split", "validation_pairs", "pairs")
    for key in dict.fromkeys(tuple(r[c] for c in columns) for r in rows):
        here = [r for r in rows if tuple(r[c] for c in columns) == key]
        errors = np.array([r["share"] - r["true"] for r in here])
        found.append(
            {
                **dict(zip(columns, key, strict=True)),
                "true": float(np.mean([r["true"] for r in here])),
                "estimated": float(np.mean([r["share"] for r in here])),
                "typical_error": float(np.sqrt((errors**2).mean())),
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
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=FIRST_FRESH_SEED)
    parser.add_argument("--pairs", type=int, default=5000, help="of the pool (default: 5000)")
    args = parser.parse_args()
    flickr8k_regimes.N_TRAINING = args.pairs
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
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in tqdm([*names, *OTHERS], desc=f"seed {seed}", disable=None):
            for size in (1000, SMALL):
                rows += measured(name, seed, size, pool, pool_file)
    found = summary(rows)
    for line in found:
        print(
            f"{line['regime']:24} {line['split']:10} {line['pairs']:5} of "
            f"{line['validation_pairs']:4} true {line['true']:.3f} "
            f"estimated {line['estimated']:.3f} typical error {line['typical_error']:.3f} "
            f"largest {line['largest_error']:.3f} "
            f"in the interval {line['in_interval']} of {line['seeds']}"
        )
    command = "python benchmarks/wrong_share.py --data_dir path/to/flickr8k --work_dir WORK"
    command += "" if args.pairs == 5000 else f" --pairs {args.pairs}"
    about = {
        "command": f"{command} --first_seed {args.first_seed} --seeds {args.seeds}",
        "hardware": hardware(),
        "packages": package_versions(),
    }
    name = "wrong_share" if args.pairs == 5000 else f"wrong_share_{args.pairs}"
    text = json.dumps({**about, "summary": found, "rows": rows}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

"""The protocol of `benchmarks/protocol.md`: all its cells, one seed after the other.

    python benchmarks/protocol.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

Rows, what each test image adds, and the page (`protocol_report.py`) lie in the results folder, the
figure in the documentation; a run that was stopped goes on where it was. `--hours` begins no seed
that would not be done in time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The cores are shared by processes, not by threads; read when the libraries are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import pandas as pd
from flickr8k_regimes import FURTHER, REGIMES, TARGETS, load_pool
from protocol_report import controls_of, write_protocol
from regimes import Unit, compute, done_in, embedded_encoder, units_of
from regimes_figure import figure
from regimes_methods import ABLATION, METHODS
from regimes_names import RESULTS, WITHOUT_HELD_OUT
from regimes_report import summarize
from regimes_rows import keys_of, read_rows, read_scores
from validation_report import CLEAN

from artifacts.provenance import hardware, package_versions
from train_eval import COMPARISONS

FIGURE = ROOT / "docs/protocol.png"
FIRST_SEED, N_SEEDS = 100, 20
SHARES = (0.4, 0.6, 0.8)


class Block(NamedTuple):
    """Cells of one kind: every regime with all held-out pairs, shares and comparisons."""

    regimes: tuple[str, ...]
    validation: tuple[str, ...] = ("clean",)
    target: str = ""
    asking_only: bool = False  # methods that look at no held-out pair have the clean pairs' rows


BLOCKS = {
    "regimes": Block((*REGIMES, *FURTHER, "wrong_10", "wrong_60")),
    "held_out": Block(
        ("wrong_20",),
        (*(f"{kind}-{size}" for kind in ("clean", "noisy") for size in (30, 100, 300)), "noisy"),
        asking_only=True,
    ),
    **{f"target_{word}": Block(("clean", "wrong_20"), target=word) for word in TARGETS},
}


def methods_of(block: Block) -> list[str]:
    """Every method but the variants of InfluenceSpace, and its control."""
    usual = [name for name in METHODS if name not in ABLATION]
    names = usual + [name for name in controls_of(METHODS) if name not in usual]
    left_out = WITHOUT_HELD_OUT if block.asking_only else ()
    return [name for name in names if name not in left_out]


def units_of_seed(blocks: Sequence[str], seed: int, done: set[tuple[Any, ...]]) -> list[Unit]:
    """What one seed still wants, block after block."""
    units = []
    for name in blocks:
        block = BLOCKS[name]
        asked = argparse.Namespace(
            regimes=block.regimes,
            validation=block.validation,
            target=block.target,
            methods=methods_of(block),
            keep=SHARES,
            comparisons=COMPARISONS,
            first_seed=seed,
            seeds=1,
        )
        units += units_of(asked, done)
    return units


def whole(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each block that are of seeds of which the block wants nothing more."""
    done = keys_of(rows)
    kept = []
    for name in BLOCKS:
        every = units_of_seed([name], FIRST_SEED, set())
        known = {(unit.regime, unit.held_out.name) for unit in every}
        cells = pd.MultiIndex.from_frame(rows[["regime", "validation"]])
        seeds = [s for s in rows["seed"].unique() if not units_of_seed([name], s, done)]
        kept.append(rows[cells.isin(known) & rows["seed"].isin(seeds)])
    return pd.concat(kept, ignore_index=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, help="Flickr8k: Images, captions.txt, splits.csv")
    parser.add_argument("--work_dir", type=Path, help="where the embedded pool is kept")
    parser.add_argument("--blocks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help=f"from {FIRST_SEED} on")
    parser.add_argument(
        "--seeds_at_once", type=int, default=1, help="whose sets of pairs the processes share"
    )
    parser.add_argument("--hours", type=float, default=float("inf"), help="time that there is")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--device", default="cpu", help="that all of them train on: cpu or cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--plot_only", action="store_true", help="the page alone, no training")
    args = parser.parse_args()
    if not args.plot_only and not (args.data_dir and args.work_dir):
        parser.error("--data_dir and --work_dir are needed")
    if not 1 <= args.seeds <= N_SEEDS:
        parser.error(f"--seeds {args.seeds}: the protocol has 1 to {N_SEEDS}")
    return args


def run(args: argparse.Namespace, file: Path) -> None:
    """All cells of a few seeds, then of the next, while there is time."""
    pool_file = args.work_dir / "pool.npz"
    load_pool(args.data_dir, pool_file, embedded_encoder)
    started, longest = time.perf_counter(), 0.0
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    for first in range(0, len(seeds), args.seeds_at_once):
        some = seeds[first : first + args.seeds_at_once]
        done = done_in(file, with_images=True)
        units = [unit for seed in some for unit in units_of_seed(args.blocks, seed, done)]
        began = time.perf_counter()
        if began - started + longest > 3600 * args.hours:
            print(f"no seed {some[0]}: --hours {args.hours:g} would be over", file=sys.stderr)
            return
        if units:
            compute(*(units, pool_file, file, args.jobs), with_images=True, device=args.device)
            longest = max(longest, time.perf_counter() - began)


def main() -> None:
    """Compute what is missing, then the page."""
    args = arguments()
    file = args.out / "protocol.csv"
    about = {"hardware": hardware(), "packages": package_versions()}
    saved = args.out / "protocol.json"
    if args.plot_only:
        if saved.exists():  # where the rows come from
            about = json.loads(saved.read_text())
    else:
        run(args, file)
        saved.write_text(json.dumps(about, indent=1) + "\n")
    rows = whole(read_rows(file))
    write_protocol(rows, read_scores(file), args.out, about)
    is_usual = args.out.resolve() == RESULTS.resolve()
    figure(
        summarize(rows[rows["validation"] == CLEAN]), FIGURE if is_usual else args.out / FIGURE.name
    )


if __name__ == "__main__":
    main()

"""The gap between groups where one was thinned, with and without `--fairness`.

    python benchmarks/group_gaps.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

    gap = recall@10 of captions about men - of captions about women        percentage points

Of 5,000 Flickr8k pairs those about women and girls were thinned to a tenth. Every method keeps as
many pairs and is trained for as many steps as the full data. Twenty seeds, 200 to 219, that nothing
was ever looked at or tuned on; all weights of the flag are shown, so that none is chosen by its
result. A gap has its sign: below zero women are served better. Rows lie in `group_gaps.csv`, where
a run that was stopped goes on; `--plot_only` writes the page from them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import regimes  # first: it puts the project on the path and gives each process one thread

# isort: split
import pandas as pd
from flickr8k_regimes import load_pool
from regimes_methods import ABLATION
from regimes_names import RANDOM, RARE, RESULTS, SAME_STEPS
from regimes_report import markdown_table, mean_and_stderr, quantity, table_label
from regimes_rows import read_rows

from artifacts.provenance import hardware, package_versions
from baselines import FULL, INFLUENCESPACE

FIRST_SEED, N_SEEDS = 200, 20
FAIRNESS = tuple(name for name in ABLATION if name.startswith("fairness_"))
METHODS = (FULL, RANDOM, "neg_clip_loss", INFLUENCESPACE, *FAIRNESS)
ABSOLUTE = ("mean_recall", "female_recall@10", "male_recall@10", "signed_gap")


def with_signs(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with `signed_gap`, percentage points of recall@10 that men are served better."""
    return frame.assign(signed_gap=frame["male_recall@10"] - frame["female_recall@10"])


def beside(rows: pd.DataFrame, base: pd.DataFrame, metric: str) -> pd.Series:
    """The difference to other rows of the same seeds."""
    of_base = base.set_index("seed")[metric]
    here = rows.set_index("seed")[metric]
    return (here - of_base).dropna()


def table(frame: pd.DataFrame, keep: float) -> list[str]:
    """Every method at one share kept, beside the full data and beside InfluenceSpace as it is."""
    rows = frame[(frame["keep"] == keep) | (frame["method"] == FULL)]
    by_method = {str(method): here for method, here in rows.groupby("method")}
    full, plain = by_method[FULL], by_method[INFLUENCESPACE]
    lines = []
    for method in (m for m in METHODS if m in by_method):
        here = by_method[method]
        relative = []
        for base in (full, plain):
            for metric in ("signed_gap", "mean_recall"):
                change = 100 * beside(here, base, metric) / base[metric].mean()
                relative.append("" if here is base else quantity(mean_and_stderr(change), 1, "+"))
        label = ABLATION[method].label if method in ABLATION else table_label(method)
        absolute = (quantity(mean_and_stderr(here[metric])) for metric in ABSOLUTE)
        lines.append([label, *absolute, *relative])
    header = (
        "method;mean recall;recall@10 women;men;gap;gap against full data (%);recall (%);"
        "gap against InfluenceSpace (%);recall (%)"
    )
    return markdown_table(header.split(";"), lines)


def page(frame: pd.DataFrame, about: str) -> str:
    """The results page."""
    shares = sorted((k for k in frame["keep"].unique() if k < 1), reverse=True)
    parts = [
        "# Groups of which one was thinned",
        f"`python benchmarks/group_gaps.py --data_dir path/to/flickr8k --work_dir WORK`, {about}. "
        f"Captions about women and girls thinned to a tenth; {frame['seed'].nunique()} seeds from "
        f"{frame['seed'].min()} on; as many steps as the full data. Gap: recall@10 of captions "
        "about men less that of captions about women, percentage points, with its sign. Mean ± "
        "standard error over seeds; changes are paired by seed, in percent of the mean of what "
        "they are against.",
    ]
    for keep in shares:
        parts += [f"## {100 * keep:g} % kept", "\n".join(table(frame, keep))]
    return "\n\n".join(parts) + "\n"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", type=Path, help="Flickr8k: Images, captions.txt, splits.csv")
    parser.add_argument("--work_dir", type=Path, help="where the embedded pool is kept")
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help=f"from {FIRST_SEED} on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--device", default="cpu", help="that all of them train on: cpu or cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--plot_only", action="store_true", help="the page alone, no training")
    args = parser.parse_args(argv)
    if not args.plot_only and not (args.data_dir and args.work_dir):
        parser.error("--data_dir and --work_dir are needed")
    return args


def run(args: argparse.Namespace, file: Path) -> None:
    """Compute what is missing."""
    pool_file = args.work_dir / "pool.npz"
    load_pool(args.data_dir, pool_file, regimes.embedded_encoder)
    asked = argparse.Namespace(
        regimes=[RARE],
        validation=["clean"],
        target="",
        methods=METHODS,
        keep=regimes.KEEP,
        comparisons=[SAME_STEPS],
        first_seed=FIRST_SEED,
        seeds=args.seeds,
    )
    units = regimes.units_of(asked, regimes.done_in(file, with_images=False))
    if units:
        regimes.compute(units, pool_file, file, args.jobs, device=args.device)


def main() -> None:
    """Compute what is missing, then the page."""
    args = arguments()
    file, saved = args.out / "group_gaps.csv", args.out / "group_gaps.json"
    if not args.plot_only:
        run(args, file)
        about = {"hardware": hardware(), "packages": package_versions()}
        saved.write_text(json.dumps(about, indent=1) + "\n")
    told = json.loads(saved.read_text())
    where = f"{told['hardware']['cpu_cores']} CPU cores, torch {told['packages']['torch']}"
    text = page(with_signs(read_rows(file)), where)
    (args.out / "group_gaps.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""What a choice of the share kept gives away, with 0 to 60 % wrong captions or in any regime.

    python benchmarks/share_regret.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

    regret = max over shares of recall(share) - recall(share chosen)        points of mean recall

The curve of a regime is InfluenceSpace at 30 to 100 % of the pairs, as many steps each, the mean
over the seeds; between its points it is straight. A second one is that of a trainer to which kept
pairs that look faulty count like others. Seeds of the curve and of the choices are the
same. A chooser sees what InfluenceSpace sees: training and validation pairs, no test image.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The cores are shared by processes, not by threads; read when the libraries are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
from flickr8k_regimes import load_pool, make_regime
from regimes import compute, done_in, embedded_encoder, held_outs, regime_name, units_of
from regimes_methods import curve_of_influencespace, trust_of
from regimes_names import FAULTS_COUNT, RESULTS, SAME_STEPS, regime_label
from regimes_problem import Problem, make_problem, test_set_of
from regimes_report import markdown_table
from regimes_rows import read_rows
from tqdm import tqdm

from artifacts.provenance import hardware, package_versions
from baselines import INFLUENCESPACE

SHARES = tuple(round(0.1 * k, 1) for k in range(3, 11))
NOISE = tuple(f"wrong_{share}" for share in range(0, 61, 10))
FIRST_SEED = 100


class Share(NamedTuple):
    """A share chosen, and what was estimated on the way."""

    keep: float
    fault_share: float | None = None
    low: float | None = None
    high: float | None = None


def always(problem: Problem) -> Share:
    """The default of `--target_size_ratio`."""
    return Share(0.8)


def one_less_faults(problem: Problem) -> Share:
    """All but the estimated share of wrong captions; everything where too few pairs tell."""
    wrong = trust_of(problem)[0].wrong_share
    if wrong is None:
        return Share(1.0)
    return Share(1 - wrong.share, wrong.share, wrong.low, wrong.high)


def auto(problem: Problem) -> Share:
    """The share that `--target_size_ratio auto` chooses."""
    curve = curve_of_influencespace(problem)
    return Share(curve.share, *(curve.best["fault_share"] or (None, None, None)))


CHOOSERS: dict[str, Callable[[Problem], Share]] = {
    "always_0.8": always,
    "one_less_faults": one_less_faults,
    "auto": auto,
}
LABELS = {
    "always_0.8": "always 0.8",
    "one_less_faults": "1 − estimated share of wrong captions",
    "auto": "`--target_size_ratio auto`",
}


def curves(frame: pd.DataFrame, method: str = INFLUENCESPACE) -> dict[tuple[str, str], pd.Series]:
    """Mean recall by share kept of each regime and kind of held-out pairs, the mean over seeds.

    Only seeds that have every share: otherwise shares would differ by their seeds.
    """
    rows = frame[(frame["method"] == method) & (frame["comparison"] == SAME_STEPS)]
    found = {}
    for (regime, validation), here in rows.groupby(["regime", "validation"]):
        table = here.pivot(index="seed", columns="keep", values="mean_recall").dropna()
        if len(table):
            found[(str(regime), str(validation))] = table.mean()
    return found


def regret(curve: pd.Series, keep: float) -> float:
    """What a share gives away on a curve that is straight between its points and flat beyond."""
    shares = curve.index.to_numpy(dtype=np.float64)
    return float(curve.max() - np.interp(keep, shares, curve.to_numpy()))


def summarize(
    found: Mapping[tuple[str, str], pd.Series], chosen: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Mean and worst regret of each chooser in each regime, and its estimate beside the truth."""
    summaries = []
    keys = dict.fromkeys((c["chooser"], c["regime"], c["validation"]) for c in chosen)
    for chooser, regime, validation in keys:
        curve = found.get((regime, validation))
        if curve is None:
            continue
        here = [c for c in chosen if (c["chooser"], c["regime"], c["validation"])
                == (chooser, regime, validation)]  # fmt: skip
        regrets = [regret(curve, c["keep"]) for c in here]
        told = [c for c in here if c["fault_share"] is not None]
        summaries.append(
            {
                **{"chooser": chooser, "regime": regime, "validation": validation},
                "n_seeds": len(here),
                "best": float(curve.idxmax()),
                "keep": float(np.mean([c["keep"] for c in here])),
                "mean_regret": float(np.mean(regrets)),
                "worst_regret": float(np.max(regrets)),
                "true_share": float(np.mean([c["true_share"] for c in here])),
                "fault_share": float(np.mean([c["fault_share"] for c in told])) if told else None,
                "largest_error": max(
                    (abs(c["fault_share"] - c["true_share"]) for c in told), default=None
                ),
                "seconds": float(np.mean([c["seconds"] for c in here])),
            }
        )
    return summaries


def page(
    found: Mapping[tuple[str, str], pd.Series],
    summaries: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    without_weights: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The curves, and what each chooser gives away on them; the worst regime first.

    Args:
        found: the curves.
        summaries: of them.
        about: hardware.
        without_weights: summaries of the curves to a trainer that heeds no weights.
    """
    lines = [
        "# What a choice of the share kept gives away",
        "",
        f"`python benchmarks/share_regret.py --data_dir path/to/flickr8k --work_dir WORK`, "
        f"{about['hardware']['cpu_cores']} CPU cores. Points of mean recall below the best share "
        "of the curve; InfluenceSpace at every share, as many steps as the full data. Seconds "
        "hold what the chooser itself computes, the clustering and the judging of pairs included.",
        "",
    ]
    for chooser, here in _by_chooser(summaries):
        rows = [_row(s) for s in sorted(here, key=lambda s: -s["mean_regret"])]
        rows.append(["**all regimes**", *[""] * 3, *_overall(here), *[""] * 4])
        header = (
            "regime, held-out pairs;seeds;best share;share chosen;mean regret;worst regret;"
            "truly faulty;estimated;largest error;seconds"
        )
        lines += [f"## {LABELS[chooser]}", "", *markdown_table(header.split(";"), rows)]
    if without_weights:
        lines += ["## To a trainer that heeds no weights of faulty pairs", ""]
        rows = [
            [LABELS[chooser], *_overall(here)] for chooser, here in _by_chooser(without_weights)
        ]
        lines += markdown_table(["", "mean regret", "worst regret"], rows)
    lines += ["## The curves", ""]
    shares = sorted({share for curve in found.values() for share in curve.index})
    rows = [
        [
            f"{regime_label(regime)}, {validation}",
            *(f"{curve[share]:.2f}" if share in curve.index else "–" for share in shares),
        ]
        for (regime, validation), curve in found.items()
    ]
    header = ["regime, held-out pairs", *(f"{share:g}" for share in shares)]
    return "\n".join([*lines, *markdown_table(header, rows)])


def _by_chooser(
    summaries: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    choosers = dict.fromkeys(s["chooser"] for s in summaries)
    return [(chooser, [s for s in summaries if s["chooser"] == chooser]) for chooser in choosers]


def _overall(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The mean of the regimes' mean regrets, and the worst of all."""
    mean = np.mean([s["mean_regret"] for s in summaries])
    return [f"{mean:.2f}", f"{max(s['worst_regret'] for s in summaries):.2f}"]


def _row(summary: Mapping[str, Any]) -> list[str]:
    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %"

    return [
        f"{regime_label(summary['regime'])}, {summary['validation']}",
        f"{summary['n_seeds']}",
        f"{summary['best']:g}",
        f"{summary['keep']:.2f}",
        f"{summary['mean_regret']:.2f}",
        f"{summary['worst_regret']:.2f}",
        percent(summary["true_share"]),
        percent(summary["fault_share"]),
        percent(summary["largest_error"]),
        f"{summary['seconds']:.1f}",
    ]


def choices(args: argparse.Namespace, pool_file: Path, pool: Any) -> list[dict[str, Any]]:
    """What every chooser chooses for every seed, regime and kind of held-out pairs."""
    cases = [
        (seed, regime, held_out)
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for regime in args.regimes
        for held_out in held_outs(args)
    ]
    found = []
    for seed, name, held_out in tqdm(cases, desc="choosing", unit="set", disable=None):
        regime = make_regime(name, pool, seed, held_out)
        for chooser in args.choosers:
            # A problem of its own, so that each pays for all that it computes.
            problem = make_problem(regime, seed, test_set_of(pool_file, ""))
            started = time.perf_counter()
            share = CHOOSERS[chooser](problem)
            found.append(
                {
                    **{"chooser": chooser, "regime": name, "validation": held_out.name},
                    "seed": seed,
                    **share._asdict(),
                    "true_share": float((regime.faults != "").mean()),
                    "seconds": problem.clustering_seconds + time.perf_counter() - started,
                }
            )
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, required=True, help="where the pool is kept")
    parser.add_argument("--regimes", nargs="+", type=regime_name, default=list(NOISE))
    parser.add_argument("--validation", nargs="+", default=["clean"], help="clean, noisy-100, ...")
    parser.add_argument("--keep", nargs="+", type=float, default=list(SHARES), help="of the curve")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    parser.add_argument("--choosers", nargs="*", choices=list(CHOOSERS), default=list(CHOOSERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """The curves, the choices, and the table."""
    args = arguments()
    pool_file, file = args.work_dir / "pool.npz", args.out / "share_regret.csv"
    pool = load_pool(args.data_dir, pool_file, embedded_encoder)
    asked = argparse.Namespace(
        **vars(args), methods=[INFLUENCESPACE, FAULTS_COUNT], comparisons=[SAME_STEPS], target=""
    )
    chosen = choices(asked, pool_file, pool)  # first: it is quick, and may say what is missing
    units = units_of(asked, done_in(file, with_images=False))
    if units:
        compute(units, pool_file, file, args.jobs)
    about = {"hardware": hardware(), "packages": package_versions()}
    rows = read_rows(file)
    found = curves(rows)
    summaries = summarize(found, chosen)
    without_weights = summarize(curves(rows, FAULTS_COUNT), chosen)
    saved = {**about, "summary": summaries, "summary_without_weights": without_weights}
    saved["choices"] = chosen
    (args.out / "share_regret.json").write_text(json.dumps(saved, indent=1) + "\n")
    text = page(found, summaries, about, without_weights)
    (args.out / "share_regret.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

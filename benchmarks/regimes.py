"""Who wins where: every curation method on kinds of good and bad data made from Flickr8k.

    python benchmarks/regimes.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

Held-out pairs are a second dimension: `--validation noisy` makes them as faulty as the training
pairs, `noisy-100` a hundred of these, and `--target dog` takes those about dogs alone, of the test
images too. `--regimes` takes further ones: `hard_20`, `alt_text_20`, `mixture`, and `wrong_N`.
One training is one row of `regimes.csv`, and a row that is there is not computed again: a run that
was stopped goes on where it was, and a method whose `version` was raised is computed anew. A seed
decides the pairs, their faults, the selections and the trainings, so that methods are compared in
pairs. `--plot_only` draws tables and figure from the rows alone; `--estimate` computes one set of
pairs and tells how long the rest would take. `regimes_methods.py` has the methods,
`regimes_rows.py` the file of rows, `regimes_report.py` the tables.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

# The cores are shared by processes, not by threads; read when the libraries are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import pandas as pd
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flickr8k_regimes import (
    N_TRAINING,
    N_VALIDATION,
    REGIMES,
    HeldOut,
    load_pool,
    make_regime,
    recipe_of,
)
from regimes_methods import ABLATION, METHODS, Chosen, use_workers, version_of
from regimes_names import BOTH, RESULTS, SAME_EPOCHS
from regimes_problem import (
    Problem,
    full_steps,
    make_problem,
    pool_of,
    test_set_of,
    training_steps,
    use_device,
)
from regimes_report import write_summary
from regimes_rows import (
    SCORE_COLUMNS,
    appending,
    keys_of,
    read_rows,
    read_scores,
    scores_file_of,
)
from regimes_training import TrainingOf, measured_all
from validation_report import CLEAN, write_validation

from artifacts.provenance import hardware, package_versions
from baselines import BASELINES, FULL
from curation import curated_size
from encoders.base import EmbeddingConfig, Encoder
from encoders.pretrained import load_encoder
from train_eval import COMPARISONS

KEEP, N_SEEDS = (0.4, 0.6, 0.8), 5
# Seeds from here on were run for the first time once the method was fixed; what is said of noisy
# validation pairs and of targets rests on them (`--first_seed 7`). Those below were looked at.
FIRST_FRESH_SEED = 7


# --- One set of pairs -------------------------------------------------------------------------


class Job(NamedTuple):
    """One training: one row of the CSV."""

    method: str
    keep: float
    comparison: str


class Unit(NamedTuple):
    """The trainings that share a set of pairs, and so a process."""

    regime: str
    held_out: HeldOut
    seed: int
    jobs: tuple[Job, ...]  # those of one method and share kept follow one another


def rows_of(unit: Unit, problem: Problem) -> Iterator[dict[str, Any]]:
    """Choose, then train; a row as soon as it is measured. A training is not done twice."""
    chosen: dict[tuple[str, float], Chosen] = {}
    trainings: dict[Job, TrainingOf] = {}
    for job in unit.jobs:
        choice = job.method, job.keep
        if choice not in chosen:
            chosen[choice] = METHODS[job.method].choose(problem, job.keep, unit.seed)
        same_epochs = job.comparison == SAME_EPOCHS
        rows, weights = chosen[choice].rows, chosen[choice].weights
        n_steps = training_steps(len(rows)) if same_epochs else full_steps(problem)
        trainings[job] = TrainingOf(rows, weights, chosen[choice].weighting, n_steps).plainly()
    waiting: dict[Any, list[Job]] = {}
    for job, training in trainings.items():
        waiting.setdefault(training.key(), []).append(job)
    faulty = problem.regime.faults != ""
    first = {key: trainings[jobs[0]] for key, jobs in waiting.items()}
    for key, found in measured_all(problem, first):
        for job in waiting[key]:
            choice = chosen[job.method, job.keep]
            yield {
                "regime": unit.regime,
                "validation": unit.held_out.name,
                "keep": job.keep,
                "method": job.method,
                "seed": unit.seed,
                "comparison": job.comparison,
                "version": version_of(job.method),
                **found,
                "faults_left": float(faulty[choice.rows].mean()),
                "validation_loss_estimate": choice.validation_loss_estimate,
                "seconds": choice.seconds,
                "pairs_evaluated": choice.pairs_evaluated,
                "n_pairs": len(choice.rows),
                "n_steps": trainings[job].n_steps,
            }


# --- All of them, in processes ----------------------------------------------------------------


def units_of(args: argparse.Namespace, done: set[tuple[Any, ...]]) -> list[Unit]:
    """What is still to be computed: one seed of all regimes, then the next."""
    jobs = [
        Job(method, keep, comparison)
        for method in args.methods
        for keep in ((1.0,) if method == FULL else args.keep)
        for comparison in ((BOTH,) if method == FULL else args.comparisons)
    ]
    units = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for regime in args.regimes:
            for held_out in held_outs(args):
                known = (regime, held_out.name)
                left = tuple(
                    j
                    for j in jobs
                    if (*known, j.keep, j.method, seed, j.comparison, version_of(j.method))
                    not in done
                )
                if left:
                    units.append(Unit(regime, held_out, seed, left))
    return units


def held_outs(args: argparse.Namespace) -> list[HeldOut]:
    """The held-out pairs asked for: `clean`, `noisy`, or either with a number of pairs."""
    found = []
    for name in args.validation:
        kind, _, size = name.partition("-")
        if kind not in ("clean", "noisy") or not (size.isdecimal() or not size):
            raise SystemExit(f"--validation {name}: clean, noisy, clean-100, noisy-30, ...")
        found.append(HeldOut(kind == "noisy", int(size or N_VALIDATION), args.target))
    return found


class _NoTerminal(io.TextIOWrapper):
    """Standard error of a worker: messages pass, progress bars stay silent."""

    def isatty(self) -> bool:
        return False


_rows: Any = None  # the worker's end of the queue of rows


def _start_worker(rows: Any, device: str) -> None:
    global _rows
    _rows = rows
    use_device(device)
    torch.set_num_threads(1)
    use_workers(1)  # it has one core
    sys.stderr = _NoTerminal(sys.stderr.buffer, line_buffering=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(unit: Unit, pool_file: Path) -> None:
    regime = make_regime(unit.regime, pool_of(pool_file), unit.seed, unit.held_out)
    problem = make_problem(regime, unit.seed, test_set_of(pool_file, unit.held_out.target))
    for row in rows_of(unit, problem):
        _rows.put(row)


def compute(
    units: Sequence[Unit],
    pool_file: Path,
    file: Path,
    n_jobs: int,
    *,
    with_images: bool = False,
    device: str = "cpu",
) -> None:
    """Compute the units in processes of one thread; this process alone writes the CSV.

    Args:
        units: what is to be computed.
        pool_file: the embedded pool, which is there.
        file: the CSV of rows.
        n_jobs: processes.
        with_images: write the scores of the test images, too, into a file beside the rows.
        device: that all processes train on.
    """
    left = Counter({(u.regime, u.held_out.name, u.seed): len(u.jobs) for u in units})
    n_steps = sum(steps_of(job) for unit in units for job in unit.jobs)
    started, n_done = time.perf_counter(), 0
    context = multiprocessing.get_context("spawn")
    rows = context.Queue()
    pool = ProcessPoolExecutor(
        min(n_jobs, len(units)), context, initializer=_start_worker, initargs=(rows, device)
    )
    with ExitStack() as open_files, tqdm(total=n_steps, unit="step", disable=None) as bar:
        scores = appending(scores_file_of(file), SCORE_COLUMNS) if with_images else None
        write_scores = open_files.enter_context(scores) if scores else None
        write = open_files.enter_context(appending(file))
        try:
            futures = [pool.submit(_work, unit, pool_file) for unit in units]
            for row in received(rows, futures, sum(left.values())):
                if write_scores:
                    write_scores(row)  # first: a row that is there has its scores
                write(row)
                taken = steps_of(Job(row["method"], row["keep"], row["comparison"]))
                bar.update(taken)
                n_done += taken
                unit = (row["regime"], row["validation"], row["seed"])
                left[unit] -= 1
                if left[unit] == 0:
                    minutes = (time.perf_counter() - started) / 60
                    tqdm.write(
                        f"{unit[0]}, {unit[1]}, seed {unit[2]}: done; {minutes:.1f} min, about "
                        f"{minutes * (n_steps / n_done - 1):.0f} min to go"
                    )
        finally:
            pool.shutdown(cancel_futures=True)


def steps_of(job: Job) -> int:
    """Optimiser steps of a training."""
    n = N_TRAINING
    return training_steps(curated_size(n, job.keep) if job.comparison == SAME_EPOCHS else n)


def received(rows: Any, futures: Sequence[Future[None]], n_rows: int) -> Iterator[dict[str, Any]]:
    """The rows as they come; raises what a worker raised."""
    n_received = 0
    while n_received < n_rows:
        try:
            row = rows.get(timeout=1.0)
        except queue.Empty:
            for future in futures:
                if future.done():
                    future.result()
            continue
        n_received += 1
        yield row


def hours_left(frame: pd.DataFrame, units: Sequence[Unit], n_jobs: int) -> float:
    """Foreseen from the rows that there are, all methods of one set of pairs at least."""
    per_step = frame["training_seconds"].sum() / frame["n_steps"].sum()
    choosing = frame.groupby("method")["seconds"].mean()
    total = 0.0
    for unit in units:
        total += per_step * sum(map(steps_of, unit.jobs))
        once = {j.method for j in unit.jobs if j.method not in BASELINES}
        total += sum(choosing.get(method, 0.0) for method in once)
        each = {(j.method, j.keep) for j in unit.jobs if j.method in BASELINES}
        total += sum(choosing.get(method, 0.0) for method, _ in each)
    return total / n_jobs / 3600


# --- Everything -------------------------------------------------------------------------------


def regime_name(name: str) -> str:
    """The name of a regime that there is."""
    try:
        recipe_of(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def done_in(file: Path, *, with_images: bool) -> set[tuple[Any, ...]]:
    """What has been computed, with the scores of the test images where these are asked for."""
    done = keys_of(read_rows(file))
    return done & set(read_scores(file)) if with_images else done


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, help="Flickr8k: Images, captions.txt, splits.csv")
    parser.add_argument("--work_dir", type=Path, help="where the embedded pool is kept")
    parser.add_argument(
        "--regimes",
        nargs="+",
        type=regime_name,
        default=list(REGIMES),
        help="the seven; hard_20, alt_text_20, mixture, or wrong_N with N percent up to 60",
    )
    parser.add_argument("--keep", nargs="+", type=float, default=list(KEEP), help="shares kept")
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them")
    parser.add_argument(
        "--validation", nargs="+", default=["clean"], help="clean, noisy, clean-100, noisy-30, ..."
    )
    parser.add_argument("--target", default="", help="held-out and test images about this word")
    usual = [name for name, method in METHODS.items() if method.is_default]
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=usual)
    parser.add_argument("--comparisons", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--device", default="cpu", help="that all of them train on: cpu or cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--image_scores",
        action="store_true",
        help="keep what each test image adds to the recall, for resampling (regimes_images.csv)",
    )
    parser.add_argument("--plot_only", action="store_true", help="tables and figure, no training")
    parser.add_argument(
        "--estimate", action="store_true", help="compute one set of pairs, foresee the rest, stop"
    )
    args = parser.parse_args()
    if not args.plot_only and not (args.data_dir and args.work_dir):
        parser.error("--data_dir and --work_dir are needed")
    return args


def main() -> None:
    """Compute what is missing, then tables and figure."""
    args = arguments()
    file = args.out / "regimes.csv"
    labels = {name: variant.label for name, variant in ABLATION.items()}
    about = {
        "command": "python benchmarks/regimes.py --data_dir path/to/flickr8k --work_dir WORK",
        "hardware": hardware(),
        "packages": package_versions(),
    }
    if args.plot_only:
        saved = args.out / "regimes.json"
        if saved.exists():  # where the rows come from
            old = json.loads(saved.read_text())
            about = {key: old[key] for key in about}
        write_reports(read_rows(file), args.out, about, labels)
        return
    pool_file = args.work_dir / "pool.npz"
    load_pool(args.data_dir, pool_file, embedded_encoder)
    if args.estimate:
        one = argparse.Namespace(
            **vars(args)
            | {
                "regimes": args.regimes[:1],
                "keep": args.keep[-1:],
                "seeds": 1,
                "validation": args.validation[:1],
            }
        )
        units = units_of(one, keys_of(read_rows(file)))
        if units:
            compute(units, pool_file, file, 1, device=args.device)
        frame = read_rows(file)
        whole, left = units_of(args, set()), units_of(args, keys_of(frame))
        for name, some in (("all", whole), ("what is left", left)):
            hours = hours_left(frame, some, args.jobs)
            n_trainings = sum(len(u.jobs) for u in some)
            print(f"{name}: {n_trainings} trainings, {hours:.2f} h with {args.jobs} processes")
        return
    units = units_of(args, done_in(file, with_images=args.image_scores))
    if units:
        compute(
            *(units, pool_file, file, args.jobs),
            with_images=args.image_scores,
            device=args.device,
        )
    write_reports(read_rows(file), args.out, about, labels)


def embedded_encoder() -> Encoder:
    """The encoder that every regime is embedded with."""
    return load_encoder(EmbeddingConfig("embedded"), device=torch.device("cpu"))


def write_reports(
    frame: pd.DataFrame, out: Path, about: Mapping[str, Any], labels: Mapping[str, str]
) -> None:
    """The page of clean held-out pairs and seeds of old, and the page of all others."""
    known = (frame["validation"] == CLEAN) & (frame["seed"] < FIRST_FRESH_SEED)
    if known.any():
        write_summary(frame[known], out, about, labels)
    write_validation(frame, out, about, labels, first_seed=FIRST_FRESH_SEED)


if __name__ == "__main__":
    main()

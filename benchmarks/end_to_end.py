"""Do better pairs make better towers? Fine-tunes an image and a text tower on what methods chose.

    python benchmarks/end_to_end.py --data_dir path/to/flickr8k --work_dir WORK

Everything else that is measured here trains heads on frozen features, the same that methods choose
by. Here EfficientNet-Lite0 and a small text transformer are trained whole (`trained_towers.py`), on
the sets of `regimes.py`: a regime and seed decide the pairs, methods choose among them by features,
and every choice is trained as many steps from the same start, so that methods are compared in
pairs. The setting is `large` on CUDA and `small` elsewhere. Choices are kept in WORK, one file
each, made by `--jobs` processes; one training is one row of `end_to_end.csv`, and what is there is
not computed again. `--choose_only` stops before the trainings, `--table_only` makes the table from
the rows alone. Methods are those of `regimes.py`, its variants of InfluenceSpace among them.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import regimes  # first: it puts the project on the path and gives each process one thread

# isort: split
import numpy as np
import pandas as pd
import torch
from end_to_end_report import write_table
from flickr8k_regimes import load_pool, make_regime, recipe_of
from regimes_methods import METHODS, version_of
from regimes_names import ORACLE, RANDOM, RECALLS, RESULTS
from regimes_problem import make_problem, pool_of, test_set_of
from tqdm import tqdm
from trained_towers import (
    SETTINGS,
    Pairs,
    Unseen,
    fine_tuned_recalls,
    load_photographs,
    load_unseen,
)

from artifacts.provenance import stage_rng
from baselines import FULL, INFLUENCESPACE
from encoders.base import EmbeddingConfig
from encoders.pretrained import load_encoder
from learner.config import SAMPLE

RULES = "1"  # to be raised where the towers, a setting, the training or a metric changes
CELLS = ("wrong_20_concentrated:0.8", "wrong_20_concentrated:0.4", "wrong_40:0.6", "clean:0.4")
COMPARED = (FULL, ORACLE, INFLUENCESPACE, "no_influence", "neg_clip_loss", RANDOM)
FAULTLESS = ("clean", "rare_group")  # there the oracle knows nothing that `random` does not
FIRST_SEED, N_SEEDS = 40, 3
LARGE, SMALL = SETTINGS

KEYS = ("regime", "keep", "method", "seed", "version", "setting", "device")
ABOUT = ("dtype", "threads", "n_pairs", "n_steps", "faults_left", "seconds", "training_seconds")
COLUMNS = (*KEYS, "mean_recall", *RECALLS, "first_loss", "last_loss", *ABOUT)


class Job(NamedTuple):
    """One set to be chosen and trained on."""

    regime: str
    seed: int
    keep: float
    method: str

    @property
    def version(self) -> str:
        """What a row of it must say to count."""
        return f"{RULES}.{version_of(self.method)}"

    def file(self, work_dir: Path) -> Path:
        """Where the choice is kept."""
        name = f"{self.regime}-{self.seed}-{self.keep:g}-{self.method}-{version_of(self.method)}"
        return work_dir / "chosen" / f"{name}.npz"


class ChosenPairs(NamedTuple):
    """A method's choice as it is kept: all that a training needs but the photographs."""

    image_rows: np.ndarray  # (m,) of the pool's images
    captions: np.ndarray  # (m,) str
    weights: np.ndarray  # (m,) mean one
    faults_left: np.ndarray  # () share
    seconds: np.ndarray  # () that choosing took


# --- Choosing ---------------------------------------------------------------------------------


def choose(jobs: Sequence[Job], pool_file: Path, work_dir: Path) -> None:
    """Choose and keep the sets of one regime and seed.

    Raises:
        SystemExit: near copies have features and no photographs, or a method draws pairs by
            weights, which these trainings do not.
    """
    regime = make_regime(jobs[0].regime, pool_of(pool_file), jobs[0].seed)
    if (regime.image_rows < 0).any():
        raise SystemExit(f"--cells {jobs[0].regime}: its near copies have no photographs")
    problem = make_problem(regime, jobs[0].seed, test_set_of(pool_file, ""))
    for job in jobs:
        chosen = METHODS[job.method].choose(problem, job.keep, job.seed)
        if chosen.weighting == SAMPLE:
            raise SystemExit(f"--methods {job.method}: weights count in the loss here")
        rows = chosen.rows
        kept = ChosenPairs(
            regime.image_rows[rows],
            np.array([regime.captions[row] for row in rows]),
            np.ones(len(rows)) if chosen.weights is None else chosen.weights,
            np.array((regime.faults[rows] != "").mean()),
            np.array(chosen.seconds),
        )
        file = job.file(work_dir)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part.npz")
        np.savez_compressed(part, **kept._asdict())
        os.replace(part, file)


def choose_all(jobs: Iterable[Job], pool_file: Path, work_dir: Path, n_processes: int) -> None:
    """Choose, in processes of one thread; those of one regime and seed in the same process."""
    units: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        units.setdefault((job.regime, job.seed), []).append(job)
    context = multiprocessing.get_context("spawn")
    n_processes = min(n_processes, len(units))
    starting = {"initializer": regimes._start_worker, "initargs": (None, "cpu")}
    with ProcessPoolExecutor(n_processes, context, **starting) as pool:
        futures = [pool.submit(choose, unit, pool_file, work_dir) for unit in units.values()]
        for future in tqdm(futures, desc="sets of pairs", unit="set", disable=None):
            future.result()


def read_chosen(file: Path) -> ChosenPairs:
    """A choice that was kept."""
    with np.load(file) as saved:
        return ChosenPairs(*(saved[name] for name in ChosenPairs._fields))


# --- Rows -------------------------------------------------------------------------------------


class Trainer(NamedTuple):
    """What all trainings share."""

    photographs: torch.Tensor  # (N, S, S, 3) uint8, on the device
    unseen: Unseen
    setting: str
    work_dir: Path


def row_of(job: Job, trainer: Trainer) -> dict[str, Any]:
    """Train on a choice and measure the towers; a seed decides start, order and crops."""
    chosen, device = read_chosen(job.file(trainer.work_dir)), trainer.photographs.device
    pairs = Pairs(chosen.image_rows, chosen.captions.tolist(), chosen.weights)
    setting, rng = SETTINGS[trainer.setting], stage_rng(job.seed, "end_to_end")
    started = time.perf_counter()
    measured = fine_tuned_recalls(trainer.photographs, pairs, trainer.unseen, setting, rng)
    return {
        **job._asdict(),
        "version": job.version,
        "setting": trainer.setting,
        "device": device_name(device),
        **{column: measured[column] for column in COLUMNS if column in measured},
        "dtype": "bf16" if device.type == "cuda" else "fp32",
        "threads": torch.get_num_threads(),
        "n_pairs": len(pairs.captions),
        "n_steps": setting.n_steps,
        "faults_left": float(chosen.faults_left),
        "seconds": float(chosen.seconds),
        "training_seconds": time.perf_counter() - started,
    }


def device_name(device: torch.device) -> str:
    """The card, or the processor's kind."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} CPU"


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Add a whole line to the CSV, which is made where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    if not file.exists() or file.stat().st_size == 0:
        writer.writerow(COLUMNS)
    cells = [row[column] for column in COLUMNS]
    writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])
    with file.open("a", newline="") as stream:
        stream.write(line.getvalue())


def read_rows(file: Path) -> pd.DataFrame:
    """The rows that count, those of methods in their present version.

    A last line without an end, of a run that was killed as it wrote, is cut off.

    Raises:
        SystemExit: the file has other columns.
    """
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    if not whole:
        return pd.DataFrame(columns=list(COLUMNS))
    frame = pd.read_csv(io.BytesIO(whole), dtype={"version": str})
    if tuple(frame.columns) != COLUMNS:
        raise SystemExit(f"{file} has other columns than this benchmark writes; move it away")
    current = {m: Job("", 0, 1.0, m).version for m in set(frame["method"]) & set(METHODS)}
    counts = frame["version"] == frame["method"].map(current)
    return frame[counts].drop_duplicates(list(KEYS), keep="last").reset_index(drop=True)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """All that is asked for, seed by seed; the oracle only where there are faults."""
    jobs = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for cell in args.cells:
            regime, keep = cell_of(cell)
            for method in args.methods:
                if method != ORACLE or regime not in FAULTLESS:
                    jobs.append(Job(regime, seed, 1.0 if method == FULL else keep, method))
    return list(dict.fromkeys(jobs))


def cell_of(text: str) -> tuple[str, float]:
    """Regime and share kept of `wrong_40:0.6`.

    Raises:
        SystemExit: no such regime, or no share.
    """
    regime, _, keep = text.partition(":")
    try:
        recipe_of(regime)
        if 0 < float(keep) <= 1:
            return regime, float(keep)
    except ValueError:
        pass
    raise SystemExit(f"--cells {text}: a regime and a share kept, such as wrong_40:0.6")


def is_done(job: Job, trainer: Trainer, frame: pd.DataFrame) -> bool:
    """Whether a row of this job, setting and device counts."""
    wanted = {
        **job._asdict(),
        "version": job.version,
        "setting": trainer.setting,
        "device": device_name(trainer.photographs.device),
    }
    return bool(np.all([frame[key] == wanted[key] for key in KEYS], axis=0).any())


def compute(jobs: Sequence[Job], trainer: Trainer, file: Path) -> int:
    """Train what has no row yet, appending rows as they come; how many there were."""
    frame = read_rows(file)
    missing = [job for job in jobs if not is_done(job, trainer, frame)]
    for job in tqdm(missing, desc="trainings", unit="training", disable=None):
        append_row(file, row_of(job, trainer))
    return len(missing)


# --- Everything -------------------------------------------------------------------------------


def chosen_device(name: str) -> torch.device:
    """The device asked for; `auto` is CUDA where it is there.

    Raises:
        SystemExit: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no CUDA device; --device cpu trains without")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", type=Path, help="Flickr8k: Images, captions.txt, splits.csv")
    parser.add_argument("--work_dir", type=Path, help="for embedded pool, photographs and choices")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), help="regime:share kept")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(COMPARED))
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED, help="the first of them")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--setting", choices=list(SETTINGS), help="large on CUDA, else small")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes that choose; threads that train"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--choose_only", action="store_true", help="choose and train nothing")
    parser.add_argument("--table_only", action="store_true", help="the table, no training")
    args = parser.parse_args(given)
    if not args.table_only and not (args.data_dir and args.work_dir):
        parser.error("--data_dir and --work_dir are needed")
    return args


def main() -> None:
    """Choose, train what is missing, then the table."""
    args = arguments()
    file = args.out / "end_to_end.csv"
    if args.table_only:
        write_table(read_rows(file), args.out)
        return
    device, jobs = chosen_device(args.device), jobs_of(args)
    missing = [job for job in jobs if not job.file(args.work_dir).exists()]
    if missing:
        pool_file, config = args.work_dir / "pool.npz", EmbeddingConfig("embedded")
        load_pool(
            args.data_dir, pool_file, lambda: load_encoder(config, device=torch.device("cpu"))
        )
        choose_all(missing, pool_file, args.work_dir, args.jobs)
    if args.choose_only:
        return
    torch.set_num_threads(args.jobs)
    setting = args.setting or (LARGE if device.type == "cuda" else SMALL)
    side = SETTINGS[setting].stored_side
    pixels = load_photographs(args.data_dir, args.work_dir / f"photographs_{side}.npz", side)
    photographs = torch.from_numpy(pixels).to(device)
    trainer = Trainer(photographs, load_unseen(args.data_dir), setting, args.work_dir)
    compute(jobs, trainer, file)
    write_table(read_rows(file), args.out)


if __name__ == "__main__":
    main()

"""Seconds and memory of every stage, from embeddings given to the curated set, at several sizes.

    python benchmarks/scale.py --work_dir WORK --sizes 100000 1000000

Embeddings of n pairs are made shard by shard (`scale_data.py`), the program curates them as a
process of its own, and its anonymous memory (RssAnon, its children's included) is read from /proc
five times a second. Results are added to benchmarks/results/scale.json; a run of the same size,
engine and workers replaces the earlier one. Written besides: the table as scale.md, and the figure.

`--engine ray --workers N` measures the other engine. `--kill 3` kills three runs, each at a random
moment, starts them again and compares with an undisturbed run, which must have been measured
before. `--plan` and `--render` measure nothing. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scale_data import FAULTS, GOOD, WRONG_CAPTION, Planting, read_truth, rows_of, write_embeddings
from scale_report import draw, filled, groups, plan_markdown, render, short_table

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from artifacts.provenance import STAGES, hardware

RESULTS = ROOT / "benchmarks/results"
FIGURE = ROOT / "docs/scaling.png"
DOCUMENT = ROOT / "docs/scaling.md"
README = ROOT / "README.md"
SIZES = (100_000, 1_000_000)
N_CLUSTERS = 1000
KEPT_SHARE = 0.8
SAMPLE_SECONDS = 0.2
MIB = 1024**2
FLAGS = ("--max_train_samples", "all", "--methods", "none", "--no_report", "--device", "cpu")


# --- Memory ---------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Anonymous memory of a process and its descendants at one moment."""

    time: float  # seconds since the epoch
    n_bytes: int
    n_processes: int
    cpu_seconds: float = 0.0  # so far, of those that are there and of children that have ended


def rss_anon(pid: int) -> int | None:
    """Anonymous resident memory of one process, bytes; None where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None  # a process that has ended has none


def cpu_seconds(pid: int) -> float:
    """Processor time of one process and its ended children so far; 0 where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    ticks = stat.rpartition(")")[2].split()[11:15]  # user, system, and the children's
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def parents() -> dict[int, int]:
    """The parent of every process that there is."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for child, parent in parents().items():
        children.setdefault(parent, []).append(child)
    members = [pid]
    for member in members:  # which grows on the way
        members += children.get(member, ())
    return members


def sample(pid: int) -> Sample:
    """The memory of a process and its descendants now."""
    members = family(pid)
    found = [n for member in members if (n := rss_anon(member)) is not None]
    return Sample(time.time(), sum(found), len(found), sum(map(cpu_seconds, members)))


class Sampler(threading.Thread):
    """Samples a process until it is told to stop."""

    def __init__(self, pid: int, seconds: float = SAMPLE_SECONDS) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._pid, self._seconds, self._stop_asked = pid, seconds, threading.Event()

    def run(self) -> None:
        """Sample at once, then again and again."""
        while True:
            self.samples.append(sample(self._pid))
            if self._stop_asked.wait(self._seconds):
                return

    def finish(self) -> list[Sample]:
        """Stop, and what was seen."""
        self._stop_asked.set()
        self.join()
        return self.samples


# --- Stages ---------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """What a run did up to the end of a stage, from the end of the one before."""

    name: str
    start: float  # seconds since the epoch
    stop: float
    computing_seconds: float | None  # the stage's own, saving left out; None for what is no stage


def phases(output: Path, started: float, ended: float) -> list[Phase]:
    """The stages of a finished run in their order, by when their manifests were written."""
    seconds = json.loads((output / "run.json").read_text())["seconds"]
    found, start = [], started
    ends = {}
    for stage in STAGES:
        manifest = output / stage.folder / stage.manifest
        if manifest.exists() and stage.name in seconds:
            ends[stage.name] = manifest.stat().st_mtime
    for name, stop in sorted(ends.items(), key=lambda item: item[1]):
        found.append(Phase(name, start, stop, float(seconds[name])))
        start = stop
    return [*found, Phase("results", start, ended, None)]


def measured(phase: Phase, samples: Sequence[Sample]) -> dict[str, Any]:
    """Seconds of a phase and the most memory seen in it."""
    inside = [s for s in samples if phase.start <= s.time <= phase.stop]
    seen, used = [s.n_bytes for s in inside], [s.cpu_seconds for s in inside]
    return {
        "stage": phase.name,
        "seconds": round(phase.stop - phase.start, 2),
        # Where others use the machine too, these say what a stage costs.
        "cpu_seconds": round(max(used) - min(used), 2) if used else None,
        "computing_seconds": phase.computing_seconds,
        "peak_rss_anon_mib": round(max(seen) / MIB, 1) if seen else None,
    }


# --- Runs -----------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A run of the program."""

    planting: Planting
    folder: Path  # of the embeddings and what is planted
    output: Path
    n_clusters: int
    engine: str
    workers: int | None

    def command(self, *more: str) -> list[str]:
        """The command line; engine flags only where an engine other than the default is asked."""
        command = [sys.executable, str(ROOT / "main.py"), *FLAGS, "--n_clusters"]
        command += [str(self.n_clusters), "--embeddings_dir", str(self.folder / "embeddings")]
        command += ["--output_dir", str(self.output), "--target_size_ratio", str(KEPT_SHARE)]
        if self.engine != "local":
            command += ["--engine", self.engine]
        if self.workers is not None:
            command += ["--workers", str(self.workers)]
        return [*command, *more]

    def key(self) -> dict[str, Any]:
        """What tells it from other runs."""
        workers = self.workers
        return {"n": self.planting.n, "engine": self.engine, "workers": workers}


def run(job: Job) -> dict[str, Any]:
    """Curate into a new folder: seconds and memory by stage, faults caught.

    Raises:
        SystemExit: the program ended with an error.
    """
    shutil.rmtree(job.output, ignore_errors=True)
    started = time.time()
    process = start(job)
    sampler = Sampler(process.pid)
    sampler.start()
    status = process.wait()
    ended, samples = time.time(), sampler.finish()
    if status != 0:
        raise SystemExit(f"the program ended with status {status}; see {log_of(job)}")
    stages = [measured(phase, samples) for phase in phases(job.output, started, ended)]
    return {
        **job.key(),
        "width": job.planting.width,
        "n_clusters": job.n_clusters,
        "total_seconds": round(ended - started, 2),
        "cpu_seconds": round(max(s.cpu_seconds for s in samples), 2),
        "peak_rss_anon_mib": round(max(s.n_bytes for s in samples) / MIB, 1),
        "most_processes": max(s.n_processes for s in samples),
        "load_average": round(os.getloadavg()[1], 2),
        "stages": stages,
        "input_bytes": bytes_in(job.folder / "embeddings"),
        "output_bytes": bytes_in(job.output),
        "caught": caught(job),
    }


def log_of(job: Job) -> Path:
    """Where the program's output goes."""
    return job.output.with_suffix(".txt")


def start(job: Job, *more: str) -> subprocess.Popen[bytes]:
    """The program, in a process group of its own."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(job), "ab") as log:
        return subprocess.Popen(job.command(*more), stdout=log, stderr=log, start_new_session=True)


def bytes_in(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def caught(job: Job) -> dict[str, Any]:
    """Of every kind of training pair: how many there are, the curation drops, CLIP score drops."""
    columns = ["key", "split", "status", "decision"]
    ledger = pd.read_parquet(job.output / "stage3/ledger.parquet", columns=columns)
    training = ledger[(ledger["split"] == "train") & (ledger["status"] == "read")]
    truth = read_truth(job.folder)[rows_of(training["key"].tolist())]
    dropped = (training["decision"] == "dropped").to_numpy()
    scores = np.load(job.output / "stage1/clip_scores.npy", mmap_mode="r")
    by_score = np.zeros(len(truth), dtype=bool)
    by_score[np.argsort(scores, kind="stable")[: int(dropped.sum())]] = True
    held_out = ledger[ledger["split"] != "train"]
    planted = read_truth(job.folder)[rows_of(held_out["key"].tolist())]
    kinds = {
        name: {
            "in_data": int((member := truth == kind).sum()),
            "dropped": int((dropped & member).sum()),
            "dropped_by_clip_score": int((by_score & member).sum()),
        }
        for kind, name in {GOOD: "good", **FAULTS}.items()
    }
    return {
        "n_train": len(truth),
        "n_dropped": int(dropped.sum()),
        "wrong_held_out": float((planted == WRONG_CAPTION).mean()) if len(planted) else 0.0,
        "kinds": kinds,
    }


# --- A kill ---------------------------------------------------------------------------------------


def kill_and_go_on(job: Job, undisturbed: Mapping[str, Any], rng: np.random.Generator) -> Any:
    """Kill a run at a random moment, start it again: what it repeats, and whether all is the same.

    Args:
        job: its output folder holds the undisturbed run.
        undisturbed: what that run took.
        rng: draws the moment.
    """
    again = job._replace(output=job.output.with_name(f"{job.output.name}_killed"))
    shutil.rmtree(again.output, ignore_errors=True)
    moment = float(rng.uniform(0.02, 0.98)) * undisturbed["total_seconds"]
    first = start(again)
    try:
        first.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    before = manifests(again.output)
    started = time.time()
    if (status := start(again, "--load_saved").wait()) != 0:
        raise SystemExit(f"the second start ended with status {status}; see {log_of(again)}")
    second = time.time() - started
    after = manifests(again.output)
    name = "stage3/curated_indices.npy"
    return {
        "killed_after_seconds": round(moment, 2),
        "was_running": running_at(moment, undisturbed["stages"]),
        "second_start_seconds": round(second, 2),
        # Beyond what an undisturbed run takes; starting up again is part of it.
        "repeated_seconds": round(moment + second - undisturbed["total_seconds"], 2),
        "manifests_before": len(before),
        "written_again": sorted(name for name, at in before.items() if after.get(name) != at),
        "same_curated_set": (again.output / name).read_bytes() == (job.output / name).read_bytes(),
    }


def manifests(output: Path) -> dict[str, int]:
    """When each manifest of finished work was written, of stages and of shards, by path."""
    found = {}
    for path in output.rglob("*manifest*.json"):
        try:
            found[path.relative_to(output).as_posix()] = path.stat().st_mtime_ns
        except FileNotFoundError:  # while the program runs
            continue
    return found


def running_at(moment: float, stages: Sequence[Mapping[str, Any]]) -> str:
    """The stage in which a moment of the undisturbed run lies."""
    ends = np.cumsum([stage["seconds"] for stage in stages])
    return str(stages[min(int(np.searchsorted(ends, moment)), len(stages) - 1)]["stage"])


# --- The command ----------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Cores, memory and versions; nothing that names the machine."""
    meminfo = Path("/proc/meminfo").read_text()
    total = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    about = {**hardware(), "cpu_cores": len(os.sched_getaffinity(0))}
    return about | {"memory_gib": round(int(total.group(1)) / 1024**2, 1) if total else None}


def put(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with one more, in the place of an earlier one of the same run."""
    names = ("n", "engine", "workers")
    others = [r for r in rows if any(r[name] != row[name] for name in names)]
    return sorted([*others, row], key=lambda r: (r["engine"], r["workers"] or 0, r["n"]))


def measure(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Every size asked for, into the results, which are saved after each."""
    for n in args.sizes:
        planting = Planting(n, width=args.width, seed=args.seed)
        folder = args.work_dir / f"pairs_{n}"
        write_embeddings(planting, folder)
        name = f"curated_{n}_{args.engine}" + (f"_{args.workers}" if args.workers else "")
        job = Job(
            *(planting, folder, args.work_dir / name, min(args.n_clusters, n // 100)),
            *(args.engine, args.workers),
        )
        if args.kill:
            earlier = [r for r in results["runs"] if all(r[k] == v for k, v in job.key().items())]
            if not earlier or not job.output.is_dir():
                raise SystemExit(
                    f"--kill needs the undisturbed run of {n:,} pairs: measure it first"
                )
            rng = np.random.default_rng((args.seed, n))
            kills = [kill_and_go_on(job, earlier[0], rng) for _ in range(args.kill)]
            row = {**earlier[0], "kills": kills}
        else:
            row = run(job)
        results["runs"] = put(results["runs"], row)
        save(args.result_dir, results)
        print(json.dumps({k: v for k, v in row.items() if k != "stages"}))


def save(folder: Path, results: Mapping[str, Any]) -> None:
    """The results, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "scale.md").write_text(render(results))


def document(results: Mapping[str, Any], figure: Path) -> None:
    """Draw the figure, and put it, the tables and the plan into docs/scaling.md."""
    draw(results, figure)
    shown = "![Seconds of every stage, and the most memory, by the number of pairs](scaling.png)"
    sections = {"measured": f"{render(results)}\n{shown}", "plan": planned(results)}
    _fill(DOCUMENT, sections)
    local = groups(results).get(("local", None))
    if local:
        _fill(README, {"scale": short_table(local)})


def _fill(path: Path, sections: Mapping[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(filled(text, sections), encoding="utf-8")


def planned(results: Mapping[str, Any]) -> str:
    """The plan, or why there is none."""
    try:
        return plan_markdown(results)
    except ValueError as error:
        return f"There is none yet: {error}."


def main() -> None:
    """Measure, save, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, help="for embeddings and curated sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="pairs")
    parser.add_argument("--width", type=int, default=512, help="of an embedding (default: 512)")
    parser.add_argument("--n_clusters", type=int, default=N_CLUSTERS)
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and of the kills")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, help="of the engine")
    parser.add_argument("--kill", type=int, metavar="TIMES", default=0, help="kill this often")
    parser.add_argument("--render", action="store_true", help="only draw and print what is saved")
    parser.add_argument("--plan", action="store_true", help="only print the plan for larger sizes")
    parser.add_argument(
        "--result_dir", type=Path, default=RESULTS, help="the default also fills docs/scaling.md"
    )
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args()
    path = args.result_dir / "scale.json"
    results = json.loads(path.read_text()) if path.exists() else {"runs": []}
    if args.plan:
        print(planned(results))
        return
    if not args.render:
        if args.work_dir is None:
            parser.error("--work_dir is needed: some 12 GB for a million pairs")
        results["command"] = "python benchmarks/scale.py --work_dir WORK"
        results["machine"] = machine()
        measure(args, results)
    save(args.result_dir, results)
    if args.result_dir == RESULTS:
        document(results, args.figure)
    else:
        draw(results, args.figure)
    print(render(results))


if __name__ == "__main__":
    main()

"""What `scale.py` has measured, as a table and a figure, and what it says of larger sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

Run = Mapping[str, Any]
GIB = 1024**3
HOUR = 3600.0
PLANNED = (12_800_000, 128_000_000, 1_280_000_000)
# Stages whose work is spread over shards or independent trainings; the others stay on one machine.
PARALLEL = ("embedding", "clustering", "trust", "influence", "pair_influence")
SMALL_SECONDS = 1.0  # a stage below this at the smaller size has no exponent: it is overhead
MACHINES = (1, 16, 64)
CORES_A_MACHINE, MEMORY_A_MACHINE = 32, 128  # of the cluster that is planned with; cores, GiB


# --- Exponents ------------------------------------------------------------------------------------


def exponent(small: float, large: float, n_small: int, n_large: int) -> float | None:
    """The b of seconds = a n^b between two sizes; None where a cost is too small to say."""
    if small < SMALL_SECONDS or large <= 0:
        return None
    return math.log(large / small) / math.log(n_large / n_small)


def by_stage(run: Run, name: str) -> dict[str, Any]:
    """A number of every stage of a run, by the stage's name."""
    return {stage["stage"]: stage.get(name) for stage in run["stages"]}


def groups(results: Mapping[str, Any]) -> dict[tuple[str, int | None], list[Run]]:
    """The runs of each engine and number of workers, by rising size."""
    found: dict[tuple[str, int | None], list[Run]] = {}
    for run in sorted(results["runs"], key=lambda run: run["n"]):
        found.setdefault((run["engine"], run["workers"]), []).append(run)
    return found


# --- The page -------------------------------------------------------------------------------------


def render(results: Mapping[str, Any]) -> str:
    """Tables of all that was measured."""
    if not results["runs"]:
        return "Nothing is measured.\n"
    m = results["machine"]
    parts = [
        f"`{results['command']}`, {m['cpu_cores']} CPU cores, {m['memory_gib']} GiB of memory. "
        "Seconds of a stage run from the end of the one before to its own end, saving included. "
        "Memory is the most anonymous memory (RssAnon) of the program and its children."
    ]
    for (engine, workers), runs in groups(results).items():
        title = engine + (f", {workers} workers" if workers else "")
        parts += [f"**Engine {title}**", stage_table(runs)]
    parts += ["**Planted faults dropped**", fault_table(results["runs"])]
    if any("kills" in run for run in results["runs"]):
        parts += ["**Killed and started again**", kill_table(results["runs"])]
    return "\n\n".join(parts) + "\n"


def filled(document: str, sections: Mapping[str, str]) -> str:
    """A document with the text between its markers replaced, `<!-- name: begin -->` and `end`.

    Raises:
        ValueError: a section has no markers.
    """
    for name, text in sections.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        if begin not in document or end not in document:
            raise ValueError(f"there is no section {name} to fill")
        before, _, rest = document.partition(begin)
        document = f"{before}{begin}{text.strip()}\n{end}{rest.partition(end)[2]}"
    return document


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def short_table(runs: Sequence[Run]) -> str:
    """A row a size: seconds of the stages, memory, and what was caught; for the README."""
    groups = {
        "read": ("embedding",),
        "cluster": ("clustering",),
        "trust": ("trust",),
        "clusters' influence": ("influence",),
        "pairs' influence": ("pair_influence",),
        "curate": ("curation", "ledger", "results"),
    }
    header = ["pairs", *groups, "all", "CPU", "memory", "wrong captions dropped", "by CLIP score"]
    rows = []
    for run in runs:
        seconds = by_stage(run, "seconds")
        wrong = run["caught"]["kinds"]["wrong caption"]
        rows.append(
            [
                f"{run['n']:,}",
                *(f"{sum(seconds.get(n) or 0 for n in names):,.0f} s" for names in groups.values()),
                f"{run['total_seconds'] / 60:,.1f} min",
                f"{run['cpu_seconds'] / 60:,.1f} min",
                f"{run['peak_rss_anon_mib'] / 1024:,.1f} GiB",
                *(
                    _share(wrong[name], wrong["in_data"], 2)
                    for name in ("dropped", "dropped_by_clip_score")
                ),
            ]
        )
    return table(header, rows)


def stage_table(runs: Sequence[Run]) -> str:
    """A row a stage: seconds and memory at every size, exponent between the last two.

    The exponent is that of processor time, which does not depend on who else uses the machine.
    """
    header = ["stage"]
    for run in runs:
        header += [f"{run['n']:,}: s", "CPU s", "MiB"]
    header += ["exponent"] if len(runs) > 1 else []
    rows = []
    for name in by_stage(runs[-1], "seconds"):
        columns = [
            [by_stage(run, key).get(name) for run in runs]
            for key in ("seconds", "cpu_seconds", "peak_rss_anon_mib")
        ]
        rows.append(_stage_row(name, columns, runs))
    totals = [
        [run.get(key) for run in runs]
        for key in ("total_seconds", "cpu_seconds", "peak_rss_anon_mib")
    ]
    rows.append(_stage_row("all", totals, runs))
    return table(header, rows)


def _stage_row(
    name: str, columns: Sequence[Sequence[float | None]], runs: Sequence[Run]
) -> list[str]:
    """`columns` are seconds, processor seconds and memory, of every run."""
    row = [name.replace("_", " ")]
    for values in zip(*columns, strict=True):
        row += ["–" if value is None else f"{value:,.0f}" for value in values]
    if len(runs) > 1:
        small, large = columns[1][-2:]
        b = exponent(small or 0.0, large or 0.0, runs[-2]["n"], runs[-1]["n"])
        row.append("–" if b is None else f"{b:.2f}")
    return row


def fault_table(runs: Sequence[Run]) -> str:
    """A row a run: which share of each planted fault was dropped, and CLIP score's beside it."""
    kinds = list(runs[0]["caught"]["kinds"])
    header = ["run", "training pairs", "kept", "held-out captions wrong"]
    header += [text for kind in kinds for text in (kind, "by CLIP score")]
    rows = []
    for run in runs:
        caught = run["caught"]
        n, dropped = caught["n_train"], caught["n_dropped"]
        row = [
            _label(run),
            f"{n:,}",
            _share(n - dropped, n),
            f"{100 * caught['wrong_held_out']:.1f} %",
        ]
        for kind in kinds:
            found = caught["kinds"][kind]
            for name in ("dropped", "dropped_by_clip_score"):
                row.append(_share(found[name], found["in_data"], 2))
        rows.append(row)
    return table(header, rows)


def kill_table(runs: Sequence[Run]) -> str:
    """A row a kill: when, what the second start took, and what was done twice."""
    header = ["run", "killed after (s)", "in", "second start (s)", "repeated (s)"]
    header += ["written again", "same curated set"]
    rows = [
        [
            *(_label(run), f"{kill['killed_after_seconds']:,.0f}", kill["was_running"]),
            f"{kill['second_start_seconds']:,.0f}",
            f"{kill['repeated_seconds']:,.1f}",
            f"{len(kill['written_again'])} of {kill['manifests_before']}",
            "yes" if kill["same_curated_set"] else "**no**",
        ]
        for run in runs
        for kill in run.get("kills", ())
    ]
    return table(header, rows)


def _label(run: Run) -> str:
    engine = "" if run["engine"] == "local" else f", {run['engine']}"
    return f"{run['n']:,}{engine}" + (f" {run['workers']}" if run["workers"] else "")


def _share(part: float, whole: float, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f} %" if whole else "–"


# --- The figure -----------------------------------------------------------------------------------


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Seconds of the stages against n, both logarithmic, and the peak of memory."""
    if not results["runs"]:
        return
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for (engine, workers), runs in groups(results).items():
        name = engine + (f" {workers}" if workers else "")
        sizes = [run["n"] for run in runs]
        if engine == "local":
            for stage in by_stage(runs[-1], "seconds"):
                points = [by_stage(run, "seconds").get(stage, math.nan) for run in runs]
                if max(points) >= SMALL_SECONDS:
                    seconds.plot(sizes, points, marker="o", label=stage.replace("_", " "))
        totals = [run["total_seconds"] for run in runs]
        style = "k" if engine == "local" else "k--"
        seconds.plot(sizes, totals, style, marker="s", linewidth=2, label=f"all, {name}")
        peaks = [run["peak_rss_anon_mib"] / 1024 for run in runs]
        memory.plot(sizes, peaks, style, marker="s", label=name)
    seconds.set(xscale="log", yscale="log", ylabel="seconds", title="Seconds by stage")
    memory.set(xscale="log", ylabel="GiB", title="Most anonymous memory (RssAnon)")
    memory.set_ylim(bottom=0)
    for axes in (seconds, memory):
        axes.set_xlabel("pairs")
        axes.grid(alpha=0.3)
    memory.legend(fontsize=8)
    figure.legend(*seconds.get_legend_handles_labels(), loc="outside left center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140, metadata={"Software": None})


# --- The plan -------------------------------------------------------------------------------------


class Costs(NamedTuple):
    """What larger sizes are reckoned from: two measured sizes of the local engine."""

    n: int  # of the larger one
    cores: int
    parallel_seconds: float  # at n, of stages that are spread
    serial_seconds: float
    parallel_exponent: float  # at least one: nothing gets cheaper by the pair
    serial_exponent: float
    fixed_bytes: float  # anonymous memory without a pair
    bytes_a_pair: float  # of anonymous memory
    input_bytes: float  # on disk, a pair
    output_bytes: float


class Planned(NamedTuple):
    """What one size takes."""

    n: int
    core_hours: float  # of what is spread
    serial_hours: float
    hours: dict[int, float]  # by number of machines
    input_bytes: float
    output_bytes: float
    memory_bytes: float  # anonymous, of the machine that holds vectors of n


def costs(results: Mapping[str, Any]) -> Costs:
    """Costs from the two largest runs of the local engine.

    Raises:
        ValueError: fewer than two sizes were measured.
    """
    runs = [run for run in results["runs"] if run["engine"] == "local"]
    runs = sorted(runs, key=lambda run: run["n"])[-2:]
    if len(runs) < 2 or runs[0]["n"] == runs[1]["n"]:
        raise ValueError("a plan needs two sizes of the local engine")
    (spread_before, serial_before), (spread, serial) = (_split_seconds(run) for run in runs)
    small, large = runs[0]["n"], runs[1]["n"]
    memory = [run["peak_rss_anon_mib"] * 1024**2 for run in runs]
    slope = max(0.0, (memory[1] - memory[0]) / (large - small))
    return Costs(
        n=large,
        cores=results["machine"]["cpu_cores"],
        parallel_seconds=spread,
        serial_seconds=serial,
        parallel_exponent=max(1.0, exponent(spread_before, spread, small, large) or 1.0),
        serial_exponent=max(1.0, exponent(serial_before, serial, small, large) or 1.0),
        fixed_bytes=max(0.0, memory[1] - slope * large),
        bytes_a_pair=slope,
        input_bytes=runs[1]["input_bytes"] / large,
        output_bytes=runs[1]["output_bytes"] / large,
    )


def _split_seconds(run: Run) -> tuple[float, float]:
    """Seconds of what can be spread over machines, and of what cannot."""
    seconds = by_stage(run, "seconds")
    spread = sum(s for name, s in seconds.items() if name in PARALLEL)
    return spread, sum(seconds.values()) - spread


def plan(known: Costs, n: int, cores: int = CORES_A_MACHINE) -> Planned:
    """What n pairs take, reckoned from measured costs.

        seconds(n) = seconds(n0) (n / n0)^max(1, b)

    What is spread is taken to scale with the cores, as long as there are shards enough.

    Args:
        known: from `costs`.
        n: pairs.
        cores: of a machine of the cluster.
    """
    growth = n / known.n
    spread = known.parallel_seconds * growth**known.parallel_exponent
    serial = known.serial_seconds * growth**known.serial_exponent / HOUR
    core_hours = spread * known.cores / HOUR
    return Planned(
        *(n, core_hours, serial),
        {machines: core_hours / (machines * cores) + serial for machines in MACHINES},
        *(known.input_bytes * n, known.output_bytes * n),
        known.fixed_bytes + known.bytes_a_pair * n,
    )


def largest(known: Costs, memory_bytes: float) -> int:
    """The most pairs whose vectors of n a machine of this memory holds."""
    if known.bytes_a_pair <= 0:
        raise ValueError("memory did not grow between the sizes that were measured")
    return max(0, int((memory_bytes - known.fixed_bytes) / known.bytes_a_pair))


def plan_markdown(results: Mapping[str, Any], sizes: Sequence[int] = PLANNED) -> str:
    """The plan as a table and two sentences."""
    known = costs(results)
    header = ["pairs", "core hours spread", "serial hours"]
    header += [f"hours on {m} × {CORES_A_MACHINE} cores" for m in MACHINES]
    header += ["embeddings (TB)", "output (TB)", "memory for vectors of n (GiB)"]
    rows = []
    for n in sizes:
        p = plan(known, n)
        rows.append(
            [
                *(f"{n:,}", f"{p.core_hours:,.0f}", f"{p.serial_hours:,.1f}"),
                *(f"{p.hours[m]:,.1f}" for m in MACHINES),
                *(f"{p.input_bytes / 1e12:,.2f}", f"{p.output_bytes / 1e12:,.2f}"),
                f"{p.memory_bytes / GIB:,.0f}",
            ]
        )
    told = (
        f"Reckoned from {known.n:,} pairs on {known.cores} cores: exponents "
        f"{known.parallel_exponent:.2f} (spread) and {known.serial_exponent:.2f} (serial), "
        f"{known.bytes_a_pair:,.0f} bytes of anonymous memory a pair and "
        f"{known.fixed_bytes / GIB:.1f} GiB without any."
    )
    if known.bytes_a_pair > 0:
        n = largest(known, MEMORY_A_MACHINE * GIB)
        told += f" A machine of {MEMORY_A_MACHINE} GiB holds the vectors of {n:,} pairs."
    return f"{table(header, rows)}\n\n{told}"

"""What `gpu.py` measured: rows kept in JSON, tables of them as Markdown beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sources.processes import LEAST_IMAGES

NOT_RUN = "not run: no CUDA device"
TOLD = ("name", "pairs_a_second", "a_second", "seconds", "whole_stage_seconds", "gpu_busy")
TOLD += ("gpu_peak_mib", "decoded_by")
HEADS = {
    "name": "",
    "pairs_a_second": "pairs a second",
    "a_second": "a second",
    "seconds": "seconds",
    "whole_stage_seconds": "whole stage, seconds",
    "gpu_busy": "GPU busy",
    "gpu_peak_mib": "GPU memory, MiB",
    "decoded_by": "decoded by",
    "linear": "of linear",
}
TITLES = {
    "decoding": "Decoding alone",
    "encoder": "The encoder alone",
    "together": "Both together: stage 1",
    "stage2": "Stage 2",
}
SMALL = "Tried out with `--small`, a narrow encoder: no rows to quote."
FEW = (
    f"Fewer than {LEAST_IMAGES:,} images are decoded by threads, others by processes; rows of the "
    "one say nothing of the other."
)
Row = Mapping[str, Any]


def check_results(results: Path, *, small: bool) -> None:
    """Look whether rows, of a narrow encoder or not, can be added to those of a file.

    Raises:
        ValueError: they cannot.
    """
    if not results.exists():
        return
    try:
        rows = [row for block in json.loads(results.read_text()).values() for row in block]
        kinds = {bool(row.get("small")) for row in rows}
    except (OSError, ValueError, AttributeError, TypeError):
        raise ValueError(f"{results} holds no results of this program; give another") from None
    if (not small) in kinds:
        whose = "without" if small else "of"
        raise ValueError(f"{results} holds results {whose} --small; give another file")


def add_rows(results: Path, block: str, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    """Put rows in the place of those of the same name, and write the tables anew.

    That a device was not there is forgotten as soon as it has a row.
    """
    found = json.loads(results.read_text()) if results.exists() else {}
    old = {row["name"]: row for row in found.get(block, [])}
    for row in rows:
        if "not_run" not in row:
            if "not_run" in old.get(row["device"], {}):
                del old[row["device"]]
            old[row["name"]] = {**row, "machine": machine}
        elif all(o.get("device") != row["name"] for o in old.values()):
            old[row["name"]] = dict(row)
    found[block] = list(old.values())
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(found, indent=1) + "\n")
    results.with_suffix(".md").write_text(render(results))


def render(results: Path) -> str:
    """All blocks as tables."""
    found = json.loads(results.read_text())
    every = [row for rows in found.values() for row in rows]
    is_small = any(row.get("small") for row in every)
    command = "`python benchmarks/gpu.py --small`" if is_small else "`python benchmarks/gpu.py`"
    lines = ["# A GPU kept busy", "", command, *_machines(found)]
    if is_small:
        lines += ["", SMALL]
    for block, title in TITLES.items():
        if block in found:
            rows = _linear(found[block]) if block == "decoding" else found[block]
            lines += ["", f"## {title}", "", *_table(rows)]
            if any(row.get("decoded_by") == "threads" for row in rows):
                lines += ["", FEW]
    if told := shares(found):
        lines += ["", *told]
    return "\n".join(lines) + "\n"


def _machines(found: Mapping[str, Sequence[Row]]) -> list[str]:
    seen = {
        f"- {m['gpu'] or 'no GPU'}, {m['cores_allowed']} processor cores, PyTorch {m['torch']}, "
        f"Python {m['python']}"
        for rows in found.values()
        for row in rows
        if (m := row.get("machine"))
    }
    return ["", *sorted(seen)]


def _linear(rows: Sequence[Row]) -> list[Row]:
    """The rows of decoding with their share of what as many times the fewest cores would do.

    What threads decode is not compared with what processes do.
    """
    least: dict[Any, Row] = {}
    for row in sorted((r for r in rows if "cores" in r), key=lambda r: int(r["cores"])):
        least.setdefault(row.get("decoded_by"), row)

    def share(row: Row) -> str:
        fewest = least[row.get("decoded_by")]
        one = fewest["pairs_a_second"] / fewest["cores"]
        return f"{row['pairs_a_second'] / one / row['cores']:.0%}"

    return [{**row, "linear": share(row)} if "cores" in row else row for row in rows]


def _table(rows: Sequence[Row]) -> list[str]:
    parts = list(dict.fromkeys(name for row in rows for name in row.get("parts", ())))
    names = [n for n in (*TOLD, "linear") if any(row.get(n) is not None for row in rows)]
    heads = [HEADS[name] for name in names] + [part.replace("_", " ") for part in parts]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        name = f"{row['name']}, small" if row.get("small") else row["name"]
        cells = [name, *(_cell(column, row.get(column)) for column in names[1:])]
        cells += [_cell("seconds", row.get("parts", {}).get(part)) for part in parts]
        if "not_run" in row:
            cells = [name, row["not_run"], *[""] * (len(heads) - 2)][: max(len(heads), 2)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "gpu_busy":
        return f"{value:.0%}"
    if name in ("pairs_a_second", "a_second", "gpu_peak_mib"):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def shares(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """Stage 1's speed beside that of the slower of decoding alone and the encoder alone.

    The encoder's is that of both its towers one after the other, at their best batch sizes.
    """
    lines = []
    for row in found.get("together", []):
        if "not_run" in row:
            continue
        device = row["device"]
        alone = [r for r in found.get("encoder", []) if r.get("device") == device]
        decoding = [r for r in found.get("decoding", []) if r.get("device") == device]
        best = [_best(alone, side) for side in ("images on", "captions of")]
        if not decoding or not all(best):
            continue
        encoder = 1 / sum(1 / speed for speed in best)
        read = max(float(r["pairs_a_second"]) for r in decoding)
        share = row["pairs_a_second"] / min(encoder, read)
        lines.append(
            f"Stage 1 on {device}: {row['pairs_a_second']:,.0f} pairs a second, {share:.2f} of the "
            f"slower of decoding alone ({read:,.0f}) and the encoder alone ({encoder:,.0f})."
        )
    return lines


def _best(rows: Sequence[Row], start: str) -> float:
    return max((float(r["a_second"]) for r in rows if r["what"].startswith(start)), default=0.0)

"""What `gpu.py` measured: rows kept in JSON, tables of them as Markdown beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOT_RUN = "not run: no CUDA device"
TOLD = ("name", "pairs_a_second", "a_second", "seconds", "whole_stage_seconds", "gpu_busy")
TOLD += ("gpu_peak_mib",)
HEADS = {
    "name": "",
    "pairs_a_second": "pairs a second",
    "a_second": "a second",
    "seconds": "seconds",
    "whole_stage_seconds": "whole stage, seconds",
    "gpu_busy": "GPU busy",
    "gpu_peak_mib": "GPU memory, MiB",
    "linear": "of linear",
}
TITLES = {
    "decoding": "Decoding alone",
    "encoder": "The encoder alone",
    "together": "Both together: stage 1",
    "stage2": "Stage 2",
}
Row = Mapping[str, Any]


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
    lines = ["# A GPU kept busy", "", "`python benchmarks/gpu.py`", *_machines(found)]
    for block, title in TITLES.items():
        if block in found:
            rows = _linear(found[block]) if block == "decoding" else found[block]
            lines += ["", f"## {title}", "", *_table(rows)]
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
    """The rows of decoding with their share of what as many times the fewest cores would do."""
    measured = [row for row in rows if "cores" in row]
    if not measured:
        return list(rows)
    least = min(measured, key=lambda row: int(row["cores"]))
    one = least["pairs_a_second"] / least["cores"]
    return [
        {**row, "linear": f"{row['pairs_a_second'] / one / row['cores']:.0%}"}
        if "cores" in row
        else row
        for row in rows
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    parts = list(dict.fromkeys(name for row in rows for name in row.get("parts", ())))
    names = [n for n in (*TOLD, "linear") if any(row.get(n) is not None for row in rows)]
    heads = [HEADS[name] for name in names] + [part.replace("_", " ") for part in parts]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [_cell(name, row.get(name)) for name in names]
        cells += [_cell("seconds", row.get("parts", {}).get(part)) for part in parts]
        if "not_run" in row:
            cells = [row["name"], row["not_run"], *[""] * (len(heads) - 2)][: max(len(heads), 2)]
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

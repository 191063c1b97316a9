"""How long the report takes to write and to open, and how large it is, by the number of pairs.

    python main.py --output_dir RUN --dataset folder --data_dir path/to/flickr8k
    python benchmarks/report.py --run RUN --work_dir WORK --sizes 5000 20000 100000 1000000

The pairs of a finished run are repeated, with ids of their own, a little noise in where they lie
and the run's photographs, until there are as many as asked for; the page is then gathered and
written as after any run, and opened five times from disk in headless Chromium with the network
off. Given are the seconds until a reader can use it (median, lowest and highest, with the load of
the machine that they met) and the heap of the page. The stages that a run saves, the map and the
small photographs, are timed by `benchmarks/pair_map.py` and by the run itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from artifacts.provenance import (
    CLUSTERING,
    CURATION,
    EMBEDDING,
    LEDGER,
    PAIR_MAP,
    PHOTOGRAPHS,
    hardware,
)
from artifacts.store import Store
from clustering import ClusterAssignment
from curation import CurationResult
from embedding import EmbeddingResult
from reporting.explain import Told, topics
from reporting.ledger import Ledger
from reporting.report.pair_map import PairMap
from reporting.report.photographs import Photographs
from reporting.report.within import in_report
from reporting.report.write import ATLAS, FILES, PAGE, Findings, Shown, gather, write_report
from tests.reporting.report.browser import missing_programs, open_browser
from tests.reporting.test_summary import make_summary
from train_eval import Subset

RESULTS = ROOT / "benchmarks/results/report.json"
REPEATS = 5
N_PHOTOGRAPHS = 20_000  # the default of --report_images
READY = "return document.documentElement.dataset.ready"


def repeated(store: Store, n: int, rng: np.random.Generator) -> tuple[Findings, Photographs]:
    """What a run has found of pairs, repeated until n training pairs are there."""
    ledger = store.read(LEDGER, Ledger)
    clustered = store.read(CLUSTERING, ClusterAssignment)
    curated = store.read(CURATION, CurationResult)
    mapped, e = store.read(PAIR_MAP, PairMap), store.read(EMBEDDING, EmbeddingResult)
    table = ledger.ledger
    training = table[(table["split"] == "train") & (table["status"] == "read")]
    rows = np.arange(n) % len(training)
    many = training.iloc[rows].reset_index(drop=True)
    many["position"] = np.arange(n)
    many["id"] = [f"{high:016x}{low:016x}" for high, low in rng.integers(0, 2**62, (n, 2))]
    many.loc[N_PHOTOGRAPHS:, "image_sha256"] = ""  # of more pairs a report shows none
    pairs = e.split_pairs("train").iloc[rows].reset_index(drop=True)
    pairs["id"] = many["id"]
    kept = np.flatnonzero(many["weight"] > 0)
    shown = in_report(many.astype(table.dtypes.to_dict()), None, ledger.cut, rng)
    m = int(shown.sum())
    found = Findings(
        embedded=replace(e, pairs=pairs, concatenated_embeddings=e.concatenated_embeddings[rows]),
        clustered=replace(
            clustered,
            cluster_assignments=clustered.cluster_assignments[rows],
            copy_links=np.zeros((0, 2), dtype=np.int64),
        ),
        curated=replace(curated, curated_rows=kept, sample_weights=many["weight"].to_numpy()[kept]),
        ledger=Ledger(many.astype(table.dtypes.to_dict()), ledger.cut),
        told=Told(ledger.cut, topics(curated.categorization), 0.8, ("", "")),
        subsets={name: Subset(np.sort(rng.permutation(n)[: len(kept)]), None) for name in METHODS},
        shown=shown,
        pair_map=PairMap(
            mapped.places[rows[shown]] + rng.normal(0, 0.01, (m, 2)).astype(np.float32),
            rng.integers(0, m, (m, 8)).astype(np.int32),
            np.zeros((m, 8), dtype=np.float32),
        ),
        near_copy_similarity=0.85,
        moved=None,
        fingerprint="0" * 64,
    )
    return found, store.read(PHOTOGRAPHS, Photographs)


METHODS = ("random", "clip_score_filtering", "semdedup", "neg_clip_loss")


def measure(store: Store, n: int, work: Path) -> dict[str, Any]:
    """One size: seconds and bytes."""
    rng = np.random.default_rng(n)
    found, photographs = repeated(store, n, rng)
    target = Store.open(str(work / str(n)))
    started = time.perf_counter()
    pairs = gather(found, rng)
    gathered = time.perf_counter()
    # A run makes photographs of what is in the page before it makes others.
    names = np.resize(photographs.image_sha256.astype(str), int(pairs.inside.sum()))
    pairs.table.loc[pairs.inside, "image_sha256"] = names
    summary = replace(make_summary(), figures=(), contact_sheets=())
    write_report(target, summary, Shown(found, pairs, photographs))
    written = time.perf_counter()
    beside = [p for p in (target.root / FILES).rglob("*") if p.is_file()]
    opened = visits(target.root / PAGE, target.root)
    result = {
        "pairs": n,
        "gather_seconds": round(gathered - started, 2),
        "write_seconds": round(written - gathered, 2),
        "page_bytes": (target.root / PAGE).stat().st_size,
        "pairs_within": int(pairs.inside.sum()),
        "atlas_bytes": (target.root / ATLAS).stat().st_size,
        "files_beside": len(beside),
        "bytes_beside": sum(p.stat().st_size for p in beside),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **opened,
    }
    shutil.rmtree(target.root)
    return result


def visits(page: Path, work: Path) -> dict[str, Any]:
    """Seconds until a page can be used, each visit in a browser of its own."""
    seconds, heaps, loads = [], [], []
    for repeat in range(REPEATS):
        with open_browser(work / f"visit {repeat}") as browser:
            started = time.perf_counter()
            browser.open(page)
            browser.wait_for(READY)
            seconds.append(time.perf_counter() - started)
            heaps.append(browser.run("return performance.memory.usedJSHeapSize") / 2**20)
            loads.append(os.getloadavg()[0])
            assert browser.console_errors() == []
            assert browser.requests() == []
    return {
        "open_seconds": [round(x, 2) for x in (np.median(seconds), min(seconds), max(seconds))],
        "heap_mib": round(float(np.median(heaps))),
        "load": [round(min(loads), 1), round(max(loads), 1)],
    }


def main() -> None:
    """Measure every size and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="the output folder of a finished run")
    parser.add_argument("--work_dir", required=True, help="folder for the pages")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 100_000, 1_000_000])
    parser.add_argument("--result_file", default=str(RESULTS))
    given = parser.parse_args()
    if missing := missing_programs():
        parser.error(missing)
    store, work = Store.at(given.run), Path(given.work_dir)
    rows = [measure(store, n, work) for n in given.sizes]
    print(pd.DataFrame(rows).T.to_string(header=False))
    content = {"hardware": hardware(), "sizes": rows}
    Path(given.result_file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

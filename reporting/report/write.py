"""Writing `results/report.html`, and beside it what does not fit into one file."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from tqdm import tqdm

from artifacts.store import Store
from baselines import FULL, INFLUENCESPACE
from clustering import ClusterAssignment, image_groups
from curation import DROP, KEEP, CurationResult
from embedding import EmbeddingResult
from learner.near_copies import near_copies
from reporting.explain import Told
from reporting.ledger import KEPT, Ledger
from reporting.report.atlas import write_atlas
from reporting.report.figure import PALETTE, library, map_item
from reporting.report.page import PageData, keeper_label, render
from reporting.report.pair_map import PairMap
from reporting.report.pairs import (
    NOT_KNOWN,
    OTHER_RUN,
    THIS_RUN,
    TrainingFacts,
    columns,
    kept_by_one_alone,
    packed,
    pair_table,
    vocabularies,
)
from reporting.report.photographs import EMBEDDED_BYTES, MIME_TYPE, Photographs
from reporting.report.within import within_page
from reporting.summary import Summary
from train_eval import Subset

PAGE = "results/report.html"
FILES = "results/report_files"
ATLAS = "results/atlas.parquet"
CHUNK = 1000  # pairs a file
FOLDER = 1000  # photographs a folder
N_STRIP = 5  # photographs in a table


def shown_rows(ledger: pd.DataFrame, shown: Bool[np.ndarray, " l"]) -> Int64[np.ndarray, " m"]:
    """Which of the n training pairs are among the rows of a ledger that are shown."""
    return np.flatnonzero(shown[_is_training(ledger)])


class Findings(NamedTuple):
    """What the stages have found of pairs, as far as the page shows it."""

    embedded: EmbeddingResult
    clustered: ClusterAssignment
    curated: CurationResult
    ledger: Ledger
    told: Told
    subsets: Mapping[str, Subset]
    shown: Bool[np.ndarray, " l"]  # rows of the ledger that the report holds
    pair_map: PairMap  # of the training pairs among them
    near_copy_similarity: float
    moved: frozenset[str] | None  # ids that moved in or out; None where no run was compared
    fingerprint: str  # of the ledger

    def part(self) -> pd.DataFrame:
        """The rows of the ledger that the report holds."""
        return self.ledger.ledger[self.shown]

    def rows(self) -> Int64[np.ndarray, " m"]:
        """Which of the n training pairs the report holds."""
        return shown_rows(self.ledger.ledger, self.shown)


class Pairs(NamedTuple):
    """The pairs as the page shows them."""

    table: pd.DataFrame  # see `pair_table`
    inside: Bool[np.ndarray, " n"]  # those within the page
    keeps: Mapping[str, Bool[np.ndarray, " m"]]  # who keeps which training pairs, of all


def gather(found: Findings, rng: np.random.Generator) -> Pairs:
    """What is known of every pair, and which of them lie within the page.

    Args:
        found: by the stages.
        rng: draws the pairs within the page where they are too many.
    """
    rows = found.rows()
    keeps = _keeps(found, _training_rows(found.ledger.ledger))
    links = found.clustered.copy_links
    if links is None:  # of a run that did not save them
        links = near_copies(
            found.embedded.image_features,
            image_groups(found.embedded.concatenated_embeddings, found.clustered.centers),
            found.embedded.clip_scores,
            found.near_copy_similarity,
        ).links
    faults = found.embedded.split_pairs("train")["fault"]
    facts = TrainingFacts(
        found.pair_map,
        faults.iloc[rows].tolist(),
        {name: kept[rows] for name, kept in keeps.items()},
        _among(links, rows, len(faults)),
    )
    table = pair_table(found.part(), facts, found.told)
    return Pairs(table, within_page(table, found.ledger.cut, rng), keeps)


def _among(
    links: Int64[np.ndarray, "m 2"], rows: Int64[np.ndarray, " k"], n: int
) -> Int64[np.ndarray, "m2 2"]:
    """The links between some of n pairs, which are numbered anew in their order."""
    numbers = np.full(n, NOT_KNOWN)
    numbers[rows] = np.arange(len(rows))
    renamed = numbers[links]
    inside: np.ndarray = renamed[(renamed != NOT_KNOWN).all(axis=1)]
    return inside


class Shown(NamedTuple):
    """All that the page shows of pairs."""

    found: Findings
    pairs: Pairs
    photographs: Photographs


def write_report(store: Store, summary: Summary, shown: Shown | None) -> None:
    """The page, and files beside it where there is more than a page should hold.

    Args:
        store: the run's; the summary's figures are in it.
        summary: the run's numbers.
        shown: of the pairs; None where they were not curated.
    """
    figures = {
        posixpath.relpath(path, "results"): (store.root / path).read_bytes()
        for path in (*summary.figures, *summary.contact_sheets)
    }
    data, beside = PageData({}, [], [], {}), iter(tuple[tuple[str, bytes]]())
    if shown is None:
        store.remove_files(".", [ATLAS])
    else:
        data, beside = _contents(*shown, summary)
        _write_atlas(store, *shown)
    store.write_text(PAGE, render(summary, data, figures))
    written = set[str]()
    for name, content in tqdm(beside, desc="report", unit="file", disable=None, leave=False):
        store.write_bytes(f"{FILES}/{name}", content, lasting=False)
        written.add(name)
    _remove_others(store, written)


def _write_atlas(store: Store, found: Findings, pairs: Pairs, photographs: Photographs) -> None:
    """The training pairs for another viewer."""
    training = _training_rows(found.part())
    files = {name: photographs.file(row) for name, row in _numbers(photographs).items()}
    of_rows = {
        row: files[name]
        for row, name in enumerate(training["image_sha256"].tolist())
        if name in files
    }
    with store.writing(ATLAS) as file:
        write_atlas(file, training, found.pair_map, of_rows)


def remove_report(store: Store) -> None:
    """Remove what an earlier run has written."""
    _remove_others(store, ())
    store.remove_files(".", [PAGE, ATLAS])


def _training_rows(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger's rows of the training pairs, in the order of the stages' arrays."""
    return ledger[_is_training(ledger)]


def _is_training(ledger: pd.DataFrame) -> Bool[np.ndarray, " l"]:
    is_training: np.ndarray = (
        (ledger["split"] == "train") & (ledger["status"] == "read")
    ).to_numpy()
    return is_training


def _numbers(photographs: Photographs) -> dict[str, int]:
    """The row of each photograph by its image's hash."""
    names = photographs.image_sha256.astype(str).tolist()
    return {name: row for row, name in enumerate(names)}


def _remove_others(store: Store, written: Collection[str]) -> None:
    """Remove what an earlier report left beside the page."""
    root = store.root / FILES
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    folder, name = FILES.split("/")
    store.remove_files(folder, [f"{name}/{other}" for other in sorted(there.difference(written))])


def _contents(
    found: Findings, pairs: Pairs, photographs: Photographs, summary: Summary
) -> tuple[PageData, Iterator[tuple[str, bytes]]]:
    """What the page holds, and the files beside it: (name, bytes) each."""
    photo = pairs.table["image_sha256"].map(_numbers(photographs)).fillna(NOT_KNOWN).astype(int)
    table, inside = pairs.table.drop(columns="image_sha256").assign(photo=photo), pairs.inside
    inline = _inline_photographs(table[inside], photographs)
    words = vocabularies(table)
    beside = chain(_chunks(table, inside, words), _photograph_files(photographs, inline))
    meta = {
        "words": words,
        "clusters": [
            [number, f"{number}: {', '.join(cluster['terms'][:5])}"]
            for number, cluster in sorted(found.told.topics.items())
        ],
        "keepers": [[name, keeper_label(name)] for name in pairs.keeps],
        "cut": found.ledger.cut,
        "n": len(table),
        "note": _note(table, inside, len(found.shown)),
        "chunkSize": CHUNK,
        "chunks": [] if inside.all() else table["id"].iloc[::CHUNK].tolist(),
        "photos": inline.tolist(),
        "ends": np.cumsum(photographs.sizes[inline]).tolist(),
        "mime": MIME_TYPE,
        "marks": _marks(found),
        "palette": PALETTE,
        "fingerprint": found.fingerprint[:16],
    }
    scripts = {
        "meta": packed(meta),
        "library": packed(library()),
        "map": packed(map_item()),
        "pairs": packed(columns(table[inside], words)),
    }
    if len(inline):
        data = b"".join(photographs.file(row) for row in inline.tolist())
        scripts["photos"] = base64.b64encode(data).decode("ascii")
    clusters, cells = _tables(found, summary, _strips(table, inside, found))
    return PageData(scripts, clusters, cells, pairs.keeps), beside


def _keeps(found: Findings, training: pd.DataFrame) -> dict[str, Bool[np.ndarray, " n"]]:
    """Who keeps which training pairs: methods, what influence or agreement would, another run."""
    n = len(training)
    kept = found.curated.training_weights(n) > 0
    keeps = {INFLUENCESPACE: kept}
    for name, subset in found.subsets.items():
        if name not in (FULL, INFLUENCESPACE):
            keeps[name] = np.isin(np.arange(n), subset.rows)
    influence, agreement = (
        training[f"{name}_part"].to_numpy(np.float64) for name in ("influence", "agreement")
    )
    keeps |= kept_by_one_alone(influence, agreement, int(kept.sum()))
    if found.moved is not None:
        keeps |= {THIS_RUN: kept, OTHER_RUN: kept ^ training["id"].isin(found.moved).to_numpy()}
    return keeps


def _marks(found: Findings) -> dict[str, str]:
    """What the reviewer has said so far, by id."""
    reviewed = found.curated.reviewed
    if reviewed is None:
        return {}
    ids = found.embedded.split_pairs("train")["id"].tolist()
    words = {KEEP: "keep", DROP: "drop"}
    return {ids[row]: words[int(reviewed[row])] for row in np.flatnonzero(reviewed)}


# --- Within the page or beside it -----------------------------------------------------------------


def _note(table: pd.DataFrame, inside: Bool[np.ndarray, " n"], n_all: int) -> str:
    """What the page says of pairs that are not in it; "" where all are."""
    if inside.all():
        return ""
    note = (
        f"{int(inside.sum()):,} of {len(table):,} pairs are in this page: those at the ends of"
        " every order, families of near copies, and a draw from every cluster, cell and decision."
        " Counts, search and lasso know these."
    )
    if n_all > len(table):
        note += (
            f" The run has {n_all:,} pairs, from which those of this report were chosen in the same"
            " way; stage3/ledger.parquet has all, and --explain tells of any."
        )
    return note


def _inline_photographs(part: pd.DataFrame, photographs: Photographs) -> Int64[np.ndarray, " m"]:
    """The photographs within the page, as many as fit.

    Those of training pairs first, then of held-out pairs whose image and caption agree least.
    """
    held_out = part["value"].isna()
    order = np.lexsort((part["agreement"].where(held_out, 0.0), held_out))
    wanted = part["photo"].iloc[order]
    wanted = wanted[wanted != NOT_KNOWN].drop_duplicates().to_numpy(np.int64)
    fits = np.cumsum(photographs.sizes[wanted]) <= EMBEDDED_BYTES
    return np.sort(wanted[fits])


def _chunks(
    table: pd.DataFrame, inside: Bool[np.ndarray, " n"], words: Mapping[str, list[str]]
) -> Iterator[tuple[str, bytes]]:
    """The pairs that are not in the page, in files that a page can load without a server."""
    starts = () if inside.all() else range(0, len(table), CHUNK)
    for i, start in enumerate(starts):
        rows = slice(start, start + CHUNK)
        text = packed(columns(table.iloc[rows][~inside[rows]], words))
        yield f"pairs/{i:05d}.js", f'influencespace.chunk({i},"{text}")\n'.encode("ascii")


def _photograph_files(
    photographs: Photographs, inline: Int64[np.ndarray, " m"]
) -> Iterator[tuple[str, bytes]]:
    """The photographs that are not in the page."""
    for row in np.setdiff1d(np.arange(len(photographs)), inline).tolist():
        yield f"photographs/{row // FOLDER}/{row}.avif", photographs.file(row)


# --- Tables ---------------------------------------------------------------------------------------


def _strips(
    table: pd.DataFrame, inside: Bool[np.ndarray, " n"], found: Findings
) -> dict[str, dict[int, list[int]]]:
    """The pairs in the page that lie nearest their cluster's centre, by cluster and by cell."""
    e, c = found.embedded, found.clustered
    part = table[inside & table["value"].notna()]
    by_id = pd.Series(found.rows(), index=_training_rows(found.part())["id"])
    rows = part["id"].map(by_id).to_numpy(np.int64)
    distances = np.linalg.norm(
        e.concatenated_embeddings[rows] - c.centers[c.cluster_assignments[rows]], axis=1
    )
    part = part.assign(distance=distances).sort_values("distance", kind="stable")
    strips: dict[str, dict[int, list[int]]] = {"cluster": {}, "cell": {}}
    for name, strip in strips.items():
        for owner, number in zip(part[name].tolist(), part["number"].tolist(), strict=True):
            strip.setdefault(owner, []).append(number)
    return {
        name: {owner: numbers[:N_STRIP] for owner, numbers in strip.items()}
        for name, strip in strips.items()
    }


def _tables(
    found: Findings, summary: Summary, strips: Mapping[str, Mapping[int, list[int]]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the tables of clusters and of cells, most harmful first."""
    weights, ledger = summary.cluster_weights or {}, found.ledger.ledger
    cell_weights = ledger[ledger["decision"] == KEPT].groupby("cell")["weight"].mean()
    clusters, cells, bands = [], [], summary.pairs.band_of_cell()
    for entry in found.curated.categorization:
        number = int(entry["cluster"])
        strip = strips["cluster"].get(number, [])
        row = _row(number, entry, entry["terms"], strip)
        clusters.append({**row, "weight": f"{weights.get(str(number), 0.0):.2f}"})
        for cell in entry["cells"]:
            strip = strips["cell"].get(int(cell["cell"]), [])
            row = _row(int(cell["cell"]), cell, entry["terms"], strip)
            weight = cell_weights.get(row["number"], 0.0)
            row |= {
                "agreement": bands.get(row["number"], ""),
                "copies": "near copies" if cell["near_copies"] else "",
                "clip_score": f"{cell['mean_clip_score']:.2f}",
            }
            cells.append({**row, "cluster": number, "weight": f"{weight:.2f}"})
    return clusters, sorted(cells, key=lambda row: float(row["influence"]))


def _row(
    number: int, entry: Mapping[str, Any], terms: list[str], strip: list[int]
) -> dict[str, Any]:
    return {
        "number": number,
        "terms": ", ".join(terms[:6]),
        "category": entry["category"],
        "size": entry["size"],
        "influence": entry["influence_percent"],
        "stderr": entry["stderr_percent"],
        "kept_share": entry["pairs_kept"] / entry["size"],
        "strip": strip,
    }

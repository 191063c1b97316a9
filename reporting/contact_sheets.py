"""Photographs of what a run found: a pair of every cluster, and some that are dropped and kept."""

from __future__ import annotations

import logging

import numpy as np

from artifacts.store import Store
from clustering import ClusterAssignment
from curation import CurationResult
from embedding import EmbeddingResult
from reporting.figures.sheets import contact_sheet
from reporting.lettering import list_from_left
from sources.base import PairSource, UnusableImage
from sources.images import decode_image

logger = logging.getLogger(__name__)
N_RANDOM_PHOTOGRAPHS = 24
MAX_PHOTOGRAPHS = 60  # on one contact sheet
ROWS_AT_ONCE = 8192
SHEETS = ("stage1/contact_sheet.png", "stage3/dropped.png", "stage3/kept.png")


def draw_contact_sheets(
    store: Store,
    source: PairSource,
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    curated: CurationResult | None,
    *,
    max_image_pixels: int,
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Photographs of the clusters, and of what is dropped and kept; the paths of the sheets.

    Args:
        store: where they are drawn.
        source: the photographs, which are read again.
        embedded: the pairs.
        clustered: their topics.
        curated: which of them are kept; None where that is not known.
        max_image_pixels: of an image that is decoded.
        rng: draws the pairs.
    """
    pairs = embedded.split_pairs("train")
    topics = [list_from_left(f"{k}: ", c["terms"][:3]) for k, c in enumerate(clustered.clusters)]
    drawn = []
    for path, (heading, rows) in _chosen_pairs(embedded, clustered, curated, rng).items():
        images, titles = [], []
        for row in rows[:MAX_PHOTOGRAPHS]:
            try:
                data = source.read_image(pairs["key"].iloc[row])
                image = decode_image(data, max_image_pixels)
            except (OSError, KeyError, UnusableImage) as error:
                logger.debug("%s: %s", pairs["key"].iloc[row], error)
                continue
            image.thumbnail((224, 224))
            images.append(np.asarray(image))
            note = f"CLIP score {embedded.clip_scores[row]:.2f}"
            if path == SHEETS[0]:
                note = topics[clustered.cluster_assignments[row]]
            titles.append(f"{pairs['caption'].iloc[row]}\n{note}")
        if not images:
            logger.warning("%s is not drawn: the photographs cannot be read again", path)
            continue
        store.write_figure(path, contact_sheet(images, titles, heading=heading, n_columns=6))
        drawn.append(path)
    return tuple(drawn)


def _chosen_pairs(
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    curated: CurationResult | None,
    rng: np.random.Generator,
) -> dict[str, tuple[str, np.ndarray]]:
    """The heading of each sheet and the rows of the pairs on it, by the sheet's path."""
    central = central_rows(
        embedded.concatenated_embeddings, clustered.centers, clustered.cluster_assignments
    )
    topics_sheet, *pair_sheets = SHEETS
    shown = min(len(central), MAX_PHOTOGRAPHS)
    which = "" if shown == len(central) else f", the first {shown} of {len(central)} clusters"
    choices = {topics_sheet: (f"The pair nearest each cluster's centre{which}", central)}
    if curated is not None:
        dropped = np.setdiff1d(np.arange(len(embedded.indices)), curated.curated_rows)
        parts = (("dropped", dropped), ("kept", curated.curated_rows))
        for path, (name, rows) in zip(pair_sheets, parts, strict=True):
            chosen = np.sort(rng.permutation(rows)[:N_RANDOM_PHOTOGRAPHS])
            if len(chosen):
                choices[path] = (f"Pairs {name}, drawn at random", chosen)
    return choices


def central_rows(
    embeddings: np.ndarray, centers: np.ndarray, assignments: np.ndarray
) -> np.ndarray:
    """The row nearest the centre of every cluster, (K,)."""
    distances = np.empty(len(embeddings), dtype=np.result_type(embeddings, centers))
    for start in range(0, len(embeddings), ROWS_AT_ONCE):  # of very many no copy is made
        block = slice(start, start + ROWS_AT_ONCE)
        away = embeddings[block] - centers[assignments[block]]
        distances[block] = np.linalg.norm(away, axis=1)
    order = np.lexsort((distances, assignments))
    rows: np.ndarray = order[np.unique(assignments[order], return_index=True)[1]]
    return rows

"""What a run writes beside its stages: tables, figures, the results page, contact sheets."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from artifacts.provenance import (
    CURATION,
    EMBEDDING,
    LEDGER,
    PAIR_INFLUENCE,
    StaleError,
    hardware,
    package_versions,
)
from artifacts.settings import InputError
from artifacts.store import Store
from attribution.results import InfluenceResult, InfluenceValidation, PairInfluence
from attribution.trust import PairTrust
from cli.run import Run
from clustering import ClusterAssignment, agreement_bands, band_name
from curation import CurationResult, curated_size
from embedding import EmbeddingResult
from reporting.console import console_summary
from reporting.estimate import caution
from reporting.evaluation_tables import summary_markdown, summary_table
from reporting.explain import explain
from reporting.figures.gaps import GAP_FIGURES
from reporting.figures.sheets import contact_sheet
from reporting.ledger import Ledger, count_decisions
from reporting.page import results_markdown
from reporting.standing import guard
from reporting.summary import (
    TEST,
    TRAIN,
    VALIDATION,
    PairSummary,
    Summary,
    drop_examples,
    faults_dropped,
)
from sources.base import UnusableImage
from sources.images import decode_image
from train_eval import (
    INFLUENCESPACE,
    EvaluationResult,
    Subset,
    demographic_gaps,
    efficiency_metrics,
    histories,
    method_metrics,
    on_trusted_queries,
    recall_metrics,
)
from visualize import figures

logger = logging.getLogger(__name__)
N_DROP_EXAMPLES = 12
N_RANDOM_PHOTOGRAPHS = 24
MAX_PHOTOGRAPHS = 60  # on one contact sheet
SHEETS = ("stage1/contact_sheet.png", "stage3/dropped.png", "stage3/kept.png")
TRUSTED_METRICS = "evaluation/method_metrics_trusted.json"
SHARED_COSTS = {  # stages whose time counts as choosing a method's subset
    INFLUENCESPACE: ("clustering", "influence", "pair_influence", "curation"),
    "diversity_sampling": ("clustering", "diversity_sampling"),
    "semdedup": ("clustering", "semdedup"),
    "density_pruning": ("clustering", "density_pruning"),
}


def write_results(
    run: Run,
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    influence: InfluenceResult | None,
    validated: InfluenceValidation | None,
    pair_influence: PairInfluence | None,
    curated: CurationResult | None,
    subsets: Mapping[str, Subset],
    evaluated: EvaluationResult,
    ledger: Ledger | None,
    *,
    command: str,
    started: float,
    trust: PairTrust | None = None,
) -> None:
    """Tables, figures, the results page and run.json, all from the stages' results."""
    store, seconds = run.store, run.seconds
    metrics = method_metrics(evaluated)
    on_trusted = trusted_queries(evaluated, trust, embedded.test_caption_image)
    trusted_metrics = method_metrics(on_trusted) if on_trusted else None
    efficiency = efficiency_metrics(
        evaluated,
        len(embedded.indices),
        {m: sum(seconds.get(s, 0.0) for s in SHARED_COSTS.get(m, (m,))) for m in subsets},
    )
    gaps = demographic_gaps(
        evaluated,
        embedded.split_pairs("test")["caption"].tolist(),
        embedded.test_caption_image,
        rng=run.rng("demographic gaps"),
    )
    sheets: tuple[str, ...] = ()
    if run.config.execution.visualize:
        sheets = draw_contact_sheets(run, embedded, clustered, curated)
    train_pairs = embedded.split_pairs("train")
    has_faults = bool(train_pairs["fault"].any())
    summary = Summary(
        run={
            "dataset": store.manifest(EMBEDDING)["settings"]["dataset"],
            "dataset_description": embedded.source,
            "encoder": embedded.encoder,
            "command": command,
            "seed": run.config.run.seed,
            "device": str(run.device),
            "hardware": hardware(),
            "packages": package_versions(),
            "warnings": run.warnings,
            "settings": run.config.flat(),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "total_seconds": round(time.perf_counter() - started, 1),
        },
        n_train=len(embedded.indices),
        n_validation=len(embedded.validation_text_features),
        n_test_images=len(embedded.test_image_features),
        n_test_captions=len(embedded.test_text_features),
        skipped=Counter(embedded.skipped["reason"]),
        influence=influence.clusters if influence else None,
        influence_info=influence.quality() if influence else None,
        influence_validation=validated.checks if validated else None,
        influence_scores=influence.influence_scores if influence else None,
        influence_stderr=influence.influence_stderr if influence else None,
        pair_quality=pair_influence.quality if pair_influence else None,
        pairs=summarize_pairs(
            embedded,
            clustered,
            pair_influence,
            curated,
            n_bands=run.config.clustering.agreement_bands,
        ),
        clusters=clustered.clusters,
        categorization=curated.categorization if curated else None,
        cluster_weights=curated.cluster_weights if curated else None,
        decisions=count_decisions(ledger.ledger) if ledger else None,
        group_retention=curated.group_retention if curated else None,
        sample_weights=curated.sample_weights if curated else None,
        n_curated=curated_size(len(embedded.indices), run.config.curation.target_size_ratio),
        thresholds=dataclasses.asdict(run.config.curation),
        metrics=metrics,
        encoder_metrics=recall_metrics(
            evaluated.encoder_image_ranks, evaluated.encoder_caption_ranks
        ),
        efficiency=efficiency,
        gaps=gaps,
        histories=histories(evaluated),
        faults={
            method: faults_dropped(
                train_pairs["fault"].tolist(), train_pairs["group"].tolist(), subset.rows
            )
            for method, subset in subsets.items()
        }
        if has_faults
        else None,
        dropped_examples=dropped_examples(embedded, clustered, pair_influence, curated),
        contact_sheets=sheets,
        trust=trust.faults | {"taken_at_word": trust.taken_at_word} if trust else None,
        log_odds=log_odds(trust) if trust else None,
        trusted={VALIDATION: trust.validation_trusted, TEST: trust.test_trusted} if trust else None,
        trusted_metrics=trusted_metrics,
        trusted_encoder_metrics=recall_metrics(
            on_trusted.encoder_image_ranks, on_trusted.encoder_caption_ranks
        )
        if on_trusted
        else None,
    )
    store.write_json("evaluation/method_metrics.json", metrics)
    if trusted_metrics is not None:
        store.write_json(TRUSTED_METRICS, trusted_metrics)
    store.write_json("evaluation/efficiency_metrics.json", efficiency)
    store.write_json("evaluation/demographic_gaps.json", gaps)
    table = summary_table(summary).to_csv(index=False, lineterminator="\n")
    store.write_text("evaluation/method_comparison.csv", table)
    store.write_text("results/results_summary.csv", table)
    store.write_text("results/results_summary.md", summary_markdown(summary))
    makers = figures(summary)
    summary = dataclasses.replace(summary, figures=tuple(makers))
    store.write_text("results/results.md", results_markdown(summary))
    for path, make in tqdm(
        makers.items(), desc="figures", unit="figure", disable=None, leave=False
    ):
        store.write_figure(path, make())
    made = {*makers, *sheets, *([TRUSTED_METRICS] if trusted_metrics else [])}
    optional = {*GAP_FIGURES, *SHEETS, TRUSTED_METRICS}
    store.remove_files(".", sorted(optional - made))  # an earlier run's
    total_seconds = round(time.perf_counter() - started, 1)
    store.write_json("run.json", {**summary.run, "total_seconds": total_seconds})
    logger.info("done in %.1f s", total_seconds)
    store.write_bytes("results/log.txt", store.log_path(run.config.run.log_file).read_bytes())
    print(console_summary(summary))


def trusted_queries(
    evaluated: EvaluationResult, trust: PairTrust | None, caption_image: np.ndarray
) -> EvaluationResult | None:
    """The runs with the ranks of trusted test queries; None where none is trusted or judged."""
    if trust is None or not trust.test_trusted.any():
        return None
    return on_trusted_queries(evaluated, trust.test_trusted, caption_image)


def log_odds(trust: PairTrust) -> dict[str, np.ndarray]:
    """How likely the pairs of each split are right."""
    return {
        TRAIN: trust.training_log_odds,
        VALIDATION: trust.validation_log_odds,
        TEST: trust.test_log_odds,
    }


def summarize_pairs(
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    pair_influence: PairInfluence | None,
    curated: CurationResult | None,
    *,
    n_bands: int,
) -> PairSummary:
    """What the stages that were run or loaded say of every training pair."""
    faulty = embedded.split_pairs("train")["fault"].astype(bool).to_numpy()
    return PairSummary(
        bands=agreement_bands(embedded.clip_scores, n_bands),
        band_names=tuple(band_name(band, n_bands) for band in range(n_bands)),
        near_copies=clustered.better_copies > 0,
        faulty=faulty if faulty.any() else None,
        influence=100 * pair_influence.pair_influence / pair_influence.validation_loss
        if pair_influence
        else None,
        cells=pair_influence.cell_assignments if pair_influence else None,
        values=curated.pair_values if curated else None,
        kept=curated.training_weights(len(faulty)) > 0 if curated else None,
    )


def dropped_examples(
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    pair_influence: PairInfluence | None,
    curated: CurationResult | None,
) -> list[dict[str, Any]]:
    """Dropped pairs to look at, each with the reason."""
    if curated is None or pair_influence is None:
        return []
    pairs, assignments = embedded.split_pairs("train"), clustered.cluster_assignments
    return [
        {
            "caption": pairs["caption"].iloc[row],
            "key": pairs["key"].iloc[row],
            "clip_score": float(embedded.clip_scores[row]),
            "cluster": int(assignments[row]),
            "value": float(curated.pair_values[row]),
            "terms": clustered.clusters[assignments[row]]["terms"],
            "why": why,
        }
        for row, why in drop_examples(
            curated,
            pair_influence.counted,
            pair_influence.agreement,
            clustered.better_copies,
            assignments,
            N_DROP_EXAMPLES,
        )
    ]


def draw_contact_sheets(
    run: Run,
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    curated: CurationResult | None,
) -> tuple[str, ...]:
    """Photographs of the clusters, and of what is dropped and kept; the paths of the sheets."""
    source = run.open_source(run.store.manifest(EMBEDDING)["settings"]["dataset"])
    pairs, scores = embedded.split_pairs("train"), embedded.clip_scores
    central = central_rows(
        embedded.concatenated_embeddings, clustered.centers, clustered.cluster_assignments
    )
    topics = [f"{k}: {', '.join(c['terms'][:3])}" for k, c in enumerate(clustered.clusters)]
    topics_sheet, *pair_sheets = SHEETS
    shown = min(len(central), MAX_PHOTOGRAPHS)
    which = "" if shown == len(central) else f", the first {shown} of {len(central)} clusters"
    choices = {topics_sheet: (f"The pair nearest each cluster's centre{which}", central)}
    if curated is not None:
        rng = run.rng("contact sheets")
        dropped = np.setdiff1d(np.arange(len(scores)), curated.curated_rows)
        parts = (("dropped", dropped), ("kept", curated.curated_rows))
        for path, (name, rows) in zip(pair_sheets, parts, strict=True):
            chosen = np.sort(rng.permutation(rows)[:N_RANDOM_PHOTOGRAPHS])
            if len(chosen):
                choices[path] = (f"Pairs {name}, drawn at random", chosen)
    drawn = []
    for path, (heading, rows) in choices.items():
        images, titles = [], []
        for row in rows[:MAX_PHOTOGRAPHS]:
            try:
                data = source.read_image(pairs["key"].iloc[row])
                image = decode_image(data, run.config.data.max_image_pixels)
            except (OSError, KeyError, UnusableImage) as error:
                logger.debug("%s: %s", pairs["key"].iloc[row], error)
                continue
            image.thumbnail((224, 224))
            images.append(np.asarray(image))
            topic = topics[clustered.cluster_assignments[row]]
            note = topic if rows is central else f"CLIP score {scores[row]:.2f}"
            titles.append(f"{pairs['caption'].iloc[row]}\n{note}")
        if not images:
            logger.warning("%s is not drawn: the photographs cannot be read again", path)
            continue
        run.store.write_figure(path, contact_sheet(images, titles, heading=heading, n_columns=6))
        drawn.append(path)
    return tuple(drawn)


def explain_pair(store: Store, name: str) -> str:
    """What happened to the pairs of a key or an id in the run that a folder holds.

    Raises:
        InputError: there is no whole run in it, or no such pair.
    """
    try:
        ledger = store.read(LEDGER, Ledger)
        curated = store.read(CURATION, CurationResult)
        ratio = store.manifest(CURATION)["settings"]["target_size_ratio"]
    except StaleError as error:
        raise InputError(
            f"--explain: {store.root / LEDGER.folder} {error}; run the pipeline first"
        ) from error
    try:
        quality = store.read(PAIR_INFLUENCE, PairInfluence).quality
    except StaleError:  # the story can be told without stage 2
        quality = None
    doubts = {"caution": caution(quality), "guard": guard(quality)}
    return explain(ledger, name, curated.categorization, float(ratio), **doubts)


def central_rows(
    embeddings: np.ndarray, centers: np.ndarray, assignments: np.ndarray
) -> np.ndarray:
    """The row nearest the centre of every cluster, (K,)."""
    distances = np.linalg.norm(embeddings - centers[assignments], axis=1)
    order = np.lexsort((distances, assignments))
    rows: np.ndarray = order[np.unique(assignments[order], return_index=True)[1]]
    return rows

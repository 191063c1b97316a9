"""What a run writes beside its stages: tables, figures, the results page."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from artifacts.provenance import Saved
from artifacts.store import Store
from attribution.keep_curve import KeepCurve
from attribution.results import InfluenceResult, InfluenceValidation, PairInfluence
from attribution.trust import PairTrust
from baselines import METHODS
from clustering import ClusterAssignment, ClusteringConfig, agreement_bands, band_name
from curation import CurationConfig, CurationResult, curated_size
from embedding import EmbeddingResult
from learner.pairs import TrainingPairs
from reporting.contact_sheets import SHEETS
from reporting.evaluation_tables import summary_markdown, summary_table
from reporting.figures.gaps import GAP_FIGURES
from reporting.figures.methods import METHOD_FIGURES
from reporting.how_much import CURVE_FIGURE, CURVE_TABLE, curve_csv, curve_numbers
from reporting.ledger import Ledger, count_decisions
from reporting.page import results_markdown
from reporting.summary import (
    TEST,
    TRAIN,
    VALIDATION,
    PairSummary,
    Summary,
    drop_examples,
    faults_dropped,
)
from train_eval import (
    EvaluationResult,
    Subset,
    demographic_gaps,
    efficiency_metrics,
    histories,
    method_metrics,
    on_trusted_queries,
    recall_metrics,
)

logger = logging.getLogger(__name__)
N_DROP_EXAMPLES = 6
METRICS = "evaluation/method_metrics.json"
TRUSTED_METRICS = "evaluation/method_metrics_trusted.json"
EFFICIENCY = "evaluation/efficiency_metrics.json"
GAPS = "evaluation/demographic_gaps.json"
TABLES = ("evaluation/method_comparison.csv", "results/results_summary.csv")


class Known(NamedTuple):
    """Stage 1: every pair embedded and in its topic."""

    embedded: Saved[EmbeddingResult]
    clustered: Saved[ClusterAssignment]
    pairs: TrainingPairs  # with all held-out pairs


class Judged(NamedTuple):
    """Stage 2: which held-out pairs are trusted, and what helps by their word."""

    trust: Saved[PairTrust]
    asked: TrainingPairs  # with the held-out pairs that are trusted
    influence: Saved[InfluenceResult]
    validated: Saved[InfluenceValidation] | None
    scored: Saved[PairInfluence]


class Chosen(NamedTuple):
    """Stage 3: which pairs are kept, with what weight, and what happened to every one."""

    curve: Saved[KeepCurve]
    curated: Saved[CurationResult]
    ledger: Saved[Ledger]


class Proof(NamedTuple):
    """What every method trained on, and how well its models find the test pairs.

    With `--methods none` the curated set alone, as far as there is one, and no evaluation.
    """

    subsets: Mapping[str, Subset]
    evaluated: Saved[EvaluationResult] | None
    seconds: Mapping[str, float]  # of every stage, when it was computed


class Results(NamedTuple):
    """All that a run has found."""

    known: Known
    judged: Judged
    chosen: Chosen
    proof: Proof


def summarize(
    results: Results,
    about: Mapping[str, Any],
    curation: CurationConfig,
    clustering: ClusteringConfig,
    *,
    contact_sheets: tuple[str, ...],
    rng: np.random.Generator,
) -> Summary:
    """A run's numbers as its page and figures take them in.

    Args:
        results: of all stages; those that were left out have none.
        about: what `run.json` says of the run.
        curation: settings that the page quotes.
        clustering: those that name the bands of agreement.
        contact_sheets: the paths of those that were drawn.
        rng: for the intervals of the demographic gaps.
    """
    (known, judged, chosen, proof), e = results, results.known.embedded.value
    clustered, evaluated = known.clustered.value, proof.evaluated
    influence, scored, trust = judged.influence.found, judged.scored.found, judged.trust.found
    curated, ledger = chosen.curated.found, chosen.ledger.found
    summary = Summary(
        run={
            "dataset": about["dataset"],
            **{"dataset_description": e.source, "encoder": e.encoder},
            **about,
        },
        n_train=len(e.indices),
        n_validation=len(e.validation_text_features),
        n_test_images=len(e.test_image_features),
        n_test_captions=len(e.test_text_features),
        skipped=Counter(e.skipped["reason"]),
        account=e.account,
        notes=tuple(filter(None, e.notes.split("\n"))),
        cut_off=e.cut_off,
        influence=influence.clusters if influence else None,
        influence_info=influence.quality() if influence else None,
        influence_validation=judged.validated.value.checks if judged.validated else None,
        influence_scores=influence.influence_scores if influence else None,
        influence_stderr=influence.influence_stderr if influence else None,
        pair_quality=scored.quality if scored else None,
        pairs=summarize_pairs(e, clustered, scored, curated, n_bands=clustering.agreement_bands),
        clusters=clustered.clusters,
        categorization=curated.categorization if curated else None,
        cluster_weights=curated.cluster_weights if curated else None,
        decisions=count_decisions(ledger.ledger) if ledger else None,
        group_retention=curated.group_retention if curated else None,
        sample_weights=curated.sample_weights if curated else None,
        n_curated=curated_size(len(e.indices), curation.share),
        thresholds=dataclasses.asdict(curation),
        faults=faults_of_methods(e, proof),
        dropped_examples=dropped_examples(e, clustered, scored, curated),
        contact_sheets=contact_sheets,
        curve=chosen.curve.found,
    )
    summary = dataclasses.replace(summary, **measured(e, proof, rng=rng))
    if trust is None:
        return summary
    runs = None if evaluated is None else evaluated.value
    return with_trust(summary, trust, runs, e.test_caption_image)


def measured(
    embedded: EmbeddingResult, proof: Proof, *, rng: np.random.Generator
) -> dict[str, Any]:
    """What was measured of the methods, by the summary's fields; none where nothing was."""
    if proof.evaluated is None:
        return {}
    evaluated = proof.evaluated.value
    captions = embedded.split_pairs("test")["caption"].tolist()
    n_pairs = len(embedded.indices)
    return {
        "metrics": method_metrics(evaluated),
        "encoder_metrics": encoder_metrics(evaluated),
        "efficiency": efficiency_metrics(evaluated, n_pairs, choosing_seconds(proof)),
        "gaps": demographic_gaps(evaluated, captions, embedded.test_caption_image, rng=rng),
        "histories": histories(evaluated),
    }


def _settled_faults(trust: PairTrust, summary: Summary) -> dict[str, Any]:
    """How many captions of each split are wrong; of the pool as stage 2 has it in the end."""
    settled = (summary.pair_quality or {}).get("wrong_share")
    if settled is None:
        return trust.faults
    of_pool = dict(zip(("share", "low", "high"), settled, strict=True))
    return {**trust.faults, TRAIN: {**trust.faults[TRAIN], **of_pool}}


def with_trust(
    summary: Summary,
    trust: PairTrust,
    evaluated: EvaluationResult | None,
    caption_image: np.ndarray,
) -> Summary:
    """The summary with what is said of held-out pairs, and recall on those that are trusted."""
    on_trusted = None
    if evaluated is not None and trust.test_trusted.any():
        on_trusted = on_trusted_queries(evaluated, trust.test_trusted, caption_image)
    return dataclasses.replace(
        summary,
        trust=_settled_faults(trust, summary) | {"taken_at_word": trust.taken_at_word},
        log_odds={
            TRAIN: trust.training_log_odds,
            VALIDATION: trust.validation_log_odds,
            TEST: trust.test_log_odds,
        },
        trusted={VALIDATION: trust.validation_trusted, TEST: trust.test_trusted},
        trusted_metrics=method_metrics(on_trusted) if on_trusted else None,
        trusted_encoder_metrics=encoder_metrics(on_trusted) if on_trusted else None,
    )


def choosing_seconds(proof: Proof) -> dict[str, float]:
    """The seconds that choosing each method's subset took, shared stages included."""
    return {
        name: sum(proof.seconds.get(stage, 0.0) for stage in (*METHODS[name].pays_for, name))
        for name in proof.subsets
    }


def encoder_metrics(evaluated: EvaluationResult) -> dict[str, float]:
    """Recall of the frozen encoder, which nobody has trained here."""
    return recall_metrics(evaluated.encoder_image_ranks, evaluated.encoder_caption_ranks)


def faults_of_methods(
    embedded: EmbeddingResult, proof: Proof
) -> dict[str, dict[str, dict[str, int]]] | None:
    """Pairs of each known fault in the data and dropped by each method; None without faults."""
    train = embedded.split_pairs("train")
    if not train["fault"].any():
        return None
    kinds, groups = train["fault"].tolist(), train["group"].tolist()
    return {
        method: faults_dropped(kinds, groups, subset.rows)
        for method, subset in proof.subsets.items()
    }


def write_results(
    store: Store, summary: Summary, figures: Mapping[str, Callable[[], Figure]]
) -> None:
    """Tables, figures and the results page.

    Args:
        store: the run's.
        summary: what they are made from.
        figures: a maker for each of its figures, by path.
    """
    tables = write_tables(store, summary) if summary.metrics else ()
    if summary.curve is not None:
        store.write_text(CURVE_TABLE, curve_csv(summary.curve))
        tables = (*tables, CURVE_TABLE)
    store.write_text("results/results_summary.md", summary_markdown(summary))
    store.write_text("results/results.md", results_markdown(summary))
    for path, make in tqdm(
        figures.items(), desc="figures", unit="figure", disable=None, leave=False
    ):
        store.write_figure(path, make())
    made = {*figures, *summary.contact_sheets, *tables}
    optional = {*GAP_FIGURES, *SHEETS, TRUSTED_METRICS, CURVE_FIGURE, CURVE_TABLE}
    if not summary.metrics:
        optional |= {METRICS, EFFICIENCY, GAPS, *TABLES, *METHOD_FIGURES}
    store.remove_files(".", sorted(optional - made))  # an earlier run's


def write_tables(store: Store, summary: Summary) -> tuple[str, ...]:
    """What was measured of the methods, as files; their paths."""
    measured: dict[str, Any] = {METRICS: summary.metrics}
    if summary.trusted_metrics is not None:
        measured[TRUSTED_METRICS] = summary.trusted_metrics
    measured |= {EFFICIENCY: summary.efficiency, GAPS: summary.gaps}
    for path, content in measured.items():
        store.write_json(path, content)
    table = summary_table(summary).to_csv(index=False, lineterminator="\n")
    for path in TABLES:
        store.write_text(path, table)
    return (*measured, *TABLES)


def finish(store: Store, summary: Summary, *, started: float, log_file: str) -> None:
    """run.json, and a copy of the log beside the results.

    Args:
        store: the run's.
        summary: with what run.json says.
        started: when the run did, by `time.perf_counter`.
        log_file: its name.
    """
    total_seconds = round(time.perf_counter() - started, 1)
    about = {**summary.run, "total_seconds": total_seconds}
    if numbers := curve_numbers(summary):
        about["how_much_to_keep"] = numbers
    store.write_json("run.json", about)
    logger.info("done in %.1f s", total_seconds)
    store.write_bytes("results/log.txt", store.log_path(log_file).read_bytes())


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
        reviewed=curated.reviewed if curated else None,
        n_overruled=curated.n_overruled if curated else 0,
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

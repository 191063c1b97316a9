"""InfluenceSpace from the command line: the pipeline from top to bottom, one call a stage."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # while libraries are imported, an interrupt ends the program silently
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# Threads that wait for each other sleep: spinning ones slow a shared machine many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import numpy as np

import visualize
from artifacts import provenance as stages
from artifacts.lock import only_run_in
from artifacts.provenance import Saved, baseline_stage
from artifacts.scratch import use_folder
from artifacts.settings import AUTO, InputError
from artifacts.store import Store
from attribution.keep_curve import KeepCurve, Kept, measure_keep_curve
from attribution.results import InfluenceResult, InfluenceValidation, PairInfluence
from attribution.trust import PairTrust
from attribution.validation import validate_influence
from baselines import (
    BASELINES,
    CONTROLS,
    FULL,
    INFLUENCESPACE,
    METHODS,
    Selection,
    select_baseline,
)
from cli.auto import resolve_auto, warn_of_replacing, warn_of_unheeded
from cli.config import Config, parse_arguments
from cli.log import logging_to
from cli.overrides import read_overrides
from cli.preview import preview
from cli.run import Run, device_name, resolve_device
from clustering import ClusterAssignment, cluster_embeddings, training_pairs
from curation import (
    CurationResult,
    curate,
    curve_settings,
    estimated_parts,
    faults_alone,
    share_with_room,
)
from embedding import EmbeddingResult
from engine.base import Setup
from engine.start import start_engine
from engine.threads import limit_to_cores
from exporting.folder import Workers
from exporting.formats import ExportReport, export_curated, warn_of_outdated
from influence import judge_held_out, score_clusters, score_pairs_in_rounds
from intake.setup import open_again
from learner.pairs import TrainingPairs
from reporting.console import console_summary
from reporting.contact_sheets import draw_contact_sheets
from reporting.estimate import caution
from reporting.explain import Told, explain_pair, topics
from reporting.how_much import auto_share
from reporting.ledger import Ledger, curated_pairs, make_ledger
from reporting.report.changes import Changes, read_changes
from reporting.report.changes_page import changes_markdown, not_comparable
from reporting.report.other_run import check_comparable
from reporting.report.pair_map import PairMap, map_pairs
from reporting.report.photographs import (
    Photographs,
    keep_small,
    make_photographs,
    none_made,
    read_copies,
    wanted_photographs,
)
from reporting.report.within import MOST_OTHERS, MOST_TRAINING, in_report
from reporting.report.write import (
    Findings,
    Shown,
    gather,
    remove_report,
    shown_rows,
    write_report,
)
from reporting.results import (
    Chosen,
    Judged,
    Known,
    Proof,
    Results,
    finish,
    summarize,
    write_results,
)
from reporting.standing import guard
from rivals.given import Reference
from train_eval import (
    EvaluationResult,
    Subset,
    evaluate_methods,
    method_metrics,
    retrieval_set,
)

logger = logging.getLogger(__name__)
INTERRUPTED = 130  # as shells have it


def run_pipeline(config: Config, command: str) -> None:
    """Everything, from the data to the results page."""
    started, store = time.perf_counter(), Store.at(config.run.output_dir)
    limit_to_cores()
    if config.run.dry_run:  # no folder is made and no log; warnings reach the terminal all the same
        with start_engine(config.engine, store):  # whether there is one; nothing is begun
            warn_of_unheeded(config)
            print(preview(open_run(config, store)))
        return
    if config.run.explain is not None:
        print(explain_pair(store, config.run.explain))
        return
    run = open_run(config, store)
    run.check_skipped()
    check_comparable(config.report.compare, config.run.output_dir)
    store = Store.open(config.run.output_dir)  # what is wrong by now has left no folder behind
    with (
        only_run_in(store.root),
        logging_to(store, config.run.log_file),
        start_engine(config.engine, store) as engine,
    ):
        logger.info("%s", command)
        logger.info("models run on %s", device_name(run.device))
        use_folder(store.root)
        run = replace(run, engine=engine)
        warn_of_unheeded(config)
        warn_of_replacing(run)
        known = stage_1(run)
        judged = stage_2(run, known)
        run, judged, curve = how_much(run, known, judged)
        chosen = stage_3(run, known, judged, curve)
        exported = export(run, known, chosen)
        proof = prove(run, known, judged, chosen)
        report(run, Results(known, judged, chosen, proof), command=command, started=started)
        for line in exported.lines():
            print(line)


def open_run(config: Config, store: Store) -> Run:
    """What every stage shares; what is wrong with a reviewer's file is said before any work."""
    overrides = read_overrides(config.curation.overrides)
    return Run(config, store, resolve_device(config.run.device), overrides)


def embed(run: Run) -> Saved[EmbeddingResult]:
    """Read the data set and embed its pairs."""
    stage, mode = stages.EMBEDDING, run.mode(stages.EMBEDDING)
    data = resolve_auto(run, mode)
    provenance = data.provenance(run)

    def compute() -> EmbeddingResult:
        most = 0 if run.config.report.no_report else run.config.report.report_images
        watch, room = keep_small(run.small_copies, most), run.room(stage, provenance)
        return data.embed(run, room, watch, rng=run.rng(stage.name))

    return run.have(stage, EmbeddingResult, provenance, compute, mode)


def stage_1(run: Run) -> Known:
    """Every pair embedded and in its topic."""
    embedded = embed(run)
    e, config = embedded.value, run.config.clustering
    captions = e.split_pairs("train")["caption"].tolist()
    clustered = run.shared_stage(
        stages.CLUSTERING,
        ClusterAssignment,
        *(config, stages.for_many(len(e.indices))),
        after=[embedded],
        compute=lambda rng, room: cluster_embeddings(
            *(e.concatenated_embeddings, e.clip_scores, captions, config),
            rng=rng,
            image_features=e.image_features,
            room=room,
        ),
    )
    return Known(embedded, clustered, training_pairs(e, clustered.value, run.device))


def stage_2(run: Run, known: Known) -> Judged:
    """Which held-out pairs are trusted, and what helps by their word."""
    config, needed = run.config, run.config.needs_influence()
    many = stages.for_many(len(known.pairs.indices))
    similarity = config.clustering.near_copy_similarity
    trust = run.stage(
        stages.TRUST,
        PairTrust,
        *(config.trust, {"near_copy_similarity": similarity}, many),
        after=[known.embedded],
        needed_later=needed,
        compute=lambda rng: judge_held_out(
            known.embedded.value, known.pairs, config.trust, similarity, rng=rng
        ),
    )
    asked = known.pairs if trust.found is None else known.pairs.asking(trust.found.asked)
    influence = run.shared_stage(
        stages.INFLUENCE,
        InfluenceResult,
        *(config.influence, config.training, many),
        after=[known.embedded, known.clustered, trust],
        needed_later=needed,
        compute=lambda rng, room: score_clusters(
            asked, config.influence, config.training, room, rng=rng
        ),
    )
    validated = validate(run, asked, influence)
    scored = score_pairs(run, known, trust, asked, influence)
    return Judged(trust, asked, influence, validated, scored)


def validate(
    run: Run, asked: TrainingPairs, influence: Saved[InfluenceResult]
) -> Saved[InfluenceValidation] | None:
    """On demand: how well the estimate matches real retraining."""
    config = run.config.influence_validation
    if config.validate_influence == 0:
        return None
    return run.shared_stage(
        stages.INFLUENCE_VALIDATION,
        InfluenceValidation,
        config,
        after=[influence],
        compute=lambda rng, room: validate_influence(
            influence.value, asked, config, run.config.training, room, rng=rng
        ),
    )


def score_pairs(
    run: Run,
    known: Known,
    trust: Saved[PairTrust],
    asked: TrainingPairs,
    influence: Saved[InfluenceResult],
) -> Saved[PairInfluence]:
    """The influence of pairs and cells; what is curated between rounds decides what follows.

    A reviewer's say is for the set that is handed out: between rounds it is not obeyed, so that a
    review changes no value that it was made by.
    """
    config, max_steps = run.config, run.config.influence.max_reference_steps
    in_rounds = config.pair_influence.rounds > 1
    return run.shared_stage(
        stages.PAIR_INFLUENCE,
        PairInfluence,
        *(config.pair_influence, config.training, {"max_reference_steps": max_steps}),
        *([config.curation] if in_rounds else []),
        after=[known.embedded, known.clustered, trust, *([influence] if in_rounds else [])],
        needed_later=config.needs_pair_influence(),
        compute=lambda rng, room: score_pairs_in_rounds(
            *(asked, trust.value, config.pair_influence, config.training, room),
            max_steps=max_steps,
            curate=lambda estimate: curate(asked, influence.value, estimate, config.curation),
            rng=rng,
        ),
    )


def how_much(run: Run, known: Known, judged: Judged) -> tuple[Run, Judged, Saved[KeepCurve]]:
    """What each share kept is expected to reach; with `auto`, the share, of which the run knows.

    All pairs count the same in it, whatever they look like: it says what keeping them does. Where
    values only sort easy pairs from hard ones, what follows is told so.
    """
    config, asked, scored = run.config.curation, judged.asked, judged.scored
    is_asked_for = config.target_size_ratio == AUTO

    def kept_at(share: float) -> Kept:
        least = min(config.min_group_retention, share)
        at = replace(config, target_size_ratio=share, min_group_retention=least, faulty_weight=1.0)
        made = curate(asked, judged.influence.value, scored.value, at, must_fit=False)
        return Kept(made.curated_rows, made.sample_weights)

    curve = run.shared_stage(
        stages.KEEP_CURVE,
        KeepCurve,
        *(curve_settings(config), run.config.training),
        after=[known.clustered, judged.influence, scored],
        needed_later=is_asked_for,
        compute=lambda rng, room: measure_keep_curve(
            *(asked, kept_at, scored.value, run.config.training, room), rng=rng
        ),
    )
    if curve.found is not None and scored.found is not None:
        value = faults_alone(scored.value, curve.found, run.rng("faults alone"))
        scored = replace(scored, found=value)
        judged = judged._replace(scored=scored)
    if is_asked_for:
        reviewed = run.overrides.of(known.embedded.value.split_pairs("train")["id"].tolist())
        values = estimated_parts(asked, scored.value, config).total
        wanted = curve.value.share
        share = share_with_room(wanted, values, asked.groups, reviewed, config)
        found = replace(config, target_size_ratio=share)
        logger.info("--target_size_ratio auto: %s", auto_share(wanted, share))
        run = replace(run, config=run.config._replace(curation=found), asked=run.config)
    return run, judged, curve


def stage_3(run: Run, known: Known, judged: Judged, curve: Saved[KeepCurve]) -> Chosen:
    """Which pairs are kept, with what weight, and what happened to every one."""
    config, e, asked, scored = run.config, known.embedded.value, judged.asked, judged.scored
    reviewed = run.reviewed(e.split_pairs("train")["id"].tolist())
    curated = run.stage(
        stages.CURATION,
        CurationResult,
        *(config.curation, run.overrides.settings()),
        after=[known.clustered, judged.influence, scored, curve],
        needed_later=config.needs_curation(),
        compute=lambda _: curate(
            *(asked, judged.influence.value, scored.value, config.curation), reviewed
        ),
    )
    ledger = run.stage(
        stages.LEDGER,
        Ledger,
        after=[curated],
        needed_later=curated.found is not None,
        compute=lambda _: make_ledger(
            *(e.pairs, e.skipped, asked, scored.value, curated.value),
            estimated_parts(asked, scored.value, config.curation),
            judged.trust.found,
        ),
    )
    return Chosen(curve, curated, ledger)


def export(run: Run, known: Known, chosen: Chosen) -> ExportReport:
    """The curated set as trainers read it, in the formats asked for.

    Raises:
        InputError: the curation was neither run nor loaded.
    """
    config, e, ledger = run.config, known.embedded.value, chosen.ledger
    warn_of_outdated(run.store, config.export, ledger.fingerprint)
    if not config.export.export:
        return ExportReport(())
    dataset, curated = run.dataset(), curated_pairs(ledger.value.ledger)
    if config.data.embeddings_dir is not None:  # hashes of embeddings, not of image files
        curated["image_sha256"] = ""
    return export_curated(
        curated,
        lambda: run.open_source(dataset),
        run.store,
        config.export,
        fingerprint=ledger.fingerprint,
        about={"dataset": dataset, "source": e.source, "encoder": e.encoder},
        n_workers=config.data.n_workers(),
        workers=Workers(run.engine, Setup(open_again, run.source_job(dataset))),
    )


def select_rivals(run: Run, known: Known, judged: Judged) -> dict[str, Saved[Selection]]:
    """The subset of every rival, of the same size; they look at all validation pairs."""
    ratio = run.config.curation.share
    needed = {saved.name: saved for saved in (known.clustered, judged.influence, judged.scored)}
    reference = None
    if (influence := judged.influence.found) is not None:
        reference = Reference(
            *(influence.reference(run.device), run.config.training.batch_size),
            *(judged.scored.found, run.config.curation),
        )
    rivals = {
        name: run.stage(
            baseline_stage(name),
            Selection,
            *({"target_size_ratio": ratio}, stages.for_many(len(known.pairs.indices))),
            *([run.config.curation] if stages.PAIR_INFLUENCE.name in METHODS[name].needs else []),
            after=[known.embedded, *(needed[stage] for stage in METHODS[name].needs)],
            compute=partial(select_baseline, name, known.pairs, reference, ratio),
        )
        for name in (*BASELINES, *CONTROLS)
        if name in run.config.evaluation.methods
    }
    fingerprints = {name: rival.fingerprint for name, rival in rivals.items()}
    run.store.write_json("baselines/manifest.json", fingerprints)
    return rivals


def prove(run: Run, known: Known, judged: Judged, chosen: Chosen) -> Proof:
    """Train on every method's subset and rank the test queries; with `--methods none` nothing."""
    config, asked, subsets = run.config, judged.asked, dict[str, Subset]()
    if not config.evaluation.methods:
        if (found := chosen.curated.found) is not None:
            subsets[INFLUENCESPACE] = Subset(found.curated_rows, found.sample_weights)
        return Proof(subsets, None, run.seconds)
    rivals = select_rivals(run, known, judged)
    after: list[Saved[Any]] = [known.embedded]
    if judged.trust.found is not None:  # it says on which pairs the loss is taken on the way
        after.append(judged.trust)
    for name in config.evaluation.methods:
        if name == FULL:
            subsets[name] = Subset(np.arange(len(known.pairs.indices)), None)
        elif name == INFLUENCESPACE:
            curated = chosen.curated.value
            subsets[name] = Subset(curated.curated_rows, curated.sample_weights)
            after.append(replace(chosen.curated, name=name))
        else:
            subsets[name] = Subset(rivals[name].value.rows, rivals[name].value.weights)
            after.append(rivals[name])
    test = retrieval_set(known.embedded.value, known.pairs.scaling, run.device)
    evaluated = run.training_stage(
        stages.EVALUATION,
        EvaluationResult,
        *(config.training, config.evaluation),
        after=after,
        compute=lambda rng, room, on_model: evaluate_methods(
            *(subsets, asked, test, config.training, config.evaluation, room),
            rng=rng,
            on_model=on_model,
        ),
    )
    return Proof(subsets, evaluated, run.seconds)


def report(run: Run, results: Results, *, command: str, started: float) -> None:
    """Tables, figures and the results page, all from the stages' results."""
    config, sheets = run.config, tuple[str, ...]()
    if config.execution.visualize:
        sheets = draw_contact_sheets(
            *(run.store, run.open_source(run.dataset())),
            *(results.known.embedded.value, results.known.clustered.value),
            results.chosen.curated.found,
            max_image_pixels=config.data.max_image_pixels,
            rng=run.rng("contact sheets"),
        )
    changes = compare(run, results, run.about(command, started))
    shown = None if config.report.no_report else look(run, results, changes)
    summary = summarize(
        *(results, run.about(command, started), config.curation, config.clustering),
        contact_sheets=sheets,
        rng=run.rng("demographic gaps"),
    )
    figures = visualize.figures(summary)
    told = "" if changes is None else changes_markdown(changes)
    summary = replace(summary, figures=tuple(figures), changes=told)
    write_results(run.store, summary, figures)
    if config.report.no_report:
        remove_report(run.store)
    else:
        write_report(run.store, summary, shown)
    finish(run.store, summary, started=started, log_file=config.run.log_file)
    print(console_summary(summary))


def compare(run: Run, results: Results, about: Mapping[str, Any]) -> Changes | None:
    """What differs from the run of `--compare`; None where none is named."""
    other, ledger = run.config.report.compare, results.chosen.ledger.found
    if other is None:
        return None
    known, about = results.known, {**about, "encoder": results.known.embedded.value.encoder}
    changes = read_changes(
        *(other, None if ledger is None else ledger.ledger, about),
        method_metrics(evaluated.value) if (evaluated := results.proof.evaluated) else {},
        known.clustered.value.clusters,
    )
    if text := not_comparable(changes):
        logger.warning("--compare %s: %s", other, text)
    return changes


def look(run: Run, results: Results, changes: Changes | None) -> Shown | None:
    """The pairs as the report shows them, on a map and with photographs; None without stage 3."""
    config, found = run.config, findings(run, results, changes)
    if found is None:
        return None
    pairs, embedded = gather(found, run.rng("report")), results.known.embedded
    read, most = embedded.value.pairs, config.report.report_images
    within = set(pairs.table["image_sha256"][pairs.inside])
    # Where not all photographs are shown, those are that belong to pairs in the page.
    chosen_by: list[Saved[Any]] = (
        [results.chosen.ledger] if read["image_sha256"].nunique() > most else []
    )

    def make(rng: np.random.Generator) -> Photographs:
        wanted = wanted_photographs(read, within, most, rng)
        if wanted["image_sha256"].isin(run.small_copies.keys()).all():  # a stream is read once
            readers = read_copies(wanted, run.small_copies)
        else:
            readers = run.open_source(run.dataset()).read_again(wanted["key"].tolist())
        return make_photographs(
            *(wanted, readers),
            max_image_pixels=config.data.max_image_pixels,
            n_workers=config.data.n_workers(),
        )

    photographs, settings = none_made(), {"report_images": most} if chosen_by else {}
    try:
        if most:
            after = [embedded, *chosen_by]
            photographs = run.stage(
                stages.PHOTOGRAPHS, Photographs, settings, after=after, compute=make
            ).value
    except InputError as error:  # the data were moved since; all else can be shown
        logger.warning("report: it shows no photographs: %s", error)
    return Shown(found, pairs, photographs)


def findings(run: Run, results: Results, changes: Changes | None) -> Findings | None:
    """What the stages have found of pairs; None where they were not curated."""
    (known, judged, chosen, proof), config = results, run.config
    scored, curated, ledger = judged.scored.found, chosen.curated.found, chosen.ledger.found
    if curated is None or ledger is None:
        return None
    e, clustered, table = known.embedded.value, known.clustered.value, ledger.ledger
    shown = in_report(table, clustered.copy_links, ledger.cut, run.rng("report pairs"))
    # Where not all pairs are shown, the map is of those that are.
    chosen_by = {} if shown.all() else {"report_pairs": [MOST_TRAINING, MOST_OTHERS]}
    mapped = run.stage(
        stages.PAIR_MAP,
        PairMap,
        chosen_by,
        after=[known.embedded, *([chosen.ledger] if chosen_by else [])],
        compute=lambda rng: map_pairs(
            e.concatenated_embeddings[shown_rows(table, shown)]
            if chosen_by
            else e.concatenated_embeddings,
            rng=rng,
        ),
    )
    if chosen_by:
        logger.info("report: it shows %s of %s pairs", f"{shown.sum():,}", f"{len(shown):,}")
    quality = None if scored is None else scored.quality
    doubts = caution(quality), guard(quality)
    ratio = config.curation.share
    return Findings(
        *(e, clustered, curated, ledger),
        told=Told(ledger.cut, topics(curated.categorization), ratio, doubts),
        subsets=proof.subsets,
        shown=shown,
        pair_map=mapped.value,
        near_copy_similarity=config.clustering.near_copy_similarity,
        moved=None if changes is None else changes.moved,
        fingerprint=chosen.ledger.fingerprint,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 for bad input, which gets one line and no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run_pipeline(parse_arguments(given), shlex.join(["python", "main.py", *given]))
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `--dry_run | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is saved stays, continue with --load_saved", file=sys.stderr)
        return INTERRUPTED
    return 0


def program() -> NoReturn:
    """`main`, and the end of the process: at once after an interrupt.

    Threads of libraries that still read are not waited for; those in C would abort a program that
    is torn down around them.
    """
    code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # a second one, while the first is told
        code = main()
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    program()

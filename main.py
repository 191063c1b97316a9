"""InfluenceSpace from the command line: the pipeline from top to bottom, one call a stage."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as to_safetensors

from artifacts.provenance import (
    CLUSTERING,
    CURATION,
    EMBEDDING,
    EVALUATION,
    INFLUENCE,
    INFLUENCE_VALIDATION,
    LEDGER,
    PAIR_INFLUENCE,
    TRUST,
    Mode,
    Provenance,
    Saved,
    StaleError,
    baseline_stage,
)
from artifacts.settings import InputError
from artifacts.store import Checkpoints, Store
from attribution.pair_scores import KnownPairs
from attribution.results import InfluenceResult, InfluenceValidation, PairInfluence
from attribution.trust import PairsInSpace, PairTrust, judge_pairs
from attribution.validation import validate_influence
from baselines import (
    BASELINES,
    NEED_CLUSTERS,
    NEED_REFERENCE,
    BaselineInputs,
    Selection,
    select_baseline,
)
from cli.auto import warn_of_replacing
from cli.config import Config, parse_arguments
from cli.log import logging_to
from cli.preview import preview
from cli.run import Run
from clustering import ClusterAssignment, cluster_embeddings
from curation import CurationInputs, CurationResult, curate, representation, value_parts
from data import SYNTHETIC_WARNING, PairReader
from embedding import EmbeddingResult, embed_pairs
from encoders.base import EMBEDDED_WARNING, GivenEmbeddings, resolve_dtype
from encoders.pretrained import load_encoder
from exporting.formats import ExportReport, export_curated, outdated_exports
from influence import estimate_influence, estimate_pair_influence
from learner.model import Parameters
from learner.pairs import PairTensors, fit_feature_scaling, nearest_clusters
from reporting.ledger import Ledger, LedgerInputs, curated_pairs, make_ledger
from reporting.results import explain_pair, write_results
from sources.base import PairSource
from sources.captions import caption_groups
from sources.embeddings import EmbeddingFiles, open_embeddings
from sources.images import decode_pixels
from train_eval import (
    FULL,
    INFLUENCESPACE,
    EvaluationResult,
    RetrievalSet,
    Subset,
    evaluate_methods,
)

logger = logging.getLogger(__name__)

# Threads that wait for each other sleep: spinning ones slow a shared machine many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported


def run_pipeline(config: Config, command: str) -> None:
    """Everything, from the data to the results page."""
    started = time.perf_counter()
    if config.run.dry_run:  # no folder is made and no log; warnings reach the terminal all the same
        store = Store.at(config.run.output_dir)
        print(preview(Run(config, store, resolve_device(config.run.device))))
        return
    if config.run.explain is not None:
        print(explain_pair(Store.at(config.run.output_dir), config.run.explain))
        return
    store = Store.open(config.run.output_dir)
    with logging_to(store, config.run.log_file):
        logger.info("%s", command)
        run = Run(config, store, resolve_device(config.run.device))
        warn_of_replacing(run)
        embedded = embed(run)
        inputs = model_inputs(embedded.value, run.device)
        clustered = cluster(run, embedded)
        trust = judge(run, embedded, inputs)
        asked = inputs.asking(trust.value)
        influence = score(run, embedded, clustered, trust, asked)
        validated = validate(run, embedded, clustered, influence, asked)
        pair_influence = score_pairs(run, embedded, clustered, trust, influence, asked)
        curated = select(run, embedded, clustered, influence, pair_influence, asked)
        ledger = record(run, embedded, clustered, trust, pair_influence, curated)
        exported = export(run, embedded, ledger)
        rivals = select_baselines(run, embedded, clustered, influence, inputs)
        evaluated, subsets = evaluate(run, embedded, trust, curated, rivals, asked)
        write_results(
            run,
            embedded.value,
            clustered.value,
            influence.value,
            validated.value if validated else None,
            pair_influence.value,
            curated.value,
            subsets,
            evaluated.value,
            ledger.value,
            command=command,
            started=started,
            trust=trust.value,
        )
        for line in exported.lines():
            print(line)


def resolve_device(name: str) -> torch.device:
    """The device to run on.

    Raises:
        InputError: it is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name} is not available here; use --device auto")
    return torch.device(name)


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
        return 130
    return 0


class ModelInputs(NamedTuple):
    """Scaled features on the device."""

    pairs: PairTensors
    validation: PairTensors
    test: RetrievalSet

    def asking(self, trust: PairTrust | None) -> ModelInputs:
        """The same with those of the validation pairs that are trusted to say what helps."""
        if trust is None:
            return self
        rows = torch.from_numpy(trust.asked).to(self.validation.images.device)
        return self._replace(validation=self.validation.take(rows))


def embed(run: Run) -> Saved:
    """Stage 1a: read the data set and embed its pairs."""
    config, stage, mode = run.config, EMBEDDING, run.mode(EMBEDDING)
    dataset, encoder_model = config.data.dataset, config.embedding.encoder_model
    earlier: dict[str, Any] = {}
    if mode is not Mode.RUN:
        try:
            earlier = run.store.manifest(stage)
        except StaleError:
            logger.debug("no earlier embedding")
    if earlier and earlier["settings"].get("embeddings_dir") != config.data.embeddings_dir:
        earlier = {}  # of other data: it says nothing about what `auto` means
    if earlier:  # what `auto` meant when it was saved, it still means
        dataset = earlier["settings"]["dataset"] if dataset == "auto" else dataset
        if encoder_model == "auto":
            encoder_model = earlier["settings"]["encoder_model"]
    source: PairSource | None = None
    given: EmbeddingFiles | None = None
    if mode is Mode.LOAD and earlier:
        data_fingerprint = earlier["inputs"]["data set"]
    elif config.data.embeddings_dir is not None:
        given = open_embeddings(config.data, rng=run.rng("data"))
        source, encoder_model = given.source, given.name
        dataset, data_fingerprint = source.name, source.fingerprint
    else:
        source = run.open_source(dataset)
        dataset, data_fingerprint = source.name, source.fingerprint
    if source is not None:
        logger.info("data set: %s", source.description)
    encoder = None
    if encoder_model == "auto":
        encoder = load_encoder(config.embedding, device=run.device)
        encoder_model = encoder.name

    def compute() -> EmbeddingResult:
        if given is not None:
            reader = PairReader(given.source, config.data, decode=given.decode)
            texts = GivenEmbeddings(given.name, given.texts_at)
            return embed_pairs(reader, texts, config.embedding, rng=run.rng(stage.name))
        chosen = replace(config.embedding, encoder_model=encoder_model)
        used = encoder or load_encoder(chosen, device=run.device)
        data = replace(config.data, dataset=dataset)
        decode = decode_pixels(used.preprocess, data.max_image_pixels)
        reader = PairReader(source or run.open_source(dataset), data, decode=decode)
        return embed_pairs(reader, used, chosen, rng=run.rng(stage.name))

    for auto, resolved, fallback, warning in (
        (config.data.dataset, dataset, "synthetic", SYNTHETIC_WARNING),
        (config.embedding.encoder_model, encoder_model, "embedded", EMBEDDED_WARNING),
    ):
        if auto == "auto" and resolved == fallback:
            run.warnings.append(warning)
            if earlier:
                logger.warning(warning)
    settings = {
        **config.data.fingerprint_settings(),
        "dataset": dataset,
        "encoder_model": encoder_model,
        "precision": str(resolve_dtype(config.embedding.precision, run.device)),
    }
    inputs, defaults = {"data set": data_fingerprint}, config.data.left_out_defaults()
    return run.have(stage, EmbeddingResult, compute, settings, inputs, mode, defaults)


def model_inputs(embedding: EmbeddingResult, device: torch.device) -> ModelInputs:
    """What the trained models take in: features scaled once for all methods."""
    e = embedding
    scaling = fit_feature_scaling(e.image_features, e.text_features)
    return ModelInputs(
        scaling.pairs(e.image_features, e.text_features, device),
        scaling.pairs(e.validation_image_features, e.validation_text_features, device),
        RetrievalSet(
            scaling.images(e.test_image_features, device),
            scaling.texts(e.test_text_features, device),
            e.test_caption_image,
            torch.from_numpy(e.test_image_embeddings).to(device),
            torch.from_numpy(e.test_text_embeddings).to(device),
        ),
    )


def cluster(run: Run, embedded: Saved) -> Saved:
    """Stage 1b: group the pairs into topics."""
    stage, config, e = CLUSTERING, run.config.clustering, embedded.value
    return run.have(
        stage,
        ClusterAssignment,
        lambda: cluster_embeddings(
            e.concatenated_embeddings,
            e.clip_scores,
            e.split_pairs("train")["caption"].tolist(),
            config,
            rng=run.rng(stage.name),
            image_features=e.image_features,
        ),
        config.fingerprint_settings(),
        {"embedding": embedded.fingerprint},
    )


def influence_is_needed(config: Config) -> bool:
    """Whether anything after stage 2 asks what its clusters' scores or reference models say."""
    return (
        CURATION.number not in config.execution.skip_stage
        or bool({"individual_influence", "gradient_similarity"} & set(config.evaluation.methods))
        or config.influence_validation.validate_influence > 0
    )


def judge(run: Run, embedded: Saved, inputs: ModelInputs) -> Saved:
    """Stage 2: which held-out pairs can be trusted."""
    stage, config, e = TRUST, run.config, embedded.value

    def compute() -> PairTrust:
        result = judge_pairs(
            *pairs_to_judge(e, inputs),
            config.trust,
            device=run.device,
            near_copy_similarity=config.clustering.near_copy_similarity,
            rng=run.rng(stage.name),
        )
        logger.info(
            "%s of %s validation pairs are asked what helps",
            f"{len(result.asked):,}",
            f"{len(result.validation_trusted):,}",
        )
        return result

    settings = {
        **config.trust.fingerprint_settings(),
        "near_copy_similarity": config.clustering.near_copy_similarity,
    }
    mode = run.mode(stage, needed_later=influence_is_needed(config))
    return run.have(stage, PairTrust, compute, settings, {"embedding": embedded.fingerprint}, mode)


def pairs_to_judge(
    embedding: EmbeddingResult, inputs: ModelInputs
) -> tuple[PairsInSpace, PairsInSpace, PairsInSpace]:
    """Training, validation and test pairs with their embeddings, one row a caption."""
    e, owner = embedding, embedding.test_caption_image

    def of(
        split: str,
        pairs: PairTensors,
        image_embeddings: np.ndarray | None,
        text_embeddings: np.ndarray | None,
    ) -> PairsInSpace:
        images, texts = (side.cpu().numpy() for side in pairs)
        ids = pd.factorize(e.split_pairs(split)["image_sha256"])[0].astype(np.int64)
        return PairsInSpace(images, texts, image_embeddings, text_embeddings, ids)

    rows = torch.from_numpy(owner).to(inputs.test.images.device)
    test = PairTensors(inputs.test.images[rows], inputs.test.texts)
    return (
        of("train", inputs.pairs, e.image_embeddings, e.text_embeddings),
        of(
            *("validation", inputs.validation),
            *(e.validation_image_embeddings, e.validation_text_embeddings),
        ),
        of("test", test, e.test_image_embeddings[owner], e.test_text_embeddings),
    )


def score(run: Run, embedded: Saved, clustered: Saved, trust: Saved, inputs: ModelInputs) -> Saved:
    """Stage 2: how much every cluster helps or hurts."""
    stage, config = INFLUENCE, run.config
    terms = [c["terms"] for c in clustered.value.clusters]

    def compute() -> InfluenceResult:
        result = estimate_influence(
            inputs.pairs,
            inputs.validation,
            clustered.value.cluster_assignments,
            terms,
            config.influence,
            config.training,
            rng=run.rng(stage.name),
        )
        logger.info("validation loss of the reference models %.4f", result.validation_loss)
        return result

    settings = {
        **config.influence.fingerprint_settings(),
        **config.training.fingerprint_settings(),
    }
    return run.have(
        stage,
        InfluenceResult,
        compute,
        settings,
        {
            "embedding": embedded.fingerprint,
            "clustering": clustered.fingerprint,
            "trust": trust.fingerprint,
        },
        run.mode(stage, needed_later=influence_is_needed(config)),
    )


def score_pairs(
    run: Run,
    embedded: Saved,
    clustered: Saved,
    trust: Saved,
    influence: Saved,
    inputs: ModelInputs,
) -> Saved:
    """Stage 2: the influence of pairs and cells, after `--rounds` rounds of curation."""
    stage, config = PAIR_INFLUENCE, run.config
    rounds = config.cell_influence.rounds

    def compute() -> PairInfluence:
        rng = run.rng(stage.name)
        known = known_pairs(embedded.value, clustered.value, trust.value, inputs)
        result: PairInfluence | None = None
        kept: np.ndarray | None = None
        history: list[dict[str, Any]] = []
        for round_number in range(1, rounds + 1):
            result = estimate_pair_influence(
                known,
                inputs.validation,
                config.cell_influence,
                config.training,
                max_steps=config.influence.max_reference_steps,
                rng=rng,
                kept=kept,
                previous=result,
            )
            curated = curate(
                curation_inputs(embedded, clustered, influence.value, result, inputs),
                config.curation,
            )
            now = curated.training_weights(len(known.clip_scores)) > 0
            history.append(
                {
                    "round": round_number,
                    "validation_loss": round(result.validation_loss, 5),
                    "kept": int(now.sum()),
                    "kept_before_too": None if kept is None else int((now & kept).sum()),
                    "explained": result.quality["explained"],
                }
            )
            logger.info(
                "round %d: validation loss %.4f, %s pairs kept; the inference explains %.0f %%",
                round_number,
                result.validation_loss,
                f"{now.sum():,}",
                100 * float(result.quality["explained"]),
            )
            kept = now
        assert result is not None, "there is at least one round"
        return dataclasses.replace(result, quality={**result.quality, "rounds": history})

    settings = {
        **config.cell_influence.fingerprint_settings(),
        **config.training.fingerprint_settings(),
        "max_reference_steps": config.influence.max_reference_steps,
    }
    upstream = {
        "embedding": embedded.fingerprint,
        "clustering": clustered.fingerprint,
        "trust": trust.fingerprint,
    }
    if rounds > 1:  # what is curated in between decides what comes after
        settings |= config.curation.fingerprint_settings()
        upstream["influence"] = influence.fingerprint
    needed = CURATION.number not in config.execution.skip_stage
    return run.have(
        stage, PairInfluence, compute, settings, upstream, run.mode(stage, needed_later=needed)
    )


def known_pairs(
    embedding: EmbeddingResult,
    clustered: ClusterAssignment,
    trust: PairTrust,
    inputs: ModelInputs,
) -> KnownPairs:
    """What stage 1 says of every training pair."""
    train = embedding.split_pairs("train")
    return KnownPairs(
        inputs.pairs,
        embedding.image_embeddings,
        embedding.text_embeddings,
        embedding.clip_scores,
        pd.factorize(train["image_sha256"])[0].astype(np.int64),
        clustered.cluster_assignments,
        clustered.cell_assignments,
        clustered.better_copies,
        training_groups(embedding),
        trust,
    )


def training_groups(embedding: EmbeddingResult) -> dict[str, np.ndarray]:
    """Which training captions name which demographic group."""
    memberships = caption_groups(embedding.split_pairs("train")["caption"].tolist())
    return {name: member for groups in memberships.values() for name, member in groups.items()}


def validate(
    run: Run, embedded: Saved, clustered: Saved, influence: Saved, inputs: ModelInputs
) -> Saved | None:
    """Stage 2, on demand: compare the estimate with real retraining."""
    stage, config = INFLUENCE_VALIDATION, run.config
    if config.influence_validation.validate_influence == 0:
        return None
    return run.have(
        stage,
        InfluenceValidation,
        lambda: validate_influence(
            influence.value,
            inputs.pairs,
            inputs.validation,
            clustered.value.cluster_assignments,
            embedded.value.clip_scores,
            config.influence_validation,
            config.training,
            rng=run.rng(stage.name),
        ),
        config.influence_validation.fingerprint_settings(),
        {"influence": influence.fingerprint},
    )


def curation_inputs(
    embedded: Saved,
    clustered: Saved,
    influence: InfluenceResult,
    pair_influence: PairInfluence,
    inputs: ModelInputs,
) -> CurationInputs:
    """Everything that pairs are chosen by."""
    e, c = embedded.value, clustered.value
    return CurationInputs(
        indices=e.indices,
        cluster_assignments=c.cluster_assignments,
        cell_assignments=pair_influence.cell_assignments,
        clip_scores=e.clip_scores,
        better_copies=c.better_copies,
        pair_influence=pair_influence.pair_influence,
        cell_influence_stderr=pair_influence.cell_influence_stderr,
        validation_loss=pair_influence.validation_loss,
        influence_scores=influence.influence_scores,
        influence_stderr=influence.influence_stderr,
        represented=representation(
            c.cluster_assignments,
            nearest_clusters(inputs.pairs, c.cluster_assignments, inputs.validation),
        ),
        groups=training_groups(e),
        clusters=c.clusters,
        agreement=pair_influence.agreement,
        counted_influence=pair_influence.counted,
        influence_weight=pair_influence.influence_weight,
        relevance=pair_influence.relevance_part,
    )


def select(
    run: Run,
    embedded: Saved,
    clustered: Saved,
    influence: Saved,
    pair_influence: Saved,
    inputs: ModelInputs,
) -> Saved:
    """Stage 3: prune, retain, raise."""
    stage, config = CURATION, run.config.curation
    return run.have(
        stage,
        CurationResult,
        lambda: curate(
            curation_inputs(embedded, clustered, influence.value, pair_influence.value, inputs),
            config,
        ),
        config.fingerprint_settings(),
        {
            "clustering": clustered.fingerprint,
            "influence": influence.fingerprint,
            "pair_influence": pair_influence.fingerprint,
        },
        run.mode(
            stage,
            needed_later=INFLUENCESPACE in run.config.evaluation.methods
            or bool(run.config.export.export),
        ),
    )


def record(
    run: Run,
    embedded: Saved,
    clustered: Saved,
    trust: Saved,
    pair_influence: Saved,
    curated: Saved,
) -> Saved:
    """Stage 3: the ledger, what happened to every pair."""

    def compute() -> Ledger:
        e, c, p = embedded.value, clustered.value, pair_influence.value
        parts = value_parts(
            *(p.counted, p.agreement, c.better_copies, run.config.curation),
            influence_weight=p.influence_weight,
            relevance=p.relevance_part,
        )
        return make_ledger(
            LedgerInputs(
                pairs=e.pairs,
                skipped=e.skipped,
                clip_scores=e.clip_scores,
                cluster_assignments=c.cluster_assignments,
                cell_assignments=p.cell_assignments,
                better_copies=c.better_copies,
                relative_influence=p.pair_influence / p.validation_loss,
                evaluated=p.pair_influence_evaluated,
                influence_parts=parts.influence,
                agreement_parts=parts.agreement,
                pair_values=curated.value.pair_values,
                weights=curated.value.training_weights(len(e.indices)),
                clusters=curated.value.categorization,
                groups=training_groups(e),
                relevance_parts=parts.relevance,
                agreement=p.agreement,
                trust=trust.value,
            )
        )

    return run.have(
        LEDGER,
        Ledger,
        compute,
        {},
        {"curation": curated.fingerprint},
        run.mode(LEDGER, needed_later=curated.value is not None),
    )


def export(run: Run, embedded: Saved, ledger: Saved) -> ExportReport:
    """The curated set as trainers read it, in the formats asked for.

    Raises:
        InputError: the curation was neither run nor loaded.
    """
    config = run.config.export
    old = outdated_exports(run.store, config, ledger.fingerprint)
    if old:
        logger.warning(
            "%s holds exports of another curation (%s); add --export %s to write them anew",
            run.store.root / "curated",
            " and ".join(old),
            ",".join(old),
        )
    if not config.export:
        return ExportReport(())
    dataset = run.store.manifest(EMBEDDING)["settings"]["dataset"]
    curated = curated_pairs(ledger.value.ledger)
    if run.config.data.embeddings_dir is not None:  # hashes of embeddings, not of image files
        curated["image_sha256"] = ""
    return export_curated(
        curated,
        lambda: run.open_source(dataset),
        run.store,
        config,
        fingerprint=ledger.fingerprint,
        about={
            "dataset": dataset,
            "source": embedded.value.source,
            "encoder": embedded.value.encoder,
        },
        n_workers=run.config.data.num_workers,
    )


def select_baselines(
    run: Run, embedded: Saved, clustered: Saved, influence: Saved, inputs: ModelInputs
) -> dict[str, Saved]:
    """The subset of every rival, of the same size; `inputs` hold all validation pairs."""
    e, config = embedded.value, run.config
    reference = influence.value.reference(run.device) if influence.value else None
    baseline_inputs = BaselineInputs(
        indices=e.indices,
        embeddings=e.concatenated_embeddings,
        image_embeddings=e.image_embeddings,
        text_embeddings=e.text_embeddings,
        validation_image_embeddings=e.validation_image_embeddings,
        clip_scores=e.clip_scores,
        cluster_assignments=clustered.value.cluster_assignments,
        pairs=inputs.pairs,
        validation=inputs.validation,
        reference=reference,
        batch_size=config.training.batch_size,
    )
    uses = {m: {"clustering": clustered.fingerprint} for m in NEED_CLUSTERS}
    uses |= {m: {"influence": influence.fingerprint} for m in NEED_REFERENCE}
    ratio = config.curation.target_size_ratio
    selections = {
        method: run.have(
            baseline_stage(method),
            Selection,
            partial(select_baseline, method, baseline_inputs, ratio, rng=run.rng(method)),
            {"target_size_ratio": ratio},
            {"embedding": embedded.fingerprint, **uses.get(method, {})},
        )
        for method in BASELINES
        if method in config.evaluation.methods
    }
    run.store.write_json(
        "baselines/manifest.json", {name: s.fingerprint for name, s in selections.items()}
    )
    return selections


def evaluate(
    run: Run,
    embedded: Saved,
    trust: Saved,
    curated: Saved,
    rivals: Mapping[str, Saved],
    inputs: ModelInputs,
) -> tuple[Saved, dict[str, Subset]]:
    """Train on every method's subset and rank the test queries."""
    stage, config = EVALUATION, run.config
    subsets: dict[str, Subset] = {}
    fingerprints = {"embedding": embedded.fingerprint}
    if trust.value is not None:  # it says on which pairs the loss is taken on the way
        fingerprints["trust"] = trust.fingerprint
    for method in config.evaluation.methods:
        if method == FULL:
            subsets[method] = Subset(np.arange(len(embedded.value.indices)), None)
        elif method == INFLUENCESPACE:
            subsets[method] = Subset(curated.value.curated_rows, curated.value.sample_weights)
            fingerprints[method] = curated.fingerprint
        else:
            subsets[method] = Subset(rivals[method].value.rows, None)
            fingerprints[method] = rivals[method].fingerprint
    settings = {
        **config.training.fingerprint_settings(),
        **config.evaluation.fingerprint_settings(),
    }
    checkpoints = Checkpoints(
        run.store, Provenance(config.run.seed, settings, fingerprints).fingerprint(stage)
    )
    mode = run.mode(stage)
    if mode is Mode.REUSE and config.execution.save_checkpoints and not checkpoints.complete():
        logger.warning("evaluation recomputed: its checkpoints are missing")
        mode = Mode.RUN

    def save_model(name: str, parameters: Parameters) -> None:
        tensors = {k: v.cpu().contiguous() for k, v in parameters._asdict().items()}
        checkpoints.write(name, to_safetensors(tensors))

    evaluated = run.have(
        stage,
        EvaluationResult,
        lambda: evaluate_methods(
            subsets,
            inputs.pairs,
            inputs.validation,
            inputs.test,
            config.training,
            config.evaluation,
            rng=run.rng(stage.name),
            on_model=save_model if config.execution.save_checkpoints else None,
        ),
        settings,
        fingerprints,
        mode,
    )
    if config.execution.save_checkpoints:
        checkpoints.finish()
    return evaluated, subsets


if __name__ == "__main__":
    sys.exit(main())

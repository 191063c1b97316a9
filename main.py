"""InfluenceSpace from the command line: the flags, then the pipeline from top to bottom.

Every flag is a field of one stage's `Settings`; every stage is one call that computes, reuses or
loads its result. No arithmetic happens here.
"""

from __future__ import annotations

import os

# Threads that wait for each other sleep: spinning ones slow a shared machine many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import argparse
import dataclasses
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import artifacts
import report
from artifacts import Mode, Provenance, Saved, StaleError, Store, baseline_stage, stage_mode
from baselines import BASELINES, BaselineInputs, Selection, select_baseline
from clustering import ClusterAssignment, ClusteringConfig, cluster_embeddings
from curation import (
    CurationConfig,
    CurationResult,
    curate,
    curated_size,
    drop_examples,
    faults_dropped,
)
from data import DataConfig, PairReader, PairSource, decode_image
from embedding import (
    EMBEDDED_WARNING,
    EmbeddingConfig,
    EmbeddingResult,
    embed_pairs,
    load_encoder,
    resolve_dtype,
)
from influence import InfluenceConfig, InfluenceResult, estimate_influence
from model import PairTensors, Parameters, TrainingConfig, fit_feature_scaling
from settings import InputError, Settings, add_flags, from_flags, setting
from sources import SYNTHETIC_WARNING, open_source
from train_eval import (
    FULL,
    INFLUENCESPACE,
    EvaluationConfig,
    EvaluationResult,
    RetrievalSet,
    Subset,
    demographic_gaps,
    efficiency_metrics,
    evaluate_methods,
    histories,
    method_metrics,
    recall_metrics,
)
from visualize import contact_sheet

logger = logging.getLogger("influencespace")


# --- Flags ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunConfig(Settings):
    """Where the run writes and what it runs on."""

    output_dir: str = setting("./output", "folder for everything the run writes")
    seed: int = setting(42, "every random choice of the run follows from it", at_least=0)
    log_file: str = setting("log.txt", "log file; a relative path is inside --output_dir")
    debug: bool = setting(False, "a run of under a minute: small data, few seeds")
    device: str = setting("auto", "where models run", choices=("auto", "cpu", "cuda", "mps"))


@dataclass(frozen=True)
class ExecutionConfig(Settings):
    """Which stages run, and what is written beside their results."""

    skip_stage: tuple[int, ...] = setting(
        (),
        "stages (1, 2, 3) not to run; what later stages need of them is loaded",
        choices=(1, 2, 3),
        type=int,
    )
    load_saved: bool = setting(
        False, "reuse every saved result made with the current settings, recompute the others"
    )
    save_checkpoints: bool = setting(
        False, "save every trained model as safetensors in evaluation/checkpoints"
    )
    visualize: bool = setting(
        False,
        "also draw contact sheets: the photographs of every cluster, of what is kept and dropped",
    )


class Config(NamedTuple):
    """The settings of a run, one dataclass a stage."""

    run: RunConfig
    data: DataConfig
    embedding: EmbeddingConfig
    clustering: ClusteringConfig
    influence: InfluenceConfig
    curation: CurationConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    execution: ExecutionConfig

    def flat(self) -> dict[str, Any]:
        """Every setting by flag name."""
        return {name: v for part in self for name, v in dataclasses.asdict(part).items()}


GROUPS: Mapping[str, type[Settings]] = {
    "run": RunConfig,
    "data set": DataConfig,
    "stage 1, embedding": EmbeddingConfig,
    "stage 1, clustering": ClusteringConfig,
    "stage 2, influence estimation": InfluenceConfig,
    "stage 3, curation": CurationConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "execution control": ExecutionConfig,
}

# What --debug sets, unless a flag says otherwise.
DEBUG_SETTINGS: Mapping[str, Any] = {
    "max_train_samples": 400,
    "max_val_samples": 100,
    "max_test_samples": 100,
    "n_clusters": 20,
    "samples_per_cluster": 2,
    "num_epochs": 5,
    "n_seeds": 2,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python main.py --help")


def make_parser() -> argparse.ArgumentParser:
    """The command line, one group a stage, made from the fields of the settings."""
    parser = _Parser(
        prog="python main.py",
        description="Curate an image-text training set by influence, and prove it by training.",
        epilog="Without flags: COCO where it can be had, else synthetic scenes, into ./output.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=98),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for title, settings_type in GROUPS.items():
        add_flags(parser.add_argument_group(title), settings_type)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> Config:
    """The settings of a run.

    Raises:
        InputError: an unknown flag or a wrong value, before any work starts.
    """
    given = vars(make_parser().parse_args(arguments))
    if given.get("debug"):
        given = {**DEBUG_SETTINGS, **given}
    config = Config(*(from_flags(t, given) for t in GROUPS.values()))  # type: ignore[arg-type]
    n, k = config.data.max_train_samples, config.clustering.n_clusters
    if k > n:
        raise InputError(f"--n_clusters {k} is more than --max_train_samples {n}; change one")
    if int(config.influence.influence_budget * n) < k:
        raise InputError(
            f"--influence_budget {config.influence.influence_budget:g} of {n} training pairs is "
            f"less than one for each of --n_clusters {k}; raise it or lower --n_clusters"
        )
    return config


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


# --- The pipeline -----------------------------------------------------------------------------


class ModelInputs(NamedTuple):
    """Scaled features on the device."""

    pairs: PairTensors
    validation: PairTensors
    test: RetrievalSet


@dataclass
class Run:
    """What every step shares."""

    config: Config
    store: Store
    device: torch.device
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def rng(self, name: str) -> np.random.Generator:
        """A step's own generator."""
        return artifacts.stage_rng(self.config.run.seed, name)

    def mode(self, stage: artifacts.Stage, needed_later: bool = True) -> Mode:
        """How a stage is to be had."""
        return stage_mode(
            skipped=stage.number in self.config.execution.skip_stage,
            needed_later=needed_later,
            load_saved=self.config.execution.load_saved,
        )

    def have(
        self,
        stage: artifacts.Stage,
        result_type: type[Any],
        compute: Callable[[], Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        mode: Mode | None = None,
    ) -> Saved:
        """A stage's result, computed, reused or loaded."""
        provenance = Provenance(self.config.run.seed, settings, inputs)
        mode = self.mode(stage) if mode is None else mode
        saved = self.store.stage(stage, mode, provenance, result_type, compute)
        self.seconds[stage.name] = saved.seconds
        return saved

    def open_source(self, dataset: str) -> PairSource:
        """The data set named, with the choices that the seed makes."""
        return open_source(replace(self.config.data, dataset=dataset), rng=self.rng("data"))


def run_pipeline(config: Config, command: str) -> None:
    """Everything, from the data to the results page."""
    started = time.perf_counter()
    store = Store.open(config.run.output_dir)
    with _logging(store, config.run.log_file):
        logger.info("%s", command)
        run = Run(config, store, resolve_device(config.run.device))
        embedded = embed(run)
        inputs = model_inputs(embedded.value, run.device)
        clustered = cluster(run, embedded)
        influence = score(run, embedded, clustered, inputs)
        curated = select(run, embedded, clustered, influence)
        rivals = select_baselines(run, embedded, clustered, influence, inputs)
        evaluated, subsets = evaluate(run, embedded, curated, rivals, inputs)
        write_results(
            run,
            embedded.value,
            clustered.value,
            influence.value,
            curated.value,
            subsets,
            evaluated.value,
            command=command,
            started=started,
        )


def embed(run: Run) -> Saved:
    """Stage 1a: read the data set and embed its pairs."""
    config, stage, mode = run.config, artifacts.EMBEDDING, run.mode(artifacts.EMBEDDING)
    dataset, encoder_model = config.data.dataset, config.embedding.encoder_model
    earlier: dict[str, Any] = {}
    if mode is not Mode.RUN:
        try:
            earlier = run.store.manifest(stage)
        except StaleError:
            logger.debug("no earlier embedding")
    if earlier:  # what `auto` meant when it was saved, it still means
        dataset = earlier["settings"]["dataset"] if dataset == "auto" else dataset
        if encoder_model == "auto":
            encoder_model = earlier["settings"]["encoder_model"]
    source = None
    if mode is Mode.LOAD and earlier:
        data_fingerprint = earlier["inputs"]["data set"]
    else:
        source = run.open_source(dataset)
        dataset, data_fingerprint = source.name, source.fingerprint
    encoder = None
    if encoder_model == "auto":
        encoder = load_encoder(config.embedding, device=run.device)
        encoder_model = encoder.name

    def compute() -> EmbeddingResult:
        chosen = replace(config.embedding, encoder_model=encoder_model)
        used = encoder or load_encoder(chosen, device=run.device)
        data = replace(config.data, dataset=dataset)
        reader = PairReader(source or run.open_source(dataset), data, preprocess=used.preprocess)
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
    return run.have(stage, EmbeddingResult, compute, settings, {"data set": data_fingerprint}, mode)


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
    stage, config, e = artifacts.CLUSTERING, run.config.clustering, embedded.value
    return run.have(
        stage,
        ClusterAssignment,
        lambda: cluster_embeddings(
            e.concatenated_embeddings,
            e.clip_scores,
            e.split_pairs("train")["caption"].tolist(),
            config,
            rng=run.rng(stage.name),
        ),
        config.fingerprint_settings(),
        {"embedding": embedded.fingerprint},
    )


def score(run: Run, embedded: Saved, clustered: Saved, inputs: ModelInputs) -> Saved:
    """Stage 2: how much every cluster helps or hurts, after `--rounds` rounds of curation."""
    stage, config = artifacts.INFLUENCE, run.config
    methods = config.evaluation.methods
    curation_runs = INFLUENCESPACE in methods and artifacts.CURATION.number not in (
        config.execution.skip_stage
    )
    terms = [c["terms"] for c in clustered.value.clusters]

    def compute() -> InfluenceResult:
        rng = run.rng(stage.name)
        weights: np.ndarray | None = None
        for round_number in range(1, config.influence.rounds + 1):
            result = estimate_influence(
                inputs.pairs,
                inputs.validation,
                clustered.value.cluster_assignments,
                terms,
                config.influence,
                config.training,
                rng=rng,
                sample_weights=weights,
            )
            logger.info("round %d: validation loss %.4f", round_number, result.validation_loss)
            if round_number < config.influence.rounds:
                curated = curate_clusters(config.curation, embedded, clustered, result)
                weights = curated.training_weights(len(embedded.value.indices))
        return result

    settings = {
        **config.influence.fingerprint_settings(),
        **config.training.fingerprint_settings(),
    }
    if config.influence.rounds > 1:
        settings |= config.curation.fingerprint_settings()
    return run.have(
        stage,
        InfluenceResult,
        compute,
        settings,
        {"embedding": embedded.fingerprint, "clustering": clustered.fingerprint},
        run.mode(stage, needed_later=curation_runs or "individual_influence" in methods),
    )


def curate_clusters(
    config: CurationConfig, embedded: Saved, clustered: Saved, influence: InfluenceResult
) -> CurationResult:
    """The curated subset that these influence scores ask for."""
    return curate(
        influence.influence_scores,
        influence.influence_stderr,
        clustered.value.cluster_assignments,
        embedded.value.clip_scores,
        embedded.value.indices,
        clustered.value.clusters,
        config,
    )


def select(run: Run, embedded: Saved, clustered: Saved, influence: Saved) -> Saved:
    """Stage 3: prune, retain, raise."""
    stage, config = artifacts.CURATION, run.config.curation
    return run.have(
        stage,
        CurationResult,
        lambda: curate_clusters(config, embedded, clustered, influence.value),
        config.fingerprint_settings(),
        {"clustering": clustered.fingerprint, "influence": influence.fingerprint},
        run.mode(stage, needed_later=INFLUENCESPACE in run.config.evaluation.methods),
    )


def select_baselines(
    run: Run, embedded: Saved, clustered: Saved, influence: Saved, inputs: ModelInputs
) -> dict[str, Saved]:
    """The subset of every rival, of the same size."""
    e, config = embedded.value, run.config
    reference = influence.value.reference(run.device) if influence.value else None
    baseline_inputs = BaselineInputs(
        indices=e.indices,
        embeddings=e.concatenated_embeddings,
        clip_scores=e.clip_scores,
        cluster_assignments=clustered.value.cluster_assignments,
        pairs=inputs.pairs,
        validation=inputs.validation,
        reference=reference,
        batch_size=config.training.batch_size,
    )
    uses = {
        "diversity_sampling": {"clustering": clustered.fingerprint},
        "individual_influence": {"influence": influence.fingerprint},
    }
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
    run: Run, embedded: Saved, curated: Saved, rivals: Mapping[str, Saved], inputs: ModelInputs
) -> tuple[Saved, dict[str, Subset]]:
    """Train on every method's subset and rank the test queries."""
    stage, config = artifacts.EVALUATION, run.config
    subsets: dict[str, Subset] = {}
    fingerprints = {"embedding": embedded.fingerprint}
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
    checkpoints = artifacts.Checkpoints(
        run.store, Provenance(config.run.seed, settings, fingerprints).fingerprint(stage)
    )
    mode = run.mode(stage)
    if config.execution.save_checkpoints and not checkpoints.complete():
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


# --- Results ----------------------------------------------------------------------------------

N_DROP_EXAMPLES = 12
SHARED_COSTS = {  # stages whose time counts as choosing a method's subset
    INFLUENCESPACE: ("clustering", "influence", "curation"),
    "diversity_sampling": ("clustering", "diversity_sampling"),
}


def write_results(
    run: Run,
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    influence: InfluenceResult | None,
    curated: CurationResult | None,
    subsets: Mapping[str, Subset],
    evaluated: EvaluationResult,
    *,
    command: str,
    started: float,
) -> None:
    """Tables, figures, the results page and run.json, all from the stages' results."""
    store, seconds = run.store, run.seconds
    metrics = method_metrics(evaluated)
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
    train_pairs = embedded.split_pairs("train")
    has_faults = bool(train_pairs["fault"].any())
    summary = report.Summary(
        run={
            "dataset": store.manifest(artifacts.EMBEDDING)["settings"]["dataset"],
            "dataset_description": embedded.source,
            "encoder": embedded.encoder,
            "command": command,
            "seed": run.config.run.seed,
            "device": str(run.device),
            "hardware": artifacts.hardware(),
            "packages": artifacts.package_versions(),
            "warnings": run.warnings,
            "settings": run.config.flat(),
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "total_seconds": round(time.perf_counter() - started, 1),
        },
        n_train=len(embedded.indices),
        n_validation=len(embedded.validation_text_features),
        n_test_images=len(embedded.test_image_features),
        n_test_captions=len(embedded.test_text_features),
        skipped=Counter(embedded.skipped["reason"]),
        influence=influence.clusters if influence else None,
        influence_info=influence.quality() if influence else None,
        influence_scores=influence.influence_scores if influence else None,
        influence_stderr=influence.influence_stderr if influence else None,
        clusters=clustered.clusters,
        categorization=curated.categorization if curated else None,
        cluster_weights=curated.cluster_weights if curated else None,
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
        dropped_examples=dropped_examples(embedded, clustered, influence, curated),
    )
    store.write_json("evaluation/method_metrics.json", metrics)
    store.write_json("evaluation/efficiency_metrics.json", efficiency)
    store.write_json("evaluation/demographic_gaps.json", gaps)
    table = report.summary_table(summary).to_csv(index=False, lineterminator="\n")
    store.write_text("evaluation/method_comparison.csv", table)
    store.write_text("results/results_summary.csv", table)
    store.write_text("results/results_summary.md", report.summary_markdown(summary))
    store.write_text("results/results.md", report.results_markdown(summary))
    for path, make in tqdm(
        report.figures(summary).items(), desc="figures", unit="figure", disable=None, leave=False
    ):
        store.write_figure(path, make())
    if run.config.execution.visualize:
        draw_contact_sheets(run, embedded, clustered, curated)
    total_seconds = round(time.perf_counter() - started, 1)
    store.write_json("run.json", {**summary.run, "total_seconds": total_seconds})
    logger.info("done in %.1f s", total_seconds)
    store.write_bytes("results/log.txt", store.log_path(run.config.run.log_file).read_bytes())
    print(report.console_summary(summary))


def dropped_examples(
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    influence: InfluenceResult | None,
    curated: CurationResult | None,
) -> list[dict[str, Any]]:
    """Dropped pairs to look at, each with the reason."""
    if curated is None:
        return []
    pairs, assignments = embedded.split_pairs("train"), clustered.cluster_assignments
    influence_percent = {c["cluster"]: c["influence_percent"] for c in curated.categorization}
    return [
        {
            "caption": pairs["caption"].iloc[row],
            "key": pairs["key"].iloc[row],
            "clip_score": float(embedded.clip_scores[row]),
            "cluster": int(assignments[row]),
            "influence_percent": influence_percent[int(assignments[row])],
            "terms": clustered.clusters[assignments[row]]["terms"],
            "why": why,
        }
        for row, why in drop_examples(curated, assignments, embedded.clip_scores, N_DROP_EXAMPLES)
    ]


def draw_contact_sheets(
    run: Run,
    embedded: EmbeddingResult,
    clustered: ClusterAssignment,
    curated: CurationResult | None,
) -> None:
    """Photographs of the clusters, and of what is dropped and kept, each with its caption."""
    dataset = run.store.manifest(artifacts.EMBEDDING)["settings"]["dataset"]
    source = run.open_source(dataset)
    pairs, scores = embedded.split_pairs("train"), embedded.clip_scores
    assignments = clustered.cluster_assignments
    nearest = [np.flatnonzero(assignments == k)[0] for k in range(len(clustered.clusters))]
    sheets = {
        "stage1/contact_sheet.png": (
            "One pair of each cluster",
            [(int(r), ", ".join(clustered.clusters[assignments[r]]["terms"][:3])) for r in nearest],
        )
    }
    if curated is not None:
        dropped = np.setdiff1d(np.arange(len(scores)), curated.curated_rows)
        rng = run.rng("contact sheets")
        for name, rows in (("dropped", dropped), ("kept", curated.curated_rows)):
            chosen = np.sort(rng.permutation(rows)[:24])
            sheets[f"stage3/{name}.png"] = (
                f"Pairs {name}, drawn at random",
                [(int(r), f"CLIP score {scores[r]:.2f}") for r in chosen],
            )
    for path, (heading, entries) in sheets.items():
        images, titles = [], []
        for row, note in entries[:60]:
            try:
                data = source.read_image(pairs["key"].iloc[row])
                image = decode_image(data, run.config.data.max_image_pixels)
            except (OSError, KeyError, ValueError) as error:
                logger.warning("%s: %s is left out (%s)", path, pairs["key"].iloc[row], error)
                continue
            image.thumbnail((224, 224))
            images.append(np.asarray(image))
            titles.append(f"{pairs['caption'].iloc[row]}\n{note}")
        if images:
            sheet = contact_sheet(images, titles, heading=heading, n_columns=6)
            run.store.write_figure(path, sheet)


# --- Entry ------------------------------------------------------------------------------------


@contextmanager
def _logging(store: Store, log_file: str) -> Iterator[None]:
    """Log to the terminal and to the log file of the run, around progress bars."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    try:
        handlers.append(logging.FileHandler(store.log_path(log_file), mode="w", encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--log_file {log_file} cannot be written ({error.strerror})") from error
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for noisy in ("httpx", "httpx2", "huggingface_hub", "datasets", "transformers", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for handler in handlers:
        root.addHandler(handler)
    try:
        with logging_redirect_tqdm():
            yield
    except InputError as error:
        handlers[1].handle(
            logging.LogRecord("influencespace", logging.ERROR, "", 0, str(error), None, None)
        )
        raise
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 for bad input, which gets one line and no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run_pipeline(parse_arguments(given), shlex.join(["python", "main.py", *given]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is saved stays, continue with --load_saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

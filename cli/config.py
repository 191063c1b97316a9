"""The command line: every flag is a field of one stage's `Settings`, grouped by stage."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from artifacts.provenance import CURATION, INFLUENCE, PAIR_INFLUENCE, Stage
from artifacts.settings import AUTO, InputError, Settings, add_flags, from_flags, setting
from attribution.cluster_scores import HEEDED_BY, InfluenceConfig
from attribution.pair_scores import PairInfluenceConfig
from attribution.trust import TrustConfig
from attribution.validation import InfluenceValidationConfig
from baselines import INFLUENCESPACE, METHODS
from clustering import ClusteringConfig
from curation import CurationConfig
from encoders.base import EmbeddingConfig
from engine.settings import EngineConfig
from exporting.formats import NEED_IMAGES, ExportConfig
from learner.config import TrainingConfig
from reporting.report.settings import ReportConfig
from sources.base import DataConfig
from train_eval import EvaluationConfig


@dataclass(frozen=True)
class RunConfig(Settings):
    """Where the run writes and what it runs on."""

    output_dir: str = setting("./output", "folder for everything the run writes")
    seed: int = setting(42, "every random choice of the run follows from it", at_least=0)
    explain: str | None = setting(
        None,
        "print what happened to the pairs of this key or id in the run in --output_dir, and stop",
        type=str,
    )
    dry_run: bool = setting(
        False, "read some of the data, show pairs, counts, expected time and disk, and stop"
    )
    log_file: str = setting("log.txt", "log file; a relative path is inside --output_dir")
    debug: bool = setting(False, "a run of under a minute: small data, few seeds")
    device: str = setting("auto", "where models run", choices=("auto", "cpu", "cuda", "mps"))

    def __post_init__(self) -> None:
        """Check the fields; who asks for one GPU of several is told how.

        Raises:
            InputError: a wrong value.
        """
        if number := re.fullmatch(r"cuda:(\d+)", self.device):
            raise InputError(
                f"--device {self.device}: a run takes the first GPU that it sees; set "
                f"CUDA_VISIBLE_DEVICES={number[1]} in its environment and use --device cuda"
            )
        super().__post_init__()


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
        "also draw contact sheets: a photograph of each of up to 60 clusters, some of what is kept "
        "and dropped",
    )


class Config(NamedTuple):
    """The settings of a run, one dataclass a stage."""

    run: RunConfig
    engine: EngineConfig
    data: DataConfig
    embedding: EmbeddingConfig
    clustering: ClusteringConfig
    trust: TrustConfig
    influence: InfluenceConfig
    pair_influence: PairInfluenceConfig
    influence_validation: InfluenceValidationConfig
    curation: CurationConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    export: ExportConfig
    report: ReportConfig
    execution: ExecutionConfig

    def flat(self) -> dict[str, Any]:
        """Every setting by flag name."""
        return {name: v for part in self for name, v in dataclasses.asdict(part).items()}

    def changed(self) -> dict[str, Any]:
        """Every setting that differs from its default, by flag name."""
        defaults = Config(*(part() for part in GROUPS.values())).flat()  # type: ignore[arg-type]
        return {name: value for name, value in self.flat().items() if value != defaults[name]}

    def unheeded(self) -> list[str]:
        """Of each setting that was changed and makes no difference here, what would heed it."""
        chosen = self.influence.estimator
        by_debug = DEBUG_SETTINGS if self.run.debug else {}
        return [
            f"--{name} {value}: --estimator {chosen} does not heed it; it is of "
            f"--estimator {' or '.join(HEEDED_BY[name])}"
            for name, value in self.changed().items()
            if chosen not in HEEDED_BY.get(name, (chosen,)) and by_debug.get(name) != value
        ]

    def needs_influence(self) -> bool:
        """Whether anything after stage 2 asks for its clusters' scores or reference models."""
        return (
            CURATION.number not in self.execution.skip_stage
            or self._asks_for(INFLUENCE)
            or self.influence_validation.validate_influence > 0
        )

    def needs_pair_influence(self) -> bool:
        """Whether anything after stage 2 asks for the influence of its pairs."""
        return (
            CURATION.number not in self.execution.skip_stage
            or self._asks_for(PAIR_INFLUENCE)
            or self.curation.target_size_ratio == AUTO
        )

    def needs_curation(self) -> bool:
        """Whether anything after stage 3 asks for the curated set."""
        return INFLUENCESPACE in self.evaluation.methods or bool(self.export.export)

    def _asks_for(self, stage: Stage) -> bool:
        return any(stage.name in METHODS[name].needs for name in self.evaluation.methods)


GROUPS: Mapping[str, type[Settings]] = {
    "run": RunConfig,
    "engine": EngineConfig,
    "data set": DataConfig,
    "stage 1, embedding": EmbeddingConfig,
    "stage 1, clustering": ClusteringConfig,
    "stage 2, trust in held-out pairs": TrustConfig,
    "stage 2, influence estimation": InfluenceConfig,
    "stage 2, influence of pairs and cells": PairInfluenceConfig,
    "stage 2, validation of the estimate": InfluenceValidationConfig,
    "stage 3, curation": CurationConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "execution control": ExecutionConfig,
}

# What --debug sets, unless a flag says otherwise.
DEBUG_SETTINGS: Mapping[str, Any] = {
    "max_train_samples": 400,
    "max_val_samples": 100,
    "max_test_samples": 100,
    "n_clusters": 20,
    "samples_per_cluster": 2,
    "held_out_repeats": 2,
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
        usage="python main.py [flags]",
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
    if isinstance(n, int) and config.clustering.n_clusters_of(n) > n:
        raise InputError(f"--n_clusters {k} is more than --max_train_samples {n}; change one")
    if config.data.embeddings_dir is not None and config.data.dataset != "auto":
        raise InputError(
            f"--embeddings_dir stands for the data set; leave --dataset {config.data.dataset} out"
        )
    _check_held_out(config.data)
    if config.data.embeddings_dir is not None and config.embedding.encoder_model != "auto":
        raise InputError(
            f"--embeddings_dir needs no encoder; leave --encoder_model "
            f"{config.embedding.encoder_model} out"
        )
    need_images = [name for name in config.export.export if name in NEED_IMAGES]
    if need_images and config.data.embeddings_dir is not None and config.data.data_dir is None:
        raise InputError(
            f"--export {','.join(need_images)} needs the images behind --embeddings_dir; pass the "
            "folder that their image_path starts from as --data_dir; those of DataComp's metadata, "
            "which names none, download with img2dataset, or use --export datacomp or list"
        )
    if config.data.data_dir is not None and config.data.dataset in ("synthetic", "hf"):
        raise InputError(
            f"--data_dir is not used by --dataset {config.data.dataset}; "
            "pass --dataset folder, coco, webdataset or parquet, or leave it out"
        )
    return config


def _check_held_out(data: DataConfig) -> None:
    """Raise an InputError where held-out data of another kind than the pool are asked for."""
    for kind in ("val", "test"):
        flag, embeddings_flag = f"{kind}_data", f"{kind}_embeddings_dir"
        is_given, has_embeddings = (
            getattr(data, name) is not None for name in (flag, embeddings_flag)
        )
        if is_given and data.embeddings_dir is not None:
            raise InputError(
                f"--{flag} holds images, --embeddings_dir embeddings; use --{embeddings_flag}"
            )
        if has_embeddings and data.embeddings_dir is None:
            raise InputError(
                f"--{embeddings_flag} goes with --embeddings_dir; give that too, or use --{flag}"
            )
        if is_given and data.dataset == "synthetic":
            raise InputError(
                f"--{flag}: synthetic brings its own held-out scenes; leave it out, or give "
                "--data_dir the pairs that are to be curated"
            )

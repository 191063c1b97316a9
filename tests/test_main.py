"""The command line as its users run it, on synthetic pairs, asserting on what is written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import main
import visualize
from artifacts.provenance import stage_rng
from artifacts.settings import InputError
from artifacts.store import Store
from attribution import keep_curve
from attribution.keep_curve import KeepCurve, measure_keep_curve
from baselines import BASELINES, CONTROLS, METHODS, TRAINED_BY_DEFAULT
from cli import auto, config
from cli import log as log_module
from cli import run as run_module
from curation import curate
from data import open_source
from intake.setup import SourceJob, open_again
from reporting import results
from reporting.contact_sheets import SHEETS
from reporting.figures import gaps
from reporting.figures.methods import METHOD_FIGURES
from reporting.report import within
from reporting.summary import Summary, faults_dropped
from sources.base import PairSource
from tests.small_models import narrow

TINY = (
    "--dataset synthetic --encoder_model embedded --max_train_samples 60 --max_val_samples 24 "
    "--max_test_samples 24 --n_clusters 5 --samples_per_cluster 3 --influence_budget 0.5 "
    "--num_epochs 2 --n_seeds 2 --batch_size 8 --embed_dim 16 --device cpu --num_workers 0"
).split()
FEW = (
    *("stage1/cluster_sizes.png", "stage2/influence_validation.png", "stage3/cells.png"),
    "results/keep_curve.png",
)
PROMISED = """
stage1/image_embeddings.npy stage1/text_embeddings.npy stage1/concatenated_embeddings.npy
stage1/indices.npy stage1/cluster_assignments.npy stage1/cell_assignments.npy
stage1/better_copies.npy stage1/clip_scores.npy stage1/clusters.json
stage1/cluster_sizes.png stage1/image_features.npy stage1/text_features.npy stage1/skipped.csv
stage1/manifest.json stage2/eigenvalues.npy stage2/influence_scores.npy
stage2/influence_scores.json stage2/influence_scores.png stage2/influence_stderr.npy
stage2/first_order_influence.npy stage2/first_order_evaluated.npy stage2/manifest.json
stage2/pair_influence.npy stage2/pair_influence_stderr.npy stage2/pair_influence_evaluated.npy
stage2/held_out_losses.npy stage2/cell_assignments.npy stage2/cell_influence.npy
stage2/cell_influence_stderr.npy stage2/pair_influence_quality.json
stage2/pair_influence_manifest.json stage2/wrong_captions.json stage2/wrong_captions.png
stage2/validation_trusted.npy stage2/trust_manifest.json
stage3/cluster_categorization.json stage3/cluster_weights.json stage3/curated_indices.npy
stage3/sample_weights.npy stage3/curated_rows.npy stage3/pair_values.npy
stage3/keep_curve_shares.npy stage3/keep_curve_recall.npy stage3/keep_curve_recall_stderr.npy
stage3/keep_curve_loss.npy stage3/keep_curve_loss_stderr.npy stage3/keep_curve_measured_shares.npy
stage3/keep_curve_measured_recall.npy stage3/keep_curve_measured_loss.npy
stage3/keep_curve_best.json stage3/keep_curve_manifest.json
results/keep_curve.csv results/keep_curve.png
stage3/group_retention.json stage3/ledger.parquet stage3/ledger_manifest.json stage3/cells.png
stage3/cluster_categorization.png
stage3/weight_distribution.png
stage3/manifest.json baselines/random_indices.npy baselines/clip_score_filtering_indices.npy
baselines/diversity_sampling_indices.npy baselines/coreset_selection_indices.npy
baselines/individual_influence_indices.npy baselines/semdedup_indices.npy
baselines/density_pruning_indices.npy baselines/neg_clip_loss_indices.npy
baselines/neg_clip_loss_normsim_indices.npy
baselines/text_alpha_sampling_indices.npy baselines/gradient_similarity_indices.npy
baselines/held_out_loss_indices.npy baselines/m_flyt_indices.npy
baselines/neg_clip_loss_semdedup_indices.npy
baselines/manifest.json
evaluation/method_metrics.json evaluation/method_metrics_trusted.json
evaluation/efficiency_metrics.json
evaluation/method_comparison.csv evaluation/demographic_gaps.json
evaluation/comparison_avg_recall@1.png evaluation/comparison_avg_recall@5.png
evaluation/comparison_avg_recall@10.png evaluation/fairness_comparison.png
evaluation/manifest.json results/results.md results/log.txt results/results_summary.csv
results/results_summary.md results/performance_comparison.png results/efficiency_comparison.png
results/training_progress.png results/demographic_gaps.png
results/performance_efficiency_tradeoff.png log.txt run.json
""".split()
# Files in which the time of day or a duration stands.
WITH_TIMES = (
    "report.html",
    "log.txt",
    "run.json",
    "manifest.json",
    "runs.json",
    "results.md",
    "results_summary.csv",
    "results_summary.md",
    "method_comparison.csv",
    "efficiency_metrics.json",
    "efficiency_comparison.png",
    "performance_efficiency_tradeoff.png",
)


def run(folder: Path, *flags: str) -> int:
    return main.main([*TINY, "--output_dir", str(folder), *flags])


def timeless(folder: Path) -> dict[str, bytes]:
    """Content by name of every file without times."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(WITH_TIMES)
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module", autouse=True)
def narrow_encoder() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        yield


DRAW_EVERYTHING = {
    "test_load_saved_changes_nothing",
    "test_same_seed_same_bytes_and_another_seed_differs",
}


@pytest.fixture(autouse=True)
def few_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the figures, those that come and go and two others, but in tests of all of them."""
    if request.node.name in DRAW_EVERYTHING:
        return
    figures = visualize.figures

    def few(summary: Summary) -> dict[str, Callable[[], Figure]]:
        makers = figures(summary)
        return {path: makers[path] for path in makers if path in {*FEW, *gaps.GAP_FIGURES}}

    monkeypatch.setattr(visualize, "figures", few)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "out"
    assert run(folder, "--visualize", "--save_checkpoints") == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(target)], check=True)
    return target


def test_every_promised_file_is_there(finished: Path) -> None:
    missing = [name for name in PROMISED if not (finished / name).is_file()]
    assert not missing
    for figure in finished.rglob("*.png"):
        with Image.open(figure) as image:
            assert min(image.size) > 200


def test_no_file_belongs_to_two_stages(finished: Path) -> None:
    for folder in ("stage1", "stage2", "stage3"):
        manifests = [json.loads(p.read_text()) for p in (finished / folder).glob("*manifest.json")]
        names = [name for manifest in manifests for name in manifest["files"]]
        assert len(manifests) > 1
        assert len(names) == len(set(names))


def test_arrays_agree_with_each_other(finished: Path) -> None:
    def load(name: str) -> np.ndarray:
        return np.asarray(np.load(finished / name))

    images, texts = load("stage1/image_embeddings.npy"), load("stage1/text_embeddings.npy")
    n = len(images)
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)  # float32 unit rows
    assert np.allclose((images * texts).sum(1), load("stage1/clip_scores.npy"), atol=1e-5)
    both = load("stage1/concatenated_embeddings.npy")
    assert np.array_equal(both, np.concatenate([images, texts], axis=1))
    indices = load("stage1/indices.npy")
    assert indices.dtype == np.int64
    assert np.all(np.diff(indices) > 0)
    assignments = load("stage1/cluster_assignments.npy")
    scores, stderr = load("stage2/influence_scores.npy"), load("stage2/influence_stderr.npy")
    assert set(assignments) == set(range(len(scores)))
    assert scores.dtype == stderr.dtype == np.float64
    assert np.all(stderr >= 0)
    assert load("stage2/first_order_evaluated.npy").all()  # the metagradient asks every pair
    assert load("stage2/pair_influence_evaluated.npy").sum() == n / 2  # --influence_budget 0.5
    cells, influence = load("stage2/cell_assignments.npy"), load("stage2/pair_influence.npy")
    assert influence.shape == load("stage2/pair_influence_stderr.npy").shape == (n,)
    means = np.bincount(cells, influence) / np.bincount(cells)
    np.testing.assert_allclose(load("stage2/cell_influence.npy"), means, rtol=1e-12)
    for of_stage in (load("stage1/cell_assignments.npy"), cells):  # cells lie within clusters
        assert len(np.unique(np.stack([of_stage, assignments]), axis=1).T) == of_stage.max() + 1
    assert load("stage1/better_copies.npy").shape == load("stage3/pair_values.npy").shape == (n,)
    curated, weights = load("stage3/curated_indices.npy"), load("stage3/sample_weights.npy")
    assert len(curated) == round(0.8 * n)
    assert np.all(np.diff(curated) > 0)
    assert np.isin(curated, indices).all()
    assert weights.mean() == pytest.approx(1)
    assert weights.min() > 0
    for name in BASELINES:
        selected = load(f"baselines/{name}_indices.npy")
        assert len(selected) == len(curated)
        assert np.isin(selected, indices).all()
        assert np.all(np.diff(selected) > 0)


def test_baselines_are_stale_when_what_they_use_changes(finished: Path) -> None:
    for name in BASELINES:
        used = {"embedding"}
        used |= set(METHODS[name].needs)
        assert read_json(finished / f"baselines/{name}_manifest.json")["inputs"].keys() == used


def test_controls_are_trained_where_they_are_asked_for(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not [name for name in CONTROLS if list(finished.glob(f"baselines/{name}*"))]
    folder = tmp_path / "out"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    flags = ("--load_saved", "--no_report", "--n_seeds", "1", "--methods", *CONTROLS)
    assert run(folder, *flags) == 0
    trained = {r["method"] for r in read_json(folder / "evaluation/runs.json")}
    assert trained == set(CONTROLS)
    kept = np.load(folder / "stage3/curated_indices.npy")
    for name in CONTROLS:
        chosen = np.load(folder / f"baselines/{name}_indices.npy")
        assert len(chosen) == len(kept)
        saved = read_json(folder / f"baselines/{name}_manifest.json")
        assert saved["inputs"].keys() == {"embedding", *METHODS[name].needs}
        # The values hang on stage 3's settings, the second view on none of them.
        assert ("agreement_weight" in saved["settings"]) == ("pair_influence" in saved["inputs"])
    for file in folder.glob("stage2/pair_influence*"):
        file.unlink()
    capsys.readouterr()
    flags = ("--skip_stage", "1", "2", "3", "--no_report", "--n_seeds", "1", "--methods")
    assert run(folder, *flags, "influencespace_without_influence") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --skip_stage 2: ")
    assert error.endswith("stage2 has no saved result; leave out --skip_stage 2")


def test_the_ledger_has_a_row_for_every_pair_seen(finished: Path) -> None:
    ledger = pd.read_parquet(finished / "stage3/ledger.parquet")
    pairs = pd.read_parquet(finished / "stage1/pairs.parquet")
    skipped = pd.read_csv(finished / "stage1/skipped.csv", keep_default_na=False)
    seen = sorted([*pairs["position"], *skipped["position"]])
    assert ledger["position"].tolist() == seen
    kept = ledger[ledger["decision"] == "kept"]
    assert kept["position"].tolist() == np.load(finished / "stage3/curated_indices.npy").tolist()
    np.testing.assert_array_equal(kept["weight"], np.load(finished / "stage3/sample_weights.npy"))
    train = ledger[(ledger["split"] == "train") & (ledger["status"] == "read")]
    scores = np.load(finished / "stage1/clip_scores.npy")
    np.testing.assert_allclose(train["clip_score"], scores, rtol=1e-12)
    assert train["evaluated"].sum() == 30
    assert ledger["id"].is_unique
    source = _scenes()
    images = {r.key: r.read() for r in source.records("train")}
    for row in train.head(5).itertuples():
        both = images[str(row.key)] + str(row.caption).encode()
        assert row.id == hashlib.sha256(both).hexdigest()[:32]


def _scenes() -> PairSource:
    """The drawn scenes of these runs."""
    parsed = config.parse_arguments(TINY)
    return open_source(parsed.data, rng=stage_rng(parsed.run.seed, "data"))


def test_counts_on_the_results_page_are_sums_over_the_ledger(finished: Path) -> None:
    page = (finished / "results/results.md").read_text()
    section = page.split("## What happened to every pair")[1].split("## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line]
    counted = {(s, d, r): int(n.replace(",", "")) for s, d, r, n in lines[2:-1]}
    ledger = pd.read_parquet(finished / "stage3/ledger.parquet")
    sums = ledger.groupby(["split", "decision", "decision_reason"]).size()
    assert counted == dict(zip(sums.index, sums, strict=True))
    assert lines[-1][-1] == f"**{len(ledger):,}**"
    kept, read = (ledger["decision"] == "kept").sum(), (ledger["split"] == "train").sum()
    assert f"Kept {kept:,} of {read:,} training pairs" in page


def test_explain_tells_the_story_of_a_pair(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = timeless(finished)
    ledger = pd.read_parquet(finished / "stage3/ledger.parquet")
    dropped = ledger[ledger["decision"] == "dropped"].iloc[0]
    for name in (dropped["key"], dropped["id"]):
        assert main.main(["--output_dir", str(finished), "--explain", name]) == 0
        story = capsys.readouterr().out
        assert dropped["caption"] in story
        assert f"decision    dropped: {dropped['decision_reason']}" in story
    assert main.main(["--output_dir", str(finished), "--explain", "nothing like it"]) == 2
    assert "error: --explain nothing like it: no pair" in capsys.readouterr().err
    assert main.main(["--output_dir", str(finished / "stage1"), "--explain", "x"]) == 2
    assert "run the pipeline first" in capsys.readouterr().err
    assert timeless(finished) == before


def test_metrics_follow_from_the_ranks(finished: Path) -> None:
    runs = read_json(finished / "evaluation/runs.json")
    ranks = np.load(finished / "evaluation/caption_ranks.npy")
    rows = [
        i for i, r in enumerate(runs) if r["method"] == "random" and r["comparison"] == "same_steps"
    ]
    assert len(rows) == 2
    recalls = [100 * (ranks[i] < 5).mean() for i in rows]
    metrics = read_json(finished / "evaluation/method_metrics.json")
    reported = metrics["same_steps"]["random"]["text_to_image_recall@5"]
    assert reported["mean"] == pytest.approx(np.mean(recalls))
    assert reported["std"] == pytest.approx(np.std(recalls, ddof=1))
    assert {r["n_steps"] for r in runs if r["comparison"] == "same_steps"} == {2 * (60 // 8)}
    table = pd.read_csv(finished / "evaluation/method_comparison.csv")
    assert set(TRAINED_BY_DEFAULT) <= set(table["method"])


def test_faults_are_known_and_counted(finished: Path) -> None:
    pairs = pd.read_parquet(finished / "stage1/pairs.parquet")
    train = pairs[pairs["split"] == "train"].reset_index(drop=True)
    assert {"wrong_caption", "boilerplate", "near_copy"} <= set(train["fault"])
    assert set(pairs.loc[pairs["split"] == "validation", "fault"]) > {"", "wrong_caption"}
    assert set(pairs.loc[pairs["split"] == "test", "fault"]) == {""}
    rows = np.load(finished / "stage3/curated_rows.npy")
    wrong = np.flatnonzero(train["fault"] == "wrong_caption")
    dropped = len(np.setdiff1d(wrong, rows))
    counted = faults_dropped(train["fault"].tolist(), train["group"].tolist(), rows)
    assert counted["wrong_caption"] == {"in_data": len(wrong), "dropped": dropped}


def test_results_page_names_the_command_and_the_data(finished: Path) -> None:
    page = (finished / "results/results.md").read_text()
    assert "python main.py --dataset synthetic" in page
    assert "nan" not in page.lower().split()
    for line in page.splitlines():
        if line.startswith("!["):
            link = line.split("](")[1].rstrip(")")
            assert (finished / "results" / link).resolve().is_file()


def test_contact_sheets_and_checkpoints(finished: Path) -> None:
    from safetensors.numpy import load_file

    for name in ("stage1/contact_sheet.png", "stage3/dropped.png", "stage3/kept.png"):
        assert (finished / name).is_file()
    model = load_file(finished / "evaluation/checkpoints/full_same_epochs_seed0.safetensors")
    for side in ("image", "text"):
        features = np.load(finished / f"stage1/{side}_features.npy")
        assert model[f"{side}_map"].shape == (features.shape[1], 16)


def test_contact_sheets_do_not_outlive_the_run_they_show(copied: Path) -> None:
    assert run(copied, "--load_saved", "--target_size_ratio", "1.0", "--visualize") == 0
    assert not (copied / "stage3/dropped.png").exists()  # nothing is
    assert (copied / "stage3/kept.png").is_file()
    assert run(copied, "--load_saved", "--target_size_ratio", "1.0") == 0
    for name in ("stage1/contact_sheet.png", "stage3/kept.png"):
        assert not (copied / name).exists()


def test_same_seed_same_bytes_and_another_seed_differs(finished: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "again", "--visualize", "--save_checkpoints") == 0
    assert timeless(tmp_path / "again") == timeless(finished)
    assert run(tmp_path / "other", "--seed", "7", "--methods", "influencespace") == 0
    for name in ("stage1/clip_scores.npy", "stage2/influence_scores.npy"):
        assert (tmp_path / "other" / name).read_bytes() != (finished / name).read_bytes()


def test_figures_of_groups_do_not_outlive_the_captions_they_need(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train_eval.MIN_GROUP_QUERIES", 10**9)
    paths = [copied / path for path in gaps.GAP_FIGURES]
    for path in paths:
        path.write_bytes(b"of an earlier run")
    assert run(copied, "--load_saved") == 0
    assert not any(path.exists() for path in paths)
    assert "There are no figures: too few test" in (copied / "results/results.md").read_text()


def test_explain_doubts_what_is_inferred_from_little(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = pd.read_parquet(copied / "stage3/ledger.parquet")
    inferred = ledger[ledger["evaluated"].eq(False).fillna(False)]["id"].iloc[0]
    monkeypatch.setattr("reporting.estimate.EXPLAINS_LITTLE", 2.0)
    assert main.main(["--output_dir", str(copied), "--explain", inferred]) == 0
    assert "is weak evidence" in capsys.readouterr().out


def test_load_saved_changes_nothing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = timeless(copied)
    monkeypatch.setattr("cli.auto.embed_in_shards", _must_not_run)
    for name in ("cluster_embeddings", "score_clusters", "evaluate_methods"):
        monkeypatch.setattr(main, name, _must_not_run)
    for name in ("score_pairs_in_rounds", "measure_keep_curve", "curate", "select_baseline"):
        monkeypatch.setattr(main, name, _must_not_run)
    assert run(copied, "--load_saved", "--visualize", "--save_checkpoints") == 0
    assert timeless(copied) == before


def test_only_curated_ends_with_the_curated_set(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = timeless(copied)
    with monkeypatch.context() as patch:
        for name in ("evaluate_methods", "select_baseline", "curate", "demographic_gaps"):
            for module in (main, results):
                patch.setattr(module, name, _must_not_run, raising=False)
        assert run(copied, "--methods", "none", "--load_saved", "--export", "list") == 0
    printed = capsys.readouterr().out
    assert "Kept 48 of 60 training pairs (80.0 %)" in printed
    assert "Nothing was trained on the kept pairs" in printed
    assert "Mean recall" not in printed
    assert "list: 48 pairs" in printed
    page = (copied / "results/results.md").read_text()
    assert "run again with the same flags, without `--methods none`" in page
    assert "## Efficiency" not in page
    assert "InfluenceSpace dropped" in page  # which faults, for that needs no training
    assert "without `--methods none`" in (copied / "results/results_summary.md").read_text()
    shown = (copied / "results/report.html").read_text()
    assert "without <code>--methods none</code>" in shown
    gone = before.keys() - timeless(copied).keys() - {*SHEETS, *METHOD_FIGURES, *gaps.GAP_FIGURES}
    assert gone == {
        *("evaluation/method_metrics.json", "evaluation/method_metrics_trusted.json"),
        "evaluation/demographic_gaps.json",
    }
    for name in (*results.TABLES, results.EFFICIENCY, *METHOD_FIGURES, *gaps.GAP_FIGURES):
        assert not (copied / name).exists()
    recorded = read_json(copied / "run.json")
    assert recorded["settings"]["methods"] == []
    assert not {"evaluation", *BASELINES} & recorded["seconds"].keys()

    # What was trained before is still there, and so is all that is made of it.
    with monkeypatch.context() as patch:
        patch.setattr(main, "evaluate_methods", _must_not_run)
        assert run(copied, "--load_saved") == 0
    after = timeless(copied)
    assert {name: after[name] for name in gone} == {name: before[name] for name in gone}
    assert all((copied / name).exists() for name in (*results.TABLES, results.EFFICIENCY))


def test_only_curated_with_stages_left_out(copied: Path) -> None:
    flags = ("--skip_stage", "1", "2", "3", "--methods", "none", "--no_report")
    assert run(copied, *flags) == 0
    page = (copied / "results/results.md").read_text()
    assert "Kept 48" not in page  # what an earlier run chose is not loaded
    assert "Stage 2 was not run or loaded." in page


def test_a_report_of_very_many_pairs_holds_some(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--methods", "none", "--load_saved")
    with monkeypatch.context() as patch:
        for module in (main, within):
            patch.setattr(module, "MOST_TRAINING", 40)
            patch.setattr(module, "MOST_OTHERS", 20)
        for name, value in {"N_TRAINING": 10, "N_EXTREMES": 2, "N_IN_FAMILIES": 4}.items():
            patch.setattr(within, name, value)
        assert run(copied, *flags) == 0
        assert run(copied, *flags) == 0  # the map of those shown is reused
    assert "report: it shows 60 of 132 pairs" in (copied / "log.txt").read_text()
    assert (copied / "log.txt").read_text().count("pair map   recomputed") == 1
    atlas = pd.read_parquet(copied / "results/atlas.parquet")
    ledger = pd.read_parquet(copied / "stage3/ledger.parquet")
    training = ledger[(ledger["split"] == "train") & (ledger["status"] == "read")]
    assert len(atlas) == 40
    assert set(atlas["id"]) < set(training["id"])
    assert set(atlas["decision"]) == {"kept", "dropped"}
    # Neighbours are those among the pairs shown.
    joint = np.load(copied / "stage1/concatenated_embeddings.npy")
    rows = np.flatnonzero(training["id"].isin(atlas["id"]))
    assert atlas["id"].tolist() == training["id"].iloc[rows].tolist()
    alike = joint[rows] @ joint[rows].T
    np.fill_diagonal(alike, -9)
    nearest = [found["ids"][0] for found in atlas["neighbors"]]
    assert np.allclose(alike[np.arange(40), nearest], alike.max(axis=1), atol=1e-5)
    assert main.main([*TINY, "--output_dir", str(copied), *flags]) == 0
    assert len(pd.read_parquet(copied / "results/atlas.parquet")) == 60


def test_runs_that_were_only_curated_are_compared(copied: Path, tmp_path: Path) -> None:
    assert run(copied, "--methods", "none", "--load_saved", "--no_report") == 0
    shutil.copytree(copied, tmp_path / "other")
    compared = ("--compare", str(tmp_path / "other"), "--no_report", "--load_saved")
    assert run(copied, "--methods", "none", *compared) == 0
    page = (copied / "results/results.md").read_text()
    assert "60 training pairs in both runs: 0 moved in" in page
    changes = page.split("## Changes against")[1].split("\n## ")[0]
    assert "mean recall" not in changes
    assert run(copied, *compared) == 0  # this run has recalls, the other has not
    page = (copied / "results/results.md").read_text()
    assert re.search(r"\n\| \W*InfluenceSpace\W* \| – \| \d", page.split("## Changes against")[1])
    (tmp_path / "other/stage3/ledger_manifest.json").unlink()
    assert run(copied, *compared) == 2


def _must_not_run(*_: Any, **__: Any) -> None:
    raise AssertionError("a saved stage was recomputed")


def test_a_run_without_the_curve_of_how_much_to_keep_is_still_reported(copied: Path) -> None:
    assert "## How much to keep" in (copied / "results/results.md").read_text()
    (copied / "stage3/keep_curve_manifest.json").unlink()  # as runs were saved before it
    assert run(copied, "--skip_stage", "1", "2", "3", "--methods", "none") == 0
    page = (copied / "results/results.md").read_text()
    assert "**Kept 48 of 60 training pairs" in page
    assert "## The most harmful" in page.replace("### ", "## ")  # what is saved is told
    assert "How much to keep" not in page
    assert "How much to keep" not in (copied / "results/report.html").read_text()
    assert not (copied / "results/keep_curve.csv").exists()
    assert "how_much_to_keep" not in read_json(copied / "run.json")


def test_the_share_that_is_found_is_kept_and_said(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--load_saved", "--target_size_ratio", "auto", "--methods", "none", "--no_report")
    assert run(copied, *flags) == 0
    told, share = read_json(copied / "run.json"), read_json(copied / "stage3/keep_curve_best.json")
    kept = len(np.load(copied / "stage3/curated_indices.npy"))
    assert kept == round(60 * share["share"])
    assert told["settings"]["target_size_ratio"] == "auto"
    assert told["changed_settings"]["target_size_ratio"] == "auto"
    assert told["how_much_to_keep"]["kept"] == share["share"]
    chose = f"`--target_size_ratio auto` chose {100 * share['share']:.3g} %."
    assert chose in (copied / "results/results.md").read_text()
    assert f"Best share to keep: {100 * share['share']:.3g} % (" in capsys.readouterr().out


def test_changed_setting_recomputes_what_follows(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cli.auto.embed_in_shards", _must_not_run)
    for name in ("cluster_embeddings", "score_clusters"):
        monkeypatch.setattr(main, name, _must_not_run)
    monkeypatch.setattr(main, "score_pairs_in_rounds", _must_not_run)
    before = timeless(copied)
    assert run(copied, "--load_saved", "--target_size_ratio", "0.5") == 0
    after = timeless(copied)
    assert "--target_size_ratio 0.8 (now 0.5)" in (copied / "log.txt").read_text()
    assert after["stage2/influence_scores.npy"] == before["stage2/influence_scores.npy"]
    assert len(np.load(copied / "stage3/curated_indices.npy")) == 30
    assert len(np.load(copied / "baselines/random_indices.npy")) == 30


def _stop(*_: Any) -> None:
    for _time in range(2):
        logging.getLogger("files").warning("c.txt: 1 line is not UTF-8; read as Windows-1252")
    raise InputError("enough")


def test_a_run_with_other_settings_says_what_it_replaces(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "embed", _stop)
    earlier = (copied / "log.txt").read_text()
    assert run(copied, "--seed", "7", "--num_epochs", "3") == 2
    [notice] = [line for line in capsys.readouterr().err.splitlines() if "another run" in line]
    assert notice.startswith(f"{copied} holds the results of another run, made with ")
    assert "--seed 42 (now 7)" in notice
    assert "--num_epochs 2 (now 3)" in notice
    assert "this run replaces stage1, stage2, stage3, evaluation, report;" in notice
    log = (copied / "log.txt").read_text()
    assert log.startswith(earlier)
    assert log.count(log_module.NEXT_RUN) == 1
    assert notice in log.removeprefix(earlier)
    assert run(copied, "--num_epochs", "3", "--skip_stage", "1", "2") == 2
    assert "this run replaces stage3, evaluation, report;" in capsys.readouterr().err
    for same in ("", "--load_saved --seed 7", "--num_workers 1"):
        assert run(copied, *same.split()) == 2
        assert "another run" not in capsys.readouterr().err
    assert run(copied / "new") == 2
    log = (copied / "new/log.txt").read_text()
    assert log_module.NEXT_RUN not in log
    assert "another run" not in log


def test_auto_is_no_other_setting_where_it_can_mean_the_saved_one(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*TINY, "--dataset", "auto", "--encoder_model", "auto"]
    same = run_module.Run(config.parse_arguments(flags), Store(copied), torch.device("cpu"))
    auto.warn_of_replacing(same)
    assert not caplog.messages
    flags = [*TINY, "--dataset", "folder", "--data_dir", "pictures"]
    auto.warn_of_replacing(replace(same, config=config.parse_arguments(flags)))
    [notice] = caplog.messages
    assert "(now pictures), --dataset synthetic (now folder); this run replaces" in notice


def test_a_warning_is_given_once_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "embed", _stop)
    for n_runs in (1, 2):
        assert run(tmp_path) == 2
        assert capsys.readouterr().err.count("not UTF-8") == 1
        assert (tmp_path / "log.txt").read_text().count("not UTF-8") == n_runs


# --- How much is kept -----------------------------------------------------------------------------


def test_auto_keeps_the_share_of_the_curve_which_no_share_makes_stale(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("score_pairs_in_rounds", "measure_keep_curve"):
        monkeypatch.setattr(main, name, _must_not_run)
    curve = (copied / "stage3/keep_curve_best.json").read_bytes()
    share = json.loads(curve)["share"]
    assert 0.25 <= share <= 1
    flags = ("--load_saved", *FEW_METHODS)
    for asked, kept in (("auto", round(60 * share)), ("0.5", 30)):
        assert run(copied, *flags, "--target_size_ratio", asked) == 0
        assert len(np.load(copied / "stage3/curated_indices.npy")) == kept
        assert len(np.load(copied / "baselines/random_indices.npy")) == kept
        assert (copied / "stage3/keep_curve_best.json").read_bytes() == curve
    assert (
        f"--target_size_ratio auto: {100 * share:.0f} % are kept"
        in (copied / "log.txt").read_text()
    )


def test_auto_asked_for_at_once_and_its_share_asked_for_by_number_are_the_same_run(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "auto"
    assert run(folder, "--target_size_ratio", "auto", *FEW_METHODS) == 0
    found = read_json(folder / "stage3/keep_curve_best.json")
    assert found == read_json(copied / "stage3/keep_curve_best.json")
    before = fingerprints(folder)
    for name in ("measure_keep_curve", "curate", "evaluate_methods"):
        monkeypatch.setattr(main, name, _must_not_run)
    by_number = ("--target_size_ratio", str(found["share"]))
    assert run(folder, *by_number, *FEW_METHODS, "--load_saved") == 0
    assert fingerprints(folder) == before


def test_the_curve_is_loaded_where_stage_3_is_skipped(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("measure_keep_curve", "curate", "score_pairs_in_rounds"):
        monkeypatch.setattr(main, name, _must_not_run)
    before = np.load(copied / "stage3/curated_indices.npy")
    assert run(copied, "--skip_stage", "1", "2", "3", *FEW_METHODS) == 0
    np.testing.assert_array_equal(np.load(copied / "stage3/curated_indices.npy"), before)
    # Saved runs that know of no curve do without, as far as the share needs none.
    for path in (copied / "stage3").glob("keep_curve*"):
        path.unlink()
    assert run(copied, "--skip_stage", "1", "2", "3", "--no_report", *FEW_METHODS) == 0
    asks = ("--target_size_ratio", "auto", "--skip_stage", "1", "2", "3", *FEW_METHODS)
    capsys.readouterr()
    assert run(copied, *asks) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --skip_stage 3:")
    assert "has no saved result" in error


def test_values_that_sort_difficulty_drop_faults_alone(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sorting(*given: Any, **more: Any) -> KeepCurve:
        found = measure_keep_curve(*given, **more)
        return replace(found, best={**found.best, "sorts_difficulty": True})

    monkeypatch.setattr(main, "measure_keep_curve", sorting)
    (copied / "stage3/keep_curve_best.json").unlink()  # so that it is measured again
    (copied / "stage3/manifest.json").unlink()
    assert run(copied, "--load_saved", "--target_size_ratio", "0.5", *FEW_METHODS) == 0
    unfaulty = np.load(copied / "stage2/unfaulty.npy")
    kept = np.load(copied / "stage3/curated_rows.npy")
    looks_right = int(unfaulty.sum())
    assert 0 < looks_right < 60
    # As many as are kept look right, but for near copies, which cost more than a fault may.
    copies = np.load(copied / "stage1/better_copies.npy") > 0
    assert unfaulty[kept].sum() >= min(30, int((unfaulty & ~copies).sum()))
    assert "hard ones" in (copied / "results/results.md").read_text()


def fingerprints(folder: Path) -> dict[str, str]:
    """By the manifest's name, of every stage."""
    manifests = {str(p.relative_to(folder)): read_json(p) for p in folder.rglob("*manifest.json")}
    return {name: m["fingerprint"] for name, m in manifests.items() if "settings" in m}


@pytest.mark.parametrize(
    ("flag", "value", "stale"),
    [
        (
            "influence_budget",
            "0.4",
            {
                *("stage2/pair_influence_", "stage3/keep_curve_", "stage3/", "stage3/ledger_"),
                "evaluation/",
            },
        ),
        ("weighting", "sample", {"evaluation/"}),
    ],
)
def test_a_setting_makes_stale_what_follows_from_it_and_nothing_else(
    copied: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str, stale: set[str]
) -> None:
    monkeypatch.setattr("cli.auto.embed_in_shards", _must_not_run)
    for name in ("cluster_embeddings", "score_clusters", "select_baseline"):
        monkeypatch.setattr(main, name, _must_not_run)
    if flag == "weighting":
        monkeypatch.setattr(main, "score_pairs_in_rounds", _must_not_run)
        monkeypatch.setattr(main, "curate", _must_not_run)
    before = fingerprints(copied)
    assert run(copied, "--load_saved", f"--{flag}", value) == 0
    after = fingerprints(copied)
    assert after.keys() == before.keys()
    changed = {name.removesuffix("manifest.json") for name in after if after[name] != before[name]}
    assert changed == stale
    assert f"(now {value})" in (copied / "log.txt").read_text()
    n_evaluated = np.load(copied / "stage2/pair_influence_evaluated.npy").sum()
    assert n_evaluated == (24 if flag == "influence_budget" else 30)  # of 60
    settings = read_json(copied / "evaluation/manifest.json")["settings"]
    assert settings["weighting"] == ("sample" if flag == "weighting" else "loss")


def test_embeddings_of_jpegs_decoded_otherwise_are_stale(copied: Path) -> None:
    flags = ("--load_saved", "--jpeg_decoding", "full", "--methods", "none", "--no_report")
    before = fingerprints(copied)
    assert run(copied, *flags) == 0
    assert (
        fingerprints(copied)["stage1/embedding_manifest.json"]
        != before["stage1/embedding_manifest.json"]
    )
    assert "was made with --jpeg_decoding reduced (now full)" in (copied / "log.txt").read_text()


def write_review(path: Path, said: Mapping[str, str]) -> str:
    """A reviewer's file, as the report's page downloads it."""
    rows = [f'{name},{word},"a ""key""","<b>"' for name, word in said.items()]
    path.write_text("\r\n".join(["\ufeffid,decision,key,caption", *rows, ""]))
    return str(path)


FEW_METHODS = ("--methods", "influencespace", "random")


@pytest.fixture(scope="module")
def reviewed(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A finished run that a reviewer has gone over, and what was said."""
    folder = tmp_path_factory.mktemp("reviewed") / "out"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    ledger = pd.read_parquet(finished / "stage3/ledger.parquet")
    of = {
        d: ledger.loc[ledger["decision"] == d, "id"].tolist() for d in ledger["decision"].unique()
    }
    # Two that were dropped, one of them twice; two that were kept; one kept that is kept anyway.
    said = dict.fromkeys([*of["dropped"][:2], of["kept"][2]], "keep")
    said |= dict.fromkeys(of["kept"][:2], "drop") | {of["held out"][0]: "drop", "0f" * 16: "keep"}
    file = write_review(folder.parent / "overrides.csv", said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cli.auto.embed_in_shards", _must_not_run)
        for name in ("cluster_embeddings", "score_clusters", "judge_held_out"):
            patch.setattr(main, name, _must_not_run)
        patch.setattr(main, "score_pairs_in_rounds", _must_not_run)
        patch.setattr(visualize, "figures", lambda _: {})
        flags = ("--load_saved", "--overrides", file, "--export", "list", *FEW_METHODS)
        assert run(folder, *flags) == 0
    return folder, said


def test_a_reviewer_decides_after_stages_1_and_2(
    finished: Path, reviewed: tuple[Path, dict[str, str]]
) -> None:
    folder, said = reviewed
    before, after = fingerprints(finished), fingerprints(folder)
    changed = {name.removesuffix("manifest.json") for name in after if after[name] != before[name]}
    assert changed == {"stage3/", "stage3/ledger_", "evaluation/"}
    then, now = (pd.read_parquet(f / "stage3/ledger.parquet") for f in (finished, folder))
    assert now["id"].tolist() == then["id"].tolist()
    now_by_id, then_by_id = now.set_index("id"), then.set_index("id")
    in_training = [name for name in said if name in now_by_id.index[now_by_id["split"] == "train"]]
    assert len(in_training) == 5
    for name in in_training:
        decision = "kept" if said[name] == "keep" else "dropped"
        assert now_by_id.at[name, "decision"] == decision
        assert now_by_id.at[name, "decision_reason"] == f"{decision} by the reviewer's say"
    assert now["decision"].value_counts().to_dict() == then["decision"].value_counts().to_dict()
    others = now_by_id.index.difference(in_training)
    assert now_by_id.loc[others, "decision"].equals(then_by_id.loc[others, "decision"])
    assert now["value"].equals(then["value"])
    assert np.load(folder / "stage3/reviewed.npy").tolist().count(0) == 60 - 5
    listed = pd.read_csv(folder / "curated/list/curated.csv")["id"].tolist()
    assert sorted(listed) == sorted(now.loc[now["decision"] == "kept", "id"])
    for name in in_training:
        assert (name in listed) == (said[name] == "keep")


def test_a_review_is_told_where_results_are(
    reviewed: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = reviewed
    file = folder.parent / "overrides.csv"
    sentence = (
        f"3 pairs kept and 2 dropped by the reviewer's say (--overrides {file}); 4 of them would"
        " have been decided otherwise."
    )
    page = (folder / "results/results.md").read_text()
    assert sentence in page.replace("\\", "")
    assert "| train | kept | kept by the reviewer's say | 3 |" in page
    assert "| train | dropped | dropped by the reviewer's say | 2 |" in page
    log = (folder / "log.txt").read_text()
    assert "made with --overrides not set (now 4 keep, 3 drop (" in log
    warning = "2 of 7 ids are of no training pair of this run (held out, skipped or unknown)"
    assert warning in log
    assert warning in page
    flags = ("--load_saved", "--overrides", str(file), *FEW_METHODS)
    assert run(folder, *flags) == 0
    shown = capsys.readouterr().out
    assert sentence in shown
    assert f"! --overrides {file}: {warning}" in shown
    for name, word in [*said.items()][:5]:
        assert main.main(["--output_dir", str(folder), "--explain", name]) == 0
        decision = "kept" if word == "keep" else "dropped"
        assert f": {decision} by the reviewer's say" in capsys.readouterr().out


def test_the_same_review_under_another_name_is_reused_and_none_is_another(
    reviewed: tuple[Path, dict[str, str]],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(reviewed[0]), str(folder)], check=True)
    with monkeypatch.context() as patch:
        for name in ("curate", "make_ledger", "evaluate_methods"):
            patch.setattr(main, name, _must_not_run)
        again = write_review(tmp_path / "again.csv", dict(reversed(reviewed[1].items())))
        assert run(folder, "--load_saved", "--overrides", again, *FEW_METHODS) == 0
        assert fingerprints(folder) == fingerprints(reviewed[0])
        assert f"--overrides {again}" in capsys.readouterr().out
        assert run(folder, "--skip_stage", "1", "2", "3", *FEW_METHODS) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: --skip_stage 3:")
        assert "was made with --overrides 4 keep, 3 drop (" in error
        assert "(now not set); repeat the flags it was made with" in error
    assert run(folder, "--load_saved") == 0
    before, after = (
        {n: d for n, d in timeless(f).items() if n.startswith("stage3/") and n[-4:] != ".png"}
        for f in (finished, folder)
    )
    assert after == before  # nothing of the review is left
    assert fingerprints(folder) == fingerprints(finished)


def test_a_run_that_replaces_a_review_says_so(
    reviewed: tuple[Path, dict[str, str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, said = reviewed

    def notice(*flags: str) -> str:
        caplog.clear()
        now = config.parse_arguments([*TINY, *FEW_METHODS, *flags])
        auto.warn_of_replacing(main.open_run(now, Store(folder)))
        return "".join(caplog.messages)

    assert notice("--overrides", write_review(tmp_path / "same.csv", said)) == ""
    assert "with --overrides 4 keep, 3 drop (" in notice()
    assert "(now not set); this run replaces" in notice()
    other = write_review(tmp_path / "other.csv", dict([*said.items()][:1]))
    assert "(now 1 keep, 0 drop (" in notice("--overrides", other)


def test_what_is_wrong_with_a_review_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "embed", _must_not_run)
    file = write_review(tmp_path / "o.csv", {"0f" * 16: "perhaps"})
    for flags in ((), ("--dry_run",)):
        assert run(tmp_path / "out", "--overrides", file, *flags) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error == (
            f"error: --overrides {file}, line 2: the decision must be keep or drop; got 'perhaps'"
        )
    assert run(tmp_path / "out", "--overrides", str(tmp_path / "none.csv")) == 2
    assert "none.csv does not exist" in capsys.readouterr().err


def test_a_review_that_does_not_fit_is_an_error(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = pd.read_parquet(copied / "stage3/ledger.parquet").query("decision == 'kept'")["id"]
    file = write_review(tmp_path / "o.csv", dict.fromkeys(ids, "keep"))
    flags = ("--load_saved", "--overrides", file, "--target_size_ratio", "0.5")
    assert run(copied, *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        "error: --overrides marks 48 training pairs keep, but --target_size_ratio 0.5 has room for "
        "30 of 60; raise it to 0.8 or mark fewer"
    )


N_CURVE = len(keep_curve.SHARES)  # times that the curve of the share kept asks what is kept


def test_a_review_is_not_obeyed_between_rounds(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = pd.read_parquet(copied / "stage3/ledger.parquet")
    refused = ledger.loc[ledger["decision"] == "kept", "id"].iloc[0]
    file = write_review(tmp_path / "o.csv", {refused: "drop"})
    n_reviewed: list[int] = []

    def counting(*given: Any, **more: Any) -> Any:
        reviewed = given[4] if len(given) > 4 else None
        n_reviewed.append(0 if reviewed is None else np.count_nonzero(reviewed))
        return curate(*given, **more)

    monkeypatch.setattr(main, "curate", counting)
    flags = ("--load_saved", "--rounds", "2", *FEW_METHODS)
    assert run(copied, *flags, "--overrides", file) == 0
    assert n_reviewed == [0, 0, *[0] * N_CURVE, 1]
    # So what stage 2 has found holds whatever is reviewed.
    monkeypatch.setattr(main, "score_pairs_in_rounds", _must_not_run)
    assert run(copied, *flags) == 0
    assert n_reviewed == [0, 0, *[0] * N_CURVE, 1, 0]


def test_skipped_stages_are_loaded(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.run.open_again", _must_not_run)
    monkeypatch.setattr(main, "open_again", _must_not_run)
    monkeypatch.setattr("cli.auto.embed_in_shards", _must_not_run)
    for name in ("cluster_embeddings", "score_clusters"):
        monkeypatch.setattr(main, name, _must_not_run)
    monkeypatch.setattr(main, "score_pairs_in_rounds", _must_not_run)
    before = timeless(copied)
    assert run(copied, "--skip_stage", "1", "2", "--max_weight", "2") == 0
    after = timeless(copied)
    assert after["stage1/clip_scores.npy"] == before["stage1/clip_scores.npy"]
    assert read_json(copied / "stage3/manifest.json")["settings"]["max_weight"] == 2


def test_skipped_stage_with_other_settings_is_an_error(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = timeless(copied)
    assert run(copied, "--skip_stage", "2", "--rank", "3") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --skip_stage 2:")
    assert "--rank 10 (now 3)" in error
    assert timeless(copied) == before


def test_unneeded_skipped_stages_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "o", "--skip_stage", "2", "3", "--methods", "full", "random") == 0
    assert not (tmp_path / "o/stage2").exists()
    assert not (tmp_path / "o/stage3").exists()
    printed = capsys.readouterr().out
    assert printed.startswith("No training pairs were chosen: stage 3 was not run or loaded.\n")
    assert "stage3/curated_indices.npy" not in printed
    pages = (tmp_path / "o/results/results.md", tmp_path / "o/results/report.html")
    for page in pages:
        assert not re.search(r"[Kk]ept 48|48</strong> of 60", page.read_text())


def test_curation_needs_stage_2_whatever_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "o", "--skip_stage", "2", "--methods", "full", "random") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --skip_stage 2:")
    assert "has no saved result" in error


class Killed(BaseException):
    """Stands for the end of the process: no handler of the program may see it."""


# In the embedding, both influences, the curation, a baseline and the evaluation.
@pytest.mark.parametrize("at_write", [3, 33, 45, 53, 70, 100])
def test_killed_run_continues_to_the_same_files(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_write: int
) -> None:
    folder, writes = tmp_path / "out", 0
    real = Store.write_bytes

    def killed(self: Store, relative: str, data: bytes) -> Path:
        nonlocal writes
        writes += 1
        if writes == at_write:
            raise Killed
        return real(self, relative, data)

    monkeypatch.setattr(Store, "write_bytes", killed)
    with pytest.raises(Killed):
        run(folder, "--visualize", "--save_checkpoints")
    monkeypatch.undo()
    assert run(folder, "--load_saved", "--visualize", "--save_checkpoints") == 0
    assert timeless(folder) == timeless(finished)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs in the Flickr8k layout, some of them hostile."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photographs"
    (folder / "Images").mkdir(parents=True)
    rows = ["image,caption"]
    for i in range(60):
        colour = rng.integers(0, 255, size=3)
        pixels = np.broadcast_to(colour, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"Images/{i}.png")
        rows += [
            f"{i}.png,A square of colour {colour.tolist()}".replace(",", " ").replace(" ", ",", 1)
        ]
    (folder / "Images/broken.png").write_bytes(b"<html>not found</html>")
    (folder / "Images/empty.png").write_bytes(b"")
    rows += ["broken.png,a broken one", "empty.png,an empty one", "missing.png,a missing one"]
    rows += ["1.png,   "]
    (folder / "captions.txt").write_text("\n".join(rows) + "\n")
    return folder


def test_hostile_folder_ends_well(photographs: Path, tmp_path: Path) -> None:
    flags = [f for f in TINY if f not in ("--dataset", "synthetic")]
    flags += ["--influence_budget", "1"]  # 38 of the photographs are for training
    out = tmp_path / "out"
    status = main.main(
        [*flags, "--output_dir", str(out), "--dataset", "folder", "--data_dir", str(photographs)]
    )
    assert status == 0
    skipped = pd.read_csv(out / "stage1/skipped.csv", keep_default_na=False)
    by_key = dict(zip(skipped["key"].str.split("/").str[-1], skipped["reason"], strict=True))
    assert by_key["broken.png"] == "broken image"
    assert by_key["empty.png"] == "empty file"
    assert by_key["missing.png"] == "missing file"
    assert by_key["1.png"] == "empty caption"
    log = (out / "log.txt").read_text()
    assert f"data set: folder {photographs}, captions.txt: 63 images, 64 captions" in log
    assert "broken image" in (out / "results/results.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--rank", "ten"], "--rank: invalid int value: 'ten'"),
        (["--rank", "0"], "--rank must be >= 1; got 0"),
        (["--skip_stage", "4"], "--skip_stage must be one of 1, 2, 3; got 4"),
        (["--dataset", "imagenet"], "--dataset must be one of"),
        (["--methods", "best"], "--methods must be one of"),
        (["--target_size_ratio", "1.5"], "--target_size_ratio must be <= 1"),
        (
            ["--target_size_ratio", "fast"],
            "--target_size_ratio: 'fast' is neither a number nor the word auto",
        ),
        (["--learning_rate", "nan"], "--learning_rate must be a finite number"),
        (
            ["--harmful_threshold", "0.02"],
            r"--harmful_threshold \(0.02\) must be below --beneficial_threshold \(0.01\)",
        ),
        (["--n_clusters", "70"], "--n_clusters 70 is more than --max_train_samples 60"),
        (["--influence_budget", "0"], "--influence_budget must be > 0; got 0"),
        (["--removal_folds", "1"], "--removal_folds must be 0 or at least 2"),
        (["--dataset", "folder"], "--data_dir"),
        (["--dataset", "folder", "--data_dir", "/no/such/folder"], "--data_dir /no/such/folder"),
        (["--dataset", "coco"], "COCO|hf_dataset|Hub"),
        (["--encoder_model", "no/such-model"], "--encoder_model no/such-model"),
        (["--skip_stage", "1"], "--skip_stage 1: .*has no saved result"),
        (["--data_dir", "."], "--data_dir is not used by --dataset synthetic"),
        (["--device", "cuda"], "--device cuda is not available"),
    ],
)
def test_bad_input_gets_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    words: str,
) -> None:
    import re

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(tmp_path / "out", *flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert re.search(words, errors[0])
    assert "Traceback" not in "\n".join(lines)


@pytest.mark.parametrize(
    "flags",
    [
        ["--device", "cuda"],
        ["--device", "mps"],
        ["--device", "cuda:7"],
        ["--overrides", "/no/such/file.csv"],
        ["--compare", "/no/such/folder"],
        *(["--skip_stage", *stages] for stages in ("1", "2", "3", ("2", "3"))),
        ["--skip_stage", "2", "3", "--methods", "none", "--validate_influence", "2"],
        ["--skip_stage", "3", "--methods", "none", "--export", "list"],
    ],
)
def test_what_is_wrong_before_any_work_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert run(tmp_path / "out", *flags) == 2
    assert list(tmp_path.iterdir()) == []


def test_output_dir_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("keep me")
    assert run(tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "keep me"


def test_defaults_are_those_promised() -> None:
    flat = config.parse_arguments([]).flat()
    promised = {
        "output_dir": "./output",
        "seed": 42,
        "log_file": "log.txt",
        "debug": False,
        "max_train_samples": 5000,
        "max_val_samples": 1000,
        "max_test_samples": 1000,
        "batch_size": 32,
        "num_workers": "auto",
        "n_clusters": 100,
        "rank": 10,
        "samples_per_cluster": 5,
        "embed_dim": 256,
        "target_size_ratio": 0.8,
        "harmful_threshold": -0.001,
        "beneficial_threshold": 0.01,
        "max_weight": 5.0,
        "num_epochs": 10,
        "learning_rate": 0.001,
        "weight_decay": 1e-5,
        "skip_stage": (),
        "load_saved": False,
        "save_checkpoints": False,
        "visualize": False,
        "dataset": "auto",
        "data_dir": None,
        "hf_dataset": "jxie/coco_captions",
        "image_column": "image",
        "caption_column": "caption",
        "id_column": "cocoid",
        "encoder_model": "auto",
        "device": "auto",
        "precision": "auto",
        "methods": TRAINED_BY_DEFAULT,
        "n_seeds": 3,
        "hessian": "lanczos",
        "influence_budget": 0.1,
        "rounds": 1,
        "weighting": "loss",
    }
    assert {name: flat[name] for name in promised} == promised


def test_debug_yields_to_explicit_flags() -> None:
    parsed = config.parse_arguments(["--debug", "--n_seeds", "5"])
    assert parsed.evaluation.n_seeds == 5
    assert parsed.data.max_train_samples == config.DEBUG_SETTINGS["max_train_samples"]


def test_help_lists_every_flag_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        config.parse_arguments(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name in config.parse_arguments([]).flat():
        assert f"--{name}" in text
    for group in config.GROUPS:
        assert f"\n{group}:" in text


def test_rounds_curate_again(tmp_path: Path) -> None:
    assert run(tmp_path / "o", "--rounds", "2", "--methods", "influencespace", "random") == 0
    log = (tmp_path / "o/log.txt").read_text()
    assert "round 1:" in log
    assert "round 2:" in log
    quality = read_json(tmp_path / "o/stage2/pair_influence_quality.json")
    first, second = quality["rounds"]
    assert [first["round"], second["round"]] == [1, 2]
    assert first["kept"] == second["kept"] == 48
    assert first["kept_before_too"] is None
    assert 36 <= second["kept_before_too"] <= 48  # 12 of 60 are dropped each time
    # The second round's models are trained on what the first has kept, and are what is saved.
    assert second["validation_loss"] != first["validation_loss"]
    assert second["validation_loss"] == pytest.approx(quality["validation_loss"], abs=1e-5)
    manifest = read_json(tmp_path / "o/stage2/pair_influence_manifest.json")
    assert manifest["settings"]["rounds"] == 2
    assert "target_size_ratio" in manifest["settings"]  # what is curated in between matters
    assert manifest["inputs"].keys() == {"embedding", "clustering", "trust", "influence"}
    curated = np.load(tmp_path / "o/stage3/curated_rows.npy")
    assert len(curated) == second["kept"]


def test_validation_against_retraining_is_written_shown_and_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "o"
    flags = ["--validate_influence", "4", "--validation_seeds", "2"]
    flags += ["--methods", "influencespace", "random"]
    assert run(folder, *flags) == 0
    checks = read_json(folder / "stage2/influence_validation.json")
    predictors = {"estimator", "size", "clip_score", "gradient_similarity"}
    scores = np.load(folder / "stage2/influence_scores.npy")
    for check in ("loco", "small_weight", "lds"):
        assert set(checks[check]) == predictors | {"ceiling", "seed_agreement"}
        assert len(checks["points"][check]) == 4
    predicted = [point["predicted"] for point in checks["points"]["loco"]]
    assert predicted == pytest.approx(100 * scores[checks["clusters"]])
    assert len(checks["seeds"]) == 2
    with Image.open(folder / "stage2/influence_validation.png") as image:
        assert min(image.size) > 200
    page = (folder / "results/results.md").read_text()
    section = page.split("### Does the estimate match retraining?")[1]
    assert "4 clusters, spread over the range of scores, were left out" in section
    assert "(../stage2/influence_validation.png)" in section
    assert "| One cluster left out |" in section
    before = timeless(folder)
    monkeypatch.setattr(main, "validate_influence", _must_not_run)
    assert run(folder, *flags, "--load_saved") == 0
    assert timeless(folder) == before
    # Without the flag nothing is retrained, and the page says how to.
    assert run(folder, *flags[4:], "--load_saved") == 0
    assert "`--validate_influence 20`" in (folder / "results/results.md").read_text()


def test_parse_errors_are_input_errors() -> None:
    with pytest.raises(InputError, match="unrecognized"):
        config.parse_arguments(["--nope"])


def test_main_is_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "--rank", "-1", "--output_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(main.__file__).parent,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --rank must be >= 1; got -1\n"


def test_a_closed_pipe_ends_the_run_without_a_traceback() -> None:
    script = (
        "import sys, main\n"
        "main.run_pipeline = lambda *_: print('x' * 10**6)\n"
        "sys.exit(main.main(['--dry_run']))"
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command,
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=Path(main.__file__).parent,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_run_opens_its_data_once_the_photographs_of_the_report_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(job: SourceJob) -> PairSource:
        opened.append("once")
        return open_again(job)

    monkeypatch.setattr(run_module, "open_again", counted)
    monkeypatch.setattr(main, "open_again", counted)
    assert run(tmp_path / "out", "--methods", "influencespace") == 0
    assert len(opened) == 1
    names = np.load(tmp_path / "out/report/image_sha256.npy")
    assert len(set(names.tolist())) == 60 + 24 + 24
    files = (tmp_path / "out/report/files.npy").read_bytes()
    (tmp_path / "out/report/photographs_manifest.json").unlink()
    assert run(tmp_path / "out", "--methods", "influencespace", "--load_saved") == 0
    assert (tmp_path / "out/report/files.npy").read_bytes() == files  # read again, the very same
    assert len(opened) > 1


def test_an_interrupted_program_ends_at_once() -> None:
    script = (
        "import os, signal, threading, time, main\n"
        "def interrupted(*_):\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "main.run_pipeline = interrupted\n"
        "main.sys.argv = ['main.py', '--dry_run']\n"
        "main.program()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        cwd=Path(main.__file__).parent,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 130
    assert done.stderr == "interrupted; what is saved stays, continue with --load_saved\n"

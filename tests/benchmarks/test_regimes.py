"""The benchmark of seven regimes, on a pool of made-up features: counts, leaks, faults, rows."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clustering import ClusteringConfig
from tests.knowing import cluster_influence
from train_eval import recall_metrics

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
N_TRAIN_IMAGES, N_TRAINING, N_VALIDATION, N_TEST = 120, 100, 20, 30
D_IMAGE, D_TEXT = 12, 8
ABOUT = {"command": "it", "hardware": {"cpu_cores": 1}, "packages": {"torch": "0"}}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    names = (
        *("regimes", "regimes_methods", "regimes_problem", "regimes_training", "regimes_rows"),
        *("regimes_report", "flickr8k_regimes"),
    )
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(BENCHMARKS)


@pytest.fixture
def bench(modules: dict[str, Any]) -> Any:
    return modules["regimes"]


@pytest.fixture
def methods(modules: dict[str, Any]) -> Any:
    return modules["regimes_methods"]


@pytest.fixture
def sets(modules: dict[str, Any]) -> Any:
    return modules["regimes_problem"]


@pytest.fixture
def report(modules: dict[str, Any]) -> Any:
    return modules["regimes_report"]


@pytest.fixture
def data(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    made = modules["flickr8k_regimes"]
    for name, value in (("N_TRAINING", N_TRAINING), ("N_VALIDATION", N_VALIDATION), ("TOPICS", 8)):
        monkeypatch.setattr(made, name, value)
    return made


def people(is_woman: bool) -> list[str]:
    """Whom the five captions of an image speak of."""
    return ["woman" if is_woman else "man"] * 3 + ["child", "man"]


@pytest.fixture
def pool(data: Any) -> Any:
    rng = np.random.default_rng(3)
    n = N_TRAIN_IMAGES + N_TEST
    is_train = rng.permutation(n) < N_TRAIN_IMAGES
    women = rng.random(n) < 0.5
    captions = np.array(
        [
            [f"a {who} number {i} caption {c}" for c, who in enumerate(people(bool(w)))]
            for i, w in enumerate(women)
        ]
    )
    images = rng.normal(size=(n, D_IMAGE)).astype(np.float32)
    copied = np.sort(rng.permutation(np.flatnonzero(is_train))[:40])
    texts = images[:, None, :D_TEXT] + rng.normal(size=(n, 5, D_TEXT))
    return data.Pool(
        images,
        texts.astype(np.float32),
        captions,
        is_train,
        copied,
        images[copied, None] + np.float32(0.01) * rng.normal(size=(40, 5, D_IMAGE)).astype("f4"),
        rng.normal(size=(10, D_TEXT)).astype(np.float32),
        data.AltTexts(
            rng.normal(size=(n, 5, D_TEXT)).astype(np.float32),
            rng.normal(size=(len(data.SAYING_NOTHING), D_TEXT)).astype(np.float32),
        ),
    )


class Known:
    """Where the rows of a regime come from, found by their features."""

    def __init__(self, pool: Any, regime: Any) -> None:
        photographs = {row.tobytes(): (i, -1) for i, row in enumerate(pool.images)}
        for i, copies in zip(pool.copied, pool.copies, strict=True):
            photographs |= {row.tobytes(): (int(i), k) for k, row in enumerate(copies)}
        texts = {
            pool.texts[i, c].tobytes(): (i, c) for i in range(len(pool.texts)) for c in range(5)
        }
        texts |= {row.tobytes(): (-1, b) for b, row in enumerate(pool.boilerplates)}
        self.images, self.copy = np.array(
            [photographs[r.tobytes()] for r in regime.image_features]
        ).T
        self.texts, self.caption = np.array([texts[r.tobytes()] for r in regime.text_features]).T
        self.validation = [photographs[r.tobytes()][0] for r in regime.validation_image_features]
        self.validation_texts = [texts[r.tobytes()][0] for r in regime.validation_text_features]


FAULTS = {
    "clean": {},
    "wrong_20": {"wrong caption": 20},
    "wrong_40": {"wrong caption": 40},
    "wrong_20_concentrated": {"wrong caption": 20},
    "near_copies": {"near copy": 50},
    "boilerplate_20": {"boilerplate caption": 20},
    "rare_group": {},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_regime_has_the_faults_it_says_and_no_image_of_another_split(
    data: Any, pool: Any, name: str
) -> None:
    for seed in range(3):
        regime = data.make_regime(name, pool, seed)
        known = Known(pool, regime)
        faults, n_faults = np.unique(regime.faults, return_counts=True)
        marked = dict(zip(faults.tolist(), n_faults.tolist(), strict=True))
        assert marked == {**FAULTS[name], "": N_TRAINING - sum(FAULTS[name].values())}

        assert len(set(known.validation)) == N_VALIDATION
        assert known.validation == known.validation_texts
        assert not set(known.validation) & (set(known.images) | set(known.texts))
        assert pool.is_train[known.images].all()
        assert pool.is_train[known.validation].all()

        boilerplate = regime.faults == "boilerplate caption"
        wrong = regime.faults == "wrong caption"
        assert ((known.texts == -1) == boilerplate).all()
        assert ((known.texts != known.images) == (wrong | boilerplate)).all()
        assert ((known.copy >= 0) == (regime.faults == "near copy")).all()
        shown = np.where(known.copy >= 0, -1, known.images)
        np.testing.assert_array_equal(regime.image_rows, shown)
        for text, caption, words in zip(known.texts, known.caption, regime.captions, strict=True):
            told = data.BOILERPLATES[caption] if text == -1 else pool.captions[text, caption]
            assert words == told


def test_a_seed_whose_copied_images_are_held_out_is_refused(data: Any, pool: Any) -> None:
    held_out = data._Draw(pool, 0).validation
    taken = pool._replace(copied=np.resize(held_out, len(pool.copied)))
    with pytest.raises(SystemExit, match="near_copies, mixture: with this seed"):
        data.make_regime("near_copies", taken, 0)


def test_near_copies_are_five_of_a_tenth_with_all_captions(data: Any, pool: Any) -> None:
    known = Known(pool, data.make_regime("near_copies", pool, 0))
    originals, copies = known.copy < 0, known.copy >= 0
    sources, n_copies = np.unique(known.images[copies], return_counts=True)
    assert len(sources) == N_TRAINING // 10
    assert (n_copies == 5).all()
    assert set(sources) <= set(known.images[originals])
    assert len(set(known.images[originals])) == originals.sum()
    for source in sources:
        assert sorted(known.caption[copies & (known.images == source)]) == [0, 1, 2, 3, 4]


def test_the_rare_group_is_a_tenth_of_itself_and_the_set_as_large(data: Any, pool: Any) -> None:
    for seed in range(5):
        n_women = [
            sum("woman" in c for c in data.make_regime(name, pool, seed).captions)
            for name in ("clean", "rare_group")
        ]
        assert n_women[0] > 10
        assert n_women[1] == round(n_women[0] / 10)


def test_a_seed_decides_everything(data: Any, pool: Any) -> None:
    one, same, other = (data.make_regime("wrong_20", pool, seed) for seed in (0, 0, 1))
    for name in ("image_features", "text_features", "faults", "image_embeddings"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert (one.image_features != other.image_features).any()


# --- Methods and rows -------------------------------------------------------------------------


@pytest.fixture
def problems(
    bench: Any, sets: Any, data: Any, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setattr(sets, "pool_of", lambda _: pool)
    monkeypatch.setattr(sets, "ClusteringConfig", lambda **_: ClusteringConfig(10))
    test = bench.test_set_of.__wrapped__(Path(), "")
    return {
        name: bench.make_problem(data.make_regime(name, pool, 0), 0, test)
        for name in ("clean", "wrong_20")
    }


def test_the_oracle_drops_faulty_pairs_first(bench: Any, problems: dict[str, Any]) -> None:
    def kept(method: str, regime: str, keep: float) -> list[int]:
        rows: list[int] = bench.METHODS[method].choose(problems[regime], keep, 0).rows.tolist()
        return rows

    faults = problems["wrong_20"].regime.faults
    assert not (faults[kept("oracle", "wrong_20", 0.8)] != "").any()
    assert (faults[kept("oracle", "wrong_20", 0.9)] != "").sum() == 10
    assert set(kept("oracle", "wrong_20", 0.6)) < set(kept("oracle", "wrong_20", 0.8))
    assert kept("oracle", "clean", 0.6) == kept("random", "clean", 0.6)


def test_rows_are_measured_written_and_summarized(
    bench: Any,
    report: Any,
    problems: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = options(bench, methods=["full", "oracle", "random"], regimes=["wrong_20"], seeds=1)
    (unit,) = bench.units_of(args, set())
    file = tmp_path / "regimes.csv"
    with bench.appending(file) as write:
        for row in bench.rows_of(unit, problems["wrong_20"]):
            write(row)
    frame = bench.read_rows(file)
    assert len(frame) == 1 + 2 * 2
    assert frame["mean_recall"].between(0, 100).all()
    assert frame.set_index(["method", "comparison"])["n_steps"].to_dict() == {
        ("full", "both"): 30,
        **{(m, "same_epochs"): 20 for m in ("oracle", "random")},
        **{(m, "same_steps"): 30 for m in ("oracle", "random")},
    }
    assert frame.set_index("method").loc["full", "faults_left"] == 0.2
    assert bench.units_of(args, bench.keys_of(frame)) == []

    report.write_summary(frame, tmp_path, ABOUT, {"two_rounds": "two rounds"})
    printed = capsys.readouterr().out
    assert "| wrong_20 | 0.8 |" in printed
    assert "What each part is worth" not in printed
    summary = json.loads((tmp_path / "regimes.json").read_text())
    assert list(summary) == [*ABOUT, "verdicts", "cells"]


def test_influencespace_chooses_within_its_budget(
    methods: Any, problems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems["wrong_20"]
    known = len(np.unique(problem.clusters.cluster_assignments))
    flat = cluster_influence(np.zeros(known))
    monkeypatch.setattr(methods, "influence_of", lambda *_: (flat, 2.0))
    quick = {"held_out_repeats": 1, "held_out_steps": 10}
    variants = {
        "tenth": methods.Variant(cells=quick),
        "all": methods.Variant(cells={**quick, "influence_budget": 1.0}, equal_weights=True),
        "twice": methods.Variant(cells=quick, rounds=2),
        "told": methods.Variant(cells=quick, labels_known=True),
    }
    chosen = {
        name: methods.influencespace(variant)(problem, 0.8, 0) for name, variant in variants.items()
    }
    for one in chosen.values():
        assert len(one.rows) == len(set(one.rows.tolist())) == 80
        assert one.seconds > 2
    faulty = problem.regime.faults != ""
    assert faulty[chosen["told"].rows].mean() < faulty.mean()
    assert chosen["all"].weights is None
    assert chosen["tenth"].weights.mean() == pytest.approx(1)


def test_what_shares_have_in_common_costs_each_the_same(
    methods: Any, problems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems["wrong_20"]
    flat = cluster_influence(np.zeros(len(np.unique(problem.clusters.cluster_assignments))))
    trust, judging = methods.trust_of(problem)
    asked = methods.asking(problem, trust)
    quick = {"held_out_repeats": 1, "held_out_steps": 10}
    estimate, _ = methods.pair_influence_of(asked, trust, quick)
    monkeypatch.setattr(methods, "influence_of", lambda *_: (flat, 20.0))
    clock = iter(range(0, 10**9, 1000))
    # Whoever computes the estimate, 1,000 seconds pass meanwhile: they count once, as its own.
    monkeypatch.setattr(
        methods, "pair_influence_of", lambda *_: (next(clock), (estimate, 300.0))[1]
    )
    monkeypatch.setattr(methods.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(methods, "curve_of", lambda *_: (None, 40.0))
    monkeypatch.setattr(methods, "faults_alone", lambda influence, *_: influence)
    _, _, seconds = methods.curate_with_influencespace(problem, 0.8, methods.Variant())
    assert seconds == 20 + judging + 340 + 1000  # one step of the clock: curating


def test_labels_are_of_no_use_where_nothing_is_faulty(
    methods: Any, problems: dict[str, Any]
) -> None:
    with pytest.raises(SystemExit, match="labels_known: clean has no faulty pairs"):
        methods.judged_by_labels(problems["clean"], argparse.Namespace(), 80)


def test_every_method_is_reported_and_every_variant_has_a_label(bench: Any, report: Any) -> None:
    assert tuple(bench.METHODS) == (*report.METHODS, *bench.ABLATION)
    labels = [variant.label for variant in bench.ABLATION.values()]
    assert all(labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", FAULTS)
def test_noisy_held_out_pairs_have_the_faults_of_the_training_pairs_and_change_none(
    data: Any, pool: Any, name: str
) -> None:
    clean, noisy = (
        data.make_regime(name, pool, 0, data.HeldOut(noisy=noisy, size=N_VALIDATION))
        for noisy in (False, True)
    )
    np.testing.assert_array_equal(noisy.image_features, clean.image_features)
    np.testing.assert_array_equal(noisy.text_features, clean.text_features)
    np.testing.assert_array_equal(noisy.validation_image_features, clean.validation_image_features)
    assert not (clean.validation_faults != "").any()
    known = Known(pool, noisy)
    wrong = np.array(known.validation) != np.array(known.validation_texts)
    np.testing.assert_array_equal(wrong, noisy.validation_faults != "")
    share = {"wrong_20": 0.2, "wrong_40": 0.4, "boilerplate_20": 0.2}.get(name)
    if share is not None:
        assert wrong.mean() == pytest.approx(share, abs=0.5 / N_VALIDATION)
    elif name != "wrong_20_concentrated":  # there as many as lie in the topics hit
        assert not wrong.any()


def test_held_out_pairs_may_be_few_or_about_one_thing(data: Any, pool: Any) -> None:
    few = data.make_regime("clean", pool, 0, data.HeldOut(size=5))
    assert few.validation_image_features.shape == (5, D_IMAGE)
    target = data.HeldOut(target="woman", size=N_VALIDATION)
    regime = data.make_regime("clean", pool, 0, target)
    captions = pool.captions[Known(pool, regime).validation]
    assert len(captions) > 2
    assert all("woman" in caption for caption in captions[:, 0])
    assert data.HeldOut(noisy=True, size=3).name == "noisy-3"
    assert data.about(np.array([["two dogs", "a dog", "a cat"]]), "dog").tolist() == [True]
    assert data.about(np.array([["hotdogs", "a dog", "a cat"]]), "dog").tolist() == [False]


def test_what_is_asked_for_is_named(bench: Any) -> None:
    args = options(bench, validation=["clean", "noisy-30"], target="dog")
    assert [h.name for h in bench.held_outs(args)] == ["clean-dog", "noisy-dog-30"]
    with pytest.raises(SystemExit, match="--validation dirty: clean, noisy"):
        bench.held_outs(options(bench, validation=["dirty"]))


def options(bench: Any, **given: Any) -> argparse.Namespace:
    defaults = {
        "keep": [0.8],
        "comparisons": ["same_epochs", "same_steps"],
        "first_seed": 0,
        "validation": ["clean"],
        "target": "",
    }
    return argparse.Namespace(**{**defaults, **given})


def written(bench: Any, file: Path, **given: Any) -> None:
    row = dict.fromkeys(sys.modules["regimes_rows"].COLUMNS, 1.0)
    with bench.appending(file) as write:
        named = {"regime": "clean", "validation": "clean", "comparison": "same_steps"}
        write({**row, **named, "seed": 0, **given})


def test_a_killed_run_goes_on_and_a_new_version_counts_for_one_method(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "regimes.csv"
    for method in ("random", "influencespace"):
        version = bench.version_of(method)
        written(bench, file, method=method, keep=0.8, version=version)
    whole = file.read_bytes()
    file.write_bytes(whole + b"clean,0.8,semdedup,0,sa")
    frame = bench.read_rows(file)
    assert frame["method"].tolist() == ["random", "influencespace"]
    assert file.read_bytes() == whole

    args = options(
        bench,
        methods=["random", "influencespace"],
        comparisons=["same_steps"],
        regimes=["clean", "wrong_20"],
        seeds=2,
    )
    left = bench.units_of(args, bench.keys_of(frame))
    assert [(u.regime, u.seed) for u in left] == [("wrong_20", 0), ("clean", 1), ("wrong_20", 1)]

    newer = bench.METHODS["influencespace"]._replace(version="next")
    monkeypatch.setitem(bench.METHODS, "influencespace", newer)
    frame = bench.read_rows(file)
    assert frame["method"].tolist() == ["random"]
    (job,) = bench.units_of(args, bench.keys_of(frame))[0].jobs
    assert (job.method, job.keep, job.comparison) == ("influencespace", 0.8, "same_steps")


def test_recovered_gain_by_hand(report: Any) -> None:
    random, oracle = pd.Series([10.0, 12.0, 11.0]), pd.Series([20.0, 23.0, 20.0])
    assert report.recovered_gain(random, random, oracle)["mean"] == 0
    gain = report.recovered_gain(random + 5, random, oracle)
    assert gain["mean"] == pytest.approx(0.5)
    # Without each seed in turn: 10 / 20, 10 / 19, 10 / 21.
    spread = np.sqrt(2 * np.var([10 / 20, 10 / 19, 10 / 21]))
    assert gain["stderr"] == pytest.approx(spread)
    assert report.recovered_gain(random, random, random) is None
    assert report.recovered_gain(oracle, random, random + np.array([9.0, -9.0, 1.0])) is None


def runs(
    bench: Any,
    file: Path,
    method: str,
    regime: str,
    metrics: Mapping[str, Mapping[int, float]],
) -> None:
    """Rows of one method and regime: of each metric, its value by seed."""
    whole = {"keep": 1.0, "comparison": "both"}
    given = {
        "method": method,
        "regime": regime,
        "validation": "clean",
        "version": bench.version_of(method),
        **(whole if method == "full" else {"keep": 0.8}),
    }
    for seed in next(iter(metrics.values())):
        values = {name: float(by_seed[seed]) for name, by_seed in metrics.items()}
        written(bench, file, **given, seed=seed, **values)


def test_the_difference_to_the_best_rival_is_paired_by_seed(
    bench: Any, report: Any, tmp_path: Path
) -> None:
    file = tmp_path / "regimes.csv"
    recalls = {"influencespace": (20, 31, 40), "random": (10, 20, 30), "semdedup": (19, 29, 39)}
    for method, values in recalls.items():
        runs(bench, file, method, "clean", {"mean_recall": dict(enumerate(values))})
    (cell,) = report.summarize(bench.read_rows(file))
    assert cell["best_rival"] == "semdedup"
    assert cell["difference"]["mean"] == pytest.approx(4 / 3)
    assert cell["difference"]["stderr"] == pytest.approx(1 / 3)  # of 1, 2, 1
    assert report.verdicts([cell])[0]["above"] == 1
    assert cell["methods"]["influencespace"]["recall_rise_percent"]["mean"] == pytest.approx(
        100 * np.mean([20 / 10, 31 / 20, 40 / 30]) - 100
    )


# --- Variants ---------------------------------------------------------------------------------

LABELS = {
    "budget_0.03": "a small budget",
    "topics_ignored": "topics ignored",
    "two_rounds": "two rounds",
    "women_twice": "women weigh twice",
    "women_five_times": "women weigh five times",
}


def test_a_variant_is_paired_with_influencespace_by_regime_and_seed(
    bench: Any, report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "regimes.csv"
    for method, regime, recalls in (
        ("influencespace", "wrong_20", {0: 20, 1: 22}),
        ("influencespace", "clean", {0: 30, 1: 32, 2: 90}),
        ("influencespace", "near_copies", {0: 50}),
        ("random", "clean", {0: 11}),
        ("budget_0.03", "clean", {0: 29, 1: 30}),  # -1, -2
        ("budget_0.03", "wrong_20", {0: 21, 1: 26}),  # +1, +4; a seed over its regimes: 0, +1
        ("two_rounds", "clean", {1: 33, 3: 70}),  # +1, and a seed without InfluenceSpace
        ("topics_ignored", "boilerplate_20", {0: 40}),  # a regime without InfluenceSpace
    ):
        left = {seed: 0.1 if method == "budget_0.03" else 0.01 * seed for seed in recalls}
        runs(bench, file, method, regime, {"mean_recall": recalls, "faults_left": left})
    frame = bench.read_rows(file)
    (tmp_path / "out").mkdir()
    report.write_summary(frame, tmp_path / "out", ABOUT, LABELS)
    before, after = capsys.readouterr().out.split("## What each part is worth")

    assert [line for line in after.splitlines() if line.startswith(("| ", "### ", "Seeds"))] == [
        "### Same number of steps as the full data, keep 0.8",
        "Seeds: 1 to 2.",
        "| variant | clean | wrong_20 | mean over its regimes | faulty |",
        "| InfluenceSpace | 31.00 ± 1.00 | 21.00 ± 1.00 | 26.00 ± 1.00 | 0.5 % |",
        "| a small budget | -1.50 ± 0.50 | +2.50 ± 1.50 | +0.50 ± 0.50 | 10.0 % |",
        "| two rounds | +1.00 | – | +1.00 | 1.0 % |",
    ]
    assert "| Random |" in before
    for name in ("Budget 0.03", "Two rounds", "Topics ignored", *LABELS.values()):
        assert name not in before

    summary = json.loads((tmp_path / "out/regimes.json").read_text())
    (part,) = summary["ablation"]["differences"]
    assert (part["comparison"], part["keep"]) == ("same_steps", 0.8)
    assert list(part["variants"]) == ["budget_0.03", "two_rounds"]
    assert part["variants"]["budget_0.03"] == {
        "label": "a small budget",
        "regimes": {
            "clean": {"mean": -1.5, "stderr": pytest.approx(0.5), "n_seeds": 2},
            "wrong_20": {"mean": 2.5, "stderr": pytest.approx(1.5), "n_seeds": 2},
        },
        "mean": {"mean": 0.5, "stderr": pytest.approx(0.5)},
        "faults_left": pytest.approx(0.1),
    }
    assert summary["ablation"]["rare_group"] == []
    assert {m for cell in summary["cells"] for m in cell["methods"]} == {"influencespace", "random"}


def test_the_mean_over_regimes_has_no_error_where_a_seed_misses_one(report: Any) -> None:
    whole = pd.DataFrame({"clean": [1.0, 3.0], "wrong_20": [2.0, 8.0]})
    assert report.over_regimes(whole)["mean"] == {"mean": 3.5, "stderr": pytest.approx(2.0)}
    partly = pd.DataFrame({"clean": [1.0, 3.0], "wrong_20": [2.0, np.nan], "wrong_40": np.nan})
    assert report.over_regimes(partly) == {
        "regimes": {
            "clean": {"mean": 2.0, "stderr": pytest.approx(1.0), "n_seeds": 2},
            "wrong_20": {"mean": 2.0, "stderr": None, "n_seeds": 1},
        },
        "mean": {"mean": 2.0, "stderr": None},
    }


def test_nothing_is_said_of_variants_without_influencespace_beside_them(
    bench: Any, report: Any, tmp_path: Path
) -> None:
    file = tmp_path / "regimes.csv"
    runs(bench, file, "women_twice", "rare_group", {"mean_recall": {0: 1}})
    runs(bench, file, "influencespace", "rare_group", {"mean_recall": {1: 1}})
    frame = bench.read_rows(file)
    assert report.ablation(frame, LABELS) == {}
    assert "What each part" not in report.markdown(report.summarize(frame), ABOUT, {})
    runs(bench, file, "women_twice", "rare_group", {"mean_recall": {1: 1}})
    assert report.ablation(bench.read_rows(file), LABELS)["differences"] != []


def test_groups_where_women_weigh_more_are_shown_over_the_seeds_of_all(
    bench: Any, report: Any, tmp_path: Path
) -> None:
    def groups(gap: dict[int, float], female: float, male: float) -> dict[str, dict[int, float]]:
        return {
            "gap": gap,
            "female_recall@10": dict.fromkeys(gap, female),
            "male_recall@10": dict.fromkeys(gap, male),
        }

    file = tmp_path / "regimes.csv"
    runs(bench, file, "full", "rare_group", groups({0: 8, 1: 10, 2: 90}, 30, 39))
    runs(bench, file, "influencespace", "rare_group", groups({0: 5, 1: 7, 2: 80}, 31, 37))
    runs(bench, file, "two_rounds", "rare_group", groups({0: 3, 1: 3}, 31, 34))
    runs(bench, file, "women_twice", "rare_group", groups({0: 1, 1: 2}, 34, 35.5))
    runs(bench, file, "women_twice", "clean", groups({0: 60, 1: 60}, 20, 80))
    frame = bench.read_rows(file)
    parts = report.ablation(frame, LABELS)
    (cell,) = parts["rare_group"]
    assert list(cell["methods"]) == ["full", "influencespace", "women_twice"]
    assert cell["methods"]["influencespace"]["gap"] == {"mean": 6.0, "stderr": pytest.approx(1.0)}

    text = report.markdown(report.summarize(frame), ABOUT, parts)
    section = text.split("### Rare group")[1].split("###")[0]
    assert section.endswith(
        "| keep | method | gap female/male | recall@10 female | recall@10 male |\n"
        "|---|---|---|---|---|\n"
        "| 0.8 | Full data | 9.00 ± 1.00 | 30.00 ± 0.00 | 39.00 ± 0.00 |\n"
        "| 0.8 | InfluenceSpace | 6.00 ± 1.00 | 31.00 ± 0.00 | 37.00 ± 0.00 |\n"
        "| 0.8 | women weigh twice | 1.50 ± 0.50 | 34.00 ± 0.00 | 35.50 ± 0.00 |\n\n"
    )


# --- Further regimes --------------------------------------------------------------------------


def drawn(data: Any, pool: Any, name: str, seed: int) -> Any:
    """The pairs of a regime before they are mixed."""
    draw = data._Draw(pool, seed)
    data.recipe_of(name)(draw)
    return draw


def test_hard_captions_are_exchanged_once_with_the_nearest_image(data: Any, pool: Any) -> None:
    for seed in range(3):
        draw = drawn(data, pool, "hard_20", seed)
        own = pool.texts[draw.image_rows, draw.chosen[draw.image_rows]]
        row_of = {text.tobytes(): i for i, text in enumerate(own)}
        giver = np.array([row_of[text.tobytes()] for text in draw.texts])
        swapped = giver != np.arange(N_TRAINING)
        np.testing.assert_array_equal(swapped, draw.faults == "caption of a near image")
        assert swapped.sum() == 20
        np.testing.assert_array_equal(giver[giver], np.arange(N_TRAINING))  # an exchange
        captions = pool.captions[draw.image_rows, draw.chosen[draw.image_rows]]
        assert draw.captions.tolist() == captions[giver].tolist()
        # Of each two, one looked for the other: no pair that kept its caption was nearer to it.
        directions = pool.images[draw.image_rows] - pool.images[draw.image_rows].mean(axis=0)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        likeness = directions @ directions.T
        left = likeness[:, ~swapped].max(axis=1)
        for row in np.flatnonzero(swapped):
            partner = giver[row]
            nearest = [likeness[row, partner] > left[one] - 1e-6 for one in (row, partner)]
            assert any(nearest)


def test_alt_texts_are_keywords_of_the_right_caption_or_say_nothing(data: Any, pool: Any) -> None:
    draw = drawn(data, pool, "alt_text_20", 1)
    own = pool.captions[draw.image_rows, draw.chosen[draw.image_rows]]
    changed = draw.captions != own
    empty = draw.faults == "alt text that says nothing"
    assert changed.sum() == 20
    assert empty.sum() == 10
    assert set(draw.captions[empty]) <= set(data.SAYING_NOTHING)
    terse = changed & ~empty
    assert (draw.faults[terse] == "").all()
    for row in np.flatnonzero(terse):
        assert draw.captions[row] == data.keywords_of(own[row])
        image = draw.image_rows[row]
        keywords = pool.alt_texts.keywords[image, draw.chosen[image]]
        np.testing.assert_array_equal(draw.texts[row], keywords)
    for row in np.flatnonzero(empty):
        which = data.SAYING_NOTHING.index(draw.captions[row])
        np.testing.assert_array_equal(draw.texts[row], pool.alt_texts.saying_nothing[which])


def test_keywords_are_the_first_words_that_mean_something(data: Any) -> None:
    assert data.keywords_of("A dog is running to the dog on a red beach , a red sky above it") == (
        "dog, running, red, beach, sky"
    )
    assert data.keywords_of("it is what it is") == "it is what it is"
    texts = data.SAYING_NOTHING
    assert len(set(texts)) == len(texts) == 300
    assert sum("$" in text for text in texts) == 200
    assert sum("." in text and "$" not in text for text in texts) == 100


def test_a_mixture_has_every_fault_once_a_pair(data: Any, pool: Any) -> None:
    regime = data.make_regime("mixture", pool, 0)
    faults, n_faults = np.unique(regime.faults, return_counts=True)
    assert dict(zip(faults.tolist(), n_faults.tolist(), strict=True)) == {
        "": 66,  # of a tenth of 5 % are not two whole exchanges
        "boilerplate caption": 10,
        "caption of a near image": 4,
        "near copy": 10,
        "wrong caption": 10,
    }


@pytest.mark.parametrize(
    ("name", "share"),
    [("hard_20", 0.2), ("alt_text_20", 0.1), ("mixture", 0.2), ("wrong_10", 0.1), ("wrong_0", 0)],
)
def test_further_regimes_spoil_held_out_pairs_too(
    data: Any, pool: Any, name: str, share: float
) -> None:
    regime = data.make_regime(name, pool, 0, data.HeldOut(noisy=True, size=N_VALIDATION))
    assert (regime.validation_faults != "").mean() == pytest.approx(share)


def test_any_share_of_wrong_captions_has_a_name(data: Any, pool: Any) -> None:
    for share in (0, 7, 60):
        faults = drawn(data, pool, f"wrong_{share}", 0).faults
        assert (faults == "wrong caption").sum() == share
    np.testing.assert_array_equal(
        drawn(data, pool, "wrong_0", 3).texts, drawn(data, pool, "clean", 3).texts
    )
    for name in ("wrong_61", "wrong_07", "wrong_", "right_10"):
        with pytest.raises(ValueError, match=f"no regime {name}"):
            data.recipe_of(name)
    assert data.in_order(["wrong_60", "mixture", "wrong_9", "clean"]) == [
        "clean",
        "mixture",
        "wrong_9",
        "wrong_60",
    ]


def test_alt_texts_are_embedded_once_beside_a_pool_of_old(
    data: Any, pool: Any, tmp_path: Path
) -> None:
    file = tmp_path / "pool.npz"
    old = pool._replace(alt_texts=None)._asdict()
    np.savez(file, **{name: value for name, value in old.items() if value is not None})
    before, asked = file.read_bytes(), []

    class Lengths:
        def encode_texts(self, texts: Any) -> Any:
            asked.append(len(texts))
            features = np.array([[len(text)] for text in texts], dtype=np.float32)
            return argparse.Namespace(features=features)

    loaded = data.load_pool(tmp_path, file, Lengths)
    n = len(pool.images)
    assert asked == [5 * n, 300]
    assert loaded.alt_texts.keywords[3, 2, 0] == len(data.keywords_of(pool.captions[3, 2]))
    np.testing.assert_array_equal(loaded.images, pool.images)
    again = data.load_pool(tmp_path, file, lambda: pytest.fail("embedded twice"))
    np.testing.assert_array_equal(again.alt_texts.keywords, loaded.alt_texts.keywords)
    assert file.read_bytes() == before


# --- What a test image adds -------------------------------------------------------------------


def test_scores_of_images_by_hand(modules: dict[str, Any]) -> None:
    rows = modules["regimes_rows"]
    # Two captions an image. The first image is found at once, one of its captions among five.
    image_ranks, caption_ranks = np.array([0, 12, 7]), np.array([3, 50, 0, 0, 11, 9])
    scores = rows.image_scores(image_ranks, caption_ranks, np.array([0, 0, 1, 1, 2, 2]))
    assert scores.tolist() == [2 * 3 + 2, 0 + 3 + 3, 2 * 1 + 1]
    expected = recall_metrics(image_ranks, caption_ranks)["mean_recall"]
    assert 100 * scores.mean() / rows.highest_score(2) == pytest.approx(expected)
    np.testing.assert_array_equal(rows.unpacked(rows.packed(scores)), scores)


def test_scores_are_kept_beside_the_rows_and_asked_for_where_they_are_missing(
    bench: Any, problems: dict[str, Any], modules: dict[str, Any], tmp_path: Path
) -> None:
    rows = modules["regimes_rows"]
    args = options(
        bench, methods=["random"], regimes=["wrong_20"], seeds=1, comparisons=["same_steps"]
    )
    (unit,) = bench.units_of(args, set())
    (row,) = bench.rows_of(unit, problems["wrong_20"])
    file = tmp_path / "regimes.csv"
    with rows.appending(file) as write:
        write(row)
    assert len(bench.done_in(file, with_images=False)) == 1
    assert bench.done_in(file, with_images=True) == set()
    with rows.appending(rows.scores_file_of(file), rows.SCORE_COLUMNS) as write:
        write(row)
    ((key, scores),) = rows.read_scores(file).items()
    assert bench.done_in(file, with_images=True) == {key}
    assert scores.shape == (N_TEST,)
    kept = rows.read_rows(file)["mean_recall"][0]
    assert 100 * scores.mean() / rows.highest_score() == pytest.approx(kept, rel=1e-4)


def test_a_regime_that_is_not_there_is_refused(bench: Any) -> None:
    assert bench.regime_name("wrong_35") == "wrong_35"
    with pytest.raises(argparse.ArgumentTypeError, match="no regime wrong_70"):
        bench.regime_name("wrong_70")

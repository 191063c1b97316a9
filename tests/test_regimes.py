"""The benchmark of seven regimes, on a pool of made-up features: counts, leaks, faults, rows."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clustering import ClusteringConfig

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
N_TRAIN_IMAGES, N_TRAINING, N_VALIDATION, N_TEST = 120, 100, 20, 30
D_IMAGE, D_TEXT = 12, 8


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[Any, Any]]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield importlib.import_module("regimes"), importlib.import_module("flickr8k_regimes")
    sys.path.remove(BENCHMARKS)


@pytest.fixture
def bench(modules: tuple[Any, Any]) -> Any:
    return modules[0]


@pytest.fixture
def data(modules: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    made = modules[1]
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
        for text, caption, words in zip(known.texts, known.caption, regime.captions, strict=True):
            told = data.BOILERPLATES[caption] if text == -1 else pool.captions[text, caption]
            assert words == told


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
def problems(bench: Any, data: Any, pool: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(bench, "pool_of", lambda _: pool)
    monkeypatch.setattr(bench, "ClusteringConfig", lambda **_: ClusteringConfig(10))
    test = bench.test_set_of.__wrapped__(Path())
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
    bench: Any, problems: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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

    about = {"command": "it", "hardware": {"cpu_cores": 1}, "packages": {"torch": "0"}}
    bench.write_summary(frame, tmp_path, about)
    assert "| wrong_20 | 0.8 |" in capsys.readouterr().out
    assert (tmp_path / "regimes.json").exists()


def test_influencespace_chooses_within_its_budget(
    bench: Any, problems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems["wrong_20"]
    known = len(np.unique(problem.clusters.cluster_assignments))
    flat = argparse.Namespace(influence_scores=np.zeros(known), influence_stderr=np.zeros(known))
    monkeypatch.setattr(bench, "influence_of", lambda _: (flat, 2.0))
    quick = {"held_out_repeats": 1, "held_out_steps": 10}
    variants = {
        "tenth": bench.Variant(cells=quick),
        "all": bench.Variant(cells={**quick, "influence_budget": 1.0}, equal_weights=True),
        "twice": bench.Variant(cells=quick, rounds=2),
    }
    chosen = {
        name: bench.influencespace(variant)(problem, 0.8, 0) for name, variant in variants.items()
    }
    for one in chosen.values():
        assert len(one.rows) == len(set(one.rows.tolist())) == 80
        assert one.seconds > 2
    assert chosen["all"].weights is None
    assert chosen["tenth"].weights.mean() == pytest.approx(1)
    assert set(bench.ABLATION) <= set(bench.METHODS)


def options(bench: Any, **given: Any) -> argparse.Namespace:
    defaults = {"keep": [0.8], "comparisons": ["same_epochs", "same_steps"]}
    return argparse.Namespace(**{**defaults, **given})


def written(bench: Any, file: Path, **given: Any) -> None:
    row = dict.fromkeys(bench.COLUMNS, 1.0)
    with bench.appending(file) as write:
        write({**row, "regime": "clean", "seed": 0, "comparison": "same_steps", **given})


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


def test_recovered_gain_by_hand(bench: Any) -> None:
    random, oracle = pd.Series([10.0, 12.0, 11.0]), pd.Series([20.0, 23.0, 20.0])
    assert bench.recovered_gain(random, random, oracle)["mean"] == 0
    gain = bench.recovered_gain(random + 5, random, oracle)
    assert gain["mean"] == pytest.approx(0.5)
    # Without each seed in turn: 10 / 20, 10 / 19, 10 / 21.
    spread = np.sqrt(2 * np.var([10 / 20, 10 / 19, 10 / 21]))
    assert gain["stderr"] == pytest.approx(spread)
    assert bench.recovered_gain(random, random, random) is None
    assert bench.recovered_gain(oracle, random, random + np.array([9.0, -9.0, 1.0])) is None


def test_the_difference_to_the_best_rival_is_paired_by_seed(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "regimes.csv"
    recalls = {"influencespace": (20, 31, 40), "random": (10, 20, 30), "semdedup": (19, 29, 39)}
    for method, values in recalls.items():
        for seed, recall in enumerate(values):
            version = bench.version_of(method)
            given = {"method": method, "keep": 0.8, "version": version, "seed": seed}
            written(bench, file, **given, mean_recall=float(recall))
    (cell,) = bench.summarize(bench.read_rows(file))
    assert cell["best_rival"] == "semdedup"
    assert cell["difference"]["mean"] == pytest.approx(4 / 3)
    assert cell["difference"]["stderr"] == pytest.approx(1 / 3)  # of 1, 2, 1
    assert bench.verdicts([cell])[0]["above"] == 1
    assert cell["methods"]["influencespace"]["recall_rise_percent"]["mean"] == pytest.approx(
        100 * np.mean([20 / 10, 31 / 20, 40 / 30]) - 100
    )

"""How the protocol's page reckons: tests, corrections and verdicts on tables worked by hand."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
ABOUT = {"hardware": {"cpu_cores": 1}, "packages": {}}
NAMES = (
    "protocol_report",
    "paired_differences",
    "regimes_rows",
    "regimes_methods",
    "protocol",
    "share_regret",
)


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(BENCHMARKS)


@pytest.fixture
def report(modules: dict[str, Any]) -> Any:
    return modules["protocol_report"]


@pytest.fixture
def paired(modules: dict[str, Any]) -> Any:
    return modules["paired_differences"]


@pytest.fixture
def regret(modules: dict[str, Any]) -> Any:
    return modules["share_regret"]


# --- Tests and corrections --------------------------------------------------------------------


def test_the_paired_test_by_hand(paired: Any) -> None:
    # Mean 2, deviation 1, error 1 / sqrt 3, t = 3.4641; with two degrees of freedom the tail is
    # (1 - t / sqrt(2 + t^2)) / 2.
    tested = paired.difference(pd.Series([1.0, 2.0, 3.0]), None, paired.Resamples())
    t = 2 * np.sqrt(3)
    assert tested.mean == 2
    assert tested.stderr == pytest.approx(1 / np.sqrt(3))
    assert tested.p == tested.p_seeds == pytest.approx(1 - t / np.sqrt(2 + t**2))
    assert np.isnan(tested.stderr_images)
    assert paired.difference(pd.Series([2.0]), None, paired.Resamples()).p == 1
    assert paired.two_sided(0.0, 0.0, 3) == 1
    assert paired.two_sided(0.1, 0.0, 3) == 0


def test_holm_by_hand(paired: Any) -> None:
    # In rising order 0.01 * 4, 0.02 * 3, 0.03 * 2 (no less than the one before), 0.5.
    np.testing.assert_allclose(paired.holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(paired.holm([0.6, 0.9]), [1, 1])
    np.testing.assert_allclose(paired.holm([0.01]), [0.01])


def every_draw(n: int) -> np.ndarray:
    """Shares of all n^n draws of n with replacement, each as likely."""
    drawn = itertools.product(range(n), repeat=n)
    return np.array([np.bincount(d, minlength=n) / n for d in drawn])


def test_the_error_over_seeds_and_images_by_every_draw_there_is(paired: Any) -> None:
    table = np.array([[3.0, 1.0, -1.0], [6.0, 2.0, 1.0]])
    seeds, images = every_draw(2), every_draw(3)
    stretched = table.mean(axis=0) + np.sqrt(2) * (table - table.mean(axis=0))
    means = [float(s @ stretched @ i) for s in seeds for i in images]
    pairs = [(s, i) for s in range(len(seeds)) for i in range(len(images))]
    exact = paired.two_way_stderr(
        table, seeds[[s for s, _ in pairs]], images[[i for _, i in pairs]]
    )
    assert exact == pytest.approx(np.std(means))
    rng = np.random.default_rng(0)
    drawn = paired.two_way_stderr(
        table, paired.resampled(2, 40000, rng), paired.resampled(3, 40000, rng)
    )
    assert drawn == pytest.approx(exact, rel=0.02)


def test_the_error_over_both_is_that_of_seeds_or_images_where_only_these_differ(
    paired: Any,
) -> None:
    rng = np.random.default_rng(1)
    draws = paired.resampled(5, 50000, rng), paired.resampled(40, 50000, rng)
    by_seed, by_image = rng.normal(size=(5, 1)), rng.normal(size=(1, 40))
    only_seeds = paired.two_way_stderr(np.repeat(by_seed, 40, axis=1), *draws)
    assert only_seeds == pytest.approx(by_seed.std(ddof=1) / np.sqrt(5), rel=0.02)
    only_images = paired.two_way_stderr(np.repeat(by_image, 5, axis=0), *draws)
    assert only_images == pytest.approx(by_image.std() / np.sqrt(40), rel=0.02)


def test_the_larger_p_counts(paired: Any) -> None:
    # Seeds agree to the last digit, images do not: the test over seeds alone would be certain.
    table = np.tile(np.array([6.0, -4.0, 3.0, -1.0]), (3, 1))
    tested = paired.difference(pd.Series(table.mean(axis=1)), table, paired.Resamples())
    assert tested.p_seeds == 0
    assert tested.stderr_images == pytest.approx(np.std([6, -4, 3, -1]) / 2, rel=0.1)
    assert tested.p == pytest.approx(paired.two_sided(1.0, tested.stderr_images, 3))


def test_images_of_some_seeds_alone_stand_for_those_of_all(paired: Any) -> None:
    table = np.random.default_rng(0).normal(1.0, 4.0, size=(3, 40))
    recalls = pd.Series([*table.mean(axis=1), 1.0, 1.1])
    tested = paired.difference(recalls, table, paired.Resamples())
    assert tested.mean == pytest.approx(recalls.mean())
    assert (tested.n_seeds, tested.n_seeds_images) == (5, 3)
    assert tested.p_seeds == paired.two_sided(tested.mean, recalls.std() / np.sqrt(5), 5)
    over_images = table.mean(axis=0).std(ddof=1) / np.sqrt(40)
    assert tested.stderr_images == pytest.approx(np.hypot(tested.stderr, over_images))
    assert tested.p == paired.two_sided(tested.mean, tested.stderr_images, 5) > tested.p_seeds
    # Much the same as with all of them, where seeds and images do not interact.
    by_seed, by_image = np.array([0.5, 1.0, 1.5, 2.0])[:, None], np.linspace(-9, 9, 40)
    whole = by_seed + by_image
    some, every = (
        paired.difference(pd.Series(whole.mean(axis=1)), whole[:n], paired.Resamples())
        for n in (2, 4)
    )
    assert some.stderr_images == pytest.approx(every.stderr_images, rel=0.05)


# --- Cells ------------------------------------------------------------------------------------


def rows(
    recalls: Mapping[str, Mapping[str, list[float]]],
    *,
    validation: str = "clean",
    keep: float = 0.8,
) -> pd.DataFrame:
    """Rows of mean recalls by regime, method and seed from 100 on."""
    seconds = {"influencespace": 60.0, "neg_clip_loss": 5.0}
    return pd.DataFrame(
        {
            **{"regime": regime, "validation": validation, "keep": keep, "method": method},
            **{"seed": 100 + i, "comparison": "same_steps", "version": "1.1"},
            **{"mean_recall": recall, "seconds": seconds.get(method, 0.0)},
        }
        for regime, methods in recalls.items()
        for method, values in methods.items()
        for i, recall in enumerate(values)
    )


WON = {
    "influencespace": [30.0, 31.0, 32.0],
    "random": [20.0, 21.01, 22.0],
    "neg_clip_loss": [28.0, 29.01, 30.02],
}
LOST = {
    "influencespace": [25.0, 26.0, 27.0],
    "random": [20.0, 21.01, 22.0],
    "neg_clip_loss": [26.0, 27.01, 28.02],
}
TIED = {
    "influencespace": [25.0, 26.0, 27.0],
    "random": [20.0, 21.01, 22.0],
    "neg_clip_loss": [24.0, 25.9, 27.5],
}


def test_cells_are_won_tied_and_lost_and_the_worst_comes_first(report: Any) -> None:
    frame = rows({"clean": WON, "wrong_20": LOST, "wrong_40": TIED})
    found = report.outcomes(report.with_stand_ins(frame), {})
    table = report.comparisons(found)
    against = table[table["other"] == "neg_clip_loss"].set_index("regime")
    assert against["mean"].to_dict() == pytest.approx(
        {"clean": 1.99, "wrong_20": -1.01, "wrong_40": 0.2}, abs=1e-9
    )
    assert (against["seconds"] == 60).all()
    assert (against["other_seconds"] == 5).all()
    # Holm over the three cells, for this rival alone.
    p = against["p"].to_dict()
    assert p["clean"] < p["wrong_20"] < p["wrong_40"]
    assert against["p_holm"].to_dict() == pytest.approx(
        {"clean": 3 * p["clean"], "wrong_20": 2 * p["wrong_20"], "wrong_40": p["wrong_40"]}
    )
    verdicts = report.verdicts(table)
    assert verdicts["regime"].tolist() == ["wrong_20", "wrong_40", "clean"]
    assert verdicts["is_lost"].tolist() == [True, False, False]
    assert verdicts["is_won"].tolist() == [False, False, True]
    assert verdicts["is_above"].tolist() == [False, True, True]
    assert verdicts["closest"].tolist() == ["neg_clip_loss"] * 3
    # The largest p over rivals, by Holm over cells: in one cell a rival is above, so it is 1.
    largest = table[table["regime"] == "clean"]["p"].max()
    assert verdicts.iloc[2]["p_holm"] == pytest.approx(3 * largest)


def test_controls_are_no_rivals(report: Any) -> None:
    ahead = {"no_influence": [33.0, 34.0, 35.0], "refined_agreement": [34.0, 35.0, 36.0]}
    table = report.comparisons(
        report.outcomes(report.with_stand_ins(rows({"clean": {**WON, **ahead}})), {})
    )
    assert set(table["other"]) == {"random", "neg_clip_loss", *ahead}
    (verdict,) = report.verdicts(table).to_dict("records")
    assert verdict["is_won"]
    assert verdict["n_rivals"] == 2
    assert report.controls_of(["no_influence", "random", "refined_agreement"]) == list(ahead)
    names = ["no_influence", "influencespace_without_influence"]
    assert report.controls_of(names) == ["influencespace_without_influence"]


def test_the_mean_over_regimes_and_its_best_single_rival(report: Any) -> None:
    frame = rows({"clean": WON, "wrong_20": LOST})
    means = report.pooled(report.outcomes(report.with_stand_ins(frame), {})).set_index("other")
    # Seeds' means over both regimes: (2 - 1) / 2, (1.99 - 1.01) / 2, (1.98 - 1.02) / 2.
    values = pd.Series([0.5, 0.49, 0.48])
    assert means.loc["neg_clip_loss", "mean"] == pytest.approx(values.mean())
    assert means.loc["neg_clip_loss", "stderr"] == pytest.approx(values.std() / np.sqrt(3))
    assert means["other_recall"].idxmax() == "neg_clip_loss"
    lines = report.pooled_table(means.reset_index(), best_only=True)
    (line,) = [one for one in lines if one.startswith("| all held-out")]
    assert "negCLIPLoss | +0.49 ± 0.01" in line
    assert "| 60 / 5 | 2 × 3 |" in line


def test_rows_that_ask_no_held_out_pair_stand_for_all(report: Any) -> None:
    clean = rows({"wrong_20": WON})
    few = rows({"wrong_20": {"influencespace": [27.0, 28.0, 29.0]}}, validation="noisy-30")
    dog = rows({"wrong_20": {"influencespace": [27.0, 28.0, 29.0]}}, validation="clean-dog")
    frame = report.with_stand_ins(pd.concat([clean, few, dog], ignore_index=True))
    found = report.outcomes(frame, {})
    cell = report.Cell("same_steps", "wrong_20", "noisy-30", 0.8)
    assert set(found[cell]) == {"influencespace", "random", "neg_clip_loss"}
    assert found[cell]["neg_clip_loss"].recalls.tolist() == WON["neg_clip_loss"]
    assert set(found[cell._replace(validation="clean-dog")]) == {"influencespace"}
    names = ("clean", "clean-30", "noisy", "noisy-30", "clean-dog", "noisy-dog-30")
    blocks = [cell._replace(validation=name).block for name in names]
    assert blocks == ["regimes", *["held_out"] * 3, *["target"] * 2]


def test_a_seed_counts_when_all_its_cells_are_there(report: Any) -> None:
    frame = rows({"clean": WON, "wrong_20": LOST})
    started = frame[(frame["seed"] < 102) | (frame["regime"] == "clean")]
    assert set(report.whole_seeds(report.with_stand_ins(started))["seed"]) == {100, 101}
    few = rows({"clean": {"influencespace": [27.0]}}, validation="noisy-30")
    both = report.with_stand_ins(pd.concat([frame, few], ignore_index=True))
    counted = report.whole_seeds(both).groupby("validation")["seed"].unique()
    assert sorted(counted["clean"]) == [100, 101, 102]
    assert sorted(counted["noisy-30"]) == [100]


def test_scores_of_the_same_row_are_compared(report: Any, modules: dict[str, Any]) -> None:
    frame = rows({"clean": WON})
    keys = list(modules["regimes_rows"].KEYS)
    rng = np.random.default_rng(0)
    scores = {
        key: rng.integers(31, size=8).astype(np.uint8)
        for key in frame[keys].itertuples(index=False, name=None)
    }
    ((_, found),) = report.outcomes(report.with_stand_ins(frame), scores).items()
    table = report.score_table(found["influencespace"], found["random"], [100, 102])
    expected = [
        100 / 30 * (scores[("clean", "clean", 0.8, "influencespace", seed, "same_steps", "1.1")]
                    .astype(float)
                    - scores[("clean", "clean", 0.8, "random", seed, "same_steps", "1.1")])
        for seed in (100, 102)
    ]  # fmt: skip
    np.testing.assert_allclose(table, expected)
    methods = found["influencespace"], found["random"]
    assert report.seeds_with_images(methods, [100, 102, 103]) == [100, 102]
    assert report.score_table(*methods, []) is None


def test_the_page_is_written_with_the_worst_cell_first(report: Any, tmp_path: Path) -> None:
    frame = rows({"clean": WON, "wrong_20": LOST, "wrong_40": TIED, "wrong_60": TIED})
    report.write_protocol(frame, {}, tmp_path, ABOUT)
    text = (tmp_path / "protocol.md").read_text()
    assert "2 rivals; 3 of 20 seeds a cell" in text
    assert "| all held-out pairs, right | 0.8 | 4 | 1 | 2 | 1 | 3 |" in text
    first = text[text.index("### Every cell and its closest rival") :].splitlines()[4]
    assert first.startswith("| 20 % wrong captions | 0.8 | 26.00 | negCLIPLoss | -1.01 ± 0.01 |")
    assert first.endswith("| lost | 60 / 5 | 3 (0) |")
    recalls = text[text.index("### Mean recall") :].splitlines()[4:8]
    assert [line.split(" | ")[0].strip("| ") for line in recalls] == [
        *("Clean", "20 % wrong captions", "40 % wrong captions", "60 % wrong captions")
    ]
    assert [line.count(" ± ") for line in recalls] == [3] * 4  # no full data, no oracle
    assert recalls[1].endswith("| 26.00 ± 0.58 | negCLIPLoss 27.01 ± 0.58 |")
    assert "60 % wrong captions" in text
    assert "Same epochs" not in text
    written = pd.read_csv(tmp_path / "protocol_comparisons.csv")
    assert len(written) == 8


def test_a_seed_counts_for_a_block_once_all_its_rows_are_there(modules: dict[str, Any]) -> None:
    protocol = modules["protocol"]
    rows = []
    for block, seed, n_units in (
        *(("regimes", 100, 12), ("regimes", 101, 11), ("held_out", 101, 7)),
        *(("held_out", 100, 2), ("target_dog", 102, 2)),
    ):
        for unit in protocol.units_of_seed([block], seed, set())[:n_units]:
            for job in unit.jobs:
                rows.append(
                    {
                        **{"regime": unit.regime, "validation": unit.held_out.name, "seed": seed},
                        **job._asdict(),
                        "version": modules["regimes_methods"].version_of(job.method),
                    }
                )
    found = protocol.whole(pd.DataFrame(rows))
    kept = found[["validation", "seed"]].drop_duplicates().itertuples(index=False, name=None)
    few = [f"{kind}-{size}" for kind in ("clean", "noisy") for size in (30, 100, 300)]
    assert sorted(kept) == sorted(
        [("clean", 100), ("noisy", 101), ("clean-dog", 102), *((name, 101) for name in few)]
    )
    assert not found.duplicated().any()
    of_regimes = found[found["validation"] == "clean"]
    assert of_regimes["regime"].nunique() == 12


def test_the_protocol_has_the_cells_that_its_page_names(modules: dict[str, Any]) -> None:
    blocks = modules["protocol"].BLOCKS
    n_cells = {n: 3 * len(b.regimes) * len(b.validation) for n, b in blocks.items()}
    targets = {f"target_{word}": 6 for word in ("dog", "water", "ball")}
    assert n_cells == {"regimes": 36, "held_out": 21, **targets}
    page = Path(BENCHMARKS, "protocol.md").read_text()
    assert all(f": {n} |" in page for n in (36, 21, 18))
    units = modules["protocol"].units_of_seed(list(blocks), 100, set())
    assert len(units) == 12 + 7 + 6
    assert {unit.seed for unit in units} == {100}
    few = next(unit for unit in units if unit.held_out.name == "noisy-30")
    methods = {job.method for job in few.jobs}
    assert {"influencespace", "neg_clip_loss_normsim", "individual_influence"} <= methods
    assert methods.isdisjoint({"random", "neg_clip_loss", "full", "oracle"})
    assert {(job.keep, job.comparison) for job in few.jobs} == set(
        itertools.product((0.4, 0.6, 0.8), ("same_steps", "same_epochs"))
    )


# --- Regret -----------------------------------------------------------------------------------


def test_regret_on_a_curve_by_hand(regret: Any) -> None:
    curve = pd.Series({0.6: 20.0, 0.8: 24.0, 1.0: 22.0})
    for keep, expected in ((0.8, 0), (0.7, 2), (0.9, 1), (1.0, 2), (0.3, 4)):
        assert regret.regret(curve, keep) == pytest.approx(expected)


def test_curves_are_means_over_seeds_that_have_every_share(regret: Any) -> None:
    frame = pd.concat(
        rows({"wrong_20": {"influencespace": values}}, keep=keep)
        for keep, values in ((0.6, [20.0, 22.0]), (0.8, [25.0, 27.0, 90.0]))
    )
    ((key, curve),) = regret.curves(frame).items()
    assert key == ("wrong_20", "clean")
    assert curve.to_dict() == {0.6: 21.0, 0.8: 26.0}
    assert regret.curves(frame, "faults_count") == {}


def test_regret_and_estimates_beside_the_truth(regret: Any) -> None:
    curves = {("wrong_20", "clean"): pd.Series({0.6: 20.0, 0.8: 24.0, 1.0: 22.0})}
    chosen = [
        {
            **{"chooser": "one_less_faults", "regime": "wrong_20", "validation": "clean"},
            **{"seed": seed, "keep": 1 - share, "fault_share": share, "low": 0.1, "high": 0.4},
            **{"true_share": 0.2, "seconds": 3.0},
        }
        for seed, share in ((100, 0.2), (101, 0.3))
    ]
    (summary,) = regret.summarize(curves, chosen)
    assert summary["best"] == 0.8
    assert summary["mean_regret"] == pytest.approx(1.0)  # 0 and 2
    assert summary["worst_regret"] == pytest.approx(2.0)
    assert summary["fault_share"] == pytest.approx(0.25)
    assert summary["largest_error"] == pytest.approx(0.1)
    text = regret.page(curves, [summary], ABOUT)
    line = (
        "| 20 % wrong captions, clean | 2 | 0.8 | 0.75 | 1.00 | 2.00 | 20.0 % | 25.0 % | 10.0 % |"
    )
    assert line in text
    assert "| **all regimes** |  |  |  | 1.00 | 2.00 |" in text
    assert "heeds no weights" not in text
    steeper = {key: 3 * curve for key, curve in curves.items()}
    both = regret.page(curves, [summary], ABOUT, regret.summarize(steeper, chosen))
    table = both.split("## To a trainer that heeds no weights of faulty pairs")[1]
    assert "| 1 − estimated share of wrong captions | 3.00 | 6.00 |" in table


def test_the_built_in_choosers(regret: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trust:
        wrong_share: Any = None

    trust = Trust()
    monkeypatch.setattr(regret, "trust_of", lambda _: (trust, 1.0))
    problem: Any = None
    assert regret.CHOOSERS["always_0.8"](problem).keep == 0.8
    assert regret.CHOOSERS["one_less_faults"](problem) == (1.0, None, None, None)
    trust.wrong_share = type("Told", (), {"share": 0.3, "low": 0.25, "high": 0.35})
    assert regret.CHOOSERS["one_less_faults"](problem) == (0.7, 0.3, 0.25, 0.35)
    curve: Any = type("Curve", (), {"share": 0.72, "best": {"fault_share": [0.2, 0.1, 0.3]}})
    monkeypatch.setattr(regret, "curve_of_influencespace", lambda _: curve)
    assert regret.CHOOSERS["auto"](problem) == (0.72, 0.2, 0.1, 0.3)
    curve.best["fault_share"] = None
    assert regret.CHOOSERS["auto"](problem) == (0.72, None, None, None)

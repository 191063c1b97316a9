"""What parts of the method are worth, reckoned on a few pairs by hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attribution.joined_views import Agreement, JoinedViews
from curation import CurationConfig

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield importlib.import_module("method_parts")
    sys.path.remove(BENCHMARKS)


def view(own: list[float], by_chance: list[float]) -> Agreement:
    return Agreement(np.array(own), np.array(by_chance))


def of_ones(n_ones: int, n: int) -> np.ndarray:
    return np.repeat([1.0, 0.0], [n_ones, n - n_ones])


def same(one: JoinedViews, other: JoinedViews) -> None:
    assert np.concatenate([one.middle, one.coefficients, [one.intercept]]) == pytest.approx(
        np.concatenate([other.middle, other.coefficients, [other.intercept]])
    )


def test_the_coefficient_of_a_view_of_two_values_is_the_log_odds_ratio(bench: Any) -> None:
    """Of positives 80 % are one, of negatives 30 %; the ridge of 1e-4 takes off 0.1 %."""
    joined = bench.logistic_join([of_ones(80, 100)], [of_ones(30, 100)])
    log_odds_ratio = np.log(0.8 / 0.2) - np.log(0.3 / 0.7)
    assert joined.coefficients[0] == pytest.approx(log_odds_ratio, rel=5e-3)
    assert joined.log_odds([np.array([1.0])])[0] == pytest.approx(np.log(0.8 / 0.3), abs=0.01)


def test_a_view_that_tells_the_contrary_counts_for_nothing(bench: Any) -> None:
    against = bench.logistic_join([of_ones(30, 100)], [of_ones(80, 100)])
    assert against.coefficients[0] == 0


def test_before_only_trusted_pairs_and_their_images_are_joined(bench: Any) -> None:
    """The others, whose values would turn the sign, have no part."""
    own, chance = of_ones(80, 100), of_ones(30, 100)
    others = np.full(900, -5.0)
    both = Agreement(np.concatenate([own, others]), np.concatenate([chance, -others]))
    found = bench.join_cut_off([both], np.arange(1000) < 100)
    same(found, bench.logistic_join([own], [chance]))


def test_the_truth_is_right_against_faulty_or_against_chance(bench: Any) -> None:
    own, faulty = np.concatenate([of_ones(80, 100), of_ones(30, 100)]), np.arange(200) >= 100
    known = bench.join_by_truth([Agreement(own, np.zeros(200))], faulty)
    same(known, bench.logistic_join([own[:100]], [own[100:]]))
    none_faulty = bench.join_by_truth([Agreement(own[:100], own[100:])], np.zeros(100, dtype=bool))
    same(none_faulty, known)


def test_the_ratio_is_of_standard_deviations(bench: Any) -> None:
    """Spreads of 1 and 10, coefficients of 2 and 0.1: 2 x 1 against 0.1 x 10."""
    views = [view([-1, 1], [0, 0]), view([-10, 10], [0, 0])]
    assert bench.coefficient_ratio(
        JoinedViews(np.zeros(2), np.array([2.0, 0.1]), 0.0), views
    ) == pytest.approx(2.0)
    nothing = JoinedViews(np.zeros(2), np.array([2.0, 0.0]), 0.0)
    assert bench.coefficient_ratio(nothing, views) is None


def test_faults_left_are_those_among_as_many_best_as_are_right(bench: Any) -> None:
    """Three right pairs, so the three best: one is faulty. Of six pairings four are in order."""
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.1])
    faulty = np.array([False, True, False, False, True])
    found = bench.sorting(scores, faulty)
    assert found == {"auc": pytest.approx(4 / 6), "faults_left": pytest.approx(1 / 3)}
    assert bench.sorting(scores, np.zeros(5, dtype=bool)) == {"auc": None, "faults_left": None}


def test_the_floor_protects_a_topic_but_not_its_faulty_pairs(bench: Any) -> None:
    """Three of five are kept, then two; the second topic is junk alone, the third is none."""
    values = np.array([5.0, 4.0, 1.0, 0.5, 2.0])
    clusters, junk = np.array([0, 0, 1, 1, 2]), np.array([False, False, True, True, False])
    protected = {bench.NO_FLOOR: junk & False, bench.FOR_ALL: junk | True, bench.NOT_FAULTY: ~junk}
    config = CurationConfig(target_size_ratio=0.6)
    kept = bench.kept_by_floor(values, clusters, protected, config)
    assert {way: rows.tolist() for way, rows in kept.items()} == {
        bench.NO_FLOOR: [0, 1, 4],
        bench.FOR_ALL: [0, 2, 4],
        bench.NOT_FAULTY: [0, 1, 4],
    }
    fewer = CurationConfig(target_size_ratio=0.4)
    smaller = bench.kept_by_floor(values, clusters, protected, fewer)
    assert smaller[bench.NO_FLOOR].tolist() == [0, 1]
    assert smaller[bench.NOT_FAULTY].tolist() == [0, 4]


def fault_share(seed: int, estimated: float) -> dict[str, Any]:
    return {
        **{"part": "fault share", "regime": "wrong_20", "seed": seed, "pairs": "all"},
        **{"way": "by rank", "true": 0.2, "estimated": estimated, "error": estimated - 0.2},
        "in_interval": float(estimated > 0.2),
    }


def test_means_have_the_standard_error_over_seeds(bench: Any) -> None:
    """Errors of +3 and -1 points: mean 1, standard error 2, the largest 3."""
    (line,) = bench.summarize([fault_share(1, 0.23), fault_share(2, 0.19)])
    assert line["error"] == pytest.approx(0.01)
    assert line["error_stderr"] == pytest.approx(0.02)
    assert line["largest_error"] == pytest.approx(0.03)
    assert (line["seeds"], line["in_interval"]) == (2, 0.5)


def test_what_has_no_value_has_no_mean(bench: Any) -> None:
    assert bench.mean_and_error([None, None]) == (None, None)
    assert bench.mean_and_error([1.0, None]) == (1.0, None)


def test_the_page_shows_every_part_with_its_numbers(bench: Any) -> None:
    key = {"regime": "clean", "seed": 1, "pairs": "all"}
    rows = [
        {**key, "part": "join", "way": "now", "ratio": 0.25, "auc": None, "faults_left": None},
        {**key, "part": "floor", "way": "CLIP score", "faulty_kept": 7},
        {
            **{**key, "part": "trusted share", "way": "0.8 always", "share": 0.8},
            **{"faults_trusted": 0.05, "auc": 0.96, "faults_left": 0.04},
            **{"joined_auc": 0.97, "joined_faults_left": 0.03},
        },
        fault_share(1, 0.23),
        fault_share(2, 0.19),
    ]
    about = {"command": "it", "hardware": {"cpu_cores": 1}, "seeds": [1, 2]}
    lines = bench.page(bench.summarize(rows), about).splitlines()
    assert "| Clean | now | 0.250 | – | – |" in lines
    assert "| Clean | CLIP score | 7.0 |" in lines
    assert "| Clean | 0.8 always | 80.0 | 5.00 | 96.00 | 4.00 | 97.00 | 3.00 |" in lines
    shares = "20.0 ± 0.0 | 21.0 ± 2.0 | 1.0 ± 2.0 | 3.0 | 1 of 2"
    assert f"| all | 20 % wrong captions | by rank | {shares} |" in lines


def test_a_subset_is_a_set_of_its_own(bench: Any) -> None:
    """Its rows, with unit embeddings of a map fitted to these alone."""
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(40, d)).astype(np.float32) for d in (6, 5))
    whole = bench.Regime(
        *("any", images, texts, [f"caption {i}" for i in range(40)]),
        *(np.array(["", "wrong caption"] * 20), images, texts, None),
        *(images[:3], texts[:3], np.array([""] * 3), np.arange(40)),
    )
    rows = np.arange(1, 40, 2)
    some = bench.subset(whole, rows, np.random.default_rng(1))
    assert np.array_equal(some.image_features, images[rows])
    assert np.array_equal(some.text_features, texts[rows])
    assert some.captions == [f"caption {i}" for i in rows]
    assert set(some.faults) == {"wrong caption"}
    assert np.array_equal(some.image_rows, rows)
    assert np.linalg.norm(some.image_embeddings, axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    assert np.array_equal(some.validation_image_features, images[:3])

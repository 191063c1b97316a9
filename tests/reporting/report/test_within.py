"""Which pairs lie within the page: all of few, of many those at the ends and a fair draw."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reporting.report import within
from reporting.report.within import stratified

N = 400


def table() -> pd.DataFrame:
    """Training pairs in eight strata, with families of three; held-out pairs behind them."""
    rng = np.random.default_rng(0)
    n = N + 50
    is_train = np.arange(n) < N
    value = np.where(is_train, rng.normal(size=n), np.nan)
    return pd.DataFrame(
        {
            "split": np.where(is_train, "train", "validation"),
            "decision": np.where(is_train, np.where(value > 0, "kept", "dropped"), "held out"),
            "reason": "some",
            "cell": np.where(is_train, np.arange(n) % 4, -1),
            "value": value,
            "influence": np.where(is_train, rng.normal(size=n), np.nan),
            "agreement": rng.normal(size=n),
            "family": np.where(np.arange(n) < 60, np.arange(n) // 3, -1),
            "photo": np.arange(n) // 2,
        }
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"N_TRAINING": 100, "N_OTHERS": 10, "N_EXTREMES": 3, "N_IN_FAMILIES": 10}
    for name, value in limits.items():
        monkeypatch.setattr(within, name, value)


def test_all_pairs_are_in_the_page_where_they_are_few() -> None:
    assert within.within_page(table(), 0.0, np.random.default_rng(0)).all()


@pytest.mark.usefixtures("small")
def test_many_pairs_are_drawn_from_every_stratum_with_the_ends_of_every_order() -> None:
    rows = table()
    inside = within.within_page(rows, 0.0, np.random.default_rng(0))
    train = (rows["split"] == "train").to_numpy()
    assert (inside & train).sum() == 100
    assert (inside & ~train).sum() == 10
    strata = rows[train].groupby(["cell", "decision"])
    assert set(rows[inside & train].groupby(["cell", "decision"]).groups) == set(strata.groups)
    for decision in ("kept", "dropped"):
        side = rows[rows["decision"] == decision]
        for order in (side["influence"], -side["influence"], side["value"].abs()):
            assert inside[order.sort_values().index[:3]].all()
    whole = rows.assign(inside=inside)[rows["family"] != -1].groupby("family")["inside"].all()
    assert whole.iloc[:3].all()  # nine pairs; a fourth family would be cut
    again = within.within_page(rows, 0.0, np.random.default_rng(0))
    assert np.array_equal(inside, again)
    assert not np.array_equal(inside, within.within_page(rows, 0.0, np.random.default_rng(1)))


def ledger() -> pd.DataFrame:
    """The same pairs as a ledger has them, held-out pairs first."""
    rows = table().iloc[::-1].reset_index(drop=True)
    renamed = rows.rename(columns={"reason": "decision_reason", "agreement": "log_odds"})
    return renamed.drop(columns=["family", "photo"]).assign(clip_score=0.0)


@pytest.mark.usefixtures("small")
def test_a_report_holds_a_choice_of_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = np.array([[0, 7], [300, 8], [7, 9], [20, 21]])
    rows = ledger()
    assert within.in_report(rows, copies, 0.0, np.random.default_rng(0)).all()
    monkeypatch.setattr(within, "MOST_TRAINING", 90)
    monkeypatch.setattr(within, "MOST_OTHERS", 30)
    shown = within.in_report(rows, copies, 0.0, np.random.default_rng(0))
    assert not shown[:50].all()
    assert shown[:50].sum() == 30
    training = shown[50:]
    assert training.sum() == 90
    assert training[[0, 7, 9, 20, 21, 300, 8]].all()  # both families of copies
    part = rows[shown & (rows["split"] == "train")]
    assert set(part["cell"]) == {0, 1, 2, 3}
    # What is held within the page is drawn of these in the same way.
    unknown = within.in_report(rows, None, 0.0, np.random.default_rng(0))
    assert unknown.sum() == 120


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(1, 90), st.integers(0, 9))
def test_a_draw_has_every_stratum_by_its_size(strata: list[int], size: int, seed: int) -> None:
    rows = stratified(np.array(strata), size, np.random.default_rng(seed))
    assert len(set(rows.tolist())) == len(rows) == min(size, len(strata))
    assert np.all(np.diff(rows) > 0)
    drawn, there = Counter(strata[row] for row in rows), Counter(strata)
    if size >= len(there):
        assert set(drawn) == set(there)
    for stratum, n in there.items():  # within the one that each has for sure
        assert abs(drawn[stratum] - n * len(rows) / len(strata)) <= len(there) + 1

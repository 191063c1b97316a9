"""What the report knows of pairs, against the ledger worked by hand, and how it travels."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reporting.explain import Told, explain, topics
from reporting.ledger import Ledger, make_ledger
from reporting.report.pair_map import PairMap
from reporting.report.pairs import (
    AGREEMENT_ALONE,
    INFLUENCE_ALONE,
    TrainingFacts,
    columns,
    families,
    kept_by_one_alone,
    packed,
    pair_table,
    vocabularies,
)
from tests.reporting.test_ledger import CLUSTERS, case_of

POSITIONS = [0, 2, 4, 6, 8, 10]  # of the training pairs, in the order of the ledger


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def made() -> Ledger:
    return make_ledger(*case_of())


@pytest.fixture
def table(made: Ledger) -> pd.DataFrame:
    others = np.array([[j for j in range(6) if j != i] for i in range(6)], dtype=np.int32)
    places = np.arange(12, dtype=np.float32).reshape(6, 2) / 12
    facts = TrainingFacts(
        PairMap(places, others, np.zeros((6, 5), dtype=np.float32)),
        faults=["", "", "wrong_caption", "", "", ""],
        keeps={"a": np.array([1, 0, 0, 0, 0, 1], bool), "b": np.array([1, 1, 0, 0, 0, 0], bool)},
        copies=np.array([[1, 3], [1, 5], [3, 5]]),
    )
    told = Told(made.cut, topics(CLUSTERS), 0.5, ("", ""))
    return pair_table(made.ledger, facts, told)


def test_pairs_are_numbered_by_their_ids(table: pd.DataFrame, made: Ledger) -> None:
    assert table["number"].tolist() == list(range(len(made.ledger)))
    assert table["id"].tolist() == sorted(made.ledger["id"].fillna(""))
    assert (table["id"] == "").sum() == made.ledger["id"].isin(["", None]).sum() > 0


def test_facts_stand_with_their_pair(table: pd.DataFrame, made: Ledger) -> None:
    by_id = table[table["decision"] != "skipped"].set_index("id")
    ids = made.ledger.set_index("position")["id"].loc[POSITIONS].tolist()
    rows = by_id.loc[ids]
    assert rows["fault"].tolist() == ["", "", "wrong_caption", "", "", ""]
    assert rows["keeps"].tolist() == [3, 2, 0, 0, 0, 1]
    assert rows["x"].tolist() == pytest.approx([0, 2 / 12, 4 / 12, 6 / 12, 8 / 12, 10 / 12])
    numbers = rows["number"].tolist()
    assert rows["near"].iloc[2] == [n for i, n in enumerate(numbers) if i != 2]
    assert rows["copies"].iloc[1] == [numbers[3], numbers[5]]
    family = rows["family"].to_numpy()
    assert len(set(family[[1, 3, 5]])) == 1
    assert family[[0, 2, 4]].tolist() == [-1, -1, -1]
    others = table[~table["number"].isin(numbers)]
    assert others["x"].isna().all()
    assert others["keeps"].eq(0).all()
    assert others["near"].map(len).eq(0).all()


def test_a_story_is_what_explain_prints(table: pd.DataFrame, made: Ledger) -> None:
    for _, row in table.iterrows():
        if not row["id"] or row["decision"] == "skipped":
            continue
        stories = explain(made, row["id"], CLUSTERS, 0.5).split("\n\n")
        printed = next(text for text in stories if "\nskipped" not in text).splitlines()
        assert [f"{name:<12}{text}" for name, text in row["story"]] == printed[3:]
    skipped = table[table["decision"] == "skipped"]
    assert all("while reading the" in dict(story)["skipped"] for story in skipped["story"])
    duplicate = skipped[skipped["reason"] == "duplicate pair"].iloc[0]
    assert dict(duplicate["story"])["instead"].startswith("photo 0.jpg")


def test_rows_travel_whole(table: pd.DataFrame) -> None:
    hostile = table.assign(caption=[f"</script>\0'\"\u202e<b> {i}" for i in range(len(table))])
    words = vocabularies(hostile)
    text = packed(columns(hostile, words))
    assert html.escape(text) == text  # nothing in it means anything to HTML
    back = unpacked(text)
    assert back["caption"] == hostile["caption"].tolist()
    assert [words["reason"][code] for code in back["reason"]] == hostile["reason"].tolist()
    values = hostile["value"].tolist()
    assert back["value"] == [None if math.isnan(v) else round(v, 3) for v in values]
    assert back["story"] == [[list(line) for line in story] for story in hostile["story"]]
    assert packed(columns(hostile, words)) == text


def test_families_by_hand() -> None:
    assert families(np.array([[0, 4], [3, 1]]), 6).tolist() == [0, 1, -1, 1, 0, -1]
    assert families(np.zeros((0, 2), dtype=np.int64), 2).tolist() == [-1, -1]


def test_what_one_alone_would_keep() -> None:
    keeps = kept_by_one_alone(np.array([3.0, 1, 2, 1]), np.array([0.0, 5, 4, 6]), 2)
    assert keeps[INFLUENCE_ALONE].tolist() == [True, False, True, False]
    assert keeps[AGREEMENT_ALONE].tolist() == [False, True, False, True]

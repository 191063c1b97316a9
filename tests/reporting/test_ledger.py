"""The ledger against a case worked by hand, its sums, and the story of a pair."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from artifacts.settings import InputError
from attribution.results import PairInfluence
from attribution.trust import PairTrust
from curation import DROP, KEEP, CurationResult, ValueParts
from learner.pairs import TrainingPairs
from reporting import ledger
from reporting.explain import explain, find_pairs
from reporting.ledger import Ledger, count_decisions, make_ledger
from tests.knowing import pair_influence, training_pairs
from tests.trusting import pair_trust

CLUSTERS: list[dict[str, Any]] = [
    {
        "cluster": k,
        "terms": terms,
        "category": category,
        "size": 3,
        "influence_percent": 1.5,
        "stderr_percent": 0.25,
        "cells": [{"cell": c, "meaning": f"cell {c} of {terms[0]}"} for c in (2 * k, 2 * k + 1)],
    }
    for k, (terms, category) in enumerate(
        [(["dog", "grass"], "beneficial"), (["boat", "sea"], "neutral")]
    )
]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Case(NamedTuple):
    """What `make_ledger` takes in."""

    table: pd.DataFrame
    skipped: pd.DataFrame
    pairs: TrainingPairs
    influence: PairInfluence
    curated: CurationResult
    parts: ValueParts
    trust: PairTrust | None = None


def case_of(**changes: Any) -> Case:
    """Six training pairs at the positions 10, 0, 4, 6, 2, 8, others in between."""
    positions = [10, 0, 4, 6, 2, 8]
    splits = ["train"] * 6 + ["validation", "test"]
    table = pd.DataFrame(
        {
            "split": splits,
            "position": [*positions, 1, 3],
            "key": [f"photo {i}.jpg" for i in range(8)],
            "image_row": range(8),
            "caption": [f"caption {i}" for i in range(8)],
            "image_sha256": [digest(str(i)) for i in range(8)],
            "fault": "",
            "group": "",
            "id": [digest(f"id {i}")[:32] for i in range(8)],
            "shard": ["a.tar"] * 6 + ["", ""],
            "member": [f"{i}.jpg" for i in range(6)] + ["", ""],
            "row": [-1] * 6 + [5, 6],
            "uid": "",
        }
    )
    skipped = pd.DataFrame(
        {
            "split": ["train", "train", "test"],
            "position": [7, 9, 5],
            "key": ["photo 0.jpg", "broken.jpg", "late.jpg"],
            "reason": ["duplicate pair", "broken image", "empty caption"],
            "detail": ["same as position 10", "OSError: cut", ""],
            "caption": ["caption 0", "a dog", ""],
            "id": [digest("id 0")[:32], "", ""],
            "shard": "",
            "member": "",
            "row": -1,
            "duplicate_of": [10, -1, -1],
        }
    )
    influence = np.array([2.0, -3.0, 0.5, -0.1, 1.0, 0.2])
    agreement = np.array([1.0, 0.5, -2.5, -0.2, -1.2, 0.1])
    copies = np.array([0, 0, 0, 3, 0, 0])
    known = training_pairs(
        6,
        clip_scores=np.linspace(0.1, 0.6, 6),
        cluster_assignments=np.array([0, 0, 0, 1, 1, 1]),
        better_copies=copies,
        groups={"male": np.eye(6, dtype=bool)[0], "child": np.eye(6, dtype=bool)[:3].any(0)},
    )
    estimate = pair_influence(
        influence / 2,  # nats, of a validation loss of two
        np.array([0, 1, 1, 2, 3, 3]),
        pair_influence_evaluated=np.array([True, False, False, False, True, False]),
        agreement=np.full(6, np.nan),
        unfaulty=changes.get("unfaulty"),
    )
    nearness = changes.get("nearness", np.zeros(6))
    fairness = changes.get("fairness")
    parts = ValueParts(influence, agreement, -copies.astype(np.float64), nearness, fairness)
    # values 3, -2.5, -2, -3.3, -0.2, 0.3; the fourth is kept although its value is the least
    weights = changes.get("weights", np.array([1.5, 0.0, 0.0, 0.75, 0.0, 0.75]))
    kept = np.flatnonzero(weights)
    reviewed = changes.get("reviewed")
    curated = CurationResult(
        curated_indices=kept,
        sample_weights=weights[kept],
        curated_rows=kept,
        pair_values=influence
        + agreement
        - copies
        + nearness
        + (0 if fairness is None else fairness),
        rho=1.0,
        categorization=CLUSTERS,
        cluster_weights={},
        group_retention={},
        reviewed=None if reviewed is None else np.array(reviewed, dtype=np.int8),
    )
    case = Case(table, skipped, known, estimate, curated, parts)
    return case._replace(**{k: v for k, v in changes.items() if k in Case._fields})


@pytest.fixture
def made() -> Ledger:
    return make_ledger(*case_of())


def test_every_pair_has_one_row_in_the_order_of_the_source(made: Ledger) -> None:
    assert made.ledger["position"].tolist() == list(range(11))
    by_position = made.ledger.set_index("position")
    assert by_position["key"].to_dict() == {
        0: "photo 1.jpg",
        1: "photo 6.jpg",
        2: "photo 4.jpg",
        3: "photo 7.jpg",
        4: "photo 2.jpg",
        5: "late.jpg",
        6: "photo 3.jpg",
        7: "photo 0.jpg",
        8: "photo 5.jpg",
        9: "broken.jpg",
        10: "photo 0.jpg",
    }


def test_decisions_and_reasons_by_hand(made: Ledger) -> None:
    rows = made.ledger.set_index("position")
    assert made.cut == pytest.approx(-0.2)
    assert rows["decision_reason"].to_dict() == {
        10: ledger.RAISED,
        0: ledger.LOW_INFLUENCE,
        4: ledger.DISAGREES,
        6: ledger.PROTECTED,
        2: ledger.DISAGREES,
        8: ledger.VALUABLE,
        1: ledger.MEASURES,
        3: ledger.MEASURES,
        5: "empty caption",
        7: "duplicate pair",
        9: "broken image",
    }
    assert rows["decision"].value_counts().to_dict() == {
        "kept": 3,
        "dropped": 3,
        "skipped": 3,
        "held out": 2,
    }
    dearest = make_ledger(*case_of(weights=np.array([3.0, 0, 0, 0, 0, 0]))).ledger
    assert dearest.set_index("position").at[6, "decision_reason"] == ledger.NEAR_COPY


def test_a_kept_pair_that_looks_faulty_says_so_where_its_weight_was_lowered() -> None:
    weights = np.array([1.8, 0.0, 0.0, 1.2, 1.2, 0.012])
    unfaulty = np.array([True, True, True, True, True, False])

    def reasons(**changes: Any) -> list[str]:
        rows = make_ledger(*case_of(**changes)).ledger.set_index("position")
        return [str(rows.at[at, "decision_reason"]) for at in (10, 6, 2, 8)]

    others = [ledger.RAISED, ledger.PROTECTED, ledger.VALUABLE]
    assert reasons(weights=weights, unfaulty=unfaulty) == [*others, ledger.LOWERED]
    # Not where it counts like the others, and not by the reviewer's say.
    same = np.where(weights == 0.012, 1.2, weights)
    assert reasons(weights=same, unfaulty=unfaulty) == [*others, ledger.VALUABLE]
    said = [0, 0, 0, 0, 0, KEEP]
    assert reasons(weights=same, unfaulty=unfaulty, reviewed=said)[3] == ledger.KEPT_BY_REVIEW
    all_faulty = reasons(weights=weights, unfaulty=np.zeros(6, dtype=bool))
    assert all_faulty[3] != ledger.LOWERED  # there is none beside which it counts less


def test_a_kept_pair_as_good_as_the_best_that_was_dropped_needs_no_protection() -> None:
    case = case_of()
    values = case.curated.pair_values.copy()
    values[5] = values[4]
    curated = dataclasses.replace(case.curated, pair_values=values)
    tied = make_ledger(*case._replace(curated=curated))
    assert tied.cut == values[4]
    assert tied.ledger.set_index("position").at[8, "decision_reason"] == ledger.VALUABLE


def test_facts_stand_with_their_pair(made: Ledger) -> None:
    rows = made.ledger.set_index("position")
    assert rows.at[2, "cluster"] == 1
    assert rows.at[2, "cell"] == 3
    assert rows.at[2, "clip_score"] == pytest.approx(0.5)
    assert rows.at[2, "influence"] == pytest.approx(0.25)
    assert rows.at[2, "evaluated"]
    assert rows.at[10, "weight"] == 1.5
    assert rows.at[0, "weight"] == 0
    assert rows.at[10, "group"] == "male,child"
    assert rows.at[0, "category"] == "beneficial"
    assert rows.at[7, "duplicate_of"] == 10
    for column in ("cluster", "clip_score", "influence", "evaluated", "value", "weight"):
        assert rows.loc[[1, 3, 5, 7, 9], column].isna().all(), column


def test_texts_in_arrow_columns_give_the_same_ledger_and_stay_there(made: Ledger) -> None:
    case = case_of()
    table, skipped = (
        rows.astype({c: "string[pyarrow]" for c in rows.columns if rows[c].dtype == object})
        for rows in (case.table, case.skipped)
    )
    found = make_ledger(*case._replace(table=table, skipped=skipped)).ledger
    assert str(found["caption"].dtype) == str(found["id"].dtype) == "string"
    plain, expected = (
        rows.astype(object).mask(rows.isna(), "null") for rows in (found, made.ledger)
    )
    pd.testing.assert_frame_equal(plain, expected)


def test_a_ledger_of_which_nothing_was_skipped() -> None:
    case = case_of()
    none = case.skipped.iloc[:0].astype(object)  # as a frame without rows is made
    found = make_ledger(*case._replace(skipped=none)).ledger
    assert found["position"].tolist() == [0, 1, 2, 3, 4, 6, 8, 10]
    assert found["position"].dtype == found["row"].dtype == found["duplicate_of"].dtype == np.int64
    assert found["caption"].tolist() == [f"caption {i}" for i in (1, 6, 4, 7, 2, 3, 5, 0)]


def test_pairs_of_the_same_groups_share_one_text(made: Ledger) -> None:
    groups = case_of().pairs.groups
    joined = made.ledger.set_index("position")["group"]
    for row, position in enumerate([10, 0, 4, 6, 2, 8]):
        assert joined[position] == ",".join(name for name in groups if groups[name][row])
    assert joined[0] is joined[4]  # not a text a row


def test_when_nothing_is_dropped() -> None:
    everything = make_ledger(*case_of(weights=np.ones(6)))
    assert everything.cut is None
    kept = everything.ledger[everything.ledger["split"] == "train"].query("status == 'read'")
    assert set(kept["decision_reason"]) == {ledger.UNCUT}
    assert "the cut" not in explain(everything, "photo 1.jpg", CLUSTERS, 1.0)


def test_counts_are_sums(made: Ledger) -> None:
    counts = count_decisions(made.ledger)
    assert sum(row["pairs"] for row in counts) == len(made.ledger)
    assert counts[0]["split"] == "train"
    assert counts[0]["decision"] == "kept"
    for row in counts:
        of_kind = made.ledger[
            (made.ledger["split"] == row["split"])
            & (made.ledger["decision"] == row["decision"])
            & (made.ledger["decision_reason"] == row["reason"])
        ]
        assert len(of_kind) == row["pairs"]


def test_curated_pairs_are_the_kept_ones(made: Ledger) -> None:
    curated = ledger.curated_pairs(made.ledger)
    assert curated["position"].tolist() == [6, 8, 10]
    assert curated["weight"].mean() == pytest.approx(1)


def test_pairs_are_found_by_key_id_member_and_beginning_of_an_id(made: Ledger) -> None:
    name = digest("id 4")[:32]
    for wanted in ("photo 4.jpg", name, name[:8], name[:8].upper(), "4.jpg"):
        assert find_pairs(made.ledger, wanted)["position"].tolist() == [2]
    assert find_pairs(made.ledger, "photo 0.jpg")["position"].tolist() == [7, 10]
    for nothing in ("", "  "):
        with pytest.raises(InputError, match="--explain takes the key, uid or id of a pair; got"):
            find_pairs(made.ledger, nothing)
    with pytest.raises(InputError, match=r"--explain broken: .* did you mean broken\.jpg; stage3"):
        find_pairs(made.ledger, "broken")
    with pytest.raises(InputError, match="--explain zzz: no pair of that key, uid or id"):
        find_pairs(made.ledger, "zzz")


def test_a_file_name_stands_for_the_only_key_that_it_ends() -> None:
    keys = ["Images/a.jpg", "Images/a.jpg", "Images/b.jpg", "more/b.jpg", "gone.jpg"]
    empty = [""] * len(keys)
    table = pd.DataFrame({"key": keys, "id": empty, "member": empty, "uid": empty})
    assert find_pairs(table, "a.jpg").index.tolist() == [0, 1]
    assert find_pairs(table, "Images/gone.jpg").index.tolist() == [4]
    assert find_pairs(table, "more/b.jpg").index.tolist() == [3]
    for wanted in ("b.jpg", "other/a.jpg", "x/a.jp"):
        with pytest.raises(InputError, match=f"--explain {wanted}: no pair"):
            find_pairs(table, wanted)


def test_stories(made: Ledger) -> None:
    kept, dropped = (explain(made, f"photo {i}.jpg", CLUSTERS, 0.5) for i in (5, 2))
    for line in (
        "source      a.tar, 5.jpg",
        "topic       cluster 1: boat, sea; 3 pairs, neutral, influence +1.500 % +/- 0.250",
        "cell        3: cell 3 of boat",
        "influence   +0.0500: it helps held-out data (inferred from pairs like it)",
        "decision    kept, weight 0.750: its value is above the cut",
    ):
        assert line in kept.splitlines()
    assert "decision    dropped: image and caption disagree" in dropped.splitlines()
    assert "agreement -2.50" in dropped
    assert "the cut that keeps 50% is at -0.20" in dropped
    weak = explain(made, "photo 5.jpg", CLUSTERS, 0.5, "the inference explains nothing")
    assert "influence   +0.0500: the inference explains nothing (inferred from pairs" in weak
    assert "held-out data" not in weak
    evaluated = explain(made, "photo 4.jpg", CLUSTERS, 0.5, "the inference explains nothing")
    assert "influence   +0.2500: it helps held-out data (evaluated)" in evaluated
    both = explain(made, "photo 0.jpg", CLUSTERS, 0.5)
    assert "skipped     duplicate pair (same as position 10), while reading the train" in both
    assert "instead     photo 0.jpg: caption 0" in both
    assert "groups      male,child" in both
    broken = explain(made, "broken.jpg", CLUSTERS, 0.5)
    assert "id          none: its image or caption cannot be used" in broken
    assert "held out in the test split" in explain(made, "photo 7.jpg", CLUSTERS, 0.5)


# --- Held-out pairs that are judged -----------------------------------------------------------


def judged_case() -> Case:
    """The same pairs with three of validation and one of test, of which trust says something."""
    case = case_of()
    table = pd.concat([case.table, case.table.iloc[[6, 6]]], ignore_index=True)
    table.loc[[8, 9], "position"] = [11, 12]
    table.loc[[8, 9], "key"] = ["wrong.jpg", "copy.jpg"]
    trust = pair_trust(
        6,
        training_log_odds=np.linspace(-1, 4, 6),
        validation_log_odds=np.array([3.0, -2.5, 2.0]),  # in the order of the split's rows
        validation_copies=np.array([0, 0, 1]),
        validation_trusted=np.array([True, False, False]),
        test_log_odds=np.array([-4.0]),
        test_trusted=np.array([False]),
    )
    judged = dataclasses.replace(case.influence, agreement=trust.training_log_odds)
    return case._replace(table=table, trust=trust, influence=judged)


def test_held_out_pairs_say_whether_they_are_asked() -> None:
    judged = make_ledger(*judged_case())
    rows = judged.ledger.set_index("position")
    assert rows.loc[[1, 11, 12, 3], "decision_reason"].tolist() == [
        ledger.ASKED,
        ledger.NOT_ASKED,
        ledger.NOT_ASKED_COPY,
        ledger.MEASURES,
    ]
    assert rows.loc[[1, 11, 12, 3], "log_odds"].tolist() == [3.0, -2.5, 2.0, -4.0]
    assert rows.loc[[1, 11, 12, 3], "trusted"].tolist() == [True, False, False, False]
    assert rows.loc[[10, 0, 4], "log_odds"].tolist() == [-1.0, 0.0, 1.0]
    assert rows.loc[[10, 0, 5, 7, 9], "trusted"].isna().all()
    assert rows.loc[[5, 7, 9], "log_odds"].isna().all()
    asked = explain(judged, "photo 6.jpg", CLUSTERS, 0.5)
    assert "log odds +3.00 that image and caption belong together: trusted" in asked
    assert "held out in the validation split: asked what helps" in asked
    wrong = explain(judged, "wrong.jpg", CLUSTERS, 0.5)
    assert "log odds -2.50 that image and caption belong together: not trusted" in wrong
    assert ledger.NOT_ASKED in wrong
    assert "agreement   CLIP score 0.200, log odds +0.00 that" in explain(
        judged, "photo 1.jpg", CLUSTERS, 0.5
    )


def test_what_was_not_judged_is_null(made: Ledger) -> None:
    assert made.ledger[["log_odds", "trusted"]].isna().all(axis=None)
    assert str(made.ledger["trusted"].dtype) == "boolean"
    assert "log odds" not in explain(made, "photo 7.jpg", CLUSTERS, 0.5)


def test_help_for_the_worst_served_group_is_a_part_of_the_value() -> None:
    fairness = np.array([0.0, -3.5, 0.2, 0.1, -1.0, 0.0])
    fair, plain = make_ledger(*case_of(fairness=fairness)), make_ledger(*case_of())
    assert "fairness_part" not in plain.ledger
    assert [c for c in fair.ledger if c != "fairness_part"] == ledger.COLUMNS
    rows = fair.ledger.set_index("position").loc[[10, 0, 4, 6, 2, 8]]
    assert rows["fairness_part"].tolist() == fairness.tolist()
    parts = ["influence_part", "agreement_part", "relevance_part", "fairness_part"]
    copies = rows["value"] - rows[parts].sum(axis=1)
    np.testing.assert_allclose(copies, [0, 0, 0, -3, 0, 0], atol=1e-12)
    assert rows["decision_reason"].iloc[1] == ledger.OTHER_GROUPS  # -3.5 against -3 and 0.5
    told = explain(fair, "photo 3.jpg", CLUSTERS, 0.5)
    assert "help for the worst-served group +0.10, near copies -3.00" in told


def test_nearness_to_the_held_out_pairs_is_a_part_of_the_value() -> None:
    nearness = np.array([0.0, -3.5, 0.2, 0.1, -1.0, 0.0])
    near = make_ledger(*case_of(nearness=nearness))
    rows = near.ledger.set_index("position")
    assert rows.at[0, "decision_reason"] == ledger.FAR_FROM_TARGET  # -3.5 against -3 and 0.5
    assert rows.at[4, "decision_reason"] == ledger.DISAGREES
    story = explain(near, "photo 4.jpg", CLUSTERS, 0.5)
    assert (
        "value       -1.20 = influence +1.00, agreement -1.20, nearness to held-out pairs -1.00,"
        " near copies +0.00 (standard" in story.replace("-0.00", "+0.00")
    )
    assert "nearness" not in explain(near, "photo 0.jpg", CLUSTERS, 0.5)
    copied = explain(near, "photo 3.jpg", CLUSTERS, 0.5)  # three better copies
    assert "nearness to held-out pairs +0.10, near copies -3.00" in copied


def test_a_pair_without_copies_is_never_dropped_for_them() -> None:
    reasons = make_ledger(*case_of(weights=np.array([6.0, 0, 0, 0, 0, 0]))).ledger.set_index(
        "position"
    )["decision_reason"]
    assert reasons[8] == ledger.OUTBID  # all of its parts are above the mean
    assert reasons[6] == ledger.NEAR_COPY


# --- A reviewer's say -----------------------------------------------------------------------------


def test_what_a_reviewer_decides_has_its_own_reasons_and_moves_no_others() -> None:
    # Values 3, -2.5, -2, -3.3, -0.2, 0.3: the best is refused, the least but one wanted.
    weights = np.array([0.0, 0.75, 0.0, 0.75, 1.5, 1.0])
    made = make_ledger(*case_of(weights=weights, reviewed=[DROP, KEEP, 0, 0, 0, 0]))
    assert made.cut == pytest.approx(-2)  # not the 3 of the pair that was refused
    rows = made.ledger.set_index("position")
    assert rows.loc[[10, 0, 4, 6, 2, 8], "decision"].tolist() == [
        *("dropped", "kept", "dropped", "kept", "kept", "kept")
    ]
    assert rows.loc[[10, 0, 4, 6, 2, 8], "decision_reason"].tolist() == [
        ledger.DROPPED_BY_REVIEW,
        ledger.KEPT_BY_REVIEW,
        ledger.DISAGREES,
        ledger.PROTECTED,
        ledger.RAISED,
        ledger.RAISED,
    ]
    counts = {(c["decision"], c["reason"]): c["pairs"] for c in count_decisions(made.ledger)}
    assert counts["kept", ledger.KEPT_BY_REVIEW] == 1
    assert counts["dropped", ledger.DROPPED_BY_REVIEW] == 1
    assert ledger.curated_pairs(made.ledger)["position"].tolist() == [0, 2, 6, 8]
    assert (ledger.KEPT_BY_REVIEW, ledger.DROPPED_BY_REVIEW) == (
        "kept by the reviewer's say",
        "dropped by the reviewer's say",
    )


def test_a_raised_pair_that_a_reviewer_keeps_is_kept_by_the_say() -> None:
    made = make_ledger(*case_of(reviewed=[KEEP, 0, 0, 0, 0, 0]))
    reasons = made.ledger.set_index("position")["decision_reason"]
    assert reasons[10] == ledger.KEPT_BY_REVIEW
    assert made.cut == pytest.approx(-0.2)


def test_where_only_a_reviewer_drops_there_is_no_cut() -> None:
    weights = np.array([0.0, 1, 1, 1, 1, 1])
    made = make_ledger(*case_of(weights=weights, reviewed=[DROP, 0, 0, 0, 0, KEEP]))
    assert made.cut is None
    rows = made.ledger.set_index("position")
    assert set(rows.loc[[0, 4, 6, 2], "decision_reason"]) == {ledger.UNCUT}
    assert rows.at[10, "decision_reason"] == ledger.DROPPED_BY_REVIEW
    story = explain(made, digest("id 0")[:32], CLUSTERS, 0.8).splitlines()
    assert "decision    dropped: dropped by the reviewer's say" in story


def test_the_story_of_a_reviewed_pair_says_what_its_value_says() -> None:
    weights = np.array([0.0, 0.75, 0.0, 0.75, 1.5, 1.0])
    cases = {
        # Of values 3, -2.5, -2, -3.3, -0.2, 0.3 the cut is at -2 or, in the second case, at 3.
        ("id 0", (DROP, KEEP, 0, 0, 0, 0)): "dropped by the reviewer's say; its value is above the"
        " cut of the others",
        ("id 1", (DROP, KEEP, 0, 0, 0, 0)): "kept by the reviewer's say; its value is below the cut"
        " of the others",
        ("id 2", (0, 0, DROP, 0, KEEP, 0)): "dropped by the reviewer's say; its value is below the"
        " cut of the others",
        ("id 4", (DROP, 0, 0, 0, KEEP, 0)): "kept by the reviewer's say; its value is above the cut"
        " of the others",
    }
    for (name, reviewed), told in cases.items():
        made = make_ledger(*case_of(weights=weights, reviewed=reviewed))
        story = explain(made, digest(name)[:32], CLUSTERS, 0.5).splitlines()
        (decision,) = (line for line in story if line.startswith("decision"))
        assert decision.endswith(f": {told}")
    unreviewed = explain(make_ledger(*case_of(weights=weights)), "photo 5.jpg", CLUSTERS, 0.5)
    assert "of the others" not in unreviewed


# --- Parts that count for nothing -----------------------------------------------------------------


def reasons_without(name: str, constant: float) -> dict[Hashable, str]:
    """By position, why pairs are dropped where one part of their value is the same for all."""
    case = case_of(weights=np.array([6.0, 0, 0, 0, 0, 0]))
    parts = case.parts._replace(**{name: np.full(6, constant)})
    curated = dataclasses.replace(case.curated, pair_values=parts.total)
    made = make_ledger(*case._replace(parts=parts, curated=curated)).ledger
    return made[made["decision"] == "dropped"].set_index("position")["decision_reason"].to_dict()


@pytest.mark.parametrize("constant", [0.0, -9.1])
def test_a_part_that_is_the_same_for_all_pairs_is_no_reason(constant: float) -> None:
    # Without influence: agreement 0.5, -2.5, -0.2, -1.2, 0.1 of a mean of -0.38, three copies.
    assert reasons_without("influence", constant) == {
        0: ledger.OUTBID,
        4: ledger.DISAGREES,
        6: ledger.NEAR_COPY,
        2: ledger.DISAGREES,
        8: ledger.OUTBID,
    }
    # Without agreement: influence -3, 0.5, -0.1, 1, 0.2 of a mean of 0.1.
    assert reasons_without("agreement", constant) == {
        0: ledger.LOW_INFLUENCE,
        4: ledger.OUTBID,
        6: ledger.NEAR_COPY,
        2: ledger.OUTBID,
        8: ledger.OUTBID,
    }
    assert reasons_without("copies", constant)[6] == ledger.LOW_INFLUENCE
    assert ledger.FAR_FROM_TARGET not in reasons_without("relevance", constant).values()


def test_copies_that_cost_nothing_are_no_reason() -> None:
    case = case_of(weights=np.array([6.0, 0, 0, 0, 0, 0]))
    free = case._replace(parts=case.parts._replace(copies=-0.0 * case.pairs.better_copies))
    reasons = [
        made.ledger.set_index("position").at[6, "decision_reason"]
        for made in (make_ledger(*case), make_ledger(*free))
    ]
    assert reasons == [ledger.NEAR_COPY, ledger.LOW_INFLUENCE]


def test_of_pairs_that_are_alike_none_is_dropped_for_what_it_is() -> None:
    case = case_of(weights=np.array([6.0, 0, 0, 0, 0, 0]))
    alike = ValueParts(*np.zeros((4, 6)))
    reasons = make_ledger(*case._replace(parts=alike)).ledger["decision_reason"]
    assert (reasons == ledger.OUTBID).sum() == 5


def test_ledgers_of_earlier_runs_can_be_explained(made: Ledger) -> None:
    earlier = made.ledger.drop(columns=["relevance_part", "log_odds", "trusted"])
    for i in range(8):
        now, then = (explain(t, f"photo {i}.jpg", CLUSTERS, 0.5) for t in
                     (made, Ledger(earlier, made.cut)))  # fmt: skip
        assert now == then


def test_the_story_says_how_much_influence_counts(made: Ledger) -> None:
    guard = "influence does not count, because influence and agreement contradict each other"
    for i in (4, 5):  # evaluated and inferred alike
        story = explain(made, f"photo {i}.jpg", CLUSTERS, 0.5, guard=guard)
        (line,) = (line for line in story.splitlines() if line.startswith("influence "))
        assert line.endswith(f"); {guard}")

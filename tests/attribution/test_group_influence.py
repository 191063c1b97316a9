"""Which groups are asked apart, which one is served worst, and what adding pairs would bring."""

from __future__ import annotations

import numpy as np
import pytest

from attribution.group_influence import (
    FEWEST_OF_GROUP,
    Group,
    asked_groups,
    gain_of_adding,
    told_of_groups,
    worst_group,
)
from attribution.reliability import Reliability


def first(n: int) -> np.ndarray:
    return np.arange(60) < n


def groups_with(**losses: float) -> list[Group]:
    attributes = {"female": "gender", "male": "gender", "child": "age", "adult": "age"}
    return [Group(attributes[name], name, first(20), loss) for name, loss in losses.items()]


def test_groups_of_too_few_pairs_or_without_another_are_not_asked() -> None:
    enough, few = first(FEWEST_OF_GROUP), first(FEWEST_OF_GROUP - 1)
    found = asked_groups(
        {"gender": {"female": enough, "male": ~enough}, "age": {"child": few, "adult": ~few}}
    )
    assert [(g.attribute, g.name) for g in found] == [("gender", "female"), ("gender", "male")]
    assert found[0].member is enough
    assert asked_groups(None) == []


def test_the_worst_group_is_of_the_attribute_that_lies_furthest_apart() -> None:
    # Children are worse off than women, but hardly worse than adults.
    groups = groups_with(female=2.5, male=2.0, child=3.0, adult=2.9)
    worst = worst_group(groups)
    assert worst is not None
    assert groups[worst].name == "female"
    turned = groups_with(female=2.0, male=2.5, child=3.0, adult=2.9)
    assert worst_group(turned) == 1
    assert worst_group(groups_with(child=3.0, adult=2.9)) == 0
    assert worst_group([]) is None


def test_a_groups_loss_is_the_mean_over_its_pairs_and_the_models() -> None:
    group = Group("gender", "female", np.array([True, True, True, False]))
    # No batch of the first model holds the third pair.
    losses = [np.array([1.0, 3.0, np.nan, 50.0]), np.array([4.0, 4.0, 4.0, 50.0])]
    assert group.measured(losses).loss == pytest.approx(3.0)


def test_what_adding_pairs_brings_by_hand() -> None:
    influence = np.array([5.0, 15.0, 99.0, -10.0, 0.0])
    unfaulty = np.array([True, True, False, True, True])
    members = {
        "female": np.array([True, True, True, False, False]),
        "male": np.array([False, False, False, True, True]),
        "child": np.array([False, False, True, False, False]),  # a wrong caption alone
    }
    gains = gain_of_adding(influence, unfaulty, members)
    assert gains == {"female": pytest.approx(2.0), "male": pytest.approx(-1.0), "child": None}


def test_what_is_told_of_groups() -> None:
    groups = groups_with(female=2.5, male=2.0)
    told = told_of_groups(groups, 0, 0.5, Reliability(0.25, 0.0), {"female": 1e-5})
    assert told == {
        "weight": 0.5,
        "attribute": "gender",
        "group": "female",
        "reliability": 0.25,
        "losses": {"female": 2.5, "male": 2.0},
        "held_out_pairs": {"female": 20, "male": 20},
        "adding": {"female": 1e-5},
    }
    assert told_of_groups(groups, 0, 1, Reliability(None, 0), {})["reliability"] is None

"""What helps the worst-served demographic group of the held-out pairs more than all of them.

Groups are those that captions name. The worst one is that of higher loss in the attribute whose
groups' losses lie furthest apart. Influence on its loss is asked of the models that are there, of
which the gradient of the group's loss is taken beside that of all held-out pairs; influence is
linear in the gradient, so the difference of both tells what a pair does for the group beyond what
it does for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from attribution.reliability import Reliability

FEWEST_OF_GROUP = 20  # held-out pairs from which a group is asked


class Group(NamedTuple):
    """Held-out pairs whose captions name one group of an attribute alone."""

    attribute: str
    name: str
    member: Bool[np.ndarray, " V"]
    loss: float = float("nan")  # mean of the models, nats

    def measured(self, losses: Sequence[Float[np.ndarray, " V"]]) -> Group:
        """With its mean loss by models that say so of every held-out pair; NaN where none does."""
        return self._replace(loss=float(np.mean([np.nanmean(of[self.member]) for of in losses])))


def asked_groups(
    groups: Mapping[str, Mapping[str, Bool[np.ndarray, " V"]]] | None,
) -> list[Group]:
    """The groups with enough held-out pairs, of attributes with two of them at least."""
    found = []
    for attribute, members in (groups or {}).items():
        enough = [
            Group(attribute, name, member)
            for name, member in members.items()
            if member.sum() >= FEWEST_OF_GROUP
        ]
        found += enough if len(enough) > 1 else []
    return found


def worst_group(groups: Sequence[Group]) -> int | None:
    """Which group is served worst; None where no two can be compared.

    Losses of two attributes say little beside each other, as captions of one group of an attribute
    may be the harder ones anyway; so the attribute is the one whose groups lie furthest apart.
    """
    apart: dict[str, list[float]] = {}
    for group in groups:
        apart.setdefault(group.attribute, []).append(group.loss)
    if not apart:
        return None
    widest = max(apart, key=lambda attribute: max(apart[attribute]) - min(apart[attribute]))
    of_widest = [i for i, group in enumerate(groups) if group.attribute == widest]
    return max(of_widest, key=lambda i: groups[i].loss)


def told_of_groups(
    groups: Sequence[Group],
    worst: int,
    weight: float,
    reliability: Reliability,
    adding: Mapping[str, float | None],
) -> dict[str, Any]:
    """Which group counts and how much, what the groups lose, and what adding pairs would bring.

    Args:
        groups: those that were asked, with their losses.
        worst: the group that counts.
        weight: what a standard deviation of its influence beyond that on all counts.
        reliability: how well that is known.
        adding: see `gain_of_adding`.
    """
    known = reliability.reliability
    return {
        "weight": round(weight, 4),
        "attribute": groups[worst].attribute,
        "group": groups[worst].name,
        "reliability": None if known is None else round(known, 4),
        "losses": {group.name: round(group.loss, 5) for group in groups},
        "held_out_pairs": {group.name: int(group.member.sum()) for group in groups},
        "adding": dict(adding),
    }


def gain_of_adding(
    group_influence: Float[np.ndarray, " n"],
    unfaulty: Bool[np.ndarray, " n"],
    members: Mapping[str, Bool[np.ndarray, " n"]],
) -> dict[str, float | None]:
    """By how much one more right pair of each group lowers the worst group's loss, nats.

        gain_g = mean of u_i / n over the right pairs i of group g

    To first order: what a pair like those that are there adds. None where a group has none.

    Args:
        group_influence: u_i, of leaving pairs out on the worst group's loss.
        unfaulty: pairs that are more likely right than wrong.
        members: the pairs of each group.
    """
    n = len(group_influence)
    gains: dict[str, float | None] = {}
    for name, member in members.items():
        right = member & unfaulty
        gains[name] = float(group_influence[right].mean()) / n if right.any() else None
    return gains

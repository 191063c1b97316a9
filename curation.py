"""Which pairs are kept and with what weight, from the influence of pairs, cells and clusters.

A pair's value joins its influence with its image-text agreement on one scale and charges for every
near copy that is better than it. The exact solution of

    maximise  sum_i w_i v_i - (1 / 2 rho) sum_i (w_i - 1)^2
    subject to  0 <= w_i <= cap_i  and a budget

says which pairs are raised and which are not worth keeping. Its weights above one are given as they
are; those below one, near the cut, are not: as many whole pairs as they add up to are kept, those
of highest value. The proximal term keeps weights near one, where first-order influence holds;
without it the whole budget goes to a few pairs at the cap. Influence is pooled over cells, but a
cell whose pairs differ is not treated as one. Where more pairs are to be kept than look right,
those that look faulty hardly count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int8, Int64, Shaped
from scipy.optimize import brentq
from scipy.stats import norm

from artifacts.settings import InputError, Settings, setting
from attribution.keep_curve import KeepCurve
from attribution.results import InfluenceResult, PairInfluence
from attribution.scores import standardised
from learner.pairs import TrainingPairs

HARMFUL, NEUTRAL, BENEFICIAL = "harmful", "neutral", "beneficial"
DEFAULT_SHARE = 0.8
SMALLEST_SHARE = 0.05  # of a cluster that is kept unless its harm is certain
RHO_BOUNDS = 1.0, 20.0
LOT = 1e-6  # log odds by which pairs of one worth are told apart
SORTS_DIFFICULTY = (
    "models trained on pairs of high value do worse on the held-out pairs than on as many at random"
    " that look right: values tell easy pairs from hard ones here, so only what looks faulty is"
    " dropped by them"
)
KEEP, DROP = 1, -1  # what a reviewer says of a pair; 0 where nothing


@dataclass(frozen=True)
class CurationConfig(Settings):
    """What is pruned, kept and raised."""

    target_size_ratio: float | str = setting(
        DEFAULT_SHARE,
        "size of the curated set as a share of the training pairs; auto: the share that is best "
        "for the held-out pairs",
        above=0,
        at_most=1,
        or_auto=True,
    )
    harmful_threshold: float = setting(
        -0.001, "a cluster below this influence is harmful (-0.001: -0.1 %% of validation loss)"
    )
    beneficial_threshold: float = setting(
        0.01, "a cluster above this influence is beneficial (0.01: +1 %% of validation loss)"
    )
    confidence: float = setting(
        0.95,
        "how certain the sign must be before a cluster is called harmful or beneficial",
        at_least=0.5,
        below=1,
    )
    max_weight: float = setting(5.0, "largest weight of a cell before scaling", at_least=1)
    agreement_weight: float = setting(
        1.0,
        "what a standard deviation of image-text agreement counts beside one of influence in a "
        "pair's value",
        at_least=0,
    )
    copy_price: float = setting(
        1.0, "standard deviations of value charged for each better near copy of a pair", at_least=0
    )
    faulty_weight: float = setting(
        0.01,
        "weight of a pair that looks faulty and is kept all the same, beside one that looks "
        "right; 1: the same",
        above=0,
        at_most=1,
    )
    rho: float | None = setting(
        None,
        "how sharply weights follow values; by default one over the mean standard error of a "
        "cell's value",
        above=0,
        type=float,
    )
    min_group_retention: float = setting(
        0.0,
        "least share kept of every demographic group that captions name",
        at_least=0,
        at_most=1,
    )
    overrides: str | None = setting(
        None,
        "a reviewer's say: a CSV file with the columns id and decision (keep or drop), such as the "
        "report's page downloads",
        type=str,
        affects_result=False,  # what it says does; see `cli.overrides`
        added_later=True,
    )

    def __post_init__(self) -> None:
        """Check the fields and that the thresholds do not contradict each other.

        Raises:
            InputError: a wrong value, or thresholds that overlap.
        """
        super().__post_init__()
        if self.harmful_threshold >= self.beneficial_threshold:
            raise InputError(
                f"--harmful_threshold ({self.harmful_threshold:g}) must be below "
                f"--beneficial_threshold ({self.beneficial_threshold:g})"
            )

    @property
    def share(self) -> float:
        """The share to be kept; of `auto`, before it is found, the default.

        Foreseen costs are reckoned with that, and sets that are curated between rounds.
        """
        return DEFAULT_SHARE if isinstance(self.target_size_ratio, str) else self.target_size_ratio


@dataclass(frozen=True)
class CurationResult:
    """The curated subset: m of n training pairs, and why."""

    curated_indices: Int64[np.ndarray, " m"]  # sorted positions in the source
    sample_weights: Float64[np.ndarray, " m"]  # mean one
    curated_rows: Int64[np.ndarray, " m"]  # the same pairs as rows of the training arrays
    pair_values: Float64[np.ndarray, " n"]  # standard deviations
    rho: float
    categorization: list[dict[str, Any]] = field(metadata={"file": "cluster_categorization.json"})
    cluster_weights: dict[str, float] = field(metadata={"file": "cluster_weights.json"})
    group_retention: dict[str, dict[str, Any]] = field(metadata={"file": "group_retention.json"})
    # KEEP, DROP or 0 of every training pair; None where no reviewer has spoken
    reviewed: Int8[np.ndarray, " n"] | None = None
    n_overruled: int = 0  # reviewed pairs that would have been decided otherwise

    def training_weights(self, n: int) -> Float64[np.ndarray, " n"]:
        """The weight of every one of n training pairs, 0 where it was dropped."""
        weights = np.zeros(n)
        weights[self.curated_rows] = self.sample_weights
        return weights


class ValueParts(NamedTuple):
    """What adds up to the value of each of n pairs, standard deviations."""

    influence: Float64[np.ndarray, " n"]
    agreement: Float64[np.ndarray, " n"]
    copies: Float64[np.ndarray, " n"]  # at most zero
    relevance: Float64[np.ndarray, " n"]  # zeros where the held-out pairs are like the pool
    fairness: Float64[np.ndarray, " n"] | None = None  # None where groups do not count

    @property
    def total(self) -> Float64[np.ndarray, " n"]:
        """The values."""
        return np.asarray(np.sum([part for part in self if part is not None], axis=0))


def curve_settings(config: CurationConfig) -> dict[str, Any]:
    """Every setting that the curve of how much to keep depends on."""
    settings = config.fingerprint_settings()
    others = "target_size_ratio", "faulty_weight"
    return {name: value for name, value in settings.items() if name not in others}


def share_with_room(
    share: float,
    values: Float[np.ndarray, " n"],
    groups: Mapping[str, Bool[np.ndarray, " n"]],
    reviewed: Int8[np.ndarray, " n"] | None,
    config: CurationConfig,
) -> float:
    """The nearest share of n pairs at which what groups and a reviewer ask for can be done.

    Args:
        share: that is wanted.
        values: of the pairs.
        groups: which of them name which group.
        reviewed: KEEP or DROP of the pairs that a reviewer has decided on, else 0.
        config: the least share of every group.

    Raises:
        InputError: all pairs are to be dropped.
    """
    n, said = len(values), np.zeros(len(values)) if reviewed is None else reviewed
    said_of = np.where(said == 0, values, np.copysign(np.inf, said))
    # Also where a reviewer's say is left out, to count what it changes.
    needed = max(int(asked_for(v, groups, config).sum()) for v in (values, said_of))
    most = n - int((said == DROP).sum())
    if most == 0:
        raise InputError(f"--overrides marks all {n:,} training pairs drop; mark fewer")
    return float(min(max(share, needed / n), most / n))


def curated_size(n: int, target_size_ratio: float) -> int:
    """How many of n pairs are kept, at least one."""
    return max(1, round(target_size_ratio * n))


def faults_alone(
    influence: PairInfluence, curve: KeepCurve, rng: np.random.Generator
) -> PairInfluence:
    """What is known of the pairs where values sort easy from hard ones: see `KeepCurve`.

    Pairs that look right are then worth the same, but for near copies and nearness to the held-out
    pairs, and come by lot; those that do not are worth less the surer it is that they are faulty.
    """
    if not curve.sorts_difficulty or influence.unfaulty is None:
        return influence
    lot = LOT * rng.random(len(influence.agreement))
    reasons = "; ".join(filter(None, (influence.quality.get("guard"), SORTS_DIFFICULTY)))
    return replace(
        influence,
        agreement=np.where(influence.unfaulty, 0.0, np.minimum(influence.agreement, 0.0)) + lot,
        influence_weight=0.0,
        quality={**influence.quality, "influence_weight": 0.0, "guard": reasons},
    )


def curate(
    pairs: TrainingPairs,
    scores: InfluenceResult,
    influence: PairInfluence,
    config: CurationConfig,
    reviewed: Int8[np.ndarray, " n"] | None = None,
    *,
    must_fit: bool = True,
) -> CurationResult:
    """The curated subset of exactly `curated_size` pairs, with weights.

    The pairs of highest value stay. So do, whatever their value, the best pairs of a cluster
    unless its harm is certain, and the best pairs of every demographic group, up to the share
    that is asked for. Raised are pairs of certainly beneficial cells in clusters that hold a
    larger share of the held-out pairs than of the training pairs, at most by that ratio. Pairs
    that look faulty and are kept all the same count little, see `counted_weights`.
    A reviewer's say goes before all of this; the other places go by the same rules.

    Args:
        pairs: n training pairs in K clusters.
        scores: the influence of the clusters.
        influence: that of the pairs, and of the C cells that they are in.
        config: what is pruned, kept and raised.
        reviewed: KEEP or DROP of the pairs that a reviewer has decided on, else 0.
        must_fit: False keeps of the groups' best pairs as many as there is room for.

    Raises:
        InputError: the groups or the reviewer want more pairs than are kept, or leave fewer.
    """
    cells, clusters = influence.cell_assignments, pairs.cluster_assignments
    n, sizes = len(cells), np.bincount(cells)
    target = curated_size(n, config.share)
    said = _with_room(np.zeros(n, dtype=np.int8) if reviewed is None else reviewed, target, config)
    categories = categorize(scores.influence_scores, scores.influence_stderr, config)
    values = estimated_parts(pairs, influence, config).total
    spread = max(float(influence.pair_influence.std()), 1e-12)
    rho = config.rho or default_rho(influence.cell_influence_stderr / spread, sizes)
    cell_categories = categorize_cells(
        np.bincount(cells, influence.pair_influence) / sizes,
        influence.cell_influence_stderr,
        config,
    )
    caps = _caps(pairs, cell_categories[cells], categories[clusters], config)
    weights = solve_weights(rho * values, caps, target, said)
    junk = influence.looks_faulty
    given = clusters, categories, pairs.groups, junk, target, config
    choose = partial(chosen_rows, *given, must_fit=must_fit)
    rows, n_overruled = _obey(said, values, choose)
    kept = np.bincount(cells[rows], minlength=len(sizes))
    raised = np.maximum(weights, 1.0)  # a weight below one is met by dropping pairs
    sample_weights = counted_weights(raised, junk & (said != KEEP), config)[rows]
    sample_weights /= sample_weights.mean()
    return CurationResult(
        curated_indices=pairs.indices[rows],
        sample_weights=sample_weights,
        curated_rows=rows,
        pair_values=values,
        rho=float(rho),
        categorization=_readable_categories(
            *(pairs, scores, categories, np.bincount(clusters[rows], minlength=len(categories))),
            _readable_cells(pairs, influence, cell_categories, kept),
        ),
        cluster_weights=_mean_weights(clusters[rows], sample_weights, len(categories)),
        group_retention=group_retention(pairs.groups, rows),
        reviewed=reviewed,
        n_overruled=n_overruled,
    )


def counted_weights(
    weights: Float[np.ndarray, " n"], junk: Bool[np.ndarray, " n"], config: CurationConfig
) -> Float64[np.ndarray, " n"]:
    """The weights of n pairs, with those of pairs that look faulty lowered.

    They are kept where the share that is asked for leaves no choice. A model that is trained on
    them as on others learns what is wrong; hardly counted, they hardly harm.

    Args:
        weights: of the pairs.
        junk: those that look faulty.
        config: what they count beside others.
    """
    return np.where(junk, config.faulty_weight * weights, weights)


def _caps(
    pairs: TrainingPairs,
    of_cells: Shaped[np.ndarray, " n"],
    of_clusters: Shaped[np.ndarray, " n"],
    config: CurationConfig,
) -> Float64[np.ndarray, " n"]:
    """The largest weight of every pair, by the categories of its cell and its cluster."""
    may_be_raised = (of_cells == BENEFICIAL) & (of_clusters != HARMFUL)
    represented = np.clip(pairs.represented[pairs.cluster_assignments], 1.0, config.max_weight)
    return np.where(may_be_raised, represented, 1.0)


def _mean_weights(
    clusters: Int64[np.ndarray, " m"], weights: Float64[np.ndarray, " m"], n_clusters: int
) -> dict[str, float]:
    """The mean weight of each cluster's kept pairs, 0 where it keeps none."""
    sums, kept = (np.bincount(clusters, w, minlength=n_clusters) for w in (weights, None))
    return {
        str(k): float(w / m) if m else 0.0 for k, (w, m) in enumerate(zip(sums, kept, strict=True))
    }


def _obey(
    reviewed: Int8[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    choose: Callable[[Float[np.ndarray, " n"]], Int64[np.ndarray, " m"]],
) -> tuple[Int64[np.ndarray, " m"], int]:
    """The rows that are kept, and how many reviewed pairs would have been decided otherwise."""
    if not reviewed.any():
        return choose(values), 0
    unreviewed = np.full(len(values), DROP)
    unreviewed[choose(values)] = KEEP
    rows = choose(np.where(reviewed == 0, values, np.copysign(np.inf, reviewed)))
    return rows, int(((reviewed != 0) & (reviewed != unreviewed)).sum())


def _with_room(
    reviewed: Int8[np.ndarray, " n"], target: int, config: CurationConfig
) -> Int8[np.ndarray, " n"]:
    """A reviewer's say; an InputError where no set of this size does what it asks for."""
    n, n_keep = len(reviewed), int((reviewed == KEEP).sum())
    n_left = n - int((reviewed == DROP).sum())
    ratio = f"--target_size_ratio {config.share:g}"
    if n_keep > target:
        raise InputError(
            f"--overrides marks {n_keep:,} training pairs keep, but {ratio} has room for {target:,}"
            f" of {n:,}; raise it to {math.ceil(1e6 * n_keep / n) / 1e6:g} or mark fewer"
        )
    if n_left < target:
        lower = math.floor(1e6 * n_left / n) / 1e6
        raise InputError(
            f"--overrides marks {n - n_left:,} of {n:,} training pairs drop, which leaves"
            f" {n_left:,}, but {ratio} keeps {target:,}; "
            + (f"lower it to {lower:g} or mark fewer" if lower else "mark fewer")
        )
    return reviewed


def value_parts(
    influence: Float[np.ndarray, " n"],
    agreement: Float[np.ndarray, " n"],
    better_copies: Int64[np.ndarray, " n"],
    config: CurationConfig,
    *,
    influence_weight: float = 1.0,
    relevance: Float[np.ndarray, " n"] | None = None,
    fairness: Float[np.ndarray, " n"] | None = None,
) -> ValueParts:
    """What a pair is worth beside others, in standard deviations, part by part.

        value = influence_weight z(influence) + agreement_weight z(agreement) + relevance
                + fairness - copy_price (better copies)

    Influence and agreement err on different pairs, so that joining them tells more than either.

    Args:
        influence: nats.
        agreement: on any scale.
        better_copies: near copies of the pair's image with a better caption.
        config: what agreement and copies count.
        influence_weight: what influence counts, see `attribution.guard`.
        relevance: what being near the held-out pairs adds; nothing by default.
        fairness: what helping the worst-served group adds; nothing by default.
    """
    return ValueParts(
        influence_weight * standardised(influence),
        config.agreement_weight * standardised(agreement),
        np.asarray(-config.copy_price * better_copies, dtype=np.float64),
        np.zeros(len(influence)) if relevance is None else relevance,
        fairness,
    )


def estimated_parts(
    pairs: TrainingPairs, influence: PairInfluence, config: CurationConfig
) -> ValueParts:
    """What adds up to the values by which pairs are chosen."""
    return value_parts(
        *(influence.counted, influence.agreement, pairs.better_copies, config),
        influence_weight=influence.influence_weight,
        relevance=influence.relevance_part,
        fairness=influence.fairness_part,
    )


def default_rho(stderr: Float[np.ndarray, " C"], sizes: Int64[np.ndarray, " C"]) -> float:
    """One over the mean standard error of a cell's value: decisions as sharp as they are certain.

    A pair so goes from whole to nothing over about one standard error of value; within bounds.
    """
    mean = float(np.average(stderr, weights=sizes))
    return float(np.clip(1 / max(mean, 1e-12), *RHO_BOUNDS))


def categorize(
    scores: Float[np.ndarray, " K"], stderr: Float[np.ndarray, " K"], config: CurationConfig
) -> Shaped[np.ndarray, " K"]:
    """`harmful`, `neutral` or `beneficial` for each cluster.

    Beyond the threshold is not enough: the sign must be certain at `confidence`, one-sided.
    """
    certain = np.abs(scores) > norm.ppf(config.confidence) * stderr
    categories = np.full(len(scores), NEUTRAL, dtype=object)
    categories[certain & (scores < config.harmful_threshold)] = HARMFUL
    categories[certain & (scores > config.beneficial_threshold)] = BENEFICIAL
    return categories


def categorize_cells(
    influence: Float[np.ndarray, " C"], stderr: Float[np.ndarray, " C"], config: CurationConfig
) -> Shaped[np.ndarray, " C"]:
    """`harmful` or `beneficial` where the sign of a cell is certain, else `neutral`."""
    certain = np.abs(influence) > norm.ppf(config.confidence) * stderr
    categories = np.full(len(influence), NEUTRAL, dtype=object)
    categories[certain & (influence < 0)] = HARMFUL
    categories[certain & (influence > 0)] = BENEFICIAL
    return categories


def solve_weights(
    gains: Float[np.ndarray, " n"],
    caps: Float[np.ndarray, " n"],
    target: int,
    reviewed: Int8[np.ndarray, " n"] | None = None,
) -> Float64[np.ndarray, " n"]:
    """The exact solution of the proximal programme whose budget keeps `target` pairs.

        w_i(mu) = clip(1 + gain_i - mu, 0, cap_i)

    mu, the price of a pair, is the root of sum_i min(w_i, 1) = target. A negative price keeps
    pairs that the programme would drop, but raises no weight above one. Pairs that a reviewer
    keeps are whole at any price and raised as others are; those marked to be dropped weigh nothing.

    Args:
        gains: rho v_i, up to a constant.
        caps: largest weights, at least one.
        target: pairs to keep.
        reviewed: KEEP, DROP or 0; at most `target` are kept, and as many are not dropped.
    """
    said = np.zeros(len(gains), dtype=np.int8) if reviewed is None else reviewed
    least, most = np.where(said == KEEP, 1.0, 0.0), np.where(said == DROP, 0.0, 1.0)
    asked = gains[said != DROP]

    def shares_at(price: float) -> Float64[np.ndarray, " n"]:
        return np.asarray(np.clip(1 + gains - price, least, most))

    def surplus(price: float) -> float:
        return float(shares_at(price).sum() - target)

    price, dearest = float(asked.min()), float(1 + asked.max())  # all pairs kept, none kept
    if surplus(price) > 0:
        price = brentq(surplus, price, dearest, xtol=1e-12)
    raised = np.clip(gains - max(price, 0.0), 0, caps - 1)
    return np.asarray(shares_at(price) + raised * most)


def chosen_rows(
    cluster_assignments: Int64[np.ndarray, " n"],
    categories: Shaped[np.ndarray, " K"],
    groups: Mapping[str, Bool[np.ndarray, " n"]],
    junk: Bool[np.ndarray, " n"],
    target: int,
    config: CurationConfig,
    values: Float[np.ndarray, " n"],
    *,
    must_fit: bool = True,
) -> Int64[np.ndarray, " m"]:
    """The protected pairs and of the others those of highest value; see `protected_rows`."""
    protected = protected_rows(
        *(values, cluster_assignments, categories, groups, junk, target, config), must_fit=must_fit
    )
    return np.sort(np.lexsort((-values, ~protected))[:target]).astype(np.int64)


def asked_for(
    values: Float[np.ndarray, " n"],
    groups: Mapping[str, Bool[np.ndarray, " n"]],
    config: CurationConfig,
) -> Bool[np.ndarray, " n"]:
    """Pairs that a reviewer keeps, and the best of every group up to the share asked for.

    Args:
        values: infinite where a reviewer has decided.
        groups: which pairs name which group.
        config: the least share of every group.
    """
    by_value = np.argsort(-values, kind="stable")
    asked = np.isposinf(values)
    for member in groups.values():
        needed = int(np.ceil(config.min_group_retention * member.sum() - 1e-9))
        asked[by_value[member[by_value]][:needed]] = True
    return np.asarray(asked & ~np.isneginf(values))


def protected_rows(
    values: Float[np.ndarray, " n"],
    cluster_assignments: Int64[np.ndarray, " n"],
    categories: Shaped[np.ndarray, " K"],
    groups: Mapping[str, Bool[np.ndarray, " n"]],
    junk: Bool[np.ndarray, " n"],
    target: int,
    config: CurationConfig,
    *,
    must_fit: bool = True,
) -> Bool[np.ndarray, " n"]:
    """Pairs that stay whatever their cell: the best of every group, and of every cluster.

    A twentieth of each cluster, at least one pair, unless its harm is certain, of those that are
    no junk: a topic is protected, not its faulty pairs. As far as the target reaches, those of
    highest value first. A pair of infinite value is one that a reviewer has decided on: it is
    protected, whatever it looks like, and counts for its cluster and groups, or never.

    Raises:
        InputError: the groups' shares alone, with what a reviewer keeps, need more pairs than are
            kept, and must fit.
    """
    by_value, refused = np.argsort(-values, kind="stable"), np.isneginf(values)
    n_marked = int(np.isposinf(values).sum())
    protected = asked_for(values, groups, config)
    if protected.sum() > target:
        if not must_fit:
            return protected
        raise InputError(
            f"--min_group_retention {config.min_group_retention:g} keeps {protected.sum()} pairs "
            "for the demographic groups"
            + (f" and the {n_marked} that --overrides marks" if n_marked else "")
            + f", --target_size_ratio {config.share:g} only "
            f"{target} in all; lower the one or raise the other"
        )
    sizes = np.bincount(cluster_assignments, minlength=len(categories))
    quota = np.where(categories == HARMFUL, 0, np.maximum(1, (SMALLEST_SHARE * sizes).astype(int)))
    junk = junk & ~protected
    order = by_value[np.lexsort((junk[by_value], cluster_assignments[by_value]))]
    rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[cluster_assignments[order]]
    wanted = order[rank < quota[cluster_assignments[order]]]
    wanted = wanted[~protected[wanted] & ~refused[wanted] & ~junk[wanted]]
    wanted = wanted[np.lexsort((wanted, -values[wanted]))]  # ties by row, not by cluster
    protected[wanted[: target - int(protected.sum())]] = True
    return protected


def group_retention(
    groups: Mapping[str, Bool[np.ndarray, " n"]], rows: Int64[np.ndarray, " m"]
) -> dict[str, dict[str, Any]]:
    """How much of each demographic group is kept, beside the share kept of all pairs."""
    report: dict[str, dict[str, Any]] = {}
    for name, member in groups.items():
        kept = int(member[rows].sum())
        report[name] = {
            "pairs": int(member.sum()),
            "kept": kept,
            "retention": kept / int(member.sum()) if member.any() else None,
        }
    return report


def _readable_cells(
    pairs: TrainingPairs,
    influence: PairInfluence,
    categories: Shaped[np.ndarray, " C"],
    kept: Int64[np.ndarray, " C"],
) -> list[list[dict[str, Any]]]:
    """The cells of each cluster, most harmful first; influence in percent of the loss."""
    cells, n = influence.cell_assignments, len(influence.cell_assignments)
    sizes = np.bincount(cells)
    scale = 100 * sizes / n / influence.validation_loss
    shares = scale * np.bincount(cells, influence.pair_influence) / sizes
    stderr = scale * influence.cell_influence_stderr
    clip_scores = np.bincount(cells, pairs.clip_scores) / sizes
    first = np.unique(cells, return_index=True)[1]
    readable: list[list[dict[str, Any]]] = [[] for _ in pairs.clusters]
    for c in np.argsort(shares, kind="stable"):
        cluster = int(pairs.cluster_assignments[first[c]])
        fate = "kept" if kept[c] == sizes[c] else "pruned" if kept[c] == 0 else "kept in part"
        readable[cluster].append(
            {
                "cell": int(c),
                "category": str(categories[c]),
                "mean_clip_score": round(float(clip_scores[c]), 4),
                "near_copies": bool(pairs.better_copies[first[c]]),
                "influence_percent": round(float(shares[c]), 5),
                "stderr_percent": round(float(stderr[c]), 5),
                "size": int(sizes[c]),
                "pairs_kept": int(kept[c]),
                "meaning": f"topic: {', '.join(pairs.clusters[cluster]['terms'][:3])}; "
                f"CLIP score {clip_scores[c]:.2f}"
                + ("; copies of better pairs" if pairs.better_copies[first[c]] else "")
                + f"; {sizes[c]} pair{'' if sizes[c] == 1 else 's'}; "
                + f"influence {shares[c]:+.3f} % +/- {stderr[c]:.3f}; "
                + fate,
            }
        )
    return readable


def _readable_categories(
    pairs: TrainingPairs,
    influence: InfluenceResult,
    categories: Shaped[np.ndarray, " K"],
    kept: Int64[np.ndarray, " K"],
    cells: list[list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    scores, stderr = influence.influence_scores, influence.influence_stderr
    sizes = np.bincount(pairs.cluster_assignments)
    return [
        {
            "cluster": int(k),
            "terms": list(pairs.clusters[k]["terms"]),
            "category": str(categories[k]),
            "influence_percent": round(100 * float(scores[k]), 5),
            "stderr_percent": round(100 * float(stderr[k]), 5),
            "size": int(sizes[k]),
            "pairs_kept": int(kept[k]),
            "pairs_dropped": int(sizes[k] - kept[k]),
            "cells": cells[k],
        }
        for k in np.argsort(scores, kind="stable")
    ]

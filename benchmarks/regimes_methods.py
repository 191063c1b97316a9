"""What a method of the benchmark of regimes sees, and how each one chooses.

InfluenceSpace in its default and in variants, the rivals of `baselines.METHODS`, and the oracle
that is told which pairs are faulty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from regimes_names import FAULTS_COUNT, ORACLE, RANDOM, TWO_CUTS
from regimes_problem import (
    TRAINING,
    Problem,
    asking,
    clustered,
    device,
    full_steps,
    groups_of,
    image_ids_of,
    known,
    remembered,
)
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from artifacts.provenance import CLUSTERING, INFLUENCE, PAIR_INFLUENCE, stage_rng
from attribution.additive_model import smooth_basis
from attribution.agreement import neighbour_agreement
from attribution.cluster_scores import InfluenceConfig
from attribution.keep_curve import KeepCurve, Kept, measure_keep_curve
from attribution.pair_scores import PairInfluenceConfig
from attribution.results import InfluenceResult, PairInfluence
from attribution.topic_faults import topic_fault_shares
from attribution.trust import PairsInSpace, PairTrust, TrustConfig, judge_pairs
from baselines import (
    BASELINES,
    CONTROLS,
    FULL,
    INFLUENCESPACE,
    baseline_scores,
    select_baseline,
    select_highest,
)
from baselines import (
    METHODS as METHODS_OF_RUNS,
)
from benchmarks.rooms import temporary_room
from clustering import ClusteringConfig
from curation import CurationConfig, CurationResult, curate, curated_size, faults_alone
from influence import Round, score_clusters, score_pairs
from learner.config import LOSS, SAMPLE
from learner.model import Parameters
from learner.sides import sides_of
from learner.training import Training, train_until_best
from rivals.agreement import neg_clip_loss_then_normsim
from rivals.given import Reference

RULES = "1"  # to be raised where the data, the training or a metric changes
REFERENCE_REPORTS, PATIENCE = 40, 10  # early stopping of the rivals' reference model, as ours
_workers: list[int | None] = [None]  # trainings at once; None: one a processor core


def use_workers(n: int) -> None:
    """Let the methods of this process train so many models at once."""
    _workers[0] = n


class Chosen(NamedTuple):
    """What a method trains on, and what choosing it cost."""

    rows: np.ndarray  # (m,) sorted
    weights: np.ndarray | None  # (m,) mean one; None is all ones
    seconds: float
    pairs_evaluated: int  # whose influence was computed
    validation_loss_estimate: float | None = None  # after training on it, as the method foresees
    weighting: str = LOSS  # how the weights reach training


class Method(NamedTuple):
    """A way to choose; raising `version` invalidates its rows and no others."""

    choose: Callable[[Problem, float, int], Chosen]
    version: str = "1"
    is_default: bool = True  # False: computed where it is asked for, as the ablations are


# --- Methods ----------------------------------------------------------------------------------


def full(problem: Problem, keep: float, seed: int) -> Chosen:
    """Every pair."""
    return Chosen(np.arange(len(problem.pairs.images)), None, 0.0, 0)


def oracle(problem: Problem, keep: float, seed: int) -> Chosen:
    """Faulty pairs go first, in the order in which `random` drops pairs; then others as there."""
    order = stage_rng(seed, RANDOM).permutation(len(problem.regime.faults))
    faulty = problem.regime.faults[order] != ""
    kept = order[np.argsort(faulty, kind="stable")][: curated_size(len(order), keep)]
    return Chosen(np.sort(kept), None, 0.0, 0)


def baseline(name: str) -> Callable[[Problem, float, int], Chosen]:
    """The rival or control of this name."""
    method = METHODS_OF_RUNS[name]
    needs_reference = INFLUENCE.name in method.needs

    def choose(problem: Problem, keep: float, seed: int) -> Chosen:
        if method.scores is not None:
            scores, seconds = scored(problem, name)
            started = time.perf_counter()
            kept = select_highest(known(problem), scores, keep)
        else:
            given, seconds = given_to(problem, name)
            if given is not None and asks_stage_2(name):
                trust, judging = trust_of(problem)
                problem = asking(problem, trust)
                estimate, estimating = pair_influence_of(problem, trust, Variant().cells)
                given = given._replace(
                    pair_influence=estimate, curation=CurationConfig(target_size_ratio=keep)
                )
                seconds = judging + estimating  # it is no reference model that it asks
            pairs, started = known(problem), time.perf_counter()
            kept = select_baseline(name, pairs, given, keep, stage_rng(seed, name))
        seconds += time.perf_counter() - started
        if CLUSTERING.name in method.pays_for:
            seconds += problem.clustering_seconds
        n_asked = len(problem.regime.faults) if needs_reference else 0
        return Chosen(kept.rows, kept.weights, seconds, n_asked)

    return choose


def asks_stage_2(name: str) -> bool:
    """Whether a method of runs is chosen by what stage 2 says of pairs."""
    return PAIR_INFLUENCE.name in METHODS_OF_RUNS[name].needs


def given_to(problem: Problem, name: str) -> tuple[Reference | None, float]:
    """The reference model where a rival needs one, and the seconds that it took."""
    if INFLUENCE.name not in METHODS_OF_RUNS[name].needs:
        return None, 0.0
    reference, seconds = reference_model(problem)
    return Reference(reference, TRAINING.batch_size), seconds


@remembered
def scored(problem: Problem, name: str) -> tuple[np.ndarray, float]:
    """What a rival ranks the pairs by, once for all shares kept, and the seconds that it took."""
    given, seconds = given_to(problem, name)
    pairs, started = known(problem), time.perf_counter()
    scores = baseline_scores(name, pairs, given, stage_rng(problem.seed, name))
    return scores, seconds + time.perf_counter() - started


def two_cuts(problem: Problem, keep: float, seed: int) -> Chosen:
    """Cuts by negCLIPLoss and by NormSim, one after the other, as their paper has them."""
    pairs, started = known(problem), time.perf_counter()
    size = curated_size(len(pairs.indices), keep)
    rows = neg_clip_loss_then_normsim(pairs, size, rng=stage_rng(seed, TWO_CUTS))
    return Chosen(np.sort(rows), None, time.perf_counter() - started, 0)


@remembered
def trust_of(problem: Problem) -> tuple[PairTrust, float]:
    """Which validation pairs InfluenceSpace asks, and the seconds that judging them took."""
    started = time.perf_counter()
    regime, m = problem.regime, len(problem.regime.validation_faults)
    training = PairsInSpace(
        *sides_of(problem.pairs),
        *(regime.image_embeddings, regime.text_embeddings),
        image_ids_of(regime),
    )
    validation = PairsInSpace(
        *sides_of(problem.validation),
        regime.joint_map.embed_images(regime.validation_image_features),
        regime.joint_map.embed_texts(regime.validation_text_features),
        np.arange(m),
    )
    judged = judge_pairs(
        training,
        validation,
        validation,  # no test pair has a say
        TrustConfig(),
        device=device(),
        near_copy_similarity=ClusteringConfig().near_copy_similarity,
        rng=stage_rng(problem.seed, "trust"),
    )
    return judged, time.perf_counter() - started


@remembered
def reference_model(problem: Problem) -> tuple[Parameters, float]:
    """The early-stopped model that rivals take gradients at, and its seconds."""
    started = time.perf_counter()
    seed = int(stage_rng(problem.seed, "reference").integers(2**31))
    run = Training(problem.pairs, TRAINING, n_steps=full_steps(problem), seed=seed)
    validation = (problem.validation, problem.validation_batches)
    train_until_best(run, validation, n_reports=REFERENCE_REPORTS, patience=PATIENCE)
    return run.parameters, time.perf_counter() - started


THREE_REFERENCES = MappingProxyType({"influence_seeds": 3, "removal_folds": 10})
NO_FOLDS = MappingProxyType({"influence_seeds": 1, "removal_folds": 0})
GROUPS_ASKED = MappingProxyType({"fairness": 1.0})  # one estimate for all that it may count


class Variant(NamedTuple):
    """InfluenceSpace with other settings than the defaults: what each part is worth."""

    label: str = ""  # what is different, in tables
    cells: Mapping[str, Any] = MappingProxyType({})  # of `PairInfluenceConfig`
    curation: Mapping[str, Any] = MappingProxyType({})  # of `CurationConfig`
    clusters: Mapping[str, Any] = MappingProxyType({})  # of `InfluenceConfig`
    rounds: int = PairInfluenceConfig().rounds
    equal_weights: bool = False
    women: float = 1.0  # times the weight of captions about women and girls
    weighting: str = LOSS
    n_clusters: int = ClusteringConfig().n_clusters
    labels_known: bool = False  # pairs are dropped by `judged_by_labels`
    taken_at_word: bool = False  # all validation pairs are asked
    parts: Mapping[str, Any] = MappingProxyType({})  # of `PairInfluence`, set to this
    topics_judge: bool = False  # the log odds know how much of a pair's topic is wrong
    relevance: bool = True  # whether nearness to the held-out pairs counts
    fairness: float = 0.0  # what the worst-served group counts, if `GROUPS_ASKED`
    curve: bool = False  # what the curve of the share kept says is heeded, as with no change


def influencespace(variant: Variant) -> Callable[[Problem, float, int], Chosen]:
    """InfluenceSpace, with the defaults or others."""

    def choose(problem: Problem, keep: float, _: int) -> Chosen:
        if variant.n_clusters != ClusteringConfig().n_clusters:
            problem = with_clusters(problem, variant.n_clusters)
        curated, estimate, seconds = curate_with_influencespace(problem, keep, variant)
        n = len(problem.regime.faults)
        if variant.labels_known:
            rows = judged_by_labels(problem, estimate, len(curated.curated_rows))
            evaluated = int(estimate.pair_influence_evaluated.sum())
            return Chosen(rows, None, problem.clustering_seconds + seconds, evaluated)
        dropped = np.ones(n)
        dropped[curated.curated_rows] = 0.0
        foreseen = float(np.mean(dropped * estimate.pair_influence))  # nats, to first order
        weights = curated.sample_weights
        if variant.women != 1.0:
            about_women = groups_of(problem.regime)["female"][curated.curated_rows]
            weights = weights * np.where(about_women, variant.women, 1.0)
            weights = weights / weights.mean()
        return Chosen(
            curated.curated_rows,
            None if variant.equal_weights else weights,
            problem.clustering_seconds + seconds,
            int(estimate.pair_influence_evaluated.sum()),
            estimate.validation_loss + foreseen,
            variant.weighting,
        )

    return choose


def curate_with_influencespace(
    problem: Problem, keep: float, variant: Variant
) -> tuple[CurationResult, PairInfluence, float]:
    """The curated set, the last round's pair influence, and the seconds without the clustering."""
    trust, judging = trust_of(problem)
    if variant.taken_at_word:
        trust = at_word(trust)
    problem = asking(problem, trust)
    scores, seconds = influence_of(problem, variant.clusters)
    seconds += judging
    started = time.perf_counter()
    config = CurationConfig(**{"target_size_ratio": keep, **variant.curation})
    if variant.rounds == 1:
        pair_influence, pair_seconds = pair_influence_of(problem, trust, variant.cells)
        started = time.perf_counter()  # its own seconds are told, whoever computed it
        pair_influence = replace(pair_influence, **variant.parts)
        if variant.topics_judge:
            topics, (share, *_) = known(problem).cluster_assignments, pair_influence.fault_share
            odds = logit(topic_fault_shares(pair_influence.agreement, topics, share))
            agreement = pair_influence.agreement - odds[topics]
            pair_influence = replace(pair_influence, agreement=agreement)
        if not variant.relevance:
            nothing = np.zeros_like(pair_influence.relevance_part)
            pair_influence = replace(pair_influence, relevance_part=nothing)
        if variant.fairness:
            pair_influence = _weighed(pair_influence, variant.fairness)
        if variant == Variant() or variant.curve:
            curve, curve_seconds = curve_of(problem, scores, pair_influence)
            rng = stage_rng(problem.seed, "faults alone")
            pair_influence = faults_alone(pair_influence, curve, rng)
            pair_seconds += curve_seconds
            started = time.perf_counter()
        curated = curate(known(problem), scores, pair_influence, config)
        return curated, pair_influence, seconds + pair_seconds + time.perf_counter() - started
    before: Round | None = None
    rng = stage_rng(problem.seed, "pair_influence")
    for _ in range(variant.rounds):
        estimate = estimate_pairs(problem, trust, variant.cells, rng, before)
        curated = curate(known(problem), scores, estimate, config)
        before = Round(curated.training_weights(len(problem.regime.faults)) > 0, estimate)
    assert before is not None, "there is a round"
    return curated, before.estimate, seconds + time.perf_counter() - started


def _weighed(influence: PairInfluence, fairness: float) -> PairInfluence:
    """The estimate with the worst-served group counting so often as much."""
    told = influence.quality["fairness"]
    told = {**told, "weight": fairness * told["weight"]}
    return replace(influence, quality={**influence.quality, "fairness": told})


_curves: list[Any] = []  # the last set of pairs, its curve and the seconds


def curve_of(
    problem: Problem, scores: InfluenceResult, influence: PairInfluence
) -> tuple[KeepCurve, float]:
    """What each share kept is expected to reach, one for all shares kept, and its seconds."""
    if not _curves or _curves[0] is not problem:
        started, pairs = time.perf_counter(), known(problem)

        def kept_at(share: float) -> Kept:
            config = CurationConfig(target_size_ratio=share, faulty_weight=1.0)
            made = curate(pairs, scores, influence, config)
            return Kept(made.curated_rows, made.sample_weights)

        with temporary_room(_workers[0]) as room:
            rng = stage_rng(problem.seed, "keep curve")
            curve = measure_keep_curve(pairs, kept_at, influence, TRAINING, room, rng=rng)
        _curves[:] = [problem, (curve, time.perf_counter() - started)]
    found: tuple[KeepCurve, float] = _curves[1]
    return found


def curve_of_influencespace(problem: Problem) -> KeepCurve:
    """The curve of a set of pairs, with all that it needs."""
    trust, _ = trust_of(problem)
    problem = asking(problem, trust)
    influence, _ = pair_influence_of(problem, trust, Variant().cells)
    return curve_of(problem, influence_of(problem, Variant().clusters)[0], influence)[0]


def judged_by_labels(problem: Problem, estimate: PairInfluence, n_kept: int) -> np.ndarray:
    """The pairs least likely to be faulty, told by all that InfluenceSpace knows and the truth.

    A logistic regression on smooth functions of its quantities, fitted to the true labels of the
    other four fifths of the pairs: what a better way of joining these quantities could reach.
    """
    faulty, pairs = problem.regime.faults != "", known(problem)
    if not faulty.any():
        raise SystemExit(f"--methods labels_known: {problem.regime.name} has no faulty pairs")
    rng, everyone = stage_rng(problem.seed, "labels_known"), np.ones(len(faulty), dtype=bool)
    images, texts = pairs.image_embeddings, pairs.text_embeddings
    quantities = (
        estimate.pair_influence,
        estimate.agreement,
        estimate.held_out_losses,
        pairs.clip_scores,
        neighbour_agreement(images, texts, everyone, rng=rng),
        neighbour_agreement(texts, images, everyone, rng=rng),
        np.minimum(pairs.better_copies, 3).astype(np.float64),
    )
    smooth = np.concatenate([smooth_basis(q) for q in quantities], axis=1)
    probabilities = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        smooth,
        faulty,
        cv=StratifiedKFold(5, shuffle=True, random_state=problem.seed),
        method="predict_proba",
    )[:, 1]
    return np.sort(np.argsort(probabilities, kind="stable")[:n_kept])


def estimate_pairs(
    problem: Problem,
    trust: PairTrust,
    settings: Mapping[str, Any],
    rng: np.random.Generator,
    before: Round | None = None,
) -> PairInfluence:
    """The influence of pairs and cells, as stage 2 estimates it."""
    with temporary_room(_workers[0]) as room:
        return score_pairs(
            known(problem),
            trust,
            PairInfluenceConfig(**settings),
            TRAINING,
            room,
            max_steps=InfluenceConfig().max_reference_steps,
            rng=rng,
            before=before,
        )


ABLATION = {
    "every_pair_evaluated": Variant("every pair evaluated", cells={"influence_budget": 1.0}),
    "budget_0.03": Variant("3 % of the pairs evaluated", cells={"influence_budget": 0.03}),
    "ten_repeats": Variant("ten repeats instead of five", cells={"held_out_repeats": 10}),
    "one_repeat": Variant("one repeat instead of five", cells={"held_out_repeats": 1}),
    "topics_ignored": Variant("topics ignored", cells={"ignore_topics": True}),
    "cells_kept_whole": Variant("cells kept whole", cells={"keep_cells_whole": True}),
    "encoder_agreement": Variant(
        "agreement by the encoder alone", cells={"encoder_agreement_only": True}
    ),
    "influence_alone": Variant("influence alone", curation={"agreement_weight": 0.0}),
    "agreement_half": Variant("agreement counts half", curation={"agreement_weight": 0.5}),
    "copies_free": Variant("near copies not charged for", curation={"copy_price": 0.0}),
    FAULTS_COUNT: Variant(
        "faulty pairs count like others", curation={"faulty_weight": 1.0}, curve=True
    ),
    "equal_weights": Variant("equal weights", equal_weights=True),
    "weights_drawn": Variant("weights drawn (sampling)", weighting=SAMPLE),
    "no_raising": Variant("no cluster raised", curation={"max_weight": 1.0}),
    "three_references": Variant(
        "three references, ten folds", clusters=THREE_REFERENCES, curve=True
    ),
    "no_folds": Variant("one reference, no folds", clusters=NO_FOLDS, curve=True),
    "20_clusters": Variant("20 clusters", n_clusters=20),
    "400_clusters": Variant("400 clusters", n_clusters=400),
    "two_rounds": Variant("two rounds", rounds=2),
    "labels_known": Variant("pairs judged by the true labels (a ceiling)", labels_known=True),
    "taken_at_word": Variant("validation pairs taken at their word", taken_at_word=True),
    "taken_at_word_no_guard": Variant(
        "taken at their word, and no guard", taken_at_word=True, parts={"influence_weight": 1.0}
    ),
    "no_influence": Variant("agreement without influence", parts={"influence_weight": 0.0}),
    "topics_judge": Variant("agreement less the faults of its topic", topics_judge=True),
    "no_relevance": Variant("nearness to the held-out pairs ignored", relevance=False),
    **{
        f"fairness_{weight:g}": Variant(
            f"fairness {weight:g}", cells=GROUPS_ASKED, fairness=weight, curve=True
        )
        for weight in (0.5, 1.0, 2.0, 4.0)
    },
    "groups_kept_whole": Variant(
        "every pair of a group kept", curation={"min_group_retention": 1.0}, curve=True
    ),
    "women_twice": Variant("captions about women weigh twice", women=2.0),
    "women_five_times": Variant("captions about women weigh five times", women=5.0),
}


@remembered
def pair_influence_of(
    problem: Problem, trust: PairTrust, settings: Mapping[str, Any]
) -> tuple[PairInfluence, float]:
    """The estimate with these settings, one for all shares kept, and its seconds."""
    started = time.perf_counter()
    rng = stage_rng(problem.seed, "pair_influence")
    return estimate_pairs(problem, trust, settings, rng), time.perf_counter() - started


@remembered
def at_word(trust: PairTrust) -> PairTrust:
    """All validation pairs asked, as with `--trust_validation`."""
    everyone = np.ones(len(trust.validation_trusted), dtype=bool)
    return replace(trust, validation_trusted=everyone, taken_at_word=True)


@remembered
def with_clusters(problem: Problem, n_clusters: int) -> Problem:
    """The same pairs in another number of clusters."""
    clusters, seconds = clustered(problem.regime, problem.seed, n_clusters)
    return problem._replace(clusters=clusters, clustering_seconds=seconds)


@remembered
def influence_of(problem: Problem, settings: Mapping[str, Any]) -> tuple[InfluenceResult, float]:
    """The clusters' scores with these settings, one for all shares kept, and their seconds."""
    started = time.perf_counter()
    with temporary_room(_workers[0]) as room:
        result = score_clusters(
            known(problem),
            InfluenceConfig(**settings),
            TRAINING,
            room,
            rng=stage_rng(problem.seed, "influence"),
        )
    return result, time.perf_counter() - started


METHODS: dict[str, Method] = {
    FULL: Method(full),
    ORACLE: Method(oracle),
    INFLUENCESPACE: Method(influencespace(Variant()), version="8"),
    **{name: Method(baseline(name)) for name in BASELINES},
    **{
        name: Method(baseline(name), "3" if asks_stage_2(name) else "1", is_default=False)
        for name in CONTROLS
    },
    TWO_CUTS: Method(two_cuts, is_default=False),
    **{
        name: Method(influencespace(variant), version="6", is_default=False)
        for name, variant in ABLATION.items()
    },
}


def version_of(method: str) -> str:
    """What a row of this method must say to count."""
    return f"{RULES}.{METHODS[method].version}"

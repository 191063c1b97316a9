"""The rival selectors, each returning a curated subset of the same size, with equal weights.

random                  uniform
clip_score_filtering    highest image-text agreement (Hessel et al. 2021; Schuhmann et al. 2022)
diversity_sampling      equal shares of every k-means cluster (Vo et al. 2024, arXiv 2405.15613)
coreset_selection       k-centre greedy (Sener & Savarese 2018, arXiv 1708.00489)
individual_influence    highest DataInf influence of every pair's own loss (Kwon et al. 2024)
semdedup                fewest near-copies of images (Abbas et al. 2023, arXiv 2303.09540)
density_pruning         hardest pairs of complex clusters (Abbas et al. 2024, arXiv 2401.04578)
neg_clip_loss           highest agreement less that with others (Wang et al. 2024, arXiv 2405.19547)
neg_clip_loss_normsim   that and likeness to a held-out image, NormSim of the same paper
text_alpha_sampling     frequent kinds of captions less often (Gadre et al. 2023, arXiv 2304.14108)
gradient_similarity     highest influence with the identity for a Hessian (Charpiat et al. 2019)
held_out_loss           highest loss less that of a held-out model (Mindermann et al. 2022; JEST)
m_flyt                  scores mixed by looking a step ahead (Shechter & Carmon 2025)
neg_clip_loss_semdedup  near copies dropped first, then the lowest negCLIPLoss

Controls, trained only where they are asked for, show what a part of InfluenceSpace does by itself:

refined_agreement                 agreement in a joint space fitted to pairs that look right
influencespace_without_influence  stage 3's choice if influence counted nothing

How each reckons is in `rivals/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from artifacts.provenance import (
    CLUSTERING,
    CURATION,
    INFLUENCE,
    KEEP_CURVE,
    PAIR_INFLUENCE,
    TRUST,
)
from curation import curated_size
from learner.pairs import TrainingPairs
from rivals.agreement import (
    agreement_cosines,
    neg_clip_loss,
    neg_clip_loss_normsim,
    neg_clip_loss_semdedup,
    refined_agreement,
)
from rivals.clusters import (
    alpha_sampling,
    density_pruning,
    equal_shares,
    similarity_to_harder,
    text_clusters,
)
from rivals.coverage import k_center_greedy
from rivals.given import Reference
from rivals.held_out import MOST_STEPS, held_out_loss
from rivals.influence import gradient_similarity, individual_influence
from rivals.look_ahead import LOOK_AHEAD_COST, N_STEPS, mixed_scores, signal_cosines
from rivals.ranking import highest
from rivals.values import weights_without_influence, without_influence

FULL, INFLUENCESPACE = "full", "influencespace"


@dataclass(frozen=True)
class Selection:
    """The m pairs that a selector keeps."""

    indices: Int64[np.ndarray, " m"]  # sorted positions in the source
    rows: Int64[np.ndarray, " m"]  # the same pairs as rows of the training arrays
    weights: Float64[np.ndarray, " m"] | None = None  # mean one; None: all count the same


class Counts(NamedTuple):
    """What the cost of choosing a subset is counted from."""

    pairs: int
    kept: int
    held_out: int
    clusters: int


Scorer = Callable[[TrainingPairs, Reference | None, np.random.Generator], np.ndarray]
Selector = Callable[[TrainingPairs, int, Reference | None, np.random.Generator], np.ndarray]
Weigher = Callable[[np.ndarray, Reference | None], np.ndarray]


class Method(NamedTuple):
    """A way to choose training pairs: all that the rest of the project knows of it.

    Attributes:
        label: its name for readers.
        colour: in figures, told apart by colour-blind readers.
        marker: in figures; no two methods have the same.
        scores: what a rival ranks the pairs by, whatever their number, and keeps the highest of.
        select: the rows that any other rival keeps, any order. Stage 3's own method and the full
            data have neither.
        weigh: what the rows that are kept count; None: all the same.
        needs: stages that it is chosen by, beside the embedding.
        pays_for: stages whose time counts as choosing its subset, beside its own.
        cosines: how many embeddings it compares, for the expected time.
        steps_a_batch: what it computes, in training steps for each batch of the training pairs.
        steps: what it computes beside, in training steps however many pairs there are.
        is_control: whether it is a part of InfluenceSpace by itself, trained where it is asked for.
    """

    label: str
    colour: str
    marker: str
    scores: Scorer | None = None
    select: Selector | None = None
    weigh: Weigher | None = None
    needs: tuple[str, ...] = ()
    pays_for: tuple[str, ...] = ()
    cosines: Callable[[Counts], float] = lambda _: 0.0
    steps_a_batch: float = 0.0
    steps: float = 0.0
    is_control: bool = False

    @property
    def is_chosen_here(self) -> bool:
        """Whether its subset is `select_baseline`'s."""
        return self.scores is not None or self.select is not None


# Every method, in the order of tables; a rival is added here and nowhere else, controls last.
METHODS: dict[str, Method] = {
    FULL: Method("Full data", "#4D4D4D", "s"),
    INFLUENCESPACE: Method(
        *("InfluenceSpace", "#0072B2", "o"),
        pays_for=tuple(
            stage.name
            for stage in (CLUSTERING, TRUST, INFLUENCE, PAIR_INFLUENCE, KEEP_CURVE, CURATION)
        ),
    ),
    "random": Method(
        *("Random", "#999999", "X"),
        select=lambda pairs, size, _, rng: rng.permutation(len(pairs.indices))[:size],
    ),
    "clip_score_filtering": Method(
        *("CLIP score", "#E69F00", "D"),
        scores=lambda pairs, _, __: pairs.clip_scores,
    ),
    "diversity_sampling": Method(
        *("Diversity", "#009E73", "^"),
        select=lambda pairs, size, _, rng: equal_shares(pairs.cluster_assignments, size, rng=rng),
        needs=(CLUSTERING.name,),
        pays_for=(CLUSTERING.name,),
    ),
    "coreset_selection": Method(
        *("Coreset (k-centre)", "#CC79A7", "v"),
        select=lambda pairs, size, _, rng: k_center_greedy(
            pairs.concatenated_embeddings, size, rng=rng
        ),
        cosines=lambda c: 3.0 * c.pairs * c.kept,  # a product with one vector uses no cache
    ),
    "individual_influence": Method(
        *("Per-pair influence (DataInf)", "#56B4E9", "P"),
        scores=lambda pairs, reference, rng: individual_influence(pairs, reference, rng=rng),
        needs=(INFLUENCE.name,),
        steps_a_batch=5.0,
    ),
    "semdedup": Method(
        *("SemDeDup", "#661100", "<"),
        scores=lambda pairs, _, __: (
            -similarity_to_harder(pairs.image_embeddings, pairs.cluster_assignments)
        ),
        needs=(CLUSTERING.name,),
        pays_for=(CLUSTERING.name,),
        cosines=lambda c: c.pairs**2 / c.clusters,
    ),
    "density_pruning": Method(
        *("Density-based pruning", "#DDCC77", ">"),
        select=lambda pairs, size, _, __: density_pruning(
            pairs.image_embeddings, pairs.cluster_assignments, size
        ),
        needs=(CLUSTERING.name,),
        pays_for=(CLUSTERING.name,),
    ),
    "neg_clip_loss": Method(
        *("negCLIPLoss", "#8C510A", "p"),
        scores=lambda pairs, _, rng: neg_clip_loss(pairs, rng=rng),
        cosines=lambda c: agreement_cosines(c.pairs),
    ),
    "neg_clip_loss_normsim": Method(
        *("negCLIPLoss + NormSim", "#999933", "h"),
        scores=lambda pairs, _, rng: neg_clip_loss_normsim(pairs, rng=rng),
        cosines=lambda c: agreement_cosines(c.pairs) + c.pairs * c.held_out,
    ),
    "text_alpha_sampling": Method(
        *("Text sampling (α = 0.5)", "#000000", "*"),
        select=lambda pairs, size, _, rng: alpha_sampling(
            text_clusters(
                pairs.text_embeddings,
                n_clusters=int(pairs.cluster_assignments.max()) + 1,
                rng=rng,
            ),
            size,
            rng=rng,
        ),
        needs=(CLUSTERING.name,),  # as many clusters of captions
        cosines=lambda c: 60.0 * c.pairs * c.clusters,
    ),
    "gradient_similarity": Method(
        *("Gradient similarity", "#332288", "d"),
        scores=lambda pairs, reference, rng: gradient_similarity(pairs, reference, rng=rng),
        needs=(INFLUENCE.name,),
        steps_a_batch=4.0,
    ),
    "held_out_loss": Method(
        *("Held-out loss (RHO, JEST)", "#D55E00", "H"),
        scores=lambda pairs, reference, rng: held_out_loss(pairs, reference, rng=rng),
        needs=(INFLUENCE.name,),
        steps_a_batch=2.0,
        steps=2.0 * MOST_STEPS,
    ),
    "m_flyt": Method(
        *("M-FLYT", "#44AA99", "8"),
        scores=lambda pairs, reference, rng: mixed_scores(pairs, reference, rng=rng),
        needs=(CLUSTERING.name, INFLUENCE.name),
        pays_for=(CLUSTERING.name,),
        cosines=lambda c: signal_cosines(c.pairs, c.held_out, c.clusters),
        steps=LOOK_AHEAD_COST * N_STEPS,
    ),
    "neg_clip_loss_semdedup": Method(
        *("SemDeDup, then negCLIPLoss", "#117733", "$\\clubsuit$"),
        select=lambda pairs, size, _, rng: neg_clip_loss_semdedup(pairs, size, rng=rng),
        needs=(CLUSTERING.name,),
        pays_for=(CLUSTERING.name,),
        cosines=lambda c: agreement_cosines(c.pairs) + c.pairs**2 / c.clusters,
    ),
    # No `chips` (Zhuang et al. 2025, arXiv 2511.18519): of its utility only the parts are known
    # here, not how they are weighed. A Newton-style alignment in the projection heads, all that is
    # trained here, is `individual_influence`; its relevance weight guards general skills that a
    # model trained from scratch has not got.
    "refined_agreement": Method(
        *("Refined agreement (control)", "#882255", "$\\diamondsuit$"),
        scores=lambda pairs, _, rng: refined_agreement(pairs, rng=rng),
        cosines=lambda c: 2.0 * agreement_cosines(c.pairs),
        is_control=True,
    ),
    "influencespace_without_influence": Method(
        *("InfluenceSpace without influence (control)", "#CC6677", "$\\heartsuit$"),
        select=lambda pairs, size, reference, _: without_influence(pairs, size, reference),
        weigh=weights_without_influence,
        needs=(CLUSTERING.name, INFLUENCE.name, PAIR_INFLUENCE.name),
        pays_for=(CLUSTERING.name, TRUST.name, PAIR_INFLUENCE.name),
        is_control=True,
    ),
}
CONTROLS = tuple(name for name, method in METHODS.items() if method.is_control)
BASELINES = tuple(name for name, m in METHODS.items() if m.is_chosen_here and not m.is_control)
TRAINED_BY_DEFAULT = tuple(name for name in METHODS if name not in CONTROLS)


def select_baseline(
    name: str,
    pairs: TrainingPairs,
    reference: Reference | None,
    target_size_ratio: float,
    rng: np.random.Generator,
) -> Selection:
    """The subset that baseline `name` keeps, as many pairs as InfluenceSpace keeps, weighed.

    Args:
        name: one of `BASELINES` or `CONTROLS`.
        pairs: with all held-out pairs, as a rival knows of no trust.
        reference: needed by those that need the stage that trains it.
        target_size_ratio: how many are kept, as a share.
        rng: the method's generator.

    Raises:
        ValueError: a baseline that needs a reference model, or what stage 2 says of pairs, without.
    """
    select, weigh = METHODS[name].select, METHODS[name].weigh
    if select is None:
        return select_highest(
            pairs, baseline_scores(name, pairs, reference, rng), target_size_ratio
        )
    _check_needs(name, reference)
    size = curated_size(len(pairs.indices), target_size_ratio)
    kept = _selection(pairs, select(pairs, size, reference, rng))
    return kept if weigh is None else replace(kept, weights=weigh(kept.rows, reference))


def baseline_scores(
    name: str, pairs: TrainingPairs, reference: Reference | None, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """What a baseline that has `scores` ranks the pairs by, higher is better; as `select_baseline`.

    Raises:
        ValueError: likewise.
    """
    scores = METHODS[name].scores
    assert scores is not None, f"{name} ranks no pairs"
    _check_needs(name, reference)
    return scores(pairs, reference, rng)


def select_highest(
    pairs: TrainingPairs, scores: Float[np.ndarray, " n"], target_size_ratio: float
) -> Selection:
    """The pairs of the highest scores, as many as InfluenceSpace keeps."""
    return _selection(pairs, highest(scores, curated_size(len(pairs.indices), target_size_ratio)))


def _check_needs(name: str, reference: Reference | None) -> None:
    needs = METHODS[name].needs
    if INFLUENCE.name in needs and reference is None:
        raise ValueError(f"{name} needs the reference model")
    if PAIR_INFLUENCE.name in needs and (reference is None or reference.pair_influence is None):
        raise ValueError(f"{name} needs the pair influence of stage 2")


def _selection(pairs: TrainingPairs, kept: np.ndarray) -> Selection:
    rows = np.sort(kept).astype(np.int64)
    return Selection(pairs.indices[rows], rows)

"""What the benchmarks of Flickr8k call regimes, methods and metrics, and where results lie."""

from __future__ import annotations

from pathlib import Path

from baselines import BASELINES, FULL, INFLUENCESPACE
from baselines import CONTROLS as CONTROLS_OF_RUNS
from train_eval import COMPARISONS, RECALL_AT

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
ORACLE, RANDOM = "oracle", "random"
TWO_CUTS = "neg_clip_loss_then_normsim"  # beside the rivals, where it was asked for
METHODS = (
    FULL,
    ORACLE,
    INFLUENCESPACE,
    *BASELINES,
    *CONTROLS_OF_RUNS,
    TWO_CUTS,
)  # in the order of the tables
SAME_EPOCHS, SAME_STEPS = COMPARISONS
BOTH = "both"  # the comparisons that a row of the full data serves
RARE = "rare_group"  # the regime that thins captions about women and girls
REGIME_LABELS = {
    "clean": "Clean",
    "wrong_20": "20 % wrong captions",
    "wrong_40": "40 % wrong captions",
    "wrong_20_concentrated": "20 % wrong, in some topics",
    "near_copies": "Half of it near copies",
    "boilerplate_20": "20 % boilerplate captions",
    RARE: "Women thinned to a tenth",
    "hard_20": "20 % captions of near images",
    "alt_text_20": "20 % alt texts",
    "mixture": "Mixture of faults",
}
# Beside the rivals, but made of InfluenceSpace's own parts: none of them is its best rival.
CONTROLS = ("refined_agreement", "influencespace_without_influence")
FAULTS_COUNT = "faults_count"  # InfluenceSpace to a trainer that heeds no weights of faulty pairs
RIVALS = tuple(method for method in BASELINES if method not in CONTROLS)
# Methods that look at no held-out pair: the same whatever these are. Others are run everywhere.
WITHOUT_HELD_OUT = (
    FULL,
    ORACLE,
    RANDOM,
    "clip_score_filtering",
    "diversity_sampling",
    "coreset_selection",
    "semdedup",
    "density_pruning",
    "neg_clip_loss",
    "neg_clip_loss_semdedup",
    "text_alpha_sampling",
    "refined_agreement",
)


def regime_label(name: str) -> str:
    """The regime for readers; `wrong_N` by its number."""
    share = name.partition("wrong_")[2]
    return REGIME_LABELS.get(name) or (f"{share} % wrong captions" if share else name)


RECALLS = tuple(
    f"{way}_recall@{k}" for k in RECALL_AT for way in ("image_to_text", "text_to_image")
)
METRICS = (
    "mean_recall",
    *RECALLS,
    "validation_loss",
    "test_loss",
    "faults_left",
    "gap",
    *(f"{group}_recall@10" for group in ("female", "male")),
    "age_gap",
    *(f"{group}_recall@10" for group in ("child", "adult")),
    "validation_loss_estimate",
    "seconds",
    "pairs_evaluated",
)
GROUP_METRICS = ("gap", "female_recall@10", "male_recall@10")

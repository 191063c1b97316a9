"""What the results page is made from: one run's numbers, gathered."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8, Int64

from attribution.keep_curve import KeepCurve
from attribution.scores import standardised
from baselines import CONTROLS, FULL, INFLUENCESPACE
from curation import CurationResult
from reporting.ledger import KEPT, LOWERED
from reporting.words import mean_and_spread, paragraphs

RECALL_AT = (1, 5, 10)
GAP_RECALL_AT = 5  # the recall whose gaps are shown; evaluation/demographic_gaps.json has all
TRAIN, VALIDATION, TEST = "train", "validation", "test"
NOISY_SHARE = 0.02  # of wrong test captions from which recall on trusted pairs stands beside
Cell = Mapping[str, Any]  # {"mean": ..., "std": ... or None}


def faults_dropped(
    faults: Sequence[str], groups: Sequence[str], kept_rows: Int64[np.ndarray, " m"]
) -> dict[str, dict[str, int]]:
    """How many pairs of every known fault, and of the faultless, there are and were dropped.

    Args:
        faults: ground truth of each training pair, "" where it has none.
        groups: the rare group of each training pair, "" where it is in none.
        kept_rows: the pairs that a method keeps.
    """
    dropped = np.ones(len(faults), dtype=bool)
    dropped[kept_rows] = False
    labels = np.array([fault or "good" for fault in faults])
    kinds = {kind: labels == kind for kind in sorted(set(labels), key=lambda k: (k == "good", k))}
    if any(groups):
        kinds["rare group"] = np.array([bool(g) for g in groups]) & (labels == "good")
    return {
        kind: {"in_data": int(member.sum()), "dropped": int((member & dropped).sum())}
        for kind, member in kinds.items()
    }


def drop_examples(
    result: CurationResult,
    influence: Float[np.ndarray, " n"],
    agreement: Float[np.ndarray, " n"],
    better_copies: Int64[np.ndarray, " n"],
    cluster_assignments: Int64[np.ndarray, " n"],
    n_examples: int,
) -> list[tuple[int, str]]:
    """Dropped pairs to look at, (row, why): the lowest value of each of as many clusters.

    Clusters come in the order of what they lose, so that the examples are spread over topics.
    Influence and agreement are told in standard deviations from the mean.

    Args:
        result: what is dropped.
        influence: of the pairs as it counts, on any scale; so is `agreement`, which is in log odds.
        agreement: of image and caption.
        better_copies: near copies of a pair's image with a better caption.
        cluster_assignments: topics.
        n_examples: at most.
    """
    dropped = np.ones(len(agreement), dtype=bool)
    dropped[result.curated_rows] = False
    influence, agreement = standardised(influence), standardised(agreement)
    rows = np.flatnonzero(dropped)
    rows = rows[np.argsort(result.pair_values[rows], kind="stable")]
    _, first = np.unique(cluster_assignments[rows], return_index=True)
    examples = []
    for row in rows[np.sort(first)][:n_examples]:
        reasons = [f"influence {influence[row]:+.1f}, agreement {agreement[row]:+.1f}"]
        if result.reviewed is not None and result.reviewed[row] != 0:
            reasons.insert(0, "by the reviewer's say")
        if copies := int(better_copies[row]):
            reasons.append(
                f"{copies} near {'copy' if copies == 1 else 'copies'} with a better caption"
            )
        examples.append((int(row), ", ".join(reasons)))
    return examples


def image_links(summary: Summary, *paths: str) -> str:
    """The figures as images, with links that hold from `results/`."""
    return paragraphs(image_link(path) for path in paths if path in summary.figures)


def image_link(path: str) -> str:
    """A figure as a Markdown image, with a link that holds from `results/`."""
    name = posixpath.basename(path)[: -len(".png")].replace("_", " ")
    return f"![{name}]({posixpath.relpath(path, 'results')})"


@dataclass(frozen=True)
class PairSummary:
    """What a run says of each of its n training pairs. A part is None where it is not known."""

    bands: Int64[np.ndarray, " n"]  # of image-text agreement, 0 the lowest
    band_names: tuple[str, ...]
    near_copies: Bool[np.ndarray, " n"]  # the set has a copy of its image with a better caption
    faulty: Bool[np.ndarray, " n"] | None = None
    influence: Float[np.ndarray, " n"] | None = None  # percent of the validation loss, over n
    cells: Int64[np.ndarray, " n"] | None = None  # of stage 2
    values: Float[np.ndarray, " n"] | None = None  # standard deviations
    kept: Bool[np.ndarray, " n"] | None = None
    reviewed: Int8[np.ndarray, " n"] | None = None  # KEEP, DROP or 0, by a reviewer
    n_overruled: int = 0  # of these, pairs that would have been decided otherwise

    def kinds(self) -> list[dict[str, Any]]:
        """How each kind of pair fares over all topics: band by band, near copies apart.

        `pairs`, and where they are known `kept`, `faulty` and the mean `influence`.
        """
        found = []
        for band, name in enumerate(self.band_names):
            for is_copy in (False, True):
                rows = np.flatnonzero((self.bands == band) & (self.near_copies == is_copy))
                if not len(rows):
                    continue
                found.append(
                    {
                        "agreement": name,
                        "near_copies": is_copy,
                        "pairs": len(rows),
                        "kept": None if self.kept is None else int(self.kept[rows].sum()),
                        "faulty": None if self.faulty is None else int(self.faulty[rows].sum()),
                        "influence": None
                        if self.influence is None
                        else float(self.influence[rows].mean()),
                    }
                )
        return found

    @property
    def n_protected(self) -> int:
        """Kept pairs whose value is below that of a dropped one, a reviewer's aside."""
        if self.values is None or self.kept is None:
            return 0
        free = np.ones(len(self.kept), dtype=bool) if self.reviewed is None else self.reviewed == 0
        cut = self.values[free & ~self.kept].max(initial=-np.inf)
        return int((free & self.kept & (self.values < cut)).sum())

    def band_of_cell(self) -> dict[int, str]:
        """The band of agreement that each cell lies in; empty where the cells are not known."""
        if self.cells is None:
            return {}
        cells, first = np.unique(self.cells, return_index=True)
        bands = self.bands[first]
        return {int(c): self.band_names[b] for c, b in zip(cells, bands, strict=True)}


@dataclass(frozen=True)
class Summary:
    """Everything the results page tells. A part is None where its stage was not loaded."""

    run: dict[str, Any]  # run.json
    n_train: int
    n_validation: int
    n_test_images: int
    n_test_captions: int
    skipped: dict[str, int]  # reason -> pairs
    account: str  # of all captions of the source; "" where it was not saved
    notes: tuple[str, ...]  # how the source was read, a phrase each
    influence: list[dict[str, Any]] | None  # one entry a cluster, most harmful first
    influence_info: dict[str, Any] | None
    influence_validation: dict[str, Any] | None  # stage2/influence_validation.json
    influence_scores: np.ndarray | None  # (K,) relative change of the validation loss
    influence_stderr: np.ndarray | None  # (K,)
    pair_quality: dict[str, Any] | None  # stage2/pair_influence_quality.json
    pairs: PairSummary
    clusters: list[dict[str, Any]]
    categorization: list[dict[str, Any]] | None
    cluster_weights: dict[str, float] | None
    decisions: list[dict[str, Any]] | None  # split, decision, reason, pairs: sums of the ledger
    group_retention: dict[str, dict[str, Any]] | None  # stage3/group_retention.json
    sample_weights: np.ndarray | None  # (m,)
    n_curated: int  # as many as the share kept makes, whether stage 3 has chosen them or not
    thresholds: dict[str, float]
    faults: dict[str, dict[str, Any]] | None  # method -> fault -> in_data, dropped
    dropped_examples: list[dict[str, Any]]
    # What was measured of methods; all empty where none was trained.
    # comparison -> method -> metric -> mean, std
    metrics: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    encoder_metrics: dict[str, float] = field(default_factory=dict)
    efficiency: dict[str, dict[str, Any]] = field(default_factory=dict)
    gaps: dict[str, Any] = field(default_factory=dict)  # comparison -> method -> attribute
    # method -> one loss history a seed
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    changes: str = ""  # the page's section on another run that was compared
    cut_off: str = ""  # how many captions the encoder did not read to their ends
    contact_sheets: tuple[str, ...] = ()  # their paths in the tree, where they were drawn
    figures: tuple[str, ...] = ()  # the same of the figures
    trust: dict[str, Any] | None = None  # stage2/wrong_captions.json and `taken_at_word`
    log_odds: dict[str, np.ndarray] | None = None  # that pairs are right, by split
    trusted: dict[str, np.ndarray] | None = None  # of the held-out splits
    trusted_metrics: dict[str, dict[str, dict[str, Any]]] | None = None  # on trusted test pairs
    trusted_encoder_metrics: dict[str, float] | None = None
    curve: KeepCurve | None = None  # recall and loss against the share kept

    @property
    def n_seeds(self) -> int:
        """Training repeats of every method."""
        return max((len(runs) for runs in self.histories.values()), default=1)

    @property
    def is_curated(self) -> bool:
        """Whether pairs were chosen, now or in a run that was loaded."""
        return self.sample_weights is not None

    @property
    def n_lowered(self) -> int:
        """Pairs that look faulty and are kept all the same, with a lower weight."""
        fate = KEPT, LOWERED
        rows = self.decisions or []
        return sum(int(row["pairs"]) for row in rows if (row["decision"], row["reason"]) == fate)

    @property
    def n_dropped(self) -> int:
        """Training pairs outside the curated set."""
        return self.n_train - self.n_curated

    @property
    def attributes(self) -> dict[str, dict[str, Any]]:
        """The groups of every attribute with their sizes, which no method changes."""
        for methods in self.gaps.values():
            for attributes in methods.values():
                return {attribute: state["groups"] for attribute, state in attributes.items()}
        return {}

    @property
    def n_scored_groups(self) -> int:
        """The most groups of one attribute that have enough test captions to be scored."""
        return max(
            (
                sum(not g["too_small"] for g in groups.values())
                for groups in self.attributes.values()
            ),
            default=0,
        )

    def mean_recall(self, comparison: str, method: str) -> Cell:
        """A method's mean recall: both directions, at 1, 5 and 10."""
        cell: Cell = self.metrics[comparison][method]["mean_recall"]
        return cell

    @property
    def shows_trusted(self) -> bool:
        """Whether recall on trusted test pairs is known and may differ from that on all."""
        if not self.trusted_metrics or self.trust is None:
            return False
        return bool((self.trust[TEST]["share"] or 0.0) >= NOISY_SHARE)

    def ranking(self, comparison: str) -> list[str]:
        """The methods of the curated size by falling mean recall."""
        methods = [m for m in self.metrics[comparison] if m != FULL]
        return sorted(methods, key=lambda m: -self.mean_recall(comparison, m)["mean"])

    def table_order(self, comparison: str) -> list[str]:
        """The methods by falling mean recall, the full data last."""
        return [*self.ranking(comparison), *({FULL} & set(self.metrics[comparison]))]

    def rivals(self, comparison: str) -> list[str]:
        """Those of them that InfluenceSpace is measured by: neither itself nor its controls."""
        return [m for m in self.ranking(comparison) if m not in (INFLUENCESPACE, *CONTROLS)]

    def best_rival(self, comparison: str) -> str | None:
        """The best of the rivals; None without one."""
        return next(iter(self.rivals(comparison)), None)


def recall(summary: Summary, comparison: str, method: str) -> str:
    """A method's mean recall with its spread."""
    return mean_and_spread(summary.mean_recall(comparison, method), 2)


def trusted_recall(summary: Summary, comparison: str, method: str) -> str:
    """A method's mean recall with its spread on trusted test pairs."""
    if summary.trusted_metrics is None:
        return "–"
    return mean_and_spread(summary.trusted_metrics[comparison][method]["mean_recall"], 2)


def interval_text(part: Mapping[str, Any]) -> str:
    """The bounds of an estimated share in percent; empty where it is not known."""
    if part["share"] is None:
        return ""
    return f"{100 * part['low']:.1f} to {100 * part['high']:.1f}"


def estimated_share(part: Mapping[str, Any]) -> str:
    """An estimated share in percent with its interval."""
    if part["share"] is None:
        return "unknown"
    return f"{100 * part['share']:.1f} % ({interval_text(part)})"


def gap_text(state: Mapping[str, Any]) -> str:
    """An attribute's gap with its interval."""
    if state["gap"] is None:
        return "–"
    gap = state["gap"][f"recall@{GAP_RECALL_AT}"]
    low, high = gap["interval_95"]
    return f"{gap['gap']:.1f} ({low:.1f} to {high:.1f})"

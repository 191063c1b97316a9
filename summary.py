"""What the results page is made from, and how it writes numbers, names and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from visualize import FULL, INFLUENCESPACE, mean_and_spread, method_label, shorten

RANDOM = "random"
GAP_RECALL_AT = 5  # the recall whose gaps are shown; evaluation/demographic_gaps.json has all
TRAIN, VALIDATION, TEST = "train", "validation", "test"
COMPARISON_SHORT = {"same_epochs": "same epochs", "same_steps": "same steps"}
FAULT_LABELS = {
    "wrong_caption": "wrong captions",
    "boilerplate": "boilerplate captions",
    "near_copy": "near copies",
    "rare group": "the rare group",
    "good": "good pairs",
}
NOISY_SHARE = 0.02  # of wrong test captions from which recall on trusted pairs stands beside
FREE_PREDICTIONS = {  # of influence, beside the estimate
    "size": "cluster size",
    "clip_score": "mean CLIP score",
    "gradient_similarity": "gradient similarity",
}

Cell = Mapping[str, Any]  # {"mean": ..., "std": ... or None}


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
        """Kept pairs whose value is below that of a dropped one."""
        if self.values is None or self.kept is None or self.kept.all():
            return 0
        return int((self.kept & (self.values < self.values[~self.kept].max())).sum())

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
    n_curated: int
    thresholds: dict[str, float]
    metrics: dict[str, dict[str, dict[str, Any]]]  # comparison -> method -> metric -> mean, std
    encoder_metrics: dict[str, float]
    efficiency: dict[str, dict[str, Any]]
    gaps: dict[str, Any]  # comparison -> method -> attribute
    histories: dict[str, list[dict[str, Any]]]  # method -> one loss history a seed
    faults: dict[str, dict[str, Any]] | None  # method -> fault -> in_data, dropped
    dropped_examples: list[dict[str, Any]]
    contact_sheets: tuple[str, ...] = ()  # their paths in the tree, where they were drawn
    figures: tuple[str, ...] = ()  # the same of the figures
    trust: dict[str, Any] | None = None  # stage2/wrong_captions.json and `taken_at_word`
    log_odds: dict[str, np.ndarray] | None = None  # that pairs are right, by split
    trusted: dict[str, np.ndarray] | None = None  # of the held-out splits
    trusted_metrics: dict[str, dict[str, dict[str, Any]]] | None = None  # on trusted test pairs
    trusted_encoder_metrics: dict[str, float] | None = None

    @property
    def n_seeds(self) -> int:
        """Training repeats of every method."""
        return max((len(runs) for runs in self.histories.values()), default=1)

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

    def best_rival(self, comparison: str) -> str | None:
        """The best method of the curated size other than InfluenceSpace."""
        return next((m for m in self.ranking(comparison) if m != INFLUENCESPACE), None)


# --- Markdown ---------------------------------------------------------------------------------


def escape(text: Any, width: int = 160) -> str:
    """Text from outside as one line of Markdown that shows it as it is, in a table too."""
    special = r"[\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word is none
    return re.sub(special, r"\\\g<0>", shorten(str(text), width))


def paragraphs(parts: Iterable[str]) -> str:
    """The parts that are not empty, apart by blank lines."""
    return "\n\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], n_left: int = 1) -> str:
    """A Markdown table; the first `n_left` columns to the left, the others to the right."""
    rule = [":--" if i < n_left else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def bullets(items: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {item}" for item in items)


# --- Numbers and names ------------------------------------------------------------------------


def share(part: float, whole: float) -> str:
    """A share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def quantity(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def enumerate_words(words: Sequence[str]) -> str:
    """Words joined as in a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def method_name(method: str) -> str:
    """The method in a table, InfluenceSpace in bold."""
    label = escape(method_label(method))
    return f"**{label}**" if method == INFLUENCESPACE else label


def names(methods: Sequence[str]) -> str:
    """Methods joined as in a sentence."""
    return enumerate_words([escape(method_label(m)) for m in methods])


def fault_label(fault: str) -> str:
    """A kind of fault for people."""
    return FAULT_LABELS.get(fault, escape(fault.replace("_", " ")))


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

"""What was kept and what was thrown away, in sentences."""

from __future__ import annotations

from collections import Counter

import numpy as np

from curation import DROP, KEEP
from reporting.standing import is_narrow
from reporting.summary import Summary
from reporting.verdicts import effective_size
from reporting.widths import shorten
from reporting.words import count, share

MAX_PATH = 120  # columns of a file's name in a sentence
N_REASONS = 4  # named in the printed summary


def kept_sentence(summary: Summary) -> str:
    """How many pairs the curated set has, or that there is none."""
    if not summary.is_curated:
        return "No training pairs were chosen: stage 3 was not run or loaded."
    return (
        f"Kept {summary.n_curated:,} of {summary.n_train:,} training pairs"
        f" ({share(summary.n_curated, summary.n_train)}){lowered_clause(summary)}."
    )


def lowered_clause(summary: Summary) -> str:
    """How many of the kept pairs hardly count, to follow on; empty where none does."""
    if not (n := summary.n_lowered):
        return ""
    look, weigh = ("looks", "weighs") if n == 1 else ("look", "weigh")
    return (
        f"; {n:,} of them {look} faulty and {weigh} {summary.thresholds['faulty_weight']:g} times"
        " as much as others"
    )


def review_sentence(summary: Summary) -> str:
    """What a reviewer has decided; empty where nobody has."""
    said = summary.pairs.reviewed
    if said is None:
        return ""
    kept, dropped = (int((said == word).sum()) for word in (KEEP, DROP))
    flag = f"--overrides {shorten(str(summary.run['settings']['overrides']), MAX_PATH)}"
    return (
        f"{count(kept, 'pair')} kept and {dropped:,} dropped by the reviewer's say ({flag});"
        f" {summary.pairs.n_overruled:,} of them would have been decided otherwise."
    )


def skipped_sentence(summary: Summary) -> str:
    """How many pairs could not be used and why; empty where all could."""
    reasons = [f"{n:,} {reason}" for reason, n in Counter(summary.skipped).most_common() if n]
    if not reasons:
        return ""
    named = [*reasons[:N_REASONS], "others"] if len(reasons) > N_REASONS else reasons
    return f"Skipped {sum(summary.skipped.values()):,}: {', '.join(named)} (stage1/skipped.csv)."


def weights_sentence(summary: Summary) -> str:
    """How far the weights of the kept pairs spread; empty where there are none."""
    weights = summary.sample_weights
    if weights is None:
        return ""
    if np.ptp(weights) == 0:
        return "All kept pairs have the same weight."
    text = (
        f"Weights of the kept pairs run from {weights.min():.2f} to {weights.max():.2f} around a"
        f" mean of one; they count like {effective_size(weights):,.0f} pairs of equal weight."
    )
    if n := summary.n_lowered:
        text += (
            f" {count(n, 'pair')} that look{'s' if n == 1 else ''} faulty"
            f" {'is' if n == 1 else 'are'} kept all the same; `--faulty_weight` says how much of"
            f" the others' weight {'it has' if n == 1 else 'they have'}."
        )
    return text


def value_sentence(summary: Summary) -> str:
    """What decides which pairs are dropped; empty where nothing was curated."""
    if summary.categorization is None:
        return ""
    quality, copies = summary.pair_quality or {}, summary.thresholds["copy_price"]
    weights = {
        "influence": quality.get("influence_weight", 1.0),
        "image-text agreement": summary.thresholds["agreement_weight"],
    }
    terms = [
        f"{'' if weight == 1 else f'{weight:.2g} times '}its {name}"
        for name, weight in weights.items()
        if weight
    ]
    if is_narrow(summary):
        terms.append("how near it is to what the held-out pairs show")
    unit = ("", ", both", ", all")[min(len(terms), 3) - 1] + " in standard deviations"
    parts = f"{' plus '.join(terms)}{unit}" if terms else "the same for all"
    if copies:
        parts += f", less {copies:g} for every near copy of it that has a better caption"
    text = f"Dropped are the pairs of lowest value: a pair's value is {parts}."
    if n := summary.pairs.n_protected:
        text += (
            f" {count(n, 'pair')} of lower value stay{'s' if n == 1 else ''} as the best of a"
            " cluster or of a demographic group."
        )
    return text


def kinds_sentence(summary: Summary) -> str:
    """What was kept of the pairs that agree least and of near copies, over all topics."""
    pairs = summary.pairs
    if pairs.kept is None or pairs.kept.all():
        return ""
    sentences = []
    least = pairs.bands == 0
    if not least.all():
        sentences.append(
            f"Over all topics, {_share_of(pairs.kept, least)} of the {least.sum():,} pairs whose"
            f" image and text agree least ({pairs.band_names[0]}) were kept and"
            f" {_share_of(pairs.kept, ~least)} of the others."
        )
    if n := int(pairs.near_copies.sum()):
        sentences.append(
            f"Of {count(n, 'pair')} for whose image the set has a copy with a better caption,"
            f" {_share_of(pairs.kept, pairs.near_copies)} {'was' if n == 1 else 'were'} kept."
        )
    return " ".join(sentences)


def _share_of(kept: np.ndarray, rows: np.ndarray) -> str:
    return share(int(kept[rows].sum()), int(rows.sum()))

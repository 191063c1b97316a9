"""What a run stands on: which held-out pairs are right, what they are about, who is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attribution.keep_curve import FEWEST_ASKED
from reporting.how_much import share_warnings
from reporting.summary import (
    TEST,
    TRAIN,
    VALIDATION,
    Summary,
    estimated_share,
    image_links,
    interval_text,
)
from reporting.words import bullets, count, enumerate_words, escape, paragraphs, share, table

TRUST_FIGURE = "stage2/wrong_captions.png"
WARN_SHARE, WARN_LOW = 0.10, 0.05  # of wrong held-out captions, and the low end of its interval
NARROW = 0.05  # weight of nearness to the held-out pairs above which it is spoken of


def warnings_on_top(summary: Summary) -> str:
    """The run's warnings as they stand at the top of a page."""
    found = [*summary.run["warnings"], *trust_warnings(summary), *share_warnings(summary)]
    return paragraphs(f"> [!WARNING]\n> **{escape(w, 1000)}**" for w in found)


def trust_warnings(summary: Summary) -> list[str]:
    """What to beware of where many held-out captions are estimated to be wrong."""
    trust, found = summary.trust, []
    if trust is None:
        return []
    if _is_noisy(trust[TEST]):
        found.append(
            "Recall on all test pairs is an underestimate:"
            f" {estimated_share(trust[TEST])} of the test captions are estimated to be wrong;"
            " see recall on trusted pairs, or bring clean data with --test_data."
        )
    if _is_noisy(trust[VALIDATION]):
        where = "as noisy as the pool" if _as_noisy_as_the_pool(trust) else "noisy"
        found.append(
            f"Held-out pairs are {where}: {estimated_share(trust[VALIDATION])} of the validation"
            f" captions are estimated to be wrong; {_asked_clause(trust)}; bring a clean target"
            " with --val_data."
        )
    if few := few_asked(trust):
        found.append(
            f"{few}; fewer than {FEWEST_ASKED} make every influence a guess: bring more with"
            " --val_data or raise --max_val_samples."
        )
    return found


def standing_section(summary: Summary) -> str:
    """The data, the encoder, how many captions are wrong, and who is asked what helps."""
    return paragraphs(
        (
            *_data(summary),
            judged_sentence(summary),
            _trust_table(summary),
            narrow_sentence(summary),
            image_links(summary, TRUST_FIGURE, "stage1/cluster_sizes.png"),
        )
    )


def _data(summary: Summary) -> list[str]:
    """Where the pairs come from, how they were read and what could not be used."""
    run = summary.run
    description = escape(run["dataset_description"], 1000).rstrip(".")
    sentences = [
        f"**{escape(run['dataset'])}**: {description}.",
        f"{escape(summary.account, 1000)}." if summary.account else "",
        _counts(summary) if summary.trust is None else "",  # else they stand in the table
        "No image is in two of the splits.",
        _skipped(summary),
        f"Encoder: **{escape(run['encoder'])}**. The training pairs form"
        f" {count(len(summary.clusters), 'cluster')} by topic.",
    ]
    return [
        " ".join(filter(None, sentences)),
        bullets([escape(note, 1000) for note in summary.notes]),
        f"{escape(summary.cut_off, 1000)}." if summary.cut_off else "",
    ]


def _counts(summary: Summary) -> str:
    return (
        f"{summary.n_train:,} training and {summary.n_validation:,} validation pairs;"
        f" {summary.n_test_images:,} test images with {summary.n_test_captions:,} captions."
    )


def _skipped(summary: Summary) -> str:
    reasons = [f"{n:,} × {escape(reason)}" for reason, n in summary.skipped.items() if n]
    if reasons:
        return f"Skipped and listed in `stage1/skipped.csv`: {', '.join(reasons)}."
    return "" if summary.account else "No pair that was read was skipped."


def judged_sentence(summary: Summary) -> str:
    """Whether held-out pairs were judged before they judge, and what came of it."""
    trust = summary.trust
    if trust is None:
        return "How many captions are wrong was not estimated."
    n, asked = trust[VALIDATION]["pairs"], _n_asked(trust)
    text = (
        f"Validation pairs were taken at their word (`--trust_validation`): all {n:,} are asked"
        " what helps, right or wrong."
        if trust["taken_at_word"]
        else "Validation pairs were judged before they judge, by how well image and caption agree:"
        f" {asked:,} of {n:,} {_is_or_are(asked)} asked what helps{_not_asked(trust[VALIDATION])}."
    )
    trusted = trust[TEST]["trusted"]
    of_test = f"Of {count(trust[TEST]['pairs'], 'test pair')} {trusted:,}"
    return f"{text} {of_test} {_is_or_are(trusted)} trusted."


def wrong_captions_sentence(summary: Summary) -> str:
    """The estimated shares of wrong captions, and how many pairs judge; empty if not estimated."""
    trust = summary.trust
    if trust is None:
        return ""
    shares = ", ".join(f"{s} {estimated_share(trust[s])}" for s in (TRAIN, VALIDATION, TEST))
    asked = _n_asked(trust)
    return (
        f"Wrong captions, estimated: {shares}; {asked:,} of"
        f" {count(trust[VALIDATION]['pairs'], 'validation pair')} {_is_or_are(asked)} asked"
        " what helps."
    )


def few_asked(trust: Mapping[str, Any]) -> str:
    """A clause on how few validation pairs say what helps; empty where there are enough."""
    n = _n_asked(trust)
    if n >= FEWEST_ASKED:
        return ""
    return f"Only {count(n, 'validation pair')} {_is_or_are(n)} asked what helps"


def is_narrow(summary: Summary) -> bool:
    """Whether nearness to the held-out pairs counts in the values."""
    return bool((summary.pair_quality or {}).get("relevance_weight", 0.0) > NARROW)


def narrow_sentence(summary: Summary) -> str:
    """What it means that the held-out pairs are unlike the pool; empty where they are like it."""
    quality = summary.pair_quality
    if quality is None or not is_narrow(summary):
        return ""
    auc = quality.get("relevance_auc")
    how = "" if auc is None else f" (AUC {auc:.2f}; 0.5 would be by chance)"
    return (
        "The held-out pairs are about something narrower than the pool: a classifier tells them"
        f" from training pairs{how}. So nearness to them counts in a pair's value, with weight"
        f" {quality['relevance_weight']:.2f}."
    )


def guard(quality: Mapping[str, Any] | None) -> str:
    """A clause that says how much influence counts and why not in full; empty where it does."""
    why = (quality or {}).get("guard", "")
    if quality is None or not why:
        return ""
    weight = quality.get("influence_weight", 0.0)
    if not weight:
        return f"influence does not count in the values, because {why}"
    of_it = quality.get("guard_weight")
    part = "" if of_it is None else f", {100 * of_it:.0f} % of what its reliability allows,"
    return f"influence counts with weight {weight:.2f}{part} in the values, because {why}"


def guard_sentence(summary: Summary) -> str:
    """The guard as a sentence; empty where influence counts in full."""
    clause = guard(summary.pair_quality)
    return f"{clause[0].upper()}{clause[1:]}." if clause else ""


def _is_noisy(part: Mapping[str, Any]) -> bool:
    """Whether enough captions of a split are wrong, beyond the error of the estimate."""
    return part["share"] is not None and part["share"] >= WARN_SHARE and part["low"] > WARN_LOW


def _as_noisy_as_the_pool(trust: Mapping[str, Any]) -> bool:
    """Whether the intervals of training and validation pairs overlap."""
    pool, target = trust[TRAIN], trust[VALIDATION]
    if pool["share"] is None or target["share"] is None:
        return False
    return bool(pool["low"] <= target["high"] and target["low"] <= pool["high"])


def _trust_table(summary: Summary) -> str:
    trust = summary.trust
    if trust is None:
        return ""
    header = ["split", "pairs", "wrong captions", "95 % interval (%)", "trusted", "near copies"]
    rows = []
    for split in (TRAIN, VALIDATION, TEST):
        part = trust[split]
        rows.append(
            [
                split,
                f"{part['pairs']:,}",
                "–" if part["share"] is None else share(part["share"], 1),
                interval_text(part) or "–",
                *(
                    f"{part[name]:,}" if name in part else "–"
                    for name in ("trusted", "near_copies")
                ),
            ]
        )
    note = (
        "Wrong captions, boilerplate among them, are estimated from agreement (docs/method.md); the"
        " interval holds the sampling of the pairs alone."
    )
    return f"{table(header, rows)}\n\n{note}"


def _asked_clause(trust: Mapping[str, Any]) -> str:
    """How many validation pairs say what helps, and by what right."""
    asked, n = _n_asked(trust), trust[VALIDATION]["pairs"]
    if trust["taken_at_word"]:
        return f"all {n:,} are asked what helps all the same (--trust_validation)"
    return f"{asked:,} of {n:,} {_is_or_are(asked)} trusted and asked what helps"


def _n_asked(trust: Mapping[str, Any]) -> int:
    """How many validation pairs say what helps."""
    part = trust[VALIDATION]
    return int(part["pairs"] if trust["taken_at_word"] else part["trusted"])


def _not_asked(part: Mapping[str, Any]) -> str:
    """How many validation pairs are not asked and why; empty where all are."""
    n = part["pairs"] - part["trusted"]
    n_copies = min(n, part["near_copies"])
    reasons = {
        "as near copies of others that are": n_copies,
        "because image and caption may not belong together": n - n_copies,
    }
    told = {reason: k for reason, k in reasons.items() if k}
    named = [f"{k:,} {reason}" if len(told) > 1 else reason for reason, k in told.items()]
    return f"; {n:,} {_is_or_are(n)} not, {enumerate_words(named)}" if n else ""


def _is_or_are(n: int) -> str:
    """The verb that fits a number."""
    return "is" if n == 1 else "are"

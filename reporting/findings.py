"""What a run's numbers are judged to say: the answer, the findings and the limitations.

Every sentence that judges is chosen by numbers; `verdicts` says when two of them differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from baselines import FULL, INFLUENCESPACE
from reporting.estimate import doubts, undecided_signs
from reporting.kept import kept_sentence, kinds_sentence
from reporting.standing import few_asked
from reporting.summary import GAP_RECALL_AT, Summary, gap_text, recall, trusted_recall
from reporting.verdicts import (
    against,
    clear_outcome,
    compare,
    gap_change,
    n_undecided_signs,
    seeds_to_decide,
)
from reporting.words import (
    COMPARISON_LABELS,
    COMPARISON_SHORT,
    RANDOM,
    enumerate_words,
    escape,
    fault_label,
    method_label,
    method_name,
    names,
    seconds_text,
    share,
)

MAX_USEFUL_SEEDS = 1000  # above which no number of seeds is advised


# --- The answer -------------------------------------------------------------------------------


def answer(summary: Summary) -> str:
    """The opening paragraph: how many pairs were kept and how the models trained on them fare."""
    sentences = [f"**{kept_sentence(summary)}**"]
    if summary.is_curated and (doubt := doubts(summary)):
        sentences.append(doubt)
    for comparison in summary.metrics:
        sentences += [s for s in _answer_for(summary, comparison) if s not in sentences]
    if summary.metrics:
        sentences.append(
            "Mean recall is over both directions at 1, 5 and 10, in percent of the queries on"
            f" {summary.n_test_images:,} unseen images"
            + (f"; ± is the standard deviation over {summary.n_seeds} training seeds."
               if summary.n_seeds > 1 else ", from one training seed.")
            + (" Methods are compared on all test pairs." if summary.shows_trusted else "")
        )  # fmt: skip
    elif summary.is_curated:
        sentences.append("Nothing was trained on them: what they are worth was not measured.")
    return " ".join(sentences)


def _answer_for(summary: Summary, comparison: str) -> list[str]:
    methods = summary.metrics[comparison]
    where = f"With the {COMPARISON_LABELS[comparison].lower()}"
    if INFLUENCESPACE not in methods:
        return ["InfluenceSpace was not among the methods trained."]
    own = recall(summary, comparison, INFLUENCESPACE)
    clauses = [f"{where} InfluenceSpace reaches a mean recall of **{own}**"]
    if summary.shows_trusted:
        clauses[0] += (
            f" on all test pairs and of **{trusted_recall(summary, comparison, INFLUENCESPACE)}**"
            f" on the {(summary.trust or {})['test']['trusted']:,} trusted ones"
        )
    best = summary.best_rival(comparison)
    for rival in dict.fromkeys((RANDOM, best)):
        if rival is None or rival not in methods:
            continue
        other = "random selection" if rival == RANDOM else escape(method_label(rival))
        other = f"the best rival of its size, {other}" if rival == best else other
        other += f" ({recall(summary, comparison, rival)})"
        clauses.append(f"it {against(compare(summary, comparison, INFLUENCESPACE, rival), other)}")
    if FULL in methods:
        clauses.append(f"the full data reaches {recall(summary, comparison, FULL)}")
    return ["; ".join(clauses) + "."]


# --- Key findings -----------------------------------------------------------------------------


def key_findings(summary: Summary) -> list[str]:
    """What this run's numbers say, each a sentence or two."""
    findings = [*_ranking_findings(summary), *_against_full(summary)]
    findings += [*_time_finding(summary), *_encoder_finding(summary)]
    if kinds := kinds_sentence(summary):
        findings.append(kinds)
    findings += [*_fault_findings(summary), *_gap_findings(summary)]
    return findings or [kept_sentence(summary)]


def _ranking_findings(summary: Summary) -> list[str]:
    """How InfluenceSpace stands at the same size; comparisons that say the same in one finding."""
    told: dict[str, list[str]] = {}
    for comparison in summary.metrics:
        if text := _ranking_finding(summary, comparison):
            told.setdefault(text, []).append(COMPARISON_LABELS[comparison].lower())
    one_seed = " (one seed)" if summary.n_seeds == 1 else ""
    return [
        f"{(where := enumerate_words(labels))[0].upper()}{where[1:]}{one_seed}: {text}"
        for text, labels in told.items()
    ]


def _ranking_finding(summary: Summary, comparison: str) -> str:
    """Who is ahead in one comparison, and who does not beat random."""
    ranking, rivals = summary.ranking(comparison), summary.rivals(comparison)
    if len(ranking) < 2 or not rivals:
        return ""
    if INFLUENCESPACE in ranking:
        text = f"InfluenceSpace {_standing_among(summary, comparison, rivals)}."
    else:
        text = (
            f"{method_name(ranking[0])} has the highest mean recall at the curated size,"
            f" {recall(summary, comparison, ranking[0])}."
        )
    if RANDOM in rivals:
        losers = [
            m
            for m in rivals
            if m != RANDOM and clear_outcome(compare(summary, comparison, m, RANDOM)) == "loses"
        ]
        if losers:
            text += f" {names(losers)} {'lose' if losers[1:] else 'loses'} to random selection."
    return text


def _standing_among(summary: Summary, comparison: str, rivals: Sequence[str]) -> str:
    """Whom InfluenceSpace loses to, whom it cannot be told from, and that it beats the others."""
    outcomes = {m: clear_outcome(compare(summary, comparison, INFLUENCESPACE, m)) for m in rivals}
    verbs = {"loses": "**loses to**", "undecided": "cannot be told from"}
    clauses = [
        f"{verb} {names([m for m in rivals if outcomes[m] == outcome])}"
        for outcome, verb in verbs.items()
        if outcome in outcomes.values()
    ]
    beaten = [m for m in rivals if outcomes[m] == "wins"]
    if len(beaten) == 1:
        clauses.append(f"beats {names(beaten)}")
    elif beaten:
        whom = f"the other {len(beaten)} rivals" if clauses else f"all {len(beaten)} rivals"
        clauses.append(f"beats {whom} of its size")
    return enumerate_words(clauses)


def _against_full(summary: Summary) -> list[str]:
    """What the curated set saves and costs beside the full data."""
    findings = []
    for comparison, methods in summary.metrics.items():
        if {FULL, INFLUENCESPACE} <= set(methods):
            cost = summary.efficiency[INFLUENCESPACE][comparison]["relative_training_cost"]
            steps = "as many" if cost == 1 else f"{share(cost, 1)} of the"
            v = compare(summary, comparison, INFLUENCESPACE, FULL)
            fewer = share(summary.n_dropped, summary.n_train)
            findings.append(
                f"With {fewer} fewer pairs and {steps} training steps, InfluenceSpace"
                f" {against(v, 'the full data')}."
            )
    return findings


def _time_finding(summary: Summary) -> list[str]:
    if not {FULL, INFLUENCESPACE} <= set(summary.efficiency):
        return []
    own, full = summary.efficiency[INFLUENCESPACE], summary.efficiency[FULL]
    seconds = [e["same_epochs"]["training_seconds"] for e in (full, own)]
    saved = seconds[0]["mean"] - seconds[1]["mean"]
    choosing = own["curation_seconds"]
    took = f"Choosing the pairs took {seconds_text(choosing)} s"
    if saved <= max(cell["std"] or 0.0 for cell in seconds):  # no more than runs differ anyway
        return [f"{took} and saved no measurable training time."]
    balance = "more" if choosing > saved else "less"
    return [
        f"{took}, {balance} than the {seconds_text(saved)} s that one"
        f" training run of the same number of epochs saves"
        + (f" ({math.ceil(choosing / saved):,} such runs pay for it)." if choosing > saved else ".")
    ]


def _encoder_finding(summary: Summary) -> list[str]:
    own = summary.encoder_metrics.get("mean_recall")
    trained: dict[str, list[float]] = {}
    for methods in summary.metrics.values():
        for method, cells in methods.items():
            trained.setdefault(method, []).append(cells["mean_recall"]["mean"])
    if own is None or not trained:
        return []
    if min(map(min, trained.values())) > own:
        return [f"Every trained model is above the encoder's own mean recall of {own:.2f}."]
    below = [m for m, means in trained.items() if max(means) <= own]
    if not below:
        return []
    rest = names(below) if len(below) < len(trained) else "any trained model"
    reason = (
        ": its joint space is a closed-form solution on all training pairs, the trained models' "
        "is learnt in a few epochs"
        if summary.run["encoder"] == "embedded"
        else ""
    )
    return [f"The encoder's own mean recall, {own:.2f}, is not reached by {rest}{reason}."]


def _fault_findings(summary: Summary) -> list[str]:
    counts = (summary.faults or {}).get(INFLUENCESPACE)
    if not counts:
        return []
    shares = [
        f"{share(n['dropped'], n['in_data'])} of {fault_label(fault)}"
        for fault, n in counts.items()
        if n["in_data"]
    ]
    chance = share(summary.n_dropped, summary.n_train)
    return [
        f"InfluenceSpace dropped {enumerate_words(shares)}; a blind choice drops {chance} of each."
    ]


def _gap_findings(summary: Summary) -> list[str]:
    """Gaps that differ from the full data's beyond their intervals; the others by name alone."""
    changed: dict[str, list[str]] = {"wider": [], "narrower": []}
    overlapping = []
    key = f"recall@{GAP_RECALL_AT}"
    for comparison, methods in summary.gaps.items():
        if not {FULL, INFLUENCESPACE} <= set(methods):
            continue
        for attribute in methods[FULL]:
            full, own = (methods[m][attribute] for m in (FULL, INFLUENCESPACE))
            if full["gap"] is None or own["gap"] is None:
                continue
            where = f"{escape(attribute)}, {COMPARISON_SHORT[comparison]}"
            change = gap_change(full["gap"][key], own["gap"][key])
            if change:
                numbers = f"{gap_text(own)} points against {gap_text(full)}"
                changed[change].append(f"{where}: {numbers}")
            else:
                overlapping.append(where)
    findings = [
        f"The gap is {change} than the full data's for {'; '.join(where)}."
        for change, where in changed.items()
        if where
    ]
    if overlapping:
        findings.append(
            "Demographic gaps: no change against the full data can be claimed where the intervals"
            f" overlap ({'; '.join(overlapping)})."
        )
    return findings


# --- Limitations ------------------------------------------------------------------------------


def limitations(summary: Summary) -> list[str]:
    """What this run's numbers do not show, and how to narrow it."""
    items = [*_seed_limits(summary), *_test_limits(summary), *_trust_limits(summary)]
    if summary.faults:
        items.append(
            "The data are drawn, with faults put in at known shares; nothing here says how well the"
            " method does on photographs. Repeat it on your own pairs (`--dataset folder`)."
        )
    items.append(
        "Only linear maps on frozen features are trained. Whether the same pairs help a model"
        " whose towers are trained is not measured here."
    )
    if summary.influence and n_undecided_signs(summary.influence):
        items.append(undecided_signs(summary.influence) + _narrowing(summary.influence_info or {}))
    if (quality := summary.pair_quality) and quality["pairs_evaluated"] < summary.n_train:
        n_inferred = summary.n_train - quality["pairs_evaluated"]
        items.append(
            f"For {share(n_inferred, summary.n_train)} of the pairs influence is inferred, not"
            " evaluated: what sets a pair apart from others of its kind and topic is not seen there"
            " (`--influence_budget` evaluates more)."
        )
    items += _fault_limits(summary)
    return items


def _narrowing(info: Mapping[str, Any]) -> str:
    """Which flags make standard errors smaller."""
    if info.get("estimator") == "first_order":
        return (
            " More pairs per cluster (`--samples_per_cluster`) and more reference models"
            " (`--influence_seeds`) narrow it."
        )
    return " More reference models (`--influence_seeds`) narrow it."


def _seed_limits(summary: Summary) -> list[str]:
    if not summary.metrics:
        return []
    n = summary.n_seeds
    items = [
        f"Each method's subset was chosen once and trained {n} time{'s' if n > 1 else ''}: the"
        " spread is that of training and leaves out how much the choice itself would vary."
    ]
    if n == 1:
        return [*items, "One seed has no spread: no difference here is tested (`--n_seeds 3`)."]
    for comparison, methods in summary.metrics.items():
        rival = summary.best_rival(comparison)
        if INFLUENCESPACE not in methods or rival is None:
            continue
        v = compare(summary, comparison, INFLUENCESPACE, rival)
        needed = seeds_to_decide(v, n)
        if clear_outcome(v) == "undecided" and needed and needed <= MAX_USEFUL_SEEDS:
            items.append(
                f"{COMPARISON_LABELS[comparison]}: to tell InfluenceSpace from"
                f" {escape(method_label(rival))} at this difference and spread takes about"
                f" {needed:,} seeds (`--n_seeds`)."
            )
    return items


def _test_limits(summary: Summary) -> list[str]:
    cells = [
        c["image_to_text_recall@1"]["mean"] for ms in summary.metrics.values() for c in ms.values()
    ]
    if not cells:
        return []
    p = max(cells) / 100
    error = 100 * math.sqrt(p * (1 - p) / summary.n_test_images)
    return [
        f"With {summary.n_test_images:,} test images an image-to-text recall@1 of {100 * p:.1f} has"
        f" a sampling error of {error:.1f} points, which the spread over seeds does not show (the"
        " methods share the test images, so their differences suffer less)."
    ]


def _trust_limits(summary: Summary) -> list[str]:
    """Too few held-out pairs that can be asked."""
    trust = summary.trust
    few = "" if trust is None else few_asked(trust)
    if not few:
        return []
    return [
        f"{few}, so every influence rests on few; more or cleaner ones help"
        " (`--max_val_samples`, `--val_data`)."
    ]


def _fault_limits(summary: Summary) -> list[str]:
    """Faults that the curation dropped no more often than a blind choice would."""
    counts = (summary.faults or {}).get(INFLUENCESPACE, {})
    chance = 1 - summary.n_curated / summary.n_train
    missed = [
        fault
        for fault, n in counts.items()
        if fault not in ("good", "rare group") and n["dropped"] <= chance * n["in_data"]
    ]
    if not missed:
        return []
    text = (
        f"The curation dropped {enumerate_words(list(map(fault_label, missed)))} no more often than"
        " a blind choice would: their values do not set them apart."
    )
    if "near_copy" in missed:
        text += (
            " More near copies are found with a lower `--near_copy_similarity` and more are dropped"
            " with a higher `--copy_price`."
        )
    return [text]

"""What a run's numbers are judged to say: the answer, the findings and the limitations.

Every sentence that judges is chosen by numbers: two methods differ where the difference of their
means exceeds its standard error over training seeds, se = sqrt((s_a^2 + s_b^2) / n), and from
twice that on without a "narrowly".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from summary import (
    COMPARISON_SHORT,
    FREE_PREDICTIONS,
    GAP_RECALL_AT,
    RANDOM,
    TEST,
    TRAIN,
    VALIDATION,
    Summary,
    enumerate_words,
    escape,
    estimated_share,
    fault_label,
    gap_text,
    method_name,
    names,
    quantity,
    recall,
    share,
    trusted_recall,
)
from visualize import (
    COMPARISON_LABELS,
    FULL,
    INFLUENCESPACE,
    count,
    effective_size,
    method_label,
    seconds_text,
)

N_REASONS = 4  # named in the printed summary
FLAT_SPECTRUM = 0.5  # last over second eigenvalue above which low rank explains little
CLEAR = 2.0  # standard errors from which a difference is more than narrow
MAX_USEFUL_SEEDS = 1000  # above which no number of seeds is advised
SMALL_TRACE_SHARE = 0.5  # of the curvature, below which low rank leaves most of it out
AS_GOOD = 0.05  # a rank correlation this little below another counts as no worse
GOOD, FAIR = 0.8, 0.5  # rank correlations
EXPLAINS_LITTLE = 0.1  # share of the variance of pairs' influence
WARN_SHARE, WARN_LOW = 0.10, 0.05  # of wrong held-out captions, and the low end of its interval
FEW_TRUSTED = 30  # validation pairs below which little can be asked
NARROW = 0.05  # weight of nearness to the held-out pairs above which it is spoken of
LITERAL_SLOPES = (0.8, 1.25)  # of real on predicted effects, for which percentages hold

ESTIMATORS = {
    "metagradient": "the exact derivative of the validation loss late in training with respect to"
    " every pair's weight, back through all steps; no Hessian is inverted",
    "step": "one damped Newton step away from each cluster, with the true loss taken at its end;"
    " an inverse Hessian stands for the training",
    "first_order": "the influence function of sampled pairs, of first order in their weights; an"
    " inverse Hessian stands for the training",
}
CLUSTER_SCORES = {  # what their estimate asks of the pairs
    "metagradient": "Cluster scores come from one reverse sweep over each reference training, which"
    " gives the derivative for every pair at once",
    "step": "Cluster scores come from one step for each cluster, with all of its pairs taken away",
    "first_order": "Cluster scores come from {n:,} sampled pairs ({part}), each of which stands for"
    " its share of the cluster",
}


# --- Judging ----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A difference of two means and what it is worth."""

    difference: float  # points of recall
    standard_error: float | None  # of the difference; None with one seed
    outcome: str  # "wins", "loses" or "undecided"


def verdict(a: float, b: float, std_a: float | None, std_b: float | None, n: int) -> Verdict:
    """Whether mean `a` is above mean `b` beyond the spread over `n` seeds each.

        se = sqrt((std_a^2 + std_b^2) / n)

    Undecided where |a - b| <= se. With one seed there is no spread, and the sign alone decides.
    """
    difference = a - b
    if std_a is None or std_b is None:
        error, bar = None, 0.0
    else:
        error = bar = math.sqrt((std_a**2 + std_b**2) / n)
    if abs(difference) <= bar:
        return Verdict(difference, error, "undecided")
    return Verdict(difference, error, "wins" if difference > 0 else "loses")


def compare(summary: Summary, comparison: str, method: str, other: str) -> Verdict:
    """How a method's mean recall stands against another's."""
    a, b = (summary.mean_recall(comparison, m) for m in (method, other))
    return verdict(a["mean"], b["mean"], a["std"], b["std"], summary.n_seeds)


def in_standard_errors(v: Verdict) -> float | None:
    """The size of the difference in its standard errors, where it has any."""
    return abs(v.difference) / v.standard_error if v.standard_error else None


def clear_outcome(v: Verdict) -> str:
    """The outcome, undecided where the difference is narrow."""
    ratio = in_standard_errors(v)
    return "undecided" if ratio is not None and ratio < CLEAR else v.outcome


def against(v: Verdict, other: str) -> str:
    """The verdict as the end of a sentence."""
    ratio = in_standard_errors(v)
    if v.standard_error is None:
        why = " (one seed: no spread is known; run with more --n_seeds)"
    else:
        why = (
            f", {ratio:.1f} standard errors" if ratio is not None else ", without spread over seeds"
        )
    if v.outcome == "undecided":
        beyond = "" if v.standard_error is None else " beyond the spread"
        return f"shows no difference{beyond} from {other}: {v.difference:+.2f} points{why}"
    verb = "beats" if v.outcome == "wins" else "loses to"
    narrowly = "narrowly " if ratio is not None and ratio < CLEAR else ""
    return f"{narrowly}{verb} {other} by {abs(v.difference):.2f} points{why}"


def versus_random(summary: Summary, comparison: str, method: str) -> str:
    """The difference of the mean recall to random's, in brackets its size in standard errors."""
    if RANDOM not in summary.metrics[comparison] or method == RANDOM:
        return "–"
    v = compare(summary, comparison, method, RANDOM)
    ratio = in_standard_errors(v)
    return f"{v.difference:+.2f}" + ("" if ratio is None else f" ({ratio:.1f})")


def seeds_to_decide(v: Verdict, n: int) -> int | None:
    """Training seeds at which a difference of this size and spread reaches `CLEAR`."""
    ratio = in_standard_errors(v)
    return math.ceil(n * (CLEAR / ratio) ** 2) if ratio else None


def spectrum_flatness(eigenvalues: Sequence[float]) -> float | None:
    """The last eigenvalue over the second, which an outlying first does not hide."""
    if len(eigenvalues) < 3 or not eigenvalues[1]:
        return None
    return eigenvalues[-1] / eigenvalues[1]


def n_undecided_signs(entries: Sequence[Mapping[str, Any]]) -> int:
    """Clusters whose standard error is at least as large as their score."""
    return sum(e["stderr_percent"] >= abs(e["influence_percent"]) for e in entries)


def gap_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """`wider`, `narrower`, or `` where the two intervals overlap."""
    (low_before, high_before), (low_after, high_after) = before["interval_95"], after["interval_95"]
    if low_after > high_before:
        return "wider"
    return "narrower" if high_after < low_before else ""


# --- What was kept ----------------------------------------------------------------------------


def kept_sentence(summary: Summary) -> str:
    """How many pairs the curated set has."""
    return (
        f"Kept {summary.n_curated:,} of {summary.n_train:,} training pairs"
        f" ({share(summary.n_curated, summary.n_train)})."
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
    return (
        f"Weights of the kept pairs run from {weights.min():.2f} to {weights.max():.2f} around a"
        f" mean of one; they count like {effective_size(weights):,.0f} pairs of equal weight."
    )


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


# --- What a run stands on ---------------------------------------------------------------------


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
            f" captions are estimated to be wrong; {asked_clause(trust)}; bring a clean target with"
            " --val_data."
        )
    if n_asked(trust) < FEW_TRUSTED:
        found.append(
            f"Only {count(n_asked(trust), 'validation pair')} {_is(n_asked(trust))} asked what"
            f" helps; fewer than {FEW_TRUSTED} make every influence a guess: bring more with"
            " --val_data or raise --max_val_samples."
        )
    return found


def _is_noisy(part: Mapping[str, Any]) -> bool:
    """Whether enough captions of a split are wrong, beyond the error of the estimate."""
    return part["share"] is not None and part["share"] >= WARN_SHARE and part["low"] > WARN_LOW


def _as_noisy_as_the_pool(trust: Mapping[str, Any]) -> bool:
    """Whether the intervals of training and validation pairs overlap."""
    pool, target = trust[TRAIN], trust[VALIDATION]
    if pool["share"] is None or target["share"] is None:
        return False
    return bool(pool["low"] <= target["high"] and target["low"] <= pool["high"])


def n_asked(trust: Mapping[str, Any]) -> int:
    """How many validation pairs say what helps."""
    part = trust[VALIDATION]
    return int(part["pairs"] if trust["taken_at_word"] else part["trusted"])


def asked_clause(trust: Mapping[str, Any]) -> str:
    """How many validation pairs say what helps, and by what right."""
    asked, n = n_asked(trust), trust[VALIDATION]["pairs"]
    if trust["taken_at_word"]:
        return f"all {n:,} are asked what helps all the same (--trust_validation)"
    return f"{asked:,} of {n:,} {_is(asked)} trusted and asked what helps"


def _is(n: int) -> str:
    return "is" if n == 1 else "are"


def wrong_captions_sentence(summary: Summary) -> str:
    """The estimated shares of wrong captions, and how many pairs judge; empty if not estimated."""
    trust = summary.trust
    if trust is None:
        return ""
    shares = ", ".join(f"{s} {estimated_share(trust[s])}" for s in (TRAIN, VALIDATION, TEST))
    asked = n_asked(trust)
    return (
        f"Wrong captions, estimated: {shares}; {asked:,} of"
        f" {count(trust[VALIDATION]['pairs'], 'validation pair')} {_is(asked)} asked what helps."
    )


def judged_sentence(summary: Summary) -> str:
    """Whether held-out pairs were judged before they judge, and what came of it."""
    trust = summary.trust
    if trust is None:
        return "How many captions are wrong was not estimated."
    n, asked = trust[VALIDATION]["pairs"], n_asked(trust)
    text = (
        f"Validation pairs were taken at their word (`--trust_validation`): all {n:,} are asked"
        " what helps, right or wrong."
        if trust["taken_at_word"]
        else "Validation pairs were judged before they judge, by how well image and caption agree:"
        f" {asked:,} of {n:,} {_is(asked)} asked what helps{_not_asked(trust[VALIDATION])}."
    )
    trusted = trust[TEST]["trusted"]
    return (
        f"{text} Of {count(trust[TEST]['pairs'], 'test pair')} {trusted:,} {_is(trusted)} trusted."
    )


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
    return f"; {n:,} {_is(n)} not, {enumerate_words(named)}" if n else ""


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
    counts = f"counts with weight {weight:.2f}" if weight else "does not count"
    return f"influence {counts} in the values, because {why}"


def guard_sentence(summary: Summary) -> str:
    """The guard as a sentence; empty where influence counts in full."""
    clause = guard(summary.pair_quality)
    return f"{clause[0].upper()}{clause[1:]}." if clause else ""


def doubts(summary: Summary) -> str:
    """Why influence is not to be taken at face value: the caution and the guard; often empty."""
    return " ".join(filter(None, (caution_sentence(summary), guard_sentence(summary))))


# --- The answer -------------------------------------------------------------------------------


def answer(summary: Summary) -> str:
    """The opening paragraph: how many pairs were kept and how the models trained on them fare."""
    sentences = [f"**{kept_sentence(summary)}**"]
    if summary.sample_weights is not None and (doubt := doubts(summary)):
        sentences.append(doubt)
    for comparison in summary.metrics:
        sentences += _answer_for(summary, comparison)
    if summary.metrics:
        sentences.append(
            "Mean recall is over both directions at 1, 5 and 10, in percent of the queries on"
            f" {summary.n_test_images:,} unseen images"
            + (f"; ± is the standard deviation over {summary.n_seeds} training seeds."
               if summary.n_seeds > 1 else ", from one training seed.")
            + (" Methods are compared on all test pairs." if summary.shows_trusted else "")
        )  # fmt: skip
    return " ".join(sentences)


def _answer_for(summary: Summary, comparison: str) -> list[str]:
    methods = summary.metrics[comparison]
    where = f"With the {COMPARISON_LABELS[comparison].lower()}"
    if INFLUENCESPACE not in methods:
        return [f"{where} InfluenceSpace was not among the methods trained."]
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
    findings: list[str] = []
    for comparison in summary.metrics:
        findings += _standing(summary, comparison)
    findings += [*_against_full(summary), *_time_finding(summary), *_encoder_finding(summary)]
    if kinds := kinds_sentence(summary):
        findings.append(kinds)
    findings += [*_fault_findings(summary), *_gap_findings(summary)]
    return findings or [kept_sentence(summary)]


def _standing(summary: Summary, comparison: str) -> list[str]:
    """Who is ahead at the same size, and who does not beat random."""
    ranking = summary.ranking(comparison)
    if not ranking:
        return []
    rivals = [m for m in ranking if m != INFLUENCESPACE]
    text = (
        f"{COMPARISON_LABELS[comparison]}{' (one seed)' if summary.n_seeds == 1 else ''}:"
        f" {method_name(ranking[0])} has the highest mean recall at the curated size,"
        f" {recall(summary, comparison, ranking[0])}."
    )
    if INFLUENCESPACE in ranking and rivals:
        outcomes = {
            m: clear_outcome(compare(summary, comparison, INFLUENCESPACE, m)) for m in rivals
        }
        verbs = {"wins": "beats", "loses": "**loses to**", "undecided": "cannot be told from"}
        clauses = [
            f"{verb} {names([m for m in rivals if outcomes[m] == outcome])}"
            for outcome, verb in verbs.items()
            if outcome in outcomes.values()
        ]
        text += f" InfluenceSpace {enumerate_words(clauses)}."
    if RANDOM in rivals:
        others = [m for m in rivals if m != RANDOM]
        losers = [
            m for m in others if clear_outcome(compare(summary, comparison, m, RANDOM)) == "loses"
        ]
        if losers:
            text += f" {names(losers)} {'lose' if losers[1:] else 'loses'} to random selection."
    return [text]


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
    """Gaps that differ from the full data's beyond their intervals; the others in one sentence."""
    findings, overlapping = [], []
    key = f"recall@{GAP_RECALL_AT}"
    for comparison, methods in summary.gaps.items():
        if not {FULL, INFLUENCESPACE} <= set(methods):
            continue
        for attribute in methods[FULL]:
            full, own = (methods[m][attribute] for m in (FULL, INFLUENCESPACE))
            if full["gap"] is None or own["gap"] is None:
                continue
            where = f"{escape(attribute)}, {COMPARISON_SHORT[comparison]}"
            numbers = f"{gap_text(own)} points against {gap_text(full)}"
            change = gap_change(full["gap"][key], own["gap"][key])
            if change:
                findings.append(f"The gap is {change} than the full data's for {where}: {numbers}.")
            else:
                overlapping.append(f"{where}: {numbers}")
    if overlapping:
        findings.append(
            "Demographic gaps: no change against the full data can be claimed where the intervals"
            f" overlap ({'; '.join(overlapping)})."
        )
    return findings


# --- The estimate -----------------------------------------------------------------------------


def estimate(summary: Summary) -> list[str]:
    """What speaks for and against the influence estimate; empty where stage 2 was not loaded."""
    info = summary.influence_info
    if info is None:
        return _pair_estimate(summary)
    n_models, loss = info["influence_seeds"], f"{info['validation_loss']:.4f} nats"
    steps = f"{info['reference_steps']:,} of the {info['reference_schedule']:,} steps"
    items = [
        f"Estimator: `{info['estimator']}`, {ESTIMATORS[info['estimator']]}.",
        _removal(info),
        f"One reference model, stopped after {steps} of the schedule, where its validation loss was"
        f" lowest: {loss}."
        if n_models == 1
        else f"Mean over {n_models:,} reference models, all stopped after {steps} of the schedule,"
        f" where the first one's validation loss was lowest; their mean is {loss}.",
        CLUSTER_SCORES[info["estimator"]].format(
            n=info["n_evaluated"], part=share(info["n_evaluated"], summary.n_train)
        )
        + (
            "; which pairs are dropped is decided by the pairs' own influence, estimated apart."
            if summary.pair_quality
            else "."
        ),
    ]
    if "hessian" in info:
        items += _inverse_hessian(info)
    if summary.influence:
        items.append(_undecided_signs(summary.influence))
    return items + _pair_estimate(summary)


def _pair_estimate(summary: Summary) -> list[str]:
    """How the influence of pairs was had, and how far it is to be believed."""
    quality = summary.pair_quality
    if quality is None:
        return []
    n, evaluated = summary.n_train, quality["pairs_evaluated"]
    n_models = quality["held_out_models"]
    items = [
        f"The pairs' own influence was evaluated for {evaluated:,} of {n:,} training pairs"
        f" ({share(evaluated, n)})"
        + (
            f" and inferred for the other {n - evaluated:,} from what is known of every pair:"
            " image-text agreement, losses of models that have not seen it, near copies, topic"
            if evaluated < n
            else ""
        )
        + f". It was measured on {n_models:,} models, each trained on a half of the pairs and asked"
        " about the other half.",
        _explained(quality["explained"]),
    ]
    agree, repeats = quality["repeats_agree"], n_models // 2
    if agree is not None:
        items.append(
            f"Models of one deal into halves and those of another agree about the evaluated pairs"
            f" with a mean correlation of {agree:.2f}; the mean over {repeats:,} deals is used."
        )
    own = quality["own_share"]
    why = "the spread over deals" if repeats > 1 else "a fixed choice, for one deal has no spread"
    items.append(
        "An evaluated pair is given what is inferred of its like, moved by"
        f" {share(own, 1)} of the way to its own measurement; the rest of the difference counts as"
        f" noise ({why})."
    )
    return items + _weight_of_influence(summary)


def _weight_of_influence(summary: Summary) -> list[str]:
    """Whether influence and agreement say the same, and how much the former counts."""
    quality, items = summary.pair_quality or {}, []
    correlation = quality.get("agreement_correlation")
    if correlation is not None:
        items.append(
            "Over the training pairs influence and image-text agreement have a correlation of"
            f" {correlation:.2f}."
        )
    if text := guard_sentence(summary):
        items.append(f"**{text}**")
    elif (weight := quality.get("influence_weight", 1.0)) != 1:
        items.append(f"Influence counts with weight {weight:.2f} in the values.")
    return items


def _explained(explained: float) -> str:
    """How much of the pairs' influence the inference knows."""
    if explained <= 0:
        return (
            "The inference explains **nothing** of how evaluated pairs differ when each is left"
            " out of its fit, so inferred influence is no better than the mean."
        )
    little = " **only**" if explained < EXPLAINS_LITTLE else ""
    return (
        f"The inference explains{little} {share(explained, 1)} of the variance of the evaluated"
        " pairs' influence, each left out of the fit in its turn. Part of what is left is noise of"
        " the measurement."
    )


def caution(quality: Mapping[str, Any] | None) -> str:
    """A clause that takes back the signs of inferred influence where little of it is explained."""
    explained = 1.0 if quality is None else quality["explained"]
    if explained >= EXPLAINS_LITTLE:
        return ""
    known = f"only {share(explained, 1)}" if explained > 0 else "nothing"
    decides = "" if explained > 0 else "; agreement alone decides what is kept"
    return (
        f"the inference explains {known} of how evaluated pairs differ, so the sign of an inferred"
        f" influence is weak evidence{decides}"
    )


def caution_sentence(summary: Summary) -> str:
    """The caution as a sentence; empty where the inference explains enough."""
    clause = caution(summary.pair_quality)
    return f"Beware: {clause}." if clause else ""


def cells_beside_clusters(summary: Summary) -> str:
    """Why a cell and its cluster may have different signs; empty where not both are shown."""
    if not any(cluster.get("cells") for cluster in summary.categorization or ()):
        return ""
    corrected = (summary.influence_info or {}).get("removal_correction")
    return (
        "A cell and its cluster may have different signs: a cell's influence adds up small,"
        " first-order changes, one for each of its pairs and asked of models that have not trained"
        " on it, whereas a cluster's influence predicts what leaving the whole cluster out of"
        " training costs"
        + (
            ", with what retraining without it showed beyond the first order, where the pairs of"
            " other clusters step in."
            if corrected
            else "."
        )
    )


def _removal(info: Mapping[str, Any]) -> str:
    """Whether the scores hold for leaving a cluster out for good."""
    if info["removal_correction"]:
        return (
            "What leaving a cluster out for good costs beyond the first order was added, from"
            " retraining without folds of the clusters (finite-removal correction)."
        )
    if info["estimator"] == "step":
        return "The step leaves the whole cluster out, so no finite-removal correction was added."
    return (
        "No finite-removal correction was added: the scores hold for small changes of a cluster's"
        " weight, and what leaving it out for good costs beyond them is missing."
    )


def _undecided_signs(entries: Sequence[Mapping[str, Any]]) -> str:
    n = n_undecided_signs(entries)
    if n == 0:
        return "Every cluster's score is larger than its standard error."
    return (
        f"For {n:,} of {count(len(entries), 'cluster')} ({share(n, len(entries))}) the standard"
        " error is at least as large as the score, so their sign is not known."
    )


def _inverse_hessian(info: Mapping[str, Any]) -> list[str]:
    """The matrix that was inverted, and how well."""
    hessian, cosine = info["hessian"], f"{info['cosine_to_exact_solution']:.3f}"
    matrix = f"`{info['curvature']}`, damping {info['damping']:.3g}"
    exact = "the exact solution by conjugate gradients"
    items = [f"Inverse Hessian: `{hessian}` of the curvature {matrix}."]
    if hessian == "cg":
        items.append(
            "The validation gradient is solved for by conjugate gradients; the low-rank inverse"
            f" that starts them has a cosine of {cosine} with that solution."
        )
    else:
        items.append(
            f"Applied to the validation gradient it has a cosine of {cosine} with {exact}."
        )
    if hessian in ("lanczos", "cg"):
        items += _spectrum(info)
    return items


def _spectrum(info: Mapping[str, Any]) -> list[str]:
    """How much of the curvature a few eigenvalues hold."""
    eigenvalues, residuals = info["eigenvalues"], info["eigenvalue_residuals"]
    if not len(eigenvalues):
        return []
    first, last, held = eigenvalues[0], eigenvalues[-1], info["trace_share"]
    items = [
        f"Leading eigenvalues ({len(eigenvalues)}): from {first:.3g} to {last:.3g}; largest"
        f" residual {max(residuals) / abs(first):.1e} of the first. They hold {share(held, 1)} of"
        f" the trace, {info['trace']:.3g} ± {info['trace_stderr']:.2g}."
    ]
    flatness = spectrum_flatness(eigenvalues)
    slow = flatness is not None and flatness > FLAT_SPECTRUM
    if held >= SMALL_TRACE_SHARE and not slow:
        return items
    reasons = []
    if held < SMALL_TRACE_SHARE:
        reasons.append("these eigenvalues hold under half of the trace")
    if flatness is not None and slow:
        reasons.append(f"the last of them is still {share(flatness, 1)} of the second")
    flat = f"The spectrum is flat: {enumerate_words(reasons)}."
    if info["hessian"] == "lanczos":
        flat += (
            " A low-rank inverse then behaves nearly like gradient similarity; `--hessian cg` or"
            " `--estimator metagradient` does without low rank."
        )
    else:
        flat += " Low rank alone would not do; conjugate gradients do not depend on it."
    return [*items, flat]


# --- Real retraining --------------------------------------------------------------------------


def validation(summary: Summary) -> str:
    """Whether predicted effects are those of retraining; empty where stage 2 was not loaded."""
    if summary.influence_info is None:
        return ""
    checks = summary.influence_validation
    if checks is None:
        return (
            "Not measured in this run: `--validate_influence 20` retrains without each of 20"
            " clusters and compares."
        )
    n, n_seeds = len(checks["clusters"]), len(checks["seeds"])
    loco, halves = checks["loco"], checks["lds"]
    sentences = [
        f"{count(n, 'cluster')}, spread over the range of scores, {'was' if n == 1 else 'were'}"
        f" left out one at a time and the reference training repeated without each, with"
        f" {count(n_seeds, 'seed')}."
    ]
    own = loco["estimator"]["spearman"]
    if own is None:
        return f"{sentences[0]} That is too few clusters, or too little spread, to correlate."
    sentences += [_match(own, loco["ceiling"], n), *_ceiling(loco["ceiling"], n_seeds)]
    sentences.append(_free_predictions(own, loco))
    if beyond_chance(own, n):  # where ranks fail, a slope says nothing
        sentences.append(_slope(loco["estimator"]["slope"], checks["points"]["loco"]))
    score = halves["estimator"]["spearman"]
    if score is not None:
        sentences.append(
            "The sums of the scores rank random halves of the clusters, left out together,"
            f" {_grade(score, halves['ceiling'], n)}: the linear datamodelling score is"
            f" {score:.2f} (ceiling {quantity(halves['ceiling'])})."
        )
    return " ".join(sentences)


def beyond_chance(correlation: float, n: int) -> bool:
    """Whether a rank correlation of n points is `CLEAR` standard errors above none.

    Of unrelated points its standard deviation is 1 / sqrt(n - 1).
    """
    return correlation >= CLEAR / math.sqrt(n - 1)


def _grade(spearman: float, ceiling: float | None, n: int) -> str:
    """How well something ranks n things, as the end of a clause."""
    if beyond_chance(-spearman, n):
        return "**in the wrong order**"
    if not beyond_chance(spearman, n):
        return "**no better than chance may do**"
    if ceiling is not None and spearman >= ceiling - AS_GOOD:
        return "**as well as the noise of retraining lets any prediction**"
    return (
        "**well**" if spearman >= GOOD else "**fairly well**" if spearman >= FAIR else "**weakly**"
    )


def _match(spearman: float, ceiling: float | None, n: int) -> str:
    """How well predicted effects rank the clusters as retraining does."""
    text = (
        f"The predicted effects rank them {_grade(spearman, ceiling, n)}: Spearman's rank"
        f" correlation is {spearman:.2f}"
    )
    if not beyond_chance(abs(spearman), n):
        text += f", and unrelated numbers reach ±{1 / math.sqrt(n - 1):.2f} with so few"
    return f"{text}."


def _ceiling(ceiling: float | None, n_seeds: int) -> list[str]:
    """What the noise of retraining allows."""
    if ceiling is None:
        return (
            ["How noisy one retraining is cannot be known from one seed (`--validation_seeds 3`)."]
            if n_seeds == 1
            else []
        )
    if ceiling == 0:
        return [
            "The retrainings of different seeds do not agree with each other, so no prediction"
            " could match them; more seeds (`--validation_seeds`) lower the noise."
        ]
    return [f"A perfect prediction would reach {ceiling:.2f}, for retraining is noisy."]


def _free_predictions(own: float, loco: Mapping[str, Any]) -> str:
    """Whether a prediction that costs nothing does as well."""
    free = {
        label: loco[name]["spearman"]
        for name, label in FREE_PREDICTIONS.items()
        if loco[name]["spearman"] is not None
    }
    if not free:
        return "No prediction that costs nothing could be compared."
    better = [f"{label} ({r:.2f})" for label, r in free.items() if r >= own]
    close = [f"{label} ({r:.2f})" for label, r in free.items() if own > r >= own - AS_GOOD]
    clauses = [
        f"{enumerate_words(rivals)} {'does' if len(rivals) == 1 else 'do'} {how}"
        for rivals, how in ((better, "as well or better"), (close, "nearly as well"))
        if rivals
    ]
    if clauses:
        return (
            f"At no cost **{enumerate_words(clauses)}**, so leaving out single clusters does not"
            " show that the estimate is worth its cost."
        )
    best = max(free, key=lambda label: free[label])
    return (
        f"No prediction that costs nothing does as well: the best, {best}, reaches"
        f" {free[best]:.2f}."
    )


def slope_without_extreme(points: Sequence[Mapping[str, float]]) -> float | None:
    """Slope of real on predicted effects without the most extreme prediction, which decides it."""
    predicted, real = (np.array([p[name] for p in points]) for name in ("predicted", "real"))
    rest = np.arange(len(points)) != np.argmax(np.abs(predicted - predicted.mean()))
    if rest.sum() < 3 or np.ptp(predicted[rest]) == 0:
        return None
    return float(np.polyfit(predicted[rest], real[rest], 1)[0])


def _slope(slope: float, points: Sequence[Mapping[str, float]]) -> str:
    """Whether percentages can be taken literally."""
    low, high = LITERAL_SLOPES
    text = f"Real effects grow by {slope:.2f} for every 1 predicted"
    if not low <= slope <= high:
        size = "smaller" if slope < low else "larger"
        return f"{text}: they are {size}, so take the order from the scores, not the percentages."
    without = slope_without_extreme(points)
    if without is not None and not low <= without <= high:
        return (
            f"{text}, but by {without:.2f} once the most extreme prediction is set aside: the"
            " percentages are not to be taken literally."
        )
    return f"{text}, so that the percentages can be taken literally."


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
        items.append(_undecided_signs(summary.influence) + _narrowing(summary.influence_info or {}))
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
        if v.outcome == "undecided" and needed and needed <= MAX_USEFUL_SEEDS:
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
    if trust is None or n_asked(trust) >= FEW_TRUSTED:
        return []
    n = n_asked(trust)
    return [
        f"Only {count(n, 'validation pair')} {_is(n)} asked what helps, so every influence rests on"
        " few; more or cleaner ones help (`--max_val_samples`, `--val_data`)."
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

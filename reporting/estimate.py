"""What is said of the influence estimate: how good it is and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reporting.standing import guard_sentence
from reporting.summary import Summary
from reporting.verdicts import n_undecided_signs, spectrum_flatness
from reporting.words import count, enumerate_words, share

FLAT_SPECTRUM = 0.5  # last over second eigenvalue above which low rank explains little
SMALL_TRACE_SHARE = 0.5  # of the curvature, below which low rank leaves most of it out
EXPLAINS_LITTLE = 0.1  # share of the variance of pairs' influence
ESTIMATORS = {
    "metagradient": "the exact derivative of the validation loss late in training with respect to"
    " every pair's weight, back through all steps; no Hessian is inverted",
    "step": "one damped Newton step away from each cluster, with the true loss taken at its end;"
    " an inverse Hessian stands for the training",
    "first_order": "the influence function of sampled pairs, of first order in their weights; an"
    " inverse Hessian stands for the training",
}
CLUSTER_SCORES = {  # what their estimate asks of the pairs
    "metagradient": "Cluster scores come from one reverse sweep over each reference training",
    "step": "Cluster scores come from one step for each cluster, with all of its pairs taken away",
    "first_order": "Cluster scores come from {n:,} sampled pairs ({part}), each of which stands for"
    " its share of the cluster",
}


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
    if summary.influence and not n_undecided_signs(summary.influence):  # else a limitation
        items.append(undecided_signs(summary.influence))
    return items + _pair_estimate(summary)


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


def undecided_signs(entries: Sequence[Mapping[str, Any]]) -> str:
    """How many clusters have a sign that is not known, as a sentence."""
    n = n_undecided_signs(entries)
    if n == 0:
        return "Every cluster's score is larger than its standard error."
    return (
        f"For {n:,} of {count(len(entries), 'cluster')} ({share(n, len(entries))}) the standard"
        " error is at least as large as the score, so their sign is not known."
    )


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
            f" and inferred for the other {n - evaluated:,} from what is known of every pair"
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
        " pairs' influence, each left out of the fit in its turn."
    )


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


def doubts(summary: Summary) -> str:
    """Why influence is not to be taken at face value: the caution and the guard; often empty."""
    return " ".join(filter(None, (caution_sentence(summary), guard_sentence(summary))))


def caution_sentence(summary: Summary) -> str:
    """The caution as a sentence; empty where the inference explains enough."""
    clause = caution(summary.pair_quality)
    return f"Beware: {clause}." if clause else ""


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


def cells_beside_clusters(summary: Summary) -> str:
    """That a cell and its cluster may have different signs; empty where not both are shown."""
    if not any(cluster.get("cells") for cluster in summary.categorization or ()):
        return ""
    return (
        "A cell and its cluster may have different signs: the one adds up small changes of its"
        " pairs, the other leaves the whole cluster out (docs/method.md)."
    )

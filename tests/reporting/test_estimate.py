"""What is said of the influence estimate."""

from __future__ import annotations

from typing import Any

import pytest

from reporting.estimate import caution, cells_beside_clusters, estimate
from reporting.findings import answer, limitations
from reporting.standing import (
    guard,
)
from tests.reporting.test_summary import (
    SUMMARIES,
    make_influence_info,
    make_pair_quality,
    make_summary,
)


def test_signs_are_taken_back_where_the_inference_explains_little() -> None:
    assert caution(None) == caution(make_pair_quality(explained=0.1)) == ""
    assert "explains only 9.9 % of how evaluated" in caution(make_pair_quality(explained=0.099))
    for explained in (0.0, -0.07):
        nothing = caution(make_pair_quality(explained=explained))
        assert "explains nothing of how" in nothing
        assert nothing.endswith("; agreement alone decides what is kept")


def test_how_much_influence_counts() -> None:
    why = "trusted pairs would be dropped more often than others"
    assert guard(None) == guard(make_pair_quality()) == guard(make_pair_quality(guard="")) == ""
    weak = make_pair_quality(guard=why, influence_weight=0.25)
    assert guard(weak) == f"influence counts with weight 0.25 in the values, because {why}"
    assert guard(weak | {"influence_weight": 0.0}) == (
        f"influence does not count in the values, because {why}"
    )
    assert f"Influence counts with weight 0.25 in the values, because {why}." in (
        answer(make_summary(3, pair_quality=weak))
    )
    assert "because" not in answer(make_summary(3, pair_quality=weak, sample_weights=None))
    text = pair_text(guard=why, influence_weight=0.25, agreement_correlation=-0.41)
    assert f"**Influence counts with weight 0.25 in the values, because {why}.**" in text
    assert "influence and image-text agreement have a correlation of -0.41." in text
    assert "Influence counts with weight 0.60 in the values." in pair_text(influence_weight=0.6)
    assert "Influence counts" not in pair_text(influence_weight=1.0, guard="")


def test_why_cells_and_clusters_may_differ_in_sign() -> None:
    text = cells_beside_clusters(make_summary(3))
    assert "may have different signs" in text
    assert "docs/method.md" in text
    assert cells_beside_clusters(SUMMARIES["stage 3 not loaded"]) == ""


def estimate_text(estimator: str = "metagradient", **changes: Any) -> str:
    info = make_influence_info(estimator, **changes)
    return " ".join(estimate(make_summary(influence_info=info)))


def test_the_metagradient_is_described() -> None:
    text = estimate_text(n_evaluated=100)
    assert "Estimator: `metagradient`, the exact derivative of the validation loss" in text
    assert "no Hessian is inverted" in text
    assert "finite-removal correction)" in text
    assert "One reference model, stopped after 480 of the 1,560 steps" in text
    assert "2.3456 nats." in text
    assert "Cluster scores come from one reverse sweep over each reference training" in text
    assert "evaluated for 100 of" not in text  # the derivatives are of all, for clusters alone
    for word in ("igenvalue", "damping", "spectrum", "cosine", "trace"):
        assert word not in text
    assert "No finite-removal correction was added" in estimate_text(removal_correction=False)
    several = estimate_text(influence_seeds=3)
    assert "Mean over 3 reference models, all stopped after 480 of the 1,560 steps" in several
    assert "the first one's validation loss was lowest; their mean is 2.3456 nats." in several
    assert estimate(make_summary(influence_info=None, pair_quality=None)) == []


def test_unknown_signs_are_counted() -> None:
    summary = make_summary(20)
    assert summary.influence is not None
    n = sum(e["stderr_percent"] >= abs(e["influence_percent"]) for e in summary.influence)
    assert f"For {n} of 20 clusters" in " ".join(limitations(summary))
    assert "of 20 clusters" not in " ".join(estimate(summary))  # said once
    known = [entry | {"stderr_percent": 0.0} for entry in summary.influence]
    certain = make_summary(20, influence=known)
    assert "Every cluster's score is larger than its standard error." in estimate(certain)
    assert "standard error is at least" not in " ".join(limitations(certain))


def pair_text(**changes: Any) -> str:
    return " ".join(estimate(make_summary(pair_quality=make_pair_quality(**changes))))


def test_the_influence_of_pairs_is_described() -> None:
    summary = make_summary()
    n = summary.n_train
    text = pair_text()
    assert f"evaluated for 40 of {n:,} training pairs ({100 * 40 / n:.1f} %)" in text
    assert f"inferred for the other {n - 40:,} from what is known of every pair" in text
    assert "measured on 10 models, each trained on a half of the pairs" in text
    assert "explains 43.2 % of the variance" in text
    assert "mean correlation of 0.65; the mean over 5 deals is used" in text
    assert "moved by 25.0 % of the way to its own measurement" in text
    assert "decided by the pairs' own influence, estimated apart" in text
    assert "explains **only** 5.0 %" in pair_text(explained=0.05)
    assert "explains **nothing**" in pair_text(explained=-0.02)
    one_deal = pair_text(held_out_models=2, repeats_agree=None, own_share=0.5)
    assert "mean correlation" not in one_deal
    assert "a fixed choice, for one deal has no spread" in one_deal
    assert "inferred" not in pair_text(pairs_evaluated=n).split("own influence was")[1][:120]
    alone = estimate(make_summary(influence_info=None))
    assert alone[0].startswith("The pairs' own influence was evaluated for 40 of")
    without = " ".join(estimate(make_summary(pair_quality=None)))
    assert "own influence" not in without


@pytest.mark.parametrize("estimator", ["step", "first_order"])
def test_the_inverse_hessian_is_described(estimator: str) -> None:
    text = estimate_text(estimator)
    assert f"Estimator: `{estimator}`" in text
    assert "`lanczos` of the curvature `gauss_newton`, damping 0.0123" in text
    assert "cosine of 0.812 with the exact solution by conjugate gradients" in text
    assert "largest residual 1.0e-05 of the first" in text  # 9e-5 / 9
    assert "They hold 35.8 % of the trace, 40 ± 1.2" in text
    assert ("the whole cluster out" in text) == (estimator == "step")
    assert ("one step for each cluster" in text) == (estimator == "step")
    assert ("from 100 sampled pairs" in text) == (estimator == "first_order")
    assert ("scores hold for small changes" in text) == (estimator == "first_order")


def test_a_flat_spectrum_is_said_plainly() -> None:
    steep = {"eigenvalues": [9.0, 2.0, 0.1, 0.05], "trace_share": 0.9}
    assert "flat" not in estimate_text("step", **steep)
    little = estimate_text("step", **steep | {"trace_share": 0.1})
    assert "spectrum is flat: these eigenvalues hold under half of the trace." in little
    assert "behaves nearly like gradient similarity" in little
    assert "`--hessian cg` or `--estimator metagradient`" in little
    slow = estimate_text("first_order", trace_share=0.9)  # 1.5 / 2
    assert "spectrum is flat: the last of them is still 75.0 % of the second." in slow
    both = estimate_text("first_order")
    assert "under half of the trace and the last of them" in both
    one = estimate_text(
        "step", eigenvalues=[3.0], eigenvalue_residuals=[1e-4], trace_share=0.02, trace=150.0
    )
    assert "under half of the trace." in one


def test_flatness_is_no_matter_to_conjugate_gradients() -> None:
    text = estimate_text("step", hessian="cg")
    assert "has a cosine of 0.812 with that solution" in text
    assert "conjugate gradients do not depend on it" in text
    assert "gradient similarity" not in text


@pytest.mark.parametrize("hessian", ["datainf", "identity"])
def test_an_inverse_without_eigenvalues_has_no_spectrum(hessian: str) -> None:
    """What stands in the eigenvalues' place is the curvature along one direction."""
    text = estimate_text("step", hessian=hessian, eigenvalues=[3.0], eigenvalue_residuals=[0.1])
    assert f"`{hessian}` of the curvature" in text
    assert "cosine of 0.812" in text
    assert "igenvalue" not in text
    assert "flat" not in text

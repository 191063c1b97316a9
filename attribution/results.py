"""What stage 2 saves: the influence of clusters, of pairs and cells, and its validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64

from attribution.scores import standardised
from learner.model import Parameters

LOCO, SMALL, LDS = CHECKS = ("loco", "small_weight", "lds")


@dataclass(frozen=True)
class InfluenceResult:
    """Influence of K clusters over n training pairs, from S reference models."""

    influence_scores: Float[np.ndarray, " K"]
    influence_stderr: Float[np.ndarray, " K"]
    first_order_scores: Float[np.ndarray, "S K"]  # without the finite-removal correction
    first_order_stderr: Float[np.ndarray, " K"]  # of their mean over the reference models
    removal_corrections: Float[np.ndarray, " K"]  # what it adds; zeros without
    first_order_influence: Float[np.ndarray, " n"]  # u_i on models trained on the pairs
    first_order_evaluated: Bool[np.ndarray, " n"]
    eigenvalues: Float[np.ndarray, " r"]  # empty for the metagradient, which inverts nothing
    eigenvalue_residuals: Float[np.ndarray, " r"]
    reference_image_map: Float32[np.ndarray, "d_i e"]  # of the first reference model
    reference_text_map: Float32[np.ndarray, "d_t e"]
    reference_log_scale: Float32[np.ndarray, ""]
    reference_seeds: Int64[np.ndarray, " S"]
    reference_steps: int  # that are taken, by early stopping
    reference_schedule: int  # steps of their learning-rate schedule
    validation_batches: Int64[np.ndarray, "m b"]
    validation_loss: float
    estimator: str
    curvature_quality: dict[str, Any] = field(metadata={"file": "curvature_quality.json"})
    clusters: list[dict[str, Any]] = field(metadata={"file": "influence_scores.json"})
    reference_batch_size: int | None = None  # grown with n; None: `--batch_size`, and all pairs
    # The pairs that stood for all in the reference trainings; None: all were trained on.
    reference_rows: Int64[np.ndarray, " t"] | None = None

    def quality(self) -> dict[str, Any]:
        """How the estimate was made, and what is known of its quality."""
        return {
            "estimator": self.estimator,
            "influence_seeds": len(self.reference_seeds),
            "validation_loss": self.validation_loss,
            "reference_steps": self.reference_steps,
            "reference_schedule": self.reference_schedule,
            "reference_batch_size": self.reference_batch_size,
            "removal_correction": bool(self.removal_corrections.any()),
            "eigenvalues": self.eigenvalues.tolist(),
            "eigenvalue_residuals": self.eigenvalue_residuals.tolist(),
            "n_evaluated": int(self.first_order_evaluated.sum()),
            **self.curvature_quality,
        }

    def reference(self, device: torch.device) -> Parameters:
        """The first reference model's parameters."""
        arrays = (self.reference_image_map, self.reference_text_map, self.reference_log_scale)
        return Parameters(*(torch.from_numpy(a.copy()).to(device) for a in arrays))


@dataclass(frozen=True)
class PairInfluence:
    """Influence of n pairs in C cells, in nats: leaving pair i out changes the loss by u_i / n."""

    pair_influence: Float[np.ndarray, " n"]
    pair_influence_stderr: Float[np.ndarray, " n"]
    pair_influence_evaluated: Bool[np.ndarray, " n"]  # or inferred
    held_out_losses: Float[np.ndarray, " n"]
    agreement: Float[np.ndarray, " n"]  # log odds that image and caption belong together
    cell_assignments: Int64[np.ndarray, " n"]
    cell_influence: Float[np.ndarray, " C"]  # mean of its pairs
    cell_influence_stderr: Float[np.ndarray, " C"]
    validation_loss: float
    influence_weight: float  # how much influence counts beside agreement, 0 to 1; see `guard`
    # What nearness to the held-out pairs adds to values, as far as these are believed at all.
    relevance_part: Float[np.ndarray, " n"]
    quality: dict[str, Any] = field(metadata={"file": "pair_influence_quality.json"})
    # More likely right than wrong, where as many of its topic are wrong as is estimated
    # (`topic_faults`); None: not saved then.
    unfaulty: Bool[np.ndarray, " n"] | None = None
    # On the loss of the worst-served group of the held-out pairs, nats; None: groups do not count.
    group_influence: Float[np.ndarray, " n"] | None = None

    @property
    def fairness_part(self) -> Float[np.ndarray, " n"] | None:
        """What helping the worst-served group adds to each pair's value, standard deviations.

            weight z(influence on the group - influence on all)        of pairs that look right

        Zero of those that do not, which hurt one group more than others at random. None where
        groups do not count.
        """
        if self.group_influence is None:
            return None
        right = np.ones(len(self.agreement), bool) if self.unfaulty is None else self.unfaulty
        beyond = np.where(right, self.group_influence - self.pair_influence, 0.0)
        part = np.zeros(len(beyond))
        if right.any():
            part[right] = float(self.quality["fairness"]["weight"]) * standardised(beyond[right])
        return part

    @property
    def looks_faulty(self) -> Bool[np.ndarray, " n"]:
        """Pairs more likely wrong than right; none where that is not known."""
        unknown = np.zeros(len(self.agreement), dtype=bool)
        return unknown if self.unfaulty is None else ~self.unfaulty

    @property
    def fault_share(self) -> list[float] | None:
        """Estimated share of faulty pairs, with the bounds of its interval; None: unknown."""
        return self.quality.get("wrong_share")

    @property
    def counted(self) -> Float[np.ndarray, " n"]:
        """The influence that pairs are chosen by: none of it where the inference explains nothing.

        Leave-one-out, the mean of all evaluated pairs then foretells one better than the model.
        """
        explains = self.quality["explained"] > 0
        return self.pair_influence if explains else np.zeros_like(self.pair_influence)


@dataclass(frozen=True)
class InfluenceValidation:
    """Predicted and real effects on the validation loss, and how well they agree."""

    checks: dict[str, Any] = field(metadata={"file": "influence_validation.json"})

    @property
    def loco_points(self) -> list[dict[str, float]]:
        """One entry a cluster left out: predicted and real change and their standard errors."""
        points: list[dict[str, float]] = self.checks["points"][LOCO]
        return points

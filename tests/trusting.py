"""What the tests share that need somebody to have been judged."""

from __future__ import annotations

from typing import Any

import numpy as np

from attribution.joined_views import Agreement
from attribution.trust import PairTrust


def pair_trust(n: int, n_validation: int = 1, n_test: int = 1, **changes: Any) -> PairTrust:
    """Everyone trusted, nothing known of anybody, unless `changes` say otherwise."""
    unknown = {"share": None, "low": None, "high": None}
    fields: dict[str, Any] = {
        "training_log_odds": np.zeros(n),
        "encoder_agreement": np.zeros(n),
        "encoder_by_chance": np.zeros(n),
        "strangers": np.roll(np.arange(n), -1),
        "validation_log_odds": np.zeros(n_validation),
        "validation_copies": np.zeros(n_validation, dtype=np.int64),
        "validation_trusted": np.ones(n_validation, dtype=bool),
        "test_log_odds": np.zeros(n_test),
        "test_trusted": np.ones(n_test, dtype=bool),
        "relevance": np.zeros(n),
        "relevance_auc": 0.5,
        "relevance_weight": 0.0,
        "taken_at_word": False,
        "faults": {"train": unknown},
    }
    return PairTrust(**fields | changes)


def trust_of_view(first: Agreement) -> PairTrust:
    """The encoder's view of the training pairs, and nothing else."""
    return pair_trust(
        len(first.own), encoder_agreement=first.own, encoder_by_chance=first.by_chance
    )

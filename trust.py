"""Which pairs can be trusted: held-out pairs are judged before they judge.

Validation pairs decide what helps. Where they are drawn from the pool that is curated they are as
wrong as the rest of it, and what pleases wrong pairs is the opposite of what helps. So each is
asked first how likely its image and caption belong together, by the encoder and by a joint map
fitted to training pairs that look right, neither of which has seen it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class PairTrust:
    """What is said of n training, V validation and Q test pairs before any of them says anything.

    Log odds that image and caption belong together, where right and wrong pairs are equally
    frequent.
    """

    agreement: Float[np.ndarray, " n"]  # log odds of the training pairs, at first sight
    encoder_agreement: Float[np.ndarray, " n"]  # normalised, in the encoder's joint space
    encoder_by_chance: Float[np.ndarray, " n"]  # the same with the captions of others
    validation_log_odds: Float[np.ndarray, " V"]
    validation_copies: Int64[np.ndarray, " V"]  # near copies of its image that are asked instead
    validation_trusted: Bool[np.ndarray, " V"]  # whether it is asked what helps
    test_log_odds: Float[np.ndarray, " Q"]
    test_trusted: Bool[np.ndarray, " Q"]
    taken_at_word: bool  # by --trust_validation: all validation pairs are asked
    faults: dict[str, Any] = field(metadata={"file": "wrong_captions.json"})
    # by split: `pairs`; `share`, `low`, `high` of wrong captions, None where too few tell;
    # of held-out splits also `trusted`, of validation `near_copies`

"""What of the judged held-out pairs reaches the results page; the rest is tested by whole runs."""

from __future__ import annotations

import dataclasses

import numpy as np

from reporting import results
from tests.reporting.test_summary import make_summary
from tests.trusting import pair_trust
from train_eval import EvaluationResult, on_trusted_queries

RUN = {"method": "full", "comparison": "same_epochs", "seed_index": 0}
EVALUATED = EvaluationResult(
    image_ranks=np.array([[0, 9]]),
    caption_ranks=np.array([[0, 20, 9]]),
    encoder_image_ranks=np.array([0, 1]),
    encoder_caption_ranks=np.array([0, 1, 2]),
    runs=[RUN],
)
OWNER = np.array([0, 0, 1])
TRUST = pair_trust(
    3,
    training_log_odds=np.array([1.0, -1.0, 2.0]),
    validation_log_odds=np.array([0.5, -0.5]),
    validation_copies=np.zeros(2, dtype=np.int64),
    validation_trusted=np.array([True, False]),
    test_log_odds=np.array([3.0, -3.0, -1.0]),
    test_trusted=np.array([True, False, False]),
)


UNTOLD = make_summary(3, trust=None, log_odds=None, trusted=None, trusted_metrics=None)


def test_recall_on_trusted_pairs_is_that_of_their_ranks() -> None:
    told = results.with_trust(UNTOLD, TRUST, EVALUATED, OWNER)
    assert told.trusted_metrics is not None
    assert told.trusted_metrics["same_epochs"]["full"]["mean_recall"]["mean"] == 100.0
    asked = on_trusted_queries(EVALUATED, TRUST.test_trusted, OWNER)
    assert asked.encoder_caption_ranks.tolist() == [0]
    assert told.trusted_encoder_metrics == results.encoder_metrics(asked)


def test_without_a_trusted_pair_there_is_no_such_recall() -> None:
    nobody = dataclasses.replace(TRUST, test_trusted=np.zeros(3, dtype=bool))
    told = results.with_trust(UNTOLD, nobody, EVALUATED, OWNER)
    assert told.trusted_metrics is None
    assert told.trusted_encoder_metrics is None


def test_log_odds_stand_with_their_split() -> None:
    odds = results.with_trust(UNTOLD, TRUST, EVALUATED, OWNER).log_odds
    assert odds is not None
    assert [odds[split].tolist() for split in ("train", "validation", "test")] == [
        [1.0, -1.0, 2.0],
        [0.5, -0.5],
        [3.0, -3.0, -1.0],
    ]


def test_the_pool_has_the_share_of_wrong_captions_that_stage_2_settles_on() -> None:
    quality = {**(UNTOLD.pair_quality or {}), "wrong_share": [0.2, 0.1, 0.3]}
    settled = dataclasses.replace(UNTOLD, pair_quality=quality)
    first = dataclasses.replace(UNTOLD, pair_quality=None)
    faults = {s: {"pairs": 3, "share": 0.5, "low": 0.4, "high": 0.6} for s in ("train", "test")}
    trust = dataclasses.replace(TRUST, faults=faults)
    told, at_sight = (
        results.with_trust(s, trust, EVALUATED, OWNER).trust or {} for s in (settled, first)
    )
    assert told["train"] == {**at_sight["train"], "share": 0.2, "low": 0.1, "high": 0.3}
    assert told["test"] == at_sight["test"] == faults["test"]
    assert at_sight["train"] == faults["train"]

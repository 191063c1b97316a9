"""What is said of the held-out pairs that a run stands on."""

from __future__ import annotations

from typing import Any

from reporting.standing import (
    judged_sentence,
    narrow_sentence,
    trust_warnings,
    wrong_captions_sentence,
)
from tests.reporting.test_figures import (
    make_trust,
)
from tests.reporting.test_summary import (
    make_pair_quality,
    make_summary,
)


def trusting(*shares: float | None, trusted: int = 900, copies: int = 20, **changes: Any) -> Any:
    """A run whose validation and test captions are wrong to these shares."""
    trust = make_trust(*shares, **changes)
    trust["validation"] |= {"trusted": trusted, "near_copies": copies}
    return make_summary(3, trust=trust)


def test_only_shares_that_are_high_beyond_their_error_are_warned_of() -> None:
    assert trust_warnings(trusting(0.099, 0.099)) == []
    assert trust_warnings(trusting(None, None)) == []
    assert trust_warnings(make_summary(3, trust=None)) == []
    (test,) = trust_warnings(trusting(0.0, 0.1))
    assert test == (
        "Recall on all test pairs is an underestimate: 10.0 % (9.0 to 11.0) of the test captions"
        " are estimated to be wrong; see recall on trusted pairs, or bring clean data with"
        " --test_data."
    )
    uncertain = make_trust(0.0, 0.2)
    uncertain["test"]["low"] = 0.05
    assert trust_warnings(make_summary(3, trust=uncertain)) == []


def test_few_held_out_pairs_are_warned_of() -> None:
    (few,) = trust_warnings(trusting(0.0, trusted=29))
    assert few.startswith("Only 29 validation pairs are asked what helps; fewer than 30")
    assert trust_warnings(trusting(0.0, trusted=30)) == []


def test_noisy_validation_pairs_are_compared_with_the_pool() -> None:
    (like_the_pool,) = trust_warnings(trusting(0.2))
    assert like_the_pool == (
        "Held-out pairs are as noisy as the pool: 20.0 % (18.0 to 22.0) of the validation captions"
        " are estimated to be wrong; 900 of 1,000 are trusted and asked what helps; bring a clean"
        " target with --val_data."
    )
    (cleaner,) = trust_warnings(trusting(0.12))  # up to 13.2 %, the pool's begin at 17.8 %
    assert cleaner.startswith("Held-out pairs are noisy: 12.0 %")
    (blind,) = trust_warnings(trusting(0.2, taken_at_word=True))
    assert "all 1,000 are asked what helps all the same (--trust_validation)" in blind


def test_who_was_asked() -> None:
    assert judged_sentence(trusting()) == (
        "Validation pairs were judged before they judge, by how well image and caption agree: 900"
        " of 1,000 are asked what helps; 100 are not, 20 as near copies of others that are and 80"
        " because image and caption may not belong together. Of 5,000 test pairs 4,800 are trusted."
    )
    assert "1 is not, because" in judged_sentence(trusting(trusted=999, copies=0))
    assert "20 are not, as near copies of others that are." in (
        judged_sentence(trusting(trusted=980))
    )
    assert "1,000 of 1,000 are asked what helps. Of" in judged_sentence(
        trusting(trusted=1000, copies=0)
    )
    blind = judged_sentence(trusting(taken_at_word=True))
    assert "at their word (`--trust_validation`): all 1,000 are asked" in blind
    assert wrong_captions_sentence(trusting(0.21, None, trusted=1)) == (
        "Wrong captions, estimated: train 19.8 % (17.8 to 21.8), validation 21.0 % (18.9 to 23.1),"
        " test unknown; 1 of 1,000 validation pairs is asked what helps."
    )
    assert wrong_captions_sentence(trusting(taken_at_word=True)).endswith(
        "; 1,000 of 1,000 validation pairs are asked what helps."
    )


def test_a_narrow_target_is_told_where_nearness_to_it_counts() -> None:
    narrow = make_pair_quality(relevance_auc=0.9, relevance_weight=0.4)
    text = narrow_sentence(make_summary(3, pair_quality=narrow))
    assert "a classifier tells them from training pairs (AUC 0.90; 0.5 would be by chance)" in text
    assert text.endswith("counts in a pair's value, with weight 0.40.")
    for quality in (None, make_pair_quality(), narrow | {"relevance_weight": 0.05}):
        assert narrow_sentence(make_summary(3, pair_quality=quality)) == ""

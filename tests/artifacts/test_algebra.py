"""One thread for small matrices, in a block and in what computes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from artifacts.algebra import one_blas_thread
from attribution.additive_model import pool_influence
from attribution.relevance import held_out_relevance


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_threads_are_given_back() -> None:
    with threadpool_limits(2, "blas"):
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {2}
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert blas_threads() == {2}


def test_small_matrices_are_worked_on_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def watched(real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            seen.append(blas_threads())
            return real(*args, **named)

        return call

    monkeypatch.setattr(np.linalg, "eigh", watched(np.linalg.eigh))
    monkeypatch.setattr(LogisticRegression, "fit", watched(LogisticRegression.fit))
    rng = np.random.default_rng(0)
    known, topics = rng.standard_normal(40), rng.integers(0, 3, 40)
    features = rng.standard_normal((40, 5)).astype(np.float32)
    with threadpool_limits(2, "blas"):
        pool_influence(rng.standard_normal(20), np.arange(20), [known], topics)
        n_of_model = len(seen)
        held_out_relevance(features, features + 1, np.arange(40), rng=rng)
        assert blas_threads() == {2}
    assert 0 < n_of_model < len(seen)
    assert seen == [{1}] * len(seen)

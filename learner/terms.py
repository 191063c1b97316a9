"""What clusters are about in words: class-based TF-IDF (Grootendorst 2022, arXiv 2203.05794)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64
from sklearn.feature_extraction.text import CountVectorizer

from learner.words import caption_words, is_unspaced

N_TERMS = 6


def distinctive_terms(
    assignments: Int64[np.ndarray, " n"], n_clusters: int, captions: Sequence[str]
) -> list[list[str]]:
    """The words that set each cluster apart, best first, at most `N_TERMS` of them.

        score(t, k) = tf(t, k) * log(1 + A / f(t))      Grootendorst (2022), eq. 4

    with tf the count of word t in cluster k over the words of k, f its count over all clusters
    and A the mean number of words per cluster. Stop words are left out, and so is, in scripts
    without spaces, a word that is a part of a better one.
    """
    documents = [[] for _ in range(n_clusters)]  # type: list[list[str]]
    for caption, k in zip(captions, assignments, strict=True):
        documents[k].append(caption)
    vectorizer = CountVectorizer(analyzer=_words)
    try:
        counts = vectorizer.fit_transform(documents).toarray()
    except ValueError:  # scikit-learn's "empty vocabulary": no caption has a word
        return [[] for _ in range(n_clusters)]
    words = vectorizer.get_feature_names_out()
    totals = counts.sum(axis=1, keepdims=True)
    idf = np.log1p(totals.mean() / counts.sum(axis=0))
    scores = counts / np.maximum(totals, 1) * idf
    best = np.argsort(-scores, axis=1, kind="stable")
    return [_chosen(str(words[t]) for t in row if scores[k, t] > 0) for k, row in enumerate(best)]


def _words(captions: Iterable[str]) -> list[str]:
    return [word for caption in captions for word in caption_words(caption)]


def _chosen(ranked: Iterable[str]) -> list[str]:
    """The first `N_TERMS` words, where no spaces are without parts of those before them."""
    chosen: list[str] = []
    for word in ranked:
        if len(chosen) == N_TERMS:
            break
        if not (is_unspaced(word) and any(word in better for better in chosen)):
            chosen.append(word)
    return chosen

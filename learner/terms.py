"""What clusters are about in words: class-based TF-IDF (Grootendorst 2022, arXiv 2203.05794)."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64
from scipy import sparse
from tqdm import tqdm

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
    counts, words = _count(assignments, n_clusters, captions)
    totals = np.asarray(counts.sum(axis=1)).reshape(-1)
    found = np.asarray(counts.sum(axis=0)).reshape(-1)
    # A word that no caption has is not in `words`: nothing is divided by zero.
    idf = np.log1p(totals.mean() / found)
    terms = []
    for k in range(n_clusters):
        of_cluster = slice(counts.indptr[k], counts.indptr[k + 1])
        at = counts.indices[of_cluster]
        scores = counts.data[of_cluster] / max(totals[k], 1) * idf[at]
        terms.append(_chosen(words[t] for t in at[np.lexsort((at, -scores))]))
    return terms


def _count(
    assignments: Int64[np.ndarray, " n"], n_clusters: int, captions: Sequence[str]
) -> tuple[sparse.csr_matrix, list[str]]:
    """How often each word stands in the captions of each cluster, (K, number of words)."""
    order = np.argsort(assignments, kind="stable")
    starts = np.searchsorted(assignments[order], np.arange(n_clusters + 1))
    number: defaultdict[str, int] = defaultdict()
    number.default_factory = number.__len__  # a new word gets the next number
    columns, counts, ends = [], [], [0]
    with tqdm(
        total=len(captions),
        desc="terms",
        unit="caption",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        for start, stop in itertools.pairwise(starts):
            of_cluster = Counter(
                word for i in order[start:stop].tolist() for word in caption_words(captions[i])
            )
            columns.append(np.fromiter(map(number.__getitem__, of_cluster), np.int64))
            counts.append(np.fromiter(of_cluster.values(), np.int64))
            ends.append(ends[-1] + len(of_cluster))
            bar.update(int(stop - start))
    words = sorted(number)
    place = np.empty(len(words), dtype=np.int64)  # of each word by number in the sorted list
    place[[number[word] for word in words]] = np.arange(len(words))
    shape = (n_clusters, len(words))
    matrix = sparse.csr_matrix(
        (np.concatenate(counts), place[np.concatenate(columns)], ends), shape
    )
    return matrix, words


def _chosen(ranked: Iterable[str]) -> list[str]:
    """The first `N_TERMS` words, where no spaces are without parts of those before them."""
    chosen: list[str] = []
    for word in ranked:
        if len(chosen) == N_TERMS:
            break
        if not (is_unspaced(word) and any(word in better for better in chosen)):
            chosen.append(word)
    return chosen

"""Near copies before agreement, by hand; and the second view of agreement alone."""

from __future__ import annotations

import numpy as np
import pytest

from rivals.agreement import neg_clip_loss, neg_clip_loss_semdedup, refined_agreement
from tests.reference import scattered_problem
from tests.rivals.cases import at_angles, case_of, select


@pytest.mark.parametrize(
    ("size", "dropped"),
    [
        (6, {2, 5}),  # the nearest copies of all
        (5, {2, 5, 6}),
        (4, {1, 2, 5, 6}),  # the last of four that have a better copy
        (3, {0, 1, 2, 5, 6}),  # and then the caption that suits its image least
        (2, {0, 1, 2, 5, 6, 4}),
    ],
)
def test_copies_go_first_and_then_what_agrees_least(
    size: int, dropped: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # To the nearest harder image of the cluster 10, 1, 1 and 4 degrees for rows 1, 2, 5 and 6, and
    # 41 for row 3; see `test_similarity_to_harder_pairs_by_hand`.
    images = at_angles(0, 10, 40, 41, 100, 103, 104, 10)
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    agreement = np.array([0.1, 0.9, 0.9, 0.5, 0.2, 0.9, 0.9, 0.3])
    monkeypatch.setattr("rivals.agreement.neg_clip_loss", lambda *_, **__: agreement)
    case = case_of(
        8,
        image_embeddings=images,
        text_embeddings=images,
        cluster_assignments=clusters,
        better_copies=np.array([3, 1, 0, 0, 2, 0, 0, 1]),  # four, whichever they are
    )
    rows = neg_clip_loss_semdedup(case.pairs, size, rng=np.random.default_rng(0))
    assert set(range(8)) - set(rows.tolist()) == dropped
    assert len(rows) == size


def test_without_copies_agreement_alone_decides() -> None:
    images = at_angles(*range(0, 360, 30))
    texts = at_angles(*(30 * i + 7 * (i % 5) for i in range(12)))
    case = case_of(12, image_embeddings=images, text_embeddings=texts)
    chosen = [
        select(name, case, 0.5, rng=np.random.default_rng(0)).rows.tolist()
        for name in ("neg_clip_loss_semdedup", "neg_clip_loss")
    ]
    assert chosen[0] == chosen[1]


def test_the_second_view_tells_what_the_first_cannot() -> None:
    problem = scattered_problem(seed=1)
    case = case_of(
        len(problem.wrong),
        tensors=problem.pairs,
        validation=problem.validation,
        image_embeddings=problem.image_embeddings,
        text_embeddings=problem.text_embeddings,
        image_ids=problem.image_ids,
        cluster_assignments=problem.topics,
    )

    def auc(scores: np.ndarray) -> float:
        return float(np.mean(scores[~problem.wrong][:, None] > scores[problem.wrong]))

    first = auc(neg_clip_loss(case.pairs, rng=np.random.default_rng(0)))
    second = auc(refined_agreement(case.pairs, rng=np.random.default_rng(0)))
    assert second > first + 0.01
    assert second > 0.9
    kept = select("refined_agreement", case, 0.8, rng=np.random.default_rng(0)).rows
    assert problem.wrong[kept].mean() < 0.1  # 20 % of all pairs


def test_of_two_images_the_first_view_stands() -> None:
    case = case_of(6, image_ids=np.arange(6) % 2)
    first = neg_clip_loss(case.pairs, rng=np.random.default_rng(3))
    found = refined_agreement(case.pairs, rng=np.random.default_rng(3))
    np.testing.assert_allclose(found, first, rtol=1e-6)

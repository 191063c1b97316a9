"""Which pairs can be trusted: held-out pairs are judged before they judge.

Validation pairs decide what helps. Where they are drawn from the pool that is curated they are as
wrong as the rest of it, and what pleases wrong pairs is the opposite of what helps. So each is
asked first how likely its image and caption belong together, by the encoder and by a joint map
fitted to training pairs that look right, neither of which has seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from artifacts.settings import Settings, setting
from attribution.agreement import Surroundings, normalised_agreement, strangers
from attribution.fault_share import WrongShare, wrong_share, wrong_share_by_rank
from attribution.joined_views import Agreement, JoinedViews, join_views
from attribution.relevance import BothSides, Relevance, held_out_relevance
from encoders.joint_map import MIN_IMAGES, JointMap, embed_across_folds
from learner.groups import nearby_groups
from learner.near_copies import better_copies

TRAIN, VALIDATION, TEST = "train", "validation", "test"
MOST_TRUSTED = 0.8  # of the training pairs, that a map is fitted to
MOST_LOOKS = 3  # maps that are fitted, each to fewer pairs than the last
WORTH_A_LOOK = 0.05  # so much smaller a share of trusted pairs makes another map worth its time
JUDGING_NORMALISATIONS = 2
FEWEST_FITTED = 10  # trusted training pairs that are worth a map
JUDGING_FOLDS = 5  # each map sees four fifths of the trusted training pairs
CERTAINTY = 0.8  # that a held-out pair is right, from which it is trusted
ALL_COMPARED = 20_000  # held-out images up to which each is compared with all for near copies
FEWEST_TRUSTED = 10  # validation pairs that are asked, right or not
SMALLEST_SHARE = 0.005  # of wrong captions that is reckoned with where none are seen


@dataclass(frozen=True)
class TrustConfig(Settings):
    """Whether held-out pairs are judged."""

    trust_validation: bool = setting(
        False, "take the held-out pairs at their word: all validation pairs are asked what helps"
    )


class PairsInSpace(NamedTuple):
    """Pairs of one split, aligned rows."""

    image_features: Any  # (m, d_i) array; of training pairs whatever has `Rows`
    text_features: Any  # (m, d_t)
    image_embeddings: Float[np.ndarray, "m d"] | None  # in the encoder's joint space
    text_embeddings: Float[np.ndarray, "m d"] | None
    image_ids: Int64[np.ndarray, " m"]  # 0 to the number of images - 1


@dataclass(frozen=True)
class PairTrust:
    """What is said of n training, V validation and Q test pairs before any of them says anything.

    Log odds that image and caption belong together, where right and wrong pairs are equally
    frequent.
    """

    training_log_odds: Float[np.ndarray, " n"]  # at first sight
    encoder_agreement: Float[np.ndarray, " n"]  # normalised, in the encoder's joint space
    encoder_by_chance: Float[np.ndarray, " n"]  # the same with the captions of others
    strangers: Int64[np.ndarray, " n"]  # whose captions those are
    validation_log_odds: Float[np.ndarray, " V"]
    validation_copies: Int64[np.ndarray, " V"]  # near copies of its image that are asked instead
    validation_trusted: Bool[np.ndarray, " V"]  # whether it is asked what helps
    test_log_odds: Float[np.ndarray, " Q"]
    test_trusted: Bool[np.ndarray, " Q"]
    relevance: Float[np.ndarray, " n"]  # log density ratio of the pairs asked to the training pairs
    relevance_auc: float  # 0.5: the pairs asked are like the pool
    relevance_weight: float  # how much nearness to them counts, 0 to 1
    taken_at_word: bool  # by --trust_validation: all validation pairs are asked
    faults: dict[str, Any] = field(metadata={"file": "wrong_captions.json"})
    # by split: `pairs`; `share`, `low`, `high` of wrong captions, None where too few tell;
    # of held-out splits also `trusted`, of validation `near_copies`

    @property
    def encoder_view(self) -> Agreement:
        """Agreement of the training pairs in the encoder's joint space."""
        return Agreement(self.encoder_agreement, self.encoder_by_chance)

    @property
    def asked(self) -> Int64[np.ndarray, " k"]:
        """Rows of the validation pairs that decide what helps."""
        return np.flatnonzero(self.validation_trusted)

    @property
    def wrong_share_by_rank(self) -> WrongShare | None:
        """The same by how captions rank images in the encoder's joint space; None: not saved."""
        found = self.faults[TRAIN].get("by_rank")
        return None if found is None else WrongShare(*found)

    @property
    def wrong_share(self) -> WrongShare | None:
        """Of the training pairs."""
        found = self.faults[TRAIN]
        if found["share"] is None:
            return None
        return WrongShare(found["share"], found["low"], found["high"])


def judge_pairs(
    training: PairsInSpace,
    validation: PairsInSpace,
    test: PairsInSpace,
    config: TrustConfig,
    *,
    device: torch.device,
    near_copy_similarity: float,
    rng: np.random.Generator,
) -> PairTrust:
    """Judge all pairs, and choose the validation pairs that are asked.

    Training pairs are judged in folds, held-out pairs by the map of all trusted training pairs; no
    pair is judged by a map that was fitted to its image. Neither validation nor test pairs have a
    part in any map, nor in what is said of another. Trusted is a pair that is right with a
    probability of `CERTAINTY`, where as many are wrong as its split is estimated to hold; of near
    copies among the validation pairs the one that agrees best is asked.

    Args:
        training: n pairs with embeddings.
        validation: held-out pairs; without embeddings the joint map alone judges.
        test: held-out pairs.
        config: whether validation pairs are taken at their word.
        device: where cosines are computed.
        near_copy_similarity: least centred cosine of near copies, as in `learner.near_copies`.
        rng: deals folds and batches.
    """
    judge = _Judge.fitted(training, device, rng)
    own, chance = judge.log_odds(judge.views)
    share = wrong_share(own, chance, rng=rng)
    of_validation = _judge_held_out(judge, validation, share, rng)
    of_test = _judge_held_out(judge, test, share, rng)
    copies, asked = _asked(validation, of_validation, config, near_copy_similarity, rng)
    relevance = _relevance(judge, of_validation.spaces, asked, training.image_ids, rng)
    first = judge.views[0]
    return PairTrust(
        training_log_odds=own,
        encoder_agreement=first.own,
        encoder_by_chance=first.by_chance,
        strangers=judge.others,
        validation_log_odds=of_validation.log_odds,
        validation_copies=copies,
        validation_trusted=asked,
        test_log_odds=of_test.log_odds,
        test_trusted=of_test.trusted,
        relevance=relevance.log_ratio,
        relevance_auc=relevance.auc,
        relevance_weight=relevance.weight,
        taken_at_word=config.trust_validation,
        faults={
            TRAIN: {**_readable(len(own), share), **_by_rank(first)},
            VALIDATION: of_validation.readable(
                trusted=int(asked.sum()), near_copies=int((copies > 0).sum())
            ),
            TEST: of_test.readable(trusted=int(of_test.trusted.sum())),
        },
    )


class _HeldOutPairs(NamedTuple):
    """What is said of one held-out split."""

    spaces: list[_Space | None]
    log_odds: Float[np.ndarray, " m"]
    wrong_share: WrongShare | None
    trusted: Bool[np.ndarray, " m"]

    def readable(self, **counts: int) -> dict[str, float | None]:
        """The share of wrong captions, and how many pairs there are of each kind."""
        return _readable(len(self.log_odds), self.wrong_share, **counts)


def _judge_held_out(
    judge: _Judge,
    pairs: PairsInSpace,
    wrong_in_training: WrongShare | None,
    rng: np.random.Generator,
) -> _HeldOutPairs:
    spaces = judge.spaces_of(pairs)
    log_odds, by_chance = judge.log_odds(judge.views_in(spaces, pairs.image_ids, rng))
    share = wrong_share(log_odds, by_chance, rng=rng, like=wrong_in_training)
    return _HeldOutPairs(spaces, log_odds, share, log_odds >= _bar(share or wrong_in_training))


class _Space(NamedTuple):
    """Unit rows of a joint space."""

    images: Float[np.ndarray, "m d"]
    texts: Float[np.ndarray, "m d"]


class _Judge(NamedTuple):
    """The encoder's joint space and that of a map of trusted training pairs, on one scale."""

    spaces: list[_Space]  # of the training pairs: the encoder's, the maps'
    views: list[Agreement]  # of the training pairs, in each
    others: Int64[np.ndarray, " n"]  # whose captions stand for chance
    joined: list[JoinedViews]  # the scale of the first view alone, of the last, of all
    surroundings: list[Surroundings]
    joint_map: JointMap | None

    @classmethod
    def fitted(cls, pairs: PairsInSpace, device: torch.device, rng: np.random.Generator) -> _Judge:
        """To the training pairs that look right, as many as are estimated to be so.

        Where that leaves far fewer than the last map was fitted to, another is fitted.
        """
        if pairs.image_embeddings is None or pairs.text_embeddings is None:
            raise ValueError("training pairs must have embeddings")
        space = _Space(pairs.image_embeddings, pairs.text_embeddings)
        others = strangers(pairs.image_ids, rng)
        first = normalised_agreement(*space, device, rng=rng, others=others)
        around = Surroundings.drawn_from(*space, device, rng=rng)
        found = wrong_share(first.own, first.by_chance, rng=rng)
        wrong = found.share if found else 0.0
        share = min(MOST_TRUSTED, 1 - wrong)
        trusted = best(first.own, share)
        judge = cls([space], [first], others, [join_views([first], wrong, rng)] * 3, [around], None)
        if int(pairs.image_ids.max()) + 1 < MIN_IMAGES or trusted.sum() < FEWEST_FITTED:
            return judge
        for _ in range(MOST_LOOKS):
            images, texts, joint_map = embed_across_folds(
                *(pairs.image_features, pairs.text_features, pairs.image_ids),
                rng=rng,
                n_folds=JUDGING_FOLDS,
                trusted=trusted,
            )
            mapped = _Space(images, texts)
            views = [first, _few_batches(mapped, others, device, rng)]
            judge = cls(
                [space, mapped],
                views,
                others,
                [join_views(v, wrong, rng) for v in (views[:1], views[1:], views)],
                [around, Surroundings.drawn_from(*mapped, device, rng=rng)],
                joint_map,
            )
            own, chance = judge.log_odds(judge.views)
            found = wrong_share(own, chance, rng=rng)
            if found is None or 1 - found.share > share - WORTH_A_LOOK:
                break
            wrong, share = found.share, 1 - found.share
            trusted = best(own, share)
        return judge

    def spaces_of(self, pairs: PairsInSpace) -> list[_Space | None]:
        """Held-out pairs in the same spaces; None where they cannot be had."""
        images, texts = pairs.image_embeddings, pairs.text_embeddings
        spaces = [None if images is None or texts is None else _Space(images, texts)]
        if self.joint_map is not None:
            spaces.append(
                _Space(
                    self.joint_map.embed_images(pairs.image_features[:]),
                    self.joint_map.embed_texts(pairs.text_features[:]),
                )
            )
        return spaces

    def views_in(
        self,
        spaces: Sequence[_Space | None],
        image_ids: Int64[np.ndarray, " m"],
        rng: np.random.Generator,
    ) -> list[Agreement | None]:
        """What each space says of held-out pairs."""
        seed = int(rng.integers(2**63))  # the same strangers in all of them
        return [
            space and around.agreement(*space, image_ids, rng=np.random.default_rng(seed))
            for around, space in zip(self.surroundings, spaces, strict=True)
        ]

    def log_odds(
        self, views: Sequence[Agreement | None]
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " c"]]:
        """Of pairs, and of their images with captions of others."""
        there = [view for view in views if view is not None]
        alone, of_map, joined = self.joined
        if len(there) < len(self.views):
            joined = of_map if views[0] is None else alone
        return (
            joined.log_odds([view.own for view in there]),
            joined.log_odds([view.by_chance for view in there]),
        )


def _asked(
    validation: PairsInSpace,
    said: _HeldOutPairs,
    config: TrustConfig,
    near_copy_similarity: float,
    rng: np.random.Generator,
) -> tuple[Int64[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
    """How many near copies of each validation pair agree better, and whether it is asked."""
    images, n = validation.image_features[:], len(said.log_odds)
    groups = np.zeros(n, dtype=np.int64)
    if n > ALL_COMPARED:
        groups = nearby_groups(images, round(n**0.5), rng)
    copies = better_copies(images, groups, said.log_odds, near_copy_similarity)
    if config.trust_validation:
        return copies, np.ones(len(copies), dtype=bool)
    return copies, _enough(said.trusted & (copies == 0), said.log_odds)


def _few_batches(
    space: _Space,
    others: Int64[np.ndarray, " n"],
    device: torch.device,
    rng: np.random.Generator,
) -> Agreement:
    """Normalised agreement, a little noisier and much sooner; it is only a first sight."""
    return normalised_agreement(
        *space, device, rng=rng, others=others, n_normalisations=JUDGING_NORMALISATIONS
    )


def _relevance(
    judge: _Judge,
    spaces: Sequence[_Space | None],
    asked: Bool[np.ndarray, " V"],
    image_ids: Int64[np.ndarray, " n"],
    rng: np.random.Generator,
) -> Relevance:
    """How near training pairs are to the pairs asked, in the last space that both are in."""
    training, held_out = judge.spaces[-1], spaces[-1]
    if held_out is None:
        return Relevance(np.zeros(len(image_ids)), 0.5, 0.0)
    others = np.concatenate([side[asked] for side in held_out], axis=1)
    return held_out_relevance(BothSides(*training), others, image_ids, rng=rng)


def best(scores: Float[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """The given share of the pairs, at least one, of highest score."""
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind="stable")[: max(1, round(share * len(scores)))]] = True
    return chosen


def _bar(found: WrongShare | None) -> float:
    """Log odds from which a pair is right with `CERTAINTY`, where so many are wrong."""
    share = np.clip(found.share if found else 0.0, SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    return float(np.log(CERTAINTY / (1 - CERTAINTY)) + np.log(share / (1 - share)))


def _enough(trusted: Bool[np.ndarray, " V"], log_odds: Float[np.ndarray, " V"]) -> np.ndarray:
    """The trusted pairs, with the best of the others where they are too few to be asked."""
    needed = min(FEWEST_TRUSTED, len(trusted)) - int(trusted.sum())
    if needed > 0:
        trusted = trusted.copy()
        order = np.lexsort((-log_odds, trusted))
        trusted[order[:needed]] = True
    return trusted


def _by_rank(view: Agreement) -> dict[str, Any]:
    found = None if view.outranked is None else wrong_share_by_rank(view.outranked)
    return {} if found is None else {"by_rank": [found.share, found.low, found.high]}


def _readable(n: int, found: WrongShare | None, **counts: int) -> dict[str, float | None]:
    interval = {name: getattr(found, name) if found else None for name in ("share", "low", "high")}
    return {"pairs": n, **interval, **counts}

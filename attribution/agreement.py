"""How well image and text agree, beside other pairs: normalised, by neighbours, and seen again.

An encoder's joint space is not made for these pairs, or is made from the wrong captions too. So
once it is roughly known which pairs are wrong, a joint map is fitted, in folds, to the pairs that
look right at first sight and to the held-out pairs, and its word is joined with the first on one
calibrated scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata
from torch import Tensor
from tqdm import tqdm

from attribution.joined_views import Agreement, JoinedAgreement, joined_agreement
from encoders.joint_map import MIN_IMAGES, Moments, embed_across_folds
from learner.groups import members_of, nearby_groups
from learner.model import MAX_LOG_SCALE, contrastive_loss, projected_similarities, whole_batches
from learner.pairs import PairFeatures, PairTensors
from learner.sides import sides_of

N_NORMALISATIONS = 10  # random batches that every pair is in; Wang et al. (2024)
NORMALISATION_BATCH = 4096  # pairs; bounds memory to a few blocks of 64 MiB
FIT_BATCH = 1024  # pairs that the temperature is fitted to
ALL_NORMALISED = 50_000  # pairs up to which every shuffling is done, needed or not
FEWEST_NORMALISATIONS = 2  # that tell how far shufflings differ
LOGIT_ROWS_AT_ONCE = 128  # of a batch: what stays in a processor's cache
LEAST_SUM = 1e-25  # of exponentials, whose small ones float32 still tells from zero
SMALL_ERROR = 0.1  # standard error of a pair's agreement, of its spread over pairs
ROWS_AT_ONCE = 1024
MIN_BY_CHANCE = 1000  # images beside captions of others, for the spread of a few held-out pairs
N_NEIGHBOURS = 20
MAX_WITNESSES = 20_000  # pairs that others are compared with; bounds the time
ALL_COMPARED = 50_000  # pairs up to which neighbours are looked for everywhere
MOST_IN_GROUP = 4096  # pairs of a group that its others are compared with; bounds the time
MOST_TRUSTED = 0.95  # of the pairs that a map is fitted to, where all look right
REFINED_FOLDS = 10  # each map sees nine tenths of the trusted pairs


def normalised_agreement(
    image_embeddings: Float[np.ndarray, "n d"],
    text_embeddings: Float[np.ndarray, "n d"],
    device: torch.device,
    *,
    rng: np.random.Generator,
    others: Int64[np.ndarray, " n"] | None = None,
    n_normalisations: int | None = None,
) -> Agreement:
    """Agreement of image and text less that with the other pairs of a batch: Wang et al. (2024).

        s_ij = <f_i, g_j> - (tau / 2) [ log sum_k exp(<f_i, g_k> / tau)
                                        + log sum_k exp(<f_k, g_j> / tau) ]    arXiv 2405.19547

    with k over a random batch that holds i, averaged over `n_normalisations` shufflings of all
    pairs; a pair's own is s_ii. A caption that would suit most images scores low although its
    cosine may be high. The paper's tau and batch size (0.01 and 32,768) are those its encoder was
    trained with. Here a batch has at most `NORMALISATION_BATCH` pairs, and a set no larger is one
    batch; tau is learnt, see `fit_log_scale`.

    Args:
        image_embeddings: unit rows.
        text_embeddings: unit rows.
        device: where cosines are computed.
        rng: deals the batches.
        others: whose caption each image is given for its agreement by chance; drawn by default.
            Views that are to be joined must be given the same.
        n_normalisations: shufflings, where the pairs are more than one batch; by default ten. Of
            more than 50,000 pairs, only until the standard error of a pair's agreement over
            shufflings is a tenth of its spread over pairs, but two.
    """
    n = len(image_embeddings)
    log_scale = _scale_that_suits(image_embeddings, text_embeddings, device, rng)
    shuffles = _Shuffles(n)
    for batches in _shufflings(n, n_normalisations or N_NORMALISATIONS, shuffles, rng):
        for batch in tqdm(batches, desc="negCLIPLoss", unit="batch", disable=None, leave=False):
            images, texts = _tensors(image_embeddings[batch], text_embeddings[batch], device)
            logits = projected_similarities(images, texts, log_scale)
            diagonal = logits.diagonal().clone()
            beaten = _n_above(logits, diagonal) / max(len(batch) - 1, 1)
            found = diagonal, beaten, *_log_sums(logits)
            shuffles.add(batch, *(values.double().cpu().numpy() for values in found))
    own, outranked, by_image, by_text = shuffles.means()
    own, by_image, by_text = (x * math.exp(-float(log_scale)) for x in (own, by_image, by_text))
    if others is None:
        others = strangers(np.arange(n), rng)
    crossed = _cosines(image_embeddings, text_embeddings, others, device)
    chance = (by_image + by_text) / 2, (by_image + by_text[others]) / 2
    return Agreement(own - chance[0], crossed - chance[1], outranked)


def _shufflings(
    n: int, n_normalisations: int, shuffles: _Shuffles, rng: np.random.Generator
) -> Iterator[list[Int64[np.ndarray, " b"]]]:
    """The batches of one shuffling of n pairs after the other, as many as are worth their time.

    Up to `ALL_NORMALISED` pairs all of them, in one go.
    """
    n_shuffles = n_normalisations if n > NORMALISATION_BATCH else 1
    if n <= ALL_NORMALISED:
        yield [b for _ in range(n_shuffles) for b in whole_batches(n, NORMALISATION_BATCH, rng)]
        return
    for n_done in range(n_shuffles):
        if n_done >= FEWEST_NORMALISATIONS and shuffles.are_enough():
            return
        shuffles.begin()
        yield list(whole_batches(n, NORMALISATION_BATCH, rng))


def _n_above(logits: Float[Tensor, "b b"], diagonal: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """How many logits of every column are above the one on the diagonal."""
    found = torch.zeros_like(diagonal)
    room = torch.empty_like(logits[:LOGIT_ROWS_AT_ONCE])
    for block in logits.split(LOGIT_ROWS_AT_ONCE):
        # Ones and zeros in float32, which are summed far faster than truth values are.
        found += torch.gt(block, diagonal, out=room[: len(block)]).sum(dim=0)
    return found


def _exact_log_sums(logits: Float[Tensor, "b b"]) -> tuple[Tensor, Tensor]:
    """The log of the sum of exponentials of every row, and of every column."""
    return torch.logsumexp(logits, dim=1), torch.logsumexp(logits, dim=0)


def _log_sums(logits: Float[Tensor, "b b"]) -> tuple[Tensor, Tensor]:
    """The same from one matrix of exponentials, four times as fast, where float32 holds them."""
    top = logits.max()
    by_row, by_column = [], torch.zeros_like(logits[0])
    for block in logits.split(LOGIT_ROWS_AT_ONCE):
        shares = (block - top).exp_()
        by_row.append(shares.sum(dim=1))
        by_column += shares.sum(dim=0)
    sums = torch.cat(by_row), by_column
    if min(float(side.min()) for side in sums) < LEAST_SUM:
        return _exact_log_sums(logits)
    return sums[0].log() + top, sums[1].log() + top


class _Shuffles:
    """Sums over the batches that each of n pairs was in, and how far shufflings differ."""

    def __init__(self, n: int) -> None:
        self.sums, self.counts = np.zeros((4, n)), np.zeros(n)  # see `add`
        self.now: Float[np.ndarray, " n"] | None = None  # of this shuffling: own less the others'
        self.n_done = 0
        self.mean, self.squares = np.zeros(n), np.zeros(n)  # over shufflings; Welford (1962)

    def begin(self) -> None:
        """A shuffling whose agreement is compared with that of the others."""
        self.settle()
        self.now = np.zeros(self.sums.shape[1])

    def settle(self) -> None:
        """Count the shuffling that is done."""
        if self.now is not None:
            self.n_done += 1
            off = self.now - self.mean
            self.mean += off / self.n_done
            self.squares += off * (self.now - self.mean)
            self.now = None

    def add(
        self,
        batch: Int64[np.ndarray, " b"],
        own: Float[np.ndarray, " b"],
        outranked: Float[np.ndarray, " b"],
        by_image: Float[np.ndarray, " b"],
        by_text: Float[np.ndarray, " b"],
    ) -> None:
        """What one batch says of its pairs: logits, ranks and, by side, log sums."""
        for row, values in zip(self.sums, (own, outranked, by_image, by_text), strict=True):
            row[batch] += values
        self.counts[batch] += 1
        if self.now is not None:
            self.now[batch] = own - (by_image + by_text) / 2

    def are_enough(self) -> bool:
        """Whether the mean's standard error is small against the spread over pairs."""
        self.settle()
        variance = float(self.squares.mean()) / (self.n_done - 1) / self.n_done
        return math.sqrt(variance) <= SMALL_ERROR * float(self.mean.std())

    def means(self) -> Float[np.ndarray, "4 n"]:
        """Over all batches that a pair was in."""
        return np.asarray(self.sums / self.counts)


def _cosines(
    images: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "n d"],
    others: Int64[np.ndarray, " n"],
    device: torch.device,
) -> Float[np.ndarray, " n"]:
    """Of each image with the caption of another."""
    found = np.empty(len(images))
    for start in range(0, len(images), NORMALISATION_BATCH):
        rows = slice(start, start + NORMALISATION_BATCH)
        sides = _tensors(images[rows], texts[others[rows]], device)
        found[rows] = (sides[0] * sides[1]).sum(dim=1).double().cpu().numpy()
    return found


def _scale_that_suits(
    images: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "n d"],
    device: torch.device,
    rng: np.random.Generator,
) -> Tensor:
    """See `fit_log_scale`; of pairs that are not all held."""
    rows = rng.permutation(len(images))[:FIT_BATCH]
    return _fitted_log_scale(*_tensors(images[rows], texts[rows], device))


def fit_log_scale(images: Tensor, texts: Tensor, *, rng: np.random.Generator) -> Tensor:
    """The log of 1 / temperature of least contrastive loss over one random batch, up to CLIP's cap.

    What CLIP learns beside its towers; not every encoder has such a temperature. To 0.1.
    """
    rows = torch.from_numpy(rng.permutation(len(images))[:FIT_BATCH]).to(images.device)
    return _fitted_log_scale(images[rows], texts[rows])


def _fitted_log_scale(images: Tensor, texts: Tensor) -> Tensor:
    scales = torch.linspace(0, MAX_LOG_SCALE, 47, device=images.device)
    losses = [contrastive_loss(projected_similarities(images, texts, scale)) for scale in scales]
    return scales[torch.stack(losses).argmin()]


def strangers(
    image_ids: Int64[np.ndarray, " m"], rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """For every pair one of another image, each once; of the same where one image has too many."""
    m = len(image_ids)
    order = rng.permutation(m)
    order = order[np.argsort(image_ids[order], kind="stable")]  # the pairs of an image together
    largest = int(np.unique(image_ids, return_counts=True)[1].max())
    largest = min(largest, max(m - 1, 1))  # of one image alone, at least another pair
    found = np.empty(m, dtype=np.int64)
    found[order] = np.roll(order, -int(rng.integers(largest, max(m - largest, largest) + 1)))
    return found


def _tensors(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"], device: torch.device
) -> tuple[Tensor, Tensor]:
    # What lies in a file is read-only, which no tensor is.
    sides = (np.require(side, np.float32, ["C", "W"]) for side in (images, texts))
    found = [torch.from_numpy(side).to(device) for side in sides]
    return found[0], found[1]


class Surroundings(NamedTuple):
    """The training pairs that other pairs are compared with."""

    images: Float[Tensor, "b d"]  # unit rows
    texts: Float[Tensor, "b d"]
    log_scale: Tensor

    @classmethod
    def drawn_from(
        cls,
        image_embeddings: Float[np.ndarray, "n d"],
        text_embeddings: Float[np.ndarray, "n d"],
        device: torch.device,
        *,
        rng: np.random.Generator,
    ) -> Surroundings:
        """One batch of them at random, at the temperature that suits them."""
        rows = rng.permutation(len(image_embeddings))[:NORMALISATION_BATCH]
        images, texts = _tensors(image_embeddings[rows], text_embeddings[rows], device)
        return cls(images, texts, fit_log_scale(images, texts, rng=rng))

    def agreement(
        self,
        image_embeddings: Float[np.ndarray, "m d"],
        text_embeddings: Float[np.ndarray, "m d"],
        image_ids: Int64[np.ndarray, " m"],
        *,
        rng: np.random.Generator,
    ) -> Agreement:
        """Normalised agreement of m other pairs, each beside these and itself alone.

        So a held-out pair is judged as a training pair is, and none of them has a part in what is
        said of another. Chance is asked `MIN_BY_CHANCE` times or more, each image about as often.
        """
        images, texts = _tensors(image_embeddings, text_embeddings, self.images.device)
        own = [self._agreement(images, texts)]
        repeats = -(-MIN_BY_CHANCE // len(image_ids))
        others = [strangers(image_ids, rng) for _ in range(repeats)]
        crossed = [
            self._agreement(images, texts[torch.from_numpy(o).to(images.device)]) for o in others
        ]
        return Agreement(np.concatenate(own), np.concatenate(crossed))

    def _agreement(self, images: Tensor, texts: Tensor) -> Float[np.ndarray, " m"]:
        """With the i-th caption for the i-th image."""
        scale = self.log_scale.exp()
        found = []
        for rows in torch.arange(len(images), device=images.device).split(ROWS_AT_ONCE):
            own = scale * (images[rows] * texts[rows]).sum(dim=1)
            sides = ((images[rows], self.texts), (texts[rows], self.images))
            chances = [
                torch.logsumexp(torch.cat([scale * side @ others.T, own[:, None]], dim=1), dim=1)
                for side, others in sides
            ]
            found.append((own - (chances[0] + chances[1]) / 2) / scale)
        return np.asarray(torch.cat(found).double().cpu().numpy())


def neighbour_agreement(
    embeddings: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "n d2"],
    may_witness: Bool[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
    groups: Int64[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, " n"]:
    """Mean cosine of a pair's other side with that of its 20 nearest pairs on this side.

    With image embeddings first and text embeddings second: is this caption like the captions of
    the most similar images? It errs on other pairs than the CLIP score, which compares a pair with
    itself alone.

    Of more than `ALL_COMPARED` pairs, neighbours are looked for within groups of close pairs, so
    that the cost stays near n^1.5. Pairs of a group with few to ask are compared with all.

    Args:
        embeddings: unit rows in which neighbours are looked for.
        others: unit rows, compared between neighbours.
        may_witness: pairs that are asked; 20,000 of them at random where there are more.
        rng: draws those, and groups where none are given.
        groups: about sqrt(n) groups of pairs that are close in `embeddings`, for many pairs.
    """
    if len(embeddings) <= ALL_COMPARED:
        rows = np.arange(len(embeddings))
        return _among_all(embeddings, others, may_witness, rows, rng=rng)
    if groups is None:
        groups = nearby_groups(embeddings, round(len(embeddings) ** 0.5), rng)
    agreement, left = np.empty(len(embeddings)), []
    members = members_of(groups)
    for rows in tqdm(members, desc="neighbours", unit="group", disable=None, leave=False):
        witnesses = np.flatnonzero(may_witness[rows])
        if len(witnesses) > MOST_IN_GROUP:
            witnesses = np.sort(rng.choice(witnesses, MOST_IN_GROUP, replace=False))
        if len(witnesses) <= N_NEIGHBOURS:
            left.append(rows)
        else:
            agreement[rows] = _within_group(embeddings[rows], others[rows], witnesses)
    if left:
        rows = np.sort(np.concatenate(left))
        agreement[rows] = _among_all(embeddings, others, may_witness, rows, rng=rng)
    return agreement


def _within_group(
    embeddings: Float[np.ndarray, "g d"],
    others: Float[np.ndarray, "g d2"],
    witnesses: Int64[np.ndarray, " w"],
) -> Float[np.ndarray, " g"]:
    """`neighbour_agreement` of the pairs of one group with its own witnesses."""
    here, there = _tensors(embeddings, others, torch.device("cpu"))
    asked = torch.from_numpy(witnesses)
    found = []
    for rows in torch.arange(len(here)).split(ROWS_AT_ONCE):
        cosines = here[rows] @ here[asked].T
        cosines[rows[:, None] == asked[None, :]] = -torch.inf  # nobody is their own witness
        nearest = cosines.topk(N_NEIGHBOURS, dim=1, sorted=False).indices
        found.append((there[rows] @ there[asked].T).gather(1, nearest).mean(dim=1))
    return np.asarray(torch.cat(found).double().numpy())


def _among_all(
    embeddings: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "n d2"],
    may_witness: Bool[np.ndarray, " n"],
    asking: Int64[np.ndarray, " m"],
    *,
    rng: np.random.Generator,
) -> Float[np.ndarray, " m"]:
    """`neighbour_agreement` of some pairs with witnesses from everywhere."""
    witnesses: Int64[np.ndarray, " w"] = np.flatnonzero(may_witness)
    if len(witnesses) > MAX_WITNESSES:
        witnesses = np.sort(rng.permutation(witnesses)[:MAX_WITNESSES])
    k = min(N_NEIGHBOURS, len(witnesses) - 1)
    if k < 1:
        return np.zeros(len(asking))
    agreement, known = np.empty(len(asking)), embeddings[witnesses]
    for start in range(0, len(asking), ROWS_AT_ONCE):
        rows = asking[start : start + ROWS_AT_ONCE]
        cosines = embeddings[rows] @ known.T
        cosines[rows[:, None] == witnesses[None, :]] = -np.inf  # nobody is their own witness
        nearest = witnesses[np.argpartition(cosines, -k, axis=1)[:, -k:]]
        agreement[start : start + ROWS_AT_ONCE] = (
            np.einsum("rd,rkd->r", others[rows], others[nearest]) / k
        )
    return agreement


def refine_agreement(
    first: Agreement,
    held_out_losses: Float[np.ndarray, " n"],
    pairs: PairFeatures,
    image_ids: Int64[np.ndarray, " n"],
    validation: PairTensors,
    *,
    others: Int64[np.ndarray, " n"],
    wrong_share: float,
    rng: np.random.Generator,
    encoder_alone: bool = False,
) -> JoinedAgreement:
    """Log odds that image and caption belong together, by two views of the pairs.

    No pair is judged by a map that was fitted to its own image. Of fewer than three images no map
    can be fitted, and the first view stands alone.

    Args:
        first: agreement in the encoder's joint space.
        held_out_losses: of each pair, by models that have not trained on it, nats.
        pairs: features of the n pairs; read in blocks where they lie in files.
        image_ids: which image each shows, 0 to the number of images - 1.
        validation: held-out pairs, all of them trusted.
        others: whose captions stood for chance in the first view.
        wrong_share: of the pairs, as estimated at first sight.
        rng: deals folds and batches.
        encoder_alone: fit no map.
    """
    if encoder_alone or int(image_ids.max()) + 1 < MIN_IMAGES:
        return joined_agreement([first], wrong_share, rng)
    refined_images, refined_texts, _ = embed_across_folds(
        *sides_of(pairs),
        image_ids,
        rng=rng,
        n_folds=REFINED_FOLDS,
        trusted=trusted_pairs(first.own, held_out_losses, 1 - wrong_share),
        further=Moments.of(*sides_of(validation)),
    )
    refined = normalised_agreement(
        refined_images, refined_texts, pairs.device, rng=rng, others=others
    )
    return joined_agreement([first, refined], wrong_share, rng)


def trusted_pairs(
    agreement: Float[np.ndarray, " n"], held_out_losses: Float[np.ndarray, " n"], share: float
) -> Bool[np.ndarray, " n"]:
    """The pairs of which agreement and held-out loss say best, by the sum of their ranks.

    Args:
        agreement: of the pairs.
        held_out_losses: nats.
        share: of the pairs that is to be trusted; `MOST_TRUSTED` at most, and one pair at least.
    """
    doubts = rankdata(held_out_losses) - rankdata(agreement)
    n_trusted = max(1, round(min(share, MOST_TRUSTED) * len(doubts)))
    trusted = np.zeros(len(doubts), dtype=bool)
    trusted[np.argsort(doubts, kind="stable")[:n_trusted]] = True
    return trusted

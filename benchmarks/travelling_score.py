"""Does one law of pair influence travel: fitted on one data set, frozen, applied to others?

    python benchmarks/travelling_score.py --data_dir path/to/flickr8k --work_dir WORK

A ridge regression on smooth functions of what costs no influence (log odds of agreement, CLIP
score, held-out loss, near copies, neighbours' agreement), each standardised within its data set, is
fitted to the pair influence of one run on 20 % wrong captions and frozen. On other pairs, with
other faults, and with another text encoder (TF-IDF reduced by a singular value decomposition), its
word takes the place of the influence estimated there. Beside it: InfluenceSpace as it is, and
without influence. Trained are as many steps as on the full data. Half of the regimes' pairs are
taken, in joint embeddings fitted to all of them. What is computed lies in `--work_dir` and is not
computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# First: it says how many threads the libraries below may have.
from regimes import embedded_encoder  # isort: skip

import numpy as np
import pandas as pd
from flickr8k_regimes import Pool, Regime, load_pool, make_regime
from regimes_methods import (
    Variant,
    curate_with_influencespace,
    pair_influence_of,
    trust_of,
)
from regimes_problem import (
    Problem,
    asking,
    full_steps,
    known,
    make_problem,
    pool_of,
    test_set_of,
)
from regimes_training import TrainingOf, measured
from scipy.stats import spearmanr
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from tqdm import tqdm

from artifacts.provenance import hardware, stage_rng
from attribution.additive_model import smooth_basis
from attribution.agreement import neighbour_agreement
from attribution.guard import guard_influence
from attribution.results import PairInfluence
from attribution.scores import standardised
from attribution.trust import PairTrust
from learner.config import LOSS

RESULTS = Path(__file__).resolve().parent / "results"
FITTED_ON, FITTED_SEED, FIRST_SEED = "wrong_20", 29, 30
KEEP = (0.4, 0.8)
N_PAIRS = 2500
PENALTIES = np.logspace(-2, 4, 13)
TEXT_WIDTH = 256  # of the other encoder, as of the embedded one
LAW, WHOLE, WITHOUT = METHODS = ("the law", "InfluenceSpace", "without influence")
LAW_LESS_WHOLE, WHOLE_LESS_WITHOUT = "law - InfluenceSpace", "InfluenceSpace - without"


class Setting(NamedTuple):
    """One kind of data set that the law is applied to."""

    label: str
    regime: str
    other_encoder: bool = False


SETTINGS = (
    Setting("20 % wrong, other pairs", "wrong_20"),
    Setting("40 % wrong", "wrong_40"),
    Setting("clean", "clean"),
    Setting("20 % boilerplate", "boilerplate_20"),
    Setting("20 % wrong, TF-IDF text", "wrong_20", True),
)


class Known(NamedTuple):
    """A set of pairs, and what InfluenceSpace estimates of them."""

    problem: Problem
    asking: Problem
    trust: PairTrust
    estimate: PairInfluence


# --- Another encoder --------------------------------------------------------------------------


def with_tfidf_texts(pool: Pool) -> Pool:
    """The same pool with captions as TF-IDF vectors, fitted to the `train` images' captions."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=3)
    fitted = vectorizer.fit_transform(pool.captions[pool.is_train].reshape(-1))
    reduced = TruncatedSVD(TEXT_WIDTH, random_state=0).fit(fitted)
    texts = reduced.transform(vectorizer.transform(pool.captions.reshape(-1)))
    return pool._replace(
        texts=texts.astype(np.float32).reshape(*pool.captions.shape, -1),
        # None of their words is known: a caption that says nothing.
        boilerplates=np.zeros((len(pool.boilerplates), TEXT_WIDTH), dtype=np.float32),
    )


def pool_files(data_dir: Path, work_dir: Path) -> tuple[Path, Path]:
    """The embedded pool, and the one of the other encoder, made where they are not there."""
    usual, other = work_dir / "pool.npz", work_dir / "pool_tfidf.npz"
    pool = load_pool(data_dir, usual, embedded_encoder)
    if not other.exists():
        np.savez(other, **with_tfidf_texts(pool)._asdict())
    return usual, other


# --- The law ----------------------------------------------------------------------------------


def some_of(regime: Regime) -> Regime:
    """The first of a regime's pairs, which are in no particular order."""
    rows = slice(N_PAIRS)
    return regime._replace(
        image_features=regime.image_features[rows],
        text_features=regime.text_features[rows],
        captions=regime.captions[rows],
        faults=regime.faults[rows],
        image_embeddings=regime.image_embeddings[rows],
        text_embeddings=regime.text_embeddings[rows],
    )


def know(regime: str, pool_file: Path, seed: int) -> Known:
    """One set of pairs, judged and evaluated as stage 2 does."""
    drawn = some_of(make_regime(regime, pool_of(pool_file), seed))
    problem = make_problem(drawn, seed, test_set_of(pool_file, ""))
    trust, _ = trust_of(problem)
    asked = asking(problem, trust)
    estimate, _ = pair_influence_of(asked, trust, Variant().cells)
    return Known(problem, asked, trust, estimate)


def features(pairs: Known) -> np.ndarray:
    """Smooth functions of what is known of every pair without influence, (n, q).

    Ranks and standard deviations within the data set, so that their scales are the same in all.
    """
    k, rng = known(pairs.asking), stage_rng(pairs.problem.seed, "travelling_score")
    everyone = np.ones(len(k.indices), dtype=bool)
    images, texts = k.image_embeddings, k.text_embeddings
    quantities = (
        pairs.estimate.agreement,
        k.clip_scores.astype(np.float64),
        pairs.estimate.held_out_losses,
        np.minimum(k.better_copies, 3).astype(np.float64),
        neighbour_agreement(images, texts, everyone, rng=rng),
        neighbour_agreement(texts, images, everyone, rng=rng),
    )
    return np.concatenate([smooth_basis(q) for q in quantities], axis=1)


class Law(NamedTuple):
    """Standardised influence as a linear function of the features."""

    coefficients: np.ndarray  # (q,)
    intercept: float
    explained: float  # of what it was fitted to

    @classmethod
    def fitted(cls, pairs: Known) -> Law:
        """To one run."""
        x, y = features(pairs), standardised(pairs.estimate.pair_influence)
        model = RidgeCV(PENALTIES).fit(x, y)
        return cls(model.coef_, float(model.intercept_), float(model.score(x, y)))

    def of(self, pairs: Known) -> np.ndarray:
        """What it says of other pairs, (n,), on no particular scale."""
        return np.asarray(features(pairs) @ self.coefficients + self.intercept)


# --- What it is worth -------------------------------------------------------------------------


def variant_of(method: str, pairs: Known, foretold: np.ndarray) -> Variant:
    """InfluenceSpace with the law's word for influence, as it is, or without influence."""
    if method == WHOLE:
        return Variant()
    if method == WITHOUT:
        return Variant(parts={"influence_weight": 0.0})
    # Held to the same check as an influence that was estimated.
    guard = guard_influence(foretold, pairs.estimate.agreement, pairs.trust.wrong_share)
    return Variant(parts={"pair_influence": foretold, "influence_weight": guard.weight})


def rows_of(setting: Setting, pairs: Known, law: Law) -> Iterator[dict[str, Any]]:
    """Agreement with the influence estimated here, and what is learnt from the pairs kept."""
    foretold, estimated = law.of(pairs), pairs.estimate.pair_influence
    evaluated = pairs.estimate.pair_influence_evaluated
    faulty = pairs.problem.regime.faults != ""
    own = Law.fitted(pairs)
    said = {
        "spearman": float(spearmanr(foretold, estimated).statistic),
        "spearman_evaluated": float(spearmanr(foretold[evaluated], estimated[evaluated]).statistic),
        "spearman_own_law": float(spearmanr(own.of(pairs), estimated).statistic),
    }
    for keep in KEEP:
        for method in METHODS:
            variant = variant_of(method, pairs, foretold)
            curated, _, _ = curate_with_influencespace(pairs.problem, keep, variant)
            rows = curated.curated_rows
            steps = full_steps(pairs.problem)
            learnt = measured(pairs.problem, TrainingOf(rows, curated.sample_weights, LOSS, steps))
            yield {
                "setting": setting.label,
                "seed": pairs.problem.seed,
                "keep": keep,
                "method": method,
                "mean_recall": learnt["mean_recall"],
                "faults_left": float(faulty[rows].mean()),
                **said,
            }


def compute(usual: Path, other: Path, n_seeds: int, file: Path) -> pd.DataFrame:
    """All rows; those of a setting and seed that are in the file are not computed again."""
    done: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    there = {(row["setting"], row["seed"]) for row in done}
    units = [
        (setting, seed)
        for seed in range(FIRST_SEED, FIRST_SEED + n_seeds)
        for setting in SETTINGS
        if (setting.label, seed) not in there
    ]
    law = Law.fitted(know(FITTED_ON, usual, FITTED_SEED)) if units else None
    for setting, seed in tqdm(units, desc="sets of pairs", unit="set", disable=None):
        assert law is not None, "there is something to compute"
        pairs = know(setting.regime, other if setting.other_encoder else usual, seed)
        done += rows_of(setting, pairs, law)
        file.write_text(json.dumps(done, indent=1))
    rows = pd.DataFrame(done)
    return rows[rows["seed"] < FIRST_SEED + n_seeds]


# --- Tables -----------------------------------------------------------------------------------


def plus_minus(values: pd.Series, digits: int = 2) -> str:
    """Mean and standard error over seeds."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def recall_table(rows: pd.DataFrame) -> list[str]:
    """Mean recall of every method, and the differences, paired by seed."""
    columns = (*METHODS, LAW_LESS_WHOLE, WHOLE_LESS_WITHOUT)
    lines = [f"| pairs, kept | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for setting in SETTINGS:
        for keep in KEEP:
            some = rows[(rows["setting"] == setting.label) & (rows["keep"] == keep)]
            by_method = some.pivot(index="seed", columns="method", values="mean_recall")
            left = some.groupby("method")["faults_left"].mean()
            cells = [f"{plus_minus(by_method[m])} ({100 * left[m]:.1f} %)" for m in METHODS]
            cells.append(plus_minus(by_method[LAW] - by_method[WHOLE]))
            cells.append(plus_minus(by_method[WHOLE] - by_method[WITHOUT]))
            lines.append(f"| {setting.label}, {100 * keep:.0f} % | {' | '.join(cells)} |")
    return lines


def correlation_table(rows: pd.DataFrame) -> list[str]:
    """How well the law's order is that of the influence estimated there."""
    names = {
        "spearman": "all pairs",
        "spearman_evaluated": "pairs that were evaluated",
        "spearman_own_law": "a law fitted there, all pairs",
    }
    lines = [f"| rank correlation | {' | '.join(names.values())} |", "|---" * 4 + "|"]
    for setting in SETTINGS:
        some = rows[rows["setting"] == setting.label].drop_duplicates("seed")
        cells = [plus_minus(some[name]) for name in names]
        lines.append(f"| {setting.label} | {' | '.join(cells)} |")
    return lines


def write_page(rows: pd.DataFrame, file: Path) -> None:
    """The tables with how they came about."""
    n_seeds, machine = rows["seed"].nunique(), f"{hardware()['cpu_cores']} CPU cores"
    text = [
        "# Does one law of influence travel?",
        "",
        "`python benchmarks/travelling_score.py --data_dir path/to/flickr8k --work_dir WORK "
        f"--seeds {n_seeds}`, {machine}. The law is fitted to one run on 20 % wrong captions "
        f"(seed {FITTED_SEED}) and frozen; {N_PAIRS:,} pairs each. Mean ± standard error over "
        f"{n_seeds} seeds (from {FIRST_SEED}), differences paired by seed; mean recall in percent "
        "on 1,000 unseen images, as many steps as on the full data; in brackets the faulty pairs "
        "among the kept.",
        "",
        *recall_table(rows),
        "",
        *correlation_table(rows),
        "",
    ]
    file.write_text("\n".join(text))


def main() -> None:
    """Compute what is missing, then the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="Flickr8k")
    parser.add_argument("--work_dir", type=Path, required=True, help="where pools and rows are")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    usual, other = pool_files(args.data_dir, args.work_dir)
    rows = compute(usual, other, args.seeds, args.work_dir / "travelling_score.json")
    write_page(rows, args.out / "travelling_score.md")


if __name__ == "__main__":
    main()

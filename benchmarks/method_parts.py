"""What four parts of stage 2 and the curation are worth, each beside the way it was before.

    python benchmarks/method_parts.py --data_dir ../shared/data/flickr8k --work_dir /tmp/regimes

1. Join of the two views of agreement: a logistic regression whose positives are the pairs that look
   right at first sight, cut off along the first view, against `join_views`, whose positives are all
   pairs, contaminated by the estimated share of wrong captions. Both are given the same views.
2. Share of the pairs that the second view's joint maps are fitted to: 0.8 always, or one less the
   estimated share of wrong captions.
3. Share of faulty pairs: by mixture at first sight, by mixture on the joined scale, by rank in the
   encoder's space, and the mean of the last two, of 5,000 pairs, of 1,000 of these judged among
   all (what sampling does), and of the same 1,000 as a set of their own (what maps of few do).
4. The floor that keeps a twentieth of every topic, at 40 % kept: of all its pairs, of those that
   do not look faulty by themselves, and of those that do not in the company of their topic.

Nothing but stage 2's parts up to agreement is computed: no set that is kept is trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np
from flickr8k_regimes import N_TRAINING, Regime, load_pool, make_regime
from regimes import embedded_encoder, regime_name
from regimes_methods import trust_of
from regimes_names import RESULTS, regime_label
from regimes_problem import TRAINING, Problem, asking, known, make_problem, test_set_of
from regimes_report import markdown_table
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from artifacts.provenance import hardware, package_versions, stage_rng
from attribution.agreement import REFINED_FOLDS, normalised_agreement, trusted_pairs
from attribution.cluster_scores import InfluenceConfig
from attribution.cross_fitting import cross_fit
from attribution.fault_share import both_shares, wrong_share, wrong_share_by_rank
from attribution.guard import log_probability_right
from attribution.joined_views import RIDGE, Agreement, JoinedViews, join_views
from attribution.pair_scores import PairInfluenceConfig
from attribution.topic_faults import looks_right
from attribution.trust import PairTrust
from benchmarks.rooms import temporary_room
from curation import NEUTRAL, CurationConfig, chosen_rows, curated_size, value_parts
from encoders.joint_map import Moments, embed_across_folds
from learner.pairs import TrainingPairs
from learner.sides import sides_of

REGIMES = ("clean", "wrong_20", "wrong_40", "wrong_60", "boilerplate_20")
SEEDS = (60, 61, 62)
FEW = 1000  # pairs of the smaller set
TRUSTED_BEFORE = 0.8  # share that was trusted whatever the noise
KEEP = 0.4  # where the floor is looked at
FIRST, SECOND = "first view alone", "second view alone"
BEFORE, NOW, TRUTH = "joined, cut off", "joined, contaminated", "joined by the true labels"
BEFORE_ALL = "joined, cut off, 0.8 trusted"  # the whole way that it was before
ALWAYS, ESTIMATED = "0.8 always", "one less the faults"
AT_SIGHT, ON_SCALE, BY_RANK, BOTH = "at first sight", "joined scale", "by rank", "mean of both"
ALL, AMONG_ALL, ALONE = "all", "1,000 judged among all", "1,000 alone"
NO_FLOOR, FOR_ALL, NOT_FAULTY = "no floor", "of all pairs", "not of faulty ones"
NOT_BY_TOPIC = "nor of those of faulty topics"
BY_CLIP_SCORE = "CLIP score"


class Seen(NamedTuple):
    """What stage 2 knows of a set of pairs before it joins the views."""

    pairs: TrainingPairs
    trust: PairTrust
    held_out_losses: np.ndarray  # (n,) nats
    faulty: np.ndarray  # (n,) bool, the truth

    @property
    def first(self) -> Agreement:
        """Agreement in the encoder's space."""
        return self.trust.encoder_view

    @property
    def wrong(self) -> float:
        """Estimated share of wrong captions, at first sight."""
        found = self.trust.wrong_share
        return found.share if found else 0.0


def seen(problem: Problem) -> Seen:
    """Judge the pairs, and ask models that have not trained on them, as stage 2 does."""
    trust, _ = trust_of(problem)
    pairs, config = known(asking(problem, trust)), PairInfluenceConfig()
    with temporary_room(1) as room:
        cross = cross_fit(
            *(pairs, np.ones(len(pairs.indices), dtype=bool), TRAINING, room),
            n_repeats=config.held_out_repeats,
            max_steps=InfluenceConfig().max_reference_steps,
            stop_by=config.held_out_steps,
            rng=stage_rng(problem.seed, "pair_influence"),
        )
    return Seen(pairs, trust, cross.held_out_losses, problem.regime.faults != "")


def second_view(about: Seen, share: float, seed: int) -> Agreement:
    """Agreement in a joint space fitted to this share of the pairs and to the held-out ones.

    The same folds and batches for every share.
    """
    rng = stage_rng(seed, "second view")
    pairs, device = about.pairs, about.pairs.tensors.device
    images, texts, _ = embed_across_folds(
        *sides_of(pairs.tensors),
        pairs.image_ids,
        rng=rng,
        n_folds=REFINED_FOLDS,
        trusted=trusted_pairs(about.first.own, about.held_out_losses, share),
        further=Moments.of(*sides_of(pairs.validation)),
    )
    return normalised_agreement(images, texts, device, rng=rng, others=about.trust.strangers)


def subset(regime: Regime, rows: np.ndarray, rng: np.random.Generator) -> Regime:
    """Some of the pairs as a set of its own, with a joint map fitted to these alone."""
    images, texts = regime.image_features[rows], regime.text_features[rows]
    image_ids = np.unique(images, axis=0, return_inverse=True)[1].reshape(-1)
    image_embeddings, text_embeddings, joint_map = embed_across_folds(
        images, texts, image_ids, rng=rng
    )
    return regime._replace(
        image_features=images,
        text_features=texts,
        captions=[regime.captions[row] for row in rows],
        faults=regime.faults[rows],
        image_embeddings=image_embeddings,
        text_embeddings=text_embeddings,
        joint_map=joint_map,
        image_rows=regime.image_rows[rows],
    )


# --- Ways to join -----------------------------------------------------------------------------


def logistic_join(positives: Sequence[np.ndarray], negatives: Sequence[np.ndarray]) -> JoinedViews:
    """A logistic regression without negative coefficients that tells positives from negatives.

    Args:
        positives: (m,) of each view.
        negatives: (c,) of each view.
    """
    of_positives, of_negatives = np.stack(positives, axis=1), np.stack(negatives, axis=1)
    examples = np.concatenate([of_positives, of_negatives])
    middle, scale = examples.mean(axis=0), examples.std(axis=0)
    standard = (examples - middle) / scale
    sign = np.where(np.arange(len(examples)) < len(of_positives), 1.0, -1.0)

    def loss(solution: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sign * (standard @ solution[:-1] + solution[-1])
        slopes = -sign * expit(-margins) / len(sign)
        gradient = np.append(standard.T @ slopes + RIDGE * solution[:-1], slopes.sum())
        value = np.logaddexp(0, -margins).mean() + RIDGE / 2 * (solution[:-1] ** 2).sum()
        return float(value), gradient

    n_views = examples.shape[1]
    bounds = [(0.0, None)] * n_views + [(None, None)]
    found = minimize(loss, np.append(np.ones(n_views), 0.0), jac=True, bounds=bounds).x
    return JoinedViews(middle, found[:-1] / scale, float(found[-1]))


def join_cut_off(views: Sequence[Agreement], trusted: np.ndarray) -> JoinedViews:
    """As it was: pairs that look right at first sight against their images with others' captions.

    Args:
        views: of the same n pairs.
        trusted: (n,) bool.
    """
    return logistic_join([v.own[trusted] for v in views], [v.by_chance[trusted] for v in views])


def join_by_truth(views: Sequence[Agreement], faulty: np.ndarray) -> JoinedViews:
    """Right pairs against faulty ones; where none is faulty, against chance."""
    wrong = [v.own[faulty] if faulty.any() else v.by_chance for v in views]
    return logistic_join([v.own[~faulty] for v in views], wrong)


def coefficient_ratio(joined: JoinedViews, views: Sequence[Agreement]) -> float | None:
    """What a standard deviation of the first view counts beside one of the second.

    None where the second counts for nothing.
    """
    first, second = (c * v.own.std() for c, v in zip(joined.coefficients, views, strict=True))
    return float(first / second) if second > 0 else None


# --- What is measured -------------------------------------------------------------------------


def sorting(scores: np.ndarray, faulty: np.ndarray) -> dict[str, float | None]:
    """How well scores, high for right pairs, sort faulty pairs out; None where none is faulty."""
    if not faulty.any():
        return {"auc": None, "faults_left": None}
    best = np.argsort(-scores, kind="stable")[: int((~faulty).sum())]
    return {
        "auc": float(roc_auc_score(~faulty, scores)),
        "faults_left": float(faulty[best].mean()),
    }


def of_joins(
    about: Seen, views: Sequence[Agreement], second_before: Agreement
) -> Iterator[dict[str, Any]]:
    """Part 1: each view alone and the ways to join them."""
    trusted = trusted_pairs(about.first.own, about.held_out_losses, TRUSTED_BEFORE)
    before = [about.first, second_before]
    ways = {
        BEFORE_ALL: (before, join_cut_off(before, trusted)),
        BEFORE: (views, join_cut_off(views, trusted)),
        NOW: (views, join_views(views, about.wrong)),
        TRUTH: (views, join_by_truth(views, about.faulty)),
    }
    for way, view in zip((FIRST, SECOND), views, strict=True):
        yield {"part": "join", "way": way, "ratio": None, **sorting(view.own, about.faulty)}
    for way, (joinable, joined) in ways.items():
        log_odds = joined.log_odds([view.own for view in joinable])
        yield {
            **{"part": "join", "way": way, "ratio": coefficient_ratio(joined, joinable)},
            **sorting(log_odds, about.faulty),
        }


def of_trusted_shares(
    about: Seen, seconds: Mapping[str, tuple[float, Agreement]]
) -> Iterator[dict[str, Any]]:
    """Part 2: the second view of each share trusted, alone and joined with the first."""
    for way, (share, second) in seconds.items():
        views = [about.first, second]
        log_odds = join_views(views, about.wrong).log_odds([view.own for view in views])
        trusted = trusted_pairs(about.first.own, about.held_out_losses, share)
        joined = sorting(log_odds, about.faulty)
        yield {
            **{"part": "trusted share", "way": way, "share": float(trusted.mean())},
            "faults_trusted": float(about.faulty[trusted].mean()),
            **sorting(second.own, about.faulty),
            **{f"joined_{name}": value for name, value in joined.items()},
        }


def of_fault_shares(
    about: Seen, views: Sequence[Agreement], seed: int, rows: np.ndarray | None = None
) -> Iterator[dict[str, Any]]:
    """Part 3: estimates of the share of faulty pairs beside the truth.

    Of some rows the share at first sight is left out: chance at first sight is not saved.
    """
    some = np.arange(len(about.faulty)) if rows is None else rows
    joined = join_views(views, about.wrong)
    own, chance = (
        joined.log_odds([getattr(view, side)[some] for view in views])
        for side in ("own", "by_chance")
    )
    on_scale = wrong_share(own, chance, rng=stage_rng(seed, "share of faults"))
    by_rank = about.trust.wrong_share_by_rank
    if rows is not None:
        by_rank = wrong_share_by_rank(ranks_of(about.pairs, seed)[rows])
    ways = {ON_SCALE: on_scale, BY_RANK: by_rank, BOTH: both_shares(on_scale, by_rank)}
    if rows is None:
        ways = {AT_SIGHT: about.trust.wrong_share, **ways}
    true = float(about.faulty[some].mean())
    for way, found in ways.items():
        assert found is not None, "there are enough pairs to tell"
        yield {
            **{"part": "fault share", "way": way, "true": true, "estimated": found.share},
            "error": found.share - true,
            "in_interval": float(found.low <= true <= found.high),
        }


def ranks_of(pairs: TrainingPairs, seed: int) -> np.ndarray:
    """(n,) share of the other images that suit a caption better, in the encoder's space."""
    found = normalised_agreement(
        *(pairs.image_embeddings, pairs.text_embeddings, pairs.tensors.device),
        rng=stage_rng(seed, "ranks"),
    )
    assert found.outranked is not None, "it is looked at"
    return found.outranked


def of_floors(about: Seen, views: Sequence[Agreement], seed: int) -> Iterator[dict[str, Any]]:
    """Part 4: faulty pairs among those kept, by agreement and copies without influence."""
    joined = join_views(views, about.wrong)
    log_odds = joined.log_odds([view.own for view in views])
    chance = joined.log_odds([view.by_chance for view in views])
    found = wrong_share(log_odds, chance, rng=stage_rng(seed, "share of faults"))
    wrong = both_shares(found or about.trust.wrong_share, about.trust.wrong_share_by_rank)
    share, clusters = wrong.share if wrong else 0.0, about.pairs.cluster_assignments
    protected = {
        NO_FLOOR: np.zeros(len(log_odds), dtype=bool),
        FOR_ALL: np.ones(len(log_odds), dtype=bool),
        NOT_FAULTY: log_probability_right(log_odds, share) >= np.log(0.5),
        NOT_BY_TOPIC: looks_right(log_odds, clusters, share),
    }
    config, copies = CurationConfig(target_size_ratio=KEEP), about.pairs.better_copies
    nothing = np.zeros(len(log_odds))
    values = value_parts(nothing, log_odds, copies, config, influence_weight=0.0).total
    for way, rows in kept_by_floor(values, clusters, protected, config).items():
        yield {"part": "floor", "way": way, "faulty_kept": int(about.faulty[rows].sum())}
    best = np.argsort(-about.pairs.clip_scores, kind="stable")[: curated_size(len(copies), KEEP)]
    yield {"part": "floor", "way": BY_CLIP_SCORE, "faulty_kept": int(about.faulty[best].sum())}


def kept_by_floor(
    values: np.ndarray,
    clusters: np.ndarray,
    protected: Mapping[str, np.ndarray],
    config: CurationConfig,
) -> dict[str, np.ndarray]:
    """Rows that are kept by each floor.

    No cluster is taken to be harmful, and no group is asked for.

    Args:
        values: (n,).
        clusters: (n,).
        protected: (n,) bool, the pairs that each is for.
        config: how many are kept.
    """
    target = curated_size(len(values), config.share)
    categories = np.full(int(clusters.max()) + 1, NEUTRAL, dtype=object)
    return {
        floor: chosen_rows(clusters, categories, {}, ~rows, target, config, values)
        for floor, rows in protected.items()
    }


def measured(name: str, seed: int, regime: Regime, pool_file: Path) -> list[dict[str, Any]]:
    """All four parts at all pairs, the share of faulty pairs also at few of them."""
    key = {"regime": name, "seed": seed}
    rows = np.sort(stage_rng(seed, "few pairs").permutation(len(regime.faults))[:FEW])
    few = subset(regime, rows, stage_rng(seed, "embedding"))
    found: list[dict[str, Any]] = []
    for which, pairs in ((ALL, regime), (ALONE, few)):
        about = seen(make_problem(pairs, seed, test_set_of(pool_file, "")))
        second = second_view(about, 1 - about.wrong, seed)
        views = [about.first, second]
        here = [{"pairs": which, **row} for row in of_fault_shares(about, views, seed)]
        if which == ALL:
            of_few = of_fault_shares(about, views, seed, rows)
            here += [{"pairs": AMONG_ALL, **row} for row in of_few]
            before = second_view(about, TRUSTED_BEFORE, seed)
            shares = {ALWAYS: (TRUSTED_BEFORE, before), ESTIMATED: (1 - about.wrong, second)}
            others = [
                *of_joins(about, views, before),
                *of_trusted_shares(about, shares),
                *of_floors(about, views, seed),
            ]
            here += [{"pairs": which, **row} for row in others]
        found += [{**key, **row} for row in here]
    return found


# --- Tables -----------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard error over seeds, of those that have a value; None where there is none."""
    there = np.array([value for value in values if value is not None])
    if len(there) == 0:
        return None, None
    error = float(there.std(ddof=1) / np.sqrt(len(there))) if len(there) > 1 else None
    return float(there.mean()), error


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard error of every measure over seeds, by part, regime, pairs and way."""
    keys = ("part", "regime", "pairs", "way")
    found = []
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        here = [row for row in rows if tuple(row[k] for k in keys) == key]
        measures = [m for m in here[0] if m not in (*keys, "seed")]
        line = {**dict(zip(keys, key, strict=True)), "seeds": len(here)}
        for measure in measures:
            mean, error = mean_and_error([row[measure] for row in here])
            line |= {measure: mean, f"{measure}_stderr": error}
        if "error" in measures:
            line["largest_error"] = max(abs(row["error"]) for row in here)
        found.append(line)
    return found


def _cell(line: Mapping[str, Any], measure: str, scale: float = 1.0, digits: int = 2) -> str:
    mean, error = line[measure], line[f"{measure}_stderr"]
    if mean is None:
        return "–"
    plus_minus = "" if error is None else f" ± {scale * error:.{digits}f}"
    return f"{scale * mean:.{digits}f}{plus_minus}"


def _table(
    lines: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, float, int]]
) -> list[str]:
    """A row a regime and way: each measure by its label, times a factor, to so many digits."""
    rows = [
        [regime_label(line["regime"]), line["way"], *(_cell(line, *c) for c in columns.values())]
        for line in lines
    ]
    return markdown_table(["pairs", "way", *columns], rows)


def page(summary: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The four tables, and how they came about."""

    def of(part: str) -> list[Mapping[str, Any]]:
        return [line for line in summary if line["part"] == part]

    n = N_TRAINING
    lines = [
        "# What parts of the method are worth",
        "",
        f"`{about['command']}`, {about['hardware']['cpu_cores']} CPU cores, one used. Flickr8k, "
        f"{n:,} pairs unless said otherwise, 1,000 right held-out pairs; mean ± standard error "
        f"over seeds {', '.join(str(seed) for seed in about['seeds'])}. Faults left: percent of "
        "the best (1 − w) n pairs, where w of n are faulty. AUC: of faulty against right pairs, "
        "percent.",
        "",
        "## Join of the two views of agreement",
        "",
        "Ratio: what a standard deviation of the first view counts beside one of the second. The "
        "true labels tell right pairs from faulty ones, on clean pairs from chance.",
        "",
    ]
    auc, left = ("auc", 100.0, 2), ("faults_left", 100.0, 2)
    lines += _table(of("join"), {"ratio": ("ratio", 1.0, 3), "AUC": auc, "faults left": left})
    columns = {
        "trusted, %": ("share", 100.0, 1),
        "faulty of these, %": ("faults_trusted", 100.0, 2),
        "AUC": auc,
        "faults left": left,
        "AUC, joined": ("joined_auc", 100.0, 2),
        "faults left, joined": ("joined_faults_left", 100.0, 2),
    }
    lines += ["## Share of the pairs that the second view trusts", ""]
    lines += _table(of("trusted share"), columns)
    lines += ["## Share of faulty pairs", "", "Percent; errors in points.", ""]
    lines += _fault_share_table(of("fault share"))
    lines += [
        "## The floor under every topic",
        "",
        f"Faulty pairs among the {curated_size(n, KEEP):,} kept at {100 * KEEP:.0f} %, by "
        "agreement and near copies without influence; no topic is taken to be harmful.",
        "",
        *_table(of("floor"), {"faulty pairs kept": ("faulty_kept", 1.0, 1)}),
    ]
    return "\n".join(lines)


def _fault_share_table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            *(line["pairs"], regime_label(line["regime"]), line["way"]),
            *(_cell(line, measure, 100.0, 1) for measure in ("true", "estimated", "error")),
            f"{100 * line['largest_error']:.1f}",
            f"{round(line['in_interval'] * line['seeds'])} of {line['seeds']}",
        ]
        for line in sorted(lines, key=lambda line: (ALL, AMONG_ALL, ALONE).index(line["pairs"]))
    ]
    header = "judged;pairs;way;true;estimated;error;largest error;in the interval".split(";")
    return markdown_table(header, rows)


def compute(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows; those of a regime and seed that are in the folder of work are not made again."""
    file = args.work_dir / "method_parts.json"
    done: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    pool_file = args.work_dir / "pool.npz"
    pool = load_pool(args.data_dir, pool_file, embedded_encoder)
    units = [(seed, name) for seed in args.seeds for name in args.regimes]
    there = {(row["seed"], row["regime"]) for row in done}
    missing = [unit for unit in units if unit not in there]
    for seed, name in tqdm(missing, desc="sets of pairs", unit="set", disable=None):
        done += measured(name, seed, make_regime(name, pool, seed), pool_file)
        file.write_text(json.dumps(done))
    return [row for name in args.regimes for row in done
            if row["regime"] == name and row["seed"] in args.seeds]  # fmt: skip


def main() -> None:
    """Measure what is missing, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="Flickr8k")
    parser.add_argument("--work_dir", type=Path, required=True, help="where pool and rows are kept")
    parser.add_argument("--regimes", nargs="+", type=regime_name, default=list(REGIMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    rows = compute(args)
    about = {
        "command": "python benchmarks/method_parts.py --data_dir path/to/flickr8k --work_dir WORK "
        f"--seeds {' '.join(str(seed) for seed in args.seeds)}",
        "hardware": hardware(),
        "packages": package_versions(),
        "seeds": args.seeds,
    }
    summary = summarize(rows)
    saved = {**about, "summary": summary, "rows": rows}
    (args.out / "method_parts.json").write_text(json.dumps(saved, indent=1) + "\n")
    text = page(summary, about)
    (args.out / "method_parts.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Cost and accuracy of other ways to the influence of clusters, each by its library's own means.

    python benchmarks/influence_rivals.py --problem p.npz --method dattri_cg --result_file r.json

One method a process, so that its peak memory is its own; benchmarks/requirements-rivals.txt says
how to make the environment. Every method scores pairs and a cluster's score is the sum over its
pairs. Sign: positive where leaving the cluster out raises the validation loss.

dense_gradients    g_val . g_i with every pair's gradient written out
dense_datainf      Kwon et al. (2024, arXiv 2310.00902), equation 5, on the same gradients
kronfluence_ekfac  EK-FAC (Grosse et al. 2023, arXiv 2308.03296) by kronfluence
dattri_cg          conjugate gradients (Koh & Liang 2017, arXiv 1703.04730) by dattri
dattri_arnoldi     Arnoldi iteration (Schioppa et al. 2022, arXiv 2112.03052) by dattri
dattri_datainf     DataInf by dattri
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # idle threads must not take the others' cores

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Float, Int64
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from learner.model import (
    Parameters,
    contrastive_loss,
    embed_images,
    embed_texts,
    pair_losses,
    projected_similarities,
    similarities,
)
from learner.pairs import PairTensors

MIB = 2**20
HESSIAN_DAMPING = 0.3  # dattri_cg, dattri_arnoldi: the Hessian's least eigenvalue is near -0.2
FISHER_DAMPING = 0.1  # dattri_datainf, the value that dattri's code falls back to
ARNOLDI_DIM = 50  # eigenvectors kept of dattri's default of 100 iterations
DATTRI_ROWS_AT_ONCE = 32  # dense gradients that dattri holds; more is no faster
KRONFLUENCE_BATCHES_AT_ONCE = 2  # contrastive batches a step; more takes memory, not time off

Scores = Float[np.ndarray, " m"]  # of the pairs in the order of the train batches
Scorer = Callable[[], Scores]  # what is timed


@dataclass(frozen=True)
class Problem:
    """A trained model, its data, its fixed batches, and what leaving clusters out really did."""

    parameters: Parameters
    pairs: PairTensors
    validation: PairTensors
    train_batches: Int64[Tensor, "n_batches b"]
    validation_batches: Int64[Tensor, "n_val_batches b"]
    clusters: Int64[np.ndarray, " n"]
    real_effects: Float[np.ndarray, " K"]


def load_problem(path: Path, max_pairs: int | None) -> Problem:
    """The problem of a file; with `max_pairs`, a random subset of its whole train batches."""
    with np.load(path, allow_pickle=False) as arrays:
        of = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    batches = of["train_batches"]
    if max_pairs is not None:
        n_kept = max(1, max_pairs // batches.shape[1])
        batches = batches[np.random.default_rng(0).permutation(len(batches))[:n_kept]]
    return Problem(
        Parameters(of["image_map"], of["text_map"], of["log_scale"]),
        PairTensors(of["image_features"], of["text_features"]),
        PairTensors(of["validation_image_features"], of["validation_text_features"]),
        batches,
        of["validation_batches"],
        of["clusters"].numpy(),
        of["real_effects"].numpy(),
    )


def batch_loss(parameters: Parameters, pairs: PairTensors, batches: Tensor) -> Tensor:
    """Mean contrastive loss over fixed batches (n_batches, b), nats."""
    return contrastive_loss(similarities(parameters, pairs.take(batches))).mean()


def validation_gradient(problem: Problem) -> list[Tensor]:
    """The flat gradient of the validation loss, layer by layer."""
    layers = grad(batch_loss)(problem.parameters, problem.validation, problem.validation_batches)
    return [layer.flatten() for layer in layers]


def layer_gradients(problem: Problem) -> Iterator[list[Tensor]]:
    """Dense gradients of the pairs' own losses, a batch at a time: per layer (b, p_layer).

    Negatives: the other pairs of the batch, through whose embeddings the gradient runs too.
    """
    for index in problem.train_batches:
        batch = problem.pairs.take(index)
        _, pull_back = vjp(
            lambda p, batch=batch: pair_losses(similarities(p, batch)), problem.parameters
        )
        (rows,) = vmap(pull_back)(torch.eye(len(index)))
        yield [layer.reshape(len(index), -1) for layer in rows]


def layer_products(block: list[Tensor], direction: list[Tensor]) -> Tensor:
    """g_il . v_l of every pair of a block and every layer, (b, 3)."""
    return torch.stack([g @ v for g, v in zip(block, direction, strict=True)], dim=-1)


def dense_gradients(problem: Problem) -> Scorer:
    """First-order influence without curvature, g_val . g_i, every gradient written out."""

    def score() -> Scores:
        gradient = validation_gradient(problem)
        products = [layer_products(block, gradient).sum(-1) for block in layer_gradients(problem)]
        return torch.cat(products).numpy()

    return score


def dense_datainf(problem: Problem) -> Scorer:
    """DataInf on dense gradients, made anew in each of three passes since they do not fit.

        v_l = (1 / lambda_l) [ g_l - (1/m) sum_i (g_il . g_l) / (lambda_l + |g_il|^2) g_il ]

    with g_l the validation gradient and lambda_l a tenth of the mean squared gradient per
    parameter, the paper's choice; the score is v . g_i.
    """

    def score() -> Scores:
        gradient = validation_gradient(problem)
        inner, squares = [], []
        for block in layer_gradients(problem):
            inner.append(layer_products(block, gradient))
            squares.append(torch.stack([(g * g).sum(dim=-1) for g in block], dim=-1))
        squared = torch.stack(squares)  # (n_batches, b, 3)
        damping = 0.1 * squared.mean(dim=(0, 1)) / torch.tensor([len(g) for g in gradient])
        coefficients = torch.stack(inner) / (damping + squared) / problem.train_batches.numel()
        for weights, block in zip(coefficients, layer_gradients(problem), strict=True):
            gradient = [v - w @ g for v, w, g in zip(gradient, weights.T, block, strict=True)]
        direction = [v / value for v, value in zip(gradient, damping, strict=True)]
        products = [layer_products(block, direction).sum(-1) for block in layer_gradients(problem)]
        return torch.cat(products).numpy()

    return score


class TwoMaps(nn.Module):
    """The model as a module: two linear maps and the logit scale."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__()
        self.images, self.texts = map(linear, (parameters.image_map, parameters.text_map))
        self.log_scale = nn.Parameter(parameters.log_scale.clone())


def linear(weight: Float[Tensor, "d e"]) -> nn.Linear:
    """The map x -> x W as a module."""
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
    layer.weight.data = weight.T.contiguous()
    return layer


def kronfluence_ekfac(problem: Problem) -> Scorer:
    """EK-FAC with the true Fisher matrix and the summed validation gradient as the one query.

    The hooks take row j of a map's input and output gradient as sample j. The loss of a batch is
    the sum over its pairs, so sample j carries what pair j does as a negative of the others too.
    The logit scale is left out: it is in no module that the library supports. The damping is the
    library's heuristic, a tenth of the mean eigenvalue.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    b = problem.train_batches.shape[1]

    class ContrastiveTask(Task):
        """Contrastive batches of b consecutive rows of the loader's batch."""

        def logits(self, rows: list[Tensor], model: Any) -> Tensor:
            images, texts = model.images(rows[0]), model.texts(rows[1])
            return projected_similarities(
                images.unflatten(0, (-1, b)), texts.unflatten(0, (-1, b)), model.log_scale
            )

        def compute_train_loss(self, batch: list[Tensor], model: Any, sample: bool) -> Tensor:
            """Summed loss, of partners drawn from the model's distribution where `sample`."""
            logits = self.logits(batch, model)
            if not sample:
                return pair_losses(logits).sum()
            both = torch.cat([logits, logits.transpose(-1, -2)]).flatten(end_dim=1)
            drawn = torch.multinomial(both.detach().softmax(dim=-1), 1).squeeze(-1)
            return F.cross_entropy(both, drawn, reduction="sum") / 2

        def compute_measurement(self, batch: list[Tensor], model: Any) -> Tensor:
            return pair_losses(self.logits(batch, model)).sum()

    def score() -> Scores:
        train = TensorDataset(*problem.pairs.take(problem.train_batches.flatten()))
        queries = TensorDataset(*problem.validation.take(problem.validation_batches.flatten()))
        task, rows = ContrastiveTask(), KRONFLUENCE_BATCHES_AT_ONCE * b
        model = prepare_model(TwoMaps(problem.parameters), task)
        factor_args = FactorArguments(strategy="ekfac")
        score_args = ScoreArguments(damping_factor=None, aggregate_query_gradients=True)
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("rival", model, task, True, disable_tqdm=True, output_dir=folder)
            analyzer.fit_all_factors("ekfac", train, rows, factor_args=factor_args)
            analyzer.compute_pairwise_scores(
                "scores", "ekfac", queries, train, rows, rows, score_args=score_args
            )
            return np.asarray(analyzer.load_pairwise_scores("scores")["all_modules"][0])

    return score


def dattri(attributor_name: str, **settings: Any) -> Callable[[Problem], Scorer]:
    """What builds the scorer of one of dattri's influence attributors.

    A sample is one pair: its loss depends on the parameters through its own image and text and
    the logit scale, while the embeddings of its negatives, the other pairs of its batch, are
    constants, computed once at the reference model. The library has no notion of samples that
    share a batch, and gradients through the negatives would cost b times as much.

    In its favour: the whole validation set is one test sample, so there is one gradient to
    transform; and its transform, which dattri repeats for every batch of train gradients, is
    kept. The Hessian takes all pairs in one batch, as dattri adds up the inverses of several.
    """

    def build(problem: Problem) -> Scorer:
        from dattri.algorithm import influence_function
        from dattri.task import AttributionTask

        def test_loss(weights: dict[str, Tensor], data: list[Tensor]) -> Tensor:
            return batch_loss(as_parameters(weights), problem.validation, data[0].squeeze(0))

        def score() -> Scores:
            train_loss, samples = frozen_negatives_loss(problem)
            model = TwoMaps(problem.parameters)
            task = AttributionTask(train_loss, model, model.state_dict(), target_func=test_loss)
            attributor = getattr(influence_function, attributor_name)(task, **settings)
            attributor.generate_test_rep = computed_once(attributor.generate_test_rep)
            attributor.transform_test_rep = computed_once(attributor.transform_test_rep)
            train = DataLoader(samples, DATTRI_ROWS_AT_ONCE)
            test = DataLoader(TensorDataset(problem.validation_batches[None]))
            in_rows = attributor_name == "IFAttributorDataInf"  # it caches dense gradients
            with torch.no_grad():  # torch.func ignores it; without it every gradient is kept
                attributor.cache(train if in_rows else DataLoader(samples, len(samples)))
                return np.asarray(attributor.attribute(train, test)[:, 0])

        return score

    return build


def as_parameters(weights: dict[str, Tensor]) -> Parameters:
    """The model's parameters from those of `TwoMaps`."""
    return Parameters(weights["images.weight"].T, weights["texts.weight"].T, weights["log_scale"])


def frozen_negatives_loss(problem: Problem) -> tuple[Callable[..., Tensor], TensorDataset]:
    """Mean loss of pairs against constant negatives, and its samples: a row, b - 1 other rows."""
    image_constants = embed_images(problem.parameters, problem.pairs.images)
    text_constants = embed_texts(problem.parameters, problem.pairs.texts)

    def loss(weights: dict[str, Tensor], data: list[Tensor]) -> Tensor:
        rows, others = data  # (m,), (m, b - 1)
        parameters, own = as_parameters(weights), problem.pairs.take(rows)
        images, texts = embed_images(parameters, own.images), embed_texts(parameters, own.texts)
        positive = (images * texts).sum(dim=-1, keepdim=True)
        to_texts = torch.einsum("me,mje->mj", images, text_constants[others])
        to_images = torch.einsum("me,mje->mj", texts, image_constants[others])
        cosines = [torch.cat([positive, negative], -1) for negative in (to_texts, to_images)]
        logits = parameters.log_scale.exp() * torch.stack(cosines)  # (2, m, b)
        return (logits.logsumexp(dim=-1) - logits[..., 0]).mean()

    batches = problem.train_batches
    b = batches.shape[1]
    others_of = torch.tensor([[j for j in range(b) if j != i] for i in range(b)])
    return loss, TensorDataset(batches.flatten(), batches[:, others_of].flatten(end_dim=1))


def computed_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, with the result of its first call returned by all later ones."""
    results: list[Tensor] = []

    def first_result(*args: Any, **kwargs: Any) -> Tensor:
        if not results:
            results.append(function(*args, **kwargs))
        return results[0]

    return first_result


METHODS: dict[str, Callable[[Problem], Scorer]] = {
    "dense_gradients": dense_gradients,
    "dense_datainf": dense_datainf,
    "kronfluence_ekfac": kronfluence_ekfac,
    "dattri_cg": dattri("IFAttributorCG", regularization=HESSIAN_DAMPING),
    "dattri_arnoldi": dattri(
        "IFAttributorArnoldi", regularization=HESSIAN_DAMPING, proj_dim=ARNOLDI_DIM
    ),
    "dattri_datainf": dattri("IFAttributorDataInf", regularization=FISHER_DAMPING),
}


def stop(signal_number: int, frame: object) -> None:
    """Turn the alarm into an exception."""
    raise TimeoutError("out of time")


def measure(score: Scorer, max_seconds: int) -> tuple[Scores | None, dict[str, Any]]:
    """The scores, None where the method failed, and its own seconds and memory."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    baseline = resident_pages * resource.getpagesize()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(max_seconds)
    started = time.perf_counter()
    scores, failure = None, {}
    try:
        scores = score()
        if not np.isfinite(scores).all():
            raise RuntimeError(f"{np.mean(~np.isfinite(scores)):.0%} of the scores are not finite")
    except (MemoryError, RuntimeError, TimeoutError) as error:
        scores, failure = None, {"failed": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - started
    signal.alarm(0)
    status = Path("/proc/self/status").read_text()  # `ru_maxrss` would hold the parent's
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024  # given in KiB
    cost = {
        "seconds": seconds,
        "peak_mib": (peak - baseline) / MIB,
        "baseline_mib": baseline / MIB,
        "absolute_peak_mib": peak / MIB,
    }
    return scores, {**cost, **failure}


def agreement(problem: Problem, scores: Scores) -> dict[str, float]:
    """Correlations of the clusters' summed scores with the real effects of leaving them out."""
    cluster_of = problem.clusters[problem.train_batches.flatten().numpy()]
    predicted = np.bincount(cluster_of, scores.astype(np.float64), len(problem.real_effects))
    both = predicted, problem.real_effects
    return {
        "spearman": float(spearmanr(*both).statistic),
        "pearson": float(pearsonr(*both).statistic),
    }


def main() -> None:
    """Measure one method, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", type=Path, required=True, help=".npz to solve")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--result_file", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_pairs", type=int, help="score a random subset of train batches")
    parser.add_argument("--max_seconds", type=int, default=600, help="then it has failed")
    parser.add_argument("--max_gib", type=float, help="of address space; beyond, it has failed")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.max_gib is not None:
        limit = int(args.max_gib * 1024 * MIB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    problem = load_problem(args.problem, args.max_pairs)
    scores, cost = measure(METHODS[args.method](problem), args.max_seconds)
    correlations: dict[str, float | None] = {"spearman": None, "pearson": None}
    if scores is not None and args.max_pairs is None:
        correlations |= agreement(problem, scores)
    library = args.method.split("_")[0].replace("dense", "torch")
    results = {
        "method": args.method,
        "library": library,
        "version": version(library),
        **cost,
        "n_pairs": problem.train_batches.numel(),
        **correlations,
        "threads": args.threads,
    }
    args.result_file.parent.mkdir(parents=True, exist_ok=True)
    args.result_file.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

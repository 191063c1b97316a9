"""How many steps a second trainings of the linear heads take, alone and side by side.

    python benchmarks/side_by_side.py --device cuda

A step is one of one run, so that thirty runs that take a step together take thirty. On a GPU with
the step launched as one graph, and launched kernel by kernel. Last, how far a run's parameters are
from those that it has among others and, where it ran on a GPU, on the CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flags import positive

from learner import captured
from learner.config import TrainingConfig
from learner.pairs import PairTensors
from learner.stacked import Run, StackedTraining

N_PAIRS, WIDTH, WARM, STEPS = 5000, 512, 20, 400


def steps_a_second(pairs: PairTensors, n_runs: int, n_steps: int) -> float:
    """Of all runs together, after warming up."""
    runs = [Run(seed) for seed in range(n_runs)]
    training = StackedTraining(pairs, TrainingConfig(), runs, n_steps=WARM + n_steps)
    training.advance_to(WARM)
    settle(pairs.device)
    started = time.perf_counter()
    training.advance_to(WARM + n_steps)
    settle(pairs.device)
    return n_runs * n_steps / (time.perf_counter() - started)


def largest_differences(pairs: PairTensors, n_steps: int) -> dict[str, float]:
    """Of any parameter of a run alone after so many steps, by what it is compared with.

    As shares of the largest parameter. On the CPU only with the run among others.
    """
    runs = [Run(seed) for seed in range(4)]

    def last(where: PairTensors, some: Sequence[Run]) -> torch.Tensor:
        training = StackedTraining(where, TrainingConfig(), some, n_steps=n_steps)
        training.advance_to(n_steps)
        found = training.parameters_of(len(some) - 1)
        return torch.cat([found.image_map, found.text_map]).cpu()

    alone, others = last(pairs, runs[-1:]), {"among others": last(pairs, runs)}
    if pairs.device.type != "cpu":
        on_cpu = PairTensors(*(side.cpu() for side in pairs))
        others["from the CPU"] = last(on_cpu, runs[-1:])
    largest = float(alone.abs().max())
    return {name: float((alone - other).abs().max()) / largest for name, other in others.items()}


def settle(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_here(text: str) -> torch.device:
    """The device of this name, where it is one that can be measured and that is there."""
    here = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names = ["cpu", *(["cuda"] if here else []), *here]
    if text not in names:
        known = text == "cuda" or text.startswith("cuda:")
        problem = "there is no such device here" if known else "not a device that is measured"
        raise argparse.ArgumentTypeError(f"{problem}; give {' or '.join(names)}; got {text}")
    return torch.device(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device_here, default=default, help="cpu, cuda, cuda:N")
    parser.add_argument("--runs", nargs="+", type=positive, default=[1, 8, 30, 64])
    parser.add_argument("--steps", type=positive, default=STEPS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    args = parse(arguments)
    device, generator = args.device, torch.Generator().manual_seed(0)
    sides = (torch.randn(N_PAIRS, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(2))
    pairs = PairTensors(*(side.to(device) for side in sides))
    warm = captured.WARM_CALLS
    for launched in ("one graph", "kernel by kernel") if device.type == "cuda" else ("",):
        captured.WARM_CALLS = sys.maxsize if launched == "kernel by kernel" else warm
        for n_runs in args.runs:
            found = steps_a_second(pairs, n_runs, args.steps)
            what = f"{n_runs} runs {launched}".rstrip()
            print(f"{what}: {found:,.0f} steps a second", flush=True)
    captured.WARM_CALLS = warm
    differences = largest_differences(pairs, min(args.steps, 200))
    told = ", ".join(f"{share:.1e} {where}" for where, share in differences.items())
    print(f"largest difference: {told}")


if __name__ == "__main__":
    main()

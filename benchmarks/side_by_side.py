"""How many steps a second trainings of the linear heads take, alone and side by side.

    python benchmarks/side_by_side.py --device cuda

A step is one of one run, so that thirty runs that take a step together take thirty. On a GPU with
the step launched as one graph, and launched kernel by kernel.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

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


def largest_difference(pairs: PairTensors, n_steps: int) -> tuple[float, float]:
    """Of any parameter after so many steps: among others and alone, and there and on the CPU.

    As shares of the largest parameter.
    """
    on_cpu = PairTensors(*(side.cpu() for side in pairs))
    runs, found = [Run(seed) for seed in range(4)], []
    for where, some in ((pairs, runs), (pairs, runs[-1:]), (on_cpu, runs[-1:])):
        training = StackedTraining(where, TrainingConfig(), some, n_steps=n_steps)
        training.advance_to(n_steps)
        last = training.parameters_of(len(some) - 1)
        found.append(torch.cat([last.image_map, last.text_map]).cpu())
    among, alone, elsewhere = found
    largest = float(alone.abs().max())
    return tuple(float((alone - other).abs().max()) / largest for other in (among, elsewhere))


def settle(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 8, 30, 64])
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    device, generator = torch.device(args.device), torch.Generator().manual_seed(0)
    sides = (torch.randn(N_PAIRS, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(2))
    pairs = PairTensors(*(side.to(device) for side in sides))
    warm = captured.WARM_CALLS
    for launched in ("one graph", "kernel by kernel") if device.type == "cuda" else ("",):
        captured.WARM_CALLS = sys.maxsize if launched == "kernel by kernel" else warm
        for n_runs in args.runs:
            found = steps_a_second(pairs, n_runs, args.steps)
            print(f"{n_runs} runs {launched}: {found:,.0f} steps a second", flush=True)
    captured.WARM_CALLS = warm
    among, elsewhere = largest_difference(pairs, min(args.steps, 200))
    print(f"largest difference: {among:.1e} among others, {elsewhere:.1e} from the CPU")


if __name__ == "__main__":
    main()

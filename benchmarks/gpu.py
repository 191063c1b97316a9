"""Is a GPU kept busy: pairs a second of reading, encoding and both, and stage 2's seconds.

    python benchmarks/gpu.py --work_dir WORK

Makes its own tar shards and a CLIP ViT-B/32 of random weights (`gpu_data.py`), and embeddings of
pairs with planted faults for stage 2 (`scale_data.py`). `--blocks` chooses what is measured:

    decoding   stage 1 with an encoder that costs nothing, on 1, 2, 4, ... processor cores
    encoder    pixels and tokens that are on the device already, and the program's two calls
    together   stage 1 as main.py runs it; the share of the time that the GPU is busy, its memory
    stage2     what main.py makes of stage 2, on every device

Results are added to benchmarks/results/gpu.json: a row of the same name replaces the earlier one.
The tables are written beside it as gpu.md. Without a CUDA device its rows say so. `--small` tries
this out with a narrow encoder: its rows say so and go to WORK/gpu_small.json.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py sets it

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flags import as_folder, as_json_file, as_seconds, at_least, positive
from gpu_data import Pictures, make_caption, save_clip
from gpu_report import NOT_RUN, add_rows, check_results, render
from scale_data import Planting, write_embeddings

import main as program
from artifacts.cores import n_cores
from artifacts.provenance import hardware
from artifacts.scratch import use_folder
from artifacts.settings import InputError
from artifacts.store import Store
from cli.config import parse_arguments
from cli.run import Run
from clustering import training_pairs
from data import PairReader
from encoders.base import EmbeddingConfig, Encoded, resolve_dtype
from encoders.pretrained import PretrainedEncoder, load_encoder
from engine.start import start_engine
from reporting.results import Known

RESULTS = ROOT / "benchmarks/results/gpu.json"
BLOCKS = ("decoding", "encoder", "together", "stage2")
SIZES = (5_000, 18_000, 95_000)
LEAST_PAIRS = 150  # that are drawn
LEAST_TRAINING = 2  # pairs, which are in two clusters
MANY, MANY_CLUSTERS = 50_000, 1000  # pairs from which there are so many clusters
HELD_OUT = 1000  # validation pairs and test images, each, of stage 2
FEW_HELD_OUT = 64  # of stage 1, whose splits are read one after the other
BATCH_SIZES = (64, 256, 1024)
FEW_ENCODED = 512  # pairs, where the encoder has no GPU
CONTEXT = 77  # tokens of CLIP's longest caption
SAMPLE_SECONDS = 0.1
NOISE = np.random.default_rng(0).standard_normal((4096, 64), dtype=np.float32)
MIB = 2**20
# Of main.py, by which it is told what a row is of; `--flags` may not change that.
OWN_FLAGS = ("--device", "--output_dir", "--dataset", "--data_dir", "--embeddings_dir")
OWN_FLAGS += ("--max_train_samples",)


# --- Measuring ------------------------------------------------------------------------------------


def gpu_busy() -> float | None:
    """Share of the last moment that a kernel ran in, as the driver tells; None: it does not."""
    try:
        return torch.cuda.utilization() / 100
    except (ImportError, RuntimeError):  # NVML's Python package is not there
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return float(told.stdout.split()[0]) / 100


class Watch(threading.Thread):
    """Samples how busy the GPU is until it is told to stop; without one it does nothing."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.is_cuda = device.type == "cuda"
        self.samples: list[tuple[float, float]] = []  # seconds, share
        self._stop_asked = threading.Event()
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def run(self) -> None:
        """Sample again and again."""
        while self.is_cuda and not self._stop_asked.wait(SAMPLE_SECONDS):
            if (share := gpu_busy()) is not None:
                self.samples.append((time.perf_counter(), share))

    def finish(self, since: float = 0.0, until: float = float("inf")) -> dict[str, float | None]:
        """Stop; the mean share between two moments, and the most memory that tensors held."""
        self._stop_asked.set()
        self.join()
        inside = [share for at, share in self.samples if since <= at <= until]
        return {
            "gpu_busy": round(float(np.mean(inside)), 3) if inside else None,
            "gpu_peak_mib": round(torch.cuda.max_memory_allocated() / MIB)
            if self.is_cuda
            else None,
        }


def rate(step: Callable[[], object], n: int, device: torch.device, seconds: float) -> float:
    """How many of n a step are done in a second, after a step to warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    wait()
    started, n_steps = time.perf_counter(), 0
    while n_steps == 0 or time.perf_counter() - started < seconds:
        step()
        n_steps += 1
        if n_steps % 8 == 0:  # so that no queue outgrows the time
            wait()
    wait()
    return n * n_steps / (time.perf_counter() - started)


@contextmanager
def only_cores(count: int) -> Iterator[None]:
    """Let threads and processes that are started inside have so many cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class Told(logging.Handler):
    """What stage 1 says of its speed, more exactly than the log has it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.at, self.seconds = time.perf_counter(), 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the seconds of the line about images a second."""
        if "images a second" in str(record.msg) and isinstance(record.args, tuple):
            found = [value for value in record.args if isinstance(value, float)]
            self.at, self.seconds = time.perf_counter(), found[0]


# --- Stage 1 --------------------------------------------------------------------------------------


def nothing_encoded(encoder: object, inputs: Sequence[Any] | np.ndarray) -> Encoded:
    """In the place of an encoder's calls: other rows for every input, at no cost."""
    rows = np.resize(NOISE, (len(inputs), NOISE.shape[1]))
    return Encoded(rows, rows)


def nothing_started(encoder: object, inputs: Sequence[Any]) -> Callable[[], Encoded]:
    """The same where what waits for the device is handed back."""
    return lambda: nothing_encoded(encoder, inputs)


@contextmanager
def idle_encoder() -> Iterator[None]:
    """Let CLIP encode nothing, beside the processor or not; captions are not tokenised either."""
    stubs: dict[str, Any] = {
        **dict.fromkeys(("encode_images", "encode_texts"), nothing_encoded),
        **dict.fromkeys(("start_images", "start_texts"), nothing_started),
        "tokens": lambda _, captions: list(captions),
    }
    with ExitStack() as stack:
        for name, stub in stubs.items():
            if hasattr(PretrainedEncoder, name):
                stack.enter_context(patch.object(PretrainedEncoder, name, stub))
        yield


@contextmanager
def watching_decoders() -> Iterator[list[bool]]:
    """Whether processes decode what is read inside, as often as readers are asked that."""
    decide, found = PairReader.is_in_processes, []

    def is_in_processes(reader: PairReader) -> bool:
        found.append(decide(reader))
        return found[-1]

    with patch.object(PairReader, "is_in_processes", is_in_processes):
        yield found


def flags_of_stage_1(work_dir: Path, device: str) -> list[str]:
    """Of main.py, for the shards of a folder."""
    given = f"--dataset webdataset --device {device} --no_report --max_val_samples {FEW_HELD_OUT}"
    given += f" --max_test_samples {FEW_HELD_OUT} --seed 0 --n_clusters 2"
    return [*given.split(), "--data_dir", str(work_dir / "shards")]


def embed(work_dir: Path, output: Path, device: torch.device, *flags: str) -> dict[str, Any]:
    """Stage 1 of the shards in a folder as `main.py` runs it, and how long it took."""
    shutil.rmtree(output, ignore_errors=True)
    given = flags_of_stage_1(work_dir, str(device))
    config = parse_arguments([*given, "--output_dir", str(output), *flags])
    store, told, logger = Store.open(str(output)), Told(), logging.getLogger("embedding")
    level, watch = logger.level, Watch(device)
    logger.setLevel(logging.INFO)
    logger.addHandler(told)
    started = time.perf_counter()
    watch.start()
    try:
        with watching_decoders() as in_processes, start_engine(config.engine, store) as engine:
            use_folder(store.root)
            run = replace(program.open_run(config, store), engine=engine)
            n_pairs = len(program.embed(run).value.pairs)
    finally:
        logger.removeHandler(told)
        logger.setLevel(level)
    whole = time.perf_counter() - started
    seconds = told.seconds
    assert seconds, "stage 1 tells how long it took"
    shutil.rmtree(output, ignore_errors=True)
    return {
        "pairs": n_pairs,
        "seconds": round(seconds, 2),
        "pairs_a_second": round(n_pairs / seconds, 1),
        "whole_stage_seconds": round(whole, 2),  # the encoder loaded, the shards looked through
        "decoded_by": decoders(
            in_processes=any(in_processes),
            n_workers=config.data.n_workers(),
            how=config.embedding.jpeg_decoding,
        ),
        **watch.finish(told.at - seconds, told.at),
    }


def decoders(*, in_processes: bool, n_workers: int, how: str = "reduced") -> str:
    """What decodes the images, in words."""
    if how == "gpu":
        return "the GPU"
    if in_processes:
        return "processes"
    return "threads" if n_workers else "the main thread"


def measure_decoding(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Reading without an encoder, on more and more cores."""
    encoder = ("--encoder_model", str(clip_folder(args)))
    for cores in args.cores:
        wanted = min(args.pairs - 2 * FEW_HELD_OUT, cores * args.decode_pairs)
        flags = (*f"--num_workers {cores} --workers {cores}".split(), *encoder)
        with only_cores(cores), idle_encoder():
            found = embed(
                *(args.work_dir, args.work_dir / "out", device),
                *("--max_train_samples", str(wanted), *flags, *args.flags),
            )
        yield {
            "name": f"{cores} cores" if cores > 1 else "1 core",
            "cores": cores,
            "device": device.type,
            **found,
        }


def measure_together(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Stage 1 as it is run, after a short run that loads and warms up what is needed."""
    flags = ("--encoder_model", str(clip_folder(args)), *args.flags)
    most = args.pairs - 2 * FEW_HELD_OUT
    if device.type == "cpu":
        most = min(most, FEW_ENCODED)
    for wanted in (min(most, 512), most):
        found = embed(
            *(args.work_dir, args.work_dir / "out", device),
            *("--max_train_samples", str(wanted), *flags),
        )
    yield {"name": device.type, "device": device.type, "cores": n_cores(), **found}


# --- The encoder alone ----------------------------------------------------------------------------


def clip_folder(args: argparse.Namespace) -> Path:
    """The encoder's weights, made once."""
    name = "clip_small" if args.small else "clip"
    return save_clip(args.work_dir / name, small=args.small)


def towers_alone(
    folder: Path, device: torch.device, batch_size: int
) -> dict[str, Callable[[], object]]:
    """A step of each tower, of transformers itself, on what is on the device already."""
    import transformers

    dtype = resolve_dtype("auto", device)
    model = transformers.CLIPModel.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    model = model.eval().to(device)
    side, end = model.config.vision_config.image_size, model.config.text_config.eos_token_id
    pixels = torch.randn(batch_size, 3, side, side, device=device).to(dtype)
    tokens = torch.full((batch_size, CONTEXT), 7, device=device)
    tokens[:, -1] = end

    def images() -> object:
        with torch.inference_mode():
            return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    def captions() -> object:
        with torch.inference_mode():
            return model.text_projection(model.text_model(input_ids=tokens).pooler_output)

    return {"images on the device": images, f"captions of {CONTEXT} tokens": captions}


def program_calls(
    folder: Path, device: torch.device, batch_size: int
) -> dict[str, Callable[[], object]]:
    """A call of the program's encoder with images and with captions as it reads them."""
    import PIL.Image

    rng = np.random.default_rng(0)
    encoder = load_encoder(EmbeddingConfig(str(folder)), device=device)
    image = PIL.Image.fromarray(rng.integers(256, size=(336, 336, 3), dtype=np.uint8))
    prepare = getattr(encoder, "resizing", None) or encoder.preprocess
    pixels = np.stack([prepare(image)] * batch_size)
    captions = [make_caption(rng) for _ in range(batch_size)]
    return {
        "encode_images": lambda: encoder.encode_images(pixels),
        "encode_texts": lambda: encoder.encode_texts(captions),
    }


def measure_encoder(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Images and captions a second, at several batch sizes."""
    sizes = args.batch_sizes if device.type == "cuda" else args.batch_sizes[:1]
    for batch_size in sizes:
        for steps in (towers_alone, program_calls):
            for what, step in steps(clip_folder(args), device, batch_size).items():
                yield {
                    "name": f"{what}, {batch_size} at once, {device.type}",
                    **{"what": what, "batch_size": batch_size, "device": device.type},
                    "a_second": round(rate(step, batch_size, device, args.seconds), 1),
                }


# --- Stage 2 --------------------------------------------------------------------------------------


def clusters_of(n: int) -> int:
    """How many clusters so many pairs have."""
    return min(MANY_CLUSTERS if n >= MANY else 100, max(2, n // 10))


def flags_of_stage_2(folder: Path, n: int) -> list[str]:
    """Of main.py, for embeddings of so many training pairs in a folder."""
    given = f"--max_train_samples {n} --max_val_samples {HELD_OUT} --n_clusters {clusters_of(n)}"
    given += f" --seed 0 --max_test_samples {HELD_OUT} --no_report --precision fp32"
    return [*given.split(), "--embeddings_dir", str(folder / "embeddings")]


def measure_stage2(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Stage 2 of embeddings that exist already; stage 1, not timed, is made once a size."""
    for n in args.stage2:
        folder = args.work_dir / f"pairs_{n}"
        write_embeddings(Planting(n + 2 * HELD_OUT), folder)
        given = flags_of_stage_2(folder, n)
        known = stage_1(folder / "out", (*given, "--device", "cpu"))
        output = folder / f"out_{device.type}"
        shutil.rmtree(output, ignore_errors=True)
        flags = [*given, "--device", device.type, *args.flags]
        config = parse_arguments([*flags, "--output_dir", str(output)])
        store = Store.open(str(output))
        with start_engine(config.engine, store) as engine:
            use_folder(store.root)
            run = replace(program.open_run(config, store), engine=engine)
            found = stage_2(run, known)
        shutil.rmtree(output, ignore_errors=True)
        yield {
            "name": f"{n} pairs, {device.type}",
            **{"pairs": n, "clusters": clusters_of(n), "device": device.type},
            **{"cores": n_cores(), **found},
        }


@cache
def stage_1(output: Path, flags: tuple[str, ...]) -> Known:
    """What is embedded and clustered, once for all devices, in memory as a run has it."""
    shutil.rmtree(output, ignore_errors=True)
    config = parse_arguments([*flags, "--output_dir", str(output)])
    store = Store.open(str(output))
    with start_engine(config.engine, store) as engine:
        use_folder(store.root)
        return program.stage_1(replace(program.open_run(config, store), engine=engine))


def stage_2(run: Run, known: Known) -> dict[str, Any]:
    """Seconds of stage 2 and its parts, of features that are put on the device first."""
    watch = Watch(run.device)
    watch.start()
    started = time.perf_counter()
    pairs = training_pairs(known.embedded.value, known.clustered.value, run.device)
    put = time.perf_counter() - started
    run.seconds.clear()
    program.stage_2(run, known._replace(pairs=pairs))
    whole = time.perf_counter() - started
    parts = {name: round(seconds, 2) for name, seconds in run.seconds.items()}
    return {"seconds": round(whole, 2), "parts": {"features": round(put, 2), **parts}} | {
        **watch.finish()
    }


# --- All of it ------------------------------------------------------------------------------------

MEASURE = {
    "decoding": measure_decoding,
    "encoder": measure_encoder,
    "together": measure_together,
    "stage2": measure_stage2,
}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**hardware(), "cores_allowed": n_cores(), "gpu": name, "torch": torch.__version__}


def devices_of(block: str, asked: Sequence[str]) -> list[str]:
    """Those that a block is measured on: all for stage 2, else the GPU where it is asked for.

    Without one that is told, and the processor is measured.
    """
    if block == "stage2" or not torch.cuda.is_available():
        return list(asked)
    return ["cuda"] if "cuda" in asked else list(asked)


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work_dir", type=as_folder, required=True, help="for what is made and read"
    )
    training = at_least(LEAST_TRAINING)
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=BLOCKS)
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=("cpu", "cuda"))
    parser.add_argument("--pairs", type=at_least(LEAST_PAIRS), default=20_000, help="in the shards")
    parser.add_argument(
        "--cores", nargs="+", type=positive, help="that decode; default 1, 2, 4, ..."
    )
    parser.add_argument(
        "--decode_pairs", type=training, default=2000, help="for each core that decodes"
    )
    parser.add_argument("--batch_sizes", nargs="+", type=positive, default=BATCH_SIZES)
    parser.add_argument(
        "--seconds", type=as_seconds, default=2.0, help="for each row of the encoder"
    )
    parser.add_argument(
        "--stage2", nargs="+", type=training, default=SIZES, help="pairs of stage 2"
    )
    parser.add_argument("--small", action="store_true", help="a narrow encoder, to try this out")
    parser.add_argument("--flags", default="", help="further flags of main.py, in one argument")
    parser.add_argument(
        "--results",
        type=as_json_file,
        help="default: benchmarks/results/gpu.json, with --small gpu_small.json in --work_dir",
    )
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags, looked at before any work; what is left out of what they ask for is told."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available() and "cuda" in args.devices:
        if "cpu" not in args.devices:
            parser.error("--devices cuda: there is no CUDA device; give cpu, or leave the flag out")
        print("there is no CUDA device; rows of it will say so", file=sys.stderr)
    most = n_cores()
    args.cores, missing = split_cores(args.cores, most)
    if missing:
        told = f"--cores {' '.join(map(str, missing))}: only {most} can be used here"
        if not args.cores:
            parser.error(f"{told}; give {most} or fewer")
        print(f"{told}; left out", file=sys.stderr)
    args.results = args.results or (args.work_dir / "gpu_small.json" if args.small else RESULTS)
    try:
        check_results(args.results, small=args.small)
    except ValueError as error:
        parser.error(f"--results: {error}")
    try:
        args.flags = shlex.split(args.flags)
        check_flags(args)
    except ValueError as error:
        parser.error(f"--flags: {error}")
    return args


def split_cores(asked: Sequence[int] | None, most: int) -> tuple[list[int], list[int]]:
    """Numbers of cores to decode on, and those asked for that are more than there are."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    asked = asked or [*powers, most]
    return [c for c in asked if c <= most], [c for c in asked if c > most]


def check_flags(args: argparse.Namespace) -> None:
    """Look whether main.py takes `--flags` beside those that it is given here.

    Raises:
        ValueError: it does not, or they change what is measured.
    """
    own = [flag for flag in OWN_FLAGS if flag in {word.partition("=")[0] for word in args.flags}]
    if own:
        raise ValueError(f"{' '.join(own)} is given by this program itself; leave it out")
    given = []
    if {"decoding", "together"} & set(args.blocks):
        given += [flags_of_stage_1(args.work_dir, "cpu")]
    if "stage2" in args.blocks:
        given += [flags_of_stage_2(args.work_dir, n) for n in args.stage2]
    for flags in given:
        parse_arguments([*flags, *args.flags])


def draw(args: argparse.Namespace) -> None:
    """The shards, by a process without PyTorch, whose own processes start at once.

    Raises:
        SystemExit: it failed, and said why.
    """
    pictures = Pictures(args.pairs)
    command = [sys.executable, str(ROOT / "benchmarks/gpu_data.py"), str(args.work_dir)]
    command += ["--pairs", str(pictures.pairs)]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


def measure(args: argparse.Namespace) -> None:
    """Every block on every device, printed and written down row by row."""
    mark = {"small": True} if args.small else {}
    for block in args.blocks:
        for device in devices_of(block, args.devices):
            if device == "cuda" and not torch.cuda.is_available():
                row = {"name": device, "not_run": NOT_RUN, **mark}
                add_rows(args.results, block, [row], machine())
                continue
            for found in MEASURE[block](args, torch.device(device)):
                print(block, found | mark, flush=True)
                add_rows(args.results, block, [found | mark], machine())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down; 0, or 2 where main.py does not take what it is given."""
    args = parse(arguments)
    try:
        if {"decoding", "together"} & set(args.blocks):
            draw(args)
        measure(args)
    except InputError as error:
        print(f"gpu.py: error: {error}", file=sys.stderr)
        return 2
    print(render(args.results))
    print(f"written to {args.results} and, as tables, {args.results.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

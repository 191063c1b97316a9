"""How fast pairs are read, from a folder, tar shards and parquet, beside webdataset and datasets.

    python benchmarks/reading.py --data_dir ../shared/data/flickr8k --work_dir WORK --curate

The photographs are written once in three layouts, in one order. Every reader then reads all of
them, image bytes hashed by SHA-256, captions parsed, to one of two ends: `prepared`, the embedded
encoder's input in batches of 64, and `decoded`, an RGB image at full size, of which one pixel is
handed on. A measurement has a
process of its own, in which the files were read once before the clock starts; readers take turns,
so that what else the machine does hits all alike. All must have seen the same bytes.

`--curate` runs the program on the three layouts and compares what it keeps. `--repeats 0` measures
nothing and keeps the speeds that were saved before.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import io
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import PIL.Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flags import as_folder, at_least

from artifacts.provenance import hardware, package_versions
from data import PairReader, open_source
from sources.base import DataConfig
from sources.images import decode_pixels
from sources.pixels import Resizing
from sources.processes import LEAST_IMAGES, ImageProcesses

RESULTS = ROOT / "benchmarks/results"
LAYOUTS = {"folder": "folder", "shards": "webdataset", "parquet": "parquet"}  # name: --dataset
PREPARED, DECODED = TASKS = ("prepared", "decoded")
READ_ORDER = ("test", "validation", "train")  # that of embedding.py, which would import torch
FILE_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # as files are named
# An even number of shards a worker: with 1,000 images each, one of two workers would wait.
SHARD_SIZE = 500
ROWS_PER_GROUP = 100  # what the Hub uses for images
BATCH_SIZE = 64
N_WORKERS = 2
LEAST_PHOTOGRAPHS = 3  # one of every split
CURATION = (
    "--encoder_model embedded --max_train_samples 5000 --methods full influencespace random "
    "--n_seeds 1 --seed 0"
)

# One pixel of the whole image, so that handing it on costs nothing.
ONE_PIXEL = Resizing(
    (1, 1), None, int(PIL.Image.Resampling.NEAREST), crops_strips=False, drafts=False
)

T = TypeVar("T")
Prepare = Callable[[PIL.Image.Image], np.ndarray]


# --- The three layouts ----------------------------------------------------------------------------


class Photograph(NamedTuple):
    """An image file of the folder, its captions and its official split.

    Attributes:
        file: its name in the download.
        captions: of it.
        split: official.
        copy: how often the download was gone through before.
    """

    file: str
    captions: tuple[str, ...]
    split: str
    copy: int = 0

    @property
    def name(self) -> str:
        """Of the file that is written."""
        return self.file if not self.copy else f"{self.copy}-{self.file}"

    def content(self, images: Path) -> bytes:
        """Of the file that is written; a number behind the picture makes another file of a copy."""
        return (images / self.file).read_bytes() + (b"%d" % self.copy if self.copy else b"")


def load_photographs(data_dir: Path, n: int) -> list[Photograph]:
    """The first n photographs of a Flickr8k download with a splits.csv, in its own order.

    Where more are asked for than it has, they come again.
    """
    captions: dict[str, list[str]] = {}
    for row in _read_csv(data_dir / "captions.txt"):
        captions.setdefault(row["image"], []).append(row["caption"])
    splits = {row["image"]: row["split"] for row in _read_csv(data_dir / "splits.csv")}
    every = ((copy, item) for copy in count() for item in captions.items())
    return [Photograph(file, tuple(c), splits[file], copy) for copy, (file, c) in islice(every, n)]


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_layouts(data_dir: Path, n: int, layouts: Path) -> None:
    """The photographs as a folder, as shards and as parquet, each in a folder of its own, once.

    Raises:
        SystemExit: there are other photographs.
    """
    photographs, images = load_photographs(data_dir, n), data_dir / "Images"
    about = {"data_dir": str(data_dir.resolve()), "n": len(photographs), "files": SHARD_SIZE}
    if layouts.exists():
        if json.loads((layouts / "about.json").read_text()) != about:
            raise SystemExit(f"--work_dir: {layouts} holds other photographs; give another folder")
        return
    unfinished = layouts.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_folder(photographs, images, unfinished / "folder")
    write_shards(photographs, images, unfinished / "shards")
    write_parquet(photographs, images, unfinished / "parquet")
    (unfinished / "about.json").write_text(json.dumps(about))
    unfinished.rename(layouts)


def write_folder(photographs: Sequence[Photograph], images: Path, folder: Path) -> None:
    """The layout of the Flickr8k download, with a splits.csv."""
    (folder / "Images").mkdir(parents=True)
    for photograph in photographs:
        (folder / "Images" / photograph.name).write_bytes(photograph.content(images))
    captions = [(p.name, caption) for p in photographs for caption in p.captions]
    _write_csv(folder / "captions.txt", [("image", "caption"), *captions])
    splits = [(p.name, p.split) for p in photographs]
    _write_csv(folder / "splits.csv", [("image", "split"), *splits])


def _write_csv(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_shards(photographs: Sequence[Photograph], images: Path, folder: Path) -> None:
    """WebDataset shards: an image and a json with its captions under a number of six digits."""
    folder.mkdir(parents=True)
    for name, part in _file_parts(photographs):
        with tarfile.open(folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, photograph in enumerate(part):
                labels = json.dumps({"captions": photograph.captions}).encode()
                suffix = PurePosixPath(photograph.file).suffix
                for ending, content in (
                    (suffix, photograph.content(images)),
                    (".json", labels),
                ):
                    header = tarfile.TarInfo(f"{number:06d}{ending}")
                    header.size = len(content)
                    archive.addfile(header, io.BytesIO(content))


def write_parquet(photographs: Sequence[Photograph], images: Path, folder: Path) -> None:
    """The Hub's layout: a struct of bytes and path, and a list of captions, in every row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for name, part in _file_parts(photographs):
        cells = [{"bytes": p.content(images), "path": p.name} for p in part]
        table = pa.table({"image": cells, "caption": [list(p.captions) for p in part]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=ROWS_PER_GROUP)


def _file_parts(photographs: Sequence[Photograph]) -> Iterator[tuple[str, list[Photograph]]]:
    """Name and photographs of each file, none from two splits."""
    for split, name in FILE_SPLITS.items():
        rest = iter([p for p in photographs if p.split == split])
        number = 0
        while part := list(islice(rest, SHARD_SIZE)):
            yield f"{name}-{number:05d}", part
            number += 1


# --- Readers --------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """Something that reads a layout.

    Attributes:
        layout: what it reads.
        library: what it is made with.
        open: from the layout's folder and the end that images are read to, what `read` takes.
        read: the SHA-256 of every image that was read, of duplicates once or more often.
    """

    layout: str
    library: str
    open: Callable[[Path, Resizing], Any]
    read: Callable[[Any], list[str]]


def layout_config(layout: str, root: Path) -> DataConfig:
    """Settings that read every pair of a layout."""
    most = 10**9
    return DataConfig(
        LAYOUTS[layout],
        str(root),
        max_train_samples=most,
        max_val_samples=most,
        max_test_samples=most,
    )


class Opened(NamedTuple):
    """What our reader reads with, and what makes the encoder's input of a batch of its pixels."""

    reader: PairReader
    processes: ImageProcesses
    finish: Callable[[np.ndarray], Any]


def open_ours(layout: str, root: Path, prepare: Prepare) -> Opened:
    """The program's own reader, with its default number of workers, one a core.

    Its processes start while the captions are read, as an encoder need not be loaded first.
    """
    config = layout_config(layout, root)
    most = config.max_image_pixels
    resizing, finish = _of_encoder() if prepare is not prepare_pixel else (ONE_PIXEL, np.asarray)
    processes, decode = ImageProcesses(resizing, most), decode_pixels(resizing, most)
    processes.start(config.n_workers())  # while the captions are read
    source = open_source(config, rng=np.random.default_rng(0))
    reader = PairReader(source, config, decode=decode, processes=processes)
    return Opened(reader, processes, finish)


def _of_encoder() -> tuple[Resizing, Callable[[np.ndarray], Any]]:
    """How our processes resize for the encoder, and how it normalises what they give."""
    import torch

    from encoders.device import Room
    from encoders.embedded import EmbeddedEncoder

    room = Room()

    def normalise(pixels: np.ndarray) -> Any:
        batch = torch.from_numpy(pixels)
        return EmbeddedEncoder.normalisation(batch, torch.float32, room.of(batch))

    return EmbeddedEncoder.resizing, normalise


def read_ours(opened: Opened) -> list[str]:
    """Every split, in batches as the encoder takes them; ends the processes, whose time counts."""
    reader, processes, finish = opened
    for split in READ_ORDER:
        for batch in _batches(reader.images(split)):
            finish(np.stack([image.pixels for image in batch]))
    processes.close()
    return [str(value) for value in reader.pairs()["image_sha256"].unique()]


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_SIZE)):
        yield batch


class Batch(NamedTuple):
    """What a rival hands over, aligned; pixels are a tensor, which worker processes share."""

    hashes: list[str]
    captions: list[list[str]]
    pixels: Any


def _make_batch(items: Iterable[tuple[str, list[str], np.ndarray]]) -> Batch:
    import torch

    hashes, captions, pixels = zip(*items, strict=True)
    return Batch(list(hashes), list(captions), torch.from_numpy(np.stack(pixels)))


def read_batches(batches: Iterable[Batch]) -> list[str]:
    """Every batch of a rival."""
    return [value for batch in batches for value in batch.hashes]


def open_webdataset(n_workers: int, root: Path, prepare: Resizing) -> Iterable[Batch]:
    """Shards through webdataset, in worker processes of torch's DataLoader if any are asked for."""
    import torch
    import webdataset  # type: ignore[import-untyped]

    shards = sorted(map(str, root.glob("*.tar")))
    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    samples = samples.map(partial(_read_member, prepare))
    batches: Any = samples.batched(BATCH_SIZE, collation_fn=_make_batch)
    if n_workers:
        batches = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=n_workers)
    return (batch for batch in batches)


def _read_member(
    prepare: Resizing, sample: Mapping[str, bytes]
) -> tuple[str, list[str], np.ndarray]:
    captions = json.loads(sample["json"])["captions"]
    image = PIL.Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
    return hashlib.sha256(sample["jpg"]).hexdigest(), captions, prepare(image)


def open_datasets(n_workers: int, root: Path, prepare: Resizing) -> Iterable[Batch]:
    """Parquet through datasets, in worker processes of torch's DataLoader if any are asked for.

    It copies the files to Arrow files beside them when they are opened for the first time.
    """
    import datasets
    import torch

    datasets.disable_progress_bars()
    files = sorted(map(str, root.glob("*.parquet")))
    table = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(arrow_copy(root))
    )
    rows = table.cast_column("image", datasets.Image(decode=False))  # its bytes are hashed, too
    read = partial(_read_rows, prepare, datasets.Image())
    if not n_workers:
        return map(read, _batches(rows))
    return torch.utils.data.DataLoader(rows, BATCH_SIZE, num_workers=n_workers, collate_fn=read)


def arrow_copy(root: Path) -> Path:
    """Where datasets keeps its copy of the parquet files."""
    return root.with_name("arrow")


def _read_rows(prepare: Resizing, feature: Any, rows: Iterable[Mapping[str, Any]]) -> Batch:
    return _make_batch(
        (
            hashlib.sha256(row["image"]["bytes"]).hexdigest(),
            row["caption"],
            prepare(feature.decode_example(row["image"]).convert("RGB")),
        )
        for row in rows
    )


OURS = {layout: f"InfluenceSpace, {layout}" for layout in LAYOUTS}
READERS = {
    **{
        OURS[layout]: Reader(layout, "data", partial(open_ours, layout), read_ours)
        for layout in LAYOUTS
    },
    **{
        name + ending: Reader(layout, name, partial(open_rival, n_workers), read_batches)
        for name, layout, open_rival in (
            ("webdataset", "shards", open_webdataset),
            ("datasets", "parquet", open_datasets),
        )
        for ending, n_workers in (("", 0), (f", {N_WORKERS} workers", N_WORKERS))
    },
}


# --- One measurement ------------------------------------------------------------------------------


def measure(name: str, task: str, layouts: Path) -> dict[str, Any]:
    """Speed, cores and memory of one reader in this process, which should do nothing else."""
    reader = READERS[name]
    root, prepare = layouts / reader.layout, prepare_for(task)
    for library in ("torch", reader.library):  # which takes seconds, and memory
        importlib.import_module(library)
    for path in root.rglob("*.*"):  # into the page cache
        path.read_bytes()
    load = os.getloadavg()[0]
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    opened = reader.open(root, prepare)
    opening = time.perf_counter() - started
    hashes = reader.read(opened)
    seconds = time.perf_counter() - started
    return {
        "reader": name,
        "task": task,
        "images": json.loads((layouts / "about.json").read_text())["n"],
        "images_sha256": hashlib.sha256("".join(sorted(set(hashes))).encode()).hexdigest(),
        "opening_seconds": opening,
        "reading_seconds": seconds - opening,
        "cpu_seconds": _cpu_seconds() - cpu_started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "load_average": load,
    }


def prepare_for(task: str) -> Prepare:
    """What is made of a decoded image."""
    if task == DECODED:
        return prepare_pixel
    import torch

    from encoders.embedded import EmbeddedEncoder

    return EmbeddedEncoder(torch.device("cpu"), torch.float32).preprocess


def prepare_pixel(image: PIL.Image.Image) -> np.ndarray:
    """One pixel of an image that was decoded at full size."""
    return ONE_PIXEL(image)


def _cpu_seconds() -> float:
    """Of this process and of the children that have ended, user and system."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure_apart(name: str, task: str, work_dir: Path) -> dict[str, Any]:
    """`measure` in a new process.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, __file__, "--work_dir", str(work_dir), "--measure", name, task]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed to read; what it said stands above")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_all(work_dir: Path, n_repeats: int) -> dict[str, Any]:
    """Every reader and task, `n_repeats` times, the readers in turns.

    Raises:
        SystemExit: two readers did not read the same bytes.
    """
    shutil.rmtree(arrow_copy(work_dir / "layouts" / "parquet"), ignore_errors=True)
    first = measure_apart("datasets", DECODED, work_dir)
    names = list(READERS)
    jobs = [
        (name, task)
        for repeat in range(n_repeats)
        for task in TASKS
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]
    ]
    rows = [measure_apart(*job, work_dir) for job in tqdm(jobs, desc="measurements", disable=None)]
    if len({row["images_sha256"] for row in rows}) != 1:
        raise SystemExit("the readers did not read the same images; their speeds say nothing")
    return {
        "summary": summarise(pd.DataFrame(rows)),
        "datasets_first_opening_seconds": first["opening_seconds"],
        "rows": rows,
    }


def summarise(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean and standard deviation over the repeats, for every task and reader.

    Opening counts: ours reads all captions then. `ratio` is the images a second beside ours on the
    same layout in the same repeat.
    """
    seconds = rows["opening_seconds"] + rows["reading_seconds"]
    rows = rows.assign(
        images_per_second=rows["images"] / seconds,
        cpu_ms_per_image=1000 * rows["cpu_seconds"] / rows["images"],
        busy_cores=rows["cpu_seconds"] / seconds,
        ours=rows["reader"].map(lambda name: OURS[READERS[name].layout]),
    )
    rows["repeat"] = rows.groupby(["task", "reader"]).cumcount()
    speed = rows.set_index(["task", "repeat", "reader"])["images_per_second"]
    beside = pd.MultiIndex.from_frame(rows[["task", "repeat", "ours"]])
    rows["ratio"] = rows["images_per_second"] / speed.loc[beside].to_numpy()
    columns = ["images_per_second", "ratio", "cpu_ms_per_image", "busy_cores", "opening_seconds"]
    columns += ["peak_mib", "worker_peak_mib"]
    return [
        {
            "task": task,
            "reader": name,
            "images": int(group["images"].iloc[0]),
            "mean": group[columns].mean().to_dict(),
            "std": group[columns].std().to_dict(),
        }
        for (task, name), group in rows.groupby(["task", "reader"], sort=False)
    ]


# --- What is curated ------------------------------------------------------------------------------


def curate_all(work_dir: Path) -> dict[str, Any]:
    """The program on every layout, and whether the same pairs are kept with the same weights.

    Raises:
        SystemExit: it failed.
    """
    outputs = {layout: work_dir / f"curated_{layout}" for layout in LAYOUTS}
    for layout, output in tqdm(outputs.items(), desc="curations", disable=None):
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, str(ROOT / "main.py"), "--output_dir", str(output)]
        command += ["--dataset", LAYOUTS[layout]]
        command += ["--data_dir", str(work_dir / "layouts" / layout), *shlex.split(CURATION)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise SystemExit(f"--curate: main.py failed on {output.name}; what it said is above")
    return {"flags": CURATION, **compare_curations(list(outputs.values()))}


def compare_curations(outputs: Sequence[Path]) -> dict[str, Any]:
    """Whether finished runs keep pairs of the same ids, and with the same weights in their order.

    Of pairs of the same id, image and caption alike, one is kept at most.
    """
    kept, weights = [], []
    for output in outputs:
        ledger = pd.read_parquet(output / "stage3/ledger.parquet")
        kept.append(set(ledger.loc[ledger["decision"] == "kept", "id"]))
        weights.append(np.load(output / "stage3/sample_weights.npy"))
    return {
        "kept_pairs": [len(ids) for ids in kept],
        "same_pairs": all(ids == kept[0] for ids in kept),
        "same_weights": all(np.array_equal(other, weights[0]) for other in weights),
    }


# --- Results --------------------------------------------------------------------------------------


def render(results: Mapping[str, Any]) -> str:
    """The results as a page."""
    parts = ["# How fast pairs are read", f"`{results['command']}`, {_machine(results)}."]
    if "speed" in results:
        parts += _speed_parts(results["speed"], results["data"])
    if "curation" in results:
        parts += ["## Whether the layout changes what is curated", _verdict(results["curation"])]
    return "\n\n".join(parts) + "\n"


def _machine(results: Mapping[str, Any]) -> str:
    packages = ("pillow", "webdataset", "datasets", "pyarrow", "torch")
    versions = results["packages"]
    named = [f"{name} {versions[name]}" for name in packages if name in versions]
    return ", ".join([f"{results['hardware']['cpu_cores']} CPU cores", *named])


def _speed_parts(speed: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    n_repeats = len(speed["rows"]) // len(speed["summary"])
    loads = [row["load_average"] for row in speed["rows"]]
    ends = {PREPARED: "Decoded and prepared for the encoder", DECODED: "Decoded at full size"}
    parts = [
        f"{data['images']:,} images a reading, by the median {data['width']} x {data['height']} "
        f"pixels and {data['kib']:.1f} KiB, the same bytes for all readers; mean ± standard "
        f"deviation over {n_repeats} repeats. Every reader decodes with Pillow, hashes the file "
        "and parses the captions; opening, in which InfluenceSpace reads all captions, counts. "
        "*Beside ours*: images a second over those of InfluenceSpace on the same files in the same "
        "repeat. *Busy cores*: CPU seconds over seconds. Other work ran on the machine meanwhile, "
        f"with a load average of {min(loads):.1f} to {max(loads):.1f} at the start of a reading: "
        "ratios and CPU time an image say more than images a second. Memory is that of the "
        "process, libraries included, and of the largest worker process, in which what both share "
        "counts again."
    ]
    if data["images"] < LEAST_IMAGES:
        parts += [
            f"Images being fewer than {LEAST_IMAGES:,}, InfluenceSpace decodes them in threads; "
            "more it decodes in processes, of which these numbers say nothing."
        ]
    for task, title in ends.items():
        rows = [row for row in speed["summary"] if row["task"] == task]
        parts += [f"## {title}", _speed_table(rows)]
    seconds = speed["datasets_first_opening_seconds"]
    note = f"The first opening by datasets, which copies the files to Arrow, takes {seconds:.1f} s"
    return [*parts, f"{note}; the others are of that copy."]


def _speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| reader | images a second | beside ours | CPU ms an image | busy cores | opening (s) "
        "| peak memory (MiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean, std = row["mean"], row["std"]
        memory = f"{mean['peak_mib']:.0f}"
        if mean["worker_peak_mib"]:
            memory += f" + {N_WORKERS} × {mean['worker_peak_mib']:.0f}"
        is_ours = row["reader"] in OURS.values()
        cells = [
            row["reader"],
            _plus_minus(mean, std, "images_per_second", 0),
            "1" if is_ours else _plus_minus(mean, std, "ratio", 2),
            _plus_minus(mean, std, "cpu_ms_per_image", 2),
            _plus_minus(mean, std, "busy_cores", 2),
            _plus_minus(mean, std, "opening_seconds", 2),
            memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plus_minus(
    mean: Mapping[str, float], std: Mapping[str, float], column: str, digits: int
) -> str:
    return f"{mean[column]:,.{digits}f} ± {std[column]:,.{digits}f}"


def _verdict(curation: Mapping[str, Any]) -> str:
    pairs = "the same" if curation["same_pairs"] else "not the same"
    weights = "the same" if curation["same_weights"] else "not the same"
    counts = ", ".join(
        f"{n:,} ({layout})" for layout, n in zip(LAYOUTS, curation["kept_pairs"], strict=True)
    )
    return (
        f"`python main.py {curation['flags']}` on the three layouts: pairs kept {counts}; their "
        f"ids are {pairs}, their weights {weights}."
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data_dir", type=as_folder, help="the Flickr8k download with a splits.csv"
    )
    parser.add_argument("--work_dir", type=as_folder, required=True, help="for the three layouts")
    parser.add_argument(
        "--n",
        type=at_least(LEAST_PHOTOGRAPHS),
        default=7000,
        help="photographs, repeated if need be (default: 7000)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="of every reading (default: 3)")
    parser.add_argument("--curate", action="store_true", help="also compare what is curated")
    parser.add_argument("--result_dir", type=as_folder, default=RESULTS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        return args
    if args.data_dir is None:
        parser.error("--data_dir is needed: a Flickr8k download with a splits.csv")
    for name in ("captions.txt", "splits.csv", "Images"):
        if not (args.data_dir / name).exists():
            problem = f"--data_dir {args.data_dir} holds no {name}"
            parser.error(f"{problem}; give a Flickr8k download with a splits.csv (image,split)")
    if args.repeats == 1 or args.repeats < 0:
        parser.error(f"--repeats must be 0 or at least 2, for a deviation; got {args.repeats}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the layouts, measure, curate, save and print."""
    args = parse(arguments)
    layouts = args.work_dir / "layouts"
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.measure[1], layouts)))
        return
    write_layouts(args.data_dir, args.n, layouts)
    path = args.result_dir / "reading.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results["command"] = (
        "python benchmarks/reading.py --data_dir path/to/flickr8k --work_dir WORK --curate"
    )
    results |= {"hardware": hardware(), "packages": installed(), "data": describe(layouts)}
    if args.repeats:
        results["speed"] = measure_all(args.work_dir, args.repeats)
    if args.curate:
        results["curation"] = curate_all(args.work_dir)
    args.result_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    path.with_suffix(".md").write_text(render(results))
    print(render(results))


def describe(layouts: Path) -> dict[str, Any]:
    """How many photographs there are, and how large they are in the middle."""
    images = list((layouts / "folder/Images").iterdir())
    sizes = []
    for path in images:
        with PIL.Image.open(path) as image:
            sizes.append((*image.size, path.stat().st_size / 1024))
    width, height, kib = np.median(sizes, axis=0).tolist()
    return {"images": len(images), "width": int(width), "height": int(height), "kib": round(kib, 1)}


def installed() -> dict[str, str]:
    """Versions of Python and of the packages that read."""
    rivals = ("webdataset", "datasets", "pyarrow", "pillow")
    return package_versions() | {name: importlib.metadata.version(name) for name in rivals}


if __name__ == "__main__":
    main()

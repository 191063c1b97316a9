"""The pages' commands on data and trainers, run as they stand there on small data."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import main
from tests.helpers import offline_datasets, picture, write
from tests.small_models import narrow
from tests.test_readme import DATA, PAGES, README, section

# What makes a run small; the pages' own flags come first and stay as they are.
SMALL = (
    "--max_train_samples 40 --max_val_samples 8 --max_test_samples 8 --n_clusters 4 "
    "--num_epochs 2 --n_seeds 1 --batch_size 8 --embed_dim 16 --influence_budget 0.5 "
    "--influence_seeds 1 --removal_folds 2 --held_out_repeats 1 --agreement_bands 2 "
    "--methods full influencespace random --device cpu --num_workers 0"
).split()
N, N_TRAIN = 60, 40
THINGS = ("dog", "cat", "boat", "tree", "house")
# Files that a run leaves only if it is asked for more than the one that is looked at here.
ON_DEMAND = {"stage2/influence_validation.json", "stage2/influence_validation.png"}
ON_DEMAND |= {"stage3/reviewed.npy"}


def commands(text: str) -> list[str]:
    """Every line of the bash blocks of a text."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def python(title: str, page: str = README) -> Any:
    """The Python of a section of a page, the README by default."""
    (code,) = re.findall(r"```python\n(.*?)```", section(page, title), re.DOTALL)
    return compile(code, title, "exec")


def main_commands(text: str) -> list[str]:
    return [command for command in commands(text) if command.startswith("python main.py")]


RUNS = [*main_commands(README), *main_commands(DATA)]
MEASURED = main_commands(PAGES["docs/results.md"])
MANY = next(c for c in RUNS if "--methods none" in c)  # of embeddings that Python has made
FOLDER = next(c for c in RUNS if "--dataset folder" in c and "--dry_run" not in c)


def small(command: str) -> list[str]:
    words = shlex.split(command, comments=True)[2:]
    encoder = [] if "--embeddings_dir" in words else ["--encoder_model", "embedded"]
    return [*words, *SMALL, *encoder]


def captions(i: int) -> list[str]:
    return [f"A {THINGS[i % 5]} number {i}", f"Number {i}, a {THINGS[i % 5]} in the sun"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders that the pages name, with sixty tiny pictures each; the present folder."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        narrow(monkeypatch, width=256)
        datasets = offline_datasets(folder, monkeypatch)
        monkeypatch.chdir(folder)
        write_data(folder, datasets)
        yield folder


def write_data(folder: Path, datasets: Any) -> None:
    files: dict[str, bytes | str] = {f"{i:03d}.png": picture(i) for i in range(N)}
    rows = "".join(f"{i:03d}.png,{text!r}\n" for i in range(N) for text in captions(i))
    rows = rows.replace(",'", ',"').replace("'\n", '"\n')
    for name in ("photographs", "path/to/flickr8k"):
        write(folder / name, files | {"captions.txt": f"image,caption\n{rows}"})
    for shard in range(2):
        (folder / "shards").mkdir(exist_ok=True)
        with tarfile.open(folder / f"shards/{shard:05d}.tar", "w") as tar:
            for i in range(shard * N // 2, (shard + 1) * N // 2):
                for name, content in (
                    (f"{i:06d}.png", picture(i)),
                    (f"{i:06d}.json", json.dumps({"captions": captions(i)}).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "tables").mkdir()
    cells = [{"bytes": picture(i), "path": f"{i:03d}.png"} for i in range(N)]
    table = pa.table({"image": cells, "caption": [captions(i) for i in range(N)]})
    pq.write_table(table, folder / "tables/pairs.parquet")
    images, texts = embeddings()
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / "embeddings" / kind).mkdir(parents=True)
    np.save(folder / "embeddings/img_emb/img_emb_0.npy", images)
    np.save(folder / "embeddings/text_emb/text_emb_0.npy", texts)
    pd.DataFrame(
        {"image_path": list(files), "caption": [captions(i)[0] for i in range(N)]}
    ).to_parquet(folder / "embeddings/metadata/metadata_0.parquet")
    uids = [f"{i:032x}" for i in range(N)]
    pool = pd.DataFrame({"uid": uids, "text": [captions(i)[0] for i in range(N)]})
    (folder / "metadata").mkdir()
    pool.to_parquet(folder / "metadata/00.parquet")
    np.savez(folder / "metadata/00.npz", b32_img=images, b32_txt=texts)
    coco = {
        "images": [{"id": i, "file_name": f"{i:03d}.png"} for i in range(N)],
        "annotations": [{"image_id": i, "caption": text} for i in range(N) for text in captions(i)],
    }
    write(folder / "coco/train2017", files)
    write(folder / "coco/annotations", {"captions_train2017.json": json.dumps(coco)})
    saved = datasets.Dataset.from_dict(
        {"image": cells, "caption": [c[0] for c in map(captions, range(N))]}
    )
    saved.cast_column("image", datasets.Image()).save_to_disk(folder / "saved")


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    both = rng.normal(size=(N, 16)).astype(np.float16)
    return both, both + rng.normal(size=(N, 16), scale=0.5).astype(np.float16)


@pytest.fixture(scope="module")
def earlier(data: Path) -> Path:
    """What the command on a folder of photographs leaves."""
    shutil.rmtree(data / "out", ignore_errors=True)
    assert main.main(small(FOLDER)) == 0
    return (data / "out").rename(data / "earlier")


@pytest.fixture
def folder(data: Path, request: pytest.FixtureRequest) -> Path:
    """The present folder, with the output of an earlier run where a command goes on from one."""
    shutil.rmtree(data / "out", ignore_errors=True)
    command = request.node.callspec.params["command"] if hasattr(request.node, "callspec") else ""
    if any(flag in command for flag in ("--load_saved", "--explain")):
        shutil.copytree(request.getfixturevalue("earlier"), data / "out")
    return data


def test_there_are_commands() -> None:
    assert len(RUNS) >= 9
    for flag in ("--dry_run", "--embeddings_dir", "--explain", "--export", "webdataset", "parquet"):
        assert any(flag in command for command in RUNS), flag
    for flag in ("--load_saved", "--skip_stage", "--val_data"):
        assert any(flag in command for command in RUNS), flag
    assert len(MEASURED) >= 2


@pytest.mark.parametrize(
    "command",
    [c for c in RUNS if "./output" not in c and c not in (FOLDER, MANY)],
)
def test_commands(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = small(command)
    if "--explain" in words:
        words[words.index("KEY")] = "003.png"
    if "--overrides" in words:
        before = pd.read_parquet("out/stage3/ledger.parquet")
        kept, dropped = (before[before["decision"] == d]["id"].iloc[0] for d in ("kept", "dropped"))
        review = f"id,decision,key,caption\n{kept},drop,,\n{dropped},keep,,\n"
        Path(words[words.index("--overrides") + 1]).write_text(review)
    assert main.main(words) == 0
    printed = capsys.readouterr().out
    if "--dry_run" in words:
        assert "Nothing was written." in printed
        assert not (folder / "out").exists()
    elif "--explain" in words:
        assert "decision" in printed
    else:
        ledger = pd.read_parquet("out/stage3/ledger.parquet")
        ratio = float(dict(pairwise(words)).get("--target_size_ratio", 0.8))
        assert (ledger["decision"] == "kept").sum() == ratio * N_TRAIN
        assert "Kept" in printed
    if "metadata" in words:
        subset = np.load("out/curated/datacomp/subset.npy")
        kept = ledger[ledger["decision"] == "kept"]
        assert subset["f1"].tolist() == sorted(int(uid, 16) for uid in kept["uid"])
    elif "--embeddings_dir" in words:
        sizes = json.loads((folder / "out/curated/webdataset/sizes.json").read_text())
        assert sum(sizes.values()) == 32
    elif "--export" in words:
        script = commands(section(README, "My trainer is …"))[-1]
        assert script == "sh out/curated/webdataset/train_open_clip.sh"
        assert (folder / "out/curated/webdataset/train_open_clip.sh").is_file()
        assert (folder / "out/curated/list/curated.csv").is_file()
        assert (folder / "out/curated/datacomp/subset.npy").is_file()
        names: dict[str, object] = {}
        exec(python("Exports", DATA), names)
        kept = ledger[ledger["decision"] == "kept"]
        for name in ("pairs", "same"):
            assert sorted(names[name]["id"]) == sorted(kept["id"])  # type: ignore[index]
    if "--overrides" in words:
        decisions = ledger.set_index("id")["decision_reason"]
        assert decisions[kept] == "dropped by the reviewer's say"
        assert decisions[dropped] == "kept by the reviewer's say"
        assert "1 pair kept and 1 dropped by the reviewer's say" in printed
    if "--load_saved" in words and "--n_clusters 200" in command:
        log = (folder / "out/log.txt").read_text()
        assert re.findall(r"embedding +reuse", log), "it embeds nothing again"


@pytest.mark.parametrize("command", MEASURED)
def test_commands_of_the_results(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That they are understood and find their data; they take minutes and photographs."""
    assert main.main([*small(command), "--dry_run"]) == 0
    assert "Nothing was written." in capsys.readouterr().out


def test_a_folder_of_photographs(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = pd.read_parquet(earlier / "stage3/ledger.parquet")
    assert (ledger["decision"] == "kept").sum() == 0.8 * N_TRAIN
    table = section(DATA, "The ledger").split("| columns |")[1].split("\n\n")[0]
    named = [row.split("|")[1] for row in table.splitlines()[2:]]
    columns = [*ledger.columns, "fairness_part"]  # which is there with --fairness alone
    assert sorted(re.findall(r"`(\w+)`", " ".join(named))) == sorted(columns)


@pytest.mark.parametrize("page", PAGES)
def test_files_of_a_run_are_there(page: str, earlier: Path) -> None:
    folders = "stage1|stage2|stage3|baselines|evaluation|results"
    named = set(re.findall(rf"`((?:{folders})/[\w.@]+\.\w+)`", PAGES[page]))
    for name in named - ON_DEMAND:
        assert (earlier / name).is_file(), name


def test_the_table_of_what_a_run_writes(earlier: Path) -> None:
    rows = re.findall(r"^\| `(\w+/|\.)` \| (.*) \|$", section(DATA, "What a run writes"), re.M)
    assert {folder for folder, _ in rows} >= {"stage1/", "stage2/", "stage3/", "results/"}
    for folder, text in rows:
        assert (earlier / folder).is_dir()
        for name in re.findall(r"`(\w+\.\w+)`", text):
            assert (earlier / folder / name).is_file(), f"{folder}{name}"


def test_reading_a_result(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("out", ignore_errors=True)
    shutil.copytree(earlier, "out")
    exec(python("Reading a result", DATA), {})
    printed = capsys.readouterr().out
    assert "+/-" in printed
    assert "its value is above the cut" in printed


def test_embeddings_from_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = main.main
    monkeypatch.setattr(main, "main", lambda words: run([*words, *SMALL]))
    images, texts = embeddings()
    given = {"images": images, "texts": texts, "captions": [captions(i)[0] for i in range(N)]}
    exec(python("My pairs are embeddings"), dict(given))
    ledger = pd.read_parquet(folder / "out/stage3/ledger.parquet")
    assert (ledger["decision"] == "kept").sum() == 0.8 * N_TRAIN
    at = SMALL.index("--methods")
    assert run([*shlex.split(MANY)[2:], *SMALL[:at], *SMALL[at + 4 :]]) == 0
    again = pd.read_parquet(folder / "out/stage3/ledger.parquet")
    assert again["decision"].tolist() == ledger["decision"].tolist()
    assert not (folder / "out/evaluation/method_comparison.csv").exists()

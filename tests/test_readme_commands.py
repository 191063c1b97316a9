"""The README's commands on data and trainers, run as they stand there on small data."""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import main
from tests.helpers import offline_datasets, picture, write

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# What makes a run small; the README's own flags come first and stay as they are.
SMALL = (
    "--max_train_samples 40 --max_val_samples 8 --max_test_samples 8 --n_clusters 4 "
    "--num_epochs 2 --n_seeds 1 --batch_size 8 --embed_dim 16 --influence_budget 0.5 "
    "--influence_seeds 1 --removal_folds 2 --held_out_repeats 1 --agreement_bands 2 "
    "--methods full influencespace random --device cpu --num_workers 0"
).split()
N = 60
THINGS = ("dog", "cat", "boat", "tree", "house")


def section(title: str) -> str:
    return README.split(f"## {title}")[1].split("\n## ")[0]


def commands(title: str) -> list[str]:
    """Every line of the bash blocks of a section."""
    blocks = re.findall(r"```bash\n(.*?)```", section(title), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


RUNS = [
    command
    for title in ("My data is", "What happened to my pairs", "My trainer is")
    for command in commands(title)
    if command.startswith("python main.py")
]


def captions(i: int) -> list[str]:
    return [f"A {THINGS[i % 5]} number {i}", f"Number {i}, a {THINGS[i % 5]} in the sun"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders that the README names, with sixty tiny pictures each."""
    datasets = offline_datasets(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    files: dict[str, bytes | str] = {f"{i:03d}.png": picture(i) for i in range(N)}
    rows = "".join(f"{i:03d}.png,{text!r}\n" for i in range(N) for text in captions(i))
    rows = rows.replace(",'", ',"').replace("'\n", '"\n')
    write(tmp_path / "photographs", files | {"captions.txt": f"image,caption\n{rows}"})
    for shard in range(2):
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / f"shards/{shard:05d}.tar", "w") as tar:
            for i in range(shard * N // 2, (shard + 1) * N // 2):
                for name, content in (
                    (f"{i:06d}.png", picture(i)),
                    (f"{i:06d}.json", json.dumps({"captions": captions(i)}).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (tmp_path / "tables").mkdir()
    cells = [{"bytes": picture(i), "path": f"{i:03d}.png"} for i in range(N)]
    table = pa.table({"image": cells, "caption": [captions(i) for i in range(N)]})
    pq.write_table(table, tmp_path / "tables/pairs.parquet")
    rng = np.random.default_rng(0)
    for kind in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "embeddings" / kind).mkdir(parents=True)
    both = rng.normal(size=(N, 16)).astype(np.float16)
    np.save(tmp_path / "embeddings/img_emb/img_emb_0.npy", both)
    noisy = both + rng.normal(size=(N, 16), scale=0.5).astype(np.float16)
    np.save(tmp_path / "embeddings/text_emb/text_emb_0.npy", noisy)
    pd.DataFrame(
        {"image_path": list(files), "caption": [captions(i)[0] for i in range(N)]}
    ).to_parquet(tmp_path / "embeddings/metadata/metadata_0.parquet")
    coco = {
        "images": [{"id": i, "file_name": f"{i:03d}.png"} for i in range(N)],
        "annotations": [{"image_id": i, "caption": text} for i in range(N) for text in captions(i)],
    }
    write(tmp_path / "coco/train2017", files)
    write(tmp_path / "coco/annotations", {"captions_train2017.json": json.dumps(coco)})
    saved = datasets.Dataset.from_dict(
        {"image": cells, "caption": [c[0] for c in map(captions, range(N))]}
    )
    saved.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    return tmp_path


def test_there_are_commands() -> None:
    assert len(RUNS) >= 9
    for flag in ("--dry_run", "--embeddings_dir", "--explain", "--export", "webdataset", "parquet"):
        assert any(flag in command for command in RUNS), flag


@pytest.mark.parametrize("command", RUNS)
def test_commands(command: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[2:]
    small = SMALL if "--embeddings_dir" in words else [*SMALL, "--encoder_model", "embedded"]
    if "--explain" in words:
        folder = shlex.split(RUNS[1])[2:]
        assert "folder" in folder
        assert main.main([*folder, *small]) == 0
        words[words.index("KEY")] = "003.png"
    assert main.main([*words, *small]) == 0
    printed = capsys.readouterr().out
    if "--dry_run" in words:
        assert "Nothing was written." in printed
        assert not (data / "out").exists()
    elif "--explain" in words:
        assert "decision" in printed
    else:
        ledger = pd.read_parquet("out/stage3/ledger.parquet")
        assert (ledger["decision"] == "kept").sum() == 32
        assert "Kept" in printed
    if "--embeddings_dir" in words:
        sizes = json.loads((data / "out/curated/webdataset/sizes.json").read_text())
        assert sum(sizes.values()) == 32
    elif "--export" in words:
        script = commands("My trainer is")[-1]
        assert script == "sh out/curated/webdataset/train_open_clip.sh"
        assert (data / "out/curated/webdataset/train_open_clip.sh").is_file()
        (code,) = re.findall(r"```python\n(.*?)```", section("My trainer is"), re.DOTALL)
        names: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), names)
        kept = ledger[ledger["decision"] == "kept"]
        for name in ("pairs", "same"):
            assert sorted(names[name]["id"]) == sorted(kept["id"])  # type: ignore[index]

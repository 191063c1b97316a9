"""The real open_clip trains on exported shards, in an environment of its own."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.exporting.exports import Case, make_case, run_export, shards
from tests.open_clip_environment import open_clip_python, what_torchvision_needs

# Eight pairs of weight 0.5 in shards of 3, 3 and 2, and four of weight 2 in shards of 2 and 2.
LIGHT, HEAVY = 8, 4
WEIGHTS = np.array([0.5] * LIGHT + [2.0] * HEAVY)
N = len(WEIGHTS)
BATCH_SIZE = 4
N_DRAWN = 8000  # samples that the proportions are counted in
MAX_SECONDS = 300  # of a run: without a whole batch to read, open_clip reads on for ever

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {
        **{"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}

# Python runs this as it starts: it notes which shards are opened.
NOTE_SHARDS = """
import os
import sys

opened = os.open(os.environ["OPENED_SHARDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".tar"):
        os.write(opened, f"{arguments[0]}\\n".encode())

sys.addaudithook(note)
"""
# What open_clip's own code makes of the flags; the captions of an epoch tell which pairs it shows.
PROBE = """
import json
import sys

from open_clip_train.data import expand_urls, get_wds_dataset
from open_clip_train.params import parse_args

def dataset(args):
    number = lambda text: [int(text.split()[-1])]
    return get_wds_dataset(args, lambda image: image.size[0], is_train=True, tokenizer=number)

args = parse_args(sys.argv[1:])
args.world_size = 1
urls, weights = expand_urls(args.train_data, args.train_data_upsampling_factors)
drawn = [int(n) for _, numbers in dataset(args).dataloader for n in numbers]
args.dataset_resampled, refusal = False, ""
try:
    dataset(args)
except AssertionError as error:
    refusal = str(error)
print(json.dumps({"urls": urls, "weights": weights, "drawn": drawn, "refusal": refusal}))
"""


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has open_clip."""
    return open_clip_python(request.config, tmp_path_factory)


@pytest.fixture(scope="module")
def environment(python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which this Python imports open_clip and notes the shards that it opens."""
    site = tmp_path_factory.mktemp("site")
    start = NOTE_SHARDS + what_torchvision_needs(python)
    (site / "sitecustomize.py").write_text(start, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OPENED_SHARDS": str(site / "opened.txt"),
        "PYTHON": python,
        "PYTHONPATH": str(site),
    }


@pytest.fixture
def opened(environment: Mapping[str, str]) -> Path:
    """Where the shards are noted that are opened from here on."""
    path = Path(environment["OPENED_SHARDS"])
    path.write_text("")
    return path


def numbered_pairs() -> Case:
    """Every caption ends with the number of its pair."""
    case = make_case(N)
    captions = [f"a picture of the number {number}" for number in range(N)]
    return case.changed(caption=captions, weight=WEIGHTS)


def train(root: Path, environment: Mapping[str, str], *flags: str) -> str:
    """Run the exported script and return all that it says."""
    finished = subprocess.run(
        ["/bin/sh", str(root / "curated/webdataset/train_open_clip.sh"), *flags],
        env=environment,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MAX_SECONDS,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def probe(root: Path, environment: Mapping[str, str], flags: Sequence[str]) -> dict[str, Any]:
    """What open_clip's own code makes of the script's flags and these."""
    program, stand_in = root / "probe.py", root / "python"
    program.write_text(PROBE, encoding="utf-8")
    stand_in.write_text('#!/bin/sh\nshift 2\nexec "$REAL_PYTHON" "$PROBE" "$@"\n')
    stand_in.chmod(0o755)
    real = {"REAL_PYTHON": environment["PYTHON"], "PROBE": str(program), "PYTHON": str(stand_in)}
    said = train(root, {**environment, **real}, *flags)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.slow
def test_open_clip_trains_on_the_exported_shards(
    environment: dict[str, str], opened: Path, tmp_path: Path
) -> None:
    run_export(tmp_path, numbered_pairs(), "webdataset")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    said = train(
        *(tmp_path, environment, "--model", "local-dir:model", "--device", "cpu"),
        *("--precision", "fp32", "--workers", "0", "--batch-size", str(BATCH_SIZE)),
        *("--epochs", "1", "--warmup", "1", "--log-every-n-steps", "1"),
        *("--logs", "logs", "--name", "run"),
    )
    steps = re.findall(r"Train Epoch: 0 \[ *(\d+)/(\d+) .* Loss: (\S+) \(", said)
    assert [(int(seen), int(n)) for seen, n, _ in steps] == [(4, N), (8, N), (12, N)]
    losses = [float(loss) for _, _, loss in steps]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert "Handling webdataset error" not in said  # how it says that it drops a sample

    saved = torch.load(tmp_path / "logs/run/checkpoints/epoch_1.pt", weights_only=True)
    moments = saved["optimizer"]["state"].values()
    assert {int(moment["step"]) for moment in moments} == {len(steps)}
    assert all(torch.isfinite(values).all() for values in saved["state_dict"].values())
    assert any(moment["exp_avg"].abs().max() > 0 for moment in moments)

    assert len(shards(tmp_path)) == 5
    assert sorted(set(opened.read_text().splitlines())) == shards(tmp_path)


@pytest.mark.slow
def test_pairs_are_shown_in_proportion_to_their_weight(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run_export(tmp_path, numbered_pairs(), "webdataset")
    flags = ["--workers", "0", "--batch-size", str(BATCH_SIZE), "--train-num-samples"]
    found = probe(tmp_path, environment, [*flags, str(N_DRAWN)])

    # The factor of a group is the weight of each of its shards, whatever their size.
    expected = {path: 0.5 if "/weight-0.50/" in path else 2.0 for path in shards(tmp_path)}
    assert dict(zip(found["urls"], found["weights"], strict=True)) == expected
    assert sorted(expected.values()) == [0.5, 0.5, 0.5, 2.0, 2.0]

    # Shards are drawn, 2.2 pairs each on average, so that some 3,700 draws make the sample. The
    # light ones' share, a third, then has a standard deviation of 0.009, and the number of times
    # that a pair is shown one of 5 %; five of them are allowed. By weights that belonged to groups
    # as a whole the share would be 0.2, by weights times sizes 0.41, without weights 0.67.
    times = Counter(found["drawn"])
    assert times.total() == N_DRAWN
    shown = np.array([times[number] for number in range(N)])
    assert shown[:LIGHT].sum() / N_DRAWN == pytest.approx(1 / 3, abs=0.045)
    np.testing.assert_allclose(shown, N_DRAWN * WEIGHTS / N, rtol=0.27)

    assert "--dataset-resampled" in found["refusal"]  # without it, factors are refused


@pytest.mark.slow
def test_equal_weights_show_every_pair_once(environment: dict[str, str], tmp_path: Path) -> None:
    run_export(tmp_path, numbered_pairs().changed(weight=1.0), "webdataset")
    found = probe(tmp_path, environment, ["--workers", "0", "--batch-size", str(BATCH_SIZE)])
    assert sorted(found["urls"]) == shards(tmp_path)
    assert found["weights"] is None
    assert sorted(found["drawn"]) == list(range(N))

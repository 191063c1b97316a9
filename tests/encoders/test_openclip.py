"""Encoders of open_clip: the names, the extra, and `in_open_clip.py` where open_clip is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from artifacts.settings import InputError
from encoders.openclip import is_open_clip
from tests.encoders.weight_files import put_in_cache
from tests.open_clip_environment import REQUIREMENTS, ROOT, open_clip_python, what_torchvision_needs
from tests.small_models import load, save_clip

TESTS = "tests/encoders/in_open_clip.py"
# What is not installed beside open_clip is taken from where these tests run.
APPEND = "\nimport sys\nsys.path.append({path!r})\n"


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_open_clip_goes_with_the_versions_of_the_rest() -> None:
    runtime, extra = pins(ROOT / "requirements.txt"), pins(REQUIREMENTS)
    shared = runtime.keys() & extra.keys()
    assert {"torch", "numpy", "pillow", "safetensors"} <= shared
    assert {name: extra[name] for name in shared} == {name: runtime[name] for name in shared}
    assert "open-clip-torch" in extra


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        (None, "pip install -r requirements.txt -r requirements-openclip.txt"),
        ("operator torchvision::nms does not exist", "torch and torchvision from one index"),
    ],
)
def test_the_extra_is_named_where_it_is_not_there(
    problem: str | None, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    if problem is None:
        monkeypatch.setitem(sys.modules, "open_clip", None)
    else:
        (tmp_path / "open_clip.py").write_text(f"raise RuntimeError({problem!r})")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"needs open_clip, which cannot be imported") as caught:
        load("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert remedy in str(caught.value)
    assert REQUIREMENTS.name in str(caught.value)
    assert (problem or "open_clip") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_which_models_are_of_open_clip(tmp_path: Path, no_hub: Path) -> None:
    for name in ("open_clip:ViT-B-32/x", "hf-hub:apple/DFN", "local-dir:model", "open_clip:"):
        assert is_open_clip(name)
    for name in ("embedded", "auto", "apple/DFN", "openai/clip-vit-base-patch32", "", "no/such/x"):
        assert not is_open_clip(name)
    folder = tmp_path / "model"
    folder.mkdir()
    assert not is_open_clip(str(folder))
    (folder / "open_clip_config.json").write_text("{}")
    assert is_open_clip(str(folder))
    put_in_cache(folder, no_hub, "apple/DFN")
    assert is_open_clip("apple/DFN")


def test_a_folder_of_both_is_read_as_before(tmp_path: Path) -> None:
    save_clip(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert not is_open_clip(str(tmp_path))
    assert load(tmp_path).name == str(tmp_path)


@pytest.mark.slow
def test_where_open_clip_is(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = open_clip_python(request.config, tmp_path_factory)
    site = tmp_path_factory.mktemp("site")
    start = what_torchvision_needs(python) + APPEND.format(path=sysconfig.get_path("purelib"))
    (site / "sitecustomize.py").write_text(start, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(site / "modules"),
        "PYTHONPATH": str(site),
    }
    # What other packages warn of is theirs.
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "-o", "addopts="]
    finished = subprocess.run(
        [python, "-m", "pytest", *options, TESTS],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if finished.returncode and version_of(python) != sys.version_info[:2]:
        pytest.skip(f"{python} is another Python than that of these tests")
    assert finished.returncode == 0, finished.stdout
    last = finished.stdout.splitlines()[-1]
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (\w+)", last)}
    assert counts["passed"] > 40
    assert counts.get("skipped", 0) == (0 if torch.cuda.is_available() else 1)  # the one on a GPU


def version_of(python: str) -> tuple[int, int]:
    asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    major, minor = subprocess.check_output(asked, text=True).split()
    return int(major), int(minor)

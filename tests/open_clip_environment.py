"""A Python that has open_clip.

`requirements-openclip.txt` is installed once, into pytest's cache (1 GB, 40 s), without one for
every run. An environment that is there already is taken from the variable
INFLUENCESPACE_OPENCLIP_PYTHON.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements-openclip.txt"
PYTHON_VARIABLE = "INFLUENCESPACE_OPENCLIP_PYTHON"

# Declares what torchvision describes on import but, where it was built for CUDA and torch was not,
# cannot load: the operators that thin out detection boxes. open_clip has no boxes.
DECLARE_OPERATORS = """
import torch

library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def open_clip_python(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with open_clip, which is made if need be."""
    given = os.environ.get(PYTHON_VARIABLE)
    if given:
        return given
    cache = getattr(config, "cache", None)  # -p no:cacheprovider leaves none
    folder = cache.mkdir("open_clip") if cache else tmp_path_factory.mktemp("open_clip")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # where tests run in several processes, one installs
        return _install(folder)


def what_torchvision_needs(python: str) -> str:
    """What this Python has to run as it starts, so that torchvision can be imported."""
    probed = subprocess.run([python, "-c", "import torchvision"], capture_output=True, text=True)
    if "operator torchvision::nms does not exist" in probed.stderr:
        return DECLARE_OPERATORS
    assert probed.returncode == 0, probed.stderr
    return ""


def _install(folder: Path) -> str:
    """Install open_clip, unless an earlier run did."""
    environment, done = folder / "environment", folder / "done"
    interpreter = str(environment / "bin/python")
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        done.unlink(missing_ok=True)
        pip = ["-m", "pip", "install", "--quiet", "--no-compile", "--retries", "1"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [interpreter, *pip, "-r", str(REQUIREMENTS)],
        ):
            finished = subprocess.run(command, capture_output=True, text=True)
            if finished.returncode:
                said = (finished.stderr.strip() or finished.stdout.strip()).splitlines()
                pytest.skip(f"open_clip cannot be installed: {said[-1] if said else command}")
        done.write_text(wanted, encoding="utf-8")
    return interpreter

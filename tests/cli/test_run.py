"""The device of a run, and why one cannot be had."""

from __future__ import annotations

import re

import pytest
import torch

from artifacts.settings import InputError
from cli.config import parse_arguments
from cli.run import device_name, resolve_device


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is found, whatever PyTorch is built with."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("no_gpu")
def test_a_build_without_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.__version__", "2.13.0+cpu")
    with pytest.raises(InputError) as error:
        resolve_device("cuda")
    assert str(error.value) == (
        "--device cuda is not available: PyTorch 2.13.0+cpu is built without CUDA; install a "
        "build with it (https://pytorch.org/get-started/locally), or use --device auto"
    )


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("hidden", [None, "", "3"])
def test_a_gpu_or_driver_that_is_not_found_is_said(
    monkeypatch: pytest.MonkeyPatch, hidden: str | None
) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.__version__", "2.13.0+cu130")
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    shown = "" if hidden is None else f", and CUDA_VISIBLE_DEVICES is '{hidden}'"
    with pytest.raises(InputError) as error:
        resolve_device("cuda")
    assert str(error.value) == (
        "--device cuda is not available: PyTorch 2.13.0+cu130 is built for CUDA 13.0, but finds "
        f"no GPU or no driver that is new enough{shown}; see what nvidia-smi says, or use "
        "--device auto"
    )


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("is_built", "words"),
    [(False, "is no build for a Mac"), (True, "a macOS that is new enough, or use --device")],
)
def test_why_there_is_no_mps(monkeypatch: pytest.MonkeyPatch, is_built: bool, words: str) -> None:
    monkeypatch.setattr("torch.backends.mps.is_built", lambda: is_built)
    with pytest.raises(InputError, match=f"--device mps is not available: .*{words}.*auto"):
        resolve_device("mps")


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_the_processor_where_there_is_nothing_else() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    assert device_name(torch.device("cpu")) == "cpu"


def test_auto_takes_a_gpu_which_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU of {device}")
    device = resolve_device("auto")
    assert device_name(device) == "cuda (GPU of cuda)"


def test_who_asks_for_one_gpu_of_several_is_told_how() -> None:
    told = (
        "--device cuda:7: a run takes the first GPU that it sees; set CUDA_VISIBLE_DEVICES=7 in "
        "its environment and use --device cuda"
    )
    with pytest.raises(InputError, match=f"^{re.escape(told)}$"):
        parse_arguments(["--device", "cuda:7"])
    with pytest.raises(InputError, match="--device must be one of auto, cpu, cuda, mps; got 'tpu'"):
        parse_arguments(["--device", "tpu"])

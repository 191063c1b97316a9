"""Whether the Hub answers; the Hub is made up."""

from __future__ import annotations

import threading

import huggingface_hub
import pytest

from sources.online import hub_answers


def test_a_hub_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_answers("jxie/coco_captions", "dataset")


def test_a_hub_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    release = threading.Event()

    class Hanging:
        def dataset_info(self, repo_id: str, timeout: float) -> None:
            release.wait()

        def model_info(self, repo_id: str, timeout: float) -> None:
            if repo_id != "known":
                raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "HfApi", Hanging)
    assert not hub_answers("someone/something", "dataset", timeout_seconds=0.05)
    release.set()
    assert hub_answers("known", "model")
    assert not hub_answers("unknown", "model")

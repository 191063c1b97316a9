"""Whether the Hub answers."""

from __future__ import annotations

import logging
import os
import threading

logger = logging.getLogger(__name__)


def hub_answers(repo_id: str, repo_type: str, timeout_seconds: float = 5.0) -> bool:
    """Whether the Hub answers and has this repository.

    Args:
        repo_id: owner/name.
        repo_type: model or dataset.
        timeout_seconds: longest wait; a name server that hangs is waited for no longer.
    """
    switches = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    if any(os.environ.get(s, "").upper() in ("1", "ON", "YES", "TRUE") for s in switches):
        return False
    from huggingface_hub import HfApi

    api = HfApi()
    look_up = api.dataset_info if repo_type == "dataset" else api.model_info
    answered = threading.Event()

    def ask() -> None:
        try:
            look_up(repo_id, timeout=timeout_seconds)
            answered.set()
        except Exception as error:  # no network, no such repository, no permission
            logger.debug("the Hub has no %s: %s", repo_id, error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return answered.is_set()

"""The settings of a training."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.settings import Settings, setting

LOSS, SAMPLE = WEIGHTINGS = ("loss", "sample")  # where the weights of pairs take effect


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How a dual encoder is trained, the reference model and every compared one alike."""

    embed_dim: int = setting(256, "width of the trained joint space", at_least=2)
    num_epochs: int = setting(10, "training epochs over the full data", at_least=1)
    batch_size: int = setting(32, "pairs per training and validation batch", at_least=2)
    learning_rate: float = setting(1e-3, "peak AdamW learning rate (cosine schedule)", above=0)
    weight_decay: float = setting(1e-5, "AdamW weight decay", at_least=0)

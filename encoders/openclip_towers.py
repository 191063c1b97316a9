"""The projections of open_clip's towers, taken out so that a pass gives what they take in.

open_clip's models return projected rows alone. Without its projection a tower returns its features;
the projection, applied to them, gives the same rows as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Projection = Callable[[torch.Tensor], torch.Tensor]


def take_image_projection(model: Any) -> Projection:
    """The image tower's projection, no longer in the tower.

    Raises:
        ValueError: the tower is of no kind that is known.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    tower = model.visual
    if isinstance(tower, VisionTransformer):
        return _take_optional(tower, "proj")
    if isinstance(tower, ModifiedResNet):
        return _take_from_attention(tower.attnpool)
    if isinstance(tower, TimmModel):
        return _take_from_timm(tower)
    raise ValueError(f"its image tower {type(tower).__name__} is of no kind that is known")


def take_text_projection(model: Any) -> Projection:
    """The text tower's projection, no longer in the tower.

    Raises:
        ValueError: the tower is of no kind that is known.
    """
    from open_clip.hf_model import HFTextEncoder

    tower = getattr(model, "text", model)  # CLIP itself has the parts of its text tower
    if isinstance(tower, HFTextEncoder):
        return _take_module(tower, "proj")
    if hasattr(tower, "text_projection"):
        return _take_optional(tower, "text_projection")
    raise ValueError(f"its text tower {type(tower).__name__} is of no kind that is known")


def _take_optional(owner: Any, name: str) -> Projection:
    """A matrix or a layer that the owner does without where it is None."""
    projection = getattr(owner, name)
    setattr(owner, name, None)
    if projection is None:
        return torch.nn.Identity()
    if isinstance(projection, torch.nn.Module):
        return projection
    return lambda features: features @ projection


def _take_module(owner: Any, name: str) -> Projection:
    """A layer that the owner always calls."""
    projection: Projection = getattr(owner, name)
    setattr(owner, name, torch.nn.Identity())
    return projection


def _take_from_attention(pool: Any) -> Projection:
    """The output layer of attention, whose matrix is multiplied by whatever it is."""
    projection: torch.nn.Linear = pool.c_proj
    unit = torch.nn.Linear(projection.in_features, projection.in_features)
    with torch.no_grad():
        unit.weight.copy_(torch.eye(projection.in_features))
        unit.bias.zero_()
    pool.c_proj = unit.to(projection.weight.device, projection.weight.dtype)
    return projection


def _take_from_timm(tower: Any) -> Projection:
    """The head, but for a pooling in it; without a head, the classifier of the trunk."""
    pooling = [layer for name, layer in tower.head.named_children() if name == "pool"]
    layers = [layer for name, layer in tower.head.named_children() if name != "pool"]
    if layers or pooling:
        tower.head = torch.nn.Sequential(*pooling)
        return torch.nn.Sequential(*layers)
    classifier = tower.trunk.get_classifier()
    for parent in tower.trunk.modules():
        for name, layer in parent.named_children():
            if layer is classifier and isinstance(layer, torch.nn.Linear):
                return _take_module(parent, name)
    return torch.nn.Identity()

"""An image tower and a text tower, fine-tuned on image-caption pairs and measured by retrieval.

    loss = weighted mean_i 1/2 [ -log softmax_j(s_ij)_i - log softmax_j(s_ji)_i ],  s = scale u v^T

The image tower is EfficientNet-Lite0, pretrained, its batch norms folded into the convolutions: it
computes the same in training as afterwards. The text tower is a small transformer over WordLlama's
token embeddings, pretrained too, everything else of it drawn anew. All weights are trained.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from encoders.embedded import load_lite0, load_wordllama
from learner.model import contrastive_loss, shuffled_batches
from sources.captions import normalize_caption
from sources.images import decode_image
from train_eval import recall_metrics, retrieval_ranks

IMAGE_WIDTH, TOKEN_WIDTH, JOINT_WIDTH = 1280, 256, 256
HEADS, MAX_TOKENS = 4, 32  # the longest caption of Flickr8k has a few tokens more
FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # those of CLIP
WARM_UP, WEIGHT_DECAY, MAX_GRADIENT_NORM = 0.1, 0.05, 1.0
EMBEDDED_AT_ONCE = 250
NO_TOKEN = 0  # fills up captions; the vocabulary's own tokens begin at one


class Setting(NamedTuple):
    """How the towers are trained; a change asks for new `RULES` in `end_to_end.py`."""

    n_steps: int
    batch_size: int
    side: int  # pixels of the squares that the image tower sees
    stored_side: int  # pixels of the photographs, of which those are cut out
    text_layers: int
    feedforward: int  # width inside a layer of the text tower
    pretrained_rate: float  # the largest of the schedule, for weights that were there
    new_rate: float  # and for those drawn anew

    def __str__(self) -> str:
        return f"{self.n_steps} steps of {self.batch_size} pairs at {self.side} pixels"


SETTINGS = {
    "large": Setting(900, 128, 112, 128, 4, 1024, 3e-4, 1e-3),
    "small": Setting(200, 64, 64, 72, 2, 512, 3e-4, 1e-3),
}


class Pairs(NamedTuple):
    """What the towers are trained on."""

    image_rows: np.ndarray  # (n,) of the photographs
    captions: Sequence[str]
    weights: np.ndarray  # (n,) of a pair in the loss


class Unseen(NamedTuple):
    """Images with all their captions, to be retrieved from one another."""

    image_rows: np.ndarray  # (E,) of the photographs
    captions: Sequence[str]  # (Q,)
    caption_image: np.ndarray  # (Q,) from zero to E - 1


# --- What the towers see ----------------------------------------------------------------------


def load_photographs(data_dir: Path, file: Path, side: int) -> np.ndarray:
    """(N, side, side, 3) uint8, by name, each decoded and resized at most once.

    Raises:
        SystemExit: the file holds photographs of another data set or size.
    """
    names = np.sort(pd.read_csv(data_dir / "splits.csv")["image"].to_numpy().astype(str))
    if file.exists():
        with np.load(file) as saved:
            pixels = np.asarray(saved["pixels"])
            if np.array_equal(saved["names"], names) and pixels.shape[1] == side:
                return pixels
        raise SystemExit(f"{file} holds other photographs than {data_dir}; move it away")
    pixels = np.empty((len(names), side, side, 3), np.uint8)
    for row, name in enumerate(tqdm(names, desc="photographs", unit="image", disable=None)):
        picture = decode_image((data_dir / "Images" / name).read_bytes(), 10**8)
        pixels[row] = np.asarray(picture.resize((side, side)))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, pixels=pixels, names=names)
    os.replace(part, file)
    return pixels


def load_unseen(data_dir: Path) -> Unseen:
    """The images that are not for training, by name, each with its captions in their order."""
    splits = pd.read_csv(data_dir / "splits.csv").sort_values("image")
    rows = np.flatnonzero(splits["split"] != "train")
    captions = pd.read_csv(data_dir / "captions.txt").groupby("image")["caption"].apply(list)
    found = [captions[name] for name in splits["image"].iloc[rows]]
    return Unseen(
        rows,
        [normalize_caption(caption) for several in found for caption in several],
        np.repeat(np.arange(len(rows)), [len(several) for several in found]),
    )


def crops(
    photographs: Tensor, rows: np.ndarray, side: int, rng: np.random.Generator | None
) -> Tensor:
    """Squares out of photographs, from -1 to 1; at random places and flips, or from the middle.

    Args:
        photographs: (N, S, S, 3) uint8, on the device where the squares are cut.
        rows: (b,) of the photographs.
        side: pixels, at most S.
        rng: of places and flips; None is the middle.

    Returns:
        (b, 3, side, side) float32, channels last in memory.
    """
    device, margin = photographs.device, photographs.shape[1] - side
    if rng is None:
        corner = np.full((2, len(rows)), margin // 2)
        flipped = np.zeros(len(rows), dtype=bool)
    else:
        corner = rng.integers(margin + 1, size=(2, len(rows)))
        flipped = rng.random(len(rows)) < 0.5
    along = np.arange(side)
    down = corner[0][:, None] + along
    across = corner[1][:, None] + np.where(flipped[:, None], side - 1 - along, along)
    which, down, across = (
        torch.from_numpy(index).to(device)
        for index in (rows[:, None, None], down[:, :, None], across[:, None, :])
    )
    return photographs[which, down, across].permute(0, 3, 1, 2).float() / 127.5 - 1


class Vocabulary:
    """Numbers for the tokens that a set of captions has, and what WordLlama knows of them."""

    def __init__(self, captions: Sequence[str]) -> None:
        self._tokenizer, embeddings = load_wordllama()
        ids = np.unique(np.concatenate([[0], *self._ids(captions)]).astype(np.int64))
        self._places = {int(i): place for place, i in enumerate(ids, start=NO_TOKEN + 1)}
        nothing = torch.zeros(1, TOKEN_WIDTH)
        self.embeddings = torch.cat([nothing, embeddings[torch.from_numpy(ids)]])

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch(list(captions), add_special_tokens=False)
        return [encoding.ids[:MAX_TOKENS] for encoding in found]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """(n, MAX_TOKENS) places of the tokens of captions, filled up with `NO_TOKEN`."""
        rows = np.full((len(captions), MAX_TOKENS), NO_TOKEN, np.int64)
        for row, ids in zip(rows, self._ids(captions), strict=True):
            row[: len(ids)] = [self._places[i] for i in ids]
        return torch.from_numpy(rows)


# --- Towers -----------------------------------------------------------------------------------


class TextTower(nn.Module):
    """A transformer over token embeddings; a caption is the mean over its tokens."""

    def __init__(self, token_embeddings: Tensor, n_layers: int, feedforward: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(token_embeddings.clone(), freeze=False)
        self.positions = nn.Parameter(torch.empty(MAX_TOKENS, TOKEN_WIDTH))
        layer = nn.TransformerEncoderLayer(
            TOKEN_WIDTH, HEADS, feedforward, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(TOKEN_WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, TOKEN_WIDTH) features of (b, t) tokens."""
        is_token = tokens != NO_TOKEN  # (b, t)
        states = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        # A caption without a token would have nothing to attend to, and be NaN.
        hidden = ~is_token & is_token.any(dim=1, keepdim=True)
        states = self.norm(self.layers(states, src_key_padding_mask=hidden))
        mask = is_token.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class Towers(nn.Module):
    """Both towers, their projections into one space, and the logit scale."""

    def __init__(self, token_embeddings: Tensor, setting: Setting, rng: np.random.Generator):
        super().__init__()
        self.image_tower = load_lite0()
        self.text_tower = TextTower(token_embeddings, setting.text_layers, setting.feedforward)
        self.image_projection = nn.Linear(IMAGE_WIDTH, JOINT_WIDTH, bias=False)
        self.text_projection = nn.Linear(TOKEN_WIDTH, JOINT_WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> None:
        """Draw what was not trained before from one generator: PyTorch's own is global."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        new = {id(p) for p in self.parameter_groups()[1]}
        for name, weights in self.named_parameters():
            if id(weights) not in new:
                continue
            if weights is self.text_tower.positions:
                nn.init.normal_(weights, std=0.02, generator=generator)
            elif weights.dim() > 1:
                nn.init.xavier_uniform_(weights, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(weights)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Weights that were trained before, and those drawn anew."""
        old = [*self.image_tower.parameters(), *self.text_tower.tokens.parameters()]
        known = {id(p) for p in old}
        return old, [p for p in self.parameters() if id(p) not in known]

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(b, JOINT_WIDTH) unit rows, float32."""
        features = self.image_tower.extract_features(pixels).mean((2, 3))
        return nn.functional.normalize(self.image_projection(features).float(), dim=1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(b, JOINT_WIDTH) unit rows, float32."""
        longest = max(1, int((tokens != NO_TOKEN).sum(dim=1).max()))
        features = self.text_tower(tokens[:, :longest])
        return nn.functional.normalize(self.text_projection(features).float(), dim=1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """(b, b) scaled cosines of embeddings, a row an image."""
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        return scale * images @ texts.T


# --- Training and evaluation ------------------------------------------------------------------


def autocast(device: torch.device) -> Any:
    """bf16 on CUDA, and float32 as it is elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def rate_at(step: int, n_steps: int) -> float:
    """Share of the largest learning rate: up in a line over the first tenth, down by a cosine."""
    n_up = max(1, round(WARM_UP * n_steps))
    if step < n_up:
        return (step + 1) / n_up
    return (1 + math.cos(math.pi * (step - n_up) / max(1, n_steps - n_up))) / 2


def batches_of(n: int, batch_size: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """(n_steps, b) rows: as many epochs as it takes, each in an order of its own."""
    batches: list[np.ndarray] = []
    while len(batches) < n_steps:
        batches += list(shuffled_batches(n, batch_size, rng))
    return np.stack(batches[:n_steps])


def train_towers(
    towers: Towers,
    photographs: Tensor,
    pairs: Pairs,
    vocabulary: Vocabulary,
    setting: Setting,
    rng: np.random.Generator,
) -> np.ndarray:
    """Train all weights on the pairs; (n_steps,) loss of each batch before its step, nats.

    Args:
        towers: on the device of the photographs; changed in place.
        photographs: (N, S, S, 3) uint8.
        pairs: a batch is drawn of them evenly; their weights count in the loss.
        vocabulary: holds the tokens of their captions.
        setting: steps, batch, size of images and learning rates.
        rng: of the order of pairs, and of places and flips of the crops.
    """
    device = photographs.device
    tokens = vocabulary.encode(pairs.captions).to(device)
    weights = torch.from_numpy(pairs.weights.astype(np.float32)).to(device)
    rates = (setting.pretrained_rate, setting.new_rate)
    optimizer = torch.optim.AdamW(
        [{"params": p, "lr": r} for p, r in zip(towers.parameter_groups(), rates, strict=True)],
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate_at(s, setting.n_steps))
    losses = torch.zeros(setting.n_steps, device=device)  # read once: reading waits for the device
    batches = batches_of(len(tokens), setting.batch_size, setting.n_steps, rng)
    bar = tqdm(batches, desc="steps", unit="step", leave=False, disable=None)
    for step, rows in enumerate(bar):
        pixels = crops(photographs, pairs.image_rows[rows], setting.side, rng)
        batch = torch.from_numpy(rows).to(device)
        with autocast(device):
            images, texts = towers.embed_images(pixels), towers.embed_texts(tokens[batch])
        loss = contrastive_loss(towers.logits(images, texts), weights[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        losses[step] = loss.detach()
    return losses.cpu().numpy()


def recalls_of(
    towers: Towers, photographs: Tensor, unseen: Unseen, vocabulary: Vocabulary, side: int
) -> dict[str, float]:
    """Recall in percent at 1, 5 and 10, both directions and their means, of unseen images."""
    device = photographs.device
    tokens = vocabulary.encode(unseen.captions).to(device)
    with torch.inference_mode(), autocast(device):
        images = [
            towers.embed_images(crops(photographs, rows, side, None))
            for rows in np.split(
                unseen.image_rows, range(EMBEDDED_AT_ONCE, len(unseen.image_rows), EMBEDDED_AT_ONCE)
            )
        ]
        texts = [towers.embed_texts(part) for part in tokens.split(EMBEDDED_AT_ONCE)]
    ranks = retrieval_ranks(torch.cat(images), torch.cat(texts), unseen.caption_image)
    return recall_metrics(*ranks)


def fine_tuned_recalls(
    photographs: Tensor, pairs: Pairs, unseen: Unseen, setting: Setting, rng: np.random.Generator
) -> dict[str, float]:
    """Train towers on the pairs, on the device of the photographs, and measure their recall.

    Returns:
        The recalls in percent, and `first_loss` and `last_loss`, means over a tenth of the steps.
    """
    vocabulary = Vocabulary([*pairs.captions, *unseen.captions])
    towers = Towers(vocabulary.embeddings, setting, rng)
    towers = towers.to(photographs.device, memory_format=torch.channels_last)
    losses = train_towers(towers, photographs, pairs, vocabulary, setting, rng)
    tenth = max(1, len(losses) // 10)
    return {
        **recalls_of(towers, photographs, unseen, vocabulary, setting.side),
        "first_loss": float(losses[:tenth].mean()),
        "last_loss": float(losses[-tenth:].mean()),
    }

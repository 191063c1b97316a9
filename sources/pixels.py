"""From an RGB image to pixels of one size: what processors of encoders do before they normalise.

Without torch, so that a process that only decodes starts in a moment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL.Image

MAX_ASPECT_RATIO = 16  # what is longer is cropped before a processor scales its short side up
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that still is so many times what it is
# resized to, and large enough for a small copy. Pixels of photographs then differ from those of an
# exact decoding by less than `MEAN_DRAFT_DIFFERENCE` of 255 in the mean over an image; by 0.5 on
# 175 photographs of Flickr8k, of which the worst had 1.1, and 99 of 100 values of any differed by 7
# at most. These are 224 pixels wide and were resized to 18 and 37: none of larger ones to 224 was
# looked at. It is no bound for patterns as fine as a pixel, such as screens and hatching: these
# differ by several times as much; `--jpeg_decoding full` is for these.
DRAFT_MARGIN = 3
LEAST_DRAFT_SIDE = 256  # pixels of the short side
MEAN_DRAFT_DIFFERENCE = 1.25


@dataclass(frozen=True)
class Resizing:
    """How an image is resized and cropped, rounded as the library rounds whose processor it is.

    Attributes:
        size: (height, width) whatever the image's shape is, or the length of its short side.
        crop: (height, width) cut out of the middle; None: nothing is cut off.
        resample: number of Pillow's filter.
        rounds: an odd margin is halved to the nearest even number, as torchvision does, else down.
        crops_strips: very long and thin images are cropped first, see `crop_strip`.
        drafts: large JPEGs are decoded at a part of their size.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None
    resample: int
    rounds: bool = False
    crops_strips: bool = True
    drafts: bool = True

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Resizing:
        """What `to_json` was made of."""
        known = dict(values)
        for name in ("size", "crop"):
            if isinstance(known[name], list):
                known[name] = tuple(known[name])
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """All of it in types that JSON has."""
        return asdict(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the pixels: height, width, channels."""
        height, width = self.crop or self._whole
        return height, width, 3

    @property
    def _whole(self) -> tuple[int, int]:
        assert not isinstance(self.size, int), "what keeps an image's shape is cropped"
        return self.size

    def __call__(
        self,
        image: PIL.Image.Image,
        box: tuple[float, float, float, float] | None = None,
        full: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """The pixels of an RGB image, (height, width, 3), uint8.

        Args:
            image: of any size.
            box: the part of it that is resized where it was decoded at a part of its size.
            full: its width and height were it decoded in full; None: it was.
        """
        if self.crops_strips and full is None:
            image = crop_strip(image)
        width, height = self.resized(full or image.size)
        scaled = image.resize((width, height), PIL.Image.Resampling(self.resample), box=box)
        if self.crop is not None:
            top, left, rows, columns = self.window(height, width)
            scaled = scaled.crop((left, top, left + columns, top + rows))
        return np.asarray(scaled)

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """What is cut out of an image that was resized to this: top, left, height, width."""
        if self.crop is None:
            return 0, 0, height, width
        rows, columns = self.crop
        return self._start(height, rows), self._start(width, columns), rows, columns

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that an image of this width and height is resized to."""
        if not isinstance(self.size, int):
            return self.size[1], self.size[0]
        width, height = size
        short, long = min(size), max(size)
        longer = int(self.size * long / short)
        return (self.size, longer) if width <= height else (longer, self.size)

    def draft_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The least width and height that a JPEG of this size may be decoded at; None: its own."""
        if not self.drafts or (self.crops_strips and max(size) > MAX_ASPECT_RATIO * min(size)):
            return None
        width, height = self.resized(size)
        return (
            max(DRAFT_MARGIN * width, LEAST_DRAFT_SIDE),
            max(DRAFT_MARGIN * height, LEAST_DRAFT_SIDE),
        )

    def _start(self, whole: int, part: int) -> int:
        """Where the middle part begins."""
        return round((whole - part) / 2) if self.rounds else (whole - part) // 2


def crop_strip(image: PIL.Image.Image) -> PIL.Image.Image:
    """The middle of an image that is very long and thin, other images as they are.

    CLIP's processor scales the short side to the model's size before it crops: a line of pixels
    would fill the memory.
    """
    limit = MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) <= limit:
        return image
    width, height = min(image.width, limit), min(image.height, limit)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

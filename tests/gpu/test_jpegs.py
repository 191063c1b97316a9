"""JPEGs decoded on CUDA beside Pillow's."""

from __future__ import annotations

from functools import partial

import numpy as np
import PIL.Image
import pytest

from intake.device_jpegs import DeviceJpegs, torchvision_decode
from sources.pixels import Resizing
from sources.processes import AskedImage, ImageProcesses, SentImage
from tests.gpu import devices
from tests.sources.image_kinds import image_files, natural, saved

pytestmark = devices.pytestmark
RESIZING = Resizing(224, (224, 224), int(PIL.Image.Resampling.BICUBIC))
MOST = 10**8


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_gpu_reads_what_pillow_reads(subsampling: int) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision")
    sizes = [(336, 336), (500, 333), (333, 500), (1100, 823)]
    files = [saved(natural(*size, seed=7), subsampling=subsampling) for size in sizes]
    files += [saved(natural(400, 300), progressive=True), *image_files().values(), b"", b"\xff\xd8"]
    asked = [AskedImage(str(i), partial(bytes, data), ("x",)) for i, data in enumerate(files)]
    others = ImageProcesses(RESIZING, MOST)
    decode = torchvision_decode(devices.CUDA)
    reader = DeviceJpegs(RESIZING, MOST, devices.CUDA, others, decode=decode)
    found, expected = reader.read(asked), others.read(asked)
    others.close()
    for one, other in zip(found, expected, strict=True):
        if not isinstance(other, SentImage):
            assert one == other
            continue
        assert isinstance(one, SentImage)
        assert (one.sha256, one.ids) == (other.sha256, other.ids)
        assert np.abs(one.pixels.astype(int) - other.pixels).mean() < 3

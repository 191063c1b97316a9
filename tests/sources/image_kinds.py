"""Images with the spectrum of photographs, and files of every mode that sources hold."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image


def natural(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Noise whose amplitudes fall with frequency as those of photographs do, with sharp edges."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    noise = np.fft.fft2(rng.normal(size=(3, height, width)))
    planes = np.fft.ifft2(noise * amplitude).real
    planes = 128 + 50 * planes / planes.std()
    planes[:, : height // 3, : width // 4] += 90
    return PIL.Image.fromarray(planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def saved(image: PIL.Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_files() -> dict[str, bytes]:
    """Files of modes, formats and odd sizes."""
    image = natural(53, 37)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    return {
        "RGB": saved(image),
        "L": saved(image.convert("L")),
        "CMYK": saved(image.convert("CMYK")),
        "P": saved(image.convert("P"), "PNG"),
        "RGBA": saved(image.convert("RGBA").rotate(20), "PNG"),
        "LA": saved(image.convert("LA"), "PNG"),
        "I;16": saved(
            PIL.Image.fromarray(np.arange(53 * 37, dtype=np.uint16).reshape(37, 53)), "PNG"
        ),
        "1": saved(image.convert("1"), "PNG"),
        "webp": saved(image, "WEBP"),
        "turned": saved(image, exif=turned),
        "small": saved(natural(5, 3)),
        "tall": saved(natural(20, 61)),
        "strip": saved(natural(300, 4), "PNG"),
        "large": saved(natural(1100, 823)),
    }

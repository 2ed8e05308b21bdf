"""What a server sent, before img2dataset decodes it: 8 bits per channel, opaque, and of a size that fits in memory.

img2dataset's `Resizer` decodes whatever it gets: a picture of 16 bits saturates to white, and one with alpha takes
about 70 bytes per pixel, so that a decompression bomb of a few kilobytes kills its process, again at every try.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # none that runs programs
TOO_LARGE = "image area too large"  # img2dataset's own words; `outcomes` knows these messages
UNDECODABLE = "image decoding error"
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")

Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]


class GuardedResizer:
    """Called by img2dataset as its `Resizer`, which it wraps: (image, width, height, original size, error)."""

    def __init__(self, resizer: Callable[..., Resized], max_pixels: int) -> None:
        self._resizer, self._max_pixels = resizer, max_pixels

    def __call__(self, stream: IO[bytes], boxes: Any = None) -> Resized:
        try:
            safe = prepare(stream, self._max_pixels)
        except ValueError as error:
            return None, None, None, None, None, str(error)
        return self._resizer(safe, boxes)


def prepare(stream: IO[bytes], max_pixels: int) -> IO[bytes]:
    """The same picture, fit for the resizer: an upright JPEG as it is, anything else as an upright, opaque 8-bit BMP.

    16-bit grey is scaled by 1/257, 16-bit colour keeps its upper 8 bits; alpha is flattened on white.
    Raises ValueError for a picture of more than `max_pixels`, one whose values have no known range (32-bit, float),
    and what cannot be decoded.
    """
    try:
        with Image.open(stream, formats=FORMATS) as image:
            too_large = image.width * image.height > max_pixels
            mode = image.mode
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if image.format in ("JPEG", "MPO") and upright and not too_large:
                return stream
            plain = None if too_large else _plain(image if upright else ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise ValueError(TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise ValueError(UNDECODABLE) from error
    except Exception as error:  # whatever Pillow's decoders raise
        raise ValueError(f"{UNDECODABLE}: {error}") from error
    if too_large:
        raise ValueError(TOO_LARGE)
    if plain is None:
        raise ValueError(f"unsupported pixel mode {mode}")
    bitmap = io.BytesIO()
    plain.save(bitmap, "BMP")
    return bitmap


def _plain(image: Image.Image) -> Image.Image | None:
    """Mode L or RGB; None where the range of the values is not known."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode not in (*_GREY, *_COLOUR):
        return None
    mode = "L" if image.mode in _GREY else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert(mode)

"""Pictures as servers send them reach the resizer opaque, in 8 bits and at a bearable size, or are refused by cause."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.incoming import GuardedResizer, prepare
from data_prep.outcomes import classify

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream


def prepared(stream: io.BytesIO) -> np.ndarray:
    """As img2dataset reads it: OpenCV, unchanged."""
    content = prepare(stream, 10_000)
    content.seek(0)
    return cv2.imdecode(np.frombuffer(content.read(), np.uint8), cv2.IMREAD_UNCHANGED)


def test_sixteen_bits_are_scaled_not_saturated() -> None:
    for channels in (1, 3, 4):
        values = PIXELS[..., :channels].astype(np.uint16) * 257  # 0 to 65,535
        for extension in (".png", ".tiff"):
            stream = io.BytesIO(cv2.imencode(extension, values)[1].tobytes())
            expected = PIXELS[..., :channels].astype(float)
            if channels == 4:
                alpha = expected[..., 3:] / 255
                expected = expected[..., :3] * alpha + 255 * (1 - alpha)
            result = prepared(stream)
            assert result.dtype == np.uint8
            assert np.abs(result.reshape(expected.shape) - expected).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_flattened_on_white(form: str) -> None:
    stream = encoded(Image.fromarray(PIXELS), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    alpha = PIXELS[..., 3:] / 255
    expected = PIXELS[..., 2::-1] * alpha + 255 * (1 - alpha)
    assert np.abs(prepared(stream) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "CMYK"])
def test_every_common_mode_keeps_its_colours(mode: str) -> None:
    image = Image.fromarray(PIXELS[..., :3]).convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)[..., ::-1]
    result = prepared(encoded(image, "TIFF" if mode == "CMYK" else "PNG")).astype(int)
    assert (result if result.ndim == 3 else np.dstack([result] * 3)).tolist() == expected.tolist()


def test_a_jpeg_keeps_its_bytes() -> None:
    stream = encoded(Image.fromarray(PIXELS[..., :3]), "JPEG")
    assert prepare(stream, 10_000) is stream


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_the_size_is_judged_before_anything_is_decoded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = encoded(Image.new("RGB", (101, 100)), form)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="image area too large"):
        prepare(stream, 100 * 100)


REFUSED = {
    "float": (encoded(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF").getvalue(), "unsupported_format"),
    "32 bits": (encoded(Image.fromarray(np.ones((5, 5), np.int32)), "TIFF").getvalue(), "unsupported_format"),
    "page": (b"<html>", "not_an_image"),
    "nothing": (b"", "not_an_image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not_an_image"),
    "cut": (encoded(Image.fromarray(PIXELS), "PNG").getvalue()[:-300], "truncated"),
    "too large": (encoded(Image.new("1", (30_000, 15_000)), "PNG").getvalue(), "too_large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_a_cause(name: str) -> None:
    content, cause = REFUSED[name]
    resizer = GuardedResizer(lambda *_: pytest.fail("handed on"), 10_000)
    *nothing, message = resizer(io.BytesIO(content))
    assert nothing == [None] * 5
    assert classify("failed_to_resize", message) == cause

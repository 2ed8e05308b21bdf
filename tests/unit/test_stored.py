"""Images are judged by their bytes, to the last pixel."""

from __future__ import annotations

import pytest

from data_prep.stored import BadImage, check_image
from tests.unit.downloads_support import encoded


def test_images_are_judged_by_their_bytes() -> None:
    for kind, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        facts = check_image(encoded(kind))
        assert (facts.extension, facts.width, facts.height) == (extension, 50, 40)
    for content, cause in (
        (encoded("BMP"), "unsupported_format"),
        (b"", "not_an_image"),
        (encoded("JPEG")[:300], "truncated"),
        (encoded("PNG")[:-400], "truncated"),
    ):
        with pytest.raises(BadImage) as bad:
            check_image(content)
        assert bad.value.cause == cause


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_cut_image_passes(kind: str) -> None:
    content = encoded(kind, 5)
    for length in range(0, len(content) - 16, len(content) // 40):
        with pytest.raises(BadImage):
            check_image(content[:length])

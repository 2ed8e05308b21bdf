"""A model's features one image and one text at a time, in float64: what the suite's scores are compared with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.models.two_tower import load_exported


class Reference:
    """All vectors are unit vectors (D,), float64."""

    def __init__(self, model: Path) -> None:
        self.exported = load_exported(model, torch.device("cpu"))

    def image(self, content: bytes) -> np.ndarray:
        """Of an encoded image."""
        picture = self.exported.preprocess(Image.open(io.BytesIO(content)).convert("RGB"))
        with torch.no_grad():
            return _unit(self.exported.model.encode_image(picture[None]))

    def image_of(self, sample: dict[str, bytes]) -> np.ndarray:
        """Of the one image of a sample, by extension."""
        return self.image(next(sample[key] for key in ("jpg", "jpeg", "png", "webp") if key in sample))

    def text(self, text: str) -> np.ndarray:
        """Of a text."""
        with torch.no_grad():
            return _unit(self.exported.model.encode_text(self.exported.tokenizer([text])))

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> list[np.ndarray]:
        """Of each class, the unit mean of its prompts."""
        vectors = [np.mean([self.text(template.format(c=name)) for template in templates], axis=0) for name in names]
        return [vector / np.linalg.norm(vector) for vector in vectors]


def _unit(vector: torch.Tensor) -> np.ndarray:
    flat = vector.double().numpy().ravel()
    return flat / np.sqrt((flat**2).sum())

"""A model as evaluation sees it: images and texts to unit vectors, and prompt-ensembled text classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.classifier_cache import ClassifierCache
from pipeline.evaluation.short_texts import encode_text
from pipeline.models.two_tower import Exported

Tower = Callable[[Tensor], Tensor]
Precision = Literal["fp32", "bf16"]
PROMPTS_PER_PASS = 256


class Encoder:
    """One loaded model; keeps the text classifiers it made, so that tasks share them.

    cache: where it also keeps them for other processes.
    """

    def __init__(
        self,
        exported: Exported,
        device: torch.device,
        precision: Precision = "fp32",
        cache: ClassifierCache | None = None,
    ) -> None:
        self.preprocess = exported.preprocess
        self.device = device
        self._encode_image = cast(Tower, exported.model.encode_image)
        self._encode_text = partial(encode_text, exported.model)
        self._tokenizer = exported.tokenizer
        self._precision = precision
        self._cache = cache
        self._classifiers: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    def encode_images(self, images: Tensor, samples: Sequence[str]) -> Tensor:
        """(B, 3, H, W) -> (B, D) fp32 unit rows. samples: B names. Raises UserError for NaN or inf."""
        return self._encode(self._encode_image, images, "image", samples)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """B texts -> (B, D) fp32 unit rows. Raises UserError for NaN or inf."""
        return self._encode(self._encode_text, self._tokenizer(texts), "text", texts)

    def classifier(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(D, C) fp32: column c is the unit mean of the unit features of class c in all T templates.

        Prompt ensembling of CLIP (Radford et al. 2021, section 3.1.4).
        """
        key = (tuple(classnames), tuple(templates))
        if key not in self._classifiers:
            make = partial(self._class_vectors, classnames, templates)
            vectors = make() if self._cache is None else self._cache.get(classnames, templates, make)
            self._classifiers[key] = vectors.to(self.device).T
        return self._classifiers[key]

    def _class_vectors(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """The rows of the classifier, (C, D)."""
        classes_per_pass = max(1, PROMPTS_PER_PASS // len(templates))
        rows = []
        for start in range(0, len(classnames), classes_per_pass):
            part = classnames[start : start + classes_per_pass]
            prompts = [template.format(c=name) for name in part for template in templates]
            features = self.encode_texts(prompts).view(len(part), len(templates), -1)
            rows.append(F.normalize(features.mean(dim=1), dim=-1))
        return torch.cat(rows)

    @torch.inference_mode()
    def _encode(self, tower: Tower, batch: Tensor, what: str, names: Sequence[str]) -> Tensor:
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            features = tower(batch).float()
        finite = features.isfinite().all(dim=-1)
        if not finite.all():
            first = names[int((~finite).int().argmax())]
            count = int((~finite).sum())
            raise UserError(f"the model gives non-finite {what} features, {count} of {len(names)}; first: {first}")
        return F.normalize(features, dim=-1)

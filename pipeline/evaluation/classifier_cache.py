"""Text classifiers on disk, so that a rerun and the other workers do not encode the same prompts again.

OUT/classifiers/<key>.safetensors, the key being a digest of all that a classifier depends on. A file that is damaged,
or was not made of exactly this, is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.evaluation.tensor_file import read_tensors, write_tensors
from pipeline.files import fingerprint

CLASSIFIERS = "classifiers"


class ClassifierCache:
    """folder: of the files. made_by: what, besides class names and templates, a classifier depends on."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        self._folder = folder
        self._made_by = dict(made_by)

    def get(self, classnames: Sequence[str], templates: Sequence[str], make: Callable[[], Tensor]) -> Tensor:
        """(C, D) fp32, from the file or else from `make`, whose result is kept."""
        about = {**self._made_by, "classnames": list(classnames), "templates": list(templates)}
        path = self._folder / f"{fingerprint(about)}.safetensors"
        found = read_tensors(path)
        if found is not None and found.about == about:
            return found.tensors["classifier"]
        made = make()
        write_tensors(path, {"classifier": made}, about)
        return made

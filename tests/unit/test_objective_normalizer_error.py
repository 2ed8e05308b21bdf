"""The log-normalizer error equals a float64 loop over anchors and reference samples, the anchor left out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from pipeline.objectives import normalizer_error as module
from pipeline.objectives.base import Features
from pipeline.objectives.normalizer_error import normalizer_error


@pytest.fixture
def case():
    torch.manual_seed(0)
    reference = Features(*(F.normalize(torch.randn(20, 6, dtype=torch.float64), dim=-1) for _ in range(2)))
    reference_index = torch.randperm(100)[:20]
    # Anchors 0 to 3 are in the reference, 4 and 5 are not.
    inside = torch.tensor([3, 7, 11, 19])
    outside = [F.normalize(torch.randn(2, 6, dtype=torch.float64), dim=-1) for _ in range(2)]
    anchors = Features(*(torch.cat([side[inside], out]) for side, out in zip(reference, outside, strict=True)))
    anchor_index = torch.cat([reference_index[inside], torch.tensor([1000, 1001])])
    alpha = torch.randn(2, 6, dtype=torch.float64)
    return anchors, anchor_index, alpha, reference, reference_index


def reference_errors(anchors, anchor_index, alpha, reference, reference_index, tau, eps):
    image, text = (side.numpy() for side in anchors)
    images, texts = (side.numpy() for side in reference)
    errors = []
    for i in range(len(image)):
        both = 0.0
        for side, (anchor, others) in enumerate(((image, texts), (text, images))):
            terms = [
                math.exp((anchor[i] @ others[j] - image[i] @ text[i]) / tau)
                for j in range(len(others))
                if reference_index[j] != anchor_index[i]
            ]
            both += (float(alpha[side, i]) - math.log(eps + np.mean(terms))) ** 2 / 2
        errors.append(both)
    return np.array(errors)


@pytest.mark.parametrize(("tau", "eps"), [(0.07, 1e-14), (0.3, 0.5)])
@pytest.mark.parametrize("chunk", [2**24, 40])
def test_equals_the_loop(case, tau, eps, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", chunk)
    error = normalizer_error(*case, torch.tensor([tau], dtype=torch.float64), eps)
    expected = reference_errors(*case, tau, eps)
    assert error.mse.item() == pytest.approx(expected.mean())
    assert error.standard_error.item() == pytest.approx(expected.std(ddof=1) / math.sqrt(6))


def test_a_reference_of_the_anchor_alone_is_refused(case):
    anchors, index, alpha, reference, reference_index = case
    alone = Features(reference.image[3:4], reference.text[3:4])
    with pytest.raises(UserError, match="a corpus of at least 2 samples"):
        normalizer_error(anchors, index, alpha, alone, reference_index[3:4], torch.tensor([0.1]), 1e-14)

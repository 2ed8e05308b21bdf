"""A text tower on texts without their padding: the same features, for a fraction of the work.

A causal tower that takes what it has made of the end of the text never looks at what follows: of 77 places a prompt
fills some 10. Other towers see all that they are given.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """`model.encode_text(tokens)`, up to rounding. tokens: (B, context) int64 -> (B, D)."""
    if not _sees_no_padding(model):
        return model.encode_text(tokens)
    length = int(tokens.argmax(dim=-1).max()) + 1  # the end of a text is the highest of its tokens
    mask, positions = model.attn_mask[:length, :length], model.positional_embedding[:length]
    cut = {"model.attn_mask": mask, "model.positional_embedding": positions}
    return functional_call(_Text(model), cut, (tokens[:, :length],))


def _sees_no_padding(model: Any) -> bool:
    """Whether it is open_clip's `CLIP` with a causal mask, and reads its result at the end of the text."""
    return getattr(model, "text_pool_type", None) == "argmax" and getattr(model, "attn_mask", None) is not None


class _Text(nn.Module):
    """Half of a model, so that it can be called by itself."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """`encode_text`."""
        return self.model.encode_text(tokens)

"""Layer-wise learning rate decay: the further below a tower's output, the smaller the rate (BEiT, arXiv 2106.08254)."""

from __future__ import annotations

import re
from collections.abc import Iterable

BLOCK = re.compile(r"\.(?:resblocks|blocks|stages|layers?)\.?(\d+)\.")
ABOVE = re.compile(r"\.(?:ln_post|ln_final|text_projection|attn_?pool|head|norm|fc_norm|(?:visual|text)\.proj)(?:\.|$)")
IMAGE = "towers.visual."


def distances(names: Iterable[str]) -> dict[str, int]:
    """How many layers each parameter of the two towers is below its tower's output.

    The projection and the last norm are at 0, the last block at 1, ..., the embeddings below the first block.
    """
    towers: dict[bool, list[str]] = {True: [], False: []}
    for name in names:
        towers[name.startswith(IMAGE)].append(name)
    return {name: distance for tower in towers.values() for name, distance in _in_one_tower(tower).items()}


def _in_one_tower(names: list[str]) -> dict[str, int]:
    blocks = {name: int(found[1]) for name in names if (found := BLOCK.search(name))}
    first, last = min(blocks.values(), default=0), max(blocks.values(), default=-1)
    above = {name: last + 1 for name in names if ABOVE.search(name) and name not in blocks}
    return {name: last + 1 - blocks.get(name, above.get(name, first - 1)) for name in names}

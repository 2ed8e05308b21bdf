"""Several corpora in one order: each run position belongs to one corpus, and is the so-manieth draw from it.

Of P positions the first corpus gets floor(P * s), s being its share; those that it leaves are numbered on, and split
among the others in the same way. So position P is found without walking there, every corpus goes through its own
epochs (pipeline.data.order), and the first P positions never hold more or fewer samples of one than its share of P
by as much as the number of corpora.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pipeline.data.order import SampleOrder


class MixtureOrder:
    """Where each run position lies, over all corpora.

    corpora: the order of each. weights: their shares, relative to each other; by default their sizes, so that every
    sample of any corpus comes once in each `total` positions.
    """

    def __init__(self, corpora: Sequence[SampleOrder], weights: Sequence[float] | None = None) -> None:
        self.corpora = list(corpora)
        self.total = sum(order.total for order in corpora)
        exact = [Fraction(str(weight)) for weight in weights or [order.total for order in corpora]]
        # Of what the corpora before it leave, which for the last is everything.
        self._shares = [weight / sum(exact[number:]) for number, weight in enumerate(exact)]
        self._first_shard = np.cumsum([0, *(len(order.samples) for order in corpora)])

    def counts(self, position: int) -> list[int]:
        """How many of the first `position` positions are of each corpus."""
        counts = []
        for share in self._shares:
            counts.append(_floor(position, share))
            position -= counts[-1]
        return counts

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) run positions -> (n,) shard numbers, counted on from corpus to corpus, and (n,) rows; int64."""
        drawn = [self._draw(int(position)) for position in positions]
        corpus, within = np.array(drawn, dtype=np.int64).reshape(-1, 2).T
        shards, rows = np.empty_like(corpus), np.empty_like(corpus)
        for number in np.unique(corpus):
            chosen = corpus == number
            shards[chosen], rows[chosen] = self.corpora[number].locate(within[chosen])
            shards[chosen] += self._first_shard[number]
        return shards, rows

    def _draw(self, position: int) -> tuple[int, int]:
        """The number of a corpus, and the position in its own order."""
        for number, share in enumerate(self._shares):
            before = _floor(position, share)
            if _floor(position + 1, share) > before:
                return number, before
            position -= before
        raise AssertionError("the last share is 1")


def _floor(position: int, share: Fraction) -> int:
    """floor(position * share), exact for any size."""
    return position * share.numerator // share.denominator

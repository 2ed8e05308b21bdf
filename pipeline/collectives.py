"""Gathers and reductions that also work in one process, where each is the identity. None carries a gradient.

Legend: K ranks. Every function is collective: all ranks call it, with tensors of the same shape and dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed import rank, world_size

T = TypeVar("T")
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "mean": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
_counters: list[Counter[str]] = []


@contextmanager
def count_bytes() -> Iterator[Counter[str]]:
    """Count the payload bytes that this rank sends inside the block, by collective.

    As the ring algorithms send them, for n bytes handed in: all_gather (K-1) n; all_reduce 2 n (K-1)/K;
    ring_shift n. Nothing in one process.
    """
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters[:] = [other for other in _counters if other is not counter]


def all_gather(tensor: Tensor) -> Tensor:
    """(B, ...) of every rank to (K*B, ...), in rank order."""
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    _count("all_gather", tensor, world_size() - 1)
    gathered = tensor.new_empty(world_size() * tensor.shape[0], *tensor.shape[1:])
    dist.all_gather_into_tensor(gathered, tensor)
    return gathered


def all_reduce(tensor: Tensor, operation: Literal["sum", "mean", "max"]) -> Tensor:
    """Elementwise over the ranks; a new tensor of the same shape (in one process, the tensor itself)."""
    size = world_size()
    if size == 1:
        return tensor
    _count("all_reduce", tensor, 2 * (size - 1) / size)
    reduced = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, _REDUCTIONS[operation])
    return reduced / size if operation == "mean" else reduced


def all_reduce_logsumexp(tensor: Tensor) -> Tensor:
    """Elementwise log of the sum over ranks of exp(tensor): two all-reduces. -inf adds nothing."""
    if world_size() == 1:
        return tensor
    maximum = all_reduce(tensor, "max")
    return maximum + all_reduce((tensor - maximum).exp(), "sum").log()


def ring_shift(tensor: Tensor) -> Tensor:
    """What the previous rank holds, while the next one gets ours: after K shifts everything is home again."""
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    _count("ring_shift", tensor, 1)
    received = torch.empty_like(tensor)
    # Both at once, so that no rank waits for another's receive before it posts its own.
    transfers = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, tensor, (rank() + 1) % world_size()),
            dist.P2POp(dist.irecv, received, (rank() - 1) % world_size()),
        ]
    )
    for transfer in transfers:
        transfer.wait()
    return received


def broadcast_object(value: T) -> T:
    """A picklable value of rank 0, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: T) -> list[T]:
    """A picklable value of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[T] = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Return once every rank is here."""
    if world_size() > 1:
        dist.barrier()


def own_slice(total: int) -> slice:
    """This rank's part of `total` rows: contiguous, in rank order, sizes at most one apart (or empty)."""
    return _slice(total, rank(), world_size())


def all_gather_slices(part: Tensor, total: int) -> Tensor:
    """The (total, ...) tensor of which every rank holds the rows `own_slice(total)`."""
    size = world_size()
    if size == 1:
        return part
    longest = -(-total // size)
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: part.shape[0]] = part
    rows = all_gather(padded).unflatten(0, (size, longest))
    bounds = [_slice(total, other, size) for other in range(size)]
    return torch.cat([rows[other, : bound.stop - bound.start] for other, bound in enumerate(bounds)])


def _slice(total: int, rank: int, size: int) -> slice:
    return slice(total * rank // size, total * (rank + 1) // size)


def _count(name: str, tensor: Tensor, factor: float) -> None:
    for counter in _counters:
        counter[name] += round(tensor.nbytes * factor)

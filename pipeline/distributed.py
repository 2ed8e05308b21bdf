"""The process group and the device of this rank, from the variables that every launcher sets.

RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: torchrun, the deepspeed launcher and the sbatch
scripts all give them. With none of them set this process is a group of its own. DeepSpeed finds the process
group made here and uses it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.errors import UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among `size` of them. local_rank: its number on this node, and of its CUDA device."""

    rank: int
    local_rank: int
    size: int
    device: torch.device


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def init(timeout_seconds: float = 1800) -> World:
    """Join the process group that the environment describes (nccl on CUDA, gloo on CPU); may be called again.

    timeout_seconds: how long to wait for the other ranks, at the start and in every collective.
    Raises UserError when variables are missing or wrong, or when the ranks do not find each other.
    """
    launched = "WORLD_SIZE" in os.environ or "RANK" in os.environ
    rank, local_rank, size = _read(os.environ) if launched else (0, 0, 1)
    world = World(rank, local_rank, size, _device(local_rank))
    if not dist.is_initialized():
        if launched:
            _join(world, timeout_seconds)
        else:  # without a group DeepSpeed would look for MPI
            dist.init_process_group(_backend(world), store=dist.HashStore(), rank=0, world_size=1)
    return world


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _read(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, local_rank, world size), checked."""
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise UserError(
            f"the environment describes a distributed run but lacks {', '.join(missing)}: start the command "
            f"with torchrun or deepspeed, or unset {', '.join(VARIABLES)} to run in one process"
        )
    numbers = {}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        try:
            numbers[name] = int(environment[name])
        except ValueError:
            raise UserError(f"{name} should be a number, not {environment[name]!r}") from None
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} is not among the ranks 0 to {size - 1} of WORLD_SIZE={size}")
    return rank, numbers["LOCAL_RANK"], size


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK={local_rank} but this node has {torch.cuda.device_count()} CUDA devices: "
            "start as many processes per node as there are devices"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _backend(world: World) -> str:
    return "gloo" if world.device.type == "cpu" else "nccl"


def _join(world: World, timeout_seconds: float) -> None:
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    timeout = timedelta(seconds=timeout_seconds)
    local = address in ("localhost", "127.0.0.1")
    if local and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo listens on the host name's address
    try:
        dist.init_process_group(
            backend=_backend(world),
            store=_loopback_store(world, int(port), timeout) if local and not _launcher_has_store() else None,
            rank=world.rank,
            world_size=world.size,
            timeout=timeout,
            device_id=None if world.device.type == "cpu" else world.device,
        )
        dist.barrier()  # a rank that was done before the others are connected would break their connecting
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"rank {world.rank} of {world.size} could not join the others at {address}:{port}: {reason}. "
            "Check that all ranks were started, that MASTER_ADDR is the node of rank 0, and that MASTER_PORT "
            "is free there."
        ) from error


def _launcher_has_store() -> bool:
    """Whether torchrun keeps the store that the ranks meet in (it says so); else rank 0 has to."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _loopback_store(world: World, port: int, timeout: timedelta) -> dist.TCPStore:
    """The ranks' meeting point, listening on the loopback alone: by itself torch listens on every interface."""
    listener = None
    if world.rank == 0:
        listener = socket.create_server(("127.0.0.1", port)).detach()
    return dist.TCPStore(
        "127.0.0.1", port, world.size, world.rank == 0, timeout, wait_for_workers=False, master_listen_fd=listener
    )

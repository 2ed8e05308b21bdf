"""What a site's SLURM wants to be asked (slurm/cluster.yaml), typed, frozen and validated; nothing needs to be set.

Resources are set in `defaults`, and per kind of job on top. Names and formats are SLURM's own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.config.loader import parse, read_yaml
from pipeline.config.schema import Section

Kind = Literal["ingest", "manifest", "train", "export", "evaluate", "report"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")


def _text(value: object) -> object:
    if isinstance(value, int | float):
        raise ValueError(f"quote it: YAML made the number {value} of what was written (1:00:00 would become 3600)")
    return value


def _time(value: str) -> str:
    if not _TIME.fullmatch(value) or limit_seconds(value) == 0:
        raise ValueError(f"{value!r} is no time limit: write '90' (minutes), '12:00:00' or '2-00:00:00' (days first)")
    return value


Text = Annotated[str, BeforeValidator(_text)]
TimeLimit = Annotated[Text, AfterValidator(_time)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Resources(Section):
    """What one job, or each element of an array, is given. null: the site's default, or as said."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None  # of each node: gpu:8, gpu:h100:8
    time: TimeLimit | None = None  # of one slice: training that needs longer is requeued and goes on
    mem: Text | None = None  # of each node: 64G; "0": all of it
    cpus: int = Field(1, ge=1)  # of each task
    throttle: int | None = Field(None, ge=1)  # elements of an array that run at once; null: as many as SLURM likes
    sbatch_flags: tuple[str, ...] = ()  # anything else: --exclusive, --reservation=NAME


class TrainResources(Resources):
    """Of training, which alone may use several nodes."""

    nodes: int = Field(1, ge=1)
    tasks_per_node: int | None = Field(None, ge=1)  # ranks, one per GPU; null: the recipe's train.processes


class Container(Section):
    """Where the commands of the stages run; `neuclip` itself, which starts them, stays outside.

    apptainer: command. pyxis and enroot: srun_flags.
    """

    command: tuple[str, ...] = ()  # goes before what is started: [apptainer, exec, --nv, --bind, /data, clip.sif]
    srun_flags: tuple[str, ...] = ()  # [--container-image=/images/clip.sqsh, --container-mounts=/data:/data]
    python: str = "python3"  # in the container; this package has to be installed for it


class Cluster(Section):
    """A site."""

    defaults: Resources = Resources()
    ingest: Resources = Resources()
    manifest: Resources = Resources()
    train: TrainResources = TrainResources()
    export: Resources = Resources()
    evaluate: Resources = Resources()
    report: Resources = Resources()
    modules: tuple[str, ...] = ()  # `module load`, in this order
    activate: str | None = None  # shell lines after that; null: jobs run the Python that submits them
    environment: dict[Variable, Text] = Field(default_factory=dict)  # NCCL_SOCKET_IFNAME: ib0
    container: Container | None = None
    srun_flags: tuple[str, ...] = ()  # of training: --mpi=none, --cpu-bind=cores
    scratch: Text | None = None  # folder of a node for temporary files; variables of the job are expanded
    logs: str | None = None  # folder of what SLURM itself has to say; null: RUN/slurm/logs
    signal_seconds: int = Field(300, ge=1, le=65535)  # so long before the time limit jobs are asked to stop and save
    max_requeues: int = Field(100, ge=0)  # stops after which a job goes on by itself

    def resources(self, kind: Kind) -> Resources:
        """`defaults` with what is set for `kind` on top."""
        own: Resources = getattr(self, kind)
        return type(own)(**self.defaults.model_dump(exclude_unset=True) | own.model_dump(exclude_unset=True))


def load_cluster(path: Path) -> Cluster:
    """A checked cluster.yaml. Raises UserError that names the file, the key, and the nearest valid key."""
    tree = read_yaml(path) if not _only_comments(path) else {}
    return parse(Cluster, tree, where=str(path))


def limit_seconds(time: str) -> int:
    """Of a limit as SLURM writes it: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    days, dash, rest = time.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if dash:
        numbers += [0] * (3 - len(numbers))
    elif len(numbers) < 3:
        numbers = [0, *numbers, *[0] * (2 - len(numbers))]
    hours, minutes, seconds = numbers
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _only_comments(path: Path) -> bool:
    if not path.is_file():
        return False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return not any(line.strip() and not line.lstrip().startswith("#") for line in lines)

"""A run of cheap stages: four items, each checked after it was made, and all of them joined.

    python tests/chain_support.py RUN STAGE ELEMENT      is `neuclip work` on such a run

A file RUN/fail.<stage>.<element> makes the element fail; RUN/hold.<stage>.<element> keeps it busy until it is gone;
RUN/ignore.<signal> makes commands end well although they are signalled, RUN/save.<signal> with 75, as a trainer does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.config.schema import RunConfig
from pipeline.files import fingerprint, write_json
from pipeline.launch import run
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.launch.work import work

ITEMS = 4
SCRIPT = """
for signal in USR1 TERM; do
  if [ -e ignore.$signal ]; then trap 'rm -f hold.*' $signal; fi
  if [ -e save.$signal ]; then trap 'echo "stopped: on request, and saved"; exit 75' $signal; fi
done
touch begun.$1.$2
while [ -e hold.$1.$2 ]; do sleep 0.02; done
if [ -e fail.$1.$2 ]; then echo "error: $1 $2 is broken: $(cat fail.$1.$2)"; exit 2; fi
if [ -e nothing.$1.$2 ]; then exit 0; fi
"""
MAKE = "echo item $2 > made.$2"
CHECK = "cat made.$2 > checked.$2"
JOIN = "cat checked.* > joined"


def fake_stages(paths: RunPaths) -> list[Stage]:
    def stage(name: str, needs: tuple[str, ...], act: str, proof: str, elements: int = 1) -> Stage:
        return Stage(
            name,
            needs,
            lambda p, i: ["bash", "-c", f"cd '{p.root}'; {SCRIPT}{act}", "-", name, str(i)],
            lambda p, i: [p.root / proof.format(i)],
            elements=elements,
        )

    return [
        stage("make", (), MAKE, "made.{}", ITEMS),
        stage("check", ("make",), CHECK, "checked.{}", ITEMS),
        stage("join", ("check",), JOIN, "joined"),
    ]


def fake_run(root: Path, mlflow: bool = False) -> Run:
    """A planned run in which nothing is done."""
    config = RunConfig.model_validate({"name": "fake", "train": {"steps": 1}, "tracking": {"mlflow": mlflow}})
    paths = RunPaths(root.resolve(), config)
    run = Run(paths, tuple(fake_stages(paths)))
    write_plan(run)
    return run


def write_plan(of: Run) -> None:
    """plan.json, as `pipeline.launch.plan` writes it."""
    stages = [{"name": s.name, "needs": s.needs, "elements": s.elements, "per_member": s.per_member} for s in of.stages]
    members = {"members": [{"name": m.name, "overrides": list(m.overrides)} for m in of.paths.members]}
    plan = {"recipe": "fake", "config": of.paths.config.model_dump(mode="json"), "stages": stages}
    plan |= members if of.paths.members else {}
    write_json(of.paths.plan, {**plan, "fingerprint": fingerprint(plan)})


def worker_command(of: Run, stage: Stage, element: int) -> list[str]:
    return [sys.executable, __file__, str(of.paths.root), stage.name, str(element)]


def attempts_of(of: Run, stage: str, element: int) -> list[tuple[int, str]]:
    """(attempt, event or status) of every line."""
    file = of.paths.attempts(stage, element)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(line["attempt"], line.get("status") or line["event"]) for line in lines]


if __name__ == "__main__":
    run.build_stages = fake_stages  # type: ignore[assignment]
    opened = Run.open(Path(sys.argv[1]))
    sys.exit(work(opened, opened.stage(sys.argv[2]), int(sys.argv[3]), "local", None))

"""`python -m pipeline.evaluation.of_checkpoint PARENT REQUEST`: the process that `during_training` starts.

REQUEST, JSON: {"checkpoint": tag folder, "out": folder, "data": folder, "tasks": [names], "options": of `evaluate`}.
Exports the checkpoint to OUT/model and leaves OUT/<task>.json. Exit status 0: all tasks have a score.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.leaving import leave_with
from pipeline.processes import die_with_parent, follow_parent


def main(parent: str, request: str) -> int:
    """Returns the exit status."""
    die_with_parent(int(parent))
    follow_parent(niceness=19)
    try:
        _evaluate(**json.loads(request))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _evaluate(checkpoint: str, out: str, data: str, tasks: list[str], options: dict[str, Any]) -> None:
    from pipeline.engine.export import export
    from pipeline.evaluation.suite import evaluate

    model = Path(out) / "model"
    export(Path(checkpoint), model)
    evaluate(model, Path(data), Path(out), tasks, **options)


if __name__ == "__main__":
    leave_with(lambda: main(*sys.argv[1:]))

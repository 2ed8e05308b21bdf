"""The official evaluation in its own process: `evaluate_model` of a checkout of mlfoundations/datacomp, task by task.

    python official_evaluation.py CHECKOUT DATA MODEL REQUEST OUT

REQUEST: {"batch_size": n, "sizes": {task: samples}}. Writes OUT: {"seconds": s, "wall_seconds": s, "metrics": {task:
{metric: number}}, "main_metrics": {task: name}, "versions": {..}}; seconds are processor time of all tasks, imports not
counted. Runs in an environment with open_clip, clip-benchmark 1.4.0, wilds and datasets; needs nothing of this
repository. What has to be patched to run the official code with today's libraries is in `patch`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "open_clip_torch", "clip-benchmark", "wilds", "webdataset", "datasets", "scikit-learn", "numpy")


def patch(model: str) -> None:
    """Three changes; none touches a definition.

    1. clip_benchmark's `accuracy` calls float() on an array of one element, which numpy no longer takes: sum(0)
       without keepdim.
    2. The model is the folder MODEL (`local-dir:`), not an architecture of open_clip and a file; loaded per task, as
       there.
    3. Loaders have no worker processes, so that one process's time is all of it.
    """
    import eval_utils.fairness_eval
    import eval_utils.retr_eval
    import eval_utils.wds_eval
    import eval_utils.wino_eval
    import open_clip
    import torch
    from clip_benchmark.metrics import zeroshot_classification

    def accuracy(output: Any, target: Any, topk: tuple[int, ...] = (1,)) -> list[float]:
        pred = output.topk(max(topk), 1, True, True)[1].t()
        correct = pred.eq(target.view(1, -1).expand_as(pred))
        return [float(correct[:k].reshape(-1).float().sum(0).cpu().numpy()) / len(target) for k in topk]

    def create_model(architecture: str, path: str) -> tuple[Any, Any, str]:
        loaded, _, transform = open_clip.create_model_and_transforms(model)
        return loaded.eval(), transform, "cpu"

    class DataLoader(torch.utils.data.DataLoader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "num_workers": 0})

    zeroshot_classification.accuracy = accuracy
    for module in (eval_utils.wds_eval, eval_utils.retr_eval, eval_utils.wino_eval, eval_utils.fairness_eval):
        module.create_model = create_model
    torch.utils.data.DataLoader = DataLoader  # type: ignore[misc]


def main(checkout: Path, data: Path, folder: Path, request: Path, out: Path) -> None:
    """See above."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(checkout))
    import torch
    import yaml
    from eval_utils.main import evaluate_model

    torch.set_num_threads(1)
    model = f"local-dir:{folder}"
    patch(model)
    os.chdir(data)  # where load_dataset("nlphuji/...") finds a folder of that name
    wanted = json.loads(request.read_text())
    info = {"scale_config": {"model": model}, "checkpoint": str(folder)}
    tasks = yaml.safe_load((checkout / "tasklist.yml").read_text())
    metrics = {}
    started, began = time.process_time(), time.perf_counter()
    for task, size in wanted["sizes"].items():
        found = evaluate_model(task, info, str(data), size, batch_size=wanted["batch_size"])
        found = found[0] if isinstance(found, tuple) else found
        metrics[task] = {name: None if value is None else float(value) for name, value in found.items()}
    seconds, wall = time.process_time() - started, time.perf_counter() - began
    main_metrics = {task: tasks[task].get("main_metric", "acc1") for task in metrics}
    versions = {name: version(name) for name in LIBRARIES}
    answer = {"seconds": seconds, "wall_seconds": wall, "metrics": metrics, "main_metrics": main_metrics}
    out.write_text(json.dumps({**answer, "versions": versions}))


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))

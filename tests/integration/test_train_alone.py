"""`neuclip train` as its help offers it: in one process, without a launcher; its checkpoint as large as foretold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.config.loader import load_recipe
from pipeline.distributed import VARIABLES
from pipeline.engine import cost
from tests.distributed.training_support import TINY


def test_one_process_without_a_launcher(noise_corpus: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    overrides = [
        f"loader.manifest={noise_corpus}",
        f"model.config={TINY}",
        "train={steps: 2, epochs: null, global_batch_size: 4, processes: 1}",
        "tracking.mlflow=false",
    ]
    command = [sys.executable, "-m", "pipeline", "train", "demo", "--run-dir", str(tmp_path), *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "train/summary.json").read_text())["steps"] == 2

    config = load_recipe("demo", overrides)
    state = cost.objective_state_bytes("neuclip", config, ranks=1, samples_per_epoch=1)  # NeuCLIP's knows no samples
    foretold = cost.checkpoint_bytes(cost.tower_sizes(cost.towers_on_meta(config)).total, state)
    (tag,) = (tmp_path / "train/checkpoints").glob("step-*")
    written = sum(path.stat().st_size for path in tag.rglob("*"))
    assert foretold < written < 1.05 * foretold + 100_000  # and what is not tensors

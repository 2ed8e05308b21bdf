"""Training does not carry what DeepSpeed imports for others, and leaves that importable."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys
import pipeline.trainer
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer  # what imports Muon when an engine is made
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
from importlib.util import find_spec
assert find_spec("mlflow")
print([name for name in ("mlflow", "pandas", "fastapi", "networkx") if name in sys.modules])
"""


def test_a_trainer_has_no_tracking_server_and_no_compiler_in_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr

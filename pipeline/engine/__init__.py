"""DeepSpeed lives here and nowhere else."""

import os

import torch

# Said before deepspeed is imported, which would find the same by itself and warn about it.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

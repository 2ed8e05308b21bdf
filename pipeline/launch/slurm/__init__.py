"""The SLURM backend: stages as jobs and arrays that depend on each other, each element started as `neuclip work`."""

"""The chain: stages as data, a frozen plan, completion markers, and a backend that starts what is missing."""

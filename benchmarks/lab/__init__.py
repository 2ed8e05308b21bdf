"""A small laboratory: many short, comparable training runs on real images, on one CPU core each.

data      the corpus in memory: images, captions, held-out tasks
training  one run: towers, objective and optimizer of `pipeline`, in one process without DeepSpeed
measures  log-normalizer error over the whole training set, accuracy on the held-out tasks
study     many runs, kept as they end, continued where they stopped
"""

"""`neuclip demo --quick`: the recipe `demo`, small enough for a first look and for tests."""

QUICK = (
    "corpus.scenes=640",
    "corpus.evaluation_scenes=192",
    "corpus.samples_per_shard=100",
    "train.epochs=6",
    "train.global_batch_size=64",
    "optimizer.warmup=10",
    "checkpoint.every=10",
    "diagnostics.every_steps=20",
    "diagnostics.reference_samples=128",
)

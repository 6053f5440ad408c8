"""Names of the parts that a training step of ours is timed in (`benchmarks.workers.stopwatch`)."""

EMBEDDING_PARTS = ("embedding read", "embedding gather", "embedding scatter", "embedding norm", "embedding update")
OPTIMISER_PARTS = ("dense optimiser",)
MODEL_PARTS = ("dense forward", "dense backward", "rest")

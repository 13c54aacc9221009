"""Training: one flat loop, what configures it, and how it is checkpointed."""

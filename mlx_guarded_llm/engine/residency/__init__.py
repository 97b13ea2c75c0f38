"""Models in memory, on the MLX thread.

`residents.Residency` loads and releases models for `engine.Engine`. It uses `loading` for the
weights, which mlx-lm reads from the folder that `staging` prepares, and chooses a decoder for
each model. On CUDA, `device` leaves attention to MLX itself, and `folding` has a batch read
quantised weights once. `prefix` keeps KV caches for prompts with a common
beginning; `keepable` tests once per architecture which caches can be kept, `embeddable` which
tokens have an embedding.
"""

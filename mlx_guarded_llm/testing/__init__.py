"""Tools to test code that runs MLX models: small models and the witness.

Nothing in the library imports it. `tiny` writes models with random weights, `scripted` writes
models that give a fixed answer, and `tiny_embedder` models that embed texts; `faulty` makes an
engine fail on purpose. `witness` watches all MLX work of a process: the engine finds it through
an entry point when `MLX_GUARDED_WITNESS=1`. `naive` is the server without a guard, which
`mlx-guarded demo --naive` runs in a process of its own.
"""

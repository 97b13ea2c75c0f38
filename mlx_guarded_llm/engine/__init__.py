"""Everything that touches MLX: `engine.Engine`, on the one thread of `thread`.

A request passes through `prompt`, `decode` and `output`; `residency` keeps the models in memory.
`protocol` has the commands and reports that the engine and its caller exchange, and an
`observer` hears what the engine is doing. `backend.supervisor` starts an engine in this process,
`worker.child` in a process of its own.
"""
